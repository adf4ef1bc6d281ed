"""What a trained network must beat: always the same answer, the nearest training picture, a linear probe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm import tqdm

from ..experiments.scores import balanced_interval
from ..fast.devices import usable_device
from ..fast.layout import as_weights
from ..tasks.classification import wilson_interval
from ..training import fit, predict

PROBE_EPOCHS, PROBE_RATES = 40, (1e-3, 1e-2, 1e-1)


@torch.no_grad()
def features(network: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """What a network without a classifier makes of each picture, (N, F) in float32, and the labels (N,)."""
    network, rows = network.eval().to(usable_device(None)), []
    for images, labels in tqdm(DataLoader(data, 64), "features of the frozen network", leave=False, delay=10):
        rows.append((network(as_weights(network, images)).float().flatten(1).cpu(), labels))
    found, labels = zip(*rows, strict=True)
    return torch.cat(found), torch.cat(labels)


def baselines(seen: dict[str, tuple[Tensor, Tensor]], classes: int) -> dict[str, Tensor]:
    """The guesses (N,) of three baselines for the test pictures, from the frozen :func:`features` of all splits.

    The nearest neighbour is that of the highest cosine similarity.  The probe is a linear layer on centred features; the
    best of three rates and its best epoch are chosen on validation.
    """
    (known, labels), (val, val_labels), (test, test_labels) = (seen[split] for split in ("train", "val", "test"))
    majority = labels.bincount(minlength=classes).argmax().expand(len(test))
    nearest = labels[(F.normalize(test) @ F.normalize(known).T).argmax(1)]
    centre, scale = known.mean(0), known.std()  # one scale for all: one that training pictures leave dark must not explode
    sets = [TensorDataset((x - centre) / scale, y) for x, y in ((known, labels), (val, val_labels), (test, test_labels))]
    best, probe = -1.0, majority
    for lr in PROBE_RATES:
        layer = nn.utils.skip_init(nn.Linear, known.shape[1], classes)
        for weight in layer.parameters():
            nn.init.zeros_(weight)
        schedule = dict(epochs=PROBE_EPOCHS, patience=PROBE_EPOCHS, monitor="balanced_accuracy")
        history = fit(layer, *sets[:2], lr=lr, **schedule, device="cpu", lean=False, progress=False)
        score = max(record["val_balanced_accuracy"] for record in history)
        if score > best:
            best, probe = score, predict(layer, sets[2])[0].argmax(1)
    return {"majority class": majority, "nearest neighbour": nearest, "linear probe": probe}


def scores(guesses: Tensor, labels: Tensor) -> dict:
    """Accuracy and balanced accuracy (the mean recall of the classes there are), each with its 95 % interval."""
    right = (guesses == labels).numpy()
    recalls = [right[(labels == label).numpy()].mean() for label in labels.unique()]
    return {
        "accuracy": right.mean().item(),
        "accuracy_95": wilson_interval(int(right.sum()), len(right)),
        "balanced_accuracy": sum(recalls).item() / len(recalls),
        "balanced_accuracy_95": list(balanced_interval(right, labels.numpy())),
        "n": len(right),
    }
