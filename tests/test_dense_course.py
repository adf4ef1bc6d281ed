"""Notebooks 08 and 09: what their sliders do at the ends, and what their tables say of records, for either outcome."""

import builtins
import inspect
import json
import re
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from figures import closed, texts  # noqa: F401

import minica
from minica.course import dense, dense_plots, presets, results
from minica.course.runner import NOTEBOOKS
from minica.data.named import NAMED
from minica.dense import detection, segmentation
from minica.experiments import CONFIGS, RESULTS

CLASSES = ("disc", "square", "triangle")


# ---------------------------------------------------------------- the sliders


def controls(name: str, **names) -> tuple:
    """The callback of a notebook's slider and its controls, its cell run with the given names."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells
    (source,) = [cell.source for cell in cells if cell.cell_type == "code" and "figures.sliders(" in cell.source]
    found = []
    names["figures"] = SimpleNamespace(sliders=lambda *given, **by: found.append((*given, by)))
    exec(source, names | {"dense_plots": dense_plots, "detection": detection})
    ((callback, given),) = found
    return callback, given


def ends(control) -> tuple:
    """The first and the last value that a control can take: a list of values, or the least, the largest and perhaps a step."""
    return control[0], control[-1] if isinstance(control, list) else control[1]


@pytest.fixture
def idle(monkeypatch):
    """Whatever runs a network, takes a gradient or opens a file raises."""

    def refuse(*arguments, **options):
        raise AssertionError("a slider's callback must only draw")

    plt.close(plt.subplots()[0])  # what matplotlib itself reads, it has read
    for place, name in ((torch.nn.Module, "_call_impl"), (torch.Tensor, "backward"), (builtins, "open"), (torch, "load")):
        monkeypatch.setattr(place, name, refuse)


def boxes(*rows):
    """Boxes, labels and scores from rows of four corners, a label and a score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "scores": table[:, 5]}


def test_the_threshold_only_draws(request):
    truth = [boxes((0, 0, 9, 9, 1, 1)), boxes((0, 0, 9, 9, 2, 1), (9, 9, 20, 20, 3, 1))]
    found = {
        "Conv-Adapter": [boxes((0, 0, 9, 9, 1, 0.99), (5, 5, 9, 9, 2, 0.5)), boxes((0, 0, 9, 9, 2, 0.3))],
        "Frozen backbone": [boxes(), boxes((9, 9, 20, 20, 3, 0.06))],
    }
    task = type("Task", (), {"classes": CLASSES})
    names = dict(found=found, truth=truth, images=[torch.rand(3, 20, 24)] * 2, several=[1, 0], task=task, networks=found)
    callback, given = controls("08_detection", **names)
    assert given.keys() == {"threshold", "picture", "method"} and ends(given["threshold"]) == (0.05, 0.95)
    request.getfixturevalue("idle")
    drawn = {}
    for threshold in ends(given["threshold"]):
        for picture in ends(given["picture"]):
            for method in ends(given["method"]):
                callback(threshold=threshold, picture=picture, method=method)
                axis = plt.gcf().axes[0]
                drawn[threshold, picture, method] = len(axis.patches)
                assert plt.gcf().axes[1].get_xlim() == plt.gcf().axes[1].get_ylim() == (0, 1.02)
    assert drawn == {  # true boxes, and those that score enough
        (0.05, 1, "Conv-Adapter"): 2 + 1,
        (0.05, 2, "Conv-Adapter"): 1 + 2,
        (0.05, 1, "Frozen backbone"): 2 + 1,
        (0.05, 2, "Frozen backbone"): 1,
        (0.95, 1, "Conv-Adapter"): 2,
        (0.95, 2, "Conv-Adapter"): 1 + 1,
        (0.95, 1, "Frozen backbone"): 2,
        (0.95, 2, "Frozen backbone"): 1,
    }


def test_the_switch_of_views_only_draws(request):
    mask = torch.tensor([[0, 1], [2, 255]])
    found = {"Frozen backbone": [torch.zeros(2, 2, dtype=torch.uint8)] * 2, "Conv-Adapter": [mask.to(torch.uint8)] * 2}
    task = type("Task", (), {"classes": ("background", *CLASSES)})
    names = dict(found=found, truth=[mask, mask], pictures=[torch.rand(3, 2, 2)] * 2, several=[0, 1], task=task)
    callback, given = controls("09_segmentation", **names)
    assert given["view"] == list(dense_plots.VIEWS) and given.keys() == {"view", "picture"}
    request.getfixturevalue("idle")
    titles = set()
    for view in given["view"]:
        for picture in ends(given["picture"]):
            callback(view=view, picture=picture)
            titles.add(tuple(axis.get_title() for axis in plt.gcf().axes))
    wrong = ("image", "Frozen backbone: 66.7 % wrong", "Conv-Adapter: 0.0 % wrong")
    assert titles == {wrong, ("image", "truth", "truth")}


