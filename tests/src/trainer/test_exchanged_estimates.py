"""Estimates that trade places for a while."""

import torch

from src.trainer.exchanged_estimates import exchange_for_a_while

ESTIMATES = torch.stack([torch.ones(1500, 16000), torch.zeros(1500, 16000)], dim=1)


def test_the_share_of_mixtures_and_of_their_time():
    torch.manual_seed(0)
    moved = 1 - exchange_for_a_while(ESTIMATES, 0.25)[:, 0]
    touched = moved.amax(dim=1) > 0
    assert 0.2 < touched.float().mean() < 0.3
    time = (moved[touched] > 0).float().mean(dim=1)
    assert time.min() > 0.05 and time.max() < 0.65
    most = moved[touched].amax(dim=1)
    assert most.min() >= 0.3 and 0.3 < (most == 1).float().mean() < 0.5


def test_it_is_one_stretch_without_a_jump():
    torch.manual_seed(0)
    moved = 1 - exchange_for_a_while(ESTIMATES, 1.0)[:, 0]
    assert moved.diff(dim=1).abs().max() < 0.002
    begins = ((moved[:, 1:] > 0) & (moved[:, :-1] == 0)).sum(dim=1)
    assert begins.max() == 1


def test_without_a_share_nothing_is_drawn():
    state = torch.get_rng_state()
    assert exchange_for_a_while(ESTIMATES, 0) is ESTIMATES
    assert torch.equal(torch.get_rng_state(), state)
