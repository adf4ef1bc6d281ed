"""The exercises: every checker is fed right and wrong answers, every solution is run, and students get no solutions."""

from __future__ import annotations

import ast
import contextlib
import io
from fractions import Fraction

import nbformat
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter
from nbconvert import HTMLExporter
from torch import nn

from minica.__main__ import main
from minica.course.checks import NotPassed, check, difference, predict
from minica.course.exercises import EXERCISES
from minica.course.runner import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
pytestmark = pytest.mark.xdist_group("checks")  # networks are looked at once for all of them


def code_cells(path, *tags):
    """Code cells that have one of these tags, in order."""
    cells = nbformat.read(path, 4).cells
    return [cell for cell in cells if cell.cell_type == "code" and {*tags} & {*cell.metadata.get("tags", ())}]


def value_of(cell, space):
    """What a notebook shows for a cell: the value of its last line."""
    *first, last = ast.parse(cell.source).body
    assert isinstance(last, ast.Expr), cell.source
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(ast.Module(first, []), "cell", "exec"), space)
        return eval(compile(ast.Expression(last.value), "cell", "eval"), space)


# ---------------------------------------------------------------- one thing against another

MATRIX = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (9, 9),
        (9.0, 9),
        (np.int64(9), 9),
        (torch.tensor(9), 9),
        (Fraction(1, 7), 1 / 7),
        (np.float32(1 / 7), 1 / 7),
        (torch.tensor(1 / 7, requires_grad=True), 1 / 7),
        (True, True),
        (np.bool_(False), False),
        (torch.tensor(True), True),
        ("LP", "LP"),
        ([0.25, 0.5], (0.25, 0.5)),
        (np.array([0.25, 0.5]), (0.25, 0.5)),
        (torch.tensor([0.25, 0.5]), (0.25, 0.5)),
        (["a", "b"], {"b", "a"}),
        ({"k": [2]}, {"k": (2,)}),
        (MATRIX + 1e-6, MATRIX),
        (MATRIX.double().numpy(), MATRIX),
        (nn.Parameter(MATRIX), MATRIX),
    ],
)
def test_the_same_thing_in_another_form_is_right(got, expected):
    assert difference(got, expected) is None


