"""The lean form: the gradients of the plain one, and far fewer bytes kept for them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import nets
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import minica
from minica.anatomy import Row, Unit
from minica.fast.lean_layers import LeanNorm, pack, unpack
from minica.profiling import activations
from minica.recipe import Lean

pytestmark = pytest.mark.filterwarnings("ignore:.*adds .* parameters", "ignore:.*stays frozen")


def gradients(model: nn.Module, images: torch.Tensor, run=None) -> dict[str, torch.Tensor]:
    """Of the images and all that trains; ``run`` is what is called instead of ``model``, its compiled form for instance."""
    torch.manual_seed(0)  # of stochastic depth
    model.zero_grad()
    images = images.detach().requires_grad_()
    F.cross_entropy(model.train()(images) if run is None else run(images), torch.arange(len(images)) % 5).backward()
    found = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    return found | {"images": images.grad}


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative error among the tensors."""
    assert found.keys() == expected.keys()
    return max(((found[key] - expected[key]).norm() / expected[key].norm().clamp(min=1e-30)).item() for key in expected)


def adapted(name: str, scheme: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    model = nets.disturb(minica.adapt(nets.net(name), scheme)).to(dtype)
    return model, nets.images(name).to(dtype)


LARGE = ("bit", "clip")  # as large as ResNet50: two schemes are enough
PAIRS = [(name, scheme) for name in nets.FAMILIES for scheme in list(minica.SCHEMES)[:: 3 if name in LARGE else 1]]


@pytest.mark.parametrize(("name", "scheme"), PAIRS)
def test_gradients_are_the_plain_models_and_it_comes_back(name, scheme):
    # In float64: some of these random networks multiply float32's rounding by a thousand, in either form.
    model, images = adapted(name, scheme, torch.float64)
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    before, state = model.eval()(images).detach(), nets.snapshot(model)
    expected = gradients(model, images)
    assert minica.lean(model) is model
    assert any(isinstance(module, Lean) for module in model.modules())
    assert difference(gradients(model, images), expected) < 1e-9
    assert list(model.state_dict()) == keys and nets.same(model.state_dict(), state)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), before), "without gradients it is the plain model, bit for bit"
    assert minica.plain(model) is model
    assert [type(module) for module in model.modules()] == classes and list(model.state_dict()) == keys
    assert not [key for key, _ in model.named_buffers() if "lean" in key]
    assert torch.equal(model.eval()(images).detach(), before)


@pytest.mark.parametrize("name", ["basic", "bottleneck", "convnext", "efficientnet", "edge", "regnet"])
def test_gradients_in_float32(name):
    model, images = adapted(name, "conv_parallel")
    expected = gradients(model, images)
    assert difference(gradients(minica.lean(model), images), expected) < 1e-4


@pytest.mark.parametrize(
    ("name", "share"),
    [("basic", 1), ("bottleneck", 1), ("anti-alias", 1), ("efficientnet", 1), ("mobilenetv4", 1), ("mixnet", 15 / 49)],
)
def test_batchnorm_is_folded_where_a_convolution_feeds_only_it(name, share):
    """MixNet's convolutions are joined before their norm; everywhere else each norm has a convolution of its own."""
    model = minica.lean(adapted(name, "conv_parallel")[0])
    norms = [module.lean_prepared is not None for module in model.modules() if isinstance(module, LeanNorm)]
    assert sum(norms) / len(norms) == share


