"""calc_metrics.py as its users run it: exit codes, tables, problems, and agreement with the training metrics."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from src.metrics.evaluate import evaluate
from src.metrics.pairing import FolderError, pair_files
from src.metrics.pesq import PESQMetric
from src.metrics.report_table import format_problems, format_table, write_report
from src.metrics.scoring import metric_specs
from src.metrics.sdr import SDRMetric
from src.metrics.si_snr import SISNRMetric
from src.metrics.stoi import STOIMetric
from src.utils.io_utils import ROOT_PATH

NAMES = ["00000000007_00000000042", "00000000008_00000000042", "00000000008.wav_00000000043"]


@pytest.fixture(autouse=True)
def one_thread():
    """Signals are so short that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path):
    """Truth with mixtures, and estimates with a fifth of the other voice left in: three mixtures of 1 s."""
    rng = np.random.default_rng(0)
    t = np.arange(16_000) / 16_000
    for name in NAMES:
        envelopes = [
            0.15 + np.clip(np.sin(2 * np.pi * (2.5 * t + shift)), 0, 1) for shift in rng.uniform(size=2)
        ]
        s1, s2 = (0.08 * level * e * rng.normal(size=16_000) for level, e in zip((2.0, 1.0), envelopes))
        write(tmp_path / "truth" / "s1" / f"{name}.wav", s1)
        write(tmp_path / "truth" / "s2" / f"{name}.wav", s2)
        write(tmp_path / "truth" / "mix" / f"{name}.wav", s1 + s2)
        write(tmp_path / "pred" / "s1" / f"{name}.wav", s1 + 0.2 * s2)
        write(tmp_path / "pred" / "s2" / f"{name}.wav", s2 + 0.2 * s1)
    return tmp_path


def write(path, samples, rate_hz=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "FLOAT" if path.suffix == ".wav" else None
    soundfile.write(path, np.asarray(samples, np.float32), rate_hz, subtype=subtype)


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT_PATH / "calc_metrics.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def score(corpus, *, pit=False, mix=None, **options):
    pairing = pair_files(corpus / "pred", corpus / "truth", mix)
    return evaluate(pairing, metric_specs(), pit=pit, jobs=1, **options)


def kinds(evaluation):
    return sorted((p.name, p.voice, p.kind) for p in evaluation.problems)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as stream:
        return {(row["name"], row["voice"]): row for row in csv.DictReader(stream)}


def test_the_script_scores_prints_and_writes_and_leaves_nothing_else(corpus):
    """One run in worker processes: exit code 0, and every figure equal to that of the training metrics."""
    (corpus / "cwd").mkdir()
    result = run("pred=../pred", "truth=../truth", "out=../out", "jobs=2", "nb=true", cwd=corpus / "cwd")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (corpus / "out").iterdir()) == ["metrics.csv", "summary.json"]
    assert list((corpus / "cwd").iterdir()) == []
    for heading in (
        "both voices",
        "s1",
        "s2",
        "input SNR below -5 dB",
        "input SNR from 5 dB",
        "PESQ-nb",
        "median",
    ):
        assert heading in result.stdout
    content = json.loads((corpus / "out" / "summary.json").read_text())
    assert content["num_mixtures"] == 3 and content["num_voices_scored"] == 6 and content["problems"] == []

    batch = {
        "sources": stacked(corpus / "truth", ("s1", "s2")),
        "estimates": stacked(corpus / "pred", ("s1", "s2")),
        "mix": stacked(corpus / "truth", ("mix",))[:, 0],
    }
    wrappers = {
        "SI-SNR": SISNRMetric(),
        "SI-SNRi": SISNRMetric(improvement=True),
        "SDR": SDRMetric(),
        "SDRi": SDRMetric(improvement=True),
        "PESQ-wb": PESQMetric(),
        "PESQ-nb": PESQMetric(mode="nb"),
        "STOI": STOIMetric(),
    }
    overall = content["metrics"]["both voices"]
    assert set(overall) == set(wrappers)
    for heading, metric in wrappers.items():
        assert overall[heading]["mean"] == pytest.approx(float(metric(**batch)), abs=1e-9), heading
        assert overall[heading]["n"] == 6
        low, high = overall[heading]["interval_95"]
        assert low <= overall[heading]["mean"] <= high
    table = rows(corpus / "out")
    assert set(table) == {(name, voice) for name in NAMES for voice in ("s1", "s2")}
    means = [float(row["SI-SNRi"]) for row in table.values()]
    assert np.mean(means) == pytest.approx(overall["SI-SNRi"]["mean"], abs=1e-5)


