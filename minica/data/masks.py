"""Reads pictures with a mask each, in which every pixel has a class: ADE20K's layout, and folders of pairs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import read_text
from .pictures import by_stem, complete_splits, each, picture_size, read_levels, refuse, split_folders

IGNORE = 255  # the label of pixels that count for nothing
UNKNOWN = -1
MOST_GUESSED = 64  # classes that need no names: with more values, masks are smoothed or number single objects
MASKS = ("masks", "labels", "annotations")  # what the folder beside "images" may be called
REMEDY = "Correct the masks or the pictures, or take out what is wrong."


class Masked(NamedTuple):
    """One picture and its mask."""

    path: str
    mask: str
    width: int
    height: int


@dataclass
class Masks:
    """All pictures of a data set with their masks.

    Attributes:
        table: int16 (65536,), the label of each value in the mask files: 0, 1, ... in the order of ``classes``,
            255 to ignore, -1 for what is no class.
    """

    classes: tuple[str, ...]
    table: np.ndarray
    splits: dict[str, list[Masked]]


def read_masks(
    where: Path, instances: str | None, seed: int, strata: Callable[[list[Masked]], Iterable] | None = None
) -> Masks:
    """A folder in one of these layouts; train, val and test as in :func:`~minica.data.pictures.complete_splits`.

    * ADE20K: ``images/training/*.jpg``, ``annotations/training/*.png``, ``.../validation``, and ``objectInfo150.txt`` with
      the names of the classes.  In the files 0 is what has no class, here ignored; class k is k - 1 here.
    * Pairs: ``images`` and ``masks`` (``labels``) with files of the same name but for the ending, both flat, both with
      folders ``train``, ``val``, ``test``, or inside such folders; one that has no masks is passed over.  Masks have grey
      levels or a palette, whose indices then count.  ``classes.txt`` beside them names the classes, one a line: ``NAME``,
      counted from 0, or ``VALUE NAME``.  Without it the values must be 0 and one other (background and foreground), or 0,
      1, 2, ... without a gap.  255 is ignored, unless it is a class of its own.

    Args:
        instances: masks number single objects: every value above 0 is this class, 0 is "background".

    Raises:
        ValueError: that names up to five of the files that are wrong, and counts all.
    """
    pairs = find_pairs(where)
    if not pairs:
        raise ValueError(
            f"{where} has no masks: expected folders images and {' or '.join(MASKS)} with files of the same name "
            "(images/a.jpg, masks/a.png), flat or with folders train, val and test."
        )
    splits, problems = {}, []
    for split, found in pairs.items():
        splits[split], wrong = each("reading sizes", _sized, found)
        problems += wrong
    refuse(problems, where, REMEDY)
    splits = complete_splits(where, splits, seed, strata)
    infos = sorted(where.glob("objectInfo*.txt"))
    if instances is not None:
        table = np.ones(65536, np.int16)
        table[0] = 0
        classes: tuple[str, ...] = ("background", instances)
    elif infos:
        classes = _ade_classes(infos[0])
        table = _table({0: IGNORE} | {k + 1: k for k in range(len(classes))})
    elif (where / "classes.txt").is_file():
        classes, table = _listed_classes(where / "classes.txt")
    else:
        classes, table = _classes_by_values(sorted({m.mask for found in splits.values() for m in found}), where)
    return Masks(classes, table, splits)


def read_labels(path: str | os.PathLike, classes: Sequence[str], table: np.ndarray) -> np.ndarray:
    """The labels of one mask, uint8 (H, W), by :class:`Masks`' table.

    Raises:
        ValueError: naming the file and a value that is no class; or that its edges are smoothed.
    """
    levels = read_levels(path)
    labels = table[levels]
    if (labels == UNKNOWN).any():
        values, counts = np.unique(levels[labels == UNKNOWN], return_counts=True)
        known = np.flatnonzero((table != UNKNOWN) & (table != IGNORE))
        commonest = values[counts.argmax()]
        said = f"{os.fspath(path)}: {counts.sum():,} pixels have values that are no class, as {commonest}"
        shown = ", ".join(f"{value} {classes[table[value]]}" for value in known[:8]) + (", ..." if len(known) > 8 else "")
        if known[0] < values[0] and values[-1] < known[-1]:
            raise ValueError(
                f"{said}: grey levels between two classes ({shown}). Was it smoothed, resized or saved as JPEG? Save it as PNG"
            )
        raise ValueError(f"{said}; known are {shown}" + (f", and {IGNORE} is ignored" if table[IGNORE] == IGNORE else ""))
    return labels.astype(np.uint8)


def _sized(pair: tuple[Path, Path]) -> Masked:
    picture, mask = pair
    size, other = picture_size(picture), picture_size(mask)
    if size != other:
        raise ValueError(f"{mask}: it has {other[0]} x {other[1]} pixels, but {picture.name} has {size[0]} x {size[1]}")
    return Masked(str(picture), str(mask), *size)


# ------------------------------------------------------------------------------------------------------------------ pairs


def find_pairs(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Split, or ``"all"`` -> (picture, mask) with the same name but for the ending; nothing if there are no such folders.

    Raises:
        ValueError: naming pictures without a mask and masks without a picture.
    """
    places: dict[str, tuple[Path, Path]] = {}
    if both := _pair_of_folders(folder):
        pictures, masks = map(split_folders, both)
        places = {split: (pictures[split], masks[split]) for split in pictures if split in masks} or {"all": both}
    else:
        places = {split: both for split, place in split_folders(folder).items() if (both := _pair_of_folders(place))}
    found, problems = {}, []
    for split, (one, other) in places.items():
        pictures, masks = by_stem(one), by_stem(other)
        problems += [f"{pictures[stem]} has no mask {stem}.* in {other}" for stem in pictures if stem not in masks]
        problems += [f"{masks[stem]} has no picture {stem}.* in {one}" for stem in masks if stem not in pictures]
        found[split] = [(pictures[stem], masks[stem]) for stem in pictures if stem in masks]
    refuse(problems, folder, "Add what is missing, or take out the other half.")
    return found


def _pair_of_folders(folder: Path) -> tuple[Path, Path] | None:
    masks = [folder / name for name in MASKS if (folder / name).is_dir()]
    return (folder / "images", masks[0]) if masks and (folder / "images").is_dir() else None


# ---------------------------------------------------------------------------------------------------------------- classes


def _table(labels: dict[int, int]) -> np.ndarray:
    table = np.full(65536, UNKNOWN, np.int16)
    table[list(labels)] = list(labels.values())
    return table


def _checked(path: Path | str, names: Sequence[str]) -> tuple[str, ...]:
    if not 2 <= len(names) <= IGNORE or len(set(names)) != len(names) or not all(names):
        raise ValueError(
            f"{path}: expected 2 to {IGNORE} classes with names of their own (label {IGNORE} is ignored), got {len(names)}."
        )
    return tuple(names)


def _ade_classes(path: Path) -> tuple[str, ...]:
    """Names of a table with the columns Idx, Ratio, Train, Val, Stuff, Name: of several the first, if no other class has it."""
    rows = [line.split("\t") for line in read_text(path).splitlines() if line.strip()]
    rows = [[cell.strip() for cell in row] for row in rows]
    if not rows or "Idx" not in rows[0] or "Name" not in rows[0]:
        raise ValueError(f"{path}: expected a table with tabs and the columns Idx and Name; get it again.")
    index, name = rows[0].index("Idx"), rows[0].index("Name")
    try:
        numbers, names = [int(row[index]) for row in rows[1:]], [row[name] for row in rows[1:]]
    except (ValueError, IndexError):
        raise ValueError(f"{path}: a row has no number or no name; get it again.") from None
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"{path}: classes should be numbered 1, 2, 3, ...; get it again.")
    first = [full.replace(";", ",").partition(",")[0].strip() for full in names]
    count = Counter(first)
    return _checked(path, [short if count[short] == 1 else full for short, full in zip(first, names, strict=True)])


def _listed_classes(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    pairs = [line.split(maxsplit=1) for line in lines]
    if lines and all(len(pair) == 2 and pair[0].isdecimal() for pair in pairs):
        values, names = [int(pair[0]) for pair in pairs], [pair[1] for pair in pairs]
        if len(set(values)) != len(values) or max(values) > 65535:
            raise ValueError(f"{path}: values must differ and be at most 65535.")
    else:
        values, names = list(range(len(lines))), lines
    return _checked(path, names), _table({IGNORE: IGNORE} | {value: label for label, value in enumerate(values)})


def _classes_by_values(masks: Sequence[str], where: Path) -> tuple[tuple[str, ...], np.ndarray]:
    found, problems = each("looking for classes", lambda mask: (mask, np.unique(read_levels(mask)).tolist()), masks)
    refuse(problems, where, REMEDY)
    values = sorted(set().union(*(levels for _, levels in found)))
    if len(values) == 2 and values[0] == 0:
        return ("background", "foreground"), _table({0: 0, values[1]: 1})
    plain = [value for value in values if value != IGNORE]
    if 1 < len(plain) <= MOST_GUESSED and plain == list(range(len(plain))):
        return tuple(map(str, plain)), _table({IGNORE: IGNORE} | {value: value for value in plain})
    if {0, IGNORE} <= set(values) and len(values) > 3 and values[-1] == IGNORE:
        between = [(mask, [v for v in levels if v not in (0, IGNORE)]) for mask, levels in found]
        smooth = [f"{mask}: {len(rest)} grey levels between 0 and {IGNORE}, as {rest[0]}" for mask, rest in between if rest]
        remedy = "Were they smoothed, resized or saved as JPEG? Save them as PNG; or, if all of these are classes,"
        refuse(smooth, where, f"{remedy} name them in classes.txt, lines VALUE NAME.")
    shown = ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
    raise ValueError(
        f"{where}: the masks have the values {shown}. Which classes are these? Write {where / 'classes.txt'} with lines "
        "VALUE NAME; or, if masks number single objects, give instances=True."
    )
