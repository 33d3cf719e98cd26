"""What the scripts share about configurations: resolvers and errors for people."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

USAGE_ERROR = 2


def register_resolvers() -> None:
    """Let configurations multiply: `${mul:${trainer.n_epochs},${trainer.epoch_len}}`."""
    OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)


@contextmanager
def usage_errors(script: str) -> Iterator[None]:
    """What a user can mend (ValueError, a wrong option) ends the script in one line and exit code 2.

    `HYDRA_FULL_ERROR=1` shows the traceback instead.
    """
    try:
        yield
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        if not isinstance(cause, ValueError | HydraException | OmegaConfBaseException):
            raise
        print(f"{script}: {cause}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
        sys.exit(USAGE_ERROR)
