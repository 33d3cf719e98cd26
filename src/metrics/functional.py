"""The measures of separation quality, each written or wrapped exactly once.

Training metrics, losses and ``calc_metrics.py`` all come here, so their figures cannot disagree.

Axes: B batch, S speakers, T samples; ``...`` any leading axes. Arguments are keyword-only because libraries
order them oppositely and most measures are not symmetric. An improvement is ``metric(estimate) - metric(mix)``, both
against the same target.
"""

import itertools
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE_HZ = 16_000

# Values of SI-SNR, SNR and SDR end here. Beyond it float32 holds nothing but rounding, and a single perfect
# or hopeless file must not decide a mean.
LIMIT_DB = 100.0
_LIMIT_RATIO = 10 ** (-LIMIT_DB / 10)
# Mean power added to energies before they divide (-160 dB full scale, 70 dB under one step of PCM-16).
_POWER_FLOOR = 1e-16
# Mean power (after the mean is removed) under which a signal counts as silent: -90 dB full scale, the
# rounding noise of PCM-16.
SILENCE_POWER = 1e-9

_SDR_TAPS = 512
_SDR_DIAGONAL_LOAD = 1e-10

PESQ_MIN_S = 0.25
# The reference implementation of PESQ keeps tables of 50 utterances and writes past their end. Utterances
# take 0.4 s at least (0.2 s of speech, 0.2 s of pause), so that 16 s can never hold more than 40.
PESQ_MAX_S = 16.0
# 30 frames of 256 samples with hop 128 at 10 kHz, the shortest piece that STOI is defined on.
STOI_MIN_S = (30 * 128 + 256) / 10_000


class UndefinedMetricError(ValueError):
    """A metric has no value on this signal, for a reason the message gives. It is counted, never averaged."""


