"""Checks a copy of a benchmark: its lists, counts, classes and images against minica.data.catalogue and minica.data.named.

python data_scripts/verify.py --root FOLDER [NAME ...] [--all]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minica.data.boxes import read_boxes
from minica.data.catalogue import CATALOGUE
from minica.data.few_shot import PLACES, SHOTS, noahs_list, read_few_shot, whole_split
from minica.data.fgvc import read_fgvc
from minica.data.files import data_folder, find_folder, listed
from minica.data.images import Collection, has_image_ending
from minica.data.masks import read_labels, read_masks
from minica.data.named import NAMED, named_folder
from minica.data.pictures import read_picture, split_folders
from minica.data.vtab import read_vtab

SAMPLE = 100  # images of a set that are decoded unless all are asked for
READERS = {"vtab": read_vtab, "fgvc": read_fgvc}
FOLDERS = {"vtab": "vtab-1k", "fgvc": "fgvc", "few-shot": "few-shot"}


def there(name: str, root: Path) -> Path | None:
    """The folder of this benchmark, if there is one."""
    try:
        if name in NAMED:
            return named_folder(name, root)
        return find_folder(root, FOLDERS[name.partition("/")[0]], CATALOGUE[name].folders, name)
    except ValueError:
        return None


def check(name: str, root: Path, every_image: bool = False) -> Iterator[tuple[bool, str]]:
    """(whether it holds, what was checked) for one benchmark; the first error in a list ends it."""
    if name in NAMED:
        yield from _check_named(name, root, every_image)
        return
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
    yield from _check_images(len(found.images), lambda i: found.images[i], every_image)


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


def _check_named(name: str, root: Path, every_image: bool) -> Iterator[tuple[bool, str]]:
    """Sets with boxes, with masks or with class folders."""
    facts, folder = NAMED[name], there(name, root)
    try:
        if folder is None:
            named_folder(name, root)  # says what is missing
        if "boxes" in facts.reads:
            boxes = read_boxes(folder, 0)
            yield True, f"{facts.source}: all boxes are well-formed, and every image of them exists"
            splits, classes = boxes.splits, len(boxes.classes)
            count = sum(len(boxed.objects) for boxed in _all_of(splits))
            if facts.boxes:  # of converted masks a few may differ
                yield abs(count - facts.boxes) <= facts.boxes // 100, f"{count:,} boxes, expected {facts.boxes:,}"
        if "masks" in facts.reads:
            masks = read_masks(folder, facts.instances, 0)
            yield True, f"{facts.source}: every image has a mask of its size"
            splits, classes = masks.splits, len(masks.classes) - (facts.instances is not None)
        if "classes" in facts.reads:
            splits, classes = _class_folders(folder)
        everything = _all_of(splits)
        sizes = {split: len(splits[split]) for split in facts.splits}
        if "boxes" in facts.reads and "val" not in facts.splits and facts.splits:
            sizes["train"] += len(splits["val"])  # which load_boxes() takes from there
        for split, expected in facts.splits.items():
            yield sizes[split] == expected, f"{split}: {sizes[split]:,} images, published {expected:,}"
        yield len(everything) == facts.images, f"{len(everything):,} images in all, published {facts.images:,}"
        yield classes == facts.classes, f"{classes} classes, published {facts.classes}"
    except (ValueError, KeyError) as error:
        yield False, str(error)
        return

    def decode(i: int) -> None:
        read_picture(getattr(everything[i], "path", everything[i]))
        if "masks" in facts.reads:
            read_labels(everything[i].mask, masks.classes, masks.table)

    yield from _check_images(len(everything), decode, every_image)


def _all_of(splits: dict[str, list]) -> list:
    return list({str(getattr(item, "path", item)): item for items in splits.values() for item in items}.values())


def _class_folders(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """Split (or "all") -> images, and the number of classes."""
    places = split_folders(folder) or {"all": folder}
    classes = {place: [entry for entry in place.iterdir() if entry.is_dir()] for place in places.values()}
    splits = {
        split: sorted(p for c in classes[place] for p in c.iterdir() if has_image_ending(p.name))
        for split, place in places.items()
    }
    return splits, len({entry.name for found in classes.values() for entry in found})


def _check_images(count: int, decode: Callable[[int], object], every_image: bool) -> Iterator[tuple[bool, str]]:
    chosen = range(count) if every_image else np.unique(np.linspace(0, count - 1, SAMPLE).astype(int)).tolist()

    def problem(i: int) -> str | None:
        try:
            decode(i)
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
    everything = [*CATALOGUE, *NAMED]
    for name in names:
        if not any(name in (known, known.partition("/")[0]) for known in everything):
            raise ValueError(f"unknown benchmark {name!r}; choose among {', '.join(everything)}, or vtab, fgvc, few-shot.")
    return [known for known in everything if not names or known in names or known.partition("/")[0] in names]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="vtab/dtd, nuclei, or a family: vtab (default: what is there)")
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
