"""Audio files of every allowed kind come in as mono float32 at 16 kHz, or are refused by name."""

import warnings

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from pipeline import audio_io
from pipeline.audio_io import SAMPLE_RATE_HZ, AudioError, audio_info, list_audio, read_audio


def tone(rate_hz: int, seconds: float, frequency_hz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [("a.wav", "PCM_16", 2**-15), ("a.wav", "FLOAT", 1e-7), ("a.flac", "PCM_24", 2**-23)],
)
def test_lossless_formats_keep_level_and_length(tmp_path, name, subtype, step):
    wave = tone(SAMPLE_RATE_HZ, 1.0)
    soundfile.write(tmp_path / name, wave, SAMPLE_RATE_HZ, subtype=subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_audio(tmp_path / name)
    assert read.dtype == torch.float32
    np.testing.assert_allclose(read.numpy(), wave, atol=step)


def test_float_files_are_not_clipped(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.array([1.5, -2.0], np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")
    assert read_audio(tmp_path / "loud.wav").tolist() == [1.5, -2.0]


def test_mp3_is_aligned_with_its_source(tmp_path):
    rng = np.random.default_rng(0)
    wave = np.convolve(rng.standard_normal(SAMPLE_RATE_HZ), np.ones(16) / 64, "same").astype(np.float32)
    soundfile.write(tmp_path / "a.mp3", wave, SAMPLE_RATE_HZ, format="MP3")
    read = read_audio(tmp_path / "a.mp3").numpy()
    span = slice(1000, 15000)
    lags = range(-200, 201)
    likeness = [np.dot(wave[span], read[1000 + lag : 15000 + lag]) for lag in lags]
    assert lags[int(np.argmax(likeness))] == 0
    assert abs(len(read) - len(wave)) <= 1152  # an mp3 holds whole granules


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_other_rates_keep_pitch_and_duration(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", tone(rate_hz, 1.0), rate_hz, subtype="FLOAT")
    read = read_audio(tmp_path / "a.wav").numpy()
    assert len(read) == SAMPLE_RATE_HZ
    inner = slice(500, -500)  # the ends ring
    np.testing.assert_allclose(read[inner], tone(SAMPLE_RATE_HZ, 1.0)[inner], atol=2e-3)


@pytest.mark.parametrize("rate_hz", [44100, 48000, 11025, 16000])
@pytest.mark.parametrize("seconds", [0.013, 3.0, 5.017])
def test_block_by_block_equals_all_at_once(tmp_path, monkeypatch, rate_hz, seconds):
    monkeypatch.setattr(audio_io, "_BLOCK_S", 1)
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, round(rate_hz * seconds)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, rate_hz, subtype="FLOAT")
    whole = resample(torch.from_numpy(wave), rate_hz, SAMPLE_RATE_HZ)
    read = read_audio(tmp_path / "a.wav")
    assert read.shape == whole.shape
    torch.testing.assert_close(read, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_a_piece_equals_the_same_piece_of_the_whole(tmp_path, name):
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, 3 * SAMPLE_RATE_HZ)
    soundfile.write(tmp_path / name, noise, SAMPLE_RATE_HZ)
    whole = read_audio(tmp_path / name)
    piece = read_audio(tmp_path / name, start=12800, num_samples=16000)
    torch.testing.assert_close(piece, whole[12800:28800], atol=1e-4, rtol=0)
    tail = read_audio(tmp_path / name, start=40000, num_samples=16000)
    torch.testing.assert_close(tail, whole[40000:], atol=1e-4, rtol=0)
    with pytest.raises(AudioError, match="ends before sample 60000"):
        read_audio(tmp_path / name, start=60000, num_samples=100)


def test_a_piece_of_another_rate_lies_at_the_right_place(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(48000, 3.0, 50.0), 48000, subtype="FLOAT")
    piece = read_audio(tmp_path / "a.wav", start=16000, num_samples=8000).numpy()
    assert len(piece) == 8000
    inner = slice(100, -100)
    np.testing.assert_allclose(piece[inner], tone(16000, 3.0, 50.0)[16000:24000][inner], atol=2e-3)


def test_list_audio_finds_every_depth_and_refuses_an_empty_folder(tmp_path):
    with pytest.raises(AudioError, match="no audio file"):
        list_audio(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.FLAC", "deep/er/a.wav", "deep/notes.txt", "._b.FLAC"):
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert list_audio(tmp_path) == [tmp_path / "b.FLAC", tmp_path / "deep/er/a.wav"]
    with pytest.raises(AudioError, match="no such folder"):
        list_audio(tmp_path / "absent")


def test_stereo_is_averaged_with_a_warning_that_names_the_file(tmp_path):
    left, right = tone(SAMPLE_RATE_HZ, 0.5, 300), tone(SAMPLE_RATE_HZ, 0.5, 700)
    soundfile.write(tmp_path / "wide.flac", np.stack([left, right], 1), SAMPLE_RATE_HZ)
    with pytest.warns(UserWarning, match=r"wide\.flac: 2 channels"):
        read = read_audio(tmp_path / "wide.flac")
    np.testing.assert_allclose(read.numpy(), (left + right) / 2, atol=2**-14)


def test_a_long_file_is_read_without_a_copy_of_its_channels(tmp_path):
    """Ten minutes of stereo at 48 kHz hold 58 M samples; the result has 9.6 M of them."""
    import tracemalloc

    quiet = np.zeros((48000, 2), np.int16)
    with soundfile.SoundFile(str(tmp_path / "long.wav"), "w", 48000, 2, "PCM_16") as stream:
        for _ in range(600):
            stream.write(quiet)
    tracemalloc.start()
    with pytest.warns(UserWarning, match="channels"):
        read = read_audio(tmp_path / "long.wav")
    peak = tracemalloc.get_traced_memory()[1]  # numpy's share: the decoded blocks
    tracemalloc.stop()
    assert read.numel() == 600 * SAMPLE_RATE_HZ
    assert peak < 40e6


def test_info_tells_the_file_as_it_is(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros((441, 2)), 44100, subtype="PCM_24")
    info = audio_info(tmp_path / "a.flac")
    assert (info.rate_hz, info.num_samples, info.num_channels) == (44100, 441, 2)
    assert (info.subtype, info.format) == ("PCM_24", "FLAC")


def write_text(path):
    path.write_text("this is no audio, whatever its name says")


def write_nothing(path):
    path.write_bytes(b"")


def write_header_only(path):
    soundfile.write(path, np.zeros(0), SAMPLE_RATE_HZ)


def write_nan(path):
    soundfile.write(path, np.array([0.0, 0.1, np.nan], np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")


def write_damaged_flac(path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SAMPLE_RATE_HZ)
    soundfile.write(path, noise, SAMPLE_RATE_HZ, format="FLAC")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\x00" * (len(data) - len(data) // 2)
    path.write_bytes(bytes(data))


def write_flac_of_unknown_length(path):
    soundfile.write(path, np.zeros(1000), SAMPLE_RATE_HZ, format="FLAC")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that tell the number of samples
    data[22:26] = bytes(4)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_text, "not readable as audio"),
        (write_nothing, "not readable as audio"),
        (write_header_only, "no samples"),
        (write_nan, "NaN or infinite samples, the first at 0.0001 s"),
        (write_flac_of_unknown_length, "tells no length"),
        (write_damaged_flac, "damaged|breaks off"),
        (lambda path: None, "no such audio file"),
        (lambda path: path.mkdir(), "no such audio file"),
    ],
)
def test_useless_files_are_refused_by_name(tmp_path, write, reason):
    path = tmp_path / "00000000042_00000000007.wav"
    write(path)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
