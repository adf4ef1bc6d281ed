"""Every slider of the course, found in the notebooks: at its ends it draws, on the same axes, and does nothing else."""

import ast
import builtins
import itertools
from types import SimpleNamespace

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from figures import closed  # noqa: F401

import minica
from minica import experiments
from minica.course import dense_plots, figures, knob_plots, label_plots, memory, own_images, plots, reason_plots
from minica.course.runner import NOTEBOOKS
from minica.dense import detection
from minica.experiments import knobs

CELLS = {
    (path.stem, cell.id): cell.source
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    for cell in nbformat.read(path, 4).cells
    if cell.cell_type == "code" and ("figures.sliders(" in cell.source or "interact" in cell.source)
}
MODULES = dict(figures=figures, plots=plots, knob_plots=knob_plots, dense_plots=dense_plots, reason_plots=reason_plots)
MODULES |= dict(label_plots=label_plots, own_images=own_images, knobs=knobs, memory=memory, torch=torch, minica=minica)
MODULES |= dict(experiments=experiments, display=print)


def records(*values):
    return [{"test": {"accuracy": value}} for value in values]


def boxes(number):
    corners = torch.tensor([[0.0, 0, 9, 9]] * number).reshape(-1, 4)
    return {"boxes": corners, "labels": torch.ones(number).long(), "scores": torch.linspace(0.1, 0.9, number)}


def needs(largest):
    sizes = {form: {kind: [largest * step, 500_000] for kind in memory.KINDS} for step, form in enumerate(memory.FORMS)}
    return memory.Needs(["a", "other"], 10_000_000, sizes)


CURVES = {name: {1: [40.0, 50.0], 2: [50.0, 60.0], 4: [60.0, 60.0], 8: [70.0, 80.0]} for name in ("Linear probe", "Prompts")}
BY_LABELS = {name: {50: [60.0, 62], 200: [70.0, 71], 1968: [75.0, 76]} for name in own_images.METHODS}
MASK = torch.tensor([[0, 1], [2, 255]])


def knob_tables():
    cost = knobs.Cost(*(10,) * len(knobs.Cost._fields))
    pairs = list(itertools.product(knobs.COMPRESSIONS, knobs.KERNELS))
    table = knob_plots.Table("position", 64, dict.fromkeys(pairs, knobs.NOT_RUN), dict.fromkeys(pairs, cost))
    return dict(position=table, tables={"position": table, "signs": table._replace(title="signs")})


def reason_tasks():
    layers = [{"stem": 0.9, "head": 0.5}, {"stem": 0.99, "head": 0.7}]
    return [SimpleNamespace(name=f"shapes, task {name}", layers=one) for name, one in zip("ab", layers, strict=True)]


def changed_maps():
    maps = SimpleNamespace(maps_with_and_without=lambda *_: (torch.rand(5, 4, 4), torch.rand(5, 4, 4)))
    cells = SimpleNamespace(test=[(torch.rand(3, 8, 8), 1)])
    return dict(reasons=maps, cells=cells, solar=None, backbone="tf_efficientnet_lite0")


