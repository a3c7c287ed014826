"""Settings of an evaluation. Every default stands here and nowhere else. No torch.

Sampling settings that are not given, in this order:

1. with thinking on, what the model's own generation config suggests (thinking models ship the
   temperature, top-p and top-k that their authors found to work);
2. temperature 0.6, top-p 0.95, no top-k ("Thinking Sparks!", https://arxiv.org/abs/2509.25758).

`settled` applies the rule; what it gives is printed and stored with the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sparks.ground.config import ABOVE_0, SHARE, check_settings, refuse_unknown, setting
from sparks.ground.errors import SparksError

Backend = Literal["auto", "transformers", "vllm"]

TEMPERATURE = 0.6
TOP_P = 0.95
SUGGESTED = ("temperature", "top_p", "top_k")
"""Settings that a model's generation config can suggest."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How answers are sampled. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    samples: int = setting(4, "answers sampled a problem (paper: 4 to 64)", low=1)
    temperature: float | None = setting(
        None, "sampling temperature (0.6; with thinking on, what the model suggests)", ABOVE_0
    )
    top_p: float | None = setting(
        None, "sampling nucleus (0.95; with thinking on, what the model suggests)", SHARE
    )
    top_k: int | None = setting(
        None, "sample among so many tokens (all; with thinking on, what the model suggests)", low=1
    )
    greedy: bool = setting(
        False, "take the likeliest token instead of sampling: one sample a problem"
    )
    max_new_tokens: int = setting(1024, "an answer is cut after so many tokens", low=1)
    limit: int | None = setting(None, "use only the first so many problems of the task", low=1)
    seed: int = setting(0, "seed of the sampling and of what a task draws", low=0)
    batch_size: int = setting(
        16, "answers sampled at a time; part of what a seed reproduces", low=1
    )
    system_prompt: str | None = setting(
        None, "system message of chat prompts, in place of the problem's own"
    )
    thinking: bool | None = setting(
        None, "thinking mode of the chat template, on or off (the template's own where not given)"
    )
    switch: str | None = setting(
        None, "variable of the chat template that turns thinking on, where it is no usual one"
    )
    backend: Backend = setting("auto", "what samples: vllm where it is installed and can")

    def __post_init__(self) -> None:
        if self.greedy:  # all would be alike
            object.__setattr__(self, "samples", 1)
        check_settings(self)
        if self.greedy and any(getattr(self, name) is not None for name in SUGGESTED):
            raise SparksError("greedy takes no temperature, top_p or top_k: leave them out")

    def settled(self, suggested: Mapping[str, Any]) -> EvaluationConfig:
        """The settings with every sampling setting filled in, by the rule above.

        Args:
            suggested: `temperature`, `top_p` and `top_k` of the model's generation config, as far
                as it has them.
        """
        if self.greedy:
            return self
        found: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": TOP_P}
        if self.thinking:
            found |= {name: suggested[name] for name in SUGGESTED if suggested.get(name)}
        return replace(
            self,
            **{name: value for name, value in found.items() if getattr(self, name) is None},
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationConfig:
        """The settings that `as_dict` gave.

        Raises:
            SparksError: a name is unknown or a value is outside its range.
        """
        refuse_unknown(cls, values)
        return cls(**values)
