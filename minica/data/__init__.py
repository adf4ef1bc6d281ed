"""Data sets: read, decoded once, split and ready to train on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..counting import check_whole
from . import packaged, photographs
from .catalogue import CATALOGUE
from .dense import BOX_PRESETS, MASK_PRESETS, BoxDataset, DenseTask, MaskDataset, load_boxes, load_masks
from .few_shot import read_few_shot
from .fgvc import read_fgvc
from .files import Files, data_folder
from .folder import image_folder
from .images import RESIZE_RULES, Collection, decode, draw_shots, stratified_split
from .transforms import AUGMENTATIONS, by_channel, check_choice, transform
from .vtab import read_vtab

__all__ = [
    "AUGMENTATIONS",
    "BOX_PRESETS",
    "CATALOGUE",
    "IMAGENET",
    "MASK_PRESETS",
    "RESIZE_RULES",
    "BoxDataset",
    "DenseTask",
    "ImageDataset",
    "MaskDataset",
    "Task",
    "decode",
    "load",
    "load_boxes",
    "load_masks",
    "stratified_split",
    "transform",
]

PACKAGED = {"solar-cells": packaged.solar_cells, "shapes": packaged.shapes}
PHOTOGRAPHS = {"sign-digits": photographs.sign_digits, "clothing": photographs.clothing}  # found below $MINICA_DATA
CATALOGUE_AUGMENTATIONS = ("paper", "published", "none")
# What the published code normalises by whatever the backbone expects: ``load(..., **IMAGENET)``.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class ImageDataset(Dataset):
    """Labelled images; ``dataset[i]`` is a float32 image (3, S, S) ready for a network, and its label.

    Attributes:
        images: ``images[i]`` is uint8 (1 | 3, H, W), as decoded: what to look at.  One tensor (N, 1 | 3, S, S) in memory, or
            for the benchmarks :class:`~minica.data.files.Files`, decoded whenever they are taken.
        labels: int64 (N,).
        transform: applied to one uint8 image whenever it is taken.
        about: what an adapter file says of its training data, if it is known: ``classes``, ``input_size`` in pixels,
            ``resize``, ``mean``, ``std``, ``training_data`` (its source) and ``licence``.
    """

    def __init__(self, images: Tensor | Files, labels: Tensor, transform: torch.nn.Module, about: dict | None = None) -> None:
        self.images, self.labels, self.transform, self.about = images, labels, transform, dict(about or {})

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), int(self.labels[i])


@dataclass(repr=False, eq=False)
class Task:
    """A classification task: three disjoint sets of images and all that must be known to make more such inputs.

    Only ``train`` is augmented.  Choose on ``val``, then train once more on ``final``; ``test`` is for the number at the end.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    size: int
    resize: str  # of val and test: "squash", "crop" or "centre", see minica.data.decode
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    source: str
    licence: str
    citation: str = ""

    @cached_property
    def final(self) -> ImageDataset:
        """What the last run trains on when all is chosen: train and val together, augmented like train.

        A few-shot task's has the shots alone.  (A benchmark's is its publisher's list, which :func:`load` puts here.)
        """
        images, labels = (torch.cat([getattr(d, key) for d in (self.train, self.val)]) for key in ("images", "labels"))
        return ImageDataset(images, labels, self.train.transform, self.train.about)

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
    resize: str | None = None,
    augment: str | None = None,
    train_size: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    root: str | os.PathLike | None = None,
    skip_broken: bool = False,
) -> Task:
    """Load a data set: small ones decoded once and cached under ``$MINICA_HOME`` (``~/.cache/minica``), benchmarks from disk.

    Args:
        name: ``"solar-cells"``, ``"shapes"``, or a path to class folders; see
            :func:`~minica.data.packaged.solar_cells`, :func:`~minica.data.packaged.shapes` and
            :func:`~minica.data.folder.image_folder`; ``"sign-digits"`` or ``"clothing"`` below ``root``, see
            :func:`~minica.data.photographs.sign_digits` and :func:`~minica.data.photographs.clothing`.  Or one of
            :data:`~minica.data.catalogue.CATALOGUE`:
            ``"vtab/dtd"``, ``"fgvc/cub200"``, ``"few-shot/pets"``; see :func:`~minica.data.vtab.read_vtab`,
            :func:`~minica.data.fgvc.read_fgvc` and :func:`~minica.data.few_shot.read_few_shot`.
        size: side S of the images in pixels.
        mean: what the network expects subtracted from pixels in [0, 1], one number or one for each of R, G, B.
        std: what it expects them divided by, likewise.
        task: for solar cells ``"defect"`` (default), ``"level"``, ``"type"`` or ``"kind"``; for shapes ``"position"``
            (default), ``"orientation"`` or ``"count"``; for sign-digits ``"students"`` (default) or ``"images"``; for clothing
            ``"thousand"`` (default) or ``"published"``.
        resize: how an image becomes square: ``"squash"``, ``"crop"`` or ``"centre"``, see :func:`decode`.  None squashes;
            but of a benchmark whose training pictures are crops it takes the centre, as the published evaluation does.
        augment: of training images: ``"none"``, ``"flips"`` (with quarter turns) or ``"crop"``.  None takes what leaves
            the labels right: flips for solar cells, none for shapes, crop for folders.  For benchmarks ``"paper"`` (the
            default), ``"published"`` (what the published code really does) or ``"none"``: a plain resize.
        train_size: train on a subset of that many images that keeps the classes' proportions.
        shots: training images a class, drawn by ``seed``, of which fewer are part of more; of the few-shot benchmarks 1, 2,
            4, 8 or 16.  ``final`` then has the shots alone.
        seed: draws the shapes and the shots, splits a folder that is not split, sign-digits and clothing, and takes the
            subset.  The splits of
            solar cells, VTAB-1k and FGVC are fixed.
        root: the folder of all benchmarks, else ``$MINICA_DATA``.  Only read.
        skip_broken: leave out images of a folder that do not decode, with a warning that names them.

    Raises:
        ValueError: for a data set, task, rule or augmentation that is not known, a number out of range, or whatever is
            wrong with a folder or an image file.
        ModuleNotFoundError: for solar cells without the package that holds them; for MATLAB lists without scipy.

    Warns:
        UserWarning: if a copy of a benchmark does not have the published numbers of images and classes; for what is passed
            over in a folder.
    """
    if resize is not None:
        check_choice("resize rule", resize, RESIZE_RULES)
    if augment is not None:
        check_choice("augmentation", augment, CATALOGUE_AUGMENTATIONS if name in CATALOGUE else AUGMENTATIONS)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}.")
    seed = check_whole(seed, "seed", 0)
    mean, std = by_channel("mean", mean), by_channel("std", std)
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, since pixels are divided by it, got {std}.")

    if skip_broken and name in (*PACKAGED, *PHOTOGRAPHS, *CATALOGUE):
        raise ValueError(f"skip_broken= is for folders of images of your own, not for {name!r}; leave it out.")
    if name in CATALOGUE:
        data = _from_catalogue(str(name), task, train_size, shots, seed, root)
    elif name in PHOTOGRAPHS:
        data = PHOTOGRAPHS[name](task, size, resize or "squash", seed, root)
    elif name in PACKAGED or Path(name).expanduser().exists():
        if root is not None:
            raise ValueError(f"root= is for benchmarks, not for {os.fspath(name)!r}; leave it out.")
        if name in PACKAGED:
            data = PACKAGED[name](task, size, resize or "squash", seed)
        elif task is not None:
            raise ValueError(f"a folder of class folders has only one task, got task={task!r}; leave it out.")
        else:
            data = image_folder(Path(name).expanduser(), size, resize or "squash", seed, skip_broken)
    else:
        raise ValueError(
            f"unknown data set {os.fspath(name)!r}, which is no folder either; choose one of "
            f"{', '.join([*PACKAGED, *PHOTOGRAPHS, *CATALOGUE])}, or give the path of a folder that holds one folder of images "
            "for each class."
        )
    if shots is not None and name not in CATALOGUE:  # a benchmark's reader draws its own
        _keep_shots(data, shots, train_size, seed)

    splits, augment = data.splits, augment or data.augment
    if train_size is not None:
        chosen = _subset(data, train_size, seed)
        splits = splits | {"train": chosen, "final": np.concatenate([chosen, splits["val"]])}
    changed = CATALOGUE[name].augmentation(augment) if name in CATALOGUE else augment
    # Pictures are tested as large as they are trained on: what is cut from a margin there has its margin cut off here.
    resize = resize or ("centre" if name in CATALOGUE and changed.crop else "squash")
    labels, sets = torch.from_numpy(data.labels), {}
    about = {"classes": data.classes, "input_size": size, "resize": resize, "mean": mean, "std": std}
    about |= {"training_data": data.source, "licence": data.licence}
    for split, indices in splits.items():
        images, trains = data.images[indices], split in ("train", "final")
        if isinstance(images, Files):
            images.size, images.resize = changed.decoded(size, resize) if trains else (size, resize)
        applied = transform(size, mean, std, changed if trains else "none")
        sets[split] = ImageDataset(images, labels[indices], applied, about)
    final = sets.pop("final", None)
    legal = {"source": data.source, "licence": data.licence, "citation": data.citation}
    loaded = Task(data.name, data.classes, **sets, size=size, resize=resize, mean=mean, std=std, augment=augment, **legal)
    if final is not None:
        loaded.final = final  # in place of the property's
    return loaded


