"""The expected answers to the exercises of the notebooks, computed; :mod:`minica.course.checks` compares them.

Where the package has the thing, it gives the answer; else it is what the task says, in a line or two.  The sections are the
notebooks, the numbers in names those of the exercise.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..adapter import ConvAdapter
from ..backbones import create_backbone
from ..counting import adapter_parameters
from ..dense import segmentation
from ..experiments.paper import table
from ..experiments.scores import bootstrap_interval
from ..experiments.similarity import linear_cka
from ..recipe import adapters, detach
from ..schemes import SCHEMES, adapt
from ..tasks.classification import wilson_interval


class Exercise(NamedTuple):
    """What is expected, and how it is asked for."""

    expected: Callable[..., Any]  # of the data in the notebook if there are some; for a function, of a case's arguments
    cases: Callable[[], Mapping[str, tuple]] | None = None  # what a reader's function is called with, by a label
    tolerance: float = 1e-4  # absolute


def _random() -> torch.Generator:
    """The numbers of a case are the same every time."""
    return torch.Generator().manual_seed(0)


@cache
def _places(name: str) -> dict[str, dict[str, tuple[int, int, int, int]]]:
    """Scheme -> place -> (channels in, channels out, kernel size, stride) of its adapter, of a network without numbers."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some of these adapters are large
        net, found = create_backbone(name, 0, pretrained=False).eval(), {}
        for scheme in SCHEMES:
            parts = adapters(adapt(detach(net), scheme, compression=1)).items()
            ends = {place: (part.down.in_channels, part.up.out_channels) for place, part in parts}
            found[scheme] = {place: (*ends[place], part.down.kernel_size[0], part.down.stride[0]) for place, part in parts}
    return found


def _total(name: str, scheme: str, compression: float) -> int:
    """Parameters of all adapters of a network."""
    shapes = _places(name)[scheme].values()
    return sum(adapter_parameters(i, o, kernel_size=kernel, compression=compression) for i, o, kernel, _ in shapes)


# ---------------------------------------------------------------- 00 quickstart


def balanced_accuracy(right: Sequence[int], of: Sequence[int]) -> tuple[float, float]:
    """(accuracy, balanced accuracy) of how many are ``right`` ``of`` how many in each class."""
    return sum(right) / sum(of), statistics.mean(a / b for a, b in zip(right, of, strict=True))


def _right_counts() -> dict[str, tuple]:
    return {
        "180 of 231 and 390 of 425": ([180, 390], [231, 425]),
        "0 of 231 and 425 of 425": ([0, 425], [231, 425]),
        "three classes, 9 of 10, 1 of 2 and 30 of 40": ([9, 1, 30], [10, 2, 40]),
    }


def trainable_parameters(model: nn.Module) -> int:
    """How many single numbers of a model train."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _partly_frozen() -> dict[str, tuple]:
    nets = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2)) for _ in range(3)]
    for net in nets:
        net(torch.zeros(2, 3, 5, 5))
    nets[0].requires_grad_(False)[-1].requires_grad_(True)
    nets[1].requires_grad_(False)[1].requires_grad_(True)
    labels = ("a linear probe on 72 features", "only the BatchNorm training", "nothing frozen")
    return {label: (net,) for label, net in zip(labels, nets, strict=True)}


# ---------------------------------------------------------------- 01 motivation


def receptive_field(layers: Sequence[tuple[int, int]] = ((3, 1), (3, 2), (3, 1))) -> int:
    """Pixels along a side that one output pixel sees through convolutions of (kernel size, stride)."""
    field, step = 1, 1
    for kernel, stride in layers:
        field, step = field + (kernel - 1) * step, step * stride
    return field


def smaller_file() -> float:
    """Which part of ResNet50's adapters and 100-class classifier goes away from compression 4 to 8 (``conv_parallel``)."""
    classifier = 2048 * 100 + 100
    before, after = (_total("resnet50", "conv_parallel", compression) + classifier for compression in (4, 8))
    return 1 - after / before


# ---------------------------------------------------------------- 02 the Conv-Adapter


def adapted_map(h: Tensor, x: Tensor, down: nn.Module, up: nn.Module, alpha: Tensor) -> Tensor:
    """Equation 2 with ReLU, and alpha a plain vector of C numbers."""
    return h + alpha[:, None, None] * up(down(x).relu())


