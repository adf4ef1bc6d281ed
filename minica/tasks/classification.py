"""Classification, the task of :func:`minica.fit` unless it is given another: its loss, its metrics, and what labels may be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from ..backbones import normalization
from ..fast.layout import as_weights
from ..run_folder import nested

MONITORS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")  # the entries of metrics() of which more is better
# Below this difference between the log-probabilities of any two images of a batch, training has collapsed.  Over the runs that
# minica.experiments.collapse keeps and that did not set this limit, its alarms() counts false alarms and misses.
SAME = 0.02
OTHER_TASKS = "for several labels an image, or another task, give loss= and metrics="


class CrossEntropy:
    """The default loss of :func:`fit`, in float32: of images (N, C, H, W) and labels int64 (N,).

    Once a pass over the data, from the second on, it looks whether the network still tells images apart, and warns once if it
    does not: see :data:`SAME`.

    Args:
        steps: how often it is called in a pass.
    """

    def __init__(self, class_weights: Tensor | None, label_smoothing: float, steps: int) -> None:
        self.class_weights, self.label_smoothing, self.steps = class_weights, label_smoothing, steps
        self.calls, self.said = 0, False

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        images, labels = batch
        logits = model(as_weights(model, images)).float()
        self.calls += 1
        looks = not self.said and self.calls % self.steps == 0 and self.calls > self.steps and len(logits) > 1
        if looks and all_the_same(logits.detach()):
            self.said = True
            text = f"after {self.calls} batches the network gives the same answer for every image: training has collapsed"
            remedy = "start again with a lower lr, or with warmup=0.5 if it was shorter"
            warnings.warn(f"{text}, as it does where BatchNorm is frozen and the rate rises fast; {remedy}.", stacklevel=2)
        return F.cross_entropy(logits, labels, self.class_weights, label_smoothing=self.label_smoothing)


def all_the_same(logits: Tensor) -> bool:
    """Whether a network gives one answer for all images (N, C): see :data:`SAME`."""
    scores = logits.log_softmax(1)
    return (scores.amax(0) - scores.amin(0)).max().item() < SAME


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
        "macro_f1": min(1.0, multiclass_f1_score(guesses, labels, classes, average="macro").item()),  # rounding may add 1e-7
        "auroc": math.nan,
        "n": len(labels),
    }
    if len(present) < 2:
        return found | {"note": f"auroc is not defined: every label is {present.item()}"}
    scores = logits.double().softmax(1)[:, present]  # in float32, confident scores would tie at 1
    return found | {"auroc": min(1.0, multiclass_auroc(scores, among_present, len(present), average="macro").item())}


def wilson_interval(correct: int, n: int) -> list[float]:
    """95 % interval of a proportion (Wilson 1927): unlike +- 2 sigma it holds for few images and near 0 and 1."""
    z, p = 1.959964, correct / n
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [max(0.0, (centre - half) / (1 + z**2 / n)), min(1.0, (centre + half) / (1 + z**2 / n))]


# ---------------------------------------------------------------- data and labels


def check_normalization(model: nn.Module, about: dict) -> None:
    """Warn if the images are normalised otherwise than the model's weights expect."""
    wanted = normalization(model) if getattr(model, "pretrained_cfg", None) else {}  # of other networks nobody knows
    for key in wanted.keys() & about.keys():
        if not np.allclose(wanted[key], about[key], atol=1e-3):
            text = f"the images are normalised by {key} {about[key]}, the model's weights expect {wanted[key]}"
            warnings.warn(f"{text}; load the data with **minica.normalization(model).", stacklevel=3)


def about_data(data: Any) -> dict:
    """The ``about`` of minica's data sets or the ``classes`` of torchvision's, also where Subset and the like wrap them."""
    for part in nested(data):
        names = getattr(part, "classes", None)
        if about := getattr(part, "about", None) or (isinstance(names, (list, tuple)) and names and {"classes": tuple(names)}):
            return about
    return {}


def labelled(batch: Any, data: Any, collate: Callable | None = None) -> tuple[Tensor, Tensor]:
    """(images, labels as int64 (N,)) of a batch, or of items for ``collate``; text is numbered by the classes of ``data``."""
    batch = batch if collate is None else collate(batch)
    if not (isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(batch[0], Tensor)):
        what = f"a batch must be (images, labels), the images one tensor, got {type(batch).__name__}"
        raise ValueError(f"{what}; for images without labels, minica.predict takes their files; {OTHER_TASKS}.")
    images, labels = batch[0], torch.from_numpy(batch[1]) if isinstance(batch[1], np.ndarray) else batch[1]
    if isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels):
        names = about_data(data).get("classes", ())
        if unknown := set(labels) - set(names):
            known = f"classes, {', '.join(names[:5])}, ..." if names else "classes, of which it says nothing"
            raise ValueError(f"label {min(unknown)!r} is text, and not among the data set's {known}; number labels from 0.")
        labels = torch.tensor([names.index(label) for label in labels])
    what = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
    if not whole or labels.shape[1:] not in ((), (1,)):
        raise ValueError(f"labels must be one whole number an image, (N,) or (N, 1), got {what}; {OTHER_TASKS}.")
    return images, labels.flatten().long()


def count_classes(model: nn.Module, logits: Any) -> int:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    headless = getattr(model, "num_classes", None) == 0 and shape[1:] == (getattr(model, "num_features", None),)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] < 2 or headless:
        what = f"{'features' if headless else 'outputs'} of shape {shape}"
        raise ValueError(f"the model gives {what}, not logits (N, at least 2); create it with num_classes=, or {OTHER_TASKS}.")
    return shape[1]


def check_labels(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):  # left to CUDA, this is a device assert that names nothing and ends the process's use of the GPU
        has = f"{classes} classes, 0 to {classes - 1}"
        raise ValueError(f"label {wrong[0]} is not among the classifier's {has}; create it with the data's num_classes.")


@torch.no_grad()
def check_task(model: nn.Module, loader: DataLoader, batch: Any, data: Any, class_weights: list | None = None) -> int:
    """How many classes the model tells apart, by its output for one image, if labels, classes and weights suit that."""
    images, labels = labelled(batch, data)
    classes = count_classes(model, model.eval()(as_weights(model, images[:1])))
    for what, there in (("classes in the data", about_data(data).get("classes")), ("class_weights", class_weights)):
        if there is not None and len(there) != classes:
            raise ValueError(f"{len(there)} {what}, but {classes} outputs of the model: create it with that num_classes.")
    if loader.collate_fn is default_collate and (isinstance(data, TensorDataset) or hasattr(data, "about")):
        labels = data.tensors[1] if isinstance(data, TensorDataset) else data.labels  # all of them, since they are in memory
    check_labels(labelled((images, labels), data)[1], classes)
    return classes


def first_batch(loader: DataLoader) -> Any:
    """A batch of one item, without the loader's own iterator, which would draw random numbers and start workers."""
    data = loader.dataset
    item = next(iter(data)) if isinstance(data, IterableDataset) else data[0]
    return loader.collate_fn(item if loader.batch_sampler is None else [item])
