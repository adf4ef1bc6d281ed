"""How large what each adapter adds is, beside the map that it adds to."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..hooks import sites
from ..recipe import adapters


@torch.no_grad()
def adapter_shares(model: nn.Module, images: Tensor) -> dict[str, float]:
    """How large what each adapter adds is beside the map it adds to: ``|delta| / |h + delta|`` on ``images``, by place."""
    norms: dict[str, dict[str, float]] = {"delta": {}, "map": {}}
    handles = []

    def measure(module: nn.Module, what: str, place: str) -> None:
        def hook(_, args, output):
            norms[what][place] = output.norm().item()

        handles.append(module.register_forward_hook(hook))

    for place, adapter in adapters(model).items():
        measure(adapter, "delta", place)
    for _, site in sites(model):
        end = model.get_submodule(site.end.module)
        if site.end.side == "output":
            measure(end, "map", site.part_name)
        else:
            take = partial(norms["map"].__setitem__, site.part_name)
            handles.append(end.register_forward_pre_hook(lambda _, args, take=take: take(args[0].norm().item())))
    try:
        model(images.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return {place: norm / norms["map"][place] for place, norm in norms["delta"].items()}
