"""The lean layers that read and leave notes: smooth activations, norms, squeeze-excite and the adapters themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm import layers as timm_layers
from timm.layers import activations as timm_activations
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops.misc import SqueezeExcitation

from ..adapter import ConvAdapter
from ..kernels import compressing_conv2d, onednn_dilation, scaled_conv1x1
from ..recipe import Lean
from .recompute import Again, Note, autocast_of_now, leave_note, note_of, possible

# ---------------------------------------------------------------- smooth activations


# The derivative of each of them lies between -0.5 and 1.5; 0 and 1 themselves are among the 256 levels.
_STEPS, _ZERO = 127, 64


def to_byte(derivative: Tensor) -> Tensor:
    """A derivative between -0.5 and 1.5 as uint8, rounded to the nearest 127th."""
    return (derivative.float() * _STEPS + _ZERO).round_().clamp_(0, 255).to(torch.uint8)


class _Smooth(torch.autograd.Function):
    """An activation that keeps what its input is had again from, or its derivative in a byte an element."""

    @staticmethod
    def forward(ctx, x, layer, note, inplace):
        ctx.layer, ctx.again = layer, None
        if note is None:
            ctx.save_for_backward(to_byte(layer.gradient(torch.ones_like(x), x)))
        else:
            ctx.again = note.again.ask()
            ctx.save_for_backward(*note.kept)
        if inplace:
            ctx.mark_dirty(x)
        return layer.function(x, inplace)

    @staticmethod
    def backward(ctx, grad):
        if ctx.again is not None:
            return ctx.layer.gradient(grad, ctx.again(ctx.saved_tensors)), None, None, None
        (byte,) = ctx.saved_tensors
        return byte.to(grad.dtype).sub_(_ZERO).mul_(1 / _STEPS).mul_(grad), None, None, None


class LeanSmooth(Lean):
    """Its output is had again from its input, which it keeps anyway or has again itself."""

    lean_byte = False  # whether it keeps the derivative in a byte an element instead

    def forward(self, x: Tensor) -> Tensor:
        note = note_of(x)
        if not possible() or not (x.requires_grad or note):
            return super().forward(x)
        inplace = getattr(self, "inplace", False)
        if not x.requires_grad:
            return leave_note(super().forward(x), x, self.function, before=note)
        if self.lean_byte:
            return _Smooth.apply(x, self, None, inplace)
        if note is None:
            note = Note(Again(None, lambda kept: kept, 1), ((x.detach().clone() if inplace else x.detach()),), 0)
        return leave_note(_Smooth.apply(x, self, note, inplace), x, self.function, before=note)

    def function(self, x: Tensor, inplace: bool = False) -> Tensor:
        raise NotImplementedError

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class _GELU(LeanSmooth):
    approximate = "none"

    def function(self, x: Tensor, inplace: bool = False) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad, x, approximate=self.approximate)


class _SiLU(LeanSmooth):
    def function(self, x: Tensor, inplace: bool = False) -> Tensor:
        return F.silu(x, inplace)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(grad, x)


class _Hardswish(LeanSmooth):
    def function(self, x: Tensor, inplace: bool = False) -> Tensor:
        return F.hardswish(x, inplace)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.hardswish_backward(grad, x)


class _Mish(LeanSmooth):
    def function(self, x: Tensor, inplace: bool = False) -> Tensor:
        return F.mish(x, inplace)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.mish_backward(grad, x)


class LeanGELU(_GELU, nn.GELU):
    pass


class LeanTimmGELU(_GELU, timm_activations.GELU):
    pass


class LeanTimmGELUTanh(_GELU, timm_activations.GELUTanh):
    approximate = "tanh"


class LeanSiLU(_SiLU, nn.SiLU):
    pass


class LeanHardswish(_Hardswish, nn.Hardswish):
    pass


class LeanMish(_Mish, nn.Mish):
    pass


# ---------------------------------------------------------------- norms that measure their input


class _Redone(torch.autograd.Function):
    """A frozen norm whose input is had again: its statistics are computed anew with it."""

    @staticmethod
    def forward(ctx, x, note, compute, weight, bias):
        ctx.again, ctx.compute, ctx.autocast = note.again.ask(), compute, autocast_of_now(x)
        ctx.save_for_backward(weight, bias, *note.kept)
        return compute(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        weight, bias, *kept = ctx.saved_tensors
        x = ctx.again(kept).detach().requires_grad_()
        with torch.enable_grad(), ctx.autocast():
            y = ctx.compute(x, weight, bias)
        return torch.autograd.grad(y, x, grad)[0], None, None, None, None


class LeanMeasuringNorm(Lean):
    """Its output is had again from its input, which it keeps anyway or has again itself."""

    def forward(self, x: Tensor) -> Tensor:
        plainly = not possible() or self.weight is None or self.bias is None or getattr(self, "_fast_norm", False)
        return super().forward(x) if plainly else self.noted(x)

    def noted(self, x: Tensor) -> Tensor:
        note, weights = note_of(x), (self.weight, self.bias)
        if note is not None and x.requires_grad and not any(weight.requires_grad for weight in weights):
            y = _Redone.apply(x, note, self.normed, *weights)
        else:
            y = self.normed(x, *weights)
        # Where no gradient passes it keeps nothing, and what stands for its output is no smaller.
        return leave_note(y, x, self.normed, weights, note) if y.requires_grad or note else y

    def normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError


class _LayerNorm(LeanMeasuringNorm):
    def normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class _GroupNorm(LeanMeasuringNorm):
    def normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class LeanLayerNorm(_LayerNorm, nn.LayerNorm):
    pass


class LeanTimmLayerNorm(_LayerNorm, timm_layers.LayerNorm):
    pass


class LeanLayerNorm2d(_LayerNorm, timm_layers.LayerNorm2d):
    def normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super().normed(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class LeanGroupNorm(_GroupNorm, nn.GroupNorm):
    pass


class LeanTimmGroupNorm(_GroupNorm, timm_layers.GroupNorm):
    pass


class LeanGroupNormAct(_GroupNorm, timm_layers.GroupNormAct):
    def noted(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().noted(x)))


# ---------------------------------------------------------------- squeeze-excite


class _Gated(torch.autograd.Function):
    """A map times a small gate: keeps the gate, and what the map is had again from."""

    @staticmethod
    def forward(ctx, x, gate, note):
        ctx.again = note.again.ask()
        ctx.save_for_backward(gate, *note.kept)
        return x * gate

    @staticmethod
    def backward(ctx, grad):
        gate, *kept = ctx.saved_tensors
        x = ctx.again(kept)
        return grad * gate, (grad * x).sum_to_size(gate.shape), None


class _Gating(TorchFunctionMode):
    """Sees where a module multiplies its own input by a gate, whatever else the module computes."""

    def __init__(self, x: Tensor, note: Note) -> None:
        super().__init__()
        self.x, self.note = x, note

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("mul", "__mul__", "__rmul__") and not kwargs and len(args) == 2:
            gates = [arg for arg in args if arg is not self.x]
            if len(gates) == 1 and isinstance(gates[0], Tensor) and gates[0].dtype == self.x.dtype:
                if torch.broadcast_shapes(gates[0].shape, self.x.shape) == self.x.shape:
                    return _Gated.apply(self.x, gates[0], self.note)
        return function(*args, **(kwargs or {}))


class LeanGate(Lean):
    def forward(self, x: Tensor) -> Tensor:
        note = note_of(x)
        if note is None or not x.requires_grad:
            return super().forward(x)
        with _Gating(x, note):
            return super().forward(x)


class LeanSqueezeExcite(LeanGate, SqueezeExcite):
    pass


class LeanSEModule(LeanGate, timm_layers.SEModule):
    pass


class LeanEffectiveSEModule(LeanGate, timm_layers.EffectiveSEModule):
    pass


class LeanSqueezeExcitation(LeanGate, SqueezeExcitation):
    pass


# ---------------------------------------------------------------- adapters


class _Compress(torch.autograd.Function):
    """An adapter's first convolution, whose input is had again."""

    @staticmethod
    def forward(ctx, x, weight, bias, note, pad, geometry):
        padded, padding = pad(x)
        ctx.again, ctx.pad, ctx.geometry = note.again.ask(), pad, geometry
        ctx.save_for_backward(weight, *note.kept)
        stride, dilation, groups = geometry
        return compressing_conv2d(padded, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, grad):
        weight, *kept = ctx.saved_tensors
        x = ctx.again(kept)
        (padded, padding), (stride, dilation, groups) = ctx.pad(x), ctx.geometry
        padded, own, shape = padded.to(grad.dtype), weight.to(grad.dtype), weight.shape
        bias_grad = grad.sum((0, 2, 3)).to(weight.dtype)
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        if groups == shape[0] and shape[1] > 1 and grad.device.type == "cpu":  # as in ``compressing_conv2d``
            grad = _repeated(grad, shape[1])
            own, groups = own.reshape(-1, 1, *shape[2:]), groups * shape[1]
        x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
            grad, padded, own, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        if x_grad is not None:
            x_grad = x_grad[..., : x.shape[-2], : x.shape[-1]].to(x.dtype)
        weight_grad = None if weight_grad is None else weight_grad.reshape(shape).to(weight.dtype)
        return x_grad, weight_grad, bias_grad, None, None, None


