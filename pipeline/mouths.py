"""Mouth crops: npz file -> grey frames of 88 x 88 -> network input, with everything that can be wrong named.

A file holds one array, ``data`` (or whatever its only array is called), of shape ``(T, H, W)`` or ``(T, H, W, 3)``:

* unsigned bytes (other integers are taken when they lie in 0..255), or
* floats in 0..255; floats that never exceed 1 are taken as 0..1 and scaled by 255.

Colour is turned to grey by the luma weights of BT.601, red first. 96 x 96 is cropped to its centre of 88 x 88, 88 x 88
is taken as it is, and any other size is cropped to its central square and resized to 96 first, with a warning.

Arrays are streamed out of the archive, so that an hour of video never lies in memory. Needs numpy alone: decoding
workers import this module and must start fast.

Legend: T frames at 25 Hz, H and W rows and columns.
"""

import hashlib
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

# Part of every cache entry's identity: raise it with any change to the pixels that this module hands out.
PREPROCESSING_VERSION = 1
FRAME_RATE_HZ = 25
_CHUNK_BYTES = 64 * 2**20  # in flight, before pictures of other sizes are made smaller
CROP = 88
FULL = 96
MEAN = 0.421
STD = 0.165
LUMA = (0.299, 0.587, 0.114)

# One value per intensity, rounded once from float64, which is how the published preprocessing computes it.
_NORMALISED = ((np.arange(256, dtype=np.float64) / 255 - MEAN) / STD).astype(np.float32)


class MouthError(ValueError):
    """A mouth file cannot be used; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class _Header:
    """What an array in an archive says about itself."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def count_frames(path: str | Path) -> int:
    """Return the number of frames T that a mouth file announces, reading its header only.

    Raises:
        MouthError: the file is not a usable npz.
    """
    with _archive(path) as archive:
        return _header(archive, path).shape[0]


