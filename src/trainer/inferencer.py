"""Separates the recordings of datasets and writes the voices as files.

Recordings are cut into windows that run in batches, several recordings together where their lengths agree, and are
joined again as the estimates come. What is held in memory does not grow with the length of a recording, but for its
lip embeddings (6 MB a minute at most).

Axes: B windows in a batch, S = 2 voices, T samples at 16 kHz, F video frames, D lip embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.audio_io import SAMPLE_RATE_HZ, AudioError, AudioInfo, audio_info
from pipeline.cache import CacheError
from pipeline.mouths import FRAME_RATE_HZ
from src.metrics.base_metric import BaseMetric
from src.metrics.tracker import MetricTracker
from src.trainer.inference_report import PartReport
from src.trainer.lip_source import LipsError, LipSource
from src.trainer.mixture_consistency import fit_gains
from src.trainer.order_check import OrderCheck
from src.trainer.recording import Recording, Window, collate_windows
from src.trainer.scoring import Value, Written, score
from src.trainer.shifted_passes import separate_shifted
from src.trainer.voice_files import OUTPUT_FORMATS, VOICES, voice_files
from src.trainer.windowing import count_frames, counts_as_lips, lips_of_window, plan_windows
from src.utils.io_utils import make_folder, write_json

# A video may end so much earlier or later than the sound before it is remarked on.
_TOLERATED_S = 0.2
# Windows of unequal lengths wait for others of theirs, until so many batches' worth of them wait.
_WAITING_BATCHES = 4
# Worker processes take some seconds to start: not for a handful of recordings.
_SCORED_IN_PROCESS = 16


class SeparationError(ValueError):
    """The separator gave something that cannot be written."""


class Inferencer:
    """Applies a separator to datasets and saves `s1/` and `s2/`.

    Args:
        model: the separator, called with `mix`, `visual`, `visual_mask`, `lengths`, `utt_id`.
        datasets: {part: dataset}; the recordings are those of `dataset.index`, each with the keys `utt_id`, `mix`,
            `s1`, `s2`, `id1`, `id2`, `mouth1`, `mouth2`; `dataset.problems` lists files that it cannot use.
        save_path: gets `s1/` and `s2/`; with several parts, a folder for each that holds them.
        lips: where lip embeddings come from; None for an audio-only separator.
        order_check: looks at the order of the voices again when they are apart; None leaves it to the separator.
        device: where the separator runs.
        metrics: computed where there is truth. They must not permute: the order is settled here.
        window_s: length of a window; null separates every recording at once, in memory that grows with it.
        overlap_s: least overlap of neighbouring windows, at most half a window.
        shifts: passes over each window whose mean is taken, the mixture delayed and the lips moved, see
            `shifted_passes`.
        batch_size: windows of equal length that run together.
        output_format: `auto` writes as the mixture is (mp3 is lossy), `wav` or `flac` always that.
        jobs: processes that compute metrics, -1 for all cores.

    Attributes:
        reports: {part: what became of it}.

    Raises:
        ValueError: an option is out of range; a dataset has no recordings on disk; the outputs would lie among
            the data.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        datasets: Mapping[str, Any],
        save_path: str | Path,
        lips: LipSource | None = None,
        order_check: OrderCheck | None = None,
        device: str = "cpu",
        metrics: Sequence[BaseMetric] = (),
        window_s: float | None = 8.0,
        overlap_s: float = 1.0,
        shifts: int = 1,
        batch_size: int = 16,
        output_format: str = "auto",
        jobs: int = 1,
    ) -> None:
        if output_format not in OUTPUT_FORMATS:
            raise ValueError(f"inferencer.format={output_format}: take one of {', '.join(OUTPUT_FORMATS)}")
        if batch_size < 1:
            raise ValueError(f"inferencer.batch_size={batch_size}: take 1 or more")
        if shifts < 1:
            raise ValueError(f"inferencer.shifts={shifts}: take 1 or more")
        self.window = None if window_s is None else round(window_s * FRAME_RATE_HZ)
        self.overlap = round(overlap_s * FRAME_RATE_HZ)
        plan_windows(1, self.window, self.overlap)  # refuses what is out of range before any work is done
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.datasets, self.lips, self.metrics = dict(datasets), lips, list(metrics)
        self.batch_size, self.output_format, self.jobs = batch_size, output_format, jobs
        self.shifts, self.order_check = shifts, order_check
        self.save_path = Path(save_path)
        several = len(self.datasets) > 1
        self.reports = {
            part: PartReport(self.save_path / part if several else self.save_path) for part in self.datasets
        }
        for part, dataset in self.datasets.items():
            _check_dataset(part, dataset, self.reports[part].folder)
            make_folder(self.reports[part].folder, "save_path")

    def run_inference(self) -> dict[str, dict[str, float]]:
        """Separate, write and score all parts.

        Returns:
            {part: {metric: mean}}, without metrics where there is no truth. More is in `reports`.
        """
        return {part: self._inference_part(part, dataset) for part, dataset in self.datasets.items()}

    def write_summary(self, about: Mapping[str, Any]) -> None:
        """Write `inference.json`: what became of every part.

        Args:
            about: what else to record, in types that JSON has.
        """
        parts = {part: report.as_json() for part, report in self.reports.items()}
        write_json({**about, "parts": parts}, self.save_path / "inference.json")

    def _inference_part(self, part: str, dataset: Any) -> dict[str, float]:
        report = self.reports[part]
        report.num_recordings = len(dataset.index)
        for path, reason in getattr(dataset, "problems", ()):
            if Path(path).parent.name == "mix":
                report.num_recordings += 1
                self._fail(str(path), reason, report)
            else:
                report.failures.append((str(path), f"cannot be scored against: {reason}"))
        headers = self._headers(dataset.index, report)
        total_s = sum(info.num_samples / info.rate_hz for _, info in headers)
        shown = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
        to_score: list[Written] = []
        unfinished: set[Recording] = set()
        try:
            with tqdm(total=total_s, desc=part, bar_format=shown, disable=None) as bar:
                for windows in self._batches(headers, report):
                    unfinished.update(window.recording for window in windows)
                    batch = self.process_batch(collate_windows(windows), report)
                    for window, estimates in zip(windows, batch["estimates"]):
                        files = self._accept(window, estimates, report)
                        bar.update(window.recording.seconds / len(window.recording.plan))
                        if files is not None:
                            unfinished.remove(window.recording)
                            to_score.append(_written(window.recording, files))
        finally:
            for recording in unfinished:
                recording.discard()
        self._score([written for written in to_score if any(written.truths)], report)
        return report.logs

    def _headers(
        self, index: Sequence[Mapping[str, Any]], report: PartReport
    ) -> list[tuple[Mapping[str, Any], AudioInfo]]:
        """Read all headers; what is no audio fails here."""
        headers = []
        with report.timed("reading"):
            for record in index:
                try:
                    info = audio_info(record["mix"])
                    if info.num_samples == 0:
                        raise AudioError(f"{record['mix']}: no samples in it; remove it or export it again")
                except AudioError as error:
                    self._fail(record["mix"], str(error), report)
                else:
                    headers.append((record, info))
        return headers

    def _batches(
        self, headers: Sequence[tuple[Mapping[str, Any], AudioInfo]], report: PartReport
    ) -> Iterator[list[Window]]:
        """Windows of equal length, at most `batch_size` together; those of one recording stay in order."""
        waiting: dict[int, list[Window]] = {}
        for record, info in headers:
            plan = plan_windows(count_frames(info.num_samples, info.rate_hz), self.window, self.overlap)
            for window in self._windows(Recording(record, info, plan), report):
                group = waiting.setdefault(len(window.mix), [])
                group.append(window)
                if sum(map(len, waiting.values())) >= _WAITING_BATCHES * self.batch_size:
                    group = max(waiting.values(), key=len)
                elif len(group) < self.batch_size:
                    continue
                yield waiting.pop(len(group[0].mix))
        yield from waiting.values()

    def _windows(self, recording: Recording, report: PartReport) -> Iterator[Window]:
        """Windows of a recording, in order, up to the first that cannot be read."""
        embeddings: list[np.ndarray | None] = [None, None]
        try:
            if self.lips is not None:
                with report.timed("lips"):
                    lips = self.lips.load(recording.record)
                embeddings = lips.embeddings
                report.damaged += [(recording.name, reason) for reason in lips.damaged]
                report.remarks += _remarks_on_length(recording, embeddings)
            for number, (start, stop) in enumerate(recording.plan):
                with report.timed("reading"):
                    mix = recording.read(number)
                visual, mask = None, np.zeros(len(VOICES), bool)
                if self.lips is not None:
                    visual, mask = lips_of_window(embeddings, start, stop, self.lips.dim)
                recording.by_lips |= bool(mask.any())
                yield Window(recording, mix, visual, mask)
        except (AudioError, LipsError, CacheError) as error:
            recording.discard()
            self._fail(recording.name, str(error), report)

    @torch.inference_mode()
    def process_batch(self, batch: dict[str, Any], report: PartReport) -> dict[str, Any]:
        """Run the separator on a batch.

        Returns:
            The batch with `estimates` (B, S, T), float32 on the CPU.

        Raises:
            ValueError: the device's memory does not hold the batch.
        """
        with report.timed("separation"):
            inputs = {
                key: value.to(self.device) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }
            try:
                separated = separate_shifted(self.model, inputs, self.shifts, self.order_check)
                report.num_exchanged += int((separated.exchanged > 0.5).sum())
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{self.device} has not enough memory for {len(batch['mix'])} windows of "
                    f"{batch['mix'].shape[1] / SAMPLE_RATE_HZ:g} s: lower inferencer.batch_size or inferencer.window_s"
                ) from error
            return {**batch, "estimates": fit_gains(batch["mix"], separated.estimates)}

    def _accept(self, window: Window, estimates: Tensor, report: PartReport) -> list[Path] | None:
        """Join and write a window's estimates; returns the recording's files once they are complete."""
        recording = window.recording
        if recording.failed:
            return None
        try:
            with report.timed("writing"):
                if not torch.isfinite(estimates).all():
                    raise SeparationError("the separator gave values that are not finite")
                ordered = bool(window.visual_mask.any())
                files = recording.accept(estimates, report.folder, self.output_format, ordered=ordered)
        except (SeparationError, OSError, soundfile.SoundFileError) as error:
            recording.discard()
            self._fail(recording.name, f"not written: {error}", report)
            return None
        if files is not None:
            report.num_written += 1
            report.num_by_lips += recording.by_lips
            report.audio_s += recording.seconds
            if recording.clipped_samples:
                remark = (
                    f"{recording.clipped_samples} samples of its voices exceed full scale and were clipped"
                )
                report.remarks.append((recording.name, remark))
        return files

    def _fail(self, mix: str, reason: str, report: PartReport) -> None:
        """Note that a mixture was not separated; voices of an earlier run in its place are named, not taken away."""
        earlier = [path for path in voice_files(report.folder, mix, self.output_format) if path.exists()]
        if earlier:
            reason += f"; {', '.join(map(str, earlier))}: left by an earlier run, do not score"
        report.failures.append((mix, reason))

    def _score(self, recordings: Sequence[Written], report: PartReport) -> None:
        """Compute all metrics of recordings with truth."""
        if not recordings or not self.metrics:
            return
        tracker = MetricTracker(*(metric.name for metric in self.metrics))
        jobs = self.jobs if len(recordings) > _SCORED_IN_PROCESS else 1
        with report.timed("scoring"):
            results = Parallel(n_jobs=jobs, return_as="generator")(
                delayed(_score_or_reason)(written, self.metrics) for written in recordings
            )
            bar = tqdm(results, total=len(recordings), desc="metrics", unit="file", disable=None)
            for written, result in zip(recordings, bar):
                if isinstance(result, str):
                    report.failures.append((written.mix, f"separated, but not scored: {result}"))
                    continue
                report.num_scored += 1
                report.num_permuted += not written.ordered
                for name, values in result.items():
                    for value in values:
                        tracker.update(name, value.as_batch_mean(), n=value.share)
        report.logs, report.undefined = tracker.result(), tracker.undefined()


