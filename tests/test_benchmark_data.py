"""Are the benchmarks read as others lay them out, and is whatever is wrong with a copy named with file and line?"""

from __future__ import annotations

import csv
import json
import pickle
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader

import minica
from minica import data
from minica.data.catalogue import FEW_SHOT, VTAB
from minica.data.fgvc import ninety_ten

# The copies written here are far smaller than the published ones, which load() says each time.
pytestmark = pytest.mark.filterwarnings("ignore:this copy of")


def picture(path: Path, seed: int = 0, width: int = 36, height: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(path)


def pairs(dataset) -> list[tuple[str, int]]:
    return list(zip(dataset.images.names.tolist(), dataset.labels.tolist(), strict=True))


def lengths(task) -> list[int]:
    return [len(d) for d in (task.train, task.val, task.test, task.final)]


# ----------------------------------------------------------------------------------------------------------------- VTAB


def make_vtab(root: Path, folder: str = "cifar", train: int = 8, val: int = 2, test: int = 5) -> Path:
    """A task in NOAH's layout, each image stored anew for each list it is in; picture i has label 7 * i % classes."""
    (facts,) = {id(facts): facts for facts in VTAB.values() if folder in facts.folders}.values()
    task = root / "vtab-1k" / folder
    for split, first, count in (
        ("train800", 0, train),
        ("val200", train, val),
        ("train800val200", 0, train + val),
        ("test", 99, test),
    ):
        names = [f"images/{split}/{i:06}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            picture(task / name, first + i)
        lines = [f"{name} {7 * (first + i) % facts.classes}\n" for i, name in enumerate(names)]
        (task / f"{split}.txt").write_text("".join(lines))
    return task


@pytest.mark.parametrize("folder", ["cifar", "cifar100"])
def test_vtab_is_read_as_noah_writes_it(folder, tmp_path):
    make_vtab(tmp_path, folder)
    task = data.load("vtab/cifar100", size=16, root=tmp_path)
    assert task.name == "vtab/cifar100" and len(task.classes) == 100 and lengths(task) == [8, 2, 5, 10]
    assert pairs(task.final)[9] == ("images/train800val200/000009.jpg", 63)
    assert task.val.labels.tolist() == [56, 63] and task.test.labels.tolist() == [93, 0, 7, 14, 21]
    image, label = task.test[2]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 7
    assert "vtab/cifar100" in repr(task).splitlines()[0] and repr(task).splitlines()[-1].split() == ["all", "8", "2", "5"]


def test_the_folder_may_come_from_the_environment_and_be_the_benchmark_itself(tmp_path, monkeypatch):
    make_vtab(tmp_path)
    expected = data.load("vtab/cifar100", size=8, root=tmp_path).test[0][0]
    for place in (tmp_path, tmp_path / "vtab-1k"):
        monkeypatch.setenv("MINICA_DATA", str(place))
        assert torch.equal(data.load("vtab/cifar100", size=8).test[0][0], expected)
    monkeypatch.delenv("MINICA_DATA")
    with pytest.raises(ValueError, match="root=.*MINICA_DATA"):
        data.load("vtab/cifar100", size=8)


def test_vtab_without_some_of_its_lists(tmp_path):
    task = make_vtab(tmp_path)
    (task / "train800val200.txt").unlink()
    joined = data.load("vtab/cifar100", size=8, root=tmp_path)
    assert pairs(joined.final) == pairs(joined.train) + pairs(joined.val)


def test_of_the_thousand_alone_the_last_two_hundred_are_for_validation(tmp_path):
    task = make_vtab(tmp_path)
    (task / "train800.txt").unlink()
    name = "images/train800val200/000000.jpg"
    for i in range(803):
        (task / name.replace("000000", f"k{i:03}")).hardlink_to(task / name)
    (task / "train800val200.txt").write_text("".join(f"images/train800val200/k{i:03}.jpg {i % 100}\n" for i in range(803)))
    found = data.load("vtab/cifar100", size=8, root=tmp_path)
    assert lengths(found) == [800, 3, 5, 803] and found.val.labels.tolist() == [0, 1, 2]


def test_labels_that_a_rule_gives_have_names():
    """Thresholds and steps of the label rules (Zhai et al. 2019, task_adaptation)."""
    for name, labels in {
        "clevr_count": ["3 objects", "10 objects"],
        "dsprites_loc": ["x 0-1", "x 30-31"],
        "smallnorb_azi": ["0 degrees", "340 degrees"],
        "smallnorb_ele": ["30 degrees", "70 degrees"],
        "kitti": ["to 8 m", "no vehicle"],
    }.items():
        assert len(VTAB[name].names) == VTAB[name].classes
        assert [VTAB[name].names[0], VTAB[name].names[-1]] == labels


# ----------------------------------------------------------------------------------------------------------------- FGVC


def test_ninety_ten_is_scikit_learns_split():
    for n in (37, 5994, 8144, 12000, 23929):
        train, val = train_test_split(list(range(n)), test_size=0.1, train_size=0.9, shuffle=True, random_state=42)
        assert ninety_ten(list(range(n))) == {"train": train, "val": val}
    sizes = [tuple(map(len, ninety_ten(list(range(n))).values())) for n in (5994, 23929, 12000, 8144)]
    assert sizes == [(5394, 600), (21536, 2393), (10800, 1200), (7329, 815)]  # the paper's Table 6


def make_birds(folder: Path, ids: list[int], each: int = 8) -> None:
    """CUB's and NABirds' three lists; of each class ``each`` images, every fourth of them for testing."""
    rows = [(f"k{number:03}-{i}", number, f"{number:03}.Bird/{i}.jpg", int(i % 4 != 3)) for number in ids for i in range(each)]
    for _, number, name, _ in rows:
        picture(folder / "images" / name, number)
    (folder / "images.txt").write_text("".join(f"{key} {name}\n" for key, _, name, _ in rows))
    (folder / "image_class_labels.txt").write_text("".join(f"{key} {number}\n" for key, number, _, _ in rows[::-1]))
    (folder / "train_test_split.txt").write_text("".join(f"{key} {side}\n" for key, _, _, side in rows))
    (folder / "classes.txt").write_text("".join(f"{number} Species {number}\n" for number in range(max(ids) + 1)))


def test_birds_are_read_as_published(tmp_path):
    make_birds(tmp_path / "fgvc" / "CUB_200_2011", [1, 2, 3])
    make_birds(tmp_path / "fgvc" / "nabirds" / "nabirds", [295, 7, 1010])
    cub, nabirds = (data.load(f"fgvc/{name}", size=8, root=tmp_path) for name in ("cub200", "nabirds"))
    assert lengths(cub) == lengths(nabirds) == [16, 2, 6, 18]
    assert nabirds.classes == ("Species 7", "Species 295", "Species 1010") and cub.classes[0] == "Species 1"
    # 295 comes first in the list and second in the labels.
    assert set(pairs(nabirds.test)) == {(f"{n:03}.Bird/{i}.jpg", k) for k, n in enumerate((7, 295, 1010)) for i in (3, 7)}
    assert sorted(pairs(cub.train) + pairs(cub.val)) == sorted(pairs(cub.final))
    assert not {name for name, _ in pairs(cub.test)} & {name for name, _ in pairs(cub.final)}


def make_mat(path: Path, **variables) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def cells(texts: list[str]) -> np.ndarray:
    found = np.empty((len(texts), 1), object)
    found[:, 0] = texts
    return found


def test_dogs_are_read_as_published(tmp_path):
    folder = tmp_path / "dogs"
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        names = [f"n{i % 2}-Breed_{i % 2}/n{i % 2}_{i}" for i in numbers]
        for i, name in enumerate(names):
            picture(folder / "Images" / f"{name}.jpg", i)
        labels = np.array([[i % 2 + 1] for i in numbers], float)
        make_mat(folder / f"{split}_list.mat", annotation_list=cells(names), labels=labels)
    task = data.load("fgvc/dogs", size=8, root=tmp_path)
    assert lengths(task) == [9, 1, 4, 10] and task.classes[:2] == ("Breed_0", "Breed_1") and len(task.classes) == 120
    assert pairs(task.test)[0] == ("n0-Breed_0/n0_10.jpg", 0)


@pytest.mark.parametrize("labelled", ["devkit", "."])
def test_cars_are_read_as_published_and_as_torchvision_wants_them(labelled, tmp_path):
    folder = tmp_path / "fgvc" / "stanford_cars"
    make_mat(folder / "devkit" / "cars_meta.mat", class_names=np.array([f"Car {i}" for i in range(196)], object)[None])
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", f"{labelled}/cars_test_annos_withlabels.mat")):
        rows = np.array([(i % 2 + 1, f"{i:05}.jpg") for i in range(10)], [("class", "O"), ("fname", "O")])
        make_mat(folder / path, annotations=rows[None])
        for i in range(10):
            picture(folder / f"cars_{split}" / f"{i:05}.jpg", i)
    task = data.load("fgvc/cars", size=8, root=tmp_path)
    assert lengths(task) == [9, 1, 10, 10] and task.classes[195] == "Car 195"
    assert pairs(task.test)[3] == ("cars_test/00003.jpg", 1)


@pytest.mark.parametrize("kept", [True, False], ids=["all images in car_ims", "images beside the lists"])
def test_vpts_lists_come_first_and_cars_prefix_may_be_gone(kept, tmp_path):
    folder = tmp_path / "fgvc" / "cars"
    for split, numbers in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 12))):
        for i in numbers:
            picture(folder / ("car_ims" if kept else "") / f"{i:06}.jpg", i)
        folder.joinpath(f"{split}.json").write_text(json.dumps({f"car_ims/{i:06}.jpg": 5 + 90 * (i % 2) for i in numbers}))
    task = data.load("fgvc/cars", size=8, root=tmp_path)
    assert lengths(task) == [6, 2, 4, 8] and task.classes == ("5", "95") and "VPT" in task.source
    assert pairs(task.val) == [(f"{'car_ims/' if kept else ''}{i:06}.jpg", i % 2) for i in (6, 7)]


