"""Mouth files: every accepted form gives the same pixels, everything else is named, and long clips are streamed."""

import os
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from pipeline.mouths import (
    MEAN,
    STD,
    MouthError,
    count_frames,
    iter_mouth,
    normalise,
    read_mouth,
    source_digest,
    source_stat,
)


@pytest.fixture
def clip():
    return np.random.default_rng(0).integers(0, 256, (7, 96, 96), dtype=np.uint8)


def save(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_96_pixels_are_cropped_to_the_centre_and_88_taken_as_they_are(tmp_path, clip):
    expected = clip[:, 4:92, 4:92]
    np.testing.assert_array_equal(read_mouth(save(tmp_path / "a.npz", data=clip)), expected)
    np.testing.assert_array_equal(read_mouth(save(tmp_path / "b.npz", data=expected)), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(">i2"),
        lambda x: x.astype(np.int64),
        np.asfortranarray,
        lambda x: np.repeat(x[..., None], 3, axis=3),
        lambda x: np.asfortranarray(np.repeat(x[..., None], 3, axis=3)),
    ],
)
def test_integers_of_any_kind_and_order_give_the_same_bytes(tmp_path, clip, change):
    frames = read_mouth(save(tmp_path / "a.npz", data=change(clip)))
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, clip[:, 4:92, 4:92])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">f8"),
        lambda x: (x / 255).astype(np.float32),
        lambda x: np.asfortranarray(x / 255),
    ],
)
def test_floats_of_either_range_give_the_same_intensities(tmp_path, clip, change):
    frames = read_mouth(save(tmp_path / "a.npz", data=change(clip)))
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames, clip[:, 4:92, 4:92], atol=1e-4)


def test_colour_becomes_luma(tmp_path):
    colour = np.zeros((1, 88, 88, 3), np.uint8)
    colour[..., 0], colour[..., 1], colour[..., 2] = 200, 100, 50
    assert read_mouth(save(tmp_path / "a.npz", data=colour))[0, 0, 0] == round(
        0.299 * 200 + 0.587 * 100 + 0.114 * 50
    )


def test_the_only_array_is_taken_whatever_its_name(tmp_path, clip):
    np.testing.assert_array_equal(read_mouth(save(tmp_path / "a.npz", arr_0=clip)), clip[:, 4:92, 4:92])
    both = save(tmp_path / "b.npz", data=clip, other=clip[:, ::-1])
    np.testing.assert_array_equal(read_mouth(both), clip[:, 4:92, 4:92])


@pytest.mark.parametrize("size", [(120, 120), (64, 64), (96, 112)])
def test_another_size_is_resized_with_a_warning_that_names_the_file(tmp_path, size):
    # A picture that is linear in its coordinates stays so when it is resized.
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    side = min(size)
    picture = 110 + 100 * (rows - (size[0] - 1) / 2) / side + 50 * (columns - (size[1] - 1) / 2) / side
    path = save(tmp_path / "odd.npz", data=picture[None].astype(np.float32))
    with pytest.warns(UserWarning, match=r"odd\.npz: frames of"):
        frames = read_mouth(path)
    assert frames.shape == (1, 88, 88)
    rows, columns = (np.mgrid[:88, :88] - 43.5) / 96
    np.testing.assert_allclose(frames[0], 110 + 100 * rows + 50 * columns, atol=0.15)


def test_a_resized_picture_agrees_with_an_independent_resampler(tmp_path):
    torch = pytest.importorskip("torch")
    picture = np.random.default_rng(1).uniform(0, 255, (2, 131, 131)).astype(np.float32)
    with pytest.warns(UserWarning):
        frames = read_mouth(save(tmp_path / "a.npz", data=picture))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(picture)[:, None], (96, 96), mode="bilinear", antialias=True
    )[:, 0, 4:92, 4:92]
    np.testing.assert_allclose(frames, expected.numpy(), atol=1e-2)


def test_chunks_laid_end_to_end_are_the_clip(tmp_path, clip):
    path = save(tmp_path / "a.npz", data=clip)
    chunks = list(iter_mouth(path, chunk_frames=3))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), read_mouth(path))
    assert count_frames(path) == 7


