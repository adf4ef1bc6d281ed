"""Are the data what they say they are, and are they read, cached and split as promised?"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sys
import threading
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minica import data
from minica.data import images, packaged


@pytest.fixture(scope="module", autouse=True)
def shared_home(tmp_path_factory):
    """One cache for all tests that do not ask for a fresh one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINICA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def fresh_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def picture(seed=0, height=24, width=36, channels=3):
    """Smooth, so that JPEG keeps it, and different everywhere."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 6, channels), np.uint8)
    return Image.fromarray(coarse.squeeze()).resize((width, height), Image.BICUBIC)


def make_folder(root: Path, **classes: int) -> Path:
    """``make_folder(root, cats=3)``: root/cats/0.png, 1.png and 2.png."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(100 * label + i).save(root / name / f"{i}.png")
    return root


def multiset(*datasets):
    return Counter(image.numpy().tobytes() for dataset in datasets for image in dataset.images)


def everything(task):
    return [(d.images, d.labels) for d in (task.train, task.val, task.test)]


def same(one, other):
    pairs = zip(everything(one), everything(other), strict=True)
    return all(torch.equal(x[i], y[i]) for x, y in pairs for i in (0, 1))


# --------------------------------------------------------------------------------------------------------------- decode

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)
RGB = np.asarray(picture())


def _alpha(mode, array):
    image = Image.fromarray(array)
    image.putalpha(Image.fromarray(np.full(array.shape[:2], 7, np.uint8)))
    assert image.mode == mode
    return image


def _on_white(array, alpha):
    """By hand, what shows of pixels that cover ``alpha`` / 255 of white paper."""
    share = np.asarray(alpha)[..., None] if np.ndim(alpha) else alpha
    return np.round(255 + (np.asarray(array, float) - 255) * share / 255)


def _indexed(alphas):
    image = _palette()
    shown = np.array([*alphas, *[255] * (256 - len(alphas))])[np.asarray(image)]
    return _on_white(np.asarray(image.convert("RGB")), shown)


def _palette(transparency=None):
    image = Image.fromarray(RGB).quantize(64, dither=Image.Dither.NONE)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


