"""How is a model trained, evaluated and resumed?  One loop, for one device or for several processes.

The recipe is the paper's (Table 8): AdamW under a cosine with linear warm-up.  Accelerate chooses device, precision and
process group; what is frozen in the model stays frozen.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import broadcast, patch_environment, set_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm  # tqdm.auto draws widgets in a notebook, and saved widget state makes GitHub refuse the file

from .fast.caching import cache_prefix, channels_last
from .fast.lean import lean as lean_form
from .recipe import frozen_running_stats, plain, trained_state

PRECISIONS = ("no", "bf16", "fp16")


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
    warmup: float = 0.1,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    precision: str = "no",
    device: str | torch.device | None = None,
    workers: int = 0,
    cache: bool = False,
    lean: bool = True,
    progress: bool = True,
) -> list[dict]:
    """Train, in place and with cross-entropy, what requires a gradient in ``model``; it comes back in eval mode.

    Args:
        model: maps images ``(N, 3, H, W)`` to logits ``(N, C)``.
        train: an indexable data set of (image, label).  Unless all fit one batch, only full batches are used; which
            images are left over changes with every epoch's shuffle.
        val: if given, evaluated after every epoch.  Nothing is chosen by it.
        lr: the highest rate of :func:`learning_rate`.
        batch_size: images a step, over all processes together.
        warmup: the part of all steps that warms up; the paper has 10 of 100 epochs.
        folder: where a checkpoint is written after every epoch (the last two are kept) and the newest one resumed.
            A run that was killed and is called again ends, on a CPU, with the bits of one that was not; a finished one
            returns at once.  A run is known by its settings, the frozen weights, the trained tensors' shapes and
            ``train``'s tensors ``images`` (of images that stay on disk, their names) and ``labels`` if it has them.
        precision: ``"no"`` (float32), or autocast to ``"bf16"`` or, on a GPU, ``"fp16"``.
        device: CUDA if there is one, else the CPU.  ``"mps"`` is used on request only.
        workers: loader processes, started anew in each epoch so that their augmentation can be repeated.
        cache: run the frozen prefix (:mod:`minica.caching`) once for each image and keep its output in memory.  The numbers
            are those of a run without, within float tolerance; what is augmented is refused.
        lean: train in the form of :func:`minica.lean`, with the same gradients within float tolerance in less time and memory.
            Validation and what comes back are plain.

    Returns:
        One record an epoch: ``epoch`` (from 1), ``lr`` of its last step, ``train_loss``, ``seconds`` of training alone
        and, with ``val``, the entries of :func:`evaluate` as ``val_...``, computed in the training precision.

    Raises:
        ValueError: for arguments out of range, no trainable parameter, an empty data set, labels that the classifier
            does not have, a folder that cannot be written, a damaged checkpoint or one of another run.
        TrainingDiverged: when the loss or a weight is not finite any more.
    """
    _check_arguments(model, train, epochs, lr, weight_decay, batch_size, warmup, seed, precision, workers)
    epochs, batch_size, seed = int(epochs), min(int(batch_size), len(train)), int(seed)
    lr, weight_decay, warmup = float(lr), float(weight_decay), float(warmup)  # NumPy's do not load with weights_only
    folder = None if folder is None else _writable(folder)
    val_loader = None if val is None else _loader(val, batch_size, workers)

    with _accelerator(device, precision) as accelerator, _channels_last(model), _randomness_kept(), ExitStack() as end:
        end.callback(model.eval)  # after an interrupt too: a norm left in training mode would go on learning
        processes, main = accelerator.num_processes, accelerator.is_main_process
        if batch_size % processes:
            raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch_size}.")
        model.to(accelerator.device)
        seen, skipping = train, nullcontext()
        if cache:
            loaders = [_loader(train, batch_size, workers), *([] if val_loader is None else [val_loader])]
            with accelerator.autocast():
                kept, skipping = cache_prefix(model, loaders)
            if kept:
                seen, workers = kept[0], 0
                val_loader = None if val_loader is None else _loader(kept[1], batch_size, workers)
        order = torch.Generator()
        loader, val_loader, optimizer = accelerator.prepare(
            DataLoader(
                seen,
                batch_size // processes,
                sampler=RandomSampler(seen, generator=order),
                num_workers=workers,
                pin_memory=accelerator.device.type == "cuda",
                drop_last=True,
            ),
            val_loader,
            torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr),
        )
        run, history = {}, []
        if folder is not None:
            run = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "batch_size": batch_size, "warmup": warmup}
            run |= {"seed": seed, "precision": precision, "validation": val is not None, **_identity(model, train)}
            history = _resume(folder, run, model, optimizer, accelerator.scaler)
        if lean and len(history) < epochs:
            end.callback(plain, model)
            lean_form(model.eval())
        end.enter_context(skipping)
        net = DistributedDataParallel(model) if processes > 1 else model  # averages gradients over the processes
        steps, done = epochs * len(loader), len(history) * len(loader)

        with tqdm(total=steps, initial=done, disable=not (progress and main), unit="step", mininterval=1) as bar:
            for epoch in range(len(history), epochs):
                started, total = time.perf_counter(), 0.0
                # All that is random in an epoch follows from its number, so a resumed run repeats it.  All processes
                # share the order; augmentation and dropout are each one's own.
                order.manual_seed(_mix(seed, epoch))
                set_seed(_mix(seed, epoch, 1 + accelerator.process_index))
                loader.set_epoch(epoch)
                net.train()
                for norm in frozen_running_stats(model):  # of a model frozen by hand, without adapt or tune
                    norm.eval()
                for step, (images, labels) in enumerate(loader, start=epoch * len(loader)):
                    rate = learning_rate(step, steps, lr, warmup)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    with accelerator.autocast():
                        logits = net(channels_last(images))
                    _check_labels(labels, logits.shape[1])
                    loss = F.cross_entropy(logits.float(), labels)
                    average = accelerator.reduce(loss.detach(), "mean").item()  # so that all processes stop together
                    if not math.isfinite(average):
                        raise _diverged(f"the loss is {average}", step, steps, rate, folder)
                    optimizer.zero_grad()
                    accelerator.backward(loss)
                    optimizer.step()
                    total += average
                    bar.set_description(f"epoch {epoch + 1}/{epochs}, loss {average:.3f}", refresh=False)
                    bar.update()
                broadcast(list(model.buffers()))  # each process saw other images; the main one's statistics are kept
                trained = trained_state(model)
                if not all(value.isfinite().all() for value in trained.values()):
                    raise _diverged("a weight is not finite after the update", step, steps, rate, folder)
                seconds = time.perf_counter() - started
                record = {"epoch": epoch + 1, "lr": rate, "train_loss": total / len(loader), "seconds": seconds}
                if val_loader is not None:
                    found = metrics(*_collect(model, val_loader, accelerator.autocast, accelerator.gather_for_metrics))
                    record |= {f"val_{key}": value for key, value in found.items()}
                history.append(record)
                if folder is not None and main:
                    state = {"run": run, "history": history, "model": trained, "optimizer": optimizer.state_dict()}
                    state["scaler"] = accelerator.scaler and accelerator.scaler.state_dict()
                    _save(folder, epoch + 1, state)
        optimizer.zero_grad()
    return history


def learning_rate(step: int, steps: int, lr: float, warmup: float = 0.1) -> float:
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
) -> dict:
    """The :func:`metrics` of what :func:`predict` returns for the same arguments."""
    return metrics(*predict(model, data, batch_size=batch_size, device=device, workers=workers))


def predict(
    model: nn.Module,
    data: Dataset | DataLoader,
    *,
    batch_size: int = 128,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, C)`` in float32 and labels ``(N,)``, on the CPU and in the order of ``data``.

    Runs where the model is unless ``device`` moves it there first.  Every module's training mode is left as it was.

    Raises:
        ValueError: for an empty data set, a device that is not there, or labels that the classifier does not have.
    """
    loader = _loader(data, batch_size, workers)
    device = next(model.parameters()).device if device is None else _device(device)
    with _channels_last(model.to(device)):
        return _collect(model, ((images.to(device), labels.to(device)) for images, labels in loader))


