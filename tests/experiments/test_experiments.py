"""The queue of an experiment and the tables drawn of its results, without any training."""

import csv
import importlib.util

import pytest
from omegaconf import OmegaConf

from src.utils.io_utils import ROOT_PATH


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", ROOT_PATH / f"experiments/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPERIMENT = {
    "about": "What is asked.",
    "common": ["model=small"],
    "seeds": [1, 2],
    "reference": "whole",
    "rows": {
        "whole": {"asks": "reference"},
        "bare": {"asks": "exchange?", "options": ["model.exchange=false"], "lips": ["given"]},
    },
}


def result(row, seed, lips, speaker, value, voices=2):
    return {"row": row, "seed": seed, "lips": lips, "speaker": speaker, "voices": voices,
            "si_snri_db": value, "steps": 10, "mixtures": 80, "device": "cpu"}  # fmt: skip


def test_jobs_are_rows_times_seeds_and_unknown_rows_are_refused():
    run = load("run")
    jobs = list(run.jobs(EXPERIMENT, [], [1, 2]))
    assert [(job.row, job.seed) for job in jobs] == [("whole", 1), ("bare", 1), ("whole", 2), ("bare", 2)]
    assert jobs[1].options == ["model=small", "model.exchange=false"] and jobs[1].uses == ["given"]
    with pytest.raises(SystemExit, match=r"no row bear; there are whole, bare"):
        list(run.jobs(EXPERIMENT, ["bear"], [1]))


def test_a_row_with_results_is_not_run_again_and_a_stopped_one_is_resumed(tmp_path, monkeypatch):
    run = load("run")
    calls = []

    def call(script, *options):
        calls.append((script, options))
        if script == "calc_metrics.py":
            out = (
                next(option for option in options if option.startswith("pred="))
                .removeprefix("pred=")
                .strip('"')
            )
            folder = tmp_path / out
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.csv").write_text("group,SI-SNRi\nann,1.0\nann,3.0\nben,\n")

    checkpoint = {"step": 7, "config": {"dataloader": {"batch_size": 4},
                  "trainer": {"accumulation": 2, "device": "cpu"}}}  # fmt: skip
    monkeypatch.setattr(run, "call", call)
    monkeypatch.setattr(run, "load_checkpoint", lambda path: checkpoint)
    job = run.Job("bare", 1, ["model=small"], ["given", "none"])
    saved = tmp_path / "saved"
    lines = run.run(job, tmp_path, tmp_path / "mouths.h5", saved)
    assert [(line["lips"], line["speaker"], line["voices"], line["si_snri_db"]) for line in lines] == [
        ("given", "ann", 2, "2.0000"), ("none", "ann", 2, "2.0000")
    ]  # fmt: skip
    assert lines[0]["mixtures"] == 56
    assert not any("resume_from" in option for option in calls[0][1])
    assert "pit=true" in calls[-1][1] and "pit=false" in calls[2][1]
    (saved / "bare.seed1").mkdir(parents=True, exist_ok=True)
    (saved / "bare.seed1/last.pt").touch()
    run.run(job, tmp_path, None, saved)
    assert any("trainer.resume_from=last.pt" in options for _, options in calls)

    run.append(tmp_path / "results.csv", lines)
    run.append(tmp_path / "results.csv", [result("whole", 2, "given", "ann", 1.0)])
    assert run.finished(tmp_path / "results.csv") == {("bare", 1), ("whole", 2)}


def test_differences_are_paired_by_speaker(tmp_path):
    draw = load("draw")
    with (tmp_path / "results.csv").open("w", newline="") as stream:
        lines = [
            result(row, seed, "given", speaker, level + bonus + 0.1 * seed)
            for row, bonus in (("whole", 0.5), ("bare", 0.0))
            for seed in (1, 2)
            for speaker, level in (("ann", 1.0), ("ben", 9.0), ("cleo", -4.0))
        ]
        writer = csv.DictWriter(stream, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    results = draw.read_results(tmp_path / "results.csv")
    assert results["whole", "given"].mean() == pytest.approx(2.0 + 0.5 + 0.15)
    # Speakers differ by 13 dB, but every one of them by the same half decibel from row to row.
    assert draw.difference(results["bare", "given"], results["whole", "given"]) == pytest.approx((-0.5,) * 3)
    text = draw.table(EXPERIMENT, results)
    assert "| bare | exchange? | given | 2 | 80 | +2.15 (+2.10, +2.20) | -0.50 [-0.50, -0.50] |" in text
    sweeps = {"sweeps": {"ours": ["bare", "whole"], "theirs": ["bare", "not_run"], "neither": ["not_run"]}}
    scores = draw.best_of_sweeps(sweeps, results)
    assert scores == pytest.approx({"ours": 2.65, "theirs": 2.15})
    draw.write_scores(tmp_path / "scores.csv", scores)
    assert (tmp_path / "scores.csv").read_text() == "model,si_snri\nours,2.65\ntheirs,2.15\n"
    draw.plot(EXPERIMENT, results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_difference_is_of_the_seeds_that_both_rows_have():
    draw = load("draw")
    voices = {"ann": 2, "ben": 2}
    whole = draw.Row({1: {"ann": 1.0, "ben": 5.0}, 2: {"ann": 9.0, "ben": 19.0}}, voices)
    bare = draw.Row({1: {"ann": 0.0, "ben": 4.0}}, voices)
    other = draw.Row({3: {"ann": 0.0, "ben": 4.0}}, voices)
    assert draw.difference(bare, whole) == pytest.approx((-1.0,) * 3)
    assert draw.difference(other, whole) is None
    results = {("whole", "given"): whole, ("bare", "given"): other}
    assert "| +2.00 (+2.00) |  |" in draw.table(EXPERIMENT, results)


def test_a_difference_is_that_of_the_scores_beside_it_and_names_another_reference():
    """A speaker of many voices weighs as much in one as in the other."""
    draw = load("draw")
    voices = {"ann": 9, "ben": 1}
    whole = draw.Row({1: {"ann": 1.0, "ben": 5.0}}, voices)
    bare = draw.Row({1: {"ann": 2.0, "ben": 0.0}}, voices)
    mean, low, high = draw.difference(bare, whole)
    assert mean == pytest.approx(bare.mean() - whole.mean()) == pytest.approx(0.4)
    assert low == pytest.approx(-5.0) and high == pytest.approx(1.0)
    experiment = {**EXPERIMENT, "rows": {"third": {"asks": "?", "lips": ["given"], "against": "bare"}}}
    table = draw.table(experiment, {("bare", "given"): bare, ("third", "given"): whole})
    assert "-0.40 [-1.00, +5.00] to `bare` |" in table


@pytest.mark.parametrize(
    "path", sorted((ROOT_PATH / "experiments").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_row_composes(path):
    from tests.src.test_configs import compose

    experiment = OmegaConf.to_container(OmegaConf.load(path))
    assert experiment["reference"] in experiment["rows"]
    assert {row for rows in experiment.get("sweeps", {}).values() for row in rows} <= set(experiment["rows"])
    for row in experiment["rows"].values():
        assert row["asks"]
        compose("train", *experiment["common"], *row.get("options", []))
