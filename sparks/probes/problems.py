"""Problems to build probes from: a file, a saved data set or one of the Hugging Face hub. No torch.

JSONL is read here, so that a fault is told with its line; JSON, parquet, saved data sets and those
of the hub are read by the library `datasets`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import read_jsonl
from sparks.probes.pairs import Message
from sparks.probes.probes import check_messages

PROMPT_KEYS = ("messages", "prompt", "problem", "question")
ANSWER_KEYS = ("completion", "chosen", "solution", "answer", "reference", "ground_truth")


@dataclass(frozen=True)
class Problem:
    """A prompt with its reference answer."""

    place: str
    """Where it comes from, for messages."""
    prompt: str | list[Message]
    answer: str | None
    """`""` where the data holds an empty one, None where it has no key for one."""
    group: str = ""
    rejected: str | None = None
    """An answer that is worse; None where the data hold none."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """All that the data hold of it."""


def opened_problems(
    data: str, *, subset: str | None = None, split: str = "train", system_prompt: str | None = None
) -> Iterator[Problem]:
    """As `read_problems`, after the first one could be read.

    Raises:
        SparksError: as there, or there is none.
    """
    problems = read_problems(data, subset=subset, split=split, system_prompt=system_prompt)
    if (first := next(problems, None)) is None:
        raise SparksError(f"{data}: no problems in split {split!r}")
    return itertools.chain([first], problems)


def read_problems(
    data: str, *, subset: str | None = None, split: str = "train", system_prompt: str | None = None
) -> Iterator[Problem]:
    """Problems of a file or a data set, in order.

    `problem` and `question` become a user message, `prompt` stays text or messages as in TRL, and
    `messages` may end with the answer. The first key that holds something counts, in the order of
    `PROMPT_KEYS` and `ANSWER_KEYS`; an answer in `messages` comes before those. `rejected` holds a
    worse one.

    Args:
        data: a file (JSONL, JSON, parquet), the folder of a saved data set, or a hub id such as
            `owner/name`.
        subset: name of the subset (configuration) of a hub data set.
        split: split of a saved or a hub data set.
        system_prompt: system message of chat prompts, in place of the problem's own.

    Raises:
        SparksError: the data cannot be read, is empty, or a problem breaks a rule (names it).
    """
    for place, record in data_rows(data, subset, split):
        try:
            yield problem_of(place, record, system_prompt=system_prompt)
        except SparksError as error:
            raise SparksError(f"{place}: {error}") from error


def data_rows(
    data: str, subset: str | None = None, split: str = "train"
) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file, a saved data set or one of the hub, in order.

    Raises:
        SparksError: it cannot be read.
    """
    path = Path(data)
    if path.is_dir():
        return _rows(data, lambda: _saved(data, subset, split))
    if path.is_file() and (form := _library_form(path)):
        return _rows(data, lambda: _load(form, data_files=data, split="train", streaming=True))
    if is_local(data):
        return read_jsonl(data, what="problems")
    return hub_rows(data, subset, split)


def _library_form(path: Path) -> str | None:
    """How `datasets` calls the form of a file; None for one JSON object a line."""
    if path.suffix == ".json":
        with path.open("rb") as file:
            return "json" if file.read(64).lstrip().startswith(b"[") else None
    return "parquet" if path.suffix == ".parquet" else None


def _saved(folder: str, subset: str | None, split: str) -> Iterable[Any]:
    """Rows of a folder that `save_to_disk` wrote, or one of files as on the hub."""
    import datasets  # type: ignore[import-untyped]

    try:
        found = datasets.load_from_disk(folder)
    except FileNotFoundError:
        return _load(folder, subset, split=split, streaming=True)
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise SparksError(f"{folder} has no split {split!r}, it has {', '.join(found)}")
    return found[split]


def _load(*place: str | None, **how: Any) -> Iterable[Any]:
    import datasets

    return datasets.load_dataset(*place, **how)


