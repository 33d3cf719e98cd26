"""What the scripts share about configurations: resolvers and errors for people."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.freed_memory import keep_freed_memory

USAGE_ERROR = 2
_SHOWS_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"


def register_resolvers() -> None:
    """Let configurations multiply: `${mul:${trainer.n_epochs},${trainer.epoch_len}}`."""
    OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)


def require_given(config: DictConfig) -> None:
    """Refuse a configuration whose author left something to the user (`???`) that the user has not given.

    Raises:
        ValueError: names the options.
    """
    # Not OmegaConf.missing_keys: it stumbles over interpolations of what is missing.
    values = OmegaConf.to_container(config, resolve=False)
    missing = [key for key, value in values.items() if value == "???"]
    if missing:
        options = " ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{' and '.join(missing)} not given: add {options}")


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
        elif wrapped and not isinstance(error.__cause__, HydraException | OmegaConfBaseException):
            raise
        if _SHOWS_TRACEBACKS:
            raise
        print(f"{script}: {error}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def run_script(main: Callable[[], None], script: str) -> None:
    """Run a script's Hydra entry point, so that an option that does not exist is a usage error too."""
    keep_freed_memory()
    # Hydra itself would end a misspelt option and a defect of the program alike, in exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with usage_errors(script):
            main()
    except BrokenPipeError:  # whoever read the output has seen enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
