"""The four schemes, each a place to read and a place to write, and ``adapt``, which puts adapters there."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection
from typing import NamedTuple

import psutil
import torch
from torch import nn

from . import recipe
from .adapter import ConvAdapter
from .anatomy import Part, Spec
from .counting import adapter_parameters, check_choice, check_compression, check_kernel_size, check_whole
from .discovery import checked_spec, find_parts, skeleton
from .hooks import Site


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


# ---------------------------------------------------------------- adapt


def adapt(
    model: nn.Module,
    scheme: str = "conv_parallel",
    compression: float = 4,
    kernel_size: int | tuple[int, int] | None = None,
    name: str = "default",
    *,
    form: str = "depthwise",
    init: str = "identity",
    num_classes: int | None = None,
    stages: Collection[int] | None = None,
    spec: Spec | None = None,
    train: str | Collection[str] = (),
    backbone: str | None = None,
) -> nn.Module:
    """Freeze ``model`` and attach one Conv-Adapter to each of its units or blocks, in place.

    Everything but the adapters, the classifier and what ``train`` names is frozen, BatchNorm statistics included, whatever
    ``model.train()`` is told later.  What trains is declared here once: the flags of the parameters follow from it, and
    setting them by hand changes nothing that is saved.  Adapters take the model's device and dtype.

    Args:
        model: a ConvNet of timm, or any network whose blocks :mod:`minica.discovery` finds.
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
        spec: where the blocks and units of a network are that :func:`minica.discovery.find_parts` reads wrongly, by class:
            ``{"MyBlock": Row((Unit("conv1"),))}``.  The adapter file carries it.
        train: names of modules or parameters that train as well, or fnmatch patterns; a name covers what is below it, and
            a module's buffers: a decoder, or a head that is not recognised as a classifier.
        backbone: the dotted name of the network to adapt inside a larger model, such as ``"backbone.body"`` of a detector.

    Returns:
        The same model.

    Raises:
        ValueError: for a wrong argument (named, with what was expected), such as a name that is taken, stages that the network
            lacks or a spec that does not fit it; for a model that another method prepared.
        UnsupportedBackbone: if the network has no part that the scheme adapts.
        AdaptersDetached: if adapters that it had are no longer where they were put.  The model is left untouched each time.
    """
    whole = recipe.unwrap(model)
    network, place = _network(whole, backbone)
    state = recipe.state_of(whole)
    _check_set(whole, scheme, name, num_classes)
    compression = check_compression(compression)
    kernel_size = None if kernel_size is None else check_kernel_size(kernel_size)
    train, beside = recipe.named_tensors(whole, train)
    own = recipe.with_aliases(whole, recipe.keys_below(whole, recipe.classifier_names(whole, place)) + beside)
    spec = _same_spec(state, None if spec is None else checked_spec(network, spec))
    parts = find_parts(recipe.strip(skeleton(network)), spec)
    parts = parts if stages is None else _in_stages(parts, stages)
    chosen = _parts_of(parts, scheme, network)
    _check_memory(network, planned_parameters(parts, scheme, compression, kernel_size, form), f"{compression=}, {kernel_size=}")
    adapters = [
        ConvAdapter(
            **_shape(part, scheme, kernel_size),
            act_layer=lambda part=part: copy.deepcopy(part.act),
            compression=compression,
            form="linear" if part.kind == "pool" else form,
            init=part.init if init == "published" else init,
            same_padding=part.same_padding,
            **_factory(network, part),
        )
        for part in chosen
    ]
    # Nothing is refused from here on.
    recipe.carry(whole, place)
    recipe.switch(whole, None)
    for part, adapter in zip(chosen, adapters, strict=True):
        host = network.get_submodule(part.host)
        child = {"block": "residual_adapter", "stage": "stage_adapter"}.get(part.kind, "conv_adapter")
        site = getattr(host, child, None)
        if site is None:
            site = Site(part)
            host.add_module(child, site)
            site.register_hooks(network)
        site[name], site.reads[name], site.active = adapter, _reads(part, scheme), name
        site.train(network.training)
    options = dict(scheme=scheme, compression=compression, kernel_size=kernel_size, form=form, init=init)
    options |= {
        key: value for key, value in dict(stages=stages and sorted(map(int, stages)), spec=spec).items() if value is not None
    }
    recipe.untie_from_backbone(whole, own)
    if num_classes is not None:
        recipe.new_classifier(whole, int(num_classes))
    recipe.declare(whole, name, recipe.Recipe("conv_adapter", options, own, train=train))
    _warn_if_heavy(network, parts, scheme, compression, kernel_size, form)
    recipe.warn_about_heads(whole)
    return model


def _network(whole: nn.Module, backbone: str | None) -> tuple[nn.Module, str]:
    """The network to adapt inside ``whole``, and its name there."""
    if inside := [name for name in recipe.check_parts(whole) if name]:
        remedy = f"minica.detach it and adapt the whole with backbone={inside[0]!r}, train=(...)"
        raise ValueError(f"its part {inside[0]!r} was adapted by itself: go on with that part, or {remedy}.")
    state = recipe.state_of(whole)
    default = "" if state is None else state.network
    place = default if backbone is None else backbone
    network = recipe.part_of(whole, place)
    if state is not None and place != default:
        raise ValueError(f"the model's adapters are in backbone={default!r}; detach them before you adapt {place!r}.")
    return network, place


def _check_set(whole: nn.Module, scheme: str, name: str, num_classes: int | None) -> None:
    check_choice(scheme, "scheme", SCHEMES | ABLATIONS)
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name) or name in Site.TAKEN:
        raise ValueError(f"name becomes part of keys: no attribute of a module, letters, digits and _ only, got {name!r}.")
    state = recipe.state_of(whole)
    if state is not None and (state.folded or not recipe.adapter_names(whole)):
        how = "fold" if state.folded else f"tune(model, {recipe.active_recipe(whole).method!r})"
        raise ValueError(f"the model was prepared by {how}; minica.detach it, or take a fresh one, before you adapt it.")
    if name in recipe.adapter_names(whole):
        raise ValueError(f"the model already has adapters named {name!r}; choose another name or detach them first.")
    if num_classes is not None:
        check_whole(num_classes, "num_classes", 1)
        layers = recipe.output_layers(whole)
        if not layers:
            raise ValueError(f"{type(whole).__name__} has no linear classifier to be replaced; leave num_classes out.")
        _check_memory(whole, int(num_classes) * sum(layer.weight[0].numel() for layer in layers.values()), f"{num_classes=}")


def _same_spec(state: recipe.Adapted | None, spec: Spec | None) -> Spec | None:
    """The spec that placed the adapters that the model has; all sets share it."""
    if state is None:
        return spec
    theirs = next(iter(state.recipes.values())).options.get("spec")
    if spec is not None and spec != theirs:
        raise ValueError("the model's adapters were placed by another spec, or by none; detach them before you give this one.")
    return theirs


def _check_memory(network: nn.Module, numbers: int, what: str) -> None:
    """Refuse what does not fit, before anything is touched."""
    weight = next(network.parameters())
    free = torch.cuda.mem_get_info(weight.device)[0] if weight.is_cuda else psutil.virtual_memory().available
    need = 0 if weight.is_meta else numbers * weight.element_size()
    if need > free:
        raise ValueError(f"{what} would need {need // 10**9:,} GB for new weights, of which {free / 1e9:,.0f} GB are free.")


def _parts_of(parts: list[Part], scheme: str, model: nn.Module) -> list[Part]:
    """What a scheme adapts: its units or blocks, and the parts between stages that belong to every scheme."""
    wanted = (SCHEMES | ABLATIONS)[scheme].part
    if not any(part.kind == wanted for part in parts):
        others = " or ".join(name for name, other in SCHEMES.items() if other.part != wanted)
        raise UnsupportedScheme(f"{type(model).__name__} has no residual {wanted}, so {scheme!r} adapts nothing; use {others}.")
    return [part for part in parts if part.kind in (wanted, "downsample", "pool")]


def _in_stages(parts: list[Part], stages: Collection[int]) -> list[Part]:
    """The parts in some stages: runs of blocks with one parent.  What stands between two stages belongs to the later one."""
    names = list(dict.fromkeys(part.name.rpartition(".")[0] for part in parts if part.kind == "block"))
    known = range(1, len(names) + 1)
    numbers = stages if isinstance(stages, (list, tuple, set, frozenset, range)) else ()
    if not numbers or not all(number in known for number in numbers):
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
    weights = [*model.get_submodule(part.host).parameters(), *model.parameters()]
    return next((dict(device=weight.device, dtype=weight.dtype) for weight in weights if weight.is_floating_point()), {})


def planned_parameters(
    parts: list[Part], scheme: str, compression: float, kernel_size: int | None = None, form: str = "depthwise"
) -> int:
    """How many parameters the adapters of a scheme would have on these parts, in closed form."""
    wanted, total = (SCHEMES | ABLATIONS)[scheme].part, 0
    for part in parts:
        if part.kind in (wanted, "downsample", "pool"):
            shape = _shape(part, scheme, kernel_size)
            ends = shape["in_channels"], shape["out_channels"]
            how = dict(kernel_size=shape["kernel_size"], form="linear" if part.kind == "pool" else form)
            total += adapter_parameters(*ends, compression=compression, **how)
    return total


HEAVY = 0.2  # adapters above this share of the backbone are hardly parameter-efficient


def _warn_if_heavy(model, parts, scheme, compression, kernel_size, form) -> None:
    backbone = sum(weight.numel() for weight in recipe.backbone_parameters(model))
    counts = {other: planned_parameters(parts, other, compression, kernel_size, form) for other in {**SCHEMES, scheme: None}}
    if counts[scheme] > HEAVY * backbone:
        cheaper = min((other for other in SCHEMES if SCHEMES[other].part in {part.kind for part in parts}), key=counts.get)
        advice = f"{cheaper!r} would have {counts[cheaper] / backbone:.1%}"
        advice = advice if counts[cheaper] < counts[scheme] else "a larger compression would have fewer"
        size = f"{counts[scheme]:,} parameters, {counts[scheme] / backbone:.1%} of this backbone"
        warnings.warn(f"{scheme!r} at compression {compression:g} adds {size}; {advice}.", stacklevel=3)
