"""Distillation of a larger teacher into a smaller student, its attention heads watched.

    # one process on a CPU; models: python recipes/tiny_base.py, and the teacher (see the YAML)
    accelerate launch --config_file recipes/accelerate/cpu.yaml \
        recipes/distill.py --config recipes/configs/distill-tiny.yaml

    # several GPUs; one: gpu.yaml
    accelerate launch --config_file recipes/accelerate/gpus.yaml \
        recipes/distill.py --config recipes/configs/distill-qwen2.5-math-1.5b.yaml

Two modes, both with one YAML:

    on_policy    the student answers, the teacher's whole next-token distribution corrects it
                 (DistillationTrainer; both have one vocabulary)
    off_policy   the teacher answers the training prompts once, wrong answers are left out, the
                 student learns the rest (SFTTrainer); `--mode off_policy`. The answers are kept in
                 `--traces` and reused; a stopped run goes on with them.

Each YAML opens with its command, hardware, time and memory. Everything in it can be overridden
behind it, such as `--teacher_model_name_or_path FOLDER --learning_rate 1e-5`; `--help` lists all.
Stopped? The same command with `--resume_from_checkpoint true` goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from common.data import load_rows, system_prompt
from common.settings import RecipeArguments, RecipeParser, run
from common.steps import (
    load_causal_model,
    load_models,
    load_own_tokenizer,
    train,
    wait_for,
    watch,
    whole_models,
)
from common.traces import read_traces, write_traces
from datasets import Dataset
from transformers import TrainingArguments
from trl import (
    DistillationConfig,
    DistillationTrainer,
    ModelConfig,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
)

from sparks import SparksArguments, SparksError

MODES = ("on_policy", "off_policy")


@dataclass
class DistillationArguments:
    """How the teacher teaches."""

    mode: str = field(default="on_policy", metadata={"help": " or ".join(MODES)})
    traces: str | None = field(
        default=None,
        metadata={"help": "off-policy: file of the teacher's answers (OUTPUT_DIR/traces.jsonl)"},
    )
    trace_batch_size: int = field(
        default=16, metadata={"help": "off-policy: prompts that the teacher answers at a time"}
    )


KINDS = (RecipeArguments, DistillationArguments, DistillationConfig, ModelConfig, SparksArguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the settings, build probes if there are none, train."""
    recipe, how, training, model_config, sparks = RecipeParser(KINDS).read(arguments)
    if how.mode not in MODES:
        raise SparksError(f"mode must be {' or '.join(MODES)}, got {how.mode!r}")
    if training.teacher_model_name_or_path is None:
        raise SparksError("no teacher: give a folder or hub id with --teacher_model_name_or_path")
    rows = load_rows(recipe, "prompt", *(["solution"] if how.mode == "off_policy" else []))
    model, tokenizer = load_models(training, model_config)
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "peft_config": get_peft_config(model_config),
    }
    if how.mode == "on_policy":
        teacher = load_causal_model(training.teacher_model_name_or_path, training, model_config)
        check_vocabulary(model, teacher, training.teacher_model_name_or_path)
        callbacks = [watch(recipe, training, model_config, sparks)]
        trainer = DistillationTrainer(
            **common, args=training, teacher_model=teacher, train_dataset=rows, callbacks=callbacks
        )
    else:
        traces = teacher_traces(recipe, how, training, model_config, rows)
        callbacks = [watch(recipe, training, model_config, sparks)]
        trainer = SFTTrainer(
            **common, args=sft_settings(training), train_dataset=traces, callbacks=callbacks
        )
    train(trainer)


def check_vocabulary(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher whose next-token distribution is over other tokens.

    Raises:
        SparksError: the sizes differ.
    """
    ours, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    if ours != theirs:
        raise SparksError(
            f"the teacher {name} has {theirs} tokens, the student {ours}: take a teacher with the "
            f"same vocabulary, or --mode off_policy, which needs only its text"
        )


def teacher_traces(
    recipe: RecipeArguments,
    how: DistillationArguments,
    training: DistillationConfig,
    model_config: ModelConfig,
    rows: Dataset,
) -> Dataset:
    """The teacher's right answers; the first process writes them, where they are not there yet."""
    name = training.teacher_model_name_or_path
    path = Path(how.traces or Path(training.output_dir) / "traces.jsonl")
    header = {
        "teacher": name,
        "data": [recipe.dataset_name, recipe.dataset_config, recipe.dataset_train_split],
        "system_prompt": system_prompt(recipe),
        "rows": len(rows),
        "max_new_tokens": training.max_completion_length,
        "temperature": training.temperature,
        "top_p": training.top_p,
        "seed": training.seed,
    }
    if not path.is_file():
        if training.process_index == 0:
            tokenizer = load_own_tokenizer(name, training, model_config)
            with whole_models(training):
                teacher = load_causal_model(name, training, model_config).to(training.device).eval()
            with torch.random.fork_rng():
                write_traces(
                    path, header, rows, teacher, tokenizer, batch_size=how.trace_batch_size
                )
        else:
            wait_for(path)
    found = read_traces(path, header)
    if training.process_index == 0:
        print(f"{len(found)} of the teacher's {len(rows)} answers are right: {path}", flush=True)
    return found


def sft_settings(training: DistillationConfig) -> SFTConfig:
    """The settings that every trainer has, for SFTTrainer; traces are not cut."""
    shared = {
        item.name: getattr(training, item.name) for item in fields(TrainingArguments) if item.init
    }
    return SFTConfig(**shared, max_length=None)


if __name__ == "__main__":
    run(main)
