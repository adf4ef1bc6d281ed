"""The training loop: fit, evaluate and predict, for one device or for several processes.

The recipe is the paper's (Table 8): AdamW under a cosine with linear warm-up.  Accelerate chooses device, precision and
process group; what is frozen in the model stays frozen.  The task is classification, or what ``loss`` and ``metrics`` make it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, broadcast_object_list, send_to_device, set_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from tqdm import tqdm  # tqdm.auto draws widgets in a notebook, and saved widget state makes GitHub refuse the file

from .fast.caching import cache_prefix
from .fast.devices import accelerator_on, randomness_kept, usable_device
from .fast.layout import as_weights, in_channels_last
from .fast.lean import lean as lean_form
from .profiling import modes_kept
from .recipe import active_recipe, adapted_parts, check_flags, frozen_running_stats, plain, trained_state, unwrap
from .run_folder import checkpoints, identity, locked, restore, resume, save
from .tasks.classification import (
    MONITORS,
    CrossEntropy,
    about_data,
    check_labels,
    check_normalization,
    check_task,
    count_classes,
    first_batch,
    labelled,
    metrics,
)

PRECISIONS = ("no", "bf16", "fp16")
COUNTS = {"epochs": 1, "batch_size": 1, "seed": 0, "accumulate": 1, "patience": 1, "workers": 0}  # the least of each
RANGES = {"lr": math.inf, "weight_decay": math.inf, "warmup": 1, "label_smoothing": 1, "clip": math.inf}  # from 0 to each
OPTIONAL = ("loss", "class_weights", "collate", "metrics", "patience", "clip")  # arguments that may be None
# What a run is known by, beside what run_folder.identity finds in data and model.
SETTINGS = ("epochs", "lr", "weight_decay", "warmup", "seed", "accumulate", "batch_size", "precision", "clip", "loss")
SETTINGS += ("class_weights", "label_smoothing", "collate", "monitor", "patience")
ALONE = SimpleNamespace(autocast=nullcontext, gather_for_metrics=lambda rows: rows)  # in the place of an Accelerator


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer finite.  Checkpoints written before that stay."""


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset | DataLoader | None = None,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    batch_size: int = 32,
    warmup: float = 0.5,
    seed: int = 0,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    collate: Callable[[list], Any] | None = None,
    metrics: Callable[[nn.Module, DataLoader], dict] | None = None,
    monitor: str = "accuracy",
    patience: int | None = None,
    on_epoch: Callable[[dict], object] | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    folder: str | os.PathLike | None = None,
    precision: str = "no",
    device: str | torch.device | None = None,
    workers: int = 0,
    cache: bool = False,
    lean: bool = True,
    progress: bool = True,
) -> list[dict]:
    """Train, in place, what requires a gradient in ``model``; it comes back in eval mode.

    Without ``loss`` the task is classification: batches are (images (N, C, H, W), labels), the model gives logits (N, classes)
    and cross-entropy is minimised.  Labels are whole numbers of any type, (N,) or (N, 1), or text if the data set has
    ``classes`` to number it by.  Labels, classes and outputs are checked before the first step, and after that the labels of
    each batch while they are on the CPU.  A step waits for the device once, to see whether the loss is finite.

    Multi-label, for instance, is ``loss=lambda model, batch: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])``.

    Args:
        model: what ``loss`` can use; for classification it maps images to logits.
        train: an indexable data set, for classification of (image, label).  Unless all fit one batch, only full batches are
            used; which items are left over changes with every epoch's shuffle.
        val: if given, evaluated after every epoch.  Nothing is chosen by it unless ``patience`` is given.
        lr: the highest rate of :func:`learning_rate`.
        batch_size: images a step, over all processes together.
        warmup: the part of all steps that warms up.  The paper has 10 of 100 epochs; at high rates and with frozen BatchNorm so
            short a warm-up lets training collapse (:mod:`minica.experiments.collapse`).
        loss: ``loss(model, batch)`` gives the scalar to minimise for one batch, a mean over its items.  ``batch`` is what
            ``collate`` gave, its tensors on the device at any depth of lists, tuples and dicts.
        class_weights: of the default loss, one number a class, as in :func:`torch.nn.functional.cross_entropy`.
        label_smoothing: of the default loss, from 0 to 1.
        collate: makes a batch of a list of items, as a DataLoader's ``collate_fn``.
        metrics: ``metrics(model, loader)`` gives a dict of what is good to know of ``val``, as JSON values; ``loader`` gives
            batches on the CPU, and the model is in eval mode and records no gradients.  With several processes each of them
            goes through all of ``val``, and the main one's numbers count.  None: :func:`metrics` of logits and labels.
        monitor: the entry of the validation metrics by which epochs are compared, higher being better; let a ``metrics`` of
            your own give the negative of an error.
        patience: stop after so many epochs without a higher ``monitor``, and give back the trained tensors of the first epoch
            with the highest; ``patience=epochs`` never stops early.  The rate falls as if all epochs ran.
        on_epoch: called with a copy of each epoch's record when its checkpoint is written, in the main process.
        accumulate: in how many parts a batch is computed, one after the other, for less memory.  Gradients are those of the
            whole batch, but BatchNorm sees a part at a time and ``class_weights`` are normalised within one.
        clip: the largest norm of all gradients together; longer ones are scaled down to it.
        folder: where a checkpoint is written after every epoch (the last two are kept) and the newest one resumed.
            A run that was killed and is called again ends, on a CPU, with the bits of one that was not; a finished one
            returns at once.  A run is known by its settings, the names of ``loss`` and ``collate``, and
            :func:`minica.run_folder.identity`.  A second run in the folder is refused while the first one goes on.
        precision: ``"no"`` (float32), or autocast to ``"bf16"`` or, on a GPU, ``"fp16"``.
        device: CUDA if there is one, else the CPU.  ``"mps"`` is used on request only.
        workers: loader processes, started anew in each epoch so that their augmentation can be repeated.
        cache: run the frozen prefix (:mod:`minica.fast.caching`) once for each image and keep its output in memory.  The
            numbers are those of a run without, within float tolerance; what is augmented is refused, and so is ``collate``.
        lean: train in the form of :func:`minica.lean`, with the same gradients within float tolerance in less time and memory.
            Validation and what comes back are plain.

    Returns:
        One record an epoch: ``epoch`` (from 1), ``lr`` of its last step, ``train_loss``, ``seconds`` of training alone
        and, with ``val``, the entries of :func:`evaluate` as ``val_...``, computed in the training precision.

    Raises:
        ValueError: for arguments out of range, no trainable parameter, an empty data set, labels or data sets' classes that the
            model's outputs do not fit, a loss that is no scalar, a folder that cannot be written or is in use, a damaged
            checkpoint or one of another run.
        OSError: if a checkpoint cannot be written, naming it.
        TrainingDiverged: when the loss or a weight is not finite any more.

    Warns:
        UserWarning: if the data set is normalised otherwise than the model's pre-trained weights expect; and without ``loss``,
            if training collapsed: the network gives the same answer for every image.
    """
    given = locals()
    _check_arguments(given)
    check_flags(model)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError("nothing to train: every parameter is frozen. Choose with minica.tune or minica.adapt.")
    run = {key: _setting(given[key]) for key in SETTINGS} | {"validation": val is not None}
    run["batch_size"] = batch_size = min(run["batch_size"], len(train))
    epochs, lr, weight_decay, warmup, seed, accumulate = (run[key] for key in SETTINGS[:6])
    sets, classifies, scores = [train] if val is None else [train, val], loss is None, val is not None and metrics is None
    loaders = [_loader(data, batch_size, workers, collate) for data in sets]
    about = about_data(train)
    check_normalization(model, about)

    with accelerator_on(device, precision) as accelerator, in_channels_last(model), randomness_kept(), ExitStack() as end:
        end.callback(model.eval)  # after an interrupt too: a norm left in training mode would go on learning
        device, processes, main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
        if batch_size % (processes * accumulate):
            times = f" times accumulate={accumulate}" * (accumulate > 1)
            raise ValueError(f"batch_size must be a multiple of the {processes} processes{times}, got {batch_size}.")
        if folder is not None:
            folder = end.enter_context(locked(folder, main))
        model.to(device)
        skipping = nullcontext()
        if cache:
            keep = partial(labelled, data=train, collate=default_collate) if classifies else None
            with accelerator.autocast():
                kept, skipping = cache_prefix(model, [_loader(data, batch_size, workers, keep) for data in sets])
            if kept:
                loaders, workers = [_loader(data, batch_size, 0) for data in kept], 0
        seen, order, pin = loaders[0].dataset, torch.Generator(), device.type == "cuda"
        an_epoch = len(seen) // batch_size  # in steps
        sampler = RandomSampler(seen, num_samples=an_epoch * batch_size, generator=order)
        options = dict(sampler=sampler, num_workers=workers, collate_fn=collate, pin_memory=pin)
        batches = DataLoader(seen, batch_size // processes // accumulate, **options)
        batches = accelerator.prepare_data_loader(batches, device_placement=False)  # labels are checked on the CPU
        val_batches = accelerator.prepare_data_loader(loaders[1], device_placement=False) if scores else loaders[-1]
        optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr))
        history, best = [], {}
        if folder is not None:
            run |= identity(model, train)
            history, best = resume(folder, run, model, optimizer, accelerator.scaler)
        if lean and len(history) < epochs:
            end.callback(plain, model)
            lean_form(model.eval())
        end.enter_context(skipping)
        end.callback(optimizer.zero_grad)
        net = DistributedDataParallel(model) if processes > 1 else model  # averages gradients over the processes
        if classifies:
            weights = None if class_weights is None else torch.tensor(run["class_weights"], dtype=torch.float32, device=device)
            loss = CrossEntropy(weights, label_smoothing, an_epoch * accumulate)
        steps, done, so_far = epochs * an_epoch, len(history) * an_epoch, 0

        with tqdm(total=steps, initial=done, disable=not (progress and main), unit="step", mininterval=1) as bar:
            for epoch in range(len(history), epochs):
                if patience is not None and history and epoch - 1 - _best(history, monitor) >= patience:
                    break
                started, total = time.perf_counter(), 0.0
                # All that is random in an epoch follows from its number, so a resumed run repeats it.  All processes
                # share the order; augmentation and dropout are each one's own.
                order.manual_seed(_mix(seed, epoch))
                set_seed(_mix(seed, epoch, 1 + accelerator.process_index))
                batches.set_epoch(epoch)
                net.train()
                for norm in frozen_running_stats(model):  # of a model frozen by hand, without adapt or tune
                    norm.eval()
                for at, batch in enumerate(batches, start=epoch * an_epoch * accumulate):
                    step, part = divmod(at, accumulate)
                    if at == done * accumulate:  # once, and with a batch: items taken for this alone would be taken twice
                        with randomness_kept(), modes_kept(model), accelerator.autocast():
                            classes = check_task(model, loaders[0], batch, train, run["class_weights"]) if classifies else None
                            if scores:
                                check_task(model, loaders[1], first_batch(loaders[1]), val)
                        remember_training_data(model, about)
                    if classifies:
                        batch = labelled(batch, train)
                        check_labels(batch[1], classes)
                    with accelerator.autocast():
                        share = loss(net, send_to_device(batch, device, non_blocking=pin))
                    if not (isinstance(share, Tensor) and share.ndim == 0 and share.requires_grad):
                        raise ValueError(f"loss must return one number that depends on what trains, got {share!r:.200}.")
                    accelerator.backward(share / accumulate)
                    so_far = share.detach() / accumulate + (so_far if part else 0)
                    if part < accumulate - 1:
                        continue
                    rate, average = learning_rate(step, steps, lr, warmup), accelerator.reduce(so_far, "mean").item()
                    if not math.isfinite(average):  # in all processes, so that they stop together
                        raise _diverged(f"the loss is {average}", step, steps, rate, folder)
                    if clip is not None:
                        accelerator.clip_grad_norm_(model.parameters(), clip)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    optimizer.step()
                    optimizer.zero_grad()
                    total += average
                    bar.set_description(f"epoch {epoch + 1}/{epochs}, loss {average:.3f}", refresh=False)
                    bar.update()
                broadcast(list(model.buffers()))  # each process saw other images; the main one's statistics are kept
                trained = trained_state(model)
                if not all(value.isfinite().all() for value in trained.values()):
                    raise _diverged("a weight is not finite after the update", step, steps, rate, folder)
                seconds = time.perf_counter() - started
                record = {"epoch": epoch + 1, "lr": rate, "train_loss": total / an_epoch, "seconds": seconds}
                if val is not None:
                    found = _measured(model.eval(), val_batches, metrics, accelerator)
                    record |= {f"val_{key}": value for key, value in found.items()}
                history += broadcast_object_list([record])
                if patience is not None and _best(history, monitor) == epoch:
                    best = {key: value.cpu().clone() for key, value in trained.items()}
                if folder is not None and main:
                    save(folder, run, history, trained, best, optimizer, accelerator.scaler)
                if on_epoch is not None and main:
                    on_epoch(dict(record))
        restore(model, best)
        remember_training_data(model, about)
    return history


