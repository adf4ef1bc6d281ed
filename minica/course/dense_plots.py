"""The figures of detection and segmentation: boxes over a threshold, and masks beside their truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ..dense.segmentation import IGNORED
from .figures import described
from .plots import COLOURS, GREY, OTHERS

# Of classes: Paul Tol's "bright", which colour-blind readers can tell apart and which shows on photographs.  No colour of it is
# a method's.  The first is for the background of masks.
PALETTE = ("#000000", "#66CCEE", "#EE6677", "#CCBB44", "#228833", "#AA3377", "#4477AA", "#BBBBBB", "#FFFFFF")
VIEWS = ("prediction", "truth", "errors")


def scenes(images: Sequence[Tensor], targets: Sequence[dict], classes: Sequence[str], columns: int = 4) -> Figure:
    """Images (3, H, W) in [0, 1] with the boxes of their targets."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, target in zip(axes.flat, images, targets, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        _boxes(axis, target, classes)
    said = (_counted([classes[label - 1] for label in target["labels"].tolist()]) for target in targets)
    return described(figure, f"{len(images)} images with boxes around objects: {'; '.join(said)}.")


def over_threshold(
    image: Tensor,
    found: dict,
    target: dict,
    classes: Sequence[str],
    threshold: float,
    curves: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    method: str,
) -> Figure:
    """Left the boxes of one image that score at least ``threshold``, its true ones dashed; right what the threshold costs.

    Args:
        found: of the image, see :func:`minica.dense.detection.detect`.
        curves: for each method scores, precision and recall over all images, see
            :func:`minica.dense.detection.precision_recall`; the dots are at the threshold.
        method: whose boxes are drawn.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.7))
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.14, top=0.9, wspace=0.22)  # a constrained layout is slow in a slider
    left.imshow(image.permute(1, 2, 0).numpy())
    left.axis("off")
    _boxes(left, target, classes, style="--", named=False)
    shown = found["scores"] >= threshold
    _boxes(left, {key: value[shown] for key, value in found.items()}, classes)
    left.set_title(f"{method}: {int(shown.sum())} boxes score {threshold:.2f} or more", fontsize=11)
    said = []
    for (name, (scores, precision, recall)), line in zip(curves.items(), ("-", "--", ":"), strict=False):
        colour = COLOURS.get(name, GREY)
        right.plot(recall, precision, color=colour, lw=2, ls=line, label=name)
        if count := int((scores >= threshold).sum()):
            right.plot(recall[count - 1], precision[count - 1], "o", color=colour, ms=9 if name == method else 5)
            said.append(f"{name} precision {precision[count - 1]:.2f}, recall {recall[count - 1]:.2f}")
    right.set(xlabel="recall: share of the objects that are found", ylabel="precision: share of boxes that are right")
    right.set(xlim=(0, 1.02), ylim=(0, 1.02))
    right.legend(frameon=False, fontsize=9, loc="lower left")
    true = len(target["labels"])
    text = f"An image with {int(shown.sum())} boxes of {method} that score {threshold:.2f} or more, and {true} true ones"
    return described(figure, f"{text}; beside it precision against recall: {'; '.join(said) or 'no box scores as much'}.")


def strengths(image: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """An image (3, H, W) in [0, 1], and of each map (C, h, w) the length of its vectors, each on its own scale.

    Args:
        maps: by what stands above them.
    """
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(1.75 * (1 + len(maps)), 2.2), layout="constrained")
    axes[0].imshow(image.permute(1, 2, 0).numpy())
    axes[0].set_title("image", fontsize=9)
    for axis, (name, map) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(map.norm(dim=0).numpy(), cmap="cividis")
        axis.set_title(f"{name}\n{' x '.join(str(side) for side in map.shape)}", fontsize=9)
    for axis in axes:
        axis.axis("off")
    sizes = (f"{name}, {' x '.join(str(side) for side in map.shape)}" for name, map in maps.items())
    return described(figure, f"An image, and how strongly each map answers at each place: {'; '.join(sizes)}.")


def loss_parts(parts: Mapping[str, Sequence[float]], window: int = 10) -> Figure:
    """The parts of a loss by step, each a mean over ``window`` steps, or over a fifth of them all if those are fewer."""
    figure, axis = plt.subplots(figsize=(8, 2.9))
    figure.subplots_adjust(left=0.09, right=0.72, bottom=0.17, top=0.96)
    said = []
    for colour, line, (name, values) in zip(OTHERS, ("-", "--", "-.", ":") * 2, parts.items(), strict=False):
        width = min(window, max(1, len(values) // 5))
        mean = np.convolve(values, np.full(width, 1 / width), "valid")
        axis.plot(np.arange(width, len(values) + 1), mean, color=colour, lw=2, ls=line, label=name)
        said.append(f"{name} from {mean[0]:.2f} to {mean[-1]:.2f}")
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return described(figure, f"Parts of the loss by training step: {'; '.join(said)}.")


def scores(found: Mapping[str, Mapping[str, Sequence[float]]], metric: str) -> Figure:
    """A test metric in % by method, a panel for each data set: a dot a seed, the same seed joined, a bar at the mean."""
    figure, axes = plt.subplots(1, len(found), figsize=(3.1 * len(found), 3), squeeze=False, layout="constrained")
    said = []
    for axis, (title, methods) in zip(axes[0], found.items(), strict=True):
        if not methods:
            axis.text(0.5, 0.5, "not run yet", ha="center", va="center", transform=axis.transAxes, color=GREY)
            axis.set(yticks=[])
        elif len({len(values) for values in methods.values()}) == 1:
            axis.plot(range(len(methods)), 100 * np.array(list(methods.values())), color=GREY, lw=0.8, zorder=1)
        for column, (name, values) in enumerate(methods.items()):
            colour = COLOURS.get(name, GREY)
            axis.plot([column] * len(values), 100 * np.array(values), "o", color=colour)
            axis.plot([column - 0.25, column + 0.25], [100 * np.mean(values)] * 2, color=colour, lw=2)
        axis.set_xticks(range(len(methods)), [name.replace(" ", "\n").replace("-A", "-\nA") for name in methods], fontsize=9)
        axis.set_title(title, fontsize=11)
        axis.set_xlim(-0.6, max(len(methods), 1) - 0.4)
        means = (f"{name} {100 * np.mean(values):.1f}" for name, values in methods.items())
        said.append(f"{title}: {', '.join(means) or 'not run yet'}")
    axes[0, 0].set(ylabel=f"test {metric}, %")
    return described(figure, f"Test {metric} in % by method, mean over seeds. {'; '.join(said)}.")


def overlap(mask: Tensor, guess: Tensor, label: int, name: str) -> Figure:
    """One class of a mask and of a guess, both (H, W): what only one of them has, what both have, and the ratio."""
    true, said = (mask == label) & (mask != IGNORED), (guess.long() == label) & (mask != IGNORED)
    both, either = (true & said).sum().item(), (true | said).sum().item()
    parts = np.zeros(mask.shape)
    parts[(true & ~said).numpy()], parts[(said & ~true).numpy()], parts[(true & said).numpy()] = 1, 2, 3
    colours = ("#EEEEEE", PALETTE[6], PALETTE[2], PALETTE[3])
    figure, axis = plt.subplots(figsize=(6.4, 3))
    figure.subplots_adjust(left=0.02, right=0.5, bottom=0.02, top=0.9)
    axis.imshow(parts, cmap=ListedColormap(colours), vmin=0, vmax=3)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    ratio = f"{both / either:.2f}" if either else "not defined"
    axis.set_title(f"{name}: {both:,} / {either:,} pixels = {ratio}", fontsize=11)
    names = ("missed: only the mask has it", "too much: only the guess has it", "in both")
    keys = [Patch(color=colour, label=label) for colour, label in zip(colours[1:], names, strict=True)]
    axis.legend(handles=keys, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=10)
    counts = ", ".join(f"{what} {int((parts == k).sum()):,} pixels" for k, what in enumerate(names, 1))
    return described(figure, f"Where a mask and a guess of {name} overlap: {counts}; their ratio {ratio}.")


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in Counter(names).items()) or "no objects"


def _boxes(axis: Axes, objects: dict, classes: Sequence[str], style: str = "-", named: bool = True) -> None:
    for at, ((left, top, right, bottom), label) in enumerate(
        zip(objects["boxes"].tolist(), objects["labels"].tolist(), strict=True)
    ):
        colour = PALETTE[1:][(label - 1) % (len(PALETTE) - 1)] if named else "white"
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=2 if named else 1, ls=style)
        )
        if named:
            score = f" {objects['scores'][at]:.2f}" if "scores" in objects else ""
            box = dict(facecolor="black", alpha=0.6, pad=1, lw=0)
            high = top > 0.08 * axis.get_ylim()[0]  # room above the box; rows count from the top
            place = dict(va="bottom" if high else "top", ha="left", bbox=box, clip_on=True)
            axis.text(max(left, 0), top, classes[label - 1] + score, color="white", fontsize=8, **place)


def pixels(
    image: Tensor, mask: Tensor, guesses: Mapping[str, Tensor], classes: Sequence[str], view: str = "prediction"
) -> Figure:
    """An image, and for each method its mask, the true one, or where the two differ.

    Args:
        image: (3, H, W) in [0, 1].
        mask: int64 (H, W); 255 does not count.
        guesses: for each method (H, W).
        view: one of :data:`VIEWS`.
    """
    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}; choose one of {', '.join(VIEWS)}.")
    figure, axes = plt.subplots(1, 1 + len(guesses), figsize=(2.8 * (1 + len(guesses)), 3.3), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.16, top=0.9, wspace=0.04)
    colours = ListedColormap([PALETTE[k % len(PALETTE)] for k in range(len(classes))])
    counts, said = mask != IGNORED, []
    for axis, (name, guess) in zip(axes[0], [("image", None), *guesses.items()], strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.axis("off")
        if guess is None:
            axis.set_title("image", fontsize=11)
            continue
        wrong = (guess.long() != mask) & counts
        if view == "errors":
            axis.imshow(np.ma.masked_where(~wrong.numpy(), np.ones(mask.shape)), cmap=ListedColormap([PALETTE[2]]), alpha=0.9)
        else:
            shown = (guess.long() if view == "prediction" else mask).numpy()
            hidden = (shown == 0) | ~counts.numpy()
            axis.imshow(np.ma.masked_where(hidden, shown), cmap=colours, vmin=0, vmax=len(classes) - 1, alpha=0.75)
        share = f"{name}: {100 * wrong.sum().item() / max(counts.sum().item(), 1):.1f} % wrong"
        axis.set_title("truth" if view == "truth" else share, fontsize=10)
        said.append("the true mask" if view == "truth" else share)
    keys = [Patch(color=PALETTE[k % len(PALETTE)], label=name) for k, name in enumerate(classes) if k][:8]
    if view == "errors":
        keys = [Patch(color=PALETTE[2], label="wrong")]
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), fontsize=9, frameon=False)
    what = {"prediction": "what each method says", "truth": "the true mask", "errors": "where each method is wrong"}[view]
    return described(figure, f"An image, and over it {what}: {'; '.join(said)}. Classes: {', '.join(classes)}.")
