"""Augmentation measured: ratios, rates, levels, and lips that stay in step."""

import numpy as np
import pytest
import soundfile
import torch

from src.transforms import (
    AddNoise,
    FormantShift,
    FrameDrop,
    FrameShift,
    RandomEqualizer,
    RandomGain,
    RecordedRooms,
    RoomImpulseResponse,
    SimulatedRooms,
    StreamDrop,
)
from src.transforms.noise import coloured_noise

RATE = 16000


@pytest.fixture(autouse=True)
def seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def item(num_samples=RATE, num_frames=25, has_lips=(True, True)) -> dict:
    sources = torch.randn(2, num_samples) * 0.1
    mask = torch.tensor(has_lips)
    return {
        "mix": sources.sum(0),
        "sources": sources,
        "visual": (torch.randn(2, num_frames, 4) + 5) * mask[:, None, None],
        "visual_mask": mask,
    }


def snr_db(clean, noisy) -> float:
    return float(10 * torch.log10(clean.square().mean() / (noisy - clean).square().mean()))


def write_noises(folder) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(folder / "long.wav", rng.uniform(-0.5, 0.5, 5 * RATE), RATE)
    soundfile.write(folder / "short.flac", rng.uniform(-0.01, 0.01, RATE // 3), RATE)
    soundfile.write(folder / "other.mp3", rng.uniform(-0.1, 0.1, 2 * 44100), 44100)


@pytest.mark.parametrize("kind", ["coloured", "recorded"])
def test_noise_has_the_ratio_asked_for_and_spares_the_sources(tmp_path, kind):
    write_noises(tmp_path)
    transform = AddNoise(p=1.0, snr_db=[3, 12], folder=tmp_path if kind == "recorded" else None)
    ratios = []
    for _ in range(60):
        clean = item()
        noisy = transform(clean)
        assert torch.equal(noisy["sources"], clean["sources"])
        assert torch.equal(clean["mix"], clean["sources"].sum(0))  # what came in is unchanged
        ratios.append(snr_db(clean["mix"], noisy["mix"]))
    assert min(ratios) > 2.99 and max(ratios) < 12.01
    assert min(ratios) < 5 and max(ratios) > 10


def test_noise_of_a_folder_is_its_recordings(tmp_path):
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 3000)
    soundfile.write(tmp_path / "n.wav", wave, RATE)
    clean = item(num_samples=8000)
    added = AddNoise(p=1.0, folder=tmp_path)(clean)["mix"] - clean["mix"]
    expected = torch.from_numpy(np.tile(wave, 3)[:8000]).float()
    similarity = torch.nn.functional.cosine_similarity(added, expected, dim=0)
    assert similarity > 0.999  # repeated, as it is shorter


def test_noise_leaves_silence():
    silent = {"mix": torch.zeros(1000)}
    assert torch.equal(AddNoise(p=1.0)(silent)["mix"], torch.zeros(1000))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour_of_noise(exponent):
    power = torch.fft.rfft(coloured_noise(2**18, exponent)).abs().square()
    octaves = [power[2**n : 2 ** (n + 1)].mean().log2() for n in range(8, 16)]
    slope = np.polyfit(range(8), octaves, 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


@pytest.mark.parametrize("transform", [AddNoise, RandomGain, FrameDrop, StreamDrop])
def test_probability_of_an_item_to_change(transform):
    changed = 0
    for _ in range(400):
        before = item(num_samples=100)
        after = transform(p=0.3)(before)
        changed += any(not torch.equal(before[key], after[key]) for key in before)
    assert 0.2 < changed / 400 < 0.4


def test_lips_are_shifted_by_whole_frames_each_on_their_own():
    frames = torch.arange(50, dtype=torch.float32)[None, :, None].repeat(2, 1, 3)
    seen = set()
    for _ in range(100):
        lips = FrameShift(p=1.0, frames=[-1, 2])({"visual": frames})["visual"]
        shifts = (torch.arange(50)[None] - lips[..., 0])[:, 5:-5]
        assert (shifts == shifts[:, :1]).all()
        assert lips.min() >= 0 and lips.max() <= 49
        seen.add(tuple(int(shift) for shift in shifts[:, 0]))
    assert {shift for pair in seen for shift in pair} == {-1, 0, 1, 2}
    assert len(seen) > 12
    assert "visual" not in FrameShift(p=1.0)({"mix": torch.zeros(3)})
    with pytest.raises(ValueError, match="frames"):
        FrameShift(frames=[2, 1])


def test_gain_keeps_the_sum():
    levels = []
    for _ in range(100):
        before = item(num_samples=200)
        after = RandomGain(gain_db=[-12, 3])(before)
        torch.testing.assert_close(after["mix"], after["sources"].sum(0))
        levels.append(float(20 * torch.log10(after["mix"].norm() / before["mix"].norm())))
    assert -12.01 < min(levels) < -9 and 0 < max(levels) < 3.01


@pytest.mark.parametrize(("share", "run_frames"), [(0.1, 1.0), (0.2, 4.0), (0.5, 8.0)])
def test_share_and_runs_of_frames_dropped(share, run_frames):
    frames = torch.arange(20000, dtype=torch.float32)[None, :, None].repeat(2, 1, 1) + 1
    held = FrameDrop(p=1.0, share=share, run_frames=run_frames)({"visual": frames})["visual"]
    lost = (held != frames)[..., 0]
    assert lost.float().mean() == pytest.approx(share, rel=0.15)
    begins = (lost[:, 1:] & ~lost[:, :-1]).sum()
    assert float(lost.sum() / begins) == pytest.approx(run_frames, rel=0.15)
    assert not torch.equal(lost[0], lost[1])  # each speaker's own
    # What is shown is the frame before, which was not lost itself.
    row = held[0, :, 0]
    first_kept = int(torch.nonzero(~lost[0])[0])
    assert (row[first_kept + 1 :] - row[first_kept:-1] >= 0).all()
    shown = set(row.long().tolist())
    assert not shown & set((torch.nonzero(lost[0]).flatten() + 1).tolist())


def test_stream_drop_never_takes_the_last_lips():
    results = []
    for has_lips in ((True, True), (True, False), (False, True)):
        for _ in range(100):
            after = StreamDrop(p=1.0)(item(has_lips=has_lips, num_samples=10))
            assert after["visual_mask"].sum() == 1
            assert (after["visual"].abs().sum((1, 2)) > 0).tolist() == after["visual_mask"].tolist()
            if all(has_lips):
                results.append(bool(after["visual_mask"][0]))
    assert 30 < sum(results) < 70  # either of the two
    before = item()
    after = StreamDrop(p=0.0, p_both=1.0)(before)
    assert not after["visual_mask"].any() and after["visual"].abs().sum() == 0
    assert before["visual_mask"].all() and before["visual"].abs().sum() > 0


@pytest.mark.parametrize("transform", [FrameDrop(p=1.0), StreamDrop(p=1.0)])
def test_visual_transforms_pass_audio_only_items(transform):
    audio_only = {"mix": torch.ones(3)}
    assert transform(audio_only) == audio_only


def lag(voice: torch.Tensor, wet: torch.Tensor, reach: int = 400) -> int:
    """By how many samples ``wet`` comes after ``voice``, where they are most alike."""
    spectrum = torch.fft.rfft(wet, 2 * wet.numel()) * torch.fft.rfft(voice, 2 * voice.numel()).conj()
    likeness = torch.fft.irfft(spectrum)
    return int(torch.cat([likeness[-reach:], likeness[: reach + 1]]).argmax()) - reach


@pytest.fixture(scope="module")
def simulated():
    return SimulatedRooms(num_rooms=6, rt60_s=[0.15, 0.3], distance_m=[0.5, 2.0], size_m=[4, 7])


def test_simulated_rooms_keep_the_voice_in_step(simulated):
    voice = torch.randn(2 * RATE)
    for number in range(len(simulated)):
        response = simulated.response(number)
        assert response[:2].abs().argmax() <= 1
        wet = torch.nn.functional.conv1d(
            torch.nn.functional.pad(voice, (len(response) - 1, 0))[None, None], response.flip(0)[None, None]
        )[0, 0]
        assert abs(lag(voice, wet)) <= 1
        tail = response[800:].square().sum() / response.square().sum()
        assert tail > 1e-4  # it is a room


def test_simulated_rooms_are_repeatable_and_different(simulated):
    again = SimulatedRooms(num_rooms=6, rt60_s=[0.15, 0.3], distance_m=[0.5, 2.0], size_m=[4, 7])
    assert torch.equal(again.response(3), simulated.response(3))
    assert again.response(2).shape != simulated.response(3).shape or not torch.equal(
        again.response(2), simulated.response(3)
    )
    assert simulated.response(3) is simulated.response(3)


def test_simulated_reverberation_time_is_near_the_one_asked_for():
    room = SimulatedRooms(num_rooms=1, rt60_s=[0.2, 0.2], size_m=[5, 5]).response(0).double()
    decay = 10 * torch.log10(room.flip(0).square().cumsum(0).flip(0) / room.square().sum())
    fall = [int(torch.nonzero(decay < level)[0]) for level in (-5, -25)]
    assert 3 * (fall[1] - fall[0]) / RATE == pytest.approx(0.2, rel=0.5)  # T20


@pytest.mark.parametrize("delay", [0, 37, 800])
def test_recorded_rooms_lose_their_delay(tmp_path, delay):
    response = np.zeros(4000)
    response[delay + np.array([0, 500, 900])] = (0.5, 0.7, -0.3)  # a reflection louder than the direct sound
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    rooms = RecordedRooms(tmp_path)
    voice = torch.randn(RATE)
    wet = RoomImpulseResponse(rooms, p=1.0)(voice)
    assert wet.shape == voice.shape
    scale = np.sqrt(0.5**2 + 0.7**2 + 0.3**2)
    expected = 0.5 * voice
    expected[500:] += 0.7 * voice[:-500]
    expected[900:] -= 0.3 * voice[:-900]
    torch.testing.assert_close(wet, expected / scale, atol=1e-4, rtol=0)


def test_rooms_are_left_out_by_chance(tmp_path):
    soundfile.write(tmp_path / "room.wav", [0.5, 0.0, 0.2], RATE)
    voice = torch.randn(100)
    transform = RoomImpulseResponse(RecordedRooms(tmp_path), p=0.5)
    dry = sum(torch.equal(transform(voice), voice) for _ in range(200))
    assert 70 < dry < 130


def vowel(pitch_hz: float, formants_hz: tuple[float, ...]) -> torch.Tensor:
    """A second of pulses through resonances 200 Hz wide."""
    pulses = torch.zeros(RATE)
    pulses[torch.arange(0, RATE, RATE / pitch_hz).long()] = 1.0
    hertz = torch.fft.rfftfreq(RATE, 1 / RATE)
    response = sum(1 / (1 + ((hertz - formant) / 100).square()) for formant in formants_hz)
    return torch.fft.irfft(torch.fft.rfft(pulses) * response)


def centre_hz(voice: torch.Tensor, low: int, high: int) -> float:
    """Mean frequency of the power between two."""
    power = torch.fft.rfft(voice).abs().square()[low:high]
    return float((power * torch.arange(low, high)).sum() / power.sum())


@pytest.mark.parametrize("ratio", [0.85, 1.0, 1.2])
def test_formants_move_and_pitch_and_time_stay(ratio):
    pitch_hz = 125
    voice = vowel(pitch_hz, (700.0, 2500.0))
    moved = FormantShift(p=1.0, ratio=[ratio, ratio])(voice)
    assert moved.shape == voice.shape
    for formant in (700, 2500):
        before = centre_hz(voice, int(formant * 0.7), int(formant * 1.3))
        after = centre_hz(moved, int(formant * ratio * 0.7), int(formant * ratio * 1.3))
        assert after / before == pytest.approx(ratio, rel=0.03)
    power = torch.fft.rfft(moved).abs().square()
    harmonics = power[pitch_hz::pitch_hz].sum() / power.sum()
    assert harmonics > 0.95  # pulses at the same times
    assert abs(lag(voice, moved)) <= 1
    if ratio == 1:
        torch.testing.assert_close(moved, voice, atol=1e-5, rtol=0)


def test_formant_shift_leaves_silence_and_pieces_without_a_frame():
    transform = FormantShift(p=1.0)
    assert torch.equal(transform(torch.zeros(RATE)), torch.zeros(RATE))
    assert torch.equal(transform(torch.ones(100)), torch.ones(100))


def test_equalizer_is_smooth_bounded_and_without_delay():
    click = torch.zeros(2 * RATE)
    click[RATE] = 1.0
    highest, lowest = [], []
    for _ in range(50):
        heard = RandomEqualizer(p=1.0, gain_db=6.0, num_points=5)(click)
        assert int(heard.abs().argmax()) == RATE
        gains_db = 20 * torch.fft.rfft(heard).abs().log10()
        highest.append(float(gains_db.max()))
        lowest.append(float(gains_db.min()))
        steps_db = gains_db[240::120][:100].diff().abs()  # steps of 60 Hz from 120 Hz
        assert steps_db.max() < 8  # at most 12 dB in the 1.8 octaves between two points
    assert max(highest) < 6.1 and min(lowest) > -6.1
    assert max(highest) > 4 and min(lowest) < -4


@pytest.mark.parametrize("transform", [FormantShift, RandomEqualizer])
def test_voices_are_left_alone_by_chance(transform):
    voice = torch.randn(4000)
    same = sum(torch.equal(transform(p=0.4)(voice), voice) for _ in range(200))
    assert 90 < same < 150


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: AddNoise(p=1.5),
        lambda folder: AddNoise(snr_db=[10, 0]),
        lambda folder: AddNoise(folder=folder),
        lambda folder: RecordedRooms(folder / "absent"),
        lambda folder: SimulatedRooms(num_rooms=0),
        lambda folder: SimulatedRooms(rt60_s=[0, 1]),
        lambda folder: SimulatedRooms(distance_m=[5, 6], size_m=[3, 4]),
        lambda folder: FormantShift(ratio=[1.2, 0.8]),
        lambda folder: FormantShift(ratio=[0, 1]),
        lambda folder: RandomEqualizer(gain_db=-1),
        lambda folder: RandomEqualizer(num_points=1),
        lambda folder: FrameDrop(share=1.0),
        lambda folder: FrameDrop(share=0.9, run_frames=2),
        lambda folder: StreamDrop(p=-0.1),
        lambda folder: RandomGain(gain_db=[1]),
    ],
)
def test_impossible_options_are_refused(tmp_path, make):
    with pytest.raises(ValueError, match=r"must|no audio|no such|does not fit|cannot be reached"):
        make(tmp_path)
