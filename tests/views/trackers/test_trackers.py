"""Which trackers are on, what they are told, and what happens when one fails. No real tracker."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import STORY, make_run
from places import ROOT
from tiny_training import PROBES, tiny_trainer
from transformers import TrainerCallback

from sparks.ground.errors import SparksError
from sparks.timeline.timeline import Timeline
from sparks.training.callback import SparksCallback
from sparks.views.trackers import trackers
from sparks.views.trackers.data import alert_of, head_rows

# -- report_to -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report_to", "expected"),
    [
        (None, ()),
        ("none", ()),
        ([], ()),
        (["none"], ()),
        ("trackio", ("trackio",)),
        (["tensorboard", "mlflow", "wandb"], ("wandb", "tensorboard")),
        ("mlflow", ()),
    ],
)
def test_report_to_is_read_as_the_trainer_reads_it(report_to, expected):
    assert trackers.chosen(report_to) == expected


@pytest.mark.parametrize("report_to", ["all", ["all"]])
def test_all_is_what_is_installed(report_to, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "trackio" else object())
    assert trackers.chosen(report_to) == ("wandb", "tensorboard")


LOADED = """
import sys
from types import SimpleNamespace
from pathlib import Path
from sparks.ground.errors import SparksError
from sparks.views.trackers.trackers import Trackers
packages = {"wandb", "trackio", "tensorboard", "tensorboardX", "matplotlib", "torch"}
state = SimpleNamespace(global_step=0)
assert not Trackers(SimpleNamespace(report_to=[]), state, alerts=True, folder=Path())
assert not packages & set(sys.modules), packages & set(sys.modules)
args = SimpleNamespace(report_to="tensorboard", output_dir=sys.argv[1])
try:
    Trackers(args, state, alerts=False, folder=Path()).close()
except SparksError as error:
    assert "tensorboard" in str(error), error
assert not {"wandb", "trackio"} & set(sys.modules)
"""


def test_no_tracker_is_imported_unless_it_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# -- failures --------------------------------------------------------------------------------------


class FakeView:
    """Notes what is shown; fails where it is told to."""

    def __init__(self, label: str, *, fails_at: str = "", **_: Any) -> None:
        self.LABEL, self.fails_at, self.calls = label, fails_at, []

    def _do(self, what: str) -> str:
        self.calls.append(what)
        if what == self.fails_at:
            raise OSError("no space\nleft")
        return f"run of {self.LABEL}"

    def start(self, args: Any, state: Any) -> str:
        return self._do("start")

    def log(self, run: str, timeline: Timeline) -> None:
        assert run == f"run of {self.LABEL}"
        self._do("log")

    def alert(self, run: str, timeline: Timeline) -> None:
        self._do("alert")

    def finish(self, run: str, timeline: Timeline, report: Any, snapshots: Any) -> None:
        self._do("finish")

    def close(self, run: str) -> None:
        self._do("close")


def two_views(monkeypatch, *, fails_at: str = "") -> tuple[FakeView, FakeView]:
    views = FakeView("First", fails_at=fails_at), FakeView("Second")
    monkeypatch.setattr(trackers, "VIEWS", dict(zip(("first", "second"), views, strict=True)))
    return views


def start(*names: str, alerts: bool = False) -> trackers.Trackers:
    args, state = SimpleNamespace(report_to=list(names)), SimpleNamespace(global_step=0)
    return trackers.Trackers(args, state, alerts=alerts, folder=Path("out/sparks"))


def timeline() -> Timeline:
    return Timeline(make_run(STORY))


@pytest.mark.parametrize("alerts", [False, True])
def test_every_tracker_is_shown_everything_and_alerts_only_if_asked(alerts, monkeypatch):
    views = two_views(monkeypatch)
    ours = start("first", "second", alerts=alerts)
    ours.log(timeline)
    ours.finish(timeline, None, [])
    ours.close()
    ours.log(timeline)  # closed: nothing more is shown
    told = ["alert"] if alerts else []
    assert [view.calls for view in views] == [["start", "log", *told, "finish", "close"]] * 2


@pytest.mark.parametrize("fails_at", ["log", "alert", "finish"])
def test_a_tracker_that_breaks_is_told_once_and_the_others_go_on(fails_at, monkeypatch):
    broken, whole = two_views(monkeypatch, fails_at=fails_at)
    ours = start("first", "second", alerts=True)
    message = (
        r"nothing more goes to First \(OSError: no space left\); snapshots go on to out/sparks"
    )

    def whole_training() -> None:
        for _ in range(2):
            ours.log(timeline)
        ours.finish(timeline, None, [])
        ours.close()

    with pytest.warns(UserWarning, match=message) as seen:
        whole_training()
    assert len(seen) == 1
    assert broken.calls.count(fails_at) == 1
    assert broken.calls[-1] == fails_at
    assert whole.calls == ["start", "log", "alert", "log", "alert", "finish", "close"]


def test_a_timeline_that_cannot_be_built_is_the_trackers_failure(monkeypatch):
    two_views(monkeypatch)

    def no_timeline() -> Timeline:
        raise SparksError("two snapshots of step 3")

    ours = start("second")
    with pytest.warns(UserWarning, match="nothing more goes to Second .*two snapshots of step 3"):
        ours.log(no_timeline)
    assert not ours


def test_a_tracker_that_cannot_start_is_named(monkeypatch):
    two_views(monkeypatch, fails_at="start")
    message = r"First cannot start \(OSError: no space left\): mend it, or take first out of report"
    with pytest.raises(SparksError, match=message):
        start("second", "first")
    assert start("second")


@pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning")
def test_a_tracker_that_cannot_start_stops_the_training_before_its_first_step(
    tmp_path, monkeypatch
):
    two_views(monkeypatch, fails_at="start")
    monkeypatch.setattr(trackers, "chosen", lambda report_to: ("first",))
    ours = SparksCallback(PROBES, progress=False, points=3)
    trainer = tiny_trainer(tmp_path, callbacks=[ours])
    with pytest.raises(SparksError, match="First cannot start"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning")
def test_a_training_shows_every_checkpoint_and_ends_before_the_reporters_do(tmp_path, monkeypatch):
    view, _ = two_views(monkeypatch)
    monkeypatch.setattr(trackers, "chosen", lambda report_to: ("first",))

    class Reporter(TrainerCallback):
        """Comes before us, as the trainer's reporters do."""

        def on_train_end(self, *_: Any, **__: Any) -> None:
            view.calls.append("the reporter ends")

    ours = SparksCallback(PROBES, progress=False, points=3, alerts=True)
    tiny_trainer(tmp_path, callbacks=[Reporter(), ours], max_steps=3).train()
    shown = ["log", "alert"]  # at 0, 2, and 3, which is not saved
    assert view.calls == ["start", *shown * 3, "finish", "the reporter ends", "close"]


