"""Makes one 16-bit mask an image out of the published one mask a nucleus."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from minica.data.pictures import read_levels, read_picture, refuse


def convert(raw: Path, target: Path) -> None:
    """``raw/ID/images/ID.png`` and ``raw/ID/masks/*.png`` -> ``images/ID.png``, ``labels/ID.png`` and ``index.csv``.

    Labels: 0 is background, k the k-th mask by file name.  Where masks overlap, the smaller nucleus is on top.  An image counts
    as stained if it has any colour: fluorescence images are grey.

    Raises:
        ValueError: naming the files that do not decode, or are not as large as their image.
    """
    for folder in ("images", "labels"):
        (target / folder).mkdir(parents=True)
    rows, problems = [], []
    for folder in tqdm(sorted(path for path in raw.iterdir() if path.is_dir()), "nuclei", leave=False, delay=5):
        images, masks = sorted((folder / "images").glob("*.png")), sorted((folder / "masks").glob("*.png"))
        if not images or not masks:
            continue  # verify.py counts
        try:
            picture, _ = read_picture(images[0])
            pixels, labels = np.asarray(picture), np.zeros((picture.height, picture.width), np.uint16)
            nuclei = [_mask(path, labels.shape) for path in masks]
        except ValueError as error:
            problems.append(str(error))
            continue
        for k in sorted(range(len(nuclei)), key=lambda k: -nuclei[k].sum()):
            labels[nuclei[k]] = k + 1
        picture.save(target / "images" / f"{folder.name}.png")
        Image.fromarray(labels).save(target / "labels" / f"{folder.name}.png")
        stained = int((pixels != pixels[..., :1]).any())
        rows.append((folder.name, picture.width, picture.height, len(np.unique(labels[labels > 0])), stained))
    refuse(problems, raw, "Get the archive again.")
    with (target / "index.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "width", "height", "nuclei", "stained"), *rows])


def _mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        levels = read_levels(path)
    except ValueError:
        levels = np.asarray(read_picture(path)[0].convert("L"))  # a few were corrected in programs that save colour
    if levels.shape != shape:
        raise ValueError(f"{path}: it has {levels.shape[1]} x {levels.shape[0]} pixels, but its image {shape[1]} x {shape[0]}")
    return levels > levels.max() / 2 if levels.any() else levels > 0
