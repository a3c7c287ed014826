"""Snapshots of a run that had no callback, from its checkpoints: folders or hub revisions.

The same `take_snapshot` as the callback's, on the same weights: the scores are equal. The step of a
checkpoint is read from its `trainer_state.json`, else from its name (`checkpoint-40`), or given in
front (`40=PATH`). An adapter folder is loaded on its base model. A step that the run folder already
holds, for the same probes and settings, is not taken again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sparks.config import SnapshotConfig
from sparks.errors import SparksError
from sparks.probes import ProbeSet
from sparks.store import RunStore
from sparks.track import take_snapshot
from sparks.trainer_log import TrainerLog, latest_metrics

Autocast = Literal["no", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
    device: str = "auto",
    autocast: Autocast = "no",
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
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        autocast: run the model as a trainer with `bf16=True` or `fp16=True` does.
        overwrite: take steps again that the run folder holds.
        progress: show a bar for each snapshot.

    Returns:
        The run folder's store.

    Raises:
        SparksError: a checkpoint has no step or cannot be loaded, two have one step, the folder holds
            snapshots of other probes, or as `take_snapshot` does.
    """
    config = config or SnapshotConfig()
    probe_set = probes if isinstance(probes, ProbeSet) else ProbeSet.load(probes)
    found = resolve_checkpoints(checkpoints, base=base)
    store = RunStore(output_dir)
    store.prepare()
    for checkpoint in found:
        if not overwrite and _is_done(store, checkpoint.step, config):
            continue
        model, tokenizer = _load(checkpoint, device, autocast)
        tokenized = probe_set.tokenize(
            tokenizer,
            max_suffix_tokens=config.max_suffix_tokens,
            max_context=getattr(model.config, "max_position_embeddings", None),
        )
        _refuse_other_probes(store, tokenized.hash)
        log = checkpoint.log
        snapshot = take_snapshot(
            model,
            tokenized,
            config,
            step=checkpoint.step,
            epoch=log.epoch if log else None,
            metrics=latest_metrics(log.rows) if log else None,
            source="replay",
            progress=progress,
        )
        store.save(snapshot)
        del model
    logs = [checkpoint.log for checkpoint in found if checkpoint.log]
    if logs:
        store.write_metrics(max(logs, key=lambda log: log.step).rows)
    store.write_probes(probe_set.to_jsonl())
    return store


def resolve_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]], *, base: str | None = None
) -> list[Checkpoint]:
    """Checkpoints with their steps, in order of step; `base` is step 0.

    Raises:
        SparksError: nothing to measure, a step cannot be told, or two checkpoints have one step.
    """
    found = [] if base is None else [_checkpoint(f"0={base}")]
    for item in checkpoints:
        found += [_checkpoint(name) for name in _expand(os.fspath(item))]
    if not found:
        raise SparksError("no checkpoints: give folders, a trainer's output folder, or hub ids")
    found.sort(key=lambda checkpoint: checkpoint.step)
    for first, second in zip(found, found[1:], strict=False):
        if first.step == second.step:
            raise SparksError(
                f"{first.name} and {second.name} are both step {first.step}: give one of them, or "
                f"its step in front, as in 40={second.name}"
            )
    return found


def _expand(name: str) -> list[str]:
    """The checkpoints in a trainer's output folder, or the name itself."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").exists() and _NAME.search(folder.name):
        return [name]
    inside = [str(path) for path in folder.iterdir() if path.is_dir() and _NAME.match(path.name)]
    return inside or [name]


def _checkpoint(given: str) -> Checkpoint:
    match = _GIVEN.match(given)
    name = match[2] if match else given
    folder = Path(name)
    log = TrainerLog.read(folder) if folder.is_dir() else None
    revision = None
    if not folder.exists() and "@" in name:
        name, _, revision = name.rpartition("@")
    if match:
        step = int(match[1])
    elif log is not None:
        step = log.step
    elif named := _NAME.search(str(folder) if revision is None else revision):
        step = int(named[1])
    else:
        raise SparksError(
            f"cannot tell the step of {given}: it has no trainer_state.json and is not named like "
            f"checkpoint-40; give the step in front, as in 40={given}"
        )
    return Checkpoint(step=step, name=name, revision=revision, log=log)


def _is_done(store: RunStore, step: int, config: SnapshotConfig) -> bool:
    if step not in store.steps():
        return False
    try:
        meta = store.load(step).meta
    except SparksError:
        return False  # a damaged file is taken again
    return SnapshotConfig.from_dict(meta.config).measurement() == config.measurement()


def _refuse_other_probes(store: RunStore, probes_hash: str) -> None:
    for snapshot in store.read().snapshots:
        if snapshot.meta.probes_hash != probes_hash:
            raise SparksError(
                f"{store.path} holds snapshots of other probes (step {snapshot.step}): give another "
                f"folder with --output"
            )


# -- loading ---------------------------------------------------------------------------------------


def _load(checkpoint: Checkpoint, device: str, autocast: Autocast) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name, revision = checkpoint.name, checkpoint.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        # transformers loads an adapter folder too, but hides the adapter: peft wraps it in the open.
        if (Path(name) / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(name, dtype="auto")
        else:
            model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype="auto")
        model = model.to(device)
    except Exception as error:  # files, the hub and devices fail in many classes
        reason = " ".join(str(error).split())[:300]
        raise SparksError(
            f"cannot load checkpoint {name}{'@' + revision if revision else ''} "
            f"({type(error).__name__}: {reason}): give a folder with a model and its tokenizer, or a "
            f"hub id that can be reached"
        ) from error
    if autocast != "no":
        _run_under_autocast(model, torch.device(device), _AUTOCAST[autocast])
    return model, tokenizer


def _run_under_autocast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Wrap `forward` as accelerate does in mixed precision: float32 weights, narrow blocks."""
    from accelerate.utils import convert_outputs_to_fp32

    forward = torch.autocast(device_type=device.type, dtype=dtype)(model.forward)
    model.forward = convert_outputs_to_fp32(forward)  # type: ignore[method-assign]
