"""MkDocs hook: a page for each command, made from the command itself (Typer) and from the examples in the guides."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from rich.text import Text

from coma.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {heading: [command.__name__ for command in commands] for heading, commands in COMMANDS.items()}
NAMES["This machine"] += ["bench loader", "bench step", "bench epoch"]
"""Names of all commands, under the headings of `coma --help`."""
NAV_TITLE = "Commands"
INDEX = "commands/index.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages in the navigation, below the entry that mkdocs.yml calls Commands."""
    pages = [{f"coma {name}": path_of(name)} for names in NAMES.values() for name in names]
    for entry in config.nav or ():
        if NAV_TITLE in entry:
            entry[NAV_TITLE] = [INDEX, *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, which stand in no folder."""
    files.append(File.generated(config, INDEX, content=index_page()))
    for names in NAMES.values():
        for name in names:
            files.append(File.generated(config, path_of(name), content=command_page(name)))
    return files


def path_of(name: str) -> str:
    """Return the path of a command's page."""
    return f"commands/coma-{name.replace(' ', '-')}.md"


def index_page() -> str:
    """Return the page that lists all commands."""
    lines = ["# Commands", "", "`coma COMMAND --help` prints in a terminal what these pages say.", ""]
    for heading, names in NAMES.items():
        lines += [f"## {heading}", "", "| command | what it does |", "|---|---|"]
        for name in names:
            does = marked(command_of(name)[0].help.partition("\n\n")[0])
            lines.append(f"| [`coma {name}`]({posixpath.basename(path_of(name))}) | {does} |")
        lines.append("")
    lines += ["## Options before the command", "", "They go with every command, as in `coma -v pretrain`.", ""]
    for each in command_of("")[0].params:
        lines += [] if each.hidden else parameter(each)
    return "\n".join([*lines, *exit_codes()])


def command_page(name: str) -> str:
    """Return the page of one command."""
    command, context = command_of(name)
    summary, _, details = command.help.partition("\n\n")
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [
        f"# coma {name}",
        "",
        marked(summary),
        "",
        "```text",
        usage,
        "```",
        "",
        marked(" ".join(details.split())),
        "",
    ]
    return "\n".join([*lines, *examples(name), *parameters(command, context), *exit_codes()])


def command_of(name: str) -> tuple[Any, Any]:
    """Return a command and a context to ask it in."""
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command, command.make_context(f"coma {name}", [], resilient_parsing=True)


def examples(name: str) -> list[str]:
    """Return the lines of the guides in which the command stands, with links to these."""
    lines: dict[str, None] = {}
    links: dict[str, None] = {}
    for guide in GUIDES:
        text = guide.read_text()
        title = "Home" if guide.name == "README.md" else text.splitlines()[0].removeprefix("# ")
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
            for line in re.findall(rf"^coma {name}(?: .*)?$", block, re.M):
                lines[re.sub("  +#", "  #", line)] = None
                links[f"[{title}](../{'index.md' if title == 'Home' else guide.name})"] = None
    if not lines:
        return []
    return ["## Examples", "", "```sh", *lines, "```", "", f"Explained in: {', '.join(links)}.", ""]


def parameters(command: Any, context: Any) -> list[str]:
    """Return arguments and options, under their headings, each with its meaning and default."""
    headings: dict[str, list[str]] = {"Arguments": []}
    for each in command.get_params(context):
        if not getattr(each, "hidden", False):
            kind = "Arguments" if each.param_type_name == "argument" else "Other options"
            headings.setdefault(each.rich_help_panel or kind, []).extend(parameter(each))
    headings["Other options"] = headings.pop("Other options")
    return [line for heading, lines in headings.items() if lines for line in (f"## {heading}", "", *lines)]


def parameter(each: Any) -> Iterator[str]:
    """Yield the lines of one parameter, as an entry of a definition list with an anchor."""
    text, _, default = Text.from_markup(each.help).plain.partition(" [default: ")
    value = each.metavar or ""
    flags = [] if each.param_type_name == "argument" else [*each.opts, *each.secondary_opts]
    names = [f"`{flag} {value}`".replace(" `", "`") for flag in flags] or [f"`{value}`"]
    yield f'<a id="{each.name.replace("_", "-")}"></a>{", ".join(names)}'
    yield f":   {marked(text)}" + (f"<br>*Default: {marked(default.removesuffix(']'))}*" if default else "")
    yield ""


def marked(text: str) -> str:
    """Return a sentence of the help as Markdown: flags as code, special characters escaped."""
    return "".join(part if part.startswith("`") else _escaped(part) for part in re.split(r"(`[^`]*`)", text))


def _escaped(text: str) -> str:
    parts = re.split(r"(?<![\w-])(--[a-z][\w-]*)", text)
    return "".join(
        f"`{part}`" if part.startswith("--") else re.sub(r"([\\*_<>\[\]|])", r"\\\1", part) for part in parts
    )


def exit_codes() -> list[str]:
    """Return the table of exit codes of docs/troubleshooting.md; search finds it there alone."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    section = re.search(r"^## Exit codes\n(.*?)(?=^## |\Z)", page, re.S | re.M)
    assert section, "docs/troubleshooting.md has no section 'Exit codes'"
    return ["## Exit codes {data-search-exclude}", "", section[1].strip(), ""]
