"""What is the same around every notebook: a badge, the set-up cell, and links to its neighbours and to the glossary."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from .runner import NOTEBOOKS, find

BRANCH = "main"  # whose notebooks a badge opens
BADGE = re.compile(r"^\[!\[Open in Colab\].*$", re.M)
LINKS = re.compile(r"^(?:Before|Next): \[.*$", re.M)

# The only code of the course that must run without the package.  It is one function, so that it leaves no names behind.
SET_UP = """\
# @title Set-up: does nothing where minica is installed; elsewhere (Colab) it fetches and installs it
def set_up():
    import importlib.util
    import os
    import subprocess
    import sys
    from importlib.metadata import version

    known = importlib.util.find_spec("minica")
    if known and known.origin:  # without an origin it is a folder that happens to have this name
        return

    def call(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\\n{done.stderr or done.stdout}")

    url = os.environ.get("MINICA_REPOSITORY", "REPOSITORY")
    place = os.path.abspath("minica-course")
    print(f"fetching {url} and installing it; a few minutes, once")
    if not os.path.isdir(place):
        call("git", "clone", "--depth", "1", url, place)
    stay = [name for name in ("torch", "torchvision", "numpy") if importlib.util.find_spec(name)]
    with open("minica-stay.txt", "w") as file:  # pip leaves these as they are, or says why it cannot
        file.writelines(f"{name}=={version(name)}\\n" for name in stay)
    pip = [sys.executable, "-m", "pip", "install", "--constraint", "minica-stay.txt"]
    call(*pip, "--editable", f"{place}[colab]")
    sys.path.insert(0, place)  # an editable installation is else found by the next interpreter only
    importlib.invalidate_caches()


set_up()"""
HIDDEN = {"tags": ["setup"], "cellView": "form", "jupyter": {"source_hidden": True}}  # Colab's and JupyterLab's word for folded


def repository_url(root: Path = NOTEBOOKS.parent) -> str:
    """The address of the repository, from ``pyproject.toml``.

    Raises:
        ValueError: if it is not one of GitHub, whose notebooks Colab opens.
    """
    url = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise ValueError(
            f"{url} in pyproject.toml's [project.urls] is not https://github.com/OWNER/NAME; Colab opens no other."
        )
    return url


def write_frames(notebooks: str | Path | None = None) -> list[Path]:
    """Write what is the same into all notebooks; returns those that were changed."""
    paths, changed = find(notebooks=notebooks), []
    for path in paths:
        stored = path.read_text(encoding="utf-8")
        text = nbformat.writes(framed(nbformat.reads(stored, 4), path.name, paths, repository_url()))
        if text.rstrip("\n") != nbformat.writes(nbformat.reads(stored, 4)).rstrip("\n"):
            path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
            changed.append(path)
    return changed


def framed(notebook: NotebookNode, name: str, paths: Sequence[Path], url: str) -> NotebookNode:
    """The notebook, changed: badge under the title, set-up before the parameters, links at the end.

    Args:
        name: its file's.
        paths: all notebooks, in the course's order.
        url: of the repository.
    """
    first, last = notebook.cells[0], notebook.cells[-1]
    title, _, rest = BADGE.sub("", first.source).partition("\n")
    first.source = f"{title}\n\n{_badge(name, url)}\n\n{rest.strip()}"
    last.source = f"{LINKS.sub('', last.source).strip()}\n\n{_links(name, paths)}"
    _place_set_up(notebook, SET_UP.replace('"REPOSITORY"', f'"{url}"'))
    return notebook


def _badge(name: str, url: str) -> str:
    colab = "https://colab.research.google.com"
    page = f"{colab}/github/{url.removeprefix('https://github.com/')}/blob/{BRANCH}/notebooks/{name}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({page})"


def _links(name: str, paths: Sequence[Path]) -> str:
    names = [path.name for path in paths]
    at = names.index(name)
    places = [("Before", at - 1), ("Next", at + 1)]
    links = [f"{word}: {_link(paths[i])}" for word, i in places if 0 <= i < len(paths)]
    return " · ".join([*links, "Words and symbols: [glossary](../docs/notation.md)"])


def _link(path: Path) -> str:
    title = nbformat.read(path, 4).cells[0].source.partition("\n")[0].lstrip("# ")
    return f"[{path.stem.partition('_')[0]} {title}]({path.name})"


def _place_set_up(notebook: NotebookNode, source: str) -> None:
    (old,) = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", ())] or [None]
    if old is None:
        at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        notebook.cells.insert(at, new_code_cell(source, id="setup", metadata=HIDDEN))
    elif old.source != source:
        old.source, old.outputs, old.execution_count = source, [], None
