"""Muon: momentum whose step is made orthogonal, so that every direction of a matrix is learned at the same pace."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_ROUNDS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly, of [count, rows, columns]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.mT
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Muon for the matrices of the layers; equal shapes are stacked and go through one computation."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            self.groups.setdefault(parameter.shape, []).append(parameter)
        self.buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients, and drop the gradients."""
        for shape, group in self.groups.items():
            gradient = torch.stack([parameter.grad for parameter in group])
            buffer = self.buffers[shape].mul_(self.momentum).add_(gradient)
            update = orthogonalise(gradient.add_(buffer, alpha=self.momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, direction in zip(group, update, strict=True):
                parameter.mul_(1 - learning_rate * self.weight_decay).add_(direction, alpha=-learning_rate * scale)
                parameter.grad = None
