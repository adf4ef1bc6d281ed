"""What trains under each method, counted against the published code's integers."""

import copy
import pickle

import pytest
import timm
import torch
from nets import disturb, images, net, same, snapshot

import minica

pytestmark = pytest.mark.filterwarnings("ignore:.*of this backbone")


def meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=100)


def trained(model, method, **options):
    """Trainable parameters without the classifier."""
    found = minica.count(minica.tune(model, method, **options))
    return found["trainable"] - found["head"]


# Counts of the published code, classifier left out.  Its ResNet has a BatchNorm of 4,096 parameters before the classifier that
# timm's does not have; it trains in every method, and is subtracted here.
@pytest.mark.parametrize(
    ("backbone", "method", "options", "expected"),
    [
        ("resnet50", "full", {}, 23_512_128 - 4_096),
        ("resnet50", "linear", {}, 4_096 - 4_096),
        ("resnet50", "bias", {}, 53_312 - 4_096),
        ("resnet50", "prompt", {}, 29_776 - 4_096),
        ("resnet50", "prompt", dict(size=5), 13_140),
        ("resnet50", "prompt", dict(size=20), 48_960),
        ("resnet50", "prompt", dict(size=30), 69_840),
        ("resnet50", "norm", {}, 53_120),
        ("resnet50", "conv_adapter", dict(compression=1), 1_306_880 - 4_096),
        ("resnet50", "conv_adapter", dict(compression=8), 203_288 - 4_096),
        ("resnetv2_50x1_bit", "full", {}, 23_500_352),
        ("resnetv2_50x1_bit", "linear", dict(norms="final"), 4_096),
        ("resnetv2_50x1_bit", "bias", dict(norms="final"), 47_424),
        ("resnetv2_50x1_bit", "norm", {}, 45_440),
        ("resnetv2_50x1_bit", "conv_adapter", dict(compression=2, norms="final"), 676_256),
        ("convnext_base", "full", {}, 87_566_464),
        ("convnext_base", "linear", dict(norms="final"), 2_048),
        ("convnext_base", "bias", dict(norms="final"), 131_328),
        ("convnext_base", "prompt", dict(norms="final"), 27_728),
        ("convnext_base", "conv_adapter", dict(compression=4, norms="all"), 3_759_872),
        ("convnext_base", "conv_adapter", dict(compression=4), 3_721_728),
        ("swin_base_patch4_window7_224", "full", {}, 86_743_224),
        ("swin_base_patch4_window7_224", "linear", dict(norms="final"), 2_048),
        ("swin_base_patch4_window7_224", "norm", {}, 57_600),
        ("swin_base_patch4_window7_224", "bias", dict(norms="final"), 201_784),
        ("swin_base_patch4_window7_224", "conv_adapter", dict(compression=8, norms="all"), 1_545_184),
    ],
)
def test_counts(backbone, method, options, expected):
    assert trained(meta(backbone), method, **options) == expected