def _from_catalogue(name: str, task: str | None, train_size: int | None, shots: int | None, seed: int, root) -> Collection:
    family, _, short = name.partition("/")
    if task is not None:
        raise ValueError(f"{name} has only one task, got task={task!r}; leave it out.")
    if family == "few-shot":
        if train_size is not None:
            raise ValueError(f"of {name} choose shots, not train_size; got train_size={train_size!r}.")
        found = read_few_shot(short, data_folder(root), shots, seed)
    elif shots is not None:
        raise ValueError(f"shots= is for few-shot tasks, not for {name}; leave it out, or choose train_size.")
    else:
        found = {"vtab": read_vtab, "fgvc": read_fgvc}[family](short, data_folder(root))
    facts = CATALOGUE[name]
    sizes = [("classes", len(found.classes), facts.classes)]
    sizes += [(f"{split} images", len(found.splits[split]), count) for split, count in facts.sizes.items()]
    if other := [f"{there:,} {what} (published: {count:,})" for what, there, count in sizes if there != count]:
        warnings.warn(f"this copy of {name} has {', '.join(other)}: results do not compare with published ones.", stacklevel=3)
    return found


def _keep_shots(data: Collection, shots: int, train_size: int | None, seed: int) -> None:
    train = data.splits["train"]
    counts = np.bincount(data.labels[train], minlength=len(data.classes))
    if train_size is not None:
        raise ValueError(f"choose shots or train_size, not both; got shots={shots!r} and train_size={train_size!r}.")
    if not isinstance(shots, int) or not 1 <= shots <= counts.min():
        rarest = data.classes[counts.argmin()]
        raise ValueError(f"shots must be from 1 to {counts.min()}, all training images of {rarest!r}; got {shots!r}.")
    chosen = train[draw_shots(data.labels[train], shots, seed)]
    data.splits |= {"train": chosen, "final": chosen}
    data.name += f", {shots} shots"


def _subset(data: Collection, train_size: int, seed: int) -> np.ndarray:
    train = data.splits["train"]
    if not isinstance(train_size, int) or not 1 <= train_size <= len(train):
        raise ValueError(f"train_size must be between 1 and {len(train)}, all there are; got {train_size!r}.")
    _, chosen = stratified_split(train, data.strata, train_size, np.random.RandomState(seed))
    lost = np.setdiff1d(data.labels[train], data.labels[chosen])
    if len(lost):
        raise ValueError(
            f"train_size={train_size} leaves no image of {', '.join(data.classes[i] for i in lost)}; "
            f"take more: {len(np.unique(data.strata[train]))} are always enough."
        )
    return chosen
