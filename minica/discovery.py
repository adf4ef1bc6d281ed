"""The search for a network's blocks and units: by the rows of :mod:`minica.anatomy`, and by how one forward pass runs.

A copy of the network runs on the meta device: shapes without arithmetic.  The pass also shows strides and channels, which
pools and wrappers hide, and :mod:`minica.fast` reads from it which layers follow each other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .anatomy import ROWS, Part, Place, Row, Spec, Unit, UnsupportedBackbone
from .counting import Kernel, check_choice, check_kernel_size, kernel_area
from .hooks import module_at, remove_hooks

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they iterate over their children, so they cannot hold an adapter
GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Tanh, nn.MultiheadAttention)  # never the activation of a block itself
SHORTCUTS = ("downsample", "shortcut", "skip")  # what timm and torchvision call the modules on a shortcut


def find_parts(model: nn.Module, spec: Spec | None = None) -> list[Part]:
    """Every part of ``model`` that some scheme adapts, in the order in which they run.

    A copy of the network runs once, on the meta device, on one blank image of the network's own input size.

    Args:
        model: any network, with nothing attached to it.
        spec: rows for classes of blocks whose run says too little, for instance because they concatenate, or because the
            network around them adds their shortcut; they count before :data:`~minica.anatomy.ROWS` and before the run::

                from minica.anatomy import Row, Unit

                minica.adapt(model, spec={"MyBlock": Row((Unit("conv1", end="norm1"), Unit("conv2")))})

    Raises:
        ValueError: for what is no module, or a spec that does not fit the model.
        UnsupportedBackbone: if the network does not run on an image, or if there is no functional convolution, for instance
            in a pure transformer.
    """
    spec = checked_spec(model, {} if spec is None else spec)
    try:
        run = trace(model)
    except Exception as error:  # a network may raise anything for an image that it was not made for
        what = f"{type(model).__name__} does not run on a blank image of shape {input_shape(model)}"
        reason = f"({type(error).__name__}: {str(error)[:150]})"
        raise UnsupportedBackbone(f"{what} {reason}, so its blocks cannot be found.") from error
    found = []
    for call in _calls_with_parts(run, spec):
        row = _row(call.module, spec)
        found += _parts_by_row(call.name, call.module, row) if row else _parts_by_run(run, call)
    if not found and not any(residual_calls(run)):
        found = _units_without_blocks(run)
    found += _stages([part for part in found if part["kind"] == "block"])
    parts = [_measured(part, run.shapes) for part in found if part["begin"] in run.shapes and part["end"] in run.shapes]
    if not parts:
        what = "has no convolutional unit: no block with a spatial convolution (k > 1), so there is nothing to adapt"
        need = "Conv-Adapter needs a ConvNet or a hybrid, such as a ResNet, ConvNeXt, EfficientNet or MaxViT."
        raise UnsupportedBackbone(f"{type(model).__name__} {what}. {need}")
    return parts


def check_module(model: object) -> None:
    """Raise a ValueError if ``model`` is no ``nn.Module``."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module, got {type(model).__name__}: {str(model)[:80]!r}.")


# ---------------------------------------------------------------- rows and specs


def _row(module: nn.Module, spec: Spec) -> Row | None:
    for cls in type(module).__mro__:
        names = cls.__module__.split(".")
        if row := spec.get(cls.__name__) or ROWS.get(f"{names[0]}.{names[-1]}.{cls.__name__}"):
            return row
    return None


