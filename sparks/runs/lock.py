"""One writer a run folder at a time: a lock that dies with its process.

`flock` on a file in the folder belongs to whoever opened it: nothing that only reads the folder can
lose it, and the system gives it back however the process ends. A forked child, such as a worker of
a data loader, closes its copy, or it would hold the folder after its parent. Within one process
the lock may be taken again: a training that was broken off in a notebook has left it behind.

On Windows a byte of the file is locked in the same way, which no test has seen yet.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sparks.ground.errors import SparksError

NAME = ".lock"
"""In the run folder while it is written, and after a kill."""

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
_TAKEN = (errno.EAGAIN, errno.EACCES)

_held: dict[tuple[int, int], int] = {}
"""Descriptors of the locks of this process, by device and inode."""

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _leave_to_parent() -> None:
        for descriptor in _held.values():
            os.close(descriptor)
        _held.clear()

    os.register_at_fork(after_in_child=_leave_to_parent)


class RunLock:
    """The right to write a run folder; given back at the end of a `with` block, and by `free`.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key: tuple[int, int] | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()

    def take(self) -> None:
        """Take the lock; once it is held, nothing happens.

        Raises:
            SparksError: another process holds it, or its file cannot be made.
        """
        while self._key is None:
            descriptor = self._open()
            stat = os.fstat(descriptor)
            key = (stat.st_dev, stat.st_ino)
            if key in _held:
                os.close(descriptor)
            elif not self._lock(descriptor):
                return
            elif not self._is_here(key):  # its owner has just removed it: another file counts
                os.close(descriptor)
                continue
            else:
                _held[key] = descriptor
                with suppress(OSError):  # a full disk locks as well
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
            self._key = key

    def free(self) -> None:
        """Give it back, and leave no file."""
        if self._key in _held:
            if self._is_here(self._key):
                with suppress(OSError):
                    (self.folder / NAME).unlink()
            os.close(_held.pop(self._key))
        self._key = None

    def _open(self) -> int:
        try:
            return os.open(self.folder / NAME, _FLAGS, 0o666)
        except OSError as error:
            raise SparksError(
                f"cannot write {self.folder / NAME} ({error.strerror or error}): give a folder you "
                f"own"
            ) from error

    def _lock(self, descriptor: int) -> bool:
        """Lock it; False where the file system has no locks."""
        try:
            _lock(descriptor)
        except OSError as error:
            owner = _text(descriptor)
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise SparksError(
                    f"{self.folder} is being written by another training or replay{owner}: wait "
                    f"for its end, or give another output folder"
                ) from error
            warnings.warn(
                f"sparks: {self.folder} cannot be locked ({error.strerror or error}): a second "
                f"training in it would not be refused",
                stacklevel=4,
            )
            return False
        return True

    def _is_here(self, key: tuple[int, int]) -> bool:
        try:
            stat = os.stat(self.folder / NAME)
        except OSError:
            return False
        return (stat.st_dev, stat.st_ino) == key


def _text(descriptor: int) -> str:
    """Who holds the lock, in brackets, where its file tells it."""
    with suppress(OSError, UnicodeDecodeError):
        found = os.read(descriptor, 200).decode()
        if found and found.isprintable():
            return f" ({found})"
    return ""