def stacked(root, folders):
    return torch.stack(
        [torch.stack([torch.from_numpy(read(root / f / f"{name}.wav")) for f in folders]) for name in NAMES]
    )


def test_bad_data_is_exit_code_3_with_everything_listed_and_no_traceback(corpus):
    (corpus / "pred" / "s1" / f"{NAMES[0]}.wav").unlink()
    (corpus / "pred" / "s2" / f"{NAMES[1]}.wav").write_bytes(b"RIFF not audio")
    speakers = corpus / "utterances.csv"
    speakers.write_text("id,speaker\n00000000007,a\n00000000008,a\n00000000042,b\n")
    result = run(
        f"pred={corpus / 'pred'}", f"truth={corpus / 'truth'}", f"groups={speakers}", "jobs=1", cwd=corpus
    )
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    assert "4 problems" in result.stderr
    assert f"{NAMES[0]} s1: pair missing" in result.stderr
    assert f"{NAMES[1]} s2: unreadable estimate" in result.stderr
    content = json.loads((corpus / "pred" / "summary.json").read_text())
    assert content["problem_counts"] == {"no group": 2, "pair missing": 1, "unreadable estimate": 1}
    assert content["metrics"]["both voices"]["SI-SNR"]["n"] == 4
    table = rows(corpus / "pred")
    assert len(table) == 6
    assert table[NAMES[0], "s1"]["problems"] == "pair missing" and table[NAMES[0], "s1"]["SI-SNR"] == ""
    assert table[NAMES[0], "s2"]["SI-SNR"] != ""
    # Ids of the third mixture are not in the table: listed, and grouped by themselves.
    assert "id 00000000008.wav is not in the groups file" in result.stderr
    groups = {key: row["group"] for key, row in table.items() if row["group"]}
    assert groups[NAMES[0], "s2"] == "b" and groups[NAMES[1], "s1"] == "a"
    assert groups[NAMES[2], "s1"] == groups[NAMES[2], "s2"] == NAMES[2]
    assert "bootstrap over 3 groups (by speaker)" in result.stdout


def test_a_name_that_is_not_utf8_is_listed_and_the_rest_scored(corpus):
    name = os.fsdecode(b"caf\xe9_1.wav")
    for folder in ("pred", "truth"):
        for voice in ("s1", "s2"):
            shutil.copy(corpus / folder / voice / f"{NAMES[0]}.wav", corpus / folder / voice / name)
    result = run(
        f"pred={corpus / 'pred'}", f"truth={corpus / 'truth'}", "jobs=1", "only=[SI-SNR]", cwd=corpus
    )
    assert result.returncode == 3, result.stderr
    assert r"caf\udce9_1.wav: its name is not UTF-8" in result.stderr
    content = json.loads((corpus / "pred" / "summary.json").read_text())
    assert content["metrics"]["both voices"]["SI-SNR"]["n"] == 6


def test_a_wrong_command_is_exit_code_2_and_says_what_was_expected(corpus):
    result = run(f"pred={corpus / 'nowhere'}", f"truth={corpus / 'truth'}", cwd=corpus)
    assert result.returncode == 2
    assert "expected a folder that holds s1/ and s2/" in result.stderr and "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("pred", "truth", "mix", "message"),
    [
        ("truth/s1", "truth", None, "pred=.*expected a folder that holds s1/ and s2/.*it holds 0000"),
        ("pred", "empty", None, "truth=.*it holds nothing"),
        ("pred", "truth", "mixes", "mix=.*expected the folder of the mixtures; it does not exist"),
        ("bare", "bare", None, "no audio file"),
    ],
)
def test_missing_folders_are_named_with_what_was_expected(corpus, pred, truth, mix, message):
    (corpus / "empty").mkdir()
    (corpus / "bare" / "s1").mkdir(parents=True)
    with pytest.raises(FolderError, match=message):
        pair_files(corpus / pred, corpus / truth, mix and corpus / mix)


