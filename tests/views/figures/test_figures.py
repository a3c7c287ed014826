"""Figures for papers: the numbers behind them, the pictures, and the files opened again."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from command_line import assert_refused, call, listing
from factories import (
    SMALL,
    STORY,
    large_run,
    make_metrics,
    make_run,
    make_snapshot,
    write_run,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.text import Text

from sparks import Comparison, SparksError, Timeline, write_figures
from sparks.ground.errors import printable
from sparks.models.graph import Graph
from sparks.timeline.nulls import null_of
from sparks.views import figures
from sparks.views.figures.kinds import FIGURES
from sparks.views.figures.style import UNDATED

OTHER = STORY | {40: ["L0H0", "L1H1", "L2H3"]}
ACCURACY = "rewards/accuracy_reward/mean"
NAMES = [kind.name for kind in FIGURES]
OF_ONE = [kind.name for kind in FIGURES if not kind.of_several]
HOSTILE = ["</svg><script>alert(1)</script>", "_../../$\\frac{ -->&\u202e\u4e2d\x00\n"]


def story(name: str = "story", checkpoints=STORY, **metrics: float) -> Timeline:
    """A timeline that logs `metrics` at every step between its checkpoints."""
    log = [row | metrics for row in make_metrics(range(-5, 60, 5))]
    return Timeline(make_run(checkpoints), metrics=log, name=name)


@cache
def large() -> Timeline:
    """28 x 12 heads, of which most cohorts have one or two."""
    graph = Graph(num_layers=28, num_heads=12, num_kv_heads=2)
    return Timeline(large_run(checkpoints=40, graph=graph), name="large")


def drawn(name: str, timeline: Timeline, **keywords):
    """The figure of that name; of several runs with another beside."""
    function = getattr(figures, name.replace("-", "_"))
    if name == "shared-heads":
        return function(Comparison.of([timeline, timeline], ["sft", "grpo"]), **keywords)
    return function(timeline, **keywords)


# -- frames, by hand -------------------------------------------------------------------------------


def test_cohorts_of_the_story():
    frame = figures.frames.cohorts(story())
    named = ["step", "rule", "curve", "cohort", "heads", "null_low", "null_high"]
    assert list(frame.columns) == named
    assert set(frame["rule"]) == {"growth"}
    curves = {
        (curve, None if pd.isna(cohort) else cohort): part["heads"].tolist()
        for (curve, cohort), part in frame.groupby(["curve", "cohort"], dropna=False)
    }
    assert curves == {
        ("cohort", 10): [0, 1, 1, 0, 1],  # L1H1
        ("cohort", 20): [0, 0, 1, 1, 0],  # L2H3
        ("cohort", 40): [0, 0, 0, 0, 1],  # L2H0
        ("newly_active", None): [0, 1, 1, 0, 1],
        ("retained_base", None): [3, 2, 2, 2, 2],
        ("emergent", None): [0, 1, 2, 1, 2],
        ("undecided", None): [0, 0, 0, 0, 0],
        ("paper_active", None): [3, 3, 4, 3, 4],
        ("paper_newly_active", None): [0, 1, 1, 0, 1],
    }
    assert frame["step"].tolist() == list(STORY) * 9
    null = frame[frame["null_high"].notna()]
    assert set(null["curve"]) == {"emergent"}
    assert null["null_low"].tolist() == null["null_high"].tolist() == [0] * 5


def test_the_null_is_that_of_the_rule():
    """Probes that agree on nothing: by the paper's rule other probes give other heads."""
    rng = np.random.default_rng(0)
    names = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    run = [make_snapshot(step, dict.fromkeys(names, 0)) for step in (0, 10)]
    for snapshot in run:
        snapshot.active[:] = rng.random(snapshot.active.shape) < 0.1
    for rule in ("growth", "paper"):
        timeline = Timeline(run, rule=rule)
        band = null_of(timeline)
        frame = figures.frames.cohorts(timeline)
        assert frame["null_high"].max() == band.births_high
        (patch,) = figures.cohorts(timeline).axes[0].patches
        assert patch.get_y() + patch.get_height() == band.births_high
    assert band.births_high > 0
    few = Timeline(make_run({0: [], 10: []}, probes=3), rule="paper")
    assert figures.frames.cohorts(few)["null_high"].isna().all()
    assert len(figures.cohorts(few).axes[0].patches) == 0


