"""What trains under each method?"""

from __future__ import annotations

from torch import nn

from .anatomy import anatomy, classifier_names
from .schemes import adapt, detach, freeze, hold_statistics

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _full(model: nn.Module) -> None:
    """Every parameter, and every statistic of its normalisation layers."""
    freeze(model)  # only to remember what it was
    for weight in model.parameters():
        weight.requires_grad_(weight.is_floating_point())
    hold_statistics(model)  # nothing is frozen now, so nothing is held


def _linear(model: nn.Module) -> None:
    """The classifier."""
    freeze(model)
    _train_classifier(model)


def _bias(model: nn.Module) -> None:
    """The classifier, and every bias the backbone has."""
    freeze(model)
    for key, weight in model.named_parameters():
        weight.requires_grad_(key.endswith("bias"))
    _train_classifier(model)


def _norm(model: nn.Module) -> None:
    """The classifier, and every normalisation layer: weights, biases and, since the layer trains, its statistics."""
    freeze(model)
    for module in model.modules():
        if isinstance(module, NORMS):
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(True)
    _train_classifier(model)


def _conv_adapter(model: nn.Module, **options) -> None:
    """The classifier, and a Conv-Adapter at every unit or block."""
    adapt(model, **options)


METHODS = {"full": _full, "linear": _linear, "bias": _bias, "norm": _norm, "conv_adapter": _conv_adapter}


def tune(model: nn.Module, method: str, **options) -> nn.Module:
    """Prepare ``model`` for training by ``method``, in place: what trains, what is added, what is frozen.

    Starts from the plain backbone: whatever an earlier call attached is detached first.

    Args:
        method: one of :data:`METHODS`.
        options: of the method; ``"conv_adapter"`` takes those of :func:`minica.adapt`.

    Raises:
        ValueError: for an unknown method or option.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    if options and method != "conv_adapter":
        raise ValueError(f"{method!r} takes no options, got {', '.join(options)}.")
    if method == "conv_adapter":
        anatomy(model)  # refuses a network that cannot be adapted before anything is detached
    detach(model)
    METHODS[method](model, **options)
    model._minica["method"] = method
    return model


def _train_classifier(model: nn.Module) -> None:
    for name in classifier_names(model):
        model.get_submodule(name).requires_grad_(True)
    hold_statistics(model)
