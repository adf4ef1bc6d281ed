"""What happens to a picture on its way to the network: augmentation and normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from .images import margin


class QuarterTurns(nn.Module):
    """Turns a picture (..., S, S) by 0, 90, 180 or 270 degrees, each as likely."""

    def forward(self, picture: Tensor) -> Tensor:
        return torch.rot90(picture, int(torch.randint(4, ())), (-2, -1))


def _flips(size: int) -> list[nn.Module]:
    # A flip and a quarter turn make all eight symmetries of the square, each as likely: a vertical flip is one of them.
    return [v2.RandomHorizontalFlip(), QuarterTurns()]


class Augmentation(NamedTuple):
    """How training pictures of one benchmark are augmented; see :mod:`minica.data.catalogue`.

    ``crop``: None resizes to S x S; ``"shift"`` resizes to 8/7 S (256 for 224) and cuts S x S out at random; a number is
    the least part of the area that a RandomResizedCrop takes.  ``flip``: half of them are mirrored.
    """

    crop: str | float | None
    flip: bool

    def decoded(self, size: int, resize: str) -> tuple[int | None, str]:
        """Side and rule by which a file is decoded for this; without a side, as large as it is."""
        if self.crop is None:
            return size, resize
        return (margin(size) if self.crop == "shift" else None), ("crop" if resize == "crop" else "squash")

    def __call__(self, size: int) -> list[nn.Module]:
        """The v2 transforms."""
        flip = [v2.RandomHorizontalFlip()] if self.flip else []
        if self.crop is None:
            return flip
        if self.crop == "shift":
            return [v2.RandomCrop(size), *flip]
        area = (self.crop, 1)
        return [v2.RandomResizedCrop(size, area, interpolation=InterpolationMode.BICUBIC, antialias=True), *flip]


# Each gives the v2 transforms for pictures of a size, all drawn from torch's global generator.
AUGMENTATIONS = {
    "none": lambda size: [],
    "flips": _flips,  # where no direction is special, as in solar cells; it makes position and orientation labels wrong
    "crop": Augmentation(0.2, True),  # for photographs: the paper's for FGVC and few-shot tasks (Section A.3)
}


def transform(size: int, mean: tuple[float, ...], std: tuple[float, ...], augment: str | Augmentation = "none") -> v2.Compose:
    """From uint8 (1 | 3, S, S) to float32 (3, S, S): augment, grey to RGB, [0, 1], (x - mean) / std by channel."""
    steps = (AUGMENTATIONS[augment] if isinstance(augment, str) else augment)(size)
    return v2.Compose([*steps, v2.RGB(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raise a ValueError unless ``given`` is one of ``known``."""
    if given not in known:
        raise ValueError(f"unknown {what} {given!r}; choose one of {', '.join(known)}.")


def by_channel(what: str, value: float | Sequence[float]) -> tuple[float, ...]:
    """A mean or a standard deviation for each of R, G and B, out of one number or three."""
    try:
        values = np.ravel(value).astype(float).tolist()
    except (TypeError, ValueError):
        values = []
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise ValueError(f"{what} must be one finite number, or one for each of R, G and B; got {value!r}.")
    return tuple(values * (3 // len(values)))
