"""The methods that the paper compares: what each adds to a model and what trains under it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from . import recipe
from .anatomy import Spec, UnsupportedBackbone
from .counting import check_choice, check_whole
from .discovery import SHORTCUTS, checked_spec, find_parts, input_shape, skeleton
from .hooks import Attachment
from .schemes import adapt

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


# Each method gets the plain network, adds what it adds, and returns the network's own tensors that train, by state-dict key.


def full(network: nn.Module, running_stats: bool = True) -> list[str]:
    """Every parameter and, unless ``running_stats`` is False, the statistics of every BatchNorm, which detectors freeze."""
    return list(recipe.own_tensors(network) if running_stats else dict(network.named_parameters()))


def linear(network: nn.Module) -> list[str]:
    """The classifier."""
    return []


def bias(network: nn.Module, spec: Spec | None = None) -> list[str]:
    """The classifier and every bias; convolutions of blocks that have none get one of zeros.  Statistics stay."""
    for conv in dict(_block_convolutions(network, spec)).values():
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.weight.shape[0]))
    return [key for key, _ in network.named_parameters() if "bias" in key.rpartition(".")[2]]  # Swin's position biases too


def norm(network: nn.Module) -> list[str]:
    """The classifier and every normalisation layer: its weight, its bias and, since it trains, its statistics."""
    return recipe.keys_below(network, [name for name, module in network.named_modules() if isinstance(module, NORMS)])


def prompt(network: nn.Module, size: int = 10, image_size: int | tuple[int, int] | None = None) -> list[str]:
    """The classifier and a learnable frame of ``size`` pixels that is added to every (normalised) image."""
    channels, *sides = input_shape(network)
    if image_size is not None:
        sides = image_size if isinstance(image_size, (tuple, list)) and len(image_size) == 2 else (image_size, image_size)
    height, width = (check_whole(side, "image_size", 2, 100_000) for side in sides)
    if not 1 <= check_whole(size, "size", 1) <= min(height, width) // 2:
        raise ValueError(f"a prompt's size must be from 1 to {min(height, width) // 2} pixels, half the image, got {size!r}.")
    weight = next(network.parameters())
    network.prompt = Prompt(int(size), (channels, height, width)).to(device=weight.device, dtype=weight.dtype)
    network.prompt.train(network.training).hook(network, "", "forward_pre", network.prompt.frame)
    return []


def residual_adapter(network: nn.Module, spec: Spec | None = None) -> list[str]:
    """The classifier and a 1x1 convolution beside every convolution of every block (Rebuffi et al. 2018)."""
    for name, conv in list(_block_convolutions(network, spec)):
        conv.residual_adapter = ResidualAdapter(conv).train(conv.training)
        conv.residual_adapter.hook(network, name, "forward", conv.residual_adapter.add)
    return []


def conv_adapter(model: nn.Module, **options) -> None:
    """The classifier and a Conv-Adapter at every unit or block; the options of :func:`minica.adapt`."""
    adapt(model, **options)


METHODS = {method.__name__: method for method in (full, linear, bias, norm, prompt, conv_adapter, residual_adapter)}
TRAINED_NORMS = ("none", "final", "all")
FINAL_NORMS = ("norm", "head.norm", "fc_norm")  # what timm calls the layer before the classifier


def tune(
    model: nn.Module,
    method: str,
    *,
    norms: str = "none",
    train: str | Collection[str] = (),
    backbone: str | None = None,
    **options,
) -> nn.Module:
    """Prepare ``model`` for training by ``method``, in place: what trains, what is added, what is frozen.

    Starts from the plain backbone: whatever an earlier call attached is detached first.

    Args:
        method: one of :data:`METHODS`.
        norms: which normalisation layers train as well.  The paper's text says ``"none"``.  Its code trains every layer with
            *norm* in its name: in ConvNeXt and Swin ``"all"``; in BiT, whose other norms it calls *gn*, the ``"final"`` one
            before the classifier.
        train: names of modules or parameters that train as well, see :func:`minica.adapt`.
        backbone: the dotted name of the network to tune inside a larger model, see :func:`minica.adapt`.
        options: of the method: ``running_stats`` of ``"full"``; ``size`` and ``image_size`` of a ``"prompt"``, in pixels; for
            ``"conv_adapter"`` those of :func:`minica.adapt`, of which ``"bias"`` and ``"residual_adapter"`` take ``spec``.

    Raises:
        ValueError: for an unknown method or option, or if nothing at all would train.
        UnsupportedBackbone: if the method needs convolutional blocks and there are none.  In each case the model is untouched.
    """
    whole = recipe.unwrap(model)
    check_choice(method, "method", METHODS)
    taken = inspect.signature(adapt if method == "conv_adapter" else METHODS[method]).parameters.keys()
    accepted = taken - {"model", "network", "train", "backbone"}
    if unknown := options.keys() - accepted:
        known = ", ".join(sorted(accepted)) or "no options"
        raise ValueError(f"{method!r} takes {known}; got {', '.join(sorted(unknown))}.")
    with warnings.catch_warnings(action="ignore"):  # a rehearsal on a copy without numbers: what is refused is refused here
        prepare(recipe.detach(skeleton(whole)), method, norms, train, backbone, options)
    prepare(recipe.detach(whole), method, norms, train, backbone, options)
    return model


def prepare(model: nn.Module, method: str, norms: str, train, backbone: str | None, options: dict) -> nn.Module:
    """:func:`tune` without its rehearsal, on a model to which nothing, or for Conv-Adapters only other sets, was added."""
    check_choice(norms, "norms", TRAINED_NORMS)
    place, (train, beside) = "" if backbone is None else backbone, recipe.named_tensors(model, train)
    network = recipe.part_of(model, place)
    norm_names = [f"{place}.{name}".lstrip(".") for name in _trained_norms(network, norms)]
    if method == "conv_adapter":
        adapt(model, train=(*train, *norm_names), backbone=backbone, **options)
    else:
        state = recipe.carry(model, place)
        without = [name for name, conv in model.named_modules() if getattr(conv, "bias", 0) is None]
        own = [f"{place}.{key}".lstrip(".") for key in METHODS[method](network, **options)]
        own += recipe.keys_below(model, [*recipe.classifier_names(model, place), *norm_names]) + beside
        if not own and not recipe.attachments(model):
            what = f"under {method!r} nothing of this {type(model).__name__} would train: no classifier was recognised"
            raise ValueError(f"{what}; name it, for instance train=({[name for name, _ in model.named_children()][-1]!r},).")
        state.added_biases = tuple(name for name in without if model.get_submodule(name).bias is not None)
        recipe.declare(model, "default", recipe.Recipe(method, options, recipe.with_aliases(model, own)))
        recipe.warn_about_heads(model)
    declared = recipe.active_recipe(model)
    declared.norms, declared.train = norms, train
    return model


def _trained_norms(network: nn.Module, norms: str) -> list[str]:
    """The normalisation layers that ``norms`` names, see :func:`tune`."""
    names = [name for name, module in network.named_modules() if isinstance(module, NORMS) and module.state_dict()]
    wanted = {"none": (), "final": FINAL_NORMS}.get(norms, names)
    return [name for name in names if name in wanted and (norms != "all" or "norm" in name.rpartition(".")[2])]


def _block_convolutions(network: nn.Module, spec: Spec | None):
    """Every convolution inside a block, off its shortcut: (name, module)."""
    spec = None if spec is None else checked_spec(network, spec)
    parts = find_parts(recipe.strip(skeleton(network)), spec)
    blocks = tuple(f"{part.name}." for part in parts if part.kind == "block")
    if not blocks:
        raise UnsupportedBackbone(f"{type(network).__name__} has no residual blocks, whose convolutions this method changes.")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith(blocks) and not any(word in name for word in SHORTCUTS):
            yield name, module


class Prompt(Attachment, nn.Module):
    """A learnable frame inside the image: ``12 p (S - p)`` numbers for p pixels of an S x S image, one frame for all images."""

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.top, self.bottom = (nn.Parameter(torch.randn(channels, size, width)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.randn(channels, height - 2 * size, size)) for _ in range(2))

    def frame(self, model: nn.Module, args: tuple) -> tuple:
        images = args[0]
        size, (height, width) = self.top.shape[1], images.shape[-2:]
        if (self.left.shape[1] + 2 * size, self.top.shape[2]) != (height, width):
            raise ValueError(
                f"the prompt frames images of {self.left.shape[1] + 2 * size} x {self.top.shape[2]} pixels, got {height} x "
                f"{width}; tune with image_size=({height}, {width})."
            )
        centre = self.left.new_zeros(self.left.shape[0], height - 2 * size, width - 2 * size)
        frame = torch.cat([self.top, torch.cat([self.left, centre, self.right], 2), self.bottom], 1)
        return (images + frame.to(images.dtype), *args[1:])


class ResidualAdapter(Attachment, nn.Conv2d):
    """A 1x1 convolution with the host's channels and stride whose output is added to the host's; it starts at zero."""

    def __init__(self, host: nn.Conv2d) -> None:
        weight = host.weight
        channels = (host.in_channels, host.out_channels)
        super().__init__(*channels, 1, host.stride, bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.weight)

    def add(self, host: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + self(args[0])[..., : output.shape[-2], : output.shape[-1]]
