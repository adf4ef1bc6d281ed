"""Notebook 10's helpers: its folder, what is said of recorded curves, the figure, and excerpts of a report."""

import json

import numpy as np
import pytest
from figures import closed, texts  # noqa: F401
from PIL import Image

import minica
from minica.course import label_plots, own_images, results, verdicts
from minica.data.images import BrokenImages
from minica.experiments import read_plan
from minica.experiments.plans import CONFIGS, final_jobs, known_jobs
from minica.experiments.records import trial_key

CURVES = {
    "Linear probe": {50: [70, 71, 72], 200: [75, 76, 77], 1000: [80, 80, 80]},
    "Conv-Adapter": {50: [69, 72, 73], 200: [76, 77, 78], 1000: [85, 86, 87]},
    "Full fine-tuning": {50: [60, 61, 62], 200: [75, 78, 76], 1000: [88, 89, 90]},
}


def test_the_folder_has_what_folders_have(tmp_path):
    for _ in range(2):  # the second call replaces what the first one wrote
        root = own_images.write_folder(tmp_path, (5, 4), 6)
    found = {name: sorted(path.name for path in (root / "photos" / name).iterdir()) for name in own_images.CLASSES}
    assert len(found["defective"]) == 6 and sum("(copy)" in name for name in found["defective"]) == 1
    assert len(found["functional"]) == 6 and {"copied halfway.png", "notes.txt"} < set(found["functional"])
    new = {path.name for path in (root / "new").glob("cell*.png")}
    assert len(new) == 6 and not new & set(sum(found.values(), []))
    assert Image.open(root / "new" / min(new)).size == (300, 300)
    with pytest.raises(BrokenImages, match="truncated"):
        minica.data.decode(root / "photos" / "functional" / "copied halfway.png")


def test_schemes_follow_the_shape():
    rows = own_images.scheme_rows(["tf_efficientnet_lite0", "resnet18"])
    assert "residual_parallel" in rows[0][3] and float(rows[0][1]) > float(rows[0][2])
    assert "conv_parallel" in rows[1][3] and float(rows[1][1]) <= float(rows[1][2])
    assert rows[0][4] == "158,760" or int(rows[0][4].replace(",", "")) > 0
    share = int(rows[1][4].replace(",", "")) / 11_176_512  # ResNet18 without its classifier
    assert rows[1][5] == f"{share:.1%}"


@pytest.mark.parametrize(
    ("n", "best", "reason"),
    [
        (50, "Linear probe", "nothing dearer is above it in every run; the full fine-tuning loses to it in every run."),
        (200, "Conv-Adapter", "it is above the linear probe in every run."),
        (1000, "Full fine-tuning", "it is above the linear probe and the Conv-Adapter in every run."),
    ],
)
def test_the_choice_is_the_cheapest_that_nothing_beats(n, best, reason):
    values = {name: points[n] for name, points in CURVES.items()}
    assert own_images.chosen(values) == best
    assert own_images.decision(values).startswith(f"Use the {best if best == 'Conv-Adapter' else best.lower()}: ")
    assert own_images.decision(values).endswith(reason)


def test_draws_are_compared_in_pairs_and_seeds_by_ranges():
    assert own_images.paired([1, 5], [0, 4]) == "above" and verdicts.ranges([1, 5], [0, 4]) == "not told apart"
    assert own_images.paired([1, 5], [2, 6]) == "below" and verdicts.ranges([1, 2], [3, 4]) == "below"
    assert own_images.paired([1, 5], [1, 4]) == "not told apart" and verdicts.ranges([3, 4], [1, 2]) == "above"


@pytest.mark.parametrize(("mine", "ends"), [(50, (50, 50)), (300, (200, 1000)), (1000, (1000, 1000)), (20, (50, 50))])
def test_what_was_not_measured_is_said(mine, ends):
    assert own_images.around([50, 200, 1000], mine) == ends
    said = own_images.reading(CURVES, mine).splitlines()
    assert ("were not measured" in said[0]) == (mine not in (50, 200, 1000))
    assert [line.partition(" labels: ")[0] for line in said if " labels: " in line] == [f"{n:,}" for n in dict.fromkeys(ends)]
    assert f"Conv-Adapter {np.mean(CURVES['Conv-Adapter'][ends[1]]):.1f} %" in said[-1]


@pytest.mark.parametrize("mine", [50, 300, 1000])
def test_the_figure_at_the_ends_of_its_slider_and_between(mine, monkeypatch):
    for name in ("fit", "evaluate", "predict"):
        monkeypatch.setattr(minica, name, lambda *arguments, **options: pytest.fail("a slider trains nothing"))
    monkeypatch.setattr("builtins.open", lambda *arguments, **options: pytest.fail("a slider reads nothing"))
    monkeypatch.setattr("pathlib.Path.read_text", lambda *arguments, **options: pytest.fail("a slider reads nothing"))
    figure = label_plots.by_labels(CURVES, mine, guessing=68)
    left, right = figure.axes
    assert [line.get_ydata().tolist() for line in left.lines[:3]] == [[71, 76, 80], [72 - 2 / 3, 77, 86], [61, 76 + 1 / 3, 89]]
    bands = [band.get_paths()[0].get_extents().intervaly.tolist() for band in left.collections]
    assert bands == [[70, 80], [69, 87], [60, 90]]
    dots = [line.get_ydata().tolist() for line in right.lines if line.get_linestyle() == "None"]
    ends = dict.fromkeys(own_images.around([50, 200, 1000], mine))
    assert dots == [CURVES[name][n] for name in CURVES for n in ends]
    assert right.get_title() == (
        "300 not measured: 200 (left) and 1,000 (right)" if mine == 300 else f"{mine:,} labels, every seed"
    )
    first = label_plots.by_labels(CURVES, 50, guessing=68).axes
    assert (first[0].get_ylim(), first[0].get_xlim()) == (left.get_ylim(), left.get_xlim()), "axes are fixed over the slider"


