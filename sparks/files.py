"""Files: written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from sparks.errors import SparksError

_FAILED = re.compile(r"step-(\d+)\.failed\Z")


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes, *, what: str = "", way_out: str = ""
) -> Path:
    """Write under a temporary name, flush to the disk, rename; returns the path.

    Args:
        path: the file; one that exists is replaced, missing folders are made.
        content: bytes, or text for UTF-8.
        what: what is written, for the message: "the report to".
        way_out: what the user can do, for the message.

    Raises:
        SparksError: it cannot be written; an older file of that name stands untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        named = " ".join(part for part in (what, str(path)) if part)
        end = f"; {way_out}" if way_out else ""
        raise SparksError(f"cannot write {named}: {error.strerror or error}{end}") from error
    return target


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers of `write_atomically` left in `folder`; nobody may be writing."""
    for path in Path(folder).glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()


def read_failures(folder: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Steps and reasons of the notes named `step-*.failed` in a folder, in order of step."""
    found = []
    for path in sorted(Path(folder).glob("step-*.failed")):
        if match := _FAILED.match(path.name):
            with suppress(OSError):
                text = path.read_text(encoding="utf-8", errors="replace")
                found.append((int(match[1]), " ".join(text.split())[:300]))
    return found


def set_aside(paths: Iterable[Path]) -> None:
    """Rename files to `*.stale`: what reads their folder no longer sees them.

    Beside an older one of that name, which stays, to `*.stale-2` and so on.

    Raises:
        SparksError: one cannot be renamed.
    """
    for path in paths:
        try:
            path.replace(_free_name(path))
        except OSError as error:
            raise SparksError(
                f"cannot rename {path} ({error.strerror or error}): move it away yourself"
            ) from error


def _free_name(path: Path) -> Path:
    names = chain(["stale"], (f"stale-{number}" for number in count(2)))
    found = (path.with_name(f"{path.name}.{name}") for name in names)
    return next(name for name in found if not name.exists())


def check_writable(path: str | os.PathLike[str]) -> None:
    """Prove that a file can be written at `path`, and leave nothing behind.

    Raises:
        SparksError: it is a folder, or its folder cannot be made or written.
    """
    target = Path(path)
    if target.is_dir():
        raise SparksError(f"cannot write {path}: it is a folder, give a file name")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()  # no name that a kill could leave
    except OSError as error:
        raise SparksError(f"cannot write {path}: {error.strerror or error}") from error
