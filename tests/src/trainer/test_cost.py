"""Operations against counts by hand, time in turns, memory of known allocations, sizes on disk, pictures."""

import itertools
import json
import subprocess
import sys

import hydra
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from src.model import BandSeparator
from src.trainer.checkpoint import save_checkpoint
from src.trainer.cost.cost_table import format_markdown
from src.trainer.cost.macs import count_macs
from src.trainer.cost.memory import StepError, peak_memory
from src.trainer.cost.pareto import pareto_front, read_scores
from src.trainer.cost.profile import profile_models
from src.trainer.cost.size import disk_bytes
from src.trainer.cost.subjects import find_subjects
from src.trainer.cost.timing import measure
from src.trainer.cost.workload import INFERENCE, SEPARATOR, TRAINING, Workload
from src.utils.io_utils import ROOT_PATH

SMALL = {
    "num_bands": 8,
    "channels": 8,
    "squeezed": 2,
    "cue_channels": 8,
    "shared_blocks": 1,
    "voice_blocks": 1,
    "anonymous_blocks": 0,
}


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def packed() -> torch.nn.utils.rnn.PackedSequence:
    return pack_padded_sequence(rand(2, 5, 3), [5, 3], batch_first=True)


# B = 2 sequences of L = 5 places with 3 channels unless said; (call, kind, MACs by hand)
HAND_COUNTS = {
    "linear": (lambda: nn.Linear(3, 7)(rand(2, 5, 3)), "matmul", 10 * 3 * 7),
    "einsum": (lambda: torch.einsum("nk,kmc->nmc", rand(5, 3), rand(3, 2, 4)), "matmul", 5 * 3 * 2 * 4),
    "bmm": (lambda: rand(2, 5, 3) @ rand(2, 3, 4), "matmul", 2 * 5 * 3 * 4),
    "vectors": (lambda: (rand(5, 3) @ rand(3), rand(3) @ rand(3)), "matmul", 5 * 3 + 3),
    "complex": (lambda: torch.complex(rand(5, 3), rand(5, 3)) @ (1j * rand(3, 4)), "matmul", 4 * 5 * 3 * 4),
    # 2 sequences, 4 heads, 5 queries, 6 keys: 3 channels of the keys, 7 of the values
    "attention": (
        lambda: functional.scaled_dot_product_attention(rand(2, 4, 5, 3), rand(2, 4, 6, 3), rand(2, 4, 6, 7)),
        "matmul",
        2 * 4 * 5 * 6 * (3 + 7),
    ),
    "causal attention": (
        lambda: functional.scaled_dot_product_attention(*[rand(2, 4, 5, 3)] * 3, is_causal=True),
        "matmul",
        2 * 4 * 5 * 5 * (3 + 3),
    ),
    # projections of query, key, value and output, then two products a head
    "multihead layer": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True).eval()(
            *[rand(2, 5, 4)] * 3, need_weights=False
        ),
        "matmul",
        2 * (4 * 5 * 4 * 4 + 2 * 5 * 5 * (2 + 2)),
    ),
    "grouped convolution": (
        lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2)(rand(2, 4, 9)),
        "convolution",
        2 * 4 * 6 * (4 // 2) * 3,
    ),
    "padded dilated convolution": (
        lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=(2, 1))(rand(2, 4, 9, 5)),
        "convolution",
        2 * 9 * 5 * 6 * 4 * 9,
    ),
    "transposed convolution": (
        lambda: nn.ConvTranspose1d(4, 6, 8, stride=4)(rand(2, 4, 9)),
        "convolution",
        2 * 9 * 4 * 6 * 8,
    ),
    # gates x (inputs + state) a step
    "LSTM": (lambda: nn.LSTM(3, 4)(rand(5, 2, 3)), "recurrence", 10 * 4 * 4 * (3 + 4)),
    "two layers both ways": (
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)(rand(2, 5, 3)),
        "recurrence",
        10 * 2 * (4 * 4 * (3 + 4) + 4 * 4 * (8 + 4)),
    ),
    "projected LSTM": (
        lambda: nn.LSTM(3, 4, proj_size=2)(rand(5, 2, 3)),
        "recurrence",
        10 * (4 * 4 * (3 + 2) + 4 * 2),
    ),
    "packed LSTM": (lambda: nn.LSTM(3, 4, batch_first=True)(packed()), "recurrence", 8 * 4 * 4 * (3 + 4)),
    "GRU": (lambda: nn.GRU(3, 4)(rand(5, 2, 3)), "recurrence", 10 * 3 * 4 * (3 + 4)),
    "packed GRU": (lambda: nn.GRU(3, 4, batch_first=True)(packed()), "recurrence", 8 * 3 * 4 * (3 + 4)),
    "RNN": (
        lambda: nn.RNN(3, 4, nonlinearity="relu")(rand(5, 2, 3)),
        "recurrence",
        10 * 4 * (3 + 4),
    ),
    "LSTM cell": (lambda: nn.LSTMCell(3, 4)(rand(2, 3)), "recurrence", 2 * 4 * 4 * (3 + 4)),
    "GRU cell": (lambda: nn.GRUCell(3, 4)(rand(2, 3)), "recurrence", 2 * 3 * 4 * (3 + 4)),
    # 5 frames of 512: 5/2 x 512 x 9 operations each, two a MAC
    "STFT": (
        lambda: torch.stft(rand(2, 1024), 512, 256, window=torch.ones(512), return_complex=True),
        "fourier",
        2 * 5 * 5760,
    ),
    "inverse STFT": (
        lambda: torch.istft(
            torch.complex(rand(2, 257, 5), rand(2, 257, 5)), 512, 256, window=torch.ones(512)
        ),
        "fourier",
        2 * 5 * 5760,
    ),
    "complex transform": (lambda: torch.fft.fft(1j * rand(3, 256)), "fourier", 3 * 5 * 256 * 8 // 2),
}