# ---------------------------------------------------------------- records, there or not


def runs(values, metric="ap", trainable=1000):
    return [
        {"config": {"seed": seed, "lr": 0.002}, "trainable": trainable, "test": {metric: value}}
        for seed, value in enumerate(values)
        if value is not None
    ]


def shown(metric="ap", **methods):
    found = {name.replace("_", "-"): runs(values, metric) for name, values in methods.items()}
    return dense.Shown("cards", "cards", SimpleNamespace(by_method=lambda: found, source="recorded"))


def test_the_sentences_say_yes_no_and_not_yet():
    above = shown(Frozen=[0.50, 0.60, 0.70], Conv_Adapter=[0.51, 0.62, 0.73])
    below = shown(Frozen=[0.71, 0.72, 0.73], Conv_Adapter=[0.50, 0.60, 0.70])
    nothing = shown(Frozen=[], Conv_Adapter=[])
    lines = dense.verdicts([above, below, nothing], "ap").splitlines()
    start = "* **cards**, AP: **Conv-Adapter** minus **Frozen**:"
    ranges = "since the ranges over seeds overlap (51.0 to 73.0 % against 50.0 to 70.0 %)"
    assert lines[0] == f"{start} +2.0 points on average; not told apart, {ranges}. By seed: +1.0, +2.0, +3.0."
    assert lines[1].startswith(f"{start} -12.0 points on average; below, a hint from 3 seeds (50.0 to 70.0 % against 71.0")
    assert lines[1].endswith(" By seed: -21.0, -12.0, -3.0.")
    assert lines[2:] == ["* **cards**: not run yet."]


def test_the_table_says_what_is_missing_and_how_to_run_it():
    some = shown(Frozen=[0.50, 0.60, 0.70], Conv_Adapter=[0.5], Full=[])
    rows = dense.recorded_table([some], "ap").splitlines()[2:]
    assert rows[0] == "| cards | Frozen | 60.0 (50.0 to 70.0), 3 seeds | 1,000 | 0.002 |"
    assert "| 50.0 (50.0 to 50.0), 1 seed |" in rows[1]
    assert rows[2].endswith("not run yet: `python -m minica sweep configs/cards.toml` |  |  |")


@pytest.mark.parametrize("name", ["scenes_boxes", "scenes_masks", "nuclei", "cards", "cards_c4"])
def test_what_is_recorded_is_shown(name, monkeypatch):
    monkeypatch.setattr("minica.experiments.plans._rehearse", lambda *arguments: None)  # builds every network
    found = results.recorded(name)
    assert list(found.by_method()) == ["Frozen backbone", "Conv-Adapter", "Full fine-tuning"]
    assert found.source == "recorded" and (RESULTS / f"{name}.json").exists() == bool(found.found)
    assert f"configs/{name}.toml" in dense.command(name) and (CONFIGS / f"{name}.toml").exists()
    metric = "miou" if name in ("scenes_masks", "nuclei") else "ap"
    assert len(dense.recorded_table([dense.Shown(name, name, found)], metric).splitlines()) == 2 + 3


# ---------------------------------------------------------------- beside the paper


