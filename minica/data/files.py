"""Images that stay on disk, and readers of the lists that describe them, which name what is wrong with a list."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .images import Collection, decode


class Entry(NamedTuple):
    """One line of a list."""

    image: str  # its path below the folder of all images, with forward slashes
    label: int  # from 0
    origin: str  # the list and the line that say so


@dataclass(eq=False)
class Files(Sequence):
    """Image files that are decoded whenever they are taken: ``files[i]`` is uint8 (1 | 3, H, W); slices are Files.

    Arrays of text and no lists, so that the workers of a loader share one copy of them.

    Attributes:
        root: the folder of all images.
        names: (N,) paths below it.
        origins: (N,) where each is listed: what an image that does not decode is reported with.
        size, resize: as for :func:`~minica.data.images.decode`; without a size pictures come as large as they are.
    """

    root: Path
    names: np.ndarray
    origins: np.ndarray
    size: int | None = None
    resize: str = "squash"

    @property
    def listing(self) -> Tensor:
        """The names, as bytes: what tells one set of files from another."""
        return torch.frombuffer(bytearray("\n".join(self.names).encode()), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int | slice | np.ndarray) -> Tensor | Files:
        if not isinstance(i, Integral):
            return Files(self.root, self.names[i], self.origins[i], self.size, self.resize)
        try:
            return decode(self.root / str(self.names[i]), self.size, self.resize)
        except ValueError as error:
            raise ValueError(f"{self.origins[i]}: {error}") from error


def data_folder(root: str | os.PathLike | None) -> Path:
    """``root``, else ``$MINICA_DATA``: the folder of all benchmarks.  It is only read; a class may share it.

    Raises:
        ValueError: if neither is given, or it is no folder.
    """
    given = root or os.environ.get("MINICA_DATA")
    if not given:
        raise ValueError(
            "where are the benchmarks? Give root=, or set the environment variable MINICA_DATA, to the folder that holds "
            "vtab-1k, fgvc or few-shot; data_scripts/prepare.py fills one."
        )
    if not Path(given).expanduser().is_dir():
        raise ValueError(f"{given} is no folder; give the one that holds vtab-1k, fgvc or few-shot (root= or MINICA_DATA).")
    return Path(given).expanduser()


def find_folder(root: Path, family: str, folders: Sequence[str], name: str) -> Path:
    """The first of ``root/family/<folder>`` and ``root/<folder>`` that exists.

    Raises:
        ValueError: naming what was looked for and how to prepare it.
    """
    for place in (root / family, root):
        for folder in folders:
            if (place / folder).is_dir():
                return place / folder
    raise ValueError(
        f"{name} is not in {root}: there is none of the folders {', '.join(folders)}, neither in {family} nor beside it. "
        f"Prepare it: python data_scripts/prepare.py {name} --root {root}"
    )


# ---------------------------------------------------------------------------------------------------------------- lists


def read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")  # to open a named pipe would be to wait for ever
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}); it should be a text file in UTF-8. Get it again.") from error


def read_list(path: Path) -> list[Entry]:
    """Lines of ``<image> <label>``, cut at the last blank, as NOAH writes them; empty lines are passed over.

    Raises:
        ValueError: naming file and line.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            image, _, label = line.strip().rpartition(" ")
            entries.append(Entry(image.strip(), whole(label, f"{path}:{number}"), f"{path}:{number}"))
    if not entries:
        raise ValueError(f"{path} is empty; get it again.")
    return entries


def read_json(path: Path) -> object:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: no JSON ({error.msg}); get the file again.") from error
    except RecursionError as error:
        raise ValueError(f"{path}: JSON nested too deep to be a list of images; get the file again.") from error
    except ValueError as error:  # read_text's own, or a number of thousands of digits
        raise error if str(path) in str(error) else ValueError(f"{path}: no JSON ({error}); get the file again.") from error


def read_mat(path: Path, *variables: str) -> list[np.ndarray]:
    """These variables of a MATLAB file, each one-dimensional; cells and structures as Python objects."""
    try:
        import scipy.io
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path.name} is a MATLAB file; to read it: pip install scipy", name="scipy") from error
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        found = scipy.io.loadmat(path, squeeze_me=True)
        columns = [np.atleast_1d(found[name]) for name in variables]
        if wrong := [name for name, column in zip(variables, columns, strict=True) if column.ndim != 1]:
            raise ValueError(f"{wrong[0]} has more than one dimension")
        return columns
    except (Exception, RecursionError, MemoryError) as error:  # a damaged file makes it raise anything, such as zlib.error
        raise ValueError(f"cannot read {', '.join(variables)} from {path} ({error!r}); get the file again.") from error


