"""What a trained network says of new files: unlabelled pictures, folders of them and globs."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .. import training
from ..adapter_files import WEIGHTS, load_adapter, read_config
from ..backbones import create_backbone
from ..data import decode, transform
from ..data.images import has_image_ending, unread
from ..fast.devices import usable_device
from ..fast.layout import as_weights
from ..profiling import modes_kept
from ..recipe import active_recipe, carrier, check_parts

NEEDED = ("classes", "input_size", "resize", "mean", "std")
Paths = str | os.PathLike | Sequence[str | os.PathLike]


def predict(
    model: nn.Module,
    data: Dataset | DataLoader | Paths,
    *,
    batch_size: int = 128,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> tuple[Tensor, Tensor] | list[dict]:
    """What the model says of a data set, or of files.

    **A data set or loader**: logits ``(N, C)`` and labels ``(N,)``, see :func:`minica.training.predict`.

    **A path, or a list of paths**, each a picture, a folder (all pictures below it, sorted) or a glob such as
    ``"new/**/*.jpg"``: a list of records, one a picture, in the order of the paths::

        {"file": "new/1.jpg", "prediction": "cat", "scores": {"cat": 0.9, "dog": 0.1}, "error": None}

    Pictures are prepared as those were that the model was trained on, which its recipe knows after :func:`minica.fit` and
    :func:`minica.load_adapter`.  A file that does not decode, does not exist or matches nothing has an ``error`` that says so,
    no prediction and no scores; the others go on.

    Raises:
        ValueError: if the model does not know its classes or how its pictures are prepared; for what
            :func:`minica.training.predict` refuses.

    Warns:
        UserWarning: counting the files of folders whose ending is not read.
    """
    if isinstance(data, (str, os.PathLike)) or (
        isinstance(data, (list, tuple)) and data and all(isinstance(path, (str, os.PathLike)) for path in data)
    ):
        paths = [data] if isinstance(data, (str, os.PathLike)) else data
        return _predict_files(model, list(_files(paths)), min(batch_size, 32), device)
    return training.predict(model, data, batch_size=batch_size, device=device, workers=workers)


def about(model: nn.Module) -> dict:
    """What the model's recipe knows of its pictures: ``classes``, ``input_size``, ``resize``, ``mean`` and ``std``.

    Raises:
        ValueError: if something of it is not known.
    """
    check_parts(model)
    recipe = active_recipe(carrier(model))
    known = {} if recipe is None else recipe.about
    if missing := [key for key in NEEDED if not known.get(key)]:
        remedy = "train it by minica.fit on a data set of minica.data, or load an adapter that was"
        raise ValueError(f"the model does not know {', '.join(missing)} of the pictures that it was trained on: {remedy}.")
    return known


def prepare(known: dict):
    """The function from a file to a float32 image (3, S, S), as a model of which this is known expects it."""
    normalize = transform(known["input_size"], known["mean"], known["std"])
    return lambda file: normalize(decode(file, known["input_size"], known["resize"]))


def _files(paths: Sequence[str | os.PathLike]) -> Iterator[tuple[str, str | None]]:
    """(file, why it cannot be read) of all that is meant."""
    for path in map(os.fspath, paths):
        if os.path.isdir(path):
            found, lost, closed = [], [], []
            for place, folders, names in os.walk(path, onerror=closed.append):
                folders[:] = [name for name in folders if not name.startswith(".")]
                found += [os.path.join(place, name) for name in names if has_image_ending(name)]
                lost += names
            if said := unread(lost):
                warnings.warn(f"{path}: {said}", stacklevel=4)
            known = [*((file, None) for file in sorted(found)), *((error.filename, error.strerror) for error in closed)]
            yield from known or [(path, "there is no picture in this folder")]
        elif os.path.lexists(path) or not glob.has_magic(path):
            yield path, None
        else:
            found = sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
            yield from [(file, None) for file in found] or [(path, "no file matches")]


@torch.no_grad()
def _predict_files(model: nn.Module, files: list[tuple[str, str | None]], batch_size: int, device) -> list[dict]:
    known = about(model)
    read, records = prepare(known), []
    if device is not None:
        model.to(usable_device(device))

    def attempt(file: tuple[str, str | None]) -> Tensor | str:
        try:
            return file[1] or read(file[0])
        except ValueError as error:
            return next(iter(getattr(error, "found", {}).values()), str(error))

    with modes_kept(model), ThreadPoolExecutor() as pool:
        model.eval()
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            found = list(pool.map(attempt, batch))
            images = [image for image in found if isinstance(image, Tensor)]
            scores = iter(_scores(model, torch.stack(images), known["classes"])) if images else iter(())
            for (file, _), image in zip(batch, found, strict=True):
                record = {"file": file, "prediction": None, "scores": None, "error": None}
                if isinstance(image, str):
                    record["error"] = image
                else:
                    record["scores"] = next(scores)
                    record["prediction"] = max(record["scores"], key=record["scores"].get)
                records.append(record)
    return records


def _scores(model: nn.Module, images: Tensor, classes: Sequence[str]) -> list[dict[str, float]]:
    logits = model(as_weights(model, images)).float()
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise ValueError(
            f"the model gives outputs of shape {tuple(logits.shape)} for {len(classes)} classes; train it for them."
        )
    return [dict(zip(classes, row, strict=True)) for row in logits.softmax(1).tolist()]


# ---------------------------------------------------------------- from a run folder, and to a table


def load_run(run: str | os.PathLike) -> nn.Module:
    """The network of a run folder, or of any adapter that :func:`minica.save_adapter` wrote with its classes, ready to predict.

    Raises:
        ValueError: if there is no finished run, or its adapter does not say what it was trained on.
    """
    folder = Path(run).expanduser()
    if (folder / "plan.json").is_file() and not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds a run that is not finished; give its train command again, and it goes on where it was."
        )
    config = read_config(folder)
    name, classes = config["backbone"], config.get("classes")
    if (folder / "run.json").is_file():
        try:
            name = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]["backbone"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{folder / 'run.json'} is damaged ({error!r}); train again into a new folder.") from error
    if not classes:
        raise ValueError(f"the adapter in {folder} does not name its classes; save it after minica.fit, or with task=.")
    return load_adapter(create_backbone(name, num_classes=len(classes)), folder)


def as_csv(records: Sequence[dict], classes: Sequence[str]) -> str:
    """Records of :func:`predict` as a table with the columns ``file``, ``prediction``, one a class, and ``error``."""
    own = ("file", "prediction", "error")
    columns = [f"class {name}" if name in own else name for name in classes]
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    lines.writerow(["file", "prediction", *columns, "error"])
    for record in records:
        scores = [f"{record['scores'][name]:.6f}" for name in classes] if record["scores"] else [""] * len(classes)
        lines.writerow([record["file"], record["prediction"] or "", *scores, record["error"] or ""])
    return stream.getvalue()
