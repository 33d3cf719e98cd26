"""The evaluation reads the order of the voices and the intervals as calc_metrics.py writes them."""

import pytest

from experiments.evaluate import USES, alike, cell, improvement, order_kept
from src.datasets.mixture import mixture_index


def test_order_kept_counts_mixtures(tmp_path):
    lines = ["name,voice,estimate,SI-SNRi"]
    for name, exchanged in (("a", False), ("b", True), ("c", False), ("d", False)):
        for voice, other in (("s1", "s2"), ("s2", "s1")):
            lines.append(f"{name},{voice},{other if exchanged else voice},1.0")
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert order_kept(tmp_path / "metrics.csv") == 0.75
    assert order_kept(tmp_path / "metrics.csv", {"a", "b"}) == 0.5
    assert order_kept(tmp_path / "metrics.csv", {"none of them"}) is None


@pytest.mark.parametrize(
    ("statistic", "metric", "expected"),
    [
        ({"mean": 1.234, "interval_95": [1.0, 1.5]}, "SI-SNRi", "1.23 [1.00, 1.50]"),
        ({"mean": 0.8765, "interval_95": [None, None]}, "STOI", "0.876"),
        ({"mean": None, "interval_95": [None, None]}, "PESQ", ""),
        (None, "PESQ", ""),
    ],
)
def test_cells(statistic, metric, expected):
    assert cell(statistic, metric) == expected


def test_improvement_counts_the_mixtures_asked_for(tmp_path):
    lines = [
        "name,voice,group,SI-SNRi",
        "a,s1,ann,1.0",
        "a,s2,bob,3.0",
        "b,s1,ann,50.0",
        "b,s2,bob,",
        "c,s1,bob,2.0",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    statistic = improvement(tmp_path / "metrics.csv", {"a", "c"})
    assert statistic["mean"] == 2.0
    low, high = statistic["interval_95"]
    assert 1.0 <= low < 2.0 < high <= 2.5
    assert improvement(tmp_path / "metrics.csv", {"d"})["mean"] is None


def test_training_pairs_are_those_of_corpora_with_faces_in_the_test(tmp_path):
    corpora = {"t1": "tv", "t2": "tv", "t3": "books", "a": "tv", "b": "tv", "c": "grid", "d": "books"}
    (tmp_path / "utterances.csv").write_text(
        "\n".join(["id,corpus", *(f"{name},{corpus}" for name, corpus in corpora.items())])
    )
    (tmp_path / "mouths").mkdir()
    for name in ["t1", "t2", "a", "b", "c"]:
        (tmp_path / "mouths" / f"{name}.npz").touch()
    for part, mixes in (("test", ["t1_t2", "t2_t3"]), ("train", ["a_b", "a_c", "b_d"])):
        folder = tmp_path / "audio" / part / "mix"
        folder.mkdir(parents=True)
        for mix in mixes:
            (folder / f"{mix}.wav").touch()
    assert alike(mixture_index(tmp_path, "train")[0], tmp_path) == {"a_b"}
    assert alike(mixture_index(tmp_path, "test")[0], tmp_path) == {"t1_t2"}


def test_every_use_of_lips_is_named_once():
    names = [name for name, *_ in USES]
    assert len(names) == len(set(names)) and names[0] == "lips as given"
