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
import threading
from typing import Any

from build_reasoning_data import answer_in

from sparks.errors import SparksError

_FORM = re.compile(
    r"<think>\n(?:(?!</?(?:think|answer)>).)*\n</think>\n"
    r"<answer>\n(?:(?!</?(?:think|answer)>).)*\n</answer>",
    flags=re.DOTALL,
)
_WHOLE = re.compile(r"[+-]?\d+")

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
    """Whether the answer in a completion is the solution: as text or as mathematics."""
    answer = answer_in(text)
    if answer is None:
        return False
    if answer == solution.strip():
        return True
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(solution.strip()):
        return int(answer) == int(solution)
    return _same_mathematics(answer, solution)


def _same_mathematics(answer: str, solution: str) -> bool:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise SparksError(
            "answers that are no whole numbers are compared by math-verify: pip install "
            "'thinking-sparks[recipes]'"
        ) from error
    # Its time limits are signals, which only the main thread can take.
    main = threading.current_thread() is threading.main_thread()
    limits = {"parsing_timeout": 5 if main else None}
    right, found = (parse(_as_latex(text), **limits) for text in (solution, answer))
    return bool(right) and verify(right, found, timeout_seconds=5 if main else None)


def _as_latex(text: str) -> str:
    """Marked as LaTeX where it is not yet: bare `\\frac{1}{2}` would be read as words."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"