class _Block(nn.Module):
    """A residual block; ``twice`` uses what is between its convolution and its norm a second time."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.act, self.twice = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), twice

    def forward(self, x):
        h = self.conv(x)
        y = self.act(self.bn(h) + x)
        return y + h if self.twice else y


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("hook", [False, True])
def test_nothing_is_folded_that_somebody_sees(twice, hook):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(*stem, _Block(twice), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    block, images = model[3], torch.randn(2, 3, 16, 16)
    for norm in (model[1], block.bn):
        norm.running_mean.normal_()
        norm.weight.data.normal_()
    minica.adapt(model.eval(), "conv_sequential")
    nets.disturb(model)
    seen = []
    if hook:
        block.conv.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    expected = gradients(model, images)
    minica.lean(model)
    assert model[1].lean_prepared and (block.bn.lean_prepared is None) is (twice or hook)
    assert difference(gradients(model, images), expected) < 1e-4
    if hook:
        assert len(seen) == 2, "the network was traced without its user's hooks"
        assert torch.allclose(*seen, atol=1e-5)


@pytest.mark.parametrize("padding", [dict(padding="same"), dict(padding=1, padding_mode="reflect")])
def test_a_norm_behind_other_padding_stays(padding):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3, **padding), nn.BatchNorm2d(8)
    norm.running_mean.normal_()
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    model[:2].requires_grad_(False)
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    assert torch.allclose(minica.lean(model)(images), expected, atol=1e-5)


@pytest.mark.parametrize("method", minica.METHODS)
def test_every_method_trains_the_same(method):
    model, images = nets.net("bottleneck").double(), nets.images("bottleneck").double()
    minica.tune(model, method, **(dict(image_size=64) if method == "prompt" else {}))
    nets.disturb(model.float())
    expected = gradients(model.double(), images)
    assert difference(gradients(minica.lean(model), images), expected) < 1e-9


def test_weights_that_train_are_left_alone():
    model = minica.tune(nets.net("bottleneck"), "full")
    minica.lean(model)
    assert not any(isinstance(module, Lean) for module in model.modules() if list(module.parameters(recurse=False)))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 16, 4, 4), (8,), (1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_masks_take_a_bit_an_element(shape, memory_format):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    if mask.ndim == 4:
        mask = mask.contiguous(memory_format=memory_format)
    packed = pack(mask)
    assert packed.numel() == (mask.numel() // 8 if mask.numel() % 8 == 0 else mask.numel())
    assert torch.equal(unpack(packed).as_strided(mask.shape, mask.stride()).bool(), mask)
    every = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).bool()  # each of the 256 bytes there are
    assert torch.equal(unpack(pack(every)).view(256, 8).bool(), every)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
def test_activations_have_the_gradient_of_torch(act, inplace):
    x = 6 * torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0, 0] = torch.tensor([0.0, 6.0, -0.0, 1e-300, 6.5])
    for layout in (torch.contiguous_format, torch.channels_last):
        grads = []
        for form in (minica.plain, minica.lean):
            leaf = x.clone(memory_format=layout).requires_grad_()
            model = form(nn.Sequential(act(inplace=inplace)))
            y = model(leaf * 1)
            (y * torch.arange(y.numel(), dtype=x.dtype).view(y.shape)).sum().backward()
            grads += [y.detach(), leaf.grad]
        assert torch.equal(grads[0], grads[2]) and torch.equal(grads[1], grads[3])


def test_bytes_kept_by_basic_blocks():
    """An activation that an adapter reads keeps a bit an element, not its output, which the adapter's own addition replaces."""
    with torch.device("meta"):
        model, images = timm.create_model("resnet18", num_classes=10), torch.randn(8, 3, 96, 96)
    assert activations(minica.lean(minica.adapt(model, "conv_parallel", 4)), images) / MIB < 12.8


MIB = 2**20
# MiB kept for 8 images, measured with torch 2.14 and timm 1.0.31; ours must not grow.
BUDGET = {
    ("resnet50", "conv_parallel", 224): (656, 78),
    ("convnext_tiny", "conv_parallel", 224): (833, 175),
    ("tf_efficientnet_lite0", "residual_parallel", 224): (607, 42),
}


