"""The survey: every architecture in timm's registry adapted in every scheme and checked, one row an architecture."""

from __future__ import annotations

import multiprocessing
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from ..anatomy import UnsupportedBackbone
from ..counting import kernel_area
from ..discovery import blank_image, find_parts, skeleton
from ..recipe import adapters, strip
from ..schemes import SCHEMES, UnsupportedScheme, adapt
from .records import RESULTS, add_record, read_records, trial_key
from .tables import markdown

SIZES = (64, 96, 128, 192, None)  # the smallest image that a network accepts is enough to check it; None is its own
NUMERIC_LIMIT = 30_000_000  # above so many parameters only shapes, counts and keys are checked
PATIENCE = 600  # seconds for one architecture


def examine(architecture: str) -> dict:
    """Adapt one architecture in every scheme and check what must hold.

    Returns:
        A row: ``architecture``, ``family`` (timm's file), ``parameters``, how many spatial ``convolutions`` (k > 1) it has and
        how many of them are ``covered`` by an adapted block or unit, ``units`` and ``blocks`` found, ``verdict``
        (``"adapted"``, ``"units only"``, ``"refused"`` or ``"failed"``) with its ``reason``, ``seconds`` of processor time, and
        under ``schemes`` for each scheme the number of ``adapters``, whether the backbone's ``keys`` stayed, and, where the
        network is not too large to run, whether the ``identity`` start was exact and every adapter had finite non-zero
        ``gradients``.
    """
    started = time.process_time()
    row = dict(architecture=architecture, family=_family(architecture))
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=10)
        spatial = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and kernel_area(m.kernel_size) > 1]
        row |= dict(parameters=sum(w.numel() for w in model.parameters()), convolutions=len(spatial))
        images = before = None
        if row["parameters"] <= NUMERIC_LIMIT:
            model = _with_numbers(architecture)
            images, before = _accepted(model)
        schemes = {}
        for scheme in SCHEMES:
            try:
                schemes[scheme] = _check(model, scheme, images, before)
            except UnsupportedScheme:
                pass
        parts = find_parts(strip(skeleton(model)))  # of the network alone, without the adapters that it has by now
        kinds = Counter(part.kind for part in parts)
        inside = tuple(f"{part.name}." for part in parts if part.kind != "stage")
        row |= dict(covered=sum(f"{name}.".startswith(inside) for name in spatial))
        row |= dict(units=kinds["unit"], blocks=kinds["block"], schemes=schemes)
        row |= dict(verdict="adapted" if len(schemes) == len(SCHEMES) else "units only", reason="")
        broken = [f"{scheme}: {key}" for scheme, found in schemes.items() for key in found if found[key] is False]
        if broken:
            row |= dict(verdict="failed", reason="; ".join(broken))
    except UnsupportedBackbone as refusal:
        row |= dict(verdict="refused", reason=str(refusal))
    except Exception as error:  # a survey lists what fails and goes on
        row |= dict(verdict="failed", reason=f"{type(error).__name__}: {str(error)[:200]}")
    return row | {"seconds": round(time.process_time() - started, 1)}


def _family(architecture: str) -> str:
    return timm.models.model_entrypoint(architecture).__module__.rpartition(".")[2]


def _with_numbers(architecture: str) -> nn.Module:
    """The network with random weights, what is all zero in it moved away, since a zero gain hides gradients."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10)
    # Frozen before as after adapt: PyTorch may add in another order where a weight requires a gradient (davit's attention).
    model.requires_grad_(False)
    for weight in model.parameters():
        if not weight.any():
            weight.fill_(0.1)
    return model


def _check(model: nn.Module, scheme: str, images: torch.Tensor | None, before: torch.Tensor | None) -> dict:
    keys = list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of heavy adapters
        adapt(model, scheme, name=scheme)  # beside those before, so that the network is looked at once
    found: dict = {"adapters": len(adapters(model)), "keys": keys == [k for k in model.state_dict() if k in set(keys)]}
    if images is not None:
        with torch.no_grad():
            found["identity"] = torch.equal(model(images), before)
        found["gradients"] = _all_learn(model, images)
    return found


def _all_learn(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether one backward pass gives every adapter tensor a finite, non-zero gradient.

    An adapter that learns nothing is drawn again, for a bottleneck of one channel, as pruned networks have, can be dead by
    chance; PyTorch's own initialisation, because its biases keep dead maps of random networks alive.
    """
    torch.manual_seed(0)
    attached = dead = list(adapters(model).values())
    for _ in range(10):
        for adapter in dead:
            adapter.reset_parameters("torch")
        model.zero_grad()
        F.cross_entropy(model.train()(images), torch.tensor([0, 1])).backward()
        grads = {adapter: [weight.grad for weight in adapter.parameters()] for adapter in attached}
        dead = [a for a in attached if not all(g is not None and bool(g.isfinite().all()) and bool(g.any()) for g in grads[a])]
        if not dead:
            break
    model.eval()
    return not dead


