"""Comparisons of methods over runs: intervals by hand, failures counted."""

import numpy as np
import pytest
import torch

from minica.experiments.records import RESULTS, read_records
from minica.experiments.scores import collapsed, compare, comparison, learned
from minica.experiments.tables import methods_table
from minica.tasks.classification import metrics


def records(*accuracies, seeds=None, constant=()):
    return [
        {
            "config": {"seed": seed},
            "trainable": 10,
            "test": {"accuracy": value, "balanced_accuracy": value, "constant": seed in constant},
        }
        for seed, value in zip(seeds or range(len(accuracies)), accuracies, strict=True)
    ]


def test_an_interval_over_five_splits_by_hand():
    found = compare(records(0.92, 0.93, 0.95, 0.94, 0.96), records(0.9, 0.9, 0.9, 0.9, 0.9))
    assert found.mean == pytest.approx(0.04)
    # Differences .02 to .06: standard deviation .0158114, of the mean .0070711; t(0.975, 4 degrees of freedom) = 2.776445
    assert (found.low, found.high) == pytest.approx((0.04 - 2.776445 * 0.0070711, 0.04 + 2.776445 * 0.0070711), abs=1e-6)
    assert found.one_sign and list(found.differences) == [0, 1, 2, 3, 4]


def test_runs_are_paired_by_their_seeds_and_not_by_their_order():
    found = compare(records(0.5, 0.7, seeds=(1, 2)), records(0.6, 0.4, seeds=(2, 1)))
    assert list(found.differences.values()) == pytest.approx([0.1, 0.1])
    assert found.low == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.899, 0.905, 0.895, 0.9, 0.903), "within 2 points"),
        ((0.95, 0.96, 0.95, 0.94, 0.95), "better"),
        ((0.85, 0.86, 0.85, 0.84, 0.85), "worse"),
        ((0.99, 0.8, 0.95, 0.82, 0.93), "cannot be told"),
    ],
)
def test_verdicts(ours, verdict):
    found = compare(records(*ours), records(0.9, 0.9, 0.9, 0.9, 0.9))
    assert found.verdict(0.02) == verdict
    assert found.one_sign == (verdict in ("better", "worse"))


def test_a_margin_is_part_of_the_verdict():
    found = compare(records(0.899, 0.905, 0.895, 0.9, 0.903), records(0.9, 0.9, 0.9, 0.9, 0.9))
    assert found.verdict(0.001) == "cannot be told"


@pytest.mark.parametrize("other", [records(0.9, 0.9, seeds=(0, 5)), records(0.9)])
def test_other_seeds_are_refused(other):
    with pytest.raises(ValueError, match="seed by seed"):
        compare(records(0.9, 0.8), other)


def test_a_mean_over_failed_runs_never_stands_alone():
    found = records(0.9, 0.1, 0.94, constant=(1,))
    assert [collapsed(record) for record in found] == [False, True, False] and len(learned(found)) == 2
    shown = methods_table({"Adapters": found, "Probe": records(0.5, 0.5, 0.5)})
    assert "64.7% (10.0% to 94.0%); 1 of 3 collapsed, the others 92.0%" in shown
    assert "50.0% (50.0% to 50.0%) |" in shown
    assert "2 of 2 collapsed |" in methods_table({"Adapters": records(0.1, 0.1, constant=(0, 1))})


@pytest.mark.parametrize("guess", range(4))
def test_one_answer_for_every_image_is_a_collapse_whatever_the_record_says_of_it(guess):
    """Older records have no ``constant``, and scores may differ where the answer does not."""
    labels = torch.tensor([0] * 5 + [1] * 7 + [2] * 2 + [3] * 6)
    noise = 0.1 * torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    same = metrics(noise + torch.nn.functional.one_hot(torch.tensor(guess), 4), labels)
    assert collapsed({"test": same}) and collapsed({"test": same | {"constant": False}})
    guesses = torch.full((20,), guess)
    guesses[labels == (guess + 1) % 4] = (guess + 1) % 4
    assert not collapsed({"test": metrics(torch.nn.functional.one_hot(guesses, 4).float(), labels)})


def test_the_recorded_runs_that_stayed_at_guessing_are_found():
    """By hand in minica/results: two of notebook 06's, both at 6.7 % of 16 classes; of the first notebook's one of full
    fine-tuning with frozen statistics at its highest rate, which calls every cell functional."""
    vtab, first = (read_records(RESULTS / f"{name}.json").values() for name in ("vtab_packaged", "quickstart"))
    dead = [record["test"]["accuracy"] for record in vtab if "test" in record and collapsed(record)]
    assert dead == [0.067, 0.067]
    (one,) = filter(collapsed, first)
    assert one["config"]["options"] == {"running_stats": False} and one["config"]["lr"] == 2e-3
    assert one["test"]["accuracy"] == pytest.approx(451 / 656)


def test_an_interval_over_splits_that_overlap_is_wider():
    """Nadeau and Bengio: the variance of the mean is (1 / n + test / train) times that of the differences."""
    points = {seed: value for seed, value in enumerate((0.010, 0.020, 0.030, 0.015, 0.025))}
    plain, wide = comparison(points), comparison(points, overlap=1062 / 1000)
    assert wide.mean == plain.mean == pytest.approx(0.02)
    spread = np.std(list(points.values()), ddof=1)
    assert wide.high - wide.mean == pytest.approx(2.776445 * spread * (1 / 5 + 1.062) ** 0.5, rel=1e-5)
    assert plain.high - plain.mean == pytest.approx(2.776445 * spread / 5**0.5, rel=1e-5)
