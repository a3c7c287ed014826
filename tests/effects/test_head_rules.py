"""Sets of heads: by name, by rule from hand-worked runs, and random ones that match."""

from __future__ import annotations

from collections import Counter

import pytest
from factories import STORY, make_run

from sparks.effects.choose_heads import (
    HeadSet,
    by_importance,
    choose_heads,
    matched_random,
    select_heads,
    strongest,
)
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.models.heads import check_heads, is_head_list, names, parse_heads
from sparks.timeline.timeline import Timeline

STEPS = {"base": 0, "active@30": 30, "emergent@20": 20, "emergent@30": 30}
RUN = Timeline(make_run(STORY), name="run", rule="paper")


@pytest.mark.parametrize(
    ("rule", "heads"),
    [
        ("active", "L0H0,L1H0,L1H1,L2H0"),
        ("active@30", "L0H0,L1H0,L2H3"),
        ("base", "L0H0,L0H1,L1H0"),
        ("retained", "L0H0,L1H0"),
        ("base-only", "L0H1"),
        ("emergent", "L1H1,L2H0"),
        ("emergent@20", "L1H1,L2H3"),
        ("emergent@30", "L2H3"),
        ("born", "L1H1,L2H0,L2H3"),
        ("kept", "L1H1,L2H0"),
        ("pruned", "L2H3"),
    ],
)
def test_rules_on_a_run_worked_by_hand(rule, heads):
    found = select_heads(RUN, rule)
    assert str(found) == heads
    assert found.name == rule
    assert f"run run, by the paper rule, step {STEPS.get(rule, 40)}" in found.origin


def test_the_calibrated_rule_is_that_of_the_timeline():
    by_few = make_run({0: ["L0H0"], 10: {"L0H0": 16, "L1H1": 2, "L2H2": 16}})
    assert str(select_heads(Timeline(by_few, rule="paper"), "emergent")) == "L1H1,L2H2"
    assert str(select_heads(Timeline(by_few, rule="growth"), "emergent")) == "L2H2"


def test_the_strongest_are_by_importance():
    weights = {"L0H0": 1.0, "L0H1": 3.0, "L1H0": 2.0}
    line = Timeline(make_run({0: list(weights), 10: ["L0H0"]}, importance=weights))
    assert str(select_heads(line, "top:2@0")) == "L0H1,L1H0"
    assert str(select_heads(line, "top:2")) == "L0H0"
    assert names(by_importance(line, [(0, 0), (0, 1)], checkpoint=0)) == "L0H1,L0H0"
    assert strongest(line, [(0, 0), (0, 1)], 1, checkpoint=0) == ((0, 1),)
    with pytest.raises(SparksError, match="how many heads to take must be at least 1, got 0"):
        strongest(line, None, 0)


def test_exclusive_heads_are_active_here_and_beyond_doubt_inactive_there():
    other = Timeline(make_run({0: ["L0H0", "L2H0"]}), name="other")
    here = Timeline(make_run({0: ["L0H0", "L0H1", "L2H0"]}), name="here")
    assert str(select_heads(here, "exclusive", others=[other])) == "L0H1"
    # Of 16 probes 8 hold the head: nobody can say.
    unsure = Timeline(make_run({0: {"L0H0": 16, "L2H0": 16, "L0H1": 8}}), name="unsure")
    assert unsure.undecided[-1, 0, 1]
    with pytest.raises(SparksError, match=r"no head is exclusive in run here.*none of unsure"):
        select_heads(here, "exclusive", others=[unsure])
    with pytest.raises(SparksError, match="needs other runs to look at: name at least one"):
        select_heads(here, "exclusive")
    large = Timeline(
        make_run({0: ["L0H0"]}, graph=Graph(num_layers=4, num_heads=4, num_kv_heads=2))
    )
    with pytest.raises(SparksError, match="are of models of different shapes"):
        select_heads(here, "exclusive", others=[large])