# ------------------------------------------------------------------------------------------------------------- few-shot


def make_shots(root: Path, folder: str = "oxford-pets", images: str = "images", shots: int = 2, twice: bool = False) -> Path:
    """A few-shot task in NOAH's layout, with one val and one test image a class."""
    (facts,) = (facts for facts in FEW_SHOT.values() if folder in facts.folders)
    task = root / "few-shot" / folder
    lists = {
        f"train_meta.list.num_shot_{shots}.seed_{seed}": [
            f"a cat {c}_{seed}{i}.jpg" for i in range(shots) for c in range(facts.classes)
        ]
        for seed in range(2)
    }
    lists |= {f"{split}_meta.list": [f"{split} {c}.jpg" for c in range(facts.classes)] for split in ("val", "test")}
    for name, entries in lists.items():
        for entry in entries:
            picture(task / images / entry, hash(entry) % 1000, 6, 4)
        lines = [f"{entry} {i % facts.classes}\n" for i, entry in enumerate(entries)]
        (task / "annotations").mkdir(exist_ok=True)
        (task / "annotations" / name).write_text("".join(line * (1 + twice) for line in lines))
    return task


@pytest.mark.parametrize("images", ["images", "data/images", "."])
def test_noahs_lists_of_shots(images, tmp_path):
    make_shots(tmp_path, images=images)
    one, other = (data.load("few-shot/pets", size=8, root=tmp_path, shots=2, seed=seed) for seed in (0, 1))
    assert one.name == "few-shot/pets, 2 shots" and lengths(one) == [74, 37, 37, 74]
    assert Counter(one.train.labels.tolist()) == dict.fromkeys(range(37), 2)
    assert not set(pairs(one.train)) & set(pairs(other.train)) and pairs(one.test) == pairs(other.test)
    assert pairs(one.train)[0] == ("a cat 0_00.jpg", 0) and "NOAH" in one.source
    with pytest.raises(ValueError, match="num_shot_2.seed_0, num_shot_2.seed_1"):
        data.load("few-shot/pets", size=8, root=tmp_path, shots=2, seed=2)


