"""The runner runs notebooks, and its scan sees what papermill lets through."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import os
import sys
import time

import nbformat
import pytest
import zmq.asyncio
from bs4 import BeautifulSoup
from jupyter_client.session import Session
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from publishing import MAX_BYTES, unpublishable

from minica.__main__ import main
from minica.course.runner import ShellChannel, find
from minica.course.scan import scan, tagged_text

pytestmark = pytest.mark.xdist_group("course")  # the runs below are shared by the tests of this file

PARAMETERS = ("PRESET = 'laptop'\nRETRAIN = False", "parameters")


def write(folder, name, *cells):
    """A notebook of code cells, each a source or (source, tag)."""
    pairs = [cell if isinstance(cell, tuple) else (cell, None) for cell in cells]
    cells = [new_code_cell(source, metadata={"tags": [tag]} if tag else {}) for source, tag in pairs]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def command(*arguments):
    """Exit status, stdout and stderr of ``python -m minica ...``."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One notebook without fault, run beside a ``python3`` kernel that someone installed and that does not start."""
    root = tmp_path_factory.mktemp("good run")  # paths with spaces must work
    source = write(
        root,
        "00_good",
        PARAMETERS,
        "import importlib.util, os, pathlib, sys, ipywidgets",
        "ipywidgets.interact(lambda level: print(level), level=(0, 3))",
        "pathlib.Path('tuned').mkdir()\npathlib.Path('tuned/adapter_model.safetensors').write_bytes(bytes(1_230_000));",
        ("print(PRESET, RETRAIN)\nballast = bytearray(300_000_000)", "headline"),
        ("[sys.executable, os.getcwd(), importlib.util.find_spec('minica').origin]", "where"),
        ("print('method  accuracy')\nprint('linear  84.2')", "result-table"),
        ("6 * 7  # solved", "solution"),
    )
    kernel = root / "elsewhere" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["no-such-python"], "display_name": "Python 3", "language": "python"}))
    before = source.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "elsewhere"))
        options = ["--preset", "smoke", "--retrain", "--notebooks", root, "--out", root / "out"]
        status, text, _ = command("course", "00", *options)
    assert source.read_bytes() == before
    return status, text, root / "out"


def test_a_good_run_ends_with_its_table(good):
    status, text, out = good
    assert status == 0
    row = next(line for line in text.splitlines() if line.startswith("00_good"))
    assert row.endswith("smoke True")  # the parameters arrived
    assert "method  accuracy\nlinear  84.2\n" in text
    assert "adapter_model.safetensors (1.23 MB)" in text
    assert "00_good.ipynb" in text and "00_good.html" in text
    if sys.platform == "linux":
        assert 0.3 < float(row.split()[2]) < 0.6 and row.split()[3] == "GB"  # the kernel's own, with its ballast


def test_the_kernel_is_this_interpreter_in_the_output_folder(good):
    executed = nbformat.read(good[2] / "00_good.ipynb", 4)
    where = [sys.executable, str(good[2]), sys.modules["minica"].__file__]
    assert ast.literal_eval(tagged_text(executed, "where")) == where
    assert executed.metadata.papermill.output_path == "00_good.ipynb"


def test_the_page_is_the_executed_notebook(good):
    page = (good[2] / "00_good.html").read_text(encoding="utf-8")
    assert "<title>00_good</title>" in page and "linear  84.2" in page
    (folded,) = BeautifulSoup(page, "html.parser").find_all("details")
    assert folded.summary.text == "Solution" and "# solved" in folded.text and "42" not in folded.text


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """Everything that can go wrong, each in the notebook of its name; three widgets share one kernel."""
    root = tmp_path_factory.mktemp("failing")
    write(
        root,
        "01_widgets",
        PARAMETERS,
        "import ipywidgets\ndef draw(level):\n    raise KeyError(f'level {level}')",
        "ipywidgets.interact(draw, level=(0, 3))",
        "output = ipywidgets.Output()\nwith output:\n    raise ValueError('within')\noutput",
        "slider = ipywidgets.IntSlider()\nipywidgets.VBox([ipywidgets.interactive_output(draw, {'level': slider})])",
    )
    write(
        root,
        "02_observe",
        PARAMETERS,
        "import ipywidgets\nslider = ipywidgets.IntSlider()",
        "def moved(change):\n    raise RuntimeError('moved')\nslider.observe(moved)",
        "slider.value = 2",
        "print('not reached')",
    )
    write(root, "03_untagged", PARAMETERS[0], "print(PRESET)")
    write(root, "04_unknown", ("RETRAIN = False\nprint(PRESET)", "parameters"))
    write(root, "05_dies", PARAMETERS, "import os", "os._exit(9)  # as when memory runs out", "print('not reached')")
    (root / "06_broken.ipynb").write_text("{not json")
    status, text, _ = command("course", "--preset", "smoke", "--notebooks", root, "--out", root / "out")
    return status, text, root / "out"


