"""Griffe extension, for the reference: a function that a stub has in overloads alone is shown as the first of them."""

from typing import Any

import griffe


class FirstOverload(griffe.Extension):
    """Make a member of the first overload where there is none."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Look through the overloads of a module, once its members are known."""
        for name, overloads in mod.overloads.items():
            if name not in mod.members:
                mod.set_member(name, overloads[0])
