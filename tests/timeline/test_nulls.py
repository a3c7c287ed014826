"""The null: planted cases by hand, known probabilities, what is kept and what is said of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import SMALL, STORY, make_run, make_snapshot, write_run

from sparks.attribution.circuit import GRID
from sparks.attribution.snapshot import Snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.runs.null_band import METHODS, NullBand, from_json, to_json
from sparks.runs.run_folder import RunStore
from sparks.timeline import nulls
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.nulls import merged, null_of, nulls_of, sentence
from sparks.timeline.timeline import RULES, Rule, Timeline

WIDE = Graph(num_layers=10, num_heads=30, num_kv_heads=30)


def with_levels(levels: np.ndarray, graph: Graph = SMALL, step: int = 0, **meta: Any) -> Snapshot:
    """Each probe's circuit holds the head under this many settings of the grid; active: any.

    What a head has of all score grows with them, from 1 to 17.
    """
    found = make_snapshot(step, (), graph=graph, probes=len(levels), **meta)
    grid = np.arange(len(GRID))[:, None, None, None] < levels[None]
    totals = found.node_totals.copy()
    totals[:, graph.head_sources] = 1 + 16 * levels / len(GRID)
    return replace(found, active=levels > 0, grid_active=grid, node_totals=totals)


def random_levels(
    shares: np.ndarray, probes: int, seed: int, graph: Graph = WIDE, graded: bool = False
) -> np.ndarray:
    """Independent members with these probabilities; graded ones under 5 to 9 settings of 9."""
    rng = np.random.default_rng(seed)
    held = rng.random((probes, *shares.shape)) < shares
    return held * (rng.integers(5, 10, held.shape) if graded else len(GRID))


def ends(band: NullBand, name: str) -> tuple[float, float, float]:
    low, median, high = (getattr(band, f"{name}_{end}") for end in ("low", "median", "high"))
    return low, median, high


def null(timeline: Timeline) -> NullBand:
    band = null_of(timeline)
    assert band is not None
    return band


# -- the run's own probes --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_probes_that_all_hold_the_same_heads_give_no_births(rule):
    band = null(Timeline([make_snapshot(0, ["L0H0", "L1H2"])], rule=rule))
    assert ends(band, "births") == ends(band, "prunings") == (0, 0, 0)
    assert ends(band, "active") == (2, 2, 2)
    assert (band.rule, band.method, band.probes, band.pool) == (rule, "resampled", 16, 16)


def test_probes_with_a_head_of_their_own_each_by_hand():
    # Halves of 2: 2 births. Quarters of 1: 1 birth. So twice as many for twice as many probes: 4,
    # as two sets of 4 such probes have.
    levels = np.zeros((4, 3, 4), dtype=np.uint8)
    levels[range(4), 0, range(4)] = len(GRID)
    band = null(Timeline([with_levels(levels)], rule="paper"))
    assert ends(band, "births") == ends(band, "prunings") == (4, 4, 4)
    assert ends(band, "active") == (4, 4, 4)


def test_one_rare_head_by_hand():
    # In 1 of 4 probes: halves differ in it always, one way or the other; quarters in half of the
    # draws. Births of halves: 1/2, of quarters: 1/4, so 2 x (0 or 1). Active: 1 +- 1 / sqrt 2.
    levels = np.zeros((4, 3, 4), dtype=np.uint8)
    levels[0, 0, 0] = len(GRID)
    band = nulls.resampled(Timeline([with_levels(levels)], rule="paper"), draws=1500)
    assert band is not None
    assert band.births_low == 0
    assert band.births_high == pytest.approx(2, rel=0.2)
    assert ends(band, "active")[::2] == pytest.approx((1 - 0.5**0.5, 1 + 0.5**0.5))


def test_births_of_few_probes_are_carried_to_all_of_them():
    """Shares spread as those of real models: a median like that of fresh probes, or above."""
    shares = np.exp(np.linspace(np.log(0.004), np.log(1), 300)).reshape(10, 30)
    truth = ((1 - shares) ** 12 * (1 - (1 - shares) ** 12)).sum()
    found = []
    for seed in range(8):
        levels = random_levels(shares, 12, seed)
        found.append(null(Timeline([with_levels(levels, WIDE)], rule="paper")).births_median)
    assert 0.9 < np.mean(found) / truth < 1.35, (np.mean(found), truth)


def test_under_the_rule_of_growth_resamples_have_no_false_births():
    """The 97.5th percentile is 0: of 200 pairs of measurements at most 5 have any."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        levels = random_levels(rng.random((10, 30)), 16, seed, graded=True)
        timeline = Timeline([with_levels(levels, WIDE)])
        band, paper = null(timeline), null(timeline.by("paper"))
        assert ends(band, "births") == ends(band, "prunings") == (0, 0, 0)
        assert paper.births_high > 0
        assert band.active_low < band.active_median < band.active_high
        assert band.active_median == timeline.active[0].sum() > 0


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_band_and_another_another(rule):
    levels = random_levels(np.full((10, 30), 0.7), 16, 0, graded=True)

    def band(seed: int) -> NullBand | None:
        return nulls.resampled(Timeline([with_levels(levels, WIDE)], rule=rule), seed=seed)

    assert band(0) == band(0)
    assert band(0) != band(1)


