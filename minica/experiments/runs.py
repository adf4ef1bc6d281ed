"""One run, one record: what was trained, on what, by which versions, and how well it did.

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

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil
import torch

from .. import data
from ..atomic import write_atomically
from ..backbones import create_backbone, normalization
from ..profiling import count
from ..training import fit, metrics, predict
from ..tuning import tune

RESULTS = Path(__file__).parent.parent / "results"


# What a run trains on, and which sets it is scored on.  What is tuned never sees the test images.
PHASES = {"tune": ("train", ("val",)), "final": ("final", ("test",)), None: ("train", ("test", "val"))}
LOADING = ("size", "task", "train_size", "shots", "resize", "augment")
TRAINING = ("epochs", "lr", "weight_decay", "batch_size", "warmup", "seed", "workers", "cache")


def prepare(config: dict) -> tuple[torch.nn.Module, data.Task]:
    """The tuned model and the task of one configuration, seeded, ready for :func:`minica.fit`."""
    options = {key: config[key] for key in LOADING if key in config}
    if "shots" in config:
        options["seed"] = config["seed"]  # every seed draws its own shots
    published = config.get("normalization") == "imagenet"  # what the published code does, whatever the backbone expects
    task = data.load(config["data"], **options, **(data.IMAGENET if published else normalization(config["backbone"])))
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
    train, scored = PHASES[config.get("phase")]
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
        **where(),
    }


def peak_memory() -> int:
    """Bytes: the GPU's peak since the run began, or the process's since it started."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Unix has it, Windows does not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def where() -> dict:
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


# ---------------------------------------------------------------- records


def records(name: str, folder: Path = RESULTS) -> list[dict]:
    """The committed records of one grid; empty if there are none yet."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def recorded(configs: Iterable[dict], name: str, folder: Path = RESULTS) -> list[dict]:
    """The records of exactly these configurations, in their order; what was never run is left out."""
    known = {_key(record["config"]): record for record in records(name, folder)}
    return [known[_key(config)] for config in configs if _key(config) in known]


def complete(name: str, configs: Iterable[dict], folder: Path = RESULTS) -> list[dict]:
    """Run what is not recorded yet, writing each record as soon as there is one; safe to stop and start again."""
    configs = list(configs)
    for number, config in enumerate(configs, 1):
        if recorded([config], name, folder):
            continue
        print(f"{name} {number}/{len(configs)}: {describe(config)}", flush=True)
        record = run(config, progress=sys.stderr.isatty())
        print(f"  test accuracy {record['test']['accuracy']:.1%}, {record['seconds']:.0f} s", flush=True)
        write_records(folder / f"{name}.json", [*records(name, folder), record])
    return recorded(configs, name, folder)


def write_records(path: Path, found: list[dict]) -> None:
    """One record a line, so that a difference in version control shows which."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in found)
    write_atomically(path, f"[\n{lines}\n]\n".encode())


def describe(config: dict) -> str:
    options = ", ".join(f"{key}={value}" for key, value in config["options"].items())
    task = " ".join([config["data"], *(f"{key}={config[key]}" for key in LOADING[1:] if config.get(key) is not None)])
    what = f"{task} {config['backbone']} {config['method']}({options})"
    return f"{what} lr={config['lr']:g} wd={config['weight_decay']:g} seed={config['seed']}"


def _key(config: dict) -> str:
    return json.dumps(config, sort_keys=True)


# The records of a sweep lie in a folder, one file each: several may be written at once, and by a process that is killed.
# Those that are committed are put together into one file, as above.


def trials(place: str | os.PathLike) -> dict[str, dict]:
    """Every record below a folder, or in one file, by its configuration's :func:`trial_key`.

    Raises:
        ValueError: naming a file that holds no record.
    """
    place, found = Path(place), {}
    for path in sorted(place.rglob("*.json")) if place.is_dir() else [place] if place.exists() else []:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            found |= {trial_key(record["config"]): record for record in (held if isinstance(held, list) else [held])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the record of a trial ({error}); move it elsewhere, and run it again.") from error
    return found


def trial_key(config: dict) -> str:
    """What a trial is known by: the same for the same configuration, whatever the order of its keys."""
    return hashlib.sha256(_key(config).encode()).hexdigest()[:16]


def write_trial(folder: Path, record: dict) -> str:
    """Write a record all at once; returns its key."""
    key = trial_key(record["config"])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{key}.json", (json.dumps(record, indent=1) + "\n").encode())
    return key


def spread(found: Iterable[dict], split: str = "test", metric: str = "accuracy") -> tuple[float, float, float]:
    """(lowest, mean, highest) of a metric over records that differ in their seeds."""
    values = [record[split][metric] for record in found]
    return min(values), sum(values) / len(values), max(values)


def bootstrap_interval(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of a mean over test images ``values`` (N,), by drawing N of them with replacement, again and again.

    A value may be an image's mean over several runs, or the difference of two methods' means: the runs stay, and what varies
    is which images happened to be in the test.  (Percentile bootstrap, the same draws every time.)
    """
    often = np.random.RandomState(0).multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    low, high = np.percentile(often @ values / len(values), (2.5, 97.5))
    return float(low), float(high)


def rightness(found: Iterable[dict]) -> np.ndarray:
    """How many of these runs were right about each test image ``(N,)``, from 0 to 1; of records that list the ``wrong``."""
    found = list(found)
    right = np.ones((len(found), found[0]["test"]["n"]))
    for row, record in zip(right, found, strict=True):
        row[record["test"]["wrong"]] = 0
    return right.mean(0)


def markdown_table(found: dict[str, list[dict]]) -> str:
    """Methods side by side, each over its seeds, as Markdown: mean, lowest and highest test accuracy."""
    full = max(records[0]["trainable"] for records in found.values())
    header = "| method | trained parameters | of full | test accuracy: mean (lowest to highest) | balanced accuracy |"
    lines = [header, "|---|---|---|---|---|"]
    for name, records in found.items():
        size, (low, mean, high) = records[0]["trainable"], spread(records)
        balanced = spread(records, metric="balanced_accuracy")[1]
        lines.append(f"| {name} | {size:,} | {size / full:.1%} | {mean:.1%} ({low:.1%} to {high:.1%}) | {balanced:.1%} |")
    return "\n".join(lines)
