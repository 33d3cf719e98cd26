"""What a data directory holds: ids that hold underscores, older names, absent truths, and clear errors."""

import os
import time

import pytest

from pipeline.layout import LayoutError, find_mouths, index_mixes, list_mouths, split_name


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("stem", "known", "expected"),
    [
        ("00000002026_00315409549", {"00000002026"}, ("00000002026", "00315409549")),
        ("a_b", set(), ("a", "b")),
        ("a_b_c", set(), ("a_b", "c")),
        ("a_b_c", {"a", "b_c"}, ("a", "b_c")),
        ("a_b_c", {"a_b"}, ("a_b", "c")),
        ("a_b_c", {"c"}, ("a_b", "c")),
        ("x_1_x_2", {"x_1", "x_2"}, ("x_1", "x_2")),
        ("a_b", {"elsewhere"}, ("a", "b")),
        ("a_b_c", {"elsewhere"}, ("a_b", "c")),
        ("_a_b", {"_a", "b"}, ("_a", "b")),
    ],
)
def test_a_name_is_split_where_both_ids_are_known(stem, known, expected):
    assert split_name(stem, known) == expected


def test_the_last_of_several_splits_wins_with_a_warning_that_names_the_file():
    with pytest.warns(UserWarning, match="a_b_c"):
        assert split_name("a_b_c", {"a", "b_c", "a_b", "c"}) == ("a_b", "c")


def test_an_ambiguous_name_is_refused_and_its_splits_are_named():
    with pytest.raises(LayoutError, match=r"a_b_c: the name is ambiguous.*a \+ b_c.*a_b \+ c"):
        split_name("a_b_c", {"a", "a_b"})


@pytest.mark.parametrize("stem", ["abc", "_abc", "abc_", "_"])
def test_a_name_without_two_ids_is_refused(stem):
    with pytest.raises(LayoutError, match="no underscore between two ids"):
        split_name(stem, set())


def test_mouths_are_found_under_either_name_or_in_the_directory_itself(tmp_path):
    assert find_mouths(tmp_path / "absent") is None
    assert list_mouths(tmp_path) == {}
    touch(tmp_path / "flat" / "7.npz")
    assert find_mouths(tmp_path / "flat") == tmp_path / "flat"
    touch(tmp_path / "old" / "video" / "7.npz")
    assert find_mouths(tmp_path / "old") == tmp_path / "old" / "video"
    (tmp_path / "old" / "mouths").mkdir()
    assert find_mouths(tmp_path / "old") == tmp_path / "old" / "video", (
        "an empty mouths/ must not hide video/"
    )
    touch(tmp_path / "old" / "mouths" / "8.npz")
    assert list(list_mouths(tmp_path / "old")) == ["8"]


def test_ids_are_strings_sorted_and_hidden_files_are_none(tmp_path):
    for name in ("010.npz", "0010.npz", "9.npz", "._9.npz", "note.txt"):
        touch(tmp_path / "mouths" / name)
    (tmp_path / "mouths" / "dir.npz").mkdir()
    assert list(list_mouths(tmp_path)) == ["0010", "010", "9", "dir"]


def test_a_mixture_meets_its_truths_and_mouths(tmp_path):
    touch(tmp_path / "audio" / "mix" / "1_2.wav")
    touch(tmp_path / "audio" / "mix" / "3_1.flac")
    touch(tmp_path / "audio" / "s1" / "1_2.MP3")
    touch(tmp_path / "mouths" / "1.npz")
    mixes, problems = index_mixes(tmp_path)
    assert problems == []
    assert [mix.name for mix in mixes] == ["1_2", "3_1"]
    first, second = mixes
    assert (first.id1, first.id2) == ("1", "2")
    assert first.s1 == tmp_path / "audio" / "s1" / "1_2.MP3" and first.s2 is None
    assert first.mouth1 == tmp_path / "mouths" / "1.npz" and first.mouth2 is None
    assert second.mix.suffix == ".flac" and second.mouth2 == first.mouth1 and second.mouth1 is None


def test_an_extension_is_cut_off_whole(tmp_path):
    # str.rstrip(".wav") would eat the letters of this id.
    touch(tmp_path / "audio" / "mix" / "1_viva.wav")
    assert index_mixes(tmp_path)[0][0].id2 == "viva"


def test_unusable_files_are_problems_and_the_rest_goes_on(tmp_path):
    for name in ("1_2.wav", "1_2.flac", "nothing.wav", "3_4.ogg", "readme.txt", ".DS_Store"):
        touch(tmp_path / "audio" / "mix" / name)
    mixes, problems = index_mixes(tmp_path)
    assert [mix.name for mix in mixes] == ["1_2"]
    assert sorted(path.name for path, _ in problems) == ["1_2.wav", "3_4.ogg", "nothing.wav"]
    assert "same name as 1_2.flac" in {path.name: reason for path, reason in problems}["1_2.wav"]


def test_parts_of_the_course_data_share_the_mouths(tmp_path):
    touch(tmp_path / "audio" / "train" / "mix" / "1_2.wav")
    touch(tmp_path / "mouths" / "2.npz")
    (mix,), _ = index_mixes(tmp_path, "train")
    assert mix.mouth2 == tmp_path / "mouths" / "2.npz"
    with pytest.raises(LayoutError, match="its parts are train"):
        index_mixes(tmp_path)
    with pytest.raises(LayoutError, match=r"val.mix: no such folder"):
        index_mixes(tmp_path, "val")


def test_an_absent_folder_of_mixtures_says_what_was_found(tmp_path):
    with pytest.raises(LayoutError, match="no such directory"):
        index_mixes(tmp_path / "absent")
    touch(tmp_path / "audio" / "mix" / "1_2.wav")
    with pytest.raises(LayoutError, match=f"mix lies directly in it: give {tmp_path}"):
        index_mixes(tmp_path / "audio")
    with pytest.raises(LayoutError, match="holds audio; it has audio/mix and no parts"):
        index_mixes(tmp_path, "test")
    touch(tmp_path / "audio" / "val" / "mix" / "1_2.wav")
    with pytest.raises(LayoutError, match=f"it is the part val of {tmp_path}: give that directory"):
        index_mixes(tmp_path / "audio" / "val")


def test_indexing_is_quick_and_writes_nothing(tmp_path):
    count = 3000
    for index in range(count):
        for voice in ("mix", "s1", "s2"):
            folder = tmp_path / "audio" / voice
            if index == 0:
                folder.mkdir(parents=True)
            os.close(os.open(folder / f"{index:011d}_{index + 1:011d}.wav", os.O_CREAT))
    before = sorted(os.listdir(tmp_path))
    durations = []
    for _ in range(3):  # the quickest counts: other processes may be at work
        began = time.perf_counter()
        mixes, _ = index_mixes(tmp_path)
        durations.append(time.perf_counter() - began)
    seconds = min(durations)
    assert len(mixes) == count
    assert seconds * 28_000 / count < 10, f"{seconds:.2f} s for {count} mixes"
    assert sorted(os.listdir(tmp_path)) == before
