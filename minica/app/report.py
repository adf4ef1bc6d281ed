"""Writes the report of a run: one HTML file with its pictures in it, which needs no network and fits a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..atomic import write_atomically
from .splits import Pictures

EXAMPLES, WORST = 24, 24  # pictures that are shown
FEW = 50  # test pictures, below which the report warns of its own numbers
MATRIX = 25  # classes of which all confusions are shown; of more, the most frequent ones
THUMBNAIL = 112  # pixels

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 0 1rem 3rem; color: #222; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; } th:first-child { text-align: left; }
thead th { vertical-align: bottom; } tr.best { font-weight: 600; background: #f2f7f5; }
.matrix td { min-width: 1.2rem; padding: .25rem .15rem; text-align: center; }
.matrix thead th + th { writing-mode: vertical-rl; text-align: left; padding: .2rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .6rem; }
figure { margin: 0; font-size: .75rem; line-height: 1.25; overflow-wrap: anywhere; } figure img { width: 100%; display: block; }
.plots { display: flex; flex-wrap: wrap; gap: .5rem; } .plots img { flex: 1 1 18rem; min-width: 0; max-width: 27rem; }
code { background: #f3f3f3; padding: .15rem .3rem; overflow-wrap: anywhere; }
.big { font-size: 1.15rem; } small, .small { color: #555; font-size: .85rem; } li { overflow-wrap: anywhere; }
"""


def write_report(file: Path, run: dict, pictures: Pictures, probabilities: Tensor, labels: Tensor) -> None:
    """The report of ``run`` (see :func:`minica.app.run.train_folder`), with the network's ``probabilities`` (N, C) for the test
    pictures, whose ``labels`` are (N,)."""
    name, guesses = escape(pictures.root.name), probabilities.argmax(1)
    confusion = torch.zeros(len(pictures.classes), len(pictures.classes), dtype=torch.long)
    confusion.index_put_((labels, guesses), torch.tensor(1), accumulate=True)
    parts = [
        f"<h1>{name}: {len(pictures.classes)} classes, {len(pictures.names):,} pictures</h1>",
        _verdict(run),
        "<h2>Against what is simpler</h2>",
        _comparison(run),
        "<h2>The data</h2>",
        _counts(pictures),
        _notes(pictures),
        _examples(pictures),
        "<h2>Training</h2>",
        _training(run),
        "<h2>Class by class</h2>",
        _by_class(pictures.classes, confusion),
        "<h2>What is taken for what</h2>",
        _matrix(pictures.classes, confusion),
        "<h2>The worst errors</h2>",
        _worst(pictures, probabilities, labels),
        "<h2>How it was made</h2>",
        _made(run),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title>'
    head, body = f"{head}<style>{STYLE}</style>", "\n".join(parts)
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    write_atomically(file, page.encode("utf-8", "replace"))  # a file's name may hold what is no text


# ---------------------------------------------------------------- sections


def _verdict(run: dict) -> str:
    found, gain = run["metrics"]["adapters"], run["gain"]
    low, high = gain["accuracy_95"]
    than = "are better than" if low > 0 else "are worse than" if high < 0 else "do not clearly differ from"
    accuracy, balanced = (_with_interval(found, key) for key in ("accuracy", "balanced_accuracy"))
    text = f"Of {found['n']:,} test pictures {accuracy} are right; the mean over classes is {balanced}."
    said = f"The adapters {than} a {gain['over']} on the frozen network: {100 * gain['accuracy']:+.1f} points of accuracy"
    said += f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f}, picture by picture)."
    if found["n"] < FEW:
        said += f" <b>{found['n']} test pictures are too few to decide by</b>: the intervals say what more pictures could show."
    return f'<p class="big">{text}</p><p>{said}</p>'


