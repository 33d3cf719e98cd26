"""Muon: momentum whose update is made orthogonal, for matrices; AdamW for what is no matrix."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Coefficients of the quintic iteration; they trade exactness of the singular values (0.7 to 1.2) for speed.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Every direction of a weight matrix learns equally fast, however little of the gradient lies in it.

    Matrices are the parameters with two axes or more; of a convolution the first axis against all others. The update's
    size is that of AdamW, so that rates carry over.

    Args:
        params: parameters, in any order.
        lr: of both kinds.
        momentum: of matrices.
        betas: of AdamW.
        weight_decay: decoupled, of matrices.
        iterations: of the orthogonalisation.

    Reference:
        Jordan et al., "Muon", 2024; update size after Liu et al., "Muon is scalable for LLM training", 2025, eq. 4.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        iterations: int = 5,
    ) -> None:
        params = list(params)
        matrices = [parameter for parameter in params if parameter.ndim >= 2]
        others = [parameter for parameter in params if parameter.ndim < 2]
        shared = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay}
        groups = [{"params": matrices, "matrices": True}, {"params": others, "matrices": False}]
        super().__init__([group for group in groups if group["params"]], shared)
        self._iterations = iterations

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._matrices if group["matrices"] else self._adamw)(group, trained)

    def _matrices(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            direction = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
            matrix = direction.flatten(1)
            by_shape[tuple(matrix.shape)].append((parameter, matrix))
        for (rows, columns), members in by_shape.items():
            updates = orthogonal(torch.stack([matrix for _, matrix in members]), self._iterations)
            scale = 0.2 * max(rows, columns) ** 0.5
            for (parameter, _), update in zip(members, updates):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        first, second = group["betas"]
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - first)
            state["square"].lerp_(parameter.grad.square(), 1 - second)
            mean = state["mean"] / (1 - first ** state["step"])
            spread = (state["square"] / (1 - second ** state["step"])).sqrt() + 1e-8
            parameter.sub_(mean / spread, alpha=group["lr"])


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearest matrices whose singular values are all about one. Shape: (N, rows, columns) -> the same."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
