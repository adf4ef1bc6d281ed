"""What trains under each method?"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .anatomy import Spec, UnsupportedBackbone
from .discovery import SHORTCUTS, classifier_names, input_shape, skeleton
from .freezing import Attachment, detach, freeze, hold_statistics, release_statistics
from .schemes import active_set, adapt, make_own, plain_anatomy

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def full(model: nn.Module) -> None:
    """Every parameter, and the statistics of every normalisation layer."""
    freeze(model)  # to remember what it was
    for module in model.modules():
        release_statistics(module)
    for weight in model.parameters():
        weight.requires_grad_(weight.is_floating_point())


def linear(model: nn.Module) -> None:
    """The classifier."""
    freeze(model)


def bias(model: nn.Module, spec: Spec | None = None) -> None:
    """The classifier and every bias; convolutions of blocks that have none get one of zeros.  Statistics stay."""
    convolutions = list(_block_convolutions(model, spec))
    freeze(model)
    for name, conv in convolutions:
        if conv.bias is None:
            weight = conv.weight
            conv.bias = nn.Parameter(torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype))
            model._minica["added_biases"].append(name)
    for key, weight in model.named_parameters():
        weight.requires_grad_("bias" in key.rpartition(".")[2])  # Swin's relative position biases too


def norm(model: nn.Module) -> None:
    """The classifier and every normalisation layer: its weight, its bias and, since it trains, its statistics."""
    freeze(model)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.requires_grad_(True)


def prompt(model: nn.Module, size: int = 10, image_size: int | tuple[int, int] | None = None) -> None:
    """The classifier and a learnable frame of ``size`` pixels that is added to every (normalised) image."""
    channels, height, width = input_shape(model)
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not 1 <= size <= min(height, width) // 2:
        raise ValueError(f"a prompt's size must be from 1 to {min(height, width) // 2} pixels, half the image, got {size!r}.")
    freeze(model)
    weight = next(model.parameters())
    model.prompt = Prompt(size, (channels, height, width)).to(device=weight.device, dtype=weight.dtype)
    model.register_forward_pre_hook(model.prompt.frame)


def conv_adapter(model: nn.Module, **options) -> None:
    """The classifier and a Conv-Adapter at every unit or block; the options of :func:`minica.adapt`."""
    adapt(model, **options)


def residual_adapter(model: nn.Module, spec: Spec | None = None) -> None:
    """The classifier and a 1x1 convolution beside every convolution of every block (Rebuffi et al. 2018)."""
    convolutions = list(_block_convolutions(model, spec))
    freeze(model)
    for _, conv in convolutions:
        conv.residual_adapter = ResidualAdapter(conv)
        conv.register_forward_hook(conv.residual_adapter.add)


METHODS: dict[str, Callable] = {
    method.__name__: method for method in (full, linear, bias, norm, prompt, conv_adapter, residual_adapter)
}
TRAINED_NORMS = ("none", "final", "all")
FINAL_NORMS = ("norm", "head.norm", "fc_norm")  # what timm calls the layer before the classifier


def tune(model: nn.Module, method: str, *, norms: str = "none", **options) -> nn.Module:
    """Prepare ``model`` for training by ``method``, in place: what trains, what is added, what is frozen.

    Starts from the plain backbone: whatever an earlier call attached is detached first.

    Args:
        method: one of :data:`METHODS`.
        norms: which normalisation layers train as well.  The paper's text says ``"none"``.  Its code trains every layer with
            *norm* in its name: in ConvNeXt and Swin ``"all"``; in BiT, whose other norms it calls *gn*, the ``"final"`` one
            before the classifier.
        options: of the method: ``size`` and ``image_size`` of a ``"prompt"``, in pixels; for ``"conv_adapter"`` those of
            :func:`minica.adapt`, of which ``"bias"`` and ``"residual_adapter"`` take ``spec``.

    Raises:
        ValueError: for an unknown method or option.
        UnsupportedBackbone: if the method needs convolutional blocks and there are none.  In each case the model is untouched.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    if norms not in TRAINED_NORMS:
        raise ValueError(f"unknown norms {norms!r}; choose one of {', '.join(TRAINED_NORMS)}.")
    accepted = inspect.signature(adapt if method == "conv_adapter" else METHODS[method]).parameters.keys() - {"model"}
    if unknown := options.keys() - accepted:
        known = ", ".join(sorted(accepted)) or "no options"
        raise ValueError(f"{method!r} takes {known}; got {', '.join(sorted(unknown))}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rehearsal on a copy without numbers: what is refused is refused here
        METHODS[method](detach(skeleton(model)), **options)
    detach(model)
    METHODS[method](model, **options)
    model._minica |= {"method": method, "norms": norms, "options": options}
    for name in classifier_names(model):
        model.get_submodule(name).requires_grad_(True)
    train_norms(model, norms)
    return model


def train_norms(model: nn.Module, norms: str) -> None:
    """Train the normalisation layers that ``norms`` names (see :func:`tune`), and hold the statistics of all others."""
    for name, module in model.named_modules():
        wanted = name in FINAL_NORMS if norms == "final" else norms == "all" and "norm" in name.rpartition(".")[2]
        if wanted and isinstance(module, NORMS):
            module.requires_grad_(True)
    if active_set(model) is not None:
        make_own(model)
        model._minica["adapters"][active_set(model)]["norms"] = norms
    if model._minica.get("method") != "full":  # there, layers without a weight learn their statistics as well
        hold_statistics(model)


def _block_convolutions(model: nn.Module, spec: Spec | None):
    """Every convolution inside a block, off its shortcut: (name, module)."""
    parts = plain_anatomy(model, spec)
    blocks = tuple(f"{part.name}." for part in parts if part.kind == "block")
    if not blocks:
        raise UnsupportedBackbone(f"{type(model).__name__} has no residual blocks, and this method changes their convolutions.")
    for name, module in model.named_modules():
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
