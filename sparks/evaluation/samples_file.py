"""The file of samples: JSONL, a header line, then one line a sample, written as they come.

1. The header says what was sampled: schema version, task and its hash, settings, model with the
   fingerprint of its weights, intervention. `identity` is what a resumed run must share.
2. A line holds a whole sample, the text of its problem too, so that it can be read by itself.
3. Every line is flushed. A kill can tear the last one: on resuming it is dropped, and the file goes
   on behind the last whole line. A damaged line elsewhere is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from sparks.ground.errors import SparksError
from sparks.ground.files import check_writable, read_file, why
from sparks.ground.schema import (
    LIMITS,
    Amount,
    Count,
    LongText,
    Positive,
    Scalar,
    Versioned,
    decode,
)

KIND = "sparks samples"
SCHEMA = 1

T = TypeVar("T", bound="Header | SampleLine")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What was sampled."""

    __pydantic_config__ = LIMITS

    task: str
    task_hash: str
    check: str
    num_problems: Positive
    settings: dict[str, Scalar]
    backend: str
    model: str
    fingerprint: str
    intervention: str = ""

    def __post_init__(self) -> None:
        samples = self.settings.get("samples")
        if type(samples) is not int or samples < 1:
            raise SparksError(f"settings.samples must be a whole number above 0, got {samples!r}")

    @property
    def num_samples(self) -> int:
        """Answers that a finished file holds."""
        return self.num_problems * int(self.settings["samples"])

    def identity(self) -> dict[str, Any]:
        """What two runs share whose samples may stand in one file, by name for messages."""
        values = asdict(self) | {f"setting {k}": v for k, v in self.settings.items()}
        for name in ("task", "model", "settings"):  # a folder may be moved, a task renamed
            del values[name]
        for name in ("limit", "backend"):  # the hash and the backend say it
            values.pop(f"setting {name}", None)
        return values


@dataclass(frozen=True, kw_only=True)
class SampleLine:
    """One sample."""

    __pydantic_config__ = LIMITS

    id: str
    sample: Count
    """Its place among the samples of its problem, from 0."""
    problem: LongText
    answer: LongText
    text: LongText
    found: LongText | None
    correct: bool
    tokens: Count
    truncated: bool
    seconds: Amount
    """Its share of the time of its batch."""


class SamplesFile:
    """A file of samples that is open for more; a context manager.

    Args:
        path: a new file, or one of the same run.
        header: of this run.

    Raises:
        SparksError: the file cannot be written, holds something else, or belongs to another run.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path = Path(path)
        check_writable(self.path)
        self.lines: list[SampleLine] = []
        """What the file held when it was opened."""
        end = 0
        if self.path.exists():
            end = self._read(header)
        self._file = self._open(end)
        if not end:
            self._write([{"kind": KIND, "schema": SCHEMA, **asdict(header)}])

    def write(self, lines: Sequence[SampleLine]) -> None:
        """Append lines, and flush them.

        Raises:
            SparksError: the disk takes no more.
        """
        self._write([asdict(line) for line in lines])

    def __enter__(self) -> SamplesFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read(self, header: Header) -> int:
        """Keep what the file holds; the position behind its last whole line."""
        content = _content(self.path)
        end = content.rfind(b"\n") + 1
        if not end:  # a header that was torn: nothing was sampled yet
            if content and not content.startswith(b'{"kind": "' + KIND.encode()[:3]):
                raise SparksError(f"{self.path}: no file of samples: give another --output")
            return 0
        found, self.lines = _parsed(self.path, content[:end])
        if difference := _difference(found, header):
            raise SparksError(
                f"{self.path}: samples of another run ({difference}): give another --output, or "
                f"remove the file"
            )
        return end

    def _open(self, end: int) -> IO[bytes]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("r+b" if self.path.exists() else "xb")
            file.truncate(end)
            file.seek(end)
            return file
        except OSError as error:
            raise SparksError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        try:
            for record in records:
                self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise SparksError(f"cannot write {self.path}: {error.strerror or error}") from error


def read_samples(
    path: str | os.PathLike[str], *, within: str | os.PathLike[str] | None = None
) -> tuple[Header, list[SampleLine]]:
    """Header and samples of a file; a torn last line is left out.

    Args:
        path: the file.
        within: a folder that links may not lead out of.

    Raises:
        SparksError: it cannot be read, or is no file of samples.
    """
    content = _content(path, within=within)
    return _parsed(path, content[: content.rfind(b"\n") + 1])


def _content(path: str | os.PathLike[str], **limits: Any) -> bytes:
    try:
        return read_file(path, **limits)
    except (OSError, SparksError) as error:
        raise SparksError(f"cannot read samples {path}: {why(error)}") from error


def _parsed(path: str | os.PathLike[str], content: bytes) -> tuple[Header, list[SampleLine]]:
    """Header and samples of whole lines."""
    first, *lines = content.split(b"\n")[:-1] or [b""]
    try:
        told = decode(Versioned, first)
        if told.kind != KIND:
            raise SparksError(f"its kind is {told.kind!r}")
    except SparksError as error:
        raise SparksError(
            f"{path}: no file of samples, its first line should hold the kind {KIND!r}: give "
            f"another file"
        ) from error
    if told.schema != SCHEMA:
        raise SparksError(
            f"{path}: schema {told.schema!r}, this version of sparks reads {SCHEMA}: install the "
            f"version that wrote it, or sample anew"
        )
    header = _record(Header, first, f"{path}:1")
    return header, [
        _record(SampleLine, line, f"{path}:{number}") for number, line in enumerate(lines, start=2)
    ]


def _record(kind: type[T], line: bytes, place: str) -> T:
    try:
        return decode(kind, line)
    except SparksError as error:
        raise SparksError(f"{place}: damaged, {error}: sample anew") from error


def _difference(found: Header, header: Header) -> str:
    """The first thing that two runs differ in; empty where they are the same."""
    one, other = found.identity(), header.identity()
    for name in other | one:
        if one.get(name) != other.get(name):
            return f"{name} {_short(one.get(name))}, now {_short(other.get(name))}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
