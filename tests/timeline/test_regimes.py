"""Regimes by numbers: by hand, planted regimes found, noise not mistaken for one, what is shown."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import assert_refused, call
from factories import STORY, large_run, make_run, make_snapshot, write_run

from sparks.cli import build_parser
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.timeline.regimes.regime import (
    Regime,
    RegimeSettings,
    circuit_turnover,
    first_spells,
    survival_of_births,
)
from sparks.timeline.regimes.tables import RegimeTables, regime_row, spread
from sparks.timeline.timeline import Timeline
from sparks.views.text.regimes import render

GRAPH = Graph(num_layers=6, num_heads=8, num_kv_heads=4)
LARGE = Graph(num_layers=24, num_heads=8, num_kv_heads=4)
NAMES = np.array([f"L{layer}H{head}" for layer in range(24) for head in range(8)])
EVERY = 10


def timeline(states: np.ndarray, reward: np.ndarray | None = None, **keywords: Any) -> Timeline:
    """A run of which heads (columns) were active at each checkpoint (rows), by the paper's rule.

    Its circuits hold heads and no edges: states are all that a regime reads.
    """
    graph = GRAPH if states.shape[1] == 48 else LARGE
    bare = make_snapshot(0, graph=graph, probes=1)
    run = [
        replace(
            bare,
            meta=replace(bare.meta, step=EVERY * time),
            active=row.reshape(1, graph.num_layers, graph.num_heads).astype(bool),
        )
        for time, row in enumerate(states)
    ]
    rows = [] if reward is None else [
        {"step": EVERY * time, "reward": float(value)} for time, value in enumerate(reward) if time
    ]  # fmt: skip
    return Timeline(run, metrics=rows, rule="paper", **keywords)


def rewards(rng: np.random.Generator, checkpoints: int) -> np.ndarray:
    """Rising, and wandering about its line."""
    out = np.zeros(checkpoints)
    for time in range(1, checkpoints):
        out[time] = 0.6 * out[time - 1] + rng.normal()
    return out + 0.1 * np.arange(checkpoints)


def accumulating(rng: np.random.Generator, checkpoints: int, births: int = 30) -> np.ndarray:
    """Half are born at once, the rest later, a tenth is pruned; four more heads flicker."""
    states = np.zeros((checkpoints, 48), dtype=bool)
    states[:, :10] = True
    early = rng.random(births) < 0.5
    birth = np.where(early, 1, rng.integers(1, int(checkpoints * 0.8), births))
    for head, first in enumerate(birth.tolist(), start=10):
        gone = rng.integers(first + 1, checkpoints) if rng.random() < 0.1 else checkpoints
        states[first:gone, head] = True
    states[1:, 40:44] = rng.random((checkpoints - 1, 4)) < 0.3
    return states


def searching(rng: np.random.Generator, reward: np.ndarray) -> np.ndarray:
    """Heads are born more often while the reward is high; half are pruned at each checkpoint."""
    states = np.zeros((len(reward), 48), dtype=bool)
    states[:, :10] = True
    height = (reward - reward.mean()) / reward.std()
    for time in range(1, len(reward)):
        chance = 0.6 / (1 + math.exp(1.5 - 1.2 * height[time]))
        stays = states[time - 1, 12:36] & (rng.random(24) < 0.5)
        states[time, 12:36] = stays | (rng.random(24) < chance)
    return states


def flicker(rng: np.random.Generator, checkpoints: int) -> np.ndarray:
    """Every checkpoint anew; some heads are mostly on, some mostly off."""
    return rng.random((checkpoints, 48)) < rng.beta(0.5, 0.5, 48)


def switching(
    off: float, on: float, heads: int = 48
) -> Callable[[np.random.Generator, int], np.ndarray]:
    """In balance from the start: as many heads come as go."""

    def states(rng: np.random.Generator, checkpoints: int) -> np.ndarray:
        out = np.zeros((checkpoints, heads), dtype=bool)
        out[0] = rng.random(heads) < on / (on + off)
        for time in range(1, checkpoints):
            luck = rng.random(heads)
            out[time] = np.where(out[time - 1], luck >= off, luck < on)
        return out

    return states


def shaken(rng: np.random.Generator, checkpoints: int) -> np.ndarray:
    """All heads near a threshold that moves with the checkpoint."""
    level = rng.normal(size=48) + 0.4 * rng.normal(size=(checkpoints, 1))
    return level + 0.3 * rng.normal(size=(checkpoints, 48)) > 0.5


NOISE = {"flicker": flicker, "switching": switching(0.3, 0.1), "wander": switching(0.1, 0.1),
         "shaken": shaken}  # fmt: skip


# -- planted regimes, and noise --------------------------------------------------------------------


def test_planted_accumulation_is_found():
    found = [
        Regime.of(timeline(accumulating(np.random.default_rng(seed), 25))) for seed in range(10)
    ]
    verdicts = [regime.verdict for regime in found]
    assert verdicts.count("accumulates") >= 9
    assert "searches" not in verdicts
    assert found[0].reason == ""


def test_planted_search_is_found():
    verdicts = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        reward = rewards(rng, 30)
        verdicts.append(Regime.of(timeline(searching(rng, reward), reward)).verdict)
    assert verdicts.count("searches") >= 9
    assert "accumulates" not in verdicts


def test_noise_is_undecided_in_at_least_95_of_100_runs():
    wrong, enough_births = [], 0
    for seed in range(100):
        kind, states = list(NOISE.items())[seed % len(NOISE)]
        rng = np.random.default_rng(seed)
        regime = Regime.of(timeline(states(rng, 30), rewards(rng, 30)))
        enough_births += not regime.reason.startswith("too few")
        if regime.verdict != "undecided":
            wrong.append((kind, seed, regime.verdict))
    assert len(wrong) <= 5, wrong
    assert enough_births >= 60  # there was something to be mistaken for a regime


def test_the_exchange_keeps_a_slow_drift_from_looking_like_growth():
    """In balance, heads come as slowly as others go: what emerges survives, and rises."""
    drift, looks_like_growth = switching(0.012, 0.012, heads=192), 0
    for seed in range(6):
        regime = Regime.of(timeline(drift(np.random.default_rng(seed), 20)))
        looks_like_growth += regime.survival.low > 0.5 and regime.growth.p_value <= 0.05
        assert regime.verdict == "undecided"
    assert looks_like_growth >= 4


def test_the_same_search_without_a_reward_is_undecided():
    rng = np.random.default_rng(0)
    reward = rewards(rng, 30)
    states = searching(rng, reward)
    regime = Regime.of(timeline(states))
    assert regime.verdict == "undecided"
    assert regime.survival.high < 0.5
    assert regime.reward is None
    assert "no 'reward' is logged, which the counts could follow" in regime.reason
    assert "No 'reward' is logged." in regime.evidence
    other = Regime.of(timeline(states, reward), RegimeSettings(reward="rewards/format"))
    assert "no 'rewards/format' is logged" in other.reason


def test_too_few_checkpoints_with_a_reward_say_so():
    rng = np.random.default_rng(0)
    reward = rewards(rng, 20)
    regime = Regime.of(timeline(searching(rng, reward), reward))
    assert regime.verdict == "undecided"
    assert "19 checkpoints with a 'reward' are too few" in regime.reason
    assert "(20 decide)" in regime.reason


def test_a_reward_that_the_heads_do_not_follow_is_named():
    rng = np.random.default_rng(1)
    states = searching(rng, rewards(rng, 30))
    regime = Regime.of(timeline(states, rewards(np.random.default_rng(7), 30)))
    assert regime.verdict == "undecided"
    assert "the active and the emergent count does not surely follow 'reward'" in regime.reason


# -- never from too little -------------------------------------------------------------------------


def born_at(births: Sequence[int], checkpoints: int) -> np.ndarray:
    """Two base heads; head k is born at checkpoint `births[k]` and stays."""
    states = np.zeros((checkpoints, 48), dtype=bool)
    states[:, :2] = True
    for head, first in enumerate(births, start=2):
        states[first:, head] = True
    return states


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        (born_at([1, 1, 2, 3] * 5, 7), r"too few checkpoints: 7, at least 8 decide"),
        (born_at([], 20), r"no births"),
        (born_at(range(1, 12), 20), r"too few births: 11, at least 12 decide"),
        (born_at([18, 19] * 10, 20), r"births came late: .* followed for 10 steps at most, 48 are"),
        (born_at([19] * 20, 20), r"births came late: .* followed for 0 steps at most"),
    ],
)
def test_too_little_is_undecided_with_its_reason(states, reason):
    regime = Regime.of(timeline(states))
    assert regime.verdict == "undecided"
    assert re.match(reason, regime.reason)
    assert regime.evidence


def test_the_controls_of_too_little():
    """With one birth and one checkpoint more the same runs are decided."""
    assert Regime.of(timeline(born_at([1, 1, 2, 3] * 5, 8))).verdict == "accumulates"
    assert Regime.of(timeline(born_at(range(1, 13), 20))).verdict == "accumulates"


def test_a_single_checkpoint():
    regime = Regime.of(timeline(born_at([], 1)))
    assert (regime.checkpoints, regime.births, regime.horizon) == (1, 0, 0)
    assert regime.reason.startswith("too few checkpoints: 1")
    assert math.isnan(regime.growth.rho)


def test_heads_that_all_came_at_once_do_not_accumulate():
    """A rule that differs from the base by a constant gives births, and no growth."""
    regime = Regime.of(timeline(born_at([1] * 20, 20)))
    assert regime.survival.low > 0.5
    assert regime.verdict == "undecided"
    assert "the emergent count does not surely rise" in regime.reason
    assert "survival of births is not surely above" not in regime.reason


def test_replacing_the_base_is_no_accumulation():
    states = born_at(range(1, 16), 20)
    states[:, 20:40] = True
    for step, head in enumerate(range(20, 40)):
        states[1 + step % 15 :, head] = False
    regime = Regime.of(timeline(states))
    assert (regime.kept, regime.lost) == (15, 20)
    assert regime.reason.startswith(
        "not 'accumulates': heads gained do not surely exceed base heads lost; not 'searches'"
    )


# -- numbers by hand -------------------------------------------------------------------------------


@pytest.fixture
def story() -> Timeline:
    rows = [{"step": step, "reward": step / 40, "loss": 1 - step / 40} for step in STORY]
    return Timeline(make_run(STORY), metrics=rows, name="story", rule="paper")


def test_spells_by_hand(story):
    spells = first_spells(story).set_index("head")
    assert spells[["birth", "last", "duration", "ended"]].to_dict("index") == {
        "L1H1": {"birth": 10, "last": 30, "duration": 20, "ended": True},
        "L2H0": {"birth": 40, "last": 40, "duration": 0, "ended": False},
        "L2H3": {"birth": 20, "last": 40, "duration": 20, "ended": True},
    }
    frame = survival_of_births(story).frame()
    assert frame[["time", "at_risk", "ended"]].to_numpy().tolist() == [[0, 3, 0], [20, 2, 2]]


def test_numbers_by_hand(story):
    regime = Regime.of(story)
    expected = {
        "name": "story", "rule": "paper", "checkpoints": 5, "first_step": 0, "last_step": 40,
        "births": 3, "half_born": 20.0, "kept": 2, "lost": 1, "exchange_p": 4 / 8,
        "most_emergent": 2, "prunings": 2, "revivals": 1, "horizon": 20, "base": 3,
        "undecided": 0.0,
    }  # fmt: skip
    assert {name: getattr(regime, name) for name in expected} == expected
    assert regime.survival.value == 0
    assert regime.half_life.value == 20
    # Emergent before the next checkpoint: L1H1 twice, L2H3 twice; each is pruned once.
    assert regime.turnover.value == 2 / 4
    assert regime.growth.rho == pytest.approx(1 / math.sqrt(5))  # of 1, 2, 1, 2
    assert regime.retained.value == pytest.approx(2 / 3)
    assert regime.retained.low == pytest.approx(0.208, abs=1e-3)  # Wilson's of 2 in 3
    assert regime.retained.high == pytest.approx(0.939, abs=1e-3)
    assert regime.depth.value == pytest.approx((0.5 + 1 + 1) / 3)
    assert regime.depth_by_chance == pytest.approx((2 * 0 + 3 * 0.5 + 4 * 1) / 9)
    assert regime.reward is not None
    assert (regime.reward.points, regime.reward.curve) == (5, "reward")


def test_the_horizon_is_the_time_for_which_half_of_the_births_are_followed():
    regime = Regime.of(timeline(born_at([1, 1, 1, 5, 8], 10)))
    assert regime.horizon == 80
    assert Regime.of(timeline(born_at([1, 1, 5, 8], 10))).horizon == 80
    assert Regime.of(timeline(born_at([1, 5, 8], 10))).horizon == 40


def test_a_head_that_is_undecided_at_the_end_is_followed_until_it_was_last_active():
    """Under the calibrated rule a head can stop being active without being pruned."""
    probes = 16
    held = [0, 0, 0, 16, 16, 16, 16, 12, 3]  # of 16 probes
    run = [
        make_snapshot(EVERY * time, {"L0H0": probes, "L1H1": count}, probes=probes)
        for time, count in enumerate(held)
    ]
    calibrated = Timeline(run)
    assert calibrated.cohort[1, 1] == 3
    pruned = calibrated.changes("pruned")[:, 1, 1]
    spells = first_spells(calibrated)
    assert spells["ended"].tolist() == [bool(pruned.any())]
    last = (
        int(pruned.argmax()) if pruned.any() else int(calibrated.emergent[:, 1, 1].nonzero()[0][-1])
    )
    assert spells["duration"].tolist() == [EVERY * (last - 3)]
    assert Regime.of(calibrated).rule == "growth"


def test_both_rules_give_the_same_numbers_where_all_probes_agree():
    """16 probes that hold the same heads: nothing is uncertain, so that the rules agree."""
    states = born_at(range(1, 13), 20)
    states[10:, 5] = False
    held = {EVERY * t: NAMES[np.flatnonzero(row)].tolist() for t, row in enumerate(states)}
    run = make_run(held, graph=GRAPH, probes=24)
    paper, calibrated = (Regime.of(Timeline(run, rule=rule)) for rule in ("paper", "growth"))
    for item in fields(Regime):
        if item.name != "rule":
            one, other = getattr(paper, item.name), getattr(calibrated, item.name)
            assert repr(one) == repr(other), item.name


# -- settings --------------------------------------------------------------------------------------


def test_no_outcome_from_fewer_than_the_tests_can_decide():
    assert RegimeSettings().fewest_births == 12
    assert RegimeSettings(min_births=1).fewest_births == 11
    assert RegimeSettings(min_births=1, share_kept=0.7).fewest_births == 21
    assert RegimeSettings().fewest_checkpoints == 8
    assert RegimeSettings(min_checkpoints=1).fewest_checkpoints == 5
    assert RegimeSettings(min_checkpoints=1, alpha=0.001).fewest_checkpoints == 8
    least = RegimeSettings(min_births=1, min_checkpoints=1)
    assert Regime.of(timeline(born_at(range(1, 12), 20)), least).verdict == "accumulates"
    fewer = Regime.of(timeline(born_at(range(1, 11), 20)), least)
    assert fewer.reason.startswith("too few births: 10, at least 11 decide")
    assert fewer.survival.low < 0.5  # none was pruned: it could not have decided


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"alpha": 0.0}, r"alpha must be a number between 0 and 1, got 0\.0"),
        ({"share_kept": 1}, "share_kept must be a number between 0 and 1, got 1"),
        ({"min_births": 0}, "min_births must be a whole number, at least 1, got 0"),
        ({"min_checkpoints": 2.5}, "min_checkpoints must be a whole number, at least 1, got 2.5"),
        ({"max_lag": -1}, "max_lag must be a whole number, at least 0, got -1"),
    ],
)
def test_settings_are_checked(keywords, match):
    with pytest.raises(SparksError, match=match):
        RegimeSettings(**keywords)


# -- rows and spread -------------------------------------------------------------------------------


def test_a_row_holds_every_number(story):
    row = regime_row(story)
    regime = Regime.of(story)
    assert row["run"] == "story"
    for item in fields(Regime):
        if item.name not in ("name", "evidence", "settings"):
            assert any(key == item.name or key.startswith(f"{item.name}_") for key in row), item
    assert row["retained_low"] == regime.retained.low
    assert row["reward_points"] == 5
    assert math.isnan(row["reward_p"])
    moved = [found.edges_from_previous.value for found in circuit_turnover(story)[1:]]
    assert row["edges_turnover"] == pytest.approx(np.mean(moved))
    assert all(isinstance(value, str | int | float) for value in row.values())
    json.dumps(row)


def test_a_half_life_that_was_not_reached_is_no_number():
    row = regime_row(timeline(born_at([1, 2], 10)))
    assert math.isnan(row["half_life"])
    assert "half-life not reached" in " ".join(Regime.of(timeline(born_at([1, 2], 10))).evidence)


def test_only_the_timelines_probes_turn_over():
    groups = ["sums", "sums", "proofs", "proofs"]
    run = [
        make_snapshot(0, ["L0H0"], probes=4, groups=groups),
        make_snapshot(10, {"L0H0": 4, "L1H1": 2}, probes=4, groups=groups),
    ]
    moved = [
        circuit_turnover(Timeline(run, group=group, rule="paper"))[1].heads_from_previous.value
        for group in ("sums", "proofs")
    ]
    assert moved == [0.5, 0]


def test_spread_over_seeds():
    rows = pd.DataFrame(
        {
            "regime": ["sft", "sft", "grpo"],
            "verdict": ["accumulates", "undecided", "searches"],
            "births": [10, 14, 5],
            "half_life": [math.nan, 30.0, 20.0],
        }
    )
    found = spread(rows, "regime").set_index(["regime", "number"])
    assert list(found.columns) == ["runs", "mean", "sd", "lowest", "highest"]
    assert found.loc[("sft", "births")].tolist() == pytest.approx([2, 12, math.sqrt(8), 10, 14])
    assert found.loc[("sft", "half_life"), "runs"] == 1
    assert math.isnan(found.loc[("sft", "half_life"), "sd"])
    assert math.isnan(found.loc[("grpo", "births"), "sd"])
    assert len(found) == 4
    with pytest.raises(SparksError, match="rows must have a column 'seed', got regime, verdict"):
        spread(rows, "seed")


def test_spread_of_real_rows():
    rows = [regime_row(Timeline(large_run(seed=seed), rule="paper")) for seed in range(3)]
    frame = pd.DataFrame(rows).assign(kind="random")
    found = spread(frame, "kind").set_index("number")
    assert found.loc["births", "mean"] == pytest.approx(frame["births"].mean())
    assert found.loc["edges_stability", "highest"] == frame["edges_stability"].max()


# -- text ------------------------------------------------------------------------------------------


@pytest.fixture
def tables() -> RegimeTables:
    rng = np.random.default_rng(1)
    reward = rewards(rng, 30)
    runs = [
        timeline(accumulating(rng, 30)),
        timeline(searching(rng, reward), reward),
        timeline(born_at([], 9)),
    ]
    return RegimeTables(runs, ["sft", "grpo", "still"])


def test_the_page_of_text(tables):
    text = render(tables, width=120)
    assert [regime.verdict for regime in tables.regimes] == ["accumulates", "searches", "undecided"]
    assert re.search(r"^  sft +accumulates +\d+ +\d+ +\d+% \(\d+-\d+\) ", text, re.M)
    assert re.search(r"^  grpo +searches .* 0\.\d\d, p 0\.03\d ", text, re.M)
    assert re.search(r"^  still +undecided +0 +0 +– ", text, re.M)
    assert "\nsft: accumulates\n  Rule  the paper's; steps 0 to 290\n" in text
    assert "Why undecided  no births\n" in text
    assert "No head was born in 9 checkpoints." in text
    assert text.count("Circuits: share moved") == 3
    assert text.endswith("\n")


@pytest.mark.parametrize("width", [40, 60, 100, 140])
def test_no_line_is_wider_than_asked(tables, width):
    lines = render(tables, width=width).splitlines()
    assert max(map(len, lines)) <= width
    with pytest.raises(SparksError, match="width must be at least 40 characters, got 39"):
        render(tables, width=39)


def test_colours_add_nothing_and_hostile_names_cannot_act(tables):
    plain, coloured = render(tables, width=100), render(tables, width=100, color=True)
    assert plain != coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    bad = "\x1b[2J\rroot"
    hostile = RegimeTables(
        [timeline(born_at([], 9), problems=[bad])], [bad], RegimeSettings(reward=bad)
    )
    assert all(char.isprintable() or char == "\n" for char in render(hostile, width=100))


def test_names_must_tell_runs_apart(tables):
    with pytest.raises(SparksError, match="names of runs must differ, got 'a' twice"):
        RegimeTables(tables.timelines[:2], ["a", "a"])
    with pytest.raises(SparksError, match="runs need a name each, got 0 runs and 0 names"):
        RegimeTables([], [])


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    rows = [{"step": step, "reward": step / 40} for step in STORY]
    write_run(tmp_path / "a" / "sparks", make_run(STORY), rows)
    write_run(tmp_path / "b", large_run(checkpoints=9))
    return tmp_path


def test_the_command_prints_the_text(folders, capsys):
    assert call("regimes", folders / "a", f"rl={folders / 'b'}", "--rule", "paper") == 0
    out = capsys.readouterr().out
    assert "\na: undecided\n" in out
    assert "\nrl: undecided\n" in out
    assert "Why undecided  too few checkpoints: 5, at least 8 decide" in out
    assert call("regimes", folders / "a") == 0
    assert "Rule  growth; steps 0 to 40" in capsys.readouterr().out


@pytest.mark.parametrize("table", ["runs", "evidence", "survival", "turnover"])
def test_csv_and_json_hold_the_frame(table, folders, capsys):
    runs = [folders / "a", folders / "b"]
    timelines = [Timeline.from_run(run, rule="paper") for run in runs]
    frame = getattr(RegimeTables(timelines, ["a", "b"]), table)()
    options = ["--rule", "paper", "--table", table, "--format"]
    assert call("regimes", *runs, *options, "csv") == 0
    csv = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert call("regimes", *runs, *options, "json") == 0
    rows = pd.DataFrame(json.loads(capsys.readouterr().out))
    for found in (csv, rows):
        assert list(found.columns) == list(frame.columns)
        for name in frame.columns:
            for left, right in zip(found[name], frame[name], strict=True):
                if pd.isna(right) or right == "":
                    assert pd.isna(left) or left == "", name
                elif isinstance(right, str):
                    assert left == right
                else:
                    assert left == pytest.approx(right), name


def test_another_reward_can_be_named(folders, capsys):
    assert call("regimes", folders / "a", "--reward", "rewards/accuracy", "--rule", "paper") == 0
    assert "No 'rewards/accuracy' is logged." in capsys.readouterr().out


def test_the_command_has_the_defaults_of_the_library():
    arguments = build_parser().parse_args(["regimes", "RUN"])
    assert arguments.reward == RegimeSettings().reward
    assert arguments.rule == Timeline(make_run(STORY)).rule


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        (["nowhere"], "no snapshots in .*nowhere"),
        (["a=a", "a=b"], "names of runs must differ, got 'a' twice"),
        (["a", "--group", "sums"], r"group must be one of the probes' groups \(''\)"),
        (["a", "--rule", "mine"], r"invalid choice: 'mine'"),
    ],
)
def test_the_command_refuses_in_one_line(runs, match, folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    assert_refused(capsys, folders, "regimes", *runs, match=match)


def test_a_damaged_snapshot_is_named(folders, capsys):
    (found,) = (folders / "b").glob("*0800.safetensors")
    found.write_bytes(found.read_bytes()[:100])
    assert call("regimes", folders / "b", "--rule", "paper") == 2
    captured = capsys.readouterr()
    assert found.name in captured.err
    assert "Problem  " in captured.out
