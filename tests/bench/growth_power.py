"""Does the growth rule see what moved, and nothing else? Power and errors of `sparks.growth`.

    python tests/bench/growth_power.py collect --model .cache/smollm2-135m-instruct \\
        --trained runs/growth/sft/checkpoint-32 --probes POOL.jsonl --keep runs/growth/measured
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.config import SnapshotConfig
from sparks.probes import ProbeSet
from sparks.snapshot import Snapshot
from sparks.token_pairs import TokenizedProbes
from sparks.track import take_snapshot

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import Head, scaled

FACTORS = (1.1, 1.2, 1.3, 1.5, 2.0)
CONFIG = SnapshotConfig(steps=4, faithfulness=False)
CHUNK = 16


def collect(arguments: argparse.Namespace) -> None:
    """Measure base, trained, rounded, jittered and planted models; goes on where it stopped."""
    folder = Path(arguments.keep)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    probes = ProbeSet.load(arguments.probes).tokenize(tokenizer, max_suffix_tokens=16)
    models = {
        "base": load(arguments.model),
        "trained": load(arguments.trained),
        "rounded": rounded(load(arguments.model)),
        "jittered": jittered(load(arguments.model)),
        "planted": load(arguments.model),
    }
    scales: Mapping[Head, float] = {}
    for start in range(0, len(probes.pairs), CHUNK):
        chosen = part(probes, slice(start, start + CHUNK))
        for name, model in models.items():
            file = folder / f"{name}-{start:03d}.npz"
            if not file.exists():
                with scaled(model, scales if name == "planted" else {}):
                    measured = take_snapshot(model, chosen, CONFIG, progress=False)
                np.savez_compressed(file, **numbers(measured))
                print(file, measured.meta.seconds, flush=True)
            if name == "base" and start == 0:
                scales = planted_heads(np.load(file)["totals"])


def load(folder: str) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def rounded(model: nn.Module) -> nn.Module:
    """Weights rounded to bfloat16."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model


@torch.no_grad()
def jittered(model: nn.Module, rate: float = 4e-5) -> nn.Module:
    """What one step of an optimiser like Adam does at this learning rate, in random directions."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.add_(rate * signs)
    return model


def planted_heads(
    totals: np.ndarray, each: int = 6
) -> dict[Head, float]:
    """`each` heads a factor, drawn from those that carry at least half of an even share."""
    share = totals / totals.sum(axis=(1, 2), keepdims=True)
    carrying = np.argwhere(share.mean(axis=0) * share[0].size > 0.5)
    drawn = np.random.default_rng(0).permutation(carrying)[: each * len(FACTORS)]
    return {
        (int(layer), int(head)): FACTORS[place % len(FACTORS)]
        for place, (layer, head) in enumerate(drawn)
    }


def numbers(measured: Snapshot) -> dict[str, np.ndarray]:
    """What the rules read."""
    shape = measured.importance.shape
    return {
        "totals": measured.node_totals[:, measured.graph.head_sources].reshape(shape),
        "levels": measured.levels[0],
        "loss": measured.loss_corrupted,
    }


def part(probes: TokenizedProbes, chosen: slice) -> TokenizedProbes:
    return TokenizedProbes(
        pairs=probes.pairs[chosen],
        ids=probes.ids[chosen],
        groups=probes.groups[chosen],
        hash=f"{probes.hash} {chosen}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["collect"])
    parser.add_argument("--model")
    parser.add_argument("--trained")
    parser.add_argument("--probes")
    parser.add_argument("--keep")
    collect(parser.parse_args())


if __name__ == "__main__":
    main()
