"""The figures of notebook 04: the grid of compression by kernel size, and training that collapses.

Sliders redraw from a :class:`Table`, which holds all numbers; nothing is trained, run or read meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.collapse import collapsed
from ..experiments.knobs import COMPRESSIONS, KERNELS, MATCHED_AT, Cost, Knobs, Setting, best, verdicts
from ..experiments.tables import markdown
from ..tasks.classification import wilson_interval
from .figures import described
from .plots import COLOURS, GREY, OTHERS

DOWN, UP, HEAD = COLOURS["Conv-Adapter"], OTHERS[1], "#999999"
NOT_RUN = "#DDDDDD"
MARKS = {"best": "best on val.", "indistinguishable": "≈ best", "better": "> best", "not run": "not run"}
BY_KERNEL = dict(zip(KERNELS, (("o", OTHERS[4]), ("s", OTHERS[5]), ("^", OTHERS[3]), ("D", OTHERS[0])), strict=True))


class Table(NamedTuple):
    """All that the grid's figures show of one task."""

    title: str
    size: int  # of the images, in pixels
    grid: dict[Knobs, Setting]
    costs: dict[Knobs, Cost]

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest test accuracy of any run that learned; of no run, 0 and 1."""
        values = [value for one in self.grid.values() for value in one.test]
        return (min(values), max(values)) if values else (0.0, 1.0)


# ---------------------------------------------------------------- the grid


def knobs(table: Table, compression: int, kernel_size: int) -> Figure:
    """One setting in the grid: all recorded test accuracies (means of the runs that learned), this one's costs and runs.

    Grey cells were not run.  "≈ best" marks what the paired interval does not tell from the setting that is best on validation.
    The axes are the same for every setting.
    """
    here = compression, kernel_size
    figure = plt.figure(figsize=(10, 4.4))
    heat = figure.add_axes((0.07, 0.13, 0.42, 0.73))
    _heat_map(heat, table)
    column, row = COMPRESSIONS.index(compression), KERNELS.index(kernel_size)
    heat.add_patch(plt.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="black", lw=3.5))
    heat.set_title(f"{table.title}: test accuracy, %", fontsize=11)

    rows = [figure.add_axes((0.56, bottom, 0.42, 0.1)) for bottom in (0.81, 0.58, 0.35, 0.12)]
    for axis in rows:
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.tick_params(labelsize=9)
    _shares(rows[0], table, here)
    _macs(rows[1], table, here)
    _fields(rows[2], table, here)
    _runs(rows[3], table, here)
    said = [axis.get_title(loc="left") for axis in rows]
    return described(
        figure, f"{table.title}, compression {compression}, kernel {kernel_size}: {'; '.join(said)}. {_said(table)}"
    )


def heat_maps(tables: Iterable[Table]) -> Figure:
    """The recorded test accuracies of several tasks side by side, each on its own scale; see :func:`knobs`."""
    tables = list(tables)
    figure, axes = plt.subplots(1, len(tables), figsize=(10, 3.4), squeeze=False, layout="constrained")
    for axis, table in zip(axes[0], tables, strict=True):
        _heat_map(axis, table)
        axis.set_title(f"{table.title}: test accuracy, %", fontsize=10)
    return described(figure, " ".join(map(_said, tables)))


def _said(table: Table) -> str:
    """The grid in words."""
    cells = (
        f"compression {c}, K = {k}: {' '.join(([f'{100 * one.mean:.1f} %'] if one.test else []) + _notes(one, verdict))}"
        for ((c, k), one), verdict in zip(table.grid.items(), verdicts(table.grid).values(), strict=True)
        if one.runs and one.missing < one.runs
    )
    return f"Mean test accuracy of {table.title}: {'; '.join(cells) or 'not run'}."


def _heat_map(axis: Axes, table: Table) -> None:
    shape = len(KERNELS), len(COMPRESSIONS)
    means = np.array([[table.grid[c, k].mean for c in COMPRESSIONS] for k in KERNELS], dtype=float).reshape(shape)
    low, high = table.limits
    colours = plt.get_cmap("Blues").with_extremes(bad=NOT_RUN)
    shades = dict(vmin=low - 0.3 * (high - low), vmax=high, cmap=colours)
    picture = axis.imshow(np.ma.masked_invalid(means), **shades, aspect="auto", origin="lower")
    said = verdicts(table.grid)
    for row, kernel in enumerate(KERNELS):
        for column, compression in enumerate(COMPRESSIONS):
            one, mean = table.grid[compression, kernel], means[row, column]
            dark = not math.isnan(mean) and _luminance(picture.to_rgba(mean)) < 0.18  # white is then easier to read than black
            lines = [] if math.isnan(mean) else [f"{100 * mean:.1f}"]
            axis.text(column, row, "\n".join(lines + _notes(one, said[compression, kernel])), ha="center", va="center",
                      fontsize=9, color="white" if dark else "black", linespacing=1.3)  # fmt: skip
    axis.set_xticks(range(shape[1]), COMPRESSIONS)
    axis.set_yticks(range(shape[0]), KERNELS)
    axis.set(xlabel="compression", ylabel="kernel size")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _luminance(colour: Sequence[float]) -> float:
    """The relative luminance of a colour (red, green, blue from 0 to 1) by WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def _notes(one: Setting, verdict: str) -> list[str]:
    """What a cell says below its number."""
    if verdict == "failed":
        return [f"{one.failed + one.broken} of {one.runs} failed"]
    if verdict == "incomplete":
        return [f"{len(one.test)} of {one.runs} runs"]
    return [MARKS[verdict]] if verdict in MARKS else []


