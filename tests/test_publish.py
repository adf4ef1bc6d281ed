"""What a notebook shows is put into the committed one: outputs, measurements, and the hash of the code they are from."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from publishing import unpublishable

from minica.__main__ import main
from minica.course.publish import code_hash, with_outputs, write_card
from minica.course.runner import Run

pytestmark = pytest.mark.xdist_group("course")

ROWS = ("| | |", "|---|---|", "| **You need** | nothing |", "| **Time, memory, download** | typed |", "| **The paper** | - |")
TITLE = "\n".join(["# A title", "", *ROWS])


def build(folder, name, *code):
    parameters = new_code_cell("PRESET = 'laptop'\nRETRAIN = False", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(TITLE), parameters, *map(new_code_cell, code)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two notebooks through the command, the second with an error: status, their folder, and both as they were before."""
    folder = tmp_path_factory.mktemp("course")
    good = build(
        folder, "00_good", "print(PRESET)", "import ipywidgets\nipywidgets.interact(lambda n: print(n), n=(0, 2));", "6 * 7"
    )
    bad = build(folder, "01_bad", "print('before')", "1 / 0")
    before = good.read_bytes(), bad.read_bytes()
    status = main(["publish", "--notebooks", str(folder), "--out", str(folder / "out")])
    return status, folder, before


def test_outputs_without_what_papermill_added(published):
    _, folder, _ = published
    notebook = nbformat.read(folder / "00_good.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert code[1].outputs[0].text == "laptop\n" and code[3].outputs[0].data["text/plain"] == "42"
    assert code[3].outputs[0].execution_count == 4
    assert not any("injected-parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells)
    assert "papermill" not in notebook.metadata and not any("papermill" in cell.metadata for cell in notebook.cells)
    assert "widgets" not in notebook.metadata and unpublishable(folder / "00_good.ipynb") == []


def test_the_card_is_measured(published):
    _, folder, _ = published
    notebook = nbformat.read(folder / "00_good.ipynb", 4)
    row = re.search(r"\| \*\*Time, memory, download\*\* \| (.*) \|", notebook.cells[0].source)[1]
    pattern = r"\d+\.\d minutes on \d+ cores (and|without) a GPU, \d\.\d GB of memory, nothing to download; measured 20\d\d-"
    assert re.match(pattern, row) and "torch 2." in row
    assert TITLE.replace("typed", row) == notebook.cells[0].source, "and nothing else is changed"
    about = notebook.metadata.minica
    assert about.code == code_hash(notebook) and about.seconds > 0 and about.memory > 10**7


def test_a_notebook_with_a_fault_stays_as_it_is(published):
    status, folder, (good, bad) = published
    assert status == 1
    assert (folder / "01_bad.ipynb").read_bytes() == bad and (folder / "00_good.ipynb").read_bytes() != good


def test_other_code_has_another_hash(published):
    _, folder, _ = published
    notebook = nbformat.read(folder / "00_good.ipynb", 4)
    before = code_hash(notebook)
    notebook.cells[0].source += "\n\nmore text"
    assert code_hash(notebook) == before
    notebook.cells[-1].source = "6 * 8"
    assert code_hash(notebook) != before
    with pytest.raises(ValueError, match="is not what was executed"):
        with_outputs(notebook, nbformat.read(next((folder / "out").glob("00_good-*/00_good.ipynb")), 4))


def test_nothing_of_an_earlier_run_is_resumed(tmp_path):
    build(tmp_path, "00_once", "open('left', 'x').close()  # an error where the file is there")
    for _ in range(2):
        assert main(["publish", "--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]) == 0


def test_a_download_is_told():
    notebook = new_notebook(cells=[new_markdown_cell(TITLE)])
    write_card(notebook, Run("00_good", seconds=93, memory=1_440_000_000), 97_800_000)
    assert "1.6 minutes on" in notebook.cells[0].source and "1.4 GB of memory, 98 MB downloaded;" in notebook.cells[0].source
    with pytest.raises(ValueError, match="no row"):
        write_card(new_notebook(cells=[new_markdown_cell("# A title")]), Run("00_good"), 0)
