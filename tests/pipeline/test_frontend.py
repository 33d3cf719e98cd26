"""The front-end: rearranged for speed, it gives what the plain network gives, however clips are packed or cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pipeline.frontend
from pipeline.cache import FeatureCache
from pipeline.extract import precompute
from pipeline.frontend import FrontEnd, FrontEndError, front_end_for, named_network
from pipeline.lipreading import build
from pipeline.lipreading.seeded import draw_mouths, write_seeded
from pipeline.lipreading.weights import WeightsError, file_digest, load_network
from pipeline.mouths import normalise

SMALL, RESNET = "lrw_snv05x_tcn1x", "lrw_resnet18_mstcn"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: folder / f"{name}.pt" for name in (SMALL, RESNET, "sync_light")}
    for name in (SMALL, "sync_light"):
        write_seeded(name, paths[name])
    # PyTorch's own initial values do for the larger one, which takes long to calibrate.
    torch.manual_seed(0)
    torch.save({"network": RESNET, "model_state_dict": build(RESNET).state_dict()}, paths[RESNET])
    return paths


@pytest.fixture(scope="module")
def small(weights):
    return FrontEnd(network=SMALL, weights=weights[SMALL], device="cpu")


@pytest.fixture(scope="module")
def small_tcn(weights):
    return FrontEnd(network=SMALL, weights=weights[SMALL], features="tcn", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return draw_mouths(np.random.default_rng(0), num_clips=2, num_frames=100)[0]


def plain(name, path, clip, features="frontend"):
    """What the network itself gives for one clip."""
    network = load_network(name, path)
    with torch.inference_mode():
        output = network(torch.from_numpy(normalise(clip))[None, None])
    return (output["embedding"][0] if features == "frontend" else output["trunk"][0].T).numpy()


def error(actual, expected):
    """RMS of the difference relative to the RMS of the expected."""
    expected = expected.astype(np.float64)
    return np.sqrt(np.mean((actual.astype(np.float64) - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("features", ["frontend", "tcn"])
@pytest.mark.parametrize("name", [SMALL, RESNET, "sync_light"])
def test_it_gives_what_the_plain_network_gives(weights, pictures, name, features):
    front_end = FrontEnd(
        network=name, weights=weights[name], features=features, device="cpu", dtype="float32"
    )
    (embedding,) = front_end.embed_clips([pictures[0][:9]])
    assert embedding.dtype == np.float16 and embedding.shape == (9, front_end.dim)
    # Rounding to float16 alone costs 2e-4.
    assert error(embedding, plain(name, weights[name], pictures[0][:9], features)) < 5e-4


@pytest.mark.parametrize("kind", ["small", "small_tcn"])
def test_packed_clips_come_out_as_they_do_alone(request, pictures, kind):
    front_end = request.getfixturevalue(kind)
    clips = [pictures[0][:40], pictures[1][:1], pictures[1][:2], pictures[0][30:70], pictures[1][:17]]
    packed = front_end.embed_clips(clips)
    assert [len(embedding) for embedding in packed] == [40, 1, 2, 40, 17]
    for clip, embedding in zip(clips, packed):
        assert error(embedding, front_end.embed_clips([clip])[0]) < 5e-4
    assert front_end.embed_clips([]) == []


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_a_streamed_file_comes_out_whole(tmp_path, small, pictures, frames):
    path = tmp_path / "a.npz"
    np.savez(path, data=pictures[0][:frames])
    (expected,) = small.embed_clips([pictures[0][:frames]])
    for chunk in (1, 2, 3, 4, 8, 100):
        streamed = small.embed_file(path, chunk_frames=chunk)
        assert streamed.shape == expected.shape
        assert error(streamed, expected) < 5e-4, f"chunks of {chunk}"


def test_a_clips_ends_see_zeros_and_its_middle_sees_its_neighbours(small, pictures):
    clip = pictures[0][:9].copy()
    (before,) = small.embed_clips([clip])
    clip[4] = 0
    (after,) = small.embed_clips([clip])
    changed = [frame for frame in range(9) if error(after[frame], before[frame]) > 1e-3]
    assert changed == [2, 3, 4, 5, 6]


def test_a_long_clip_passes_the_temporal_trunk_in_windows(
    tmp_path, monkeypatch, weights, small_tcn, pictures
):
    path = tmp_path / "a.npz"
    np.savez(path, data=pictures[0])
    expected = plain(SMALL, weights[SMALL], pictures[0], "tcn")
    monkeypatch.setattr(pipeline.frontend, "TEMPORAL_WINDOW", 8)
    assert error(small_tcn.embed_file(path, chunk_frames=16), expected) < 5e-4


def test_floats_and_bytes_of_the_same_pixels_agree(small, pictures):
    clip = pictures[0][:5]
    as_floats, as_bytes = small.embed_clips([clip.astype(np.float32), clip])
    assert error(as_floats, as_bytes) < 5e-4


def test_bfloat16_stays_close_on_a_resnet(weights, pictures):
    clip = pictures[0][:6]
    exact = plain(RESNET, weights[RESNET], clip)
    front_end = FrontEnd(network=RESNET, weights=weights[RESNET], device="cpu", dtype="bfloat16")
    assert 1e-3 < error(front_end.embed_clips([clip])[0], exact) < 0.04


@pytest.mark.parametrize(
    ("name", "features", "hardware", "expected"),
    [
        (RESNET, "frontend", True, "bfloat16"),
        (RESNET, "frontend", False, "float32"),
        (RESNET, "tcn", True, "float32"),
        (SMALL, "frontend", True, "float32"),
    ],
)
def test_bfloat16_is_taken_only_where_it_pays(weights, monkeypatch, name, features, hardware, expected):
    monkeypatch.setattr(pipeline.frontend, "has_bfloat16", lambda device: hardware)
    front_end = FrontEnd(network=name, weights=weights[name], features=features, device="cpu")
    assert front_end.identity["dtype"] == expected


def test_training_mode_of_a_parent_cannot_reach_it(small, small_tcn, pictures):
    class Separator(nn.Module):
        def __init__(self):
            super().__init__()
            self.lips, self.lips_tcn = small, small_tcn

    clips = [pictures[0][:20], pictures[1][:20]]
    before = [front_end.embed_clips(clips) for front_end in (small, small_tcn)]
    separator = Separator().train()
    assert list(separator.parameters()) == []
    for front_end in (small, small_tcn):
        for network in (front_end._frame_network, front_end._reader):
            if network is not None:
                network.train()
                assert not any(parameter.requires_grad for parameter in network.parameters())
    after = [front_end.embed_clips(clips) for front_end in (small, small_tcn)]
    for old, new in zip(before, after):
        np.testing.assert_array_equal(np.stack(old), np.stack(new))


def test_it_says_what_it_computes_with(weights, small, small_tcn):
    assert small.identity == {
        "network": SMALL,
        "weights": str(weights[SMALL]),
        "weights_sha256": file_digest(weights[SMALL]),
        "weights_kind": small.identity["weights_kind"],
        "preprocessing_version": 1,
        "features": "frontend",
        "dim": 1024,
        "dtype": "float32",
    }
    assert "not a lip reader" in small.identity["weights_kind"]
    assert (small_tcn.identity["features"], small_tcn.dim) == ("tcn", 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "lrw_resnet50"}, r"network='lrw_resnet50' is unknown.*lrw_resnet18_dctcn"),
        ({"features": "logits"}, "features='logits' is unknown"),
        ({"dtype": "float8"}, "dtype='float8' is unknown"),
        ({"device": "tpu!"}, "device='tpu!' is unknown"),
        ({"device": "cuda:99"}, "no such GPU"),
    ],
)
def test_settings_that_do_not_exist_are_named(weights, change, message):
    with pytest.raises(FrontEndError, match=message):
        FrontEnd(**{"network": SMALL, "weights": weights[SMALL], **change})


def test_a_temporal_trunk_that_needs_word_boundaries_is_refused(tmp_path):
    with pytest.raises(FrontEndError, match=r"need the word's boundaries.*features='frontend'"):
        FrontEnd(network="lrw_resnet18_dctcn_boundary", weights=tmp_path / "never read.pt", features="tcn")


def test_weights_may_name_their_network(tmp_path, weights):
    assert named_network(weights[RESNET]) == RESNET
    torch.save({"model_state_dict": {}}, tmp_path / "bare.pt")
    assert named_network(tmp_path / "bare.pt") is None
    (tmp_path / "text.pt").write_text("hello")
    assert named_network(tmp_path / "text.pt") is None
    assert named_network(tmp_path / "absent.pt") is None


def test_a_cache_is_continued_in_its_own_precision(tmp_path, weights, pictures, monkeypatch):
    (tmp_path / "mouths").mkdir()
    np.savez(tmp_path / "mouths" / "1.npz", data=pictures[0][:3])
    settings = {"network": SMALL, "weights": weights[SMALL], "features": "frontend", "device": "cpu"}
    out = tmp_path / "a.h5"
    exact = front_end_for(out, **settings, dtype="auto")
    assert exact.identity["dtype"] == "float32"
    precompute(tmp_path, out, front_end_for(out, **settings, dtype="bfloat16"), workers=0)
    assert front_end_for(out, **settings, dtype="auto").identity["dtype"] == "bfloat16"
    assert precompute(tmp_path, out, front_end_for(out, **settings, dtype="auto"), workers=0).reused == 1
    assert precompute(tmp_path, out, front_end_for(out, **settings, dtype="float32"), workers=0).stale == 1
    other = {**settings, "network": RESNET, "weights": weights[RESNET]}
    monkeypatch.setattr(pipeline.frontend, "has_bfloat16", lambda device: True)
    assert front_end_for(out, **other, dtype="auto").identity["dtype"] == "bfloat16", (
        "a stale cache decides nothing"
    )


def test_cached_equals_on_the_fly(tmp_path, small, pictures):
    (tmp_path / "mouths").mkdir()
    lengths = [7, 1, 20, 64, 3]
    for index, length in enumerate(lengths):
        np.savez(tmp_path / "mouths" / f"{index}.npz", data=pictures[index % 2][:length])
    precompute(tmp_path, tmp_path / "a.h5", small, workers=0, batch_frames=40)
    cache = FeatureCache(tmp_path / "a.h5")
    for index, length in enumerate(lengths):
        online = small.embed_file(tmp_path / "mouths" / f"{index}.npz")
        assert online.shape == (length, 1024)
        assert error(cache[str(index)], online) < 5e-4


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(WeightsError, match=RESNET):
        FrontEnd(network=RESNET, weights=weights[SMALL])


SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "samples" / "course"


@pytest.mark.shared
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs ../shared/samples/course")
def test_genuine_mouths_give_distinct_finite_embeddings(tmp_path, small):
    summary = precompute(SAMPLES, tmp_path / "a.h5", small, workers=0)
    assert (summary.done, summary.frames, summary.failures) == (7, 350, [])
    cache = FeatureCache(tmp_path / "a.h5")
    means = np.stack([cache[name].astype(np.float32).mean(axis=0) for name in cache])
    assert np.isfinite(means).all()
    assert min(error(a, b) for i, a in enumerate(means) for b in means[:i]) > 0.01