def faults(text, name):
    """The lines below ``NAME failed:``."""
    below = text.split(f"\n{name} failed:\n")[1].split("\n\n")[0]
    return [line.strip() for line in below.splitlines()]


def test_a_failing_run_says_so_and_runs_the_rest(failing):
    status, text, out = failing
    assert status == 1
    assert text.count("FAILED: ") == 6
    assert {path.stem for path in out.glob("*.ipynb")} == {"01_widgets", "02_observe", "05_dies"}


def test_errors_inside_widgets_are_seen(failing):
    _, text, _ = failing
    assert sorted(faults(text, "01_widgets")) == [
        "In [4] `ipywidgets.interact(draw, level=(0, 3))`: a widget's callback raised KeyError: 'level 1'",
        "In [5] `output = ipywidgets.Output()`: a widget's callback raised ValueError: within",
        "In [6] `slider = ipywidgets.IntSlider()`: a widget's callback raised KeyError: 'level 0'",
    ]


def test_the_cell_and_its_error_are_named(failing):
    _, text, _ = failing
    assert faults(text, "02_observe")[0] == "In [5] `slider.value = 2`: RuntimeError: moved"


def test_parameters_that_would_not_arrive(failing):
    _, text, _ = failing
    assert faults(text, "03_untagged") == [
        "0 cells are tagged 'parameters'; there must be one, which assigns PRESET and RETRAIN"
    ]
    assert faults(text, "04_unknown") == ["it has no parameter PRESET; its cell assigns RETRAIN"]


def test_a_dead_kernel_and_a_broken_file(failing):
    _, text, _ = failing
    died, skipped = faults(text, "05_dies")
    assert "os._exit(9)" in died and died.endswith("DeadKernelError: Kernel died")
    assert skipped.startswith("not executed: ")
    assert faults(text, "06_broken")[0].startswith("NotJSONError")


def test_a_reply_is_not_missed_while_widgets_are_answered():
    session = Session(key=b"secret")

    async def reply_while_sending():
        kernel = zmq.Context.instance().socket(zmq.ROUTER)
        socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        socket.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
        channel = ShellChannel(socket, session)  # jupyter_client's own AsyncZMQSocketChannel waits for ever here
        try:
            channel.send(session.msg("execute_request"))
            client, *_ = kernel.recv_multipart()
            waiting = asyncio.create_task(channel.get_msg())
            await asyncio.sleep(0.1)  # it waits now
            session.send(kernel, "execute_reply", ident=client)
            time.sleep(0.2)  # the reply is here, and nobody has looked yet
            channel.send(session.msg("comm_msg"))  # as nbclient does for an Output widget
            return (await asyncio.wait_for(waiting, 60))["msg_type"]
        finally:
            socket.close(0)
            kernel.close(0)

    assert asyncio.run(reply_while_sending()) == "execute_reply"


