"""Pictures and masks in the pixel frame of their files, and one error for all that is wrong in a set of them.

Boxes and masks are drawn on pixels as a file stores them.  So a rotation that a photograph notes in EXIF is *not* carried
out here, as in COCO's own tools; :func:`minica.data.decode`, which reads photographs that only have a class, does it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from .folder import SPLITS
from .images import eight_bits, has_image_ending, opened, stratified_split, why

SHOWN = 5  # problems that an error names; the rest are counted
ORIENTATION = 0x0112  # EXIF's
Item, Result = TypeVar("Item"), TypeVar("Result")


# --------------------------------------------------------------------------------------------------------------- problems


def refuse(problems: Sequence[str], where: str | os.PathLike, remedy: str) -> None:
    """Raise one ValueError that names the first five problems and counts all; nothing happens if there are none."""
    if problems:
        lines = [*problems[:SHOWN], *([f"... and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else [])]
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise ValueError(f"{os.fspath(where)}: {count}:\n  " + "\n  ".join(lines) + f"\n{remedy}")


def each(what: str, function: Callable[[Item], Result], items: Sequence[Item]) -> tuple[list[Result], list[str]]:
    """``function`` of every item, in threads, and what it said of those for which it raised a ValueError."""

    def guarded(item: Item) -> Result | ValueError:
        try:
            return function(item)
        except ValueError as error:
            return error

    with ThreadPoolExecutor() as pool:  # threads do: Pillow decodes and resizes outside the interpreter's lock
        results = list(tqdm(pool.map(guarded, items), what, len(items), leave=False, delay=10))
    return [r for r in results if not isinstance(r, ValueError)], [str(r) for r in results if isinstance(r, ValueError)]


class Remarks:
    """What was put right while a set was read: counted, and said in one warning for each kind."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        self.found.setdefault(kind, []).append(example)

    def warn(self, where: str | os.PathLike) -> None:
        for kind, examples in self.found.items():
            warnings.warn(f"{os.fspath(where)}: {len(examples):,} {kind}; the first: {examples[0]}.", stacklevel=4)


# ------------------------------------------------------------------------------------------------------------------ files


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels, from the head of the file."""
    return _opened(path, lambda file: file.size)


def read_picture(path: str | os.PathLike, size: tuple[int, int] | None = None) -> tuple[Image.Image, bool]:
    """The picture in 8-bit RGB as it is stored, and whether it notes a rotation in EXIF, which is not carried out.

    Args:
        size: width and height that its annotation states; None: whatever it has.

    Raises:
        ValueError: naming the file: it is missing, truncated, of no known kind, larger than
            :data:`~minica.data.images.LARGEST` pixels, or of another size than stated.
    """

    def read(file: Image.Image) -> tuple[Image.Image, bool]:
        # Of a TIFF file Pillow carries it out whenever it reads, and gives its size accordingly.
        turned = file.format != "TIFF" and file.getexif().get(ORIENTATION, 1) in range(2, 9)
        if size is not None and file.size != tuple(size):
            hint = ""
            if turned:
                hint = (
                    ". It notes a rotation in EXIF, which is not carried out, so boxes and masks must be those of the file as "
                    "stored; where they were drawn on the upright picture, save it upright"
                )
            raise ValueError(f"it has {file.width} x {file.height} pixels, but {size[0]} x {size[1]} are stated{hint}")
        return eight_bits(file).convert("RGB"), turned

    return _opened(path, read)


def read_levels(path: str | os.PathLike) -> np.ndarray:
    """The values of a mask, int32 (H, W): grey levels of 1, 8 or 16 bits, or the indices of a palette.

    Raises:
        ValueError: naming the file: it does not decode, or has colours that are no palette.
    """

    def read(file: Image.Image) -> np.ndarray:
        if file.mode not in ("1", "L", "P", "RGB") and file.mode[0] != "I":
            raise ValueError(f"its pixels are of mode {file.mode}, but a mask has grey levels or a palette")
        levels = np.asarray(file).astype(np.int32)
        if levels.ndim == 3:
            if (levels != levels[..., :1]).any():
                raise ValueError("it has colours, but a mask has grey levels or a palette whose indices are the classes")
            levels = levels[..., 0]
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"it has values from {levels.min()} to {levels.max()}, but 16 bits are the most")
        return levels

    return _opened(path, read)


def _opened(path: str | os.PathLike, read: Callable[[Image.Image], Result]) -> Result:
    try:
        with opened(path) as file:
            return read(file)
    except FileNotFoundError:
        raise ValueError(f"{os.fspath(path)}: there is no such file") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f"{os.fspath(path)}: {why(path, error)}") from error


def by_stem(folder: Path) -> dict[str, Path]:
    """Name without ending -> image file of ``folder``, sorted; endings in upper or lower case.

    Raises:
        ValueError: if two files differ in their endings only.
    """
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if has_image_ending(path.name):
            if path.stem in found:
                problems.append(f"{found[path.stem].name} and {path.name} differ in their endings only")
            found[path.stem] = path
    refuse(problems, folder, "Which one is meant? Remove or rename the other.")
    return found


def split_folders(folder: Path) -> dict[str, Path]:
    """``{train, val, test} -> folder``, by the names in :data:`SPLITS`, which may have a year behind them (``train2017``)."""
    found = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = entry.name.lower().rstrip("0123456789")
        if entry.is_dir() and name in SPLITS:
            found.setdefault(SPLITS[name], entry)
    return found


# ----------------------------------------------------------------------------------------------------------------- splits


def complete_splits(
    where: Path, found: dict[str, list[Item]], seed: int, strata: Callable[[list[Item]], Iterable] | None = None
) -> dict[str, list[Item]]:
    """Train, val and test out of what there is (``"all"``, or some of the three).

    * All in one, or train alone: 70 / 15 / 15 %, drawn by ``seed``, in the proportions of ``strata``.
    * Train and val alone: val is the test set as well, the same pictures, as COCO and ADE20K are used.  So what is chosen
      by val is not tested by it.
    * Train and test alone: a fifth of train is drawn by ``seed`` for val.

    Raises:
        ValueError: if there is no train, or a split is empty or too small.
    """
    if not any(found.values()):
        raise ValueError(f"{where} has no pictures; add some.")
    for split, items in found.items():
        if not items:
            raise ValueError(f"{where} has a {split} set without pictures; add some, or remove it.")
    whole = found.get("all") or (found.get("train") if set(found) == {"train"} else None)
    if whole is None and "train" not in found:
        raise ValueError(f"{where} has {' and '.join(found)}, but no train set; add one.")
    rest, cut = (whole, {"test": 0.15, "val": 0.15}) if whole else (found["train"], {})
    if not whole and "val" not in found:
        cut = {"val": 0.2} if "test" in found else cut
    if len(rest) < len(cut) + 1:
        raise ValueError(f"{where} has {len(rest)} pictures, but at least {len(cut) + 1} are needed to split them; add some.")
    random, indices, complete = np.random.RandomState(seed), np.arange(len(rest)), dict(found)
    groups = np.zeros(len(rest), int)
    if strata is not None:
        groups = np.unique([str(stratum) for stratum in strata(rest)], return_inverse=True)[1]
    for split, share in cut.items():
        indices, drawn = stratified_split(indices, groups, max(1, round(share * len(rest))), random)
        complete[split] = [rest[i] for i in drawn]
    complete["train"] = [rest[i] for i in indices]
    complete.setdefault("test", complete["val"])
    return {split: complete[split] for split in ("train", "val", "test")}
