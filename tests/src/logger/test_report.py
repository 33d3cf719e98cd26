"""The demonstration page of a small fake run."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from src.logger.report import ReportError, main, write_report

RATE_HZ = 16_000
NAMES = ("a1_b1", "a2_b<2>")


class PageParser(HTMLParser):
    """Tags with attributes, the text of table cells, and whether tags nest as they should."""

    VOID = ("meta", "img", "path", "image")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parse(page: Path) -> PageParser:
    parser = PageParser()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def tone(frequency_hz: float, seconds: float = 0.5) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)


def summary(mean: float | None) -> dict:
    interval = [None, None] if mean is None else [mean - 1, mean + 1]
    statistic = {"n": 4, "mean": mean, "median": mean, "interval_95": interval}
    metrics = {"both voices": {"SI-SNRi": statistic, "STOI": {**statistic, "mean": 0.8765}}}
    return {"num_mixtures": 2, "num_voices_scored": 4, "metrics": metrics, "problem_counts": {}}


@pytest.fixture
def fake_run(tmp_path):
    """Two mixtures of two tones each, estimates, truth, and scores as calc_metrics.py writes them."""
    root, pred = tmp_path / "data", tmp_path / "pred"
    voices = {"s1": tone(500), "s2": tone(3000)}
    folders = {root / "audio" / "mix": voices["s1"] + voices["s2"]}
    for voice, audio in voices.items():
        folders[root / "audio" / voice] = audio
        folders[pred / voice] = 0.9 * audio
    for folder, audio in folders.items():
        folder.mkdir(parents=True)
        for name in NAMES:
            soundfile.write(folder / f"{name}.wav", audio, RATE_HZ)
    with open(pred / "metrics.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["name", "voice", "estimate", "group", "input_snr_db", "duration_s", "SI-SNRi", "problems"]
        )
        writer.writerow([NAMES[0], "s1", "s1", "g", "-1.5", "0.5", "7.654321", ""])
        writer.writerow([NAMES[0], "s2", "s2", "g", "1.5", "0.5", "", ""])
    (pred / "summary.json").write_text(json.dumps(summary(4.31)))
    return tmp_path


def run(folder: Path, *more: str) -> int:
    pred = folder / "pred"
    arguments = ["--pred", pred, "--root", folder / "data", "--metrics", pred / "metrics.csv"]
    arguments += ["--summary", pred / "summary.json", "--out", folder / "report.html", *more]
    return main([str(argument) for argument in arguments])


def test_page_holds_every_signal_as_picture_and_sound(fake_run):
    assert run(fake_run) == 0
    page = parse(fake_run / "report.html")
    titles = ["Mixture", "Voice 1, estimate", "Voice 1, truth", "Voice 2, estimate", "Voice 2, truth"]
    players = page.all("audio")
    assert [player["aria-label"] for player in players] == [
        f"{title} of {name}" for name in NAMES for title in titles
    ]
    pictures = page.all("image")
    assert len(pictures) == len(players) == 10

    played = {}
    for player in players:
        kind, content = player["src"].split(";base64,")
        assert kind == "data:audio/flac"
        played[player["aria-label"]], rate_hz = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert rate_hz == RATE_HZ
    np.testing.assert_allclose(played["Voice 2, estimate of a1_b1"], 0.9 * tone(3000), atol=2 / 32768)

    # The loudest row of each voice's spectrogram is at its tone, counted from below; 128 rows up to 8 kHz.
    for index, frequency_hz in ((1, 500), (3, 3000)):
        content = base64.b64decode(pictures[index]["href"].split(";base64,")[1])
        indices = np.asarray(Image.open(io.BytesIO(content)))
        row = int(indices[:, 20:-20].mean(axis=1).argmax())
        assert (len(indices) - row - 0.5) / len(indices) * 8000 == pytest.approx(frequency_hz, abs=63)


def test_colour_scale_is_shared_within_a_mixture(fake_run):
    """An estimate 40 dB down is darker by half the scale of 80 dB, not stretched to the full one."""
    soundfile.write(fake_run / "pred" / "s1" / f"{NAMES[0]}.wav", 0.01 * tone(500), RATE_HZ, subtype="FLOAT")
    assert run(fake_run) == 0
    brightest = []
    for picture in parse(fake_run / "report.html").all("image")[1:3]:
        content = base64.b64decode(picture["href"].split(";base64,")[1])
        brightest.append(int(np.asarray(Image.open(io.BytesIO(content))).max()))
    estimate, truth = brightest
    assert truth == 63
    assert estimate == pytest.approx(63 / 2, abs=1)


def test_page_is_self_contained_and_accessible(fake_run):
    run(fake_run)
    text = (fake_run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", re.sub(r"base64,[\w+/=]+", "", text))
    page = parse(fake_run / "report.html")
    for _, attributes in page.tags:
        for key in ("src", "href"):
            assert attributes.get(key, "data:").startswith("data:")
    assert page.all("html") == [{"lang": "en"}]
    assert all(picture["alt"] for picture in page.all("img"))
    labels = [picture["aria-label"] for picture in page.all("svg")]
    assert len(set(labels)) == 10 and "0.50 s" in labels[0]
    assert [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)] == ["h1", "h2", "h2", "h3", "h3"]
    assert "prefers-color-scheme: dark" in text
    assert "a2_b<2>" in page.text  # escaped, not markup


def test_scores_are_shown_with_interval(fake_run, capsys):
    swapped = fake_run / "swapped.json"
    swapped.write_text(json.dumps(summary(-9.25)))
    assert run(fake_run, "--swapped", str(swapped)) == 0
    assert "SI-SNRi +4.31 dB, 95 % interval 3.31 to 5.31 dB" in capsys.readouterr().out
    page = parse(fake_run / "report.html")
    assert "SI-SNRi +4.31 dB, 95 % interval 3.31 to 5.31 dB" in page.text
    cells = page.cells
    start = cells.index("SI-SNRi, dB")
    assert cells[start : start + 5] == ["SI-SNRi, dB", "4.31", "3.31 to 5.31", "4.31", "4"]
    assert "0.876" in cells or "0.877" in cells
    assert "−9.25" in cells
    start = cells.index("input SNR, dB")
    assert cells[start : start + 6] == ["input SNR, dB", "−1.50", "1.50", "SI-SNRi, dB", "7.65", "–"]


@pytest.mark.parametrize(
    ("mean", "required", "code"), [(4.31, "3", 0), (2.99, "3", 1), (None, "3", 1), (3.0, "3", 0)]
)
def test_exit_code_follows_the_required_improvement(fake_run, capsys, mean, required, code):
    (fake_run / "pred" / "summary.json").write_text(json.dumps(summary(mean)))
    assert run(fake_run, "--require-si-snri", required) == code
    assert (fake_run / "report.html").exists()
    error = capsys.readouterr().err
    assert ("required" in error) == (code == 1)
    if mean == 2.99:
        assert "2.99 dB is below the 3 dB required" in error


def test_without_truth_the_page_shows_what_there_is(fake_run):
    for voice in ("s1", "s2"):
        for file in (fake_run / "data" / "audio" / voice).iterdir():
            file.unlink()
    out = fake_run / "plain.html"
    assert main(["--pred", str(fake_run / "pred"), "--root", str(fake_run / "data"), "--out", str(out)]) == 0
    page = parse(out)
    assert len(page.all("audio")) == 6
    assert page.cells == []
    assert "none given" in page.text


def test_limit_spreads_over_all_and_long_files_are_cut(fake_run):
    for number in range(5):
        for folder in (fake_run / "data" / "audio" / "mix", fake_run / "pred" / "s1"):
            soundfile.write(folder / f"b{number}_c.wav", tone(500, seconds=2.0), RATE_HZ)
    assert run(fake_run, "--limit", "3", "--max-seconds", "0.75") == 0
    page = parse(fake_run / "report.html")
    assert re.findall(r"Mixture of (\S+):", " ".join(svg["aria-label"] for svg in page.all("svg"))) == [
        "a1_b1",
        "b1_c",
        "b4_c",
    ]
    assert "7 separated, 3 shown" in page.text
    assert "The first 0.75 s of 2.0 s" in page.text
    content = base64.b64decode(page.all("audio")[-1]["src"].split(";base64,")[1])
    assert soundfile.info(io.BytesIO(content)).duration == 0.75


def test_unreadable_and_silent_files_do_not_stop_the_page(fake_run):
    (fake_run / "pred" / "s1" / f"{NAMES[0]}.wav").write_bytes(b"no audio")
    for file in (fake_run / "data" / "audio" / "mix", fake_run / "pred" / "s1", fake_run / "pred" / "s2"):
        soundfile.write(file / "z_silent.wav", np.zeros(100), RATE_HZ)
    assert run(fake_run) == 0
    page = parse(fake_run / "report.html")
    assert len(page.all("audio")) == 4 + 5 + 3
    assert "not readable as audio" in page.text
    assert "nan" not in " ".join(path.get("d", "") for path in page.all("path"))


def test_wrong_folders_are_named(fake_run, capsys):
    with pytest.raises(ReportError, match="is named as a mixture"):
        write_report(fake_run, fake_run / "data" / "audio" / "mix", fake_run / "x.html")
    pred = str(fake_run / "pred")
    assert main(["--pred", pred, "--root", str(fake_run / "nowhere")]) == 2
    assert (
        main(["--pred", pred, "--root", str(fake_run / "data"), "--summary", str(fake_run / "none.json")])
        == 2
    )
    error = capsys.readouterr().err
    assert "--mix-dir" in error and "none.json" in error
