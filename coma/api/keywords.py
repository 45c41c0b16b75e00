"""Keyword arguments of a function, made of the fields of an options dataclass, as `coma.cli` makes flags of them."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from coma.errors import LaunchFailed, UsageError, did_you_mean, fault_of
from coma.pipeline.plain import flag, shown, whole_number
from coma.shards.option import Option, options_of

T = TypeVar("T")

_PROGRESS = "progress"
_SOURCES = {
    "config": "File of options in YAML, TOML or JSON, RUN/config.json, or the name of a packaged recipe; arguments "
    "that are given override it.",
    "like": "Run whose options a new run takes, but for those given here.",
}
"""Keyword arguments that stand for all options that are not given, with their documentation."""
_PATH = str | os.PathLike[str]
_PATHS = ("data", "evaluate_on", "out", "ds_config", "init", "source")
"""Options that take a path besides other texts, such as URLs and names."""


def with_keywords(options: type, *, file: bool = False) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a function a keyword argument for each option of a dataclass; positional arguments of the command stay so.

    The function's first argument is the dataclass made of them. With `file`, it has the keyword arguments `config` and
    `like` as well, a file or a run that has the options which are not given. Errors of others are raised as those of
    `coma.errors`, with a note that gives the keyword for each flag that the message names.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        described = sorted(options_of(options), key=lambda each: not each.argument)
        signature = _signature(described, function, file=file)

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> T:
            given = _bind(signature, function.__name__, args, keywords)
            rest = {name: given.pop(name) for name in (_PROGRESS,) if name in given}
            with _as_coma_errors(described):
                sources = {name: given.pop(name, None) for name in _SOURCES}
                values = _values(described, given)
                return function(_combined(options, values, **sources) if file else options(**values), **rest)

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = _documentation(function, described, file=file)
        call.__module__ = "coma"
        del call.__wrapped__
        return call

    return decorate


def _signature(described: Sequence[Option], function: Callable[..., object], *, file: bool) -> inspect.Signature:
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [
        inspect.Parameter(
            each.keyword,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if each.argument else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is ... else each.default,
            annotation=_annotation(each),
        )
        for each in described
    ]
    if file:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters += [inspect.Parameter(name, kind, default=None, annotation=_PATH | None) for name in _SOURCES]
    parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    return inspect.Signature(parameters, return_annotation=function.__annotations__["return"])


def _annotation(option: Option) -> Any:
    """Return the type of an option in Python: a path may be a text, as may a value that the command parses."""
    if option.several:
        types: list[Any] = [_PATH, Sequence[_PATH | tuple[_PATH, float]]]
    elif option.kind is list:
        types = [_PATH, Sequence[_PATH]]
    elif option.kind is Path or option.path or option.keyword in _PATHS:
        types = [_PATH]
    elif option.parse is not None:
        types = [int, str] if option.kind is int else [str]
    else:
        types = [option.kind] if not option.choices or option.kind is not str else []
    if option.choices:
        types.append(Literal[option.choices])
    if option.default is None:
        types.append(None)
    return functools.reduce(operator.or_, types)


def _bind(signature: inspect.Signature, name: str, args: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name. Raises TypeError, which suggests a name for one that does not exist."""
    try:
        return signature.bind(*args, **keywords).arguments
    except TypeError as error:
        unknown = next((each for each in keywords if each not in signature.parameters), None)
        suggestion = did_you_mean(unknown, signature.parameters) if unknown else ""
        raise TypeError(f"coma.{name}() {error}" + (f": {suggestion}" if suggestion else "")) from None


