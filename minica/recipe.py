"""What a model carries once it is adapted or tuned: its recipes, and the tensors of sets of adapters that are not in use."""

from __future__ import annotations

import copy
import hashlib
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .adapter import ConvAdapter
from .discovery import check_module
from .hooks import AdaptersDetached, Site, attachments, lost_hooks, module_at, remove_attachments, remove_hooks, sites


@dataclass
class Recipe:
    """What one set of adapters, or another method, consists of.  It is declared once, by ``adapt`` or ``tune``."""

    method: str
    options: dict  # of the method, as JSON has them
    own: tuple[str, ...]  # state-dict keys of the network's own tensors that train: classifier, norms, ``train``
    norms: str = "none"
    train: tuple[str, ...] = ()  # what the caller named beside the method's own
    about: dict = field(default_factory=dict)  # the data that it was trained on


class _Lock:
    """One thread at a time may switch; a copy of the model has a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self):
        return _Lock, ()


@dataclass
class Adapted:
    """The state of an adapted or tuned model, as its attribute ``_minica``."""

    network: str  # dotted name of the network that is adapted inside the model; "" is the model itself
    requires_grad: dict[str, bool]  # of every parameter, before anything was frozen
    digests: dict[str, tuple[torch.dtype, str]]  # of every tensor that the model came with
    recipes: dict[str, Recipe] = field(default_factory=dict)  # by the name of the set
    active: str | None = None
    backbone: dict[str, Tensor] = field(default_factory=dict)  # the model's own that the set in use displaces
    aside: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # set not in use -> what it has of its own
    attached: tuple[str, ...] = ()  # names of all that was added, in the network
    frozen_stats: tuple[str, ...] = ()  # names of the layers whose running statistics are frozen
    added_biases: tuple[str, ...] = ()
    folded: bool = False
    switching: _Lock = field(default_factory=_Lock)


# ---------------------------------------------------------------- finding it


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``'s and the data-parallel wrappers.

    Raises:
        ValueError: if it is no module.
    """
    check_module(model)
    while isinstance(model, (DataParallel, DistributedDataParallel)) or "_orig_mod" in model._modules:
        model = model._modules["_orig_mod"] if "_orig_mod" in model._modules else model.module
    return model


