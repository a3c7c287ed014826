"""Rows of any data set that the recipes know, in TRL's conversational form.

| rows of | prompt | completion | solution |
|---|---|---|---|
| build_reasoning_data.py, tiny_base.py | `prompt` | `completion` | its `<answer>` |
| open-r1/OpenR1-Math-220k | `messages` up to the last | last of `messages` | `answer` |
| openai/gsm8k | `question` | `answer` in the paper's form | `answer` behind `####` |
| other | `prompt`, `problem` or `question` | `completion` | `solution` or `answer` |

`solution` is what the accuracy reward compares with. A row that lacks a column which a recipe needs
is an error; so is a data set that cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from build_reasoning_data import SYSTEM_PROMPT, answer_in, completion_text
from datasets import Dataset, load_dataset

from sparks.ground.errors import SparksError
from sparks.probes.problems import one_line

from .settings import RecipeArguments

Message = dict[str, str]


def system_prompt(settings: RecipeArguments) -> str | None:
    """The text that `system_prompt` stands for."""
    return SYSTEM_PROMPT if settings.system_prompt == "paper" else settings.system_prompt


def load_rows(settings: RecipeArguments, *needs: str) -> Dataset:
    """Rows with the columns `needs`, of `prompt`, `completion` and `solution`.

    Raises:
        SparksError: the data set cannot be read, is empty, or a row lacks a column.
    """
    name = settings.dataset_name
    if name is None:
        raise SparksError("no data: give a JSONL file or a hub data set with --dataset_name")
    raw = _load(name, settings.dataset_config, settings.dataset_train_split)
    if settings.max_train_rows is not None:
        raw = raw.select(range(min(settings.max_train_rows, len(raw))))
    if not len(raw):
        raise SparksError(f"{name}: no rows to train on")
    system = system_prompt(settings)

    def convert(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        found = example(row, system)
        if missing := [key for key in needs if not found.get(key)]:
            raise SparksError(
                f"{name} row {number + 1} gives no {missing[0]}: it has {', '.join(row)}; see the "
                f"table in recipes/common/data.py"
            )
        return {key: found[key] for key in needs}

    with PartialState().main_process_first():  # the others read what it has written
        return raw.map(convert, with_indices=True, remove_columns=raw.column_names)


def _load(name: str, subset: str | None, split: str) -> Dataset:
    local = Path(name).suffix in (".json", ".jsonl") or Path(name).is_file()
    if local and not Path(name).is_file():
        raise SparksError(f"no data: {name} does not exist; its recipe says what writes it")
    try:
        if local:
            return load_dataset("json", data_files=name, split="train")
        return load_dataset(name, subset, split=split)
    except Exception as error:  # the hub, the network and the files fail in many classes
        raise SparksError(
            f"cannot load data set {name!r}: {one_line(error)}; give a JSONL file, or check the "
            f"name, the subset, the split and the network"
        ) from error


def example(row: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """Prompt, completion and solution of a row; None where it has none."""
    completion = row.get("completion")
    if row.get("prompt"):
        prompt = row["prompt"]
        prompt = [_user(prompt)] if isinstance(prompt, str) else [dict(item) for item in prompt]
        if isinstance(completion, str):
            completion = [_assistant(completion)]
        solution = row.get("solution") or _answer(completion)
    elif row.get("messages"):
        *prompt, last = (dict(item) for item in row["messages"])
        completion, solution = [last], row.get("answer") or _answer([last])
    elif row.get("question") and "####" in str(row.get("answer")):
        prompt = [_user(row["question"])]
        work, solution = (part.strip() for part in row["answer"].rsplit("####", 1))
        completion = [_assistant(completion_text(work.split("\n"), solution))]
    else:
        asked = row.get("problem") or row.get("question")
        prompt, solution = ([_user(asked)] if asked else None), row.get("answer")
    return {
        "prompt": _with_system(prompt, system),
        "completion": completion,
        "solution": None if solution is None else str(solution),
    }


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _answer(completion: list[Message] | None) -> str | None:
    return answer_in(completion[0]["content"]) if completion else None


def _with_system(prompt: list[Message] | None, system: str | None) -> list[Message] | None:
    if prompt is None or system is None:
        return prompt
    rest = prompt[1:] if prompt[0]["role"] == "system" else prompt
    return [{"role": "system", "content": system}, *rest]
