"""Does what fetches, unpacks, prepares and verifies benchmarks keep its promises, whatever servers and archives do?"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minica import data
from minica.data.catalogue import CATALOGUE, FEW_SHOT, FGVC
from minica.data.few_shot import SHOTS
from minica.data.named import NAMED

SCRIPTS = Path(__file__).resolve().parent.parent / "data_scripts"
sys.path.insert(0, str(SCRIPTS))  # they import each other, as `python data_scripts/prepare.py` lets them
fetch, prepare, regenerate, verify, draw_scenes = map(
    importlib.import_module, ("fetch", "prepare", "regenerate", "verify", "draw_scenes")
)

CONTENT = b"PK\3\4" + bytes(range(256)) * 4000  # a megabyte that begins like a zip archive
MD5, SHA256 = (f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}" for kind in ("md5", "sha256"))


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------------- download


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``cuts`` are the numbers of bytes after which the next answers end too early."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.ranges, self.cuts, self.errors = CONTENT, '"one"', True, [], []
        self.files: dict[str, bytes] = {}
        self.stalled = threading.Event()
        self.stalled.set()
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.errors:
            return self.send_error(server.errors.pop(0))
        content = server.files.get(self.path, server.content)
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.tag):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(content[start:] if cut is None else content[start : start + cut])
        server.stalled.wait(60)  # before the connection is closed
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.setattr(fetch, "TIMEOUT", 10)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as started:
        threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield started
        started.shutdown()


@pytest.mark.parametrize("checksum", [None, MD5, SHA256])
def test_a_file_is_fetched_whole(checksum, server, tmp_path):
    target = fetch.download(f"{server.url}/set.zip", tmp_path / "downloads" / "set.zip", checksum)
    assert everything(tmp_path) == {"downloads/set.zip": CONTENT} and target.read_bytes() == CONTENT


def test_a_cut_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.cuts = [300_000, 300_000]
    fetch.download(server.url, tmp_path / "set.zip", MD5)
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]
    assert everything(tmp_path) == {"set.zip": CONTENT}


def test_a_download_that_was_given_up_is_taken_up_by_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    server.cuts = [300_000, 0]
    with pytest.raises(ValueError, match="300,000 bytes are kept in .*set.zip.part: run the same again"):
        fetch.download(server.url, tmp_path / "set.zip")
    assert not (tmp_path / "set.zip").exists()
    fetch.download(server.url, tmp_path / "set.zip")
    assert server.asked[-1] == "bytes=300000-" and everything(tmp_path) == {"set.zip": CONTENT}


def test_a_killed_download_is_taken_up(server, tmp_path):
    server.cuts = [300_000]
    server.stalled.clear()
    script = "import sys, pathlib, fetch; fetch.download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    part = tmp_path / "set.zip.part"
    process = subprocess.Popen([sys.executable, "-c", script, server.url, tmp_path / "set.zip"], cwd=SCRIPTS)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    server.stalled.set()
    there = part.stat().st_size
    assert there > 0 and not (tmp_path / "set.zip").exists()
    fetch.download(server.url, tmp_path / "set.zip", MD5)
    assert server.asked == [None, f"bytes={there}-"] and everything(tmp_path) == {"set.zip": CONTENT}


@pytest.mark.parametrize("reason", ["no ranges", "no tag", "weak tag", "another file by now"])
def test_what_cannot_be_taken_up_starts_anew(reason, server, tmp_path):
    server.cuts = [300_000]
    if reason == "no ranges":
        server.ranges = False
    elif reason != "another file by now":
        server.tag = {"no tag": None, "weak tag": 'W/"one"'}[reason]
    else:
        (tmp_path / "set.zip.part").write_bytes(b"old" * 1000)
        (tmp_path / "set.zip.part.tag").write_text('"zero"')
    fetch.download(server.url, tmp_path / "set.zip", MD5)
    assert everything(tmp_path) == {"set.zip": CONTENT}


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_as_long_as_the_file(whole, server, tmp_path):
    """Killed between the last byte and the renaming; or the rest of something longer."""
    (tmp_path / "set.zip.part").write_bytes(CONTENT if whole else CONTENT + b"more")
    (tmp_path / "set.zip.part.tag").write_text('"one"')
    fetch.download(server.url, tmp_path / "set.zip", MD5)
    assert everything(tmp_path) == {"set.zip": CONTENT} and len(server.asked) == (1 if whole else 2)


def test_a_corrupt_file_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b"\0"
    with pytest.raises(ValueError, match=f"{server.url} has the md5 [0-9a-f]+, expected {MD5[4:]}.*Get it again"):
        fetch.download(server.url, tmp_path / "set.zip", MD5)
    assert everything(tmp_path) == {}


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(server, tmp_path):
    server.errors = [503, 429]
    fetch.download(server.url, tmp_path / "set.zip", MD5)
    server.errors, server.asked = [404], []
    with pytest.raises(ValueError, match="404.*put other.zip into .* by hand"):
        fetch.download(server.url, tmp_path / "other.zip")
    assert len(server.asked) == 1 and everything(tmp_path) == {"set.zip": CONTENT}


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("set.zip", b"", "gave an empty file"),
        ("set.zip", b"<html>we moved</html>", "gave no set.zip: it begins with b'<html>we moved"),
        ("set.tar.gz", b"PK\3\4 zipped", "which is not a .gz archive"),
        ("set.tar", b"short", "which is not a .tar archive"),
        ("list.txt", b"  <!DOCTYPE html><p>sorry", "gave no list.txt: .* which is not the file"),
    ],
)
def test_what_is_no_archive_is_refused_at_the_download(name, body, said, server, tmp_path):
    server.content = body
    with pytest.raises(ValueError, match=said):
        fetch.download(server.url, tmp_path / name)
    assert not everything(tmp_path)


def test_a_server_that_hands_out_crumbs_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_ATTEMPTS", 7)
    server.cuts = [4] + [1] * 50
    with pytest.raises(ValueError, match="cannot be fetched.*10 bytes are kept"):
        fetch.download(server.url, tmp_path / "set.zip")
    assert len(server.asked) == 7


def test_links_are_not_written_through(server, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "set.zip.part").symlink_to(tmp_path / "elsewhere" / "file")
    with pytest.raises(ValueError, match="set.zip.part is a link"):
        fetch.download(server.url, tmp_path / "root" / "set.zip")
    (tmp_path / "root" / ".unfinished-fgvc-cub200").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=".unfinished-fgvc-cub200 is a link"), fetch.built(tmp_path / "root", "fgvc/cub200"):
        pass
    assert not any((tmp_path / "elsewhere").iterdir())


# ---------------------------------------------------------------------------------------------------------------- unpack


def make_tar(path: Path, files: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes], *special: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        for info in special:
            archive.writestr(info, "target")
    return path


GOOD = {"set/images/a.jpg": b"a", "set/images/b/c.jpg": b"c", "set/list.txt": b"a 0", "readme": b"r"}


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz"])
def test_archives_are_unpacked_whole_or_below_a_folder(name, tmp_path):
    archive = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, {f"./{k}": v for k, v in GOOD.items()})
    if name.endswith("zip"):
        archive = make_zip(tmp_path / name, GOOD)
    assert fetch.unpack(archive, tmp_path / "all") == 4 and everything(tmp_path / "all") == GOOD
    assert fetch.unpack(archive, tmp_path / "part", "set/images") == 2
    assert everything(tmp_path / "part") == {"a.jpg": b"a", "b/c.jpg": b"c"}
    with pytest.raises(ValueError, match=f"{name} has no files in set/im; is it the right archive"):
        fetch.unpack(archive, tmp_path / "none", "set/im")


def _link(kind: bytes, name: str = "set/link", to: str = "../../outside") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def _zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("set/link")
    info.external_attr = 0o120777 << 16
    return info


HARMFUL = {
    "up.tar": lambda path: make_tar(path, {"set/../../outside": b"x"}),
    "root.tar": lambda path: make_tar(path, {"/outside": b"x"}),
    "drive.tar": lambda path: make_tar(path, {"C:/outside": b"x"}),
    "link.tar": lambda path: make_tar(path, {}, _link(tarfile.SYMTYPE)),
    "hard link.tar.gz": lambda path: make_tar(path, {}, _link(tarfile.LNKTYPE)),
    "device.tar": lambda path: make_tar(path, {}, _link(tarfile.CHRTYPE)),
    "up.zip": lambda path: make_zip(path, {"../outside": b"x"}),
    "root.zip": lambda path: make_zip(path, {"/outside": b"x"}),
    "windows.zip": lambda path: make_zip(path, {"..\\outside": b"x"}),
    "link.zip": lambda path: make_zip(path, {}, _zip_link()),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_an_archive_that_leaves_its_folder_is_refused_and_named(name, tmp_path):
    (tmp_path / "in").mkdir()
    archive = HARMFUL[name](tmp_path / "in" / name)
    with pytest.raises(ValueError, match=rf"{name}: .*(outside|link).*(not unpacked)"):
        fetch.unpack(archive, tmp_path / "in" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and not everything(tmp_path / "in").keys() - {name}


def test_a_link_into_the_folder_cannot_be_written_through(tmp_path):
    """Refused at the link, before the file that would go through it."""
    archive = make_tar(tmp_path / "set.tar", {}, _link(tarfile.SYMTYPE, "set", str(tmp_path)))
    with tarfile.open(archive, "a") as opened:
        info = tarfile.TarInfo("set/outside")
        info.size = 1
        opened.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="set is a link"):
        fetch.unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "text.zip", "empty.tgz", "missing.zip"])
def test_a_damaged_archive_is_named(name, tmp_path):
    path = tmp_path / name
    if name == "text.zip":
        path.write_text("<html>not found</html>")
    elif name == "empty.tgz":
        path.touch()
    elif name != "missing.zip":
        noise = {f"set/{i}": np.random.RandomState(i).bytes(30_000) for i in range(5)}
        whole = (make_zip if name.endswith("zip") else make_tar)(path, noise).read_bytes()
        path.write_bytes(whole[:70_000])
    with pytest.raises(ValueError, match=f"{name} cannot be unpacked"):
        fetch.unpack(path, tmp_path / "folder")


def test_flipped_bits_in_a_compressed_tar_are_noticed(tmp_path):
    """The checksum is at the end of the file, behind the last member."""
    files = {"a.bin": np.random.RandomState(0).bytes(9_000), "b.bin": np.random.RandomState(1).bytes(9_000)}
    whole, unseen = make_tar(tmp_path / "set.tar.gz", files).read_bytes(), []
    for place in np.random.RandomState(2).choice(len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "set.tar.gz").write_bytes(damaged)
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        try:
            fetch.unpack(tmp_path / "set.tar.gz", tmp_path / "folder")
        except ValueError:
            continue
        if everything(tmp_path / "folder") != files:
            unseen.append(place)
    assert not unseen


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    sparse = tarfile.TarInfo("set/huge")
    sparse.size = 1 << 40
    path = make_tar(tmp_path / "set.tar", {"set/a": b"a"}, sparse)
    with pytest.raises(ValueError, match="set.tar would unpack to more than 1,073,741,824 bytes"):
        fetch.unpack(path, tmp_path / "folder")
    assert everything(tmp_path / "folder").keys() <= {"set/a"}
    monkeypatch.setattr(fetch, "SMALL", 1000)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    with pytest.raises(ValueError, match="set.zip would unpack to more than"):
        fetch.unpack(tmp_path / "set.zip", tmp_path / "folder")


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path):
    path = make_zip(tmp_path / "set.zip", {"a.jpg": CONTENT})
    whole = bytearray(path.read_bytes())
    whole[500_000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="set.zip cannot be unpacked .*CRC"):
        fetch.unpack(path, tmp_path / "folder")


# --------------------------------------------------------------------------------------------------- prepare and verify


@pytest.fixture(scope="module")
def kitti(tmp_path_factory) -> Path:
    """VTAB-1k's smallest task with its published counts, beside another one, as in the shared archive."""
    files, image = {"vtab-1k/svhn/test.txt": b"images/test/000000.jpg 0\n"}, jpeg()
    for split, first, count in (("train800", 0, 800), ("val200", 800, 200), ("train800val200", 0, 1000), ("test", 0, 711)):
        names = [f"images/{split}/{i:06}.jpg" for i in range(count)]
        files |= dict.fromkeys((f"vtab-1k/kitti/{name}" for name in names), image)
        lines = [f"{name} {(first + i) % 4}\n" for i, name in enumerate(names)]
        files[f"vtab-1k/kitti/{split}.txt"] = "".join(lines).encode()
    return make_zip(tmp_path_factory.mktemp("archives") / "vtab-1k.zip", files)


