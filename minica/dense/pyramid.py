"""The maps that detectors and segmentation networks take from a pre-trained network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..backbones import create_backbone


def feature_pyramid(
    name: str, *, out_indices: Sequence[int] | None = None, finest: int = 4, pretrained: bool = True, **options
) -> nn.Module:
    """timm's ``features_only`` form of a backbone, with the weights that :func:`minica.create_backbone` gives it.

    Args:
        name: of :func:`minica.create_backbone`.
        out_indices: which of the network's maps; by default all with a stride of at least ``finest`` pixels.  What comes after
            the last of them is left out of the network.
        options: further ones of :func:`minica.create_backbone`, such as ``output_stride`` or ``drop_path_rate``.

    Returns:
        A network that maps images (N, 3, H, W) to a list of (N, C_i, H / s_i, W / s_i), with C_i and s_i in its
        ``feature_info``.

    Raises:
        ValueError: if the network has no such maps.
    """
    if out_indices is None:
        with torch.device("meta"):  # only to see the strides
            strides = create_backbone(name, features_only=True, pretrained=False, **options).feature_info.reduction()
        out_indices = [at for at, stride in enumerate(strides) if stride >= finest]
    return create_backbone(name, features_only=True, out_indices=tuple(out_indices), pretrained=pretrained, **options)


def output_norms(body: nn.Module) -> nn.ModuleList:
    """One layer for each map of ``body``: a LayerNorm over its channels where the network normalises by LayerNorm.

    Such a network (ConvNeXt) has normalised its input for every block, and nothing behind the last block of a stage; the
    detectors of its authors and of the paper put a fresh LayerNorm there, with ``2 C`` parameters.  Networks with another
    norm give their maps as they are.
    """
    kinds = {type(module) for module in body.modules()}
    fresh = any(issubclass(kind, nn.LayerNorm) for kind in kinds) and not any(
        issubclass(kind, (_NormBase, nn.GroupNorm)) for kind in kinds
    )
    return nn.ModuleList(LayerNorm2d(channels) if fresh else nn.Identity() for channels in body.feature_info.channels())


def heads(model: nn.Module, body: str) -> tuple[str, ...]:
    """Every part of ``model`` with weights but its pre-trained network ``body``: what ``train=`` names to train all heads.

    >>> minica.adapt(detector, "residual_parallel", backbone="backbone.body", train=heads(detector, "backbone.body"))
    """
    found: list[str] = []
    for name, module in model.named_modules():
        around = not name or f"{body}.".startswith(f"{name}.")
        if (
            not around
            and not any(name.startswith(f"{other}.") for other in (*found, body))
            and any(True for _ in module.parameters())
        ):
            found.append(name)
    return tuple(found)
