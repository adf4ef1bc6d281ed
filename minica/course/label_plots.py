"""The figure of notebook 10: what was measured around a number of labels."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .figures import described
from .own_images import around
from .plots import COLOURS, GREY, Curves

MARKS = {"Linear probe": "o", "Conv-Adapter": "s", "Full fine-tuning": "^"}


def by_labels(curves: Curves, mine: int, guessing: float, reading: str = "") -> Figure:
    """Test accuracy in % by number of labels, with the range over seeds; beside it every seed at ``mine``, or, where that was
    not measured, at the numbers on both sides of it.  Dotted: ``mine``, and what the majority class gives.

    Args:
        reading: what that says of ``mine``, written below.
    """
    measured = list(next(iter(curves.values())))
    low, high = around(measured, mine)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 5), width_ratios=(3, 2), sharey=True)
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.38, top=0.93, wspace=0.05)  # for a slider
    lines = "\n".join(line for part in reading.splitlines() for line in textwrap.wrap(part, 122))
    figure.text(0.01, 0.27, lines, va="top", fontsize=10, linespacing=1.3)
    for column, (name, points) in enumerate(curves.items()):
        colour, mark = COLOURS.get(name, GREY), MARKS.get(name, "D")
        least, mean, most = zip(*((min(values), np.mean(values), max(values)) for values in points.values()), strict=True)
        left.plot(measured, mean, f"{mark}-", color=colour, lw=2, label=name)
        left.fill_between(measured, least, most, color=colour, alpha=0.15, lw=0)
        for place, n in zip((-0.18, 0.18) if low < high else (0,), sorted({low, high}), strict=True):
            values = np.array(points[n])
            right.plot([column + place] * len(values), values, mark, color=colour, alpha=0.6)
            right.plot([column + place - 0.13, column + place + 0.13], [values.mean()] * 2, color=colour, lw=2)
    left.axvline(mine, color=GREY, lw=1, ls=":")
    for axis in (left, right):
        axis.axhline(guessing, color=GREY, lw=1, ls=":")
    left.set(xscale="log", xlabel="labelled images", ylabel="test accuracy, %")
    left.set_xticks(measured, [f"{n:,}" for n in measured])
    left.xaxis.set_minor_locator(NullLocator())
    left.legend(frameon=False, fontsize=9, loc="lower right")
    right.set_xticks(range(len(curves)), list(curves), fontsize=9)
    title = f"{mine:,} labels, every seed" if low == high else f"{mine:,} not measured: {low:,} (left) and {high:,} (right)"
    right.set_title(title, fontsize=11)
    right.set_xlim(-0.5, len(curves) - 0.5)
    return described(figure, f"Test accuracy by number of labelled images. {reading or title}")
