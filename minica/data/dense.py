"""Data for detection and segmentation: pictures with boxes, pictures with masks, ready to train on."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from .boxes import Boxed, read_boxes
from .images import to_tensor
from .masks import IGNORE, Masked, read_labels, read_masks
from .named import NAMED, NamedSet, named_folder, nuclei_strata
from .pictures import each, read_picture, refuse
from .scenes import cached_scenes
from .transforms import by_channel, check_choice

IN_MEMORY = 1 << 30  # bytes of decoded pictures up to which a set is kept in memory; larger ones are read on access
BOX_AUGMENTATIONS, MASK_AUGMENTATIONS = ("flip", "none"), ("crop", "flip", "none")
# ``size`` is for load_boxes(); min_size and max_size are arguments of torchvision's detectors, which resize by themselves.
BOX_PRESETS = {
    # Section A.4: short side 800, aspect kept; 1333 is MMDetection's limit for the long side.
    "paper": {"size": None, "min_size": (800,), "max_size": 1333},
    # What MMDetection trains ConvNeXt with: the short side drawn from 480 to 800; the last one is for evaluation.
    "multi-scale": {"size": None, "min_size": tuple(range(480, 801, 32)), "max_size": 1333},
    "laptop": {"size": 256, "min_size": (192,), "max_size": 256},  # ours
}
# Arguments of load_masks().
MASK_PRESETS = {
    # Section A.4: random crops of 512 x 512; the ratio of 0.5 to 2 before it is MMSegmentation's.
    "paper": {"size": 512, "augment": "crop"},
    "paper, ConvNeXt": {"size": 640, "augment": "crop"},  # Section A.4
    "laptop": {"size": 128, "augment": "flip"},  # ours
}
REMEDY = "Replace these files with intact ones, or take them out of the set."


class BoxDataset(Dataset):
    """Pictures with boxes; ``dataset[i]`` is an image float32 (3, H, W) in [0, 1], not normalised, and a target.

    The target is a dict: ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels of the image, ``labels`` int64 (N,) from 1,
    ``image_id`` int, ``area`` float32 (N,) in pixels, ``iscrowd`` int64 (N,).  N may be 0.

    Attributes:
        classes: their names; label k is ``classes[k - 1]``, 0 is background.
        category_ids: label k is ``category_ids[k - 1]`` in the annotations and in :meth:`coco_ground_truth`.
        trains: whether targets leave crowds out.
        about: what an adapter file says of its training data, as in :class:`minica.data.ImageDataset`.
    """

    def __init__(
        self,
        boxed: Sequence[Boxed],
        classes: tuple[str, ...],
        category_ids: tuple[int, ...],
        size: int | None,
        augment: str,
        trains: bool,
        kept: dict[str, Tensor],
        about: dict,
    ) -> None:
        self.boxed, self.classes, self.category_ids, self.size, self.trains = boxed, classes, category_ids, size, trains
        self.about, self._kept = about, {b.path: kept[b.path] for b in boxed if b.path in kept}
        flip = [v2.RandomHorizontalFlip()] if augment == "flip" and trains else []
        self.transform = v2.Compose([*flip, v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.boxed)

    def image(self, i: int) -> Tensor:
        """The picture as it was decoded, uint8 (3, H, W): what to look at.

        Raises:
            ValueError: naming the file, if it is read now and does not decode.
        """
        boxed = self.boxed[i]
        return self._kept[boxed.path] if boxed.path in self._kept else _decode_boxed(boxed, self.size)[0]

    def objects(self, i: int) -> np.ndarray:
        """All objects of picture i, crowds included, in pixels of :meth:`image`: (N, 7) as in
        :class:`~minica.data.boxes.Boxed`.
        """
        boxed = self.boxed[i]
        width, height = _limited(boxed.width, boxed.height, self.size)
        x, y = width / boxed.width, height / boxed.height
        return boxed.objects * (x, y, x, y, 1, 1, x * y)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        objects = self.objects(i)
        if self.trains:
            objects = objects[objects[:, 5] == 0]
        image, rows = tv_tensors.Image(self.image(i)), torch.from_numpy(objects)
        boxes = tv_tensors.BoundingBoxes(rows[:, :4].float(), format="XYXY", canvas_size=image.shape[-2:])
        target = {"boxes": boxes, "labels": rows[:, 4].long(), "image_id": self.boxed[i].id}
        target |= {"area": rows[:, 6].float(), "iscrowd": rows[:, 5].long()}
        return self.transform(image, target)

    def coco_ground_truth(self) -> dict:
        """All pictures and objects in COCO's format, for ``pycocotools``, in pixels of the images that the data set gives.

        Image and category ids are those of the annotations, so detections of label k are of ``category_ids[k - 1]``; the
        annotations' own ids count from 1.  Crowds are there, marked.
        """
        images, annotations = [], []
        for i, boxed in enumerate(self.boxed):
            width, height = _limited(boxed.width, boxed.height, self.size)
            images.append({"id": boxed.id, "file_name": Path(boxed.path).name, "width": width, "height": height})
            for x1, y1, x2, y2, label, crowd, area in self.objects(i).tolist():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": boxed.id,
                        "category_id": self.category_ids[int(label) - 1],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        categories = [{"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)]
        return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


class MaskDataset(Dataset):
    """Pictures with masks; ``dataset[i]`` is an image float32 (3, S, S), normalised, and a mask int64 (S, S), 255 = ignore.

    Attributes:
        classes: their names; label k is ``classes[k]``.
        about: what an adapter file says of its training data, as in :class:`minica.data.ImageDataset`.
    """

    def __init__(
        self,
        masked: Sequence[Masked],
        classes: tuple[str, ...],
        table: np.ndarray,
        side: Side,
        transform: v2.Compose,
        kept: dict[str, tuple[Tensor, Tensor]],
        about: dict,
    ) -> None:
        self.masked, self.classes, self.transform, self.about = masked, classes, transform, about
        self._table, self._side = table, side
        self._kept = {m.path: kept[m.path] for m in masked if m.path in kept}

    def __len__(self) -> int:
        return len(self.masked)

    def pair(self, i: int) -> tuple[Tensor, Tensor]:
        """Picture uint8 (3, H, W) and labels uint8 (H, W) as they were decoded: what to look at.

        Raises:
            ValueError: naming the file, if it is read now and something is wrong with it.
        """
        masked = self.masked[i]
        if masked.path in self._kept:
            return self._kept[masked.path]
        return _decode_masked(masked, self.classes, self._table, self._side)[0]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image, mask = self.pair(i)
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image, mask.long()


@dataclass(repr=False, eq=False)
class DenseTask:
    """A detection or segmentation task: sets of pictures and what must be known of them.

    Only ``train`` is augmented.  Where the data have no test set of their own, ``test`` is ``val``: see
    :func:`~minica.data.pictures.complete_splits`.
    """

    name: str
    classes: tuple[str, ...]  # of boxes without background, of masks as the masks have them
    train: BoxDataset | MaskDataset
    val: BoxDataset | MaskDataset
    test: BoxDataset | MaskDataset
    size: int | None
    augment: str
    source: str
    licence: str
    citation: str = ""

    def __repr__(self) -> str:
        """How many pictures, and boxes of which class, are in which split."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        rows = [("pictures", *(len(d) for d in splits.values()))]
        if isinstance(self.train, BoxDataset):
            labels = [np.concatenate([boxed.objects[:, 4] for boxed in d.boxed]).astype(int) for d in splits.values()]
            counts = np.stack([np.bincount(found, minlength=len(self.classes) + 1)[1:] for found in labels], 1)
            rows += [(name, *row) for name, row in zip(self.classes[:20], counts, strict=False)]
            rows += [("all boxes", *counts.sum(0))]
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}  " + "".join(f"{number:8,}" for number in numbers) for name, *numbers in rows]
        sized = "pixels as stored" if self.size is None else f"size {self.size}"
        head = f"{self.name}: {len(self.classes)} classes, {sized}, augmentation {self.augment!r}, licence {self.licence}"
        return "\n".join([head, " " * width + "  " + "".join(f"{split:>8}" for split in splits), *lines])


