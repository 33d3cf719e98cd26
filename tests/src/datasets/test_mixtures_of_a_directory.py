"""AVSSDataset and CustomDirDataset: what is on the disk arrives, aligned; what is absent is told, not made up."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.audio_io import AudioError
from src.datasets.avss import AVSSDataset
from src.datasets.custom_dir import CustomDirDataset


class CountingFrontEnd:
    """Stands in for the lip-reading network; notes which files it was given."""

    identity = {"dim": 3}  # noqa: RUF012

    def __init__(self, num_frames: int = 13) -> None:
        self.asked: list[str] = []
        self.num_frames = num_frames

    def embed_file(self, path):
        self.asked.append(Path(path).stem)
        return np.full((self.num_frames, 3), float(Path(path).stem.lstrip("0") or 0), np.float16)


def tree(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*")}


def test_item_of_the_course_layout(directory):
    voices = directory.mixture("00000000042_00000000007", "train")
    directory.mouths("00000000042", "00000000007")
    directory.lips(**{"00000000042": 13, "00000000007": 13})
    before = tree(directory.root)
    dataset = AVSSDataset(directory.root, "train", cache=directory.cache)
    item = dataset[0]
    assert item["utt_id"] == "00000000042_00000000007"
    assert item["ids"] == ("00000000042", "00000000007")  # strings, zeros kept
    np.testing.assert_array_equal(item["sources"].numpy(), voices)
    torch.testing.assert_close(item["mix"], item["sources"].sum(0))
    assert item["visual"].dtype == torch.float32
    assert item["visual"].shape == (2, 13, 4)  # 8000 samples are 12.5 frames
    assert item["visual"][:, :, 0].tolist() == [list(range(13))] * 2
    assert item["visual"][:, 0, 1].tolist() == [0, 1]  # each speaker's own clip, in the order of the name
    assert item["visual_mask"].tolist() == [True, True]
    assert item["sources_mask"].tolist() == [True, True]
    assert tree(directory.root) == before  # nothing is written into the user's data


def test_ids_with_underscores_are_split_where_both_are_known(directory):
    directory.mixture("a_b_c_d")
    directory.mouths("a_b", "c_d")
    assert CustomDirDataset(directory.root)[0]["ids"] == ("a_b", "c_d")


@pytest.mark.parametrize(
    ("extension", "rate", "tolerance"), [("flac", 16000, 1e-4), ("mp3", 44100, 0.1), ("wav", 8000, 0.02)]
)
def test_any_format_and_rate(directory, extension, rate, tolerance):
    time_s = np.arange(rate) / rate
    directory.audio("mix", f"1_2.{extension}", 0.3 * np.sin(2 * np.pi * 300 * time_s), rate)
    mix = CustomDirDataset(directory.root)[0]["mix"].numpy()
    expected = 0.3 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)
    np.testing.assert_allclose(mix[800:15000], expected[800:15000], atol=tolerance)


def test_without_truth_there_are_no_sources(directory):
    directory.audio("mix", "1_2.wav", np.zeros(640))
    item = CustomDirDataset(directory.root)[0]
    assert "sources" not in item
    assert item["sources_mask"].tolist() == [False, False]


def test_one_truth_of_two(directory):
    voices = directory.mixture("1_2")
    (directory.root / "audio/s1/1_2.wav").unlink()
    item = CustomDirDataset(directory.root)[0]
    assert item["sources_mask"].tolist() == [False, True]
    assert item["sources"][0].abs().max() == 0
    np.testing.assert_array_equal(item["sources"][1].numpy(), voices[1])


@pytest.mark.parametrize("present", [(), ("1",), ("2",), ("1", "2")])
@pytest.mark.parametrize("on_the_fly", [False, True])
def test_absent_mouths_are_masked(directory, present, on_the_fly):
    directory.mixture("1_2")
    directory.mouths(*present)
    directory.lips(**{"1": 13, "2": 13})  # the cache knows both: the directory decides who has lips
    if on_the_fly:
        dataset = CustomDirDataset(directory.root, front_end=CountingFrontEnd())
    else:
        dataset = CustomDirDataset(directory.root, cache=directory.cache)
    item = dataset[0]
    assert item["visual_mask"].tolist() == ["1" in present, "2" in present]
    assert item["visual"].shape[1] == 13
    assert (item["visual"].abs().sum((1, 2)) > 0).tolist() == item["visual_mask"].tolist()


def test_a_cache_stands_in_for_a_directory_without_any_mouths(directory):
    directory.mixture("1_2")
    directory.lips(**{"1": 13})
    item = CustomDirDataset(directory.root, cache=directory.cache)[0]
    assert item["visual_mask"].tolist() == [True, False]


def test_ids_of_the_cache_part_names_where_there_are_no_mouths(directory):
    directory.mixture("a_1_b_2", "train")
    directory.lips(a_1=13, b_2=13)
    dataset = AVSSDataset(directory.root, "train", cache=directory.cache)
    assert dataset[0]["visual_mask"].tolist() == [True, True]
    (directory.root / "mouths").mkdir()
    assert AVSSDataset(directory.root, "train", cache=directory.cache).index[0]["id1"] == "a_1_b"


def test_a_mixture_of_two_without_mouths_is_used_beside_others_that_have_them(directory):
    directory.mixture("a_1_b_2")
    directory.mouths("elsewhere")
    dataset = CustomDirDataset(directory.root)
    assert not dataset.problems
    assert dataset[0]["visual_mask"].tolist() == [False, False]


def test_audio_only_use_has_no_visual(directory):
    directory.mixture("1_2")
    directory.mouths("1", "2")
    item = CustomDirDataset(directory.root)[0]
    assert "visual" not in item
    assert item["visual_mask"].tolist() == [False, False]


def test_front_end_runs_once_per_speaker(directory):
    directory.mixture("1_2")
    directory.mixture("1_3")
    directory.mouths("1", "2", "3")
    front_end = CountingFrontEnd()
    dataset = CustomDirDataset(directory.root, front_end=front_end)
    items = [dataset[n] for n in (0, 1, 0)]
    assert front_end.asked == ["1", "2", "3"]
    assert items[1]["visual"][:, 0, 0].tolist() == [1, 3]


def test_cache_and_front_end_exclude_each_other(directory):
    directory.mixture("1_2")
    directory.lips(**{"1": 13})
    with pytest.raises(ValueError, match="one of the two"):
        CustomDirDataset(directory.root, cache=directory.cache, front_end=CountingFrontEnd())


@pytest.mark.parametrize(
    ("num_frames", "warned"), [(50, False), (48, False), (53, False), (44, True), (60, True)]
)
def test_video_is_aligned_from_the_start(directory, num_frames, warned):
    """32,000 samples are 50 frames; up to 5 frames (0.2 s) off is silent."""
    directory.mixture("1_2", num_samples=32000)
    directory.mouths("1", "2")
    directory.lips(**{"1": num_frames, "2": 50})
    dataset = CustomDirDataset(directory.root, cache=directory.cache)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        item = dataset[0]
    shown = [min(frame, num_frames - 1) for frame in range(50)]  # cut, or the last frame held
    assert item["visual"][0, :, 0].tolist() == shown
    assert item["visual_mask"].tolist() == [True, True]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == warned
    if warned:
        word = "shorter" if num_frames < 50 else "longer"
        assert "mouths/1.npz" in messages[0] and word in messages[0] and "1_2.wav" in messages[0]


@pytest.mark.parametrize("num_samples", [7000, 8001, 9000])
def test_truth_is_aligned_from_the_start(directory, num_samples):
    directory.audio("mix", "1_2.wav", np.zeros(8000))
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, num_samples).astype(np.float32)
    directory.audio("s2", "1_2.wav", wave)
    dataset = CustomDirDataset(directory.root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        item = dataset[0]
    expected = np.zeros(8000, np.float32)
    expected[: min(8000, num_samples)] = wave[:8000]
    np.testing.assert_array_equal(item["sources"][1].numpy(), expected)
    assert [("s2/1_2.wav" in str(w.message) and str(num_samples) in str(w.message)) for w in caught] == (
        [True] if abs(num_samples - 8000) > 1 else []
    )


def test_stereo_truth_is_averaged_with_a_warning(directory):
    directory.audio("mix", "1_2.wav", np.zeros(640))
    directory.audio("s1", "1_2.flac", np.stack([np.full(640, 0.5), np.full(640, 0.25)], 1))
    with pytest.warns(UserWarning, match=r"s1/1_2\.flac: 2 channels"):
        item = CustomDirDataset(directory.root)[0]
    torch.testing.assert_close(item["sources"][0], torch.full((640,), 0.375))


def test_training_refuses_what_it_cannot_use_and_lists_the_first(directory):
    for number in range(8):
        directory.audio("train/mix", f"{number}_x.wav", np.zeros(640))
    directory.audio("train/mix", "nounderscore.wav", np.zeros(640))
    with pytest.raises(ValueError, match="17 files") as caught:
        AVSSDataset(directory.root, "train")
    message = str(caught.value)
    assert "nounderscore.wav" in message and "0_x.wav" in message and "12 more" in message
    assert "set datasets.strict=false" in message
    dataset = AVSSDataset(directory.root, "train", strict=False)
    assert len(dataset) == 8
    assert [Path(path).name for path, _ in dataset.problems] == ["nounderscore.wav"]


def test_inference_goes_on_past_bad_files(directory):
    directory.mixture("1_2")
    directory.audio("mix", "nounderscore.wav", np.zeros(640))
    (directory.root / "audio/mix/3_4.wav").write_text("no audio")
    dataset = CustomDirDataset(directory.root)
    assert [Path(path).name for path, _ in dataset.problems] == ["nounderscore.wav"]
    assert [record["utt_id"] for record in dataset.index] == ["1_2", "3_4"]
    assert dataset[0]["utt_id"] == "1_2"
    with pytest.raises(AudioError, match=r"3_4\.wav"):
        dataset[1]


@pytest.mark.parametrize("missing", ["error", "mask"])
def test_mouths_that_the_cache_lacks(directory, missing, caplog):
    directory.mixture("1_2", "train")
    directory.mouths("1", "2", "4")
    directory.mixture("1_4", "train")
    directory.lips(**{"1": 13, "4": 13})
    (directory.root / "mouths/4.npz").write_bytes(b"others than were embedded")
    if missing == "error":
        with pytest.raises(ValueError, match=r"mouths/2\.npz") as caught:
            AVSSDataset(directory.root, "train", cache=directory.cache)
        assert f"precompute_visual.py --root {directory.root} --out {directory.cache}" in str(caught.value)
        assert "mouths/4.npz" in str(caught.value) and "set datasets.missing_lips=mask" in str(caught.value)
    else:
        dataset = AVSSDataset(directory.root, "train", cache=directory.cache, missing_lips="mask")
        assert "mouths/2.npz" in caplog.text
        assert dataset[0]["visual_mask"].tolist() == dataset[1]["visual_mask"].tolist() == [True, False]


def test_an_empty_directory_is_told(directory):
    (directory.root / "audio/mix").mkdir(parents=True)
    with pytest.raises(ValueError, match="no mixtures"):
        CustomDirDataset(directory.root)


def test_limit_and_shuffle_index_are_reproducible_and_leave_the_global_generators(directory):
    import random

    for number in range(12):
        directory.audio("mix", f"{number}_x.wav", np.zeros(640))
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()

    def names(**options):
        return [record["utt_id"] for record in CustomDirDataset(directory.root, **options).index]

    first = names(limit=5, shuffle_index=True, seed=3)
    assert first == names(limit=5, shuffle_index=True, seed=3)
    assert first != names(limit=5, shuffle_index=True, seed=4)
    assert len(set(first)) == 5
    assert names(limit=5) == sorted(names())[:5]
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()
    with pytest.raises(ValueError, match="limit=0"):
        names(limit=0)


def test_the_callers_index_is_not_touched():
    from src.datasets.base_dataset import BaseDataset

    class Plain(BaseDataset):
        def load_instance(self, ind):
            return self.index[ind]

    index = [{"n": n} for n in range(20)]
    dataset = Plain(index, limit=4, shuffle_index=True)
    assert index == [{"n": n} for n in range(20)]
    assert len(dataset) == 4


def test_transforms_act_in_order_and_unknown_keys_are_refused(directory):
    directory.mixture("1_2")

    def double(item):
        return {**item, "mix": item["mix"] * 2}

    plain = CustomDirDataset(directory.root)[0]["mix"]
    dataset = CustomDirDataset(
        directory.root, item_transforms=[double], instance_transforms={"mix": lambda mix: mix + 1}
    )
    torch.testing.assert_close(dataset[0]["mix"], plain * 2 + 1)
    dataset = CustomDirDataset(directory.root, instance_transforms={"spectrogram": abs})
    with pytest.raises(ValueError, match=r"instance_transforms\.spectrogram"):
        dataset[0]


def test_transforms_draw_the_same_for_the_same_item_and_epoch(directory):
    for number in range(3):
        directory.mixture(f"{number}_x", num_samples=640)

    def draw(item):
        return {**item, "drawn": float(torch.rand(()))}

    def drawn(seed, epoch, order):
        dataset = CustomDirDataset(directory.root, item_transforms=[draw], seed=seed)
        dataset.set_epoch(epoch)
        return {number: dataset[number]["drawn"] for number in order}

    base = drawn(0, 0, (0, 1, 2))
    assert drawn(0, 0, (2, 0, 1)) == base  # whatever came before
    others = [drawn(0, 1, (0, 1, 2)), drawn(1, 0, (0, 1, 2))]
    assert len({value for values in (base, *others) for value in values.values()}) == 9
    state = torch.get_rng_state()
    drawn(0, 0, (0,))
    assert torch.equal(torch.get_rng_state(), state)


def test_thousands_of_mixes_are_indexed_quickly(directory):
    """2,800 mixes; 28,000 are the size of the course's data and scale with the number of files."""
    import time

    ids = [f"{number:011d}" for number in range(2000)]
    directory.mouths(*ids)
    for place in ("mix", "s1", "s2"):
        folder = directory.root / "audio/train" / place
        folder.mkdir(parents=True)
        for number in range(2800):
            (folder / f"{ids[number % 2000]}_{ids[(number * 7 + 1 + number // 2000) % 2000]}.wav").touch()
    start = time.process_time()
    dataset = AVSSDataset(directory.root, "train")
    assert time.process_time() - start < 1.0
    assert len(dataset) == 2800
