"""The separator through its forward call."""

from itertools import pairwise

import hydra
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.metrics.functional import si_snr
from src.model import BandSeparator
from src.model.blocks.band_split import BandDecoder, BandEncoder, erb_band_edges
from src.model.blocks.lip_fusion import resample_to_frames
from src.model.blocks.stft import Stft

SMALL = {
    "visual_dim": 16,
    "num_bands": 12,
    "channels": 16,
    "squeezed": 4,
    "cue_channels": 16,
    "cue_dropout": 0.0,
}


def small(seed: int = 0, **options) -> BandSeparator:
    """An untrained small separator whose last layer is not zero, so that its estimates differ from halves."""
    torch.manual_seed(seed)
    model = BandSeparator(**{**SMALL, **options}).eval()
    for decoder in filter(None, (model.decoder, model.imaginary)):
        for band in decoder.bands:
            torch.nn.init.normal_(band.weight, std=0.1)
    return model


def lips(batch: int = 1, frames: int = 50) -> torch.Tensor:
    return torch.randn(batch, 2, frames, SMALL["visual_dim"], generator=torch.Generator().manual_seed(1))


def mixture(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("samples", [1, 2, 255, 256, 257, 639, 16000, 32001])
def test_stft_inverts_at_any_length(samples):
    stft = Stft(512, 256)
    signal = mixture(2, samples)
    torch.testing.assert_close(stft.inverse(stft(signal), samples), signal, atol=2e-6, rtol=0)


def test_bands_cover_every_bin_once():
    edges = erb_band_edges(257, 24)
    assert edges[0] == 0 and edges[-1] == 257 and all(b - a >= 2 for a, b in pairwise(edges))


@pytest.mark.parametrize("window", [768, 1024, 2048])
def test_bands_are_the_same_ones_whatever_the_window(window):
    hertz, others = (
        [edge * 16000 / length for edge in erb_band_edges(length // 2 + 1, 24)] for length in (512, window)
    )
    bin_hz = 16000 / 512
    assert max(abs(a - b) for a, b in zip(hertz, others)) <= bin_hz


@pytest.mark.parametrize(("before", "now"), [(512, 1024), (1024, 512), (512, 768)])
def test_a_band_split_takes_over_from_one_of_another_window(before, now):
    old, new = (BandEncoder(window // 2 + 1, 24, num_features=3, channels=4) for window in (before, now))
    new.load_state_dict({k: v for k, v in old.state_dict().items() if k.endswith("bias")}, strict=False)
    for linear in old.bands:  # bins of a band weigh the same
        weight = linear.weight.data.unflatten(1, (-1, 3))
        weight.copy_(weight.mean(1, keepdim=True).expand_as(weight))
    new.begin_from(old.state_dict())
    flat = torch.rand(1, 1, 1, 3)  # a spectrum without lines is the same one in any window
    with torch.no_grad():
        of_new, of_old = (e(flat.expand(1, 1, w // 2 + 1, 3)) for e, w in ((new, now), (old, before)))
    torch.testing.assert_close(of_new, of_old, atol=1e-5, rtol=0)
    old, new = (BandDecoder(window // 2 + 1, 24, channels=4, bias=True) for window in (before, now))
    for parameter in old.parameters():
        torch.nn.init.normal_(parameter)
    new.begin_from(old.state_dict())
    embedding = torch.randn(1, 3, 24, 4)
    with torch.no_grad():
        coarse, fine = old(embedding), new(embedding)
    bands = zip(pairwise(erb_band_edges(before // 2 + 1, 24)), pairwise(erb_band_edges(now // 2 + 1, 24)))
    for (low, high), (first, end) in bands:  # between what the band said, and at its edges the same
        assert fine[..., first:end].max() <= coarse[..., low:high].max() + 1e-5
        assert fine[..., first:end].min() >= coarse[..., low:high].min() - 1e-5
    with pytest.raises(ValueError, match="24 bands cannot become 12"):
        BandDecoder(now // 2 + 1, 12, channels=4, bias=True).begin_from(old.state_dict())


def test_a_bin_is_read_by_its_band_alone_and_written_by_it():
    edges = erb_band_edges(257, 24)
    encoder = BandEncoder(257, 24, num_features=2, channels=4)
    decoder = BandDecoder(257, 24, channels=4, bias=True)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    bins, bands = torch.randn(1, 1, 257, 2), torch.randn(1, 1, 24, 4)
    with torch.no_grad():
        for band, (low, high) in enumerate(pairwise(edges)):
            for number in (low, high - 1):
                changed = bins.clone()
                changed[:, :, number] += 1
                moved = (encoder(changed) != encoder(bins)).any(dim=-1)[0, 0]
                assert moved.nonzero().flatten().tolist() == [band]
            changed = bands.clone()
            changed[:, :, band] += 1
            moved = (decoder(changed) != decoder(bands))[0, 0]
            assert moved.nonzero().flatten().tolist() == list(range(low, high))


def test_lip_frames_are_read_at_their_centres():
    ramp = torch.arange(4.0)[None, :, None]
    # Frame k is centred at 640 k + 320, STFT frame n at 320 n: n = 1, 3, 5, 7 hit the centres.
    resampled = resample_to_frames(ramp, 9, hop=320)[0, :, 0]
    torch.testing.assert_close(resampled, torch.tensor([0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3]))


@pytest.mark.parametrize("samples", [1, 100, 16000, 32000, 40001])
def test_any_length_in_same_length_out_and_sum_is_the_mixture(samples):
    mix = mixture(2, samples)
    with torch.no_grad():
        estimates = small()(mix, lips(2))["estimates"]
    assert estimates.shape == (2, 2, samples)
    torch.testing.assert_close(estimates.sum(1), mix, atol=1e-6, rtol=0)


def test_starts_at_halves_of_the_mixture():
    mix = mixture(2, 8000)
    with torch.no_grad():
        estimates = BandSeparator(**SMALL)(mix, lips(2))["estimates"]
    torch.testing.assert_close(estimates, mix[:, None].expand(-1, 2, -1) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("present", [(True, True), (True, False)])
def test_swapping_lips_swaps_voices(present):
    model, mix, visual = small(), mixture(1, 16000), lips(frames=25)
    mask = torch.tensor([present])
    with torch.no_grad():
        straight = model(mix, visual, mask)["estimates"]
        swapped = model(mix, visual.flip(1), mask.flip(1))["estimates"]
    torch.testing.assert_close(swapped.flip(1), straight, atol=1e-6, rtol=0)
    assert (straight[:, 0] - straight[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("max_lag", [0, 4])
def test_absent_lips_are_not_looked_at(max_lag):
    model, mix, visual = small(max_lag=max_lag), mixture(1, 16000), lips(frames=25)
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


def test_level_is_kept():
    model, mix = small(), mixture(1, 16000)
    with torch.no_grad():
        loud, quiet = (model(gain * mix, lips(frames=25))["estimates"] / gain for gain in (1.0, 1e-2))
    torch.testing.assert_close(loud, quiet, atol=1e-5, rtol=1e-3)


def test_an_item_does_not_depend_on_its_batch():
    model, mix, visual = small(), mixture(3, 16000), lips(3, 25)
    with torch.no_grad():
        together = model(mix, visual)["estimates"][1:2]
        alone = model(mix[1:2], visual[1:2])["estimates"]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_silence_gives_silence_and_finite_gradients():
    model = small().train()
    estimates = model(torch.zeros(1, 8000), lips(frames=13))["estimates"]
    assert estimates.abs().max() < 1e-6
    estimates.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{}, {"visual_dim": 0}, {"consistent": False, "complex_masks": True}])
def test_gradient_reaches_every_parameter(options):
    """One mixture with both, one and no lips each: DistributedDataParallel relies on it."""
    model = small(**options).train()
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    estimates = model(mixture(3, 8000), lips(3, 13), mask)["estimates"]
    estimates[:, 0].square().sum().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


def test_lips_of_other_width_are_refused():
    with pytest.raises(ValueError, match=r"16 \(model.visual_dim\)"):
        small()(mixture(1, 8000), torch.randn(1, 2, 13, 8))


def test_audio_only_reports_that_no_lips_were_used():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not small(visual_dim=0)(mixture(1, 8000), lips(), mask)["visual_mask"].any()


@pytest.mark.parametrize(
    ("options", "weighed_frames"),
    [
        ({"max_lag": 6}, 2),  # 96 ms
        ({"max_lag": 6, "hop": 128}, 1),
        ({"max_lag": 6, "hop": 128, "matching_step": 2}, 2),
        ({"max_lag": 0}, 0),
        ({"max_lag": 6, "anonymous_blocks": 0}, 0),
        ({"max_lag": 6, "visual_dim": 0}, 0),
    ],
)
def test_weighed_lags_in_whole_video_frames(options, weighed_frames):
    assert small(**options).weighed_frames == weighed_frames


@pytest.mark.parametrize("visual_dim", [512, 1024])
@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("tiny", 0.5e6, 1e9), ("small", 1e6, 4e9), ("base", 3e6, 12e9)]
)
def test_the_family_keeps_its_budgets(name, parameters, macs, visual_dim):
    """Parameters, and MACs for both voices of 2 s."""
    with hydra.initialize(version_base=None, config_path="../../../src/configs"):
        config = hydra.compose("train", overrides=[f"model={name}", f"visual_dim={visual_dim}"])
    model = hydra.utils.instantiate(config.model).eval()
    assert sum(p.numel() for p in model.parameters()) <= parameters
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(mixture(1, 32000), torch.randn(1, 2, 50, visual_dim))
    assert counter.get_total_flops() / 2 <= macs


@pytest.mark.parametrize(
    "options",
    [
        {"exchange": False},
        {"consistent": False},
        {"fusion": "shift"},
        {"deep_fusion": False, "anonymous_blocks": 0},
        {"deep_fusion": False},
        {"anonymous_blocks": 2},
        {"max_lag": 4},
        {"max_lag": 4, "hop": 128, "matching_step": 2},
        {"complex_masks": True},
        {"window": 768},
        {"units": 8},
        {"rounds": 2},
        {"heads": 2},
        {"tracking": True},
        {"tracking": True, "rounds": 3, "max_lag": 4},
    ],
    ids=str,
)
def test_what_ablations_change_keeps_the_contract(options):
    model, visual = small(**options), lips()
    mix = mixture(1, 8000)
    with torch.no_grad():
        estimates = model(mix, visual)["estimates"]
        swapped = model(mix, visual.flip(1))["estimates"]
    assert not torch.allclose(estimates, small()(mix, visual)["estimates"], atol=1e-4)
    torch.testing.assert_close(swapped, estimates.flip(1), atol=1e-6, rtol=0)
    sums_to_mixture = torch.allclose(estimates.sum(1), mix, atol=1e-5)
    assert sums_to_mixture == options.get("consistent", True)


def test_blocks_without_lips_must_leave_one_that_has_them():
    with pytest.raises(ValueError, match=r"model\.anonymous_blocks=3: must be 0 to 2"):
        small(voice_blocks=3, anonymous_blocks=3)


def test_attention_beside_an_lstm_is_refused():
    with pytest.raises(ValueError, match=r"model\.heads=2: there is no attention beside an LSTM"):
        small(heads=2, units=8)


@pytest.mark.parametrize(
    ("voice_blocks", "anonymous_blocks", "attentive"),
    [(4, 1, [0, 3]), (6, 2, [1, 4]), (3, 0, [2]), (9, 1, [0, 3, 6])],
)
def test_frames_attend_in_the_last_block_before_the_matching_and_every_third_after_it(
    voice_blocks, anonymous_blocks, attentive
):
    model = small(voice_blocks=voice_blocks, anonymous_blocks=anonymous_blocks, heads=2)
    assert [i for i in range(voice_blocks) if model.voices[i].full_band.attention is not None] == attentive
    assert all(block.full_band.attention is None for block in model.shared)


def test_no_round_is_refused():
    with pytest.raises(ValueError, match=r"model\.rounds=0: must be 1 or more"):
        small(rounds=0)


@pytest.mark.parametrize("options", [{"anonymous_blocks": 0}, {"visual_dim": 0}], ids=str)
def test_without_a_matching_there_is_nothing_to_track_by(options):
    plain, tracking = (small(tracking=tracking, **options).state_dict() for tracking in (False, True))
    assert set(plain) == set(tracking)


def test_without_lips_there_is_nothing_to_track_by():
    with torch.no_grad():
        plain, tracked = (
            small(tracking=tracking)(mixture(1, 8000))["estimates"] for tracking in (False, True)
        )
    assert torch.equal(plain, tracked)


def test_more_rounds_cost_no_parameters_but_a_gate():
    one, three = (sum(p.numel() for p in small(rounds=rounds).parameters()) for rounds in (1, 3))
    assert three - one == 2 * small().norm.weight.numel()


def refining(**options):
    """One that refines, untrained like the others, but sees what it is given."""
    model = small(refining=True, **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.refinement.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("options", [{}, {"rounds": 2, "max_lag": 4, "tracking": True}], ids=str)
@pytest.mark.parametrize("used", [[True, True], [True, False]])
def test_a_pass_that_refines_keeps_the_order_that_it_is_given(options, used):
    model, mix, mask = refining(**options), mixture(2, 8000), torch.tensor([used] * 2)
    seen = {"visual": lips(2, 13) * mask[:, :, None, None], "visual_mask": mask}
    crossed = {key: value.flip(1) for key, value in seen.items()}
    earlier = torch.stack([mix.clamp(min=0), mix.clamp(max=0)], dim=1)
    with torch.no_grad():
        refined = model(mix, **seen, earlier=earlier)["estimates"]
        flipped = model(mix, **crossed, earlier=earlier.flip(1))["estimates"]
        first = model(mix, **seen)["estimates"]
    torch.testing.assert_close(flipped, refined.flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(refined.sum(1), mix, atol=1e-5, rtol=0)
    assert not torch.allclose(refined, first, atol=1e-4)


def test_what_is_refined_does_not_depend_on_the_level():
    model, mix = refining(), mixture(1, 8000)
    earlier = torch.stack([mix.clamp(min=0), mix.clamp(max=0)], dim=1)
    with torch.no_grad():
        once, louder = (model(gain * mix, lips(), earlier=gain * earlier)["estimates"] for gain in (1, 100))
    torch.testing.assert_close(louder, 100 * once, atol=1e-3, rtol=1e-3)


def test_a_model_that_does_not_refine_refuses_estimates():
    mix = mixture(1, 8000)
    with pytest.raises(ValueError, match=r"model\.refining=false"):
        small()(mix, lips(), earlier=torch.zeros(1, 2, 8000))


def test_voices_before_the_matching_are_told_in_training_alone():
    model, mix, visual = small(), mixture(2, 8000), lips(2, 13)
    outputs = model.train()(mix, visual)
    assert outputs["anonymous"].shape == (2, 2, 8000) and outputs["order"].shape == (2,)
    likelihood = outputs["likelihood"]  # of the first mixture's mouths and the second's
    assert likelihood.shape == (4, 4)
    own = torch.stack([likelihood[:2, :2], likelihood[2:, 2:]]).diagonal(dim1=1, dim2=2).sum(1)
    other = (
        torch.stack([likelihood[:2, :2].flip(0), likelihood[2:, 2:].flip(0)]).diagonal(dim1=1, dim2=2).sum(1)
    )
    torch.testing.assert_close(own - other, outputs["order"])
    torch.testing.assert_close(outputs["anonymous"].sum(1), mix, atol=1e-6, rtol=0)
    with torch.no_grad():
        swapped = model(mix, visual.flip(1))
    torch.testing.assert_close(swapped["anonymous"], outputs["anonymous"])  # no lips have been seen yet
    torch.testing.assert_close(swapped["order"], -outputs["order"])
    assert set(model(mix)) == {"estimates", "visual_mask"}
    assert set(model.eval()(mix, visual)) == {"estimates", "visual_mask", "order"}
    assert set(small(anonymous_blocks=0).train()(mix, visual)) == {"estimates", "visual_mask"}


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match=r"model\.fusion=concat: choose one of scale_shift, shift"):
        small(fusion="concat")


@pytest.mark.parametrize("visual_dim", [0, 16])
def test_learns_four_mixtures(visual_dim):
    """Two tones in noise a voice: a network that trains must separate what it has seen."""
    torch.manual_seed(0)
    time = torch.arange(8000) / 16000
    pitches = torch.tensor([[200, 900], [300, 1400], [250, 2000], [350, 700]])
    sources = (
        torch.stack([torch.stack([torch.sin(6.283 * f * time) for f in pair]) for pair in pitches]) * 0.1
    )
    sources = sources + 0.002 * torch.randn_like(sources)
    mix, visual = sources.sum(1), lips(4, 13) if visual_dim else None
    model = small(visual_dim=visual_dim).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        estimates = model(mix, visual)["estimates"]
        loss = (estimates - sources).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        score = si_snr(estimate=model(mix, visual)["estimates"], target=sources)
    assert score.mean() > 15, f"SI-SNR {score.mean():.1f} dB after 60 steps"
