"""Reads one's own pictures and decides which of them are for training, for validation and for the test."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from ..data import ImageDataset
from ..data.folder import broken_note, check_classes, find_classes
from ..data.images import decode_all
from ..data.table import Row, read_table
from ..data.transforms import transform

HELD = 0.15  # of the pictures for validation, and as many for the test
RESIZE = "squash"  # see minica.data.decode


@dataclass
class Pictures:
    """Labelled pictures, decoded, and what each is for."""

    root: Path  # the folder that their names are relative to
    names: list[str]
    classes: tuple[str, ...]
    images: Tensor  # uint8 (N, 1 | 3, S, S)
    labels: Tensor  # int64 (N,), positions in classes
    splits: dict[str, np.ndarray]  # "train", "val" and "test": positions in images
    notes: list[str] = field(default_factory=list)  # what a user should know: what was skipped and why, duplicates
    skipped: dict[str, str] = field(default_factory=dict)  # why, by name, of images that do not decode

    def counts(self) -> dict[str, list[int]]:
        """How many pictures of each class are in each split."""
        bins = len(self.classes)
        return {split: torch.bincount(self.labels[there], minlength=bins).tolist() for split, there in self.splits.items()}

    def digest(self) -> str:
        """What tells these pictures, their labels and splits from others."""
        found = sha256(self.images.numpy())
        listed = [(name, int(self.labels[i])) for i, name in enumerate(self.names)]
        found.update(
            repr((listed, self.classes, {key: there.tolist() for key, there in self.splits.items()})).encode(
                "utf-8", "backslashreplace"
            )
        )
        return found.hexdigest()[:16]

    def datasets(self, mean: Sequence[float], std: Sequence[float], augment: str) -> dict[str, ImageDataset]:
        """The splits, ready for a network that expects this normalisation; only ``train`` is augmented."""
        size, name = self.images.shape[-1], self.root.name
        about = {"classes": self.classes, "input_size": size, "resize": RESIZE, "mean": mean, "std": std}
        about |= {"training_data": f"images of {name}", "licence": "not stated"}
        return {
            split: ImageDataset(
                self.images[there],
                self.labels[there],
                transform(size, mean, std, augment if split == "train" else "none"),
                about,
            )
            for split, there in self.splits.items()
        }


def read_pictures(data: Path, size: int, skip_broken: bool = False) -> Pictures:
    """The pictures of class folders, split or not, or of a CSV ``path,label[,group,split]``, at ``size`` x ``size`` pixels.

    Folders are read as by :func:`minica.data.folder.image_folder`, tables as by :func:`minica.data.table.read_table`.  What is
    not split is divided 70 : 15 : 15, class by class; a split that is missing gets 15 % of the training pictures.  Pictures of
    one group stay together, and so do copies of one picture.

    Raises:
        ValueError: for whatever is wrong with the data, before anything is written: fewer than two classes, classes with too
            few pictures, groups that cross given splits, images that do not decode (unless ``skip_broken``).
    """
    if not data.exists():
        raise ValueError(f"{data} does not exist; give a folder of class folders, or a CSV with the columns path and label.")
    rows, notes = _listed(data)
    root = data if data.is_dir() else data.parent
    images, broken = decode_all(data.stem, root, [row.path for row in rows], size, RESIZE, skip_broken)
    if broken:
        notes.append(broken_note(root, broken))
        rows = [row for row in rows if row.path not in broken]
        _check(data, rows)
    classes = tuple(sorted({row.label for row in rows}))
    notes += _about_names(classes)
    labels = np.array([classes.index(row.label) for row in rows])
    names = [Path(os.path.relpath(row.path, root)).as_posix() for row in rows]
    twins = _twins(images)
    splits = _splits(data, rows, labels, twins, classes, notes)
    notes += _about_twins(names, [row.label for row in rows], splits, twins)
    skipped = {Path(os.path.relpath(path, root)).as_posix(): reason for path, reason in broken.items()}
    return Pictures(root.resolve(), names, classes, images, torch.from_numpy(labels), splits, notes, skipped)


def _listed(data: Path) -> tuple[list[Row], list[str]]:
    """All images with what is known of each, checked as far as that goes before any is decoded."""
    if data.is_dir():
        found, notes = find_classes(data)
        check_classes(data, found, needed=1 + len({"val", "test"} - found.keys()))
        listed = [(path, label, part) for part, files in found.items() for label in files for path in files[label]]
        rows = [Row(path, label, split=part) for path, label, part in listed]
        renamed = "test" in found and not any(entry.name.lower() == "test" for entry in data.iterdir())
    else:
        rows, notes = read_table(data), []
        renamed = {row.split for row in rows} == {"train", "val"}
        rows = [row._replace(split="test") if renamed and row.split == "val" else row for row in rows]
        _check(data, rows)
    if renamed:
        notes.append("there is no test split: val is taken for the test, and validation images are cut from train.")
    return rows, notes


def _check(data: Path, rows: list[Row]) -> None:
    """What :func:`minica.data.folder.check_classes` refuses of folders, of rows."""
    found: dict[str, dict[str, list[Path]]] = {"train": {}}
    for row in rows:
        found.setdefault(row.split or "train", {}).setdefault(row.label, []).append(row.path)
    check_classes(data, found, needed=1 + len({"val", "test"} - found.keys()))


def _twins(images: Tensor) -> list[list[int]]:
    """Positions of the pictures that are the same, pixel for pixel, as many lists as there are such pictures."""
    places: dict[bytes, list[int]] = {}
    for i, image in enumerate(images):
        places.setdefault(sha256(image.numpy()).digest(), []).append(i)
    return [there for there in places.values() if len(there) > 1]


def _splits(
    data: Path, rows: list[Row], labels: np.ndarray, twins: list[list[int]], classes: tuple[str, ...], notes: list[str]
) -> dict[str, np.ndarray]:
    """The splits that are given, and those that are missing drawn from training."""
    given = np.array([row.split or "train" for row in rows])
    group = np.unique([f"group {row.group}" if row.group else f"image {row.path}" for row in rows], return_inverse=True)[1]
    of_group: dict[str, set[str]] = {}
    for row in rows:
        of_group.setdefault(row.group, set()).add(row.split)
    if crossing := sorted(name for name, parts in of_group.items() if name and len(parts) > 1):
        raise ValueError(f"{data}: groups are in more than one split: {', '.join(crossing[:5])}; correct the column split.")
    missing = [split for split in ("val", "test") if split not in given]
    if missing:
        for there in twins:
            group[np.isin(group, group[there])] = group[there[0]]
        pool = np.flatnonzero(given == "train")
        shares = {"train": 1 - HELD * len(missing)} | dict.fromkeys(missing, HELD)
        given[pool] = np.array([*shares])[draw_splits(labels[pool], group[pool], [*shares.values()])]
    splits = {split: np.flatnonzero(given == split) for split in ("train", "val", "test")}
    for split, there in splits.items():
        if absent := [name for i, name in enumerate(classes) if i not in labels[there]]:
            said = f"no {split} image of {', '.join(absent)}"
            if split == "train" or len(there) == 0:
                raise ValueError(f"{data}: {said}, since groups and copies stay together; add images of other groups.")
            notes.append(f"there is {said}: what is measured says nothing of it.")
    return splits


def draw_splits(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """For each image (N,) the position in ``shares`` of the split that it is drawn for; the first is training.

    Groups are taken in a random order, large ones first, and each goes where its classes lack most of their share.  So every
    class is divided by the shares as evenly as the groups allow, and three groups of a class reach three splits.
    """
    random = np.random.RandomState(seed)
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((group.max() + 1, labels.max() + 1))
    np.add.at(counts, (group, labels), 1)
    wanted = np.outer(shares, np.maximum(counts.sum(0), 1))
    have, place = np.zeros_like(wanted), np.zeros(len(counts), int)
    order = random.permutation(len(counts))
    for i in order[np.argsort(-counts[order].sum(1), kind="stable")]:
        place[i] = np.argmax(np.round((1 - have / wanted) @ counts[i], 9))
        have[place[i]] += counts[i]
    return place[group]


def _about_names(classes: Sequence[str]) -> list[str]:
    """What a user should know of classes whose names a person would read as one."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    said = ["; ".join(" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1)]
    return [f"classes have almost the same name: {names}. If they are one, give them one name." for names in said if names]


def _about_twins(names: list[str], labels: list[str], splits: Mapping[str, np.ndarray], twins: list[list[int]]) -> list[str]:
    """What a user should know of pictures that are there more than once."""
    split = {i: part for part, there in splits.items() for i in there.tolist()}
    notes = []
    for what, key, remedy in (
        ("has two labels", labels, "Keep the right one."),
        ("is in more than one split", split, "What is measured on it is too good; keep one."),
    ):
        found = [there for there in twins if len({key[i] for i in there}) > 1]
        if found:
            said = "; ".join(" = ".join(f"{names[i]} ({key[i]})" for i in there) for there in found[:10])
            more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
            notes.append(f"the same picture {what} ({len(found)}): {said}{more}. {remedy}")
    if twins:
        copies = sum(len(there) - 1 for there in twins)
        notes.append(f"exact copies of other pictures: {copies}; where splits are drawn, copies stay together.")
    return notes
