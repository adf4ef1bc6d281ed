"""Reads boxes around objects: COCO's JSON, Pascal VOC's XML, and masks that number each object.

Boxes are x1, y1, x2, y2 in pixels of the file as it is stored (see :mod:`minica.data.pictures`), x2 and y2 being the edges
behind the last pixel, so that x2 - x1 is the width.
"""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import leaves, read_text
from .folder import SPLITS
from .images import has_image_ending
from .masks import find_pairs
from .pictures import (
    Remarks,
    by_stem,
    complete_splits,
    each,
    picture_size,
    read_levels,
    refuse,
    split_folders,
)

MOST_JSON, MOST_XML = 2 << 30, 10 << 20  # bytes; COCO's own training file has 469 MB
MOST_PIXELS = 1_000_000  # a side
ROUNDING = 1.0  # pixels that a box may reach over the edge without a word: annotators round, and VOC counts from 1
EXPORT = "Export the boxes as COCO (object detection)."
REMEDY = "Correct the annotations or the pictures, or take out what is wrong."


class Boxed(NamedTuple):
    """One picture and the objects on it."""

    path: str
    id: int
    width: int
    height: int
    objects: np.ndarray  # float64 (N, 7): x1, y1, x2, y2, label from 1, 1 if it is a crowd, area in pixels


@dataclass
class Boxes:
    """All pictures of a data set with their objects."""

    classes: tuple[str, ...]  # without background; labels count from 1
    category_ids: tuple[int, ...]  # of each class, in the annotations
    splits: dict[str, list[Boxed]]  # "train", "val" and "test"


def read_boxes(where: Path, seed: int, strata: Callable[[list[Boxed]], Iterable] | None = None) -> Boxes:
    """A COCO file, or a folder in one of these layouts; train, val and test as in
    :func:`~minica.data.pictures.complete_splits`.

    * COCO: ``annotations/instances_train2017.json`` (or other JSON files whose names say train, val or test) and the
      pictures in ``train2017``, ``train``, ``images/train``, ``images`` or beside the file; ``train/*.json`` beside its
      pictures; or one JSON file for all.
    * Pascal VOC: XML files beside their pictures, or in ``Annotations`` with the pictures in ``JPEGImages`` (``images``);
      split by ``ImageSets/Main/{train,val,test}.txt`` or by folders.  Coordinates count from 1, the last pixel included.
    * ``images`` and ``masks`` (``labels``): masks that number each object, 0 is background; one class, "object".

    Crowds are kept and marked.  Boxes without area are left out; those that reach over the edge are clipped, those beyond it
    left out; each with one warning that counts them.

    Raises:
        ValueError: that names up to five of the files or annotations that are wrong, and counts all.
    """
    remarks = Remarks()
    if where.is_file():
        found = _coco({"all": where}, remarks, where)
    elif coco := _coco_files(where):
        found = _coco(coco, remarks, where)
    elif voc := _voc_files(where):
        found = _voc(voc, remarks, where)
    elif pairs := find_pairs(where):
        found = _instances(pairs, where)
    else:
        raise ValueError(
            f"{where} has no boxes: expected a COCO file (annotations/instances_train2017.json, or *.json), Pascal VOC's XML "
            "files beside the pictures or in Annotations, or folders images and masks, where masks number each object."
        )
    remarks.warn(where)
    found.splits = complete_splits(where, found.splits, seed, strata)
    owner: dict[str, str] = {}
    twice = []
    for split in ("train", "val", "test"):
        if split != "test" or found.splits["test"] is not found.splits["val"]:
            twice += [f"{b.path} is in {owner[b.path]} and in {split}" for b in found.splits[split] if b.path in owner]
            owner |= {boxed.path: split for boxed in found.splits[split]}
    refuse(twice, where, "A picture that is trained on tests nothing. Take it out of one of the splits.")
    return found


