"""Where are a backbone's blocks and units?

A residual **block** and each **unit** inside it can be adapted.  A unit is a functional convolution (spatial, k > 1) off the
shortcut, with the norm and the activation that belong to it before the block's add (Section 3.4, Figure 3).  Which modules
these are is a property of the block's class, so it is written down once a class, in ``ROWS``; strides and channels hide in
pools and wrappers, so they are read off one forward pass.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from .counting import Kernel, kernel_area


class UnsupportedBackbone(ValueError):
    """The network has nothing that a Conv-Adapter could adapt."""


# ---------------------------------------------------------------- the rows


class Unit(NamedTuple):
    """A unit by the attribute names of its block: it begins at the input of ``begin`` and ends at the output of ``end``."""

    conv: str  # the functional convolution; the adapter is registered here and takes its kernel
    begin: str | None = None  # where the unit begins, if before the convolution
    end: str | None = None  # where it ends, if after the convolution
    begin_side: str = "input"
    kernel: int | None = None  # for a unit that is not a convolution


class Row(NamedTuple):
    """How one class of block is adapted."""

    units: tuple[Unit, ...]
    kind: str = "block"  # "downsample" and "pool" have one unit that every scheme adapts
    init: str = "kaiming"  # what the published code does to adapters in this family
    nhwc: bool = False  # feature maps are (N, H, W, C)


# The classes are named package.file.Class.  Where the published code adapts them: protocol of the paper's release, which has
# Convolution-Parallel only; the other families follow Figure 3.
ROWS = {
    # Post-activation ResNets: conv - bn - act.  BasicBlock's second unit ends before the add.
    "timm.resnet.BasicBlock": Row((Unit("conv1", end="act1"), Unit("conv2", end="bn2"))),
    "timm.resnet.Bottleneck": Row((Unit("conv2", end="act2"),)),
    "timm.resnetv2.Bottleneck": Row((Unit("conv2", end="norm2"),)),
    "timm.regnet.Bottleneck": Row((Unit("conv2.conv", end="conv2.bn"),)),
    # Pre-activation: norm - act - conv, from raw convolution output to raw convolution output.
    "timm.resnetv2.PreActBasic": Row((Unit("conv1", begin="norm1"), Unit("conv2", begin="norm2")), init="torch"),
    "timm.resnetv2.PreActBottleneck": Row((Unit("conv2", begin="norm2"),), init="torch"),
    "timm.regnet.PreBottleneck": Row((Unit("conv2", begin="norm2"),)),
    # CLIP's ResNets: the unit ends before the average pool that does the striding, and the attention pool has a linear adapter.
    "timm.byobnet.BasicBlock": Row((Unit("conv1_kxk.conv", end="conv1_kxk.bn"), Unit("conv2_kxk.conv", end="conv2_kxk.bn"))),
    "timm.byobnet.BottleneckBlock": Row((Unit("conv2_kxk.conv", end="conv2_kxk.bn"),)),
    "timm.attention_pool2d.AttentionPool2d": Row((Unit("proj", begin="q", end="proj"),), kind="pool"),
    # ConvNeXt: the depth-wise convolution alone, and the convolutions between stages.
    "timm.convnext.ConvNeXtBlock": Row((Unit("conv_dw"),), init="trunc_normal"),
    "timm.convnext.ConvNeXtStage": Row((Unit("downsample.1"),), kind="downsample", init="trunc_normal"),
    # Inverted residuals: EfficientNet, MobileNet v2 to v4, MNASNet, MixNet and their kin.
    "timm._efficientnet_blocks.DepthwiseSeparableConv": Row((Unit("conv_dw", end="bn1"),)),
    "timm._efficientnet_blocks.InvertedResidual": Row((Unit("conv_dw", end="bn2"),)),
    "timm._efficientnet_blocks.EdgeResidual": Row((Unit("conv_exp", end="bn1"),)),
    "timm._efficientnet_blocks.ConvBnAct": Row((Unit("conv", end="bn1"),)),
    "timm._efficientnet_blocks.UniversalInvertedResidual": Row(
        tuple(Unit(f"{name}.conv", end=f"{name}.bn") for name in ("dw_start", "dw_mid", "dw_end"))
    ),
    # Swin: the attention, on the un-windowed map, between its norm and the add.
    "timm.swin_transformer.SwinTransformerBlock": Row(
        (Unit("attn", begin="norm1", begin_side="output", end="drop_path1", kernel=7),), init="torch", nhwc=True
    ),
}


def _row(module: nn.Module) -> Row | None:
    for cls in type(module).__mro__:
        names = cls.__module__.split(".")
        row = ROWS.get(f"{names[0]}.{names[-1]}.{cls.__name__}")
        if row is not None:
            return row
    return None


# ---------------------------------------------------------------- the parts


class Place(NamedTuple):
    """A feature map of the running network: what a module receives or returns."""

    module: str
    side: str  # "input" or "output"


@dataclass(frozen=True)
class Part:
    """A block or a unit of one network: where it begins, where it ends, and what shapes it had there."""

    name: str  # dotted, as in ``model.get_submodule(name)``
    kind: str  # "unit", "block", "downsample" or "pool"
    host: str  # the module that the adapter is registered under
    begin: Place
    end: Place
    in_channels: int
    out_channels: int
    stride: tuple[int, int]
    out_size: tuple[int, int]  # of the observed pass, in pixels
    kernel_size: Kernel
    dilation: tuple[int, int]
    same_padding: bool
    layout: str  # "nchw", "nhwc" or "tokens"
    act: nn.Module
    init: str


def anatomy(model: nn.Module) -> list[Part]:
    """Every part of ``model`` that some scheme adapts, in the order of its modules.

    Runs the network once, on one blank image of its own input size, on its own device (``meta`` included).

    Raises:
        UnsupportedBackbone: if no block is known, for instance in a pure transformer.
    """
    found = []
    for name, module in model.named_modules():
        row = _row(module)
        if row is not None:
            found += _candidates(model, name, module, row)
    shapes = _observe(model, {place for part in found for place in (part["begin"], part["end"])})
    parts = [_measured(part, shapes) for part in found if part["begin"] in shapes and part["end"] in shapes]
    if not parts:
        known = ", ".join(sorted({key.split(".", 1)[1] for key in ROWS}))
        raise UnsupportedBackbone(
            f"{type(model).__name__} has no convolutional unit that minica knows, so there is nothing to adapt. "
            f"Conv-Adapter needs a network with spatial convolutions, such as a ResNet, ConvNeXt or EfficientNet; "
            f"the blocks known are {known}."
        )
    return parts


def _candidates(model: nn.Module, name: str, block: nn.Module, row: Row) -> list[dict]:
    """The parts of one block, still without shapes."""
    parts, kernels = [], []
    for unit in row.units:
        paths = [unit.conv, unit.begin or unit.conv, unit.end or unit.conv]
        conv, begin, end = (_submodule(block, path) for path in paths)
        if begin is None or end is None or conv is None:
            continue  # an optional unit that this block lacks
        geometry = _geometry(conv, unit.kernel)
        if geometry is None:
            continue
        kernels.append(geometry)
        # Containers iterate over their children, so they cannot hold an adapter: the block does.
        host = block if isinstance(conv, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) else conv
        parts.append(
            dict(
                geometry,
                name=f"{name}.{unit.conv}" if name else unit.conv,
                kind="unit" if row.kind == "block" else row.kind,
                host=name if host is block else f"{name}.{unit.conv}".lstrip("."),
                begin=Place(f"{name}.{paths[1]}".lstrip("."), unit.begin_side),
                end=Place(f"{name}.{paths[2]}".lstrip("."), "output"),
            )
        )
    if row.kind == "block" and kernels:
        # A block is adapted with the widest kernel among its units.
        widest = max(kernels, key=lambda geometry: kernel_area(geometry["kernel_size"]))
        parts.append(dict(widest, name=name, kind="block", host=name, begin=Place(name, "input"), end=Place(name, "output")))
    act = _activation(block)
    return [dict(part, act=act, init=row.init, nhwc=row.nhwc) for part in parts]


def _submodule(block: nn.Module, path: str) -> nn.Module | None:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def _geometry(conv: nn.Module, kernel: int | None) -> dict | None:
    """Kernel, dilation and padding rule of a convolution, or of the widest one inside a container such as MixedConv2d."""
    if kernel is not None:
        return dict(kernel_size=kernel, dilation=(1, 1), same_padding=False)
    if isinstance(conv, nn.Linear):
        return dict(kernel_size=1, dilation=(1, 1), same_padding=False)
    convs = [module for module in conv.modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        return None
    widest = max(convs, key=lambda conv: kernel_area(conv.kernel_size))
    height, width = widest.kernel_size
    return dict(
        kernel_size=height if height == width else (height, width),
        dilation=widest.dilation,
        same_padding=isinstance(widest, Conv2dSame),
    )


GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Tanh, nn.MultiheadAttention)


def _activation(block: nn.Module) -> nn.Module:
    """A fresh copy of the block's own activation, never in place; ReLU where the block has none with a module of its own."""
    for module in block.modules():
        home = type(module).__module__
        if home == "torch.nn.modules.activation" or (home.startswith("timm.layers.activations")):
            if isinstance(module, GATES) or "sigmoid" in type(module).__name__.lower():
                continue
            if next(module.parameters(), None) is not None:
                continue
            act = copy.deepcopy(module)
            if hasattr(act, "inplace"):
                act.inplace = False
            return act
    return nn.ReLU()


