"""Supervised fine-tuning on worked solutions, its attention heads watched.

    # one process on a CPU (make the model first: python recipes/tiny_base.py)
    accelerate launch --config_file recipes/accelerate/cpu.yaml \
        recipes/sft.py --config recipes/configs/sft-tiny.yaml

    # one GPU; several: gpus.yaml, fsdp2.yaml, zero2.yaml, zero3.yaml
    accelerate launch --config_file recipes/accelerate/gpu.yaml \
        recipes/sft.py --config recipes/configs/sft-qwen2.5-math-1.5b.yaml

Each YAML opens with its command, hardware, time and memory. Everything in it can be overridden
behind it, such as `--learning_rate 1e-5 --max_steps 100 --use_peft --sparks_points 20`; `--help`
lists all. Stopped? The same command with `--resume_from_checkpoint true` goes on.
"""

from __future__ import annotations

from common.data import load_rows
from common.settings import RecipeArguments, RecipeParser, run
from common.steps import load_models, train, watch
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from sparks import SparksArguments

KINDS = (RecipeArguments, SFTConfig, ModelConfig, SparksArguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the settings, build probes if there are none, train."""
    recipe, training, model_config, sparks = RecipeParser(KINDS).read(arguments)
    rows = load_rows(recipe, "prompt", "completion")
    model, tokenizer = load_models(training, model_config)
    trainer = SFTTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
        callbacks=[watch(recipe, training, model_config, sparks)],
    )
    train(trainer)


if __name__ == "__main__":
    run(main)
