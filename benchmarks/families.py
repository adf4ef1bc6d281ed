"""``python -m benchmarks.families``: what each form of the adapter keeps and costs in every family, beside ``peft``'s methods.

Bytes are counted, so they are the same on every machine.  With ``--rounds`` training steps are timed as well, all methods
taking turns, each network on its own: a second call goes on with the networks that are missing.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import torch

from minica.atomic import write_atomically
from minica.experiments import RESULTS, add_record, markdown, read_records, trial_key

from .measure import FULL, describe, exit_with, measure, median_interval, ratios, table
from .methods import PEFT

# What was aimed at when the lean form was written: bytes kept in parts of full fine-tuning's, exact and approximate.
AIMS = {
    "convnext_tiny": (0.25, 0.30),
    "swin_tiny_patch4_window7_224": (0.35, 0.40),
    "tf_efficientnetv2_b0": (0.40, 0.45),
    "mobilenetv3_large_100": (0.35, 0.38),
    "regnety_008": (0.30, 0.32),
    "resnetv2_50x1_bit": (0.22, 0.24),
    "resnet18": (0.42, None),
    "resnet50": (0.126, 0.126),  # what it kept before
}
STEP_AIM = 1.15  # of the step without recomputation
NONE, AUTO = "Conv-Adapter, lean, none", "Conv-Adapter, lean"
SHOWN = {
    "plain": "Conv-Adapter",
    '`"none"`': NONE,
    '`"auto"`': AUTO,
    "approximate": "Conv-Adapter, lean, approximate",
    '`"stages"`': "Conv-Adapter, lean, stages",
}


def cell(backbone: str, rounds: int, threads: int, device: str, precision: str = "float32", batch: int = 4) -> dict:
    """A cell of the benchmark, with images of 128 pixels, or Swin's 224."""
    size = 224 if "swin" in backbone else 128
    how = dict(precision=precision, layout="contiguous", batch=batch, size=size, inference=False)
    return dict(backbone=backbone, scheme="conv_parallel", **how, rounds=rounds, threads=threads, device=device)


# ---------------------------------------------------------------- what the records say


def kept(record: dict, method: str) -> float | None:
    """Bytes kept in parts of full fine-tuning's, or None of a method that does not run."""
    methods = record["methods"]
    return methods[method]["activations"] / methods[FULL]["activations"] if "activations" in methods[method] else None


def best_of_peft(record: dict) -> str | None:
    """The method of ``peft`` that keeps least, of those that run on the network."""
    return min((name for name in PEFT if kept(record, name) is not None), key=lambda name: kept(record, name), default=None)


def bytes_table(records: list[dict]) -> str:
    """A row a network, in parts of full fine-tuning's; in brackets what was aimed at.  Below it whether that was reached."""
    rows, missed = [], []
    for record in records:
        backbone, best = record["config"]["backbone"], best_of_peft(record)
        row = [backbone, f"{record['methods'][FULL]['activations'] / 2**20:.0f} MiB"]
        aims = dict(zip((AUTO, SHOWN["approximate"]), AIMS[backbone], strict=True))
        for label, name in SHOWN.items():
            share, aim = kept(record, name), aims.get(name)
            row.append(f"{share:.3f}" + (f" ({aim:g})" if aim else ""))
            if aim and share > aim:
                missed.append(f"{backbone} {label} {share:.3f} instead of {aim:g}")
        rows.append([*row, *(("-", "-") if best is None else _beside(record, best))])
    header = ["network", "kept, full", *SHOWN, "PEFT's best that runs", '`"auto"` of that']
    header[header.index('`"auto"`')] += " (aim)"
    header[header.index("approximate")] += " (aim)"
    said = "Not reached: " + "; ".join(missed) if missed else "All aims are reached"
    return f"{markdown(header, rows)}\n\n{said}."


def _beside(record: dict, best: str) -> tuple[str, str]:
    return f"{best.removesuffix(' (peft)')}: {kept(record, best):.3f}", f"{kept(record, AUTO) / kept(record, best):.2f}"


def steps_table(timed: list[dict]) -> str:
    """A row a network: steps in parts of the lean form's without recomputation, in the same round, with 95 % intervals."""
    if not timed:
        return "Steps are not timed yet (`python -m benchmarks.families --rounds 15`)."
    rows, above, unsure = [], [], []
    for record in timed:
        row = [record["config"]["backbone"]]
        best = best_of_peft(record)
        for name in (*(name for name in SHOWN.values() if name != NONE), *([best] if best else [])):
            values = ratios(record, name, "step", NONE)
            found = median_interval(values)
            text = f"{statistics.median(values):.2f}" + (f" ({found[1]:.2f} to {found[2]:.2f})" if found else "")
            row.append(f"{name.removesuffix(' (peft)')}: {text}" if name == best else text)
            if name == AUTO and statistics.median(values) > STEP_AIM:
                above.append(f"{row[0]} {text}")
            elif name == AUTO and (found is None or found[2] > STEP_AIM):
                unsure.append(f"{row[0]} {text}")
        rows.append([*row, *["-"] * (best is None)])
    header = ["network", *(label for label in SHOWN if "none" not in label), "PEFT's best that runs"]
    said = [f'"auto" was to take at most {STEP_AIM} of the step without recomputation.']
    said.append(f"Above it: {'; '.join(above)}." if above else "No median is above it.")
    said += [f"Within it, with an interval that reaches beyond: {'; '.join(unsure)}."] if unsure else []
    missing = [backbone for backbone in AIMS if backbone not in {row[0] for row in rows}]
    said += [f"Not timed yet: {', '.join(missing)}."] if missing else []
    return f"{markdown(header, rows)}\n\n{' '.join(said)}"


def summary(records: list[dict], timed: list[dict]) -> str:
    return f"{bytes_table(records)}\n\n{steps_table(timed)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=list(AIMS), choices=AIMS, metavar="NAME", help="(default: all)")
    parser.add_argument("--rounds", type=int, default=0, help="steps of each method, taken in turns (default: count only)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, where steps are timed (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the records (default: the package's)")
    args = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: costs do not depend on weights
    torch.set_num_threads(args.threads)
    place, timed = args.out / "families.json", args.out / "families_steps.json"
    for backbone in args.backbones:
        cells = {place: cell(backbone, 0, 1, "cpu")}
        if args.rounds:
            cells[timed] = cell(backbone, args.rounds, args.threads, "cpu")
        for record, config in cells.items():
            if trial_key(config) not in read_records(record):
                print(f"{describe(config)}, {config['rounds']} rounds", flush=True)
                add_record(record, measure(config))
    records = [[*read_records(path).values()] for path in (place, timed)]
    for path, found in zip((place, timed), records, strict=True):
        if found:
            write_atomically(path.with_suffix(".md"), table(found).encode())
    print(summary(*records))
    return 0


if __name__ == "__main__":
    exit_with(main)
