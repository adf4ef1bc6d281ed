"""The lean form that computes again: what it keeps in every family, and that nothing which comes between goes unnoticed."""

import copy

import nets
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from test_lean import difference, gradients
from timm.layers import GELU, GELUTanh, Mlp
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import minica
import minica.data
from minica.experiments import RESULTS, read_records
from minica.fast.recompute_layers import to_byte
from minica.profiling import activations
from minica.recipe import Lean

pytestmark = pytest.mark.filterwarnings("ignore:.*adds .* parameters", "ignore:.*stays frozen")

# Bytes that autograd keeps with ``conv_parallel`` at compression 4, in parts of full fine-tuning's, float32, 4 x 128 px; the
# same with ``approximate``; multiply-accumulates of a step in parts of the lean form's without recomputation: at most these.
KEPT = {
    "convnext_tiny": (0.215, 0.245, 1.12),
    "tf_efficientnetv2_b0": (0.20, 0.20, None),
    "mobilenetv3_large_100": (0.165, None, None),
    "regnety_008": (0.27, None, None),
    "resnetv2_50x1_bit": (0.22, None, 1.07),
    "resnet18": (0.38, None, None),
}
RECORDED = {record["config"]["backbone"]: record["methods"] for record in read_records(RESULTS / "families.json").values()}


@pytest.mark.parametrize("name", KEPT)
def test_bytes_kept_and_what_they_cost(name):
    exact, approximate, cost = KEPT[name]
    with torch.device("meta"):
        model, images = timm.create_model(name, num_classes=10), torch.randn(4, 3, 128, 128)
    full = activations(minica.tune(model, "full"), images)
    minica.adapt(minica.detach(model), "conv_parallel", 4)
    if approximate:
        assert activations(minica.lean(model, approximate=True), images) <= approximate * full
    kept = activations(minica.lean(model), images)
    assert 0.9 * exact * full < kept <= exact * full
    assert kept == pytest.approx(RECORDED[name]["Conv-Adapter, lean"]["activations"], rel=0.01)
    assert full == pytest.approx(RECORDED[name]["Full fine-tuning"]["activations"], rel=0.01)
    if cost:
        assert step_macs(model, images) <= cost * step_macs(minica.lean(model, "none"), images)


