"""What a lip encoder is worth: which of two mouths speaks this voice, and at which offset.

    python -m pipeline.synchrony.measure --root DIR [--part test] [--speakers CSV] [--run saved/lip_encoder]

Without `--run` the two halves that ship with the project are measured.

Axes: B clips, P dimensions, F video frames.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.default_weights import SHIPPED
from pipeline.lipreading import LipReader
from pipeline.synchrony.agreement import agreement, overlap_agreement
from pipeline.synchrony.batches import network_input, stretch
from pipeline.synchrony.clips import Clip, ClipStore, list_clips
from pipeline.synchrony.halves import load_halves
from pipeline.synchrony.sound import LogMel, SoundEncoder


@dataclass(frozen=True)
class Measured:
    """Shares of right answers, with 95 % intervals over speakers (percentile bootstrap).

    Attributes:
        matching: which of two mouths, of different speakers, speaks this voice.
        same_speaker: the same where both mouths are of one speaker.
        offset: voice found within one frame of where it belongs, by all that it overlaps with the lips, when what the
            lips of all clips do alike at the same time is taken out. Cuts that many clips have at one place, in picture
            and sound, would tell the offset of any voice to any mouth.
        chance: the share of offsets that hits by chance.
        clips, speakers: how many.
    """

    matching: tuple[float, float, float]
    same_speaker: tuple[float, float, float]
    offset: tuple[float, float, float]
    chance: float
    clips: int
    speakers: int

    def __str__(self) -> str:
        def percent(value: tuple[float, float, float]) -> str:
            if np.isnan(value[0]):
                return "not measured (no two clips)"
            return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * part for part in value))

        return (
            f"{self.clips} clips of {self.speakers} speakers: which of two mouths speaks {percent(self.matching)}, "
            f"of one speaker's two {percent(self.same_speaker)}, offset within a frame {percent(self.offset)} "
            f"(of voices of other clips {100 * self.chance:.1f} %)"
        )


@torch.inference_mode()
def measure(
    reader: LipReader,
    sound: SoundEncoder,
    clips: Sequence[Clip],
    store: ClipStore,
    *,
    num_frames: int = 50,
    reach: int = 10,
    seed: int = 0,
) -> Measured:
    """Measure on clips as they are, cut or held to `num_frames`.

    Args:
        reader, sound: the two halves, left in evaluation mode.
        clips: of any speakers.
        store: reads them.
        num_frames: F; 50 is 2 s.
        reach: offsets tried to either side, in frames.
        seed: of the bootstrap.

    Raises:
        ValueError: the clips are too short for the offsets.
    """
    if num_frames <= 2 * reach + 1:
        raise ValueError(
            f"{num_frames} frames: offsets of up to {reach} either way need {2 * reach + 2} at least"
        )
    reader.eval()
    sound.eval()
    mel_of, lips, voices = LogMel(), [], []
    for clip in tqdm(clips, desc="matching", unit="clip", leave=False, disable=None):
        frames, voice = store.load(clip)
        mouth, mel = stretch(torch.from_numpy(frames), mel_of(voice), num_frames)
        lips.append(reader.temporal(reader.frontend(network_input(mouth[None])))[0])
        voices.append(sound(mel[None])[0])
    lips_all, voices_all = torch.stack(lips), torch.stack(voices)
    speakers = [clip.speaker for clip in clips]
    scores = agreement(lips_all, voices_all)  # (mouths, voices)
    right = (scores.diagonal()[None] > scores).double() + 0.5 * (scores.diagonal()[None] == scores)
    own_lips = lips_all - lips_all.mean(dim=0) if len(clips) > 1 else lips_all
    found = _in_step(own_lips, voices_all, reach)
    chance = _in_step(own_lips, voices_all.roll(1, dims=0), reach).mean().item()
    codes = {name: code for code, name in enumerate(dict.fromkeys(speakers))}
    code = torch.tensor([codes[name] for name in speakers])
    same = code[:, None] == code[None]
    own = torch.eye(len(clips), dtype=torch.bool)
    intervals = _intervals(code.numpy(), seed)
    return Measured(
        matching=intervals(_per_voice(right, ~same)),
        same_speaker=intervals(_per_voice(right, same & ~own)),
        offset=intervals(found.numpy()),
        chance=chance,
        clips=len(clips),
        speakers=len(codes),
    )


def _in_step(lips: Tensor, voices: Tensor, reach: int) -> Tensor:
    """Whether the best of all offsets is right within a frame. Shape: (B, P, F), (B, P, F) -> (B,)."""
    return ((overlap_agreement(lips, voices, reach).argmax(dim=1) - reach).abs() <= 1).double()


def _per_voice(right: Tensor, counted: Tensor) -> np.ndarray:
    """Share of the mouths counted that lose against the voice's own; NaN where there is none. Shape: (B, B) -> (B,)."""
    return ((right * counted).sum(dim=0) / counted.sum(dim=0)).numpy()


def _intervals(speakers: np.ndarray, seed: int) -> Callable[[np.ndarray], tuple[float, float, float]]:
    """Mean and percentile bootstrap over speakers of values that belong to clips."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(speakers == code) for code in np.unique(speakers)]
    draws = [rng.integers(len(members), size=len(members)) for _ in range(1000)]

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        if np.isnan(values).all():
            return (float("nan"),) * 3
        sums = np.array([np.nansum(values[rows]) for rows in members])
        counts = np.array([np.count_nonzero(~np.isnan(values[rows])) for rows in members])
        means = [sums[draw].sum() / max(1, counts[draw].sum()) for draw in draws]
        low, high = np.percentile(means, [2.5, 97.5])
        return float(sums.sum() / counts.sum()), float(low), float(high)

    return interval


def main(arguments: list[str] | None = None) -> int:
    """The command; exit codes: 0 measured, 2 it cannot be carried out."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synchrony.measure", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="data directory")
    parser.add_argument("--part", help="train, val or test; left out for a directory without parts")
    parser.add_argument("--speakers", type=Path, help="CSV file with columns id and speaker")
    parser.add_argument("--run", type=Path, default=SHIPPED.parent, help="folder of both halves")
    parser.add_argument("--frames", type=int, default=50, help="video frames of every clip; 50 are 2 s")
    options = parser.parse_args(arguments)
    try:
        clips = list_clips(options.root, options.part, options.speakers)
        measured = measure(*load_halves(options.run), clips, ClipStore(1), num_frames=options.frames)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