def metrics(logits: Tensor, labels: Tensor) -> dict:
    """How good logits ``(N, C)`` are for labels ``(N,)``; all but ``loss`` (cross-entropy) and ``n`` lie in [0, 1].

    ``accuracy_95`` is the :func:`wilson_interval`.  ``balanced_accuracy`` is the mean recall and ``auroc`` the mean
    one-versus-rest area under the ROC curve, over the classes present in ``labels``; with fewer than two of them
    ``auroc`` is NaN and ``note`` says why.  ``macro_f1`` averages over the classes that are present or predicted.
    """
    # Importing torchmetrics takes as long as importing torch; only who asks for metrics should wait for it.
    from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score, multiclass_recall

    classes, guesses = logits.shape[1], logits.argmax(1)
    present, among_present = labels.unique(return_inverse=True)
    correct = int((guesses == labels).sum())
    found = {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": correct / len(labels),
        "accuracy_95": wilson_interval(correct, len(labels)),
        "balanced_accuracy": multiclass_recall(guesses, labels, classes, average="none")[present].mean().item(),
        "macro_f1": multiclass_f1_score(guesses, labels, classes, average="macro").item(),
        "auroc": math.nan,
        "n": len(labels),
    }
    if len(present) < 2:
        return found | {"note": f"auroc is not defined: every label is {present.item()}"}
    scores = logits.double().softmax(1)[:, present]  # in float32, confident scores would tie at 1
    return found | {"auroc": multiclass_auroc(scores, among_present, len(present), average="macro").item()}


