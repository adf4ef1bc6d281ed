"""Copies of the notebooks for a class: without solutions and without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .runner import find


def write_student_copies(out: str | Path = "build/student", notebooks: str | Path | None = None) -> list[Path]:
    """Write every notebook into the folder ``out``, without cells tagged ``solution`` and without outputs.

    Raises:
        ValueError: if ``out`` is the notebooks' own folder, or there are no notebooks.
    """
    out, written = Path(out), []
    for path in find((), notebooks):
        if path.parent.resolve() == out.resolve():
            raise ValueError(f"{out} holds the notebooks themselves; name another output folder with --out.")
        out.mkdir(parents=True, exist_ok=True)
        nbformat.write(for_students(nbformat.read(path, 4)), out / path.name)
        written.append(out / path.name)
    return written


def for_students(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed: no solutions, no outputs, and nothing about the run that made them."""
    notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", ())]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    for key in ("papermill", "widgets", "minica"):  # sliders' saved state is an output as well, and so is what was measured
        notebook.metadata.pop(key, None)
    return notebook
