"""The data that come with a pip install: real photographs of solar cells, and shapes that the package draws."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .images import Collection, cached, decode_all, digest, resized, stratified_split, to_tensor

# ---------------------------------------------------------------------------------------------------------- solar cells

SOLAR_CELL_TASKS = {
    "defect": ("functional", "defective"),
    "level": ("functional", "functional, unsure", "defective, unsure", "defective"),
    "type": ("mono", "poly"),
    "kind": ("mono, functional", "mono, defective", "poly, functional", "poly, defective"),
}


def solar_cell_files() -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The photographs' files, the level of each (N,), 0 to 3 for p = 0, 1/3, 2/3 and 1, and whether it is polycrystalline (N,).

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")  # finds it without running any of its code
    if spec is None:
        raise ModuleNotFoundError(
            "the solar cells are in a package that is not installed: pip install elpv-dataset", name="elpv_dataset"
        )
    root = Path(spec.submodule_search_locations[0]) / "data"
    files, probability, kind = zip(*map(str.split, (root / "labels.csv").read_text().splitlines()), strict=True)
    level = np.rint(np.array(probability, float) * 3).astype(np.int64)  # p is printed as 0.3333333333333333
    return [root / file for file in files], level, np.array([SOLAR_CELL_TASKS["type"].index(name) for name in kind])


def solar_cells(task: str | None, size: int, resize: str, seed: int) -> Collection:
    """2,624 electroluminescence photographs of solar cells, 300 x 300 grey, from the package ``elpv-dataset``.

    An expert gave each cell a defect probability p.  Tasks: ``"defect"``, p > 0.5 (the default); ``"level"``, the four
    values of p (0, 1/3, 2/3, 1); ``"type"``, mono- or polycrystalline silicon; ``"kind"``, type and defect together, without
    the 401 cells that the expert was unsure of (p neither 0 nor 1): 1,334 / 334 / 555 images.

    The published protocol (Deitsch et al. 2019) holds 25 % out for testing, stratified by p and type; a fifth of the
    rest is for validation, likewise: 1,574 / 394 / 656 images, the same for every task, size and ``seed``.  The cells
    come from 44 modules, but which from which is not published, so siblings on both sides cannot be excluded.

    Raises:
        ModuleNotFoundError: if the package is not installed.
        ValueError: for an unknown task.
    """
    task = _known_task("solar-cells", task, SOLAR_CELL_TASKS)
    files, level, poly = solar_cell_files()
    strata, random = 2 * level + poly, np.random.RandomState(0)
    train, test = stratified_split(np.arange(len(files)), strata, round(0.25 * len(files)), random)
    train, val = stratified_split(train, strata, round(0.2 * len(train)), random)
    splits = {"train": train, "val": val, "test": test}
    if task == "kind":
        splits = {split: part[level[part] % 3 == 0] for split, part in splits.items()}
    labels = {"defect": level > 1, "level": level, "type": poly, "kind": 2 * poly + (level > 1)}
    return Collection(
        name=f"solar-cells/{task}",
        classes=SOLAR_CELL_TASKS[task],
        images=decode_all("solar-cells", files[0].parents[1], files, size, resize)[0],
        labels=labels[task].astype(np.int64),
        splits=splits,
        strata=strata,
        augment="flips",
        source="elpv-dataset, https://github.com/zae-bayern/elpv-dataset",
        licence="CC BY-NC-SA 4.0",
        citation="Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in "
        "Electroluminescence Imagery, EU PVSEC 2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15; "
        "Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence "
        "images, Solar Energy 185:455-468, 2019, doi:10.1016/j.solener.2019.02.067; "
        "Deitsch et al., Segmentation of photovoltaic module cells in uncalibrated electroluminescence images, "
        "Machine Vision and Applications 32(4), 2021, doi:10.1007/s00138-021-01191-9",
    )


# --------------------------------------------------------------------------------------------------------------- shapes

SHAPE_TASKS = {
    "position": tuple(f"x {2 * i}-{2 * i + 1}" for i in range(16)),
    "orientation": tuple(f"step {math.ceil(2.5 * i)}-{math.ceil(2.5 * i + 2.5) - 1}" for i in range(16)),
    "count": tuple(f"{number} shapes" for number in range(3, 11)),
}
_SIDE, _FINER = 64, 8  # pixels of a drawn picture, and how many times finer it is drawn before it is averaged
_REACH = 16.0  # no shape of scale 1 goes further from its centre, in pixels
_LATENTS = (3, 6, 40, 32, 32)  # shape, scale, orientation, x, y: dSprites' factors of variation, in its order


def shapes(task: str | None, size: int, resize: str, seed: int, images: tuple[int, int, int] = (800, 200, 2000)) -> Collection:
    """White squares, ellipses and hearts on black, drawn by this package in the manner of dSprites and CLEVR.

    ``"position"`` and ``"orientation"`` (the same pictures) are dSprites-like: one shape a picture; 3 shapes, 6 scales,
    40 orientations, 32 x 32 places at 64 x 64 pixels, then resized.  Sizes and outlines are our own and edges are
    smooth, so results do not compare with those on dSprites.  VTAB's 16 classes: x position floor(x / 2) (the default
    task), orientation floor(k / 2.5).  As in dSprites the orientations k go from 0 to 360 degrees *inclusive*: the
    first and the last are one picture with two labels, so that no answer is right in more than 97.5 % of all cases.

    ``"count"`` is a drawn analogue of CLEVR's: 3 to 10 smaller shapes that do not touch, eight classes.

    ``images`` are the sizes of train, val and test; 800 and 200 are VTAB-1k's.  No two pictures have the same latents.

    Raises:
        ValueError: for an unknown task.
    """
    task = _known_task("shapes", task, SHAPE_TASKS)
    random, total = np.random.RandomState(seed), sum(images)
    if task == "count":
        labels = random.randint(len(SHAPE_TASKS["count"]), size=total)
        scenes = (_scene(label + 3, random) for label in labels)
    else:
        kind, scale, turn, x, y = np.unravel_index(random.permutation(np.prod(_LATENTS))[:total], _LATENTS)
        labels = x // 2 if task == "position" else 2 * turn // 5
        angle, zoom = turn % 39 * 2 * np.pi / 39, np.linspace(0.5, 1, 6)[scale]
        scenes = ([shape] for shape in zip(kind, zoom, angle, x + 16.5, y + 16.5, strict=True))

    def draw() -> dict[str, Tensor]:
        return {"images": torch.stack([to_tensor(resized(_draw(scene), size)) for scene in scenes])}

    pictures = "many" if task == "count" else "one"
    train, val, test = np.split(np.arange(total), np.cumsum(images)[:2])
    return Collection(
        name=f"shapes/{task}",
        classes=SHAPE_TASKS[task],
        images=cached(f"shapes-{pictures}-{seed}-{total}-{size}", digest(__file__), draw)["images"],
        labels=labels.astype(np.int64),
        splits={"train": train, "val": val, "test": test},
        strata=labels,
        augment="none",
        source="drawn by minica: dSprites-like, not dSprites" if task != "count" else "drawn by minica",
        licence="Apache-2.0",
    )


def _outlines() -> list[np.ndarray]:
    """Square, ellipse and heart as polygons (corners, 2) at scale 1, in pixels around their centres of area."""
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    heart = 16 * np.sin(t) ** 3, 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t) - 13 * np.cos(t)
    return [
        11 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
        np.stack([15 * np.cos(t), 8 * np.sin(t)], 1),
        26 / 32 * (np.stack(heart, 1) + (0, 5 / 6)),
    ]


_OUTLINES = _outlines()


def _draw(scene: list[tuple]) -> Image.Image:
    """Draw (kind, scale, angle, x, y) of each shape; a pixel is as bright as it is covered."""
    fine = Image.new("L", (_SIDE * _FINER, _SIDE * _FINER))
    pen = ImageDraw.Draw(fine)
    for kind, scale, angle, x, y in scene:
        turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        corners = scale * _OUTLINES[kind] @ turn + (x, y)
        pen.polygon((corners * _FINER).ravel().tolist(), fill=255)
    return fine.reduce(_FINER)


def _scene(number: int, random: np.random.RandomState) -> list[tuple]:
    """``number`` random shapes at least two pixels apart; their sizes do not give away how many there are."""
    kinds, angles = random.randint(3, size=number), random.uniform(0, 2 * np.pi, number)
    scales = random.uniform(0.25, 0.4, number)
    reach = _REACH * scales
    places: list[np.ndarray] = []
    while len(places) < number:
        for _ in range(100):
            i = len(places)
            place = random.uniform(reach[i], _SIDE - reach[i], 2)
            if all(np.hypot(*(place - other)) >= reach[i] + reach[j] + 2 for j, other in enumerate(places)):
                places.append(place)
                break
        else:
            places = []  # too crowded to go on: place them all anew
    return [(*shape, *place) for *shape, place in zip(kinds, scales, angles, places, strict=True)]


def _known_task(name: str, task: str | None, tasks: dict[str, tuple[str, ...]]) -> str:
    if task is not None and task not in tasks:
        raise ValueError(f"unknown task {task!r} of {name}; choose one of {', '.join(tasks)}.")
    return task or next(iter(tasks))
