"""SI-SNR, SNR, SDR, PESQ and STOI against hand values, float64 NumPy and independent implementations."""

import math
import warnings

import mir_eval.separation
import numpy as np
import pytest
import torch
from pesq import pesq
from pystoi import stoi
from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio

from src.metrics import functional as F


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def speech_like(seconds=2.0, seed=0):
    """Noise in syllables of 0.2 s with pauses, which PESQ and STOI take for speech."""
    t = torch.arange(int(16_000 * seconds)) / 16_000
    envelope = torch.clamp(torch.sin(2 * math.pi * 2.5 * t), min=0)
    return (0.3 * envelope * noise(len(t), seed=seed)).float()


def numpy_si_snr(estimate, target):
    """The definition, written anew in float64."""
    e, s = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    e, s = e - e.mean(), s - s.mean()
    projection = (e @ s) / (s @ s) * s
    return 10 * np.log10((projection @ projection) / ((e - projection) @ (e - projection)))


def test_si_snr_hand_values():
    target = torch.tensor([1.0, -1.0, 1.0, -1.0])
    orthogonal = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert float(F.si_snr(estimate=3 * target + orthogonal, target=target)) == pytest.approx(
        10 * math.log10(9)
    )
    assert float(F.si_snr(estimate=target + orthogonal, target=target)) == pytest.approx(0, abs=1e-5)
    # An offset on either signal changes nothing.
    assert float(F.si_snr(estimate=3 * target + orthogonal + 5, target=target - 2)) == pytest.approx(
        10 * math.log10(9), abs=1e-4
    )


def test_si_snr_equals_float64_numpy_also_when_computed_in_float32():
    for seed in range(10):
        target = noise(32_000, seed=seed)
        estimate = target + 10 ** (-(seed * 5 - 10) / 20) * noise(32_000, seed=100 + seed)
        expected = numpy_si_snr(estimate, target)
        assert float(F.si_snr(estimate=estimate, target=target)) == pytest.approx(expected, abs=1e-9)
        assert float(F.si_snr(estimate=estimate.float(), target=target.float())) == pytest.approx(
            expected, abs=1e-4
        )


