"""Low-rank methods of the library ``peft``, to compare adapters with: LoRA and LoHa on the convolutions that are adapted."""

from __future__ import annotations

import warnings

from torch import nn

from ..discovery import find_parts
from ..recipe import classifier_names
from ..schemes import planned_parameters

KINDS = ("lora", "loha")


def low_rank(model: nn.Module, kind: str = "lora", compression: float = 4) -> nn.Module:
    """``model`` with low-rank updates of the convolutions that ``conv_parallel`` adapts, and its classifier, to be trained.

    Convolutions that timm pads as TensorFlow does are left out: ``peft`` pads its updates otherwise.  The rank, one for all, is
    the one whose number of parameters is closest to that of ``conv_parallel`` at ``compression``.

    Args:
        kind: ``"lora"`` (Hu et al. 2022) or ``"loha"`` (Hyeon-Woo et al. 2022).

    Returns:
        A ``PeftModel`` around the model, which it changes.

    Raises:
        ValueError: for an unknown kind, or where ``peft`` refuses a convolution: LoRA's rank must be divisible by the groups.
        ModuleNotFoundError: without ``peft``, which is in the extra ``bench``.
    """
    from peft import LoHaConfig, LoraConfig, get_peft_model  # only these methods need it

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}.")
    parts = find_parts(model)
    names = [part.name for part in parts if part.kind in ("unit", "downsample", "pool")]
    names = [name for name in names if type(model.get_submodule(name)) is nn.Conv2d]
    shapes = [model.get_submodule(name).weight.shape for name in names]
    of_rank_one = sum(shape[0] + shape[1:].numel() for shape in shapes) * (2 if kind == "loha" else 1)
    rank = max(1, round(planned_parameters(parts, "conv_parallel", compression) / of_rank_one))
    config = {"lora": LoraConfig, "loha": LoHaConfig}[kind]
    scaled = {"lora": {"lora_alpha": rank}, "loha": {"alpha": rank}}[kind]  # an update is alpha / rank times the product
    with warnings.catch_warnings(action="ignore"):
        return get_peft_model(model, config(r=rank, target_modules=names, modules_to_save=classifier_names(model), **scaled))
