"""What a beginner need not choose: sizes and rates by preset, the scheme by the network's shape, weights of rare classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ..discovery import find_parts, skeleton
from ..recipe import strip

BACKBONE = "tf_efficientnet_lite0"  # real weights that come with pip
UNBALANCED = 3  # times as many training pictures in the largest class as in the smallest: weights are tried
WARMUP = 0.5  # of the steps; with frozen statistics a shorter one lets some runs collapse
WEIGHT_DECAY = 1e-2
AUGMENT = "crop"  # of training pictures, see minica.data.AUGMENTATIONS


@dataclass(frozen=True)
class Preset:
    """How much is spent on a run."""

    size: int  # of the pictures, in pixels
    rates: tuple[float, ...]  # learning rates that are tried
    tried: int  # epochs of a trial
    epochs: int  # at most, of the run at the best rate
    patience: int  # epochs without a better validation score before it stops
    batch_size: int


PRESETS = {
    "smoke": Preset(size=64, rates=(3e-3, 1e-2), tried=1, epochs=2, patience=1, batch_size=16),
    "laptop": Preset(size=128, rates=(1e-3, 3e-3, 1e-2), tried=2, epochs=10, patience=3, batch_size=16),
    "gpu": Preset(size=224, rates=(3e-4, 1e-3, 3e-3, 1e-2), tried=5, epochs=30, patience=8, batch_size=32),
}


def choose_scheme(model: nn.Module) -> dict:
    """The options of :func:`minica.adapt` for a network: adapters sit where its feature maps are narrow.

    **The rule**: of the parts that :func:`minica.discovery.find_parts` finds, the mean width in channels of all units is
    compared with that of all blocks.  Where units are not wider, as in bottleneck ResNets, whose 3x3 convolutions see a quarter
    of the block's channels, it is ``conv_parallel`` at the paper's compression of 4; where blocks are narrower, as in inverted
    residuals, which expand between their ends, it is ``residual_parallel`` at 2.  A network without blocks has units only.
    """
    parts = find_parts(strip(skeleton(model)))
    widths = {kind: [part.out_channels for part in parts if part.kind == kind] for kind in ("unit", "block")}
    units, blocks = (np.mean(found) if found else np.inf for found in widths.values())
    if units <= blocks:
        return {"scheme": "conv_parallel", "compression": 4}
    return {"scheme": "residual_parallel", "compression": 2}


def class_weights(labels: Tensor, classes: int) -> list[float] | None:
    """One weight a class, against its share of the labels, with a mean of 1 over the labels; None if they are balanced."""
    counts = labels.bincount(minlength=classes)
    if counts.max() < UNBALANCED * counts.min():
        return None
    return (len(labels) / (classes * counts)).tolist()
