"""How does a network run?  One forward pass without numbers: what each module receives and returns, and what is added up."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .counting import kernel_area


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the model without its numbers: every tensor on the meta device."""
    memo: dict[int, object] = {}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) that the backbone was made for; 224 x 224 where it does not say."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    # A network with windows or position embeddings may have been built for another size than its weights' own.
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    leaves = (module for module in model.modules() if next(module.children(), None) is None)
    telling = (leaf for leaf in leaves if isinstance(leaf, nn.Conv2d) or not type(leaf).__module__.startswith("torch.nn"))
    first = next(telling, None)
    if isinstance(first, nn.Conv2d) and first.groups == 1:  # behind a DCT, the first convolution says nothing of the image
        channels = first.in_channels  # timm's in_chans= changes the stem and not the configuration
    return channels, height, width


def blank_image(model: nn.Module, size: int | tuple[int, int] | None = None) -> Tensor:
    """One image of zeros that ``model`` accepts, shape (1, C, H, W), on its device and in its dtype."""
    channels, *own = input_shape(model)
    height, width = own if size is None else (size, size) if isinstance(size, int) else size
    weight = next(model.parameters())
    return torch.zeros(1, channels, height, width, device=weight.device, dtype=weight.dtype)


@dataclass
class Call:
    """One call of one module.  Tensors are numbered in the order in which they come to be."""

    name: str
    module: nn.Module
    received: list[int]  # every tensor among the arguments
    begin: int  # position in Trace.steps when it was entered
    in_shape: torch.Size | None  # of the first argument, if it is a tensor
    returned: int | None = None  # the tensor it returned; of a tuple, the first
    out_shape: torch.Size | None = None
    end: int = -1


@dataclass
class Step:
    """One operation on tensors, and the module whose own code called it."""

    operation: str
    module: str
    inputs: list[int]
    outputs: list[int]


@dataclass
class Trace:
    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, list[Call]]:
        """The calls of each module."""
        return _grouped((call.name, call) for call in self.calls)

    @cached_property
    def receivers(self) -> dict[int, list[Call]]:
        """The calls that a tensor is the only tensor argument of."""
        return _grouped((call.received[0], call) for call in self.calls if len(call.received) == 1)

    @cached_property
    def uses(self) -> dict[int, list[int]]:
        """The positions of the steps that take a tensor."""
        return _grouped((number, at) for at, step in enumerate(self.steps) for number in step.inputs)


def _grouped(pairs: Iterable[tuple]) -> dict:
    groups: dict = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


class _Recorder(TorchFunctionMode):
    """Numbers every tensor, and writes down every operation and every call of a module."""

    def __init__(self, model: nn.Module) -> None:
        self.trace, self.open = Trace(), [Call("", model, [], 0, None)]
        self.numbers: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no two tensors of the pass share an id
        self.hooks = []
        for name, module in model.named_modules():
            # Before the hooks of adapters: what a module receives and returns itself is what autograd keeps.
            self.hooks.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True, prepend=True))
            self.hooks.append(module.register_forward_hook(self._leaving, prepend=True))

    def number(self, tensor: Tensor, new: bool = False) -> int:
        if new or id(tensor) not in self.numbers:
            self.alive.append(tensor)
            self.numbers[id(tensor)] = len(self.alive)
        return self.numbers[id(tensor)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        inputs = [self.number(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = function(*args, **(kwargs or {}))
        outputs = [self.number(leaf, new=True) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs:
            name = getattr(function, "__name__", "").strip("_")
            self.trace.steps.append(Step(name, self.open[-1].name, inputs, outputs))
        return result

    def _entering(self, name: str):
        def hook(module, args, kwargs):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            shape = args[0].shape if args and isinstance(args[0], Tensor) else None
            call = Call(name, module, [self.number(tensor) for tensor in tensors], len(self.trace.steps), shape)
            self.trace.calls.append(call)
            self.open.append(call)

        return hook

    def _leaving(self, module, args, output):
        call = self.open.pop()
        call.end = len(self.trace.steps)
        output = output[0] if isinstance(output, tuple) and output else output
        if isinstance(output, Tensor):
            call.returned, call.out_shape = self.number(output), output.shape


def trace(model: nn.Module) -> Trace:
    """Run a copy of ``model`` in evaluation mode on one blank image, on the meta device: shapes without arithmetic."""
    copied = skeleton(model).eval()
    for module in copied.modules():  # hooks of the network's own modules are part of it, a user's are there for real images
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not isinstance(getattr(hook, "__self__", None), nn.Module)]:
                del hooks[key]
    recorder = _Recorder(copied)
    with torch.no_grad(), recorder:
        returned = copied(blank_image(copied))
    leaves = [recorder.number(leaf) for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    recorder.trace.steps.append(Step("return", "", leaves, []))
    for hook in recorder.hooks:
        hook.remove()
    return recorder.trace


# ---------------------------------------------------------------- what a trace tells

SHORTCUTS = ("downsample", "shortcut", "skip")  # what timm and torchvision call the modules on a shortcut


def is_spatial(call: Call) -> bool:
    """A spatial convolution (k > 1) that maps feature maps to feature maps."""
    module = call.module
    return (
        isinstance(module, nn.Conv2d)
        and kernel_area(module.kernel_size) > 1
        and module.out_channels > 1  # a gate has one
        and call.out_shape is not None
        and tuple(call.out_shape[-2:]) != (1, 1)  # VGG's first dense layer in the guise of a convolution
    )


def on_shortcut(name: str, block: str = "") -> bool:
    """Whether a module's name says that it lies on the shortcut of its block."""
    return any(word in name.removeprefix(f"{block}.").lower() for word in SHORTCUTS)


def residual_calls(found: Trace) -> Iterator[tuple[Call, bool]]:
    """The calls of modules that add, in their own code, two things made from one; and whether one is a shortcut to the other.

    It is one if it reaches the add without a spatial convolution and the other passes one.
    """
    spatial = {call.name for call in found.calls if is_spatial(call)}
    for call in found.calls:
        if call.name and not 2 < len(call.in_shape or ()) == len(call.out_shape or ()):
            continue  # only the whole network may turn maps into something else
        convolutions = {name for name in spatial if not on_shortcut(name, call.name)}
        ways: list[tuple[bool, bool]] = []
        for at in range(call.begin, call.end):
            step = found.steps[at]
            if step.operation in ("add", "iadd", "radd") and step.module == call.name and len(step.inputs) == 2:
                one, other = (_origins(found.steps[call.begin : at], side, call.received, convolutions) for side in step.inputs)
                ways += [(one[number], other[number]) for number in one.keys() & other.keys()]
        if ways:
            yield call, any(one != other for one, other in ways)


def _origins(steps: list[Step], tensor: int, received: list[int], convolutions: set[str]) -> dict[int, bool]:
    """Every tensor that ``tensor`` was made from, all that was ``received`` as 0; and whether a convolution lies between."""
    origins = {tensor: False}
    for step in reversed(steps):
        reached = [origins[number] for number in step.outputs if number in origins]
        if reached:
            passed = any(reached) or step.module in convolutions
            for number in step.inputs:
                origins[number] = passed or origins.get(number, False)
    arrived = [origins[number] for number in received if number in origins]
    return origins | ({0: any(arrived)} if arrived else {})
