"""What keeps a notebook from being committed or shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minica.course.scan import cell_place

MAX_BYTES = 250_000  # a committed notebook must open on GitHub and on a phone

_ABSOLUTE = re.compile(
    r"(?<![\w.~-])/(?:home|root|tmp|Users|var|opt|mnt|srv|work|workspace|content|private|Volumes)/[\w.]"
    r"|\b[A-Za-z]:[\\/]+(?:Users|Windows|Program Files|Temp)\b"
)


def unpublishable(path: str | Path) -> list[str]:
    """What would keep a notebook from being committed or shown: too large, an absolute path, widgets without state."""
    notebook, size = nbformat.read(path, 4), Path(path).stat().st_size
    faults = []
    if size > MAX_BYTES:
        faults.append(f"{size / 1e3:.0f} kB, over {MAX_BYTES / 1e3:.0f} kB: make its pictures fewer or smaller")
    for place, text in _texts(notebook):
        if match := _ABSOLUTE.search(text):
            faults.append(f"{place}: an absolute path, {text[match.start() : match.end() + 40].split()[0]}")
    for name, bundle in notebook.metadata.get("widgets", {}).items():
        if "state" not in bundle:  # GitHub then refuses to show any of the notebook
            faults.append(f"its widget metadata {name} has no state; run it again, or delete metadata.widgets")
    return faults


def _texts(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """(where, text) for all that can be read in a notebook; pictures are not text."""
    yield "metadata", json.dumps(notebook.metadata, ensure_ascii=False)
    for cell in notebook.cells:
        yield cell_place(cell), cell.source
        for output in cell.get("outputs", ()):
            yield f"the output of {cell_place(cell)}", "\n".join([output.get("text", ""), *output.get("traceback", ())])
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield f"the output of {cell_place(cell)}", data if isinstance(data, str) else json.dumps(data)
