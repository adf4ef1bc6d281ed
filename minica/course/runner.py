"""Runs the course's notebooks with papermill, and opens them in JupyterLab.

A notebook speaks to the runner through the tags of its cells:

* ``parameters``: the one cell that assigns ``PRESET`` and ``RETRAIN``; the runner's values are put in right after it.
* ``headline``: what this cell prints (or shows as text) is the notebook's one-line result in the closing table.
* ``result-table``: the text of these cells is printed in full at the end when the notebook is run alone.

A comment ``# papermill_description=training`` in a cell (one word) names it on the progress bar.  A notebook runs in
the output folder, with this interpreter and this ``minica``, whatever kernels are installed elsewhere; so it writes to
relative paths, and nothing lands among the sources.  Needs the ``course`` extra.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar

import nbformat
import papermill
import psutil
import zmq
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from .page import html, without_widgets
from .presets import PRESETS
from .scan import cell_place, one_line, parameter_faults, scan, tagged_text

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

# Threads that wait busily slow each other down as soon as anything else runs: on two busy cores a training step of
# EfficientNet-Lite0 took 1.0 s instead of 1.6 to 3.9 s when they wait passively.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}


@dataclass
class Run:
    """What one notebook did: its wall-clock seconds, its kernel's peak memory in bytes, and every fault found."""

    name: str
    seconds: float = 0.0
    memory: int | None = None
    headline: str = ""
    tables: str = ""
    faults: list[str] = field(default_factory=list)
    notebook: Path | None = None  # the executed copy
    page: Path | None = None  # the same as HTML, pictures embedded
    adapters: list[Path] = field(default_factory=list)  # adapter files saved meanwhile


def run_course(
    names: Sequence[str] = (),
    *,
    preset: str = "laptop",
    out: str | Path = "build/course",
    retrain: bool = False,
    notebooks: str | Path | None = None,
) -> int:
    """Run notebooks in order, print a closing table, and return 0 if all are without fault, else 1.

    ``names`` are file stems or their numbers (``00_quickstart``, ``00``); none means all.  A failing notebook does not
    keep the next ones from running.

    Raises:
        ValueError: for an unknown notebook or preset, or an output folder that is the notebooks' own.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    paths = find(names, notebooks)
    runs = []
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {path.stem} at preset {preset}", flush=True)
        runs.append(run(path, out, preset=preset, retrain=retrain))
    print(f"\n{closing_table(runs)}\n")
    for done in runs:
        if done.faults:
            print("\n  ".join([f"{done.name} failed:", *done.faults]) + "\n")
    if len(runs) > 1:
        print(f"Executed notebooks and pages: {out}")
    else:
        print(_details(runs[0]))
    sys.stdout.flush()
    return int(any(done.faults for done in runs))


def lab(notebooks: str | Path | None = None, arguments: Sequence[str] = (), copies: str | Path = "my_notebooks") -> int:
    """Open JupyterLab on copies of the notebooks, so that the originals stay as they are; returns its exit status.

    Args:
        arguments: go to JupyterLab.
        copies: their folder.  A copy that is there already is the reader's and is kept.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed; install the course's extra: pip install 'minica[course]'.")
    copies, kept = Path(copies), []
    for path in find(notebooks=notebooks):
        copies.mkdir(parents=True, exist_ok=True)
        if (copies / path.name).exists():
            kept.append(path.stem)
        else:
            shutil.copyfile(path, copies / path.name)
    if kept:
        print(f"Kept yours in {copies}: {', '.join(kept)}.  Delete one to have it anew.", flush=True)
    command = [sys.executable, "-m", "jupyterlab", str(copies), *arguments]
    return subprocess.call(command, env=ENVIRONMENT | os.environ)


def find(names: Sequence[str] = (), notebooks: str | Path | None = None) -> list[Path]:
    """The notebooks called ``names`` (stems or numbers; none means all), in the course's order."""
    folder = _folder(notebooks)
    known = sorted(folder.glob("*.ipynb"))
    if not known:
        raise ValueError(f"there are no notebooks in {folder}; name another folder with --notebooks.")
    if not names:
        return known
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        found = [path for path in known if path.stem == stem or path.stem.split("_")[0] == stem]
        if not found:
            raise ValueError(f"there is no notebook {name!r}; choose from {', '.join(path.stem for path in known)}.")
        chosen.update(found)
    return sorted(chosen)


def _folder(notebooks: str | Path | None) -> Path:
    folder = Path(notebooks) if notebooks is not None else NOTEBOOKS
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder of notebooks at {folder}. They are part of the repository, not of the installed "
            "package: use a clone installed with 'pip install -e .[course]', or name their folder with --notebooks."
        )
    return folder


class ShellChannel(AsyncZMQSocketChannel):
    """The channel that replies come on, which looks again every half second.

    nbclient answers Output widgets through the very socket that it awaits the cell's reply on, and such a sending can
    take away the wake-up of a reply that has just arrived.  Then a notebook with ``interact`` waits for ever, about one
    run in twenty on a busy machine (nbclient's issue 312).
    """

    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await super().get_msg(max(0.0, min(0.5, end - time.monotonic())))
            except Empty:
                if time.monotonic() >= end:
                    raise


