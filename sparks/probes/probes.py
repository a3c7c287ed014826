"""Probes: a prompt with two beginnings of its answer, as text in a JSONL file. No torch.

Clean is what the trained model should come to write, corrupted what the model writes before
training. `ProbeSet.tokenize` turns them into the token pairs that the attribution reads.

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758: same problem, two beginnings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.ground.files import read_jsonl, write_atomically
from sparks.models.families import context_of
from sparks.probes.pairs import Message, PairEncoder, TokenizedProbes, TokenPair

__all__ = ["Message", "Probe", "ProbeSet", "TokenPair", "TokenizedProbes", "check_messages"]

CONTROL_GROUP = "control"
"""Group of probes of another behaviour, measured beside those of the trained one."""

ROLES = ("system", "developer", "user", "assistant", "tool")

_REQUIRED = ("prompt", "clean", "corrupted")
_KNOWN = (*_REQUIRED, "id", "group")


@dataclass(frozen=True)
class Probe:
    """One prompt with a clean and a corrupted beginning of the answer, as text.

    Raises:
        SparksError: a value has the wrong type, or a message an unknown role or key.
    """

    prompt: str | list[Message]
    """Plain text, or chat messages up to and without the answer."""
    clean: str
    corrupted: str
    id: str = ""
    """Unique in its set; `""` becomes `probe-1`, `probe-2`, ... there."""
    group: str = ""
    """A label to select by, such as the kind of problem."""

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            _text("prompt", self.prompt)
        else:
            object.__setattr__(self, "prompt", check_messages("prompt", self.prompt))
        for name in ("clean", "corrupted", "id", "group"):
            _text(name, getattr(self, name))
        for name in ("id", "group"):
            if not (value := getattr(self, name)).isprintable():
                raise SparksError(f"{name} must be one line of printable text, got {value!r}")

    @classmethod
    def from_record(cls, record: Any) -> Probe:
        """The probe in a JSON object.

        Raises:
            SparksError: it is no object, a key is missing or unknown, or a value of a wrong type.
        """
        if not isinstance(record, Mapping):
            raise SparksError(
                f"a probe must be a JSON object with {_listed(_REQUIRED)}, "
                f"got {type(record).__name__}"
            )
        if missing := [key for key in _REQUIRED if key not in record]:
            raise SparksError(
                f"{_listed(missing)} missing: a probe needs {_listed(_REQUIRED)}, "
                f"this one has {_listed(map(str, record)) or 'no keys'}"
            )
        if unknown := [key for key in record if key not in _KNOWN]:
            raise SparksError(f"unknown key {unknown[0]!r}; known: {', '.join(_KNOWN)}")
        return cls(**record)

    def to_record(self) -> dict[str, Any]:
        """The JSON object that `from_record` reads."""
        record: dict[str, Any] = {"id": self.id, "group": self.group, "prompt": self.prompt}
        record |= {"clean": self.clean, "corrupted": self.corrupted}
        return {key: value for key, value in record.items() if value or key in _REQUIRED}


@dataclass(frozen=True)
class ProbeSet:
    """Probes in a fixed order, at least one, each under its own id.

    Raises:
        SparksError: there is no probe, or two share an id.
    """

    probes: tuple[Probe, ...]

    def __post_init__(self) -> None:
        numbered = tuple(_probe(probe, number) for number, probe in enumerate(self.probes, start=1))
        if not numbered:
            raise SparksError("a probe set must hold at least one probe, got none")
        _refuse_repeats([(f"probe {n}", probe.id) for n, probe in enumerate(numbered, start=1)])
        object.__setattr__(self, "probes", numbered)

    def __len__(self) -> int:
        return len(self.probes)

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    @property
    def hash(self) -> str:
        """sha256 (hex) of `to_jsonl`."""
        return hashlib.sha256(self.to_jsonl().encode()).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeSet:
        """Read a JSONL file: `prompt`, `clean`, `corrupted`, and optionally `id`, `group`.

        Raises:
            SparksError: the file is unreadable or empty, or a line breaks a rule; names file:line.
        """
        if not isinstance(path, str | os.PathLike):
            raise SparksError(
                f"probes must be a JSONL file, a ProbeSet, or a list or data set of records, got "
                f"{type(path).__name__}"
            )
        return cls._collect(read_jsonl(path, what="probes"))

    @classmethod
    def of(cls, given: Any) -> ProbeSet:
        """Probes in any form: a set, a JSONL file, or a list or data set of records or `Probe`s.

        Raises:
            SparksError: as `load` and `from_records`, or it is none of these.
        """
        if isinstance(given, ProbeSet):
            return given
        if isinstance(given, str | os.PathLike) or not isinstance(given, Iterable):
            return cls.load(given)
        # A data set has every column in every row, with None where a record had none.
        return cls.from_records(
            {name: value for name, value in item.items() if value is not None}
            if isinstance(item, Mapping)
            else item
            for item in ([given] if isinstance(given, Mapping) else given)
        )

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any] | Probe]) -> ProbeSet:
        """Probes from dictionaries with the keys of the JSONL file, or from `Probe`s.

        Raises:
            SparksError: there is no record, or one breaks a rule; names it as `record N`.
        """
        return cls._collect((f"record {n}", record) for n, record in enumerate(records, start=1))

    @classmethod
    def _collect(cls, placed: Iterable[tuple[str, Any]]) -> ProbeSet:
        probes: list[Probe] = []
        places: list[tuple[str, str]] = []
        for place, record in placed:
            try:
                probe = record if isinstance(record, Probe) else Probe.from_record(record)
            except SparksError as error:
                raise SparksError(f"{place}: {error}") from error
            probes.append(probe)
            places.append((place, probe.id or f"probe-{len(probes)}"))
        _refuse_repeats(places)
        return cls(tuple(probes))

    def to_jsonl(self) -> str:
        """The text of a JSONL file that `load` reads back equal."""
        lines = (json.dumps(probe.to_record(), ensure_ascii=False) for probe in self.probes)
        return "".join(line + "\n" for line in lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSONL file, whole or not at all; returns its path.

        Raises:
            SparksError: it cannot be written.
        """
        return write_atomically(path, self.to_jsonl())

    def tokenize_for(
        self, model_config: Any, tokenizer: Any, settings: SnapshotConfig
    ) -> TokenizedProbes:
        """`tokenize`, as snapshots with these settings need it, for a model of this config."""
        return self.tokenize(
            tokenizer,
            max_suffix_tokens=settings.max_suffix_tokens,
            max_context=context_of(model_config),
        )

    def tokenize(
        self, tokenizer: Any, *, max_suffix_tokens: int, max_context: int | None = None
    ) -> TokenizedProbes:
        """Token pairs of all probes, in order.

        Args:
            tokenizer: a Hugging Face tokenizer. It is copied, never changed.
            max_suffix_tokens: continuations are cut to at most this many tokens.
            max_context: most tokens that the model takes; None checks nothing.

        Raises:
            SparksError: probes end up empty, equal or longer than `max_context` (all are named), or
                a chat prompt meets a tokenizer without a chat template.
        """
        encoder = PairEncoder(
            tokenizer, max_suffix_tokens=max_suffix_tokens, max_context=max_context
        )
        chats = [probe.id for probe in self.probes if not isinstance(probe.prompt, str)]
        if chats and not encoder.has_chat_template:
            raise SparksError(
                f"probe {chats[0]!r} has chat messages, but the tokenizer has no chat template: "
                f"set tokenizer.chat_template, or give the prompt as text"
            )
        pairs, refused = [], []
        for probe in self.probes:
            try:
                pairs.append(encoder.pair(probe.prompt, probe.clean, probe.corrupted))
            except SparksError as error:
                refused.append(f"{probe.id!r} ({error})")
        if refused:
            raise SparksError(
                f"{len(refused)} of {len(self)} probes cannot be used: {'; '.join(refused)}; "
                f"mend or remove them"
            )
        return TokenizedProbes(
            tuple(pairs),
            tuple(probe.id for probe in self.probes),
            tuple(probe.group for probe in self.probes),
        )


