"""What all experiment writers share: the step, the name suffix, the choice between online and offline."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.logger.payloads import Table

MODES = ("auto", "online", "offline", "disabled")


class WriterError(ValueError):
    """A writer option that cannot be used; the message names key, value and remedy."""


class BaseWriter(ABC):
    """The template's writer API.

    ``set_step`` is called before values are added; every name gets the suffix ``_{mode}`` (``train``,
    ``val``, ...). A writer whose ``enabled`` is False swallows everything: one with mode ``disabled``, or one
    that is finished.

    Attributes:
        run_id: what to pass as ``run_id`` to continue this run.

    Raises:
        WriterError: unknown mode.
    """

    def __init__(self, logger: logging.Logger | None, mode: str) -> None:
        if mode not in MODES:
            raise WriterError(f"writer.mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
        self.logger = logger if logger is not None else logging.getLogger(__name__)
        self.enabled = mode != "disabled"
        self.run_id: str | None = None
        self.step = 0
        self.mode = ""
        self._step_since: float | None = None

    def set_step(self, step: int, mode: str = "train") -> None:
        """Name the step and the part that the values added from now on belong to.

        Two calls in a row with the same mode and a later step also log ``steps_per_sec``. A change of mode
        starts the clock anew, so that validation is not counted as slow training.
        """
        now = time.perf_counter()
        passed = step - self.step
        timed = self._step_since is not None and mode == self.mode and passed > 0
        seconds = now - self._step_since if timed else 0.0
        self.step, self.mode, self._step_since = step, mode, now
        if timed and seconds > 0:
            self.add_scalar("steps_per_sec", passed / seconds)

    def tagged(self, name: str) -> str:
        """The name as the service sees it."""
        return f"{name}_{self.mode}" if self.mode else name

    def add_scalars(self, name: str, values: Mapping[str, float]) -> None:
        """Log several scalars of one family: ``{name}/{key}``."""
        for key, value in values.items():
            self.add_scalar(f"{name}/{key}", value)

    @abstractmethod
    def add_scalar(self, name: str, value: float) -> None:
        """Log one number."""

    @abstractmethod
    def add_image(self, name: str, image: Any) -> None:
        """Log an image, see ``payloads.image_array``."""

    @abstractmethod
    def add_audio(self, name: str, audio: Any, sample_rate: int = 16_000) -> None:
        """Log audio at its own level, see ``payloads.audio_array``. Beyond full scale (1.0) it is clipped."""

    @abstractmethod
    def add_text(self, name: str, text: str) -> None:
        """Log a text."""

    @abstractmethod
    def add_histogram(self, name: str, values: Any, num_bins: int = 64) -> None:
        """Log the distribution of the finite values."""

    @abstractmethod
    def add_table(self, name: str, table: Table) -> None:
        """Log a table, see ``payloads.table_rows``."""

    @abstractmethod
    def add_checkpoint(self, path: str | Path, save_dir: str | Path) -> None:
        """Log a checkpoint file that lies under ``save_dir``."""

    @abstractmethod
    def finish(self) -> None:
        """Close the run; values added afterwards are lost."""


def choose_mode(mode: str, *, key_configured: bool, service: str, logger: logging.Logger) -> str:
    """Decide between online and offline without ever asking for an account.

    Args:
        mode: ``auto`` is online where a key is configured and offline elsewhere. ``online`` without a key is
            offline too, with a warning, since the service's client would stop and ask for one.
        key_configured: whether the service's client would find a key.
        service: name for the messages.
    """
    if mode == "auto":
        return "online" if key_configured else "offline"
    if mode == "online" and not key_configured:
        logger.warning("%s: mode online, but no API key is configured; the run is logged offline.", service)
        return "offline"
    return mode
