"""Optimisers: Muon, with AdamW for what is not a matrix.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) takes a layer's averaged gradient as one matrix and
sets all of its singular values to about one, so that rare directions are learned as fast as common ones. On this task 300
such steps learn what 1,200 of AdamW do, for a tenth more time per step.

`torch.optim.Muon` takes matrices alone; this one takes convolutions and orthogonalises all layers of a shape together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from transvert.io import InputError

OPTIMISERS = ("muon", "adamw")
"""This companion's choice, and the common one."""
_MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon for weight matrices and convolutions; AdamW for biases, gains and normalisation.

    A matrix's step is scaled to the usual size of AdamW's (Liu et al., 2025, arXiv 2502.16982), so that both share one
    learning rate and one decoupled weight decay.
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float):
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in parameters:
            (matrices if min(_rows(parameter).shape) > 1 else others).append(parameter)
        super().__init__([{"params": matrices}, {"params": others}], learning_rate, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient."""
        group = self.param_groups[0]
        gradients = [(p, p.grad) for p in group["params"] if p.grad is not None]
        for parameter, _ in gradients:
            parameter.grad = None  # Hides it from AdamW.
        result = super().step(closure)
        same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter, gradient in gradients:
            parameter.grad = gradient
            state = self.state[parameter]
            if not state:
                state |= {"step": torch.zeros(()), "average": torch.zeros_like(parameter)}
            state["step"] += 1
            state["average"].lerp_(gradient, 1 - _MOMENTUM)
            rows = _rows(gradient.lerp(state["average"], _MOMENTUM))  # Nesterov's.
            same_shape.setdefault(rows.shape, []).append((parameter, rows))
        for shape, pairs in same_shape.items():
            steps = orthogonalise(torch.stack([rows for _, rows in pairs]))
            for (parameter, _), step in zip(pairs, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = step.reshape(parameter.movedim(1, -1).shape).movedim(-1, 1)  # Undoes `_rows`.
                parameter.sub_(step, alpha=group["lr"] * 0.2 * max(shape) ** 0.5)
        return result


def build_optimiser(
    name: str, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Builds an optimiser by its name in `OPTIMISERS`, else an InputError; the other arguments are those of `Muon`."""
    if name not in OPTIMISERS:
        raise InputError(f"'{name}' is not an optimiser; use {' or '.join(OPTIMISERS)}.")
    if name == "muon":
        return Muon(parameters, learning_rate, weight_decay)
    return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Orthogonalises matrices (B, M, N) float32 roughly: singular values near 1, by Newton-Schulz iteration.

    All iterates are a square matrix times the start. So the iteration runs on M x M matrices, M the shorter side, and the
    long side is multiplied twice alone, for a quarter of the time. In bfloat16 its errors grow without bound.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's: five rounds take all singular values to 0.7 to 1.2.
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square = x @ x.mT
    factor = torch.eye(square.shape[-1], device=x.device).expand_as(square)
    for _ in range(5):
        step = b * square + c * square @ square
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        factor, square = step @ factor, step @ square @ step
    x = factor @ x
    return x.mT if tall else x


def _rows(weight: Tensor) -> Tensor:
    """A weight as (outputs, all else); no copy of a convolution that is stored channels last."""
    return weight.movedim(1, -1).flatten(1) if weight.dim() > 1 else weight[None]
