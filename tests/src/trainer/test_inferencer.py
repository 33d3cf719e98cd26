"""The inferencer with separators whose output is known in advance."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from pipeline.mouths import MouthError
from src.datasets.custom_dir import CustomDirDataset
from src.metrics.si_snr import SISNRMetric
from src.trainer.checkpoint import CheckpointError, save_checkpoint
from src.trainer.inferencer import Inferencer
from src.trainer.lip_source import LipSource
from src.trainer.separator import load_separator
from src.utils.io_utils import ROOT_PATH

SEVENTY_PERCENT = torch.tensor([0.7, 0.3])[None, :, None]


class Shares(nn.Module):
    """Voices that are 70 % and 30 % of the mixture: any window gives what the whole gives."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, mix, **batch):
        self.batches.append({"mix": mix, **batch})
        return {"estimates": mix[:, None] * SEVENTY_PERCENT}


class Rectifiers(nn.Module):
    """The positive and the negative part of the mixture, each window in an order of its own."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.num_swapped = self.num_windows = 0

    def forward(self, mix, **batch):
        estimates = torch.stack([mix.clamp(min=0), mix.clamp(max=0)], dim=1)
        for row in range(len(mix)):
            swap = bool(torch.randint(2, (), generator=self.generator))
            self.num_swapped += swap
            self.num_windows += 1
            if swap:
                estimates[row] = estimates[row].flip(0)
        return {"estimates": estimates}


class LipCued(nn.Module):
    """The positive part belongs to the speaker whose lip embedding is larger; without lips to the first."""

    def forward(self, mix, visual, visual_mask, **batch):
        openness = visual.mean(dim=(2, 3))
        first_opens = (openness[:, 0] >= openness[:, 1])[:, None]
        positive, negative = mix.clamp(min=0), mix.clamp(max=0)
        first = torch.where(first_opens, positive, negative)
        return {"estimates": torch.stack([first, mix - first], dim=1)}


class Openness:
    """A front-end whose embedding is the mean brightness of a frame."""

    def __init__(self):
        self.identity = {"dim": 4}

    def embed_file(self, path):
        data = np.load(path)["data"]
        if data.shape[0] == 1:
            raise MouthError(f"{path}: broken for the test; make it again")
        return np.repeat(data.reshape(len(data), -1).mean(axis=1)[:, None], 4, axis=1).astype(np.float16)


def lips():
    return LipSource(dim=4, cache=None, front_end=Openness(), cache_decides=False)


def noise(length, seed=0, channels=1):
    audio = np.random.default_rng(seed).uniform(-0.4, 0.4, (length, channels))
    return audio[:, 0] if channels == 1 else audio


def write(path, audio, rate_hz=16_000, subtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate_hz, subtype=subtype)
    return path


def write_mouth(root, name, brightness, num_frames=50):
    (root / "mouths").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        root / "mouths" / f"{name}.npz", data=np.full((num_frames, 88, 88), brightness, np.uint8)
    )


def infer(root, out, model=None, **options):
    inferencer = Inferencer(
        model=model or Shares(), datasets={"test": CustomDirDataset(root)}, save_path=out, **options
    )
    logs = inferencer.run_inference()
    return inferencer.reports["test"], logs["test"]


def read_voices(out, name):
    return [soundfile.read(out / voice / name, dtype="float64")[0] for voice in ("s1", "s2")]


@pytest.mark.parametrize("length", [1, 100, 32_000, 32_001, 100_003])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(
    ("extension", "subtype"),
    [("wav", "PCM_U8"), ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16")],
)
def test_voices_sum_to_the_mixture_in_its_own_format(tmp_path, extension, subtype, rate_hz, length):
    name = f"a_b.{extension}"
    mix = write(tmp_path / "audio/mix" / name, noise(length), rate_hz, subtype)
    report, _ = infer(tmp_path, tmp_path / "out", window_s=1, overlap_s=0.2)
    assert report.complete and report.num_written == 1
    info = soundfile.info(tmp_path / "out/s1" / name)
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (length, rate_hz, 1, subtype)
    whole = soundfile.read(mix, dtype="float64")[0]
    first, second = read_voices(tmp_path / "out", name)
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23}.get(subtype)
    if step:
        np.testing.assert_array_equal(first + second, whole)
    else:
        np.testing.assert_allclose(first + second, whole, atol=1e-7)
    if rate_hz == 16_000:  # elsewhere the band above 8 kHz, which no separator saw, is shared equally
        np.testing.assert_allclose(first, 0.7 * whole, atol=(step or 0) + 1e-6)
    elif rate_hz > 16_000 and length > 100:
        assert np.corrcoef(first, whole)[0, 1] > 0.95
        assert np.std(first) > np.std(second)


def test_stereo_gives_mono_voices_that_sum_to_the_mean(tmp_path):
    mix = noise(20_000, channels=2)
    write(tmp_path / "audio/mix/a_b.wav", mix, subtype="FLOAT")
    with pytest.warns(UserWarning, match=r"a_b\.wav.*channels"):
        infer(tmp_path, tmp_path / "out")
    first, second = read_voices(tmp_path / "out", "a_b.wav")
    np.testing.assert_allclose(first + second, mix.mean(axis=1), atol=1e-6)


def test_mp3_stays_mp3_of_the_same_length_unless_asked_otherwise(tmp_path):
    tone = 0.3 * np.sin(np.arange(30_011) / 8)
    mix = write(tmp_path / "audio/mix/a_b.mp3", tone, 22_050)
    decoded = soundfile.read(mix)[0]
    infer(tmp_path, tmp_path / "out")
    first, second = read_voices(tmp_path / "out", "a_b.mp3")
    assert len(first) == len(second) == len(decoded) == 30_011
    assert np.abs(first + second - decoded)[2000:-2000].max() < 0.02
    infer(tmp_path, tmp_path / "wav", output_format="wav")
    first, second = read_voices(tmp_path / "wav", "a_b.wav")
    np.testing.assert_allclose(first + second, decoded, atol=2**-15)


def test_flac_of_a_float_mixture_keeps_24_bits(tmp_path):
    mix = noise(5000)
    write(tmp_path / "audio/mix/a_b.wav", mix, subtype="FLOAT")
    infer(tmp_path, tmp_path / "out", output_format="flac")
    first, second = read_voices(tmp_path / "out", "a_b.flac")
    np.testing.assert_allclose(first + second, mix, atol=2**-23)


def test_windows_give_what_the_whole_gives(tmp_path):
    write(tmp_path / "audio/mix/a_b.wav", noise(16_000 * 61 + 7), subtype="FLOAT")
    infer(tmp_path, tmp_path / "whole", window_s=None)
    infer(tmp_path, tmp_path / "windows", window_s=4, overlap_s=1)
    for whole, joined in zip(
        read_voices(tmp_path / "whole", "a_b.wav"), read_voices(tmp_path / "windows", "a_b.wav")
    ):
        np.testing.assert_allclose(joined, whole, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [16_000, 32_000])
def test_voices_do_not_swap_from_window_to_window(tmp_path, rate_hz):
    mix = noise(rate_hz * 40)
    if rate_hz > 16_000:  # nothing above 8 kHz, so that the residual does not hide a swap
        spectrum = np.fft.rfft(mix)
        spectrum[len(spectrum) // 3 :] = 0
        mix = np.fft.irfft(spectrum, len(mix))
    write(tmp_path / "audio/mix/a_b.wav", mix, rate_hz, subtype="FLOAT")
    model = Rectifiers()
    infer(tmp_path, tmp_path / "out", model, window_s=2, overlap_s=0.4, batch_size=3)
    assert 5 < model.num_swapped < model.num_windows - 5
    voices = read_voices(tmp_path / "out", "a_b.wav")
    expected = [mix.clip(min=0), mix.clip(max=0)]
    if np.corrcoef(voices[0], expected[0])[0, 1] < np.corrcoef(voices[0], expected[1])[0, 1]:
        expected.reverse()
    tolerance = 1e-6 if rate_hz == 16_000 else 0.2  # clipping makes a band above 8 kHz
    assert max(np.abs(voice - part).max() for voice, part in zip(voices, expected)) < tolerance


def test_swapped_lips_swap_the_voices_of_a_long_recording(tmp_path):
    mix = noise(16_000 * 9)
    voices = {}
    for case, (bright1, bright2) in {"straight": (200, 10), "crossed": (10, 200)}.items():
        root = tmp_path / case
        write(root / "audio/mix/a_b.wav", mix, subtype="FLOAT")
        write_mouth(root, "a", bright1, 225)
        write_mouth(root, "b", bright2, 225)
        report, _ = infer(root, root / "out", LipCued(), lips=lips(), window_s=2, overlap_s=0.5)
        assert report.complete and not report.remarks
        voices[case] = read_voices(root / "out", "a_b.wav")
    np.testing.assert_array_equal(voices["straight"][0], voices["crossed"][1])
    np.testing.assert_allclose(voices["straight"][0], mix.clip(min=0), atol=1e-6)


def test_voices_that_the_order_check_contradicts_are_exchanged_and_counted(tmp_path):
    class Contradicts:
        def exchanged(self, mix, estimates, visual, used, order):
            contradicted = used[:, 0] & ~used[:, 1]
            return contradicted[:, None].float().expand(-1, visual.shape[2])

    for name in ("a_b", "c_d", "a_d"):
        write(tmp_path / f"audio/mix/{name}.wav", noise(16_000), subtype="FLOAT")
    write_mouth(tmp_path, "a", 100, 25)
    write_mouth(tmp_path, "b", 10, 25)
    voices = {}
    for case, check in (("left", None), ("checked", Contradicts())):
        report, _ = infer(tmp_path, tmp_path / case, LipCued(), lips=lips(), order_check=check)
        assert report.num_exchanged == report.as_json()["windows_exchanged_by_check"] == (1 if check else 0)
        assert ("In 1 window the voices were exchanged" in str(report)) == bool(check)
        voices[case] = {name: read_voices(tmp_path / case, f"{name}.wav") for name in ("a_b", "c_d", "a_d")}
    for name in ("a_b", "c_d"):
        np.testing.assert_array_equal(voices["left"][name], voices["checked"][name])
    np.testing.assert_array_equal(voices["left"]["a_d"], voices["checked"]["a_d"][::-1])


def test_one_mouth_is_enough_and_none_is_no_failure(tmp_path):
    for name in ("a_b", "c_d", "a_d"):
        write(tmp_path / f"audio/mix/{name}.wav", noise(16_000), subtype="FLOAT")
    write_mouth(tmp_path, "a", 100, 25)
    model = LipCued()
    seen = {}
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(
            zip(
                kwargs["utt_id"],
                zip(kwargs["visual_mask"].tolist(), kwargs["visual"].amax(dim=(2, 3)).tolist()),
            )
        ),
        with_kwargs=True,
    )
    report, _ = infer(tmp_path, tmp_path / "out", model, lips=lips())
    assert report.complete and report.num_written == 3
    assert seen == {
        "a_b": ([True, False], [100, 0]),
        "c_d": ([False, False], [0, 0]),
        "a_d": ([True, False], [100, 0]),
    }


def test_video_shorter_than_the_audio_is_remarked_on_and_lipless_windows_keep_the_order(tmp_path):
    mix = noise(16_000 * 20)
    write(tmp_path / "audio/mix/a_b.wav", mix, subtype="FLOAT")
    write_mouth(tmp_path, "a", 10, 250)
    write_mouth(tmp_path, "b", 200, 250)
    report, _ = infer(tmp_path, tmp_path / "out", LipCued(), lips=lips(), window_s=4)
    assert [("10.00 s" in text and "20.00 s" in text) for _, text in report.remarks] == [True, True]
    assert all("too short to be used in 3 of 7 windows" in text for _, text in report.remarks)
    # Without lips LipCued gives the positive part first; the lips of the first half say it is the second's.
    np.testing.assert_allclose(read_voices(tmp_path / "out", "a_b.wav")[1], mix.clip(min=0), atol=1e-6)


def test_broken_mouth_file_costs_only_that_voice_its_lips(tmp_path):
    write(tmp_path / "audio/mix/a_b.wav", noise(16_000), subtype="FLOAT")
    write_mouth(tmp_path, "a", 10, 1)
    write_mouth(tmp_path, "b", 200, 25)
    report, _ = infer(tmp_path, tmp_path / "out", LipCued(), lips=lips())
    assert report.num_written == 1 and not report.failures and not report.complete
    assert "broken for the test" in report.damaged[0][1] and "a.npz" in str(report)


def test_equal_lengths_run_together_and_order_of_files_does_not_matter(tmp_path):
    lengths = [16_000, 8_000, 16_000, 8_000, 16_000, 12_345, 16_000, 16_000]
    for number, length in enumerate(lengths):
        write(tmp_path / f"audio/mix/{number}_x.wav", noise(length, number), subtype="FLOAT")
    model = Shares()
    report, _ = infer(tmp_path, tmp_path / "out", model, batch_size=4)
    assert report.num_written == len(lengths)
    assert sorted(batch["mix"].shape[0] for batch in model.batches) == [1, 1, 2, 4]
    for number, length in enumerate(lengths):
        first, _ = read_voices(tmp_path / "out", f"{number}_x.wav")
        np.testing.assert_allclose(first, 0.7 * noise(length, number), atol=1e-6)


def test_windows_waiting_for_their_like_are_bounded(tmp_path):
    for number in range(12):
        write(tmp_path / f"audio/mix/{number:02}_x.wav", noise(1000 + number), subtype="FLOAT")
    model = Shares()
    infer(tmp_path, tmp_path / "out", model, batch_size=2)
    assert len(model.batches) == 12
    assert len(os.listdir(tmp_path / "out/s2")) == 12


def test_a_truth_that_is_no_use_is_named_and_is_no_recording(tmp_path):
    write(tmp_path / "audio/mix/a_b.wav", noise(16_000))
    (tmp_path / "audio/s1").mkdir()
    (tmp_path / "audio/s1/a_b.ogg").write_bytes(b"")
    report, _ = infer(tmp_path, tmp_path / "out")
    assert (report.num_recordings, report.num_written, report.complete) == (1, 1, False)
    ((path, reason),) = report.failures
    assert os.path.basename(path) == "a_b.ogg" and reason.startswith(
        "cannot be scored against: .ogg is not read"
    )


def test_bad_files_do_not_stop_the_rest_and_are_named(tmp_path):
    folder = tmp_path / "audio/mix"
    write(folder / "good_one.wav", noise(16_000))
    write(folder / "empty_file.wav", noise(0))
    (folder / "not_audio.wav").write_bytes(b"RIFF but no wave at all")
    write(folder / "nounderscore.wav", noise(16_000))
    holes = noise(16_000)
    holes[7000] = np.nan
    write(folder / "with_nan.wav", holes, subtype="FLOAT")
    report, _ = infer(tmp_path, tmp_path / "out")
    assert report.num_recordings == 5 and report.num_written == 1 and not report.complete
    failed = {os.path.basename(path) for path, _ in report.failures}
    assert failed == {"empty_file.wav", "not_audio.wav", "nounderscore.wav", "with_nan.wav"}
    assert all(name in str(report) for name in failed)
    json.dumps(report.as_json())
    assert os.listdir(tmp_path / "out/s1") == os.listdir(tmp_path / "out/s2") == ["good_one.wav"]


def test_file_that_breaks_off_after_some_windows_leaves_no_output(tmp_path):
    audio = noise(16_000 * 150)
    audio[16_000 * 140] = np.inf
    write(tmp_path / "audio/mix/a_b.wav", audio, subtype="FLOAT")
    write(tmp_path / "audio/mix/c_d.wav", noise(500), subtype="FLOAT")
    report, _ = infer(tmp_path, tmp_path / "out", batch_size=2)
    assert report.num_written == 1 and "140.0" in report.failures[0][1]
    assert os.listdir(tmp_path / "out/s1") == ["c_d.wav"]


def test_estimates_that_are_not_finite_are_a_failure_of_that_recording(tmp_path):
    class Diverged(Shares):
        def forward(self, mix, utt_id, **batch):
            bad = torch.tensor([name == "a_b" for name in utt_id])[:, None, None]
            return {"estimates": torch.where(bad, torch.nan, mix[:, None] * SEVENTY_PERCENT)}

    for name in ("a_b", "c_d"):
        write(tmp_path / f"audio/mix/{name}.wav", noise(16_000))
    report, _ = infer(tmp_path, tmp_path / "out", Diverged())
    assert "not finite" in report.failures[0][1] and report.num_written == 1
    assert os.listdir(tmp_path / "out/s1") == ["c_d.wav"]


def test_outputs_appear_whole_or_not_at_all(tmp_path):
    class Stopped(Shares):
        def forward(self, mix, **batch):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().forward(mix, **batch)

    write(tmp_path / "audio/mix/a_b.wav", noise(16_000 * 60))
    with pytest.raises(KeyboardInterrupt):
        infer(tmp_path, tmp_path / "out", Stopped(), batch_size=1)
    assert os.listdir(tmp_path / "out/s1") == os.listdir(tmp_path / "out/s2") == []


def test_voice_beyond_full_scale_is_clipped_and_told(tmp_path):
    class Loud(nn.Module):
        def forward(self, mix, **batch):
            return {"estimates": torch.stack([mix * 4, mix * -3], dim=1)}

    write(tmp_path / "audio/mix/a_b.wav", np.full(1000, 0.5))
    report, _ = infer(tmp_path, tmp_path / "out", Loud())
    assert report.complete and "1000 samples" in report.remarks[0][1]


def write_truth(root, name, mix, order=(0, 1)):
    parts = [mix.clip(min=0), mix.clip(max=0)]
    for voice, part in zip(("s1", "s2"), order):
        write(root / "audio" / voice / name, parts[part], subtype="FLOAT")


@pytest.mark.parametrize("length_s", [1, 95])
def test_scores_without_lips_are_those_of_the_better_order(tmp_path, length_s):
    mix = noise(16_000 * length_s)
    write(tmp_path / "audio/mix/a_b.wav", mix, subtype="FLOAT")
    write_truth(tmp_path, "a_b.wav", mix, order=(1, 0))
    metrics = [SISNRMetric("SI-SNR")]
    scores = {
        infer(tmp_path, tmp_path / f"out{seed}", Rectifiers(seed), metrics=metrics)[1]["SI-SNR"]
        for seed in range(2)
    }
    assert min(scores) > 60
    report, _ = infer(tmp_path, tmp_path / "out", Rectifiers(), metrics=metrics)
    assert report.num_permuted == 1 and "better of both orders" in str(report)


def test_lips_that_give_the_wrong_order_are_not_forgiven(tmp_path):
    mix = noise(16_000)
    write(tmp_path / "audio/mix/a_b.wav", mix, subtype="FLOAT")
    write_truth(tmp_path, "a_b.wav", mix)
    write_mouth(tmp_path, "b", 200, 25)  # says that the positive part, which is s1, is the second speaker's
    metrics = [SISNRMetric("SI-SNR"), SISNRMetric("SI-SNRi", improvement=True)]
    report, logs = infer(tmp_path, tmp_path / "out", LipCued(), lips=lips(), metrics=metrics)
    assert logs["SI-SNR"] < 0 and logs["SI-SNRi"] < logs["SI-SNR"]
    assert report.num_permuted == 0 and "order that the lips gave" in str(report)


def test_truth_in_part_or_absent_or_unreadable(tmp_path):
    mix = noise(16_000)
    for name in ("both_x", "one_x", "none_x", "bad_x"):
        write(tmp_path / f"audio/mix/{name}.wav", mix, subtype="FLOAT")
        write_truth(tmp_path, f"{name}.wav", mix)
    (tmp_path / "audio/s2/one_x.wav").unlink()
    for voice in ("s1", "s2"):
        (tmp_path / f"audio/{voice}/none_x.wav").unlink()
    (tmp_path / "audio/s1/bad_x.wav").write_bytes(b"no audio")
    report, logs = infer(tmp_path, tmp_path / "out", Rectifiers(), metrics=[SISNRMetric("SI-SNR")])
    assert report.num_written == 4 and report.num_scored == 2
    assert logs["SI-SNR"] > 60
    assert [os.path.basename(path) for path, _ in report.failures] == ["bad_x.wav"]
    assert "not scored" in report.failures[0][1]


def test_several_parts_get_a_folder_each(tmp_path):
    write(tmp_path / "audio/mix/a_b.wav", noise(100))
    dataset = CustomDirDataset(tmp_path)
    inferencer = Inferencer(
        model=Shares(), datasets={"val": dataset, "test": dataset}, save_path=tmp_path / "out"
    )
    assert inferencer.run_inference() == {"val": {}, "test": {}}
    assert (tmp_path / "out/val/s1/a_b.wav").is_file() and (tmp_path / "out/test/s2/a_b.wav").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_format": "ogg"}, "inferencer.format=ogg"),
        ({"batch_size": 0}, "inferencer.batch_size=0"),
        ({"shifts": 0}, "inferencer.shifts=0"),
        ({"window_s": 1, "overlap_s": 0.9}, "inferencer.overlap_s"),
        ({"window_s": 0}, "inferencer.window_s"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, options, message):
    write(tmp_path / "audio/mix/a_b.wav", noise(100))
    with pytest.raises(ValueError, match=message):
        infer(tmp_path, tmp_path / "out", **options)


def test_truth_is_never_overwritten(tmp_path):
    mix = write(tmp_path / "audio/mix/a_b.wav", noise(100))
    write_truth(tmp_path, "a_b.wav", noise(100))
    before = (tmp_path / "audio/s1/a_b.wav").read_bytes()
    with pytest.raises(ValueError, match="save_path"):
        infer(tmp_path, mix.parent.parent)
    assert (tmp_path / "audio/s1/a_b.wav").read_bytes() == before


def test_datasets_without_recordings_on_disk_are_refused(tmp_path):
    class Invented:
        index = ({"voice": "x"},)

    with pytest.raises(ValueError, match="Invented"):
        Inferencer(model=Shares(), datasets={"train": Invented()}, save_path=tmp_path)


@pytest.mark.parametrize(
    "target", ["os.getcwd", "src.model.band_separator.torch.os.getcwd", "src.model.blocks"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_checkpoint_may_only_name_separators(tmp_path, target, nested):
    model = {"_target_": target}
    if nested:
        model = {"_target_": "src.model.BandSeparator", "visual_dim": [model]}
    save_checkpoint(tmp_path / "last.pt", {"state_dict": {}, "config": {"model": model}})
    with pytest.raises(CheckpointError, match=target.replace(".", r"\.")):
        load_separator(tmp_path)


# Peak memory of a run, minus what is in use before it, in MiB. The separator works on all samples at once if let.
MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from pipeline.mouths import iter_mouth
from src.datasets.custom_dir import CustomDirDataset
from src.trainer.inferencer import Inferencer
from src.trainer.lip_source import LipSource

torch.set_num_threads(1)
class Halves(nn.Module):
    def forward(self, mix, **batch):
        return {"estimates": torch.stack([mix, mix], dim=1) / 2}
class Brightness:
    identity = {"dim": 512}
    def embed_file(self, path):
        means = [chunk[:, ::8, ::8].mean(axis=(1, 2), dtype=np.float32) for chunk in iter_mouth(path)]
        return np.repeat(np.concatenate(means).astype(np.float16)[:, None], 512, axis=1)
root = Path(sys.argv[1])
source = LipSource(dim=512, cache=None, front_end=Brightness(), cache_decides=False)
inferencer = Inferencer(
    model=Halves(), datasets={"custom": CustomDirDataset(root)}, save_path=root / "out", lips=source, batch_size=4
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
inferencer.run_inference()
report = inferencer.reports["custom"]
assert report.complete and not report.remarks, str(report)
total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((total - before) // 1024, total // 1024)
"""


