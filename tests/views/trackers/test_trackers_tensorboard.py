"""TensorBoard: our own run beside the trainer's, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import STORY, make_run

from sparks.ground.errors import SparksError
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import tensorboard as tensorboard_view
from sparks.views.trackers.data import scalars
from sparks.views.trackers.pictures import PICTURES
from sparks.views.trackers.trackers import Trackers

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

SNAPSHOTS = make_run(STORY, seconds=2.5)


def show(folder: Path, count: int, *, first: int = 1, step: int = 0) -> None:
    """Log checkpoints `first` to `count` of a training that begins at `step`."""
    args, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(global_step=step)
    writer = tensorboard_view.start(args, state)
    for last in range(first, count + 1):
        tensorboard_view.log(writer, Timeline(SNAPSHOTS[:last]))
        tensorboard_view.alert(writer, Timeline(SNAPSHOTS[:last]))
    tensorboard_view.finish(writer, Timeline(SNAPSHOTS), folder / "no.html", [])
    tensorboard_view.close(writer)


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return reader.Reload()


def runs_of(folder: Path) -> list[Path]:
    """Our runs, the first training's first."""
    return sorted((folder / "runs" / "sparks").iterdir(), key=lambda path: path.stat().st_ctime_ns)


def steps_of(run: Path) -> list[int]:
    return [event.step for event in read_back(run).Scalars("sparks/heads_active")]


def test_numbers_and_pictures_over_the_training_step_and_nothing_else(tmp_path):
    from PIL import Image

    show(tmp_path, len(STORY))
    (folder,) = runs_of(tmp_path)
    found = read_back(folder)
    expected = {
        step: scalars(Timeline(SNAPSHOTS[:last])) for last, step in enumerate(STORY, start=1)
    }
    assert set(found.Tags()["scalars"]) == set(expected[40])
    assert set(found.Tags()["images"]) == set(PICTURES)
    assert not any(found.Tags()[kind] for kind in ("tensors", "histograms", "audio"))
    for key in expected[40]:
        values = {event.step: event.value for event in found.Scalars(key)}
        assert values == pytest.approx({s: row[key] for s, row in expected.items() if key in row})
    for key in PICTURES:
        events = found.Images(key)
        assert [event.step for event in events] == list(STORY)
        for event in events:
            with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
                assert (picture.format, picture.size) == ("PNG", (640, 380))


def test_a_resumed_training_goes_on_in_the_same_run_and_replaces_what_it_takes_again(tmp_path):
    show(tmp_path, 4)  # 0, 10, 20, 30; then back to 10
    show(tmp_path, 5, first=3, step=10)
    (run,) = runs_of(tmp_path)
    assert steps_of(run) == list(STORY)  # each once


def test_a_second_training_has_a_run_of_its_own_and_the_first_one_stays(tmp_path):
    show(tmp_path, 4)
    show(tmp_path, 2)
    first, second = runs_of(tmp_path)
    assert steps_of(first) == [0, 10, 20, 30]
    assert steps_of(second) == [0, 10]
    show(tmp_path, 3, first=3, step=10)  # the second one, resumed
    assert runs_of(tmp_path) == [first, second] or runs_of(tmp_path) == [second, first]
    assert (steps_of(first), steps_of(second)) == ([0, 10, 20, 30], [0, 10, 20])


def test_runs_are_named_as_the_trainers_reporter_names_its_own(tmp_path):
    from transformers.integrations import TensorBoardCallback

    show(tmp_path, 1)
    reporter = TensorBoardCallback(tb_writer=SimpleNamespace(add_text=lambda *_: None))
    state = SimpleNamespace(is_world_process_zero=True, is_hyper_param_search=False)
    args = SimpleNamespace(output_dir=str(tmp_path), to_json_string=lambda: "{}")
    reporter.on_train_begin(args, state, None)
    (ours,), theirs = runs_of(tmp_path), Path(reporter.logging_dir)
    assert ours.parent.parent == theirs.parent
    date = r"\w{3}\d\d_\d\d-\d\d-\d\d_"
    assert re.sub(date, "", ours.name) == re.sub(date, "", theirs.name) != ours.name


def test_a_resumed_training_without_an_earlier_run_has_one_of_its_own(tmp_path):
    show(tmp_path, 5, first=3, step=10)
    (run,) = runs_of(tmp_path)
    assert steps_of(run) == [20, 30, 40]


def test_it_lies_where_the_trainers_reporter_is_told_to_write(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "told"))
    show(tmp_path / "out", 1)
    (run,) = (tmp_path / "told" / "sparks").iterdir()
    assert steps_of(run) == [0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path):
    (tmp_path / "runs").write_text("a file")
    args = SimpleNamespace(report_to=["tensorboard"], output_dir=str(tmp_path))
    with pytest.raises(SparksError, match=r"TensorBoard cannot start \(.*Error"):
        Trackers(args, SimpleNamespace(global_step=0), alerts=False, folder=tmp_path)
