"""What became of the recordings of one part, as numbers, as JSON and as text for people."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES = ("reading", "lips", "separation", "writing")
_LISTED = 20  # lines per list in the text; the JSON file has all


@dataclass
class PartReport:
    """Outcome of one part.

    Attributes:
        folder: where the voices were written.
        logs: mean of every metric over recordings and voices.
        undefined: voices without a value, for metrics where there are any.
        num_recordings: how many there are, mixtures that the dataset could not use included.
        num_written: how many were separated.
        num_by_lips: how many of them with the lips of one voice at least.
        num_exchanged: windows whose voices were exchanged, since the lips agree with them in the other order.
        num_scored: how many of them have truth.
        num_permuted: how many of these were scored in their better order, since no lips fixed it.
        audio_s: seconds of audio separated.
        seconds: time spent per stage.
        failures: (file, reason) of recordings that were not separated or not scored.
        damaged: (recording, reason) of recordings separated without lips that are there but cannot be used.
        remarks: (recording, remark) worth knowing.
    """

    folder: Path
    logs: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, int] = field(default_factory=dict)
    num_recordings: int = 0
    num_written: int = 0
    num_by_lips: int = 0
    num_exchanged: int = 0
    num_scored: int = 0
    num_permuted: int = 0
    audio_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, "scoring"), 0.0))
    failures: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every recording was separated, and scored, with all that the directory holds for it."""
        return not self.failures and not self.damaged

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of audio, scoring not counted; None when nothing was separated."""
        return sum(self.seconds[stage] for stage in STAGES) / self.audio_s if self.audio_s else None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time inside the context for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {
            "folder": str(self.folder),
            "recordings": self.num_recordings,
            "separated": self.num_written,
            "separated_by_lips": self.num_by_lips,
            "windows_exchanged_by_check": self.num_exchanged,
            "scored": self.num_scored,
            "scored_in_better_order": self.num_permuted,
            "metrics": self.logs,
            "voices_without_value": self.undefined,
            "audio_s": round(self.audio_s, 3),
            "real_time_factor": self.real_time_factor,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "failures": [{"file": file, "reason": reason} for file, reason in self.failures],
            "damaged_mouths": [{"file": file, "reason": reason} for file, reason in self.damaged],
            "remarks": [{"file": file, "remark": remark} for file, remark in self.remarks],
        }

    def __str__(self) -> str:
        """Scores, time and whatever went wrong, for the end of a run."""
        lines = [
            f"{self.num_written} of {self.num_recordings} recordings separated into {self.folder}, "
            f"{self.num_by_lips} by the lips of one voice at least"
        ]
        if self.num_exchanged:
            windows = "1 window" if self.num_exchanged == 1 else f"{self.num_exchanged} windows"
            lines.append(f"In {windows} the voices were exchanged, since the lips move with the other one")
        if self.logs:
            lines.append(
                f"Means over both voices of {self.num_scored} recordings with truth, {self._order()}:"
            )
            lines += [f"  {name:<8} {value:8.3f}{self._without(name)}" for name, value in self.logs.items()]
        if self.real_time_factor is not None:
            stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in self.seconds.items())
            lines.append(
                f"{self.audio_s:.1f} s of audio, real-time factor {self.real_time_factor:.3f} ({stages}; scoring "
                "not counted in the factor)"
            )
        lines += _listed("remarks", self.remarks)
        lines += _listed(
            "separated without the lips of a voice, since its mouth file cannot be used", self.damaged
        )
        lines += _listed("failed", self.failures)
        return "\n".join(lines)

    def _order(self) -> str:
        if not self.num_permuted:
            return "in the order that the lips gave"
        if self.num_permuted == self.num_scored:
            return "in the better of both orders (no lips fixed it)"
        return f"{self.num_permuted} of them without lips and in the better of both orders"

    def _without(self, metric: str) -> str:
        number = self.undefined.get(metric, 0)
        return f"  ({number} voices without a value)" if number else ""


def _listed(title: str, entries: list[tuple[str, str]]) -> list[str]:
    if not entries:
        return []
    lines = [f"{len(entries)} {title}:"]
    # Reasons of our own readers begin with the file already.
    lines += [f"  {text if text.startswith(name) else f'{name}: {text}'}" for name, text in entries[:_LISTED]]
    if len(entries) > _LISTED:
        lines.append(f"  ... and {len(entries) - _LISTED} more, all in inference.json")
    return lines
