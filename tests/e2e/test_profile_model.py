"""profile_model.py as its users run it: table, JSON, picture, exit codes, nothing left behind."""

import json
import subprocess
import sys

import pytest

from src.model import BandSeparator
from src.trainer.checkpoint import save_checkpoint
from src.utils.io_utils import ROOT_PATH

SMALL = {"num_bands": 8, "channels": 8, "squeezed": 2, "cue_channels": 8}


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT_PATH / "profile_model.py"), "device=cpu", "threads=1", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def working_directory(tmp_path):
    """An empty folder beside a trained separator."""
    config = {"_target_": "src.model.BandSeparator", "visual_dim": 1024, **SMALL}
    front_end = {"network": "lrw_snv05x_tcn1x", "features": "frontend", "dim": 1024}
    state = BandSeparator(visual_dim=1024, **SMALL).state_dict()
    content = {"state_dict": state, "config": {"model": config}, "front_end": front_end}
    save_checkpoint(tmp_path / "trained/best.pt", content)
    (tmp_path / "cwd").mkdir()
    return tmp_path / "cwd"


def test_a_configuration_and_a_checkpoint_as_one_table(working_directory):
    (working_directory.parent / "scores.csv").write_text("model,si_snri\naudio_only,8.5\nother,20\n")
    overrides = ",".join(f'"model.{key}={value}"' for key, value in SMALL.items())
    result = run(
        "models=[audio_only]",
        "checkpoints=[../trained/best.pt]",
        f"overrides=[{overrides}]",
        "scores=../scores.csv",
        "out=../out",
        "seconds=0.5",
        "repeats=2",
        "warmup=0",
        "memory=false",
        "length_sweep=[1]",
        "batch_sweep=[2]",
        cwd=working_directory,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress bar where no one watches
    out = working_directory.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["pareto.png", "profile.json", "profile.md"]
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert list(working_directory.iterdir()) == []
    assert (out / "profile.md").read_text() in result.stdout
    assert "no score of ../trained/best.pt" in result.stdout

    rows = [line.split("|") for line in result.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row[1:4]] for row in rows if row[3].strip() == "cpu"]
    assert cells == [
        ["audio_only", "separator", "cpu"],
        ["../trained/best.pt", "separator", "cpu"],
        ["../trained/best.pt", "lip reader (lrw_snv05x_tcn1x)", "cpu"],
        ["../trained/best.pt", "both", "cpu"],
    ]
    content = json.loads((out / "profile.json").read_text())
    assert content["hardware"]["threads"] == 1 and content["settings"]["repeats"] == 2
    trained = content["profiles"][1]
    total = {part: size["macs"]["total"] for part, size in trained["sizes"].items()}
    assert total["both"] == total["separator"] + total["lip reader"]
    assert total["lip reader"] == pytest.approx(2 * 0.5 * 0.42e9, rel=0.05)  # 0.42 GMACs a second of video
    assert trained["sizes"]["lip reader"]["trainable"] == 0
    medians = {
        (part, kind): step["time"]["median_s"]
        for part, kinds in trained["costs"]["cpu"].items()
        for kind, step in kinds.items()
    }
    assert len(medians) == 5 and min(medians.values()) > 0
    ratio = medians["both", "training"] / medians["separator", "training"]
    assert f"with the lip reader in the loop: {ratio:.2f} times" in result.stdout
    sizes = [(point["seconds"], point["batch_size"]) for point in content["sweep"]]
    assert sizes == [(1, 1), (1, 1), (0.5, 2), (0.5, 2)]


def test_a_wrong_command_is_one_line_and_exit_code_2(working_directory):
    result = run("models=[nothing]", cwd=working_directory)
    assert result.returncode == 2
    assert "profile_model.py: models: nothing unknown; known are: audio_only, base" in result.stderr
    assert "Traceback" not in result.stderr
