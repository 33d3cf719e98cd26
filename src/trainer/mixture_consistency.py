"""Estimates that sum to the mixture, whatever scale and remainder a separator leaves.

Axes: B batch, S = 2 voices, T samples.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_RIDGE = 1e-6  # beside the power of the estimates, 1: two that are alike share what is asked of both
_SUMS = 1e-4  # power of what is lacking, as a share of the mixture's: below it estimates sum to the mixture already


def fit_gains(mix: Tensor, estimates: Tensor) -> Tensor:
    """Scale the estimates of each mixture so that their sum comes as near to it as can be.

    A separator trained for SI-SNR alone gives voices at any level and with either sign.

    Shape: mix (B, T), estimates (B, S, T) -> (B, S, T). Those that sum to the mixture are returned as they are.
    """
    lacking = (mix - estimates.sum(dim=1)).square().sum(dim=-1)
    # What is not finite has no scale; whoever writes the voices refuses it.
    apart = lacking.isfinite() & (lacking > _SUMS * mix.square().sum(dim=-1))
    if not apart.any():
        return estimates
    voices = functional.normalize(estimates[apart].double(), dim=-1)
    ridge = _RIDGE * torch.eye(voices.shape[1], dtype=torch.float64, device=mix.device)
    products = voices @ mix[apart].double()[..., None]  # (B, S, 1)
    gains = torch.linalg.solve(voices @ voices.mT + ridge, products)
    scaled = estimates.clone()
    scaled[apart] = (gains * voices).to(estimates.dtype)
    return scaled


def share_residual(mix: np.ndarray, voices: np.ndarray) -> np.ndarray:
    """Give what the voices together lack of the mixture to both in equal parts, so that they sum to it.

    Shape: mix (n,), voices (S, n) -> (S, n).

    Reference: Wisdom et al., "Differentiable consistency constraints for improved deep speech enhancement", 2019,
        eq. 7 with equal weights.
    """
    return voices + (mix - voices.sum(axis=0)) / len(voices)
