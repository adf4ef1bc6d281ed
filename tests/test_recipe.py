"""What trains is declared once: flags, heads, larger models, several sets and files follow the recipe, and nothing else."""

import copy
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from nets import TINY, disturb, images, net, same, snapshot
from timm.utils import freeze
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils.data import TensorDataset

import minica
from minica.hooks import AdaptersDetached

pytestmark = pytest.mark.filterwarnings("ignore:.*of this backbone")


class Wrapped(nn.Module):
    """A user's own model: a timm network without a classifier, and a head that has no name that is known."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm.create_model("test_resnet", num_classes=0)
        torch.manual_seed(seed)
        self.clf = nn.Sequential(nn.Linear(self.backbone.num_features, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    def forward(self, x):
        return self.clf(self.backbone(x))


def everything(model):
    """All that a refused call must leave as it was."""
    found = {}
    for name, module in model.named_modules():
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks]
        found[name] = (type(module), module.training, [len(hook) for hook in hooks], sorted(module.__dict__))
    flags = {key: (id(weight), weight.requires_grad) for key, weight in model.named_parameters()}
    return found, flags, snapshot(model)


def unchanged(before, after):
    return before[:2] == after[:2] and same(before[2], after[2])


def data(classes=4, n=16):
    return TensorDataset(torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(n) % classes)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("method", ["conv_adapter", "linear", "bias", "norm", "residual_adapter", "full"])
def test_flags_decide_nothing(method, tmp_path):
    model = disturb(minica.tune(net("basic"), method))
    minica.save_adapter(model, tmp_path / "before")
    for weight in model.parameters():
        weight.requires_grad_(not weight.requires_grad)
    minica.save_adapter(model, tmp_path / "after")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("before", "after")]
    assert files[0] == files[1]
    with pytest.raises(ValueError, match="'.+' (trains|is frozen), and the recipe .*train= of minica.adapt"):
        minica.fit(model, data(5), epochs=1, batch_size=8, progress=False)


@pytest.mark.parametrize("part", ["layer4", "bn1", "conv1"])
def test_a_part_thawed_by_hand(part, tmp_path):
    """fit says what to do; with train= the same part trains, statistics included, and what is saved loads."""
    model = minica.adapt(net("basic"))
    model.get_submodule(part).requires_grad_(True)
    with pytest.raises(ValueError, match=f"'{part}.*train="):
        minica.fit(model, data(5), epochs=1, batch_size=8, progress=False)
    model = minica.adapt(net("basic"), train=(part,))
    before = {key: value.clone() for key, value in model.get_submodule(part).state_dict().items()}
    minica.fit(model, data(5), epochs=1, lr=1e-2, batch_size=8, progress=False)
    own = {**dict(model.get_submodule(part).named_parameters()), **dict(model.get_submodule(part).named_buffers())}
    assert all(not torch.equal(own[key], before[key]) for key in before if key in own)
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(net("basic"), tmp_path)
    assert torch.equal(fresh(images("basic")), model(images("basic")))
    assert torch.equal(minica.switch(fresh, None)(images("basic")), net("basic")(images("basic"))), "the backbone keeps its own"


def test_train_names_and_patterns():
    def trained(train):
        model = minica.adapt(net("basic"), train=train)
        return {key for key, w in model.named_parameters() if w.requires_grad and "_adapter" not in key and "fc" not in key}

    assert trained("layer1") == {key for key, _ in net("basic").named_parameters() if key.startswith("layer1.")}
    assert trained(["layer[12].0.bn1.weight"]) == {"layer1.0.bn1.weight", "layer2.0.bn1.weight"}
    assert trained(("*.bn2",)) == {key for key, _ in net("basic").named_parameters() if ".bn2." in key}
    model = nn.Sequential(*[nn.Identity() for _ in range(10)], net("basic", 0), nn.Linear(96, 4))
    names = {key for key, w in minica.adapt(model, train="11").named_parameters() if w.requires_grad and "_adapter" not in key}
    assert names == {"11.weight", "11.bias"}, "a name covers what is below it, and no other name that begins with it"
    for wrong, message in [
        ("layer9", "matches no module"),
        (("act1",), "matches no module"),
        (3, "must be names"),
        ([""], "names"),
    ]:
        model = net("basic")
        before = everything(model)
        for call in (lambda m, t: minica.adapt(m, train=t), lambda m, t: minica.tune(m, "linear", train=t)):
            with pytest.raises(ValueError, match=message):
                call(model, wrong)
        assert unchanged(before, everything(model))


def test_a_listed_parameter_keeps_its_layers_statistics():
    model = minica.adapt(net("basic"), train=("layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer2.0.bn1")).train()
    before = {name: model.get_submodule(name).running_mean.clone() for name in ("layer1.0.bn1", "layer2.0.bn1", "bn1")}
    model(images("basic", 4))
    moved = {name for name, value in before.items() if not torch.equal(value, model.get_submodule(name).running_mean)}
    assert moved == {"layer2.0.bn1"}


@pytest.mark.parametrize("method", ["full", "linear", "bias", "norm", "conv_adapter", "residual_adapter"])
def test_a_classifiers_norm_without_weights_learns(method):
    model = net("basic")
    model.fc = nn.Sequential(nn.BatchNorm1d(model.num_features, affine=False), model.fc)
    minica.tune(model, method).train()
    for _ in range(3):
        model(images("basic", 4))
    assert model.fc[0].num_batches_tracked == 3


# ---------------------------------------------------------------- heads, decoders, larger models


@pytest.mark.parametrize("method", ["conv_adapter", "linear", "bias"])
def test_a_head_that_is_not_recognised(method, tmp_path):
    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(net("basic", 0), nn.Linear(96, 4))

    if method == "linear":
        with pytest.raises(ValueError, match=r"nothing of this Sequential would train.*train=\('1',\)"):
            minica.tune(build(1), method)
    else:
        with pytest.warns(UserWarning, match=r"'1' of this Sequential stays frozen.*train=\('1',\)"):
            minica.tune(build(1), method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = minica.tune(build(1), method, train=("1",))
    before = model[1].weight.clone()
    minica.fit(model, data(), epochs=1, lr=1e-2, batch_size=8, progress=False)
    assert not torch.equal(model[1].weight, before)
    minica.save_adapter(model, tmp_path)
    assert torch.equal(minica.load_adapter(build(2), tmp_path)(images("basic")), model(images("basic")))


def test_a_frozen_random_head_is_named_at_load(tmp_path):
    with pytest.warns(UserWarning, match="'clf' of this Wrapped stays frozen"):
        model = disturb(minica.adapt(Wrapped(1)))
    minica.save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="'clf.0.bias'"):
        minica.load_adapter(Wrapped(2), tmp_path)


@pytest.mark.parametrize("scheme", tuple(minica.SCHEMES))
def test_a_network_inside_a_larger_model(scheme, tmp_path):
    x = images("basic")
    model, plain = Wrapped(1).eval(), Wrapped(1).eval()
    start, before, flags = plain(x), snapshot(model), [weight.requires_grad for weight in model.parameters()]
    minica.adapt(model, scheme, backbone="backbone", train="clf")
    assert torch.equal(model(x), start)
    assert all(place.startswith("backbone.") for place in minica.adapters(model))
    disturb(model).train()(images("basic", 4))
    expected = model.eval()(x)
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(Wrapped(2), tmp_path)
    assert torch.equal(fresh(x), expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    folded = minica.fold(model)
    torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-4)
    with minica.switched(model, None):
        assert torch.equal(model(x), start)
    assert torch.equal(model(x), expected)
    minica.lean(model)
    assert torch.equal(model(x).detach(), expected) or (model(x) - expected).abs().max() < 1e-4
    model.load_state_dict(before, strict=False)
    minica.detach(model)
    assert same(model.state_dict(), before) and [weight.requires_grad for weight in model.parameters()] == flags


def test_a_detector(tmp_path):
    """It cannot run without numbers, so places are found in the named backbone alone."""

    def build(seed):
        torch.manual_seed(seed)
        detector = torchvision.models.detection.fasterrcnn_resnet50_fpn
        model = detector(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, trainable_backbone_layers=5
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.backbone.body.parameters():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1))
        return model.eval()

    model = build(1)
    with pytest.warns(UserWarning, match="'backbone.fpn', 'rpn', 'roi_heads' of this FasterRCNN stays? frozen|stays frozen"):
        minica.adapt(model, "residual_parallel", compression=16, backbone="backbone.body")
    minica.detach(model)
    heads = ("backbone.fpn", "rpn", "roi_heads")
    with pytest.raises(ValueError, match="backbone='backbone.boddy' is no part of FasterRCNN"):
        minica.adapt(model, backbone="backbone.boddy")
    disturb(minica.adapt(model, "residual_parallel", compression=16, backbone="backbone.body", train=heads))
    x = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3))]
    minica.save_adapter(model, tmp_path)
    fresh = minica.load_adapter(build(2), tmp_path)
    with torch.no_grad():
        one, two = model.eval()(x)[0], fresh(x)[0]
    assert same(one, two)
    target = [{"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}]
    sum(minica.lean(fresh).train()(x, target).values()).backward()
    trained = [weight for weight in fresh.parameters() if weight.requires_grad]
    assert trained and sum(weight.grad is not None for weight in trained) > 0.9 * len(trained)


def test_a_module_with_two_names(tmp_path):
    """Many models keep a list of the stages that they have as attributes as well."""

    def build():
        model = net("basic")
        model.stages = nn.ModuleList([model.layer1, model.layer2])
        model.head_too = model.fc
        return model

    model, x = build(), images("basic")
    plain = model(x)
    adapted = disturb(minica.adapt(model, name="a", train=("layer4",)))(x)
    minica.save_adapter(model, tmp_path)
    assert torch.equal(minica.load_adapter(build(), tmp_path)(x), adapted)
    with minica.switched(model, None):
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), adapted)
    assert len(minica.detach(model).state_dict()) == len(build().state_dict())


def test_calls_on_the_outer_module(tmp_path):
    def make():
        model = Wrapped()
        minica.adapt(model.backbone)
        return model

    model, x = make().eval(), images("basic")
    plain = model(x)
    disturb(model.backbone)
    adapted = model(x)
    with minica.switched(model, None):
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), adapted) and not torch.equal(adapted, plain)
    assert set(minica.adapters(model)) == {f"backbone.{place}" for place in minica.adapters(model.backbone)}
    before = everything(model)
    for call in (lambda: minica.adapt(model, name="b"), lambda: minica.save_adapter(model, tmp_path)):
        with pytest.raises(ValueError, match="'backbone'.*backbone='backbone'"):
            call()
    assert unchanged(before, everything(model))
    minica.detach(model)
    assert not minica.adapters(model) and all(w.requires_grad for w in model.parameters()) and torch.equal(model(x), plain)
    assert not any(hasattr(module, "_minica") for module in model.modules())
    two = nn.ModuleList([make().backbone, make().backbone])
    with pytest.raises(ValueError, match="several parts.*of '0', '1'"):
        minica.switch(two, None)


# ---------------------------------------------------------------- pyramids


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "resnetv2_50x1_bit"])
@pytest.mark.parametrize("scheme", ["conv_parallel", "residual_parallel"])
def test_a_classifiers_adapter_in_a_pyramid_and_back(name, scheme, tmp_path):
    def pyramid(**options):
        found = timm.create_model(name, features_only=True, **options).eval()
        state = {
            key.replace(".", "_", 1) if key[:-1].endswith("_") else key: value for key, value in net(name).state_dict().items()
        }
        ours = found.state_dict()
        flat = {key: next(v for k, v in state.items() if k.replace(".", "_", 1) == key or k == key) for key in ours}
        found.load_state_dict(flat)
        return found

    x = images("basic")
    classifier = disturb(minica.adapt(net(name), scheme, compression=8))
    minica.save_adapter(classifier, tmp_path / "classifier")
    with pytest.warns(UserWarning, match="have no place in this model"):
        maps = minica.load_adapter(pyramid(), tmp_path / "classifier")
    seen = {}
    stage = maps.feature_info.module_name()[-1]
    classifier.get_submodule(stage).register_forward_hook(lambda module, args, output: seen.update(last=output))
    classifier(x)
    assert torch.equal(maps(x)[-1], seen["last"])

    minica.save_adapter(disturb(maps), tmp_path / "pyramid")
    fresh = net(name)
    head = {key: value.clone() for key, value in fresh.state_dict().items()}
    minica.load_adapter(fresh, tmp_path / "pyramid")
    fresh.get_submodule(stage).register_forward_hook(lambda module, args, output: seen.update(back=output))
    fresh(x)
    assert torch.equal(maps(x)[-1], seen["back"])
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in head.items()), "its classifier stays new"
    other = pyramid()
    with torch.no_grad():
        next(weight for weight in other.parameters() if weight.ndim == 4).view(-1)[0] += 1
    before = everything(other)
    with pytest.raises(ValueError, match="trained on other weights.*frozen tensors differ"):
        minica.load_adapter(other, tmp_path / "classifier")
    assert unchanged(before, everything(other))


# ---------------------------------------------------------------- several sets


def two_sets(**options):
    model = minica.adapt(net("basic", 4), name="a", num_classes=3)
    return minica.adapt(model, "residual_parallel", name="b", num_classes=5, **options)


@pytest.mark.parametrize("used", ["a", "b", None])
@pytest.mark.parametrize("there", ["a", "b", None])
def test_the_state_dict_holds_every_set(used, there):
    model, x, expected = two_sets(train=("layer4",)), images("basic"), {}
    for name in ("a", "b"):
        disturb(minica.switch(model, name)).train()(images("basic", 4))
    for name in ("a", "b", None):
        with minica.switched(model.eval(), name):
            expected[name] = model(x)
    minica.switch(model, used)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fresh = minica.switch(two_sets(train=("layer4",)), there).eval()
    assert not any(fresh.load_state_dict(state))
    for name, y in expected.items():
        with minica.switched(fresh, name):
            assert torch.equal(fresh(x), y)
    assert same(fresh.state_dict(), state)
    del state["fc.conv_adapter.a.weight"]
    with pytest.raises(RuntimeError, match="Missing key.*fc.conv_adapter.a.weight" if there != "a" else "Missing key"):
        fresh.load_state_dict(state)


def test_a_backbones_checkpoint_reaches_the_set_in_use():
    model, x = minica.adapt(net("basic")), images("basic")
    torch.manual_seed(7)
    other = timm.create_model("test_resnet", num_classes=5).eval()
    model.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(model(x), other(x))
    with minica.switched(model, None):
        assert torch.equal(model(x), other(x))


def test_one_optimiser_for_two_sets():
    model, x = two_sets(), images("basic", 4)
    weights = {}
    for name in ("a", "b"):
        minica.switch(model, name)
        weights |= {id(weight): weight for weight in model.parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0.5)
    for name in ("a", "b", "a"):
        other = {"a": "b", "b": "a"}[name]
        with minica.switched(model.eval(), other):
            before = model(x).detach()
        with minica.switched(model, name):
            torch.nn.functional.cross_entropy(model(x), torch.arange(4) % 3).backward()
            optimizer.step()
            optimizer.zero_grad()
        with minica.switched(model, other):
            assert torch.equal(model(x), before)


@pytest.mark.parametrize("file", ["linear", "bias", "norm", "prompt", "residual_adapter", "full"])
@pytest.mark.parametrize("onto", ["conv_adapter", "linear", "prompt"])
def test_loading_onto_what_is_not_empty_is_refused(file, onto, tmp_path):
    def prepared(method):
        return disturb(minica.tune(net("basic"), method, **({"size": 4, "image_size": 64} if method == "prompt" else {})))

    minica.save_adapter(prepared(file), tmp_path / "file")
    minica.save_adapter(prepared("conv_adapter"), tmp_path / "conv")
    model = prepared(onto)
    before = everything(model)
    for folder in ("file", "conv") if onto != "conv_adapter" else ("file",):
        with pytest.raises(ValueError, match="minica.detach the model first"):
            minica.load_adapter(model, tmp_path / folder, name="other")
    assert unchanged(before, everything(model))
    minica.load_adapter(minica.detach(model), tmp_path / "conv") if onto != "linear" else None


def test_adapting_what_another_method_prepared_is_refused():
    model = minica.tune(net("basic"), "prompt", size=4, image_size=64)
    before = everything(model)
    with pytest.raises(ValueError, match=r"prepared by tune\(model, 'prompt'\); minica.detach"):
        minica.adapt(model)
    assert unchanged(before, everything(model))
    with pytest.raises(ValueError, match="no adapters named None.*'prompt'"):
        minica.switch(model, None)


def test_a_removed_classifier():
    """timm's reset_classifier(0) makes an extractor of an adapted classifier."""
    model, x = minica.adapt(net("basic"), name="a"), images("basic")
    model.reset_classifier(0)
    extractor = net("basic")
    extractor_before = extractor.fc.weight
    extractor.reset_classifier(0)
    features = extractor(x)
    assert torch.equal(model(x), features)
    with minica.switched(model, None):
        assert torch.equal(model(x), features)
    disturb(minica.adapt(model, "residual_parallel", name="b"))
    assert not torch.equal(model(x), features)
    torch.testing.assert_close(minica.fold(model)(x), model(x), rtol=1e-3, atol=1e-4)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert minica.switch(model, "a")(x).shape == (2, 5), "its own classifier is gone: it begins with the backbone's"
    assert not torch.equal(disturb(model)(x), minica.switch(model, None)(x))
    torch.testing.assert_close(model.fc.weight, extractor_before)
    minica.detach(model)


