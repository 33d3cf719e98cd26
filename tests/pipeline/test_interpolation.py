"""Values between frames against `numpy.interp`, and frames that come later."""

import numpy as np
import pytest
import torch

from pipeline.interpolation import between_frames, late


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_is_linear_between_frames_and_held_beyond_them(dim):
    generator = torch.Generator().manual_seed(dim)
    frames = torch.randn(7, 7, 7, generator=generator)
    places = 12 * torch.rand(40, generator=generator) - 3
    expected = np.apply_along_axis(
        lambda track: np.interp(places.numpy(), np.arange(7), track), dim, frames.numpy()
    )
    ours = between_frames(frames, places, dim)
    assert ours.shape == frames.movedim(dim, 0)[:1].expand(40, 7, 7).movedim(0, dim).shape
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_whole_places_give_the_frames_and_bytes_become_floats():
    frames = torch.arange(250, 256, dtype=torch.uint8)[:, None]
    torch.testing.assert_close(
        between_frames(frames, torch.tensor([0.0, 5.0, 9.0, 2.5])),
        torch.tensor([[250.0], [255.0], [255.0], [252.5]]),
    )


def test_one_frame_is_held():
    torch.testing.assert_close(
        between_frames(torch.tensor([3.0]), torch.tensor([-1.0, 0.4])), torch.full((2,), 3.0)
    )


@pytest.mark.parametrize(("lag", "seen"), [(0, "0123"), (1, "0012"), (-2, "2333"), (9, "0000"), (-9, "3333")])
def test_late_frames_hold_the_ends_and_keep_their_type(lag, seen):
    frames = torch.arange(4, dtype=torch.uint8).expand(2, 4)
    moved = late(frames, lag, dim=1)
    assert moved.dtype == torch.uint8
    assert moved.tolist() == [[int(frame) for frame in seen]] * 2
    assert torch.equal(late(frames.T, lag), moved.T)


def test_no_frames_stay_none():
    assert late(torch.zeros(3, 0, 2), 1, dim=1).shape == (3, 0, 2)
