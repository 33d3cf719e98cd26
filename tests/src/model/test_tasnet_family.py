"""Conv-TasNet with and without lips, DPRNN-TasNet, TasNet and DANet through their forward call."""

import hydra
import pytest
import torch

from src.model import AVConvTasNet, ConvTasNet, DANet, DPRNNTasNet, TasNet
from src.model.blocks.anchored_attractor import AnchoredAttractors
from src.model.blocks.learned_filterbank import LearnedDecoder, LearnedEncoder
from src.model.blocks.segmentation import overlap_add, segment
from tests.src.model.common import four_sources, learn, lips, mixture, num_parameters, unreached_parameters

TCN = {"basis": 48, "channels": 16, "hidden": 32, "skip": 16, "blocks": 4}
SMALL = {
    ConvTasNet: {**TCN, "repeats": 2},
    AVConvTasNet: {**TCN, "visual_dim": 16, "fused_repeats": 1, "lip_channels": 16, "lip_blocks": 2},
    DPRNNTasNet: {"basis": 32, "channels": 16, "hidden": 16, "blocks": 2, "chunk": 44},
    TasNet: {"basis": 64, "hidden": 32},
    DANet: {"hidden": 32, "layers": 2, "embedding_dim": 8, "anchors": 4},
}
ALL = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


def small(kind, seed: int = 0):
    torch.manual_seed(seed)
    return kind(**SMALL[kind]).eval()


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (ConvTasNet, 5.1e6),
        (DPRNNTasNet, 2.6e6),
        (lambda: TasNet(segment=40), 23.6e6),  # 5 ms at the paper's 8 kHz; 23.1 M here
        (lambda: DANet(window=256, hop=64), 9.1e6),  # 129 bins at the paper's 8 kHz
    ],
    ids=["ConvTasNet", "DPRNNTasNet", "TasNet", "DANet"],
)
def test_published_number_of_parameters(build, published):
    assert num_parameters(build()) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("choice", "millions"),
    [
        ("conv_tasnet", 4.98),
        ("conv_tasnet_av", 5.44),
        ("dprnn_tasnet", 2.60),
        ("tasnet", 23.15),
        ("danet", 10.93),
    ],
)
def test_configured_number_of_parameters(choice, millions):
    with hydra.initialize(version_base=None, config_path="../../../src/configs"):
        config = hydra.compose("train", overrides=[f"model={choice}", "visual_dim=512"])
    assert num_parameters(hydra.utils.instantiate(config.model)) / 1e6 == pytest.approx(millions, abs=0.005)


