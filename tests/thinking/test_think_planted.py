"""Heads of one mode alone, on a model whose weights say which they are (`think_planted`)."""

from __future__ import annotations

import pytest
import torch
from think_planted import RIVAL, SAYS_OFF, SAYS_ON, A, B, S, pairs, planted_model, probes

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.pairs import TokenPair
from sparks.thinking.comparison import ThinkComparison
from sparks.thinking.overlap import DRAWS
from sparks.thinking.states import STATES
from sparks.timeline.timeline import Timeline


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
    assert counts.loc["growth", "only_on"] == counts.loc["growth", "only_off"] == 1
    assert counts.loc["growth", "shared"] == 1
    assert counts.loc["growth", "exclusive"] == 2
    # By luck none: with 12 probes some are exchanged and some are not in (nearly) every draw.
    assert counts.loc["growth", "luck_high"] == 0 == counts.loc["paper", "luck_high"]
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
