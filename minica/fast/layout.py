"""The layout in memory, channels last, in which convolutions are fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def channels_last(images: Tensor) -> Tensor:
    """Images (N, C, H, W) in this layout; pooled features and tokens have no layouts and stay as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def as_weights(model: nn.Module, images: Tensor) -> Tensor:
    """Floating-point images in the device, type and layout of the model's weights: in bfloat16 for a model in bfloat16."""
    weight = next(model.parameters())
    floating = images.is_floating_point() and weight.is_floating_point()
    return channels_last(images.to(weight.device, weight.dtype if floating else images.dtype))


@contextmanager
def in_channels_last(model: nn.Module) -> Iterator[None]:
    """The weights in this layout; then in the old one, since the last bits of an output depend on it."""
    contiguous = all(weight.is_contiguous() for weight in model.parameters())
    try:
        model.to(memory_format=torch.channels_last)
        yield
    finally:
        if contiguous:
            model.to(memory_format=torch.contiguous_format)
