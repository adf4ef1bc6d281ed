"""What figures do the notebooks share?  Each function draws once and returns the figure; a widget is a slider around one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .counting import adapter_macs, adapter_parameters, bottleneck_width

# One colour a method, in every notebook: Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"Linear probe": "#56B4E9", "Conv-Adapter": "#D55E00", "Full fine-tuning": "#009E73"}
GREY = "#666666"
if "matplotlib_inline.backend_inline" in sys.modules or "ipykernel" in sys.modules:
    # Photographs as PNG make a notebook too large to open on a phone.
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})
plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False, "font.size": 11})


def photos(images: Tensor, titles: Sequence[str], columns: int = 6, colours: Sequence[str] | None = None) -> Figure:
    """A grid of uint8 images (N, 1 | 3, H, W), each under its title."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.3 * columns, 1.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image, title) in enumerate(zip(axes.flat, images, titles, strict=False)):
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=9, color=colours[i] if colours else "black")
    return figure


def learning_curves(histories: dict[str, list[dict]]) -> Figure:
    """Training loss and validation accuracy by epoch, a line a method."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, history in histories.items():
        epochs = [record["epoch"] for record in history]
        left.plot(epochs, [record["train_loss"] for record in history], "o-", color=COLOURS.get(name), label=name)
        right.plot(epochs, [100 * record["val_accuracy"] for record in history], "o-", color=COLOURS.get(name))
    left.set(xlabel="epoch", title="training loss", xticks=epochs)
    right.set(xlabel="epoch", title="validation accuracy, %", xticks=epochs)
    left.legend(frameon=False)
    return figure


def accuracy_by_size(found: dict[str, list[dict]]) -> Figure:
    """Test accuracy against trained parameters: a dot a seed, a bar from the lowest to the highest seed, a line at the mean."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for name, records in found.items():
        size, colour = records[0]["trainable"], COLOURS.get(name, GREY)
        values = 100 * np.array([record["test"]["accuracy"] for record in records])
        axis.plot([size, size], [values.min(), values.max()], color=colour, linewidth=10, alpha=0.25, solid_capstyle="butt")
        axis.plot([size] * len(values), values, "o", color=colour, markersize=5)
        axis.plot([size / 1.25, size * 1.25], [values.mean()] * 2, color=colour, linewidth=2)
        axis.annotate(name, (size, values.max()), (0, 6), textcoords="offset points", ha="center", color=colour)
    axis.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy, %")
    axis.margins(x=0.2, y=0.15)
    return figure


def changes(places: Sequence[str], shares: Sequence[float]) -> Figure:
    """How large what each adapter adds is beside the adapted map, by block."""
    figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
    axis.bar(range(len(places)), shares, color=COLOURS["Conv-Adapter"])
    axis.set_xticks(range(len(places)), places, rotation=60, ha="right", fontsize=9)
    axis.set(ylabel="|delta| / |h + delta|")
    return figure


def decisions(scores: Tensor, labels: Tensor, threshold: float, classes: Sequence[str]) -> Figure:
    """Which of two classes is said at a threshold: the scores of both, and the four counts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), width_ratios=(2, 1), layout="constrained")
    bins = np.linspace(0, 1, 31)
    for label, colour in enumerate((GREY, COLOURS["Conv-Adapter"])):
        left.hist(scores[labels == label].numpy(), bins, color=colour, alpha=0.6, label=classes[label])
    left.axvline(threshold, color="black")
    left.set(xlabel=f"score of {classes[1]!r}", ylabel="test images", yscale="log")
    left.legend(frameon=False)
    said = (scores >= threshold).long()
    table = np.array([[int(((labels == row) & (said == column)).sum()) for column in (0, 1)] for row in (0, 1)])
    right.imshow(table / table.sum(1, keepdims=True), cmap="Greys", vmin=0, vmax=1.4)
    for (row, column), number in np.ndenumerate(table):
        right.text(column, row, str(number), ha="center", va="center")
    right.set_xticks((0, 1), [f"said {name}" for name in classes], fontsize=9)
    right.set_yticks((0, 1), [f"is {name}" for name in classes], fontsize=9)
    right.spines[:].set_visible(False)
    return figure


def adapter_drawing(in_channels: int, out_channels: int, kernel_size: int, compression: int, size: int) -> Figure:
    """A Conv-Adapter drawn to scale in channels, with its parameters, multiply-accumulates and field of view."""
    width = bottleneck_width(in_channels, compression)
    shape = dict(kernel_size=kernel_size, compression=compression)
    parameters = adapter_parameters(in_channels, out_channels, **shape)
    macs = adapter_macs(in_channels, out_channels, (size, size), **shape)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(3, 1), layout="constrained")
    tallest = max(in_channels, out_channels)
    columns = [(0, in_channels, "x"), (1, width, "down, act"), (2, out_channels, "up")]
    for x, channels, label in columns:
        left.add_patch(plt.Rectangle((x - 0.06, -channels / 2), 0.12, channels, color=COLOURS["Conv-Adapter"], alpha=0.8))
        left.text(x, channels / 2 + tallest * 0.03, f"{label}\n{channels}", ha="center", va="bottom")
    for group in range(width):  # each bottleneck channel sees its own group of input channels, every output all of them
        low, high = -in_channels / 2 + in_channels / width * group, -in_channels / 2 + in_channels / width * (group + 1)
        y = -width / 2 + group + 0.5
        left.fill([0.06, 0.06, 0.94], [low, high, y], color=GREY, alpha=0.25, linewidth=0)
        left.fill([1.06, 1.94, 1.94], [y, -out_channels / 2, out_channels / 2], color=GREY, alpha=0.6 / width, linewidth=0)
    left.set(xlim=(-0.3, 2.3), ylim=(-tallest * 0.55, tallest * 0.8))
    left.axis("off")
    left.set_title(f"{parameters:,} parameters, {macs / 1e6:.1f} million multiply-accumulates at {size} x {size}", fontsize=11)
    grid = np.zeros((9, 9))
    reach = kernel_size // 2
    grid[4 - reach : 4 + reach + 1, 4 - reach : 4 + reach + 1] = 1
    right.imshow(grid, cmap="Oranges", vmin=0, vmax=1.6)
    right.set_xticks(np.arange(-0.5, 9), [])
    right.set_yticks(np.arange(-0.5, 9), [])
    right.grid(color="white")
    right.tick_params(length=0)
    right.set_title(f"one output sees {kernel_size} x {kernel_size}", fontsize=11)
    return figure
