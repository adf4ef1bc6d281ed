"""Are boxes and masks read as the files have them, whatever the layout, and is what is wrong with files said clearly?"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader

from minica import data
from minica.data import boxes, dense, masks, named, pictures, scenes

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def picture(path: Path, width: int = 40, height: int = 30, seed: int = 0, **options) -> Path:
    """Smooth, so that JPEG keeps it, and different everywhere."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 6, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(path, **options)
    return path


def mask(path: Path, levels, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.asarray(levels)
    image = Image.fromarray(levels.astype(np.uint16 if levels.max() > 255 else np.uint8))
    if mode == "P":
        image = Image.fromarray(levels.astype(np.uint8), "L").convert("P")
        image.putpalette([(7 * i) % 256 for i in range(768)])
        image.putdata(levels.ravel().tolist())
    image.save(path)
    return path


def coco(root: Path, rows: list[dict], count: int = 10, file: str = "boxes.json", categories=None, **changes) -> Path:
    """``count`` pictures of 40 x 30 in root/images, and a COCO file beside it."""
    for i in range(count):
        picture(root / "images" / f"{i}.jpg", seed=i)
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in range(count)],
        "annotations": rows,
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / file).write_text(json.dumps(document | changes))
    return root


def box(image: int, bbox, category: int = 1, **more) -> dict:
    return {"id": 7, "image_id": image, "category_id": category, "bbox": list(bbox)} | more


