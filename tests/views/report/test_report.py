"""The report as a file: what it says and carries, and that nothing in it can act or call out."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import STORY, holding, large_run, make_metrics, make_run, make_snapshot
from report_payload import counts_of, payload, raw, summed, unpacked

import sparks.views.report
from sparks.attribution.circuit import GRID
from sparks.attribution.snapshot import Snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.timeline.nulls import null_of, sentence
from sparks.timeline.regimes.regime import circuit_turnover
from sparks.timeline.regimes.turnover import turnover_frame
from sparks.timeline.timeline import EVENT_KINDS, Timeline
from sparks.views.cohort_groups import cohort_groups, even_parts
from sparks.views.report import (
    EVALUATED,
    FOLLOWING,
    GROWN,
    MEASURED,
    SCRIPTS,
    render_report,
    write_report,
)
from sparks.views.report.circuits import TURNOVER
from sparks.views.report.data import run_data, thin
from sparks.views.report.packing import packed_numbers
from sparks.views.report.words import clean_text, headline_numbers, notes, summary, trust

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">{{loader}}<!--\u2028&amp;"
PACKAGE = Path(sparks.views.report.__file__).parent
PARTS = PACKAGE / "page"
QWEN = Graph(num_layers=28, num_heads=12, num_kv_heads=2)


def story(**keywords: Any) -> Timeline:
    return Timeline(make_run(STORY), **({"name": "story"} | keywords))


# -- nothing acts, nothing calls out ---------------------------------------------------------


def hostile_page() -> str:
    run = make_run(STORY, model_name=HOSTILE, versions={HOSTILE: HOSTILE})
    timeline = Timeline(
        run, name=HOSTILE, metrics=[{"step": 3, HOSTILE: 1.0}], problems=[HOSTILE, "x"]
    )
    return render_report([timeline], title=HOSTILE)


def test_hostile_text_stays_text():
    page = hostile_page()
    assert page.count("<script") == page.count("</script>") == 4  # data, style, code, loader
    assert "<img" not in page
    assert page.count("<!--") == 0
    data = payload(page)
    shown = HOSTILE.replace("\u2028", " ")
    assert data["title"] == data["runs"][0]["name"] == shown
    assert data["runs"][0]["metrics"][0]["name"] == shown
    for look in data["runs"][0]["looks"].values():
        assert look["problems"] == [shown, "x"]
    # The title's braces were not filled with anything of the page.
    title = re.search(r"<title>(.*?)</title>", page)
    assert title is not None
    assert html.unescape(title[1]) == shown


def test_json_is_escaped_for_a_script_element():
    page = hostile_page()
    raw = page[page.index('id="data">') + len('id="data">') :].split("</script>")[0]
    assert not set("<>&") & set(raw)
    assert "\\u003c/script\\u003e" in raw


def element(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None
    return found[1]


def source(text: str) -> str:
    """As a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def script_of(page: str, name: str = "code") -> str:
    """The script, or with "style" the style, that the loader inflates."""
    found = re.search(rf'<script type="text/plain" id="{name}">([\w+/=]*)</script>', page)
    assert found is not None
    return raw({"packed": found[1]}).decode("ascii")


def test_the_packed_script_is_the_parts_without_notes():
    script, page = script_of(hostile_page()), story()
    assert script == script_of(render_report([page]))  # nothing of a run is in it
    for name in SCRIPTS:
        for line in (PARTS / name).read_text().splitlines():
            if line.strip() and not line.strip().startswith("//"):
                assert f"{line.strip()}\n" in script
    assert not re.search(r"^\s*//|^\s|\n\n", script, re.MULTILINE)


def test_policy_allows_exactly_this_script_and_style():
    page = hostile_page()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    policy = dict(part.strip().split(" ", 1) for part in found[1].split(";"))
    assert policy.pop("default-src") == "'none'"
    sources = {name: policy.pop(name).split() for name in ("script-src", "style-src")}
    assert sources["script-src"] == [source(element(page, "script")), source(script_of(page))]
    assert sources["style-src"] == [source(script_of(page, "style"))]
    assert policy == {"base-uri": "'none'", "form-action": "'none'"}
    # Before anything that it has to govern.
    assert page.index("Content-Security-Policy") < page.index("<script")
    assert "<style" not in page


