"""Names as text: for file formats and for people to read."""

import os
import re
import unicodedata

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode's categories of what is obeyed or not seen: controls, bidi overrides, zero widths, surrogates, separators."""


def printable(path: str) -> str:
    """Return the path as text that every file format takes: undecodable bytes become backslash escapes.

    So do halves of UTF-16 pairs, which JSON may hold.
    """
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    r"""Return the text on one line with everything that a terminal or reader would obey or hide as an escape: \x1b."""
    if text.isprintable():
        return text
    return "".join(_escape(each) if unicodedata.category(each) in _UNSEEN else each for each in text)


def visible_lines(text: str) -> str:
    """Return the text as `visible` does, but keep its line breaks."""
    return "\n".join(map(visible, text.split("\n")))


def as_markdown(text: str) -> str:
    """Return Markdown that shows this very text, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", visible(text))


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as `os` has it
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
