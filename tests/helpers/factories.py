"""Synthetic snapshots and runs with a planted truth. No torch, no model.

A test says which heads are active at each checkpoint; edges, scores and totals around them are
random but consistent: every active head has a kept edge in and a kept edge out, importance is the
sum of |score| over kept edges that leave the head, node totals are at least that. In probes that
hold it a head has about `MASS` of score, in others a seventeenth of it: a head that most probes
hold has more than an even share, and where no probe holds any all shares are exactly even.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sparks.attribution.circuit import GRID
from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.config import SnapshotConfig
from sparks.models.graph import Graph
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline

SMALL = Graph(num_layers=3, num_heads=4, num_kv_heads=2)

MASS = 17.0

Heads = Iterable[str] | Mapping[str, int]
"""Names of active heads; as a mapping, with the number of probes (the first k) that hold each."""

STORY: dict[int, Heads] = {
    0: ["L0H0", "L0H1", "L1H0"],
    10: ["L0H0", "L0H1", "L1H1"],  # L1H1 born, L1H0 silenced
    20: ["L0H0", "L1H0", "L1H1", "L2H3"],  # L2H3 born, L1H0 returned, L0H1 silenced
    30: ["L0H0", "L1H0", "L2H3"],  # L1H1 pruned
    40: ["L0H0", "L1H0", "L1H1", "L2H0"],  # L1H1 revived, L2H0 born, L2H3 pruned
}
"""Every kind of event on the graph SMALL: `make_run(STORY)`."""

BASE = ["L0H0", "L0H1", "L1H0"]
SFT: dict[int, Heads] = {
    0: BASE,
    10: ["L0H0", "L0H1", "L1H1", "L2H0"],  # L1H1 and L2H0 born, L1H0 silenced
    20: ["L0H0", "L1H1", "L2H0", "L2H3"],  # L2H3 born, L0H1 silenced
}
GRPO: dict[int, Heads] = {
    0: BASE,
    5: [*BASE, "L1H1", "L2H1"],  # both born
    10: [*BASE, "L2H1"],  # L1H1 pruned
    15: [*BASE, "L1H1"],  # L1H1 revived, L2H1 pruned
}
"""Two runs from one model, to compare."""


def make_snapshot(
    step: int,
    active: Heads = (),
    *,
    graph: Graph = SMALL,
    probes: int | None = None,
    grid: bool = True,
    groups: Sequence[str] | None = None,
    importance: Mapping[str, float] | None = None,
    seed: int = 0,
    config: SnapshotConfig | None = None,
    metrics: Mapping[str, float] | None = None,
    gap: float | Sequence[float] = 0.01,
    **meta: Any,
) -> Snapshot:
    """A valid snapshot in which exactly the heads of `active` are in a circuit.

    Args:
        step: optimizer step.
        active: names of heads, or a mapping to the number of probes that hold each.
        graph: shape of the model.
        probes: number of probes; None is one a group, or 16, enough for both rules.
        grid: each head is in the circuit under all settings of the grid or under none; False makes
            a snapshot as schema 1 had it.
        groups: group of each probe.
        importance: planted sum of |score| of a head, in each probe that holds it.
        seed: of edges and scores; the step is mixed in.
        config: settings that the snapshot claims.
        metrics: the trainer's latest numbers.
        gap: completeness gap, of all probes or of each.
        **meta: any other field of `SnapshotMeta`.
    """
    rng = np.random.default_rng([seed, step])
    probes = probes or (16 if groups is None else len(groups))
    held = dict(active) if isinstance(active, Mapping) else dict.fromkeys(active, probes)
    heads = np.zeros((probes, graph.num_layers, graph.num_heads), dtype=bool)
    for name, count in held.items():
        heads[:count, *graph.head(name)] = True
    wanted = {graph.head(name): value for name, value in (importance or {}).items()}
    parts = [_edges(graph, heads[probe], wanted, rng) for probe in range(probes)]
    sums = np.stack([_source_sums(graph, part[0], part[2]) for part in parts])
    values: dict[str, Any] = {
        "model_name": "tiny/llama",
        "model_type": "llama",
        "model_hash": f"model-{seed}-{step}",
        "probes_hash": f"probes-{probes}",
        "precision": "float32",
        "seconds": 1.5,
        "peak_memory_gib": 0.25,
        "created": "2026-01-01T00:00:00Z",
        "source": "callback",
        "metrics": dict(metrics or {}),
        "config": (config or SnapshotConfig()).as_dict(),
    }
    return Snapshot(
        graph=graph,
        meta=SnapshotMeta(step=step, **(values | meta)),
        probe_ids=tuple(f"probe-{index + 1}" for index in range(probes)),
        probe_groups=tuple(groups) if groups is not None else ("",) * probes,
        importance=sums[:, graph.head_sources],
        active=heads,
        grid=GRID if grid else (),
        grid_active=np.repeat(heads[None], len(GRID) if grid else 0, axis=0),
        node_totals=_totals(graph, sums, heads, rng),
        loss_corrupted=rng.uniform(0.5, 2.0, probes).astype(np.float32),
        loss_circuit=np.full(probes, 0.25, np.float32),
        completeness_gap=np.broadcast_to(np.float32(gap), (probes,)).astype(np.float32),
        edge_offsets=np.cumsum([0] + [len(part[0]) for part in parts]).astype(np.int64),
        edge_source=np.concatenate([part[0] for part in parts]),
        edge_destination=np.concatenate([part[1] for part in parts]),
        edge_score=np.concatenate([part[2] for part in parts]),
    )


def _totals(
    graph: Graph, sums: np.ndarray, heads: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Sums of |score| of all edges that leave each source, kept or not."""
    totals = sums * 1.25 + rng.uniform(0.01, 0.1, sums.shape)
    mass = np.where(heads, MASS * rng.uniform(0.95, 1.05, heads.shape), MASS / 17)
    totals[:, graph.head_sources] = np.maximum(totals[:, graph.head_sources], mass)
    return totals.astype(np.float32)


