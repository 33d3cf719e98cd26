"""The console writer's files, read back."""

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from matplotlib.image import imread
from omegaconf import OmegaConf

from src.logger import ConsoleWriter
from src.logger.base_writer import WriterError

REPO = Path(__file__).parents[3]


def make_writer(save_dir: Path, **options) -> ConsoleWriter:
    return ConsoleWriter(None, {"model": {"width": 8}}, "project", "run", save_dir=save_dir, **options)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_scalars_are_on_disk_before_finish(tmp_path):
    writer = make_writer(tmp_path)
    writer.set_step(3, "train")
    writer.add_scalar("loss", torch.tensor(-1.5, dtype=torch.bfloat16))
    writer.set_step(3, "val")
    writer.add_scalars("si_snr", {"s1": 4.25, "s2": np.float32(0.5)})
    rows = [tuple(row.values()) for row in read_rows(tmp_path / "scalars.csv")]
    assert rows == [
        ("3", "train", "loss", "-1.5"),
        ("3", "val", "si_snr/s1", "4.25"),
        ("3", "val", "si_snr/s2", "0.5"),
    ]


def test_steps_per_second_count_only_steps_of_one_mode(tmp_path, monkeypatch):
    clock = iter([10.0, 12.0, 40.0, 41.0, 45.0])
    monkeypatch.setattr("src.logger.base_writer.time.perf_counter", lambda: next(clock))
    writer = make_writer(tmp_path)
    writer.set_step(100, "train")  # a resumed run: nothing is known yet
    writer.set_step(110, "train")
    writer.set_step(110, "val")
    writer.set_step(120, "train")  # validation lies between
    writer.set_step(128, "train")
    rows = read_rows(tmp_path / "scalars.csv")
    assert [(row["step"], row["name"], row["value"]) for row in rows] == [
        ("110", "steps_per_sec", "5.0"),
        ("128", "steps_per_sec", "2.0"),
    ]


def test_audio_keeps_rate_and_level(tmp_path):
    writer = make_writer(tmp_path)
    writer.set_step(7, "val")
    audio = 0.25 * torch.sin(torch.arange(800) * 0.3)[None]
    writer.add_audio("estimate/s1", audio, sample_rate=8000)
    samples, rate_hz = soundfile.read(tmp_path / "audio" / "estimate_s1_val_7.wav", dtype="float32")
    assert rate_hz == 8000
    np.testing.assert_allclose(samples, audio[0].numpy(), atol=1 / 32768)


def test_image_pixels_survive_in_every_layout(tmp_path):
    writer = make_writer(tmp_path)
    writer.set_step(1, "val")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    writer.add_image("rows first", pixels)
    writer.add_image("channels first", torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    writer.add_image("grey", np.full((4, 6), 0.5))
    for name in ("rows_first", "channels_first"):
        stored = imread(tmp_path / "images" / f"{name}_val_1.png")[..., :3]
        np.testing.assert_array_equal(np.round(stored * 255).astype(np.uint8), pixels)
    assert np.unique(np.round(imread(tmp_path / "images" / "grey_val_1.png")[..., :3] * 255)) == [128]


def test_text_table_and_histogram_are_csv(tmp_path):
    writer = make_writer(tmp_path)
    writer.set_step(2, "test")
    writer.add_text("note", 'two\nlines, "quoted"')
    writer.add_table(
        "scores", [{"utt_id": "a_b", "si_snr": 1.5}, {"utt_id": "c_d", "pesq": torch.tensor(2.0)}]
    )
    writer.add_table("by_name", {"a_b": {"si_snr": 1.5}})
    writer.add_histogram("weights", torch.tensor([0.0, 0.1, 1.0, float("nan")]), num_bins=2)
    assert read_rows(tmp_path / "texts.csv")[0]["text"] == 'two\nlines, "quoted"'
    assert read_rows(tmp_path / "tables" / "scores_test_2.csv") == [
        {"utt_id": "a_b", "si_snr": "1.5", "pesq": ""},
        {"utt_id": "c_d", "si_snr": "", "pesq": "2.0"},
    ]
    assert read_rows(tmp_path / "tables" / "by_name_test_2.csv") == [{"name": "a_b", "si_snr": "1.5"}]
    bins = read_rows(tmp_path / "histograms.csv")
    assert [(row["bin_left"], row["bin_right"], row["count"]) for row in bins] == [
        ("0.0", "0.5", "2"),
        ("0.5", "1.0", "1"),
    ]


@pytest.mark.parametrize("torn", ["9,train,lo", "9", '9,train,note,"one\ntw'])
def test_resuming_appends_and_drops_only_a_torn_line(tmp_path, torn):
    first = make_writer(tmp_path)
    first.set_step(1)
    first.add_scalar("loss", 1.0)
    with open(tmp_path / "scalars.csv", "a") as stream:
        stream.write(torn)
    second = make_writer(tmp_path)
    second.set_step(2)
    second.add_scalar("loss", 2.0)
    assert [row["value"] for row in read_rows(tmp_path / "scalars.csv")] == ["1.0", "2.0"]


def test_killed_writer_leaves_every_line_it_wrote(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from src.logger import ConsoleWriter\n"
        "writer = ConsoleWriter(None, {}, 'p', save_dir=sys.argv[1])\n"
        "for step in range(50):\n"
        "    writer.set_step(step, f'{step}')\n"
        "    writer.add_scalar('loss', step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPO)
    assert process.returncode == -9
    assert [row["step"] for row in read_rows(tmp_path / "scalars.csv")] == [str(step) for step in range(50)]


def test_disabled_writes_nothing_and_unknown_mode_is_refused(tmp_path):
    writer = make_writer(tmp_path / "run", mode="disabled")
    writer.set_step(1)
    writer.add_scalar("loss", 1.0)
    writer.add_image("image", np.zeros((4, 4)))
    writer.add_audio("audio", np.zeros(10))
    writer.finish()
    assert not (tmp_path / "run").exists()
    with pytest.raises(WriterError, match=r"writer\.mode='ofline'.*offline"):
        make_writer(tmp_path, mode="ofline")


def test_every_writer_config_builds_its_writer(tmp_path):
    files = sorted((REPO / "src" / "configs" / "writer").glob("*.yaml"))
    assert [path.stem for path in files] == ["cometml", "console", "wandb"]
    for path in files:
        config = OmegaConf.create({"run_name": "first", "writer": OmegaConf.load(path)})
        config.writer.mode = "disabled"
        writer = instantiate(
            config.writer,
            logger=logging.getLogger("x"),
            project_config={"lr": 1e-3},
            save_dir=tmp_path / path.stem,
        )
        writer.set_step(1, "train")
        writer.add_scalar("loss", 1.0)
        writer.finish()
    config = OmegaConf.create({"run_name": "first", "writer": OmegaConf.load(files[1])})
    instantiate(config.writer, logger=None, project_config={"optimizer": {"lr": 1e-3}}, save_dir=tmp_path)
    record = json.loads((tmp_path / "writer_config.json").read_text())
    assert (record["run_name"], record["config"]) == ("first", {"optimizer": {"lr": 1e-3}})


def test_importing_the_package_loads_no_service_client():
    script = (
        "import sys, src.logger\n"
        "loaded = {'wandb', 'comet_ml', 'matplotlib'} & set(sys.modules)\n"
        "raise SystemExit(f'loaded: {loaded}' if loaded else 0)"
    )
    process = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
