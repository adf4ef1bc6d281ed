"""``python -m benchmarks``: measure what is not recorded yet, and write ``benchmark.json`` and ``benchmark.md``."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

import torch

from minica.checkpoints import write_atomically
from minica.experiments import RESULTS, recorded, records, write_records

from .measure import BACKBONES, LAYOUTS, PRECISIONS, measure, table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="timm names (default: %(default)s)")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, metavar="PRECISION")
    parser.add_argument("--layouts", nargs="+", default=["channels_last"], choices=LAYOUTS, metavar="LAYOUT")
    parser.add_argument("--batch", type=int, default=8, help="images a step (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="their side in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each method, taken in turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
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
            **{key: getattr(args, key) for key in ("batch", "size", "rounds", "threads", "device")},
        )
        for backbone, precision, layout in itertools.product(args.backbones, args.precisions, args.layouts)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells, 1):
        if recorded([cell], "benchmark", args.out):
            continue
        print(f"{number}/{len(cells)}: {cell['backbone']}, {cell['precision']}, {cell['layout']}", flush=True)
        write_records(args.out / "benchmark.json", [*records("benchmark", args.out), measure(cell)])
    text = table(recorded(cells, "benchmark", args.out))
    write_atomically({args.out / "benchmark.md": text.encode()})
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
