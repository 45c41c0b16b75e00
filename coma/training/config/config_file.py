"""Options of a run from a file: YAML, TOML, JSON, or the config.json of a run. And a run's options as YAML.

What stands after a key is read as the command line reads what stands after the flag, so that `6e-4` is a number and
`no` a word. Paths are relative to the current folder, as on the command line; `~/` is the home folder.
"""

from __future__ import annotations

import json
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coma.errors import UsageError, did_you_mean, shell_command
from coma.recipes import packaged
from coma.runs.names import CONFIG_NAME
from coma.runs.read import current_names, read_config
from coma.shards.files import local_path
from coma.shards.option import Option, options_of
from coma.training.config.ds_check import TOP_LEVEL_KEYS
from coma.training.config.options import RunConfig

_RECORD = ("config", "resolved", "versions", "identity")
"""Sections of RUN/config.json, of which only the first holds options."""
_DERIVED = ("data", "batch_size")
"""Options that depend on where a run is started; its record says what they came to."""
_OF_ONE_COMMAND = ("out", "resume", "extend", "stop_after")
"""Options that say what a command does with its own run folder, and nothing about another run."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
_WIDTH = 80


def read_options(name: str, options: type[RunConfig]) -> dict[str, Any]:
    """Read the options in a file, by the names of their fields; those that are null are left out.

    Args:
        name: a path, `-` for standard input, or the name of a packaged recipe.
        options: the dataclass that has them.

    Raises:
        UsageError: there is no such file, it cannot be parsed, or a key or a value is none of an option.
    """
    content, source = _parsed(name)
    if isinstance(content.get("config"), dict) and set(content) <= set(_RECORD):
        content = _recorded(content)
    return _checked(content, source, options)


def options_like(run: Path, options: type[RunConfig]) -> dict[str, Any]:
    """Return the options of a run that a new run takes from it, by the names of their fields.

    Raises:
        DataError: it is no run folder.
        UsageError: it is a run of another command.
    """
    taken = _checked(_recorded(read_config(run)), str(run / CONFIG_NAME), options)
    return {name: value for name, value in taken.items() if name not in _OF_ONE_COMMAND}


def as_yaml(config: RunConfig) -> str:
    """Return all options as a file that `read_options` reads, each below its help."""
    values = config.to_json()
    described = options_of(type(config))
    lines = [f"# coma {config.command} --config FILE; options on the command line override these."]
    for panel in dict.fromkeys(each.panel for each in sorted(described, key=lambda each: not each.argument)):
        lines += ["", f"## {panel or 'Arguments'}"]
        for each in (each for each in described if each.panel == panel):
            text = each.help if each.default is not None else f"{each.help} null: {each.shown_default or 'none'}."
            lines += ["", *textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
            lines += [f"{_key(each.name)}: {_as_scalar(values[each.name])}"]
    return "\n".join(lines) + "\n"


def _as_scalar(value: Any) -> str:
    import yaml

    # ASCII, whatever the encoding of stdout
    text: str = yaml.safe_dump(value, width=float("inf"), default_flow_style=isinstance(value, tuple))
    return text.removesuffix("...\n").strip()


def _key(name: str) -> str:
    return name.replace("_", "-")


def _parsed(name: str) -> tuple[dict[str, Any], str]:
    """Return a file's mapping, and what messages call the file."""
    text, source = _text(name)
    parsers: dict[str, tuple[str, Callable[[str], Any]]] = {
        ".toml": ("TOML", tomllib.loads),
        ".json": ("JSON", _from_json),
    }
    language, parse = parsers.get(Path(source).suffix.lower(), ("YAML", _from_yaml))
    try:
        content = parse(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{source} is not {language}: {reason}") from None
    if content is None:
        raise UsageError(f"{source} is empty: write options into it, such as epochs: 100")
    if not isinstance(content, dict):
        way_out = "; TOML has the suffix .toml" if language == "YAML" and "=" in text else ""
        raise UsageError(f"{source} holds no options: write one a line, such as epochs: 100{way_out}")
    return content, source


def _text(name: str) -> tuple[str, str]:
    """Return the text of a file, of standard input or of a packaged recipe, and what messages call it."""
    path, recipes = local_path(Path(name)), packaged()
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig"), "standard input"
        if path.name == name and path.stem in recipes and (path.is_dir() or not path.exists()):
            return recipes[path.stem].read_text("utf-8"), recipes[path.stem].name
        if not path.exists():
            near = [*recipes, *(str(path.with_name(each.name)) for each in _beside(path))]
            hint = did_you_mean(name, near) or f"give a path, or one of {', '.join(recipes)}"
            raise UsageError(f"--config {name}: no such file; {hint}")
        if path.is_dir():
            of_run = f"{path / CONFIG_NAME}, or --like {path} for a new run"
            way_out = of_run if (path / CONFIG_NAME).is_file() else "a file"
            raise UsageError(f"--config {name} is a folder: give {way_out}")
        return path.read_bytes().decode("utf-8-sig"), name
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not text in UTF-8: a file of options is YAML, TOML or JSON") from None


def _beside(path: Path) -> Iterable[Path]:
    return path.parent.iterdir() if path.parent.is_dir() else ()


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _from_yaml(text: str) -> Any:
    """Parse YAML with every plain scalar as a string, null apart; JSON, which may have tabs, as what it is."""
    import yaml

    if text.lstrip().startswith("{"):
        with suppress(ValueError):
            return _from_json(text)

    class Loader(yaml.SafeLoader):
        """Loader that knows the type of null alone, and refuses a key that stands twice."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            letter: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
            for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return _once([(str(self.construct_object(k, True)), self.construct_object(v, True)) for k, v in node.value])

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} stands twice")
        content[key] = value
    return content


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in RUN/config.json, with what data and batch size came to."""
    resolved = record.get("resolved")
    derived = {name: resolved[name] for name in _DERIVED if name in resolved} if isinstance(resolved, dict) else {}
    return current_names(record["config"]) | derived


def _checked(content: Mapping[str, Any], source: str, options: type[RunConfig]) -> dict[str, Any]:
    """Return the values of a file's keys. Raises UsageError, naming the file, the key, its value and the limit."""
    known = {each.name: each for each in options_of(options)}
    values: dict[str, Any] = {}
    for key in TOP_LEVEL_KEYS & content.keys():
        raise UsageError(f"{source} has {key!r} and is a DeepSpeed configuration: give it by --ds-config instead")
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"{source} has {key!r}, {_unknown(key, name, options)}")
        if name in values:
            raise UsageError(f"{source} has {_key(name)!r} twice: delete one of them")
        values[name] = None if value is None else _value(known[name], value, source)
    return {name: value for name, value in values.items() if value is not None}


