"""Rewards of the GRPO recipe: the paper's form, and the right answer in it. Each is 0 or 1.

<think>
...
</think>
<answer>
...
</answer>
"""

from __future__ import annotations

import re
from typing import Any

from build_reasoning_data import answer_in

from sparks.evaluation.checks import same_mathematics

_FORM = re.compile(
    r"<think>\n(?:(?!</?(?:think|answer)>).)*\n</think>\n"
    r"<answer>\n(?:(?!</?(?:think|answer)>).)*\n</answer>",
    flags=re.DOTALL,
)

Completions = list[list[dict[str, str]]]


def format_reward(completions: Completions, **_: Any) -> list[float]:
    """1 where the whole completion has the form above, each tag once."""
    return [
        float(bool(_FORM.fullmatch(completion[0]["content"].strip()))) for completion in completions
    ]


def accuracy_reward(completions: Completions, solution: list[str], **_: Any) -> list[float]:
    """1 where the text between `<answer>` and `</answer>` equals the solution."""
    return [
        float(is_right(completion[0]["content"], right))
        for completion, right in zip(completions, solution, strict=True)
    ]


def is_right(text: str, solution: str) -> bool:
    """Whether the answer in a completion is the solution: as text or as mathematics.

    Raises:
        SparksError: they are no plain numbers, and math-verify is not installed.
    """
    answer = answer_in(text)
    if answer is None:
        return False
    return same_mathematics(answer, solution)
