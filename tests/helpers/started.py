"""What a test starts hears a Ctrl-C, and ends with the test, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

OWNER = "SPARKS_TESTS_OWNER"
"""Environment variable that tells which pytest process started something: several may run here."""


def prepare() -> None:
    """Make what this process starts recognizable, and able to be interrupted.

    A script's background jobs run with SIGINT ignored, and so does all that they start, unless
    something handles the signal here.
    """
    os.environ[OWNER] = str(os.getpid())
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(command: Sequence[object], **keywords: Any) -> Iterator[subprocess.Popen]:
    """A process, which is killed on leaving if it still runs."""
    with subprocess.Popen([str(part) for part in command], **keywords) as process:
        try:
            yield process
        finally:
            process.kill()


def end_all_of(test: str, phase: str) -> None:
    """Kill what was started in a phase of a test and still runs, orphans and other sessions too.

    What pytest sets in the environment for each phase tells them apart from a fixture's process,
    which others may still need.
    """
    marks = {OWNER: str(os.getpid()), "PYTEST_CURRENT_TEST": f"{test} ({phase})"}.items()
    for process in psutil.process_iter():
        # It may have ended, or be another user's.
        with suppress(psutil.Error, OSError):
            if marks <= process.environ().items():
                process.kill()
