"""The hooks by which what was added reads and writes inside a running network, and the check that they are still in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.fx import Proxy

from .anatomy import Part


class AdaptersDetached(ValueError):
    """A tool replaced modules that adapters are hooked to, so the model would compute with fewer adapters than it has."""


class Attachment:
    """A module that was added to a network; it acts through its bound methods, which are hooks of the network's modules.

    Bound methods survive copies and pickles: the copy's hooks call the copy's attachment.
    """

    hooked: list[tuple[str, str]]  # (name of a module in the network, "forward" or "forward_pre")

    def hook(self, network: nn.Module, name: str, kind: str, method: Callable) -> None:
        """Register ``method`` as a hook of the module called ``name``, and remember that it is there."""
        getattr(network.get_submodule(name), f"register_{kind}_hook")(method)
        self.hooked = [*getattr(self, "hooked", ()), (name, kind)]


def attachments(model: nn.Module) -> list[str]:
    """Dotted names of all that was added to the model."""
    return [name for name, module in model.named_modules() if isinstance(module, Attachment)]


def remove_hooks(module: nn.Module, unwanted: Callable[[Callable], bool]) -> None:
    """Remove every forward hook and forward pre-hook of one module that is ``unwanted``."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if unwanted(hook)]:
            del hooks[key]


def remove_attachments(model: nn.Module) -> nn.Module:
    """Remove all attachments and their hooks."""
    for module in model.modules():
        remove_hooks(module, lambda hook: isinstance(getattr(hook, "__self__", None), Attachment))
    for name in attachments(model):
        host, _, child = name.rpartition(".")
        delattr(model.get_submodule(host), child)
    return model


def lost_hooks(network: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Which of the attachments called ``names`` are gone, or are no longer called where they were hooked."""
    return [name for name in names if not _is_hooked(network, module_at(network, name))]


def _is_hooked(network: nn.Module, attachment: nn.Module | None) -> bool:
    if not isinstance(attachment, Attachment):
        return False
    hooks = [getattr(module_at(network, place), f"_{kind}_hooks", {}).values() for place, kind in attachment.hooked]
    return all(any(getattr(hook, "__self__", None) is attachment for hook in found) for found in hooks)


def module_at(model: nn.Module, name: str) -> nn.Module | None:
    """``model.get_submodule(name)``, or None; several times as fast, since it runs before every forward pass."""
    for part in name.split(".") if name else ():
        model = model._modules.get(part)
        if model is None:
            return None
    return model


# ---------------------------------------------------------------- where adapters read and write


class _Seen(threading.local):
    """What a thread has seen of the forward pass that it is in; a copy or a pickle has seen nothing."""

    value: Tensor | None = None

    def __reduce__(self):
        return _Seen, ()


class Site(Attachment, nn.ModuleDict):
    """The adapters of one part of a network, one a set, and the two places where they read and write.

    It is a child of the part's module, so that its parameters add keys to the state dict and change none.
    """

    # What a set cannot be called, since sets are children of a site.
    TAKEN = {*dir(nn.ModuleDict()), "hooked", "part_name", "layout", "begin", "end", "reads", "active", "seen", "hook"}

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part_name, self.layout, self.begin, self.end = part.name, part.layout, part.begin, part.end
        self.reads: dict[str, str] = {}  # adapter name -> which end of the part it reads
        self.active: str | None = None
        self.seen = _Seen()  # the part's input, between its beginning and its end

    def register_hooks(self, network: nn.Module) -> None:
        begin, end = self.begin, self.end
        if begin.side == "output":
            self.hook(network, begin.module, "forward", self.keep_output)
        elif begin.module != end.module:  # of one module, ``write`` is given input and output together
            self.hook(network, begin.module, "forward_pre", self.keep_input)
        if end.side == "input":
            self.hook(network, end.module, "forward_pre", self.write_input)
        else:
            self.hook(network, end.module, "forward", self.write)

    def keep_input(self, module: nn.Module, args: tuple) -> None:
        if self.active is not None and self.reads[self.active] == "input":
            _refuse_tracing(args[0])
            self.seen.value = args[0]

    def keep_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.keep_input(module, (output,))

    def write(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if self.active is None:
            return None
        if isinstance(output, tuple):  # a block may return more than its map
            return (self.write(module, args, output[0]), *output[1:])
        _refuse_tracing(output)
        read = output
        if self.reads[self.active] == "input":
            if self.begin == (self.end.module, "input"):
                read = args[0]
            else:
                read, self.seen.value = self.seen.value, None
        size = self.to_maps(output).shape[-2:]
        # Out of place: the output may be what an in-place activation keeps for its backward pass.
        return output + self.from_maps(self[self.active](self.to_maps(read), (size[0], size[1])))

    def write_input(self, module: nn.Module, args: tuple) -> tuple | None:
        adapted = self.write(module, args, args[0])
        return None if adapted is None else (adapted, *args[1:])

    def to_maps(self, x: Tensor) -> Tensor:
        """To (N, C, H, W): from (N, H, W, C), or from (N, tokens, C) as a map one pixel wide."""
        if self.layout == "nhwc":
            return x.permute(0, 3, 1, 2)
        return x.transpose(1, 2).unsqueeze(-1) if self.layout == "tokens" else x

    def from_maps(self, x: Tensor) -> Tensor:
        if self.layout == "nhwc":
            return x.permute(0, 2, 3, 1)
        return x.squeeze(-1).transpose(1, 2) if self.layout == "tokens" else x

    def extra_repr(self) -> str:
        return f"active={self.active}"


def _refuse_tracing(x: Tensor) -> None:
    if isinstance(x, Proxy):
        what = "adapters depend on the shapes of feature maps, so torch.fx (create_feature_extractor) cannot trace them"
        raise ValueError(f"{what}; take maps with forward hooks, or adapt create_backbone(name, features_only=True).")


def sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """Every adapted part of ``model``: the dotted name of its site, and the site."""
    for name, module in model.named_modules():
        if isinstance(module, Site):
            yield name, module