def _comparison(run: dict) -> str:
    found = run["metrics"]
    rows = [
        [escape(name), _with_interval(score, "accuracy"), _with_interval(score, "balanced_accuracy")]
        for name, score in found.items()
    ]
    what = "Test pictures, looked at once. The nearest neighbour and the probe see the features of the frozen network; balanced"
    what += " accuracy is the mean over classes of the part that is right. In brackets 95 % intervals over test pictures."
    return (
        _table(["method", "accuracy", "balanced accuracy"], rows, best=list(found).index("adapters"))
        + f"<p><small>{what}</small></p>"
    )


def _counts(pictures: Pictures) -> str:
    counts = pictures.counts()
    rows = [[escape(name), *(counts[split][i] for split in counts)] for i, name in enumerate(pictures.classes)]
    return _table(["class", *counts], [*rows, ["all", *(sum(column) for column in counts.values())]])


def _notes(pictures: Pictures) -> str:
    if not pictures.notes:
        return "<p>All files were read; no picture is there twice.</p>"
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in pictures.notes) + "</ul>"


def _examples(pictures: Pictures) -> str:
    """Training pictures of all classes in turn."""
    there = pictures.splits["train"]
    labels = pictures.labels[there].numpy()
    turns = [np.flatnonzero(labels == label) for label in range(len(pictures.classes))]
    rounds = [group[k] for k in range(max(map(len, turns))) for group in turns if k < len(group)][:EXAMPLES]
    shown = sorted(rounds, key=lambda i: labels[i])
    return _sheet((pictures.images[there[i]], [pictures.classes[labels[i]]]) for i in shown)


def _training(run: dict) -> str:
    settings, trials = run["settings"], run["trials"]
    rows = [
        [f"{trial['lr']:g}", "yes" if trial["class_weights"] else "no", f"{trial['val']:.1%}" if "val" in trial else "diverged"]
        for trial in trials[:-1]
    ]
    best = next(i for i, trial in enumerate(trials) if all(trial[key] == trials[-1][key] for key in ("lr", "class_weights")))
    history = run["history"]
    kept = 1 + max(range(len(history)), key=lambda i: history[i]["val_balanced_accuracy"])
    text = f"<code>{escape(settings['scheme'])}</code> adapters at compression {settings['compression']:g} on the frozen"
    text += f" <code>{escape(settings['backbone'])}</code>, pictures of {settings['size']} pixels. In trials"
    text += f" of {_epochs(settings['trial_epochs'])}, chosen by balanced accuracy on validation pictures:"
    after = f"Then at most {_epochs(settings['epochs'])}; epoch {kept} was the best on validation and is kept."
    table = _table(["learning rate", "classes weighted", "validation"], rows, best)
    return f"<p>{text}</p>{table}<p>{after}</p>{_curves(history, kept)}"


def _curves(history: list[dict], kept: int) -> str:
    """Loss and accuracy by epoch, in two pictures that lie below each other on a phone."""
    losses = {
        "training": [record["train_loss"] for record in history],
        "validation": [record["val_loss"] for record in history],
    }
    keys = {"accuracy": "val_accuracy", "balanced accuracy": "val_balanced_accuracy"}
    shares = {name: [100 * record[key] for record in history] for name, key in keys.items()}
    plots = [("loss", losses, ("#D55E00", "#0072B2")), ("right on validation, %", shares, ("#0072B2", "#009E73"))]
    return f'<div class="plots">{"".join(_plot(*plot, [record["epoch"] for record in history], kept) for plot in plots)}</div>'


