"""DynamicMixingDataset: who is mixed with whom, how loud, and lips in step with the voice."""

import numpy as np
import pytest
import torch

from src.datasets.dynamic_mixing import DynamicMixingDataset, mix_pair

FRAME = 640


def mixing(directory, **options) -> DynamicMixingDataset:
    return DynamicMixingDataset(directory.root, **{"cache": directory.cache, "num_samples": 200, **options})


def drawn(directory, **options) -> list[dict]:
    dataset = mixing(directory, **options)
    return [dataset[number] for number in range(len(dataset))]


def level_difference_db(item) -> float:
    power = item["sources"].square().mean(1)
    return float(10 * torch.log10(power[0] / power[1]))


@pytest.mark.parametrize("preload", [False, True])
def test_lips_and_voice_are_cropped_in_step(voices_directory, preload):
    """Amplitude k + 1 and lip value k mark video frame k of every voice."""
    dataset = mixing(voices_directory, preload=preload, segment_s=1.5)
    starts = set()
    for number in range(40):
        item = dataset[number]
        assert item["sources"].shape == (2, 24000)
        assert item["visual"].shape == (2, 38, 4)  # 37.5 frames
        for row in torch.nonzero(item["visual_mask"]).flatten().tolist():
            frames = item["visual"][row, :, 0]
            starts.add(int(frames[0]))
            amplitude = item["sources"][row][::FRAME]
            marked = amplitude / amplitude[0] * (frames[0] + 1) - 1
            torch.testing.assert_close(marked, frames, atol=0.3 if preload else 0.01, rtol=0)  # 16 bits
            edges = torch.nonzero(item["sources"][row].diff().abs() > 1e-7).flatten() + 1
            assert (edges % FRAME == 0).all()
    assert len(starts) > 20 and min(starts) < 8 and max(starts) > 54 and max(starts) <= 62


@pytest.mark.parametrize("preload", [False, True])
def test_lips_belong_to_the_voice_beside_them(voices_directory, preload):
    dataset = mixing(voices_directory, preload=preload)
    for number in range(30):
        item = dataset[number]
        for row in torch.nonzero(item["visual_mask"]).flatten().tolist():
            assert item["visual"][row, 0, 1] == int(item["ids"][row]) - 1
        assert item["visual_mask"].tolist() == [name not in ("07", "08") for name in item["ids"]]
        assert item["utt_id"] == "_".join(item["ids"])


def test_the_mixture_is_the_sum_with_a_peak_of_09(voices_directory):
    dataset = mixing(voices_directory)
    for number in range(50):
        item = dataset[number]
        assert torch.equal(item["mix"], item["sources"].sum(0))
        peak = max(item["mix"].abs().max(), item["sources"].abs().max())
        assert peak == pytest.approx(0.9, abs=1e-5)
        assert item["sources_mask"].tolist() == [True, True]


def test_level_differences_fill_their_range_on_both_sides(voices_directory):
    levels = np.array([level_difference_db(item) for item in drawn(voices_directory)])
    assert np.abs(levels).max() <= 10.001
    assert 0.4 < (levels > 0).mean() < 0.6
    counts = np.histogram(np.abs(levels), bins=5, range=(0, 10))[0]
    assert counts.min() > 22  # 40 expected in each

    narrow = mixing(voices_directory, level_db=[3, 4])
    levels = [abs(level_difference_db(narrow[number])) for number in range(40)]
    assert min(levels) >= 2.999 and max(levels) <= 4.001


def test_level_does_not_tell_the_order_or_the_lips(voices_directory):
    items = drawn(voices_directory, audio_only_share=1.0)
    first_has_lips = np.array([bool(item["visual_mask"][0]) for item in items])
    first_is_louder = np.array([level_difference_db(item) > 0 for item in items])
    assert 0.4 < first_has_lips.mean() < 0.6
    assert 0.35 < first_is_louder[first_has_lips].mean() < 0.65


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_voices_without_lips(voices_directory, share):
    items = drawn(voices_directory, audio_only_share=share, segment_s=0.2)
    masks = torch.stack([item["visual_mask"] for item in items])
    assert masks.any(1).all()  # never two voices without lips
    measured = (~masks.all(1)).float().mean()
    assert measured == share if share in (0.0, 1.0) else abs(measured - share) < 0.1


