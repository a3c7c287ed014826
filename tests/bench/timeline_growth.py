"""How the cost of looking at a run grows: with its snapshots, with its probes, with one landing.

    python tests/bench/timeline_growth.py                  # 6 GB of disk for a while, 5 minutes
    python tests/bench/timeline_growth.py --snapshots 100 300 --probes 100 300

Random runs in which heads are born, fade and waver are written to a folder that goes again. Each
number is of a process of its own: CPU seconds without imports, and its peak memory.

    timeline, report, watch    what the commands of these names do (`watch --once`)
    landing                    a followed run of one snapshot less, and then that one

Snapshots grow at 28 x 12 heads (2000 edges a probe) and 80 x 64 (5000), 16 probes; probes grow at
28 x 12 heads, 200 edges a probe, 10 snapshots. The last line is JSON, an entry a row.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sparks.attribution.circuit import GRID
from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.config import SnapshotConfig
from sparks.models.graph import Graph
from sparks.runs.run_folder import RunStore
from sparks.timeline.regimes.regime import CircuitTurnover
from sparks.timeline.timeline import Timeline
from sparks.views.live.terminal import _Watched, watch
from sparks.views.report import followers, render_report
from sparks.views.text.timeline import render

SHAPES = {
    "28x12": Graph(num_layers=28, num_heads=12, num_kv_heads=2),
    "80x64": Graph(num_layers=80, num_heads=64, num_kv_heads=8),
}
EDGES = {"28x12": 2000, "80x64": 5000}
PROBES = 16
FEW_SNAPSHOTS, FEW_EDGES = 10, 200
"""Of runs whose probes grow."""


def main() -> None:
    arguments = parse()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, Path(arguments.run))))
        return
    rows = []
    with TemporaryDirectory(dir=arguments.folder) as folder:
        for row, run in runs(arguments, Path(folder)):
            for what in WORK:
                rows.append({**row, "what": what, **in_a_process(what, run)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snapshots", type=int, nargs="*", default=[100, 300, 1000])
    parser.add_argument("--probes", type=int, nargs="*", default=[100, 300, 1000, 5000])
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--folder", help="where the runs lie for a while (default: that of tempfile)"
    )
    parser.add_argument("--measure", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def runs(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """What is measured, and the run folder."""
    for shape in arguments.shapes if arguments.snapshots else ():
        longest = folder / shape
        write(longest, SHAPES[shape], max(arguments.snapshots), PROBES, EDGES[shape])
        for count in arguments.snapshots:
            run = folder / f"{shape}-{count}"
            run.mkdir()
            for path in sorted(longest.iterdir())[:count]:
                os.link(path, run / path.name)
            yield {"heads": shape, "snapshots": count, "probes": PROBES}, run
    for probes in arguments.probes:
        run = folder / f"probes-{probes}"
        write(run, SHAPES["28x12"], FEW_SNAPSHOTS, probes, FEW_EDGES)
        yield {"heads": "28x12", "snapshots": FEW_SNAPSHOTS, "probes": probes}, run


# -- measuring -------------------------------------------------------------------------------------


def in_a_process(what: str, run: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(what: str, run: Path) -> dict[str, float]:
    seconds = WORK[what](run)
    status = Path("/proc/self/status").read_text()  # `sparks.models.memory` would bring torch
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**20
    return {"cpu_seconds": round(seconds, 2), "peak_gib": round(peak, 2)}


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def of_timeline(run: Path) -> float:
    return timed(lambda: render(Timeline.from_run(run, followers=[CircuitTurnover(None)])))


def of_report(run: Path) -> float:
    return timed(lambda: render_report([Timeline.from_run(run, followers=followers(None))]))


def of_watch(run: Path) -> float:
    return timed(lambda: watch(run, once=True, out=io.StringIO()))


def of_landing(run: Path) -> float:
    """The last snapshot comes while the run is watched."""
    *_, last = sorted(run.iterdir())
    aside = last.with_suffix(".aside")
    last.rename(aside)
    watched = _Watched(run, None, "growth")
    watched.look()
    aside.rename(last)
    return timed(watched.look)


WORK = {"timeline": of_timeline, "report": of_report, "watch": of_watch, "landing": of_landing}


# -- runs ------------------------------------------------------------------------------------------


def write(folder: Path, graph: Graph, snapshots: int, probes: int, edges: int) -> None:
    store = RunStore(folder)
    store.prepare()
    for snapshot in random_run(graph, snapshots, probes, edges):
        arrays, metadata = snapshot.to_arrays()
        save_file(arrays, store.file(snapshot.step), metadata)


def random_run(
    graph: Graph, snapshots: int, probes: int, edges: int, seed: int = 0
) -> Iterator[Snapshot]:
    """A tenth of the heads rise for good, most of them early; all waver from probe to probe."""
    rng = np.random.default_rng(seed)
    shape = (graph.num_layers, graph.num_heads)
    start = np.where(rng.random(shape) < 0.3, rng.beta(2, 2, shape), rng.beta(0.4, 4, shape))
    end = np.where(rng.random(shape) < 0.1, rng.beta(4, 2, shape), start)
    turn = rng.exponential(0.15 * snapshots, shape)
    breadth, taste = rng.normal(0, 0.5, (probes, 1, 1)), rng.normal(0, 0.7, (probes, *shape))
    demand = np.linspace(1.0, -1.0, len(GRID))[:, None, None, None]
    pool = edge_pool(graph, 2 * edges, rng)
    liking = rng.normal(0, 1, (probes, len(pool)))
    for index in range(snapshots):
        level = np.where(turn < index, end, start)
        will = np.log((level + 1e-3) / (1 - level + 1e-3)) * 1.5 + breadth + taste
        will += rng.normal(0, 0.3, will.shape)
        held = will + demand > 0
        active = held[len(GRID) // 2]
        wish = liking + rng.normal(0, 0.4, liking.shape) + index / snapshots * liking[::-1] / 2
        kept = np.argpartition(-wish, edges, axis=1)[:, :edges]
        source, destination = pool[kept.ravel()].T.astype(np.int32)
        size = np.sort(rng.exponential(0.5, (probes, edges)) + 0.1, axis=1)[:, ::-1]
        yield Snapshot(
            graph=graph,
            meta=meta(index * 10, probes),
            probe_ids=tuple(f"probe-{number}" for number in range(probes)),
            probe_groups=("",) * probes,
            importance=np.where(active, np.exp(will / 2), 0).astype(np.float32),
            active=active,
            grid=GRID,
            grid_active=held,
            node_totals=rng.exponential(1, (probes, graph.num_sources)).astype(np.float32),
            loss_corrupted=rng.uniform(0.5, 2, probes).astype(np.float32),
            loss_circuit=np.full(probes, 0.2, np.float32),
            completeness_gap=rng.exponential(0.01, probes).astype(np.float32),
            edge_offsets=np.arange(probes + 1) * edges,
            edge_source=source,
            edge_destination=destination,
            edge_score=(size * rng.choice([-1, 1], size.shape)).astype(np.float32).ravel(),
        )


def edge_pool(graph: Graph, count: int, rng: np.random.Generator) -> np.ndarray:
    """Edges that the graph has: [count, source and destination]."""
    codes = rng.choice(graph.num_sources * graph.num_destinations, 6 * count, replace=False)
    source, destination = np.divmod(np.sort(codes), graph.num_destinations)
    layer = destination // graph.destinations_per_layer
    is_there = source < 1 + layer * graph.sources_per_layer
    return rng.permutation(np.stack([source, destination], axis=1)[is_there])[:count]


def meta(step: int, probes: int) -> SnapshotMeta:
    return SnapshotMeta(
        step=step,
        model_name="random",
        model_type="llama",
        model_hash=f"model-{step}",
        probes_hash=f"probes-{probes}",
        config=SnapshotConfig().as_dict(),
        precision="float32",
        seconds=1.0,
        peak_memory_gib=1.0,
        created="2026-11-30T00:00:00Z",
        source="callback",
        metrics={"loss": 1 / (1 + step), "reward": step % 70 / 70},
    )


if __name__ == "__main__":
    main()