def step_macs(model: nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model.train()(images).sum().backward()
    return counter.get_total_flops() // 2


MORE = ["regnety_002", "tf_efficientnetv2_b0"]  # squeeze-excite behind ReLU, and SiLU; other families are in ``test_lean``


def adapted(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor]:
    model = nets.disturb(minica.adapt(nets.net(name), "conv_parallel")).to(dtype)
    return model, nets.images(name).to(dtype)


@pytest.mark.parametrize("name", MORE)
def test_gradients_of_more_families(name):
    model, images = adapted(name)
    expected = gradients(model, images)
    assert difference(gradients(minica.lean(model), images), expected) < 1e-9


@pytest.mark.parametrize("recompute", ["none", "stages"])
@pytest.mark.parametrize("name", nets.TINY)
def test_gradients_of_the_other_ways(name, recompute):
    model, images = adapted(name)
    expected = gradients(model, images)
    assert difference(gradients(minica.lean(model, recompute), images), expected) < 1e-9


def cosine(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    one, other = (torch.cat([grads[key].flatten() for key in sorted(expected)]) for grads in (found, expected))
    return F.cosine_similarity(one, other, dim=0).item()


SMOOTH = [("convnext", "none"), ("swin", "auto"), ("swin", "none"), ("edge", "none"), ("mobilenet", "none")]


@pytest.mark.parametrize(("name", "recompute"), [*SMOOTH, ("tf_efficientnetv2_b0", "auto")])
def test_approximate_gradients(name, recompute):
    model, images = adapted(name)
    expected = gradients(model, images)
    found = gradients(minica.lean(model, recompute, approximate=True), images)
    assert any(getattr(module, "lean_byte", False) for module in model.modules())
    assert 0.9999 < cosine(found, expected) < 1 - 1e-12


def train(seed: int, **options) -> float:
    """The loss on the packaged shapes after some steps of an adapted network whose activations are smooth."""
    pictures = minica.data.packaged.shapes("position", 64, "bilinear", 0, images=(64, 1, 1))
    images, labels = pictures.images[:64].expand(-1, 3, -1, -1) / 127.5 - 1, torch.as_tensor(pictures.labels[:64])
    model = nets.net("edge", 16)
    torch.manual_seed(seed)
    minica.lean(minica.adapt(model, "conv_parallel", init="kaiming"), **options).train()
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-2)
    for step in range(32):
        rows = torch.arange(16) + 16 * (step % 4)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return F.cross_entropy(model(images), labels).item()


def test_approximate_training_ends_within_the_seeds_range():
    exact = [train(seed) for seed in range(3)]
    found = train(0, recompute="none", approximate=True)
    assert min(exact) <= found <= max(exact) or abs(found - exact[0]) < 0.1 * (max(exact) - min(exact))
    assert found != exact[0]


ACTS = [nn.GELU(), nn.GELU("tanh"), GELU(), GELUTanh(), nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.SiLU(inplace=True)]


@pytest.mark.parametrize("act", ACTS)
def test_activations_have_the_gradient_of_torch(act):
    x = 4 * torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grads = []
    for form in (minica.plain, minica.lean, lambda model: minica.lean(model, approximate=True)):
        leaf = x.clone().requires_grad_()
        form(model := nn.Sequential(copy.deepcopy(act)))
        y = model(before := leaf * 1)
        assert (y is before) is getattr(act, "inplace", False)
        (y * torch.arange(y.numel(), dtype=x.dtype).view(y.shape)).sum().backward()
        grads += [y.detach(), leaf.grad]
    assert torch.equal(grads[0], grads[2]) and torch.equal(grads[0], grads[4])
    torch.testing.assert_close(grads[1], grads[3], rtol=1e-12, atol=1e-12)
    assert (grads[5] / grads[1].clamp(min=1) - grads[1] / grads[1].clamp(min=1)).abs().max() < x.numel() * 0.5 / 127 * 1.01


def test_zero_and_one_are_exact_in_a_byte():
    levels = torch.tensor([0.0, 1.0, -0.5, 1.5])
    torch.testing.assert_close((to_byte(levels).float() - 64) / 127, levels, atol=0.5 / 127, rtol=0)
    assert ((to_byte(levels).float() - 64) / 127)[:2].tolist() == [0.0, 1.0]


# ---------------------------------------------------------------- what comes between the layers


class Tokens(nn.Module):
    """A block of a norm and an MLP behind a layer that trains, as in ConvNeXt and Swin."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.norm, self.mlp, self.head = nn.LayerNorm(8), Mlp(8, 32, drop=drop), nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x).flatten(2).transpose(1, 2)
        return self.head((x + self.mlp(self.norm(x))).mean(1))


def tokens(**options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, images = Tokens(**options).double(), torch.randn(2, 3, 16, 16).double()
    for module in (model.norm, model.mlp):
        module.requires_grad_(False)
    return model, images


def test_the_wide_map_is_not_kept():
    model, images = tokens()
    plain = activations(model, images)
    wide = 2 * 16 * 32 * 8
    assert activations(minica.lean(model, "none"), images) == plain
    assert activations(minica.lean(model), images) == plain - wide
    assert activations(minica.lean(model, "none", approximate=True), images) == plain - wide * 7 // 8
    assert minica.plain(model) is model and not any(isinstance(module, Lean) for module in model.modules())
    assert not [key for module in model.modules() for key in vars(module) if key.startswith("lean_")]


def hook(name, function, pre=False):
    def change(model):
        module = model.get_submodule(name)
        if pre:
            module.register_forward_pre_hook(lambda module, args: (function(args[0]),))
        else:
            module.register_forward_hook(lambda module, args, output: function(output))

    return change


def thaw(name):
    return lambda model: model.get_submodule(name).requires_grad_(True)


def load(name):
    def change(model):
        module = model.get_submodule(name)
        module.load_state_dict({key: 1.5 * value for key, value in module.state_dict().items()})

    return change


def replace(model):
    torch.manual_seed(3)
    model.mlp.fc1 = nn.Linear(8, 32).double().requires_grad_(False)


CHANGES = [
    hook("norm", lambda x: 2 * x),
    hook("norm", lambda x: x.mul_(2)),
    hook("mlp.fc1", lambda x: 2 * x),
    hook("mlp.fc1", lambda x: x.mul_(2)),
    hook("mlp.fc1", lambda x: x.tanh()),
    hook("mlp.fc1", lambda x: 2 * x, pre=True),
    hook("mlp.act", lambda x: 2 * x, pre=True),
    hook("mlp.act", lambda x: 2 * x),
    thaw("norm"),
    thaw("mlp.fc1"),
    thaw("mlp.fc2"),
    thaw("mlp"),
    load("norm"),
    load("mlp.fc1"),
    replace,
]


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_between_is_noticed(change, approximate):
    plain, images = tokens()
    model = minica.lean(copy.deepcopy(plain), approximate=approximate)
    before = gradients(model, images)
    for changed in (plain, model):
        change(changed)
    found, expected = gradients(model, images), gradients(plain, images)
    assert before.keys() != found.keys() or difference(found, before) > 1e-3
    if approximate:
        assert cosine(found, expected) > 0.9999
    else:
        assert difference(found, expected) < 1e-9


def test_dropout_and_stochastic_depth():
    plain, images = tokens(drop=0.5)
    expected = gradients(plain, images)
    assert difference(gradients(minica.lean(plain), images), expected) < 1e-9
    plain = minica.adapt(nets.disturb(timm.create_model("test_convnext", num_classes=5, drop_path_rate=0.5)).double())
    images = nets.images("test_convnext").double()
    expected = gradients(plain, images)
    assert difference(gradients(minica.lean(plain), images), expected) < 1e-9


def test_a_frozen_weight_that_changes_before_backward_is_refused():
    """As PyTorch refuses it in the plain form."""
    model, images = tokens()
    loss = minica.lean(model)(images).sum()
    with torch.no_grad():
        model.mlp.fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_twice_and_in_part():
    plain, images = tokens()
    model = minica.lean(copy.deepcopy(plain))
    for form in (plain, model):
        loss = form(images).square().sum()
        form.found = [
            *torch.autograd.grad(loss, [form.first.weight], retain_graph=True),
            *torch.autograd.grad(loss, list(form.head.parameters()), retain_graph=True),
            *torch.autograd.grad(loss, [form.first.weight, form.first.bias]),
        ]
    for found, expected in zip(model.found, plain.found, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["edge", "test_convnext"])
def test_two_passes_before_one_backward(name):
    plain, images = adapted(name)
    model, found = minica.lean(copy.deepcopy(plain)), []
    for form in (plain, model):
        found.append(gradients(form, images, lambda x, form=form: form(x) * form(x.flip(0).square())))
    assert difference(found[1], found[0]) < 1e-9


def test_torchvisions_squeeze_excite():
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=5, dropout=0.0).eval()
    nets.disturb(minica.adapt(model, "conv_parallel")).double()
    images = torch.randn(2, 3, 64, 64).double()
    expected, kept = gradients(model, images), activations(minica.lean(model, "none"), images)
    assert difference(gradients(minica.lean(model), images), expected) < 1e-9
    assert activations(model, images) < 0.6 * kept


def test_weights_given_for_one_call():
    plain, images = tokens()
    model = minica.lean(copy.deepcopy(plain))
    others = {key: 1.25 * value.detach() for key, value in plain.named_parameters() if "first" not in key}
    found = []
    for form in (plain, model):
        functional_call(form, others, images).square().sum().backward()
        found.append(form.first.weight.grad)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", nets.TINY)
def test_checkpointed_by_the_user(name):
    model, images = adapted(name)
    expected = gradients(model, images)
    minica.lean(model)
    for reentrant in (False, True):
        found = gradients(model, images, lambda x, how=reentrant: checkpoint(model, x, use_reentrant=how))
        assert difference(found, expected) < 1e-9


@pytest.mark.parametrize("name", ["test_convnext", "edge", "mobilenet", "swin"])
def test_bf16_autocast(name):
    """Every layer's output has its type in the plain form; gradients are those of the plain form within bf16's precision."""
    model, images = adapted(name, torch.float32)
    found, types = {}, {}
    for key, module in model.named_modules():
        module.register_forward_hook(lambda module, args, output, key=key: types.setdefault(key, []).append(output.dtype))
    for form in (minica.plain, minica.lean):
        form(model)
        with torch.autocast("cpu", torch.bfloat16):
            found[form] = gradients(model, images), activations(model, images)
    assert all(len(set(seen)) == 1 for seen in types.values())
    assert cosine(found[minica.lean][0], found[minica.plain][0]) > 0.99
    assert all(grad.dtype == torch.float32 for grad in found[minica.lean][0].values())
    assert found[minica.lean][1] < 0.6 * found[minica.plain][1]


class Overwritten(nn.Module):
    """It writes to what its linear layer has read, which a frozen one does not mind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear, self.act = nn.Linear(8, 4), nn.Linear(4, 16).requires_grad_(False), nn.SiLU()

    def forward(self, x):
        x = self.first(x)
        y = self.linear(x)
        x.mul_(2)
        return (self.act(y) + x.mean()).mean((1, 2))


def test_an_input_that_is_written_to_later():
    torch.manual_seed(0)
    plain, images = Overwritten().double(), torch.randn(2, 3, 8, 8).double()
    model = minica.lean(copy.deepcopy(plain))
    assert not model.linear.lean_again
    assert difference(gradients(model, images), gradients(plain, images)) < 1e-9


def test_wrong_words_are_refused():
    model, _ = tokens()
    with pytest.raises(ValueError, match="recompute"):
        minica.lean(model, "always")
    with pytest.raises(ValueError, match="approximate"):
        minica.lean(model, "stages", approximate=True)
    assert not any(isinstance(module, Lean) for module in model.modules())
