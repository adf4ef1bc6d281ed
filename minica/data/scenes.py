"""Drawn scenes of coloured shapes with exact boxes and masks, in the layouts of COCO and of ADE20K."""

from __future__ import annotations

import io
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw

from .boxes import instance_boxes
from .images import digest, home

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
IMAGES = {"train": 400, "val": 100, "test": 200}
SIDES = (96, 112, 128)  # pixels; width and height are drawn from these
NUMBERS = (0.04, 0.21, 0.25, 0.25, 0.15, 0.10)  # how likely 0, 1, 2, ... shapes are
RADII = (9.0, 30.0)  # of the circle around a shape, in pixels
VISIBLE = 0.4  # the least part of a shape that others leave uncovered
_FINER = 4  # times finer than pixels a shape is drawn before it is averaged
_ADE = {"train": "training", "val": "validation", "test": "testing"}


def draw_scenes(folder: Path, seed: int = 0, images: dict[str, int] = IMAGES) -> None:
    """Write the same scenes twice: ``folder/coco`` in COCO's layout, ``folder/ade20k`` in ADE20K's.

    Each picture has up to five shapes of six classes over smoothed noise, JPEG in RGB.  Colour, size and turn say nothing of
    the class.  A later shape covers earlier ones, of each of which at least 40 % stay visible; boxes, masks and areas are
    those of the visible pixels, a pixel being the shape's that covers at least half of it.  Some pictures have no shape.

    COCO: ``annotations/instances_{train,val,test}2017.json`` with a run-length segmentation for each object, and
    ``{train,val,test}2017/*.jpg``.  ADE20K: ``images/{training,validation,testing}/*.jpg``, ``annotations/.../*.png`` and
    ``objectInfo150.txt``; class 1 is the background, the shapes follow.

    Args:
        seed: draws everything; a picture depends on it, its split and its number alone.
        images: the number of pictures in each split.
    """
    coco, ade = folder / "coco", folder / "ade20k"
    (coco / "annotations").mkdir(parents=True)
    categories = [{"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(SHAPES, 1)]
    number = 0
    for part, (split, count) in enumerate(images.items()):
        places = coco / f"{split}2017", ade / "images" / _ADE[split], ade / "annotations" / _ADE[split]
        for place in places:
            place.mkdir(parents=True)
        document: dict = {"info": {"description": "drawn by minica"}, "licenses": [], "images": [], "annotations": []}
        for i in range(count):
            number += 1
            picture, numbers, kinds = _scene(np.random.RandomState([seed, part, i]))
            jpeg = io.BytesIO()
            Image.fromarray(picture).save(jpeg, "JPEG", quality=92)
            name = f"{number:012}.jpg"
            (places[0] / name).write_bytes(jpeg.getvalue())
            (places[1] / f"ADE_{split}_{i + 1:08}.jpg").write_bytes(jpeg.getvalue())
            classes = np.array([1, *(kind + 2 for kind in kinds)], np.uint8)  # 0 is what has no class in ADE20K
            Image.fromarray(classes[numbers]).save(places[2] / f"ADE_{split}_{i + 1:08}.png")
            height, width = numbers.shape
            document["images"].append({"id": number, "file_name": name, "width": width, "height": height})
            for which, (x1, y1, x2, y2, *_, area) in zip(
                np.unique(numbers[numbers > 0]), instance_boxes(numbers).tolist(), strict=True
            ):
                document["annotations"].append(
                    {
                        "id": 100 * number + int(which),
                        "image_id": number,
                        "category_id": kinds[which - 1] + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": {"size": [height, width], "counts": _run_lengths(numbers == which)},
                    }
                )
        path = coco / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(document | {"categories": categories}), encoding="utf-8")
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0\t0\t0\t1\tbackground"]
    lines += [f"{k}\t0\t0\t0\t0\t{name}" for k, name in enumerate(SHAPES, 2)]
    (ade / "objectInfo150.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def cached_scenes(seed: int) -> Path:
    """The folder of the scenes of ``seed`` below ``$MINICA_HOME``; drawn there if there is none.

    The folder's name has the version of this file and of Pillow, so that no scenes stay from other code.  They are drawn
    beside their place and renamed, so that they are whole or not there, whatever other processes do.

    Raises:
        ValueError: if it cannot be written.
    """
    place = home() / "scenes" / f"{digest(__file__)[:12]}-{PIL.__version__}-{seed}"
    if not place.is_dir():
        unfinished = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            unfinished.mkdir(parents=True)
            draw_scenes(unfinished, seed)
            unfinished.rename(place)
        except OSError as error:
            if not place.is_dir():  # else another process was first
                raise ValueError(
                    f"cannot draw the scenes into {place} ({error}). Set the environment variable MINICA_HOME to a folder that "
                    "you may write to."
                ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """Corners (N, 2) on the unit circle, or in turn on it and on one of radius ``inner``."""
    number = corners if inner == 1.0 else 2 * corners
    angle = 2 * np.pi * np.arange(number) / number + turn
    radius = np.where(np.arange(number) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _cross(arm: float = 0.3) -> np.ndarray:
    """A plus of which the arms are 2 ``arm`` wide, in the unit circle."""
    end = np.sqrt(1 - arm**2)
    quarter = np.array([(end, -arm), (end, arm), (arm, arm)])
    turns = [np.array([(np.cos(a), np.sin(a)), (-np.sin(a), np.cos(a))]) for a in np.pi / 2 * np.arange(4)]
    return np.concatenate([quarter @ turn for turn in turns])


# The outline of each shape in the unit circle, and that of its hole.
_OUTLINES = {
    "disc": (_polygon(60), None),
    "square": (_polygon(4), None),
    "triangle": (_polygon(3), None),
    "star": (_polygon(5, inner=0.45), None),
    "ring": (_polygon(60), 0.55 * _polygon(60)),
    "cross": (_cross(), None),
}


def _scene(random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Pixels uint8 (H, W, 3), the number of the shape that each pixel shows (H, W) from 1, and the classes of the shapes."""
    width, height = (int(side) for side in random.choice(SIDES, 2))
    canvas, numbers = _noise(width, height, random), np.zeros((height, width), int)
    kinds: list[int] = []
    whole: list[int] = []  # pixels of each shape when it was drawn,
    left: list[int] = []  # and those that are still to be seen
    for _ in range(random.choice(len(NUMBERS), p=NUMBERS)):
        for _ in range(20):  # places tried
            kind, radius, turn = random.randint(len(SHAPES)), random.uniform(*RADII), random.uniform(0, 2 * np.pi)
            x, y = random.uniform(0.6 * radius, (width, height) - 0.6 * np.array(radius))
            place, cover = _cover(SHAPES[kind], radius, turn, x, y, width, height)
            mine = cover >= 0.5
            hidden = np.bincount(numbers[place][mine], minlength=len(kinds) + 1)[1:]
            if mine.any() and all(np.array(left) - hidden >= VISIBLE * np.array(whole)):
                break
        else:
            continue
        kinds.append(int(kind))
        whole.append(int(mine.sum()))
        left = [*(np.array(left, int) - hidden), whole[-1]]
        numbers[place][mine] = len(kinds)
        canvas[place] += cover[..., None] * (_paint(canvas[place][mine].mean(0), *mine.shape, random) - canvas[place])
    canvas += random.normal(0, 4, canvas.shape)
    return canvas.clip(0, 255).round().astype(np.uint8), numbers, kinds


def _cover(
    shape: str, radius: float, turn: float, x: float, y: float, width: int, height: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The rows and columns around a shape, and how much of each of their pixels it covers, from 0 to 1."""
    left, top = max(0, int(x - radius)), max(0, int(y - radius))
    right, bottom = min(width, int(x + radius) + 2), min(height, int(y + radius) + 2)
    fine = Image.new("L", ((right - left) * _FINER, (bottom - top) * _FINER))
    pen, rotate = ImageDraw.Draw(fine), np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    for outline, fill in zip(_OUTLINES[shape], (255, 0), strict=True):
        if outline is not None:
            pen.polygon((((radius * outline @ rotate) + (x - left, y - top)) * _FINER).ravel().tolist(), fill=fill)
    return (slice(top, bottom), slice(left, right)), np.asarray(fine.reduce(_FINER), np.float32) / 255


def _paint(behind: np.ndarray, height: int, width: int, random: np.random.RandomState) -> np.ndarray:
    """A colour well apart from what is behind, a little lighter towards one side: (H, W, 3)."""
    colour = random.uniform(20, 235, 3)
    while np.abs(colour - behind).sum() < 150:
        colour = random.uniform(20, 235, 3)
    angle, (rows, columns) = random.uniform(0, 2 * np.pi), np.indices((height, width))
    slope = (np.cos(angle) * columns / width + np.sin(angle) * rows / height)[..., None]
    return colour + 30 * slope


def _noise(width: int, height: int, random: np.random.RandomState) -> np.ndarray:
    """Smoothed coloured noise on three scales, float (H, W, 3)."""
    total = np.full((height, width, 3), 128.0)
    for cells, strength in ((3, 70), (9, 30), (28, 18)):
        coarse = random.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), float)
        total += strength * (smooth / 127.5 - 1)
    return total


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's counts of zeros, ones, zeros, ... down the columns of a mask (H, W)."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int)])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)), [mask.size]])
    return np.diff(starts).tolist()
