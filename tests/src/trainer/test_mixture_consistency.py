"""Estimates at any level and sign still come out as the voices that sum to the mixture."""

import numpy as np
import pytest
import torch

from src.trainer.mixture_consistency import fit_gains, share_residual


def test_residual_is_shared_equally():
    mix = np.array([1.0, 2.0], np.float32)
    voices = np.array([[0.25, 1.0], [0.25, 1.5]], np.float32)
    np.testing.assert_allclose(share_residual(mix, voices), [[0.5, 0.75], [0.5, 1.25]])


def test_levels_and_signs_of_estimates_do_not_matter():
    torch.manual_seed(0)
    voices = torch.randn(3, 2, 8000)
    mix = voices.sum(dim=1)
    wrong = voices * torch.tensor([[-8.4, 1.0], [0.01, -3.0], [1.0, 1.0]])[..., None]
    fitted = fit_gains(mix, wrong)
    torch.testing.assert_close(fitted, voices, atol=1e-3, rtol=0)
    assert torch.equal(fitted[2], voices[2]), "what sums to the mixture is left alone"
    assert fit_gains(mix, voices) is voices


def test_estimates_that_are_alike_or_silent_stay_finite():
    mix = torch.randn(2, 8000)
    alike = torch.stack([mix, mix], dim=1) * 0.1
    torch.testing.assert_close(fit_gains(mix, alike), torch.stack([mix, mix], dim=1) / 2, atol=1e-3, rtol=0)
    assert fit_gains(mix, torch.zeros(2, 2, 8000)).abs().max() == 0
    assert fit_gains(torch.zeros(2, 8000), alike).abs().max() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_harms_no_other(value):
    voices = torch.randn(2, 2, 8000)
    wrong = 3 * voices
    wrong[0, 1, 5] = value
    fitted = fit_gains(voices.sum(dim=1), wrong)
    assert not fitted[0].isfinite().all()
    torch.testing.assert_close(fitted[1], voices[1], atol=1e-3, rtol=0)