@pytest.mark.parametrize(
    ("got", "expected", "said"),
    [
        (8, 9, "expected 9, got 8, one too few"),
        (10, 9, "expected 9, got 10, one too many"),
        (8.5, 9, "expected 9, got 8.5"),
        (1_745, 1_744, "expected 1,744, got 1,745, one too many"),
        (float("nan"), 9, "expected 9, got NaN"),
        (float("nan"), 0.5, "expected 0.5, got NaN"),
        (float("inf"), 0.5, "expected 0.5, got inf"),
        ("9", 9, "expected 9, got `'9'`: a number is needed"),
        (True, 1, "expected 1, got `True` (`bool`): a number is needed"),
        ([9], 9, "expected 9, got (9,): a number is needed"),
        (torch.zeros(1), 0, "expected 0, got a tensor of shape `(1,)`, `torch.float32`: a number is needed"),
        (torch.zeros((), device="meta"), 0, "a number is needed"),
        (14.29, 1 / 7, "expected 0.142857, got 14.29: a part of 1 is needed, not per cent"),
        (0.1425, 1 / 7, "expected 0.142857, got 0.1425"),
        (1, True, "expected `True` (`bool`), got 1"),
        ("lp", "LP", "expected `'LP'`, got `'lp'`"),
        (0.5, (0.25, 0.5), "got 0.5: a list or a tuple of 2 is needed"),
        ((0.25,), (0.25, 0.5), "expected (0.25, 0.5), got (0.25,): 2 entries are needed, not 1"),
        ((0.5, 0.25), (0.25, 0.5), "entry 1 of 2: expected 0.25, got 0.5"),
        ((0.25, float("nan")), (0.25, 0.5), "entry 2 of 2: expected 0.5, got NaN"),
        ({"a"}, {"a", "b"}, "expected `{'a', 'b'}`, got `{'a'}`"),
        ("a", {"a"}, "a set is needed"),
        ({"k": 2}, {"k": 3}, "at `k`: expected 3, got 2, one too few"),
        ({"l": 3}, {"k": 3}, "expected the keys 'k', got 'l'"),
        ([3], {"k": 3}, "a dictionary is needed"),
        ([[1, 2], [3, 4]], MATRIX, "expected a tensor `(2, 2)`, got"),
        (MATRIX[0], MATRIX, "expected the shape `(2, 2)`, got `(2,)`"),
        (MATRIX.double(), MATRIX, "expected `torch.float32`, got `torch.float64`"),
        (MATRIX.int().numpy(), MATRIX, "expected `torch.float32`, got `torch.int32`"),
        (MATRIX.to("meta"), MATRIX, "the meta device"),
        (MATRIX / 0 * 0, MATRIX, "expected finite numbers, got NaN or infinity in 4 of 4 entries"),
        (MATRIX + torch.eye(2), MATRIX, "at `(0, 0)`, where it is worst, expected 1, got 2"),
        (MATRIX.T, MATRIX, "at `(0, 1)`, where it is worst, expected 2, got 3"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(got, expected, said):
    found = difference(got, expected)
    assert said in found and "\n" not in found


# ---------------------------------------------------------------- every exercise

SETTINGS = {(1, 3): (900, [0.90, 0.92]), (4, 3): (200, [0.91, 0.90]), (8, 3): (100, [0.80, 0.81])}
DRAWS = {"cheap": [1.0, 2.0, 3.0], "dear": [2.0, 3.0, 4.0]}
SCHEMES = dict(conv_parallel=(128, 128, 2), conv_sequential=(128, 128, 1))
SCHEMES |= dict(residual_parallel=(256, 512, 2), residual_sequential=(512, 512, 1))
ORDER = ["residual_parallel", "residual_sequential", "conv_parallel", "conv_sequential"]
UNCHANGED = {"all filters tripled", "all filters rotated alike", "one constant filter added to all"}
UNCHANGED |= {"weights within all filters in another order"}
INVARIANT = UNCHANGED | {"each filter with a scale of its own", "filters in another order"}


def fold_without_eps(conv, norm):
    scale = norm.weight / norm.running_var.sqrt()
    bias = (0 if conv.bias is None else conv.bias) - norm.running_mean
    return conv.weight * scale[:, None, None, None], bias * scale + norm.bias


def box_iou_that_may_be_negative(one, other):
    shared = (min(one[2], other[2]) - max(one[0], other[0])) * (min(one[3], other[3]) - max(one[1], other[1]))
    return shared / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - shared)


def unpaired_interval(first, second):
    random = np.random.default_rng(0)
    means = [values[random.integers(len(values), size=(4000, len(values)))].mean(1) for values in (first, second)]
    return np.percentile(means[0] - means[1], (2.5, 97.5))


def uncentred_cka(x, y):
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def iou_with_ignored_pixels(guess, mask, ignored=255):
    there = [label for label in torch.cat([guess, mask]).unique() if label != ignored]
    return np.mean([((guess == c) & (mask == c)).sum() / ((guess == c) | (mask == c)).sum() for c in there])


# name -> (a right answer if it is data, what is given with it, wrong answers with what is said of them)
ANSWERS = {
    "accuracy and balanced accuracy": (
        None,
        (),
        [
            (lambda right, of: (sum(right) / sum(of),) * 2, "entry 2 of 2: expected 0.848434, got 0.868902"),
            (lambda right, of: sum(right) / sum(of), "a list or a tuple of 2 is needed"),
            (lambda right, of: (86.89024, 84.84339), "a part of 1 is needed"),
            (0.87, "expected a function, got 0.87"),
        ],
    ),
    "trainable parameters": (
        None,
        (),
        [
            (lambda model: sum(weight.requires_grad for weight in model.parameters()), "expected 146, got 2"),
            (lambda model: sum(weight.numel() for weight in model.parameters()), "expected 146, got 386"),
            (lambda model: model.nothing, "AttributeError"),
        ],
    ),
    "receptive field": (9, (), [(8, "one too few"), (7, "expected 9, got 7"), (3 * [3], "a number is needed")]),
    "smaller file": (0.28, (), [(0.44, "expected 0.28"), (28.0, "not per cent"), (float("nan"), "got NaN")]),
    "adapted map": (
        None,
        (),
        [
            (lambda h, x, down, up, alpha: h + alpha * up(down(x).relu()), "where it is worst"),
            (lambda h, x, down, up, alpha: alpha[:, None, None] * up(down(x).relu()), "where it is worst"),
            (lambda h, x, down, up, alpha: h + alpha[:, None, None] * up(down(x)), "where it is worst"),
            (lambda h, x, down, up, alpha: h[0], "expected the shape `(2, 8, 8, 8)`, got `(8, 8, 8)`"),
            (lambda h, x, down, up, alpha: h.double(), "expected `torch.float32`, got `torch.float64`"),
            (lambda h, x, down, up, alpha: h / 0, "NaN or infinity"),
            (lambda h, x: h, "TypeError"),
        ],
    ),
    "zero gradients": (
        {
            "up-projection zero": {"down.weight", "down.bias", "alpha"},
            "alpha zero": ["down.weight", "down.bias", "up.weight", "up.bias"],
        },
        (),
        [
            ({"up-projection zero": {"alpha"}, "alpha zero": {"alpha"}}, "at `up-projection zero`: expected"),
            ({"up-projection zero": {"down.weight", "down.bias", "alpha"}, "alpha zero": None}, "at `alpha zero`"),
        ],
    ),
    "channels and strides": (
        SCHEMES,
        (),
        [
            (SCHEMES | {"conv_sequential": (128, 128, 2)}, "at `conv_sequential`: entry 3 of 3: expected 1, got 2"),
            ({"conv_parallel": (128, 128, 2)}, "expected the keys"),
        ],
    ),
    "order of totals": (
        {"resnet50": ["conv_parallel", "residual_parallel", "residual_sequential"], "resnet18": ORDER},
        (),
        [({"resnet50": ["conv_parallel", "residual_parallel", "residual_sequential"], "resnet18": ORDER[::-1]}, "`resnet18`")],
    ),
    "cheapest within one SD": ((4, 3), (SETTINGS,), [((1, 3), "entry 1 of 2"), ((8, 3), "expected 4, got 8"), (4, "tuple")]),
    "matched compression": (3, (), [(2, "one too few"), (4, "one too many"), ("3", "a number is needed")]),
    "paired bootstrap": (
        None,
        (),
        [
            (unpaired_interval, "entry 1 of 2"),
            (lambda first, second: ((first - second).mean(),) * 2, "entry 1 of 2"),
            (lambda first, second: np.array([np.nan, np.nan]), "got NaN"),
        ],
    ),
    "draws to halve an interval": (25, (), [(24, "one too few"), (32, "expected 25, got 32")]),
    "structured gap": (10.02, (), [(-10.02, "expected 10.02"), (9.5, "got 9.5"), (None, "not attempted")]),
    "failed runs": (
        None,
        (),
        [
            (lambda accuracies, classes: (0, np.mean(accuracies)), "expected 1, got 0"),
            (lambda accuracies, classes: (sum(a < 0.5 for a in accuracies), np.mean(accuracies)), "entry 2 of 2"),
        ],
    ),
    "linear CKA": (
        None,
        (),
        [(uncentred_cka, "40 unrelated ones"), (lambda x, y: 1.0, "expected 0.07"), (lambda x, y: x @ y, "RuntimeError")],
    ),
    "what CKA does not see": (
        {what: what in UNCHANGED for what in INVARIANT},
        (),
        [({what: True for what in INVARIANT}, "at `each filter with a scale of its own`"), ({}, "not attempted")],
    ),
    "IoU of boxes": (
        None,
        (),
        [
            (box_iou_that_may_be_negative, "for [0, 0, 10, 10] and [20, 20, 30, 30]: expected 0"),
            (lambda one, other: 25 / 200, "expected 0.142857, got 0.125"),
            (lambda one, other: "1/7", "a number is needed"),
        ],
    ),
    "precision and recall": (
        None,
        (),
        [
            (lambda s, right, objects, t: (np.mean([r for a, r in zip(s, right, strict=True) if a > t]), 0.5), "expected 0.6"),
            (lambda scores, right, objects, threshold: (0.6, 0.5), "threshold of 0.85"),
        ],
    ),
    "mean IoU": (
        None,
        (),
        [(iou_with_ignored_pixels, "the 3 x 3 mask"), (lambda guess, mask: (guess == mask).float().mean(), "expected 0.58")],
    ),
    "pixels or images": ((91 / 110, 0.5), ([90, 1], [100, 10]), [((0.5, 91 / 110), "entry 1 of 2"), (0.5, "a tuple of 2")]),
    "Wilson interval": (
        (0.830, 0.938),
        (),
        [
            ((0.8425, 0.9495), "entry 1 of 2"),
            ((83.02, 93.82), "not per cent"),
            ((0.830, 0.949), "entry 2 of 2"),
            ("?", "a list"),
        ],
    ),
    "the method to use": ("dear", (DRAWS,), [("cheap", "expected `'dear'`"), (1, "got 1")]),
    "folded BatchNorm": (
        None,
        (),
        [
            (fold_without_eps, "entry 1 of 2: of the right shape"),
            (lambda conv, norm: (conv.weight, norm.bias), "entry 1 of 2"),
            (lambda conv, norm: (conv.weight.flatten(), norm.bias), "expected the shape `(8, 4, 3, 3)`"),
        ],
    ),
    "bytes for a ReLU": (
        (25_690_112, 802_816),
        (),
        [((25_690_112, 6_422_528), "entry 2 of 2"), ((6_422_528, 802_816), "1 of 2")],
    ),
}


def test_every_exercise_is_tested_here():
    assert ANSWERS.keys() == EXERCISES.keys()
    assert all(wrong for _, _, wrong in ANSWERS.values())


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_pass_and_wrong_ones_do_not(name, monkeypatch):
    right, given, wrong = ANSWERS[name]
    right = EXERCISES[name].expected if EXERCISES[name].cases else right
    verdict = check(name, right, *given)
    cases = EXERCISES[name].cases
    assert verdict.passed and verdict.message == f"passed ({name}): {f'{len(cases())} cases' if cases else 'as expected'}"
    for answer, said in [*wrong, (None, f"not attempted ({name}): "), (object(), f"not yet ({name}): ")]:
        verdict = check(name, answer, *given)  # never raises
        assert verdict.passed is False and said in verdict.message and "\n" not in verdict.message
        with monkeypatch.context() as patch, pytest.raises(NotPassed, match=name):
            patch.setenv("MINICA_STRICT", "1")
            check(name, answer, *given)
    monkeypatch.setenv("MINICA_STRICT", "1")
    assert check(name, right, *given).passed


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="unknown exercise 'recptive field'; choose one of .*receptive field"):
        check("recptive field", 9)


def test_a_check_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    for name, exercise in EXERCISES.items():
        if exercise.cases:
            check(name, lambda *arguments: None)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_function_that_changes_what_it_is_given_harms_nothing():
    def in_place(h, x, down, up, alpha):
        return h.add_(alpha[:, None, None] * up(down(x).relu_()))

    assert check("adapted map", in_place).passed and check("adapted map", in_place).passed


def test_shown_in_a_notebook_and_as_text():
    shown, _ = DisplayFormatter().format(check("receptive field", 8))
    assert shown["text/markdown"] == "✗ **not yet (receptive field):** expected 9, got 8, one too few"
    assert shown["text/plain"] == "not yet (receptive field): expected 9, got 8, one too few"
    assert check("receptive field", 9)._repr_markdown_().startswith("✓ **passed")
    assert check("receptive field", None)._repr_markdown_().startswith("○ **not attempted")
    text = check("IoU of boxes", lambda one: 1)  # whose error says "<lambda>()", which is no HTML
    assert "`TypeError: " in text._repr_markdown_() and "`" not in repr(text)


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("answer", [85, 85.0, np.float32(85), torch.tensor(85)])
def test_a_prediction_is_stored_and_revealed(answer):
    prediction = predict("How many?", answer, unit="%")
    assert prediction.answer == 85 and "stored: 85 %" in prediction.message
    assert repr(prediction.reveal(86.62)) == "you predicted 85 %; measured: 86.6 %; 1.62 too low"
    assert repr(prediction.reveal(80)) == "you predicted 85 %; measured: 80 %; 5 too high"
    assert repr(prediction.reveal(85)) == "you predicted 85 %; measured: 85 %; as you predicted"
    assert "too" not in repr(prediction.reveal(float("nan")))
    assert "How many?" in repr(prediction) and "How many?" in prediction._repr_markdown_()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "not attempted: "),
        ("85", "not stored: expected a number, got `'85'`"),
        (float("nan"), "not stored: expected a number, got NaN"),
        ([85], "not stored: expected a number"),
        (True, "not stored: expected a number"),
    ],
)
def test_no_prediction_is_no_error(answer, said, monkeypatch):
    monkeypatch.setenv("MINICA_STRICT", "1")
    prediction = predict("How many?", answer)
    assert prediction.answer is None and said in prediction.message
    assert repr(prediction.reveal(1_744)) == "measured: 1,744; you predicted nothing"


