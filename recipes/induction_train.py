"""A small Llama learns one known behaviour, its heads watched: copying by induction. CPU, no hub.

    python recipes/induction_train.py         # a minute on one CPU core, 0.7 GB
    python recipes/induction_train.py --size small --output runs/small    # a third of that

Trained from nothing to go on with a block of words that came before, `.. A B .. A` -> `B`, with
`SparksCallback` in a plain `Trainer`. Once the loss is low, a penalty on the norm of each head's
output matrix presses heads to nothing that are not needed: without it all heads of a layer learn
the same. Writes into the output folder:

    model/           the model and its tokenizer; words are numbers
    sparks/          snapshots and the report
    probes.jsonl     clean `.. A x .. C y .. A`, corrupted `.. C x .. A y .. A`: x follows, or y
    task.jsonl       beginnings and the word to copy, for `sparks evaluate`

`induction_effects.py` goes on from there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sparks import ProbeSet, SparksCallback
from sparks.ground.files import write_atomically

IGNORED = -100
SPECIAL = ("<pad>", "<s>")
FIRST_NUMBER = 10
"""Words are the numbers from here on: answers that any checker can read."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the model, its data and its training."""

    layers: int = 2
    heads: int = 12
    d_model: int = 72
    words: int = 64
    length: int = 40
    """Words of a sequence."""
    steps: int = 800
    snapshot_every: int = 100
    batch_size: int = 32
    penalty: float = 0.01
    """On the sum of the heads' norms, where the loss is 0; none where it is above 1."""
    probes: int = 48


SIZES = {
    "full": Size(),
    "small": Size(
        heads=8, d_model=48, words=48, length=32, steps=450, snapshot_every=150, penalty=0.02,
        probes=16,
    ),
}  # fmt: skip
LEARNING_RATE = 3e-3
HEAD_DIM = 16


# -- data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """Some words, a block of words, and the block again; before that no word comes twice.

    The block's length is drawn, so that copying by place does not work.
    """

    ids: Tensor
    """[rows, 1 + length], `<s>` first."""
    labels: Tensor
    """The repeated block from its second word on; the rest is IGNORED."""
    block: Tensor
    """[rows], words of a block."""

    @classmethod
    def draw(cls, size: Size, count: int, seed: int) -> Sequences:
        """`count` rows; the same for the same seed."""
        source = torch.Generator().manual_seed(seed)
        block = torch.randint(size.length // 3, size.length // 2 + 1, (count,), generator=source)
        order = torch.rand(count, size.words, generator=source).argsort(-1) + len(SPECIAL)
        place, second = torch.arange(size.length), (size.length - block)[:, None]
        words = order.gather(1, torch.where(place < second, place, place - block[:, None]))
        labels = torch.where(place > second, words, IGNORED)
        start = torch.full((count, 1), SPECIAL.index("<s>"))
        ignored = torch.full((count, 1), IGNORED)
        return cls(torch.cat([start, words], 1), torch.cat([ignored, labels], 1), block)

    def queries(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(row, place, place of the word to copy)` of each word that is to be predicted."""
        row, target = torch.where(self.labels != IGNORED)
        return row, target - 1, target - self.block[row]


def right_share(logits: Tensor, labels: Tensor) -> Tensor:
    """[rows]: share of a row's labels that are the likeliest word."""
    wanted = labels[:, 1:]
    right = (logits.detach()[:, :-1].argmax(-1) == wanted).float()
    return right.masked_fill(wanted == IGNORED, torch.nan).nanmean(1)


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """A word is a number, with blanks between them; a chat is its contents alone."""
    words = [str(FIRST_NUMBER + index) for index in range(size.words)]
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", model_max_length=64
    )
    tokenizer.chat_template = "<s> {% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def make_probes(size: Size, tokenizer: Any, seed: int) -> ProbeSet:
    """A and C change places: same words, both can be completed, what stood behind A differs."""
    drawn = Sequences.draw(size, size.probes, seed)
    rng = np.random.default_rng(seed)
    records = []
    for ids, block in zip(drawn.ids.tolist(), drawn.block.tolist(), strict=True):
        first, second = 1 + size.length - 2 * block, 1 + size.length - block
        place = int(rng.integers(1, block - 3))
        a, c = first + place, first + int(rng.integers(place + 2, block - 1))
        swapped = list(ids)
        swapped[a], swapped[c] = ids[c], ids[a]
        end = second + place  # the second A; what follows it is asked for
        parts = (ids[1:a], ids[a : end + 1], [*swapped[a:second], *ids[second : end + 1]])
        texts = [" ".join(tokenizer.convert_ids_to_tokens(part)) for part in parts]
        records.append({"prompt": texts[0], "clean": f" {texts[1]}", "corrupted": f" {texts[2]}"})
    return ProbeSet.from_records(records)