class _Kernel(AsyncKernelManager):
    """A kernel of this very interpreter that imports this ``minica``; its peak memory is noted before it ends."""

    last_peak: ClassVar[int | None] = None

    def __init__(self, **traits: Any) -> None:
        # With no folder to look into, ``python3`` is ipykernel's own specification, which starts sys.executable.  A
        # kernel that someone once installed for their user would otherwise go first.
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **traits)
        if self.has_trait("transport_encryption") and zmq.has("curve"):
            self.transport_encryption = "auto"  # newer kernels warn on every start without it

    async def start_kernel(self, **arguments: Any) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        await super().start_kernel(env=ENVIRONMENT | os.environ | {"PYTHONPATH": path}, **arguments)

    def client(self, **arguments: Any) -> AsyncKernelClient:
        client = super().client(**arguments)
        client.shell_channel_class = ShellChannel
        return client

    async def shutdown_kernel(self, **arguments: Any) -> None:
        _Kernel.last_peak = _peak_memory(self.provisioner.pid)
        await super().shutdown_kernel(**arguments)


def _peak_memory(pid: int) -> int | None:
    """The most memory the process ever held, in bytes, by the operating system's own record (macOS keeps none: None).

    One process: what its data-loading workers hold is not in it.
    """
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024
    return getattr(psutil.Process(pid).memory_info(), "peak_wset", None)


def run(path: str | Path, out: str | Path, *, preset: str = "laptop", retrain: bool = False) -> Run:
    """Run one notebook in the folder ``out``; leave there its executed copy and the same as an HTML page.

    Faults of the notebook, a kernel that dies included, are returned and not raised.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    if path.parent == out:
        raise ValueError(f"{out} holds the notebooks themselves; name another output folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    result, executed, page = Run(path.stem), out / path.name, out / f"{path.stem}.html"
    executed.unlink(missing_ok=True)
    page.unlink(missing_ok=True)
    parameters = {"PRESET": preset} | ({"RETRAIN": True} if retrain else {})
    _Kernel.last_peak, started = None, time.time()
    try:
        result.faults = parameter_faults(nbformat.read(path, 4), parameters)
        if not result.faults:
            papermill.execute_notebook(
                str(path),
                str(executed),
                parameters,
                kernel_name="python3",
                language="python",
                cwd=str(out),
                kernel_manager_class=_Kernel,
            )
    except papermill.PapermillExecutionError:
        pass  # the executed copy holds the error and its cell, which the scan names
    except Exception as error:  # a notebook that is not one, a kernel that died: the next notebook still runs
        result.faults = [one_line(f"{type(error).__name__}: {error}")]
        if executed.exists():
            begun = [cell for cell in nbformat.read(executed, 4).cells if cell.metadata.papermill.get("start_time")]
            result.faults = [f"{cell_place(cell)}: {result.faults[0]}" for cell in begun[-1:]] or result.faults
    result.seconds, result.memory = time.time() - started, _Kernel.last_peak
    if executed.exists():
        notebook = nbformat.read(executed, 4)
        result.faults += scan(notebook)
        result.headline = one_line(tagged_text(notebook, "headline"))
        result.tables = tagged_text(notebook, "result-table")
        # Papermill notes where it ran; the copy may be shared or committed, so only the names stay.
        notebook.metadata.papermill.update(input_path=path.name, output_path=path.name)
        nbformat.write(without_widgets(notebook), executed)
        result.notebook = executed
        try:
            page.write_text(html(notebook, path.stem), encoding="utf-8")
            result.page = page
        except ValueError as error:  # a formula
            result.faults.append(one_line(f"no page: {error}"))
        saved = sorted(out.rglob("adapter_model.safetensors"))
        result.adapters = [file for file in saved if file.stat().st_mtime >= started]
    return result


def closing_table(runs: Sequence[Run]) -> str:
    """Notebook, seconds, peak memory and headline result, one line each; a fault takes the result's place."""
    rows = [("notebook", "seconds", "peak memory", "result")]
    for done in runs:
        memory = "-" if done.memory is None else f"{done.memory / 1e9:.2f} GB"
        result = f"FAILED: {done.faults[0]}" if done.faults else done.headline
        rows.append((done.name, f"{done.seconds:.0f}", memory, result))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _details(done: Run) -> str:
    """What a single notebook leaves behind: its result table, adapters with their sizes, the copy and its page."""
    lines = [f"{done.tables}\n"] if done.tables else []
    lines += [f"Saved adapter      {_shown(file)} ({file.stat().st_size / 1e6:.2f} MB)" for file in done.adapters]
    if done.notebook is not None:
        lines.append(f"Executed notebook  {_shown(done.notebook)}")
    if done.page is not None:
        lines.append(f"The same as HTML   {_shown(done.page)}")
    return "\n".join(lines)


def _shown(path: Path) -> Path:
    """Relative to where the reader stands, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
