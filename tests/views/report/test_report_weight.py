"""What the report weighs: bytes, strictly; time to paint and to follow the slider, against a page
that does nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_snapshot
from test_report_browser import Page, browser, needs_browser

from sparks.attribution.circuit import GRID
from sparks.attribution.snapshot import Snapshot
from sparks.models.graph import Graph
from sparks.timeline.timeline import Timeline
from sparks.views.report import write_report

# The fixture is that of the report's own browser tests.
__all__ = ["browser"]

PAPER = Graph(num_layers=28, num_heads=12, num_kv_heads=2)
LARGE = Graph(num_layers=80, num_heads=64, num_kv_heads=8)


def run_of(
    graph: Graph, checkpoints: int, *, probes: int, edges: int, seed: int = 0
) -> list[Snapshot]:
    """A quarter of the heads, two thirds of them from the start, each in some probes' circuits.

    A head keeps its strength in each probe, with a little noise at each checkpoint, and with it its
    part of all score; and its importance, with noise too; every setting of the grid holds what is
    strong enough for it, so that other heads are in some circuits as well. Every fourth emergent
    head flickers. Edges are drawn anew at each checkpoint from a fixed stock that is half as large
    again, with scores that have noise too.
    """
    rng = np.random.default_rng(seed)
    shape = (graph.num_layers, graph.num_heads)
    kind = rng.choice(3, shape, p=[0.75, 0.16, 0.09])  # silent, base, emergent
    birth = np.where(kind == 2, rng.integers(1, max(2, checkpoints), shape), 0)
    usual, weight = rng.uniform(0.4, 1, shape), rng.exponential(1, shape)
    spread = rng.normal(0, 0.17, (probes, *shape))
    cuts = np.linspace(0.35, 0.65, len(GRID))[:, None, None, None]
    stock = np.argwhere(graph.edge_mask)
    stock = stock[rng.choice(len(stock), 3 * edges // 2, replace=False)].astype(np.int32)
    strength = rng.normal(0, 1, len(stock))
    empty = make_snapshot(0, graph=graph, probes=probes)
    run = []
    for index in range(checkpoints):
        on = (kind > 0) & (birth <= index) & ((kind < 2) | (rng.random(shape) < usual + 0.3))
        level = np.where(on, usual, 0.08) + spread + rng.normal(0, 0.04, spread.shape)
        held = on & (level > 0.5)
        noise = rng.uniform(0.8, 1.25, held.shape)
        keep = rng.random((probes, len(stock))) < 2 / 3
        probe, edge = np.nonzero(keep)
        score = strength[edge] * rng.uniform(0.5, 2, len(edge))
        totals = rng.exponential(1, (probes, graph.num_sources))
        totals[:, graph.head_sources] = np.exp(3 * level)
        run.append(
            replace(
                empty,
                meta=replace(empty.meta, step=25 * index),
                active=held,
                grid_active=level > cuts,
                importance=np.where(held, weight * noise, 0).astype(np.float32),
                node_totals=totals.astype(np.float32),
                edge_offsets=np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64),
                edge_source=stock[edge, 0],
                edge_destination=stock[edge, 1],
                edge_score=score.astype(np.float32),
            )
        )
        assert probe.size == edge.size
    return run


def timeline_of(run: Sequence[Snapshot], metrics: int, every_step: int) -> Timeline:
    rng = np.random.default_rng(1)
    steps = range(1, run[-1].step + 1, every_step)
    log = [
        {"step": step} | {f"metric_{i}": float(rng.normal()) for i in range(metrics)}
        for step in steps
    ]
    return Timeline(run, metrics=log, name="weight")


@pytest.fixture(scope="module")
def paper_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 layers, 12 heads, 60 checkpoints, 30 metrics logged at every step."""
    run = run_of(PAPER, 60, probes=12, edges=600)
    out = tmp_path_factory.mktemp("paper") / "report.html"
    return write_report([timeline_of(run, metrics=30, every_step=1)], out)


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 layers, 64 heads, 1000 checkpoints."""
    run = run_of(LARGE, 1000, probes=4, edges=1000)
    out = tmp_path_factory.mktemp("large") / "report.html"
    return write_report([timeline_of(run, metrics=10, every_step=25)], out)


def test_a_run_of_the_paper_weighs_at_most_150_kb(paper_page: Path):
    assert paper_page.stat().st_size <= 150_000


def test_a_picture_of_growth_adds_little(tmp_path: Path):
    """Most heads of the paper's run move, by a little more at each checkpoint."""
    rng = np.random.default_rng(0)
    run = run_of(PAPER, 60, probes=12, edges=600)
    usual = rng.exponential(1, run[0].node_totals.shape)
    speed = rng.normal(0, 0.02, PAPER.num_sources) * (rng.random(PAPER.num_sources) < 0.6)
    grown = [
        replace(one, node_totals=(usual * np.exp(
            index * speed + rng.normal(0, 0.1, usual.shape) * (index > 0)
        )).astype(np.float32))
        for index, one in enumerate(run)
    ]  # fmt: skip
    timeline = timeline_of(grown, metrics=30, every_step=1)
    assert (timeline.grown.moved[-1] != 0).sum() > 200
    page = write_report([timeline], tmp_path / "report.html")
    assert page.stat().st_size <= 156_000


