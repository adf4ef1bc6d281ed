"""The size of an adapter in closed form (parameters, multiply-accumulates), and the checks of its arguments; without torch.

Counts take plain integers, so that they can be checked by hand, in a spreadsheet or in a browser.  The symbols are the
paper's: an adapter maps C_in to C_out channels through a bottleneck of C_in / gamma channels with a K x K kernel (Section
3.3, Equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

Kernel = int | tuple[int, int]

FORMS = ("depthwise", "regular", "linear", "spatial")  # the paper's adapter, and what its Table 5 compares

MOST = 1_000_000  # channels; far above any network's, so that a typing error does not exhaust the memory


# ---------------------------------------------------------------- checks of arguments


def check_whole(value: object, name: str, least: int, most: int | None = None) -> int:
    """``value`` as an ``int``, if it is a whole number (of Python or NumPy, no ``bool``) from ``least`` to ``most``.

    Raises:
        ValueError: if it is not; the message starts with the argument's ``name``.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return int(value)
    limits = f"at least {least}" if most is None else f"from {least} to {most:,}"
    raise ValueError(f"{name} must be a whole number, {limits}, got {value!r}.")


def check_kernel_size(value: object, name: str = "kernel_size", most: int = 1_000) -> Kernel:
    """``value`` as an ``int`` or a pair of them, if it is the size of a kernel: (height, width), or one number for both.

    Raises:
        ValueError: if it is neither a whole number from 1 to ``most`` nor a pair of such.
    """
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    try:
        sides = [check_whole(side, name, 1, most) for side in (value if pair else [value])]
    except ValueError:
        message = f"{name} must be a whole number from 1 to {most:,}, or a pair (height, width) of them, got {value!r}."
        raise ValueError(message) from None
    return (sides[0], sides[1]) if pair else sides[0]


def check_choice(value: object, what: str, choices: Iterable[str]) -> str:
    """``value``, if it is one of these names.

    Raises:
        ValueError: if it is not; the message says ``what`` is unknown and lists the choices.
    """
    names = list(choices)
    if isinstance(value, str) and value in names:
        return value
    raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(names)}.")


def check_compression(value: object) -> float:
    """``value`` as an ``int`` or ``float``, if it is a compression, the paper's gamma: a finite number of at least 1.

    Raises:
        ValueError: if it is not, for instance for a string, ``bool``, NaN or infinity.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and 1 <= value < math.inf:
        return int(value) if isinstance(value, Integral) else float(value)
    raise ValueError(
        f"compression must be at least 1, got {value!r}. It is the paper's gamma, a finite number: the bottleneck has "
        "in_channels / compression channels, so 1 keeps all of them and 4 keeps a quarter."
    )


# ---------------------------------------------------------------- counts


def bottleneck_width(in_channels: int, compression: float) -> int:
    """Channels inside the bottleneck: the largest divisor of ``in_channels`` not above ``in_channels / compression``.

    A grouped convolution needs a width that divides its input.  Where gamma divides C_in this is the paper's C_in / gamma;
    where it does not, it is the nearest width below that does.

    Raises:
        ValueError: if ``in_channels`` is no whole number of at least 1, or ``compression`` no finite number of at least 1
            (below 1 the bottleneck would be wider than its input).
    """
    in_channels = check_whole(in_channels, "in_channels", 1, MOST)
    limit = max(1, int(in_channels / check_compression(compression)))
    return next(width for width in range(limit, 0, -1) if in_channels % width == 0)


def kernel_area(kernel_size: Kernel) -> int:
    """Taps of a kernel: K * K, or the product for a rectangular one."""
    return int(kernel_size) ** 2 if isinstance(kernel_size, Integral) else math.prod(kernel_size)


def adapter_parameters(
    in_channels: int, out_channels: int, *, kernel_size: Kernel = 3, compression: float = 4, form: str = "depthwise"
) -> int:
    """Parameters of one adapter, biases and alpha included.

    ``K^2 C_in + w`` for the grouped down-projection, ``w C_out + C_out`` for the 1x1 up-projection and ``C_out`` for alpha,
    with ``w = bottleneck_width(C_in, gamma)``.  The paper's Table 9 leaves the biases out; its other tables are reproduced
    only with them.

    ``form`` is the ablation of Table 5: ``"depthwise"``, ``"regular"`` (an ungrouped K x K down-projection), ``"linear"`` (an
    ungrouped 1x1 one) or ``"spatial"`` (depth-wise, at half the resolution).

    Raises:
        ValueError: for an unknown form, a size that is no whole number of at least 1, or a compression below 1.
    """
    width, out_channels = bottleneck_width(in_channels, compression), check_whole(out_channels, "out_channels", 1, MOST)
    area = kernel_area(check_kernel_size(kernel_size))
    down = {
        "depthwise": area * in_channels,
        "spatial": area * in_channels,
        "regular": area * in_channels * width,
        "linear": in_channels * width,
    }[check_choice(form, "adapter form", FORMS)]
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