# -- what is told ----------------------------------------------------------------------------------


def alerts_of(run: Any) -> dict[int, tuple[str, str] | None]:
    return {
        snapshot.step: alert_of(Timeline(run[:last])) for last, snapshot in enumerate(run, start=1)
    }


def test_births_and_prunings_of_a_checkpoint_by_hand():
    found = alerts_of(make_run(STORY))
    assert found == {
        0: None,
        10: ("Attention heads at step 10: 1 born", "born: L1H1"),
        20: ("Attention heads at step 20: 1 born", "born: L2H3"),
        30: ("Attention heads at step 30: 1 pruned", "pruned: L1H1"),
        40: ("Attention heads at step 40: 1 born, 1 pruned", "born: L2H0; pruned: L2H3"),
    }
    steps = {0: STORY[0], 1_234_567: STORY[40], 2_345_678: STORY[20]}
    longest = alerts_of(make_run(steps))[2_345_678]
    assert longest is not None
    assert len(longest[0]) < 64  # W&B's limit


def test_what_is_settled_late_is_marked_in_the_alert_of_that_checkpoint():
    """L1H1 is held by 0, then 3, then 16 of 16 probes: sure at the third checkpoint alone."""
    run = make_run({step: {"L1H1": held} for step, held in ((0, 0), (10, 3), (20, 16))})
    assert alerts_of(run) == {
        0: None,
        10: None,
        20: ("Attention heads at step 20: 1 born", "born: L1H1 (since 10)"),
    }


def test_an_alert_names_some_heads_and_counts_the_rest(monkeypatch):
    monkeypatch.setattr("sparks.views.trackers.data._NAMED", 2)
    found = alert_of(Timeline(make_run({0: [], 5: ["L0H0", "L0H1", "L1H0", "L2H3"]})))
    assert found == (
        "Attention heads at step 5: 4 born",
        "born: L0H0, L0H1 and 2 more",
    )


def test_rows_of_heads_are_plain_values():
    columns, rows = head_rows(timeline(), most=100)
    assert len(rows) == 12
    assert {type(value) for row in rows for value in row} <= {str, int, float, bool, type(None)}
    assert columns[0] == "head"
    assert [row[0] for row in head_rows(timeline(), most=2)[1]] == ["L0H0", "L1H0"]


def test_nothing_is_shown_without_trackers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = start("none")
        ours.log(lambda: pytest.fail("no timeline is built for nobody"))
        ours.close()
