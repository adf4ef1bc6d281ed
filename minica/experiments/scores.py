"""Scores over several runs, and over test images: their spread and their intervals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import numpy as np

from ..tasks.classification import wilson_interval


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
