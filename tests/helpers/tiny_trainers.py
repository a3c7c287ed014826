"""Every kind of trainer on a tiny random Llama, and what a run leaves behind."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
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
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

with warnings.catch_warnings():
    # It says that it is experimental.
    warnings.filterwarnings("ignore", "You are importing from 'trl.experimental'")
    from trl.experimental.gkd import GKDConfig, GKDTrainer

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


def _ask(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number} + 1?"}]


def _answer(number: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"<think>\nI add.\n</think>\n{number + 1}"}]


def _rows(row: Callable[[int], dict[str, Any]]) -> Dataset:
    return Dataset.from_list([row(number) for number in range(24)])


PROMPTS = _rows(lambda n: {"prompt": _ask(n)})
MESSAGES = _rows(lambda n: {"messages": _ask(n) + _answer(n)})
PREFERENCES = _rows(
    lambda n: {"prompt": _ask(n), "chosen": _answer(n), "rejected": _answer(3 * n + 1)}
)
JUDGED = _rows(lambda n: {"prompt": _ask(n), "completion": _answer(n + n % 2), "label": n % 2 == 0})


def lora() -> LoraConfig:
    return LoraConfig(
        r=4, target_modules="all-linear", lora_dropout=0.1, init_lora_weights="gaussian"
    )


def even_ids(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Reward: the share of even tokens. It varies within a group, so gradients are not zero."""
    return [sum(1 - token % 2 for token in ids) / len(ids) for ids in completion_ids]


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a trainer is made: its classes, its data, what its configuration and itself need more."""

    trainer: type[Trainer]
    config: type[TrainingArguments]
    data: Dataset
    settings: dict[str, Any]
    teacher: str | None = None
    """Argument that takes a second model."""
    rewards: bool = False


_SAMPLED = {"max_completion_length": LENGTH}
_GROUP = {"num_generations": 4}
# Dropout makes every step depend on the random states.
_DROPOUT = {"disable_dropout": False}
_KTO = {"per_device_train_batch_size": 4, "loss_type": "apo_zero_unpaired"}
REGIMES: dict[str, Regime] = {
    "sft": Regime(
        trainer=SFTTrainer, config=SFTConfig, data=MESSAGES, settings={"max_length": 128}
    ),
    "grpo": Regime(
        trainer=GRPOTrainer,
        config=GRPOConfig,
        data=PROMPTS,
        settings=_SAMPLED | _GROUP,
        rewards=True,
    ),
    # Its default beta reads a reference model from a path.
    "rloo": Regime(
        trainer=RLOOTrainer,
        config=RLOOConfig,
        data=PROMPTS,
        settings=_SAMPLED | _GROUP | {"beta": 0.0},
        rewards=True,
    ),
    "distillation": Regime(
        trainer=DistillationTrainer,
        config=DistillationConfig,
        data=PROMPTS,
        settings=_SAMPLED,
        teacher="teacher_model",
    ),
    "gkd": Regime(
        trainer=GKDTrainer,
        config=GKDConfig,
        data=MESSAGES,
        # With this seed, three steps of four are on-policy.
        settings=_DROPOUT | {"max_new_tokens": LENGTH, "max_length": 128, "seed": 7},
        teacher="teacher_model",
    ),
    "dpo": Regime(
        trainer=DPOTrainer,
        config=DPOConfig,
        data=PREFERENCES,
        settings=_DROPOUT,
        teacher="ref_model",
    ),
    "kto": Regime(
        trainer=KTOTrainer,
        config=KTOConfig,
        data=JUDGED,
        settings=_DROPOUT | _KTO,
        teacher="ref_model",
    ),
}
"""Trainers of TRL; `plain` is the Trainer of transformers."""


def trainer_of(
    regime: str,
    output_dir: Path,
    *callbacks: TrainerCallback,
    peft_config: LoraConfig | None = None,
    evaluated: bool = False,
    **settings: Any,
) -> Trainer:
    """A trainer of `regime`; `settings` change its configuration.

    Args:
        regime: one of `REGIMES`, or `plain`.
        output_dir: where it writes.
        callbacks: in this order.
        peft_config: adapters, not for `plain`.
        evaluated: give it some of its rows for evaluation.
        settings: of its configuration.
    """
    options = {"output_dir": str(output_dir)} | SETTINGS
    tokenizer = byte_level_tokenizer(chat=CHAT)
    common: dict[str, Any] = {
        "model": llama(len(tokenizer), seed=0),
        "processing_class": tokenizer,
        "callbacks": list(callbacks),
    }
    if regime == "plain":
        args = TrainingArguments(**options | settings)
        return Trainer(**common, args=args, train_dataset=_texts(tokenizer))
    kind = REGIMES[regime]
    if kind.teacher:
        # A reference is the model itself; a teacher is another one.
        seed = 1 if kind.teacher == "teacher_model" else 0
        common[kind.teacher] = llama(len(tokenizer), seed=seed)
    if kind.rewards:
        common["reward_funcs"] = even_ids
    return kind.trainer(
        **common,
        args=kind.config(**options | kind.settings | settings),
        train_dataset=kind.data,
        eval_dataset=kind.data.select(range(4)) if evaluated else None,
        peft_config=peft_config,
    )


def llama(vocab_size: int, *, seed: int) -> nn.Module:
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
        sampled.append(getattr(found, "sequences", found).tolist())
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
