"""The lip encoder's training: lips and voice in step through every augmentation, agreement, and the command itself."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipeline.lipreading import build
from pipeline.lipreading.weights import load_network, network_of
from pipeline.synchrony.agreement import (
    AgreementLoss,
    agreement,
    frame_agreement,
    offset_agreement,
    overlap_agreement,
    windows,
)
from pipeline.synchrony.augment import HEAD_RADIUS, MouthAugment, SoundAugment, seen_when_turned
from pipeline.synchrony.batches import BatchMaker, stretch
from pipeline.synchrony.clips import Clip, list_clips
from pipeline.synchrony.halves import load_halves, save_halves, sound_of
from pipeline.synchrony.mean import main as mean_main
from pipeline.synchrony.measure import main as measure_main
from pipeline.synchrony.measure import measure
from pipeline.synchrony.shots import shots
from pipeline.synchrony.sound import LogMel, SoundEncoder
from pipeline.synthetic import write_corpus

ROOT = Path(__file__).resolve().parents[2]
STILL = {
    "rotation_deg": 0,
    "turn_deg": 0,
    "scale": [1, 1],
    "shift_px": 0,
    "brightness": [1, 1],
    "gamma": [1, 1],
    "p_blur": 0,
    "p_cut": 0,
    "p_hold": 0,
    "p_cover": 0,
    "noise": 0,
    "p_face": 0,
    "movement": [1, 1],
}


@pytest.fixture(autouse=True)
def seeded_and_alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("synchrony") / "corpus", train=30, val=6, test=0, jobs=1)


@pytest.mark.parametrize(("start", "speed"), [(0.0, 1.0), (3.25, 0.9), (5.0, 1.15)])
def test_lips_and_voice_stay_in_step_at_any_speed(start, speed):
    """Frame k shows the value k, mel frame m (centred at m / 4 frames) holds the time in frames."""
    frames = torch.arange(50.0)[:, None, None].expand(50, 4, 4)
    mel = (torch.arange(201.0) / 4)[None].expand(3, 201)
    mouth, sound = stretch(frames, mel, 30, start, speed)
    assert mouth.shape == (30, 4, 4) and sound.shape == (3, 120)
    times_of_frames = mouth[:, 0, 0] + 0.5  # a frame's centre
    times_of_mel = sound[0].unflatten(0, (30, 4)).mean(dim=1)
    torch.testing.assert_close(times_of_frames, times_of_mel, atol=1e-4, rtol=0)
    torch.testing.assert_close(times_of_frames.diff(), torch.full((29,), speed), atol=1e-4, rtol=0)


def test_log_mel_frames_are_where_stretch_takes_them_to_be():
    voice = torch.zeros(32000)
    click = 12800  # 0.8 s, 20 frames of video
    voice[click] = 1.0
    mel = LogMel()(voice)
    _, sound = stretch(torch.zeros(50, 4, 4), mel, 50)
    loudest = sound.sum(dim=0).topk(2).indices.sort().values
    assert loudest.tolist() == [79, 80]  # centred 5 ms before and after


def test_frames_add_up_to_the_agreement():
    lips, voices = torch.randn(3, 4, 20), torch.randn(3, 4, 20)
    of_frames = frame_agreement(lips, voices)
    assert of_frames.shape == (3, 20)
    torch.testing.assert_close(of_frames.sum(dim=1), agreement(lips, voices).diagonal())
    alike = frame_agreement(lips, lips)
    assert (alike >= 0).all()
    torch.testing.assert_close(alike.sum(dim=1), torch.ones(3))


def test_agreement_ignores_levels_and_means_and_finds_the_offset():
    lips = torch.randn(4, 6, 40)
    voices = 3 * lips + 7
    scores = agreement(lips, voices)
    torch.testing.assert_close(scores.diagonal(), torch.ones(4))
    assert (scores - torch.eye(4)).abs().max() < 0.5
    for shift in (-5, 0, 3):
        later = torch.roll(voices, shift, dims=-1)
        for agreements in (offset_agreement, overlap_agreement):
            found = agreements(lips, later, reach=8)
            assert found.shape == (4, 17) and (found.argmax(dim=1) - 8 == shift).all()


def test_the_whole_overlap_finds_offsets_in_noise_that_the_middle_of_the_lips_does_not():
    lips = torch.randn(400, 6, 40)
    voices = lips + 5 * torch.randn(400, 6, 40)
    right = [
        (agreements(lips, voices, reach=10).argmax(dim=1) == 10).double().mean()
        for agreements in (offset_agreement, overlap_agreement)
    ]
    assert 0.3 < right[0] < right[1] - 0.1, right


class Half:
    """Stands in for either half: what it makes of a clip lies ready, in the order of the clips."""

    def __init__(self, features):
        self.features = iter(features)

    def eval(self):
        return self

    def frontend(self, pictures):
        return pictures

    def temporal(self, pictures):
        return next(self.features)[None]

    __call__ = temporal


class OneClip:
    """Stands in for a store of clips."""

    def load(self, clip):
        return np.zeros((50, 88, 88), np.uint8), torch.zeros(32000)


@pytest.mark.parametrize(("related", "expected"), [(True, 0.9), (False, 3 / 21)])
def test_a_cut_that_all_clips_have_at_one_place_tells_no_offset(related, expected):
    clips = [Clip(str(n), str(n % 8), Path(), Path()) for n in range(160)]
    voices = torch.randn(len(clips), 6, 50)
    lips = voices.clone() if related else torch.randn(len(clips), 6, 50)
    cut = torch.zeros(6, 50)
    cut[:, 29:32] = 8 * torch.randn(6, 1)
    found = measure(Half(lips + cut), Half(voices + cut), clips, OneClip())
    assert abs(found.offset[0] - expected) < 0.1 and abs(found.chance - 3 / 21) < 0.1, str(found)
    with pytest.raises(ValueError, match="20 frames"):
        measure(Half(lips), Half(voices), clips, OneClip(), num_frames=20)


def scene(num_frames, seed):
    """A face of its own greys that moves all the time, a little."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(0, 200, (1, 88, 88)) + rng.uniform(0, 9, (num_frames, 88, 88))).astype(np.uint8)


