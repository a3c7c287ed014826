"""The printed timeline: its numbers are right, and no file can act on a terminal."""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from factories import STORY, large_run, make_metrics, make_run, make_snapshot

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.ground.plain_text import inert
from sparks.models.graph import Graph
from sparks.timeline.regimes.regime import Regime, circuit_turnover
from sparks.timeline.timeline import Timeline
from sparks.views.text.timeline import render, strip

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def section(text: str, heading: str, *, keep: bool = False) -> list[str]:
    """Lines under a heading, up to the next empty line; of tables without what explains them."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading)) + 1
    found = lines[start : [*lines, ""].index("", start)]
    if heading != "Checkpoints" or keep:
        return found
    return list(itertools.takewhile(lambda line: ": " not in line, found))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def story() -> Timeline:
    log = [{"step": 5, "loss": 2.25}, {"step": 10, "loss": 1.5}, {"step": 40, "reward": 0.5}]
    gaps = {0: 0.01, 10: 0.02, 20: 0.125, 30: 0.02, 40: 0.01}
    run = [make_snapshot(step, heads, gap=gaps[step]) for step, heads in STORY.items()]
    return Timeline(run, name="my-run", metrics=log)


def test_the_table_has_a_row_a_checkpoint(story):
    header, *rows = section(render(story, width=140), "Checkpoints")
    assert words(header) == (
        "step loss reward active paper emergent born pruned revived retained moved alike "
        "gap points seconds"
    )
    moved = [f"{100 * row.edges_from_previous.value:.3g}%" for row in circuit_turnover(story)[1:]]
    alike = [f"{row.edges_stability.value:.2f}" for row in circuit_turnover(story)]
    end = [["1%", "2%", "12.5%", "2%", "1%"], ["4"] * 5, ["1.5"] * 5]
    beside = [list(cells) for cells in zip(["–", *moved], alike, *end, strict=True)]
    assert [row.split() for row in rows] == [
        ["0", "–", "–", "3", "3", "0", "0", "0", "0", "3/3", *beside[0]],
        ["10", "1.5", "–", "3", "3", "1", "1", "0", "0", "2/3", *beside[1]],
        ["20", "1.5", "–", "4", "4", "2", "1", "0", "0", "2/3", *beside[2]],
        ["30", "1.5", "–", "3", "3", "1", "0", "1", "0", "2/3", *beside[3]],
        ["40", "1.5", "0.5", "4", "4", "2", "1", "1", "1", "2/3", *beside[4]],
    ]
    assert len({len(row) for row in [header, *rows]}) == 1


def test_names_of_columns_are_explained_below_the_table(story):
    for width, explained in (
        (140, ["paper", "moved", "alike"]),
        (40, []),
    ):
        assert explained_names(story, width) == explained


def explained_names(timeline: Timeline, width: int = 140) -> list[str]:
    rows = section(render(timeline, width=width), "Checkpoints", keep=True)
    return re.findall(r"(\w+):", words(" ".join(rows)))


def test_a_range_is_explained_where_there_is_one():
    """By the paper's rule nothing is undecided, so no cell is one."""
    open_one = Timeline(make_run({step: {"L0H0": 16, "L0H1": 16, "L0H2": 8} for step in (0, 10)}))
    assert explained_names(open_one)[0] == "active"
    assert "active" not in explained_names(open_one.by("paper"))
    assert explained_names(open_one, width=40) == ["active"]


def test_the_papers_rule_has_no_column_for_doubt():
    text = render(Timeline(make_run(STORY), rule="paper"), width=140)
    header = section(text, "Checkpoints")[0].split()
    assert "paper" not in header
    assert "Rule         paper's: active = in the circuit of any probe" in text
    assert "Paper   " not in text


def test_the_title_says_it_in_words(story):
    text = words(render(story, width=100))
    assert "Run my-run: 5 checkpoints, steps 0 to 40" in text
    assert "tiny/llama (llama, 3 layers x 4 heads, 2 key/value heads, float32)" in text
    assert "Probes 16, set probes-16" in text
    assert "Rule growth: active = more than an even share of all |score|; births and" in text
    assert "at most 5% are expected to be false" in text
    assert "Paper by the paper's rule (active = in the circuit of any probe) 3 to 4 active" in text
    assert "Null 2 heads are emergent at step 40 by the rule of growth; an unchanged model" in text
    assert "EAP-IG with 4 points (midpoint), KL at the last position, at most 16 tokens" in text
    assert "the 5000 strongest edges with |score| >= 0.1, pruned" in text
    assert "3 of 12 active before training (base), 4 at step 40: 2 retained" in text
    assert "2 emergent. On the way 3 born, 2 pruned, 1 revived" in text
    assert "of the base 2 silenced, 1 returned" in text
    assert "completeness gap at worst 12.5% (step 20), median 2%" in text
    assert "the points on the path miss (4 points)" in text