def test_the_head_map_of_the_story():
    frame = figures.frames.head_map(story()).set_index("head")
    state = frame["state"]
    assert sorted(state[state == "base"].index) == ["L0H0", "L0H1", "L1H0"]
    assert sorted(state[state == "emergent"].index) == ["L1H1", "L2H0", "L2H3"]
    assert set(state) == {"base", "emergent", "never"}
    shares = {"L0H0": 1, "L0H1": 0.4, "L1H0": 0.8, "L1H1": 0.6, "L2H3": 0.4, "L2H0": 0.2}
    assert frame["frequency"][frame["frequency"] > 0].to_dict() == pytest.approx(shares)
    assert frame.index[frame["active_at_end"]].tolist() == ["L0H0", "L1H0", "L1H1", "L2H0"]
    assert frame.loc[["L2H0", "L1H1"], "cohort_step"].tolist() == [40, 10]
    assert frame["frequency_last"].tolist() == frame["active_at_end"].astype(float).tolist()


def test_probes_count_in_the_head_map():
    timeline = Timeline(make_run({0: {"L0H0": 1}, 10: {"L0H0": 3, "L1H0": 2}}, probes=4))
    shares = figures.frames.head_map(timeline).set_index("head")["frequency"]
    assert (shares["L0H0"], shares["L1H0"]) == (0.5, 0.25)


def test_the_reward_is_the_accuracy_from_the_first_checkpoint_to_the_last():
    log = [{"step": step, ACCURACY: step / 100, "reward": 1.0} for step in (-5, 0, 20, 40, 45)]
    timeline = Timeline(make_run(STORY), metrics=[*log, {"step": 30, "loss": 1.0}])
    frame = figures.frames.reward(timeline)
    assert frame["step"].tolist() == [0, 20, 40]
    assert frame["value"].tolist() == [0, 0.2, 0.4]
    assert set(frame["metric"]) == {ACCURACY}
    assert figures.frames.reward(timeline, metric="reward")["value"].tolist() == [1, 1, 1]
    assert figures.frames.reward_metric(story(reward=1.0)) == "reward"
    assert figures.frames.reward_metric(story()) is None
    with pytest.raises(SparksError, match="the log of 'story' holds no 'kl' from its first"):
        figures.frames.reward(story(), metric="kl")


def test_effects_by_hand():
    run = [
        make_snapshot(step, ["L0H0", "L0H1"], probes=1, importance=planted)
        for step, planted in (
            (0, {"L0H0": 3.0, "L0H1": 1.0}),
            (10, {"L0H0": 1.0, "L0H1": 3.0}),
            (20, {"L0H0": 3.0, "L0H1": 1.0}),
        )
    ]
    frame = figures.frames.effect_map(Timeline(run, rule="paper")).set_index("head")
    assert frame.loc["L0H0", "importance_first"] == pytest.approx(0.75)
    mean = {"L0H0": -0.25, "L0H1": 0.25, "L2H2": 0.0}  # of -0.5 and 0
    assert frame.loc[list(mean), "effect_mean"].to_dict() == pytest.approx(mean, abs=1e-5)
    assert frame.loc[["L0H0", "L2H2"], "ever_active"].tolist() == [True, False]


