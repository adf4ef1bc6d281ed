"""How is the frozen part run with the least memory and time?

A frozen network needs no weight gradients, and most of what autograd keeps is there for those alone.  In its lean form every
frozen layer keeps what the gradient of its *input* needs and nothing else:

* a convolution keeps nothing: its gradient needs the weight, and of the input only the shape (pytorch/pytorch#133566 asks for
  this in PyTorch itself); nor does a linear layer, whose weight autocast would copy;
* BatchNorm is folded into the convolution before it, where it alone takes that convolution's output: found by how the network
  runs, not by name;
* an activation of the ReLU family keeps one bit an element; where a trained layer keeps the activation's output anyway, not
  even that.

What comes before the first adapter keeps nothing by itself: nothing in it requires a gradient.

A layer takes the lean form by wearing another class, a subclass of its own; its parameters, its keys and its hooks stay.  It
behaves so only where gradients are recorded: under ``torch.no_grad()``, in evaluation therefore, every layer is the plain one.
"""

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

from ..discovery import Call, Trace, trace
from ..hooks import sites
from ..kernels import onednn_dilation
from ..recipe import Lean, plain
from ..recipe import has_frozen_running_stats as held


def lean(model: nn.Module, checkpoint: bool = False) -> nn.Module:
    """Give the frozen part of ``model`` its leanest form for training, in place.

    Gradients of all that trains are those of the plain model within float tolerance, and ``state_dict`` and the saved adapter
    file are the same.  :func:`minica.fit` does this by default, and undoes it.  :func:`minica.plain`, :func:`minica.detach`,
    another ``adapt`` or ``tune``, and loading a state dict end it.

    The folded weights are a second copy of the convolutions that they stand in for, in float32 also under autocast.

    Args:
        model: any network, usually prepared by :func:`minica.adapt` or :func:`minica.tune` and on the device that it will
            train on.
        checkpoint: let timm checkpoint the stages as well (``set_grad_checkpointing``), for about a third more time.  It saves
            most where activations are smooth (ConvNeXt); in ResNets it needs more memory than the lean form alone.

    Returns:
        The same model.

    Raises:
        ValueError: if ``checkpoint`` is asked of a model that has no such method; it is left plain.
    """
    plain(model)
    if checkpoint:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(
                f"{type(model).__name__} has no set_grad_checkpointing, as timm's models do; use checkpoint=False."
            )
        model.set_grad_checkpointing(True)
        model._lean_checkpoint = True
    try:
        run = trace(model)
    except Exception:  # without a run of the network no BatchNorm is folded; all else needs no run
        run = Trace()
    modules = dict(model.named_modules())
    norms = {name: norm for name, norm in foldable(model, run).items() if _pads_with_numbers(modules[name])}
    kept = {call.received[0] for call in run.calls if call.received and _trains(call.module)}
    for name, module in model.named_modules():
        wear = WEAR.get(type(module))
        if wear is None:
            continue
        if isinstance(module, nn.Conv2d):
            if not module.weight.requires_grad and _pads_with_numbers(module):
                module.__class__ = wear
                module.prepare(norms.get(name))
        elif isinstance(module, nn.BatchNorm2d):
            if _frozen_norm(module):
                module.__class__ = wear
                module.prepare(module in norms.values())
        elif isinstance(module, nn.Linear):
            if not module.weight.requires_grad:
                module.__class__ = wear
        elif not all(call.returned in kept for call in run.by_name.get(name, [Call(name, module, [], 0, None)])):
            module.__class__ = wear
    model._ddp_params_and_buffers_to_ignore = [
        key for key, _ in model.named_buffers() if key.rpartition(".")[2] in Lean.BUFFERS
    ]
    model.register_load_state_dict_post_hook(_loaded)
    return model


def _loaded(model: nn.Module, incompatible_keys) -> None:
    """What was folded was made from other weights."""
    plain(model)


def _pads_with_numbers(conv: nn.Conv2d) -> bool:
    """Others ("same", reflected) are left as they are, and so is a norm behind them."""
    return not isinstance(conv.padding, str) and conv.padding_mode == "zeros"


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters(recurse=False))


# ---------------------------------------------------------------- which BatchNorms can be folded


def _frozen_norm(module: nn.Module) -> bool:
    frozen = module.weight is not None and not module.weight.requires_grad
    return frozen and module.running_mean is not None and (held(module) or not module.training)


def foldable(model: nn.Module, run: Trace) -> dict[str, nn.BatchNorm2d]:
    """Convolution's name -> the BatchNorm that can be folded into it.

    The two run once, one right after the other, nothing else takes what is between them, and no hook looks at it.
    """
    modules = dict(model.named_modules())
    watched = {_number(run, place) for _, site in sites(model) for place in (site.begin, site.end)}
    found = {}
    for call in run.calls:
        norm = modules[call.name] if call.name else model
        if WEAR.get(type(norm)) in (LeanBatchNorm2d, LeanBatchNormAct2d) and len(run.by_name[call.name]) == 1:
            for name, conv in _givers(run, call, modules):
                alone = all(call.begin <= at < call.end for at in run.uses[conv.returned])
                frozen = _frozen_norm(norm) and not any(weight.requires_grad for weight in _own(norm, modules[name]))
                seen = conv.returned in watched or modules[name]._forward_hooks or len(norm._forward_pre_hooks) > held(norm)
                if alone and frozen and not seen:
                    found[name] = norm
    return found


