"""One run from its configuration to its record: what was trained, on what, by which versions, and how well it did.

Several GPUs, or processes, share a run that ``accelerate launch`` or ``torchrun`` starts; in a notebook, this does::

    def training():
        torch.set_num_threads(1)  # on a CPU: threads that an earlier cell used are lost in these copies of the notebook
        model, task = experiments.prepare(config)  # a GPU must not be touched before
        minica.fit(model, task.train, **experiments.training_options(config))
        if os.environ["RANK"] == "0":
            minica.save_adapter(model, "my-adapter")

    accelerate.notebook_launcher(training, num_processes=2)
"""

from __future__ import annotations

import copy
import importlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from .. import data
from ..backbones import create_backbone, normalization
from ..dense import pyramid
from ..recipe import adapters
from ..tasks.classification import all_the_same, metrics
from ..training import evaluate, fit, predict
from ..tuning import tune
from .low_rank import KINDS, low_rank
from .records import SCORED
from .similarity import READINGS, median_distance, mmd, pooled_features, weight_cka

TRAINED = {"tune": "train", "final": "final", None: "train"}  # what a run of each phase trains on
NETWORKS = {"faster_rcnn": "detection", "retinanet": "detection", "upernet": "segmentation"}  # modules of minica.dense
COMPARED = 500  # images of a task, and of the reference, whose features are compared
LOADING = ("size", "task", "train_size", "labels", "shots", "resize", "augment", "resplit")
TRAINING = ("epochs", "lr", "weight_decay", "batch_size", "warmup", "seed", "workers", "cache", "precision")


def load_task(config: dict) -> data.Task | data.DenseTask:
    """The data of one configuration, as its backbone expects them."""
    options = {key: config[key] for key in LOADING if key in config and key not in ("labels", "resplit")}
    if "network" in config:
        if NETWORKS[config["network"]["name"]] == "detection":
            return data.load_boxes(config["data"], **options)
        return data.load_masks(config["data"], **options, **normalization(config["backbone"]))
    if "shots" in config or config.get("resplit"):
        options["seed"] = config["seed"]  # every seed draws its own shots, or its own split
    published = config.get("normalization") == "imagenet"  # what the published code does, whatever the backbone expects
    task = data.load(config["data"], **options, **(data.IMAGENET if published else normalization(config["backbone"])))
    if config.get("labels") is not None:
        split = TRAINED[config.get("phase")]
        setattr(task, split, _drawn(getattr(task, split), config["labels"], config["seed"]))
    return task


def _drawn(images: data.ImageDataset, labels: int, seed: int) -> data.ImageDataset:
    """``labels`` of the images, drawn by ``seed`` in the proportions of the classes."""
    if labels > len(images):
        raise ValueError(f"labels must be at most {len(images):,}, all images there are to train on; got {labels}.")
    every = np.arange(len(images))
    _, kept = data.stratified_split(every, images.labels.numpy(), labels, np.random.RandomState(seed))
    return data.ImageDataset(images.images[kept], images.labels[kept], images.transform, images.about)


def prepare(config: dict) -> tuple[torch.nn.Module, data.Task | data.DenseTask]:
    """The tuned model and the task of one configuration, seeded, ready for :func:`minica.fit`."""
    task = load_task(config)
    # The new head's and the adapters' initial weights; a repeated run has others, on the same data.
    torch.manual_seed(config["seed"] + 1_000_003 * config.get("repeat", 0))
    build = tuned_network if "network" in config else tuned_classifier
    return build(config, len(task.classes)), task


def tuned_classifier(config: dict, classes: int, pretrained: bool = True) -> torch.nn.Module:
    """A backbone with a new classifier, prepared by the configuration's method: one of ``tune``'s, ``"lora"`` or ``"loha"``.

    A Conv-Adapter's options may have ``alpha``: the number at which every entry of every alpha starts (the paper's Figure 4).
    """
    model = create_backbone(config["backbone"], num_classes=classes, pretrained=pretrained)
    if config["method"] in KINDS:
        return low_rank(model, config["method"], **config["options"])
    framed = {"image_size": config["size"]} if config["method"] == "prompt" else {}
    if config["method"] != "conv_adapter":
        return tune(model, config["method"], **framed | config["options"])
    options = {key: value for key, value in config["options"].items() if key != "alpha"}
    tune(model, "conv_adapter", **options)
    for adapter in adapters(model).values() if "alpha" in config["options"] else ():
        torch.nn.init.constant_(adapter.alpha, config["options"]["alpha"])
    return model


def tuned_network(config: dict, classes: int, pretrained: bool = True) -> torch.nn.Module:
    """A detector or a segmentation network, its heads and what the method says of its backbone to be trained.

    Args:
        config: its ``network`` has ``name``, one of :data:`NETWORKS`, and options of the function of that name in
            :mod:`minica.dense`.
        classes: of the data, without the background that detectors count.
    """
    module, network = _dense(config), config["network"]
    sizes = {key: value for key, value in network.items() if key != "name"}
    outputs = classes + (NETWORKS[network["name"]] == "detection")
    model = getattr(module, network["name"])(config["backbone"], outputs, pretrained=pretrained, **sizes)
    heads = pyramid.heads(model, module.BODY) if config["method"] == "full" else module.heads(model)
    return tune(model, config["method"], backbone=module.BODY, train=heads, **config["options"])


