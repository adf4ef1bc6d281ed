"""Where are a backbone's blocks and units?

A residual **block** and each **unit** inside it can be adapted.  A unit is a functional convolution (spatial, k > 1) off the
shortcut, with the norm and the activation that belong to it before the block's add (Section 3.4, Figure 3).  Where the paper
or its code places adapters, the place is written down once for each class of block, in ``ROWS``; in every other network blocks
and units are found by how it runs.  Strides and channels hide in pools and wrappers, so they are always read off a run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .counting import Kernel, kernel_area
from .discovery import SHORTCUTS, Call, Trace, input_shape, is_spatial, on_shortcut, residual_calls, trace


class UnsupportedBackbone(ValueError):
    """The network has nothing that a Conv-Adapter could adapt."""


# ---------------------------------------------------------------- the rows


class Unit(NamedTuple):
    """A unit by the attribute names of its block: it begins at the input of ``begin`` and ends at the output of ``end``."""

    conv: str  # the functional convolution; the adapter is registered here and takes its kernel
    begin: str | None = None  # where the unit begins, if before the convolution
    end: str | None = None  # where it ends, if after the convolution
    begin_side: str = "input"
    end_side: str = "output"
    kernel: int | None = None  # for a unit that is not a convolution


class Row(NamedTuple):
    """How one class of block is adapted."""

    units: tuple[Unit, ...]  # none: it is no block, whatever its run looks like
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
    # torchvision calls one ReLU three times a block, so the unit ends where the next convolution begins.
    "torchvision.resnet.BasicBlock": Row((Unit("conv1", end="conv2", end_side="input"), Unit("conv2", end="bn2"))),
    "torchvision.resnet.Bottleneck": Row((Unit("conv2", end="conv3", end_side="input"),)),
    # Pre-activation: norm - act - conv, from raw convolution output to raw convolution output.
    "timm.resnetv2.PreActBasic": Row((Unit("conv1", begin="norm1"), Unit("conv2", begin="norm2")), init="torch_without_bias"),
    "timm.resnetv2.PreActBottleneck": Row((Unit("conv2", begin="norm2"),), init="torch_without_bias"),
    "timm.regnet.PreBottleneck": Row((Unit("conv2", begin="norm2"),)),
    # CLIP's ResNets: the unit ends before the average pool that does the striding, and the attention pool has a linear adapter.
    "timm.byobnet.BasicBlock": Row((Unit("conv1_kxk.conv", end="conv1_kxk.bn"), Unit("conv2_kxk.conv", end="conv2_kxk.bn"))),
    "timm.byobnet.BottleneckBlock": Row(
        (Unit("conv2_kxk.conv", end="conv2_kxk.bn"), Unit("conv2b_kxk.conv", end="conv2b_kxk.bn"))
    ),
    "timm.attention_pool2d.AttentionPool2d": Row((Unit("proj", begin="q", end="proj"),), kind="pool", init="torch"),
    # ConvNeXt: the depth-wise convolution alone, and the convolutions between stages.
    "timm.convnext.ConvNeXtBlock": Row((Unit("conv_dw"),), init="trunc_normal"),
    "timm.convnext.ConvNeXtStage": Row((Unit("downsample.1"),), kind="downsample", init="trunc_normal"),
    # Inverted residuals: EfficientNet, MobileNet v2 to v4, MNASNet, MixNet and their kin.
    "timm._efficientnet_blocks.DepthwiseSeparableConv": Row((Unit("conv_dw", end="bn1"),), init="fan_out_per_group"),
    "timm._efficientnet_blocks.InvertedResidual": Row((Unit("conv_dw", end="bn2"),), init="fan_out_per_group"),
    "timm._efficientnet_blocks.EdgeResidual": Row((Unit("conv_exp", end="bn1"),), init="fan_out_per_group"),
    "timm._efficientnet_blocks.ConvBnAct": Row((Unit("conv", end="bn1"),), init="fan_out_per_group"),
    "timm._efficientnet_blocks.UniversalInvertedResidual": Row(
        tuple(Unit(f"{name}.conv", end=f"{name}.bn") for name in ("dw_start", "dw_mid", "dw_end")), init="fan_out_per_group"
    ),
    # Swin: the attention, on the un-windowed map, between its norm and the add.
    "timm.swin_transformer.SwinTransformerBlock": Row(
        (Unit("attn", begin="norm1", begin_side="output", end="drop_path1", kernel=7),), init="torch", nhwc=True
    ),
}


Spec = Mapping[str, Row]  # rows of the user's own, by the plain name of a class


def _row(module: nn.Module, spec: Spec) -> Row | None:
    for cls in type(module).__mro__:
        names = cls.__module__.split(".")
        row = spec.get(cls.__name__) or ROWS.get(f"{names[0]}.{names[-1]}.{cls.__name__}")
        if row is not None:
            return row
    return None


def checked_spec(model: nn.Module, spec: Spec) -> dict[str, Row]:
    """The rows of a spec, which a file has as lists, once it is certain that ``model`` has what they name.

    Raises:
        ValueError: for a class that the model lacks, a path that no module of the class has, or what is not a row.
    """
    example = 'a spec is {"MyBlock": Row((Unit("conv1", end="norm1"),))}: rows by the name of a class'
    if not isinstance(spec, Mapping):
        raise ValueError(f"{example}; got {spec!r}.")
    rows = {}
    for name, row in spec.items():
        try:
            units, *rest = row if isinstance(row, (tuple, list)) else (None,)
            rows[name] = Row(tuple(Unit(*unit) for unit in units), *rest)
        except TypeError as error:
            raise ValueError(f"{example}; got {row!r} for {name!r} ({error}).") from error
        blocks = [module for module in model.modules() if name in (cls.__name__ for cls in type(module).__mro__)]
        if not blocks:
            known = sorted({type(module).__name__ for module in model.modules() if next(module.children(), None)})
            raise ValueError(f"the spec's {name!r} is no class of {type(model).__name__}, which has {', '.join(known)}.")
        for unit in rows[name].units:
            for path in filter(None, (unit.conv, unit.begin, unit.end)):
                found = [module for module in (_submodule(block, path) for block in blocks) if module is not None]
                if not found:
                    raise ValueError(
                        f"the spec's {name!r} has no module {path!r}; it has {', '.join(dict(blocks[0].named_children()))}."
                    )
                if path == unit.conv and not any(_geometry(module, unit.kernel) for module in found):
                    raise ValueError(f"the spec's {name}.{path} is no convolution; name one, or give the unit a kernel=.")
    return rows


# ---------------------------------------------------------------- the parts


class Place(NamedTuple):
    """A feature map of the running network: what a module receives or returns."""

    module: str
    side: str  # "input" or "output"


@dataclass(frozen=True)
class Part:
    """A block or a unit of one network: where it begins, where it ends, and what shapes it had there."""

    name: str  # dotted, as in ``model.get_submodule(name)``
    kind: str  # "unit", "block", "stage", "downsample" or "pool"
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


def anatomy(model: nn.Module, spec: Spec | None = None) -> list[Part]:
    """Every part of ``model`` that some scheme adapts, in the order in which they run.

    A copy of the network runs once, on the meta device, on one blank image of the network's own input size.

    Args:
        model: any network.
        spec: rows for classes of blocks whose run says too little, for instance because they concatenate, or because the
            network around them adds their shortcut; they count before :data:`ROWS` and before what the run shows::

                from minica.anatomy import Row, Unit

                minica.adapt(model, spec={"MyBlock": Row((Unit("conv1", end="norm1"), Unit("conv2")))})

    Raises:
        ValueError: for a spec that does not fit the model.
        UnsupportedBackbone: if there is no functional convolution, for instance in a pure transformer.
    """
    spec = checked_spec(model, spec or {})
    try:
        run = trace(model)
    except Exception as error:  # whatever a network does with an image that it was not made for
        raise UnsupportedBackbone(
            f"{type(model).__name__} does not run on a blank image of shape {input_shape(model)} "
            f"({type(error).__name__}: {str(error)[:150]}), so its blocks cannot be found."
        ) from error
    found = []
    for call in _hosts(run, spec):
        row = _row(call.module, spec)
        found += _from_row(call.name, call.module, row) if row else _from_run(run, call)
    if not found and not any(residual_calls(run)):
        found = _loose(run)
    found += _stages([part for part in found if part["kind"] == "block"])
    shapes = _shapes(run)
    parts = [_measured(part, shapes) for part in found if part["begin"] in shapes and part["end"] in shapes]
    if not parts:
        raise UnsupportedBackbone(
            f"{type(model).__name__} has no convolutional unit: no block with a spatial convolution (k > 1), so there is "
            "nothing to adapt. Conv-Adapter needs a ConvNet or a hybrid, such as a ResNet, ConvNeXt, EfficientNet or MaxViT."
        )
    return parts


def _shapes(run: Trace) -> dict[Place, tuple[int, ...]]:
    """The shape of the tensor at each place that was reached."""
    shapes = {}
    for call in run.calls:
        for side, shape in (("input", call.in_shape), ("output", call.out_shape)):
            if shape is not None:
                shapes.setdefault(Place(call.name, side), shape)
    return shapes


def _from_row(name: str, block: nn.Module, row: Row) -> list[dict]:
    """The parts of a block of a known class, still without shapes."""
    parts = []
    for unit in row.units:
        paths = [unit.conv, unit.begin or unit.conv, unit.end or unit.conv]
        conv, begin, end = (_submodule(block, path) for path in paths)
        geometry = None if conv is None else _geometry(conv, unit.kernel)
        if begin is None or end is None or geometry is None:
            continue  # an optional unit that this block lacks
        conv_name, begin_name, end_name = (f"{name}.{path}".lstrip(".") for path in paths)
        parts.append(
            dict(
                geometry,
                name=conv_name,
                kind="unit" if row.kind == "block" else row.kind,
                # Containers iterate over their children, so they cannot hold an adapter: the block does.
                host=name if isinstance(conv, CONTAINERS) else conv_name,
                begin=Place(begin_name, unit.begin_side),
                end=Place(end_name, unit.end_side),
            )
        )
    parts += _block(name, parts) if row.kind == "block" else []
    act = _activation(block)
    return [dict(part, act=act, init=row.init, nhwc=row.nhwc) for part in parts]


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _block(name: str, units: list[dict], host: str | None = None) -> list[dict]:
    """The block around these units as a part: it is adapted with the widest kernel among them."""
    if not units:
        return []
    widest = max(units, key=lambda unit: kernel_area(unit["kernel_size"]))
    geometry = {key: widest[key] for key in ("kernel_size", "dilation", "same_padding")}
    host = name if host is None else host
    return [dict(geometry, name=name, kind="block", host=host, begin=Place(name, "input"), end=Place(name, "output"))]


def _stages(blocks: list[dict]) -> list[dict]:
    """Runs of blocks with the same parent, from the first one's input to the last one's output (Table 5's ablation)."""
    stages: dict[str, list[dict]] = {}
    for block in blocks:
        stages.setdefault(block["name"].rpartition(".")[0], []).append(block)
    return [
        dict(
            max(members, key=lambda block: kernel_area(block["kernel_size"])),
            name=name,
            kind="stage",
            host=members[-1]["host"],
            begin=members[0]["begin"],
            end=members[-1]["end"],
        )
        for name, members in stages.items()
    ]


def _hosts(run: Trace, spec: Spec) -> list[Call]:
    """The modules that have parts, as they are entered: those with a row, and blocks whose class has none.

    Such a block adds, in its own code, a shortcut to what a spatial convolution gave; if one of a class does, its siblings
    without a shortcut (where the stride is) are blocks as well.  Of blocks inside blocks the outermost counts, or else the one
    that the spec names.
    """
    classes = {type(call.module) for call, shortcut in residual_calls(run) if shortcut}
    stem = next((call for call in run.calls if is_spatial(call)), None)
    named = [call for call in run.calls if any(cls.__name__ in spec for cls in type(call.module).__mro__)]
    hosts, blocks = [], []
    for calls in run.by_name.values():
        call, row = calls[0], _row(calls[0].module, spec)
        if any(_within(call, block) for block in blocks) or (call not in named and any(_within(one, call) for one in named)):
            continue
        if row is not None or (type(call.module) in classes and len(calls) == 1 and not (stem and _within(stem, call))):
            hosts.append(call)
            if row is None or row.kind == "block":
                blocks.append(call)
    return hosts


def _from_run(run: Trace, block: Call) -> list[dict]:
    """A block whose class has no row: its units are the spatial convolutions off its shortcut.

    A block that takes tokens, as XCiT's do, has units and cannot be adapted itself.
    """
    convs = [call for call in _convolutions(run) if _within(call, block) and not on_shortcut(call.name, block.name)]
    units = [_unit(run, conv, block) for conv in convs]
    # Below a container, which would call the adapter as one of its own layers, a block's first convolution holds it.
    host = units[0]["host"] if units and isinstance(block.module, CONTAINERS) else block.name
    parts = [dict(unit, nhwc=False) for unit in units]
    if _is_map(block):
        nhwc = block.out_shape[1] == block.out_shape[2] != block.out_shape[3]
        parts += [dict(part, nhwc=nhwc) for part in _block(block.name, units, host)]
    act = _activation(block.module)
    return [dict(part, act=act, init="kaiming") for part in parts]


def _loose(run: Trace) -> list[dict]:
    """The units of a network without shortcuts, such as VGG or DenseNet: every spatial convolution after the first."""
    whole = run.calls[0]
    convs = [conv for conv in _convolutions(run)[1:] if not any(word in conv.name for word in ("stem", *SHORTCUTS))]
    act = _activation(whole.module)
    return [dict(_unit(run, conv, whole), act=act, init="kaiming", nhwc=False) for conv in convs]


def _convolutions(run: Trace) -> list[Call]:
    """The first call of every spatial convolution of feature maps."""
    return [calls[0] for calls in run.by_name.values() if is_spatial(calls[0]) and _is_map(calls[0])]


def _is_map(call: Call) -> bool:
    return call.in_shape is not None and call.out_shape is not None and len(call.in_shape) == len(call.out_shape) == 4


def _within(call: Call, outer: Call) -> bool:
    return outer.begin <= call.begin and call.end <= outer.end


def _unit(run: Trace, conv: Call, block: Call) -> dict:
    """A convolution, with the norm and then the activation that take its output and that nothing else takes."""
    end = conv
    for belongs in (_is_norm, _is_activation):
        for call in run.receivers.get(end.returned, ()):
            if belongs(call.module) and _is_map(call) and _within(call, block):
                alone = all(call.begin <= at < call.end for at in run.uses.get(end.returned, ()))
                if alone and len(run.by_name[call.name]) == len(run.by_name[conv.name]) == 1:
                    end = call
                break
    return dict(
        _geometry(conv.module, None),
        name=conv.name,
        kind="unit",
        host=conv.name,
        begin=Place(conv.name, "input"),
        end=Place(end.name, "output"),
    )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (_NormBase, nn.GroupNorm))


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
    convs = [module for module in conv.modules() if hasattr(module, "kernel_size") and hasattr(module, "dilation")]
    if not convs:
        return None
    widest = max(convs, key=lambda conv: kernel_area(conv.kernel_size))
    height, width = widest.kernel_size
    return dict(
        kernel_size=height if height == width else (height, width),
        dilation=tuple(widest.dilation),
        same_padding=isinstance(widest, Conv2dSame),
    )


GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Tanh, nn.MultiheadAttention)


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    known = home == "torch.nn.modules.activation" or home.startswith("timm.layers.activations")
    gate = isinstance(module, GATES) or "sigmoid" in type(module).__name__.lower()
    return known and not gate and next(module.parameters(), None) is None


def _activation(block: nn.Module) -> nn.Module:
    """A fresh copy of the block's own activation, never in place; ReLU where it has none with a module of its own."""
    for module in block.modules():
        if _is_activation(module):
            act = copy.deepcopy(module)
            if hasattr(act, "inplace"):
                act.inplace = False
            return act
    return nn.ReLU()


def _measured(part: dict, shapes: dict[Place, tuple[int, ...]]) -> Part:
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
