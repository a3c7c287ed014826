"""A run that grows: what lands is added, nothing is done twice, and nothing differs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import STORY, large_run, make_run, make_snapshot, write_run
from tiny_training import PROBES
from transformers import TrainerState

from sparks.attribution.snapshot import Snapshot
from sparks.cli import main
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.runs.run_folder import RunStore
from sparks.timeline import history as run_history
from sparks.timeline.growth import rule as growth
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.history import History
from sparks.timeline.regimes import turnover
from sparks.timeline.regimes.regime import circuit_turnover
from sparks.timeline.regimes.turnover import TurnoverMeter
from sparks.timeline.timeline import EVENT_KINDS, RULES, Rule, Timeline
from sparks.training.recorder import Recorder
from sparks.views.live.follower import RunFollower
from sparks.views.live.terminal import watch
from sparks.views.report.data import run_data

GROUPS = [*["sums"] * 12, *["apples"] * 12, *["control"] * 12]
ARRAYS = (
    "steps", "frequency", "importance", "share",
    "active", "undecided", "base", "emergent", "retained", "cohort", "loss", "too_little",
)  # fmt: skip
FRAMES = ("counts", "growth", "events", "cohorts", "heads", "importance_frame", "component_totals")


@pytest.fixture(scope="module")
def run() -> list[Snapshot]:
    """Births, prunings and heads that cannot be told, on three groups of probes."""
    rng = np.random.default_rng(3)
    graph = Graph(num_layers=4, num_heads=6, num_kv_heads=2)
    names = [f"L{layer}H{head}" for layer in range(4) for head in range(6)]
    share = rng.uniform(0, 1, len(names))
    found = []
    for index in range(9):
        share = np.where(rng.random(len(names)) < 0.15, rng.uniform(0, 1, len(names)), share)
        held = dict(zip(names, np.rint(share * 36).astype(int).tolist(), strict=True))
        found.append(make_snapshot(index * 10, held, graph=graph, groups=GROUPS))
    return [with_shuffled_probes(snapshot, index) for index, snapshot in enumerate(found)]


def with_shuffled_probes(snapshot: Snapshot, seed: int) -> Snapshot:
    """Which probes hold a head differs from head to head, and from checkpoint to checkpoint."""
    rng = np.random.default_rng(seed)
    for held in (snapshot.active, *snapshot.grid_active):
        held[:] = rng.permuted(held, axis=0)
    return snapshot


def assert_equal(found: Timeline, expected: Timeline, *, page: bool = False) -> None:
    """To the bit: arrays, frames, circuits; with `page` all that a report is given."""
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("undated", "onset"):
        one, other = (getattr(timeline.states, name) for timeline in (found, expected))
        np.testing.assert_array_equal(one, other, err_msg=name)
    for kind in EVENT_KINDS:
        np.testing.assert_array_equal(found.changes(kind), expected.changes(kind), err_msg=kind)
    for name in FRAMES:
        frames = (getattr(timeline, name)() for timeline in (found, expected))
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert repr(circuit_turnover(found)) == repr(circuit_turnover(expected))
    assert found.problems == expected.problems
    if page:
        assert run_data(found) == run_data(expected)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of the snapshot files that are read from here on."""
    found, load = list[int](), RunStore.load
    monkeypatch.setattr(RunStore, "load", lambda self, step: found.append(step) or load(self, step))
    return found


def counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[str]:
    """Filled by each call from here on."""
    calls, work = list[str](), getattr(where, name)
    monkeypatch.setattr(where, name, lambda *a, **k: calls.append(name) or work(*a, **k))
    return calls


# -- equal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", [None, "apples"])
def test_a_timeline_that_grew_equals_one_that_was_built_at_once(run, tmp_path, rule, group):
    follower = RunFollower(tmp_path, group=group, rule=rule)
    for index, snapshot in enumerate(run):
        write_run(tmp_path, [snapshot])
        follower.poll()
        grown = follower.timeline()
        if index in (0, 1, 4, len(run) - 1):
            whole = Timeline(run[: index + 1], name=grown.name, group=group, rule=rule)
            assert_equal(grown, whole, page=index > 4)
    assert whole.changes("born").any() or group  # 12 probes settle little
    assert grown.undecided.any() == (rule == "growth")
    if group is None:
        assert_equal(grown.control, whole.control)
    assert_equal(Timeline.from_run(tmp_path, group=group, rule=rule), whole)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dark", [(0, 1, 5), (3, 4, 8), range(9)])
