"""The feature cache: lip embeddings by id, in one HDF5 file that is read by many processes at once.

A cache belongs to one (network, weights, preprocessing, features); its attributes name them. An entry is valid for one
content of its source file. Readers see the file as it was when they opened it, whatever a writer does meanwhile.
``pipeline.cache_file`` describes the file, ``pipeline.cache_writer`` how it is written.

    python -m pipeline.cache merge OUT IN...          join the shards of a job array
    python -m pipeline.cache info FILE                what it was made from and what it holds
    python -m pipeline.cache verify FILE [--root DIR] compare every checksum, and every source under DIR
"""

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache_file import (
    ATTRIBUTE_KEYS,
    IDENTITY_KEYS,
    CacheError,
    Entry,
    Source,
    Table,
    describe_difference,
    write_cache,
    write_error,
)
from pipeline.cache_writer import CacheWriter, Lock
from pipeline.layout import LayoutError, list_mouths
from pipeline.mouths import FRAME_RATE_HZ, MouthError, source_digest, source_stat

__all__ = [
    "IDENTITY_KEYS",
    "CacheError",
    "CacheWriter",
    "FeatureCache",
    "MissingClipError",
    "Source",
    "describe_difference",
    "merge",
    "verify",
]


# Of so many files with new times alone the content is compared; of more, this many first.
COMPARED_FIRST = 64


class MissingClipError(KeyError):
    """The cache has no entry of that id."""

    def __str__(self) -> str:
        # KeyError shows its message in quotes, with every line break escaped.
        return str(self.args[0])


class FeatureCache(Mapping[str, np.ndarray]):
    """Read embeddings by id: ``cache[id] -> (F, D)`` float16, F frames at 25 Hz.

    The file is opened on first use, in whichever process that is, and pickled as its path alone; the rows are read by
    offset, so that one object serves forked workers and threads alike.
    """

    def __init__(self, path: str | Path) -> None:
        """Name the cache file; nothing is opened yet."""
        self.path = Path(path)
        self._opened: Table | None = None

    @property
    def _table(self) -> Table:
        if self._opened is None:
            self._opened = Table(self.path)
        return self._opened

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the embeddings of a clip.

        Raises:
            MissingClipError: a ``KeyError`` that names the nearest id and how to add the clip.
            CacheError: the file is absent or damaged.
        """
        return self._table.read(self._entry(name))

    def _entry(self, name: str) -> Entry:
        entries = self._table.entries
        if name not in entries:
            near = difflib.get_close_matches(str(name), entries, n=1)
            hint = f" (the nearest is {near[0]})" if near else ""
            raise MissingClipError(
                f"no clip {name!r} among the {len(entries)} of {self.path}{hint}; "
                f"add it with: python precompute_visual.py --root DIR --out {self.path}"
            )
        return entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table.entries

    def __len__(self) -> int:
        return len(self._table.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids())

    def ids(self) -> list[str]:
        """All ids, sorted."""
        return sorted(self._table.entries)

    def num_frames(self, name: str) -> int:
        """Number of frames F of a clip, from the index alone."""
        return self._entry(name).frames

    def changed(self, sources: Mapping[str, str | Path]) -> list[str]:
        """Ids whose source file is not the one that the entry was computed from, sorted.

        Size and time of change tell that a file is untouched; another size, that it is another one. Where the time
        alone differs, contents are compared. A data set that was copied has new times throughout: of many such files
        ``COMPARED_FIRST`` or some more, spread evenly, stand for all, unless one of them has changed.

        Args:
            sources: file of each id. Ids without an entry and files that cannot be read are left out.
        """
        changed, touched = [], []
        for name, path in sources.items():
            entry = self._table.entries.get(name)
            if entry is None:
                continue
            try:
                size, mtime_ns, _ = source_stat(path)
            except MouthError:  # whoever needs the file will report it
                continue
            if size != entry.source.size:
                changed.append(name)
            elif mtime_ns != entry.source.mtime_ns:
                touched.append(name)
        step = max(1, len(touched) // COMPARED_FIRST)
        first, rest = touched[::step], [name for place, name in enumerate(touched) if place % step]
        different = [name for name in first if self._is_other(name, sources[name])]
        if changed or different:
            different += [name for name in rest if self._is_other(name, sources[name])]
        return sorted(changed + different)

    def _is_other(self, name: str, path: str | Path) -> bool:
        try:
            return source_digest(path) != self._table.entries[name].source.sha256
        except MouthError:
            return False

    @property
    def identity(self) -> dict[str, Any]:
        """What the embeddings were computed with: network, weights, their SHA-256 and kind, and so on."""
        return {key: self._table.attributes[key] for key in ATTRIBUTE_KEYS}

    @property
    def dim(self) -> int:
        """Values in an embedding, D."""
        return self._table.dim

    def close(self) -> None:
        """Close the file; the next use opens it anew, and sees what was added since."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}


