"""The lip-reading networks: golden vectors, key names, weights files, and the eval lock."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.lipreading import NETWORKS, build
from pipeline.lipreading.seeded import seed_weights
from pipeline.lipreading.weights import UNLABELLED, WeightsError, file_digest, load_network, weights_kind

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
SMALL = "lrw_snv05x_tcn1x"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden vectors (../shared/golden) are not here"
)


@pytest.fixture(scope="module")
def small():
    # Plain random weights would fade the input away and hide what these tests look for.
    network = build(SMALL)
    seed_weights(network, 0)
    return network.eval()


def clips(num_clips=1, num_frames=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_clips, 1, num_frames, 88, 88, generator=generator)


def saved(path, content):
    torch.save(content, path)
    return path


def with_aliases(network):
    """The state dict as the published files list it, six layers of every temporal block twice."""
    state = dict(network.state_dict())
    twice = {"conv1": "0", "batchnorm1": "1", "relu1": "3", "conv2": "5", "batchnorm2": "6", "relu2": "8"}
    for key in list(state):
        parts = key.split(".")
        if key.startswith("tcn.tcn_trunk.network.") and parts[4] in twice:
            state[".".join([*parts[:4], "net", twice[parts[4]], *parts[5:]])] = state[key]
    return state


PUBLISHED = sorted(name for name, config in NETWORKS.items() if config.words)


# Golden vectors


@pytest.mark.shared
@needs_golden
def test_all_networks_match_the_golden_vectors():
    names = sorted(path.stem for path in (GOLDEN / "manifests").glob("*.json"))
    assert names == PUBLISHED
    done = subprocess.run(
        [sys.executable, "-B", GOLDEN / "verify.py", "pipeline.lipreading:build", "--threads", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == 7 * len(names), done.stdout
    assert done.stdout.endswith("PASS\n")


@pytest.mark.shared
@needs_golden
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_state_dicts_load_whole_through_a_file(name, tmp_path):
    manifest = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    state = {
        key["name"]: torch.ones(key["shape"], dtype=getattr(torch, key["dtype"]))
        for key in manifest["state_dict_keys"]
    }
    network = load_network(
        name, saved(tmp_path / "ckpt.best.pth", {"epoch_idx": 3, "model_state_dict": state})
    )
    assert all((value == 1).all() for value in network.state_dict().values())
    assert network.trunk_dim == manifest["trunk_dim"]
    assert network.needs_boundary == manifest["needs_boundary"]
    assert network.embedding_dim == manifest["embedding_dim"] - manifest["needs_boundary"]


# The networks


def test_unknown_name_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"'lrw_resnet18_dctc' is unknown \(did you mean lrw_resnet18_dctcn\?\)"
    ):
        build("lrw_resnet18_dctc")


@pytest.mark.parametrize("max_frames", [1, 2, 3, 8])
def test_frontend_in_windows_equals_the_whole(small, max_frames):
    x = clips(num_clips=2, num_frames=11)
    with torch.inference_mode():
        whole = small.frontend(x)
        torch.testing.assert_close(small.frontend(x, max_frames=max_frames), whole, rtol=1e-4, atol=1e-4)
        assert torch.equal(small(x)["embedding"], whole)


def test_frontend_sees_two_frames_to_each_side(small):
    x = clips(num_frames=11)
    changed = x.clone()
    changed[:, :, 5] += 1
    with torch.inference_mode():
        difference = (small.frontend(changed) - small.frontend(x)).abs().amax(dim=(0, 2))
    assert (difference[3:8] > 1e-2).all()
    assert (difference[[0, 1, 2, 8, 9, 10]] < 1e-5).all()


@pytest.mark.parametrize("name", ["lrw_snv05x_tcn1x", "lrw_snv1x_dsmstcn3x"])
def test_temporal_context_is_the_one_stated(name):
    network = build(name).eval()
    reach = network.context_frames
    middle = reach + 2
    embedding = torch.randn(1, 2 * middle + 1, network.embedding_dim, requires_grad=True)
    network.temporal(embedding)[0, :, middle].sum().backward()
    seen = embedding.grad[0].abs().sum(dim=1).nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (middle - reach, middle + reach)


def test_dense_network_has_no_finite_context():
    assert build("lrw_resnet18_dctcn").context_frames is None


def test_padding_counts_in_neither_length_nor_logits_mean(small):
    x = clips(num_clips=2, num_frames=9)
    with torch.inference_mode():
        out = small(x, lengths=[9, 4])
        pooled = out["trunk"][1, :, :4].mean(dim=-1)
        torch.testing.assert_close(out["logits"][1], small.tcn.tcn_output(pooled))


def test_boundary_network_needs_the_flag_and_others_refuse_it(small):
    network = build("lrw_resnet18_dctcn_boundary").eval()
    embedding = torch.randn(1, 6, network.embedding_dim)
    flag = torch.zeros(1, 6, 1)
    with pytest.raises(ValueError, match="needs boundaries"):
        network.temporal(embedding)
    with pytest.raises(ValueError, match=r"boundaries of shape \(1, 5, 1\), expected \(1, 6, 1\)"):
        network.temporal(embedding, flag[:, :5])
    with torch.inference_mode():
        assert not torch.equal(network.temporal(embedding, flag), network.temporal(embedding, flag + 1))
    with pytest.raises(ValueError, match="takes no boundaries"):
        small(clips(), boundaries=torch.zeros(1, 7, 1))


@pytest.mark.parametrize("shape", [(1, 1, 5, 96, 96), (1, 5, 88, 88), (1, 3, 5, 88, 88), (1, 1, 0, 88, 88)])
def test_wrong_pictures_are_refused_with_their_shape(small, shape):
    with pytest.raises(ValueError, match=str(tuple(shape)).replace("(", r"\(").replace(")", r"\)")):
        small(torch.zeros(shape))


@pytest.mark.parametrize("lengths", [[7], [7, 8], [0, 7]])
def test_wrong_lengths_are_refused(small, lengths):
    with pytest.raises(ValueError, match="between 1 and the number of frames"):
        small(clips(num_clips=2), lengths=lengths)


# The eval lock


def test_frozen_network_stays_in_eval_inside_a_training_model(small):
    frozen = copy.deepcopy(small).freeze()
    model = nn.ModuleDict({"lips": frozen, "head": nn.Linear(2, 2)})
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    with torch.no_grad():
        expected = frozen.frontend(clips())
        model.train()
        assert model["head"].training
        assert not any(module.training for module in frozen.modules())
        for module in model.modules():  # bypasses the network's own train()
            module.train()
        model["lips"].trunk.train()
        assert torch.equal(frozen.frontend(clips()), expected)
        frozen(clips())
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_unfrozen_network_trains_as_usual(small):
    network = copy.deepcopy(small).train()
    mean = network.frontend3D[1].running_mean.clone()
    network.frontend(clips()).sum().backward()
    assert not torch.equal(network.frontend3D[1].running_mean, mean)
    assert network.trunk[1][0].weight.grad is not None


# Weights files


@pytest.mark.parametrize("form", ["bare", "model_state_dict", "state_dict", "module.", "aliases", "scores"])
def test_every_form_of_checkpoint_gives_the_same_network(small, tmp_path, form):
    state = small.state_dict()
    content = {
        "bare": state,
        "model_state_dict": {"epoch_idx": 80, "model_state_dict": state, "best_prec": 0.8},
        "state_dict": {"state_dict": state},
        "module.": {f"module.{key}": value for key, value in state.items()},
        "aliases": with_aliases(small),
        "scores": {"model_state_dict": state, "best_prec": np.float64(0.8), "steps": np.int64(5)},
    }[form]
    network = load_network(SMALL, saved(tmp_path / "weights.pth.tar", content))
    assert network.frozen
    assert not network.training
    with torch.inference_mode():
        assert torch.equal(network(clips())["logits"], small(clips())["logits"])


def test_file_with_alias_names_only_loads_too(small, tmp_path):
    state = with_aliases(small)
    for key in [key for key in state if ".net." in key]:
        layer = {"0": "conv1", "1": "batchnorm1", "3": "relu1", "5": "conv2", "6": "batchnorm2", "8": "relu2"}
        head, tail = key.split(".net.")
        number, leaf = tail.split(".")
        del state[f"{head}.{layer[number]}.{leaf}"]
    network = load_network(SMALL, saved(tmp_path / "w.pt", state))
    assert torch.equal(network.tcn.trunk.network[2].conv2.weight, small.tcn.trunk.network[2].conv2.weight)


def test_alias_that_disagrees_is_refused(small, tmp_path):
    state = with_aliases(small)
    key = "tcn.tcn_trunk.network.1.net.5.weight"
    state[key] = state[key] + 1
    with pytest.raises(WeightsError, match=r"net\.5\.weight and .*conv2\.weight are one layer"):
        load_network(SMALL, saved(tmp_path / "w.pth", state))


def test_safetensors_load_with_their_label(small, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(small.state_dict(), path, metadata={"kind": "made up"})
    assert torch.equal(load_network(SMALL, path).frontend3D[0].weight, small.frontend3D[0].weight)
    assert weights_kind(path) == "made up"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut-off safetensors"):
        load_network(SMALL, path)


def test_kind_and_digest(tmp_path):
    assert weights_kind(saved(tmp_path / "a.pth", {"a": torch.ones(1)})) == UNLABELLED
    labelled = saved(tmp_path / "b.pth", {"model_state_dict": {}, "kind": "seeded"})
    assert weights_kind(labelled) == "seeded"
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(WeightsError, match="nothing"):
        file_digest(tmp_path / "nothing")


def test_weights_of_another_network_are_named(small, tmp_path):
    path = saved(tmp_path / "w.pth", with_aliases(small))
    with pytest.raises(WeightsError) as caught:
        load_network("lrw_snv1x_tcn1x", path)
    said = str(caught.value)
    assert str(path) in said
    assert "not those of lrw_snv1x_tcn1x" in said
    assert "trunk.0.0.banch1.2.weight has shape (24, 24, 1, 1), not (58, 24, 1, 1)" in said
    assert "They fit lrw_snv05x_tcn1x: name that network" in said


def test_missing_and_unexpected_keys_are_listed_first_ones_first(small, tmp_path):
    state = dict(small.state_dict())
    del state["frontend3D.0.weight"]
    state["extra.weight"] = torch.ones(1)
    with pytest.raises(WeightsError, match=r"missing frontend3D\.0\.weight\n  unexpected extra\.weight$"):
        load_network(SMALL, saved(tmp_path / "w.pth", state))
    with pytest.raises(WeightsError, match=r"missing .*\n(.*missing .*\n){4}  \.\.\. \d+ differences in all"):
        load_network(SMALL, saved(tmp_path / "none.pth", {}))


class _Code:
    """Unpickles into a call that makes a directory."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = saved(tmp_path / "w.pth", {"model_state_dict": _Code(tmp_path / "made")})
    with pytest.raises(WeightsError, match=r"w\.pth: is no checkpoint that can be read safely"):
        load_network(SMALL, path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x00" * 5000, "no checkpoint that can be read safely"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({"model_state_dict": {"trunk": [1, 2]}}, "entry 'trunk' is a list"),
    ],
    ids=["empty", "web page", "zeros", "list", "no tensor"],
)
def test_files_that_are_no_checkpoint_are_named(tmp_path, content, expected):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=expected) as caught:
        load_network(SMALL, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_truncated_checkpoint_is_named(small, tmp_path, kept):
    path = saved(tmp_path / "w.pth", small.state_dict())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(WeightsError, match=r"w\.pth: is cut off after"):
        load_network(SMALL, path)


def test_absent_file_directory_and_nan_are_named(small, tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load_network(SMALL, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="is a directory"):
        load_network(SMALL, tmp_path)
    state = {key: value.clone() for key, value in small.state_dict().items()}
    state["frontend3D.0.weight"][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"frontend3D\.0\.weight holds NaN"):
        load_network(SMALL, saved(tmp_path / "w.pth", state))


# The network of ours


def test_the_light_network_is_light_and_reads_no_words():
    network = build("sync_light").eval()
    assert sum(parameter.numel() for parameter in network.parameters()) < 1.5e6
    x = clips(num_clips=2, num_frames=15)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        outputs = network(x)
    assert set(outputs) == {"embedding", "trunk"}
    assert outputs["embedding"].shape == (2, 15, 128) and outputs["trunk"].shape == (2, 64, 15)
    macs_per_second = counter.get_total_flops() / 2 / (2 * 15) * 25
    assert 0.1e9 < macs_per_second < 0.5e9
    changed = x.clone()
    changed[:, :, 0] += 1
    with torch.inference_mode():
        difference = (network(changed)["trunk"] - outputs["trunk"]).abs().amax(dim=(0, 1))
    assert (difference[: network.context_frames + 3] > 0).all()
    assert not difference[network.context_frames + 3 :].any()