def test_so_does_one_where_l_is_too_little(run, tmp_path, rule, dark):
    dim = [with_loss(snapshot, 0.01) if i in dark else snapshot for i, snapshot in enumerate(run)]
    follower = RunFollower(tmp_path, rule=rule)
    for index, snapshot in enumerate(dim):
        write_run(tmp_path, [snapshot])
        follower.poll()
        grown = follower.timeline()
        assert_equal(grown, Timeline(dim[: index + 1], name=grown.name, rule=rule), page=index > 7)
    assert np.flatnonzero(grown.too_little).tolist() == list(dark)
    gained = grown.counts()["circuit_growth"].to_numpy()
    assert np.isnan(gained).tolist() == [0 in dark or index in dark for index in range(9)]
    bare = Timeline(grown.snapshots, rule=rule, growth_config=GrowthConfig(least_loss=0))
    expected = plain_states(run, rule)["active"]
    np.testing.assert_array_equal(bare.active, expected)  # another floor on the same numbers
    assert np.isfinite(bare.counts()["circuit_growth"]).all()


def with_loss(snapshot: Snapshot, loss: float) -> Snapshot:
    """The same circuits with this L, of all probes."""
    return replace(snapshot, loss_corrupted=np.full(snapshot.num_probes, loss, np.float32))


@pytest.mark.parametrize("rule", RULES)
def test_a_timeline_stays_what_it_was_when_the_run_goes_on(run, rule: Rule):
    history, early = History.of(run[:1]), list[Timeline]()
    for snapshot in run[1:]:
        early.append(Timeline(history, rule=rule))
        history = history.extended(snapshot)
    for count, timeline in enumerate(early, start=1):
        for found in (timeline, Timeline(history[:count], rule=rule)):
            assert_equal(found, Timeline(run[:count], rule=rule))
            assert_equal(found.by("paper"), Timeline(run[:count], rule="paper"))


def test_two_runs_may_go_on_from_one(run):
    begun = History.of(run[:4])
    one, other = begun.extended(run[4]), begun.extended(run[6])
    assert_equal(Timeline(one), Timeline(run[:5]))
    assert_equal(Timeline(other), Timeline([*run[:4], run[6]]))


def plain_states(run: Sequence[Snapshot], rule: Rule) -> dict[str, np.ndarray]:
    """The definitions, over all checkpoints at once."""
    chosen = [index for index, name in enumerate(GROUPS) if name != "control"]
    active = np.stack([snapshot.active[chosen].any(axis=0) for snapshot in run])
    turned = np.zeros(active.shape, dtype=np.int8)
    turned[1:] = active[1:].astype(np.int8) - active[:-1]
    old = active[0]
    if rule == "growth":
        sources = run[0].graph.head_sources.ravel()
        totals = np.stack([snapshot.node_totals[chosen][:, sources] for snapshot in run])
        found = growth.growth(totals, np.ones(totals.shape[:2]))
        active, turned = (part.reshape(active.shape) for part in (found.inside, found.change))
        old = active[0]
    new = (turned > 0) & ~old
    cohort = np.where(new.any(axis=0), new.argmax(axis=0), -1)
    times = np.arange(len(run))[:, None, None]
    return {
        "active": active,
        "base": active[0],
        "cohort": cohort,
        "emergent": active & (cohort >= 0) & (times >= cohort),
        "retained": active & active[0],
        "born": new & (times == cohort),
        "revived": new & (times != cohort),
        "pruned": (turned < 0) & ~old,
        "returned": (turned > 0) & old,
        "silenced": (turned < 0) & old,
        "undated": old & ~active[0],
    }


@pytest.mark.parametrize("rule", RULES)
def test_states_are_those_of_the_definitions(run, rule: Rule):
    states = Timeline(run, rule=rule).states
    for name, expected in plain_states(run, rule).items():
        found = states.changes[name] if name in EVENT_KINDS else getattr(states, name)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_checkpoint_that_comes_late_is_replaced_or_goes_finds_its_place(
    run, tmp_path, monkeypatch
):
    other = with_shuffled_probes(make_snapshot(30, ["L1H1"], graph=run[0].graph, groups=GROUPS), 99)
    write_run(tmp_path, [run[0], run[3], run[6]])
    read, follower = reads(monkeypatch), RunFollower(tmp_path)

    def poll(*expected: Snapshot) -> None:
        follower.poll()
        assert_equal(follower.timeline(), Timeline(expected, name=tmp_path.name))

    poll(run[0], run[3], run[6])
    read.clear()
    write_run(tmp_path, [run[4]])
    follower.poll()
    timeline = follower.timeline()
    assert timeline.counts()["step"].tolist() == [0, 30, 40, 60]
    assert read == [40]
    poll(run[0], run[3], run[4], run[6])
    write_run(tmp_path, [other])
    poll(run[0], other, run[4], run[6])
    RunStore(tmp_path).file(40).unlink()
    poll(run[0], other, run[6])
    write_run(tmp_path, [run[1], run[8]])
    poll(run[0], run[1], other, run[6], run[8])