def test_an_early_exit_is_not_a_success():
    exited = new_output("error", ename="SystemExit", evalue="")
    stopped = new_code_cell("sys.exit()", execution_count=2, outputs=[exited])
    cells = [new_code_cell(PARAMETERS[0], execution_count=1, metadata={"tags": ["parameters"]}), stopped]
    assert scan(new_notebook(cells=cells[:1])) == []
    assert [fault.split(":")[0] for fault in scan(new_notebook(cells=cells))] == ["In [2] `sys.exit()`"]
    assert "not executed: In [ ] `1 + 1`" in scan(new_notebook(cells=[cells[0], new_code_cell("1 + 1")]))[0]


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda nb: nb.cells.append(new_markdown_cell("x" * MAX_BYTES)), "over 250 kB"),
        (lambda nb: nb.cells.append(new_code_cell("open('/home/ada/x.png')")), "/home/ada/x.png"),
        (lambda nb: nb.cells.append(new_markdown_cell("see /tmp/run/x")), "/tmp/run/x"),
        (lambda nb: nb.cells.append(new_code_cell("open(r'C:\\Users\\Ada')")), "C:\\Users\\Ada"),
        (lambda nb: nb.cells[0].outputs.append(new_output("stream", text="saved /home/reader/a")), "the output of"),
        (lambda nb: nb.cells[0].outputs.append(new_output("display_data", {"text/html": "/opt/a"})), "/opt/a"),
        (lambda nb: nb.metadata.update(papermill={"output_path": "/srv/a.ipynb"}), "metadata"),
        (lambda nb: nb.metadata.update(widgets={"application/vnd.jupyter.widget-state+json": {}}), "no state"),
    ],
)
def test_what_must_not_be_published(tmp_path, change, fault):
    notebook = new_notebook(cells=[new_code_cell("1")])
    change(notebook)
    nbformat.write(notebook, tmp_path / "a.ipynb")
    (found,) = unpublishable(tmp_path / "a.ipynb")
    assert fault in found


def test_what_may_be_published(tmp_path):
    text = r"https://example.org/home/ada, ../tmp/x, ~/var/x, either/or, $h: \mathbb{R} \to x$, a:b"
    picture = new_output("display_data", {"image/png": "+/home/x/var/y", "text/plain": "<Figure>"})
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    notebook = new_notebook(cells=[new_markdown_cell(text), new_code_cell("1", outputs=[picture])])
    notebook.metadata.widgets = widgets
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert unpublishable(tmp_path / "a.ipynb") == []


def test_notebooks_are_found_in_order(tmp_path):
    paths = [write(tmp_path, name, PARAMETERS) for name in ("00_first", "01_second", "02_third")]
    assert find((), tmp_path) == paths
    assert find(["02", "00_first.ipynb", "00"], tmp_path) == [paths[0], paths[2]]


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--preset", "quick"], ["quick", "smoke, laptop, gpu, paper"]),
        (["03_fourth"], ["03_fourth", "00_first"]),
        (["--notebooks", "no-such-folder"], ["no-such-folder", "--notebooks"]),
        (["--notebooks", "empty"], ["no notebooks", "empty"]),
        (["--out", "."], ["--out"]),
        (["--out", "00_first.ipynb/below"], ["00_first.ipynb"]),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, named):
    source = write(tmp_path, "00_first", PARAMETERS)
    before = source.read_bytes()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    status, _, error = command("course", "--notebooks", ".", *arguments)
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in named)
    assert source.read_bytes() == before


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["course", "--presets", "smoke", "--fast"])
    assert "--fast" in capsys.readouterr().err


def test_lab_opens_copies_and_passes_options_on(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr("minica.course.runner.subprocess.call", lambda line, env: called.append((line, env)) or 0)
    (tmp_path / "course").mkdir()
    original = write(tmp_path / "course", "00_first", PARAMETERS)
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "--notebooks", "course", "--no-browser"]) == 0
    ((line, env),) = called
    assert line == [sys.executable, "-m", "jupyterlab", "my_notebooks", "--no-browser"]
    assert env["PATH"] == os.environ["PATH"]
    copy = tmp_path / "my_notebooks" / "00_first.ipynb"
    assert copy.read_bytes() == original.read_bytes()
    copy.write_text("the reader's own")
    write(tmp_path / "course", "01_second", PARAMETERS)
    capsys.readouterr()
    assert main(["lab", "--notebooks", "course"]) == 0
    assert "Kept yours in my_notebooks: 00_first." in capsys.readouterr().out
    assert copy.read_text() == "the reader's own" and (tmp_path / "my_notebooks" / "01_second.ipynb").exists()