def test_a_line_said_twice_counts_once(tmp_path):
    """As in NOAH's 1-shot lists of the Pets."""
    make_shots(tmp_path, shots=1, twice=True)
    assert lengths(data.load("few-shot/pets", size=8, root=tmp_path, shots=1)) == [37, 37, 37, 37]


def make_coop(folder: Path, images: str, classes: int, each: int = 9) -> Path:
    """``split_zhou_*.json`` with ``each`` training images a class, and one each for val and test."""
    content = {}
    for split, count in (("train", each), ("val", 1), ("test", 1)):
        content[split] = [[f"{c}/{split}{i}.jpg", c, f"kind {c}"] for c in range(classes) for i in range(count)]
        for i, (image, *_) in enumerate(content[split]):
            picture(folder / images / image, i, 6, 4)
    path = folder / "split_zhou_OxfordFlowers.json"
    path.write_text(json.dumps(content))
    return path


def test_shots_are_drawn_from_coops_split_and_nest(tmp_path):
    make_coop(tmp_path / "oxford_flowers", "jpg", 102)
    drawn = {
        (shots, seed): data.load("few-shot/flowers102", size=8, root=tmp_path, shots=shots, seed=seed)
        for shots in (1, 4, 8)
        for seed in (0, 1)
    }
    for (shots, seed), task in drawn.items():
        assert Counter(task.train.labels.tolist()) == dict.fromkeys(range(102), shots)
        assert pairs(task.train) == pairs(task.final) and len(task.val) == len(task.test) == 102
        assert set(pairs(drawn[1, seed].train)) <= set(pairs(task.train)) and task.classes[7] == "kind 7"
    assert pairs(drawn[4, 0].train) != pairs(drawn[4, 1].train)
    chosen = [int(name.removesuffix(".jpg")[-1]) for name, _ in pairs(drawn[1, 0].train)]
    assert len(set(chosen)) == 9  # not the same place of every class
    again = data.load("few-shot/flowers102", size=8, root=tmp_path, shots=4, seed=0)
    assert pairs(again.train) == pairs(drawn[4, 0].train)
    with pytest.raises(ValueError, match="class 0 has 9 training images, expected 16"):
        data.load("few-shot/flowers102", size=8, root=tmp_path, shots=16)


