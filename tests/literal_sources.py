"""Where the numbers in the texts of the course come from.

``CHECKED``: a piece of a sentence with the numbers left out, and the function that computes them: from a committed record, a
table of the paper, or by counting.  A function that gives ``True`` or ``False`` says whether a rounded statement holds.
``HELD``: numbers that another test computes.  ``ALLOWED``: what is no result, with its source.
"""

from __future__ import annotations

import inspect
import math
import re
import tempfile
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import permutations
from pathlib import Path

import nbformat
import numpy as np
import torch
from nets import NETS
from test_house import lines_of_code

import minica
from benchmarks import measure
from minica import counting
from minica.course import presets
from minica.course.publish import CARD
from minica.course.runner import find
from minica.data.packaged import shapes, solar_cell_files
from minica.experiments import RESULTS, collapse, plans, read_records, reasons, survey
from minica.experiments.findings import MARGIN, Sweep, complete
from minica.experiments.paper import table

LITE0 = "tf_efficientnet_lite0"
SEGMENTATION = "Semantic Segmentation"  # in the paper's Table 4
PIP = ("few_shot_solar_cells", "vtab_packaged", "solar_cells")
SAME_SIZE = ("conv_parallel", "conv_sequential", "Adapters, k x k", "residual_sequential")
PLACES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
Values = Callable[[], object]  # a number, several of them, or whether it holds


# ---------------------------------------------------------------- readers


@cache
def sweep(name: str) -> Sweep:
    return complete(name)


def runs(name: str, method: str, task: str = "") -> list[dict]:
    """The final runs of one cell of ``configs/<name>.toml``."""
    (found,) = [found for (where, which), found in sweep(name).runs.items() if which == method and task in where]
    return found


def scores(name: str, method: str, task: str = "", metric: str = "accuracy") -> np.ndarray:
    """In %, one a seed."""
    return np.array([100 * run["test"][metric] for run in runs(name, method, task)])


def trained(name: str, method: str, task: str = "") -> int:
    return runs(name, method, task)[0]["trainable"]


def hours(*names: str) -> float:
    return sum(record["seconds"] for name in names for record in read_records(RESULTS / f"{name}.json").values()) / 3600


def paper(number: int, column: str = "mean", **where: object) -> float:
    """One number of one of the paper's tables."""
    (row,) = [row for row in table(number) if all(row[key] == value for key, value in where.items())]
    return row[column]


def structured(tuning: str) -> float:
    return paper(1, tuning=tuning, group="Structured")


SCHEMES = ("Conv. Par.", "Conv. Seq.", "Res. Par.", "Res. Seq.")


def ends(values) -> tuple[float, float]:
    return min(values), max(values)


@cache
def levels() -> np.ndarray:
    """What the rater said of each cell, in thirds."""
    return solar_cell_files()[1]


def on_meta(name: str, classes: int = 1000) -> torch.nn.Module:
    with torch.device("meta"):
        return minica.create_backbone(name, num_classes=classes, pretrained=False)


def share_of_backbone(name: str, scheme: str, compression: int) -> float:
    """Adapters' parameters in % of the backbone's."""
    found = minica.count(minica.adapt(on_meta(name), scheme, compression))
    return 100 * found["adapters"] / found["backbone"]


