"""Records as Markdown tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from ..tasks.classification import wilson_interval
from .plans import Cell, Plan, at_edge, final_jobs, final_records, known_jobs, tuning_runs
from .records import trial_key
from .runs import describe
from .scores import learned, spread, spread_text

EDGE = "\\* The chosen learning rate or compression is the lowest or the highest of those tried."


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: a line a row, a column an entry of ``header``."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def methods_table(found: dict[str, list[dict]], edge: Collection[str] = ()) -> str:
    """Methods side by side, each over its seeds: mean, lowest and highest test accuracy.

    Those of ``edge``, whose rate or compression lies at the edge of what was tried, have a star.
    """
    full = max(records[0]["trainable"] for records in found.values())
    rows = []
    for name, records in found.items():
        size, (low, mean, high) = records[0]["trainable"], spread(records)
        balanced = spread(records, metric="balanced_accuracy")[1]
        accuracy = f"{mean:.1%} ({low:.1%} to {high:.1%}){_failures(records, 'accuracy')}"
        starred = f"{name}\\*" if name in edge else name
        rows.append([starred, f"{size:,}", f"{size / full:.1%}", accuracy, f"{balanced:.1%}"])
    header = ["method", "trained parameters", "of full", "test accuracy: mean (lowest to highest)", "balanced accuracy"]
    return markdown(header, rows) + (f"\n\n{EDGE}" if edge else "")


def sweep_table(plan: Plan, found: dict[str, dict]) -> str:
    """What a sweep found so far; below it each failure once, how many trials it cost, and the first of them."""
    header = ["task", "backbone", "method", "tried", "chosen", "trained parameters"]
    header.append(f"test {plan.metric.replace('_', ' ')} (%): mean ± standard deviation over seeds ({len(plan.seeds)})")
    header.append("95 % interval of one run")
    rows = []
    for cell in plan.cells:
        tuning = tuning_runs(cell, found, plan)
        tried = sum(all(trial_key(run) in found for run in runs) for runs in tuning)
        row = [cell.task, cell.backbone, cell.method, f"{tried} of {len(tuning)}"]
        finals, result = final_records(cell, found, plan), _result(cell, found, plan)
        if not finals or result == "-":
            rows.append([*row, "-", "-", result, "-"])
            continue
        config = finals[0]["config"]
        values = {key: (config | config["options"]).get(key, "default") for key, tried in cell.grid.items() if len(tried) > 1}
        row.append(", ".join(f"{key} {value}" for key, value in values.items()) + _star(cell, found, plan))
        row += [f"{finals[0]['trainable']:,}", result, _interval(finals, plan.metric)]
        rows.append(row)
    failures = defaultdict(list)
    for key in known_jobs(plan, found):
        if "error" in found.get(key, ()):
            failures[found[key]["error"]].append(describe(found[key]["config"]))
    below = ["", EDGE] if any(row[4].endswith("*") for row in rows) else []
    below += [f"Failed ({len(those)}): {error} First: {those[0]}" for error, those in failures.items()]
    return "\n".join([markdown(header, rows), *below])


def grid_table(plan: Plan, found: dict[str, dict]) -> str:
    """The same in short: a row a task, a column a method, each the test metric in %; a star where a choice lies at an edge."""
    scores: dict[str, dict[str, str]] = defaultdict(dict)
    for cell in plan.cells:
        result = _result(cell, found, plan)
        scores[cell.task][cell.method] = result + (_star(cell, found, plan) if result != "-" else "")
    methods = list(dict.fromkeys(cell.method for cell in plan.cells))
    rows = [[task, *(row[method] for method in methods)] for task, row in scores.items()]
    shown = markdown([f"test {plan.metric.replace('_', ' ')} (%)", *methods], rows)
    return shown + (f"\n\n{EDGE}" if "*" in shown else "")


def _star(cell: Cell, found: dict[str, dict], plan: Plan) -> str:
    return "\\*" if at_edge(cell, found, plan) else ""


def _result(cell: Cell, found: dict[str, dict], plan: Plan) -> str:
    """The test metric over the final runs, and how many of them have none; a dash until each was made."""
    jobs, finals = final_jobs(cell, found, plan), final_records(cell, found, plan)
    records = [found.get(trial_key(job["config"])) for job in jobs]
    if not jobs or None in records:
        return "-"
    scores = [100 * record["test"][plan.metric] for record in finals]
    parts = [spread_text(scores, digits=1) + _failures(finals, plan.metric)] if finals else []
    if lost := sum("error" in record for record in records):
        parts.append(f"{lost} of {len(records)} failed")
    return "; ".join(parts)


def _failures(finals: list[dict], metric: str) -> str:
    """How many runs collapsed, and the mean of the others; nothing if none did."""
    others = [record["test"][metric] for record in learned(finals)]
    if len(others) == len(finals):
        return ""
    mean = f", the others {sum(others) / len(others):.1%}" if others else ""
    return f"; {len(finals) - len(others)} of {len(finals)} collapsed{mean}"


def _interval(finals: list[dict], metric: str) -> str:
    """How far one run's number may be off because the test images are few."""
    if metric != "accuracy":
        return ""
    numbers = sorted(record["test"]["n"] for record in finals)  # where whole groups are in a split, splits differ in size
    n = round(sum(numbers) / len(numbers))
    mean = sum(record["test"]["accuracy"] for record in finals) / len(finals)
    low, high = wilson_interval(round(mean * n), n)
    images = f"{numbers[0]:,}" if numbers[0] == numbers[-1] else f"{numbers[0]:,} to {numbers[-1]:,}"
    return f"{low:.1%} to {high:.1%} of {images} images"
