"""The folded form for inference: a copy of a network that computes the same in fewer operations."""

from __future__ import annotations

import copy

from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from ..adapter import ConvAdapter
from ..discovery import trace
from ..recipe import adapted_parts, check_parts, has_frozen_running_stats, plain, release_running_stats, state_of, unwrap
from .lean import foldable, networks
from .lean_layers import LEAN_CLASS, effective_weights


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference alone: the same function in fewer operations.

    BatchNorm goes into the convolution before it, where it alone takes that convolution's output; standardised weights are
    computed once; an adapter's alpha goes into its 1x1 convolution.  What is left exports to ONNX and compiles.

    The copy has every set of adapters, and :func:`minica.switch` works.  Layers that a set has for its own beside its adapters
    (norms that it trains, say) stay as they are, so that each set, and none at all, finds its own.  Nothing in the copy trains
    or can be saved as an adapter.

    **What ends it**: nothing; the model itself is left as it was, and later changes to it do not reach the copy.  Where a part
    of the model was adapted, with ``backbone=`` or by itself, that part is folded and the rest is copied.

    **Threads**: concurrent forward passes of a folded model are safe, ``switch`` beside them is not.

    Returns:
        The copy, in evaluation mode; its outputs are the model's within float tolerance.
    """
    check_parts(model)
    folded = plain(copy.deepcopy(unwrap(model))).eval()
    every = [*folded.parameters(), *(value for tensors in _put_aside(folded) for value in tensors.values())]
    for tensor in every:
        tensor.requires_grad_(False)
    own = _own_layers(folded)
    for network in networks(folded):
        norms = foldable(network, trace(network))
        for name, module in list(network.named_modules()):
            if isinstance(module, ConvAdapter):
                _fold_adapter(module)
            elif isinstance(module, nn.Conv2d) and type(module) in LEAN_CLASS and module not in own:
                norm = norms.get(name)
                _fold_convolution(module, None if norm in own else norm)
    for part in adapted_parts(folded).values():
        state = state_of(part)
        state.folded = True
        norms_left = [name for name in state.frozen_stats if has_frozen_running_stats(part.get_submodule(name))]
        state.frozen_stats = tuple(norms_left)
    return folded


def _put_aside(model: nn.Module) -> list[dict[str, Tensor]]:
    """What sets that are not in use have for their own."""
    states = [state_of(part) for part in adapted_parts(model).values()]
    return [tensors for state in states for tensors in (state.backbone, *state.aside.values())]


def _own_layers(model: nn.Module) -> set[nn.Module]:
    """The layers of which a set of adapters has its own: :func:`minica.switch` exchanges their tensors."""
    states = {part: state_of(part) for part in adapted_parts(model).values()}
    owned = [(part, key) for part, state in states.items() for held in (state.backbone, *state.aside.values()) for key in held]
    return {part.get_submodule(key.rpartition(".")[0]) for part, key in owned}


def _fold_convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
    weight, bias = effective_weights(conv, norm)
    same = isinstance(conv, Conv2dSame) or getattr(conv, "same_pad", False)
    conv.__class__ = Conv2dSame if same else nn.Conv2d
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    if norm is not None:
        _empty(norm)


def _empty(norm: nn.BatchNorm2d) -> None:
    """Leave of a norm what it does after its scale and shift.  The module stays: adapters may hang on it."""
    release_running_stats(norm)
    norm.__class__ = nn.Sequential if isinstance(norm, BatchNormAct2d) else nn.Identity  # of its drop and its act
    norm._parameters.clear()
    norm._buffers.clear()


class FoldedAdapter(ConvAdapter):
    """A Conv-Adapter whose alpha is in its 1x1 convolution."""

    def _delta(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        return self.up(self.act(self._down(x, size)))


def _fold_adapter(adapter: ConvAdapter) -> None:
    adapter.up.weight.mul_(adapter.alpha[..., None])
    adapter.up.bias.mul_(adapter.alpha.flatten())
    adapter.alpha = None
    adapter.__class__ = FoldedAdapter
