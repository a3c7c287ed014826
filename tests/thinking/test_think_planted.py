"""Heads of one mode alone, on a model whose weights say which they are.

A token `ON` or `OFF` (the marker) opens each continuation; heads look at it alone. The logits are
0 for a token that always competes and -K .. 0 for two others: `SAYS_ON` climbs with what is written
along one direction, `SAYS_OFF` along another. Halfway from one mode to the other both are far
below. So what moves L towards a mode is what climbs to THAT mode's token, and the share of the
other mode's heads in L is about 2 ln 2 / K. Head A carries the marker ON, B the marker OFF, S both.
"""

from __future__ import annotations

import pytest
import torch
from models import tiny_model, token_pair
from torch import nn

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.pairs import TokenizedProbes, TokenPair
from sparks.thinking.comparison import ThinkComparison
from sparks.thinking.overlap import DRAWS
from sparks.thinking.states import STATES
from sparks.timeline.timeline import Timeline

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


@pytest.fixture(scope="module")
def snapshots() -> dict[str, Snapshot]:
    model, config = (
        planted_model(),
        SnapshotConfig(points=8, faithfulness=False, threshold=0.01, threshold_mode="relative"),
    )
    on = probes(pairs())
    off = probes([TokenPair(p.prefix, p.corrupted, p.clean) for p in on.pairs])
    return {
        mode: take_snapshot(model, found, config, progress=False)
        for mode, found in (("on", on), ("off", off))
    }


@pytest.fixture(scope="module")
def comparison(snapshots) -> ThinkComparison:
    return ThinkComparison(Timeline([snapshots["on"]]), Timeline([snapshots["off"]]))


def test_the_planted_model_says_which_mode_it_is_in():
    model = planted_model()
    for pair in pairs()[:3]:
        for tokens, said, silent in (
            (pair.clean, SAYS_ON, SAYS_OFF),
            (pair.corrupted, SAYS_OFF, SAYS_ON),
        ):
            with torch.no_grad():
                chances = model(input_ids=torch.tensor([pair.prefix + tokens])).logits[0, -1]
            chances = chances.softmax(-1)
            assert float(chances[said]) == pytest.approx(0.5, abs=0.02)
            assert float(chances[RIVAL]) == pytest.approx(0.5, abs=0.02)
            assert float(chances[silent]) == 0


def test_heads_of_one_mode_alone_are_the_planted_ones(comparison):
    assert comparison.exclusive("on") == (A,)
    assert comparison.exclusive("off") == (B,)
    states = {(int(i), int(j)): STATES[s] for (i, j), s in _items(comparison.states)}
    assert states.pop(A) == "only on"
    assert states.pop(B) == "only off"
    assert states.pop(S) == "shared"
    assert set(states.values()) == {"neither"}
    assert comparison.exclusive("on", "paper") == (A,)
    assert comparison.exclusive("off", "paper") == (B,)


def _items(states):
    return [((i, j), states[i, j]) for i in range(states.shape[0]) for j in range(states.shape[1])]


def test_exchanged_modes_call_no_head_exclusive_and_counts_say_so(comparison):
    counts = comparison.counts().set_index("rule")
    assert counts.loc["calibrated", "only_on"] == counts.loc["calibrated", "only_off"] == 1
    assert counts.loc["calibrated", "shared"] == 1
    assert counts.loc["calibrated", "exclusive"] == 2
    # By luck none: with 12 probes some are exchanged and some are not in (nearly) every draw.
    assert counts.loc["calibrated", "luck_high"] == 0 == counts.loc["paper", "luck_high"]
    assert DRAWS >= 100


def test_overlap_of_the_planted_modes_is_one_head_of_three(comparison):
    overlap = comparison.overlap().set_index(["what", "counted"])
    for counted in ("each", "majority", "any"):
        row = overlap.loc["heads", counted]
        assert (row["on"], row["off"], row["shared"], row["union"]) == (2, 2, 1, 3)
        assert row["jaccard"] == pytest.approx(1 / 3)
        # Every probe says the same, so that halves of one mode agree and halves of two do not.
        assert row["one_mode"] == 1
        assert row["two_modes"] == pytest.approx(1 / 3)
        assert row["two_modes_lower"] == 1
    row = overlap.loc["heads", "each"]
    assert (row["low"], row["high"]) == pytest.approx((1 / 3, 1 / 3))
    assert overlap.loc["edges", "majority"]["jaccard"] < 0.6


def test_the_rule_exclusive_of_two_run_folders_finds_them(tmp_path, snapshots):
    from sparks.effects.choose_heads import select_heads
    from sparks.runs.run_folder import RunStore

    for mode, snapshot in snapshots.items():
        RunStore(tmp_path / mode).save(snapshot)
    on, off = (Timeline.from_run(tmp_path / mode) for mode in ("on", "off"))
    assert select_heads(on, "exclusive", others=[off]).heads == (A,)
    assert select_heads(off, "exclusive", others=[on]).heads == (B,)


def test_two_measurements_that_cannot_be_compared_are_refused(snapshots):
    on, off = snapshots["on"], snapshots["off"]
    from dataclasses import replace

    def changed(**values) -> Timeline:
        return Timeline([replace(off, meta=replace(off.meta, **values))])

    config = dict(off.meta.config)
    for other, match in (
        (changed(model_hash="0" * 64), "the same weights, got .* measure both again"),
        (changed(config=config | {"points": 9}), "the same settings, got points=8 and points=9"),
        (Timeline([replace(off, probe_ids=tuple(reversed(off.probe_ids)))]), "the same problems"),
    ):
        with pytest.raises(SparksError, match=match):
            ThinkComparison(Timeline([on]), other)


def test_unknown_modes_and_rules_are_refused(comparison):
    with pytest.raises(SparksError, match=r"mode must be on or off .* got 'maybe' and 'paper'"):
        comparison.exclusive("maybe", "paper")