def _repeated(x: Tensor, times: int) -> Tensor:
    """Every channel as often, one beside the other, in the same layout: (N, C, H, W) -> (N, C * times, H, W)."""
    if x.is_contiguous():
        return x.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)
    return x.permute(0, 2, 3, 1).unsqueeze(4).expand(-1, -1, -1, -1, times).flatten(3).permute(0, 3, 1, 2)


class _ScaledConv1x1(torch.autograd.Function):
    """:func:`~minica.kernels.scaled_conv1x1` that keeps neither the product of weight and scale nor what a note names."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale, note):
        ctx.again = None if note is None else note.again.ask()
        ctx.save_for_backward(weight, bias, scale, *([x] if note is None else note.kept))
        return scaled_conv1x1(x, weight, bias, scale)

    @staticmethod
    def backward(ctx, grad):
        weight, bias, scale, *kept = ctx.saved_tensors
        x = (kept[0] if ctx.again is None else ctx.again(kept)).to(grad.dtype)
        product = (weight * scale[..., None]).to(grad.dtype)
        channels_last_on_cpu = x.device.type == "cpu" and not x.is_contiguous()
        dilation = onednn_dilation((1, 1), (1, 1)) if channels_last_on_cpu else (1, 1)
        x_grad, product_grad, sums = torch.ops.aten.convolution_backward(
            grad, x, product, [len(bias)], [1, 1], [0, 0], dilation, False, [0, 0], 1, [True, True, True]
        )
        product_grad, sums = product_grad.to(weight.dtype), sums.to(bias.dtype)
        scale_grad = (product_grad * weight).sum((1, 2, 3)) + sums * bias
        return x_grad, product_grad * scale[..., None], sums * scale.flatten(), scale_grad.view_as(scale), None


class LeanAdapter(Lean, ConvAdapter):
    """It keeps its narrow map once, before its activation, and of what it reads what that is had again from."""

    def _down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        note, conv = note_of(x), self.down
        if note is None:
            return super()._down(x, size)
        h = _Compress.apply(x, conv.weight, conv.bias, note, _Pad(self, size), (conv.stride, conv.dilation, conv.groups))
        return h if h.shape[-2:] == size else h[..., : size[0], : size[1]]

    def _delta(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not possible():
            return super()._delta(x, size)
        h = self.act(self._down(x, size))
        x, up = _in_autocast(h), self.up
        return _ScaledConv1x1.apply(x, up.weight, up.bias, self.alpha, note_of(h) if x is h else None)


class _Pad:
    """What an adapter does to a map before its first convolution."""

    def __init__(self, adapter: ConvAdapter, size: tuple[int, int]) -> None:
        self.adapter, self.size = adapter, size

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return self.adapter._pad(x, self.size)


def _in_autocast(x: Tensor) -> Tensor:
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


# Exactly these classes: a subclass that nobody knows may compute something else.
NOTING_CLASS: dict[type[nn.Module], Callable] = {
    cls.__bases__[1]: cls
    for cls in (
        LeanGELU,
        LeanTimmGELU,
        LeanTimmGELUTanh,
        LeanSiLU,
        LeanHardswish,
        LeanMish,
        LeanLayerNorm,
        LeanTimmLayerNorm,
        LeanLayerNorm2d,
        LeanGroupNorm,
        LeanTimmGroupNorm,
        LeanGroupNormAct,
        LeanSqueezeExcite,
        LeanSEModule,
        LeanEffectiveSEModule,
        LeanSqueezeExcitation,
        LeanAdapter,
    )
}
