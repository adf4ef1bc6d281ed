"""What adapters cost as the paper's Tables 9 and 10 count it: weights of a block, and operations of a network."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from ..adapter import ConvAdapter
from ..backbones import create_backbone
from ..counting import Kernel, adapter_macs, bottleneck_width, kernel_area
from ..discovery import blank_image
from ..recipe import adapters, detach
from ..schemes import SCHEMES, adapt
from .paper import table


def block_weights(
    tuning: str,
    in_channels: int,
    mid_channels: int,
    out_channels: int,
    *,
    kernel_size: Kernel = 3,
    compression: float = 4,
) -> int:
    """Table 9: weights that train in one residual bottleneck of 1x1, K x K and 1x1 convolutions; no biases, no alpha.

    Args:
        tuning: one of the four schemes, or ``"full"`` for the block's own three convolutions.

    Raises:
        ValueError: for another name.
    """
    if tuning == "full":
        spatial = kernel_area(kernel_size) * mid_channels**2
        return in_channels * mid_channels + spatial + mid_channels * out_channels
    ends = {
        "conv_parallel": (mid_channels, mid_channels),
        "conv_sequential": (mid_channels, mid_channels),
        "residual_parallel": (in_channels, out_channels),
        "residual_sequential": (out_channels, out_channels),
    }
    if tuning not in ends:
        raise ValueError(f"unknown tuning {tuning!r}; Table 9 has full, {', '.join(ends)}.")
    # On a map of one pixel every weight is used once.
    return adapter_macs(*ends[tuning], (1, 1), kernel_size=kernel_size, compression=compression)


def adapter_operations(
    in_channels: int,
    out_channels: int,
    out_size: tuple[int, int],
    *,
    kernel_size: Kernel = 3,
    compression: float = 4,
    form: str = "depthwise",
    relu: bool = True,
) -> int:
    """The operations that the paper's Table 10 counts for one adapter and one image; divide by 1e9 for its "GFLOPs".

    Multiply-accumulates count one each, and so do both convolutions' biases at every pixel and every element that passes a
    ReLU.  Other activations (``relu=False``: ConvNeXt's GELU) and alpha count nothing.
    """
    width = bottleneck_width(in_channels, compression)
    options = dict(kernel_size=kernel_size, compression=compression, form=form)
    macs = adapter_macs(in_channels, out_channels, out_size, **options)
    return macs + (width + out_channels + (width if relu else 0)) * math.prod(out_size)


def operations(model: nn.Module, size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """What the paper's Table 10 counts for one image of ``size`` (see :func:`minica.count`); divide by 1e9 for its "GFLOPs".

    Returns:
        ``backbone``: a convolution's multiply-accumulates and biases, a linear layer's without its biases, two for an element
        that a BatchNorm receives, one for a ReLU or the stem's pool; LayerNorm and GELU count nothing.  ``adapters``: of each,
        :func:`adapter_operations`.
    """
    found = dict(backbone=0, adapters=0)

    def see(module: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(module, ConvAdapter):
            shape = dict(kernel_size=module.down.kernel_size, compression=module.compression, form=module.form)
            relu = isinstance(module.act, nn.ReLU)
            size = tuple(output.shape[-2:])
            found["adapters"] += adapter_operations(module.down.in_channels, module.up.out_channels, size, relu=relu, **shape)
        elif isinstance(module, nn.Conv2d):
            found["backbone"] += (module.weight[0].numel() + (module.bias is not None)) * output.numel()
        elif isinstance(module, nn.Linear):
            found["backbone"] += module.in_features * output.numel()
        elif isinstance(module, (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)):
            found["backbone"] += args[0].numel() * (2 if isinstance(module, nn.BatchNorm2d) else 1)

    inside = {child for adapter in adapters(model).values() for child in adapter.children()}
    handles = [module.register_forward_hook(see) for module in model.modules() if module not in inside]
    try:
        model(blank_image(model, size))
    finally:
        for handle in handles:
            handle.remove()
    return found


def table_10() -> list[dict]:
    """The paper's Table 10 with our ``added`` operations of the adapters and ``total`` beside its ``gflops``, all in 1e9.

    At compression 1.  The rows of ResNet50, those called BiT included, are a batch-normalised ResNet50 with BiT's adapters.
    All that is counted lies on maps, and every size is a multiple of the largest stride, so it grows with the image's area.
    """
    at_224 = {}
    for name, own, adapted in (("ResNet50", "resnet50", "resnetv2_50x1_bit"), ("ConvNeXt-B", "convnext_base", "convnext_base")):
        with torch.device("meta"):
            plain, model = (create_backbone(network, 0, pretrained=False).eval() for network in (own, adapted))
        at_224[name, "FT"] = operations(plain, 224)["backbone"], 0
        for tuning, scheme in zip(("Conv. Par.", "Conv. Seq.", "Res. Par.", "Res. Seq."), SCHEMES, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of adapters that are large at compression 1
                adapt(detach(model), scheme, compression=1)
            at_224[name, tuning] = at_224[name, "FT"][0], operations(model, 224)["adapters"]
    found = []
    for row in table(10):
        own, added = at_224[row["backbone"].removesuffix("-BiT"), row["tuning"]]
        scale = row["height"] * row["width"] / 224**2 / 1e9
        found.append({**row, "added": added * scale, "total": (own + added) * scale})
    return found
