"""Edge attribution beside its lower bound: a bare forward and activation-only backward pass.

Both sides run in one process, alternating, on the same m x suffix tokens over the same cached
prefix; the bare side freezes the weights and computes only the gradient at the input embeddings.
Medians of `--repeats`, wall clock and CPU time. The last line is JSON.

    python tests/bench/attribution.py --model .cache/smollm2-135m-instruct --steps 100
    python tests/bench/attribution.py --shape qwen2.5-1.5b --dtype bfloat16 --device cuda

`ratio` = attribution / bare: 1.0 would mean that edge scores cost nothing. The attribution's time
holds what every snapshot costs: the prefix, both endpoints, all points, the contraction. What is
done once a model (checking the architecture, measuring a row's memory) falls into the warm-up
round, and stands beside as `first_seconds`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sparks.attribution.eap_ig import edge_attribution, estimate_memory
from sparks.models.memory import peak_process_gib
from sparks.probes.pairs import TokenPair


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    model = load(arguments)
    device = next(model.parameters()).device
    pair = make_pair(model.config.vocab_size, arguments.prompt, arguments.suffix)

    if arguments.memory_only:
        print(json.dumps(memory(model, pair, arguments, device)))
        return

    def edges() -> None:
        edge_attribution(model, [pair], points=arguments.steps, memory_gib=arguments.memory_gib)

    first = timed(edges, device)
    bare = fastest_bare(model, pair, arguments, device)
    rounds = []
    for number in range(1, arguments.repeats + 1):
        rounds.append((timed(bare.run, device), timed(edges, device)))
        lower, ours = rounds[-1]
        print(f"round {number}: bare {lower.wall:.3f} s, edges {ours.wall:.3f} s", file=sys.stderr)
    estimate = estimate_memory(
        model, [pair], points=arguments.steps, memory_gib=arguments.memory_gib
    )
    median = statistics.median
    result = {
        "benchmark": "edge_attribution",
        "model": arguments.model or arguments.shape,
        "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "prompt_tokens": arguments.prompt,
        "suffix_tokens": arguments.suffix,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "bare_rows_at_once": bare.rows,
        "first_seconds": round(first.wall, 3),
        "bare_seconds": round(median(lower.wall for lower, _ in rounds), 3),
        "edges_seconds": round(median(ours.wall for _, ours in rounds), 3),
        "ratio": round(median(ours.wall / lower.wall for lower, ours in rounds), 3),
        "ratio_cpu_time": round(median(ours.cpu / lower.cpu for lower, ours in rounds), 3),
        "peak_gib": round(peak_gib(device), 3),
        "estimated_gib_above_model": round(estimate.peak_gib, 3),
    }
    print(json.dumps(result))


def memory(
    model: torch.nn.Module, pair: TokenPair, arguments: argparse.Namespace, device: torch.device
) -> dict[str, object]:
    """Peak of the attribution alone, above what the process held with the model loaded."""
    settings = {"points": arguments.steps, "memory_gib": arguments.memory_gib}
    for weight in model.parameters():  # a file mapped into memory counts when it is first read
        weight.detach().abs().sum()
    before = peak_gib(device)
    edge_attribution(model, [pair], **settings)
    return {
        "benchmark": "edge_attribution_memory",
        "model": arguments.model or arguments.shape,
        "dtype": arguments.dtype,
        "device": device.type,
        "prompt_tokens": arguments.prompt,
        "suffix_tokens": arguments.suffix,
        "steps": arguments.steps,
        "budget_gib": arguments.memory_gib,
        "estimated_gib": round(estimate_memory(model, [pair], **settings).peak_gib, 3),
        "measured_gib": round(peak_gib(device) - before, 3),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="folder of a checkpoint; without it, random weights of --shape"
    )
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the shared prefix")
    parser.add_argument("--suffix", type=int, default=16, help="tokens of a continuation")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--rows", type=int, help="rows of the bare side; default: all, or 640 tokens if faster"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-gib", type=float, default=4.0)
    parser.add_argument(
        "--memory-only", action="store_true", help="measure the peak of the attribution alone"
    )
    return parser.parse_args()


SHAPES = {
    "smollm2-135m": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
            max_position_embeddings=8192,
        )
    ),
    "tiny": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    ),
    "qwen2.5-1.5b": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
            num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True,
            max_position_embeddings=32768,
        )
    ),
}  # fmt: skip


def load(arguments: argparse.Namespace) -> torch.nn.Module:
    dtype = getattr(torch, arguments.dtype)
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(Path(arguments.model), dtype=dtype)
    else:
        torch.set_default_dtype(dtype)
        with torch.device(arguments.device):
            model = SHAPES[arguments.shape]()
        torch.set_default_dtype(torch.float32)
    return model.to(arguments.device).eval()


def make_pair(vocab: int, prompt: int, suffix: int) -> TokenPair:
    ids = torch.randint(3, vocab, (prompt + 2 * suffix,)).tolist()
    return TokenPair(ids[:prompt], ids[prompt : prompt + suffix], ids[prompt + suffix :])


class Bare:
    """The lower bound, without sparks: the same tokens forward, then back to the embeddings."""

    def __init__(self, model: torch.nn.Module, pair: TokenPair, steps: int, rows: int) -> None:
        self.model, self.pair, self.steps, self.rows = model, pair, steps, rows
        self.device = next(model.parameters()).device
        prefix = torch.tensor([pair.prefix], device=self.device)
        with torch.no_grad():
            self.cache = model(prefix, use_cache=True, logits_to_keep=1).past_key_values
            embed = model.get_input_embeddings()
            self.clean = embed(torch.tensor([pair.clean], device=self.device))
            self.corrupted = embed(torch.tensor([pair.corrupted], device=self.device))

    def run(self) -> None:
        self.model.requires_grad_(False)
        for start in range(0, self.steps, self.rows):
            rows = min(self.rows, self.steps - start)
            alpha = torch.linspace(0, 1, rows, device=self.device, dtype=self.clean.dtype)
            path = torch.lerp(self.corrupted, self.clean, alpha[:, None, None]).requires_grad_()
            layers = [
                (layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1))
                for layer in self.cache.layers
            ]
            logits = self.model(
                inputs_embeds=path,
                past_key_values=DynamicCache(layers),
                use_cache=False,
                logits_to_keep=1,
            ).logits
            torch.autograd.grad(logits.float().logsumexp(-1).sum(), path)
        self.model.requires_grad_(True)


def fastest_bare(
    model: torch.nn.Module,
    pair: TokenPair,
    arguments: argparse.Namespace,
    device: torch.device,
) -> Bare:
    """The bare side with the number of rows at once that suits it best."""
    choices = {arguments.rows or arguments.steps, max(1, 640 // arguments.suffix)}
    sides = [Bare(model, pair, arguments.steps, min(rows, arguments.steps)) for rows in choices]
    for side in sides:
        timed(side.run, device)  # warms up
    return min(sides, key=lambda side: timed(side.run, device).wall)


class Seconds(NamedTuple):
    """Wall clock, and CPU time of all threads."""

    wall: float
    cpu: float


def timed(run: Callable[[], None], device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_process_gib()


if __name__ == "__main__":
    main()