def test_large_pictures_are_streamed_in_bounded_memory(tmp_path):
    path = save(tmp_path / "large.npz", data=np.zeros((200, 720, 1280, 3), np.uint8))  # 553 MB
    tracemalloc.start()
    with pytest.warns(UserWarning, match="resized"):
        count = sum(len(chunk) for chunk in iter_mouth(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200
    assert peak < 500e6, f"{peak / 1e6:.0f} MB"


def test_a_long_clip_is_streamed_in_bounded_memory(tmp_path):
    path = save(tmp_path / "long.npz", data=np.zeros((15_000, 88, 88), np.uint8))  # ten minutes, 116 MB
    tracemalloc.start()
    count = sum(len(chunk) for chunk in iter_mouth(path, chunk_frames=256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 20e6, f"{peak / 1e6:.0f} MB"


def test_normalising_equals_the_float64_computation_rounded_once():
    every = np.arange(256, dtype=np.uint8)
    expected = (every.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_array_equal(normalise(every), expected.astype(np.float32))
    np.testing.assert_allclose(normalise(every.astype(np.float32)), expected, rtol=0, atol=1e-6)


def bad_files(folder, clip):
    """Name, path and expected reason of files that hold no usable mouth."""
    whole = save(folder / "whole.npz", data=clip).read_bytes()
    yield "directory", folder / "d.npz", "is a directory"
    (folder / "d.npz").mkdir()
    yield "absent", folder / "absent.npz", "No such file"
    cases = {
        "empty": (b"", "the file is empty"),
        "text": (b"not a zip at all", "not a whole npz"),
        "truncated": (whole[: len(whole) // 2], "truncated"),
        "damaged": (whole[:2000] + bytes(50) + whole[2050:], "damaged|not a whole npz"),
    }
    for name, (content, reason) in cases.items():
        (folder / f"{name}.npz").write_bytes(content)
        yield name, folder / f"{name}.npz", reason
    nan = clip.astype(np.float32)
    nan[3, 5, 5] = np.nan
    infinite = clip.astype(np.float64)
    infinite[-1, 0, 0] = np.inf
    arrays = {
        "zero-frames": (clip[:0], "zero frames"),
        "zero-width": (clip[:, :, :0], "empty frames"),
        "nan": (nan, "NaN or infinite"),
        "infinite": (infinite, "NaN or infinite"),
        "objects": (np.array([clip[0], None], dtype=object), "Python objects"),
        "strings": (np.array(["a"] * 8).reshape(2, 2, 2), "expected uint8 or float"),
        "complex": (clip.astype(np.complex64), "expected uint8 or float"),
        "two-axes": (clip[0], r"expected \(T, H, W\)"),
        "four-axes": (np.repeat(clip[..., None], 4, axis=3), r"expected \(T, H, W\)"),
        "scalar": (np.uint8(3), r"expected \(T, H, W\)"),
        "large-integers": (clip.astype(np.int32) * 9, "no intensities"),
        "normalised": ((clip / 255 - 0.421) / 0.165, "no intensities"),
    }
    for name, (array, reason) in arrays.items():
        yield name, save(folder / f"{name}.npz", data=array), reason
    yield "no-data", save(folder / "two.npz", left=clip, right=clip), "holds the arrays left, right"
    with zipfile.ZipFile(folder / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    yield "no-array", folder / "other.npz", "holds no array"


def test_whatever_is_wrong_is_named_with_file_and_reason(tmp_path, clip):
    cases = list(bad_files(tmp_path, clip))
    assert len(cases) == 20
    for name, path, reason in cases:
        with pytest.raises(MouthError, match=reason) as caught:
            read_mouth(path)
        assert str(path) in str(caught.value), name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path, clip):
    path = save(tmp_path / "a.npz", data=clip)
    path.chmod(0)
    with pytest.raises(MouthError, match="permission denied"):
        read_mouth(path)


def test_random_damage_never_escapes_as_another_error(tmp_path, clip):
    rng = np.random.default_rng(2)
    whole = bytearray(save(tmp_path / "a.npz", data=clip[:, :40, :40]).read_bytes())
    path = tmp_path / "b.npz"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        # Half of the damage goes to the headers, which are the smaller part of the file.
        place = int(rng.integers(len(whole))) if rng.random() < 0.5 else int(rng.integers(220)) - 110
        damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged[: int(rng.integers(1, len(whole)))] if rng.random() < 0.2 else damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_mouth(path)
            except MouthError:
                refused += 1
    assert refused > 200


def test_stat_and_digest_follow_the_content(tmp_path, clip):
    path = save(tmp_path / "a.npz", data=clip)
    stat, digest = source_stat(path), source_digest(path)
    assert len(digest) == 32 and stat[0] == path.stat().st_size
    os.utime(path, ns=(0, 12345))
    assert source_stat(path) != stat and source_digest(path) == digest
    save(path, data=clip[::-1])
    assert source_digest(path) != digest
    with pytest.raises(MouthError, match="No such file"):
        source_stat(tmp_path / "absent.npz")
