"""Bootstrap intervals, groups and pairing behind calc_metrics.py."""

import numpy as np
import pytest

from src.metrics.bootstrap import bootstrap_interval
from src.metrics.grouping import Grouping, GroupingError, read_speakers


def test_interval_is_deterministic_and_does_not_depend_on_the_order():
    values = np.random.default_rng(1).normal(5, 2, 40)
    groups = [f"g{index // 2}" for index in range(40)]
    first = bootstrap_interval(values, groups)
    assert first == bootstrap_interval(values, groups)
    order = np.random.default_rng(2).permutation(40)
    assert bootstrap_interval(values[order], [groups[i] for i in order]) == pytest.approx(first)
    assert bootstrap_interval(values, groups, seed=1) != first


def test_interval_of_independent_values_is_that_of_the_normal_approximation():
    values = np.random.default_rng(3).normal(0, 1, 400)
    low, high = bootstrap_interval(values, [str(i) for i in range(400)], num_resamples=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.012),
        pytest.approx(values.mean() + half, abs=0.012),
    )


def test_interval_is_wider_when_values_of_a_group_are_alike():
    centres = np.random.default_rng(4).normal(0, 1, 20)
    values = np.repeat(centres, 20)
    low, high = bootstrap_interval(values, [str(i) for i in range(400)])
    wide_low, wide_high = bootstrap_interval(values, [str(i // 20) for i in range(400)])
    assert (wide_high - wide_low) > 3 * (high - low)


def test_groups_of_unequal_size_bring_all_their_values():
    # Draws of {a, b}: aa -> 0, ab -> 3/4, bb -> 1. A mean of group means would give 1/2 for ab.
    values, groups = np.array([0.0, 1.0, 1.0, 1.0]), ["a", "b", "b", "b"]
    medians = bootstrap_interval(values, groups, level=0.0)
    assert medians[0] == pytest.approx(0.75)


def test_values_that_are_absent_are_left_out_and_one_group_has_no_interval():
    values = np.array([1.0, np.nan, 2.0, 3.0])
    assert bootstrap_interval(values, list("abcd")) == bootstrap_interval(values[[0, 2, 3]], list("acd"))
    assert np.isnan(bootstrap_interval(values, ["a"] * 4)).all()


def split(name, known_ids):
    if "_" not in name:
        raise ValueError(f"{name}: no underscore")
    return tuple(name.rsplit("_", 1))


def test_labels_by_file_clip_and_speaker_keep_ids_as_strings():
    assert Grouping().label("007_0042", "s2") == "007_0042"
    assert Grouping("clip", split).label("007_0042", "s2") == "0042"
    speakers = {"007": "anna", "0042": "ben"}
    assert Grouping("speaker", split, speakers).label("007_0042", "s1") == "anna"
    with pytest.raises(GroupingError, match="id 42 is not"):
        Grouping("speaker", split, speakers).label("007_42", "s2")
    with pytest.raises(GroupingError, match="no underscore"):
        Grouping("clip", split).label("007", "s1")


def test_unusable_groupings_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(GroupingError, match="groups=FILE"):
        Grouping("speaker", split)
    with pytest.raises(GroupingError, match="file, clip, speaker"):
        Grouping("voice", split)
    table = tmp_path / "utterances.csv"
    with pytest.raises(GroupingError, match="no such file"):
        read_speakers(table)
    table.write_text("clip,speaker\n1,a\n")
    with pytest.raises(GroupingError, match="columns id and speaker, it has clip, speaker"):
        read_speakers(table)
    table.write_text("id,speaker\n1,a\n1,b\n")
    with pytest.raises(GroupingError, match="two speakers"):
        read_speakers(table)


def test_speaker_table_keeps_leading_zeros(tmp_path):
    table = tmp_path / "utterances.csv"
    table.write_text("﻿id,speaker,split\n0007,a,test\n7,b,test\n", encoding="utf-8")
    assert read_speakers(table) == {"0007": "a", "7": "b"}