def _own(*modules: nn.Module):
    return (weight for module in modules for weight in module.parameters(recurse=False))


def _givers(run: Trace, norm: Call, modules: dict[str, nn.Module]):
    """The convolution whose output ``norm`` receives, if it is one and if only layers that do nothing see it as well."""
    for call in run.calls:
        if call.returned is not None and call.returned in norm.received and isinstance(modules.get(call.name), nn.Conv2d):
            others = [
                other for other in run.receivers.get(call.returned, ()) if not f"{norm.name}.".startswith(f"{other.name}.")
            ]
            once = len(run.by_name[call.name]) == 1 and type(modules[call.name]) in WEAR
            if once and all(isinstance(other.module, nn.Identity) for other in others):
                yield call.name, call


def _number(run: Trace, place) -> int | None:
    """The tensor at a place of the running network."""
    for call in run.by_name.get(place.module, ()):
        return call.returned if place.side == "output" else next(iter(call.received), None)
    return None


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
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


class _Captured(TorchFunctionMode):
    """Sees what a convolution of any class gives to ``F.conv2d``."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            self.weight, self.bias = args[1:3]
        return function(*args, **(kwargs or {}))


class LeanConv(Lean):
    """A frozen convolution, with the BatchNorm behind it if there is one to fold."""

    def prepare(self, norm: nn.BatchNorm2d | None) -> None:
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        with torch.no_grad(), _Captured() as used:  # weight standardisation is a function of frozen weights: once is enough
            super().forward(self.weight.new_zeros(1, self.in_channels, *reach))
        weight, bias = used.weight, used.bias
        if norm is not None:
            with torch.no_grad():
                scale, shift = norm_affine(norm)
                bias = shift if bias is None else torch.addcmul(shift, bias, scale)
                weight = weight * scale.view(-1, 1, 1, 1)
        self.register_buffer("lean_weight", None if weight is self.weight else weight, persistent=False)
        self.register_buffer("lean_bias", None if bias is self.bias else bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        weight = self.weight if self.lean_weight is None else self.lean_weight
        bias = self.bias if self.lean_bias is None else self.lean_bias
        if isinstance(self, Conv2dSame) or getattr(self, "same_pad", False):
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        dilation = self.dilation
        if x.device.type == "cpu":  # whatever layout the images came in: on a CPU this one is faster, and it stays
            x = x.contiguous(memory_format=torch.channels_last)
            dilation = onednn_dilation(self.kernel_size, dilation)
        return _FrozenConv.apply(_autocast(x), weight, bias, self.stride, self.padding, dilation, self.groups)


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

    def forward(self, x: Tensor) -> Tensor:
        cast = _autocast(x)
        if cast is x or not torch.is_grad_enabled():
            return super().forward(x)
        return _FrozenLinear.apply(cast, self.weight, self.bias)


# ---------------------------------------------------------------- BatchNorm


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm with frozen statistics is ``scale * x + shift``, each (C,)."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else norm.bias + shift


class LeanNorm(Lean):
    """Frozen statistics: nothing at all where it is folded, else a scale and a shift that keep no map."""

    def prepare(self, folded: bool) -> None:
        self.lean_folded = folded

    def scaled(self, x: Tensor) -> Tensor:
        if self.lean_folded:
            return x
        scale, shift = (value.to(x.dtype).view(-1, 1, 1) for value in norm_affine(self))
        return torch.addcmul(shift, x, scale)


class LeanBatchNorm2d(LeanNorm, nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x) if torch.is_grad_enabled() else super().forward(x)


class LeanBatchNormAct2d(LeanNorm, BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.scaled(x))) if torch.is_grad_enabled() else super().forward(x)


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
    def masked(self, x: Tensor, slope: float = 0.0, limit: float | None = None) -> Tensor:
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        x = x if dense else x.contiguous()
        return _MaskedAct.apply(x, slope, limit, self.inplace and dense and not torch.compiler.is_compiling())


class LeanReLU(LeanAct, nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x) if torch.is_grad_enabled() and x.requires_grad else super().forward(x)


class LeanReLU6(LeanAct, nn.ReLU6):
    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x, limit=6.0) if torch.is_grad_enabled() and x.requires_grad else super().forward(x)


class LeanLeakyReLU(LeanAct, nn.LeakyReLU):
    def forward(self, x: Tensor) -> Tensor:
        masked = torch.is_grad_enabled() and x.requires_grad and self.negative_slope > 0
        return self.masked(x, slope=self.negative_slope) if masked else super().forward(x)


# Exactly these classes: a subclass that nobody knows may compute something else.
WEAR = {
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
