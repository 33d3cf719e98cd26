"""Muon: orthogonal updates, all shapes of parameters, and a state that can be resumed."""

import copy

import pytest
import torch
from torch import nn

from src.trainer.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 40), (2, 40, 5)])
def test_all_singular_values_become_about_one(shape):
    matrices = torch.randn(shape, generator=torch.manual_seed(0)) * torch.logspace(-1, 1, shape[2])
    values = torch.linalg.svdvals(orthogonal(matrices, iterations=8))
    assert values.min() > 0.6 and values.max() < 1.3
    # Same directions: U V^T of the input is the nearest orthogonal matrix.
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (orthogonal(matrices, iterations=8) * (left @ right)).sum() / (left @ right).square().sum()
    assert 0.8 < cosine < 1.2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 1), nn.LayerNorm(16))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> float:
    for step in range(first, first + steps):
        x = torch.randn(16, 4, 16, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_it_learns_and_goes_on_where_it_stopped():
    model = network()
    before = train(model, Muon(model.parameters(), lr=0.0), 1)
    optimizer = Muon(model.parameters(), lr=1e-2)
    train(model, optimizer, 30)
    twin = copy.deepcopy(model)
    resumed = Muon(twin.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    after = train(model, optimizer, 20, first=30)
    train(twin, resumed, 20, first=30)
    assert after < before / 2
    for own, other in zip(model.parameters(), twin.parameters()):
        assert torch.equal(own, other)


def test_bands_are_matrices_of_their_own():
    """The gradient of one band changes that band alone."""
    stack = nn.Parameter(torch.zeros(3, 20, 24))
    optimizer = Muon([stack], lr=1.0, weight_decay=0.0)
    stack.grad = torch.zeros_like(stack)
    stack.grad[1] = torch.randn(20, 24)
    optimizer.step()
    assert stack[1].abs().mean() > 0.1
    assert not stack[0].any() and not stack[2].any()


def test_what_has_no_gradient_stays():
    used, unused = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([used, unused])
    used.grad = torch.eye(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 3)) and not torch.equal(used, torch.ones(3, 3))