def test_the_shift_of_components_is_that_of_the_timeline():
    timeline = story()
    totals = timeline.component_totals()
    frame = figures.frames.component_shift(timeline)
    assert list(frame["component"].unique()) == ["attention", "mlp", "both"]
    for component in ("attention", "mlp"):
        for layer in range(SMALL.num_layers):
            (row,) = frame.query("component == @component and layer == @layer").to_dict("records")
            own = totals[(totals["component"] == component) & (totals["layer"] == layer)]
            assert row["share_first"] == own["share"].iloc[0]
            assert row["effect_mean"] == pytest.approx(own["effect"].iloc[1:].mean(), abs=1e-12)
            assert row["effect_last"] == pytest.approx(own["effect"].iloc[-1], abs=1e-12)
    parts = frame.set_index(["component", "layer"])["share_last"]
    np.testing.assert_allclose(parts["both"], parts["attention"] + parts["mlp"])
    left = 1 - totals.query("component == 'embed'")["share"].iloc[-1]
    assert parts["both"].sum() == pytest.approx(left)


def test_shared_heads_by_hand():
    frame = figures.frames.shared_heads(Comparison([story(), story("b", OTHER)], ["a", "b"]))
    emergent = frame[frame["emergent_at_end"]].set_index(["run", "head"])
    assert sorted(emergent.index) == [("a", "L1H1"), ("a", "L2H0"), ("b", "L1H1"), ("b", "L2H3")]
    assert emergent["runs_at_end"].to_dict() == {
        ("a", "L1H1"): 2, ("b", "L1H1"): 2, ("a", "L2H0"): 1, ("b", "L2H3"): 1,
    }  # fmt: skip
    alone = frame[frame["exclusive_at_end"]]
    assert list(zip(alone["run"], alone["head"], strict=True)) == [("a", "L2H0"), ("b", "L2H3")]
    assert frame[frame["exclusive_ever"]]["head"].tolist() == ["L2H0"]


# -- pictures --------------------------------------------------------------------------------------


def test_cohorts_are_stacked_and_the_curves_stand_over_them():
    figure = figures.cohorts(story())
    (axes,) = figure.axes
    areas = [item for item in axes.collections if isinstance(item, PolyCollection)]
    tops = [float(area.get_paths()[0].vertices[:, 1].max()) for area in areas]
    assert tops == [1, 2, 2]
    new, retained = axes.lines
    assert new.get_ydata().tolist() == [0, 1, 1, 0, 1]
    assert retained.get_ydata().tolist() == [3, 2, 2, 2, 2]
    assert (new.get_linestyle(), retained.get_linestyle()) == ("-", "--")
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    curves = ["newly active", "base heads retained (of 3)", "unchanged model (0)"]
    assert named == ["10", "20", "40", *curves]
    assert axes.get_xlabel() == "training step"


def test_many_cohorts_are_merged_and_none_is_lost():
    timeline = large()
    assert timeline.cohorts().shape[1] > 6
    areas = [
        item for item in figures.cohorts(timeline).axes[0].collections
        if isinstance(item, PolyCollection)
    ]  # fmt: skip
    assert len(areas) == 6
    highest = max(float(area.get_paths()[0].vertices[:, 1].max()) for area in areas)
    assert highest == timeline.counts()["emergent"].max()


def test_a_run_without_births_has_its_curves():
    timeline = Timeline(make_run({0: ["L0H0"], 10: ["L0H0"]}))
    figure = figures.cohorts(timeline)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0, 0], [1, 1]]
    assert len(figure.legends) == 1


def cells(figure) -> np.ndarray:
    """Colour of each head: [layers, heads, RGBA]."""
    (mesh,) = (item for item in figure.axes[0].collections if isinstance(item, QuadMesh))
    return np.asarray(mesh.get_array()).swapaxes(0, 1)


def test_base_heads_are_grey_emergent_ones_blue_the_active_outlined():
    figure = figures.head_map(story())
    red, green, blue, _ = np.moveaxis(cells(figure), -1, 0)
    is_grey = (np.abs(red - blue) < 0.01) & (np.abs(red - green) < 0.01)
    assert np.argwhere(is_grey & (red < 0.9)).tolist() == [[0, 0], [0, 1], [1, 0]]
    assert np.argwhere(blue > red + 0.05).tolist() == [[1, 1], [2, 0], [2, 3]]
    darkness = -cells(figure)[..., :3].sum(axis=-1)
    assert darkness[0, 0] > darkness[1, 0] > darkness[0, 1]  # in 1, 0.8 and 0.4 of the circuits
    assert darkness[1, 1] > darkness[2, 3] > darkness[2, 0]  # in 0.6, 0.4 and 0.2
    (outlines,) = (i for i in figure.axes[0].collections if type(i) is PolyCollection)
    middles = [path.vertices[:4].mean(axis=0).round(6).tolist() for path in outlines.get_paths()]
    assert middles == [[0, 0], [1, 0], [1, 1], [2, 0]]
    assert outlines.get_facecolor().size == 0


