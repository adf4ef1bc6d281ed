"""Detectors and segmentation networks: the paper's counts, what holds for adapted ones, and metrics against cases by hand."""

import json
import math
import re
import warnings

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from nets import disturb, same, snapshot
from safetensors import safe_open
from torch import nn

import minica
from minica.dense import detection, pyramid, segmentation
from minica.profiling import activations

SMALL = dict(pretrained=False, channels=16)
DETECTOR = SMALL | dict(min_size=64, max_size=96, box_batch_size_per_image=16, rpn_post_nms_top_n_train=100)
NETS = ("test_resnet", "test_efficientnet", "test_convnext")


def fixed(body):
    """The same weights for every network of one architecture, and gains that let something through."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in body.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1))
    return body


def detector(name="test_resnet", kind=detection.faster_rcnn, seed=0, num_classes=3):
    torch.manual_seed(seed)
    options = DETECTOR if kind is detection.faster_rcnn else SMALL | dict(min_size=64, max_size=96)
    model = kind(name, num_classes, **options)
    fixed(model.backbone.body)
    return model.eval()


def segmenter(name="test_resnet", seed=0, num_classes=3):
    torch.manual_seed(seed)
    model = segmentation.upernet(name, num_classes, auxiliary_channels=8, **SMALL)
    fixed(model.encoder)
    return model.eval()


def squares(n, seed=0):
    """Pictures of different sizes with up to two bright squares: a red one is class 1, a green one class 2."""
    generator, items = torch.Generator().manual_seed(seed), []
    for number in range(n):
        image = torch.rand(3, 64 + 8 * (number % 2), 80, generator=generator) * 0.3
        boxes, labels = [], []
        for colour in torch.randint(0, 2, (number % 3,), generator=generator).tolist():
            x, y = torch.randint(0, 40, (2,), generator=generator).tolist()
            image[colour, y : y + 20, x : x + 20] = 1
            boxes.append([x, y, x + 20, y + 20])
            labels.append(colour + 1)
        target = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()}
        items.append((image, target | {"image_id": number}))
    return items


def masks(n, seed=0):
    found = []
    for image, _ in squares(n, seed):
        image = image[:, :64, :64]
        found.append((image * 2 - 1, ((image[0] > 0.9) + 2 * (image[1] > 0.9)).clamp(max=2).long()))
    return found


def adapt(model, scheme="residual_parallel", **options):
    module = segmentation if isinstance(model, segmentation.UPerNet) else detection
    with warnings.catch_warnings(action="ignore"):  # that adapters are many beside so small a network
        return minica.adapt(model, scheme, backbone=module.BODY, train=module.heads(model), **options)


def trainable(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


# ---------------------------------------------------------------- the paper's integers

HEADS = {  # parts of the paper's Table 4, in parameters
    "resnet50": dict(fpn=3_344_384, body=23_508_032, upernet=40_590_486, auxiliary=2_398_358, stages=(9_536, 215_808)),
    "convnext_small": dict(fpn=2_729_984, body=49_453_152, upernet=31_497_366, auxiliary=923_798, stages=()),
}
RPN, ROI, MORE = 593_935, 14_306_705, 4_100  # torchvision's box predictor has boxes of the background as well: 4 x 1,025
SECOND_TO_LAST_STAGE = tuple(f"backbone.body.layer[234].*.{kind}" for kind in ("weight", "bias"))


def count(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_parts_of_detectors(name):
    with torch.device("meta"):
        model = detection.faster_rcnn(name, 81, pretrained=False)
    assert count(model.backbone.body) == HEADS[name]["body"]
    assert count(model.backbone.fpn) == HEADS[name]["fpn"]
    assert (count(model.rpn), count(model.roi_heads)) == (RPN, ROI + MORE)
    assert count(model.backbone.norms) == (2_880 if name == "convnext_small" else 0)
    assert detection.heads(model) == ("backbone.fpn", "rpn", "roi_heads")


@pytest.mark.parametrize("name", HEADS)
def test_parts_of_segmentation_networks(name):
    with torch.device("meta"):
        model = segmentation.upernet(name, 150, pretrained=False)
    assert count(model.encoder) == HEADS[name]["body"]
    assert count(model.decoder) + count(model.head) == HEADS[name]["upernet"]
    assert count(model.auxiliary_head) == HEADS[name]["auxiliary"]
    assert count(model.norms) == (2_880 if name == "convnext_small" else 0)


def test_trainable_counts_of_table_4():
    def prepared(build, name, classes, call):
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = build(name, classes, pretrained=False)
            call(model)
        return trainable(model)

    def frozen_first_stage(model):  # MMDetection's ResNets: stem and first stage frozen, statistics too
        train = (*SECOND_TO_LAST_STAGE, *detection.heads(model))
        minica.tune(model, "linear", backbone="backbone.body", train=train)

    def all_of(model):
        norms = "norms" if isinstance(model, segmentation.UPerNet) else "backbone.norms"
        module = segmentation if norms == "norms" else detection
        train = (norms,) * (count(model.get_submodule(norms)) > 0) + module.heads(model)
        minica.tune(model, "full", running_stats=False, backbone=module.BODY, train=train)

    faster, upernet = detection.faster_rcnn, segmentation.upernet
    assert prepared(faster, "resnet50", 81, frozen_first_stage) == 41_531_812 == 41_527_712 + MORE
    assert prepared(faster, "resnet50", 81, lambda m: adapt(m, compression=1)) == 35_728_420 == 35_724_320 + MORE
    assert prepared(faster, "convnext_small", 81, all_of) == 67_086_656 + MORE
    assert prepared(faster, "convnext_small", 81, lambda m: adapt(m, compression=1)) == 24_616_640 + MORE
    assert prepared(faster, "convnext_small", 81, lambda m: adapt(m, "conv_parallel", compression=1)) == 24_616_640 + MORE
    assert prepared(upernet, "resnet50", 150, all_of) == 66_496_876
    assert prepared(upernet, "resnet50", 150, lambda m: adapt(m, "residual_sequential", compression=8)) == 45_671_820
    assert prepared(upernet, "convnext_small", 150, all_of) == 81_877_196
    assert prepared(upernet, "convnext_small", 150, lambda m: adapt(m, compression=1)) == 39_407_180


def test_retinanet_counts():
    with torch.device("meta"):
        model = detection.retinanet("resnet50", 81, pretrained=False)
    assert model.backbone.body.feature_info.reduction() == [8, 16, 32]
    tower, outputs = 4 * (9 * 256 * 256 + 256), (9 * 81, 9 * 4)  # nine anchors a place
    pyramids = (512 + 1024 + 2048) * 256 + 3 * 256 + 3 * (9 * 256 * 256 + 256) + 9 * 2048 * 256 + 256 + 9 * 256 * 256 + 256
    assert count(model.backbone.fpn) == pyramids == 7_997_440
    assert count(model.head) == sum(tower + 9 * 256 * n + n for n in outputs) == 6_483_965
    assert count(model) == 23_508_032 + 7_997_440 + 6_483_965
    assert detection.heads(model) == ("backbone.fpn", "head")


# ---------------------------------------------------------------- what holds for adapted ones


@pytest.mark.parametrize("scheme", minica.SCHEMES)
@pytest.mark.parametrize("name", NETS)
def test_starts_as_the_plain_model_and_returns_to_it(name, scheme):
    for model, x in ((segmenter(name), torch.randn(2, 3, 64, 64)), (detector(name), [torch.rand(3, 64, 80)])):
        before, keys = model(x), model.state_dict().keys()
        adapt(model, scheme)
        after = model(x)
        assert same(before, after) if isinstance(before, dict) else same(before[0], after[0])
        assert {key for key in model.state_dict() if "_adapter." not in key} == set(keys)
        minica.detach(model)
        assert model.state_dict().keys() == keys


@pytest.mark.parametrize("kind", [detection.faster_rcnn, detection.retinanet])
@pytest.mark.parametrize("name", NETS)
def test_a_trained_detector_is_saved_with_its_recipe_alone(name, kind, tmp_path):
    model = adapt(detector(name, kind), compression=4)
    before = snapshot(model.backbone.body)
    options = dict(loss=detection.loss, collate=detection.collate, metrics=detection.metrics, monitor="ap")
    history = minica.fit(model, squares(6), squares(3, 1), epochs=2, batch_size=3, progress=False, patience=2, **options)
    assert all(math.isfinite(epoch["train_loss"]) and 0 <= epoch["val_ap"] <= 1 for epoch in history)
    moved = {key for key, value in model.backbone.body.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all("_adapter." in key for key in moved)

    minica.save_adapter(model, tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        saved = sum(file.get_tensor(key).numel() for key in file.keys())
    buffers = sum(b.numel() for n, b in model.named_buffers() if not n.startswith("backbone.body") and "running" in n)
    assert saved == trainable(model) + buffers
    fresh = minica.load_adapter(detector(name, kind, seed=1), tmp_path)
    batches = [[image for image, _ in squares(3, 1)]]
    for one, two in zip(detection.detect(model, batches), detection.detect(fresh, batches), strict=True):
        assert same(one, two)
    minica.fold(fresh)
    for one, two in zip(detection.detect(model, batches), detection.detect(fresh, batches), strict=True):
        assert one["boxes"].shape == two["boxes"].shape and torch.allclose(one["scores"], two["scores"], atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_a_trained_segmentation_network_is_saved_with_its_recipe_alone(name, tmp_path):
    model = adapt(segmenter(name), compression=4)
    before, data = snapshot(model.encoder), masks(6)
    history = minica.fit(
        model, data, data, epochs=2, batch_size=3, progress=False, loss=segmentation.loss, metrics=segmentation.metrics
    )
    assert all(math.isfinite(epoch["train_loss"]) and 0 <= epoch["val_miou"] <= 1 for epoch in history)
    moved = {key for key, value in model.encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all("_adapter." in key for key in moved)
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(segmenter(name, seed=1), tmp_path)
    x = data[0][0][None]
    assert torch.equal(model(x)["out"], fresh.eval()(x)["out"])
    adapt_other = minica.adapt(fresh, "conv_parallel", name="other", train=segmentation.heads(fresh))
    with minica.switched(adapt_other, "default"):
        assert torch.equal(model(x)["out"], fresh(x)["out"])
    with torch.no_grad():
        assert torch.allclose(minica.fold(model)(x)["out"], minica.switch(fresh, "default")(x)["out"], atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_a_classifiers_adapter_in_a_detector_and_back(name, tmp_path):
    torch.manual_seed(0)
    classifier = minica.create_backbone(name, num_classes=4, pretrained=False).eval()
    with warnings.catch_warnings(action="ignore"):
        disturb(minica.adapt(classifier, "residual_parallel", compression=2))
    minica.save_adapter(classifier, tmp_path / "classifier")
    model = detector(name)
    weights = {re.sub(r"^(stages|stem)\.", r"\1_", key): value for key, value in classifier.state_dict().items()}
    weights |= classifier.state_dict()
    taken = {key: weights[key] for key in model.backbone.body.state_dict()}
    model.backbone.body.load_state_dict(taken)
    with warnings.catch_warnings(action="ignore"):  # that the classifier has no place here
        minica.load_adapter(model.backbone.body, tmp_path / "classifier")
    x = torch.randn(1, 3, 64, 64)
    deepest = model.backbone.body(x)[-1]
    theirs = classifier.forward_intermediates(x, intermediates_only=True)[-1]
    assert torch.allclose(deepest, theirs, atol=1e-5)


@pytest.mark.parametrize("scheme", minica.SCHEMES)
def test_lean_keeps_less_and_gives_the_same_gradients(scheme):
    x = torch.randn(2, 3, 64, 64)
    model = disturb(adapt(segmenter("test_resnet"), scheme)).double().train()

    def gradients():
        torch.manual_seed(0)  # dropout
        model.zero_grad()
        segmentation.loss(model, (x.double(), torch.zeros(2, 64, 64, dtype=torch.int64))).backward()
        return {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}

    plain, kept = gradients(), activations(model.encoder, x.double())
    lean, less = (minica.lean(model), gradients())[1], activations(model.encoder, x.double())
    assert plain.keys() == lean.keys() and less < kept
    for key in plain:
        assert torch.allclose(plain[key], lean[key], atol=1e-9), key


def test_images_are_normalised_once_and_as_the_backbone_expects():
    model = detection.faster_rcnn("tf_efficientnet_lite0", 3, channels=16, min_size=64)
    assert model.transform.image_mean == model.transform.image_std == [0.5, 0.5, 0.5]
    with torch.device("meta"):
        assert detection.faster_rcnn("resnet50", 3, pretrained=False).transform.image_mean == [0.485, 0.456, 0.406]
    seen = []
    model.backbone.body.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.eval()([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    assert seen[0].min() == -1 and seen[0].max() == 1


def test_full_fine_tuning_with_frozen_statistics():
    model = detector("test_resnet")
    minica.tune(model, "full", running_stats=False, backbone="backbone.body", train=detection.heads(model))
    before = snapshot(model)
    minica.fit(model, squares(4), epochs=1, batch_size=2, progress=False, loss=detection.loss, collate=detection.collate)
    after = model.state_dict()
    statistics = [key for key in before if "running" in key]
    assert statistics and all(torch.equal(before[key], after[key]) for key in statistics)
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("conv2.weight"))


def test_one_map_makes_a_c4_detector():
    model = detection.faster_rcnn("test_resnet", 3, out_indices=(3,), **DETECTOR)
    assert len(model.backbone(torch.zeros(1, 3, 64, 64))) == 1
    assert model.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert not any("layer4" in key for key in model.state_dict())


def test_models_of_others_with_a_timm_encoder(tmp_path):
    def build(seed):
        torch.manual_seed(seed)
        model = smp.Unet("tu-test_resnet", encoder_depth=4, decoder_channels=(16, 16, 8, 8), encoder_weights=None, classes=3)
        fixed(model.encoder)
        return model.eval()

    model = build(0)
    minica.adapt(model, "residual_parallel", backbone="encoder.model", train=("decoder", "segmentation_head"))
    data = masks(4)
    minica.fit(model, data, data, epochs=1, batch_size=2, progress=False, loss=segmentation.loss, metrics=segmentation.metrics)
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(build(1), tmp_path)
    assert torch.equal(model(data[0][0][None]), fresh(data[0][0][None]))

    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    with warnings.catch_warnings(action="ignore"):
        minica.adapt(model, "residual_parallel", backbone="backbone", train=("classifier",))
    assert math.isfinite(segmentation.loss(model.train(), tuple(torch.stack(part) for part in zip(*data, strict=True))).item())
    assert len(segmentation.segment(model, [torch.stack([image for image, _ in data])])) == 4


# ---------------------------------------------------------------- metrics


def boxes(*rows, labels=None, scores=None):
    found = {"boxes": torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)}
    found["labels"] = torch.tensor(labels or [1] * len(rows)).long()
    return found | ({} if scores is None else {"scores": torch.tensor(scores)})


def test_average_precision_by_hand():
    truth = [boxes((0, 0, 10, 10), (20, 20, 30, 30))]
    # The better guess is exact; the other covers 70 of 100 pixels: IoU 0.7, right at 0.50 to 0.70, five of ten thresholds.
    found = [boxes((0, 0, 10, 10), (20, 20, 30, 27), scores=[0.9, 0.8])]
    result = detection.average_precision(found, truth)
    half = 51 / 101  # COCO reads precision at 101 recalls; up to 0.5 they are reached with one box of two
    assert result["ap50"] == pytest.approx(1.0) and result["ap75"] == pytest.approx(half)
    assert result["ap"] == pytest.approx((5 * 1 + 5 * half) / 10, abs=1e-6)
    assert (result["n"], result["max_detections"], result["ap_large"]) == (1, 100, -1)
    # A wrong guess with the highest score halves the precision everywhere.
    found = [boxes((50, 50, 60, 60), (0, 0, 10, 10), scores=[0.9, 0.8])]
    assert detection.average_precision(found, [boxes((0, 0, 10, 10))])["ap"] == pytest.approx(0.5)
    # A class that is guessed right and one that is not found: the mean over classes.
    truth = [boxes((0, 0, 10, 10), (20, 20, 30, 30), labels=[1, 2])]
    assert detection.average_precision([boxes((0, 0, 10, 10), scores=[0.9])], truth)["ap"] == pytest.approx(0.5)


def test_crowds_and_images_with_nothing_in_them():
    crowd = boxes((0, 0, 40, 40), (50, 50, 60, 60)) | {"iscrowd": torch.tensor([1, 0])}
    # Guesses inside a crowd count neither for nor against.
    found = [boxes((5, 5, 15, 15), (50, 50, 60, 60), scores=[0.9, 0.8])]
    assert detection.average_precision(found, [crowd])["ap"] == pytest.approx(1.0)
    nothing = [boxes(), boxes((0, 0, 10, 10))]
    found = [boxes(scores=[]), boxes((0, 0, 10, 10), scores=[0.5])]
    assert detection.average_precision(found, nothing)["ap"] == pytest.approx(1.0)
    assert detection.average_precision([boxes(scores=[]), boxes(scores=[])], nothing)["ap"] == 0


def test_more_objects_than_coco_counts():
    rows = [(12 * (i % 20), 12 * (i // 20), 12 * (i % 20) + 10, 12 * (i // 20) + 10) for i in range(200)]
    truth, found = [boxes(*rows)], [boxes(*rows, scores=torch.linspace(0.9, 0.5, 200).tolist())]
    assert detection.average_precision(found, truth)["ap"] == pytest.approx(51 / 101)
    assert detection.average_precision(found, truth, max_detections=300)["ap"] == pytest.approx(1.0)
    assert detection.average_precision(found, truth, max_detections=300)["max_detections"] == 300


def test_precision_and_recall_by_hand():
    truth = [boxes((0, 0, 10, 10), (20, 20, 30, 30)), boxes((0, 0, 10, 10), labels=[2])]
    first = boxes((0, 0, 10, 10), (1, 0, 11, 10), (20, 20, 30, 25), scores=[0.9, 0.8, 0.3])  # right, taken already, IoU 0.5
    second = boxes((0, 0, 10, 10), (0, 0, 10, 10), labels=[1, 2], scores=[0.7, 0.4])  # wrong class, right
    scores, precision, recall = detection.precision_recall([first, second], truth)
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.4, 0.3])
    assert precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4, 3 / 5])
    assert recall.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 1])
    assert detection.precision_recall([first, second], truth, iou=0.6)[2].tolist()[-1] == pytest.approx(2 / 3)
    crowd = [boxes((0, 0, 10, 10)) | {"iscrowd": torch.tensor([1])}]
    assert [len(part) for part in detection.precision_recall([boxes(scores=[])], crowd)] == [0, 0, 0]


def test_mean_iou_by_hand():
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]])
    guess = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 3]])
    result = segmentation.mean_iou([(guess, mask)])
    assert result["iou"] == pytest.approx([3 / 4, 3 / 4]) and result["miou"] == pytest.approx(3 / 4)
    assert result["pixel_accuracy"] == pytest.approx(6 / 7) and result["n"] == 1
    result = segmentation.mean_iou([(guess, mask), (torch.full((1, 2), 3), torch.tensor([[3, 5]]))])
    assert result["iou"] == [pytest.approx(3 / 4), pytest.approx(3 / 4), None, 1 / 2, None, 0]
    assert result["miou"] == pytest.approx((3 / 4 + 3 / 4 + 1 / 2 + 0) / 4)
    json.dumps(result)


# ---------------------------------------------------------------- what is refused


def test_labels_that_the_detector_does_not_have():
    for kind in (detection.faster_rcnn, detection.retinanet):
        model = detector(kind=kind)
        target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([3])}
        with pytest.raises(ValueError, match="label 3 is not among the detector's 3 classes, of which 0 is the background"):
            detection.loss(model.train(), ([torch.rand(3, 64, 64)], [target]))


def test_maps_that_are_not_there():
    with pytest.raises(ValueError, match=r"'test_resnet' cannot be built with .*'out_indices': \(9,\)"):
        pyramid.feature_pyramid("test_resnet", out_indices=(9,), pretrained=False)
    with pytest.raises(ValueError, match="three maps of its encoder or more, got 1"):
        segmentation.upernet("test_resnet", 3, pretrained=False, out_indices=(4,))


def test_heads_are_all_but_the_network():
    model = nn.ModuleDict({"inner": nn.ModuleDict({"body": nn.Conv2d(3, 3, 1), "neck": nn.Conv2d(3, 3, 1)}), "act": nn.ReLU()})
    model["head"] = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert pyramid.heads(model, "inner.body") == ("inner.neck", "head")
