"""``python -m benchmarks.gpu``: what is worth a GPU's first half-hour, in this order, and as far as the time goes.

The central table at 128 pixels (``configs/signs.toml``; photographs and trunk below the folder MINICA_DATA), the costs of the
paper's Table 10 beside the paper's, and the benchmark of every family in bf16.  Each trial and each cell is recorded when it is
done, with the name of the card, so that a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from minica.experiments import CONFIGS, add_record, read_plan, read_records, trial_key
from minica.experiments.plans import Plan, pending
from minica.experiments.sweeps import locked, trial
from minica.experiments.tables import sweep_table

from . import table_10
from .families import AIMS
from .measure import BACKBONES, describe, measure, table

OUT = Path("build/gpu")
MINUTES = 25
# What a preset changes: the central table's config and runs, and the cells that are measured.
PRESETS = {
    "gpu": dict(
        config="signs",
        run=dict(size=128),
        tried=None,  # points of a cell: all
        seeds=5,
        backbones=table_10.BACKBONES,
        bf16=[*AIMS, *(name for name in BACKBONES if name not in AIMS)],
        batch=64,
        size=224,
        rounds=9,
    ),
    "smoke": dict(
        config="packaged",
        run=dict(size=32, train_size=32, epochs=1, batch_size=16),
        tried=1,
        seeds=1,
        backbones=("test_resnet",),
        bf16=("test_resnet",),
        batch=2,
        size=32,
        rounds=1,
    ),
}


def central_plan(preset: dict) -> Plan:
    """The plan of the central table, at the preset's size."""
    plan = read_plan(CONFIGS / f"{preset['config']}.toml")
    cells = [
        replace(
            cell,
            points=[point | preset["run"] for point in cell.points[: preset["tried"]]],
            seeds=cell.seeds[: preset["seeds"]],
        )
        for cell in plan.cells
    ]
    return replace(plan, cells=cells)


def cost_cells(preset: dict, device: str) -> Iterator[tuple[str, dict]]:
    """What is measured after it, each with the name of the record that it belongs to."""
    fixed = {key: preset[key] for key in ("batch", "size", "rounds")} | dict(threads=torch.get_num_threads(), device=device)
    for cell in table_10.cells(preset["backbones"], **fixed):
        yield "table_10", cell
    for backbone in preset["bf16"]:
        yield (
            "benchmark_bf16",
            dict(
                backbone=backbone,
                scheme=BACKBONES.get(backbone, "conv_parallel"),
                precision="bf16",
                layout="channels_last",
                **fixed,
            ),
        )


def run(preset: dict, out: Path, left: Callable[[], float], device: str) -> bool:
    """Do what is not recorded yet while ``left()`` minutes are above zero; returns whether all is done."""
    plan, place = central_plan(preset), out / "central.json"
    with locked(place):
        while left() > 0 and (todo := pending(plan, read_records(place))):
            job = next(iter(todo.values()))
            add_record(place, record := trial(job, None))
            print(
                f"{left():.1f} minutes left, {len(todo) - 1} trials known: {record.get('error') or record['seconds']}",
                flush=True,
            )
    print(sweep_table(plan, read_records(place)))
    done = not pending(plan, read_records(place))
    for name, cell in cost_cells(preset, device):
        place = out / f"{name}.json"
        if trial_key(cell) in read_records(place):
            continue
        if left() <= 0:
            return False
        add_record(place, measure(cell))
        print(f"{left():.1f} minutes left, measured {describe(cell)}, {cell['scheme']}", flush=True)
    print(table([*read_records(out / "benchmark_bf16.json").values()]))
    print(table_10.beside_the_paper([*read_records(out / "table_10.json").values()]))
    return done


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="start nothing after so many (default: %(default)s)")
    parser.add_argument("--preset", default="gpu", choices=PRESETS, help="smoke takes a minute on a CPU")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the records (default: %(default)s)")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and args.preset != "smoke":
        raise ValueError("there is no GPU here; on a CPU --preset smoke shows that everything runs.")
    end = time.monotonic() + 60 * args.minutes
    return 0 if run(PRESETS[args.preset], args.out, lambda: (end - time.monotonic()) / 60, device) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
