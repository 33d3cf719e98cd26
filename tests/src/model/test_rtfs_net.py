"""RTFS-Net through its forward call, and its published size and cost."""

import pytest
import torch

from src.model import RtfsNet
from tests.src.model import cued


def small(**options) -> RtfsNet:
    torch.manual_seed(0)
    sizes = {"channels": 16, "compressed": 8, "rnn_hidden": 4, "rnn_layers": 2, "rnn_window": 4, "heads": 2}
    narrow = {"visual_dim": cued.VISUAL_DIM, "key_channels": 2, "video_heads": 2, "blocks": 3}
    return RtfsNet(**{**sizes, **narrow, "window": 128, "hop": 64, **options}).eval()


@pytest.mark.parametrize(("blocks", "published_gmacs"), [(4, 21.9), (6, 30.5), (12, 56.4)])
def test_published_size_and_cost(blocks, published_gmacs):
    """0.74 M parameters; GMACs for one voice of 2 s (arXiv 2309.17189, table 1). Within 5 %."""
    model = cued.configured(f"rtfs_net_{blocks}")
    assert cued.millions_of_parameters(model) == pytest.approx(0.74, rel=0.05)
    mix, visual = cued.mixture(1, 32000), torch.randn(1, 50, 512)
    gmacs = cued.giga_macs_per_voice(lambda: model.extract(mix, visual), voices=1)
    assert gmacs == pytest.approx(published_gmacs, rel=0.05)


def test_both_voices_cost_two_passes():
    model = small()
    mix, visual = cued.mixture(1, 8000), cued.lips()
    one = cued.giga_macs_per_voice(lambda: model.extract(mix, visual[:, 0]), voices=1)
    assert cued.giga_macs_per_voice(lambda: model(mix, visual), voices=2) == one


def test_any_length():
    cued.assert_any_length(small(), (1, 2, 63, 64, 129, 700, 4001, 8000))


@pytest.mark.parametrize("options", [{"scales": 1}, {"scales": 3}, {"visual_dim": 24}])
def test_other_shapes(options):
    model = small(**options)
    visual = torch.randn(2, 2, 5, model.lips.visual_dim)
    assert model(cued.mixture(2, 3000), visual)["estimates"].shape == (2, 2, 3000)


def test_lips_decide():
    cued.assert_lips_decide(small())


def test_level_is_kept():
    cued.assert_level_is_kept(small())


def test_items_do_not_meet():
    cued.assert_items_do_not_meet(small())


def test_every_parameter_is_reached():
    cued.assert_every_parameter_is_reached(small())


def test_runs_under_bfloat16_autocast():
    model = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        estimates = model(cued.mixture(1, 4000), cued.lips())["estimates"]
    assert estimates.dtype == torch.float32
    estimates.square().sum().backward()


def test_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"16 \(model.visual_dim\)"):
        small()(cued.mixture(1, 4000), torch.randn(1, 2, 7, 8))
    with pytest.raises(ValueError, match="model=audio_only"):
        small(visual_dim=0)
    with pytest.raises(ValueError, match="blocks=1"):
        small(blocks=1)
    with pytest.raises(ValueError, match="window=8"):
        small(window=8, hop=4)


def test_learns_four_mixtures():
    model = small(blocks=2, rnn_layers=1, window=256, hop=128)
    assert cued.score_on_four_mixtures(model, steps=25, learning_rate=1e-2) > 15
