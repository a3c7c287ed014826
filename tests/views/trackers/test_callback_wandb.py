"""A trainer that reports to W&B, offline: what the callback adds, and that the rest stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_wandb_view import Logged, read_back
from tiny_training import PROBES, logged, tiny_trainer, weights_hash

from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback
from sparks.views.trackers import wandb as wandb_view
from sparks.views.trackers.data import STEP_KEY

wandb = pytest.importorskip("wandb")

CLOCK = ("runtime", "per_second", "total_flos")

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning")


def train(folder: Path, monkeypatch, *callbacks) -> tuple[Logged, Any]:
    """What W&B's own reader finds in the run of a training, and the trainer."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder.mkdir()
    trainer = tiny_trainer(folder / "out", callbacks=list(callbacks), report_to="wandb")
    try:
        trainer.train()
    finally:
        wandb.finish()
        wandb.teardown()  # else the next run goes to this folder
    (run,) = (folder / "wandb").glob("offline-run-*")
    return read_back(run), trainer


def others(rows):
    """What the trainer logged, without clocks."""
    kept = [
        {k: v for k, v in row.items() if not any(part in k for part in CLOCK)}
        for row in rows
        if not any(key.startswith("sparks/") for key in row)
    ]
    return [row for row in kept if row]


@pytest.mark.slow
def test_the_trainers_rows_are_the_same_with_and_without_us(tmp_path, monkeypatch):
    without, trainer_alone = train(tmp_path / "alone", monkeypatch)
    ours = SparksCallback(PROBES, progress=False, points=3, threshold=0.0, top_n=60)
    with_us, trainer_watched = train(tmp_path / "watched", monkeypatch, ours)
    assert weights_hash(trainer_watched.model) == weights_hash(trainer_alone.model)
    assert logged(trainer_watched) == logged(trainer_alone)
    alone, watched = without.rows, with_us.rows
    assert others(alone)
    assert others(watched) == others(alone)
    live = [row for row in watched if "sparks/heads_active" in row]
    steps = [row[STEP_KEY] for row in live]
    assert steps == [0, 2, 4] == RunStore(tmp_path / "watched" / "out" / "sparks").steps()
    for row in live:
        assert "sparks/seconds" in row
        for picture in ("sparks/heads_over_training", "sparks/heads_now"):
            assert row[f"{picture}._type"] == "image-file"
    (closing,) = (row for row in watched if row.get("sparks/report._type") == "html-file")
    assert closing[STEP_KEY] == 4
    assert closing["sparks/heads._type"] == "table-file"
    artifacts = [entry["artifact"] for entry in with_us.records if entry["type"] == "artifact"]
    assert "sparks-snapshots" in [artifact["type"] for artifact in artifacts]


@pytest.mark.slow
def test_a_view_that_breaks_is_told_once_and_training_goes_on(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(wandb_view, "log", broken)
    ours = SparksCallback(PROBES, progress=False, points=3, threshold=0.0, top_n=60)
    with pytest.warns(UserWarning, match=r"nothing more goes to W&B .OSError") as seen:
        train(tmp_path / "run", monkeypatch, ours)
    assert len([w for w in seen if "nothing more goes" in str(w.message)]) == 1
    assert RunStore(tmp_path / "run" / "out" / "sparks").steps() == [0, 2, 4]