@pytest.mark.slow
def test_a_long_run_of_a_large_model_weighs_at_most_6_mb(large_page: Path):
    assert 1_000_000 < large_page.stat().st_size <= 6_000_000


# -- time, in a browser ----------------------------------------------------------------------

PAINT = """const done = arguments[0];
new PerformanceObserver(list => {
  const paint = list.getEntriesByName('first-contentful-paint')[0];
  if (paint) setTimeout(() => done(paint.startTime));
}).observe({type: 'paint', buffered: true});"""

SLIDE = """const [times, done] = arguments, slider = document.getElementById('step'), waits = [];
const next = i => {
  if (i === times) return done(waits);
  slider.value = Math.round((i + 0.5) / times * slider.max);
  const start = performance.now();
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => {
    waits.push([performance.now() - start, Number(document.documentElement.dataset.step)]);
    next(i + 1);
  }));
};
next(0);"""


def painted(driver: Any, page: Path) -> float:
    """Milliseconds from the start of loading to the first picture, which is the whole page."""
    driver.get(page.as_uri())
    return driver.execute_async_script(PAINT)


def frames(driver: Any, times: int) -> list[float]:
    """Frames of 1/60 s that each move of the slider took."""
    waits = driver.execute_async_script(SLIDE, times)
    assert len({step for _, step in waits}) == times
    return [wait * 60 / 1000 for wait, _ in waits]


@pytest.fixture
def bare_page(tmp_path: Path) -> Path:
    """A page that draws nothing, but lays out some text."""
    page = tmp_path / "bare.html"
    page.write_text("<!doctype html><title>bare</title>" + "<p>words on a page</p>" * 50)
    return page


@pytest.mark.browser
@needs_browser
def test_painted_soon(browser: Any, paper_page: Path, bare_page: Path):
    painted(browser, bare_page)
    bare = statistics.median(painted(browser, bare_page) for _ in range(3))
    full = statistics.median(painted(browser, paper_page) for _ in range(3))
    print(f"painted after {full:.0f} ms, a bare page after {bare:.0f} ms")
    assert full < 30 * max(bare, 20)


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("view", ["timeline", "head", "circuit"])
def test_the_slider_redraws_within_a_few_frames(browser: Any, paper_page: Path, view: str):
    Page(browser).open(f"{paper_page.as_uri()}#view={view}")
    found = statistics.median(frames(browser, 12))
    print(f"{view}: {found:.1f} frames")
    assert found < 8


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("view", ["timeline", "head", "circuit"])
def test_the_slider_of_a_large_run_redraws_within_a_few_frames(
    browser: Any, large_page: Path, view: str
):
    Page(browser).open(f"{large_page.as_uri()}#view={view}")
    found = statistics.median(frames(browser, 12))
    print(f"{view}: {found:.1f} frames")
    assert found < 15
