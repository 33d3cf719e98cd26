"""Which estimate belongs to which truth: files of the same name in folders of the same name."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.metrics.problems import Problem

VOICES = ("s1", "s2")


class FolderError(ValueError):
    """A folder that the evaluation cannot do without is absent; the message says what was expected."""


@dataclass(frozen=True)
class Pair:
    """The files of one mixture; None where one is absent.

    Attributes:
        name: the name they share, without extension.
        estimates: by voice, as far as they exist.
        truths: by voice, as far as they exist.
        mix: the mixture.
    """

    name: str
    estimates: dict[str, Path]
    truths: dict[str, Path]
    mix: Path | None


@dataclass
class Pairing:
    """All pairs of two directories.

    Attributes:
        pairs: sorted by name.
        problems: files without a partner, and files that share a name.
        has_mix: whether there is a folder of mixtures at all.
    """

    pairs: list[Pair]
    problems: list[Problem] = field(default_factory=list)
    has_mix: bool = True


def pair_files(
    pred: Path, truth: Path, mix: Path | None = None, *, extensions: Sequence[str] = (".wav", ".flac", ".mp3")
) -> Pairing:
    """Match estimates, truths and mixtures by file name without extension.

    Args:
        pred: holds ``s1/`` and ``s2/``.
        truth: holds ``s1/`` and ``s2/``, and ``mix/`` unless given apart. A data directory with these in ``audio/``
            is understood as well.
        mix: folder of the mixtures.
        extensions: which files are audio, the preferred first where two share a name.

    Raises:
        FolderError: ``pred`` or ``truth`` has neither voice, ``mix`` was named and is absent, or there is no audio.
    """
    if not _has_voice(truth) and _has_voice(truth / "audio"):
        truth = truth / "audio"
    for key, folder in (("pred", pred), ("truth", truth)):
        if not _has_voice(folder):
            raise FolderError(
                f"{key}={folder}: expected a folder that holds s1/ and s2/ with files named as the mixtures; "
                f"{_content(folder)}"
            )
    if mix is not None and not mix.is_dir():
        raise FolderError(f"mix={mix}: expected the folder of the mixtures; {_content(mix)}")
    mix = mix or truth / "mix"
    problems: list[Problem] = []
    estimates = {voice: _by_stem(pred / voice, extensions, problems) for voice in VOICES}
    truths = {voice: _by_stem(truth / voice, extensions, problems) for voice in VOICES}
    mixes = _by_stem(mix, extensions, problems)
    pairs = []
    for name in sorted(set().union(*estimates.values(), *truths.values())):
        pairs.append(
            Pair(
                name=name,
                estimates={voice: files[name] for voice, files in estimates.items() if name in files},
                truths={voice: files[name] for voice, files in truths.items() if name in files},
                mix=mixes.get(name),
            )
        )
    if not pairs:
        raise FolderError(
            f"no audio file ({', '.join(extensions)}) in s1/ and s2/ of pred={pred} and truth={truth}"
        )
    for pair in pairs:
        problems.extend(_missing(pair, pred, truth, mix))
    return Pairing(pairs, problems, has_mix=mix.is_dir())


def _missing(pair: Pair, pred: Path, truth: Path, mix: Path) -> list[Problem]:
    problems = []
    for voice in VOICES:
        if voice not in pair.estimates:
            problems.append(
                Problem(pair.name, voice, "pair missing", f"no estimate {pred / voice / pair.name}.*")
            )
        if voice not in pair.truths:
            problems.append(
                Problem(pair.name, voice, "pair missing", f"no truth {truth / voice / pair.name}.*")
            )
    if pair.mix is None and mix.is_dir():
        problems.append(
            Problem(pair.name, "mix", "mix missing", f"no mixture {mix / pair.name}.*, so no improvement")
        )
    return problems


def _has_voice(folder: Path) -> bool:
    return any((folder / voice).is_dir() for voice in VOICES)


def _content(folder: Path) -> str:
    if not folder.exists():
        return "it does not exist"
    if not folder.is_dir():
        return "it is a file"
    names = sorted(os.listdir(folder))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"it holds {', '.join(names[:8]) or 'nothing'}{more}"


def _by_stem(folder: Path, extensions: Sequence[str], problems: list[Problem]) -> dict[str, Path]:
    """Audio files of a folder by name without extension; nothing where the folder is absent."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    candidates: dict[str, list[str]] = {}
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension.lower() in extensions:
            candidates.setdefault(stem, []).append(name)
    found = {}
    for stem, same in candidates.items():
        same.sort(key=lambda name: extensions.index(os.path.splitext(name)[1].lower()))
        found[stem] = folder / same[0]
        if len(same) > 1:
            detail = f"{folder}: {', '.join(same)} share a name, {same[0]} was used"
            problems.append(Problem(stem, folder.name, "name not unique", detail))
    return found
