"""The trainer's log: what stands in `state.log_history` and in `trainer_state.json`. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import read_file
from sparks.ground.schema import LIMITS, Step, decode, is_number

STATE_FILE = "trainer_state.json"


def latest_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The last number logged under each name, such as loss, learning_rate and reward."""
    found: dict[str, float] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if is_number(value)}
        found |= {k: float(v) for k, v in numbers.items() if k not in ("step", "epoch")}
    return found


@dataclass(frozen=True, kw_only=True)
class TrainerLog:
    """What a trainer noted in a checkpoint."""

    step: int
    epoch: float | None
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, checkpoint: Path) -> TrainerLog | None:
        """The log beside a checkpoint; None where there is none, or it cannot be read."""
        if (state := _read(checkpoint)) is None or state.global_step is None:
            return None
        return cls(
            step=state.global_step,
            epoch=float(state.epoch) if is_number(state.epoch) else None,
            rows=tuple(row for row in state.log_history if isinstance(row, dict)),
        )


def last_step(checkpoint: Path) -> int | None:
    """The step that the trainer is going to end at; None where the checkpoint does not tell it."""
    state = _read(checkpoint)
    wanted: Any = state.max_steps if state else None
    return int(wanted) if is_number(wanted) and wanted > 0 else None


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is used of `trainer_state.json`, whose other values are the trainer's own."""

    __pydantic_config__ = LIMITS

    global_step: Step | None = None
    epoch: Any = None
    max_steps: Any = None
    log_history: list[Any] = field(default_factory=list)


def _read(checkpoint: Path) -> _State | None:
    try:
        return decode(_State, read_file(checkpoint / STATE_FILE, most=_MOST_BYTES))
    except (OSError, SparksError):
        return None


_MOST_BYTES = 2**30