def members(groups: Sequence[str], group: str | None) -> list[int]:
    """Indices of the probes of `group`; for None of all but the control probes.

    A set of control probes alone is counted.

    Raises:
        SparksError: no probe is in the group.
    """
    if group is None:
        counted = [index for index, name in enumerate(groups) if name != CONTROL_GROUP]
        return counted or list(range(len(groups)))
    if group not in groups:
        known = ", ".join(map(repr, sorted(set(groups))))
        raise SparksError(f"group must be one of the probes' groups ({known}), got {group!r}")
    return [index for index, name in enumerate(groups) if name == group]


def _probe(value: Any, number: int) -> Probe:
    if not isinstance(value, Probe):
        raise SparksError(
            f"probe {number}: must be a Probe, got {type(value).__name__}: make a set of records "
            f"with ProbeSet.from_records"
        )
    return value if value.id else replace(value, id=f"probe-{number}")


def check_messages(name: str, value: Any) -> list[Message]:
    """A copy of chat messages that end before an answer.

    Raises:
        SparksError: it is no list of `{"role", "content"}` with known roles, it is empty, or the
            last message is the assistant's.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise SparksError(f"{name} must be text or a list of messages, got {type(value).__name__}")
    if not value:
        raise SparksError(f"{name} must hold at least one message, got an empty list")
    messages = [_message(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if messages[-1]["role"] == "assistant":
        raise SparksError(
            f"{name} must end before the answer, its last message is the assistant's: "
            f"leave that message out"
        )
    return messages


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
        found = _listed(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise SparksError(f"{name} must have the keys role and content, got {found or 'no keys'}")
    if value["role"] not in ROLES:
        raise SparksError(f"{name}.role must be one of {', '.join(ROLES)}, got {value['role']!r}")
    _text(f"{name}.content", value["content"])
    return {"role": value["role"], "content": value["content"]}


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise SparksError(f"{name} must be text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SparksError(f"{name} holds half a surrogate pair at {error.start}") from error


def _refuse_repeats(places: Iterable[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for place, key in places:
        if key in first:
            raise SparksError(f"{place}: id {key!r} is already that of {first[key]}")
        first[key] = place


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
