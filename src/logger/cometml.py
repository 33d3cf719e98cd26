"""Comet ML writer that works without an account."""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import soundfile

from src.logger.base_writer import BaseWriter, WriterError, choose_mode
from src.logger.payloads import Table, audio_array, finite_values, image_array, plain_config, table_rows


class CometMLWriter(BaseWriter):
    """Logs to Comet ML, online where a key is configured, otherwise into a zip file under ``save_dir/comet``.

    Comet's client writes the zip when the run ends (also on an error or Ctrl-C); a run that is killed
    outright leaves none. Use the console writer where that matters.

    Args:
        logger: where it is announced how the run is logged, and how to upload it.
        project_config: configuration of the run, nested mappings.
        project_name: Comet project.
        run_name: name shown for the run.
        run_id: experiment key to continue, 32 to 50 letters and digits; without it the run last logged from
            ``save_dir`` is continued, else a new one begins.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``; see ``choose_mode``.
        save_dir: the run's folder.
        workspace: Comet workspace; None is the account's own.

    Raises:
        WriterError: ``run_id`` is no experiment key.
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
        workspace: str | None = None,
    ) -> None:
        super().__init__(logger, mode)
        if not self.enabled:
            return

        # Everything is logged by hand here; without this the client patches torch, and warns that it came
        # too late.
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        import comet_ml

        key_configured = comet_ml.get_api_key(None, comet_ml.get_config()) is not None
        mode = choose_mode(mode, key_configured=key_configured, service="Comet", logger=self.logger)
        save_dir = Path(save_dir)
        save_dir.mkdir(parents=True, exist_ok=True)
        id_file = save_dir / "comet_run_id.txt"
        if run_id is None and id_file.exists():
            run_id = id_file.read_text().strip()
        if run_id is None:
            run_id = comet_ml.generate_guid()
        elif not comet_ml.is_valid_experiment_key(run_id):
            raise WriterError(
                f"writer.run_id={run_id!r} is no Comet experiment key: use 32 to 50 letters and digits"
            )
        self.run_id = run_id
        id_file.write_text(run_id + "\n")

        offline_dir = save_dir / "comet"

        def start(online: bool) -> Any:
            return comet_ml.start(
                online=online,
                project_name=project_name,
                workspace=workspace,
                experiment_key=run_id,
                mode="get_or_create",
                experiment_config=comet_ml.ExperimentConfig(
                    name=run_name,
                    offline_directory=str(offline_dir),
                    log_code=False,
                    log_graph=False,
                    parse_args=False,
                    auto_param_logging=False,
                    auto_metric_logging=False,
                    display_summary_level=0,
                    # To learn the host's address it looks up Comet's, which offline may hang.
                    log_env_host=online,
                ),
            )

        self.experiment = self._start_online(start) if mode == "online" else None
        if self.experiment is None:
            offline_dir.mkdir(parents=True, exist_ok=True)
            self.experiment = start(False)
            self.logger.info(
                "Comet: offline. To upload the run once it has ended: comet upload %s/*.zip", offline_dir
            )
        self.experiment.log_parameters(plain_config(project_config))

    def _start_online(self, start: Callable[[bool], Any]) -> Any | None:
        try:
            experiment = start(True)
        # The client lets errors of every kind through here, its own, those of requests and plain ValueErrors.
        except Exception as error:
            self.logger.warning("Comet does not answer (%s); the run is logged offline.", error)
            return None
        if not experiment.alive:
            self.logger.warning("Comet does not answer (its message is above); the run is logged offline.")
            experiment.end()
            return None
        self.logger.info("Comet: online, %s", experiment.url)
        return experiment

    def add_scalar(self, name: str, value: float) -> None:
        if self.enabled:
            self.experiment.log_metric(self.tagged(name), float(value), step=self.step)

    def add_image(self, name: str, image: Any) -> None:
        if self.enabled:
            # As a PIL image: from arrays Comet stretches the contrast, and fails where all pixels are equal.
            from PIL import Image

            self.experiment.log_image(
                Image.fromarray(image_array(image)), name=self.tagged(name), step=self.step
            )

    def add_audio(self, name: str, audio: Any, sample_rate: int = 16_000) -> None:
        if self.enabled:
            # As a file: from arrays Comet scales every clip to full level.
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "audio.wav"
                soundfile.write(path, audio_array(audio), sample_rate, subtype="PCM_16")
                self.experiment.log_audio(
                    str(path), file_name=f"{self.tagged(name)}.wav", step=self.step, copy_to_tmp=True
                )

    def add_text(self, name: str, text: str) -> None:
        if self.enabled:
            self.experiment.log_text(text, step=self.step, metadata={"name": self.tagged(name)})

    def add_histogram(self, name: str, values: Any, num_bins: int = 64) -> None:
        if self.enabled:
            # Comet bins by itself, on a scale that all its histograms share.
            self.experiment.log_histogram_3d(finite_values(values), name=self.tagged(name), step=self.step)

    def add_table(self, name: str, table: Table) -> None:
        if self.enabled:
            columns, rows = table_rows(table)
            file_name = f"{self.tagged(name).replace('/', '_')}_{self.step}.csv"
            self.experiment.log_table(file_name, rows, headers=columns)

    def add_checkpoint(self, path: str | Path, save_dir: str | Path) -> None:
        if self.enabled:
            file_name = Path(path).relative_to(save_dir).as_posix()
            self.experiment.log_model("checkpoints", str(path), file_name=file_name, overwrite=True)

    def finish(self) -> None:
        if self.enabled:
            self.experiment.end()
            self.enabled = False
