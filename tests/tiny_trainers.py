"""GRPO, distillation and the plain Trainer on a tiny random Llama, and what a run leaves behind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from models import tiny_model
from peft import LoraConfig
from tiny_training import logged, optimizer_hash, weights_hash
from tokenizers_made_here import CHAT, byte_level_tokenizer
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 5,
}
LENGTH = 8
"""Sampled tokens of a completion."""

PROMPTS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": f"What is {n} + 1?"}]} for n in range(24)]
)


def lora() -> LoraConfig:
    return LoraConfig(
        r=4, target_modules="all-linear", lora_dropout=0.1, init_lora_weights="gaussian"
    )


def even_ids(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Reward: the share of even tokens. It varies within a group, so gradients are not zero."""
    return [sum(1 - token % 2 for token in ids) / len(ids) for ids in completion_ids]


def trainer_of(
    regime: str,
    output_dir: Path,
    *callbacks: TrainerCallback,
    peft_config: LoraConfig | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer of `regime` (grpo, distillation, plain); `settings` change its configuration."""
    options = {"output_dir": str(output_dir)} | SETTINGS | settings
    tokenizer = byte_level_tokenizer(chat=CHAT)
    common: dict[str, Any] = {
        "model": _llama(len(tokenizer), seed=0),
        "processing_class": tokenizer,
        "callbacks": list(callbacks),
    }
    if regime == "plain":
        args = TrainingArguments(**options)
        return Trainer(**common, args=args, train_dataset=_texts(tokenizer))
    common |= {"train_dataset": PROMPTS, "peft_config": peft_config}
    options["max_completion_length"] = LENGTH
    if regime == "grpo":
        args = GRPOConfig(**options, num_generations=4)
        return GRPOTrainer(**common, args=args, reward_funcs=even_ids)
    teacher = _llama(len(tokenizer), seed=1)
    return DistillationTrainer(**common, args=DistillationConfig(**options), teacher_model=teacher)


def _llama(vocab_size: int, *, seed: int) -> nn.Module:
    return tiny_model(
        "llama-gqa",
        seed=seed,
        vocab_size=vocab_size,
        max_position_embeddings=256,
        attention_dropout=0.1,
    )


def _texts(tokenizer: Any) -> Dataset:
    """Texts of one length, as the plain Trainer's default collator wants them."""
    rows = [tokenizer(f"The sum of {n} and 5 is {n + 5}.")["input_ids"][:10] for n in range(24)]
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What must not change to the bit when the callback watches."""

    weights: str
    optimizer: str
    log: list[dict[str, Any]]
    """Without what a clock decides."""
    sampled: list[list[list[int]]]
    """Prompt and completion ids of every generation, in order; empty for the plain Trainer."""
    checkpoint: dict[str, bytes]
    """Files of the last checkpoint: random states, schedule, tokenizer."""
    random: tuple[Any, ...]
    """States of Python's, numpy's and torch's generators after the last step."""
    flags: list[tuple[Any, ...]]
    """Mode and number of hooks of every module; what is trained, and whether it has a gradient."""


def train(trainer: Trainer, *, resume: Path | None = None) -> Outcome:
    """Train, and gather what came out."""
    sampled: list[list[list[int]]] = []
    generate = trainer.model.generate

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = generate(*args, **kwargs)
        sampled.append(found.tolist())
        return found

    trainer.model.generate = recorded
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    numpy_state = np.random.get_state(legacy=False)["state"]
    last = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    files = ("rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json")
    return Outcome(
        weights=weights_hash(trainer.model),
        optimizer=optimizer_hash(trainer),
        log=logged(trainer),
        sampled=sampled,
        checkpoint={name: (last / name).read_bytes() for name in files},
        random=(
            random.getstate(),
            (numpy_state["key"].tolist(), numpy_state["pos"]),
            torch.get_rng_state().tolist(),
        ),
        flags=_flags(trainer.model),
    )


def _flags(model: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (name, item.training, len(item._forward_hooks), len(item._forward_pre_hooks))
        for name, item in model.named_modules()
    ] + [(name, item.requires_grad, item.grad is None) for name, item in model.named_parameters()]
