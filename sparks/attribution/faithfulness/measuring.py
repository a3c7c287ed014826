"""Measure the faithfulness of circuits of growing size on a model: the torch side.

1. Score every edge of every probe (EAP-IG, `attribution.eap_ig`), unless the scores are given.
2. Make the circuits of all sizes (`curve`).
3. For each probe and each different circuit C, run the clean prompt with all outside C patched, and
   with all inside C patched; some circuits at a time, rows of one batch (`faithfulness`).
   The empty circuit is the corrupted run and the whole network the clean one: neither is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from sparks.attribution.circuit_runs import CircuitRuns
from sparks.attribution.eap_ig import edge_attribution, points_bar
from sparks.attribution.faithfulness.curve import SizedCircuit, circuits_of_probes
from sparks.attribution.faithfulness.results import FaithfulnessCurves
from sparks.attribution.faithfulness.settings import METRICS, CurveConfig
from sparks.attribution.model_runs import Passes, shared_prefixes
from sparks.attribution.scores import EdgeScores
from sparks.attribution.secant_proof import settle
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy, base_model
from sparks.models.anatomy_proof import take_apart
from sparks.models.graph import Graph
from sparks.models.guard import undisturbed
from sparks.models.memory import GIB
from sparks.probes.pairs import TokenizedProbes, TokenPair

_MOST_ROWS = {"cpu": 8, "cuda": 64}
"""Circuits a run; on two CPU cores more gain nothing."""


def faithfulness_curves(
    model: nn.Module,
    probes: TokenizedProbes,
    *,
    config: SnapshotConfig | None = None,
    curve: CurveConfig | None = None,
    scores: EdgeScores | None = None,
    progress: bool = True,
) -> FaithfulnessCurves:
    """Faithfulness and necessity of circuits of every size, with the random control.

    Args:
        model: a Hugging Face causal language model, PEFT-wrapped or not. Left exactly as found.
        probes: from `ProbeSet.tokenize` with the model's own tokenizer.
        config: how edges are scored, and where L looks; None takes the defaults.
        curve: which circuits are measured; None takes the defaults.
        scores: of `probes` on `model`, where they are known (`score_probes`).
        progress: show bars on standard error.

    Raises:
        SparksError: the scores are of other probes, a probe whose clean and corrupted run are
            equal, one probe alone with `held_out`, or as `edge_attribution` does.
    """
    config, curve = config or SnapshotConfig(), curve or CurveConfig()
    if curve.held_out and len(probes) < 2:  # told before the scores are measured
        raise SparksError("held_out ranks each probe by the others: give two probes or more, got 1")
    config = settle(model, config)
    if scores is None:
        scores = score_probes(model, probes, config, progress=progress)
    if len(scores.scores) != len(probes):
        raise SparksError(
            f"scores must be those of the {len(probes)} probes, got {len(scores.scores)} of them"
        )
    circuits = circuits_of_probes(scores.scores.numpy(), scores.graph, curve)
    sets = [(kind, draw) for kind, draws in circuits.items() for draw in draws]
    found = _measure(model, probes.pairs, [draw for _, draw in sets], config, progress)
    return FaithfulnessCurves(
        model=str(getattr(base_model(model).config, "_name_or_path", "")),
        probe_ids=tuple(probes.ids),
        probe_groups=tuple(probes.groups),
        settings={"scores": config.measurement(), "circuits": curve.as_dict()},
        num_edges=scores.graph.num_edges,
        num_heads=scores.graph.num_layers * scores.graph.num_heads,
        shares=curve.shares,
        sets=tuple(kind for kind, _ in sets),
        edges=_counts(sets, lambda circuit: len(circuit.edges)),
        heads=_counts(sets, lambda circuit: circuit.heads),
        **found,
    )


def score_probes(
    model: nn.Module, probes: TokenizedProbes, config: SnapshotConfig, *, progress: bool = True
) -> EdgeScores:
    """`edge_attribution` of all probes with the settings of a snapshot, and a bar."""
    with points_bar(len(probes), config, "sparks scores", shown=progress) as bar:
        return edge_attribution(
            model, probes.pairs, **config.attribution(), progress=bar.update, spared=bar.update
        )


def _counts(
    sets: Sequence[tuple[str, list[list[SizedCircuit]]]], of: Callable[[SizedCircuit], int]
) -> np.ndarray:
    return np.array([[[of(circuit) for circuit in probe] for probe in draw] for _, draw in sets])


# -- runs --------------------------------------------------------------------------------------


def _measure(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    sets: Sequence[list[list[SizedCircuit]]],
    config: SnapshotConfig,
    progress: bool,
) -> dict[str, np.ndarray]:
    """`clean`, `empty`, `kept`, `removed` as in `FaithfulnessCurves`, of [set][probe][size]."""
    shape = len(METRICS), len(sets), len(pairs), len(sets[0][0])
    kept, removed = np.empty(shape), np.empty(shape)
    ends = np.empty((2, len(METRICS), len(pairs)))
    with undisturbed(model):
        anatomy = take_apart(model)
        shared = shared_prefixes(anatomy, pairs)
    total = sum(len({c.edges.tobytes() for s in sets for c in s[i]}) for i in range(len(pairs)))
    with tqdm(
        total=2 * total, desc="sparks circuits", unit="run", leave=False, disable=not progress
    ) as bar:
        for probe, pair in enumerate(pairs):
            with undisturbed(model):
                runs = _ProbeRuns(
                    anatomy, Passes(anatomy, [pair], config.positions, shared[probe]), config
                )
                ends[:, :, probe] = runs.clean, runs.empty
                circuits = [circuit for draw in sets for circuit in draw[probe]]
                found = runs.of(circuits, bar.update)
            kept[:, :, probe], removed[:, :, probe] = found.reshape(2, len(METRICS), len(sets), -1)
    return {"clean": ends[0], "empty": ends[1], "kept": kept, "removed": removed}


class _ProbeRuns:
    """Metrics of one probe, which `passes` run, under circuits."""

    def __init__(self, anatomy: Anatomy, passes: Passes, config: SnapshotConfig) -> None:
        self.graph: Graph = anatomy.graph
        self.runs = CircuitRuns(anatomy, passes)
        self.log_clean = self.runs.clean.double().log_softmax(-1)
        self.says = self.runs.clean.argmax(-1), self.runs.corrupted.argmax(-1)
        self.clean = self.metrics(self.runs.clean[None])[:, 0]
        self.empty = self.metrics(self.runs.corrupted[None])[:, 0]
        if not self.clean[0] > self.empty[0]:
            raise SparksError(
                "a probe's clean and corrupted prompt give one and the same output: there is "
                "nothing that a circuit could carry; leave it out"
            )
        row = 4 * passes.suffix * anatomy.d_model * 2 * self.graph.num_sources
        row += 2 * passes.prefix_bytes + 16 * self.runs.clean.numel()
        most = _MOST_ROWS.get(anatomy.device.type, 8)
        self.rows = max(1, min(most, int(config.memory_gib * GIB) // row))

    def metrics(
        self, logits: Float[Tensor, "circuits targets vocab"]
    ) -> Float[np.ndarray, "metrics circuits"]:
        """`kl` and `logit-diff`, each a mean over the positions that L looks at."""
        logits = logits.double()
        loss = (self.log_clean.exp() * (self.log_clean - logits.log_softmax(-1))).sum(-1)
        first, second = (
            logits.gather(-1, token.expand(len(logits), -1)[..., None])[..., 0]
            for token in self.says
        )
        return torch.stack([-loss.mean(-1), (first - second).mean(-1)]).cpu().numpy()

    def of(
        self, circuits: Sequence[SizedCircuit], progress: Callable[[int], object]
    ) -> Float[np.ndarray, "directions metrics circuits"]:
        """m(C) and m(N without C) of each circuit; equal ones are run once."""
        found: dict[bytes, np.ndarray] = {}
        left: dict[bytes, SizedCircuit] = {c.edges.tobytes(): c for c in circuits}
        for key, circuit in list(left.items()):
            if len(circuit.edges) in (0, self.graph.num_edges):
                ends = (
                    (self.empty, self.clean)
                    if circuit.edges.size == 0
                    else (self.clean, self.empty)
                )
                found[key] = np.stack([ends[0], ends[1]])
                del left[key]
                progress(2)
        keys = list(left)
        for start in range(0, len(keys), self.rows):
            chunk = keys[start : start + self.rows]
            masks = np.stack([left[key].mask(self.graph) for key in chunk])
            both = np.stack([self._run(masks), self._run(self.graph.edge_mask & ~masks)])
            found |= {key: both[:, :, row] for row, key in enumerate(chunk)}
            progress(2 * len(chunk))
        return np.stack([found[circuit.edges.tobytes()] for circuit in circuits], axis=-1)

    def _run(
        self, masks: Bool[np.ndarray, "circuits sources destinations"]
    ) -> Float[np.ndarray, "metrics circuits"]:
        return self.metrics(self.runs.logits(torch.from_numpy(masks)))
