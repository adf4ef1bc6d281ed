"""The device, precision and processes that a run computes with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import patch_environment


def usable_device(device: str | torch.device | None) -> torch.device:
    """``device``, or without one CUDA if it is there, else the CPU.

    Raises:
        ValueError: if it cannot be used here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu' or None.") from error


@contextmanager
def accelerator_on(device: str | torch.device | None, precision: str) -> Iterator[Accelerator]:
    """Accelerate keeps device and precision in process-wide singletons: a notebook's second fit could not change them,
    and a caller's own accelerator would decide for us.  So they are emptied for a run and put back after it."""
    wanted = usable_device(device)
    if precision == "fp16" and wanted.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU; on the CPU choose 'bf16' or 'no'.")
    # Left to itself Accelerate prefers MPS to the CPU, and takes the first GPU or, of several processes, each its own.
    numbered = device is not None and torch.device(device).index is not None
    singletons = (AcceleratorState, PartialState, GradientState)
    before = [dict(singleton._shared_state) for singleton in singletons]
    try:
        for singleton in singletons:
            singleton._reset_state()
        with patch_environment(**({"ACCELERATE_TORCH_DEVICE": wanted} if numbered else {})):
            accelerator = Accelerator(cpu=wanted.type == "cpu", mixed_precision=precision)
        yield accelerator
    finally:
        for singleton, state in zip(singletons, before, strict=True):
            singleton._reset_state()
            singleton._shared_state.update(state)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """The caller's random numbers go on as if nothing had been seeded."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