def voc(path: Path, objects, size=(40, 30), name: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    path.write_text(f"<annotation><filename>{name or path.stem}</filename>{size}{rows}</annotation>")
    return path


def found(task) -> dict[str, np.ndarray]:
    """Name of the file -> objects, over all splits."""
    return {Path(b.path).name: b.objects for d in (task.train, task.val, task.test) for b in d.boxed}


def names(dataset) -> set[str]:
    return {Path(row.path).name for row in (dataset.boxed if isinstance(dataset, data.BoxDataset) else dataset.masked)}


def coco_scores(dataset, detections: list[dict]) -> np.ndarray:
    """The twelve numbers of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset.coco_ground_truth()
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(detections), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    return run.stats


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.draw_scenes(folder, seed=3, images={"train": 14, "val": 6, "test": 8})
    return folder


# ----------------------------------------------------------------------------------------------------------------- scenes


def test_scenes_have_the_layouts_of_coco_and_ade20k_and_are_the_same_every_time(drawn, tmp_path):
    scenes.draw_scenes(tmp_path, seed=3, images={"train": 2, "val": 1, "test": 1})
    for path in (tmp_path / "coco" / "train2017").iterdir():
        assert path.read_bytes() == (drawn / "coco" / "train2017" / path.name).read_bytes()
    document = json.loads((drawn / "coco" / "annotations" / "instances_val2017.json").read_text())
    assert document.keys() == {"info", "licenses", "images", "annotations", "categories"}
    assert [c["name"] for c in document["categories"]] == list(scenes.SHAPES)
    assert len(list((drawn / "ade20k" / "images" / "training").glob("*.jpg"))) == 14
    assert len(list((drawn / "ade20k" / "annotations" / "validation").glob("*.png"))) == 6
    for row in document["annotations"]:  # pycocotools reads the segmentations, and they are those of the boxes
        size = row["segmentation"]["size"]
        encoded = coco_masks.frPyObjects(row["segmentation"], *size)
        assert coco_masks.area(encoded) == row["area"] and coco_masks.toBbox(encoded).tolist() == row["bbox"]


def test_boxes_and_masks_of_scenes_show_the_same_pixels(drawn):
    with_boxes, with_masks = data.load_boxes(drawn / "coco"), data.load_masks(drawn / "ade20k", size=64)
    assert with_masks.classes == ("background", *with_boxes.classes)
    for one, other in zip(with_boxes.test.boxed, with_masks.test.masked, strict=True):
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes()
        labels = masks.read_labels(other.mask, with_masks.classes, with_masks.test._table)
        seen = np.zeros_like(labels)
        for x1, y1, x2, y2, label, _, area in one.objects.astype(int):
            part = labels[y1:y2, x1:x2] == label
            assert part.sum() >= area and part.any(0)[[0, -1]].all() and part.any(1)[[0, -1]].all()  # tight
            seen[y1:y2, x1:x2] = 1
        assert not labels[seen == 0].any()
        assert sum(one.objects[:, 6]) == (labels > 0).sum()  # nothing is counted twice where shapes overlap


def test_scenes_are_drawn_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICA_HOME", str(tmp_path))
    calls = []
    draw = scenes.draw_scenes

    def few(folder, seed):
        calls.append(seed)
        draw(folder, seed, {"train": 4, "val": 2, "test": 2})

    monkeypatch.setattr(scenes, "draw_scenes", few)
    one, other = data.load_boxes("scenes", seed=5), data.load_masks("scenes", size=32, seed=5)
    assert calls == [5] and [len(d) for d in (one.train, other.val, one.test)] == [4, 2, 2]
    assert one.licence == "Apache-2.0" and one.classes == scenes.SHAPES and "disc" in repr(one) and "pictures" in repr(other)
    (place,) = (tmp_path / "scenes").iterdir()
    assert place.name.endswith("-5")
    monkeypatch.setattr(scenes, "digest", lambda source: "of other code")  # what other code has drawn is not taken
    data.load_boxes("scenes", seed=5)
    assert calls == [5, 5] and len(list((tmp_path / "scenes").iterdir())) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINICA_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot draw the scenes into .*MINICA_HOME"):
        data.load_boxes("scenes")


def test_scenes_show_all_classes_alike_some_covered_and_some_without_any(tmp_path):
    assert scenes.IMAGES == {"train": 400, "val": 100, "test": 200}
    scenes.draw_scenes(tmp_path, images={"train": 80})
    task = data.load_boxes(tmp_path / "coco")
    objects = np.concatenate([boxed.objects for d in (task.train, task.val, task.test) for boxed in d.boxed])
    assert np.bincount(objects[:, 4].astype(int))[1:].tolist() == [29, 45, 34, 34, 40, 29]  # as recorded
    assert any(not len(rows) for rows in found(task).values()) and objects[:, 6].min() > 20
    sides = {(boxed.width, boxed.height) for boxed in task.train.boxed}
    assert len(sides) > 4 and {side for size in sides for side in size} == set(scenes.SIDES)


# ------------------------------------------------------------------------------------------------------------------- items


def test_an_item_is_what_torchvisions_detectors_take(drawn):
    task = data.load_boxes(drawn / "coco")
    for dataset in (task.train, task.val):
        for image, target in (dataset[i] for i in range(len(dataset))):
            assert type(image) is torch.Tensor and image.dtype == torch.float32 and image.shape[0] == 3
            assert 0 <= image.min() and image.max() <= 1
            assert target.keys() == {"boxes", "labels", "image_id", "area", "iscrowd"} and type(target["image_id"]) is int
            kinds = {key: target[key].dtype for key in ("boxes", "labels", "area", "iscrowd")}
            assert kinds == dict(boxes=torch.float32, labels=torch.int64, area=torch.float32, iscrowd=torch.int64)
            count = len(target["labels"])
            assert target["boxes"].shape == (count, 4) and type(target["boxes"]) is torch.Tensor
            assert target["area"].shape == target["iscrowd"].shape == (count,)
            assert (target["boxes"][:, 2:] <= torch.tensor(image.shape[:0:-1])).all() and (target["labels"] >= 1).all()


def test_a_mask_is_of_whole_numbers_and_255_is_ignored(drawn, tmp_path):
    task = data.load_masks(drawn / "ade20k", size=48, mean=(0.1, 0.2, 0.3), std=2)
    image, labels = task.val[0]
    assert image.dtype == torch.float32 and image.shape == (3, 48, 48) and labels.dtype == torch.int64
    assert labels.shape == (48, 48) and set(labels.unique().tolist()) <= set(range(7))
    expected = (task.val.pair(0)[0] / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 2
    assert torch.allclose(image, expected, atol=1e-6) and type(image) is type(labels) is torch.Tensor
    about = task.train.about
    assert about["classes"] == task.classes and about["mean"] == (0.1, 0.2, 0.3) and about["input_size"] == 48


def test_boxes_are_scaled_with_their_pictures_and_none_is_enlarged(tmp_path):
    root = coco(tmp_path, [box(i, (10, 6, 20, 12)) for i in range(10)])
    whole, half, large = (data.load_boxes(root, size=size) for size in (None, 20, 500))
    assert whole.val[0][0].shape == large.val[0][0].shape == (3, 30, 40) and half.val[0][0].shape == (3, 15, 20)
    assert half.val[0][1]["boxes"].tolist() == [[5, 3, 15, 9]] and half.val[0][1]["area"].tolist() == [60]
    truth = half.val.coco_ground_truth()
    assert truth["images"][0]["width"] == 20 and truth["annotations"][0]["bbox"] == [5, 3, 10, 6]
    assert truth["annotations"][0]["area"] == 60


@pytest.mark.parametrize("size", [None, 60])
def test_the_ground_truth_evaluates_to_one_against_itself(drawn, size):
    dataset = data.load_boxes(drawn / "coco", size=size).test
    detections = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in dataset.coco_ground_truth()["annotations"]
    ]
    assert coco_scores(dataset, detections)[0] == pytest.approx(1.0)
    for row in detections:
        row["bbox"] = [row["bbox"][0] + 0.3 * row["bbox"][2], *row["bbox"][1:]]
    assert coco_scores(dataset, detections)[0] < 0.5


def test_what_a_data_set_gives_evaluates_to_one(tmp_path):
    """Targets of a set with gaps between its categories, mapped by category_ids."""
    categories = [{"id": 90, "name": "c"}, {"id": 1, "name": "a"}, {"id": 3, "name": "b"}]
    rows = [box(i, (5 + k, 3, 10, 12), category) for i in range(10) for k, category in enumerate((1, 3, 90))]
    task = data.load_boxes(coco(tmp_path, rows, categories=categories))
    assert task.classes == ("a", "b", "c") and task.test.category_ids == (1, 3, 90)
    assert all(target["labels"].tolist() == [1, 2, 3] for _, target in task.test)
    truth = task.test.coco_ground_truth()
    assert [c["id"] for c in truth["categories"]] == [1, 3, 90] and {a["category_id"] for a in truth["annotations"]} == {
        1,
        3,
        90,
    }
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    detections = []
    for _, target in task.test:
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            number = task.test.category_ids[label - 1]
            one = {"image_id": target["image_id"], "category_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1.0}
            detections.append(one)
    assert coco_scores(task.test, detections)[0] == pytest.approx(1.0)


def test_crowds_are_left_out_of_training_targets_only(tmp_path):
    rows = [row for i in range(10) for row in (box(i, (1, 1, 9, 9)), box(i, (0, 0, 40, 30), iscrowd=1, area=500))]
    task = data.load_boxes(coco(tmp_path, rows))
    assert task.train[0][1]["iscrowd"].tolist() == [0] and task.val[0][1]["iscrowd"].tolist() == [0, 1]
    assert task.val[0][1]["area"].tolist() == [81, 500]
    for dataset in (task.train, task.val):
        assert [a["iscrowd"] for a in dataset.coco_ground_truth()["annotations"]] == [0, 1] * len(dataset)


def test_a_picture_without_boxes_is_kept(tmp_path):
    task = data.load_boxes(coco(tmp_path, [box(0, (1, 1, 9, 9))]))
    assert len(found(task)) == 10
    _, target = next(pair for d in (task.train, task.val) for pair in d if not len(pair[1]["labels"]))
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32 and target["labels"].shape == (0,)


def test_a_flip_takes_the_boxes_with_it(tmp_path):
    task = data.load_boxes(coco(tmp_path, [box(i, (2, 3, 10, 12)) for i in range(10)]))
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        image, target = task.train[0]
        flipped = target["boxes"].tolist() == [[28, 3, 38, 15]]
        assert flipped or target["boxes"].tolist() == [[2, 3, 12, 15]]
        assert torch.allclose(image.flip(2) if flipped else image, task.train.image(0) / 255)
        seen.add(flipped)
    assert seen == {True, False}
    plain = data.load_boxes(tmp_path, augment="none").train
    assert all(torch.allclose(plain[0][0], plain.image(0) / 255) for _ in range(8))


def pairs(root: Path, levels, count: int = 10, folder: str = "masks", **options) -> Path:
    for i in range(count):
        height, width = np.shape(levels)
        picture(root / "images" / f"{i}.JPG", width, height, seed=i)
        mask(root / folder / f"{i}.png", levels, **options)
    return root


HALVES = np.repeat([[0, 1]], 30, 0).repeat(20, 1)  # (30, 40): the right half is class 1


def test_the_paper_crop_fills_up_with_what_is_ignored_and_keeps_the_aspect(tmp_path):
    levels = np.zeros((32, 64), int)
    levels[8:24, 16:32] = 1  # a square
    task = data.load_masks(pairs(tmp_path, levels), size=32, augment="crop", mean=0.25)
    assert task.val[0][1].shape == (32, 32)
    torch.manual_seed(0)
    filled, heights = 0, set()
    for _ in range(60):
        image, labels = task.train[0]
        assert image.shape == (3, 32, 32) and labels.shape == (32, 32)
        assert set(labels.unique().tolist()) <= {0, 1, 255}
        border = labels == 255
        assert image[:, border].abs().max().item() < 0.01 if border.any() else True  # the mean
        filled += bool(border.any())
        rows, columns = torch.nonzero(labels == 1, as_tuple=True)
        if len(rows) and 0 < rows.min() and rows.max() < 31 and 0 < columns.min() and columns.max() < 31:
            heights.add(int(rows.max() - rows.min()))
            assert abs((rows.max() - rows.min()) - (columns.max() - columns.min())) <= 1
    assert 3 < filled < 57 and max(heights) - min(heights) > 8


def test_a_mask_is_flipped_with_its_picture(tmp_path):
    task = data.load_masks(pairs(tmp_path, HALVES), size=20)
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        image, labels = task.train[0]
        flipped = bool(labels[0, 0] == 1)
        plain, expected = task.train.pair(0)
        assert torch.equal(labels.flip(1) if flipped else labels, expected.long())
        assert torch.allclose(image.flip(2) if flipped else image, plain / 255 * 2 - 1, atol=1e-5)
        seen.add(flipped)
    assert seen == {True, False}


def test_large_sets_are_read_on_access_and_give_the_same(drawn, monkeypatch):
    def both(augment):
        return (
            data.load_boxes(drawn / "coco", size=64, augment="none"),
            data.load_masks(drawn / "ade20k", size=32, augment=augment),
        )

    kept = both("none")
    assert kept[0].train._kept and kept[1].train._kept
    monkeypatch.setattr(dense, "IN_MEMORY", 1000)
    read = both("none")
    assert not read[0].train._kept and not read[1].train._kept
    for one, other in zip(kept, read, strict=True):
        for split in ("train", "val", "test"):
            for (x, _), (y, _) in zip(getattr(one, split), getattr(other, split), strict=True):
                assert torch.equal(x, y)
    # As the workers of a loader on other systems take them.
    again = pickle.loads(pickle.dumps(read[1].train))
    assert torch.equal(again[1][1], kept[1].train[1][1])
    loader = DataLoader(read[1].val, batch_size=3, num_workers=1)
    assert next(iter(loader))[1].shape == (3, 32, 32)


# ----------------------------------------------------------------------------------------------------------------- layouts


def test_coco_layout_with_train_and_val_tests_on_val(drawn, tmp_path):
    shutil.copytree(drawn / "coco", tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "instances_test2017.json").unlink()
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").write_text("{}")
    task = data.load_boxes(tmp_path / "coco")
    assert [len(d) for d in (task.train, task.val, task.test)] == [14, 6, 6] and task.test is task.val


@pytest.mark.parametrize("layout", ["one file", "beside", "roboflow", "images/train"])
def test_any_coco_file_is_read(layout, tmp_path):
    rows = [box(i, (1, 2, 3, 4)) for i in range(10)]
    if layout == "one file":
        where = coco(tmp_path, rows) / "boxes.json"
    elif layout == "beside":
        where = coco(tmp_path, rows)
        for path in (tmp_path / "images").iterdir():
            path.rename(tmp_path / path.name)
    else:
        for split in ("train", "valid", "test"):
            coco(tmp_path / split, rows, file="_annotations.coco.json")
            target = tmp_path / split if layout == "roboflow" else tmp_path / "images" / split
            target.mkdir(parents=True, exist_ok=True)
            for path in (tmp_path / split / "images").iterdir():
                path.rename(target / path.name)
            if layout != "roboflow":
                (tmp_path / "annotations").mkdir(exist_ok=True)
                (tmp_path / split / "_annotations.coco.json").rename(tmp_path / "annotations" / f"{split}.json")
        where = tmp_path
    task = data.load_boxes(where)
    sizes = [6, 2, 2] if layout in ("one file", "beside") else [10, 10, 10]
    assert [len(d) for d in (task.train, task.val, task.test)] == sizes
    assert all(rows[:, :5].tolist() == [[1, 2, 4, 6, 1]] for rows in found(task).values())
    assert not any(str(tmp_path) in text for text in (task.name, task.source))


def test_endings_in_upper_case_and_names_of_pictures_in_xml(tmp_path):
    root = coco(tmp_path / "coco", [box(i, (1, 2, 3, 4)) for i in range(10)])
    for i in range(0, 10, 2):
        (root / "images" / f"{i}.jpg").rename(root / "images" / f"{i}.JPG")
    assert len(found(data.load_boxes(root))) == 10
    for i in range(4):
        picture(tmp_path / "voc" / f"photo {i}.JPEG", seed=i)
        voc(tmp_path / "voc" / f"{i}.XML", [("a", 1, 1, 9, 9)], name=f"photo {i}.jpeg")
    assert len(found(data.load_boxes(tmp_path / "voc"))) == 4


@pytest.mark.parametrize("orientation", [3, 6])
def test_pillow_turns_a_tiff_by_itself(orientation, tmp_path):
    """So sizes, boxes and pictures are those of the upright picture there, and no warning is due."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = coco(tmp_path, [], images=[{"id": i, "file_name": f"{i}.tif"} for i in range(4)])
    for i in range(4):
        picture(root / "images" / f"{i}.tif", exif=exif)
    assert data.load_boxes(root).train[0][0].shape == ((3, 30, 40) if orientation == 3 else (3, 40, 30))


def test_a_folder_is_split_by_the_seed(tmp_path):
    root = coco(tmp_path, [box(i, (1, 2, 3, 4)) for i in range(40)], count=40)
    one, same, other = (data.load_boxes(root, seed=seed) for seed in (0, 0, 1))
    assert [len(d) for d in (one.train, one.val, one.test)] == [28, 6, 6]
    assert names(one.train) | names(one.val) | names(one.test) == {f"{i}.jpg" for i in range(40)}
    assert names(one.test) == names(same.test) != names(other.test)


@pytest.mark.parametrize("layout", ["side by side", "Annotations", "ImageSets", "split"])
def test_pascal_voc_is_read(layout, tmp_path):
    objects = [("king", 1, 2, 10, 20), ("ace", 5, 6, 40, 30)]
    for i in range(10):
        split = ("train" if i < 6 else "test") if layout == "split" else ""
        side_by_side = layout in ("side by side", "split")
        picture(tmp_path / split / ("" if side_by_side else "JPEGImages") / f"{i}.{'JPG' if i % 2 else 'jpg'}", seed=i)
        voc(tmp_path / split / ("" if side_by_side else "Annotations") / f"{i}.xml", objects if i else [])
    if layout == "ImageSets":
        lists = tmp_path / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("0\n1  1\n2 -1\n")
        (lists / "val.txt").write_text("3\n4\n")
    task = data.load_boxes(tmp_path)
    sizes = {"ImageSets": [3, 2, 2], "split": [5, 1, 4]}.get(layout, [6, 2, 2])
    assert [len(d) for d in (task.train, task.val, task.test)] == sizes
    assert task.classes == ("ace", "king") and task.train.category_ids == (1, 2)
    # Counted from 1, the last pixel included: this box is ten pixels wide and begins at the edge.
    assert found(task)["1.JPG"][:, :5].tolist() == [[0, 1, 10, 20, 2], [4, 5, 40, 30, 1]]
    assert (task.test is task.val) == (layout == "ImageSets")
    if layout == "split":
        assert names(task.test) == {"6.jpg", "7.JPG", "8.jpg", "9.JPG"}


def test_numbered_masks_become_boxes(tmp_path):
    levels = np.array(
        [[0, 0, 3, 3, 0, 0],
         [1, 0, 3, 3, 0, 0],
         [1, 0, 0, 0, 0, 700],
         [1, 1, 0, 0, 3, 0]]
    )  # fmt: skip
    rows = boxes.instance_boxes(levels)
    assert rows.tolist() == [
        [0, 1, 2, 4, 1, 0, 4],
        [2, 0, 5, 4, 1, 0, 5],  # in two parts
        [5, 2, 6, 3, 1, 0, 1],
    ]
    assert boxes.instance_boxes(np.zeros((3, 4), int)).shape == (0, 7)
    task = data.load_boxes(pairs(tmp_path, levels, folder="labels"))
    assert task.classes == ("object",) and task.val[0][1]["boxes"].tolist() == rows[:, :4].tolist()
    halves = data.load_masks(tmp_path, size=12, instances=True, augment="none")
    assert halves.classes == ("background", "object")
    assert torch.equal(halves.val[0][1][::3, ::2], torch.from_numpy((levels > 0).astype(int)))
    with pytest.raises(ValueError, match="values 0, 1, 3, 700. Which classes.*classes.txt.*instances=True"):
        data.load_masks(tmp_path, size=12)


@pytest.mark.parametrize("layout", ["flat", "images/train", "train/images"])
def test_pairs_of_images_and_masks_are_read(layout, tmp_path):
    if layout == "flat":
        pairs(tmp_path, HALVES)
        sizes = [6, 2, 2]
    else:
        for split, count in (("train", 5), ("val", 3), ("test", 2)):
            pairs(tmp_path / "raw" / split, HALVES, count, folder="labels")
            for kind in ("images", "labels"):
                target = tmp_path / "set" / (f"{kind}/{split}" if layout == "images/train" else f"{split}/{kind}")
                target.parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "raw" / split / kind).rename(target)
        tmp_path, sizes = tmp_path / "set", [5, 3, 2]
    task = data.load_masks(tmp_path, size=20)
    assert [len(d) for d in (task.train, task.val, task.test)] == sizes
    assert torch.equal(task.val[0][1], torch.from_numpy(HALVES[:20, ::2]).long())


