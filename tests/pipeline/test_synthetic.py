"""The embedded corpus: reproducible, fair, in step, and separable by the lips alone."""

import csv
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from pipeline.synthetic import CorpusError, render_utterance, write_corpus
from pipeline.synthetic.corpus import mix_pair

REPO = Path(__file__).resolve().parents[2]
SMALL = {"train": 4, "val": 2, "test": 0, "seed": 3, "voices_per_split": (2, 2, 0)}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def command(root, *options):
    line = [sys.executable, "-m", "pipeline.synthetic", str(root), "--jobs", "1", *options]
    return subprocess.Popen(line, cwd=REPO, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(
        tmp_path_factory.mktemp("corpus") / "c", 120, 3, 30, seed=11, voices_per_split=(26, 3, 12), jobs=2
    )


@pytest.fixture(scope="module")
def table(root):
    with (root / "utterances.csv").open(newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def read_split(root, split):
    """(id1, id2, mix, s1, s2) of every mixture, waves as int16 (T,)."""
    mixes = []
    for path in sorted((root / "audio" / split / "mix").iterdir()):
        parts = (
            sf.read(path.parents[1] / part / path.name, dtype="int16")[0] for part in ("mix", "s1", "s2")
        )
        mixes.append((*path.stem.split("_"), *parts))
    return mixes


def read_mouth(root, uid):
    with np.load(root / "mouths" / f"{uid}.npz", allow_pickle=False) as archive:
        assert archive.files == ["data"]
        return archive["data"]


def frame_level_db(wave):
    """Level (F,) over the samples that each video frame covers, for a voice at RMS 1."""
    wave = wave / np.sqrt(np.mean(np.square(wave, dtype=np.float64)))
    return 10 * np.log10(np.mean(wave.reshape(-1, 640) ** 2, axis=1) + 1e-6)


def lip_features(mouth, context=2):
    """Pixels of 12 x 12 blocks about the clip's mean picture, with neighbouring frames, (F, 721)."""
    blocks = mouth.reshape(len(mouth), 12, 8, 12, 8).mean(axis=(2, 4)).reshape(len(mouth), -1) / mouth.mean()
    blocks = np.pad(blocks - blocks.mean(axis=0), ((context, context), (0, 0)), mode="edge")
    frames = [blocks[i : i + len(mouth)] for i in range(2 * context + 1)]
    return np.hstack([*frames, np.ones((len(mouth), 1))])


@pytest.fixture(scope="module")
def lip_reader(root):
    """Ridge regression from pixels to level, fitted on the training speakers: mouth -> level (F,) in dB."""
    voices = {}
    for id1, id2, _, s1, s2 in read_split(root, "train"):
        voices.update({id1: s1, id2: s2})
    inputs = np.vstack([lip_features(read_mouth(root, uid)) for uid in voices])
    levels = np.concatenate([frame_level_db(wave) for wave in voices.values()])
    weights = np.linalg.solve(inputs.T @ inputs + 50 * np.eye(inputs.shape[1]), inputs.T @ levels)
    return lambda mouth: lip_features(mouth) @ weights


def si_snr_db(estimate, target):
    estimate, target = estimate - estimate.mean(), target - target.mean()
    projection = (estimate @ target) / (target @ target) * target
    return 10 * np.log10((projection @ projection) / np.sum((estimate - projection) ** 2))


def test_files_are_a_function_of_the_parameters_whatever_the_jobs(tmp_path):
    one = digests(write_corpus(tmp_path / "a", **SMALL, jobs=1))
    assert digests(write_corpus(tmp_path / "b", **SMALL, jobs=2)) == one
    other = digests(write_corpus(tmp_path / "c", **{**SMALL, "seed": 4}, jobs=1))
    assert not set(other.values()) & {one[name] for name in one if name.endswith((".npz", ".wav"))}


def test_layout_is_the_courses(root, table):
    assert (root / "utterances.csv").read_text().splitlines()[0] == "id,speaker,split,corpus,has_mouth"
    assert {path.stem for path in (root / "mouths").iterdir()} == set(table)
    assert all(len(uid) == 11 and uid.isdigit() for uid in table)
    assert any(uid.startswith("0") for uid in table) and any(not uid.startswith("0") for uid in table)
    for split, count in (("train", 120), ("val", 3), ("test", 30)):
        names = [
            {path.name for path in (root / "audio" / split / part).iterdir()} for part in ("mix", "s1", "s2")
        ]
        assert names[0] == names[1] == names[2] and len(names[0]) == count
        for name in names[0]:
            id1, id2 = Path(name).stem.split("_")
            assert table[id1]["split"] == table[id2]["split"] == split
            assert table[id1]["speaker"] != table[id2]["speaker"]
    speakers = [
        {row["speaker"] for row in table.values() if row["split"] == s} for s in ("train", "val", "test")
    ]
    assert [len(names) for names in speakers] == [26, 3, 12] and len(set.union(*speakers)) == 41
    info = sf.info(next((root / "audio" / "test" / "mix").iterdir()))
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (16000, 1, 32000, "PCM_16")
    mouth = read_mouth(root, next(iter(table)))
    assert mouth.dtype == np.uint8 and mouth.shape == (50, 96, 96)


def test_mixture_is_the_sum_of_its_voices_below_the_peak(root):
    for _, _, mix, s1, s2 in read_split(root, "train"):
        np.testing.assert_array_equal(mix, s1.astype(np.int32) + s2)
        assert 0.5 * 32768 < max(np.abs(wave.astype(np.int32)).max() for wave in (mix, s1, s2)) <= 0.9 * 32768


def test_mix_pair_sets_the_level_difference():
    rng = np.random.default_rng(0)
    _, s1, s2 = mix_pair(rng.standard_normal(16000), 0.01 * rng.standard_normal(16000), -7.0)
    rms = [np.sqrt(np.mean(wave.astype(float) ** 2)) for wave in (s1, s2)]
    assert 20 * np.log10(rms[0] / rms[1]) == pytest.approx(-7.0, abs=0.01)


def test_louder_voice_is_first_half_of_the_time(root):
    difference = np.array(
        [
            10 * np.log10(np.mean(s1 * 1.0 * s1) / np.mean(s2 * 1.0 * s2))
            for *_, s1, s2 in read_split(root, "train")
        ]
    )
    assert np.abs(difference).max() <= 10.05
    # 120 fair draws: three standard deviations are 16 mixes; |difference| is uniform with mean 5 dB.
    assert 44 <= np.sum(difference > 0) <= 76
    assert np.mean(np.abs(difference)) == pytest.approx(5.0, abs=0.9)


def test_order_of_ids_tells_nothing_of_speakers(root, table):
    train = [row for row in table.values() if row["split"] == "train"]
    assert [row["id"] for row in train] == sorted(row["id"] for row in train)
    neighbours = sum(a["speaker"] == b["speaker"] for a, b in itertools.pairwise(train))
    # Three utterances a speaker: by chance 2 in 77 neighbours share the speaker; sorted by speaker 52 would.
    assert neighbours <= 8
    pairs = [path.stem.split("_") for path in (root / "audio" / "train" / "mix").iterdir()]
    assert 44 <= sum(id1 < id2 for id1, id2 in pairs) <= 76
    assert 40 <= sum(table[id1]["speaker"] < table[id2]["speaker"] for id1, id2 in pairs) <= 80


def test_an_utterance_has_any_number_of_video_frames():
    for frames in (1, 7, 51):
        wave, mouth = render_utterance(3, 0, frames / 25)
        assert len(wave) == 640 * frames and len(mouth) == frames


def test_face_says_nothing_of_pitch():
    """Over 48 speakers, neither brightness nor contrast of the picture goes with the voice's pitch."""
    pitch, looks = [], []
    for speaker in range(48):
        wave, mouth = render_utterance(speaker, 0, 1.0)
        spectrum = np.abs(np.fft.rfft(wave, 32768)) ** 2
        correlation = np.fft.irfft(spectrum)
        pitch.append(16000 / (53 + np.argmax(correlation[53:230])))
        looks.append((mouth.mean(), mouth.std()))
    assert np.ptp(pitch) > 100
    correlation = np.corrcoef(np.log(pitch), np.transpose(looks))[0, 1:]
    assert np.abs(correlation).max() < 0.43  # three standard deviations of chance


def test_lips_and_voice_are_in_step(root):
    """The dark area of the mouth, measured without any fit that could hide a delay, follows the level at lag 0."""
    voices, curves, lags = {}, [], range(-3, 4)
    for id1, id2, _, s1, s2 in read_split(root, "train") + read_split(root, "test"):
        voices.update({id1: s1, id2: s2})
    for uid, wave in voices.items():
        level, mouth = frame_level_db(wave), read_mouth(root, uid)[:, 24:80, 16:80]
        dark = np.mean(mouth < np.percentile(mouth, 6), axis=(1, 2))
        curves.append([np.corrcoef(level[3 + lag : 47 + lag], dark[3:47])[0, 1] for lag in lags])
    curve = np.mean(curves, axis=0)
    assert lags[int(np.argmax(curve))] == 0, curve
    assert curve[3] > 0.5 and min(curve[3] - curve[2], curve[3] - curve[4]) > 0.03, curve


def test_lips_alone_separate_and_swapped_lips_swap(root, lip_reader):
    """A gain per frame, from the two mouths only, separates unseen speakers; swapped mouths reverse it."""
    centres, right, swapped = np.arange(50) * 640 + 319.5, [], []
    for id1, id2, mix, s1, s2 in read_split(root, "test"):
        mix, s1, s2 = (wave.astype(float) for wave in (mix, s1, s2))
        difference_db = lip_reader(read_mouth(root, id1)) - lip_reader(read_mouth(root, id2))
        for sign, results in ((1, right), (-1, swapped)):
            gain = 1 / (1 + 10 ** (-sign * np.interp(np.arange(32000), centres, difference_db) / 10))
            results.append(si_snr_db(gain * mix, s1) - si_snr_db(mix, s1))
            results.append(si_snr_db((1 - gain) * mix, s2) - si_snr_db(mix, s2))
    assert np.mean(right) >= 2.0
    assert np.mean(swapped) <= -5.0


def test_complete_corpus_is_left_alone_and_a_lost_file_comes_back(tmp_path):
    root = write_corpus(tmp_path / "c", **SMALL, jobs=1)
    before = digests(root), {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    start = time.perf_counter()
    write_corpus(root, **SMALL, jobs=1)
    assert time.perf_counter() - start < 1.0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == before[1]
    next((root / "mouths").iterdir()).unlink()
    assert digests(write_corpus(root, **SMALL, jobs=1)) == before[0]


def test_killed_corpus_is_finished_by_the_next_call_and_two_writers_agree(tmp_path):
    options = ("--train", "6", "--val", "0", "--test", "0")
    process = command(tmp_path / "killed", *options)
    while process.poll() is None and len(list(tmp_path.glob("killed/mouths/*.npz"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "corpus.json").exists()
    writers = [command(tmp_path / "killed", *options) for _ in range(2)]
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    fresh = write_corpus(tmp_path / "fresh", 6, 0, 0, jobs=2)
    assert digests(tmp_path / "killed") == digests(fresh)


def test_foreign_directory_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match=r"thesis\.txt.*empty directory"):
        write_corpus(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    process = command(tmp_path)
    assert "thesis.txt" in process.communicate()[1] and process.returncode == 2
    with pytest.raises(CorpusError, match="is a file"):
        write_corpus(tmp_path / "thesis.txt", **SMALL)


def test_other_parameters_are_refused(tmp_path):
    root = write_corpus(tmp_path / "c", 1, 0, 0, voices_per_split=(2, 0, 0), jobs=1)
    before = digests(root)
    with pytest.raises(CorpusError, match=r"other parameters.*remove that directory"):
        write_corpus(root, 2, 0, 0, voices_per_split=(2, 0, 0), jobs=1)
    assert digests(root) == before


def test_impossible_numbers_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="train=10: 2 voices give 0 to 9"):
        write_corpus(tmp_path / "c", 10, 0, 0, voices_per_split=(2, 0, 0))
    assert not (tmp_path / "c").exists()
    with pytest.raises(CorpusError, match=r"seconds=0\.05"):
        render_utterance(0, 0, 0.05)


def test_a_minute_long_utterance_needs_little_memory():
    tracemalloc.start()
    wave, mouth = render_utterance(1, 2, 60.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert wave.shape == (960000,) and mouth.shape == (1500, 96, 96)
    assert peak < 200e6
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.1, rel=0.02)
    # Babble to the end: pauses, but none longer than a breath.
    loud = np.flatnonzero(frame_level_db(wave) > -20)
    assert 0.4 < len(loud) / 1500 < 0.9
    assert np.diff(loud).max() <= 20 and loud[0] <= 20 and loud[-1] >= 1480


def test_import_needs_no_torch():
    code = "import sys, pipeline.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
