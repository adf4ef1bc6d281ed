"""How is a picture changed on its way to the network?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2


class QuarterTurns(nn.Module):
    """Turns a picture (..., S, S) by 0, 90, 180 or 270 degrees, each as likely."""

    def forward(self, picture: Tensor) -> Tensor:
        return torch.rot90(picture, int(torch.randint(4, ())), (-2, -1))


def _flips(size: int) -> list[nn.Module]:
    # A flip and a quarter turn make all eight symmetries of the square, each as likely: a vertical flip is one of them.
    return [v2.RandomHorizontalFlip(), QuarterTurns()]


def _crop(size: int) -> list[nn.Module]:
    crop = v2.RandomResizedCrop(size, scale=(0.2, 1), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return [crop, v2.RandomHorizontalFlip()]


# Each gives the v2 transforms for pictures of a size, all drawn from torch's global generator.
AUGMENTATIONS = {
    "none": lambda size: [],
    "flips": _flips,  # where no direction is special, as in solar cells; it makes position and orientation labels wrong
    "crop": _crop,  # for photographs: the paper's for FGVC and few-shot tasks (Section A.3)
}


def transform(size: int, mean: tuple[float, ...], std: tuple[float, ...], augment: str = "none") -> v2.Compose:
    """From uint8 (1 | 3, S, S) to float32 (3, S, S): augment, grey to RGB, [0, 1], (x - mean) / std by channel."""
    return v2.Compose([*AUGMENTATIONS[augment](size), v2.RGB(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
