"""Fill the feature cache of a data directory: decode in workers, embed across clips, commit batch by batch.

A run may be killed at any instant: what was committed stays, and the next run redoes one batch at most (and a clip
longer than a batch as a whole). This module never imports PyTorch, so that worker processes start fast: the
front-end is handed in.
"""

import csv
import logging
import math
import os
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from pipeline.cache import CacheWriter, Source
from pipeline.decode import Decoded, DecodingPool, WorkerDiedError, decode
from pipeline.layout import LayoutError, list_mouths
from pipeline.mouths import MouthError, count_frames, source_stat

# A longer clip is streamed by the main process; one minute of frames is 12 MB on its way between processes.
MAX_HANDED_FRAMES = 1500
SAMPLED_HEADERS = 32
CLIPS_PER_WORKER = 16
SHOWN_REMARKS = 5

logger = logging.getLogger(__name__)


class ExtractError(RuntimeError):
    """Precomputing had to stop; the message says why and how to go on. What was committed is kept."""


class SettingError(ExtractError):
    """A setting that cannot be; nothing was begun."""


class EmbedsClips(Protocol):
    """What ``precompute`` asks of a front-end; ``pipeline.frontend.FrontEnd`` is the real one."""

    identity: dict[str, Any]
    batch_frames: int
    decoding_workers: int

    def embed_clips(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def embed_file(self, path: Path) -> np.ndarray: ...


@dataclass
class Summary:
    """What a run did.

    Attributes:
        out: the cache.
        total: clips found (of this shard).
        done: clips computed.
        reused: clips whose entry was valid.
        stale: clips that had an entry of other weights or another content.
        failures: id, file and reason of each clip that could not be used.
        frames: frames computed.
        seconds: wall time.
        planning_s: part of it that decided, from file times, what is valid.
        dtype: precision the embeddings were computed in (they are stored in float16).
    """

    out: Path
    total: int = 0
    done: int = 0
    reused: int = 0
    stale: int = 0
    failures: list[tuple[str, Path, str]] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    planning_s: float = 0.0
    dtype: str = ""

    def __str__(self) -> str:
        computing_s = max(self.seconds - self.planning_s, 1e-9)
        lines = [
            f"{self.total} clips: {self.done} done, {self.reused} reused, {self.stale} stale, "
            f"{len(self.failures)} failed, in {self.seconds:.1f} s"
        ]
        if self.done:
            rates = f"{self.done / computing_s:.1f} clips/s, {self.frames / computing_s:.0f} frames/s"
            lines.append(f"{rates}, computed in {self.dtype}")
        if self.out.exists():
            lines.append(f"{self.out}: {self.out.stat().st_size / 1e6:.1f} MB, float16")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Task:
    name: str
    path: Path
    known_digest: bytes | None


def precompute(
    root: str | Path,
    out: str | Path,
    front_end: EmbedsClips,
    *,
    workers: int | None = None,
    batch_frames: int | None = None,
    shard: tuple[int, int] = (1, 1),
    verify: bool = False,
) -> Summary:
    """Bring a cache up to date with the mouth files of a data directory.

    An entry whose file has kept size and times is valid; one whose file was touched is valid if the content is the
    same; anything else is computed. Files that cannot be used are listed in ``<out>.failed.csv``, the rest goes on.

    Args:
        root: data directory.
        out: cache file, made where it is absent.
        front_end: what embeds the frames; its identity is the cache's.
        workers: decoding processes; 0 decodes in this one, ``None`` is the front-end's choice.
        batch_frames: frames in a batch across clips, and so what a killed run may lose; likewise.
        shard: ``(i, n)``, to do the i-th of n equal parts, counting from 1.
        verify: compare all contents and checksums instead of trusting file times.

    Raises:
        LayoutError: the directory has no mouth files.
        CacheError: the cache is being written by another process, cannot be read, or the disk is full.
        ExtractError: a decoding worker died.
        SettingError: batch_frames or workers are too small.
    """
    began = time.perf_counter()
    out = Path(out)
    batch_frames = front_end.batch_frames if batch_frames is None else batch_frames
    workers = front_end.decoding_workers if workers is None else workers
    if batch_frames < 1 or workers < 0:
        raise SettingError(
            f"batch_frames={batch_frames}, workers={workers}: use at least 1 frame and 0 workers"
        )
    mouths = list(list_mouths(root).items())
    if not mouths:
        raise LayoutError(
            f"{root}: no mouth files; expected mouths/<id>.npz or video/<id>.npz below it, or npz files in it"
        )
    mouths = mouths[shard[0] - 1 :: shard[1]]
    summary = Summary(out, total=len(mouths), dtype=front_end.identity["dtype"])
    with CacheWriter(out, front_end.identity) as writer:
        if writer.mismatch:
            logger.warning(
                "%s was made otherwise (%s): its %d entries are stale and computed anew",
                out,
                writer.mismatch,
                len(writer.outdated),
            )
        run = _Run(writer, front_end, batch_frames, summary)
        tasks = run.plan(mouths, verify)
        summary.planning_s = time.perf_counter() - began
        try:
            run.execute(tasks, min(workers, math.ceil(len(tasks) / CLIPS_PER_WORKER)))
            writer.complete()
        finally:
            if summary.failures:
                _write_failures(summary)
    if not summary.failures:
        failures_path(out).unlink(missing_ok=True)
    summary.seconds = time.perf_counter() - began
    return summary


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, the i-th of n parts, counting from 1.

    Raises:
        ValueError: it is not of that form.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"{text!r} is not i/n with 1 <= i <= n")
    return int(part), int(parts)


