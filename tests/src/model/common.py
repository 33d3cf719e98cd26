"""Signals, a training loop and checks for tests of separators."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from src.loss.separation import SeparationLoss
from src.loss.snr import NegativeSNR
from src.metrics.functional import best_assignment, permute, si_snr


def lips(batch: int = 1, frames: int = 50, dim: int = 16) -> Tensor:
    return torch.randn(batch, 2, frames, dim, generator=torch.Generator().manual_seed(1))


def mixture(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def four_sources(samples: int = 8000) -> Tensor:
    """Four mixtures of two voices, each a tone in noise. Shape: (4, 2, samples)."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / 16000
    pitches = torch.tensor([[200, 900], [300, 1400], [250, 2000], [350, 700]])
    tones = 0.1 * torch.sin(6.283 * pitches[..., None] * time)
    return tones + 0.002 * torch.randn(tones.shape, generator=generator)


def learn(model: nn.Module, sources: Tensor, visual: Tensor | None, *, steps: int, rate: float) -> Tensor:
    """Train on one batch: in the given order by squared error where there are lips, else by SNR in the best order.

    A logarithm rewards one perfect voice more than it blames the other for being the same, and tones make that
    shortcut easy (always the lower one); squared error does not.

    Returns:
        SI-SNR of every voice in dB after training, in the order of training. Shape: (B, S).
    """
    loss = SeparationLoss({"snr": NegativeSNR()}, {"snr": 1.0}, order="pit")
    mix = sources.sum(1)
    optimizer = torch.optim.Adam(model.train().parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(mix, visual)
        if visual is None:
            loss(sources=sources, **output)["loss"].backward()
        else:
            (output["estimates"] - sources).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        estimates = model.eval()(mix, visual)["estimates"]
    if visual is None:
        scores = si_snr(estimate=estimates[:, :, None], target=sources[:, None])
        estimates = permute(estimates, best_assignment(scores))
    return si_snr(estimate=estimates, target=sources)


def unreached_parameters(model: nn.Module, objective: Callable[[], Tensor]) -> list[str]:
    """Names of the parameters that an objective has no gradient for."""
    model.zero_grad()
    objective().backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