def _measured(part: dict, shapes: dict[Place, torch.Size]) -> Part:
    """A part with what was observed at its two ends."""
    nhwc, begin, end = part.pop("nhwc"), shapes[part["begin"]], shapes[part["end"]]
    if len(begin) == 3 and len(end) == 3:
        layout, first, last = "tokens", (begin[2], begin[1], 1), (end[2], end[1], 1)
    elif len(begin) == 4 and len(end) == 4:
        layout = "nhwc" if nhwc else "nchw"
        first, last = ((s[3], s[1], s[2]) if nhwc else tuple(s[1:]) for s in (begin, end))
    else:
        raise UnsupportedBackbone(
            f"{part['name']} maps a tensor of shape {tuple(begin)} to {tuple(end)}; an adapter needs 4-D feature maps."
        )
    return Part(
        in_channels=first[0],
        out_channels=last[0],
        stride=tuple(max(1, round(i / o)) for i, o in zip(first[1:], last[1:], strict=True)),
        out_size=tuple(last[1:]),
        layout=layout,
        **part,
    )


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) that the backbone was made for; 224 x 224 where it does not say."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    # A network with windows or position embeddings may have been built for another size than its weights' own.
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is not None and stem.groups == 1:
        channels = stem.in_channels  # timm's in_chans= changes the stem and not the configuration
    return channels, height, width


