"""A network and a recipe so small that a training step takes milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from transvert.model import networks
from transvert.model.train import Recipe

RECIPE = Recipe("small", steps=4, epoch_steps=2, batch=2, precision="32", device="cpu")


class Small(nn.Module):
    """Predicts 8³ blocks from both views at 8 x 8, with batch normalisation and dropout."""

    def __init__(self, width: int = 4, dropout: float = 0.0):
        super().__init__()
        self.encode = nn.Sequential(
            nn.AvgPool2d(8), nn.Conv2d(4, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.lift = nn.Conv2d(width, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(self.lift(self.encode(images[:, :, :2].flatten(1, 2)))[:, None], scale_factor=8)


networks.NETWORKS["small"] = Small


def is_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether two state dictionaries are equal to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
