"""Adapter files: what was trained, in safetensors, and a configuration that says what it belongs to; neither can run code.

An adapter is a folder with the names that users of PEFT know.  ``adapter_model.safetensors`` holds everything: the trained
tensors, and as metadata the configuration and a checksum over both (format 2).  ``adapter_config.json`` is a copy of the
configuration for people; in format 1, which is still read, it is the configuration itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import stat
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import recipe
from .atomic import write_atomically
from .backbones import backbone_name
from .discovery import skeleton
from .tuning import prepare

ADAPTERS = Path(__file__).parent / "shipped_adapters"  # adapters that come with the package, a folder each
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT = 2
ABOUT = ("classes", "input_size", "resize", "mean", "std", "training_data", "licence")  # of the data that it was trained on
LARGEST_HEADER = 2**24  # bytes; an adapter of ten thousand tensors has a tenth
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError, RuntimeError)


class AdapterFileError(ValueError):
    """The folder does not hold an adapter that fits this model; the model was not touched."""


# ---------------------------------------------------------------- saving


def save_adapter(model: nn.Module, folder: str | os.PathLike, task=None, **about) -> Path:
    """Write what the recipe in use trained, and what it belongs to, into ``folder``.

    Args:
        model: a model prepared by :func:`minica.adapt` or :func:`minica.tune`.
        task: the :class:`minica.data.Task` that it was trained on; its classes, input size, resize rule, normalisation, source
            and licence are written down.  After :func:`minica.fit` they are known, and it can be left out.
        about: anything else that a later user should know, as JSON values.

    Returns:
        The folder.

    Raises:
        ValueError: if nothing was tuned, a frozen tensor has changed, ``about`` is no JSON or takes a reserved name, or the
            folder cannot be written.  A file that was there stays whole.
        AdaptersDetached: if adapters are no longer where they were put.
    """
    inside, folder = recipe.check_parts(model), _path(folder)
    if inside and "" not in inside:
        part = next(iter(inside))
        remedy = f"adapt the whole with backbone={part!r}, train=(...) to save what else trains"
        raise ValueError(f"the recipe is that of {part!r} alone: save that part, or {remedy}.")
    model = recipe.unwrap(model)
    state, declared = recipe.state_of(model), recipe.active_recipe(model)
    if state is None:
        raise ValueError("this model has nothing to save: prepare it with minica.adapt or minica.tune and train it first.")
    if state.folded or declared is None:
        why = "a folded copy is for inference alone" if state.folded else "no set of adapters is in use; minica.switch to one"
        raise ValueError(f"nothing in this model trains, so there is nothing to save: {why}.")
    trained = recipe.trained_state(model)
    tensors = {file_key(model, key): value.cpu().contiguous().clone() for key, value in trained.items()}
    made = dict(method=declared.method, name=state.active, options=declared.options, norms=declared.norms, train=declared.train)
    config = dict(format=FORMAT, backbone=backbone_name(recipe.network_of(model)), inside=state.network, **made)
    config |= dict(num_tensors=len(tensors), num_parameters=sum(value.numel() for value in tensors.values()))
    if reserved := about.keys() & {*config, "frozen"}:
        raise ValueError(f"{', '.join(sorted(reserved))}: these entries of the configuration are written by minica.")
    try:
        config |= declared.about | ({} if task is None else task.train.about) | about
    except (AttributeError, TypeError) as error:
        raise ValueError(f"task must be a minica.data.Task, got {type(task).__name__}.") from error
    frozen = _frozen_digests(model)
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
        described = json.dumps(config | {"frozen": frozen}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"what is written about an adapter must be JSON: numbers, text, lists. {error}.") from error
    metadata = {"minica": f"{_checksum(described, tensors)} {described}"}  # one entry, since safetensors keeps no order of them
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in filter(os.path.exists, (folder, folder / WEIGHTS, folder / CONFIG)):
            if not (file.stat().st_mode & 0o222 and os.access(file, os.W_OK)):  # the mode counts for root as well
                raise PermissionError(13, f"{file.name} is read-only")
            if file != folder and not file.is_file():
                raise FileExistsError(17, f"{file.name} is no regular file")
        write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, metadata))  # the one commit point
        write_atomically(folder / CONFIG, f"{text}\n".encode())
    except OSError as error:
        raise ValueError(f"cannot write an adapter to {folder}: {error.strerror or error}. Choose a folder you own.") from error
    return folder


def _frozen_digests(model: nn.Module) -> dict[str, str]:
    """By file key, the digest of every tensor that the recipe does not train, once it is certain that it has not changed."""
    state, own, found = recipe.state_of(model), recipe.active_recipe(model).own, {}
    for key, value in recipe.own_backbone(model).items():
        if key not in own:
            found[file_key(model, key)] = now = recipe.digest(value)
            kind, before = state.digests.get(key, (None, None))
            if kind is value.dtype and before != now:
                what = f"{key!r} is frozen by the recipe and has changed, so the adapter would not fit others' backbones"
                raise ValueError(f"{what}: load what it was, or name it in train= of minica.adapt or minica.tune.")
    return found


def _checksum(described: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the configuration and over each tensor's name, type, shape and bytes."""
    found = hashlib.sha256(described.encode())
    for key, value in sorted(tensors.items()):
        found.update(f"{key}|{value.dtype}|{tuple(value.shape)}|{recipe.digest(value)}".encode())
    return found.hexdigest()


