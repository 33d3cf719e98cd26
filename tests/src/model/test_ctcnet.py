"""CTCNet through its forward call, and its published size and cost."""

import pytest
import torch

from src.model import CtcNet
from tests.src.model import cued


def small(**options) -> CtcNet:
    torch.manual_seed(0)
    sizes = {"channels": 24, "video_channels": 8, "stages": 3, "video_stages": 2, "kernel": 41, "stride": 20}
    few = {"visual_dim": cued.VISUAL_DIM, "fusion_cycles": 2, "audio_cycles": 2}
    return CtcNet(**{**sizes, **few, **options}).eval()


def test_published_size_and_cost():
    """7.0 M parameters; 166.8 GMACs for one voice of 2 s (arXiv 2212.10744, table of model sizes). Within 5 %."""
    model = cued.configured("ctcnet").to("meta")
    assert cued.millions_of_parameters(model) == pytest.approx(7.0, rel=0.05)
    mix, visual = torch.empty(1, 32000, device="meta"), torch.empty(1, 50, 512, device="meta")
    assert cued.giga_macs_per_voice(lambda: model.extract(mix, visual), 1) == pytest.approx(166.8, rel=0.05)


def test_both_voices_cost_two_passes():
    model = small()
    mix, visual = cued.mixture(1, 8000), cued.lips()
    one = cued.giga_macs_per_voice(lambda: model.extract(mix, visual[:, 0]), voices=1)
    assert cued.giga_macs_per_voice(lambda: model(mix, visual), voices=2) == one


def test_any_length():
    cued.assert_any_length(small(), (1, 2, 19, 20, 21, 641, 4001, 8000))


@pytest.mark.parametrize(
    "options",
    [{"visual_dim": 24}, {"kernel": 21, "stride": 10}, {"stages": 1, "video_stages": 1}, {"audio_cycles": 0}],
)
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


def test_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"16 \(model.visual_dim\)"):
        small()(cued.mixture(1, 4000), torch.randn(1, 2, 7, 8))
    with pytest.raises(ValueError, match="model=audio_only"):
        small(visual_dim=0)
    with pytest.raises(ValueError, match="fusion_cycles=0"):
        small(fusion_cycles=0)
    with pytest.raises(ValueError, match="kernel=40"):
        small(kernel=40)


def test_learns_four_mixtures():
    assert cued.score_on_four_mixtures(small(), steps=50, learning_rate=1e-2) > 15