def test_files_match_by_stem_whatever_their_format(corpus):
    """A name that ends in the letters of an extension keeps them, and a dot in a name is no extension."""
    expected = score(corpus)
    for voice in ("s1", "s2"):
        for name in NAMES:
            wav = corpus / "pred" / voice / f"{name}.wav"
            samples = read(wav)
            wav.unlink()
            write(corpus / "pred" / voice / f"{name}.flac", samples)
    evaluation = score(corpus)
    assert evaluation.problems == []
    assert [v.name for v in evaluation.voices] == [v.name for v in expected.voices]
    for ours, theirs in zip(evaluation.voices, expected.voices):
        assert ours.values["SI-SNR"] == pytest.approx(theirs.values["SI-SNR"], abs=0.05)


def test_the_same_name_twice_is_a_problem(corpus):
    write(corpus / "pred" / "s1" / f"{NAMES[0]}.flac", read(corpus / "pred" / "s1" / f"{NAMES[0]}.wav"))
    assert kinds(score(corpus)) == [(NAMES[0], "s1", "name not unique")]


def test_the_common_span_of_different_lengths_is_scored_and_listed(corpus):
    path = corpus / "pred" / "s1" / f"{NAMES[0]}.wav"
    write(path, read(path)[:12_000])
    evaluation = score(corpus)
    assert kinds(evaluation) == [(NAMES[0], "file", "lengths differ")]
    assert "the first 12000 were scored" in evaluation.problems[0].detail
    assert evaluation.voices[0].duration_s == 0.75
    estimate, target = (read(corpus / k / "s1" / f"{NAMES[0]}.wav")[:12_000] for k in ("pred", "truth"))
    expected = SISNRMetric()(
        estimates=torch.tensor(estimate)[None, None], sources=torch.tensor(target)[None, None]
    )
    assert evaluation.voices[0].values["SI-SNR"] == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize(("folder", "kind"), [("truth", "truth is silent"), ("pred", "estimate is silent")])
def test_silence_is_listed_and_left_out_of_the_means(corpus, folder, kind):
    expected = np.mean([voice.values["SI-SNR"] for voice in score(corpus).voices[1:]])
    write(corpus / folder / "s1" / f"{NAMES[0]}.wav", np.zeros(16_000))
    evaluation = score(corpus)
    assert kinds(evaluation) == [(NAMES[0], "s1", kind)]
    assert "no SI-SNR, SDR, PESQ-wb, STOI" in evaluation.problems[0].detail
    statistic = evaluation.table["both voices"]["SI-SNR"]
    assert statistic.num_values == 5 and statistic.mean == pytest.approx(expected)
    assert "NOT SCORED, of 6 voices: SI-SNR 1, SI-SNRi 1" in format_table(evaluation)


def test_pesq_without_utterances_leaves_that_metric_alone(corpus):
    burst = np.zeros(16_000)
    burst[8000:8800] = 0.4 * np.random.default_rng(1).normal(size=800)
    for folder in ("truth", "pred"):
        write(corpus / folder / "s2" / f"{NAMES[1]}.wav", burst)
    evaluation = score(corpus)
    reasons = [kind for _, _, kind in kinds(evaluation)]
    assert "PESQ found no utterances" in reasons
    overall = evaluation.table["both voices"]
    assert overall["PESQ-wb"].num_values == 5 and overall["SI-SNR"].num_values == 6
    write_report(evaluation, corpus, {})
    row = rows(corpus)[NAMES[1], "s2"]
    assert row["PESQ-wb"] == "" and row["SI-SNR"] != "" and "PESQ found no utterances" in row["problems"]


