"""Trains on one's own pictures with no choice left to the user, and fills a run folder: adapter, run.json, report.html."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from ..adapter_files import WEIGHTS, save_adapter
from ..atomic import write_atomically
from ..backbones import create_backbone, normalization
from ..experiments.runs import provenance
from ..experiments.scores import bootstrap_interval
from ..fast.devices import randomness_kept
from ..run_folder import locked
from ..schemes import adapt
from ..training import TrainingDiverged, fit, predict
from .baselines import baselines, features, scores
from .choices import AUGMENT, BACKBONE, PRESETS, WARMUP, WEIGHT_DECAY, Preset, choose_scheme, class_weights
from .report import write_report
from .splits import RESIZE, Pictures, read_pictures

PLAN, RUN, REPORT, TRIALS = "plan.json", "run.json", "report.html", "trials"
ADAPTED, PROBE = "adapters", "linear probe"  # of what is compared on the test pictures
MONITOR = "balanced_accuracy"
SEED = 0


def train_folder(
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    preset: str = "laptop",
    backbone: str = BACKBONE,
    skip_broken: bool = False,
    progress: bool = True,
) -> dict:
    """Train adapters on the pictures of a folder or a CSV, and write what came of it into the folder ``out``.

    A learning rate, and weights of the classes if these are unbalanced, are chosen on validation pictures in short trials; the
    best trains for longer and keeps its best epoch.  The test pictures are looked at once, at the end.  What was killed goes on
    when it is called again, to the same result; what is finished comes back at once.

    Args:
        data: a folder of class folders, split into ``train``, ``val`` and ``test`` or not, or a CSV with the columns ``path``
            and ``label``, and ``group`` and ``split`` where they are known; see :func:`minica.app.splits.read_pictures`.
        out: a new folder, or that of the same run.
        preset: ``"smoke"`` (seconds; its numbers mean nothing), ``"laptop"`` or ``"gpu"``: picture size, rates and epochs.
        backbone: a name that :func:`minica.create_backbone` knows.  Where its adapters sit follows from its shape, see
            :func:`minica.app.choices.choose_scheme`.
        skip_broken: leave out pictures that do not decode, instead of refusing them.
        progress: say what is going on, with the time left.

    Returns:
        What ``run.json`` holds: ``settings``, ``classes``, ``splits`` (names of pictures), ``trials``, ``history``,
        ``metrics`` by method, what was ``skipped``, ``notes`` on the data, ``versions``.

    Raises:
        ValueError: for whatever is wrong with the data, an unknown preset or backbone, or a folder that holds something else;
            nothing has been written then.
        TrainingDiverged: if no rate that was tried trains.

    Warns:
        UserWarning: with each of the notes on the data.
    """
    data, out = Path(data).expanduser(), Path(out).expanduser()
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ValueError(f"{out} is in the folder of the pictures {data}, where it would be taken for a class; choose another.")
    chosen, say = PRESETS[preset], print if progress else lambda *parts, **options: None
    bare = create_backbone(backbone, num_classes=0)
    fixed = bare.pretrained_cfg.get("fixed_input_size") if hasattr(bare, "pretrained_cfg") else False
    size = bare.pretrained_cfg["input_size"][-1] if fixed else chosen.size
    pictures = read_pictures(data, size, skip_broken)
    for note in pictures.notes:
        warnings.warn(f"{data}: {note}", stacklevel=2)
    expected, scheme = normalization(bare), choose_scheme(bare)
    settings = {"preset": preset, "backbone": backbone, **scheme, "size": size, "resize": RESIZE, **expected}
    settings |= {"augment": AUGMENT, "batch_size": chosen.batch_size, "rates": chosen.rates, "trial_epochs": chosen.tried}
    settings |= {"epochs": chosen.epochs, "patience": chosen.patience, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY}
    settings = json.loads(json.dumps(settings | {"monitor": MONITOR, "seed": SEED}))
    command = ["python", "-m", "minica", "train", str(data), "--out", str(out), "--preset", preset, "--backbone", backbone]
    command = shlex.join(command + ["--skip-broken"] * skip_broken)
    _claim(out, {"data": pictures.digest(), **settings})
    with locked(out, True):
        if (out / RUN).is_file():
            say(f"{out} holds this run, finished; nothing is left to do.")
            return _read(out / RUN)
        say(f"{len(pictures.names)} pictures of {len(pictures.classes)} classes, {scheme['scheme']} on {backbone}", flush=True)
        sets = pictures.datasets(**expected, augment=AUGMENT)
        plain = sets | {"train": pictures.datasets(**expected, augment="none")["train"]}
        say("baselines: features of the frozen network", flush=True)
        guesses = baselines({split: features(bare, data) for split, data in plain.items()}, len(pictures.classes))
        trials, model = _search(out / TRIALS, pictures, settings, chosen, sets, say)
        logits, labels = predict(model, sets["test"])
        guesses[ADAPTED] = logits.argmax(1)
        found = {name: scores(guess, labels) for name, guess in guesses.items()}
        gain = ((guesses[ADAPTED] == labels).double() - (guesses[PROBE] == labels).double()).numpy()
        save_adapter(model, out)
        run = {
            "command": command,
            "data": str(data.resolve()),
            "settings": settings,
            "classes": list(pictures.classes),
            "counts": pictures.counts(),
            "skipped": pictures.skipped,
            "notes": pictures.notes,
            "trials": [{key: value for key, value in trial.items() if key != "history"} for trial in trials],
            # The area under the curve is not defined where validation lacks classes, and JSON has no NaN.
            "history": [
                {key: None if value != value else value for key, value in epoch.items()} for epoch in trials[-1]["history"]
            ],
            "metrics": found,
            "gain": {"over": PROBE, "accuracy": gain.mean().item(), "accuracy_95": list(bootstrap_interval(gain))},
            "adapter_bytes": (out / WEIGHTS).stat().st_size,
            "seconds": round(sum(trial["seconds"] for trial in trials), 1),
            **provenance(),
            "splits": {split: [pictures.names[i] for i in there] for split, there in pictures.splits.items()},
        }
        write_report(out / REPORT, run, pictures, logits.softmax(1), labels)
        text = json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(out / RUN, text.encode("utf-8", "backslashreplace"))  # the last of all: the run is finished
        shutil.rmtree(out / TRIALS / "final", ignore_errors=True)
    (low, high), probe = found[ADAPTED]["accuracy_95"], found[PROBE]["accuracy"]
    say(f"test accuracy {found[ADAPTED]['accuracy']:.1%} ({low:.1%} to {high:.1%}), of a {PROBE} {probe:.1%}")
    say(f"{out / REPORT} says the rest", flush=True)
    return run


def _claim(out: Path, plan: dict) -> None:
    """Take a new folder for this run, or go on with it.

    Raises:
        ValueError: if there is something else in it.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / PLAN).is_file())):
        raise ValueError(f"{out} holds something else than a run; choose a new folder.")
    if (out / PLAN).is_file():
        there = _read(out / PLAN)
        if different := [key for key in {**there, **plan} if there.get(key) != plan.get(key)]:
            said = ", ".join(f"{key} {there.get(key)} (here {plan.get(key)})" for key in different[:4])
            raise ValueError(f"{out} holds another run, with {said}; choose a new folder.")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PLAN, (json.dumps(plan, indent=1) + "\n").encode())


