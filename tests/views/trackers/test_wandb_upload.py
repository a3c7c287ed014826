"""A finished run as an offline W&B run, read back by W&B's own reader; and the workspace."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluations_made_here import SOLVING, make_evaluations, write_evaluations
from factories import STORY, make_run, write_run
from test_wandb_view import Logged, read_back

from sparks.ground.errors import SparksError
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import wandb_upload
from sparks.views.trackers.data import COHORT_KEYS, STEP_KEY, scalars
from sparks.views.trackers.pictures import PICTURES

wandb = pytest.importorskip("wandb")
pytest.importorskip("matplotlib")

SNAPSHOTS = make_run(STORY, seconds=2.5)
LOG = [
    {"step": 5, "epoch": 0.5, "loss": 2.0, "reward": 0.1},
    {"step": 10, "epoch": 1.0, "loss": 1.5, "reward": 0.4},
    {"step": 10, "epoch": 1.0, "eval_loss": 1.75},
    {"step": 40, "epoch": 4.0, "train_runtime": 12.0, "train_loss": 1.7, "total_flos": 1e9},
]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """W&B's folder, and nobody logged in."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("HOME", str(folder))
        wandb.teardown()  # what an earlier test has set up, and its folders
        yield folder
        wandb.teardown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a trainer; it holds the run folder."""
    folder = tmp_path_factory.mktemp("output") / "my-run"
    write_run(folder / "sparks", SNAPSHOTS, metrics=LOG)
    write_evaluations(folder / "sparks", SOLVING)
    return folder


@pytest.fixture(scope="module")
def uploaded(offline: Path, finished: Path) -> Logged:
    with wandb.init(project="mine", mode="offline") as mine:
        found = wandb_upload.upload(finished, project="heads", entity="team", mode="offline")
        assert wandb.run is mine
        mine.log({"mine": 1})  # still open
    return read_back(Path(found))


@pytest.mark.slow
def test_rows_are_the_trainers_and_ours_in_order_of_step(uploaded: Logged):
    rows = [
        {
            key: value
            for key, value in row.items()
            if "heads_over" not in key and "heads_now" not in key
        }
        for row in uploaded.rows
    ]
    closing = rows.pop()
    theirs = {
        5: {"train/loss": 2.0, "train/reward": 0.1, "train/epoch": 0.5},
        10: {"train/loss": 1.5, "train/reward": 0.4, "train/epoch": 1.0, "eval/loss": 1.75},
        40: {"train/epoch": 4.0},
    }
    expected = []
    for step in sorted({*theirs, *STORY}):
        if step in theirs:
            expected.append(theirs[step] | {STEP_KEY: step})
        if step in STORY:
            known = [snapshot for snapshot in SNAPSHOTS if snapshot.step <= step]
            solved = [item for item in make_evaluations(SOLVING) if item.step <= step]
            expected.append(scalars(Timeline(known, evaluations=solved)) | {STEP_KEY: step})
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted)
    assert closing["sparks/report._type"] == "html-file"
    assert closing["sparks/heads._type"] == "table-file"


def test_pictures_report_and_snapshots_are_there(uploaded: Logged, finished: Path):
    for key in PICTURES:
        assert sum(f"{key}.path" in row for row in uploaded.rows) == len(STORY)
    page = uploaded.folder / "files" / uploaded.rows[-1]["sparks/report.path"]
    assert page.read_text().rstrip().endswith("</html>")
    assert not (finished / "sparks" / "report.html").exists()  # the run folder is only read
    found = [entry["artifact"] for entry in uploaded.records if entry["type"] == "artifact"]
    (artifact,) = [entry for entry in found if entry["type"] == "sparks-snapshots"]
    names = {entry["path"] for entry in artifact["manifest"]["contents"]}
    kept = [*finished.glob("sparks/*.safetensors"), *finished.glob("sparks/evaluation/*.jsonl")]
    assert names == {str(path.relative_to(finished / "sparks")) for path in kept}
    assert len(names) == len(STORY) + len(SOLVING)  # a run folder again


def test_the_run_says_what_it_is(uploaded: Logged):
    run = next(entry["run"] for entry in uploaded.records if entry["type"] == "run")
    assert (run["project"], run["entity"], run["display_name"]) == ("heads", "team", "my-run")
    text = json.dumps(uploaded.records)
    assert SNAPSHOTS[0].meta.probes_hash in text
    assert "train_runtime" in text  # in the summary, as the trainer's reporter has it


def test_the_rule_is_the_one_that_was_asked_for(offline: Path, tmp_path: Path):
    """By the paper's rule the head of a single probe is active."""
    write_run(tmp_path / "run", make_run({0: [], 10: {"L0H0": 1}}))
    found = wandb_upload.upload(
        tmp_path / "run", project="heads", mode="offline", rule="paper", progress=False
    )
    rows = [row for row in read_back(Path(found)).rows if "sparks/heads_new" in row]
    assert [row["sparks/heads_new"] for row in rows] == [0, 1]
    assert {row["sparks/heads_over_training.caption"][-12:] for row in rows} == {"paper's rule"}


