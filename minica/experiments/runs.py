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

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from .. import data
from ..backbones import create_backbone, normalization
from ..profiling import count
from ..tasks.classification import metrics
from ..training import fit, predict
from ..tuning import tune
from .records import SCORED

TRAINED = {"tune": "train", "final": "final", None: "train"}  # what a run of each phase trains on
LOADING = ("size", "task", "train_size", "shots", "resize", "augment")
TRAINING = ("epochs", "lr", "weight_decay", "batch_size", "warmup", "seed", "workers", "cache")


def load_task(config: dict) -> data.Task:
    """The data of one configuration, as its backbone expects them."""
    options = {key: config[key] for key in LOADING if key in config}
    if "shots" in config:
        options["seed"] = config["seed"]  # every seed draws its own shots
    published = config.get("normalization") == "imagenet"  # what the published code does, whatever the backbone expects
    return data.load(config["data"], **options, **(data.IMAGENET if published else normalization(config["backbone"])))


def prepare(config: dict) -> tuple[torch.nn.Module, data.Task]:
    """The tuned model and the task of one configuration, seeded, ready for :func:`minica.fit`."""
    task = load_task(config)
    torch.manual_seed(config["seed"])  # the new head's and the adapters' initial weights
    model = create_backbone(config["backbone"], num_classes=len(task.classes))
    framed = {"image_size": config["size"]} if config["method"] == "prompt" else {}
    return tune(model, config["method"], **framed | config["options"]), task


def training_options(config: dict) -> dict:
    """What :func:`minica.fit` takes of a configuration."""
    return {key: config[key] for key in TRAINING if key in config}


def run(config: dict, progress: bool = True) -> dict:
    """Train and score one configuration.

    Its ``phase`` says on what: ``"tune"`` trains on train and is scored on val, ``"final"`` trains on train and val
    together and is scored on test; without one, a run trains on train and is scored on both.  Scored means once, after
    the last epoch.  With ``wrong`` set, each of the scores also lists which images were guessed wrong, by their index.

    Returns:
        A record: ``config``, ``trainable`` parameters, ``test`` and ``val`` metrics, the training loss by epoch,
        ``seconds`` of training, ``peak_memory`` in bytes (of the GPU, else of the process so far), and where it ran.
    """
    model, task = prepare(config)
    train, scored = TRAINED[config.get("phase")], SCORED[config.get("phase")]  # what is tuned never sees the test images
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    history = fit(model, getattr(task, train), progress=progress, **training_options(config))
    seconds = time.perf_counter() - started
    scores = {}
    for split in scored:
        logits, labels = predict(model, getattr(task, split), workers=config.get("workers", 0))
        scores[split] = metrics(logits, labels)
        if config.get("wrong"):
            scores[split]["wrong"] = (logits.argmax(1) != labels).nonzero().flatten().tolist()
    return {
        "config": config,
        "trainable": count(model, config["size"])["trainable"],
        **scores,
        "train_loss": [round(epoch["train_loss"], 4) for epoch in history],
        "seconds": round(seconds, 1),
        "peak_memory": peak_memory(),
        **provenance(),
    }


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
    task = " ".join([config["data"], *(f"{key}={config[key]}" for key in LOADING[1:] if config.get(key) is not None)])
    what = f"{task} {config['backbone']} {config['method']}({options})"
    return f"{what} lr={config['lr']:g} wd={config['weight_decay']:g} seed={config['seed']}"