def _dense(config: dict) -> ModuleType | None:
    """The module of :mod:`minica.dense` that a configuration's network is from; None for a classifier."""
    module = NETWORKS[config["network"]["name"]] if "network" in config else None
    return module and importlib.import_module(f"..dense.{module}", __package__)


def training_options(config: dict) -> dict:
    """What :func:`minica.fit` takes of a configuration."""
    dense = _dense(config)
    task = {} if dense is None else {key: getattr(dense, key) for key in ("loss", "collate", "metrics") if hasattr(dense, key)}
    return {key: config[key] for key in TRAINING if key in config} | task


def run(config: dict, progress: bool = True) -> dict:
    """Train and score one configuration.

    Its ``phase`` says on what: ``"tune"`` trains on train and is scored on val, ``"final"`` trains on train and val
    together and is scored on test; without one, a run trains on train and is scored on both.  Scored means once, after
    the last epoch.  With ``wrong`` set, each of the scores also lists which images were guessed wrong, by their index.

    Returns:
        A record: ``config``, ``trainable`` parameters, ``test`` and ``val`` metrics, the training loss by epoch, with
        ``weight_cka`` set and full fine-tuning the CKA of every layer's filters with the pre-trained ones and, with the name
        of a data set as ``reference``, the ``mmd`` of its images and the task's,
        ``seconds`` of training, ``peak_memory`` in bytes (of the GPU, else of the process so far), and where it ran.
    """
    model, task = prepare(config)
    before = copy.deepcopy(model) if config.get("weight_cka") and config["method"] == "full" else None
    train, scored = TRAINED[config.get("phase")], SCORED[config.get("phase")]  # what is tuned never sees the test images
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    history = fit(model, getattr(task, train), progress=progress, **training_options(config))
    seconds = time.perf_counter() - started
    scores = {split: _scores(model, getattr(task, split), config) for split in scored}
    return {
        "config": config,
        "trainable": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        **scores,
        "train_loss": [round(epoch["train_loss"], 4) for epoch in history],
        **({} if before is None else {"weight_cka": _weight_cka(before, model)}),
        **({} if before is None or "reference" not in config else {"mmd": _distance(before, task, config)}),
        "seconds": round(seconds, 1),
        "peak_memory": peak_memory(),
        **provenance(),
    }


def _scores(model: torch.nn.Module, images: Dataset, config: dict) -> dict:
    """The metrics on one set of images.

    Of classification also whether the answer is ``constant`` over them (training has collapsed), and with ``wrong`` the indices
    of those that were guessed wrong.
    """
    if dense := _dense(config):
        loader = DataLoader(images, config["batch_size"], collate_fn=getattr(dense, "collate", None))
        return evaluate(model, loader, metrics=dense.metrics)
    logits, labels = predict(model, images, workers=config.get("workers", 0))
    found = metrics(logits, labels) | {"constant": all_the_same(logits)}
    if config.get("wrong"):
        found["wrong"] = (logits.argmax(1) != labels).nonzero().flatten().tolist()
    return found


def _weight_cka(before: torch.nn.Module, after: torch.nn.Module) -> dict[str, dict[str, float]]:
    """By reading of a kernel as samples, by layer: how alike the filters are before and after training."""
    found = {reading: weight_cka(before, after, reading) for reading in READINGS}
    return {reading: {layer: round(value, 5) for layer, value in by_layer.items()} for reading, by_layer in found.items()}


def _distance(before: torch.nn.Module, task: data.Task, config: dict) -> dict[str, float]:
    """MMD of the pre-trained network's features of :data:`COMPARED` training images with those of the reference's test images.

    Both are drawn, since images may stand in the order of their classes, and drawn alike for every run.  The bandwidth is the
    median distance within the reference, so that it is the same for every task.
    """
    reference = data.load(config["reference"], size=config["size"], **normalization(config["backbone"])).test
    drawn = (Subset(part, np.random.RandomState(0).permutation(len(part))[:COMPARED]) for part in (task.train, reference))
    own, theirs = (pooled_features(before, images) for images in drawn)
    bandwidth = median_distance(*theirs.chunk(2))
    return {kind: round(mmd(own, theirs, bandwidth, kind == "unbiased"), 6) for kind in ("biased", "unbiased")}


def peak_memory() -> int:
    """Bytes: the GPU's peak since the run began, or the process's since it started."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Unix has it, Windows does not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def provenance() -> dict:
    """Git revision, package versions and hardware of this process."""
    versions = {}
    for name in ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {os.cpu_count()} threads"
    return {"revision": _revision(), "python": platform.python_version(), "versions": versions, "hardware": hardware}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _revision() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(config: dict) -> str:
    """A configuration in one line."""
    options = ", ".join(f"{key}={value}" for key, value in config["options"].items())
    network = [config["network"]["name"]] if "network" in config else []
    task = " ".join([config["data"], *network, *(f"{key}={config[key]}" for key in LOADING[1:] if config.get(key) is not None)])
    what = f"{task} {config['backbone']} {config['method']}({options})"
    repeat = f" repeat={config['repeat']}" if "repeat" in config else ""
    return f"{what} lr={config['lr']:g} wd={config['weight_decay']:g} seed={config['seed']}{repeat}"
