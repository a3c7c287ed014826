"""draft"""

import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from sparks.circuit_grid import GRID
from sparks.config import SnapshotConfig
from sparks.graph import Graph
from sparks.snapshot import Snapshot, SnapshotMeta
from sparks.store import RunStore

SHAPES = {"28x12": (28, 12, 2), "80x64": (80, 64, 8)}


def write_run(folder, shape, checkpoints, probes, edges, seed=0):
    store = RunStore(folder)
    store.prepare()
    for snapshot in planted_run(
        Graph(**dict(zip(("num_layers", "num_heads", "num_kv_heads"), SHAPES[shape]))),
        checkpoints,
        probes,
        edges,
        seed,
    ):
        arrays, metadata = snapshot.to_arrays()
        save_file(arrays, store.file(snapshot.step), metadata)


def planted_run(graph, checkpoints, probes, edges, seed=0):
    """Heads whose inclusion stays, rises or falls at some checkpoint; edges of a common pool."""
    rng = np.random.default_rng(seed)
    shape = (graph.num_layers, graph.num_heads)
    start = np.where(rng.random(shape) < 0.3, rng.beta(2, 2, shape), rng.beta(0.4, 4, shape))
    end = np.where(rng.random(shape) < 0.1, rng.beta(4, 2, shape), start)
    turn = rng.exponential(0.15 * checkpoints, shape)
    ease = rng.normal(0, 0.5, (probes, 1, 1))  # how much of the model a probe takes
    taste = rng.normal(0, 0.7, (probes, *shape))
    demand = np.linspace(1.0, -1.0, len(GRID))[:, None, None, None]
    pool = pool_of(graph, 2 * edges, rng)
    liking = rng.normal(0, 1, (probes, len(pool)))
    for time in range(checkpoints):
        level = np.where(turn < time, end, start)
        logit = np.log((level + 1e-3) / (1 - level + 1e-3)) * 1.5
        will = logit + ease + taste + rng.normal(0, 0.3, (probes, *shape))
        held = will + demand > 0
        active = held[len(GRID) // 2]
        importance = np.where(active, np.exp(will / 2), 0).astype(np.float32)
        wish = liking + rng.normal(0, 0.4, liking.shape) + time / checkpoints * liking[::-1] / 2
        kept = np.argpartition(-wish, edges, axis=1)[:, :edges]
        source, destination = pool[kept.ravel()].T
        score = np.sort(rng.exponential(0.5, (probes, edges)).astype(np.float32) + 0.1)[:, ::-1]
        score = score * rng.choice([-1, 1], score.shape).astype(np.float32)
        totals = rng.exponential(1, (probes, graph.num_sources)).astype(np.float32)
        yield Snapshot(
            graph=graph,
            meta=meta_of(time * 10, probes),
            probe_ids=tuple(f"probe-{i}" for i in range(probes)),
            probe_groups=("",) * probes,
            importance=importance,
            active=active,
            grid=GRID,
            grid_active=held,
            node_totals=totals,
            loss_corrupted=rng.uniform(0.5, 2, probes).astype(np.float32),
            loss_circuit=np.full(probes, 0.2, np.float32),
            completeness_gap=rng.exponential(0.01, probes).astype(np.float32),
            edge_offsets=np.arange(probes + 1) * edges,
            edge_source=source.astype(np.int32),
            edge_destination=destination.astype(np.int32),
            edge_score=score.ravel(),
        )


def pool_of(graph, size, rng):
    codes = rng.choice(graph.num_sources * graph.num_destinations, size, replace=False)
    return np.stack(np.divmod(codes, graph.num_destinations), axis=1)


def meta_of(step, probes):
    return SnapshotMeta(
        step=step,
        model_name="random",
        model_type="llama",
        model_hash=f"m{step}",
        probes_hash=f"p{probes}",
        config=SnapshotConfig().as_dict(),
        precision="float32",
        seconds=1.0,
        peak_memory_gib=1.0,
        created="2026-11-30T00:00:00Z",
        source="callback",
        metrics={"loss": 1 / (1 + step), "reward": step % 70 / 70},
    )


if __name__ == "__main__":
    start = time.time()
    write_run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    print(time.time() - start)
