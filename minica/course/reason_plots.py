"""The figures of notebook 07: gains against similarities, filters by depth, feature maps with and without adapters."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..experiments.reasons import Task
from .figures import described
from .plots import COLOURS, GREY, OTHERS

AXES = {
    "cka": "mean CKA of filters before and after",
    "cka_fixed": "the same, one rate for all tasks",
    "mmd": "MMD to the reference",
}
MARKERS = "os^DvPX*h"  # a task each
SHORT = {"shapes, task ": "", "solar-cells, task ": "cells: ", "sign-digits": "signs"}


def short_name(task: str) -> str:
    """A task's name for a label: without what is the same everywhere."""
    name = task.split(", train_size")[0].split(", augment")[0]
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name


def gain_against(tasks: Sequence[Task], values: dict[str, Sequence[float]]) -> Figure:
    """Conv-Adapter's gain over full fine-tuning, in points, against a value a task; a panel each of ``values`` (:data:`AXES`).

    A dot is a task's mean over seeds, the bar reaches from its lowest to its highest seed.
    """
    size = (4.2 * len(values), 4)
    figure, axes = plt.subplots(1, len(values), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (what, found) in zip(axes[0], values.items(), strict=True):
        axis.axhline(0, color=GREY, lw=1, ls=":")
        for task, value, marker in zip(tasks, found, MARKERS, strict=False):
            low, high = 100 * min(task.gains), 100 * max(task.gains)
            axis.plot([value, value], [low, high], color=COLOURS["Conv-Adapter"], lw=3, alpha=0.3)
            style = dict(color=COLOURS["Conv-Adapter"], marker=marker, ls="", markersize=8, markeredgecolor="black")
            axis.plot(value, 100 * task.gain, label=short_name(task.name), **style)
        axis.margins(x=0.08)
        axis.set_xlabel(AXES[what])
    axes[0][0].set_ylabel("gain over full fine-tuning, points")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=10, ncols=4, loc="outside upper center")
    said = (
        f"{AXES[what]}: "
        + ", ".join(f"{short_name(t.name)} {v:.3f}, {100 * t.gain:+.1f}" for t, v in zip(tasks, found, strict=True))
        for what, found in values.items()
    )
    return described(figure, f"Gain over full fine-tuning in points, a dot a task, against {'; against '.join(said)}.")


def filters_by_depth(tasks: Sequence[Task], chosen: str) -> Figure:
    """How far full fine-tuning moved each layer's filters on one task, 1 - CKA, the other tasks in grey; axes as for all."""
    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    highest = max(1 - value for task in tasks for value in task.layers.values())
    for task in sorted(tasks, key=lambda task: task.name == chosen):
        here = task.name == chosen
        style = dict(color=COLOURS["Full fine-tuning"], lw=2.5, marker=".") if here else dict(color="#BBBBBB", lw=1)
        axis.plot([1 - value for value in task.layers.values()], label=short_name(task.name) if here else None, **style)
    axis.set(xlabel="layer, from the stem to the head", ylabel="1 - CKA", ylim=(0, 1.05 * highest))
    axis.set_title(f"{short_name(chosen)}: full fine-tuning changes filters here", loc="left", fontsize=11)
    layers = next(task.layers for task in tasks if task.name == chosen)
    least = min(layers, key=layers.get)
    text = f"{short_name(chosen)}: 1 - CKA of {len(layers)} layers before and after full fine-tuning"
    return described(figure, f"{text}, the most, {1 - layers[least]:.3f}, in {least}; other tasks in grey.")


def shares_by_depth(found: dict[str, dict[str, float]]) -> Figure:
    """How large what each adapter adds is beside the map it adds to, block by block, a line a task."""
    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    styles = [(OTHERS[3], "o", "-"), (OTHERS[2], "s", "--"), (OTHERS[0], "^", "-."), (OTHERS[5], "D", ":")]
    for (task, shares), (colour, marker, line) in zip(found.items(), styles, strict=False):
        axis.plot(range(len(shares)), list(shares.values()), color=colour, marker=marker, ls=line, label=task)
    axis.set_xticks(range(len(shares)), [name.removeprefix("blocks.") for name in shares], rotation=60, fontsize=9)
    axis.set(xlabel="block", ylabel="|delta| / |h + delta|", ylim=(0, None))
    axis.legend(frameon=False)
    most = (f"{task} {max(shares.values()):.2f} in {max(shares, key=shares.get)}" for task, shares in found.items())
    return described(
        figure, f"How large what each adapter adds is beside the adapted map, by block; the most: {'; '.join(most)}."
    )


def changed_maps(image: Tensor, adapted: Tensor, plain: Tensor, channels: int = 4) -> Figure:
    """One image (3, H, W; uint8) and the channels of a feature map that adapters change most: before, after, difference.

    Args:
        adapted: the map (C, H, W) with adapters.
        plain: the same of the pre-trained network.
    """
    difference = adapted - plain
    most = difference.flatten(1).norm(dim=1).topk(min(channels, len(difference))).indices
    figure, axes = plt.subplots(3, len(most) + 1, figsize=(1.6 * (len(most) + 1), 4.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    axes[0][0].imshow(image.permute(1, 2, 0).numpy())
    axes[0][0].set_title("image", fontsize=10)
    for column, channel in enumerate(most.tolist(), start=1):
        low, high = np.percentile(np.stack([plain[channel].numpy(), adapted[channel].numpy()]), (1, 99))
        furthest = difference[channel].abs().max().item() or 1.0
        axes[0][column].imshow(plain[channel].numpy(), cmap="gray", vmin=low, vmax=high)
        axes[1][column].imshow(adapted[channel].numpy(), cmap="gray", vmin=low, vmax=high)
        axes[2][column].imshow(difference[channel].numpy(), cmap="PuOr", vmin=-furthest, vmax=furthest)
        axes[0][column].set_title(f"channel {channel}", fontsize=10)
    for row, label in ((0, "frozen"), (1, "adapted"), (2, "difference")):
        axes[row][1].text(
            -0.12, 0.5, label, rotation=90, va="center", ha="right", transform=axes[row][1].transAxes, fontsize=10
        )
    change = difference.norm() / plain.norm()
    text = f"An image and the {len(most)} channels that adapters change most, channel {', '.join(map(str, most.tolist()))}"
    return described(
        figure, f"{text}: frozen, adapted, and their difference. The whole map changes by {change:.0%} of its norm."
    )
