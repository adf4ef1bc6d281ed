"""Detection: Faster R-CNN and RetinaNet of torchvision on a pre-trained backbone, with what :func:`minica.fit` needs for them.

::

    model = detection.faster_rcnn("tf_efficientnet_lite0", num_classes=1 + len(task.classes), min_size=256)
    minica.adapt(model, "residual_parallel", backbone="backbone.body", train=detection.heads(model))
    minica.fit(model, task.train, task.val, loss=detection.loss, collate=detection.collate, metrics=detection.metrics,
               monitor="ap")

Images are float32 (3, H, W) in [0, 1], of any size: torchvision's detectors resize and normalise by themselves, here by the
mean and standard deviation that the backbone's weights expect.  A target is a dict with ``boxes`` float32 (M, 4) as corners
(x1, y1, x2, y2) in pixels and ``labels`` int64 (M,) from 1, since 0 is the background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..backbones import normalization
from ..profiling import modes_kept
from ..recipe import unwrap
from . import pyramid

BODY = "backbone.body"  # the pre-trained network in a detector of this module: backbone= of minica.adapt and minica.tune
ASPECTS = (0.5, 1.0, 2.0)
MAX_DETECTIONS = 100  # COCO's, an image


class PyramidBackbone(nn.Module):
    """A pre-trained network (``body``), norms of its maps where it lacks them, and a feature pyramid network (``fpn``).

    Args:
        body: see :func:`~minica.dense.pyramid.feature_pyramid`.
        channels: of every map that comes out.
        extra: makes coarser maps of the last ones.
    """

    def __init__(self, body: nn.Module, channels: int, extra: nn.Module | None) -> None:
        super().__init__()
        self.norms = pyramid.output_norms(body)  # before the body: what comes behind is taken for a head that should train
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), channels, extra)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [norm(map) for norm, map in zip(self.norms, self.body(images), strict=True)]
        return self.fpn(OrderedDict((str(level), map) for level, map in enumerate(maps)))


def faster_rcnn(
    backbone: str,
    num_classes: int,
    *,
    out_indices: Sequence[int] | None = None,
    channels: int = 256,
    pretrained: bool = True,
    **options,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid network (Lin et al. 2017), as in the paper's Table 4.

    Anchors are 8 strides wide on each map, in three shapes.  With one map (``out_indices=(3,)`` of the ResNet-50 trunk, the
    C4 detector) they are 2, 4, 8, 16 and 32 strides wide on it.

    Args:
        backbone: a name of :func:`minica.create_backbone`.
        num_classes: with the background, as torchvision counts: 81 for COCO's 80 classes.
        out_indices: which maps of the backbone, by default all of stride 4 and more.
        channels: of the feature pyramid network, 256 in the paper.
        pretrained: whether the backbone has its pre-trained weights; all else is new.
        options: of torchvision's ``FasterRCNN``: ``min_size`` and ``max_size`` of resized images in pixels (800 and 1333),
            ``box_detections_per_img`` (100), and so on.

    Returns:
        torchvision's model.  Its pre-trained network is ``backbone.body``; :func:`heads` names the rest.
    """
    body = pyramid.feature_pyramid(backbone, out_indices=out_indices, pretrained=pretrained)
    strides = body.feature_info.reduction()
    single = len(strides) == 1
    net = PyramidBackbone(body, channels, None if single else LastLevelMaxPool())
    if single:
        sizes = [tuple(times * strides[0] for times in (2, 4, 8, 16, 32))]
    else:
        sizes = [(8 * stride,) for stride in (*strides, 2 * strides[-1])]
    defaults = {
        "rpn_anchor_generator": AnchorGenerator(tuple(sizes), (ASPECTS,) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size=7, sampling_ratio=2),
    }
    return FasterRCNN(net, num_classes, **defaults | _normalized(body) | options)


