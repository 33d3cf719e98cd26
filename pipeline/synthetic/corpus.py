"""Mixtures of synthetic talking mouths, written in the course's directory layout.

    OUT/audio/{train,val,test}/{mix,s1,s2}/<id1>_<id2>.wav   16 kHz PCM-16, 2 s, mix = s1 + s2 exactly
    OUT/mouths/<id>.npz                                      key "data", uint8 (50, 96, 96), 25 fps
    OUT/utterances.csv                                       id, speaker, split, corpus, has_mouth
    OUT/corpus.json                                          version and parameters; written last

Neither file order, ids, the order of s1 and s2 nor their level tells whose voice is whose: only the lips do.
"""

import csv
import fcntl
import json
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from joblib import Parallel, delayed
from tqdm import tqdm

from pipeline.synthetic.articulation import Habits, articulate
from pipeline.synthetic.mouth import Look, film
from pipeline.synthetic.voice import SAMPLE_RATE_HZ, Voice, synthesise

CORPUS_VERSION = 1
SPLITS = ("train", "val", "test")
UTTERANCE_S = 2.0
UTTERANCES_PER_VOICE = 3
MAX_LEVEL_DIFFERENCE_DB = 10.0
MAX_PEAK = 0.9
MANIFEST, LOCK = "corpus.json", ".corpus.lock"


class CorpusError(ValueError):
    """The embedded corpus cannot be written as asked; the message names directory or value and the remedy."""


@dataclass(frozen=True)
class Utterance:
    uid: str
    speaker: str
    split: str
    speaker_seed: int
    utterance_seed: int


@dataclass(frozen=True)
class Mixture:
    first: Utterance
    second: Utterance
    level_difference_db: float  # of the first over the second

    @property
    def name(self) -> str:
        return f"{self.first.uid}_{self.second.uid}"


def render_utterance(
    speaker_seed: int, utterance_seed: int, seconds: float = UTTERANCE_S
) -> tuple[np.ndarray, np.ndarray]:
    """Voice and mouth of one utterance, a function of its arguments alone.

    The face is drawn independently of timbre and pace; only the movement is common to sound and pictures.

    Args:
        speaker_seed: who speaks (pitch, timbre, rhythm, face); not negative.
        utterance_seed: what is said; not negative.
        seconds: a multiple of 0.04 (one video frame).

    Returns:
        audio float32 (T,) at 16 kHz with RMS 0.1, and mouth uint8 (F, 96, 96) at 25 fps, where T = 640 F.

    Raises:
        CorpusError: ``seconds`` is not a positive whole number of video frames.
    """
    frames = round(seconds * 25)
    if frames < 1 or abs(frames - seconds * 25) > 1e-6:
        raise CorpusError(f"seconds={seconds}: give a positive multiple of 0.04 s (one frame at 25 fps)")
    pace, timbre, face = (np.random.default_rng([speaker_seed, stream]) for stream in range(3))
    moves, sound, camera = (
        np.random.default_rng([speaker_seed, utterance_seed, 3 + stream]) for stream in range(3)
    )
    motion = articulate(Habits.draw(pace), moves, frames / 25)
    return synthesise(Voice.draw(timbre), motion, sound), film(Look.draw(face), motion, camera)


def write_corpus(
    root: str | Path,
    train: int = 300,
    val: int = 40,
    test: int = 60,
    seed: int = 0,
    voices_per_split: tuple[int, int, int] | None = None,
    jobs: int = -1,
) -> Path:
    """Write the corpus, or leave a complete one with the same parameters as it is.

    An interrupted one is written again. Several processes may call this at once: one writes, the others wait.

    Args:
        root: directory to make; must be absent, empty or an earlier call's.
        train, val, test: number of mixes; a split with none is left out.
        seed: everything is a function of it and the numbers; ``jobs`` changes nothing.
        voices_per_split: speakers of train, val and test (disjoint), with three utterances each; by default one
            for every four mixes, at least three.
        jobs: worker processes as joblib counts them.

    Returns:
        ``root`` as a Path.

    Raises:
        CorpusError: foreign contents in ``root``, a corpus with other parameters, or impossible numbers.
    """
    root = Path(root)
    counts = {"train": train, "val": val, "test": test}
    if voices_per_split is None:
        voices_per_split = tuple(max(3, math.ceil(count / 4)) for count in counts.values())
    parameters = {
        "version": CORPUS_VERSION,
        "mixes": counts,
        "voices": dict(zip(SPLITS, voices_per_split)),
        "seed": seed,
    }
    utterances, mixtures = _plan(counts, parameters["voices"], seed)
    with _claimed(root, parameters):
        if not _is_complete(root, utterances, mixtures):
            _write(root, utterances, mixtures, jobs)
            unfinished = root / f"{MANIFEST}.tmp"
            unfinished.write_text(json.dumps(parameters, indent=1) + "\n")
            os.replace(unfinished, root / MANIFEST)
    return root


