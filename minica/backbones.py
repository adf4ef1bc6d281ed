"""Pre-trained backbones by name: their networks, their weights, and the normalisation that these expect."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm
from timm.models import PretrainedCfg, load_model_config_from_hf, load_state_dict, resolve_pretrained_cfg
from timm.models._hub import load_model_config_from_path, load_state_dict_from_path
from torch import Tensor, nn

from .counting import check_whole
from .networks import clip, published
from .networks import resnet50v2_c4 as c4
from .networks.published import MOCO_V3, PACKAGED_WEIGHTS

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
    num_classes = check_whole(num_classes, "num_classes", 0)
    if "in_chans" in options:
        options["in_chans"] = check_whole(options["in_chans"], "in_chans", 1)
    if pretrained not in (True, False):
        raise ValueError(f"pretrained must be True or False, got {pretrained!r}; a file of your own goes to checkpoint_path=.")
    timm_name, config, saved = _resolve(name, options)
    build = partial(c4.create if timm_name == c4.NAME else timm.create_model, timm_name, **saved)
    keeps_projection = config.architecture.endswith("_clip")  # which timm takes for the classifier; ours goes behind it
    if not keeps_projection:
        options["num_classes"] = num_classes
    file = options.get("checkpoint_path") or (config.file if pretrained and not config.custom_load else None)
    try:
        weights = _weights(name, config, file) if pretrained or file else None
        if weights is not None:
            model = _build_with(weights, build, config, options)
        else:
            model = build(**options, pretrained=bool(pretrained) and "checkpoint_path" not in options)
    except Exception as error:  # timm, torch, safetensors and the Hub's client have errors of their own
        # Behind these words timm advises an option that does not exist here.
        reason = f"({type(error).__name__}: {' '.join(str(error).split()).partition(' No automatic unsafe')[0][:350]})"
        if isinstance(error, (TypeError, AssertionError, LookupError)) or not (pretrained or file):
            raise ValueError(f"{name!r} cannot be built with {timm_options} {reason}.") from error
        source, remedy = f"in {file}", "They must be a state dict of the whole network: torch.save(model.state_dict(), FILE)."
        if not file:
            source, remedy = f"of {name!r}", f"{published.available_offline()} pretrained=False gives random weights."
        raise WeightsUnavailable(f"the pre-trained weights {source} could not be loaded {reason}. {remedy}") from error
    return clip.add_classifier(model, num_classes) if keeps_projection and not options.get("features_only") else model


def _resolve(name: str, options: dict) -> tuple[str, PretrainedCfg, dict]:
    """timm's name of a backbone, the configuration of its weights, and the options that were saved with them."""
    if not isinstance(name, str):
        raise UnknownBackbone(f"a backbone is named by a str, got {name!r}.")
    if name == "resnet50-in21k":
        reason = "Table 7 lists a plain ResNet50 trained on ImageNet-21k, but no weights of it were published"
        raise WeightsUnavailable(f"{reason}; use 'resnet50-in21k-bit-m' (the paper's main backbone) or 'resnet50-in1k'.")
    given = options.get("pretrained_cfg")
    stored = _stored_config(name, options.get("cache_dir"))
    if stored and given:
        raise ValueError(f"{name!r} has a pretrained_cfg of its own; change it by pretrained_cfg_overlay=.")
    if stored:
        given, timm_name, saved = stored
    else:
        timm_name = "resnet50" if name == MOCO_V3 else ALIASES.get(name, name.removeprefix("timm/"))
        timm_name, saved = timm.models.get_deprecated_models().get(timm_name) or timm_name, {}
    architecture, _, tag = str(timm_name).partition(".")
    if not timm.is_model(architecture) and timm_name != c4.NAME:
        names = [*ALIASES, MOCO_V3]
        close = difflib.get_close_matches(str(timm_name), [*names, c4.NAME, *timm.list_models()], n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        others = "timm.list_models() lists timm's, 'hf-hub:OWNER/MODEL' is one of the Hub, 'local-dir:FOLDER' one saved by timm"
        raise UnknownBackbone(f"unknown backbone {timm_name!r}; {hint}The paper's are {', '.join(names)}; {others}.")
    try:
        given = given or tag or published.config(name if name == MOCO_V3 else architecture)
        config = resolve_pretrained_cfg(architecture, given, options.get("pretrained_cfg_overlay"))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        known = f"timm has {timm.list_pretrained(architecture + '.*')}"
        raise UnknownBackbone(f"no weights of {name!r} go by this tag or pretrained_cfg ({error}); {known}.") from error
    return timm_name, config, dict(saved, pretrained_cfg=config) if stored else {}


def _stored_config(name: str, cache_dir: str | Path | None) -> tuple[dict, str, dict] | None:
    """Configuration of the weights, architecture and options in the config.json that a name with a colon leads to."""
    scheme, _, place = name.partition(":")
    hub = partial(load_model_config_from_hf, cache_dir=cache_dir)
    read = {"local-dir": load_model_config_from_path, "hf-hub": hub}.get(scheme.replace("_", "-"))
    try:
        return read(place) if read and place else None
    except Exception as error:  # no such folder, no network, no JSON, a model that is not timm's
        reason = f"({type(error).__name__}: {str(error)[:200]}). timm's save_for_hf writes it. {published.available_offline()}"
        raise WeightsUnavailable(f"the config.json of {name!r} could not be read {reason}") from error


def _weights(name: str, config: PretrainedCfg, file: str | Path | None) -> dict[str, Tensor] | None:
    """The state dict of a file, a folder that timm wrote, a configuration, or a publisher; ``None``: timm finds the weights."""
    if file:
        path = Path(file)
        path.stat()  # its error says what is not there; timm's does not
        if path.suffix.lower() in (".npz", ".npy"):  # timm's classes read these archives themselves
            return None
        return (load_state_dict_from_path if path.is_dir() else load_state_dict)(str(path), weights_only=True)
    default = published.config(config.architecture)
    if config.state_dict or (config.url, config.hf_hub_id) != (default.url, default.hf_hub_id):
        return config.state_dict
    if name == MOCO_V3:
        return published.moco_v3_weights()
    if config.architecture == c4.NAME:
        return c4.weights()
    return published.packaged_weights(config.architecture) if config.architecture in PACKAGED_WEIGHTS else None


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


def normalization(backbone: nn.Module | str) -> dict[str, tuple[float, ...]]:
    """``{"mean": ..., "std": ...}`` of RGB in [0, 1] that a backbone's weights were trained with, by model or by name."""
    config = vars(_resolve(backbone, {})[1]) if isinstance(backbone, str) else timm.data.resolve_model_data_config(backbone)
    return {"mean": tuple(config["mean"]), "std": tuple(config["std"])}


def backbone_name(model: nn.Module) -> str:
    """The architecture by timm's name, or the class where the network is not timm's."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
