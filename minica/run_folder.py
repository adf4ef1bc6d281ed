"""What a killed run goes on from: who may write to its folder, what tells it from another run, and its checkpoints."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, set_seed
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from .atomic import write_atomically
from .recipe import active_recipe, adapted_parts, trained_state

SAMPLED = 64  # items that stand for a data set whose content cannot be had but item by item
CONTENT = ("tensors", "images", "data", "samples")  # where torch's, minica's and torchvision's data sets keep it
BESIDE = ("labels", "targets", "indices")
TRANSFORMS = ("transform", "target_transform", "transforms")


# Who may write.


@contextmanager
def locked(folder: str | os.PathLike, main: bool) -> Iterator[Path]:
    """Keeps other runs out of ``folder``, which is made if need be, and deletes what killed ones left half written.

    All processes of a run call this together; the ``main`` one has the lock, below the path that all links lead to.

    Raises:
        ValueError: if nothing can be written there, or another run has it.
    """
    folder, refused = Path(folder).resolve(), None
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if main:
            lock.acquire()
    except Timeout:
        refused = f"another run is writing to {folder}; wait until it ends, or choose another folder."
    except OSError as error:
        refused = f"cannot write checkpoints to {folder} ({error.strerror or error}); choose another folder, or None."
    if refused := broadcast_object_list([refused])[0]:
        raise ValueError(refused)
    try:
        for unfinished in (*folder.glob(".checkpoint-?????.pt.*"), *folder.glob("checkpoint-?????.tmp")):
            unfinished.unlink(missing_ok=True)
        yield folder
    finally:
        with suppress(OSError):  # Windows does not delete what is open
            if main:
                os.unlink(lock.lock_file)
        lock.release()


# What tells one run from another.


def identity(model: nn.Module, train: Any) -> dict[str, Any]:
    """What tells a run from others of the same settings: its data, their transform, the frozen weights and what trains.

    All data that lies in memory counts, and is read once: lists, and what a data set has as ``tensors``, ``images``, ``data``,
    ``samples``, ``labels`` or ``targets``, also inside Subset and ConcatDataset.  Of images on disk the names count.  Of any
    other data set, :data:`SAMPLED` items count that are spread evenly; each is taken twice with the same random numbers, and
    left out if it differs.  Transforms count by their ``repr``.
    """
    trained, parts = trained_state(model), list(nested(train))
    return {
        "training images": len(train),
        "training data": _checksum(_content(train, parts)),
        "transform": _checksum(_bytes([getattr(part, key, None) for part in parts for key in TRANSFORMS])),
        "frozen weights": _checksum(_bytes([value for key, value in model.state_dict().items() if key not in trained])),
        **recipe_summary(model),
    }


def recipe_summary(model: nn.Module) -> dict[str, str]:
    """What trains, as entries of :func:`identity`: the recipe in use, and the name and shape of each tensor."""
    recipes = [active_recipe(part) for part in adapted_parts(model).values()]
    said = {"recipe": str([(recipe.method, recipe.options, recipe.norms, recipe.train) for recipe in recipes if recipe])}
    return said | {f"shape of {key}": str(tuple(value.shape)) for key, value in sorted(trained_state(model).items())}


def nested(data: Any) -> Iterator[Any]:
    """A data set and all that it wraps, as Subset and ConcatDataset do."""
    yield data
    for inner in (getattr(data, "dataset", None), *getattr(data, "datasets", ())):
        if inner is not None:
            yield from nested(inner)


def _content(train: Any, parts: list) -> Iterator[Any]:
    for part in parts:
        held = [part] if isinstance(part, (list, tuple)) else [getattr(part, key, None) for key in CONTENT]
        yield from _bytes([*held, *(getattr(part, key, None) for key in BESIDE)])
        known = any(isinstance(value, (Tensor, np.ndarray, list, tuple)) or hasattr(value, "listing") for value in held)
        for i in range(0, 0 if known or type(part) in (Subset, ConcatDataset) else len(train), -(-len(train) // SAMPLED)):
            set_seed(i)
            once = _checksum(_bytes(train[i]))
            set_seed(i)
            yield once.encode() if once == _checksum(_bytes(train[i])) else b""


def _bytes(value: Any) -> Iterator[Any]:
    """All that is in ``value``, in order; of what is neither array, list nor dict its ``repr``, without addresses."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    elif hasattr(value, "__array_interface__") and (array := np.asarray(value)).dtype != object:  # of Pillow's images, too
        yield f"{array.dtype} {array.shape}".encode()
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    elif hasattr(value, "listing"):  # images on disk
        yield from _bytes([value.listing, getattr(value, "size", None), getattr(value, "resize", None)])
    elif isinstance(value, (list, tuple, np.ndarray, Mapping)):
        yield f"{len(value)} items".encode()
        for item in value.items() if isinstance(value, Mapping) else value:
            yield from _bytes(item)
    else:
        yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)).encode()


