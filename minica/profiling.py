"""What does a network cost: parameters, multiply-accumulates?"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .anatomy import blank_image, classifier_names
from .schemes import sites


def count(model: nn.Module, size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """Parameters and multiply-accumulates of ``model`` as it is now.

    Args:
        size: image side in pixels, or (height, width); by default the backbone's own input size.

    Returns:
        ``trainable``, ``total``, ``backbone``, ``adapters``, ``head``: numbers of parameters (``total`` is the sum of the last
        three); ``macs``: multiply-accumulates of convolutions, matrix products and attention for one image, by PyTorch's own
        FLOP counter, which counts two a multiply-accumulate.
    """
    ours = tuple(f"{name}." for name, _ in sites(model))
    heads = tuple(f"{name}." for name in classifier_names(model))
    numbers = dict(trainable=0, total=0, backbone=0, adapters=0, head=0)
    for key, weight in model.named_parameters():
        owner = "adapters" if key.startswith(ours) else "head" if key.startswith(heads) else "backbone"
        for entry in ("total", owner, *(["trainable"] if weight.requires_grad else [])):
            numbers[entry] += weight.numel()
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(blank_image(model, size))
    finally:
        for module in training:
            module.training = True
    return {**numbers, "macs": counter.get_total_flops() // 2}