def _unknown(key: str, name: str, options: type[RunConfig]) -> str:
    """Return why a key is refused, and the way out."""
    for other in RunConfig.__subclasses__():
        if name in {each.name for each in options_of(other)}:
            return f"which is an option of coma {other.command}, not of coma {options.command}"
    hint = did_you_mean(_key(name), [_key(each.name) for each in options_of(options)])
    return f"which is no option of coma {options.command}: {hint or shell_command('coma', options.command, '--help')}"


def _value(each: Option, value: Any, source: str) -> Any:
    """Return the value of an option that a file gives, read as from the command line."""
    if each.several:
        if isinstance(value, list) and value:
            return [_value(replace(each, several=False), single, source) for single in value]
        return _value(replace(each, several=False), value, source)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    made: Any = str(Path(text).expanduser()) if text.startswith("~/") else text  # as a shell does
    try:
        if isinstance(value, dict | list) or (isinstance(value, bool) and each.kind is not bool):
            raise ValueError
        if each.kind is bool:
            made = {"true": True, "false": False}[text.lower()]
        elif each.kind in (int, float) and text not in each.choices:
            made = each.kind(text)
        if each.allows(made):
            return made
    except (ValueError, KeyError):
        pass
    wanted = (
        ", ".join(filter(None, (_KINDS.get(each.kind), each.limits))) or f"text, such as {each.metavar or 'a path'}"
    )
    shown = repr(value) if len(repr(value)) < _WIDTH else f"{repr(value)[:_WIDTH]}..."
    raise UsageError(f"{source}: {_key(each.name)} is {shown}; it must be {wanted}")
