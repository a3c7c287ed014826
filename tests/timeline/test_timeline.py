"""States, events and numbers of a timeline, against hand-worked cases and a slow second opinion."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import STORY, large_run, make_run, make_snapshot

from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.timeline.timeline import EVENT_KINDS, Event, Timeline


def names(mask: np.ndarray) -> set[str]:
    return {f"L{layer}H{head}" for layer, head in np.argwhere(mask)}


@pytest.fixture
def story() -> Timeline:
    return Timeline(make_run(STORY), name="story")


def test_synthetic_snapshots_are_consistent():
    """What other tests build on: edges exist, and totals follow from them."""
    for snapshot in [*make_run(STORY), *large_run(checkpoints=4), make_snapshot(0)]:
        rows = snapshot.graph.head_sources
        assert snapshot.graph.edge_mask[snapshot.edge_source, snapshot.edge_destination].all()
        assert ((snapshot.importance > 0) == snapshot.active).all()
        assert (snapshot.node_totals[:, rows] >= snapshot.importance).all()
        for probe in range(snapshot.num_probes):
            part = slice(*snapshot.edge_offsets[probe : probe + 2])
            score = np.abs(snapshot.edge_score[part])
            sums = np.bincount(
                snapshot.edge_source[part], weights=score, minlength=snapshot.graph.num_sources
            )
            np.testing.assert_allclose(sums[rows], snapshot.importance[probe], rtol=1e-5)
            assert (np.diff(score) <= 0).all()
            assert (score >= 0.1).all()


# -- states, by hand -------------------------------------------------------------------------


def test_base_is_what_is_active_at_the_first_checkpoint(story):
    assert names(story.base) == {"L0H0", "L0H1", "L1H0"}


def test_active_splits_into_emergent_and_retained(story):
    expected = {
        0: (set(), {"L0H0", "L0H1", "L1H0"}),
        10: ({"L1H1"}, {"L0H0", "L0H1"}),
        20: ({"L1H1", "L2H3"}, {"L0H0", "L1H0"}),
        30: ({"L2H3"}, {"L0H0", "L1H0"}),
        40: ({"L1H1", "L2H0"}, {"L0H0", "L1H0"}),
    }
    assert story.steps.tolist() == list(expected)
    for index, (emergent, retained) in enumerate(expected.values()):
        assert names(story.emergent[index]) == emergent
        assert names(story.retained[index]) == retained
        assert names(story.active[index]) == emergent | retained


def test_cohort_is_the_checkpoint_of_first_emergence(story):
    expected = np.full((3, 4), -1)
    expected[1, 1], expected[2, 3], expected[2, 0] = 1, 2, 4
    np.testing.assert_array_equal(story.cohort, expected)


def test_one_probe_is_enough_to_be_active_and_frequency_is_the_share():
    timeline = Timeline(
        make_run({0: {"L0H0": 4, "L0H1": 1}, 10: {"L0H0": 3}}, probes=4), rule="paper"
    )
    assert timeline.frequency[:, 0, :2].tolist() == [[1.0, 0.25], [0.75, 0.0]]
    assert timeline.active[:, 0, :2].tolist() == [[True, True], [True, False]]
    assert timeline.frequency.dtype == np.float32


# -- events, by hand -------------------------------------------------------------------------


def test_every_kind_of_event(story):
    frame = story.events()
    found = list(zip(frame["step"], frame["kind"], frame["head"], strict=True))
    assert found == [
        (10, "born", "L1H1"),
        (10, "silenced", "L1H0"),
        (20, "born", "L2H3"),
        (20, "returned", "L1H0"),
        (20, "silenced", "L0H1"),
        (30, "pruned", "L1H1"),
        (40, "born", "L2H0"),
        (40, "revived", "L1H1"),
        (40, "pruned", "L2H3"),
    ]
    assert set(frame["kind"]) == set(EVENT_KINDS)


def test_events_carry_place_cohort_and_values_of_their_checkpoint(story):
    frame = story.events().set_index(["step", "head"])
    assert frame.loc[(40, "L1H1"), ["layer", "index", "cohort"]].tolist() == [1, 1, 10]
    assert frame.loc[(30, "L1H1"), ["cohort", "frequency", "importance"]].tolist() == [10, 0, 0]
    assert pd.isna(frame.loc[(20, "L1H0"), "cohort"])
    assert frame.loc[(20, "L2H3"), "frequency"] == 1
    assert frame.loc[(20, "L2H3"), "importance"] == story.importance[2, 2, 3] > 0
    assert str(frame["cohort"].dtype) == "Int64"


def test_event_list_holds_the_same_as_records(story):
    records = story.event_list()
    assert [(event.step, event.kind, event.name) for event in records] == list(
        story.events()[["step", "kind", "head"]].itertuples(index=False, name=None)
    )
    first, second = records[:2]
    value = float(story.importance[1, 1, 1])
    assert first == Event(
        step=10,
        onset=10,
        layer=1,
        head=1,
        kind="born",
        cohort=10,
        frequency=1.0,
        importance=value,
        share=float(story.share[1, 1, 1]),
        share_low=float(story.share_low[1, 1, 1]),
        share_high=float(story.share_high[1, 1, 1]),
    )
    assert second.cohort is None
    assert type(first.step) is int
    assert type(first.cohort) is int


def test_a_head_that_is_active_once_is_born_and_pruned():
    timeline = Timeline(make_run({0: ["L0H0"], 1: ["L0H0", "L2H2"], 2: ["L0H0"], 3: ["L0H0"]}))
    frame = timeline.events()
    assert list(zip(frame["step"], frame["kind"], strict=True)) == [(1, "born"), (2, "pruned")]


def test_nothing_changes_nothing_happens():
    timeline = Timeline(make_run({0: ["L0H0"], 1: ["L0H0"], 2: ["L0H0"]}))
    assert timeline.events().empty
    assert list(timeline.events().columns) == list(Timeline(make_run(STORY)).events().columns)
    assert timeline.event_list() == []
    assert timeline.cohorts().shape == (3, 0)


def test_states_and_events_agree_with_a_head_by_head_second_opinion():
    rng = np.random.default_rng(7)
    graph = Graph(num_layers=4, num_heads=6, num_kv_heads=3)
    heads = [f"L{layer}H{head}" for layer in range(4) for head in range(6)]
    plan = {step: [h for h in heads if rng.random() < 0.4] for step in range(0, 300, 25)}
    timeline = Timeline(make_run(plan, graph=graph))
    expected, cohorts = [], {}
    for head in heads:
        base, before, ever = head in plan[0], head in plan[0], False
        for step in list(plan)[1:]:
            now = head in plan[step]
            if now and not before:
                kind = "returned" if base else "revived" if ever else "born"
                expected.append((step, head, kind))
                ever = True
                if kind == "born":
                    cohorts[head] = step
            if before and not now:
                expected.append((step, head, "silenced" if base else "pruned"))
            before = now
    frame = timeline.events()
    found = list(zip(frame["step"], frame["head"], frame["kind"], strict=True))
    assert len(found) == len(set(found)) > 100
    assert set(found) == set(expected)
    steps = timeline.heads().set_index("head")["cohort_step"].dropna()
    assert steps.to_dict() == cohorts


# -- counts, cohorts, heads ------------------------------------------------------------------


def test_counts_by_hand(story):
    counts = story.counts()
    expected = {
        "step": [0, 10, 20, 30, 40],
        "active": [3, 3, 4, 3, 4],
        "base": [3, 3, 3, 3, 3],
        "emergent": [0, 1, 2, 1, 2],
        "retained": [3, 2, 2, 2, 2],
        "born": [0, 1, 1, 0, 1],
        "pruned": [0, 0, 0, 1, 1],
        "revived": [0, 0, 0, 0, 1],
        "silenced": [0, 1, 1, 0, 0],
        "returned": [0, 0, 1, 0, 0],
    }
    for name, values in expected.items():
        assert counts[name].tolist() == values, name
    assert (counts["emergent"] + counts["retained"]).equals(counts["active"])


def test_emergent_heads_are_what_was_born_and_revived_less_what_was_pruned():
    counts = Timeline(large_run(checkpoints=20, seed=3), rule="paper").counts()
    change = counts["born"] + counts["revived"] - counts["pruned"]
    assert counts["emergent"].tolist() == change.cumsum().tolist()
    change = counts["returned"] - counts["silenced"]
    assert counts["retained"].tolist() == (counts["base"] + change.cumsum()).tolist()


def test_measurements_of_a_checkpoint_by_hand():
    first = make_snapshot(0, {"L0H0": 1}, probes=2, gap=[0.01, 0.03], seconds=2.0)
    second = make_snapshot(10, {"L0H0": 2}, probes=2, gap=[np.nan, 0.5], peak_memory_gib=1.5)
    first = replace(first, loss_corrupted=np.array([1.0, 2.0], dtype=np.float32))
    counts = Timeline([first, second]).counts()
    assert counts["edges"].tolist() == [1.0, 2.0]  # embed -> L0H0.q and L0H0 -> logits a probe
    assert counts["loss_corrupted"][0] == 1.5
    assert counts["completeness_gap_median"].tolist() == pytest.approx([0.02, 0.5])
    assert counts["completeness_gap_max"].tolist() == pytest.approx([0.03, 0.5])
    assert counts["seconds"].tolist() == [2.0, 1.5]
    assert counts["peak_memory_gib"].tolist() == [0.25, 1.5]


def test_gaps_that_are_no_numbers():
    gaps = [np.inf, np.nan, 0.1, 0.2]
    counts = Timeline(
        [make_snapshot(step, probes=4, gap=gap) for step, gap in ((0, np.nan), (1, gaps))]
    ).counts()
    assert np.isnan(counts.loc[0, ["completeness_gap_median", "completeness_gap_max"]]).all()
    assert counts["completeness_gap_median"][1] == pytest.approx(0.2)
    assert counts["completeness_gap_max"][1] == np.inf


def test_cohorts_by_hand(story):
    cohorts = story.cohorts()
    assert cohorts.columns.tolist() == [10, 20, 40]
    assert cohorts.index.tolist() == [0, 10, 20, 30, 40]
    assert cohorts.to_numpy().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert (cohorts.index.name, cohorts.columns.name) == ("step", "cohort")
    assert cohorts.sum(axis=1).tolist() == story.counts()["emergent"].tolist()


def test_heads_by_hand(story):
    heads = story.heads().set_index("head")
    assert len(heads) == 12
    columns = ["layer", "index", "base", "cohort_step", "births", "prunings"]
    columns += ["checkpoints_active", "active_at_end"]
    assert heads.loc["L1H1", columns].tolist() == [1, 1, False, 10, 2, 1, 3, True]
    assert heads.loc["L2H3", columns].tolist() == [2, 3, False, 20, 1, 1, 2, False]
    assert heads.loc["L2H0", columns].tolist() == [2, 0, False, 40, 1, 0, 1, True]
    base = heads.loc["L1H0", columns].tolist()
    assert (base[:3], base[4:]) == ([1, 0, True], [0, 0, 4, True])
    assert heads["cohort_step"].isna().sum() == 9
    assert str(heads["cohort_step"].dtype) == "Int64"
    assert heads.loc["L1H1", "frequency_mean"] == pytest.approx(3 / 5)
    assert heads.loc["L0H0", "importance_first"] == story.importance[0, 0, 0]
    assert heads.loc["L0H0", "importance_last"] == story.importance[-1, 0, 0]


# -- importance and effect, by hand ----------------------------------------------------------


@pytest.fixture
def weighed() -> Timeline:
    """Planted sums of |score|; 4 probes hold each head unless said."""
    plant = [
        (0, {"L0H0": 4, "L0H1": 4}, {"L0H0": 3.0, "L0H1": 1.0}),  # I = 3/4, 1/4
        (10, {"L0H0": 4, "L1H1": 2}, {"L0H0": 1.0, "L1H1": 6.0}),  # sums 4 and 12: I = 1/4, 3/4
        (20, {"L0H0": 1}, {"L0H0": 0.2}),  # alone: I = 1
        (30, {}, {}),  # nothing kept
    ]
    run = [make_snapshot(s, heads, importance=sums, probes=4) for s, heads, sums in plant]
    return Timeline(run, rule="paper")


def test_importance_is_the_share_over_heads_and_probes(weighed):
    expected = np.zeros((4, 3, 4))
    expected[0, 0, :2] = 0.75, 0.25
    expected[1, 0, 0], expected[1, 1, 1] = 0.25, 0.75
    expected[2, 0, 0] = 1.0
    np.testing.assert_allclose(weighed.importance, expected, rtol=1e-6, atol=0)
    assert weighed.importance.dtype == np.float32
    assert weighed.problems == ()


def test_effect_is_measured_against_the_first_checkpoint(weighed):
    expected = np.zeros((4, 3, 4))
    expected[1, 0, 0] = -0.5 / (1 + 1e-6)
    expected[1, 0, 1] = -0.25 / (0.25 + 1e-6)
    expected[1, 1, 1] = 0.75 / (0.75 + 1e-6)
    expected[2, 0, 0] = 0.25 / (1.75 + 1e-6)
    expected[2, 0, 1] = -0.25 / (0.25 + 1e-6)
    expected[3, 0, 0] = -0.75 / (0.75 + 1e-6)
    expected[3, 0, 1] = -0.25 / (0.25 + 1e-6)
    np.testing.assert_allclose(weighed.effect(), expected, rtol=1e-6, atol=0)
    means = weighed.heads().set_index("head")["effect_mean"]
    assert means["L0H0"] == pytest.approx((-1 / 2 + 1 / 7 - 1) / 3, abs=1e-5)
    assert means["L0H1"] == pytest.approx(-1, abs=1e-5)
    assert means["L1H1"] == pytest.approx(1 / 3, abs=1e-5)
    assert means["L2H3"] == 0


def test_importance_frame_holds_every_checkpoint_and_head(weighed):
    frame = weighed.importance_frame()
    assert len(frame) == 4 * 12
    row = frame[(frame["step"] == 10) & (frame["head"] == "L1H1")].iloc[0]
    assert (row["layer"], row["index"]) == (1, 1)
    assert row["frequency"] == 0.5
    assert row["importance"] == pytest.approx(0.75)
    assert bool(row["active"])
    assert bool(row["emergent"])
    assert frame["active"].sum() == weighed.active.sum()


def test_component_totals_by_hand():
    graph = Graph(num_layers=1, num_heads=2, num_kv_heads=1)
    run = []
    for step, totals in ((0, [2, 1, 3, 4]), (10, [1, 0, 1, 8])):  # embed, L0H0, L0H1, L0MLP
        snapshot = make_snapshot(step, graph=graph, probes=2)
        node_totals = np.array([totals, totals], dtype=np.float32)
        run.append(replace(snapshot, node_totals=node_totals))
    frame = Timeline(run).component_totals()
    assert frame["component"].tolist() == ["embed", "attention", "mlp"] * 2
    assert frame["step"].tolist() == [0, 0, 0, 10, 10, 10]
    assert frame["layer"].isna().tolist() == [True, False, False] * 2
    assert frame["share"].tolist() == pytest.approx([0.2, 0.4, 0.4, 0.1, 0.1, 0.8])
    effect = [0, 0, 0, -0.1 / 0.3, -0.3 / 0.5, 0.4 / 1.2]
    assert frame["effect"].tolist() == pytest.approx(effect, abs=1e-5)


def test_component_totals_keep_layers_apart():
    frame = Timeline(large_run(checkpoints=3)).component_totals()
    assert len(frame) == 3 * (1 + 2 * 3)
    np.testing.assert_allclose(frame.groupby("step")["share"].sum(), 1)
    snapshot = large_run(checkpoints=3)[0]
    rows = [snapshot.graph.sources.index(f"L1H{head}") for head in range(4)]
    share = snapshot.node_totals[:, rows].sum() / snapshot.node_totals.sum()
    chosen = frame[(frame["step"] == 0) & (frame["component"] == "attention")]
    assert chosen.set_index("layer").loc[1, "share"] == pytest.approx(share)


def test_scores_that_are_not_finite_are_said_not_spread():
    good, bad = make_run({0: ["L0H0"], 10: ["L0H0"]})
    importance = bad.importance.copy()
    importance[0, 0, 0] = np.nan
    totals = np.full_like(bad.node_totals, np.inf)
    timeline = Timeline([good, replace(bad, importance=importance, node_totals=totals)])
    assert timeline.problems == ("scores are not finite at step 10: importance there reads 0",)
    assert (timeline.importance[1] == 0).all()
    assert timeline.importance[0].sum() == pytest.approx(1)
    assert np.isfinite(timeline.component_totals()[["share", "effect"]]).all(axis=None)


# -- size and imports ------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "events"), [("paper", 80_000), ("growth", 0)])
def test_a_large_run_is_quick(rule, events):
    graph = Graph(num_layers=80, num_heads=64, num_kv_heads=8)
    rng = np.random.default_rng(0)
    blank, run = make_snapshot(0, graph=graph, grid=False), []
    chance = rng.choice([0.01, 0.5, 0.99], (80, 64))
    for step in range(200):
        active = rng.random((16, 80, 64)) < chance
        meta = replace(blank.meta, step=step)
        importance = active.astype(np.float32)
        run.append(replace(blank, meta=meta, active=active, importance=importance))
    start = time.perf_counter()
    timeline = Timeline(run, rule=rule)
    frames = [timeline.counts(), timeline.cohorts(), timeline.events(), timeline.heads()]
    assert time.perf_counter() - start < 30  # about 1 s on two slow cores
    assert len(frames[2]) >= events


def test_reading_a_timeline_needs_no_torch():
    code = (
        "import sys, sparks.timeline.timeline, sparks.views.text.timeline\n"
        "heavy = {'torch', 'transformers', 'trl', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    path = [str(entry) for entry in sys.path if entry]
    command = f"import sys; sys.path[:0] = {path!r}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_heads_of_a_circuit_are_counted_probe_by_probe():
    run = make_run({0: {"L0H0": 4}, 10: {"L0H0": 4, "L1H1": 2}, 20: {"L0H0": 3}}, probes=4)
    counts = Timeline(run).counts()
    assert counts["circuit_heads"].tolist() == [1.0, 1.5, 0.75]
    assert counts["circuit_growth"].tolist() == [0.0, 0.5, -0.25]
    assert (counts["circuit_growth_low"] <= counts["circuit_growth"]).all()
    assert counts["circuit_growth_high"].tolist()[1] == 1.0
    assert counts.loc[0, ["circuit_heads_low", "circuit_heads_high"]].tolist() == [1.0, 1.0]


def test_an_unknown_kind_of_event_is_refused_with_those_that_there_are(story):
    with pytest.raises(SparksError, match=f"kind must be one of {', '.join(EVENT_KINDS)}, got 'b"):
        story.changes("borned")
