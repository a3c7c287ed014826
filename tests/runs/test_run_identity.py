"""A run and its folder: one writer, an id, and earlier runs that nothing takes away."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import listing
from factories import STORY, make_run, make_snapshot, write_run
from lock_holder import HOLD, holder
from places import HELPERS

from sparks.ground.errors import SparksError
from sparks.runs.identity import read_id
from sparks.runs.lock import RunLock
from sparks.runs.run_folder import RunStore, refuse_file_of_run
from sparks.timeline.timeline import Timeline

HERE = HELPERS
A, B = "a" * 16, "b" * 16


def old_run(folder: Path) -> Path:
    """A run with all kinds of files, and two of somebody else."""
    write_run(folder, make_run(STORY), [{"step": 1, "loss": 2.0}])
    store = RunStore(folder)
    store.go_on(A, "the old probes\n")
    store.note_failure(50, "no memory")
    for name in (
        "notes.txt", "evaluation/mine.txt", "report.html", "null.json",
        "step-00000050.safetensors.stale", "step-00000050.safetensors.stale-2",
        "evaluation/step-00000010.jsonl", "evaluation/step-00000020.part",
        "null/base/step-00000000.safetensors",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")
    return folder


# -- a new run in the folder of an old one ---------------------------------------------------------


def test_however_often_a_run_begins_anew_nothing_is_lost(tmp_path):
    store = RunStore(old_run(tmp_path))
    first = listing(tmp_path)
    for half in (".metrics.json.1.tmp", "evaluation/.step-00000020.jsonl.1.tmp"):
        (tmp_path / half).write_text("a killed writer's")
    assert store.begin("new probes\n") == tmp_path / "attempt-1"
    second_id = store.run_id
    store.save(make_snapshot(0, ["L0H0"]))
    assert store.begin("new probes\n") == tmp_path / "attempt-2"
    store.save(make_snapshot(0, ["L0H1"]))
    kept = listing(tmp_path / "attempt-1")
    foreign = {"notes.txt", "evaluation/mine.txt"}
    assert {k: v for k, v in kept.items() if v} == {
        k: v for k, v in first.items() if v and k not in foreign
    }
    assert Timeline.from_run(tmp_path / "attempt-1").steps.tolist() == list(STORY)
    assert RunStore(tmp_path / "attempt-1").read().run_id == A
    assert RunStore(tmp_path / "attempt-2").read().run_id == second_id
    assert len({A, second_id, store.run_id}) == 3
    assert {path.name for path in tmp_path.iterdir()} == {
        "attempt-1", "attempt-2", "evaluation", "notes.txt", "probes.jsonl", "run.json",
        "step-00000000.safetensors",
    }  # fmt: skip
    (mine,) = (tmp_path / "evaluation").iterdir()
    assert mine.read_bytes() == first["evaluation/mine.txt"]


def test_a_start_that_measured_nothing_is_no_attempt(tmp_path):
    store = RunStore(tmp_path)
    assert store.begin("probes\n") is None
    assert store.begin("probes\n") is None
    assert sorted(listing(tmp_path)) == ["probes.jsonl", "run.json"]
    # Other probes are somebody's.
    assert store.begin("other probes\n") == tmp_path / "attempt-1"
    assert (tmp_path / "attempt-1" / "probes.jsonl").read_text() == "probes\n"


def test_a_kill_at_any_file_operation_loses_nothing(tmp_path):
    old_run(tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, HERE / "attempt_kills_script.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["flaws"] == []
    assert told["kills"] >= 60


def test_what_was_written_during_a_cut_off_move_stays_too(tmp_path):
    (tmp_path / "attempt.part").mkdir()
    (tmp_path / "attempt.part" / "report.html").write_text("old")
    (tmp_path / "attempt.part" / "null.json").write_text("old")
    (tmp_path / "report.html").write_text("new")
    RunStore(tmp_path).undo_unfinished()
    texts = {name: text for name, text in listing(tmp_path).items() if text}
    assert texts == {
        "report.html": b"new", "null.json": b"old", "attempt-1/report.html": b"old",
    }  # fmt: skip


def test_a_file_that_cannot_be_moved_is_named(tmp_path):
    write_run(tmp_path, [make_snapshot(0)])
    (tmp_path / "attempt.part").write_text("in the way")
    with pytest.raises(SparksError, match=r"cannot move .*step-00000000.* to .*attempt\.part"):
        RunStore(tmp_path).begin("probes\n")
    assert RunStore(tmp_path).steps() == [0]


def test_where_earlier_runs_are_is_said_when_there_is_no_other(tmp_path):
    store = RunStore(write_run(tmp_path / "sparks", [make_snapshot(0)]))
    store.begin("probes\n")
    with pytest.raises(SparksError, match=r"no snapshots in .*; earlier runs are in .*attempt-1\Z"):
        RunStore.find(tmp_path)
    with pytest.raises(SparksError, match=r"step-\*\.safetensors\)\Z"):
        RunStore.find(tmp_path / "nothing")


# -- the id ----------------------------------------------------------------------------------------


def write_mixed(folder: Path, ids: dict[int, str], named: str = "") -> RunStore:
    store = RunStore(folder)
    for step, run_id in ids.items():
        store.run_id = run_id
        store.save(make_snapshot(step, ["L0H0"]))
    if named:
        store.go_on(named, "")
    return RunStore(folder)


@pytest.mark.parametrize(
    ("named", "kept", "left"),
    [
        ("", [0, 20, 30], [10]),  # the run with most snapshots
        (A, [0, 20, 30], [10]),
        (B, [10, 20], [0, 30]),  # that of the folder, and those without an id
        ("c" * 16, [0, 20, 30], [10]),  # no snapshot has it
    ],
)
def test_files_of_two_runs_are_named_and_one_run_is_read(tmp_path, named, kept, left):
    store = write_mixed(tmp_path, {0: A, 10: B, 20: "", 30: A}, named)
    contents = store.read()
    assert [snapshot.step for snapshot in contents.snapshots] == kept
    assert contents.strangers == tuple(left)
    (problem,) = contents.problems
    assert f"left out {len(left)} snapshots of another run than {contents.run_id}" in problem
    assert f"(steps {', '.join(map(str, left))})" in problem
    assert Timeline.from_run(tmp_path).steps.tolist() == kept
    assert problem in Timeline.from_run(tmp_path).problems


def test_folders_without_ids_still_open(tmp_path):
    store = write_mixed(tmp_path, {0: "", 10: ""})
    assert (store.read().run_id, store.read().problems) == ("", ())
    store.go_on(A, "")  # resumed by this version
    store.save(make_snapshot(20))
    assert [snapshot.meta.run_id for snapshot in store.read().snapshots] == ["", "", A]
    assert (store.read().run_id, store.read().problems) == (A, ())


def test_no_timeline_is_made_of_two_runs(tmp_path):
    store = write_mixed(tmp_path, {0: A, 10: B, 20: ""})
    with pytest.raises(SparksError, match=f"the same run, got {A} at step 0; {B} at step 10: keep"):
        Timeline([store.load(step) for step in store.steps()])
    assert len(Timeline([store.load(0), store.load(20)])) == 2


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"id": 3}', '{"id": "../x"}', "[" * 9999]
)
def test_a_damaged_id_is_named_and_the_run_still_read(tmp_path, text):
    store = write_mixed(tmp_path, {0: A, 10: A, 20: B})
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SparksError, match=r"run\.json: damaged \(.+\); delete it"):
        read_id(tmp_path)
    contents = store.read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 10]
    assert len(contents.problems) == 2


# -- the lock --------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    with holder(tmp_path) as process:
        match = rf"is being written by another .* \(process {process.pid} on .*\): wait for its end"
        with pytest.raises(SparksError, match=match) as raised:
            RunLock(tmp_path).take()
        assert "\n" not in str(raised.value)
        process.kill()
        process.wait()
        with RunLock(tmp_path) as lock:
            lock.take()
    assert listing(tmp_path) == {}


def test_a_worker_that_outlives_its_training_holds_nothing(tmp_path):
    with holder(tmp_path, "worker") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with RunLock(tmp_path) as lock:
            lock.take()


def test_one_process_may_take_it_again_and_readers_do_not_lose_it(tmp_path):
    broken_off = RunLock(tmp_path)
    broken_off.take()
    (tmp_path / ".lock").read_bytes()
    again = RunLock(tmp_path)
    again.take()
    again.take()
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", HOLD, tmp_path, ""], check=True, capture_output=True, timeout=60
        )
    again.free()
    broken_off.free()
    assert listing(tmp_path) == {}


def test_a_lock_whose_folder_was_deleted_spares_the_next(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    (tmp_path / ".lock").unlink()
    second.take()
    first.free()
    assert list(listing(tmp_path)) == [".lock"]
    second.free()
    assert listing(tmp_path) == {}


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(SparksError, match=r"cannot write .*\.lock \("):
        RunLock(tmp_path).take()
    assert victim.read_text() == "mine"
    with pytest.raises(SparksError, match=r"cannot write .*absent.*No such file"):
        RunLock(tmp_path / "absent").take()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("sparks.runs.lock._lock", refuse)
    with (
        pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"),
        RunLock(tmp_path) as lock,
    ):
        lock.take()


# -- outputs of commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [
        ("probes.jsonl", True),
        ("run.json", True),
        ("metrics.json", True),
        ("step-00000010.safetensors", True),
        ("step-00000010.safetensors.stale", True),
        ("evaluation/step-00000010.jsonl", True),
        ("null/base/step-00000000.safetensors", True),
        ("report.html", False),
        ("other.jsonl", False),
        ("../probes.jsonl", False),
        ("inner/probes.jsonl", False),
    ],
)
def test_no_output_replaces_a_file_of_a_run(tmp_path, monkeypatch, name, is_refused):
    run = write_run(tmp_path / "run", [make_snapshot(0)])
    monkeypatch.chdir(run)
    for path in (name, run / name):
        if is_refused:
            with pytest.raises(
                SparksError, match=r"cannot write .*: it belongs to the run in .*ru"
            ):
                refuse_file_of_run(path)
        else:
            refuse_file_of_run(path)