@pytest.mark.parametrize("rule", RULES)
def test_fewer_than_four_probes_have_no_null(rule):
    timeline = Timeline(make_run(STORY, probes=3), rule=rule)
    assert null_of(timeline) is None
    assert nulls_of(timeline) == ()
    assert sentence(timeline, None) == "3 probes are too few for a null: 4 are needed"
    assert null_of(Timeline(make_run(STORY, probes=4), rule=rule)) is not None


def test_control_probes_have_a_null_of_their_own():
    groups = [""] * 8 + ["control"] * 8
    levels = np.zeros((16, 3, 4), dtype=np.uint8)
    levels[range(8, 16), range(8, 16) % np.array(3), range(8, 16) % np.array(4)] = 9
    timeline = Timeline([with_levels(levels, groups=groups)], rule="paper")
    assert null(timeline).births_high == 0
    assert timeline.control is not None
    assert null(timeline.control).births_high > 0
    assert null(timeline.control).probes == 8


# -- fresh probes ----------------------------------------------------------------------------------


def binomial_quantile(trials: int, chance: float, level: float) -> int:
    total = 0.0
    for count in range(trials + 1):
        total += math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
        if total >= level:
            return count
    return trials


def test_fresh_probes_give_the_binomials_answer():
    share, n = 0.1, 8
    quiet = (1 - share) ** n
    chance = quiet * (1 - quiet)
    own, pool = (random_levels(np.full((10, 30), share), k, k) for k in (n, 400))
    timeline = Timeline([with_levels(own, WIDE)], rule="paper")
    band = nulls.fresh(timeline, with_levels(pool, WIDE), draws=1500)
    for name in ("births", "prunings"):
        for level, found in zip((0.025, 0.5, 0.975), ends(band, name), strict=True):
            assert abs(found - binomial_quantile(300, chance, level)) <= 4
    active = [binomial_quantile(300, 1 - quiet, level) for level in (0.025, 0.5, 0.975)]
    assert np.abs(np.subtract(ends(band, "active"), active)).max() <= 5
    assert (band.method, band.probes, band.pool, band.draws) == ("fresh probes", 8, 408, 1500)


def test_sets_of_fresh_probes_never_share_a_probe():
    # As many as the run has: each draw splits all of them. 8 heads, one a probe: 4 births, always.
    levels = np.zeros((8, 3, 4), dtype=np.uint8)
    levels[range(8), [0] * 4 + [1] * 4, [0, 1, 2, 3] * 2] = 9
    timeline = Timeline([with_levels(levels[:4])], rule="paper")
    band = nulls.fresh(timeline, with_levels(levels[4:]))
    assert ends(band, "births") == ends(band, "active") == (4, 4, 4)


def test_a_pool_without_a_grid_is_judged_without_it():
    timeline = Timeline([make_snapshot(0, ["L0H0"])])
    band = nulls.fresh(timeline, make_snapshot(0, ["L0H0"], grid=False))
    assert ends(band, "active") == (1, 1, 1)