def test_si_snr_ignores_scale_of_either_signal():
    target, estimate = noise(8000, seed=1), noise(8000, seed=1) + 0.1 * noise(8000, seed=2)
    expected = float(F.si_snr(estimate=estimate, target=target))
    for scale in (1e-3, 0.5, -2.0, 1e3):
        assert float(F.si_snr(estimate=scale * estimate, target=target)) == pytest.approx(expected, abs=1e-6)
        assert float(F.si_snr(estimate=estimate, target=scale * target)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("level_db", [-20, -3, 0, 10, 40])
def test_orthogonal_noise_at_minus_x_db_gives_x(level_db):
    target = noise(16_000, seed=3)
    target -= target.mean()
    error = noise(16_000, seed=4)
    error -= error.mean()
    error -= (error @ target) / (target @ target) * target
    error *= target.norm() / error.norm() * 10 ** (-level_db / 20)
    assert float(F.si_snr(estimate=target + error, target=target)) == pytest.approx(level_db, abs=1e-6)
    assert float(F.snr(estimate=target + error, target=target)) == pytest.approx(level_db, abs=1e-6)


def test_swapped_arguments_differ():
    """SI-SNR alone does not tell (it depends on the correlation coefficient only), so names are compulsory."""
    target = noise(4000, seed=5).cumsum(0)
    target = target - target.mean()
    estimate = 2 * target + 20 * noise(4000, seed=6)
    for metric in (F.snr, F.sdr):
        one, other = metric(estimate=estimate, target=target), metric(estimate=target, target=estimate)
        assert abs(float(one - other)) > 1
    assert float(F.si_snr(estimate=estimate, target=target)) == pytest.approx(
        float(F.si_snr(estimate=target, target=estimate)), abs=1e-9
    )
    with pytest.raises(TypeError):
        F.si_snr(estimate, target)


def test_silence_and_identity_are_pinned():
    loud, silent = noise(4000, seed=7, dtype=torch.float32), torch.zeros(4000)
    assert float(F.si_snr(estimate=loud, target=loud)) == pytest.approx(100)
    assert float(F.si_snr(estimate=silent, target=loud)) == pytest.approx(-100)
    assert float(F.si_snr(estimate=loud, target=silent)) == pytest.approx(-100)
    assert float(F.si_snr(estimate=silent, target=silent)) == pytest.approx(-100)
    assert float(F.snr(estimate=loud, target=loud)) == pytest.approx(100)
    assert float(F.snr(estimate=silent, target=loud)) == pytest.approx(0, abs=1e-5)
    assert float(F.snr(estimate=loud, target=silent)) == pytest.approx(-100)
    assert float(F.sdr(estimate=loud, target=loud)) == pytest.approx(100)
    assert float(F.sdr(estimate=silent, target=loud)) == pytest.approx(-100)
    assert float(F.sdr(estimate=loud, target=silent)) == pytest.approx(-100)


@pytest.mark.parametrize("metric", [F.si_snr, F.snr])
def test_values_and_gradients_are_finite_for_degenerate_signals(metric):
    loud = noise(4000, seed=8, dtype=torch.float32)
    signals = {
        "loud": loud,
        "silent": torch.zeros(4000),
        "near-silent": 1e-9 * loud,
        "constant": torch.full((4000,), 0.5),
    }
    for estimate_name, signal in signals.items():
        for target_name, target in signals.items():
            estimate = signal.clone().requires_grad_()
            value = metric(estimate=estimate, target=target)
            value.backward()
            case = f"{estimate_name} against {target_name}"
            assert torch.isfinite(value), case
            assert torch.isfinite(estimate.grad).all(), case


def test_padding_has_no_influence_when_lengths_are_given():
    estimate, target = noise(3, 2, 900, seed=9), noise(3, 2, 900, seed=10)
    lengths = torch.tensor([900, 500, 37])
    for metric in (F.si_snr, F.snr):
        values = metric(estimate=estimate, target=target, lengths=lengths)
        for item, end in enumerate(lengths.tolist()):
            expected = metric(estimate=estimate[item, :, :end], target=target[item, :, :end])
            torch.testing.assert_close(values[item], expected)
    half = torch.where(torch.arange(900) < 500, 1e-6, 1.0) * estimate[1]
    assert F.is_silent(half[None], lengths=torch.tensor([500])).all()
    assert not F.is_silent(half[None]).any()


def test_different_numbers_of_samples_are_refused_with_both_counts():
    with pytest.raises(ValueError, match=r"100 samples and target 99"):
        F.si_snr(estimate=torch.ones(100), target=torch.ones(99))


def test_si_snr_equals_torchmetrics_on_50_random_pairs():
    for seed in range(50):
        target = noise(16_000, seed=seed)
        estimate = 0.7 * target + 10 ** (-seed / 40) * noise(16_000, seed=1000 + seed)
        theirs = scale_invariant_signal_noise_ratio(estimate, target)
        assert float(F.si_snr(estimate=estimate, target=target)) == pytest.approx(float(theirs), abs=1e-4)


def test_sdr_equals_mir_eval_on_50_random_pairs():
    """mir_eval solves the same 512-tap problem with its own code (NumPy, explicit projection)."""
    for seed in range(50):
        # Coloured, as speech is: the filter matters only then.
        kernel = torch.tensor([1.0, 0.9, 0.5, 0.2], dtype=torch.float64)[None, None]
        target = torch.nn.functional.conv1d(noise(1, 1, 4003, seed=seed), kernel)[0, 0]
        delayed = torch.nn.functional.pad(target, (3, 0))[:-3]
        estimate = target + 0.4 * delayed + 10 ** (-seed / 40) * noise(4000, seed=1000 + seed)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="mir_eval.separation.bss_eval_sources", category=FutureWarning
            )
            theirs = mir_eval.separation.bss_eval_sources(
                target.numpy()[None], estimate.numpy()[None], compute_permutation=False
            )[0]
        assert float(F.sdr(estimate=estimate, target=target)) == pytest.approx(float(theirs[0]), abs=1e-4)


def test_sdr_forgives_a_filter_and_si_snr_does_not():
    target = noise(8000, seed=11)
    filtered = torch.nn.functional.pad(target, (40, 0))[:-40] + 0.3 * target
    assert float(F.sdr(estimate=filtered, target=target)) > 20
    assert float(F.si_snr(estimate=filtered, target=target)) < 0


def doctest_pair():
    """The signals of torchmetrics' documented examples for PESQ and STOI (its doctests are seeded with 42)."""
    generator = torch.Generator().manual_seed(42)
    return torch.randn(8000, generator=generator), torch.randn(8000, generator=generator)