def test_without_a_cache_all_voices_meet(voices_directory):
    items = drawn(voices_directory, cache=None, segment_s=0.2)
    assert all("visual" not in item and not item["visual_mask"].any() for item in items)
    assert any(set(item["ids"]) == {"07", "08"} for item in items)
    assert {name for item in items for name in item["ids"]} == {f"0{n}" for n in range(1, 9)}


def test_ids_always_differ(voices_directory):
    assert all(len(set(item["ids"])) == 2 for item in drawn(voices_directory, segment_s=0.2))


def test_speakers_differ_when_a_table_is_given(voices_directory):
    speaker = {f"0{n}": "ann" if n <= 4 else "bob" for n in range(1, 9)}
    table = voices_directory.folder / "utterances.csv"
    rows = "".join(f"{name},{who},train\n" for name, who in speaker.items())
    table.write_text("id,speaker,split\n" + rows)
    items = drawn(voices_directory, speakers=table, segment_s=0.2)
    assert all({speaker[name] for name in item["ids"]} == {"ann", "bob"} for item in items)
    plain = drawn(voices_directory, segment_s=0.2)
    assert not all({speaker[name] for name in item["ids"]} == {"ann", "bob"} for item in plain)


def test_share_of_mixtures_of_one_speaker(voices_directory):
    """Two utterances, both with lips; a speaker of one utterance, or of one with lips, meets another as ever."""
    speaker = dict(
        zip([f"0{n}" for n in range(1, 9)], ["ann", "ann", "ann", "bob", "bob", "cy", "cy", "dee"])
    )
    table = voices_directory.folder / "utterances.csv"
    table.write_text("id,speaker\n" + "".join(f"{name},{who}\n" for name, who in speaker.items()))
    options = {"speakers": table, "segment_s": 0.2, "audio_only_share": 0.5, "no_lips_share": 0.25}
    items = drawn(voices_directory, same_speaker_share=1.0, **options)
    for item in items:
        names = [speaker[name] for name in item["ids"]]
        assert len(set(item["ids"])) == 2
        if not item["visual_mask"].any() or "cy" in names or "dee" in names:
            assert len(set(names)) == 2  # 07, the other one of cy, has no lips
        else:
            assert len(set(names)) == 1 and item["visual_mask"].all()
    alike = {item["ids"] for item in items if speaker[item["ids"][0]] == speaker[item["ids"][1]]}
    assert len(alike) == 8  # every order of every pair of ann and of bob
    some = drawn(voices_directory, same_speaker_share=0.4, **{**options, "no_lips_share": 0.0})
    count = sum(speaker[item["ids"][0]] == speaker[item["ids"][1]] for item in some)
    assert (
        200 * 0.4 * 2 / 3 - 25 < count < 200 * 0.4 * 2 / 3 + 25
    )  # cy, one of three with lips, has no second


class RandomGain:
    """Stands for a throat or a microphone: remembers what it drew."""

    def __init__(self):
        self.drawn = []

    def __call__(self, voice):
        self.drawn.append(float(torch.rand(())))
        return voice * (0.5 + self.drawn[-1])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_two_utterances_of_one_speaker_have_one_speed_throat_and_microphone(voices_directory, share):
    """Lips whose value rises by the speed in every frame tell the speed; voices that are unlike draw their own."""
    table = voices_directory.folder / "utterances.csv"
    table.write_text("id,speaker\n" + "".join(f"0{n},{'ab'[n % 2]}\n" for n in range(1, 9)))
    gain = RandomGain()
    items = drawn(
        voices_directory,
        speakers=table,
        same_speaker_share=share,
        speeds=[0.8, 0.9, 1.1, 1.2],
        segment_s=0.4,
        audio_only_share=0.0,
        voice_transforms=[gain],
    )
    first, second = torch.tensor(gain.drawn).unflatten(0, (-1, 2)).unbind(1)
    alike = (first == second).tolist()
    assert alike == [share == 1.0] * len(items) and len(first.unique()) > 150
    visual = torch.stack([item["visual"][:, :, 0] for item in items])
    first, second = (visual[:, :, 4] - visual[:, :, 3]).unbind(1)
    at_one_speed = torch.isclose(first, second, atol=1e-3).float().mean()
    assert at_one_speed == 1 if share else 0.15 < at_one_speed < 0.35
    starts = visual[:, :, 0]
    assert (starts[:, 0] != starts[:, 1]).float().mean() > 0.8  # each has its own crop
    levels = torch.tensor([level_difference_db(item) for item in items])
    assert len(levels.unique()) > 150  # what is drawn after them is not repeated