# ---------------------------------------------------------------- the notebooks


@each
def test_a_notebook_asks_first_and_then_reveals(path):
    cells = nbformat.read(path, 4).cells
    tagged = [at for at, cell in enumerate(cells) if "predict" in cell.metadata.get("tags", ())]
    assert len(tagged) == 2
    asked, revealed = (cells[at].source for at in tagged)
    assert "prediction = predict(" in asked and "None,  # your number" in asked and asked.endswith("\nprediction")
    assert "prediction.reveal(" in revealed
    first = min(at for at, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", ()))
    assert tagged[0] < len(cells) // 3 and tagged[1] < first


@each
def test_exercises_have_a_hint_a_stub_and_a_folded_solution(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if {"exercise", "solution"} & {*cell.metadata.get("tags", ())}]
    assert [(cell.cell_type, cell.metadata.tags) for cell in cells] == 2 * [
        ("markdown", ["exercise"]),
        ("code", ["exercise"]),
        ("code", ["solution"]),
    ]
    assert all(solution.metadata.jupyter.source_hidden is True for solution in cells[2::3])
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(nbformat.v4.new_notebook(cells=cells[::3]))
    hints = BeautifulSoup(page, "html.parser").find_all("details")
    for task, hint in zip(cells[::3], hints, strict=True):
        assert hint.summary.text == "Hint" and len(hint.p.text.split()) > 5, "what is in the hint is folded with it"
        assert task.source.endswith("</details>") and "`" not in hint.text


@each
def test_stubs_are_not_attempted_and_solutions_pass(path, monkeypatch):
    space = {}  # of these cells alone: what they need they bring
    for cell in code_cells(path, "exercise", "solution"):
        if "solution" in cell.metadata.tags:
            monkeypatch.setenv("MINICA_STRICT", "1")
            assert value_of(cell, space).passed
            continue
        monkeypatch.delenv("MINICA_STRICT", raising=False)
        assert value_of(cell, space).message.startswith("not attempted")
        monkeypatch.setenv("MINICA_STRICT", "1")
        with pytest.raises(NotPassed, match="not attempted"):
            value_of(cell, space)


def test_every_exercise_is_in_one_notebook():
    stubs = [cell.source for path in PATHS for cell in code_cells(path, "exercise")]
    asked = [name for name in EXERCISES for source in stubs if f'check("{name}", ' in source]
    assert sorted(asked) == sorted(EXERCISES) and len(stubs) == 2 * len(PATHS)


# ---------------------------------------------------------------- for students


def test_students_get_no_solutions_and_no_outputs(tmp_path, capsys):
    before = {path: path.read_bytes() for path in PATHS}
    assert main(["student", "--out", str(tmp_path / "class")]) == 0
    assert f"{len(PATHS)} notebooks" in capsys.readouterr().out
    for path in PATHS:
        copy, original = nbformat.read(tmp_path / "class" / path.name, 4), nbformat.read(path, 4)
        kept = [cell for cell in original.cells if "solution" not in cell.metadata.get("tags", ())]
        assert [cell.source for cell in copy.cells] == [cell.source for cell in kept]
        assert len(original.cells) - len(kept) == 2
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code) and "widgets" not in copy.metadata
        assert "A solution" not in (tmp_path / "class" / path.name).read_text(encoding="utf-8")
        nbformat.validate(copy)
    assert {path: path.read_bytes() for path in PATHS} == before


def test_the_notebooks_are_not_overwritten(tmp_path, capsys):
    path = tmp_path / "00_mine.ipynb"
    solution = nbformat.v4.new_code_cell("1", metadata={"tags": ["solution"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[solution]), path)
    before = path.read_bytes()
    assert main(["student", "--notebooks", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err and path.read_bytes() == before
