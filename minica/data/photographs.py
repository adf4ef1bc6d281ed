"""Two sets of real photographs that are split anew by a seed: hand signs by student, and clothes.

1,000 images are for training, in VTAB's manner 800 to train on and 200 to choose by, and the rest is for testing.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np

from .folder import find_classes, image_folder
from .images import Collection, decode_all, stratified_split
from .named import NAMED, named_folder

TRAIN, VAL = 800, 200
ALIKE = 8  # of 256 bits of two pictures' hashes that may differ before they count as two pictures
_SIDE = 17  # pixels a side of what is hashed


def sign_digits(task: str | None, size: int, resize: str, seed: int, root: str | os.PathLike | None = None) -> Collection:
    """Photographs of hands that show a digit, 10 classes, by students none of whom is in two splits (Mavi 2017).

    The task ``"students"`` (the default) keeps a student's images together: students are put in an order drawn by ``seed``;
    the first 800 images are for training, and of what follows up to the 1,000th those of other students for validation; the
    students after that are for testing.  ``"images"`` splits image by image, stratified by class: a test image then has
    siblings of the same hand in training.

    Raises:
        ValueError: for an unknown task, or if the set is not below ``root``, else ``$MINICA_DATA``.
    """
    task = "students" if task is None else task
    if task not in ("students", "images"):
        raise ValueError(f"sign-digits has the tasks students and images, got {task!r}.")
    data, paths = _whole("sign-digits", size, resize, root)
    if task == "images":
        data.splits = _by_class(data.labels, seed)
    else:
        student = students(paths, data.labels)
        order = np.random.RandomState(seed).permutation(student.max() + 1)
        rank = order.argsort()[student]  # of an image, the place of its student
        images = np.lexsort((np.arange(len(rank)), rank))
        train, more = images[:TRAIN], images[TRAIN : TRAIN + VAL]
        val = more[~np.isin(rank[more], rank[train])]
        seen = np.concatenate([train, more])
        test = images[TRAIN + VAL :]
        data.splits = {"train": train, "val": val, "test": test[~np.isin(rank[test], rank[seen])]}
    data.name += f"/{task}"
    return data


def students(paths: list[Path], labels: np.ndarray) -> np.ndarray:
    """The number of the student of each image: in the order of file numbers each shows 0 to 9, so another begins at a fall."""
    numbers = [int(re.search(r"\d+", path.stem).group()) for path in paths]
    order = np.argsort(numbers, kind="stable")
    falls = np.diff(labels[order], prepend=labels[order][0]) < 0
    found = np.empty(len(paths), dtype=np.int64)
    found[order] = falls.cumsum()
    return found


def clothing(task: str | None, size: int, resize: str, seed: int, root: str | os.PathLike | None = None) -> Collection:
    """Photographs of clothes, 10 classes of different sizes (Grigorev 2020).

    The task ``"thousand"`` (the default) pools the published splits and splits anew by ``seed``, stratified by class.
    Pictures of which another copy is there are left out, both if their classes differ.  ``"published"`` is the publisher's
    split, whatever the seed: 3,068 / 341 / 372 images, all of them kept.

    Raises:
        ValueError: for an unknown task, or if the set is not below ``root``, else ``$MINICA_DATA``.
    """
    task = "thousand" if task is None else task
    if task not in ("thousand", "published"):
        raise ValueError(f"clothing has the tasks thousand and published, got {task!r}.")
    if task == "published":
        data = image_folder(named_folder("clothing", root), size, resize, seed)
        facts = NAMED["clothing"]
        if other := {split: len(data.splits[split]) for split, n in facts.splits.items() if len(data.splits[split]) != n}:
            said = ", ".join(f"{count:,} {split} images (published: {facts.splits[split]:,})" for split, count in other.items())
            warnings.warn(f"this copy of clothing has {said}: results do not compare with others.", stacklevel=3)
        data.name, data.source, data.licence, data.citation = "clothing/published", facts.source, facts.licence, facts.citation
        return data
    data, _ = _whole("clothing", size, resize, root)
    hashed, _ = _whole("clothing", _SIDE, "squash", root)
    kept = without_copies(hashed.images.float().mean(1).numpy(), data.labels)
    data.splits = {split: kept[part] for split, part in _by_class(data.labels[kept], seed).items()}
    return data


def without_copies(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Positions of the pictures that are no copies of an earlier one; (N, 17, 17) grey values, labels (N,).

    Pictures count as copies if at most 8 of 256 bits differ that say whether a pixel is lighter than the one left of it
    (a difference hash).  Of copies with different labels none is kept.
    """
    bits = (grey[:, :16, 1:] > grey[:, :16, :-1]).reshape(len(grey), -1).astype(np.float32)
    apart = bits @ (1 - bits).T
    one, other = np.nonzero(np.triu(apart + apart.T <= ALIKE, k=1))
    contradicting = labels[one] != labels[other]
    return np.setdiff1d(np.arange(len(grey)), np.concatenate([other, one[contradicting]]))


def _by_class(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    test, first = stratified_split(np.arange(len(labels)), labels, TRAIN + VAL, random)
    train, val = stratified_split(first, labels, VAL, random)
    return {"train": train, "val": val, "test": test}


def _whole(name: str, size: int, resize: str, root: str | os.PathLike | None) -> tuple[Collection, list[Path]]:
    """Every image of a set, in one order whatever splits its folders are in, and their files."""
    folder = named_folder(name, root)
    found, _ = find_classes(folder)
    classes = tuple(sorted({label for files in found.values() for label in files}))
    listed = [(path, classes.index(label)) for files in found.values() for label, paths in files.items() for path in paths]
    listed.sort(key=lambda row: (row[1], row[0].name))
    paths, labels = [path for path, _ in listed], np.array([label for _, label in listed])
    facts = NAMED[name]
    if len(paths) != facts.images:
        known = f"published: {facts.images:,}"
        warnings.warn(
            f"this copy of {name} has {len(paths):,} images ({known}): results do not compare with others.", stacklevel=4
        )
    images, _ = decode_all(name, folder, paths, size, resize)
    legal = dict(source=facts.source, licence=facts.licence, citation=facts.citation)
    return Collection(name, classes, images, labels, {}, labels, augment="crop", **legal), paths
