"""Answers by reward: of several that the model samples to one prompt, the best and the worst.

Reward functions are called as TRL's GRPO and RLOO call them
(https://huggingface.co/docs/trl/grpo_trainer, "Using a custom reward function"): prompts,
completions, completion_ids and the other columns of the rows by name; their weighted sum counts,
and None leaves a reward out. What they log goes nowhere. Reward models are not asked.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sparks.ground.errors import SparksError, reason
from sparks.probes.building import Sampler
from sparks.probes.pairs import Message
from sparks.probes.problems import Problem

NUM_ANSWERS = 4
"""Answers sampled to a prompt."""

_OURS = ("prompt", "completion", "completion_ids")


class Rewarded:
    """Gives problems their answers by reward.

    Args:
        sampler: the model, set to sample whole answers.
        rewards: reward functions.
        weights: of them; None weighs all alike.
        cut: the beginning of an answer that is kept.
        state: `trainer_state` for the reward functions.

    Raises:
        SparksError: one of `rewards` is no function.
    """

    def __init__(
        self,
        sampler: Sampler,
        rewards: Sequence[Callable[..., Any]],
        *,
        weights: Sequence[float] | None = None,
        cut: Callable[[str], str],
        state: Any = None,
    ) -> None:
        for reward in rewards:
            if not callable(reward) or hasattr(reward, "parameters"):
                raise SparksError(
                    f"reward functions can be asked for a better and a worse answer, "
                    f"{type(reward).__name__} cannot: hand in functions with reward_funcs, or "
                    f"name the column of the reference answer with reference"
                )
        self._sampler, self._cut, self._state = sampler, cut, state
        self._rewards = list(rewards)
        self._weights = [1.0] * len(self._rewards) if weights is None else list(weights)

    def require_template(self, problem: Problem) -> None:
        """As the model's."""
        self._sampler.require_template(problem)

    def check_prompt(self, prompt: str | list[Message]) -> None:
        """As the model's."""
        self._sampler.check_prompt(prompt)

    def answered(self, problems: Sequence[Problem], seed: str) -> tuple[list[Problem], list[str]]:
        """Problems with their best answer, and their worst as the rejected one.

        Those whose answers all have one reward come back as a line each.

        Raises:
            SparksError: a reward function fails.
        """
        asked = [problem for problem in problems for _ in range(NUM_ANSWERS)]
        ids = self._sampler.continued([problem.prompt for problem in asked], seed)
        rewards = self._rewards_of(asked, ids)
        found: list[Problem] = []
        refused: list[str] = []
        for number, problem in enumerate(problems):
            own = slice(number * NUM_ANSWERS, (number + 1) * NUM_ANSWERS)
            judged = zip(rewards[own], ids[own], strict=True)
            ranked = sorted((reward, answer) for reward, answer in judged if reward is not None)
            if not ranked or ranked[0][0] == ranked[-1][0]:
                same = f"the reward {ranked[0][0]:g}" if ranked else "no reward"
                refused.append(f"{problem.place}: all {NUM_ANSWERS} sampled answers have {same}")
                continue
            best, worst = (
                self._cut(self._sampler.text_behind(problem.prompt, ranked[at][1]))
                for at in (-1, 0)
            )
            found.append(replace(problem, answer=best, rejected=worst))
        return found, refused

    def _rewards_of(self, asked: Sequence[Problem], ids: Sequence[list[int]]) -> list[float | None]:
        """Weighted sum of each answer's rewards; None where it has none."""
        decode = self._sampler.tokenizer.decode
        texts = [decode(answer, skip_special_tokens=True) for answer in ids]
        names = [name for name in asked[0].record if name not in _OURS] if asked else []
        given = {
            "prompts": [problem.record.get("prompt", problem.prompt) for problem in asked],
            "completions": [
                text if isinstance(problem.prompt, str)
                else [{"role": "assistant", "content": text}]
                for problem, text in zip(asked, texts, strict=True)
            ],
            "completion_ids": list(ids),
            "trainer_state": self._state,
            "log_extra": _nowhere,
            "log_metric": _nowhere,
        } | {name: [problem.record.get(name) for problem in asked] for name in names}  # fmt: skip
        columns = [self._values(reward, given, len(asked)) for reward in self._rewards]
        return [self._sum(values) for values in zip(*columns, strict=True)]

    def _sum(self, values: Sequence[float | None]) -> float | None:
        known = [
            weight * value
            for weight, value in zip(self._weights, values, strict=True)
            if value is not None and not math.isnan(value)
        ]
        return sum(known) if known else None

    def _values(self, reward: Callable[..., Any], given: Any, count: int) -> list[Any]:
        name = getattr(reward, "__name__", type(reward).__name__)
        try:
            found: Any = reward(**given)
            found = list(asyncio.run(found) if inspect.iscoroutine(found) else found)
        except Exception as error:  # the user's own code
            raise SparksError(
                f"the reward function {name} fails on sampled answers ({reason(error)}): mend it, "
                f"or give probes"
            ) from error
        if len(found) != count:
            raise SparksError(f"the reward function {name} gave {len(found)} rewards for {count}")
        return found


def _nowhere(*_: Any, **__: Any) -> None:
    """Takes what a reward function logs."""
