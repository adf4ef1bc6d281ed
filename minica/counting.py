"""How many parameters and multiply-accumulates does an adapter have?  In closed form, without torch.

Every function takes plain integers, so that the counts can be checked by hand, in a spreadsheet or in a browser.
The symbols are the paper's: an adapter maps C_in to C_out channels through a bottleneck of C_in / gamma channels
with a K x K kernel (Section 3.3, Equation 2).
"""

from __future__ import annotations

import math

Kernel = int | tuple[int, int]


def bottleneck_width(in_channels: int, compression: float) -> int:
    """Channels inside the bottleneck: the largest divisor of ``in_channels`` not above ``in_channels / compression``.

    A grouped convolution needs a width that divides its input.  Where gamma divides C_in this is the paper's C_in / gamma;
    where it does not, it is the nearest width below that does.

    Raises:
        ValueError: if ``compression`` is below 1 (the bottleneck would be wider than its input) or not a number.
    """
    if not compression >= 1:  # written so that NaN is refused too
        raise ValueError(
            f"compression must be at least 1, got {compression!r}. It is the paper's gamma: the bottleneck has "
            f"in_channels / compression channels, so 1 keeps all {in_channels} of them and 4 keeps a quarter."
        )
    limit = max(1, int(in_channels / compression))
    return next(width for width in range(limit, 0, -1) if in_channels % width == 0)


def kernel_area(kernel_size: Kernel) -> int:
    """Taps of a kernel: K * K, or the product for a rectangular one."""
    return kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)


def adapter_parameters(
    in_channels: int, out_channels: int, *, kernel_size: Kernel = 3, compression: float = 4, form: str = "depthwise"
) -> int:
    """Parameters of one adapter, biases and alpha included.

    ``K^2 C_in + w`` for the grouped down-projection, ``w C_out + C_out`` for the 1x1 up-projection and ``C_out`` for alpha,
    with ``w = bottleneck_width(C_in, gamma)``.  The paper's Table 9 leaves the biases out; its other tables are reproduced
    only with them.

    ``form`` is the ablation of Table 5: ``"depthwise"``, ``"regular"`` (an ungrouped K x K down-projection), ``"linear"`` (an
    ungrouped 1x1 one) or ``"spatial"`` (depth-wise, at half the resolution).
    """
    width = bottleneck_width(in_channels, compression)
    down = {
        "depthwise": kernel_area(kernel_size) * in_channels,
        "spatial": kernel_area(kernel_size) * in_channels,
        "regular": kernel_area(kernel_size) * in_channels * width,
        "linear": in_channels * width,
    }[form]
    return down + width + width * out_channels + 2 * out_channels


def adapter_macs(
    in_channels: int,
    out_channels: int,
    out_size: tuple[int, int],
    *,
    kernel_size: Kernel = 3,
    compression: float = 4,
    form: str = "depthwise",
) -> int:
    """Multiply-accumulates of one adapter for one image whose adapted map is ``out_size`` = (height, width) in pixels.

    Both convolutions run at the output's resolution, because the first one does the striding.  Biases, the activation and
    alpha (which folds into the up-projection) are not multiply-accumulates and are not counted.
    """
    width = bottleneck_width(in_channels, compression)
    weights = adapter_parameters(in_channels, out_channels, kernel_size=kernel_size, compression=compression, form=form)
    if form == "spatial":
        out_size = (-(-out_size[0] // 2), -(-out_size[1] // 2))
    return (weights - width - 2 * out_channels) * math.prod(out_size)


def adapter_operations(
    in_channels: int,
    out_channels: int,
    out_size: tuple[int, int],
    *,
    kernel_size: Kernel = 3,
    compression: float = 4,
    form: str = "depthwise",
    relu: bool = True,
) -> int:
    """The operations that the paper's Table 10 counts for one adapter and one image; divide by 1e9 for its "GFLOPs".

    Multiply-accumulates count one each, and so do both convolutions' biases at every pixel and every element that passes a
    ReLU.  Other activations (``relu=False``: ConvNeXt's GELU) and alpha count nothing.
    """
    width = bottleneck_width(in_channels, compression)
    options = dict(kernel_size=kernel_size, compression=compression, form=form)
    macs = adapter_macs(in_channels, out_channels, out_size, **options)
    return macs + (width + out_channels + (width if relu else 0)) * math.prod(out_size)


def block_weights(
    tuning: str,
    in_channels: int,
    mid_channels: int,
    out_channels: int,
    *,
    kernel_size: Kernel = 3,
    compression: float = 4,
) -> int:
    """Table 9: weights that train in one residual bottleneck of 1x1, K x K and 1x1 convolutions; no biases, no alpha.

    Args:
        tuning: one of the four schemes, or ``"full"`` for the block's own three convolutions.

    Raises:
        ValueError: for another name.
    """
    if tuning == "full":
        spatial = kernel_area(kernel_size) * mid_channels**2
        return in_channels * mid_channels + spatial + mid_channels * out_channels
    ends = {
        "conv_parallel": (mid_channels, mid_channels),
        "conv_sequential": (mid_channels, mid_channels),
        "residual_parallel": (in_channels, out_channels),
        "residual_sequential": (out_channels, out_channels),
    }
    if tuning not in ends:
        raise ValueError(f"unknown tuning {tuning!r}; Table 9 has full, {', '.join(ends)}.")
    # On a map of one pixel every weight is used once.
    return adapter_macs(*ends[tuning], (1, 1), kernel_size=kernel_size, compression=compression)