@pytest.mark.parametrize("lengths", [[50], [30, 20], [10, 25, 15], [1], []])
def test_a_clip_is_divided_where_the_picture_jumps(lengths):
    clip = np.concatenate(
        [np.zeros((0, 88, 88), np.uint8), *(scene(n, seed) for seed, n in enumerate(lengths))]
    )
    ends = np.cumsum([0, *lengths]).tolist()
    assert shots(clip) == [range(start, end) for start, end in pairwise(ends)]


def test_a_mouth_that_opens_over_some_frames_is_no_cut():
    clip = scene(50, 0).astype(np.float32)
    clip[20:] += 40
    clip[20:23] -= np.array([30, 20, 10])[:, None, None]
    assert shots(clip) == [range(50)]


@pytest.mark.parametrize("times", [2, 3, 20])
def test_frames_that_are_shown_several_times_are_no_cuts(times):
    clip = scene(60 // times, 0).repeat(times, axis=0)
    assert shots(clip) == [range(60)]
    assert shots(clip[:1].repeat(9, axis=0)) == [range(9)]


class JoinedClips:
    """Stands in for a store: clips joined at a frame, in which the first part is silent."""

    def __init__(self, joint):
        self.joint = joint

    def load(self, clip):
        voice = torch.randn(32000)
        voice[: self.joint * 640] = 0
        return np.concatenate([scene(self.joint, 1), scene(50 - self.joint, 2)]), voice


def maker(joint, frames, speed):
    clips = [Clip(str(n), str(n % 4), Path(), Path()) for n in range(12)]
    return BatchMaker(clips, JoinedClips(joint), speakers=4, clips_per_speaker=2, frames=frames, speed=speed)


@pytest.mark.parametrize("speed", [[1, 1], [0.8, 1.3]])
def test_no_stretch_goes_over_a_joint(speed):
    heard = []
    for number in range(8):
        pictures, mel = maker(30, [24, 26], speed).make(number)
        assert pictures.shape[0] == len(mel) == 8 and pictures.shape[2] * 4 == mel.shape[2]
        brightness = pictures.mean(dim=(3, 4))[:, 0]
        assert brightness.std(dim=1).max() < 0.02  # one face
        # Windows at the ends hear 12.5 ms of what is beside.
        silent = (mel < -11).float().mean(dim=1)[:, 3:-3]
        assert (silent == silent[:, :1]).all()
        heard += (silent[:, 0] == 0).tolist()
    assert any(heard) == (speed != [1, 1])  # 20 frames, played slowly, are 24


def test_clips_without_a_stretch_long_enough_are_told():
    with pytest.raises(ValueError, match=r"35 frames without a cut: lower batches\.frames"):
        maker(30, [35, 35], [1, 1]).make(0)


def agreement_loss(**options):
    return AgreementLoss(
        **{
            "reach": 3,
            "offset_weight": 0.5,
            "temperature": 0.1,
            "window": 8,
            "window_weight": 1.0,
            **options,
        }
    )


def test_the_loss_falls_when_the_right_ones_agree():
    loss = agreement_loss()
    lips = torch.randn(6, 5, 30)
    right, wrong = loss(lips, lips), loss(lips, lips.flip(0))
    assert right["matching"] < 0.1 < np.log(6) < wrong["matching"]
    assert right["windows"] < 0.5 < np.log(18) < wrong["windows"]
    assert right["offset"] < wrong["offset"]
    assert right["loss"].requires_grad


@pytest.mark.parametrize(("num_frames", "first", "count"), [(24, 0, 3), (31, 3, 3), (8, 0, 1), (15, 3, 1)])
def test_windows_lie_beside_each_other_in_the_middle(num_frames, first, count):
    features = torch.arange(2.0 * 5 * num_frames).reshape(2, 5, num_frames)
    parts = windows(features, 8)
    assert parts.shape == (2 * count, 5, 8)
    for clip in range(2):
        for number in range(count):
            start = first + 8 * number
            assert torch.equal(parts[clip * count + number], features[clip, :, start : start + 8])


def test_windows_that_cannot_be_are_told():
    with pytest.raises(ValueError, match=r"loss\.window=0"):
        agreement_loss(window=0)
    with pytest.raises(ValueError, match=r"31 is longer than the 30 frames of a clip: raise batches\.frames"):
        agreement_loss(window=31)(torch.randn(6, 5, 30), torch.randn(6, 5, 30))


def test_only_windows_tell_a_clip_whose_stretches_are_put_in_another_order():
    """Frames of all clips alike, but for what is in the windows: those of one clip change places."""
    clip = torch.randn(5, 8)
    lips = torch.stack([torch.cat([clip, -clip, clip.flip(1)], dim=1), torch.randn(5, 24)])
    voices = lips.clone()
    voices[0] = torch.cat([-clip, clip, clip.flip(1)], dim=1)
    loss = agreement_loss()
    assert loss(lips, voices)["windows"] > loss(lips, lips)["windows"] + 1
    weighed = [agreement_loss(window_weight=weight)(lips, voices) for weight in (0.0, 2.0)]
    torch.testing.assert_close(weighed[1]["loss"] - weighed[0]["loss"], 2 * weighed[0]["windows"])


def test_a_mouth_that_nothing_is_done_to_is_at_most_mirrored():
    frames = torch.rand(7, 88, 88) * 255
    seen = set()
    for _ in range(12):
        changed = MouthAugment(**STILL)(frames, torch.zeros(7, 88, 88))
        mirrored = torch.allclose(changed, frames.flip(2), atol=1e-2)
        assert mirrored or torch.allclose(changed, frames, atol=1e-2)
        seen.add(mirrored)
    assert seen == {True, False}


@pytest.mark.parametrize("option", [{"rotation_deg": 20}, {"turn_deg": 45}, {"scale": [0.5, 2]}, {"shift_px": 20},
                                    {"p_cut": 1.0}, {"p_blur": 1.0}, {"p_cover": 1.0}, {"noise": 20},
                                    {"gamma": [0.3, 0.4]}, {"brightness": [0.2, 0.4]}, {"p_face": 1.0},
                                    {"movement": [0.2, 0.4]}])  # fmt: skip
def test_every_disguise_of_a_mouth_changes_it_and_stays_a_picture(option):
    option = option if "p_cut" not in option else {**option, "shift_px": 20}
    frames = torch.rand(9, 88, 88) * 255
    changed = MouthAugment(**{**STILL, **option})(frames, torch.rand(88, 88).expand(9, 88, 88) * 255)
    assert changed.shape == frames.shape and changed.min() >= 0 and changed.max() <= 255
    assert (changed - frames).abs().mean() > 1 and (changed - frames.flip(2)).abs().mean() > 1


@pytest.mark.parametrize("degrees", [-45, -10, 0, 30])
def test_a_turned_head_keeps_its_mouth_in_the_middle_and_shows_more_of_one_cheek(degrees):
    angle = np.radians(degrees)
    across = torch.linspace(-0.3, 0.3, 61)
    source = seen_when_turned(across, angle)
    assert source[30].abs() < 1e-6 and (source.diff() > 0).all()
    slope = (source[31] - source[29]) / (across[31] - across[29])
    torch.testing.assert_close(slope, torch.tensor(1 / np.cos(angle)).float(), atol=1e-2, rtol=0)
    widths = source[30] - source[0], source[60] - source[30]
    assert degrees == 0 or (widths[1] > widths[0]) == (degrees > 0)
    seen = HEAD_RADIUS * ((source / HEAD_RADIUS).asin() + angle).sin()  # less where the mouth is then
    torch.testing.assert_close(seen - seen[30], across, atol=1e-4, rtol=0)
    assert seen_when_turned(torch.tensor([-1.0, 1.0]), angle).isfinite().all()


def test_another_face_moves_as_the_own_one_did():
    torch.manual_seed(3)
    frames, other = 100 + 20 * torch.rand(9, 88, 88), 200 * torch.rand(88, 88).expand(9, 88, 88)
    changed = MouthAugment(**{**STILL, "p_face": 1.0})(frames, other)
    flipped = not torch.allclose(changed.diff(dim=0), frames.diff(dim=0), atol=1e-2)
    moved, own, face = (part.flip(-1) if flipped else part for part in (frames, frames.mean(0), other[0]))
    torch.testing.assert_close(changed.diff(dim=0), moved.diff(dim=0), atol=1e-2, rtol=0)
    share = ((changed.mean(0) - own) * (face - own)).sum() / (face - own).square().sum()
    assert 0.05 < share < 1
    torch.testing.assert_close(changed.mean(0), own + share * (face - own), atol=1e-2, rtol=0)


def test_frames_that_are_lost_show_the_last_one():
    frames = torch.arange(60.0)[:, None, None].expand(60, 8, 8)
    held = MouthAugment(**{**STILL, "p_hold": 1.0})(frames, frames)[:, 0, 0].round()
    assert (held.diff() >= 0).all() and 1 <= (held.diff() == 0).sum() < 20


def test_disguises_of_a_voice():
    mel, other = torch.randn(40, 80), torch.randn(40, 80)
    nothing = {"shift_bands": 0, "tilt": 0, "mask_bands": 0, "p_voice": 0, "voice_db": [0, 0], "noise": 0}
    torch.testing.assert_close(SoundAugment(**nothing)(mel, other), mel)
    both = SoundAugment(**{**nothing, "p_voice": 1.0})(mel, other)
    assert (both > mel).all()  # another voice adds energy everywhere
    for option in ({"shift_bands": 4}, {"tilt": 2}, {"mask_bands": 20}, {"noise": 1.0}):
        changed = [SoundAugment(**{**nothing, **option})(mel, other) for _ in range(4)]
        assert any(not torch.allclose(now, mel) for now in changed), option


def test_the_voices_half_has_a_value_for_every_video_frame():
    assert SoundEncoder(64).eval()(torch.randn(2, 40, 200)).shape == (2, 64, 50)


def test_clips_are_voices_with_mouths(corpus, tmp_path):
    clips = list_clips(corpus, "train", corpus / "utterances.csv")
    assert len(clips) == len({clip.id for clip in clips}) > 10
    assert all(clip.mouth.stem == clip.id and clip.id in clip.voice.stem for clip in clips)
    assert len({clip.speaker for clip in clips}) < len(clips)
    (tmp_path / "audio" / "mix").mkdir(parents=True)
    with pytest.raises(ValueError, match="no voice with a mouth"):
        list_clips(tmp_path, None)
    (tmp_path / "table.csv").write_text("id,who\n")
    with pytest.raises(ValueError, match="columns id and speaker"):
        list_clips(corpus, "train", tmp_path / "table.csv")


def run(corpus, out, *options):
    return subprocess.run(
        [
            sys.executable, "-m", "pipeline.synchrony", f"root={corpus}", f"speakers={corpus / 'utterances.csv'}",
            f"out={out}", "threads=1", "batches.speakers=5", "batches.frames=[24,24]", "training.warmup_steps=5",
            *options,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_learns_goes_on_and_writes_weights_that_load(corpus, tmp_path):
    whole = run(
        corpus, tmp_path / "whole", "training.total_steps=60", "training.val_period=60", "optimizer.lr=2e-3"
    )
    assert whole.returncode == 0, whole.stderr
    matching = float(whole.stdout.rsplit("val  matching ", 1)[1].split()[0])
    assert matching > 0.65, whole.stdout  # a coin gives 0.5

    weights = tmp_path / "whole" / "lips.safetensors"
    assert network_of(weights) == "sync_light"
    with safe_open(weights, framework="pt") as file:
        assert file.metadata()["kind"].startswith("trained to match")
    assert weights.stat().st_size < 1.2e6
    reader = load_network("sync_light", weights)
    assert reader.trunk_dim == 64 and not reader.training
    steps = ["training.total_steps=1", "training.warmup_steps=0", "optimizer.lr=0", "training.val_period=9"]
    again = run(corpus, tmp_path / "again", f"init_from={tmp_path / 'whole'}", *steps)
    assert again.returncode == 0, again.stderr
    kept = [load_network("sync_light", tmp_path / name / "lips.safetensors") for name in ("whole", "again")]
    for (name, before), after in zip(kept[0].named_parameters(), kept[1].parameters(), strict=True):
        assert torch.equal(before, after), name
    options = ["--root", str(corpus), "--part", "val", "--speakers", str(corpus / "utterances.csv")]
    assert measure_main([*options, "--run", str(tmp_path / "whole"), "--frames", "40"]) == 0
    assert measure_main([*options, "--run", str(tmp_path)]) == 2


def write_halves(folder, seed, network="sync_light"):
    torch.manual_seed(seed)
    folder.mkdir()
    reader = build(network)
    about = {"network": network, "seed": str(seed)}
    save_halves(folder, reader.state_dict(), SoundEncoder(reader.trunk_dim).state_dict(), about)
    return folder


def test_the_mean_of_two_encoders_is_one_that_loads(tmp_path, capsys):
    first, second = (write_halves(tmp_path / str(seed), seed) for seed in (1, 2))
    options = ["--run", str(first), "--other", str(second), "--out", str(tmp_path / "mean")]
    assert mean_main([*options, "--share", "0.75"]) == 0
    for half in range(2):
        own, other, mean = (
            dict(load_halves(folder)[half].named_parameters())
            for folder in (first, second, tmp_path / "mean")
        )
        for name, weight in mean.items():
            torch.testing.assert_close(weight, 0.75 * own[name] + 0.25 * other[name], atol=1e-3, rtol=1e-3)
    assert sound_of(tmp_path / "mean" / "lips.safetensors") is not None
    of_mean = load_halves(tmp_path / "mean")[0].state_dict()
    assert (
        mean_main(["--run", str(first), "--other", str(second), "--share", "0.75", "--out", str(second)]) == 0
    )
    in_place = load_halves(second)[0].state_dict()
    assert all(torch.equal(weight, in_place[name]) for name, weight in of_mean.items())
    assert mean_main([*options, "--share", "2"]) == 2 and "0 to 1" in capsys.readouterr().err
    assert mean_main(["--run", str(first), "--other", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    words = write_halves(tmp_path / "words", 1, "lrw_snv05x_tcn1x")
    assert mean_main(["--run", str(first), "--other", str(words), "--out", str(tmp_path)]) == 2
    assert "lrw_snv05x_tcn1x" in capsys.readouterr().err


def test_weights_to_begin_with_that_do_not_fit_are_told(corpus, tmp_path):
    absent = run(corpus, tmp_path / "out", f"init_from={tmp_path / 'nothing'}", "training.total_steps=1")
    assert absent.returncode == 2 and "nothing" in absent.stderr and "Traceback" not in absent.stderr
    other = run(
        corpus, tmp_path / "out", "init_from=weights", "network=lrw_snv05x_tcn1x", "training.total_steps=1"
    )
    assert other.returncode == 2 and "not of lrw_snv05x_tcn1x" in other.stderr, other.stderr


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(corpus, tmp_path):
    common = ["training.total_steps=4", "training.val_period=100"]
    whole = run(corpus, tmp_path / "whole", *common)
    first = run(corpus, tmp_path / "parts", *common, "training.max_minutes=0")
    assert whole.returncode == first.returncode == 0, first.stderr
    assert "stopped at step 1" in first.stdout
    longer = run(corpus, tmp_path / "parts", "training.total_steps=9", "resume=true")
    assert longer.returncode == 2 and "'total_steps': 4" in longer.stderr
    again = run(corpus, tmp_path / "parts", *common)
    assert again.returncode == 2 and "resume=true" in again.stderr
    state = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    state["halves"]["loss.sharpness"] = state["halves"]["loss.sharpness"][:2]
    (tmp_path / "before").mkdir()
    torch.save(state, tmp_path / "before" / "last.pt")
    earlier = run(corpus, tmp_path / "before", *common, "resume=true")
    assert earlier.returncode == 2 and "init_from=" in earlier.stderr and "Traceback" not in earlier.stderr
    second = run(corpus, tmp_path / "parts", *common, "resume=true")
    assert "done after 4 steps" in second.stdout, second.stderr
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["halves"] for name in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
