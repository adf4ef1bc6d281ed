"""Where Conv-Adapter comes close to full fine-tuning, and whether the paper's two explanations hold on our records.

The paper (Section B.3, Figure 7): the less full fine-tuning changes the filters (a higher CKA of those before and after), and
the closer a task's images are to those of the pre-training (a lower MMD), the more Conv-Adapter gains over full fine-tuning.
"""

from __future__ import annotations

import statistics
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from ..profiling import modes_kept
from ..recipe import switched
from .plans import Plan, final_records
from .scores import collapsed
from .similarity import READINGS

ADAPTED, FULL, FIXED = "Conv-Adapter", "Full fine-tuning", "Full fine-tuning, one rate"  # the methods of configs/why.toml
EXPECTED = {"cka": 1, "mmd": -1}  # the sign that the paper's explanation gives the correlation with the gain


class Task(NamedTuple):
    """One task's numbers; accuracies are parts of one, means are over seeds."""

    name: str
    gains: list[float]  # test accuracy of Conv-Adapter minus full fine-tuning's, seed by seed
    accuracy: dict[str, float]  # by method
    failed: dict[str, int]  # by method, how many runs collapsed; they are in the means
    cka: dict[str, float]  # by reading of a kernel: mean over layers, full fine-tuning at its best rate
    cka_fixed: dict[str, float]  # the same at one rate for all tasks
    layers: dict[str, float]  # by layer, of the first reading
    mmd: float  # biased

    @property
    def gain(self) -> float:
        return statistics.mean(self.gains)


def tasks(plan: Plan, found: dict[str, dict]) -> list[Task]:
    """The tasks of ``configs/why.toml`` of which all final runs are recorded."""
    cells: dict[str, dict[str, list[dict]]] = {}
    for cell in plan.cells:
        runs = final_records(cell, found, plan)
        if len(runs) == len(cell.seeds):
            cells.setdefault(cell.task, {})[cell.method] = runs
    return [_task(name, runs) for name, runs in cells.items() if runs.keys() == {ADAPTED, FULL, FIXED}]


def _task(name: str, runs: dict[str, list[dict]]) -> Task:
    accuracies = {method: [run["test"]["accuracy"] for run in found] for method, found in runs.items()}
    means = {
        method: {
            reading: statistics.mean(statistics.mean(run["weight_cka"][reading].values()) for run in runs[method])
            for reading in READINGS
        }
        for method in (FULL, FIXED)
    }
    first = READINGS[0]
    layers = {
        layer: statistics.mean(run["weight_cka"][first][layer] for run in runs[FULL])
        for layer in runs[FULL][0]["weight_cka"][first]
    }
    return Task(
        name=name,
        gains=[one - other for one, other in zip(accuracies[ADAPTED], accuracies[FULL], strict=True)],
        accuracy={method: statistics.mean(values) for method, values in accuracies.items()},
        failed={method: sum(map(collapsed, found)) for method, found in runs.items()},
        cka=means[FULL],
        cka_fixed=means[FIXED],
        layers=layers,
        mmd=statistics.mean(run["mmd"]["biased"] for run in runs[FULL]),
    )


def rank_correlation(x: list[float], y: list[float]) -> tuple[float, float]:
    """Spearman's rank correlation of n pairs, and its exact two-sided p.

    p is the part of all n! orders of ``y`` whose correlation is at least as far from zero; n is at most 9.

    Raises:
        ValueError: for other than 3 to 9 pairs, or values that are all the same.
    """
    if len(x) != len(y) or not 3 <= len(x) <= 9:
        raise ValueError(f"3 to 9 pairs are compared in every order, got {len(x)} and {len(y)} values.")
    if len(set(x)) == 1 or len(set(y)) == 1:
        raise ValueError("all values are the same, so they have no order to compare.")
    one, other = (stats.zscore(stats.rankdata(values)) for values in (x, y))
    orders = np.array(list(permutations(other)))
    all_of_them = orders @ one / len(one)
    rho = float(one @ other / len(one))
    return rho, float((abs(all_of_them) >= abs(rho) - 1e-9).mean())


def sentence(what: str, rho: float, p: float, n: int) -> str:
    """What a correlation of ``what`` (a key of :data:`EXPECTED`) with the gain says about the paper's explanation."""
    numbers = f"rank correlation {rho:+.2f} over {n} tasks, exact p = {p:.2f}"
    if p > 0.05:
        return f"{numbers}: cannot be told from chance; these tasks neither support the explanation nor speak against it"
    if rho * EXPECTED[what] > 0:
        return f"{numbers}: in the direction that the paper describes, and not by chance alone"
    return f"{numbers}: against the direction that the paper describes, and not by chance alone"


@torch.no_grad()
def maps_with_and_without(model: nn.Module, image: Tensor, place: str) -> tuple[Tensor, Tensor]:
    """The output (C, H, W) of a module for one image (3, H, W), with the adapters and as the pre-trained network has it."""
    seen = []
    handle = model.get_submodule(place).register_forward_hook(lambda module, args, output: seen.append(output[0].float().cpu()))
    try:
        with modes_kept(model):
            model.eval()(image[None])
            with switched(model, None):
                model(image[None])
    finally:
        handle.remove()
    return seen[0], seen[1]
