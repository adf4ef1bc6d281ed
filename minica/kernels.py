"""The convolutions of an adapter, each in the form for which PyTorch has the fastest kernel, which matters on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def compressing_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """``F.conv2d`` with the same arguments; on a CPU as a depth-wise convolution and a sum over each group's channels.

    This form applies where every group of gamma = C_in / groups channels gives one output channel.  PyTorch's depth-wise
    kernels for CPUs are 1.1 to 10 times faster than its grouped ones, by shape and memory format, forward and backward
    together.

    Shapes: ``x`` (N, C_in, H, W), ``weight`` (C_out, gamma, K, K), ``bias`` (C_out,); returns (N, C_out, H', W').
    """
    out_channels, gamma, *kernel_size = weight.shape
    if x.device.type != "cpu" or groups != out_channels or gamma == 1:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    channels = groups * gamma
    h = F.conv2d(x, weight.reshape(channels, 1, *kernel_size), None, stride, padding, dilation, channels)
    bias = bias.to(h.dtype)  # under bf16 autocast a float32 bias would promote the map
    if h.is_contiguous():
        return h.unflatten(1, (groups, gamma)).sum(2) + bias[:, None, None]
    # In channels_last a product with ones is three times as fast as sum().
    summed = h.permute(0, 2, 3, 1).unflatten(3, (groups, gamma)) @ h.new_ones(gamma)
    return (summed + bias).permute(0, 3, 1, 2)


def scaled_conv1x1(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """``scale * F.conv2d(x, weight, bias)`` with the scale folded into the 1x1 kernel.

    The folded form keeps one feature map less for backward, and under bf16 autocast a float32 scale does not promote the map.

    Shapes: ``x`` (N, C_in, H, W), ``weight`` (C_out, C_in, 1, 1), ``bias`` (C_out,), ``scale`` (C_out, 1, 1).
    """
    weight, bias = weight * scale[..., None], bias * scale.flatten()
    channels_last_on_cpu = x.device.type == "cpu" and not x.is_contiguous()
    return F.conv2d(x, weight, bias, dilation=onednn_dilation((1, 1), (1, 1)) if channels_last_on_cpu else 1)


def onednn_dilation(kernel_size: Pair, dilation: Pair) -> Pair:
    """The dilation with which PyTorch runs a convolution on a CPU fastest; the result is the same as with ``dilation``.

    A 1x1 kernel has no neighbours, so its dilation changes nothing but the kernel that PyTorch takes.  With one thread and
    fewer than 16 images that is a matrix product, unless the convolution is dilated: then it is oneDNN, which in channels_last
    needs 10 to 30 % less time, and none to fill gradients with zeros first.
    """
    return (2, 2) if kernel_size == (1, 1) else dilation
