"""What is asked of every separator that extracts one voice per pass by its lips.

Axes: B batch, S = 2 voices, T samples, F video frames, D lip embedding.
"""

from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from src.metrics.functional import si_snr

VISUAL_DIM = 16
CONFIGS = Path(__file__).resolve().parents[3] / "src/configs"


def lips(batch: int = 1, frames: int = 13) -> Tensor:
    """Shape: (B, S, F, D)."""
    return torch.randn(batch, 2, frames, VISUAL_DIM, generator=torch.Generator().manual_seed(1))


def mixture(*shape: int) -> Tensor:
    """Quiet noise of the given shape."""
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def configured(choice: str, visual_dim: int = 512) -> nn.Module:
    """The model of a file under src/configs/model, in eval mode and without gradients."""
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        config = hydra.compose("train", overrides=[f"model={choice}", f"model.visual_dim={visual_dim}"])
    return hydra.utils.instantiate(config.model).eval().requires_grad_(False)


def millions_of_parameters(model: nn.Module) -> float:
    """Parameters of the model, learnt lip embeddings included."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def giga_macs_per_voice(run: Callable[[], object], voices: int) -> float:
    """Multiply-accumulates of matrix products and convolutions, in 1e9, for each of the voices that `run` extracts."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2 / 1e9 / voices


def assert_any_length(model: nn.Module, lengths: tuple[int, ...]) -> None:
    """Same length out, finite, with and without lips."""
    for samples in lengths:
        for visual in (lips(1, 1 + samples // 640), None):
            with torch.no_grad():
                estimates = model(mixture(1, samples), visual)["estimates"]
            assert estimates.shape == (1, 2, samples)
            assert torch.isfinite(estimates).all(), f"{samples} samples"


def assert_lips_decide(model: nn.Module) -> None:
    """Swapped lips swap the estimates, with both and with one of them; absent lips are not looked at."""
    mix, visual = mixture(1, 8000), lips()
    for present in ((True, True), (True, False)):
        mask = torch.tensor([present])
        with torch.no_grad():
            straight = model(mix, visual, mask)
            swapped = model(mix, visual.flip(1), mask.flip(1))["estimates"]
        assert straight["visual_mask"].equal(mask)
        torch.testing.assert_close(swapped.flip(1), straight["estimates"], atol=1e-5, rtol=1e-4)
        assert (straight["estimates"][:, 0] - straight["estimates"][:, 1]).abs().max() > 1e-4
    other = visual.clone()
    other[:, 1] = 1e3
    neither = torch.zeros(1, 2, dtype=torch.bool)
    with torch.no_grad():
        unseen = model(mix, other, torch.tensor([[True, False]]))["estimates"]
        none, absent = model(mix, visual, neither), model(mix)
    torch.testing.assert_close(unseen, model(mix, visual, torch.tensor([[True, False]]))["estimates"])
    torch.testing.assert_close(none["estimates"], absent["estimates"], atol=1e-6, rtol=0)
    assert not absent["visual_mask"].any() and not none["visual_mask"].any()
    assert (absent["estimates"][:, 0] - absent["estimates"][:, 1]).abs().max() > 1e-4


def assert_level_is_kept(model: nn.Module) -> None:
    """A mixture a hundred times quieter gives estimates a hundred times quieter."""
    mix = mixture(1, 8000)
    with torch.no_grad():
        loud, quiet = (model(gain * mix, lips())["estimates"] / gain for gain in (1.0, 1e-2))
    torch.testing.assert_close(loud, quiet, atol=1e-5, rtol=1e-3)


def assert_items_do_not_meet(model: nn.Module) -> None:
    """An item gives the same alone as in a batch."""
    mix, visual = mixture(3, 8000), lips(3)
    with torch.no_grad():
        together = model(mix, visual)["estimates"][1:2]
        alone = model(mix[1:2], visual[1:2])["estimates"]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def assert_every_parameter_is_reached(model: nn.Module) -> None:
    """One mixture with both, one and no lips each: DistributedDataParallel relies on it. Silence stays finite."""
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    model.train()(mixture(3, 8000), lips(3), mask)["estimates"].square().sum().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached
    model.zero_grad()
    model(torch.zeros(1, 8000), lips())["estimates"].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def score_on_four_mixtures(model: nn.Module, steps: int, learning_rate: float) -> float:
    """Train on two tones in a little noise a voice; SI-SNR in dB on what was seen."""
    torch.manual_seed(0)
    time = torch.arange(4000) / 16000
    pitches = torch.tensor([[200, 900], [300, 1400], [250, 2000], [350, 700]])
    sources = 0.1 * torch.sin(6.283 * pitches[..., None] * time)
    sources = sources + 0.002 * torch.randn_like(sources)
    mix, visual = sources.sum(1), lips(4, 7)
    optimizer = torch.optim.Adam(model.train().parameters(), learning_rate)
    for _ in range(steps):
        loss = -si_snr(estimate=model(mix, visual)["estimates"], target=sources).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        return si_snr(estimate=model.eval()(mix, visual)["estimates"], target=sources).mean().item()
