"""The table that says who speaks: a CSV file with columns id and speaker."""

import csv
from collections.abc import Iterable
from pathlib import Path

_NAMED = 5


def read_speakers(path: str | Path, ids: Iterable[str]) -> dict[str, str]:
    """Speaker of every id in the table.

    Args:
        path: CSV file; other columns than `id` and `speaker` are left alone.
        ids: those that must be in it.

    Raises:
        ValueError: the file is absent, lacks a column or an id.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"speakers={path}: no such file; give a CSV file with columns id and speaker, or null"
        )
    with Path(path).open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if not {"id", "speaker"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: needs the columns id and speaker, has {reader.fieldnames}")
        speakers = {row["id"]: row["speaker"] for row in reader}
    ids = list(ids)
    absent = [name for name in ids if not speakers.get(name)]
    if absent:
        raise ValueError(
            f"{path}: no speaker for {len(absent)} of {len(ids)} ids, such as {', '.join(absent[:_NAMED])}; "
            "complete the table, with ids as they are in the file names"
        )
    return speakers
