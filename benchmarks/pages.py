"""Writes the tables of README.md and of docs/, and the sentences under them, from the records: ``python -m benchmarks.pages``.

Each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between them is written here and never by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from minica.atomic import write_atomically
from minica.course.routes import routes_table
from minica.experiments import RESULTS, collapse, final_records, read_records, survey
from minica.experiments.findings import central_table, findings, findings_table
from minica.experiments.plans import at_edge, recorded
from minica.experiments.tables import grid_table, methods_table, sweep_table

from . import dense, families, measure, sentences, table_10, walk

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(\n<!-- end -->)", re.S)


def measured(name: str) -> list[dict]:
    """The records of one benchmark."""
    return list(read_records(RESULTS / f"{name}.json").values())


def swept(name: str, table: Callable) -> str:
    """The table of one config's records."""
    return table(*recorded(name))


def one_task(name: str) -> str:
    """The methods of a config with one task, side by side."""
    plan, found = recorded(name)
    edge = [cell.method for cell in plan.cells if at_edge(cell, found, plan)]
    return methods_table({cell.method: final_records(cell, found, plan) for cell in plan.cells}, edge)


TABLES: dict[str, Callable[[], str]] = {
    "routes": routes_table,
    "central": central_table,
    "findings": lambda: findings_table(findings()),
    "quickstart": lambda: one_task("quickstart"),
    "few_shot_solar_cells": lambda: swept("few_shot_solar_cells", grid_table),
    "vtab_packaged": lambda: swept("vtab_packaged", grid_table),
    **{
        name: partial(swept, name, sweep_table)
        for name in ("solar_cells", "position_peft", "signs", "signs_images", "clothing", "position_trunk", "few_shot_signs")
    },
    "quickstart_says": sentences.quickstart,
    "few_shot_says": lambda: sentences.few_shot("few_shot_solar_cells", "CA"),
    "vtab_says": sentences.vtab,
    "solar_cells_says": sentences.solar_cells,
    **{f"{name}_says": partial(sentences.central, name) for name in ("signs", "clothing", "position_trunk")},
    "position_peft_says": sentences.position_peft,
    "signs_images_says": sentences.split_by_image,
    "few_shot_signs_says": lambda: sentences.few_shot("few_shot_signs", "conv_parallel"),
    "collapse": lambda: collapse.summary(read_records(RESULTS / "collapse.json")),
    "survey": lambda: survey.overview([*read_records(RESULTS / "survey.json", by="architecture").values()]),
    "benchmark": lambda: measure.summary(measured("benchmark")),
    "families": lambda: families.summary(measured("families"), measured("families_steps")),
    "table_10": lambda: table_10.beside_the_paper(measured("table_10")),
    "walk": lambda: walk.summary(measured("walk")),
    "dense_memory": lambda: dense.summary(measured("dense_memory")),
}


def pages() -> list[Path]:
    """The pages that have tables."""
    return [
        path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(path.read_text("utf-8"))
    ]


def filled(text: str) -> str:
    """A page with every table as the records have it.

    Raises:
        KeyError: for a table that nothing here makes.
    """
    return BLOCK.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


if __name__ == "__main__":
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            write_atomically(page, after.encode())
            print(f"written: {page.relative_to(ROOT)}")
