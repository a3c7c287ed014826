"""A tiny Llama, trained from nothing to a base that post-training can improve. CPU, no network.

    python recipes/tiny_base.py                       # .cache/tiny: data and the base
    python recipes/tiny_base.py --size large          # the larger base, for the teacher
    python recipes/tiny_base.py --output FOLDER --steps 100

Writes into the output folder, and leaves alone what is complete:

    train.jsonl        sums with worked solutions: `prompt` and `completion`
    problems.jsonl     other sums, which no training sees, with `group`: for probes and evaluation
    control.jsonl      control probes: copying the first number of a question, which it does already
    base/              4 layers of 8 heads, 0.5 million weights, 800 steps
    large/             6 layers of 6 heads, 1 million weights, 400 steps, mostly by steps

A base answers sums such as 7 - 3 + 8, mostly at once and sometimes by steps:

    The result of 7 - 3 + 8 is 12.        <think>
    <answer>                              Okay, I need to work out 7 - 3 + 8 from left to right.
    12                                    7 - 3 = 4.
    </answer>                             ...

What it says at once is a guess, of which one in four is right; what it works out is mostly right:
SFT, distillation and GRPO find something to improve. On two CPU cores each base takes two and a
half minutes; 0.8 GB of memory.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from build_reasoning_data import answer_in, chain_sum, completion_text, to_jsonl
from common.rewards import accuracy_reward, format_reward
from common.traces import answers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparks.ground.files import write_atomically
from sparks.probes.probes import CONTROL_GROUP

DEFAULT_OUTPUT = Path(".cache/tiny")
SHARE_WRONG = 0.5
"""Of the answers at once that the base learns from, those that are a little off: it guesses."""
HELD_OUT = 264
"""Sums that no training sees."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of a model, and how it is trained."""

    layers: int
    heads: int
    d_model: int
    steps: int
    batch_size: int = 48
    learning_rate: float = 3e-3
    by_steps: float = 0.5
    """Share of worked solutions in a batch, and their weight in the loss. They are longer, so that
    the base begins only a third of its answers with one."""


SIZES = {
    "base": Size(layers=4, heads=8, d_model=96, steps=800),
    "large": Size(layers=6, heads=6, d_model=120, steps=400, by_steps=0.9),
}


# -- data ------------------------------------------------------------------------------------------


def expressions(rng: random.Random) -> Iterator[str]:
    """Sums of three one-digit numbers."""
    while True:
        terms = [str(rng.randint(1, 9)) for _ in range(3)]
        signs = [rng.choice("+-") for _ in terms[1:]]
        yield " ".join([terms[0], *(f"{s} {t}" for s, t in zip(signs, terms[1:], strict=True))])


def question(expression: str) -> str:
    """What the user asks."""
    return f"Calculate {expression}."


def by_steps(expression: str) -> str:
    """The answer, worked out."""
    return completion_text(*chain_sum({"expression": expression}))


def at_once(expression: str, rng: random.Random) -> str:
    """An answer without reasoning, which may be wrong."""
    result = int(answer_in(by_steps(expression)) or 0)
    if rng.random() < SHARE_WRONG:
        result += rng.choice((-3, -2, -1, 1, 2, 3))
    return f"The result of {expression} is {result}.\n<answer>\n{result}\n</answer>"


def record(expression: str) -> dict[str, Any]:
    """A problem with its worked solution."""
    return {
        "prompt": [{"role": "user", "content": question(expression)}],
        "completion": [{"role": "assistant", "content": by_steps(expression)}],
        "group": "chain_sum",
    }


def different(name: str, count: int, *, without: Collection[str] = ()) -> list[str]:
    """`count` different expressions of the random sequence `name`."""
    source = expressions(random.Random(name))
    found: dict[str, None] = {}
    while len(found) < count:
        if (expression := next(source)) not in without:
            found[expression] = None
    return list(found)


def write_data(output: Path, train: int) -> None:
    """Files of problems and of control probes, where one is missing."""
    secret = different("held out", HELD_OUT)
    for name, sums in (
        ("problems", secret),
        ("train", different("train", train, without=set(secret))),
    ):
        records = [record(expression) for expression in sums]
        path = output / f"{name}.jsonl"
        if not path.is_file():
            dropped = ("group",) if name == "train" else ()
            write_atomically(path, to_jsonl(records, without=dropped))
    if not (path := output / "control.jsonl").is_file():
        write_atomically(path, to_jsonl(list(controls(make_tokenizer()))))