@pytest.mark.parametrize("name", HAND_COUNTS)
def test_macs_equal_counts_by_hand(name):
    call, kind, expected = HAND_COUNTS[name]
    count = count_macs(call)
    assert count.by_kind[kind] == expected
    assert count.total == expected  # and nothing of another kind


def test_macs_of_the_default_separator_equal_the_sum_of_its_layers():
    """2 s at hop 256 are 127 frames; 24 bands of 48 channels; 2 shared blocks, 3 for each of two voices."""
    model = BandSeparator().eval()
    count = count_macs(lambda: model(rand(1, 32_000), rand(1, 2, 50, 512)))
    frames, bins, bands, channels, full_band, cue = 127, 257, 24, 48, 24 * 6, 64
    blocks, voice_blocks = 2 + 2 * 3, 2 * 3
    places = frames * bands
    by_hand = {
        "local convolution": blocks * places * channels * channels * 9,
        "local output": blocks * places * channels * channels,
        "squeeze, spread": blocks * places * channels * 6 * 2,
        "full-band convolution, gate": blocks * frames * full_band * full_band * (3 + 1),
        "exchange": voice_blocks * places * channels * channels,
        "cues": voice_blocks * frames * cue * (2 * channels + full_band),
        "encoder": frames * bins * 3 * channels,
        "decoder": 2 * frames * channels * bins,
        # An 11-frame description of each voice after the first block, and its product with each pair of lips.
        "matching": 2 * (places * channels * 6 + frames * full_band * 11 * 8) + 4 * frames * 8,
        "lips": 2 * 50 * (8 * 512 * 5 + cue * 8 + cue * cue * (5 + 3)),
        "Fourier": 3 * frames * 5760,  # the mixture's, and back for each voice
    }
    assert count.total == sum(by_hand.values())
    assert by_hand["local convolution"] > count.total / 2
    assert count.flop_counter == count.total - by_hand["Fourier"]


