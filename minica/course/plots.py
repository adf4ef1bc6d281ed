"""The figures that notebooks share: each function draws one and returns it; a notebook's widget is a slider around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from torch import Tensor

from ..counting import adapter_macs, adapter_parameters, bottleneck_width
from ..schemes import SCHEMES
from .figures import described
from .memory import Needs

# One colour a method, in every notebook: Okabe and Ito's palette, which colour-blind readers can tell apart.  They are for
# marks and areas; text is black or GREY, because most of them are too light to read on white.
COLOURS = {
    "Linear probe": "#56B4E9",
    "Frozen backbone": "#56B4E9",  # the probe of detection and segmentation: heads alone
    "Prompts": "#CC79A7",
    "Biases": "#E69F00",
    "Bias tuning": "#E69F00",  # as benchmarks call it
    "Conv-Adapter": "#D55E00",
    "Full fine-tuning": "#009E73",
}
GREY = "#666666"
# What is no method (kinds of layers, parts of memory, classes of objects) has another palette, Paul Tol's "muted".
OTHERS = ("#332288", "#DDCC77", "#44AA99", "#882255", "#88CCEE", "#999933", "#CC6677", "#117733")
HATCHES = ("", "//", "..", "xx", "", "//", "..", "xx")
# The schemes are one method: dark is of blocks, and what comes after its part is dashed.
SCHEME_STYLES = {
    "conv_parallel": dict(color=COLOURS["Conv-Adapter"], marker="o"),
    "conv_sequential": dict(color=COLOURS["Conv-Adapter"], marker="s", linestyle="--"),
    "residual_parallel": dict(color="#6B2D00", marker="o"),
    "residual_sequential": dict(color="#6B2D00", marker="s", linestyle="--"),
}
MARKS = {True: "✓", False: "✗"}
plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False, "font.size": 11})


def photos(images: Sequence[Tensor], titles: Sequence[str], columns: int = 6, right: Sequence[bool] | None = None) -> Figure:
    """A grid of uint8 images (1 | 3, H, W), in a tensor or a list, each under its title.

    Args:
        right: for each image whether what the title says of it is right, shown as a mark before the title.
    """
    rows = -(-len(images) // columns)
    lines = max((title.count("\n") for title in titles), default=0)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.3 * columns, (1.6 + 0.16 * lines) * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    if right is not None:
        titles = [f"{MARKS[bool(mark)]} {title}" for title, mark in zip(titles, right, strict=True)]
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=9)
    names = Counter(" ".join(title.split()) for title in titles[: len(images)])
    said = "; ".join(name if number == 1 else f"{number} times {name}" for name, number in names.items())
    return described(figure, f"{len(images)} pictures in {rows} {'row' if rows == 1 else 'rows'}, titled: {said}.")


def learning_curves(histories: dict[str, list[dict]]) -> Figure:
    """Training loss and validation accuracy by epoch, a line a method."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    said = []
    for (name, history), marker in zip(histories.items(), "os^D", strict=False):
        epochs = [record["epoch"] for record in history]
        losses, accuracies = ([record[key] for record in history] for key in ("train_loss", "val_accuracy"))
        style = dict(marker=marker, color=COLOURS.get(name, GREY), label=name)
        left.plot(epochs, losses, **style)
        right.plot(epochs, [100 * value for value in accuracies], **style)
        said.append(
            f"{name}: training loss from {losses[0]:.2f} to {losses[-1]:.2f}, "
            f"validation accuracy from {accuracies[0]:.0%} to {accuracies[-1]:.0%}"
        )
    for axis, title in ((left, "training loss"), (right, "validation accuracy, %")):
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    left.legend(frameon=False)
    return described(figure, f"Two line charts over {len(epochs)} epochs. {'; '.join(said)}.")