def _read(file: Path) -> dict:
    try:
        if isinstance(found := json.loads(file.read_text(encoding="utf-8")), dict):
            return found
        raise ValueError("no table")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); choose a new folder, or delete this one.") from error


def _search(place: Path, pictures: Pictures, settings: dict, chosen: Preset, sets: dict, say) -> tuple[list[dict], nn.Module]:
    """The records of all trials, the long one last, and the network that it trained."""
    weights = class_weights(sets["train"].labels, len(pictures.classes))
    number = len(chosen.rates) + (weights is not None) + 1
    trials: list[dict] = []

    def attempt(name: str, lr: float, weighted: bool, epochs: int, patience: int) -> nn.Module | None:
        file = place / f"{name}.json"
        if name != "final" and file.is_file():
            trials.append(_read(file))
            return None
        what = (
            f"learning rate {lr:g}{', classes weighted' if weighted else ''}, {'at most ' * (name == 'final')}{epochs} epochs"
        )
        say(f"trial {len(trials) + 1} of {number}: {what}{_left(trials, name, number, chosen)}", flush=True)
        with randomness_kept():
            torch.manual_seed(SEED)
            model = create_backbone(settings["backbone"], num_classes=len(pictures.classes))
            adapt(model, settings["scheme"], settings["compression"])
        record, started = {"lr": lr, "class_weights": weights if weighted else None}, time.perf_counter()
        try:
            schedule = dict(epochs=epochs, lr=lr, warmup=WARMUP, weight_decay=WEIGHT_DECAY, batch_size=chosen.batch_size)
            choice = dict(class_weights=record["class_weights"], monitor=MONITOR, patience=patience, seed=SEED)
            bar = {"folder": place / name, "progress": say is print}
            record["history"] = fit(model, sets["train"], sets["val"], **schedule, **choice, **bar)
            record["val"] = max(epoch[f"val_{MONITOR}"] for epoch in record["history"])
        except TrainingDiverged as error:
            if name == "final":
                raise
            record["error"] = str(error)
        spent = sum(epoch["seconds"] for epoch in record.get("history", ()))  # of earlier attempts that were killed as well
        record["seconds"] = round(max(time.perf_counter() - started, spent), 1)
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(record) + "\n").encode())
        if name != "final":
            shutil.rmtree(place / name, ignore_errors=True)
        trials.append(record)
        return model

    for lr in chosen.rates:
        attempt(f"rate-{lr:g}", lr, False, chosen.tried, chosen.tried)
    if weights is not None:
        lr = _best(trials)["lr"]
        attempt(f"rate-{lr:g}-weighted", lr, True, chosen.tried, chosen.tried)
    best = _best(trials)
    model = attempt("final", best["lr"], best["class_weights"] is not None, chosen.epochs, chosen.patience)
    return trials, model


def _best(trials: list[dict]) -> dict:
    """The trial with the highest validation score; of equals, the one with the lower validation loss at its end."""
    done = [trial for trial in trials if "val" in trial]
    if not done:
        raise TrainingDiverged(f"no learning rate that was tried trains: {trials[0]['error']}")
    return max(done, key=lambda trial: (trial["val"], -trial["history"][-1]["val_loss"]))


def _left(trials: list[dict], name: str, number: int, chosen: Preset) -> str:
    """How long it will all take, by the epochs so far."""
    epochs = sum(len(trial.get("history", ())) for trial in trials)
    if not epochs:
        return ""
    ahead = chosen.epochs + (0 if name == "final" else (number - 1 - len(trials)) * chosen.tried)
    minutes = sum(trial["seconds"] for trial in trials) / epochs * ahead / 60
    return f"; at most {minutes:.0f} min left in all" if minutes >= 1 else ""
