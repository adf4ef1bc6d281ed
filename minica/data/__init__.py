"""Which data is a network adapted to?  Read, decoded once, split and ready to train on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import packaged
from .folder import image_folder
from .images import RESIZE_RULES, Decoded, cut, decode
from .transforms import AUGMENTATIONS, transform

__all__ = ["AUGMENTATIONS", "RESIZE_RULES", "ImageDataset", "Task", "decode", "load", "transform"]

PACKAGED = {"solar-cells": packaged.solar_cells, "shapes": packaged.shapes}


class ImageDataset(Dataset):
    """Decoded images in memory; ``dataset[i]`` is a float32 image (3, S, S) ready for a network, and its label.

    Attributes:
        images: uint8 (N, 1 | 3, S, S), as decoded: what to look at.
        labels: int64 (N,).
        transform: applied to one uint8 image whenever it is taken.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: torch.nn.Module) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), int(self.labels[i])


@dataclass(repr=False, eq=False)
class Task:
    """A classification task: three disjoint sets of images and all that must be known to make more such inputs.

    Only ``train`` is augmented.  Choose on ``val``; ``test`` is for the number at the end.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    size: int
    resize: str  # "squash" or "crop", see minica.data.decode
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    source: str
    licence: str
    citation: str = ""

    def __repr__(self) -> str:
        """How many images of which class are in which split."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        counts = np.stack([np.bincount(d.labels.numpy(), minlength=len(self.classes)) for d in splits.values()], 1)
        rows = [(name, *row) for name, row in zip(self.classes, counts, strict=True)]
        if len(rows) > 20:
            rest = counts[16:].sum(0)
            rows = [*rows[:16], (f"{len(counts) - 16} more classes", *rest)]
        rows.append(("all", *counts.sum(0)))
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}  " + "".join(f"{number:8,}" for number in row) for name, *row in rows]
        head = f"{self.name}: {len(self.classes)} classes, {self.size} x {self.size} pixels ({self.resize}), "
        head += f"augmentation {self.augment!r}, licence {self.licence}"
        return "\n".join([head, " " * width + "  " + "".join(f"{split:>8}" for split in splits), *lines])


def load(
    name: str | os.PathLike,
    *,
    size: int,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    task: str | None = None,
    resize: str = "squash",
    augment: str | None = None,
    train_size: int | None = None,
    seed: int = 0,
) -> Task:
    """Load a data set, decoded once and cached under ``$MINICA_HOME`` (``~/.cache/minica``).

    Args:
        name: ``"solar-cells"``, ``"shapes"``, or a path to class folders; see
            :func:`~minica.data.packaged.solar_cells`, :func:`~minica.data.packaged.shapes` and
            :func:`~minica.data.folder.image_folder`.
        size: side S of the images in pixels.
        mean: what the network expects subtracted from pixels in [0, 1], one number or one for each of R, G, B.
        std: what it expects them divided by, likewise.
        task: for solar cells ``"defect"`` (default), ``"level"`` or ``"type"``; for shapes ``"position"`` (default),
            ``"orientation"`` or ``"count"``.
        resize: how an image becomes square: ``"squash"`` or ``"crop"``.
        augment: of training images: ``"none"``, ``"flips"`` (with quarter turns) or ``"crop"``.  None takes what leaves
            the labels right: flips for solar cells, none for shapes, crop for folders.
        train_size: train on a subset of that many images that keeps the classes' proportions.
        seed: draws the shapes, splits a folder that is not split, and takes the subset.  The solar cells' split is
            fixed.

    Raises:
        ValueError: for a data set, task, rule or augmentation that is not known, a number out of range, or whatever is
            wrong with a folder or an image file.
        ModuleNotFoundError: for solar cells without the package that holds them.
    """
    _check_choice("resize rule", resize, RESIZE_RULES)
    if augment is not None:
        _check_choice("augmentation", augment, AUGMENTATIONS)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}.")
    mean, std = _by_channel("mean", mean), _by_channel("std", std)
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, since pixels are divided by it, got {std}.")

    if name in PACKAGED:
        data = PACKAGED[name](task, size, resize, seed)
    elif Path(name).expanduser().exists():
        if task is not None:
            raise ValueError(f"a folder of class folders has only one task, got task={task!r}; leave it out.")
        data = image_folder(Path(name).expanduser(), size, resize, seed)
    else:
        raise ValueError(
            f"unknown data set {os.fspath(name)!r}, which is no folder either; choose one of {', '.join(PACKAGED)}, "
            "or give the path of a folder that holds one folder of images for each class."
        )

    splits, augment = data.splits, augment or data.augment
    if train_size is not None:
        splits = splits | {"train": _subset(data, train_size, seed)}
    labels = torch.from_numpy(data.labels)
    sets = {
        split: ImageDataset(
            data.images[indices],
            labels[indices],
            transform(size, mean, std, augment if split == "train" else "none"),
        )
        for split, indices in splits.items()
    }
    about = {"source": data.source, "licence": data.licence, "citation": data.citation}
    return Task(data.name, data.classes, **sets, size=size, resize=resize, mean=mean, std=std, augment=augment, **about)


def _subset(data: Decoded, train_size: int, seed: int) -> np.ndarray:
    train = data.splits["train"]
    if not isinstance(train_size, int) or not 1 <= train_size <= len(train):
        raise ValueError(f"train_size must be between 1 and {len(train)}, all there are; got {train_size!r}.")
    _, chosen = cut(train, data.strata, train_size, np.random.RandomState(seed))
    lost = np.setdiff1d(data.labels[train], data.labels[chosen])
    if len(lost):
        raise ValueError(
            f"train_size={train_size} leaves no image of {', '.join(data.classes[i] for i in lost)}; "
            f"take more: {len(np.unique(data.strata[train]))} are always enough."
        )
    return chosen


def _check_choice(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"unknown {what} {given!r}; choose one of {', '.join(known)}.")


def _by_channel(what: str, value: float | Sequence[float]) -> tuple[float, ...]:
    values = np.ravel(value).astype(float).tolist()
    if len(values) not in (1, 3):
        raise ValueError(f"{what} must be one number, or one for each of R, G and B; got {value!r}.")
    return tuple(values * (3 // len(values)))
