"""The trunk of an R50-C4 detector: stem and stages 1 to 3 of a pre-activation ResNet-50, built from timm's parts."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import OrderedDict
from pathlib import Path

import safetensors.torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import PretrainedCfg, build_model_with_cfg
from timm.models._features import feature_take_indices
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

NAME = "resnet50v2_c4"
FILE = "weights/resnet50v2_c4.safetensors"  # below the folder MINICA_DATA
SHA256 = "4d50a182330bf93e55e3128e5bea5b90c89c5132f22576db09c9dd962bdf9e49"
SOURCE = "https://github.com/BruceDai/test-data/tree/38659dfbc5f69daddb71b42d10eb4970176ddc54/models/resnet50v2_nchw/weights"
CONFIG = PretrainedCfg(
    architecture=NAME,
    origin_url=SOURCE,
    license="apache-2.0",
    interpolation="bilinear",
    num_classes=0,  # the file has no classifier
    pool_size=(14, 14),
    first_conv="stem.conv",
    classifier="head.fc",
)


class ResNet50V2C4(ResNetV2):
    """Images (N, C, H, W) to maps (N, 1024, H / 16, W / 16), behind timm's head if classes are asked for.

    It is timm's ``resnetv2_50`` without stage 4, as the ONNX model zoo's ``resnet50-v2-7`` has it: a BatchNorm of the images
    (``stem.norm0``), and BatchNorm and ReLU between the stem's convolution and its pool (``stem.norm``).  The norm and ReLU
    that begin stage 4 are the last ones here (``norm``).

    A detector takes ``forward_features(images)``, or the last map of a network that was made with ``features_only=True``.

    Args:
        options: of timm's ``ResNetV2``, such as ``num_classes``, ``output_stride`` (16 or 8) and ``drop_path_rate``.
    """

    def __init__(self, in_chans: int = 3, **options) -> None:
        shape = dict(layers=[3, 4, 6], channels=(256, 512, 1024), conv_layer=create_conv2d, norm_layer=BatchNormAct2d)
        super().__init__(in_chans=in_chans, **shape, **options)
        conv, pool = self.stem.conv, self.stem.pool
        norm0 = nn.BatchNorm2d(in_chans, device=conv.weight.device, dtype=conv.weight.dtype)
        norm = copy.deepcopy(self.stages[0].blocks[0].norm1)  # of as many channels, and fresh as well
        self.stem = nn.Sequential(OrderedDict(norm0=norm0, conv=conv, norm=norm, pool=pool))
        self.stem_feat_idx = 2
        self.feature_info[0]["module"], self.feature_info[-1]["module"] = "stem.norm", "norm"

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None, **options):
        """timm's, of four maps instead of five: the stem's and the stages'."""
        return super().forward_intermediates(x, feature_take_indices(len(self.feature_info), indices)[0], **options)


def create(name: str = NAME, pretrained: bool = False, pretrained_cfg: PretrainedCfg | None = None, **options) -> nn.Module:
    """The trunk, as :func:`timm.create_model` would make it; without weights, unless ``pretrained_cfg`` says which."""
    pyramid = dict(flatten_sequential=True, out_indices=(0, 1, 2, 3))
    options = {key: value for key, value in options.items() if value is not None}
    model = build_model_with_cfg(
        ResNet50V2C4, name, pretrained, pretrained_cfg or CONFIG, feature_cfg=pyramid, pretrained_filter_fn=_norm0, **options
    )
    model._model_args = {key: options[key] for key in options if key == "output_stride"}  # for timm's save_for_hf
    return model


def _norm0(weights: dict[str, Tensor], model: ResNet50V2C4) -> dict[str, Tensor]:
    """Fit the norm of the images to other channels as timm fits the convolution: one has the mean, more are repeated."""
    for key, value in weights.items():
        if key.startswith("stem.norm0.") and value.dim() and len(value) != model.in_chans:
            repeated = value.repeat(-(-model.in_chans // len(value)))[: model.in_chans]
            weights[key] = value.mean(0, keepdim=True) if model.in_chans == 1 else repeated
    return weights


def weights() -> dict[str, Tensor]:
    """The published ImageNet-1k weights, from the folder ``MINICA_DATA``.

    Raises:
        FileNotFoundError: if the file is not there; the message says where to get it.
        ValueError: if it is another file.
    """
    path = Path(os.environ.get("MINICA_DATA") or "", FILE)
    remedy = f"`python data_scripts/weights.py --root FOLDER` makes it from {SOURCE}; then set MINICA_DATA=FOLDER"
    if not os.environ.get("MINICA_DATA") or not path.is_file():
        raise FileNotFoundError(f"there is no {path}; {remedy}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{path} does not have the SHA-256 {SHA256[:16]}...; {remedy}")
    return safetensors.torch.load(data)