def cache_path(
    folder: Path, out: Path | None, root: Path, network: str, features: str, shard: tuple[int, int]
) -> Path:
    """Where a run's cache lies: ``out``, or a name in ``folder`` (never in the user's data), and the shard's mark."""
    if out is None:
        kind = "" if features == "frontend" else f".{features}"
        out = folder / f"{root.resolve().name}.{network}{kind}.h5"
    if shard[1] == 1:
        return out
    return out.with_name(f"{out.stem}.shard-{shard[0]}-of-{shard[1]}{out.suffix}")


def failures_path(out: Path) -> Path:
    """Where the list of failed inputs of a cache lies."""
    return out.with_name(out.name + ".failed.csv")


class _Run:
    """One pass over a directory; holds the batch that is being filled."""

    def __init__(
        self, writer: CacheWriter, front_end: EmbedsClips, batch_frames: int, summary: Summary
    ) -> None:
        self._writer = writer
        self._front_end = front_end
        self._batch_frames = batch_frames
        self._summary = summary
        self._batch: list[tuple[_Task, Decoded]] = []
        self._waiting_frames = 0
        self._refreshed: list[tuple[str, Source]] = []
        self._remarks = 0

    def plan(self, mouths: Sequence[tuple[str, Path]], verify: bool) -> list[_Task]:
        """Count what is valid as it stands and return the rest."""
        entries, outdated = self._writer.entries, self._writer.outdated
        if verify:
            damaged = [name for name in entries if not self._writer.is_sound(name)]
            self._writer.remove(damaged)
            outdated.update(damaged)
        tasks = []
        for name, path in mouths:
            entry = entries.get(name)
            if entry is None:
                tasks.append(_Task(name, path, None))
                self._summary.stale += name in outdated
                continue
            try:
                valid = not verify and source_stat(path) == entry.source.stat
            except MouthError:
                valid = False  # the worker meets the same problem and reports it
            if valid:
                self._summary.reused += 1
            else:
                tasks.append(_Task(name, path, entry.source.sha256))
        return tasks

    def execute(self, tasks: Sequence[_Task], workers: int) -> None:
        """Decode, embed and commit everything that is left to do."""
        clip_frames = _expected_frames(tasks)
        unknown = [task.name for task in tasks if task.known_digest is None]
        self._writer.reserve(unknown, math.ceil(clip_frames * len(unknown)))
        # Two batches ahead: one is decoded while the other is embedded.
        ahead = 2 * workers + math.ceil(2 * self._batch_frames / clip_frames)
        longest = min(self._batch_frames, MAX_HANDED_FRAMES)
        began = time.perf_counter()
        bar = tqdm(total=len(tasks), unit="clip", disable=None if tasks else True, smoothing=0.05)
        with bar, closing(_decode_all(tasks, workers, ahead, longest)) as results:
            for task, decoded in results:
                self._take(task, decoded)
                bar.update()
                rate = self._summary.frames / (time.perf_counter() - began)
                bar.set_postfix_str(f"{rate:.0f} frames/s", refresh=False)
            self._embed_batch()

    def _take(self, task: _Task, decoded: Decoded) -> None:
        self._remark(decoded.remarks)
        if decoded.problem:
            self._fail(task, decoded.problem)
        elif decoded.unchanged:
            self._summary.reused += 1
            source = Source(decoded.digest, *decoded.stat)
            if source != self._writer.entries[task.name].source:
                self._refreshed.append((task.name, source))
        elif decoded.frames is None:
            self._embed_long(task, decoded)
        else:
            if self._waiting_frames + len(decoded.frames) > self._batch_frames:
                self._embed_batch()
            self._batch.append((task, decoded))
            self._waiting_frames += len(decoded.frames)

    def _embed_batch(self) -> None:
        batch, self._batch, self._waiting_frames = self._batch, [], 0
        if batch:
            embeddings = self._front_end.embed_clips([decoded.frames for _, decoded in batch])
            self._commit(batch, embeddings)
        refreshed, self._refreshed = self._refreshed, []
        self._writer.refresh(refreshed)

    def _embed_long(self, task: _Task, decoded: Decoded) -> None:
        try:
            embedding = self._front_end.embed_file(task.path)
            if source_stat(task.path) != decoded.stat:
                raise MouthError(f"{task.path}: changed while it was read; run again when it is written")
        except MouthError as error:
            self._fail(task, str(error))
        else:
            self._commit([(task, decoded)], [embedding])

    def _commit(self, batch: Sequence[tuple[_Task, Decoded]], embeddings: Sequence[np.ndarray]) -> None:
        sound = []
        for (task, decoded), embedding in zip(batch, embeddings, strict=True):
            if np.isfinite(embedding).all():
                sound.append((task.name, Source(decoded.digest, *decoded.stat), embedding))
                self._summary.stale += task.known_digest is not None
                self._summary.frames += len(embedding)
            else:
                self._fail(
                    task, f"{task.path}: its embedding is not finite in float16; are the weights sound?"
                )
        self._writer.commit(sound)
        self._summary.done += len(sound)

    def _fail(self, task: _Task, reason: str) -> None:
        if task.name in self._writer.entries:
            # The entry is of a content that is no more; nobody should read it.
            self._writer.remove([task.name])
            self._summary.stale += 1
        self._summary.failures.append((task.name, task.path, reason))

    def _remark(self, remarks: Sequence[str]) -> None:
        for remark in remarks:
            self._remarks += 1
            if self._remarks <= SHOWN_REMARKS:
                logger.warning("%s", remark)
            elif self._remarks == SHOWN_REMARKS + 1:
                logger.warning("... further warnings of this kind are not shown")