KINDS = {
    "index": (2 * HALVES, "a\nb\nc\n", None, ("a", "b", "c"), {0: 0, 2: 2}),
    "ignored": (255 * HALVES, "a\nb\n", None, ("a", "b"), {0: 0, 255: 255}),
    "palette": (2 * HALVES, "a\nb\nc\n", "P", ("a", "b", "c"), {0: 0, 2: 2}),
    "grey levels": (80 * HALVES + 20, "20 sky\n100 blue sea\n", None, ("sky", "blue sea"), {20: 0, 100: 1}),
    "white": (255 * HALVES, None, None, ("background", "foreground"), {0: 0, 255: 1}),
    "one": (HALVES, None, None, ("background", "foreground"), {0: 0, 1: 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind(kind, tmp_path):
    levels, listed, mode, classes, expected = KINDS[kind]
    root = pairs(tmp_path, levels, mode=mode)
    if listed:
        (root / "classes.txt").write_text(listed)
    task = data.load_masks(root, size=40, augment="none")
    assert task.classes == classes
    labels = task.train[0][1][0]
    assert labels[0] == expected[levels[0, 0]] and labels[-1] == expected[levels[0, -1]]


def test_classes_without_names_are_numbered_if_there_is_no_gap(tmp_path):
    root = pairs(tmp_path, HALVES)
    mask(root / "masks" / "3.png", np.array([[0, 2], [255, 1]]).repeat(15, 0).repeat(20, 1))
    assert data.load_masks(root, size=8).classes == ("0", "1", "2")


def test_ade20k_counts_from_one(tmp_path):
    for split in ("training", "validation"):
        for i in range(3):
            picture(tmp_path / "images" / split / f"{i}.jpg", seed=i)
            mask(tmp_path / "annotations" / split / f"{i}.png", 3 * HALVES)
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t.1\t9\t9\t1\twall", "2\t.1\t9\t9\t0\tscreen, silver screen"]
    (tmp_path / "objectInfo150.txt").write_text("\n".join([*rows, "3 \t .1 \t 9 \t 9 \t 0 \t screen, CRT screen "]))
    task = data.load_masks(tmp_path, size=40, augment="none")
    assert task.classes == ("wall", "screen, silver screen", "screen, CRT screen") and task.test is task.val
    assert task.train[0][1][0, [0, -1]].tolist() == [255, 2]
    (tmp_path / "objectInfo150.txt").write_text("wall\nfloor\n")
    with pytest.raises(ValueError, match="objectInfo150.txt: expected a table .*Idx and Name"):
        data.load_masks(tmp_path, size=40)


# --------------------------------------------------------------------------------------------------------- what is put right


def test_boxes_without_area_are_left_out_and_counted(tmp_path):
    rows = [box(i, (1, 2, 3, 4)) for i in range(10)]
    rows += [box(3, (5, 5, 0, 4)), box(3, (5, 5, 4, -2)), box(4, (0, 0, 0, 0), id=99)]
    with pytest.warns(UserWarning, match=r"3 boxes without area were left out; the first: .*boxes.json: annotations\[10\]"):
        task = data.load_boxes(coco(tmp_path, rows))
    assert all(len(objects) == 1 for objects in found(task).values())


def test_boxes_over_the_edge_are_clipped_and_those_beyond_it_left_out(tmp_path):
    rows = [box(i, (-0.5, 0, 20, 30.4)) for i in range(10)]  # annotators round: not worth a word
    rows += [box(1, (30, -5, 50, 20), area=900), box(2, (40, 0, 9, 9)), box(2, (-30, 0, 9, 9))]
    with pytest.warns(UserWarning) as caught:
        task = data.load_boxes(coco(tmp_path, rows))
    said = sorted(str(warning.message) for warning in caught)
    assert len(said) == 2 and "1 boxes that reach over the edge" in said[0] and "2 boxes outside their picture" in said[1]
    assert found(task)["1.jpg"].tolist() == [[0, 0, 19.5, 30, 1, 0, 585], [30, 0, 40, 15, 1, 0, 150]]
    assert len(found(task)["2.jpg"]) == 1


def test_a_rotation_in_exif_is_not_carried_out(tmp_path):
    root = coco(tmp_path, [box(i, (1, 2, 3, 4)) for i in range(10)])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(root / "images" / "0.jpg", exif=exif)
    with pytest.warns(UserWarning, match="1 pictures note a rotation in EXIF, which is not carried out.*0.jpg"):
        task = data.load_boxes(root)
    assert all(image.shape == (3, 30, 40) for d in (task.train, task.val, task.test) for image, _ in d)
    document = json.loads((root / "boxes.json").read_text())
    document["images"][0] |= {"width": 30, "height": 40}  # boxes drawn on the upright picture
    (root / "boxes.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"0.jpg: it has 40 x 30 pixels, but 30 x 40 are stated.*EXIF.*save it upright"):
        data.load_boxes(root)


def test_pictures_without_xml_are_left_out_and_counted(tmp_path):
    for i in range(12):
        picture(tmp_path / f"{i}.png", seed=i)
        if i < 10:
            voc(tmp_path / f"{i}.xml", [("a", 1, 1, 9, 9)])
    with pytest.warns(UserWarning, match="2 pictures without an XML file were left out"):
        assert len(found(data.load_boxes(tmp_path))) == 10


def test_sizes_that_are_not_stated_are_read_from_the_pictures(tmp_path):
    for i in range(4):
        picture(tmp_path / "voc" / f"{i}.png", seed=i)
        voc(tmp_path / "voc" / f"{i}.xml", [("a", 1, 1, 9, 9)], size=(0, 0) if i else None)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)]
    for root in (tmp_path / "voc", coco(tmp_path / "coco", [box(0, (1, 1, 2, 2))], images=images)):
        assert data.load_boxes(root).train[0][0].shape == (3, 30, 40)


@pytest.mark.parametrize("kind", ["grey", "16 bit", "palette", "rgba"])
def test_pictures_of_every_kind_become_rgb(kind, tmp_path):
    root = pairs(tmp_path, HALVES)
    (root / "images" / "0.JPG").unlink()
    image = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40))
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if kind == "16 bit" else image
    image = image.convert({"palette": "P", "rgba": "RGBA"}[kind]) if kind in ("palette", "rgba") else image
    image.save(root / "images" / "0.png")
    task = data.load_masks(root, size=40, augment="none")
    tensors = [d.pair(i)[0] for d in (task.train, task.val, task.test) for i in range(len(d))]
    assert all(tensor.shape == (3, 40, 40) and tensor.dtype == torch.uint8 for tensor in tensors)