def holding(snapshot: Snapshot, heads: np.ndarray) -> Snapshot:
    """The same, with these heads held by each probe; [probes, layers, heads]."""
    totals = snapshot.node_totals.copy()
    noise = np.random.default_rng(snapshot.step).uniform(0.95, 1.05, heads.shape)
    totals[:, snapshot.graph.head_sources] = np.where(heads, MASS * noise, MASS / 17)
    grid = np.repeat(heads[None], len(snapshot.grid), axis=0)
    importance = np.where(heads, snapshot.importance, 0).astype(np.float32)
    return replace(
        snapshot, active=heads, grid_active=grid, importance=importance, node_totals=totals
    )


def make_run(checkpoints: Mapping[int, Heads], **keywords: Any) -> list[Snapshot]:
    """A snapshot a checkpoint: step -> active heads. Keywords go to `make_snapshot`."""
    return [make_snapshot(step, active, **keywords) for step, active in checkpoints.items()]


def make_timeline(checkpoints: Mapping[int, Heads], name: str = "", **keywords: Any) -> Timeline:
    """Of `make_run`."""
    return Timeline(make_run(checkpoints, **keywords), name=name)


def large_run(
    *,
    checkpoints: int = 12,
    graph: Graph = SMALL,
    probes: int = 16,
    every: int = 100,
    base_share: float = 0.17,
    emergent_share: float = 0.1,
    seed: int = 0,
) -> list[Snapshot]:
    """A random run in the shape that the paper reports: heads are born early, some are pruned.

    A third of the base heads falls silent for good at a random checkpoint; emergent heads are born
    with a rate that falls over time, and a quarter of them flickers.
    """
    rng = np.random.default_rng(seed)
    names = np.array([f"L{i}H{j}" for i in range(graph.num_layers) for j in range(graph.num_heads)])
    rng.shuffle(names)
    num_base = max(1, round(base_share * len(names)))
    base = names[:num_base]
    emergent = names[num_base : num_base + max(1, round(emergent_share * len(names)))]
    silent_at = np.where(
        rng.random(len(base)) < 1 / 3, rng.integers(1, checkpoints + 1, len(base)), checkpoints
    )
    birth = 1 + np.minimum(rng.exponential(checkpoints / 4, len(emergent)), checkpoints).astype(int)
    flickers = rng.random(len(emergent)) < 0.25
    run = []
    for index in range(checkpoints):
        held: dict[str, int] = {
            str(name): int(rng.integers(1, probes + 1)) for name in base[silent_at > index]
        }
        on = (birth <= index) & (~flickers | (birth == index) | (rng.random(len(birth)) < 0.6))
        held |= {str(name): int(rng.integers(1, probes + 1)) for name in emergent[on]}
        metrics = {"loss": 2.0 * float(np.exp(-index / 10)), "reward": index / checkpoints}
        run.append(
            make_snapshot(
                index * every, held, graph=graph, probes=probes, seed=seed, metrics=metrics
            )
        )
    return run


