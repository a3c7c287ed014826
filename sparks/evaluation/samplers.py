"""Samples answers with transformers, in batches of rows of any length.

Where a batch does not fit into memory it is halved, for the rest of the run, and the user is told
once. A batch is seeded by the seed of the run and the number of its first sample, so that a run
that goes on after a kill samples what it would have sampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from sparks.evaluation.settings import SUGGESTED, EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.models.families import context_of
from sparks.models.fingerprint import fingerprint
from sparks.models.generation import (
    Continuation,
    continuations,
    generation_settings,
    is_out_of_memory,
    stop_ids,
)
from sparks.probes.problems import one_line


class Sampler(Protocol):
    """What continues rows of token ids."""

    backend: str
    model: str
    """Name of the model."""
    fingerprint: str
    """Names its weights."""
    context: int | None
    """Tokens that fit into it; None where it does not say."""
    suggested: Mapping[str, Any]
    """Sampling settings of its generation config."""

    def batch_size(self, config: EvaluationConfig) -> int:
        """Rows that it is given at a time."""
        ...

    def sample(
        self, rows: Sequence[list[int]], first: int, config: EvaluationConfig
    ) -> list[Continuation]:
        """A continuation of each row; `first` is the number of the first sample in the run."""
        ...


class TransformersSampler:
    """A model in memory, as it is: hooks on it work."""

    backend = "transformers"

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self._network: Any = model
        self._stops = stop_ids(model, tokenizer)
        self._most: int | None = None
        self.model = name_of(model)
        self.fingerprint = fingerprint(model)
        self.context = context_of(self._network.config)
        self.suggested: Mapping[str, Any] = suggested_by(getattr(model, "generation_config", None))

    def batch_size(self, config: EvaluationConfig) -> int:
        """The setting."""
        return config.batch_size

    def sample(
        self, rows: Sequence[list[int]], first: int, config: EvaluationConfig
    ) -> list[Continuation]:
        """A continuation of each row.

        Raises:
            SparksError: the model cannot be sampled from (no memory for one row, no numbers).
        """
        settings = self._settings(config)
        found: list[Continuation] = []
        while len(found) < len(rows):
            start = len(found)
            size = min(self._most or len(rows), len(rows) - start)
            part = self._tried(
                rows[start : start + size], settings, f"{config.seed} evaluate {first + start}"
            )
            if part is None:
                self._halve(size)
            else:
                found += part
        return found

    def _settings(self, config: EvaluationConfig) -> Any:
        sampling: dict[str, Any] = (
            {} if config.greedy else {name: getattr(config, name) for name in SUGGESTED}
        )
        return generation_settings(
            self._stops, max_new_tokens=config.max_new_tokens, greedy=config.greedy, **sampling
        )

    def _tried(
        self, rows: Sequence[list[int]], settings: Any, seed: str
    ) -> list[Continuation] | None:
        """None where there is no memory for so many rows."""
        try:
            return continuations(self._network, rows, settings, seed)
        except RuntimeError as error:  # no number in the logits, no memory left
            if is_out_of_memory(error) and len(rows) > 1:
                return None
            way_out = "lower max_new_tokens" if is_out_of_memory(error) else "check its weights"
            raise SparksError(
                f"cannot sample from {self.model}: {one_line(error)}; {way_out}"
            ) from error

    def _halve(self, size: int) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if self._most is None:
            warnings.warn(
                f"no memory for {size} answers at a time: going on with {size // 2} or fewer; a "
                f"smaller batch_size from the start would give other samples",
                stacklevel=2,
            )
        self._most = size // 2


def name_of(model: nn.Module) -> str:
    """Where a model was loaded from, or its class."""
    config: Any = getattr(model, "config", None)
    return str(getattr(config, "_name_or_path", "") or type(model).__name__)


def suggested_by(generation_config: Any) -> dict[str, Any]:
    """The sampling settings that a model's generation config gives."""
    found = {name: getattr(generation_config, name, None) for name in SUGGESTED}
    return {name: value for name, value in found.items() if value is not None}