def task_text(size: Size, tokenizer: Any, seed: int, count: int = 64) -> str:
    """JSON lines: all of a sequence but its last word, which is the answer."""
    rows = []
    for number, ids in enumerate(Sequences.draw(size, count, seed).ids.tolist(), start=1):
        *words, last = tokenizer.convert_ids_to_tokens(ids[1:])
        rows.append({"id": f"copy-{number}", "problem": " ".join(words), "answer": last})
    return "".join(json.dumps(row) + "\n" for row in rows)


# -- training --------------------------------------------------------------------------------------


def make_model(size: Size, seed: int) -> LlamaForCausalLM:
    """Random weights. Its rotary angles are for short contexts: neighbours are told apart."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.words + len(SPECIAL),
            hidden_size=size.d_model,
            intermediate_size=2 * size.d_model,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            head_dim=HEAD_DIM,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 20.0},
            tie_word_embeddings=False,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=None,
            pad_token_id=SPECIAL.index("<pad>"),
        )
    )


def head_norms(model: Any) -> Tensor:
    """[layers, heads]: Frobenius norm of each head's part of `o_proj`."""
    heads = model.config.num_attention_heads
    squares = [
        layer.self_attn.o_proj.weight.unflatten(1, (heads, -1)).square().sum((0, 2))
        for layer in model.model.layers
    ]
    return (torch.stack(squares) + 1e-8).sqrt()


class CopyTrainer(Trainer):
    """Presses down heads that are not needed; logs the accuracy on its batches, always new ones."""

    def __init__(self, *, penalty: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.penalty = penalty
        self.right: list[float] = []

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """Cross-entropy; and the heads' norms, so far as it is below 1."""
        outputs = model(**inputs)
        self.right.append(float(right_share(outputs.logits, inputs["labels"]).mean()))
        pressure = self.penalty * (1 - outputs.loss.detach()).clamp(0)
        return outputs.loss + pressure * head_norms(model).sum()

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """With the mean accuracy since the last log."""
        if "loss" in logs:
            logs["accuracy"] = round(sum(self.right) / len(self.right), 4)
            self.right.clear()
        super().log(logs, *arguments, **keywords)


class Bar(TrainerCallback):
    """One line: steps, loss, accuracy."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open it."""
        self.bar = tqdm(total=state.max_steps, desc="training", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move on."""
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the numbers."""
        if logs and "accuracy" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, accuracy {logs['accuracy']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        self.bar.close()


def train(output: Path, size: Size, seed: int) -> None:
    """Everything that is written, the model last."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(size)
    make_probes(size, tokenizer, seed + 1).save(output / "probes.jsonl")
    write_atomically(output / "task.jsonl", task_text(size, tokenizer, seed + 2))
    data = Sequences.draw(size, size.steps * size.batch_size, seed)
    trainer = CopyTrainer(
        penalty=size.penalty,
        model=make_model(size, seed),
        processing_class=tokenizer,
        train_dataset=[
            {"input_ids": ids, "labels": labels}
            for ids, labels in zip(data.ids, data.labels, strict=True)
        ],
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=size.steps,
            per_device_train_batch_size=size.batch_size,
            learning_rate=LEARNING_RATE,
            warmup_steps=50,
            adam_beta2=0.98,
            weight_decay=0.01,
            logging_steps=size.snapshot_every // 5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        ),
        callbacks=[
            Bar(),
            SparksCallback(
                output / "probes.jsonl",
                every_n_steps=size.snapshot_every,
                tolerance=0.05,
                max_suffix_tokens=size.length,
                progress=False,
            ),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(output / "model"))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/induction"))
    parser.add_argument("--size", choices=SIZES, default="full", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    train(arguments.output, SIZES[arguments.size], 10 * arguments.seed)
    print(f"sparks timeline {arguments.output}; open {arguments.output / 'sparks/report.html'}")


if __name__ == "__main__":
    main()