def accuracy_by_size(found: dict[str, list[dict]]) -> Figure:
    """Test accuracy against trained parameters: a dot a seed, a bar from the lowest to the highest seed, a line at the mean."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    names, said = [], []
    for name, records in found.items():
        size, colour = records[0]["trainable"], COLOURS.get(name, GREY)
        values = 100 * np.array([record["test"]["accuracy"] for record in records])
        axis.plot([size, size], [values.min(), values.max()], color=colour, linewidth=10, alpha=0.25, solid_capstyle="butt")
        axis.plot([size] * len(values), values, "o", color=colour, markersize=5)
        axis.plot([size / 1.25, size * 1.25], [values.mean()] * 2, color=colour, linewidth=2)
        names.append((size, values.max(), name))
        said.append(f"{name}, {size:,} parameters: mean {values.mean():.1f} %, {values.min():.1f} to {values.max():.1f} %")
    axis.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy, %")
    axis.margins(x=0.2, y=0.15)
    name_points(axis, names)
    return described(figure, f"Test accuracy against trained parameters, a dot a seed. {'; '.join(said)}.")


PLACES = (  # of a name beside its point: offset in points, and how the text stands to it
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 7, "center", "bottom"),
    (0, -7, "center", "top"),
    (7, 6, "left", "bottom"),
    (7, -6, "left", "top"),
    (-7, 6, "right", "bottom"),
    (-7, -6, "right", "top"),
    (14, 14, "left", "bottom"),
    (14, -14, "left", "top"),
    (-14, 14, "right", "bottom"),
    (-14, -14, "right", "top"),
)


def name_points(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name at the first of :data:`PLACES` where it lies in the axes, on no mark and on no other name.

    Args:
        points: x, y and name; the axes have their limits already.
    """
    axis.figure.draw_without_rendering()
    taken = [Bbox.from_bounds(*(axis.transData.transform((x, y)) - 5), 10, 10) for x, y, _ in points]
    for x, y, name in points:
        for dx, dy, ha, va in PLACES:
            text = axis.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=9)
            text.set_in_layout(False)
            box = text.get_window_extent()
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 and axis.bbox.y0 <= box.y0 and box.y1 <= axis.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            axis.add_artist(text)
        taken.append(box)


def tuned_by_the_paper(rows: Sequence[Mapping], groups: Sequence[str] = ("Natural", "Structured")) -> Figure:
    """Mean accuracy against trained parameters, a panel a group of tasks: rows of the paper's Table 1."""
    figure, axes = plt.subplots(1, len(groups), figsize=(9, 3.4), sharey=False, layout="constrained")
    names = {"FT": "Full fine-tuning", "LP": "Linear probe", "VPT": "Prompts", "Bias": "Biases"}
    said = []
    for axis, group in zip(axes, groups, strict=True):
        shown = [row for row in rows if row["group"] == group]
        for row in shown:
            ours = row["tuning"].endswith(("Par.", "Seq."))
            colour = COLOURS["Conv-Adapter"] if ours else COLOURS.get(names.get(row["tuning"]), GREY)
            axis.plot(row["params"], row["mean"], "D" if ours else "o", color=colour)
        axis.set(xscale="log", xlim=(0.15, 100), title=f"{group} tasks", xlabel="million trained parameters")
        axis.margins(y=0.18)
        said.append(f"{group}: " + ", ".join(f"{row['tuning']} {row['params']:g} M {row['mean']:.1f} %" for row in shown))
    axes[0].set_ylabel("accuracy, %")
    for axis, group in zip(axes, groups, strict=True):
        name_points(axis, [(row["params"], row["mean"], row["tuning"]) for row in rows if row["group"] == group])
    return described(figure, f"The paper's accuracy against trained parameters, diamonds are adapters. {'. '.join(said)}.")


