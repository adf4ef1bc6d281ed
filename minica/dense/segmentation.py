"""Semantic segmentation: UPerNet on a pre-trained backbone, with what :func:`minica.fit` needs for it.

::

    model = segmentation.upernet("tf_efficientnet_lite0", num_classes=len(task.classes))
    minica.adapt(model, "residual_parallel", backbone="encoder", train=segmentation.heads(model))
    minica.fit(model, task.train, task.val, loss=segmentation.loss, metrics=segmentation.metrics, monitor="miou")

Images are float32 (N, 3, H, W), normalised as the backbone expects; masks are int64 (N, H, W), 255 where a pixel
does not count.  The loss and the metrics also take models of torchvision and of segmentation-models-pytorch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..fast.layout import as_weights
from ..profiling import modes_kept
from . import pyramid

BODY = "encoder"  # the pre-trained network in a model of this module: backbone= of minica.adapt and minica.tune
IGNORED = 255  # the label of pixels that do not count
AUXILIARY = 0.4  # weight of the auxiliary loss, as in the paper's source of heads (MMSegmentation)


class UPerNet(nn.Module):
    """UPerNet (Xiao et al. 2018) with an auxiliary FCN head, both at half a stride of four; the decoder is smp's.

    Args:
        encoder: see :func:`~minica.dense.pyramid.feature_pyramid`; at least three maps, the finest first.
        num_classes: of pixels, the background among them if there is one.
        channels: width of the decoder, 512 in the paper.
        auxiliary_channels: width of the auxiliary head, which reads the last map but one; 0 leaves it out.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, channels: int = 512, auxiliary_channels: int = 256) -> None:
        super().__init__()
        widths = encoder.feature_info.channels()
        if len(widths) < 3:
            raise ValueError(f"UPerNet needs three maps of its encoder or more, got {len(widths)}.")
        self.norms = pyramid.output_norms(encoder)  # before the encoder, see detection.PyramidBackbone
        self.encoder = encoder
        # The decoder passes over two maps finer than stride 4, which are not made here.
        self.decoder = UPerNetDecoder([0, 0, *widths], len(widths) + 1, channels)
        # Some versions normalise the maps in the decoder; the paper's does not, and ConvNeXt's maps have norms already.
        if hasattr(self.decoder, "feature_norms"):
            self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in widths)
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary_head = FCNHead(widths[-2], auxiliary_channels, num_classes) if auxiliary_channels else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``out``: logits (N, classes, H, W) of images (N, 3, H, W); in training mode also ``aux``, of the auxiliary head."""
        maps = [norm(map) for norm, map in zip(self.norms, self.encoder(images), strict=True)]
        logits = OrderedDict(out=self.head(self.decoder([None, None, *maps])))
        if self.training and self.auxiliary_head is not None:
            logits["aux"] = self.auxiliary_head(maps[-2])
        size = images.shape[-2:]
        return OrderedDict((key, F.interpolate(value, size, mode="bilinear")) for key, value in logits.items())


class FCNHead(nn.Sequential):
    """A 3 x 3 convolution, BatchNorm, ReLU, dropout of a tenth, and a 1 x 1 convolution (MMSegmentation's, of one layer)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))


def upernet(
    backbone: str, num_classes: int, *, channels: int = 512, auxiliary_channels: int = 256, pretrained: bool = True, **options
) -> UPerNet:
    """:class:`UPerNet` on a backbone of :func:`minica.create_backbone`, as in the paper's Table 4.

    Args:
        options: of :func:`~minica.dense.pyramid.feature_pyramid`.
    """
    encoder = pyramid.feature_pyramid(backbone, pretrained=pretrained, **options)
    return UPerNet(encoder, num_classes, channels, auxiliary_channels)


def heads(model: nn.Module) -> tuple[str, ...]:
    """What trains beside the pre-trained network, as ``train=`` of :func:`minica.adapt` takes it; see ``detection.heads``."""
    return tuple(name for name in pyramid.heads(model, BODY) if name != "norms")


# ---------------------------------------------------------------- for minica.fit


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy over the pixels that count, and 0.4 times that of the auxiliary head if there is one."""
    images, masks = batch
    logits = model(as_weights(model, images))
    logits = logits if isinstance(logits, dict) else {"out": logits}
    total = F.cross_entropy(logits["out"].float(), masks, ignore_index=IGNORED)
    if "aux" in logits:
        total = total + AUXILIARY * F.cross_entropy(logits["aux"].float(), masks, ignore_index=IGNORED)
    return total


@torch.no_grad()
def segment(model: nn.Module, batches: Iterable) -> list[Tensor]:
    """The class of every pixel, uint8 or int64 (H, W) for each image.

    Args:
        batches: of images (N, 3, H, W), or of pairs of images and masks: a DataLoader, for instance.
    """
    found, device = [], next(model.parameters()).device
    with modes_kept(model):
        model.eval()
        for batch in batches:
            images = batch[0] if isinstance(batch, (list, tuple)) else batch
            logits = model(as_weights(model, images.to(device)))
            guesses = (logits["out"] if isinstance(logits, dict) else logits).argmax(1).cpu()
            found += list(guesses.to(torch.uint8) if guesses.max() < IGNORED else guesses)
    return found


def metrics(model: nn.Module, loader: DataLoader) -> dict:
    """:func:`mean_iou` of what the model says of the images of ``loader``; the ``metrics`` of :func:`minica.fit`."""
    return mean_iou(pair for images, masks in loader for pair in zip(segment(model, [images]), masks, strict=True))


def mean_iou(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict:
    """Intersection over union of each class, over the pixels of all images together, as ADE20K counts.

    Args:
        pairs: for each image the classes that were guessed and the mask, both (H, W).

    Returns:
        ``miou``, the mean over the classes that are in a mask or in a guess; ``iou`` of class 0, 1 and so on (None for one
        that is in neither); ``pixel_accuracy``, and ``n`` images.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    table, n = torch.zeros(IGNORED, IGNORED, dtype=torch.int64), 0
    for guess, mask in pairs:
        table += multiclass_confusion_matrix(guess.long(), mask.long(), IGNORED, ignore_index=IGNORED)
        n += 1
    right = table.diagonal().double()
    union = table.sum(0) + table.sum(1) - right
    iou = [None if math.isnan(value) else value for value in (right / union).tolist()]
    there = [value for value in iou if value is not None]
    last = max((at for at, value in enumerate(iou) if value is not None), default=-1)
    accuracy = (right.sum() / table.sum()).item()
    return {"miou": sum(there) / len(there), "iou": iou[: last + 1], "pixel_accuracy": accuracy, "n": n}