def _plot(title: str, lines: dict[str, list[float]], colours: Sequence[str], epochs: list[int], kept: int) -> str:
    figure = Figure(figsize=(4.6, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, marker in zip(lines.items(), colours, "os", strict=True):
        axes.plot(epochs, values, f"{marker}-", color=colour, label=name)
    axes.axvline(kept, color="#999999", linestyle=":", zorder=0)
    axes.set(xlabel="epoch", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return f'<img alt="{title}, by epoch" src="{_inline(stream, "png")}">'


def _by_class(classes: Sequence[str], confusion: Tensor) -> str:
    right, there, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    rows = [
        [
            escape(name),
            int(there[i]),
            _part(right[i], there[i]),
            _part(right[i], called[i]),
            _part(2 * right[i], there[i] + called[i]),
        ]
        for i, name in enumerate(classes)
    ]
    what = (
        "Recall: the part of a class's test pictures that is found. Precision: the part that is right where the class is named."
    )
    return _table(["class", "test", "recall", "precision", "F1"], rows) + f"<p><small>{what}</small></p>"


def _matrix(classes: Sequence[str], confusion: Tensor) -> str:
    if len(classes) > MATRIX:
        wrong = confusion.clone().fill_diagonal_(0)
        order = wrong.flatten().argsort(descending=True, stable=True)[:MATRIX].tolist()
        pairs = [divmod(place, len(classes)) for place in order if wrong.flatten()[place]]
        rows = [[escape(classes[i]), escape(classes[j]), int(wrong[i, j])] for i, j in pairs]
        return _table(["is", "taken for", "pictures"], rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in classes)
    body = ""
    for name, row in zip(classes, confusion, strict=True):
        cells = "".join(_cell(int(count), int(row.sum())) for count in row)
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    table = f'<table class="matrix"><thead><tr><th>is \\ taken for</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _cell(count: int, of: int) -> str:
    share = count / max(of, 1)
    shade = ", ".join(f"{255 + share * (end - 255):.0f}" for end in (0, 100, 150))
    colour = "#fff" if share > 0.83 else "#000"  # both have a contrast of 4.5 there, and either alone on its side
    return f'<td style="background: rgb({shade}); color: {colour}">{count or "·"}</td>'


def _worst(pictures: Pictures, probabilities: Tensor, labels: Tensor) -> str:
    guesses, right = probabilities.argmax(1), probabilities[torch.arange(len(labels)), labels]
    wrong = [i for i in right.argsort(stable=True).tolist() if guesses[i] != labels[i]]
    if not wrong:
        return "<p>There is none: every test picture is right.</p>"
    test = pictures.splits["test"]
    text = f"{len(wrong)} of {len(labels)} test pictures are wrong; these are the ones that the network is surest of."
    shown = []
    for i in wrong[:WORST]:
        said = (
            f"is {pictures.classes[labels[i]]}, taken for {pictures.classes[guesses[i]]} ({probabilities[i, guesses[i]]:.0%})"
        )
        shown.append((pictures.images[test[i]], [pictures.names[test[i]], said]))
    return f"<p>{text} Look for labels that are wrong, too.</p>{_sheet(shown)}"


def _made(run: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    text = f"{run['seconds'] / 60:.1f} minutes of training on {run['hardware']}; Python {run['python']}, {versions}."
    text = escape(text)
    text += f" The adapter file has {run['adapter_bytes'] / 1e6:.2f} MB. <code>run.json</code> has every setting and split."
    return f"<p><code>{escape(run['command'])}</code></p><p><small>{text}</small></p>"


# ---------------------------------------------------------------- pieces


def _table(head: Sequence[str], rows: Iterable[Sequence], best: int | None = None) -> str:
    """Cells of ``rows`` are HTML already; the first of each is its heading."""
    body = ""
    for i, (first, *cells) in enumerate(rows):
        mark = ' class="best"' if i == best else ""
        body += f"<tr{mark}><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    columns = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def _sheet(shown: Iterable[tuple[Tensor, Sequence[str]]]) -> str:
    figures = ""
    for image, lines in shown:
        caption = "<br>".join(map(escape, lines))
        figures += (
            f'<figure><img alt="{escape(lines[0])}" src="{_thumbnail(image)}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div class="sheet">{figures}</div>'


def _thumbnail(image: Tensor) -> str:
    stream, picture = io.BytesIO(), to_pil_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(stream, "JPEG", quality=80)
    return _inline(stream, "jpeg")


def _inline(stream: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def _with_interval(score: dict, key: str) -> str:
    return f"{score[key]:.1%} <small>({_interval(score[f'{key}_95'])})</small>"


def _part(some: Tensor, of: Tensor) -> str:
    return f"{int(some) / int(of):.0%}" if of else "-"