def learning_rate(step: int, steps: int, lr: float, warmup: float = 0.5) -> float:
    """The rate of ``step`` (from 0): rises linearly over the first ``warmup * steps`` steps, then half a cosine to 0.

    The published code's cosine ends at 1e-6, a tenth of the smallest rate in the paper's grid; that is no difference.
    """
    rising = round(warmup * steps)
    if step < rising:
        return lr * (step + 1) / rising
    return lr * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """What trains, as an optimiser's groups: kernels with weight decay, gains and biases without.

    Decay draws towards zero.  For a kernel that is a simpler function; but a norm's gain is at rest at one, a bias
    anywhere, and an adapter's alpha ``(C, 1, 1)`` is a gain as well: drawn to zero, it would remove the adapter.
    """
    decayed, plain = [], []
    for weight in model.parameters():
        if weight.requires_grad:
            (plain if weight.ndim <= 1 or weight.shape[1:] == (1, 1) else decayed).append(weight)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def evaluate(
    model: nn.Module,
    data: Dataset | DataLoader,
    *,
    batch_size: int = 128,
    device: str | torch.device | None = None,
    workers: int = 0,
    metrics: Callable[[nn.Module, DataLoader], dict] | None = None,
) -> dict:
    """The :func:`metrics` of what :func:`predict` returns for the same arguments; or what ``metrics`` finds, as in :func:`fit`.

    For batches that are not made by default, give a DataLoader with its ``collate_fn``.
    """
    loader = _loader(data, batch_size, workers)
    with modes_kept(model), in_channels_last(model if device is None else model.to(usable_device(device))):
        return _measured(model.eval(), loader, metrics)


