"""Windows: they cover everything, join without a trace, keep the voices apart."""

from itertools import pairwise

import numpy as np
import pytest

from src.trainer.windowing import (
    Joiner,
    count_frames,
    frame_to_sample,
    is_swapped,
    lips_of_window,
    plan_windows,
)


def join(voices, window, overlap, *, rate_hz=16_000, ordered=True, change=lambda piece, number: piece):
    """Cut `voices` (2, n) as a recording is cut, pass each window through `change`, and join."""
    length = voices.shape[1]
    plan = plan_windows(count_frames(length, rate_hz), window, overlap)
    bounds = [(frame_to_sample(a, rate_hz), min(frame_to_sample(b, rate_hz), length)) for a, b in plan]
    joiner, parts = Joiner(), []
    for number, (start, stop) in enumerate(bounds):
        next_start = bounds[number + 1][0] if number + 1 < len(bounds) else None
        piece = change(voices[:, start:stop].copy(), number)
        parts.append(joiner.add(start, piece, next_start, ordered=ordered))
    return np.concatenate(parts, axis=1), len(plan)


def two_voices(length, seed=0):
    return np.random.default_rng(seed).standard_normal((2, length)).astype(np.float32)


@pytest.mark.parametrize("num_frames", [1, 24, 25, 26, 49, 50, 51, 77, 1500, 90_001])
@pytest.mark.parametrize(("window", "overlap"), [(25, 0), (25, 5), (25, 12), (200, 25)])
def test_windows_cover_all_with_the_overlap_asked_for(num_frames, window, overlap):
    plan = plan_windows(num_frames, window, overlap)
    assert plan[0][0] == 0 and plan[-1][1] == num_frames
    for (start, stop), (following, _) in pairwise(plan):
        assert start < following <= stop - overlap
        assert stop - start == window
    if num_frames > window:  # not more windows than needed
        assert len(plan) - 1 < (num_frames - overlap) / (window - overlap) <= len(plan)


def test_no_window_length_means_one_window():
    assert plan_windows(100_000, None, 25) == [(0, 100_000)]


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (10, 6), (10, -1)])
def test_windows_out_of_range_name_the_option(window, overlap):
    with pytest.raises(ValueError, match=r"inferencer\.(window|overlap)_s"):
        plan_windows(100, window, overlap)


@pytest.mark.parametrize("length", [1, 639, 640, 641, 16_000, 16_001, 31_999, 100_003])
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 12_345])
def test_an_identity_separator_is_joined_exactly(length, rate_hz):
    voices = two_voices(length)
    joined, _ = join(voices, 25, 5, rate_hz=rate_hz)
    np.testing.assert_array_equal(joined, voices)


def test_windows_start_on_video_frames():
    assert [frame_to_sample(frame, 16_000) for frame in (0, 1, 7)] == [0, 640, 4480]
    assert [frame_to_sample(frame, 44_100) for frame in (0, 1, 7)] == [0, 1764, 12_348]


def test_windows_that_disagree_are_joined_without_a_jump():
    # Every window has another gain: without a cross-fade the level jumps by 1 at a seam.
    ones = np.ones((2, 160_000), np.float32)
    joined, number = join(ones, 50, 10, change=lambda piece, number: piece * (1 + number % 2))
    assert number > 3
    assert joined.max() > 1.99 and joined.min() < 1.01
    assert np.abs(np.diff(joined)).max() < 1.01 * np.pi / 2 / (10 * 640)


def test_fades_sum_to_one_even_where_three_windows_meet():
    ones = np.ones((2, 640 * 41), np.float32)
    joined, number = join(ones, 20, 10)
    assert number == 4
    np.testing.assert_allclose(joined, 1, atol=1e-6)


def test_voices_that_each_window_permutes_come_out_unpermuted():
    voices = two_voices(300_000)
    flips = np.random.default_rng(1).integers(0, 2, 1000)
    assert len(set(flips[:10])) == 2

    def permute(piece, number):
        return piece[::-1] if flips[number] else piece

    joined, number = join(voices, 25, 5, ordered=False, change=permute)
    assert number > 20
    np.testing.assert_array_equal(joined, voices[::-1] if flips[0] else voices)


def test_lips_forbid_reordering():
    voices = two_voices(60_000)
    joined, _ = join(voices, 25, 5, ordered=True, change=lambda piece, number: piece[::-1])
    np.testing.assert_array_equal(joined, voices[::-1])


def test_order_is_told_when_one_voice_pauses_and_kept_in_silence():
    voices = two_voices(1000)
    voices[1] = 0
    assert is_swapped(voices, voices[::-1])
    assert not is_swapped(voices, voices)
    assert not is_swapped(voices * 0, voices)
    assert not is_swapped(voices[:, :0], voices[:, :0])


def test_joiner_hands_out_at_once_what_is_final():
    joiner = Joiner()
    first = joiner.add(0, np.ones((2, 1000), np.float32), 800, ordered=True)
    second = joiner.add(800, np.ones((2, 1000), np.float32), None, ordered=True)
    assert (first.shape[1], second.shape[1]) == (800, 1000)


def test_lips_of_a_window():
    video = np.arange(10, dtype=np.float16)[:, None] * np.ones((1, 3), np.float16)
    visual, mask = lips_of_window([video, None], 2, 6, 3)
    assert mask.tolist() == [True, False]
    np.testing.assert_array_equal(visual[0, :, 0], [2, 3, 4, 5])
    assert not visual[1].any()


def test_video_that_ends_in_a_window_is_held_or_does_not_count():
    video = np.arange(10, dtype=np.float16)[:, None]
    visual, mask = lips_of_window([video, video], 8, 12, 1)  # half of the window is covered
    assert mask.all()
    np.testing.assert_array_equal(visual[0, :, 0], [8, 9, 9, 9])
    for start, stop in ((8, 13), (10, 14), (50, 54)):
        visual, mask = lips_of_window([video, video], start, stop, 1)
        assert not mask.any() and not visual.any()