def adapted_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that carry a recipe, by name: the model itself, or parts that were adapted by themselves."""
    return {name: module for name, module in model.named_modules() if "_minica" in vars(module)}


def check_parts(model: nn.Module) -> dict[str, nn.Module]:
    """:func:`adapted_parts`, once it is certain that nothing was taken away from any of them."""
    found = adapted_parts(unwrap(model))
    for part in found.values():
        check_attached(part)
    return found


def carrier(model: nn.Module) -> nn.Module:
    """The module that carries the recipe: ``model``, or the one part of it that was adapted by itself.

    Raises:
        ValueError: if several parts were.
    """
    found = adapted_parts(unwrap(model))
    if len(found) > 1:
        raise ValueError(f"several parts of the model were adapted by themselves: give one, of {', '.join(map(repr, found))}.")
    return next(iter(found.values()), unwrap(model))


def state_of(model: nn.Module) -> Adapted | None:
    """The state that this very module carries, if it does."""
    return vars(model).get("_minica")


def active_recipe(model: nn.Module) -> Recipe | None:
    """The recipe in use, of a module that carries one."""
    state = state_of(model)
    return None if state is None or state.active is None else state.recipes[state.active]


def network_of(model: nn.Module) -> nn.Module:
    """The network that is adapted inside ``model``; the model itself unless ``backbone=`` named another."""
    state = state_of(model)
    return model if state is None else model.get_submodule(state.network)


def part_of(model: nn.Module, backbone: str) -> nn.Module:
    """The part of the model that ``backbone`` names; a ValueError if there is none."""
    if not isinstance(backbone, str) or (part := module_at(model, backbone)) is None:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"backbone={backbone!r} is no part of {type(model).__name__}; its parts are {names}.")
    return part


def check_attached(model: nn.Module) -> None:
    """Raise :class:`AdaptersDetached` if anything that was added to ``model`` is no longer called where it was put."""
    state = state_of(model)
    if state is None:
        return
    network = module_at(model, state.network)
    lost = [state.network] if network is None else lost_hooks(network, state.attached)
    norms = [(name, module_at(model, name)) for name in state.frozen_stats]
    lost += [name for name, norm in norms if norm is None or not has_frozen_running_stats(norm)]
    if lost:
        remedy = "convert first and adapt then (SyncBatchNorm, timm's freeze), or minica.fold before reparameterize_model"
        what = f"modules were replaced after this {type(model).__name__} was adapted, and {lost[0]!r} is no longer called"
        raise AdaptersDetached(f"{what}: {remedy}; minica.detach(model) removes what is left.")


def _check_before_forward(model: nn.Module, args: tuple) -> None:
    if torch.compiler.is_compiling():
        return
    if getattr(model, "_is_replica", False):
        raise AdaptersDetached("replicas of DataParallel would run without their adapters; use DistributedDataParallel.")
    check_attached(model)


# ---------------------------------------------------------------- which tensors


def classifier_names(model: nn.Module, network: str = "") -> list[str]:
    """Dotted names of the modules that map features to classes; empty for a feature extractor.

    A classifier added behind a frozen projection (:mod:`minica.networks.clip`) comes first, then what timm names, then
    torchvision's ``fc``, ``classifier``, ``aux_classifier``, ``head`` and ``heads``.  Those of the network that was adapted
    inside the model belong to it as well.
    """
    check_module(model)
    if network:
        inside = [f"{network}.{name}" for name in classifier_names(model.get_submodule(network))]
        return list(dict.fromkeys([*classifier_names(model), *inside]))
    if isinstance(getattr(getattr(model, "head", None), "classifier", None), nn.Linear):
        return ["head.classifier"]
    if hasattr(model, "get_classifier"):
        found, names = model.get_classifier(), {module: name for name, module in model.named_modules()}
        return [names[head] for head in (found if isinstance(found, (tuple, list)) else [found]) if head in names]
    known = ("fc", "classifier", "aux_classifier", "head", "heads")
    return [name for name in known if isinstance(getattr(model, name, None), nn.Module)]


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters and persistent buffers, by state-dict key; nothing that was added."""
    added = {id(value) for name in attachments(model) for value in _tensors(model.get_submodule(name)).values()}
    return {key: value for key, value in _tensors(model).items() if id(value) not in added}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    found = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules(remove_duplicate=False):
        saved = module._buffers.keys() - module._non_persistent_buffers_set
        found |= {f"{prefix}.{name}".lstrip("."): module._buffers[name] for name in sorted(saved)}
    return {key: value for key, value in found.items() if value is not None}


def own_backbone(model: nn.Module) -> dict[str, Tensor]:
    """The same as the plain backbone has them, whatever a set of adapters has in their place."""
    state = state_of(model)
    return own_tensors(model) | ({} if state is None else state.backbone)


def keys_below(model: nn.Module, names: Iterable[str]) -> list[str]:
    """State-dict keys of the model's own tensors below the modules of these names."""
    starts = tuple(f"{name}." for name in names)
    return [key for key in own_tensors(model) if key.startswith(starts)]


def with_aliases(model: nn.Module, keys: Iterable[str]) -> tuple[str, ...]:
    """``keys``, and all others of the same tensors: of tied weights, and of modules that have two names."""
    own = own_tensors(model)
    wanted = {id(own[key]) for key in keys}
    return tuple(key for key, value in own.items() if id(value) in wanted)


def named_tensors(model: nn.Module, train: str | Collection[str]) -> tuple[tuple[str, ...], list[str]]:
    """``train`` as a tuple, and the keys that it covers: a name or an fnmatch pattern covers all that is below it.

    Raises:
        ValueError: for a name that matches no tensor of the model.
    """
    names = (train,) if isinstance(train, str) else train
    if not isinstance(names, (list, tuple, set, frozenset)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"train must be names of modules or parameters, such as ('decoder', 'head.*'); got {train!r}.")
    keys, found = list(own_tensors(model)), dict[str, None]()
    for name in names:
        if not (matched := covered(keys, name)):
            tops = ", ".join(dict.fromkeys(key.partition(".")[0] for key in keys))
            raise ValueError(f"train={name!r} matches no module or parameter of {type(model).__name__}; it has {tops}.")
        found |= dict.fromkeys(matched)
    return tuple(names), list(found)


def covered(keys: Iterable[str], name: str) -> list[str]:
    """Which of the state-dict keys a name or a pattern covers."""
    return [key for key in keys if any(fnmatchcase(part, name) for part in _from_the_top(key))]