@pytest.mark.parametrize(
    ("minutes", "more_mib", "total_mib"),
    [
        # Audio alone would take 230 MiB an array whole at 48 kHz, one video 111 MiB raw.
        (10, 160, 3072),
        pytest.param(
            60,
            400,
            3072,
            marks=pytest.mark.skipif(
                "LONG_TESTS" not in os.environ, reason="half a minute; set LONG_TESTS=1"
            ),
        ),
    ],
)
def test_memory_does_not_grow_with_a_recording(tmp_path, minutes, more_mib, total_mib):
    block = noise(48_000 * 60)
    (tmp_path / "audio/mix").mkdir(parents=True)
    with soundfile.SoundFile(tmp_path / "audio/mix/a_b.wav", "w", 48_000, 1, "PCM_16") as file:
        for _ in range(minutes):
            file.write(block)
    (tmp_path / "mouths").mkdir()
    np.savez_compressed(tmp_path / "mouths/a.npz", data=np.zeros((1500 * minutes, 88, 88), np.uint8))
    os.link(tmp_path / "mouths/a.npz", tmp_path / "mouths/b.npz")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)], cwd=ROOT_PATH, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    more, total = map(int, done.stdout.split())
    assert more < more_mib and total < total_mib, (more, total)
    assert soundfile.info(tmp_path / "out/s2/a_b.wav").frames == 48_000 * 60 * minutes
