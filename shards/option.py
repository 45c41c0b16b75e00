"""Options of a command as fields of a frozen dataclass: name, default, help and limits, each said once.

`coma.cli.from_options` makes command-line parameters of such a dataclass; nothing here knows of a command line.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from coma.errors import UsageError
from coma.shards.files import local_path

_KEY = "option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """Description of one option. A value of None is within all limits."""

    help: str
    """One sentence, with the unit; the default is added to it."""
    panel: str | None = None
    """Heading under which help lists the option."""
    metavar: str | None = None
    """Placeholder of the value in help; None: by the type."""
    shown_default: str | None = None
    """Default as help words it; None: the value itself, nothing for None and False."""
    flag: str = ""
    """Flag, if it is not made of the field's name."""
    argument: bool = False
    """Positional argument instead of a flag."""
    identity: bool = False
    """Whether runs with different values are different runs."""
    path: bool = False
    """Whether a path may stand for the text in Python."""
    several: bool = False
    """Whether several texts may be given, which make a tuple."""
    instead_of: str | None = None
    """Name of an option that excludes this one: either, on the command line, stands in place of a file's other."""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    parse: Callable[[str, str], Any] | None = None
    """Makes the value of (text, flag), where the command line takes a text and the field does not."""

    name: str = ""
    """Name of the field; this and what follows is read from the field."""
    default: Any = ...
    """The field's default; `...` if the option is required."""
    kind: type = str
    """Type of a value that is not None."""
    choices: tuple[str, ...] = ()
    """The only allowed words, of a Literal; with a number for its kind, words that stand for a number."""

    @property
    def keyword(self) -> str:
        """Name of the option as a keyword argument in Python."""
        return self.name if self.argument else self.flag.removeprefix("--").replace("-", "_")

    @property
    def limits(self) -> str:
        """The allowed range in words, an empty string without one."""
        if self.choices and self.kind is str:
            return " or ".join(self.choices)
        if self.choices:
            return f"{dataclasses.replace(self, choices=()).limits}, or {' or '.join(self.choices)}"
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {limit}" for word, limit in words.items() if limit is not None)

    def allows(self, value: Any) -> bool:
        """Whether a value is within the limits."""
        if value is None or not self.limits:
            return True
        if self.choices and (self.kind is str or isinstance(value, str)):
            return value in self.choices
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of dataclasses of options. Raises UsageError for a value outside its limits."""

    def __post_init__(self) -> None:
        """Check the limits."""
        validate(self)


def option(default: Any = MISSING, **description: Any) -> Any:
    """Return a dataclass field with an `Option`'s description; without a default it is required."""
    return dataclasses.field(default=default, metadata={_KEY: Option(**description)})


def option_like(base: type, name: str, default: Any = MISSING, **changes: Any) -> Any:
    """Return a field like that of another dataclass, with another default or with changes to its description."""
    field = base.__dataclass_fields__[name]  # type: ignore[attr-defined]
    description = dataclasses.replace(field.metadata[_KEY], **changes)
    return dataclasses.field(default=field.default if default is MISSING else default, metadata={_KEY: description})


def options_of(options: type) -> tuple[Option, ...]:
    """Return the options of a dataclass: those that it adds to its bases first, in the order of its fields."""
    hints, fields = get_type_hints(options), dataclasses.fields(options)
    inherited = {name for base in options.__mro__[1:] for name in getattr(base, "__dataclass_fields__", ())}
    described = []
    for field in sorted(fields, key=lambda field: field.name in inherited):
        if _KEY in field.metadata:
            about: Option = field.metadata[_KEY]
            kind, choices = _type_of(hints[field.name])
            flag = about.flag or f"--{field.name.replace('_', '-')}"
            default = ... if field.default is MISSING else field.default
            read: dict[str, Any] = {
                "name": field.name,
                "flag": flag,
                "default": default,
                "kind": kind,
                "choices": choices,
            }
            described.append(dataclasses.replace(about, **read))
    return tuple(described)


def _type_of(hint: Any) -> tuple[type, tuple[str, ...]]:
    """Return the type that a hint stands for besides None, `str` before others, and a Literal's words."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = tuple(word for each in alternatives if get_origin(each) is Literal for word in get_args(each))
    others = [each for each in alternatives if each is not type(None) and get_origin(each) is not Literal]
    kinds = [get_origin(each) or each for each in others] or [str]
    return (str if str in kinds else kinds[0]), words


def words_of(options: object) -> list[str | Path]:
    """Return the options that are not at their defaults as words of a command line, arguments first."""
    words: list[str | Path] = []
    for each in sorted(options_of(type(options)), key=lambda each: not each.argument):
        value = getattr(options, each.name)
        if value != each.default and isinstance(value, tuple):
            words += value if each.argument else [each.flag, ",".join(value)]
        elif value != each.default:
            shown = value if isinstance(value, Path) else str(value)
            words += [shown] if each.argument else [each.flag] if value is True else [each.flag, shown]
    return words


def validate(options: object) -> None:
    """Make paths of texts, and raise UsageError, naming flag, value and limit, for a value outside its limits."""
    for each in options_of(type(options)):
        value = getattr(options, each.name)
        if each.kind is Path and isinstance(value, str):
            object.__setattr__(options, each.name, local_path(Path(value)))
        if not each.allows(value):
            shown = repr(value) if isinstance(value, str) else value
            raise UsageError(f"{each.flag} is {shown}; it must be {each.limits}")


def identity_of(options: object) -> dict[str, Any]:
    """Return, by flag, the values that make two commands the same run."""
    return {each.flag: getattr(options, each.name) for each in options_of(type(options)) if each.identity}
