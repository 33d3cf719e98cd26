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


@pytest.mark.parametrize("shape", [(8, 1, 16), (8, 4, 3), (8, 2, 3, 3)])
def test_the_filters_of_a_convolution_are_one_matrix_however_long_they_are(shape):
    kernel = nn.Parameter(torch.zeros(shape))
    optimizer = Muon([kernel], lr=1.0, weight_decay=0.0, iterations=8)
    kernel.grad = torch.randn(shape, generator=torch.manual_seed(0))
    optimizer.step()
    columns = kernel[0].numel()
    values = torch.linalg.svdvals(kernel.detach().flatten(1)) / (0.2 * max(8, columns) ** 0.5)
    assert values.min() > 0.6 and values.max() < 1.3


def test_matrices_of_one_shape_do_not_mix():
    """They go through the orthogonalisation together, each on its own."""
    bands = [nn.Parameter(torch.zeros(20, 24)) for _ in range(3)]
    optimizer = Muon(bands, lr=1.0, weight_decay=0.0)
    for band in bands:
        band.grad = torch.zeros_like(band)
    bands[1].grad = torch.randn(20, 24)
    optimizer.step()
    assert bands[1].abs().mean() > 0.1
    assert not bands[0].any() and not bands[2].any()


def test_what_has_no_gradient_stays():
    used, unused = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([used, unused])
    used.grad = torch.eye(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 3)) and not torch.equal(used, torch.ones(3, 3))
