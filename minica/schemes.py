"""Attach and switch: a scheme is where you read and where you write."""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import NamedTuple

from torch import Tensor, nn

from .adapter import ConvAdapter
from .anatomy import Part, Spec, anatomy, checked_spec, classifier_names
from .counting import adapter_parameters, bottleneck_width
from .discovery import skeleton
from .freezing import (
    Attachment,
    attachments,
    backbone_parameters,
    detach,
    freeze,
    hold_statistics,
    trained_tensors,
)


class Scheme(NamedTuple):
    """What is adapted, and which end of it the adapter reads.  Every scheme writes to the part's output."""

    part: str  # "unit" or "block" (or "stage")
    reads: str  # "input": in parallel, with the part's stride.  "output": in sequence, with stride 1.


# Section 3.4 and Figure 3, in the paper's order.  In every one, h <- h + alpha * Adapter(read).
SCHEMES = {
    "conv_parallel": Scheme("unit", "input"),
    "conv_sequential": Scheme("unit", "output"),
    "residual_parallel": Scheme("block", "input"),
    "residual_sequential": Scheme("block", "output"),
}
# Section 3.4 argues against adapting whole stages, and Table 5 measures it.
ABLATIONS = {"stage_parallel": Scheme("stage", "input")}


class UnsupportedScheme(ValueError):
    """The network has units but no blocks, or the other way round."""


# ---------------------------------------------------------------- reading and writing


class _Seen(threading.local):
    """What a thread has seen of the forward pass that it is in; a copy or a pickle has seen nothing."""

    value: Tensor | None = None

    def __reduce__(self):
        return _Seen, ()