# How to save with little loss.
EXACT = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}
KINDS = {
    "grey.png": (Image.fromarray(GREY), GREY, 0),
    "grey with alpha.png": (_alpha("LA", GREY), _on_white(GREY, 7), 1),
    "one bit.png": (Image.fromarray(GREY > 99), 255 * (GREY > 99), 0),
    "16 bit.png": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY, 0),
    "16 bit.tiff": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY, 0),
    "16 bit, big-endian.tif": (Image.fromarray(GREY.astype(">u2") * np.array(257, ">u2")), GREY, 0),
    "16 bit in 32.tif": (Image.fromarray(GREY.astype(np.int32) * 257), GREY, 0),
    "rgb.png": (Image.fromarray(RGB), RGB, 0),
    "rgba.png": (_alpha("RGBA", RGB), _on_white(RGB, 7), 1),
    "palette.png": (_palette(), _palette().convert("RGB"), 0),
    "palette, one colour clear.png": (_palette(3), _indexed([255] * 3 + [0]), 0),
    "palette, many clear.png": (_palette(bytes(range(64))), _indexed(range(64)), 1),
    "cmyk.tif": (Image.fromarray(RGB).convert("CMYK"), RGB, 1),
    "cmyk.jpg": (Image.fromarray(RGB).convert("CMYK"), RGB, 4),
    "rgb.webp": (Image.fromarray(RGB), RGB, 0),
    "tall.jpg": (Image.fromarray(RGB).rotate(90, expand=True), np.rot90(RGB), 4),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_decodes_to_its_pixels(name, tmp_path):
    image, expected, tolerance = KINDS[name]
    image.save(tmp_path / name, **EXACT.get(Path(name).suffix, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = data.decode(tmp_path / name)
    expected = np.atleast_3d(np.asarray(expected)).transpose(2, 0, 1).astype(int)
    assert tensor.dtype == torch.uint8 and tensor.shape == expected.shape
    assert np.abs(tensor.numpy().astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["photo.jpg", "deep.png"])
def test_exif_rotation_is_carried_out(orientation, name, tmp_path):
    upright = Image.fromarray(RGB) if name == "photo.jpg" else Image.fromarray(GREY.astype(np.uint16) * 257)
    # By EXIF's table, how an upright picture is stored under each orientation.
    turn = dict(zip(range(2, 9), (0, 3, 1, 5, 2, 6, 4), strict=True)).get(orientation)
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, **EXACT.get(Path(name).suffix, {}))
    expected = RGB.transpose(2, 0, 1) if name == "photo.jpg" else GREY[None]
    got = data.decode(tmp_path / name).numpy()
    assert got.shape == expected.shape and np.abs(got.astype(int) - expected).max() <= 4


def test_squash_keeps_everything_and_crop_keeps_the_aspect(tmp_path):
    bands = np.zeros((100, 300), np.uint8)
    bands[:, 100:200] = 255  # the centre square is white
    Image.fromarray(bands).save(tmp_path / "wide.png")
    Image.fromarray(bands.T.copy()).save(tmp_path / "tall.png")
    for name, other in (("wide.png", 0), ("tall.png", 1)):
        assert data.decode(tmp_path / name, 30, "crop").min() > 230
        profile = data.decode(tmp_path / name, 30)[0].float().mean(other)
        assert profile[:8].max() < 20 and profile[12:18].min() > 235 and profile[22:].max() < 20


def test_shrinking_is_antialiased(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    for rule in data.RESIZE_RULES:
        assert (data.decode(tmp_path / "board.png", 32, rule).float() - 127.5).abs().max() < 4


def _broken(path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    if path.stem == "text":
        path.write_text("this is no image")
    elif path.stem == "empty":
        path.write_bytes(b"")
    elif path.stem == "float":
        Image.fromarray(np.ones((8, 8), np.float32)).save(path)
    elif path.stem == "deep":
        Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(path)
    elif path.stem != "missing":
        Image.fromarray(noise).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "name",
    ["text.jpg", "empty.png", "half.png", "half.jpg", "half.webp", "half.bmp", "half.tif", "float.tif", "deep.tif",
     "missing.png"],
)  # fmt: skip
def test_what_does_not_decode_is_named_with_the_remedy(name, tmp_path):
    _broken(tmp_path / name)
    with pytest.raises(ValueError, match=name) as caught:
        data.decode(tmp_path / name)
    assert "Replace it" in str(caught.value)


def test_a_broken_image_in_a_folder_stops_the_load_and_is_named(tmp_path, fresh_home):
    root = make_folder(tmp_path / "pets", cats=4, dogs=4)
    _broken(root / "dogs" / "half.jpg")
    with pytest.raises(ValueError, match="half.jpg"):
        data.load(root, size=8)
    (root / "dogs" / "half.jpg").unlink()
    (root / "dogs" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="gone.jpg"):
        data.load(root, size=8)


def test_all_broken_images_are_named_at_once_and_can_be_left_out(tmp_path, fresh_home, monkeypatch):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)
    for name in ("cats/half.jpg", "dogs/text.jpg", "dogs/empty.png"):
        _broken(root / name)
    (root / "dogs" / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    with pytest.raises(ValueError, match="(?s)cannot decode 4 images.*skip_broken=True") as caught:
        data.load(root, size=8)
    for said in (
        "half.jpg: ",
        "text.jpg: it is no JPEG",
        "empty.png: it is empty",
        "phone.jpg: HEIC photographs need pillow-heif",
    ):
        assert said in str(caught.value)
    with pytest.warns(UserWarning, match=r"images that do not decode are left out \(4\): .*half.jpg") as warned:
        task = data.load(root, size=8, skip_broken=True)
    assert len(warned) == 1 and sum(map(len, _sets(task))) == 10
    monkeypatch.setattr("minica.data.images.decode", None)  # whatever decodes now fails
    with pytest.warns(UserWarning, match="images that do not decode"):
        assert same(task, data.load(root, size=8, skip_broken=True))
    for name in ("shapes", "vtab/dtd"):
        with pytest.raises(ValueError, match="skip_broken= is for folders"):
            data.load(name, size=8, skip_broken=True)


def test_a_class_that_is_left_with_too_few_images_is_named(tmp_path, fresh_home):
    root = make_folder(tmp_path / "pets", cats=5, dogs=2, newts=1)
    with pytest.raises(ValueError, match="'dogs' .* has 2 training images, class 'newts' .* has 1 training images, but 3"):
        data.load(root, size=8)
    root = make_folder(tmp_path / "birds", owls=5, kites=2)
    _broken(root / "kites" / "half.jpg")
    with pytest.raises(ValueError, match="'kites' .* has 2 training images, but 3"):
        data.load(root, size=8, skip_broken=True)


def test_endings_that_are_read_and_those_that_are_counted(tmp_path):
    root = make_folder(tmp_path / "pets", cats=4, dogs=4)
    for i, (ending, kind) in enumerate({"jfif": "JPEG", "jpe": "JPEG", "gif": "GIF", "JPG": "JPEG"}.items()):
        picture(i).save(root / "cats" / f"more.{ending}", kind)
    for name in ("a.heic", "b.HEIC", "notes.txt", "raw", "Thumbs.db", ".hidden.txt"):
        (root / "dogs" / name).write_text("not an image")
    with pytest.warns(UserWarning) as warned:
        task = data.load(root, size=8)
    (said,) = [str(warning.message) for warning in warned]
    assert "4 files are not read because of the ending (2 .heic, 1 .txt, 1 without an ending)" in said
    assert "a.heic, b.HEIC, notes.txt, raw" in said and "pip install pillow-heif" in said and "export them as JPEG" in said
    assert sum(map(len, _sets(task))) == 12


def test_a_split_folder_of_another_name_is_named(tmp_path):
    for split in ("train", "val", "eval"):
        make_folder(tmp_path / "pets" / split, cats=4, dogs=4)
    with pytest.warns(UserWarning, match="'eval' has class folders like a split, but .*train, .*val, .*rename it"):
        assert [len(d) for d in _sets(data.load(tmp_path / "pets", size=8))][2] == 8
    make_folder(tmp_path / "pets", more=3)
    picture().save(tmp_path / "pets" / "train" / "overview.png")
    with pytest.warns(UserWarning) as warned:
        data.load(tmp_path / "pets", size=8)
    said = " ".join(str(warning.message) for warning in warned)
    assert "'more' is not used: its images (3)" in said and "images beside the class folders are not used (1): over" in said
    make_folder(tmp_path / "pets" / "valid", cats=4, dogs=4)
    with pytest.raises(ValueError, match="two folders for one split, among train, val, valid"):
        data.load(tmp_path / "pets", size=8)


def test_a_program_called_photo_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho started >> '{tmp_path}/log'\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "photo.jpg").write_text(program)
    with pytest.raises(ValueError, match="photo.jpg: it is no JPEG, PNG"):
        data.decode(tmp_path / "photo.jpg", 16)
    assert not (tmp_path / "log").exists()


def _tiff(bands: int, photometric: int) -> bytes:
    """An uncompressed TIFF of 4 x 4 pixels whose band k is 10 k everywhere, with further bands of no stated meaning."""
    pixels, extra = bytes(10 * k for k in range(bands)) * 16, bands - (3 if photometric == 2 else 1)
    sizes = b"".join(number.to_bytes(2, "little") for number in [8] * bands + [0] * extra)
    first = 8 + len(pixels)
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, bands, first), (259, 3, 1, 1), (262, 3, 1, photometric)]
    entries += [(273, 4, 1, 8), (277, 3, 1, bands), (278, 3, 1, 4), (279, 4, 1, len(pixels))]
    entries += [(338, 3, extra, 0 if extra < 3 else first + 2 * bands)]
    table = b"".join(b"".join(n.to_bytes(s, "little") for n, s in zip(row, (2, 2, 4, 4), strict=True)) for row in entries)
    head = b"II*\0" + (first + len(sizes)).to_bytes(4, "little")
    return head + pixels + sizes + len(entries).to_bytes(2, "little") + table + bytes(4)