def controls(tokenizer: Any, count: int = 24) -> Iterator[dict[str, Any]]:
    """Control probes: a question against another of as many tokens, up to where it is copied.

    The base knows no words and copies by place, so that the built-in ones tell it nothing.
    """
    source = expressions(random.Random("control"))
    while count:
        texts = [f" {next(source)}.<|assistant|>The result of" for _ in range(2)]
        lengths = {len(tokenizer(f"<|user|>Calculate{text}")["input_ids"]) for text in texts}
        if texts[0].split()[0] != texts[1].split()[0] and len(lengths) == 1:
            count -= 1
            yield {
                "prompt": "<|user|>Calculate",
                "clean": texts[0],
                "corrupted": texts[1],
                "group": CONTROL_GROUP,
            }


# -- tokenizer -------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens, learnt from the answers; most numbers are one token."""
    rng = random.Random("tokenizer")
    sums = different("tokenizer", 1000)
    texts = [t for e in sums for t in (question(e), by_steps(e), at_once(e, rng))]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=256
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# -- training --------------------------------------------------------------------------------------


def make_model(size: Size, vocab_size: int) -> LlamaForCausalLM:
    """A model with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=size.d_model,
            intermediate_size=3 * size.d_model,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=SPECIAL.index("<|end|>"),
            pad_token_id=SPECIAL.index("<|pad|>"),
        )
    )


def batch(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of questions with answers, [batch pos]; the question is not learnt."""
    ids, labels = [], []
    for asked, answer in pairs:
        before = tokenizer(f"<|user|>{asked}<|assistant|>")["input_ids"]
        after = tokenizer(f"{answer}<|end|>")["input_ids"]
        ids.append(before + after)
        labels.append([-100] * len(before) + after)
    width = max(map(len, ids))
    padding = [width - len(row) for row in ids]
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([row + [pad] * n for row, n in zip(ids, padding, strict=True)]),
        torch.tensor([[1] * len(row) + [0] * n for row, n in zip(ids, padding, strict=True)]),
        torch.tensor([row + [-100] * n for row, n in zip(labels, padding, strict=True)]),
    )


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: Size) -> None:
    """AdamW with a cosine schedule; every step sees a batch of either kind of answer."""
    secret = set(different("held out", HELD_OUT))
    rng = random.Random("base")
    source = (e for e in expressions(rng) if e not in secret)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    model.train()
    with tqdm(range(size.steps), desc="training", unit="step") as bar:
        for step in bar:
            decay = 0.52 + 0.48 * math.cos(math.pi * step / size.steps)
            for group in optimizer.param_groups:
                group["lr"] = size.learning_rate * min(1.0, (step + 1) / 30) * decay
            sums = list(itertools.islice(source, size.batch_size))
            guessed = size.batch_size - round(size.by_steps * size.batch_size)
            kinds = (
                (1 - size.by_steps, [(question(e), at_once(e, rng)) for e in sums[:guessed]]),
                (size.by_steps, [(question(e), by_steps(e)) for e in sums[guessed:]]),
            )
            losses = []
            for weight, pairs in kinds:
                ids, mask, labels = batch(tokenizer, pairs)
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                (weight * loss).backward()
                losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix_str("loss at once {:.3f}, by steps {:.3f}".format(*losses))


def evaluate(model: Any, tokenizer: Any, sums: Sequence[str]) -> tuple[float, float]:
    """Shares of sampled answers (temperature 1) that are right, and that have the paper's form."""
    torch.manual_seed(0)
    texts = answers(
        model.eval(),
        tokenizer,
        [record(expression)["prompt"] for expression in sums],
        GenerationConfig(
            max_new_tokens=80,
            do_sample=True,
            top_k=0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
    )
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    solutions = [answer_in(by_steps(expression)) for expression in sums]
    right = accuracy_reward(completions, solution=solutions)
    form = format_reward(completions)
    return sum(right) / len(sums), sum(form) / len(sums)


def make(output: Path, size: Size) -> None:
    """Train a base and write its folder, whole or not at all."""
    started = time.perf_counter()
    tokenizer = make_tokenizer()
    model = make_model(size, len(tokenizer))
    train(model, tokenizer, size)
    right, form = evaluate(model, tokenizer, different("held out", HELD_OUT))
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"{output}: {model.num_parameters():,} weights, {size.steps} steps in "
        f"{time.perf_counter() - started:.0f} s; on {HELD_OUT} sums that it has not seen "
        f"{right:.0%} right, {form:.0%} by steps in the paper's form"
    )


def main() -> None:
    """Read the command line; write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the size)")
    parser.add_argument(
        "--train", type=int, default=2000, help="rows of train.jsonl (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.train < 1 or (arguments.steps is not None and arguments.steps < 1):
        parser.error("--train and --steps must be at least 1")
    size = SIZES[arguments.size]
    if arguments.steps is not None:
        size = replace(size, steps=arguments.steps)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_data(arguments.output, arguments.train)
    folder = arguments.output / arguments.size
    if (folder / "model.safetensors").is_file():
        print(f"{folder}: already there")
    else:
        make(folder, size)


if __name__ == "__main__":
    main()
