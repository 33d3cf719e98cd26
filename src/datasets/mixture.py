"""From a data directory to items: the index of its mixtures, and one mixture with its truths and lips.

Axes: S = 2 speakers, T samples at 16 kHz, F = ceil(T / 640) video frames at 25 fps, D values in an embedding.

An item holds

==============  ======================================================================================
``mix``         (T,) float32
``sources``     (S, T) float32, zeros for a voice without truth; **absent** when the directory has no
                truth for this mixture at all
``sources_mask`` (S,) bool, True where the truth exists; always there
``visual``      (S, F, D) float32, zeros for a speaker without lips; **absent** when the dataset was
                given neither a cache nor a front-end (audio-only)
``visual_mask`` (S,) bool, True where that speaker's lips exist; always there
``utt_id``      name of the mixture without extension
``mix_path``    the file
``ids``         (id1, id2)
==============  ======================================================================================
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.audio_io import SAMPLE_RATE_HZ
from pipeline.layout import index_mixes
from pipeline.mouths import FRAME_RATE_HZ
from src.datasets.lips import FRAME_SAMPLES, CachedLips, Lips, fit_frames

_NAMED = 5  # how many files a message lists
_TOLERATED_S = 0.2


def mixture_index(
    root: str | Path, part: str | None = None, lips: CachedLips | None = None
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Index the mixtures of a directory.

    Args:
        root, part: see ``index_mixes``.
        lips: where they stand in for mouth files, their ids part the names of mixtures.

    Returns:
        One dict per mixture, sorted by name, with the keys ``utt_id``, ``mix``, ``s1``, ``s2``, ``id1``, ``id2``,
        ``mouth1``, ``mouth2`` (paths as strings, ``None`` where absent); and the files that cannot be used, each
        with its reason.

    Raises:
        LayoutError: the folder of mixtures is absent.
    """
    mixes, problems = index_mixes(root, part, () if lips is None else lips.standing_in)
    index = [
        {
            "utt_id": mix.name,
            "mix": str(mix.mix),
            "s1": _text(mix.s1),
            "s2": _text(mix.s2),
            "id1": mix.id1,
            "id2": mix.id2,
            "mouth1": _text(mix.mouth1),
            "mouth2": _text(mix.mouth2),
        }
        for mix in mixes
    ]
    return index, [(str(path), reason) for path, reason in problems]


def require_complete(root: str | Path, index: list[dict[str, Any]], problems: list[tuple[str, str]]) -> None:
    """Refuse what training must not pass over: unusable files, absent truths, an empty directory.

    Raises:
        ValueError: there is some; the message lists the first few.
    """
    if not index and not problems:
        raise ValueError(f"{root}: no mixtures (wav, flac or mp3) in its folder mix")
    reasons = list(problems)
    reasons += [
        (record["mix"], f"has no truth in {voice}/")
        for record in index
        for voice in ("s1", "s2")
        if record[voice] is None
    ]
    if reasons:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in reasons[:_NAMED])
        more = f"\n  and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        raise ValueError(
            f"{root}: {len(reasons)} files cannot be trained on or validated against; mend or remove them, or set "
            f"datasets.strict=false to go on without them:\n{listed}{more}"
        )


def load_mixture(
    record: dict[str, Any], lips: Lips | None, read: Callable[[str], torch.Tensor]
) -> dict[str, Any]:
    """Load one mixture of the index as an item.

    Truths and lips are aligned with the mixture from its start: truths are cut, or padded with zeros; lips are cut,
    or their last frame is held. Differences of more than a sample, and of more than 0.2 s for lips, are warned of.

    Args:
        record: an entry of ``mixture_index``.
        lips: where embeddings come from; None for audio-only use.
        read: reads an audio file to (T,) float32.

    Raises:
        AudioError, MouthError: a file cannot be used.
    """
    mix = read(record["mix"])
    item: dict[str, Any] = {
        "mix": mix,
        "sources_mask": torch.tensor([record["s1"] is not None, record["s2"] is not None]),
        "visual_mask": torch.zeros(2, dtype=torch.bool),
        "utt_id": record["utt_id"],
        "mix_path": record["mix"],
        "ids": (record["id1"], record["id2"]),
    }
    if item["sources_mask"].any():
        item["sources"] = torch.zeros(2, mix.numel())
        for row, path in enumerate((record["s1"], record["s2"])):
            if path is not None:
                voice = read(path)
                _warn_of_length(path, voice.numel(), mix.numel())
                shared = min(voice.numel(), mix.numel())
                item["sources"][row, :shared] = voice[:shared]
    if lips is not None:
        num_frames = -(-mix.numel() // FRAME_SAMPLES)
        item["visual"] = torch.zeros(2, num_frames, lips.dim)
        for row, (speaker_id, mouth) in enumerate(
            ((record["id1"], record["mouth1"]), (record["id2"], record["mouth2"]))
        ):
            if lips.has(speaker_id, mouth):
                embeddings = lips.load(speaker_id, mouth)
                _warn_of_frames(mouth or speaker_id, record["mix"], len(embeddings), mix.numel())
                item["visual"][row] = torch.from_numpy(fit_frames(embeddings, num_frames).astype(np.float32))
                item["visual_mask"][row] = True
    return item


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _warn_of_length(path: str, num_samples: int, expected: int) -> None:
    if abs(num_samples - expected) > 1:
        warnings.warn(
            f"{path}: {num_samples} samples at 16 kHz, its mixture has {expected}; aligned from the start",
            stacklevel=3,
        )


def _warn_of_frames(name: str, mix_path: str, num_frames: int, num_samples: int) -> None:
    difference_s = num_frames / FRAME_RATE_HZ - num_samples / SAMPLE_RATE_HZ
    if abs(difference_s) > _TOLERATED_S:
        warnings.warn(
            f"{name}: the video is {abs(difference_s):.2f} s {'longer' if difference_s > 0 else 'shorter'} than "
            f"{mix_path}; aligned from the start",
            stacklevel=3,
        )
