"""What an executed notebook really did: faults that papermill lets through, and the text of its tagged cells."""

from __future__ import annotations

import ast
import json
from typing import Any

from nbformat import NotebookNode

VIEW = "application/vnd.jupyter.widget-view+json"  # the kind of output that is a widget


def scan(notebook: NotebookNode) -> list[str]:
    """Every fault in an executed copy, whatever papermill's exit status said: an empty list if there is none.

    Papermill ends well although a callback inside ``interact``, ``interactive_output`` or ``with Output()`` raised (the
    error lives in the widget's saved state alone), although a parameter does not exist, although no cell is tagged
    ``parameters`` (the notebook's own values then win), and although ``sys.exit()`` left the rest unexecuted.
    """
    faults = parameter_faults(notebook, notebook.metadata.get("papermill", {}).get("parameters", {}))
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        faults += [f"{cell_place(cell)}: {one_line(f'{error.ename}: {error.evalue}')}" for error in errors]
    if skipped := [cell for cell in code if cell.execution_count is None]:
        faults.append(f"not executed: {cell_place(skipped[0])} and {len(skipped) - 1} cells after it")
    for bundle in notebook.metadata.get("widgets", {}).values():
        state = bundle.get("state", {})
        for model, entry in state.items():
            for output in entry["state"].get("outputs", ()):
                if output["output_type"] == "error":
                    message = one_line(f"{output['ename']}: {output['evalue']}")
                    faults.append(f"{_showing(notebook, state, model)}: a widget's callback raised {message}")
    return faults


def parameter_faults(notebook: NotebookNode, parameters: dict[str, Any]) -> list[str]:
    """Parameters that would not arrive: no cell tagged ``parameters``, or none in it by that name."""
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged 'parameters'; there must be one, which assigns PRESET and RETRAIN"]
    nodes = ast.walk(ast.parse(tagged[0].source))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    missing = [name for name in parameters if name not in names]
    return [f"it has no parameter {name}; its cell assigns {', '.join(sorted(names)) or 'none'}" for name in missing]


def tagged_text(notebook: NotebookNode, tag: str) -> str:
    """What the cells with this tag printed or showed as text."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and tag in cell.metadata.get("tags", ()):
            for output in cell.outputs:
                if output.output_type == "stream" and output.name == "stdout":
                    parts.append(output.text.strip("\n"))
                elif data := output.get("data", {}):
                    parts.append(data.get("text/markdown") or ("" if _is_picture(data) else data.get("text/plain", "")))
    return "\n".join(filter(None, parts))


def _is_picture(data: dict[str, Any]) -> bool:
    return any(kind.startswith("image/") for kind in data)


def cell_place(cell: NotebookNode) -> str:
    """A cell as its reader finds it: its number beside the code, and its first line."""
    first = one_line(next((line for line in cell.source.splitlines() if line.strip()), ""), 60)
    return f"In [{cell.execution_count or ' '}] `{first}`" if cell.cell_type == "code" else f"`{first}`"


def _showing(notebook: NotebookNode, state: dict[str, Any], model: str) -> str:
    """The cell that shows a widget, or the box that it is in."""
    entries, holders, boxes = {key: json.dumps(entry) for key, entry in state.items()}, set(), {model}
    while boxes:
        holders |= boxes
        boxes = {key for key in entries.keys() - holders if any(f"IPY_MODEL_{box}" in entries[key] for box in boxes)}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("data", {}).get(VIEW, {}).get("model_id") in holders:
                return cell_place(cell)
    return "a widget that no cell shows"


def one_line(text: str, length: int = 300) -> str:
    """Text on one line, cut where it gets long."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