def iter_mouth(path: str | Path, chunk_frames: int = 1024) -> Iterator[np.ndarray]:
    """Yield the grey frames of a mouth file from first to last, a bounded number at a time, fewer of large pictures.

    An array in Fortran order is the exception to the bound: its frames are interleaved, so it is read whole.

    Args:
        path: npz file.
        chunk_frames: frames in a chunk (the last one may be shorter).

    Yields:
        ``(n, 88, 88)`` intensities in 0..255: uint8, or float32 when the file holds floats.

    Raises:
        MouthError: the file cannot be read, or its content is no video of a mouth.
    """
    with _archive(path) as archive:
        header = _header(archive, path)
        frame_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        chunk_frames = max(1, min(chunk_frames, _CHUNK_BYTES // frame_bytes))
        scale = _float_scale(archive, header, path, chunk_frames) if header.dtype.kind == "f" else None
        shrink = _shrinker(header, path)
        for raw in _chunks(archive, header, path, chunk_frames):
            if scale is None:
                if header.dtype != np.uint8 and (raw.min() < 0 or raw.max() > 255):
                    raise MouthError(
                        f"{path}: {header.dtype} values from {raw.min()} to {raw.max()} are no intensities; "
                        "save uint8, or floats in 0..255 or 0..1"
                    )
                grey = shrink(raw)
                yield grey if grey.dtype == np.uint8 else np.rint(grey).astype(np.uint8)
            else:
                yield shrink(raw.astype(np.float32) * np.float32(scale))


def read_mouth(path: str | Path) -> np.ndarray:
    """Read a whole mouth file.

    Returns:
        ``(T, 88, 88)`` intensities in 0..255: uint8, or float32 when the file holds floats.

    Raises:
        MouthError: the file cannot be read, or its content is no video of a mouth.
    """
    chunks = list(iter_mouth(path))
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def normalise(frames: np.ndarray) -> np.ndarray:
    """Map intensities 0..255 to the network's input, ``(x / 255 - 0.421) / 0.165``.

    Args:
        frames: intensities of any shape, uint8 or float.

    Returns:
        float32 of the same shape, equal to the float64 computation rounded once.
    """
    if frames.dtype == np.uint8:
        return _NORMALISED[frames]
    return ((frames.astype(np.float64) / 255 - MEAN) / STD).astype(np.float32)


def source_stat(path: str | Path) -> tuple[int, int, int]:
    """Return ``(size in bytes, mtime in ns, ctime in ns)``; while these stay, the content is taken to stay.

    Raises:
        MouthError: the file is absent or out of reach.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise MouthError(f"{path}: {error.strerror}; check the link or the permissions") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def source_digest(path: str | Path) -> bytes:
    """Return the SHA-256 (32 bytes) of a mouth file's content.

    Raises:
        MouthError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.digest()


def _unreadable(path: str | Path, error: OSError) -> MouthError:
    if isinstance(error, IsADirectoryError):
        return MouthError(f"{path}: is a directory, not an npz file; move it out of the folder")
    if isinstance(error, PermissionError):
        return MouthError(f"{path}: permission denied; make the file readable")
    return MouthError(f"{path}: {error.strerror or error}; check the file and the disk")


@contextmanager
def _archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Open an npz and turn whatever its reading may raise into a ``MouthError``."""
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise MouthError(f"{path}: the file is empty; make it again")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise MouthError(
            f"{path}: not a whole npz file ({error}); it may be truncated, make it again"
        ) from error
    except (zlib.error, EOFError) as error:
        raise MouthError(f"{path}: the compressed data are damaged ({error}); make the file again") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except (NotImplementedError, RuntimeError) as error:
        raise MouthError(f"{path}: {error}; save it with numpy.savez_compressed") from error


def _header(archive: zipfile.ZipFile, path: str | Path) -> _Header:
    """Find the array of mouth frames in an archive and check all that its header tells."""
    keys = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
    if "data" in keys:
        key = "data"
    elif len(keys) == 1:
        key = keys[0]
    else:
        found = f"holds the arrays {', '.join(keys)}" if keys else "holds no array"
        raise MouthError(f"{path}: {found}; expected one called 'data'")
    member = f"{key}.npy"
    with archive.open(member) as stream:
        shape, fortran, dtype = _read_header(stream, path)
        offset = stream.tell()
    if dtype.hasobject:
        raise MouthError(
            f"{path}: '{key}' holds Python objects, which are never loaded; save a plain uint8 array"
        )
    if dtype.kind not in "uif":
        raise MouthError(f"{path}: '{key}' is of type {dtype}; expected uint8 or float")
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 3):
        raise MouthError(f"{path}: '{key}' has shape {shape}; expected (T, H, W) or (T, H, W, 3)")
    if shape[0] == 0:
        raise MouthError(f"{path}: '{key}' has zero frames")
    if 0 in shape:
        raise MouthError(f"{path}: '{key}' has empty frames, shape {shape}")
    announced = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
    if archive.getinfo(member).file_size != announced:
        raise MouthError(
            f"{path}: '{key}' is truncated: fewer bytes than its shape {shape} needs; make it again"
        )
    return _Header(member, shape, dtype, fortran)


def _read_header(stream: IO[bytes], path: str | Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        if version in readers:
            return readers[version](stream)
    # NumPy parses the header as a Python literal, which on damaged bytes can fail in nearly any way.
    except Exception as error:
        raise MouthError(f"{path}: damaged array header ({error}); make the file again") from error
    raise MouthError(f"{path}: array format {version} is not for plain arrays; save a plain uint8 array")


def _chunks(
    archive: zipfile.ZipFile, header: _Header, path: str | Path, chunk_frames: int
) -> Iterator[np.ndarray]:
    """Yield the array as it is stored, ``(n, H, W[, 3])``, in native byte order."""
    native = header.dtype.newbyteorder("=")
    with archive.open(header.member) as stream:
        _read_header(stream, path)
        if header.fortran:
            whole = _read_exactly(stream, int(np.prod(header.shape)) * header.dtype.itemsize, path)
            array = (
                np.frombuffer(whole, header.dtype).reshape(header.shape, order="F").astype(native, copy=False)
            )
            for start in range(0, header.shape[0], chunk_frames):
                yield np.ascontiguousarray(array[start : start + chunk_frames])
        else:
            frame = header.shape[1:]
            frame_bytes = int(np.prod(frame)) * header.dtype.itemsize
            for start in range(0, header.shape[0], chunk_frames):
                count = min(chunk_frames, header.shape[0] - start)
                block = np.frombuffer(_read_exactly(stream, count * frame_bytes, path), header.dtype)
                yield block.reshape(count, *frame).astype(native, copy=False)
        # Reading past the last byte makes zipfile compare the checksum of the whole member.
        stream.read(1)


def _read_exactly(stream: IO[bytes], size: int, path: str | Path) -> bytearray:
    # A bytearray, so that the arrays over it are writable like any other.
    block = bytearray(stream.read(size))
    if len(block) != size:
        raise MouthError(f"{path}: the data end early, the file is truncated; make it again")
    return block


def _float_scale(archive: zipfile.ZipFile, header: _Header, path: str | Path, chunk_frames: int) -> float:
    """Return what brings the floats to 0..255. The whole clip decides, hence a pass of its own over the file."""
    low, high = np.inf, -np.inf
    for raw in _chunks(archive, header, path, chunk_frames):
        if not np.isfinite(raw).all():
            raise MouthError(f"{path}: holds NaN or infinite values; make the file again")
        low, high = min(low, float(raw.min())), max(high, float(raw.max()))
    if low < 0 or high > 255:
        raise MouthError(
            f"{path}: values from {low:.4g} to {high:.4g} are no intensities; "
            "save raw frames in 0..255 or 0..1, not normalised ones"
        )
    return 255.0 if high <= 1 else 1.0


def _shrinker(header: _Header, path: str | Path):
    """Return the function that maps stored frames to grey ones of 88 x 88."""
    height, width = header.shape[1:3]
    if (height, width) == (CROP, CROP):
        rows = columns = slice(None)
        resize = None
    elif (height, width) == (FULL, FULL):
        rows = columns = _centre(FULL, CROP)
        resize = None
    else:
        side = min(height, width)
        rows, columns = _centre(height, side), _centre(width, side)
        resize = _resize_matrix(side, FULL)[_centre(FULL, CROP)]
        warnings.warn(f"{path}: frames of {height} x {width} are resized to {FULL} x {FULL}", stacklevel=4)

    def shrink(raw: np.ndarray) -> np.ndarray:
        grey = raw[:, rows, columns]
        if grey.ndim == 4:
            grey = grey.astype(np.float32) @ np.asarray(LUMA, np.float32)
        if resize is not None:
            grey = resize @ grey.astype(np.float32) @ resize.T
        return np.ascontiguousarray(grey)

    return shrink


def _centre(full: int, part: int) -> slice:
    start = (full - part) // 2
    return slice(start, start + part)


def _resize_matrix(size: int, target: int) -> np.ndarray:
    """Weights (target, size) of linear interpolation, widened against aliasing where it shrinks."""
    scale = size / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size)[None, :] - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
