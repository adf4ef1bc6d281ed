"""The figures that notebooks share: each function draws one and returns it; a notebook's widget is a slider around it."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..counting import adapter_macs, adapter_parameters, bottleneck_width
from ..schemes import SCHEMES
from .memory import Needs

# One colour a method, in every notebook: Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "Linear probe": "#56B4E9",
    "Frozen backbone": "#56B4E9",  # the probe of detection and segmentation: heads alone
    "Prompts": "#CC79A7",
    "Biases": "#E69F00",
    "Conv-Adapter": "#D55E00",
    "Full fine-tuning": "#009E73",
}
GREY = "#666666"
plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False, "font.size": 11})


def photos(images: Sequence[Tensor], titles: Sequence[str], columns: int = 6, colours: Sequence[str] | None = None) -> Figure:
    """A grid of uint8 images (1 | 3, H, W), in a tensor or a list, each under its title."""
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


def scheme_drawing(
    scheme: str, in_channels: int = 64, mid_channels: int = 64, out_channels: int = 256, compression: int = 4, size: int = 56
) -> Figure:
    """A residual bottleneck, what ``scheme`` reads and where it adds; beside it, what the adapter has in each of the schemes.

    By default the first of ResNet50: a 1 x 1 convolution to ``mid_channels``, the unit with its 3 x 3 convolution, a
    1 x 1 convolution to ``out_channels``, on maps of ``size`` x ``size`` pixels (and a shortcut that changes the channels).
    """
    channels = {
        "conv": (mid_channels, mid_channels),
        "parallel": (in_channels, out_channels),
        "sequential": (out_channels,) * 2,
    }
    ends = {name: channels["conv" if part.part == "unit" else name.rpartition("_")[2]] for name, part in SCHEMES.items()}
    part, (reads, writes) = SCHEMES[scheme], ends[scheme]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.3), width_ratios=(3, 1))
    figure.subplots_adjust(left=0.01, right=0.99, wspace=0.32)  # for a dropdown; a constrained layout takes 30 ms

    # The block, from left to right along y = 0.
    left.annotate("", (10.2, 0), (-0.6, 0), arrowprops=dict(arrowstyle="-|>", color=GREY, lw=1.5))
    left.plot([0.85, 0.85, 7.9, 7.9], [0, 1.15, 1.15, 0.2], color=GREY, lw=1.5)
    for x, label, face in ((1.7, "1 x 1", "#EEEEEE"), (3.8, "3 x 3", "#C8C8C8"), (6.7, "1 x 1", "#EEEEEE")):
        _box(left, x, 0, 1.2, label, face, GREY)
    for x, label in ((-0.1, in_channels), (2.6, mid_channels), (5.75, mid_channels), (9.7, out_channels)):
        left.text(x, 0.14, f"{label}", ha="center", color=GREY, fontsize=9)
    _sum(left, 7.9, 0, GREY)

    # The adapted part, a frame, and the adapter's way around it.
    begin, end, top = {"unit": (2.9, 4.7, 0.6), "block": (0.45, 8.35, 1.4)}[part.part]
    left.add_patch(plt.Rectangle((begin, -0.6), end - begin, 0.6 + top, fill=False, ls=":", color=GREY))
    left.text(begin, top + 0.05, part.part, color=GREY, fontsize=9)
    read, add, colour = begin if part.reads == "input" else end, end + 0.45, COLOURS["Conv-Adapter"]
    left.plot([read, read, add], [0, -1.6, -1.6], color=colour, lw=2.5)
    left.plot(read, 0, "o", color=colour, markersize=7)
    left.annotate("", (add, -0.2), (add, -1.62), arrowprops=dict(arrowstyle="-|>", color=colour, lw=2.5))
    _sum(left, add, 0, colour)
    counts = [adapter_parameters(*ends[name], compression=compression) for name in SCHEMES]
    macs = adapter_macs(reads, writes, (size, size), compression=compression) / 1e6
    label = f"adapter, {reads} to {writes}\n{counts[list(SCHEMES).index(scheme)]:,} parameters\n{macs:.1f} million MACs"
    _box(left, (read + add) / 2, -1.6, 2.7, label, "white", colour, height=1.1)
    left.set(xlim=(-0.7, 10.4), ylim=(-2.3, 1.8))
    left.axis("off")
    left.set_title(f"{scheme}: reads the {part.part}'s {part.reads}, adds to its output", fontsize=11)

    right.barh(range(len(counts)), counts, color=[colour if name == scheme else "#DDDDDD" for name in SCHEMES])
    right.invert_yaxis()
    right.set_yticks(
        range(len(counts)), [f"{name}\n{count:,}" for name, count in zip(SCHEMES, counts, strict=True)], fontsize=9
    )
    right.set_xticks([])
    right.spines["bottom"].set_visible(False)
    right.set_title("its parameters", fontsize=11)
    return figure


def _box(axis: Axes, x: float, y: float, width: float, label: str, face: str, edge: str, height: float = 0.8) -> None:
    corner = (x - width / 2, y - height / 2)
    axis.add_patch(plt.Rectangle(corner, width, height, facecolor=face, edgecolor=edge, lw=1.5, zorder=6))
    axis.text(x, y, label, ha="center", va="center", fontsize=9, zorder=7)


def _sum(axis: Axes, x: float, y: float, colour: str) -> None:
    axis.plot(x, y, "o", color="white", markeredgecolor=colour, markersize=13, markeredgewidth=1.5, zorder=4)
    axis.plot(x, y, "+", color=colour, markersize=9, markeredgewidth=1.5, zorder=5)


def storage(sizes: dict[str, tuple[int, int]], tasks: int) -> Figure:
    """Megabytes on disk against the number of tasks, by method: ``sizes`` are bytes once and bytes for every task."""
    figure, axis = plt.subplots(figsize=(9, 3.2))
    figure.subplots_adjust(left=0.1, right=0.6, bottom=0.16)  # for a slider; a constrained layout takes 40 ms
    numbers = np.arange(1, 101)
    for name, (once, each) in sizes.items():
        axis.plot(numbers, (once + each * numbers) / 1e6, color=COLOURS.get(name, GREY), lw=2)
        total = (once + each * tasks) / 1e6
        axis.plot(tasks, total, "o", color=COLOURS.get(name, GREY), label=f"{name}: {total:,.1f} MB")
    axis.axvline(tasks, color=GREY, lw=1, ls=":")
    axis.set(xlabel="tasks", ylabel="MB", yscale="log", xlim=(1, 100), title=f"{tasks} {'task' if tasks == 1 else 'tasks'}")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def memory(parts: dict[str, dict[str, int]]) -> Figure:
    """What one training step holds, in MB: a bar a method, stacked from its named parts in bytes."""
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.5 * len(parts)), layout="constrained")
    names, left = list(parts), np.zeros(len(parts))
    for part, colour in zip(next(iter(parts.values())), ("#444444", "#CC79A7", "#E69F00", "#BBBBBB"), strict=True):
        width = np.array([parts[name][part] / 1e6 for name in names])
        axis.barh(names, width, left=left, color=colour, label=part)
        left += width
    for row, total in enumerate(left):
        axis.text(total, row, f" {total:.0f} MB", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="MB")
    axis.margins(x=0.12)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


PARTS = {  # kinds of layers, with a hatch beside the colour
    "norms": ("#0072B2", ""),
    "activations": ("#E69F00", "//"),
    "convolutions, linear": ("#CC79A7", ".."),
    "products, attention": ("#BBBBBB", "xx"),
    "adapters": (COLOURS["Conv-Adapter"], ""),
}


def needs(found: Needs, form: str) -> Figure:
    """What backward needs in MB in one form: a bar a block, stacked by kind of layer; the axes are the same for every form."""
    figure, axis = plt.subplots(figsize=(8.6, 2.6))
    figure.subplots_adjust(left=0.07, right=0.71, bottom=0.18, top=0.88)  # for a dropdown; a constrained layout takes 40 ms
    places, bottom = np.arange(len(found.blocks)), np.zeros(len(found.blocks))
    for kind, sizes in found.forms[form].items():
        colour, hatch = PARTS[kind]
        height = np.array(sizes) / 1e6
        label = f"{kind}: {height.sum():.1f} MB"
        axis.bar(places, height, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
        bottom += height
    highest = max(sum(column) for rows in found.forms.values() for column in zip(*rows.values(), strict=True))
    axis.set_xticks(places, [*(str(place + 1) for place in places[:-1]), "\nother"], fontsize=9)
    total = found.total(form)
    axis.set(xlabel="block", ylabel="MB", ylim=(0, 1.05 * highest / 1e6))
    axis.set_title(f"{form}: {total / 1e6:.1f} MB, {total / found.full:.2f} of full fine-tuning's", fontsize=11)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def seeds(found: dict[str, list[dict]]) -> Figure:
    """Test accuracy by method: a dot a seed, a bar from the lowest to the highest, a line at the mean."""
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.42 * len(found)), layout="constrained")
    for row, (name, records) in enumerate(found.items()):
        colour = COLOURS.get(name, COLOURS["Conv-Adapter"])
        values = 100 * np.array([record["test"]["accuracy"] for record in records])
        axis.plot([values.min(), values.max()], [row, row], color=colour, linewidth=10, alpha=0.25, solid_capstyle="butt")
        axis.plot(values, [row] * len(values), "o", color=colour, markersize=5)
        axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy, %")
    return figure


def costs(methods: dict[str, dict], paper: dict[str, tuple[float, float]] | None = None) -> Figure:
    """Memory and time of a training step, a bar a method: the ``methods`` of one record of ``python -m benchmarks``.

    The whisker spans the rounds; the number is the share of the first method, full fine-tuning, in the same round.  A diamond
    stands where ``paper`` has a method's (memory, time), as such shares.
    """
    shown = {name: entry for name, entry in methods.items() if "refused" not in entry}
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 0.9 + 0.36 * len(shown)), sharey=True)
    figure.subplots_adjust(left=0.29, right=0.97, bottom=0.2, wspace=0.12)  # for sliders; a constrained layout takes 40 ms
    kept = np.array([[entry["activations"] / 1e6] for entry in shown.values()])
    steps = np.array([entry["step"] for entry in shown.values()])
    for number, (axis, values, unit) in enumerate(zip(axes, (kept, steps), ("MB kept for backward", "ms a step"), strict=True)):
        middle, ends = np.median(values, 1), values.max(1)
        colours = [COLOURS.get(name.partition(",")[0], GREY) for name in shown]
        axis.barh(range(len(shown)), middle, xerr=(middle - values.min(1), ends - middle), color=colours, ecolor="black")
        for name, shares in (paper or {}).items():
            row = list(shown).index(name)
            axis.plot(shares[number] * middle[0], row, "D", color="white", markeredgecolor="black")
            ends[row] = max(ends[row], 1.03 * shares[number] * middle[0])
        for row, share in enumerate(np.median(values / values[0], 1)):
            axis.text(ends[row], row, f"  {share:.2f}", va="center", fontsize=9)
        axis.set(xlabel=unit, xlim=(0, 1.2 * max(ends)))
    axes[0].set_yticks(range(len(shown)), list(shown))
    axes[0].invert_yaxis()
    return figure


Curves = dict[str, dict[int, Sequence[float]]]  # a method's numbers, one a seed, by labelled images of each class


def by_shots(curves: Curves, shots: int, guessing: float, metric: str) -> Figure:
    """A metric in %: curves by shots, and beside them every seed at one number of ``shots``; dotted is what guessing gives."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), sharey=True)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.15, wspace=0.06)  # for a slider; a constrained layout takes 40 ms
    _bands(left, curves, level=guessing)
    left.axvline(list(next(iter(curves.values()))).index(shots), color=GREY, lw=1, ls=":")
    left.set(ylabel=f"{metric}, %")
    left.legend(frameon=False, fontsize=9)
    for column, (name, points) in enumerate(curves.items()):
        values, colour = np.array(points[shots]), COLOURS.get(name, GREY)
        right.plot([column] * len(values), values, "o", color=colour, alpha=0.6)
        right.plot([column - 0.3, column + 0.3], [values.mean()] * 2, color=colour, lw=2)
    right.axhline(guessing, color=GREY, lw=1, ls=":")
    right.set_xticks(range(len(curves)), [_two_lines(name) for name in curves], fontsize=9)
    right.set(title=f"{shots} {'image' if shots == 1 else 'images'} of each class", xlim=(-0.6, len(curves) - 0.4))
    return figure


