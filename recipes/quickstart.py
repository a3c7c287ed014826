"""Supervised fine-tuning of SmolLM2-135M-Instruct on worked solutions, its heads watched.

    bash recipes/quickstart.sh                     # does everything, this script last
    python recipes/quickstart.py --max-steps 64 --save-steps 22

Needs what quickstart.sh prepares: the model (prepare_smollm2.py), the data
(build_reasoning_data.py) and probes (`sparks probes`). Full weights, float32, CPU or GPU; time and
memory: `bash recipes/quickstart.sh --help`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from sparks import SparksCallback
from sparks.models.loading import load_model, load_tokenizer


def main() -> None:
    """Train."""
    arguments = parse()
    trainer = SFTTrainer(
        model=load_model(str(arguments.model), device=None),
        args=SFTConfig(
            output_dir=str(arguments.output),
            max_steps=arguments.max_steps,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=1e-4,  # 2.5 times the paper's, for a model a tenth as large
            lr_scheduler_type="cosine",
            warmup_steps=2,
            bf16=False,
            activation_checkpointing=False,  # short sequences: memory is not what lacks
            max_length=384,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="steps",
            save_steps=arguments.save_steps,
            save_total_limit=1,
            save_only_model=not arguments.resumable,
            report_to=arguments.report_to,
            seed=0,
        ),
        train_dataset=load_dataset("json", data_files=str(arguments.data), split="train"),
        processing_class=load_tokenizer(str(arguments.model)),
        callbacks=[SparksCallback(probes=arguments.probes)],
    )
    trainer.train(resume_from_checkpoint=arguments.resume)


def parse() -> argparse.Namespace:
    """The command line; defaults are those of quickstart.sh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(".cache/smollm2-135m-instruct"))
    parser.add_argument("--data", type=Path, default=Path(".cache/reasoning/train.jsonl"))
    parser.add_argument("--probes", type=Path, default=Path(".cache/reasoning/probes-64-12.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--max-steps", type=int, default=64, help="optimizer steps (default: 64)")
    parser.add_argument("--save-steps", type=int, default=22, help="a snapshot each (default: 22)")
    parser.add_argument("--batch-size", type=int, default=2, help="sequences a step (default: 2)")
    parser.add_argument("--report-to", default="none", help="none, wandb, trackio ...")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--resumable", action="store_true", help="save optimizer state too (1.6 GB a checkpoint)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
