"""What an executed notebook shows where no kernel runs: as a notebook without dead sliders, and as one page of HTML."""

from __future__ import annotations

import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from jinja2 import pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from .scan import VIEW

TEMPLATE, STYLE = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html.j2", "css"))
REMOTE = re.compile(r"(?:\w+:)?//")
GREEK_CAPITAL = re.compile("<mi>(&#x0039[1-9A-F];|&#x003A[0-9];)</mi>")  # upright in TeX; a browser slants what is alone
COLON = '<mo lspace="0" rspace="0.28em">:</mo>'  # of \colon, which the converter takes for a letter
COLUMNS = re.compile(r"\S {2,}\S")  # text that is set in columns; other text of a cell wraps where the screen ends


def without_widgets(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed: where a slider was, its text.

    A slider's saved state would show it where it does not move; and GitHub shows nothing of a notebook whose state it dislikes.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(VIEW, None)
    return notebook


def html(
    notebook: NotebookNode,
    title: str,
    *,
    meta: Mapping[str, str] | None = None,
    links: Sequence[tuple[str, str]] = (),
    base: str = "",
) -> str:
    """A page with its style, formulas as MathML and the pictures of outputs in it; solutions and set-up open by a click.

    A link to a notebook becomes one to its page beside this one, a picture on another host its alternative text.

    Args:
        meta: further ``<meta>`` elements, by name.
        links: (text, target), above and below the notebook.
        base: the address of the folder that other relative links of the notebook start from; it ends with a slash.

    Raises:
        ValueError: if a formula cannot be written as MathML.
    """
    page = {"meta": dict(meta or {}), "links": list(links), "style": STYLE}
    config = Config({"CoalesceStreamsPreprocessor": {"enabled": True}})  # lines of one table may have been printed one by one
    exporter = _Exporter(config=config, raw_template=TEMPLATE, filters={"columns": COLUMNS.search})
    exporter.base = base
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}, "page": page})
    return body


def mathml(formula: str, *, display: bool = False) -> str:
    """A formula of TeX as MathML, which browsers draw without a script.

    Raises:
        ValueError: for TeX that is wrong, or that has a command which the converter does not know.
    """
    try:
        text = convert(formula.strip(), display="block" if display else "inline")
        words = "".join(ElementTree.fromstring(text).itertext())
    except Exception as error:  # of many classes, most of them with an empty text
        raise ValueError(f"the formula {formula.strip()!r} is not TeX: {error or type(error).__name__}.") from error
    if "\\" in words:  # an unknown command is handed on as its name
        raise ValueError(
            f"the formula {formula.strip()!r} has a command that latex2mathml does not know: {words!r}; use another one."
        )
    text = GREEK_CAPITAL.sub(r'<mi mathvariant="normal">\1</mi>', text).replace("<mi>&#x0003A;</mi>", COLON)
    return f'<span class="formula">{text}</span>' if display else text


class _Renderer(IPythonRenderer):
    """Markdown of a page that needs no script, no other host and no wider screen."""

    base = ""

    def block_math(self, body: str) -> str:
        return mathml(body, display=True)

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, _target(url, self.base), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return self.escape_html(text) if REMOTE.match(url) else super().image(text, url, title)

    def table(self, text: str) -> str:
        return f'<div class="scroll"><table>\n{text}</table></div>\n'


class _Exporter(HTMLExporter):
    base = ""

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        # ``embed_images``, which would add the pictures that Markdown links to, closes <details> at the first blank line.
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments)
        renderer.base = self.base
        return MarkdownWithMath(renderer=renderer).render(source)


def _target(href: str, base: str) -> str:
    """Where a link of a notebook leads on its page."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or not parts.path:
        return href
    if parts.path.endswith(".ipynb") and "/" not in parts.path:
        return urlunsplit(parts._replace(path=f"{parts.path.removesuffix('.ipynb')}.html"))
    if not base:
        return href
    start = urlsplit(base)
    path = posixpath.normpath(posixpath.join(start.path, parts.path))
    return urlunsplit(start._replace(path=path, query=parts.query, fragment=parts.fragment))
