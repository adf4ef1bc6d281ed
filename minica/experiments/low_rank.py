"""Low-rank methods of the library ``peft``, to compare adapters with: LoRA, LoHa and LoKr on the layers that are adapted."""

from __future__ import annotations

import copy
import warnings

from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn

from ..discovery import find_parts
from ..recipe import classifier_names
from ..schemes import planned_parameters

KINDS = ("lora", "loha", "lokr")
# Convolutions whose padding is the layer's own; timm standardises the weights of the last two.
CONVOLUTIONS = (nn.Conv2d, StdConv2d, ScaledStdConv2d)


def low_rank(model: nn.Module, kind: str = "lora", compression: float = 4) -> nn.Module:
    """``model`` with low-rank updates of the convolutions that ``conv_parallel`` adapts, and its classifier, to be trained.

    Convolutions that timm pads as TensorFlow does are left out: ``peft`` pads its updates otherwise.  Where the scheme adapts
    attention (Swin), its linear layers are updated.  The rank, one for all, is the one whose number of parameters is closest
    to that of ``conv_parallel`` at ``compression``; LoKr's factors end before that in most networks.

    Args:
        kind: ``"lora"`` (Hu et al. 2022), ``"loha"`` (Hyeon-Woo et al. 2022) or ``"lokr"`` (Yeh et al. 2024).

    Returns:
        A ``PeftModel`` around the model, which it changes.

    Raises:
        ValueError: for an unknown kind, for a network without such layers, or where ``peft`` refuses a convolution: LoRA's
            rank must be divisible by the groups.
        ModuleNotFoundError: without ``peft``, which is in the extra ``bench``.
    """
    from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model  # only these methods need it

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}.")
    parts = find_parts(model)
    names = _targets(model, [part.name for part in parts if part.kind in ("unit", "downsample", "pool")])
    if not names:
        raise ValueError(f"{type(model).__name__} has no convolution that {kind} can update: all pad by the size of the map.")
    config = {"lora": LoraConfig, "loha": LoHaConfig, "lokr": LoKrConfig}[kind]
    wanted = planned_parameters(parts, "conv_parallel", compression)
    if kind == "lokr":
        rank = _lokr_rank(model, names, wanted)
    else:
        shapes = [model.get_submodule(name).weight.shape for name in names]
        of_rank_one = sum(shape[0] + shape[1:].numel() for shape in shapes) * (2 if kind == "loha" else 1)
        rank = max(1, round(wanted / of_rank_one))
    scaled = {"lora_alpha" if kind == "lora" else "alpha": rank}  # an update is alpha / rank times the product
    with warnings.catch_warnings(action="ignore"):
        return get_peft_model(model, config(r=rank, target_modules=names, modules_to_save=classifier_names(model), **scaled))


def _targets(model: nn.Module, adapted: list[str]) -> list[str]:
    """The convolutions among the ``adapted`` modules, and the linear layers within those that are none."""
    names = []
    for name in adapted:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Conv2d):
            names += [f"{name}.{path}" for path, inner in module.named_modules() if type(inner) is nn.Linear]
        elif type(module) in CONVOLUTIONS:
            names.append(name)
    return names


def _lokr_rank(model: nn.Module, names: list[str], wanted: int) -> int:
    """The rank, a power of two, whose number of parameters is closest to ``wanted``.

    LoKr factorises the shape of each layer, and keeps a factor whole where the rank would not make it smaller, so the numbers
    are counted from trial layers without numbers.
    """
    from peft import LoKrConfig, inject_adapter_in_model

    def size(rank: int) -> int:
        trial = nn.ModuleDict({str(i): copy.deepcopy(model.get_submodule(name)) for i, name in enumerate(names)}).to("meta")
        with warnings.catch_warnings(action="ignore"):
            inject_adapter_in_model(LoKrConfig(r=rank, target_modules=list(trial)), trial)
        return sum(weight.numel() for key, weight in trial.named_parameters() if "lokr_" in key)

    return min((2**exponent for exponent in range(9)), key=lambda rank: abs(size(rank) - wanted))
