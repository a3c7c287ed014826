"""The callback in a supervised fine-tuning script: snapshots, then the report, with one more line.

    python examples/probes_by_hand.py                      # writes probes.jsonl
    python examples/sft_with_sparks.py
    python examples/sft_with_sparks.py --model path/to/model --max-steps 4 --save-steps 2

Trains on sums worked out step by step, made here. Afterwards: sparks timeline OUTPUT.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sparks import SparksCallback


def worked_sums(count: int) -> Dataset:
    """Questions with step-by-step answers, in TRL's prompt-completion form."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        a, b = rng.randrange(10, 90), rng.randrange(10, 90)
        tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
        answer = f"Let me think step by step. Tens: {tens}. Ones: {ones}. The sum is {a + b}."
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"What is {a} + {b}?"}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
    return Dataset.from_list(rows)


def main() -> None:
    """Train, with the heads watched."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--probes", type=Path, default=Path("probes.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("runs/sft"))
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--save-steps", type=int, default=10, help="a snapshot each")
    parser.add_argument("--points", type=int, default=100, help="points m on the path")
    arguments = parser.parse_args()

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype="float32", trust_remote_code=False
        ),
        processing_class=AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False),
        train_dataset=worked_sums(1000),
        args=SFTConfig(
            output_dir=str(arguments.output),
            max_steps=arguments.max_steps,
            save_steps=arguments.save_steps,
            logging_steps=1,
            learning_rate=4e-5,
            per_device_train_batch_size=4,
            max_length=256,
            bf16=False,
            report_to="none",
        ),
        # The one line that is added:
        callbacks=[SparksCallback(probes=arguments.probes, points=arguments.points)],
    )
    trainer.train()
    print(f"open {arguments.output / 'sparks' / 'report.html'}")


if __name__ == "__main__":
    main()
