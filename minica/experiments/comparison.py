"""The paper's tables of accuracies, with the same numbers from our records beside each of its rows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from ..backbones import ALIASES
from ..data import CATALOGUE
from .paper import table
from .scores import spread_text
from .tables import markdown

# By table of the paper: the columns of its CSV file that name a row, and the one that its columns are made of.
LAYOUTS = {
    1: (("tuning",), "group"),
    2: (("pretrain", "backbone", "tuning"), "group"),
    3: (("backbone", "tuning"), "shots"),
    **{number: (("tuning",), "dataset") for number in (11, 12, 13, 14)},
}
TUNING = {"full": "FT", "linear": "LP", "bias": "Bias", "prompt": "VPT"}
SCHEME_TUNING = {
    "conv_parallel": "Conv. Par.",
    "conv_sequential": "Conv. Seq.",
    "residual_parallel": "Res. Par.",
    "residual_sequential": "Res. Seq.",
}
CHOSEN = ("lr", "weight_decay", "options")  # what tuning decides, dataset by dataset
Finals = dict[tuple, list[dict]]  # (backbone, tuning, dataset, shots) -> its final runs, one a seed


def paper_table(number: int, records: Iterable[dict]) -> str:
    """One of the paper's classification tables as Markdown, under each of its rows the same numbers from our records.

    Accuracies in %, ours as mean and standard deviation over seeds; of a group, each seed's mean over the group's data
    sets.  A cell is ours only if every data set behind it has its final runs; all others are a dash and named below.

    Raises:
        ValueError: for a table that is not one of accuracies by method, or records of one cell under several recipes.
    """
    if number not in LAYOUTS:
        raise ValueError(f"records can fill Tables {', '.join(map(str, LAYOUTS))} of the paper, not {number!r}.")
    records = list(records)
    finals, (names, column) = _finals(records), LAYOUTS[number]
    rows: dict[tuple, list[dict]] = defaultdict(list)
    for cell in table(number):
        rows[tuple(cell[name] for name in names)].append(cell)
    columns = [cell[column] for cell in next(iter(rows.values()))]
    lines = []
    wanted, lacking, seeds = defaultdict(list), defaultdict(list), set()
    for row, cells in rows.items():
        printed, ours, sizes = [], [], {}
        for cell in cells:
            wins = "" if cell.get("wins") is None else f" ({cell['wins']})"
            printed.append("-" if cell["mean"] is None else spread_text([cell["mean"]], cell.get("std")) + wins)
            runs = {data: _runs(cell, data, finals) for data in _datasets(cell)}
            common = set.intersection(*({run["config"]["seed"] for run in found} for found in runs.values()))
            place = " ".join(map(str, row)) + (f", {cell['shots']} shots" if "shots" in cell else "")
            wanted[place] += runs
            lacking[place] += [data for data, found in runs.items() if not found]
            if not common:
                ours.append("-")
                continue
            seeds.add(len(common))
            by_seed = [statistics.mean(_accuracies(found)[seed] for found in runs.values()) for seed in sorted(common)]
            sizes[cell[column]] = statistics.mean(found[0]["trainable"] for found in runs.values()) / 1e6
            ours.append(spread_text(by_seed) + _wins(cell, runs, finals))
        mean_size = f"{_mean_size(sizes):.2f}" if len(sizes) == len(columns) else "-"
        lines.append([*row, "paper", f"{cells[0]['params']:.2f}", *printed])
        lines.append([*([""] * len(row)), "ours", mean_size, *ours])
    shown = markdown([*names, "", "# Param (M)", *columns], lines)
    return "\n".join([shown, "", *_below(wanted, lacking, seeds, records)])


def _finals(records: Iterable[dict]) -> Finals:
    """The final runs of each cell, under the choice that validation likes best if there were several."""
    found: Finals = defaultdict(list)
    for record in records:
        config = record["config"]
        if config.get("phase") == "final" and "error" not in record and config["data"] in CATALOGUE:
            tuning = TUNING.get(config["method"]) or SCHEME_TUNING.get(config["options"].get("scheme", "conv_parallel"))
            backbone = ALIASES.get(config["backbone"], config["backbone"])
            found[backbone, tuning, config["data"], config.get("shots")].append(record)
    for (_, tuning, data, _), runs in found.items():
        recipes = [{key: value for key, value in run["config"].items() if key not in (*CHOSEN, "seed")} for run in runs]
        for key in recipes[0].keys() | recipes[-1].keys():
            if len(values := sorted({str(recipe.get(key)) for recipe in recipes})) > 1:
                raise ValueError(
                    f"the records have final runs of {tuning} on {data} with {key} {' and '.join(values)}; name the folder of "
                    "one sweep, so that one table has one recipe."
                )
        best = max(runs, key=lambda run: run["selection"]["val"])
        runs[:] = [run for run in runs if all(run["config"][key] == best["config"][key] for key in CHOSEN)]
    return found


def _datasets(cell: dict) -> list[str]:
    """The data sets behind one cell of the paper's."""
    group, name = cell.get("group", "Few-Shot"), cell.get("dataset")
    return [data for data, facts in CATALOGUE.items() if facts.group == group and name in (None, facts.paper)]


def _runs(cell: dict, data: str, finals: Finals, tuning: str | None = None) -> list[dict]:
    tuning = tuning or cell["tuning"]
    backbone = ALIASES.get(cell["model"], cell["model"])
    return finals.get((backbone, "Conv. Par." if tuning == "CA" else tuning, data, cell.get("shots")), [])


def _accuracies(runs: list[dict]) -> dict[int, float]:
    return {run["config"]["seed"]: 100 * run["test"]["accuracy"] for run in runs}


def _mean(runs: list[dict]) -> float:
    return statistics.mean(_accuracies(runs).values())


def _wins(cell: dict, runs: dict[str, list[dict]], finals: Finals) -> str:
    """On how many data sets full fine-tuning is beaten, where the paper counts it and ours is there."""
    full = {data: _runs(cell, data, finals, "FT") for data in runs}
    if cell.get("wins") is None or not all(full.values()):
        return ""
    return f" ({sum(_mean(runs[data]) > _mean(full[data]) for data in runs)})"


def _mean_size(sizes: dict) -> float:
    """As the paper's Tables 1 and 2 have it: FGVC counts half, the three groups of VTAB-1k the other half by data sets."""
    if "FGVC" not in sizes:
        return statistics.mean(sizes.values())
    weights = {"FGVC": 1 / 2, "Natural": 7 / 38, "Specialized": 4 / 38, "Structured": 8 / 38}
    return sum(weights[group] * size for group, size in sizes.items())


def _below(wanted: dict[str, list[str]], lacking: dict[str, list[str]], seeds: set[int], records: list[dict]) -> list[str]:
    """What a reader must know of the numbers above."""
    lines = []
    if seeds:
        number = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        lines.append(f"Ours: test accuracy, mean ± standard deviation over seeds ({number}).")
    if nothing := [place for place, missing in lacking.items() if missing == wanted[place]]:
        lines.append(f"Nothing recorded yet: {'; '.join(nothing)}.")
    for place, missing in lacking.items():
        if missing and place not in nothing:
            lines.append(f"Not recorded yet, {place}: {', '.join(missing)}.")
    if failed := [record for record in records if "error" in record]:
        lines.append(f"{len(failed)} of {len(records)} trials failed, the first with {failed[0]['error']}")
    return lines
