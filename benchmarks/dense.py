"""``python -m benchmarks.dense``: bytes that a training step of a detector and of a segmentation network keeps, by method.

Bytes are counted, not timed, so they are the same on every machine.  What the heads keep is in all of them; what the backbone
keeps is what adapters change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import minica
from minica.atomic import write_atomically
from minica.dense import detection, segmentation
from minica.experiments import RESULTS, add_record, markdown, provenance, read_records, trial_key
from minica.profiling import activations

IMAGES, SIDE, CLASSES = 2, 320, 21
ADAPTED = [  # backbone, scheme, compression: the paper's, a smaller one, and the packaged network's
    ("resnet50", "residual_parallel", 1),
    ("resnet50", "conv_parallel", 4),
    ("convnext_small", "conv_parallel", 1),
    ("tf_efficientnet_lite0", "residual_parallel", 1),
]
NETWORKS = {"faster_rcnn": detection, "upernet": segmentation}


class Step(nn.Module):
    """Images (N, 3, S, S) to the loss of a network on them; the targets are fixed."""

    def __init__(self, model: nn.Module, module) -> None:
        super().__init__()
        self.model, self.module = model, module

    def forward(self, images: Tensor) -> Tensor:
        torch.manual_seed(0)  # which proposals are taken
        if self.module is segmentation:
            return segmentation.loss(self.model, (images, torch.ones(len(images), *images.shape[2:], dtype=torch.int64)))
        boxes = torch.tensor([[20.0, 30, 120, 140], [100, 60, 300, 250]])
        targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
        return detection.loss(self.model, (list(images), targets))


def _adapted(model: nn.Module, scheme: str, compression: int, module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # that there are many parameters, which the table reports
        return minica.adapt(model, scheme, compression, backbone=module.BODY, train=module.heads(model))


METHODS: dict[str, Callable] = {
    "Full fine-tuning": lambda model, scheme, compression, module: minica.tune(
        model, "full", running_stats=False, backbone=module.BODY, train=module.heads(model)
    ),
    "Frozen backbone": lambda model, scheme, compression, module: minica.tune(
        model, "linear", backbone=module.BODY, train=module.heads(model)
    ),
    "Conv-Adapter": _adapted,
    "Conv-Adapter, lean": lambda model, scheme, compression, module: minica.lean(_adapted(model, scheme, compression, module)),
}


def measure(cell: dict) -> dict:
    """Trained parameters, and bytes kept by a step of each method: of all, and of the backbone alone on the same images."""
    module, found = NETWORKS[cell["network"]], {}
    images = torch.rand(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    options = dict(min_size=SIDE, max_size=SIDE) if module is detection else {}
    for name, prepare in METHODS.items():
        torch.manual_seed(0)
        model = getattr(module, cell["network"])(cell["backbone"], CLASSES, pretrained=False, **options)
        prepare(model, cell["scheme"], cell["compression"], module)
        found[name] = {
            "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            "step": activations(Step(model, module), images),
            "backbone": activations(model.get_submodule(module.BODY), images),
        }
    return {"config": cell, "methods": found, **provenance()}


def table(records: list[dict]) -> str:
    rows = []
    for record in records:
        full = record["methods"]["Full fine-tuning"]
        for name, entry in record["methods"].items():
            parts = [f"{entry[key] / 2**20:,.0f} MiB ({entry[key] / full[key]:.2f})" for key in ("step", "backbone")]
            config = record["config"]
            adapted = f"{config['scheme']}, {config['compression']}" if "Adapter" in name else ""
            rows.append([config["network"], config["backbone"], name, adapted, f"{entry['trained']:,}", *parts])
    header = [
        "network",
        "backbone",
        "method",
        "scheme, compression",
        "trained parameters",
        "kept by a step (of full)",
        "of it by the backbone",
    ]
    return f"{IMAGES} images of {SIDE} x {SIDE} pixels, float32.\n\n{markdown(header, rows)}\n"


def summary(records: list[dict]) -> str:
    """A row a network and adapter: what a step keeps, in parts of full fine-tuning's; in brackets by the backbone alone."""
    rows = []
    for record in records:
        config, methods = record["config"], record["methods"]
        full = methods["Full fine-tuning"]
        row = [config["network"], config["backbone"], f"{config['scheme']}, {config['compression']}"]
        row.append(f"{full['step'] / 2**20:,.0f} MiB ({full['backbone'] / 2**20:,.0f})")
        for name in ("Frozen backbone", "Conv-Adapter", "Conv-Adapter, lean"):
            row.append(f"{methods[name]['step'] / full['step']:.2f} ({methods[name]['backbone'] / full['backbone']:.2f})")
        rows.append(row)
    header = [
        "network",
        "backbone",
        "scheme, compression",
        "kept, full",
        "frozen backbone",
        "Conv-Adapter",
        "Conv-Adapter, lean",
    ]
    return markdown(header, rows)


def main(out: Path = RESULTS) -> None:
    place = out / "dense_memory.json"
    for network in NETWORKS:
        for backbone, scheme, compression in ADAPTED:
            adapted = dict(backbone=backbone, scheme=scheme, compression=compression)
            cell = dict(network=network, **adapted, images=IMAGES, side=SIDE)
            if trial_key(cell) not in read_records(place):
                add_record(place, measure(cell))
    text = table([*read_records(place).values()])
    write_atomically(place.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
