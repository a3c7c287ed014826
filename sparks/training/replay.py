"""Snapshots of a run that had no callback, from its checkpoints: folders or hub revisions.

The same `take_snapshot` as the callback's, on the same weights: the scores are equal. The step of a
checkpoint is read from its `trainer_state.json`, else from its name (`checkpoint-40`), or given in
front (`40=PATH`). An adapter folder is loaded on its base model. A step that the run folder already
holds, for the same probes and settings, is not taken again. What is taken belongs to the run that
the folder holds; one that a training or another replay is writing is refused.

Where a task is given, each checkpoint is evaluated too, as the callback does it: the same samples
for the same weights. A finished evaluation is not repeated, one that was cut off goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.attribution.secant_proof import settle
from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.ground.files import check_writable, set_aside
from sparks.models.loading import Autocast, load_model, load_tokenizer, split_revision
from sparks.probes.probes import ProbeSet
from sparks.runs.lock import RunLock
from sparks.runs.run_folder import RunStore
from sparks.runs.trainer_log import TrainerLog, latest_metrics
from sparks.training.evaluator import CheckpointEvaluator

if TYPE_CHECKING:
    from sparks.evaluation.records import Task
    from sparks.evaluation.settings import EvaluationConfig

_NAME = re.compile(r"(?:checkpoint|step|global_step)[-_](\d+)\Z")
_GIVEN = re.compile(r"(\d+)=(.+)\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model to measure, and the step that it stands for."""

    step: int
    name: str
    """Folder or hub id."""
    revision: str | None = None
    log: TrainerLog | None = None


def replay_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    probes: str | os.PathLike[str] | ProbeSet,
    *,
    output_dir: str | os.PathLike[str],
    base: str | None = None,
    config: SnapshotConfig | None = None,
    evaluate: str | os.PathLike[str] | Task | None = None,
    evaluation: EvaluationConfig | None = None,
    device: str = "auto",
    autocast: Autocast = "no",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> RunStore:
    """Take a snapshot of every checkpoint, in order of step.

    Args:
        checkpoints: folders, trainers' output folders (all their `checkpoint-*`), hub ids as
            `owner/name@revision`; each may carry its step in front, as `40=PATH`.
        probes: a JSONL file or a `ProbeSet`.
        output_dir: the run folder to write; snapshots that it already holds are kept.
        base: the model before training, measured as step 0.
        config: settings; None takes the defaults.
        evaluate: a task on which every checkpoint is evaluated too: a name, a JSONL file, a `Task`.
        evaluation: how answers are sampled; None takes the defaults.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        autocast: run the model as a trainer with `bf16=True` or `fp16=True` does.
        trust_remote_code: run Python code that comes with a model.
        overwrite: take steps again that the run folder holds, and their evaluations.
        progress: show a bar for each snapshot.

    Returns:
        The run folder's store.

    Raises:
        SparksError: a checkpoint has no step or cannot be loaded, two have one step, the folder
            holds snapshots of other probes or settings, another process writes it, or as
            `take_snapshot` and `CheckpointEvaluator` do.
    """
    config = config or SnapshotConfig()
    probe_set = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
    evaluator = None if evaluate is None else CheckpointEvaluator(evaluate, evaluation)
    found = resolve_checkpoints(checkpoints, base=base)
    store = RunStore(output_dir)
    # The folder itself is made by the first snapshot: a replay that fails before leaves nothing.
    check_writable(store.path / "probes.jsonl")
    replayed = {checkpoint.step for checkpoint in found}
    options: Any = {"device": device, "autocast": autocast, "trust_remote_code": trust_remote_code}
    if config.method == "secant":  # what is asked for, held against what the folder has
        config = settle(load_model(found[0].name, found[0].revision, **options), config)
    with RunLock(store.path) as lock:
        if store.path.is_dir():
            lock.take()
            store.undo_unfinished()
        contents = store.read()
        _refuse_other_settings(store, contents.snapshots, replayed, config)
        hashes = {snapshot.step: snapshot.meta.probes_hash for snapshot in contents.snapshots}
        others = contents.strangers
        del contents  # edges and all
        if evaluator is not None:
            store.evaluations.refuse_other_settings(
                evaluator.task.hash, evaluator.config, except_steps=tuple(replayed)
            )
        for checkpoint in found:
            place: Any = (checkpoint.name, checkpoint.revision)
            tokenizer = load_tokenizer(*place, trust_remote_code=trust_remote_code)
            tokenized = probe_set.tokenize(tokenizer, max_suffix_tokens=config.max_suffix_tokens)
            _refuse_other_probes(store, hashes, tokenized.hash)
            hashes[checkpoint.step] = tokenized.hash
            is_measured = (
                not overwrite
                and checkpoint.step not in others
                and _is_done(store, checkpoint.step, config)
            )
            wants_answers = evaluator is not None and (
                overwrite or not _is_evaluated(store, checkpoint.step, evaluator)
            )
            if is_measured and not wants_answers:
                continue
            model = load_model(*place, **options)
            if evaluator is not None and wants_answers:
                evaluator.check(model, tokenizer)
            if not is_measured:
                taken = _measure(checkpoint, model, tokenizer, probe_set, config, progress=progress)
                _go_on(store, lock, probe_set)
                store.save(taken)
            if evaluator is not None and wants_answers:
                _go_on(store, lock, probe_set)
                if overwrite:
                    store.evaluations.part(checkpoint.step).unlink(missing_ok=True)
                evaluator.run(
                    model, tokenizer, store.evaluations, checkpoint.step, progress=progress
                )
            del model
        _go_on(store, lock, probe_set)
        _write_log(store, [checkpoint.log for checkpoint in found if checkpoint.log])
    return store