def test_of_many_bands_the_first_three_are_taken_or_it_is_said_that_they_are_not(tmp_path):
    (tmp_path / "six.tif").write_bytes(_tiff(6, 2))
    assert data.decode(tmp_path / "six.tif").unique(dim=2).flatten().tolist() == [*[0] * 4, *[10] * 4, *[20] * 4]
    (tmp_path / "odd.tif").write_bytes(_tiff(7, 1))
    with pytest.raises(ValueError, match="cannot decode the image .*odd.tif"):
        data.decode(tmp_path / "odd.tif")


@pytest.mark.filterwarnings("ignore:Image size .* exceeds limit")
def test_a_picture_too_large_for_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    header = b"IHDR" + (12_500).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big"))
    with pytest.raises(ValueError, match="bomb.png: it has 12,500 x 12,500 pixels, of which 150,000,000 are read"):
        data.decode(tmp_path / "bomb.png", 16)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_picture_and_no_list(tmp_path):
    root = make_folder(tmp_path / "pets", cats=4, dogs=4)
    os.mkfifo(root / "cats" / "pipe.jpg")
    with pytest.raises(ValueError, match="pipe.jpg: it is no regular file"):
        data.load(root, size=8)


# ---------------------------------------------------------------------------------------------------------------- cache


def cache_files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_images_are_decoded_once_for_each_size_and_rule(tmp_path, fresh_home, monkeypatch):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)
    first = data.load(root, size=8)
    assert len(cache_files(fresh_home)) == 1
    data.load(root, size=8, resize="crop")
    data.load(root, size=9)
    assert len(cache_files(fresh_home)) == 3
    monkeypatch.setattr("minica.data.images.decode", None)  # whatever decodes now fails
    assert same(first, data.load(root, size=8))
    with pytest.raises(TypeError):
        data.load(root, size=10)


def test_two_folders_of_one_name_do_not_share_a_cache(tmp_path, fresh_home):
    one, two = make_folder(tmp_path / "a" / "pets", cats=5, dogs=5), tmp_path / "b" / "pets"
    data.load(one, size=8)
    shutil.copytree(one, two)
    picture(999).save(two / "cats" / "0.png")
    assert data.load(one, size=8).name == data.load(two, size=8).name
    assert multiset(*_sets(data.load(one, size=8))) != multiset(*_sets(data.load(two, size=8)))
    assert len(cache_files(fresh_home)) == 2


def _sets(task):
    return task.train, task.val, task.test


def test_a_changed_folder_is_decoded_again(tmp_path, fresh_home):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)
    file = root / "cats" / "0.bmp"  # uncompressed: another picture has the same number of bytes
    picture(1).save(file)
    before, times = data.load(root, size=8), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    picture(2).save(file)
    os.utime(file, ns=times)
    after = data.load(root, size=8)
    assert len(multiset(*_sets(before)) - multiset(*_sets(after))) == 1
    file.unlink()
    assert sum(map(len, _sets(data.load(root, size=8)))) == 10
    assert len(cache_files(fresh_home)) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "folder"])
def test_a_damaged_cache_is_decoded_again_and_replaced(damage, tmp_path, fresh_home):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)
    first = data.load(root, size=8)
    (file,) = cache_files(fresh_home)
    whole = file.read_bytes()
    if damage == "folder":  # cannot be replaced, but must not be in the way
        file.unlink()
        file.mkdir()
        with pytest.warns(UserWarning, match="MINICA_HOME"):
            assert same(first, data.load(root, size=8))
        return
    flipped = whole[:-1] + bytes([whole[-1] ^ 16])
    file.write_bytes({"truncated": whole[:-9], "flipped": flipped, "empty": b"", "foreign": b"PK\3\4" * 99}[damage])
    assert same(first, data.load(root, size=8))
    assert cache_files(fresh_home) == [file] and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)
    first = data.load(root, size=8)
    (tmp_path / "file").write_text("no folder can be made below a file, not even by root")
    monkeypatch.setenv("MINICA_HOME", str(tmp_path / "file" / "home"))
    with pytest.warns(UserWarning) as caught:
        assert same(first, data.load(root, size=8))
    assert len(caught) == 1
    assert "MINICA_HOME" in str(caught[0].message) and str(tmp_path / "file" / "home") in str(caught[0].message)


