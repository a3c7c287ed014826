"""Which run a folder holds: its id, and where the earlier ones went.

    RUN/run.json        {"id": "9f2c4a1b7d3e5f60"}, as in the meta of every snapshot of the run
    RUN/attempt-1/      an earlier run, whole: one that began anew in the same folder moved it there
    RUN/attempt.part/   one on its way there: a kill leaves it, and the next start moves it back

Files move one by one, so that each is in exactly one of the two places; the number comes last.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sparks.ground.errors import SparksError, reason
from sparks.ground.files import read_file, write_atomically
from sparks.ground.schema import decode

_RUN, _PROBES, _REPORT = "run.json", "probes.jsonl", "report.html"
_PART = "attempt.part"
_ATTEMPT = re.compile(r"attempt-(\d+)\Z")
_MOST_BYTES = 2**12

MEASURED = (
    _RUN,
    _PROBES,
    "metrics.json",
    "null.json",
    "step-*.safetensors*",
    "step-*.failed",
    "evaluation/step-*",
    "null/*/step-*.safetensors",
)
"""Files of a run that a view cannot write again. Nothing else in the folder is the run's."""


@dataclass(frozen=True)
class _Run:
    """`run.json`."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


# -- the id ----------------------------------------------------------------------------------


def new_id() -> str:
    """A random one; the random states of a training are left alone."""
    return secrets.token_hex(8)


def read_id(folder: Path) -> str:
    """The id of the run in a folder; empty where none is named, as in folders of older versions.

    Raises:
        SparksError: the file is damaged.
    """
    path = folder / _RUN
    try:
        return decode(_Run, read_file(path, within=folder, most=_MOST_BYTES)).id
    except FileNotFoundError:
        return ""
    except (OSError, SparksError) as error:
        raise SparksError(f"{path}: damaged ({reason(error)}); delete it") from error


def write_id(folder: Path, run_id: str) -> None:
    """Name the run of a folder.

    Raises:
        SparksError: the file cannot be written.
    """
    write_atomically(folder / _RUN, json.dumps({"id": run_id}) + "\n")


def strangers(run_ids: Mapping[int, str], named: str) -> tuple[str, list[int]]:
    """The id of the run that a folder holds, and the steps whose snapshots are of another run.

    Args:
        run_ids: of the snapshots, by step; those of older versions are empty and fit any run.
        named: by `run.json`. It counts where a snapshot has it; else the run with most snapshots.
    """
    counts = Counter(filter(None, run_ids.values()))
    kept = named if named in counts or not counts else counts.most_common(1)[0][0]
    return kept, [step for step, run_id in run_ids.items() if run_id not in ("", kept)]


# -- earlier attempts ------------------------------------------------------------------------


def attempts(folder: Path) -> list[Path]:
    """Folders of earlier runs, in order of number."""
    with suppress(OSError):
        found = {int(m[1]): path for path in folder.iterdir() if (m := _ATTEMPT.match(path.name))}
        return [found[number] for number in sorted(found)]
    return []


def move_earlier(folder: Path, probes: str) -> Path | None:
    """Move what an earlier run left in `folder` into a folder `attempt-N` in it; returns that.

    None where there is nothing but an id and these very `probes`, which stand before the first
    snapshot.

    Raises:
        SparksError: a file cannot be moved; the next start moves the others back.
    """
    names = _files(folder)
    if not names - {_RUN, _PROBES} and not _are_others(folder / _PROBES, probes):
        return None
    for name in sorted(names):
        _move(folder / name, folder / _PART / name)
    for below in ("evaluation", "null"):
        _remove_empty(folder / below)
    return _numbered(folder)


def undo_unfinished(folder: Path) -> None:
    """Move back what a killed `move_earlier` had moved.

    Raises:
        SparksError: a file cannot be moved.
    """
    part = folder / _PART
    for name in sorted(_files(part)):
        if not (folder / name).exists():
            _move(part / name, folder / name)
    if _files(part):  # somebody has written files of these names since
        _numbered(folder)
    _remove_empty(part)


def _files(folder: Path) -> set[str]:
    """Files of a run below `folder`, by their path in it."""
    found = (path for pattern in (*MEASURED, _REPORT) for path in folder.glob(pattern))
    return {str(path.relative_to(folder)) for path in found}


def _are_others(path: Path, probes: str) -> bool:
    try:
        return read_file(path, within=path.parent) != probes.encode()
    except (OSError, SparksError):
        return False


def _numbered(folder: Path) -> Path:
    """Give the folder of an earlier run its number."""
    last = max((int(path.name.partition("-")[2]) for path in attempts(folder)), default=0)
    target = folder / f"attempt-{last + 1}"
    _move(folder / _PART, target)
    return target


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    except OSError as error:
        raise SparksError(
            f"cannot move {source} to {target} ({error.strerror or error}): move it away yourself"
        ) from error


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those in it, where there is no file."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        with suppress(OSError):
            path.rmdir()
