"""The file behind the feature cache: its layout, how it is read by offset, and how it is made and remade.

An HDF5 file with two datasets whose place and size never change once it is made, so HDF5 has no metadata to tear:

``embeddings`` (R, D) float16
    The rows of all clips, one row a video frame. Contiguous and sparse: spare rows cost no disk.
``entries`` (N,) records
    A log that is only ever appended to: id, first row, number of rows, what the source looked like (SHA-256, size,
    times), CRC-32 of the rows, and ``whole``. That last byte is written after everything it vouches for; a record
    without it does not exist. The last whole record of an id wins; one of zero rows takes the id out.

Making, growing, compacting and merging are one operation: a new file is written beside the old one, synced, and
renamed over it.
"""

import errno
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = "lip-embedding-cache"
FORMAT_VERSION = 1
# Embeddings that differ in one of these mean different things.
IDENTITY_KEYS = ("network", "weights_sha256", "preprocessing_version", "features")
# And those that differ in one of these do not stand in one file.
FILE_KEYS = (*IDENTITY_KEYS, "dtype", "dim")
ATTRIBUTE_KEYS = (*FILE_KEYS, "weights", "weights_kind")


class CacheError(ValueError):
    """A cache cannot be read or written; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Source:
    """What a source file looked like when its entry was made.

    Attributes:
        sha256: digest of its content, 32 bytes.
        size: bytes.
        mtime_ns: time of the last change of content.
        ctime_ns: time of the last change of content or attributes.
    """

    sha256: bytes
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def stat(self) -> tuple[int, int, int]:
        return self.size, self.mtime_ns, self.ctime_ns


@dataclass(frozen=True)
class Entry:
    """Rows ``start .. start + frames`` of the embeddings, and the source they were computed from."""

    start: int
    frames: int
    crc32: int
    source: Source


def record_dtype(id_bytes: int) -> np.dtype:
    return np.dtype(
        [
            ("id", h5py.string_dtype("utf-8", id_bytes)),
            ("start", "<i8"),
            ("frames", "<i8"),
            ("sha256", "u1", (32,)),
            ("size", "<i8"),
            ("mtime_ns", "<i8"),
            ("ctime_ns", "<i8"),
            ("crc32", "<u4"),
            ("whole", "u1"),
        ]
    )


class Table:
    """A cache file opened for reading: its attributes, where its bytes lie, and its whole entries."""

    def __init__(self, path: Path) -> None:
        """Read attributes and log of ``path``; HDF5 is let go of at once and the rows are read by offset.

        Raises:
            CacheError: the file is absent, no cache, or damaged.
        """
        self.path = path
        self.descriptor = -1
        try:
            while not self._open():
                self.close()
        except FileNotFoundError as error:
            raise CacheError(
                f"{path}: no such cache; make it with: python precompute_visual.py --root DIR --out {path}"
            ) from error
        except (OSError, KeyError, RuntimeError) as error:
            raise CacheError(
                f"{path}: cannot be read as a cache ({error}); if it is one and damaged, delete it and run "
                "precompute_visual.py again"
            ) from error
        self.entries, self.end_row, self.end_record = self._live_entries()

    def _open(self) -> bool:
        """Open the file; false when a writer put another one in its place meanwhile."""
        self.descriptor = os.open(self.path, os.O_RDONLY)
        # h5py would lock the file, which network file systems refuse and no reader here needs.
        with h5py.File(self.path, "r", locking=False) as file:
            self._read_layout(self.path, file)
        return os.fstat(self.descriptor).st_ino == os.stat(self.path).st_ino

    def _read_layout(self, path: Path, file: h5py.File) -> None:
        if file.attrs.get("format") != FORMAT:
            raise CacheError(f"{path}: an HDF5 file, but no embedding cache; name another file")
        if file.attrs["format_version"] != FORMAT_VERSION:
            raise CacheError(
                f"{path}: has format version {file.attrs['format_version']}, this program reads "
                f"{FORMAT_VERSION}; compute the cache again"
            )
        self.attributes = {
            key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()
        }
        missing = [key for key in ATTRIBUTE_KEYS if key not in self.attributes]
        if missing:
            raise CacheError(
                f"{path}: the attributes {', '.join(missing)} are missing; compute the cache again"
            )
        self.rows, self.dim = file["embeddings"].shape
        self.rows_offset = file["embeddings"].id.get_offset()
        self.log_offset = file["entries"].id.get_offset()
        self.log = file["entries"][()]
        if self.rows_offset is None or self.log_offset is None or file["embeddings"].dtype != np.float16:
            raise CacheError(f"{path}: its datasets are not laid out as a cache; compute it again")

    def _live_entries(self) -> tuple[dict[str, Entry], int, int]:
        whole = np.flatnonzero(self.log["whole"] == 1)
        log = self.log[whole]
        holding = log[log["frames"] != 0]
        ends = holding["start"] + holding["frames"]
        if len(holding) and (
            holding["start"].min() < 0 or holding["frames"].min() < 0 or ends.max() > self.rows
        ):
            raise CacheError(
                f"{self.path}: its index points outside the data; delete it and compute it again"
            )
        fields = [log[name].tolist() for name in ("start", "frames", "crc32", "size", "mtime_ns", "ctime_ns")]
        digests = np.ascontiguousarray(log["sha256"]).tobytes()
        entries: dict[str, Entry] = {}
        for place, (name, start, frames, crc32, *stat) in enumerate(zip(log["id"].tolist(), *fields)):
            source = Source(digests[32 * place : 32 * place + 32], *stat)
            entries[os.fsdecode(name)] = Entry(start, frames, crc32, source)
        entries = {name: entry for name, entry in entries.items() if entry.frames}
        return entries, int(ends.max(initial=0)), int(whole.max(initial=-1)) + 1

    @property
    def id_bytes(self) -> int:
        return self.log.dtype["id"].itemsize

    def read(self, entry: Entry) -> np.ndarray:
        """Read the rows of one entry: ``(F, D)`` float16."""
        array = np.empty((entry.frames, self.dim), "<f2")
        # Reading at an offset moves no file position, so forked processes and threads may share the descriptor.
        count = os.preadv(self.descriptor, [array], self.rows_offset + entry.start * 2 * self.dim)
        if count != array.nbytes:
            raise CacheError(f"{self.path}: is shorter than its index says; delete it and compute it again")
        return array

    def is_sound(self, entry: Entry) -> bool:
        """Whether the rows of an entry still have the checksum they were written with."""
        return zlib.crc32(self.read(entry)) == entry.crc32

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in words in what two identities differ; empty where they agree."""
    return ", ".join(
        f"{key} {str(old[key])[:16]} -> {str(new[key])[:16]}" for key in FILE_KEYS if old[key] != new[key]
    )