def test_counts_of_the_ablations():
    model = meta("resnet50")
    regular = trained(model, "conv_adapter", form="regular", compression=4)
    # K^2 C (C / 4) instead of K^2 C at each of ResNet50's 16 units of C = 64, 128, 256, 512 channels.
    squares = 3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2
    sums = 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512
    assert regular == 356_848 + 9 * squares // 4 - 9 * sums
    assert trained(model, "conv_adapter", form="linear", compression=4) == 356_848 + squares // 4 - 9 * sums
    stages = [(64, 256), (256, 512), (512, 1024), (1024, 2048)]
    expected = sum(9 * i + i // 4 + i // 4 * o + 2 * o for i, o in stages)
    assert trained(model, "conv_adapter", scheme="stage_parallel", compression=4) == expected
    blocks = [(64, 64, 256, 1), (256, 64, 256, 2), (256, 128, 512, 1), (512, 128, 512, 3)]
    blocks += [(512, 256, 1024, 1), (1024, 256, 1024, 5), (1024, 512, 2048, 1), (2048, 512, 2048, 2)]
    assert trained(model, "residual_adapter") == sum(n * (i * m + m * m + m * o) for i, m, o, n in blocks)


METHODS = [(name, {}) for name in minica.METHODS]
METHODS += [("conv_adapter", dict(form=form)) for form in ("regular", "linear", "spatial")]
METHODS += [("conv_adapter", dict(scheme="stage_parallel")), ("linear", dict(norms="all")), ("conv_adapter", dict(norms="all"))]


def prepared(family, method, options):
    extra = dict(image_size=64, size=4) if method == "prompt" else {}
    return minica.tune(net(family), method, **options, **extra)


def own_state(model):
    """The numbers in the modules; the state dict has the backbone's own classifier under its key, whatever set is in use."""
    return {key: value.detach().clone() for key, value in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("family", ["basic", "convnext", "bit"])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_method_trains_saves_and_leaves_no_trace(method, options, family, tmp_path):
    model, x = prepared(family, method, options), images(family, 4)
    before = own_state(model)
    names = {key for key, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    for _ in range(2):
        model.train()
        torch.nn.functional.cross_entropy(model(x), torch.arange(4) % 5).backward()
        optimizer.step()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad), "everything learns"
    moved = {key for key, value in own_state(model).items() if not torch.equal(before[key], value)}
    assert names & moved and all(key in names or key.rpartition(".")[2].startswith(("running", "num_b")) for key in moved)
    if method not in ("full", "norm") and "norms" not in options:
        assert moved <= names, "frozen norms do not drift"

    expected = model.eval()(x)
    minica.save_adapter(model, tmp_path)
    loaded = minica.load_adapter(net(family), tmp_path)
    assert torch.equal(loaded(x), expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    minica.detach(model)
    plain = net(family)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("method", ["bias", "residual_adapter"])
def test_what_starts_at_zero_changes_nothing(method):
    model, x = net("bottleneck"), images("bottleneck")
    expected = model(x)
    assert torch.equal(minica.tune(model, method)(x), expected)


def test_a_prompt_is_a_frame():
    model = prepared("basic", "prompt", {})
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = images("basic")
    model(x)
    changed = (seen[0] != x).any(0).any(0)
    assert not changed[4:-4, 4:-4].any() and changed.sum() == 64 * 64 - 56 * 56
    with pytest.raises(ValueError, match="frames images of 64 x 64 pixels, got 96 x 64"):
        model(images("basic", 1, (96, 64)))


def test_tune_starts_over():
    model, plain = net("basic"), net("basic")
    for method, options in METHODS:
        extra = dict(image_size=64) if method == "prompt" else {}
        minica.tune(model, method, **options, **extra)
    minica.tune(model, "linear")
    assert same(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {}, "unknown method 'lora'; choose one of full, linear"),
        ("linear", dict(norms="some"), "unknown norms 'some'; choose one of none, final, all"),
        ("linear", dict(compression=2), "'linear' takes no options; got compression"),
        ("prompt", dict(width=2), "'prompt' takes image_size, size; got width"),
        ("prompt", dict(size=200), "a prompt's size must be from 1 to"),
        ("conv_adapter", dict(gamma=2), "'conv_adapter' takes .*compression.*; got gamma"),
    ],
)
def test_bad_input(method, options, message):
    with pytest.raises(ValueError, match=message):
        minica.tune(net("basic"), method, **options)


def test_methods_that_need_blocks_say_so():
    with pytest.raises(ValueError, match="has no residual blocks"):
        minica.tune(meta("vgg11"), "residual_adapter")
    with pytest.raises(ValueError, match="no convolutional unit"):
        minica.tune(meta("vit_tiny_patch16_224"), "bias")


def test_disturbed_methods_differ():
    x = images("basic")
    outputs = [disturb(prepared("basic", method, options)).eval()(x) for method, options in METHODS]
    assert all(torch.isfinite(output).all() for output in outputs)


def test_bad_options_leave_trained_adapters_alone():
    model = disturb(minica.tune(net("basic"), "conv_adapter"))
    before = snapshot(model)
    for method, options in [
        ("conv_adapter", dict(compression=0.5)),
        ("conv_adapter", dict(scheme="x")),
        ("prompt", dict(size=500)),
    ]:
        with pytest.raises(ValueError):
            minica.tune(model, method, **options)
        assert same(snapshot(model), before) and minica.adapters(model)
