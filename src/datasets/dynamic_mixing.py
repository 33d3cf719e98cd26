"""New mixtures in every epoch, out of the single voices of a training set.

Axes: S = 2 speakers, T samples at 16 kHz, F = ceil(T / 640) video frames at 25 fps, D values in an embedding.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from pipeline.audio_io import SAMPLE_RATE_HZ, audio_info, read_audio
from pipeline.draw import chance, checked_probability, checked_range, drawn_from, integer, uniform
from pipeline.interpolation import between_frames
from pipeline.speakers import read_speakers
from src.datasets.base_dataset import BaseDataset
from src.datasets.lips import FRAME_SAMPLES, CachedLips
from src.datasets.mixture import mixture_index, require_complete

logger = logging.getLogger(__name__)

PEAK = 0.9  # of a mixture, as in the course's data
_QUIET_RMS = (
    1e-3  # a piece below -60 dBFS is a pause: bringing it to the level of speech would only amplify noise
)
_NORMAL_SPEED = 20  # speeds are counted in twentieths


class DynamicMixingDataset(BaseDataset):
    """Draws two voices of different speakers, crops them and mixes them at a random level difference.

    The voices are the truths ``s1`` and ``s2`` of all mixtures of ``root/audio/<part>``, one per id. A draw, in order:

    1. The first voice out of those with lips; the second out of those with lips or, with probability
       ``audio_only_share``, out of those without. Without a cache both come from all voices. With probability
       ``same_speaker_share`` the second is another utterance of the first one's speaker instead.
    2. The two change places or not, with equal chance, so that neither lips nor level tell the order.
    3. A crop of ``segment_s`` from each. It starts on a video frame, so lips and voice stay in step. A voice that is
       shorter is padded with zeros, its lips hold their last frame.
       With ``speeds``, each is played at one of them: another pitch, another throat, and lips in step with it.
    4. ``voice_transforms`` on each voice: what they return is the target.
    5. Equal RMS, then a level difference uniform in ``level_db`` whose sign is random, then one gain for all that
       brings the highest peak of mixture and voices to 0.9.

    ``mix`` is the sum of the two ``sources``; ``item_transforms`` act afterwards (noise on the mixture alone, gain on
    all). Item ``i`` of epoch ``e`` follows from ``(seed, e, i)`` alone.

    Items are those of ``src.datasets.mixture``, without ``mix_path``.

    Args:
        root: the data directory.
        part: whose mixtures to take the voices from.
        cache: file of lip embeddings; None for audio-only training.
        num_samples: mixtures in an epoch; None: as many as ``part`` has.
        segment_s: length of a mixture in seconds.
        level_db: lowest and highest level difference in dB.
        speakers: CSV file with columns ``id`` and ``speaker``. With it the two voices are of different speakers,
            without it only of different ids.
        balance: draw the speaker first and then one of its utterances, so that a speaker of many utterances is not
            heard more often than others; without a table, all utterances alike.
        audio_only_share: share of mixtures whose second voice has no lips. Without a cache it has no meaning.
        no_lips_share: share of mixtures of two voices out of all, with and without lips, and no lips of either: what
            many voices teach about separation, where few have lips. Without a cache it has no meaning.
        same_speaker_share: share, of the mixtures that have lips, of two utterances of one speaker, both with lips.
            They are played at one speed, and what ``voice_transforms`` draw is the same for both, so that no voice can
            be known by its sound. Needs ``speakers``.
        speeds: at which to play a voice, drawn evenly; in twentieths, such as 0.9 or 1.05. None: as it is.
        preload: keep all voices (16-bit) and lips in memory: 64 KB and 50 KB for each voice of 2 s with 512 values.
        strict: see ``AVSSDataset``; False leaves out what is absent.
        missing_lips: see ``AVSSDataset``.
        limit: use that many voices at most.
        shuffle_index: shuffle the voices before the limit.
        voice_transforms: callables (T,) -> (T,) on single voices, such as a room's reverberation.
        item_transforms, instance_transforms, seed: see ``BaseDataset``.

    Raises:
        ValueError: the directory, the table of speakers or the cache does not allow a draw, or an option has no
            possible value.
    """

    def __init__(
        self,
        root: str | Path,
        part: str = "train",
        cache: str | Path | None = None,
        num_samples: int | None = None,
        segment_s: float = 2.0,
        level_db: Sequence[float] = (0.0, 10.0),
        speakers: str | Path | None = None,
        balance: bool = True,
        audio_only_share: float = 0.2,
        no_lips_share: float = 0.0,
        same_speaker_share: float = 0.0,
        speeds: Sequence[float] | None = None,
        preload: bool = False,
        strict: bool = True,
        missing_lips: Literal["error", "mask"] = "error",
        limit: int | None = None,
        shuffle_index: bool = False,
        voice_transforms: Sequence[Callable[[torch.Tensor], torch.Tensor]] | None = None,
        item_transforms: Sequence[Callable[[dict], dict]] | None = None,
        instance_transforms: Mapping[str, Callable] | None = None,
        seed: int = 0,
    ) -> None:
        self._segment = round(segment_s * SAMPLE_RATE_HZ)
        self._level_db = checked_range("level_db", level_db)
        self._audio_only_share = checked_probability("audio_only_share", audio_only_share)
        self._no_lips_share = checked_probability("no_lips_share", no_lips_share)
        self._same_speaker_share = checked_probability("same_speaker_share", same_speaker_share)
        if same_speaker_share > 0 and speakers is None:
            raise ValueError(
                f"same_speaker_share={same_speaker_share}: needs speakers, a table of who speaks what"
            )
        self._speeds = [_twentieths(speed) for speed in speeds or [1.0]]
        if self._level_db[0] < 0:
            raise ValueError(f"level_db={list(level_db)}: the sign is drawn; give 0 or more")
        if self._segment < FRAME_SAMPLES:
            raise ValueError(f"segment_s={segment_s}: must be at least one video frame, 0.04 s")
        self._lips = None if cache is None else CachedLips(cache, root, missing_lips)
        mixes, problems = mixture_index(root, part, self._lips)
        if strict:
            require_complete(Path(root) / "audio" / part, mixes, problems)
        super().__init__(voice_index(mixes), limit, shuffle_index, item_transforms, instance_transforms, seed)
        self._voice_transforms = list(voice_transforms or [])
        self._num_samples = len(mixes) if num_samples is None else num_samples
        if self._num_samples <= 0:
            raise ValueError(
                f"num_samples={num_samples}: must be positive, or null for as many as {part} has"
            )

        names = (
            read_speakers(speakers, (voice["id"] for voice in self.index)) if speakers is not None else None
        )
        of_voice = [names[voice["id"]] if names else voice["id"] for voice in self.index]
        codes = {name: code for code, name in enumerate(dict.fromkeys(of_voice))}
        self._speaker = np.array([codes[name] for name in of_voice], dtype=np.int64)
        if len(codes) < 2:
            raise ValueError(
                f"{Path(root) / 'audio' / part}: {len(self.index)} voices of {len(codes)} speakers; mixing needs "
                "voices of two speakers at least"
            )
        self._balance = balance and names is not None
        self._with_lips, self._without_lips = self._pools(root)
        if same_speaker_share > 0 and np.bincount(self._speaker[self._with_lips]).max() < 2:
            logger.warning("No speaker has two voices with lips: same_speaker_share has no effect")
        self._stored = _StoredVoices(self.index, self._lips) if preload else None

    def _pools(self, root: str | Path) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the voices with lips and of those without; without a cache all are in the first."""
        if self._lips is None:
            return np.arange(len(self.index)), np.arange(0)
        self._lips.check((voice["id"], voice["mouth"]) for voice in self.index)
        has_lips = np.array([self._lips.has(voice["id"], voice["mouth"]) for voice in self.index])
        if not has_lips.any():
            raise ValueError(
                f"{root}: none of its {len(self.index)} voices has lips in the cache; is it the cache of this "
                "directory? Set cache=null to train without lips"
            )
        if has_lips.all() and self._audio_only_share > 0:
            logger.info("All %d voices have lips: audio_only_share has no effect", len(self.index))
        return np.flatnonzero(has_lips), np.flatnonzero(~has_lips)

    def __len__(self) -> int:
        return self._num_samples

    def load_instance(self, ind: int) -> dict[str, Any]:
        """Draw a mixture; the random state that ``BaseDataset`` has set decides, not ``ind``."""
        lips_wanted = self._lips is not None and not chance(self._no_lips_share)
        pair = self._draw_pair(lips_wanted)
        num_frames = -(-self._segment // FRAME_SAMPLES)
        centres = torch.arange(num_frames) + 0.5
        voices = torch.zeros(2, self._segment)
        visual = None if self._lips is None else torch.zeros(2, num_frames, self._lips.dim)
        visual_mask = torch.zeros(2, dtype=torch.bool)
        alike = self._speaker[pair[0]] == self._speaker[pair[1]]
        shared_state = integer(2**62) if alike else None
        for row, number in enumerate(pair):
            voice = self.index[number]
            total = self._num_voice_samples(number)
            if row == 0 or not alike:
                speed = self._speeds[integer(len(self._speeds))] if len(self._speeds) > 1 else self._speeds[0]
            wanted = -(-self._segment * speed // _NORMAL_SPEED)
            first_frame = integer(max(0, total - wanted) // FRAME_SAMPLES + 1)
            audio = resample(self._voice(number, first_frame * FRAME_SAMPLES, wanted), speed, _NORMAL_SPEED)[
                : self._segment
            ]
            voices[row, : audio.numel()] = audio
            if lips_wanted and self._lips.has(voice["id"], voice["mouth"]):
                lips = self._voice_lips(number)
                # A video that ends before the crop begins leaves its last frame.
                lips = torch.from_numpy(lips[min(first_frame, len(lips) - 1) :].astype(np.float32))
                visual[row] = between_frames(lips, (centres * speed) / _NORMAL_SPEED - 0.5)
                visual_mask[row] = True
            with drawn_from(shared_state) if alike else nullcontext():
                for transform in self._voice_transforms:
                    voices[row] = transform(voices[row])
        level_db = uniform(*self._level_db) * (1 if chance(0.5) else -1)
        sources = mix_pair(voices, level_db)
        ids = tuple(self.index[number]["id"] for number in pair)
        item = {
            "mix": sources.sum(0),
            "sources": sources,
            "sources_mask": torch.ones(2, dtype=torch.bool),
            "visual_mask": visual_mask,
            "utt_id": "_".join(ids),
            "ids": ids,
        }
        if visual is not None:
            item["visual"] = visual
        return item

    def _draw_pair(self, lips_wanted: bool) -> tuple[int, int]:
        pools = [self._with_lips, self._without_lips]
        if not lips_wanted:
            pools = [np.concatenate(pools)]
        first = self._draw(pools[0])
        # At a share of 0 nothing is drawn, so that a seed means what it meant before there was this one.
        if lips_wanted and self._same_speaker_share > 0 and chance(self._same_speaker_share):
            own = pools[0][self._speaker[pools[0]] == self._speaker[first]]
            if len(own) > 1:
                return first, int(own[own != first][integer(len(own) - 1)])
        if len(pools) > 1 and chance(self._audio_only_share):
            pools.reverse()
        for pool in pools:  # the other pool serves where this one has no voice of another speaker
            others = pool[self._speaker[pool] != self._speaker[first]]
            if len(others):
                break
        second = self._draw(others)
        return (first, second) if chance(0.5) else (second, first)

    def _draw(self, pool: np.ndarray) -> int:
        if self._balance:
            speakers = np.unique(self._speaker[pool])
            pool = pool[self._speaker[pool] == speakers[integer(len(speakers))]]
        return int(pool[integer(len(pool))])

    def _num_voice_samples(self, number: int) -> int:
        if self._stored is not None:
            return self._stored.num_samples(number)
        info = audio_info(self.index[number]["path"])
        return -(-info.num_samples * SAMPLE_RATE_HZ // info.rate_hz)

    def _voice(self, number: int, start: int, num_samples: int) -> torch.Tensor:
        if self._stored is not None:
            return self._stored.audio(number, start, num_samples)
        return read_audio(self.index[number]["path"], start=start, num_samples=num_samples)

    def _voice_lips(self, number: int) -> np.ndarray:
        if self._stored is not None:
            return self._stored.lips(number)
        return self._lips.load(self.index[number]["id"], self.index[number]["mouth"])


def _twentieths(speed: float) -> int:
    """A speed as so many twentieths, which keeps the filters of resampling short.

    Raises:
        ValueError: it is not positive, or no whole number of twentieths.
    """
    parts = round(speed * _NORMAL_SPEED)
    if parts <= 0 or abs(parts - speed * _NORMAL_SPEED) > 1e-6:
        raise ValueError(f"speeds: {speed} must be positive and a multiple of {1 / _NORMAL_SPEED}")
    return parts


def mix_pair(voices: torch.Tensor, level_db: float) -> torch.Tensor:
    """Bring two voices to a level difference, and the highest peak of mixture and voices to 0.9.

    Args:
        voices: (S, T).
        level_db: how much louder the first one gets, RMS against RMS.

    Returns:
        The scaled voices (S, T); their sum is the mixture. A voice that is silent (below -60 dBFS) stays quieter than
        ``level_db`` says, digital silence stays silent.
    """
    rms = voices.square().mean(1, keepdim=True).sqrt().clamp_min(_QUIET_RMS)
    gains = torch.tensor([[10 ** (level_db / 40)], [10 ** (-level_db / 40)]])
    levelled = voices / rms * gains
    peak = torch.maximum(levelled.sum(0).abs().max(), levelled.abs().max())
    return levelled * (PEAK / peak) if peak > 0 else levelled


class _StoredVoices:
    """All voices and lips in three flat tensors.

    Flat, so that forked workers share the pages and spawned ones the memory, without a copy for each.
    """

    def __init__(self, index: list[dict[str, Any]], lips: CachedLips | None) -> None:
        waves, scales = [], []
        for voice in tqdm(index, desc="voices into memory", unit="voice", disable=None):
            wave = read_audio(voice["path"])
            # Full scale for each: 16 bits then cost less than the file's own did, and levels are drawn anyway.
            scale = max(float(wave.abs().max()), 1e-6) / 32767
            waves.append((wave / scale).round().to(torch.int16))
            scales.append(scale)
        self._scales = torch.tensor(scales)
        self._waves, self._wave_ends = torch.cat(waves), _ends(waves)
        del waves  # before as much again is gathered
        frames = [
            torch.from_numpy(lips.load(voice["id"], voice["mouth"]))
            if lips is not None and lips.has(voice["id"], voice["mouth"])
            else torch.empty(0, 0 if lips is None else lips.dim, dtype=torch.float16)
            for voice in index
        ]
        self._frames, self._frame_ends = torch.cat(frames), _ends(frames)

    def num_samples(self, number: int) -> int:
        start, end = _span(self._wave_ends, number)
        return end - start

    def audio(self, number: int, start: int, num_samples: int) -> torch.Tensor:
        first, end = _span(self._wave_ends, number)
        first += start
        return self._waves[first : min(end, first + num_samples)] * self._scales[number]

    def lips(self, number: int) -> np.ndarray:
        start, end = _span(self._frame_ends, number)
        return self._frames[start:end].numpy()


def _ends(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([len(part) for part in parts]).cumsum(0)


def _span(ends: torch.Tensor, number: int) -> tuple[int, int]:
    return (int(ends[number - 1]) if number else 0), int(ends[number])


def voice_index(mixes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One voice per id: the truth in the first mixture, by name, that has one.

    Args:
        mixes: index of mixtures, as of `src.datasets.mixture.mixture_index`.

    Returns:
        One dict per voice: `id`, `path`, `mouth` (None where absent).
    """
    voices: dict[str, dict[str, Any]] = {}
    for record in mixes:
        for s in (1, 2):
            name, path = record[f"id{s}"], record[f"s{s}"]
            if path is not None and name not in voices:
                voices[name] = {"id": name, "path": path, "mouth": record[f"mouth{s}"]}
    return list(voices.values())
