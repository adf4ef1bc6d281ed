"""What a notebook shows: the committed records of a config, or runs that are made here and now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..experiments import plans
from ..experiments.plans import CONFIGS, Cell, Plan, chosen, final_records, is_complete, read_plan
from ..experiments.records import RESULTS, read_records
from ..experiments.sweeps import sweep


class Results(NamedTuple):
    """The records of a config: all of them, some, or none yet."""

    plan: Plan
    found: dict[str, dict]  # all records there are, by key
    source: str  # "recorded" or "trained here"

    @property
    def finals(self) -> list[tuple[Cell, list[dict]]]:
        """Every cell of the plan with its final runs, one a seed."""
        return [(cell, final_records(cell, self.found, self.plan)) for cell in self.plan.cells]

    def by_method(self, task: str | None = None) -> dict[str, list[dict]]:
        """Final runs by what the config calls their method; of a config with one backbone, and with one task or of ``task``."""
        return {cell.method: runs for cell, runs in self.finals if task in (None, cell.task)}

    @property
    def missing(self) -> str:
        """How to make the records, if final runs are missing; else nothing."""
        name = self.plan.name
        command = f"python -m minica sweep configs/{name}.toml --out minica/results/{name}.json"
        return "" if is_complete(self.plan, self.found) else f"not run yet: {command}"


def plan_at(name: str, seeds: int, methods: Sequence[str] | None = None, task: str | None = None, **sizes) -> Plan:
    """The plan of ``configs/<name>.toml`` at other sizes, with the options that its committed records chose.

    So nothing is tuned again, but for a method that was changed in the config since.

    Args:
        seeds: how many of the config's.
        methods: only these, in this order; default all.
        task: only this one of the config's, as its tables call it; with several tasks it must be given.
        sizes: entries of a run's configuration, such as ``size`` and ``epochs``.
    """
    (plan, found), cells = plans.recorded(name), {}
    for cell in (cell for cell in plan.cells if task in (None, cell.task)):
        best = chosen(cell, found, plan)
        points = [point | sizes for point in (cell.points if best is None else best[:1])]
        rate_of = cell.rate_of if best is None and cell.rate_of in (methods or [cell.rate_of]) else None
        cells[cell.method] = replace(cell, points=points, seeds=cell.seeds[:seeds], widen=False, then={}, rate_of=rate_of)
    shown = [cells[method] for method in methods or cells]
    return replace(plan, seeds=plan.seeds[:seeds], tuning_seeds=plan.tuning_seeds[:seeds], cells=shown)


def recorded(name: str, retrain: bool = False, **sizes) -> Results:
    """The committed records of ``configs/<name>.toml``, complete or not: for sweeps that take an hour or more.

    Args:
        retrain: run the whole sweep here instead, at ``sizes`` as in :func:`plan_at`, into a new folder below ``records``.
    """
    if retrain:
        plan, place = plan_at(name, **sizes) if sizes else read_plan(CONFIGS / f"{name}.toml"), _new_place(name)
        sweep(plan, place)
        return Results(plan, read_records(place), "trained here")
    return Results(*plans.recorded(name), "recorded")


def _new_place(name: str) -> Path:
    return Path("records") / time.strftime("%Y%m%d-%H%M%S") / name


def records_or_runs(plan: Plan, retrain: bool = False) -> Results:
    """The final runs of a plan: the committed records if they have all of them, else what is trained here.

    Runs go to the folder ``records/<name of the plan>``, where a second call finds them; with ``retrain``, to a new one.

    Raises:
        RuntimeError: naming the first run that failed.
    """
    found, source = read_records(RESULTS / f"{plan.name}.json"), "recorded"
    if retrain or not is_complete(plan, found):
        place = _new_place(plan.name) if retrain else Path("records") / plan.name
        sweep(plan, place)
        found, source = read_records(place), "trained here"
        if not is_complete(plan, found):
            errors = [record["error"] for record in found.values() if "error" in record]
            raise RuntimeError(f"{len(errors)} runs in {place} failed, the first with {errors[0]}")
    return Results(plan, found, source)
