"""How figures reach the page: alternative text, pixels and bytes, colours that can be told apart and read, tables."""

import base64
import io
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from figures import closed  # noqa: F401
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from minica.course import dense_plots, figures, page, plots
from minica.course.runner import NOTEBOOKS
from minica.course.scan import VIEW, tagged_text
from minica.course.tables import table

SOURCES = sorted(NOTEBOOKS.parent.glob("minica/course/*plots.py"))
HEX = re.compile(r"#[0-9A-Fa-f]{6}\b")


def drawn(figure):
    """The picture as an image, and what goes with it."""
    data, about = figures.picture(figure)
    ((kind, text),) = data.items()
    return Image.open(io.BytesIO(base64.b64decode(text))), kind, about[kind]


def luminance(colour):
    """WCAG 2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return np.dot((0.2126, 0.7152, 0.0722), linear)


def contrast(one, other="#FFFFFF"):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# ---------------------------------------------------------------- a picture


def test_a_drawing_is_a_fine_png_of_the_figures_size():
    figure = plots.adapter_drawing(64, 64, 3, 4, size=56)
    image, kind, about = drawn(figure)
    assert kind == "image/png" and image.mode == "P"
    assert (about["width"], about["height"]) == (648, 216) and image.size == (1296, 432)
    assert figure.dpi == 72, "the figure itself is as it was"


def test_a_photograph_is_a_jpeg():
    random = np.random.default_rng(0)
    figure, axis = plt.subplots(figsize=(3, 3))
    axis.imshow(random.normal(0.5, 0.2, (200, 200, 3)).clip(0, 1))
    assert drawn(figure)[1] == "image/jpeg"


def test_smooth_shades_do_not_become_steps():
    shade = np.linspace(0.2, 0.5, 300)[None].repeat(300, 0)
    figure, axis = plt.subplots(figsize=(3, 3))
    axis.imshow(shade, cmap="gray", vmin=0, vmax=1)
    axis.axis("off")
    image, _, _ = drawn(figure)
    assert len(np.unique(np.asarray(image.convert("L"))[216, 60:370])) > 20, "of 77 shades; as a drawing it has about ten"


def test_nothing_is_cut():
    figure = plt.figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "inside")
    assert drawn(figure)[2]["width"] == 144
    figure.text(0.5, 0.5, "over the edge of the figure and on")
    image, _, about = drawn(figure)
    assert about["width"] > 144 and image.size[0] == pytest.approx(2 * about["width"], abs=1)


def test_a_closed_figure_is_still_drawn():
    figure = plots.adapter_drawing(64, 64, 3, 4, size=56)
    plt.close(figure)
    assert drawn(figure)[0].size == (1296, 432)


def test_what_is_said_of_a_figure_goes_with_it():
    figure, axis = plt.subplots()
    axis.set(title="a title", xlabel="steps", ylabel="loss")
    axis.plot([1, 2], label="one line")
    axis.legend()
    assert drawn(figure)[2]["alt"] == "a title; loss against steps; one line"
    assert drawn(figures.described(figure, "two  words\nof mine"))[2]["alt"] == "two words of mine"
    assert figures.alt_text(plt.figure()) == "a figure without a title"


# ---------------------------------------------------------------- colours


def test_text_can_be_read():
    """WCAG's 4.5 : 1 for text on white; the drawings write in black and grey only."""
    assert contrast("#000000") == pytest.approx(21) and contrast("#767676") == pytest.approx(4.54, abs=0.01)
    assert contrast(plots.GREY) >= 4.5


def test_no_text_has_a_colour_of_a_method():
    for source in SOURCES:
        for call in re.findall(r"\.(?:text|annotate|set_title|suptitle)\([^\n]*", source.read_text()):
            for colour in re.findall(r"color=([^,)]+)", re.sub(r"arrowprops=dict\([^)]*\)", "", call)):
                assert colour in ("GREY", '"white"', '"white" if dark else "black"'), f"{source.name}: {call}"


def test_a_methods_colour_is_of_nothing_else():
    methods = {*plots.COLOURS.values()}
    for source in SOURCES:
        colours = [colour.upper() for colour in HEX.findall(source.read_text())]
        own = len(plots.COLOURS) if source.name == "plots.py" else 0
        assert sum(colour in methods for colour in colours) == own, f"{source.name} writes a method's colour: use COLOURS"
    assert not methods & {*plots.OTHERS, *dense_plots.PALETTE}


def test_notebooks_have_no_colours_of_their_own():
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                assert not HEX.search(cell.source), f"{path.stem} {cell.id}: take a colour of minica.course.plots"


