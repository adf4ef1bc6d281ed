"""Which frozen layers are computed again in backward: those that save much for little."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ..adapter import ConvAdapter
from ..discovery import Call, Trace, blank_image, skeleton
from ..hooks import remove_hooks
from .lean_layers import LEAN_CLASS, LeanAct, LeanConv, LeanLinear
from .recompute_layers import NOTING_CLASS, LeanGate, LeanMeasuringNorm, LeanSmooth

# Multiply-accumulates that may be spent for each element that need not be kept: what an element costs behind a 1x1 convolution
# or a linear layer of 512 channels.  Wider ones (ConvNeXt's and Swin's last stages, whose maps are the smallest) are kept.
MOST_PER_ELEMENT = 512
CLASSES = LEAN_CLASS | NOTING_CLASS
VIEWS = ("permute", "transpose", "unsqueeze")  # between a map and what an adapter reads of it


@dataclass
class Plan:
    """By name: the layers that are computed again, and what that asks of others."""

    noting: set[str] = field(default_factory=set)  # layers that take a class of :data:`NOTING_CLASS`
    again: set[str] = field(default_factory=set)
    passing: set[str] = field(default_factory=set)  # activations of the ReLU family through which a map is had again
    in_a_byte: set[str] = field(default_factory=set)  # smooth activations that keep their derivative in a byte an element


def plan(network: nn.Module, run: Trace, folded: dict[str, nn.Module], approximate: bool, again: bool = True) -> Plan:
    """What is computed again, of a ``network`` that runs as ``run``; ``folded`` are norms by the convolution before them.

    A layer is worth it where it costs at most :data:`MOST_PER_ELEMENT` multiply-accumulates for each element that is saved:
    those of its output, if something keeps that, less those of its input, if nothing keeps that already.
    """
    modules, maps, found = dict(network.named_modules()), _Maps(run, approximate), Plan()
    if not again:
        found.in_a_byte = {call.name for call in run.calls if maps.takes_a_byte(call)}
        found.noting = set(found.in_a_byte)
        return found
    found.noting = {name for name, module in modules.items() if type(module) in NOTING_CLASS}
    names = {module: name for name, module in modules.items()}
    for call in run.calls:
        if not _is(call, LeanConv, LeanLinear) or call.module.weight.requires_grad or len(run.by_name[call.name]) > 1:
            continue
        if call.returned is None or not call.received or call.in_shape is None or call.out_shape is None:
            continue
        norm = folded.get(call.name)
        returned = call.returned if norm is None else maps.after(run.by_name[names[norm]][0])
        read, weight = call.received[0], call.module.weight
        saved = maps.wanted(returned) * call.out_shape.numel() - (0 if read in maps.kept else call.in_shape.numel())
        cost = weight[0].numel() * call.out_shape.numel()
        if saved > 0 and cost <= MOST_PER_ELEMENT * saved:
            found.again.add(call.name)
    found.again -= _written_later(network, found.again)
    for call in run.calls:
        if call.name in found.again:
            norm = folded.get(call.name)
            maps.again.add(call.returned if norm is None else maps.after(run.by_name[names[norm]][0]))
    for call in run.calls:
        if _is(call, LeanAct) and call.received and call.received[0] in maps.again and maps.wanted_of_act(call):
            found.passing.add(call.name)
        elif call.received and maps.takes_a_byte(call) and call.received[0] not in maps.again:
            found.in_a_byte.add(call.name)
    return found


class _Maps:
    """What is known of the maps of a run, by their numbers."""

    def __init__(self, run: Trace, approximate: bool) -> None:
        self.run, self.approximate = run, approximate
        of_view = {step.outputs[0]: step.inputs[0] for step in run.steps if step.operation in VIEWS and len(step.inputs) == 1}
        trained, self.read = set(), set()
        for call in run.calls:
            number = call.received[0] if call.received else None
            if type(call.module) is ConvAdapter:
                while number in of_view:
                    number = of_view[number]
                self.read.add(number)
            elif any(weight.requires_grad for weight in call.module.parameters(recurse=False)):
                trained.add(number)
            elif _is(call, LeanGate, LeanMeasuringNorm):
                self.read.add(number)
        self.adapters = tuple(f"{call.name}." for call in run.calls if type(call.module) is ConvAdapter)
        self.trained, self.read = trained, self.read - trained
        self.again = {self.after(call) for call in run.calls if _is(call, LeanMeasuringNorm)}
        for call in run.calls:
            if _is(call, LeanAct) and call.received and call.received[0] in self.again:
                self.again.add(call.returned)
        smooth = [call for call in run.calls if _is(call, LeanSmooth) and not self.takes_a_byte(call)]
        self.kept = self.again | trained | self.read | {call.returned for call in smooth}

    def after(self, norm: Call) -> int | None:
        """The map that a norm gives, before its own activation if it has one."""
        inside = self.run.by_name.get(f"{norm.name}.drop")
        return inside[0].received[0] if inside else norm.returned

    def wanted(self, number: int | None) -> float:
        """The share of a map's bytes that is kept if it cannot be had again."""
        if number is None or number in self.trained:
            return 0
        share = 1.0 if number in self.read else 0.0
        for call in self.run.receivers.get(number, ()):
            if _is(call, LeanSmooth):
                share = max(share, 0.25 if self.takes_a_byte(call) else 1.0)
            elif _is(call, LeanAct):
                share = max(share, float(self.wanted_of_act(call)))
        return share

    def wanted_of_act(self, act: Call) -> bool:
        """Whether somebody keeps the output of an activation who can have it again."""
        return act.returned in self.read

    def takes_a_byte(self, call: Call) -> bool:
        """Whether a smooth activation keeps its derivative in a byte, since nobody needs its output."""
        smooth = self.approximate and _is(call, LeanSmooth) and not call.name.startswith(self.adapters)
        return smooth and call.returned not in self.read | self.trained


def _is(call: Call, *kinds: type) -> bool:
    return issubclass(CLASSES.get(type(call.module), object), kinds)


def _written_later(network: nn.Module, names: set[str]) -> set[str]:
    """Those of the modules whose input is written to in place after they have read it."""
    if not names:
        return set()
    copied, read = skeleton(network).eval(), []
    for module in copied.modules():
        remove_hooks(module, lambda hook: not isinstance(getattr(hook, "__self__", None), nn.Module))
    for name in names:
        copied.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: read.append((name, args[0], args[0]._version))
        )
    with torch.no_grad():
        copied(blank_image(copied))
    return {name for name, x, version in read if x._version != version}