def retinanet(
    backbone: str,
    num_classes: int,
    *,
    out_indices: Sequence[int] | None = None,
    channels: int = 256,
    pretrained: bool = True,
    **options,
) -> RetinaNet:
    """RetinaNet (Lin et al. 2017): one stage, focal loss; maps of stride 8 and more, and two coarser ones made of the last.

    The arguments are those of :func:`faster_rcnn`, the options those of torchvision's ``RetinaNet``.  ``num_classes`` counts
    the background here too, as torchvision does.
    """
    body = pyramid.feature_pyramid(backbone, out_indices=out_indices, finest=8, pretrained=pretrained)
    last, strides = body.feature_info.channels()[-1], body.feature_info.reduction()
    net = PyramidBackbone(body, channels, LastLevelP6P7(last, channels))
    widths = [4 * stride for stride in (*strides, 2 * strides[-1], 4 * strides[-1])]
    sizes = tuple(tuple(int(width * 2 ** (third / 3)) for third in range(3)) for width in widths)
    defaults = {"anchor_generator": AnchorGenerator(sizes, (ASPECTS,) * len(sizes))}
    return RetinaNet(net, num_classes, **defaults | _normalized(body) | options)


def _normalized(body: nn.Module) -> dict:
    return {f"image_{key}": list(value) for key, value in normalization(body).items()}


def heads(model: nn.Module) -> tuple[str, ...]:
    """What trains in a detector of this module beside its pre-trained network, as ``train=`` of :func:`minica.adapt` takes it.

    The fresh norms of a ConvNeXt's maps (``backbone.norms``) are not among them: the paper trains them in full fine-tuning
    and leaves them frozen, at one and zero, under adapters.
    """
    return tuple(name for name in pyramid.heads(model, BODY) if name != "backbone.norms")


# ---------------------------------------------------------------- for minica.fit


