"""Writing the feature cache, so that a kill at any instant leaves a file that opens and holds whole entries only.

The writer appends with plain ``pwrite`` at the datasets' offsets, never through HDF5, and never through a memory map,
where a full disk would be a signal and not an error. One process writes at a time.
"""

import contextlib
import fcntl
import os
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache_file import (
    ATTRIBUTE_KEYS,
    CacheError,
    Entry,
    Source,
    Table,
    describe_difference,
    encode_records,
    part_path,
    pwrite_all,
    write_cache,
    write_error,
)

SYNC_EVERY_S = 10.0
# Spare plus stale rows above this share of the file are given back when a run completes.
MAX_SPARE = 1 / 8
# Room that is left when a file is rewritten, so that small additions do not each copy it. Sparse: costs no disk.
KEPT_SPARE = 1 / 16


class Lock:
    """The right to write one cache, held through ``<cache>.lock`` and let go by the kernel when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._cache = path
        self._descriptor = -1

    def acquire(self) -> None:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise CacheError(
                    f"{self._cache}: is being written by {owner}; wait for it, stop it, or write another file "
                    "(--out, or --shard i/n and a merge afterwards)"
                ) from None
            except OSError:
                os.close(descriptor)
                raise
            # The last owner may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == os.stat(self._path).st_ino:
                    break
            os.close(descriptor)
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = -1


class CacheWriter:
    """Add embeddings to a cache, making the file where it is absent. A context manager; one writer at a time.

    What a file holds already is in ``entries``. Where it was made with another identity, ``entries`` is empty,
    ``outdated`` has the ids that were dropped, ``mismatch`` says what differs, and the file is replaced by the
    first ``reserve`` or ``commit``.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        """Prepare to write; nothing is touched before the context is entered.

        Args:
            path: cache file.
            identity: network, weights, weights_sha256, weights_kind, preprocessing_version, features, dtype, dim.
        """
        self.path = Path(path)
        # Of the weights' path the name is enough, and the rest is nobody else's business.
        self._attributes = {key: identity[key] for key in ATTRIBUTE_KEYS} | {
            "weights": Path(identity["weights"]).name
        }
        self._lock = Lock(self.path)
        self._table: Table | None = None
        self._descriptor = -1
        self.entries: dict[str, Entry] = {}
        self.outdated: set[str] = set()
        self.mismatch = ""

    def __enter__(self) -> "CacheWriter":
        try:
            with self._clear_errors():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                # Left by a run that was killed while it made, grew or compacted the file.
                part_path(self.path).unlink(missing_ok=True)
                if self.path.exists():
                    self._open_existing()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_existing(self) -> None:
        table = Table(self.path)
        self.mismatch = describe_difference(table.attributes, self._attributes)
        if self.mismatch:
            self.outdated = set(table.entries)
            table.close()
        else:
            self._attributes = table.attributes
            self._take(table)

    def _take(self, table: Table) -> None:
        """Continue in a file: after its last whole record and the last row any of them claims."""
        self._release_file()
        self._table, self.entries = table, table.entries
        self._next_row, self._next_record = table.end_row, table.end_record
        self._descriptor = os.open(self.path, os.O_RDWR)
        self._synced = time.monotonic()

    def _release_file(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def reserve(self, ids: Iterable[str], frames: int) -> None:
        """Make room for further clips of so many frames in all; costs no disk before they are written.

        Raises:
            CacheError: the disk is full, or the file cannot be written.
        """
        names = [os.fsencode(name) for name in ids]
        longest = max(map(len, names), default=0)
        table = self._table
        if (
            table is None
            or self._next_row + frames > table.rows
            or self._next_record + len(names) > len(table.log)
            or longest > table.id_bytes
        ):
            live = sum(entry.frames for entry in self.entries.values())
            kept = 0 if table is None else int(KEPT_SPARE * live)
            self._rewrite(frames + kept, 2 * len(names) + len(self.entries) // 4 + 64, longest)

    def _rewrite(self, spare_rows: int, spare_records: int, longest_id: int) -> None:
        with self._clear_errors():
            clips = [(name, entry, self._table) for name, entry in self.entries.items()]
            write_cache(self.path, self._attributes, clips, spare_rows, spare_records, longest_id)
            self._take(Table(self.path))

    def commit(self, clips: Sequence[tuple[str, Source, np.ndarray]]) -> None:
        """Append clips; each is whole in the file, or not in it at all, whenever the process dies.

        Args:
            clips: id, source, and embeddings ``(F, D)`` float16 of each.

        Raises:
            CacheError: the disk is full, or the file cannot be written; what was committed before stays.
        """
        if not clips:
            return
        blocks = [np.ascontiguousarray(rows, "<f2") for _, _, rows in clips]
        for (name, _, _), block in zip(clips, blocks):
            assert block.ndim == 2 and len(block) and block.shape[1] == self._attributes["dim"], (
                name,
                block.shape,
            )
        frames = sum(map(len, blocks))
        self.reserve([name for name, _, _ in clips], frames)
        table = self._table
        with self._clear_errors():
            pwrite_all(self._descriptor, b"".join(blocks), table.rows_offset + self._next_row * 2 * table.dim)
        fresh, start = [], self._next_row
        for (name, source, _), block in zip(clips, blocks):
            fresh.append((name, Entry(start, len(block), zlib.crc32(block), source)))
            start += len(block)
        self._next_row = start
        self._append(fresh)

    def refresh(self, sources: Sequence[tuple[str, Source]]) -> None:
        """Note that known clips have new file times but the content they had.

        Raises:
            CacheError: the disk is full, or the file cannot be written.
        """
        if sources:
            self.reserve([name for name, _ in sources], 0)
            self._append([(name, replace(self.entries[name], source=source)) for name, source in sources])

    def _append(self, fresh: Sequence[tuple[str, Entry]]) -> None:
        """Append records, then mark them whole one by one: a one-byte write cannot be torn."""
        table = self._table
        records = encode_records(fresh, table.log.dtype)
        size = records.dtype.itemsize
        offset = table.log_offset + self._next_record * size
        with self._clear_errors():
            pwrite_all(self._descriptor, records.tobytes(), offset)
            # A power cut may lose any of what was not synced: no mark may outlive what it vouches for.
            os.fsync(self._descriptor)
            for place, (name, entry) in enumerate(fresh):
                pwrite_all(
                    self._descriptor, b"\x01", offset + place * size + records.dtype.fields["whole"][1]
                )
                self.entries[name] = entry
                self._next_record += 1
            # This bounds how many marks a power cut can take.
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()

    def read(self, name: str) -> np.ndarray:
        """Return the embeddings of a clip, ``(F, D)`` float16."""
        return self._table.read(self.entries[name])

    def is_sound(self, name: str) -> bool:
        """Whether the rows of a clip still have the checksum they were written with."""
        return self._table.is_sound(self.entries[name])

    def remove(self, names: Sequence[str]) -> None:
        """Take clips out, whose sources or rows turned out to be no good; a record of zero frames says so.

        Raises:
            CacheError: the disk is full, or the file cannot be written.
        """
        if names:
            # Out of the index first: making room may copy the file, and damaged rows must not be copied. The first
            # row is let go of too: the copy may be shorter than it.
            removed = [(name, replace(self.entries.pop(name), start=0, frames=0)) for name in names]
            self.reserve(names, 0)
            self._append(removed)
            for name in names:
                del self.entries[name]

    def complete(self) -> None:
        """Finish a run: make sure of the file, and give back stale and spare rows where they are many."""
        if self._table is None:
            self.reserve([], 0)
        live = sum(entry.frames for entry in self.entries.values())
        if self._table.rows - live > max(MAX_SPARE * self._table.rows, 1):
            self._rewrite(int(KEPT_SPARE * live), len(self.entries) // 4 + 64, 0)

    def close(self) -> None:
        """Bring the file to the disk and let others write it."""
        try:
            if self._descriptor >= 0:
                with self._clear_errors():
                    os.fsync(self._descriptor)
        finally:
            self._release_file()
            self._lock.release()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error
