"""What results allow to say: sentences that are computed, so that they are right whichever way the results fall."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..experiments.scores import ENOUGH, bootstrap_interval, comparison, learned


def differences(one: Sequence[dict], other: Sequence[dict], metric: str = "accuracy") -> list[float]:
    """In points, how far the records ``one`` are above ``other`` on test, seed by seed; of the seeds that both have."""
    theirs = {run["config"]["seed"]: run["test"][metric] for run in other}
    seeds = [(run, theirs[run["config"]["seed"]]) for run in one if run["config"]["seed"] in theirs]
    return [100 * (run["test"][metric] - value) for run, value in seeds]


def verdict(points: Sequence[float]) -> str:
    """What paired differences say: all of one sign is a hint, with five seeds or more beyond the spread."""
    weight = "beyond the spread" if len(points) >= ENOUGH else "a hint"
    number = f"all {len(points)} seeds"
    if len(points) < 2:
        return "a single seed says nothing about the spread"
    if min(points) > 0:
        return f"above in {number}, {weight}"
    if max(points) < 0:
        return f"below in {number}, {weight}"
    return f"no difference that {number} agree on"


def ranges(one: Sequence[float], other: Sequence[float]) -> str:
    """Whether the ranges of two lists of results overlap: for runs on fixed data, whose seeds are no pairs."""
    if min(one) > max(other):
        return "above"
    return "below" if max(one) < min(other) else "not told apart"


def by_seeds(found: Mapping[str, Sequence[dict]], one: str, other: str, metric: str = "accuracy") -> str:
    """How far one method is above another on fixed data, as named in ``found``, and whether beyond the spread over seeds.

    Beyond means that the two ranges do not overlap, with five seeds or more of each; with fewer it is called a hint.
    """
    values = [[100 * run["test"][metric] for run in found[name]] for name in (one, other)]
    gap, where = statistics.mean(values[0]) - statistics.mean(values[1]), ranges(*values)
    ends = " against ".join(f"{min(of):.1f} to {max(of):.1f} %" for of in values)
    said = f"**{one}** minus **{other}**: {gap:+.1f} points on average"
    if (fewest := min(map(len, values))) < 2:
        return f"{said}; a single seed says nothing about the spread."
    if where == "not told apart":
        return f"{said}; not told apart, since the ranges over seeds overlap ({ends})."
    weight = "beyond the spread over seeds" if fewest >= ENOUGH else f"a hint from {fewest} seeds"
    return f"{said}; {where}, {weight} ({ends})."


def failures(found: Mapping[str, Sequence[dict]]) -> str:
    """Which runs stayed at guessing, with one answer for every test image, and the others' means."""
    lines, total = [], sum(map(len, found.values()))
    for name, runs in found.items():
        others = [run["test"]["accuracy"] for run in learned(runs)]
        if len(others) < len(runs):
            rest = f"the mean of the others is {100 * statistics.mean(others):.1f} %" if others else "no run is left"
            count = f"{len(runs) - len(others)} of {len(runs)} runs stayed at guessing"
            lines.append(f"**{name}**: {count} (and count in its mean); {rest}.")
    return " ".join(lines) or f"None of the {total} runs stayed at guessing."


def told_apart(one: str, right: Tensor | np.ndarray, other: str, other_right: Tensor | np.ndarray) -> str:
    """Whether a single run of each can be told apart by the images that both answered: the difference with its interval.

    Args:
        right: of the run called ``one``, whether it was right about each image (N,).
    """
    gap = np.asarray(right, float) - np.asarray(other_right, float)
    low, high = (100 * end for end in bootstrap_interval(gap))
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    counted = f"Of {len(gap):,} images, only {one} is right on {better}, only {other} on {worse}"
    found = f"a difference of {100 * gap.mean():+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    if low > 0 or high < 0:
        leader = one if low > 0 else other
        return f"{counted}: {found}. Zero is outside: on images like these, this run of {leader} is the better one."
    return f"{counted}: {found}. Zero is inside: these images cannot tell the two runs apart."


def over_draws(gaps: Mapping[int, Sequence[float]], what: str, comparisons: int) -> str:
    """What draw-by-draw differences say at each number of shots, by Student's 95 % interval.

    Also which of them would stand out among as many ``comparisons`` (Bonferroni).  The average over the numbers of shots has
    its interval over draws.

    Args:
        gaps: shots -> differences in points, one a draw, the draws in one order.
        what: the difference in words, such as ``"Adapters against the probe"``.
    """
    clear = [shots for shots, points in gaps.items() if _clear(points)]
    above, below = ([n for n in clear if sign * statistics.mean(gaps[n]) > 0] for sign in (1, -1))
    whole = comparison({draw: statistics.mean(points) for draw, points in enumerate(zip(*gaps.values(), strict=True))})
    mean, low, high = (round(value, 1) + 0.0 for value in whole[1:])  # no "-0.0"
    said = [f"{word} with {_images(shots)} of each class" for word, shots in (("better", above), ("worse", below)) if shots]
    left = [shots for shots in clear if _clear(gaps[shots], comparisons)]
    holds = f"this holds with {_images(left)} of each class" if left else "none of this is left"
    kept = f" After a correction for {comparisons} comparisons, {holds}." if clear else ""
    found = " and ".join(said) or "no difference found at any number of shots"
    return f"**{what}**: {mean:+.1f} points on average ({low:+.1f} to {high:+.1f}); {found}.{kept}"


def _clear(points: Sequence[float], comparisons: int = 1) -> bool:
    one = comparison(dict(enumerate(points)), level=1 - 0.05 / comparisons)
    return one.low > 0 or one.high < 0


def _images(shots: Sequence[int]) -> str:
    return f"{_listed(shots)} image{'' if list(shots) == [1] else 's'}"


def _listed(shots: Sequence[int]) -> str:
    return ", ".join(map(str, shots[:-1])) + (" and " if len(shots) > 1 else "") + str(shots[-1])