GROWN_GRAPH = Graph(num_layers=4, num_heads=6, num_kv_heads=2)
GROWN_GROUPS = ["sums"] * 24 + ["control"] * 8
GROWN_FACTORS = {0: 1.0, 10: 1.3, 20: 1.6, 30: 1.6}
"""Of L1H2, by step; its share at the base is 0.8 of an even one. L2H3 goes the other way."""


def grown_run(
    factors: dict[int, float] = GROWN_FACTORS,
    *,
    groups: Sequence[str] = GROWN_GROUPS,
    loss: dict[int, float] | None = None,
) -> list[Snapshot]:
    """Heads of even shares, one grows and one shrinks; on control probes every head does as it
    likes."""
    rng = np.random.default_rng(7)
    up, down = GROWN_GRAPH.head_sources[1, 2], GROWN_GRAPH.head_sources[2, 3]
    control = np.array(groups) == "control"
    usual = np.exp(rng.normal(0, 0.05, (len(groups), GROWN_GRAPH.num_sources)))
    usual[:, up], usual[:, down] = 0.8 * usual[:, up], 1.2 * usual[:, down]
    found = []
    for step, factor in factors.items():
        totals = usual * np.exp(rng.normal(0, 0.04 * (step > 0), usual.shape))
        totals[:, up] *= factor
        totals[:, down] /= factor
        totals[control] *= np.exp(rng.normal(0, 1, totals.shape))[control]
        nats = np.full(len(groups), (loss or {}).get(step, 2.0), np.float32)
        found.append(
            replace(
                make_snapshot(step, ["L0H0"], graph=GROWN_GRAPH, groups=groups),
                node_totals=totals.astype(np.float32),
                loss_corrupted=nats,
            )
        )
    return found


def write_unshowable(store: RunStore, step: int) -> Path:
    """A snapshot whose file is whole, and one of whose numbers is none; returns the file."""
    arrays, metadata = make_snapshot(step).to_arrays()
    text = metadata["sparks"].replace('"seconds": 1.5', '"seconds": "x"')
    path = store.file(step)
    path.write_bytes(save(arrays, metadata | {"sparks": text}))
    return path


def make_metrics(steps: Iterable[int], *, seed: int = 0) -> list[dict[str, float]]:
    """A trainer's log: a falling loss and a learning rate at every step given."""
    rng = np.random.default_rng(seed)
    return [
        {
            "step": step,
            "loss": 2.0 * float(np.exp(-index / 10)) + float(rng.uniform(0, 0.05)),
            "learning_rate": 4e-5,
            "epoch": index / 10,
        }
        for index, step in enumerate(steps)
    ]


def write_run(
    path: Path, snapshots: Iterable[Snapshot], metrics: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Put snapshots and a log into a run folder; returns the folder."""
    store = RunStore(path)
    for snapshot in snapshots:
        store.save(snapshot)
    if metrics:
        store.write_metrics(metrics)
    return path


def _edges(
    graph: Graph,
    heads: np.ndarray,
    wanted: Mapping[tuple[int, int], float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept edges of one probe, strongest first: embed -> head -> logits, and some between heads."""
    column = {name: index for index, name in enumerate(graph.destinations)}
    logits, edges = column["logits"], set()
    for layer, head in np.argwhere(heads):
        source = int(graph.head_sources[layer, head])
        edges |= {(0, column[f"L{layer}H{head}.q"]), (source, logits)}
        for later, other in np.argwhere(heads[layer + 1 :]):
            if rng.random() < 2 / max(1, int(heads.sum())):
                part = f"H{other}.q" if rng.random() < 0.5 else f"KV{_kv(graph, other)}.v"
                edges.add((source, column[f"L{layer + 1 + later}{part}"]))
    pairs = np.array(sorted(edges), dtype=np.int32).reshape(-1, 2)
    score = (0.1 + rng.exponential(0.5, len(pairs))) * rng.choice([-1, 1], len(pairs))
    for (layer, head), value in wanted.items():
        mine = pairs[:, 0] == graph.head_sources[layer, head]
        score[mine] *= value / max(np.abs(score[mine]).sum(), 1e-30)
    order = np.argsort(-np.abs(score), kind="stable")
    return pairs[order, 0], pairs[order, 1], score[order].astype(np.float32)


def _kv(graph: Graph, head: int) -> int:
    return int(head) // (graph.num_heads // graph.num_kv_heads)


def _source_sums(graph: Graph, source: np.ndarray, score: np.ndarray) -> np.ndarray:
    sums = np.bincount(source, weights=np.abs(score), minlength=graph.num_sources)
    return sums.astype(np.float32)
