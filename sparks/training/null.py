"""What a null needs a model for: fresh probes, and tiny noise on the weights. The torch side.

The model is that of the run's first snapshot. What is measured is kept in the run folder, below
`null`, as run folders of their own: an interrupted measurement goes on, and one that was finished
for the same probes, weights and settings is not repeated.

1. The model is loaded in the type of the first snapshot. Where its weights are not the very ones of
   that snapshot (an adapter around them, another type), the run's own probes are measured again,
   so that nothing but what a null is about differs.
2. Fresh probes that the run has too are left out, and control probes.
3. Noise: each weight matrix W becomes W + noise x std(W) x N(0, 1), vectors stay; afterwards every
   weight is put back to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SHARE, SnapshotConfig, check_value
from sparks.ground.errors import SparksError
from sparks.models.fingerprint import fingerprint
from sparks.models.loading import load_model, load_tokenizer
from sparks.probes.pairs import TokenizedProbes
from sparks.probes.probes import CONTROL_GROUP, ProbeSet
from sparks.runs.run_folder import RunStore

FOLDER = "null"
"""Where the measurements lie in a run folder."""
_BLOCKS = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True, eq=False)
class NullMeasurements:
    """What was measured on the model of the run's first snapshot."""

    base: Snapshot
    """The run's probes; the first snapshot itself where the weights are the same."""
    pool: Snapshot | None = None
    """Fresh probes."""
    noisy: tuple[Snapshot, ...] = ()
    """The run's probes on noisy weights, a snapshot a draw."""
    warnings: tuple[str, ...] = field(default=())
    """One line each."""


def measure(
    run: str | os.PathLike[str],
    *,
    probes: str | os.PathLike[str] | ProbeSet | None = None,
    model: str | None = None,
    noise: float | None = None,
    draws: int = 5,
    seed: int = 0,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
) -> NullMeasurements:
    """Measure fresh probes, noisy weights, or both.

    Args:
        run: the run folder, or a trainer's output folder that holds one.
        probes: fresh ones, of the kind of the run's: a JSONL file or a `ProbeSet`.
        model: folder or hub id of the model before training; None takes the name in the snapshot.
        noise: standard deviation of what is added to a matrix, of the matrix's own.
        draws: of the noise.
        seed: of the noise.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        trust_remote_code: run Python code that comes with a model.
        progress: show a bar for each measurement.

    Raises:
        SparksError: a value is outside its range, the model cannot be loaded, the run folder keeps
            no probes, all fresh probes are the run's own, or as `take_snapshot` does.
    """
    if noise is not None:
        check_value("noise", noise, float, SHARE)
    if draws < 1:
        raise SparksError(f"draws must be at least 1, got {draws!r}")
    store = RunStore.find(run)
    first = store.load(store.steps()[0])
    fresh = _probe_set(probes) if probes is not None else None
    kept = _kept_probes(store)
    name = model or first.meta.model_name
    try:
        loaded = _load(name, first, device, trust_remote_code)
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    except SparksError as error:
        more = "" if model else "; --model says where the model before training is"
        raise SparksError(f"{error}{more}") from error
    return _measure(
        _Measurer(store, first, loaded, tokenizer, progress), kept, fresh, noise, draws, seed
    )


def _measure(
    measurer: _Measurer,
    kept: ProbeSet,
    fresh: ProbeSet | None,
    noise: float | None,
    draws: int,
    seed: int,
) -> NullMeasurements:
    own = measurer.tokenized(kept)
    _refuse_other_probes(own, measurer.first, measurer.store)
    pool = measurer.pool(fresh, own) if fresh is not None else None
    warnings = []
    base = measurer.first
    if fingerprint(measurer.model) != base.meta.model_hash:
        warnings.append(
            f"the weights are not bit by bit those of step {base.step} (an adapter, another type, "
            f"or another model): the run's own probes are measured on them too"
        )
        base = measurer.take(own, "base", 0)
    noisy = []
    if noise is not None:
        warnings += _rounding(measurer.model, noise)
        for draw in range(draws):
            with noise_added(measurer.model, noise, seed=seed + draw):
                noisy.append(measurer.take(own, f"noise-{noise:g}", seed + draw))
    return NullMeasurements(
        base=base,
        pool=measurer.take(pool, "fresh", 0) if pool is not None else None,
        noisy=tuple(noisy),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, eq=False)