def test_a_failed_write_leaves_nothing_behind(tmp_path, fresh_home, monkeypatch):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        data.load(root, size=8)
    assert cache_files(fresh_home) == []


def test_several_at_once_agree_and_leave_one_whole_cache(tmp_path, fresh_home):
    root, results = make_folder(tmp_path / "pets", cats=9, dogs=9), []
    start = threading.Barrier(4)

    def load():
        start.wait()
        results.append(data.load(root, size=16))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(same(results[0], other) for other in results)
    (file,) = cache_files(fresh_home)
    if os.name == "posix":  # whoever may read the folder may read the file
        assert file.stat().st_mode & 0o777 == file.parent.stat().st_mode & 0o666


def test_two_fresh_caches_hold_the_same_bytes(tmp_path, monkeypatch):
    root, contents = make_folder(tmp_path / "pets", cats=5, dogs=5), []
    for home in (tmp_path / "one", tmp_path / "two"):
        monkeypatch.setenv("MINICA_HOME", str(home))
        data.load(root, size=8)
        packaged.shapes("count", 32, "squash", 0, images=(20, 5, 20))
        contents.append({file.name: file.read_bytes() for file in cache_files(home)})
    assert len(contents[0]) == 2 and contents[0] == contents[1]


def test_other_code_makes_the_cached_pictures_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICA_HOME", str(tmp_path / "home"))
    root, drawn, decoded = make_folder(tmp_path / "pets", cats=5, dogs=5), [], []
    monkeypatch.setattr(packaged, "_draw", lambda scene: drawn.append(scene) or Image.new("L", (64, 64)))
    monkeypatch.setattr(images, "decode", lambda path, *args, decode=images.decode: decoded.append(path) or decode(path, *args))

    def made() -> tuple[int, int]:
        data.load(root, size=8)
        packaged.shapes("count", 32, "squash", 0, images=(20, 5, 20))
        return len(drawn), len(decoded)

    assert made() == made() == (45, 10)
    monkeypatch.setattr(packaged, "digest", lambda source: "another")
    assert made() == (90, 10)
    monkeypatch.setattr(images, "digest", lambda source: "another")
    assert made() == (135, 20)


# ---------------------------------------------------------------------------------------------------------- solar cells


@pytest.fixture(scope="module")
def solar(shared_home):
    return {task: data.load("solar-cells", size=32, task=task) for task in ("defect", "level", "type", "kind")}


def test_solar_cells_have_the_published_counts(solar):
    for task, counts in {
        "defect": {"functional": 1803, "defective": 821},
        "level": {"functional": 1508, "functional, unsure": 295, "defective, unsure": 106, "defective": 715},
        "type": {"mono": 1074, "poly": 1550},
    }.items():
        labels = torch.cat([d.labels for d in _sets(solar[task])])
        assert len(labels) == 2624
        assert dict(zip(solar[task].classes, labels.bincount().tolist(), strict=True)) == counts
    assert solar["defect"].licence == "CC BY-NC-SA 4.0" and "Deitsch" in solar["defect"].citation
    assert solar["defect"].train.images.shape == (1574, 1, 32, 32)


def test_solar_cells_are_split_once_for_all_and_stratified(solar):
    sets = _sets(solar["level"])
    assert [len(d) for d in sets] == [1574, 394, 656]  # 656 as in Deitsch et al. 2019
    for other in ("defect", "type"):
        assert all(torch.equal(a.images, b.images) for a, b in zip(sets, _sets(solar[other]), strict=True))
    cells = multiset(*sets)
    assert len(cells) == 2624  # no two cells are equal, so the sets share none
    for defect, level in zip(_sets(solar["defect"]), sets, strict=True):
        assert torch.equal(defect.labels, (level.labels >= 2).long())  # p > 0.5
    published = torch.tensor([[588, 920], [117, 178], [56, 50], [313, 402]])
    found = []
    for d, kind in zip(sets, _sets(solar["type"]), strict=True):
        found.append(torch.bincount(2 * d.labels + kind.labels, minlength=8).view(4, 2))
        assert (found[-1] - published * len(d) / 2624).abs().max() <= 1
    assert torch.equal(sum(found), published)


def test_the_split_of_the_solar_cells_never_changes(solar):
    """Recorded results were made with it; if this fails on purpose, make them again."""
    assert [zlib.crc32(d.labels.numpy()) for d in _sets(solar["level"])] == [1813572964, 4104296176, 2681541516]
    assert same(solar["defect"], data.load("solar-cells", size=32, seed=7))


def test_solar_cell_images_are_those_of_the_labels(solar):
    """Against the package's files, read here independently."""
    root = Path(__import__("elpv_dataset").__file__).parent / "data"
    for line in (root / "labels.csv").read_text().splitlines()[::400]:
        file, p, kind = line.split()
        expected = np.asarray(Image.open(root / file).resize((32, 32), Image.BICUBIC))
        for task, label in (("level", round(float(p) * 3)), ("type", ("mono", "poly").index(kind))):
            matches = [d.labels[(d.images[:, 0] == torch.from_numpy(expected.copy())).all(-1).all(-1)] for d in
                       _sets(solar[task])]  # fmt: skip
            assert torch.cat(matches).tolist() == [label]


