"""The layers of the lean form: each keeps for its backward pass only what the gradient of its input needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import (
    BatchNormAct2d,
    Conv2dSame,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
    pad_same,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..kernels import onednn_dilation
from ..recipe import Lean, has_frozen_running_stats
from .recompute import leave_note, note_of, possible

# ---------------------------------------------------------------- the weights that a convolution and its BatchNorm amount to


def effective_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of the plain convolution that ``conv``, with ``norm`` behind it, amounts to.

    They are ``conv``'s own tensors where there is nothing to compute.
    """
    # The kernel's reach, and enough for any padding: reflected padding needs a map larger than itself.
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
    reach = [d * (k - 1) + 1 + p for d, k, p in zip(conv.dilation, conv.kernel_size, padding, strict=True)]
    with torch.no_grad(), _Captured() as used:
        type(conv).forward(conv, conv.weight.new_zeros(1, conv.in_channels, *reach))  # standardises the weight
        weight, bias = used.weight, used.bias
        if norm is not None:
            scale, shift = norm_affine(norm)
            bias = shift if bias is None else torch.addcmul(shift, bias, scale)
            weight = weight * scale.view(-1, 1, 1, 1)
    return weight, bias


class _Captured(TorchFunctionMode):
    """Sees what a convolution of any class gives to ``F.conv2d``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            self.weight, self.bias = args[1:3]
        return function(*args, **(kwargs or {}))


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm with frozen statistics is ``scale * x + shift``, each (C,)."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else norm.bias + shift


def is_frozen_norm(norm: nn.BatchNorm2d) -> bool:
    """Whether ``norm`` scales and shifts by constants: its weight is frozen, and so are its running statistics."""
    weight = norm._parameters["weight"]  # not norm.weight, which takes longer; this is asked in every step
    frozen = weight is not None and not weight.requires_grad and norm._buffers["running_mean"] is not None
    return frozen and (not norm.training or has_frozen_running_stats(norm))


class PreparedWeights:
    """What a lean convolution's weight was computed from, so that it notices when it no longer holds.

    A convolution and the BatchNorm that is folded into it share one, so that either both take the lean form or neither does.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, places: list[tuple[nn.Module, str, nn.Module]]) -> None:
        self.conv, self.norm = conv, norm
        self.places = places  # (parent, name in it, conv or norm): where they must still be
        self.sources: list[tuple[Tensor, int, int]] = []  # what they were computed from, version and address
        self.stale = False  # set by loading a state dict; all that compiled code looks at
        self.compute(self._tensors())

    def __getstate__(self) -> dict:
        """Copies and pickles have tensors of their own, and compute anew."""
        return self.__dict__ | {"sources": []}

    def usable(self) -> bool:
        """Whether the lean form gives what the plain layers would give now; computes the weights anew where that is enough."""
        conv, norm, tensors = self.conv, self.norm, self._tensors()
        if conv._parameters.get("weight") is None or any(tensor.requires_grad for tensor in tensors):
            return False
        if norm is not None:
            if not is_frozen_norm(norm) or conv._forward_hooks or len(norm._forward_pre_hooks) > has_frozen_running_stats(norm):
                return False
            if conv.__dict__.get("lean_prepared") is not self or norm.__dict__.get("lean_prepared") is not self:
                return False
            if any(parent._modules.get(name) is not module for parent, name, module in self.places):
                return False
        if torch.compiler.is_compiling():
            return not self.stale
        if not self._current(tensors):
            self.compute(tensors)
        return True

    def compute(self, tensors: list[Tensor]) -> None:
        """Compute the convolution's weights from the two layers' ``tensors``."""
        sources = [(tensor, tensor._version, tensor.data_ptr()) for tensor in tensors]
        weight, bias = effective_weights(self.conv, self.norm)
        self.conv.lean_weight = None if weight is self.conv.weight else weight
        self.conv.lean_bias = None if bias is self.conv.bias else bias
        # Last, so that another thread takes the weights only when they are complete.
        self.sources, self.stale = sources, False

    def _tensors(self) -> list[Tensor]:
        """All that the weights are computed from.  A bias without a norm is used as it is, and may train."""
        own, norm = self.conv._parameters, self.norm
        if norm is None:
            return [tensor for key, tensor in own.items() if key != "bias"]
        found = [*own.values(), *norm._parameters.values(), norm._buffers["running_mean"], norm._buffers["running_var"]]
        return [tensor for tensor in found if tensor is not None]

    def _current(self, tensors: list[Tensor]) -> bool:
        """Whether these are the tensors that the weights were computed from, with the same values in them."""
        if len(tensors) != len(self.sources):
            return False
        for tensor, (then, version, address) in zip(tensors, self.sources, strict=True):
            # The version counts what is written to a tensor; the address changes when it is moved.
            if tensor is not then or tensor._version != version or tensor.data_ptr() != address:
                return False
        return True


