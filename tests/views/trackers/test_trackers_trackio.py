"""trackio: a real run in a store of our own, read back with trackio's own reader."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import SMALL, STORY, make_run, write_run
from trackio_store import is_ours, rows_of

from sparks.ground.errors import SparksError
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import trackio as trackio_view
from sparks.views.trackers.data import scalars
from sparks.views.trackers.pictures import PICTURES
from sparks.views.words import growth_in_words

SNAPSHOTS = make_run(STORY, seconds=2.5)


@pytest.fixture(scope="module")
def trackio() -> Any:
    return pytest.importorskip("trackio", reason="trackio is not installed")


def generators() -> list[Any]:
    state = np.random.get_state()
    return [torch.get_rng_state().tolist(), state[1].tolist(), state[2:], random.getstate()]


def train(trackio: Any, project: str, *, report: Path | None, files: list[Path]) -> None:
    """A run as the trainer's reporter and a user's own callback log it, with us or without."""
    run = trackio.init(project=project, name="run", auto_log_cpu=False, auto_log_gpu=False)
    before = generators()
    if report:
        assert trackio_view.start(None, None) is run
    for last, step in enumerate(STORY, start=1):
        if report:
            trackio_view.log(run, Timeline(SNAPSHOTS[:last]))
            trackio_view.alert(run, Timeline(SNAPSHOTS[:last]))
        trackio.log({"train/loss": 1 / last, "train/global_step": step})
        trackio.log({"user/value": 10 * last})
    if report:
        trackio_view.finish(run, Timeline(SNAPSHOTS), report, files)
        trackio_view.close(run)
        assert generators() == before
    trackio.log({"user/last": 1.0})  # the run is still open
    trackio.finish()


@pytest.fixture(scope="module")
def folder(trackio: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the snapshots and the report that were logged in the project `watched`."""
    path = write_run(tmp_path_factory.mktemp("run"), SNAPSHOTS)
    report = path / "report.html"
    report.write_text("<!doctype html><title>heads</title><p>L5H1 &lt;born&gt;", encoding="utf-8")
    train(trackio, "watched", report=report, files=sorted(path.glob("*.safetensors")))
    train(trackio, "alone", report=None, files=[])
    return path


def test_rows_of_others_are_the_same_with_and_without_us(folder: Path):
    alone, watched = rows_of("alone"), rows_of("watched")
    assert len(alone) == 2 * len(STORY) + 1
    assert [row["step"] for row in alone] == list(range(len(alone)))
    assert [row for row in watched if not is_ours(row)] == alone  # with trackio's own counter


def test_every_checkpoint_is_one_row_with_numbers_and_pictures(trackio: Any, folder: Path):
    from PIL import Image
    from trackio.utils import MEDIA_DIR

    rows = [row for row in rows_of("watched") if is_ours(row)]
    assert [row["train/global_step"] for row in rows] == [*STORY, 40]
    assert [row["step"] for row in rows] == [-1, 1, 3, 5, 7, 9]  # of the row before each
    for last, row in enumerate(rows[:-1], start=1):
        expected = scalars(Timeline(SNAPSHOTS[:last]))
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert row.keys() == expected.keys() | set(PICTURES) | {"train/global_step", "step"}
        for key in PICTURES:
            assert row[key]["_type"] == "trackio.image"
            assert row[key]["caption"] == f"step {row['train/global_step']}, rule of growth"
            with Image.open(MEDIA_DIR / row[key]["file_path"]) as picture:
                assert (picture.format, picture.size) == ("PNG", (640, 380))


def test_the_end_is_one_row_with_table_and_report(trackio: Any, folder: Path):
    from trackio.utils import MEDIA_DIR

    row = [row for row in rows_of("watched") if is_ours(row)][-1]
    page = MEDIA_DIR / row["sparks/report"]["file_path"]
    assert page.read_bytes() == (folder / "report.html").read_bytes()  # nothing injected
    assert row["sparks/verdict"] == growth_in_words(Timeline.from_run(folder))
    table = row["sparks/heads"]["_value"]
    assert len(table) == SMALL.num_layers * SMALL.num_heads
    by_name = {line["head"]: line for line in table}
    assert by_name["L1H1"] | {"births": 2, "prunings": 1, "cohort_step": 10} == by_name["L1H1"]
    assert by_name["L0H0"]["cohort_step"] is None


def test_the_artifact_holds_the_snapshots(trackio: Any, folder: Path, tmp_path: Path):
    trackio.init(project="watched", name="reader", auto_log_cpu=False, auto_log_gpu=False)
    artifact = trackio.use_artifact("sparks-run:latest")
    try:
        kept = Path(artifact.download(str(tmp_path)))
    finally:
        trackio.finish()
        trackio.Api().runs("watched")[-1].delete()
    assert artifact.type == "sparks-snapshots"
    assert artifact.metadata["steps"] == list(STORY)
    found = {path.name: path.read_bytes() for path in kept.rglob("*.safetensors")}
    assert found == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(found) == len(STORY)


def test_births_and_prunings_are_alerts(trackio: Any, folder: Path):
    (run,) = (run for run in trackio.Api().runs("watched") if run.name == "run")
    found = sorted((alert["title"], alert["text"], alert["level"]) for alert in run.alerts())
    assert [title for title, *_ in found] == [
        "Attention heads at step 10: 1 born",
        "Attention heads at step 20: 1 born",
        "Attention heads at step 30: 1 pruned",
        "Attention heads at step 40: 1 born, 1 pruned",
    ]
    assert {level for *_, level in found} == {"info"}


def test_without_an_open_run_it_does_not_start(trackio: Any):
    with pytest.raises(SparksError, match="names trackio, but no trackio run is open"):
        trackio_view.start(None, None)


def test_a_finished_run_is_refused_and_not_opened_again(trackio: Any):
    run = trackio.init(project="finished", name="run", auto_log_cpu=False, auto_log_gpu=False)
    trackio.log({"train/loss": 1.0})
    trackio.finish()
    for show in (
        lambda: trackio_view.log(run, Timeline(SNAPSHOTS)),
        lambda: trackio_view.finish(run, Timeline(SNAPSHOTS), None, []),
    ):
        with pytest.raises(SparksError, match="the trackio run is finished"):
            show()
    assert len(rows_of("finished")) == 1


def test_a_trackio_that_hides_its_counter_goes_on_counting(trackio: Any):
    rows: list[Any] = []
    run = SimpleNamespace(log=lambda row, step: rows.append((row, step)))
    context = trackio.context_vars.current_run
    token = context.set(run)
    try:
        trackio_view.log(run, Timeline(SNAPSHOTS))
    finally:
        context.reset(token)
    ((row, step),) = rows
    assert step is None
    assert row["train/global_step"] == 40
