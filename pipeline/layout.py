"""What a data directory holds: mixtures, their true voices and the mouth crops. Every question about paths ends here.

Two layouts are understood, with ``video/`` as an older name of ``mouths/``::

    DIR/audio/mix, s1, s2            a directory to separate; s1 and s2 may be absent
    DIR/audio/{train,val,test}/mix   the course's data set, one part each
    DIR/mouths/<id>.npz              shared by all parts

Nothing is ever written into the directory, and an id is a string: leading zeros matter.
"""

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

AUDIO_EXTENSIONS = (".wav", ".flac", ".mp3")
PARTS = ("train", "val", "test")
MOUTH_EXTENSION = ".npz"
MOUTH_FOLDERS = ("mouths", "video")
# Sound files of these kinds are reported rather than passed over like a stray text file.
UNSUPPORTED_AUDIO = (".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".mp4", ".webm")


class LayoutError(ValueError):
    """A directory is not laid out as expected; the message names the path, what was found and the remedy."""


@dataclass(frozen=True)
class Mix:
    """One mixture and what belongs to it.

    Attributes:
        name: file name of the mixture without its extension.
        mix: the mixture.
        s1: true voice of the first speaker, ``None`` where absent.
        s2: true voice of the second speaker, ``None`` where absent.
        id1: id of the first speaker's clip.
        id2: id of the second speaker's clip.
        mouth1: mouth crops of ``id1``, ``None`` where absent.
        mouth2: mouth crops of ``id2``, ``None`` where absent.
    """

    name: str
    mix: Path
    s1: Path | None
    s2: Path | None
    id1: str
    id2: str
    mouth1: Path | None
    mouth2: Path | None


def find_mouths(root: str | Path) -> Path | None:
    """Return the folder of mouth crops of a data directory: ``mouths/``, ``video/``, or the directory itself.

    A folder that holds npz files wins over one that is merely there.
    """
    root = Path(root)
    folders = [root / name for name in MOUTH_FOLDERS if (root / name).is_dir()]
    if root.is_dir():
        folders.append(root)
    holding = [folder for folder in folders if _mouth_names(folder)]
    if holding:
        return holding[0]
    return folders[0] if folders and folders[0] != root else None


def list_mouths(root: str | Path) -> dict[str, Path]:
    """Map every id to its mouth file, sorted by id; empty where the directory has no mouths.

    Nothing is opened: a broken file, or a directory called ``x.npz``, is listed and fails when it is read.
    """
    folder = find_mouths(root)
    if folder is None:
        return {}
    return {name[: -len(MOUTH_EXTENSION)]: folder / name for name in sorted(_mouth_names(folder))}


def split_name(stem: str, known_ids: Collection[str]) -> tuple[str, str]:
    """Split a mixture's name ``<id1>_<id2>`` into its two ids.

    Ids may hold underscores themselves. The last underscore that makes both halves known ids wins. Where none does,
    the only underscore is taken, or else the only one that makes one half known; where no half is known, the last.

    Args:
        stem: file name without extension.
        known_ids: ids that have lips.

    Raises:
        LayoutError: no underscore parts the name, or several make one half known.
    """
    splits = [
        (stem[:place], stem[place + 1 :])
        for place, letter in enumerate(stem)
        if letter == "_" and 0 < place < len(stem) - 1
    ]
    if not splits:
        raise LayoutError(f"{stem}: the name has no underscore between two ids; expected <id1>_<id2>")
    both = [split for split in splits if split[0] in known_ids and split[1] in known_ids]
    if both:
        if len(both) > 1:
            warnings.warn(
                f"{stem}: the name can be split into two known ids in {len(both)} ways; "
                f"taking the last underscore, {both[-1][0]} and {both[-1][1]}",
                stacklevel=2,
            )
        return both[-1]
    if len(splits) == 1:
        return splits[0]
    one = [split for split in splits if split[0] in known_ids or split[1] in known_ids]
    if not one:
        return splits[-1]
    if len(one) == 1:
        return one[0]
    choices = ", ".join(f"{first} + {second}" for first, second in one)
    raise LayoutError(
        f"{stem}: the name is ambiguous, it could be {choices}; "
        "rename the file, or add the mouth files of both ids so that they decide"
    )


def index_mixes(
    root: str | Path, part: str | None = None, cached_ids: Collection[str] = ()
) -> tuple[list[Mix], list[tuple[Path, str]]]:
    """List the mixtures of a data directory with their truths and mouths.

    Only directory listings are read, no file is opened, so that 28,000 mixtures take about a second.

    Args:
        root: the data directory.
        part: ``None`` for ``audio/mix``, otherwise the part of the course's data set, e.g. ``train``.
        cached_ids: ids whose lips are at hand without their mouth files. They part the names of mixtures where the
            directory has no mouths.

    Returns:
        The mixtures sorted by name, and the files that cannot be used, each with its reason.

    Raises:
        LayoutError: the folder of mixtures is absent.
    """
    root = Path(root)
    folder = root / "audio" / part if part else root / "audio"
    if not (folder / "mix").is_dir():
        raise LayoutError(_absent_mix(root, folder / "mix"))
    problems: list[tuple[Path, str]] = []
    truths = {voice: _audio_by_stem(folder / voice, problems) for voice in ("s1", "s2")}
    mouths = list_mouths(root)
    known_ids = mouths.keys() or cached_ids
    mixes = []
    for stem, path in sorted(_audio_by_stem(folder / "mix", problems).items()):
        try:
            id1, id2 = split_name(stem, known_ids)
        except LayoutError as error:
            problems.append((path, str(error)))
            continue
        mixes.append(
            Mix(
                name=stem,
                mix=path,
                s1=truths["s1"].get(stem),
                s2=truths["s2"].get(stem),
                id1=id1,
                id2=id2,
                mouth1=mouths.get(id1),
                mouth2=mouths.get(id2),
            )
        )
    return mixes, problems


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted, without hidden ones (such as the ``._x.npz`` that archives from a Mac hold)."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _mouth_names(folder: Path) -> list[str]:
    return [name for name in _names(folder) if name.endswith(MOUTH_EXTENSION)]


def _audio_by_stem(folder: Path, problems: list[tuple[Path, str]]) -> dict[str, Path]:
    """Map stems to audio files of a folder, empty where it is absent; unusable files are added to ``problems``."""
    found: dict[str, Path] = {}
    for name in _names(folder) if folder.is_dir() else []:
        stem, extension = os.path.splitext(name)
        if extension.lower() in AUDIO_EXTENSIONS:
            if stem in found:
                problems.append(
                    (folder / name, f"has the same name as {found[stem].name}; keep one of the two")
                )
            else:
                found[stem] = folder / name
        elif extension.lower() in UNSUPPORTED_AUDIO:
            problems.append((folder / name, f"{extension} is not read; convert it to wav, flac or mp3"))
    return found


def _absent_mix(root: Path, expected: Path) -> str:
    if not root.is_dir():
        return f"{root}: no such directory"
    parts = [part for part in PARTS if (root / "audio" / part / "mix").is_dir()]
    if parts:
        remedy = f"its parts are {', '.join(parts)}: choose one of them"
    elif (root / "audio" / "mix").is_dir():
        remedy = "it has audio/mix and no parts: leave the part out"
    elif (root / "mix").is_dir() and root.parent.name == "audio":
        remedy = f"it is the part {root.name} of {root.parent.parent}: give that directory, and the part"
    elif (root / "mix").is_dir():
        remedy = f"mix lies directly in it: give {root.parent} if that is the directory that holds audio/"
    else:
        remedy = "expected audio/mix/<id1>_<id2>.wav (also flac, mp3), with audio/s1, audio/s2 and mouths/ optional"
    return f"{expected}: no such folder. {root} holds {', '.join(_names(root)[:8]) or 'nothing'}; {remedy}"