def _maps() -> dict[str, tuple]:
    def case(c_in, c_out, stride, size):
        random = _random()
        down = nn.Conv2d(c_in, c_in // 4, 3, stride, padding=1, groups=c_in // 4)
        up = nn.Conv2d(c_in // 4, c_out, 1)
        for weight in (*down.parameters(), *up.parameters()):
            weight.data = torch.randn(weight.shape, generator=random)
        x, h = torch.randn(2, c_in, size, size, generator=random), torch.randn(2, c_out, 8, 8, generator=random)
        return h, x, down, up, torch.randn(c_out, generator=random)

    return {
        "maps of 8 channels and 8 x 8 places": case(8, 8, 1, 8),
        "a stride of 2, from 8 channels to 12": case(8, 12, 2, 16),
    }


def zero_gradients() -> dict[str, set[str]]:
    """Which tensors get a gradient of exactly zero in the first step, of an adapter on random maps."""
    starts = {"up-projection zero": ConvAdapter(16, 16, init="identity"), "alpha zero": ConvAdapter(16, 16, init="kaiming")}
    nn.init.zeros_(starts["alpha zero"].alpha)
    found, random = {}, _random()
    for start, adapter in starts.items():
        out = adapter(torch.randn(4, 16, 7, 7, generator=random))
        (out * torch.randn(out.shape, generator=random)).sum().backward()
        found[start] = {name for name, weight in adapter.named_parameters() if not weight.grad.any()}
    return found


# ---------------------------------------------------------------- 03 four schemes


def channels_and_strides() -> dict[str, tuple[int, int, int]]:
    """(channels in, channels out, stride) of the adapter that each scheme puts at the first block of ResNet50's stage 2."""
    found = {}
    for scheme, places in _places("resnet50").items():
        ((channels_in, channels_out, _, stride),) = [one for place, one in places.items() if place.startswith("layer2.0")]
        found[scheme] = channels_in, channels_out, stride
    return found


def order_of_totals() -> dict[str, list[str]]:
    """Schemes by all their adapters' parameters at compression 1, the fewest first; of those with equal counts the first."""
    found = {}
    for name in ("resnet50", "resnet18"):
        totals: dict[int, str] = {}
        for scheme in SCHEMES:
            totals.setdefault(_total(name, scheme, compression=1), scheme)
        found[name] = [totals[total] for total in sorted(totals)]
    return found


# ---------------------------------------------------------------- 04 knobs


def cheapest_within_one_sd(settings: Mapping[tuple, tuple[int, Sequence[float]]]) -> tuple:
    """The setting with fewest parameters whose mean is at most one standard deviation of the best one's below the best mean.

    Args:
        settings: setting -> (trained parameters, accuracies of its seeds).
    """
    best = max((scores for _, scores in settings.values()), key=statistics.mean)
    least = statistics.mean(best) - statistics.stdev(best)
    return min(
        (one for one, (_, scores) in settings.items() if statistics.mean(scores) >= least), key=lambda one: settings[one]
    )


def matched_compression(channels: int = 96) -> int:
    """The whole compression at which K = 1 comes nearest in parameters to K = 3 at compression 4."""
    wanted = adapter_parameters(channels, channels, kernel_size=3, compression=4)
    divisors = [number for number in range(1, channels + 1) if channels % number == 0]
    return min(
        divisors, key=lambda gamma: abs(adapter_parameters(channels, channels, kernel_size=1, compression=gamma) - wanted)
    )


# ---------------------------------------------------------------- 05 few labels


def paired_bootstrap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same images, of right (1) and wrong (0) for each (N,)."""
    return bootstrap_interval(first - second, draws=4000)


def _right_and_wrong() -> dict[str, tuple]:
    random = np.random.RandomState(0)
    first = (random.rand(400) < 0.85).astype(float)
    second = np.where(random.rand(400) < 0.05, 1 - first, first)
    return {"400 images, of which most have one answer by both": (first, second), "the same, the other way": (second, first)}


def draws_to_halve(draws: int = 8) -> int:
    """How many draws make a t interval half as wide, if the differences' standard deviation stays."""
    half = {n: stats.t.ppf(0.975, n - 1) / n**0.5 for n in range(2, 10 * draws)}
    return min(n for n in half if half[n] <= half[draws] / 2)


# ---------------------------------------------------------------- 06 VTAB and FGVC


def structured_gap() -> float:
    """How far full fine-tuning is above ``Conv. Par.`` on the structured tasks, in points: the paper's Table 13."""
    scores: dict[str, list[float]] = {}
    for row in table(13):
        if row["group"] == "Structured":
            scores.setdefault(row["tuning"], []).append(row["mean"])
    return statistics.mean(scores["FT"]) - statistics.mean(scores["Conv. Par."])


def failed_runs(accuracies: Sequence[float], classes: int) -> tuple[int, float]:
    """(how many runs are below one and a half times guessing, the mean of the others), accuracies in parts of 1."""
    learned = [accuracy for accuracy in accuracies if accuracy >= 1.5 / classes]
    return len(accuracies) - len(learned), statistics.mean(learned)


def _runs() -> dict[str, tuple]:
    return {
        "five runs of 16 classes, one at 6.7 %": ([0.912, 0.067, 0.924, 0.905, 0.931], 16),
        "three runs of 2 classes, none below 75 %": ([0.82, 0.84, 0.85], 2),
        "three runs of 2 classes, two at 52 %": ([0.52, 0.84, 0.52], 2),
    }


# ---------------------------------------------------------------- 07 why


def _samples() -> dict[str, tuple]:
    random = _random()
    x = torch.randn(40, 6, generator=random, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=random, dtype=torch.float64))[0]
    other = torch.randn(40, 3, generator=random, dtype=torch.float64)
    return {
        "a set and itself": (x, x),
        "a set and the same, rotated and tripled": (x, 3 * x @ rotation),
        "40 samples of 6 numbers and 40 unrelated ones of 3": (x, other),
        "the same two, with 5 added to every number of the first": (x + 5, other),
    }


def invariance() -> dict[str, bool]:
    """Whether the CKA of filters with changed filters stays 1."""
    random = _random()
    x = torch.randn(60, 8, generator=random, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=random, dtype=torch.float64))[0]
    changed = {
        "all filters tripled": 3 * x,
        "all filters rotated alike": x @ rotation,
        "one constant filter added to all": x + torch.randn(8, generator=random, dtype=torch.float64),
        "each filter with a scale of its own": x * torch.rand(60, 1, generator=random, dtype=torch.float64),
        "filters in another order": x[torch.randperm(60, generator=random)],
        "weights within all filters in another order": x[:, torch.randperm(8, generator=random)],
    }
    return {what: abs(linear_cka(x, other) - 1) < 1e-6 for what, other in changed.items()}