def test_points_that_grow_to_a_tolerance_are_said():
    config = SnapshotConfig(tolerance=0.05, quadrature="pilot")
    text = words(render(Timeline([make_snapshot(0, config=config)]), width=100))
    assert "EAP-IG with 12 points or more (gap of 5%, at most 324) (pilot), KL at the last" in text


def test_secants_are_said():
    text = words(render(Timeline([make_snapshot(0, config=SnapshotConfig(method="secant"))])))
    assert "secants between both ends, KL at the last position, at most 16 tokens" in text
    assert "the part of L that rounding takes" in text
    assert "EAP-IG" not in text


def test_other_settings_are_said():
    config = SnapshotConfig(
        top_share=0.05, threshold=0.01, threshold_mode="relative", positions="all", points=20
    )
    groups = ["a", "a", "b", "b"]
    run = [make_snapshot(0, config=config, probes=4, groups=groups, roles_swapped=True)]
    text = words(render(Timeline(run, group="a"), width=100))
    assert "with 20 points (midpoint), KL averaged over positions" in text
    assert "the strongest 5% of edges with |score| >= 0.01 of the largest" in text
    assert "roles swapped at step 0" in text
    assert "Probes 2 of group 'a', set" in text


def test_cohorts_by_hand(story):
    header, *rows = section(render(story, width=80), "Cohorts")
    assert header.split() == ["step", "born", "alive", "at", "end", "share", "kept"]
    assert [row.split() for row in rows] == [
        ["10", "1", "1", "100%"],
        ["20", "1", "0", "0%"],
        ["40", "1", "1", "100%"],
    ]


def test_events_are_listed_by_step(story):
    rows = section(render(story, width=80), "Births, prunings")
    assert [row.split() for row in rows] == [
        ["10", "born", "L1H1"],
        ["silenced", "L1H0"],
        ["20", "born", "L2H3"],
        ["returned", "L1H0"],
        ["silenced", "L0H1"],
        ["30", "pruned", "L1H1"],
        ["40", "born", "L2H0"],
        ["revived", "L1H1"],
        ["pruned", "L2H3"],
    ]


@pytest.mark.parametrize(("limit", "left"), [(0, 9), (4, 5), (8, 1), (9, None)])
def test_events_beyond_the_limit_are_counted(story, limit, left):
    rows = section(render(story, width=80, max_events=limit), "Births, prunings")
    named = sum(len(re.findall(r"L\dH\d", row)) for row in rows)
    assert named == limit
    assert rows[-1].strip() == (f"... and {left} more" if left else "pruned    L2H3")


def test_long_lists_of_heads_wrap_under_their_kind():
    heads = [f"L{layer}H{head}" for layer in range(3) for head in range(4)][:10]
    rows = section(render(Timeline(make_run({0: [], 10: heads})), width=40), "Births, prunings")
    assert len(rows) > 1
    assert words(" ".join(rows)) == "10 born " + ", ".join(heads)
    column = rows[0].index("L0H0")
    assert all(row[:column].isspace() and row[column] == "L" for row in rows[1:])


def test_no_line_is_wider_than_asked():
    graph = Graph(num_layers=28, num_heads=12, num_kv_heads=2)
    run = large_run(checkpoints=60, graph=graph, probes=2, every=12345)
    timeline = Timeline(run, name="n" * 300, problems=["p" * 500, "/a/b " * 50])
    for width in (40, 47, 60, 80, 100, 200):
        assert max(map(len, render(timeline, width=width).splitlines())) <= width, width


def test_a_narrow_table_keeps_what_matters_most():
    timeline = Timeline(make_run(STORY), metrics=make_metrics([0, 10]))
    header = section(render(timeline, width=40), "Checkpoints")[0].split()
    assert header == ["step", "active", "emergent", "born", "retained"]
    header = section(render(timeline, width=81), "Checkpoints")[0]
    assert words(header) == "step loss active paper emergent born pruned retained moved gap"
    header = section(render(timeline, width=len(header) - 1), "Checkpoints")[0]
    assert words(header) == "step loss active paper emergent born pruned retained moved"