def checked_spec(model: nn.Module, spec: Spec) -> dict[str, Row]:
    """The rows of a spec, in which tuples may be lists (as in a file), if ``model`` has what they name.

    Raises:
        ValueError: for a class that the model lacks, a path that no module of the class has, or what is not a row.
    """
    check_module(model)
    example = 'a spec is {"MyBlock": Row((Unit("conv1", end="norm1"),))}: rows by the name of a class'
    if not isinstance(spec, Mapping):
        raise ValueError(f"{example}; got {spec!r}.")
    rows = {}
    for name, row in spec.items():
        try:
            units, *rest = row if isinstance(row, (tuple, list)) else (None,)
            row = Row(tuple(Unit(*unit) for unit in units), *rest)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{example}; got {row!r} for {name!r} ({error}).") from error
        check_choice(row.kind, f"kind of the spec's {name!r}", ("block", "downsample", "pool"))
        blocks = [module for module in model.modules() if name in (cls.__name__ for cls in type(module).__mro__)]
        if not blocks:
            known = sorted({type(module).__name__ for module in model.modules() if next(module.children(), None)})
            raise ValueError(f"the spec's {name!r} is no class of {type(model).__name__}, which has {', '.join(known)}.")
        rows[name] = row._replace(units=tuple(_checked_unit(name, unit, blocks) for unit in row.units))
    return rows


def _checked_unit(name: str, unit: Unit, blocks: list[nn.Module]) -> Unit:
    for side in (unit.begin_side, unit.end_side):
        check_choice(side, f"side of the spec's {name!r}", ("input", "output"))
    if unit.kernel is not None:
        unit = unit._replace(kernel=check_kernel_size(unit.kernel, f"the kernel of the spec's {name!r}"))
    for path in [unit.conv, *(path for path in (unit.begin, unit.end) if path is not None)]:
        named = isinstance(path, str) and path
        found = [module for block in blocks if named and (module := module_at(block, path)) is not None]
        if not found:
            known = ", ".join(dict(blocks[0].named_children()))
            raise ValueError(f"the spec's {name!r} has no module {path!r}; it has {known}.")
        if path == unit.conv and not any(_geometry(module, unit.kernel) for module in found):
            raise ValueError(f"the spec's {name}.{path} is no convolution; name one, or give the unit a kernel=.")
    return unit


def _parts_by_row(name: str, block: nn.Module, row: Row) -> list[dict]:
    """The parts of a block whose class has a row, still without shapes."""
    parts = []
    for unit in row.units:
        paths = [unit.conv, unit.begin or unit.conv, unit.end or unit.conv]
        modules = [module_at(block, path) for path in paths]
        geometry = None if None in modules else _geometry(modules[0], unit.kernel)
        if geometry is None:
            continue  # an optional unit that this block lacks
        conv, begin, end = (f"{name}.{path}".lstrip(".") for path in paths)
        host = name if isinstance(modules[0], CONTAINERS) else conv
        part = dict(geometry, name=conv, kind="unit" if row.kind == "block" else row.kind, host=host)
        parts.append(dict(part, begin=Place(begin, unit.begin_side), end=Place(end, unit.end_side)))
    parts += _block(name, parts, name) if row.kind == "block" else []
    act = _activation(block)
    return [dict(part, act=act, init=row.init, nhwc=row.nhwc) for part in parts]


# ---------------------------------------------------------------- the search


def _calls_with_parts(run: Trace, spec: Spec) -> list[Call]:
    """The modules that have parts, as they are entered: those with a row, and blocks whose class has none.

    Such a block adds, in its own code, a shortcut to what a spatial convolution gave; if one of a class does, its siblings
    without a shortcut (where the stride is) are blocks as well.  Of blocks inside blocks the outermost counts, or else the one
    that the spec names.
    """
    classes = {type(call.module) for call, shortcut in residual_calls(run) if shortcut}
    stem = next((call for call in run.calls if is_spatial(call)), None)
    named = [call for call in run.calls if any(cls.__name__ in spec for cls in type(call.module).__mro__)]
    found, blocks = [], []
    for calls in run.by_name.values():
        call, row = calls[0], _row(calls[0].module, spec)
        if any(_within(call, block) for block in blocks) or (call not in named and any(_within(one, call) for one in named)):
            continue
        if row is not None or (type(call.module) in classes and len(calls) == 1 and not (stem and _within(stem, call))):
            found.append(call)
            if row is None or row.kind == "block":
                blocks.append(call)
    return found