# ---------------------------------------------------------------- 08 detection


def iou_of_boxes(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    return box_iou(*(torch.tensor([box], dtype=torch.float64) for box in (one, other))).item()


def _boxes() -> dict[str, tuple]:
    pairs = [
        ([0, 0, 10, 10], [5, 5, 15, 15]),
        ([0, 0, 10, 10], [0, 0, 10, 10]),
        ([0, 0, 10, 10], [2, 2, 6, 4]),
        ([0, 0, 10, 10], [20, 20, 30, 30]),
        ([0, 0, 10, 10], [5, 12, 15, 22]),
    ]
    return {f"{one} and {other}": (one, other) for one, other in pairs}


def precision_and_recall(scores: Sequence[float], right: Sequence[bool], objects: int, threshold: float) -> tuple[float, float]:
    """(precision, recall) of the boxes whose score is at least a threshold, of which some are ``right``."""
    kept = [good for score, good in zip(scores, right, strict=True) if score >= threshold]
    return sum(kept) / len(kept), sum(kept) / objects


def _scored() -> dict[str, tuple]:
    scores, right = [0.95, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3], [True, True, False, True, False, True, False]
    return {f"6 objects and a threshold of {threshold}": (scores, right, 6, threshold) for threshold in (0.5, 0.85, 0.1)}


# ---------------------------------------------------------------- 09 segmentation


def mean_iou(guess: Tensor, mask: Tensor, ignored: int = segmentation.IGNORED) -> float:
    """Mean IoU over the classes that are in the guess or the mask, without the pixels that the mask ignores."""
    return segmentation.mean_iou([(guess, mask)])["miou"]


def _masks() -> dict[str, tuple]:
    mask, guess = torch.tensor([[0, 0, 1], [0, 1, 1], [2, 2, 255]]), torch.tensor([[0, 0, 1], [0, 0, 1], [2, 1, 1]])
    random = _random()
    large, drawn = (torch.randint(4, (16, 16), generator=random) for _ in range(2))
    large[3:5] = 255
    return {
        "the 3 x 3 mask": (guess, mask),
        "a guess that is right wherever it counts": (mask.clamp(max=2), mask),
        "classes 0 and 3, and none between": (torch.tensor([[0, 3], [3, 3]]), torch.tensor([[0, 0], [3, 3]])),
        "16 x 16 pixels, two rows of which do not count": (drawn, large),
    }


def pooled_or_by_image(shared: Sequence[int], either: Sequence[int]) -> tuple[float, float]:
    """(IoU with the pixels of all images together, mean of the images' IoUs) from the pixels of each image."""
    return sum(shared) / sum(either), statistics.mean(a / b for a, b in zip(shared, either, strict=True))


# ---------------------------------------------------------------- 10 your images


def method_to_use(draws: Mapping[str, Sequence[float]]) -> str:
    """The cheapest method that no dearer one is above in every draw; the cheapest first."""
    from .own_images import chosen  # with it come reports and what they need

    return chosen(draws)


# ---------------------------------------------------------------- 11 ship it


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the one convolution that does what ``conv`` and then ``norm`` in evaluation mode do."""
    settings = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    return nn.utils.fuse_conv_bn_weights(*settings)


def _layers() -> dict[str, tuple]:
    def case(bias, **options):
        random = _random()
        conv, norm = nn.Conv2d(4, 8, 3, bias=bias, **options), nn.BatchNorm2d(8, eps=1e-2).eval()
        for tensor in (*conv.parameters(), norm.weight, norm.bias, norm.running_mean):
            tensor.data = torch.randn(tensor.shape, generator=random)
        norm.running_var.copy_(0.1 + torch.rand(8, generator=random))
        return conv, norm

    return {"a convolution without a bias": case(False), "one with a bias, in two groups": case(True, groups=2)}


def bytes_for_relu(shape: tuple[int, ...] = (8, 256, 56, 56)) -> tuple[int, int]:
    """(bytes that autograd keeps of a float32 map for a ReLU, bytes if it keeps one bit an element)."""
    elements = int(np.prod(shape))
    return 4 * elements, elements // 8


EXERCISES = {
    "accuracy and balanced accuracy": Exercise(balanced_accuracy, _right_counts),
    "trainable parameters": Exercise(trainable_parameters, _partly_frozen),
    "receptive field": Exercise(receptive_field),
    "smaller file": Exercise(smaller_file, tolerance=0.005),
    "adapted map": Exercise(adapted_map, _maps),
    "zero gradients": Exercise(zero_gradients),
    "channels and strides": Exercise(channels_and_strides),
    "order of totals": Exercise(order_of_totals),
    "cheapest within one SD": Exercise(cheapest_within_one_sd),
    "matched compression": Exercise(matched_compression),
    "paired bootstrap": Exercise(paired_bootstrap, _right_and_wrong, tolerance=0.004),
    "draws to halve an interval": Exercise(draws_to_halve),
    "structured gap": Exercise(structured_gap, tolerance=0.02),
    "failed runs": Exercise(failed_runs, _runs),
    "linear CKA": Exercise(linear_cka, _samples),
    "what CKA does not see": Exercise(invariance),
    "IoU of boxes": Exercise(iou_of_boxes, _boxes),
    "precision and recall": Exercise(precision_and_recall, _scored),
    "mean IoU": Exercise(mean_iou, _masks),
    "pixels or images": Exercise(pooled_or_by_image),
    "Wilson interval": Exercise(lambda: tuple(wilson_interval(112, 125)), tolerance=1e-3),
    "the method to use": Exercise(method_to_use),
    "folded BatchNorm": Exercise(folded, _layers),
    "bytes for a ReLU": Exercise(bytes_for_relu),
}
