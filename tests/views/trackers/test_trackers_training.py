"""Real trainings that report to trackio and TensorBoard: the same weights and rows without us."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_training import PROBES, logged, optimizer_hash, tiny_trainer, weights_hash
from trackio_store import is_ours, rows_of

from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback

REPORT_TO = [name for name in ("trackio", "tensorboard") if find_spec(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REPORT_TO, reason="neither trackio nor tensorboard is installed"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning"),
]


def sparks() -> SparksCallback:
    return SparksCallback(PROBES, progress=False, points=3, threshold=0.0, top_n=60)


def train(folder: Path, *callbacks: SparksCallback) -> Any:
    """A training whose last step is not saved: 0, 2 and 3 are measured."""
    trainer = tiny_trainer(
        folder, callbacks=list(callbacks), max_steps=3, report_to=REPORT_TO, project=folder.name
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder, and trainers without and with us that trained in it."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
        alone = train(folder / "training-alone")
        watched = train(folder / "training-watched", sparks())
    return folder, alone, watched


def test_training_is_the_same_with_and_without_us(pair):
    _, alone, watched = pair
    assert weights_hash(watched.model) == weights_hash(alone.model)
    assert optimizer_hash(watched) == optimizer_hash(alone)
    assert logged(watched) == logged(alone)


def test_trackio_has_the_trainers_rows_and_ours_to_the_end(pair):
    pytest.importorskip("trackio", reason="trackio is not installed")
    folder, *_ = pair
    alone, watched = rows_of("training-alone"), rows_of("training-watched")
    assert len(alone) == 4
    assert [row for row in watched if not is_ours(row)] == alone
    ours = [row for row in watched if is_ours(row)]
    measured = RunStore(folder / "training-watched" / "sparks").steps()
    assert [row["train/global_step"] for row in ours] == [*measured, 3]
    assert ours[-1]["sparks/report"]["_type"] == "trackio.html"
    assert ours[-1]["sparks/heads"]["_type"] == "trackio.table"


def test_the_reporters_runs_are_closed(pair):
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    assert trackio.context_vars.current_run.get() is None


def test_tensorboard_has_the_trainers_events_and_a_run_of_ours(pair):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from test_trackers_tensorboard import read_back

    def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
        found = read_back(folder)
        return {
            key: [(event.step, event.value) for event in found.Scalars(key)]
            for key in found.Tags()["scalars"]
            if not any(part in key for part in ("runtime", "per_second"))
        }

    folder, *_ = pair
    (alone,) = (folder / "training-alone" / "runs").iterdir()
    ours = folder / "training-watched" / "runs" / "sparks"
    (theirs,) = set(ours.parent.iterdir()) - {ours}
    assert events(theirs) == events(alone)
    assert "train/loss" in events(alone)
    measured = RunStore(folder / "training-watched" / "sparks").steps()
    (run,) = ours.iterdir()
    assert [step for step, _ in events(run)["sparks/heads_active"]] == measured == [0, 2, 3]
