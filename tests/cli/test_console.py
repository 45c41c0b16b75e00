"""What the console makes of names, on a terminal and in logs."""

import io
import logging

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from coma.cli import console

HOSTILE = "[red]x[/red]\x1b]0;owned\x9b\u202e"
SHOWN = r"[red]x[/red]\x1b]0;owned\x9b\u202e"


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def on(screen: io.StringIO) -> console._Plain:
    return console._Plain(file=screen, force_terminal=True, width=200, color_system="truecolor")


def test_text_tables_and_progress_on_a_terminal(screen: io.StringIO) -> None:
    terminal, table = on(screen), Table("name")
    terminal.print(HOSTILE)
    table.add_row(HOSTILE)
    terminal.print(Text(HOSTILE))
    terminal.print(table, style="bold")
    with Progress(TextColumn("{task.description}", markup=False), console=terminal) as bar:
        bar.add_task(HOSTILE)
    written = screen.getvalue()
    assert written.count(SHOWN) == 3
    assert written.count("[red]x[/red]") >= 4  # progress is cropped
    assert "\x1b]0;" not in written
    assert not {"\x9b", "\u202e"} & set(written)
    assert "\x1b[1m" in written  # rich's own codes stay


def test_messages_keep_their_own_line_breaks_only() -> None:
    record = logging.LogRecord("coma", logging.INFO, "", 0, "first %s\nsecond %d", ("a\nb\x1b", 2), None)
    assert console._Formatter("%(message)s").format(record) == "first a\\nb\\x1b\nsecond 2"
    assert record.args == ("a\nb\x1b", 2)


def test_json_has_no_control_character_and_the_true_names(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    console.print_result({"name": HOSTILE + "\x7f\udce9"}, json=True)
    out = capsys.readouterr().out
    assert out.rstrip("\n").isprintable()
    assert json.loads(out) == {"name": HOSTILE + "\x7f\udce9"}


@pytest.mark.parametrize(("ci", "shown"), [("", True), ("true", False)])
def test_what_a_command_is_at_is_shown_on_a_terminal_and_gone_at_its_end(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, ci: str, shown: bool
) -> None:
    monkeypatch.setattr(console, "stderr", on(screen))
    monkeypatch.setenv("CI", ci)
    with console.working("drawing"):
        pass
    text = screen.getvalue()
    assert ("drawing" in text) == shown
    assert text == "" or text.endswith("\x1b[2K")  # the line is erased
