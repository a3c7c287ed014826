"""Turnover and stability of circuits: by hand, against plain sets, one snapshot at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import SMALL, large_run, make_run, make_snapshot

from sparks.attribution.snapshot import Snapshot
from sparks.ground.errors import SparksError
from sparks.stats.intervals import resampled_counts
from sparks.timeline.regimes.turnover import Turnover, TurnoverMeter, turnover_frame

Edge = tuple[str, str]
A, B, C, D = ("embed", "L0H0.q"), ("L0H0", "logits"), ("L0H0", "L1H1.q"), ("L1H1", "logits")


def snapshot(step: int, circuits: Sequence[Sequence[Edge]], **keywords: Any) -> Snapshot:
    """One circuit a probe; its heads are the sources of its edges."""
    base = make_snapshot(step, probes=len(circuits), **keywords)
    edges = [edge for circuit in circuits for edge in circuit]
    active = np.zeros_like(base.active)
    for probe, circuit in enumerate(circuits):
        for source, _ in circuit:
            if source != "embed":
                active[(probe, *SMALL.head(source))] = True
    return replace(
        base,
        active=active,
        edge_offsets=np.cumsum([0, *map(len, circuits)]),
        edge_source=np.array([SMALL.sources.index(a) for a, _ in edges], dtype=np.int32),
        edge_destination=np.array([SMALL.destinations.index(b) for _, b in edges], dtype=np.int32),
        edge_score=np.ones(len(edges), dtype=np.float32),
    )


def sets_of(one: Snapshot, kind: str, chosen: Sequence[int]) -> list[set[tuple[int, ...]]]:
    if kind == "heads":
        return [{tuple(head) for head in np.argwhere(one.active[probe])} for probe in chosen]
    pairs = list(zip(one.edge_source.tolist(), one.edge_destination.tolist(), strict=True))
    return [set(pairs[slice(*one.edge_offsets[probe : probe + 2])]) for probe in chosen]


def jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b) if a | b else math.nan


def plainly(run: Sequence[Snapshot], chosen: Sequence[int]) -> pd.DataFrame:
    """The definitions, with sets."""
    rows = []
    for index, one in enumerate(run):
        row: dict[str, float] = {"step": one.step}
        for kind in ("edges", "heads"):
            now = sets_of(one, kind, chosen)
            for name, then in (("previous", run[index - 1]), ("first", run[0])):
                other = sets_of(then, kind, chosen)
                moved = [1 - jaccard(a, b) for a, b in zip(now, other, strict=True)]
                row[f"{kind}_from_{name}"] = np.nanmean(moved) if index else math.nan
            pairs = [jaccard(a, b) for a, b in itertools.combinations(now, 2)]
            row[f"{kind}_stability"] = np.nanmean(pairs)
        rows.append(row)
    return pd.DataFrame(rows)


def turnover(run: Iterable[Snapshot], chosen: np.ndarray | None = None) -> list[Turnover]:
    """Of every checkpoint."""
    meter = TurnoverMeter(chosen)
    return [meter.add(one) for one in run]


# -- by hand ---------------------------------------------------------------------------------------


def test_by_hand():
    run = [
        snapshot(0, [[A, B], [A, B, C]]),
        snapshot(10, [[A, B], [A, C, D]]),
        snapshot(20, [[A, C, D], [A, C, D]]),
    ]
    first, second, third = turnover(run)
    assert math.isnan(first.edges_from_previous.value)
    assert math.isnan(first.heads_from_first.value)
    assert first.edges_stability.value == pytest.approx(2 / 3)
    assert first.heads_stability.value == 1  # both hold L0H0 alone
    assert second.edges_from_previous.value == pytest.approx((0 + 2 / 4) / 2)
    assert second.heads_from_previous.value == pytest.approx((0 + 1 / 2) / 2)
    assert second.edges_stability.value == pytest.approx(1 / 4)
    assert third.edges_from_previous.value == pytest.approx((3 / 4 + 0) / 2)
    assert third.edges_from_first.value == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert third.edges_stability.value == third.heads_stability.value == 1
    assert math.isnan(third.edges_stability.low)  # a single pair


def test_the_same_edges_can_carry_other_heads_and_the_other_way_round():
    run = [snapshot(0, [[A, B, C]] * 3), snapshot(10, [[A, B]] * 3)]
    moved = turnover(run)[1]
    assert moved.edges_from_previous.value == pytest.approx(1 / 3)
    assert moved.heads_from_previous.value == 0


@pytest.mark.parametrize("chosen", [range(8), [1, 4, 6]])
def test_plain_sets_agree(chosen):
    run = large_run(checkpoints=5, emergent_share=0.4, base_share=0.4)
    frame = turnover_frame(turnover(run, np.array(chosen)))
    expected = plainly(run, chosen)
    pd.testing.assert_frame_equal(frame[expected.columns], expected)


def test_columns_and_ends():
    frame = turnover_frame(turnover(large_run(checkpoints=4)))
    names = [f"{kind}_{what}" for what in ("from_previous", "from_first", "stability")
             for kind in ("edges", "heads")]  # fmt: skip
    expected = {"step", *(name + end for name in names for end in ("", "_low", "_high"))}
    assert set(frame.columns) == expected
    later = frame.iloc[1:]
    for name in names:
        assert (later[f"{name}_low"] <= later[name]).all()
        assert (later[name] <= later[f"{name}_high"]).all()
        assert (later[f"{name}_low"] < later[f"{name}_high"]).any()


# -- intervals -------------------------------------------------------------------------------------


def test_the_bootstrap_leaves_out_a_probe_with_itself():
    """Four circuits without a common edge: with a probe against itself, draws would agree."""
    apart = [[("embed", f"L0H{head}.q")] for head in range(4)]
    stability = turnover([snapshot(0, apart)])[0].edges_stability
    assert (stability.value, stability.low, stability.high) == (0, 0, 0)


def test_the_bootstrap_of_stability_is_that_of_a_loop():
    run = [make_snapshot(0, {"L0H0": 5, "L1H1": 3, "L2H2": 2, "L0H3": 4}, probes=5)]
    found = turnover(run)[0].edges_stability
    sets = sets_of(run[0], "edges", range(5))
    drawn = []
    for counts in resampled_counts(5):
        members = np.repeat(np.arange(5), counts)
        pairs = [(i, j) for i, j in itertools.combinations(members.tolist(), 2) if i != j]
        drawn.append(np.nanmean([jaccard(sets[i], sets[j]) for i, j in pairs]) if pairs else np.nan)
    assert (found.low, found.high) == pytest.approx(np.nanpercentile(drawn, [2.5, 97.5]))


def test_the_interval_covers_the_mean_of_all_probes():
    """20 of many probes: the interval holds the mean over all in about 95 % of cases."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        stays = rng.random(20) < 0.5
        before = snapshot(0, [[A, B]] * 20)
        after = snapshot(10, [[A, B] if stay else [A, B, C, D] for stay in stays])
        moved = turnover([before, after])[1].edges_from_previous
        held += moved.low <= 0.25 <= moved.high
    assert held >= 88


