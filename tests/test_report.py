"""The report as a file: what it says and carries, and that nothing in it can act or call out."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import STORY, large_run, make_metrics, make_run, make_snapshot

import sparks.report
from sparks.cohort_groups import cohort_groups, even_parts
from sparks.errors import SparksError
from sparks.graph import Graph
from sparks.report import LOADER, SCRIPTS, render_report, write_report
from sparks.report.data import run_data, thin
from sparks.report.packing import packed_numbers
from sparks.report.words import clean_text, headline_numbers, notes, summary, trust
from sparks.snapshot import Snapshot
from sparks.timeline import EVENT_KINDS, Timeline

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">{{loader}}<!--\u2028&amp;"
PACKAGE = Path(sparks.report.__file__).parent
QWEN = Graph(num_layers=28, num_heads=12, num_kv_heads=2)


def story(**keywords: Any) -> Timeline:
    return Timeline(make_run(STORY), **({"name": "story"} | keywords))


def payload(page: str) -> dict[str, Any]:
    """What a browser reads from the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# -- nothing acts, nothing calls out ---------------------------------------------------------


def hostile_page() -> str:
    run = make_run(STORY, model_name=HOSTILE, versions={HOSTILE: HOSTILE})
    timeline = Timeline(
        run, name=HOSTILE, metrics=[{"step": 3, HOSTILE: 1.0}], problems=[HOSTILE, "x"]
    )
    return render_report([timeline], title=HOSTILE)


def test_hostile_text_stays_text():
    page = hostile_page()
    assert page.count("<script") == page.count("</script>") == 3  # data, code, loader
    assert "<img" not in page
    assert page.count("<!--") == 0
    data = payload(page)
    shown = HOSTILE.replace("\u2028", " ")
    assert data["title"] == data["runs"][0]["name"] == shown
    assert data["runs"][0]["metrics"][0]["name"] == shown
    assert data["runs"][0]["problems"] == [shown, "x"]
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


def script_of(page: str) -> str:
    """The script that the loader inflates."""
    found = re.search(r'<script type="text/plain" id="code">([\w+/=]*)</script>', page)
    assert found is not None
    return raw(found[1]).decode("ascii")


def test_the_packed_script_is_the_parts_without_notes():
    script, page = script_of(hostile_page()), story()
    assert script == script_of(render_report([page]))  # nothing of a run is in it
    for name in SCRIPTS:
        for line in (PACKAGE / name).read_text().splitlines():
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
    assert sources["style-src"] == [source(element(page, "style"))]
    assert policy == {"base-uri": "'none'", "form-action": "'none'"}
    # Before anything that it has to govern.
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")


def test_page_is_self_contained_ascii():
    page = render_report([story()])
    assert page.isascii()
    assert not re.search(r"https?:|//cdn|url\(|@import|\ssrc=|\shref=|\sstyle=|\son\w+=", page)


def test_script_uses_nothing_that_runs_text_or_leaves_traces():
    script = "\n".join((PACKAGE / name).read_text() for name in LOADER + SCRIPTS)
    risky = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\("
        r"|localStorage|sessionStorage|indexedDB|\bcookie\b|fetch\(|XMLHttpRequest|WebSocket"
    )
    assert not re.search(risky, script)
    assert script.count("textContent") > 10


def test_parts_of_the_page_fit_together():
    script = "\n".join((PACKAGE / name).read_text() for name in SCRIPTS)
    markup, style = (PACKAGE / "page.html").read_text(), (PACKAGE / "page.css").read_text()
    ids = set(re.findall(r'\bid="([\w-]+)"', markup))
    assert set(re.findall(r'byId\("([\w-]+)"\)', script)) <= ids
    assert set(re.findall(r"#([a-z][\w-]*)[^{};]*\{", style)) <= ids
    of_tabs = {f"{kind}{tab}{view}" for tab in ("timeline", "head", "circuit")
               for kind, view in (("tab-", ""), ("", "-view"))}  # fmt: skip
    assert of_tabs <= ids
    assert {part.name for part in PACKAGE.glob("*.js")} == {*LOADER, *SCRIPTS}
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


