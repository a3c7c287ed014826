"""What each step of a snapshot costs, and many probes with few points beside few with many.

    python tests/bench/snapshot.py --model .cache/smollm2-135m-instruct --probes PROBES.jsonl

`before` is how the quickstart measured until 2026-12: 16 probes, points until the gap is at most
5 % (pilot), each probe's whole prompt run for itself, and again for its circuit. `now` is 64 probes
with today's defaults. Both in one process, alternating; CPU seconds of all threads, medians of
`--repeats`. Control probes are left out. The last line is JSON, an entry a side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.attribution import batches, model_runs, path_sums, take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.models.guard import undisturbed
from sparks.probes.pairs import TokenizedProbes
from sparks.probes.probes import CONTROL_GROUP, ProbeSet
from sparks.runs.run_folder import RunStore

BEFORE = {"tolerance": 0.05, "quadrature": "pilot"}
STEPS = [
    ("prefix", batches, "shared_prefixes"),
    ("prefix", model_runs.Passes, "_run_prefix"),
    ("endpoints", model_runs.Passes, "endpoints"),
    ("points", path_sums._Sums, "look"),
    ("points", path_sums._Sums, "add"),
    ("contraction", path_sums.EdgeSums, "result"),
    ("circuits and grid", take_snapshot, "extract_circuit"),
    ("circuits and grid", take_snapshot, "heads_of_grid"),
    ("faithfulness", take_snapshot, "_loss_of_circuit"),
    ("writing", RunStore, "save"),
]


class Meter:
    """CPU seconds by step; what a step calls of another one counts there alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = time.process_time()

    def switch(self) -> None:
        now = time.process_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.switch()
        self._running.append(name)
        try:
            yield
        finally:
            self.switch()
            self._running.pop()

    @contextmanager
    def watching(self) -> Iterator[None]:
        def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with self.step(name):
                    return work(*args, **kwargs)

            return run

        patches = [
            patch.object(at, what, timed(name, getattr(at, what))) for name, at, what in STEPS
        ]
        for one in patches:
            one.start()
        try:
            with self.step("rest"):
                yield
        finally:
            for one in reversed(patches):
                one.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", required=True, help="JSONL file with 64 probes or more")
    parser.add_argument("--counts", type=int, nargs=2, default=[16, 64], help="before and now")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    given = [p for p in ProbeSet.load(arguments.probes) if p.group != CONTROL_GROUP]
    probes = ProbeSet(tuple(given)).tokenize_for(model.config, tokenizer, SnapshotConfig())
    sides = {
        "before": (arguments.counts[0], SnapshotConfig(**BEFORE)),
        "now": (arguments.counts[1], SnapshotConfig()),
    }
    measure(model, first(probes, 2), SnapshotConfig(points=2), shared=True)  # checks the model
    found: dict[str, list[Counter[str]]] = {side: [] for side in sides}
    for _ in range(arguments.repeats):
        for side, (count, config) in sides.items():
            own = first(probes, count)
            found[side].append(measure(model, own, config, shared=side == "now"))
    rows = []
    for side, (count, config) in sides.items():
        steps = {name: statistics.median(r[name] for r in found[side]) for name in found[side][0]}
        row: dict[str, Any] = {"side": side, "probes": count, "m": config.points}
        row["cpu_seconds"] = {name: round(seconds, 2) for name, seconds in steps.items()}
        row["all"] = round(statistics.median(r.total() for r in found[side]), 2)
        rows.append(row)
        print(row)
    print(json.dumps(rows))


def first(probes: TokenizedProbes, count: int) -> TokenizedProbes:
    return TokenizedProbes(probes.pairs[:count], probes.ids[:count], probes.groups[:count])


def measure(
    model: Any, probes: TokenizedProbes, config: SnapshotConfig, *, shared: bool
) -> Counter[str]:
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder, alone(not shared), meter.watching():
        store = RunStore(folder)
        store.prepare()
        store.save(take_snapshot.take_snapshot(model, probes, config, progress=False))
    return meter.seconds


@contextmanager
def alone(wanted: bool) -> Iterator[None]:
    """No probe shares the beginning of its prompt with others, nor its circuit with the scores."""
    real = take_snapshot._loss_of_circuit

    def again(model: Any, passes: model_runs.Passes, circuit: Any) -> float:
        with undisturbed(model):
            passes._run_prefix(model_runs.SharedPrefix())
        return real(model, passes, circuit)

    if not wanted:
        yield
        return
    with (
        patch.object(model_runs, "alike", lambda prefixes: []),
        patch.object(take_snapshot, "_loss_of_circuit", again),
    ):
        yield


if __name__ == "__main__":
    main()