def is_local(data: str) -> bool:
    """The data are a file, or are named like one."""
    path = Path(data)
    return path.exists() or path.suffix in (".jsonl", ".json", ".parquet")


def hub_rows(data: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of a data set of the Hugging Face hub, in order.

    Raises:
        SparksError: it cannot be loaded.
    """
    from huggingface_hub import constants

    # Streaming reads only what is needed; without a network the cache has to do.
    streaming = not constants.HF_HUB_OFFLINE
    return _rows(data, lambda: _load(data, subset, split=split, streaming=streaming))


def _rows(data: str, load: Callable[[], Iterable[Any]]) -> Iterator[tuple[str, Any]]:
    try:
        yield from ((f"{data} row {number}", row) for number, row in enumerate(load(), start=1))
    except SparksError:
        raise
    except Exception as error:  # the hub, the network and the files fail in many classes
        raise SparksError(
            f"cannot load data set {data!r}: {one_line(error)}; give a JSONL file, or check the "
            f"name, the subset, the split and the network"
        ) from error


def problem_of(
    place: str, record: Any, *, system_prompt: str | None = None, answer_key: str | None = None
) -> Problem:
    """The problem in a record; `answer_key` names its reference answer where it is no usual one.

    Raises:
        SparksError: it breaks a rule.
    """
    prompt, spoken = read_prompt(record)
    keys = (answer_key,) if answer_key else ANSWER_KEYS
    own = spoken is None or answer_key is not None
    return Problem(
        place,
        with_system(prompt, system_prompt),
        _answer(record, keys) if own else spoken,
        group=str(record.get("group") or ""),
        rejected=_answer(record, ("rejected",)) or None,
        record=record,
    )


def read_prompt(record: Any) -> tuple[str | list[Message], str | None]:
    """The prompt of a record, and the answer that its `messages` end with; None where they do not.

    Raises:
        SparksError: there is no prompt, or it breaks a rule.
    """
    if not isinstance(record, Mapping):
        raise SparksError(f"a problem must be a JSON object, got {type(record).__name__}")
    key = next((name for name in PROMPT_KEYS if record.get(name)), None)
    if key is None:
        raise SparksError(
            f"no prompt: a problem needs one of {', '.join(PROMPT_KEYS)}, this one has "
            f"{', '.join(map(str, record)) or 'no keys'}"
        )
    value, answer = record[key], None
    if key in ("problem", "question") and isinstance(value, str):
        value = [{"role": "user", "content": value}]
    elif key == "messages" and _ends_with_answer(value):
        value, answer = value[:-1], answer_text("messages", value[-1].get("content"))
    elif key == "messages" and isinstance(value, str):
        raise SparksError("messages must be a list of messages, got text: name the key `prompt`")
    return value if isinstance(value, str) else check_messages(key, value), answer


def _answer(record: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    key = next((name for name in keys if name in record), None)
    if key is None:
        return None
    value = record[key]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[0].get("content") if isinstance(value[0], Mapping) else value[0]
    return answer_text(key, value)


def answer_text(key: str, value: Any) -> str:
    """An answer that is text or a number, as text; an empty one for None.

    Raises:
        SparksError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise SparksError(f"the answer in {key} must be text, got {value!r}")


def _ends_with_answer(messages: Any) -> bool:
    return (
        isinstance(messages, Sequence)
        and isinstance(messages[-1], Mapping)
        and messages[-1].get("role") == "assistant"
    )


def with_system(prompt: str | list[Message], system: str | None) -> str | list[Message]:
    """The prompt with this system message in place of its own; None changes nothing.

    Raises:
        SparksError: the prompt is text.
    """
    if system is None:
        return prompt
    if isinstance(prompt, str):
        raise SparksError(
            "a system prompt needs chat prompts, this one is text: name the key `problem`, or put "
            "the text of the system prompt into the prompts"
        )
    rest = prompt[1:] if prompt[0]["role"] == "system" else prompt
    return [{"role": "system", "content": system}, *rest]


def one_line(error: Exception) -> str:
    """Class and text of another library's error, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
