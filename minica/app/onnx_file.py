"""Writes a run as an ONNX file, with the preparation of its pictures written down, and checks it on real ones."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from ..atomic import write_atomically
from ..data.images import BACKGROUND, BrokenImages
from ..fast.folding import fold
from .prediction import about, load_run, prepare

CHECKED = 16  # test pictures of the run
TOLERANCE = 1e-3  # of the largest logit
RESIZED = {
    "squash": "whatever the aspect ratio",
    "crop": "the short side, then the centre",
    "centre": "to 8/7 of it whatever the aspect ratio, then the centre",
}


def export_run(run: str | os.PathLike, file: str | os.PathLike) -> dict:
    """Write the folded network of a run folder as ONNX, and ``FILE.json`` beside it.

    The input ``images`` is float32 (N, 3, S, S), the output ``logits`` (N, classes); what happens to a picture before is in the
    JSON file and, the same, in the metadata of the ONNX file under ``minica``.

    Returns:
        That description; its ``checked`` says on how many test pictures of the run ONNX Runtime gave PyTorch's answer, or why
        none was checked.

    Raises:
        ValueError: if there is no finished run, the place cannot be written, or the answers differ; then nothing is written.
        ModuleNotFoundError: without the packages that PyTorch exports with.
    """
    run, file = Path(run).expanduser(), Path(file).expanduser()
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; to export: pip install onnx onnxscript onnxruntime", name=error.name
        ) from error
    if file.suffix != ".onnx":  # and no file of another kind is replaced by mistake
        raise ValueError(f"{file} is not called like an ONNX file; give a name such as model.onnx.")
    if not file.parent.is_dir() or file.is_dir():
        raise ValueError(f"{file} cannot be written: {'it is a folder' if file.is_dir() else f'{file.parent} is no folder'}.")
    model = load_run(run)
    known, folded = about(model), fold(model)
    size = known["input_size"]
    example = torch.zeros(2, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, on its internals
        axes = ({0: torch.export.Dim("images", min=1)},)
        names = dict(input_names=["images"], output_names=["logits"])
        program = torch.onnx.export(folded, (example,), dynamo=True, verbose=False, dynamic_shapes=axes, **names)
    graph = program.model_proto
    described = {
        "classes": list(known["classes"]),
        "input": {
            "name": "images",
            "type": "float32",
            "shape": ["N", 3, size, size],
            "preparation": [
                "carry out a rotation noted in EXIF",
                f"lay what is transparent onto {BACKGROUND}",
                "convert to RGB, grey to three equal channels, 16-bit grey by 255 / 65535",
                f"resize to {size} x {size}: {RESIZED[known['resize']]}, bicubic and antialiased",
                "divide by 255",
                "subtract mean and divide by std, channel by channel",
            ],
            "size": size,
            "resize": known["resize"],
            "mean": list(known["mean"]),
            "std": list(known["std"]),
        },
        "output": {"name": "logits", "shape": ["N", len(known["classes"])], "scores": "softmax over the last axis"},
    }
    described["checked"] = "not checked: the pictures of the run are not where they were"
    if images := _test_pictures(run, known):
        batch = torch.stack(images)
        with torch.no_grad():
            expected = model(batch)
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": batch.numpy()})
        off = (torch.from_numpy(found) - expected).abs().max().item()
        if not off <= TOLERANCE * expected.abs().max().item():
            raise ValueError(
                f"the ONNX file does not compute what PyTorch does: logits differ by {off:.3g}; nothing was written."
            )
        described["checked"] = f"{len(images)} test pictures: logits differ by at most {off:.1e}"
    entry = graph.metadata_props.add()
    entry.key, entry.value = "minica", json.dumps(described)
    onnx.checker.check_model(graph)
    write_atomically(file, graph.SerializeToString())
    write_atomically(file.with_name(f"{file.name}.json"), (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode())
    return described


def _test_pictures(run: Path, known: dict) -> list[torch.Tensor]:
    """The first test pictures of a run that are still where they were and can still be read, prepared."""
    try:
        said = json.loads((run / "run.json").read_text(encoding="utf-8"))
        data = Path(said["data"])
        root, names = data if data.is_dir() else data.parent, said["splits"]["test"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    found, read = [], prepare(known)
    for name in names:
        if len(found) < CHECKED:
            with suppress(BrokenImages):
                found.append(read(root / name))
    return found
