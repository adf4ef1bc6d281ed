"""The table of findings: each is judged by its records, in every direction, and says so where there are none."""

import re

import pytest

from minica.experiments import CONFIGS, read_plan
from minica.experiments import findings as F
from minica.experiments.plans import final_records, pending


def made_up(name, accuracy):
    """A sweep with records of all its runs, not results of anything: ``accuracy(config)`` and, if it has them, parameters."""
    plan, found = read_plan(CONFIGS / f"{name}.toml", rehearse=False), {}
    while todo := pending(plan, found):
        for key, job in todo.items():
            value, trainable = accuracy(job["config"])
            value += 0.001 * job["config"]["seed"]
            scores = {metric: value for metric in ("accuracy", "balanced_accuracy", "ap", "miou")} | {
                "constant": False,
                "n": 1000,
            }
            found[key] = job | {"trainable": trainable, "val": scores, "test": scores}
    return F.Sweep(plan, found, {(cell.task, cell.method): final_records(cell, found, plan) for cell in plan.cells})


def judged(name, accuracy):
    """Our column and the verdict of the findings that look at this one sweep."""
    one = made_up(name, accuracy)
    found = F.findings(lambda asked: one if asked == name else None)
    return [(finding.claim, finding.ours, finding.verdict) for finding in found if finding.verdict not in (F.ABSENT, F.OURS)]


def signs(adapters=0.95, full=0.955, probe=0.8, size=20_000, residual=0.94):
    def accuracy(config):
        if config["method"] == "conv_adapter":
            unit = config["options"]["scheme"].startswith("conv")
            return (adapters if unit else residual), (size if unit else 10 * size)
        return {"linear": probe, "full": full}.get(config["method"], 0.7), 1_000_000 if config["method"] == "full" else 10

    return accuracy


@pytest.mark.parametrize(
    ("given", "near", "above"),
    [
        (dict(), F.HOLDS, F.HOLDS),
        (dict(adapters=0.97), F.HOLDS, F.HOLDS),
        (dict(adapters=0.90), F.FAILS, F.HOLDS),
        (dict(adapters=0.95, probe=0.96), F.HOLDS, F.FAILS),
        (dict(size=60_000), F.FAILS, F.FAILS),  # more than 5 % of the parameters
    ],
)
def test_the_central_findings(given, near, above):
    (claim, ours, first), (_, _, second), *_ = judged("signs", signs(**given))
    assert (first, second) == (near, above) and "at most 5%" in claim
    assert "all schemes have more" in ours or "`conv_parallel`, 2.0%, against full fine-tuning" in ours


def test_the_better_one_on_validation_among_those_that_are_small():
    """The residual schemes are better and have 20 %, so they are not compared."""
    (_, ours, verdict), *_ = judged("signs", signs(residual=0.99))
    assert "`conv_parallel`" in ours and verdict == F.HOLDS


def test_full_fine_tuning_counts_in_its_stronger_mode():
    def accuracy(config):
        frozen = config["options"].get("running_stats") is False
        return (0.99, 1_000_000) if config["method"] == "full" and frozen else signs()(config)

    (_, ours, verdict), *_ = judged("signs", accuracy)
    assert "statistics frozen" in ours and ours.startswith("-4.0 (-4.0 to -4.0), 5 splits") and verdict == F.FAILS


def test_a_run_that_collapsed_decides_nothing():
    """A baseline that fails in every split would make adapters look better; an adapter that fails, worse."""
    for broken in ("full", "conv_adapter"):
        one = made_up("signs", signs())
        for run in (run for runs in one.runs.values() for run in runs if run["config"]["method"] == broken):
            run["test"] = {"accuracy": 0.1, "balanced_accuracy": 0.1, "constant": True, "n": 1000}
        found = F.findings(lambda name, one=one: one if name == "signs" else None)
        near, above = [each for each in found if each.verdict != F.ABSENT][:2]
        assert near.verdict == F.OPEN and "5 of 5 runs collapsed" in near.ours
        assert above.verdict == (F.OPEN if broken == "conv_adapter" else F.HOLDS)


def test_the_best_bargain_needs_another_scheme_as_small():
    def accuracy(config):
        value, size = signs(residual=0.9)(config)
        return value, size + 5 * (config["options"].get("scheme") == "conv_sequential")

    (found,) = [found for found in judged("signs", accuracy) if "bargain" in found[0]]
    assert found[2] == F.OPEN and "no other was chosen with as few" in found[1]


def test_adapters_beside_what_else_can_be_trained():
    """LoRA and the norms lie at 0.7 here, the last stage where the probe does, with ten parameters of a million."""
    one = made_up("signs", signs(adapters=0.68))
    (found,) = [each for each in F.findings(lambda name: one if name == "signs" else None) if "other small parts" in each.claim]
    assert found.verdict == F.OURS
    for name, gap in (("the norms", -2), ("LoRA", -2), ("the last stage", -12)):
        assert f"{gap:.1f} ({gap:.1f} to {gap:.1f}), 5 splits, against {name} (0.0%)" in found.ours


def test_differences_of_both_signs_cannot_be_told():
    def accuracy(config):
        value, size = signs(probe=0.95)(config)
        return value + (0.03 if config["method"] == "linear" and config["seed"] % 2 else 0), size

    _, (_, _, verdict), *_ = judged("signs", accuracy)
    assert verdict == F.OPEN


