"""GRPO with two rewards, the right answer and the paper's form, its attention heads watched.

    # one process on a CPU (make the model first: python recipes/tiny_base.py)
    accelerate launch --config_file recipes/accelerate/cpu.yaml \
        recipes/grpo.py --config recipes/configs/grpo-tiny.yaml

    # several GPUs; one: gpu.yaml
    accelerate launch --config_file recipes/accelerate/gpus.yaml \
        recipes/grpo.py --config recipes/configs/grpo-qwen2.5-math-1.5b.yaml

Each YAML opens with its command, hardware, time and memory. Everything in it can be overridden
behind it, such as `--learning_rate 2e-5 --num_generations 8 --use_vllm true`; `--help` lists all.
Stopped? The same command with `--resume_from_checkpoint true` goes on.

The rewards (`common/rewards.py`) have the weights of `reward_weights`, 1 and 1 where not given; the
trainer logs each as `rewards/accuracy_reward/mean` and `rewards/format_reward/mean`.
"""

from __future__ import annotations

from common.data import load_rows
from common.rewards import accuracy_reward, format_reward
from common.settings import RecipeArguments, RecipeParser, run
from common.steps import load_models, train, watch
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from sparks import SparksArguments

KINDS = (RecipeArguments, GRPOConfig, ModelConfig, SparksArguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the settings, build probes if there are none, train."""
    recipe, training, model_config, sparks = RecipeParser(KINDS).read(arguments)
    rows = load_rows(recipe, "prompt", "solution")
    model, tokenizer = load_models(training, model_config)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[accuracy_reward, format_reward],
        args=training,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
        callbacks=[watch(recipe, training, model_config, sparks)],
    )
    train(trainer)


if __name__ == "__main__":
    run(main)
