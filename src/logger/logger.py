"""Text logging of a run: console and a file in the run's folder."""

import json
import logging
import logging.config
import os
from pathlib import Path

DEFAULT_CONFIG = Path(__file__).with_name("logger_config.json")


def setup_logging(
    save_dir: str | Path,
    append: bool = False,
    log_config: str | Path = DEFAULT_CONFIG,
    *,
    is_main: bool = True,
) -> logging.Logger:
    """Configure ``logging`` from a JSON file, with its file handlers writing into the run's folder.

    Args:
        save_dir: the run's folder, made if absent.
        append: continue the log files that are there (a resumed run); otherwise they start anew.
        log_config: ``logging.config.dictConfig`` as JSON; relative file names in it are taken as under
            ``save_dir``.
        is_main: whether this process writes for all of a distributed run. The others write no file and say
            warnings only.

    Returns:
        The root logger.

    Raises:
        ValueError: ``log_config`` is absent or no JSON.
    """
    try:
        config = json.loads(Path(log_config).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{log_config}: not readable as a logging configuration ({error})") from error
    save_dir = Path(save_dir)
    if is_main:
        save_dir.mkdir(parents=True, exist_ok=True)
    for handler in config.get("handlers", {}).values():
        if not is_main:
            handler["level"] = "WARNING"
        if "filename" in handler:
            handler["filename"] = str(save_dir / handler["filename"]) if is_main else os.devnull
            handler["mode"] = "a" if append else "w"
    logging.config.dictConfig(config)
    return logging.getLogger()
