"""The methods that are compared: those of the package, the adapter as it was published, and LoRA through ``peft``."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

import minica
from minica.experiments.low_rank import low_rank

COMPRESSION = 4


class Refused(ValueError):
    """A library does not apply its method to this network; the message is the library's."""


def adapter(model: nn.Module, scheme: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are many parameters, which the benchmark reports
        return minica.adapt(model, scheme, COMPRESSION)


def lean(model: nn.Module, scheme: str) -> nn.Module:
    return minica.lean(adapter(model, scheme))


class PublishedAdapter(minica.ConvAdapter):
    """Operation by operation as in the paper's code: a grouped convolution, and alpha as a product of its own."""

    def _down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        conv, (x, padding) = self.down, self._pad(x, size)
        h = F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
        return h if h.shape[-2:] == size else h[..., : size[0], : size[1]]

    def _delta(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.alpha * self.up(self.act(self._down(x, size)))


def published(model: nn.Module, scheme: str) -> nn.Module:
    for module in adapter(model, scheme).modules():
        if isinstance(module, minica.ConvAdapter):
            module.__class__ = PublishedAdapter
    return model


def lora(model: nn.Module, scheme: str) -> nn.Module:
    """LoRA on what ``conv_parallel`` adapts, see :func:`minica.experiments.low_rank.low_rank`.

    Raises:
        Refused: where ``peft`` does: at depth-wise convolutions.
    """
    try:
        return low_rank(model, "lora", COMPRESSION)
    except ValueError as error:
        raise Refused(str(error).splitlines()[0]) from error


# A plain backbone, prepared in place for training by each method.  Ratios are to the first.
METHODS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "Full fine-tuning": lambda model, scheme: minica.tune(model, "full"),
    "Linear probe": lambda model, scheme: minica.tune(model, "linear"),
    "Bias tuning": lambda model, scheme: minica.tune(model, "bias"),
    "Conv-Adapter, published form": published,
    "Conv-Adapter": adapter,
    "Conv-Adapter, lean": lean,
    "LoRA (peft)": lora,
}


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
