"""Places and counts, against the integers of the paper and of the published code."""

import copy
import re

import pytest
import timm
import torch
from nets import disturb, images, net
from torch import nn

import minica
from minica.anatomy import Row, Unit
from minica.discovery import blank_image, find_parts, skeleton, trace
from minica.recipe import classifier_names

pytestmark = pytest.mark.filterwarnings("ignore:.*of this backbone")

# Adapter parameters by backbone, scheme and compression.  Biases and alpha included, norms not.
COUNTS = {
    ("resnet50", "conv_parallel"): {1: 1_302_784, 2: 672_160, 4: 356_848, 8: 199_192, 16: 120_364},
    ("resnet50", "conv_sequential"): {1: 1_302_784, 4: 356_848},
    ("resnet50", "residual_parallel"): {1: 17_479_296, 2: 8_813_792, 4: 4_481_040, 8: 2_314_664, 16: 1_231_476},
    ("resnet50", "residual_sequential"): {1: 20_300_800, 2: 10_233_472, 4: 5_199_808, 8: 2_682_976, 16: 1_424_560},
    ("resnetv2_50x1_bit", "conv_parallel"): {1: 1_302_784, 4: 356_848},
    ("convnext_small", "conv_parallel"): {1: 6_986_016, 2: 3_840_864, 4: 2_268_288, 8: 1_482_000},
    ("convnext_base", "conv_parallel"): {1: 12_104_064, 2: 6_515_840, 4: 3_721_728, 8: 2_324_672, 16: 1_626_144},
    ("convnext_base", "residual_parallel"): {1: 12_104_064, 4: 3_721_728},
    ("swin_base_patch4_window7_224", "conv_parallel"): {1: 7_605_248, 2: 4_109_440, 4: 2_361_536, 8: 1_487_584},
}


@pytest.mark.parametrize(("backbone", "scheme"), COUNTS)
def test_adapter_totals(backbone, scheme):
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=10)
    for compression, expected in COUNTS[backbone, scheme].items():
        minica.adapt(model, scheme, compression)
        assert sum(w.numel() for a in minica.adapters(model).values() for w in a.parameters()) == expected
        minica.detach(model)


@pytest.mark.parametrize(
    ("backbone", "total"),
    [
        ("resnet50", 23_508_032),
        ("resnetv2_50x1_bit", 23_500_352),
        ("resnet50_clip", 38_316_896),
        ("resnet50x4_clip", 87_137_080),
        ("tf_efficientnet_lite0", 3_371_008),
    ],
)
def test_backbone_totals(backbone, total):
    with torch.device("meta"):
        model = minica.create_backbone(backbone, num_classes=7, pretrained=False)
    assert minica.count(model)["backbone"] == total


@pytest.mark.parametrize(
    ("family", "units", "blocks"),
    [
        ("basic", ["layer1.0.conv1", "layer1.0.conv2"], ["layer1.0"]),
        ("bottleneck", ["layer1.0.conv2"], ["layer1.0"]),
        ("bit", ["stages.0.blocks.0.conv2"], ["stages.0.blocks.0"]),
        ("regnet", ["s1.b1.conv2.conv"], ["s1.b1"]),
        ("efficientnet", ["blocks.0.0.conv_dw"], ["blocks.0.0"]),
        ("clip", ["stages.0.0.conv2_kxk.conv"], ["stages.0.0"]),
        ("swin", ["layers.0.blocks.0.attn"], ["layers.0.blocks.0"]),
    ],
)
def test_names_of_places(family, units, blocks):
    for scheme, names in (("conv_parallel", units), ("residual_parallel", blocks)):
        model = minica.adapt(net(family), scheme)
        assert list(minica.adapters(model))[: len(names)] == names
        for place, adapter in minica.adapters(model).items():
            assert isinstance(adapter, minica.ConvAdapter) and model.get_submodule(place) is not None


