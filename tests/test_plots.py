"""Do the figures show what they are given?  Every one at the ends of its slider."""

import pytest
import torch
from figures import closed, texts  # noqa: F401

from minica import SCHEMES, counting
from minica.course import dense_plots, memory, plots


@pytest.mark.parametrize(
    ("scheme", "reads", "adds", "shape", "parameters"),
    [
        ("conv_parallel", 2.9, 4.7, "64 to 64", "1,744"),
        ("conv_sequential", 4.7, 4.7, "64 to 64", "1,744"),
        ("residual_parallel", 0.45, 8.35, "64 to 256", "5,200"),
        ("residual_sequential", 8.35, 8.35, "256 to 256", "19,264"),
    ],
)
def test_a_scheme_moves_the_arrows_and_the_counts(scheme, reads, adds, shape, parameters):
    """On ResNet50's first block, its unit from 2.9 to 4.7 and the whole from 0.45 to 8.35 along the drawing."""
    figure = plots.scheme_drawing(scheme)
    assert any(shape in text and parameters in text for text in texts(figure))
    (dot,) = [line for line in figure.axes[0].lines if line.get_marker() == "o" and line.get_markersize() == 7]
    assert dot.get_xdata()[0] == reads
    assert any(adds < line.get_xdata()[0] < adds + 1 for line in figure.axes[0].lines if line.get_marker() == "+")


@pytest.mark.parametrize("compression", [1, 8])
def test_the_drawings_counts_are_the_closed_form(compression):
    figure = plots.scheme_drawing("residual_parallel", 256, 128, 512, compression)
    widths = [bar.get_width() for bar in figure.axes[1].patches]
    ends = [(128, 128), (128, 128), (256, 512), (512, 512)]
    assert widths == [counting.adapter_parameters(*pair, compression=compression) for pair in ends]
    with pytest.raises(KeyError):
        plots.scheme_drawing("stage_parallel")
    assert len(SCHEMES) == len(widths)


@pytest.mark.parametrize(("tasks", "whole", "adapters"), [(1, "95.0 MB", "97.0 MB"), (100, "9,500.0 MB", "295.0 MB")])
def test_storage_adds_up(tasks, whole, adapters):
    methods = {"Full fine-tuning": (0, 95_000_000), "Conv-Adapter": (95_000_000, 2_000_000)}
    networks = {"ResNet50": methods, "larger": {"Full fine-tuning": (0, 800_000_000)}}
    shown = texts(plots.storage(networks, "ResNet50", tasks))
    assert f"Full fine-tuning: {whole}" in shown and f"Conv-Adapter: {adapters}" in shown


def test_memory_stacks_to_the_sum():
    parts = dict(weights=1e6, gradients=2e6, AdamW=4e6, activations=8e6)
    figure = plots.memory({"Full fine-tuning": parts, "Linear probe": parts | {"activations": 0}})
    assert {" 15 MB", " 7 MB"} <= set(texts(figure))
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == 22


def test_needs_stacks_every_form_on_the_same_axes():
    sizes = {form: {kind: [1_000_000 * step, 500_000] for kind in memory.KINDS} for step, form in enumerate(memory.FORMS)}
    found = memory.Needs(["a", "other"], 10_000_000, sizes)
    figures = {form: plots.needs(found, form) for form in ("plain", "approximate")}
    assert len({figure.axes[0].get_ylim() for figure in figures.values()}) == 1
    assert sum(bar.get_height() for bar in figures["approximate"].axes[0].patches) == 5 * 4.5
    assert "approximate: 22.5 MB, 2.25 of full fine-tuning's" in texts(figures["approximate"])
    assert {"adapters: 0.5 MB", "1", "\nother"} < set(texts(figures["plain"]))


def test_seeds_shows_every_one():
    records = [{"test": {"accuracy": value}} for value in (0.5, 0.75, 1.0)]
    figure = plots.seeds({"Linear probe": records[:2], "Adapters, k x k": records})
    dots = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [[50, 75], [50, 75, 100]]


@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("compression", [1, 32])
def test_adapter_drawing_at_the_ends_of_its_sliders(kernel, compression):
    count = counting.adapter_parameters(64, 64, kernel_size=kernel, compression=compression)
    assert any(f"{count:,} parameters" in text for text in texts(plots.adapter_drawing(64, 64, kernel, compression, size=56)))


