"""The adapter itself, and its counts in closed form."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minica
from minica import counting, kernels


@pytest.mark.parametrize(
    ("channels", "compression", "width"),
    [(64, 4, 16), (64, 1, 64), (2048, 8, 256), (40, 3, 10), (30, 4, 6), (7, 2, 1), (3, 100, 1), (64, 2.5, 16)],
)
def test_width_divides_and_does_not_exceed(channels, compression, width):
    assert counting.bottleneck_width(channels, compression) == width
    adapter = minica.ConvAdapter(channels, 5, compression=compression)
    assert adapter.down.out_channels == adapter.down.groups == width
    assert f"{channels} -> {width} -> 5" in repr(adapter)


NO_NUMBERS = [None, "4", "", b"x", [], (), {}, [4], True, 1j, float("nan"), float("inf"), torch.tensor(4)]
NO_WHOLE_NUMBERS = [*NO_NUMBERS, 0, -1, 2.0, 2.5, np.float32(2), 10**11]
NO_SIZES = [*NO_WHOLE_NUMBERS, (1, 2, 3, 4), (3,), (3, 0), (3, "3"), (3, True), ((3, 3), 3), {3: 3, 5: 5}, "33", b"33", 10**4]
WRONG = {
    "compression": [*NO_NUMBERS, 0.99, 0, -1],
    "in_channels": NO_WHOLE_NUMBERS,
    "out_channels": [*NO_WHOLE_NUMBERS, (8, 8)],
    "kernel_size": NO_SIZES,
    "stride": NO_SIZES,
    "dilation": NO_SIZES,
    "act_layer": [None, "relu", 3, nn.ReLU(), int, F.relu, nn.MultiheadAttention],
    "form": [None, "", "Depthwise", 3, [], {}, ["regular"], np.array(["regular", "linear"]), b"regular"],
    "init": [None, "", "zeros", 3, [], {}, ["torch"], np.array(["torch", "kaiming"]), b"torch"],
}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_arguments_are_refused_by_name(argument, value):
    called = {"form": "adapter form", "init": "initialisation"}.get(argument, argument)
    with pytest.raises(ValueError, match=re.escape(called)) as raised:
        minica.ConvAdapter(**{"in_channels": 8, "out_channels": 8, argument: value})
    assert repr(value) in str(raised.value), "what was given"
    if argument in ("form", "kernel_size", "in_channels", "compression", "out_channels"):
        with pytest.raises(ValueError, match=re.escape(called)):
            counting.adapter_parameters(**{"in_channels": 8, "out_channels": 8, argument: value})


@pytest.mark.parametrize("compression", [2, 2.0, np.int64(2), np.float32(2), Fraction(2)])
def test_numbers_of_any_type_are_accepted(compression):
    sizes = dict(in_channels=np.int64(8), out_channels=np.uint8(6), kernel_size=(np.int32(3), 5), stride=[np.int8(2), 1])
    adapter = minica.ConvAdapter(**sizes, compression=compression)
    assert type(adapter.compression) in (int, float) and adapter.compression == 2
    assert adapter.down.weight.shape == (4, 2, 3, 5) and adapter.up.weight.shape == (6, 4, 1, 1)
    plain = [adapter.down.in_channels, adapter.up.out_channels, *adapter.down.kernel_size, *adapter.down.stride]
    assert {type(number) for number in plain} == {int}, "no number of NumPy's is kept"
    assert counting.adapter_parameters(8, 6, kernel_size=(3, 5), compression=compression) == sum(
        weight.numel() for weight in adapter.parameters()
    )


def test_checked_values_come_back_as_plain_numbers():
    assert [counting.check_whole(value, "n", 0, 9) for value in (0, np.int64(9))] == [0, 9]
    with pytest.raises(ValueError, match="n must be a whole number, from 0 to 9, got 10"):
        counting.check_whole(10, "n", 0, 9)
    with pytest.raises(ValueError, match="n must be a whole number, at least 1, got True"):
        counting.check_whole(True, "n", 1)
    assert counting.check_kernel_size([3, np.int64(5)]) == (3, 5) and counting.check_kernel_size(np.int64(7)) == 7


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


# ---------------------------------------------------------------- the CPU's kernels compute what PyTorch's one operation does


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (8, 4), (8, 1)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((1, 5), (2, 1), (1, 2)), ((1, 1), (2, 2), (1, 1))]
)
def test_the_compressing_convolution(layout, channels, groups, kernel, stride, dilation):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 9, 11, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(groups, channels // groups, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(groups, dtype=torch.float64, requires_grad=True)
    padding = (kernel[0] // 2, kernel[1] // 2)
    found, expected = (
        convolve(x, weight, bias, stride, padding, dilation, groups) for convolve in (kernels.compressing_conv2d, F.conv2d)
    )
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), (x, weight, bias)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "stride"), [(3, (1, 1)), (3, (2, 2)), (5, (1, 1))])
def test_the_compressing_convolution_under_autocast(layout, size, stride):
    """In the type that the maps have, whichever is fastest inside, and close to float32 with its gradients."""
    torch.manual_seed(0)
    x, found = torch.randn(2, 8, 9, 11).contiguous(memory_format=layout), []
    weight, bias = torch.randn(4, 2, size, size), torch.randn(4)
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
        with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
            y = kernels.compressing_conv2d(leaves[0].to(dtype), *leaves[1:], stride, (size // 2, size // 2), (1, 1), 4)
        assert y.dtype == dtype
        found.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
    for exact, short in zip(*found, strict=True):
        assert (short.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_scaled_convolution(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 11).contiguous(memory_format=layout)
    conv, scale = nn.Conv2d(4, 6, 1), torch.randn(6, 1, 1)
    found = kernels.scaled_conv1x1(x, conv.weight, conv.bias, scale)
    torch.testing.assert_close(found, scale * conv(x), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.scaled_conv1x1(x, conv.weight, conv.bias, scale).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", counting.FORMS)
def test_bf16_autocast_stays_bf16(form, layout):
    adapter = minica.ConvAdapter(8, 6, form=form, init="kaiming").to(memory_format=layout)
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        low = adapter(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), adapter(x), rtol=0.05, atol=0.05)