def _parts_by_run(run: Trace, block: Call) -> list[dict]:
    """The parts of a block whose class has no row: its units are the spatial convolutions off its shortcut.

    A block that takes tokens, as XCiT's do, has units and cannot be adapted itself.
    """
    convs = [call for call in _convolutions(run) if _within(call, block) and not on_shortcut(call.name, block.name)]
    parts = [_unit(run, conv, block) for conv in convs]
    if _is_map(block):
        # A container would call the adapter as one of its own layers, so the block's first convolution holds it instead.
        host = parts[0]["host"] if parts and isinstance(block.module, CONTAINERS) else block.name
        nhwc = block.out_shape[1] == block.out_shape[2] != block.out_shape[3]
        parts += [dict(part, nhwc=nhwc) for part in _block(block.name, parts, host)]
    act = _activation(block.module)
    return [dict(part, act=act, init="kaiming") for part in parts]


def _units_without_blocks(run: Trace) -> list[dict]:
    """The units of a network without shortcuts, such as VGG or DenseNet: every spatial convolution after the first."""
    whole = run.calls[0]
    convs = [conv for conv in _convolutions(run)[1:] if not any(word in conv.name for word in ("stem", *SHORTCUTS))]
    act = _activation(whole.module)
    return [dict(_unit(run, conv, whole), act=act, init="kaiming") for conv in convs]


def _unit(run: Trace, conv: Call, block: Call) -> dict:
    """A convolution, with the norm and then the activation that take its output and that nothing else takes."""
    end = conv
    for belongs in (_is_norm, _is_activation):
        for call in run.receivers.get(end.returned, ()):
            if belongs(call.module) and _is_map(call) and _within(call, block):
                alone = all(call.begin <= at < call.end for at in run.uses.get(end.returned, ()))
                if alone and len(run.by_name[call.name]) == len(run.by_name[conv.name]) == 1:
                    end = call
                break
    ends = dict(begin=Place(conv.name, "input"), end=Place(end.name, "output"))
    return dict(_geometry(conv.module, None), **ends, name=conv.name, kind="unit", host=conv.name, nhwc=False)


def _block(name: str, units: list[dict], host: str) -> list[dict]:
    """The block around these units, if any, as a part: it is adapted with the widest kernel among them."""
    begin, end = Place(name, "input"), Place(name, "output")
    return [dict(_widest(units), name=name, kind="block", host=host, begin=begin, end=end)] if units else []


def _stages(blocks: list[dict]) -> list[dict]:
    """Runs of blocks with the same parent, from the first one's input to the last one's output (Table 5's ablation)."""
    stages = []
    for name, inside in _grouped((block["name"].rpartition(".")[0], block) for block in blocks).items():
        first, last = inside[0], inside[-1]
        stages.append(dict(_widest(inside), name=name, kind="stage", host=last["host"], begin=first["begin"], end=last["end"]))
    return stages


def _widest(parts: list[dict]) -> dict:
    return max(parts, key=lambda part: kernel_area(part["kernel_size"]))


def _measured(part: dict, shapes: dict[Place, torch.Size]) -> Part:
    """A part with what was observed at its two ends."""
    nhwc, begin, end = part.pop("nhwc"), shapes[part["begin"]], shapes[part["end"]]
    if not len(begin) == len(end) in (3, 4):
        raise UnsupportedBackbone(f"{part['name']} maps {tuple(begin)} to {tuple(end)}; an adapter needs 4-D feature maps.")
    layout = "tokens" if len(end) == 3 else "nhwc" if nhwc else "nchw"
    first, last = (_channels_first(shape, layout) for shape in (begin, end))
    stride = tuple(max(1, round(i / o)) for i, o in zip(first[1:], last[1:], strict=True))
    return Part(in_channels=first[0], out_channels=last[0], stride=stride, out_size=last[1:], layout=layout, **part)


def _channels_first(shape: torch.Size, layout: str) -> tuple[int, int, int]:
    """(C, H, W) of one image; a row of tokens is a map of width 1."""
    return tuple(shape[1:]) if layout == "nchw" else (shape[-1], *shape[1:-1], 1)[:3]


# ---------------------------------------------------------------- what a module is