def changes(places: Sequence[str], shares: Sequence[float]) -> Figure:
    """How large what each adapter adds is beside the adapted map, by block."""
    figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
    axis.bar(range(len(places)), shares, color=COLOURS["Conv-Adapter"])
    axis.set_xticks(range(len(places)), places, rotation=60, ha="right", fontsize=9)
    axis.set(ylabel="|delta| / |h + delta|")
    least, most = np.argmin(shares), np.argmax(shares)
    said = f"the least {shares[least]:.2f} in {places[least]}, the most {shares[most]:.2f} in {places[most]}"
    return described(
        figure, f"Bars for {len(places)} blocks: how large what the adapter adds is beside the adapted map; {said}."
    )


def decisions(scores: Tensor, labels: Tensor, threshold: float, classes: Sequence[str]) -> Figure:
    """Which of two classes is said at a threshold: the scores of both, and the four counts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8), width_ratios=(2, 1), layout="constrained")
    bins = np.linspace(0, 1, 31)
    for label, colour in enumerate((OTHERS[4], OTHERS[3])):
        style = dict(color=colour, alpha=0.6, label=classes[label], hatch=HATCHES[label], edgecolor="white", linewidth=0)
        left.hist(scores[labels == label].numpy(), bins, **style)
    left.axvline(threshold, color="black")
    left.set(xlabel=f"score of {classes[1]!r}", ylabel="test images", yscale="log")
    left.legend(frameon=False, loc="upper center")
    said = (scores >= threshold).long()
    table = np.array([[int(((labels == row) & (said == column)).sum()) for column in (0, 1)] for row in (0, 1)])
    right.imshow(table / table.sum(1, keepdims=True).clip(1), cmap="Greys", vmin=0, vmax=1.8)
    for (row, column), number in np.ndenumerate(table):
        right.text(column, row, f"{number}\n{MARKS[row == column]}", ha="center", va="center")
    right.set_xticks((0, 1), [f"said\n{name}" for name in classes], fontsize=9)
    right.set_yticks((0, 1), [f"is\n{name}" for name in classes], fontsize=9)
    right.spines[:].set_visible(False)
    counts = "; ".join(f"{table[i, j]} are {classes[i]} and said {classes[j]}" for i in (0, 1) for j in (0, 1))
    return described(figure, f"Scores of both classes as histograms, the threshold at {threshold:.2f}; test images: {counts}.")


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
    right.spines[:].set_visible(False)
    right.set_title(f"one output sees {kernel_size} x {kernel_size}", fontsize=11)
    shape = f"from {in_channels} channels through {width} to {out_channels}, kernel {kernel_size} x {kernel_size}"
    return described(figure, f"An adapter {shape}: {parameters:,} parameters, {macs / 1e6:.1f} million multiply-accumulates.")


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
    right.set_xlim(0, max(adapter_parameters(*ends[name], compression=1) for name in SCHEMES))  # the same at every compression
    right.invert_yaxis()
    right.set_yticks(
        range(len(counts)), [f"{name}\n{count:,}" for name, count in zip(SCHEMES, counts, strict=True)], fontsize=9
    )
    right.set_xticks([])
    right.spines["bottom"].set_visible(False)
    right.set_title("its parameters", fontsize=11)
    said = f"reads the {part.part}'s {part.reads} and adds to its output, {reads} to {writes} channels"
    others = ", ".join(f"{name} {count:,}" for name, count in zip(SCHEMES, counts, strict=True))
    return described(figure, f"A residual block; {scheme} {said}, at compression {compression}. Parameters: {others}.")


def _box(axis: Axes, x: float, y: float, width: float, label: str, face: str, edge: str, height: float = 0.8) -> None:
    corner = (x - width / 2, y - height / 2)
    axis.add_patch(plt.Rectangle(corner, width, height, facecolor=face, edgecolor=edge, lw=1.5, zorder=6))
    axis.text(x, y, label, ha="center", va="center", fontsize=9, zorder=7)


def _sum(axis: Axes, x: float, y: float, colour: str) -> None:
    axis.plot(x, y, "o", color="white", markeredgecolor=colour, markersize=13, markeredgewidth=1.5, zorder=4)
    axis.plot(x, y, "+", color=colour, markersize=9, markeredgewidth=1.5, zorder=5)


def storage(networks: dict[str, dict[str, tuple[int, int]]], network: str, tasks: int) -> Figure:
    """Megabytes on disk against the number of tasks, by method; the axes are the same for every network.

    Args:
        networks: for each network by method the bytes once and the bytes for every task.
        network: the one that is drawn.
    """
    figure, axis = plt.subplots(figsize=(8.6, 3.2))
    figure.subplots_adjust(left=0.1, right=0.58, bottom=0.16, top=0.88)  # for a slider; a constrained layout takes 40 ms
    numbers, said = np.arange(1, 101), []
    for (name, (once, each)), line in zip(networks[network].items(), ("-", "--", ":"), strict=False):
        axis.plot(numbers, (once + each * numbers) / 1e6, color=COLOURS.get(name, GREY), lw=2, ls=line)
        total = f"{name}: {(once + each * tasks) / 1e6:,.1f} MB"
        axis.plot(tasks, (once + each * tasks) / 1e6, "o", color=COLOURS.get(name, GREY), ls=line, label=total)
        said.append(total)
    axis.axvline(tasks, color=GREY, lw=1, ls=":")
    sizes = [pair for methods in networks.values() for pair in methods.values()]
    limits = min(once + each for once, each in sizes) / 1.5e6, max(once + 100 * each for once, each in sizes) / 0.7e6
    title = f"{network}, {tasks} {'task' if tasks == 1 else 'tasks'}"
    axis.set(xlabel="tasks", ylabel="MB", yscale="log", xlim=(1, 100), ylim=limits, title=title)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return described(figure, f"Megabytes on disk by number of tasks. {title}: {'; '.join(said)}.")


def memory(parts: dict[str, dict[str, int]]) -> Figure:
    """What one training step holds, in MB: a bar a method, stacked from its named parts in bytes."""
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.5 * len(parts)), layout="constrained")
    names, left = list(parts), np.zeros(len(parts))
    for part, colour, hatch in zip(next(iter(parts.values())), OTHERS, HATCHES, strict=False):
        width = np.array([parts[name][part] / 1e6 for name in names])
        axis.barh(names, width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=part)
        left += width
    for row, total in enumerate(left):
        axis.text(total, row, f" {total:.0f} MB", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="MB")
    axis.margins(x=0.14)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    said = (
        f"{name} {total:.0f} MB, of which {', '.join(f'{part} {size / 1e6:.1f}' for part, size in parts[name].items())}"
        for name, total in zip(names, left, strict=True)
    )
    return described(figure, f"What one training step holds. {'; '.join(said)}.")


PARTS = {  # kinds of layers, with a hatch beside the colour
    "norms": (OTHERS[0], ""),
    "activations": (OTHERS[1], "//"),
    "convolutions, linear": (OTHERS[2], ".."),
    "products, attention": (OTHERS[3], "xx"),
    "adapters": (COLOURS["Conv-Adapter"], ""),
}


def needs(found: Needs, form: str) -> Figure:
    """What backward needs in MB in one form: a bar a block, stacked by kind of layer; the axes are the same for every form."""
    figure, axis = plt.subplots(figsize=(8.6, 2.9))
    figure.subplots_adjust(left=0.07, right=0.71, bottom=0.22, top=0.89)  # for a dropdown; a constrained layout takes 40 ms
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
    said = ", ".join(f"{kind} {sum(sizes) / 1e6:.1f}" for kind, sizes in found.forms[form].items())
    share = f"{total / 1e6:.1f} MB, {total / found.full:.2f} of full fine-tuning's"
    return described(figure, f"What backward needs, block by block, in the form {form}: {share}; in MB {said}.")


def seeds(found: dict[str, list[dict]], limits: tuple[float, float] | None = None, title: str = "") -> Figure:
    """Test accuracy by method: a dot a seed, a bar from the lowest to the highest, a line at the mean.

    Args:
        limits: of the axis, in %, so that it stays when a slider changes ``found``.
    """
    figure, axis = plt.subplots(figsize=(8, (1.1 if title else 0.8) + 0.42 * len(found)), layout="constrained")
    said = []
    for row, (name, records) in enumerate(found.items()):
        colour = COLOURS.get(name, COLOURS["Conv-Adapter"])
        values = 100 * np.array([record["test"]["accuracy"] for record in records])
        axis.plot([values.min(), values.max()], [row, row], color=colour, linewidth=10, alpha=0.25, solid_capstyle="butt")
        axis.plot(values, [row] * len(values), "o", color=colour, markersize=5)
        axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
        said.append(f"{name} mean {values.mean():.1f} %, {values.min():.1f} to {values.max():.1f} % over {len(values)} seeds")
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy, %", title=title)
    if limits is not None:
        axis.set_xlim(*limits)
    return described(figure, f"{title or 'Test accuracy by method'}, a dot a seed. {'; '.join(said)}.")


def costs(
    methods: dict[str, dict],
    paper: dict[str, tuple[float, float]] | None = None,
    grid: Sequence[dict[str, dict]] = (),
    title: str = "",
) -> Figure:
    """Memory and time of a training step, a bar a method: the ``methods`` of one record of ``python -m benchmarks``.

    The whisker spans the rounds; the number is the share of the first method, full fine-tuning, in the same round.  A diamond
    stands where ``paper`` has a method's (memory, time), as such shares.

    Args:
        grid: the methods of all records that a slider goes through; the axes are then logarithmic and the same for each.
    """
    shown = {name: entry for name, entry in methods.items() if "refused" not in entry}
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 0.9 + 0.36 * len(shown)), sharey=True)
    # For sliders; a constrained layout takes 40 ms.
    figure.subplots_adjust(left=0.27, right=0.97, bottom=0.2, top=0.86 if title else 0.95, wspace=0.12)
    figure.suptitle(title, fontsize=11)
    everything = [entry for cell in grid for entry in cell.values() if "refused" not in entry]
    ranges = [
        [entry["activations"] / 1e6 for entry in everything],
        [time for entry in everything for time in entry["step"]],
    ]
    said = []
    kept = np.array([[entry["activations"] / 1e6] for entry in shown.values()])
    steps = np.array([entry["step"] for entry in shown.values()])
    for number, (axis, values, unit) in enumerate(zip(axes, (kept, steps), ("MB kept for backward", "ms a step"), strict=True)):
        middle, ends = np.median(values, 1), values.max(1)
        colours = [COLOURS.get(name.partition(",")[0], GREY) for name in shown]
        whiskers = (middle - values.min(1), ends - middle) if values.shape[1] > 1 else None
        axis.barh(range(len(shown)), middle, xerr=whiskers, color=colours, ecolor="black")
        for name, shares in (paper or {}).items():
            row = list(shown).index(name)
            axis.plot(shares[number] * middle[0], row, "D", color="white", markeredgecolor="black")
            ends[row] = max(ends[row], 1.03 * shares[number] * middle[0])
        shares = np.median(values / values[0], 1)
        for row, share in enumerate(shares):
            axis.text(ends[row], row, f"  {share:.2f}", va="center", fontsize=9)
        if grid:
            axis.set(xscale="log", xlim=(min(ranges[number]) / 2, 4 * max(ranges[number])))
        else:
            axis.set_xlim(0, 1.2 * max(ends))
        axis.set_xlabel(unit)
        parts = (f"{name} {value:.0f} ({share:.2f})" for name, value, share in zip(shown, middle, shares, strict=True))
        said.append(f"{unit}: {', '.join(parts)}")
    axes[0].set_yticks(range(len(shown)), list(shown), fontsize=9)
    axes[0].invert_yaxis()
    return described(figure, f"{title} In brackets the share of full fine-tuning. {'. '.join(said)}.")


Curves = dict[str, dict[int, Sequence[float]]]  # a method's numbers, one a seed, by labelled images of each class


def by_shots(curves: Curves, shots: int, guessing: float, metric: str) -> Figure:
    """A metric in %: curves by shots, and beside them every seed at one number of ``shots``; dotted is what guessing gives."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(3, 2), sharey=True)
    figure.subplots_adjust(
        left=0.08, right=0.99, bottom=0.17, top=0.9, wspace=0.06
    )  # for a slider; a constrained layout takes 40 ms
    _bands(left, curves, level=guessing)
    left.axvline(list(next(iter(curves.values()))).index(shots), color=GREY, lw=1, ls=":")
    left.set(ylabel=f"{metric}, %")
    left.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.1))
    for column, (name, points) in enumerate(curves.items()):
        values, colour = np.array(points[shots]), COLOURS.get(name, GREY)
        right.plot([column] * len(values), values, "o", color=colour, alpha=0.6)
        right.plot([column - 0.3, column + 0.3], [values.mean()] * 2, color=colour, lw=2)
    right.axhline(guessing, color=GREY, lw=1, ls=":")
    right.set_xticks(range(len(curves)), [_two_lines(name) for name in curves], fontsize=9)
    here = f"{shots} {'image' if shots == 1 else 'images'} of each class"
    right.set(title=here, xlim=(-0.6, len(curves) - 0.4))
    said = "; ".join(
        f"{name} mean {np.mean(points[shots]):.1f} %, {min(points[shots]):.1f} to {max(points[shots]):.1f} %"
        for name, points in curves.items()
    )
    return described(figure, f"The {metric} by labelled images of each class. With {here}: {said}. Guessing: {guessing:.0f} %.")