@pytest.mark.parametrize(
    ("task", "counts"),
    [
        ("detection", [41_531_812, 35_728_420, 67_090_756, 24_620_740]),  # the paper's and 4,100, see test_dense.py
        ("segmentation", [66_496_876, 45_671_820, 81_877_196, 39_407_180]),
    ],
)
def test_table_4_beside_ours(task, counts):
    found = dense.paper_counts(task)
    assert list(found.values()) == counts
    rows = [re.split(r" *\| *", line)[1:-1] for line in dense.table_4(task, found).splitlines()[2:]]
    assert [float(row[3]) for row in rows] == [round(count / 1e6, 3) for count in counts]
    assert all(abs(float(row[2]) - float(row[3])) < 0.025 for row in rows)
    assert rows[0][4:] == {"detection": ["38.1", "59.7", "41.5"], "segmentation": ["42.1"]}[task]


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_presets_are_arguments(preset):
    """Every preset builds its network, and the paper's train as many parameters as the paper's networks do."""
    for scales, task, build, classes in (
        (presets.DETECTION, "detection", detection.faster_rcnn, 81),
        (presets.SEGMENTATION, "segmentation", segmentation.upernet, 150),
    ):
        scale, module = scales[preset], dense.NETWORKS[task][0]
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = build(scale["backbone"], classes, pretrained=False, **scale["network"])
            minica.adapt(model, **scale["adapt"], backbone=module.BODY, train=module.heads(model))
        load = {"detection": minica.data.load_boxes, "segmentation": minica.data.load_masks}[task]
        inspect.signature(load).bind(scale["data"], **scale["load"])
        inspect.signature(minica.fit).bind(model, [], **scale["fit"])
        assert scale["data"] == "scenes" or scale["data"] in NAMED
        if preset == "paper":
            trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            assert trained == {"detection": 35_728_420, "segmentation": 45_671_820}[task]


def test_memory_is_the_benchmarks():
    records = [r for r in json.loads((RESULTS / "dense_memory.json").read_text()) if r["config"]["network"] == "upernet"]
    rows = dense.memory_table("upernet").splitlines()[-len(records) :]
    for record, row in zip(records, rows, strict=True):
        full, lean = (record["methods"][name]["step"] for name in ("Full fine-tuning", "Conv-Adapter, lean"))
        assert record["config"]["backbone"] in row and row.endswith(f"| {lean / full:.2f} |")


# ---------------------------------------------------------------- figures


def test_loss_parts_are_means_over_a_window():
    figure = dense_plots.loss_parts({"one": [4.0, 2.0, 0.0, 0.0, 0, 0, 0, 0, 0, 2], "two": [1.0] * 10}, window=2)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[3, 1, 0, 0, 0, 0, 0, 0, 1], [1] * 9]
    assert figure.axes[0].lines[0].get_xdata().tolist() == list(range(2, 11))
    short = dense_plots.loss_parts({"one": [4.0, 2.0]})
    assert short.axes[0].lines[0].get_ydata().tolist() == [4, 2]


def test_names_of_boxes_at_the_upper_edge_stay_inside():
    objects = {key: values for key, values in boxes((0, 0, 9, 9, 1, 1), (5, 12, 15, 19, 2, 1)).items() if key != "scores"}
    figure = dense_plots.scenes([torch.rand(3, 20, 20)], [objects], CLASSES, columns=1)
    assert [(text.get_text(), text.get_va()) for text in figure.axes[0].texts] == [("disc", "top"), ("square", "bottom")]


def test_scores_join_seeds_and_say_what_was_not_run():
    figure = dense_plots.scores({"cards": {"Conv-Adapter": [0.5, 0.7], "Full fine-tuning": [0.6, 0.6]}, "nuclei": {}}, "AP")
    joined = [line.get_ydata().tolist() for line in figure.axes[0].lines if line.get_linewidth() == 0.8]
    assert joined == [pytest.approx([50, 60]), pytest.approx([70, 60])]
    assert "not run yet" in texts(figure) and "test AP, %" in texts(figure)
    uneven = dense_plots.scores({"cards": {"Conv-Adapter": [0.5], "Full fine-tuning": [0.6, 0.6]}}, "AP")
    assert not [line for line in uneven.axes[0].lines if line.get_linewidth() == 0.8]


def test_overlap_is_intersection_over_union():
    mask = torch.tensor([[1, 1, 0, 255], [1, 1, 0, 0]])
    guess = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    figure = dense_plots.overlap(mask, guess, 1, "disc")  # the ignored pixel is in neither
    assert "disc: 2 / 5 pixels = 0.40" in texts(figure)
    assert figure.axes[0].images[0].get_array().tolist() == [[3, 3, 2, 0], [1, 1, 0, 0]]
    assert "ring: 0 / 0 pixels = not defined" in texts(dense_plots.overlap(mask, guess, 2, "ring"))


def test_strengths_are_lengths_of_vectors():
    figure = dense_plots.strengths(torch.zeros(3, 4, 4), {"stride 2": torch.tensor([[[3.0]], [[4.0]]])})
    assert figure.axes[1].images[0].get_array().tolist() == [[5.0]] and "stride 2\n2 x 1 x 1" in texts(figure)
