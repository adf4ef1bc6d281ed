"""Where the numbers in the texts of the course come from.

``CHECKED``: a piece of a sentence with the numbers left out, and the function that computes them: from a committed record, a
table of the paper, or by counting.  A function that gives ``True`` or ``False`` says whether a rounded statement holds.
``HELD``: numbers that another test computes.  ``ALLOWED``: what is no result, with its source.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import permutations
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import torch
from nets import NETS
from test_house import lines_of_code

import minica
from benchmarks import measure
from minica import counting, experiments
from minica.adapter_files import ADAPTERS
from minica.course import presets
from minica.course.publish import CARD
from minica.course.runner import find
from minica.data.packaged import solar_cell_files
from minica.experiments import RESULTS, collapse, plans, read_records, reasons, survey
from minica.experiments.findings import MARGIN, Sweep, complete
from minica.experiments.paper import table
from minica.experiments.scores import comparison
from minica.tasks.classification import wilson_interval

LITE0 = "tf_efficientnet_lite0"
SEGMENTATION = "Semantic Segmentation"  # in the paper's Table 4
PUBLISHED = 88.42  # of a fine-tuned VGG-19: Deitsch et al. 2019
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
def solar(task: str) -> np.ndarray:
    """Right or not, (656,) shares of the five runs that were."""
    return experiments.per_image_accuracy(runs("solar_cells", task))


@cache
def levels() -> np.ndarray:
    """What the rater said of each cell, in thirds."""
    return solar_cell_files()[1]


@cache
def test_levels() -> np.ndarray:
    blank = np.zeros((len(levels()), 8, 8), np.uint8), None  # the labels alone are wanted
    with patch("minica.data.packaged.decode_all", return_value=blank):
        return minica.data.load("solar-cells", task="level", size=8).test.labels.numpy()


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


def wide_inside(name: str, inside: str) -> set[float]:
    """How many times as many channels a block's middle has as its input: of all blocks with a convolution ``inside``."""
    blocks = [module for module in on_meta(name).modules() if hasattr(module, inside)]
    return {getattr(block, inside).out_channels / getattr(block, inside).in_channels for block in blocks}


# ---------------------------------------------------------------- notebooks 01 and 03


def tuned(name: str, rate: float, seed: int, **options: object) -> float:
    """Test accuracy in % of one recorded run with these options and no others."""
    (found,) = [
        record
        for record in read_records(RESULTS / f"{name}.json").values()
        if (record["config"]["lr"], record["config"]["seed"], record["config"]["options"]) == (rate, seed, options)
    ]
    return 100 * found["test"]["accuracy"]


# ---------------------------------------------------------------- notebook 05


KIND = {"LP": "Linear probe", "VPT": "Prompts", "CA": "Conv-Adapter", "FT": "Full fine-tuning"}


@cache
def shots(method: str, number: int) -> np.ndarray:
    """Balanced accuracy in %, one a draw."""
    return scores("few_shot_solar_cells", method, f"shots {number}", "balanced_accuracy")


def few_gain() -> tuple[float, float]:
    return ends([shots(method, 8).mean() - shots(method, 1).mean() for method in KIND])


def few_apart() -> tuple[float, float]:
    means = [[shots(method, number).mean() for method in KIND] for number in (1, 2, 4, 8)]
    return ends([max(row) - min(row) for row in means])


def above_full() -> tuple[float, float]:
    """Adapters above full fine-tuning, draw by draw in the mean over shots: points, and half of the 95 % interval."""
    gaps = np.mean([shots("CA", number) - shots("FT", number) for number in (1, 2, 4, 8)], axis=0)
    found = comparison(dict(enumerate(gaps)))
    return found.mean, (found.high - found.low) / 2


def paper_above_full() -> float:
    gaps = []
    for row in table(3):
        if row["tuning"] == "CA":
            gaps.append(row["mean"] - paper(3, tuning="FT", backbone=row["backbone"], shots=row["shots"]))
    return float(np.mean(gaps))


