"""The cost of separators: size and operations on any device, time and memory on each device."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from pipeline.frontend import FrontEnd
from pipeline.lipreading.seeded import write_seeded
from src.trainer.cost.hardware import Hardware, find_hardware
from src.trainer.cost.memory import Peak, peak_memory
from src.trainer.cost.size import Size, measure_sizes
from src.trainer.cost.subjects import Subject
from src.trainer.cost.timing import BAR_AFTER_S, Timing, measure
from src.trainer.cost.workload import (
    BOTH,
    INFERENCE,
    LIP_READER,
    SEPARATOR,
    TRAINING,
    LipReaderChoice,
    Workload,
    make_step,
)

SWEEP_REPEATS = 3


@dataclass(frozen=True)
class StepCost:
    """One step on one device; memory is None where it was not measured or did not suffice, time where it did not."""

    time: Timing | None
    memory: Peak | None


@dataclass(frozen=True)
class ModelProfile:
    """One model.

    Attributes:
        name: as the user wrote it.
        lip_reader: its network, None without lips.
        sizes: by part ("separator", "lip reader", "both").
        costs: by device, part and kind of step ("inference", "training").
    """

    name: str
    lip_reader: str | None
    sizes: dict[str, Size]
    costs: dict[str, dict[str, dict[str, StepCost]]]

    @property
    def whole(self) -> str:
        """The part that turns a mixture with its videos into two voices."""
        return BOTH if self.lip_reader else SEPARATOR

    def loop_ratio(self, device: str) -> float | None:
        """Time of a training step that computes its embeddings, over one that finds them cached."""
        loop, cached = (self.costs[device][part][TRAINING].time for part in (BOTH, SEPARATOR))
        return None if loop is None or cached is None else loop.median_s / cached.median_s


@dataclass(frozen=True)
class SweepPoint:
    """Inference of a separator alone on another length or batch; time is None where memory did not suffice."""

    model: str
    device: str
    seconds: float
    batch_size: int
    time: Timing | None
    memory: Peak | None


@dataclass(frozen=True)
class CostReport:
    """Profiles of one run.

    Attributes:
        lip_precision: "network on device" -> precision that the lip reader computes in.
    """

    hardware: Hardware
    seconds: float
    batch_size: int
    repeats: int
    lip_precision: dict[str, str]
    profiles: list[ModelProfile]
    sweep: list[SweepPoint]


def profile_models(
    subjects: Sequence[Subject],
    *,
    devices: Sequence[str],
    seconds: float = 2,
    batch_size: int = 1,
    warmup: int = 3,
    repeats: int = 20,
    memory: bool = True,
    length_sweep: Sequence[float] = (),
    batch_sweep: Sequence[int] = (),
) -> CostReport:
    """Profile several models in one run.

    Args:
        subjects: the models.
        devices: where time and memory are measured.
        seconds: duration of each mixture.
        batch_size: mixtures a step.
        warmup, repeats: rounds of timing.
        memory: whether memory is measured, which takes a process a figure.
        length_sweep: other durations, at `batch_size`.
        batch_sweep: other batch sizes, at `seconds`.

    Raises:
        ValueError: a duration or a number that is not positive.
    """
    for key, values in (
        ("seconds, length_sweep", [seconds, *length_sweep]),
        ("batch_size, batch_sweep", [batch_size, *batch_sweep]),
    ):
        if min(values) <= 0:
            raise ValueError(f"{key}: {min(values)} is not positive")
    with tempfile.TemporaryDirectory() as folder:
        works = _workloads(subjects, Path(folder), seconds, batch_size)
        sizes = {subject.name: measure_sizes(works[subject.name]) for subject in subjects}
        costs: dict[str, dict[str, dict[str, dict[str, StepCost]]]] = {name: {} for name in works}
        precision: dict[str, str] = {}
        sweep: list[SweepPoint] = []
        for device in devices:
            there = {name: replace(work, device=device) for name, work in works.items()}
            front_ends = _load_front_ends(there)
            for choice, front_end in front_ends.items():
                precision[f"{choice.network} on {device}"] = front_end.identity["dtype"]
            measured = _costs(there, front_ends, warmup, repeats, memory)
            for name in works:
                costs[name][device] = measured[name]
            sizes_to_try = [(length, batch_size) for length in length_sweep]
            sizes_to_try += [(seconds, size) for size in batch_sweep]
            for length, size in tqdm(sizes_to_try, desc="sweep", delay=BAR_AFTER_S, disable=None):
                sweep += _sweep_point(there, length, size, repeats, memory)
    profiles = [
        ModelProfile(subject.name, subject.network, sizes[subject.name], costs[subject.name])
        for subject in subjects
    ]
    return CostReport(find_hardware(devices), seconds, batch_size, repeats, precision, profiles, sweep)


def _workloads(
    subjects: Sequence[Subject], folder: Path, seconds: float, batch_size: int
) -> dict[str, Workload]:
    """Workloads by name on the CPU. Seeded weights stand in for published ones: they cost the same."""
    choices = {}
    for subject in subjects:
        if subject.network is not None:
            weights = folder / f"{subject.network}.pt"
            if not weights.exists():
                write_seeded(subject.network, weights)
            choices[subject.name] = LipReaderChoice(subject.network, subject.features, str(weights))
    return {
        subject.name: Workload(
            model=subject.model,
            loss=subject.loss,
            optimizer=subject.optimizer,
            lip_reader=choices.get(subject.name),
            lip_dim=subject.lip_dim,
            seconds=seconds,
            batch_size=batch_size,
            device="cpu",
        )
        for subject in subjects
    }


def _load_front_ends(works: dict[str, Workload]) -> dict[LipReaderChoice, FrontEnd]:
    choices = {work.lip_reader: work.device for work in works.values() if work.lip_reader is not None}
    return {choice: choice.load(device) for choice, device in choices.items()}


def _costs(
    works: dict[str, Workload],
    front_ends: dict[LipReaderChoice, FrontEnd],
    warmup: int,
    repeats: int,
    memory: bool,
) -> dict[str, dict[str, dict[str, StepCost]]]:
    """Costs by model, part and kind of step. A lip reader that several models share is measured once."""
    wanted: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    owners: dict[LipReaderChoice, str] = {}
    for name, work in works.items():
        for part in work.parts:
            owner = owners.setdefault(work.lip_reader, name) if part == LIP_READER else name
            for kind in (INFERENCE,) if part == LIP_READER else (INFERENCE, TRAINING):
                wanted[name, part, kind] = (owner, part, kind)
    distinct = list(dict.fromkeys(wanted.values()))
    peaks = dict.fromkeys(distinct)
    if memory:
        bar = tqdm(distinct, desc="memory", unit="process", delay=BAR_AFTER_S, disable=None)
        peaks = {key: peak_memory(works[key[0]], *key[1:]) for key in bar}
    # What has no room in a process of its own has none here, and would end this one.
    steps = {
        key: make_step(works[key[0]], *key[1:], front_ends.get(works[key[0]].lip_reader))
        for key in distinct
        if not memory or peaks[key] is not None
    }
    device = next(iter(works.values())).device
    times = measure(steps, device=device, warmup=warmup, repeats=repeats, title=f"timing on {device}")
    costs: dict[str, dict[str, dict[str, StepCost]]] = {}
    for (name, part, kind), key in wanted.items():
        costs.setdefault(name, {}).setdefault(part, {})[kind] = StepCost(times.get(key), peaks[key])
    return costs


def _sweep_point(
    works: dict[str, Workload], seconds: float, batch_size: int, repeats: int, memory: bool
) -> list[SweepPoint]:
    """Inference of every separator alone at one size."""
    device = next(iter(works.values())).device
    works = {name: replace(w, seconds=seconds, batch_size=batch_size) for name, w in works.items()}
    peaks: dict[str, Peak | None] = dict.fromkeys(works)
    if memory:
        peaks = {name: peak_memory(work, SEPARATOR, INFERENCE) for name, work in works.items()}
    # What has no room in a process of its own has none here, and would end this one.
    fitting = {
        name: make_step(work, SEPARATOR, INFERENCE)
        for name, work in works.items()
        if not memory or peaks[name] is not None
    }
    times = measure(fitting, device=device, warmup=1, repeats=min(repeats, SWEEP_REPEATS), title="sweep")
    return [SweepPoint(name, device, seconds, batch_size, times.get(name), peaks[name]) for name in works]
