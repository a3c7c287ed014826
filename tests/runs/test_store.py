"""The run folder: nothing half written, nothing damaged taken for data."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from factories import SMALL, make_run, make_snapshot, write_run
from places import DATA
from safetensors.numpy import load_file, save_file

from sparks.attribution.snapshot import SCHEMA_VERSION, Snapshot, checksum
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline

ARRAYS = tuple(make_snapshot(0).to_arrays()[0])


def assert_equal(found: Snapshot, expected: Snapshot) -> None:
    assert asdict(found.meta) == asdict(expected.meta)
    assert found.graph == expected.graph
    assert found.probe_ids == expected.probe_ids
    assert found.probe_groups == expected.probe_groups
    for name in ARRAYS:
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def header_of(snapshot: Snapshot) -> dict:
    return json.loads(snapshot.to_arrays()[1]["sparks"])


def put(
    store: RunStore,
    snapshot: Snapshot,
    header: object = None,
    *,
    without: str = "",
    **arrays: np.ndarray,
) -> None:
    """A snapshot file whose header and arrays are what the test wants, with a right checksum."""
    store.prepare()
    text = json.dumps(header_of(snapshot) if header is None else header)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    named = {k: v for k, v in (snapshot.to_arrays()[0] | whole).items() if k != without}
    metadata = {"sparks": text, "checksum": checksum(text, named)}
    save_file(named, store.file(snapshot.step), metadata)


# -- round trip ------------------------------------------------------------------------------


def test_a_saved_snapshot_loads_equal(tmp_path):
    store = RunStore(tmp_path / "run")
    snapshot = make_snapshot(
        10, {"L0H1": 2, "L2H3": 4}, groups=["a", "a", "b", ""], metrics={"loss": 2.5, "tokens": 7}
    )
    assert store.save(snapshot) == tmp_path / "run" / "step-00000010.safetensors"
    assert_equal(store.load(10), snapshot)


def test_a_snapshot_without_edges_loads_equal(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_snapshot(0))
    assert_equal(store.load(0), make_snapshot(0))


def test_gaps_that_are_no_numbers_survive(tmp_path):
    snapshot = make_snapshot(0, ["L0H0"], probes=4, gap=[np.nan, np.inf, 0.1, 0.2])
    RunStore(tmp_path).save(snapshot)
    assert_equal(RunStore(tmp_path).load(0), snapshot)


def test_steps_are_in_order_of_number_also_beyond_eight_digits(tmp_path):
    store = RunStore(tmp_path)
    for step in (123_456_789, 9, 10, 0):
        store.save(make_snapshot(step))
    assert store.steps() == [0, 9, 10, 123_456_789]
    assert [snapshot.step for snapshot in store.read().snapshots] == store.steps()


def test_saving_a_step_again_replaces_it_and_leaves_nothing_else(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_snapshot(5, ["L0H0"]))
    second = make_snapshot(5, ["L1H1"], seed=3)
    store.save(second)
    assert_equal(store.load(5), second)
    assert [item.name for item in tmp_path.iterdir()] == ["step-00000005.safetensors"]


def test_the_stored_sample_of_schema_1_loads(tmp_path):
    """Written by `make_snapshot` as called here when schema 1 was current; never rewrite it."""
    store = RunStore(tmp_path)
    store.file(10).write_bytes((DATA / "snapshot-v1.safetensors").read_bytes())
    sample = store.load(10)
    assert sample.step == 10
    assert sample.graph == SMALL
    assert sample.probe_groups == ("math", "math", "trivia")
    assert sample.meta.metrics == {"loss": 2.5}
    assert sample.meta.config["points"] == 100
    expected = np.zeros((3, 3, 4), dtype=bool)
    expected[:2, 0, 1] = True
    expected[:, 2, 3] = True
    np.testing.assert_array_equal(sample.active, expected)
    np.testing.assert_array_equal(sample.importance > 0, expected)
    sums = np.bincount(sample.edge_source, weights=np.abs(sample.edge_score), minlength=16)
    np.testing.assert_allclose(
        sums[SMALL.head_sources], sample.importance.sum(axis=0), rtol=1e-5, atol=0
    )


def test_the_stored_sample_of_schema_2_loads(tmp_path):
    """Written by `make_snapshot` when schema 2 was current; never rewrite it."""
    store = RunStore(tmp_path)
    store.file(10).write_bytes((DATA / "snapshot-v2.safetensors").read_bytes())
    sample = store.load(10)
    assert sample.probe_groups == ("math", "math", "control")
    assert sample.grid[0] == (0.02, 0.003)
    levels, settings = sample.levels
    assert settings == len(sample.grid) == 9
    assert levels[:, 0, 1].tolist() == [9, 9, 0]
    assert levels[:, 2, 3].tolist() == [9, 9, 9]
    assert levels.sum() == 45
    assert sample.points.tolist() == [100, 100, 100]


def test_the_stored_sample_of_schema_3_loads(tmp_path):
    """Written by `make_snapshot` when schema 3 was current; never rewrite it."""
    store = RunStore(tmp_path)
    store.file(10).write_bytes((DATA / "snapshot-v3.safetensors").read_bytes())
    sample = store.load(10)
    assert sample.meta.run_id == "3f9a51c07be24d68"
    assert sample.probe_groups == ("math", "math", "control")
    assert sample.meta.settings == SnapshotConfig(points=100)
    levels, settings = sample.levels
    assert settings == len(sample.grid) == 9
    assert levels[:, 0, 1].tolist() == [9, 9, 0]
    assert levels[:, 2, 3].tolist() == [9, 9, 9]
    assert levels.sum() == 45
    assert sample.points.tolist() == [100, 100, 100]


@pytest.mark.parametrize("schema", [1, 2])
def test_earlier_names_of_settings_are_translated_and_a_run_goes_on(tmp_path, schema):
    """They were `steps`, `max_steps` and `rule`."""
    store = RunStore(tmp_path)
    old = (DATA / f"snapshot-v{schema}.safetensors").read_bytes()
    assert b'\\"steps\\": 100' in old
    assert b'\\"rule\\": \\"midpoint\\"' in old
    store.file(10).write_bytes(old)
    found = store.load(10)
    assert {*found.meta.config} <= {item.name for item in fields(SnapshotConfig)}
    assert found.meta.settings == SnapshotConfig(points=100, max_points=324, quadrature="midpoint")
    more = {"groups": found.probe_groups, "config": SnapshotConfig(points=100)}
    store.save(make_snapshot(20, {"L2H3": 3}, grid=bool(found.grid), **more))
    assert Timeline.from_run(tmp_path).steps.tolist() == [10, 20]
    store.save(make_snapshot(30, groups=found.probe_groups, config=SnapshotConfig(points=50)))
    with pytest.raises(SparksError, match="points=100 at steps 10, 20; points=50 at step 30"):
        Timeline.from_run(tmp_path)


# -- atomic writes ---------------------------------------------------------------------------


def test_a_write_that_dies_before_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    first = make_snapshot(5, ["L0H0"])
    store.save(first)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SparksError, match=r"cannot write .*step-00000005.*No space left") as caught:
        store.save(make_snapshot(5, ["L1H1"]))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert_equal(store.load(5), first)
    assert [item.name for item in tmp_path.iterdir()] == ["step-00000005.safetensors"]


def test_the_target_is_only_ever_replaced_whole(tmp_path, monkeypatch):
    """When it is renamed, the temporary file is complete, flushed and in the same folder."""
    store, seen = RunStore(tmp_path), []
    flushed: list[int] = []
    fsync, rename = os.fsync, Path.replace

    def note_fsync(number: int) -> None:
        flushed.append(os.fstat(number).st_ino)
        fsync(number)

    def note_rename(self: Path, target: Path) -> Path:
        seen.append((self.parent, self.stat().st_ino, target.exists()))
        assert Snapshot.from_arrays(load_file(self), metadata).step == 5
        return rename(self, target)

    snapshot = make_snapshot(5, ["L0H0"])
    _, metadata = snapshot.to_arrays()
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_rename)
    store.save(snapshot)
    assert seen == [(tmp_path, flushed[0], False)]


def test_left_overs_of_a_killed_writer_are_not_read(tmp_path):
    write_run(tmp_path, [make_snapshot(0)])
    (tmp_path / ".step-00000010.safetensors.99.tmp").write_bytes(b"half")
    (tmp_path / "step-00000020.safetensors.stale").write_bytes(b"old")
    (tmp_path / "step-30.safetensors").write_bytes(b"not our name")
    (tmp_path / "step-0000000000.safetensors").write_bytes(b"not our name either")
    run = RunStore(tmp_path).read()
    assert [snapshot.step for snapshot in run.snapshots] == [0]
    assert run.problems == ()


# -- unwritable ------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    store = RunStore(tmp_path / "file" / "run")
    with pytest.raises(SparksError, match=r"cannot write to .*run \(Not a directory\): give"):
        store.prepare()
    with pytest.raises(SparksError, match="cannot write to"):
        store.save(make_snapshot(0))
    assert (tmp_path / "file").read_text() == ""
    with pytest.raises(SparksError, match=r"cannot write to .*file \(File exists\)"):
        RunStore(tmp_path / "file").prepare()


def test_a_target_that_cannot_be_replaced_is_refused(tmp_path):
    store = RunStore(tmp_path)
    store.file(0).mkdir(parents=True)
    with pytest.raises(SparksError, match=r"cannot write .*step-00000000.*directory"):
        store.save(make_snapshot(0))
    assert [item.name for item in tmp_path.iterdir()] == ["step-00000000.safetensors"]


def test_opening_and_reading_a_store_writes_nothing(tmp_path):
    store = RunStore(tmp_path / "none")
    assert store.steps() == []
    assert store.read().snapshots == ()
    assert store.set_aside_after(0) == []
    assert list(tmp_path.iterdir()) == []


def test_prepare_makes_parents_and_leaves_no_trace(tmp_path):
    RunStore(tmp_path / "a" / "b").prepare()
    assert list((tmp_path / "a" / "b").iterdir()) == []


# -- damaged files ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_named_and_skipped(tmp_path, keep):
    store = RunStore(write_run(tmp_path, make_run({0: ["L0H0"], 10: ["L0H0"], 20: ["L0H0"]})))
    payload = store.file(10).read_bytes()
    cut = int(len(payload) * keep) if isinstance(keep, float) else keep
    store.file(10).write_bytes(payload[:cut])
    run = store.read()
    assert [snapshot.step for snapshot in run.snapshots] == [0, 20]
    (problem,) = run.problems
    assert problem.startswith(f"{store.file(10)}: damaged or not a snapshot")
    assert "sparks replay" in problem
    assert "\n" not in problem


def test_a_safetensors_file_of_something_else_is_named(tmp_path):
    store = RunStore(tmp_path)
    save_file({"weight": np.zeros(3, dtype=np.float32)}, store.file(0))
    with pytest.raises(SparksError, match=r"step-00000000.*not a sparks snapshot.*'sparks'"):
        store.load(0)


def test_text_and_folders_under_the_name_of_a_snapshot_are_named(tmp_path):
    store = RunStore(tmp_path)
    store.file(0).write_text("hello, I am no snapshot, though long enough for a header")
    store.file(10).mkdir()
    run = store.read()
    assert run.snapshots == ()
    text, folder = run.problems
    assert text.startswith(f"{store.file(0)}: damaged")
    assert folder.startswith(f"{store.file(10)}: damaged")


@pytest.mark.parametrize("schema", [SCHEMA_VERSION + 1, 99])
def test_a_newer_schema_asks_for_an_upgrade(tmp_path, schema):
    store, snapshot = RunStore(tmp_path), make_snapshot(0)
    put(store, snapshot, header_of(snapshot) | {"schema": schema, "news": [1]})
    with pytest.raises(SparksError, match=rf"schema {schema} is newer .*pip install -U"):
        store.load(0)


@pytest.mark.parametrize(
    "header",
    [
        [],
        "text",
        {"schema": 1},
        {"schema": 1, "graph": {"num_layers": 3}},
        {"schema": 1, "graph": {"num_layers": "3", "num_heads": 4, "num_kv_heads": 2}},
    ],
)
def test_a_header_of_the_wrong_form_is_damage(tmp_path, header):
    store = RunStore(tmp_path)
    put(store, make_snapshot(0), header)
    with pytest.raises(SparksError, match=r"step-00000000.*damaged or not a snapshot"):
        store.load(0)


def test_fields_that_a_later_sparks_adds_are_ignored(tmp_path):
    store, snapshot = RunStore(tmp_path), make_snapshot(0, ["L0H0"])
    header = header_of(snapshot)
    header["meta"]["colour"] = "blue"
    put(store, snapshot, header)
    assert_equal(store.load(0), snapshot)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "loss_circuit"])
def test_a_missing_array_is_named(tmp_path, name):
    store, snapshot = RunStore(tmp_path), make_snapshot(0, ["L0H0"])
    put(store, snapshot, without=name)
    with pytest.raises(SparksError, match=f"step-00000000.*lacks {name}"):
        store.load(0)


def test_a_snapshot_without_faithfulness_reads_as_unknown(tmp_path):
    store, snapshot = RunStore(tmp_path), make_snapshot(0, ["L0H0"])
    assert np.isfinite(snapshot.faithfulness).all()
    put(store, snapshot, without="loss_circuit")
    assert np.isnan(store.load(0).faithfulness).all()


def test_a_misshapen_or_mistyped_array_is_named_with_both_values(tmp_path):
    store, snapshot = RunStore(tmp_path), make_snapshot(0, ["L0H0"])
    put(store, snapshot, node_totals=snapshot.node_totals[:, :15].copy())
    with pytest.raises(
        SparksError, match=r"node_totals must have shape \(16, 16\), found \(16, 15\)"
    ):
        store.load(0)
    put(store, snapshot, importance=snapshot.importance.astype(np.float64))
    with pytest.raises(SparksError, match="importance must be float32, found float64"):
        store.load(0)


def test_a_file_under_the_name_of_another_step_is_named(tmp_path):
    store = RunStore(write_run(tmp_path, [make_snapshot(10)]))
    store.file(20).write_bytes(store.file(10).read_bytes())
    run = store.read()
    assert [snapshot.step for snapshot in run.snapshots] == [10]
    (problem,) = run.problems
    assert re.search(r"step-00000020.*holds step 10, not 20", problem)


def test_a_step_that_is_not_there_lists_those_that_are(tmp_path):
    store = RunStore(write_run(tmp_path, make_run({0: [], 10: []})))
    with pytest.raises(SparksError, match="no snapshot of step 5; it has: 0, 10"):
        store.load(5)
    with pytest.raises(SparksError, match="it has: none"):
        RunStore(tmp_path / "empty").load(5)


# -- finding ---------------------------------------------------------------------------------


def test_find_takes_the_run_or_the_output_folder(tmp_path):
    write_run(tmp_path / "sparks", [make_snapshot(0)])
    assert RunStore.find(tmp_path).path == tmp_path / "sparks"
    assert RunStore.find(str(tmp_path / "sparks")).path == tmp_path / "sparks"


@pytest.mark.parametrize("content", [None, "notes.txt", "step-0.safetensors"])
def test_find_refuses_a_folder_without_snapshots(tmp_path, content):
    folder = tmp_path / "run"
    if content:
        folder.mkdir()
        (folder / content).write_text("")
    with pytest.raises(SparksError, match=r"no snapshots in .*run or .*sparks: give a folder"):
        RunStore.find(folder)


def test_find_refuses_a_file(tmp_path):
    path = write_run(tmp_path, [make_snapshot(0)]) / "step-00000000.safetensors"
    with pytest.raises(SparksError, match="no snapshots in"):
        RunStore.find(path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def denied(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(SparksError, match=r"cannot read .* \(Permission denied\)"):
        RunStore(tmp_path).steps()


# -- resumed runs ----------------------------------------------------------------------------


def test_set_aside_after_keeps_what_training_will_not_redo(tmp_path):
    store = RunStore(write_run(tmp_path, make_run({0: [], 10: ["L0H0"], 20: ["L0H0"], 30: []})))
    later = store.file(20).read_bytes()
    assert store.set_aside_after(10) == [20, 30]
    assert store.steps() == [0, 10]
    assert store.file(20).with_name("step-00000020.safetensors.stale").read_bytes() == later
    assert store.set_aside_after(10) == []
    store.save(make_snapshot(20, ["L1H1"]))
    assert store.set_aside_after(0) == [10, 20]
    assert store.steps() == [0]
    # An older file of the step stays.
    assert store.file(20).with_name("step-00000020.safetensors.stale").read_bytes() == later
    assert store.file(20).with_name("step-00000020.safetensors.stale-2").exists()


def test_set_aside_after_spares_no_stranger(tmp_path):
    store = RunStore(write_run(tmp_path, make_run({0: [], 10: [], 20: [], 30: []})))
    assert store.set_aside_after(20, also=[10]) == [10, 30]
    assert store.steps() == [0, 20]


def test_a_snapshot_that_cannot_be_set_aside_is_named(tmp_path):
    store = RunStore(tmp_path)
    step = 10**237  # its name has 255 characters, and none may have more
    store.file(step).write_bytes(b"")
    with pytest.raises(SparksError, match=r"cannot rename .*step-10+\.safetensors \(File name too"):
        store.set_aside_after(0)
    assert store.steps() == [step]


# -- the trainer's log -----------------------------------------------------------------------


def test_metrics_round_trip_without_what_json_cannot_hold(tmp_path):
    store = RunStore(tmp_path)
    store.write_metrics(
        [
            {"step": 1, "loss": 2.5, "grad_norm": float("nan"), "lr": float("inf")},
            {"step": 2, "loss": np.float32(1.5), "tokens": np.int64(7), "done": True, "note": "x"},
            {"loss": 3.0},
            {"step": None, "loss": 3.0},
        ]
    )
    text = (tmp_path / "metrics.json").read_text()
    expected = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5, "tokens": 7}]
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert store.read().metrics == tuple(expected)


def test_metrics_are_replaced_as_a_whole(tmp_path):
    store = RunStore(tmp_path)
    store.write_metrics([{"step": 1, "loss": 2.5}])
    store.write_metrics([{"step": 2, "loss": 1.5}])
    assert store.read().metrics == ({"step": 2, "loss": 1.5},)


def test_a_snapshot_taken_after_a_nan_loss_is_saved_without_it(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_snapshot(10, metrics={"loss": float("nan"), "reward": 0.5}))
    assert store.load(10).meta.metrics == {"reward": 0.5}


@pytest.mark.parametrize(
    "text", ["", "[{", "{}", "null", "[1]", '"text"', '[{"step": 1}, []]', "\udcff"]
)
def test_a_damaged_log_is_named_and_the_snapshots_still_read(tmp_path, text):
    store = RunStore(write_run(tmp_path, [make_snapshot(0)]))
    (tmp_path / "metrics.json").write_bytes(text.encode(errors="surrogateescape"))
    run = store.read()
    assert [snapshot.step for snapshot in run.snapshots] == [0]
    assert run.metrics == ()
    (problem,) = run.problems
    assert re.search(r"metrics\.json: damaged \(.+\); the trainer's curves are missing", problem)
    assert "\n" not in problem


def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    store = RunStore(write_run(tmp_path, [make_snapshot(0)]))
    (tmp_path / "metrics.json").mkdir()
    (problem,) = store.read().problems
    assert "metrics.json: damaged" in problem


def test_numbers_that_are_no_numbers_in_a_foreign_log_are_left_out(tmp_path):
    store = RunStore(write_run(tmp_path, [make_snapshot(0)]))
    (tmp_path / "metrics.json").write_text(
        '[{"step": 1, "loss": NaN, "reward": 0.5}, {"loss": 1}, {"step": "x", "loss": 1}]'
    )
    assert store.read().metrics == ({"step": 1, "reward": 0.5},)
    assert store.read().problems == ()


def test_a_run_without_a_log_is_no_problem(tmp_path):
    run = RunStore(write_run(tmp_path, [make_snapshot(0)])).read()
    assert run.metrics == ()
    assert run.problems == ()


def test_probes_are_kept_as_text(tmp_path):
    RunStore(tmp_path).write_probes('{"prompt": "é"}\n')
    assert (tmp_path / "probes.jsonl").read_bytes() == '{"prompt": "é"}\n'.encode()


def test_the_header_holds_every_field_of_the_meta():
    snapshot = make_snapshot(0)
    assert set(header_of(snapshot)["meta"]) == {item.name for item in fields(snapshot.meta)}
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(snapshot, meta=replace(snapshot.meta, seconds=float("nan"))).to_arrays()
