"""How is a backbone frozen, and how is it given back as it was?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from .discovery import classifier_names


class Attachment:
    """What :func:`detach` removes: a module that was added to the backbone and whose bound methods are its hooks."""


class Lean:
    """The class that a module wears for training is a subclass of this and of its own; see :mod:`minica.lean`."""

    BUFFERS = ("lean_weight", "lean_bias")  # what it may hold beside its own, in no state dict


def plain(model: nn.Module) -> nn.Module:
    """Undo :func:`minica.lean`: every layer is of its own class again, in place."""
    for module in model.modules():
        if isinstance(module, Lean):
            module.__class__ = type(module).__bases__[1]
            for name in [key for key in (*vars(module), *module._buffers) if key.startswith("lean_")]:
                delattr(module, name)
    if model.__dict__.pop("_lean_checkpoint", False):
        model.set_grad_checkpointing(False)
    if model.__dict__.pop("_ddp_params_and_buffers_to_ignore", None) is not None:
        _unhook(model._load_state_dict_post_hooks, lambda hook: hook.__name__ == "_loaded")
    return model


def attachments(model: nn.Module) -> list[str]:
    """Dotted names of all that was added to the backbone."""
    return [name for name, module in model.named_modules() if isinstance(module, Attachment)]


def backbone_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter that is neither added nor the classifier's."""
    ours = tuple(f"{name}." for name in attachments(model)) + tuple(f"{name}." for name in classifier_names(model))
    return (weight for key, weight in model.named_parameters() if not key.startswith(ours))


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What is not frozen, by state-dict key: parameters that train, and the buffers of the layers that train entirely."""
    state = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        every = dict(module.named_parameters(recurse=False))
        own = {key: weight for key, weight in every.items() if weight.requires_grad}
        if own and len(own) == len(every):  # a layer of which the bias alone trains keeps its statistics
            saved = module.state_dict(keep_vars=True)  # leaves out buffers that are not persistent
            own |= {key: buffer for key, buffer in module.named_buffers(recurse=False) if key in saved}
        state |= {f"{prefix}.{key}".lstrip("."): value for key, value in own.items()}
    return state


def freeze(model: nn.Module) -> None:
    """Freeze every parameter, and hold every normalisation layer's statistics; :func:`detach` undoes it."""
    plain(model)
    if not hasattr(model, "_minica"):
        before = {key: weight.requires_grad for key, weight in model.named_parameters()}
        model._minica = {"requires_grad": before, "adapters": {}, "beside": {}, "added_biases": []}
    for _, weight in model.named_parameters():
        weight.requires_grad_(False)
    hold_statistics(model)


def frozen_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that learn running statistics in training mode, as BatchNorm and EvoNorm do, and whose weight is frozen."""
    for module in model.modules():
        if any("running" in key for key, _ in module.named_buffers(recurse=False)):
            weight = getattr(module, "weight", None)
            if weight is None or not weight.requires_grad:
                yield module


def hold_statistics(model: nn.Module) -> None:
    """Keep frozen statistics in evaluation mode, whatever ``train()`` says, and release all others."""
    for module in model.modules():
        release_statistics(module)
    for module in frozen_statistics(model):
        module.register_forward_pre_hook(_evaluate)


def held(module: nn.Module) -> bool:
    """Whether :func:`hold_statistics` holds this layer's."""
    return _evaluate in module._forward_pre_hooks.values()


def _evaluate(module: nn.Module, args: tuple) -> None:
    if module.training:
        module.training = False


def release_statistics(module: nn.Module) -> None:
    """Undo :func:`hold_statistics` for one layer."""
    _unhook(module._forward_pre_hooks, lambda hook: hook is _evaluate)


def detach(model: nn.Module) -> nn.Module:
    """Remove all that was added, every hook included, and restore every ``requires_grad``: the backbone, as it was.

    What was trained of the network's own stays trained: its classifier and, after ``tune`` with ``"full"``, ``"bias"``,
    ``"norm"`` or ``norms=``, those weights.  A model that was never adapted comes back unchanged.
    """
    plain(model)
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            _unhook(hooks, lambda hook: isinstance(getattr(hook, "__self__", None), Attachment))
        if held(module):
            release_statistics(module)
            module.training = model.training
    for name in attachments(model):
        host, _, child = name.rpartition(".")
        delattr(model.get_submodule(host), child)
    state = model.__dict__.pop("_minica", {})
    for name in state.get("added_biases", ()):
        model.get_submodule(name).bias = None
    before = state.get("requires_grad", {})
    for key, weight in model.named_parameters():
        weight.requires_grad_(before.get(key, weight.requires_grad))
    return model


def _unhook(hooks: dict, unwanted: Callable) -> None:
    for key in [key for key, hook in hooks.items() if unwanted(hook)]:
        del hooks[key]
