"""Recorded detectors and segmentation networks in words: tables, differences over seeds, the paper's Table 4 beside ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ..dense import detection, pyramid, segmentation
from ..experiments.paper import table
from ..experiments.records import RESULTS, read_records
from ..experiments.scores import spread
from ..experiments.tables import markdown
from ..schemes import adapt
from ..tuning import tune
from .results import Results
from .verdicts import by_seeds, differences

NETWORKS = {"detection": (detection, detection.faster_rcnn, 81), "segmentation": (segmentation, segmentation.upernet, 150)}
# What trains in the backbone of a fine-tuned ResNet50 detector: all but stem and first stage, and no statistics.
LATER_STAGES = tuple(f"backbone.body.layer[234].*.{kind}" for kind in ("weight", "bias"))
# Network of the paper -> ours, and the scheme and compression at which our count is the paper's.
TABLE_4 = {
    ("detection", "ResNet50"): ("resnet50", dict(scheme="residual_parallel", compression=1)),
    ("detection", "ConvNeXt-S"): ("convnext_small", dict(scheme="conv_parallel", compression=1)),
    ("segmentation", "ResNet50"): ("resnet50", dict(scheme="residual_sequential", compression=8)),
    ("segmentation", "ConvNeXt-S"): ("convnext_small", dict(scheme="conv_parallel", compression=1)),
}

MEMORY_COLUMNS = ("Frozen backbone", "Conv-Adapter", "Conv-Adapter, lean")
NAMES = {"ap": "AP", "ap50": "AP50", "miou": "mIoU"}


class Shown(NamedTuple):
    """Recorded runs and where they came from: the name of a config and what its data are called in a table."""

    config: str
    data: str
    results: Results


def command(config: str) -> str:
    """What makes the records of a config."""
    return f"python -m minica sweep configs/{config}.toml"


def recorded_table(shown: Sequence[Shown], metric: str) -> str:
    """The final runs of each config, a row a method: the test metric's mean, lowest and highest, in %; or "not run yet"."""
    rows = []
    for config, data, results in shown:
        for method, runs in results.by_method().items():
            if not runs:
                rows.append([data, method, f"not run yet: `{command(config)}`", "", ""])
                continue
            low, mean, high = (f"{100 * value:.1f}" for value in spread(runs, metric=metric))
            score = f"{mean} ({low} to {high}), {len(runs)} {'seed' if len(runs) == 1 else 'seeds'}"
            rows.append([data, method, score, f"{runs[0]['trainable']:,}", f"{runs[0]['config']['lr']:g}"])
    return markdown(["data", "method", f"test {NAMES[metric]}, %: mean (lowest to highest)", "trained", "rate"], rows)


def verdicts(shown: Sequence[Shown], metric: str, method: str = "Conv-Adapter") -> str:
    """A line for each config and other method: their difference, whether the ranges over seeds overlap, and seed by seed.

    Splits are fixed, so that runs of one seed share no more than the order of the images.
    """
    lines = []
    for _, data, results in shown:
        runs = results.by_method()
        others = [other for other, theirs in runs.items() if other != method and theirs and runs[method]]
        if not others:
            lines.append(f"* **{data}**: not run yet.")
        for other in others:
            points = ", ".join(f"{value:+.1f}" for value in differences(runs[method], runs[other], metric))
            lines.append(f"* **{data}**, {NAMES[metric]}: {by_seeds(runs, method, other, metric)} By seed: {points}.")
    return "\n".join(lines)


def table_4(task: str, counts: Mapping[tuple[str, str], int] | None = None) -> str:
    """The paper's rows of a task, each with the parameters that train in ours.

    Args:
        task: ``"detection"`` or ``"segmentation"``.
        counts: of :func:`paper_counts`, if they are there already.
    """
    counts = counts or paper_counts(task)
    metrics = ("ap", "ap50", "ap75") if task == "detection" else ("miou",)
    rows = []
    for row in table(4):
        if (row["framework"] == "UPerNet") != (task == "segmentation"):
            continue
        ours = counts[row["backbone"], row["tuning"]] / 1e6
        rows.append([row["backbone"], row["tuning"], f"{row['params']:.2f}", f"{ours:.3f}", *(row[name] for name in metrics)])
    header = ["backbone", "", "trained, the paper (M)", "ours (M)", *(NAMES.get(name, name.upper()) for name in metrics)]
    return markdown(header, rows)


def paper_counts(task: str) -> dict[tuple[str, str], int]:
    """Parameters that train in the networks of the paper's Table 4 as this package builds them; nothing is downloaded."""
    module, build, classes = NETWORKS[task]
    found = {}
    for (of, network), (backbone, options) in TABLE_4.items():
        if of != task:
            continue
        for tuning in ("FT", "CA"):
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # that the adapters are large
                model = build(backbone, classes, pretrained=False)
                if tuning == "CA":
                    adapt(model, **options, backbone=module.BODY, train=module.heads(model))
                elif (of, network) == ("detection", "ResNet50"):
                    tune(model, "linear", backbone=module.BODY, train=(*LATER_STAGES, *module.heads(model)))
                else:
                    tune(model, "full", running_stats=False, backbone=module.BODY, train=pyramid.heads(model, module.BODY))
            found[network, tuning] = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return found


def memory_table(network: str) -> str:
    """What a training step keeps for its backward pass, recorded by ``python -m benchmarks.dense``, for one network.

    Args:
        network: ``"faster_rcnn"`` or ``"upernet"``.
    """
    rows = []
    for record in read_records(RESULTS / "dense_memory.json").values():
        config, methods = record["config"], record["methods"]
        if config["network"] == network:
            full = methods["Full fine-tuning"]["step"]
            shares = [f"{methods[name]['step'] / full:.2f}" for name in MEMORY_COLUMNS]
            adapted = f"{config['scheme']}, {config['compression']}"
            rows.append([config["backbone"], adapted, f"{full / 2**20:,.0f} MiB", *shares])
    found = markdown(["backbone", "scheme, compression", "full", *(name.lower() for name in MEMORY_COLUMNS)], rows)
    return (
        f"{config['images']} images of {config['side']} x {config['side']} pixels, in parts of full fine-tuning's:\n\n{found}"
    )
