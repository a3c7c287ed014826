"""How pairs and points are split into runs that fit a memory budget.

What the prefixes of pairs begin with alike is run once. The pair that needs most is prepared first:
what one row of it holds is measured (`models.memory`), once a model and shape, and the split
follows. Pairs whose continuations have one length, and which share a prefix, run together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor, nn

from sparks.attribution.model_runs import Endpoints, Passes, shared_prefixes
from sparks.attribution.secant import ENDS, run_ends
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy
from sparks.models.anatomy_proof import take_apart
from sparks.models.memory import GIB, RowBytes, SavedBytes, plan
from sparks.probes.pairs import TokenPair, check_pair

_MAX_TOKENS_AT_ONCE = {"cpu": 640, "cuda": 16384}
"""More tokens a run gain nothing: on two CPU cores, larger runs fall out of the cache."""


class Schedule:
    """How the pairs and points are split into runs that fit the memory budget."""

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[TokenPair],
        config: SnapshotConfig,
    ) -> None:
        self.anatomy = take_apart(model)
        _check_pairs(self.anatomy, pairs)
        self.pairs, self.positions, self.method = pairs, config.positions, config.method
        self.budget = int(config.memory_gib * GIB)
        self._shared = shared_prefixes(self.anatomy, pairs)
        # The pair that needs most is prepared first: its row is measured, and its runs are kept.
        self._largest = max(range(len(pairs)), key=self._size)
        self._prepared: tuple[Passes, Endpoints | None] | None = None
        row = self._measure_row()
        self._packed = row.packed
        suffix = len(pairs[self._largest].clean)
        device = self.anatomy.device.type
        self.estimate = plan(
            self.anatomy.graph,
            d_model=self.anatomy.d_model,
            suffix=suffix,
            row=row,
            points=config.first_points,
            most_points=config.most_points,
            budget_bytes=self.budget,
            max_rows=max(1, _MAX_TOKENS_AT_ONCE.get(device, 16384) // suffix),
        )

    def _size(self, index: int) -> int:
        pair = self.pairs[index]
        return len(pair.prefix) + 8 * len(pair.clean)

    def _measure_row(self) -> RowBytes:
        pair = self.pairs[self._largest]
        shape = (len(pair.prefix), len(pair.clean), self.positions, self.method)
        if shape not in self.anatomy.row_bytes:
            self.anatomy.row_bytes[shape] = self._measured(self.passes([self._largest]))
        return self.anatomy.row_bytes[shape]

    def _measured(self, passes: Passes) -> RowBytes:
        weights: list[Tensor] = list(self.anatomy.root.parameters())
        if self.method == "secant":
            self._prepared, rows = (passes, None), ENDS
            with SavedBytes(weights) as saved:
                _, trace = run_ends(passes, nodes=False)
        else:
            ends = passes.endpoints()
            # Few rows, so that measuring needs little itself; more would share more of the prefix.
            self._prepared, rows = (passes, ends), min(passes.most_packed, 4)
            with SavedBytes(weights) as saved:
                trace = passes.interpolate(ends, [0.5] * rows, nodes=False)
        return RowBytes(
            saved=saved.total // rows,
            logits=trace.logits.numel() * 4 // rows,
            prefix=passes.prefix_bytes,
            packed=passes.most_packed,
        )

    def passes(self, indices: list[int]) -> Passes:
        """Run the prefix of some pairs."""
        return self._begun(indices)[0]

    def prepare(self, indices: list[int]) -> tuple[Passes, Endpoints]:
        """Run the prefixes, as far as they are not shared, and the endpoints of some pairs."""
        passes, ends = self._begun(indices)
        return passes, passes.endpoints() if ends is None else ends

    def _begun(self, indices: list[int]) -> tuple[Passes, Endpoints | None]:
        if self._prepared is not None and indices == [self._largest]:
            prepared, self._prepared = self._prepared, None
            return prepared
        own = [self.pairs[i] for i in indices]
        return Passes(self.anatomy, own, self.positions, self._shared[indices[0]]), None

    def batches(self) -> Iterator[list[int]]:
        """Indices of pairs that run together: continuations of one length, prefixes alike."""
        pairs = self.pairs

        def kind(index: int) -> tuple[int, int]:
            return len(pairs[index].clean), self._shared[index].group

        order = sorted(range(len(pairs)), key=lambda i: (*kind(i), len(pairs[i].prefix)))
        for _, same in groupby(order, key=kind):
            alike = list(same)
            for start in range(0, len(alike), self.estimate.pairs):
                yield alike[start : start + self.estimate.pairs]

    def chunks(self, alphas: list[float], indices: list[int]) -> Iterator[list[float]]:
        """Points in runs that fit."""
        size = max(1, self.estimate.rows // len(indices))
        if size > self._packed:
            size -= size % self._packed  # whole sequences
        for start in range(0, len(alphas), size):
            yield alphas[start : start + size]


def _check_pairs(anatomy: Anatomy, pairs: Sequence[TokenPair]) -> None:
    if isinstance(pairs, TokenPair):
        raise SparksError("pairs must be a sequence of TokenPair, got one: give [pair]")
    if not isinstance(pairs, Sequence):
        raise SparksError(f"pairs must be a list of TokenPair, got {type(pairs).__name__}")
    if not pairs:
        raise SparksError("pairs is empty: give at least one TokenPair")
    for number, pair in enumerate(pairs):
        check_pair(
            pair,
            f"pair {number}",
            vocab_size=anatomy.vocab_size,
            max_positions=anatomy.max_positions,
        )