@pytest.mark.parametrize(("other", "verdict"), [(0.9, F.HOLDS), (0.99, F.FAILS)])
def test_the_order_of_the_schemes(other, verdict):
    def accuracy(config):
        if config["options"].get("scheme") == "conv_sequential":
            return other, 10_000
        return signs()(config)

    (found,) = [found for found in judged("signs", accuracy) if "bargain" in found[0]]
    assert found[2] == verdict and "95.3 with 0.02 M" in found[1]


@pytest.mark.parametrize(("drawn", "verdict"), [(0.6, F.HOLDS), (0.01, F.FAILS), (0.1, F.OPEN)])
def test_structured_tasks(drawn, verdict):
    def accuracy(config):
        gain = 0.1 if config["data"] == "solar-cells" else drawn
        return 0.3 + (gain if config["method"] == "conv_adapter" else 0), 10

    ((_, _, found),) = judged("vtab_packaged", accuracy)
    assert found == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(0.03, F.HOLDS), (-0.03, F.FAILS)])
def test_few_shots(gain, verdict):
    ((_, ours, found),) = judged(
        "few_shot_signs", lambda config: (0.5 + (gain if config["method"] == "conv_adapter" else 0), 10)
    )
    assert found == verdict
    assert ours == f"{100 * gain:+.1f} ({100 * gain:+.1f} to {100 * gain:+.1f}) over 1, 4 shots, 8 draws"


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "holds (a hint)"), (0.05, "holds (a hint)"), (-0.05, "does not (a hint)")])
def test_dense(gain, verdict):
    ((claim, ours, found),) = judged("nuclei", lambda c: (0.6 + {"conv_adapter": gain, "linear": -0.2}.get(c["method"], 0), 10))
    assert found == verdict and "segmentation" in claim and f"frozen backbone {100 * (gain + 0.2):+.1f}" in ours


@pytest.mark.parametrize("gain", [0.0, 0.2])
def test_near_a_full_fine_tuning_that_lies_below_the_frozen_backbone(gain):
    ((_, ours, found),) = judged("cards_c4", lambda c: (0.4 + {"conv_adapter": gain, "linear": 0.2}.get(c["method"], 0), 10))
    assert found == F.OPEN and ours.endswith("full fine-tuning is itself below the frozen backbone")


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, "holds (a hint)"), (-0.05, "does not (a hint)"), (0.0, F.OPEN)])
def test_three_seeds_of_the_knobs_are_a_hint(gain, verdict):
    def accuracy(config):
        return 0.6 + (gain if config["options"].get("kernel_size") == 3 else 0), 10

    ((claim, ours, found),) = judged("knobs_position", accuracy)
    assert found == verdict and "K = 3 is above K = 1" in claim and "3 seeds" in ours


def test_failed_runs_stand_beside_the_means_that_they_are_in():
    """One of five adapter runs of each sweep is made to collapse."""
    chance = {"accuracy": 1 / 16, "balanced_accuracy": 1 / 16, "constant": True}
    sweeps = {name: made_up(name, lambda config: (0.8, 10)) for name in ("vtab_packaged", "position")}
    sweeps["vtab_packaged"].task("position")["CA"][0]["test"] = chance
    sweeps["position"].task()["conv_parallel"][0]["test"] = chance
    found = {finding.claim: finding for finding in F.findings(sweeps.get)}
    (drawn,) = [each for claim, each in found.items() if claim.startswith("structured")]
    assert "CA, position: 1 of 5 runs collapsed, the others 80.2" in drawn.ours and drawn.verdict == F.OPEN
    (blocks,) = [each for claim, each in found.items() if "inverted residuals" in claim]
    assert "`conv_parallel`: 1 of 5 runs collapsed, the others 80.2; -0.0 among runs that learned" in blocks.ours


def test_the_central_table_in_short():
    small, large = (made_up("signs", signs(size=size)) for size in (20_000, 60_000))
    shown = F.central_table(lambda name: small if name == "signs" else None).splitlines()
    assert (
        shown[2] == "| hand signs by student | 80.3 | 95.3 (2.0%) | 95.8 |"
        and shown[3] == "| clothes | not run | not run | not run |"
    )
    assert "| 80.3 | all have more | 95.8 |" in F.central_table(lambda name: large if name == "signs" else None)


def test_without_records_nothing_is_said():
    *found, collapse = F.findings(lambda name: None)
    assert {finding.verdict for finding in found} == {F.ABSENT} and {finding.ours for finding in found} == {"-"}
    assert collapse.verdict == F.OURS and re.search(
        r"(\d+) of (\d+) runs collapse \(.+ %\); half of them: 0 of (\d+)", collapse.ours
    )


def test_the_papers_numbers_by_hand():
    """Table 2: ResNet50 of ImageNet-1k, 83.48 - 85.84 and so on; Table 5: 71.03 - 68.32; Table 4: 38.4 - 38.1, 46.9 - 48.7."""
    paper = {finding.paper for finding in F.findings(lambda name: None)}
    for part in (
        "-2.4 FGVC, -3.0 natural, -2.2 specialized, -0.6 structured",
        "+2.7 (Table 5)",
        "+0.3 ResNet50",
        "-1.8 ConvNeXt-S",
    ):
        assert any(part in shown for shown in paper), part
