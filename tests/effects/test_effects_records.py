"""Head sets, plans, and tables: no row of a set without its matched random heads."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import SMALL, make_run

from sparks.effects.plan import INTACT, Plan, PlannedSet, make_plan
from sparks.effects.records import Control, EffectTable, Measured, Row
from sparks.effects.sets import ChosenSet, ChosenSets, Runs, choose_sets
from sparks.effects.tables import WRITERS, frame, to_json
from sparks.ground.errors import SparksError
from sparks.models.heads import parse_heads
from sparks.stats.intervals import Interval
from sparks.timeline.timeline import Timeline
from sparks.views.text.effects import render

SHAPE = (SMALL.num_layers, SMALL.num_heads)


def timeline(heads: dict[int, Any], name: str = "own", **more: Any) -> Timeline:
    return Timeline(make_run(heads, **more), name=name)


OWN = timeline(
    {0: ["L0H0", "L0H1"], 10: ["L0H0", "L1H1", "L2H3"]},
    importance={"L1H1": 1.0, "L2H3": 3.0, "L0H0": 2.0},
)
OTHER = timeline({0: ["L2H0"], 10: ["L2H0", "L2H1"]}, name="trivia")
RUNS = Runs(run=OWN, control=OTHER)


def heads_of(*texts: str, runs: Runs = RUNS, most: tuple[int, ...] = ()) -> dict[str, str]:
    found = choose_sets(texts, runs, most=most).sets
    return {
        f"{item.name} {len(item.heads)}/{item.found}": ",".join(
            f"L{layer}H{head}" for layer, head in item.heads
        )
        for item in found
    }


# -- sets ------------------------------------------------------------------------------------------


def test_sets_by_rule_by_hand_and_from_a_control_task():
    assert heads_of("emergent", "base", "mine=L2H2,L0H3", "L1H0", "control", "x=control:top:1") == {
        "emergent 2/2": "L1H1,L2H3",
        "base 2/2": "L0H0,L0H1",
        "mine 2/2": "L0H3,L2H2",
        "by hand 1/1": "L1H0",
        "control 2/2": "L2H0,L2H1",
        "x 1/1": heads_of("control:top:1")["control:top:1 1/1"],
    }


def test_the_control_probes_of_the_same_run_are_a_control_task():
    groups = ["task"] * 16 + ["control"] * 16
    held = {"L0H0": 16, "L1H2": 32}  # probes that hold it, the first so many
    both = Timeline(make_run({0: held, 10: held}, groups=groups), name="own")
    assert both.control is not None
    assert heads_of("control", runs=Runs(run=both)) == {"control 1/1": "L1H2"}


def test_the_most_important_heads_of_each_set():
    assert heads_of("emergent", most=(1,)) == {"emergent 1/2": "L2H3"}
    assert heads_of("emergent", "mine=L1H1,L0H0,L2H3", most=(1, 2, 5)) == {
        "emergent 1/2": "L2H3",
        "emergent 2/2": "L1H1,L2H3",
        "mine 1/3": "L2H3",
        "mine 2/3": "L0H0,L2H3",
        "mine 3/3": "L0H0,L1H1,L2H3",
    }


def test_an_empty_set_is_told_and_the_others_go_on():
    found = choose_sets(["pruned", "emergent"], RUNS)
    assert [item.name for item in found.sets] == ["emergent"]
    assert re.match(r"pruned: no head is pruned in run own.*top:10", found.left_out[0])
    silent = Runs(run=OWN, control=timeline({0: [], 10: []}))
    found = choose_sets(["control", "emergent"], silent)
    assert re.match(r"control: no head is active in .*control:top:10", found.left_out[0])
    with pytest.raises(SparksError, match=r"no set has a head: pruned: no head is pruned"):
        choose_sets(["pruned"], RUNS)


@pytest.mark.parametrize(
    ("texts", "runs", "most", "match"),
    [
        (["emergnt"], RUNS, (), r"'emergnt' names no heads: give them as L5H1,L7H2, or a rule"),
        (["a=emergnt"], RUNS, (), r"'emergnt' names no heads"),
        (["L1"], RUNS, (), r"'L1' is no attention head"),
        (["emergent@7"], RUNS, (), r"run own has no snapshot of step 7"),
        (["emergent", "emergent"], RUNS, (), r"two sets are called 'emergent'"),
        (["=base"], RUNS, (), r"a set is a rule, heads, or NAME=either, got '=base'"),
        (["a="], RUNS, (), r"a set is a rule, heads, or NAME=either, got 'a='"),
        (["emergent"], Runs(), (), r"the rule 'emergent' needs a run to read heads from"),
        (["control"], Runs(run=OWN), (), r"the set 'control' needs a control task: --control-run"),
        (["L1H1,L2H2"], Runs(), (1,), r"--most needs --run, whose importance ranks"),
        (["base"], RUNS, (0,), r"--most must be at least 1, got 0"),
    ],
)
def test_sets_that_are_written_wrongly_are_refused(texts, runs, most, match):
    with pytest.raises(SparksError, match=match):
        choose_sets(texts, runs, most=most)


def test_runs_of_models_of_different_shapes_are_refused():
    graph = replace(SMALL, num_heads=8)
    with pytest.raises(SparksError, match=r"run and control run are of models of different shapes"):
        Runs(run=OWN, control=timeline({0: ["L0H0"], 10: ["L0H0"]}, graph=graph))


# -- plans -----------------------------------------------------------------------------------------


def plan_of(*texts: str, scales: tuple[float, ...] = (0.0,), draws: int = 3, **more: Any) -> Plan:
    return make_plan(
        choose_sets(texts, RUNS),
        shape=SHAPE,
        scales=scales,
        in_words=lambda scale: f"scaled by {scale:g}",
        draws=draws,
        seed=0,
        **{"model": "m", "task": "t", "metric": "pass@1", "margin": 0.1, "settings": {}} | more,
    )


def test_every_set_is_planned_with_random_heads_of_its_layers():
    plan = plan_of("emergent", "x=L0H0,L1H0", scales=(0.0, 1.0, 1.3))
    assert [(one.name, one.scale) for one in plan.sets] == [
        ("emergent", 0.0), ("emergent", 1.3), ("x", 0.0), ("x", 1.3),
    ]  # fmt: skip
    for planned in plan.sets:
        assert len(planned.random) == 3
        for drawn in planned.random:
            assert not {*drawn} & {*planned.heads}
            assert Counter(h[0] for h in drawn) == Counter(h[0] for h in planned.heads)
    assert plan.sets[0].random == plan.sets[1].random  # the same heads under every factor


def test_conditions_that_are_alike_are_measured_once():
    plan = plan_of("a=L0H0", "b=L0H0", draws=12)  # three other heads in the layer
    found = list(plan.conditions())
    assert found[0] is INTACT
    assert len({condition.file for condition in found}) == len(found)
    assert [condition.heads for condition in found[1:]].count(((0, 0),)) == 2  # by name, a and b
    assert {condition.heads for condition in found[1:]} == {((0, head),) for head in range(4)}
    assert len(found) == 1 + 2 + 3


def test_draws_are_never_alike_and_more_of_them_keep_the_first():
    few, many, all_ = (plan_of("a=L0H0,L1H0", draws=draws).sets[0].random for draws in (3, 6, 50))
    assert few == many[:3]
    assert len({*many}) == 6
    assert sorted(all_) == [((0, i), (1, j)) for i in (1, 2, 3) for j in (1, 2, 3)]


def test_a_set_whose_heads_changed_has_other_files():
    one, other = (plan_of(f"a={heads}").sets[0].conditions() for heads in ("L0H0", "L0H1"))
    assert one[0].file != other[0].file
    scaled = plan_of("a=L0H0", scales=(0.5,)).sets[0].conditions()
    assert scaled[1].file != one[1].file


def test_a_plan_is_kept_whole(tmp_path):
    plan = plan_of("emergent", "pruned", scales=(0.0, 0.5), stamp="x")
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    assert len(plan.left_out) == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"no study of effects in .*: give the folder that --output wrote"),
        ("{", r"study.json: damaged .*: run the study again"),
        ("[]", r"study.json: damaged"),
        ('{"kind": "sparks effects", "schema": 1}', r"study.json: damaged \(lacks 'model'\)"),
        ('{"kind": "sparks effects", "schema": 9}', r"schema 9, this sparks reads 1: upgrade"),
    ],
)
def test_a_damaged_plan_is_told(tmp_path, content, match):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(SparksError, match=match):
        Plan.load(tmp_path)


def test_sets_that_random_heads_cannot_match_are_left_out():
    plan = plan_of("whole=L0H0,L0H1,L0H2,L0H3,L1H0,L1H1,L1H2", "emergent")
    assert [planned.name for planned in plan.sets] == ["emergent"]
    assert re.match(r"whole: no random heads match 7 of 12: only 5", plan.left_out[0])
    with pytest.raises(SparksError, match=r"no set can be measured: half: only 1 set of random"):
        plan_of("half=" + ",".join(f"L{layer}H{head}" for layer in range(3) for head in (0, 1)))
    with pytest.raises(SparksError, match=r"scale 1 changes nothing: give another factor"):
        plan_of("emergent", scales=(1.0,))
    with pytest.raises(SparksError, match=r"no head L7H0: the model has layers 0..2"):
        plan_of("L7H0")


# -- tables ----------------------------------------------------------------------------------------


def answers(rate: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((30, 4)) < rate


def measured(name: str, rate: float, seed: int, **more: Any) -> Measured:
    planned: dict[str, Any] = {
        "name": name,
        "heads": ((0, 0), (1, 0)),
        "found": 5,
        "origin": "run own, step 10",
        "done": "set to 0",
        "scale": 0.0,
        "random": (((0, 1), (1, 1)), ((0, 2), (1, 2)), ((0, 3), (1, 1))),
        "moved": (0, 0, 0),
    }
    given: dict[str, Any] = {
        "answers": answers(rate, seed),
        "random_answers": tuple(answers(0.75, 100 * seed + draw) for draw in range(3)),
    }
    for key, value in more.items():
        (given if key in given else planned)[key] = value
    return Measured(planned=PlannedSet(**planned), **given)


def table_of(*sets: Measured, **more: Any) -> EffectTable:
    return EffectTable.of(answers(0.8, 0), sets, model="tiny", task="sums", **more)


TABLE = table_of(measured("emergent", 0.1, 1), measured("base & co_1", 0.75, 2), left_out=("x: y",))


def test_a_row_is_made_of_the_means_of_its_answers():
    row, intact = TABLE.rows[0], answers(0.8, 0)
    given = measured("emergent", 0.1, 1)
    assert TABLE.intact.value == pytest.approx(intact.mean())
    assert row.value == pytest.approx(given.answers.mean())
    assert row.effect.value == pytest.approx(intact.mean() - given.answers.mean())
    random = np.mean([draw.mean() for draw in given.random_answers])
    assert row.control.effect.value == pytest.approx(intact.mean() - random)
    assert row.contrast.interval.value == pytest.approx(random - given.answers.mean())
    assert row.judgement.verdict == "beyond matched random heads"
    assert TABLE.rows[1].judgement.verdict != row.judgement.verdict
    assert row.beside["pass@4"][0] == pytest.approx(given.answers.any(axis=1).mean())
    assert row.p_holm == pytest.approx(2 * row.contrast.p_value)


def test_another_metric_can_be_judged():
    table = table_of(measured("emergent", 0.1, 1), metric="pass@4")
    assert table.intact.value == pytest.approx(answers(0.8, 0).any(axis=1).mean())
    assert set(table.intact_beside) == {"pass@1", "pass@2", "success@2"}


def test_a_row_cannot_be_made_without_its_control():
    row = TABLE.rows[0]
    with pytest.raises(SparksError, match="emergent has no matched random heads beside it"):
        replace(row, control=None)
    with pytest.raises(TypeError, match="control"):
        Row(**{name: value for name, value in vars(row).items() if name != "control"})
    for drawn in (row.control.heads[:1], (row.control.heads[0],) * 3, ()):
        with pytest.raises(SparksError, match=r"needs matched random heads beside it, at least 2"):
            replace(row.control, heads=drawn, values=row.control.values[: len(drawn)])
        some = {"random": drawn, "random_answers": (answers(0.5, 1),) * len(drawn)}
        with pytest.raises(SparksError, match=r"needs matched random heads beside it, at least 2"):
            table_of(measured("alone", 0.1, 1, **some))


@pytest.mark.parametrize("drawn", ["L0H1,L0H2", "L0H1", "L0H0,L1H1", "L0H1,L1H1,L2H1"])
def test_random_heads_that_do_not_match_are_refused(drawn):
    row = TABLE.rows[0]
    control = replace(row.control, heads=(parse_heads(drawn), *row.control.heads[1:]))
    with pytest.raises(SparksError, match=r"the random heads .* do not match L0H0,L1H0"):
        replace(row, control=control)


def test_random_heads_of_other_layers_are_counted():
    moved: Any = {
        "random": (((0, 1), (2, 1)), ((0, 2), (1, 2)), ((0, 3), (1, 1))),
        "moved": (1, 0, 0),
    }
    table = table_of(measured("emergent", 0.1, 1, **moved))
    assert "1 of 6 random heads lie in the nearest other layers" in " ".join(render(table).split())
    with pytest.raises(SparksError, match="do not match"):
        table_of(measured("emergent", 0.1, 1, **moved | {"moved": (0, 0, 0)}))


def test_other_problems_and_too_few_are_refused():
    with pytest.raises(SparksError, match=r"set a: \(30, 2\) problems and samples, \(30, 4\) with"):
        table_of(measured("a", 0.1, 1, answers=answers(0.5, 1)[:, :2]))
    with pytest.raises(SparksError, match="effects need at least 2 problems, got 1"):
        EffectTable.of(answers(0.5, 0)[:1], [], model="m", task="t")


# -- every way to print ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", *WRITERS])
@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_way_to_print_shows_a_set_without_its_control(form, width):
    page = render(TABLE, width=width) if form == "text" else WRITERS[form](TABLE)
    lines = page.split("\n")
    if form == "text":
        assert max(map(len, lines)) <= width
    if form == "csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(page)))
    elif form == "json":
        rows = json.loads(page)["rows"]
    else:
        own = [
            i
            for i, line in enumerate(lines)
            if re.match(r"(\| |  )?(emergent|base .{1,2} ?)", line)
        ]
        table = [i for i in own if re.match(r"\W*(quad )?random,", lines[i + 1])]
        assert len(table) == 2, page
        return
    assert [row["set"] for row in rows] == ["emergent", "base & co_1"]
    for row, wanted in zip(rows, TABLE.rows, strict=True):
        assert float(row["random"]) == pytest.approx(wanted.control.value)
        assert float(row["contrast"]) == pytest.approx(wanted.contrast.interval.value)
        assert row["verdict"] == wanted.judgement.verdict
        assert row["random_heads"].count(";") == 2


def test_verdicts_are_the_same_words_everywhere():
    flat = " ".join(render(TABLE, width=160).split())
    for row in TABLE.rows:
        assert row.judgement.verdict in flat
        for form in WRITERS:
            assert row.judgement.verdict in WRITERS[form](TABLE), form
    assert "Left out x: y" in flat


def test_latex_and_markdown_escape_what_a_file_may_hold():
    assert r"base \& co\_1, 2 of 5 set to 0" in WRITERS["latex"](TABLE)
    table = table_of(measured("a|b\x1b[1m", 0.1, 1))
    assert r"a\|b\\x1b[1m" in WRITERS["markdown"](table)
    assert "\x1b" not in render(table) + "".join(
        WRITERS[form](table) for form in ("markdown", "latex")
    )


def test_json_holds_the_frame():
    values = json.loads(to_json(TABLE))
    assert values["left_out"] == ["x: y"]
    assert [list(row) for row in values["rows"]] == [list(frame(TABLE))] * 2
    assert values["intact"]["value"] == TABLE.intact.value


def test_sets_that_share_heads_are_named():
    table = table_of(measured("one", 0.1, 1), measured("two", 0.1, 2))
    assert "one and two share 2 of 2 and 2 heads: L0H0,L1H0" in " ".join(render(table).split())


def test_the_sentence_of_a_set_by_hand():
    rows = [[True] * 4] * 10
    wrong = [[True] * 4] * 6 + [[False] * 4] * 4
    given = measured(
        "emergent", 0.0, 1, answers=np.array(wrong), random_answers=(np.array(rows),) * 3
    )
    page = render(EffectTable.of(np.array(rows), [given], model="m", task="t"), width=400)
    assert (
        "pass@1 100.0 -> 60.0, falls by 40.0 (+3.1 to +76.9); matched "
        "random heads, 3 draws: unchanged (draws 0.0 to 0.0); vs random +40.0 (+3.1 to +76.9), "
        "p 0.12: undecided (it differs from the mean of random heads, but no more than single "
        "draws may (p 0.12): more draws)."
    ) in page  # t(0.975, 9) = 2.262, sd 0.5164; four problems flip: 2 / 16


def test_a_control_stands_for_itself():
    interval = Interval(value=0.0, low=-0.1, high=0.1)
    with pytest.raises(SparksError, match="at least 2 different draws, got 1 and 1"):
        Control(heads=(((0, 1),),), moved=(0,), values=(0.5,), value=0.5, effect=interval)


def test_a_chosen_set_is_plain():
    item = ChosenSet(name="a", heads=((0, 0),), found=1, origin="x")
    assert ChosenSets(sets=(item,), left_out=()).sets[0].heads == ((0, 0),)
