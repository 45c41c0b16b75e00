"""Tables of a benchmark's result as lines of plain text."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay cells out in columns as wide as their widest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]


def three_digits(value: float) -> str:
    """Format a number with three significant digits, or with all digits before the point if they are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
