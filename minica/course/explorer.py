"""The data of the page ``docs/index.html``: shapes of networks in which adapters sit, and what was recorded of them.

The page counts in the browser by the closed forms of :mod:`minica.counting`; here are the numbers that these forms take.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from ..anatomy import Part
from ..atomic import write_atomically
from ..backbones import ALIASES, create_backbone
from ..discovery import find_parts, input_shape
from ..experiments.knobs import Setting, setting
from ..experiments.plans import CONFIGS, Cell, Plan, final_records, read_plan
from ..experiments.records import RESULTS, read_records
from ..networks.published import MOCO_V3, PACKAGED_WEIGHTS
from ..profiling import count
from ..schemes import SCHEMES, planned_parameters

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILE = "explorer_data.js"
CLASSES = 10  # of the classifier that the page counts
COMPRESSIONS, KERNELS = (1, 2, 4, 8, 16, 32, 64), (None, 1, 3, 5, 7)  # None: each place's own kernel


class Drawn(NamedTuple):
    """A network as the page draws it: what stands before, in and behind the unit of one of its blocks."""

    title: str
    before: str
    unit: str
    after: str


NETWORKS = {
    "tf_efficientnet_lite0": Drawn("EfficientNet-Lite0", "1 × 1", "depth-wise", "1 × 1"),
    "resnet50": Drawn("ResNet50", "1 × 1", "convolution", "1 × 1"),
    "resnetv2_50x1_bit": Drawn("ResNet50-BiT", "1 × 1", "convolution", "1 × 1"),
    "convnext_small": Drawn("ConvNeXt-S", "", "depth-wise", "two\n1 × 1"),
    "convnext_base": Drawn("ConvNeXt-B", "", "depth-wise", "two\n1 × 1"),
    "convnext_large": Drawn("ConvNeXt-L", "", "depth-wise", "two\n1 × 1"),
    "swin_base_patch4_window7_224": Drawn("Swin-B", "norm", "attention", "add,\nMLP"),
    "swin_large_patch4_window7_224": Drawn("Swin-L", "norm", "attention", "add,\nMLP"),
    "resnet50_clip": Drawn("CLIP ResNet50", "1 × 1", "convolution", "1 × 1"),
    "resnet50x4_clip": Drawn("CLIP ResNet50x4", "1 × 1", "convolution", "1 × 1"),
    "resnet50v2_c4": Drawn("ResNet50v2, three stages", "1 × 1", "convolution", "1 × 1"),
}


def write(folder: str | Path = DOCS) -> Path:
    """Write the page's data into ``folder`` and return the file; it says the same whenever the records are the same.

    Raises:
        ValueError: if there is no such folder, or if a record does not fit what it says that it trained.
    """
    path = Path(folder) / FILE
    if not path.parent.is_dir():
        raise ValueError(
            f"there is no folder {path.parent} for the page's data. The page is part of the repository, not of the installed "
            "package: use a clone, or name a folder with --out."
        )
    write_atomically(path, script(data()).encode())
    return path


def script(found: dict) -> str:
    """The data as JavaScript that assigns one constant, for a page that is opened from a disk cannot fetch JSON."""

    def text(value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):  # a line each: a difference shows which
            return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n]"
        return json.dumps(value, ensure_ascii=False)

    entries = ",\n".join(f"{json.dumps(key)}: {text(value)}" for key, value in found.items())
    return f"// Written by `python -m minica explorer`.\nconst EXPLORER = {{\n{entries}\n}};\n"


def data() -> dict:
    """All that the page shows and cannot compute, in a few seconds: no weights are loaded, no network is trained."""
    networks, parts = [], {}
    for name, drawn in NETWORKS.items():
        with torch.device("meta"):
            model = create_backbone(name, num_classes=CLASSES, pretrained=False).eval()
            parts[name], counted = find_parts(model), count(model)
        networks.append(_network(name, drawn, parts[name], counted, input_shape(model)[1:]))
    return {
        "schemes": [{"name": name, "part": one.part, "reads": one.reads} for name, one in SCHEMES.items()],
        "compressions": list(COMPRESSIONS),
        "kernels": list(KERNELS),
        "classes": CLASSES,
        "networks": networks,
        "records": _records({one["name"]: one for one in networks}, parts),
        "notebooks": _notebooks(),
    }


def _network(name: str, drawn: Drawn, parts: list[Part], counted: dict[str, int], size: tuple[int, int]) -> dict:
    """One network: its sizes and, place by place, [name, kind, C_in, C_out, K, stride, height, width of what is written]."""
    places = [
        [part.name, part.kind, part.in_channels, part.out_channels, part.kernel_size, part.stride[0], *part.out_size]
        for part in parts
        if part.kind != "stage"
    ]
    weights = [alias for alias, timm_name in ALIASES.items() if _architecture(timm_name) == name]
    weights += [MOCO_V3] if name == "resnet50" else []
    return {
        "name": name,
        **drawn._asdict(),
        "weights": weights,
        "packaged": name in PACKAGED_WEIGHTS,
        "size": list(size),
        "parameters": counted["backbone"],
        "features": counted["head"] // CLASSES - 1,
        "macs": counted["macs"],
        "places": places,
    }


def _architecture(name: str) -> str:
    """The network of a name that ``create_backbone`` knows, without the tag of its weights."""
    return "resnet50" if name == MOCO_V3 else ALIASES.get(name, name).partition(".")[0]


# ---------------------------------------------------------------- records


def _records(networks: dict[str, dict], parts: dict[str, list[Part]]) -> list[dict]:
    """Every recorded setting of an adapter of the default form, with its runs; none of what has no record yet."""
    found = []
    for path in sorted(CONFIGS.glob("*.toml")):
        if not (RESULTS / f"{path.stem}.json").exists():
            continue
        plan, records = read_plan(path, rehearse=False), read_records(RESULTS / f"{path.stem}.json")
        for cell in plan.cells:
            config = cell.points[0]
            name, options = _architecture(cell.backbone), config["options"]
            own = options.keys() <= {"scheme", "compression", "kernel_size", "init"} and "network" not in config
            drawn = own and options.get("scheme") in SCHEMES and name in networks  # the ablation of whole stages is not
            if config["method"] == "conv_adapter" and drawn and final_records(cell, records, plan):
                found.append(_record(cell, records, plan, networks[name], parts[name]))
    return found


def _record(cell: Cell, records: dict[str, dict], plan: Plan, network: dict, parts: list[Part]) -> dict:
    """The final runs of one setting on one task, and those of the methods without adapters on the same task."""
    first = final_records(cell, records, plan)[0]
    config, options = first["config"], first["config"]["options"]
    adapters = planned_parameters(parts, options["scheme"], options["compression"], options.get("kernel_size"))
    classes, rest = divmod(first["trainable"] - adapters, network["features"] + 1)
    if rest or classes < 2:
        raise ValueError(
            f"{plan.name}.json: {cell.method!r} on {cell.task} trains {first['trainable']:,} parameters, which are not the "
            f"{adapters:,} of its adapters and a classifier of {network['features']} features; record it again."
        )
    metric = "balanced_accuracy" if plan.metric == "balanced_accuracy" else "accuracy"
    others = [other for other in plan.cells if (other.task, other.backbone) == (cell.task, cell.backbone)]
    beside = [
        {"method": other.points[0]["method"], **_runs(setting(other, records, plan), metric)}
        for other in others
        if other.points[0]["method"] in ("linear", "full") and final_records(other, records, plan)
    ]
    return {
        "file": f"{plan.name}.json",
        "method": cell.method,
        "network": network["name"],
        "weights": cell.backbone,
        "scheme": options["scheme"],
        "compression": options["compression"],
        "kernel": options.get("kernel_size"),
        "init": options.get("init", "identity"),
        "task": cell.task,
        "classes": classes,
        "trainable": first["trainable"],
        **{key: config[key] for key in ("size", "epochs", "lr")},
        "metric": metric,
        **_runs(setting(cell, records, plan), metric),
        "beside": beside,
    }


def _runs(one: Setting, metric: str) -> dict:
    """The runs that learned, each [seed, value, test images, and accuracy's 95 % interval], and how many others there are."""
    interval = "accuracy_95" if metric == "accuracy" else None
    runs = [
        [record["config"]["seed"], record["test"][metric], record["test"]["n"], *record["test"].get(interval, ())]
        for record in one.learned
    ]
    return {"runs": runs, "failed": one.failed, "broken": one.broken, "missing": one.missing}


# ---------------------------------------------------------------- notebooks


def _notebooks() -> list[dict]:
    """The course's notebooks in order, each with the link to its page, which ``python -m minica pages`` writes."""
    found = []
    for path in sorted((DOCS.parent / "notebooks").glob("*.ipynb")):
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        title, seen = about("".join(first["source"]))
        found.append({"number": path.stem[:2], "title": title, "subject": _line(seen), "link": f"notebooks/{path.stem}.html"})
    return found


def about(card: str) -> tuple[str, str]:
    """The title of a notebook, and what its card says that one will see, from the Markdown of its first cell."""
    title, seen = re.search(r"^# (.+)$", card, re.M), re.search(r"^\| \*\*You will see\*\* \| (.+?) \|$", card, re.M)
    if title is None or seen is None:
        raise ValueError("a notebook begins with a title, '# ...', and a card with a row '| **You will see** | ... |'.")
    return title[1].strip(), re.sub(r"[*`]", "", seen[1])


def _line(text: str, length: int = 100) -> str:
    """As many of the parts between semicolons as fit on a line, at least the first."""
    parts = text.split("; ")
    while len(parts) > 1 and len("; ".join(parts)) > length:
        parts.pop()
    return "; ".join(parts)