def wilson_interval(correct: int, n: int) -> list[float]:
    """95 % interval of a proportion (Wilson 1927): unlike +- 2 sigma it holds for few images and near 0 and 1."""
    z, p = 1.959964, correct / n
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [max(0.0, (centre - half) / (1 + z**2 / n)), min(1.0, (centre + half) / (1 + z**2 / n))]


@torch.no_grad()
def _collect(
    model: nn.Module, batches: Iterable, autocast: Callable = nullcontext, gather: Callable = lambda rows: rows
) -> tuple[Tensor, Tensor]:
    """Logits and labels of all batches, gathered from all processes."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    rows = []
    try:
        for images, labels in batches:
            with autocast():
                logits = model(channels_last(images))
            logits, labels = gather((logits.float(), labels))
            _check_labels(labels, logits.shape[1])
            rows.append((logits.cpu(), labels.cpu()))
    finally:
        for module, mode in modes.items():
            module.training = mode
    logits, labels = zip(*rows, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring epochs and seeds have unrelated random streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# What is accepted.


def _check_arguments(model, train, epochs, lr, weight_decay, batch_size, warmup, seed, precision, workers) -> None:
    counts = (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0), ("workers", workers, 0))
    for name, value, least in counts:
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number from {least}, got {value!r}.")
    for name, value, most in (("lr", lr, math.inf), ("weight_decay", weight_decay, math.inf), ("warmup", warmup, 1)):
        if not (math.isfinite(value) and 0 <= value <= most):
            raise ValueError(f"{name} must be a number from 0 to {most}, got {value!r}.")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if isinstance(train, DataLoader) or not (hasattr(train, "__getitem__") and hasattr(train, "__len__")):
        raise ValueError(
            f"train must be a data set with len() and indexing, got {type(train).__name__}; fit shuffles and makes the "
            "batches itself, so of a DataLoader give its .dataset."
        )
    if len(train) == 0:
        raise ValueError("the training set is empty; check the split that it comes from.")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError("nothing to train: every parameter is frozen. Choose with minica.tune or minica.adapt.")


def _check_labels(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):  # left to CUDA, this is a device assert that names nothing and ends the process's use of the GPU
        raise ValueError(
            f"label {wrong[0].item()} is not among the classifier's {classes} classes, 0 to {classes - 1}; create the "
            "backbone with the data's num_classes."
        )


def _loader(data: Dataset | DataLoader, batch_size: int, workers: int) -> DataLoader:
    if not isinstance(data, DataLoader):
        # A loader draws a random number even if it does not shuffle: from this generator, not from the caller's.
        data = DataLoader(data, batch_size, num_workers=workers, generator=torch.Generator())
    if len(data) == 0:
        raise ValueError("the data set to evaluate on is empty; check the split that it comes from.")
    return data


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu' or None.") from error


def _diverged(what: str, step: int, steps: int, rate: float, folder: Path | None) -> TrainingDiverged:
    files = [] if folder is None else _checkpoints(folder)
    kept = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
    where = f"step {step + 1} of {steps}, learning rate {rate:.3g}"
    return TrainingDiverged(f"{what} at {where}; {kept}. Try a lower lr, a longer warmup or another precision.")


# What is put back after a run.


@contextmanager
def _accelerator(device: str | torch.device | None, precision: str) -> Iterator[Accelerator]:
    """Accelerate keeps device and precision in process-wide singletons: a notebook's second fit could not change them,
    and a caller's own accelerator would decide for us.  So they are emptied for a run and put back after it."""
    wanted = _device(device)
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
def _channels_last(model: nn.Module) -> Iterator[None]:
    """The layout in which convolutions are fastest; then the old one, since the last bits of an output depend on it."""
    contiguous = all(weight.is_contiguous() for weight in model.parameters())
    try:
        model.to(memory_format=torch.channels_last)
        yield
    finally:
        if contiguous:
            model.to(memory_format=torch.contiguous_format)


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """The caller's random numbers go on as if nothing had been seeded."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


# The checkpoints of a run.


def _writable(folder: str | os.PathLike) -> Path:
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"cannot write checkpoints to {folder} ({why}); choose another folder, or None.") from error


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-?????.pt"))


def _identity(model: nn.Module, train: Dataset) -> dict:
    """What tells this run from another one of the same settings."""
    images, trained = getattr(train, "images", None), trained_state(model)
    data = (getattr(images, "listing", images), getattr(train, "labels", None))  # of images on disk, which files
    return {
        "training images": len(train),
        "training data": _checksum(value for value in data if isinstance(value, Tensor)),
        "frozen weights": _checksum(value for key, value in model.state_dict().items() if key not in trained),
        **{f"shape of {key}": str(tuple(value.shape)) for key, value in trained.items()},
    }


def _checksum(tensors: Iterable[Tensor]) -> str:
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def _save(folder: Path, epoch: int, state: dict) -> None:
    """Write beside, then rename: whenever the process dies, every checkpoint in the folder is a whole one."""
    file = folder / f"checkpoint-{epoch:05d}.pt"
    unfinished = file.with_suffix(".tmp")
    with open(unfinished, "wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)
    for old in _checkpoints(folder)[:-2]:  # the last but one stays, should a disk damage the last
        old.unlink()


def _resume(folder: Path, run: dict, model: nn.Module, optimizer, scaler) -> list[dict]:
    """Put the newest checkpoint into model and optimiser and return its history; without one, an empty history."""
    files = _checkpoints(folder)
    if not files:
        return []
    file, otherwise = files[-1], f"go on from {files[-2].name}" if len(files) > 1 else "start over"
    try:
        with zipfile.ZipFile(file) as archive:  # torch.save writes checksums, torch.load does not look at them
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        saved = torch.load(file, map_location="cpu", weights_only=True)
        there, history = saved["run"], saved["history"]
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"{file} is damaged or no checkpoint of fit ({why}); delete it to {otherwise}.") from error
    both = [(key, there.get(key, "none"), run.get(key, "none")) for key in {**there, **run}]
    different = [f"{key} {theirs} (here {ours})" for key, theirs, ours in both if theirs != ours]
    if different:
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        raise ValueError(
            f"{folder} holds checkpoints of another run, with {', '.join(different[:4])}{more}; choose another folder, "
            "or delete it to start over."
        )
    model.load_state_dict(saved["model"], strict=False)
    optimizer.load_state_dict(saved["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    return history