def test_a_share_of_one_speaker_that_nobody_can_fill_is_told(voices_directory, caplog):
    table = voices_directory.folder / "utterances.csv"
    # 01 and 08, which has no lips, are of one speaker.
    table.write_text("id,speaker\n" + "".join(f"0{n},speaker{n % 7}\n" for n in range(1, 9)))
    items = drawn(voices_directory, speakers=table, same_speaker_share=1.0, num_samples=20)
    assert "No speaker has two voices with lips" in caplog.text
    assert all(set(item["ids"]) != {"01", "08"} for item in items)


@pytest.mark.parametrize(("balance", "expected"), [(True, 1 / 3), (False, 4 / 6)])
def test_a_speaker_of_many_utterances_is_heard_as_often_as_others(
    voices_directory, tmp_path, balance, expected
):
    table = tmp_path / "speakers.csv"
    speakers = {
        "01": "ann",
        "02": "ann",
        "03": "ann",
        "04": "ann",
        "05": "ben",
        "06": "cleo",
        "07": "dan",
        "08": "eve",
    }
    table.write_text("id,speaker\n" + "".join(f"{name},{speaker}\n" for name, speaker in speakers.items()))
    # Both voices have lips, and the first one is drawn from all of these.
    items = drawn(
        voices_directory,
        speakers=table,
        balance=balance,
        audio_only_share=0.0,
        num_samples=600,
        segment_s=0.04,
    )
    heard = [speakers[name] for item in items for name in item["ids"]]
    # ann is drawn first with the chance expected; else she is the second with half, or two thirds, of the chance.
    second = (1 - expected) * (1 / 2 if balance else 4 / 5)
    assert heard.count("ann") / 600 == pytest.approx(expected + second, abs=0.06)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,speaker\n01,a\n", "no speaker for 7 of 8 ids, such as 02"),
        ("name,speaker\n01,a\n", "needs the columns id and speaker"),
        ("id,speaker\n" + "".join(f"0{n},a\n" for n in range(1, 9)), "two speakers"),
        ("id,speaker\n" + "".join(f"{n},a\n" for n in range(1, 9)), "ids as they are in the file names"),
        (None, "no such file"),
    ],
)
def test_a_useless_table_of_speakers_is_refused(voices_directory, text, reason):
    table = voices_directory.folder / "table.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(ValueError, match=reason):
        mixing(voices_directory, speakers=table)


def test_an_item_follows_from_seed_epoch_and_number(voices_directory):
    def signature(seed, epoch, number):
        dataset = mixing(voices_directory, seed=seed)
        dataset.set_epoch(epoch)
        item = dataset[number]
        return item["ids"], round(level_difference_db(item), 4), item["visual"][:, 0, 0].tolist()

    assert signature(0, 0, 5) == signature(0, 0, 5)
    assert len({str(signature(*which)) for which in ((0, 0, 5), (0, 0, 6), (0, 1, 5), (1, 0, 5))}) == 4


def test_preloaded_voices_give_the_same_mixtures(voices_directory):
    plain, preloaded = mixing(voices_directory), mixing(voices_directory, preload=True)
    for number in range(20):
        a, b = plain[number], preloaded[number]
        assert a["ids"] == b["ids"]
        torch.testing.assert_close(a["sources"], b["sources"], atol=1e-4, rtol=0)
        assert torch.equal(a["visual"], b["visual"])


def test_short_voices_are_padded_and_their_lips_held(directory):
    for name in ("1_2", "3_4"):
        for place in ("mix", "s1", "s2"):
            directory.audio(f"train/{place}", f"{name}.wav", np.full(6400, 0.1))
    directory.mouths("1", "2", "3", "4")
    directory.lips(**dict.fromkeys("1234", 10))
    item = DynamicMixingDataset(directory.root, cache=directory.cache, segment_s=1.0)[0]
    assert item["sources"].shape == (2, 16000)
    assert (item["sources"][:, :6400] != 0).all() and (item["sources"][:, 6400:] == 0).all()
    assert item["visual"][0, :, 0].tolist() == [*range(10), *[9] * 15]