def doubtful(name: str = "") -> Timeline:
    """L1H1 is base, L2H2 is undecided throughout, L0H3 is born."""
    shares = {0: (16, 5, 0), 10: (16, 5, 16), 20: (16, 5, 16)}
    names = ("L1H1", "L2H2", "L0H3")
    run = {step: dict(zip(names, held, strict=True)) for step, held in shares.items()}
    return Timeline(make_run(run), name=name)


def dark(timeline: Timeline) -> Timeline:
    """With too little L at the first checkpoint."""
    first, *rest = timeline.snapshots
    none = np.zeros(first.num_probes, np.float32)
    return Timeline([replace(first, loss_corrupted=none), *rest])


def frames_of(figure, *, dashed: bool) -> list[list[int]]:
    """Cells with a black frame."""
    found = [i for i in figure.axes[0].collections if type(i) is PolyCollection]
    kept = [item for item in found if (item.get_linestyle()[0][1] is not None) == dashed]
    return [
        path.vertices[:4].mean(axis=0).round().astype(int).tolist()
        for item in kept
        for path in item.get_paths()
    ]


def test_undecided_heads_have_a_third_look_and_undated_ones_their_own_colour():
    timeline = doubtful()
    frame = figures.frames.head_map(timeline).set_index("head")
    assert frame["state"][["L1H1", "L2H2", "L0H3"]].tolist() == ["base", "never", "emergent"]
    assert frame.index[frame["undecided_at_end"]].tolist() == ["L2H2"]
    assert frame.loc["L2H2", "share_low"] < 1 < frame.loc["L2H2", "share_high"]
    figure = figures.head_map(timeline)
    assert frames_of(figure, dashed=True) == [[2, 2]]
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == ["active at step 20", "undecided", "never active"]
    curves = figures.cohorts(timeline).axes[0].lines
    assert curves[2].get_ydata().tolist() == timeline.counts()["undecided"].tolist() == [1, 1, 1]
    figure = figures.head_map(dark(timeline))
    assert [0, 3] in frames_of(figure, dashed=False)
    assert matplotlib.colors.to_hex(cells(figure)[0, 3]) == UNDATED
    assert "undated" in [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_a_head_that_is_undecided_in_the_other_run_is_of_neither():
    """L2H2 is born in the other run, and undecided in this one."""
    other = Timeline(make_run({0: ["L1H1"], 10: ["L1H1", "L2H2"], 20: ["L0H3", "L2H2"]}))
    figure = figures.shared_heads(Comparison([doubtful(), other], ["a", "b"]))
    assert frames_of(figure, dashed=True) == [[2, 2]]
    assert cells(figure)[0, 3].tolist() == [0, 0, 0, 1]
    widths = [bar.get_width() for bar in figure.axes[1].patches]
    assert widths == [0, 0, 1, 0, 0, 0, 1, 1]  # alone, some, both, undecided; of a and of b


@pytest.mark.parametrize("rule", ["growth", "paper"])
@pytest.mark.parametrize("name", ["cohorts", "head-map", "effect-map", "shared-heads"])
def test_every_figure_that_rests_on_the_rule_names_it(name, rule):
    texts = [text.get_text() for text in drawn(name, story().by(rule)).texts]
    assert ("rule of growth" if rule == "growth" else "paper's rule") in texts


def test_shared_heads_are_black_and_each_run_has_its_colour():
    runs = Comparison([story(), story("b", OTHER)], ["a", "b"])
    figure = figures.shared_heads(runs)
    colours = cells(figure)
    assert colours[1, 1].tolist() == [0, 0, 0, 1]
    own = [matplotlib.colors.to_hex(colours[2, head]) for head in (0, 3)]
    bars = {matplotlib.colors.to_hex(bar.get_facecolor()): bar for bar in figure.axes[1].patches}
    assert len(set(own)) == 2
    assert [(bars[colour].get_y() + 0.36, bars[colour].get_width()) for colour in own] == [
        (pytest.approx(0), 1),
        (pytest.approx(1), 1),
    ]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["a", "b"]


def test_the_reward_stands_below_the_cohorts_on_the_same_axis():
    timeline = story(**{ACCURACY: 0.5})
    for width, inches in (("column", 3.25), ("page", 6.75)):
        above, below = figures.cohorts(timeline, width=width), figures.reward(timeline, width=width)
        places = [figure.axes[0].get_position() for figure in (above, below)]
        assert above.get_figwidth() == below.get_figwidth() == inches
        assert (places[0].x0, places[0].x1) == (places[1].x0, places[1].x1)
        assert above.axes[0].get_xlim() == below.axes[0].get_xlim() == (0, 40)
    assert below.axes[0].get_ylabel() == "accuracy reward"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["story", "28 x 12", "long names"])
