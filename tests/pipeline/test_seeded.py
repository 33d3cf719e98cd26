"""Seeded weights: deterministic, labelled, atomic, and a useful view of the mouth."""

import numpy as np
import pytest
import torch

from pipeline.lipreading import build
from pipeline.lipreading.dense_tcn import SqueezeExcitation
from pipeline.lipreading.seeded import SEEDED_KIND, draw_mouths, main, seed_weights, write_seeded
from pipeline.lipreading.weights import load_network, weights_kind
from pipeline.mouths import normalise

SMALL = "lrw_snv05x_tcn1x"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_seeded(SMALL, tmp_path_factory.mktemp("seeded") / "weights.pth")


def embed(network, pictures):
    x = torch.from_numpy(normalise(pictures))[:, None]
    with torch.inference_mode():
        return torch.cat([network.frontend(part) for part in x.split(10)]).double().numpy()


def explained_variance(train, test, *, ridge=1e-2):
    """R^2 on `test` of ridge regression fitted on `train`; each is (embeddings (N, D), targets (N,))."""
    mean, target_mean = train[0].mean(axis=0), train[1].mean()
    centred = train[0] - mean
    gram = centred @ centred.T
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    slope = centred.T @ np.linalg.solve(gram, train[1] - target_mean)
    residual = test[1] - target_mean - (test[0] - mean) @ slope
    return 1 - np.square(residual).mean() / test[1].var()


def test_same_seed_gives_the_same_bytes_under_any_name(weights, tmp_path):
    threads = torch.get_num_threads()
    again = write_seeded(SMALL, tmp_path / "deep" / "other.bin", seed=0)
    assert torch.get_num_threads() == threads
    assert again.read_bytes() == weights.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == ["other.bin"]


def test_another_seed_gives_other_weights(weights):
    first, second = load_network(SMALL, weights), build(SMALL)
    seed_weights(second, 1)
    assert not torch.equal(first.trunk[1][0].weight, second.trunk[1][0].weight)
    assert not torch.equal(first.trunk[1][1].running_var, second.trunk[1][1].running_var)


def test_file_says_what_it_is(weights):
    assert weights_kind(weights) == SEEDED_KIND
    content = torch.load(weights, weights_only=True)
    assert (content["network"], content["seed"]) == (SMALL, 0)
    assert load_network(SMALL, weights).frozen


def test_embedding_tells_the_opening_of_mouths_it_was_not_fitted_on(weights):
    pictures, openings = draw_mouths(np.random.default_rng(11), num_clips=150, num_frames=6)
    embedding = embed(load_network(SMALL, weights), pictures)
    flat = embedding.reshape(-1, embedding.shape[-1])
    train, test = slice(0, 110 * 6), slice(110 * 6, None)  # whole clips, each with its own looks
    score = explained_variance((flat[train], openings.ravel()[train]), (flat[test], openings.ravel()[test]))
    print(f"R^2 {score:.3f}")
    assert score > 0.65
    spread = embedding.std(axis=(0, 1))
    assert 0.2 < spread.mean() < 2
    assert spread.min() > 0.05
    assert np.abs(embedding).max() < 100  # far from the limits of half precision


def test_moving_mouth_moves_the_embedding_more_than_camera_noise_does(weights):
    network = load_network(SMALL, weights)
    pictures, _ = draw_mouths(np.random.default_rng(3), num_clips=4, num_frames=12)
    noise = np.random.default_rng(4).normal(0, 2, size=pictures.shape)
    noisy = np.clip(np.rint(pictures + noise), 0, 255).astype(np.uint8)
    clean = embed(network, pictures)
    moved = clean.std(axis=1).mean()
    disturbed = np.sqrt(np.square(embed(network, noisy) - clean).mean())
    assert moved > 2 * disturbed


def test_deep_network_stays_well_conditioned():
    network = build("lrw_resnet18_dctcn_boundary")
    seed_weights(network, 0)
    network.eval()
    gates = []
    for layer in network.modules():
        if isinstance(layer, SqueezeExcitation):
            layer.fc.register_forward_hook(lambda module, inputs, output: gates.append(output))
    pictures, _ = draw_mouths(np.random.default_rng(5), num_clips=2, num_frames=8)
    with torch.inference_mode():
        out = network(torch.from_numpy(normalise(pictures))[:, None], boundaries=torch.ones(2, 8, 1))
    assert 0.1 < out["trunk"].std() < 10
    assert abs(np.corrcoef(out["logits"].numpy())[0, 1]) < 0.95
    gates = torch.cat([gate.flatten() for gate in gates])
    assert ((gates > 0.02) & (gates < 0.98)).float().mean() > 0.9


def test_failed_write_leaves_the_old_file_and_no_rest(weights, tmp_path, monkeypatch):
    out = tmp_path / "weights.pth"
    out.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    monkeypatch.setattr("pipeline.lipreading.seeded.seed_weights", lambda network, seed: None)
    assert main(["--out", str(out)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
    assert out.read_bytes() == b"old"


def test_command_refuses_unknown_networks_and_negative_seeds(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--network", "lrw_nothing", "--out", str(tmp_path / "w")])
    assert stop.value.code == 2
    assert main(["--seed", "-1", "--out", str(tmp_path / "w")]) == 1
    assert "seed -1 is negative" in capsys.readouterr().err
