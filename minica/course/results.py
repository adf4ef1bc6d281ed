"""What a notebook shows: the committed records of a config, or runs that are made here and now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..experiments.plans import CONFIGS, Cell, Plan, chosen, final_records, is_complete, read_plan
from ..experiments.records import RESULTS, read_records
from ..experiments.sweeps import sweep


class Results(NamedTuple):
    finals: list[tuple[Cell, list[dict]]]  # every cell of the plan with its final runs, one a seed
    found: dict[str, dict]  # all records there are, by key
    source: str  # "recorded" or "trained here"

    def by_method(self) -> dict[str, list[dict]]:
        """Final runs by what the config calls their method; of a config with one task and one backbone."""
        return {cell.method: runs for cell, runs in self.finals}


def plan_at(name: str, seeds: int, methods: Sequence[str] | None = None, **sizes) -> Plan:
    """The plan of ``configs/<name>.toml`` at other sizes, with the options that its committed records chose.

    So nothing is tuned again, but for a method that was changed in the config since.

    Args:
        seeds: how many of the config's.
        methods: only these, in this order; default all.
        sizes: entries of a run's configuration, such as ``size`` and ``epochs``.
    """
    plan = read_plan(CONFIGS / f"{name}.toml")
    found, cells = read_records(RESULTS / f"{name}.json"), {}
    for cell in plan.cells:
        best = chosen(cell, found, plan)
        points = [point | sizes for point in (cell.points if best is None else best[:1])]
        rate_of = cell.rate_of if best is None and cell.rate_of in (methods or [cell.rate_of]) else None
        cells[cell.method] = replace(cell, points=points, seeds=cell.seeds[:seeds], widen=False, then={}, rate_of=rate_of)
    shown = [cells[method] for method in methods or cells]
    return replace(plan, seeds=plan.seeds[:seeds], tuning_seeds=plan.tuning_seeds[:seeds], cells=shown)


def plan_and_records(name: str, retrain: bool = False, **sizes) -> tuple[Plan, dict[str, dict], str]:
    """A config's plan, the records there are of it, complete or not, and their source.

    With ``retrain`` a sweep comes first, at ``sizes`` as in :func:`plan_at`, into a new folder below ``records``.
    """
    if not retrain:
        plan = read_plan(CONFIGS / f"{name}.toml", rehearse=False)
        return plan, read_records(RESULTS / f"{name}.json"), "recorded"
    plan, place = plan_at(name, **sizes), Path("records") / time.strftime("%Y%m%d-%H%M%S") / name
    sweep(plan, place)
    return plan, read_records(place), "trained here"


def records_or_runs(plan: Plan, retrain: bool = False) -> Results:
    """The final runs of a plan: the committed records if they have all of them, else what is trained here.

    Runs go to the folder ``records/<name of the plan>``, where a second call finds them; with ``retrain``, to a new one.

    Raises:
        RuntimeError: naming the first run that failed.
    """
    found, source = read_records(RESULTS / f"{plan.name}.json"), "recorded"
    if retrain or not is_complete(plan, found):
        place = Path("records") / (time.strftime("%Y%m%d-%H%M%S") if retrain else "") / plan.name
        sweep(plan, place)
        found, source = read_records(place), "trained here"
        if not is_complete(plan, found):
            errors = [record["error"] for record in found.values() if "error" in record]
            raise RuntimeError(f"{len(errors)} runs in {place} failed, the first with {errors[0]}")
    return Results([(cell, final_records(cell, found, plan)) for cell in plan.cells], found, source)


def recorded(name: str, retrain: bool = False) -> Results:
    """The final runs of ``configs/<name>.toml`` among the committed records: all of them, some or none yet.

    Args:
        retrain: run the whole sweep here instead, see :func:`records_or_runs`.
    """
    plan = read_plan(CONFIGS / f"{name}.toml")
    if retrain:
        return records_or_runs(plan, retrain=True)
    found = read_records(RESULTS / f"{name}.json")
    return Results([(cell, final_records(cell, found, plan)) for cell in plan.cells], found, "recorded")


def complete_records(name: str) -> Results | None:
    """The committed final runs of ``configs/<name>.toml``; None, saying how to make them, if some are missing.

    Nothing is trained: for records that take an hour or more.
    """
    plan = read_plan(CONFIGS / f"{name}.toml")
    found = read_records(RESULTS / f"{name}.json")
    if is_complete(plan, found):
        return Results([(cell, final_records(cell, found, plan)) for cell in plan.cells], found, "recorded")
    print(f"not run yet: python -m minica sweep configs/{name}.toml --out minica/results/{name}.json")
    return None
