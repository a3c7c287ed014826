"""Another process that holds the lock of a run folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import os, sys
from pathlib import Path
from sparks.runs.lock import RunLock
RunLock(Path(sys.argv[1])).take()
if sys.argv[2] == "worker":
    begun, told = os.pipe()
    if not os.fork():
        os.closerange(1, 3)  # lives on, and holds nothing of its parent
        os.write(told, b"x")
        sys.stdin.read()
        os._exit(0)
    os.read(begun, 1)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, kind: str = "") -> Iterator[subprocess.Popen]:
    """Another process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD, str(folder), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()
