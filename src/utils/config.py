"""What the scripts share about configurations: resolvers and errors for people."""

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

USAGE_ERROR = 2


def register_resolvers() -> None:
    """Let configurations multiply: `${mul:${trainer.n_epochs},${trainer.epoch_len}}`."""
    OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)


def run_script(main: Callable[[], None], script: str) -> None:
    """Run a script's Hydra entry point: what a user can mend (ValueError, a wrong option) ends in a message and exit
    code 2, anything else in a traceback and exit code 1.

    `HYDRA_FULL_ERROR=1` shows the traceback of either.
    """
    shows_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra itself would end a misspelt option and a defect of the program alike, in exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        if shows_all or not isinstance(cause, ValueError | HydraException | OmegaConfBaseException):
            raise
        print(f"{script}: {cause}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
        sys.exit(USAGE_ERROR)
