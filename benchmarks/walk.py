"""``python -m benchmarks.walk PHOTOS``: from a clone to a report on one's own images, step by step as README.md has it, timed.

Everything happens in a new folder with a new environment, so what pip and the network need is in the time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minica.app.run import ADAPTED, PROBE
from minica.atomic import write_atomically
from minica.experiments import RESULTS, add_record, markdown, read_records, trial_key

from .measure import exit_with

ROOT = Path(__file__).resolve().parents[1]
NAME = "walk"
SHOWN = 10  # pictures that are predicted at the end
STEPS = ("clone", "install", "train", "predict")


def some_of(photos: Path, number: int, folder: Path) -> Path:
    """A folder a class with ``number`` of the photographs, drawn with a fixed seed, whatever split they were in.

    Raises:
        ValueError: if there are fewer, or two of a class with one name.
    """
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    if len(files) < number:
        raise ValueError(f"{photos} has {len(files)} files, of which {number} were asked for.")
    for path in random.Random(0).sample(files, number):
        place = folder / path.parent.name / path.name
        if place.exists():
            raise ValueError(f"{photos} has two files {place.parent.name}/{place.name}.")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


def walk(cell: dict, photos: Path, interpreter: str = sys.executable) -> dict:
    """One walk.

    Args:
        cell: ``data``, the name of the photographs; ``photographs``, how many of them, or None for all as they are split;
            ``preset`` of ``python -m minica train``.
        photos: where they are.
        interpreter: makes the new environment.

    Returns:
        A record: ``config`` (the cell), ``seconds`` of each step, ``counts`` of the splits, ``metrics`` of adapters and
        probe, bytes of ``adapter`` and ``report``, and where it ran.

    Raises:
        ValueError: with the last lines of a step that failed.
    """
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        clone, run = place / "minica", place / "run"
        python = clone / ".venv" / "bin" / "python"
        if cell["photographs"]:
            photos = some_of(photos, cell["photographs"], place / "photos")
        new = [str(path) for path in sorted(path for path in photos.rglob("*") if path.is_file())[:SHOWN]]
        commands = {
            "clone": [["git", "clone", "--quiet", str(ROOT), str(clone)]],
            "install": [
                [interpreter, "-m", "venv", str(clone / ".venv")],
                [str(python), "-m", "pip", "install", "--quiet", "-e", f"{clone}[app]"],
            ],
            "train": [[str(python), "-m", "minica", "train", str(photos), "--out", str(run), "--preset", cell["preset"]]],
            "predict": [[str(python), "-m", "minica", "predict", str(run), *new, "--csv", str(place / "found.csv")]],
        }
        seconds = {}
        for step in STEPS:
            print(step, flush=True)
            started = time.perf_counter()
            for command in commands[step]:
                ended = subprocess.run(command, cwd=place, capture_output=True, text=True)
                if ended.returncode:
                    raise ValueError(f"{step} ended with status {ended.returncode}: {ended.stderr[-2000:]}")
            seconds[step] = round(time.perf_counter() - started, 1)
        found = json.loads((run / "run.json").read_text(encoding="utf-8"))
        return {
            "config": cell,
            "seconds": seconds,
            "counts": {split: sum(classes) for split, classes in found["counts"].items()},
            "metrics": {name: found["metrics"][name] for name in (ADAPTED, PROBE)},
            "gain": found["gain"],
            "adapter": found["adapter_bytes"],
            "report": (run / "report.html").stat().st_size,
            "predicted": len((place / "found.csv").read_text(encoding="utf-8").splitlines()) - 1,
            **{key: found[key] for key in ("revision", "versions", "hardware")},
        }


def summary(records: list[dict]) -> str:
    """A column a walk: its seconds by step, what was found, and the bytes of what is kept."""
    rows = {
        "pictures to train, validate, test": lambda r: " / ".join(f"{r['counts'][s]:,}" for s in ("train", "val", "test")),
        "clone and install": lambda r: _seconds(r["seconds"]["clone"] + r["seconds"]["install"]),
        "train and report": lambda r: _seconds(r["seconds"]["train"]),
        f"predict {SHOWN} pictures": lambda r: _seconds(r["seconds"]["predict"]),
        "in all": lambda r: _seconds(sum(r["seconds"].values())),
        "test accuracy, adapters": lambda r: _accuracy(r["metrics"][ADAPTED]),
        "test accuracy, linear probe": lambda r: _accuracy(r["metrics"][PROBE]),
        "difference, in points": lambda r: "{:+.1f} ({:+.1f} to {:+.1f})".format(
            *(100 * value for value in (r["gain"]["accuracy"], *r["gain"]["accuracy_95"]))
        ),
        "adapter file": lambda r: f"{r['adapter'] / 1e6:.2f} MB",
        "report": lambda r: f"{r['report'] / 1e6:.2f} MB",
        "on": lambda r: r["hardware"],
    }
    header = ["", *(_title(record["config"]) for record in records)]
    return markdown(header, [[name, *map(shown, records)] for name, shown in rows.items()])


def _title(cell: dict) -> str:
    return f"{cell['photographs']} photographs of {cell['data']}" if cell["photographs"] else f"all of {cell['data']}, as split"


def _seconds(value: float) -> str:
    return f"{value:.0f} s"


def _accuracy(metrics: dict) -> str:
    low, high = metrics["accuracy_95"]
    return f"{100 * metrics['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walk", description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="a folder with a folder a class, split into train, val and test or not")
    parser.add_argument(
        "--photographs", type=int, help="how many of them, drawn and not split (default: all, as they are split)"
    )
    parser.add_argument("--preset", default="laptop", help="of python -m minica train (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="makes the new environment (default: this one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the record (default: the package's)")
    args = parser.parse_args(arguments)
    place = args.out / f"{NAME}.json"
    cell = dict(data=args.photos.resolve().name, photographs=args.photographs, preset=args.preset)
    if trial_key(cell) not in read_records(place):
        add_record(place, walk(cell, args.photos.resolve(), args.python))
    shown = summary([*read_records(place).values()])
    write_atomically(args.out / f"{NAME}.md", f"{shown}\n".encode())
    print(shown)
    return 0


if __name__ == "__main__":
    exit_with(main)