@pytest.mark.parametrize(
    ("pool", "match"),
    [
        ({"probes": 15}, r"the pool must hold at least .+ \(16\), .+ got 15 others: build more"),
        (
            {"groups": ["control"] * 4 + [""] * 12},
            r"got 12 others",
        ),
        ({"graph": WIDE}, "the pool must have the run's own model shape"),
        (
            {"config": SnapshotConfig(threshold=0.2)},
            r"the pool must have the run's own threshold \(0\.1\), got 0\.2",
        ),
    ],
)
def test_a_pool_that_does_not_fit_is_refused(pool, match):
    with pytest.raises(SparksError, match=match):
        nulls.fresh(Timeline([make_snapshot(0)]), make_snapshot(0, **pool))


# -- noise and seeds -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_weight_noise_by_hand(rule):
    timeline = Timeline(make_run(STORY), rule=rule)  # base: L0H0 L0H1 L1H0
    noisy = [
        make_snapshot(0, ["L0H0", "L0H1", "L1H0"]),
        make_snapshot(1, ["L0H0", "L2H2", "L2H3"]),
        make_snapshot(2, ["L0H0", "L0H1"]),
    ]
    band = nulls.weight_noise(timeline, noisy, 0.001)
    assert ends(band, "births") == tuple(np.quantile([0, 2, 0], [0.025, 0.5, 0.975]))
    assert ends(band, "prunings") == tuple(np.quantile([0, 2, 1], [0.025, 0.5, 0.975]))
    assert ends(band, "active") == tuple(np.quantile([3, 3, 2], [0.025, 0.5, 0.975]))
    assert (band.method, band.noise, band.draws, band.pool) == ("weight noise", 0.001, 3, 0)


@pytest.mark.parametrize("rule", RULES)
def test_other_seeds_by_hand(rule):
    timeline = Timeline(make_run(STORY), rule=rule)  # at the end: L0H0 L1H0 L1H1 L2H0
    other = Timeline(make_run({0: ["L0H0"], 50: ["L0H0", "L1H0", "L2H3"]}), rule=rule)
    band = nulls.seeds(timeline, [other])
    assert ends(band, "births") == (1, 1, 1)  # L2H3
    assert ends(band, "prunings") == (2, 2, 2)  # L1H1 L2H0
    assert ends(band, "active") == (3, 3, 3)
    assert (band.method, band.draws, band.base_step) == ("seeds", 1, 40)
    assert band.source == "1 run of another seed at step 50, against this run at step 40"
    mine = nulls.seeds(timeline, [timeline, timeline])
    assert ends(mine, "births") == ends(mine, "prunings") == (0, 0, 0)


def test_a_run_that_cannot_be_compared_is_refused():
    timeline = Timeline(make_run(STORY))
    other = Timeline(make_run(STORY, probes_hash="others"))
    with pytest.raises(SparksError, match="run of another seed must have the run's own probes"):
        nulls.seeds(timeline, [other])
    with pytest.raises(SparksError, match="a noisy model must have the run's own probes"):
        nulls.weight_noise(timeline, other.snapshots, 0.1)
    with pytest.raises(SparksError, match="at least one measurement, got none"):
        nulls.seeds(timeline, [])


# -- which null ------------------------------------------------------------------------------------


def found_fresh(timeline: Timeline, **changes: Any) -> NullBand:
    pool = make_snapshot(0, ["L0H0"], probes_hash="fresh")
    return replace(nulls.fresh(timeline, pool), **changes)


@pytest.mark.parametrize("rule", RULES)
def test_fresh_probes_are_the_better_null(rule):
    bare = Timeline(make_run(STORY), rule=rule)
    band = found_fresh(bare)
    timeline = Timeline(make_run(STORY), rule=rule, nulls=[band])
    assert null_of(timeline) == band
    assert [kept.method for kept in nulls_of(timeline)] == ["resampled", "fresh probes"]
    other: Rule = "paper" if rule == "growth" else "growth"
    assert null(timeline.by(other)).method == "resampled"  # by() keeps the nulls, of their rule
    assert null_of(timeline.by(other).by(rule)) == band