def test_aircraft_is_read_as_published(tmp_path):
    folder = tmp_path / "few-shot" / "fgvc_aircraft"
    names = [f"{'DC-10 /'[i % 2 * 6 :]}{i}" for i in range(100)]
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in names))
    for split, each in (("train", 2), ("val", 1), ("test", 1)):
        rows = [(f"{split}{c}_{i}", c) for c in range(100) for i in range(each)]
        for image, c in rows:
            picture(folder / "images" / f"{image}.jpg", c, 6, 4)
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{image} {names[c]}\n" for image, c in rows))
    task = data.load("few-shot/aircraft", size=8, root=tmp_path, shots=1)
    assert lengths(task) == [100, 100, 100, 100] and task.classes == tuple(names)
    assert pairs(task.test)[5] == ("test5_0.jpg", 5)


def test_pickled_splits_are_refused_with_advice_and_never_opened(tmp_path):
    folder = tmp_path / "few-shot" / "pets"
    (folder / "split_fewshot").mkdir(parents=True)

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (folder / "split_fewshot" / "shot_1-seed_1.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="shot_1-seed_1.pkl: a pickle is a program.*split_zhou_.*drawn here by seed"):
        data.load("few-shot/pets", size=8, root=tmp_path, shots=1, seed=1)
    assert not (tmp_path / "sprung").exists()


# ------------------------------------------------------------------------------------------------------ what goes wrong


def spoil(path: Path, line: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("images/train800/999999.jpg 3", "images/train800/999999.jpg does not exist"),
        ("images/train800/000001.jpg 100", "label 100 is out of range.*100 classes"),
        ("images/train800/000001.jpg -1", "label -1 is out of range"),
        ("images/train800/000001.jpg cat", "'cat'"),
        ("images/train800/000001.jpg", "'images/train800/000001.jpg' as the number"),
        ("../../secret.jpg 3", r"\.\./\.\./secret.jpg leaves the folder"),
        ("/etc/secret.jpg 3", "/etc/secret.jpg leaves the folder"),
        ("C:/secret.jpg 3", "C:/secret.jpg leaves the folder"),
        ("images/train800/000000.jpg 9", "label 9 here and 0 in .*train800.txt:1"),
        ("images/test/000000.jpg 93", "images/test/000000.jpg is in train and in test"),
        ("images/val200/000000.jpg 56", "images/val200/000000.jpg is in train and in val"),
    ],
)
def test_a_bad_line_is_named_with_its_file(line, problem, tmp_path):
    task = make_vtab(tmp_path)
    picture(tmp_path / "secret.jpg")
    spoil(task / "train800.txt", 2, line)
    with pytest.raises(ValueError, match=rf"train800.txt:2: (?s:.*){problem}"):
        data.load("vtab/cifar100", size=8, root=tmp_path)


