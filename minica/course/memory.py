"""What backward needs of an adapted network, block by block and by kind of layer, in each form that the network can take."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..adapter import ConvAdapter
from ..discovery import find_parts
from ..fast.lean import lean
from ..fast.lean_layers import LeanAct
from ..profiling import Kept, activations, kept_storages
from ..recipe import plain
from ..tuning import tune

KINDS = ("norms", "activations", "convolutions, linear", "products, attention", "adapters")
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def _folded(model: nn.Module) -> nn.Module:
    """The lean form but for its activations, which keep whole maps."""
    for module in lean(model, "none").modules():
        if isinstance(module, LeanAct):
            plain(module)
    return model


# From each form to the next one thing changes.
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": plain,
    "folded": _folded,
    "masks": lambda model: lean(model, "none"),
    "recompute": lean,
    "approximate": lambda model: lean(model, approximate=True),
}


class Needs(NamedTuple):
    blocks: list[str]  # their names, and at the end "other": what lies in no block
    full: int  # bytes of full fine-tuning
    forms: dict[str, dict[str, list[int]]]  # bytes of each form: by kind of layer, and by block

    def total(self, form: str) -> int:
        return sum(map(sum, self.forms[form].values()))


def needs(model: nn.Module, images: Tensor, forms: Sequence[str] = tuple(FORMS), **options) -> Needs:
    """Bytes that autograd keeps of a step on ``images`` (N, C, H, W) with full fine-tuning, and with adapters in every form.

    A map that several layers keep is counted where it is kept first.  On the meta device nothing is computed.

    Args:
        model: a backbone; it is tuned anew, and left plain, with adapters.
        options: of the adapters, such as ``scheme`` and ``compression``.
    """
    full = activations(tune(model, "full"), images)
    blocks = [part.name for part in find_parts(tune(model, "linear")) if part.kind == "block"]
    with warnings.catch_warnings(action="ignore"):  # that adapters have many parameters, which is not asked here
        tune(model, "conv_adapter", **options)
    kinds = _kinds(model)
    found = {}
    for form in forms:
        rows = {kind: [0] * (len(blocks) + 1) for kind in KINDS}
        for name, size in activations_by_module(FORMS[form](model), images).items():
            place = next((i for i, block in enumerate(blocks) if f"{name}.".startswith(f"{block}.")), len(blocks))
            rows[kinds[name]][place] += size
        found[form] = rows
    plain(model)
    return Needs([*blocks, "other"], full, found)


def activations_by_module(model: nn.Module, images: Tensor) -> dict[str, int]:
    """:func:`~minica.profiling.activations` by the name of the innermost module that kept them; each storage is the first's."""
    found: dict[str, int] = {}
    with _running(model) as running:

        class Owned(Kept):
            def __init__(self, tensor: Tensor) -> None:
                super().__init__(tensor)
                self.owner = running[-1]

        for held, size in kept_storages(model, images, Owned).items():
            found[held.owner] = found.get(held.owner, 0) + size
    return found


@contextmanager
def _running(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules of ``model`` that are running, the innermost last.

    Hooks for all modules, since one on a module itself would be seen by the lean form.
    """
    names, running = {module: name for name, module in model.named_modules()}, [""]

    def enter(module: nn.Module, args) -> None:
        if module in names:
            running.append(names[module])

    def leave(module: nn.Module, args, output) -> None:
        if module in names:
            running.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without numbers, of which shapes and bytes can be had in a moment."""
    with torch.device("meta"):
        return build()


def _kinds(model: nn.Module) -> dict[str, str]:
    """The kind of every module, by name."""
    adapters = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, ConvAdapter))
    kinds = {}
    for name, module in model.named_modules():
        layer = type(module).__module__
        if f"{name}.".startswith(adapters):
            kinds[name] = "adapters"
        elif isinstance(module, NORMS):
            kinds[name] = "norms"
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            kinds[name] = "convolutions, linear"
        elif layer.endswith(("modules.activation", "layers.activations")) and not isinstance(module, nn.MultiheadAttention):
            kinds[name] = "activations"
        else:
            kinds[name] = "products, attention"
    return kinds