def raw(text: str) -> bytes:
    """What a packed array holds."""
    held = base64.b64decode(text)
    out = zlib.decompress(held[4:], -15)
    assert len(out) == int.from_bytes(held[:4], "little")
    return out


def unpacked(text: str, kind: str) -> np.ndarray:
    """Read as the page reads numbers of several bytes: the lowest bytes stand first."""
    planes = np.frombuffer(raw(text), np.uint8).reshape(np.dtype(kind).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(kind).ravel()


def summed(text: str, kind: str) -> np.ndarray:
    """Read where differences were sent."""
    return np.cumsum(unpacked(text, kind), dtype=kind)


def cells(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Frequency and importance, read as the page reads them."""
    times, rows = len(run["steps"]), run["layers"] * run["heads"]
    changes = np.unpackbits(unpacked(run["mask"], "u1"), count=rows * times)
    mask = (np.cumsum(changes.reshape(rows, times), axis=1) % 2).astype(bool)
    frequency, importance = np.zeros(mask.shape), np.zeros(mask.shape)
    frequency[mask] = unpacked(run["levels"], "u1") / run["level_unit"]
    root = summed(run["importance"], "<u2") / 65535
    importance[mask] = run["importance_max"] * root**2
    shape = (times, run["layers"], run["heads"])
    return frequency.T.reshape(shape), importance.T.reshape(shape)


def curves_of(run: dict[str, Any]) -> dict[str, tuple[list[int], list[float]]]:
    steps, values = unpacked(run["metric_steps"], "<u4"), unpacked(run["metric_values"], "<f4")
    cuts = np.cumsum([curve["count"] for curve in run["metrics"]])[:-1]
    parts = zip(run["metrics"], np.split(steps, cuts), np.split(values, cuts), strict=True)
    return {curve["name"]: (np.cumsum(at).tolist(), found.tolist()) for curve, at, found in parts}


@pytest.mark.parametrize("probes", [1, 8, 600])
def test_arrays_survive_packing(probes: int):
    graph = Graph(num_layers=5, num_heads=3, num_kv_heads=1)
    timeline = Timeline(large_run(checkpoints=7, graph=graph, probes=probes))
    run = payload(render_report([timeline]))["runs"][0]
    frequency, importance = cells(run)
    np.testing.assert_array_equal(frequency > 0, timeline.active)
    limit = 1e-6 if probes <= 254 else 1 / 254
    np.testing.assert_allclose(frequency, timeline.frequency, atol=limit)
    np.testing.assert_allclose(importance, timeline.importance, atol=2e-5, rtol=1e-3)
    base = np.unpackbits(unpacked(run["base"], "u1"), count=15).astype(bool).reshape(5, 3)
    np.testing.assert_array_equal(base, timeline.base)
    np.testing.assert_array_equal(unpacked(run["cohort"], "<i2").reshape(5, 3), timeline.cohort)


def test_events_of_the_story():
    run = run_data(story())
    triples = unpacked(run["events"], "<u2").reshape(3, -1).T.tolist()
    found = [
        (run["steps"][at], f"L{row // run['heads']}H{row % run['heads']}", EVENT_KINDS[kind])
        for row, at, kind in triples
    ]
    events = story().events()
    expected = list(zip(events["step"], events["head"], events["kind"], strict=True))
    assert len(found) == 9
    assert found == expected


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
    data = payload(render_report([Timeline(run)]))["runs"][0]
    assert data["counts"]["completeness_gap_max"] == [None, 0.25]


def test_json_never_holds_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sparks.report._script_safe_json({"x": float("nan")})


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
    timeline = Timeline(noisy_run(checkpoints=40, probes=4))
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
    timeline = Timeline(noisy_run(checkpoints=60, probes=12), metrics=log)
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
        "Half of the births had happened by step 20.",
    ]


def test_summary_where_little_happened():
    one = Timeline([make_snapshot(5, ["L0H0"])])
    assert summary(one) == [
        "Of 12 heads, 1 was active at the first checkpoint (step 5).",
        "There is one checkpoint so far, so nothing can have changed yet.",
    ]
    quiet = Timeline(make_run({0: [], 10: []}))
    assert summary(quiet)[1:] == ["No new head became active."]
    single = Timeline(make_run({0: [], 10: ["L0H0"]}))
    assert summary(single)[1:] == ["1 head was born on the way; 1 is active at the end, 0 not."]


def test_top_numbers_show_gap_and_probes():
    timeline = Timeline(
        make_run({0: ["L0H0"], 10: ["L0H0", "L1H1"]}, gap=[0.01, 0.02, 0.03, 0.5]), name="x"
    )
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert tiles["active heads"]["value"] == "1 \u2192 2"
    assert tiles["heads born"]["value"] == "1"
    assert tiles["base heads retained"]["value"] == "1 of 1"
    assert tiles["completeness gap"]["value"] == "2.5 %"
    assert tiles["completeness gap"]["detail"] == "median; worst 50 % at step 0"
    assert tiles["probes"]["value"] == "4"


def measured(overheads: Sequence[float | None], circuit: Sequence[float]) -> Timeline:
    """L is 1 without a circuit and `circuit` with the circuit alone."""
    run = []
    for index, (overhead, loss) in enumerate(zip(overheads, circuit, strict=True)):
        snapshot = make_snapshot(10 * index, ["L0H0"], overhead=overhead)
        ones = np.ones(4, np.float32)
        run.append(
            replace(snapshot, loss_corrupted=ones, loss_circuit=(loss * ones).astype(np.float32))
        )
    return Timeline(run)


def test_faithfulness_and_overhead_are_told_where_they_were_measured():
    timeline = measured([None, 0.012, 0.034], [0.5, 0.1, 0.75])
    assert trust(timeline) == [
        "Alone, the circuits carry 50 % of the effect that they explain (median of checkpoints; "
        "least 25 % at step 20).",
        "Snapshots took 3.4 % of the run's time.",
    ]
    tiles = {tile["label"]: tile for tile in headline_numbers(timeline)}
    assert tiles["faithfulness"]["value"] == "50 %"
    assert tiles["faithfulness"]["detail"] == "median; least 25 % at step 20"
    data = run_data(timeline)
    assert data["summary"][-2:] == trust(timeline)
    assert data["counts"]["faithfulness"] == [0.5, 0.9, 0.25]
    assert data["counts"]["overhead"] == [None, 0.012, 0.034]


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


def test_few_probes_are_named_as_a_limit():
    (note,) = notes(story())
    assert "over 4 probes" in note
    assert "differed by about 24" in note
    assert "in any probe's circuit" in note


def test_run_without_any_gap():
    tiles = headline_numbers(Timeline(make_run({0: [], 1: []}, gap=float("nan"))))
    assert [tile["value"] for tile in tiles if tile["label"] == "completeness gap"] == ["?"]


# -- several runs, titles --------------------------------------------------------------------


def test_titles_and_names_of_runs():
    assert payload(render_report([story()]))["title"] == "story"
    two = payload(render_report([story(), story()]))
    assert two["title"] == "2 runs"
    assert [run["name"] for run in two["runs"]] == ["story", "story (2)"]
    assert payload(render_report([story(name="")]))["runs"][0]["name"] == "unnamed run"


def test_group_is_named():
    run = make_run(STORY, groups=["a", "b", "b", "b"])
    data = run_data(Timeline(run, group="b"))
    assert data["group"] == "b"
    assert data["probes"] == 3
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
    builder = wheel.WheelBuilder(str(PACKAGE.parent.parent))
    held = {file.distribution_path for file in builder.recurse_included_files()}
    modules = ("__init__", "compared", "data", "edges", "packing", "words")
    parts = {*(f"{name}.py" for name in modules), "page.html", "page.css", *LOADER, *SCRIPTS}
    assert {f"sparks/report/{name}" for name in parts} <= held
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == parts


def test_report_needs_no_torch():
    code = "import sparks.report, sys; sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent.parent)


def test_metrics_of_the_factory_reach_the_page():
    timeline = story(metrics=make_metrics([10, 20, 30]))
    names = [curve["name"] for curve in run_data(timeline)["metrics"]]
    assert names == ["loss", "learning_rate", "epoch"]
