"""Reads few-shot tasks: NOAH's lists, or shots drawn here from CoOp's splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .catalogue import FEW_SHOT
from .files import Entry, find_folder, listed, read_json, read_list, read_text
from .images import Collection, draw_shots

SHOTS = (1, 2, 4, 8, 16)
PLACES = ("images", "data/images", "jpg", "")  # of the images, below the folder of the data set


def read_few_shot(name: str, root: Path, shots: int | None, seed: int) -> Collection:
    """``shots`` training images a class of Aircraft, Food101, Flowers102, Pets or Cars, and the whole val and test sets.

    * NOAH: ``annotations/train_meta.list.num_shot_4.seed_0`` (seeds 0, 1, 2), ``val_meta.list`` and ``test_meta.list``,
      with lines ``<image> <label>``.  Taken where there is a list of these shots and this seed.
    * CoOp: ``split_zhou_<name>.json``; for Aircraft the publisher's ``images_variant_{train,val,test}.txt``.  The shots
      are drawn by ``seed``, class by class, so that 2 shots contain the 1 of the same seed.  CoOp's own draws are in
      ``.pkl`` files, which are programs and not read.

    The last run trains on the shots alone: with the hundreds of validation images it would not be few-shot any more.

    Raises:
        ValueError: for a number of shots that is not known, a folder without such lists, or a list that is wrong (see
            :func:`~minica.data.files.listed`).
    """
    if shots not in SHOTS:
        raise ValueError(
            f"few-shot tasks need shots, the training images of each class: {', '.join(map(str, SHOTS))}; got {shots!r}."
        )
    facts, full = FEW_SHOT[name], f"few-shot/{name}"
    folder = find_folder(root, "few-shot", facts.folders, full)
    drawn = noahs_list(folder, shots, seed)
    names = [str(label) for label in range(facts.classes)]
    if drawn.is_file():
        lists = {"train": read_list(drawn)}
        lists |= {split: read_list(drawn.with_name(f"{split}_meta.list")) for split in ("val", "test")}
        source = f"{facts.paper}, NOAH's {shots} shots of seed {seed}"
    elif whole := whole_split(folder, facts.classes):
        lists, names = whole
        drawn_here = draw_shots(np.array([entry.label for entry in lists["train"]]), shots, seed)
        lists["train"] = [lists["train"][i] for i in drawn_here]
        source = f"{facts.paper}, {shots} shots drawn by minica with seed {seed}"
    else:
        raise ValueError(_what_is_missing(folder, drawn))
    lists["final"] = lists["train"]
    found = listed(full, [folder / place for place in PLACES], lists, names, source)
    counts = np.bincount(found.labels[found.splits["train"]], minlength=len(names))
    if wrong := [label for label in range(len(names)) if counts[label] != shots]:
        raise ValueError(
            f"{drawn if drawn.is_file() else folder}: class {wrong[0]} has {counts[wrong[0]]} training images, "
            f"expected {shots}; get the list again."
        )
    found.name = f"{full}, {shots} shots"
    return found


def noahs_list(folder: Path, shots: int, seed: int) -> Path:
    """Where NOAH's list of these shots is, if there is one."""
    return folder / "annotations" / f"train_meta.list.num_shot_{shots}.seed_{seed}"


def whole_split(folder: Path, classes: int) -> tuple[dict[str, list[Entry]], list[str]] | None:
    """The split that shots are drawn from, and the classes' names; None if there are neither CoOp's nor Aircraft's lists."""
    if splits := sorted(folder.glob("split_zhou_*.json")):
        return _coop(splits[0], [str(label) for label in range(classes)])
    return _variants(folder) if (folder / "images_variant_train.txt").is_file() else None


def _coop(path: Path, names: list[str]) -> tuple[dict[str, list[Entry]], list[str]]:
    """``{train, val, test: [[image, label, class name], ...]}``."""
    lists: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
    content = read_json(path)
    for split, entries in lists.items():
        for i, row in enumerate(content.get(split, []) if isinstance(content, dict) else []):
            match row:
                case [str(image), int(label), str(text)]:
                    entries.append(Entry(image, label, f"{path}: {split}[{i}]"))
                    if 0 <= label < len(names):
                        names[label] = text
                case _:
                    raise ValueError(f"{path}: {split}[{i}]: expected [image, label, class name], got {row!r}; get it again.")
        if not entries:
            raise ValueError(f"{path} has no {split!r} list; get it again.")
    return lists, names


def _variants(folder: Path) -> tuple[dict[str, list[Entry]], list[str]]:
    """FGVC-Aircraft as published: ``variants.txt``, and lines of ``<image id> <variant>``."""
    names = read_text(folder / "variants.txt").splitlines()
    lists: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
    for split, entries in lists.items():
        path = folder / f"images_variant_{split}.txt"
        for number, line in enumerate(read_text(path).splitlines(), 1):
            image, _, variant = line.strip().partition(" ")
            if variant not in names:
                raise ValueError(f"{path}:{number}: {variant!r} is not in variants.txt; get both files again.")
            entries.append(Entry(f"{image}.jpg", names.index(variant), f"{path}:{number}"))
    return lists, names


def _what_is_missing(folder: Path, drawn: Path) -> str:
    lists = f"{folder} has neither annotations/{drawn.name} (NOAH) nor split_zhou_*.json (CoOp)"
    if pickles := sorted(folder.rglob("*.pkl")):
        return (
            f"{lists}, but {pickles[0].relative_to(folder)}: a pickle is a program, so it is not read. Add CoOp's "
            "split_zhou_*.json, whose shots are drawn here by seed, or NOAH's lists."
        )
    there = sorted(path.name.removeprefix("train_meta.list.") for path in drawn.parent.glob("train_meta.list.num_shot_*"))
    return f"{lists}; there are {', '.join(there) or 'no lists of shots'}. Choose one of these, or add what is missing."