def test_one_snapshot_without_a_grid_and_all_are_counted_by_their_one_setting(tmp_path):
    run = make_run(STORY)
    plain = [*run[:2], make_snapshot(20, STORY[20], grid=False), *run[3:]]
    follower = RunFollower(write_run(tmp_path, plain[:2]))
    follower.poll()
    assert follower.timeline().snapshots.settings == 9
    for snapshot in plain[2:]:
        write_run(tmp_path, [snapshot])
        follower.poll()
    assert follower.timeline().snapshots.settings == 1
    assert_equal(follower.timeline(), Timeline(plain, name=tmp_path.name))
    RunStore(tmp_path).file(20).unlink()
    follower.poll()
    assert follower.timeline().snapshots.settings == 9
    rest = [*plain[:2], *plain[3:]]
    assert_equal(follower.timeline(), Timeline(rest, name=tmp_path.name))


def test_what_does_not_fit_is_refused_and_forgotten_once_it_is_gone(tmp_path):
    run = make_run(STORY)
    follower = RunFollower(write_run(tmp_path, run[:3]))
    follower.poll()
    before = follower.timeline()
    large = Graph(num_layers=5, num_heads=4, num_kv_heads=2)
    write_run(tmp_path, [make_snapshot(25, ["L4H0"], graph=large)])
    follower.poll()
    with pytest.raises(SparksError, match="the same graph"):
        follower.timeline()
    assert_equal(before.by("paper"), Timeline(run[:3], name=tmp_path.name, rule="paper"))
    RunStore(tmp_path).file(25).unlink()
    write_run(tmp_path, run[3:])
    follower.poll()
    assert_equal(follower.timeline(), Timeline(run, name=tmp_path.name))


# -- two runs in one folder ---------------------------------------------------------------------

A, B = "a" * 16, "b" * 16


def of_run(run_id: str, *snapshots: Snapshot) -> list[Snapshot]:
    return [replace(one, meta=replace(one.meta, run_id=run_id)) for one in snapshots]


def test_snapshots_of_another_run_are_named_and_left_out_as_they_land(run, tmp_path, monkeypatch):
    """As `RunStore.read` does at once: whichever run comes first, and when the most change."""
    follower = RunFollower(tmp_path)

    def lands(*snapshots: Snapshot, kept: list[int], left: list[int]) -> None:
        write_run(tmp_path, snapshots)
        found, contents = follower.poll(), RunStore(tmp_path).read()
        grown = follower.timeline()
        assert grown.steps.tolist() == kept
        assert contents.strangers == tuple(left)
        assert grown.problems[: len(contents.problems)] == contents.problems
        assert (f"(steps {', '.join(map(str, left))})" in "".join(grown.damage)) == bool(left)
        assert_equal(grown, Timeline.from_run(tmp_path))
        landed.append(found.landed)

    landed = list[tuple[int, ...]]()
    lands(*of_run(A, run[0]), kept=[0], left=[])
    lands(*of_run(B, run[1]), kept=[0], left=[10])
    read = reads(monkeypatch)
    write_run(tmp_path, of_run("", run[2]))
    follower.poll()
    assert read == [20]
    lands(*of_run(B, run[3]), kept=[10, 20, 30], left=[0])  # the most are of B by now
    lands(*of_run(A, run[4], run[5]), kept=[0, 20, 40, 50], left=[10, 30])
    RunStore(tmp_path).go_on(B, "")  # says which one it is
    lands(kept=[10, 20, 30], left=[0, 40, 50])
    for step in (0, 40, 50):
        RunStore(tmp_path).file(step).unlink()
    lands(kept=[10, 20, 30], left=[])
    assert follower.problems == ()
    assert landed == [(0,), (), (10, 30), (0, 40, 50), (10, 30), ()]


def test_the_first_look_at_two_runs(run, tmp_path):
    write_run(tmp_path, [*of_run(B, run[0]), *of_run(A, *run[1:4]), *of_run("", run[4])])
    follower = RunFollower(tmp_path)
    (line,) = follower.poll().problems
    assert line.startswith(f"{tmp_path}: left out 1 snapshots of another run than {A} (steps 0)")
    assert follower.timeline().damage == (line,)
    assert_equal(follower.timeline(), Timeline.from_run(tmp_path))
    kept = of_run(A, *run[1:5])
    assert_equal(follower.timeline(), Timeline(kept, name=tmp_path.name, problems=[line]))
    assert follower.poll() is None


# -- read and worked out once -----------------------------------------------------------------


