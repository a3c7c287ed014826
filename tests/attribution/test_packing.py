"""Rows that share a sequence under a mask give what rows of their own give."""

from __future__ import annotations

import pytest
import torch
from models import VOCAB, tiny_model

from sparks.attribution.eap_ig import edge_attribution, node_attribution
from sparks.attribution.model_runs import Passes
from sparks.probes.pairs import TokenPair

PACKS = ("llama-gqa", "llama-odd", "qwen2", "qwen3", "smollm3-nope", "phi3-fused", "lora-llama")


def long_pairs(*prefixes: int, suffix: int = 3) -> list[TokenPair]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, VOCAB, (len(prefixes), 64), generator=generator).tolist()
    return [
        TokenPair(row[:prefix], row[50 : 50 + suffix], row[56 : 56 + suffix])
        for row, prefix in zip(ids, prefixes, strict=True)
    ]


@pytest.fixture
def sequences(monkeypatch) -> list[int]:
    """Tokens of every sequence that is run with gradients, continuations only."""
    seen: list[int] = []
    real = Passes._attention_mask

    def noted(self, packed):
        seen.append(packed)
        return real(self, packed)

    monkeypatch.setattr(Passes, "_attention_mask", noted)
    return seen


def unpacked(monkeypatch, run):
    with monkeypatch.context() as patch:
        patch.setattr(Passes, "most_packed", 1)
        return run()


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("kind", PACKS)
def test_packed_equals_one_row_a_sequence(kind, positions, monkeypatch, sequences, assert_close):
    pairs = long_pairs(45, 40)

    def run():
        return edge_attribution(tiny_model(kind), pairs, points=6, positions=positions)

    packed = run()
    assert sequences[-1] == 3  # of at most 1 + 45 // 12 = 4, the largest that divides 6
    alone = unpacked(monkeypatch, run)
    assert_close("same", packed.scores, alone.scores)
    assert_close("same", packed.loss_corrupted, alone.loss_corrupted)


def test_packed_under_eager_attention(monkeypatch, sequences, assert_close):
    model = tiny_model("llama-gqa", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"

    def run():
        return edge_attribution(model, long_pairs(48), points=8)

    packed = run()
    assert sequences[-1] == 4
    assert_close("same", packed.scores, unpacked(monkeypatch, run).scores)


def test_packed_with_prefixes_of_all_lengths(monkeypatch, sequences, assert_close):
    pairs = long_pairs(0, 1, 30, 48)

    def run():
        return edge_attribution(tiny_model("qwen2"), pairs, points=4)

    packed = run()
    assert sequences[-1] == 4
    assert_close("same", packed.scores, unpacked(monkeypatch, run).scores)
    for index, pair in enumerate(pairs):
        one = edge_attribution(tiny_model("qwen2"), [pair], points=4)
        assert_close("same", packed.scores[index], one.scores[0])


def test_packed_nodes(monkeypatch, sequences, assert_close):
    def run():
        return node_attribution(tiny_model("llama-gqa"), long_pairs(45), points=6)

    packed = run()
    assert sequences[-1] == 3
    assert_close("same", packed.scores, unpacked(monkeypatch, run).scores)


@pytest.mark.parametrize("kind", ["mistral-window", "starcoder2"])
def test_a_sliding_window_is_not_packed(kind, sequences):
    edge_attribution(tiny_model(kind), long_pairs(45), points=6)
    assert sequences[-1] == 1


def test_a_window_that_holds_all_tokens_is_packed(sequences, monkeypatch, assert_close):
    def run():
        model = tiny_model("mistral-window", sliding_window=48)
        return edge_attribution(model, long_pairs(45), points=6)

    packed = run()
    assert sequences[-1] == 3
    assert_close("same", packed.scores, unpacked(monkeypatch, run).scores)
