"""The methods that are compared: those of the package, the adapter as it was published, and those of ``peft``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

import minica
from minica.experiments.low_rank import low_rank

COMPRESSION = 4


def adapter(model: nn.Module, scheme: str, compression: float = COMPRESSION) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are many parameters, which the benchmark reports
        return minica.adapt(model, scheme, compression)


def lean(model: nn.Module, scheme: str, compression: float = COMPRESSION, **options) -> nn.Module:
    return minica.lean(adapter(model, scheme, compression), **options)


class PublishedAdapter(minica.ConvAdapter):
    """Operation by operation as in the paper's code: a grouped convolution, and alpha as a product of its own."""

    def _down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        conv, (x, padding) = self.down, self._pad(x, size)
        h = F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
        return h if h.shape[-2:] == size else h[..., : size[0], : size[1]]

    def _delta(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.alpha * self.up(self.act(self._down(x, size)))


def published(model: nn.Module, scheme: str, compression: float = COMPRESSION) -> nn.Module:
    for module in adapter(model, scheme, compression).modules():
        if isinstance(module, minica.ConvAdapter):
            module.__class__ = PublishedAdapter
    return model


def of_peft(kind: str) -> Callable[..., nn.Module]:
    """A method of ``peft`` on what ``conv_parallel`` adapts, see :func:`minica.experiments.low_rank.low_rank`."""
    return lambda model, scheme, compression=COMPRESSION: low_rank(model, kind, compression)


# A plain backbone, prepared in place for training by each method, as (model, scheme, compression).  Ratios are to the first.
METHODS: dict[str, Callable[..., nn.Module]] = {
    "Full fine-tuning": lambda model, scheme, compression=None: minica.tune(model, "full"),
    "Linear probe": lambda model, scheme, compression=None: minica.tune(model, "linear"),
    "Bias tuning": lambda model, scheme, compression=None: minica.tune(model, "bias"),
    "Conv-Adapter, published form": published,
    "Conv-Adapter": adapter,
    "Conv-Adapter, lean, none": partial(lean, recompute="none"),
    "Conv-Adapter, lean": lean,
    "Conv-Adapter, lean, approximate": partial(lean, approximate=True),
    "Conv-Adapter, lean, stages": partial(lean, recompute="stages"),
    "LoRA (peft)": of_peft("lora"),
    "LoHa (peft)": of_peft("loha"),
    "LoKr (peft)": of_peft("lokr"),
}
PEFT = tuple(name for name in METHODS if "peft" in name)


def side_effects(model: nn.Module, method: str, scheme: str, images: Tensor) -> dict:
    """What a method does to the backbone beside training it.

    Returns:
        ``renamed``: how many of its keys a checkpoint would no longer find, and ``example``: one of them before and after;
        ``moved``: how many of its buffers one forward pass in training mode changed.
    """
    keys, buffers = list(model.state_dict()), [(buffer, buffer.clone()) for buffer in model.buffers()]
    tuned = METHODS[method](model, scheme).train()
    tuned(images)
    now = tuned.state_dict().keys()
    wrapped = [key for key in now if key.endswith(".base_layer.weight")]
    before = [key for key in keys if wrapped and wrapped[0].endswith(key.replace(".weight", ".base_layer.weight"))]
    return {
        "renamed": sum(key not in now for key in keys),
        "example": [before[0], wrapped[0]] if before else None,
        "moved": sum(not buffer.equal(value) for buffer, value in buffers),
    }
