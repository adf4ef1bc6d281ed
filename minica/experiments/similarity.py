"""How alike two networks, two layers or two sets of images are: CKA and MMD.

The paper's Section B.3 compares each convolution's filters before and after full fine-tuning by CKA, and the images of two data
sets by the MMD of their features, and sets both beside what adapters gain.  It states neither kernel, bandwidth nor layer; what
is taken here is stated with each function.  All is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..fast.layout import channels_last
from ..profiling import modes_kept

READINGS = ("kernels", "filters")


def hsic(one: Tensor, other: Tensor, unbiased: bool = False) -> Tensor:
    """The Hilbert-Schmidt independence criterion of two Gram matrices K and L, both (n, n).

    Biased it is ``tr(K H L H) / (n - 1)^2`` with the centring matrix ``H`` (Gretton et al. 2005).  Unbiased it is the
    U-statistic of Song et al. 2012, Equation 5, which needs n of 4 and more, and may be below zero.

    Raises:
        ValueError: for fewer rows, or matrices of different shapes.
    """
    n, least = len(one), 4 if unbiased else 2
    if one.shape != (n, n) or other.shape != (n, n) or n < least:
        raise ValueError(f"two Gram matrices (n, n), n at least {least}, got {tuple(one.shape)} and {tuple(other.shape)}.")
    one, other = one.double(), other.double()
    if not unbiased:
        centred = one - one.mean(0, keepdim=True) - one.mean(1, keepdim=True) + one.mean()
        return (centred * other).sum() / (n - 1) ** 2
    one, other = (gram - torch.diag(gram.diagonal()) for gram in (one, other))
    total = (one * other).sum() + one.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one.sum(0) @ other.sum(0))
    return total / (n * (n - 3))


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of n samples in two representations, (n, p) and (n, q) (Kornblith et al. 2019).

    It is 1 for representations that are equal up to a rotation, a reflection and one scale, and 0 for uncorrelated ones.
    With the biased HSIC it is drawn towards 1 where p and q are large beside n; ``unbiased`` removes that, and may then be
    below zero.

    Raises:
        ValueError: for different numbers of samples, or too few.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"two matrices with as many rows, one a sample, got {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = x.double(), y.double()
    if unbiased or len(x) <= max(x.shape[1], y.shape[1]):
        grams = x @ x.T, y @ y.T
        return _alignment(hsic(*grams, unbiased), *(hsic(gram, gram, unbiased) for gram in grams))
    x, y = x - x.mean(0), y - y.mean(0)  # the same numbers by smaller matrices: ||Y'X||^2 / (||X'X|| ||Y'Y||)
    return _alignment(*((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y))))


def _alignment(xy: Tensor, xx: Tensor, yy: Tensor) -> float:
    """NaN where one of the two does not vary at all."""
    return (xy / (xx * yy).sqrt()).item()


def filter_matrix(weight: Tensor, reading: str = "kernels") -> Tensor:
    """A layer's weight (C_out, C_in / groups, k, k), or (C_out, C_in), as samples in rows.

    A 1 x 1 convolution and a linear layer are a map of channels: (C_out, C_in).  Of a larger kernel the paper says "a set of
    filters", which can be read in two ways: ``"kernels"``, a sample for every pair of channels, (C_out C_in / groups, k k),
    or ``"filters"``, one for every output channel, (C_out, C_in / groups k k).  They agree for depth-wise convolutions.
    """
    if reading not in READINGS:
        raise ValueError(f"unknown reading {reading!r}; choose one of {', '.join(READINGS)}.")
    if weight.ndim < 2:
        raise ValueError(f"a weight of two or more dimensions, got {tuple(weight.shape)}.")
    pointwise = weight.shape[2:].numel() == 1
    return weight.flatten(0, 1).flatten(1) if reading == "kernels" and not pointwise else weight.flatten(1)


def weight_cka(before: nn.Module, after: nn.Module, reading: str = "kernels", unbiased: bool = False) -> dict[str, float]:
    """CKA of every convolution and linear layer of one network with the same layer of another, by its name.

    Layers of different shapes, such as a new classifier, are left out, and so are those with fewer than four samples or
    without a second column.  Weight-standardised convolutions (BiT) are compared as they are stored, which is not what they
    compute with.

    Raises:
        ValueError: if the two have no layer in common.
    """
    kinds, found = (nn.Conv2d, nn.Linear), {}
    others = {name: module for name, module in after.named_modules() if isinstance(module, kinds)}
    for name, module in before.named_modules():
        if isinstance(module, kinds) and name in others and module.weight.shape == others[name].weight.shape:
            pair = [filter_matrix(layer.weight.detach(), reading) for layer in (module, others[name])]
            if len(pair[0]) >= 4 and pair[0].shape[1] > 1:
                found[name] = linear_cka(*pair, unbiased)
    if not found:
        raise ValueError("the two networks have no convolution or linear layer of the same name and shape to compare.")
    return found


@torch.no_grad()
def feature_cka(
    one: nn.Module,
    places: Sequence[str],
    batches: Iterable,
    other: nn.Module | None = None,
    others: Sequence[str] | None = None,
) -> Tensor:
    """CKA of the features at some places of a network with those at some places of another, over the same images.

    The unbiased HSIC is averaged over batches (Nguyen, Raghu and Kornblith 2021), so that memory is bounded by one batch and
    the result hardly depends on the batch size.

    Args:
        one: maps images to anything; runs in evaluation mode, on its device.
        places: names of modules whose outputs are compared; (N, C, H, W) is flattened to (N, C H W).
        batches: of images (N, 3, H, W), or of images and labels; N at least 4, smaller ones are left out.
        other: the second network, by default the same.
        others: its places, by default the same names.

    Returns:
        float64 (places, others).

    Raises:
        ValueError: for a place that is not there, or no batch of four images.
    """
    nets = [one, one if other is None else other]
    names = [list(places), list(places if others is None else others)]
    seen: list[dict[str, Tensor]] = [{}, {}]
    sums, device = None, next(one.parameters()).device
    with ExitStack() as end:
        for net, wanted, outputs in zip(nets, names, seen, strict=True):
            end.enter_context(modes_kept(net))
            net.eval()
            for name in wanted:
                end.callback(_module(net, name).register_forward_hook(_keep(outputs, name)).remove)
        for batch in batches:
            images = channels_last((batch[0] if isinstance(batch, (list, tuple)) else batch).to(device))
            if len(images) < 4:
                continue
            for net in dict.fromkeys(nets):
                net(images)
            sides = [
                [outputs[name].flatten(1).double() for name in wanted] for wanted, outputs in zip(names, seen, strict=True)
            ]
            grams = [[features @ features.T for features in side] for side in sides]
            cross = torch.stack([torch.stack([hsic(gram, other, True) for other in grams[1]]) for gram in grams[0]])
            own = [torch.stack([hsic(gram, gram, True) for gram in side]) for side in grams]
            sums = [a + b for a, b in zip(sums, (cross, *own), strict=True)] if sums else [cross, *own]
    if sums is None:
        raise ValueError("no batch of at least four images, which the unbiased HSIC needs; take larger batches.")
    cross, first, second = sums
    return (cross / (first[:, None] * second[None]).sqrt()).cpu()


def _module(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        tops = ", ".join(top for top, _ in net.named_children())
        raise ValueError(f"{name!r} is no part of {type(net).__name__}; it has {tops}.") from error


def _keep(outputs: dict[str, Tensor], name: str):
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs[name] = output

    return hook


@torch.no_grad()
def pooled_features(model: nn.Module, images: Dataset, batch_size: int = 100) -> Tensor:
    """What a classifier's last layer receives, (N, C), of N images (with or without labels), in evaluation mode."""
    device, found = next(model.parameters()).device, []
    with modes_kept(model):
        model.eval()
        for batch in DataLoader(images, batch_size):
            batch = batch[0] if isinstance(batch, (list, tuple)) else batch
            maps = model.forward_features(channels_last(batch.to(device)))
            found.append(model.forward_head(maps, pre_logits=True).flatten(1).cpu())
    return torch.cat(found)


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None, unbiased: bool = False) -> float:
    """Squared maximum mean discrepancy of two samples (m, p) and (n, p) under a Gaussian kernel (Gretton et al. 2012).

    ``k(a, b) = exp(-|a - b|^2 / (2 s^2))``.  Biased it is never below zero, and 0 for a sample with itself; unbiased it is
    a U-statistic without the pairs of a point with itself.

    Args:
        bandwidth: ``s``; by default :func:`median_distance` of both samples together.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"two samples (m, p) and (n, p) of two rows or more, got {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = x.double(), y.double()
    bandwidth = median_distance(x, y) if bandwidth is None else bandwidth
    if not bandwidth > 0:
        raise ValueError(f"the bandwidth must be above 0, got {bandwidth}; are all points the same?")

    def similar(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-_squared_distances(a, b) / (2 * bandwidth**2))

    within = []
    for sample in (x, y):
        k, n = similar(sample, sample), len(sample)
        within.append((k.sum() - k.diagonal().sum()) / (n * (n - 1)) if unbiased else k.mean())
    return (within[0] + within[1] - 2 * similar(x, y).mean()).item()


def median_distance(x: Tensor, y: Tensor) -> float:
    """The median Euclidean distance between two different points of both samples together: the usual bandwidth."""
    both = torch.cat([x, y]).double()
    above = torch.triu_indices(len(both), len(both), offset=1)
    return _squared_distances(both, both)[above[0], above[1]].median().sqrt().item()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
