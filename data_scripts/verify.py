"""Checks a copy of a benchmark: its lists, counts, classes and images against minica.data.catalogue.

python data_scripts/verify.py --root FOLDER [NAME ...] [--all]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minica.data.catalogue import CATALOGUE
from minica.data.few_shot import PLACES, SHOTS, noahs_list, read_few_shot, whole_split
from minica.data.fgvc import read_fgvc
from minica.data.files import data_folder, find_folder, listed
from minica.data.images import Collection
from minica.data.vtab import read_vtab

SAMPLE = 100  # images of a set that are decoded unless all are asked for
READERS = {"vtab": read_vtab, "fgvc": read_fgvc}
FOLDERS = {"vtab": "vtab-1k", "fgvc": "fgvc", "few-shot": "few-shot"}


def there(name: str, root: Path) -> Path | None:
    """The folder of this benchmark, if there is one."""
    try:
        return find_folder(root, FOLDERS[name.partition("/")[0]], CATALOGUE[name].folders, name)
    except ValueError:
        return None


def check(name: str, root: Path, every_image: bool = False) -> Iterator[tuple[bool, str]]:
    """(whether it holds, what was checked) for one benchmark; the first error in a list ends it."""
    family, _, short = name.partition("/")
    try:
        if family == "few-shot":
            found = yield from _check_shots(name, root)
        else:
            found = READERS[family](short, root)
            yield True, f"{found.source}: all lists are well-formed, and every image in them exists"
            yield from _check_counts(name, found)
    except (ValueError, ModuleNotFoundError) as error:
        yield False, str(error)
        return
    if family == "vtab":
        parts = np.concatenate([found.labels[found.splits[split]] for split in ("train", "val")])
        same = np.array_equal(found.labels[found.splits["final"]], parts)
        yield same, "the last run's thousand have the labels of train and val in their order"
    yield from _check_images(found, every_image)


def _check_counts(name: str, found: Collection) -> Iterator[tuple[bool, str]]:
    facts = CATALOGUE[name]
    sizes = {"train": facts.train, "val": facts.val, "test": facts.test, "final": facts.train + facts.val}
    for split, expected in sizes.items():
        count = len(found.splits[split])
        yield count == expected, f"{split}: {count:,} images, published {expected:,}"
    labels = np.unique(np.concatenate([found.labels[found.splits[split]] for split in ("final", "test")]))
    yield len(labels) == facts.classes, f"{len(labels)} classes have images, published {facts.classes}"


def _check_shots(name: str, root: Path) -> Generator[tuple[bool, str], None, Collection]:
    """Few-shot tasks: NOAH's fifteen lists, the split that shots are drawn from, or both."""
    facts, folder = CATALOGUE[name], there(name, root)
    whole = whole_split(folder, facts.classes) if folder else None
    if whole:
        found = listed(name, [folder / place for place in PLACES], *whole, "")
        yield True, "the split that shots are drawn from is well-formed, and every image in it exists"
        yield from _check_counts(name, found)
    wanted = list(product(SHOTS, range(3)))
    # Beside a whole split some may be lacking: then read_few_shot() draws.  CoOp's Pets have other things in annotations.
    lists = [row for row in wanted if noahs_list(folder, *row).is_file()] if whole else wanted
    if lists:
        for shots, seed in lists:
            found = read_few_shot(name.partition("/")[2], root, shots, seed)
        yield True, f"{len(lists)} of NOAH's {len(wanted)} lists of shots have as many images of each class as they say"
        for split, expected in facts.sizes.items():
            yield len(found.splits[split]) == expected, f"{split}: {len(found.splits[split]):,} images, published {expected:,}"
    return found


def _check_images(found: Collection, every_image: bool) -> Iterator[tuple[bool, str]]:
    files = found.images
    chosen = range(len(files)) if every_image else np.unique(np.linspace(0, len(files) - 1, SAMPLE).astype(int)).tolist()

    def problem(i: int) -> str | None:
        try:
            files[i]
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        problems = [p for p in tqdm(pool.map(problem, chosen), "decoding", len(chosen), leave=False, delay=5) if p]
    yield (
        not problems,
        f"{len(chosen) - len(problems):,} of {len(chosen):,} images decode" + "".join(f"\n      {p}" for p in problems[:9]),
    )


def report(name: str, root: Path, every_image: bool = False) -> bool:
    """Print one line a check; returns whether all hold."""
    good = True
    for holds, what in check(name, root, every_image):
        print(f"{'OK  ' if holds else 'FAIL'}  {name}: {what}", flush=True)
        good &= holds
    return good


def chosen(names: Sequence[str]) -> list[str]:
    """Benchmarks by their names or families; all if there are none."""
    for name in names:
        if not any(name in (known, known.partition("/")[0]) for known in CATALOGUE):
            raise ValueError(f"unknown benchmark {name!r}; choose among {', '.join(CATALOGUE)}, or vtab, fgvc, few-shot.")
    return [known for known in CATALOGUE if not names or known in names or known.partition("/")[0] in names]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="vtab/dtd, or a family: vtab (default: what is there)")
    parser.add_argument("--root", help="the folder of all benchmarks (default: $MINICA_DATA)")
    parser.add_argument("--all", action="store_true", help=f"decode every image, not {SAMPLE} of each set")
    args = parser.parse_args(argv)
    try:
        root = data_folder(args.root)
        names = [name for name in chosen(args.names) if args.names or there(name, root)]
        if not names:
            raise ValueError(f"there is no benchmark in {root}; data_scripts/prepare.py makes them.")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all([report(name, root, args.all) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
