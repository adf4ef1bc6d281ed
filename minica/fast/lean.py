"""The lean form for training: which frozen layers take it, and which BatchNorms are folded into the convolution before them.

A frozen network needs no weight gradients, and most of what autograd keeps is there for those alone.  In the lean form every
frozen layer keeps what the gradient of its *input* needs and nothing else:

* a convolution keeps nothing: its gradient needs the weight, and of the input only the shape (pytorch/pytorch#133566 asks for
  this in PyTorch itself); nor does a linear layer, whose weight autocast would copy;
* BatchNorm is folded into the convolution before it, where it alone takes that convolution's output: found by how the network
  runs, not by name;
* an activation of the ReLU family keeps one bit an element; where a trained layer keeps the activation's output anyway, not
  even that;
* what is cheap to compute again is not kept but had from what is: a smooth activation's output from its input, a norm's from
  its input, the wide map between two linear layers from the norm before them, both factors of squeeze-excite, and what an
  adapter reads (:mod:`minica.fast.recompute` says how, :mod:`minica.fast.planning` which layers are worth it).

What comes before the first adapter keeps nothing by itself: nothing in it requires a gradient.

A lean layer's class is a subclass of its own class (:mod:`minica.fast.lean_layers`, :mod:`minica.fast.recompute_layers`); its
parameters, keys and hooks stay.
"""

from __future__ import annotations

from torch import nn

from ..counting import check_choice
from ..discovery import Call, Trace, trace
from ..hooks import sites
from ..recipe import Lean, check_parts, has_frozen_running_stats, network_of, plain, unwrap
from .lean_layers import LEAN_CLASS, LeanBatchNorm2d, LeanBatchNormAct2d, is_frozen_norm
from .planning import Plan, plan
from .recompute_layers import NOTING_CLASS


def lean(model: nn.Module, recompute: str = "auto", approximate: bool = False) -> nn.Module:
    """Give the frozen part of ``model`` its leanest form for training, in place.

    Gradients of all that trains are those of the plain model within float tolerance, and ``state_dict`` and the saved adapter
    file are the same.  Under ``torch.no_grad()``, in evaluation therefore, every layer computes exactly as the plain one.
    :func:`minica.fit` uses the lean form by default, and undoes it.

    The folded weights are a second copy of the convolutions that they stand in for, in float32 also under autocast.

    **What ends it**: :func:`minica.plain`, :func:`minica.detach`, and another ``adapt`` or ``tune``.  Everything else keeps it:
    every layer checks in each forward pass that the lean form is still right.  After ``load_state_dict``, ``switch`` or a move
    to another device or type the folded weights are computed anew; a layer that was thawed, or a norm that learns its
    statistics, computes plainly until it is frozen again.  Three things are not noticed, after which ``lean`` must be called
    again: values written through ``tensor.data`` (``weight.data.mul_(2)``), which PyTorch's version counters do not see; in
    compiled code, which does not compare tensors, any other new values of frozen tensors than by ``load_state_dict``; and a
    norm that is called without the convolution before it.  The transforms of ``torch.func`` need the plain form.

    **Threads**: concurrent forward and backward passes of a lean model are safe.  Entering and leaving the lean form is not,
    nor is changing the model while another thread runs it.

    Args:
        model: any network, usually prepared by :func:`minica.adapt` or :func:`minica.tune` and on the device that it will
            train on.  Where a part of it was adapted, with ``backbone=`` or by itself, that part becomes lean and the rest is
            left as it is.
        recompute: what backward computes again instead of keeping it.  ``"auto"``: what costs next to nothing (a smooth
            activation, a norm or the product of an adapter's weight and alpha, from what is kept anyway), and a frozen
            convolution or linear layer in front of them where it costs at most 512 multiply-accumulates for each element that
            is saved: those of its output, if something keeps that, less those of its input, if nothing keeps that already.
            In ConvNeXt the first linear layer of each MLP of up to 512 channels is computed again.  Compiled code recomputes
            what its compiler chooses.  ``"stages"``: let timm checkpoint the stages (``set_grad_checkpointing``), for about a
            third more time; in ResNets it needs more memory than the lean form alone.  ``"none"``: nothing.
        approximate: let a smooth activation (GELU, SiLU, Hardswish) whose output nobody needs keep its derivative in one byte
            an element, to the nearest 127th, instead of having its input again.  Layers whose recomputation saves more than
            that at the rate above are still computed again.  The gradient's cosine with the exact one is above 0.9999 in
            every family.

    Returns:
        The same model.

    Raises:
        ValueError: for an unknown ``recompute``, or if ``"stages"`` is asked of a model that has no such method, or together
            with ``approximate``; the model is left plain.
    """
    plain(model)
    check_choice(recompute, "recompute", ("auto", "none", "stages"))
    if approximate and recompute == "stages":
        raise ValueError('approximate=True keeps what recompute="stages" computes again; use recompute="auto" or "none".')
    found = networks(model)
    for network in found if recompute == "stages" else ():
        if not hasattr(network, "set_grad_checkpointing"):
            raise ValueError(
                f'{type(network).__name__} has no set_grad_checkpointing, as timm\'s models do; use recompute="auto".'
            )
    for network in found:
        if recompute == "stages":
            network.set_grad_checkpointing(True)
            network._lean_checkpoint = True
        _make_lean(network, recompute == "auto", approximate)
    model._ddp_params_and_buffers_to_ignore = [
        key for key, _ in model.named_buffers() if key.rpartition(".")[2] in Lean.BUFFERS
    ]
    return model