@pytest.mark.parametrize(("name", "scheme", "size"), BUDGET)
def test_bytes_kept(name, scheme, size):
    """Counted on the meta device: bytes do not depend on numbers.  Two images, times four."""
    with torch.device("meta"):
        model, images = timm.create_model(name, num_classes=10), torch.randn(2, 3, size, size)
    full, ours = BUDGET[name, scheme, size]
    kept = activations(minica.tune(model, "full"), images) * 4 / MIB
    lean = activations(minica.lean(minica.adapt(minica.detach(model), scheme)), images) * 4 / MIB
    assert kept == pytest.approx(full, rel=0.02)
    assert 0.5 * ours < lean < 1.03 * ours
    if name == "resnet50":
        assert lean < 0.15 * kept
    if name == "convnext_tiny":
        assert activations(minica.lean(model, recompute="stages"), images) * 4 / MIB < 0.125 * kept


def test_bytes_kept_under_autocast():
    with torch.device("meta"):
        model, images = timm.create_model("resnet50", num_classes=10), torch.randn(8, 3, 224, 224)
    images, model = torch.zeros(images.shape), model.to_empty(device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        full = activations(minica.tune(model, "full"), images)
        lean = activations(minica.lean(minica.adapt(minica.detach(model))), images)
    assert lean < 0.15 * full


def test_nothing_is_kept_before_the_first_adapter():
    model, images = adapted("bottleneck", "conv_parallel")
    minica.switch(model, None)
    minica.lean(model)
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    assert activations(model, images) < 2 * 256 * 4 * 2 + 1000, "the classifier's input, and the loss's little"


@pytest.mark.parametrize("name", nets.TINY)
def test_bf16_autocast_stays_bf16(name):
    model, images = adapted(name, "conv_parallel")
    minica.lean(model)
    types = {}
    for key, module in model.named_modules():
        if isinstance(module, (Lean, minica.ConvAdapter)) and not isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(lambda module, args, output, key=key: types.update({key: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(images)
    assert set(types.values()) == {torch.bfloat16}


@pytest.mark.parametrize("name", nets.TINY)
def test_a_good_citizen(name):
    model, images = adapted(name, "conv_parallel")
    expected = gradients(model, images)
    minica.lean(model)
    assert difference(gradients(copy.deepcopy(model), images), expected) < 1e-4
    assert difference(gradients(pickle.loads(pickle.dumps(model)), images), expected) < 1e-4
    layout = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert difference(gradients(layout, images.to(memory_format=torch.channels_last)), expected) < 1e-4
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    assert difference(gradients(compiled, images, run), expected) < 1e-4
    assert difference(gradients(minica.lean(model, recompute="stages"), images), expected) < 1e-4
    checkpointed = [module for module in model.modules() if getattr(module, "grad_checkpointing", False)]
    minica.plain(model)
    assert checkpointed and not any(module.grad_checkpointing for module in checkpointed)


def is_lean(model: nn.Module) -> bool:
    return any(isinstance(module, Lean) for module in model.modules())


def test_what_ends_it(tmp_path):
    model, _ = adapted("basic", "conv_parallel")
    minica.save_adapter(minica.lean(model), tmp_path)
    assert is_lean(model)
    minica.load_adapter(minica.lean(minica.detach(model)), tmp_path)
    assert not is_lean(model)
    minica.adapt(minica.lean(model), "conv_sequential", name="second")
    assert not is_lean(model)
    minica.detach(minica.lean(model))
    assert not is_lean(model) and not nets.hooks(model) and not model._load_state_dict_post_hooks
    with pytest.raises(ValueError, match="set_grad_checkpointing"):
        minica.lean(nn.Sequential(nn.Conv2d(3, 3, 1)), recompute="stages")


# ---------------------------------------------------------------- what changes after ``lean``


def trained(scheme: str = "conv_parallel") -> tuple[nn.Module, torch.Tensor]:
    """In float64, and with the norms of a trained network: those of a new one do nearly nothing."""
    model, images = adapted("basic", scheme, torch.float64)
    generator = torch.Generator().manual_seed(3)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model, images


def other_values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value * 1.25 if value.is_floating_point() else value for key, value in module.state_dict().items()}


def thaw(*names):
    def change(model):
        for name in names:
            model.get_submodule(name).requires_grad_(True)

    return change


def load(name, **options):
    def change(model):
        module = model.get_submodule(name)
        module.load_state_dict(other_values(module), **options)

    return change


def write(model):
    with torch.no_grad():
        model.layer2[0].bn1.running_var.mul_(2)
        model.layer2[0].conv2.weight.mul_(2)


def write_in_inference_mode(model):
    with torch.inference_mode():
        model.layer2[0].bn1.weight.mul_(2)


def assign_data(model):
    model.layer2[0].conv1.weight.data = 2 * model.layer2[0].conv1.weight.data


def replace_parameter(model):
    norm = model.layer2[0].bn1
    norm.weight = nn.Parameter(2 * norm.weight.detach(), requires_grad=False)


def standardise(model):
    parametrize.register_parametrization(model.layer2[0].conv1, "weight", nn.Tanh())


def double_what_the_convolution_returns(model):
    model.layer1[0].conv1.register_forward_hook(lambda module, args, output: 2 * output)


def double_what_the_norm_receives(model):
    model.layer2[0].bn1.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def replace_convolution(model):
    torch.manual_seed(0)
    old = model.conv1[0]
    new = nn.Conv2d(3, old.out_channels, 3, old.stride, 1, bias=False)
    model.conv1[0] = new.to(old.weight).requires_grad_(False)


def replace_norm(model):
    new = nn.BatchNorm2d(model.layer2[0].bn2.num_features)
    model.layer2[0].bn2 = new.to(model.layer2[0].bn2.weight).requires_grad_(False)


def remove_norm(model):
    model.layer2[0].bn1 = nn.Identity()


def part_is_plain_again(model):
    minica.plain(model.layer2[0].conv1)


STAYS = [  # lean in every layer, with the new numbers
    load(""),
    load("layer2"),
    load("layer2.0.conv1"),
    load("layer2.0.bn1", assign=True),
    write,
    write_in_inference_mode,
    assign_data,
    replace_parameter,
]
ENDS = [  # plain in those layers
    thaw("layer2.0.conv1"),
    thaw("layer2.0.bn1"),
    thaw("layer3"),
    thaw("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
    standardise,
    double_what_the_convolution_returns,
    double_what_the_norm_receives,
    replace_convolution,
    part_is_plain_again,
]


@pytest.mark.parametrize("change", STAYS + ENDS)
@pytest.mark.parametrize("copied", [None, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_what_changes_afterwards_is_noticed(change, copied):
    plain, images = trained()
    model = minica.lean(copy.deepcopy(plain))
    model = model if copied is None else copied(model)
    before, bytes_before = gradients(model, images), activations(model, images)
    for changed in (plain, model):
        changed.eval()
        change(changed)
    expected = gradients(plain, images)
    assert difference(gradients(model, images), expected) < 1e-9
    if change is not part_is_plain_again:
        assert before.keys() != expected.keys() or difference(expected, before) > 1e-3, "the change makes no difference"
    if change in STAYS:
        assert activations(model, images) == bytes_before
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("change", [replace_norm, remove_norm, replace_convolution])
def test_modules_are_replaced_in_a_network_frozen_by_hand(change):
    """In one that was adapted, norms that are gone raise ``AdaptersDetached``."""
    plain, images = trained()
    plain = minica.detach(plain).requires_grad_(False).eval()
    plain.fc.requires_grad_(True)
    model = minica.lean(copy.deepcopy(plain))
    before = gradients(model, images, model)
    change(plain)
    change(model)
    expected = gradients(plain, images, plain.eval())
    assert difference(expected, before) > 1e-3
    assert difference(gradients(model, images, model.eval()), expected) < 1e-9


@pytest.mark.parametrize("name", ["bit", "efficientnet"])
def test_frozen_again_is_lean_again(name):
    model, images = adapted(name, "conv_parallel", torch.float64)
    expected, kept = gradients(model, images), activations(minica.lean(model), images)
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    assert len(gradients(model, images)) > len(expected)
    for weight in frozen:
        weight.requires_grad_(False)
    assert difference(gradients(model, images), expected) < 1e-9 and activations(model, images) == kept


def test_a_network_frozen_by_hand_that_goes_into_training_mode():
    model, images = nets.net("basic").double().requires_grad_(False), nets.images("basic", 4).double()
    model.layer4.requires_grad_(True)
    minica.lean(model.eval())
    plain = minica.plain(copy.deepcopy(model))
    for step in range(2):  # the second with other statistics
        assert difference(gradients(model, images), gradients(plain, images)) < 1e-9, step
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()))


def through_meta(model):
    numbers = copy.deepcopy(model.state_dict())
    model.to("meta").to_empty(device="cpu").load_state_dict(numbers)


@pytest.mark.parametrize(
    ("move", "tolerance"),
    [
        (lambda model: model.float(), 1e-4),
        (lambda model: model.bfloat16().double(), 1e-9),
        (lambda model: model.to(memory_format=torch.channels_last), 1e-9),
        (through_meta, 1e-9),
    ],
)
def test_a_moved_model_stays_lean(move, tolerance):
    plain, images = trained()
    model = minica.lean(copy.deepcopy(plain))
    move(plain)
    move(model)
    images = images.to(plain.conv1[0].weight.dtype)
    assert difference(gradients(model, images), gradients(plain, images)) < tolerance
    anew = minica.lean(copy.deepcopy(plain))
    assert activations(model, images) == activations(anew, images) < activations(plain, images)


def test_functional_calls_with_other_weights():
    plain, images = trained()
    model = minica.lean(copy.deepcopy(plain))
    others = {key: 1.25 * value.detach() for key, value in [*plain.named_parameters(), *plain.named_buffers()]}
    thawed = {key: value.clone().requires_grad_() for key, value in others.items() if key.startswith("layer2.0.conv")}
    for weights in (others, others | thawed):
        torch.testing.assert_close(functional_call(model, weights, images), functional_call(plain, weights, images))
    assert difference(gradients(model, images), gradients(plain, images)) < 1e-9


def test_threads_run_one_lean_model():
    """Also the first pass after a change, in which every thread may compute the folded weights anew."""
    plain, images = trained()
    model, expected = minica.lean(copy.deepcopy(plain)).train(), []
    for round_ in range(5):
        other = {key: value * (1 + round_ / 4) for key, value in plain.state_dict().items() if "bn" in key}
        for changed in (model, plain):
            changed.load_state_dict(other, strict=False)
        expected = plain.train()(images)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: model(images), range(8)):
                torch.testing.assert_close(found, expected)


def test_compiled_code_notices_flags_and_loading():
    plain, images = adapted("test_resnet", "conv_parallel", torch.float64)
    model = minica.lean(copy.deepcopy(plain))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for change in (lambda _: None, load("layer2"), thaw("layer3"), load("")):
        for changed in (plain, model):
            change(changed.eval())
        assert difference(gradients(model, images, compiled), gradients(plain, images, plain)) < 1e-9
    torch._dynamo.reset()


# ---------------------------------------------------------------- several sets


@pytest.mark.parametrize("second", ["adapters", "norms", "stage"])
@pytest.mark.parametrize("used", ["default", "second", None])
def test_switching_keeps_it(second, used):
    """The set that is in use when the model becomes lean makes no difference to what any set computes."""
    plain, images = trained()
    train = {"adapters": [], "norms": ["layer1.0.bn1", "layer2.0.bn2"], "stage": ["layer3"]}[second]
    minica.adapt(plain, "residual_parallel", name="second", num_classes=7, train=train)
    nets.disturb(plain.float()).double()
    minica.switch(plain, used)
    model = minica.lean(copy.deepcopy(plain))
    kept = activations(model, images)
    for name in ("second", "default", None, "default", "second", None):
        for switched in (plain, model):
            minica.switch(switched, name)
        assert is_lean(model)
        assert difference(gradients(model, images), gradients(plain, images)) < 1e-9, name
    minica.switch(model, used)
    assert activations(model, images) == kept, "as lean as before"


def test_saved_files_are_the_same(tmp_path):
    model, _ = adapted("basic", "conv_parallel")
    minica.save_adapter(model, tmp_path / "plain")
    minica.save_adapter(minica.lean(model), tmp_path / "lean")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "lean" / file).read_bytes()


def test_torchvision():
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=5).double().eval(), torch.randn(2, 3, 64, 64).double()
    nets.disturb(minica.adapt(model, "conv_parallel").float()).double()
    expected = gradients(model, images)
    assert difference(gradients(minica.lean(model), images), expected) < 1e-9


class _Larger(nn.Module):
    """A network inside a larger one that cannot run without numbers, as a detector cannot."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.body, self.decoder = network, nn.Linear(5, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.decoder(self.body(x if x.sum().item() > 0 else -x))


@pytest.mark.parametrize("by_itself", [False, True])
def test_a_network_inside_a_larger_one(by_itself):
    plain, images = _Larger(nets.net("basic")).double().eval(), nets.images("basic").double()
    if by_itself:
        minica.adapt(plain.body)
    else:
        minica.adapt(plain, backbone="body", train=("stem", "decoder"))
    model = minica.lean(copy.deepcopy(plain))
    norms = [module for module in model.modules() if isinstance(module, LeanNorm)]
    assert len(norms) > 5 and all(norm.lean_prepared for norm in norms)
    assert not is_lean(model.stem) and not is_lean(model.decoder)
    assert difference(gradients(model, images), gradients(plain, images)) < 1e-9
    folded = minica.fold(model)
    torch.testing.assert_close(folded(images), plain.eval()(images))
    assert [type(module).__name__ for module in folded.modules()].count("BatchNorm2d") == 1


@pytest.mark.parametrize("end", ["conv", "conv.0", "norm"])
@pytest.mark.parametrize("scheme", ["conv_parallel", "conv_sequential"])
def test_nothing_is_folded_where_an_adapter_reads_or_writes(end, scheme):
    """Between a convolution and its norm: the adapter's hook may hang on either, or on what is around them."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), nn.BatchNorm2d(8)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)) + x)

    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    model = nn.Sequential(*stem, Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double().eval()
    for norm in (model[1], model[2].norm):
        norm.running_mean.normal_()
    side = "input" if end == "norm" else "output"
    minica.adapt(model, scheme, spec={"Block": Row((Unit("conv.0", end=end, end_side=side),))}, train=("5",))
    nets.disturb(model.float()).double()
    images = torch.randn(2, 3, 16, 16).double()
    expected = gradients(model, images)
    assert difference(gradients(minica.lean(model), images), expected) < 1e-9
    assert model[1].lean_prepared and model[2].norm.lean_prepared is None


def test_nothing_is_folded_that_the_network_returns():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.norm.running_mean.normal_()

        def forward(self, x):
            return {"deep": self.norm(h := self.conv(x)), "raw": h}

    model, images = Tapped().requires_grad_(False).eval(), torch.randn(2, 3, 8, 8)
    expected = model(images)
    for form in (minica.fold, minica.lean):
        torch.testing.assert_close(form(model)(images), expected)


def test_fit_trains_lean_and_gives_back_the_plain_model():
    data = [(image, label % 5) for label, image in enumerate(nets.images("basic", 8))]
    weights = {}
    for lean in (False, True):
        model, _ = adapted("basic", "conv_parallel")
        classes = []
        model.conv1[0].register_forward_hook(lambda module, args, output, to=classes: to.append(type(module)))
        minica.fit(model, data, data, epochs=2, batch_size=4, lean=lean, progress=False)
        assert any(issubclass(cls, Lean) for cls in classes) is lean
        assert not any(isinstance(module, Lean) for module in model.modules())
        weights[lean] = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    assert difference(weights[True], weights[False]) < 1e-2
    assert not nets.same(weights[True], nets.snapshot(adapted("basic", "conv_parallel")[0]))