def _from_the_top(key: str) -> Iterator[str]:
    """``a.b.weight`` -> ``a``, ``a.b``, ``a.b.weight``."""
    parts = key.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What the recipe in use consists of, by state-dict key.

    Without a recipe it is what requires a gradient, and the statistics that are not frozen.

    Raises:
        AdaptersDetached: if a tensor of the recipe is gone.
    """
    if state_of(model) is None:
        frozen = set(frozen_running_stats(model))
        moving = [name for name, module in model.named_modules() if _running(module) and module not in frozen]
        found = _tensors(model)
        return {key: value for key, value in found.items() if value.requires_grad or key.rpartition(".")[0] in moving}
    recipe, own, found = active_recipe(model), own_tensors(model), {}
    for key in () if recipe is None else recipe.own:
        if key in own:
            found[key] = own[key]
        elif not isinstance(module_at(model, key.rpartition(".")[0]), nn.Identity):  # which timm puts where a classifier was
            raise AdaptersDetached(f"{key!r}, which the recipe trains, is gone; minica.detach the model and prepare it again.")
    return found | attached_tensors(model)


def attached_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of what was added and is in use."""
    found = {}
    for name in attachments(model):
        attachment = model.get_submodule(name)
        if isinstance(attachment, Site):
            name, attachment = f"{name}.{attachment.active}", attachment[attachment.active] if attachment.active else None
        if attachment is not None:
            found |= {f"{name}.{key}": value for key, value in attachment.state_dict(keep_vars=True).items()}
    return found


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The numbers of :func:`trained_tensors`."""
    return {key: value.detach() for key, value in trained_tensors(model).items()}


def backbone_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter that is neither added nor the classifier's."""
    ours = tuple(f"{name}." for name in [*attachments(model), *classifier_names(model)])
    return (weight for key, weight in model.named_parameters() if not key.startswith(ours))


def check_flags(model: nn.Module) -> None:
    """Whether what requires a gradient is what the recipe trains.

    Raises:
        ValueError: naming a tensor for which it is not so.
        AdaptersDetached: if adapters are no longer where they were put.
    """
    for prefix, part in check_parts(model).items():
        trained = {} if state_of(part).folded else trained_tensors(part)
        for key, weight in part.named_parameters():
            if weight.requires_grad != (key in trained and weight.is_floating_point()):
                does, should = ("trains", "freezes") if weight.requires_grad else ("is frozen", "trains")
                what = f"{f'{prefix}.{key}'.lstrip('.')!r} {does}, and the recipe of the model {should} it"
                raise ValueError(f"{what}: name what trains in train= of minica.adapt or tune, and leave requires_grad alone.")


def warn_about_heads(model: nn.Module) -> None:
    """Name what is likely a new head or decoder and is not trained: parts with weights registered behind what is adapted.

    Parts of a timm network are its own, pre-trained; so is everything beside a classifier that was recognised.
    """
    place, found = state_of(model).network, []
    if not place and (hasattr(model, "get_classifier") or keys_below(model, classifier_names(model))):
        return
    timm = [name for name, module in model.named_modules() if hasattr(module, "get_classifier")]
    known = [f"{name}." for name in [*attachments(model), *timm, *filter(None, [place])]]
    for name, _ in model.named_modules():
        here = f"{name}." if name else ""
        if here.startswith(tuple(known)):
            found.clear()  # what stands before the network, or in it, is none
        elif not any(other.startswith(here) for other in known) and not here.startswith(tuple(f"{other}." for other in found)):
            found += [name] if keys_below(model, [name]) else []
    own = set(active_recipe(model).own)
    if frozen := [name for name in found if not own.issuperset(keys_below(model, [name]))]:
        names = ", ".join(map(repr, frozen))
        what = f"{names} of this {type(model).__name__} stays frozen, since it is not recognised as a classifier"
        warnings.warn(f"{what}; if it is a new head or decoder, let it train: train=({names},).", stacklevel=3)


# ---------------------------------------------------------------- preparing and freezing


def carry(model: nn.Module, network: str = "") -> Adapted:
    """The state of ``model``; on first use it is made, from the plain model."""
    plain(model)
    if "torch._dynamo" in sys.modules:  # compiled code does not notice new hooks
        torch.compiler.reset()
    if state_of(model) is None:
        flags = {key: weight.requires_grad for key, weight in model.named_parameters()}
        model._minica = Adapted(network, flags, digests(own_tensors(model)))
        model.register_forward_pre_hook(_check_before_forward)
        model.register_state_dict_post_hook(_add_sets)
        model.register_load_state_dict_pre_hook(_take_sets)
        model.register_load_state_dict_post_hook(_note_loaded)
    return model._minica


