"""The fast patching of everything outside a circuit, held to the slow and plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import KINDS, VOCAB, tiny_model, token_pair

from sparks.attribution import take_snapshot as taking
from sparks.attribution.circuit_runs import circuit_loss
from sparks.attribution.eap_ig import edge_attribution
from sparks.attribution.model_runs import Passes
from sparks.attribution.patching import patch_edges
from sparks.ground.config import SnapshotConfig
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.probes.pairs import TokenizedProbes, TokenPair
from sparks.timeline.timeline import Timeline


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


# -- on some of the probes -------------------------------------------------------------------------

PAIRS = [token_pair(9, 5), token_pair(0, 5), token_pair(4, 1), token_pair(12, 3), token_pair(2, 5)]
SETTINGS = {"points": 2, "threshold": 0.0}


def snapshot(**settings):
    ids = tuple("abcde")
    probes = TokenizedProbes(tuple(PAIRS), ids, ("",) * len(ids))
    config = SnapshotConfig(**SETTINGS | settings)
    return taking.take_snapshot(tiny_model("llama-gqa"), probes, config, progress=False)


def test_it_is_measured_on_as_many_probes_as_are_asked_for():
    some, every = snapshot(faithfulness_probes=3), snapshot()
    assert np.isfinite(every.faithfulness).all()
    assert np.flatnonzero(np.isfinite(some.faithfulness)).tolist() == [0, 2, 4]
    np.testing.assert_array_equal(some.faithfulness[::2], every.faithfulness[::2])
    # What is known counts, and such snapshots may stand on one timeline.
    (told,) = Timeline([some]).counts()["faithfulness"]
    assert told == pytest.approx(np.median(every.faithfulness[::2]))
    assert every.meta.settings.difference(some.meta.settings) is None


def test_which_probes_depends_on_them_alone_and_not_on_how_they_are_shared_out():
    model, config = tiny_model("llama-gqa"), SnapshotConfig(faithfulness_probes=2, **SETTINGS)
    found = {}
    for mine in taking._shares(PAIRS, 2):
        found |= taking._measure(model, PAIRS, mine, config, 0, False).results
    known = [index for index in sorted(found) if np.isfinite(found[index].loss_circuit)]
    assert known == [0, 4]


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1, 16, {0}), (3, 16, {0, 1, 2}), (64, 1, {0}), (9, 3, {0, 4, 8})],
)
def test_they_are_spread_evenly(count, most, expected):
    config = SnapshotConfig(faithfulness_probes=most)
    assert taking.faithfulness_indices(count, config) == expected
    assert len(taking.faithfulness_indices(76, SnapshotConfig())) == 16
