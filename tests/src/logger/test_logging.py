"""The run's log file."""

import logging

import pytest

from src.logger import setup_logging


@pytest.fixture(autouse=True)
def _restore_root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


def log_line(save_dir, text, append):
    setup_logging(save_dir, append=append)
    logging.getLogger("train").info(text)
    logging.shutdown(logging._handlerList[:])


def test_append_continues_the_file_and_its_absence_starts_anew(tmp_path):
    log_line(tmp_path, "first", append=False)
    log_line(tmp_path, "second", append=True)
    text = (tmp_path / "info.log").read_text()
    assert "first" in text and "second" in text
    log_line(tmp_path, "third", append=False)
    text = (tmp_path / "info.log").read_text()
    assert "first" not in text and "third" in text


def test_other_ranks_write_no_file_and_only_warn(tmp_path, capsys):
    logger = setup_logging(tmp_path / "run", is_main=False)
    logger.info("from rank 1")
    logger.warning("trouble on rank 1")
    assert not (tmp_path / "run").exists()
    output = capsys.readouterr().out
    assert "trouble on rank 1" in output and "from rank 1" not in output


def test_loggers_made_before_are_not_switched_off(tmp_path):
    early = logging.getLogger("made.before")
    setup_logging(tmp_path)
    early.warning("still heard")
    assert "still heard" in (tmp_path / "info.log").read_text()


def test_broken_configuration_names_the_file(tmp_path):
    broken = tmp_path / "log.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match=r"log\.json"):
        setup_logging(tmp_path, log_config=broken)
