"""Settings of the probes of thinking on and off. Every default stands here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from sparks.ground.config import check_choice, setting
from sparks.probes.settings import NUM_PROBES, ProbeBuildingConfig

Contrast = Literal["auto", "beginnings", "words"]


@dataclass(frozen=True, kw_only=True)
class ThinkConfig:
    """What the probes of both modes are built from, and how. Frozen; ranges are checked.

    Raises:
        SparksError: a value is outside its range.
    """

    data: str | None = setting(
        None,
        "problems: a JSONL file, or a data set of the Hugging Face hub, with problem, question or "
        "messages; needed where DIR holds no probes yet",
    )
    subset: str | None = setting(None, "name of the subset of a hub data set")
    split: str = setting("train", "split of a hub data set")
    count: int = setting(NUM_PROBES, "probes to build for each mode")
    switch: str | None = setting(
        None, "variable of the chat template that turns thinking on; found where not given"
    )
    contrast: Contrast = setting(
        "auto",
        "what clean and corrupted hold: beginnings (the mode's marker and the model's own words), "
        "words (own words alone, behind each mode's own prompt), or auto: beginnings where the "
        "modes differ behind the last message alone",
    )
    system_prompt: str | None = setting(
        None, "system message of chat prompts, in place of the problem's own"
    )
    max_new_tokens: int = setting(32, "tokens sampled under each mode")
    temperature: float = setting(0.6, "sampling temperature (paper: 0.6)")
    top_p: float = setting(0.95, "sampling nucleus (paper: 0.95)")
    greedy: bool = setting(False, "take the likeliest token instead of sampling")
    seed: int = setting(0, "seed of the sampling")
    batch_size: int = setting(8, "prompts sampled at a time; part of what a seed reproduces")

    def __post_init__(self) -> None:
        check_choice("contrast", self.contrast, get_args(Contrast))
        self.sampling("-", "cpu", max_suffix_tokens=1)  # checks the rest

    def sampling(
        self, model: str, device: str, *, max_suffix_tokens: int, trust_remote_code: bool = False
    ) -> ProbeBuildingConfig:
        """The settings of a `Sampler`.

        Raises:
            SparksError: a value is outside its range.
        """
        known = {item.name for item in fields(ProbeBuildingConfig)} - {"data"}
        same = {item.name: getattr(self, item.name) for item in fields(self) if item.name in known}
        return ProbeBuildingConfig(
            data=self.data or "-", model=model, output="-", device=device,
            max_suffix_tokens=max_suffix_tokens, trust_remote_code=trust_remote_code, **same,
        )  # fmt: skip