def whole(text: str, origin: str) -> int:
    """The number of a class."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{origin}: expected an image and the number of its class, got {text!r} as the number.") from None


# --------------------------------------------------------------------------------------------------------------- checks


def spelled(name: str) -> str:
    """The one spelling of a path below a folder: ``./images//0.jpg`` is ``images/0.jpg``."""
    return str(PurePosixPath(name))


def leaves(name: str) -> bool:
    """Whether a path with forward slashes leads out of the folder it is meant for, on any system."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or bool(PureWindowsPath(name).drive)


def listed(
    name: str,
    places: Iterable[Path],
    lists: Mapping[str, list[Entry]],
    classes: Sequence[str],
    source: str,
    absent: bool = False,
) -> Collection:
    """Check the lists of all splits against each other and against the disk.

    Args:
        places: where the images may lie; the first place that has an image of ``lists`` is taken.
        lists: the entries of "train", "val" and "test", and of "final" if that is not train and val together.
        classes: their names; labels are positions in it.
        absent: whether classes may lack training images, as in VTAB-1k's thousand.

    Raises:
        ValueError: naming the list and the line: a label out of range, an image that does not exist or lies outside the
            folder, one image with two labels or in two of train, val and test, a class without training images.
    """
    places = list(places)
    named = [entry for entries in lists.values() for entry in entries]
    root = next(
        (place for place in places for entry in named[:: len(named) // 50 + 1] if (place / entry.image).is_file()), places[0]
    )
    present: dict[Path, set[str]] = {}
    position: dict[str, int] = {}
    said: list[Entry] = []
    splits: dict[str, np.ndarray] = {}
    for split, entries in lists.items():
        rows = {}  # a line said twice counts once; NOAH's 1-shot lists of the Pets do that
        for entry in entries:
            if not 0 <= entry.label < len(classes):
                raise ValueError(
                    f"{entry.origin}: label {entry.label} is out of range; {name} has {len(classes)} classes, numbered from 0."
                )
            if leaves(entry.image):
                raise ValueError(f"{entry.origin}: {entry.image} leaves the folder of images {root}; correct the list.")
            entry = entry._replace(image=spelled(entry.image))
            if entry.image not in position:
                path = PurePosixPath(entry.image)
                folder = root / path.parent
                if folder not in present:
                    present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
                if path.name not in present[folder]:
                    raise ValueError(f"{entry.origin}: {entry.image} does not exist in {root}; get the images again.")
                position[entry.image] = len(said)
                said.append(entry)
            first = said[position[entry.image]]
            if first.label != entry.label:
                raise ValueError(
                    f"{entry.origin}: {entry.image} has label {entry.label} here and {first.label} in {first.origin}; "
                    "correct the lists."
                )
            rows[position[entry.image]] = None
        splits[split] = np.array(list(rows), int)
    splits.setdefault("final", np.concatenate([splits["train"], splits["val"]]))
    for split, other in (("train", "val"), ("train", "test"), ("val", "test"), ("final", "test")):
        for i in np.intersect1d(splits[split], splits[other]):
            raise ValueError(f"{said[i].origin}: {said[i].image} is in {split} and in {other}; correct the lists.")
    labels = np.array([entry.label for entry in said], np.int64)
    if not absent:
        trained = set(labels[splits["train"]])
        for i in np.concatenate([splits["val"], splits["test"]]):
            if labels[i] not in trained:
                raise ValueError(
                    f"{said[i].origin}: no training image has its class {labels[i]} ({classes[labels[i]]}); complete the lists."
                )
    names, origins = (np.array([entry[column] for entry in said], str) for column in (0, 2))
    return Collection(
        name=name,
        classes=tuple(classes),
        images=Files(root, names, origins),
        labels=labels,
        splits=splits,
        strata=labels,
        augment="paper",
        source=source,
        licence="its publisher's; see DATA.md",
    )