def file_key(model: nn.Module, key: str) -> str:
    """A state-dict key as files have it: the same in a classifier, a feature pyramid and a larger model of the same network.

    Relative to the network, without the name of the set of adapters, and with ``stages_0`` and ``stem_conv``, as timm's feature
    pyramids call them, as ``stages.0`` and ``stem.conv``.  What lies outside the network begins with a colon.
    """
    state = recipe.state_of(model)
    network = f"{state.network}." if state is not None and state.network else ""
    if not key.startswith(network):
        return f":{key}"
    key = key.removeprefix(network)
    if recipe.adapter_names(model):
        key = re.sub(r"((^|\.)(conv|residual|stage)_adapter)\.\w+\.", r"\1.", key)
    return _canonical(key)


def _canonical(key: str) -> str:
    first, dot, rest = key.partition(".")
    return first.replace("_", ".") + dot + rest


# ---------------------------------------------------------------- reading


@dataclass
class AdapterFile:
    """What a folder holds, read in full and with its checksum verified."""

    folder: Path
    config: dict
    tensors: dict[str, Tensor]

    def error(self, what: str) -> AdapterFileError:
        return AdapterFileError(f"the adapter in {self.folder} {what}")


def read_config(folder: str | os.PathLike) -> dict:
    """The adapter's configuration: what it belongs to, how it was made, and what was written about it.

    Raises:
        AdapterFileError: if it is missing, damaged, or is not minica's.
    """
    return _read(folder).config


def _read(folder: str | os.PathLike) -> AdapterFile:
    """The adapter in a folder, whole and verified."""
    folder = _path(folder)
    file, again = _regular(folder / WEIGHTS), "It was truncated or altered; get the adapter again."
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"its header would have {length:,} bytes")
            size, free = os.fstat(opened.fileno()).st_size, psutil.virtual_memory().available
            if 2 * size > free:
                raise ValueError(f"it has {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free")
            with safetensors.safe_open(file, framework="pt"):  # its header fits its size
                opened.seek(0)
            data = opened.read(size)  # at once: another writer may replace the file at any time
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (*DAMAGE, OSError, MemoryError, safetensors.SafetensorError) as error:
        raise AdapterFileError(f"{file} is damaged or no safetensors file: {_short(error)}. {again}") from error
    if "minica" not in metadata:
        return _read_format_1(folder, tensors, hashlib.sha256(data).hexdigest())
    checksum, _, described = metadata["minica"].partition(" ")
    if _checksum(described, tensors) != checksum:
        raise AdapterFileError(f"{file} is damaged: its contents do not have the SHA-256 that it gives. {again}")
    config = _parsed(described, file, FORMAT, {"format": int, "inside": str, "name": str, "train": list, "frozen": dict})
    shown = {key: value for key, value in config.items() if key != "frozen"}
    try:
        differs = json.loads(_text(folder / CONFIG)) != shown
    except (OSError, ValueError, RecursionError):  # it is there for people
        differs = False
    if differs:
        warnings.warn(f"{folder / CONFIG} is not what {WEIGHTS} says of itself, and is not used.", stacklevel=3)
    return AdapterFile(folder, config, tensors)


def _read_format_1(folder: Path, tensors: dict[str, Tensor], checksum: str) -> AdapterFile:
    """Format 1 has the configuration in a file of its own, and one fingerprint for all frozen tensors."""
    file = folder / CONFIG
    config = _parsed(_text(file), file, 1, {"format": int, "backbone_sha256": str, "weights_sha256": str})
    if checksum != config["weights_sha256"]:
        raise AdapterFileError(f"{folder / WEIGHTS} is damaged: it does not have the SHA-256 in {CONFIG}; get it again.")
    options = dict(config["options"])
    name, norms = options.pop("name", "default"), options.pop("norms", None)
    config |= dict(inside="", name=name, options=options, norms=norms, train=[])
    return AdapterFile(folder, config, {_canonical(key): value for key, value in tensors.items()})