def test_a_subset_of_training_is_stratified_and_leaves_the_rest_alone(solar):
    small = data.load("solar-cells", size=32, task="level", train_size=157)
    whole = solar["level"]
    assert len(small.train) == 157 and multiset(small.train) <= multiset(whole.train)
    share = small.train.labels.bincount() - whole.train.labels.bincount() / len(whole.train) * 157
    assert share.abs().max() < 2
    assert torch.equal(small.val.images, whole.val.images) and torch.equal(small.test.images, whole.test.images)
    again, other = (data.load("solar-cells", size=32, train_size=157, seed=seed) for seed in (0, 1))
    assert torch.equal(again.train.images, small.train.images)
    assert not torch.equal(other.train.images, small.train.images)
    tiny = data.load("solar-cells", size=32, task="level", train_size=8)
    assert tiny.train.labels.bincount().tolist() == [2, 2, 2, 2]  # one of each level and type


def test_kinds_are_types_with_defects_without_the_unsure(solar):
    for kinds, levels, types in zip(_sets(solar["kind"]), _sets(solar["level"]), _sets(solar["type"]), strict=True):
        sure = levels.labels % 3 == 0
        assert torch.equal(kinds.images, levels.images[sure])
        assert torch.equal(kinds.labels, 2 * types.labels[sure] + levels.labels[sure] // 3)
    assert [len(d) for d in _sets(solar["kind"])] == [1334, 334, 555]
    counts = torch.cat([d.labels for d in _sets(solar["kind"])]).bincount().tolist()
    assert dict(zip(solar["kind"].classes, counts, strict=True)) == {
        "mono, functional": 588, "mono, defective": 313, "poly, functional": 920, "poly, defective": 402
    }  # fmt: skip


def test_shots_of_small_data_sets_nest_and_leave_the_rest_alone(solar, tmp_path):
    drawn = {
        (shots, seed): data.load("solar-cells", size=32, task="kind", shots=shots, seed=seed)
        for shots in (1, 4)
        for seed in (0, 1)
    }
    for (shots, seed), task in drawn.items():
        assert task.name == f"solar-cells/kind, {shots} shots" and task.train.labels.tolist() == sorted([0, 1, 2, 3] * shots)
        assert multiset(drawn[1, seed].train) <= multiset(task.train) <= multiset(solar["kind"].train)
        assert torch.equal(task.final.images, task.train.images)
        assert torch.equal(task.val.images, solar["kind"].val.images)
        assert torch.equal(task.test.images, solar["kind"].test.images)
    assert multiset(drawn[4, 0].train) != multiset(drawn[4, 1].train)
    folder = data.load(make_folder(tmp_path / "own", cats=9, dogs=12), size=8, shots=3)
    assert folder.train.labels.bincount().tolist() == [3, 3]


@pytest.mark.parametrize("train_size", [0, 1575, 2.5, "all"])
def test_an_impossible_subset_is_refused(train_size):
    with pytest.raises(ValueError, match="train_size.*1574"):
        data.load("solar-cells", size=32, train_size=train_size)


def test_a_subset_that_misses_a_class_is_refused():
    with pytest.raises(ValueError, match="defective, unsure.*8 are always enough"):
        data.load("solar-cells", size=32, task="level", train_size=2)


def test_the_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    with pytest.raises(ModuleNotFoundError, match="pip install elpv-dataset"):
        data.load("solar-cells", size=32)


def test_the_package_is_read_as_data_and_not_run(monkeypatch, tmp_path):
    package = tmp_path / "elpv_dataset"
    make_folder(package / "data", images=16)
    (package / "__init__.py").write_text("raise SystemExit('this code must not run')")
    rows = [f"images/{i}.png  {('0.0', '1.0')[i % 2]}  {('mono', 'poly')[i // 2 % 2]}" for i in range(16)]
    (package / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    assert [len(d) for d in _sets(data.load("solar-cells", size=8))] == [10, 2, 4]


# --------------------------------------------------------------------------------------------------------------- shapes


@pytest.fixture(scope="module")
def drawn(shared_home):
    return {task: data.load("shapes", size=64, task=task) for task in ("position", "orientation", "count")}


def test_shapes_have_vtabs_sizes_and_do_not_repeat(drawn):
    for task, classes in (("position", 16), ("orientation", 16), ("count", 8)):
        sets = _sets(drawn[task])
        assert [len(d) for d in sets] == [800, 200, 2000]
        assert len(drawn[task].classes) == classes
        assert all(d.labels.unique().tolist() == list(range(classes)) for d in sets)
        assert all(d.images.amin() == 0 and d.images.amax() == 255 for d in sets)
        assert len(multiset(*sets)) == 3000  # all different, so the sets share none
    assert torch.equal(drawn["position"].test.images, drawn["orientation"].test.images)
    assert "not dSprites" in drawn["position"].source


def moments(images):
    """Centre x and the covariance of the white pixels of (N, 1, 64, 64): (N,), (N, 2, 2)."""
    white = images[:, 0].double() / 255
    area = white.sum((1, 2))
    y, x = torch.meshgrid(*[torch.arange(64.0, dtype=torch.double) + 0.5] * 2, indexing="ij")
    centre = torch.stack([(white * axis).sum((1, 2)) / area for axis in (x, y)], 1)
    off = torch.stack([x, y])[None] - centre[..., None, None]
    return centre, torch.einsum("nhw,nahw,nbhw->nab", white, off, off) / area[:, None, None]


def test_position_is_where_the_shape_is(drawn):
    for d in _sets(drawn["position"]):
        centre, _ = moments(d.images[:500])
        steps = centre - 16.5  # a pixel a step
        assert (steps - steps.round()).abs().max() < 0.1
        assert torch.equal(steps[:, 0].round().long() // 2, d.labels[:500])
        assert set(steps[:, 1].round().long().tolist()) <= set(range(32))


def test_orientation_is_how_the_shape_is_turned(drawn):
    """For ellipses, whose long axis can be measured: it fits the label, or the label half a turn on."""
    d = drawn["orientation"].train
    _, covariance = moments(d.images)
    values, axes = torch.linalg.eigh(covariance)
    ellipses = values[:, 1] / values[:, 0] > 2.2
    assert 200 < ellipses.sum() < 330  # a third
    angle = torch.atan2(axes[ellipses, 1, 1], axes[ellipses, 0, 1]) % math.pi
    steps = torch.stack([angle, angle + math.pi], 1) / (2 * math.pi / 39)
    fits = [(((steps - k + 19.5) % 39 - 19.5).abs() < 0.5).any(1) for k in range(40)]
    possible = torch.stack([torch.stack([fits[k] for k in range(40) if 2 * k // 5 == label]).any(0) for label in range(16)], 1)
    assert possible[torch.arange(len(angle)), d.labels[ellipses]].double().mean() > 0.99
    assert possible.double().mean() < 0.2  # the test can tell


def test_hearts_point_where_the_label_says(drawn):
    """A heart is the one shape without symmetry by half a turn: its third moment along its axis has a sign."""
    d = drawn["orientation"].train
    white = d.images[:, 0].double() / 255
    centre, _ = moments(d.images)
    grid = torch.stack(torch.meshgrid(*[torch.arange(64.0) + 0.5] * 2, indexing="xy")).double()
    off = grid[None] - centre[..., None, None]
    # With the middle of its class as the angle, the tip (down at angle 0) must be on the far side.
    angle = (d.labels * 2.5 + 0.75) * 2 * math.pi / 39
    tip = torch.stack([-angle.sin(), angle.cos()], 1)
    along = (off * tip[..., None, None]).sum(1)
    skew = (white * along**3).sum((1, 2)) / (white * along.abs() ** 3).sum((1, 2))
    hearts = skew.abs() > 0.12
    assert 160 < hearts.sum() < 320
    assert (skew[hearts] > 0).double().mean() > 0.97


def components(image) -> int:
    left, number = {tuple(p) for p in np.argwhere(image)}, 0
    while left:
        number, border = number + 1, [left.pop()]
        while border:
            y, x = border.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            border += near
    return number


def test_count_is_the_number_of_separate_shapes(drawn):
    for d in _sets(drawn["count"]):
        for i in range(0, len(d), len(d) // 60):
            assert components(d.images[i, 0].numpy() > 127) == d.labels[i] + 3
            assert drawn["count"].classes[d.labels[i]] == f"{d.labels[i] + 3} shapes"


def test_shapes_follow_the_seed_and_the_size(drawn):
    one, two = (packaged.shapes("count", 64, "squash", seed, images=(20, 5, 20)) for seed in (0, 1))
    assert not torch.equal(one.images, two.images) and [len(i) for i in one.splits.values()] == [20, 5, 20]
    small = data.load("shapes", size=32, task="position", train_size=160)
    large = drawn["position"].test
    assert small.test.images.shape == (2000, 1, 32, 32) and torch.equal(small.test.labels, large.labels)
    assert len(small.train) == 160 and small.train.labels.bincount().min() >= 6
    halves = large.images.float().unflatten(-1, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    assert (small.test.images.float() - halves).abs().mean() < 3


# --------------------------------------------------------------------------------------------------------------- folder


def test_class_folders_are_split_three_ways_by_the_seed(tmp_path):
    root = make_folder(tmp_path / "pets", dogs=30, ants=20, cats=3)
    task = data.load(root, size=8)
    assert task.name == "pets" and task.classes == ("ants", "cats", "dogs")
    assert [d.labels.bincount().tolist() for d in _sets(task)] == [[12, 1, 18], [4, 1, 6], [4, 1, 6]]
    assert len(multiset(*_sets(task))) == 53  # every image once
    assert same(task, data.load(str(root), size=8)) and not same(task, data.load(root, size=8, seed=1))
    assert str(tmp_path) not in f"{task} {task.source} {task.name}"


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_taken_as_they_are(val, tmp_path):
    for split, count in (("train", 4), (val, 2), ("test", 3)):
        make_folder(tmp_path / "pets" / split, cats=count, dogs=count + 1)
    make_folder(tmp_path / "pets", notes=1)
    task = data.load(tmp_path / "pets", size=8)
    assert [d.labels.bincount().tolist() for d in _sets(task)] == [[4, 5], [2, 3], [3, 4]]
    assert torch.equal(task.val.images[1], data.decode(tmp_path / "pets" / val / "cats" / "1.png", 8))


def test_missing_splits_are_cut_from_training(tmp_path):
    make_folder(tmp_path / "pets" / "train", cats=10, dogs=20)
    counts = [d.labels.bincount().tolist() for d in _sets(data.load(tmp_path / "pets", size=8))]
    assert counts == [[6, 12], [2, 4], [2, 4]]
    make_folder(tmp_path / "pets" / "val", cats=3, dogs=5)  # train and val alone: val is the test set
    counts = [d.labels.bincount().tolist() for d in _sets(data.load(tmp_path / "pets", size=8))]
    assert counts == [[8, 16], [2, 4], [3, 5]]
    (tmp_path / "pets" / "val").rename(tmp_path / "pets" / "test")
    assert [d.labels.bincount().tolist() for d in _sets(data.load(tmp_path / "pets", size=8))] == counts


def test_a_class_may_be_named_train_and_a_test_folder_without_classes_is_passed_over(tmp_path):
    root = make_folder(tmp_path / "vehicles", train=5, bus=5)
    assert data.load(root, size=8).classes == ("bus", "train")
    make_folder(tmp_path / "pets" / "train", cats=5, dogs=5)
    picture().save(tmp_path / "pets" / "train" / "overview.png")
    make_folder(tmp_path / "pets", test=4)
    assert sum(map(len, _sets(data.load(tmp_path / "pets", size=8)))) == 10


def test_all_extensions_count_and_hidden_files_do_not(tmp_path):
    root = make_folder(tmp_path / "pets", dogs=5)
    (root / "cats" / "indoors" / "old").mkdir(parents=True)
    for i, name in enumerate(["a.jpg", "b.JPEG", "c.Png", "d.ppm", "e.bmp", "f.tif", "g.TIFF", "h.webp"]):
        picture(i).save(root / "cats" / name)
    picture(channels=1).save(root / "cats" / "indoors" / "old" / "i.pgm")
    for hidden in ("cats/.j.png", "cats/._a.jpg", "cats/Thumbs.db", ".git/k.png", "cats/.cache/l.png", "notes.txt"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_text("not an image")
    task = data.load(root, size=8)
    assert task.classes == ("cats", "dogs")
    assert sum(d.labels.bincount() for d in _sets(task)).tolist() == [9, 5]
    assert task.train.images.shape[1] == 3  # the grey one became RGB among the others


def test_links_are_harmless(tmp_path):
    root = make_folder(tmp_path / "pets", cats=5, dogs=5)
    (root / "cats" / "again").symlink_to(root / "cats")
    (root / "cats" / "up").symlink_to(root)
    (root / "loop").symlink_to(root)
    (root / "parent").symlink_to(tmp_path)
    make_folder(tmp_path / "elsewhere", ants=5)
    (root / "ants").symlink_to(tmp_path / "elsewhere" / "ants")
    (root / "dogs" / "linked.png").symlink_to(tmp_path / "elsewhere" / "ants" / "0.png")
    task = data.load(root, size=8)
    assert task.classes == ("ants", "cats", "dogs")
    assert sum(d.labels.bincount() for d in _sets(task)).tolist() == [5, 5, 6]


def _bad_folder(root: Path, what: str) -> Path:
    if what == "empty":
        root.mkdir()
    elif what == "flat":
        make_folder(root.parent, **{root.name: 3})
    elif what == "one class":
        make_folder(root, cats=5)
    elif what == "too few":
        make_folder(root, cats=5, dogs=2)
    elif what == "empty class":
        make_folder(root / "train", cats=5, dogs=0)
        make_folder(root / "val", cats=5)
        make_folder(root / "test", cats=5)
    elif what == "new class":
        make_folder(root / "train", cats=5, dogs=5)
        make_folder(root / "test", cats=5, newts=1)
    elif what == "empty test":
        make_folder(root / "train", cats=5, dogs=5)
        make_folder(root / "test", cats=0, dogs=0)
    elif what == "no train":
        make_folder(root / "test", cats=5, dogs=5)
    elif what == "file":
        picture().save(root.with_suffix(".png"))
        return root.with_suffix(".png")
    return root


@pytest.mark.parametrize(
    ("what", "problem", "remedy"),
    [
        ("empty", "no class folders", "put the images of each class in a folder"),
        ("flat", "no class folders, but 3 images", "put the images of each class in a folder"),
        ("one class", "one class only, 'cats'", "add a folder"),
        ("too few", "'dogs' .* 2 training images, but 3", "Add images"),
        ("empty class", "'dogs' .* 0 training images", "Add images .* or remove"),
        ("new class", "test images of classes without training images: newts", "Add training images"),
        ("empty test", "for test, but no image", "Add images"),
        ("no train", "a test folder, but no train folder", "add one"),
        ("file", "is a file", "give the folder"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_with_the_remedy(what, problem, remedy, tmp_path):
    root = _bad_folder(tmp_path / "pets", what)
    with pytest.raises(ValueError, match=f"(?s){problem}.*{remedy}") as caught:
        data.load(root, size=8)
    assert str(root) in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- transforms


def test_images_are_normalised_as_asked_and_grey_is_repeated(solar):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    task = data.load("solar-cells", size=32, mean=mean, std=std)
    image, label = task.test[5]
    pixels = task.test.images[5].expand(3, -1, -1).double() / 255
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert image.dtype == torch.float32 and image.shape == (3, 32, 32)
    assert torch.allclose(image.double(), expected, atol=1e-5)
    assert type(label) is int and label == task.test.labels[5]
    image, _ = solar["defect"].test[5]  # 0.5 by default: [-1, 1]
    assert torch.allclose(image.double(), 2 * pixels - 1, atol=1e-5)
    assert (task.mean, task.std, solar["defect"].mean) == (mean, std, (0.5, 0.5, 0.5))


def augmented(augment, image, times):
    """``times`` draws of an augmentation of one uint8 image (1, S, S), as uint8 again."""
    change = data.transform(image.shape[-1], (0.0,) * 3, (1.0,) * 3, augment)
    return [(change(image)[:1] * 255).round().to(torch.uint8) for _ in range(times)]


def test_flips_are_the_eight_symmetries_each_as_likely():
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    torch.manual_seed(0)
    seen = Counter(tuple(x.flatten().tolist()) for x in augmented("flips", image, 1600))
    turned = [torch.rot90(i, k, (1, 2)) for i in (image, image.flip(-1)) for k in range(4)]
    assert set(seen) == {tuple(x.flatten().tolist()) for x in turned}
    assert all(150 < count < 250 for count in seen.values())  # 200 expected, standard deviation 13


def test_crop_zooms_and_mirrors():
    ramp = torch.arange(64).mul(4).to(torch.uint8).expand(1, 64, 64)  # columns from dark to bright
    torch.manual_seed(0)
    crops = torch.stack(augmented("crop", ramp, 400)).float()[:, 0]
    assert crops.shape == (400, 64, 64)
    slope = (crops[:, 32, 48] - crops[:, 32, 16]) / 32 / 4  # the width of the crop, with the sign of the flip
    assert 0.4 < (slope < 0).float().mean() < 0.6
    width = slope.abs()
    assert width.min() > math.sqrt(0.2 * 3 / 4) - 0.03 and width.max() < 1.03
    assert width.min() < 0.5 and width.max() > 0.95 and 0.7 < width.mean() < 0.8


def test_only_training_is_augmented_and_the_default_fits_the_data(tmp_path, solar, drawn):
    folder = data.load(make_folder(tmp_path / "pets", cats=5, dogs=5), size=16)
    for task, augment in ((solar["defect"], "flips"), (drawn["position"], "none"), (folder, "crop")):
        assert task.augment == augment
        torch.manual_seed(0)
        assert len({task.train[0][0].numpy().tobytes() for _ in range(30)}) > 1 or augment == "none"
        for d in (task.val, task.test):
            assert len({d[0][0].numpy().tobytes() for _ in range(30)}) == 1
    assert data.load("solar-cells", size=32, augment="none").augment == "none"


@pytest.mark.parametrize("augment", data.AUGMENTATIONS)
def test_an_epoch_follows_torchs_seed_and_the_data_set_pickles(augment):
    task = data.load("solar-cells", size=32, augment=augment, train_size=40)
    epochs = []
    for dataset in (task.train, pickle.loads(pickle.dumps(task.train))):
        torch.manual_seed(3)
        epochs.append(list(DataLoader(dataset, batch_size=16, shuffle=True)))
    assert [len(labels) for _, labels in epochs[0]] == [16, 16, 8]
    for (a, y), (b, z) in zip(*epochs, strict=True):
        assert torch.equal(a, b) and torch.equal(y, z) and a.shape[1:] == (3, 32, 32)


# ----------------------------------------------------------------------------------------------------------------- load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "solar_cells"}, "'solar_cells'.*solar-cells, shapes.*path"),
        ({"name": Path("no/such/folder")}, "no.such.folder.*solar-cells, shapes.*path"),
        ({"task": "colour"}, "'colour'.*defect, level, type, kind"),
        ({"name": "shapes", "task": "defect"}, "'defect'.*position, orientation, count"),
        ({"name": Path(), "task": "defect"}, "task='defect'.*leave it out"),
        ({"resize": "stretch"}, "'stretch'.*squash, crop"),
        ({"augment": "mixup"}, "'mixup'.*none, flips, crop"),
        ({"size": 0}, "size.*at least 1.*0"),
        ({"size": 22.5}, "size.*22.5"),
        ({"mean": (0.5, 0.5)}, r"mean.*one for each.*\(0.5, 0.5\)"),
        ({"std": (0.2, 0, 0.2)}, "std must be above 0"),
        ({"mean": None}, "mean must be one finite number.*got None"),
        ({"mean": "grey"}, "mean must be one finite number.*got 'grey'"),
        ({"std": (0.5, math.nan, 0.5)}, "std must be one finite number.*nan"),
        ({"std": math.inf}, "std must be one finite number.*inf"),
        ({"name": "shapes", "seed": None}, "seed must be a whole number, at least 0, got None"),
        ({"seed": -1}, "seed must be a whole number, at least 0, got -1"),
        ({"shots": 0}, "shots must be from 1 to 493, all training images of 'defective'; got 0"),
        ({"shots": 494}, "1 to 493.*got 494"),
        ({"shots": 2.0}, "got 2.0"),
        ({"shots": 2, "train_size": 8}, "shots or train_size, not both.*shots=2.*train_size=8"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_known(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**{"name": "solar-cells", "size": 32, **arguments})


def test_a_task_shows_its_counts(solar, tmp_path):
    lines = repr(solar["defect"]).splitlines()
    assert "solar-cells/defect" in lines[0] and "32 x 32" in lines[0] and "CC BY-NC-SA 4.0" in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ["train", "val", "test"],
        ["functional", "1,081", "271", "451"],
        ["defective", "493", "123", "205"],
        ["all", "1,574", "394", "656"],
    ]
    many = data.load(make_folder(tmp_path / "many", **{f"class{i:02}": 3 for i in range(30)}), size=4)
    lines = repr(many).splitlines()
    assert len(lines) < 22 and lines[-2].split() == ["14", "more", "classes", "14", "14", "14"]
    assert lines[-1].split() == ["all", "30", "30", "30"]
