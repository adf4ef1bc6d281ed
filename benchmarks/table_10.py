"""``python -m benchmarks.table_10``: the classifiers of the paper's Table 10 on this machine, beside the paper's numbers.

Operations, time and memory of each scheme at compression 1, in the published form and in the lean one.  On a CPU the memory is
what autograd keeps for the backward pass, on a GPU the peak of a training step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from minica.atomic import write_atomically
from minica.experiments import RESULTS, add_record, markdown, read_records, trial_key
from minica.experiments.comparison import SCHEME_TUNING
from minica.experiments.costs import table_10

from .measure import FULL, describe, exit_with, measure, median_interval, ratios
from .methods import METHODS

NAME = "table_10"
# Its two backbones, without their weights.  It has compression 1: its GFLOPs are those.
BACKBONES = {"resnetv2_50x1_bit": "ResNet50-BiT", "convnext_base": "ConvNeXt-B"}
FORMS = ("Conv-Adapter, published form", "Conv-Adapter, lean")


def cells(backbones, **fixed) -> list[dict]:
    """What is measured: a cell a backbone and scheme; ``fixed`` are the batch, the size, the rounds and where."""
    common = dict(precision="float32", layout="channels_last", compression=1, **fixed)
    methods = [name for name in METHODS if name in (FULL, *FORMS)]
    return [dict(backbone=name, scheme=scheme, methods=methods, **common) for name in backbones for scheme in SCHEME_TUNING]


def beside_the_paper(records: list[dict]) -> str:
    """The paper's row, and under it ours in both forms; times and memory in parts of full fine-tuning's."""
    printed = {(row["backbone"], row["tuning"]): row for row in table_10() if row["task"] == "Image Classification"}
    rows = []
    for record in records:
        config, full = record["config"], record["methods"][FULL]
        name = (BACKBONES.get(config["backbone"]), SCHEME_TUNING[config["scheme"]])
        if name in printed:
            ours, whole = printed[name], printed[name[0], "FT"]
            parts = [f"{ours[key] / whole[key]:.2f}" for key in ("train_ms", "test_ms", "train_gb")]
            rows.append([*name, "the paper", f"{ours['gflops']:.2f}", *parts])
        for method in FORMS:
            entry = record["methods"][method]
            memory = "peak_memory" if entry["peak_memory"] is not None else "activations"
            operations = f"{printed[name]['total']:.2f}" if name in printed else "-"
            times = [_shown(ratios(record, method, key)) for key in ("step", "inference")]
            form = method.removeprefix("Conv-Adapter, ")
            rows.append(["", "", f"ours, {form}", operations, *times, f"{entry[memory] / full[memory]:.2f}"])
    return markdown(
        ["backbone", "scheme", "", "GFLOPs", "training step of full", "forward pass of full", "memory of full"], rows
    )


def _shown(values: list[float]) -> str:
    """A median with its 95 % interval, or with its range where the rounds are too few for one."""
    found = median_interval(values)
    median, low, high = found or (sorted(values)[len(values) // 2], min(values), max(values))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table_10", description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="timm names (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images a step (default: %(default)s; the paper's is not printed)")
    parser.add_argument("--size", type=int, default=224, help="their side in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each form, taken in turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the records (default: the package's)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    place = args.out / f"{NAME}.json"
    fixed = {key: getattr(args, key) for key in ("batch", "size", "rounds", "threads", "device")}
    for cell in cells(args.backbones, **fixed):
        if trial_key(cell) not in read_records(place):
            add_record(place, measure(cell))
            print(f"measured {describe(cell)}, {cell['scheme']}", flush=True)
    shown = beside_the_paper([*read_records(place).values()])
    write_atomically(args.out / f"{NAME}.md", f"{shown}\n".encode())
    print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(exit_with(main))
