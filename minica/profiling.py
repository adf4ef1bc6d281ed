"""What a network costs: parameters, multiply-accumulates, and the bytes that training keeps."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .discovery import blank_image, check_module
from .hooks import attachments
from .recipe import classifier_names, unwrap


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Within this context the model may be put into any mode; after it every module is in its own again."""
    check_module(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def count(model: nn.Module, size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """Parameters and multiply-accumulates of ``model`` as it is now.

    Args:
        size: image side in pixels, or (height, width); by default the backbone's own input size.

    Returns:
        ``trainable``, ``total``, ``backbone``, ``adapters``, ``head``: numbers of parameters (``total`` is the sum of the last
        three); ``macs``: multiply-accumulates of convolutions, matrix products and attention for one image, by PyTorch's own
        FLOP counter, which counts two a multiply-accumulate.
    """
    model = unwrap(model)
    ours = tuple(f"{name}." for name in attachments(model))
    heads = tuple(f"{name}." for name in classifier_names(model))
    numbers = dict(trainable=0, total=0, backbone=0, adapters=0, head=0)
    for key, weight in model.named_parameters():
        owner = "adapters" if key.startswith(ours) else "head" if key.startswith(heads) else "backbone"
        for entry in ("total", owner, *(["trainable"] if weight.requires_grad else [])):
            numbers[entry] += weight.numel()
    with modes_kept(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(blank_image(model, size))
    return {**numbers, "macs": counter.get_total_flops() // 2}


class Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def activations(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps of one training step's forward pass on ``images`` (N, C, H, W) until its backward pass.

    Every storage counts once, the model's own parameters and buffers not at all.  The number is the same on every run, and
    each further image adds the same.  Under ``torch.autocast`` it is that precision's.  The model's modes and statistics are
    left as they were.
    """
    return sum(kept_storages(model, images).values())


def kept_storages(model: nn.Module, images: Tensor, holder: type[Kept] = Kept) -> dict[Kept, int]:
    """The same storage by storage, each under what was made when it was first kept, of the class ``holder``."""
    buffers = list(model.buffers())
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *buffers)}  # of storages, also without data
    statistics, kept = [buffer.clone() for buffer in buffers], weakref.WeakValueDictionary()

    def keep(tensor: Tensor) -> Kept:
        kept[object()] = held = holder(tensor)
        return held

    try:
        with modes_kept(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
            logits = model.train()(images)  # noqa: F841 - its graph keeps them
        storages = {held.tensor.untyped_storage()._cdata: held for held in reversed([*kept.values()])}
    finally:
        with torch.no_grad():
            for buffer, before in zip(buffers, statistics, strict=True):
                buffer.copy_(before)
    return {held: held.tensor.untyped_storage().nbytes() for storage, held in storages.items() if storage not in own}
