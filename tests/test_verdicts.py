"""Sentences about results: each is tried on results that fall either way."""

import numpy as np
import pytest
import torch

from minica.course import verdicts


def runs(accuracies, **more):
    """Records of seeds 0, 1, ...; None where one is missing."""
    return [
        {"config": {"seed": seed}, "test": {"accuracy": value} | more}
        for seed, value in enumerate(accuracies)
        if value is not None
    ]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([1, 2, 0.1], "above in all 3 seeds, a hint"),
        ([-1, -2, -0.1], "below in all 3 seeds, a hint"),
        ([1, 2, -0.1], "no difference that all 3 seeds agree on"),
        ([1, 0, 2], "no difference that all 3 seeds agree on"),
        ([1] * 5, "above in all 5 seeds, beyond the spread"),
        ([1], "a single seed says nothing about the spread"),
    ],
)
def test_what_differences_allow_to_say(points, said):
    assert verdicts.verdict(points) == said


def test_differences_are_of_the_same_seed():
    ours, frozen, full = runs([None, 0.65, 0.60]), runs([0.50, 0.60, 0.70]), runs([0.5])
    assert verdicts.differences(ours, frozen) == pytest.approx([5.0, -10.0])
    assert verdicts.differences(ours, full) == []


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (
            [0.71, 0.72, 0.73, 0.74, 0.75],
            "+10.0 points on average; above, beyond the spread over seeds (71.0 to 75.0 % against ",
        ),
        (
            [0.59, 0.62, 0.7, 0.6, 0.6],
            "-0.8 points on average; not told apart, since the ranges over seeds overlap (59.0 to ",
        ),
        ([0.5] * 5, "-13.0 points on average; below, beyond the spread over seeds ("),
        ([0.71, 0.8], "+12.5 points on average; above, a hint from 2 seeds (71.0 to "),
        ([0.9], "+27.0 points on average; a single seed says nothing about the spread."),
    ],
)
def test_one_method_and_another_on_fixed_data(ours, said):
    theirs = runs([0.61, 0.62, 0.63, 0.64, 0.65])
    assert verdicts.by_seeds({"A": runs(ours), "B": theirs}, "A", "B").startswith(f"**A** minus **B**: {said}")


def test_runs_that_stay_at_guessing_are_counted():
    assert verdicts.failures({"A": runs([0.9, 0.8]), "B": runs([0.1])}) == "None of the 3 runs stayed at guessing."
    some, all_of_them = runs([0.9, None, 0.8]) + runs([0.062], constant=True), runs([0.06, 0.07], constant=True)
    assert verdicts.failures({"A": some, "B": all_of_them, "C": runs([0.05])}) == (
        "**A**: 1 of 3 runs stayed at guessing (and count in its mean); the mean of the others is 85.0 %. "
        "**B**: 2 of 2 runs stayed at guessing (and count in its mean); no run is left."
    )


def test_two_networks_by_the_images_that_both_answered():
    right = torch.arange(100) < 80
    better = torch.arange(100) < 95
    said = verdicts.told_apart("adapters", better, "the probe", right)
    assert said.startswith(
        "Of 100 images, only adapters is right on 15, only the probe on 0: a difference of +15.0 points, 95 % interval +"
    )
    assert said.endswith("Zero is outside: on images like these, this run of adapters is the better one.")
    assert "this run of the probe is the better" in verdicts.told_apart("adapters", right, "the probe", better)
    alike = verdicts.told_apart("adapters", right, "the probe", torch.roll(right, 1))
    assert "+0.0 points" in alike and alike.endswith("these images cannot tell the two runs apart.")


def test_draw_by_draw_and_after_a_correction():
    draws = np.random.RandomState(0).randn(8)
    nothing = (draws - draws.mean()) / draws.std(ddof=1)  # half the interval is 0.84, after the correction 1.45
    sure, hint = nothing + 20, nothing + 1.1
    said = verdicts.over_draws({1: sure, 4: nothing, 8: hint}, "A against B", comparisons=12)
    assert said.startswith("**A against B**: +") and "better with 1 and 8 images of each class." in said
    assert said.endswith("After a correction for 12 comparisons, this holds with 1 image of each class.")
    said = verdicts.over_draws({1: -sure, 2: hint}, "A against B", comparisons=12)
    assert "better with 2 images of each class and worse with 1 image of each class" in said
    assert "none of this is left" in verdicts.over_draws({2: hint}, "A against B", comparisons=12)
    said = verdicts.over_draws({1: nothing, 2: nothing}, "A against B", comparisons=2)
    assert said == "**A against B**: +0.0 points on average (-0.8 to +0.8); no difference found at any number of shots."
