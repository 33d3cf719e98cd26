"""A separator made small to ship separates as the checkpoint does, and brings everything along."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from src.model import BandSeparator
from src.trainer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, start_from
from src.trainer.separator import choose_checkpoint, load_separator
from src.trainer.ship import main, ship

SIZES = {"visual_dim": 8, "num_bands": 8, "channels": 8, "squeezed": 2, "cue_channels": 8}
FRONT_END = {
    "network": "none", "weights": "/home/someone/lips.pt", "weights_sha256": "0" * 64, "preprocessing_version": 1,
    "features": "frontend", "dtype": "float32", "dim": 8,
}  # fmt: skip


def trained(folder, **options):
    torch.manual_seed(0)
    sizes = {**SIZES, **options}
    model = BandSeparator(**sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    config = OmegaConf.create(
        {
            "model": {"_target_": "src.model.BandSeparator", **sizes},
            "datasets": {
                "root": "/home/someone/data",
                "train": {"root": "/home/someone/data", "level_db": [0, 10]},
            },
            "trainer": {"save_dir": "/home/someone/saved", "n_epochs": 3},
            "cache": "/home/someone/mouths.h5",
            "transforms": [{"noise": {"folder": "/home/someone/rooms/noise"}}],
        }
    )
    save_checkpoint(
        folder / "best.pt",
        {
            "arch": "BandSeparator",
            "step": 7,
            "epoch": 1,
            "state_dict": BandSeparator(**sizes).state_dict(),
            "ema": model.state_dict(),
            "config": OmegaConf.to_container(config),
            "front_end": FRONT_END,
        },
    )
    return model.eval()


def test_it_separates_the_same(tmp_path):
    model = trained(tmp_path)
    shipped = load_separator(ship(tmp_path, tmp_path / "weights" / "x.safetensors"))
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        own, other = (m(mix, lips)["estimates"] for m in (model, shipped.model))
    assert (own - other).square().mean() < 1e-4 * own.square().mean()
    assert shipped.front_end == {**FRONT_END, "weights": "lips.pt"}
    size = (tmp_path / "weights" / "x.safetensors").stat().st_size
    assert size < 2 * sum(value.numel() for value in model.state_dict().values()) + 20_000


def test_nothing_of_the_machine_goes_along(tmp_path):
    trained(tmp_path)
    out = ship(tmp_path / "best.pt", tmp_path / "x.safetensors")
    with safe_open(out, framework="pt") as file:
        assert "someone" not in str(file.metadata())
    content = load_checkpoint(out)
    assert content["config"]["transforms"] == [{"noise": {"folder": "noise"}}]
    assert content["step"] == 7 and content["config"]["datasets"]["train"]["level_db"] == [0, 10]


def test_a_training_can_begin_with_it(tmp_path):
    trained(tmp_path)
    out = ship(tmp_path, tmp_path / "x.safetensors")
    assert start_from(BandSeparator(**SIZES), out) == []


def test_damaged_and_foreign_files_are_refused(tmp_path, capsys, monkeypatch):
    trained(tmp_path)
    out = ship(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(out.read_bytes()[:-100])
    monkeypatch.setattr("sys.argv", ["ship", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "x.pt")])
    assert main() == 2 and "safetensors" in capsys.readouterr().err
    for name in ("cut", "absent"):
        try:
            load_checkpoint(tmp_path / f"{name}.safetensors")
        except CheckpointError as error:
            assert name in str(error)
        else:
            raise AssertionError(name)


def test_a_run_goes_before_the_weights_that_ship(tmp_path, monkeypatch):
    trained(tmp_path)
    shipped = tmp_path / "shipped.safetensors"
    shipped.touch()
    monkeypatch.setattr("src.trainer.separator.SHIPPED", shipped)
    monkeypatch.setattr("src.trainer.separator.ROOT_PATH", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert choose_checkpoint(None, None) == shipped
    (tmp_path / "saved/separator").mkdir(parents=True)
    (tmp_path / "saved/separator/info.log").touch()
    assert choose_checkpoint(None, None) == shipped, "a run that could not start is no run"
    assert choose_checkpoint(None, tmp_path) == tmp_path / "best.pt"
    assert choose_checkpoint(tmp_path / "best.pt", "no run") == tmp_path / "best.pt"
    with pytest.raises(CheckpointError, match="no run"):
        choose_checkpoint(None, "no run")
    (tmp_path / "saved/separator/best.pt").symlink_to(tmp_path / "best.pt")
    assert choose_checkpoint(None, None) == tmp_path / "saved/separator/best.pt"


def test_a_separator_of_another_window_begins_near_the_one_it_grows_from(tmp_path):
    """Masks of the same bands are nearly the same masks, up to what another window makes of the mixture."""
    model = trained(tmp_path)
    grown = BandSeparator(**SIZES, window=768).eval()
    assert not [name for name in start_from(grown, tmp_path) if not name.startswith("stft.")]
    strange = BandSeparator(**SIZES, window=768).eval()
    strange.decoder.load_state_dict(grown.decoder.state_dict())
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        before, after, other = (net(mix, lips)["estimates"] - mix / 2 for net in (model, grown, strange))
    alike, unlike = (torch.cosine_similarity(x.flatten(), before.flatten(), dim=0) for x in (after, other))
    assert alike > 0.4 and abs(unlike) < 0.2, (alike, unlike)


def test_another_number_of_bands_cannot_take_over(tmp_path):
    trained(tmp_path)
    with pytest.raises(CheckpointError, match=r"best\.pt: encoder: 8 bands cannot become 4"):
        start_from(BandSeparator(**{**SIZES, "num_bands": 4}, window=768), tmp_path)


@pytest.mark.parametrize("consistent", [True, False])
def test_a_decoder_with_biases_and_one_without_begin_from_each_other(tmp_path, consistent):
    model = trained(tmp_path, consistent=consistent)
    other, wider = (BandSeparator(**SIZES, consistent=not consistent, window=window) for window in (512, 768))
    start_from(other, tmp_path)
    assert torch.equal(other.decoder.bands[0].weight, model.decoder.bands[0].weight)
    start_from(wider, tmp_path)
    assert wider.decoder.bands[0].weight.all()


@pytest.mark.parametrize("heads", [0, 2])
def test_a_deeper_separator_begins_as_the_one_it_grows_from(tmp_path, heads):
    model = trained(tmp_path, heads=heads)
    grown = BandSeparator(**SIZES, voice_blocks=5, heads=heads).eval()
    new = start_from(grown, tmp_path)
    assert all(".3." in name or ".4." in name for name in new) and new
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        torch.testing.assert_close(grown(mix, lips)["estimates"], model(mix, lips)["estimates"])
    grown.train()(mix, lips)["estimates"][:, 0].square().sum().backward()
    assert grown.voices[4].local.out.weight.grad.any() and grown.cues[4].scale.weight.grad.any()


def test_a_separator_of_more_rounds_begins_as_the_one_it_grows_from_and_learns_to_use_them(tmp_path):
    model = trained(tmp_path)
    grown = BandSeparator(**SIZES, rounds=3).eval()
    assert start_from(grown, tmp_path) == ["repeats.0.weight", "repeats.1.weight"]
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        torch.testing.assert_close(grown(mix, lips)["estimates"], model(mix, lips)["estimates"])
    grown.train()(mix, lips)["estimates"][:, 0].square().sum().backward()
    assert all(repeat.weight.grad.any() for repeat in grown.repeats)


def test_a_separator_that_tracks_voices_grows_from_one_that_does_not_and_learns_to(tmp_path):
    model = trained(tmp_path)
    grown = BandSeparator(**SIZES, tracking=True).eval()
    assert start_from(grown, tmp_path) == ["tracking.weights"]
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        torch.testing.assert_close(grown(mix)["estimates"], model(mix)["estimates"])
        assert not torch.allclose(grown(mix, lips)["estimates"], model(mix, lips)["estimates"])
    grown.train()(mix, lips)["estimates"][:, 0].square().sum().backward()
    assert grown.tracking.weights.grad.all()


def test_a_separator_that_refines_begins_with_what_was_given_it_and_learns_to_see_it(tmp_path):
    model = trained(tmp_path)
    grown = BandSeparator(**SIZES, refining=True).eval()
    new = start_from(grown, tmp_path)
    assert set(new) == {"refinement.seen.weight", "refinement.seen.bias"}
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        first = grown(mix, lips)["estimates"]
        torch.testing.assert_close(first, model(mix, lips)["estimates"])
    grown.train()(mix, lips, earlier=first)["estimates"][:, 0].square().sum().backward()
    assert all(weight.grad.any() for weight in grown.refinement.parameters())


def test_a_separator_with_attention_begins_as_the_one_without_and_learns_to_use_it(tmp_path):
    model = trained(tmp_path, voice_blocks=4)
    grown = BandSeparator(**SIZES, voice_blocks=4, heads=2).eval()
    new = start_from(grown, tmp_path)
    assert new and all(".full_band.attention." in name for name in new)
    mix, lips = torch.randn(1, 8000), torch.randn(1, 2, 13, 8)
    with torch.no_grad():
        torch.testing.assert_close(grown(mix, lips)["estimates"], model(mix, lips)["estimates"])
    grown.train()(mix, lips)["estimates"][:, 0].square().sum().backward()
    assert all(grown.voices[i].full_band.attention.out.weight.grad.any() for i in (0, 3))


def test_the_mean_of_two_trainings(tmp_path):
    """Of one that has a second round and one that has none: the gate of the round is half open."""
    first = trained(tmp_path / "first", rounds=2)
    second = trained(tmp_path / "second")
    out = ship(tmp_path / "first", tmp_path / "x.safetensors", [tmp_path / "second"])
    weights, name = load_checkpoint(out)["state_dict"], "decoder.bands.0.weight"
    mean = (first.state_dict()[name] + second.state_dict()[name]) / 2
    torch.testing.assert_close(weights[name], mean, atol=1e-3, rtol=1e-3)
    gate = first.repeats[0].weight / 2
    torch.testing.assert_close(weights["repeats.0.weight"], gate, atol=1e-3, rtol=1e-3)
    assert load_separator(out).model.repeats


@pytest.mark.parametrize(
    "options", [{"heads": 2}, {"voice_blocks": 4}, {"tracking": True}, {"refining": True}], ids=str
)
def test_the_mean_with_a_training_that_lacks_a_part_has_half_of_what_it_adds(tmp_path, options):
    first = trained(tmp_path / "first", **options).state_dict()
    second = trained(tmp_path / "second").state_dict()
    out = ship(tmp_path / "first", tmp_path / "x.safetensors", [tmp_path / "second"])
    weights = load_checkpoint(out)["state_dict"]
    assert set(first) > set(second)
    expected = {
        name: (weight + second[name]) / 2 if name in second else weight for name, weight in first.items()
    }
    half = (
        "attention.out",
        "refinement",
        "cues.3",
        "exchange.3.other",
        "voices.3.local.out",
        "voices.3.full_band.spread",
    )
    for name in expected:
        share = 0.5 if name not in second and any(part in name for part in half) else 1
        torch.testing.assert_close(weights[name], share * expected[name], atol=1e-3, rtol=1e-3)


def test_a_mean_that_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys):
    trained(tmp_path / "first", complex_masks=True)
    trained(tmp_path / "second")
    out = tmp_path / "x.safetensors"

    def refusal(first, second):
        names = ["--checkpoint", str(tmp_path / first), "--mean-with", str(tmp_path / second)]
        monkeypatch.setattr("sys.argv", ["ship", "--out", str(out), *names])
        assert main() == 2
        return capsys.readouterr().err

    assert "second/best.pt lacks imaginary.bands.0" in refusal("first", "second")
    assert "second/best.pt lacks imaginary.bands.0" in refusal("second", "first")
    content = load_checkpoint(tmp_path / "second/best.pt")
    save_checkpoint(
        tmp_path / "third/best.pt", content | {"front_end": {**FRONT_END, "weights_sha256": "1" * 64}}
    )
    assert "other lips" in refusal("first", "third")
    assert not out.exists()
