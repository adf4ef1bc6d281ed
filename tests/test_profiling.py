"""What autograd keeps of a training step."""

import torch
from nets import images, net, same, snapshot
from torch import nn

import minica
from minica.profiling import activations


def test_bytes_by_hand():
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(320, 7))
    image, relu, flat = 4 * x.numel(), 4 * 2 * 4 * 64, 4 * 2 * 5 * 64  # the ReLU's output is the next convolution's input
    assert activations(model, x) == image + relu + flat
    assert activations(model.to("meta"), x.to("meta")) == image + relu + flat, "no arithmetic is needed to count"
    assert activations(model.requires_grad_(False), x.to("meta")) == 0


def test_counting_changes_nothing():
    model = minica.tune(net("test_resnet"), "full")
    model.layer1.train()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    one, two, three = (activations(model, images("test_resnet", n)) for n in (1, 2, 3))
    assert three - two == two - one > 0.99 * one, "every image adds the same"
    assert same(model.state_dict(), before) and [module.training for module in model.modules()] == modes


def test_frozen_networks_keep_less():
    x = images("test_resnet")
    full, adapted, linear = (
        activations(minica.tune(net("test_resnet"), method), x) for method in ("full", "conv_adapter", "linear")
    )
    assert linear == 4 * 2 * net("test_resnet").num_features < adapted < full
    with torch.autocast("cpu", torch.bfloat16):
        assert activations(minica.tune(net("test_resnet"), "full"), x) < full