def _score_or_reason(written: Written, metrics: Sequence[BaseMetric]) -> dict[str, list[Value]] | str:
    """Scores, or why there are none: one unreadable truth does not stop the others."""
    try:
        return score(written, metrics)
    except AudioError as error:
        return str(error)


def _written(recording: Recording, files: Sequence[Path]) -> Written:
    record = recording.record
    return Written(
        mix=record["mix"],
        voices=(str(files[0]), str(files[1])),
        truths=(record["s1"], record["s2"]),
        ordered=recording.by_lips,
    )


def _check_dataset(part: str, dataset: Any, folder: Path) -> None:
    index = getattr(dataset, "index", [])
    if index and "mix" not in index[0]:
        raise ValueError(
            f"datasets.{part}: {type(dataset).__name__} makes its mixtures up, there are no recordings to separate: "
            "choose datasets=custom_dir or datasets=avss"
        )
    if (folder / "mix").is_dir():
        raise ValueError(
            f"save_path={folder} is where mixtures lie, and s1/ and s2/ in it are for the truths: choose another"
        )


def _remarks_on_length(
    recording: Recording, embeddings: Sequence[np.ndarray | None]
) -> list[tuple[str, str]]:
    remarks = []
    for voice, lips in zip(("id1", "id2"), embeddings):
        video_s = recording.seconds if lips is None else len(lips) / FRAME_RATE_HZ
        if abs(video_s - recording.seconds) > _TOLERATED_S:
            remark = (
                f"the video of {recording.record[voice]} lasts {video_s:.2f} s, the audio {recording.seconds:.2f} s; "
                "aligned from the start"
            )
            unused = [window for window in recording.plan if not counts_as_lips(len(lips), *window)]
            if unused:
                remark += f"; too short to be used in {len(unused)} of {len(recording.plan)} windows"
            remarks.append((recording.name, remark))
    return remarks