@pytest.mark.parametrize(
    "changes",
    [
        {"base_hash": "retrained"},
        {"base_step": 10},
        {"probes_hash": "others"},
        {"probes": 8},
        {"settings": "{}"},
    ],
)
def test_a_null_of_something_else_is_left_alone(changes):
    bare = Timeline(make_run(STORY))
    timeline = Timeline(make_run(STORY), nulls=[found_fresh(bare, **changes)])
    assert null_of(timeline) == null_of(bare)


def test_a_null_holds_for_the_settings_and_the_group_that_it_was_found_with():
    run = make_run(STORY, groups=["a"] * 16)
    band = found_fresh(Timeline(run))
    assert null_of(Timeline(run, nulls=[band])) == band
    assert null(Timeline(run, nulls=[band], group="a")).method == "resampled"
    strict = GrowthConfig(fdr=0.01)
    assert null(Timeline(run, nulls=[band], growth_config=strict)).method == "resampled"


def test_a_stored_null_under_the_earlier_names_of_settings_still_belongs_to_its_run():
    """They were `steps`, `max_steps` and `rule`."""
    bare = Timeline(make_run(STORY))
    band = found_fresh(bare)
    text = to_json([band])
    for today, then in (("points", "steps"), ("max_points", "max_steps"), ("quadrature", "rule")):
        assert text.count(f'\\"{today}\\":') == 1
        text = text.replace(f'\\"{today}\\":', f'\\"{then}\\":')
    assert null_of(Timeline(make_run(STORY), nulls=from_json(text))) == band


def test_new_nulls_replace_those_of_their_kind_alone():
    timeline = Timeline(make_run(STORY))
    fresh = found_fresh(timeline)
    weak, strong = (
        nulls.weight_noise(timeline, timeline.snapshots[:1], noise) for noise in (0.001, 0.1)
    )
    paper = replace(fresh, rule="paper")
    again = replace(fresh, draws=7)
    assert merged([fresh, weak, paper], [again, strong]) == (weak, paper, again, strong)


# -- words -----------------------------------------------------------------------------------------


def banded(timeline: Timeline, low: float, high: float, **changes: Any) -> NullBand:
    between = {"births_low": low, "births_median": low, "births_high": high}
    return replace(null(timeline), **(between | changes))


@pytest.mark.parametrize(
    ("high", "verdict"), [(1.9, "more than its null"), (2, "no more than its null")]
)
@pytest.mark.parametrize(
    ("rule", "name"), [("paper", "paper's rule"), ("growth", "rule of growth")]
)
def test_the_sentence_says_whether_births_exceed_the_null(rule, name, high, verdict):
    timeline = Timeline(make_run(STORY), rule=rule)  # L1H1 and L2H0 are emergent at the end
    band = banded(timeline, 1, high)
    # The paper's rule tests no single birth, so that more of them name no head.
    limit = ", as a number; which of them are real it does not say"
    assert sentence(timeline, band) == (
        f"2 heads are emergent at step 40 by the {name}; an unchanged model measured with "
        f"other probes gives 1 to 2: {verdict}" + (limit if rule == "paper" and high < 2 else "")
    )
    assert nulls.exceeds(timeline, band) is (verdict == "more than its null")


@pytest.mark.parametrize(
    ("checkpoints", "changes", "said"),
    [
        (
            {0: ["L0H0"], 5: ["L0H0"]},
            {},
            "no head is emergent at step 5 by the paper's rule; an unchanged model measured with "
            "other probes gives 3: no more than its null",
        ),
        (
            {0: ["L0H0"], 5: ["L1H0"]},
            {"method": "fresh probes"},
            "1 head is emergent at step 5 by the paper's rule; an unchanged model measured with "
            "fresh probes gives 3: no more than its null",
        ),
        (
            {0: ["L0H0"]},
            {"method": "weight noise"},
            "one checkpoint, no births yet; tiny noise on the weights alone gives 3 by the paper's "
            "rule",
        ),
        (
            {0: ["L0H0"], 5: ["L1H0"]},
            {"method": "seeds"},
            "1 head is emergent at step 5 by the paper's rule; active heads of another seed's run "
            "that this one does not have: 3: no more than its null",
        ),
    ],
)
def test_every_method_has_its_words(checkpoints, changes, said):
    timeline = Timeline(make_run(checkpoints), rule="paper")
    assert sentence(timeline, banded(timeline, 3, 3, **changes)) == said


