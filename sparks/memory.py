"""How many rows of work fit into a memory budget.

The bytes that one row (one pair at one point of the path) holds for its backward pass are counted, not
guessed: autograd is asked what it saves. So the estimate follows the model's own attention kernel, type
and wrappers. On top come the logits, the gradients that are kept, and what contraction needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparks.graph import Graph

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one attribution is going to hold, beside the model itself. Bytes and rows."""

    fixed_bytes: int
    """Held whatever the split: the prefix, the differences of a pair, a layer of gradients."""
    row_bytes: int
    """Held by one pair at one point of the path."""
    rows: int
    """Rows that run at once under the budget."""
    budget_bytes: int

    @property
    def peak_gib(self) -> float:
        """Expected peak above the model, GiB."""
        return (self.fixed_bytes + self.rows * self.row_bytes) / GIB

    @property
    def fits(self) -> bool:
        """Whether even a single row stays under the budget."""
        return self.fixed_bytes + self.rows * self.row_bytes <= self.budget_bytes


class SavedBytes:
    """Counts the bytes that autograd saves, each storage once, leaving out `known` tensors."""

    def __init__(self, known: list[Tensor]) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.total = 0

    def __enter__(self) -> SavedBytes:
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.total += storage.nbytes()
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def plan(
    graph: Graph,
    *,
    d_model: int,
    suffix: int,
    prefix_bytes: int,
    saved_bytes: int,
    logits_bytes: int,
    budget_gib: float,
    max_rows: int,
) -> MemoryEstimate:
    """Split `budget_gib` into rows; at least one row, at most `max_rows`."""
    token = d_model * 4
    # Gradients kept until they are read: the reads of every layer, at most four residual widths each.
    kept = graph.num_layers * suffix * token * 4
    row = saved_bytes + kept + 4 * logits_bytes
    layer = graph.destinations_per_layer * suffix * token
    writes = graph.sources_per_layer * suffix * token
    scores = graph.num_sources * graph.num_destinations * 4
    deltas = (2 * graph.num_layers + 1) * suffix * token
    fixed = prefix_bytes + 3 * layer + writes + 2 * scores + 3 * deltas
    budget = int(budget_gib * GIB)
    rows = max(1, min(max_rows, (budget - fixed) // max(row, 1)))
    return MemoryEstimate(fixed_bytes=fixed, row_bytes=row, rows=rows, budget_bytes=budget)


Progress = Callable[[int], None]
"""Called with the number of rows just finished."""
