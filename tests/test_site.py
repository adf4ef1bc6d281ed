"""The notebooks as pages: as new as the notebooks, whole without a network, without a script, and readable on a phone."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser import browser, chrome  # noqa: F401
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minica.__main__ import main
from minica.course import site
from minica.course.explorer import DOCS
from minica.course.frame import BRANCH, repository_url
from minica.course.page import html, mathml
from minica.course.runner import NOTEBOOKS

pytestmark = pytest.mark.xdist_group("browser")

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
STEMS = [path.stem for path in PATHS]
CHECKS = Path(__file__).with_name("page_checks.js")
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.S)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.S | re.M)
CARD = "# A title\n\n| | |\n|---|---|\n| **You will see** | one *thing*; another |"


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text without code."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.code = [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.code += tag in ("pre", "code", "style")

    def handle_endtag(self, tag):
        self.code -= tag in ("pre", "code", "style")

    def handle_data(self, data):
        if not self.code:
            self.words.append(data)

    def all(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


@pytest.fixture(scope="module")
def pages():
    missing = [stem for stem in STEMS if not (site.FOLDER / f"{stem}.html").exists()]
    assert not missing, f"{missing} have no page: run python -m minica pages"
    return {stem: (site.FOLDER / f"{stem}.html").read_text(encoding="utf-8") for stem in STEMS}


@pytest.fixture(scope="module")
def parsed(pages):
    return {stem: Elements(text) for stem, text in pages.items()}


def markdown_of(path):
    """The Markdown of a notebook's cells and of its outputs, without code."""
    for cell in nbformat.read(path, 4).cells:
        texts = [cell.source] if cell.cell_type == "markdown" else []
        texts += [
            output.data["text/markdown"] for output in cell.get("outputs", ()) if "text/markdown" in output.get("data", {})
        ]
        yield from (CODE.sub("", text) for text in texts)


# ---------------------------------------------------------------- the committed pages


@pytest.mark.parametrize("path", PATHS, ids=STEMS)
def test_a_page_is_as_new_as_its_notebook(path, parsed):
    meta = {attrs["name"]: attrs["content"] for attrs in parsed[path.stem].all("meta") if "name" in attrs}
    assert meta[site.HASH] == site.source_hash(path), f"{path.stem}.html is behind its notebook: run python -m minica pages"


def test_there_is_a_page_for_every_notebook_and_no_other(pages):
    assert sorted(path.stem for path in site.FOLDER.glob("*.html")) == list(pages)
    assert len(pages) >= 12 and max(len(text) for text in pages.values()) < 400_000


@pytest.mark.parametrize("path", PATHS, ids=STEMS)
def test_every_formula_is_drawn_and_none_is_left_raw(path, parsed):
    formulas = [formula for text in markdown_of(path) for formula in FORMULA.findall(text)]
    assert all("<math" in mathml(formula.strip("$"), display=formula.startswith("$$")) for formula in formulas)
    page = parsed[path.stem]
    shown = [attrs.get("display") for attrs in page.all("math")]
    assert shown == ["block" if formula.startswith("$$") else "inline" for formula in formulas]
    assert not re.search(r"\$|\\[a-zA-Z]{2}|\\[\[(]", "".join(page.words))


def test_some_notebooks_have_formulas(pages):
    assert sum(text.count('<math display="block"') + text.count(' display="block"') for text in pages.values()) >= 4


@pytest.mark.parametrize("stem", STEMS)
def test_a_page_loads_nothing(stem, pages, parsed):
    page = parsed[stem]
    assert not page.all("script", "iframe", "object", "embed", "video", "audio", "source", "base")
    assert all(attrs["src"].startswith("data:image/") for attrs in page.all("img"))
    assert [attrs["href"] for attrs in page.all("link")] == ["data:,"]
    styles = "".join(re.findall(r"<style>.*?</style>", pages[stem], re.S)) + "".join(
        attrs.get("style") or "" for _, attrs in page.tags
    )
    assert "url(" not in styles and "@import" not in styles
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "srcset"]


@pytest.mark.parametrize("stem", STEMS)
def test_a_page_says_what_it_is_and_its_pictures_what_they_show(stem, parsed):
    page = parsed[stem]
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("title")) == 1
    (description,) = [attrs["content"] for attrs in page.all("meta") if attrs.get("name") == "description"]
    assert len(description) > 40 and "*" not in description
    cells = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", 4).cells
    about = [output.metadata for cell in cells for output in cell.get("outputs", ()) if "metadata" in output]
    told = [kind["alt"] for each in about for name, kind in each.items() if name.startswith("image/") and "alt" in kind]
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert [alt for alt in told if alt not in [attrs["alt"] for attrs in page.all("img")]] == []