def changed(archive: Path, path: Path, **contents: bytes | None) -> Path:
    """A copy of the archive in which members ending on a key have another content, or are gone."""
    path.mkdir()
    files = {}
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            files[name] = next((new for end, new in contents.items() if name.endswith(end)), opened.read(name))
    return make_zip(path / archive.name, {name: content for name, content in files.items() if content is not None})


def test_a_task_of_vtab_is_prepared_from_a_local_archive_verified_and_kept(kitti, tmp_path, capsys):
    root = tmp_path / "data"
    assert prepare.main(["vtab/kitti", "--root", str(root), "--archive", str(kitti)]) == 0
    said = capsys.readouterr().out
    assert "test: 711 images, published 711" in said and "FAIL" not in said and str(root / "vtab-1k" / "kitti") in said
    assert [path.name for path in root.iterdir()] == ["vtab-1k"] and [path.name for path in (root / "vtab-1k").iterdir()] == [
        "kitti"
    ]
    task = data.load("vtab/kitti", size=32, root=root)  # no warning: the counts are the published ones
    assert [len(d) for d in (task.train, task.val, task.test, task.final)] == [800, 200, 711, 1000]
    assert "regenerated" not in task.source
    before = everything(root)
    (root / ".preparing").touch()  # of another run, which is not in the way where nothing is to be done
    assert prepare.main(["vtab/kitti", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "there already" in said and f"python data_scripts/verify.py vtab/kitti --root {root}" in said
    (root / ".preparing").unlink()
    assert verify.main(["--root", str(root)]) == 0 and verify.main(["vtab", "--root", str(root)]) == 1
    assert before == everything(root)
    # As a reader calls it, from another folder; what is spoilt afterwards is found, with its file and line.
    (root / "vtab-1k" / "kitti" / "images" / "test" / "000700.jpg").write_bytes(jpeg()[:200])
    command = [sys.executable, SCRIPTS / "verify.py", "vtab/kitti", "--root", "data", "--all"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and "test.txt:701: cannot decode" in found.stdout and "2,710 of 2,711" in found.stdout


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kitti/images/test/000710.jpg": None}, "test.txt:711: images/test/000710.jpg does not exist"),
        ({"kitti/val200.txt": b"images/val200/000000.jpg 0\n"}, "val: 1 images, published 200"),
        (
            {"kitti/train800.txt": "".join(f"images/train800/{i:06}.jpg 0\n" for i in range(800)).encode()},
            "have the labels of train",
        ),
        ({"kitti/images/test/000710.jpg": b"no image"}, "test.txt:711: cannot decode"),
        ({"kitti/test.txt": None}, "no folder kitti with a test.txt"),
    ],
)
def test_what_is_not_what_was_published_is_named_and_not_kept(changes, problem, kitti, tmp_path, capsys):
    archive = changed(kitti, tmp_path / "archive", **changes)
    root = tmp_path / "data"
    assert prepare.main(["vtab/kitti", "--root", str(root), "--archive", str(archive)]) == 1
    assert problem in capsys.readouterr().err and everything(root) == {} and not any(root.iterdir())


def test_a_preparation_that_was_killed_leaves_no_set_and_is_made_anew(kitti, tmp_path, monkeypatch):
    root = tmp_path / "data"
    rest = root / ".unfinished-vtab-1k-kitti" / "vtab-1k" / "kitti" / "images"
    rest.mkdir(parents=True)
    (rest / "rest.jpg").touch()
    assert verify.there("vtab/kitti", root) is None

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "check", interrupted)
        prepare.main(["vtab/kitti", "--root", str(root), "--archive", str(kitti)])
    assert not any(root.iterdir())
    assert prepare.main(["vtab/kitti", "--root", str(root), "--archive", str(kitti)]) == 0
    assert "rest.jpg" not in {path.name for path in root.rglob("*")}


