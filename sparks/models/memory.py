"""How many rows of work fit into a memory budget.

The bytes that one row (one pair at one point of the path) holds for its backward pass are counted,
not guessed: autograd is asked what it saves. So the estimate follows the model's own attention
kernel, type and wrappers. On top come the logits, the gradients that are kept, and what contraction
needs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparks.models.graph import Graph

GIB = 2**30
_SLACK = 1.25


@dataclass(frozen=True, kw_only=True)
class RowBytes:
    """What was measured on one row, bytes."""

    saved: int
    """Held by autograd for the backward pass."""
    logits: int
    """Logits that L looks at, float32."""
    prefix: int
    """Keys and values of the pair's shared prefix."""
    packed: int
    """Rows that may share a sequence."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one attribution is going to hold, beside the model itself."""

    pair_bytes: int
    """Held by a pair whatever the split: its prefix, differences, reads, writes and scores."""
    row_bytes: int
    """Held by one pair at one point of the path."""
    rows: int
    """Rows that run at once under the budget."""
    pairs: int
    """Pairs that are held at once under the budget."""
    budget_bytes: int

    @property
    def peak_gib(self) -> float:
        """Expected peak above the model, GiB."""
        return (self.pairs * self.pair_bytes + self.rows * self.row_bytes) / GIB

    @property
    def fits(self) -> bool:
        """Whether even a single row of a single pair stays under the budget."""
        return self.peak_gib * GIB <= self.budget_bytes


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
    row: RowBytes,
    points: int,
    most_points: int,
    budget_bytes: int,
    max_rows: int,
) -> MemoryEstimate:
    """Split the budget into pairs and rows: at least one of each, at most `max_rows` rows.

    `points` are the points that a pair is sure to need, `most_points` those that it may need.
    """
    token = suffix * d_model * 4  # one vector a position, float32
    eighth = budget_bytes // 8
    # Reads and writes are kept whole while each is under an eighth of the budget
    # (`attribution.eap_ig`).
    reads = min(graph.num_destinations * token, eighth) + 3 * graph.destinations_per_layer * token
    writes = max(min(graph.num_sources * token, eighth), graph.sources_per_layer * token)
    deltas = 3 * (2 * graph.num_layers + 1) * token
    scores = 2 * graph.num_sources * graph.num_destinations * 4
    pair_bytes = 2 * row.prefix + reads + writes + deltas + scores
    # Gradients kept until they are read: at most four residual widths a layer.
    row_bytes = row.saved + 4 * graph.num_layers * token + 4 * row.logits
    # Allocators hold on to some of what is freed.
    pair_bytes, row_bytes = int(pair_bytes * _SLACK), int(row_bytes * _SLACK)
    rows = max(1, min(max_rows, (budget_bytes - pair_bytes) // row_bytes))
    pairs = max(1, min(rows // points, budget_bytes // (pair_bytes + points * row_bytes)))
    beside = max(1, (budget_bytes - pairs * pair_bytes) // row_bytes)
    return MemoryEstimate(
        pair_bytes=pair_bytes,
        row_bytes=row_bytes,
        rows=min(rows, beside, pairs * most_points),
        pairs=pairs,
        budget_bytes=budget_bytes,
    )


Progress = Callable[[int], None]
"""Called with the number of rows just finished."""


def peak_process_gib() -> float:
    """The most memory that this process has held, GiB.

    On Linux the kernel's `VmHWM`: `ru_maxrss` begins with what the program was started by. On
    Windows, which has neither, the peak of the working set.
    """
    try:
        if found := re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M):
            return int(found[1]) * 1024 / GIB
    except OSError:
        pass  # no Linux
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        held = psutil.Process().memory_info()
        return getattr(held, "peak_wset", held.rss) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB
