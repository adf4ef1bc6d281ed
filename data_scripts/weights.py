"""Fetches the weights of the C4 trunk (minica.networks.resnet50v2_c4) and converts them to the one file that minica reads.

python data_scripts/weights.py --root FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fetch import alone, download
from tqdm import tqdm

from minica.atomic import write_atomically
from minica.networks import resnet50v2_c4 as c4

RAW = c4.SOURCE.replace("https://github.com/", "https://raw.githubusercontent.com/").replace("/tree/", "/")
METADATA = {
    "source": "BruceDai/test-data@38659dfb models/resnet50v2_nchw (onnx/models resnet50-v2-7)",
    "licence": "Apache-2.0",
}
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}


def arrays() -> dict[str, str]:
    """Tensor of the trunk -> the published array, by the ONNX model's names: 211 of its 259, without the rest of stage 4."""
    convs, norms = {"stem.conv": "conv0"}, {"stem.norm0": "batchnorm0", "stem.norm": "batchnorm1", "norm": "stage4_batchnorm0"}
    for stage, depth in enumerate((3, 4, 6)):
        convs[f"stages.{stage}.blocks.0.downsample.conv"] = f"stage{stage + 1}_conv3"
        for block in range(depth):
            for i in range(3):
                place, number = f"stages.{stage}.blocks.{block}", 3 * block + i
                norms[f"{place}.norm{i + 1}"] = f"stage{stage + 1}_batchnorm{number}"
                # The shortcut's convolution is counted behind the first block's three.
                convs[f"{place}.conv{i + 1}"] = f"stage{stage + 1}_conv{number + (block > 0)}"
    found = {f"{key}.weight": f"resnetv24_{name}_weight" for key, name in convs.items()}
    found |= {f"{key}.{ours}": f"resnetv24_{name}_{theirs}" for key, name in norms.items() for ours, theirs in NORM.items()}
    return dict(sorted(found.items()))


def prepare(root: Path) -> Path:
    """Make the file below ``root``, or nothing at all.

    The arrays are kept in ``root/downloads``; those that are there already are not fetched.

    Raises:
        ValueError: if an array cannot be fetched or has another shape, or if the file is not the one whose SHA-256 is pinned.
    """
    target, downloads = root / c4.FILE, root / "downloads" / "resnet50v2_nchw"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == c4.SHA256:
        print(f"{target} is there already, and whole.")
        return target
    shapes = {key: tuple(value.shape) for key, value in c4.create(device="meta").state_dict().items()}
    tensors = {}
    for key, name in tqdm(arrays().items(), "fetching", leave=False, delay=2):
        file = downloads / f"{name}.npy"
        if not file.is_file():
            download(f"{RAW}/{file.name}", file)
        tensors[key] = _array(file, shapes[key])
    payload = serialize(tensors, METADATA)
    found = hashlib.sha256(payload).hexdigest()
    if found != c4.SHA256:
        raise ValueError(
            f"the converted file has the SHA-256 {found}, expected {c4.SHA256}, so it was not kept: an array in {downloads} "
            "is damaged, or another version. Delete that folder and run the same again."
        )
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, payload)
    print(f"{target}: {len(tensors)} tensors, SHA-256 {found}, Apache-2.0, from {c4.SOURCE}. Set MINICA_DATA to {root}.")
    return target


def _array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is no NumPy array ({error}); delete it and run the same again.") from error
    if array.dtype != np.float32 or array.shape != shape:
        raise ValueError(f"{file} has {array.dtype} {array.shape}, expected float32 {shape}; delete it and run the same again.")
    return array


def serialize(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of float32 tensors; the library's own writer orders the metadata by chance, and the hash is pinned."""
    header, data, start = {"__metadata__": dict(metadata)}, [], 0
    for key in sorted(tensors):
        data.append(np.ascontiguousarray(tensors[key], "<f4").tobytes())
        header[key] = dict(dtype="F32", shape=list(tensors[key].shape), data_offsets=[start, start + len(data[-1])])
        start += len(data[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog=f"From {c4.SOURCE} (Apache-2.0).")
    parser.add_argument("--root", required=True, type=Path, help="the folder MINICA_DATA; nothing is written elsewhere")
    args = parser.parse_args(argv)
    try:
        args.root.mkdir(parents=True, exist_ok=True)
        with alone(args.root):
            prepare(args.root)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