def test_every_letter_is_legible_and_inside_the_figure(name, kind):
    if kind == "28 x 12":
        timeline = large()
    elif kind == "story":
        timeline = story(reward=123456.5)
    else:
        steps = make_run({step * 25_000: heads for step, heads in STORY.items()})
        log = [{"step": 0, "W" * 99: 1.0, "reward": -1e-9}, {"step": 9, "reward": 1e-9}]
        timeline = Timeline(steps, metrics=log, name="run")
    figure = drawn(name, timeline)
    if name == "shared-heads" and kind == "long names":
        figure = figures.shared_heads(Comparison([timeline] * 2, ["W" * 50, "W" * 49]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    sizes = {t.get_fontsize() for t in figure.findobj(Text) if t.get_visible() and t.get_text()}
    assert sizes <= {6, 6.5, 7}
    everything = figure.get_tightbbox(canvas.get_renderer())  # inches
    assert everything.x0 >= 0
    assert everything.y0 >= 0
    assert everything.x1 <= figure.get_figwidth()
    assert everything.y1 <= figure.get_figheight()


@pytest.mark.parametrize("shape", [(1, 1), (2, 96), (96, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_models_of_any_shape_fit(name, shape):
    graph = Graph(num_layers=shape[0], num_heads=shape[1], num_kv_heads=1)
    quiet = Timeline(make_run({0: [], 10: []}, graph=graph), metrics=[{"step": 4, "reward": 0}])
    figure = drawn(name, quiet)
    FigureCanvasAgg(figure).draw()
    assert figure.get_figwidth() == 3.25
    assert figure.get_figheight() < 6


def test_the_users_style_changes_nothing_and_is_not_changed():
    plain = figures.render(figures.head_map(story()), "svg")
    with matplotlib.rc_context({"font.size": 31, "svg.fonttype": "none", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert figures.render(figures.head_map(story()), "svg") == plain
        assert dict(matplotlib.rcParams) == before


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Timeline]]:
    """Two runs with hostile names, all figures in all formats."""
    folder = tmp_path_factory.mktemp("figures") / "new"
    runs = [story(name, reward=0.5) for name in HOSTILE]
    result = write_figures(runs, folder, formats=("pdf", "svg", "png"), data=("csv", "parquet"))
    assert sorted(result.paths) == sorted(folder.iterdir())
    assert result.left_out == ()
    return folder, runs


def test_names_of_files_say_what_they_show(written):
    folder, _ = written
    pdfs = sorted(path.stem for path in folder.glob("*.pdf"))
    assert len(pdfs) == 5 * 2 + 1
    assert "fig14-shared-heads" in pdfs
    assert all(re.fullmatch(r"fig\d+[ab]?-[\w.-]+", name) for name in pdfs)
    assert not (folder / ".." / "x").resolve().exists()
    for kind in FIGURES:
        assert any(name.startswith(kind.file) for name in pdfs), kind


def test_pdfs_embed_their_fonts_and_name_no_date(written):
    for path in written[0].glob("*.pdf"):
        content = path.read_bytes()
        descriptors = len(re.findall(rb"/Type\s*/FontDescriptor", content))
        assert descriptors == len(re.findall(rb"/FontFile2\s+\d+ 0 R", content)) > 0, path
        assert b"/Type3" not in content
        assert b"Date" not in content
        assert content.startswith(b"%PDF-")
        assert content.rstrip().endswith(b"%%EOF")


def test_svgs_are_xml_without_scripts_or_links(written):
    paths = list(written[0].glob("*.svg"))
    assert len(paths) == 11
    assert all(
        "alert(1)" in (written[0] / name).read_text("utf-8")
        for name in ("fig2a-cohorts-svg-script-alert-1-script.svg", "fig14-shared-heads.svg")
    )  # the names are there, as text
    for path in paths:
        root = ElementTree.fromstring(path.read_text("utf-8"))
        elements = list(root.iter())
        assert len(elements) > 50
        local = {element.tag.rpartition("}")[2].lower() for element in elements}
        assert local.isdisjoint({"script", "a", "foreignobject", "text", "animate", "set"})
        for element in elements:
            for key, value in element.attrib.items():
                key = key.rpartition("}")[2].lower()
                assert not key.startswith("on")
                if key == "href":
                    assert value.startswith(("#", "data:image/png"))
        assert not re.search(r"<\s*script", path.read_text("utf-8"), re.IGNORECASE)


def test_pngs_have_the_pixels_of_a_column(written):
    for path in written[0].glob("*.png"):
        assert struct.unpack(">I", path.read_bytes()[16:20]) == (975,)  # 3.25 inches, 300 dpi


@pytest.mark.parametrize("name", NAMES)
def test_csv_and_parquet_hold_the_frame(name, written):
    folder, runs = written
    (kind,) = (kind for kind in FIGURES if kind.name == name)
    frame = getattr(figures.frames, name.replace("-", "_"))
    expected = frame(Comparison.of(runs) if kind.of_several else runs[0])
    ending = "" if kind.of_several else "-svg-script-alert-1-script"
    found = {
        "csv": pd.read_csv(folder / f"{kind.file}{ending}.csv", keep_default_na=True),
        "parquet": pd.read_parquet(folder / f"{kind.file}{ending}.parquet"),
    }
    for form, table in found.items():
        assert list(table.columns) == list(expected.columns)
        for column in expected.columns:
            number = np.float32 if expected[column].dtype == np.float32 else lambda value: value
            for left, right in zip(table[column], expected[column], strict=True):
                if form == "csv" and isinstance(right, str):
                    right = printable(right)  # a terminal may show it
                assert (pd.isna(left) and pd.isna(right)) or number(left) == right, (form, column)


def test_the_numbers_of_the_files_are_the_timelines(written):
    folder, (run, *_) = written
    csv = pd.read_csv(folder / "fig2a-cohorts-svg-script-alert-1-script.csv")
    stacked = csv[csv["curve"] == "cohort"].pivot(index="step", columns="cohort", values="heads")
    assert stacked.to_numpy().tolist() == run.cohorts().to_numpy().tolist()
    effect = pd.read_csv(folder / "fig13-effect-map-svg-script-alert-1-script.csv")
    np.testing.assert_array_equal(
        effect["effect_mean"].astype(np.float32), run.heads()["effect_mean"].astype(np.float32)
    )


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_in_another_process(tmp_path):
    """And drawing loads neither torch nor pyplot, reading the table of figures not matplotlib."""
    run = write_run(tmp_path / "run", make_run(STORY), make_metrics(STORY))
    code = """
import sys
from sparks import Timeline, write_figures
from sparks.views import figures
heavy = {"torch", "transformers", "matplotlib", "matplotlib.pyplot"}
assert not heavy & set(sys.modules)
from sparks.cli import build_parser
build_parser()
assert not heavy & set(sys.modules)
runs = [Timeline.from_run(sys.argv[1])] * 2
kinds = ("2A", "2B", "14")
write_figures(runs, sys.argv[2], formats=figures.FORMATS, data=figures.DATA_FORMATS, only=kinds)
assert heavy & set(sys.modules) == {"matplotlib"}
"""
    # Hash seeds differ, so that an order that rests on them would show.
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-W", "error", "-c", code, run, tmp_path / "there"]
    subprocess.run(command, check=True, env=environment, timeout=300)
    runs = [Timeline.from_run(run)] * 2
    here = tmp_path / "here"
    forms = {"formats": figures.FORMATS, "data": figures.DATA_FORMATS}
    files = write_figures(runs, here, **forms, only=("2A", "2B", "14")).paths
    assert len(files) == 5 * (2 * 2 + 1)
    assert listing(here) == listing(tmp_path / "there")


def test_parquet_holds_no_index(written):
    table = pd.read_parquet(written[0] / "fig14-shared-heads.parquet")
    assert table["run"].tolist()[:: SMALL.num_layers * SMALL.num_heads] == HOSTILE


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_ONE)
def test_one_checkpoint_makes_no_figure(name):
    single = Timeline(make_run({5: ["L0H0"]}), name="short", metrics=[{"step": 5, "reward": 1}])
    with pytest.raises(SparksError, match=r"two checkpoints, got 1 \(step 5\) in 'short': go on"):
        drawn(name, single)


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"only": ["9"]}, r"there is no figure '9', only cohorts \(2A, 3A\), head-map"),
        ({"formats": ["eps"]}, "format must be one of pdf, svg, png, got 'eps'"),
        ({"data": ["xls"]}, "data format must be one of csv, parquet, got 'xls'"),
        ({"width": "poster"}, "width must be one of column, page, got 'poster'"),
        ({"only": ["reward"]}, "the log of 'story' holds no 'reward' and no 'rewards/"),
        ({"only": ["shared-heads"]}, "a comparison needs at least two runs, got 1"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_nothing_written(keywords, match, tmp_path):
    with pytest.raises(SparksError, match=match):
        write_figures([story()], tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


def test_mistakes_of_callers(tmp_path):
    with pytest.raises(SparksError, match="at least one timeline, got none"):
        write_figures([], tmp_path)
    with pytest.raises(SparksError, match="names of runs must differ, got 'a' twice"):
        write_figures([story(), story()], tmp_path, names=["a", "a"])
    with pytest.raises(SparksError, match="format must be one of pdf, svg, png, got 'jpg'"):
        figures.render(figures.reward(story(reward=1.0)), "jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(SparksError, match=r"cannot write .*--output"):
        write_figures([story()], tmp_path / "file", only=["2A"], formats=["png"])
    runs = [story(str(number)) for number in range(7)]
    with pytest.raises(SparksError, match=r"Fig. 14 has colours for 6 runs, got 7"):
        figures.shared_heads(Comparison.of(runs))


def test_without_matplotlib_or_pyarrow_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SparksError, match=r"Parquet needs pyarrow.*`pip install pyarrow`"):
        write_figures([story()], tmp_path / "out", data=["parquet"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: write_figures([story()], tmp_path / "out"),):
        with pytest.raises(SparksError, match=r"figures need matplotlib.*sparks\[figures\]"):
            draw()
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(SparksError, match=r"figures need matplotlib.*sparks\[figures\]"):
        figures.cohorts(story())
    assert figures.frames.cohorts(story()).shape == (45, 7)  # numbers need no matplotlib
    assert not (tmp_path / "out").exists()


def test_what_runs_lack_is_left_out_and_said(tmp_path):
    other = Timeline(make_run(STORY, probes=5), name="other probes", metrics=[])
    result = write_figures([story(reward=1.0), other], tmp_path, formats=["svg"], data=[])
    no_reward, no_comparison = result.left_out
    assert no_reward.startswith("no fig3b-reward: the log of 'other probes' holds no 'reward'")
    assert no_comparison.startswith("no fig14-shared-heads: runs to compare must have the same pr")
    assert len(result.paths) == 5 + 4


def test_a_comparisons_warning_is_passed_on(tmp_path):
    late = story("late", {step + 10: heads for step, heads in STORY.items()})
    result = write_figures([story(), late], tmp_path, formats=["svg"], data=[], only=["14"])
    assert any("no snapshot of step 0 in 'late'" in line for line in result.left_out)


# -- command line ----------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", make_run(STORY), make_metrics(STORY))


def test_the_command_writes_into_the_run_folder(run_folder, capsys):
    assert call("figures", run_folder, "--only", "2A", "head-map", "--format", "svg", "png") == 0
    captured = capsys.readouterr()
    found = sorted(path.name for path in (run_folder / "figures").iterdir())
    assert found == [f"fig2{name}.{form}" for name in ("a-cohorts", "b-head-map")
                     for form in ("csv", "png", "svg")]  # fmt: skip
    assert sorted(Path(line).name for line in captured.out.splitlines()) == found
    assert captured.err == ""
    assert Timeline.from_run(run_folder).problems == ()


def test_the_command_draws_several_runs(run_folder, tmp_path, capsys):
    out = tmp_path / "paper"
    command = ("figures", f"sft={run_folder}", f"grpo={run_folder}", "--output", out)
    assert call(*command, "--only", "3A", "14", "--width", "page", "--data", "csv") == 0
    captured = capsys.readouterr()
    assert sorted(path.name for path in out.glob("*.pdf")) == [
        "fig14-shared-heads.pdf", "fig2a-cohorts-grpo.pdf", "fig2a-cohorts-sft.pdf",
    ]  # fmt: skip
    assert captured.err == ""
    assert len(captured.out.splitlines()) == 6


def test_the_command_says_what_it_leaves_out(run_folder, capsys):
    assert call("figures", run_folder, "--format", "svg") == 0
    assert "sparks: no fig3b-reward: the log of 'run' holds no" in capsys.readouterr().err


def test_the_rule_is_the_one_that_was_asked_for(tmp_path, capsys):
    """By the paper's rule the head of a single probe is active."""
    run = write_run(tmp_path / "run", make_run({0: [], 10: {"L0H0": 1}}))
    for rule, born in (("growth", 0), ("paper", 1)):
        out = tmp_path / rule
        command = ("figures", run, "--only", "2A", "--format", "svg", "--output", out)
        assert call(*command, "--rule", rule) == 0
        csv = pd.read_csv(out / "fig2a-cohorts.csv")
        assert csv.query("curve == 'newly_active'")["heads"].sum() == born
        assert set(csv["rule"]) == {rule}
    capsys.readouterr()
    assert_refused(capsys, tmp_path, "figures", run, "--rule", "mine", match="choice: 'mine'")


def test_a_damaged_snapshot_is_named(run_folder, capsys):
    (run_folder / "step-00000050.safetensors").write_bytes(b"torn")
    assert call("figures", run_folder, "--format", "svg", "--only", "12") == 2
    captured = capsys.readouterr()
    assert "step-00000050" in captured.err
    assert len(captured.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--only", "11"], "there is no figure '11', only cohorts"),
        (["--format", "eps"], "invalid choice: 'eps'"),
        (["--group", "x"], "group must be one of"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, match, run_folder, tmp_path, capsys):
    assert_refused(capsys, tmp_path, "figures", run_folder, *arguments, match=match)


def test_several_runs_need_an_output(run_folder, tmp_path, capsys):
    match = "figures of 2 runs: say where with --output DIR"
    assert_refused(capsys, tmp_path, "figures", run_folder, run_folder, match=match)


def test_help_lists_every_figure_and_what_is_not_drawn(capsys):
    assert call("figures", "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: sparks figures")
    assert "examples:\n  sparks figures " in shown
    assert all(f"  {kind.name} " in shown and kind.shows in shown for kind in FIGURES)
    assert "Not drawn: Fig. 9 to 11" in shown
