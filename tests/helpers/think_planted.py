"""Heads of one mode alone: a model whose weights say which they are.

A token `ON` or `OFF` (the marker) opens each continuation; heads look at it alone. The logits are
0 for a token that always competes and -K .. 0 for two others: `SAYS_ON` climbs with what is written
along one direction, `SAYS_OFF` along another. Halfway from one mode to the other both are far
below. So what moves L towards a mode is what climbs to THAT mode's token, and the share of the
other mode's heads in L is about 2 ln 2 / K. Head A carries the marker ON, B the marker OFF, S both.
"""

from __future__ import annotations

import torch
from models import tiny_model, token_pair
from torch import nn

from sparks.probes.pairs import TokenizedProbes, TokenPair

ON, OFF, RIVAL, SAYS_ON, SAYS_OFF = 50, 51, 52, 53, 54
WORDS = 50  # ids below are words
A, B, S = (0, 1), (1, 2), (0, 3)
K, CONSTANT = 1000.0, 8.0
PROBES = 12


@torch.no_grad()
def planted_model() -> nn.Module:
    """Dimensions: 0 constant, 1 and 2 the marker ON and OFF, 3 and 4 what the heads write."""
    model = tiny_model("llama-mha", num_attention_heads=4, num_key_value_heads=4,
                       num_hidden_layers=2, rope_theta=1e6)  # fmt: skip
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    size = model.config.hidden_size
    before = ((CONSTANT**2 + 1) / size) ** 0.5  # what a norm divides by, at a marker and at the end
    table = model.get_input_embeddings().weight
    table[:, 0], table[ON, 1], table[OFF, 2] = CONSTANT, 1.0, 1.0
    for (layer, head), writes in {A: [(1, 3, 0.5)], B: [(2, 4, 0.5)],
                                  S: [(1, 3, 0.5), (2, 4, 0.5)]}.items():  # fmt: skip
        attention = model.model.layers[layer].self_attn
        first = head * 8
        slow = first + 7  # the dimension that the rotation leaves as it is
        attention.q_proj.weight[slow, 0] = 50.0
        attention.k_proj.weight[slow, 1:3] = 50.0
        for place, (reads, to, size_) in enumerate(writes):
            # In layer 1 the marker's position holds what S wrote in layer 0, 1/2 long.
            attention.v_proj.weight[first + place, reads] = (before**2 + layer / 4 / size) ** 0.5
            attention.o_proj.weight[to, first + place] = size_
    head_ = model.lm_head.weight
    head_[:, 0] = -2 * K * before / CONSTANT
    head_[RIVAL, 0] = 0
    for token, dimension in ((SAYS_ON, 3), (SAYS_OFF, 4)):
        head_[token, 0] = -K * before / CONSTANT
        head_[token, dimension] = K * before
    return model


def pairs() -> list[TokenPair]:
    """Marker and words, thinking on as clean."""
    drawn = [token_pair(3 + seed % 4, 4, seed=seed, vocab=WORDS) for seed in range(PROBES)]
    return [TokenPair(p.prefix, [ON, *p.clean], [OFF, *p.corrupted]) for p in drawn]


def probes(found: list[TokenPair]) -> TokenizedProbes:
    names = tuple(f"probe-{n}" for n in range(len(found)))
    return TokenizedProbes(tuple(found), names, ("",) * len(found))