# -------------------------------------------------------------------------------------------------------------- what is wrong


def refused(match: str, load=data.load_boxes, *arguments, **options) -> str:
    with pytest.raises(ValueError, match=f"(?s){match}") as caught:
        load(*arguments, **options)
    return str(caught.value)


def test_missing_and_truncated_pictures_are_named_at_once(tmp_path):
    root = coco(tmp_path, [box(0, (1, 1, 2, 2))])
    for i in range(7):
        path = root / "images" / f"{i}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    (root / "images" / "7.jpg").write_text("no picture")
    Image.new("RGB", (40, 30)).save(root / "images" / "8.pcx")
    (root / "images" / "8.pcx").rename(root / "images" / "8.jpg")  # a kind that no accepted ending stands for
    said = refused("9 problems:.*0.jpg: .*truncated.*... and 4 more.*Replace these files", data.load_boxes, root)
    assert said.count(".jpg") == 5
    for i in range(6):
        (root / "images" / f"{i}.jpg").unlink()
    said = refused(r"6 problems:.*images\[0\]: 0.jpg does not exist.*and 1 more", data.load_boxes, root)
    assert said.count(".jpg") == 5


def test_a_picture_beyond_pillows_limit_is_named(tmp_path, monkeypatch):
    root = pairs(tmp_path, HALVES)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # twice that is refused
    refused("10 problems:.*0.JPG: Image size .1200 pixels. exceeds limit", lambda: data.load_masks(root, size=8))