def load_boxes(
    where: str | os.PathLike,
    *,
    size: int | None = None,
    augment: str = "flip",
    seed: int = 0,
    root: str | os.PathLike | None = None,
) -> DenseTask:
    """A detection task.  What takes at most 1 GiB decoded is decoded once and kept in memory, the rest on access.

    Args:
        where: ``"scenes"``, which are drawn once and kept below ``$MINICA_HOME``; ``"coco"``, ``"nuclei"`` (the boxes of its
            masks) or ``"cards"`` below ``root``; a COCO file, or a folder: see :func:`~minica.data.boxes.read_boxes`.
        size: the longer side in pixels that pictures are shrunk to, aspect kept; none is enlarged.  None: as stored.
        augment: of training pictures: ``"flip"`` (half of them are mirrored) or ``"none"``.
        seed: draws the scenes, and what is not split yet: 70 / 15 / 15 % of a folder and of the nuclei, the latter in the
            proportions of stain and size; a fifth of the cards' training set for val.
        root: the folder of all benchmarks, else ``$MINICA_DATA``.  Only read.

    Training targets leave crowds out; those of val and test, and the ground truth of all, have them.  Pictures without
    boxes are kept.  A rotation in EXIF is not carried out: boxes are those of the file as stored.

    Raises:
        ValueError: for an unknown name, a wrong number, or what is wrong with the data: up to five files are named, all
            are counted.

    Warns:
        UserWarning: for boxes that were clipped or left out, and pictures that note a rotation.
    """
    _check(size, augment, BOX_AUGMENTATIONS, optional=True)
    name, folder, legal, facts = _found(where, "boxes", seed, root)

    def strata(boxed: list[Boxed]) -> list:
        return nuclei_strata(folder, [b.path for b in boxed], [(b.width, b.height) for b in boxed])

    found = read_boxes(folder, seed, strata if facts is NAMED["nuclei"] else None)
    classes = (facts.instances,) if facts and facts.instances else found.classes
    every = _unique(found.splits)
    _check_count(name, facts, len(every))
    kept: dict[str, Tensor] = {}
    sides = [_limited(boxed.width, boxed.height, size) for boxed in every]
    if sum(3 * width * height for width, height in sides) <= IN_MEMORY:
        kept = _decoded(folder, every, lambda boxed: _decode_boxed(boxed, size))
    about = {"classes": classes, "training_data": legal["source"], "licence": legal["licence"]}
    sets: dict[str, BoxDataset] = {}
    for split, boxed in found.splits.items():
        same = split == "test" and boxed is found.splits["val"]
        made = BoxDataset(boxed, classes, found.category_ids, size, augment, split == "train", kept, about)
        sets[split] = sets["val"] if same else made
    return DenseTask(name, classes, **sets, size=size, augment=augment, **legal)


