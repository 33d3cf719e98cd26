"""Weights & Biases writer that works without an account."""

import html
import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from src.logger.base_writer import MODES, BaseWriter, choose_mode
from src.logger.payloads import Table, audio_array, histogram, image_array, plain_config, table_rows

STEP_KEY = "global_step"


class WandBWriter(BaseWriter):
    """Logs to Weights & Biases, online where a key is configured, otherwise into ``save_dir/wandb``.

    Values of one step make one row, with the trainer's step in the column ``global_step``, the x axis of all
    charts. W&B's own step is left to count rows: it only grows, and would drop what a run that resumes from
    an earlier checkpoint logs again. Images and audio get the prefixes ``image/`` and ``audio/``: a row has one
    value per name, and trainers like to call a signal and its picture the same.

    W&B's own process writes to disk some four times a minute, so a run killed outright lacks its last quarter of
    one. Use the console writer where that matters.

    Args:
        logger: where it is announced how the run is logged, and how to sync it.
        project_config: configuration of the run, nested mappings.
        project_name: W&B project.
        run_name: name shown for the run.
        run_id: run to continue; without it the run last logged from ``save_dir`` is continued, else a new
            one begins.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; see ``choose_mode``. ``auto`` obeys
            ``WANDB_MODE``.
        save_dir: the run's folder.
        entity: W&B user or team; None is the account's own.
        start_timeout_s: how long to wait for the service before going offline.
    """

    def __init__(
        self,
        logger: logging.Logger | None,
        project_config: Mapping[str, Any],
        project_name: str,
        run_name: str | None = None,
        run_id: str | None = None,
        mode: str = "auto",
        *,
        save_dir: str | Path,
        entity: str | None = None,
        start_timeout_s: float = 30.0,
    ) -> None:
        if mode == "auto" and os.environ.get("WANDB_MODE") in MODES:
            mode = os.environ["WANDB_MODE"]
        super().__init__(logger, mode)
        self._row_open = False
        if not self.enabled:
            return

        import wandb

        self._wandb = wandb
        key_configured = has_api_key(wandb.setup().settings.base_url)
        mode = choose_mode(mode, key_configured=key_configured, service="W&B", logger=self.logger)
        save_dir = Path(save_dir)
        save_dir.mkdir(parents=True, exist_ok=True)
        id_file = save_dir / "wandb_run_id.txt"
        if run_id is None and id_file.exists():
            run_id = id_file.read_text().strip()

        options = {
            "project": project_name,
            "entity": entity,
            "config": plain_config(project_config),
            "name": run_name,
            "id": run_id,
            "dir": str(save_dir),
            "settings": wandb.Settings(init_timeout=start_timeout_s),
        }
        if mode == "online":
            try:
                self.run = wandb.init(mode="online", resume="allow", **options)
                self.logger.info("W&B: online, %s", self.run.url)
            except wandb.errors.Error as error:
                self.logger.warning("W&B does not answer (%s); the run is logged offline.", error)
                mode = "offline"
        if mode == "offline":
            self.run = wandb.init(mode="offline", **options)
            self.logger.info("W&B: offline. To upload the run: wandb sync %s", Path(self.run.dir).parent)
        self.run_id = self.run.id
        id_file.write_text(self.run_id + "\n")
        self.run.define_metric("*", step_metric=STEP_KEY)

    def set_step(self, step: int, mode: str = "train") -> None:
        if step != self.step:
            self._close_row()
        super().set_step(step, mode)

    def add_scalar(self, name: str, value: float) -> None:
        self._log(name, float(value))

    def add_image(self, name: str, image: Any) -> None:
        if self.enabled:
            self._log(f"image/{name}", self._wandb.Image(image_array(image)))

    def add_audio(self, name: str, audio: Any, sample_rate: int = 16_000) -> None:
        if self.enabled:
            self._log(f"audio/{name}", self._wandb.Audio(audio_array(audio), sample_rate=sample_rate))

    def add_text(self, name: str, text: str) -> None:
        if self.enabled:
            self._log(name, self._wandb.Html(_preformatted(text)))

    def add_histogram(self, name: str, values: Any, num_bins: int = 64) -> None:
        if self.enabled:
            self._log(name, self._wandb.Histogram(np_histogram=histogram(values, num_bins)))

    def add_table(self, name: str, table: Table) -> None:
        if self.enabled:
            columns, rows = table_rows(table)
            self._log(name, self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True))

    def add_checkpoint(self, path: str | Path, save_dir: str | Path) -> None:
        if self.enabled:
            self.run.save(str(path), base_path=str(save_dir), policy="now")

    def finish(self) -> None:
        if self.enabled:
            self._close_row()
            self.run.finish()
            self.enabled = False

    def _log(self, name: str, value: Any) -> None:
        if self.enabled:
            self.run.log({self.tagged(name): value, STEP_KEY: self.step}, commit=False)
            self._row_open = True

    def _close_row(self) -> None:
        if self._row_open:
            self.run.log({}, commit=True)
            self._row_open = False


def has_api_key(base_url: str) -> bool:
    """Whether W&B's client would find credentials: environment, or the netrc file that ``wandb login``
    writes.

    Looked up here, since the client has no public question for it that neither prompts nor uses the network.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = os.environ.get("NETRC")
    candidates = [Path(path)] if path else [Path.home() / ".netrc", Path.home() / "_netrc"]
    hosts = ("api.wandb.ai", urlsplit(base_url).netloc)
    for candidate in candidates:
        try:
            entries = netrc.netrc(candidate)
        except (OSError, netrc.NetrcParseError):
            continue  # absent or unreadable holds no key for the client either
        if any(entries.authenticators(host) for host in hosts):
            return True
    return False


def _preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
