"""What went wrong with single files in an evaluation: counted and listed, never dropped."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file.

    Attributes:
        name: mixture, without extension.
        voice: s1, s2, or what else is concerned.
        kind: a few words that can be counted.
        detail: which file, what exactly, and what was done about it.
    """

    name: str
    voice: str
    kind: str
    detail: str


def count_kinds(problems: Iterable[Problem]) -> dict[str, int]:
    """How many problems there are of each kind, the most frequent first."""
    return dict(Counter(problem.kind for problem in problems).most_common())
