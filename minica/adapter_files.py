"""What is in an adapter file, and how is it read safely?

An adapter is a folder of two files under the names that users of PEFT know: ``adapter_model.safetensors`` holds what was
trained and nothing else, ``adapter_config.json`` says what it belongs to.  Neither can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from .atomic import write_atomically
from .backbones import backbone_name
from .discovery import skeleton
from .freezing import attachments, trained_tensors
from .schemes import active_set, adapt, adapter_names, backbone_values, output_layers, sites
from .tuning import train_norms, tune

if TYPE_CHECKING:
    from .data import Task

ADAPTERS = Path(__file__).parent / "shipped_adapters"  # shipped ones, a folder each
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT = 1


class AdapterFileError(ValueError):
    """The folder does not hold an adapter that fits this model; the model was not touched."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The numbers of what is not frozen, by state-dict key."""
    return {key: value.detach() for key, value in trained_tensors(model).items()}


def backbone_fingerprint(model: nn.Module, trained: set[str]) -> str:
    """A SHA-256 over every tensor that is not trained: two backbones agree only if their weights do, bit for bit."""
    digest = hashlib.sha256()
    ours = tuple(f"{name}." for name in attachments(model))
    for key, value in {**model.state_dict(), **backbone_values(model)}.items():
        if key not in trained and not key.startswith(ours):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: nn.Module, folder: str | os.PathLike, task: Task | None = None, **about) -> Path:
    """Write what was trained, and what it belongs to, into ``folder``.

    Args:
        model: a model prepared by :func:`minica.adapt` or :func:`minica.tune`.
        task: what it was trained on; its classes, input size, resize rule, normalisation, source and licence are written down.
        about: anything else that a later user should know, as JSON values.

    Returns:
        The folder.

    Raises:
        ValueError: if nothing was tuned, ``about`` is no JSON or takes a reserved name, or the folder cannot be written.  A
            file that was there stays whole.
    """
    model = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
    method, options = _how(model)
    trained = trained_state(model)
    if not trained:
        raise ValueError("nothing in this model trains, so there is nothing to save; a folded copy is for inference alone.")
    state = {file_key(model, key): value.cpu().contiguous().clone() for key, value in trained.items()}
    payload = safetensors.torch.save(state, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "backbone": backbone_name(model),
        "backbone_sha256": backbone_fingerprint(model, set(trained)),
        "method": method,
        "options": options,
        "num_tensors": len(state),
        "num_parameters": sum(value.numel() for value in state.values()),
        "weights_sha256": hashlib.sha256(payload).hexdigest(),
    }
    if task is not None:
        about = {
            "classes": task.classes,
            "input_size": task.size,
            "resize": task.resize,
            "mean": task.mean,
            "std": task.std,
            "training_data": task.source,
            "licence": task.licence,
            **about,
        }
    if reserved := about.keys() & config.keys():
        raise ValueError(f"{', '.join(sorted(reserved))}: these entries of the configuration are written by minica.")
    try:
        text = json.dumps(config | about, indent=2) + "\n"
    except TypeError as error:
        raise ValueError(f"what is written about an adapter must be JSON: numbers, text, lists. {error}.") from error
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, payload)
        write_atomically(folder / CONFIG, text.encode())
    except OSError as error:
        raise ValueError(f"cannot write an adapter to {folder}: {error.strerror or error}. Choose a folder you own.") from error
    return folder


def _how(model: nn.Module) -> tuple[str, dict]:
    state = getattr(model, "_minica", None)
    if state is None:
        raise ValueError("this model has nothing to save: prepare it with minica.adapt or minica.tune and train it first.")
    method = state.get("method", "conv_adapter")
    if method != "conv_adapter":
        return method, {**state["options"], "norms": state["norms"]}
    active = active_set(model)
    if active is None:
        raise ValueError("the model's adapters are switched off; minica.switch to the set that you want to save.")
    return method, {**state["adapters"][active], "name": active}


