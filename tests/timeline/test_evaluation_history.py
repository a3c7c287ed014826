"""What evaluations tell over training: solved and missed, how sure, beside births and prunings."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from command_line import assert_refused, call
from evaluations_made_here import (
    HOSTILE,
    SOLVING,
    make_evaluations,
    make_samples,
    problems,
    write_evaluations,
)
from factories import STORY, make_run, write_run

from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.runs.evaluations import MOST_TEXT, EvaluationFolder, StepEvaluation, ends_of
from sparks.runs.run_folder import RunStore
from sparks.stats.fisher import attainable, beyond_luck, by_luck, fisher, p_values
from sparks.timeline.answers import EvaluationHistory
from sparks.timeline.timeline import Timeline
from sparks.views.live.follower import RunFollower
from sparks.views.text.timeline import render
from sparks.views.trackers.data import EVALUATION_KEYS, scalars


def history() -> EvaluationHistory:
    evaluations = make_evaluations(SOLVING)
    return EvaluationHistory(evaluations, Timeline(make_run(STORY), evaluations=evaluations))


# -- exact tests -----------------------------------------------------------------------------------


def shuffles(right: int, samples: int) -> np.ndarray:
    """Right samples after, for every way to deal 2 x `samples` verdicts out: by brute force."""
    verdicts = [1] * right + [0] * (2 * samples - right)
    after = itertools.combinations(range(2 * samples), samples)
    return np.array([sum(verdicts[i] for i in chosen) for chosen in after])


@pytest.mark.parametrize("samples", [1, 3, 4])
def test_fisher_is_the_share_of_shuffles_that_are_no_likelier(samples):
    for before, after in itertools.product(range(samples + 1), repeat=2):
        dealt = shuffles(before + after, samples)
        counts = np.bincount(dealt, minlength=samples + 1)
        expected = counts[counts <= counts[after]].sum() / len(dealt)
        assert fisher(before, after, samples) == pytest.approx(expected)
        reached = np.array([counts[counts <= count].sum() for count in counts[dealt]])
        expected = np.unique(reached) / len(dealt)
        assert attainable(before + after, samples) == pytest.approx(expected)
    assert fisher(0, 4, 4) == pytest.approx(2 / 70)


def test_luck_is_what_shuffles_give():
    before, after, samples = np.array([0, 2, 1, 3]), np.array([0, 1, 3, 3]), 3
    expected = 0.0
    for right in before + after:
        dealt = shuffles(int(right), samples)
        expected += float(((dealt == right) & (right > 0)).mean())
    assert by_luck(before, after, samples) == pytest.approx(expected)


def test_changes_of_an_unchanged_model_are_seldom_called():
    """Of 200 pairs of evaluations with nothing changed, few call anything; a real change is."""
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        chance = rng.uniform(0, 1, 40)
        before, after = rng.binomial(8, chance), rng.binomial(8, chance)
        called += bool(beyond_luck(before, after, 8).any())
    assert called <= 200 * 0.05 + 6  # two standard deviations above
    chance[:10] = 0
    now = np.where(np.arange(40) < 10, 8, rng.binomial(8, chance))
    found = beyond_luck(rng.binomial(8, chance), now, 8)
    assert found[:10].all()
    assert found[10:].sum() <= 1


def test_problems_that_say_nothing_cost_nothing():
    before, after = np.array([0, 4]), np.array([4, 4])
    padded = [np.concatenate([values, np.full(500, 4)]) for values in (before, after)]
    assert beyond_luck(before, after, 4).tolist() == [True, False]
    assert beyond_luck(*padded, 4).tolist() == [True] + [False] * 501
    several = beyond_luck(np.array([0, 0, 4]), np.array([4, 2, 3]), 4)
    assert several.tolist() == [True, False, False]
    # Of five problems that can give 2 / 70, three have to: 5 x 0.0286 / (1 - 0.0286) <= 0.05 x 3.
    for count in range(6):
        now = np.where(np.arange(5) < count, 4, 2)
        expected = [True] * count + [False] * (5 - count) if count >= 3 else [False] * 5
        assert beyond_luck(4 - now, now, 4).tolist() == expected
    assert p_values(before, after, 4).tolist() == pytest.approx([2 / 70, 1])
    assert not beyond_luck(np.zeros(3, int), np.ones(3, int), 1).any()  # one sample tells nothing


# -- newly solved and newly missed -----------------------------------------------------------------


def test_changes_are_against_the_base_whatever_the_order_of_a_file():
    found = history()
    assert found.right.tolist() == [[0, 2, 4, 0], [1, 0, 4, 0], [4, 0, 4, 1]]
    assert [change.id for change in found.newly_solved(20)] == ["a"]
    (missed,) = found.newly_missed(20)
    assert (missed.id, missed.right_then, missed.right_now, missed.samples) == ("b", 2, 0, 4)
    assert (missed.then, missed.now) == ("answer 0 of b at 0", "answer 0 of b at 20")
    assert not missed.sure
    first, second = found.newly_solved(40)  # the surest first
    assert (first.id, second.id) == ("a", "d")
    assert (first.problem, first.answer) == ("What is a?", "a!")
    assert (first.then, second.now) == ("answer 0 of a at 0", "answer 1 of d at 40")
    assert found.newly_solved(0) == found.newly_missed(0) == ()
    with pytest.raises(SparksError, match="step 30 was not evaluated: there are 0, 20, 40"):
        found.newly_solved(30)


def test_more_right_samples_are_no_newly_solved_problem():
    found = EvaluationHistory(make_evaluations({0: {"a": "+---"}, 5: {"a": "++++"}}))
    assert found.newly_solved(5) == found.newly_missed(5) == ()
    back = EvaluationHistory(make_evaluations({0: {"a": "++++"}, 5: {"a": "+---"}}))
    assert back.newly_solved(5) == back.newly_missed(5) == ()


def test_progress_is_joined_to_births_and_prunings():
    found = history()
    frame = found.progress().set_index("step")
    assert frame.index.tolist() == [0, 20, 40]
    assert frame["pass_1"].tolist() == [6 / 16, 5 / 16, 9 / 16]
    assert (frame["pass_1_low"] < frame["pass_1"]).all()
    assert (frame["pass_1"] < frame["pass_1_high"]).all()
    assert frame["solved"].tolist() == [2, 2, 3]
    assert frame["newly_solved"].tolist() == [0, 1, 2]
    assert frame["newly_missed"].tolist() == [0, 1, 1]
    assert frame["by_luck"].tolist() == pytest.approx([0, 0.5 + 15 / 70, 1 / 70 + 15 / 70 + 0.5])
    # Between the evaluations, those of step 10 and 30 too.
    events = found.timeline.events()
    for after, step in ((0, 20), (20, 40)):
        here = events[(events["step"] > after) & (events["step"] <= step)]
        for kind in ("born", "pruned"):
            names = here["head"][here["kind"] == kind].tolist()
            assert frame.loc[step, kind] == len(names)
            assert frame.loc[step, f"{kind}_heads"] == ",".join(names)
    assert frame.loc[20, "born_heads"] == "L1H1,L2H3"
    assert frame.loc[0, ["born", "pruned"]].tolist() == [0, 0]
    assert np.isnan(frame.loc[0, "change"])
    assert frame.loc[40, "change"] == pytest.approx(3 / 16)
    assert frame.loc[40, "change_low"] < 3 / 16 < frame.loc[40, "change_high"]


def test_problems_have_texts():
    frame = history().problems()
    assert frame[["step", "change", "id"]].to_numpy().tolist() == [
        [20, "solved", "a"], [20, "missed", "b"],
        [40, "solved", "a"], [40, "solved", "d"], [40, "missed", "b"],
    ]  # fmt: skip
    assert frame["born_heads"][0] == "L1H1,L2H3"
    assert frame["now"][0] == "answer 0 of a at 20"
    alone = EvaluationHistory(make_evaluations({0: SOLVING[0]}))
    assert alone.problems().columns.tolist() == frame.columns.tolist()
    assert alone.progress()["born"].tolist() == [0]


def test_evaluations_that_cannot_be_compared_are_refused():
    with pytest.raises(SparksError, match="no evaluations: train with SparksCallback"):
        EvaluationHistory([])
    one = make_evaluations({0: SOLVING[0]})
    for other, difference in (
        (make_evaluations({5: problems("a", "b", of=["++++", "----"])}), "task sums .*, not sums"),
        (make_evaluations({5: SOLVING[0]}, temperature=0.9), r"temperature 0\.9, not 0\.6"),
    ):
        with pytest.raises(SparksError, match=rf"step 5 is of {difference}.*keep each kind in"):
            EvaluationHistory([*one, *other])
    assert EvaluationHistory([*one, *make_evaluations({5: SOLVING[0]}, batch_size=2)])


# -- the folder ------------------------------------------------------------------------------------


def test_damaged_files_are_problems_of_the_run(tmp_path):
    run = write_run(tmp_path, make_run(STORY))
    folder = write_evaluations(run, SOLVING)
    assert [item.step for item in RunStore(run).read().evaluations] == [0, 20, 40]
    whole = folder.file(20).read_bytes()
    for content, problem in (
        (whole[:-9], "unfinished, 15 of 16 samples"),
        (whole + whole[-200:], "damaged, "),
        (whole.replace(b'"correct": true', b'"correct": []', 1), ""),
        (b"", "no file of samples"),
        (b'{"kind": "sparks samples", "schema": 1}\n', "damaged, lacks 'task'"),
    ):
        folder.file(20).write_bytes(content)
        contents = RunStore(run).read()
        if problem:
            assert [item.step for item in contents.evaluations] == [0, 40], problem
            assert len(contents.problems) == 1
            assert problem in contents.problems[0]
            assert "step-00000020.jsonl" in contents.problems[0]
    folder.write(20, *make_samples(20, SOLVING[20], temperature=0.9))
    (problem,) = Timeline.from_run(run).problems[:1]
    assert "of other settings than at step 0 (temperature 0.9, not 0.6); left out" in problem
    folder.note_failure(30, "no\nmemory")
    assert "step 30: no evaluation (no memory)" in RunStore(run).read().problems
    folder.write(30, *make_samples(30, SOLVING[40]))
    assert not any("step 30" in problem for problem in RunStore(run).read().problems)


def test_what_a_resumed_run_redoes_is_set_aside(tmp_path):
    run = write_run(tmp_path, make_run(STORY))
    folder = write_evaluations(run, SOLVING)
    folder.note_failure(30, "odd")
    folder.part(50).write_text("half")
    (folder.path / ".step-00000050.jsonl.1.tmp").write_text("half")
    assert RunStore(run).set_aside_after(20) == [30, 40]
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "step-00000000.jsonl", "step-00000020.jsonl", "step-00000040.jsonl.stale",
    ]  # fmt: skip


def test_other_settings_are_refused_but_for_what_does_not_matter(tmp_path):
    folder = write_evaluations(tmp_path, SOLVING)
    task_hash = folder.load(0).task_hash
    folder.refuse_other_settings(task_hash, EvaluationConfig(batch_size=2, seed=3, limit=4))
    with pytest.raises(SparksError, match="step 0 of max_new_tokens 1024, not 8: evaluate with"):
        folder.refuse_other_settings(task_hash, EvaluationConfig(max_new_tokens=8))
    with pytest.raises(SparksError, match=r"step 0 of task sums \(sums-a,b,c,d\), not x: "):
        folder.refuse_other_settings("x", EvaluationConfig())
    folder.refuse_other_settings("x", EvaluationConfig(), except_steps=(0, 20, 40))
    assert EvaluationFolder(tmp_path / "absent").read() == ((), ())


def test_long_texts_keep_their_ends():
    text = "a" * MOST_TEXT + "the answer is 4"
    kept = ends_of(text, 100)
    assert len(kept) == 100
    assert kept.startswith("aaa")
    assert kept.endswith("the answer is 4")
    header, lines = make_samples(0, {"a": "+-"}, text=text)
    assert len(StepEvaluation.of(0, header, lines).right[0]) == MOST_TEXT


def test_an_evaluation_that_lands_is_seen_by_who_follows(tmp_path):
    run = write_run(tmp_path, make_run(STORY))
    follower = RunFollower(run)
    assert follower.poll()
    assert follower.timeline().evaluations == ()
    write_evaluations(run, {0: SOLVING[0]})
    assert follower.poll() is not None
    assert [item.step for item in follower.timeline().evaluations] == [0]
    assert follower.poll() is None


# -- shown -----------------------------------------------------------------------------------------


def test_the_terminal_shows_them_beside_births():
    timeline = Timeline(make_run(STORY), evaluations=make_evaluations(SOLVING, text=HOSTILE))
    text = render(timeline, width=140)
    assert "Evaluations on sums: 4 problems, 4 samples each" in text
    rows = {line.split()[0]: line for line in text.splitlines() if "sure)" in line}
    assert rows["20"].split()[-6:] == ["1", "(0", "sure)", "0.7", "2", "0"]
    assert "2 (1 sure)" in rows["40"]
    assert "solved at 40  What is a? (0 to 4 of 4 right" in text
    assert "missed at 40  What is b? (2 to 0 of 4 right; answer b!)" in text
    assert "\u202e" not in text
    assert "Evaluations" not in render(Timeline(make_run(STORY)), width=140)
    for width in (40, 80):
        assert all(len(line) <= width for line in render(timeline, width=width).splitlines())


def test_the_command_gives_both_tables(tmp_path, capsys):
    run = write_run(tmp_path / "run", make_run(STORY))
    assert_refused(
        capsys, tmp_path, "timeline", run, "--format", "csv", "--table", "evaluation",
        match="no evaluations: train with SparksCallback",
    )  # fmt: skip
    write_evaluations(run, SOLVING)
    assert call("timeline", run, "--format", "json", "--table", "evaluation") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in rows] == [0, 20, 40]
    assert call("timeline", run, "--format", "json", "--table", "problems") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["a", "b", "a", "d", "b"]


def test_trackers_are_told_of_a_checkpoint_that_was_evaluated():
    snapshots, evaluations = make_run(STORY), make_evaluations(SOLVING)
    found = scalars(Timeline(snapshots, evaluations=evaluations))
    assert found.keys() >= set(EVALUATION_KEYS)
    assert found["sparks/pass_1"] == 9 / 16
    assert found["sparks/pass_1_low"] < 9 / 16 < found["sparks/pass_1_high"]
    assert found["sparks/problems_newly_solved"] == 2
    assert found["sparks/problems_newly_missed"] == 1
    assert math.isfinite(found["sparks/problems_by_luck"])
    without = scalars(Timeline(snapshots[:-1], evaluations=evaluations[:-1]))  # of step 30 is none
    assert without.keys().isdisjoint(EVALUATION_KEYS)
