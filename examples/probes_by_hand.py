"""Three probes written by hand: made in Python, looked at as tokens, saved as JSONL.

    python examples/probes_by_hand.py
    python examples/probes_by_hand.py --model path/to/model --output my_probes.jsonl

A probe is a prompt with two beginnings of its answer: clean is what the trained model should come
to write, corrupted what it writes before. Only the tokenizer of the model is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from sparks import Probe, ProbeSet, SnapshotConfig


def question(text: str) -> list[dict[str, str]]:
    """A chat of one message; a prompt may also be plain text."""
    return [{"role": "user", "content": text}]


PROBES = ProbeSet(
    (
        Probe(
            prompt=question("What is 17 + 25?"),
            clean="Let me think step by step. 17 + 25",
            corrupted="The answer is 43. This is because",
            id="sum",
            group="arithmetic",
        ),
        Probe(
            prompt=question("Tom has 3 bags of 4 apples. How many apples?"),
            clean="First, each bag holds 4 apples.",
            corrupted="Tom has 7 apples in his bags.",
            id="apples",
            group="arithmetic",
        ),
        Probe(
            prompt=question("All cats are animals. Is every animal a cat?"),
            clean="Let me check both directions of the claim.",
            corrupted="Yes, because cats are animals and so on.",
            id="cats",
            group="logic",
        ),
    )
)


def main() -> None:
    """Show the token pairs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--output", type=Path, default=Path("probes.jsonl"))
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    tokenized = PROBES.tokenize(tokenizer, max_suffix_tokens=SnapshotConfig.max_suffix_tokens)
    for name, pair in zip(tokenized.ids, tokenized.pairs, strict=True):
        # Both continuations are cut to the shorter one: what is missing here is not measured.
        print(f"{name}: {len(pair.prefix)} shared tokens, then {len(pair.clean)} of each")
        print("  clean    ", [tokenizer.decode([token]) for token in pair.clean])
        print("  corrupted", [tokenizer.decode([token]) for token in pair.corrupted])
    PROBES.save(arguments.output)
    print(f"{len(PROBES)} probes in {arguments.output}, hash {tokenized.hash[:12]}")


if __name__ == "__main__":
    main()
