"""Which values belong together when intervals are bootstrapped: by mixture, by clip or by speaker."""

import csv
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.metrics.pairing import VOICES

GROUPINGS = ("file", "clip", "speaker")


class GroupingError(ValueError):
    """A grouping that cannot be made; the message names option or file, and the remedy."""


def read_speakers(path: Path) -> dict[str, str]:
    """Read which clip is spoken by whom.

    Args:
        path: CSV with the columns ``id`` and ``speaker``, others are ignored. Ids stay strings.

    Raises:
        GroupingError: no such file, a column is absent, or an id has two speakers.
    """
    if not path.is_file():
        raise GroupingError(f"groups={path}: no such file; expected a CSV with the columns id and speaker")
    speakers: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if not {"id", "speaker"} <= set(rows.fieldnames or ()):
                found = ", ".join(rows.fieldnames or ()) or "none"
                raise GroupingError(f"groups={path}: needs the columns id and speaker, it has {found}")
            for row in rows:
                if speakers.setdefault(row["id"], row["speaker"]) != row["speaker"]:
                    raise GroupingError(
                        f"groups={path}: id {row['id']} has two speakers, {speakers[row['id']]} and {row['speaker']}"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise GroupingError(f"groups={path}: not readable as CSV ({error})") from error
    return speakers


@dataclass
class Grouping:
    """Labels voices with the group they are resampled with.

    Attributes:
        by: file, clip or speaker.
        split_name: parts a mixture's name into the ids of its clips, given the known ids; raises ValueError.
        speakers: speaker of each clip id; needed for "speaker".
    """

    by: str = "file"
    split_name: Callable[[str, Collection[str]], tuple[str, str]] | None = None
    speakers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.by not in GROUPINGS:
            raise GroupingError(f"group_by={self.by}: choose one of {', '.join(GROUPINGS)}")
        if self.by == "speaker" and not self.speakers:
            raise GroupingError("group_by=speaker needs groups=FILE, a CSV with the columns id and speaker")

    def label(self, name: str, voice: str) -> str:
        """Group of a voice.

        Raises:
            GroupingError: the name cannot be parted into ids, or the speaker of the id is not known.
        """
        if self.by == "file":
            return name
        try:
            ids = self.split_name(name, self.speakers.keys())
        except ValueError as error:
            raise GroupingError(str(error)) from error
        clip = ids[VOICES.index(voice)]
        if self.by == "clip":
            return clip
        if clip not in self.speakers:
            raise GroupingError(f"id {clip} is not in the groups file")
        return self.speakers[clip]
