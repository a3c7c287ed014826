"""W&B views: worked numbers, pictures, and a real offline run read back with W&B's own reader."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from factories import SMALL, STORY, large_run, make_run, make_snapshot, write_run
from places import HELPERS

from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.timeline.regimes.regime import circuit_turnover
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import data as trackers_data
from sparks.views.trackers import pictures
from sparks.views.trackers import wandb as wandb_view
from sparks.views.words import growth_in_words

wandb = pytest.importorskip("wandb")
pytest.importorskip("matplotlib")

QWEN = Graph(num_layers=28, num_heads=12, num_kv_heads=2)
IMAGES = {"sparks/heads_over_training", "sparks/heads_now"}
GREY = (0xDC, 0xDC, 0xDC)


def timelines(run: Sequence[Any]) -> Iterator[Timeline]:
    """What is known at each checkpoint."""
    for last in range(1, len(run) + 1):
        yield Timeline(run[:last])


# -- numbers -------------------------------------------------------------------------------------

WORKED = {  # of STORY, by step
    "sparks/heads_active": {0: 3, 10: 3, 20: 4, 30: 3, 40: 4},
    "sparks/heads_undecided": dict.fromkeys(STORY, 0),
    "sparks/paper/heads_active": {0: 3, 10: 3, 20: 4, 30: 3, 40: 4},
    "sparks/paper/heads_born": {0: 0, 10: 1, 20: 1, 30: 0, 40: 1},
    "sparks/null/births_low": dict.fromkeys(STORY, 0),  # all probes agree
    "sparks/null/births_high": dict.fromkeys(STORY, 0),
    "sparks/points": dict.fromkeys(STORY, 4),
    "sparks/heads_new": {0: 0, 10: 1, 20: 1, 30: 0, 40: 1},
    "sparks/heads_emergent": {0: 0, 10: 1, 20: 2, 30: 1, 40: 2},
    "sparks/heads_pruned": {0: 0, 10: 0, 20: 0, 30: 1, 40: 1},
    "sparks/base_retained": {0: 3, 10: 2, 20: 2, 30: 2, 40: 2},
    "sparks/base_retained_share": {0: 1, 10: 2 / 3, 20: 2 / 3, 30: 2 / 3, 40: 2 / 3},
    "sparks/cohort/01": {0: 0, 10: 1, 20: 1, 30: 0, 40: 1},  # L1H1, born at 10
    "sparks/cohort/02": {0: 0, 10: 0, 20: 1, 30: 1, 40: 0},  # L2H3, born at 20
    "sparks/cohort/03": {0: 0, 10: 0, 20: 0, 30: 0, 40: 1},  # L2H0, born at 40
    "sparks/cohort/04": dict.fromkeys(STORY, 0),
    "sparks/cohort/later": dict.fromkeys(STORY, 0),
}
MEASURED = {
    "sparks/circuit_stability",
    "sparks/loss_corrupted",
    "sparks/faithfulness",
    "sparks/completeness_gap",
    "sparks/seconds",
    *trackers_data.GROWTH_KEYS,
}
"""And `sparks/edge_turnover`, from the second checkpoint on."""


def test_numbers_of_every_checkpoint_by_hand():
    run = make_run(STORY, gap=[0.25, 0.5, 4.0, 0.75] * 4, seconds=2.5)
    circuits, growth = circuit_turnover(Timeline(run)), Timeline(run).growth()
    for moved, snapshot, timeline in zip(circuits, run, timelines(run), strict=True):
        found = trackers_data.scalars(timeline)
        expected = {key: values[snapshot.step] for key, values in WORKED.items()}
        expected |= {
            "sparks/faithfulness": np.median(1 - 0.25 / snapshot.loss_corrupted),
            "sparks/loss_corrupted": snapshot.loss_corrupted.mean(dtype=np.float64),
            "sparks/completeness_gap": 0.625,  # the median of 0.25, 0.5, 0.75, 4
            "sparks/seconds": 2.5,
            "sparks/circuit_stability": moved.edges_stability.value,
        }
        now, so_far = (growth[rows] for rows in (growth.step == snapshot.step,
                                                 growth.step <= snapshot.step))  # fmt: skip
        expected |= {f"sparks/heads_{kind}": (now.verdict == kind).sum() for kind in
                     ("grew", "shrank")}  # fmt: skip
        expected["sparks/births"] = (so_far.change == "born").sum()
        expected["sparks/prunings"] = so_far.change.isin(["pruned", "silenced"]).sum()
        if snapshot.step:
            expected["sparks/edge_turnover"] = moved.edges_from_previous.value
            assert 0 < moved.edges_from_previous.value < 1
        assert found == pytest.approx(expected)
        assert all(type(value) is float for value in found.values())


def test_curves_of_cohorts_stay_true():
    """What was logged when a checkpoint was the last is what the whole timeline says of it."""
    run = large_run(checkpoints=12, graph=QWEN)
    whole = Timeline(run).cohorts()
    named = whole.columns[: trackers_data.NUM_COHORTS]
    assert len(whole.columns) > len(named) == 4
    for timeline in timelines(run):
        values = trackers_data.scalars(timeline)
        row = whole.loc[timeline.steps[-1]]
        assert [values[f"sparks/cohort/{i:02d}"] for i in (1, 2, 3, 4)] == row[named].tolist()
        cohorts = [value for key, value in values.items() if key.startswith("sparks/cohort/")]
        assert len(cohorts) == 5
        assert sum(cohorts) == values["sparks/heads_emergent"] == row.sum()
    assert values["sparks/cohort/later"] > 0


def test_all_numbers_stay_what_they_were_when_a_run_goes_on():
    """Every key but those of the last checkpoint's own cost, of each prefix, against the whole."""
    run = large_run(checkpoints=6, graph=QWEN)
    counts, paper = Timeline(run).counts(), Timeline(run).paper_counts()
    for index, timeline in enumerate(timelines(run)):
        values = trackers_data.scalars(timeline)
        for key, column in trackers_data._COLUMNS.items():
            assert values.get(key, math.nan) == pytest.approx(counts[column][index], nan_ok=True)
        assert values["sparks/paper/heads_born"] == paper["born"].iloc[index]
    assert counts["undecided"].sum() > 0


