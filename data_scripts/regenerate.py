"""Draws VTAB tasks anew from their original data, by the published label rules, not with the published images.

The published thousand are those that come first in TensorFlow Datasets' order, which depends on its version; the order here
is a permutation by seed 0.  Sizes, label rules and the JPEG files are as published; for CLEVR so are the test images.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fetch import Source
from PIL import Image

from minica.data.vtab import REGENERATED

_NORB = "smallnorb-5x{}x9x18x6x2x96x96-{}-{}.mat.gz"
_DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_SETS = {
    "dsprites": (Source(_DSPRITES, f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{_DSPRITES}"),),
    "clevr": (
        Source(
            "CLEVR_v1.0.zip",
            "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
            "md5:b11922020e72d0cd9154779b2d3d07d2",  # address and checksum as in torchvision 0.29
        ),
    ),
    "smallnorb": tuple(
        Source(_NORB.format(*side, kind), f"https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/{_NORB.format(*side, kind)}")
        for side in (("46789", "training"), ("01235", "testing"))
        for kind in ("dat", "info")
    ),
}

# What gzip, zipfile and numpy raise, depending on which bytes are damaged.
_DAMAGED = (OSError, EOFError, KeyError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


def sources(task: str) -> tuple[Source, ...]:
    """The original files of a task."""
    return _SETS[task.partition("_")[0]]


def regenerate(task: str, files: dict[str, Path], folder: Path) -> None:
    """Write one task in NOAH's layout into ``folder``, which exists and is empty.

    Raises:
        ValueError: if an original file is damaged or is not what its name says.
    """
    lists: dict[str, dict[int, int]] = {"train800": {}, "val200": {}, "test": {}}
    for split in (*lists, "train800val200"):
        (folder / "images" / split).mkdir(parents=True)
    for split, number, label, image in TASKS[task](task, [files[source.name] for source in sources(task)]):
        lists[split][number] = label
        places = [(split, number)]
        if split != "test":
            places.append(("train800val200", number + 800 * (split == "val200")))
        for place, i in places:
            image.convert("RGB").save(folder / "images" / place / f"{i:06}.jpg")  # Pillow's default quality, as published
    labels = {split: [found[i] for i in range(len(found))] for split, found in lists.items()}
    labels["train800val200"] = labels["train800"] + labels["val200"]
    for split, column in labels.items():
        lines = [f"images/{split}/{i:06}.jpg {label}\n" for i, label in enumerate(column)]
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / REGENERATED).write_text(
        f"{task}, drawn anew from its original data: the published label rule and sizes, not the published images.\n"
        "Accuracies do not compare with those on VTAB-1k to the last point.\n"
    )


def _chosen(order: np.ndarray, val: int, test: slice | None) -> dict[int, list[tuple[str, int]]]:
    """Position in the original data -> the lists it is in, for train[:800], [val:val + 200] and a slice for testing."""
    chosen = {"train800": order[:800], "val200": order[val : val + 200], "test": order[test] if test else []}
    where: dict[int, list[tuple[str, int]]] = {}
    for split, positions in chosen.items():
        for number, position in enumerate(positions):
            where.setdefault(int(position), []).append((split, number))
    return where


# ------------------------------------------------------------------------------------------------------------- dSprites

_LATENTS = (1, 3, 6, 40, 32, 32)  # colour, shape, scale, orientation, x, y, the last one fastest


def _dsprites(task: str, files: list[Path]) -> Iterator[tuple[str, int, int, Image.Image]]:
    """16 classes: x position floor(k / 2), or orientation floor(k / 2.5)."""
    total = int(np.prod(_LATENTS))
    # 80 % train, 10 % val, 10 % test, as in the published slices of the one set there is.
    where = _chosen(np.random.RandomState(0).permutation(total), total * 8 // 10, slice(total * 9 // 10, None))
    try:
        with zipfile.ZipFile(files[0]) as archive, archive.open("imgs.npy") as pixels:
            if np.lib.format.read_magic(pixels) != (1, 0) or (
                np.lib.format.read_array_header_1_0(pixels) != ((total, 64, 64), False, np.dtype(np.uint8))
            ):
                raise ValueError(f"imgs is not an array of {total:,} x 64 x 64 bytes")
            for position in range(total):  # one by one: all of them are three gigabytes
                picture = pixels.read(64 * 64)
                if position in where:
                    *_, turn, x, _ = np.unravel_index(position, _LATENTS)
                    image = Image.fromarray(np.frombuffer(picture, np.uint8).reshape(64, 64) * np.uint8(255))
                    label = int(x // 2 if task == "dsprites_loc" else 2 * turn // 5)
                    for split, number in where[position]:
                        yield split, number, label, image
    except _DAMAGED as error:
        raise ValueError(f"{files[0]} is not the dSprites archive, or damaged ({error}); get it again.") from error


# ------------------------------------------------------------------------------------------------------------ SmallNORB


def _smallnorb(task: str, files: list[Path]) -> Iterator[tuple[str, int, int, Image.Image]]:
    """18 azimuths in steps of 20 degrees, or 9 elevations; the first of the two cameras.

    200 and 12,150 images of the original test set are for validation and testing.
    """
    for side, (pictures, about) in {"training": files[:2], "testing": files[2:]}.items():
        images, info = _norb(pictures), _norb(about)
        if images.ndim != 4 or len(images) != len(info) or info.shape[1:] != (4,):
            raise ValueError(f"{about} does not describe {pictures}: shapes {info.shape} and {images.shape}; get both again.")
        labels = info[:, 2] // 2 if task == "smallnorb_azi" else info[:, 1]
        order = np.random.RandomState(0).permutation(len(images))
        splits = {"train800": order[:800]} if side == "training" else {"val200": order[:200], "test": order[len(order) // 2 :]}
        for split, positions in splits.items():
            for number, position in enumerate(positions):
                yield split, number, int(labels[position]), Image.fromarray(images[position, 0])


def _norb(path: Path) -> np.ndarray:
    """NORB's matrix format: a magic number, the number of dimensions, at least three sizes, the values; little-endian."""
    try:
        with gzip.open(path) as file:
            kind, ndim = np.frombuffer(file.read(8), "<i4")
            sizes = np.frombuffer(file.read(4 * max(3, int(ndim))), "<i4")[:ndim]
            values = np.frombuffer(file.read(), {507333717: np.uint8, 507333716: "<i4"}[int(kind)])
        return values.reshape(sizes)
    except _DAMAGED as error:
        raise ValueError(f"{path} is not one of SmallNORB's files, or damaged ({error!r}); get it again.") from error


