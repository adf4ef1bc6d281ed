"""Several sets of adapters on one backbone: each with a classifier of its own, one backbone in memory."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from nets import disturb, images, net, same, snapshot

import minica
from minica.recipe import classifier_names


def logits(model, family, name):
    with minica.switched(model, name), torch.no_grad():
        return model(images(family))


@pytest.mark.parametrize("family", ["basic", "convnext", "edge", "clip"])
def test_every_set_has_its_own_number_of_classes(family, tmp_path):
    model, x = net(family, num_classes=3), images(family)
    plain, backbone = model(x).detach(), dict(model.named_parameters())
    disturb(minica.adapt(model, "residual_parallel", 4, name="a"))
    disturb(minica.adapt(model, "residual_parallel", 8, name="b", num_classes=16))
    minica.save_adapter(model, tmp_path)
    expected = {None: plain} | {name: logits(model, family, name) for name in ("a", "b")}
    assert {name: y.shape[1] for name, y in expected.items()} == {None: 3, "a": 3, "b": 16}
    for name in ("a", None, "b", "a", "b", None):
        assert minica.switch(model, name) is model
        assert torch.equal(model(x), expected[name])
        assert model.num_classes == expected[name].shape[1]
        heads = [model.get_submodule(name) for name in classifier_names(model)]
        assert {weight.requires_grad for head in heads for weight in head.parameters()} == {name is not None}
    now = dict(model.named_parameters())
    assert all(now[key] is backbone[key] for key in backbone), "one backbone in memory, and it is the one that came"

    fresh = disturb(minica.adapt(net(family, num_classes=3), "residual_parallel", 4, name="a"))
    minica.load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(x), expected["b"]) and torch.equal(logits(fresh, family, "a"), expected["a"])


def test_switched_comes_back_however_it_ends():
    model, x = net("basic"), images("basic")
    plain = model(x)
    adapted = disturb(minica.adapt(model, name="a"))(x)
    disturb(minica.adapt(model, name="b", num_classes=2))
    minica.switch(model, "a")
    F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    grads = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.requires_grad}
    with pytest.raises(KeyboardInterrupt), minica.switched(model, None) as same_model:
        assert same_model is model and torch.equal(model(x), plain)
        with minica.switched(model, "b"):
            assert model(x).shape == (2, 2)
        assert torch.equal(model(x), plain)
        raise KeyboardInterrupt
    assert torch.equal(model(x), adapted)
    assert all(torch.equal(model.get_parameter(key).grad, grad) for key, grad in grads.items()), "a step can still follow"
    with pytest.raises(ValueError, match="no adapters named 'c'; the model has a, b"), minica.switched(model, "c"):
        pass
    assert torch.equal(model(x), adapted)


def test_an_optimizer_stays_with_its_set():
    model, x = net("basic"), images("basic")
    optimizers = {}
    for name, classes in (("a", 5), ("b", 7)):
        minica.adapt(model, name=name, num_classes=classes)
        optimizers[name] = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=1e-3)
    for name in ("a", "b", "a"):
        before = {other: logits(model, "basic", other) for other in (None, "a", "b")}
        minica.switch(model, name).train()
        F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
        optimizers[name].step()
        model.zero_grad()
        model.eval()
        for other, y in before.items():
            assert torch.equal(logits(model, "basic", other), y) == (other != name)


def test_norms_belong_to_the_set_that_trains_them(tmp_path):
    x = images("convnext")
    model = net("convnext")
    plain = model(x)
    disturb(minica.tune(model, "conv_adapter", norms="all", name="a", scheme="residual_parallel"))
    first = model(x)
    minica.save_adapter(model, tmp_path / "a")
    second = disturb(minica.adapt(model, "residual_parallel", name="b", num_classes=4))(x)
    minica.save_adapter(model, tmp_path / "b")
    for name, expected in (("a", first), (None, plain), ("b", second), ("a", first)):
        assert torch.equal(logits(model, "convnext", name), expected)
    minica.switch(model, "a")
    minica.save_adapter(model, tmp_path / "a again")
    for folder in ("a", "a again"):  # each set fits the plain backbone, whatever was trained beside the other
        assert torch.equal(minica.load_adapter(net("convnext"), tmp_path / folder)(x), first)
    fresh = minica.load_adapter(net("convnext"), tmp_path / "a")
    assert torch.equal(minica.load_adapter(fresh, tmp_path / "b")(x), second)


def test_copies_and_detached_models(tmp_path):
    model, x = net("basic"), images("basic")
    before, plain = snapshot(model), model(x)
    disturb(minica.adapt(model, name="a", num_classes=2))
    disturb(minica.adapt(model, name="b", num_classes=9))
    expected = {name: logits(model, "basic", name) for name in ("a", "b", None)}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for name, y in expected.items():
            assert torch.equal(logits(copied, "basic", name), y)
        minica.switch(copied, "a").double()  # what is put aside follows when it comes back
        assert minica.switch(copied, "b")(x.double()).dtype == torch.float64
    minica.detach(minica.switch(model, None))
    assert same(model.state_dict(), before) and torch.equal(model(x), plain) and model.num_classes == 5


@pytest.mark.parametrize("number", [0, -1, 2.5, "ten", True])
def test_impossible_numbers_of_classes(number):
    model = net("basic")
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"num_classes must be a whole number, at least 1, got {number!r}"):
        minica.adapt(model, num_classes=number)
    with pytest.raises(ValueError, match="ResNet has no linear classifier to be replaced"):
        minica.adapt(net("basic", num_classes=0), num_classes=3)
    assert same(snapshot(model), before) and not minica.adapters(model)
