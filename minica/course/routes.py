"""The ways through the course, with the minutes that their notebooks were measured to take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import nbformat

from ..experiments.tables import markdown
from .runner import NOTEBOOKS, find

ROUTES = {
    "one hour": ("00", "02", "04"),
    "engineer": ("00", "02", "03", "10", "11"),
    "half a day in class": ("00", "01", "02", "03", "05"),
    "researcher": (),  # all
}
BLOCK = re.compile(r"(?<=<!-- table: routes -->\n).*?(?=\n<!-- end -->)", re.S)


def routes_table(notebooks: str | Path | None = None) -> str:
    """The routes as a Markdown table, from what ``python -m minica publish`` wrote into the notebooks' metadata."""
    rows = []
    for name, numbers in ROUTES.items():
        paths = find(numbers, notebooks)
        links = ", ".join(f"[{path.stem[:2]}](notebooks/{path.name})" for path in paths)
        rows.append([name, links, _minutes(paths)])
    return markdown(["route", "notebooks", "minutes of computing"], rows)


def _minutes(paths: Sequence[Path]) -> str:
    measured = [nbformat.read(path, 4).metadata.get("minica", {}).get("seconds") for path in paths]
    return "not measured yet" if None in measured else f"{sum(measured) / 60:.0f}"


def write_routes(readme: Path = NOTEBOOKS.parent / "README.md") -> None:
    """Put the table into the README.

    Raises:
        ValueError: if the README has no place for it.
    """
    text = readme.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise ValueError(f"{readme} has no '<!-- table: routes -->' that ends with '<!-- end -->'.")
    readme.write_text(BLOCK.sub(lambda match: routes_table(), text), encoding="utf-8")
