"""Are the benchmarks read as others lay them out, and is whatever is wrong with a copy named with file and line?"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import minica
from minica import data
from minica.data import benchmarks
from minica.data.fgvc import ninety_ten

scipy_io = pytest.importorskip("scipy.io")


def picture(path: Path, seed: int = 0, width: int = 36, height: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(path)


def files(dataset) -> list[str]:
    return dataset.images.names.tolist()


def pairs(dataset) -> set[tuple[str, int]]:
    return set(zip(files(dataset), dataset.labels.tolist(), strict=True))


# ----------------------------------------------------------------------------------------------------------------- VTAB


def make_vtab(root: Path, folder: str = "cifar", classes: int = 100, **counts: int) -> Path:
    """A task in NOAH's layout; all images are stored under the split that lists them."""
    counts = {"train800": 8, "val200": 2, "test": 5} | counts
    counts["train800val200"] = counts["train800"] + counts["val200"]
    task = root / "vtab-1k" / folder
    for split, count in counts.items():
        first = counts["train800"] if split == "val200" else 0
        names = [f"images/{split}/{i:06}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            picture(task / name, seed=100 * (split == "test") + first + i)
        lines = [f"{name} {(first + i) * 7 % classes}\n" for i, name in enumerate(names)]
        (task / f"{split}.txt").write_text("".join(lines))
    return task


@pytest.mark.parametrize("folder", ["cifar", "cifar100"])
def test_vtab_is_read_as_noah_writes_it(folder, tmp_path):
    make_vtab(tmp_path, folder)
    task = data.load("vtab/cifar100", size=16, root=tmp_path)
    assert task.name == "vtab/cifar100" and len(task.classes) == 100
    assert [len(d) for d in (task.train, task.val, task.test, task.final)] == [8, 2, 5, 10]
    assert files(task.final)[9] == "images/train800val200/000009.jpg" and task.final.labels[9] == 63
    assert task.val.labels.tolist() == [56, 63] and task.test.labels.tolist() == [0, 7, 14, 21, 28]
    image, label = task.test[1]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 7


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
    assert pairs(joined.final) == pairs(joined.train) | pairs(joined.val) and len(joined.final) == 10