def test_hidden_files_are_passed_over(tmp_path):
    root = coco(tmp_path / "coco", [box(0, (1, 1, 2, 2))])
    (root / "._boxes.json").write_bytes(b"\0")
    for i in range(4):
        picture(tmp_path / "voc" / f"{i}.png")
        voc(tmp_path / "voc" / f"{i}.xml", [("a", 1, 1, 9, 9)])
        (tmp_path / "voc" / f"._{i}.png").write_bytes(b"\0")
        (tmp_path / "voc" / f"._{i}.xml").write_bytes(b"\0")
    pairs(tmp_path / "pairs", HALVES)
    (tmp_path / "pairs" / "images" / "._0.JPG").write_bytes(b"\0")
    assert len(found(data.load_boxes(root))) == 10 and len(found(data.load_boxes(tmp_path / "voc"))) == 4
    assert len(data.load_masks(tmp_path / "pairs", size=8).train) == 6


def test_a_picture_that_goes_bad_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "IN_MEMORY", 0)
    task = data.load_boxes(coco(tmp_path, []))
    path = Path(task.train.boxed[0].path)
    path.unlink()
    refused(f"{path.name}: there is no such file", lambda: task.train[0])


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([box(77, (1, 1, 2, 2))], r"annotations\[0\] \(id 7\) is of image 77, which is not in the file"),
        ([box(True, (1, 1, 2, 2))], "is of image True"),
        ([box(0, (1, 1, 2, 2), category=5)], "is of category 5, which is not in the file"),
        ([box(0, (1, 1, 2))], r"needs a bbox of four numbers x, y, width, height; got \[1, 1, 2\]"),
        ([box(0, (1, 1, 2, float("nan")))], "needs a bbox of four numbers"),
        ([box(0, (1, 1, 2, float("inf")))], "needs a bbox of four numbers"),
        ([box(0, (1, 1, 2, "3"))], "needs a bbox of four numbers"),
        ([{"id": 1, "image_id": 0, "category_id": 1}], "needs a bbox of four numbers"),
        ([box(50 + i, (1, 1, 2, 2)) for i in range(8)], "8 problems.*and 3 more"),
        ([3], r"no COCO file: annotations\[0\] is not an object"),
    ],
)
def test_annotations_that_are_wrong_are_named(rows, problem, tmp_path):
    assert "boxes.json: " in refused(problem, data.load_boxes, coco(tmp_path, rows))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images": [{"id": 0, "file_name": "../outside.jpg"}]}, "../outside.jpg leads out of the folder"),
        ({"images": [{"id": 0, "file_name": "/outside.jpg"}]}, "/outside.jpg leads out of the folder"),
        ({"images": [{"id": 0, "file_name": "1.jpg"}, {"id": 1, "file_name": "1.jpg"}]}, r"images\[1\]: 1.jpg is there twice"),
        ({"images": [{"id": 0}]}, r"images\[0\] needs a file_name and an id"),
        (
            {"images": [{"id": 0, "file_name": "1.jpg"}, {"id": 0, "file_name": "2.jpg"}]},
            r"images\[1\] needs .* an id of its own",
        ),
        ({"images": []}, "no pictures"),
        ({"categories": [{"id": 1}]}, r"categories\[0\] needs a name and an id"),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            r"categories\[1\] needs a name and an id of its own",
        ),
        ({"annotations": {}}, "no COCO file: expected an object with the lists images, annotations and categories"),
        ({"images": [{"id": i, "file_name": f"{i}.jpg", "width": 99, "height": 30} for i in range(10)]}, "40 x 30 .*99 x 30"),
    ],
)
def test_coco_files_that_are_wrong_are_refused(changes, problem, tmp_path):
    picture(tmp_path.parent / "outside.jpg")
    refused(problem, data.load_boxes, coco(tmp_path, [], **changes))


