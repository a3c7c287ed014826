"""The fast patching of everything outside a circuit, held to the slow and plain one."""

from __future__ import annotations

import pytest
import torch
from models import KINDS, VOCAB, tiny_model

from sparks.attribution.circuit_runs import circuit_loss
from sparks.attribution.eap_ig import edge_attribution
from sparks.attribution.model_runs import Passes
from sparks.attribution.patching import patch_edges
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.probes.pairs import TokenPair


def make_pair(prefix: int = 5, suffix: int = 4) -> TokenPair:
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(3, VOCAB, (prefix + 2 * suffix,), generator=generator).tolist()
    return TokenPair(ids[:prefix], ids[prefix : prefix + suffix], ids[prefix + suffix :])


def fast(model, pair, kept, positions="last") -> float:
    with undisturbed(model):
        anatomy = take_apart(model)
        return circuit_loss(anatomy, Passes(anatomy, [pair], positions), kept)


def strongest(model, pair, share: float) -> torch.Tensor:
    scores = edge_attribution(model, [pair], points=8).scores[0].abs()
    return scores >= scores.flatten().quantile(1 - share)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_plain_patching(kind, positions):
    model, pair = tiny_model(kind), make_pair()
    kept = strongest(model, pair, 0.3)
    expected = patch_edges(model, pair, ~kept, positions=positions)
    assert expected.loss > 1e-3
    assert fast(model, pair, kept, positions) == pytest.approx(expected.loss, rel=2e-4, abs=2e-6)


def test_nothing_kept_is_the_corrupted_run_and_everything_kept_the_clean_one():
    model, pair = tiny_model("llama-gqa"), make_pair()
    result = patch_edges(model, pair, [])
    everything = torch.ones(
        take_apart(model).graph.num_sources, take_apart(model).graph.num_destinations, dtype=bool
    )
    assert fast(model, pair, everything) == pytest.approx(0, abs=1e-6)
    assert fast(model, pair, ~everything) == pytest.approx(result.loss_corrupted, rel=1e-4)


def test_without_a_prefix():
    model, pair = tiny_model("qwen3"), make_pair(prefix=0)
    kept = strongest(model, pair, 0.5)
    expected = patch_edges(model, pair, ~kept).loss
    assert fast(model, pair, kept) == pytest.approx(expected, rel=2e-4, abs=2e-6)