def _path(folder: str | os.PathLike) -> Path:
    if not isinstance(folder, (str, os.PathLike)) or not str(folder) or "\0" in str(folder):
        raise ValueError(f"folder must be the path of a folder, got {folder!r}.")
    return Path(folder)


def _regular(file: Path) -> Path:
    """Refuse what is not there or is no file: reading a device or a pipe might never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise AdapterFileError(f"no adapter in {file.parent}: {file.name} is not a regular file.")
        with open(file, "rb"):
            return file
    except OSError as error:
        what = f"no adapter in {file.parent}: {file.name} cannot be read ({error.strerror})"
        raise AdapterFileError(f"{what}. Give the folder that save_adapter wrote.") from error


def _text(file: Path) -> bytes:
    """What a configuration file holds."""
    with open(_regular(file), "rb") as opened:
        text = opened.read(LARGEST_HEADER + 1)
    if len(text) > LARGEST_HEADER:
        raise AdapterFileError(f"{file} is damaged: it has more than {LARGEST_HEADER:,} bytes. Get the adapter again.")
    return text


def _parsed(text: str | bytes, file: Path, format: int, kinds: dict[str, type]) -> dict:
    """A configuration in which these entries, and those that both formats have, are of their kinds."""
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("no table")
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{file} is damaged: not JSON ({_short(error)}). Get the adapter again.") from error
    if config.get("format", format) != format:
        what = f"{file} has format {reprlib.repr(config['format'])}, where {format} is expected"
        raise AdapterFileError(f"{what}; this minica reads 1 and {FORMAT}. Get the adapter again, or update minica.")
    kinds |= {"backbone": str, "method": str, "options": dict}
    if wrong := [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]:
        what = f"{file} was not written by minica (no {', '.join(wrong)})"
        raise AdapterFileError(f"{what}; adapters of other libraries cannot be loaded.")
    return config


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---------------------------------------------------------------- loading


def load_adapter(
    model: nn.Module,
    folder: str | os.PathLike,
    name: str | None = None,
    *,
    train: str | Collection[str] = (),
    backbone: str | None = None,
) -> nn.Module:
    """Attach what :func:`save_adapter` wrote to its backbone, in place.

    The network may be a classifier, a feature pyramid (``features_only``) or part of a larger model, whichever it was saved
    from.  Tensors of a classifier that the model does not have are left out, with a warning; a classifier that the file does
    not have stays as it is.

    Args:
        model: a backbone with the classifier size of the file, as :func:`minica.create_backbone` makes it; or one that already
            holds adapters, which the new ones join under another name, with a classifier of their own size.
        name: call the adapters something else than they were saved under.
        train: names of what trains as well, beside what the file has, see :func:`minica.adapt`.
        backbone: the dotted name of the network inside the model, by default where the file had it.

    Returns:
        The same model, in evaluation mode.

    Raises:
        AdapterFileError: if the file is missing, truncated, altered, foreign, or belongs to another backbone or another number
            of classes.
        ValueError: if the model was prepared by another method.  Everything is checked first; the model is left untouched.
    """
    whole, file = recipe.carrier(model), _read(folder)
    train = recipe.named_tensors(whole, train)[0]
    config, state = file.config, recipe.state_of(whole)
    methods = set() if state is None else {declared.method for declared in state.recipes.values()}
    if methods and methods | {config["method"]} != {"conv_adapter"}:
        there = f"this model holds what {', '.join(sorted(methods))} prepared, which would be lost or mixed up with it"
        raise file.error(f"was trained by {config['method']!r}, and {there}; minica.detach the model first.")
    try:
        named = config["inside"] if config["inside"] in dict(whole.named_modules()) else ""
        place = backbone if backbone is not None else named if state is None else state.network
        name_here = backbone_name(recipe.part_of(whole, place))
        if config["backbone"] != name_here:
            remedy = f"load it into minica.create_backbone({config['backbone'][:100]!r}, num_classes=...)"
            raise file.error(f"belongs to {config['backbone'][:100]!r}, this model is {name_here!r}; {remedy}.")
        rehearsal = _attach(skeleton(whole), file, name, train, place)  # the same without the numbers: look before leaping
    except DAMAGE as error:
        what = f"cannot be attached, its options make no sense for this model: {_short(error)}"
        raise error if isinstance(error, AdapterFileError) else file.error(what) from error
    left_out = _check_fit(rehearsal, file)
    _check_backbone(whole, rehearsal, file)
    _attach(whole, file, name, train, place)
    with torch.no_grad():
        for key, value in recipe.trained_state(whole).items():
            if (there := file_key(whole, key)) in file.tensors:
                value.copy_(file.tensors[there])
    if left_out:
        warnings.warn(f"{len(left_out)} tensors of {folder} have no place in this model: {left_out[:3]}.", stacklevel=2)
    recipe.active_recipe(whole).about = {key: config[key] for key in ABOUT if key in config}
    model.eval()
    return model


def _attach(model: nn.Module, file: AdapterFile, name: str | None, train, place: str) -> nn.Module:
    config, options = file.config, dict(file.config["options"])
    # What trains outside the network, in a larger model that this one may not be, is left out.
    kept = [pattern for pattern in config["train"] if recipe.covered(recipe.own_tensors(model), pattern)]
    kept += train
    if config["method"] == "conv_adapter":
        options["name"] = config["name"] if name is None else name
        if recipe.state_of(model) is not None:  # beside what the model holds: the file says how many classes these have
            heads = [file.tensors.get(file_key(model, f"{layer}.weight")) for layer in recipe.output_layers(model)]
            options["num_classes"] = heads[0].shape[0] if heads and heads[0] is not None else None
    with warnings.catch_warnings(action="ignore"):  # they were given when the adapter was made
        return prepare(model, config["method"], config["norms"], tuple(dict.fromkeys(kept)), place, options)


def _check_fit(rehearsal: nn.Module, file: AdapterFile) -> list[str]:
    """Every tensor that the recipe wants is in the file, in its shape and type; returns what the file has beyond that.

    What the file's model did not have at all may be missing, and what this one does not have may be left out: a pyramid has
    no classifier.
    """
    wanted = {file_key(rehearsal, key): value for key, value in recipe.trained_tensors(rehearsal).items()}
    here = {file_key(rehearsal, key).rpartition(".")[0] for key in recipe.own_tensors(rehearsal)}
    own = {file_key(rehearsal, key) for key in recipe.active_recipe(rehearsal).own if "frozen" in file.config}
    there = {key.rpartition(".")[0] for key in file.tensors}  # a layer is in the file as a whole, or not at all
    absent, left_out = wanted.keys() - file.tensors.keys(), sorted(file.tensors.keys() - wanted.keys())
    missing = sorted(key for key in absent if key not in own or key.rpartition(".")[0] in there)
    extra = [key for key in left_out if re.split(r"\.\w+_adapter(?:\.|$)", key.rpartition(".")[0])[0] in here]
    if missing or extra:
        what = f"{len(missing)} tensors are missing ({missing[:2]}), {len(extra)} have no place ({extra[:2]})"
        raise file.error(f"does not fit this model: {what}. It belongs to a differently built network.")
    for key in sorted(wanted.keys() & file.tensors.keys()):
        value, target = file.tensors[key], wanted[key]
        if value.shape != target.shape:
            what = f"{key} has shape {tuple(value.shape)} in the file and {tuple(target.shape)} here"
            raise file.error(f"does not fit this model: {what}. Was it made with the same num_classes and backbone options?")
        if value.dtype != target.dtype:
            raise file.error(f"does not fit this model: {key} has type {value.dtype} in the file and {target.dtype} here.")
        if not value.isfinite().all():
            raise file.error(f"is of no use: {key} has values that are not finite, so its training had diverged.")
    return left_out


def _check_backbone(model: nn.Module, rehearsal: nn.Module, file: AdapterFile) -> None:
    """Every frozen tensor that both models have is the same, bit for bit, and one of them has all that the other has."""
    trained, own = recipe.active_recipe(rehearsal).own, recipe.own_backbone(model)
    if "frozen" not in file.config:
        found = hashlib.sha256()
        for key in (key for key in model.state_dict() if key in own and key not in trained):  # in this order
            found.update(key.encode())
            found.update(own[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        different = "the frozen tensors differ" if found.hexdigest() != file.config["backbone_sha256"] else None
    else:
        mine, theirs = {file_key(rehearsal, key): value for key, value in own.items()}, file.config["frozen"]
        changed = [key for key in mine.keys() & theirs.keys() if recipe.digest(mine[key]) != theirs[key]]
        new = mine.keys() - theirs.keys() - file.tensors.keys() - {file_key(rehearsal, key) for key in trained}
        gone = [key for key in theirs.keys() - mine.keys() if not key.startswith(":")]
        different = f"{len(changed)} frozen tensors differ, such as {min(changed)!r}" if changed else None
        if (gone and [key for key in new if not key.startswith(":")]) or (theirs and not mine.keys() & theirs.keys()):
            different = f"{len(gone)} frozen tensors are not here, such as {min(gone, default=None)!r}"
    if different:
        remedy = f"Load the weights that it was trained on, in their precision (here {next(model.parameters()).dtype})."
        raise file.error(f"was trained on other weights of {file.config['backbone']!r}: {different}. {remedy}")