def test_too_few_probes_for_a_birth_are_said_not_counted():
    timeline = Timeline(make_run(STORY, probes=6))
    assert sentence(timeline, null(timeline)) == (
        "6 probes cannot settle a birth by the rule of growth (7 are needed), on this model or "
        "on an unchanged one"
    )
    assert "emergent" in sentence(timeline.by("paper"), null_of(timeline.by("paper")))


# -- null.json -------------------------------------------------------------------------------------


def all_kinds() -> list[NullBand]:
    timeline = Timeline(make_run(STORY), rule="paper")
    return [replace(null(timeline), method=method, births_high=99.5) for method in METHODS]


def test_what_is_written_is_read_back(tmp_path):
    store = RunStore(write_run(tmp_path, make_run(STORY)))
    assert store.read().nulls == store.read_nulls() == ()
    bands = all_kinds()
    assert store.write_nulls(bands) == tmp_path / "null.json"
    assert store.read().nulls == store.read_nulls() == tuple(bands)
    assert store.read().problems == ()
    timeline = Timeline.from_run(tmp_path, rule="paper")
    assert timeline.nulls == tuple(bands)
    assert null(timeline).method == "fresh probes"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_field_of_a_later_version_is_left_out():
    rows = [asdict(band) | {"later": 1} for band in all_kinds()]
    assert from_json(json.dumps({"schema": 1, "bands": rows})) == tuple(all_kinds())


def one_band(**changes: Any) -> str:
    return json.dumps({"schema": 1, "bands": [asdict(all_kinds()[0]) | changes]})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "damaged"),
        ("[]", r"damaged \(it must be an object, got \[\]\)"),
        ("[" * 100_000, "damaged"),
        ('{"schema": 1}', r"damaged \(lacks 'bands'\)"),
        ('{"schema": 1, "bands": [1]}', r"damaged \(bands.0 must be an object, got 1\)"),
        ('{"schema": 1, "bands": [{}]}', r"damaged \(lacks 'bands.0.rule'\)"),
        ('{"schema": 2, "bands": 7}', r"schema 2 is newer than this sparks reads \(1\): upgrade"),
        (one_band(method="magic"), "damaged .+method must be 'resampled', .+ got 'magic'"),
        (one_band(births_low=1e9), "damaged .+births_low, _median and _high must be numbers in"),
        (one_band(births_high=math.inf), "damaged .+births_high must be a finite number, got inf"),
        (one_band(active_low=-1), "damaged .+active_low"),
        (
            one_band(prunings_median="3"),
            "damaged .+prunings_median must be a valid number, got '3'",
        ),
        (one_band(source=3), "damaged .+source must be a valid string, got 3"),
        (one_band(probes=1.5), "damaged .+probes must be a valid integer, got 1.5"),
        (one_band(noise="x"), "damaged .+noise must be a valid number, got 'x'"),
    ],
)
def test_a_damaged_or_newer_file_is_one_line_and_the_run_is_read_without(tmp_path, text, match):
    store = RunStore(write_run(tmp_path, make_run(STORY)))
    (tmp_path / "null.json").write_text(text)
    timeline = Timeline.from_run(tmp_path)
    assert null(timeline).method == "resampled"
    (problem,) = store.read().problems
    assert re.search(match, problem)
    assert problem.startswith(f"{tmp_path / 'null.json'}: ")
    assert problem.endswith("until then the null is that of the run's own probes")
    assert "\n" not in problem
    assert problem in timeline.problems


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"\xff\xfe"), Path.mkdir])
def test_a_file_that_is_no_text_is_one_line_too(tmp_path, spoil: Callable[[Path], Any]):
    store = RunStore(write_run(tmp_path, make_run(STORY)))
    spoil(tmp_path / "null.json")
    assert store.read().nulls == ()
    assert len(store.read().problems) == 1


def test_nulls_are_told_apart_from_run_files(tmp_path):
    store = RunStore(write_run(tmp_path, make_run(STORY)))
    store.write_nulls(all_kinds())
    assert store.steps() == list(STORY)
    assert all(first < second for first, second in pairwise(store.steps()))
    assert to_json(all_kinds()).endswith("}\n")
