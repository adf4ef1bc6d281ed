"""What autograd keeps of a training step."""

import torch
from nets import images, net, same, snapshot
from torch import nn

import minica
from minica.course import memory
from minica.profiling import activations


def test_bytes_by_hand():
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(320, 7))
    image, relu, flat = 4 * x.numel(), 4 * 2 * 4 * 64, 4 * 2 * 5 * 64  # the ReLU's output is the next convolution's input
    assert activations(model, x) == image + relu + flat
    assert memory.activations_by_module(model, x) == {"0": image, "1": relu, "4": flat}, "each by the first that kept it"
    assert activations(model.to("meta"), x.to("meta")) == image + relu + flat, "no arithmetic is needed to count"
    assert activations(model.requires_grad_(False), x.to("meta")) == 0


def test_counting_changes_nothing():
    model = minica.tune(net("test_resnet"), "full")
    model.layer1.train()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    one, two, three = (activations(model, images("test_resnet", n)) for n in (1, 2, 3))
    assert three - two == two - one > 0.99 * one, "every image adds the same"
    assert same(model.state_dict(), before) and [module.training for module in model.modules()] == modes


def test_who_keeps_what_in_every_form():
    model, x = net("test_convnext").to("meta"), images("test_convnext").to("meta")
    found = memory.needs(model, x, scheme="conv_parallel", compression=4)
    again = minica.adapt(net("test_convnext").to("meta"), "conv_parallel", 4)
    for form, options in {"masks": ("none",), "recompute": (), "approximate": ("auto", True)}.items():
        assert found.total(form) == activations(minica.lean(again, *options), x)
    assert found.total("plain") == activations(minica.plain(again), x)
    assert found.full == activations(minica.tune(net("test_convnext").to("meta"), "full"), x)
    assert all(len(sizes) == len(found.blocks) == 10 for rows in found.forms.values() for sizes in rows.values())
    assert sum(found.forms["recompute"]["activations"]) < 0.1 * sum(found.forms["plain"]["activations"])


def test_folding_and_masks_take_norms_and_activations():
    found = memory.needs(net("test_resnet").to("meta"), images("test_resnet").to("meta"), scheme="conv_parallel")
    norms, acts = ({form: sum(rows[kind]) for form, rows in found.forms.items()} for kind in ("norms", "activations"))
    assert norms["plain"] > 0 == norms["folded"] and acts["folded"] >= acts["plain"] > acts["masks"] > 0


def test_frozen_networks_keep_less():
    x = images("test_resnet")
    full, adapted, linear = (
        activations(minica.tune(net("test_resnet"), method), x) for method in ("full", "conv_adapter", "linear")
    )
    assert linear == 4 * 2 * net("test_resnet").num_features < adapted < full
    with torch.autocast("cpu", torch.bfloat16):
        assert activations(minica.tune(net("test_resnet"), "full"), x) < full