def _plan(counts: dict[str, int], voices: dict[str, int], seed: int) -> tuple[list[Utterance], list[Mixture]]:
    """Who says what with whom; utterances are sorted by random id, so order tells nothing of speakers."""
    utterances: list[Utterance] = []
    mixtures: list[Mixture] = []
    taken: set[str] = set()
    for split_index, split in enumerate(SPLITS):
        count, num_voices = counts[split], voices[split]
        if count < 0 or count > (most := UTTERANCES_PER_VOICE**2 * num_voices * (num_voices - 1) // 2):
            raise CorpusError(
                f"{split}={count}: {num_voices} voices give 0 to {most} different mixes; ask for fewer mixes "
                f"or for more voices_per_split"
            )
        if count == 0:
            continue
        rng = np.random.default_rng([seed, split_index])
        here = []
        for voice_index in range(num_voices):
            state = np.random.SeedSequence([seed, split_index, voice_index]).generate_state(
                1 + UTTERANCES_PER_VOICE
            )
            for utterance_seed in state[1:]:
                # Below 2e10 half of the ids have leading zeros, which readers must keep.
                while (uid := f"{rng.integers(2 * 10**10):011d}") in taken:
                    pass
                taken.add(uid)
                speaker = f"synthetic_{split}_{voice_index:03d}"
                here.append(Utterance(uid, speaker, split, int(state[0]), int(utterance_seed)))
        utterances += here
        pairs: set[frozenset[str]] = set()
        while len(pairs) < count:
            first, second = (here[i] for i in rng.choice(len(here), 2, replace=False))
            difference_db = rng.uniform(-MAX_LEVEL_DIFFERENCE_DB, MAX_LEVEL_DIFFERENCE_DB)
            pair = frozenset((first.uid, second.uid))
            if first.speaker != second.speaker and pair not in pairs:
                pairs.add(pair)
                mixtures.append(Mixture(first, second, difference_db))
    return sorted(utterances, key=lambda utterance: utterance.uid), mixtures


@contextmanager
def _claimed(root: Path, parameters: dict) -> Iterator[None]:
    """Hold the directory for one writer; raise CorpusError if it is not a corpus of ``parameters`` or empty.

    The lock file names the parameters from the first moment, so that an interrupted corpus is known as ours.
    """
    if root.exists() and not root.is_dir():
        raise CorpusError(f"{root} is a file; give a directory for the synthetic corpus")
    if root.is_dir() and not (root / LOCK).exists() and (found := sorted(os.listdir(root))):
        raise CorpusError(
            f"{root} already holds other files ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''}); "
            f"give a new or empty directory for the synthetic corpus"
        )
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        wanted, held = json.dumps(parameters), lock.read()
        if not held:
            lock.write(wanted)
            lock.flush()
        elif held != wanted:
            raise CorpusError(
                f"{root} holds a synthetic corpus with other parameters ({held}) than asked for ({wanted}); "
                f"remove that directory or give another one"
            )
        yield


def _is_complete(root: Path, utterances: list[Utterance], mixtures: list[Mixture]) -> bool:
    if not (root / MANIFEST).exists() or not (root / "utterances.csv").exists():
        return False
    mouths = all(_mouth_path(root, utterance).exists() for utterance in utterances)
    return mouths and all(path.exists() for mixture in mixtures for path in _mixture_paths(root, mixture))


def _write(root: Path, utterances: list[Utterance], mixtures: list[Mixture], jobs: int) -> None:
    (root / "mouths").mkdir(exist_ok=True)
    for path in {path.parent for mixture in mixtures for path in _mixture_paths(root, mixture)}:
        path.mkdir(parents=True, exist_ok=True)
    tasks = (delayed(_render_to)(root, utterance) for utterance in utterances)
    rendered = Parallel(n_jobs=jobs, return_as="generator")(tasks)
    progress = tqdm(rendered, "synthetic voices", len(utterances), disable=None)
    voices = {utterance.uid: wave for utterance, wave in zip(utterances, progress)}
    for mixture in tqdm(mixtures, "synthetic mixes", disable=None):
        waves = mix_pair(voices[mixture.first.uid], voices[mixture.second.uid], mixture.level_difference_db)
        for path, wave in zip(_mixture_paths(root, mixture), waves):
            sf.write(path, wave, SAMPLE_RATE_HZ, subtype="PCM_16")
    with (root / "utterances.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("id", "speaker", "split", "corpus", "has_mouth"))
        table.writerows((u.uid, u.speaker, u.split, "synthetic", 1) for u in utterances)


def _render_to(root: Path, utterance: Utterance) -> np.ndarray:
    """Write the mouth of one utterance and return its voice float32 (T,)."""
    wave, mouth = render_utterance(utterance.speaker_seed, utterance.utterance_seed)
    # Not np.savez_compressed: the fastest deflate level halves the time and the grain leaves little to gain.
    with (
        zipfile.ZipFile(_mouth_path(root, utterance), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("data.npy", "w") as stream,
    ):
        np.lib.format.write_array(stream, mouth, allow_pickle=False)
    return wave


def mix_pair(
    first: np.ndarray, second: np.ndarray, level_difference_db: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mix two voices (T,) as the course does: mix = s1 + s2 exactly in PCM-16 and no peak exceeds 0.9.

    Returns:
        mix, s1, s2, each int16 (T,).
    """
    s1 = first / np.sqrt(np.mean(first**2)) * 10 ** (level_difference_db / 40)
    s2 = second / np.sqrt(np.mean(second**2)) * 10 ** (-level_difference_db / 40)
    # Rounding s1 and s2 apart can move their sum by one step.
    limit = MAX_PEAK * 32768 - 1
    scale = limit / max(np.abs(s1 + s2).max(), np.abs(s1).max(), np.abs(s2).max())
    s1, s2 = (np.round(wave * scale).astype(np.int16) for wave in (s1, s2))
    return s1 + s2, s1, s2


def _mouth_path(root: Path, utterance: Utterance) -> Path:
    return root / "mouths" / f"{utterance.uid}.npz"


def _mixture_paths(root: Path, mixture: Mixture) -> list[Path]:
    split = root / "audio" / mixture.first.split
    return [split / part / f"{mixture.name}.wav" for part in ("mix", "s1", "s2")]
