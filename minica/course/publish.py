"""Puts what a notebook shows into the committed notebook: its outputs, what its card measured, and which code it is from.

An executed copy is not committed as it is: papermill's cell with the parameters would override a reader's own, and its
metadata say where it ran.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode

from .runner import Run, closing_table, find, run

CARD = re.compile(r"^\| \*\*Time, memory, download\*\* \|.*\|$", re.M)
PACKAGES = ("torch", "timm")  # named on the card; the metadata have Python and the date as well


def publish(names: Sequence[str] = (), *, out: str | Path = "build/published", notebooks: str | Path | None = None) -> int:
    """Run notebooks at the ``laptop`` preset and write what they show into them; 0 if all are without fault, else 1.

    Each runs in a new folder within ``out``: where an earlier run was left, what resumes would be measured as faster.
    A notebook with a fault stays as it is.  Its text and code are never changed, but for the card's row of measurements.

    Raises:
        ValueError: for an unknown notebook.
    """
    paths, runs = find(names, notebooks), []
    Path(out).mkdir(parents=True, exist_ok=True)
    for path in paths:
        print(f"{path.stem}", flush=True)
        before = downloaded()
        runs.append(done := run(path, tempfile.mkdtemp(prefix=f"{path.stem}-", dir=out)))
        if not done.faults:
            notebook = with_outputs(nbformat.read(path, 4), nbformat.read(done.notebook, 4))
            write_card(notebook, done, downloaded() - before)
            nbformat.write(notebook, path)
    print(f"\n{closing_table(runs)}\n\nThe pages follow by `python -m minica pages`,")
    print("the README's minutes by `python -m benchmarks.pages`.")
    return int(any(done.faults for done in runs))


def with_outputs(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """``notebook`` with the outputs of an executed copy, cell by cell, numbered as if the parameters' cell were not there.

    Raises:
        ValueError: if a cell's code is not what was executed.
    """
    ran = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        if cell.id not in ran or ran[cell.id].source != cell.source:
            raise ValueError(f"cell {cell.id} of the notebook is not what was executed; run it again.")
        cell.outputs, cell.execution_count = ran[cell.id].outputs, number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    shown = {key: executed.metadata[key] for key in ("kernelspec", "language_info") if key in executed.metadata}
    notebook.metadata = NotebookNode(shown)
    return notebook


def write_card(notebook: NotebookNode, done: Run, download: int) -> None:
    """The measured row of the card in the first cell, and the same in the metadata with a hash of the code.

    Args:
        done: the run that was measured.
        download: bytes.
    """
    versions = {name: version(name).partition("+")[0] for name in PACKAGES} | {"python": platform.python_version()}
    memory = "?" if done.memory is None else f"{done.memory / 1e9:.1f} GB"
    fetched = f"{download / 1e6:,.0f} MB downloaded" if download else "nothing to download"
    where = f"{os.cpu_count()} cores {'and a GPU' if torch.cuda.is_available() else 'without a GPU'}"
    day = datetime.date.today().isoformat()
    tested = f"{day} with {', '.join(f'{name} {versions[name]}' for name in PACKAGES)}"
    minutes = f"{max(done.seconds / 60, 0.1):.1f} minutes"
    row = f"| **Time, memory, download** | {minutes} on {where}, {memory} of memory, {fetched}; measured {tested} |"
    first = notebook.cells[0]
    if len(CARD.findall(first.source)) != 1:
        raise ValueError(f"the first cell of {done.name} has no row '| **Time, memory, download** | ... |' to write.")
    first.source = CARD.sub(lambda match: row, first.source)
    measured = {"seconds": round(done.seconds), "memory": done.memory, "download": download}
    notebook.metadata["minica"] = {"code": code_hash(notebook), "date": day, "versions": versions, **measured}


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of all code of a notebook: other outputs belong to other code."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def downloaded() -> int:
    """Bytes in the folders that PyTorch and Hugging Face download to."""
    places = {Path(torch.hub.get_dir()), Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))}
    files = [file for place in places if place.is_dir() for file in place.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