def test_control_probes_have_keys_of_their_own():
    """L1H1 is born on both kinds of probes, L1H2 on the others alone."""
    groups = [""] * 16 + ["control"] * 16
    held = ({"L0H0": 32}, {"L0H0": 32, "L1H1": 32, "L1H2": 16})
    run = [
        make_snapshot(step, heads, probes=32, groups=groups)
        for step, heads in zip((0, 10), held, strict=True)
    ]
    values = trackers_data.scalars(Timeline(run))
    assert values["sparks/heads_new"] == 2
    found = {key: value for key, value in values.items() if "control" in key or "specific" in key}
    assert found == {
        "sparks/control/heads_active": 2,
        "sparks/control/heads_emergent": 1,
        "sparks/control/heads_new": 1,
        "sparks/heads_specific": 1,
    }


def test_the_papers_rule_has_the_same_keys():
    values = trackers_data.scalars(Timeline(make_run(STORY), rule="paper"))
    assert values.keys() == WORKED.keys() | MEASURED | {"sparks/edge_turnover"}
    assert values["sparks/heads_new"] == values["sparks/paper/heads_born"] == 1


def test_numbers_that_do_not_exist_are_left_out():
    values = trackers_data.scalars(Timeline(make_run({0: [], 10: ["L0H0"]}, gap=np.nan)))
    assert WORKED.keys() | MEASURED | {"sparks/edge_turnover"} == values.keys() | {
        "sparks/completeness_gap",  # of no probe is it a number
        "sparks/base_retained_share",  # there is no base head
    }
    few = trackers_data.scalars(Timeline([make_snapshot(0, ["L0H0"], probes=3)]))
    assert not [key for key in few if "null" in key]
    assert "sparks/completeness_gap" not in values
    assert "sparks/base_retained_share" not in values
    assert "sparks/completeness_gap" not in trackers_data.scalars(
        Timeline([make_snapshot(0, gap=np.inf)])
    )


# -- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        make_run(STORY),
        make_run({0: ["L0H0"]}),
        make_run({0: [], 10: []}),
        make_run({0: [], 1000000: ["L1H1"]}),
        large_run(checkpoints=40, graph=QWEN, probes=6, emergent_share=0.8),
    ],
    ids=["story", "one checkpoint", "no heads", "no base heads", "many heads"],
)
def test_pictures_are_small_png_files(run: Any):
    found = wandb_view.images(Timeline(run))
    assert found.keys() == IMAGES
    for picture in found.values():
        assert picture.format == "png"
        assert picture.image.size == (640, 380)
        assert 1_000 < Path(picture._path).stat().st_size <= 60_000
        assert len(picture.image.convert("RGB").getcolors()) > 5  # something is drawn