@ALL
@pytest.mark.parametrize("samples", [1, 7, 79, 640, 8001])
def test_any_length_in_same_length_out(kind, samples):
    with torch.no_grad():
        estimates = small(kind)(mixture(2, samples), lips(2, -(-samples // 640)))["estimates"]
    assert estimates.shape == (2, 2, samples) and estimates.isfinite().all()


@ALL
def test_level_is_kept(kind):
    model, mix = small(kind), mixture(1, 8000)
    with torch.no_grad():
        loud, quiet = (model(gain * mix, lips(frames=13))["estimates"] / gain for gain in (1.0, 1e-2))
    torch.testing.assert_close(loud, quiet, atol=1e-5, rtol=1e-3)


@ALL
def test_an_item_does_not_depend_on_its_batch(kind):
    model, mix, visual = small(kind), mixture(3, 8000), lips(3, 13)
    with torch.no_grad():
        together = model(mix, visual)["estimates"][1:2]
        alone = model(mix[1:2], visual[1:2])["estimates"]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@ALL
def test_gradient_reaches_every_parameter(kind):
    """One mixture with both, one and no lips each: DistributedDataParallel relies on it."""
    model = small(kind).train()
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    target = mixture(3, 4000)
    assert not unreached_parameters(
        model, lambda: (model(mixture(3, 4000), lips(3, 7), mask)["estimates"][:, 0] - target).square().sum()
    )


@ALL
def test_silence_gives_silence_and_finite_gradients(kind):
    model = small(kind).train()
    estimates = model(torch.zeros(1, 4000), lips(frames=7))["estimates"]
    assert estimates.abs().max() < 1e-6
    estimates.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@ALL
def test_estimates_keep_precision_under_autocast(kind):
    """The waveform stays float32, where bfloat16 would put noise 50 dB under it."""
    model, mix = small(kind), mixture(1, 4000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        estimates = model(mix, lips(frames=7))["estimates"]
    assert estimates.dtype == torch.float32


@ALL
def test_learns_four_mixtures(kind):
    sources = four_sources(4000)
    visual = lips(4, 7) if kind is AVConvTasNet else None
    score = learn(small(kind), sources, visual, steps=80, rate=1e-2)
    assert score.mean() > 15, f"SI-SNR {score.mean():.1f} dB"


@pytest.mark.parametrize("kind", [ConvTasNet, DPRNNTasNet, TasNet, DANet])
def test_without_lips_the_mask_says_so(kind):
    model, mix = small(kind), mixture(2, 4000)
    with torch.no_grad():
        given, absent = model(mix, lips(2, 7), torch.ones(2, 2, dtype=torch.bool)), model(mix)
    assert not given["visual_mask"].any() and given["visual_mask"].shape == (2, 2)
    torch.testing.assert_close(given["estimates"], absent["estimates"], atol=0, rtol=0)


@pytest.mark.parametrize("present", [(True, True), (True, False)])
def test_swapping_lips_swaps_voices(present):
    model, mix, visual = small(AVConvTasNet), mixture(1, 8000), lips(frames=13)
    mask = torch.tensor([present])
    with torch.no_grad():
        straight = model(mix, visual, mask)["estimates"]
        swapped = model(mix, visual.flip(1), mask.flip(1))["estimates"]
    torch.testing.assert_close(swapped.flip(1), straight, atol=1e-6, rtol=0)
    assert (straight[:, 0] - straight[:, 1]).abs().max() > 1e-4


def test_absent_lips_are_not_looked_at():
    model, mix, visual = small(AVConvTasNet), mixture(1, 8000), lips(frames=13)
    mask = torch.tensor([[True, False]])
    other = visual.clone()
    other[:, 1] = 1e3
    with torch.no_grad():
        torch.testing.assert_close(
            model(mix, visual, mask)["estimates"], model(mix, other, mask)["estimates"], atol=0, rtol=0
        )
        none = model(mix, visual, torch.zeros(1, 2, dtype=torch.bool))
        absent = model(mix)
    torch.testing.assert_close(none["estimates"], absent["estimates"], atol=1e-6, rtol=0)
    assert not absent["visual_mask"].any()
    assert (absent["estimates"][:, 0] - absent["estimates"][:, 1]).abs().max() > 1e-4


def test_lips_of_other_width_are_refused():
    with pytest.raises(ValueError, match=r"16 \(model.visual_dim\)"):
        small(AVConvTasNet)(mixture(1, 4000), lips(frames=7, dim=8))


@pytest.mark.parametrize("kind", [TasNet, DANet])
def test_masks_sum_to_one(kind):
    """DANet's estimates sum to the mixture, TasNet's to what its basis makes of the mixture."""
    model, mix = small(kind), mixture(2, 4000)
    with torch.no_grad():
        total = model(mix)["estimates"].sum(1)
        if kind is TasNet:
            torch.nn.init.zeros_(model.masks.weight)  # halves
            torch.nn.init.zeros_(model.masks.bias)
            mix = 2 * model(mix)["estimates"][:, 0]
    torch.testing.assert_close(total, mix, atol=1e-6, rtol=0)


def test_danet_needs_no_truth():
    """Anchors give the same attractors in training and in inference."""
    model, mix = small(DANet), mixture(1, 4000)
    with torch.no_grad():
        inference, training = model(mix), model.train()(mix, sources=mixture(1, 2, 4000))
    torch.testing.assert_close(training["estimates"], inference["estimates"], atol=0, rtol=0)


def test_attractors_are_the_means_of_clusters_and_faint_bins_do_not_count():
    attractors = AnchoredAttractors(anchors=4, dim=2)
    attractors.anchors.data = torch.tensor([[9.0, 0.0], [0.0, 9.0], [-9.0, 0.0], [0.0, -9.0]])
    east, west = torch.tensor([[4.0, 1.0], [4.0, -1.0]]), torch.tensor([[-6.0, 1.0], [-6.0, -1.0]])
    faint = torch.tensor([[50.0, 50.0]])
    found = attractors(torch.cat([east, west, faint])[None], torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    torch.testing.assert_close(found[0], torch.tensor([[4.0, 0.0], [-6.0, 0.0]]))


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 16, 8001])
def test_learned_filterbank_inverts_with_an_orthogonal_basis(samples):
    encoder, decoder = LearnedEncoder(16, 16), LearnedDecoder(16, 16)
    basis = torch.linalg.qr(torch.randn(16, 16))[0][:, None]
    encoder.conv.weight.data, decoder.conv.weight.data = (
        basis,
        basis / 2,
    )  # every sample lies under two windows
    signal = mixture(2, samples)
    weights = encoder(signal)
    assert weights.shape[-1] == -(-samples // 8) + 1
    torch.testing.assert_close(decoder(weights[:, None], samples)[:, 0], signal, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 5, 6, 7, 100])
def test_overlap_add_undoes_segmentation(num_frames):
    sequence = torch.randn(2, num_frames, 3)
    chunks = segment(sequence, 6)
    assert chunks.shape[2] == 6
    torch.testing.assert_close(overlap_add(chunks, num_frames), sequence)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ConvTasNet, {"window": 15}),
        (ConvTasNet, {"kernel": 2}),
        (AVConvTasNet, {"visual_dim": 0}),
        (DPRNNTasNet, {"chunk": 45}),
        (TasNet, {"layers": 3}),
        (DANet, {"anchors": 1}),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(kind, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        kind(**{**SMALL[kind], **options})