def load_masks(
    where: str | os.PathLike,
    *,
    size: int,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    augment: str = "flip",
    instances: bool = False,
    seed: int = 0,
    root: str | os.PathLike | None = None,
) -> DenseTask:
    """A semantic segmentation task.  What takes at most 1 GiB decoded is decoded once and kept in memory, the rest on access.

    Args:
        where: ``"scenes"``, which are drawn once and kept below ``$MINICA_HOME``; ``"ade20k"`` or ``"nuclei"`` (background
            and nucleus) below ``root``; or a folder: see :func:`~minica.data.masks.read_masks`.
        size: side S of images and masks in pixels.  Those of val and test are squashed to S x S, whatever their aspect:
            all of a picture counts, and no more than S x S pixels of it.
        mean: what the network expects subtracted from pixels in [0, 1], one number or one for each of R, G, B.
        std: what it expects them divided by, likewise.
        augment: of training pictures: ``"crop"``, as the paper trains: the short side to 0.5 to 2 S, drawn at random,
            aspect kept; S x S cut out at random, where it is too small filled up with the mean and with 255; half are
            mirrored.  ``"flip"``: squashed like val, half are mirrored.  ``"none"``: squashed like val.
        instances: masks number single objects; the classes are then "background" and "object".
        seed: draws the scenes, and what is not split yet, see :func:`load_boxes`.
        root: the folder of all benchmarks, else ``$MINICA_DATA``.  Only read.

    Pictures are resized bicubic and antialiased, masks to the nearest pixel.

    Raises:
        ValueError: for an unknown name, a wrong number, or what is wrong with the data: up to five files are named, all
            are counted.

    Warns:
        UserWarning: for pictures that note a rotation in EXIF, which is not carried out.
    """
    _check(size, augment, MASK_AUGMENTATIONS, optional=False)
    mean, std = by_channel("mean", mean), by_channel("std", std)
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, since pixels are divided by it, got {std}.")
    name, folder, legal, facts = _found(where, "masks", seed, root)

    def strata(masked: list[Masked]) -> list:
        return nuclei_strata(folder, [m.path for m in masked], [(m.width, m.height) for m in masked])

    one_class = facts.instances if facts else "object" if instances else None
    found = read_masks(folder, one_class, seed, strata if facts is NAMED["nuclei"] else None)
    every = _unique(found.splits)
    _check_count(name, facts, len(every))
    sides = {split: partial(_loose if split == "train" and augment == "crop" else _square, size) for split in found.splits}
    side_of = {masked.path: sides[split] for split in ("val", "test", "train") for masked in found.splits[split]}
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    if sum(4 * math.prod(side_of[m.path](m.width, m.height)) for m in every) <= IN_MEMORY:
        kept = _decoded(folder, every, lambda masked: _decode_masked(masked, found.classes, found.table, side_of[masked.path]))
    about = {"classes": found.classes, "input_size": size, "resize": "squash", "mean": mean, "std": std}
    about |= {"training_data": legal["source"], "licence": legal["licence"]}
    sets: dict[str, MaskDataset] = {}
    for split, masked in found.splits.items():
        same = split == "test" and masked is found.splits["val"]
        steps = _mask_steps(size, mean, augment) if split == "train" else []
        applied = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()])
        made = MaskDataset(masked, found.classes, found.table, sides[split], applied, kept, about)
        sets[split] = sets["val"] if same else made
    return DenseTask(name, found.classes, **sets, size=size, augment=augment, **legal)


