"""Notes on the tensors of a forward pass that say how backward has them again, so that they need not be kept.

A frozen layer that is cheap leaves a note on its output: what it was computed from, and how.  A layer behind it whose backward
pass needs that output keeps what the note names instead, and computes the output anew.  Notes chain: of ``norm -> linear ->
GELU`` only the norm's input is kept, which the norm keeps for itself anyway.

A note lies on the very tensor that one layer returned and the next receives.  Whatever comes between (an adapter that adds, a
hook that returns something else, a write in place) leaves the next layer with a tensor without a valid note, and it keeps its
input as ever.  Compiled code has no notes: there PyTorch's own partitioner decides what to recompute.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor


class Again:
    """How one tensor is had again from the kept ones; it holds none of them itself, so that autograd alone does.

    Several layers may need the same tensor.  It is computed for the first of them and waits for the last.
    """

    def __init__(
        self,
        before: Again | None,
        compute: Callable[..., Tensor],
        length: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.before, self.compute, self.autocast = before, compute, autocast
        self.length = length  # how many tensors are kept for it, those of the steps before among them
        self.asked, self.value = 0, None

    def ask(self) -> Again:
        """Say in the forward pass that backward will need the tensor once more."""
        if self.asked == 0 and self.before is not None:
            self.before.ask()
        self.asked += 1
        return self

    def __call__(self, kept: tuple[Tensor, ...]) -> Tensor:
        """The tensor, from all that was kept: what the steps before need, and after it the frozen weights of this one."""
        value = self.value
        if value is None:
            length = 1 if self.before is None else self.before.length
            start = kept[0] if self.before is None else self.before(kept[:length])
            with torch.no_grad(), self.autocast():
                value = self.compute(start, *kept[length : self.length])
        self.asked -= 1
        self.value = value if self.asked > 0 else None
        return value


class Note:
    """What lies on a tensor: how it is had again, from which tensors, and the version of it for which that holds."""

    def __init__(self, again: Again, kept: tuple[Tensor, ...], version: int) -> None:
        self.again, self.kept, self.version = again, kept, version


def possible() -> bool:
    """Whether notes are taken and read now."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def note_of(x: Tensor) -> Note | None:
    """The valid note on ``x``, or on the tensor that ``x`` is a view of."""
    if not possible():
        return None
    note = getattr(x, "_lean_note", None)
    if note is not None:
        return note if note.version == x._version else None
    base = x._base
    note = None if base is None else getattr(base, "_lean_note", None)
    if note is None or note.version != base._version or x.dtype != base.dtype:
        return None
    layout, shape, strides, offset = base.stride(), x.shape, x.stride(), x.storage_offset() - base.storage_offset()

    def view(whole: Tensor) -> Tensor:
        if whole.stride() != layout:
            whole = torch.empty_strided(whole.shape, layout, dtype=whole.dtype, device=whole.device).copy_(whole)
        return whole.as_strided(shape, strides, offset)

    return Note(Again(note.again, view, len(note.kept)), note.kept, x._version)


def leave_note(
    y: Tensor, x: Tensor, compute: Callable[..., Tensor], weights: tuple[Tensor, ...] = (), before: Note | None = None
) -> Tensor:
    """Say on ``y`` that it is ``compute(x, *weights)``; where ``before`` is the note on ``x``, from what that one names.

    The computation takes place without gradients, and under the autocast of now.
    """
    if not possible() or y.is_inference() or x.is_inference():
        return y
    kept = ((x.detach(),) if before is None else before.kept) + tuple(weight.detach() for weight in weights)
    again = Again(None if before is None else before.again, compute, len(kept), autocast_of_now(y))
    y._lean_note = Note(again, kept, y._version)
    return y


def autocast_of_now(x: Tensor) -> Callable[[], AbstractContextManager]:
    """What enters the autocast of now, in backward, which runs outside of it."""
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):
        return nullcontext
    return partial(torch.autocast, kind, torch.get_autocast_dtype(kind), cache_enabled=False)
