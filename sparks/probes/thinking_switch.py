"""Thinking on and off in a chat template: which switch it has, what each mode puts in. No torch.

1. A template is a program; what it takes is found by running it: rendered with a variable True and
   False, the prompts differ or they do not. Known variables are tried in order (`VARIABLES`):
   `enable_thinking` (Qwen3, SmolLM3, GLM-4.5), `thinking` (DeepSeek-V3.1, Granite 3.2), then
   `reasoning`. A template that reads `/think` and `/no_think` in the system message alone is
   switched by that message (`FLAGS`).
2. What a mode puts behind the shared prompt is its *marker*: the rest of the rendered prompt, and
   the `<think>` (or the empty `<think></think>`) that the model may write first. What follows are
   the model's *own words*.
3. Some templates differ behind the last message alone (Qwen3: nothing against an empty
   `<think></think>`; DeepSeek-V3.1: `<think>` against `</think>`): the modes are *late*. Others
   tell the mode in the system message or behind the question (SmolLM3, Granite, GLM-4.5).

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758, section 6.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparks.ground.errors import SparksError, reason
from sparks.probes.pairs import Message, PairEncoder

Mode = Literal["on", "off"]
MODES: tuple[Mode, ...] = ("on", "off")

VARIABLES = ("enable_thinking", "thinking", "reasoning")
"""Names under which chat templates take the mode, True for on."""
FLAGS: dict[Mode, str] = {"on": "/think", "off": "/no_think"}
"""What a system message says where the template reads the mode from there."""
FLAG = "/think"
"""Name of the switch that `FLAGS` are."""

_TRIAL: list[Message] = [{"role": "user", "content": "What is 2 + 2?"}]
_MARKER = re.compile(r"(?:\s*<think>\s*(?:</think>\s*)?)*")
_CUT_TAG = re.compile(r"(?:<think>\s*|</?)\Z")


@dataclass(frozen=True)
class Switch:
    """How a chat template is told the mode."""

    name: str
    """A variable of the template, or `FLAG`."""

    def render(
        self, tokenizer: Any, messages: Sequence[Message], mode: Mode, *, answer: bool = True
    ) -> str:
        """The prompt as the model reads it in this mode.

        Args:
            tokenizer: with the chat template.
            messages: chat messages up to the answer.
            mode: thinking on or off.
            answer: with what opens the answer.

        Raises:
            SparksError: the template refuses the messages.
        """
        variables: dict[str, bool] = {} if self.name == FLAG else {self.name: mode == "on"}
        given = _flagged(messages, FLAGS[mode]) if self.name == FLAG else list(messages)
        try:
            return tokenizer.apply_chat_template(
                given, add_generation_prompt=answer, tokenize=False, **variables
            )
        except Exception as error:  # a template is a program of its own and raises what it likes
            raise SparksError(f"the chat template refuses its prompt: {reason(error)}") from error

    def is_late(self, tokenizer: Any) -> bool:
        """The modes differ behind the last message alone."""
        on, off = (self.render(tokenizer, _TRIAL, mode, answer=False) for mode in MODES)
        return on == off


def find_switch(tokenizer: Any, model: str, name: str | None = None) -> Switch:
    """The switch of a tokenizer's chat template.

    Args:
        tokenizer: of the model.
        model: its name, for messages.
        name: a variable of the template, where it is none of `VARIABLES`.

    Raises:
        SparksError: there is no chat template, it has no thinking mode, or both modes render the
            same prompt.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise SparksError(
            f"the tokenizer of {model} has no chat template, so no thinking mode to turn on and "
            f"off: give a chat model with one"
        )
    text = str(template)
    for tried in (name,) if name else (*VARIABLES, FLAG):
        if (tried != FLAG or FLAGS["off"] in text) and _differs(tokenizer, Switch(tried)):
            return Switch(tried)
    named = [tried for tried in ((name,) if name else VARIABLES) if tried in text]
    if named:
        raise SparksError(
            f"the chat template of {model} names {named[0]}, but renders the same prompt with it "
            f"True and False: give a model whose prompts differ, or name its variable (--switch "
            f"NAME)"
        )
    raise SparksError(
        f"the chat template of {model} has no thinking mode: it takes none of "
        f"{', '.join((name,) if name else (*VARIABLES, *FLAGS.values()))}; give a model that has "
        f"one, or name its variable (--switch NAME)"
    )


def shared_text(on: str, off: str) -> str:
    """What two rendered prompts share from the left, not cut within or just behind a tag."""
    length = 0
    for one, other in zip(on, off, strict=False):
        if one != other:
            break
        length += 1
    return _CUT_TAG.sub("", on[:length])


def split_marker(text: str) -> tuple[str, str]:
    """The mode's marker that a text opens with, and the model's own words behind it."""
    match = _MARKER.match(text)
    end = match.end() if match else 0
    return text[:end], text[end:]


def as_plain_text(encoder: PairEncoder, tokenizer: Any, rendered: str) -> str:
    """A rendered prompt as the plain text of a probe that has the very same tokens.

    A tokenizer puts its opening token (`<s>`) before plain text; a chat template has written it
    already, so it is taken off.

    Raises:
        SparksError: the tokenizer puts something in front that the template does not write.
    """
    wanted = list(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])
    found = encoder.prompt_ids(rendered)
    front = tokenizer.decode(
        found[: len(found) - len(wanted)], clean_up_tokenization_spaces=False
    ).strip()
    bare = rendered.removeprefix(front)
    if encoder.prompt_ids(bare) != wanted:
        raise SparksError(
            f"the tokenizer puts {front!r} before every text, the chat template does not write it: "
            f"no plain text has the tokens of this prompt; set add_bos_token to false in its "
            f"tokenizer_config.json"
        )
    return bare


def _differs(tokenizer: Any, switch: Switch) -> bool:
    on, off = (switch.render(tokenizer, _TRIAL, mode) for mode in MODES)
    return on != off


def _flagged(messages: Sequence[Message], flag: str) -> list[Message]:
    """The messages with a flag in the system message."""
    given = list(messages)
    if given and given[0]["role"] == "system":
        return [{"role": "system", "content": f"{given[0]['content']}\n{flag}"}, *given[1:]]
    return [{"role": "system", "content": flag}, *given]