def reads_and_writes(family, scheme, place):
    """The tensor that the adapter at ``place`` is given, and every module output that its delta changes first."""
    model = minica.adapt(net(family), scheme)
    seen = {}
    minica.adapters(model)[place].register_forward_hook(lambda _, args, out: seen.update(read=args[0], delta=out))
    outputs = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, args, out, name=name: outputs.update({name: (args, out)}))
    with torch.no_grad():
        model(images(family))
    return model, seen, outputs


def test_convolution_schemes_of_a_bottleneck():
    """Post-activation ResNet: reads what conv2 reads, or act2's output; writes to act2's output."""
    _, seen, outputs = reads_and_writes("bottleneck", "conv_parallel", "layer2.0.conv2")
    assert torch.equal(seen["read"], outputs["layer2.0.conv2"][0][0])
    assert seen["delta"].shape == outputs["layer2.0.act2"][1].shape
    _, seen, outputs = reads_and_writes("bottleneck", "conv_sequential", "layer2.0.conv2")
    assert torch.equal(seen["read"], outputs["layer2.0.act2"][1])  # identity start: written equals read


def test_bit_reads_before_the_norm():
    _, seen, outputs = reads_and_writes("bit", "conv_parallel", "stages.1.blocks.0.conv2")
    assert torch.equal(seen["read"], outputs["stages.1.blocks.0.conv1"][1])
    assert seen["delta"].shape == outputs["stages.1.blocks.0.conv2"][1].shape


def test_clip_writes_before_the_striding_pool_and_adapts_the_attention_pool():
    model, seen, outputs = reads_and_writes("clip", "conv_parallel", "stages.1.0.conv2_kxk.conv")
    assert seen["delta"].shape == outputs["stages.1.0.conv2_kxk.bn"][1].shape
    assert seen["delta"].shape[-1] == 2 * outputs["stages.1.0.conv2_kxk"][1].shape[-1]
    pool = minica.adapters(model)["head.proj"]
    assert pool.form == "linear" and pool.down.kernel_size == (1, 1) and pool.down.in_channels == 2048


def test_residual_schemes_read_the_block():
    _, seen, outputs = reads_and_writes("bottleneck", "residual_parallel", "layer2.0")
    assert torch.equal(seen["read"], outputs["layer1.1"][1])
    _, seen, outputs = reads_and_writes("bottleneck", "residual_sequential", "layer2.0")
    assert torch.equal(seen["read"], outputs["layer2.0"][1])


def test_convnext_downsampling_convolutions():
    for scheme, kernel, stride in [("conv_sequential", 2, 2), ("residual_sequential", 1, 1)]:
        for option in (None, 3):  # kernel_size never changes them
            adapter = minica.adapters(minica.adapt(net("convnext"), scheme, kernel_size=option))["stages.1.downsample.1"]
            assert (adapter.down.kernel_size, adapter.down.stride) == ((kernel, kernel), (stride, stride))


def test_kernel_size_and_activation_follow_the_host():
    model = minica.adapt(net("efficientnet"), "residual_parallel")
    assert {a.down.kernel_size for a in minica.adapters(model).values()} == {(3, 3), (5, 5)}
    assert {type(a.act) for a in minica.adapters(model).values()} == {torch.nn.ReLU6}
    assert not any(a.act.inplace for a in minica.adapters(model).values())
    wide = minica.adapt(net("basic"), "conv_parallel", kernel_size=5)
    assert {a.down.kernel_size for a in minica.adapters(wide).values()} == {(5, 5)}


# Networks whose blocks have no row: found by how they run.  (timm name, units, blocks), counted in the networks' own files.
FOUND = [
    ("vgg11_bn", 7, 0),
    ("densenet121", 58, 0),
    ("dla34", 24, 12),
    ("darknet53", 23, 23),
    ("nf_resnet50", 16, 16),
    ("rexnet_100", 16, 16),
    ("convmixer_768_32", 32, 32),
    ("caformer_s18", 6, 6),
    ("mambaout_femto", 18, 18),
    ("coatnet_0_rw_224", 5, 5),
    ("focalnet_tiny_srf", 24, 12),
]


