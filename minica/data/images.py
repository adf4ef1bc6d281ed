"""Decodes image files to tensors, and keeps the result so that this happens once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..atomic import write_atomically

RESIZE_RULES = ("squash", "crop", "centre")
# What is opened, whatever a file is called: Pillow would run a PostScript program that is called photo.jpg.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "HEIF")
HEIC_REMEDY = "HEIC photographs need pillow-heif (pip install pillow-heif), or export them as JPEG"
LARGEST = 150_000_000  # pixels of one picture, checked before it is decoded
BACKGROUND = "white"  # what shows through where a picture is transparent


class BrokenImages(ValueError):
    """Images that do not decode; ``found`` has the reason of each by its path."""

    def __init__(self, found: Mapping[Path, str], skippable: bool = False) -> None:
        self.found = dict(found)
        lines = [f"{os.fspath(path)}: {reason}" for path, reason in found.items()]
        it, intact, out = "it", "an intact image", "; skip_broken=True (--skip-broken) leaves such files out" * skippable
        said = f"cannot decode the image {lines[0]}. "
        if len(lines) > 1:
            it, intact = "them", "intact images"
            said = "\n  ".join([f"cannot decode {len(lines)} images:", *lines]) + "\n"
        super().__init__(f"{said}Replace {it} with {intact} of 8 or 16 bits, or remove {it}{out}.")


@cache
def endings() -> dict[str, str]:
    """The endings of image files that are read, such as ``".jpg"``, and their formats; AVIF and HEIC where Pillow has them."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return {ending: kind for ending, kind in Image.registered_extensions().items() if kind in FORMATS}


def formats() -> list[str]:
    """Those of :data:`FORMATS` that can be read here."""
    return [kind for kind in FORMATS if kind in endings().values()]


def has_image_ending(name: str) -> bool:
    """Whether a file is read as an image, by its name; hidden files are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in endings()


def unread(names: Sequence[str]) -> str:
    """A sentence that counts, by ending, the files that are passed over; none for those that are hidden or the system's."""
    names = [name for name in names if not has_image_ending(name) and not name.startswith(".")]
    names = sorted(name for name in names if name.lower() not in ("thumbs.db", "desktop.ini"))
    if not names:
        return ""
    kinds = [os.path.splitext(name)[1].lower() or "without an ending" for name in names]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    more = ", ..." if len(names) > 5 else ""
    files = "1 file is" if len(names) == 1 else f"{len(names)} files are"
    said = f"{files} not read because of the ending ({counts}): {', '.join(names[:5])}{more}."
    return said + (f" {HEIC_REMEDY}." if {".heic", ".heif"} & set(kinds) else "")


