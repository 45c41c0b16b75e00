"""MkDocs hook: a page for each command, made from the command itself (Typer) and from the examples in the guides."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from rich.text import Text

from coma.cli.main import COMMANDS, app

DOCS = Path(__file__).parents[1]
PANELS = {**{panel: [each.__name__ for each in commands] for panel, commands in COMMANDS.items()}}
PANELS["This machine"] += ["bench loader", "bench step", "bench epoch"]
NAV_TITLE = "Commands"
INDEX = "commands/index.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages in the navigation, below the entry that mkdocs.yml calls Commands."""
    pages = [{f"coma {name}": path_of(name)} for names in PANELS.values() for name in names]
    for entry in config.nav or ():
        if isinstance(entry, dict) and NAV_TITLE in entry:
            entry[NAV_TITLE] = [INDEX, *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, which stand in no folder."""
    files.append(File.generated(config, INDEX, content=index_page()))
    for names in PANELS.values():
        for name in names:
            files.append(File.generated(config, path_of(name), content=command_page(name)))
    return files


def path_of(name: str) -> str:
    """Return the path of a command's page."""
    return f"commands/coma-{name.replace(' ', '-')}.md"


def index_page() -> str:
    """Return the page that lists all commands."""
    lines = ["# Commands", "", "`coma COMMAND --help` prints in a terminal what these pages say.", ""]
    for panel, names in PANELS.items():
        lines += [f"## {panel}", "", "| command | what it does |", "|---|---|"]
        lines += [f"| [`coma {name}`]({Path(path_of(name)).name}) | {summary(name)} |" for name in names]
        lines.append("")
    group = typer.main.get_command(app)
    return "\n".join([*lines, "## Options of all commands", "", "They stand before the command: `coma -v pretrain …`.", "",
                      *parameters(group, group.make_context("coma", [], resilient_parsing=True)), *exit_codes()])


def command_page(name: str) -> str:
    """Return the page of one command."""
    command, context = command_of(name)
    summary, _, details = (command.help or "").partition("\n\n")
    lines = [f"# coma {name}", "", marked(summary), "", "```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
    lines += [marked(" ".join(details.split())), "", *examples(name), *parameters(command, context), *exit_codes()]
    return "\n".join(lines)


def command_of(name: str) -> tuple[Any, Any]:
    """Return a command and a context to ask it in."""
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command, command.make_context(f"coma {name}", [], resilient_parsing=True)


def summary(name: str) -> str:
    """Return the first sentence of a command's help."""
    return marked((command_of(name)[0].help or "").partition("\n\n")[0])


def examples(name: str) -> list[str]:
    """Return the lines of the guides in which the command stands, with links to the guides."""
    found: dict[str, list[str]] = {}
    for page in sorted(DOCS.glob("*.md")):
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M):
            for line in block.splitlines():
                if re.match(rf"coma {name}( |$)", line):
                    found.setdefault(line, []).append(page.name)
    if not found:
        return []
    pages = dict.fromkeys(page for names in found.values() for page in names)
    links = ", ".join(f"[{title_of(DOCS / page)}](../{page})" for page in pages)
    return ["## Examples", "", "```sh", *found, "```", "", f"Explained in: {links}.", ""]


def title_of(page: Path) -> str:
    """Return the first heading of a page."""
    return page.read_text().splitlines()[0].removeprefix("# ")


def parameters(command: Any, context: Any) -> list[str]:
    """Return arguments and options, under their headings, each with its meaning and default."""
    panels: dict[str, list[str]] = {}
    for each in command.get_params(context):
        if not getattr(each, "hidden", False) and each.help:
            heading = each.rich_help_panel or ("Arguments" if each.param_type_name == "argument" else "Options")
            panels.setdefault(heading, []).extend(parameter(each))
    last = panels.pop("Options", [])
    panels |= {"Other options": last} if panels and last else {"Options": last}
    return [line for heading, lines in panels.items() if lines for line in (f"## {heading}", "", *lines)]


def parameter(each: Any) -> Iterator[str]:
    """Yield the lines of one parameter, as an entry of a definition list with an anchor."""
    text, _, default = Text.from_markup(each.help).plain.partition(" [default: ")
    value = each.metavar or ""
    if each.param_type_name == "argument":
        names = [value]
    else:
        names = [f"{flag} {value}".strip() for flag in (*each.opts, *each.secondary_opts)]
    yield f'<a id="{each.name.replace("_", "-")}"></a>' + ", ".join(f"`{name}`" for name in names)
    yield f":   {marked(text)}" + (f"<br>*Default: {marked(default.removesuffix(']'))}*" if default else "")
    yield ""


def marked(text: str) -> str:
    """Return a sentence of the help as Markdown: flags and commands as code, special characters escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    flags = re.split(r"(?<![\w-])(--[a-z][\w-]*)", text)
    return "".join(f"`{part}`" if part.startswith("--") else re.sub(r"([\\*_<>\[\]|])", r"\\\1", part) for part in flags)


def exit_codes() -> list[str]:
    """Return the table of exit codes, which docs/troubleshooting.md holds; search finds it there alone."""
    section = re.search(r"^## Exit codes\n(.*?)(?=^## |\Z)", (DOCS / "troubleshooting.md").read_text(), re.S | re.M)
    assert section, "docs/troubleshooting.md has no section 'Exit codes'"
    return ["## Exit codes {data-search-exclude}", "", section[1].strip(), ""]