class Site(Attachment, nn.ModuleDict):
    """The adapters of one part, one a name, and the two places of the running network that they hang on.

    It is a child of the part's module, so that its parameters add keys and change none, and its hooks are bound methods, so
    that copies and pickles of the model use their own adapters.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part_name, self.layout, self.begin, self.end = part.name, part.layout, part.begin, part.end
        self.reads: dict[str, str] = {}  # adapter name -> which end of the part it reads
        self.active: str | None = None
        self.seen = _Seen()  # the part's input, between its beginning and its end

    def hang(self, model: nn.Module) -> None:
        begin, end = model.get_submodule(self.begin.module), model.get_submodule(self.end.module)
        if self.begin.side == "output":
            begin.register_forward_hook(self.keep_output)
        elif begin is not end:  # of one module, ``write`` is given input and output together
            begin.register_forward_pre_hook(self.keep_input)
        if self.end.side == "input":
            end.register_forward_pre_hook(self.write_input)
        else:
            end.register_forward_hook(self.write)

    def keep_input(self, module: nn.Module, args: tuple) -> None:
        if self.active is not None and self.reads[self.active] == "input":
            self.seen.value = args[0]

    def keep_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.keep_input(module, (output,))

    def write(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if self.active is None:
            return None
        if isinstance(output, tuple):  # a block may return more than its map
            return (self.write(module, args, output[0]), *output[1:])
        read = output
        if self.reads[self.active] == "input":
            if self.begin == (self.end.module, "input"):
                read = args[0]
            else:
                read, self.seen.value = self.seen.value, None
        size = self.to_maps(output).shape[-2:]
        # Out of place: the output may be what an in-place activation keeps for its backward pass.
        return output + self.from_maps(self[self.active](self.to_maps(read), (size[0], size[1])))

    def write_input(self, module: nn.Module, args: tuple) -> tuple | None:
        adapted = self.write(module, args, args[0])
        return None if adapted is None else (adapted, *args[1:])

    def to_maps(self, x: Tensor) -> Tensor:
        """To (N, C, H, W): from (N, H, W, C), or from (N, tokens, C) as a map one pixel wide."""
        if self.layout == "nhwc":
            return x.permute(0, 3, 1, 2)
        return x.transpose(1, 2).unsqueeze(-1) if self.layout == "tokens" else x

    def from_maps(self, x: Tensor) -> Tensor:
        if self.layout == "nhwc":
            return x.permute(0, 2, 3, 1)
        return x.squeeze(-1).transpose(1, 2) if self.layout == "tokens" else x

    def extra_repr(self) -> str:
        return f"active={self.active}"


def sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """Every adapted part of ``model``: the name of the module that holds it, and the site."""
    for name, module in model.named_modules():
        if isinstance(module, Site):
            yield name, module


# ---------------------------------------------------------------- adapt


def adapt(
    model: nn.Module,
    scheme: str = "conv_parallel",
    compression: float = 4,
    kernel_size: int | None = None,
    name: str = "default",
    *,
    form: str = "depthwise",
    init: str = "identity",
    num_classes: int | None = None,
    stages: Collection[int] | None = None,
    spec: Spec | None = None,
) -> nn.Module:
    """Freeze ``model`` and attach one Conv-Adapter to each of its units or blocks, in place.

    Everything but the adapters and the classifier is frozen, BatchNorm statistics included, whatever ``model.train()`` is
    told later.  Adapters take the model's device and dtype.

    Args:
        model: a ConvNet of timm, or any network whose blocks :mod:`minica.anatomy` knows.
        scheme: one of :data:`SCHEMES`, or the ablation ``"stage_parallel"``.
        compression: the paper's gamma, at least 1.
        kernel_size: the paper's K; ``None`` takes each unit's own.  Down-sampling convolutions keep theirs.
        name: what this set of adapters is called; a second set needs another name and becomes the active one.  Each set has a
            classifier of its own, see :func:`switch`.
        form: ``"depthwise"``, or one of Table 5's ablations ``"regular"``, ``"linear"`` and ``"spatial"``.
        init: ``"identity"`` starts from the backbone's own output; ``"published"`` as the published code does, family by
            family; or one of :data:`minica.adapter.INITS`.
        stages: adapt only these of the network's stages, counted from 1; ``None`` all.  What comes before the first of them
            is as frozen as without adapters, and :func:`minica.fit` can keep its output (``cache=True``).
        num_classes: give the set a new classifier with as many outputs; ``None`` starts from a copy of the model's own.
        spec: where the blocks and units of a network are that :func:`minica.anatomy.anatomy` reads wrongly, by class:
            ``{"MyBlock": Row((Unit("conv1"),))}``.  The adapter file carries it.

    Returns:
        The same model.

    Raises:
        ValueError: for an unknown scheme, a compression below 1, a name that is taken or holds a dot, stages that
            the network lacks, a spec that does not fit it, or a number of classes below 1 or for a model without a classifier.
        UnsupportedBackbone: if the network has no part that the scheme adapts.  In each case the model is left untouched.
    """
    if scheme not in SCHEMES | ABLATIONS:
        raise ValueError(f"unknown scheme {scheme!r}; choose one of {', '.join(SCHEMES)}.")
    if not re.fullmatch(r"\w+", name) or hasattr(Site, name) or name in ("reads", "active", "begin", "end", "layout", "seen"):
        raise ValueError(f"an adapter's name becomes part of its keys: letters, digits and _ only, got {name!r}.")
    if name in adapter_names(model):
        raise ValueError(f"the model already has adapters named {name!r}; choose another name or detach them first.")
    bottleneck_width(1, compression)  # raises for a compression below 1, before anything is touched
    if num_classes is not None:
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"num_classes must be a whole number, at least 1, got {num_classes!r}.")
        if not output_layers(model):
            raise ValueError(f"{type(model).__name__} has no linear classifier to be replaced; leave num_classes out.")
    spec = None if spec is None else checked_spec(model, spec)
    parts = plain_anatomy(model, spec)
    here = parts if stages is None else _in_stages(parts, stages)
    chosen = _parts_of(here, scheme, model)
    adapters = [
        ConvAdapter(
            **_shape(part, scheme, kernel_size),
            act_layer=lambda part=part: copy.deepcopy(part.act),
            compression=compression,
            form="linear" if part.kind == "pool" else form,
            init=part.init if init == "published" else init,
            same_padding=part.same_padding,
            **_factory(model, part),
        )
        for part in chosen
    ]
    switch(model, None)
    freeze(model)
    spec = model._minica.setdefault("spec", spec)
    model._minica["parts"] = parts
    for part, adapter in zip(chosen, adapters, strict=True):
        host = model.get_submodule(part.host)
        child = {"block": "residual_adapter", "stage": "stage_adapter"}.get(part.kind, "conv_adapter")
        site = getattr(host, child, None)
        if site is None:
            site = Site(part)
            host.add_module(child, site)
            site.hang(model)
        site[name], site.reads[name] = adapter.train(model.training), _reads(part, scheme)
    model._minica["adapters"][name] = dict(
        scheme=scheme, compression=compression, kernel_size=kernel_size, form=form, init=init, norms="none"
    )
    given = {"stages": None if stages is None else sorted(stages), "spec": spec}
    model._minica["adapters"][name] |= {key: value for key, value in given.items() if value is not None}
    model._minica["method"] = "conv_adapter"
    for classifier in classifier_names(model):
        model.get_submodule(classifier).requires_grad_(True)
    make_own(model)
    if num_classes is not None:
        _new_classifier(model, num_classes)
    switch(model, name)
    hold_statistics(model)
    _warn_if_heavy(model, here, scheme, compression, kernel_size, form)
    return model


def plain_anatomy(model: nn.Module, spec: Spec | None = None) -> list[Part]:
    """The :func:`~minica.anatomy.anatomy` of the backbone alone, whatever is attached to it.

    Raises:
        ValueError: for a second spec while adapters hang where another, or none, put them.
    """
    state = getattr(model, "_minica", {})
    if "parts" not in state:
        return anatomy(detach(skeleton(model)) if attachments(model) else model, spec)
    if spec is not None and spec != state["spec"]:
        raise ValueError("the model's adapters were placed by another spec, or by none; detach them before you give this one.")
    return state["parts"]


def _parts_of(parts: list[Part], scheme: str, model: nn.Module) -> list[Part]:
    """What a scheme adapts: its units or blocks, and the parts between stages that belong to every scheme."""
    wanted = (SCHEMES | ABLATIONS)[scheme].part
    if not any(part.kind == wanted for part in parts):
        raise UnsupportedScheme(
            f"{type(model).__name__} has no residual {wanted}, so {scheme!r} has nothing to adapt; "
            f"use {' or '.join(name for name, other in SCHEMES.items() if other.part != wanted)}."
        )
    return [part for part in parts if part.kind in (wanted, "downsample", "pool")]


def _in_stages(parts: list[Part], stages: Collection[int]) -> list[Part]:
    """The parts in some stages: runs of blocks with one parent.  What stands between two stages belongs to the later one."""
    names = list(dict.fromkeys(part.name.rpartition(".")[0] for part in parts if part.kind == "block"))
    known = range(1, len(names) + 1)
    if not isinstance(stages, Collection) or not stages or not all(number in known for number in stages):
        raise ValueError(f"stages must be some of 1 to {len(names)}, which this network has; got {stages!r}.")
    found, number = [], len(names)
    for part in reversed(parts):  # in the order in which they run, units before their block
        if part.kind == "block":
            number = names.index(part.name.rpartition(".")[0]) + 1
        if (names.index(part.name) + 1 if part.kind == "stage" else number) in stages:
            found.append(part)
    return found[::-1]


def _reads(part: Part, scheme: str) -> str:
    """Which end of a part the adapter reads: ConvNeXt's convolutions between stages are read in parallel but for one scheme."""
    if part.kind == "downsample":
        return "output" if scheme == "residual_sequential" else "input"
    return (SCHEMES | ABLATIONS)[scheme].reads