def test_a_truncated_image_is_named_with_file_and_line(tmp_path):
    task = make_vtab(tmp_path)
    image = task / "images" / "test" / "000003.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    found = data.load("vtab/cifar100", size=8, root=tmp_path)
    with pytest.raises(ValueError, match=r"test.txt:4: cannot decode .*000003.jpg(?s:.*)Replace it"):
        list(DataLoader(found.test, 5))
    with pytest.raises(ValueError, match=r"test.txt:4: cannot decode .*000003.jpg"):
        list(DataLoader(found.test, 5, num_workers=1))


def test_a_missing_or_unreadable_list_is_named(tmp_path):
    task = make_vtab(tmp_path)
    for spoilt, problem in ((b"", "is empty"), (b"\xff\xfe\x00", "should be a text file"), (None, "cannot read")):
        (task / "test.txt").unlink() if spoilt is None else (task / "test.txt").write_bytes(spoilt)
        with pytest.raises(ValueError, match=f"test.txt(?s:.*){problem}|{problem}(?s:.*)test.txt"):
            data.load("vtab/cifar100", size=8, root=tmp_path)


def test_a_class_without_training_images_is_named_with_the_line_that_needs_it(tmp_path):
    folder = tmp_path / "fgvc" / "cub200"
    make_birds(folder, [1, 2, 3])
    lines = (folder / "train_test_split.txt").read_text().splitlines()
    (folder / "train_test_split.txt").write_text("\n".join(f"{line[:-1]}0" if "k002" in line else line for line in lines))
    with pytest.raises(ValueError, match=r"images.txt:9: no training image has its class 1 \(Species 2\)"):
        data.load("fgvc/cub200", size=8, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("images.txt", "k001-0", r"images.txt:1: expected an id and a value, got 'k001-0'"),
        ("images.txt", "k001-1 001.Bird/0.jpg", "images.txt:2: id k001-1 is there twice"),
        ("images.txt", "new 001.Bird/0.jpg", "images.txt:1: image id new has no line in image_class_labels.txt"),
        ("train_test_split.txt", "k001-0 2", "train_test_split.txt:1: expected 1 .* or 0 .* got '2'"),
        ("image_class_labels.txt", "k003-7 x", "image_class_labels.txt:1: .*got 'x'"),
    ],
)
def test_what_is_wrong_with_birds_is_named_with_file_and_line(name, text, problem, tmp_path):
    make_birds(tmp_path / "cub", [1, 2, 3])
    spoil(tmp_path / "cub" / name, 1, text)
    with pytest.raises(ValueError, match=problem):
        data.load("fgvc/cub200", size=8, root=tmp_path)