def test_a_picture_of_noise_is_small_too(monkeypatch: pytest.MonkeyPatch):
    """No order in time or over heads, every share different: no real run packs so badly."""
    timeline = Timeline(make_run(STORY))
    rng = np.random.default_rng(0)
    shares = rng.random((200, 28, 12)).astype(np.float32)
    arrays = {
        "steps": np.arange(200) * 100,
        "frequency": shares,
        "active": shares > 0,
        "base": shares[0] > 0,
        "undecided": shares < 0.2,
        "emergent": np.zeros_like(shares, dtype=bool),
        "cohort": np.full((28, 12), -1),
    }
    for name, values in arrays.items():
        monkeypatch.setattr(timeline, name, values)
    for picture in wandb_view.images(timeline).values():
        assert Path(picture._path).stat().st_size <= 60_000


def shown(figure: Any) -> tuple[Any, np.ndarray]:
    axes = figure.axes[0]
    return axes, np.asarray(axes.images[0].get_array())


def test_heads_now_shows_frequency_and_marks_what_changed():
    held = {"L0H0": 4, "L2H3": 1, "L1H1": 2}
    story = {0: ["L0H0", "L0H1"], 10: ["L1H1"], 20: held}
    timeline = Timeline(make_run(story, probes=4), rule="paper")
    axes, values = shown(pictures._heads_now(timeline))
    expected = np.zeros((4, 3))  # head, layer
    expected[0, 0], expected[3, 2], expected[1, 1] = 1, 0.25, 0.5
    np.testing.assert_array_equal(values, expected)
    marks = {line.get_label(): set(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert marks == {"emergent": {(2, 3), (1, 1)}, "base, now silent": {(0, 1)}}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "head")
    assert axes.get_title() == "3 active heads at step 20 (paper's rule)"


def undecided() -> Timeline:
    """L1H1 is pruned at 10, and may be active again at 20."""
    held = {0: {"L0H0": 16, "L1H1": 16}, 10: {"L0H0": 16}, 20: {"L0H0": 16, "L1H1": 5}}
    return Timeline(make_run(held))


def test_heads_that_the_rule_leaves_open_have_a_mark_and_no_other():
    axes, _ = shown(pictures._heads_now(undecided()))
    marks = {line.get_label(): set(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert marks == {"emergent": set(), "base, now silent": set(), "undecided": {(1, 1)}}
    assert axes.get_title() == "1-2 active heads at step 20 (rule of growth)"


def test_undecided_states_are_paler_over_training():
    axes, values = shown(pictures._heads_over_training(undecided()))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["base (2)"]
    assert axes.get_xlabel() == "training step (rule of growth; paler: undecided)"
    _, veil = axes.images
    shade = np.asarray(veil.get_array())[..., 3]
    assert shade.shape == values.shape
    assert (shade[:, [0, -1]] > 0).tolist() == [[False, False], [False, True]]  # L0H0, L1H1
    story, _ = shown(pictures._heads_over_training(Timeline(make_run(STORY))))
    assert len(story.images) == 1
    assert story.get_xlabel() == "training step (rule of growth)"


def test_heads_over_training_are_ordered_by_cohort():
    timeline = Timeline(make_run(STORY))
    axes, values = shown(pictures._heads_over_training(timeline))
    order = ["L0H0", "L0H1", "L1H0", "L1H1", "L2H3", "L2H0"]  # base; born at 10, 20, 40
    rows = [timeline.frequency[(slice(None), *SMALL.head(name))] for name in order]
    assert values.shape == (6, 350)
    np.testing.assert_array_equal(values[:, 35::70], rows)  # the middle of each checkpoint's time
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["base (3)", "step 10 (1)", "step 20 (1)", "step 40 (1)"]
    assert [line.get_ydata()[0] for line in axes.lines] == [3, 4, 5]
    assert axes.get_title() == "3 base heads and 3 emergent ones, of 12"
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 50), (6, 0))  # the first row on top


def test_heads_of_one_cohort_are_in_order_of_layer_and_head():
    graph = Graph(num_layers=9, num_heads=9, num_kv_heads=3)
    names = [f"L{layer}H{head}" for layer in range(9) for head in range(9)]
    base = names[::3]
    held = {name: 1 + index % 4 for index, name in enumerate(names)}
    run = make_run({0: dict.fromkeys(base, 4), 10: held}, graph=graph, probes=4)
    timeline = Timeline(run, rule="paper")
    _, values = shown(pictures._heads_over_training(timeline))
    order = base + [name for name in names if name not in base]
    assert (values[:, -1] * 4).tolist() == [held[name] for name in order]


def test_a_checkpoint_fills_the_time_until_the_next():
    """Uneven steps: 0, 10, 50, 60; the last lasts the median of 10, 40, 10."""
    checkpoints = {0: ["L0H0"], 10: [], 50: ["L0H0"], 60: []}
    axes, values = shown(pictures._heads_over_training(Timeline(make_run(checkpoints))))
    assert axes.get_xlim() == (0, 70)
    np.testing.assert_array_equal(values[0], np.repeat([1, 0, 0, 0, 0, 1, 0], 50))


def test_more_heads_than_rows_are_averaged():
    steps, shares = np.array([0, 1]), np.zeros((1000, 2))
    shares[998:, 1] = 1, 0.5
    rows = pictures._resampled(shares, steps, np.array([0.0, 1.0, 2.0]))
    assert rows.shape == (250, 350)
    assert rows[-1, 0] == 0
    assert rows[-1, -1] == pytest.approx(1.5 / 4)
    assert rows[:-1].max() == 0


def test_silent_heads_are_grey_and_the_rest_cividis():
    import matplotlib

    picture = wandb_view.images(Timeline(make_run({0: ["L1H0"]})))["sparks/heads_now"]
    pixels = np.asarray(picture.image.convert("RGB")).astype(int)
    x = 640 * (0.08 + 0.77 * (np.arange(3) + 0.5) / 3)
    y = 380 * (0.1 + 0.66 * (np.arange(4) + 0.5) / 4)
    found = pixels[y.astype(int)[:, None], x.astype(int)]
    expected = np.full((4, 3, 3), GREY)
    expected[0, 1] = np.array(matplotlib.colormaps["cividis"](1.0)[:3]) * 255
    assert np.abs(found - expected).max() <= 6


def test_drawing_leaves_pyplot_and_the_users_style_alone():
    import matplotlib

    timeline = Timeline(make_run(STORY))
    plain = {key: picture.image.tobytes() for key, picture in wandb_view.images(timeline).items()}
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        styled = wandb_view.images(timeline)
        assert dict(matplotlib.rcParams) == before
    assert {key: picture.image.tobytes() for key, picture in styled.items()} == plain


CHILD = """
import sys
from sparks.views.trackers import trackers
from sparks.views.trackers import data as trackers_data
from sparks.views.trackers import wandb as wandb_view
heavy = {"wandb", "trackio", "tensorboard", "matplotlib", "torch", "transformers", "trl"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.path.insert(0, sys.argv[1])
from factories import STORY, make_run
from sparks.timeline.timeline import Timeline
timeline = Timeline(make_run(STORY))
trackers_data.scalars(timeline)
assert not heavy & set(sys.modules), heavy & set(sys.modules)
wandb_view.images(timeline)
assert "matplotlib.pyplot" not in sys.modules
"""


def test_the_module_loads_no_tracker_and_drawing_no_pyplot():
    here = HELPERS
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(here)], cwd=here.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["wandb", "matplotlib"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    for module in [name, *(found for found in sys.modules if found.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    message = rf"need {name}, which cannot be imported .*pip install 'thinking-sparks\[wandb\]'"
    with pytest.raises(SparksError, match=message):
        wandb_view.images(Timeline(make_run(STORY)))


# -- a real run, offline -------------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """What W&B's reader finds in the log of a finished run."""

    folder: Path
    records: list[dict[str, Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """History rows, without W&B's clocks and counters."""
        rows = [entry["history"]["item"] for entry in self.records if entry["type"] == "history"]
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]

    @property
    def ours(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if any(key.startswith("sparks/") for key in row)]

    @property
    def others(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if not any(key.startswith("sparks/") for key in row)]


def read_back(folder: Path) -> Logged:
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return Logged(folder, [json.loads(line) for line in done.stdout.splitlines()])


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
            patch.setenv(f"WANDB_{name}", value)
        for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder))
        yield folder
        wandb.teardown()


SNAPSHOTS = make_run(STORY, seconds=2.5)


def generators() -> list[Any]:
    state = np.random.get_state()
    return [torch.get_rng_state().tolist(), state[1].tolist(), state[2:], random.getstate()]


def train(report: Path, files: Sequence[Path], *, with_sparks: bool) -> tuple[Path, list[float]]:
    """A run as the trainer's reporter and a user's own callback log it; its folder, our seconds."""
    run = wandb.init(project="sparks-test")
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    seconds = []
    for last, step in enumerate(STORY, start=1):
        run.log({"train/loss": 1 / last, "train/global_step": step})
        if with_sparks:
            before, start = generators(), perf_counter()
            wandb_view.log(run, Timeline(SNAPSHOTS[:last]))
            wandb_view.alert(run, Timeline(SNAPSHOTS[:last]))
            seconds.append(perf_counter() - start)
            assert generators() == before
        run.log({"user/value": 10 * last})
        run.log({"eval/loss": 2 / last, "train/global_step": step})
    if with_sparks:
        before = generators()
        wandb_view.finish(run, Timeline(SNAPSHOTS), report, files)
        assert generators() == before
    run.log({"user/last": 1.0})  # the run is still open
    folder = Path(run.dir).parent
    run.finish()
    return folder, seconds


@pytest.fixture(scope="module")
def report(offline: Path) -> Path:
    path = offline / "report.html"
    path.write_text("<!doctype html><title>heads</title><p>L5H1 &lt;born&gt;", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(offline: Path) -> list[Path]:
    return sorted(write_run(offline / "sparks", SNAPSHOTS).glob("*.safetensors"))


@pytest.fixture(scope="module")
def logged(offline: Path, report: Path, files: list[Path]) -> Logged:
    folder, seconds = train(report, files, with_sparks=True)
    median = sorted(seconds)[len(seconds) // 2]
    print(f"a log call: median {median:.3f} s, slowest {max(seconds):.3f} s")
    assert median < 5
    return read_back(folder)


@pytest.mark.slow
def test_every_checkpoint_is_one_row_that_holds_the_trainers_step(logged: Logged):
    rows = logged.ours[:-1]
    assert [row["train/global_step"] for row in rows] == list(STORY)
    for row in rows:
        plain = {key for key in row if not any(key.startswith(image) for image in IMAGES)}
        plain -= {"sparks/edge_turnover"}
        assert plain == WORKED.keys() | MEASURED | {"train/global_step"}
        assert ("sparks/edge_turnover" in row) == (row["train/global_step"] > 0)
        for key, values in WORKED.items():
            assert row[key] == pytest.approx(values[row["train/global_step"]]), key
        assert row["sparks/seconds"] == 2.5


def test_pictures_of_every_row_are_files_of_the_run(logged: Logged):
    from PIL import Image

    paths = set()
    for row in logged.ours[:-1]:
        for key in IMAGES:
            assert row[f"{key}._type"] == "image-file"
            assert row[f"{key}.caption"] == f"step {row['train/global_step']}, rule of growth"
            path = logged.folder / "files" / row[f"{key}.path"]
            assert path.stat().st_size == row[f"{key}.size"] <= 60_000
            with Image.open(path) as picture:
                picture.load()
                assert (picture.format, picture.size) == ("PNG", (640, 380))
            paths.add(path)
    assert len(paths) == 2 * len(STORY)  # every picture differs


def test_rows_of_others_are_the_same_with_and_without_us(
    logged: Logged, report: Path, files: list[Path]
):
    folder, _ = train(report, files, with_sparks=False)
    without = read_back(folder)
    assert without.ours == []
    assert len(without.others) == 3 * len(STORY) + 1
    assert logged.others == without.others


def test_the_end_is_one_row_with_table_and_report(logged: Logged, report: Path):
    row = logged.ours[-1]
    assert row["train/global_step"] == 40
    assert row["sparks/report._type"] == "html-file"
    page = logged.folder / "files" / row["sparks/report.path"]
    assert page.read_bytes() == report.read_bytes()  # nothing injected
    assert row["sparks/verdict"] == growth_in_words(Timeline(SNAPSHOTS))
    assert row["sparks/heads._type"] == "table-file"
    table = json.loads((logged.folder / "files" / row["sparks/heads.path"]).read_text())
    heads = Timeline(SNAPSHOTS).heads()
    assert table["columns"] == list(heads.columns)
    assert len(table["data"]) == SMALL.num_layers * SMALL.num_heads
    by_name = {line[0]: dict(zip(table["columns"], line, strict=True)) for line in table["data"]}
    assert by_name["L1H1"] | {"births": 2, "prunings": 1, "cohort_step": 10} == by_name["L1H1"]
    assert by_name["L0H0"]["base"] is True
    assert by_name["L0H0"]["cohort_step"] is None


def test_the_artifact_holds_the_snapshots(logged: Logged, files: list[Path]):
    found = [entry["artifact"] for entry in logged.records if entry["type"] == "artifact"]
    (artifact,) = [entry for entry in found if entry["type"] == "sparks-snapshots"]
    assert artifact["name"].startswith("sparks-")
    contents = artifact["manifest"]["contents"]
    assert {entry["path"]: int(entry["size"]) for entry in contents} == {
        path.name: path.stat().st_size for path in files
    }
    assert len(contents) == len(STORY)
    metadata = json.loads(artifact["metadata"])
    assert metadata["steps"] == list(STORY)


def test_births_and_prunings_are_alerts(logged: Logged):
    found = [entry["alert"] for entry in logged.records if entry["type"] == "alert"]
    assert [(alert["title"], alert["text"], alert["level"]) for alert in found] == [
        ("Attention heads at step 10: 1 born", "born: L1H1", "INFO"),
        ("Attention heads at step 20: 1 born", "born: L2H3", "INFO"),
        ("Attention heads at step 30: 1 pruned", "pruned: L1H1", "INFO"),
        ("Attention heads at step 40: 1 born, 1 pruned", "born: L2H0; pruned: L2H3", "INFO"),
    ]


def test_it_starts_only_with_the_reporters_run(offline: Path):
    with pytest.raises(SparksError, match="names wandb, but no W&B run is open"):
        wandb_view.start(None, None)
    with wandb.init(project="sparks-test") as run:
        assert wandb_view.start(None, None) is run
        wandb_view.close(run)
        run.log({"still": "open"})


def test_a_finished_run_is_refused_by_wandb(offline: Path, report: Path):
    run = wandb.init(project="sparks-test")
    run.finish()
    timeline = Timeline(SNAPSHOTS)
    with pytest.raises(wandb.errors.UsageError, match="is finished"):
        wandb_view.log(run, timeline)
    with pytest.raises(wandb.errors.UsageError, match="is finished"):
        wandb_view.finish(run, timeline, report, [])


class Recorder:
    """Stands for a run; keeps what it is given."""

    id = "a b"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []

    def log(self, row: dict[str, Any], **keywords: Any) -> None:
        self.calls.append(("log", row, keywords))

    def log_artifact(self, artifact: Any, **keywords: Any) -> None:
        self.calls.append(("artifact", artifact, keywords))


def test_one_call_a_checkpoint_and_never_a_step():
    run = Recorder()
    wandb_view.log(run, Timeline(SNAPSHOTS))
    ((kind, row, keywords),) = run.calls
    assert (kind, keywords) == ("log", {})
    others = {"train/global_step", "sparks/edge_turnover"}
    assert row.keys() == WORKED.keys() | MEASURED | IMAGES | others
    assert type(row["train/global_step"]) is int


def test_without_report_and_snapshots_only_the_table_is_logged():
    run = Recorder()
    wandb_view.finish(run, Timeline(SNAPSHOTS), None, [])
    ((_, row, keywords),) = run.calls
    assert row.keys() == {"sparks/verdict", "sparks/heads", "train/global_step"}
    assert keywords == {}


def test_a_missing_file_is_named_before_anything_is_logged(tmp_path: Path):
    run, missing = Recorder(), tmp_path / "report.html"
    for arguments in [(missing, []), (None, [missing])]:
        with pytest.raises(SparksError, match=r"must be files, .*report\.html is none"):
            wandb_view.finish(run, Timeline(SNAPSHOTS), *arguments)
    assert run.calls == []


def test_an_artifact_is_named_after_the_run_whatever_its_id(offline: Path, files: list[Path]):
    run = Recorder()
    wandb_view.finish(run, Timeline(SNAPSHOTS), None, files)
    assert run.calls[-1][1].name == "sparks-a-b"


def test_a_table_of_too_many_heads_drops_those_that_were_never_active(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(wandb.Table, "MAX_ROWS", 6)
    run = Recorder()
    wandb_view.finish(run, Timeline(SNAPSHOTS), None, [])
    names = [row[0] for row in run.calls[0][1]["sparks/heads"].data]
    assert names == ["L0H0", "L0H1", "L1H0", "L1H1", "L2H0", "L2H3"]