def _shape(part: Part, scheme: str, kernel_size: int | None) -> dict:
    """Channels, kernel and stride of the adapter that ``scheme`` gives a part."""
    sequential = _reads(part, scheme) == "output"
    if part.kind == "downsample":
        kernel = 1 if sequential else part.kernel_size
    else:
        kernel = part.kernel_size if kernel_size is None or part.kind == "pool" else kernel_size
    return dict(
        in_channels=part.out_channels if sequential else part.in_channels,
        out_channels=part.out_channels,
        kernel_size=kernel,
        stride=1 if sequential else part.stride,
        dilation=part.dilation,
    )


def _factory(model: nn.Module, part: Part) -> dict:
    """Device and floating-point type of the part's own weights."""
    for module in (model.get_submodule(part.host), model):
        for weight in module.parameters():
            if weight.is_floating_point():
                return dict(device=weight.device, dtype=weight.dtype)
    return {}


def planned_parameters(
    parts: list[Part], scheme: str, compression: float, kernel_size: int | None = None, form: str = "depthwise"
) -> int:
    """How many parameters the adapters of a scheme would have on these parts, in closed form."""
    wanted, total = (SCHEMES | ABLATIONS)[scheme].part, 0
    for part in parts:
        if part.kind in (wanted, "downsample", "pool"):
            shape = _shape(part, scheme, kernel_size)
            total += adapter_parameters(
                shape["in_channels"],
                shape["out_channels"],
                kernel_size=shape["kernel_size"],
                compression=compression,
                form="linear" if part.kind == "pool" else form,
            )
    return total


HEAVY = 0.2  # adapters above this share of the backbone are hardly parameter-efficient


def _warn_if_heavy(model, parts, scheme, compression, kernel_size, form) -> None:
    backbone = sum(weight.numel() for weight in backbone_parameters(model))
    counts = {other: planned_parameters(parts, other, compression, kernel_size, form) for other in {**SCHEMES, scheme: None}}
    if counts[scheme] > HEAVY * backbone:
        present = {part.kind for part in parts}
        cheaper = min((other for other in SCHEMES if SCHEMES[other].part in present), key=counts.__getitem__)
        advice = (
            f"{cheaper!r} would have {counts[cheaper] / backbone:.1%}"
            if counts[cheaper] < counts[scheme]
            else "a larger compression would have fewer"
        )
        warnings.warn(
            f"{scheme!r} at compression {compression:g} adds {counts[scheme]:,} parameters, "
            f"{counts[scheme] / backbone:.1%} of this backbone; {advice}.",
            stacklevel=3,
        )