# ---------------------------------------------------------------- convolutions and linear layers that keep no input


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups):
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.shape, ctx.layout = (stride, padding, dilation, groups), x.shape, x.stride()
        # Cast here and again in backward: a frozen weight of the other type would be kept from one to the other.
        bias = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, weight.to(x.dtype), bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, grad):
        (weight,), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.geometry
        wanted = [ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]]
        shape_only = torch.empty_strided(ctx.shape, ctx.layout, dtype=grad.dtype, device=grad.device)  # is never read
        x_grad, _, bias_grad = torch.ops.aten.convolution_backward(
            grad, shape_only, weight.to(grad.dtype), [grad.shape[1]], stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return x_grad, None, bias_grad, None, None, None, None


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        bias_grad = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return F.linear(grad, weight.to(grad.dtype).t()), None, bias_grad


def _autocast(x: Tensor) -> Tensor:
    """In the type that autocast runs convolutions in; a Function is not cast by itself."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if _is_autocast(x) else x


def _is_autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class _Loading(Lean):
    """A layer from whose tensors a lean weight is computed."""

    lean_prepared: PreparedWeights | None

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        if self.lean_prepared is not None:
            self.lean_prepared.stale = True


class LeanConv(_Loading):
    """A frozen convolution, with the BatchNorm behind it if there is one to fold."""

    lean_again = False  # whether its output is worth computing again

    def prepare(self, norm: nn.BatchNorm2d | None, places: list[tuple[nn.Module, str, nn.Module]]) -> None:
        self.register_buffer("lean_weight", None, persistent=False)
        self.register_buffer("lean_bias", None, persistent=False)
        self.lean_prepared = PreparedWeights(self, norm, places)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not self.lean_prepared.usable():
            return super().forward(x)
        weight = self.weight if self.lean_weight is None else self.lean_weight
        bias = self.bias if self.lean_bias is None else self.lean_bias
        laid_out = self._laid_out(x)
        dilation = onednn_dilation(self.kernel_size, self.dilation) if x.device.type == "cpu" else self.dilation
        geometry = (self.stride, self.padding, dilation, self.groups)
        y = _FrozenConv.apply(laid_out, weight, bias, *geometry)
        if not self.lean_again or not possible():
            return y

        def again(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            bias = None if bias is None else bias.to(y_type)
            return F.conv2d(self._laid_out(x).to(y_type), weight.to(y_type), bias, *geometry)

        y_type = y.dtype
        return leave_note(y, x, again, (weight,) if bias is None else (weight, bias), note_of(x))

    def _laid_out(self, x: Tensor) -> Tensor:
        """Padded where padding depends on the size; in the type of autocast and, on a CPU, in the fastest layout."""
        if isinstance(self, Conv2dSame) or getattr(self, "same_pad", False):
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        if x.device.type == "cpu":  # whatever layout the images came in: on a CPU this one is faster, and it stays
            x = x.contiguous(memory_format=torch.channels_last)
        return _autocast(x)


class LeanConv2d(LeanConv, nn.Conv2d):
    pass


class LeanConv2dSame(LeanConv, Conv2dSame):
    pass


class LeanStdConv2d(LeanConv, StdConv2d):
    pass


class LeanStdConv2dSame(LeanConv, StdConv2dSame):
    pass


class LeanScaledStdConv2d(LeanConv, ScaledStdConv2d):
    pass


class LeanScaledStdConv2dSame(LeanConv, ScaledStdConv2dSame):
    pass


class LeanLinear(Lean, nn.Linear):
    """PyTorch keeps no input of a frozen linear layer either; but under autocast it keeps a copy of the weight."""

    lean_again = False  # whether its output is worth computing again

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or self.weight.requires_grad:
            return super().forward(x)
        cast, weight, bias = _autocast(x), self.weight, self.bias
        own = cast is x and (x.dtype == weight.dtype or not _is_autocast(x))
        y = super().forward(x) if own else _FrozenLinear.apply(cast, weight, bias)
        if not self.lean_again or not possible():
            return y

        def again(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.linear(x.to(y_type), weight.to(y_type), None if bias is None else bias.to(y_type))

        y_type = y.dtype
        return leave_note(y, x, again, (weight,) if bias is None else (weight, bias), note_of(x))


# ---------------------------------------------------------------- BatchNorm


class LeanNorm(_Loading):
    """Frozen statistics: nothing at all where it is folded, else a scale and a shift that keep no map."""

    def prepare(self, into: PreparedWeights | None) -> None:
        self.lean_prepared = into

    def is_lean(self) -> bool:
        return torch.is_grad_enabled() and is_frozen_norm(self)

    def scaled(self, x: Tensor) -> Tensor:
        if self.lean_prepared is not None and self.lean_prepared.usable():
            return x
        scale, shift = (value.to(x.dtype).view(-1, 1, 1) for value in norm_affine(self))
        return torch.addcmul(shift, x, scale)


class LeanBatchNorm2d(LeanNorm, nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x) if self.is_lean() else super().forward(x)


class LeanBatchNormAct2d(LeanNorm, BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.scaled(x))) if self.is_lean() else super().forward(x)


# ---------------------------------------------------------------- activations that keep one bit an element


# Eight bytes of 0 or 1, read as one number, times the first constant have their eight bits in the top byte; one byte in all
# eight places, and the second constant, give them back.  That takes a tenth of the time of a comparison.
_GATHER, _SPREAD, _PICK = 0x8040201008040201 - (1 << 64), 0x0101010101010101, 0x0102040810204080


def pack(mask: Tensor) -> Tensor:
    """A dense bool tensor as uint8, eight elements a byte in the order of its memory (as bool if they are no multiple of 8)."""
    flat = mask.as_strided((mask.numel(),), (1,))
    return flat if mask.numel() % 8 else (flat.view(torch.int64) * _GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """What :func:`pack` was given, flat, as uint8 zeros and ones."""
    if packed.dtype == torch.bool:
        return packed.view(torch.uint8)
    return packed.to(torch.int64).mul_(_SPREAD).bitwise_and_(_PICK).view(torch.uint8).clamp_(max=1)


class _MaskedAct(torch.autograd.Function):
    """max(x, slope * x), at most ``limit``: its derivative is 1 where the mask is set and ``slope`` elsewhere."""

    @staticmethod
    def forward(ctx, x, slope, limit, inplace):
        if inplace:
            ctx.mark_dirty(x)
        y = x if inplace else x.clone()
        if slope:
            F.leaky_relu_(y, slope)
            mask = y > 0
        else:
            y.clamp_(0, limit)
            mask = (y if limit is None else y * (limit - y)).bool()  # twice as fast as a comparison
        ctx.save_for_backward(pack(mask))
        ctx.slope, ctx.shape, ctx.layout = slope, mask.shape, mask.stride()
        return y

    @staticmethod
    def backward(ctx, grad):
        (packed,) = ctx.saved_tensors
        factor = unpack(packed).as_strided(ctx.shape, ctx.layout).to(grad.dtype)
        if ctx.slope:
            factor.mul_(1 - ctx.slope).add_(ctx.slope)
        return factor.mul_(grad), None, None, None


class LeanAct(Lean):
    """It keeps a bit an element; its output is had again where its input is."""

    def forward(self, x: Tensor) -> Tensor:
        note, (slope, limit) = note_of(x), self.shape()
        if not torch.is_grad_enabled() or not x.requires_grad or slope < 0:
            y = super().forward(x)
        else:
            y = self.masked(x, slope, limit)
        return y if note is None else leave_note(y, x, self.function, before=note)

    def masked(self, x: Tensor, slope: float, limit: float | None) -> Tensor:
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        x = x if dense else x.contiguous()
        return _MaskedAct.apply(x, slope, limit, self.inplace and dense and not torch.compiler.is_compiling())

    def shape(self) -> tuple[float, float | None]:
        """Its slope below zero, and its limit."""
        return 0.0, None

    def function(self, x: Tensor) -> Tensor:
        slope, limit = self.shape()
        return F.leaky_relu(x, slope) if slope else x.clamp(0, limit)


class LeanReLU(LeanAct, nn.ReLU):
    pass


class LeanReLU6(LeanAct, nn.ReLU6):
    def shape(self) -> tuple[float, float | None]:
        return 0.0, 6.0


class LeanLeakyReLU(LeanAct, nn.LeakyReLU):
    def shape(self) -> tuple[float, float | None]:
        return self.negative_slope, None


# Exactly these classes: a subclass that nobody knows may compute something else.
LEAN_CLASS = {
    cls.__bases__[1]: cls
    for cls in (
        LeanConv2d,
        LeanConv2dSame,
        LeanStdConv2d,
        LeanStdConv2dSame,
        LeanScaledStdConv2d,
        LeanScaledStdConv2dSame,
        LeanLinear,
        LeanBatchNorm2d,
        LeanBatchNormAct2d,
        LeanReLU,
        LeanReLU6,
        LeanLeakyReLU,
    )
}
