"""Gets archives here whole, and unpacks them without harm."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock, Timeout
from tqdm import tqdm

from minica.data.files import leaves


@dataclass(frozen=True)
class Source:
    """One file that a set is made from."""

    name: str
    url: str | None  # as found in public code or documentation; None where only a person gets it
    checksum: str | None = None  # "md5:..." or "sha256:..."
    below: str = ""  # the folder in the archive that is unpacked
    into: str = ""  # and where to, in the set
    by_hand: str = ""  # what a person has to do
    plain: bool = False  # no archive: copied to ``into``


ATTEMPTS = 5  # without a byte of progress
MOST_ATTEMPTS = 100  # in all: a server that hands out a byte at a time is given up
PAUSE = 2.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 60  # seconds of silence
EXPANSION, SMALL = 100, 1 << 30  # an archive may unpack to so many times its size, a small one to so many bytes
MAGIC = {  # how archives begin, by their endings; (place, bytes)
    ".zip": [(0, b"PK")],
    ".gz": [(0, b"\x1f\x8b")],
    ".tgz": [(0, b"\x1f\x8b")],
    ".tar": [(257, b"ustar"), (257, b"\0\0\0\0\0")],  # the second is older than POSIX
}


# -------------------------------------------------------------------------------------------------------------- download


def download(url: str, target: Path, checksum: str | None = None) -> Path:
    """Fetch ``url`` into ``target``, which either is whole or does not exist.

    What is there so far lies in ``<target>.part``, and a later call goes on from its end, if the server can and says that
    the file is still the same one (ETag or date in ``<target>.part.tag``); otherwise the download starts anew.

    Args:
        checksum: ``"md5:..."`` or ``"sha256:..."``, checked before ``target`` appears.

    Raises:
        ValueError: if the server refuses, the connection fails again and again, what came is empty or no archive although
            ``target`` is called like one, or the checksum is another one.  In the last two cases what was fetched is thrown
            away, otherwise it is kept for the next call.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, failures, reason, attempts = target.with_name(target.name + ".part"), 0, None, 0
    _refuse_links(part, _tag(part))
    while failures < ATTEMPTS and attempts < MOST_ATTEMPTS:
        before, attempts = _size(part), attempts + 1
        try:
            _continue(url, part)
            reason = None
            break
        except (OSError, http.client.HTTPException) as error:  # refused, cut, silent, or no network at all
            reason = error
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                break  # asking again does not help
            failures = 0 if _size(part) > before else failures + 1
            if failures < ATTEMPTS:
                time.sleep(PAUSE * 2 ** max(failures - 1, 0))
    if reason:
        kept = f" {_size(part):,} bytes are kept in {part}: run the same again to go on." if part.exists() else ""
        raise ValueError(f"{url} cannot be fetched ({reason}).{kept} Or put {target.name} into {target.parent} by hand.")
    try:
        _check_kind(part, target.name, url)
        verify_checksum(part, checksum, url)
    except ValueError:
        part.unlink()
        raise
    finally:
        _tag(part).unlink(missing_ok=True)
    part.replace(target)
    return target


def verify_checksum(path: Path, checksum: str | None, source: str | None = None) -> None:
    """Raise a ValueError unless ``path`` has ``checksum`` (none: anything goes)."""
    if checksum is None:
        return
    kind, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise ValueError(
            f"{source or path} has the {kind} {found}, expected {expected}: it is damaged, or another version. Get it again."
        )


def _continue(url: str, part: Path) -> None:
    """Append what is missing to ``part``; raises OSError or HTTPException if the connection ends early."""
    request = urllib.request.Request(url, headers={"User-Agent": "minica", "Accept-Encoding": "identity"})
    start, tag = _size(part), _tag(part)
    if start and tag.exists():
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is as long as the file: whole, or not of this file
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return
        part.unlink()
        raise ConnectionError(f"the server has less than the {start:,} bytes that are here") from error
    with response:
        appends = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status == 206 and not appends:
            raise http.client.HTTPException(f"asked for bytes from {start}, got {response.headers.get('Content-Range')}")
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (start if appends else 0)
        if not appends:
            validator = response.headers.get("ETag", "")
            validator = "" if validator.startswith("W/") else validator  # a weak one does not vouch for the bytes
            validator = validator or response.headers.get("Last-Modified", "")
            part.unlink(missing_ok=True)
            tag.write_text(validator) if validator else tag.unlink(missing_ok=True)
        bar = tqdm(
            total=total, initial=start if appends else 0, unit="B", unit_scale=True, desc=part.stem, leave=False, delay=2
        )
        with part.open("ab") as file, bar:
            while block := response.read(1 << 18):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) != total:  # read() does not complain when a connection is cut
        raise ConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _check_kind(part: Path, name: str, url: str) -> None:
    """Refuse a page that says sorry in the place of a file, whatever the server's status was."""
    with part.open("rb") as file:
        begins = file.read(512)
    if not begins:
        raise ValueError(f"{url} gave an empty file; try again later, or put {name} there by hand.")
    magic = MAGIC.get(Path(name).suffix.lower(), [])
    page = begins.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))
    if page or (magic and not any(begins[place:].startswith(wanted) for place, wanted in magic)):
        kind = f"a {Path(name).suffix} archive" if magic else "the file"
        raise ValueError(f"{url} gave no {name}: it begins with {begins[:20]!r}, which is not {kind}. Get it by hand.")


