"""Take one snapshot of one model: the piece that callback, replay and Python users share.

1. A model that is sharded over processes becomes a whole one (`models.sharding`).
2. Each process takes its share of the probes, a batch at a time, and reduces the scores to circuits
   at once, so that the score matrices of all probes are never in memory together.
3. All processes get the results of all, and put together the same snapshot.

The model is left exactly as found (`models.guard`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import nn

from sparks.attribution.circuit import GRID, Circuit, extract_circuit, heads_of_grid
from sparks.attribution.circuit_runs import circuit_loss
from sparks.attribution.eap_ig import edge_parts, points_bar
from sparks.attribution.model_runs import Passes
from sparks.attribution.scores import EdgeScores
from sparks.attribution.secant_proof import settle
from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.config import SnapshotConfig, at_least, check_value
from sparks.ground.errors import SparksError
from sparks.ground.version import __version__
from sparks.models import processes
from sparks.models.anatomy import Anatomy, base_model
from sparks.models.anatomy_proof import take_apart
from sparks.models.fingerprint import fingerprint
from sparks.models.graph import Graph
from sparks.models.guard import undisturbed
from sparks.models.memory import GIB, peak_process_gib
from sparks.models.sharding import is_sharded, whole
from sparks.probes.pairs import TokenizedProbes, TokenPair

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def take_snapshot(
    model: nn.Module,
    probes: TokenizedProbes,
    config: SnapshotConfig | None = None,
    *,
    step: int = 0,
    epoch: float | None = None,
    metrics: Mapping[str, float] | None = None,
    source: str = "api",
    progress: bool = True,
    shared: bool = False,
) -> Snapshot:
    """Score every probe on `model` and reduce the scores to circuits.

    Args:
        model: a Hugging Face causal language model, PEFT-wrapped or not. Left exactly as found.
        probes: from `ProbeSet.tokenize` with the model's own tokenizer.
        config: settings; None takes the defaults.
        step: optimizer step of the model; 0 is the model before training.
        epoch: where the trainer stands.
        metrics: numbers that the trainer logged last.
        source: `callback`, `replay` or `api`.
        progress: show a bar on standard error.
        shared: every process that trains makes this call with the same arguments: the probes are
            shared out, and all get the same snapshot. Sharded models need it.

    Raises:
        SparksError: a step below 0, probes that are not tokenised, another process failed, a
            sharded model without `shared`, or as `edge_attribution` and `sharding.whole` do.
    """
    _check_arguments(model, probes, step, shared)
    config = config or SnapshotConfig()
    start = time.perf_counter()
    swapped = config.swap_base_roles and step == 0
    pairs = (probes.swapped() if swapped else probes).pairs
    model = whole(model) if shared else model
    config = settle(model, config)
    if shared:
        mine = _shares(pairs, processes.count())[processes.index()]
        parts = processes.together(lambda: _measure(model, pairs, mine, config, step, progress))
    else:
        parts = [_measure(model, pairs, range(len(pairs)), config, step, progress)]
    meta = SnapshotMeta(
        step=step,
        epoch=epoch,
        model_name=_model_name(model),
        model_type=str(getattr(base_model(model).config, "model_type", "")),
        model_hash=fingerprint(model),
        probes_hash=probes.hash,
        config=config.as_dict(),
        precision=parts[0].precision,
        seconds=round(time.perf_counter() - start, 3),
        peak_memory_gib=round(max(part.peak_memory_gib for part in parts), 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        router_share=_router_share(parts),
        roles_swapped=swapped,
        metrics=dict(metrics or {}),
        versions=_versions(),
    )
    return _assemble(parts, probes, meta)


def _router_share(parts: Sequence[_Part]) -> float | None:
    shares = [result.switches for part in parts for result in part.results.values()]
    return float(np.median(shares)) if shares and None not in shares else None  # type: ignore[arg-type]


def _check_arguments(model: nn.Module, probes: TokenizedProbes, step: int, shared: bool) -> None:
    check_value("step", step, int, at_least(0))
    if not isinstance(probes, TokenizedProbes):
        raise SparksError(
            f"probes must be TokenizedProbes, got {type(probes).__name__}: ProbeSet.tokenize makes "
            f"them"
        )
    if not shared and isinstance(model, nn.Module) and is_sharded(model):
        raise SparksError(
            "the weights are sharded over processes: call take_snapshot in every process, with "
            "shared=True"
        )


def faithfulness_indices(count: int, config: SnapshotConfig) -> frozenset[int]:
    """Which of `count` probes have their faithfulness measured: spread evenly over their order."""
    if not config.faithfulness:
        return frozenset()
    chosen = np.linspace(0, count - 1, min(count, config.faithfulness_probes))
    return frozenset(chosen.round().astype(int).tolist())


def _shares(pairs: Sequence[TokenPair], count: int) -> list[list[int]]:
    """Indices of the pairs that each process measures; like lengths are dealt out evenly."""
    by_length = sorted(range(len(pairs)), key=lambda index: -len(pairs[index]))
    return [by_length[start::count] for start in range(count)]


@dataclass(frozen=True, eq=False)
class _Part:
    """What one process measured."""

    graph: Graph
    precision: str
    """Empty where there was no probe to measure."""
    results: dict[int, _ProbeResult]
    """By index of the probe."""
    peak_memory_gib: float


@dataclass(frozen=True, eq=False)
class _ProbeResult:
    """What a snapshot keeps of one probe."""

    circuit: Circuit
    heads_of_grid: np.ndarray
    node_totals: np.ndarray
    loss_corrupted: float
    completeness_gap: float
    switches: float | None
    """Share of L; None without a mixture."""
    points: int
    loss_circuit: float = math.nan
    """NaN where it was not measured."""


def _measure(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    indices: Sequence[int],
    config: SnapshotConfig,
    step: int,
    progress: bool,
) -> _Part:
    """The results of the pairs at `indices`; there may be none."""
    with undisturbed(model):
        graph = take_apart(model).graph
    judged = faithfulness_indices(len(pairs), config)
    results: dict[int, _ProbeResult] = {}
    precision = ""
    own = [pairs[index] for index in indices]
    with points_bar(len(own), config, f"sparks step {step}", shown=progress) as bar:
        batches = edge_parts(model, own, config, bar.update, bar.update)
        for rows, scores, passes in batches if own else ():
            precision = scores.precision
            for row, place in enumerate(rows):
                index = indices[place]
                found = _result(passes.anatomy, scores, row, config)
                if index in judged:
                    loss = _loss_of_circuit(model, passes.only([row]), found.circuit)
                    found = replace(found, loss_circuit=loss)
                results[index] = found
    return _Part(graph, precision, results, _peak_memory_gib())


def _result(anatomy: Anatomy, scores: EdgeScores, row: int, config: SnapshotConfig) -> _ProbeResult:
    """Of the probe at `row` of `scores`."""
    matrix = scores.scores[row].numpy()
    circuit = extract_circuit(matrix, scores.graph, config)
    loss = float(scores.loss_corrupted[row])
    return _ProbeResult(
        circuit=circuit,
        heads_of_grid=heads_of_grid(matrix, scores.graph, loss),
        node_totals=np.abs(matrix).sum(axis=1),
        loss_corrupted=loss,
        completeness_gap=float(scores.completeness_gap[row]),
        switches=abs(float(scores.switches[row])) if anatomy.has_experts else None,
        points=int(scores.points[row]),
    )


def _loss_of_circuit(model: nn.Module, passes: Passes, circuit: Circuit) -> float:
    """L of the pair with everything outside its circuit patched."""
    graph = passes.anatomy.graph
    kept = torch.zeros(graph.num_sources, graph.num_destinations, dtype=torch.bool)
    kept[torch.from_numpy(circuit.source), torch.from_numpy(circuit.destination)] = True
    with undisturbed(model):
        return circuit_loss(passes.anatomy, passes, kept)


def _assemble(parts: Sequence[_Part], probes: TokenizedProbes, meta: SnapshotMeta) -> Snapshot:
    found = {index: result for part in parts for index, result in part.results.items()}
    results = [found[index] for index in range(len(probes.pairs))]
    circuits = [result.circuit for result in results]
    offsets = np.cumsum([0, *(len(circuit.score) for circuit in circuits)])
    return Snapshot(
        graph=parts[0].graph,
        meta=meta,
        probe_ids=tuple(probes.ids),
        probe_groups=tuple(probes.groups),
        importance=np.stack([circuit.importance for circuit in circuits]).astype(np.float32),
        active=np.stack([circuit.heads for circuit in circuits]),
        grid=GRID,
        grid_active=np.stack([result.heads_of_grid for result in results], axis=1),
        node_totals=np.stack([result.node_totals for result in results]).astype(np.float32),
        loss_circuit=np.array([result.loss_circuit for result in results], np.float32),
        loss_corrupted=np.array([result.loss_corrupted for result in results], np.float32),
        completeness_gap=np.array([result.completeness_gap for result in results], np.float32),
        points=np.array([result.points for result in results], np.int32),
        edge_offsets=offsets.astype(np.int64),
        edge_source=np.concatenate([circuit.source for circuit in circuits]),
        edge_destination=np.concatenate([circuit.destination for circuit in circuits]),
        edge_score=np.concatenate([circuit.score for circuit in circuits]),
    )


def _model_name(model: nn.Module) -> str:
    config = base_model(model).config
    return str(getattr(config, "_name_or_path", "") or type(base_model(model)).__name__)


def _peak_memory_gib() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / GIB
    return peak_process_gib()


@cache
def _versions() -> dict[str, str]:
    found = {"sparks": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional part of the stack
            continue
    return found
