"""Notebook 04's grid: what an adapter costs by compression and kernel size, and how well it was recorded to do.

The grid's runs are those of ``configs/knobs_*.toml``.  A setting is chosen by its validation accuracy and compared by its test
accuracy, seed by seed.  A run that gives every image the same answer has failed; it is counted, and no setting with such a run
is compared by a mean.
"""

from __future__ import annotations

import itertools
import statistics
from typing import NamedTuple

import torch

from ..backbones import create_backbone
from ..counting import adapter_macs, adapter_parameters, bottleneck_width, kernel_area
from ..profiling import count
from ..recipe import adapters, detach
from ..schemes import adapt
from .paper import table
from .plans import Cell, Plan, at_edge, chosen, final_jobs
from .records import trial_key
from .scores import Comparison, compare, learned, spread_text
from .tables import markdown

COMPRESSIONS, KERNELS = (1, 2, 4, 8), (1, 3, 5, 7)  # the paper's gamma and K
Knobs = tuple[float, int]  # (compression, kernel size)


class Task(NamedTuple):
    """What the grid of one config is about."""

    title: str
    backbone: str
    scheme: str
    size: int  # of the images, in pixels
    classes: int


TASKS = {
    "knobs_position": Task("position, EfficientNet-Lite0", "tf_efficientnet_lite0", "residual_parallel", 64, 16),
    "knobs_solar_cells": Task("solar cells, EfficientNet-Lite0", "tf_efficientnet_lite0", "residual_parallel", 96, 2),
    "knobs_signs": Task("hand signs, ResNet-50 trunk", "resnet50v2_c4", "conv_parallel", 64, 10),
}
# The configs' control: K = 1 with as many parameters as K = 3 at compression 4.
MATCHED, MATCHED_AT = "1 x 1, matched", (2.1, 1)


# ---------------------------------------------------------------- what a setting costs


class Cost(NamedTuple):
    """One setting on one network, for one image: parameters by part, multiply-accumulates, pixels."""

    down: int  # the K x K down-projections, with their biases
    up: int  # the 1 x 1 up-projections, with their biases, and alpha
    head: int  # the classifier
    backbone: int  # frozen
    macs: int  # of the adapters
    network_macs: int
    field: int  # how wide a square of the image the adapters see through each other, counted from the stem's output
    network_field: int  # the same of the network's own spatial convolutions in the adapted parts

    @property
    def adapters(self) -> int:
        """Parameters of all adapters."""
        return self.down + self.up

    @property
    def share(self) -> float:
        """Trained parameters as a part of all."""
        return (self.down + self.up + self.head) / (self.down + self.up + self.head + self.backbone)


def costs(backbone: str, scheme: str, size: int, classes: int) -> dict[Knobs, Cost]:
    """What each setting of the grid and the matched control cost: closed forms on the shapes of a forward pass without numbers.

    A kernel of K pixels on a map that is j times coarser than the image adds (K - 1) j pixels to what is seen.

    Args:
        size: of the images, in pixels.
    """
    with torch.device("meta"):
        model = create_backbone(backbone, num_classes=classes, pretrained=False).eval()
        whole = count(model, size)
        places, own = [], None
        for kernel in (None, 1):
            adapt(detach(model), scheme, compression=1, kernel_size=kernel)
            parts = adapters(model).values()
            if kernel is None:
                own = [part.down.kernel_size[0] for part in parts]
        for part in parts:
            part.register_forward_hook(
                lambda part, args, out: places.append((*_ends(part), args[0].shape[-1], tuple(out.shape[-2:])))
            )
        model(torch.zeros(1, 3, size, size))
    found = {}
    for compression, kernel in [*itertools.product(COMPRESSIONS, KERNELS), MATCHED_AT]:
        down = up = macs = 0
        for c_in, c_out, _, out_size in places:
            shape = dict(kernel_size=kernel, compression=compression)
            projection = kernel_area(kernel) * c_in + bottleneck_width(c_in, compression)
            down += projection
            up += adapter_parameters(c_in, c_out, **shape) - projection
            macs += adapter_macs(c_in, c_out, out_size, **shape)
        fields = (_field(size, places, [kernel] * len(places)), _field(size, places, own))
        found[compression, kernel] = Cost(down, up, whole["head"], whole["backbone"], macs, whole["macs"], *fields)
    return found