def test_damaged_json_and_mat_files_are_named(tmp_path):
    path = make_coop(tmp_path / "flowers102", "jpg", 102, 1)
    whole = path.read_text()
    for text, problem in (
        (whole[:-20], r"json:1: no JSON"),
        ("[]", "has no 'train' list"),
        (
            whole.replace('[["0/train0.jpg", 0, ', '[["0/train0.jpg", "0", '),
            r"train\[0\]: expected \[image, label, class name\]",
        ),
        (whole.replace("5/train0", "nowhere/5"), r"train\[5\]: nowhere/5.jpg does not exist"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            data.load("few-shot/flowers102", size=8, root=tmp_path, shots=1)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "train_list.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(ValueError, match="annotation_list, labels from .*train_list.mat"):
        data.load("fgvc/dogs", size=8, root=tmp_path)
    make_mat(tmp_path / "cars" / "devkit" / "cars_train_annos.mat", annotations=np.array([(1,)], [("bbox", "O")])[None])
    with pytest.raises(ValueError, match="cars_train_annos.mat has no labels"):
        data.load("fgvc/cars", size=8, root=tmp_path)


def test_two_spellings_are_one_picture(tmp_path):
    task = make_vtab(tmp_path)
    lists = {split: (task / f"{split}.txt").read_text() for split in ("train800", "test")}
    (task / "test.txt").write_text(lists["test"] + "./" + lists["train800"].replace("images/", "images//", 1).splitlines()[0])
    with pytest.raises(ValueError, match="images/train800/000000.jpg is in train and in test"):
        data.load("vtab/cifar100", size=8, root=tmp_path)
    (task / "test.txt").write_text("".join(f"./{line}\n" for line in lists["test"].splitlines()))
    assert pairs(data.load("vtab/cifar100", size=8, root=tmp_path).test)[0] == ("images/test/000000.jpg", 93)


def test_lists_that_no_parser_likes_are_one_clear_error(tmp_path):
    path = make_coop(tmp_path / "flowers102", "jpg", 102, 1)
    for text, problem in (("[" * 100_000, "nested too deep"), (f'{{"train": {"9" * 5000}}}', "no JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path.name}: .*{problem}.*get the file again"):
            data.load("few-shot/flowers102", size=8, root=tmp_path, shots=1)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="no regular file"):
        data.load("few-shot/flowers102", size=8, root=tmp_path, shots=1)
    make_mat(tmp_path / "dogs" / "train_list.mat", annotation_list=cells(["n0/0", "n1/1"]), labels=np.ones((3, 4)))
    with pytest.raises(ValueError, match="train_list.mat .*labels has more than one dimension"):
        data.load("fgvc/dogs", size=8, root=tmp_path)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([1.0], r"train_list.mat\[1\]: .*annotation_list has 2 entries and labels 1"),
        ([1.0, np.nan], r"train_list.mat\[1\]: expected an image and the number of its class, got n1/1 and nan"),
        ([1.5, 2.0], r"train_list.mat\[0\]: .*got n0/0 and 1.5"),
    ],
)
def test_what_is_wrong_with_the_dogs_lists_is_named_with_its_entry(labels, problem, tmp_path):
    labels = np.array(labels)[:, None]
    make_mat(tmp_path / "dogs" / "train_list.mat", annotation_list=cells(["n0/0", "n1/1"]), labels=labels)
    with pytest.raises(ValueError, match=f"{problem}; get .* again"):
        data.load("fgvc/dogs", size=8, root=tmp_path)


@pytest.mark.parametrize("field", ["class", "fname"])
def test_an_empty_cell_in_the_cars_lists_is_named_with_its_entry(field, tmp_path):
    rows = np.array([(1, "0.jpg"), (2, "1.jpg")], [("class", "O"), ("fname", "O")])
    rows[field][1] = np.zeros((0, 0))
    make_mat(tmp_path / "cars" / "devkit" / "cars_train_annos.mat", annotations=rows[None])
    with pytest.raises(ValueError, match=r"cars_train_annos.mat\[1\]: expected an image .*\[\].*; get it again"):
        data.load("fgvc/cars", size=8, root=tmp_path)


