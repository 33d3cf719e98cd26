"""Paths of the project and files written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

ROOT_PATH = Path(__file__).resolve().parents[2]


def absolute(path: str | Path) -> Path:
    """A path as the user meant it: relative ones start at the working directory, `~` is the home folder.

    Raises:
        ValueError: it is no text, as a folder's name of digits is not on a command line that Hydra reads.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"{path} is taken as a number or as nothing, not as a path: put ./ before it")
    return Path(path).expanduser().absolute()


def make_folder(folder: Path, option: str) -> None:
    """Make the folder of an output before any work is done.

    Args:
        folder: to make, or to find there.
        option: what named it, for the message.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"{option}={folder}: cannot be made ({reason}); choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option}={folder}: is not writable; choose another folder")


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one, both whole.

    Args:
        path: final name; its folder is made.
        write: called with the open temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> Any:
    """Content of a JSON file."""
    with Path(path).open(encoding="utf-8") as stream:
        return json.load(stream)


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON atomically. Names of files that are not UTF-8 keep their bytes as escapes."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))