def decode(path: str | os.PathLike, size: int | None = None, resize: str = "squash") -> Tensor:
    """One image file as a uint8 tensor: (1, H, W) if it is grey, (3, H, W) RGB if it is not.

    A rotation noted in EXIF is carried out.  16-bit grey is scaled to 8 bits by its full range (65535 becomes 255);
    palettes and CMYK become RGB; what is transparent is laid onto white (:data:`BACKGROUND`); of more bands than three the
    first three are taken, and of a file with several pages or frames the first.

    Args:
        path: a regular file in one of :data:`FORMATS`, whatever its ending.
        size: side S of the square result in pixels; None keeps the picture as it is.
        resize: ``"squash"`` to S x S whatever the aspect ratio; ``"crop"``: the short side to S, then the centre; or
            ``"centre"``, the published evaluation: squash to 8/7 S (256 for 224), then the centre.  All bicubic and
            antialiased.

    Raises:
        BrokenImages: if the file is missing, not an image, truncated, has more than :data:`LARGEST` pixels, or 32-bit ones,
            whose range nobody knows.
    """
    try:
        with opened(path) as file:
            picture = eight_bits(ImageOps.exif_transpose(file))
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise BrokenImages({Path(path): why(path, error)}) from error
    return to_tensor(picture if size is None else resized(picture, size, resize))


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """A regular file in one of :data:`FORMATS`, of at most :data:`LARGEST` pixels; what is wrong with another is raised."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")  # to open a named pipe would be to wait for ever
    with Image.open(path, formats=formats()) as file:
        if file.width * file.height > LARGEST:
            raise ValueError(f"it has {file.width:,} x {file.height:,} pixels, of which {LARGEST:,} are read at most")
        yield file


def why(path: str | os.PathLike, error: Exception) -> str:
    """Why a file does not decode, in a few words."""
    if not isinstance(error, PIL.UnidentifiedImageError):
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    with open(path, "rb") as file:
        begins = file.read(12)
    if begins[4:8] == b"ftyp" and begins[8:] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return HEIC_REMEDY
    return f"it is no {', '.join(formats())}" if begins else "it is empty"


def eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":  # I, F and all the I;16s: one channel of more than eight bits
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels are 32-bit numbers (mode {picture.mode})")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))
    grey = picture.mode in ("1", "L", "LA")
    if picture.has_transparency_data:
        below = Image.new("RGBA", picture.size, BACKGROUND)
        picture = Image.alpha_composite(below, picture.convert("RGBA"))
    return picture.convert("L" if grey else "RGB")


def resized(picture: Image.Image, size: int, resize: str = "squash") -> Image.Image:
    """``picture`` at ``size`` x ``size`` pixels; see :func:`decode`."""
    fit = ImageOps.fit if resize == "crop" else Image.Image.resize
    side = margin(size) if resize == "centre" else size
    edge = (side - size) // 2
    return fit(picture, (side, side), Image.Resampling.BICUBIC).crop((edge, edge, edge + size, edge + size))


def margin(size: int) -> int:
    """The side that ``size`` is cut from: 256 for 224."""
    return round(size * 8 / 7)


def to_tensor(picture: Image.Image) -> Tensor:
    """A grey or RGB picture as uint8 (1 | 3, H, W)."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def decode_all(
    name: str, root: Path, paths: Sequence[Path], size: int, resize: str, skip_broken: bool = False
) -> tuple[Tensor, dict[Path, str]]:
    """All ``paths`` (below ``root``) as uint8 (N, 1 | 3, size, size), from the cache if nothing has changed since.

    The result has one channel only if every picture is grey.

    Returns:
        The pictures, in the order of ``paths``, and the reason by path of those that are left out because they do not decode;
        without ``skip_broken`` there are none.

    Raises:
        BrokenImages: naming every file that does not decode, unless ``skip_broken``; and if none does.
    """

    def attempt(path: Path) -> Tensor | str:
        try:
            return decode(path, size, resize)
        except BrokenImages as error:
            return error.found[path]

    def decode_files() -> dict[str, Tensor]:
        with ThreadPoolExecutor() as pool:  # threads do: Pillow decodes and resizes outside the interpreter's lock
            found = list(tqdm(pool.map(attempt, paths), "decoding images", len(paths), leave=False, delay=10))
        broken = {path: reason for path, reason in zip(paths, found, strict=True) if isinstance(reason, str)}
        if broken and (not skip_broken or len(broken) == len(paths)):
            raise BrokenImages(broken, skippable=not skip_broken)
        pictures = [picture for picture in found if isinstance(picture, Tensor)]
        channels = max(len(picture) for picture in pictures)
        images = torch.stack([picture.expand(channels, -1, -1) for picture in pictures])
        text = json.dumps([[i, broken[path]] for i, path in enumerate(paths) if path in broken])
        return {"images": images} | (
            {"broken": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)} if broken else {}
        )

    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    stamps = [(os.path.relpath(path, root), *_stamp(path)) for path in paths]
    found = cached(f"{name[:40]}-{place}-{size}-{resize}", [stamps, skip_broken] if skip_broken else stamps, decode_files)
    text = found["broken"].numpy().tobytes() if "broken" in found else "[]"
    return found["images"], {paths[i]: reason for i, reason in json.loads(text)}


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does.  ctime too: an archive unpacked again brings back its old modification times."""
    try:
        found = path.stat()
    except OSError:  # a dangling link, say: let decode() complain
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def home() -> Path:
    """Where minica keeps what it can make again: ``$MINICA_HOME``, else ``~/.cache/minica``.  Safe to delete."""
    return Path(os.environ.get("MINICA_HOME") or "~/.cache/minica").expanduser()


def digest(source: str) -> str:
    """The SHA-256 of a source file: what is kept is made again once the code that made it has changed."""
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def cached(name: str, content: object, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """``make()``, or what it gave last time for the same ``name`` and ``content`` (anything that JSON can hold).

    One safetensors file a name below :func:`home`.  It is written beside and moved into place, so that no reader ever
    sees half of it, whatever other processes do; a stale or damaged one is made again and replaced.  Without write
    access the pictures are made every time, with a warning.
    """
    path = home() / "images" / f"{name}.safetensors"
    fingerprint = hashlib.sha256(json.dumps([digest(__file__), PIL.__version__, content]).encode()).hexdigest()
    found = _read(path, fingerprint)
    if found is None:
        found = make()
        _write(path, found, fingerprint)
    return found


def _read(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}
            return found if file.metadata() == {"seal": _seal(found, fingerprint)} else None
    except (OSError, SafetensorError):
        return None


def _write(path: Path, found: dict[str, Tensor], fingerprint: str) -> None:
    def payload(file: BinaryIO) -> None:
        file.write(save(found, {"seal": _seal(found, fingerprint)}))
        Path(file.name).chmod(path.parent.stat().st_mode & 0o666)  # for whom the folder is, not only for its writer

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, payload)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"cannot write to the image cache {path.parent} ({error}); the images will be decoded again next time. "
            "Set the environment variable MINICA_HOME to a folder that you may write to.",
            stacklevel=2,
        )


def _seal(found: dict[str, Tensor], fingerprint: str) -> str:
    # safetensors notices a truncated file but not a changed one, hence the checksum.
    checksum = 0
    for key in sorted(found):
        checksum = zlib.crc32(found[key].numpy(), checksum)
    return f"{fingerprint} {checksum:08x}"


@dataclass
class Collection:
    """What a reader hands over: all pictures of a data set, and which of them are for what."""

    name: str
    classes: tuple[str, ...]
    images: Tensor | Sequence[Tensor]  # uint8 (N, 1 | 3, S, S) in memory, or minica.data.files.Files on disk
    labels: np.ndarray  # int64 (N,), positions in classes
    splits: dict[str, np.ndarray]  # "train", "val" and "test", where it is known "final": positions in images
    strata: np.ndarray  # int64 (N,), what a subset of the training images keeps the proportions of
    augment: str  # the augmentation that leaves the labels right
    source: str
    licence: str
    citation: str = ""


def stratified_split(
    indices: np.ndarray, strata: np.ndarray, count: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` of ``indices`` at random; returns (rest, drawn), each in ascending order.

    Every stratum gives its share of them, rounded by largest remainder, and at least one if ``count`` allows that.  ``strata``
    (N,) is looked up by index.  A ``RandomState`` and no newer generator, because numpy promises that its stream never
    changes: recorded results depend on the splits.
    """
    groups, sizes = np.unique(strata[indices], return_counts=True)
    share = sizes * count / len(indices)
    take = np.maximum(np.floor(share), 1 if count >= len(groups) else 0).astype(int)
    while take.sum() > count:
        take[np.argmax(np.where(take > 1, take - share, -np.inf))] -= 1
    while take.sum() < count:
        take[np.argmax(share - take)] += 1
    parts = [random.permutation(indices[strata[indices] == group])[:number] for group, number in zip(groups, take, strict=True)]
    chosen = np.sort(np.concatenate(parts))
    return np.setdiff1d(indices, chosen), chosen


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Positions of the first ``shots`` of each class in an order drawn by ``seed``: more shots of a seed contain the fewer."""
    order = np.random.RandomState(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])