# ---------------------------------------------------------------- wrapped models


def test_compiled_models_in_any_order(tmp_path):
    x = images("basic")
    expected = net("basic")(x)
    compiled = torch.compile(net("basic"), backend="eager")
    compiled(x)
    assert minica.adapt(compiled) is compiled
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for weight in compiled._orig_mod.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    adapted = compiled(x)
    assert (adapted - expected).abs().max() > 1e-3, "what was compiled before does not go on without adapters"
    minica.save_adapter(compiled, tmp_path)
    for fresh in (torch.compile(net("basic"), backend="eager"), net("basic")):
        fresh(x)
        torch.testing.assert_close(minica.load_adapter(fresh, tmp_path)(x), adapted, rtol=1e-4, atol=1e-4)
    minica.switch(compiled, None)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    assert len(minica.adapters(minica.switch(compiled, "default"))) > 0 and minica.detach(compiled) is compiled
    torch._dynamo.reset()


# ---------------------------------------------------------------- touched, then refused

WRONG_OPTIONS = [
    *[
        dict(name=name)
        for name in ("training", "_modules", "items", "keys", "part_name", "reads", "", "a.b", 3, None, "_version")
    ],
    *[dict(kernel_size=size) for size in (0, "", b"x", [], {}, True, (1, 2, 3, 4), -1, 2.5, (3, 0), 10**5)],
    *[dict(num_classes=number) for number in (10**11, 0, -1, 2.5, True, "3")],
    *[dict(compression=value) for value in (0, "4", None, float("inf"), [4], True)],
    *[dict(scheme=value) for value in (None, 3, ["conv_parallel"], "conv")],
    *[dict(form=value) for value in (None, ["depthwise"])],
    *[dict(init=value) for value in (None, ["kaiming"], "zeros")],
    *[dict(stages=value) for value in (3, (), (9,), "1", [None])],
    *[dict(spec=value) for value in (3, {"ResNet": 3}, {"No": ()}, {3: ()})],
    *[dict(backbone=value) for value in ("nowhere", 3, "layer1.9")],
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=str)
def test_wrong_options_touch_nothing(options):
    for model in (net("basic"), disturb(minica.adapt(net("basic"), name="first"))):
        before = everything(model)
        with pytest.raises(
            ValueError, match=next(iter(options)) if next(iter(options)) not in ("name", "form", "init") else ""
        ):
            minica.adapt(model, **{"name": "other"} | options)
        assert unchanged(before, everything(model))


