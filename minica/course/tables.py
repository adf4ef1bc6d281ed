"""The notebooks' tables: Markdown, which a page renders and a phone scrolls, in columns that line up in a terminal too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from IPython.display import Markdown

_NUMBER = re.compile(r"[-+−]?[\d.,]*\d[\d.,]*(?:e[-+]?\d+)?(?: ?(?:%|MB|kB|GB|s|ms))?\*?|-|")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], note: str = "") -> Markdown:
    """A table with a line a row; a column of numbers is set flush right.

    Args:
        note: a sentence below the table.

    Raises:
        ValueError: if a row has not as many entries as the header.
    """
    lines = [[str(entry).replace("|", r"\|") for entry in row] for row in (header, *rows)]
    for row in lines:
        if len(row) != len(lines[0]):
            raise ValueError(f"the row {row} has {len(row)} entries, the header {len(lines[0])}; give every column one.")
    columns = list(zip(*lines, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [len(lines) > 1 and all(_NUMBER.fullmatch(entry) for entry in column[1:]) for column in columns]
    marks = ["-" * (width - 1) + ":" if flush else "-" * width for width, flush in zip(widths, right, strict=True)]
    text = []
    for row in (lines[0], marks, *lines[1:]):
        entries = [
            entry.rjust(width) if flush else entry.ljust(width) for entry, width, flush in zip(row, widths, right, strict=True)
        ]
        text.append(f"| {' | '.join(entries)} |")
    return Markdown("\n".join(text) + (f"\n\n{note}" if note else ""))