def gains(panels: dict[str, Curves]) -> Figure:
    """Points above full fine-tuning (the line at zero) by shots: a panel a backbone, all on one scale."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 2.9), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        _bands(axis, curves, level=0)
        axis.set_title(title, fontsize=11)
    axes[0, 0].set(ylabel="points above full fine-tuning")
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def _bands(axis: Axes, curves: Curves, level: float) -> None:
    """A line a method at the mean, and a light band from the lowest to the highest seed; ``level`` is what to compare with."""
    for name, points in curves.items():
        low, mean, high = zip(*((min(values), np.mean(values), max(values)) for values in points.values()), strict=True)
        axis.plot(mean, "o-", color=COLOURS.get(name, GREY), label=name, lw=2)
        axis.fill_between(range(len(points)), low, high, color=COLOURS.get(name, GREY), alpha=0.15, lw=0)
    axis.axhline(level, color=GREY, lw=1, ls=":")
    axis.set_xticks(range(len(points)), list(points))
    axis.set(xlabel="labelled images of each class")


def _two_lines(name: str) -> str:
    return name.replace(" ", "\n").replace("-A", "-\nA")


def slopes(groups: dict[str, dict[str, Sequence[float]]], paper: dict[str, dict[str, float]]) -> Figure:
    """Accuracy in % from method to method, a panel a group: every seed as a dot, the means joined, and the paper's dashed."""
    figure, axes = plt.subplots(1, len(groups), figsize=(10, 3.4), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, methods) in zip(axes[0], groups.items(), strict=True):
        for column, (name, values) in enumerate(methods.items()):
            axis.plot([column] * len(values), values, "o", color=COLOURS.get(name, GREY), alpha=0.5)
        if methods:
            axis.plot(range(len(methods)), [np.mean(values) for values in methods.values()], color="black", lw=2, label="ours")
        names = list(paper[title])
        axis.plot(range(len(names)), list(paper[title].values()), "D--", color=GREY, markerfacecolor="white", label="the paper")
        axis.set_xticks(range(len(names)), [_two_lines(name) for name in names], fontsize=9)
        axis.set(title=title if methods else f"{title}: not packaged", xlim=(-0.4, len(names) - 0.6))
    axes[0, 0].set(ylabel="test accuracy, %")
    axes[0, -1].legend(frameon=False, fontsize=9)
    return figure


def accuracy_by_share(ours: dict[str, tuple[float, float]], paper: dict[str, tuple[float, float]]) -> Figure:
    """Accuracy in % against trained parameters in % of full fine-tuning's, as in the paper's Figure 1: ours and the paper's."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, (title, points) in zip(axes, {"the paper": paper, "ours": ours}.items(), strict=True):
        for row, (name, (share, accuracy)) in enumerate(points.items()):
            axis.plot(share, accuracy, "o", color=COLOURS.get(name, COLOURS["Conv-Adapter"]), markersize=8)
            inside = share > 20
            axis.annotate(
                name,
                (share, accuracy),
                (-8 if inside else 8, -6 if row % 2 else 6),  # neighbours are close
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=9,
            )
        axis.set(xscale="log", xlabel="trained parameters, % of full fine-tuning's", title=title)
        axis.margins(x=0.15, y=0.12)
    axes[0].set_ylabel("mean test accuracy, %")
    return figure
