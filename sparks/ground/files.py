"""Files: written whole or not at all, read only where they are plain and of a sane size."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError, reason

GIB = 2**30
MOST_BYTES = 2 * GIB
"""Of a file that is read."""

_MOST_NOTE = 2**20
_FAILED = re.compile(r"step-(\d+)\.failed\Z")


class RefusedError(SparksError):
    """A file is not opened: of another kind, too large, or not where it says."""


def read_file(
    path: str | os.PathLike[str],
    *,
    within: str | os.PathLike[str] | None = None,
    most: int = MOST_BYTES,
) -> bytes:
    """What a plain file holds. A pipe or a device is never opened.

    Args:
        path: the file.
        within: a folder that the file must lie in once links are followed; None lets links lead
            anywhere, as for a file that the user named.
        most: bytes that it may have.

    Raises:
        OSError: there is none, or it cannot be read.
        RefusedError: why it is refused, without its name.
    """
    if within is not None:
        _refuse_outside(path, within)
    _refuse_kind(os.stat(path), most)
    # It may have become a pipe since: opening one must not wait for its writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        _refuse_kind(found, most)
        return file.read(found.st_size)


def read_text(path: str | os.PathLike[str], **limits: Any) -> str:
    """As `read_file`, of UTF-8 text.

    Raises:
        OSError: there is none, or it cannot be read.
        SparksError: why it is refused, without its name.
    """
    try:
        return read_file(path, **limits).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SparksError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_jsonl(path: str | os.PathLike[str], *, what: str) -> Iterator[tuple[str, Any]]:
    """(`file:line`, value) of every line that is not blank.

    Args:
        path: a UTF-8 file, one JSON value a line.
        what: what the file should hold, for messages.

    Raises:
        SparksError: the file cannot be read or holds nothing, or a line is not JSON.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise SparksError(f"cannot read {what} {path}: {why(error)}") from error
    except SparksError as error:
        raise SparksError(f"{path}: {error}") from error
    if not text.strip():
        raise SparksError(f"{path}: empty, no {what}: give one JSON object a line")
    # Not splitlines(): JSON text may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SparksError(
                    f"{path}:{number}: not JSON ({error}): give one JSON object a line"
                ) from error


def _refuse_outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath((real, root)) != root:
        raise RefusedError(f"a link that leads out of {folder}: put the file itself there")


def _refuse_kind(found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((word for test, word in _KINDS if test(found.st_mode)), "a special file")
        raise RefusedError(f"{kind}, no plain file")
    if found.st_size > most:
        raise RefusedError(f"{found.st_size} bytes, {most} are the most that are read")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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
    # A name that nobody can know before, made anew: no link, and no other writer's file, is there.
    temporary = target.with_name(f".{secrets.token_hex(12)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content if isinstance(content, bytes) else encoded(content))
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


def encoded(text: str) -> bytes:
    """UTF-8; of a name that is not UTF-8 (Python's lone surrogates) the bytes stand as escapes."""
    return text.encode("utf-8", "backslashreplace")


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
            found.append((int(match[1]), _note(path)))
    return found


def _note(path: Path) -> str:
    try:
        text = read_file(path, within=path.parent, most=_MOST_NOTE).decode(errors="replace")
    except (OSError, SparksError) as error:
        return f"why is told in {path.name}, which cannot be read: {why(error)}"
    return " ".join(text.split())[:300]


def why(error: OSError | SparksError) -> str:
    """Why a file could not be read, on one line."""
    return reason(getattr(error, "strerror", None) or error)


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