def write_cache(
    path: Path,
    attributes: Mapping[str, Any],
    clips: Sequence[tuple[str, Entry, Table]],
    spare_rows: int = 0,
    spare_records: int = 64,
    longest_id: int = 0,
) -> None:
    """Write a cache file beside ``path`` with the given entries of other caches, then rename it to ``path``.

    Args:
        path: the file to make or replace.
        attributes: identity; the time of creation is added where absent.
        clips: id, entry, and the table that holds its rows.
        spare_rows: frames to leave room for.
        spare_records: entries to leave room for.
        longest_id: bytes of the longest id to come.

    Raises:
        CacheError: rows that are copied have lost their checksum.
        OSError: the file cannot be written.
    """
    part = part_path(path)
    id_bytes = max([16, longest_id, *(len(os.fsencode(name)) for name, _, _ in clips)])
    rows = sum(entry.frames for _, entry, _ in clips)
    dim = attributes["dim"]
    try:
        offsets = _make_empty(
            part, attributes, max(1, rows + spare_rows), len(clips) + spare_records, id_bytes
        )
        descriptor = os.open(part, os.O_RDWR)
        try:
            moved, start = [], 0
            # In the order they lie on disk, so that reading is sequential.
            for name, entry, table in sorted(clips, key=lambda clip: (str(clip[2].path), clip[1].start)):
                block = table.read(entry)
                if zlib.crc32(block) != entry.crc32:
                    raise CacheError(
                        f"{table.path}: entry {name} is damaged; compute it anew with precompute_visual.py --verify"
                    )
                pwrite_all(descriptor, block, offsets["embeddings"] + start * 2 * dim)
                moved.append((name, replace(entry, start=start)))
                start += entry.frames
            records = encode_records(moved, record_dtype(id_bytes))
            records["whole"] = 1
            pwrite_all(descriptor, records.tobytes(), offsets["entries"])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _make_empty(
    part: Path, attributes: Mapping[str, Any], rows: int, records: int, id_bytes: int
) -> dict[str, int]:
    """Make a file with its datasets in place but unwritten; returns their offsets in bytes."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    # Never filled, so the file is sparse; what is not written reads as zeros, and a record of zeros is not whole.
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    shapes = {
        "entries": ((records,), record_dtype(id_bytes)),
        "embeddings": ((rows, attributes["dim"]), np.dtype("<f2")),
    }
    try:
        with h5py.File(part, "w", locking=False) as file:
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["project"] = "lip-cued-separation"
            for key in ATTRIBUTE_KEYS:
                file.attrs[key] = attributes[key]
            file.attrs["created"] = attributes.get("created") or datetime.now(timezone.utc).isoformat(
                timespec="seconds"
            )
            offsets = {}
            for name, (shape, dtype) in shapes.items():
                space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype, logical=True)
                offsets[name] = h5py.h5d.create(file.id, name.encode(), kind, space, layout).get_offset()
    except (RuntimeError, OSError) as error:
        # HDF5 tells of a full disk in the text of an error of whatever type.
        code = re.search(r"errno = (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    return offsets


def encode_records(entries: Sequence[tuple[str, Entry]], dtype: np.dtype) -> np.ndarray:
    records = np.zeros(len(entries), dtype)
    for record, (name, entry) in zip(records, entries):
        source = entry.source
        record["id"] = os.fsencode(name)
        record["start"], record["frames"], record["crc32"] = entry.start, entry.frames, entry.crc32
        record["sha256"] = np.frombuffer(source.sha256, np.uint8)
        record["size"], record["mtime_ns"], record["ctime_ns"] = source.stat
    return records


def pwrite_all(descriptor: int, block: Any, offset: int) -> None:
    """Write a block at an offset; a single call may write less than it was given."""
    view = memoryview(block).cast("B")
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def part_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def write_error(path: Path, error: OSError) -> CacheError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CacheError(
            f"{path}: the disk is full ({error.strerror}); what was finished is kept: free some space and run the same "
            "command again, or name another place with --out"
        )
    return CacheError(
        f"{path}: cannot be written ({error.strerror or error}); check the folder, or use another --out"
    )