def _checksum(pieces: Iterable[Any]) -> str:
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"


# Checkpoints.


def checkpoints(folder: Path) -> list[Path]:
    """The finished ones, the newest last."""
    return sorted(folder.glob("checkpoint-?????.pt"))


def save(folder: Path, run: dict, history: list[dict], trained: dict, best: dict, optimizer: Any, scaler: Any) -> None:
    """Stream a checkpoint to disk and put it in its place at once; the last but one stays, should a disk damage the last.

    Raises:
        OSError: naming the file, if the disk is full for instance.  Older checkpoints stay, and nothing half written.
    """
    file, state = folder / f"checkpoint-{len(history):05d}.pt", {"run": run, "history": history, "model": trained, "best": best}
    state |= {"optimizer": optimizer.state_dict(), "scaler": scaler and scaler.state_dict()}
    try:
        write_atomically(file, lambda stream: torch.save(state, stream))
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a stream's OSError
        why = error if isinstance(error, OSError) else error.__context__ or error
        raise OSError(f"cannot write the checkpoint {file} ({why}); make room and call fit again.") from error
    for old in checkpoints(folder)[:-2]:
        old.unlink()


def resume(folder: Path, run: dict, model: nn.Module, optimizer: Any, scaler: Any) -> tuple[list[dict], dict[str, Tensor]]:
    """Put the newest checkpoint into model and optimiser.

    Returns:
        Its history, and the trained tensors of the best epoch if that was kept; without a checkpoint both are empty.

    Raises:
        ValueError: if the checkpoint is damaged, no regular file, or of another run.  The model is left untouched.
    """
    files = checkpoints(folder)
    if not files:
        return [], {}
    file, otherwise = files[-1], f"go on from {files[-2].name}" if len(files) > 1 else "start over"
    try:
        saved = _read(file)
        there, history, trained, steps = (saved[key] for key in ("run", "history", "model", "optimizer"))
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{file} is damaged or no checkpoint of fit ({why}); delete it to {otherwise}.") from error
    both = [(key, there.get(key, "none"), run.get(key, "none")) for key in {**there, **run}]
    different = [f"{key} {theirs} (here {ours})" for key, theirs, ours in both if theirs != ours]
    if different:
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        others = f"{folder} holds checkpoints of another run, with {', '.join(different[:4])}{more}"
        raise ValueError(f"{others}; choose another folder, or delete it to start over.")
    restore(model, trained)
    optimizer.load_state_dict(steps)
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    return history, saved.get("best", {})


def _read(file: Path) -> dict:
    if not file.is_file():
        raise ValueError("it is no regular file")  # to open a named pipe would be to wait for ever
    with zipfile.ZipFile(file) as archive:  # torch.save writes checksums, torch.load does not look at them
        if any(item.compress_type for item in archive.infolist()):  # which a small file could make a huge one with
            raise zipfile.BadZipFile("it is compressed")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(file, map_location="cpu", weights_only=True)


@torch.no_grad()
def restore(model: nn.Module, trained: dict[str, Tensor]) -> None:
    """Copy tensors into those that train, by name; nothing else is touched."""
    own = trained_state(model)
    for key, value in trained.items():
        own[key].copy_(value)
