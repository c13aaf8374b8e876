"""How numbers and tables are written, on the page and in the terminal."""

from collections.abc import Sequence


def digits(value: float) -> str:
    """Three significant digits, and never an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """Whole percents, two digits below ten of them."""
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown that is also a table for whoever reads it in a terminal."""
    widths = [max(2, *map(len, column)) for column in zip(titles, *lines, strict=True)]
    ruled = [titles, ["-" * (width - 1) + ":" for width in widths], *lines]
    return "".join(
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in ruled
    )
