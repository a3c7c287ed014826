"""Real trainings are killed, run out of memory and out of disk: the timeline stays whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults_script import KILLS, MAX_STEPS
from places import HELPERS
from run_folder import LEFTOVER, flaws
from tiny_trainers import trainer_of
from tiny_training import PROBES, logged, optimizer_hash, tiny_trainer, weights_hash
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from sparks.ground.errors import SparksError
from sparks.models.fingerprint import fingerprint
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline
from sparks.training.callback import SparksCallback

HERE = HELPERS
STEPS = list(range(MAX_STEPS + 1))

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)


def same_snapshots(found: Path, expected: Path) -> None:
    """The runs measured the same models at the same steps, with the same result."""
    ours, theirs = (RunStore.find(path).read() for path in (found, expected))
    assert [s.step for s in ours.snapshots] == [s.step for s in theirs.snapshots]
    for one, other in zip(ours.snapshots, theirs.snapshots, strict=True):
        assert one.meta.model_hash == other.meta.model_hash
        assert one.meta.metrics.get("loss") == other.meta.metrics.get("loss")
        for name in ("edge_source", "edge_destination", "edge_offsets", "active"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("edge_score", "importance", "node_totals", "loss_corrupted", "loss_circuit"):
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-7
            )


# -- killed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Path:
    """A folder with the runs of `faults_script.py`."""
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [sys.executable, str(HERE / "faults_script.py"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def kills(faults) -> list[dict[str, Any]]:
    return json.loads((faults / "killed" / "kills.json").read_text())


@pytest.mark.slow
def test_no_kill_tears_a_file(kills):
    assert [kill for kill in kills if kill["flaws"]] == []
    # They were many, by the clock and at files, and some of them hit where it hurts.
    assert len(kills) == KILLS >= 15
    assert sum("at_file_event" in kill for kill in kills) >= KILLS // 2
    assert any("step-00000000.safetensors" not in kill["left"] for kill in kills)
    assert any(kill["checkpoint"] for kill in kills)
    assert any(name.endswith(".tmp") for kill in kills for name in kill["left"])


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_as_if_nothing_had_happened(faults, kills):
    straight = faults / "straight"
    assert flaws(straight / "sparks", steps=STEPS) == []
    expected = Timeline.from_run(straight, rule="paper")
    for run in sorted({kill["run"] for kill in kills}):
        folder = faults / "killed" / run
        assert flaws(folder / "sparks", steps=STEPS) == []
        same_snapshots(folder, straight)
        found = Timeline.from_run(folder, rule="paper")
        assert found.problems == expected.problems == ()
        assert found.steps.tolist() == STEPS
        np.testing.assert_array_equal(found.metrics()["loss"], expected.metrics()["loss"])
        assert found.events().equals(expected.events())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["torn", "missing", "unknown", "report", "log", "none"])
def test_damage_would_be_noticed(tmp_path, faults, damage):
    folder = tmp_path / "sparks"
    shutil.copytree(faults / "straight" / "sparks", folder)
    step = folder / "step-00000003.safetensors"
    expected = {"none": []}
    if damage == "torn":
        os.truncate(step, step.stat().st_size // 2)
    elif damage == "missing":
        step.unlink()
    elif damage == "unknown":
        (folder / "step-00000003.safetensors.tmp").write_bytes(step.read_bytes())
    elif damage == "report":
        os.truncate(folder / "report.html", 20_000)
    elif damage == "log":
        os.truncate(folder / "metrics.json", 100)
    expected |= {
        "torn": ["step-00000003.safetensors: torn", "snapshots of steps"],
        "missing": [f"snapshots of steps {[0, 1, 2, *STEPS[4:]]}, expected {STEPS}"],
        "unknown": [f"step-00000003.safetensors.tmp: {LEFTOVER}"],
        "report": ["report.html: cut short"],
        "log": ["metrics.json: "],
    }
    found = flaws(folder, steps=STEPS)
    assert bool(found) == bool(expected[damage])
    assert all(line.startswith(start) for line, start in zip(found, expected[damage], strict=True))


# -- full ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_leaves_a_hole_that_is_named(faults):
    ended = json.loads((faults / "full" / "said.json").read_text())
    assert ended["code"] == 0, ended["said"]
    assert "no snapshot of step 2 (cannot write" in ended["said"]
    assert "training goes on" in ended["said"]
    folder = faults / "full" / "sparks"
    contents = RunStore(folder).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 1, *STEPS[3:]]
    (problem,) = contents.problems
    assert problem.startswith("step 2: no snapshot (cannot write ")
    assert "File too large" in problem
    assert problem in Timeline.from_run(folder).problems
    names = {path.name for path in folder.iterdir()}
    assert not [name for name in names if "step-00000002" in name and "failed" not in name]


class OutOfMemory(TrainerCallback):
    """A FAKE: at step 2, torch refuses its second gradient as it does when a device is full.

    It comes before the callback in the list, so that the snapshot of the step meets it.
    """

    def __init__(self, monkeypatch) -> None:
        self.monkeypatch, self.asked = monkeypatch, 0

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            grad = torch.autograd.grad
            self.monkeypatch.setattr("torch.autograd.grad", lambda *a, **k: self.refuse(grad, a, k))

    def on_step_begin(self, args, state, control, **kwargs):
        self.monkeypatch.undo()

    def refuse(self, grad, args, kwargs):
        self.asked += 1
        if self.asked == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nSee docs.")
        return grad(*args, **kwargs)


def sparks(**settings: Any) -> SparksCallback:
    # So little memory that a snapshot takes several gradients.
    measuring = {"points": 4, "threshold": 0.0, "top_n": 60, "memory_gib": 1e-9}
    return SparksCallback(PROBES, progress=False, **measuring | settings)


def run(tmp_path, *callbacks, resume=None, **settings):
    trainer = tiny_trainer(tmp_path, callbacks=list(callbacks), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_out_of_memory_in_the_middle_of_a_snapshot(tmp_path, monkeypatch):
    alone = run(tmp_path / "alone")
    full = OutOfMemory(monkeypatch)
    with pytest.warns(UserWarning, match=r"no snapshot of step 2 \(.*out of memory.*training goes"):
        watched = run(tmp_path / "watched", full, sparks())
    assert full.asked == 2
    # The snapshot broke off half-way, and training did not notice.
    assert weights_hash(watched.model) == weights_hash(alone.model)
    assert optimizer_hash(watched) == optimizer_hash(alone)
    assert logged(watched) == logged(alone)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in watched.model.modules()]
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in alone.model.modules()
    ]
    contents = RunStore.find(tmp_path / "watched").read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 4]
    (problem,) = contents.problems
    assert problem.startswith("step 2: no snapshot (")
    assert "out of memory" in problem
    assert problem in Timeline.from_run(tmp_path / "watched").problems


def test_out_of_memory_can_stop_the_training_with_one_line(tmp_path, monkeypatch):
    with pytest.raises(SparksError, match=r"step 2.*out of memory") as raised:
        run(tmp_path, OutOfMemory(monkeypatch), sparks(on_error="raise"))
    assert "\n" not in str(raised.value)
    assert RunStore.find(tmp_path).steps() == [0]


def test_a_log_that_cannot_be_written_takes_no_snapshot_along(tmp_path, monkeypatch):
    write = RunStore.write_metrics

    def full_at_step_2(store, rows):
        if [row["step"] for row in rows if "loss" in row][-1:] == [2]:
            raise SparksError("cannot write metrics.json: No space left on device")
        write(store, rows)

    monkeypatch.setattr(RunStore, "write_metrics", full_at_step_2)
    with pytest.warns(UserWarning, match=r"No space left"):
        run(tmp_path, sparks())
    contents = RunStore.find(tmp_path).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4]
    assert contents.problems == ()


# -- what a Trainer does with checkpoints ----------------------------------------------------------


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def measured_models(folder: Path) -> dict[int, str]:
    return {s.step: s.meta.model_hash for s in RunStore.find(folder).read().snapshots}


def saved_models(folder: Path) -> dict[int, str]:
    """Fingerprints of the models in the checkpoints that are left, by step."""
    return {
        int(path.name[11:]): fingerprint(AutoModelForCausalLM.from_pretrained(path))
        for path in folder.glob("checkpoint-*")
    }


# The largest loss counts as the best, so that the first evaluation stays the best.
BEST_IS_FIRST = {
    "evaluated": True,
    "eval_strategy": "steps",
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}
HABITS: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    # settings, steps that are measured, checkpoints that are left
    "rotation": ({"save_total_limit": 1, "save_steps": 1}, [0, 1, 2, 3, 4], [4]),
    "epochs": (
        {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
        [0, 6, 12],
        [6, 12],
    ),
    "best at the end": (
        BEST_IS_FIRST
        | {"load_best_model_at_end": True, "save_total_limit": 1, "save_steps": 1, "eval_steps": 1},
        [0, 1, 2, 3, 4],
        [1],  # rotation spares the best, and the last one is removed at the end
    ),
    "best only": (
        BEST_IS_FIRST | {"save_strategy": "best", "load_best_model_at_end": True, "eval_steps": 1},
        [0, 1],
        [1],
    ),
    "early stopping": (
        BEST_IS_FIRST | {"load_best_model_at_end": True, "save_steps": 1, "eval_steps": 1},
        [0, 1, 2, 3],
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_checkpoints_are_kept_and_measured_as_the_trainer_is_told(tmp_path, habit):
    settings, steps, left = HABITS[habit]
    trainers = []
    for name, callbacks in (("alone", []), ("watched", [sparks()])):
        if habit == "early stopping":
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=2))
        trainer = trainer_of("sft", tmp_path / name, *callbacks, **settings)
        trainer.train()
        trainers.append(trainer)
    alone, watched = trainers
    assert checkpoints(tmp_path / "watched") == checkpoints(tmp_path / "alone")
    saved = saved_models(tmp_path / "watched")
    assert sorted(saved) == left
    found = measured_models(tmp_path / "watched")
    assert list(found) == steps
    assert len(set(found.values())) == len(steps)
    # What was measured at a step is the model of that step, not the best one.
    assert {step: found[step] for step in saved} == saved
    assert weights_hash(watched.model) == weights_hash(alone.model)
    assert watched.state.best_global_step == alone.state.best_global_step
    if settings.get("load_best_model_at_end"):
        assert watched.state.best_global_step == 1
        assert fingerprint(watched.model) == found[1]


def test_resuming_from_an_older_checkpoint_takes_later_snapshots_again(tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, sparks(), max_steps=6)
    shutil.copytree(straight, resumed)
    run(resumed, sparks(), max_steps=6, resume=str(resumed / "checkpoint-2"))
    folder = resumed / "sparks"
    assert flaws(folder, steps=[0, 2, 4, 6]) == []
    same_snapshots(resumed, straight)
    stale = sorted(path.name for path in folder.glob("*.stale"))
    assert stale == [f"step-0000000{step}.safetensors.stale" for step in (4, 6)]
