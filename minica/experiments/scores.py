"""Scores over several runs, and over test images: their spread and their intervals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..tasks.classification import wilson_interval

ENOUGH = 5  # seeds, splits or draws from which on what all of them say is called more than a hint


class Comparison(NamedTuple):
    """Two methods on the same splits, draws or seeds, run by run; differences and interval are of a metric in [0, 1]."""

    differences: dict[int, float]  # seed -> the one minus the other
    mean: float
    low: float  # of the 95 % interval of the mean over splits or seeds (Student's t)
    high: float

    @property
    def one_sign(self) -> bool:
        """Whether every run differs in the same direction; with fewer than five runs that is a hint."""
        return all(d > 0 for d in self.differences.values()) or all(d < 0 for d in self.differences.values())

    def verdict(self, margin: float) -> str:
        """Where the interval lies: inside +-``margin``, else on one side of zero, else it cannot be told."""
        if -margin <= self.low and self.high <= margin:
            return f"within {100 * margin:g} points"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "cannot be told"


def compare(one: Iterable[dict], other: Iterable[dict], metric: str = "accuracy", split: str = "test") -> Comparison:
    """The records ``one`` minus the records ``other``, paired by their seeds.

    Raises:
        ValueError: unless the two have the same seeds, at least two.
    """
    pairs = [{record["config"]["seed"]: record[split][metric] for record in found} for found in (one, other)]
    if pairs[0].keys() != pairs[1].keys() or len(pairs[0]) < 2:
        seeds = " and ".join(str(sorted(found)) for found in pairs)
        raise ValueError(f"runs are compared seed by seed, over two seeds at least, got {seeds}.")
    return comparison({seed: pairs[0][seed] - pairs[1][seed] for seed in sorted(pairs[0])})


def comparison(differences: dict[int, float], level: float = 0.95, overlap: float = 0.0) -> Comparison:
    """Paired differences, at least two, with Student's interval of their mean, which holds it with probability ``level``.

    Args:
        overlap: number of test images over number of training images, where every run has a random split of its own of the same
            images.  Such runs are no independent draws; the interval is then Nadeau and Bengio's (2003), for new images.
    """
    values = list(differences.values())
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values) * (1 + len(values) * overlap) ** 0.5
    mean = statistics.mean(values)
    return Comparison(differences, mean, float(mean - half), float(mean + half))


def collapsed(record: dict) -> bool:
    """Whether a trained classifier gives the same answer for every test image; such a run has failed.

    Records say so as ``constant``, which older ones lack.  There, and where scores differ but not the answer, the metrics tell:
    of C classes one has the recall 1 and the others 0, and with the share p of that class macro F1 is 2 p / (1 + p) / C.
    """
    scores = record["test"]
    if scores.get("constant"):
        return True
    share, recall, f1 = (scores.get(metric, 0) for metric in ("accuracy", "balanced_accuracy", "macro_f1"))
    if not share or not recall:
        return False
    classes = 1 / recall
    return round(classes) > 1 and abs(classes - round(classes)) < 1e-3 and abs(f1 / recall - 2 * share / (1 + share)) < 1e-4


def learned(found: Sequence[dict]) -> list[dict]:
    """The records whose runs have not :func:`collapsed`."""
    return [record for record in found if not collapsed(record)]


def spread(found: Iterable[dict], split: str = "test", metric: str = "accuracy") -> tuple[float, float, float]:
    """(lowest, mean, highest) of a metric over records that differ in their seeds."""
    values = [record[split][metric] for record in found]
    return min(values), sum(values) / len(values), max(values)


def spread_text(values: list[float], std: float | None = None, digits: int = 2) -> str:
    """``mean ± standard deviation``; of one value, there is no deviation."""
    if std is None and len(values) > 1:
        std = statistics.stdev(values)
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if std is None else f"{mean} ± {std:.{digits}f}"


def bootstrap_interval(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of a mean over test images ``values`` (N,): percentile bootstrap, with the same draws every time.

    A value may be an image's mean over several runs, or the difference of two methods' means: then the runs are fixed, and
    what varies is which images happened to be in the test.
    """
    often = np.random.RandomState(0).multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    low, high = np.percentile(often @ values / len(values), (2.5, 97.5))
    return float(low), float(high)


def balanced_interval(right: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean recall over classes, of images (N,) that were guessed ``right``.

    The classes' Wilson intervals combined by their distances from the recalls (MOVER, Zou and Donner 2008).  A bootstrap would
    have no width where every class is all right or all wrong, as in small tests.
    """
    of_class = [right[labels == label] for label in np.unique(labels)]
    recalls = np.array([part.mean() for part in of_class])
    low, high = np.array([wilson_interval(int(part.sum()), len(part)) for part in of_class]).T
    below, above = (np.sqrt(((recalls - end) ** 2).sum()) / len(recalls) for end in (low, high))
    return float(recalls.mean() - below), float(recalls.mean() + above)


def per_image_accuracy(found: Iterable[dict]) -> np.ndarray:
    """Which share of these runs was right about each test image ``(N,)``; of records that list the ``wrong`` images."""
    found = list(found)
    right = np.ones((len(found), found[0]["test"]["n"]))
    for row, record in zip(right, found, strict=True):
        row[record["test"]["wrong"]] = 0
    return right.mean(0)
