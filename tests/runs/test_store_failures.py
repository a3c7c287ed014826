"""Why a step has no snapshot: remembered, told, and forgotten when the step is measured."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from factories import make_snapshot

from sparks.ground.errors import SparksError
from sparks.runs.run_folder import RunStore


@pytest.fixture
def store(tmp_path) -> RunStore:
    """A run with a snapshot of step 0 and a failure at step 10."""
    store = RunStore(tmp_path / "run")
    store.save(make_snapshot(0, ["L0H0"]))
    store.note_failure(10, "no memory\nleft")
    return store


def test_a_failure_is_told_beside_the_snapshots(store):
    contents = store.read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0]
    assert contents.problems == ("step 10: no snapshot (no memory left)",)
    assert store.steps() == [0]


def test_failures_are_told_in_order_of_step_and_cut_short(store):
    store.note_failure(123_456_789, "x" * 1000)
    store.note_failure(5, "first")
    five, ten, last = store.read().problems
    assert five == "step 5: no snapshot (first)"
    assert ten.startswith("step 10:")
    assert last == f"step 123456789: no snapshot ({'x' * 300})"


def test_a_later_snapshot_of_the_step_forgets_the_failure(store):
    store.save(make_snapshot(10, ["L0H0"]))
    assert store.read().problems == ()
    assert sorted(path.name for path in store.path.iterdir()) == [
        "step-00000000.safetensors",
        "step-00000010.safetensors",
    ]


def test_the_last_failure_of_a_step_counts(store):
    store.note_failure(10, "no space")
    assert store.read().problems == ("step 10: no snapshot (no space)",)


@pytest.mark.parametrize(("resumed", "left"), [(0, 0), (10, 0), (11, 1)])
def test_a_resume_forgets_the_failures_that_it_redoes(store, resumed, left):
    store.set_aside_after(resumed)
    assert len(store.read().problems) == left


def test_failures_alone_are_no_run(tmp_path):
    RunStore(tmp_path).note_failure(10, "no memory")
    with pytest.raises(SparksError, match="no snapshots in"):
        RunStore.find(tmp_path)


def test_strange_files_under_the_name_of_a_failure_do_no_harm(store):
    (store.path / "step-x.failed").write_text("no step")
    (store.path / "step-00000020.failed").mkdir()
    (store.path / "step-00000030.failed").write_bytes(b"\xff\x00 bytes")
    told = store.read().problems
    assert told[0].startswith("step 10:")
    assert [line.partition(":")[0] for line in told] == ["step 10", "step 20", "step 30"]
    assert "step-00000020.failed, which cannot be read: a folder, no plain file" in told[1]
    assert all("\n" not in line for line in told)


def test_a_full_disk_is_no_second_failure(store, monkeypatch):
    def full(*_args, **_keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in store.path.iterdir()}
    monkeypatch.setattr(Path, "open", full)
    store.note_failure(20, "no memory")
    with pytest.raises(SparksError, match=r"cannot write .*No space left on device"):
        store.save(make_snapshot(20, ["L0H0"]))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in store.path.iterdir()} == before
