"""JSONL files: read with the place of every fault, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparks.errors import SparksError


def read_jsonl(path: str | os.PathLike[str], *, what: str) -> Iterator[tuple[str, Any]]:
    """(`file:line`, value) of every line that is not blank.

    Args:
        path: a UTF-8 file, one JSON value a line.
        what: what the file should hold, for messages.

    Raises:
        SparksError: the file cannot be read or holds nothing, or a line is not JSON.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SparksError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SparksError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
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


def write_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """Write a UTF-8 file under a temporary name and rename it; returns its path.

    Raises:
        SparksError: it cannot be written; an older file of that name stands untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SparksError(f"cannot write {path}: {error.strerror or error}") from error
    return target


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
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SparksError(f"cannot write {path}: {error.strerror or error}") from error
