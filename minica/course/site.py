"""The committed notebooks, with the outputs that they hold, as a folder of pages beside the explorer; nothing is run."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import nbformat

from ..atomic import write_atomically
from .explorer import DOCS, about
from .frame import BRANCH, repository_url
from .page import STYLE, TEMPLATE, html, without_widgets
from .runner import find

FOLDER = DOCS / "notebooks"
HASH = "minica-source"  # the <meta> element that says what a page was made from
FETCHED = re.compile(
    r"""<(?:img|script|link|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|href|data)=["'](?!data:)([^"']+)"""
)


def write_pages(out: str | Path = FOLDER, notebooks: str | Path | None = None) -> list[Path]:
    """Write a page of HTML for every notebook into ``out`` and return the files.

    Pages link to each other, to the explorer, and to the repository by the address in ``pyproject.toml``; they load nothing.

    Raises:
        ValueError: if a notebook has a formula that is not written as MathML, or shows something that would have to be fetched.
    """
    out, paths = Path(out), find(notebooks=notebooks)
    out.mkdir(parents=True, exist_ok=True)
    base = f"{repository_url()}/blob/{BRANCH}/notebooks/"
    read = [nbformat.read(path, 4) for path in paths]
    titles = [f"{path.name[:2]} {about(notebook.cells[0].source)[0]}" for path, notebook in zip(paths, read, strict=True)]
    explorer = Path(os.path.relpath(DOCS / "index.html", out)).as_posix()
    written = []
    for at, (path, notebook) in enumerate(zip(paths, read, strict=True)):
        beside = [("Before", at - 1), ("Next", at + 1)]
        links = [("Explorer", explorer)]
        links += [(f"{word}: {titles[i]}", f"{paths[i].stem}.html") for word, i in beside if 0 <= i < len(paths)]
        meta = {"description": about(notebook.cells[0].source)[1], HASH: source_hash(path)}
        try:
            text = html(without_widgets(notebook), f"{titles[at]} · Conv-Adapter", meta=meta, links=links, base=base)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        if fetched := FETCHED.search(text):
            raise ValueError(
                f"{path.name} shows {fetched[1]}, which a reader without a network does not see; make it an output of a cell."
            )
        written.append(out / f"{path.stem}.html")
        write_atomically(written[-1], text.encode())
    return written


def source_hash(notebook: Path) -> str:
    """SHA-256 of what a page is made from: the notebook's text, the template and the style."""
    return hashlib.sha256("\0".join([notebook.read_text(encoding="utf-8"), TEMPLATE, STYLE]).encode()).hexdigest()