def gains(panels: dict[str, Curves]) -> Figure:
    """Points above full fine-tuning (the line at zero) by shots: a panel a backbone, all on one scale."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 2.9), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        _bands(axis, curves, level=0)
        axis.set_title(title, fontsize=11)
    axes[0, 0].set(ylabel="points above full fine-tuning")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, ncols=len(names), loc="outside upper center")
    said = (
        f"{title}: "
        + ", ".join(
            f"{name} {'; '.join(f'{np.mean(values):+.1f} at {shots}' for shots, values in points.items())}"
            for name, points in curves.items()
        )
        for title, curves in panels.items()
    )
    return described(figure, f"Mean points above full fine-tuning, by labelled images of each class. {'. '.join(said)}.")


def _bands(axis: Axes, curves: Curves, level: float) -> None:
    """A line a method at the mean, and a light band from the lowest to the highest seed; ``level`` is what to compare with."""
    for (name, points), marker in zip(curves.items(), "os^D", strict=False):
        low, mean, high = zip(*((min(values), np.mean(values), max(values)) for values in points.values()), strict=True)
        axis.plot(mean, f"{marker}-", color=COLOURS.get(name, GREY), label=name, lw=2)
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
    handles, names = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, ncols=2, loc="outside upper center")
    said = []
    for title, methods in groups.items():
        theirs = ", ".join(f"{name} {value:.1f}" for name, value in paper[title].items())
        ours = ", ".join(f"{name} {np.mean(values):.1f}" for name, values in methods.items()) or "not packaged"
        said.append(f"{title}, ours: {ours}; the paper: {theirs}")
    return described(figure, f"Test accuracy in % from method to method. {'. '.join(said)}.")


def accuracy_by_share(ours: dict[str, tuple[float, float]], paper: dict[str, tuple[float, float]]) -> Figure:
    """Accuracy in % against trained parameters in % of full fine-tuning's, as in the paper's Figure 1: ours and the paper's."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    said, both = [], {"the paper": paper, "ours": ours}
    for axis, (title, points) in zip(axes, both.items(), strict=True):
        for name, (share, accuracy) in points.items():
            adapters = name not in COLOURS or name == "Conv-Adapter"
            colour = COLOURS.get(name, COLOURS["Conv-Adapter"])
            axis.plot(share, accuracy, "D" if adapters else "o", color=colour, markersize=8)
        axis.set(xscale="log", xlabel="trained parameters, % of full fine-tuning's", title=title)
        axis.margins(x=0.2, y=0.2)
        named = ", ".join(f"{name} {share:.3g} % {accuracy:.1f}" for name, (share, accuracy) in points.items())
        said.append(f"{title}: {named}")
    axes[0].set_ylabel("mean test accuracy, %")
    for axis, points in zip(axes, both.values(), strict=True):
        name_points(axis, [(share, accuracy, name) for name, (share, accuracy) in points.items()])
    text = "Mean test accuracy in % against the share of trained parameters, diamonds are adapters"
    return described(figure, f"{text}. {'. '.join(said)}.")