def _values(described: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the dataclass's fields for arguments by their keywords."""
    return {each.name: _value(each, given[each.keyword]) for each in described if each.keyword in given}


def _combined(options: type, values: Mapping[str, Any], *, config: Any, like: Any) -> Any:
    """Return the options dataclass, made of a file or a run where a value is not given."""
    from coma.training.config.combine import Taken, combine
    from coma.training.config.config_file import options_like, read_options

    if config is not None and like is not None:
        raise UsageError("config and like exclude each other: give one")
    file = None if config is None else _text("config", config)
    run = None if like is None else Path(_text("like", like))
    read = read_options(file, options) if file else options_like(run, options) if run else {}
    taken = {each.name: _value(each, read[each.name]) for each in options_of(options) if each.name in read}
    return combine(options, Taken(taken, file, run), values)


def _value(option: Option, given: Any) -> Any:
    """Return the field's value for an argument. Raises UsageError for one of another type."""
    if given is None and option.default is None:
        return None
    if option.several:
        return _sources(option.keyword, given)
    if isinstance(given, str):
        if option.parse is not None:
            return option.parse(given, option.flag)
        if option.choices:
            return given
    convert = _CONVERTERS.get(option.kind)
    return given if convert is None else convert(option.keyword, given)


def _number(name: str, given: Any) -> float:
    if isinstance(given, str):
        raise UsageError(f"{name} is {shown(given)}; give a number")
    try:
        return float(given)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {shown(given)}; give a number") from None


def _text(name: str, given: Any) -> str:
    try:
        text = str(given) if hasattr(given, "protocol") else os.fspath(given)  # a path of universal_pathlib is a URL
    except TypeError:
        text = b""
    if isinstance(text, str):
        return text
    raise UsageError(f"{name} is {shown(given)}; give a text or a path")


def _texts(name: str, given: Any) -> list[str]:
    single = isinstance(given, str | os.PathLike) or not isinstance(given, Iterable)
    return [_text(name, each) for each in ([given] if single else given)]


def _sources(name: str, given: Any) -> Any:
    """Return a data set, or several of which each may be a pair with its share."""
    if not isinstance(given, list | tuple):
        return _text(name, given)
    return tuple((_text(name, each[0]), *each[1:]) if isinstance(each, tuple) and each else each for each in given)


_CONVERTERS: dict[type, Callable[[str, Any], Any]] = {
    bool: flag,
    int: whole_number,
    float: _number,
    str: _text,
    Path: _text,
    list: _texts,
}


@contextmanager
def _as_coma_errors(described: Sequence[Option]) -> Iterator[None]:
    """Raise what the system, a store or a damaged file did as an error of `coma.errors`; bugs stay as they are."""
    try:
        yield
    except LaunchFailed as failed:
        raise failed.as_error() from None
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        named = [each for each in described if not each.argument and _mentions(str(fault), each.flag)]
        if named:
            fault.add_note(f"in Python: {', '.join(f'{each.keyword}= for {each.flag}' for each in named)}")
        if fault is error:
            raise
        raise fault from error


def _mentions(text: str, flag: str) -> bool:
    return re.search(rf"(?<![\w-]){flag}(?![\w-])", text) is not None


def _documentation(function: Callable[..., object], described: Sequence[Option], *, file: bool) -> str:
    """Return the function's docstring with its arguments, result and errors."""
    lines = [_filled(f"{each.keyword}: {_help(each, described)}") for each in described]
    if file:
        lines += [_filled(f"{name}: {text}") for name, text in _SOURCES.items()]
    if _PROGRESS in inspect.signature(function).parameters:
        lines.append(_filled(f"{_PROGRESS}: Function that is called as the work goes on, such as print."))
    returned = str(function.__annotations__["return"])
    sections = [
        inspect.getdoc(function) or "",
        "\n".join(["Args:", *lines]),
        f"Returns:\n    {returned}: paths and figures.",
        "Raises:\n    ComaError: UsageError, DataError or another of `coma.errors`; its line names the way out.",
    ]
    return "\n\n".join(sections) + "\n"


def _filled(text: str) -> str:
    indents = {"initial_indent": " " * 4, "subsequent_indent": " " * 8}
    return textwrap.fill(text, 112, **indents, break_long_words=False, break_on_hyphens=False)  # type: ignore[arg-type]


def _help(option: Option, described: Sequence[Option]) -> str:
    """Return an option's help with keywords in place of flags, and what a default of None stands for."""
    text = option.help + (f" Default: {option.shown_default}." if option.shown_default else "")
    for each in described:
        if not each.argument and _mentions(text, each.flag):
            text = re.sub(rf"{each.flag}(?![\w-])", f"`{each.keyword}`", text)
    return text
