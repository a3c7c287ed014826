"""The record of one measurement of one model: what every later stage reads. No torch, no files.

Symbols (paper = name here): s(u -> v | x) = `edge_score`; I~(l, h) of A.6, an example at a time =
`importance`; "head in the circuit of x" = `active`; L at the corrupted end = `loss_corrupted`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from pydantic import Field

from sparks.ground.config import SnapshotConfig, todays_names
from sparks.ground.errors import SparksError
from sparks.ground.schema import (
    LIMITS,
    Amount,
    Positive,
    Scalar,
    Share,
    Spec,
    Step,
    Versioned,
    decode,
    is_number,
)
from sparks.models.graph import Graph

SCHEMA_VERSION = 3
"""1: no `grid`, no `grid_active`, no `points`. 2: no checksum."""


@dataclass(frozen=True, kw_only=True)
class SnapshotMeta:
    """Where a snapshot comes from. Every value is plain JSON."""

    __pydantic_config__ = LIMITS

    step: Step
    """Optimizer step of the checkpoint; 0 is the model before training."""
    model_name: str
    model_type: str
    """`model_type` of the Hugging Face config, such as `llama`."""
    model_hash: str
    """Fingerprint of the weights."""
    probes_hash: str
    """Hash of the token ids that were measured; snapshots of different hashes never mix."""
    config: Mapping[str, Scalar]
    """`SnapshotConfig.as_dict()`."""
    precision: str
    """Type of the computation: `float32`, `bfloat16`, or `float32, blocks bfloat16` (autocast)."""
    seconds: Amount
    """Wall-clock time that the snapshot took."""
    peak_memory_gib: Amount
    """Highest memory of the process so far: allocated on CUDA, resident on a CPU."""
    created: str
    """UTC time, ISO 8601."""
    source: str
    """`callback`, `replay` or `api`."""
    epoch: Amount | None = None
    overhead: Amount | None = None
    """Share of the time since training began, or was resumed, that snapshots have taken, this one
    included; None before the first step and outside a training."""
    router_share: Amount | None = None
    """Median over probes of the share of L where routers of a mixture take other experts along the
    path: no score has it, and more points do not find it. None without a mixture."""
    roles_swapped: bool = False
    """Clean and corrupted changed places (the paper's reading of a base model)."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The trainer's latest logged numbers (loss, reward ...) at this step."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package versions."""
    run_id: str = ""
    """Of the run whose folder holds it (`run_identity`); empty outside one and in older files."""

    @cached_property
    def settings(self) -> SnapshotConfig:
        """`config`, as the settings that it is.

        Raises:
            SparksError: it is of another version, or out of range.
        """
        try:
            return SnapshotConfig.from_dict(self.config)
        except (SparksError, TypeError) as error:
            raise SparksError(
                f"the settings of the snapshot at step {self.step} cannot be read ({error}): "
                "take it again with `sparks replay`"
            ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """Scores of every probe at one checkpoint. Arrays are numpy, axes as annotated."""

    graph: Graph
    meta: SnapshotMeta
    probe_ids: tuple[str, ...]
    probe_groups: tuple[str, ...]
    """Group of every probe; `""` where none was given."""
    importance: Float32[np.ndarray, "probes layers heads"]
    """Sum of |score| over kept edges whose source is the head (paper A.6, unnormalised)."""
    active: Bool[np.ndarray, "probes layers heads"]
    """The head is in the probe's circuit."""
    node_totals: Float32[np.ndarray, "probes sources"]
    """Sum of |score| over ALL edges that leave the node, kept or not."""
    loss_corrupted: Float32[np.ndarray, " probes"]
    """KL(clean || corrupted), nats."""
    loss_circuit: Float32[np.ndarray, " probes"] | None = None
    """L with every edge outside the circuit patched to its corrupted value, nats; NaN where it was
    not measured (None becomes NaN)."""
    grid: tuple[tuple[float, float], ...] = ()
    """`(share of edges, tau / L)` of the circuit settings of `grid_active`."""
    grid_active: Bool[np.ndarray, "settings probes layers heads"] | None = None
    """The head is in the probe's circuit under each setting of the grid
    (`attribution.circuit`). None becomes an array of no settings."""
    completeness_gap: Float32[np.ndarray, " probes"]
    """|sum of embedding attributions - loss_corrupted| / loss_corrupted."""
    points: Int32[np.ndarray, " probes"] | None = None
    """m, the points on the path that the probe was given (None becomes the setting `points`)."""
    edge_offsets: Int64[np.ndarray, " probes_plus_one"]
    """Edges of probe i are `edge_offsets[i] : edge_offsets[i + 1]` of the three arrays below."""
    edge_source: Int32[np.ndarray, " edges"]
    edge_destination: Int32[np.ndarray, " edges"]
    edge_score: Float32[np.ndarray, " edges"]
    """Signed score of each kept edge, strongest first within a probe."""

    def __post_init__(self) -> None:
        if self.loss_circuit is None:
            unknown = np.full(len(self.probe_ids), np.nan, np.float32)
            object.__setattr__(self, "loss_circuit", unknown)
        if self.grid_active is None:
            none = np.zeros((0, *np.shape(self.active)), dtype=bool)
            object.__setattr__(self, "grid_active", none)
        if self.points is None:
            same = np.full(len(self.probe_ids), _points(self.meta.config), np.int32)
            object.__setattr__(self, "points", same)
        sizes = self._sizes()
        try:
            for name, spec in ARRAYS.items():
                spec.check_shape(name, getattr(self, name), sizes)
            if len(self.probe_groups) != self.num_probes:
                raise SparksError(f"{self.num_probes} probes, {len(self.probe_groups)} groups")
            if sizes["edges"] != self.edge_offsets[-1]:
                raise SparksError(
                    f"edge_offsets must end at {sizes['edges']} edges, found "
                    f"{self.edge_offsets[-1]}"
                )
        except SparksError as error:
            raise SparksError(f"snapshot: {error}") from error

    def _sizes(self) -> dict[str, int]:
        """Lengths of the axes that `ARRAYS` names."""
        return {
            "probes": self.num_probes,
            "probes_plus_one": self.num_probes + 1,
            "layers": self.graph.num_layers,
            "heads": self.graph.num_heads,
            "sources": self.graph.num_sources,
            "settings": len(self.grid),
            "edges": len(self.edge_source),
        }

    @property
    def step(self) -> int:
        """Optimizer step of the checkpoint."""
        return self.meta.step

    @property
    def faithfulness(self) -> Float32[np.ndarray, " probes"]:
        """1 - loss_circuit / loss_corrupted: 1 where the circuit carries all, 0 where nothing."""
        assert self.loss_circuit is not None  # __post_init__ has filled it
        whole = np.where(self.loss_corrupted == 0, np.nan, self.loss_corrupted)
        return (1 - self.loss_circuit / whole).astype(np.float32)

    @property
    def levels(self) -> tuple[UInt8[np.ndarray, "probes layers heads"], int]:
        """In how many circuit settings each probe's circuit holds the head, and of how many.

        Where there is no grid, the one setting of `active`.
        """
        assert self.grid_active is not None  # __post_init__ has filled it
        if self.grid:
            return self.grid_active.sum(axis=0, dtype=np.uint8), len(self.grid)
        return self.active.astype(np.uint8), 1

    @property
    def head_totals(self) -> Float32[np.ndarray, "probes all_heads"]:
        """Sum of |score| over all edges that leave each head, kept or not; layer by layer."""
        return self.node_totals[:, self.graph.head_sources.ravel()]

    @property
    def num_probes(self) -> int:
        """Probes measured."""
        return len(self.probe_ids)

    def check_values(self) -> None:
        """Check every number against its range and the graph.

        Raises:
            SparksError: one lies outside.
        """
        for name, spec in ARRAYS.items():
            spec.check_range(name, getattr(self, name))
        if self.edge_offsets[0] or (self.edge_offsets[1:] < self.edge_offsets[:-1]).any():
            raise SparksError("edge_offsets must start at 0 and never fall")
        self._check_edges()

    def _check_edges(self) -> None:
        source, destination = self.edge_source, self.edge_destination
        if not len(source):
            return
        # Negative numbers are the largest ones without a sign: one look for both ends.
        if (worst := destination.view(np.uint32).max()) >= self.graph.num_destinations:
            raise SparksError(
                f"edge_destination must be from 0 to {self.graph.num_destinations - 1}, found "
                f"{worst.view(np.int32)}"
            )
        absent = source.view(np.uint32) >= self.graph.sources_read.take(destination)
        if absent.any():
            at = int(absent.argmax())
            raise SparksError(
                f"the graph has no edge from source {source[at]} to destination {destination[at]}"
            )

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Named arrays, and text metadata with a checksum of it all, as safetensors have them.

        Raises:
            SparksError: a number lies outside its range, so that no reader would take it.
        """
        self.check_values()
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        header = {
            "schema": SCHEMA_VERSION,
            "graph": asdict(self.graph),
            "meta": asdict(self.meta),
            "probe_ids": self.probe_ids,
            "probe_groups": self.probe_groups,
            "grid": self.grid,
        }
        text = json.dumps(header, allow_nan=False)
        _header(text)
        return arrays, {"sparks": text, "checksum": checksum(text, arrays)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None
    ) -> Snapshot:
        """The snapshot that `to_arrays` took apart; reads every schema version up to this one.

        Raises:
            SparksError: not a sparks snapshot, of a newer schema, damaged, or a part missing,
                misshapen or outside its range.
        """
        if not metadata or "sparks" not in metadata:
            raise SparksError("not a sparks snapshot: its metadata has no key 'sparks'")
        text = metadata["sparks"]
        header = _header(text)
        if header.schema >= _FIRST_WITH_CHECKSUM or "checksum" in metadata:
            found, told = checksum(text, arrays), metadata.get("checksum")
            if found != told:
                raise DamagedError(f"its checksum is {found}, not {told} as when it was written")
        arrays = _completed(arrays, header)
        if missing := [name for name in ARRAYS if name not in arrays]:
            raise SparksError(f"snapshot lacks {', '.join(missing)}")
        for name, spec in ARRAYS.items():
            spec.check_type(f"snapshot: {name}", arrays[name])
        metrics = {name: value for name, value in header.meta.metrics.items() if is_number(value)}
        snapshot = cls(
            graph=_shared(header.graph),
            meta=replace(header.meta, metrics=metrics),
            probe_ids=header.probe_ids,
            probe_groups=header.probe_groups,
            grid=header.grid,
            **{name: arrays[name] for name in ARRAYS},
        )
        try:
            snapshot.check_values()
        except SparksError as error:
            raise DamagedError(str(error)) from error
        return snapshot


class DamagedError(SparksError):
    """What a file holds cannot be what was written to it."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The text of a snapshot file."""

    __pydantic_config__ = LIMITS

    schema: Positive
    graph: Graph
    meta: SnapshotMeta
    probe_ids: Annotated[tuple[str, ...], Field(min_length=1)]
    probe_groups: tuple[str, ...]
    grid: Annotated[tuple[tuple[Share, Share], ...], Field(max_length=255)] = ()
    """As many as `Snapshot.levels` can count."""


_FIRST_WITH_CHECKSUM = 3


def checksum(header: str, arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32 (hex) of the header and of every array with its name, type and shape.

    It finds any one flipped bit, and 2**32 - 1 of 2**32 other damages, at some GB a second.
    """
    total = zlib.crc32(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total = zlib.crc32(f"\n{name} {array.dtype.str} {array.shape}\n".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


def _header(text: str) -> _Header:
    """The header, once it is sure that it is of a known version.

    Raises:
        SparksError: it is of a newer one, or damaged.
    """
    try:
        schema = decode(Versioned, text).schema
        if schema <= SCHEMA_VERSION:
            header = decode(_Header, text)
            settings = todays_names(header.meta.config)
            return replace(header, meta=replace(header.meta, config=settings))
    except SparksError as error:
        raise DamagedError(str(error)) from error
    raise SparksError(
        f"snapshot schema {schema!r} is newer than this sparks reads ({SCHEMA_VERSION}): upgrade "
        f"with `pip install -U thinking-sparks`"
    )


@lru_cache(maxsize=16)
def _shared(graph: Graph) -> Graph:
    """The first graph that equals it: what a graph works out about itself is worked out once."""
    return graph


def _completed(arrays: Mapping[str, np.ndarray], header: _Header) -> dict[str, np.ndarray]:
    """With the arrays that older files do not have."""
    losses = np.shape(arrays.get("loss_corrupted", ()))
    # Not in the first files of schema 1, and not in those taken without faithfulness.
    full = {"loss_circuit": np.full(losses, np.nan, np.float32)} | dict(arrays)
    if not header.grid:
        full["grid_active"] = np.zeros((0, *np.shape(arrays.get("active", ()))), dtype=bool)
    if header.schema < 2:
        full["points"] = np.full(losses, _points(header.meta.config), np.int32)
    return full


def _points(config: Mapping[str, Any]) -> int:
    points = config.get("points")
    return points if type(points) is int and 0 <= points <= _MOST_POINTS else 0


_MOST_POINTS = 2**31 - 1

ARRAYS: dict[str, Spec] = {
    "importance": Spec(np.float32, "probes layers heads", 0),
    "active": Spec(np.bool_, "probes layers heads", 0, 1),
    "grid_active": Spec(np.bool_, "settings probes layers heads", 0, 1),
    "node_totals": Spec(np.float32, "probes sources", 0),
    "loss_corrupted": Spec(np.float32, "probes"),
    "loss_circuit": Spec(np.float32, "probes", may_lack=True),
    "completeness_gap": Spec(np.float32, "probes", None),  # infinite where L is 0
    "points": Spec(np.int32, "probes", 0, _MOST_POINTS),
    "edge_offsets": Spec(np.int64, "probes_plus_one", 0, 2**31 - 1),
    "edge_source": Spec(np.int32, "edges", None),  # the graph bounds both
    "edge_destination": Spec(np.int32, "edges", None),
    "edge_score": Spec(np.float32, "edges"),
}
"""The arrays of a snapshot; edges are held against its graph (`Snapshot.check_values`)."""
