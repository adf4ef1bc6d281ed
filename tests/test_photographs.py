"""Hand signs by student and clothes without copies: on small imitations of both sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minica import data
from minica.data import photographs

pytestmark = pytest.mark.filterwarnings("ignore:this copy of .* has .* images")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path.with_suffix(".png"))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(photographs, "TRAIN", 50)
    monkeypatch.setattr(photographs, "VAL", 20)


def test_a_student_begins_where_the_digit_falls():
    shown = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 5, 9, 9, 3, 4]
    paths = [Path(f"IMG_{100 + i}.JPG") for i in range(len(shown))]
    order = np.random.RandomState(0).permutation(len(shown))
    found = photographs.students([paths[i] for i in order], np.array(shown)[order])
    assert found[np.argsort(order)].tolist() == [0] * 10 + [1] * 6 + [2] * 2


def test_no_student_is_in_two_splits(tmp_path, small):
    number, whose = 1000, {}
    for student in range(14):
        for digit in range(10 if student % 3 else 8):
            save(tmp_path / "sign-digits" / str(digit) / f"IMG_{number}", number)
            whose[number], number = student, number + 1
    task = data.load("sign-digits", size=24, augment="none", seed=3, root=tmp_path)
    pixels = {}
    for path in (tmp_path / "sign-digits").rglob("*.png"):
        pixels[np.asarray(Image.open(path)).tobytes()] = whose[int(path.stem[4:])]
    seen = {
        split: {pixels[image.permute(1, 2, 0).numpy().tobytes()] for image in getattr(task, split).images}
        for split in ("train", "val", "test")
    }
    assert len(task.train) == 50 and 0 < len(task.val) <= 20 and len(task.test) > 20
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])
    other = data.load("sign-digits", size=24, augment="none", seed=4, root=tmp_path)
    assert not np.array_equal(task.test.images.numpy(), other.test.images.numpy())
    mixed = data.load("sign-digits", task="images", size=24, seed=3, root=tmp_path)
    assert [len(part) for part in (mixed.train, mixed.val)] == [50, 20]
    with pytest.raises(ValueError, match="sign-digits has the tasks students and images, got 'hands'"):
        data.load("sign-digits", task="hands", size=24, root=tmp_path)


def test_copies_are_left_out():
    grey = np.random.RandomState(0).rand(5, 17, 17).astype(np.float32)
    grey[3], grey[4] = grey[0] * 0.9, grey[1] + 0.01
    assert photographs.without_copies(grey, np.array([0, 1, 1, 0, 0])).tolist() == [0, 2]  # of 1 and 4 neither: two labels
    assert photographs.without_copies(grey, np.array([0, 1, 1, 0, 1])).tolist() == [0, 1, 2]


def test_clothes_are_pooled_and_split_anew(tmp_path, small):
    seed = 0
    for split, count in (("train", 30), ("validation", 6), ("test", 6)):
        for name in ("hat", "shirt", "skirt"):
            for i in range(count):
                save(tmp_path / "clothing" / split / name / f"{split}{i}", seed)
                seed += 1
    save(tmp_path / "clothing" / "test" / "skirt" / "again", 0)  # the first hat, as a skirt
    one, other = (data.load("clothing", size=24, augment="none", seed=seed, root=tmp_path) for seed in (0, 1))
    assert [len(one.train), len(one.val), len(one.test)] == [50, 20, 126 - 1 - 70]
    assert one.classes == ("hat", "shirt", "skirt") and abs(np.bincount(one.train.labels) - 50 / 3).max() < 1
    assert not np.array_equal(one.test.images.numpy(), other.test.images.numpy())
    with pytest.raises(ValueError, match="clothing has the tasks thousand and published, got 'sort'"):
        data.load("clothing", task="sort", size=24, root=tmp_path)
    with pytest.warns(UserWarning, match=r"this copy of clothing has 90 train images \(published: 3,068\), 18 val images"):
        published, again = (data.load("clothing", task="published", size=24, seed=seed, root=tmp_path) for seed in (0, 1))
    assert [len(published.train), len(published.val), len(published.test)] == [90, 18, 19]
    assert np.array_equal(published.test.images.numpy(), again.test.images.numpy()) and published.licence == "CC0"
    with pytest.raises(ValueError, match="skirt|sign-digits is not in"):
        data.load("sign-digits", size=24, root=tmp_path)
