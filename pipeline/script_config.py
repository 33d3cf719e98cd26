"""What the scripts share about configurations: resolvers and errors for people."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.freed_memory import keep_freed_memory

USAGE_ERROR = 2
_QUOTES = """
A value with spaces, brackets or letters beyond a to z goes in two pairs of quotes: 'root="/data/M\u00fcller (1)"'"""
_SHOWS_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"


def register_resolvers() -> None:
    """Let configurations multiply: `${mul:${trainer.n_epochs},${trainer.epoch_len}}`."""
    OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)


def check_options(config: DictConfig) -> None:
    """Refuse a configuration that lacks what is left to the user (`???`), or has text where a number belongs.

    Raises:
        ValueError: names the options.
    """
    # Not OmegaConf.missing_keys: it stumbles over interpolations of what is missing.
    values = OmegaConf.to_container(config, resolve=False)
    missing = [key for key, value in values.items() if value == "???"]
    if missing:
        options = " ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{' and '.join(missing)} not given: add {options}")
    if HydraConfig.initialized():
        _refuse_text_for_numbers(config)


def _refuse_text_for_numbers(config: DictConfig) -> None:
    """What the command line set is compared with what the chosen configuration files have there."""
    command = HydraConfig.get()
    given = OverridesParser.create().parse_overrides(command.overrides.task)
    chosen = [option.input_line for option in given if option.key_or_group in command.runtime.choices]
    defaults = hydra.compose(command.job.config_name, chosen)
    for option in given:
        key = option.key_or_group
        usual = OmegaConf.select(defaults, key, throw_on_resolution_failure=False)
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if isinstance(usual, int | float) and isinstance(value, str):
            kind = "true or false" if isinstance(usual, bool) else "a number"
            raise ValueError(f"{key}={value}: take {kind}, such as {str(usual).lower()}")


def quoted(value: object) -> str:
    """A value as Hydra's command line takes it, whatever characters it has."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


@contextmanager
def usage_errors(script: str) -> Iterator[None]:
    """What a user can mend (ValueError, a wrong option) ends the script in one message and exit code 2.

    `HYDRA_FULL_ERROR=1` shows the traceback instead.
    """
    try:
        yield
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        # Hydra wraps what a constructor raises; its own words about options are better than their cause's.
        wrapped = isinstance(error, HydraException) and error.__cause__ is not None
        if wrapped and isinstance(error.__cause__, ValueError):
            error = error.__cause__
        elif wrapped and (foreign := _foreign_option(error)):
            error = ValueError(foreign)
        elif wrapped and not isinstance(error.__cause__, HydraException | OmegaConfBaseException):
            raise
        if _SHOWS_TRACEBACKS:
            raise
        hint = _QUOTES if isinstance(error, OverrideParseException) else ""
        print(f"{script}: {error}{hint}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _foreign_option(error: HydraException) -> str | None:
    """A message for an option that the chosen `_target_` does not take, as an experiment may set it for another."""
    cause = error.__cause__
    name = (
        re.search(r"unexpected keyword argument '(\w+)'", str(cause))
        if isinstance(cause, TypeError)
        else None
    )
    place = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    # Hydra's own frame alone: what is called has not begun, so that it is no defect within it.
    if name is None or place is None or len(traceback.extract_tb(cause.__traceback__)) > 1:
        return None
    return (
        f"{place[1]} has no option {name[1]}, which an experiment or the command line set: leave it out with "
        f"~{place[1]}.{name[1]}"
    )


def run_script(main: Callable[[], None], script: str) -> None:
    """Run a script's Hydra entry point, so that an option that does not exist is a usage error too."""
    keep_freed_memory()
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    # Hydra itself would end a misspelt option and a defect of the program alike, in exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with usage_errors(script):
            main()
    except BrokenPipeError:  # whoever read the output has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