def test_a_second_run_in_the_same_root_is_refused_and_disturbs_nothing(kitti, tmp_path, monkeypatch, capsys):
    root, command = tmp_path / "data", ["vtab/kitti", "--root", str(tmp_path / "data"), "--archive", str(kitti)]
    codes = []

    def meanwhile(*arguments):
        monkeypatch.setattr(prepare, "check", verify.check)
        before = everything(root)
        codes.append(prepare.main(command))
        assert everything(root) == before
        return verify.check(*arguments)

    monkeypatch.setattr(prepare, "check", meanwhile)
    assert prepare.main(command) == 0 and codes == [2] and [path.name for path in root.iterdir()] == ["vtab-1k"]
    (error,) = capsys.readouterr().err.splitlines()
    assert f"another run is filling {root}; wait for its end" in error
    shutil.rmtree(root)
    root.mkdir()
    (root / ".preparing").touch()  # of a run that was killed
    assert prepare.main(command) == 0 and [path.name for path in root.iterdir()] == ["vtab-1k"]


def test_what_only_a_person_can_fetch_is_said(tmp_path, capsys):
    assert prepare.main(["fgvc/nabirds", "fgvc/cars", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "nabirds.tar.gz, which only a person can get (fill in the form at https://info.allaboutbirds.org/nabirds)" in said
    assert "cars_train.tgz, cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat, which only a person" in said
    assert "--archive cars_train.tgz" in said and str(tmp_path / "downloads") in said
    for arguments, problem in (
        (["fgvc/dogs2"], "unknown benchmark 'fgvc/dogs2'.*fgvc/dogs,"),
        (["fgvc/dogs", "--archive", "none.tar"], "none.tar: there is no such file"),
    ):
        assert prepare.main([*arguments, "--root", str(tmp_path)]) == 2
        assert re.search(problem, capsys.readouterr().err)
    assert prepare.main(["vtab/dtd", "--root", str(tmp_path), "--regenerate"]) == 1
    assert "cannot be regenerated, only vtab/clevr_count" in capsys.readouterr().err
    assert everything(tmp_path) == {}


def test_every_benchmark_can_be_prepared_and_says_how(capsys):
    assert {name for name in CATALOGUE if not name.startswith("vtab/")} | NAMED.keys() == prepare.SOURCES.keys()
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in prepare.SOURCES) and prepare.VTAB.url in said
    for sources in [*prepare.SOURCES.values(), *map(regenerate.sources, regenerate.TASKS)]:
        for source in sources:
            assert bool(source.url) != bool(source.by_hand) and bool(source.into) >= source.plain


@pytest.fixture
def small(monkeypatch):
    """Facts of two sets as small as a test's."""
    for name, table, facts in (
        ("fgvc/cub200", FGVC, dict(classes=3, train=16, val=2, test=6)),
        ("few-shot/pets", FEW_SHOT, dict(classes=3, train=48, val=3, test=6)),
    ):
        changed = replace(CATALOGUE[name], **facts)
        monkeypatch.setitem(CATALOGUE, name, changed)
        monkeypatch.setitem(table, name.partition("/")[2], changed)


def test_a_set_is_fetched_and_prepared(small, server, tmp_path, monkeypatch, capsys):
    rows = [(f"{c}{i}", c + 1, f"{c}.Bird/{i}.jpg", int(i % 4 != 3)) for c in range(3) for i in range(8)]
    files = {f"CUB_200_2011/images/{name}": jpeg(i) for i, (*_, name, _) in enumerate(rows)}
    for list_name, column in (("images", 2), ("image_class_labels", 1), ("train_test_split", 3)):
        files[f"CUB_200_2011/{list_name}.txt"] = "".join(f"{row[0]} {row[column]}\n" for row in rows).encode()
    files["CUB_200_2011/classes.txt"] = b"1 a\n2 b\n3 c\n"
    server.content = make_tar(tmp_path / "cub.tgz", files | {"attributes.txt": b"beside it"}).read_bytes()
    server.cuts = [1000]
    checksum = f"sha256:{hashlib.sha256(server.content).hexdigest()}"
    (source,) = prepare.SOURCES["fgvc/cub200"]
    root = tmp_path / "data"
    monkeypatch.setitem(prepare.SOURCES, "fgvc/cub200", (replace(source, url=server.url, checksum="md5:0"),))
    assert prepare.main(["fgvc/cub200", "--root", str(root)]) == 1 and "expected 0" in capsys.readouterr().err
    assert everything(root) == {}
    monkeypatch.setitem(prepare.SOURCES, "fgvc/cub200", (replace(source, url=server.url, checksum=checksum),))
    assert prepare.main(["fgvc/cub200", "--root", str(root)]) == 0
    assert everything(root / "fgvc" / "cub200") == {k.removeprefix("CUB_200_2011/"): v for k, v in files.items()}
    assert sorted(path.name for path in root.iterdir()) == ["downloads", "fgvc"]
    shutil.rmtree(root / "fgvc")
    asked = len(server.asked)
    assert prepare.main(["fgvc/cub200", "--root", str(root)]) == 0 and len(server.asked) == asked  # the download is kept


def test_a_few_shot_set_is_fetched_with_noahs_lists(small, server, tmp_path, monkeypatch, capsys):
    names = [f"kind_{c}_{i}.jpg" for c in range(3) for i in range(16)]
    rest = {split: [f"{split}_{c}_{i}.jpg" for c in range(3) for i in range(n)] for split, n in (("val", 1), ("test", 2))}
    images = {f"images/{name}": jpeg(i) for i, name in enumerate([*names, *rest["val"], *rest["test"]])}
    server.files["/images.tar.gz"] = make_tar(tmp_path / "images.tar.gz", images).read_bytes()
    for shots in SHOTS:
        for seed in range(3):
            chosen = [name for name in names if int(name[7:-4]) < shots]
            lines = [f"{name} {name[5]}\n" for name in chosen] * (1 + (shots == 1))
            server.files[f"/train_meta.list.num_shot_{shots}.seed_{seed}"] = "".join(lines).encode()
    for split, found in rest.items():
        server.files[f"/{split}_meta.list"] = "".join(f"{name} {name.split('_')[1]}\n" for name in found).encode()
    sources = [
        replace(s, url=f"{server.url}/{s.url.rpartition('/')[2]}", checksum=None) for s in prepare.SOURCES["few-shot/pets"]
    ]
    monkeypatch.setitem(prepare.SOURCES, "few-shot/pets", tuple(sources))
    assert prepare.main(["few-shot/pets", "--root", str(tmp_path / "data")]) == 0
    assert "15 of NOAH's 15 lists of shots" in capsys.readouterr().out
    assert len(data.load("few-shot/pets", size=8, root=tmp_path / "data", shots=1, seed=2).train) == 3


def test_lists_of_shots_are_only_reported_where_there_are_some(small, tmp_path, capsys):
    """Of a copy with CoOp's split, whose Pets have a folder ``annotations`` of their own."""
    folder = tmp_path / "few-shot" / "oxford_pets"
    for place in ("images", "annotations"):
        (folder / place).mkdir(parents=True)
    split = {
        key: [[f"{key} {c} {i}.jpg", c, f"kind {c}"] for c in range(3) for i in range(n)]
        for key, n in (("train", 16), ("val", 1), ("test", 2))
    }
    for entries in split.values():
        for i, (image, *_) in enumerate(entries):
            (folder / "images" / image).write_bytes(jpeg(i))
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    (folder / "annotations" / "trainval.txt").touch()
    command = ["few-shot/pets", "--root", str(tmp_path)]
    assert verify.main(command) == 0
    said = capsys.readouterr().out
    assert "the split that shots are drawn from is well-formed" in said and "NOAH" not in said
    for name, key, count in (("train_meta.list.num_shot_1.seed_0", "train", 16), ("val_meta.list", "val", 1)):
        lines = [f"{image} {label}\n" for image, label, _ in split[key][::count]]
        (folder / "annotations" / name).write_text("".join(lines))
    (folder / "annotations" / "test_meta.list").write_text("".join(f"{image} {label}\n" for image, label, _ in split["test"]))
    assert verify.main(command) == 0 and "1 of NOAH's 15 lists of shots" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ named sets


def png(levels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def voc(*boxes: tuple[str, int, int, int, int]) -> bytes:
    tags = ("xmin", "ymin", "xmax", "ymax")
    rows = ""
    for name, *corners in boxes:
        corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners, strict=True))
        rows += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
    return f"<annotation><size><width>8</width><height>6</height></size>{rows}</annotation>".encode()


