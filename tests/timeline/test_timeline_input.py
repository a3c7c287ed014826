"""What may stand on one timeline, what is refused and how, the trainer's log, reading a folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import STORY, make_metrics, make_run, make_snapshot, write_run

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline


def names(mask: np.ndarray) -> set[str]:
    return {f"L{layer}H{head}" for layer, head in np.argwhere(mask)}


@pytest.fixture
def story() -> Timeline:
    return Timeline(make_run(STORY), name="story")


# -- groups ----------------------------------------------------------------------------------


def test_a_group_counts_only_its_probes():
    groups = ["math", "math", "trivia", ""]
    held = {0: {"L0H0": 4}, 10: {"L0H0": 4, "L1H1": 2, "L2H2": 3}}
    run = make_run(held, groups=groups, gap=[0.1, 0.2, 0.3, 0.4])
    everyone = Timeline(run, rule="paper")
    assert everyone.groups == ("", "math", "trivia")
    assert everyone.num_probes == 4
    math = Timeline(run, group="math", rule="paper")
    assert (math.group, math.probe_ids) == ("math", ("probe-1", "probe-2"))
    assert math.frequency[1, 1, 1] == 1
    assert math.counts()["completeness_gap_max"].tolist() == pytest.approx([0.2, 0.2])
    trivia = Timeline(run, group="trivia", rule="paper")
    assert names(trivia.active[1]) == {"L0H0", "L2H2"}
    assert trivia.counts()["edges"][1] == np.diff(run[1].edge_offsets)[2]
    assert Timeline(run, group="").num_probes == 1


def test_numbers_of_a_group_come_from_its_probes_alone():
    snapshot = make_snapshot(0, {"L0H0": 3, "L2H2": 4}, groups=["a", "a", "b", "b"])
    alone = Timeline([snapshot], group="b")
    kept = snapshot.importance[2:].sum(axis=0)
    np.testing.assert_allclose(alone.importance[0], kept / kept.sum(), rtol=1e-6)
    loss = snapshot.loss_corrupted[2:].mean(dtype=np.float64)
    assert alone.counts()["loss_corrupted"].tolist() == pytest.approx([loss])
    totals = snapshot.node_totals[2:].sum(axis=0, dtype=np.float64)
    share = alone.component_totals().set_index("component").loc["embed", "share"]
    assert share == pytest.approx(totals[0] / totals.sum())
    everyone = Timeline([snapshot])
    assert not np.allclose(alone.importance, everyone.importance)


def test_an_unknown_group_lists_the_known(story):
    with pytest.raises(SparksError, match=r"group must be one of .*\(''\), got 'math'"):
        Timeline(make_run(STORY), group="math")


def test_groups_that_differ_between_snapshots_are_refused_only_when_used():
    run = [
        make_snapshot(0, groups=["a", "a", "b", "b"]),
        make_snapshot(10, groups=["a", "b", "b", "b"]),
    ]
    assert len(Timeline(run)) == 2
    with pytest.raises(
        SparksError, match=r"same probes in group 'a', got probes 0, 1 .*at step 0; probes 0 .*10"
    ):
        Timeline(run, group="a")


# -- refusals --------------------------------------------------------------------------------


def test_no_snapshots():
    with pytest.raises(SparksError, match="needs at least one snapshot, got none: take one with"):
        Timeline([])


def test_snapshots_without_probes():
    with pytest.raises(SparksError, match="needs probes, got snapshots without any"):
        Timeline([replace(make_snapshot(0, probes=1), **_no_probes())])


def _no_probes() -> dict:
    empty = make_snapshot(0, probes=1)
    arrays = {
        name: getattr(empty, name)[:0]
        for name in (
            "importance",
            "active",
            "node_totals",
            "loss_corrupted",
            "loss_circuit",
            "completeness_gap",
            "edge_source",
            "edge_destination",
            "edge_score",
            "points",
        )
    }
    return arrays | {
        "grid": (),
        "grid_active": None,
        "probe_ids": (),
        "probe_groups": (),
        "edge_offsets": np.zeros(1, dtype=np.int64),
    }


def test_two_snapshots_of_one_step():
    with pytest.raises(SparksError, match="one snapshot a step, got several of step 10: keep one"):
        Timeline([make_snapshot(0), make_snapshot(10), make_snapshot(10, seed=1)])


def test_different_probes_name_their_steps():
    run = [*make_run({0: [], 10: []}), make_snapshot(20, probes_hash="other")]
    with pytest.raises(
        SparksError,
        match=r"same probes, got 16 of hash 'probes-16' at steps 0, 10; 16 of hash 'other' at",
    ):
        Timeline(run)


def test_a_different_number_of_probes_under_one_hash():
    run = [make_snapshot(0), make_snapshot(10, probes=3, probes_hash="probes-16")]
    with pytest.raises(SparksError, match=r"same probes, got 16 of .* at step 0; 3 of"):
        Timeline(run)


def test_different_graphs_name_their_steps():
    other = make_snapshot(10, graph=Graph(num_layers=3, num_heads=4, num_kv_heads=1))
    with pytest.raises(
        SparksError, match=r"same graph, got .*kv_heads=2,.* at step 0; .*=1,.* at st"
    ):
        Timeline([make_snapshot(0), other])


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("points", 20, "points=4 at step 0; points=20 at step 10"),
        ("top_share", 0.5, "top_share=None at step 0; top_share=0.5 at step 10"),
        ("quadrature", "left", "quadrature='midpoint' at step 0; quadrature='left' at step 10"),
        ("threshold", 0.2, "threshold=0.1 at step 0; threshold=0.2 at step 10"),
    ],
)
def test_different_settings_name_setting_values_and_steps(setting, value, text):
    other = make_snapshot(10, config=SnapshotConfig(**{setting: value}))
    with pytest.raises(SparksError, match=f"same settings, got {text}: keep"):
        Timeline([make_snapshot(0), other])


def test_a_memory_budget_does_not_change_what_is_measured():
    other = make_snapshot(10, config=SnapshotConfig(memory_gib=1.0))
    assert len(Timeline([make_snapshot(0), other])) == 2


def test_a_setting_that_an_older_snapshot_lacks_has_its_default():
    config = SnapshotConfig().as_dict()
    del config["quadrature"]
    older = make_snapshot(0)
    older = replace(older, meta=replace(older.meta, config=config))
    assert len(Timeline([older, make_snapshot(10)])) == 2


@pytest.mark.parametrize("config", [{"colour": 1}, {"threshold": "high"}, None])
def test_settings_that_cannot_be_read_name_the_step(config):
    broken = make_snapshot(10)
    broken = replace(broken, meta=replace(broken.meta, config=config))
    with pytest.raises(SparksError, match="settings of the snapshot at step 10 cannot be read"):
        Timeline([make_snapshot(0), broken])


def test_a_refusal_of_a_long_run_is_one_short_line():
    run = [make_snapshot(step, probes_hash=f"set-{step % 50}", probes=1) for step in range(200)]
    with pytest.raises(SparksError, match=r"steps 0, 50, 100, 150; .*; and 47 more") as caught:
        Timeline(run)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    run = [make_snapshot(step, probes_hash=f"set-{step > 99}", probes=1) for step in range(200)]
    with pytest.raises(SparksError, match=r"at steps 0, 1, 2, 3, \.\.\., 99; "):
        Timeline(run)


# -- putting together ------------------------------------------------------------------------


def test_snapshots_are_put_in_order_of_step():
    run = make_run(STORY)
    timeline = Timeline([run[index] for index in (3, 0, 4, 1, 2)])
    assert timeline.steps.tolist() == [0, 10, 20, 30, 40]
    assert [meta.step for meta in timeline.metas] == [0, 10, 20, 30, 40]
    pd.testing.assert_frame_equal(timeline.events(), Timeline(run).events())


def test_a_single_checkpoint():
    timeline = Timeline([make_snapshot(0, ["L0H0"])])
    assert len(timeline) == 1
    assert timeline.events().empty
    assert timeline.cohorts().shape == (1, 0)
    assert timeline.counts()["active"].tolist() == [1]
    assert timeline.heads()["effect_mean"].isna().all()
    assert timeline.problems == ()


def test_a_first_snapshot_after_step_0_is_said():
    timeline = Timeline(make_run({50: ["L0H0"], 60: []}), problems=["a file was damaged"])
    first, second = timeline.problems
    assert first == "a file was damaged"
    assert second.startswith("there is no snapshot of step 0: base heads are those of step 50")
    assert names(timeline.base) == {"L0H0"}


def test_mixed_precision_is_said():
    (problem,) = Timeline([make_snapshot(0), make_snapshot(10, precision="bfloat16")]).problems
    assert "different precisions (bfloat16, float32)" in problem


def test_too_few_points_are_said():
    fine, coarse = make_snapshot(0, gap=0.19), make_snapshot(10, gap=0.31)
    (problem,) = Timeline([fine, coarse], rule="paper").problems
    assert Timeline([fine, coarse]).problems == ()  # shares are free of a common factor
    assert "coarse at step 10: half of the probes miss at least 31% of L" in problem
    assert "raise points, now" in problem
    assert Timeline([fine]).problems == ()


def test_arrays_cannot_be_changed_by_a_reader(story):
    for name in ("steps", "frequency", "importance", "active", "base", "emergent", "cohort"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(story, name)[0] = 0


# -- the trainer's log -----------------------------------------------------------------------


def test_metrics_merge_rows_of_a_step_and_leave_out_what_is_no_number():
    rows = [
        {"step": 2, "loss": 1.0, "note": "x", "flag": True, "huge": 10**400},
        {"step": 1, "loss": 2.0, "reward": float("nan"), "lr": float("inf")},
        {"step": 2, "eval_loss": 1.5, "loss": None},
        {"loss": 9.0},
        {"step": float("nan"), "loss": 9.0},
        {"step": 1e300, "loss": 9.0},
        {"step": 3, "lone \ud800": 1.0},
    ]
    frame = Timeline([make_snapshot(0)], metrics=rows).metrics()
    expected = pd.DataFrame(
        {
            "loss": [2.0, 1.0, np.nan],
            "eval_loss": [np.nan, 1.5, np.nan],
            r"lone \ud800": [np.nan, np.nan, 1.0],
        },
        index=pd.Index([1, 2, 3], name="step"),
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_metrics_fall_back_on_the_snapshots():
    run = [make_snapshot(0), make_snapshot(10, metrics={"loss": 2.0})]
    frame = Timeline(run).metrics()
    assert frame.index.tolist() == [10]
    assert frame["loss"].tolist() == [2.0]
    assert Timeline(run, metrics=[{"step": 1, "loss": 5.0}]).metrics().index.tolist() == [1]
    empty = Timeline([make_snapshot(0)]).metrics()
    assert empty.shape == (0, 0)
    assert empty.index.name == "step"


def test_metrics_are_a_copy(story):
    timeline = Timeline(make_run(STORY), metrics=make_metrics([1, 2]))
    frame = timeline.metrics()
    frame.loc[1, "loss"] = -1
    assert timeline.metrics().loc[1, "loss"] > 0


# -- from a folder ---------------------------------------------------------------------------


def test_from_run_reads_what_can_be_read(tmp_path):
    folder = write_run(tmp_path / "my-sft" / "sparks", make_run(STORY), make_metrics([5, 10]))
    RunStore(folder).file(30).write_bytes(b"half")
    timeline = Timeline.from_run(tmp_path / "my-sft")
    assert timeline.name == "my-sft"
    assert timeline.steps.tolist() == [0, 10, 20, 40]
    (problem,) = timeline.problems
    assert "step-00000030" in problem
    assert timeline.metrics().index.tolist() == [5, 10]
    assert Timeline.from_run(folder).name == "my-sft"


def test_from_run_takes_the_name_of_a_plain_folder_and_a_group(tmp_path, monkeypatch):
    write_run(tmp_path / "replayed", make_run({0: ["L0H0"]}, groups=["a", "a", "b", "b"]))
    assert Timeline.from_run(tmp_path / "replayed", group="b").num_probes == 2
    monkeypatch.chdir(tmp_path / "replayed")
    assert Timeline.from_run(".").name == "replayed"


def test_from_run_refuses_a_folder_in_which_nothing_can_be_read(tmp_path):
    store = RunStore(write_run(tmp_path, make_run({0: [], 10: []})))
    for step in (0, 10):
        store.file(step).write_bytes(b"half")
    with pytest.raises(
        SparksError, match=r"no snapshot can be read: .*step-00000000.*\(and 1 more\)\Z"
    ):
        Timeline.from_run(tmp_path)
    with pytest.raises(SparksError, match="no snapshots in"):
        Timeline.from_run(tmp_path / "nowhere")