@cache
def file_size(compression: int) -> float:
    """MB of an adapter file of the packaged network with two classes."""
    model = minica.create_backbone(LITE0, num_classes=2, pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        minica.save_adapter(minica.adapt(model, "residual_parallel", compression), folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


def fgvc(tuning: str, dataset: str, column: str = "mean") -> float:
    return paper(11, column, tuning=tuning, dataset=dataset)


@cache
def benchmark(layout: str) -> dict:
    wanted = dict(backbone="resnet50", precision="float32", layout=layout)
    (found,) = [r for r in read_records(RESULTS / "benchmark.json").values() if wanted.items() <= r["config"].items()]
    return found


def lean_step(layout: str) -> tuple[float, float, float]:
    """The lean step in parts of the published form's: median, lowest, highest over rounds."""
    published, _, lean = measure.ADAPTERS.values()
    values = measure.ratios(benchmark(layout), lean, "step", published)
    return float(np.median(values)), *ends(values)


def folded() -> tuple[float, float]:
    """The folded adapted ResNet50 in parts of the folded plain one: time, multiply-accumulates."""
    record = benchmark("channels_last")
    methods = record["methods"]
    time = measure.ratio(record, "Conv-Adapter", "folded")[0]
    return time, methods["Conv-Adapter"]["macs"] / methods["Full fine-tuning"]["macs"]


@cache
def surveyed() -> list[dict]:
    return [*read_records(RESULTS / "survey.json", by="architecture").values()]


def verdicts(verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in surveyed())


def cards_memory() -> float:
    """GB, the most that a notebook's card says."""
    rows = [CARD.search(nbformat.read(path, 4).cells[0].source)[0] for path in find()]
    return max(float(number) for row in rows for number in re.findall(r"([\d.]+) GB", row))


def smallest_sure_correlation() -> float:
    """The smallest rank correlation of seven tasks, without ties, with an exact p below 0.05."""
    first = list(range(7))
    orders = {sum(map(math.prod, zip(first, order, strict=True))): order for order in permutations(first)}  # one a correlation
    found = [reasons.rank_correlation(first, list(order)) for order in orders.values()]
    return min(rho for rho, p in found if rho > 0 and p < 0.05)


def frozen_memory() -> tuple[float, float]:
    """What a frozen encoder leaves of a training step's memory in UPerNet, in parts of full fine-tuning's: least and most."""
    found = []
    for record in read_records(RESULTS / "dense_memory.json").values():
        if record["config"]["network"] == "upernet":
            methods = record["methods"]
            found.append(methods["Frozen backbone"]["step"] / methods["Full fine-tuning"]["step"])
    return ends(found)


def half_up(printed: float) -> Decimal:
    """A printed number with one digit less after the point: 83.85 is 83.9, as a reader rounds it."""
    return Decimal(str(printed)).quantize(Decimal("0.1"), ROUND_HALF_UP)


def about(value: float, stated: float, within: float = 0.1) -> bool:
    """Whether a rounded number is right, to a tenth of it."""
    return abs(value / stated - 1) < within


def of_each_other(name: str, adapters: str, full: str, task: str = "") -> float:
    """What one method trains in parts of what another does."""
    return trained(name, adapters, task) / trained(name, full, task)


def half_width(record: dict) -> float:
    """Points, of a run's 95 % interval over the test images."""
    low, high = record["test"]["accuracy_95"]
    return 50 * (high - low)


def gflops(tuning: str, backbone: str = "ResNet50-BiT") -> float:
    """What a scheme adds to the operations of the plain network, in % (Table 10, 224 pixels)."""
    one, plain = (paper(10, "gflops", backbone=backbone, width=224, tuning=which) for which in (tuning, "FT"))
    return 100 * (one / plain - 1)


def paper_size(scheme: str) -> float:
    """Million parameters in the mean over FGVC and VTAB-1k, each by half (Tables 11 and 13)."""
    sizes = [next(row["params"] for row in table(number) if row["tuning"] == scheme) for number in (11, 13)]
    return float(np.mean(sizes))


def live() -> float:
    """The median share of the last activation that passes a gradient before the first step of notebook 04's trials."""
    shown = collapse.RESIDUAL | collapse.POSITION
    found = read_records(RESULTS / "collapse.json").values()
    return float(np.median([record["curve"][0][3] for record in found if shown.items() <= record["config"].items()]))


def cells_of(split: str) -> int:
    """How many solar cells: 25 % for the test, a fifth of the others for validation."""
    test = round(0.25 * len(levels()))
    val = round(0.2 * (len(levels()) - test))
    return {"test": test, "val": val, "labelled": len(levels()) - test}[split]


def table_4(task: str, column: str, backbone: str) -> float:
    """Adapters above full fine-tuning."""
    one, full = (paper(4, column, task=task, backbone=backbone, tuning=tuning) for tuning in ("CA", "FT"))
    return one - full


@cache
def inverted() -> bool:
    """Whether the blocks of EfficientNet-Lite0, but for the first stage, are six times as wide inside as where they begin."""
    blocks = [module for module in on_meta(LITE0).modules() if hasattr(module, "conv_pwl")]
    return len(blocks) == 15 and {block.conv_pw.out_channels / block.conv_pw.in_channels for block in blocks} == {6.0}


@cache
def widest() -> tuple[int, int]:
    """Channels inside the widest block of EfficientNet-Lite0, and the bottleneck of an adapter there at compression 64."""
    inside = max(module.conv_pw.out_channels for module in on_meta(LITE0).modules() if hasattr(module, "conv_pwl"))
    return inside, counting.bottleneck_width(inside, 64)


def bottleneck() -> bool:
    return {block.conv3.out_channels / block.conv2.out_channels for block in on_meta("resnet50").layer1} == {4.0}


def twentieth() -> bool:
    """Of the packaged network with 16 classes: adapters at compression 2 as in notebook 00, and a larger classifier."""
    adapters = trained("quickstart", "Conv-Adapter") - trained("quickstart", "Linear probe")
    return about((adapters + trained("position", "Linear probe")) / trained("position", "Full fine-tuning"), 1 / 20)


def warmup() -> float:
    """The part of all epochs in which the paper's rate rises (Table 8)."""
    settings = {row["setting"]: row["value"] for row in table(8)}
    return settings["Warmup"] / settings["Total Epochs"]


def probe_seconds() -> float:
    return float(
        np.median([run["seconds"] for number in (1, 2, 4, 8) for run in runs("few_shot_solar_cells", "LP", f"shots {number}")])
    )


def both(shares: list[float]) -> float:
    """The share of both methods, if they agree to a per cent."""
    assert round(shares[0]) == round(shares[1]), shares
    return shares[0]


def one_of_five() -> bool:
    """Whether one run of five never left guessing, of adapters and of biases, on the position."""
    return all((scores("vtab_packaged", method, "position") < 1.5 * 100 / 16).sum() == 1 for method in ("CA", "Bias"))


def tuning_images() -> int:
    (number,) = {record["val"]["n"] for record in sweep("few_shot_solar_cells").found.values() if "val" in record}
    return number


def method_lines() -> int:
    return sum(lines_of_code(Path(minica.__file__).parent / name) for name in ("adapter.py", "anatomy.py", "schemes.py"))


def paper_share(scheme: str) -> float:
    """What a scheme trains in parts of full fine-tuning (Table 1)."""
    return paper(1, "params", tuning=scheme, group="FGVC") / paper(1, "params", tuning="FT", group="FGVC")


def widths() -> tuple[str, str]:
    """Whole points around the narrowest and the widest interval of one run of notebook 00's methods."""
    found = [2 * half_width(runs("quickstart", name)[0]) for name in ("Linear probe", "Conv-Adapter", "Full fine-tuning")]
    return PLACES[math.floor(min(found))], PLACES[math.ceil(max(found))]


def drawn() -> tuple[int, int]:
    """Pictures to learn from, those to choose by included, and to be tested with."""
    train, val, test = inspect.signature(shapes).parameters["images"].default
    return train + val, test


def above_in_fgvc() -> str:
    """On how many data sets; asserts the size that stands beside it."""
    names = ("CUB200", "Stanford Dogs", "Stanford Cars", "NABirds")
    share = fgvc("Conv. Par.", "CUB200", "params") / fgvc("FT", "CUB200", "params")
    assert about(share, 1 / 20)
    return PLACES[sum(fgvc("Conv. Par.", name) > fgvc("FT", name) for name in names)]


def box_parameters() -> int:
    """Of torchvision's last layer for the boxes of one more class: 1,024 weights and a bias for each of four numbers."""
    return 4 * (1024 + 1)


@cache
def trunk() -> float:
    """Million parameters of the ResNet-50 without its last stage and without a classifier."""
    return minica.count(minica.tune(on_meta("resnet50v2_c4", 10), "linear"))["backbone"] / 1e6


# ---------------------------------------------------------------- the sources


CHECKED: dict[str, dict[str, Values]] = {
    "00_quickstart.ipynb": {
        "You will train {:.0f} % of its parameters": lambda: (
            100 * of_each_other("quickstart", "Conv-Adapter", "Full fine-tuning")
        ),
        "A network of which {:.0f} % are trained": lambda: (
            100 * of_each_other("quickstart", "Conv-Adapter", "Full fine-tuning")
        ),
        "These are {:,} such photographs": lambda: len(levels()),
        "About two thirds of the cells are functional": lambda: about((levels() < 2).mean(), 2 / 3),
        "narrow at both ends, six times as wide": lambda: inverted(),
        "draw {} of the images again and again": lambda: cells_of("val"),
        "the probe has {} %, its four schemes {} to {} %, full fine-tuning {} %": lambda: [
            half_up(value)
            for value in (
                paper(1, tuning="LP", group="Specialized"),
                *ends([paper(1, tuning=scheme, group="Specialized") for scheme in SCHEMES]),
                paper(1, tuning="FT", group="Specialized"),
            )
        ],
        "{:,} to learn from, {:,} to be tested with": lambda: drawn(),
        "all {:.1f} million parameters": lambda: trained("quickstart", "Full fine-tuning") / 1e6,
    },
    "01_motivation.ipynb": {
        "six times as wide inside": lambda: inverted(),
        "the probe is far behind ({:.0f} %), the four adapter schemes reach {:.0f} to {:.0f} %, and full fine-tuning is still "
        "ahead with {:.0f} %": lambda: (
            structured("LP"),
            *ends([structured(scheme) for scheme in SCHEMES]),
            structured("FT"),
        ),
        "all methods lie between {:.0f} and {:.0f} %": lambda: ends(
            [row["mean"] for row in table(1) if row["group"] == "Natural"]
        ),
        "Tables 11 and 13 give {:.1f} and {:.1f} million": lambda: (paper_size("Res. Par."), paper_size("Res. Seq.")),
        "Adapters train about {:.0f} % of EfficientNet-Lite0": lambda: (
            100 * of_each_other("quickstart", "Conv-Adapter", "Full fine-tuning")
        ),
        "gradients and optimiser state to a twentieth": lambda: twentieth(),
        "guessing: {:.1f} %": lambda: 100 / 16,
        "looking around costs a tenth of an adapter's parameters": lambda: about(
            1 - of_each_other("position", "Adapters, 1 x 1", "Adapters, k x k"), 1 / 10
        ),
    },
    "02_conv_adapter.ipynb": {
        "Adapters train a twentieth of the parameters": lambda: twentieth(),
        "from 64 channels to 64 has {:,} parameters": lambda: 3 * 3 * 64 * 64 + 64,
        "{:,} parameters at 64 channels": lambda: counting.adapter_parameters(64, 64, kernel_size=3, compression=4),
    },
    "03_four_schemes.ipynb": {
        "At the ends of a ResNet bottleneck are four times as many channels": lambda: bottleneck(),
        "six times as wide in the middle": lambda: inverted(),
        "units costs {:.0f} % more operations, adapting its blocks {:.0f} to {:.0f} %": lambda: [
            gflops(scheme) for scheme in (SCHEMES[0], *SCHEMES[2:])
        ],
        "every scheme costs about 14 %": lambda: all(13.5 < gflops(scheme, "ConvNeXt-B") < 15 for scheme in SCHEMES),
        "{:.0f} to {:.0f} % of the backbone each": lambda: ends(
            [100 * (trained("position", name) - trained("position", "Linear probe")) / 3_371_008 for name in SAME_SIZE]
        ),
        "A compression of 64 squeezes up to {:,} channels through {}": lambda: widest(),
        "of more than {:.0f} million parameters, only counted": lambda: survey.NUMERIC_LIMIT / 1e6,
    },
    "04_knobs.ipynb": {
        "at least {} ln C, and the features' standard deviation over images has fallen below {:.0f} %": lambda: (
            collapse.LOSS,
            100 * collapse.DEVIATION,
        ),
        "of which a fifth is live": lambda: about(live(), 1 / 5),
        "With {} runs the intervals are wide": lambda: PLACES[collapse.GROUPS["causes"][1]],
        "the paper has {}": lambda: warmup(),
    },
    "05_few_shot.ipynb": {
        "all {:,} labels": lambda: cells_of("labelled"),
        "The rater was unsure of {} of the {:,} cells": lambda: ((levels() % 3 != 0).sum(), len(levels())),
        "Guessing gives {:.0f} %": lambda: 100 / 4,
        "the best of four on the {} validation images": lambda: tuning_images(),
        "the same {} test images": lambda: runs("few_shot_solar_cells", "CA", "shots 1")[0]["test"]["n"],
        "trains in a second": lambda: probe_seconds() < 1.5,
        "it is {:.0f} points at one image of each class": lambda: (
            paper(3, tuning="CA", backbone="ConvNext-B", shots=1) - paper(3, tuning="FT", backbone="ConvNext-B", shots=1)
        ),
        "networks seven and twenty-six times as large": lambda: (
            [
                round(paper(3, "params", tuning="FT", backbone=backbone, shots=1) / 3.371)
                for backbone in ("ResNet50 Bit-M", "ConvNext-B")
            ]
            == [7, 26]
        ),
        "functional or defective, all {:,} cells": lambda: len(levels()),
        "the same {} cells": lambda: cells_of("test"),
        "give an interval of about five points": lambda: about(2 * half_width(runs("solar_cells", "CA")[0]), 5),
    },
    "06_vtab.ipynb": {
        "full fine-tuning is {:.1f} points for Conv. Par. (dashed), {:.1f} for Res. Par.": lambda: [
            structured("FT") - structured(scheme) for scheme in ("Conv. Par.", "Res. Par.")
        ],
        "tuned in size, a third of the network": lambda: about(paper_share("Res. Par."), 1 / 3),
        "trains in a second": lambda: probe_seconds() < 1.5,
        "Classes are {} degrees wide": lambda: 360 / 16,
        "seven times as large from ImageNet-21k": lambda: about(paper(1, "params", tuning="FT", group="FGVC") / 3.371, 7),
        "it is {:.0f} points below, and on cars {:.0f}.": lambda: [
            fgvc("FT", data) - fgvc("LP", data) for data in ("NABirds", "Stanford Cars")
        ],
        "are above full fine-tuning on {} of the four, with a twentieth of its parameters": lambda: above_in_fgvc(),
        "gives {:.1f} % on cars, {:.0f} points below the probe": lambda: (
            fgvc("Bias", "Stanford Cars"),
            fgvc("LP", "Stanford Cars") - fgvc("Bias", "Stanford Cars"),
        ),
        "its standard deviation is {}": lambda: fgvc("Bias", "Stanford Cars", "std"),
        "Conv. Seq. on cars, {:.1f} +- {:.1f}": lambda: [fgvc("Conv. Seq.", "Stanford Cars", what) for what in ("mean", "std")],
        "a probe is {:.1f} points below full fine-tuning": lambda: (
            paper(1, tuning="FT", group="Specialized") - paper(1, tuning="LP", group="Specialized")
        ),
    },
    "07_why.ipynb": {
        "one of five failed": lambda: one_of_five(),
        "train about a twelfth of the weights": lambda: about(of_each_other("vtab_packaged", "CA", "FT", "solar"), 1 / 12),
        "over all {:,} orders": lambda: math.factorial(7),
        "a correlation below {:.2f}": lambda: smallest_sure_correlation(),
        "(guessing: {:.2f})": lambda: math.log(16),
    },
    "08_detection.ipynb": {
        "Ours are {:,} more each": lambda: box_parameters(),
        "by {:.1f} points; on ConvNeXt-S they are {:.1f} below": lambda: (
            table_4("Object Detection", "ap", "ResNet50"),
            -table_4("Object Detection", "ap", "ConvNeXt-S"),
        ),
        "{:,} of its training images": lambda: presets.DETECTION["gpu"]["images"],
    },
    "09_segmentation.ipynb": {
        "no scheme and compression gives {:.2f} exactly": lambda: paper(
            4, "params", task=SEGMENTATION, backbone="ResNet50", tuning="CA"
        ),
        "{:.2f} million off": lambda: (
            45_671_820 / 1e6 - paper(4, "params", task=SEGMENTATION, backbone="ResNet50", tuning="CA")
        ),
        "on ResNet50 ({:.1f} points of mIoU) and below on ConvNeXt-S ({:.1f})": lambda: (
            table_4(SEGMENTATION, "miou", "ResNet50"),
            -table_4(SEGMENTATION, "miou", "ConvNeXt-S"),
        ),
        "fewer than half of its parameters left": lambda: (
            paper(4, "params", task=SEGMENTATION, backbone="ConvNeXt-S", tuning="CA")
            < paper(4, "params", task=SEGMENTATION, backbone="ConvNeXt-S", tuning="FT") / 2
        ),
        "a third to more than half of the memory": lambda: about(frozen_memory()[0], 1 / 3) and frozen_memory()[1] > 0.5,
        "{:,} of its training images": lambda: presets.SEGMENTATION["gpu"]["images"],
    },
    "10_your_images.ipynb": {
        "from 50 to {:,} labels": lambda: cells_of("labelled"),
        "The {} test cells are always the same": lambda: cells_of("test"),
        "once in {} comparisons": lambda: 2**5 // 2,
        "For 50 to all {:,} labelled cells": lambda: cells_of("labelled"),
    },
    "11_ship_it.ipynb": {
        "{:.2f} times as long for •": lambda: (
            paper(10, "test_ms", backbone="ResNet50-BiT", tuning="Conv. Par.")
            / paper(10, "test_ms", backbone="ResNet50-BiT", tuning="FT")
        ),
    },
    "README.md": {
        "{:.2f} MB: safetensors and a readable config": lambda: file_size(2),
        "at most {} points below full fine-tuning": lambda: PLACES[round(100 * MARGIN)],
        "{} of timm's {:,} architectures take all four schemes, {} the two": lambda: (
            verdicts("adapted"),
            len(surveyed()),
            verdicts("units only"),
        ),
        "about {} lines of code": lambda: round(method_lines(), -1),
        "for {} small networks of all families": lambda: PLACES[len(NETS)],
        "ResNet50's folded copy takes {:.2f} times as long": lambda: folded()[0],
    },
    "TEACHING.md": {
        "A computer with 4 GB of free memory": lambda: cards_memory() < 4,
        '"trained {:.0f} % of the parameters': lambda: 100 * of_each_other("quickstart", "Conv-Adapter", "Full fine-tuning"),
    },
    "docs/costs.md": {
        "the lean step takes {:.2f} of the published form's in channels_last ({:.2f} to {:.2f};": lambda: lean_step(
            "channels_last"
        ),
        "and {:.2f} in the contiguous layout": lambda: lean_step("contiguous")[0],
        "needs {:.2f} times the folded plain one's time for an image (its multiply-accumulates: {:.3f})": lambda: folded(),
    },
    "docs/dense.md": {"({:,} more than the paper's": lambda: box_parameters()},
    "docs/limits.md": {"a 95 % interval of {} to {} points": lambda: widths()},
    "docs/networks.md": {
        "of the {} adapted ones with at most {:.0f} million parameters": lambda: (
            sum("identity" in row.get("schemes", {}).get("conv_parallel", {}) for row in surveyed()),
            survey.NUMERIC_LIMIT / 1e6,
        ),
        "all {} GFLOPs of its Table 10": lambda: len(table(10)),
    },
    "docs/results.md": {
        "({:.1f} million parameters;": lambda: trunk(),
        "The compared margin, {} points": lambda: PLACES[round(100 * MARGIN)],
        "{:,} real photographs at 96 pixels, {} of them for the test": lambda: (len(levels()), cells_of("test")),
        "makes these numbers again ({} runs)": lambda: len(read_records(RESULTS / "quickstart.json")),
        "({} runs, about {:.1f} hours on one slow core)": lambda: (
            sum(len(plans.known_jobs(*plans.recorded(name))) for name in PIP),
            hours(*PIP),
        ),
    },
    "docs/training.md": {
        "has {:.0f} % of the backbone's parameters, • {:.1f} %": lambda: [
            share_of_backbone(LITE0, scheme, 4) for scheme in ("conv_parallel", "residual_parallel")
        ],
        "(the paper: a tenth)": lambda: warmup() == 0.1,
    },
}

HELD: dict[str, dict[str, str]] = {  # piece of a sentence -> the file that asserts its numbers
    "docs/before_you_start.md": {"18,432 weights": "docs/before_you_start.md"},
    "docs/costs.md": {
        "cosine above 0.9999": "tests/test_recompute.py",
        "at most 1.12 times the multiply-accumulates": "tests/test_recompute.py",
        "and 1.07 times on BiT": "tests/test_recompute.py",
    },
    "docs/dense.md": {
        "35,728,420 for Faster R-CNN on ResNet50 with adapters and 41,531,812 fine-tuned": "tests/test_dense_course.py",
        "45,671,820 and 66,496,876 for UPerNet": "tests/test_dense_course.py",
    },
    "docs/networks.md": {"356,848 adapter parameters in •, 4,481,040 in • and 5,199,808 in •": "tests/test_anatomy.py"},
}

DEITSCH = "Deitsch et al. 2019, Solar Energy 185: not our result"
EXERCISE = "an exercise's own numbers"
ALLOWED: dict[str, dict[str, str]] = {  # piece of a sentence -> its source, or why it is no result
    "00_quickstart.ipynb": {"1,000 everyday classes": "ImageNet-1k"},
    "01_motivation.ipynb": {"from 0 to 1, to half a per cent": EXERCISE, "why it is less than half": EXERCISE},
    "04_knobs.ipynb": {"a tenth of the steps": "a setting", "a tenth of a percent": EXERCISE},
    "05_few_shot.ipynb": {
        "report 88.42 % for a VGG-19": DEITSCH,
        "and 82.44 % for support vector machines, with the same 75 %": DEITSCH,
        "aimed at more than 90 %": "an aim",
        "88.42 % is beaten only if": DEITSCH,
        "divides the 5 % among them": "a level",
        "is five to eight of 224 pixels wide": "frames that give the 0.24 and 0.13 million of Table 3",
        "right (1.0) or wrong (0.0)": EXERCISE,
        "Repeat that 2,000 times or more; return the 2.5th and the 97.5th": EXERCISE,
        "four times as many, because t falls": EXERCISE,
    },
    "06_vtab.ipynb": {
        "full fine-tuning at 100 % of the way": "a scale",
        "than of one of 224": "a size of images",
        "the border is 1.5 / C": EXERCISE,
    },
    "07_why.ipynb": {
        "twice as large": "what the cell does to the filters",
        "a tenth of noise": "what the cell does to the filters",
    },
    "08_detection.ipynb": {
        "with a score of 0.5 or more": "the threshold that the figure has",
        "IoU, of 0.5 or more": "the definition of AP50",
        "from 0.50 to 0.95": "COCO's definition of AP",
    },
    "10_your_images.ipynb": {
        "A score of 0.98 is no promise": "an example",
        "3,068 for training": "the publisher's split",
        "112 of 125": EXERCISE,
        '"at least 85 %"': EXERCISE,
        "To a tenth of a percentage point": EXERCISE,
    },
    "README.md": {"6 GB of disk": "a requirement, rough", "half an hour on two slow cores": "a limit, rough"},
    "TEACHING.md": {
        "6 GB of disk": "a requirement, rough",
        "2,000 labelled photographs": "a question",
        "20 times faster": "an error to expect",
        "90 minutes a week": "a timetable",
        "Is a difference of two points a result?": "a question",
        "Four points each; 14 of 20": "a rubric",
    },
    "docs/costs.md": {"we aimed at 0.83": "an aim"},
    "docs/misconceptions.md": {
        "ten times the images": "an example in code",
        "Eight times the compression is not an eighth of the parameters": "asserted by the snippet below it",
    },
    "docs/notation.md": {"in 95 of 100 such measurements": "a definition"},
    "docs/results.md": {
        "trains on all 1,000 of splits 1 to 5": "a setting: configs/signs.toml",
        "a published accuracy of 88.42 %": DEITSCH,
        "aimed at more than 90 %": "an aim",
    },
}