def test_pit_repairs_exchanged_voices_for_all_metrics_and_says_so(corpus):
    straight = score(corpus)
    s1, s2 = (corpus / "pred" / voice / f"{NAMES[0]}.wav" for voice in ("s1", "s2"))
    first, second = read(s1), read(s2)
    write(s1, second)
    write(s2, first)
    exchanged, repaired = score(corpus), score(corpus, pit=True)
    assert exchanged.voices[0].values["SI-SNRi"] < 0
    assert [voice.values for voice in repaired.voices] == [voice.values for voice in straight.voices]
    assert [voice.estimate for voice in repaired.voices[:4]] == ["s2", "s1", "s1", "s2"]


def test_without_mixtures_improvements_are_left_out_with_a_note(corpus):
    (corpus / "truth" / "mix").rename(corpus / "mixtures")
    evaluation = score(corpus)
    assert evaluation.problems == [] and "mix=DIR" in evaluation.notes[0]
    assert evaluation.table["both voices"]["SI-SNRi"].num_values == 0
    assert not any(subset.startswith("input SNR") for subset in evaluation.table)
    assert "note" in format_problems(evaluation) and "input SNR" not in format_table(evaluation)
    assert "NOT SCORED" not in format_table(evaluation), "a column without any value says so itself"
    assert score(corpus, mix=corpus / "mixtures").table["both voices"]["SI-SNRi"].num_values == 6
    (corpus / "mixtures" / f"{NAMES[2]}.wav").unlink()
    assert kinds(score(corpus, mix=corpus / "mixtures")) == [(NAMES[2], "mix", "mix missing")]


def test_another_sample_rate_is_read_not_assumed_and_noted(corpus):
    path = corpus / "pred" / "s1" / f"{NAMES[0]}.wav"
    expected = score(corpus).voices[0].values
    samples = np.interp(np.arange(48_000) / 3, np.arange(16_000), read(path))
    write(path, samples, rate_hz=48_000)
    evaluation = score(corpus)
    assert evaluation.problems == []
    assert any("48000 Hz, resampled" in note for note in evaluation.notes)
    # Linear interpolation dulls the highest octave, no more.
    assert evaluation.voices[0].values["STOI"] == pytest.approx(expected["STOI"], abs=0.02)


def test_every_voice_falls_into_the_band_of_its_input_snr(corpus):
    evaluation = score(corpus)
    bands = {
        name: stats["SI-SNR"] for name, stats in evaluation.table.items() if name.startswith("input SNR")
    }
    assert len(bands) == 4 and sum(statistic.num_values for statistic in bands.values()) == 6
    loud = [v for v in evaluation.voices if v.input_snr_db >= 5]
    assert bands["input SNR from 5 dB"].num_values == len(loud) > 0
    assert bands["input SNR from 5 dB"].mean == pytest.approx(np.mean([v.values["SI-SNR"] for v in loud]))


def test_metrics_can_be_chosen_and_a_wrong_name_lists_the_right_ones(corpus):
    command = [
        sys.executable,
        "calc_metrics.py",
        f"pred={corpus / 'pred'}",
        f"truth={corpus / 'truth'}",
        "jobs=1",
    ]
    chosen = subprocess.run([*command, "only=[STOI,SI-SNR]"], cwd=ROOT_PATH, capture_output=True, text=True)
    assert chosen.returncode == 0, chosen.stderr
    with (corpus / "pred/metrics.csv").open(newline="") as stream:
        columns = csv.DictReader(stream).fieldnames
    assert {"SI-SNR", "SI-SNRi", "STOI"} <= set(columns) and not {"SDR", "PESQ-wb"} & set(columns)
    assert [spec.name for spec in metric_specs(only="STOI")] == ["STOI"]
    with pytest.raises(ValueError, match="names no metric"):
        metric_specs(only=[])
    with pytest.raises(ValueError, match="num_resamples=0"):
        score(corpus, num_resamples=0)
    wrong = subprocess.run([*command, "only=[si-snr]"], cwd=ROOT_PATH, capture_output=True, text=True)
    assert wrong.returncode == 2 and "no si-snr; there are SI-SNR, SDR, PESQ-wb, STOI" in wrong.stderr
