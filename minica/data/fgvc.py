"""Reads the four FGVC data sets as their publishers lay them out, or by VPT's JSON lists."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path

import numpy as np

from .catalogue import FGVC
from .files import Entry, find_folder, listed, read_json, read_mat, read_text, whole
from .images import Collection


def read_fgvc(name: str, root: Path) -> Collection:
    """CUB-200-2011, NABirds, Stanford Dogs or Stanford Cars.

    With ``train.json``, ``val.json`` and ``test.json`` in the folder (VPT's: ``{image: class id}``) these are the splits.
    Otherwise the publisher's training list is cut 90 to 10 as the published code of Conv-Adapter does it: shuffled by seed
    42, not stratified, a tenth rounded up.  Sizes are the same either way; whether the images are, nobody has shown.

    The last run trains on the publisher's whole training list.

    Raises:
        ValueError: if the folder or a list is missing, or a list is wrong (see :func:`~minica.data.files.listed`).
        ModuleNotFoundError: for MATLAB lists without scipy.
    """
    facts, full = FGVC[name], f"fgvc/{name}"
    folder = find_folder(root, "fgvc", facts.folders, full)
    if name == "nabirds" and (folder / "nabirds").is_dir():
        folder = folder / "nabirds"
    if all((folder / f"{split}.json").is_file() for split in ("train", "val", "test")):
        lists, classes = _vpt(folder)
        source = f"{facts.paper}, split of VPT"
    else:
        train, test, classes = {"dogs": _dogs, "cars": _cars}.get(name, _birds)(folder)
        lists = ninety_ten(train) | {"test": test}
        source = f"{facts.paper}, a tenth of its training list for validation"
    places = [folder / "images", folder / "Images", folder]
    return listed(full, places, lists, classes, source)


def ninety_ten(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Train and val as ``sklearn.model_selection.train_test_split(test_size=0.1, random_state=42)`` gives them."""
    order = np.random.RandomState(42).permutation(len(entries))
    held = math.ceil(0.1 * len(entries))
    return {"train": [entries[i] for i in order[held:]], "val": [entries[i] for i in order[:held]]}


def _vpt(folder: Path) -> tuple[dict[str, list[Entry]], list[str]]:
    """Class ids become labels in ascending order.  Cars' keys begin with the folder of the archive of all images."""
    found = {split: read_json(folder / f"{split}.json") for split in ("train", "val", "test")}
    for split, images in found.items():
        if not isinstance(images, dict) or not images or not all(isinstance(number, int) for number in images.values()):
            raise ValueError(f"{folder / split}.json: expected {{image: class id}}, as VPT writes it; get the file again.")
    ids = sorted({number for images in found.values() for number in images.values()})
    label = {number: i for i, number in enumerate(ids)}
    prefix = "" if (folder / "car_ims").is_dir() else "car_ims/"
    lists = {
        split: [
            Entry(image.removeprefix(prefix), label[number], f"{folder / split}.json[{image}]")
            for image, number in images.items()
        ]
        for split, images in found.items()
    }
    return lists, [str(number) for number in ids]


def _birds(folder: Path) -> tuple[list[Entry], list[Entry], list[str]]:
    """CUB and NABirds: three files of ``<image id> <value>``, and the classes' names.

    NABirds uses 555 of its 1,011 class ids (the others are groups of species); they become labels in ascending order.
    """
    images, classes, sides = (_column(folder / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split"))
    for key, (_, origin) in images.items():
        if key not in classes or key not in sides:
            raise ValueError(f"{origin}: image id {key} has no line in image_class_labels.txt and train_test_split.txt.")
    ids = {key: whole(*classes[key]) for key in images}
    label = {number: i for i, number in enumerate(sorted(set(ids.values())))}
    names = {whole(key, origin): text for key, (text, origin) in _column(folder / "classes.txt").items()}
    lists: dict[str, list[Entry]] = {"1": [], "0": []}
    for key, (image, origin) in images.items():
        side, said = sides[key]
        if side not in lists:
            raise ValueError(f"{said}: expected 1 for a training image or 0 for a test image, got {side!r}.")
        lists[side].append(Entry(image, label[ids[key]], origin))
    return lists["1"], lists["0"], [names.get(number, str(number)) for number in label]


def _column(path: Path) -> dict[str, tuple[str, str]]:
    """Of lines of ``<key> <value>``: key -> (value, where it stands)."""
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        key, _, value = line.strip().partition(" ")
        if not value or key in found:
            problem = f"id {key} is there twice" if value else f"expected an id and a value, got {line!r}"
            raise ValueError(f"{path}:{number}: {problem}; get the file again.")
        found[key] = value, f"{path}:{number}"
    return found


def _dogs(folder: Path) -> tuple[list[Entry], list[Entry], list[str]]:
    sides = []
    for split in ("train", "test"):
        path = _first(folder, f"{split}_list.mat", f"lists/{split}_list.mat")
        images, labels = read_mat(path, "annotation_list", "labels")
        if len(images) != len(labels):
            raise ValueError(
                f"{path}[{min(len(images), len(labels))}]: expected an image and the number of its class, but annotation_list "
                f"has {len(images)} entries and labels {len(labels)}; get the file again."
            )
        rows = enumerate(zip(images, labels, strict=True))
        sides.append([_entry("{}.jpg", image, label, f"{path}[{i}]") for i, (image, label) in rows])
    names = {entry.label: entry.image.partition("/")[0].partition("-")[2] for entry in sides[0]}
    return *sides, [names.get(label, str(label)) for label in range(FGVC["dogs"].classes)]


def _cars(folder: Path) -> tuple[list[Entry], list[Entry], list[str]]:
    sides = []
    for split, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        path = _first(folder, f"devkit/{name}", name)
        (rows,) = read_mat(path, "annotations")
        if not {"fname", "class"} <= set(rows.dtype.names or ()):
            raise ValueError(f"{path} has no labels (fields {rows.dtype.names}); get the {name} that has.")
        place = f"cars_{split}/{{}}"
        sides.append([_entry(place, row["fname"], row["class"], f"{path}[{i}]") for i, row in enumerate(rows)])
    (names,) = read_mat(_first(folder, "devkit/cars_meta.mat", "cars_meta.mat"), "class_names")
    return *sides, [str(name) for name in names]


def _entry(place: str, image: object, number: object, origin: str) -> Entry:
    """Of a MATLAB list: numbers of classes begin with 1 and may be floating-point; an empty cell comes as an array."""
    if not isinstance(image, str) or not isinstance(number, Real) or not float(number).is_integer():
        raise ValueError(f"{origin}: expected an image and the number of its class, got {image} and {number}; get it again.")
    return Entry(place.format(image), int(number) - 1, origin)


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has no {' and no '.join(names)}, nor train.json, val.json and test.json; add one or the other.")
