"""The mean of passes over a delayed mixture."""

import pytest
import torch
from torch import nn

from src.model import BandSeparator
from src.trainer.shifted_passes import delays, separate_shifted


def batch(num_samples=8000):
    mix = torch.randn(3, num_samples, generator=torch.Generator().manual_seed(0))
    return {"mix": mix, "lengths": torch.full((3,), num_samples)}


def separator():
    torch.manual_seed(0)
    model = BandSeparator(visual_dim=0, num_bands=8, channels=8, squeezed=2, cue_channels=8)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("hop", [128, 256])
def test_passes_fall_between_the_frames(hop):
    assert delays(1) == [0]
    places = [delay % hop / hop for delay in delays(4)]
    apart = [abs(a - b) for i, a in enumerate(places) for b in places[:i]]
    assert min(min(x, 1 - x) for x in apart) >= 0.09, places


@torch.no_grad()
def test_one_pass_is_the_separator_itself():
    model, given = separator(), batch()
    torch.testing.assert_close(separate_shifted(model, given, 1).estimates, model(**given)["estimates"])


@torch.no_grad()
def test_with_more_passes_it_matters_less_where_frames_fall():
    """Estimates of a mixture that comes later are nearer to the estimates that come later."""
    model, given, later = separator(), batch(), 100
    moved = {"mix": nn.functional.pad(given["mix"], (later, 0)), "lengths": given["lengths"] + later}
    errors = []
    for shifts in (1, 2, 4):
        estimates = separate_shifted(model, given, shifts).estimates
        error = separate_shifted(model, moved, shifts).estimates[..., later:] - estimates
        errors.append(float(error.square().mean() / (estimates - given["mix"][:, None] / 2).square().mean()))
    assert errors[2] < errors[1] < errors[0], errors


class Shuffled(nn.Module):
    """Positive and negative part of the mixture, each pass and each mixture in an order of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, mix, **_):
        voices = torch.stack([mix.clamp(min=0), mix.clamp(max=0)], dim=1)
        exchanged = torch.randint(2, (len(mix), 1, 1), generator=self.generator).bool()
        return {"estimates": voices.flip(1).where(exchanged, voices)}


def test_voices_of_no_order_are_not_mixed_up_again():
    given = batch()
    estimates = separate_shifted(Shuffled(), given, 5).estimates
    torch.testing.assert_close(estimates.sum(1), given["mix"])
    assert torch.equal(estimates.amax(2) > 1e-6, estimates.amin(2) > -1e-6)  # each is one of the two parts
