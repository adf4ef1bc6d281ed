"""The pages around the notebooks: links lead somewhere, snippets run, the glossary knows where a word is first met."""

import re

import nbformat
import pytest

from minica.course.frame import LINKS
from minica.course.page import html
from minica.course.routes import ROUTES, routes_table
from minica.course.runner import NOTEBOOKS

ROOT = NOTEBOOKS.parent
PAGES = [ROOT / "README.md", ROOT / "TEACHING.md", ROOT / "DATA.md", *sorted((ROOT / "docs").glob("*.md"))]
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


def markdown_of(path, without=None):
    """The text of a page, or of a notebook's Markdown cells but for those with the tag ``without``."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    return "\n\n".join(cell.source for cell in cells if without not in cell.metadata.get("tags", ()))


def snippets(name):
    return SNIPPET.findall((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*PAGES, *PATHS], ids=lambda path: path.stem)
def test_relative_links_lead_to_files(path):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown_of(path), flags=re.S | re.M)
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    if path.suffix == ".ipynb" or path.name == "README.md":
        assert links
    for target in links:
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        assert place.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(markdown_of(place)), f"{path.name}: {target}"


def anchors(text):
    """Of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("name", "least"), [("before_you_start", 5), ("misconceptions", 10)])
def test_snippets_run_and_say_something(name, least):
    found = snippets(name)
    sections = re.findall(r"^## .*$", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), re.M)
    assert len(found) == len(sections) >= least, "one snippet a section"
    for source in found:
        statements = [line for line in source.splitlines() if line and not line.startswith(("import ", "from "))]
        assert "assert " in source and len(statements) <= 7, source
        exec(compile(source, f"docs/{name}.md", "exec"), {})


def test_a_snippet_that_is_wrong_fails():
    source = snippets("misconceptions")[0].replace("> 0", "== 0")
    with pytest.raises(AssertionError):
        exec(source, {})


def test_answers_of_the_entry_check_are_folded():
    text = (ROOT / "docs" / "before_you_start.md").read_text(encoding="utf-8")
    assert text.count("<details><summary>Answer</summary>") == text.count("</details>") == 5
    assert "```python" not in re.sub(r"<details>.*?</details>", "", text, flags=re.S)


def glossary():
    """(word, number of the notebook in which it is first met), a row of the page."""
    for line in (ROOT / "docs" / "notation.md").read_text(encoding="utf-8").splitlines():
        if found := re.search(r"\[(\d\d)\]\(\.\./notebooks/(\d\d)_\w+\.ipynb\) \|$", line):
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            assert found[1] == found[2], line
            yield cells[0], found[1]


def test_the_glossary_names_the_notebook_in_which_a_word_is_first_met():
    texts = {path.name[:2]: LINKS.sub("", markdown_of(path, without="exercise")).lower() for path in PATHS}
    rows = list(glossary())
    assert len(rows) >= 50 and len(rows) == len(dict(rows)), "a word has one row"
    for word, number in rows:
        pattern = re.compile(rf"(?<!\w){re.escape(word.lower())}(?:s|es|ed)?(?!\w)")
        assert [other for other, text in texts.items() if pattern.search(text)][:1] == [number], word


def test_routes_add_up_what_was_measured(tmp_path):
    for path in PATHS:
        notebook = nbformat.v4.new_notebook()
        if path.name[:2] not in ("05", "07"):
            notebook.metadata["minica"] = {"seconds": 60 * (1 + int(path.name[:2]))}
        nbformat.write(notebook, tmp_path / path.name)
    minutes = [line.strip("| ").rpartition("| ")[2] for line in routes_table(tmp_path).splitlines()[2:]]
    assert minutes == ["9", str(1 + 3 + 4 + 11 + 12), "not measured yet", "not measured yet"] and len(minutes) == len(ROUTES)


def test_teaching_names_exercises_and_commands_that_are_there():
    text = (ROOT / "TEACHING.md").read_text(encoding="utf-8")
    for heading in ("What students need", "Ninety minutes", "Four weeks", "A rubric for projects", "Exercises and grading"):
        assert f"## {heading}\n" in text
    assert "MINICA_STRICT=1" in text and "make student" in text
    assert {path.name for path in PATHS} <= set(re.findall(r"notebooks/(\w+\.ipynb)", text)), "every notebook has its week"


def test_answers_and_hints_are_folded_on_a_page():
    notebook = nbformat.read(PATHS[3], 4)
    folded = sum(cell.source.count("<details>") for cell in notebook.cells if cell.cell_type == "markdown")
    inside = re.findall(r"<details><summary>(?:Answer|Hint)</summary>\n(.*?)</details>", html(notebook, PATHS[3].stem), re.S)
    assert folded >= 4 and len(inside) == folded and all("<p>" in text for text in inside)
    page = html(notebook, PATHS[3].stem)
    assert re.findall(r"<details><summary[^>]*>(Set-up|Solution)</summary>", page) == ["Set-up", "Solution", "Solution"]
    texts = [markdown_of(path) for path in PATHS]
    pictures = [target for text in texts for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)]
    assert all("://" in target for target in pictures), "a page does not hold pictures that Markdown links to"