def predict(
    model: nn.Module,
    data: Dataset | DataLoader,
    *,
    batch_size: int = 128,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, C)`` in float32 and labels ``(N,)`` in int64, on the CPU and in the order of ``data``.

    Runs where the model is unless ``device`` moves it there first.  Every module's training mode is left as it was.  Labels
    may be what :func:`fit` takes.

    Raises:
        ValueError: for an empty data set, a device that is not there, labels that are not one whole number an image or that
            the classifier does not have, or outputs that are no logits of at least two classes.
    """
    loader = _loader(data, batch_size, workers)
    with modes_kept(model), in_channels_last(model if device is None else model.to(usable_device(device))):
        return _collect(model.eval(), loader)


@torch.no_grad()
def _measured(model: nn.Module, loader: DataLoader, own: Callable | None, accelerator: Any = ALONE) -> dict:
    if own is None:
        return metrics(*_collect(model, loader, accelerator))
    with accelerator.autocast():
        return json.loads(json.dumps(own(model, loader), default=float))  # checkpoints take no numbers of NumPy's or tensors


@torch.no_grad()
def _collect(model: nn.Module, loader: DataLoader, accelerator: Any = ALONE) -> tuple[Tensor, Tensor]:
    """Logits and labels of all batches, gathered from all processes."""
    rows, device = [], next(model.parameters()).device
    for batch in loader:
        images, labels = send_to_device(labelled(batch, loader.dataset), device)
        with accelerator.autocast():
            logits = model(as_weights(model, images))
        classes = count_classes(model, logits)
        rows.append([gathered.cpu() for gathered in accelerator.gather_for_metrics((logits.float(), labels))])
        check_labels(rows[-1][1], classes)
    logits, labels = zip(*rows, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _best(history: list[dict], monitor: str) -> int:
    """The position of the first epoch with the highest ``monitor``; NaN is lower than all."""
    scores = [record.get(f"val_{monitor}") for record in history]
    if not all(isinstance(score, Real) for score in scores):
        raise ValueError(f"monitor={monitor!r} is no number among what validation gives: {', '.join(history[-1])}.")
    return max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])


def _mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring epochs and seeds have unrelated random streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# What a data set says of itself.


def remember_training_data(model: nn.Module, about: dict) -> None:
    """Note on a model that :func:`minica.adapt` or :func:`minica.tune` prepared what it is trained on."""
    for part in adapted_parts(unwrap(model)).values():
        if recipe := active_recipe(part):
            recipe.about = dict(about)


# What is accepted.


def _setting(value: Any) -> Any:
    """What stands for an argument in a checkpoint, which holds Python's numbers and text only."""
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        return torch.as_tensor(value).tolist()
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value