# What a cell finds in its notebook: small things of the same kinds.
NAMES = {
    ("00_quickstart", "cell-30"): lambda: dict(
        scores=torch.linspace(0, 1, 9), labels=torch.arange(9) % 2, task=SimpleNamespace(classes=("functional", "defective"))
    ),
    ("01_motivation", "cell-11"): lambda: dict(
        sizes={
            name: {"Full fine-tuning": (0, size), "Conv-Adapter": (size, size // 20)}
            for name, size in (("ResNet50", 95_000_000), ("ConvNeXt-L", 800_000_000))
        }
    ),
    ("01_motivation", "cell-25"): lambda: dict(needs=needs(1_000_000)),
    ("02_conv_adapter", "cell-15"): dict,
    ("03_four_schemes", "cell-06"): dict,
    ("04_knobs", "cell-11"): knob_tables,
    ("05_few_shot", "cell-14"): lambda: dict(
        curves={"a": CURVES}, backbones=["a"], guessing=25, plan=SimpleNamespace(metric="balanced_accuracy")
    ),
    ("06_vtab", "cell-15"): lambda: dict(
        finals={"Linear probe": {"one": records(0.2, 0.3), "two": records(0.8)}},
        tasks={"one": 0, "two": 0},
        values=lambda method, task: {"one": [20.0, 30.0], "two": [80.0]}[task],
    ),
    ("07_why", "cell-10"): lambda: dict(tasks=reason_tasks(), NOT_RUN=""),
    ("07_why", "cell-26"): changed_maps,
    ("08_detection", "cell-25"): lambda: dict(
        found={"Conv-Adapter": [boxes(2)] * 2, "Frozen backbone": [boxes(0)] * 2},
        truth=[boxes(1), boxes(2)],
        images=[torch.rand(3, 20, 24)] * 2,
        several=[1, 0],
        task=SimpleNamespace(classes=("disc",)),
        networks=["Conv-Adapter", "Frozen backbone"],
        detection=detection,
    ),
    ("09_segmentation", "cell-22"): lambda: dict(
        found={"Conv-Adapter": [MASK.to(torch.uint8)] * 2},
        truth=[MASK, MASK],
        pictures=[torch.rand(3, 2, 2)] * 2,
        several=[0, 1],
        task=SimpleNamespace(classes=("background", "disc", "ring")),
    ),
    ("10_your_images", "cell-25"): lambda: dict(curves=BY_LABELS, majority=68.0),
    ("11_ship_it", "cell-41"): lambda: dict(
        PRESET="laptop",
        memory=SimpleNamespace(FORMS=memory.FORMS, on_meta=lambda build: None, needs=lambda *_, **options: needs(1_000_000)),
    ),
    ("11_ship_it", "cell-36"): dict,
}
OTHER_AXES = {("11_ship_it", "cell-41"): "network"}  # another network has other blocks: another chart


def test_every_slider_is_tested():
    assert CELLS.keys() == NAMES.keys()


@pytest.fixture
def idle(monkeypatch):
    """Whatever runs a network, takes a gradient or opens a file raises."""

    def refuse(*arguments, **options):
        raise AssertionError("a slider's callback must only draw")

    for place, name in ((torch.nn.Module, "_call_impl"), (torch.Tensor, "backward"), (builtins, "open"), (torch, "load")):
        monkeypatch.setattr(place, name, refuse)


def ends(control):
    if isinstance(control, ipywidgets.Dropdown | ipywidgets.SelectionSlider):
        values = [value for _, value in control._options_full]
        return values[0], values[-1]
    return control.min, control.max


@pytest.mark.parametrize("place", list(CELLS), ids=" ".join)
def test_a_slider_only_draws(place, request):
    """All ends together: it draws, says what it shows, and the axes are those of the first."""
    count = len(figures.live)
    exec(CELLS[place], MODULES | NAMES[place]())
    (widget,) = figures.live[count:]
    figures.picture(widget.result)  # what matplotlib itself reads, it has read
    request.getfixturevalue("idle")
    controls = {control._kwarg: control for control in widget.kwargs_widgets}
    limits, alts = {}, set()
    for values in itertools.product(*map(ends, controls.values())):
        values = dict(zip(controls, values, strict=True))
        figure = widget.f(**values)
        alts.add(figures.alt_text(figure))
        chart = values.get(OTHER_AXES.get(place))
        here = [(axis.get_xlim(), axis.get_ylim()) for axis in figure.axes if not axis.images]
        assert limits.setdefault(chart, here) == here, "the axes must be the same wherever the slider stands"
    assert all(alts) and len(alts) > 1, "what is said of the figure must change with it"
    assert not plt.get_fignums(), "a figure that is left open is shown once more"


@pytest.mark.parametrize("place", list(CELLS), ids=" ".join)
def test_labels_are_whole_and_words(place):
    count = len(figures.live)
    exec(CELLS[place], MODULES | NAMES[place]())
    for control in figures.live[count].kwargs_widgets:
        assert control.style.description_width == "initial" and "_" not in control.description


@pytest.mark.parametrize("place", list(CELLS), ids=" ".join)
def test_a_callback_returns_a_figure_of_a_plots_file(place):
    tree = ast.parse(CELLS[place])
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "figures.sliders"]
    (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == call.args[0].id]
    returned = function.body[-1]
    assert isinstance(returned, ast.Return) and ast.unparse(returned.value.func).split(".")[0].endswith("plots")