def _shares(axis: Axes, table: Table, here: Knobs) -> None:
    cost, left = table.costs[here], 0.0
    whole = (cost.adapters + cost.head) / cost.share
    for part, colour, label in ((cost.down, DOWN, "K x K"), (cost.up, UP, "1 x 1, alpha"), (cost.head, HEAD, "classifier")):
        axis.barh(0, 100 * part / whole, left=left, color=colour, label=f"{label} {100 * part / whole:.2f}")
        left += 100 * part / whole
    axis.set_xlim(0, 105 * max(other.share for other in table.costs.values()))
    axis.set_title(f"trained: {100 * cost.share:.2f} % of all parameters", fontsize=10, loc="left", pad=17)
    axis.legend(
        frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 0.8), handlelength=1, borderpad=0.2
    )


def _macs(axis: Axes, table: Table, here: Knobs) -> None:
    cost = table.costs[here]
    axis.barh(0, cost.network_macs / 1e6, color=NOT_RUN)
    axis.barh(0, cost.macs / 1e6, left=cost.network_macs / 1e6, color=DOWN)
    axis.set_xlim(0, 1.05e-6 * max(other.macs + other.network_macs for other in table.costs.values()))
    beside = f"beside the network's {cost.network_macs / 1e6:.0f} ({cost.macs / cost.network_macs:.1%})"
    axis.set_title(f"{cost.macs / 1e6:.2f} million MACs {beside}", fontsize=10, loc="left")


def _fields(axis: Axes, table: Table, here: Knobs) -> None:
    cost = table.costs[here]
    axis.barh(0, cost.field, color=DOWN)
    axis.axvline(cost.network_field, color="black", lw=1.5)
    axis.axvline(table.size, color=GREY, lw=1.5, ls=":")
    axis.set_xlim(0, 1.05 * max(max(other.field, other.network_field) for other in table.costs.values()))
    title = f"adapters see {cost.field} px (line: network {cost.network_field}; dots: image {table.size})"
    axis.set_title(title, fontsize=10, loc="left")


def _runs(axis: Axes, table: Table, here: Knobs) -> None:
    one, (low, high) = table.grid[here], table.limits
    margin = 0.06 * (high - low or 0.1)
    first = best(table.grid)
    if first is not None:
        axis.axvline(100 * table.grid[first].mean, color=GREY, lw=1.5, ls=":")
    axis.plot([100 * value for value in one.test], [0] * len(one.test), "o", color=DOWN, markersize=8, alpha=0.8)
    axis.set(xlim=(100 * (low - margin), 100 * (high + margin)), ylim=(-1, 1))
    if not one.runs or one.missing == one.runs:
        title = "not run"
    else:
        values = ", ".join(f"{100 * value:.1f}" for value in one.test)
        counts = ((one.failed, "gave one answer"), (one.broken, "ended with an error"), (one.missing, "not run yet"))
        bad = "".join(f"; {number} of {one.runs} {what}" for number, what in counts if number)
        title = f"test accuracy by seed: {values or 'none'}{bad}"
    hint = " (dots: best)" if first is not None and one.test and not (one.failed or one.broken) else ""
    axis.set_title(title + hint, fontsize=10, loc="left")


