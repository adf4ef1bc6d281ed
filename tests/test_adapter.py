"""The adapter itself, and its counts in closed form."""

import pytest
import torch
from torch import nn

import minica
from minica import counting


@pytest.mark.parametrize(
    ("channels", "compression", "width"),
    [(64, 4, 16), (64, 1, 64), (2048, 8, 256), (40, 3, 10), (30, 4, 6), (7, 2, 1), (3, 100, 1), (64, 2.5, 16)],
)
def test_width_divides_and_does_not_exceed(channels, compression, width):
    assert counting.bottleneck_width(channels, compression) == width
    adapter = minica.ConvAdapter(channels, 5, compression=compression)
    assert adapter.down.out_channels == adapter.down.groups == width
    assert f"{channels} -> {width} -> 5" in repr(adapter)


@pytest.mark.parametrize("compression", [0.99, 0, -1, float("nan")])
def test_compression_below_one_is_refused(compression):
    with pytest.raises(ValueError, match="compression must be at least 1, got"):
        minica.ConvAdapter(8, 8, compression=compression)


@pytest.mark.parametrize("form", ["depthwise", "regular", "linear"])
@pytest.mark.parametrize("kernel_size", [1, 3, 7, (1, 7)])
@pytest.mark.parametrize("compression", [1, 2, 4])
def test_closed_form_counts(form, kernel_size, compression):
    adapter = minica.ConvAdapter(24, 36, kernel_size=kernel_size, compression=compression, form=form)
    parameters = sum(weight.numel() for weight in adapter.parameters())
    assert parameters == counting.adapter_parameters(24, 36, kernel_size=kernel_size, compression=compression, form=form)

    macs = 0
    for conv in (adapter.down, adapter.up):
        macs += conv.weight.numel() * 5 * 9  # every weight is used once at each of the output's pixels
    assert macs == counting.adapter_macs(24, 36, (5, 9), kernel_size=kernel_size, compression=compression, form=form)


def test_the_published_example_counts():
    # ResNet50's first bottleneck at gamma = 4: K^2 C + C/4 + C/4 * C + 2 C with C = 64, K = 3.
    assert counting.adapter_parameters(64, 64) == 576 + 16 + 1024 + 128 == 1744


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("same_padding", [False, True])
def test_any_size_asked_for(stride, kernel_size, same_padding):
    adapter = minica.ConvAdapter(4, 6, kernel_size=kernel_size, stride=stride, same_padding=same_padding, init="kaiming")
    for height in (1, 5, 8, 13):
        x = torch.randn(2, 4, height, 9)
        assert adapter(x).shape == (2, 6, -(-height // stride), -(-9 // stride))
        for out in (max(1, height // stride), -(-height // stride)):
            assert adapter(x, (out, 3)).shape == (2, 6, out, 3)


def test_it_computes_equation_two():
    torch.manual_seed(0)
    adapter = minica.ConvAdapter(8, 12, kernel_size=3, stride=2, compression=2, act_layer=nn.GELU, init="torch")
    with torch.no_grad():
        adapter.alpha.normal_()
    x = torch.randn(2, 8, 9, 11)
    down = nn.functional.conv2d(x, adapter.down.weight, adapter.down.bias, 2, 1, 1, groups=4)
    expected = adapter.alpha * adapter.up(nn.functional.gelu(down))
    torch.testing.assert_close(adapter(x), expected, rtol=1e-5, atol=1e-6)
    assert adapter.alpha.shape == (12, 1, 1)


def test_same_padding_sees_what_tensorflow_sees():
    """Aligned with the host's convolution, position by position."""
    from timm.layers import Conv2dSame

    host = Conv2dSame(4, 4, 3, stride=2, groups=4, bias=True)
    adapter = minica.ConvAdapter(4, 4, kernel_size=3, stride=2, compression=1, same_padding=True, act_layer=nn.Identity)
    with torch.no_grad():
        adapter.down.weight.copy_(host.weight)
        adapter.down.bias.copy_(host.bias)
        adapter.up.weight.copy_(torch.eye(4)[..., None, None])
    for size in (8, 9):
        x = torch.randn(1, 4, size, size)
        torch.testing.assert_close(adapter(x), host(x))


@pytest.mark.parametrize(
    ("init", "down", "up"), [("kaiming", 0.118, 0.177), ("trunc_normal", 0.0199, 0.0199), ("fan_out_per_group", 0.471, 0.177)]
)
def test_published_initialisations(init, down, up):
    """Standard deviations at 64 channels and gamma 4, as the formulas of the published code give them."""
    torch.manual_seed(0)
    adapters = [minica.ConvAdapter(64, 64, init=init) for _ in range(30)]
    weights = {name: torch.stack([getattr(a, name).weight for a in adapters]) for name in ("down", "up")}
    assert weights["down"].std().item() == pytest.approx(down, rel=0.03)
    assert weights["up"].std().item() == pytest.approx(up, rel=0.03)
    assert not any(conv.bias.any() for a in adapters for conv in (a.down, a.up))
    assert all(torch.equal(a.alpha, torch.ones(64, 1, 1)) for a in adapters)