def _expected_frames(tasks: Sequence[_Task]) -> float:
    """Mean number of frames of a clip, from the headers of a few files; at least 1."""
    counts = []
    for task in tasks[:: max(1, len(tasks) // SAMPLED_HEADERS)]:
        try:
            counts.append(count_frames(task.path))
        except MouthError:
            continue  # reported when its turn comes
    return sum(counts) / len(counts) if counts else 1.0


def _decode_all(
    tasks: Sequence[_Task], workers: int, ahead: int, max_frames: int
) -> Generator[tuple[_Task, Decoded], None, None]:
    """Yield every task with its decoded file, in order, at most ``ahead`` of them decoded in advance."""
    if workers == 0:
        for task in tasks:
            yield task, decode(task.path, task.known_digest, max_frames)
        return
    pending: deque[tuple[_Task, Future[Decoded]]] = deque()
    first = None
    try:
        with DecodingPool(workers) as pool:
            for task in tasks:
                pending.append((task, pool.submit(task.path, task.known_digest, max_frames)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
    except WorkerDiedError as error:
        near = "" if first is None else f" over {first.path} or one of the files after it"
        raise ExtractError(
            f"a decoding worker died{near}, most likely killed for memory (or the start of the script is not guarded "
            "by if __name__ == '__main__'); run again with fewer --workers, or --workers 0"
        ) from error


def _write_failures(summary: Summary) -> None:
    path = failures_path(summary.out)
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream).writerows([("id", "file", "reason"), *summary.failures])
    os.replace(part, path)