def test_published_counts_miss_fused_recurrences_and_this_one_does_not():
    model = nn.LSTM(3, 4)
    assert count_macs(lambda: model(rand(5, 2, 3))).flop_counter == 0  # a fused kernel on a CPU


def test_steps_are_timed_in_turns_and_warm_up_is_left_out():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure(steps, device="cpu", warmup=1, repeats=3)
    assert "".join(calls) == "abababab"
    for time in times.values():
        assert len(time.runs_s) == 3 and 0 < time.p10_s <= time.median_s <= time.p90_s
    with pytest.raises(ValueError, match="repeats=0"):
        measure(steps, device="cpu", warmup=0, repeats=0)


def test_a_step_without_room_leaves_the_others_timed():
    def no_room():
        raise torch.OutOfMemoryError("CUDA out of memory")

    times = measure({"a": no_room, "b": lambda: None}, device="cpu", warmup=1, repeats=3)
    assert list(times) == ["b"] and len(times["b"].runs_s) == 3


def test_memory_of_a_known_allocation():
    """256 MB in small pieces, in a process that held more before and has the freed heap still resident."""
    code = (
        "import json, torch; from dataclasses import asdict; from src.trainer.cost.memory import peak_of_call\n"
        "pieces = lambda: [torch.ones(20_000) for _ in range(3200)]\n"
        "before, top = pieces(), torch.ones(10)\n"
        "del before\n"
        "print(json.dumps(asdict(peak_of_call(pieces, 'cpu'))))"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT_PATH, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    peak = json.loads(child.stdout)
    if peak["source"] != "VmHWM":
        pytest.skip("this system keeps no peak of resident memory that can be begun anew")
    assert peak["step_bytes"] == pytest.approx(256e6, rel=0.1)


def test_a_step_that_fails_in_its_process_says_why():
    empty = {"_target_": "torch.nn.Identity"}
    work = Workload(empty, empty, empty, None, 0, seconds=0.1, batch_size=1, device="cpu")
    with pytest.raises(StepError, match=r"(?s)memory of separator, inference.*TypeError"):
        peak_memory(work, SEPARATOR, INFERENCE)


def test_bytes_on_disk():
    model = nn.Linear(100, 50)
    single, half = (disk_bytes(model.state_dict(), dtype) for dtype in (torch.float32, torch.float16))
    assert single - half == 2 * 50 * 101
    assert 0 < single - 4 * 50 * 101 < 200  # the file's header
    tied = nn.ModuleList([model, model])
    assert disk_bytes(tied.state_dict(), torch.float32) - single < 200


@pytest.fixture
def composed():
    with hydra.initialize_config_dir(version_base=None, config_dir=str(ROOT_PATH / "src/configs")):
        yield


def test_subjects_come_from_configurations_and_checkpoints(tmp_path, composed):
    front_end = {"network": "lrw_snv1x_tcn1x", "features": "frontend", "dim": 1024}
    model = {"_target_": "src.model.BandSeparator", "visual_dim": 1024, **SMALL}
    state = BandSeparator(visual_dim=1024, **SMALL).state_dict()
    content = {"state_dict": state, "config": {"model": model}, "front_end": front_end}
    save_checkpoint(tmp_path / "best.pt", content)
    options = {"lip_reader": "lrw_resnet18_dctcn", "overrides": ["model.channels=16"]}
    named, without_lips, trained = find_subjects(
        models=["small", "audio_only"], checkpoints=str(tmp_path), **options
    )
    assert (named.network, named.lip_dim, named.model["visual_dim"]) == ("lrw_resnet18_dctcn", 512, 512)
    assert named.model["channels"] == without_lips.model["channels"] == 16
    assert (without_lips.network, without_lips.lip_dim) == (None, 0)
    assert (trained.network, trained.lip_dim, trained.model) == ("lrw_snv1x_tcn1x", 1024, model)
    assert trained.loss == named.loss and trained.name == str(tmp_path)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"models": ["nothing"]}, "nothing unknown; known are: .*audio_only, base"),
        ({"models": []}, "nothing to profile"),
        ({"models": ["audio_only", "audio_only"]}, "more than once: audio_only"),
        ({"models": "audio_only", "lip_reader": "lrw_resnet"}, "'lrw_resnet' is unknown"),
    ],
)
def test_wrong_names_are_refused(named, message, composed):
    given = {"checkpoints": [], "lip_reader": "lrw_snv05x_tcn1x", "overrides": [], **named}
    with pytest.raises(ValueError, match=message):
        find_subjects(**given)