def declare(model: nn.Module, name: str, recipe: Recipe) -> None:
    """Make ``recipe`` the one in use: from now on it decides what trains, what is saved and what is frozen."""
    state = state_of(model)
    state.recipes[name], state.active, state.attached = recipe, name, tuple(attachments(network_of(model)))
    set_flags(model)


def set_flags(model: nn.Module) -> None:
    """Let exactly what the recipe in use consists of require a gradient, and freeze the running statistics of the rest."""
    trained = {} if state_of(model).folded else trained_tensors(model)
    for key, weight in model.named_parameters():
        weight.requires_grad_(key in trained and weight.is_floating_point())
    freeze_running_stats(model)


def freeze_running_stats(model: nn.Module) -> None:
    """Keep running statistics that the recipe does not train in evaluation mode, whatever ``train()`` says."""
    trained, frozen = trained_tensors(model), []
    for name, module in model.named_modules():
        release_running_stats(module)
        if (buffer := _running(module)) and f"{name}.{buffer}".lstrip(".") not in trained:
            module.register_forward_pre_hook(_evaluate)
            frozen.append(name)
    state_of(model).frozen_stats = tuple(frozen)


def frozen_running_stats(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that have running statistics, as BatchNorm and EvoNorm do, and do not train.

    Without a recipe these are the layers whose weight is frozen; a layer without a weight goes with what is around it.
    """
    carried = tuple(f"{part}.".lstrip(".") for part in adapted_parts(model))
    for name, module in model.named_modules():
        if _running(module) and carried and f"{name}.".startswith(carried):
            frozen = has_frozen_running_stats(module)
        else:
            around = [module_at(model, name.rpartition(".")[0]), model] if getattr(module, "weight", None) is None else [module]
            weights = next((found for place in around if (found := [*place.parameters()])), [])
            frozen = not any(weight.requires_grad for weight in weights)
        if _running(module) and frozen:
            yield module


def has_frozen_running_stats(module: nn.Module) -> bool:
    """Whether :func:`freeze_running_stats` keeps this layer in evaluation mode."""
    return _evaluate in module._forward_pre_hooks.values()


def release_running_stats(module: nn.Module) -> None:
    """Undo :func:`freeze_running_stats` for one layer."""
    remove_hooks(module, lambda hook: hook is _evaluate)


def _running(module: nn.Module) -> str | None:
    """The name of a layer's first buffer of running statistics."""
    return next((key for key, buffer in module._buffers.items() if "running" in key and buffer is not None), None)


def _evaluate(module: nn.Module, args: tuple) -> None:
    if module.training:
        module.training = False


def digests(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, str]]:
    """Type and SHA-256 of the bytes of each tensor; none of those without numbers."""
    return {key: (value.dtype, digest(value)) for key, value in tensors.items() if not value.is_meta}


def digest(value: Tensor) -> str:
    """The first half of a tensor's SHA-256, as hexadecimal digits."""
    numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(numbers).hexdigest()[:32]


def detach(model: nn.Module) -> nn.Module:
    """Remove all that was added, every hook included, and restore every ``requires_grad``: the backbone, as it was.

    What was trained of the network's own stays trained: its classifier and, after ``tune`` with ``"full"``, ``"bias"``,
    ``"norm"`` or ``norms=``, those weights.  Parts that were adapted by themselves are detached too.  A model that was never
    adapted comes back unchanged.
    """
    for part in adapted_parts(plain(unwrap(model))).values():
        strip(part)
        state = vars(part).pop("_minica")
        for name in state.added_biases:
            part.get_submodule(name).bias = None
        for key, weight in part.named_parameters():
            weight.requires_grad_(state.requires_grad.get(key, weight.requires_grad))
    return model


def strip(model: nn.Module) -> nn.Module:
    """Remove everything that was added to ``model`` and every hook of this package's."""
    remove_attachments(model)
    for module in model.modules():
        if has_frozen_running_stats(module):
            release_running_stats(module)
            module.training = model.training
        remove_hooks(module, lambda hook: hook is _check_before_forward)
        for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) in _STATE_DICT_HOOKS]:
                del hooks[key]
    return model


# ---------------------------------------------------------------- the state dict


def set_key(key: str, name: str) -> str:
    """Where the state dict has a set's own tensor, beside the backbone's: ``fc.weight`` -> ``fc.conv_adapter.NAME.weight``."""
    owner, _, tensor = key.rpartition(".")
    return f"{owner}.conv_adapter.{name}.{tensor}".lstrip(".")


