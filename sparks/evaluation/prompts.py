"""Prompts as the model reads them: chat templates, thinking mode, room for the answer. No torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparks.evaluation.records import TaskProblem
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.probes.pairs import PairEncoder, opened_thinking
from sparks.probes.problems import with_system
from sparks.probes.thinking_switch import Mode, Switch, find_switch


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt."""

    ids: list[int]
    opened: str
    """The `<think>` that the chat template opened; part of what the model is taken to write."""


def encode_prompts(
    tokenizer: Any,
    problems: Sequence[TaskProblem],
    config: EvaluationConfig,
    *,
    model: str,
    context: int | None,
) -> list[Prompt]:
    """The prompt of every problem.

    Args:
        tokenizer: of the model; it is left as it is.
        problems: of the task.
        config: system prompt, thinking mode, room for the answer.
        model: its name, for messages.
        context: tokens that fit into the model; None where it does not say.

    Raises:
        SparksError: there is no chat template or no thinking mode, the template refuses a prompt,
            or prompts are too long.
    """
    encoder = _Encoder(tokenizer, config, model)
    prompts = []
    for problem in problems:
        try:
            prompts.append(encoder.prompt(problem))
        except SparksError as error:
            raise SparksError(f"problem {problem.id}: {error}") from error
    _check_room(problems, prompts, config.max_new_tokens, context)
    return prompts


class _Encoder:
    """A copy of a tokenizer: a plain call resets the padding and truncation of a fast one."""

    def __init__(self, tokenizer: Any, config: EvaluationConfig, model: str) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._encoder = PairEncoder(self._tokenizer, max_suffix_tokens=1)
        self._config, self._model = config, model
        self._switch: Switch | None = None
        if config.thinking is not None:
            self._switch = find_switch(self._tokenizer, model, config.switch)

    def prompt(self, problem: TaskProblem) -> Prompt:
        given = with_system(problem.prompt, self._config.system_prompt)
        if isinstance(given, str):
            if self._switch is not None:
                raise SparksError(
                    "thinking on or off needs chat prompts, this one is text: name the key "
                    "`problem`"
                )
            text, ids = given, self._encoder.prompt_ids(given)
        else:
            text = self._rendered(given)
            ids = list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise SparksError("the prompt is empty in tokens: give it some text")
        return Prompt(ids, opened_thinking(text))

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        if not self._encoder.has_chat_template:
            raise SparksError(
                f"chat messages, but the tokenizer of {self._model} has no chat template: give the "
                f"problems in a JSONL file with the key `prompt` and text, or a chat model"
            )
        if self._switch is None:
            return self._encoder.prompt_text(messages)
        mode: Mode = "on" if self._config.thinking else "off"
        return self._switch.render(self._tokenizer, messages, mode)


def _check_room(
    problems: Sequence[TaskProblem], prompts: Sequence[Prompt], new: int, context: int | None
) -> None:
    if context is None:
        return
    lengths = [len(prompt.ids) for prompt in prompts]
    over = sum(length + new > context for length in lengths)
    if not over:
        return
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    room = context - lengths[longest]
    way_out = (
        f"lower max_new_tokens to {room} or less, or leave out the long ones"
        if room > 0
        else "leave out the long ones, or give a model with a larger context"
    )
    raise SparksError(
        f"{over} of {len(prompts)} prompts leave no room for {new} new tokens in the model's "
        f"context of {context} (the longest, problem {problems[longest].id}, has "
        f"{lengths[longest]}): {way_out}"
    )
