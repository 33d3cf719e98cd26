"""Decoding mouth files in worker processes: read a file, hash it, and hand its frames over.

Imported by processes that start afresh; it needs NumPy alone, never PyTorch.
"""

import multiprocessing
import queue
import signal
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from pipeline.mouths import MouthError, count_frames, read_mouth, source_digest, source_stat


@dataclass(frozen=True)
class Decoded:
    """One file after decoding.

    Attributes:
        stat: size, mtime and ctime while it was read.
        digest: SHA-256 of its content.
        frames: ``(T, 88, 88)``, ``None`` where the content is known already or too long to hand over.
        unchanged: the content is the known one.
        problem: why the file cannot be used, empty where it can.
        remarks: warnings that reading it gave.
    """

    stat: tuple[int, int, int] = (0, 0, 0)
    digest: bytes = b""
    frames: np.ndarray | None = None
    unchanged: bool = False
    problem: str = ""
    remarks: list[str] = field(default_factory=list)


def decode(path: Path, known_digest: bytes | None, max_frames: int) -> Decoded:
    """Read a mouth file; whatever is wrong with it becomes the result's ``problem``.

    Args:
        path: npz file.
        known_digest: SHA-256 of a content that needs no decoding again.
        max_frames: longest clip to hand over; a longer one comes without frames, to be streamed.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            stat = source_stat(path)
            digest = source_digest(path)
            unchanged = digest == known_digest
            frames = None
            if not unchanged and count_frames(path) <= max_frames:
                frames = read_mouth(path)
            if source_stat(path) != stat:
                raise MouthError(f"{path}: changed while it was read; run again when it is written")
        except MouthError as error:
            return Decoded(problem=str(error))
        # One strange file must not end a run of thousands; the reason is listed with the file.
        except Exception as error:
            return Decoded(problem=f"{path}: {type(error).__name__}: {error}")
    return Decoded(stat, digest, frames, unchanged, remarks=[str(warning.message) for warning in caught])


class WorkerDiedError(RuntimeError):
    """A decoding process ended while it was needed."""


class DecodingPool:
    """Processes that ``decode``; a context manager.

    Each has a pipe of its own, of which nobody else holds the far end. So when either side dies, even in the middle of
    a message, the other one meets the end of the file: no worker outlives its parent and no parent waits for a dead
    worker. (A ``ProcessPoolExecutor`` shares one pipe among all, and waits for ever for the rest of such a message.)
    """

    def __init__(self, num_workers: int) -> None:
        """Prepare so many processes; they start with the context."""
        self._num_workers = num_workers
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        # A thread for each takes its results as they come, whatever the main thread is busy with.
        self._threads = ThreadPoolExecutor(num_workers)

    def __enter__(self) -> "DecodingPool":
        # Spawned, not forked: the parent runs PyTorch's threads and holds the cache's lock, which a fork would share.
        context = multiprocessing.get_context("spawn")
        # Inherited for good: the main process alone answers Ctrl-C. The tracker would lift the block as it starts.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._num_workers):
                near, far = context.Pipe()
                process = context.Process(target=_work, args=(far,), daemon=True)
                process.start()
                far.close()
                self._workers.append((process, near))
                self._idle.put(near)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def submit(self, path: Path, known_digest: bytes | None, max_frames: int) -> "Future[Decoded]":
        """Have a file decoded, as by ``decode``; the future's error is ``WorkerDiedError``, if any."""
        return self._threads.submit(self._ask, path, known_digest, max_frames)

    def _ask(self, *job: object) -> Decoded:
        connection = self._idle.get()
        try:
            connection.send(job)
            return connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(str(error)) from error
        finally:
            self._idle.put(connection)

    def __exit__(self, *_: object) -> None:
        # They keep nothing that a kill could harm, and a file that hangs must not hold up an interrupt.
        for process, _ in self._workers:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process, connection in self._workers:
            process.join()
            connection.close()


def _work(connection: Connection) -> None:
    while True:
        try:
            connection.send(decode(*connection.recv()))
        except (EOFError, OSError):
            return  # the main process is gone
