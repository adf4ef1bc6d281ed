"""The folded copy computes the same, in fewer operations, and goes where PyTorch goes."""

import warnings

import onnx
import onnxruntime
import pytest
import torch
from nets import FAMILIES, TINY, disturb, images, net, same, snapshot
from torch import nn

import minica

SCHEMES = tuple(minica.SCHEMES)
pytestmark = pytest.mark.filterwarnings("ignore:.*of this backbone")


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_the_same(family):
    # In double precision, where a difference would be a mistake and not the order of sums.
    scheme = SCHEMES[FAMILIES.index(family) % 4]
    model, x = disturb(minica.adapt(net(family).double(), scheme, init="published")), images(family).double()
    before, expected = snapshot(model), model(x)
    folded = minica.fold(model)
    torch.testing.assert_close(folded(x), expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())
    assert not folded(x).requires_grad
    # MixNet's mixed convolutions are several, which one norm cannot go into.
    assert norms(folded) == (34 if family == "mixnet" else 0)
    assert same(snapshot(model), before) and torch.equal(model(x), expected), "the original is untouched"
    assert len(minica.adapters(folded)) == len(minica.adapters(model))
    assert all(adapter.alpha is None for adapter in minica.adapters(folded).values())


@pytest.mark.parametrize("method", ["full", "linear"])
def test_any_network_folds(method):
    model, x = minica.tune(net("edge"), method).train(), images("edge", 4)
    model(x)  # statistics move where they train
    folded = minica.fold(model)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert not norms(folded) and not any(module.training for module in folded.modules())


def test_a_norm_whose_convolution_others_read_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
            self.second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
            nn.init.uniform_(self.norm.running_var, 1, 2)
            nn.init.uniform_(self.second[1].running_mean)

        def forward(self, x):
            h = self.conv(x)
            return self.fc(self.second(h + self.norm(h)).mean((2, 3)))

    model, x = Shared().eval(), torch.randn(2, 3, 16, 16)
    folded = minica.fold(model)
    torch.testing.assert_close(folded(x), model(x))
    assert isinstance(folded.norm, nn.BatchNorm2d) and isinstance(folded.second[1], nn.Identity)


def test_sets_share_a_folded_backbone():
    model, x = net("basic"), images("basic")
    expected = {None: model(x)}
    for name, classes in (("a", 5), ("b", 9)):
        expected[name] = disturb(minica.adapt(model, "conv_parallel", name=name, num_classes=classes))(x)
    folded = minica.fold(model)
    for name in ("b", "a", None, "b"):
        got = minica.switch(folded, name)(x)
        torch.testing.assert_close(got, expected[name], rtol=1e-4, atol=1e-5)
        assert not got.requires_grad
    assert not norms(folded)


@pytest.mark.parametrize(
    ("family", "own"), [("basic", ["layer1.0.bn1", "layer2"]), ("bit", ["stages.0.blocks.0.conv2", "norm"])]
)
@pytest.mark.parametrize("second", [False, True])
def test_layers_that_a_set_has_for_its_own_are_kept_for_it(family, own, second):
    model, x = net(family).double(), images(family).double()
    expected = {None: model(x), "a": disturb(minica.adapt(model, name="a", train=own).float()).double()(x)}
    if second:
        expected["b"] = disturb(minica.adapt(model, name="b", train=own[:1]).float()).double()(x)
    folded = minica.fold(model)
    for name in (*expected, *expected):
        torch.testing.assert_close(minica.switch(folded, name)(x), expected[name], rtol=1e-6, atol=1e-6)
    assert norms(folded) < norms(model) or family == "bit"  # which has GroupNorm


def test_a_folded_copy_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="nothing in this model trains.*a folded copy is for inference"):
        minica.save_adapter(minica.fold(minica.adapt(net("basic"))), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "scheme"), [*zip(TINY, SCHEMES, strict=False)])
def test_export_and_compile(name, scheme, tmp_path):
    model, x = disturb(minica.adapt(net(name), scheme)), images(name, 1)
    expected, folded = model(x).detach(), minica.fold(model)
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(folded, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    graph = onnx.load(tmp_path / "net.onnx")
    assert not [node for node in graph.graph.node if node.op_type == "BatchNormalization"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)