def blank_image(model: nn.Module, size: int | tuple[int, int] | None = None) -> Tensor:
    """One image of zeros that ``model`` accepts, shape (1, C, H, W), on its device and in its dtype."""
    channels, *own = input_shape(model)
    height, width = own if size is None else (size, size) if isinstance(size, int) else size
    weight = next(model.parameters())
    return torch.zeros(1, channels, height, width, device=weight.device, dtype=weight.dtype)


def _observe(model: nn.Module, places: set[Place]) -> dict[Place, torch.Size]:
    """The shape of the tensor at each place during one forward pass; places that were not reached are missing."""
    shapes: dict[Place, torch.Size] = {}

    def see(place: Place, value: object) -> None:
        if isinstance(value, Tensor):
            shapes.setdefault(place, value.shape)

    handles = []
    for place in places:
        module = model.get_submodule(place.module)
        if place.side == "input":
            hook = module.register_forward_pre_hook(lambda _, args, place=place: see(place, args[0] if args else None))
        else:
            hook = module.register_forward_hook(lambda _, args, output, place=place: see(place, output))
        handles.append(hook)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(blank_image(model))
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return shapes


# ---------------------------------------------------------------- classifiers


def classifier_names(model: nn.Module) -> list[str]:
    """Dotted names of the modules that map features to classes; empty for a feature extractor.

    A classifier added behind a frozen projection (:mod:`minica.backbones`) comes first, then what timm names, then
    torchvision's ``fc``, ``classifier`` and ``head``.
    """
    if isinstance(getattr(getattr(model, "head", None), "classifier", None), nn.Linear):
        return ["head.classifier"]
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()
        heads = found if isinstance(found, (tuple, list)) else [found]
        names = {id(module): name for name, module in model.named_modules()}
        return [names[id(head)] for head in heads if isinstance(head, nn.Module) and id(head) in names]
    return [name for name in ("fc", "classifier", "head", "heads") if isinstance(getattr(model, name, None), nn.Module)]
