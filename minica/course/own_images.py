"""Notebook 10: a folder as people have it, how many labels are enough, excerpts of a report, and a threshold."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch

from ..app.choices import choose_scheme
from ..app.report import STYLE
from ..backbones import create_backbone
from ..data.packaged import solar_cell_files
from ..discovery import find_parts, skeleton
from ..profiling import count
from ..schemes import adapt
from ..tasks.classification import wilson_interval
from .plots import Curves
from .results import Results

METHODS = ("Linear probe", "Conv-Adapter", "Full fine-tuning")  # by what they cost, the cheapest first
CLASSES = ("defective", "functional")


# ---------------------------------------------------------------- the folder


def write_folder(root: str | Path, labelled: Sequence[int], new: int, seed: int = 0) -> Path:
    """Photographs of solar cells as people have theirs: ``root/photos/<class>/*.png`` and ``root/new/*.png``.

    Among them, as in most folders: a file that was copied halfway, notes, and the same picture twice.  Only cells whose rater
    was sure are taken, and none of ``new`` is in ``photos``.  What was there before is replaced.

    Args:
        labelled: how many of :data:`CLASSES`.
        new: how many without a label, half of them defective.
    """
    root, random = Path(root), np.random.RandomState(seed)
    files, level, _ = solar_cell_files()
    for name in ("photos", "new"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "new").mkdir(parents=True)
    half = (new // 2, new - new // 2)
    for name, surely, number, more in zip(CLASSES, (3, 0), labelled, half, strict=True):
        drawn = random.permutation(np.flatnonzero(level == surely))[: number + more]
        (root / "photos" / name).mkdir(parents=True)
        for i in drawn[:number]:
            shutil.copy(files[i], root / "photos" / name)
        for i in drawn[number:]:
            shutil.copy(files[i], root / "new")
    pictures = sorted((root / "photos" / CLASSES[0]).glob("*.png"))
    shutil.copy(pictures[0], pictures[0].with_name(f"{pictures[0].stem} (copy).png"))
    for place, name in ((root / "photos" / CLASSES[1], "copied halfway.png"), (root / "new", "copied halfway.png")):
        (place / name).write_bytes(pictures[1].read_bytes()[:2000])
    (root / "photos" / "notes.txt").write_text("taken at 1.4 A, by hand\n")
    (root / "photos" / CLASSES[1] / "notes.txt").write_text("the third row again?\n")
    return root


def scheme_rows(backbones: Sequence[str]) -> list[list]:
    """Of each backbone, without its weights: mean width of its units and blocks in channels, the scheme that follows, the
    adapters' parameters and their share of the backbone's."""
    rows = []
    for name in backbones:
        with torch.device("meta"):
            model = create_backbone(name, num_classes=2, pretrained=False)
            found = find_parts(skeleton(model))
            options = choose_scheme(model)
            adapt(model, **options)
        widths = [np.mean([part.out_channels for part in found if part.kind == kind]) for kind in ("unit", "block")]
        numbers = count(model)
        share = f"{numbers['adapters'] / numbers['backbone']:.1%}"
        chosen = f"`{options['scheme']}`, compression {options['compression']}"
        rows.append([f"`{name}`", *(f"{width:.0f}" for width in widths), chosen, f"{numbers['adapters']:,}", share])
    return rows


# ---------------------------------------------------------------- how many labels


def curves_by_labels(results: Results) -> Curves:
    """Test accuracy in %, one number a seed, by method and number of labelled images."""
    found: Curves = {name: {} for name in METHODS}
    for cell, runs in results.finals:
        found[cell.method][runs[0]["config"]["labels"]] = [100 * run["test"]["accuracy"] for run in runs]
    return found


def around(measured: Sequence[int], mine: int) -> tuple[int, int]:
    """The largest number of labels that was measured and is not above ``mine``, and the smallest that is not below."""
    return max([n for n in measured if n <= mine] or measured[:1]), min([n for n in measured if n >= mine] or measured[-1:])


def reading(curves: Curves, mine: int) -> str:
    """What was measured at ``mine`` labels or on both sides of it, and which method that speaks for."""
    measured = list(next(iter(curves.values())))
    ends = dict.fromkeys(around(measured, mine))
    lines = [] if mine in measured else [f"{mine:,} labels were not measured; {' and '.join(f'{n:,}' for n in ends)} were:"]
    for n in ends:
        values = {name: points[n] for name, points in curves.items()}
        shown = [f"{name} {np.mean(v):.1f} % ({min(v):.1f} to {max(v):.1f})" for name, v in values.items()]
        lines.append(f"{n:,} labels: {'; '.join(shown)}. {decision(values)}")
    return "\n".join(lines)


def paired(one: Sequence[float], other: Sequence[float]) -> str:
    """What two lists of results say of each other, run by run on the same draws: ``"above"``, ``"below"``, or where the
    differences have both signs ``"not told apart"``."""
    signs = set(np.sign(np.subtract(one, other)))
    return {1.0: "above", -1.0: "below"}[signs.pop()] if len(signs) == 1 and 0 not in signs else "not told apart"


def chosen(values: Mapping[str, Sequence[float]], compare=paired) -> str:
    """The cheapest method that no dearer one is above in every run; ``values`` in the order of :data:`METHODS`."""
    names = list(values)
    for i, name in enumerate(names):
        if all(compare(values[dearer], values[name]) != "above" for dearer in names[i + 1 :]):
            return name
    return names[-1]


def decision(values: Mapping[str, Sequence[float]], compare=paired) -> str:
    """:func:`chosen`, as a sentence with its reason."""
    best, names = chosen(values, compare), list(values)
    beaten = [name for name in names[: names.index(best)] if compare(values[best], values[name]) == "above"]
    losses = [name for name in names[names.index(best) + 1 :] if compare(values[name], values[best]) == "below"]
    said = f"Use the {best.lower() if best != 'Conv-Adapter' else best}: "
    said += f"it is above the {_listed(beaten)} in every run" if beaten else "nothing dearer is above it in every run"
    return said + (f"; the {_listed(losses)} loses to it in every run." if losses else ".")


def _listed(names: Sequence[str]) -> str:
    return " and the ".join(name.lower() if name != "Conv-Adapter" else name for name in names)


# ---------------------------------------------------------------- the report


def excerpt(report: Path, *headings: str) -> str:
    """Sections of a run's report as HTML that needs no network and no frame; without headings, what it says first.

    Raises:
        ValueError: naming a heading that the report does not have.
    """
    page = report.read_text(encoding="utf-8").partition("<body>")[2].partition("</body>")[0]
    first, *sections = re.split(r"<h2>", page)
    found = dict(section.split("</h2>", 1) for section in sections)
    if unknown := [name for name in headings if escape(name) not in found]:
        raise ValueError(f"the report has no section {unknown[0]!r}; it has {', '.join(found)}.")
    parts = [f"<h4>{escape(name)}</h4>{found[escape(name)]}" for name in headings] or [first.partition("</h1>")[2]]
    rules = []
    for selectors, rule in re.findall(r"([^{}]+)\{([^}]*)\}", STYLE):
        own = [name.strip() for name in selectors.split(",") if name.strip() not in ("body", "h1", "h2")]
        rules += [f"{', '.join(f'.minica-report {name}' for name in own)} {{{rule}}}"] if own else []
    return f'<div class="minica-report"><style>{" ".join(rules)}</style>{"".join(parts)}</div>'


# ---------------------------------------------------------------- the decision


def cheapest_threshold(scores: np.ndarray, broken: np.ndarray, missed: float) -> float:
    """The threshold above whose score a cell is looked at again, by the lowest cost; of equals the one nearest to 0.5.

    Args:
        scores: (N,), from 0 to 1, of being broken.
        broken: (N,), whether a cell is.
        missed: the cost of a broken cell that is not looked at; that of a good one that is looked at is 1.
    """
    there = np.unique(scores)
    tried = [0.5, 0.0, *(there[1:] + there[:-1]) / 2, 1.0]
    return float(min(tried, key=lambda at: (_cost(scores, broken, at, missed), abs(at - 0.5))))


def decided(scores: np.ndarray, broken: np.ndarray, threshold: float, missed: float) -> list[str]:
    """What a threshold does, as a row: itself, broken cells missed and good cells looked at (95 % intervals), cost per cell."""
    mistakes = [(scores <= threshold)[broken], (scores > threshold)[~broken]]
    parts = []
    for wrong in mistakes:
        low, high = wilson_interval(int(wrong.sum()), len(wrong))
        parts.append(f"{wrong.sum()} of {len(wrong)} ({100 * low:.0f} to {100 * high:.0f} %)")
    return [f"{threshold:.2f}", *parts, f"{_cost(scores, broken, threshold, missed):.2f}"]


def cheaper(scores: np.ndarray, broken: np.ndarray, threshold: float, missed: float) -> str:
    """Whether a threshold costs less than 0.5 does, and than no network at all, as a sentence."""
    mine, half, none, every = (_cost(scores, broken, at, missed) for at in (threshold, 0.5, 1.0, 0.0))
    word = "less than" if mine < half else "more than" if mine > half else "as much as"
    simple = min(none, every)
    without = "less than" if mine < simple else "more than" if mine > simple else "as much as"
    return (
        f"On {len(scores)} pictures the chosen threshold costs {word} 0.5, and {without} deciding without a network: "
        f"looking at no cell costs {none:.2f} per cell, looking at every cell {every:.2f}."
    )


def _cost(scores: np.ndarray, broken: np.ndarray, threshold: float, missed: float) -> float:
    if broken.all() or not broken.any():
        raise ValueError(f"all {len(broken)} cells are {'broken' if broken.any() else 'good'}; a threshold needs some of each.")
    seen = scores > threshold
    return float(missed * (broken & ~seen).sum() + (~broken & seen).sum()) / len(scores)