class _Measurer:
    """A model, and how the run measured it."""

    store: RunStore
    first: Snapshot
    model: Any
    tokenizer: Any
    progress: bool

    @property
    def config(self) -> SnapshotConfig:
        """Of the run; how much a circuit carries alone plays no part."""
        return replace(self.first.meta.settings, faithfulness=False)

    def tokenized(self, probes: ProbeSet) -> TokenizedProbes:
        return probes.tokenize_for(self.model.config, self.tokenizer, self.config)

    def pool(self, fresh: ProbeSet, own: TokenizedProbes) -> TokenizedProbes:
        """Those fresh probes that the run does not have, and no control probes."""
        found = self.tokenized(fresh)
        rows = zip(found.pairs, found.ids, found.groups, strict=True)
        others = [row for row in rows if row[0] not in own.pairs and row[2] != CONTROL_GROUP]
        if not others:
            raise SparksError(
                "all fresh probes are the run's own or control probes: build others with "
                "`sparks probes`"
            )
        pairs, ids, groups = zip(*others, strict=True)
        return TokenizedProbes(pairs, ids, groups)

    def take(self, probes: TokenizedProbes, folder: str, index: int) -> Snapshot:
        """The snapshot, or the one that was kept of the same probes, weights and settings."""
        store = RunStore(self.store.path / FOLDER / folder)
        if (known := self._known(store, index, probes)) is not None:
            return known
        store.prepare()
        found = take_snapshot(
            self.model, probes, self.config, step=self.first.step, progress=self.progress
        )
        found = replace(found, meta=replace(found.meta, step=index))
        store.save(found)
        return found

    def _known(self, store: RunStore, index: int, probes: TokenizedProbes) -> Snapshot | None:
        try:
            found = store.load(index)
            difference = found.meta.settings.difference(self.config)
        except SparksError:  # none, or damaged: it is taken again
            return None
        kept, now = found.meta, (probes.hash, fingerprint(self.model))
        same = (kept.probes_hash, kept.model_hash) == now and difference is None
        return found if same else None


# -- noise -----------------------------------------------------------------------------------


@contextmanager
def noise_added(model: nn.Module, noise: float, *, seed: int) -> Iterator[None]:
    """Inside, W + `noise` x std(W) x N(0, 1) for every weight matrix W; afterwards W, to the bit.

    The random state of torch is left alone.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2 and p.is_floating_point()]
    before = [matrix.detach().clone() for matrix in matrices]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for matrix in matrices:
                drawn = torch.randn(matrix.shape, generator=generator).to(matrix.device)
                matrix.copy_(matrix.float() + noise * matrix.float().std() * drawn)
        yield
    finally:
        with torch.no_grad():
            for matrix, value in zip(matrices, before, strict=True):
                matrix.copy_(value)


def _rounding(model: nn.Module, noise: float) -> list[str]:
    """What a narrow type does to the noise, in a line."""
    narrow = {p.dtype for p in model.parameters() if p.dim() >= 2 and p.is_floating_point()}
    steps = {dtype: torch.finfo(dtype).eps for dtype in narrow}
    dtype = max(steps, key=lambda kind: steps[kind])
    if noise >= steps[dtype] / 2:
        return []
    return [
        f"the weights are {str(dtype).removeprefix('torch.')}, which rounds most noise of "
        f"{noise:g} away: {steps[dtype]:.2g} stays"
    ]


# -- loading ---------------------------------------------------------------------------------


def _probe_set(probes: str | os.PathLike[str] | ProbeSet) -> ProbeSet:
    return probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)


def _kept_probes(store: RunStore) -> ProbeSet:
    path: Path = store.path / "probes.jsonl"
    if not path.exists():
        raise SparksError(
            f"{store.path} keeps no probes.jsonl, which a measurement needs: copy the run's probes "
            f"there"
        )
    return ProbeSet.load(path)


def _refuse_other_probes(own: TokenizedProbes, first: Snapshot, store: RunStore) -> None:
    if own.hash != first.meta.probes_hash:
        raise SparksError(
            f"{store.path / 'probes.jsonl'} is not what the snapshot of step {first.step} measured "
            f"(hash {first.meta.probes_hash[:12]}, with this tokenizer {own.hash[:12]}): give the "
            f"run's own base model with --model"
        )


def _load(name: str, first: Snapshot, device: str, trust_remote_code: bool) -> Any:
    """The model in the precision of the snapshot."""
    stream, _, blocks = first.meta.precision.partition(", blocks ")
    autocast: Any = _BLOCKS.get(blocks, "no")
    model = load_model(name, device=device, autocast=autocast, trust_remote_code=trust_remote_code)
    dtype = getattr(torch, stream, None)
    return model.to(dtype) if isinstance(dtype, torch.dtype) else model
