"""The ways through the course, with the minutes that their notebooks were measured to take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nbformat

from ..experiments.tables import markdown
from .runner import find

ROUTES = {
    "one hour": ("00", "02", "04"),
    "engineer": ("00", "02", "03", "10", "11"),
    "half a day in class": ("00", "01", "02", "03", "05"),
    "researcher": (),  # all
}


def routes_table(notebooks: str | Path | None = None) -> str:
    """The routes as a Markdown table, from what ``python -m minica publish`` wrote into the notebooks' metadata."""
    rows = [[name, ", ".join(numbers) or "all", _minutes(find(numbers, notebooks))] for name, numbers in ROUTES.items()]
    return markdown(["route", "notebooks", "minutes of computing"], rows)


def _minutes(paths: Sequence[Path]) -> str:
    measured = [nbformat.read(path, 4).metadata.get("minica", {}).get("seconds") for path in paths]
    return "not measured yet" if None in measured else f"{sum(measured) / 60:.0f}"
