"""Take one snapshot of one model: the piece that callback, replay and Python users share.

Pairs are scored a batch at a time and reduced to circuits at once, so that the score matrices of
all probes are never in memory together. The model is left exactly as found (`guard`).
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from tqdm import tqdm

from sparks.anatomy import base_model
from sparks.anatomy_check import take_apart
from sparks.attribution import EdgeScores, iter_edge_attribution
from sparks.circuit import Circuit, extract_circuit
from sparks.config import SnapshotConfig
from sparks.errors import SparksError
from sparks.faithfulness import circuit_loss
from sparks.guard import undisturbed
from sparks.memory import GIB, Progress
from sparks.passes import Passes
from sparks.snapshot import Snapshot, SnapshotMeta
from sparks.token_pairs import TokenizedProbes, TokenPair
from sparks.version import __version__

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
_FINGERPRINT_VALUES = 1024  # values of each weight that the fingerprint reads


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

    Raises:
        SparksError: a step below 0, probes that are not tokenised, or as `edge_attribution` does.
    """
    config = config or SnapshotConfig()
    if type(step) is not int or step < 0:
        raise SparksError(f"step must be a whole number, at least 0, got {step!r}")
    if not isinstance(probes, TokenizedProbes):
        raise SparksError(
            f"probes must be TokenizedProbes, got {type(probes).__name__}: ProbeSet.tokenize makes "
            f"them"
        )
    start = time.perf_counter()
    swapped = config.swap_base_roles and step == 0
    pairs = (probes.swapped() if swapped else probes).pairs
    with tqdm(
        total=len(pairs) * config.steps,
        desc=f"sparks step {step}",
        unit="pt",
        leave=False,
        disable=not progress,
    ) as bar:
        ordered, last = _score(model, pairs, config, bar.update)
    losses = None
    if config.faithfulness:
        losses = _losses_of_circuits(model, pairs, [result.circuit for result in ordered], config)
    meta = SnapshotMeta(
        step=step,
        epoch=epoch,
        model_name=_model_name(model),
        model_type=str(getattr(base_model(model).config, "model_type", "")),
        model_hash=fingerprint(model),
        probes_hash=probes.hash,
        config=config.as_dict(),
        precision=last.precision,
        seconds=round(time.perf_counter() - start, 3),
        peak_memory_gib=round(_peak_memory_gib(), 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        roles_swapped=swapped,
        metrics=dict(metrics or {}),
        versions=_versions(),
    )
    return _assemble(last, ordered, losses, probes, meta)


def _losses_of_circuits(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    circuits: Sequence[Circuit],
    config: SnapshotConfig,
) -> Float32[np.ndarray, " probes"]:
    """L of each pair with everything outside its circuit patched."""
    losses = []
    with undisturbed(model):
        anatomy = take_apart(model)
        for pair, circuit in zip(pairs, circuits, strict=True):
            kept = torch.zeros(anatomy.graph.num_sources, anatomy.graph.num_destinations)
            kept[torch.from_numpy(circuit.source), torch.from_numpy(circuit.destination)] = 1
            passes = Passes(anatomy, [pair], config.positions)
            losses.append(circuit_loss(anatomy, passes, kept.bool()))
    return np.array(losses, np.float32)


def _score(
    model: nn.Module, pairs: Sequence[TokenPair], config: SnapshotConfig, progress: Progress
) -> tuple[list[_ProbeResult], EdgeScores]:
    """What is kept of every pair, in order, and the scores of the last batch."""
    results: dict[int, _ProbeResult] = {}
    for indices, scores in iter_edge_attribution(
        model,
        pairs,
        steps=config.steps,
        rule=config.rule,
        positions=config.positions,
        memory_gib=config.memory_gib,
        progress=progress,
    ):
        for row, index in enumerate(indices):
            results[index] = _ProbeResult.of(scores, row, config)
        last = scores
    return [results[index] for index in range(len(pairs))], last


@dataclass(frozen=True, eq=False)
class _ProbeResult:
    """What a snapshot keeps of one probe."""

    circuit: Circuit
    node_totals: np.ndarray
    loss_corrupted: float
    completeness_gap: float

    @classmethod
    def of(cls, scores: EdgeScores, row: int, config: SnapshotConfig) -> _ProbeResult:
        matrix = scores.scores[row].numpy()
        return cls(
            circuit=extract_circuit(matrix, scores.graph, config),
            node_totals=np.abs(matrix).sum(axis=1),
            loss_corrupted=float(scores.loss_corrupted[row]),
            completeness_gap=float(scores.completeness_gap[row]),
        )


def _assemble(
    scores: EdgeScores,
    results: list[_ProbeResult],
    losses: Float32[np.ndarray, " probes"] | None,
    probes: TokenizedProbes,
    meta: SnapshotMeta,
) -> Snapshot:
    circuits = [result.circuit for result in results]
    offsets = np.cumsum([0, *(len(circuit.score) for circuit in circuits)])
    return Snapshot(
        graph=scores.graph,
        meta=meta,
        probe_ids=tuple(probes.ids),
        probe_groups=tuple(probes.groups),
        importance=np.stack([circuit.importance for circuit in circuits]).astype(np.float32),
        active=np.stack([circuit.heads for circuit in circuits]),
        node_totals=np.stack([result.node_totals for result in results]).astype(np.float32),
        loss_circuit=losses,
        loss_corrupted=np.array([result.loss_corrupted for result in results], np.float32),
        completeness_gap=np.array([result.completeness_gap for result in results], np.float32),
        edge_offsets=offsets.astype(np.int64),
        edge_source=np.concatenate([circuit.source for circuit in circuits]),
        edge_destination=np.concatenate([circuit.destination for circuit in circuits]),
        edge_score=np.concatenate([circuit.score for circuit in circuits]),
    )


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """sha256 (hex) over names, shapes, types and evenly spaced values of all weights.

    Equal weights give equal fingerprints; it reads 1024 values a tensor, so that it costs
    milliseconds at any size.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // _FINGERPRINT_VALUES)
        digest.update(_raw(flat[::stride]))
    return digest.hexdigest()


def _raw(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _model_name(model: nn.Module) -> str:
    config = base_model(model).config
    return str(getattr(config, "_name_or_path", "") or type(base_model(model)).__name__)


def _peak_memory_gib() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


@cache
def _versions() -> dict[str, str]:
    found = {"sparks": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional part of the stack
            continue
    return found