def networks(model: nn.Module) -> list[nn.Module]:
    """The networks that were adapted inside ``model``, or the model itself: what is traced and made lean.

    Raises:
        AdaptersDetached: if adapters are no longer where they were put.
    """
    return [network_of(part) for part in check_parts(model).values()] or [unwrap(model)]


def _make_lean(network: nn.Module, again: bool, approximate: bool) -> None:
    try:
        run = trace(network)
    except Exception:  # without a run of the network no BatchNorm is folded; all else needs no run
        run = Trace()
    modules = dict(network.named_modules())
    norms = {name: norm for name, norm in foldable(network, run).items() if _pads_with_numbers(modules[name])}
    kept = {call.received[0] for call in run.calls if call.received and _trains(call.module)}
    planned = plan(network, run, norms, approximate, again) if again or approximate else Plan()
    folded = {}
    for name, module in modules.items():
        lean_class = LEAN_CLASS.get(type(module))
        if lean_class is None:
            if name in planned.noting:
                module.__class__ = NOTING_CLASS[type(module)]
                module.__dict__ |= dict(lean_byte=True) if name in planned.in_a_byte else {}
            continue
        if isinstance(module, nn.Conv2d):
            if not module.weight.requires_grad and _pads_with_numbers(module):
                module.__class__ = lean_class
                norm = norms.get(name)
                module.prepare(norm, [] if norm is None else _places(modules, module, norm))
                folded |= {} if norm is None else {norm: module.lean_prepared}
        elif isinstance(module, nn.BatchNorm2d):
            if is_frozen_norm(module):
                module.__class__ = lean_class
        elif isinstance(module, nn.Linear):
            if not module.weight.requires_grad:
                module.__class__ = lean_class
        elif name in planned.passing or not all(
            call.returned in kept for call in run.by_name.get(name, [Call(name, module, [], 0, None)])
        ):
            module.__class__ = lean_class
        if name in planned.again and isinstance(module, Lean):
            module.lean_again = True
    for module in modules.values():
        if isinstance(module, (LeanBatchNorm2d, LeanBatchNormAct2d)):
            module.prepare(folded.get(module))


def _pads_with_numbers(conv: nn.Conv2d) -> bool:
    """Others ("same", reflected) are left as they are, and so is a norm behind them."""
    return not isinstance(conv.padding, str) and conv.padding_mode == "zeros"


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters(recurse=False))


def _places(modules: dict[str, nn.Module], *wanted: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """The parent of each module, and its name in it."""
    names = {module: name.rpartition(".") for name, module in modules.items()}
    return [(modules[names[module][0]], names[module][2], module) for module in wanted if names[module][2]]


# ---------------------------------------------------------------- which BatchNorms can be folded


def foldable(model: nn.Module, run: Trace) -> dict[str, nn.BatchNorm2d]:
    """Convolution's name -> the BatchNorm that can be folded into it.

    The two run once, one right after the other, nothing else takes what is between them, and no hook looks at it.
    """
    modules = dict(model.named_modules())
    watched = {_number(run, place) for _, site in sites(model) for place in (site.begin, site.end)}
    found = {}
    for call in run.calls:
        norm = modules[call.name]
        if LEAN_CLASS.get(type(norm)) not in (LeanBatchNorm2d, LeanBatchNormAct2d) or len(run.by_name[call.name]) != 1:
            continue
        given = feeding_conv(run, call, modules)
        if given is None:
            continue
        conv = modules[given.name]
        alone = all(call.begin <= at < call.end for at in run.uses[given.returned])
        frozen = is_frozen_norm(norm) and not _trains(norm) and not _trains(conv)
        seen = given.returned in watched or conv._forward_hooks or len(norm._forward_pre_hooks) > has_frozen_running_stats(norm)
        if alone and frozen and not seen:
            found[given.name] = norm
    return found


def feeding_conv(run: Trace, norm: Call, modules: dict[str, nn.Module]) -> Call | None:
    """The call of the convolution whose output ``norm`` receives, if only layers that do nothing receive it as well."""
    for call in run.calls:
        conv = modules[call.name]
        if call.returned is not None and call.returned in norm.received and isinstance(conv, nn.Conv2d):
            others = [
                other for other in run.receivers.get(call.returned, ()) if not f"{norm.name}.".startswith(f"{other.name}.")
            ]
            once = len(run.by_name[call.name]) == 1 and type(conv) in LEAN_CLASS
            if once and all(isinstance(other.module, nn.Identity) for other in others):
                return call
    return None


def _number(run: Trace, place) -> int | None:
    """The tensor at a place of the running network."""
    for call in run.by_name.get(place.module, ()):
        return call.returned if place.side == "output" else next(iter(call.received), None)
    return None