def merge(out: str | Path, inputs: Sequence[str | Path]) -> int:
    """Join caches of one identity into ``out`` (which may be one of them) and return the number of entries.

    Raises:
        CacheError: the identities differ, one id has different contents, or a file cannot be read or written.
    """
    out = Path(out)
    tables = [Table(Path(path)) for path in inputs]
    if out.exists() and not any(out.samefile(table.path) for table in tables):
        raise CacheError(f"{out}: exists already; name it among the inputs to extend it, or delete it")
    chosen: dict[str, tuple[str, Entry, Table]] = {}
    for table in tables:
        difference = describe_difference(tables[0].attributes, table.attributes)
        if difference:
            raise CacheError(f"{tables[0].path} and {table.path} do not belong together: {difference}")
        for name, entry in table.entries.items():
            _, known, owner = chosen.setdefault(name, (name, entry, table))
            if known.source.sha256 != entry.source.sha256:
                raise CacheError(
                    f"{name} was computed from different contents in {owner.path} and {table.path}; "
                    "run precompute_visual.py for the outdated one again"
                )
    # Shards that still grow would be joined half done; so would an output that is being written.
    with contextlib.ExitStack() as stack:
        for path in {table.path.resolve() for table in tables} | {out.resolve()}:
            lock = Lock(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except OSError as error:
                raise write_error(path, error) from error
            stack.callback(lock.release)
        try:
            write_cache(out, tables[0].attributes, list(chosen.values()))
        except OSError as error:
            raise write_error(out, error) from error
    return len(chosen)


def verify(path: str | Path, root: str | Path | None = None) -> list[tuple[str, str]]:
    """Compare the checksum of every entry, and with ``root`` the content of every source.

    Returns:
        id and finding of everything that is not in order.
    """
    table = Table(Path(path))
    findings = [
        (name, "the rows are damaged")
        for name, entry in sorted(table.entries.items())
        if not table.is_sound(entry)
    ]
    if root is None:
        return findings
    mouths = list_mouths(root)
    if not mouths:
        raise LayoutError(f"{root}: no mouths/, video/ or npz files; give the data directory")
    for name, source in mouths.items():
        try:
            if name not in table.entries:
                findings.append((name, f"not in the cache: {source}"))
            elif source_digest(source) != table.entries[name].source.sha256:
                findings.append((name, f"the source has changed: {source}"))
        except MouthError as error:
            findings.append((name, str(error)))
    findings += [(name, f"no source under {root}") for name in sorted(table.entries.keys() - mouths.keys())]
    return findings


def _print_info(path: Path) -> None:
    table = Table(path)
    live = sum(entry.frames for entry in table.entries.values())
    disk = os.stat(path)
    for key, value in table.attributes.items():
        print(f"{key:22} {value}")
    print(f"{'clips':22} {len(table.entries)}")
    print(f"{'frames':22} {live} ({live / FRAME_RATE_HZ / 3600:.2f} h at {FRAME_RATE_HZ} frames/s)")
    print(f"{'rows stale or spare':22} {table.rows - live} of {table.rows}")
    print(f"{'bytes':22} {disk.st_size} ({512 * disk.st_blocks} on disk)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 2 on an error, 3 when ``verify`` found something."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.cache", description="Join, show or check caches."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    joined = commands.add_parser(
        "merge", help="join caches of one identity, such as the shards of a job array"
    )
    joined.add_argument("out", type=Path)
    joined.add_argument("inputs", type=Path, nargs="+")
    commands.add_parser("info", help="show attributes and size").add_argument("file", type=Path)
    checked = commands.add_parser("verify", help="compare all checksums")
    checked.add_argument("file", type=Path)
    checked.add_argument("--root", type=Path, help="data directory whose files are compared too")
    options = parser.parse_args(arguments)
    try:
        if options.command == "merge":
            print(f"{options.out}: {merge(options.out, options.inputs)} clips")
        elif options.command == "info":
            _print_info(options.file)
        else:
            findings = verify(options.file, options.root)
            for name, finding in findings:
                print(f"{name}: {finding}")
            print(
                f"{options.file}: {len(findings)} findings" if findings else f"{options.file}: all in order"
            )
            return 3 if findings else 0
    except (CacheError, LayoutError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
