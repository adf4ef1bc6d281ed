"""The output of a network's frozen prefix, computed once for all epochs.

The frozen prefix is what runs before the first place where something trains; it gives the same maps for the same image in every
epoch.  A linear probe's prefix is all but the classifier; that of adapters in late stages ends where the first of them begins;
full fine-tuning has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..hooks import Attachment, Site
from ..profiling import modes_kept
from ..recipe import frozen_running_stats
from .layout import channels_last

CHECKED = 32  # how many images of a data set are read twice, to see that they do not change


def cache_prefix(model: nn.Module, loaders: list[DataLoader]) -> tuple[list[Dataset], AbstractContextManager]:
    """Data sets of the prefix's outputs to train on instead of images, and the context in which ``model`` accepts them.

    For each loader of (images, labels) there is a data set of (prefix's outputs, labels) in main memory; for a model without a
    frozen prefix there are none, and the context does nothing.  Within the context the model runs without its prefix, in every
    thread.

    Raises:
        ValueError: if a data set does not give the same images every time, or the maps do not fit into memory.
    """
    cut, prefix = _frozen_prefix(model, next(iter(loaders[0]))[0])
    if cut is None:
        return [], nullcontext()
    for loader in loaders:
        _check_same(loader.dataset)
    return [_outputs(model, cut, loader) for loader in loaders], _skipped(prefix)


def _frozen_prefix(model: nn.Module, images: Tensor) -> tuple[nn.Module | None, list[nn.Module]]:
    """The module that takes the prefix's output, and the modules that the prefix consists of.

    Candidates are the first module that trains and, from it outwards, the modules around it.  The first of them is taken for
    which the network's output is the same when all modules before it are skipped.  It is not for a module inside a block, whose
    shortcut goes around it, nor where there is dropout in the prefix.
    """
    begins, ends = _order(model, images)
    first = min((_called_module(name, begins) for name in _training_modules(model)), key=begins.__getitem__)
    while first:
        before = [name for name in begins if ends[name] < begins[first]]
        outermost = [name for name in before if not any(name.startswith(f"{other}.") for other in before)]
        whole = [model.get_submodule(name) for name in outermost]
        cut = model.get_submodule(first)
        # The prefix must not end between a convolution and its norm, since the lean form folds one into the other.
        if whole and not isinstance(cut, _NormBase) and _same_without(model, cut, whole, images):
            return cut, whole
        first = _called_module(first.rpartition(".")[0], begins)
    return None, []


def _training_modules(model: nn.Module) -> Iterator[str]:
    """The names of modules that hold what trains, and of those at whose input an adapter reads."""
    for name, module in model.named_modules():
        if isinstance(module, Attachment):
            yield name.rpartition(".")[0]
        if isinstance(module, Site):
            yield module.begin.module
        if any(weight.requires_grad for weight in module.parameters(recurse=False)):
            yield name


def _called_module(name: str, begins: dict[str, int]) -> str:
    """The module called ``name``, or the innermost one around it that was called: some weights are used without a call."""
    while name not in begins:
        name = name.rpartition(".")[0]
    return name


def _order(model: nn.Module, images: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """When each module was first entered, and when it was last left."""
    clock, begins, ends = itertools.count(), {}, {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():

            def enter(module, args, name=name):
                begins.setdefault(name, next(clock))

            def leave(module, args, output, name=name):
                ends[name] = next(clock)

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        _train_forward(model, images)
    return begins, ends


def _same_without(model: nn.Module, cut: nn.Module, prefix: list[nn.Module], images: Tensor) -> bool:
    """Whether the model in training mode gives the same output when ``prefix`` is skipped and given what ``cut`` received."""
    taken = []
    hook = cut.register_forward_pre_hook(lambda module, *given: taken.append(given), with_kwargs=True, prepend=True)
    try:
        whole = _train_forward(model, images)
        _train_forward(model, images, seed=1)
    finally:
        hook.remove()
    if len(taken) != 2 or any(len(args) != 1 or kwargs or not isinstance(args[0], Tensor) for args, kwargs in taken):
        return False
    maps, again = (args[0] for args, _ in taken)
    try:
        with _skipped(prefix):
            return torch.equal(maps, again) and torch.equal(whole, _train_forward(model, maps))
    except (RuntimeError, ValueError, IndexError, TypeError):  # the maps do not fit what lies between the skipped modules
        return False


@torch.no_grad()
def _train_forward(model: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    """One pass as in training that leaves no trace but in the random numbers, which :func:`minica.fit` sets anew."""
    before = {key: value.clone() for key, value in model.named_buffers()}
    torch.manual_seed(seed)
    with modes_kept(model):
        model.train()
        for norm in frozen_running_stats(model):
            norm.eval()
        try:
            return _logits(model, images)
        finally:
            for key, value in model.named_buffers():
                value.copy_(before[key])


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return model(channels_last(images.to(next(model.parameters()).device)))


@contextmanager
def _skipped(modules: list[nn.Module]) -> Iterator[None]:
    """Within this context these modules return their input."""
    for module in modules:
        module.forward = _identity
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _identity(x: Tensor, *args, **kwargs) -> Tensor:
    return x


class _Reached(Exception):
    """Raised at the end of the prefix, with its output, so that the rest of the network does not run."""


@torch.no_grad()
def _outputs(model: nn.Module, cut: nn.Module, loader: DataLoader) -> TensorDataset:
    """What ``cut`` receives for every image of a loader, with the labels."""

    def stop(module: nn.Module, args: tuple) -> None:
        raise _Reached(args[0])

    maps, labels = [], []
    hook = cut.register_forward_pre_hook(stop, prepend=True)
    try:
        with modes_kept(model):
            model.eval()
            for images, targets in loader:
                try:
                    _logits(model, images)
                except _Reached as reached:
                    maps.append(reached.args[0].cpu())
                    labels.append(targets)
                if len(maps) == 1:
                    _check_memory(maps[0], len(loader))
    finally:
        hook.remove()
    return TensorDataset(torch.cat(maps), torch.cat(labels))


def _check_memory(batch: Tensor, batches: int) -> None:
    needed, free = 2 * batch.nbytes * batches, psutil.virtual_memory().available  # twice, while they are joined
    if needed > free:
        raise ValueError(
            f"cache=True would need {needed / 2**30:.1f} GB for maps of shape {tuple(batch.shape[1:])}, of which "
            f"{free / 2**30:.1f} GB are free; adapt later stages only, or train without the cache."
        )


def _check_same(data: Dataset) -> None:
    for i in range(0, len(data), max(1, len(data) // CHECKED)):
        if not torch.equal(data[i][0], data[i][0]):
            raise ValueError(
                f"cache=True needs the same images in every epoch, but image {i} came out differently the second time: load "
                "the data with augment='none', or train without the cache."
            )