def test_json_that_is_nested_huge_or_something_else(tmp_path, monkeypatch):
    root = coco(tmp_path, [])
    for content, problem in (
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ', "boxes.json: no COCO file, since no JSON .*line 1"),
        ("[" + "9" * 10_000 + "]", "no COCO file, since no JSON"),
        ("[1, 2]", "no COCO file: .*found list"),
        ('{"type": "FeatureCollection"}', "found type"),
    ):
        (root / "boxes.json").write_text(content)
        refused(problem, data.load_boxes, root)
    (root / "boxes.json").write_bytes(b"\xff\xfe\x00")
    refused("boxes.json", data.load_boxes, root)
    monkeypatch.setattr(boxes, "MOST_JSON", 2)
    refused("has 3 bytes, and 2 are the most", data.load_boxes, root)
    (root / "more.json").touch()
    refused("boxes.json and .*more.json are both annotations for the whole set; give the path", data.load_boxes, root)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>', "DOCTYPE or ENTITY"),
        (b'<!doctype a><annotation/>', "DOCTYPE or ENTITY"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><annotation/>'.encode("utf-16"), "no text in UTF-8"),
        (b"<annotation>", "cannot be read as Pascal VOC"),
        (b"", "cannot be read as Pascal VOC"),
        (b'<?xml version="1.0" encoding="nonsense"?><annotation/>', "cannot be read as Pascal VOC"),
        (b"<html/>", "the root is <html>, expected <annotation>"),
        (b"<annotation><object><name>a</name></object></annotation>", "object 1 needs a <name> and a <bndbox> of four"),
        (b"<annotation>" + b" " * 2000 + b"</annotation>", "2,025 bytes, and 1,000 are the most"),
    ],
)  # fmt: skip
def test_xml_that_is_wrong_or_harmful_is_refused(content, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "MOST_XML", 1000)
    for i in range(5):
        picture(tmp_path / f"{i}.jpg")
        voc(tmp_path / f"{i}.xml", [("a", 1, 1, 9, 9)])
    (tmp_path / "3.xml").write_bytes(content)
    refused(f"1 problem:.*3.xml: .*{problem}", data.load_boxes, tmp_path)