def collate(items: Sequence[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    """Images of different sizes and their targets, as two lists."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def loss(model: nn.Module, batch: tuple[list[Tensor], list[dict]]) -> Tensor:
    """The sum of the detector's own losses."""
    images, targets = batch
    wanted = [{key: target[key] for key in ("boxes", "labels")} for target in targets]
    _check_labels(model, torch.cat([target["labels"] for target in targets]))
    return torch.stack(list(model(images, wanted).values())).sum()


def _check_labels(model: nn.Module, labels: Tensor) -> None:
    whole = unwrap(model)
    if isinstance(whole, RetinaNet):
        classes = whole.head.classification_head.num_classes
    elif isinstance(whole, FasterRCNN) and hasattr(whole.roi_heads.box_predictor, "cls_score"):
        classes = whole.roi_heads.box_predictor.cls_score.out_features
    else:
        return
    wrong = labels[(labels < 1) | (labels >= classes)]
    if len(wrong):  # left to CUDA, this is a device assert that names nothing and ends the process's use of the GPU
        has = f"{classes} classes, of which 0 is the background"
        raise ValueError(f"label {wrong[0]} is not among the detector's {has}; create it with num_classes=1 + the data's.")


@torch.no_grad()
def detect(model: nn.Module, batches: Iterable) -> list[dict[str, Tensor]]:
    """What the detector finds: for each image ``boxes`` (M, 4), ``labels`` (M,) and ``scores`` (M,), the best first.

    Args:
        batches: as :func:`collate` makes them, targets or not: a DataLoader, or a list of lists of images.
    """
    found, device = [], next(model.parameters()).device
    with modes_kept(model):
        model.eval()
        for batch in batches:
            images = batch[0] if isinstance(batch, tuple) else batch
            outputs = model([image.to(device) for image in images])
            found += [{key: value.cpu() for key, value in output.items()} for output in outputs]
    return found


def metrics(model: nn.Module, loader: DataLoader) -> dict:
    """:func:`average_precision` of what the model finds in the images of ``loader``; the ``metrics`` of :func:`minica.fit`.

    As many boxes of an image count as the model gives: ``box_detections_per_img`` of Faster R-CNN, ``detections_per_img`` of
    RetinaNet.
    """
    found, targets = [], []
    for images, wanted in loader:  # the images of a whole data set may not fit in memory
        found += detect(model, [images])
        targets += wanted
    whole = unwrap(model)
    limit = getattr(getattr(whole, "roi_heads", whole), "detections_per_img", MAX_DETECTIONS)
    return average_precision(found, targets, limit)


def average_precision(found: Sequence[dict], targets: Sequence[dict], max_detections: int = MAX_DETECTIONS) -> dict:
    """COCO's average precision, computed by pycocotools.

    Args:
        found: for each image ``boxes``, ``labels`` and ``scores``, see :func:`detect`.
        targets: for each image ``boxes`` and ``labels``; ``iscrowd`` and ``area`` count as COCO has them, if they are there.
        max_detections: how many boxes of an image count, the best first.  COCO's is 100, too few for images with more
            objects.

    Returns:
        ``ap`` (mean over classes and over IoU from 0.50 to 0.95), ``ap50``, ``ap75``, ``ap_small``, ``ap_medium`` and
        ``ap_large`` (areas below 32 x 32, to 96 x 96, above; -1 where there is no such object), ``recall``,
        ``max_detections``, and ``n`` images.
    """
    from torchmetrics.detection import MeanAveragePrecision

    measure = MeanAveragePrecision(
        max_detection_thresholds=[1, 10, max_detections], extended_summary=True, backend="pycocotools"
    )
    measure.warn_on_many_detections = False
    kept = ("boxes", "labels", "iscrowd", "area")
    measure.update(list(found), [{key: target[key] for key in kept if key in target} for target in targets])
    result = measure.compute()
    precision = result["precision"][..., -1]  # by IoU from 0.50 in steps of 0.05, recall, class, and area: all, small, ...

    def mean(values: Tensor) -> float:
        values = values[values > -1]  # pycocotools' mark of a class without objects
        return values.mean().item() if len(values) else -1.0

    by_area = {f"ap_{name}": mean(precision[..., at]) for at, name in enumerate(("small", "medium", "large"), start=1)}
    by_iou = {"ap": mean(precision[..., 0]), "ap50": mean(precision[0, ..., 0]), "ap75": mean(precision[5, ..., 0])}
    recall = mean(result["recall"][..., 0, -1])
    return by_iou | by_area | {"recall": recall, "max_detections": max_detections, "n": len(targets)}


def precision_recall(found: Sequence[dict], targets: Sequence[dict], iou: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """What a threshold on the scores costs and gains, over all classes together.

    From the highest score down, a box is right if it overlaps a box of its class that no better one has taken, with an
    intersection over union of ``iou`` or more.

    Args:
        found: for each image ``boxes``, ``labels`` and ``scores``, see :func:`detect`.
        targets: for each image ``boxes`` and ``labels``; crowds are left out.

    Returns:
        scores (K,) of all boxes, falling; and where boxes with at least that score count, precision (K,), the share of them
        that is right, and recall (K,), the share of the objects that they find.
    """
    scores, right, objects = [], [], 0
    for guess, target in zip(found, targets, strict=True):
        single = target.get("iscrowd", torch.zeros(len(target["labels"]))) == 0
        boxes, labels = target["boxes"][single], target["labels"][single]
        overlaps = box_iou(guess["boxes"], boxes) * (guess["labels"][:, None] == labels)
        for at in guess["scores"].argsort(descending=True):
            best = overlaps[at].argmax().item() if len(labels) else None
            hit = best is not None and overlaps[at, best].item() >= iou
            if hit:
                overlaps[:, best] = 0
            right.append(hit)
            scores.append(guess["scores"][at].item())
        objects += len(labels)
    order = torch.tensor(scores).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[order].cumsum(0)
    return torch.tensor(scores)[order], hits / torch.arange(1, len(hits) + 1), hits / max(objects, 1)
