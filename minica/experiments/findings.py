"""What the paper finds, and what the committed records say of it: the paper's number, ours, on what, and whether it holds.

"Near" is at most two points below, :data:`MARGIN`, with the whole interval; what an interval over splits, draws or seeds leaves
open *cannot be told*.  These rules were written before the records of the central table and of notebooks 04, 07, 08 and 09 were
made, but after those of the first notebook, few labels, VTAB-1k in outline, position on EfficientNet-Lite0, and collapse.
What came later only takes answers back: where a run collapsed nothing is decided, of three seeds every answer is a hint, a
scheme that no other is compared with is left open, and so is being near a full fine-tuning that lies below the frozen backbone.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from ..schemes import SCHEMES
from ..tasks.classification import wilson_interval
from . import collapse, knobs, reasons
from .comparison import SCHEME_TUNING
from .paper import table
from .plans import Plan, final_records, is_complete, recorded
from .records import RESULTS, read_records
from .scores import ENOUGH, Comparison, collapsed, compare, comparison, learned
from .tables import markdown

MARGIN = 0.02  # of accuracy, mean IoU or AP
SHARE = 0.05  # of the parameters that full fine-tuning trains: what adapters may have to be compared with it
HOLDS, FAILS, OPEN, ABSENT, OURS = "holds", "does not", "cannot be told", "not run", "ours only"
TRUNK, LITE = "ResNet-50 without its last stage", "EfficientNet-Lite0"
FULL = ("Full fine-tuning, statistics frozen", "Full fine-tuning")
TRAINED = 1000  # images of each split of the central table, a few fewer for hand signs
RIVALS = {"Norms": "the norms", "LoRA": "LoRA", "Last stage": "the last stage"}
CENTRAL = {
    "signs": "hand signs by student",
    "clothing": "clothes",
    "position_trunk": "position of drawn shapes",
}
DENSE = {
    "scenes_boxes": (f"drawn scenes, {LITE}", "ap", "detectors (AP)"),
    "cards": (f"playing cards, {LITE}", "ap", "detectors (AP)"),
    "cards_c4": (f"playing cards, {TRUNK}", "ap", "detectors (AP)"),
    "scenes_masks": (f"drawn scenes, {LITE}", "miou", "segmentation (mean IoU)"),
    "nuclei": (f"nuclei of cells, {LITE}", "miou", "segmentation (mean IoU)"),
}


class Finding(NamedTuple):
    """One line of the table; each entry as it is shown."""

    claim: str
    paper: str
    ours: str
    on: str
    verdict: str


class Sweep(NamedTuple):
    """A committed sweep of which all final runs are there."""

    plan: Plan
    found: dict[str, dict]
    runs: dict[tuple[str, str], list[dict]]  # (task, method) -> final runs, one a seed

    def task(self, word: str = "") -> dict[str, list[dict]]:
        """Final runs by method of the one task, or of the one that has ``word`` in its name."""
        return {method: runs for (task, method), runs in self.runs.items() if word in task}


def complete(name: str) -> Sweep | None:
    """The sweep ``configs/<name>.toml``; None while final runs are missing."""
    plan, found = recorded(name)
    if not is_complete(plan, found):
        return None
    return Sweep(plan, found, {(cell.task, cell.method): final_records(cell, found, plan) for cell in plan.cells})


Judged = tuple[str, str]  # (what is shown of ours, verdict)
Line = tuple[str, str, str, str, Callable[[Sweep], Judged]]  # (claim, paper, on, name of the config, how it is judged)


def findings(sweep: Callable[[str], Sweep | None] = complete) -> list[Finding]:
    """Every finding, those of the paper first.

    Args:
        sweep: gives a sweep by its config's name, None if it has not been run.
    """
    parts = (_near_full, _above_the_probe, _order, _structured, _few_shot, _locality, _dense, _explained, _our_own)
    found = []
    for claim, paper, on, name, judge in (line for part in parts for line in part()):
        one = sweep(name)
        ours, verdict = ("-", ABSENT) if one is None else judge(one)
        found.append(Finding(claim, paper, ours, on, verdict))
    return [*found, _collapse()]


def findings_table(found: list[Finding]) -> str:
    """The findings as Markdown; what a line has in common with the one above stands there alone."""
    rows, above = [], ("", "")
    for claim, paper, *rest in found:
        rows.append(["" if claim == above[0] else claim, "" if (claim, paper) == above else paper, *rest])
        above = claim, paper
    return markdown(["finding", "the paper", "ours (95 % interval)", "on", "verdict"], rows)


def central_table(sweep: Callable[[str], Sweep | None] = complete) -> str:
    """The central table in short, as Markdown: mean test accuracies of the methods that the first two findings compare."""
    rows = []
    for name, task in CENTRAL.items():
        if (one := sweep(name)) is None:
            rows.append([task, *["not run"] * 3])
            continue
        runs = one.task()
        adapters, full = small_adapters(runs), stronger_full(runs)
        ours = f"{100 * _mean(runs[adapters]):.1f} ({_share(runs[adapters], runs):.1%})" if adapters else "all have more"
        rows.append([task, f"{100 * _mean(runs['Linear probe']):.1f}", ours, f"{100 * _mean(runs[full]):.1f}"])
    limit = f"Conv-Adapter with at most {SHARE:.0%} of the parameters (with how many)"
    return markdown([f"test accuracy (%), {TRUNK}", "linear probe", limit, "full fine-tuning"], rows)


# ---------------------------------------------------------------- the paper's


def _near_full() -> Iterator[Line]:
    gaps = _gaps(2, ("FT", "CA"), lambda cell: (cell["pretrain"], cell["backbone"]) == ("ImageNet 1k", "ResNet50"))

    def judge(one: Sweep) -> Judged:
        runs = one.task()
        if (adapters := small_adapters(runs)) is None:
            return "all schemes have more", FAILS
        full = stronger_full(runs)
        difference, both = compare(runs[adapters], runs[full]), {name: runs[name] for name in (adapters, full)}
        who = f"`{adapters}`, {_share(runs[adapters], runs):.1%}, against {full[0].lower() + full[1:]}"
        said = f"{points(difference, redrawn(one))}{_corrected(one, difference, both)}: {who}{_failures(both)}"
        return said, _weighed(_near(difference), both)

    for name, task in CENTRAL.items():
        shown = {"Structured": gaps["Structured"]} if name == "position_trunk" else gaps
        paper = f"{_listed(shown)} (Table 2, ResNet50 of ImageNet-1k)"
        claim = f"Conv-Adapter is near full fine-tuning, with at most {SHARE:.0%} of the parameters"
        yield claim, paper, f"{task}, {TRUNK}", name, judge


def _above_the_probe() -> Iterator[Line]:
    def judge(one: Sweep) -> Judged:
        runs = one.task()
        if (adapters := small_adapters(runs)) is None:
            return "all schemes have more", FAILS
        both = {name: runs[name] for name in (adapters, "Linear probe")}
        difference = compare(*both.values())
        said = f"{points(difference, redrawn(one))}{_corrected(one, difference, both)}: `{adapters}`{_failures(both)}"
        return said, _weighed(_sign(difference), both)

    gains = _gaps(1, ("LP", "Conv. Par."))
    for name, task in CENTRAL.items():
        shown = {"Structured": gains["Structured"]} if name == "position_trunk" else gains
        yield "and above a linear probe", f"{_listed(shown)} (Table 1, BiT)", f"{task}, {TRUNK}", name, judge


def _order() -> Iterator[Line]:
    def judge(one: Sweep) -> Judged:
        runs = {scheme: one.task()[scheme] for scheme in SCHEMES}
        first = runs["conv_parallel"]
        cheap = [scheme for scheme in [*SCHEMES][1:] if runs[scheme][0]["trainable"] <= first[0]["trainable"]]
        against = {scheme: compare(first, runs[scheme]) for scheme in cheap}
        signs = [_sign(each) for each in against.values()]
        # If validation chose no other scheme with as few parameters, nothing has been compared.
        verdict = FAILS if FAILS in signs else HOLDS if signs and {*signs} == {HOLDS} else OPEN
        ours = ", ".join(f"{100 * _mean(found):.1f} with {found[0]['trainable'] / 1e6:.2f} M" for found in runs.values())
        gaps = ", ".join(f"against `{scheme}` {points(each, 'splits')}" for scheme, each in against.items())
        compared = {scheme: runs[scheme] for scheme in ("conv_parallel", *cheap)}
        return f"{ours}; {gaps or 'no other was chosen with as few'}{_failures(runs)}", _weighed(verdict, compared)

    shown = []
    for name in SCHEME_TUNING.values():
        cells = [cell for cell in table(1) if cell["tuning"] == name]
        shown.append(f"{statistics.mean(cell['mean'] for cell in cells):.1f} with {cells[0]['params']:.2f} M")
    claim = "of the four schemes `conv_parallel` is the best bargain: no other is better with as few parameters"
    yield claim, f"{', '.join(shown)} (Table 1, in the order of the schemes)", f"hand signs by student, {TRUNK}", "signs", judge


def _structured() -> Iterator[Line]:
    def judge(one: Sweep) -> Judged:
        words = ("defect", "position", "orientation", "count")
        photographs, *drawn = (compare(one.task(word)["CA"], one.task(word)["LP"]) for word in words)
        verdict = HOLDS if all(each.low > photographs.high for each in drawn) else OPEN
        verdict = FAILS if any(each.high < photographs.low for each in drawn) else verdict
        runs = {f"{method}, {word}": one.task(word)[method] for word in words for method in ("CA", "LP")}
        seeds = f"{len(photographs.differences)} seeds"
        return f"{', '.join(map(points, (photographs, *drawn)))}, {seeds}{_failures(runs)}", _weighed(verdict, runs)

    gains, on = _gaps(1, ("LP", "Conv. Par.")), f"solar cells, then position, orientation and count of drawn shapes, {LITE}"
    yield "structured tasks gain most over a probe", f"{_listed(gains)} (Table 1, BiT)", on, "vtab_packaged", judge


def _few_shot() -> Iterator[Line]:
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in table(3):
        means[cell["backbone"], cell["tuning"]].append(cell["mean"])
    gains = {name: statistics.mean(means[name, "CA"]) - statistics.mean(means[name, "FT"]) for name, _ in means}
    paper = ", ".join(f"{gain:+.1f} {name}" for name, gain in gains.items()) + " (Table 3)"

    def judge(one: Sweep, adapters: str, full: tuple[str, ...]) -> Judged:
        modes = {method: _over_shots(one, adapters, method) for method in full if method in one.task()}
        stronger = min(modes, key=lambda method: modes[method].mean)  # on the test images, which errs against the adapters
        difference, metric = modes[stronger], one.plan.metric
        shots = ", ".join(str(cell.points[0]["shots"]) for cell in one.plan.cells if cell.method == adapters)
        runs = {f"{name}, {task}": found for (task, name), found in one.runs.items() if name in (adapters, stronger)}
        of = "" if metric == "accuracy" else f" of {metric.replace('_', ' ')}"
        said = f"{points(difference)}{of} over {shots} shots, {len(difference.differences)} draws"
        return said + _failures(runs, metric), _weighed(_sign(difference), runs)

    claim = "with few labels Conv-Adapter is above full fine-tuning"
    solar = partial(judge, adapters="CA", full=("FT", "FT, statistics frozen"))
    yield claim, paper, f"four kinds of solar cells, {LITE}", "few_shot_solar_cells", solar
    yield claim, paper, f"hand signs by student, {TRUNK}", "few_shot_signs", partial(judge, adapters="conv_parallel", full=FULL)


def _over_shots(one: Sweep, adapters: str, full: str) -> Comparison:
    """Draw by draw, the differences averaged over the numbers of shots."""
    tasks = dict.fromkeys(task for task, _ in one.runs)
    of_task = [compare(one.runs[task, adapters], one.runs[task, full], one.plan.metric).differences for task in tasks]
    return comparison({seed: statistics.mean(each[seed] for each in of_task) for seed in of_task[0]})


def _locality() -> Iterator[Line]:
    def judge(one: Sweep) -> Judged:
        control = knobs.others(one.plan, one.found)[knobs.MATCHED]
        local = knobs.settings(one.plan, one.found)[4, 3]
        difference = knobs.paired(local, control)
        if difference is None:
            return f"{local.failed + local.broken} and {control.failed + control.broken} runs failed", OPEN
        both = {"K = 3": [*local.learned], "K = 1": [*control.learned]}
        return points(difference, "seeds"), _weighed(_sign(difference), both)

    forms = {
        row["conv_type"]: row["mean"]
        for row in table(5)
        if (row["adapting_scheme"], row["down_sample"]) == ("Conv. Par.", "Channel")
    }
    paper = f"{forms['Depth-wise'] - forms['Linear']:+.1f} (Table 5)"
    for name in ("knobs_position", "knobs_solar_cells"):
        about = knobs.TASKS[name]
        yield "K = 3 is above K = 1 with as many parameters", paper, about.title, name, judge


def _dense() -> Iterator[Line]:
    def judge(one: Sweep) -> Judged:
        runs, metric = one.task(), one.plan.metric
        full, frozen = (compare(runs["Conv-Adapter"], runs[other], metric) for other in ("Full fine-tuning", "Frozen backbone"))
        failed = compare(runs["Full fine-tuning"], runs["Frozen backbone"], metric).high < 0
        verdict = OPEN if failed else _near(full)
        note = "; full fine-tuning is itself below the frozen backbone" if failed else ""
        return f"{points(full, 'seeds')}; against a frozen backbone {points(frozen)}{note}", _weighed(verdict, runs)

    for name, (on, metric, what) in DENSE.items():
        values = {(row["backbone"], row["tuning"]): row[metric] for row in table(4) if row[metric] is not None}
        gaps = [f"{values[name, 'CA'] - values[name, 'FT']:+.1f} {name}" for name in dict.fromkeys(key[0] for key in values)]
        claim = f"adapters are near full fine-tuning in {what}"
        yield claim, f"{', '.join(gaps)} (Table 4)", on, name, judge


def _explained() -> Iterator[Line]:
    def judge(one: Sweep, what: str) -> Judged:
        tasks = reasons.tasks(one.plan, one.found)
        values = [task.mmd if what == "mmd" else task.cka[reasons.READINGS[0]] for task in tasks]
        rho, p = reasons.rank_correlation(values, [task.gain for task in tasks])
        runs = {f"{name}, {task}": found for (task, name), found in one.runs.items() if name != reasons.FIXED}
        failures = _failures(runs)
        verdict = OPEN if p > 0.05 or failures else HOLDS if rho * reasons.EXPECTED[what] > 0 else FAILS
        return f"rank correlation {rho:+.2f}, exact p = {p:.2f}{failures}", verdict

    filters, images = "where full fine-tuning changes the filters less (CKA)", "where images are like the pre-training's (MMD)"
    on = f"seven tasks, some of the same pictures, {LITE}"  # so p, which takes them for seven independent ones, is too small
    yield f"adapters gain {filters}", "rises with CKA (Figure 7)", on, "why", partial(judge, what="cka")
    instead = f"{on}; photographs of clothes, one of the seven, in place of ImageNet"
    yield f"adapters gain {images}", "falls with MMD (Figure 7)", instead, "why", partial(judge, what="mmd")


# ---------------------------------------------------------------- ours only


def _our_own() -> Iterator[Line]:
    def blocks(one: Sweep) -> Judged:
        block, unit = (one.task()[method] for method in ("Adapters, k x k", "conv_parallel"))
        failures = _failures({"`residual_parallel`": block, "`conv_parallel`": unit})
        if failures and learned(block) and learned(unit):
            failures += f"; {100 * (_mean(learned(block)) - _mean(learned(unit))):+.1f} among runs that learned"
        return f"{points(compare(block, unit), 'seeds')}{failures}", OURS

    def start(one: Sweep) -> Judged:
        published = one.task()["Conv-Adapter, published start"]
        seeds = {record["config"]["seed"] for record in published}
        zero = [record for record in one.task()["Conv-Adapter"] if record["config"]["seed"] in seeds]
        return points(compare(zero, published), "seeds"), OURS

    def rivals(one: Sweep) -> Judged:
        runs = one.task()
        if (adapters := small_adapters(runs)) is None:
            return "all schemes have more", OURS
        against = {name: compare(runs[adapters], runs[name]) for name in RIVALS}
        gaps = [
            f"{points(each, 'splits')}, against {RIVALS[name]} ({_share(runs[name], runs):.1%})"
            for name, each in against.items()
        ]
        both = {name: runs[name] for name in (adapters, *RIVALS)}
        return f"{'; '.join(gaps)}{_failures(both)}", OURS

    claim = "Conv-Adapter against training other small parts, or the last stage (their share of the parameters)"
    yield claim, "-", f"hand signs by student, {TRUNK}", "signs", rivals
    claim = "in inverted residuals `residual_parallel` against `conv_parallel`, at about as many parameters"
    yield claim, "-", f"position of drawn shapes, {LITE}", "position", blocks
    claim = "adapters that start at zero against the published random start, six epochs"
    yield claim, "-", f"solar cells, {LITE}", "quickstart", start


def _collapse() -> Finding:
    counts: dict[int, list[bool]] = {30: [], 150: []}  # warm-up's steps of 300
    for trial in read_records(RESULTS / "collapse.json").values():
        setting = {key: value for key, value in trial["config"].items() if key not in ("data", "task", "seed")}
        for steps, found in counts.items():
            if setting == collapse.RESIDUAL | {"steps": 300, "warmup_steps": steps}:
                found.append(collapse.collapsed(trial))
    shares = [(f"{sum(found)} of {len(found)}", wilson_interval(sum(found), len(found))) for found in counts.values()]
    short, half = (f"{count} runs collapse ({100 * low:.0f} to {100 * high:.0f} %)" for count, (low, high) in shares)
    claim = "with frozen BatchNorm a high rate can end at guessing: warm-up over a tenth and over half of the steps"
    ours = f"a tenth of the steps: {short}; half of them: {half}"
    return Finding(claim, "-", ours, f"position, orientation, count of drawn shapes, {LITE}", OURS)


# ---------------------------------------------------------------- in common


def small_adapters(runs: dict[str, list[dict]]) -> str | None:
    """Of the schemes with at most :data:`SHARE` of what full fine-tuning trains, the one that validation likes best."""
    small = [scheme for scheme in SCHEMES if scheme in runs and _share(runs[scheme], runs) <= SHARE]
    return max(small, key=lambda scheme: runs[scheme][0]["selection"]["val"], default=None)


def stronger_full(runs: dict[str, list[dict]]) -> str:
    """The mode of full fine-tuning that is better on the test images themselves, which errs against the adapters."""
    return max((mode for mode in FULL if mode in runs), key=lambda mode: _mean(runs[mode]))


def _share(found: list[dict], runs: dict[str, list[dict]]) -> float:
    return found[0]["trainable"] / runs[FULL[0]][0]["trainable"]


def _mean(found: list[dict]) -> float:
    return statistics.mean(record["test"]["accuracy"] for record in found)


def _near(difference: Comparison) -> str:
    """Whether the one is no more than :data:`MARGIN` below the other, with the whole interval.

    An interval below zero that is not within the margin is called *does not* also if it does not lie beyond the margin: that
    the one is worse is decided then, and that it is near is not.
    """
    if difference.low >= -MARGIN:
        return HOLDS
    return FAILS if difference.high < 0 else OPEN


def _sign(difference: Comparison) -> str:
    """Whether the one is above the other: in every pair, and beyond the interval of the mean."""
    if difference.low > 0 and difference.one_sign:
        return HOLDS
    return FAILS if difference.high < 0 and difference.one_sign else OPEN


def _weighed(verdict: str, runs: dict[str, list[dict]]) -> str:
    """A verdict on these runs, by method: open if one of them collapsed, and a hint if a method has fewer than five."""
    if any(collapsed(record) for found in runs.values() for record in found):
        return OPEN
    return f"{verdict} (a hint)" if verdict != OPEN and min(map(len, runs.values())) < ENOUGH else verdict


def _failures(runs: dict[str, list[dict]], metric: str = "accuracy") -> str:
    """Which methods had runs that collapsed, how many, and the mean of the others; nothing if there were none."""
    said = ""
    for name, found in runs.items():
        if failed := sum(map(collapsed, found)):
            others = [record["test"][metric] for record in learned(found)]
            rest = f", the others {100 * statistics.mean(others):.1f}" if others else ""
            said += f"; {name}: {failed} of {len(found)} runs collapsed{rest}"
    return said


def redrawn(one: Sweep) -> str:
    """What another seed means in a sweep of the central table: other ``splits`` of the photographs, or new ``drawings``."""
    return "drawings" if one.plan.cells[0].points[0]["data"] == "shapes" else "splits"


def over_new_photographs(one: Sweep, difference: Comparison, runs: list[dict]) -> Comparison | None:
    """A difference whose interval allows for splits that share images (Nadeau and Bengio); None where every seed draws anew."""
    if redrawn(one) == "drawings":
        return None
    return comparison(difference.differences, overlap=runs[0]["test"]["n"] / TRAINED)


def _corrected(one: Sweep, difference: Comparison, runs: dict[str, list[dict]]) -> str:
    wide = over_new_photographs(one, difference, next(iter(runs.values())))
    return f" ({100 * wide.low:+.1f} to {100 * wide.high:+.1f} for new photographs)" if wide else ""


def points(difference: Comparison, unit: str = "") -> str:
    """In points, with its interval; and over how many of what ``unit``."""
    over = f", {len(difference.differences)} {unit}" if unit else ""
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (difference.mean, difference.low, difference.high))  # no "-0.0"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){over}"


def _gaps(number: int, tunings: tuple[str, str], where: Callable[[dict], bool] = lambda cell: True) -> dict[str, float]:
    """In one of the paper's tables, by group of tasks: the second kind of tuning minus the first."""
    means = {(cell["tuning"], cell["group"]): cell["mean"] for cell in table(number) if where(cell)}
    groups = dict.fromkeys(group for _, group in means)
    return {group: means[tunings[1], group] - means[tunings[0], group] for group in groups}


def _listed(gaps: dict[str, float]) -> str:
    return ", ".join(f"{value:+.1f} {group.lower() if group != 'FGVC' else group}" for group, value in gaps.items())