def is_silent(signal: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Whether signals hold nothing but (near-)digital silence, a constant offset not counted.

    Shape:
        signal (..., T); lengths (B,) for (B, ...) -> (...,) bool
    """
    signal, count = _centred(_at_least_float32(signal), lengths)
    return signal.square().sum(-1) <= SILENCE_POWER * count


def si_snr(*, estimate: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Scale-invariant signal-to-noise ratio in dB, means removed.

    With a = <e, t> / <t, t> it is 10 log10(|a t|^2 / |e - a t|^2). Both energies are taken relative to that
    of the estimate, which keeps the scale invariance exact, and are limited to 1e-10 from below, which keeps
    the value in [-100, 100] dB and the gradients finite: identical signals give 100 dB, a silent estimate or
    a silent target (a mean power far under 1e-16) gives -100 dB, all three with zero gradient.

    Args:
        estimate: the separated voice.
        target: the true voice.
        lengths: valid samples of each item where signals are padded at the end; what follows has no
            influence.

    Shape:
        estimate, target (..., T), broadcast against each other; lengths (B,) for (B, ...) -> (...,), dB.
        bfloat16 and float16 are computed in float32.

    Raises:
        ValueError: the numbers of samples differ.

    Reference:
        Luo and Mesgarani, "Conv-TasNet", 2019, eq. 4; Le Roux et al., "SDR - half-baked or well done?", 2019,
        eq. 5.
    """
    estimate, target = _checked(estimate, target)
    estimate, count = _centred(estimate, lengths)
    target, _ = _centred(target, lengths)
    floor = _POWER_FLOOR * count
    scale = (estimate * target).sum(-1) / (target.square().sum(-1) + floor)
    projection = scale.unsqueeze(-1) * target
    total = estimate.square().sum(-1) + floor
    signal = projection.square().sum(-1) / total
    noise = ((estimate - projection).square().sum(-1) + floor) / total
    return 10 * (_log10_limited(signal) - _log10_limited(noise))


def snr(*, estimate: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Signal-to-noise ratio 10 log10(|t|^2 / |e - t|^2) in dB: level and offset count.

    The value is limited to [-100, 100] dB. A silent estimate gives 0 dB, identical signals 100 dB, a silent
    target with a loud estimate -100 dB; gradients are finite everywhere.

    Shape:
        estimate, target (..., T), broadcast; lengths (B,) for (B, ...) -> (...,), dB.

    Raises:
        ValueError: the numbers of samples differ.
    """
    estimate, target = _checked(estimate, target)
    count = torch.full((), estimate.shape[-1], device=target.device)
    if lengths is not None:
        valid, count = _valid_samples(estimate, lengths)
        estimate, target = estimate * valid, target * valid
    floor = _POWER_FLOOR * count
    noise = ((estimate - target).square().sum(-1) + floor) / (target.square().sum(-1) + floor)
    return -10 * torch.log10(noise.clamp(_LIMIT_RATIO, 1 / _LIMIT_RATIO))


def sdr(*, estimate: Tensor, target: Tensor) -> Tensor:
    """Signal-to-distortion ratio of BSS-eval v3 in dB, blind to any filter of 512 taps on the target.

    Computed by torchmetrics in float64 (means are kept, as BSS-eval does). Where its normal equations are
    singular (silence, exactly predictable signals) a load of 1e-10 on the diagonal decides, and the value is
    limited to [-100, 100] dB.

    Shape:
        estimate, target (..., T) -> (...,), dB, float64

    Reference:
        Vincent et al., "Performance measurement in blind audio source separation", 2006, eq. 17 with sec.
        III.B.
    """
    from torchmetrics.functional.audio import signal_distortion_ratio

    estimate, target = _checked(estimate, target)
    estimate, target = torch.broadcast_tensors(estimate.double(), target.double())
    try:
        value = signal_distortion_ratio(estimate, target, filter_length=_SDR_TAPS)
    except torch.linalg.LinAlgError:
        value = torch.full(estimate.shape[:-1], torch.nan, dtype=torch.float64, device=estimate.device)
    if not value.isfinite().all():
        loaded = signal_distortion_ratio(
            estimate, target, filter_length=_SDR_TAPS, load_diag=_SDR_DIAGONAL_LOAD
        )
        value = torch.where(value.isfinite(), value, loaded)
    return value.clamp(-LIMIT_DB, LIMIT_DB)


def pesq_score(*, estimate: Tensor, target: Tensor, mode: str = "wb") -> float:
    """PESQ of one voice at 16 kHz (MOS-LQO, about 1.0 to 4.6).

    Recordings longer than 16 s are scored in equal parts of at most 16 s and averaged over the parts that
    have
    speech: the reference implementation is meant for short sentences and crashes on many utterances.

    Args:
        estimate: the separated voice.
        target: the true voice.
        mode: "wb" wide-band (P.862.2) or "nb" narrow-band (P.862.1).

    Shape:
        estimate, target (T,) at 16 kHz

    Raises:
        UndefinedMetricError: no utterance was found, the signal is shorter than 0.25 s, or a signal is
            silent.
        ValueError: an unknown mode.

    Reference:
        ITU-T P.862, P.862.1, P.862.2.
    """
    if mode not in ("wb", "nb"):
        raise ValueError(f"mode={mode!r}: PESQ is 'wb' (wide-band) or 'nb' (narrow-band)")
    estimate, target = _one_voice(estimate, target, metric="PESQ")
    num_samples = target.shape[-1]
    if num_samples < PESQ_MIN_S * SAMPLE_RATE_HZ:
        raise UndefinedMetricError(
            f"PESQ needs {PESQ_MIN_S} s, the signal has {num_samples / SAMPLE_RATE_HZ:.3f} s"
        )
    num_parts = int(np.ceil(num_samples / (PESQ_MAX_S * SAMPLE_RATE_HZ)))
    parts = zip(np.array_split(estimate.numpy(), num_parts), np.array_split(target.numpy(), num_parts))
    scores, reason = [], "PESQ found no utterances"
    for estimate_part, target_part in parts:
        try:
            scores.append(_pesq_of_part(estimate_part, target_part, mode))
        except UndefinedMetricError as error:
            reason = str(error)
    if not scores:
        raise UndefinedMetricError(reason)
    return float(np.mean(scores))


def stoi_score(*, estimate: Tensor, target: Tensor, extended: bool = False) -> float:
    """Short-time objective intelligibility of one voice at 16 kHz (at most 1).

    Args:
        estimate: the separated voice.
        target: the true voice.
        extended: the extended measure (ESTOI), stricter on modulated interference.

    Shape:
        estimate, target (T,) at 16 kHz

    Raises:
        UndefinedMetricError: less than 0.41 s of speech is left once silent frames are removed, or a signal
            is silent.

    Reference:
        Taal et al., 2011; Jensen and Taal, 2016 (extended).
    """
    from pystoi import stoi

    estimate, target = _one_voice(estimate, target, metric="STOI")
    too_short = f"STOI needs {STOI_MIN_S:.2f} s of speech"
    if target.shape[-1] < STOI_MIN_S * SAMPLE_RATE_HZ:
        raise UndefinedMetricError(f"{too_short}, the signal has {target.shape[-1] / SAMPLE_RATE_HZ:.2f} s")
    with warnings.catch_warnings():
        # pystoi returns 1e-5 with a warning here; such a number must not enter a mean.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(stoi(target.double().numpy(), estimate.double().numpy(), SAMPLE_RATE_HZ, extended))
        except RuntimeWarning as warning:
            raise UndefinedMetricError(f"{too_short} once silent frames are removed") from warning


def pairwise(
    metric: Callable[..., Tensor], *, estimates: Tensor, targets: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """The metric of every estimate against every target.

    Shape:
        estimates, targets (B, S, T) -> (B, S, S): [b, i, j] is estimate i against target j.
    """
    extra = {} if lengths is None else {"lengths": lengths}
    return metric(estimate=estimates.unsqueeze(2), target=targets.unsqueeze(1), **extra)


def best_assignment(scores: Tensor) -> Tensor:
    """The permutation with the highest sum of scores, of each item; ties go to the order that is least
    permuted.

    Shape:
        scores (B, S, S), [b, i, j] for estimate i against target j -> (B, S): [b, j] is the estimate for
        target j.
    """
    num_speakers = scores.shape[-1]
    orders = torch.tensor(list(itertools.permutations(range(num_speakers))), device=scores.device)  # (P, S)
    targets = torch.arange(num_speakers, device=scores.device)
    totals = scores[:, orders, targets].sum(-1)  # (B, P)
    return orders[totals.argmax(dim=1)]


def best_permutation(
    *,
    estimates: Tensor,
    targets: Tensor,
    lengths: Tensor | None = None,
    metric: Callable[..., Tensor] = si_snr,
) -> Tensor:
    """Which estimate belongs to which target: the order with the highest sum of the metric.

    Shape:
        estimates, targets (B, S, T) -> (B, S): [b, j] is the estimate for target j.
    """
    return best_assignment(pairwise(metric, estimates=estimates, targets=targets, lengths=lengths))


def permute(estimates: Tensor, order: Tensor) -> Tensor:
    """Put estimates in the order of the targets.

    Shape:
        estimates (B, S, T), order (B, S) as `best_permutation` returns it -> (B, S, T)
    """
    return estimates.gather(1, order.unsqueeze(-1).expand_as(estimates))


def _pesq_of_part(estimate: np.ndarray, target: np.ndarray, mode: str) -> float:
    from pesq import NoUtterancesError, PesqError, pesq

    if not target.any() and not estimate.any():
        raise UndefinedMetricError("PESQ found no utterances")
    try:
        return float(pesq(SAMPLE_RATE_HZ, target, estimate, mode))
    except NoUtterancesError as error:
        raise UndefinedMetricError("PESQ found no utterances") from error
    except PesqError as error:
        raise UndefinedMetricError(f"PESQ failed: {error}") from error


def _one_voice(estimate: Tensor, target: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Float32 copies of one voice on the CPU, for packages that take NumPy arrays."""
    estimate, target = (
        signal.detach().to("cpu", torch.float32).contiguous() for signal in _checked(estimate, target)
    )
    if target.dim() != 1:
        raise ValueError(
            f"{metric} takes one voice (T,) at a time, not a tensor of shape {tuple(target.shape)}"
        )
    for name, signal in (("estimate", estimate), ("truth", target)):
        if is_silent(signal):
            raise UndefinedMetricError(f"{name} is silent")
    return estimate, target


def _checked(estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if estimate.shape[-1] != target.shape[-1] or target.shape[-1] == 0:
        raise ValueError(
            f"estimate has {estimate.shape[-1]} samples and target {target.shape[-1]}: cut both to the same, "
            "non-zero length"
        )
    return _at_least_float32(estimate), _at_least_float32(target)


def _at_least_float32(signal: Tensor) -> Tensor:
    return signal if signal.dtype in (torch.float32, torch.float64) else signal.float()


def _valid_samples(signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mask (B, 1..., T) of valid samples, and how many they are (B, 1...)."""
    lengths = lengths.to(signal.device).reshape(-1, *[1] * (signal.dim() - 2))
    positions = torch.arange(signal.shape[-1], device=signal.device)
    return (positions < lengths.unsqueeze(-1)).to(signal.dtype), lengths.to(signal.dtype)


def _centred(signal: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Remove the mean over the valid samples and zero the others; also returns how many are valid."""
    if lengths is None:
        return signal - signal.mean(-1, keepdim=True), torch.full((), signal.shape[-1], device=signal.device)
    valid, count = _valid_samples(signal, lengths)
    mean = (signal * valid).sum(-1, keepdim=True) / count.unsqueeze(-1)
    return (signal - mean) * valid, count


def _log10_limited(ratio: Tensor) -> Tensor:
    return torch.log10(ratio.clamp(min=_LIMIT_RATIO))