def _tidy(
    rows: Sequence[tuple[int, Sequence[float]]], origin: Callable[[int], str], width: int, height: int, remarks: Remarks
) -> np.ndarray:
    """The objects (N, 7) of one picture, clipped; each row comes with the number that ``origin`` says it by."""
    kept = []
    for number, (x1, y1, x2, y2, label, crowd, area) in rows:
        if x2 <= x1 or y2 <= y1:
            remarks.add("boxes without area were left out", origin(number))
            continue
        inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            remarks.add("boxes outside their picture were left out", origin(number))
            continue
        if max(inside[0] - x1, inside[1] - y1, x2 - inside[2], y2 - inside[3]) > ROUNDING:
            remarks.add("boxes that reach over the edge of their picture were clipped", origin(number))
        largest = (inside[2] - inside[0]) * (inside[3] - inside[1])
        kept.append((*inside, label, crowd, min(area, largest) if area > 0 else largest))
    return np.array(kept, float).reshape(-1, 7)


# ------------------------------------------------------------------------------------------------------------------- COCO


def _coco_files(folder: Path) -> dict[str, Path]:
    """Split, or ``"all"`` -> JSON file."""
    for place in (folder / "annotations", folder / "Annotations", folder):
        files = _json_files(place)
        files = [path for path in files if path.name.startswith("instances_")] or files
        if not files:
            continue
        found: dict[str, Path] = {}
        for path in files:
            said = {SPLITS[word] for word in SPLITS if word in path.stem.lower()}
            split = said.pop() if len(said) == 1 else "all"
            if split in found:
                raise ValueError(
                    f"{found[split]} and {path} are both annotations for {'the whole set' if split == 'all' else split}; "
                    "give the path of the one that you mean, or name them train.json, val.json and test.json."
                )
            found[split] = path
        if len(found) > 1:
            found.pop("all", None)
        return found
    found = {split: _json_files(place) for split, place in split_folders(folder).items()}
    if several := next((files for files in found.values() if len(files) > 1), None):
        raise ValueError(f"{several[0].parent} has {len(several)} JSON files; leave the COCO annotations only.")
    return {split: files[0] for split, files in found.items() if files}


def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.name[0] != ".")


def _coco(files: dict[str, Path], remarks: Remarks, where: Path) -> Boxes:
    names: dict[int, str] = {}
    documents = {}
    for split, path in files.items():
        documents[split] = _document(path)
        for number, name in _categories(documents[split], path).items():
            if names.setdefault(number, name) != name:
                raise ValueError(f"{path}: category {number} is {name!r}, but {names[number]!r} in another file; correct one.")
    ids = sorted(names)
    labels = {number: label for label, number in enumerate(ids, 1)}
    splits, problems = {}, []
    for split, path in files.items():
        splits[split], wrong = _coco_pictures(path, documents.pop(split), labels, remarks, where)
        problems += wrong
    refuse(problems, where, REMEDY)
    return Boxes(tuple(names[number] for number in ids), tuple(ids), splits)


def _document(path: Path) -> dict:
    try:
        size = path.stat().st_size
        if size > MOST_JSON:
            raise ValueError(f"{path}: no COCO file: it has {size:,} bytes, and {MOST_JSON:,} are the most. {EXPORT}")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error}); get it again.") from error
    text = read_text(path)
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: no COCO file: it is nested too deeply. {EXPORT}") from None
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        raise ValueError(f"{path}: no COCO file, since no JSON ({error}). {EXPORT}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(found, dict) or not all(isinstance(found.get(part), list) for part in parts):
        there = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{path}: no COCO file: expected an object with the lists images, annotations and categories, found {there}. "
            f"{EXPORT}"
        )
    if odd := next(((part, i) for part in parts for i, row in enumerate(found[part]) if not isinstance(row, dict)), None):
        raise ValueError(f"{path}: no COCO file: {odd[0]}[{odd[1]}] is not an object. {EXPORT}")
    return found


