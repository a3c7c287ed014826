"""The record of one measurement of one model: what every later stage reads. No torch, no files.

Symbols (paper = name here): s(u -> v | x) = `edge_score`; I~(l, h) of A.6, an example at a time =
`importance`; "head in the circuit of x" = `active`; L at the corrupted end = `loss_corrupted`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from sparks.errors import SparksError
from sparks.graph import Graph

SCHEMA_VERSION = 2
"""1: no `grid`, no `grid_active`, no `points`."""


@dataclass(frozen=True, kw_only=True)
class SnapshotMeta:
    """Where a snapshot comes from. Every value is plain JSON."""

    step: int
    """Optimizer step of the checkpoint; 0 is the model before training."""
    model_name: str
    model_type: str
    """`model_type` of the Hugging Face config, such as `llama`."""
    model_hash: str
    """Fingerprint of the weights."""
    probes_hash: str
    """Hash of the token ids that were measured; snapshots of different hashes never mix."""
    config: Mapping[str, Any]
    """`SnapshotConfig.as_dict()`."""
    precision: str
    """Type of the computation: `float32`, `bfloat16`, or `float32, blocks bfloat16` (autocast)."""
    seconds: float
    """Wall-clock time that the snapshot took."""
    peak_memory_gib: float
    """Highest memory of the process so far: allocated on CUDA, resident on a CPU."""
    created: str
    """UTC time, ISO 8601."""
    source: str
    """`callback`, `replay` or `api`."""
    epoch: float | None = None
    overhead: float | None = None
    """Share of the time since training began, or was resumed, that snapshots have taken, this one
    included; None before the first step and outside a training."""
    roles_swapped: bool = False
    """Clean and corrupted changed places (the paper's reading of a base model)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The trainer's latest logged numbers (loss, reward ...) at this step."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package versions."""
    run_id: str = ""
    """Of the run whose folder holds it (`run_identity`); empty outside one and in older files."""


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
    """The head is in the probe's circuit under each setting of the grid (`circuit_grid`). None
    becomes an array of no settings."""
    completeness_gap: Float32[np.ndarray, " probes"]
    """|sum of embedding attributions - loss_corrupted| / loss_corrupted."""
    points: Int32[np.ndarray, " probes"] | None = None
    """m, the points on the path that the probe was given (None becomes the setting `steps`)."""
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
            same = np.full(len(self.probe_ids), _steps(self.meta.config), np.int32)
            object.__setattr__(self, "points", same)
        probes, edges = len(self.probe_ids), len(self.edge_source)
        heads = (probes, self.graph.num_layers, self.graph.num_heads)
        expected = {
            "probe_groups": (probes,),
            "importance": heads,
            "active": heads,
            "grid_active": (len(self.grid), *heads),
            "node_totals": (probes, self.graph.num_sources),
            "loss_corrupted": (probes,),
            "loss_circuit": (probes,),
            "completeness_gap": (probes,),
            "points": (probes,),
            "edge_offsets": (probes + 1,),
            "edge_source": (edges,),
            "edge_destination": (edges,),
            "edge_score": (edges,),
        }
        for name, shape in expected.items():
            found = np.shape(getattr(self, name))
            if found != shape:
                raise SparksError(f"snapshot: {name} must have shape {shape}, found {found}")
        if edges != self.edge_offsets[-1]:
            raise SparksError(
                f"snapshot: edge_offsets must end at {edges} edges, found {self.edge_offsets[-1]}"
            )

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
    def num_probes(self) -> int:
        """Probes measured."""
        return len(self.probe_ids)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Named arrays, and text metadata, as a safetensors file holds them."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _DTYPES}
        header = {
            "schema": SCHEMA_VERSION,
            "graph": asdict(self.graph),
            "meta": asdict(self.meta),
            "probe_ids": self.probe_ids,
            "probe_groups": self.probe_groups,
            "grid": self.grid,
        }
        return arrays, {"sparks": json.dumps(header, allow_nan=False)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None
    ) -> Snapshot:
        """The snapshot that `to_arrays` took apart; reads every schema version up to this one.

        Raises:
            SparksError: not a sparks snapshot, of a newer schema, or a part missing or misshapen.
        """
        if not metadata or "sparks" not in metadata:
            raise SparksError("not a sparks snapshot: its metadata has no key 'sparks'")
        header = json.loads(metadata["sparks"])
        schema = header.get("schema")
        if not isinstance(schema, int) or schema > SCHEMA_VERSION:
            raise SparksError(
                f"snapshot schema {schema!r} is newer than this sparks reads "
                f"({SCHEMA_VERSION}): upgrade with `pip install -U thinking-sparks`"
            )
        # Not in the first files of schema 1, and not in those taken without faithfulness.
        unknown = np.full_like(arrays.get("loss_corrupted", ()), np.nan, dtype=np.float32)
        arrays = {"loss_circuit": unknown} | dict(arrays)
        if not header.get("grid"):
            arrays["grid_active"] = np.zeros((0, *np.shape(arrays.get("active", ()))), dtype=bool)
        if schema < 2:
            steps = _steps(header["meta"]["config"])
            arrays["points"] = np.full_like(arrays.get("loss_corrupted", ()), steps, np.int32)
        if missing := [name for name in _DTYPES if name not in arrays]:
            raise SparksError(f"snapshot lacks {', '.join(missing)}")
        for name, dtype in _DTYPES.items():
            if arrays[name].dtype != dtype:
                raise SparksError(
                    f"snapshot: {name} must be {np.dtype(dtype)}, found {arrays[name].dtype}"
                )
        known = {item.name for item in fields(SnapshotMeta)}
        return cls(
            graph=Graph(**header["graph"]),
            meta=SnapshotMeta(**{k: v for k, v in header["meta"].items() if k in known}),
            probe_ids=tuple(header["probe_ids"]),
            probe_groups=tuple(header["probe_groups"]),
            grid=tuple((share, tau) for share, tau in header.get("grid", ())),
            **{name: arrays[name] for name in _DTYPES},
        )


def _steps(config: Mapping[str, Any]) -> int:
    steps = config.get("steps")
    return steps if isinstance(steps, int) else 0


_DTYPES: dict[str, Any] = {
    "importance": np.float32,
    "active": np.bool_,
    "grid_active": np.bool_,
    "node_totals": np.float32,
    "loss_corrupted": np.float32,
    "loss_circuit": np.float32,
    "completeness_gap": np.float32,
    "points": np.int32,
    "edge_offsets": np.int64,
    "edge_source": np.int32,
    "edge_destination": np.int32,
    "edge_score": np.float32,
}
