"""Edge scores of one pair: how much memory, which edges are strongest, how exact the integral is.

    python examples/edge_scores.py
    python examples/edge_scores.py --model path/to/model --points 20

A score estimates how far (nats) the corrupted value of the source, sent along this edge alone,
moves the output away from the clean one; below zero, towards it.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks import Probe, ProbeSet, edge_attribution, estimate_memory

PROBE = Probe(
    prompt="Question: What is 17 + 25?\nAnswer:",
    clean=" Let me think step by step",
    corrupted=" The answer is 43, because",
)


def main() -> None:
    """Score every edge and print the strongest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--points", type=int, default=100, help="points m on the path")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="budget for activations")
    parser.add_argument("--top", type=int, default=10, help="edges to list (default: 10)")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype="float32", trust_remote_code=False
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    pairs = ProbeSet((PROBE,)).tokenize(tokenizer, max_suffix_tokens=16).pairs
    settings = {"points": arguments.points, "memory_gib": arguments.memory_gib}

    estimate = estimate_memory(model, pairs, **settings)
    print(f"needs about {estimate.peak_gib:.3f} GiB beside the model")

    result = edge_attribution(model, pairs, **settings)
    scores = result.scores[0]  # [sources, destinations], nats
    print(f"KL(clean || corrupted): {result.loss_corrupted[0]:.3f} nats")
    print(f"completeness gap: {result.completeness_gap[0]:.2%} (0 for an exact integral)")

    print(f"strongest of {result.graph.num_edges} edges")
    for index in scores.abs().flatten().topk(arguments.top).indices.tolist():
        source, destination = divmod(index, scores.shape[1])
        print(
            f"  {result.sources[source]:>8} -> {result.destinations[destination]:<8} "
            f"{scores[source, destination]:+.4f}"
        )

    heads = result.heads()[0]  # [layers, heads]
    layer, head = divmod(int(heads.argmax()), heads.shape[1])
    print(f"strongest head: L{layer}H{head}, {heads[layer, head]:.3f} over all its edges")


if __name__ == "__main__":
    main()