def _go_on(store: RunStore, lock: RunLock, probes: ProbeSet) -> None:
    """What comes before the first write: the lock, where there was no folder, and the run's id."""
    if not store.run_id:
        store.prepare()
        lock.take()
        contents = store.read()
        set_aside(map(store.file, contents.strangers))
        store.go_on(contents.run_id, probes.to_jsonl())


def _measure(
    checkpoint: Checkpoint,
    model: Any,
    tokenizer: Any,
    probes: ProbeSet,
    config: SnapshotConfig,
    *,
    progress: bool,
) -> Snapshot:
    tokenized = probes.tokenize_for(model.config, tokenizer, config)
    log = checkpoint.log
    return take_snapshot(
        model,
        tokenized,
        config,
        step=checkpoint.step,
        epoch=log.epoch if log else None,
        metrics=latest_metrics(log.rows) if log else None,
        source="replay",
        progress=progress,
    )


def resolve_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]], *, base: str | None = None
) -> list[Checkpoint]:
    """Checkpoints with their steps, in order of step; `base` is step 0.

    Raises:
        SparksError: nothing to measure, a step cannot be told, or two checkpoints have one step.
    """
    if isinstance(checkpoints, str | os.PathLike):
        raise SparksError(
            f"checkpoints must be a list, got {os.fspath(checkpoints)!r} alone: give [checkpoint]"
        )
    found = [] if base is None else [_checkpoint(f"0={base}")]
    for item in checkpoints:
        found += [_checkpoint(name) for name in _expand(os.fspath(item))]
    if not found:
        raise SparksError("no checkpoints: give folders, a trainer's output folder, or hub ids")
    found.sort(key=lambda checkpoint: checkpoint.step)
    for first, second in pairwise(found):
        if first.step == second.step:
            raise SparksError(
                f"{first.name} and {second.name} are both step {first.step}: give one of them, or "
                f"its step in front, as in 40={second.name}"
            )
    return found


def _expand(name: str) -> list[str]:
    """The checkpoints in a trainer's output folder, or the name itself."""
    folder = Path(name)
    if not folder.is_dir():
        return [name]
    inside = [str(path) for path in folder.iterdir() if path.is_dir() and _NAME.match(path.name)]
    return inside or [name]


def _checkpoint(given: str) -> Checkpoint:
    match = _GIVEN.match(given)
    name = match[2] if match else given
    folder = Path(name)
    log = TrainerLog.read(folder) if folder.is_dir() else None
    name, revision = split_revision(name)
    if match:
        step = int(match[1])
    elif log is not None:
        step = log.step
    elif named := _NAME.search(str(folder) if revision is None else revision):
        step = int(named[1])
    else:
        known = (
            "it has no trainer_state.json and is not named like checkpoint-40"
            if folder.exists()
            else "no such folder is here, and a hub id does not tell it"
        )
        raise SparksError(
            f"cannot tell the step of {given}: {known}; give the step in front, as in 40={given}"
        )
    return Checkpoint(step=step, name=name, revision=revision, log=log)


def _is_done(store: RunStore, step: int, config: SnapshotConfig) -> bool:
    if step not in store.steps():
        return False
    try:
        return store.load(step).meta.settings.difference(config) is None
    except SparksError:
        return False  # a damaged file is taken again


def _is_evaluated(store: RunStore, step: int, evaluator: CheckpointEvaluator) -> bool:
    try:
        found = store.evaluations.load(step)
    except SparksError:
        return False  # there is none, or a damaged one
    return not found.differs_from_settings(evaluator.task.hash, evaluator.config)


def _refuse_other_probes(store: RunStore, hashes: Mapping[int, str], probes_hash: str) -> None:
    for step, found in hashes.items():
        if found != probes_hash:
            raise SparksError(
                f"{store.path} holds snapshots of other probes (step {step}): give another output "
                f"folder"
            )


def _refuse_other_settings(
    store: RunStore, snapshots: Sequence[Snapshot], replayed: set[int], config: SnapshotConfig
) -> None:
    """Snapshots that stay must fit the new ones; those of `replayed` steps are taken again."""
    for snapshot in snapshots:
        if snapshot.step in replayed:
            continue
        if found := snapshot.meta.settings.difference(config):
            name, held, now = found
            raise SparksError(
                f"{store.path} holds a snapshot of step {snapshot.step} with {name}={held!r}, now "
                f"it is {now!r}: replay that step too, or give another output folder"
            )


def _write_log(store: RunStore, logs: Sequence[TrainerLog]) -> None:
    """Keep the longest log; one in the folder that reaches further, as a live run's does, stays."""
    if not logs:
        return
    longest = max(logs, key=lambda log: log.step)
    if all(row["step"] <= longest.step for row in store.read().metrics):
        store.write_metrics(longest.rows)
