"""What the tables of docs/results.md say, in sentences that are right whichever way the records fall."""

from __future__ import annotations

from statistics import mean

from minica.adapter_files import ADAPTERS
from minica.course import verdicts
from minica.experiments.findings import (
    FULL,
    MARGIN,
    complete,
    over_new_photographs,
    points,
    redrawn,
    small_adapters,
    stronger_full,
)
from minica.experiments.scores import bootstrap_interval, compare, per_image_accuracy
from minica.schemes import SCHEMES

NOT_YET = "Not run yet."
PUBLISHED = 88.42  # % of Deitsch et al. 2019, VGG-19
SHORT = {"LP": "linear probe", "Bias": "biases", "VPT": "prompts", "FT": "full fine-tuning"}
SHORT |= {"Last stage": "training the last stage", "Norms": "training the norms", "LoRA": "LoRA"}
SHORT["FT, statistics frozen"] = "full fine-tuning, statistics frozen"


def bullets(lines: list[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def quickstart() -> str:
    """Adapters against every other method of the first notebook."""
    if (one := complete("quickstart")) is None:
        return NOT_YET
    found, ours = one.task(), "Conv-Adapter"
    return bullets([verdicts.by_seeds(found, ours, other) for other in found if other != ours])


def few_shot(name: str, ours: str) -> str:
    """Draw by draw, adapters against every other method at each number of shots."""
    if (one := complete(name)) is None:
        return NOT_YET
    shots = {cell.task: cell.points[0]["shots"] for cell in one.plan.cells}
    others, lines = [method for method in dict.fromkeys(method for _, method in one.runs) if method != ours], []
    for other in others:
        gaps = {
            n: verdicts.differences(one.runs[task, ours], one.runs[task, other], one.plan.metric) for task, n in shots.items()
        }
        lines.append(verdicts.over_draws(gaps, f"Adapters against {_inside(other)}", len(shots) * len(others)))
    return bullets(lines)


def vtab() -> str:
    """Task by task, adapters against a probe and full fine-tuning, with the runs that failed."""
    if (one := complete("vtab_packaged")) is None:
        return NOT_YET
    lines = []
    for task in ("defect", "position", "orientation", "count"):
        found = {SHORT.get(method, "Conv-Adapter"): runs for method, runs in one.task(task).items()}
        against = " ".join(verdicts.by_seeds(found, "Conv-Adapter", other) for other in (SHORT["LP"], SHORT["FT"]))
        lines.append(f"{task.capitalize()}. {against} {verdicts.failures(found)}")
    return bullets(lines)


def solar_cells() -> str:
    """Both methods with an interval over the test images, beside the published number; and the adapter that is shipped."""
    if (one := complete("solar_cells")) is None:
        return NOT_YET
    found = {"Conv-Adapter": one.task()["CA"], "full fine-tuning": one.task()["FT"]}
    right, lines = {name: per_image_accuracy(runs) for name, runs in found.items()}, []
    for name, values in right.items():
        low, high = (100 * end for end in bootstrap_interval(values))
        where = "below" if high < PUBLISHED else "above" if low > PUBLISHED else "not distinguishable from"
        lines.append(
            f"**{name}**: {100 * values.mean():.1f} %, {low:.1f} to {high:.1f} % over the test images: {where} {PUBLISHED} %."
        )
    gap = right["Conv-Adapter"] - right["full fine-tuning"]
    low, high = (100 * end for end in bootstrap_interval(gap))
    lines.append(f"The difference of the two: {100 * gap.mean():+.1f} points, {low:+.1f} to {high:+.1f}.")
    first = found["Conv-Adapter"][0]["test"]["accuracy"]
    size = sum(file.stat().st_size for file in (ADAPTERS / "solar_cells").iterdir()) / 1e6
    lines.append(f"The adapter of the first seed, {first:.1%} and {size:.1f} MB, comes with the package.")
    return bullets(lines)


def central(name: str) -> str:
    """Of the central table: the adapters that validation chose, against every method that is none of the four schemes; of full
    fine-tuning against the mode that is stronger on the test images, which errs against the adapters."""
    if (one := complete(name)) is None:
        return NOT_YET
    found = one.task()
    if (ours := small_adapters(found)) is None:
        return "No scheme that was tuned has at most 5 % of the network's parameters."
    full, lines = stronger_full(found), []
    for other in (method for method in found if method not in {*SCHEMES, *FULL} - {full}):
        difference, unit = compare(found[ours], found[other]), redrawn(one)
        each = ", ".join(f"{100 * value:+.1f}" for value in difference.differences.values())
        stronger = ", the stronger mode on these test images" if other == full else ""
        line = f"`{ours}` minus {_inside(other)}{stronger}, {unit[:-1]} by {unit[:-1]}: {each}; {points(difference)}: "
        line += f"{difference.verdict(MARGIN)}."
        if wide := over_new_photographs(one, difference, found[ours]):
            new = f"{100 * wide.low:+.1f} to {100 * wide.high:+.1f}, since splits overlap"
            line += f" For new photographs {new} (Nadeau and Bengio): {wide.verdict(MARGIN)}."
        lines.append(line)
    return bullets(lines)


def split_by_image() -> str:
    """How much better each method looks on hands that it has seen, at the settings that were chosen on hands it has not."""
    images, students = complete("signs_images"), complete("signs")
    if images is None or students is None:
        return NOT_YET
    lines = []
    for method, found in images.task().items():
        seen, new = (100 * mean(run["test"]["accuracy"] for run in runs) for runs in (found, students.task()[method]))
        lines.append(f"{method}: {seen:.1f} % split by image, {new:.1f} % split by student, {seen - new:+.1f} points.")
    return bullets(lines)


def position_peft() -> str:
    """The adapters of the position task against the rivals that the library peft trains."""
    rivals, adapters = complete("position_peft"), complete("position")
    if rivals is None or adapters is None:
        return NOT_YET
    found = rivals.task() | {"`conv_parallel`": adapters.task()["conv_parallel"]}
    found["`residual_parallel`"] = adapters.task()["Adapters, k x k"]
    pairs = [(ours, other) for ours in ("`conv_parallel`", "`residual_parallel`") for other in rivals.task()]
    return bullets([verdicts.by_seeds(found, *pair) for pair in pairs])


def _inside(method: str) -> str:
    """A method's name within a sentence."""
    return SHORT.get(method) or method[0].lower() + method[1:]
