"""What is the same around every notebook: badge, set-up cell, links; and that the set-up cell sets up."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import nbformat
import pytest

from minica.__main__ import main
from minica.course.frame import BADGE, framed, repository_url, write_frames
from minica.course.runner import NOTEBOOKS

ROOT = NOTEBOOKS.parent
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


@each
def test_the_committed_notebook_has_its_frame(path):
    stored = path.read_text(encoding="utf-8")
    notebook = framed(nbformat.reads(stored, 4), path.name, PATHS, repository_url())
    assert nbformat.writes(notebook).rstrip("\n") == stored.rstrip("\n"), "python -m minica frame writes it"


@each
def test_the_frame_of_a_notebook(path):
    notebook = nbformat.read(path, 4)
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    (badge,) = BADGE.findall("\n".join(cell.source for cell in notebook.cells))
    assert badge in notebook.cells[0].source
    assert badge.endswith(f"/github/{url.removeprefix('https://github.com/')}/blob/main/notebooks/{path.name})")
    (cell,) = tagged(notebook, "setup")
    (parameters,) = tagged(notebook, "parameters")
    code = [other for other in notebook.cells if other.cell_type == "code"]
    assert code[0] is cell and code[1] is parameters
    assert f'"{url}"' in cell.source
    place, last = PATHS.index(path), notebook.cells[-1].source.splitlines()[-1]
    assert ("Before: [" in last, "Next: [" in last) == (place > 0, place + 1 < len(PATHS))
    for neighbour in PATHS[max(place - 1, 0) : place + 2]:
        assert (f"]({neighbour.name})" in last) == (neighbour != path)


def test_another_address_and_another_neighbour_are_followed(tmp_path):
    for path in PATHS[:2]:
        shutil.copy(path, tmp_path)
    paths = sorted(tmp_path.glob("*.ipynb"))
    notebook = framed(nbformat.read(paths[0], 4), paths[0].name, paths, "https://github.com/someone/fork")
    assert "github.com/minica" not in nbformat.writes(notebook) and "/github/someone/fork/blob/" in notebook.cells[0].source
    assert len(tagged(notebook, "setup")) == 1 and len(BADGE.findall(notebook.cells[0].source)) == 1
    assert write_frames(tmp_path) == [paths[1]], "the second one has no next notebook any more"
    assert "Next: [" not in nbformat.read(paths[1], 4).cells[-1].source
    assert main(["frame", "--notebooks", str(tmp_path)]) == 0 and write_frames(tmp_path) == []


def test_an_address_that_colab_does_not_open(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nurls = { Repository = "https://example.org/minica" }\n')
    with pytest.raises(ValueError, match="example.org/minica in pyproject.toml.* is not https://github.com/OWNER/NAME"):
        repository_url(tmp_path)


@pytest.fixture
def interpreter(tmp_path_factory):
    """A Python of its own that has all packages of this one, pip among them, but not minica."""
    place = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(place / "venv"), "platbase": str(place / "venv")})
    # A path in a .pth file is searched for modules; that path's own .pth files, and with them an editable minica, are not read.
    with open(f"{own}/packages.pth", "w") as file:
        file.write("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return python


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The working tree as a git repository, so that what is not committed yet is tested as well."""
    place = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "README.md", "LICENSE", "DATA.md"):
        shutil.copy(ROOT / name, place)
    for name in ("minica", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", "-C", place, *command], check=True)
    return place


def run(python, program, folder, **environment):
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}
    variables |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | environment  # "0": pip reads it as no
    return subprocess.run([python, "-c", program], cwd=folder, env=variables, capture_output=True, text=True)


def test_the_set_up_cell_in_a_fresh_interpreter(interpreter, repository, tmp_path):
    (cell,) = tagged(nbformat.read(PATHS[0], 4), "setup")
    (tmp_path / "minica").mkdir()  # a folder of that name is no package
    program = f"{cell.source}\nimport minica\nprint(minica.__file__)"
    first = run(interpreter, program, tmp_path, MINICA_REPOSITORY=str(repository))
    assert first.returncode == 0, first.stderr
    said, found = first.stdout.splitlines()
    assert said.startswith(f"fetching {repository} and installing it")
    assert found == str(tmp_path / "minica-course" / "minica" / "__init__.py")
    kept = (tmp_path / "minica-stay.txt").read_text().split()
    assert sorted(line.partition("==")[0] for line in kept) == ["numpy", "torch", "torchvision"]
    # In the next interpreter it is installed: nothing is fetched, and no package beside minica was.  (A folder called minica
    # would hide the installed one, and the cell would put the clone before it once more.)
    (tmp_path / "minica").rmdir()
    program = f"{cell.source}\nimport importlib.util\nprint(importlib.util.find_spec('minica').origin)"
    again = run(interpreter, program, tmp_path, MINICA_REPOSITORY="nowhere", PATH="")
    assert again.returncode == 0 and again.stdout.splitlines() == [found], again.stderr
    packages = sysconfig.get_path("purelib", vars={"base": str(interpreter.parents[1])})
    installed = {name.partition("-")[0] for name in os.listdir(packages) if name.endswith(".dist-info")}
    assert installed == {"minica"}


def test_a_set_up_that_fails_says_why(interpreter, tmp_path):
    (cell,) = tagged(nbformat.read(PATHS[0], 4), "setup")
    failed = run(interpreter, cell.source, tmp_path, MINICA_REPOSITORY=str(tmp_path / "nowhere"))
    assert failed.returncode == 1
    assert "RuntimeError: git clone --depth 1" in failed.stderr and "does not exist" in failed.stderr


def test_where_minica_is_there_the_cell_does_nothing(tmp_path):
    (cell,) = tagged(nbformat.read(PATHS[0], 4), "setup")
    done = run(sys.executable, cell.source, tmp_path, PATH="", PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