def coco_document(first: int, count: int) -> bytes:
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 8, "height": 6} for i in range(first, first + count)]
    boxes = [{"id": i, "image_id": i, "category_id": 1 + i % 3, "bbox": [1, 1, 3, 4]} for i in range(first, first + count)]
    categories = [{"id": i, "name": f"kind {i}"} for i in (1, 2, 3)]
    return json.dumps({"images": images, "annotations": boxes, "categories": categories}).encode()


def named_archives(name: str, folder: Path) -> dict[str, bytes]:
    """Name of each source -> a small archive of what is published there."""
    top = {source.name: source.below for source in prepare.SOURCES[name]}
    (archive, below), *_ = top.items()
    files: dict[str, bytes] = {}
    if name == "nuclei":
        for i in range(6):
            levels = [np.zeros((6, 8)), np.zeros((6, 8)), np.zeros((6, 8))]
            levels[0][1:3, 1:4] = levels[1][0:5, 0:6] = levels[2][5:, 6:] = 255  # the second one is around the first
            colour = np.random.RandomState(i).randint(0, 256, (6, 8, 4 if i % 2 else 1)).repeat(1 if i % 2 else 4, 2)
            files[f"{below}/n{i}/images/n{i}.png"] = png(colour)
            files |= {f"{below}/n{i}/masks/{k}.png": png(level) for k, level in enumerate(levels)}
        files[f"{below}/README"] = b"beside it"
    elif name == "cards":
        for split, count in (("train", 8), ("test", 2)):
            for i in range(count):
                files[f"{below}/{split}/{i}.JPG"] = jpeg(i)
                files[f"{below}/{split}/{i}.xml"] = voc(("ace", 1, 1, 4, 5), ("king" if i % 2 else "ten", 2, 2, 8, 6))
            files[f"{below}/{split}_labels.csv"] = b"filename"
    elif name == "coco":
        files = {f"train2017/{i:012}.jpg": jpeg(i) for i in range(6)}
        others = {f"val2017/{i:012}.jpg": jpeg(i) for i in range(6, 9)}
        lists = {"train": coco_document(0, 6), "val": coco_document(6, 3)}
        lists = {f"annotations/instances_{split}2017.json": content for split, content in lists.items()}
        return {
            path.name: make_zip(path, content).read_bytes()
            for path, content in zip((folder / n for n in top), (files, others, lists), strict=True)
        }
    elif name == "ade20k":
        for split, count in (("training", 6), ("validation", 3)):
            for i in range(count):
                files[f"{below}/images/{split}/{i}.jpg"] = jpeg(i)
                files[f"{below}/annotations/{split}/{i}.png"] = png(np.arange(48).reshape(6, 8) % 4)
        files[f"{below}/objectInfo150.txt"] = (
            b"Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0\t0\t0\t0\ta\n2\t0\t0\t0\t0\tb\n3\t0\t0\t0\t0\tc\n"
        )
        return {archive: make_zip(folder / archive, files).read_bytes()}
    else:
        splits = {"train": 3, "validation": 2, "test": 2} if name == "clothing" else {"": 4}
        for split, count in splits.items():
            for kind in ("hat", "shoe"):
                files |= {f"{below}/{split}/{kind}/{i}.JPG".replace("//", "/"): jpeg(i) for i in range(count)}
    return {archive: make_tar(folder / archive, files).read_bytes()}


