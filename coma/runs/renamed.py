"""Options of older run folders under the names that they have now."""

from typing import Any

_RENAMED = {"average_decay": "ema_decay", "--average-decay": "--ema-decay"}


def current_names(options: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json's "config" or "identity" with the names of options that were renamed since."""
    return {_RENAMED.get(name, name): value for name, value in options.items()}