# ---------------------------------------------------------------------------------------------------------------- CLEVR

_DISTANCES = (0, 8, 8.5, 9, 9.5, 10, 100)


def clevr_label(task: str, scene: dict) -> int:
    """The number of objects from 3, or the last threshold below the distance of the nearest one (pixel_coords' third)."""
    if task == "clevr_count":
        return len(scene["objects"]) - 3
    return int(np.searchsorted(_DISTANCES, min(thing["pixel_coords"][2] for thing in scene["objects"]))) - 1


def _clevr(task: str, files: list[Path]) -> Iterator[tuple[str, int, int, Image.Image]]:
    """The test set is the original validation set, whole and in its order: CLEVR's test scenes are not published."""
    archive = files[0]
    try:
        with zipfile.ZipFile(archive) as opened:
            for side in ("train", "val"):
                scenes = json.loads(opened.read(f"CLEVR_v1.0/scenes/CLEVR_{side}_scenes.json"))["scenes"]
                if side == "train":
                    where = _chosen(np.random.RandomState(0).permutation(len(scenes)), len(scenes) * 9 // 10, None)
                else:
                    where = {i: [("test", i)] for i in range(len(scenes))}
                for position, places in where.items():
                    scene = scenes[position]
                    png = opened.read(f"CLEVR_v1.0/images/{side}/{scene['image_filename']}")
                    image = Image.open(io.BytesIO(png))
                    for split, number in places:
                        yield split, number, clevr_label(task, scene), image
    except _DAMAGED as error:
        raise ValueError(f"{archive} is not the CLEVR archive, or damaged ({error}); get it again.") from error


TASKS: dict[str, Callable[[str, list[Path]], Iterator[tuple[str, int, int, Image.Image]]]] = {
    "clevr_count": _clevr,
    "clevr_dist": _clevr,
    "dsprites_loc": _dsprites,
    "dsprites_ori": _dsprites,
    "smallnorb_azi": _smallnorb,
    "smallnorb_ele": _smallnorb,
}