def test_colours_add_nothing_to_the_text(story):
    plain, coloured = render(story, width=80), render(story, width=80, color=True)
    assert "\x1b" not in plain
    assert len(ESCAPE.findall(coloured)) > 20
    assert ESCAPE.sub("", coloured) == plain


def test_the_width_of_the_terminal_is_used(story, monkeypatch):
    monkeypatch.setenv("COLUMNS", "61")
    assert render(story) == render(story, width=61)
    monkeypatch.setenv("COLUMNS", "5")
    assert render(story) == render(story, width=40)


def test_bad_arguments(story):
    with pytest.raises(SparksError, match="width must be at least 40 characters, got 39"):
        render(story, width=39)
    with pytest.raises(SparksError, match="max_events must be at least 0, got -1"):
        render(story, max_events=-1)
    with pytest.raises(SparksError, match="max_heads must be at least 0, got -2"):
        render(story, max_heads=-2)


# -- notes -----------------------------------------------------------------------------------


def doubtful(groups: bool = False) -> Timeline:
    """L1H1 is settled at 20, L2H2 is never, L2H3 is born on control probes too, L0H1 is base."""
    rows = {0: (16, 0, 8, 0, 16), 10: (16, 9, 8, 16, 16), 20: (16, 16, 9, 16, 16)}
    names = ("L0H0", "L1H1", "L2H2", "L2H3", "L0H1")
    run = []
    for step, counts in rows.items():
        held = dict(zip(names, counts, strict=True))
        if groups:
            held |= {name: held[name] + 16 for name in ("L0H0", "L2H3") if held[name]}
        kinds = ["", "control"] if groups else [""]
        kinds = [kind for kind in kinds for _ in range(16)]
        run.append(make_snapshot(step, held, probes=len(kinds), groups=kinds))
    return Timeline(run)


def test_what_the_probes_cannot_tell_is_said():
    text = render(doubtful(), width=140)
    assert "2-3 of 12 active before training" in words(text)
    assert "2 retained and 2 emergent." in words(text)
    rows = [row.split() for row in section(text, "Checkpoints")]
    assert [dict(zip(rows[0], row, strict=True))["active"] for row in rows[1:]] == [
        "2-3", "3-5", "4-5",
    ]  # fmt: skip
    events = section(text, "Births, prunings")
    assert [words(row) for row in events] == ["10 born L2H3", "20 born L1H1"]


def test_the_table_of_heads_has_intervals_and_marks_doubt():
    header, *rows = section(render(doubtful(), width=100), "Heads at step 20")
    assert header.split() == ["head", "state", "born", "share", "importance"]
    found = {row.split()[0]: row for row in rows}
    assert list(found) != sorted(found)  # the most important first
    assert found["L1H1"].split()[1:3] == ["active", "20"]
    assert "undecided" in found["L2H2"]
    assert found["L0H0"].split()[1:3] == ["active", "base"]
    frame = doubtful().heads().set_index("head").loc["L2H2"]
    share, low, high = frame["share"], frame["share_low"], frame["share_high"]
    assert f"{share:.2f} [{low:.2f}, {high:.2f}]" in found["L2H2"]
    few = section(render(doubtful(), width=100, max_heads=2), "Heads at step 20")
    assert len(few) == 5
    assert few[-1] == f"  ... and {len(found) - 3} more"
    assert "Heads at step" not in render(doubtful(), width=100, max_heads=0)


def test_control_probes_have_a_line_and_a_column():
    text = render(doubtful(groups=True), width=120)
    assert (
        "Control      16 probes: 2 active heads, 1 born there; of 2 births on the other probes 1 "
        "specific, 1 shared, 0 undecided"
    ) in text
    header, *rows = section(text, "Heads at step 20")
    assert header.split()[-1] == "specificity"
    found = {row.split()[0]: row.split()[-1] for row in rows}
    assert (found["L1H1"], found["L2H3"]) == ("specific", "shared")
    assert "Control" not in render(doubtful(), width=120)


def test_the_regime_stands_with_its_evidence(story):
    regime = Regime.of(story)
    text = words(render(story, width=100))
    assert f"Regime: {regime.verdict} Why {words(regime.reason)} - " in text
    for line in regime.evidence:
        assert words(line).replace("-", "") in text.replace("- ", "-").replace("-", "")


