"""Run by test_processes.py in every process: trains several times, and tells what came out.

Arguments: a folder, how the training is spread (`one`, `ddp`, `fsdp2`, `zero2`, `zero3`), then
trainings as REGIME:KIND:HOW. Each leaves FOLDER/REGIME-KIND-HOW/found.json.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
torch.set_num_threads(1)

import cpu_sharding  # noqa: E402

SPREAD = sys.argv[2]
if SPREAD == "fsdp2":
    cpu_sharding.use_fsdp2()
elif SPREAD.startswith("zero"):
    cpu_sharding.use_deepspeed()

import torch.distributed as dist  # noqa: E402
from evaluations_made_here import LENGTHS, SAMPLED  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_trainers import lora, trainer_of  # noqa: E402
from tiny_training import PROBES, logged  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from sparks.attribution import take_snapshot as track  # noqa: E402
from sparks.probes.probes import ProbeSet  # noqa: E402
from sparks.training.callback import SparksCallback  # noqa: E402

KINDS: dict[str, Any] = {
    "full": dict,
    "lora": lambda: {"peft_config": lora()},
    "bf16": lambda: {"bf16": True},
    "one-probe": dict,
    "secant": dict,
    "resumed": dict,
    "evaluated": dict,
    "own": dict,
}


class Careless(TrainerCallback):
    """The control: draws one random number at each save, in process 1 alone."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1:
            torch.rand(1)


def watcher(kind: str, how: str) -> list[TrainerCallback]:
    if how == "alone":
        return []
    if how == "careless":
        return [Careless()]
    probes = {"one-probe": ProbeSet(PROBES.probes[:1]), "own": None}.get(kind, PROBES)
    on_error = "raise" if how == "raise" else "warn"
    method = "secant" if kind == "secant" else "eap-ig"
    evaluated = {"evaluate": LENGTHS, "evaluation": SAMPLED} if kind == "evaluated" else {}
    return [SparksCallback(
        probes, progress=False, on_error=on_error, method=method, points=3, threshold=0.0, top_n=60,
        num_probes=8, num_controls=2, **evaluated
    )]  # fmt: skip


def break_process_one() -> None:
    """Make the measurement of step 2 fail in process 1."""
    measure = track._measure

    def broken(*args: Any) -> Any:
        if args[4] == 2 and dist.get_rank() == 1:
            raise torch.OutOfMemoryError("no memory left")
        return measure(*args)

    track._measure = broken


def main() -> None:
    """Do the trainings, one after the other."""
    gc.freeze()  # each trainer would search all that is imported for garbage
    measure = track._measure
    for training in sys.argv[3:]:
        regime, kind, how = training.split(":")
        track._measure = measure
        if how in ("breaks", "raise"):
            break_process_one()
        folder = Path(sys.argv[1]) / f"{regime}-{kind}-{how}"
        cpu_sharding.forget_training()
        settings = dict(KINDS[kind]())
        if SPREAD.startswith("zero"):
            settings |= {"deepspeed": cpu_sharding.deepspeed_config(int(SPREAD[-1]))}
            settings |= {"use_cpu": False}
        watching = watcher(kind, how)
        trainer = trainer_of(regime, folder, *watching * (kind != "own"), **settings)
        if kind == "own" and watching:
            SparksCallback.attach(trainer, watching[0])
        # What an evaluation samples, and what probes are built from, is not the training's.
        sampled = [] if kind in ("evaluated", "own") else record_samples(trainer.model)
        error = None
        with warnings.catch_warnings(record=True) as told:
            try:
                trainer.train()
                if kind == "resumed":
                    trainer = trainer_of(regime, folder, *watcher(kind, how), **settings)
                    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
            except Exception as failure:
                if how != "raise":
                    raise
                error = str(failure)
        found = describe(trainer, sampled) | {"error": error}
        found["warnings"] = [str(item.message) for item in told if "sparks" in str(item.message)]
        everyone: list[Any] = [found]
        if dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, found)
        if trainer.is_world_process_zero():
            (folder / "found.json").write_text(json.dumps(everyone))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def record_samples(model: nn.Module) -> list[str]:
    """Hashes of all that the model generates from now on, in order."""
    sampled: list[str] = []
    generate = model.generate

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = generate(*args, **kwargs)
        sampled.append(digest([found]))
        return found

    model.generate = recorded
    return sampled


def describe(trainer: Any, sampled: list[str]) -> dict[str, Any]:
    """What must not change when the callback watches, of this process."""
    model = trainer.model
    named = {name: gathered(parameter) for name, parameter in sorted(model.named_parameters())}
    whole = list(named.values())
    if trainer.is_world_process_zero():
        save_file(named, Path(trainer.args.output_dir) / "weights.safetensors")
    moments = list(tensors_in(trainer.optimizer.state_dict()))
    return {
        "kind": str(trainer.accelerator.distributed_type),
        "sharded": sum(is_sharded(parameter) for parameter in model.parameters()),
        "parameters": len(whole),
        "weights": digest(whole),
        "optimizer": digest(moments),
        "moments": len(moments),
        "log": logged(trainer),
        "sampled": sampled,
        "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "flags": [
            [name, item.training, len(item._forward_hooks), len(item._forward_pre_hooks)]
            for name, item in model.named_modules()
        ] + [[name, item.requires_grad] for name, item in model.named_parameters()],
    }  # fmt: skip


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a state, in its own order; of a sharded one, what lies here."""
    if isinstance(value, torch.Tensor):
        yield value.to_local() if isinstance(value, DTensor) else value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def is_sharded(parameter: torch.Tensor) -> bool:
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel() < parameter.numel()
    return hasattr(parameter, "ds_id") and parameter.numel() == 0


def gathered(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.detach().full_tensor()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