def _geometry(conv: nn.Module, kernel: Kernel | None) -> dict | None:
    """Kernel, dilation and padding rule of a convolution, or of the widest one inside a container such as MixedConv2d."""
    if kernel is not None or isinstance(conv, nn.Linear):
        return dict(kernel_size=kernel or 1, dilation=(1, 1), same_padding=False)
    # Pools have no in_channels, and some classes around a convolution have one number for a kernel size.
    sized = [module for module in conv.modules() if hasattr(module, "in_channels") and hasattr(module, "dilation")]
    convs = [module for module in sized if isinstance(k := getattr(module, "kernel_size", None), tuple) and len(k) == 2]
    if not convs:
        return None
    widest = max(convs, key=lambda conv: kernel_area(conv.kernel_size))
    height, width = widest.kernel_size
    kernel = height if height == width else (height, width)
    return dict(kernel_size=kernel, dilation=tuple(widest.dilation), same_padding=isinstance(widest, Conv2dSame))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (_NormBase, nn.GroupNorm))


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    known = home == "torch.nn.modules.activation" or home.startswith("timm.layers.activations")
    gate = isinstance(module, GATES) or "sigmoid" in type(module).__name__.lower()
    return known and not gate and next(module.parameters(), None) is None


def _activation(block: nn.Module) -> nn.Module:
    """A fresh copy of the block's own activation, never in place; ReLU where it has none with a module of its own."""
    act = copy.deepcopy(next((module for module in block.modules() if _is_activation(module)), nn.ReLU()))
    if hasattr(act, "inplace"):
        act.inplace = False
    return act


# ---------------------------------------------------------------- what a trace shows


def is_spatial(call: Call) -> bool:
    """A spatial convolution (k > 1) that maps feature maps to feature maps."""
    module, shape = call.module, call.out_shape
    if not isinstance(module, nn.Conv2d) or shape is None:
        return False
    # A gate has one channel, and VGG's first dense layer is a convolution that leaves one pixel.
    return kernel_area(module.kernel_size) > 1 and module.out_channels > 1 and tuple(shape[-2:]) != (1, 1)


def on_shortcut(name: str, block: str = "") -> bool:
    """Whether a module's name says that it lies on the shortcut of its block."""
    return any(word in name.removeprefix(f"{block}.").lower() for word in SHORTCUTS)


def residual_calls(run: Trace) -> Iterator[tuple[Call, bool]]:
    """The calls of modules that add, in their own code, two things made from one; and whether one is a shortcut to the other.

    It is one if it reaches the add without a spatial convolution and the other passes one.
    """
    spatial = {call.name for call in run.calls if is_spatial(call)}
    for call in run.calls:
        if call.name and not 2 < len(call.in_shape or ()) == len(call.out_shape or ()):
            continue  # only the whole network may turn maps into something else
        convolutions = {name for name in spatial if not on_shortcut(name, call.name)}
        ways: list[tuple[bool, bool]] = []
        for at in range(call.begin, call.end):
            step = run.steps[at]
            if step.operation in ("add", "iadd", "radd") and step.module == call.name and len(step.inputs) == 2:
                one, other = (_origins(run.steps[call.begin : at], side, call.received, convolutions) for side in step.inputs)
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


def _convolutions(run: Trace) -> list[Call]:
    """The first call of every spatial convolution of feature maps."""
    return [calls[0] for calls in run.by_name.values() if is_spatial(calls[0]) and _is_map(calls[0])]


def _is_map(call: Call) -> bool:
    return call.in_shape is not None and call.out_shape is not None and len(call.in_shape) == len(call.out_shape) == 4


def _within(call: Call, outer: Call) -> bool:
    return outer.begin <= call.begin and call.end <= outer.end


# ---------------------------------------------------------------- the trace of one forward pass