@pytest.mark.parametrize(("name", "units", "blocks"), FOUND)
def test_blocks_and_units_are_found_by_running(name, units, blocks):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    keys = list(model.state_dict())
    for scheme, expected in [("conv_parallel", units), ("residual_parallel", blocks)]:
        if expected == 0:
            with pytest.raises(ValueError, match="has no residual block.*use conv_parallel or conv_sequential"):
                minica.adapt(model, scheme)
        else:
            assert len(minica.adapters(minica.adapt(model, scheme))) == expected
            minica.detach(model)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvision_resnets_are_adapted_like_timms(name):
    import torchvision

    torch.manual_seed(0)
    ours, theirs = timm.create_model(name, num_classes=5).eval(), torchvision.models.get_model(name, num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    for scheme in minica.SCHEMES:
        for model in (ours, theirs):
            torch.manual_seed(1)
            minica.adapt(model, scheme, init="published")
        x = images("basic")
        torch.testing.assert_close(ours(x), theirs(x))
        assert minica.count(ours, 64)["adapters"] == minica.count(theirs, 64)["adapters"]
        minica.detach(ours), minica.detach(theirs)


# ---------------------------------------------------------------- a network that its run does not explain


class Fused(nn.Module):
    """A block without an add: its shortcut is concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x):
        return self.mix(torch.cat([x, self.norm(self.conv(x)).relu()], 1))


class Tail(Fused):
    """A block whose add is its parent's."""


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first, self.second, self.tail = Fused(8), Fused(8), Tail(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.second(self.first(self.stem(x)))
        return self.fc((x + self.tail(x)).mean((2, 3)))


SPEC = {"Fused": Row((Unit("conv", end="norm"),))}


def odd() -> nn.Module:
    torch.manual_seed(0)
    return Odd().eval()


def test_a_spec_says_where_blocks_and_units_are():
    with pytest.raises(ValueError, match="no convolutional unit"):
        find_parts(odd())
    found = {part.name: part for part in find_parts(odd(), SPEC)}
    assert [name for name, part in found.items() if part.kind == "block"] == ["first", "second", "tail"], "subclasses too"
    assert found["first.conv"].end == ("first.norm", "output")
    with pytest.raises(ValueError, match="no convolutional unit"):
        find_parts(timm.create_model("test_resnet"), {"BasicBlock": Row(()), "Bottleneck": Row(())})


@pytest.mark.parametrize("method", [*minica.SCHEMES, "bias", "residual_adapter"])
def test_a_spec_survives_all_that_adapters_do(method, tmp_path):
    x = images("basic")
    before = odd()(x)
    options = {"scheme": method} if method in minica.SCHEMES else {}
    model = minica.tune(odd(), "conv_adapter" if options else method, **options, spec=SPEC)
    assert torch.equal(model(x), before)
    if options:
        assert len(minica.adapters(model)) == 3
        minica.adapt(model, method, name="other")  # beside the first, where the spec put it
        assert len(minica.adapters(model)) == 3
    disturb(model)
    minica.save_adapter(model, tmp_path)
    for same in (copy.deepcopy(model), minica.load_adapter(odd(), tmp_path)):
        assert torch.equal(same(x), model(x)) and not torch.equal(same(x), before)
    if options:
        with pytest.raises(ValueError, match="placed by another spec"):
            minica.adapt(model, method, name="third", spec={"Tail": SPEC["Fused"]})
    assert list(minica.detach(model).state_dict()) == list(odd().state_dict())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"Fusd": Row((Unit("conv"),))}, "'Fusd' is no class of Odd, which has Fused, Odd, Tail"),
        ({"Fused": Row((Unit("conv1"),))}, "'Fused' has no module 'conv1'; it has conv, norm, mix"),
        ({"Fused": Row((Unit("conv", end="act"),))}, "no module 'act'"),
        ({"Fused": Row((Unit("norm"),))}, "Fused.norm is no convolution"),
        ({"Fused": "conv"}, "a spec is"),
        ({"Fused": Row((3,))}, "a spec is"),
        ({"Fused": ()}, "a spec is"),
        ({"Fused": Row((Unit(3),))}, "'Fused' has no module 3"),
        ({"Fused": Row((Unit(""),))}, "'Fused' has no module ''"),
        ({"Fused": Row((Unit("conv", end_side="left"),))}, "unknown side of the spec's 'Fused' 'left'; choose one of input"),
        ({"Fused": Row((Unit("conv"),), kind="blok")}, "unknown kind of the spec's 'Fused' 'blok'; choose one of block"),
        ({"Fused": Row((Unit("norm", kernel=0),))}, "the kernel of the spec's 'Fused' must be a whole number"),
        ({3: Row((Unit("conv"),))}, "3 is no class of Odd"),
        ([Row((Unit("conv"),))], "a spec is"),
        ([], "a spec is"),
        ("Fused", "a spec is"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    model = odd()
    for prepare in (minica.adapt, lambda model, spec: minica.tune(model, "bias", spec=spec)):
        with pytest.raises(ValueError, match=re.escape(message)):
            prepare(model, spec=spec)
    assert not hasattr(model, "_minica")


@pytest.mark.parametrize("wrong", [42, None, "resnet18", nn.ReLU, [nn.ReLU()], {}, torch.zeros(1, 3, 8, 8)])
def test_what_is_no_module_is_refused(wrong):
    for function in (find_parts, trace, skeleton, blank_image, classifier_names):
        with pytest.raises(ValueError, match="must be a torch.nn.Module, got"):
            function(wrong)


def test_what_does_not_run_on_an_image_is_refused():
    for model in (nn.Linear(3, 4), nn.Identity(), nn.ModuleList(), nn.LSTM(3, 4)):
        with pytest.raises(ValueError, match="does not run on a blank image of shape|has no convolutional unit"):
            find_parts(model)


@pytest.mark.parametrize("size", ["x", 0, -3, (64,), (64, 64, 64), 3.5, True, 10**9])
def test_sizes_of_images(size):
    with pytest.raises(ValueError, match="size must be a whole number"):
        blank_image(net("basic"), size)
    assert blank_image(net("basic"), torch.Size([32, 48])).shape == (1, 3, 32, 48)
    assert blank_image(nn.Identity()).shape == (1, 3, 224, 224)


class Pooled(nn.Module):
    """A block with a layer that has a kernel and is no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(3, 1, 1)

    def forward(self, x):
        return x + self.pool(self.conv(x))


def test_a_pool_is_no_convolution():
    with pytest.raises(ValueError, match="Pooled.pool is no convolution"):
        find_parts(nn.Sequential(Pooled()), {"Pooled": Row((Unit("pool"),))})


def test_a_trace_records_what_a_module_itself_receives_and_returns():
    """An adapter's hooks change both: the activation's output where it writes there, or the next convolution's input."""
    for model, act in ((net("basic"), "layer1.0.act1"), (torchvision_net(), "layer1.0.relu")):
        run = trace(minica.adapt(model, "conv_parallel"))
        call, conv = run.by_name[act][0], run.by_name["layer1.0.conv2"][0]
        delta = run.by_name["layer1.0.conv1.conv_adapter.default"][0].returned
        written = [step for step in run.steps if call.returned in step.inputs and delta in step.inputs]
        assert [step.operation for step in written] == ["add"]
        kept = run.by_name["layer1.0.conv2.conv_adapter.default"][0].received[0]
        assert kept == written[0].outputs[0] and call.returned != kept
        assert call.out_shape == conv.in_shape


def torchvision_net() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(num_classes=5)


@pytest.mark.parametrize(("scheme", "acts"), [("conv_parallel", "LeanReLU ReLU"), ("conv_sequential", "ReLU LeanReLU")])
def test_activations_stay_plain_only_where_their_output_is_kept(scheme, acts):
    """In parallel the second adapter keeps the sum that the first one wrote; in sequence the first keeps act1's output."""
    block = minica.lean(minica.adapt(net("basic"), scheme)).layer1[0]
    assert [type(block.act1).__name__, type(block.act2).__name__] == acts.split()