def _displaced(state: Adapted) -> list[str]:
    """Keys of which the set in use and the backbone have a tensor each."""
    return [key for key in state.recipes[state.active].own if key in state.backbone] if state.active is not None else []


def _add_sets(model: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """Under its own key the backbone's tensor, under a key with the set's name each set's, whichever set is in use."""
    state = state_of(model)
    used = {key: state_dict[prefix + key] for key in _displaced(state) if prefix + key in state_dict}
    for name in state.recipes:
        for key, value in (used if name == state.active else state.aside.get(name, {})).items():
            state_dict[prefix + set_key(key, name)] = value if name == state.active else value.detach()
    for key, here in used.items():
        value = state.backbone[key]
        state_dict[prefix + key] = value if isinstance(here, nn.Parameter) else value.detach()


def _take_sets(model, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
    """The reverse: to each set what its key has, to the backbone what has its own key.

    A checkpoint without the set in use, such as one of the plain backbone, gives its classifier to both.
    """
    state, own = state_of(model), own_tensors(model)

    def take(key: str, tensors: dict[str, Tensor], name: str) -> None:
        value, target = state_dict.pop(prefix + key, None), tensors[name]
        if value is None:
            missing_keys.append(prefix + key)
        elif value.shape != target.shape:
            error_msgs.append(f"size mismatch for {prefix}{key}: {tuple(value.shape)} in the file, {tuple(target.shape)} here.")
        elif local_metadata.get("assign_to_params_buffers"):
            tensors[name] = nn.Parameter(value, False) if isinstance(target, nn.Parameter) else value
        else:
            target.detach().copy_(value)

    for name, tensors in state.aside.items():
        for key in tensors:
            take(set_key(key, name), tensors, key)
    for key in _displaced(state):
        if key in own:
            given = state_dict.pop(prefix + set_key(key, state.active), None)
            if given is None and (given := state_dict.get(prefix + key)) is not None and given.shape != own[key].shape:
                given = None
            take(key, state.backbone, key)
            if given is not None:
                state_dict[prefix + key] = given


def _note_loaded(model: nn.Module, incompatible_keys) -> None:
    """Frozen tensors may change by loading: what they are now is what they must stay."""
    state_of(model).digests = digests(own_backbone(model))


_STATE_DICT_HOOKS = (_add_sets, _take_sets, _note_loaded)


# ---------------------------------------------------------------- sets of adapters, and switching


def adapters(model: nn.Module, name: str | None = None) -> dict[str, ConvAdapter]:
    """``{dotted place: adapter}``, for the set called ``name`` or, by default, the one in use."""
    model, found = unwrap(model), {}
    if not isinstance(name, str | None):
        raise ValueError(f"name must be that of a set of adapters, or None for the one in use; got {name!r}.")
    for prefix, part in (adapted_parts(model) or {"": model}).items():
        state = state_of(part)
        start = ".".join(filter(None, (prefix, state.network if state else "")))
        for _, site in sites(part):
            key = name if name is not None else site.active
            if key is not None and key in site:
                found[f"{start}.{site.part_name}".lstrip(".")] = site[key]
    return found


def adapter_names(model: nn.Module) -> list[str]:
    """The names of all sets of adapters that the model holds."""
    return sorted({name for _, site in sites(model) for name in site})


def switch(model: nn.Module, name: str | None) -> nn.Module:
    """Use the set of adapters called ``name``, or none at all: the frozen backbone as it was, its classifier included.

    Only the set in use trains.  What trains beside its adapters, its classifier above all, is the set's own and comes and goes
    with it; a set's classifier may have another size than the next one's.  All share one backbone.

    One optimiser can hold several sets: collect the parameters that require a gradient while each is in use.  A step moves
    only those that have a gradient, so clear gradients to None (``zero_grad()`` does) before you switch.

    Threads: one thread switches at a time, others wait.  While it switches, no other thread may run the model; a thread that
    needs a set for itself takes :func:`switched`.

    Raises:
        ValueError: if there is no set of that name.
        AdaptersDetached: if adapters are no longer where they were put.
    """
    whole, model = model, carrier(model)
    known, state = adapter_names(model), state_of(model)
    if name is None and (state is None or not state.recipes):
        return whole
    if name not in known and (name is not None or not known):
        method = "" if known or state is None else f" and was prepared by {active_recipe(model).method!r}"
        raise ValueError(f"no adapters named {name!r}; the model has {', '.join(known) or 'none'}{method}.")
    with state.switching.lock:
        check_attached(model)  # not before: while another thread switches, hooks come and go
        if name == state.active:
            return whole
        own = own_tensors(model)
        if state.active is not None:
            state.aside[state.active] = {key: own[key] for key in state.recipes[state.active].own if key in own}
        _put(model, state.backbone)
        state.backbone = {key: value for key, value in state.backbone.items() if key not in own}  # of a removed classifier
        if name is not None:
            untie_from_backbone(model, state.recipes[name].own, state.aside.pop(name, {}))
        for _, site in sites(model):
            site.active = name if name in site else None
        state.active = name
        set_flags(model)
    return whole


@contextmanager
def switched(model: nn.Module, name: str | None) -> Iterator[nn.Module]:
    """:func:`switch`, and back to the set that was in use when the ``with`` block ends, however it ends.

    Threads: a second thread that enters waits until the first has left, so each computes with its own set.
    """
    state = state_of(carrier(model))
    if state is None:
        yield switch(model, name)
        return
    with state.switching.lock:
        before = state.active
        try:
            yield switch(model, name)
        finally:
            switch(model, before)


def untie_from_backbone(model: nn.Module, keys: Iterable[str], given: dict[str, Tensor] | None = None) -> None:
    """Let these tensors be copies, or what is ``given``, that a set may train; the backbone's own wait meanwhile."""
    state, own = state_of(model), own_tensors(model)
    shared = {key: own[key] for key in keys if key in own and key not in state.backbone}
    state.backbone |= shared
    _put(model, copy.deepcopy(shared) | (given or {}))  # in one, so that tied weights stay tied
    for value in shared.values():
        value.requires_grad_(False)


def _put(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the model these parameters and buffers for its own of the same keys."""
    for key, value in tensors.items():
        owner, _, name = key.rpartition(".")
        module = module_at(model, owner)
        here = getattr(module, name, None)
        if here is None:  # a classifier that was removed meanwhile
            continue
        if (value.device, value.dtype) != (here.device, here.dtype):  # the model has moved meanwhile
            moved = value.detach().to(here.device, here.dtype)
            if isinstance(value, nn.Parameter) and torch._has_compatible_shallow_copy_type(value, moved):
                value.data = moved  # the same parameter, so that an optimiser still holds it
            else:
                tensors[key] = value = nn.Parameter(moved, False) if isinstance(value, nn.Parameter) else moved
        setattr(module, name, value)
    sync_num_classes(model)


# ---------------------------------------------------------------- classifiers of several sizes


def output_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers or convolutions that give the logits, by name: the last one of each classifier."""
    state, found = state_of(model), {}
    for classifier in classifier_names(model, "" if state is None else state.network):
        inside = model.get_submodule(classifier).named_modules(prefix=classifier)
        found |= [(name, layer) for name, layer in inside if isinstance(layer, (nn.Linear, nn.Conv2d))][-1:]
    return found


def new_classifier(model: nn.Module, num_classes: int) -> None:
    """Give the model's classifier new weights for so many classes."""
    for layer in output_layers(model).values():
        for name, weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(weight.new_empty(num_classes, *weight.shape[1:])))
        layer.reset_parameters()
    sync_num_classes(model)


def sync_num_classes(model: nn.Module) -> None:
    """Let the classifier and what it is part of say how many classes its weights have."""
    for name, layer in output_layers(model).items():
        entry = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        before, classes = getattr(layer, entry), layer.weight.shape[0]
        setattr(layer, entry, classes)
        for above in [model, *(module_at(model, part) for part in _from_the_top(name))][:-1]:
            if getattr(above, "num_classes", None) == before:
                above.num_classes = classes


# ---------------------------------------------------------------- the marker of lean layers


class Lean:
    """The mark of a layer in the lean form: its class is a subclass of this and of its own; see :mod:`minica.fast.lean`."""

    BUFFERS = ("lean_weight", "lean_bias")  # what it may hold beside its own, in no state dict


def plain(model: nn.Module) -> nn.Module:
    """Undo :func:`minica.lean`: every layer is of its own class again, in place."""
    for module in unwrap(model).modules():
        if isinstance(module, Lean):
            module.__class__ = type(module).__bases__[1]
            for name in [key for key in (*vars(module), *module._buffers) if key.startswith("lean_")]:
                delattr(module, name)
        if vars(module).pop("_lean_checkpoint", False):
            module.set_grad_checkpointing(False)
        vars(module).pop("_ddp_params_and_buffers_to_ignore", None)
    return model
