"""Each result number in a text comes from a record: what is typed is checked against it, or allowed by name."""

import re

import nbformat
import numpy as np
import pytest
from literal_sources import ALLOWED, CHECKED, HELD
from literals import in_notebook, in_page, numbers, prose, sentences, typed

from benchmarks.pages import ROOT

NOTEBOOKS = {path.name: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
WRITTEN = (ROOT / "README.md", ROOT / "TEACHING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {str(path.relative_to(ROOT)): path for path in WRITTEN}
REMEDY = (
    "compute it in a code cell from the record, let `python -m benchmarks.pages` write it, or check it against the record in "
    "CHECKED of tests/literal_sources.py; if it is no result, add it to ALLOWED there with its source"
)
each = pytest.mark.parametrize("name", [*NOTEBOOKS, *PAGES])


def every_sentence(name):
    """Every sentence of a notebook or a page, with its place."""
    return [*(in_notebook(nbformat.read(NOTEBOOKS[name], 4)) if name in NOTEBOOKS else in_page(PAGES[name]))]


def found_in(name):
    """Every number that is typed into a notebook or a page."""
    return [*typed(name, every_sentence(name))]


def filled(template, values):
    """A piece of a sentence with its numbers; of a statement without any, whether it holds."""
    if isinstance(values, bool | np.bool_):
        assert values, f"{template!r} does not hold; write what the record says"
        return template
    return template.format(*(values if isinstance(values, tuple | list) else (values,)))


def pieces(name):
    """Every piece of a sentence whose numbers have a source, as it must stand in this file."""
    checked = [filled(template, values()) for template, values in CHECKED.get(name, {}).items()]
    return [*checked, *HELD.get(name, ()), *ALLOWED.get(name, ())]


def without_source(literals, known):
    """The numbers that stand in no known piece of their sentence."""
    left = []
    for literal in literals:
        spans = [match.span() for piece in known for match in re.finditer(re.escape(piece), literal.sentence)]
        if not any(low <= literal.start and literal.start + len(literal.text) <= high for low, high in spans):
            left.append(literal)
    return left


@each
def test_every_number_has_a_source_and_every_source_its_sentence(name):
    literals, known = found_in(name), pieces(name)
    left = without_source(literals, known)
    assert not left, "\n".join([f"{len(left)} numbers without a source; {REMEDY}:", *map(str, left)])
    text = "\n".join(sentence for _, sentence in every_sentence(name))
    gone = [piece for piece in known if piece not in text]
    assert not gone, f"not in {name}: {gone}; the sentence was changed, or the record says something else now"


def test_sources_are_of_files_that_are_there():
    assert CHECKED.keys() | HELD.keys() | ALLOWED.keys() <= NOTEBOOKS.keys() | PAGES.keys()


def test_what_another_file_holds_is_asserted_there():
    for name, places in HELD.items():
        for piece, place in places.items():
            asserted = re.sub("[_,]", "", (ROOT / place).read_text(encoding="utf-8"))
            for _, number, _ in numbers(piece):
                for digits in re.findall(r"\d[\d.,]*\d|\d", number):
                    assert digits.replace(",", "") in asserted, f"{name}: {digits} is not in {place}"


def test_a_planted_result_is_named():
    name = "02_conv_adapter.ipynb"
    notebook = nbformat.read(NOTEBOOKS[name], 4)
    text, code = (max(i for i, cell in enumerate(notebook.cells) if cell.cell_type == kind) for kind in ("markdown", "code"))
    notebook.cells[text].source += "\n\nAdapters reach 93.7 %."
    notebook.cells[code].source += "\nprint(f'{backbone}: a step takes 1.7 seconds, and four of five runs learn')"
    left = without_source([*typed(name, in_notebook(notebook))], pieces(name))
    planted = {(f"cell {text}", "93.7 %"), (f"cell {code}", "1.7 seconds"), (f"cell {code}", "four of five")}
    assert {(literal.place, literal.text) for literal in left} >= planted
    assert f"{name}, cell {text}: '93.7 %' (percentage) in: Adapters reach 93.7 %." in map(str, left)


def texts(markdown):
    return [literal for _, sentence in sentences(prose(markdown)) for _, literal, _ in numbers(sentence)]


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("Adapters gain **2.8 points**, a probe *loses* 3 to 4.5 points.", ["2.8 points", "3 to 4.5 points"]),
        ("It takes four minutes, half an hour or 25 s, and 0.65 MB.", ["four minutes", "half an hour", "25 s", "0.65 MB"]),
        ("It is 1.09 times as slow, a twelfth of 1,371.", ["1.09 times as", "1,371", "a twelfth"]),
        ("Three of ten runs fail; of 26 runs the IoU is 0.84.", ["Three of ten", "0.84", "26 runs"]),
        ("| a | 93.7 % |\n|---|---|\n| b | 0.5 |", ["93.7 %", "0.5"]),
        ("See Section 3.2, Tables 1, 11 and 13, Python 3.11 and arXiv 2208.07463; CC BY-NC-SA 4.0.", []),
        ("A 95 % interval at a rate of 0.001, `x = 0.5`, $y = 0.5$, [here](page-1.5.md).", []),
        ("Five seeds, images of 64 pixels, 3 x 3 kernels, two parts, a second look.", []),
        ("```python\nx = 0.5  # takes 3 minutes\n```", ["3 minutes"]),
    ],
)
def test_which_numbers_are_looked_at(markdown, found):
    assert sorted(texts(markdown)) == sorted(found)


def test_a_record_that_says_something_else_is_noticed():
    assert filled("adapters reach {:.1f} %", 93.68) == "adapters reach 93.7 %"
    assert filled("within a point", 0.9 < 1) == "within a point"
    with pytest.raises(AssertionError, match="does not hold"):
        filled("within a point", 1.2 < 1)
