"""Entry of the command `coma`, outside of the package: another package called `coma` may have taken its place.

`coma.__main__` is the entry otherwise, also of `python -m coma`.
"""

import sys


def run() -> None:
    """Run the command, or say in one line which package is imported instead of coma-vision's."""
    try:
        from coma.__main__ import run as run_command
    except ImportError as error:
        if not (error.name or "").startswith("coma"):
            raise
        package = sys.modules.get("coma")
        where = ", ".join(map(str, getattr(package, "__path__", ()))) or "nothing"
        sys.exit(
            f"error: `import coma` finds {where}, which is not coma-vision's: uninstall the distributions coma and "
            "coma-vision, then install coma-vision again (docs/install.md)"
        )
    run_command()


if __name__ == "__main__":
    run()
