"""Ctrl-C for a process that a test starts."""

import signal


def heed_interrupts() -> None:
    """A shell lets what it starts in the background ignore interrupts, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