@pytest.mark.parametrize("stem", STEMS)
def test_links_lead_to_files_that_exist(stem, parsed):
    repository = f"{repository_url()}/blob/{BRANCH}/"
    targets = [attrs["href"] for attrs in parsed[stem].all("a")]
    assert "../index.html" in targets
    at = STEMS.index(stem)
    assert {f"{STEMS[i]}.html" for i in (at - 1, at + 1) if 0 <= i < len(STEMS)} <= set(targets)
    for target in targets:
        if target.startswith(repository):
            assert (NOTEBOOKS.parent / urlsplit(target.removeprefix(repository)).path).is_file(), target
        elif "://" not in target:
            assert not target.endswith(".ipynb") and (site.FOLDER / unquote(urlsplit(target).path)).is_file(), target
        else:
            assert not target.startswith("https://github.com/") or target.startswith(repository_url()), target
            assert urlsplit(target).netloc in ("colab.research.google.com", "arxiv.org", "github.com"), target


# ---------------------------------------------------------------- in a browser

WIDE = """() => [...document.querySelectorAll("body *")].filter((one) => {
  if (one.closest("svg, math") && !one.matches("math")) return false;
  for (let at = one.parentElement; at; at = at.parentElement) {
    if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return false;
  }
  return one.getBoundingClientRect().right > innerWidth + 0.5;
}).map((one) => one.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("stem", STEMS)
def test_a_page_on_a_phone_without_a_network(browser, stem):  # noqa: F811
    with chrome.watched(browser, 390) as seen:
        page = seen.page
        page.context.set_offline(True)
        page.goto((site.FOLDER / f"{stem}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390 and page.evaluate(WIDE) == []
        assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
        sizes = page.locator("math").evaluate_all("all => all.map((one) => one.getBoundingClientRect().height)")
        assert all(size > 8 for size in sizes if size)  # nothing is drawn of one in a closed answer
        page.add_script_tag(path=CHECKS)
        faint = [found for found in page.evaluate("contrasts()") if found[0] < 4.5]
        assert not faint
        folded = page.locator("details")
        assert folded.count() >= 5 and page.locator("details[open]").count() == 0
        hint = page.locator("details:has(summary:text-is('Hint'))").first
        inside = hint.locator("> :not(summary)").first
        assert not inside.is_visible()
        hint.locator("summary").click()
        assert inside.is_visible() and page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not seen.errors and all(address.startswith(("file:", "data:")) for address in seen.addresses)


def test_the_explorer_leads_to_the_pages_and_back(browser):  # noqa: F811
    with chrome.watched(browser) as seen:
        seen.page.goto(chrome.EXPLORER.as_uri())
        entries = seen.page.locator("#notebooks li")
        assert entries.count() == len(STEMS) and all(len(text.splitlines()) == 2 for text in entries.all_inner_texts())
        entries.nth(2).locator("a").click()
        assert seen.page.url == (site.FOLDER / f"{STEMS[2]}.html").as_uri()
        seen.page.locator("nav a").first.click()
        assert seen.page.url == chrome.EXPLORER.as_uri() and not seen.errors and not seen.abroad


# ---------------------------------------------------------------- how a page is made


def made(*cells, **options):
    return html(new_notebook(cells=list(cells)), "a title", **options)


def test_dollars_are_formulas_in_text_and_tables_and_dollars_in_code():
    table = "| size | price |\n|---|---|\n| $K^2$ | `$5` |"
    output = new_output("display_data", {"text/markdown": f"{table}\n\n$$\\gamma > 1$$", "text/plain": "no"})
    stream = new_output("stream", name="stdout", text="costs $1 and $2\n")
    page = Elements(
        made(
            new_markdown_cell(f"An $x_1$ and `$HOME`.\n\n```sh\necho $A $B\n```\n\n{table}\n\n$$\ny =\n\\frac{{1}}{{x}}\n$$"),
            new_code_cell("print('costs $1 and $2')", outputs=[output, stream]),
        )
    )
    assert [attrs["display"] for attrs in page.all("math")] == ["inline", "inline", "block", "inline", "block"]
    assert "$" not in "".join(page.words)
    text = made(new_markdown_cell("`$a$`"), new_code_cell("a = '$x$'", outputs=[stream]))
    assert "<code>$a$</code>" in text and "'$x$'" in text and "costs $1 and $2" in text and "<math" not in text


def test_formulas_look_as_in_tex():
    assert '<mi mathvariant="normal">&#x00394;</mi>' in mathml(r"\Delta(x)") and "<mi>x</mi>" in mathml(r"\Delta(x)")
    assert '<mo lspace="0" rspace="0.28em">:</mo>' in mathml(r"x\colon y")


@pytest.mark.parametrize(
    ("formula", "said"), [(r"\frac{1}{", "is not TeX"), (r"\nocommand{x}", r"does not know: '\\\\nocommandx'")]
)
def test_a_formula_that_cannot_be_drawn_is_refused(formula, said, tmp_path, capsys):
    with pytest.raises(ValueError, match=said):
        mathml(formula)
    nbformat.write(new_notebook(cells=[new_markdown_cell(CARD), new_markdown_cell(f"${formula}$")]), tmp_path / "00_one.ipynb")
    assert main(["pages", "--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "00_one.ipynb: the formula" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_links_badges_and_folded_answers():
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://colab.research.google.com/github/a)"
    links = "[next](01_b.ipynb#end) [words](../docs/notation.md#k) [data](data.csv) [paper](https://arxiv.org/abs/1) [up](#top)"
    answer = "<details><summary>Answer</summary>\n\nFirst $x$.\n\n* a list\n\n</details>\n\nAfter it."
    text = made(new_markdown_cell(f"{badge}\n\n{links}\n\n{answer}"), base="https://github.com/a/b/blob/main/notebooks/")
    assert [attrs["href"] for attrs in Elements(text).all("a")] == [
        "https://colab.research.google.com/github/a",
        "01_b.html#end",
        "https://github.com/a/b/blob/main/docs/notation.md#k",
        "https://github.com/a/b/blob/main/notebooks/data.csv",
        "https://arxiv.org/abs/1",
        "#top",
    ]
    assert ">Open in Colab</a>" in text and "<img" not in text
    (inside,) = re.findall(r"<details><summary>Answer</summary>(.*?)</details>", text, re.S)
    assert "First" in inside and "<math" in inside and "a list" in inside and "After it" not in inside


def test_text_in_columns_scrolls_and_other_text_wraps():
    rows, sentence = ["name   value\n", "alpha  1\n"], ["a sentence\n   indented\n"]
    printed = [[new_output("stream", name="stdout", text=text) for text in texts] for texts in (rows, sentence)]
    text = made(*(new_code_cell("show()", outputs=outputs) for outputs in printed))
    assert '<pre class="columns">name   value\nalpha  1' in text, "lines that are printed one by one are one table"
    assert "<pre>a sentence" in text


def test_the_command_writes_pages_wherever_it_is_told(tmp_path, capsys):
    for name in ("00_one", "01_two"):
        nbformat.write(new_notebook(cells=[new_markdown_cell(CARD)]), tmp_path / f"{name}.ipynb")
    out = tmp_path / "there" / "pages"
    assert main(["pages", "--notebooks", str(tmp_path), "--out", str(out)]) == 0
    assert f"2 pages: {out}" in capsys.readouterr().out
    text = (out / "00_one.html").read_text(encoding="utf-8")
    assert "<title>00 A title · Conv-Adapter</title>" in text and 'content="one thing; another"' in text
    targets = [attrs["href"] for attrs in Elements(text).all("a")]
    assert (out / targets[0]).resolve() == DOCS / "index.html" and targets[1] == "01_two.html"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (new_markdown_cell('<img src="https://example.org/a.png">'), "shows https://example.org/a.png, which a reader without"),
        (new_markdown_cell("![a drawing](drawing.png)"), "shows drawing.png, which a reader without a network"),
    ],
)
def test_what_would_have_to_be_fetched_is_refused(cell, said, tmp_path, capsys):
    nbformat.write(new_notebook(cells=[new_markdown_cell(CARD), cell]), tmp_path / "00_one.ipynb")
    assert main(["pages", "--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_notebook_without_a_card_is_refused(tmp_path, capsys):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Only a title")]), tmp_path / "00_one.ipynb")
    assert main(["pages", "--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "You will see" in capsys.readouterr().err
