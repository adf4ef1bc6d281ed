"""The house: how large the core may be, and that imports go one way, over every file of the package."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import minica

ROOT = Path(minica.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
CORE = sorted(path for path in ROOT.glob("*.py") if path.name not in ("__init__.py", "__main__.py"))
# A file may import its own room and those before it.  ``networks`` (networks and weights that timm lacks) imports nothing of
# ours; ``tasks`` (losses, metrics, checks of targets) is what keeps the training loop free of any one task.
ROOMS = ["networks", "core", "fast", "tasks", "data", "dense", "experiments", "app", "course"]


def lines_of_code(path):
    """Lines that hold code: no docstring, no comment, no blank line."""
    lines, fresh = set(), True
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        layout = (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER)
        if token.type in (tokenize.NEWLINE, *layout):
            fresh = fresh or token.type == tokenize.NEWLINE
        elif not (fresh and token.type == tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
            fresh = False
    return len(lines)


def room(path):
    parts = path.relative_to(ROOT).parts
    return "core" if len(parts) == 1 else parts[0]


def imported(path):
    """Every file of the package that ``path`` imports, wherever in it, also for type checkers."""
    package = ["minica", *path.relative_to(ROOT).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names += [".".join([*base, alias.name]) for alias in node.names] + [".".join(base)]
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "minica":
            place = ROOT.joinpath(*parts[1:])
            found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists() and len(parts) > 1}
    return found


def test_the_core_is_compact():
    sizes = {path.name: lines_of_code(path) for path in CORE}
    assert sum(sizes.values()) <= 2_300, sizes
    assert sum(sizes[name] for name in ("adapter.py", "anatomy.py", "schemes.py")) <= 450, sizes


def test_every_folder_is_a_room():
    assert {room(path) for path in FILES} <= set(ROOMS)
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent != ROOT or path in CORE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_one_way(path):
    before = ROOMS[: ROOMS.index(room(path)) + 1]
    if path.name == "training.py" and room(path) == "core":
        before = [*before, "fast", "tasks"]
    for other in imported(path):
        assert room(other) in before, f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
    assert "minica" not in path.read_text(encoding="utf-8").split("import minica\n")[0] or room(path) != "networks"


def test_no_circle():
    graph = {
        path: {other for other in imported(path) if other != path} for path in FILES if path.parent != ROOT or path in CORE
    }
    done = set()

    def visit(path, above):
        assert path not in above, " -> ".join(str(p.relative_to(ROOT)) for p in [*above, path])
        if path not in done:
            for other in graph.get(path, ()):
                visit(other, [*above, path])
            done.add(path)

    for path in graph:
        visit(path, [])


def test_files_have_a_plain_first_sentence_and_do_not_only_pass_on():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").split("\n")[0]
        assert first and "?" not in first, path
        kinds = {type(node) for node in tree.body} - {ast.Import, ast.ImportFrom, ast.Expr}
        assert kinds or path.name == "__init__.py", f"{path.name} only passes on"


def test_no_name_is_two_things():
    """``minica.lean`` is a function, so no module of that name may hide behind it; the same in every package."""
    for path in FILES:
        if path.name == "__init__.py":
            package = ".".join(["minica", *path.relative_to(ROOT).parts[:-1]])
            modules = {file.stem for file in path.parent.glob("*.py")} | {f.name for f in path.parent.iterdir() if f.is_dir()}
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {
                alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
            }
            defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            own = {
                alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and not node.module for alias in node.names
            }
            assert not (names - own | defined) & modules, package


def test_import_loads_no_tables_no_plots_no_notebook():
    program = "import sys, minica; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "minica.recipe" in loaded
    unwanted = ("matplotlib", "IPython", "ipykernel", "jupyter", "papermill", "minica.experiments", "minica.course", "ray")
    assert not [name for name in loaded if name.startswith(unwanted)]