def test_xml_that_disagrees_with_its_picture_is_named(tmp_path):
    for i in range(9):
        if i != 8:
            picture(tmp_path / f"{i}.jpg")
        voc(tmp_path / f"{i}.xml", [("a", 1, 1, 9, 9)], size=(30, 40) if i == 2 else (40, 31) if i == 5 else (40, 30))
    (tmp_path / "3.jpg").write_bytes(b"")
    said = refused("4 problems", data.load_boxes, tmp_path)
    assert "2.xml: it states 30 x 40 pixels, but 2.jpg has 40 x 30 (rotated in EXIF?" in said
    assert "5.xml: it states 40 x 31 pixels" in said and "3.jpg: " in said and "8.xml: there is no picture 8.*" in said
    for path in tmp_path.glob("*.xml"):
        voc(path, [])
    shutil.copy(tmp_path / "0.jpg", tmp_path / "8.jpg")
    shutil.copy(tmp_path / "0.jpg", tmp_path / "3.jpg")
    refused("9 XML files, but no object in any of them", data.load_boxes, tmp_path)
    shutil.copy(tmp_path / "0.jpg", tmp_path / "0.JPEG")
    refused("0.JPEG and 0.jpg differ in their endings only", data.load_boxes, tmp_path)


def test_lists_that_name_what_is_not_there_or_twice(tmp_path):
    for i in range(4):
        picture(tmp_path / "JPEGImages" / f"{i}.jpg")
        voc(tmp_path / "Annotations" / f"{i}.xml", [("a", 1, 1, 9, 9)])
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n9\n")
    (lists / "val.txt").write_text("1\n2\n")
    refused("train.txt: there is no 9.xml", data.load_boxes, tmp_path)
    (lists / "train.txt").write_text("0\n1\n")
    refused("1.jpg is in train and in val.*tests nothing", data.load_boxes, tmp_path)
    (lists / "val.txt").write_text("")
    refused("has a val set without pictures", data.load_boxes, tmp_path)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("accessed", [False, True])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (damaged, "3.png: "),
        (
            lambda p: mask(p, HALVES + 7 * (HALVES > 0)),
            r"3.png: 600 pixels have values that are no class, as 8; known are 0 a, 1 b",
        ),
        (lambda p: Image.fromarray(np.zeros((30, 40, 3), np.uint8) + np.uint8([1, 2, 3])).save(p), "3.png: it has colours"),
        (lambda p: Image.fromarray(HALVES.astype(np.float32)).save(p.with_suffix(".tif")) or p.unlink(), "3.tif: .*mode F"),
    ],
)
def test_masks_that_are_wrong_are_named(change, problem, accessed, tmp_path, monkeypatch):
    root = pairs(tmp_path, HALVES)
    (root / "classes.txt").write_text("a\nb\n")
    change(root / "masks" / "3.png")
    if accessed:
        monkeypatch.setattr(dense, "IN_MEMORY", 0)

    def everything():
        task = data.load_masks(root, size=20)
        for dataset in (task.train, task.val, task.test):
            for i in range(len(dataset)):
                dataset[i]

    refused(problem, everything)


@pytest.mark.parametrize("listed", [None, "0 background\n255 thing\n"])
def test_smoothed_masks_are_named(listed, tmp_path):
    root = pairs(tmp_path, 255 * HALVES)
    if listed:
        (root / "classes.txt").write_text(listed)
    for i in range(7):
        path = root / "masks" / f"{i}.png"
        Image.open(path).resize((20, 15), Image.BICUBIC).resize((40, 30), Image.BICUBIC).save(path)
    said = refused("7 problems:.*0.png: .*grey levels between .*and 2 more", data.load_masks, root, size=20)
    assert "PNG" in said and said.count(".png") == 5


def test_pairs_that_do_not_match_are_named(tmp_path):
    root = pairs(tmp_path, HALVES)
    mask(root / "masks" / "4.png", np.zeros((31, 40)))
    refused("1 problem:.*4.png: it has 40 x 31 pixels, but 4.JPG has 40 x 30", data.load_masks, root, size=20)
    refused("1 problem:.*4.png: it has 40 x 31 pixels, but 4.JPG 40 x 30", data.load_boxes, root)
    (root / "masks" / "4.png").unlink()
    (root / "images" / "5.JPG").unlink()
    said = refused("2 problems", data.load_masks, root, size=20)
    assert "4.JPG has no mask 4.*" in said and "5.png has no picture 5.*" in said


@pytest.mark.parametrize("listed", ["a\n", "a\na\n", "1 a\n1 b\n", "99999 a\n2 b\n", "\n".join(f"c{i}" for i in range(256))])
def test_lists_of_classes_that_are_wrong(listed, tmp_path):
    root = pairs(tmp_path, HALVES)
    (root / "classes.txt").write_text(listed)
    refused("classes.txt: ", data.load_masks, root, size=20)