def finished(name: str) -> list[dict]:
    """Records of every run of a config, as it would leave them, the first of each grid being the best."""
    plan, found = read_plan(CONFIGS / f"{name}.toml"), {}
    while len(found) < len(jobs := known_jobs(plan, found)):
        for key, job in jobs.items():
            best = job["config"]["lr"] == min(point["lr"] for cell in plan.cells for point in cell.points)
            scores = {metric: 0.5 + 0.25 * best for metric in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")}
            split = {"tune": "val", "final": "test"}[job["config"]["phase"]]
            found.setdefault(key, job | {split: scores, "trainable": 1, "seconds": 1.0})
    return [*found.values()]


def test_records_are_read_or_asked_for_and_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("minica.experiments.plans._rehearse", lambda *arguments: None)
    monkeypatch.setattr("minica.experiments.plans.RESULTS", tmp_path)
    monkeypatch.setattr(results, "sweep", lambda *arguments: pytest.fail("nothing is trained"))
    assert results.recorded("learning_curve").missing.startswith(
        "not run yet: python -m minica sweep configs/learning_curve.toml"
    )
    records = finished("learning_curve")
    (tmp_path / "learning_curve.json").write_text(json.dumps(records[:-1]))
    assert results.recorded("learning_curve").missing
    (tmp_path / "learning_curve.json").write_text(json.dumps(records))
    assert not results.recorded("learning_curve").missing
    curves = own_images.curves_by_labels(results.recorded("learning_curve"))
    assert list(curves) == list(own_images.METHODS)
    assert all([len(values) for values in points.values()] == [5] * 6 for points in curves.values())
    assert list(curves["Linear probe"]) == [50, 100, 200, 500, 1000, 1968]
    plan = read_plan(CONFIGS / "learning_curve.toml")
    for cell in plan.cells:  # as many steps whatever the number of labels
        for job in final_jobs(cell, {trial_key(record["config"]): record for record in records}, plan):
            config = job["config"]
            assert 360 <= config["epochs"] * (config["labels"] // config["batch_size"]) <= 372


REPORT = """<!doctype html><html><head><style>x</style></head><body><h1>mine</h1><p class="big">Of 30</p>
<h2>What is taken for what</h2>\n<table class="matrix"></table>\n<h2>Class by class</h2>\n<img src="data:,1">\n</body></html>"""


def test_excerpts_of_a_report(tmp_path):
    (tmp_path / "report.html").write_text(REPORT)
    first = own_images.excerpt(tmp_path / "report.html")
    assert "Of 30" in first and "matrix" not in first.partition("</style>")[2] and "<h1>" not in first
    some = own_images.excerpt(tmp_path / "report.html", "Class by class").partition("</style>")[2]
    assert some == '<h4>Class by class</h4>\n<img src="data:,1">\n</div>'
    style = first.partition("<style>")[2].partition("</style>")[0]
    assert ".minica-report .sheet {" in style and "http" not in first
    assert all(rule.strip().startswith(".minica-report ") for rule in style.split("}") if rule.strip()), "nothing leaks out"
    with pytest.raises(ValueError, match="no section 'Verdict'; it has What is taken for what, Class by class"):
        own_images.excerpt(tmp_path / "report.html", "Verdict")


SCORES = np.array([0.9, 0.6, 0.3, 0.4, 0.2, 0.1, 0.1, 0.1])
BROKEN = np.array([True, True, True, False, False, False, False, False])


@pytest.mark.parametrize(
    ("missed", "threshold", "row"),
    [
        (5, 0.25, ["0.25", "0 of 3 (0 to 56 %)", "1 of 5 (4 to 62 %)", "0.12"]),  # one good cell is looked at for nothing
        (0.5, 0.5, ["0.50", "1 of 3 (6 to 79 %)", "0 of 5 (0 to 43 %)", "0.06"]),  # a missed cell is cheap
    ],
)
def test_the_threshold_follows_the_costs(missed, threshold, row):
    found = own_images.cheapest_threshold(SCORES, BROKEN, missed)
    assert found == pytest.approx(threshold)
    assert own_images.decided(SCORES, BROKEN, found, missed) == row


@pytest.mark.parametrize(
    ("scores", "threshold", "half", "simple"),
    [
        (SCORES, 0.25, "less than", "less than"),
        (SCORES, 0.5, "as much as", "as much as"),
        (SCORES, 0.95, "more than", "more than"),
        (1 - SCORES, 0.05, "less than", "as much as"),  # scores that are wrong throughout: looking at every cell is best
    ],
)
def test_a_threshold_is_compared(scores, threshold, half, simple):
    said = own_images.cheaper(scores, BROKEN, threshold, missed=5)
    assert f"costs {half} 0.5, and {simple} deciding without a network" in said
    assert said.endswith("looking at no cell costs 1.88 per cell, looking at every cell 0.62.")


def test_a_threshold_needs_cells_of_both_kinds():
    with pytest.raises(ValueError, match="all 3 cells are broken; a threshold needs some of each"):
        own_images.cheapest_threshold(SCORES[:3], BROKEN[:3], 5)