def test_commands_read_each_snapshot_once(run, tmp_path, monkeypatch, capsys):
    steps = [snapshot.step for snapshot in run]
    write_run(tmp_path, run)
    read = reads(monkeypatch)
    for command in ("timeline", "report"):
        read.clear()
        assert main([command, str(tmp_path)]) == 0
        assert read == steps, command
    read.clear()
    watch(tmp_path, once=True, out=io.StringIO())
    assert read == steps
    read.clear()
    main(["timeline", str(tmp_path), "--format", "csv"])
    assert read == steps


def landing(tmp_path: Path, run: Sequence[Snapshot]) -> Iterator[RunFollower]:
    """A follower before and after the last snapshot landed."""
    follower = RunFollower(write_run(tmp_path, run[:-1]))
    follower.poll()
    run_data(follower.timeline())
    yield follower
    write_run(tmp_path, run[-1:])
    follower.poll()
    run_data(follower.timeline())
    yield follower


WORK: list[tuple[Any, str, int]] = [
    (RunStore, "load", 1),
    (run_history, "checkpoint", 2),  # the control probes too
    (run_history, "circuit_heads", 2),
    (growth, "log_shares", 2),
    (TurnoverMeter, "add", 1),
]


@pytest.mark.parametrize(("where", "name", "most"), WORK)
def test_a_landing_does_not_read_or_work_out_earlier_snapshots(
    run, tmp_path, monkeypatch, where, name, most
):
    """However long the run: so the cost of a run grows with its length."""
    steps = landing(tmp_path, run)
    calls = counted(monkeypatch, where, name)
    next(steps)
    assert len(calls) >= most * (len(run) - 1)
    calls.clear()
    next(steps)
    assert len(calls) == most


@pytest.mark.parametrize("rule", RULES)
def test_a_landing_in_training_costs_no_more_than_in_watch(run, tmp_path, monkeypatch, rule):
    recorder = Recorder(PROBES, SnapshotConfig(), RunStore(tmp_path), progress=False)
    state = TrainerState()

    def land(*snapshots: Snapshot) -> None:
        for snapshot in snapshots:
            recorder._keep(snapshot, state)
            run_data(recorder._timeline(state).by(rule))

    land(*run[:-1])
    kinds = [(run_history, "checkpoint"), (growth.GrowthRule, "add"), (TurnoverMeter, "add")]
    calls = [counted(monkeypatch, where, name) for where, name in kinds]
    read = reads(monkeypatch)
    land(run[-1])
    assert [len(found) for found in calls] == [2, 2, 1]  # the control probes too
    assert read == []
    whole = Timeline(run, name=tmp_path.name, rule=rule)
    assert_equal(recorder._timeline(state).by(rule), whole, page=True)


def test_snapshots_in_files_are_let_go(run, tmp_path):
    """But for the first and the last two, whose circuits views compare."""
    history, contents = History.read(RunStore(write_run(tmp_path, run)))
    assert contents.problems == ()
    held = [history[index] is history[index] for index in range(len(run))]
    assert held == [True, *[False] * (len(run) - 3), True, True]


def test_a_file_that_goes_while_it_is_needed_is_named(run, tmp_path):
    timeline = Timeline.from_run(write_run(tmp_path, run))
    RunStore(tmp_path).file(40).unlink()
    with pytest.raises(SparksError, match="has no snapshot of step 40"):
        circuit_turnover(timeline)


# -- many probes -------------------------------------------------------------------------------


def pairs_looked_at(monkeypatch: pytest.MonkeyPatch, probes: int) -> int:
    """By stability, of edges and heads of one checkpoint."""
    sizes = list[int]()
    work = turnover._shared
    with monkeypatch.context() as patched:
        patched.setattr(turnover, "_shared", lambda c: sizes.append(len(c) ** 2) or work(c))
        TurnoverMeter().add(make_snapshot(0, ["L0H0", "L1H1"], probes=probes))
    return sum(sizes)


def test_stability_looks_at_as_many_pairs_a_probe_however_many_there_are(monkeypatch):
    assert pairs_looked_at(monkeypatch, 64) == 2 * 64**2  # all of them
    for probes in (65, 128, 1000):
        assert pairs_looked_at(monkeypatch, probes) <= 2 * 64 * probes


def test_stability_of_many_probes_is_that_of_all_pairs_but_for_sampling():
    (snapshot,) = large_run(checkpoints=1, probes=200)
    found = TurnoverMeter().add(snapshot).heads_stability
    held = snapshot.active.reshape(200, -1).astype(np.float64)
    shared = held @ held.T
    union = held.sum(axis=1)[:, None] + held.sum(axis=1) - shared
    couples = itertools.combinations(range(200), 2)
    pairs = [shared[pair] / union[pair] for pair in couples if union[pair]]
    assert found.value == pytest.approx(np.mean(pairs), abs=0.02)
    assert found.low < np.mean(pairs) < found.high
