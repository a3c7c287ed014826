"""Runs compared: counts and overlaps worked by hand, what may not be compared, what is printed."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import assert_refused, call
from factories import (
    BASE,
    GRPO,
    SFT,
    STORY,
    Heads,
    large_run,
    make_metrics,
    make_run,
    make_snapshot,
    write_run,
)
from factories import make_timeline as timeline

from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.timeline.comparison import Comparison, named_runs
from sparks.timeline.regimes.tables import regime_row
from sparks.timeline.timeline import Timeline
from sparks.views.report import render_report
from sparks.views.report.compared import COLUMNS, compared, compared_by_rule
from sparks.views.text.comparison import render, sentence


@pytest.fixture
def pair() -> Comparison:
    sft = Timeline(make_run(SFT), name="sft", metrics=make_metrics(range(5, 21, 5)))
    rewards = [{"step": 5, "reward": 0.25}, {"step": 10, "loss": 0.1}, {"step": 15, "reward": 0.75}]
    return Comparison.of([sft, Timeline(make_run(GRPO), name="grpo", metrics=rewards)])


# -- by hand ---------------------------------------------------------------------------------------


def test_runs_by_hand(pair):
    sft, grpo = pair.runs().to_dict("records")
    expected = {
        "run": ("sft", "grpo"), "checkpoints": (3, 4), "first_step": (0, 0), "last_step": (20, 15),
        "base": (3, 3), "active": (4, 4), "born": (3, 2), "kept": (3, 1), "kept_share": (1.0, 0.5),
        "pruned": (0, 2), "revived": (0, 1), "retained": (1, 3), "retained_share": (1 / 3, 1.0),
        "rule": ("growth",) * 2, "undecided": (0, 0), "paper_active": (4, 4),
        "paper_born": (3, 2), "null_births_low": (0, 0), "null_births_high": (0, 0),
        "regime": ("undecided",) * 2,
    }  # fmt: skip
    assert {name: (sft[name], grpo[name]) for name in expected} == expected
    assert (grpo["reward_first"], grpo["reward_last"]) == (0.25, 0.75)
    assert grpo["loss_first"] == grpo["loss_last"] == 0.1
    assert sft["loss_first"] > sft["loss_last"]
    assert math.isnan(sft["reward_first"])
    assert math.isnan(sft["reward_last"])


def test_overlap_by_hand(pair):
    end, ever = pair.overlap().to_dict("records")
    assert end == {
        "run": "sft", "other": "grpo", "heads": "end", "count": 3, "other_count": 1, "shared": 1,
        "undecided": 0, "union": 3, "jaccard": 1 / 3, "shared_by_chance": 3 * 1 / 9,
    }  # fmt: skip
    assert (ever["heads"], ever["count"], ever["other_count"]) == ("ever", 3, 2)
    assert (ever["shared"], ever["union"], ever["jaccard"]) == (1, 4, 0.25)
    assert ever["shared_by_chance"] == pytest.approx(3 * 2 / 9)


def test_the_numbers_of_a_run_are_those_of_its_regime_and_its_circuits(pair):
    rows = pair.runs().to_dict("records")
    for row, one in zip(rows, pair.timelines, strict=True):
        whole = regime_row(one)
        for name in ("survival", "survival_low", "survival_high", "half_life"):
            assert row[name] == pytest.approx(whole[name], nan_ok=True), name
        assert row["edges_turnover"] == pytest.approx(whole["edges_turnover"])
        assert row["edges_stability"] == pytest.approx(whole["edges_stability"])
        assert row["regime"] == whole["verdict"]
        assert math.isnan(row["specific"])


DOUBT: dict[int, Heads] = {  # L1H1, L2H0 and L2H3 end undecided, L0H1 is base
    0: {"L0H0": 16, "L0H1": 16, "L1H0": 16, "L2H3": 8, "L1H1": 8, "L2H0": 8},
    10: {"L0H0": 16, "L2H3": 8, "L1H1": 8, "L2H0": 8, "L2H2": 16},
}


def test_a_head_that_is_undecided_in_one_run_is_neither_shared_nor_exclusive():
    """SFT ends with L1H1, L2H0 and L2H3 emergent: the other run can tell of none of them."""
    both = Comparison.of([timeline(SFT, "sft"), timeline(DOUBT, "doubt")])
    for _, row in both.overlap().iterrows():
        assert (row["count"], row["other_count"], row["shared"]) == (3, 1, 0)
        assert (row["undecided"], row["union"], row["jaccard"]) == (3, 1, 0)
    for when in ("end", "ever"):
        assert both.exclusive("sft", when) == []
        assert both.exclusive("doubt", when) == ["L2H2"]
    heads = both.heads()
    assert heads["head"][heads["exclusive_at_end"]].tolist() == ["L2H2"]
    paper = Comparison.of([one.by("paper") for one in both.timelines])
    assert paper.overlap()["undecided"].tolist() == [0, 0]
    assert paper.exclusive("sft") == ["L1H1", "L2H0", "L2H3"]  # all of them base in the other
    text = render(both, width=120)
    assert re.search(r"^  sft & doubt +3, 1 +0 +3 +\S+ +0.00$", text, re.M)
    assert re.search(r"^  doubt +0-10 +3 +2-5 +5 ", text, re.M)


def test_births_of_control_probes_are_told_apart():
    groups = [""] * 16 + ["control"] * 16
    held: dict[int, Heads] = {0: {"L0H0": 32}, 10: {"L0H0": 32, "L1H1": 32, "L1H2": 16}}
    one = timeline(held, "a", probes=32, groups=groups)
    both = Comparison.of([one, one])
    assert both.runs()["specific"].tolist() == [1, 1]
    assert "specific: births that the control probes do not show" in render(both, width=200)


def test_exclusive_and_common_heads_by_hand(pair):
    assert pair.exclusive("sft") == ["L2H0", "L2H3"]
    assert pair.exclusive("grpo") == []
    assert pair.exclusive("grpo", "ever") == ["L2H1"]
    assert pair.common() == pair.common("ever") == ["L1H1"]
    with pytest.raises(SparksError, match=r"run must be one of 'sft', 'grpo', got 'dpo'"):
        pair.exclusive("dpo")


def test_heads_hold_those_of_the_timelines_and_agree_with_the_lists(pair):
    heads = pair.heads()
    assert len(heads) == 2 * 12
    for index, name in enumerate(pair.names):
        mine = heads[heads["run"] == name].reset_index(drop=True)
        theirs = pair.timelines[index].heads()
        pd.testing.assert_frame_equal(mine[theirs.columns], theirs)
        assert mine["born"].sum() == pair.runs()["born"][index]
        assert mine["head"][mine["exclusive_at_end"]].tolist() == pair.exclusive(name)
        assert mine["head"][mine["exclusive_ever"]].tolist() == pair.exclusive(name, "ever")


def test_of_three_runs_a_head_of_two_is_nobodys_own():
    third = {0: BASE, 10: [*BASE, "L2H0", "L2H2"]}
    three = Comparison.of([timeline(SFT, "a"), timeline(GRPO, "b"), timeline(third, "c")])
    assert [three.exclusive(name) for name in three.names] == [["L2H3"], [], ["L2H2"]]
    assert three.common() == []
    pairs = three.overlap()[["run", "other", "heads"]].to_numpy().tolist()
    expected = [["a", "b"], ["a", "c"], ["b", "c"]]
    assert pairs == [[*names, when] for when in ("end", "ever") for names in expected]


@pytest.mark.parametrize("seed", range(3))
def test_identities_hold_on_random_runs(seed):
    runs = [
        Timeline(large_run(checkpoints=7, emergent_share=0.4, seed=other)) for other in (seed, 9)
    ]
    both = Comparison.of(runs)
    for _, row in both.runs().iterrows():
        assert row["kept"] == row["born"] + row["revived"] - row["pruned"]
    for one, row in zip(runs, both.runs().to_dict("records"), strict=True):
        unplaced = int((one.active[-1] & one.states.undated).sum())
        assert row["active"] == row["kept"] + row["retained"] + unplaced
    for _, row in both.overlap().iterrows():
        every = row["count"] + row["other_count"] - row["shared"]
        assert row["union"] == every - row["undecided"]
        left, right = (set(both.exclusive(name, row["heads"])) for name in both.names)
        assert len(left) + len(right) + row["shared"] == row["union"]
        assert len(left) <= row["count"] - row["shared"]
        assert left.isdisjoint(right)


def test_shared_by_chance_is_the_mean_over_random_draws(pair):
    rng = np.random.default_rng(0)
    draws = [len(set(rng.permutation(9)[:3]) & set(rng.permutation(9)[:2])) for _ in range(4000)]
    expected = pair.overlap()["shared_by_chance"][1]
    assert np.mean(draws) == pytest.approx(expected, abs=0.05)


def test_a_run_against_itself_shares_all():
    same = Comparison.of([timeline(GRPO, "grpo"), timeline(GRPO, "grpo")])
    assert same.names == ("grpo", "grpo (2)")
    assert same.overlap()["jaccard"].tolist() == [1.0, 1.0]
    assert same.exclusive("grpo", "ever") == []
    assert same.warnings == ()


def test_runs_in_which_nothing_happens():
    still: dict[int, Heads] = {0: [], 10: []}
    one = Comparison.of([timeline(still, "a"), timeline({0: []}, "b")])
    assert one.runs()["born"].tolist() == [0, 0]
    for column in ("kept_share", "retained_share", "loss_first"):
        assert one.runs()[column].isna().all()
    assert one.overlap()["jaccard"].isna().all()
    assert "a:  0 births; 0 base heads." in render(one, width=100)


# -- what may be compared --------------------------------------------------------------------------


def test_one_run_is_no_comparison():
    with pytest.raises(SparksError, match=r"needs at least two runs, got 1: give another RUN"):
        Comparison.of([timeline(SFT)])


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"probes_hash": "x"}, r"the same probes, got 16 of hash 'probes-16' in 'a' and 16 of hash "
                               r"'x' in 'b': `sparks replay` can measure one of them again"),
        ({"probes": 5}, r"the same probes, got 16 of hash 'probes-16' in 'a' and 5 of hash"),
        ({"graph": Graph(num_layers=3, num_heads=4, num_kv_heads=4)},
         r"the same graph, got 3 layers x 4 heads, 2 key/value heads in 'a' and 3 layers x 4 heads,"
         r" 4 key/value heads in 'b': heads of different architectures"),
        ({"config": SnapshotConfig(points=20)},
         r"the same settings, got points=4 in 'a' and points=20 in 'b': `sparks replay`"),
        ({"config": SnapshotConfig(threshold=0.5)}, r"threshold=0\.1 in 'a' and threshold=0\.5"),
    ],
)  # fmt: skip
def test_runs_measured_differently_are_refused(keywords, match):
    runs = [timeline(SFT, "a"), timeline(SFT, "b", **keywords)]
    with pytest.raises(SparksError, match=match) as caught:
        Comparison.of(runs)
    assert "\n" not in str(caught.value)


def test_runs_judged_by_different_rules_are_refused():
    one = timeline(SFT, "a")
    message = r"the same rule, got growth in 'a' and paper in 'b': read all of them with the sa"
    with pytest.raises(SparksError, match=message):
        Comparison.of([one, one.by("paper")], ["a", "b"])


def test_settings_that_change_no_score_may_differ():
    config = SnapshotConfig(memory_gib=1.0, faithfulness=False)
    assert Comparison.of([timeline(SFT), timeline(SFT, config=config)]).warnings == ()


def test_different_groups_of_probes_are_refused():
    snapshots = make_run(SFT, groups=["sums", "sums", "proofs", "proofs"], probes=4)
    runs = [Timeline(snapshots, group="sums"), Timeline(snapshots, group="proofs")]
    with pytest.raises(SparksError, match=r"2 \(group 'sums'\) of hash .* 2 \(group 'proofs'\)"):
        Comparison.of(runs)


def test_names():
    runs = [timeline(SFT, "x"), timeline(SFT, "x"), timeline(SFT)]
    assert Comparison.of(runs).names == ("x", "x (2)", "unnamed run")
    assert Comparison.of(runs, [None, "y"]).names == ("x", "y", "unnamed run")
    assert Comparison.of(runs, [None, "x"]).names == ("x (2)", "x", "unnamed run")
    with pytest.raises(SparksError, match=r"names of runs must differ, got 'y' twice"):
        Comparison.of(runs, ["y", None, "y"])
    with pytest.raises(SparksError, match=r"3 runs need a name each, got 2"):
        Comparison(runs, ["a", "b"])


def test_other_bases_are_warned_about_and_compared():
    other = timeline({0: ["L0H0"], 10: ["L0H0", "L1H1"]}, "other", model_hash="another-base")
    both = Comparison.of([timeline(SFT, "sft"), other])
    (warning,) = both.warnings
    assert re.search(r"models at step 0 differ \('sft': model-0-0; 'other': another-base", warning)
    assert both.overlap()["shared"].tolist() == [1, 1]
    assert both.overlap()["shared_by_chance"].isna().all()  # no common pool to draw from


def test_a_run_without_its_base_and_another_precision_are_warned_about():
    late = {step: heads for step, heads in SFT.items() if step}
    half = timeline(late, "late", precision="bfloat16")
    first, second = Comparison.of([timeline(SFT, "sft"), half]).warnings
    assert "no snapshot of step 0 in 'late' (step 10)" in first
    assert "'sft': float32; 'late': bfloat16" in second


# -- text ------------------------------------------------------------------------------------------


def test_sentences(pair):
    sft, grpo = (sentence(row) for row in pair.runs().to_dict("records"))
    assert re.fullmatch(
        r"3 births, 3 kept \(100%\); 1 of 3 base heads retained \(33\.3%\); loss \S+ to \S+", sft
    )
    assert "2 births, 1 kept (50%); 3 of 3 base heads retained (100%); reward 0.25 to 0.75" in grpo


def test_the_page_of_text(pair):
    text = render(pair, width=180)
    rows = pair.runs().to_dict("records")
    ends = [f"{r['edges_turnover']:.1%} +{r['edges_stability']:.2f}" for r in rows]
    assert re.search(
        rf"^  sft +0-20 +3 +4 +4 +3 +0 +3 +100% +0 +0 +1/3 +undecided +100% +{ends[0]} "
        r"+– +\S+ > \S+$",
        text, re.M,
    )  # fmt: skip
    assert re.search(
        rf"^  grpo +0-15 +3 +4 +4 +2 +0 +1 +50% +2 +1 +3/3 +undecided +\S+ +{ends[1]} "
        r"+0.25 > 0.75 +0.1 > 0.1$",
        text, re.M,
    )  # fmt: skip
    assert "paper: active by the paper's rule; null" in text
    assert "with the undecided" not in text  # no cell is a range
    assert re.search(r"^  sft & grpo +3, 1 +1 +0 +0.3333 +0.33$", text, re.M)
    assert re.search(r"^  sft & grpo +3, 2 +1 +0 +0.6667 +0.25$", text, re.M)
    assert "  only sft (2)  L2H0, L2H3\n  only grpo (0)  –\n  both (1)  L1H1\n" in text
    assert "Note  by chance: what two random draws" in text
    assert "Rule         growth: active = more than an even share of all |score|" in text
    assert "Null of grpo  1 head is emergent at step 15 by the rule of growth; an unch" in text
    assert "EAP-IG with 4 points" in text


def test_warnings_and_problems_are_in_the_text():
    runs = [
        timeline(SFT, "sft"),
        Timeline(make_run(SFT, model_hash="b"), name="b", problems=["step-5 is damaged"]),
    ]
    text = render(Comparison.of(runs), width=200)
    assert "Warning  the models at step 0 differ" in text
    assert "Problem in b  step-5 is damaged" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_no_line_is_wider_than_asked(width):
    long = "a-name-that-goes-on-and-on-and-on-and-on"
    many = [Timeline(large_run(emergent_share=0.5, seed=seed), name=long) for seed in range(4)]
    lines = render(Comparison.of(many), width=width).splitlines()
    assert max(map(len, lines)) <= width
    header = next(line for line in lines if line.split()[:1] == ["run"])
    assert {"born", "kept", "retained"} <= set(header.split())
    with pytest.raises(SparksError, match="width must be at least 40 characters, got 39"):
        render(Comparison.of(many), width=39)


def test_colours_add_nothing_and_hostile_names_cannot_act(pair):
    plain, coloured = render(pair, width=100), render(pair, width=100, color=True)
    assert plain != coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    hostile = [timeline(SFT, "\x1b[2J\rroot"), timeline(SFT, "b\u202e", model_name="\x1b]0;x")]
    assert all(char.isprintable() or char == "\n" for char in render(Comparison.of(hostile)))


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_run(tmp_path / "sft" / "sparks", make_run(SFT), make_metrics(SFT))
    write_run(tmp_path / "grpo", make_run(GRPO))
    write_run(tmp_path / "other", make_run(STORY, probes=5))
    return tmp_path


def test_the_command_prints_the_text(folders, capsys):
    assert call("compare", folders / "sft", f"rl={folders / 'grpo'}") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "  sft:  3 births, 3 kept (100%)" in captured.out
    assert "  rl:  2 births, 1 kept (50%)" in captured.out


def test_the_rule_is_the_one_that_was_asked_for(folders, capsys):
    runs = [folders / "sft", folders / "grpo"]

    def rules(*options: str) -> set[str]:
        assert call("compare", *runs, "--format", "json", *options) == 0
        return {row["rule"] for row in json.loads(capsys.readouterr().out)}

    assert rules() == {"growth"}
    assert rules("--rule", "paper") == {"paper"}
    assert call("compare", *runs, "--rule", "paper") == 0
    assert "Rule         paper's: active = in the circuit of any probe" in capsys.readouterr().out


@pytest.mark.parametrize("table", ["runs", "overlap", "heads"])
def test_csv_and_json_hold_the_frame(table, folders, capsys):
    runs = [folders / "sft", folders / "grpo"]
    frame = getattr(Comparison.of([Timeline.from_run(run) for run in runs]), table)()
    assert call("compare", *runs, "--table", table, "--format", "csv") == 0
    csv = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert call("compare", *runs, "--table", table, "--format", "json") == 0
    rows = pd.DataFrame(json.loads(capsys.readouterr().out))
    for found in (csv, rows):
        assert list(found.columns) == list(frame.columns)
        for name in frame.columns:
            for left, right in zip(found[name], frame[name], strict=True):
                if pd.isna(right):
                    assert pd.isna(left), name
                elif isinstance(right, str):
                    assert left == right
                else:
                    assert left == pytest.approx(right), name


def test_a_group_is_compared_alone(tmp_path, capsys):
    groups = ["sums"] * 16 + ["proofs"] * 16
    run = [
        make_snapshot(0, groups=groups, probes=32),
        make_snapshot(10, {"L1H1": 32, "L2H2": 16}, groups=groups, probes=32),
    ]
    write_run(tmp_path, run)

    def born(group: str) -> list[int]:
        assert call("compare", f"a={tmp_path}", tmp_path, "--group", group, "--format", "json") == 0
        return [row["born"] for row in json.loads(capsys.readouterr().out)]

    assert born("sums") == [2, 2]
    assert born("proofs") == [1, 1]


def test_other_bases_are_warned_about_on_standard_error(folders, capsys):
    write_run(folders / "later", make_run(GRPO, model_hash="x"))
    assert call("compare", folders / "sft", folders / "later", "--format", "csv") == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("sparks: warning: the models at step 0 differ")
    assert captured.out.startswith("run,rule,checkpoints")


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        (["sft"], "at least two runs, got 1"),
        (["sft", "other"], r"the same probes, got 16 of hash 'probes-16' in 'sft' and 5 of hash"),
        (["sft", "nowhere"], "no snapshots in .*nowhere"),
        (["a=sft", "a=grpo"], "names of runs must differ, got 'a' twice"),
        (["a=", "sft"], "a run is RUN or NAME=RUN, got 'a='"),
        (["=sft", "sft"], "a run is RUN or NAME=RUN, got '=sft'"),
        (["sft", "grpo", "--group", "sums"], r"group must be one of the probes' groups \(''\)"),
    ],
)
def test_the_command_refuses_in_one_line(runs, match, folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    assert_refused(capsys, folders, "compare", *runs, match=match)


def test_a_damaged_snapshot_is_named(folders, capsys):
    damaged = folders / "grpo" / "step-10.safetensors"
    (found,) = (folders / "grpo").glob("*10.safetensors")
    found.write_bytes(found.read_bytes()[:100])
    assert call("compare", folders / "sft", folders / "grpo") == 2
    captured = capsys.readouterr()
    assert damaged.stem.removeprefix("step-") in captured.err
    assert "Problem in grpo" in captured.out


def test_a_folder_that_holds_an_equals_sign_is_itself(tmp_path):
    (tmp_path / "lr=1e-5").mkdir()
    texts = [str(tmp_path / "lr=1e-5"), "a=b=c", "plain", "dir/x=1"]
    assert named_runs(texts) == [(None, texts[0]), ("a", "b=c"), (None, "plain"), (None, "dir/x=1")]


# -- the report ------------------------------------------------------------------------------------


def test_the_report_of_one_run_compares_nothing():
    assert compared_by_rule([timeline(SFT)], ["sft"]) is None
    assert '"comparison":null' in render_report([timeline(SFT)])


def test_the_report_is_given_the_numbers_of_the_comparison(pair):
    found = compared(pair.timelines, pair.names)
    maps = found.pop("maps")
    for when in ("end", "ever"):
        width = pair.timelines[0].graph.num_heads
        held = [[f"L{place // width}H{place % width}" for place in row] for row in maps[when]]
        own = [[head for head in held[i] if head not in held[1 - i]] for i in (0, 1)]
        assert own == [pair.exclusive(name, when) for name in pair.names]
        assert [head for head in held[0] if head in held[1]] == pair.common(when)
    assert found == {
        "layers": pair.timelines[0].graph.num_layers,
        "heads": pair.timelines[0].graph.num_heads,
        "warnings": [],
        "columns": list(COLUMNS),
        "rows": [
            ["sft", "0–20", "3", "3", "100 %", "0", "1 of 3"],
            ["grpo", "0–15", "2", "1", "50 %", "2", "3 of 3"],
        ],
        "overlap": [["3", "1 (0.33)"], ["1 (0.33)", "1"]],
    }


def test_a_report_of_runs_that_do_not_fit_says_why():
    runs = [timeline(SFT, "a"), timeline(SFT, "b", probes=5)]
    found = compared(runs, ["a", "b"])
    assert list(found) == ["refused"]
    assert found["refused"].startswith("runs to compare must have the same probes, got 16")
    assert "must have the same probes" in render_report(runs)
