"""Genuine mixes of the course, where they are at hand."""

from pathlib import Path

import pytest
import torch

from src.datasets.custom_dir import CustomDirDataset

SAMPLES = Path(__file__).parents[3] / ".." / "shared" / "samples" / "course"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/samples/course is absent"),
]


class NoNetwork:
    """Knows no lips, only how many frames the samples have."""

    identity = {"dim": 2}  # noqa: RUF012

    def embed_file(self, path):
        return torch.ones(50, 2, dtype=torch.float16).numpy()


def test_genuine_mixes_arrive_whole():
    items = list(CustomDirDataset(SAMPLES, front_end=NoNetwork()))
    assert len(items) == 5
    for item in items:
        assert item["mix"].shape == (32000,)
        torch.testing.assert_close(item["mix"], item["sources"].sum(0), atol=1.01 / 32768, rtol=0)
        assert item["visual"].shape == (2, 50, 2)
        assert all(len(name) == 11 for name in item["ids"])
    masks = [item["visual_mask"].tolist() for item in items]
    assert masks.count([True, True]) == 2 and masks.count([True, False]) == 3
