"""The system's Chromium on the explorer's page and on a notebook in JupyterLab, for browser tests and the timing of sliders.

Playwright drives it and downloads nothing.  Every wait is for something to be seen on the page, up to ``PATIENCE``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat.v4 import new_code_cell
from playwright.sync_api import Browser, Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
EXPLORER = ROOT / "docs" / "index.html"
NOTEBOOK = ROOT / "notebooks" / "02_conv_adapter.ipynb"
NAMES = ("chromium", "chromium-browser", "google-chrome")
APT = "no Chromium is installed; apt-get install chromium puts it there: sudo apt-get install -y chromium"
PATIENCE = 300  # seconds; nothing here takes more than a few, but a machine may be busy
IDLE = re.compile(r"^(?!No Kernel).*\| Idle$")  # in JupyterLab's status bar, before it the kernel's name
LOCAL = ("127.0.0.1", "localhost")


def find_chromium() -> str:
    """The path of the system's Chromium.

    Raises:
        ValueError: with the line that installs it, if there is none.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise ValueError(APT)
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that reaches no other machine."""
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--disable-gpu"]
    with sync_playwright() as playwright:
        path = find_chromium()
        browser = playwright.chromium.launch(executable_path=path, args=arguments, timeout=1000 * PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


class Watched(NamedTuple):
    """A page, and what happened on it: errors of its console and its scripts, and every address that it asked for."""

    page: Page
    errors: list[str]
    addresses: list[str]

    @property
    def abroad(self) -> list[str]:
        """Addresses on other machines."""
        own = tuple(f"{protocol}://{host}{end}" for protocol in ("http", "ws") for host in LOCAL for end in (":", "/"))
        return [url for url in self.addresses if not url.startswith((*own, "file:", "data:", "blob:"))]


@contextmanager
def watched(browser: Browser, width: int = 1280, height: int = 900) -> Iterator[Watched]:
    """A new page of so many pixels, with nothing stored from pages before it."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    seen = Watched(page, [], [])
    page.on("console", lambda said: seen.errors.append(f"{said.text} ({said.location})") if said.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.addresses.append(request.url))
    try:
        yield seen
    finally:
        context.close()


# ---------------------------------------------------------------- JupyterLab

# What is written above the drawing, and the process that drew it, in a label of its own: of two outputs of one callback
# JupyterLab may lose the second on a busy machine, when the kernel's echo of the first arrives late.
TOLD = """import os

import ipywidgets

told = ipywidgets.Label()
told.add_class("told")


def tell(draw):
    def drawn(*args, **options):
        figure = draw(*args, **options)
        told.value = "; ".join([*(axis.get_title() for axis in figure.axes), f"drawn by process {os.getpid()}"])
        return figure

    return drawn


plots.adapter_drawing = tell(plots.adapter_drawing)
told"""


def copy_of_sliders(folder: Path) -> Path:
    """A copy of the notebook's cells that its sliders need, at preset smoke, with a cell that tells what they draw."""
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", ()))
    (sliders,) = [cell for cell in code if "plots.adapter_drawing" in cell.source]
    parameters = new_code_cell(code[first].source.replace('PRESET = "laptop"', 'PRESET = "smoke"'))
    assert parameters.source != code[first].source
    notebook.cells = [parameters, code[first + 1], new_code_cell(TOLD), sliders]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    path = folder / NOTEBOOK.name
    nbformat.write(notebook, path)
    return path


class Lab(NamedTuple):
    """A running JupyterLab."""

    address: str
    token: str

    def kernels(self) -> list[dict]:
        """What the server says of its kernels."""
        with urllib.request.urlopen(f"{self.address}api/kernels?token={self.token}", timeout=PATIENCE) as answer:
            return json.load(answer)


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab of this interpreter on ``folder``, with settings of its own, on a free port of this machine alone."""
    token, own = secrets.token_hex(16), folder / ".jupyter"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "IPYTHONDIR": str(own / "ipython"),
    }
    options = ["--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={token}"]
    options += ["--allow-root", "--LabApp.extension_manager=readonly", "--LabApp.news_url=None"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    own.mkdir(parents=True)
    command = [sys.executable, "-m", "jupyterlab", str(folder), *options]
    with open(own / "log", "w+") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            yield Lab(_address(server, own), token)
        finally:
            server.terminate()  # it ends its kernels, then itself
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()


def _address(server: subprocess.Popen, own: Path) -> str:
    """Where the server listens, by the file that it writes when it does."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for file in (own / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text())["url"]
            except json.JSONDecodeError:  # half written
                pass
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with status {server.returncode}: {(own / 'log').read_text()[-2000:]}")
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start within {PATIENCE} s: {(own / 'log').read_text()[-2000:]}")


def open_notebook(page: Page, lab: Lab, notebook: Path) -> None:
    """Open a notebook in JupyterLab; its kernel is ready, and nothing has run."""
    page.goto(f"{lab.address}lab/tree/{notebook.name}?token={lab.token}")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    page.get_by_text(IDLE).wait_for()  # before that JupyterLab would ask which kernel to run with


SLIDERS = ".jp-CodeCell:has(.widget-interact)"  # the picture is an output of the cell, not of the widget


def run_all(page: Page) -> Locator:
    """Run all cells of the open notebook, and return the cell of sliders that they end with; it shows its first picture."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    widget = page.locator(SLIDERS)
    widget.locator("img").wait_for()
    page.get_by_text(IDLE).wait_for()
    return widget


def slider(widget: Locator, label: str) -> Locator:
    """The handle of the slider whose label has this word; it takes the arrow keys."""
    return widget.locator(".widget-slider").filter(has_text=re.compile(label, re.IGNORECASE)).get_by_role("slider")
