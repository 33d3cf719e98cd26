"""A data directory in miniature: voices that count their video frames, and lips that count along."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.cache import CacheWriter, Source

RATE = 16000
FRAME = 640


class Directory:
    """Builds ``root/audio/[part/]{mix,s1,s2}``, ``root/mouths`` and a cache beside it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "data"
        self.cache = folder / "lips.h5"
        self.folder = folder

    def audio(
        self, place: str, name: str, wave: np.ndarray, rate: int = RATE, subtype: str = "FLOAT"
    ) -> Path:
        path = self.root / "audio" / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        formats = {} if path.suffix != ".wav" else {"subtype": subtype}
        soundfile.write(path, wave, rate, **formats)
        return path

    def mixture(
        self, name: str, part: str | None = None, seed: int = 0, num_samples: int = 8000
    ) -> np.ndarray:
        """Noise for both voices; returns them (2, T)."""
        voices = np.random.default_rng(seed).uniform(-0.4, 0.4, (2, num_samples)).astype(np.float32)
        prefix = f"{part}/" if part else ""
        for place, wave in (("mix", voices.sum(0)), ("s1", voices[0]), ("s2", voices[1])):
            self.audio(prefix + place, f"{name}.wav", wave)
        return voices

    def mouths(self, *ids: str) -> None:
        """Datasets never decode mouth files, only list and compare them: empty ones serve."""
        (self.root / "mouths").mkdir(parents=True, exist_ok=True)
        for name in ids:
            (self.root / "mouths" / f"{name}.npz").touch()

    def lips(self, **frames: int) -> None:
        """A cache in which row k of clip n holds (k, n, 0, 0)."""
        identity = {
            "network": "none",
            "weights": "",
            "weights_sha256": "0" * 64,
            "weights_kind": "made up by a test",
            "preprocessing_version": 1,
            "features": "frontend",
            "dtype": "float32",
            "dim": 4,
        }
        with CacheWriter(self.cache, identity) as writer:
            for number, (name, num_frames) in enumerate(frames.items()):
                rows = np.zeros((num_frames, 4), np.float16)
                rows[:, 0], rows[:, 1] = np.arange(num_frames), number
                writer.commit([(name, Source(hashlib.sha256().digest(), 0, 0, 0), rows)])
            writer.complete()


def counting_voice(num_frames: int) -> np.ndarray:
    """A voice whose amplitude in video frame k is (k + 1) / 1000."""
    return np.repeat(np.arange(1, num_frames + 1, dtype=np.float32) / 1000, FRAME)


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker; threads that wait for one another over small tensors make items many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def directory(tmp_path) -> Directory:
    return Directory(tmp_path)


@pytest.fixture
def voices_directory(directory) -> Directory:
    """Six mixes of counting voices of 100 frames: ids 01..06 with lips, 07 and 08 without."""
    for first, second in (("01", "02"), ("03", "04"), ("05", "06"), ("01", "03"), ("02", "07"), ("04", "08")):
        wave = counting_voice(100)
        for place, scale in (("mix", 1.0), ("s1", 0.5), ("s2", 0.5)):
            directory.audio(f"train/{place}", f"{first}_{second}.wav", scale * wave)
    ids = [f"0{n}" for n in range(1, 7)]
    directory.mouths(*ids)
    directory.lips(**dict.fromkeys(ids, 100))
    return directory