def shares_by_compression(shares: dict[tuple[str, str], Sequence[float]], compressions: Sequence[int]) -> Figure:
    """The adapters' parameters in % of the backbone's against compression: a panel a network, a line a scheme.

    Args:
        shares: by network and scheme, one number a compression.
    """
    networks = list(dict.fromkeys(network for network, _ in shares))
    figure, axes = plt.subplots(1, len(networks), figsize=(9, 3), sharey=True, squeeze=False, layout="constrained")
    for axis, network in zip(axes[0], networks, strict=True):
        for scheme, style in SCHEME_STYLES.items():
            axis.plot(compressions, shares[network, scheme], label=scheme, **style)
        axis.set(title=network, xlabel="compression", xscale="log", yscale="log")
        axis.set_xticks(compressions, compressions)
        axis.minorticks_off()
    axes[0, 0].set_ylabel("% of the backbone")
    axes[0, -1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    ends = (
        f"{network}, {scheme}: {values[0]:.1f} % at compression {compressions[0]}, {values[-1]:.1f} % at {compressions[-1]}"
        for (network, scheme), values in shares.items()
    )
    return described(figure, f"The adapters' share of the backbone's parameters falls with compression. {'; '.join(ends)}.")


def classes_off(off: dict[str, Tensor]) -> Figure:
    """How many test pictures are how many classes off, a panel a method on one scale.

    Args:
        off: by method what was said minus what is, int64 (images,).
    """
    figure, axes = plt.subplots(1, len(off), figsize=(8.6, 2.6), sharex=True, sharey=True, squeeze=False, layout="constrained")
    said = []
    for axis, (method, values) in zip(axes[0], off.items(), strict=True):
        axis.bar(*np.unique(values.numpy(), return_counts=True), color=COLOURS.get(method, COLOURS["Conv-Adapter"]))
        axis.set(title=method, xlabel="classes off")
        right, near = (values == 0).float().mean(), (values.abs() <= 1).float().mean()
        said.append(f"{method}: {right:.0%} right, {near:.0%} at most one class off")
    axes[0, 0].set_ylabel("test pictures")
    return described(figure, f"Test pictures by how many classes off the answer is. {'; '.join(said)}.")


def operations(counted: dict[str, Mapping[str, int]], kinds: Sequence[str]) -> Figure:
    """How many operations of some kinds the graphs of networks have, a bar a kind and network."""
    figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for shift, (title, numbers) in enumerate(counted.items()):
        places = [i + 0.4 * shift for i in range(len(kinds))]
        style = dict(color=OTHERS[2 * shift], hatch=HATCHES[shift], edgecolor="white", linewidth=0)
        axis.bar(places, [numbers[kind] for kind in kinds], 0.38, label=f"{title}: {sum(numbers.values())} operations", **style)
    axis.set_xticks([i + 0.2 for i in range(len(kinds))], kinds, rotation=25, ha="right")
    axis.set_ylabel("operations")
    axis.legend(frameon=False)
    said = (
        f"{title}: {sum(numbers.values())} in all, {', '.join(f'{numbers[kind]} {kind}' for kind in kinds)}"
        for title, numbers in counted.items()
    )
    return described(figure, f"Operations by kind. {'; '.join(said)}.")
