"""The Conv-Adapter of the paper's Equation 2, the forms that its Table 5 compares, and the published initialisations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .counting import FORMS, MOST, Kernel, bottleneck_width, check_choice, check_compression, check_kernel_size, check_whole
from .kernels import compressing_conv2d, scaled_conv1x1


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
        ValueError: for channels, a kernel size, stride or dilation that are no whole numbers of at least 1, a compression
            below 1, an activation that is none, an unknown form or an unknown initialisation.

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
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        dilation: Kernel = 1,
        form: str = "depthwise",
        init: str = "identity",
        same_padding: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice(form, "adapter form", FORMS)
        in_channels = check_whole(in_channels, "in_channels", 1, MOST)
        out_channels = check_whole(out_channels, "out_channels", 1, MOST)
        kernel_size, stride = check_kernel_size(kernel_size), check_kernel_size(stride, "stride")
        dilation = check_kernel_size(dilation, "dilation")
        kernel_size = 1 if form == "linear" else kernel_size
        width = bottleneck_width(in_channels, compression)
        groups, factory = width if form in ("depthwise", "spatial") else 1, dict(device=device, dtype=dtype)
        self.compression, self.form, self.same_padding = check_compression(compression), form, same_padding
        self.down = nn.Conv2d(in_channels, width, kernel_size, stride, dilation=dilation, groups=groups, **factory)
        self.act = _activation(act_layer)
        self.up = nn.Conv2d(width, out_channels, 1, **factory)
        self.alpha = nn.Parameter(torch.ones(out_channels, 1, 1, **factory))
        self.reset_parameters(init)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """What to add to a map of ``size`` = (height, width); without it, ``ceil(input / stride)``."""
        height, width = size or (-(-length // step) for length, step in zip(x.shape[-2:], self.down.stride, strict=True))
        if self.form != "spatial":
            return self._delta(x, (height, width))
        half = self._delta(F.avg_pool2d(x, 2, ceil_mode=True), (-(-height // 2), -(-width // 2)))
        return F.interpolate(half, (height, width))

    def _delta(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Equation 2: ``alpha * up(act(down(x)))``."""
        h = self.act(self._down(x, size))
        return scaled_conv1x1(h, self.up.weight, self.up.bias, self.alpha)

    def _down(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The first convolution, padded and cropped so that it gives exactly ``size``."""
        conv, (x, padding) = self.down, self._pad(x, size)
        h = compressing_conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
        return h if h.shape[-2:] == size else h[..., : size[0], : size[1]]

    def _pad(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """The map and the symmetric padding with which ``down`` gives at least ``size``.

        The host decides the size: an anti-aliasing pool floors an odd one, TensorFlow's padding rounds it up.
        """
        conv, before, beyond = self.down, [], []
        for axis in (0, 1):
            length, step = x.shape[axis - 2], conv.stride[axis]
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            total = (size[axis] - 1) * step + reach - length
            before.append(max(total if self.same_padding else reach - step + 1, 0) // 2)
            beyond.append(max(total - 2 * before[axis], 0))
        if any(beyond):
            x = F.pad(x, (0, beyond[1], 0, beyond[0]))
        return x, (before[0], before[1])

    def reset_parameters(self, init: str = "identity") -> None:
        """Start again from ``init``; see the class."""
        check_choice(init, "initialisation", ("identity", *INITS))
        nn.init.ones_(self.alpha)
        for conv in (self.down, self.up):
            INITS["kaiming" if init == "identity" else init](conv)
            if init != "torch":
                nn.init.zeros_(conv.bias)
        if init == "identity":
            nn.init.zeros_(self.up.weight)

    def extra_repr(self) -> str:
        width, form = self.down.out_channels, "" if self.form == "depthwise" else f", form={self.form}"
        return f"{self.down.in_channels} -> {width} -> {self.up.out_channels}, compression={self.compression:g}{form}"


def _activation(act_layer: Callable[[], nn.Module]) -> nn.Module:
    try:
        act = act_layer()
    except Exception as error:
        raise ValueError(f"act_layer must be a class such as nn.ReLU, got {act_layer!r} ({error}).") from error
    if not isinstance(act, nn.Module):
        raise ValueError(f"act_layer must give an nn.Module, as nn.ReLU does; {act_layer!r} gave {act!r}.")
    return act


# ---------------------------------------------------------------- initialisations


def _kaiming(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _kaiming_per_group(conv: nn.Conv2d) -> None:
    fan_out = conv.weight[0, 0].numel() * conv.out_channels / conv.groups
    nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)


# The published code initialises an adapter as the file of its backbone initialises every convolution.  All but "torch" set
# the biases to zero.
INITS = {
    "kaiming": _kaiming,  # the ResNet and CLIP files
    "fan_out_per_group": _kaiming_per_group,  # the EfficientNet file
    "trunc_normal": lambda conv: nn.init.trunc_normal_(conv.weight, std=0.02),  # the ConvNeXt file
    "torch_without_bias": nn.Conv2d.reset_parameters,  # the BiT file
    "torch": nn.Conv2d.reset_parameters,  # the Swin file and CLIP's attention pool leave PyTorch's default
}
