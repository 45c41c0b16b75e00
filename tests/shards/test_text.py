"""Names as text that commands no terminal and survives a shell."""

import pytest

from coma.shards.text import as_markdown, printable, visible, visible_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Blüten 猫 🐈", "Blüten 猫 🐈"),
        ("no\xa0break", "no\xa0break"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\tb\rc\nd", r"a\tb\rc\nd"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("ze\u200bro\ufeff\u200d", r"ze\u200bro\ufeff\u200d"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("", ""),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_line_breaks_of_our_own_stay() -> None:
    assert visible_lines("two\nlines\x07") == "two\nlines\\x07"


def test_text_for_file_formats_keeps_all_but_undecodable_bytes() -> None:
    assert printable("a\x1b\udce9") == "a\x1b\\xe9"
    assert printable("a\ud800b") == r"a\ud800b", "half of a pair, as JSON may hold it"


def test_markdown_shows_the_very_text() -> None:
    assert as_markdown("a|<b>\n[c](d)`e`") == r"a\|\<b\>\\n\[c\](d)\`e\`"