def scored_twice() -> tuple[str, str]:
    """Of how many cells the test was scored under an earlier choice too, and how many cells there are."""
    plan, found = plans.recorded("few_shot_solar_cells")
    known = plans.known_jobs(plan, found)
    earlier = [record["config"] for key, record in found.items() if key not in known and "test" in record]
    cells = {(config["method"], config["shots"]) for config in earlier}
    return PLACES[len(cells)], PLACES[len(plan.cells)]


def shared_variance() -> float:
    """Part of the variance of a method's accuracy over draws that goes away in differences, averaged over pairs and shots."""
    parts = []
    for number in (1, 2, 4, 8):
        for other in ("LP", "VPT", "FT"):
            one, two = shots("CA", number), shots(other, number)
            parts.append(1 - (one - two).var(ddof=1) / (one.var(ddof=1) + two.var(ddof=1)))
    return float(np.mean(parts))


@cache
def solar_gap() -> tuple[float, float, float]:
    gap = solar("CA") - solar("FT")
    return 100 * gap.mean(), *(100 * end for end in experiments.bootstrap_interval(gap))


@cache
def solar_interval(method: str) -> list[float]:
    return [100 * end for end in experiments.bootstrap_interval(solar(method))]


def right_where(which: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Of both methods, in % of the cells of which the rater said this."""
    return [100 * solar(method)[which(test_levels())].mean() for method in ("CA", "FT")]


# ---------------------------------------------------------------- notebook 06


VTAB = ("solar-cells", "position", "orientation", "count")


def vtab(method: str, *tasks: str, metric: str = "accuracy", failed: bool = True) -> float:
    """Mean over tasks of the mean over seeds; without runs that never left guessing if not ``failed``."""
    found = []
    for task in tasks:
        values = scores("vtab_packaged", method, task, metric)
        classes = {"solar-cells": 2, "count": 8}.get(task, 16)
        found.append(np.mean(values if failed else values[values > 150 / classes]))
    return float(np.mean(found))


def part_of_the_way(failed: bool) -> float:
    """In %, from the probe to full fine-tuning, on the structured tasks."""
    probe, adapters, full = (vtab(method, *VTAB[1:], failed=failed) for method in ("LP", "CA", "FT"))
    return 100 * (adapters - probe) / (full - probe)


def vtab_share() -> float:
    """What adapters train on the four tasks, in % of full fine-tuning."""
    return (
        100
        * np.mean([trained("vtab_packaged", "CA", t) for t in VTAB])
        / np.mean([trained("vtab_packaged", "FT", t) for t in VTAB])
    )


def fgvc(tuning: str, dataset: str, column: str = "mean") -> float:
    return paper(11, column, tuning=tuning, dataset=dataset)


# ---------------------------------------------------------------- costs


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
    return max(float(re.search(r"([\d.]+) GB", row)[1]) for row in rows)


def smallest_sure_correlation() -> float:
    """The smallest rank correlation of seven tasks, ordered as they are but for neighbours, with an exact p below 0.05."""
    first = list(range(7))
    d = {sum((a - b) ** 2 for a, b in zip(first, other, strict=True)): other for other in permutations(first)}
    found = [reasons.rank_correlation(first, list(other)) for other in d.values()]
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


def quick(method: str, metric: str = "accuracy") -> float:
    return scores("quickstart", method, metric=metric).mean()


def half_width(record: dict) -> float:
    """Points, of a run's 95 % interval over the test images."""
    low, high = record["test"]["accuracy_95"]
    return 50 * (high - low)


def position(scheme: str) -> np.ndarray:
    """Test accuracies in % of one scheme at about equal size."""
    return scores("position", "Adapters, k x k" if scheme == "residual_parallel" else scheme)


def learned(scheme: str) -> np.ndarray:
    values = position(scheme)
    return values[values > 200 / 16]


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


def shipped() -> float:
    """MB of the adapter that comes with the package."""
    return sum(file.stat().st_size for file in (ADAPTERS / "solar_cells").iterdir()) / 1e6


def between() -> tuple[str, str]:
    """The whole points around the distance of the best and the worst mean on the solar cells."""
    means = [vtab(method, "solar-cells") for method in ("LP", "Bias", "VPT", "CA", "FT")]
    gap = max(means) - min(means)
    return PLACES[math.floor(gap)], PLACES[math.ceil(gap)]


def one_of_five() -> bool:
    """Whether one run of five never left guessing, of adapters and of biases, on the position."""
    return all((scores("vtab_packaged", method, "position") < 1.5 * 100 / 16).sum() == 1 for method in ("CA", "Bias"))


def without_two() -> bool:
    """Adapters against full fine-tuning without the two draws that chose the rates, at four and at eight of each class."""
    at_four, at_eight = (comparison(dict(enumerate((shots("CA", n) - shots("FT", n))[2:]))) for n in (4, 8))
    return abs(at_four.low) < 0.05 and at_eight.low < 0 < at_eight.high


def tuning_images() -> int:
    (number,) = {record["val"]["n"] for record in sweep("few_shot_solar_cells").found.values() if "val" in record}
    return number


def method_lines() -> int:
    return sum(lines_of_code(Path(minica.__file__).parent / name) for name in ("adapter.py", "anatomy.py", "schemes.py"))


def position_of_five() -> tuple[str, float, float]:
    values = scores("vtab_packaged", "CA", "position")
    sure = values[values > 1.5 * 100 / 16]
    return PLACES[len(sure)], *ends(sure)


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
        "all {:.1f} million parameters": lambda: trained("quickstart", "Full fine-tuning") / 1e6,
        "ends within a point of full fine-tuning": lambda: abs(quick("Conv-Adapter") - quick("Full fine-tuning")) < 1,
        "{} % for the probe, {} to {} % for its four schemes, {} % for full fine-tuning": lambda: [
            half_up(value)
            for value in (
                paper(1, tuning="LP", group="Specialized"),
                *ends([paper(1, tuning=scheme, group="Specialized") for scheme in SCHEMES]),
                paper(1, tuning="FT", group="Specialized"),
            )
        ],
        "The test set has {} images": lambda: cells_of("test"),
        "best of three on {} validation images": lambda: cells_of("val"),
        "Two seeds of one method differ by up to {:.1f} points": lambda: max(
            np.ptp(scores("quickstart", method)) for method in ("Linear probe", "Conv-Adapter", "Full fine-tuning")
        ),
    },
    "01_motivation.ipynb": {
        "six times as wide inside": lambda: inverted(),
        "the probe is far behind ({:.0f} %), the four adapter schemes reach {:.0f} to {:.0f} %, and full fine-tuning is still "
        "ahead with {:.0f} %": lambda: (
            structured("LP"),
            *ends([structured(scheme) for scheme in SCHEMES]),
            structured("FT"),
        ),
        "Tables 11 and 13 give {:.1f} and {:.1f} million": lambda: (paper_size("Res. Par."), paper_size("Res. Seq.")),
        "Adapters train about {:.0f} % of this network": lambda: (
            100 * of_each_other("quickstart", "Conv-Adapter", "Full fine-tuning")
        ),
        "gradients and optimiser state to a twentieth": lambda: twentieth(),
        "guessing: {:.1f} %": lambda: 100 / 16,
        "best with the first seed ({:.1f} %) and never left guessing with the second ({:.1f} %)": lambda: tuple(
            tuned("position", 5e-3, seed, scheme="residual_parallel", compression=1) for seed in (0, 1)
        ),
        "It costs {:.0f} % of their parameters": lambda: (
            100 * (1 - of_each_other("position", "Adapters, 1 x 1", "Adapters, k x k"))
        ),
    },
    "02_conv_adapter.ipynb": {
        "Adapters train a twentieth of the parameters": lambda: twentieth(),
        "from 64 channels to 64 has {:,} parameters": lambda: 3 * 3 * 64 * 64 + 64,
        "{:,} parameters at 64 channels": lambda: counting.adapter_parameters(64, 64, kernel_size=3, compression=4),
    },
    "03_four_schemes.ipynb": {
        "At the ends of a bottleneck are four times as many channels": lambda: bottleneck(),
        "six times as wide in the middle": lambda: inverted(),
        "units costs {:.0f} % more operations, adapting its blocks {:.0f} to {:.0f} %": lambda: [
            gflops(scheme) for scheme in (SCHEMES[0], *SCHEMES[2:])
        ],
        "every scheme costs about 14 %": lambda: all(13.5 < gflops(scheme, "ConvNeXt-B") < 15 for scheme in SCHEMES),
        "{:.0f} to {:.0f} % of the backbone each": lambda: ends(
            [100 * (trained("position", name) - trained("position", "Linear probe")) / 3_371_008 for name in SAME_SIZE]
        ),
        "{} of ten runs never leave guessing": lambda: PLACES[
            sum(5 - len(learned(scheme)) for scheme in ("conv_parallel", "conv_sequential"))
        ],
        "comes close to the blocks ({:.0f} to {:.0f} %)": lambda: ends(learned("conv_parallel")),
        "does not ({:.0f} to {:.0f} %)": lambda: ends(learned("conv_sequential")),
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
        "The raters were unsure of {} of the {:,} cells": lambda: ((levels() % 3 != 0).sum(), len(levels())),
        "Guessing gives {:.0f} %": lambda: 100 / 4,
        "every method gains {:.0f} to {:.0f} points": lambda: few_gain(),
        "between the best and the worst method there are {:.0f} to {:.0f}.": lambda: few_apart(),
        "the same probe ends at {:.0f} or at {:.0f} %": lambda: ends(shots("LP", 1)),
        "{} of the {} cells had their test images scored twice": lambda: scored_twice(),
        "the best of four on the {} validation images": lambda: tuning_images(),
        "the same {} test images": lambda: runs("few_shot_solar_cells", "CA", "shots 1")[0]["test"]["n"],
        "without them the interval at four begins at zero and the one at eight contains it": lambda: without_two(),
        "it has a thirtieth of the parameters": lambda: about(
            of_each_other("few_shot_solar_cells", "LP", "CA", "shots 1"), 1 / 30
        ),
        "trains in a second": lambda: probe_seconds() < 1.5,
        "by {:.1f} points there and by {:.1f} here": lambda: (paper_above_full(), above_full()[0]),
        "it is {:.0f} points at one image of each class": lambda: (
            paper(3, tuning="CA", backbone="ConvNext-B", shots=1) - paper(3, tuning="FT", backbone="ConvNext-B", shots=1)
        ),
        "each edge of 96, {:.0f} % of the image; theirs, by its parameters, five of 224, or {:.0f} %": lambda: [
            100 * (1 - ((size - 2 * edge) / size) ** 2) for size, edge in ((96, 10), (224, 5))
        ],
        "networks seven and twenty-six times as large": lambda: (
            [
                round(paper(3, "params", tuning="FT", backbone=backbone, shots=1) / 3.371)
                for backbone in ("ResNet50 Bit-M", "ConvNext-B")
            ]
            == [7, 26]
        ),
        "functional or defective, all {:,} cells": lambda: len(levels()),
        "the same {} cells": lambda: cells_of("test"),
        "half a point is within the interval of their difference": lambda: (
            about(abs(solar_gap()[0]), 0.5) and solar_gap()[1] < 0 < solar_gap()[2]
        ),
        "train a twelfth as many parameters": lambda: about(of_each_other("solar_cells", "CA", "FT"), 1 / 12),
        "88.4 lies inside both intervals": lambda: all(
            low < PUBLISHED < high for low, high in map(solar_interval, ("CA", "FT"))
        ),
        "was unsure of {:.0f} % of the cells": lambda: 100 * (test_levels() % 3 != 0).mean(),
        "of the {} called defective with a doubt, the networks call {} in eight functional": lambda: (
            (test_levels() == 2).sum(),
            PLACES[round(8 * (1 - right_where(lambda level: level == 2)[0] / 100))],
        ),
        "both methods are right in {:.0f} % of the cases": lambda: both(right_where(lambda level: level % 3 == 0)),
        "this sweep's {} hours": lambda: PLACES[round(hours("solar_cells"))],
        "part of the package, {:.1f} MB": lambda: shipped(),
        "Here: up to {:.0f} points": lambda: max(np.ptp(shots(method, number)) for method in KIND for number in (1, 2, 4, 8)),
        "about half of the variance is shared": lambda: abs(shared_variance() - 0.5) < 0.1,
        "adapters are {:.1f} +- {:.1f} points above full fine-tuning here": lambda: above_full(),
        "give one of about five points": lambda: about(2 * half_width(runs("solar_cells", "CA")[0]), 5),
    },
    "06_vtab.ipynb": {
        "trains in a second": lambda: probe_seconds() < 1.5,
        "Classes are {} degrees wide": lambda: 360 / 16,
        "The probe is right in {} of ten cases": lambda: PLACES[round(vtab("LP", "orientation") / 10)],
        "guessing: one in sixteen": lambda: True,
        "{} to {} points between all methods": lambda: between(),
        "with a seventh of the adapters' parameters": lambda: about(
            of_each_other("vtab_packaged", "Bias", "CA", "solar"), 1 / 7
        ),
        "is +- {:.1f} points, as wide": lambda: half_width(runs("vtab_packaged", "CA", "solar")[0]),
        "biases are level with the probe, {:.1f} and {:.1f} %, adapters have {:.1f} and full fine-tuning {:.1f}.": lambda: [
            vtab(method, "solar-cells", metric="balanced_accuracy") for method in ("Bias", "LP", "CA", "FT")
        ],
        "{} of five adapted networks reach {:.0f} to {:.0f} %, as full": lambda: position_of_five(),
        "adapters {:.1f} %, full fine-tuning {:.1f} %": lambda: (vtab("CA", "orientation"), vtab("FT", "orientation")),
        "Count: full fine-tuning {:.1f} %, then biases and adapters": lambda: vtab("FT", "count"),
        "The probe is {:.0f} points below": lambda: vtab("CA", "count") - vtab("LP", "count"),
        "Prompts are below the probe on {} of four tasks": lambda: PLACES[
            sum(vtab("VPT", task) < vtab("LP", task) for task in VTAB)
        ],
        "{:.1f} points here, or about one": lambda: vtab("FT", *VTAB[1:]) - vtab("CA", *VTAB[1:]),
        "in the paper {:.1f} for Conv. Par. (dashed), and {:.1f} for Res. Par.": lambda: [
            structured("FT") - structured(scheme) for scheme in ("Conv. Par.", "Res. Par.")
        ],
        "or about one without the run that failed": lambda: about(
            vtab("FT", *VTAB[1:], failed=False) - vtab("CA", *VTAB[1:], failed=False), 1
        ),
        "{:.0f} points below them on orientation and {:.0f} on position": lambda: [
            vtab("CA", task, failed=False) - vtab("Bias", task, failed=False) for task in ("orientation", "position")
        ],
        "it is about 40 thousand in both networks": lambda: (
            about(trained("vtab_packaged", "Bias", "solar") - trained("vtab_packaged", "LP", "solar"), 40_000)
            and about(paper(1, "params", tuning="Bias", group="FGVC") - paper(1, "params", tuning="LP", group="FGVC"), 0.04)
        ),
        "seven times as large from ImageNet-21k": lambda: about(paper(1, "params", tuning="FT", group="FGVC") / 3.371, 7),
        "a third of the network) we have a fixed size, {:.1f} %": lambda: vtab_share(),
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
        "on our structured tasks {:.0f} %, or {:.0f} % without the run that failed": lambda: (
            part_of_the_way(True),
            part_of_the_way(False),
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
        "{:.2f} times for Convolution-Parallel": lambda: (
            paper(10, "test_ms", backbone="ResNet50-BiT", tuning="Conv. Par.")
            / paper(10, "test_ms", backbone="ResNet50-BiT", tuning="FT")
        ),
    },
    "README.md": {
        "{:.2f} MB: safetensors and a readable config": lambda: file_size(2),
        "of 500 photographs {:.0f} are for the test": lambda: 0.15 * 500,
        "an accuracy of 80 % has a 95 % interval of {:.0f} to {:.0f} %": lambda: [100 * end for end in wilson_interval(60, 75)],
        '"Near" is within {} points': lambda: PLACES[round(100 * MARGIN)],
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
    "docs/limits.md": {
        "of about +-{:.1f} points": lambda: np.mean(
            [half_width(runs("quickstart", method)[0]) for method in ("Linear probe", "Conv-Adapter", "Full fine-tuning")]
        )
    },
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
        "({} runs; {:.1f} hours on two slow, busy cores)": lambda: (
            len(read_records(RESULTS / "quickstart.json")),
            hours("quickstart"),
        ),
        "within a point of full fine-tuning": lambda: abs(quick("Conv-Adapter") - quick("Full fine-tuning")) < 1,
        "best of three on {} validation images": lambda: cells_of("val"),
        "with under 5 % of its trained parameters": lambda: (
            of_each_other("quickstart", "Conv-Adapter", "Full fine-tuning") < 0.05
        ),
        "in a file of {:.2f} MB": lambda: file_size(2),
        "{:.1f} points lower": lambda: quick("Conv-Adapter") - quick("Conv-Adapter, published start"),
        "in its one run ({:.1f} %)": lambda: tuned("quickstart", 5e-4, 0),
        "({} runs, about {:.1f} hours on one slow core)": lambda: (
            sum(len(plans.known_jobs(*plans.recorded(name))) for name in PIP),
            hours(*PIP),
        ),
        "adapters are {:.1f} ± {:.1f} points above full fine-tuning": lambda: above_full(),
        "the paper: {:.1f})": lambda: paper_above_full(),
        "one run of five never leaves guessing, for adapters and for biases": lambda: one_of_five(),
        "the other {} adapted networks reach {:.0f} to {:.0f} %": lambda: position_of_five(),
        "interval of {:.1f} to {:.1f} % (adapters)": lambda: solar_interval("CA"),
        "and {:.1f} to {:.1f} % (full fine-tuning)": lambda: solar_interval("FT"),
        "the difference, {:.1f} points, one of {:.1f} to {:.1f}.": lambda: solar_gap(),
        "the mean of the {} runs": lambda: PLACES[len(runs("solar_cells", "CA"))],
        "both are right in {:.0f} %": lambda: both(right_where(lambda level: level % 3 == 0)),
        "called defective with a doubt in {:.0f} %": lambda: both(right_where(lambda level: level == 2)),
        "The adapter of the first seed ({:.1f} %; {:.1f} MB)": lambda: (scores("solar_cells", "CA")[0], shipped()),
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
    "01_motivation.ipynb": {"in parts of 1, to half a per cent": EXERCISE, "why it is less than half": EXERCISE},
    "04_knobs.ipynb": {"a tenth of the steps": "a setting", "a tenth of a percent": EXERCISE},
    "05_few_shot.ipynb": {
        "report 88.42 % for a VGG-19": DEITSCH,
        "and 82.44 % for support vector machines, with the same 75 %": DEITSCH,
        "aimed at more than 90 %": "an aim",
        "right (1.0) or wrong (0.0)": EXERCISE,
        "Repeat that 2,000 times or more; return the 2.5th and the 97.5th": EXERCISE,
        "four times as many, because t falls": EXERCISE,
    },
    "06_vtab.ipynb": {"full fine-tuning at 100 % of the way": "a scale", "the border is 1.5 / C": EXERCISE},
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
        "our aim of 90 %": "an aim",
    },
}
