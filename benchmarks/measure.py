"""Measures all methods in one process, taking turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minica
from minica.experiments import markdown, provenance
from minica.profiling import activations

from .methods import COMPRESSION, METHODS, PEFT, side_effects

# Where the adapters are.  In inverted residuals the convolutions have the expanded channels, so there the blocks are adapted.
BACKBONES = {"resnet50": "conv_parallel", "convnext_tiny": "conv_parallel", "tf_efficientnet_lite0": "residual_parallel"}
PRECISIONS = ("float32", "bf16")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CLASSES = 10
FULL = next(iter(METHODS))


def measure(cell: dict) -> dict:
    """Everything about one backbone in one precision and memory layout.

    Args:
        cell: ``backbone``, ``scheme``, ``precision``, ``layout``, ``batch``, ``size`` in pixels, ``rounds`` (0: only what is
            counted, which is the same on every machine), ``threads``, ``device``; ``compression`` if it is not 4, ``methods``
            if not all are measured, and ``inference=False`` if only training is timed.

    Returns:
        A record: ``config`` (the cell), where it ran, and of each of the ``methods`` either ``refused``, the kind and first
        line of the error with which a method of ``peft`` does not run on the network, or

        * ``trained``: parameters; ``activations``: bytes kept for the backward pass; ``macs``: multiply-accumulates of one
          image's forward pass (not of ``peft``'s methods, which are merged for inference);
        * ``peak_memory``: bytes of the GPU in a training step of this method alone, AdamW's state included; None on a CPU;
        * ``step``: milliseconds of a training step, AdamW included, a round each;
        * ``inference``: of a forward pass in evaluation mode; ``folded``: of the folded copy;
        * of methods of ``peft``, ``side_effects``, and ``unmerged``, the error, where its update cannot be merged.
    """
    images, labels = _batch(cell)
    found: dict[str, dict] = {}
    models = {}
    for name in cell.get("methods", METHODS):
        try:
            found[name], models[name] = _alone(name, cell, images, labels)
        except Exception as error:
            if name not in PEFT:
                raise
            found[name] = {"refused": _first_line(error)}
        if not cell["rounds"]:
            models.pop(name, None)
    if not cell["rounds"]:
        return {"config": cell, "methods": found, **provenance()}
    steps = {name: _training_step(model, images, labels, cell) for name, model in models.items()}
    for name, times in _take_turns(steps, cell).items():
        found[name]["step"] = times
    if not cell.get("inference", True):
        return {"config": cell, "methods": found, **provenance()}
    del steps
    folded = {}
    for name, model in models.items():
        model.zero_grad(set_to_none=True)
        try:
            folded |= {} if "published" in name else {name: minica.fold(_merged(model))}
        except Exception as error:
            if name not in PEFT:
                raise
            found[name]["unmerged"] = _first_line(error)
    for key, nets in (("inference", models), ("folded", folded)):
        for name, times in _take_turns({name: _inference(net, images, cell) for name, net in nets.items()}, cell).items():
            found[name][key] = times
    return {"config": cell, "methods": found, **provenance()}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _batch(cell: dict) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(cell["batch"], 3, cell["size"], cell["size"], generator=generator)
    labels = torch.randint(CLASSES, (cell["batch"],), generator=generator)
    return images.to(cell["device"], memory_format=LAYOUTS[cell["layout"]]), labels.to(cell["device"])


def _backbone(cell: dict) -> nn.Module:
    torch.manual_seed(0)
    model = minica.create_backbone(cell["backbone"], num_classes=CLASSES, pretrained=False)  # costs do not depend on weights
    return model.to(cell["device"], memory_format=LAYOUTS[cell["layout"]])


def _alone(name: str, cell: dict, images: Tensor, labels: Tensor) -> tuple[dict, nn.Module]:
    """What is counted and not timed, and the model, prepared."""
    cuda = images.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    model = METHODS[name](_backbone(cell), cell["scheme"], cell.get("compression", COMPRESSION))
    step = _training_step(model, images, labels, cell)
    if cell["rounds"]:
        step()  # so that there are gradients and the optimizer's state
    if cuda and cell["rounds"]:
        torch.cuda.reset_peak_memory_stats()
        step()
    entry = {
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "peak_memory": torch.cuda.max_memory_allocated() - before if cuda and cell["rounds"] else None,
    }
    with _autocast(cell):
        entry["activations"] = activations(model, images)
    if name not in PEFT:
        entry["macs"] = minica.count(model, cell["size"])["macs"]
    else:
        entry["side_effects"] = side_effects(_backbone(cell), name, cell["scheme"], images)
    return entry, model


def _autocast(cell: dict):
    return torch.autocast(torch.device(cell["device"]).type, torch.bfloat16) if cell["precision"] == "bf16" else nullcontext()


def _training_step(model: nn.Module, images: Tensor, labels: Tensor, cell: dict) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)

    def step() -> None:
        model.train()
        with _autocast(cell):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _inference(model: nn.Module, images: Tensor, cell: dict) -> Callable[[], None]:
    model.eval().to(memory_format=LAYOUTS[cell["layout"]])

    @torch.inference_mode()
    def forward() -> None:
        with _autocast(cell):
            model(images)

    return forward


def _merged(model: nn.Module) -> nn.Module:
    """LoRA's product added to the weights, as ``peft`` does it."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _take_turns(tasks: dict[str, Callable[[], None]], cell: dict) -> dict[str, list[float]]:
    """Milliseconds of each task, a list over the rounds; every round starts with another task."""
    names, times = list(tasks), {name: [] for name in tasks}
    for task in tasks.values():
        task()  # once to warm up
    for number in range(cell["rounds"]):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _wait(cell)
            started = time.perf_counter()
            tasks[name]()
            _wait(cell)
            times[name].append(round(1e3 * (time.perf_counter() - started), 2))
    return times