@pytest.mark.parametrize("content", [[], {}, {"a.jpg": "1"}, ["a.jpg"]])
def test_json_that_is_not_vpts_is_named(content, tmp_path):
    (tmp_path / "cub").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "cub" / f"{split}.json").write_text(json.dumps(content if split == "val" else {"a.jpg": 1}))
    with pytest.raises(ValueError, match=r"val.json: expected \{image: class id\}, as VPT writes it"):
        data.load("fgvc/cub200", size=8, root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "vtab/birds"}, "'vtab/birds'.*vtab/cifar100.*fgvc/cub200.*few-shot/pets"),
        ({"name": "vtab/dtd"}, "vtab/dtd is not in .*folders dtd.*python data_scripts/prepare.py vtab/dtd"),
        ({"root": "no/such/folder"}, "no/such/folder is no folder"),
        ({"shots": 1}, "shots= is for few-shot"),
        ({"task": "fine"}, "only one task, got task='fine'"),
        ({"augment": "flips"}, "'flips'.*paper, published, none"),
        ({"train_size": 9}, "between 1 and 8"),
        ({"name": "few-shot/pets"}, "need shots.*1, 2, 4, 8, 16; got None"),
        ({"name": "few-shot/pets", "shots": 3}, "got 3"),
        ({"name": "few-shot/pets", "shots": 2, "train_size": 8}, "choose shots, not train_size"),
        ({"name": "shapes"}, "root= is for benchmarks.*'shapes'"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_known(arguments, problem, tmp_path):
    make_vtab(tmp_path)
    with pytest.raises(ValueError, match=problem):
        data.load(**{"name": "vtab/cifar100", "size": 8, "root": tmp_path, **arguments})


@pytest.mark.filterwarnings("default:this copy of")
def test_a_copy_of_another_size_is_used_with_a_warning(tmp_path):
    make_vtab(tmp_path)
    expected = r"vtab/cifar100 has 2 val images \(published: 200\), 5 test images \(published: 10,000\), 8 train"
    with pytest.warns(UserWarning, match=expected) as caught:
        data.load("vtab/cifar100", size=8, root=tmp_path)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_folder_of_a_class_is_only_read(tmp_path):
    make_vtab(tmp_path)
    make_shots(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        for options in ({"name": "vtab/cifar100"}, {"name": "few-shot/pets", "shots": 2}):
            task = data.load(**options, size=8, root=tmp_path)
            list(DataLoader(task.train, 4))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


# ----------------------------------------------------------------------------------------------------------- transforms


def gradient(path: Path) -> None:
    """From dark to bright, left to right."""
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).save(path, quality=95)


@pytest.mark.parametrize("folder", [facts.folders[0] for facts in VTAB.values()])
@pytest.mark.parametrize("augment", ["paper", "published"])
def test_each_task_is_augmented_as_its_table_says(augment, folder, tmp_path):
    """What is mirrored and how much of the width is left is measured in the pictures, against the lists below."""
    task = make_vtab(tmp_path, folder, train=1, val=1, test=1)
    for image in task.rglob("000000.jpg"):
        gradient(image)
    found = data.load(f"vtab/{folder}", size=56, root=tmp_path, augment=augment, mean=0, std=1)
    torch.manual_seed(0)
    rows = torch.stack([found.train[0][0][0, 28] for _ in range(40)])
    left, right = rows[:, 8], rows[:, 48]
    assert bool((left > right).any()) == (folder not in UNFLIPPED[augment])
    seen = (right - left).abs() * 56 / 40  # the part of the width that is seen
    shifted = torch.minimum(left, right).max() - torch.minimum(left, right).min()
    if folder in RESIZED[augment]:
        assert (seen - 1).abs().max() < 0.02 and shifted < 0.02
    elif augment == "paper" or folder in SHIFTED:
        assert (seen - 7 / 8).abs().max() < 0.02 and 0.1 < shifted < 0.15  # up to an eighth of the width
    else:  # sqrt(0.08 * 3 / 4) = 0.24
        assert 0.22 < seen.min() < 0.45 and 0.8 < seen.max() < 1.02
    # Evaluation: the whole picture where training saw the whole, else the centre of 8/7 of the size.
    test = found.test[0][0][0, 28]
    assert abs(test[48] - test[8] - 40 / 56 * (1 if folder in RESIZED[augment] else 7 / 8)) < 0.02
    assert abs(test.mean() - 0.5) < 0.02


UNFLIPPED = {
    "paper": {"dsprites_loc", "dsprites_ori", "smallnorb_azi"},
    "published": {"clevr_count", "clevr_dist", "dmlab", "dsprites_loc", "dsprites_ori", "smallnorb_azi"},
}
RESIZED = {"paper": {"dsprites_loc", "clevr_count", "clevr_dist", "dmlab", "kitti"}, "published": {"dsprites_loc"}}
SHIFTED = {"clevr_count", "dmlab", "smallnorb_azi", "kitti"}  # in the published code; the others are zoomed


def test_evaluation_is_the_published_one_at_224(tmp_path):
    """Resize to 256 x 256 whatever the aspect ratio, bicubic by Pillow, and cut the centre out."""
    task = make_vtab(tmp_path)
    found = data.load("vtab/cifar100", size=224, root=tmp_path, augment="published", **data.IMAGENET)
    image = Image.open(task / "images" / "test" / "000000.jpg").resize((256, 256), Image.BICUBIC).crop((16, 16, 240, 240))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(np.array(image)).double() / 255 - mean) / std
    assert torch.allclose(found.test[0][0].double(), expected.permute(2, 0, 1), atol=1e-5)
    assert found.resize == "centre"
    assert torch.equal(found.val.images[0], data.decode(task / "images" / "val200" / "000000.jpg", 224, "centre"))


