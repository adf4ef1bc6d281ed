"""What is a Conv-Adapter?  Equation 2 of the paper, and the forms its ablation compares (Table 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .counting import Kernel, bottleneck_width, kernel_area

FORMS = ("depthwise", "regular", "linear", "spatial")


def _kaiming(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)


def _trunc_normal(conv: nn.Conv2d) -> None:
    nn.init.trunc_normal_(conv.weight, std=0.02)
    nn.init.zeros_(conv.bias)


def _fan_out_per_group(conv: nn.Conv2d) -> None:
    fan_out = kernel_area(conv.kernel_size) * conv.out_channels / conv.groups
    nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
    nn.init.zeros_(conv.bias)


def _torch_without_bias(conv: nn.Conv2d) -> None:
    conv.reset_parameters()
    nn.init.zeros_(conv.bias)


# In the published code the initialisation of an adapter is whatever its backbone's file does to every convolution.
INITS = {
    "kaiming": _kaiming,  # the ResNet and CLIP files
    "fan_out_per_group": _fan_out_per_group,  # the EfficientNet file
    "trunc_normal": _trunc_normal,  # the ConvNeXt file
    "torch_without_bias": _torch_without_bias,  # the BiT file
    "torch": nn.Conv2d.reset_parameters,  # the Swin file and CLIP's attention pool leave PyTorch's default
}


def onednn_dilation(kernel_size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """A dilation that makes no difference, but makes PyTorch take oneDNN for a 1x1 convolution on a CPU.

    With one thread and fewer than 16 images it takes a matrix product unless the convolution is dilated.  In channels_last
    oneDNN needs 10 to 30 % less time, and none for the zeros that the other fills its gradients with first.
    """
    return (2, 2) if kernel_size == (1, 1) else dilation


class ConvAdapter(nn.Module):
    """A bottleneck of two convolutions that learns what to add to a frozen feature map.

    ``delta = alpha * up(act(down(x)))``: a K x K convolution with C_in / gamma groups compresses the channels and sees the
    neighbourhood, a 1x1 convolution expands them again, and ``alpha`` scales every output channel (Equation 2 and
    Section 3.3).  Both convolutions have biases, as the parameter counts of the paper's tables require.

    Args:
        in_channels: channels of the map that is read, C_in.
        out_channels: channels of the map that is written to, C_out.
        kernel_size: K, the kernel of the adapted convolution, so that both see the same neighbourhood.
        stride: the stride of the adapted part.
        compression: gamma, at least 1.  The bottleneck has :func:`~minica.counting.bottleneck_width` channels.
        act_layer: the activation between the two convolutions; the paper takes the backbone's.
        dilation: the dilation of the adapted convolution.
        form: ``"depthwise"`` (the paper's choice), or one of Table 5's ablations: a ``"regular"`` or ``"linear"`` (1x1)
            down-projection, or ``"spatial"``: at half the resolution, as TinyTL does, and enlarged again.
        init: ``"identity"`` (the up-projection starts at zero, so the backbone's output does not change) or one of the
            published code's, :data:`INITS`.
        same_padding: align the kernel as TensorFlow does, for hosts that carry TensorFlow's weights.

    Raises:
        ValueError: for a compression below 1, an unknown form or an unknown initialisation.

    Shapes: ``(N, C_in, H, W) -> (N, C_out, H', W')`` with ``H' = ceil(H / stride)`` unless ``size`` asks for another.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Kernel = 3,
        stride: Kernel = 1,
        compression: float = 4,
        act_layer: type[nn.Module] = nn.ReLU,
        dilation: Kernel = 1,
        form: str = "depthwise",
        init: str = "identity",
        same_padding: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown adapter form {form!r}; choose one of {', '.join(FORMS)}.")
        width = bottleneck_width(in_channels, compression)
        self.compression, self.form, self.same_padding = compression, form, same_padding
        self.down = nn.Conv2d(
            in_channels,
            width,
            1 if form == "linear" else kernel_size,
            stride,
            dilation=dilation,
            groups=width if form in ("depthwise", "spatial") else 1,
            device=device,
            dtype=dtype,
        )
        self.act = act_layer()
        self.up = nn.Conv2d(width, out_channels, 1, device=device, dtype=dtype)
        self.alpha = nn.Parameter(torch.ones(out_channels, 1, 1, device=device, dtype=dtype))
        self.reset_parameters(init)

    def reset_parameters(self, init: str = "identity") -> None:
        """Start again from ``init``; see the class."""
        if init != "identity" and init not in INITS:
            raise ValueError(f"unknown initialisation {init!r}; choose one of identity, {', '.join(INITS)}.")
        nn.init.ones_(self.alpha)
        for conv in (self.down, self.up):
            INITS["kaiming" if init == "identity" else init](conv)
        if init == "identity":
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """What to add to a map of ``size`` = (height, width); without it, ``ceil(input / stride)``."""
        if self.form == "spatial":
            size = size or tuple(-(-length // step) for length, step in zip(x.shape[-2:], self.down.stride, strict=True))
            half = (-(-size[0] // 2), -(-size[1] // 2))
            return F.interpolate(self._delta(F.avg_pool2d(x, 2, ceil_mode=True), half), size)
        return self._delta(x, size)

    def _delta(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        hidden = self.act(self._down(x, size))
        # alpha * up(h), with alpha folded into the 1x1 kernel: the same mathematics, one map less to keep for backward,
        # and under bf16 autocast the float32 alpha does not promote the feature map.
        weight, bias = self.up.weight * self.alpha[..., None], self.up.bias * self.alpha.flatten()
        fast = hidden.device.type == "cpu" and not hidden.is_contiguous()  # in channels_last
        return F.conv2d(hidden, weight, bias, dilation=onednn_dilation((1, 1), (1, 1)) if fast else 1)

    def _down(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        """The first convolution, padded so that it gives exactly ``size``.

        The host decides the size: an anti-aliasing pool floors an odd one, TensorFlow's padding rounds it up.
        """
        conv, before, beyond, out = self.down, [], [], []
        for axis in (0, 1):
            length, step = x.shape[axis - 2], conv.stride[axis]
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            out.append(size[axis] if size is not None else -(-length // step))
            total = (out[axis] - 1) * step + reach - length
            before.append(max(total if self.same_padding else reach - step + 1, 0) // 2)
            beyond.append(max(total - 2 * before[axis], 0))
        if any(beyond):
            x = F.pad(x, (0, beyond[1], 0, beyond[0]))
        h = self._convolve(x, before)
        return h if h.shape[-2:] == tuple(out) else h[..., : out[0], : out[1]]

    def _convolve(self, x: Tensor, padding: list[int]) -> Tensor:
        """The down-projection: on a CPU a depth-wise convolution and a sum over each group of gamma channels.

        It is the same as the published convolution of C / gamma groups, with the same weights.  PyTorch's depth-wise kernels
        for CPUs are 1.1 to 10 times faster than its grouped ones, by shape and memory format, forward and backward together.
        """
        conv, channels = self.down, self.down.in_channels
        gamma = channels // conv.groups
        if x.device.type != "cpu" or conv.groups != conv.out_channels or gamma == 1:
            return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
        kernels = conv.weight.reshape(channels, 1, *conv.kernel_size)
        h = F.conv2d(x, kernels, None, conv.stride, padding, conv.dilation, channels)
        bias = conv.bias.to(h.dtype)  # under bf16 autocast a float32 bias would promote the map
        if h.is_contiguous():
            return h.unflatten(1, (conv.groups, gamma)).sum(2) + bias[:, None, None]
        summed = h.permute(0, 2, 3, 1).unflatten(3, (conv.groups, gamma)) @ h.new_ones(gamma)  # 3 times as fast as sum()
        return (summed + bias).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        width, form = self.down.out_channels, "" if self.form == "depthwise" else f", form={self.form}"
        return f"{self.down.in_channels} -> {width} -> {self.up.out_channels}, compression={self.compression:g}{form}"
