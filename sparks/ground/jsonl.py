"""JSONL files: read with the place of every fault."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import read_text, why


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
