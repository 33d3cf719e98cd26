"""The mean of passes over a delayed mixture, with lips that are moved as well."""

import pytest
import torch
from torch import nn

from src.model import BandSeparator
from src.trainer.mixture_consistency import fit_gains
from src.trainer.shifted_passes import delays, lip_lags, separate_shifted


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


class Watched(nn.Module):
    """Notes the lips of every pass."""

    def __init__(self, weighed_frames):
        super().__init__()
        self.seen = []
        if weighed_frames is not None:
            self.weighed_frames = weighed_frames

    def forward(self, mix, visual, **_):
        self.seen.append(visual[0, 0, :, 0].tolist())
        return {"estimates": torch.stack([mix, mix], dim=1)}


def test_lips_come_late_and_early_where_lags_are_weighed():
    given = batch() | {"visual": torch.arange(4.0)[None, None, :, None].expand(3, 2, 4, 5)}
    as_they_are, late, early = [0, 1, 2, 3], [0, 0, 1, 2], [1, 2, 3, 3]
    for weighed_frames, shifts, seen in (
        (2, 1, [as_they_are]),
        (2, 2, [late, early]),
        (1, 3, [late, as_they_are, early]),
        (0, 2, [as_they_are, as_they_are]),
        (None, 2, [as_they_are, as_they_are]),
    ):
        model = Watched(weighed_frames)
        separate_shifted(model, given, shifts)
        assert model.seen == seen, (weighed_frames, shifts)


def test_lip_lags_cancel():
    assert [sum(lip_lags(shifts, 2)) for shifts in range(1, 9)] == [0] * 8


class Wavering(nn.Module):
    """Two parts of the mixture, in the second pass in the other order, each pass with odds of its own."""

    def __init__(self, odds):
        super().__init__()
        self.odds = list(odds)

    def forward(self, mix, **_):
        voices = torch.stack([mix.clamp(min=0), mix.clamp(max=0)], dim=1)
        odds = self.odds.pop(0)
        return {
            "estimates": voices.flip(1) if not self.odds else voices,
            "order": torch.full((len(mix),), odds),
        }


@pytest.mark.parametrize(("odds", "kept"), [((3.0, -1.0), True), ((1.0, 3.0), False), ((-1.0, -3.0), False)])
def test_the_surer_pass_decides_on_the_order(odds, kept):
    given = batch()
    estimates, order, _ = separate_shifted(Wavering(odds), given, 2)
    assert torch.equal((estimates[:, 0] >= 0).all(1), torch.full((3,), kept))
    torch.testing.assert_close(order, torch.ones(3))


class Refines(nn.Module):
    """Two parts of the mixture in an order of its own; given estimates, these and a little of the mixture."""

    refines = True

    def __init__(self, odds):
        super().__init__()
        self.odds, self.given = list(odds), []

    def forward(self, mix, earlier=None, **_):
        self.given.append(earlier)
        voices = torch.stack([mix.clamp(min=0), mix.clamp(max=0)], dim=1)
        found = voices if earlier is None else earlier + 0.1 * mix[:, None]
        return {"estimates": found, "order": torch.full((len(mix),), self.odds.pop(0))}


class Exchanges:
    """Finds the voices of the last mixture of the batch in the other order, the first time that it looks."""

    def __init__(self):
        self.seen = []

    def exchanged(self, mix, estimates, visual, used, order):
        self.seen.append((estimates, order))
        contradicted = torch.zeros(len(mix), visual.shape[2])
        contradicted[-1] = len(self.seen) == 1
        return contradicted


def with_lips():
    return batch() | {"visual": torch.zeros(3, 2, 13, 5), "visual_mask": torch.ones(3, 2).bool()}


def test_a_pass_goes_on_from_what_the_one_before_found_and_the_check_put_in_order():
    model, check, given = Refines([-3.0, 1.0]), Exchanges(), with_lips()
    found = separate_shifted(model, given, 2, check)
    voices = torch.stack([given["mix"].clamp(min=0), given["mix"].clamp(max=0)], dim=1)
    voices[-1] = voices[-1].flip(0)
    delay = delays(2)[1]
    assert model.given[0] is None
    torch.testing.assert_close(model.given[1][..., delay:], voices)
    assert not model.given[1][..., :delay].any()
    torch.testing.assert_close(check.seen[0][1], torch.full((3,), 3.0))  # the order that the odds speak for
    # Where the check turned the first pass round, its odds speak against what is there now: (-3 + 1) / 2.
    torch.testing.assert_close(found.order, torch.tensor([2.0, 2.0, 1.0]))
    mean = voices + 0.05 * given["mix"][:, None]
    mean[-1] = mean[-1].flip(0)
    torch.testing.assert_close(found.estimates, fit_gains(given["mix"], mean))
    assert not found.exchanged.any()


def test_a_check_looks_once_at_the_mean_of_passes_that_do_not_refine():
    check = Exchanges()
    found = separate_shifted(Wavering([3.0, -1.0]), with_lips(), 2, check)
    assert len(check.seen) == 1 and found.exchanged.tolist() == [0, 0, 1]
    torch.testing.assert_close(found.order, torch.tensor([1.0, 1.0, -1.0]))


def test_without_lips_there_is_nothing_to_check():
    check = Exchanges()
    model = Refines([0.0, 0.0])
    separate_shifted(model, batch(), 2, check)
    assert not check.seen and model.given[1] is not None
