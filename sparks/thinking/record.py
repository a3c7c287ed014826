"""The record of a folder of `sparks think`: what was asked, and what its probes are. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import read_file, why
from sparks.ground.schema import LIMITS, Count, LongText, Plain, Versioned, decode
from sparks.probes.thinking_switch import MODES, Mode

_SCHEMA = 1
_FILE = "think.json"
_MOST_BYTES = 2**26
_NEEDED = (("model", str, "text"), ("max_suffix_tokens", int, "a whole number"))
"""Of what was asked."""


@dataclass(frozen=True, kw_only=True)
class ThinkRecord:
    """What a folder holds. Every value is plain JSON."""

    __pydantic_config__ = LIMITS

    request: Mapping[str, Plain]
    """Model, settings of the probes, and the hash of the data: what decides what the probes are."""
    switch: str
    """Name of the chat template's switch."""
    contrast: str
    """`beginnings` or `words`."""
    marker_tokens: Count
    """Tokens of the longest marker among what is swapped."""
    skipped: tuple[LongText, ...]
    """One line for each problem that was passed over."""

    def __post_init__(self) -> None:
        for name, kind, words in _NEEDED:
            if type(value := self.request.get(name)) is not kind:
                raise SparksError(f"request.{name} must be {words}, got {value!r}")

    @property
    def model(self) -> str:
        """Folder or hub id."""
        return str(self.request["model"])

    @staticmethod
    def refuse_foreign(folder: Path) -> None:
        """What a measurement would replace must be an earlier one's, which has a record.

        Raises:
            SparksError: something of its names is there, and no record.
        """
        if (folder / _FILE).exists():
            return
        for path in (*(folder / mode for mode in MODES), *(probes_file(folder, m) for m in MODES)):
            if (path.is_dir() and any(path.iterdir())) or path.is_file():
                raise SparksError(
                    f"{path} is there, and no {_FILE} says that `sparks think` wrote it: give "
                    f"another folder"
                )

    @classmethod
    def find(cls, folder: Path) -> ThinkRecord | None:
        """The record of a folder; None where it has none, or not all of its probes.

        Raises:
            SparksError: it is damaged or of a newer schema.
        """
        path = folder / _FILE
        if not path.exists() or not all(probes_file(folder, mode).exists() for mode in MODES):
            return None
        try:
            content = read_file(path, within=folder, most=_MOST_BYTES)
            schema = decode(Versioned, content).schema
            if schema <= _SCHEMA:
                return decode(cls, content)
        except OSError as error:
            raise SparksError(f"cannot read {path}: {why(error)}") from error
        except SparksError as error:
            raise SparksError(
                f"{path}: damaged or no record ({error}); delete it, or give --overwrite"
            ) from error
        raise SparksError(f"{path} is of a newer sparks (schema {schema})")

    @classmethod
    def load(cls, folder: Path) -> ThinkRecord:
        """The record of a folder that holds one.

        Raises:
            SparksError: it holds none, or as `find`.
        """
        if (found := cls.find(folder)) is None:
            raise SparksError(
                f"{folder} holds no measurement of thinking on and off: measure it with sparks "
                f"think MODEL --data FILE --output {folder}"
            )
        return found

    def to_json(self) -> str:
        """What `find` reads."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def refuse_other(self, wanted: Mapping[str, Any], *, given: bool) -> None:
        """The folder's probes must be what is asked for now.

        Args:
            wanted: as `request`.
            given: the data were named, so that every setting of the probes counts; else model and
                length do.

        Raises:
            SparksError: they differ.
        """
        names = sorted({*wanted, *self.request}) if given else ["model", "max_suffix_tokens"]
        for name in names:
            held, now = self.request.get(name), wanted.get(name)
            by_content = (
                name == "data" and "data_sha256" in wanted and "data_sha256" in self.request
            )
            if held != now and not by_content:
                raise SparksError(
                    f"the folder holds probes with {name}={held!r}, now it is {now!r}: give "
                    f"another folder, or --overwrite"
                )


def probes_file(folder: Path, mode: Mode) -> Path:
    """Where the probes of a mode lie."""
    return folder / f"probes-{mode}.jsonl"
