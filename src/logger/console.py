"""Writer that needs no service: CSV, PNG and WAV files in the run's folder."""

import csv
import io
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import soundfile

from src.logger.base_writer import BaseWriter
from src.logger.payloads import Table, audio_array, histogram, image_array, plain_config, table_rows
from src.utils.io_utils import write_atomically

SCALAR_COLUMNS = ("step", "mode", "name", "value")
TEXT_COLUMNS = ("step", "mode", "name", "text")
HISTOGRAM_COLUMNS = ("step", "mode", "name", "bin_left", "bin_right", "count")


class ConsoleWriter(BaseWriter):
    """Keeps a run as plain files.

    ``scalars.csv``, ``texts.csv`` and ``histograms.csv`` are long tables with a line per value; images,
    audio and tables are files named ``{name}_{mode}_{step}`` in folders of their own. Each line reaches the
    file at once, so a kill loses at most the one being written. A writer on the same folder appends: after
    resuming from an earlier checkpoint the later line of a step is the valid one.

    Args:
        logger: where the location is announced.
        project_config: configuration of the run, written to ``writer_config.json``.
        project_name: kept with the configuration.
        run_name: kept with the configuration.
        run_id: kept with the configuration.
        save_dir: the run's folder.
        mode: ``disabled`` keeps nothing; every other mode means the same here.
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
    ) -> None:
        super().__init__(logger, mode)
        self.run_id = run_id
        self.save_dir = Path(save_dir)
        self._files: dict[str, TextIO] = {}
        if not self.enabled:
            return
        self.save_dir.mkdir(parents=True, exist_ok=True)
        self._write_config(project_name, run_name, plain_config(project_config))
        self.logger.info("Scalars, images and audio are kept in %s", self.save_dir)

    def add_scalar(self, name: str, value: float) -> None:
        self._append("scalars.csv", SCALAR_COLUMNS, [(self.step, self.mode, name, float(value))])

    def add_text(self, name: str, text: str) -> None:
        self._append("texts.csv", TEXT_COLUMNS, [(self.step, self.mode, name, text)])

    def add_histogram(self, name: str, values: Any, num_bins: int = 64) -> None:
        counts, edges = histogram(values, num_bins)
        bins = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        self._append(
            "histograms.csv",
            HISTOGRAM_COLUMNS,
            [(self.step, self.mode, name, *row) for row in bins],
        )

    def add_image(self, name: str, image: Any) -> None:
        if not self.enabled:
            return
        from matplotlib.image import imsave

        pixels = image_array(image)
        write_atomically(
            self._path("images", name, ".png"), lambda stream: imsave(stream, pixels, format="png")
        )

    def add_audio(self, name: str, audio: Any, sample_rate: int = 16_000) -> None:
        if not self.enabled:
            return
        samples = audio_array(audio)

        def write(stream: BinaryIO) -> None:
            soundfile.write(stream, samples, sample_rate, subtype="PCM_16", format="WAV")

        write_atomically(self._path("audio", name, ".wav"), write)

    def add_table(self, name: str, table: Table) -> None:
        if not self.enabled:
            return
        columns, rows = table_rows(table)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        content = text.getvalue().encode()
        write_atomically(self._path("tables", name, ".csv"), lambda stream: stream.write(content))

    def add_checkpoint(self, path: str | Path, save_dir: str | Path) -> None:
        """Only announced: the checkpoint already lies in the run's folder, a copy would double it."""
        if self.enabled:
            self.logger.debug("Checkpoint %s", path)

    def finish(self) -> None:
        for stream in self._files.values():
            stream.close()
        self._files.clear()
        self.enabled = False

    def _append(self, file_name: str, columns: tuple[str, ...], rows: list[tuple]) -> None:
        if not self.enabled:
            return
        stream = self._files.get(file_name)
        if stream is None:
            path = self.save_dir / file_name
            _drop_torn_line(path)
            stream = path.open("a", newline="", encoding="utf-8")
            self._files[file_name] = stream
            if stream.tell() == 0:
                csv.writer(stream, lineterminator="\n").writerow(columns)
        csv.writer(stream, lineterminator="\n").writerows(rows)
        stream.flush()

    def _path(self, folder: str, name: str, suffix: str) -> Path:
        # Names may hold slashes and spaces, which group panels in the services' pages but are no file names.
        safe = re.sub(r"[^\w.\-]+", "_", self.tagged(name))
        return self.save_dir / folder / f"{safe}_{self.step}{suffix}"

    def _write_config(self, project_name: str, run_name: str | None, config: dict[str, Any]) -> None:
        record = {"project_name": project_name, "run_name": run_name, "run_id": self.run_id, "config": config}
        content = (json.dumps(record, indent=2, default=str) + "\n").encode()
        write_atomically(self.save_dir / "writer_config.json", lambda stream: stream.write(content))


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left of its last line, so that the next line does not grow into it.

    A line is whole when it ends in a line break outside quotes: an even number of quote characters before it.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    end = len(data)
    while end > 0 and (data[end - 1 : end] != b"\n" or data.count(b'"', 0, end) % 2):
        end = data.rfind(b"\n", 0, end - 1) + 1
    if end < len(data):
        with open(path, "r+b") as stream:
            stream.truncate(end)