SMALL = {
    "nuclei": dict(images=6, boxes=18),
    "cards": dict(images=10, boxes=20, classes=3, splits={"train": 8, "test": 2}),
    "coco": dict(images=9, classes=3, splits={"train": 6, "val": 3}),
    "ade20k": dict(images=9, classes=3, splits={"train": 6, "val": 3}),
    "clothing": dict(images=14, classes=2, splits={"train": 6, "val": 4, "test": 4}),
    "sign-digits": dict(images=8, classes=2),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_set_is_fetched_prepared_verified_and_read(name, server, tmp_path, monkeypatch, capsys):
    sources = prepare.SOURCES[name]
    for source, content in named_archives(name, tmp_path).items():
        server.files[f"/{source}"] = content
    server.cuts = [100]
    small = [replace(s, url=f"{server.url}/{s.name}", checksum=None) for s in sources]
    monkeypatch.setitem(prepare.SOURCES, name, tuple(small))
    monkeypatch.setitem(NAMED, name, replace(NAMED[name], **SMALL[name]))
    root = tmp_path / "data"
    assert prepare.main([name, "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said and f"licence: {NAMED[name].licence}" in said and "images decode" in said
    assert sorted(path.name for path in root.iterdir()) == sorted(["downloads", name])
    assert verify.main(["--root", str(root), "--all"]) == 0 and f"OK    {name}" in capsys.readouterr().out
    if "boxes" in NAMED[name].reads:
        task = data.load_boxes(name, root=root)
        assert sum(len(d) for d in {task.train, task.val, task.test}) == NAMED[name].images
    if "masks" in NAMED[name].reads:
        assert data.load_masks(name, size=6, root=root).train[0][1].shape == (6, 6)
    if "classes" in NAMED[name].reads:
        assert len(data.load(root / name, size=6).classes) == 2
    # What another archive has is not kept.
    monkeypatch.setitem(NAMED, name, replace(NAMED[name], images=5))
    shutil.rmtree(root / name)
    assert prepare.main([name, "--root", str(root)]) == 1 and "published 5" in capsys.readouterr().err
    assert [path.name for path in root.iterdir()] == ["downloads"]


def test_archives_of_named_sets_are_pinned():
    for name in ("nuclei", "cards", "clothing", "sign-digits"):
        (source,) = prepare.SOURCES[name]
        assert re.fullmatch(r"https://codeload\.github\.com/[\w-]+/[\w-]+/tar\.gz/[0-9a-f]{40}", source.url)
        assert source.url.rpartition("/")[2] in NAMED[name].source and source.url.rpartition("/")[2] in source.below
    assert all(source.checksum for name in ("coco", "ade20k") for source in prepare.SOURCES[name])


def test_nuclei_get_one_mask_an_image(tmp_path, monkeypatch):
    archive = named_archives("nuclei", tmp_path)
    (source,) = prepare.SOURCES["nuclei"]
    monkeypatch.setitem(NAMED, "nuclei", replace(NAMED["nuclei"], **SMALL["nuclei"]))
    assert prepare.main(["nuclei", "--root", str(tmp_path / "data"), "--archive", str(tmp_path / source.name)]) == 0
    folder = tmp_path / "data" / "nuclei"
    label = Image.open(folder / "labels" / "n0.png")
    expected = np.zeros((6, 8), int)
    expected[:5, :6], expected[1:3, 1:4], expected[5:, 6:] = 2, 1, 3  # what is smaller is on top
    assert label.mode == "I;16" and np.array_equal(np.asarray(label), expected)
    assert Image.open(folder / "images" / "n0.png").mode == "RGB" and len(archive) == 1
    rows = (folder / "index.csv").read_text().split()
    assert rows[0] == "id,width,height,nuclei,stained" and rows[1:3] == ["n0,8,6,3,0", "n1,8,6,3,1"]


def test_a_named_set_that_is_damaged_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NAMED, "cards", replace(NAMED["cards"], **SMALL["cards"]))
    archive = named_archives("cards", tmp_path)
    root, (name,) = tmp_path / "data", archive
    assert prepare.main(["cards", "--root", str(root), "--archive", str(tmp_path / name)]) == 0
    (root / "cards" / "train" / "3.JPG").write_bytes(jpeg()[:-50])
    assert verify.main(["cards", "--root", str(root)]) == 1 and "9 of 10 images decode" in capsys.readouterr().out
    (root / "cards" / "train" / "3.xml").write_bytes(b"<!DOCTYPE a><annotation/>")
    assert verify.main(["cards", "--root", str(root)]) == 1 and "3.xml" in capsys.readouterr().out
    assert verify.main(["nuclei", "--root", str(root)]) == 1 and "nuclei is not in" in capsys.readouterr().out


def test_scenes_are_drawn_into_a_folder(tmp_path, capsys):
    command = ["--root", str(tmp_path), "--train", "3", "--val", "2", "--test", "1"]
    assert draw_scenes.main(command) == 0 and "load_boxes(" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    task = data.load_boxes(tmp_path / "scenes" / "coco")
    assert [len(d) for d in (task.train, task.val, task.test)] == [3, 2, 1]
    assert draw_scenes.main(command) == 1 and "there already; remove it first" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ regenerate


def scratched(whole: bytes, name: bytes) -> bytes:
    """Bytes behind a file's name overwritten: decompression itself stops there, before any checksum is compared."""
    start = whole.index(name) + len(name)
    return whole[:start] + b"\xff" * 40 + whole[start + 40 :]


def read_task(folder: Path) -> dict[str, list[tuple[np.ndarray, int]]]:
    """Split -> (pixels, label) of each line."""
    found = {}
    for path in folder.glob("*[0-9t].txt"):
        rows = [line.split(" ") for line in path.read_text().splitlines()]
        found[path.stem] = [(np.asarray(Image.open(folder / name)).astype(int), int(label)) for name, label in rows]
    return found


@pytest.mark.parametrize("task", ["dsprites_loc", "dsprites_ori"])
def test_dsprites_is_drawn_anew_by_the_label_rules(task, tmp_path, monkeypatch):
    latents = (1, 1, 1, 40, 32, 2)  # few, but all orientations and x positions
    monkeypatch.setattr(regenerate, "_LATENTS", latents)
    turn, x, y = np.indices((40, 32, 2)).reshape(3, -1)
    pictures = np.zeros((len(turn), 64, 64), np.uint8)
    for i in range(len(turn)):  # says in white what it is
        pictures[i, turn[i], 2 * x[i] : 2 * x[i] + 2] = 1
        pictures[i, 56:, 32 * y[i] : 32 * y[i] + 32] = 1
    path = tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    np.savez_compressed(path, imgs=pictures, metadata=np.array({"a": 1}, object))
    folder = tmp_path / "set"
    folder.mkdir()
    regenerate.regenerate(task, {path.name: path}, folder)
    found = read_task(folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train800": 800,
        "val200": 200,
        "train800val200": 1000,
        "test": 256,
    }
    seen = set()
    for split in ("train800", "val200", "test"):
        for pixels, label in found[split]:
            assert pixels.shape == (64, 64, 3) and 200 < pixels.max() <= 255
            row, column = divmod(int(pixels[:48].sum(2).argmax()), 64)
            assert label == (column // 4 if task == "dsprites_loc" else int(row / 2.5))
            seen.add((row, column // 2, pixels[60, 10, 0] > 127))
    assert len(seen) == 800 + 200 + 256  # no image twice
    assert [label for _, label in found["train800val200"]] == [
        label for split in ("train800", "val200") for _, label in found[split]
    ]
    assert "not the published images" in (folder / "REGENERATED.txt").read_text()
    for number, spoilt in enumerate((path.read_bytes()[:3000], scratched(path.read_bytes(), b"imgs.npy"))):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=f"{path.name} is not the dSprites archive, or damaged"):
            regenerate.regenerate(task, {path.name: path}, tmp_path / f"again {number}")


def write_norb(path: Path, values: np.ndarray) -> None:
    kind = {1: 507333717, 4: 507333716}[values.itemsize]
    sizes = [*values.shape, *[1] * (3 - values.ndim)]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(np.array([kind, values.ndim, *sizes], "<i4").tobytes() + values.tobytes())


@pytest.mark.parametrize("task", ["smallnorb_azi", "smallnorb_ele"])
def test_smallnorb_is_drawn_anew_by_the_label_rules(task, tmp_path):
    files = {source.name: tmp_path / source.name for source in regenerate.sources(task)}
    for side in ("training", "testing"):
        info = np.stack(np.unravel_index(np.arange(5 * 9 * 18 * 6), (5, 9, 18, 6)), 1).astype("<i4")[
            :: 4 if side == "testing" else 5
        ]
        info[:, 2] *= 2  # the file has azimuths of 0, 2, ... 34
        images = np.zeros((len(info), 2, 8, 8), np.uint8)
        images[:, 0, :, :4] = 25 * info[:, 1, None, None]
        images[:, 0, :, 4:] = 7 * info[:, 2, None, None]
        (pictures,), (about,) = ([path for name, path in files.items() if f"{side}-{kind}" in name] for kind in ("dat", "info"))
        write_norb(pictures, images)
        write_norb(about, info)
    folder = tmp_path / "set"
    folder.mkdir()
    regenerate.regenerate(task, files, folder)
    found = read_task(folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train800": 800,
        "val200": 200,
        "train800val200": 1000,
        "test": 608,
    }
    part, step = (slice(5, None), 14) if task == "smallnorb_azi" else (slice(3), 25)
    assert all(abs(pixels[:, part].mean() - step * label) < 6 for rows in found.values() for pixels, label in rows)
    assert {label for _, label in found["train800"]} == set(range(18 if task == "smallnorb_azi" else 9))
    path = next(iter(files.values()))
    for spoilt in (scratched(path.read_bytes(), b".mat\0"), path.read_bytes()[:-9], gzip.compress(b"\0" * 100), b"text"):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=f"{path.name} is not one of SmallNORB's files, or damaged"):
            regenerate.regenerate(task, files, tmp_path / f"set {len(spoilt)}")


def test_clevr_labels_follow_the_thresholds():
    def scene(*distances):
        return {"objects": [{"pixel_coords": [0, 0, z]} for z in distances]}

    labels = [(7.9, 0), (8.0, 0), (8.01, 1), (8.5, 1), (9.0, 2), (9.5, 3), (9.6, 4), (10.0, 4), (10.1, 5), (30, 5)]
    for distance, label in labels:
        assert regenerate.clevr_label("clevr_dist", scene(50, distance, 40)) == label
    assert [regenerate.clevr_label("clevr_count", scene(*range(n))) for n in (3, 10)] == [0, 7]


def test_clevr_is_drawn_anew_with_the_published_test_set(tmp_path):
    files = {}
    for side, count in (("train", 1200), ("val", 30)):
        scenes = []
        for i in range(count):
            name = f"CLEVR_{side}_{i:06}.png"
            scenes.append({"image_filename": name, "objects": [{"pixel_coords": [0, 0, 9]}] * (3 + i % 8)})
            buffer = io.BytesIO()
            Image.new("RGBA", (8, 6), (20 * (i % 8), i // 5, 0, 255)).save(buffer, "PNG")
            files[f"CLEVR_v1.0/images/{side}/{name}"] = buffer.getvalue()
        files[f"CLEVR_v1.0/scenes/CLEVR_{side}_scenes.json"] = json.dumps({"scenes": scenes}).encode()
    archive = make_zip(tmp_path / "CLEVR_v1.0.zip", files)
    folder = tmp_path / "set"
    folder.mkdir()
    regenerate.regenerate("clevr_count", {archive.name: archive}, folder)
    found = read_task(folder)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train800": 800,
        "val200": 120,
        "train800val200": 920,
        "test": 30,
    }
    assert [label for _, label in found["test"]] == [i % 8 for i in range(30)]
    assert all(abs(pixels[..., 0].mean() - 20 * label) < 6 for rows in found.values() for pixels, label in rows)
    make_zip(archive, {k: v for k, v in files.items() if not k.endswith("val_scenes.json")})
    with pytest.raises(ValueError, match="CLEVR_v1.0.zip is not the CLEVR archive, or damaged .*val_scenes.json"):
        regenerate.regenerate("clevr_count", {archive.name: archive}, tmp_path / "again")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    archive.write_bytes(scratched(archive.read_bytes(), b"train_scenes.json"))
    with pytest.raises(ValueError, match="CLEVR_v1.0.zip is not the CLEVR archive, or damaged"):
        regenerate.regenerate("clevr_count", {archive.name: archive}, tmp_path / "scratched")


@pytest.mark.filterwarnings("ignore:this copy of")
def test_a_regenerated_task_says_so_wherever_it_is_used(tmp_path, capsys):
    folder = tmp_path / "vtab-1k" / "clevr_count"
    for split in ("train800", "val200", "test"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "images" / split / "000000.jpg").write_bytes(jpeg())
        (folder / f"{split}.txt").write_text(f"images/{split}/000000.jpg 0\n")
    (folder / "REGENERATED.txt").touch()
    task = data.load("vtab/clevr_count", size=8, root=tmp_path)
    assert task.source.endswith("regenerated: not the published images")
    verify.main(["--root", str(tmp_path)])
    assert "regenerated: not the published images" in capsys.readouterr().out