@pytest.mark.parametrize(
    "options",
    [dict(kernel_size=np.int64(5)), dict(kernel_size=(3, 5)), dict(compression=np.float32(4)), dict(num_classes=np.int32(3))],
    ids=str,
)
def test_numpy_numbers_and_pairs(options, tmp_path):
    model = disturb(minica.adapt(net("basic"), **options))
    minica.save_adapter(model, tmp_path)
    fresh = net("basic")
    if "num_classes" in options:
        fresh.reset_classifier(3)
    assert torch.equal(minica.load_adapter(fresh, tmp_path)(images("basic")), model(images("basic")))


FIRST = [None, 3, "resnet18", [net], torch.zeros(2), nn.Conv2d, {}, timm]


@pytest.mark.parametrize("first", FIRST, ids=[type(first).__name__ for first in FIRST])
def test_a_first_argument_that_is_no_module(first, tmp_path):
    calls = [
        minica.adapt,
        minica.adapters,
        minica.count,
        minica.detach,
        minica.fold,
        minica.lean,
        minica.plain,
        lambda model: minica.tune(model, "linear"),
        lambda model: minica.switch(model, None),
        lambda model: minica.switched(model, None).__enter__(),
        lambda model: minica.save_adapter(model, tmp_path),
        lambda model: minica.load_adapter(model, tmp_path),
        lambda model: minica.fit(model, data()),
        lambda model: minica.evaluate(model, data()),
        lambda model: minica.predict(model, data()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must be a torch.nn.Module, got"):
            call(first)


# ---------------------------------------------------------------- never silently off


def replace_norms(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def timm_freeze(model):
    freeze(model, ["layer1", "layer2"])
    return model


def remove_a_block(model):
    model.layer2 = nn.Sequential()
    return model


def replace_a_convolution(model):
    old = model.layer1[0].conv1
    model.layer1[0].conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    return model


def clear_hooks(model):
    model.layer1[0].act1._forward_hooks.clear()
    return model


@pytest.mark.parametrize("tool", [replace_norms, timm_freeze, remove_a_block, replace_a_convolution, clear_hooks])
@pytest.mark.parametrize("scheme", ["conv_parallel", "conv_sequential"])
def test_a_tool_that_takes_adapters_away(tool, scheme, tmp_path):
    model, x = tool(disturb(minica.adapt(net("basic"), scheme))), images("basic")
    calls = [
        lambda: model.eval()(x),
        lambda: model.train()(x),
        lambda: minica.fit(model, data(5), epochs=1, batch_size=8, progress=False),
        lambda: minica.evaluate(model, data(5)),
        lambda: minica.predict(model, data(5)),
        lambda: minica.save_adapter(model, tmp_path),
        lambda: minica.switch(model, None),
        lambda: minica.switched(model, None).__enter__(),
        lambda: minica.adapt(model, name="b"),
        lambda: minica.lean(model),
        lambda: minica.fold(model),
    ]
    for call in calls:
        with pytest.raises(AdaptersDetached, match="minica.fold|minica.detach"):
            call()
    minica.detach(model)
    assert not minica.adapters(model) and not any("_adapter" in key for key in model.state_dict())


@pytest.mark.parametrize("method", ["linear", "bias", "prompt", "residual_adapter"])
def test_frozen_statistics_never_move_unseen(method):
    model = minica.tune(net("basic"), method, **({"size": 4, "image_size": 64} if method == "prompt" else {}))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    before = model.layer1[0].bn1.running_mean.clone()
    with pytest.raises(AdaptersDetached):
        model.train()(images("basic", 4))
    assert torch.equal(model.layer1[0].bn1.running_mean, before)


@pytest.mark.parametrize("name", ["repghostnet_050", "repvgg_a0"])
def test_reparameterize(name):
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=4).eval(), torch.randn(2, 3, 64, 64)
    adapted = disturb(minica.adapt(model, "conv_parallel"))
    expected = adapted(x)
    with pytest.raises(AdaptersDetached, match="minica.fold"):
        reparameterize_model(adapted)(x)
    torch.testing.assert_close(adapted(x), expected)


def test_converted_first_works():
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(net("basic")).eval()
    expected = plain(images("basic"))
    model = minica.adapt(plain)
    assert torch.equal(model(images("basic")), expected)


def test_data_parallel_replicas_refuse():
    model = minica.adapt(net("basic"))
    replica = model._replicate_for_data_parallel()
    with pytest.raises(AdaptersDetached, match="DistributedDataParallel"):
        replica(images("basic"))


def test_a_frozen_tensor_that_changed_is_named(tmp_path):
    model = disturb(minica.adapt(net("basic")))
    minica.save_adapter(model, tmp_path)
    file = (tmp_path / "adapter_model.safetensors").read_bytes()
    with torch.no_grad():
        model.layer2[0].bn1.running_var[0] += 1
    with pytest.raises(ValueError, match="'layer2.0.bn1.running_var' is frozen by the recipe and has changed"):
        minica.save_adapter(model, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == file
    model.load_state_dict(model.state_dict())  # what is loaded counts as given
    minica.save_adapter(model, tmp_path)
    moved = minica.adapt(net("basic")).double()
    minica.save_adapter(moved, tmp_path / "double")
    assert torch.equal(
        minica.load_adapter(net("basic").double(), tmp_path / "double")(images("basic").double()),
        moved(images("basic").double()),
    )


@pytest.mark.parametrize("name", TINY)
def test_torch_fx_works_or_refuses(name):
    from torchvision.models.feature_extraction import create_feature_extractor

    layer = {"test_resnet": "layer3", "test_efficientnet": "blocks", "test_convnext": "stages"}[name]
    for scheme in minica.SCHEMES:
        model, x, seen = disturb(minica.adapt(net(name), scheme)), images(name), []
        model.get_submodule(layer).register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        model(x)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                extractor = create_feature_extractor(model, {layer: "map"})
        except ValueError as error:
            assert "torch.fx" in str(error) and "features_only=True" in str(error)
        else:
            torch.testing.assert_close(extractor(x)["map"], seen[0])


@pytest.mark.parametrize("method", ["conv_adapter", "prompt", "residual_adapter", "bias"])
def test_what_is_added_follows_the_models_mode(method):
    options = {"size": 4, "image_size": 64} if method == "prompt" else {}
    model = minica.tune(net("basic").eval(), method, **options)
    assert not any(module.training for module in model.modules())
    model = minica.tune(net("basic").train(), method, **options)
    assert all(module.training for module in model.modules())


# ---------------------------------------------------------------- threads


def test_threads_with_sets_of_their_own():
    model, x = two_sets(), images("basic")
    for name in ("a", "b"):
        disturb(minica.switch(model, name)).eval()
    expected, wrong, errors = {}, [], []
    for name in ("a", "b", None):
        with minica.switched(model, name), torch.no_grad():
            expected[name] = model(x)

    def serve(name):
        try:
            for _ in range(15):
                with minica.switched(model, name), torch.no_grad():
                    if not torch.equal(model(x), expected[name]):
                        wrong.append(name)
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-4)
        threads = [threading.Thread(target=serve, args=(name,)) for name in ("a", "b", None, "a")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and not errors
    for name, y in expected.items():
        with minica.switched(model, name), torch.no_grad():
            assert torch.equal(model(x), y)