def _categories(document: dict, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, row in enumerate(document["categories"]):
        number, name = row.get("id"), row.get("name")
        if not _is_whole(number) or not isinstance(name, str) or number in names:
            raise ValueError(f"{path}: categories[{i}] needs a name and an id of its own, a whole number; got {row!r:.100}.")
        names[number] = name
    if not names:
        raise ValueError(f"{path}: there are no categories; export the boxes with their classes.")
    return names


def _coco_pictures(
    path: Path, document: dict, labels: dict[int, int], remarks: Remarks, where: Path
) -> tuple[list[Boxed], list[str]]:
    problems: list[str] = []
    files: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    seen: set[str] = set()
    find = _finder(path, [row.get("file_name") for row in document["images"]], where)
    unsized: list[tuple[int, str]] = []
    for i, row in enumerate(document["images"]):
        number, name, size = row.get("id"), row.get("file_name"), (row.get("width"), row.get("height"))
        if not _is_whole(number) or number in files or not isinstance(name, str):
            problems.append(f"{path}: images[{i}] needs a file_name and an id of its own, a whole number")
            continue
        place, files[number], sizes[number] = find(name), name, None
        if leaves(name):
            problems.append(f"{path}: images[{i}]: {name} leads out of the folder of pictures, or has backslashes")
            continue
        if place is None or place in seen:
            problems.append(f"{path}: images[{i}]: {name} " + ("does not exist" if place is None else "is there twice"))
            continue
        files[number] = place
        seen.add(place)
        if all(_is_whole(side) and 0 < side < MOST_PIXELS for side in size):
            sizes[number] = size
        else:
            unsized.append((number, place))
    heads, wrong = each("reading sizes", lambda item: (item[0], picture_size(item[1])), unsized)
    sizes |= dict(heads)
    problems += wrong

    def origin(i: int) -> str:
        number = document["annotations"][i].get("id")
        return f"{path}: annotations[{i}]" + ("" if number is None else f" (id {number})")

    rows: dict[int, list] = {number: [] for number in files}
    for i, row in enumerate(document["annotations"]):
        number, category, crowd, area = (row.get(key) for key in ("image_id", "category_id", "iscrowd", "area"))
        box = row.get("bbox")
        if not _is_whole(number) or number not in files:
            problems.append(f"{origin(i)} is of image {number!r}, which is not in the file")
        elif not _is_whole(category) or category not in labels:
            problems.append(f"{origin(i)} is of category {category!r}, which is not in the file")
        elif not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            problems.append(f"{origin(i)} needs a bbox of four numbers x, y, width, height; got {box!r:.60}")
        else:
            x, y, width, height = box
            size = area if _is_number(area) else 0
            rows[number].append((i, (x, y, x + width, y + height, labels[category], float(crowd == 1), size)))
    pictures = []
    for number, file in files.items():
        if sizes[number] is not None:
            pictures.append(Boxed(file, number, *sizes[number], _tidy(rows[number], origin, *sizes[number], remarks)))
    return pictures, problems


def _finder(path: Path, names: Sequence[object], where: Path) -> Callable[[str], str | None]:
    """What gives the path of a picture by its ``file_name``, or None: in the first place that has one of them.

    Whether the ending is in upper or lower case does not matter.
    """
    split = path.stem.removeprefix("instances_").removesuffix(".coco").removesuffix("_annotations")
    root = where if where.is_dir() else path.parent.parent if path.parent.name.lower() == "annotations" else path.parent
    top = [root / "images" / split, root / split, *[folder for key, folder in split_folders(root).items() if key in split]]
    places = [*top, path.parent, path.parent / "images", root / "images", root / "JPEGImages", root]

    @cache
    def listing(folder: Path) -> dict[str, str]:
        there = sorted(os.listdir(folder)) if folder.is_dir() else []
        return {_small_ending(name): name for name in there} | {name: name for name in there}

    def at(place: Path, name: str) -> str | None:
        if leaves(name):
            return None
        full, there = place / name, listing((place / name).parent)
        found = there.get(full.name) or there.get(_small_ending(full.name))
        return str(full.with_name(found)) if found else None

    texts = [name for name in names if isinstance(name, str)]
    best = next((place for place in places for name in texts[:: len(texts) // 50 + 1] if at(place, name)), places[0])
    return partial(at, best)


def _small_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem + ending.lower()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 and not math.isnan(value)


# ------------------------------------------------------------------------------------------------------------- Pascal VOC


def _voc_files(folder: Path) -> dict[str, list[Path]]:
    """Split, or ``"all"`` -> XML files."""
    files = _xml_files(folder)
    lists = folder / "ImageSets" / "Main"
    if files and lists.is_dir() and (lists / "train.txt").is_file():
        there, found = {path.stem: path for path in files}, {}
        problems = []
        for split in ("train", "val", "test"):
            if (lists / f"{split}.txt").is_file():
                names = [line.split()[0] for line in read_text(lists / f"{split}.txt").splitlines() if line.strip()]
                problems += [f"{lists / split}.txt: there is no {name}.xml" for name in names if name not in there]
                found[split] = [there[name] for name in names if name in there]
        refuse(problems, folder, "Complete the annotations, or correct the lists.")
        return found
    if files:
        return {"all": files}
    found = {split: _xml_files(place) for split, place in split_folders(folder).items()}
    return {split: paths for split, paths in found.items() if paths}


def _xml_files(folder: Path) -> list[Path]:
    for place in (folder, folder / "Annotations", folder / "annotations", folder / "labels"):
        if place.is_dir():
            found = sorted(path for path in place.iterdir() if path.suffix.lower() == ".xml" and path.name[0] != ".")
            if found:
                return found
    return []


def _voc(files: dict[str, list[Path]], remarks: Remarks, where: Path) -> Boxes:
    every = list(dict.fromkeys(path for paths in files.values() for path in paths))
    pictures_of = cache(by_stem)

    def read(path: Path) -> tuple[Path, Path, tuple[int, int], list]:
        root = _xml(path)
        places = [pictures_of(p) for p in (path.parent, *(path.parent.parent / name for name in ("JPEGImages", "images")))]
        named = (root.findtext("filename") or "").strip()
        stems = (path.stem, Path(named).stem)
        picture = next((place[stem] for stem in stems for place in places if stem in place), None)
        if picture is None:
            raise ValueError(f"{path}: there is no picture {path.stem}.* for it" + (f" (it names {named})" if named else ""))
        size = picture_size(picture)
        _check_size(path, root, picture, size)
        return path, picture, size, _voc_objects(path, root)

    found, problems = each("reading XML", read, every)
    refuse(problems, where, REMEDY)
    names = sorted({name for *_, objects in found for name, _ in objects})
    if not names:
        raise ValueError(f"{where} has {len(every)} XML files, but no object in any of them; annotate some.")
    labels = {name: label for label, name in enumerate(names, 1)}
    boxed = {}
    for number, (path, picture, (width, height), objects) in enumerate(found, 1):
        rows = [(i, (*box, labels[name], 0.0, 0.0)) for i, (name, box) in enumerate(objects, 1)]
        boxed[path] = Boxed(
            str(picture), number, width, height, _tidy(rows, partial(_voc_origin, path), width, height, remarks)
        )
    if not (where / "ImageSets").is_dir():  # which says what belongs to the set
        used = {picture for _, picture, *_ in found}
        for place in sorted({picture.parent for picture in used}):
            for picture in sorted({file for file in place.iterdir() if has_image_ending(file.name)} - used):
                remarks.add(
                    "pictures without an XML file were left out (one without <object> says: nothing there)", str(picture)
                )
    splits = {split: [boxed[path] for path in paths] for split, paths in files.items()}
    return Boxes(tuple(names), tuple(range(1, len(names) + 1)), splits)


def _xml(path: Path) -> ElementTree.Element:
    """The root of an XML file, which may not declare entities: a few lines of them expand to gigabytes."""
    try:
        if path.stat().st_size > MOST_XML:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and {MOST_XML:,} are the most")
        content = path.read_bytes()
        if b"\0" in content:
            raise ValueError("it is no text in UTF-8")
        if b"<!DOCTYPE" in content.upper() or b"<!ENTITY" in content.upper():
            raise ValueError("it has a DOCTYPE or ENTITY declaration, which Pascal VOC's files do not need; remove it")
        root = ElementTree.fromstring(content)
    except (OSError, ValueError, ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"{path}: cannot be read as Pascal VOC: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: no Pascal VOC file: the root is <{root.tag:.40}>, expected <annotation>")
    return root


def _check_size(path: Path, root: ElementTree.Element, picture: Path, size: tuple[int, int]) -> None:
    stated = tuple(_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if all(stated) and stated != size:
        hint = " (rotated in EXIF? Boxes must be those of the file as stored)" if stated == size[::-1] else ""
        raise ValueError(
            f"{path}: it states {stated[0]:g} x {stated[1]:g} pixels, but {picture.name} has {size[0]} x {size[1]}{hint}"
        )


def _voc_origin(path: Path, number: int) -> str:
    return f"{path}: object {number}"


def _voc_objects(path: Path, root: ElementTree.Element) -> list[tuple[str, tuple[float, ...]]]:
    objects = []
    for i, thing in enumerate(root.findall("object"), 1):
        name = (thing.findtext("name") or "").strip()
        corners = [_number(thing.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in corners:
            raise ValueError(f"{_voc_origin(path, i)} needs a <name> and a <bndbox> of four numbers")
        # Counted from 1, the last pixel included: the first edge is one less, the last one as it says (as in Detectron2).
        objects.append((name, (corners[0] - 1, corners[1] - 1, corners[2], corners[3])))
    return objects


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if _is_number(value) else None


# ---------------------------------------------------------------------------------------------------------- numbered masks


def instance_boxes(levels: np.ndarray) -> np.ndarray:
    """Boxes of a mask (H, W) whose value k > 0 marks the pixels of object k: (N, 7) as in :class:`Boxed`, in order of k.

    An object in several parts has one box around all; the area is its number of pixels.
    """
    rows, columns = np.nonzero(levels)
    if not len(rows):
        return np.zeros((0, 7))
    numbers, which = np.unique(levels[rows, columns], return_inverse=True)
    edges = []
    for places in (columns, rows):
        first, last = np.full(len(numbers), np.iinfo(int).max), np.zeros(len(numbers), int)
        np.minimum.at(first, which, places)
        np.maximum.at(last, which, places)
        edges += [first, last + 1]
    left, right, top, bottom = edges
    ones = np.ones(len(numbers))
    return np.stack([left, top, right, bottom, ones, 0 * ones, np.bincount(which)], 1).astype(float)


def _instances(pairs: dict[str, list[tuple[Path, Path]]], where: Path) -> Boxes:
    every = [pair for found in pairs.values() for pair in found]

    def read(item: tuple[int, tuple[Path, Path]]) -> Boxed:
        number, (picture, mask) = item
        levels, (width, height) = read_levels(mask), picture_size(picture)
        if levels.shape != (height, width):
            raise ValueError(
                f"{mask}: it has {levels.shape[1]} x {levels.shape[0]} pixels, but {picture.name} {width} x {height}"
            )
        return Boxed(str(picture), number, width, height, instance_boxes(levels))

    found, problems = each("boxes of masks", read, list(enumerate(every, 1)))
    refuse(problems, where, REMEDY)
    boxed = {boxed.path: boxed for boxed in found}
    splits = {split: [boxed[str(picture)] for picture, _ in rows] for split, rows in pairs.items()}
    return Boxes(("object",), (1,), splits)