def test_pesq_and_stoi_backends_give_their_documented_values():
    """Reference values: the examples in torchmetrics' documentation of both packages.

    The recordings behind the packages' own tests are not part of their distributions, so that these documented
    figures on seeded noise are the reference; our functions only add the rate of 16 kHz (next test).
    """
    estimate, target = (signal.numpy() for signal in doctest_pair())
    assert pesq(8000, target, estimate, "nb") == pytest.approx(2.2885, abs=5e-5)
    assert pesq(16_000, target, estimate, "wb") == pytest.approx(1.6805, abs=5e-5)
    assert stoi(target, estimate, 8000) == pytest.approx(-0.084, abs=5e-4)
    ours = F.pesq_score(estimate=torch.from_numpy(estimate), target=torch.from_numpy(target))
    assert ours == pytest.approx(1.6805, abs=5e-5)


def test_pesq_and_stoi_use_16_khz_and_the_order_reference_then_degraded():
    target = speech_like()
    estimate = target + 0.05 * noise(len(target), seed=12).float()
    t, e = target.numpy(), estimate.numpy()
    assert F.pesq_score(estimate=estimate, target=target) == pytest.approx(pesq(16_000, t, e, "wb"), abs=1e-6)
    assert F.pesq_score(estimate=estimate, target=target, mode="nb") == pytest.approx(
        pesq(16_000, t, e, "nb"), abs=1e-6
    )
    assert F.stoi_score(estimate=estimate, target=target) == pytest.approx(stoi(t, e, 16_000), abs=1e-6)
    assert F.stoi_score(estimate=estimate, target=target, extended=True) == pytest.approx(
        stoi(t, e, 16_000, extended=True), abs=1e-6
    )
    # Swapped, or at another rate, both would give something else: the checks above can fail.
    assert abs(pesq(16_000, e, t, "wb") - pesq(16_000, t, e, "wb")) > 1e-2
    assert abs(stoi(e, t, 16_000) - stoi(t, e, 16_000)) > 1e-4
    assert abs(stoi(t, e, 8000) - stoi(t, e, 16_000)) > 1e-4


def test_perfect_speech_reaches_the_top_of_the_scales():
    target = speech_like(seed=13)
    assert F.pesq_score(estimate=target, target=target) == pytest.approx(4.644, abs=1e-3)
    assert F.pesq_score(estimate=target, target=target, mode="nb") == pytest.approx(4.549, abs=1e-3)
    assert F.stoi_score(estimate=target, target=target) == pytest.approx(1)


def test_pesq_of_a_long_recording_is_the_mean_of_its_parts():
    """Sixty short utterances crash the reference implementation when it is given them at once."""
    target = speech_like(seconds=32.0)
    estimate = target + 0.02 * noise(len(target), seed=14).float()
    halves = [F.pesq_score(estimate=e, target=t) for e, t in zip(estimate.chunk(2), target.chunk(2))]
    assert F.pesq_score(estimate=estimate, target=target) == pytest.approx(np.mean(halves), abs=1e-6)


@pytest.mark.parametrize(
    ("score", "seconds", "reason"),
    [(F.pesq_score, 0.2, "PESQ needs 0.25 s"), (F.stoi_score, 0.3, "STOI needs 0.41 s")],
)
def test_what_is_too_short_has_no_value(score, seconds, reason):
    target = noise(int(16_000 * seconds), seed=15).float()
    with pytest.raises(F.UndefinedMetricError, match=reason):
        score(estimate=target, target=target)


def test_a_click_in_silence_has_no_value_instead_of_a_made_up_one():
    click = torch.zeros(32_000)
    click[16_000:16_800] = 0.5 * noise(800, seed=16).float()
    with pytest.raises(F.UndefinedMetricError, match="no utterances"):
        F.pesq_score(estimate=click, target=click)
    with pytest.raises(F.UndefinedMetricError, match="silent frames"):
        F.stoi_score(estimate=click, target=click)
    with pytest.raises(F.UndefinedMetricError, match="truth is silent"):
        F.pesq_score(estimate=click, target=torch.zeros(32_000))


def test_best_permutation_is_the_brute_force_one():
    estimates, targets = noise(6, 3, 400, seed=17), noise(6, 3, 400, seed=18)
    truth = [
        torch.tensor(order) for order in [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)]
    ]
    for item, order in enumerate(truth):
        estimates[item, order] += 0.8 * targets[item]
    found = F.best_permutation(estimates=estimates, targets=targets)
    assert torch.equal(found, torch.stack(truth))
    aligned = F.permute(estimates, found)
    for item, order in enumerate(truth):
        assert torch.equal(aligned[item], estimates[item, order])
