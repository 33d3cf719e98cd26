"""Experiment writers and logging set-up; a service's client is imported once its writer is constructed."""

from src.logger.cometml import CometMLWriter
from src.logger.console import ConsoleWriter
from src.logger.logger import setup_logging
from src.logger.wandb import WandBWriter

__all__ = ["CometMLWriter", "ConsoleWriter", "WandBWriter", "setup_logging"]
