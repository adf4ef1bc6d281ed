"""What does a network cost, and where do its adapters act?"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .adapter import ConvAdapter
from .counting import adapter_operations
from .discovery import blank_image
from .hooks import attachments, sites
from .recipe import adapters, classifier_names, unwrap


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Within this context the model may be put into any mode; after it every module is in its own again."""
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


def operations(model: nn.Module, size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """What the paper's Table 10 counts for one image of ``size`` (see :func:`count`); divide by 1e9 for its "GFLOPs".

    Returns:
        ``backbone``: a convolution's multiply-accumulates and biases, a linear layer's without its biases, two for an element
        that a BatchNorm receives, one for a ReLU or the stem's pool; LayerNorm and GELU count nothing.  ``adapters``: of each,
        :func:`~minica.counting.adapter_operations`.
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


class _Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def activations(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps of one training step's forward pass on ``images`` (N, C, H, W) until its backward pass.

    Every storage counts once, the model's own parameters and buffers not at all.  The number is the same on every run, and
    each further image adds the same.  Under ``torch.autocast`` it is that precision's.  The model's modes and statistics are
    left as they were.
    """
    buffers = list(model.buffers())
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *buffers)}  # of storages, also without data
    statistics, kept = [buffer.clone() for buffer in buffers], weakref.WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        kept.add(held := _Kept(tensor))
        return held

    try:
        with modes_kept(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
            logits = model.train()(images)
        storages = {held.tensor.untyped_storage()._cdata: held.tensor.untyped_storage().nbytes() for held in kept}
        del logits  # until here, its graph kept them
    finally:
        with torch.no_grad():
            for buffer, before in zip(buffers, statistics, strict=True):
                buffer.copy_(before)
    return sum(size for storage, size in storages.items() if storage not in own)


@torch.no_grad()
def adapter_shares(model: nn.Module, images: Tensor) -> dict[str, float]:
    """How large what each adapter adds is beside the map it adds to: ``|delta| / |h + delta|`` on ``images``, by place."""
    norms: dict[str, dict[str, float]] = {"delta": {}, "map": {}}
    handles = []

    def measure(module: nn.Module, what: str, place: str) -> None:
        def hook(_, args, output):
            norms[what][place] = output.norm().item()

        handles.append(module.register_forward_hook(hook))

    for place, adapter in adapters(model).items():
        measure(adapter, "delta", place)
    for _, site in sites(model):
        end = model.get_submodule(site.end.module)
        if site.end.side == "output":
            measure(end, "map", site.part_name)
        else:
            take = partial(norms["map"].__setitem__, site.part_name)
            handles.append(end.register_forward_pre_hook(lambda _, args, take=take: take(args[0].norm().item())))
    try:
        model(images.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return {place: norm / norms["map"][place] for place, norm in norms["delta"].items()}