# Machado, Oliveira and Fernandes (2009): linear RGB as those without one kind of cones see it.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_methods_can_be_told_apart_by_the_colour_blind(kind):
    """CIE76's difference of every two methods is at least 15; 2.3 is just seen side by side."""

    def lab(colour):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        rgb = (BLIND[kind] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)).clip(0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        x, y, z = np.cbrt(to_xyz @ rgb / (0.9505, 1, 1.089))
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    colours = list(dict.fromkeys(plots.COLOURS.values()))
    for i, one in enumerate(colours):
        for other in colours[i + 1 :]:
            assert np.linalg.norm(lab(one) - lab(other)) > 15, f"{one} and {other}"


# ---------------------------------------------------------------- names beside points


def test_names_do_not_meet():
    rows = [
        ("Res. Seq.", 4, 70.0),
        ("Conv. Par.", 4.2, 70.2),
        ("VPT", 4.1, 69.9),
        ("Bias", 3.9, 70.1),
        ("LP", 0.3, 60),
        ("FT", 90, 71),
    ]
    figure, axis = plt.subplots(figsize=(4.5, 3.4), layout="constrained")
    axis.set(xscale="log", xlim=(0.15, 100))
    axis.plot([x for _, x, _ in rows], [y for _, _, y in rows], "o")
    axis.margins(y=0.2)
    plots.name_points(axis, [(x, y, name) for name, x, y in rows])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == [name for name, _, _ in rows]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    assert all(axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 for box in boxes)


def test_marks_say_right_and_wrong_beside_any_colour():
    import torch

    figure = plots.photos(torch.zeros(2, 1, 4, 4).byte(), ["column 1", "column 2"], right=[True, False])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["✓ column 1", "✗ column 2"]


# ---------------------------------------------------------------- where no kernel runs


@pytest.fixture(scope="module")
def saved():
    """A picture and a slider as an executed notebook has them."""
    picture, about = figures.picture(plots.adapter_drawing(64, 64, 3, 4, size=56))
    slider = {VIEW: {"model_id": "a", "version_major": 2}, "text/plain": figures.NOT_LIVE}
    outputs = [new_output("display_data", picture, metadata=about), new_output("display_data", slider)]
    notebook = new_notebook(cells=[new_code_cell("draw()", outputs=outputs, execution_count=1)])
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}, "version_major": 2}}
    return page.without_widgets(notebook)


def test_a_saved_slider_is_a_sentence(saved):
    assert "widgets" not in saved.metadata
    assert saved.cells[0].outputs[1].data == {"text/plain": "Run this cell to move the sliders."}
    assert "image/png" in saved.cells[0].outputs[0].data


def test_a_page_has_the_picture_once_with_its_text(saved):
    body = page.html(saved, "a name")
    (image,) = re.findall(r"<img[^>]*?>", body)
    assert 'alt="An adapter from 64 channels through 16 to 64' in image and 'width="648"' in image
    assert body.count(figures.NOT_LIVE) == 1 and "widget-view" not in body and "<title>a name</title>" in body


# ---------------------------------------------------------------- tables


def test_a_table_is_markdown_that_lines_up():
    shown = table(
        ["method", "trained", "|delta|"], [["Linear probe", "2,562", "0.1"], ["full", "3,373,570", "12.0"]], note="recorded"
    )
    assert shown.data.splitlines() == [
        "| method       |   trained | \\|delta\\| |",
        "| ------------ | --------: | --------: |",
        "| Linear probe |     2,562 |       0.1 |",
        "| full         | 3,373,570 |      12.0 |",
        "",
        "recorded",
    ]
    with pytest.raises(ValueError, match="has 1 entries, the header 2"):
        table(["a", "b"], [["c"]])


def test_a_terminal_shows_the_table_and_no_picture():
    outputs = [
        new_output("display_data", {"text/markdown": "| a |", "text/plain": "<Markdown object>"}),
        new_output("display_data", {"image/png": "", "text/plain": "<Figure>"}),
        new_output("stream", text="said\n"),
    ]
    cell = new_code_cell("", outputs=outputs, metadata={"tags": ["result-table"]})
    assert tagged_text(new_notebook(cells=[cell]), "result-table") == "| a |\nsaid"


def test_numbers_in_a_heat_map_can_be_read():
    """Whatever the shade: 4.5 : 1 against it."""
    import itertools

    from matplotlib.colors import to_hex

    from minica.course import knob_plots
    from minica.experiments import knobs

    pairs = list(itertools.product(knobs.COMPRESSIONS, knobs.KERNELS))
    grid = {pair: knobs.Setting(({"test": {"accuracy": 0.3 + 0.04 * i}},), 0, 0, 1) for i, pair in enumerate(pairs)}
    cost = knobs.Cost(*(10,) * len(knobs.Cost._fields))
    axis = knob_plots.heat_maps([knob_plots.Table("position", 64, grid, dict.fromkeys(pairs, cost))]).axes[0]
    (image,) = axis.images
    colours = set()
    for text in axis.texts:
        column, row = map(int, text.get_position())
        shade = to_hex(image.to_rgba(image.get_array()[row, column]))
        colours.add(text.get_color())
        assert contrast(shade, to_hex(text.get_color())) >= 4.5, shade
    assert colours == {"black", "white"}


def test_controls_start_at_the_defaults_and_stop_where_they_should():
    def draw(number=4, word="b", choice="d", level=0.5):
        return figures.described(plt.figure(figsize=(1, 1)), f"{number} {word} {choice} {level}")

    figures.sliders(draw, number=[1, 2, 4], word=("a", "b"), choice=["c", "d"], level=(0.05, 0.95, 0.05))
    widget = figures.live[-1]
    kinds = [type(control).__name__ for control in widget.kwargs_widgets]
    assert kinds == ["SelectionSlider", "SelectionSlider", "Dropdown", "FloatSlider"]
    assert figures.alt_text(widget.result) == "4 b d 0.5"
