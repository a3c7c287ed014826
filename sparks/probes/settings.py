"""Settings of building probes. Every default stands here and nowhere else. No torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from sparks.ground.config import (
    ABOVE_0,
    SHARE,
    TRUST_HELP,
    ControlKind,
    SnapshotConfig,
    check_settings,
    setting,
)
from sparks.ground.errors import SparksError

NUM_PROBES, NUM_CONTROLS = 64, 12
"""Built where no number is asked for, control probes for a training that was given none: three in
four of the heads that moved by 1.2 are found with as many (`tests/bench/RECORD.md`)."""


@dataclass(frozen=True, kw_only=True)
class ProbeBuildingConfig:
    """What probes are built from, and how. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    data: str | None = setting(
        None,
        "problems: a file (JSONL, JSON, parquet), a saved data set or one of the Hugging Face hub, "
        "with messages, prompt, problem or question, and with completion, chosen, solution or "
        "answer (and rejected); needed but for control probes alone",
    )
    model: str = setting(
        MISSING,
        "the model before training, a folder or hub id; its sampled beginnings are the corrupted "
        "ones",
    )
    output: str = setting(MISSING, "the JSONL file to write")
    clean_model: str | None = setting(
        None, "a trained model whose sampled beginnings are the clean ones, not reference answers"
    )
    subset: str | None = setting(None, "name of the subset of a hub data set")
    split: str = setting("train", "split of a hub data set")
    count: int | None = setting(
        None,
        f"probes to build from the data; where not given, as many as it gives, up to "
        f"{NUM_PROBES}: with 16, hardly any change of a head is found",
        low=1,
    )
    control: int = setting(
        0,
        "control probes to build as well, of a behaviour that is not trained; they need no data",
        low=0,
    )
    control_kind: ControlKind = setting(
        "both", "what control probes ask for: copying a list, recall of plain facts, or both"
    )
    control_probes: str | None = setting(
        None, "JSONL file of probes of your own to take as control probes"
    )
    group: str = setting("", "label of the probes; the problem's own `group` where not given")
    system_prompt: str | None = setting(
        None, "system message of chat prompts, in place of the problem's own"
    )
    max_new_tokens: int = setting(32, "tokens sampled, and kept of a reference answer", low=1)
    max_suffix_tokens: int = setting(
        SnapshotConfig.max_suffix_tokens, "pairs must differ within this many tokens", low=1
    )
    temperature: float = setting(0.6, "sampling temperature (paper: 0.6)", ABOVE_0)
    top_p: float = setting(0.95, "sampling nucleus (paper: 0.95)", SHARE)
    greedy: bool = setting(False, "take the likeliest token instead of sampling")
    seed: int = setting(0, "seed of the sampling")
    batch_size: int = setting(8, "prompts sampled at a time; part of what a seed reproduces", low=1)
    device: str = setting("auto", "where models run: auto, cpu, cuda, cuda:1, ...")
    trust_remote_code: bool = setting(False, TRUST_HELP)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.data is None and not self.control:
            raise SparksError("no probes asked for: give problems with data, or control above 0")
        if self.control_probes is not None and not self.control:
            raise SparksError("control_probes needs control: how many of them to take")
        if self.max_new_tokens < self.max_suffix_tokens:
            raise SparksError(
                f"max_new_tokens must be at least max_suffix_tokens ({self.max_suffix_tokens}), "
                f"got {self.max_new_tokens}"
            )