def test_online_without_a_login_is_one_clear_line(offline: Path, finished: Path):
    message = r"cannot open a W&B run in project 'heads' \(.*\): log in with `wandb login`, or"
    with pytest.raises(SparksError, match=message) as caught:
        wandb_upload.upload(finished, project="heads", mode="online")
    assert "\n" not in str(caught.value)


def test_an_upload_that_breaks_off_is_one_line_and_leaves_no_run_open(
    offline: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> None:
        raise wandb.errors.CommError("connection lost")

    monkeypatch.setattr(wandb_upload.wandb_view, "finish", refuse)
    with pytest.raises(SparksError, match=r"the upload to .* broke off \(connection lost\)"):
        wandb_upload.upload(finished, project="heads", mode="offline", progress=False)
    assert wandb.run is None


def test_mistakes_are_told_before_a_run_is_opened(offline: Path, finished: Path, tmp_path: Path):
    with pytest.raises(SparksError, match="mode must be one of online, offline, got 'ofline'"):
        wandb_upload.upload(finished, project="heads", mode="ofline")
    with pytest.raises(SparksError, match="no snapshots in"):
        wandb_upload.upload(tmp_path, project="heads", mode="offline")
    assert wandb.run is None


@pytest.mark.parametrize(
    ("mode", "variable", "expected"),
    [
        (None, None, False),
        (None, "offline", True),
        ("online", "offline", False),
        ("offline", "online", True),
    ],
)
def test_the_mode_given_wins_over_the_variable(mode, variable, expected, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_upload.is_offline(mode) is expected


@pytest.mark.parametrize(
    ("rows", "key"), [(LOG, "train/reward"), (LOG[2:], "train/loss"), ([], "train/loss")]
)
def test_the_reward_is_looked_at_where_there_is_one(rows, key, tmp_path):
    write_run(tmp_path, SNAPSHOTS, metrics=rows)
    assert wandb_upload.metric_of(tmp_path) == key


# -- workspace -------------------------------------------------------------------------------------


def panels(workspace: Any) -> dict[str, Any]:
    return {
        panel.title: panel
        for section in workspace.sections
        for panel in section.panels
        if hasattr(panel, "title")
    }


def test_the_workspace_has_cohorts_beside_the_reward_and_pictures_with_a_slider(offline: Path):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    found = wandb_upload.workspace(project="heads", entity="team", metric="train/reward")
    assert (found.entity, found.project, found.name) == ("team", "heads", "Attention heads")
    first = found.sections[0].panels
    assert (first[0].plot_type, tuple(first[0].y)) == ("stacked-area", COHORT_KEYS)
    assert first[1].y == ["train/reward"]
    drawn = panels(found)
    for key, title in zip(PICTURES, ("Heads over training", "Heads at a step"), strict=True):
        assert drawn[title].media_keys == [key]
        assert drawn[title].gallery_axis == "step"
    lines = [panel for panel in drawn.values() if hasattr(panel, "y")]
    assert {panel.x for panel in lines} == {STEP_KEY}
    with_control = make_run(STORY, probes=20, groups=[""] * 16 + ["control"] * 4)
    everything = Timeline(with_control, evaluations=make_evaluations(SOLVING))
    logged = {*scalars(everything), "sparks/overhead", "train/reward"}
    assert {key for panel in lines for key in panel.y} <= logged  # no curve of a key nobody logs
    json.dumps(found._to_model().model_dump(mode="json"), allow_nan=False)  # what would be sent


def test_saving_a_workspace_without_a_login_is_one_clear_line(offline: Path):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    message = (
        r"cannot save a workspace in project 'heads' \(.*\): it needs a login \(`wandb login`\)"
    )
    with pytest.raises(SparksError, match=message) as caught:
        wandb_upload.save_workspace(project="heads", entity="team")
    assert "\n" not in str(caught.value)


def test_a_missing_wandb_workspaces_is_named(offline: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SparksError, match=r"needs wandb-workspaces .*pip install wandb-workspaces"):
        wandb_upload.save_workspace(project="heads", entity="team")