def read_config(folder: str | os.PathLike) -> dict:
    """The adapter's configuration.

    Raises:
        AdapterFileError: if it is missing, is not JSON, or is not minica's.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterFileError(
            f"no adapter in {folder}: {CONFIG} cannot be read ({error.strerror}). Give the folder that save_adapter wrote."
        ) from error
    except ValueError as error:
        raise AdapterFileError(f"{path} is damaged: not JSON ({error}). Get the adapter again.") from error
    needed = ("format", "backbone", "backbone_sha256", "method", "options", "weights_sha256")
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise AdapterFileError(
            f"{path} was not written by minica (no {', '.join(missing)}); adapters of other libraries cannot be loaded."
        )
    if config["format"] != FORMAT:
        raise AdapterFileError(f"{path} has format {config['format']}; this minica reads {FORMAT}. Update minica.")
    return config


def load_adapter(model: nn.Module, folder: str | os.PathLike, name: str | None = None) -> nn.Module:
    """Attach what :func:`save_adapter` wrote to its backbone, in place.

    Args:
        model: a backbone with the classifier size of the file, as :func:`minica.create_backbone` makes it; or one that already
            holds adapters, which the new ones join under another name, with a classifier of their own size.
        name: call the adapters something else than they were saved under.

    Returns:
        The same model, in evaluation mode.

    Raises:
        AdapterFileError: if the file is missing, truncated, altered, foreign, or belongs to another backbone or another number
            of classes.  Everything is checked first; the model is left untouched.
    """
    folder, config = Path(folder), read_config(folder)
    try:
        payload = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise AdapterFileError(f"{folder / WEIGHTS} cannot be read ({error.strerror}). Get the adapter again.") from error
    if hashlib.sha256(payload).hexdigest() != config["weights_sha256"]:
        raise AdapterFileError(
            f"{folder / WEIGHTS} is damaged: its {len(payload):,} bytes do not have the SHA-256 that {CONFIG} gives. "
            "It was truncated, altered, or belongs to another configuration; get the adapter again."
        )
    try:
        state = safetensors.torch.load(payload)
    except (safetensors.SafetensorError, ValueError) as error:
        raise AdapterFileError(f"{folder / WEIGHTS} is not a safetensors file ({error}).") from error
    if config["backbone"] != backbone_name(model):
        raise AdapterFileError(
            f"the adapter in {folder} belongs to {config['backbone']!r}, this model is {backbone_name(model)!r}; "
            f"load it into minica.create_backbone({config['backbone']!r}, num_classes=...)."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rehearsal = _attach(skeleton(model), config, name, state)  # the same steps without the numbers: look before leaping
    except (KeyError, TypeError) as error:
        raise AdapterFileError(f"{folder / CONFIG} is damaged: its options make no sense ({error}). Get it again.") from error
    wanted = trained_state(rehearsal)
    _check_fit({file_key(rehearsal, key): value for key, value in wanted.items()}, state, folder)
    if backbone_fingerprint(model, set(wanted)) != config["backbone_sha256"]:
        raise AdapterFileError(
            f"the adapter in {folder} was trained on other weights of {config['backbone']!r}: the frozen tensors differ. "
            f"Load the pre-trained weights that it was trained on, in their precision (here {_dtype(model)})."
        )
    _attach(model, config, name, state)
    with torch.no_grad():
        for key, value in trained_state(model).items():
            value.copy_(state[file_key(model, key)])
    return model.eval()


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def file_key(model: nn.Module, key: str) -> str:
    """A state-dict key as the file has it: without the name of the set of adapters."""
    for site, _ in sites(model):
        if key.startswith(f"{site}."):
            return f"{site}.{key[len(site) + 1 :].partition('.')[2]}"
    return key


def _attach(model: nn.Module, config: dict, name: str | None, state: dict[str, Tensor]) -> nn.Module:
    options = dict(config["options"])
    if config["method"] != "conv_adapter":
        return tune(model, config["method"], **options)
    norms = options.pop("norms")
    if adapter_names(model):  # unlike tune, beside what the model already holds: the file says how many classes these have
        weights = [state[key] for key in (f"{layer}.weight" for layer in output_layers(model)) if key in state]
        options["num_classes"] = weights[0].shape[0] if weights else None
    adapt(model, **{**options, "name": name or options["name"]})
    train_norms(model, norms)
    return model


def _check_fit(wanted: dict[str, Tensor], state: dict[str, Tensor], folder: Path) -> None:
    """Every tensor that the model wants is in the file in its shape, and nothing else is."""
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    if missing or extra:
        raise AdapterFileError(
            f"the adapter in {folder} does not fit this model: {len(missing)} tensors are missing ({missing[:2]}), "
            f"{len(extra)} have no place ({extra[:2]}). It belongs to a differently built network."
        )
    if wrong:
        key = sorted(wrong)[0]
        raise AdapterFileError(
            f"the adapter in {folder} does not fit this model: {key} has shape {tuple(state[key].shape)} in the file and "
            f"{tuple(wanted[key].shape)} here. Was the model made with the same num_classes and backbone options?"
        )
