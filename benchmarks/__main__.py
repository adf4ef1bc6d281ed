"""``python -m benchmarks``: measure what is not recorded yet, and write the records and their table."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

import torch

from minica.atomic import write_atomically
from minica.experiments import RESULTS, add_record, read_records, trial_key

from .measure import BACKBONES, LAYOUTS, PRECISIONS, describe, exit_with, measure, table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="timm names (default: %(default)s)")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, metavar="PRECISION")
    parser.add_argument("--layouts", nargs="+", default=["channels_last"], choices=LAYOUTS, metavar="LAYOUT")
    parser.add_argument("--batch", nargs="+", type=int, default=[8], help="images a step (default: %(default)s)")
    parser.add_argument("--size", nargs="+", type=int, default=[224], help="their side in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each method, taken in turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    parser.add_argument("--name", default="benchmark", help="of the record, without .json (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the records (default: the package's)")
    args = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: costs do not depend on weights
    torch.set_num_threads(args.threads)
    cells = [
        dict(
            backbone=backbone,
            scheme=BACKBONES.get(backbone, "conv_parallel"),
            precision=precision,
            layout=layout,
            batch=batch,
            size=size,
            **{key: getattr(args, key) for key in ("rounds", "threads", "device")},
        )
        for backbone, precision, layout, batch, size in itertools.product(
            args.backbones, args.precisions, args.layouts, args.batch, args.size
        )
    ]
    place = args.out / f"{args.name}.json"
    for number, cell in enumerate(cells, 1):
        if trial_key(cell) not in read_records(place):
            print(f"{number}/{len(cells)}: {describe(cell)}", flush=True)
            add_record(place, measure(cell))
        text = table([*read_records(place).values()])
        write_atomically(place.with_suffix(".md"), text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    exit_with(main)
