"""The trainer's log: what stands in `state.log_history` and in `trainer_state.json`. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE_FILE = "trainer_state.json"


def latest_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The last finite number logged under each name, such as loss, learning_rate and reward."""
    found: dict[str, float] = {}
    for row in rows:
        found |= {k: float(v) for k, v in row.items() if k not in ("step", "epoch") and _finite(v)}
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
        try:
            state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            epoch = state.get("epoch")
            return cls(
                step=int(state["global_step"]),
                epoch=float(epoch) if _finite(epoch) else None,
                rows=tuple(row for row in state.get("log_history", []) if isinstance(row, dict)),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
