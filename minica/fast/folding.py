"""How does an adapted network run fastest, once it is trained?"""

from __future__ import annotations

import copy

from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from ..adapter import ConvAdapter
from ..discovery import trace
from ..recipe import adapter_names, plain, release_running_stats, set_flags, state_of
from .lean import WEAR, LeanConv, foldable


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference alone: the same function in fewer operations.

    BatchNorm goes into the convolution before it, where it alone takes that convolution's output; standardised weights are
    computed once; an adapter's alpha goes into its 1x1 convolution.  What is left exports to ONNX and compiles.  The copy has
    every set of adapters, and :func:`minica.switch` works; but nothing in it trains or can be saved as an adapter.

    Returns:
        The copy, in evaluation mode; its outputs are the model's within float tolerance.
    """
    folded = plain(copy.deepcopy(model)).eval()
    every = [*folded.parameters(), *(value for tensors in _put_aside(folded) for value in tensors.values())]
    for tensor in every:
        tensor.requires_grad_(False)
    norms = foldable(folded, trace(folded))
    if len(adapter_names(folded)) > 1:  # what each of several sets has for its own stays out of what they share
        own = {key.rpartition(".")[0] for key in state_of(folded).backbone}
        names = {norm: name for name, norm in folded.named_modules()}
        norms = {conv: norm for conv, norm in norms.items() if names[norm] not in own}
    for name, module in list(folded.named_modules()):
        if issubclass(WEAR.get(type(module), nn.Module), LeanConv):
            _fold_convolution(module, norms.get(name))
        elif isinstance(module, ConvAdapter):
            _fold_adapter(module)
    for norm in norms.values():
        _empty(norm)
    if state_of(folded) is not None:
        state_of(folded).folded = True
        set_flags(folded)
    return folded


def _put_aside(model: nn.Module) -> list[dict[str, Tensor]]:
    """What sets that are not in use have for their own."""
    state = state_of(model)
    return [] if state is None else [state.backbone, *state.aside.values()]


def _fold_convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
    same = isinstance(conv, Conv2dSame) or getattr(conv, "same_pad", False)
    conv.__class__ = WEAR[type(conv)]
    conv.prepare(norm)
    weight, bias = conv.lean_weight, conv.lean_bias  # None where nothing was to be folded
    plain(conv).__class__ = Conv2dSame if same else nn.Conv2d
    if weight is not None:
        conv.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias, requires_grad=False)


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