def _accepted(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random images of the smallest size that the network runs on, and its output for them.

    On maps of one pixel the order of additions, and with it the last bit, depends on how a tensor lies in memory.
    """
    info = getattr(model, "feature_info", None) or [{}]
    least = 2 * info[-1].get("reduction", 32)
    for size in [size for size in SIZES if size is None or size >= least]:
        blank = blank_image(model, size)
        images = torch.randn(2, *blank.shape[1:], generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                return images, model.eval()(images)
        except (RuntimeError, AssertionError, ValueError):
            if size is None:
                raise
    raise AssertionError("unreachable: the last size returns or raises")


def examine_all(architectures: Iterable[str] | None = None, place: Path = RESULTS / "survey.json") -> list[dict]:
    """Examine every architecture of timm that has no record in ``place`` yet; safe to stop and start again.

    A process beside this one does the work, so that neither a hang nor a crash of one architecture ends the survey.

    Returns:
        All rows there are.
    """
    found = read_records(place, by="architecture")
    pool = None
    for architecture in architectures or timm.list_models():
        if trial_key(architecture) in found:
            continue
        if pool is None:  # an interrupt from the keyboard is for this process, not for the one that works
            pool = multiprocessing.get_context("spawn").Pool(1, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            row = pool.apply_async(examine, (architecture,)).get(PATIENCE)
        except multiprocessing.TimeoutError:
            pool.terminate()
            pool = None
            row = dict(architecture=architecture, family=_family(architecture), verdict="failed", seconds=PATIENCE)
            row |= dict(reason=f"no answer within {PATIENCE} s: it took longer, or its process ran out of memory")
        print(f"{architecture}: {row['verdict']} {row['reason'][:80]} ({row['seconds']} s)", flush=True)
        found[trial_key(architecture)] = row
        add_record(place, row, by="architecture")
    if pool is not None:
        pool.terminate()
    return [*found.values()]


VERDICTS = ("adapted", "units only", "refused", "failed")


def summary(rows: list[dict]) -> str:
    """Verdicts by family, and the share of spatial convolutions that adapters cover where there are any, as Markdown."""
    shown = []
    for family in [*sorted({row["family"] for row in rows}), "all"]:
        members = [row for row in rows if family in (row["family"], "all")]
        counts = Counter(row["verdict"] for row in members)
        adapted = [row for row in members if "covered" in row]
        share = f"{sum(r['covered'] for r in adapted) / sum(r['convolutions'] for r in adapted):.0%}" if adapted else ""
        shown.append([family, len(members), *(counts[verdict] for verdict in VERDICTS), share])
    return markdown(["family", "architectures", *VERDICTS, "convolutions covered"], shown)


def overview(rows: list[dict]) -> str:
    """What came of the whole registry, in four lines of Markdown."""
    meanings = (
        "adapted in all four schemes",
        "no residual block of feature maps: the two convolution schemes",
        "refused: no block with a spatial convolution",
        "failed",
    )
    shown = []
    for verdict, meaning in zip(VERDICTS, meanings, strict=True):
        families = [row["family"] for row in rows if row["verdict"] == verdict]
        shown.append([meaning, len(families), ", ".join(name for name, _ in Counter(families).most_common(6))])
    header = [f"of {len(rows):,} architectures in {len({row['family'] for row in rows})} families", "number", "families"]
    return markdown(header, shown)
