"""Reads a folder of class folders, as users of torchvision's ImageFolder lay it out, split or not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from .images import Collection, decode_all, stratified_split

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def image_folder(root: Path, size: int, resize: str, seed: int) -> Collection:
    """``root/<class>/*.jpg`` or ``root/{train,val,test}/<class>/*.jpg``; ``valid`` and ``validation`` mean ``val`` too.

    Classes are the names of the class folders, sorted; images may lie in sub-folders of them.  Hidden files and folders
    are ignored, links to folders inside a class are not followed.  Without split folders each class is split 60/20/20
    by ``seed``.  A split that is missing is cut from training; but of ``train`` and ``val`` alone, ``val`` is the test
    set, as most such folders mean it.

    Raises:
        ValueError: if ``root`` is no folder; if it has fewer than two classes, or a class with too few images to split;
            if a split is empty or has a class that training lacks; if an image does not decode.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the folder that holds one folder of images for each class.")
    found = {split: _class_files(folder) for split, folder in _split_folders(root).items()}
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    missing = [split for split in ("test", "val") if split not in found]
    classes = tuple(found["train"])
    _check(root, found, classes, needed=1 + len(missing))

    paths: list[Path] = []
    labels: list[int] = []
    splits = {}
    for split, files in found.items():
        start = len(paths)
        for label, name in enumerate(classes):
            paths += files.get(name, [])
            labels += [label] * len(files.get(name, []))
        splits[split] = np.arange(start, len(paths))
    strata, random, fifth = np.array(labels), np.random.RandomState(seed), len(splits["train"]) / 5
    for split in missing:
        count = max(round(fifth), len(classes))
        splits["train"], splits[split] = stratified_split(splits["train"], strata, count, random)

    name = root.resolve().name
    return Collection(
        name=name,
        classes=classes,
        images=decode_all(name, root, paths, size, resize),
        labels=strata,
        splits=splits,
        strata=strata,
        augment="crop",
        source=f"image folder {name}",  # without its path, which would say more about a machine than about the data
        licence="not stated",
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; the whole as ``train`` if there are none."""
    # Without folders in it, it is a class that happens to be named "train", or a test set without labels.
    split_folders = [folder for folder in _folders(root) if folder.name.lower() in _SPLITS and _folders(folder)]
    found = {_SPLITS[folder.name.lower()]: folder for folder in split_folders}
    if found and "train" not in found:
        raise ValueError(f"{root} has a {' and a '.join(found)} folder, but no train folder like it; add one.")
    return found or {"train": root}


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    # A link back to the folder itself, or to one that it lies in, is no class.
    classes = [entry for entry in _folders(folder) if not folder.resolve().is_relative_to(entry.resolve())]
    if not classes:
        lost = sum(_is_image(entry.name) for entry in folder.iterdir())
        raise ValueError(
            f"{folder} has no class folders{f', but {lost} images' if lost else ''}; "
            "put the images of each class in a folder of its own, named like the class."
        )
    files: dict[str, list[Path]] = {}
    for entry in classes:
        files[entry.name] = []
        for place, folders, names in os.walk(entry):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files[entry.name] += [Path(place, name) for name in names if _is_image(name)]
        files[entry.name].sort()
    return files


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _check(root: Path, found: dict[str, dict[str, list[Path]]], classes: tuple[str, ...], needed: int) -> None:
    add = f"Add images ({', '.join(IMG_EXTENSIONS)}), or remove the folder."
    if len(classes) < 2:
        raise ValueError(f"{root} has one class only, {classes[0]!r}; add a folder of images of another class.")
    for name, files in found["train"].items():
        if len(files) < needed:
            least = f"{needed} are needed to split them" if needed > 1 else "at least 1 is needed"
            raise ValueError(f"class {name!r} of {root} has {len(files)} training images, but {least}. {add}")
    for split, files in found.items():
        unknown = [name for name in files if files[name] and name not in classes]
        if unknown:
            raise ValueError(
                f"{root} has {split} images of classes without training images: {', '.join(unknown)}. "
                "Add training images of them, or remove them."
            )
        if not any(files.values()):
            raise ValueError(f"{root} has class folders for {split}, but no image in them. {add}")