@dataclass
class Call:
    """One call of one module.  Tensors are numbered in the order in which they come to be."""

    name: str
    module: nn.Module
    received: list[int]  # every tensor among the arguments, as the caller gave it
    begin: int  # position in Trace.steps when it was entered
    in_shape: torch.Size | None  # of the first argument, if it is a tensor
    returned: int | None = None  # the tensor that its own forward returned; of a tuple, the first
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

    @cached_property
    def shapes(self) -> dict[Place, torch.Size]:
        """The shape of the first tensor at each place that was reached."""
        seen = [(Place(call.name, "input"), call.in_shape) for call in self.calls]
        seen += [(Place(call.name, "output"), call.out_shape) for call in self.calls]
        return {place: shape for place, shape in reversed(seen) if shape is not None}


def _grouped(pairs: Iterable[tuple]) -> dict:
    groups: dict = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def trace(model: nn.Module) -> Trace:
    """Run a copy of ``model`` in evaluation mode on one blank image, on the meta device: shapes without arithmetic."""
    copied = skeleton(model).eval()
    for module in copied.modules():  # hooks of the network's own modules are part of it, a user's are there for real images
        remove_hooks(module, lambda hook: not isinstance(getattr(hook, "__self__", None), nn.Module))
    recorder = _Recorder(copied)
    with torch.no_grad(), recorder:
        returned = copied(blank_image(copied))
    recorder.trace.steps.append(Step("return", "", recorder.numbers_in(returned), []))
    for hook in recorder.hooks:
        hook.remove()
    return recorder.trace


class _Recorder(TorchFunctionMode):
    """Numbers every tensor, and records every operation and every call of a module.

    Its hooks run before all others: a call receives what the caller gave and returns what the module's own forward gave.  What
    other hooks compute, an adapter's for instance, belongs to the call before its forward, and to the caller after it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.trace, self.open = Trace(), [Call("", model, [], 0, None)]
        self.numbers: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no two tensors of the pass share an id
        self.names = {module: name for name, module in model.named_modules()}
        self.hooks = []
        for module in self.names:
            self.hooks.append(module.register_forward_pre_hook(self._entering, prepend=True, with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self._leaving, prepend=True))

    def numbers_in(self, values: object, new: bool = False) -> list[int]:
        """The numbers of the tensors in arguments or results; an operation's results are ``new``, also those in place."""
        leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        for leaf in leaves:
            if new or id(leaf) not in self.numbers:
                self.alive.append(leaf)
                self.numbers[id(leaf)] = len(self.alive)
        return [self.numbers[id(leaf)] for leaf in leaves]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        inputs = self.numbers_in((args, kwargs))
        result = function(*args, **(kwargs or {}))
        if outputs := self.numbers_in(result, new=True):
            name = getattr(function, "__name__", "").strip("_")
            self.trace.steps.append(Step(name, self.open[-1].name, inputs, outputs))
        return result

    def _entering(self, module, args, kwargs):
        shape = args[0].shape if args and isinstance(args[0], Tensor) else None
        call = Call(self.names[module], module, self.numbers_in((args, kwargs)), len(self.trace.steps), shape)
        self.trace.calls.append(call)
        self.open.append(call)

    def _leaving(self, module, args, output):
        call = self.open.pop()
        call.end = len(self.trace.steps)
        output = output[0] if isinstance(output, tuple) and output else output
        if isinstance(output, Tensor):
            [call.returned], call.out_shape = self.numbers_in(output), output.shape


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the model without its numbers: every tensor on the meta device."""
    check_module(model)
    copies = {id(weight): nn.Parameter(weight.detach().to("meta"), weight.requires_grad) for weight in model.parameters()}
    copies |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, copies)


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) that the backbone was made for; 224 x 224 where it does not say."""
    check_module(model)
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
    """One image of zeros that ``model`` accepts, shape (1, C, H, W), on its device and in its dtype.

    Args:
        size: (height, width) in pixels, or one number for both; ``None`` is the network's own.

    Raises:
        ValueError: for what is no module, or a size that is none.
    """
    channels, *own = input_shape(model)
    side = own if size is None else check_kernel_size(size, "size", most=100_000)
    height, width = (side, side) if isinstance(side, int) else side
    weight = next(model.parameters(), torch.empty(0))
    return torch.zeros(1, channels, height, width, device=weight.device, dtype=weight.dtype)