def test_page_is_self_contained_ascii():
    page = render_report([story()])
    assert page.isascii()
    assert not re.search(r"https?:|//cdn|url\(|@import|\ssrc=|\shref=|\sstyle=|\son\w+=", page)


def test_script_uses_nothing_that_runs_text_or_leaves_traces():
    script = "\n".join((PARTS / name).read_text() for name in ("load.js", *SCRIPTS))
    risky = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\("
        r"|localStorage|sessionStorage|indexedDB|\bcookie\b|fetch\(|XMLHttpRequest|WebSocket"
    )
    assert not re.search(risky, script)
    assert script.count("textContent") > 10


def test_parts_of_the_page_fit_together():
    script = "\n".join((PARTS / name).read_text() for name in SCRIPTS)
    markup, style = (PARTS / "page.html").read_text(), (PARTS / "page.css").read_text()
    ids = set(re.findall(r'\bid="([\w-]+)"', markup))
    assert set(re.findall(r'byId\("([\w-]+)"\)', script)) <= ids
    assert set(re.findall(r"#([a-z][\w-]*)[^{};]*\{", style)) <= ids
    of_tabs = {f"{kind}{tab}{view}" for tab in ("timeline", "head", "circuit")
               for kind, view in (("tab-", ""), ("", "-view"))}  # fmt: skip
    assert of_tabs <= ids
    named = {"load.js", *SCRIPTS, EVALUATED, FOLLOWING, GROWN, MEASURED}
    assert {str(part.relative_to(PARTS)) for part in PARTS.rglob("*.js")} == named
    light, dark = (
        set(re.findall(r"--(\w[\w-]*):", block))
        for block in re.findall(r":root[^{]*\{([^}]*)\}", style)
        if "--" in block
    )
    assert light == dark
    named = re.search(r"for \(const name of \[([^\]]*)\]\) \{\s*out\[name\]", script)
    assert named is not None
    assert set(re.findall(r'"(\w+)"', named[1])) <= light


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("plain", 10, "plain"),
        ("two\nlines\tand  more", 40, "two lines and more"),
        ("\x1b[31mred\x00", 20, "\ufffd[31mred\ufffd"),
        ("left\u202eright\ud800", 20, "left\ufffdright\ufffd"),
        ("\u0645\u06cc\u200c\u062e", 20, "\u0645\u06cc\u200c\u062e"),
        ("abcdef", 4, "abc\u2026"),
    ],
)
def test_clean_text(text: str, limit: int, expected: str):
    assert clean_text(text, limit) == expected


def test_names_that_no_encoding_takes_can_still_be_written(tmp_path: Path):
    out = write_report([story(name="a\ud800b")], tmp_path / "report.html", title="\ud800\u6f22")
    assert "&#28450;" in out.read_text(encoding="ascii")


# -- the data --------------------------------------------------------------------------------