def _wait(cell: dict) -> None:
    if torch.device(cell["device"]).type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- what the records say


def ratios(record: dict, method: str, key: str, base: str = FULL) -> list[float]:
    """A method's times over those of ``base`` in the same round; none where either was not timed."""
    own, other = (record["methods"][name].get(key, ()) for name in (method, base))
    return [a / b for a, b in zip(own, other, strict=True)] if own and other else []


def ratio(record: dict, method: str, key: str) -> tuple[float, float, float] | None:
    """(median, lowest, highest) over the rounds of a method's time over full fine-tuning's in the same round."""
    values = ratios(record, method, key)
    return (statistics.median(values), min(values), max(values)) if values else None


def median_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """(median, low, high): the two order statistics between which the true median lies with at least 95 %.

    They ask nothing of how the values are distributed (the binomial interval of a quantile).  Fewer than six have none.
    """
    n, below = len(values), 0.0
    for rank in range(n // 2 + 1):
        below += math.comb(n, rank) / 2**n  # the chance that at most ``rank`` of n values lie below the median
        if 2 * below > 0.05:
            break
    if not rank:
        return None
    ordered = sorted(values)
    return statistics.median(values), ordered[rank - 1], ordered[n - rank]


def describe(cell: dict) -> str:
    return f"{cell['backbone']}, {cell['precision']}, {cell['layout']}, {cell['batch']} x {cell['size']} px"


def table(records: list[dict]) -> str:
    """One Markdown table, a block of rows for each record; below it what did not run, and why."""
    header = ["backbone, precision, layout, images", "method", "trained", "activations, MiB (of full)"]
    header += ["step of full: median (range)", "MACs of full", "inference of full", "folded, of full folded"]
    header += ["peak GPU memory of full"]
    rows, below = [], []
    for record in records:
        full = record["methods"][FULL]
        for name, entry in record["methods"].items():
            row = [describe(record["config"]) if entry is full else "", name]
            if "refused" in entry:
                rows.append([*row, "does not run", *[""] * 6])
                below.append(f"* {record['config']['backbone']}, {name}: {entry['refused']}")
                continue
            kept = entry["activations"]
            row += [f"{entry['trained']:,}", f"{kept / 2**20:.1f} ({kept / full['activations']:.3f})"]
            row.append(_spread(ratio(record, name, "step")))
            row.append(f"{entry['macs'] / full['macs']:.3f}" if "macs" in entry else "-")
            row += [_spread(ratio(record, name, key)) for key in ("inference", "folded")]
            peak = entry["peak_memory"]
            row.append("-" if peak is None else f"{peak / full['peak_memory']:.2f}")
            rows.append(row)
    errors = "\n".join(["", "What does not run:", "", *dict.fromkeys(below), ""]) if below else ""
    return f"{markdown(header, rows)}\n{errors}"


ADAPTERS = {"published": "Conv-Adapter, published form", "plain": "Conv-Adapter", "lean": "Conv-Adapter, lean"}


def summary(records: list[dict]) -> str:
    """The adapter's forms beside full fine-tuning, as Markdown: one line for each record."""
    header = ["backbone, precision, layout, images", "kept, full"]
    header += [f"{what}, {form}" for what in ("kept", "step") for form in ADAPTERS]
    rows = []
    for record in records:
        full = record["methods"][FULL]["activations"]
        kept = [f"{record['methods'][name]['activations'] / full:.2f}" for name in ADAPTERS.values()]
        steps = [_spread(ratio(record, name, "step")) for name in ADAPTERS.values()]
        rows.append([describe(record["config"]), f"{full / 2**20:.0f} MiB", *kept, *steps])
    return markdown(header, rows)


def _spread(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else "{:.2f} ({:.2f} to {:.2f})".format(*found)


def exit_with(main: Callable[[], int]) -> NoReturn:
    """End the process with the status of a command's ``main``; what the user can mend is one line and no traceback."""
    try:
        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; install the benchmark's extra: pip install 'minica[bench]'")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
