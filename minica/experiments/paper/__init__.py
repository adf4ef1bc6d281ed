"""The tables of the paper, 1 to 14, as data.

One CSV file a table, one row a measured value, every number as printed: accuracies in %, parameters in millions.
Names are as printed too, though the paper spells some of them in more than one way.  Three columns are ours, so that
tables and records can be joined: ``model`` is this package's name of a pre-trained backbone, ``group`` in Tables 11
to 14 is the group that Tables 1 and 2 average over, and ``per_task_name`` in Table 6 is what Tables 11 to 14 call the
data set.

``wins`` is the number in parentheses: on how many of a group's ``tasks`` a method beats full fine-tuning.  In Table
6, ``train`` and ``train_final`` stand before and after the printed slash and ``star`` marks counts with an asterisk;
in Table 9 ``reconstructed`` marks formulas that are derived from the paper's other tables, not copied; Table 10 has
milliseconds an image and GB.  Where the tables disagree with each other, with the text or with a count is written in
the tests.
"""

from __future__ import annotations

import csv
from pathlib import Path

Cell = int | float | str | None


def table(number: int) -> list[dict[str, Cell]]:
    """The rows of one of the paper's tables, numbers parsed; an empty cell or a printed dash is ``None``.

    Raises:
        ValueError: if the paper has no table of that number.
    """
    if not isinstance(number, int) or not 1 <= number <= 14:
        raise ValueError(f"the paper has tables 1 to 14, there is no table {number!r}.")
    with open(Path(__file__).parent / f"table{number:02d}.csv", encoding="utf-8", newline="") as file:
        return [{column: _parsed(cell) for column, cell in row.items()} for row in csv.DictReader(file)]


def _parsed(cell: str) -> Cell:
    if cell in ("", "-"):
        return None
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            pass
    return cell