def test_voice_transforms_shape_the_target_and_item_transforms_follow(voices_directory):
    def negative_second_half(voice):
        return torch.cat([voice[:16000], -voice[16000:]])

    def noise(item):
        assert torch.equal(item["mix"], item["sources"].sum(0))
        return {**item, "mix": item["mix"] + 0.01}

    item = mixing(voices_directory, voice_transforms=[negative_second_half], item_transforms=[noise])[0]
    assert (item["sources"][:, :16000] > 0).all() and (item["sources"][:, 16000:] < 0).all()
    torch.testing.assert_close(item["mix"], item["sources"].sum(0) + 0.01)


@pytest.mark.parametrize("level_db", [-10.0, -3.0, 0.0, 7.5])
def test_mix_pair_reaches_the_level_difference(level_db):
    voices = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.3], [0.01]])
    power = mix_pair(voices, level_db).square().mean(1)
    assert float(10 * torch.log10(power[0] / power[1])) == pytest.approx(level_db, abs=1e-3)


def test_mix_pair_does_not_blow_up_silence():
    voices = torch.stack([torch.randn(16000) * 0.1, torch.full((16000,), 2.0**-15)])
    mixed = mix_pair(voices, -10.0)
    assert mixed[1].abs().max() < 0.03
    assert torch.equal(mix_pair(torch.zeros(2, 100), 3.0), torch.zeros(2, 100))


def test_a_directory_that_allows_no_draw_is_refused(voices_directory, tmp_path_factory):
    with pytest.raises(ValueError, match="none of its 8 voices has lips"):
        (voices_directory.root / "mouths").rename(voices_directory.root / "gone")
        (voices_directory.root / "mouths").mkdir()
        mixing(voices_directory)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"level_db": [5, 1]}, "level_db"),
        ({"level_db": [-5, 5]}, "sign is drawn"),
        ({"audio_only_share": 1.5}, "audio_only_share"),
        ({"same_speaker_share": -0.1}, "same_speaker_share"),
        ({"same_speaker_share": 0.1}, "needs speakers"),
        ({"segment_s": 0.01}, "segment_s"),
        ({"num_samples": 0}, "num_samples"),
        ({"part": "val"}, "val"),
        ({"limit": 1}, "two speakers"),
    ],
)
def test_impossible_options_are_refused_by_name(voices_directory, options, reason):
    with pytest.raises(ValueError, match=reason):
        mixing(voices_directory, **options)


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_lips_and_voice_are_played_at_one_speed(voices_directory, preload, speed):
    """Amplitude k + 1 and lip value k mark video frame k; both must pass at `speed` frames a frame, in step."""
    dataset = mixing(voices_directory, preload=preload, segment_s=1.5, speeds=[speed])
    for number in range(20):
        item = dataset[number]
        for row in torch.nonzero(item["visual_mask"]).flatten().tolist():
            frames = item["visual"][row, :30, 0]
            assert frames.diff().mean() == pytest.approx(speed, abs=0.01)
            centres = item["sources"][row][FRAME // 2 :: FRAME][:30]
            marked = centres * ((frames + 1).mean() / centres.mean())
            assert (marked - frames - 1)[2:-2].abs().max() < 0.8  # amplitude goes in steps of a frame


def test_speeds_are_drawn_evenly_and_reproducibly(voices_directory):
    items = drawn(voices_directory, speeds=[0.8, 1.0, 1.25])
    paces = np.array(
        [
            float(item["visual"][row, :20, 0].diff().mean())
            for item in items
            for row in torch.nonzero(item["visual_mask"]).flatten().tolist()
        ]
    )
    counts = [int((np.abs(paces - speed) < 0.02).sum()) for speed in (0.8, 1.0, 1.25)]
    assert sum(counts) == len(paces) and min(counts) > len(paces) / 5
    again = mixing(voices_directory, speeds=[0.8, 1.0, 1.25])[7]
    assert torch.equal(again["mix"], items[7]["mix"])


@pytest.mark.parametrize("speed", [0, -1, 1.01])
def test_a_speed_that_cannot_be_is_refused(voices_directory, speed):
    with pytest.raises(ValueError, match="speeds"):
        mixing(voices_directory, speeds=[speed])


def test_mixtures_without_any_lips_are_of_all_voices(voices_directory):
    items = drawn(voices_directory, no_lips_share=0.5, audio_only_share=0.0)
    bare = [item for item in items if not item["visual_mask"].any()]
    assert 70 < len(bare) < 130
    assert all(not item["visual"].any() for item in bare)
    assert {name for item in bare for name in item["ids"]} >= {"01", "07", "08"}
    assert all(item["visual_mask"].all() for item in items if item["visual_mask"].any())