# ---------------------------------------------------------------- looking and switching


def adapters(model: nn.Module, name: str | None = None) -> dict[str, ConvAdapter]:
    """``{dotted place: adapter}``, for the set called ``name`` or, by default, the active one."""
    found = {}
    for _, site in sites(model):
        key = name if name is not None else site.active
        if key is not None and key in site:
            found[site.part_name] = site[key]
    return found


def adapter_names(model: nn.Module) -> list[str]:
    """The names of all sets of adapters that the model holds."""
    return sorted({name for _, site in sites(model) for name in site})


def switch(model: nn.Module, name: str | None) -> nn.Module:
    """Use the set of adapters called ``name``, or none at all: the frozen backbone as it was, its classifier included.

    Only the set in use trains.  What trains beside its adapters, its classifier above all, is the set's own and comes and goes
    with it; a set's classifier may have another size than the next one's.  All share one backbone.

    Raises:
        ValueError: if there is no set of that name.
    """
    if name is not None and name not in adapter_names(model):
        raise ValueError(f"no adapters named {name!r}; the model has {', '.join(adapter_names(model)) or 'none'}.")
    before = active_set(model)
    if name == before:
        return model
    beside = model._minica["beside"]
    if before is not None:
        beside[before] = {key: attrgetter(key)(model) for key in beside[None]}
        _put(model, beside[None])
    if name is not None:
        _put(model, beside.pop(name, {}))
    for _, site in sites(model):
        site.active = name if name in site else None
        for other, adapter in site.items():
            adapter.requires_grad_(other == name and not model._minica.get("folded"))
    hold_statistics(model)
    return model


@contextmanager
def switched(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """:func:`switch`, and back to the set that was in use when the ``with`` block ends, however it ends."""
    before = active_set(model)
    try:
        yield switch(model, name)
    finally:
        switch(model, before)


def active_set(model: nn.Module) -> str | None:
    """The name of the set of adapters in use."""
    return next((site.active for _, site in sites(model) if site.active is not None), None)


def backbone_values(model: nn.Module) -> dict[str, Tensor]:
    """What the plain backbone has where any set trains something else beside its adapters."""
    return getattr(model, "_minica", {}).get("beside", {}).get(None, {})


def make_own(model: nn.Module) -> None:
    """Let what trains beside the adapters in use be a copy; the backbone's own tensors wait for when they are switched off."""
    base, added = model._minica["beside"].setdefault(None, {}), tuple(f"{attached}." for attached in attachments(model))
    trains = {key: value for key, value in trained_tensors(model).items() if not key.startswith(added)}
    shared = {key: value for key, value in trains.items() if base.setdefault(key, value) is value}
    _put(model, {key: copy.deepcopy(value) for key, value in shared.items()})
    for value in shared.values():
        value.requires_grad_(False)


def _put(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the model these parameters and buffers for its own of the same keys."""
    for key, value in tensors.items():
        owner, _, name = key.rpartition(".")
        module = model.get_submodule(owner)
        here = getattr(module, name)
        if (value.device, value.dtype) != (here.device, here.dtype):  # the model has moved meanwhile
            moved = value.detach().to(here)
            tensors[key] = value = nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved
        setattr(module, name, value)
    _tell_size(model)


# ---------------------------------------------------------------- classifiers of several sizes


def output_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers or convolutions that give the logits, by name: the last one of each classifier."""
    found = {}
    for classifier in classifier_names(model):
        inside = model.get_submodule(classifier).named_modules(prefix=classifier)
        found |= [(name, layer) for name, layer in inside if isinstance(layer, (nn.Linear, nn.Conv2d))][-1:]
    return found


def _new_classifier(model: nn.Module, num_classes: int) -> None:
    for layer in output_layers(model).values():
        for name, weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(weight.new_empty(num_classes, *weight.shape[1:])))
        layer.reset_parameters()
    _tell_size(model)


def _tell_size(model: nn.Module) -> None:
    """Let the classifier and what it is part of say how many classes its weights have."""
    for name, layer in output_layers(model).items():
        entry = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        before, classes = getattr(layer, entry), layer.weight.shape[0]
        setattr(layer, entry, classes)
        above = name.split(".")[:-1]
        for module in (model.get_submodule(".".join(above[:depth])) for depth in range(len(above) + 1)):
            if getattr(module, "num_classes", None) == before:
                module.num_classes = classes