def _check_arguments(given: dict) -> None:
    """Of the arguments of :func:`fit`, by name."""
    train, val, precision, patience, monitor = (given[key] for key in ("train", "val", "precision", "patience", "monitor"))
    given = {key: value for key, value in given.items() if value is not None or key not in OPTIONAL}
    for name, least in COUNTS.items():
        if name in given and not (isinstance(given[name], Integral) and given[name] >= least):
            raise ValueError(f"{name} must be a whole number from {least}, got {given[name]!r}.")
    for name, most in RANGES.items():
        if name in given and not (isinstance(given[name], Real) and math.isfinite(given[name]) and 0 <= given[name] <= most):
            raise ValueError(f"{name} must be a number from 0 to {most}, got {given[name]!r}.")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if isinstance(train, DataLoader) or not (hasattr(train, "__getitem__") and hasattr(train, "__len__")):
        what = f"train must be a data set with len() and indexing, got {type(train).__name__}"
        raise ValueError(f"{what}; fit shuffles and makes the batches itself, so of a DataLoader give its .dataset.")
    if len(train) == 0:
        raise ValueError("the training set is empty; check the split that it comes from.")
    if "loss" in given and ("class_weights" in given or given["label_smoothing"]):
        raise ValueError("class_weights and label_smoothing are of the default loss; use them in the loss that you give.")
    if "collate" in given and given["cache"]:
        raise ValueError("cache=True makes its own batches of what it keeps; leave collate out, or train without the cache.")
    if patience is not None and (val is None or monitor not in MONITORS and "metrics" not in given):
        raise ValueError(f"patience needs val, and metrics= or a monitor that is one of {', '.join(MONITORS)}.")


def _loader(data: Dataset | DataLoader, batch_size: int, workers: int, collate: Callable | None = None) -> DataLoader:
    if not isinstance(data, DataLoader):
        # A loader draws a random number even if it does not shuffle: from this generator, not from the caller's.
        data = DataLoader(data, batch_size, num_workers=workers, collate_fn=collate, generator=torch.Generator())
    if len(data) == 0:
        raise ValueError("the data set to evaluate on is empty; check the split that it comes from.")
    return data


def _diverged(what: str, step: int, steps: int, rate: float, folder: Path | None) -> TrainingDiverged:
    files = [] if folder is None else checkpoints(folder)
    kept = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
    where = f"step {step + 1} of {steps}, learning rate {rate:.3g}"
    return TrainingDiverged(f"{what} at {where}; {kept}. Try a lower lr, a longer warmup or another precision.")
