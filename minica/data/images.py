"""Decodes image files to tensors, and keeps the result so that this happens once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
_FORMAT = 1  # of the cached pictures: count up whenever decoding or drawing changes what they look like


def decode(path: str | os.PathLike, size: int | None = None, resize: str = "squash") -> Tensor:
    """One image file as a uint8 tensor: (1, H, W) if it is grey, (3, H, W) RGB if it is not.

    A rotation noted in EXIF is carried out.  16-bit grey is scaled to 8 bits by its full range (65535 becomes 255);
    palettes and CMYK become RGB; transparency is dropped.  Of a file with several pages the first is taken.

    Args:
        path: any file that Pillow reads.
        size: side S of the square result in pixels; None keeps the picture as it is.
        resize: ``"squash"`` to S x S whatever the aspect ratio; ``"crop"``: the short side to S, then the centre; or
            ``"centre"``, the published evaluation: squash to 8/7 S (256 for 224), then the centre.  All bicubic and
            antialiased.

    Raises:
        ValueError: if the file is missing, not an image, truncated, or has 32-bit pixels, whose range nobody knows.
    """
    try:
        with Image.open(path) as file:
            picture = eight_bits(ImageOps.exif_transpose(file))
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(
            f"cannot decode the image {os.fspath(path)}: {str(error) or type(error).__name__}. "
            "Replace it with an intact image of 8 or 16 bits, or remove it."
        ) from error
    return to_tensor(picture if size is None else resized(picture, size, resize))


def eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":  # I, F and all the I;16s: one channel of more than eight bits
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels are 32-bit numbers (mode {picture.mode})")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow's own advice; straight to RGB it warns
    return picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")


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


def decode_all(name: str, root: Path, paths: Sequence[Path], size: int, resize: str) -> Tensor:
    """All ``paths`` (below ``root``) as uint8 (N, 1 | 3, size, size), from the cache if nothing has changed since.

    The result has one channel only if every picture is grey.

    Raises:
        ValueError: naming the first file that does not decode.
    """

    def decode_files() -> Tensor:
        with ThreadPoolExecutor() as pool:  # threads do: Pillow decodes and resizes outside the interpreter's lock
            work = pool.map(partial(decode, size=size, resize=resize), paths)
            pictures = list(tqdm(work, "decoding images", len(paths), leave=False, delay=10))
        channels = max(len(picture) for picture in pictures)
        return torch.stack([picture.expand(channels, -1, -1) for picture in pictures])

    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    stamps = [(os.fspath(path.relative_to(root)), *_stamp(path)) for path in paths]
    return cached(f"{name[:40]}-{place}-{size}-{resize}", stamps, decode_files)


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


def cached(name: str, content: object, make: Callable[[], Tensor]) -> Tensor:
    """``make()``, or what it gave last time for the same ``name`` and ``content`` (anything that JSON can hold).

    One safetensors file a name below :func:`home`.  It is written beside and moved into place, so that no reader ever
    sees half of it, whatever other processes do; a stale or damaged one is made again and replaced.  Without write
    access the pictures are made every time, with a warning.
    """
    path = home() / "images" / f"{name}.safetensors"
    fingerprint = hashlib.sha256(json.dumps([_FORMAT, PIL.__version__, content]).encode()).hexdigest()
    images = _read(path, fingerprint)
    if images is None:
        images = make()
        _write(path, images, fingerprint)
    return images


def _read(path: Path, fingerprint: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            images = file.get_tensor("images")
            return images if file.metadata() == {"seal": _seal(images, fingerprint)} else None
    except (OSError, SafetensorError):
        return None


def _write(path: Path, images: Tensor, fingerprint: str) -> None:
    def payload(file: BinaryIO) -> None:
        file.write(save({"images": images}, {"seal": _seal(images, fingerprint)}))
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


def _seal(images: Tensor, fingerprint: str) -> str:
    # safetensors notices a truncated file but not a changed one, hence the checksum.
    return f"{fingerprint} {zlib.crc32(images.numpy()):08x}"


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
