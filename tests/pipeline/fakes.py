"""A stand-in for the front-end that needs NumPy alone, and runs of ``precompute`` with it in a process of its own.

    python -m tests.pipeline.fakes ROOT OUT LOG [--workers N] [--file-limit BYTES] [--nap SECONDS]

writes to LOG the ids... of every batch that it embeds, before it does; LOG's first line is written when work begins.
"""

import argparse
import hashlib
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.cache import CacheError
from pipeline.extract import precompute
from pipeline.mouths import read_mouth

DIM = 64
BATCH_FRAMES = 60


class FakeFrontEnd:
    """Embeds a frame as a fixed random projection of its column means."""

    def __init__(self, weights="one", nap_s=0.0, log=None):
        self.identity = {
            "network": "fake",
            "weights": f"/somewhere/{weights}.pt",
            "weights_sha256": hashlib.sha256(weights.encode()).hexdigest(),
            "weights_kind": "fake, for tests",
            "preprocessing_version": 1,
            "features": "frontend",
            "dtype": "float32",
            "dim": DIM,
        }
        self.batch_frames = BATCH_FRAMES
        self.decoding_workers = 1
        self.batches = []
        self._nap_s = nap_s
        self._log = log
        seed = int.from_bytes(weights.encode()[:4], "little")
        self._projection = np.random.default_rng(seed).standard_normal((88, DIM)).astype(np.float32) / 88

    def embed_clips(self, clips):
        self.batches.append([len(clip) for clip in clips])
        if self._log is not None:
            self._log.write(" ".join(str(len(clip)) for clip in clips) + "\n")
            self._log.flush()
        time.sleep(self._nap_s)
        return [(clip.mean(axis=1, dtype=np.float32) @ self._projection).astype(np.float16) for clip in clips]

    def embed_file(self, path):
        return self.embed_clips([read_mouth(path)])[0]


def write_mouth(path, seed, frames):
    """A small mouth file of its own content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.random.default_rng(seed).integers(0, 256, (frames, 1, 88), dtype=np.uint8)
    np.savez_compressed(path, data=np.repeat(row, 88, axis=1))
    return path


def write_mouths(root, count, frames=lambda index: 5 + index % 11):
    """``count`` mouth files with ids ``000``, ``001``, ... of different lengths."""
    return [write_mouth(root / "mouths" / f"{index:03d}.npz", index, frames(index)) for index in range(count)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--weights", default="one")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--nap", type=float, default=0.0)
    parser.add_argument("--file-limit", type=int)
    options = parser.parse_args()
    if options.file_limit:
        # Python ignores the signal that comes with this limit, so that writing beyond it is an OSError.
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_limit, options.file_limit))
    with options.log.open("a") as log:
        log.write(f"start {os.getpid()}\n")
        log.flush()
        front_end = FakeFrontEnd(options.weights, options.nap, log)
        try:
            summary = precompute(options.root, options.out, front_end, workers=options.workers)
        except KeyboardInterrupt:
            return 130
        except CacheError as error:
            print(error, file=sys.stderr)
            return 1
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
