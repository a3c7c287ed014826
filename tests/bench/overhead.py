"""What snapshots cost a training: their share of its time, for SFT and GRPO.

A real SFTTrainer and a real GRPOTrainer train with `SparksCallback` for `--train-steps`, with a
snapshot every `--interval`. Steps and snapshots are timed in the same run; the first step warms up.
The last line is JSON: a list, an entry a regime.

    python tests/bench/overhead.py --model .cache/smollm2-135m-instruct
    python tests/bench/overhead.py --shape qwen2.5-1.5b --dtype bfloat16 --device cuda --length 2048

`share_at_100` = snapshot / (snapshot + 100 steps), medians; `share_at_10` likewise.
`share_measured` is what the snapshots of this run took of its time, the first one aside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from attribution import SHAPES, load
from datasets import Dataset
from transformers import AutoTokenizer, Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from tokenizers_made_here import CHAT, byte_level_tokenizer


def main() -> None:
    arguments = parse()
    print(json.dumps([measure(regime, arguments) for regime in arguments.regimes]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="folder of a checkpoint; without it, random weights of --shape"
    )
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--regimes", nargs="+", choices=["sft", "grpo"], default=["sft", "grpo"])
    parser.add_argument("--train-steps", type=int, default=10)
    parser.add_argument("--interval", type=int, default=5, help="steps between two snapshots")
    parser.add_argument("--batch", type=int, default=8, help="sequences, or completions, a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence in SFT")
    parser.add_argument("--completion", type=int, default=128, help="tokens sampled in GRPO")
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--points", type=int, default=32, help="points m on the path")
    return parser.parse_args()


def measure(regime: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once; medians of steps and snapshots."""
    torch.manual_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        watcher = SparksCallback(
            probes(arguments.probes),
            every_n_steps=arguments.interval,
            points=arguments.points,
            report=False,
            progress=False,
        )
        trainer = TRAINERS[regime](folder, arguments, [clock, watcher])
        trainer.train()
        base, *later = RunStore.find(folder).read().snapshots
    step = statistics.median(clock.seconds[1:])
    snapshot = statistics.median(one.meta.seconds for one in later)
    spent = sum(one.meta.seconds for one in later)
    return {
        "benchmark": "overhead",
        "regime": regime,
        "model": arguments.model or arguments.shape,
        "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "tokens_a_step": arguments.batch
        * (arguments.length if regime == "sft" else arguments.completion),
        "probes": arguments.probes,
        "points": arguments.points,
        "step_seconds": round(step, 3),
        "first_snapshot_seconds": round(base.meta.seconds, 3),
        "snapshot_seconds": round(snapshot, 3),
        "snapshot_in_steps": round(snapshot / step, 2),
        "share_at_100": round(snapshot / (snapshot + 100 * step), 4),
        "share_at_10": round(snapshot / (snapshot + 10 * step), 4),
        "interval": arguments.interval,
        "share_measured": round(spent / (spent + sum(clock.seconds)), 4),
    }


class Clock(TrainerCallback):
    """Seconds of every optimizer step, sampling included, snapshots not: it comes before them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self._start)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# -- trainers --------------------------------------------------------------------------------------


def sft(folder: str, arguments: argparse.Namespace, callbacks: list[TrainerCallback]) -> Trainer:
    model = load(arguments)
    ids = torch.randint(3, 200, (arguments.batch * arguments.train_steps, arguments.length))
    return SFTTrainer(
        model=model,
        args=SFTConfig(**common(folder, arguments), max_length=arguments.length),
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        processing_class=tokenizer(arguments),
        callbacks=callbacks,
    )


def grpo(folder: str, arguments: argparse.Namespace, callbacks: list[TrainerCallback]) -> Trainer:
    model = load(arguments)
    rows = [{"prompt": message(n)} for n in range(arguments.batch * arguments.train_steps)]
    return GRPOTrainer(
        model=model,
        reward_funcs=even_ids,
        args=GRPOConfig(
            **common(folder, arguments),
            num_generations=arguments.generations,
            max_completion_length=arguments.completion,
            generation_kwargs={"min_new_tokens": arguments.completion},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(arguments),
        callbacks=callbacks,
    )


TRAINERS = {"sft": sft, "grpo": grpo}


def common(folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": arguments.train_steps,
        "per_device_train_batch_size": arguments.batch,
        "save_strategy": "no",
        "logging_steps": 1,
        "bf16": False,  # the weights are of the type wanted
        "gradient_checkpointing": False,
        "use_cpu": arguments.device == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
    }


def tokenizer(arguments: argparse.Namespace) -> Any:
    if arguments.model:
        return AutoTokenizer.from_pretrained(arguments.model)
    return byte_level_tokenizer(chat=CHAT)


def even_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(1 - token % 2 for token in ids) / len(ids) for ids in completion_ids]


def message(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number} + {7 * number}? Think step by step."}]


def probes(count: int) -> ProbeSet:
    return ProbeSet.from_records(
        {
            "prompt": message(number),
            "clean": f"<think>\nOkay, I need to add {number} and {7 * number}. I write both down.",
            "corrupted": f"The sum of {number} and {7 * number} is easy to see, namely this one.",
        }
        for number in range(count)
    )


if __name__ == "__main__":
    main()
