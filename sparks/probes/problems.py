"""Problems to build probes from: a JSONL file or a data set of the Hugging Face hub. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import read_jsonl
from sparks.probes.pairs import Message
from sparks.probes.probes import check_messages

PROMPT_KEYS = ("messages", "prompt", "problem", "question")
ANSWER_KEYS = ("completion", "solution", "answer")


@dataclass(frozen=True)
class Problem:
    """A prompt with its reference answer."""

    place: str
    """Where it comes from, for messages."""
    prompt: str | list[Message]
    answer: str | None
    """`""` where the data holds an empty one, None where it has no key for one."""
    group: str = ""


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
    """Problems of a JSONL file or a hub data set, in order.

    `problem` and `question` become a user message, `prompt` stays text or messages as in TRL, and
    `messages` may end with the answer. The first key that holds something counts, in the order of
    `PROMPT_KEYS` and `ANSWER_KEYS`; an answer in `messages` comes before those.

    Args:
        data: a file's path, or a hub id such as `owner/name`.
        subset: name of the subset (configuration) of a hub data set.
        split: split of a hub data set.
        system_prompt: system message of chat prompts, in place of the problem's own.

    Raises:
        SparksError: the data cannot be read, is empty, or a problem breaks a rule (names it).
    """
    local = is_local(data)
    records = read_jsonl(data, what="problems") if local else hub_rows(data, subset, split)
    for place, record in records:
        try:
            yield _problem(place, record, system_prompt)
        except SparksError as error:
            raise SparksError(f"{place}: {error}") from error


def is_local(data: str) -> bool:
    """The data are a file, or are named like one."""
    path = Path(data)
    return path.exists() or path.suffix in (".jsonl", ".json")


def hub_rows(data: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of a data set of the Hugging Face hub, in order.

    Raises:
        SparksError: it cannot be loaded.
    """
    import datasets  # type: ignore[import-untyped]
    from huggingface_hub import constants

    try:
        # Streaming reads only what is needed; without a network the cache has to do.
        rows = datasets.load_dataset(
            data, subset, split=split, streaming=not constants.HF_HUB_OFFLINE
        )
        yield from ((f"{data} row {number}", row) for number, row in enumerate(rows, start=1))
    except Exception as error:  # the hub, the network and the files fail in many classes
        raise SparksError(
            f"cannot load data set {data!r}: {one_line(error)}; give a JSONL file, or check the "
            f"name, the subset, the split and the network"
        ) from error


def _problem(place: str, record: Any, system_prompt: str | None) -> Problem:
    prompt, spoken = read_prompt(record)
    answer = _answer(record) if spoken is None else spoken
    group = record.get("group") or ""
    return Problem(place, with_system(prompt, system_prompt), answer, str(group))


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


def _answer(record: Mapping[str, Any]) -> str | None:
    key = next((name for name in ANSWER_KEYS if name in record), None)
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
