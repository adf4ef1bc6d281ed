"""Where the paper and its code adapt each class of block (``ROWS``), and the types that describe blocks and units.

A residual **block** and each **unit** inside it can be adapted.  A unit is a functional convolution (spatial, k > 1) off the
shortcut, with the norm and the activation that belong to it before the block's add (Section 3.4, Figure 3).
:mod:`minica.discovery` finds the blocks of a network by these rows, and those of a class without a row by how it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from .counting import Kernel


class UnsupportedBackbone(ValueError):
    """The network has nothing that a Conv-Adapter could adapt."""


# ---------------------------------------------------------------- rows


class Unit(NamedTuple):
    """A unit by the attribute names of its block: it begins at the input of ``begin`` and ends at the output of ``end``."""

    conv: str  # the functional convolution; the adapter is registered here and takes its kernel
    begin: str | None = None  # where the unit begins, if before the convolution
    end: str | None = None  # where it ends, if after the convolution
    begin_side: str = "input"  # "output": the unit begins at the output of ``begin``
    end_side: str = "output"  # "input": it ends at the input of ``end``
    kernel: Kernel | None = None  # for a unit that is not a convolution


class Row(NamedTuple):
    """How one class of block is adapted."""

    units: tuple[Unit, ...]  # none: this class is not a block, also where it adds a shortcut
    kind: str = "block"  # "downsample" and "pool" have one unit that every scheme adapts
    init: str = "kaiming"  # how the published code initialises adapters in this family
    nhwc: bool = False  # feature maps are (N, H, W, C)


# The classes are named package.file.Class; subclasses are adapted like them.  The published code covers ResNet, BiT, CLIP,
# ConvNeXt, EfficientNet and Swin, with Convolution-Parallel only; the other families follow Figure 3.
ROWS = {
    # Post-activation ResNets: conv - bn - act.  BasicBlock's second unit ends before the add.
    "timm.resnet.BasicBlock": Row((Unit("conv1", end="act1"), Unit("conv2", end="bn2"))),
    "timm.resnet.Bottleneck": Row((Unit("conv2", end="act2"),)),
    "timm.resnetv2.Bottleneck": Row((Unit("conv2", end="norm2"),)),
    "timm.regnet.Bottleneck": Row((Unit("conv2.conv", end="conv2.bn"),)),
    # torchvision calls one ReLU three times a block, so the unit ends where the next convolution begins.
    "torchvision.resnet.BasicBlock": Row((Unit("conv1", end="conv2", end_side="input"), Unit("conv2", end="bn2"))),
    "torchvision.resnet.Bottleneck": Row((Unit("conv2", end="conv3", end_side="input"),)),
    # Pre-activation: norm - act - conv.  The unit begins before the norm and ends after the convolution.
    "timm.resnetv2.PreActBasic": Row((Unit("conv1", begin="norm1"), Unit("conv2", begin="norm2")), init="torch_without_bias"),
    "timm.resnetv2.PreActBottleneck": Row((Unit("conv2", begin="norm2"),), init="torch_without_bias"),
    "timm.regnet.PreBottleneck": Row((Unit("conv2", begin="norm2"),)),
    # CLIP's ResNets: the unit ends before the striding average pool.  The attention pool has a linear adapter.
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


Spec = Mapping[str, Row]  # a user's own rows, by the name of a class without its package


# ---------------------------------------------------------------- parts of one network


class Place(NamedTuple):
    """A feature map of the running network: what a module receives or returns."""

    module: str  # dotted name
    side: str  # "input" or "output"


@dataclass(frozen=True)
class Part:
    """A block or a unit of one network, with the shapes of its feature maps in one observed forward pass."""

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