def test_few_probes_are_a_problem_and_have_no_null():
    text = words(render(Timeline(make_run({0: [], 10: ["L0H0"]}, probes=3)), width=100))
    assert "Null 3 probes are too few for a null: 4 are needed" in text
    assert "Problem 3 probes cannot settle a change, none is called" in text


def test_problems_are_listed(story):
    timeline = Timeline(make_run({5: [], 10: []}), problems=["step-00000000: damaged"])
    text = render(timeline, width=100)
    assert "Problem  step-00000000: damaged" in text
    assert "Problem  there is no snapshot of step 0" in text
    assert "active at step 5 (base)" in text
    assert "Problem" not in render(story, width=100)


def test_a_single_checkpoint_and_a_run_without_change():
    text = render(Timeline([make_snapshot(0, ["L0H0"])]), width=100)
    assert "1 checkpoint, step 0" in text
    assert "one checkpoint, so nothing to compare yet" in words(text)
    for absent in ("Cohorts", "Births", "No head was", "Heads over"):
        assert absent not in text
    text = render(Timeline(make_run({0: [], 10: []})), width=100)
    assert "No head was born, pruned or silenced" in text
    assert "Cohorts" not in text


def test_gaps_that_are_no_numbers():
    text = render(Timeline([make_snapshot(0, gap=np.nan)]), width=100)
    assert "completeness gap unknown" in text
    assert section(render(Timeline([make_snapshot(0, gap=np.nan)]), width=140), "Checkpoints")[
        1
    ].split()[-3:] == ["–", "4", "1.5"]
    run = [make_snapshot(0, gap=np.nan), make_snapshot(10, gap=np.inf)]
    assert "at worst inf% (step 10)" in render(Timeline(run), width=100)


# -- strips ----------------------------------------------------------------------------------


def test_strips_by_hand(story):
    rows = section(render(story, width=80), "Heads over")
    assert [words(row) for row in rows] == [
        "active ▆▆█▆█ 3 to 4, highest 4",  # 3/4 of 7 is 5.25: the sixth bar
        "emergent ▁▅█▅█ 0 to 2, highest 2",  # 1/2 of 7 is 3.5, even: the fifth
        "retained █▆▆▆▆ 3 to 2, highest 3",  # 2/3 of 7 is 4.7: the sixth
    ]


def test_a_strip_without_room_averages_neighbours():
    assert strip(np.array([0, 0, 4, 4]), 2) == "▁█"
    assert strip(np.array([0, 0, 0]), 10) == "▁▁▁"
    assert len(strip(np.arange(200), 30)) == 30


# -- hostile text ----------------------------------------------------------------------------

HOSTILE = "a\x1b[31m\x1b]0;owned\x07b\r\nc\x08\x9b2J\u202etxt\u2028\x00\u200b\ud800 é漢 d"


def test_inert_shows_what_it_stops():
    assert inert("L5H1 – é漢") == "L5H1 – é漢"
    assert inert("a\x1b[31m\n\u202e\ud800") == r"a\x1b[31m\n\u202e\ud800"
    assert inert("x" * 500, limit=10) == "x" * 9 + "…"
    assert len(inert("\x1b" * 500, limit=10)) == 10
    assert inert(7) == "7"


@pytest.mark.parametrize("color", [False, True])
def test_hostile_names_cannot_act_on_a_terminal(color):
    run = []
    for snapshot in make_run({1: ["L0H0"], 10: ["L0H0", "L1H1"]}, groups=[HOSTILE] * 16):
        meta = replace(
            snapshot.meta,
            model_name=HOSTILE,
            model_type=HOSTILE,
            probes_hash=HOSTILE,
            precision=f"{HOSTILE}{snapshot.step}",
            metrics={HOSTILE: 1.0, "loss": 1.0},
        )
        run.append(replace(snapshot, meta=meta))
    log = [{"step": 1, HOSTILE: 1.0, "loss": 2.0}]
    timeline = Timeline(run, name=HOSTILE, problems=[HOSTILE], metrics=log, group=HOSTILE)
    text = render(timeline, width=80, color=color)
    text.encode()  # no lone surrogates
    text = ESCAPE.sub("", text)
    bad = {c for c in text if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"}
    assert bad == {"\n"}
    assert text.splitlines() == text[:-1].split("\n")
    assert r"a\x1b[31m\x1b]0;owned\x07b\r\nc" in text
    assert not any(line.startswith("c") for line in text.splitlines())
