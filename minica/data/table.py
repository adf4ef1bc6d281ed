"""Reads a table of labelled images: a CSV with the columns path and label, and group and split where they are known."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from .files import read_text
from .folder import SPLITS

REQUIRED, OPTIONAL = ("path", "label"), ("group", "split")


class Row(NamedTuple):
    """One labelled image.  What is not known is empty."""

    path: Path
    label: str
    group: str = ""  # images of one group, such as photographs of one person, belong into one split
    split: str = ""  # "train", "val" or "test"


def read_table(file: Path) -> list[Row]:
    """The rows of a CSV in UTF-8 with a header line ``path,label[,group,split]``; other columns are ignored.

    Paths are relative to the folder of the file; one that Windows wrote, with backslashes, is understood.  A line said twice
    counts once.

    Raises:
        ValueError: naming file and line: no text in UTF-8, no such header or two columns of one name, more cells than columns,
            an empty path or label, a split that is not known or not given for every image, one image with two labels, groups
            or splits.
    """
    try:
        text = read_text(file)
    except ValueError as error:
        what = "an archive must be unpacked first; of a spreadsheet, save the table as CSV in UTF-8"
        raise ValueError(f"{file} is neither a folder nor a CSV in UTF-8: {what}.") from error
    lines = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        return _rows(file, lines)
    except csv.Error as error:
        raise ValueError(f"{file}:{lines.line_num}: no CSV ({error}); save the table again.") from error


def _rows(file: Path, lines: csv.DictReader) -> list[Row]:
    header = [(name or "").strip().lower() for name in lines.fieldnames or ()]
    if missing := [name for name in REQUIRED if name not in header]:
        there = ", ".join(header) or "nothing"
        form = f"{','.join(REQUIRED)}[,{','.join(OPTIONAL)}], separated by commas"
        raise ValueError(f"{file} has no column {missing[0]!r}, only {there}; its first line must be {form}.")
    if twice := [name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1]:
        raise ValueError(f"{file} has two columns {twice[0]!r}; rename the one that is not meant.")
    lines.fieldnames = header
    known = [name for name in (*REQUIRED, *OPTIONAL) if name in header]
    found: dict[str, tuple[Row, int]] = {}
    for line in lines:
        here = f"{file}:{lines.line_num}"
        if any(more := line.pop(None, ())):
            raise ValueError(f"{here}: more cells than columns, with {more[0]!r}; put what holds a comma into double quotes.")
        path, label, *others = ((line[name] or "").strip() for name in known)
        more = dict(zip(known[2:], others, strict=True))
        if not path or not label:
            raise ValueError(f"{here}: the {'label' if path else 'path'} is empty; complete the line, or remove it.")
        if "\0" in path:
            raise ValueError(f"{here}: the path {path!r} holds a NUL character; save the table again.")
        if "\\" in path and not (file.parent / path).exists():
            path = path.replace("\\", "/")
        if "split" in more and more["split"].lower() not in SPLITS:
            raise ValueError(f"{here}: the split is {more['split']!r}; expected one of {', '.join(SPLITS)}.")
        more |= {"split": SPLITS[more["split"].lower()]} if "split" in more else {}
        row = Row(file.parent / path, label, **more)
        before, number = found.setdefault(str(row.path), (row, lines.line_num))
        if before != row:
            what = next(name for name in Row._fields if getattr(before, name) != getattr(row, name))
            both = f"{what} {getattr(row, what)!r} here and {getattr(before, what)!r} in line {number}"
            raise ValueError(f"{here}: {path} has {both}; correct the table.")
    if not found:
        raise ValueError(f"{file} has no line below its header; add one for each image.")
    return [row for row, _ in found.values()]
