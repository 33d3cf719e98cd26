"""Which lips a recording gets: both, one, the other's, none, and how late."""

import numpy as np
import pytest

from src.trainer.lip_source import LipSource, open_lips

RECORD = {"id1": "a", "id2": "b", "mouth1": "a.npz", "mouth2": "b.npz"}


class Counting:
    """Frame k of a mouth file is (k, 0 or 1), by its name."""

    def __init__(self) -> None:
        self.identity = {"dim": 2}

    def embed_file(self, path):
        rows = np.zeros((10, 2), np.float16)
        rows[:, 0], rows[:, 1] = np.arange(10), "b" in str(path)
        return rows


def lips(**options):
    source = LipSource(dim=2, cache=None, front_end=Counting(), cache_decides=False, **options)
    return source.load(RECORD).embeddings


def test_uses_of_lips():
    assert [embedding[0, 1] for embedding in lips()] == [0, 1]
    assert [embedding[0, 1] for embedding in lips(use="swapped")] == [1, 0]
    first, nothing = lips(use="first")
    assert first[0, 1] == 0 and nothing is None
    nothing, second = lips(use="second")
    assert second[0, 1] == 1 and nothing is None


@pytest.mark.parametrize(
    ("shift", "expected"), [(2, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]), (-3, [3, 4, 5, 6, 7, 8, 9, 9, 9, 9])]
)
def test_lips_late_and_early(shift, expected):
    for embedding in lips(shift_frames=shift):
        assert embedding[:, 0].tolist() == expected
    first, nothing = lips(shift_frames=shift, use="first")
    assert first[:, 0].tolist() == expected and nothing is None


def test_an_unknown_use_is_refused():
    with pytest.raises(ValueError, match=r"inferencer\.lips=both: take one of given, swapped"):
        open_lips({"dim": 2}, [RECORD], use="both")