def _ends(part: torch.nn.Module) -> tuple[int, int]:
    return part.down.in_channels, part.up.out_channels


def _field(size: int, places: list[tuple], kernels: list[int]) -> int:
    steps = [size // read for _, _, read, _ in places]
    return steps[0] + sum((kernel - 1) * step for kernel, step in zip(kernels, steps, strict=True))


# ---------------------------------------------------------------- what was recorded


class Setting(NamedTuple):
    """The runs of one setting: the records of those that learned, and how many others there are."""

    learned: tuple[dict, ...]  # one a seed
    failed: int  # gave every image the same answer
    broken: int  # ended with an error
    missing: int  # have not run
    lr: float | None = None  # None while it is not chosen

    @property
    def runs(self) -> int:
        """How many there shall be."""
        return len(self.learned) + self.failed + self.broken + self.missing

    @property
    def whole(self) -> bool:
        """Whether every run is there and has learned."""
        return not (self.failed or self.broken or self.missing) and bool(self.learned)

    @property
    def test(self) -> list[float]:
        """Test accuracies of the runs that learned."""
        return [record["test"]["accuracy"] for record in self.learned]

    @property
    def mean(self) -> float | None:
        """Mean test accuracy of the runs that learned."""
        return statistics.mean(self.test) if self.learned else None


NOT_RUN = Setting((), 0, 0, 0)  # of what no config asks for


def setting(cell: Cell, found: dict[str, dict], plan: Plan) -> Setting:
    """What the records say of one cell of a plan."""
    jobs = final_jobs(cell, found, plan)
    if not jobs:  # its rate is not known yet
        return Setting((), 0, 0, len(cell.seeds))
    records = [found.get(trial_key(job["config"])) for job in jobs]
    ran = [record for record in records if record is not None and "error" not in record]
    kept = tuple(learned(ran))
    broken = len(records) - len(ran) - records.count(None)
    return Setting(kept, len(ran) - len(kept), broken, records.count(None), jobs[0]["config"]["lr"])


def rate(plan: Plan, found: dict[str, dict]) -> str:
    """The grid's rate in a sentence: which it is, and whether it lies at the edge of those that were tried."""
    (leader,) = [cell for cell in plan.cells if cell.method == "gamma 4, K 3"]
    if (best := chosen(leader, found, plan)) is None:
        return "The grid's rate is not chosen yet."
    tried = ", ".join(f"{value:g}" for value in sorted({point["lr"] for point in leader.points}))
    edge = "inside"
    if "lr" in at_edge(leader, found, plan):
        edge = "the lowest or the highest, so that one beyond it might have done better"
    return f"The grid's rate is {best[0]['lr']:g} of {tried}: {edge}."


def settings(plan: Plan, found: dict[str, dict]) -> dict[Knobs, Setting]:
    """The grid's settings; those that the plan does not ask for are :data:`NOT_RUN`."""
    grid = {(compression, kernel): NOT_RUN for compression in COMPRESSIONS for kernel in KERNELS}
    for cell in plan.cells:
        if cell.method.startswith("gamma"):
            options = cell.points[0]["options"]
            grid[options["compression"], options["kernel_size"]] = setting(cell, found, plan)
    return grid


def others(plan: Plan, found: dict[str, dict]) -> dict[str, Setting]:
    """What a plan asks for beside the grid, by method: the matched control, forms and starts."""
    return {cell.method: setting(cell, found, plan) for cell in plan.cells if not cell.method.startswith("gamma")}


# ---------------------------------------------------------------- comparisons


def best(grid: dict[Knobs, Setting]) -> Knobs | None:
    """The setting with the highest mean validation accuracy among those whose runs are all there and have all learned."""
    whole = {
        knobs: statistics.mean(record["val"]["accuracy"] for record in one.learned) for knobs, one in grid.items() if one.whole
    }
    return max(whole, key=whole.get) if whole else None


def paired(one: Setting, other: Setting) -> Comparison | None:
    """The difference in test accuracy, ``one`` - ``other``, over shared seeds.

    None with fewer than two shared seeds, or if a run of either failed: a mean over what happened to learn is no comparison.
    """
    ours, theirs = ({record["config"]["seed"]: record for record in each.learned} for each in (one, other))
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2 or one.failed or other.failed or one.broken or other.broken:
        return None
    return compare([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


def verdicts(grid: dict[Knobs, Setting]) -> dict[Knobs, str]:
    """How each setting compares with the best one: ``"best"``, ``"indistinguishable"``, ``"worse"``, ``"better"`` (on test than
    what validation chose), ``"failed"`` if some of its runs did, ``"incomplete"``, or ``"not run"``."""
    first, found = best(grid), {}
    for knobs, one in grid.items():
        if one.missing == one.runs:
            found[knobs] = "not run"
        elif one.failed or one.broken:
            found[knobs] = "failed"
        elif not one.whole:
            found[knobs] = "incomplete"
        elif knobs == first:
            found[knobs] = "best"
        else:
            difference = paired(grid[first], one)
            above, below = (difference.low > 0, difference.high < 0) if difference else (False, False)
            found[knobs] = "worse" if above else "better" if below else "indistinguishable"
    return found


def says(name: str, one: Setting, than: str, other: Setting) -> str:
    """One comparison in a sentence, for any outcome: beyond the interval either way, within it, failed, or not run."""
    for label, each in ((name, one), (than, other)):
        if each.failed or each.broken:
            learned = f"; those that learned reach {each.mean:.1%}" if each.learned else ""
            return f"{label}: {each.failed + each.broken} of {each.runs} runs failed, so no means are compared{learned}."
        if not each.whole:
            done = f"{len(each.learned)} of {each.runs} runs are recorded" if each.learned else "not run yet"
            return f"{label}: {done}, so nothing is said."
    found = paired(one, other)
    if found is None:
        return f"{name} against {than}: {len(one.learned)} run each is too few for an interval."
    what = "above" if found.low > 0 else "below" if found.high < 0 else "not distinguishable from"
    low, mean, high = 100 * found.low, 100 * found.mean, 100 * found.high
    numbers = f"{mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} over {len(found.differences)} seeds"
    return f"{name} ({one.mean:.1%}) is {what} {than} ({other.mean:.1%}): {numbers}."


def locality(grid: dict[Knobs, Setting], control: Setting | None = None) -> list[str]:
    """Kernels of one pixel against larger ones in sentences: at each compression, and at matched parameters.

    At a compression the larger kernel is the one that validation prefers.
    """
    lines = []
    for compression in COMPRESSIONS:
        row = {knobs: one for knobs, one in grid.items() if knobs[0] == compression and knobs[1] > 1}
        if not any(one.runs for one in (grid[compression, 1], *row.values())) or not grid[compression, 1].runs:
            continue
        knobs = best(row) or (compression, 3)
        names = f"compression {compression}: K = {knobs[1]}", "K = 1"
        lines.append(says(names[0], grid[knobs], names[1], grid[compression, 1]))
    if control is not None:
        lines.append("At matched parameters, rates tuned for each: " + says("K = 3", grid[4, 3], "K = 1", control))
    return lines


def locality_holds(grid: dict[Knobs, Setting], control: Setting) -> str:
    """The claim in one word, by the matched control: ``"holds"``, ``"fails"``, ``"is undecided"`` or ``"has not been run"``."""
    one = grid[4, 3]
    if one.missing or control.missing or not (one.runs and control.runs):
        return "has not been run"
    found = paired(one, control)
    if found is None:
        return "is undecided"
    return "holds" if found.low > 0 else "fails" if found.high < 0 else "is undecided"


def smallest(grid: dict[Knobs, Setting], price: dict[Knobs, Cost]) -> Knobs | None:
    """The setting with the fewest parameters that the paired interval does not tell from the best one; that one included."""
    alike = [knobs for knobs, verdict in verdicts(grid).items() if verdict in ("best", "better", "indistinguishable")]
    return min(alike, key=lambda knobs: price[knobs].adapters) if alike else None


def answer(name: str, grid: dict[Knobs, Setting], price: dict[Knobs, Cost]) -> str:
    """How small and how wide, in a sentence on one task: the best setting, and the smallest that cannot be told from it."""
    asked = [one for one in grid.values() if one.runs]
    if (first := best(grid)) is None:
        done = sum(one.runs - one.missing for one in asked)
        return f"{name}: {done} of {sum(one.runs for one in asked)} runs are recorded, so no setting is chosen."
    small, said = smallest(grid, price), list(verdicts(grid).values())
    lead = f"{name}: validation chooses compression {first[0]}, K = {first[1]} ({grid[first].mean:.1%} on test)"
    alike, worse = said.count("indistinguishable"), said.count("worse")
    rest = f"of the other {len(asked) - 1} settings {alike} cannot be told from it, {worse} are worse"
    for verdict, what in (("better", "better"), ("failed", "have failed runs"), ("incomplete", "are not complete")):
        rest += f", {said.count(verdict)} {what}" if verdict in said else ""
    rest += f", {missing} not run" if (missing := sum(one.missing == one.runs for one in asked)) else ""
    share = f"{price[small].share:.1%} of all parameters train, against {price[first].share:.1%}"
    end = "It is also the smallest of these." if small == first else (
        f"The smallest of these is compression {small[0]}, K = {small[1]} ({grid[small].mean:.1%}): {share}."
    )  # fmt: skip
    return f"{lead}; {rest}. {end}"


# Rows of the table of forms and starts -> what the config calls them; the first six are Table 5's, in its order.
FORMS = {
    "depth-wise K x K, then 1 x 1": "gamma 4, K 3",
    "regular K x K, then 1 x 1": "regular",
    "linear: 1 x 1, then 1 x 1": "linear",
    "depth-wise, at half the resolution": "spatial",
    "1 x 1 at every convolution of a block": "all convolutions",
    "depth-wise, one a stage": "stages",
    "depth-wise, identity start, alpha from 0.1": "identity, alpha 0.1",
    "depth-wise, published start, alpha from 1": "published, alpha 1",
    "depth-wise, published start, alpha from 0.1": "published, alpha 0.1",
}


def forms_table(grid: dict[Knobs, Setting], beside: dict[str, Setting]) -> str:
    """The forms of Table 5, alpha's start and the two starts as Markdown: ours on one task beside the paper's mean of VTAB-1k.

    A mean is of the runs that learned; those that did not are counted beside it.
    """
    rows, base, paper = [], grid[4, 3], [f"{row['mean']:.2f}" for row in table(5)]
    for (label, method), printed in itertools.zip_longest(FORMS.items(), paper, fillvalue=""):
        one = base if method == "gamma 4, K 3" else beside.get(method, NOT_RUN)
        if one.missing == one.runs:
            rows.append([label, "", "", "not run", "", "", printed])
            continue
        values = [100 * value for value in one.test]
        accuracy = f"{spread_text(values, digits=1)} ({len(values)})" if values else "none learned"
        difference, against = None if one is base else paired(one, base), ""
        if difference is not None:
            low, mean, high = 100 * difference.low, 100 * difference.mean, 100 * difference.high
            against = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        trainable = f"{one.learned[0]['trainable']:,}" if one.learned else ""
        rows.append([label, trainable, f"{one.lr:g}", accuracy, f"{one.failed + one.broken} of {one.runs}", against, printed])
    header = ["form and start", "trained", "rate", "test accuracy, % (runs)", "failed"]
    return markdown([*header, "against the first row: points (95 % interval)", "paper, VTAB-1k"], rows)
