"""The paper's Table 10, recomputed."""

from __future__ import annotations

import warnings

import torch

from ..backbones import create_backbone
from ..profiling import operations
from ..recipe import detach
from ..schemes import SCHEMES, adapt
from .paper import table


def table_10() -> list[dict]:
    """The paper's Table 10 with our ``added`` operations of the adapters and ``total`` beside its ``gflops``, all in 1e9.

    At compression 1.  The rows of ResNet50, those called BiT included, are a batch-normalised ResNet50 with BiT's adapters.
    All that is counted lies on maps, and every size is a multiple of the largest stride, so it grows with the image's area.
    """
    at_224 = {}
    for name, own, adapted in (("ResNet50", "resnet50", "resnetv2_50x1_bit"), ("ConvNeXt-B", "convnext_base", "convnext_base")):
        with torch.device("meta"):
            plain, model = (create_backbone(network, 0, pretrained=False).eval() for network in (own, adapted))
        at_224[name, "FT"] = operations(plain, 224)["backbone"], 0
        for tuning, scheme in zip(("Conv. Par.", "Conv. Seq.", "Res. Par.", "Res. Seq."), SCHEMES, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of adapters that are large at compression 1
                adapt(detach(model), scheme, compression=1)
            at_224[name, tuning] = at_224[name, "FT"][0], operations(model, 224)["adapters"]
    found = []
    for row in table(10):
        own, added = at_224[row["backbone"].removesuffix("-BiT"), row["tuning"]]
        scale = row["height"] * row["width"] / 224**2 / 1e9
        found.append({**row, "added": added * scale, "total": (own + added) * scale})
    return found
