"""Reads a folder of class folders, as users of torchvision's ImageFolder lay it out, split or not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .images import Collection, decode_all, endings, has_image_ending, stratified_split, unread

# What the folder of a split is called, in any case.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLITS |= {"testing": "test"}


def image_folder(root: Path, size: int, resize: str, seed: int, skip_broken: bool = False) -> Collection:
    """``root/<class>/*.jpg`` or ``root/{train,val,test}/<class>/*.jpg``; :data:`SPLITS` has the names.

    Classes are the names of the class folders, sorted; images may lie in sub-folders of them.  Hidden files and folders
    are ignored, links to folders inside a class are not followed.  Without split folders each class is split 60/20/20
    by ``seed``.  A split that is missing is cut from training; but of ``train`` and ``val`` alone, ``val`` is the test
    set, as most such folders mean it.

    Raises:
        ValueError: if ``root`` is no folder; if it has fewer than two classes, or a class with too few images to split;
            if a split is empty or has a class that training lacks; if images do not decode (all of them are named), unless
            ``skip_broken`` leaves them out.

    Warns:
        UserWarning: counting what is passed over: files whose ending is not read, split folders of other names, and images
            that do not decode.
    """
    found, notes = find_classes(root)
    missing = [split for split in ("test", "val") if split not in found]
    classes = tuple(found["train"])
    check_classes(root, found, needed=1 + len(missing))

    name = root.resolve().name
    listed = [
        (path, split, label)
        for split, files in found.items()
        for label, key in enumerate(classes)
        for path in files.get(key, ())
    ]
    images, broken = decode_all(name, root, [path for path, *_ in listed], size, resize, skip_broken)
    if broken:
        notes.append(broken_note(root, broken))
        listed = [row for row in listed if row[0] not in broken]
        kept = {
            split: {key: [path for path in paths if path not in broken] for key, paths in files.items()}
            for split, files in found.items()
        }
        check_classes(root, kept, needed=1 + len(missing))
    for note in notes:
        warnings.warn(f"{root}: {note}", stacklevel=3)

    strata, random = np.array([label for *_, label in listed]), np.random.RandomState(seed)
    splits = {split: np.flatnonzero([row[1] == split for row in listed]) for split in found}
    fifth = len(splits["train"]) / 5
    for split in missing:
        count = max(round(fifth), len(classes))
        splits["train"], splits[split] = stratified_split(splits["train"], strata, count, random)

    return Collection(
        name=name,
        classes=classes,
        images=images,
        labels=strata,
        splits=splits,
        strata=strata,
        augment="crop",
        source=f"image folder {name}",  # without its path, which would say more about a machine than about the data
        licence="not stated",
    )


def find_classes(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """By split and class the image files below ``root``, all sorted, and what a user should know of what is passed over.

    Without split folders all is ``"train"``; a folder's ``val`` is its ``"test"`` if it has no other.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the folder that holds one folder of images for each class.")
    folders = _split_folders(root)
    lost: list[str] = []
    found = {split: _class_files(folder, lost) for split, folder in folders.items()}
    notes = [unread(lost)] if unread(lost) else []
    if loose := [entry.name for folder in folders.values() for entry in folder.iterdir() if has_image_ending(entry.name)]:
        notes.append(f"images beside the class folders are not used ({len(loose)}): {', '.join(sorted(loose)[:5])}.")
    if root not in folders.values():
        classes = set().union(*found.values())
        for other in (folder for folder in _folders(root) if folder not in folders.values()):
            if classes & {entry.name for entry in _folders(other)}:
                advice = f"is called none of {', '.join(SPLITS)}; rename it if it should be one"
                notes.append(f"the folder {other.name!r} has class folders like a split, but {advice}. It is not used.")
            elif images := sum(has_image_ending(entry.name) for entry in other.iterdir()):
                notes.append(f"the folder {other.name!r} is not used: its images ({images}) are in no class folder of a split.")
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    return found, notes


def broken_note(root: Path, broken: Mapping[Path, str]) -> str:
    """What a user should know of images that were left out."""
    names = "; ".join(f"{os.path.relpath(path, root)} ({reason})" for path, reason in broken.items())
    return f"images that do not decode are left out ({len(broken)}): {names}."


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; the whole as ``train`` if there are none."""
    # Without folders in it, it is a class that happens to be named "train", or a test set without labels.
    split_folders = [folder for folder in _folders(root) if folder.name.lower() in SPLITS and _folders(folder)]
    found = {SPLITS[folder.name.lower()]: folder for folder in split_folders}
    if len(found) < len(split_folders):
        names = ", ".join(folder.name for folder in split_folders)
        raise ValueError(f"{root} has two folders for one split, among {names}; put their images together.")
    if found and "train" not in found:
        raise ValueError(f"{root} has a {' and a '.join(found)} folder, but no train folder like it; add one.")
    return found or {"train": root}


def _class_files(folder: Path, lost: list[str]) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted; names of files that are not read are added to ``lost``."""
    # A link back to the folder itself, or to one that it lies in, is no class.
    classes = [entry for entry in _folders(folder) if not folder.resolve().is_relative_to(entry.resolve())]
    if not classes:
        loose = sum(has_image_ending(entry.name) for entry in folder.iterdir())
        raise ValueError(
            f"{folder} has no class folders{f', but {loose} images' if loose else ''}; "
            "put the images of each class in a folder of its own, named like the class."
        )
    files: dict[str, list[Path]] = {}
    for entry in classes:
        files[entry.name] = []
        for place, folders, names in os.walk(entry, onerror=_refused):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files[entry.name] += [Path(place, name) for name in names if has_image_ending(name)]
            lost += [name for name in names if not has_image_ending(name)]
        files[entry.name].sort()
    return files


def _refused(error: OSError) -> None:
    """Of a folder that may not be opened: its pictures must not be missing without a word."""
    raise ValueError(
        f"{error.filename} cannot be opened ({error.strerror}); make it readable, or move it elsewhere."
    ) from error


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def check_classes(root: Path, found: dict[str, dict[str, list[Path]]], needed: int) -> None:
    """Refuse, before anything is decoded, what cannot be split into training, validation and test images.

    Raises:
        ValueError: for fewer than two classes, classes with fewer than ``needed`` training images, a split without images, or
            one with a class that training lacks.
    """
    classes = list(found["train"])
    add = f"Add images ({', '.join(sorted(endings()))}), or remove the folder."
    if len(classes) < 2:
        raise ValueError(f"{root} has one class only, {classes[0]!r}; add a folder of images of another class.")
    least = f"{needed} are needed to split them" if needed > 1 else "at least 1 is needed"
    if few := [f"class {name!r} of {root} has {len(files)}" for name, files in found["train"].items() if len(files) < needed]:
        raise ValueError(f"{' training images, '.join(few)} training images, but {least}. {add}")
    for split, files in found.items():
        unknown = [name for name in files if files[name] and name not in classes]
        if unknown:
            raise ValueError(
                f"{root} has {split} images of classes without training images: {', '.join(unknown)}. "
                "Add training images of them, or remove them."
            )
        if not any(files.values()):
            raise ValueError(f"{root} has class folders for {split}, but no image in them. {add}")