def test_wrong_arguments_are_named(tmp_path, drawn, monkeypatch):
    monkeypatch.delenv("MINICA_DATA", raising=False)
    for load, options in ((data.load_boxes, {}), (data.load_masks, {"size": 20})):
        refused("unknown data set .*nowhere.*choose one of scenes, .*nuclei", load, tmp_path / "nowhere", **options)
        refused("has no (boxes|masks): expected", load, tmp_path, **options)
        refused("augmentation 'mixup'; choose one of", load, drawn, **options | {"augment": "mixup"})
        refused("where are the benchmarks.*MINICA_DATA", load, "nuclei", **options)
        refused("nuclei is not in .*none of the folders nuclei.*prepare.py nuclei", load, "nuclei", root=tmp_path, **options)
        refused("root= is for .*leave it out", load, drawn, root=tmp_path, **options)
        for size in (0, -3, 2.5, "8", True):
            refused("size must be a whole number of pixels", load, drawn, size=size)
    (tmp_path / "coco").mkdir()
    monkeypatch.chdir(tmp_path)
    refused("^coco has no boxes: expected", data.load_boxes, Path("coco"))
    refused("ade20k has no boxes; choose one of scenes, coco, nuclei, cards", data.load_boxes, "ade20k")
    refused("cards has no masks; choose one of scenes, ade20k, nuclei", data.load_masks, "cards", size=8)
    refused("std must be above 0", data.load_masks, drawn / "ade20k", size=8, std=0)
    refused("mean must be one finite number", data.load_masks, drawn / "ade20k", size=8, mean=(1, 2))
    refused("has 2 pictures, but at least 3", data.load_boxes, coco(tmp_path, [], count=2))
    (tmp_path / "text.txt").write_text("no json")
    refused("text.txt: no COCO file", data.load_boxes, tmp_path / "text.txt")


def test_a_set_without_pictures_is_refused(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    refused("has no pictures; add some", data.load_masks, tmp_path, size=8)
    refused("has no pictures; add some", data.load_boxes, tmp_path)


def test_a_set_without_train_is_refused(tmp_path):
    coco(tmp_path / "val", [box(0, (1, 1, 2, 2))])
    refused("has val, but no train set; add one", data.load_boxes, tmp_path)


def test_problems_are_counted_and_remarks_said_once():
    pictures.refuse([], "a", "b")
    with pytest.raises(ValueError, match="^a: 1 problem:\n  x\nb$"):
        pictures.refuse(["x"], "a", "b")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pictures.Remarks().warn("a")
    assert not caught


# ------------------------------------------------------------------------------------------------------------------ presets


def test_presets_are_arguments():
    for preset in data.BOX_PRESETS.values():
        assert preset.keys() == {"size", "min_size", "max_size"}
    assert data.BOX_PRESETS["paper"] == {"size": None, "min_size": (800,), "max_size": 1333}
    assert data.BOX_PRESETS["multi-scale"]["min_size"][0] == 480 and data.BOX_PRESETS["multi-scale"]["min_size"][-1] == 800
    assert data.MASK_PRESETS["paper"] == {"size": 512, "augment": "crop"}


@pytest.mark.parametrize("preset", data.MASK_PRESETS)
def test_a_preset_loads(preset, drawn):
    task = data.load_masks(drawn / "ade20k", **data.MASK_PRESETS[preset])
    assert task.train[0][1].shape == (task.size, task.size) == (data.MASK_PRESETS[preset]["size"],) * 2


# --------------------------------------------------------------------------------------------------------------- named sets


@pytest.fixture
def nuclei(tmp_path, monkeypatch) -> Path:
    """Forty small images, a quarter of them stained."""
    root = tmp_path / "data" / "nuclei"
    rows = ["id,width,height,nuclei,stained"]
    for i in range(40):
        levels = np.zeros((12, 14), int)
        levels[2:5, 3:8], levels[7:9, i % 10 : i % 10 + 2] = 1, 300
        picture(root / "images" / f"n{i}.png", 14, 12, seed=i)
        mask(root / "labels" / f"n{i}.png", levels)
        rows.append(f"n{i},14,12,2,{int(i % 4 == 0)}")
    (root / "index.csv").write_text("\n".join(rows))
    monkeypatch.setitem(named.NAMED, "nuclei", replace(named.NAMED["nuclei"], images=40))
    monkeypatch.setenv("MINICA_DATA", str(tmp_path / "data"))
    return root


def test_nuclei_are_boxes_and_masks_in_the_same_split(nuclei):
    with_boxes, with_masks = data.load_boxes("nuclei"), data.load_masks("nuclei", size=14)
    assert with_boxes.classes == ("nucleus",) and with_masks.classes == ("background", "nucleus")
    assert with_boxes.licence == with_masks.licence == "CC0" and "30354551" in with_boxes.source
    for split, count, stained in (("train", 28, 6), ("val", 6, 2), ("test", 6, 2)):
        here = names(getattr(with_boxes, split))
        assert here == names(getattr(with_masks, split)) and len(here) == count
        assert abs(sum(int(name[1:-4]) % 4 == 0 for name in here) - stained) <= 1
    assert len(with_boxes.val[0][1]["labels"]) == 2 and with_boxes.val[0][1]["boxes"][0].tolist() == [3, 2, 8, 5]
    assert set(with_masks.val[0][1].unique().tolist()) == {0, 1}
    (nuclei / "labels" / "n3.png").unlink()
    (nuclei / "images" / "n3.png").unlink()
    with pytest.warns(UserWarning, match="this copy of nuclei has 39 images"):
        data.load_boxes("nuclei", root=nuclei.parent)
    (nuclei / "index.csv").write_text("id,stained\nn0,1\n")
    refused("index.csv: expected the columns id and stained", data.load_masks, "nuclei", size=8)


def test_cards_take_val_from_train(tmp_path, monkeypatch):
    for split, count in (("train", 20), ("test", 5)):
        for i in range(count):
            picture(tmp_path / "cards" / split / f"{split}{i}.JPG", seed=i)
            voc(tmp_path / "cards" / split / f"{split}{i}.xml", [("ace" if i % 2 else "ten", 1, 1, 9, 9)])
        (tmp_path / "cards" / f"{split}_labels.csv").write_text("filename\n")
    monkeypatch.setitem(named.NAMED, "cards", replace(named.NAMED["cards"], images=25))
    task = data.load_boxes("cards", root=tmp_path)
    assert [len(d) for d in (task.train, task.val, task.test)] == [16, 4, 5] and task.licence == "Apache-2.0"
    assert all(name.startswith("test") for name in names(task.test))


def test_named_sets_say_where_they_are_from():
    for name, facts in named.NAMED.items():
        assert facts.licence and facts.source and facts.folders[0] == name and set(facts.reads) <= {"boxes", "masks", "classes"}
        assert "github.com" not in facts.source or " commit " in facts.source