# -- edges of the definition -----------------------------------------------------------------------


def test_empty_circuits_are_left_out():
    run = [snapshot(0, [[], [A, B], [A, B]]), snapshot(10, [[], [A, B], [A, B, C]])]
    _, later = turnover(run)
    assert later.edges_from_previous.value == pytest.approx((0 + 1 / 3) / 2)
    assert later.edges_stability.value == pytest.approx((0 + 0 + 2 / 3) / 3)
    nothing = turnover([snapshot(0, [[], []]), snapshot(10, [[], []])])[1]
    for name in ("edges_from_previous", "heads_from_first", "edges_stability", "heads_stability"):
        assert math.isnan(getattr(nothing, name).value)


def test_one_probe_has_turnover_and_no_interval():
    found = turnover([snapshot(0, [[A, B]]), snapshot(10, [[A, B, C]])])[1]
    assert found.edges_from_previous.value == pytest.approx(1 / 3)
    assert math.isnan(found.edges_from_previous.low)
    assert math.isnan(found.edges_stability.value)


def test_nothing_depends_on_a_later_snapshot():
    run = large_run(checkpoints=6, emergent_share=0.4)
    whole = turnover_frame(turnover(run))
    for stop in range(1, 6):
        pd.testing.assert_frame_equal(turnover_frame(turnover(run[:stop])), whole.iloc[:stop])
    meter = TurnoverMeter()
    live = [meter.add(one) for one in run]
    pd.testing.assert_frame_equal(turnover_frame(live), whole)


def test_only_the_first_and_the_last_are_kept():
    """The middle of a run does not matter for what comes after."""
    run = make_run({0: ["L0H0"], 10: ["L1H1"], 20: ["L0H0", "L2H2"], 30: ["L2H2"]})
    other = [run[0], make_snapshot(10, ["L0H3"]), *run[2:]]
    assert turnover(run)[3] == turnover(other)[3]
    assert isinstance(turnover(run)[3], Turnover)


def test_mistakes_are_told():
    run = make_run({0: ["L0H0"], 10: ["L0H0"]})
    with pytest.raises(SparksError, match=r"must come in order of step, got step 0 after 10: sort"):
        turnover(run[::-1])
    with pytest.raises(SparksError, match="at least one probe, got none"):
        turnover(run, np.zeros(0, dtype=int))