def by_parameters(table: Table, control: Setting | None = None) -> Figure:
    """Test accuracy against the adapters' parameters, a line a kernel size; the star is the matched kernel of one pixel.

    A cross instead of a mark: some of the setting's runs failed, and the mean is of those that learned.
    """
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for kernel, (marker, colour) in BY_KERNEL.items():
        shown = [(c, table.grid[c, kernel]) for c in COMPRESSIONS if table.grid[c, kernel].test]
        sizes = [table.costs[c, kernel].adapters for c, _ in shown]
        axis.plot(sizes, [100 * one.mean for _, one in shown], color=colour, lw=1.5)
        for size, (_, one) in zip(sizes, shown, strict=True):
            values = [100 * value for value in one.test]
            axis.plot([size, size], [min(values), max(values)], color=colour, lw=5, alpha=0.25, solid_capstyle="butt")
            axis.plot(size, 100 * one.mean, "X" if one.failed or one.broken else marker, color=colour, markersize=8)
        if shown:
            axis.plot([], [], marker, color=colour, label=f"K = {kernel}")
    if control is not None and control.test:
        values = [100 * value for value in control.test]
        size = table.costs[MATCHED_AT].adapters
        axis.plot([size] * 2, [min(values), max(values)], color="black", lw=5, alpha=0.25, solid_capstyle="butt")
        mark = "X" if control.failed or control.broken else "*"
        axis.plot(size, 100 * control.mean, mark, color="black", markersize=13, label="K = 1, matched, own rate")
    axis.set(xlabel="parameters of the adapters", ylabel="test accuracy, %", xscale="log", title=table.title)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color=GREY, fontsize=14)
        sizes = [cost.adapters for cost in table.costs.values()]
        axis.set(xlim=(min(sizes), max(sizes)), ylim=(0, 100))
    return described(figure, f"Test accuracy against the adapters' parameters, a line a kernel size. {_said(table)}")


# ---------------------------------------------------------------- training that collapses


def collapse_curves(runs: dict[str, dict]) -> Figure:
    """Loss, deviation of the features over images, and the live share of the last activation by step, a line a trial.

    ``runs``: records of :func:`minica.experiments.collapse.trial`, by the label of their line.  On the logarithmic axes
    what is below a millionth is drawn as a millionth.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
    names = ("training loss", "features' deviation over images", "live share of the last activation")
    for (label, record), style in zip(runs.items(), _styles(), strict=False):
        curve = np.array(record["curve"])
        for axis, column in zip(axes, (1, 2, 3), strict=True):
            axis.plot(curve[:, 0], np.maximum(curve[:, column], 1e-6), **style, label=label)
    classes = next(iter(runs.values()))["classes"]
    axes[0].axhline(math.log(classes), color=GREY, lw=1, ls=":")
    end = axes[0].get_xlim()[1]
    axes[0].text(end, 0.97 * math.log(classes), f"guessing: ln {classes}", ha="right", va="top", color=GREY, fontsize=9)
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, fontsize=10)
        axis.set(xlabel="step")
    axes[0].set_ylim(bottom=0)
    for axis in axes[1:]:
        axis.set(yscale="log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc="outside upper center")
    ends = (
        f"{label}: {', '.join(f'{name} {value:.2g}' for name, value in zip(names, record['curve'][-1][1:], strict=False))}"
        for label, record in runs.items()
    )
    return described(figure, f"Three line charts by training step; at the end {'; '.join(ends)}.")


def _styles() -> Iterable[dict]:
    yield dict(color=OTHERS[3], lw=2)
    yield dict(color=OTHERS[2], lw=2, ls="--")
    yield dict(color=OTHERS[0], lw=2, ls="-.")


def collapse_table(cells: Iterable[tuple[dict, list[dict]]]) -> str:
    """Which part of the runs collapses, setting by setting, with Wilson's 95 % interval, as Markdown.

    The accuracy is that of the runs that did not collapse, each counted once.

    Args:
        cells: of :func:`minica.experiments.collapse.cells`.
    """
    rows = []
    for config, records in cells:
        options = config["options"]
        setting = f"{config['task']}: {options['scheme']}, {options['compression']}; rate {config['lr']:g}{_change(config)}"
        row = [setting, f"{config['warmup_steps']} of {config['steps']}"]
        if not records:
            rows.append([*row, "not run", ""])
            continue
        dead = sum(map(collapsed, records))
        low, high = wilson_interval(dead, len(records))
        learned = [record["test"] for record in records if not collapsed(record)]
        accuracy = f"{100 * sum(learned) / len(learned):.1f} ({len(learned)})" if learned else "none"
        rows.append([*row, f"{dead} of {len(records)} ({100 * low:.0f} to {100 * high:.0f} %)", accuracy])
    header = ["task: scheme, compression; rate; what is changed", "warm-up, steps", "collapsed (95 % interval)"]
    return markdown([*header, "test accuracy of the others, % (runs)"], rows)


CHANGES = {
    "beta2": "Adam's second beta {}",
    "optimizer": "{}",
    "batch_statistics": "BatchNorm on batch statistics: {}",
    "last_activation": "last activation {}, not ReLU6",
    "classifier_rate": "classifier's rate x {}",
    "adapter_rate": "adapters' rate x {}",
}


def _change(config: dict) -> str:
    changes = [] if config["backbone"] == "tf_efficientnet_lite0" else [config["backbone"]]
    changes += [text.format(config[key]) for key, text in CHANGES.items() if key in config]
    return "".join(f"; {change}" for change in changes)