def _refuse_links(*paths: Path) -> None:
    """What is written here must not end elsewhere."""
    for path in paths:
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and would be written through; remove it.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


# ---------------------------------------------------------------------------------------------------------------- unpack


def unpack(archive: Path, folder: Path, below: str = "") -> int:
    """Write the files of a zip or tar archive under ``folder``; returns their number.

    Args:
        below: only what lies in this folder of the archive, without it.

    Raises:
        ValueError: naming archive and member: a member that would be written elsewhere (an absolute path, ``..``), a link, a
            device; a damaged archive, which may show at its end only; one that would fill the disk (more than a hundred times
            its size); one without any file in ``below``; a disk that is full.
    """
    count = 0
    with members(archive) as found:
        for name, opened in found:
            if below and not name.startswith(f"{below}/"):
                continue
            target = folder / name.removeprefix(f"{below}/" if below else "")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                output = target.open("wb")
            except OSError as error:
                raise ValueError(f"{archive}: cannot write {name} to {target} ({error.strerror or error}).") from error
            with output, opened() as file:
                shutil.copyfileobj(file, output, 1 << 20)
            count += 1
    if not count:
        raise ValueError(f"{archive} has no files in {below or 'it'}; is it the right archive?")
    return count


Member = tuple[str, Callable[[], IO[bytes]]]  # its name, and what opens it


@contextmanager
def members(archive: Path) -> Iterator[Iterator[Member]]:
    """The files of a zip or tar archive, in its order; see :func:`unpack` for what is refused.

    The archive's own extraction is not used: links could lead it out of the folder, and names onto other files.
    """
    try:
        if archive.open("rb").read(2) == b"PK":
            with zipfile.ZipFile(archive) as opened:
                yield _zip(archive, opened)
        else:
            with tarfile.open(archive) as opened:
                yield _tar(archive, opened)
                while opened.fileobj.read(1 << 20):  # gzip's checksum is behind the last member
                    pass
    except ValueError:
        raise
    except Exception as error:  # lzma, zlib, tarfile, zipfile and struct each have errors of their own
        remedy = "is the disk full?" if getattr(error, "errno", None) else "get it again."
        raise ValueError(f"{archive} cannot be unpacked ({str(error) or type(error).__name__}); {remedy}") from error


def _zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    total = 0
    for info in opened.infolist():
        total = _within(archive, total + info.file_size)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{archive}: {info.filename} is a link or a device; such archives are not unpacked.")
        name = _inside(archive, info.orig_filename)
        if not info.is_dir():
            yield name, partial(opened.open, info)


def _tar(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    total = 0
    for info in opened:
        total = _within(archive, total + info.size)
        if not (info.isfile() or info.isdir()):
            raise ValueError(f"{archive}: {info.name} is a link or a device; such archives are not unpacked.")
        name = _inside(archive, info.name)
        if info.isfile():
            yield name, partial(opened.extractfile, info)


def _within(archive: Path, total: int) -> int:
    """The bytes that the members so far unpack to, if they are not out of all proportion to the archive."""
    most = max(SMALL, EXPANSION * archive.stat().st_size)
    if total > most:
        raise ValueError(f"{archive} would unpack to more than {most:,} bytes; such archives are not unpacked.")
    return total


def _inside(archive: Path, name: str) -> str:
    """The name, if it stays in the folder that it is unpacked to on every system."""
    if leaves(name):
        raise ValueError(f"{archive}: {name!r} would be written outside the folder; such archives are not unpacked.")
    return str(PurePosixPath(name))


# ----------------------------------------------------------------------------------------------------------------- build


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keeps other runs out of ``root``: two would write into one ``.part`` and remove each other's unfinished set.

    A killed run leaves the file, but not the lock on it.

    Raises:
        ValueError: if another run is there.
    """
    lock = root / ".preparing"
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no open file, and FileLock then does it
                    lock.unlink()
    except Timeout:
        raise ValueError(f"another run is filling {root}; wait for its end, or prepare into another root.") from None


@contextmanager
def built(root: Path, place: str) -> Iterator[Path]:
    """A root to build the set ``place`` (``"fgvc/cub200"``) in, which goes to ``root`` when all went well, else disappears.

    It lies below ``root``, so that the last step is one renaming: there is no moment with half a set.
    """
    unfinished = root / f".unfinished-{place.replace('/', '-')}"
    _refuse_links(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    (unfinished / place).mkdir(parents=True)
    try:
        yield unfinished
        (root / place).parent.mkdir(exist_ok=True)
        (unfinished / place).rename(root / place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