def test_heads_by_hand_and_by_rule_come_the_same_way():
    assert choose_heads("l2h3 L0H0, L0H0") == HeadSet(
        name="by hand", heads=((0, 0), (2, 3)), origin="given by hand"
    )
    assert choose_heads("emergent", RUN) == select_heads(RUN, "emergent")
    assert is_head_list("L5")
    assert not is_head_list("lost")
    assert parse_heads(names([(0, 1), (11, 12)])) == ((0, 1), (11, 12))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("L0", "'L0' is no attention head: write layer and head as in L5H1,L7H2"),
        ("L0H0,H1", "'H1' is no attention head"),
        ("", "'' names no heads: give them as L5H1,L7H2, or a rule: active, emergent, born"),
        ("emergnt", "'emergnt' names no heads"),
        ("top", "'top' names no heads"),
        ("base:3", "'base:3' names no heads"),
        ("kept@20", "'kept@20' names no heads"),
        ("top:0", "how many heads to take must be at least 1, got 0"),
        ("emergent@25", "no snapshot of step 25; it has: 0, 10, 20, 30, 40"),
    ],
)
def test_bad_names_of_heads_are_one_line(text, match):
    with pytest.raises(SparksError, match=match):
        choose_heads(text, RUN)


def test_pairs_are_no_text_to_parse():
    with pytest.raises(SparksError, match=r"text such as 'L5H1,L7H2', got \[\(5, 1\)\]: pairs of"):
        parse_heads([(5, 1)])


def test_an_empty_set_and_a_rule_without_a_run_are_refused():
    still = make_run({0: ["L0H0"], 10: ["L0H0"]})
    with pytest.raises(SparksError, match=r"no head is emergent in .* the paper's rule finds more"):
        choose_heads("emergent", Timeline(still))
    with pytest.raises(
        SparksError, match=r"no head is pruned in .* take the strongest with top:10"
    ):
        choose_heads("pruned", Timeline(still, rule="paper"))
    with pytest.raises(SparksError, match="the rule 'emergent' needs a run"):
        choose_heads("emergent")
    with pytest.raises(SparksError, match="'nothing' names no heads"):
        choose_heads("nothing")
    with pytest.raises(SparksError, match="no heads: name at least one"):
        check_heads([])


# -- random sets -----------------------------------------------------------------------------------


def test_random_sets_have_as_many_heads_in_every_layer_and_none_of_the_set():
    heads = [(0, 1), (0, 2), (2, 0), (5, 7)]
    drawn = matched_random(heads, num_layers=6, num_heads=9, draws=40, seed=3, avoid=[(0, 0)])
    for item in drawn:
        assert Counter(layer for layer, _ in item.heads) == {0: 2, 2: 1, 5: 1}
        assert not {*item.heads} & {*heads, (0, 0)}
        assert item.moved == 0
    assert len({item.heads for item in drawn}) > 30
    assert {head for item in drawn for head in item.heads if head[0] == 5} == {
        (5, head) for head in range(9) if head != 7
    }
    again = matched_random(heads, num_layers=6, num_heads=9, draws=3, seed=3, avoid=[(0, 0)])
    assert again == drawn[:3]
    assert [item.name for item in again] == ["random 1", "random 2", "random 3"]


def test_a_full_layer_borrows_from_the_nearest():
    heads = [(1, 0), (1, 1), (1, 2), (3, 0)]
    for item in matched_random(heads, num_layers=5, num_heads=4, draws=20):
        layers = Counter(layer for layer, _ in item.heads)
        assert (layers[1], layers[3], item.moved) == (1, 1, 2)
        assert layers[0] + layers[2] == 2
    with pytest.raises(SparksError, match="no random heads match 3 of 4: only 1 others are left"):
        matched_random([(0, 0), (0, 1), (1, 0)], num_layers=2, num_heads=2, draws=1)
    with pytest.raises(SparksError, match="random draws must be at least 1, got 0"):
        matched_random([(0, 0)], num_layers=2, num_heads=2, draws=0)
