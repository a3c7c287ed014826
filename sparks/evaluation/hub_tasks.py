r"""Tasks that are data sets of the Hugging Face hub. No torch.

Each has a reader that makes a problem of a row. Instructions are part of the prompt, the same for
every model: mathematics asks for steps and `\boxed{}` (as the cards of DeepSeek-R1 and
Qwen2.5-Math advise), GPQA for a letter (Rein et al. 2023, https://arxiv.org/abs/2311.12022),
TriviaQA for the answer alone (Joshi et al. 2017, https://arxiv.org/abs/1705.03551).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparks.evaluation.checks import CheckName
from sparks.evaluation.records import TaskProblem

_STEPS = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_LETTERS = "ABCD"
_CHOOSE = (
    "\n\nPlease reason step by step, and end with the letter of the right option in \\boxed{}, "
    "such as \\boxed{A}."
)
_SHORT = "\n\nAnswer with the name, number or word that is asked for, and nothing else."

Reader = Callable[[Mapping[str, Any], str, int], TaskProblem]
"""Row, its number as text, seed -> problem."""


@dataclass(frozen=True)
class HubTask:
    """Where a task lies, and how its rows are read."""

    data: str
    """Hub id of the data set."""
    split: str
    check: CheckName
    read: Reader
    subset: str | None = None


def _asked(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def _gsm8k(row: Mapping[str, Any], number: str, seed: int) -> TaskProblem:
    """The answer stands behind `####` at the end of the solution."""
    answer = row["answer"].rpartition("####")[2].strip()
    return TaskProblem(number, _asked(row["question"] + _STEPS), answer)


def _math(row: Mapping[str, Any], number: str, seed: int) -> TaskProblem:
    """MATH-500 and AIME; AMC has its whole-number answers as floats."""
    answer = row["answer"]
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    name = str(row.get("unique_id", row.get("id", number)))
    return TaskProblem(name, _asked(row["problem"] + _STEPS), str(answer))


def _gpqa(row: Mapping[str, Any], number: str, seed: int) -> TaskProblem:
    """The order of the options is drawn for each problem, the same for every model."""
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]
    order = random.Random(f"gpqa {seed} {number}").sample(range(4), 4)
    listed = "\n".join(
        f"{letter}) {options[index].strip()}" for letter, index in zip(_LETTERS, order, strict=True)
    )
    name = str(row.get("Record ID", number))
    prompt = _asked(f"{row['Question'].strip()}\n\n{listed}{_CHOOSE}")
    return TaskProblem(name, prompt, _LETTERS[order.index(0)])


def _trivia(row: Mapping[str, Any], number: str, seed: int) -> TaskProblem:
    answer = row["answer"]
    also = {*answer["aliases"], *answer["normalized_aliases"]} - {answer["value"]}
    name = str(row.get("question_id", number))
    return TaskProblem(name, _asked(row["question"] + _SHORT), answer["value"], tuple(sorted(also)))


HUB_TASKS: dict[str, HubTask] = {
    "gsm8k": HubTask("openai/gsm8k", "test", "math", _gsm8k, subset="main"),
    "math-500": HubTask("HuggingFaceH4/MATH-500", "test", "math", _math),
    "aime24": HubTask("HuggingFaceH4/aime_2024", "train", "math", _math),
    "aime25": HubTask("math-ai/aime25", "test", "math", _math),
    "amc": HubTask("AI-MO/aimo-validation-amc", "train", "math", _math),
    "gpqa-diamond": HubTask("Idavidrein/gpqa", "train", "choice", _gpqa, subset="gpqa_diamond"),
    "triviaqa": HubTask(
        "mandarjoshi/trivia_qa", "validation", "exact", _trivia, subset="rc.nocontext"
    ),
}
"""Name -> task."""