def test_memory_and_sweeps_of_a_profile(composed):
    """Memory repeats; four times the length costs at least twice as much; training costs more than inference."""
    overrides = [f"model.{key}={value}" for key, value in SMALL.items()]
    subjects = find_subjects(
        models="audio_only", checkpoints=[], lip_reader="lrw_snv05x_tcn1x", overrides=overrides
    )
    report = profile_models(subjects, devices=["cpu"], seconds=8, warmup=1, repeats=1, length_sweep=[8, 32])
    (profile,), (again, point) = report.profiles, report.sweep
    assert list(profile.sizes) == list(profile.costs["cpu"]) == [SEPARATOR]
    costs = profile.costs["cpu"][SEPARATOR]
    assert costs[TRAINING].memory.step_bytes > costs[INFERENCE].memory.step_bytes > 1e6
    assert again.memory.step_bytes == pytest.approx(costs[INFERENCE].memory.step_bytes, rel=0.05)
    assert point.memory.step_bytes > 2 * costs[INFERENCE].memory.step_bytes
    assert point.time.median_s > costs[INFERENCE].time.median_s
    text = format_markdown(report)
    assert "lip reader" not in text.splitlines()[3] and "## Separator alone" in text
    with pytest.raises(ValueError, match=r"batch_size.* 0 is not positive"):
        profile_models(subjects, devices=["cpu"], batch_sweep=[0])


def test_what_has_no_room_is_told_and_the_rest_reported(composed, monkeypatch):
    """Training does not fit the memory, in the process that measures it."""
    measured = "src.trainer.cost.profile.peak_memory"
    monkeypatch.setattr(measured, lambda *step: None if TRAINING in step else peak_memory(*step))
    overrides = [f"model.{key}={value}" for key, value in SMALL.items()]
    subjects = find_subjects(
        models="tiny", checkpoints=[], lip_reader="lrw_snv05x_tcn1x", overrides=overrides
    )
    report = profile_models(subjects, devices=["cpu"], seconds=0.4, warmup=0, repeats=1)
    costs = report.profiles[0].costs["cpu"]
    assert costs[SEPARATOR][TRAINING].time is None and costs[SEPARATOR][INFERENCE].time is not None
    assert report.profiles[0].loop_ratio("cpu") is None
    row = next(
        line for line in format_markdown(report).splitlines() if "separator" in line and "| cpu" in line
    )
    assert [cell.strip() for cell in row.split("|")[-4:-1]] == ["-", "-", "-"]


def test_pareto_front_holds_what_no_other_beats():
    generator = torch.Generator().manual_seed(0)
    costs, scores = torch.randint(0, 8, (2, 20), generator=generator).tolist()
    beaten = {
        i
        for i, j in itertools.product(range(20), repeat=2)
        if costs[j] <= costs[i] and scores[j] >= scores[i] and (costs[j], scores[j]) != (costs[i], scores[i])
    }
    front = pareto_front(costs, scores)
    points = {(costs[i], scores[i]) for i in front}
    assert len(points) == len(front)
    assert points == {(costs[i], scores[i]) for i in set(range(20)) - beaten}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,sdri\na,1\n", "no column si_snri"),
        ("model,si_snri\na,high\n", "si_snri=high of a is no number"),
        ("model,si_snri\na\n", "of a is no number"),
    ],
)
def test_scores_that_cannot_be_read_are_named(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scores(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_scores(tmp_path / "absent.csv")