def cells(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Frequency and importance, read as the page reads them."""
    times, rows = len(run["steps"]), run["layers"] * run["heads"]
    changes = np.unpackbits(unpacked(run["mask"], "u1"), count=rows * times)
    mask = (np.cumsum(changes.reshape(rows, times), axis=1) % 2).astype(bool)
    frequency, importance = np.zeros(mask.shape), np.zeros(mask.shape)
    frequency[mask] = unpacked(run["levels"], "u1") / run["level_unit"]
    root = summed(run["importance"], "<u2") / 4095
    importance[mask] = run["importance_max"] * root**2
    shape = (times, run["layers"], run["heads"])
    return frequency.T.reshape(shape), importance.T.reshape(shape)


def curves_of(run: dict[str, Any]) -> dict[str, tuple[list[int], list[float]]]:
    steps, values = unpacked(run["metric_steps"], "<u4"), unpacked(run["metric_values"], "<f4")
    cuts = np.cumsum([curve["count"] for curve in run["metrics"]])[:-1]
    parts = zip(run["metrics"], np.split(steps, cuts), np.split(values, cuts), strict=True)
    return {curve["name"]: (np.cumsum(at).tolist(), found.tolist()) for curve, at, found in parts}


def turns(run: dict[str, Any], text: dict[str, str]) -> np.ndarray:
    """Bits that were sent where they turn: [checkpoints, layers, heads]."""
    times, rows = len(run["steps"]), run["layers"] * run["heads"]
    bits = np.unpackbits(unpacked(text, "u1"), count=rows * times).reshape(rows, times)
    holds = (np.cumsum(bits, axis=1) % 2).astype(bool)
    return holds.T.reshape(times, run["layers"], run["heads"])


def of_heads(run: dict[str, Any], text: dict[str, str]) -> np.ndarray:
    """A bit a head."""
    bits = np.unpackbits(unpacked(text, "u1"), count=run["layers"] * run["heads"])
    return bits.astype(bool).reshape(run["layers"], run["heads"])


def steady_run(probes: int, checkpoints: int = 7) -> list[Snapshot]:
    """Heads in other shares of the circuits, each in other parts of the grid, five in none."""
    graph = Graph(num_layers=5, num_heads=3, num_kv_heads=1)
    rng = np.random.default_rng(0)
    run = large_run(checkpoints=checkpoints, graph=graph, probes=probes, emergent_share=0.3)
    cut = rng.random((5, 3))
    cut[[0, 1, 2, 3, 4], [0, 2, 1, 0, 2]] = 0
    return [
        replace(s, grid_active=np.sort(rng.random((9, probes, 5, 3)), axis=0) < cut) for s in run
    ]


@pytest.mark.parametrize("probes", [1, 8, 16, 600])
def test_arrays_survive_packing(probes: int):
    timeline = Timeline(steady_run(probes))
    run = payload(render_report([timeline]))["runs"][0]
    frequency, importance = cells(run)
    np.testing.assert_array_equal(frequency > 0, timeline.by("paper").active)
    limit = 1e-6 if probes <= 254 else 1 / 254
    np.testing.assert_allclose(frequency, timeline.frequency, atol=limit)
    np.testing.assert_allclose(importance, timeline.importance, atol=2e-5, rtol=5e-3)
    look = run["looks"]["growth"]
    np.testing.assert_array_equal(turns(run, look["active"]), timeline.active)
    np.testing.assert_array_equal(turns(run, look["undecided"]), timeline.undecided)
    np.testing.assert_array_equal(of_heads(run, look["base"]), timeline.base)
    np.testing.assert_array_equal(of_heads(run, look["undated"]), timeline.states.undated)
    cohort = unpacked(look["cohort"], "<i2").reshape(5, 3)
    np.testing.assert_array_equal(cohort, timeline.cohort)


def intervals_of_shares(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares and their ends, read as the page reads them; ends of heads ever near alone."""
    times, shape = len(run["steps"]), (len(run["steps"]), run["layers"], run["heads"])
    steps = unpacked(run["shares"], "i1").reshape(-1, times)
    octaves = np.cumsum(steps, axis=1, dtype=np.int8) / run["octave"]
    look = run["looks"]["growth"]
    near = (turns(run, look["active"]) | turns(run, look["undecided"])).any(axis=0).ravel()
    halves = np.full(octaves.shape, np.nan)
    widths = unpacked(run["share_halves"], "u1").reshape(-1, times)
    halves[near] = np.cumsum(widths, axis=1, dtype=np.uint8) / run["octave"]
    values = (2.0**octaves, 2.0 ** (octaves - halves), 2.0 ** (octaves + halves))
    return tuple(value.T.reshape(shape) for value in values)


@pytest.mark.parametrize("probes", [1, 8, 16])
def test_intervals_of_shares_survive_packing(probes: int):
    timeline = Timeline(steady_run(probes))
    share, low, high = intervals_of_shares(run_data(timeline))
    near = np.broadcast_to((timeline.active | timeline.undecided).any(axis=0), low.shape)
    assert near.any()
    np.testing.assert_allclose(share, timeline.share.clip(2**-7.9), rtol=0.1)
    np.testing.assert_allclose(share[near], timeline.share[near].clip(2**-7.9), rtol=0.025)
    assert np.isnan(low[~near]).all()
    if probes > 1:  # one probe has no interval
        np.testing.assert_allclose(high[near], timeline.share_high[near], rtol=0.05)
        np.testing.assert_allclose(low[near], timeline.share_low[near], rtol=0.05)


def test_intervals_of_importance_survive_packing():
    timeline = Timeline(steady_run(16))
    run = run_data(timeline)
    frequency, importance = cells(run)
    held = ((frequency > 0) | (importance > 0)).reshape(7, -1).T
    ends = unpacked(run["importance_ends"], "u1").reshape(2, -1) / run["end_unit"]
    expected = [np.stack(end).reshape(7, -1).T[held] for end in
                zip(*(timeline.importance_interval(t) for t in range(7)), strict=True)]  # fmt: skip
    mine = importance.reshape(7, -1).T[held]
    assert len(mine) > 15
    np.testing.assert_allclose(mine * ends[0] ** 2, expected[0], atol=0.04 * mine.max())
    np.testing.assert_allclose(mine / ends[1] ** 2, expected[1], rtol=0.1)


def test_large_runs_send_less(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sparks.views.report.cells.MOST_CELLS", 50)
    timeline = Timeline(steady_run(16))
    run, (frequency, _) = run_data(timeline), cells(run_data(timeline))
    assert run["is_large"] is True
    shown = timeline.active | timeline.undecided | (timeline.frequency > 0)
    rows = int(shown.any(axis=0).sum())
    assert 0 < rows < 15
    assert len(unpacked(run["shares"], "i1")) == rows * 7
    assert len(unpacked(run["importance_ends"], "u1")) == 2 * (frequency[-1] > 0).sum()


def events_of(run: dict[str, Any]) -> list[tuple[int, str, str, int]]:
    """Step, head, kind, step since which it shows."""
    rows = unpacked(run["looks"]["growth"]["events"], "<u2").reshape(4, -1).T.tolist()
    return [
        (run["steps"][at], f"L{row // run['heads']}H{row % run['heads']}", EVENT_KINDS[kind],
         run["steps"][at - late])
        for row, at, kind, late in rows
    ]  # fmt: skip


def test_events_of_the_story():
    found, events = events_of(run_data(story())), story().events()
    columns = [events[name] for name in ("step", "head", "kind", "onset")]
    assert len(found) == 9
    assert found == list(zip(*columns, strict=True))


def slow_birth() -> Timeline:
    """L1H1 comes into one circuit more at each checkpoint: it shows before it is sure."""
    counts = {step: {"L1H1": step // 10} for step in range(0, 170, 10)}
    return Timeline(make_run(counts), name="slow")


def test_a_birth_that_is_settled_late_carries_its_onset():
    timeline = slow_birth()
    (found,) = events_of(run_data(timeline))
    assert found[1:3] == ("L1H1", "born")
    assert found[0] > found[3] == 10  # the first circuit makes its share larger than an even one
    assert timeline.steps[timeline.cohort[1, 1]] == found[0]
    assert (
        "1 of these births was settled later than it shows: the step of a birth is the one at "
        "which it was sure." in summary(timeline)
    )


def test_gaps_in_the_run_are_carried():
    timeline = story(
        problems=[
            "run/step-00000015.safetensors: damaged",
            "run/step-00000020.safetensors: read after all",
            "another thing",
        ]
    )
    assert run_data(timeline)["missing_steps"] == [15]


def test_checkpoint_without_scores_is_marked():
    broken = make_snapshot(20, ["L1H1"])
    broken.importance[:] = np.nan
    timeline = Timeline([make_snapshot(0, ["L0H0"]), make_snapshot(10, []), broken])
    assert run_data(timeline)["unscored"] == [2]


@pytest.mark.parametrize("gap", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_become_null(gap: float):
    run = [make_snapshot(0, ["L0H0"], gap=gap), make_snapshot(10, ["L0H0"], gap=0.25)]
    page = render_report([Timeline(run)])
    assert counts_of(payload(page)["runs"][0])["completeness_gap_max"] == [None, 0.25]


def test_json_never_holds_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sparks.views.report._script_safe_json({"x": float("nan")})


def test_curves_keep_numbers_and_extremes():
    steps = np.arange(1, 5001)
    values = np.sin(steps / 300.0)
    values[1234], values[4321] = 9.0, -9.0
    at, kept = thin(steps, values, 300)
    assert len(at) <= 300
    assert {1, 1235, 4322, 5000} <= set(at.tolist())
    assert kept.max() == 9
    assert kept.min() == -9
    np.testing.assert_array_equal(kept, values[at - 1])
    same, _ = thin(steps[:300], values[:300], 300)
    assert len(same) == 300


def test_curves_skip_what_was_not_logged():
    timeline = story(
        metrics=[{"step": 2, "loss": 1.5}, {"step": 4, "loss": 1.0, "eval": 3.0, "bad": np.nan}]
    )
    run = run_data(timeline)
    assert curves_of(run) == {"loss": ([2, 4], [1.5, 1.0]), "eval": ([4], [3.0])}
    assert [curve["thinned_from"] for curve in run["metrics"]] == [None, None]


def test_values_of_curves_keep_their_digits():
    values = [0.0, -1.5, 1.23456789, 4e-5, -1e-300, 6.02214076e23, 3.4028234e38, 1e300, -0.1]
    sent = unpacked(packed_numbers(np.array(values)), "<f4").astype(np.float64)
    limit = float(np.finfo(np.float32).max)
    np.testing.assert_allclose(sent, np.clip(values, -limit, limit), rtol=1 / 60_000, atol=1e-38)


def brute_force(sizes: Sequence[int], most: int) -> int:
    """Least sum of squared sums over all ways to cut the row."""
    count = len(sizes)
    best = sum(sizes) ** 2
    for parts in range(1, min(most, count) + 1):
        for cuts in itertools.combinations(range(1, count), parts - 1):
            edges = [0, *cuts, count]
            best = min(best, sum(sum(sizes[a:b]) ** 2 for a, b in itertools.pairwise(edges)))
    return best


@pytest.mark.parametrize("most", [1, 3, 6])
def test_cohorts_are_merged_evenly(most: int):
    rng = np.random.default_rng(most)
    for count in (1, 2, 5, 9):
        sizes = rng.integers(1, 30, count)
        runs = even_parts(sizes, most)
        assert [a for a, _ in runs] == [0, *(b + 1 for _, b in runs[:-1])]
        assert runs[-1][1] == count - 1
        cost = sum(int(sizes[a : b + 1].sum()) ** 2 for a, b in runs)
        assert len(runs) == min(most, count)
        assert cost == brute_force(sizes.tolist(), most)


def noisy_run(checkpoints: int, probes: int, seed: int = 0) -> list[Snapshot]:
    """A third of the heads, each in a random part of the circuits, from a random checkpoint on."""
    rng = np.random.default_rng(seed)
    shape = (QWEN.num_layers, QWEN.num_heads)
    birth = np.where(rng.random(shape) < 1 / 3, rng.integers(0, checkpoints, shape), checkpoints)
    empty = make_snapshot(0, graph=QWEN, probes=probes)
    run = []
    for index in range(checkpoints):
        active = (rng.random((probes, *shape)) < 0.4) & (birth <= index)
        importance = np.where(active, rng.exponential(1, active.shape), 0).astype(np.float32)
        meta = replace(empty.meta, step=25 * index)
        run.append(replace(empty, meta=meta, active=active, importance=importance))
    return run


def test_cohort_groups_cover_every_cohort():
    timeline = Timeline(noisy_run(checkpoints=40, probes=4), rule="paper")
    cohorts = np.unique(timeline.cohort[timeline.cohort >= 0])
    groups = cohort_groups(timeline)
    assert len(cohorts) > 20
    assert len(groups) == 6
    assert all(sum(a <= cohort <= b for a, b in groups) == 1 for cohort in cohorts)
    assert cohort_groups(Timeline([make_snapshot(0, ["L0H0"])])) == []


def test_size_of_a_long_run(tmp_path: Path):
    rng = np.random.default_rng(0)
    log = [
        {"step": step} | {f"metric_{i}": float(rng.normal()) for i in range(30)}
        for step in range(1, 1476)
    ]
    timeline = Timeline(noisy_run(checkpoints=60, probes=12), metrics=log, rule="paper")
    assert timeline.active.mean() > 0.1
    out = write_report([timeline], tmp_path / "report.html")
    assert out.stat().st_size <= 150_000


# -- words -----------------------------------------------------------------------------------


def test_summary_of_the_story():
    # Base L0H0 L0H1 L1H0; born L1H1 (10), L2H3 (20), L2H0 (40); at 40: L0H0 L1H0 | L1H1 L2H0.
    assert summary(story()) == [
        "Of 12 heads, 3 were active before training (step 0) and 4 are at step 40.",
        "3 heads were born on the way; 2 are active at the end, 1 not.",
        "2 of the 3 base heads (67 %) are still active.",
        "A circuit has 4.0 heads on average at step 40, +1.0 since step 0 (+1.0 to +1.0 by its 95% "
        "interval over probes: beyond luck).",
        "Half of the births had happened by step 20.",
    ]


def test_summary_where_little_happened():
    one = Timeline([make_snapshot(5, ["L0H0"])])
    assert summary(one) == [
        "Of 12 heads, 1 was active at the first checkpoint (step 5).",
        "There is one checkpoint so far, so nothing can have changed yet.",
    ]
    quiet = Timeline(make_run({0: [], 10: []}))
    assert summary(quiet)[1:] == ["No head was born."]
    single = Timeline(make_run({0: [], 10: ["L0H0"]}))
    assert summary(single)[1] == "1 head was born on the way; 1 is active at the end, 0 not."
    assert summary(single)[2].startswith(
        "A circuit has 1.0 heads on average at step 10, +1.0 since"
    )


def test_top_numbers_show_gap_and_probes():
    timeline = Timeline(
        make_run({0: ["L0H0"], 10: ["L0H0", "L1H1"]}, gap=[0.01, 0.02, 0.03, 0.5] * 4), name="x"
    )
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert tiles["active heads"]["value"] == "1 \u2192 2"
    assert tiles["born / fell silent"]["value"] == "1 / 0"
    assert list(tiles)[:3] == ["active heads", "born / fell silent", "faithfulness"]
    assert tiles["base heads retained"]["value"] == "1 of 1"
    assert tiles["completeness gap"]["value"] == "2.5 %"
    assert tiles["completeness gap"]["detail"] == "median; worst 50 % at step 0; 4 points"
    assert tiles["probes"]["value"] == "16"


def test_a_share_of_almost_nothing_is_none():
    """KL of a circuit that is no better than nothing is above 1 by rounding alone."""
    timeline = measured([None, None], [1 + 1.8e-7, 0.5])
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert tiles["faithfulness"]["detail"] == "step 10, median over probes; least 0 % at step 0"
    worse = headline_numbers(measured([None, None], [1.25, 0.5]))[2]
    assert "least \u221225 % at step 0" in worse["detail"]


def measured(overheads: Sequence[float | None], circuit: Sequence[float]) -> Timeline:
    """L is 1 without a circuit and `circuit` with the circuit alone."""
    run = []
    for index, (overhead, loss) in enumerate(zip(overheads, circuit, strict=True)):
        snapshot = make_snapshot(10 * index, ["L0H0"], overhead=overhead)
        ones = np.ones(16, np.float32)
        run.append(
            replace(snapshot, loss_corrupted=ones, loss_circuit=(loss * ones).astype(np.float32))
        )
    return Timeline(run)


def test_faithfulness_and_overhead_are_told_where_they_were_measured():
    timeline = measured([None, 0.012, 0.034], [0.5, 0.75, 0.6])
    assert trust(timeline) == [
        "Alone, the circuits carry 40 % of the effect that they explain (step 20, median over "
        "probes; least 25 % at step 10).",
        "Snapshots took 3.4 % of the run's time.",
    ]
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert tiles["faithfulness"]["value"] == "40 %"
    assert tiles["faithfulness"]["detail"] == "step 20, median over probes; least 25 % at step 10"
    data = run_data(timeline)
    assert all(look["summary"][-2:] == trust(timeline) for look in data["looks"].values())
    assert counts_of(data)["faithfulness"] == pytest.approx([0.5, 0.25, 0.4], rel=2e-5)
    assert counts_of(data)["overhead"] == [None, 0.012, 0.034]


def test_what_was_not_measured_is_not_told():
    timeline = measured([None, None], [float("nan")] * 2)
    assert trust(timeline) == []
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert (tiles["faithfulness"]["value"], tiles["faithfulness"]["detail"]) == (
        "?",
        "not measured",
    )


def test_component_shift_survives_packing():
    timeline = Timeline(make_run(STORY))
    steps = np.frombuffer(raw(run_data(timeline)["shift"]), np.int8).reshape(-1, 5)
    found = np.cumsum(steps, axis=1, dtype=np.int8) / 127
    expected = timeline.component_totals()["effect"].to_numpy().reshape(5, -1).T
    assert len(found) == 1 + 2 * 3  # embedding, attention and MLP of each layer
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=0.5 / 127 + 1e-6)


def test_notes_say_by_which_rule_and_how_sure():
    (note,) = notes(story())
    assert note.startswith("Rule of growth: active = more than an even share of all |score|")
    assert "tested over 16 probes" in note
    assert "at most 5 % of those shown are expected to be false" in note
    (note,) = notes(story(rule="paper"))
    assert note.startswith("Paper\u2019s rule: active = in any of the circuits of 16 probes.")
    assert "grows with that of the probes" in note


def test_undecided_heads_are_counted_in_words():
    timeline = Timeline(make_run({0: {"L0H0": 16, "L1H1": 5}, 10: {"L0H0": 16, "L1H1": 5}}))
    assert summary(timeline)[1] == "1 more is undecided there, so 1 to 2."
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert tiles["active heads"]["detail"].endswith("of 12; 1 undecided")
    assert "undecided" not in " ".join(summary(timeline.by("paper")))


def test_the_null_is_told_beside_the_births():
    timeline = story()
    look = run_data(timeline)["looks"]["growth"]
    band = null_of(timeline)
    assert band is not None
    assert look["null"]["births"] == [band.births_low, band.births_median, band.births_high]
    assert look["notes"][1] == f"Null: {sentence(timeline, band)}."
    (tile,) = [tile for tile in look["numbers"] if tile["label"].startswith("born")]
    assert (band.births_low, band.births_high) == (0, 0)
    assert tile["detail"] == "2 of the born active at the end; an unchanged model gives 0"
    few = run_data(Timeline(make_run({0: ["L0H0"], 10: []}, probes=2)))["looks"]["paper"]
    assert few["null"] is None
    assert few["notes"][1] == "Null: 2 probes are too few for a null: 4 are needed."


def test_both_rules_and_the_controls_are_sent():
    groups = [""] * 16 + ["control"] * 16
    whole = {"L0H0": 32, "L2H3": 32}
    run = make_run({0: {"L0H0": 32}, 10: whole, 20: whole}, probes=32, groups=groups)
    held = run[1].active.copy()
    held[:16, 1, 1] = True  # born on the behaviour alone
    run[1:] = [holding(snapshot, held) for snapshot in run[1:]]
    timeline = Timeline(run)
    data = run_data(timeline)
    assert data["rule"] == "growth"
    assert run_data(timeline.by("paper"))["rule"] == "paper"
    for rule in ("growth", "paper"):
        look = data["looks"][rule]
        codes = unpacked(look["specificity"], "u1").reshape(3, 4)
        assert (codes[1, 1], codes[2, 3], codes.sum()) == (1, 2, 3)
        assert look["control"]["emergent"] == [0, 1, 1]
        assert look["control"]["active"] == [1, 2, 2]
    assert run_data(story())["looks"]["paper"]["specificity"] is None


def test_turnover_and_settings_of_every_checkpoint_are_sent():
    timeline = Timeline(steady_run(16))
    data = run_data(timeline)
    sent = np.cumsum(unpacked(data["turnover"], "u1").reshape(18, 7), axis=1, dtype=np.uint8)
    frame = turnover_frame(circuit_turnover(timeline))
    for index, name in enumerate(TURNOVER):
        for place, end in enumerate(("", "_low", "_high")):
            found, expected = sent[3 * index + place], frame[name + end].to_numpy()
            np.testing.assert_array_equal(found == 255, np.isnan(expected))
            known = found != 255
            np.testing.assert_allclose(found[known] / 254, expected[known], atol=0.5 / 254 + 1e-6)
    assert data["grid"]["settings"] == [list(setting) for setting in GRID]
    held = np.stack([snapshot.grid_active.mean(axis=1) for snapshot in timeline.snapshots], axis=1)
    for name, counted in (("half", held >= 0.5), ("any", held > 0)):
        found = unpacked(data["grid"][name], "<u2").reshape(9, 7)
        np.testing.assert_array_equal(found, counted.sum(axis=(2, 3)))
        assert len(np.unique(found)) > 2


def test_points_that_each_probe_got_are_told():
    run = make_run({0: ["L0H0"], 10: ["L0H0"]}, probes=4)
    run[1] = replace(run[1], points=np.array([36, 36, 108, 324], np.int32))
    data = run_data(Timeline(run))
    counts = counts_of(data)
    found = [counts[f"points_{name}"] for name in ("min", "median", "max")]
    assert found == [[4, 36], [4, 72], [4, 324]]
    (tile,) = [t for t in data["looks"]["paper"]["numbers"] if t["label"] == "completeness gap"]
    assert tile["detail"].endswith("; 4 to 324 points (median 38)")
    attribution = dict(data["settings"])["Attribution"]
    assert attribution.startswith("EAP-IG, 4 to 324 points (median 38) (midpoint)")


def test_the_method_is_told():
    run = [make_snapshot(0, config=SnapshotConfig(method="secant"))]
    data = run_data(Timeline(run))
    (tile,) = [t for t in data["looks"]["paper"]["numbers"] if t["label"] == "completeness gap"]
    assert tile["detail"].endswith("; secants between both ends")
    attribution = dict(data["settings"])["Attribution"]
    assert attribution == "secants between both ends, KL divergence at the last position"


def test_run_without_any_gap():
    tiles = headline_numbers(Timeline(make_run({0: [], 1: []}, gap=float("nan"))))
    assert [tile["value"] for tile in tiles if tile["label"] == "completeness gap"] == ["?"]


# -- several runs, titles --------------------------------------------------------------------


def test_titles_and_names_of_runs():
    assert payload(render_report([story()]))["title"] == "story \u00b7 llama \u00b7 2026-01-01"
    two = payload(render_report([story(), story()]))
    assert two["title"] == "2 runs"
    assert [run["name"] for run in two["runs"]] == ["story", "story (2)"]
    assert payload(render_report([story(name="")]))["runs"][0]["name"] == "unnamed run"


def test_group_is_named():
    run = make_run(STORY, groups=["a"] + ["b"] * 15)
    data = run_data(Timeline(run, group="b"))
    assert data["group"] == "b"
    assert data["probes"] == 15
    assert ("Probe group", "b") in data["settings"]


def test_no_timeline_is_refused():
    with pytest.raises(SparksError, match="at least one timeline, got none: give a run folder"):
        render_report([])


# -- writing ---------------------------------------------------------------------------------


def test_write_makes_folders_and_replaces(tmp_path: Path):
    out = tmp_path / "deep" / "er" / "report.html"
    assert write_report([story()], out, title="one") == out
    held_open = tmp_path / "held_open"
    os.link(out, held_open)
    write_report([story()], out, title="two")
    assert payload(out.read_text())["title"] == "two"
    assert payload(held_open.read_text())["title"] == "one"  # never written in place
    assert os.listdir(out.parent) == ["report.html"]


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = write_report([story()], tmp_path / "report.html", title="old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SparksError, match=r"cannot write the report to .*No space left"):
        write_report([story()], out, title="new")
    assert payload(out.read_text())["title"] == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_unwritable_places_are_refused(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SparksError, match=r"cannot write the report to .*give a file in a folder"):
        write_report([story()], file / "report.html")
    with pytest.raises(SparksError, match=r"cannot write the report to .*it is a folder"):
        write_report([story()], tmp_path)


# -- packaging -------------------------------------------------------------------------------


def test_wheel_holds_every_part():
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    root = PACKAGE.parents[2]
    held = {
        file.distribution_path for file in wheel.WheelBuilder(str(root)).recurse_included_files()
    }
    parts = {
        str(path.relative_to(root))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert parts <= held
    of_page = {part.removeprefix("sparks/views/report/page/") for part in parts}
    assert {"page.html", "page.css", "evaluation.css", "load.js", *SCRIPTS} <= of_page
    assert {EVALUATED, FOLLOWING, GROWN} <= of_page


def test_report_needs_no_torch():
    code = (
        "import sparks.views.report, sys; "
        "sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parents[2])


def test_metrics_of_the_factory_reach_the_page():
    timeline = story(metrics=make_metrics([10, 20, 30]))
    names = [curve["name"] for curve in run_data(timeline)["metrics"]]
    assert names == ["loss", "learning_rate", "epoch"]