# ------------------------------------------------------------------------------------------------------------------- find


def _found(
    where: str | os.PathLike, what: str, seed: int, root: str | os.PathLike | None
) -> tuple[str, Path, dict[str, str], NamedSet | None]:
    """Name and folder; source, licence and citation; and what is known of a named set."""
    known = [name for name, facts in NAMED.items() if what in facts.reads]
    name = os.fspath(where)
    if where in known:  # as text: a path is a folder, whatever it is called
        facts = NAMED[name]
        legal = {"source": facts.source, "licence": facts.licence, "citation": facts.citation}
        return name, named_folder(name, root), legal, facts
    if root is not None:
        raise ValueError(f"root= is for {', '.join(known)}, not for {name!r}; leave it out.")
    if where == "scenes":
        legal = {"source": "drawn by minica", "licence": "Apache-2.0", "citation": ""}
        return name, cached_scenes(seed) / {"boxes": "coco", "masks": "ade20k"}[what], legal, None
    path = Path(where).expanduser()
    if not path.exists():
        other = f"{name} has no {what}" if name in NAMED else f"unknown data set {name!r}, which is no folder either"
        form = "a COCO file, or a folder of pictures with boxes" if what == "boxes" else "a folder with images and masks"
        raise ValueError(f"{other}; choose one of scenes, {', '.join(known)}, or give the path of {form}.")
    # Without its path, which would say more about a machine than about the data.
    short = path.resolve().stem if path.is_file() else path.resolve().name
    return short, path, {"source": f"{what} of {short}", "licence": "not stated", "citation": ""}, None


def _check(size: int | None, augment: str, augmentations: Sequence[str], optional: bool) -> None:
    check_choice("augmentation", augment, augmentations)
    if not (size is None and optional) and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}.")


def _check_count(name: str, facts: NamedSet | None, count: int) -> None:
    if facts and count != facts.images:
        warnings.warn(
            f"this copy of {name} has {count:,} images (published: {facts.images:,}), so results do not compare.",
            stacklevel=3,
        )


def _unique(splits: dict[str, list]) -> list:
    return list({item.path: item for items in splits.values() for item in items}.values())


# ----------------------------------------------------------------------------------------------------------------- decode

Side = Callable[[int, int], tuple[int, int]]  # width and height that a picture of a width and height is decoded to


def _limited(width: int, height: int, size: int | None) -> tuple[int, int]:
    scale = 1.0 if size is None else min(1.0, size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _square(size: int, width: int, height: int) -> tuple[int, int]:
    return size, size


def _loose(size: int, width: int, height: int) -> tuple[int, int]:
    """The short side at most twice ``size``: what random crops are cut from."""
    scale = min(1.0, 2 * size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _decode_boxed(boxed: Boxed, size: int | None) -> tuple[Tensor, bool]:
    picture, turned = read_picture(boxed.path, (boxed.width, boxed.height))
    return to_tensor(_resized(picture, _limited(boxed.width, boxed.height, size))), turned


def _decode_masked(
    masked: Masked, classes: tuple[str, ...], table: np.ndarray, side: Side
) -> tuple[tuple[Tensor, Tensor], bool]:
    picture, turned = read_picture(masked.path, (masked.width, masked.height))
    labels, target = read_labels(masked.mask, classes, table), side(masked.width, masked.height)
    mask = Image.fromarray(labels).resize(target, Image.Resampling.NEAREST)
    return (to_tensor(_resized(picture, target)), to_tensor(mask)[0]), turned


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _decoded(where: Path, items: list, decode: Callable) -> dict:
    """Path -> what it decodes to, of all; raises a ValueError for all that do not decode."""
    results, problems = each("decoding pictures", lambda item: (item.path, decode(item)), items)
    refuse(sorted(problems), where, REMEDY)
    if turned := Counter(turned for _, (_, turned) in results)[True]:
        first = next(path for path, (_, turned) in results if turned)
        warnings.warn(
            f"{where}: {turned:,} pictures note a rotation in EXIF, which is not carried out: boxes and masks must be those of "
            f"the file as stored; the first: {first}.",
            stacklevel=3,
        )
    return {path: decoded for path, (decoded, _) in results}


def _mask_steps(size: int, mean: tuple[float, ...], augment: str) -> list[torch.nn.Module]:
    if augment == "none":
        return []
    if augment == "flip":
        return [v2.RandomHorizontalFlip()]
    fill = {tv_tensors.Image: [255 * value for value in mean], tv_tensors.Mask: IGNORE}
    return [
        v2.RandomResize(math.ceil(size / 2), 2 * size + 1, InterpolationMode.BICUBIC, antialias=True),
        v2.RandomCrop(size, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(),
    ]