@pytest.mark.parametrize("shots", [1, 8])
def test_by_shots_at_the_ends_of_its_slider(shots):
    probe = {1: [40.0, 50.0], 2: [50.0, 60.0], 4: [60.0, 60.0], 8: [70.0, 80.0]}
    figure = plots.by_shots({"Linear probe": probe, "Prompts": probe}, shots, guessing=25, metric="accuracy")
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [45, 55, 60, 75]
    assert left.collections[0].get_paths()[0].get_extents().intervaly.tolist() == [40, 80]  # lowest and highest seed
    assert right.lines[0].get_ydata().tolist() == probe[shots]
    assert f"{shots} image{'s' if shots > 1 else ''} of each class" in texts(figure)


def test_gains_share_one_scale():
    figure = plots.gains({"ours": {"Prompts": {1: [-5.0, 5.0]}}, "the paper": {"Prompts": {1: [11.07], 8: [-2.62]}}})
    assert {axis.get_title() for axis in figure.axes} == {"ours", "the paper"}
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.axes[1].lines[0].get_ydata().tolist() == [11.07, -2.62]


def test_slopes_show_every_seed_and_say_what_is_missing():
    paper = {"Linear probe": 67.4, "Full fine-tuning": 72.2}
    figure = plots.slopes(
        {"Natural": {}, "Structured": {"Linear probe": [30, 40], "Full fine-tuning": [70, 90]}},
        {"Natural": paper, "Structured": paper},
    )
    natural, structured = figure.axes
    assert "Natural: not packaged" in texts(figure) and structured.get_title() == "Structured"
    assert [line.get_ydata().tolist() for line in natural.lines] == [[67.4, 72.2]]
    lines = {line.get_label(): [float(y) for y in line.get_ydata()] for line in structured.lines}
    assert lines["ours"] == [35, 80] and lines["the paper"] == [67.4, 72.2]
    assert [[float(y) for y in line.get_ydata()] for line in structured.lines[:2]] == [[30, 40], [70, 90]]


def test_accuracy_by_share_has_ours_and_the_papers():
    figure = plots.accuracy_by_share({"Linear probe": (0.1, 44)}, {"Linear probe": (1.5, 61), "Full fine-tuning": (100, 74)})
    assert [len(axis.lines) for axis in figure.axes] == [2, 1] and all(axis.get_xscale() == "log" for axis in figure.axes)
    assert "Full fine-tuning" in texts(figure)


@pytest.mark.parametrize(("threshold", "drawn"), [(0.0, 2), (0.5, 1), (0.95, 0)])
def test_boxes_over_a_threshold(threshold, drawn):
    corners = torch.tensor([[1.0, 2, 9, 9], [10, 3, 18, 12]])
    found = {"boxes": corners, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.4])}
    target = {"boxes": corners[:1], "labels": torch.tensor([1])}
    curve = (torch.tensor([0.9, 0.4]), torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.6]))
    image, classes = torch.zeros(3, 16, 20), ("disc", "ring")
    figure = dense_plots.over_threshold(image, found, target, classes, threshold, {"Conv-Adapter": curve}, "Conv-Adapter")
    assert len(figure.axes[0].patches) == 1 + drawn  # the true one, and those that score enough
    assert ("disc 0.90" in texts(figure)) == (drawn > 0) and ("ring 0.40" in texts(figure)) == (drawn > 1)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [[], [(0.5, 1.0)], [(pytest.approx(0.6), 0.5)]][
        drawn
    ]
    assert len(dense_plots.scenes([image] * 3, [target] * 3, classes, columns=2).axes) == 4


@pytest.mark.parametrize("view", dense_plots.VIEWS)
def test_masks_and_where_they_are_wrong(view):
    mask = torch.tensor([[0, 1], [2, 255]])
    guess = torch.tensor([[0, 1], [1, 1]])
    figure = dense_plots.pixels(torch.zeros(3, 2, 2), mask, {"Conv-Adapter": guess}, ("background", "disc", "ring"), view)
    title = "truth" if view == "truth" else "Conv-Adapter: 33.3 % wrong"
    assert title in texts(figure) and ({"wrong"} if view == "errors" else {"disc", "ring"}) < set(texts(figure))
    shown = figure.axes[1].images[1].get_array()
    visible = [[bool(hidden) for hidden in row] for row in (~shown.mask).tolist()]
    assert (
        visible
        == {
            "prediction": [[False, True], [True, False]],
            "truth": [[False, True], [True, False]],
            "errors": [[False, False], [True, False]],
        }[view]
    )
    assert shown[1, 0] == {"prediction": 1, "truth": 2, "errors": 1}[view]
    with pytest.raises(ValueError, match="unknown view 'both'; choose one of prediction, truth, errors"):
        dense_plots.pixels(torch.zeros(3, 2, 2), mask, {}, ("background",), "both")
