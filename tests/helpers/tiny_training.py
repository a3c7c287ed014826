"""A real SFTTrainer on a tiny random model: seconds a run, reproducible to the bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from models import tiny_model
from tokenizers_made_here import CHAT, byte_level_tokenizer
from torch import nn
from trl import SFTConfig, SFTTrainer

from sparks.probes.probes import ProbeSet

PROBES = ProbeSet.from_records(
    {
        "prompt": [{"role": "user", "content": f"What is {n} + {n}?"}],
        "clean": f"<think>\nI add {n} and {n}.",
        "corrupted": f"The answer is {2 * n}, and that is all.",
        "group": "sums",
    }
    for n in range(3)
)


def tiny_trainer(
    output_dir: Path,
    *,
    callbacks: list[Any] | None = None,
    kind: str = "llama-gqa",
    model: nn.Module | None = None,
    dropout: float = 0.1,
    **settings: Any,
) -> SFTTrainer:
    """A trainer over chats; `settings` change its SFTConfig."""
    tokenizer = byte_level_tokenizer(chat=CHAT)
    torch.manual_seed(3)
    if model is None:
        model = tiny_model(
            kind,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            attention_dropout=dropout,
        )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} + 1?"}],
            "completion": [{"role": "assistant", "content": f"<think>\nI add.\n</think>\n{n + 1}"}],
        }
        for n in range(24)
    ]
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "bf16": False,
        "max_length": 128,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 5,
    }
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(output_dir), **defaults | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def weights_hash(model: nn.Module) -> str:
    """sha256 over every parameter and buffer, to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


WALL_CLOCK = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
    "step_time",
}


def logged(trainer: SFTTrainer) -> list[dict[str, Any]]:
    """The trainer's log without what a clock decides."""
    return [
        {key: value for key, value in row.items() if key not in WALL_CLOCK}
        for row in trainer.state.log_history
    ]


def optimizer_hash(trainer: SFTTrainer) -> str:
    """sha256 over the optimizer's state tensors."""
    digest = hashlib.sha256()
    state = trainer.optimizer.state_dict()["state"]
    for key in sorted(state):
        for name, value in sorted(state[key].items()):
            digest.update(f"{key} {name}".encode())
            tensor = torch.as_tensor(value).contiguous()
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