def test_a_plain_resize_and_a_kept_aspect(tmp_path):
    task = make_vtab(tmp_path)
    plain = data.load("vtab/cifar100", size=16, root=tmp_path, augment="none")
    path = task / "images" / "train800" / "000000.jpg"
    assert torch.equal(plain.train.images[0], data.decode(path, 16)) and plain.resize == "squash"
    assert torch.equal(plain.train[0][0], plain.train[0][0])
    kept = data.load("vtab/cifar100", size=16, root=tmp_path, resize="crop")
    assert torch.equal(kept.train.images[0], data.decode(path, 18, "crop"))
    assert kept.train[0][0].shape == kept.test[0][0].shape == (3, 16, 16)


# ---------------------------------------------------------------------------------------------------------- the rest


def test_the_facts_are_the_papers_table_but_for_what_it_has_wrong():
    rows = csv.DictReader((Path(minica.__file__).parent / "experiments" / "paper" / "table06.csv").open())
    wrong = {"NABirds": ("classes", 555), "FGVCAirCraft": ("classes", 100)}
    known = {facts.paper: facts for name, facts in data.CATALOGUE.items() if not name.startswith("few-shot")}
    seen = 0
    for row in rows:
        facts = known.get(row["per_task_name"])
        if row["group"] == "Few-Shot":
            facts = next(facts for facts in FEW_SHOT.values() if facts.paper == row["per_task_name"])
        if facts is None:
            continue
        seen += 1
        key, value = wrong.get(row["per_task_name"], (None, None))
        expected = {"classes": int(row["classes"]), "val": int(row["val"] or facts.val), "test": int(row["test"])}
        if row["group"] != "Few-Shot":
            expected["train"] = int(row["train"])
        assert {name: getattr(facts, name) for name in expected} == expected | ({key: value} if key else {}), row
        assert facts.group == row["group"]
    assert seen == len(data.CATALOGUE) == 28


def test_a_benchmark_trains_like_any_other_data(tmp_path):
    make_vtab(tmp_path, "kitti")
    task = data.load("vtab/kitti", size=32, root=tmp_path)
    losses = []
    for workers in (0, 1):
        torch.manual_seed(0)
        model = minica.create_backbone("test_resnet", num_classes=4, pretrained=False)
        minica.adapt(model, "conv_parallel")
        (epoch,) = minica.fit(model, task.final, task.val, epochs=1, batch_size=4, workers=workers, progress=False)
        losses.append(epoch["train_loss"])
        assert epoch["val_n"] == 2 and minica.evaluate(model, task.test)["n"] == 5
    assert np.isfinite(losses).all()


def test_a_checkpoint_of_other_files_is_not_taken_up(tmp_path):
    make_shots(tmp_path)
    model = minica.create_backbone("test_resnet", num_classes=37, pretrained=False)
    minica.tune(model, "linear")
    one, other = (data.load("few-shot/pets", size=32, root=tmp_path, shots=2, seed=seed).final for seed in (0, 1))
    assert torch.equal(one.labels, other.labels)
    minica.fit(model, one, epochs=1, folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="training data"):
        minica.fit(model, other, epochs=1, folder=tmp_path / "run", progress=False)


def test_packaged_data_have_a_final_set_too():
    task = data.load("shapes", size=16)
    assert len(task.final) == 1000 and task.final.transform is task.train.transform
    assert len(data.load("shapes", size=16, train_size=160).final) == 360
    assert torch.equal(task.final.images, torch.cat([task.train.images, task.val.images]))
    assert torch.equal(task.final.labels, torch.cat([task.train.labels, task.val.labels]))
