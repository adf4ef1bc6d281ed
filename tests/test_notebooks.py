"""Every notebook of the course runs at ``smoke``, without an error anywhere, and is built as the course promises."""

from __future__ import annotations

import re

import nbformat
import pytest
from publishing import unpublishable

from minica.course.publish import code_hash
from minica.course.runner import NOTEBOOKS, find, run
from minica.course.scan import cell_place

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
ASKED = {"predict", "exercise", "solution"}  # cells that are not counted
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def test_there_are_notebooks():
    assert "00_quickstart" in [path.stem for path in find()]  # or the tests below would pass without running


@each
def test_it_runs(path, tmp_path):
    result = run(path, tmp_path, preset="smoke")
    assert result.faults == []
    assert unpublishable(result.notebook) == []
    assert result.headline, "no cell tagged 'headline' printed anything"
    assert pictures_without_text(result.notebook) == []
    assert "No description has been provided" not in result.page.read_text(encoding="utf-8")


def pictures_without_text(path):
    """Where a picture that a cell shows has no alternative text, or where a slider of a saved notebook would stand still."""
    found = []
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", ()):
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt"):
                    found.append(f"{cell_place(cell)}: {kind} without alternative text")
                if "widget" in kind:
                    found.append(f"{cell_place(cell)}: {kind}")
    return found


@each
def test_it_can_be_published(path):
    assert unpublishable(path) == []


@each
def test_its_outputs_are_those_of_its_code(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.minica.code == code_hash(notebook), (
        f"run `python -m minica publish {path.stem}` on a quiet machine"
    )
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert pictures_without_text(path) == []


@each
def test_it_is_built_as_the_course_promises(path):
    cells = nbformat.read(path, 4).cells
    counted = [cell for cell in cells if not ASKED & {*cell.metadata.get("tags", ())}]
    assert 25 <= len(counted) <= 45, f"{len(counted)} cells: one idea a notebook, in 25 to 45 cells"
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# "), "the first cell is the title"
    card = "\n".join(cell.source for cell in cells[:3]).lower()
    assert "minutes" in card and "memory" in card, "the header card says how long it takes and what memory"
    assert sum(cell.cell_type == "markdown" and cell.source.startswith("## ") for cell in cells) >= 3, "sections"
    assert "**Is this cell broken?**" in cells[0].source, "what it adds to the course's question"
    words = sum(len(cell.source.split()) for cell in counted[1:] if cell.cell_type == "markdown")
    assert 800 <= words <= 1_800, f"{words} words beside card and exercises: 800 to 1,800"
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    values = {}
    exec(parameters.source, values)  # constants only; the defaults are a reader's first run
    assert (values["PRESET"], values["RETRAIN"]) == ("laptop", False)


@each
def test_it_begins_with_what_came_before_and_ends_with_what_to_take_along(path):
    cells = nbformat.read(path, 4).cells
    recall = cells[1]
    assert recall.metadata.tags == ["recall"] and recall.cell_type == "markdown"
    if path == PATHS[0]:
        assert "(../docs/before_you_start.md)" in recall.source and "(../docs/misconceptions.md)" in recall.source
    else:
        before = PATHS[PATHS.index(path) - 1].name[:2]
        assert recall.source.startswith(f"**Two questions from notebook {before}**")
        parts = re.findall(r"^\d\\\. (.+\?)\n\n<details><summary>Answer</summary>\n\n(.+)\n\n</details>$", recall.source, re.M)
        assert len(parts) == recall.source.count("<details>") == 2, "two questions, each with a folded answer"
    recaps = [i for i, cell in enumerate(cells) if "## What to take along\n" in cell.source]
    exercises = [i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", ())]
    assert len(recaps) == 1 and recaps[0] + 1 == exercises[0], "the recap stands before the exercises"
    assert cells[recaps[0]].source.partition("## What to take along")[2].count("\n* ") >= 3


@each
def test_a_core_is_left_when_deeper_sections_are_skipped(path):
    text = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    sections = re.findall(r"^## \d+\. .*$", "\n".join(text), re.M)
    deeper = [title for title in sections if title.endswith(" (deeper)")]
    assert deeper and len(sections) - len(deeper) >= 3
    assert [int(re.match(r"## (\d+)", title)[1]) for title in sections] == list(range(1, len(sections) + 1))
