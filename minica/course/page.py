"""What an executed notebook shows where no kernel runs: as a notebook without dead sliders, and as one page of HTML."""

from __future__ import annotations

from pathlib import Path

from nbconvert import HTMLExporter
from nbformat import NotebookNode

from .scan import VIEW

# nbconvert's page has no alternative text of a picture and no tables that fit a phone, and shows every solution and set-up.
_PICTURE = """
{% block data_KIND scoped %}{% set alt = output | get_metadata('alt', 'image/TYPE') %}
{{- super() | replace('<img ', '<img alt="' ~ (alt | escape_html) ~ '" ', 1) if alt else super() }}{% endblock %}"""
TEMPLATE = (
    """{%- extends 'index.html.j2' -%}
{% block html_head_css %}{{ super() }}
<style>
.jp-RenderedMarkdown table {display: block; overflow-x: auto; max-width: 100%}
.jp-OutputArea-output pre {white-space: pre-wrap; overflow-wrap: anywhere; word-break: normal}
@media (max-width: 600px) {
  body.jp-Notebook {padding: 0 4px}
  .jp-InputPrompt, .jp-OutputPrompt {display: none}
  .jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th {padding: 3px 5px}
}
</style>{% endblock %}"""
    + """
{%- block input -%}
{%- set folded = {'solution': 'Solution', 'setup': 'Set-up'} -%}
{%- set names = cell.metadata.get('tags', []) | select('in', folded) | list -%}
{%- if names -%}
<details><summary style="font-family: var(--jp-content-font-family)">{{ folded[names[0]] }}</summary>
{{- super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock input -%}"""
    + _PICTURE.replace("KIND", "png").replace("TYPE", "png")
    + _PICTURE.replace("KIND", "jpg").replace("TYPE", "jpeg")
)


def without_widgets(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed: where a slider was, its text.

    A slider's saved state would show it where it does not move; and GitHub shows nothing of a notebook whose state it dislikes.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(VIEW, None)
    return notebook


def html(notebook: NotebookNode, name: str, folder: Path) -> str:
    """A page with the pictures of outputs in it, each with its alternative text; solutions and set-up open by a click.

    ``embed_images``, which would add the pictures that Markdown links to, closes every ``<details>`` at its first blank line.

    Args:
        name: the page's title.
        folder: where the files are that its text names.
    """
    exporter = HTMLExporter(raw_template=TEMPLATE)
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name, "path": str(folder)}})
    return body
