"""Tasks: hub data sets by their columns, reasoning-gym, JSONL files; nothing is downloaded."""

from __future__ import annotations

import json

import pytest

from sparks.evaluation.checks import Verdict
from sparks.evaluation.hub_tasks import HUB_TASKS
from sparks.evaluation.tasks import Task, TaskProblem, load_task
from sparks.ground.errors import SparksError

ROWS = {
    "gsm8k": {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 1,007"},
    "math-500": {
        "problem": "Find $x$.", "solution": "...", "answer": r"\frac{1}{2}", "subject": "Algebra",
        "level": 2, "unique_id": "test/algebra/1.json",
    },
    "aime24": {"id": 60, "problem": "Find $x$.", "solution": "...", "answer": "204"},
    "aime25": {"problem": "Find $x$.", "answer": r"336^\circ", "id": "0"},
    "amc": {"id": 0, "problem": "Find $x$.", "answer": 142.0, "url": "..."},
    "gpqa-diamond": {
        "Question": "Which?\n", "Correct Answer": "right", "Incorrect Answer 1": "w1",
        "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3", "Record ID": "rec1",
    },
    "triviaqa": {
        "question": "Who?", "question_id": "tc_1",
        "answer": {
            "value": "The Beatles", "aliases": ["Beatles", "Fab Four"],
            "normalized_aliases": ["fab four", "beatles"], "type": "WikipediaEntity",
        },
    },
}  # fmt: skip
"""A row with the columns of each data set."""

RIGHT = {
    "gsm8k": r"\boxed{1007}", "math-500": r"\boxed{0.5}", "aime24": "The answer is 204.",
    "aime25": r"\boxed{336}", "amc": r"\boxed{142}", "triviaqa": "the fab four",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """`datasets.load_dataset` gives the row of the data set that is asked for."""
    asked = []

    def load(data, subset, *, split, streaming):
        asked.append((data, subset, split))
        (name,) = (name for name, task in HUB_TASKS.items() if task.data == data)
        return [ROWS[name]] * (3 if name == "gsm8k" else 1)

    monkeypatch.setattr("datasets.load_dataset", load)
    return asked


def write(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


# -- the hub -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIGHT)
def test_a_hub_task_is_read_and_checked(hub, name):
    task = load_task(name)
    problem = task.problems[0]
    assert task.name == name
    assert task.judge(problem, RIGHT[name]).correct
    assert not task.judge(problem, r"\boxed{77}").correct
    (message,) = problem.prompt
    assert message["role"] == "user"
    assert message["content"].startswith(ROWS[name].get("problem", ROWS[name].get("question")))


def test_every_hub_task_has_a_row_here():
    assert set(ROWS) == set(HUB_TASKS) == {*RIGHT, "gpqa-diamond"}


def test_where_a_task_lies_and_its_first_problems(hub):
    task = load_task("gsm8k", limit=2)
    assert hub == [("openai/gsm8k", "main", "test")]
    assert [problem.id for problem in task.problems] == ["1", "2"]
    assert task.problems[0].answer == "1,007"
    assert load_task("amc").problems[0].answer == "142"


def test_options_are_drawn_by_the_seed(hub):
    letters, prompts = [], []
    for seed in range(40):
        task = load_task("gpqa-diamond", seed=seed)
        (problem,) = task.problems
        assert problem == load_task("gpqa-diamond", seed=seed).problems[0]
        assert f"{problem.answer}) right\n" in problem.text + "\n"
        assert task.judge(problem, rf"\boxed{{{problem.answer}}}").correct
        letters.append(problem.answer)
        prompts.append(problem.text)
    assert set(letters) == set("ABCD")
    assert len(set(prompts)) > 12
    assert prompts[0].startswith("Which?\n\nA) ")


def test_other_columns_are_told(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": "Q"}])
    with pytest.raises(SparksError, match=r"gsm8k row 1: not the columns that task gsm8k knows"):
        load_task("gsm8k")


def test_offline_one_line_says_what_to_do(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(
        SparksError,
        match=r"task amc needs the data set AI-MO/aimo-validation-amc .*\(ConnectionError: "
        r"Couldn't reach the Hub\): load it once .*gated.* JSONL file or a gym: task",
    ) as caught:
        load_task("amc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8", "unknown task 'gsm8': did you mean gsm8k"),
        ("MATH500", "did you mean math-500"),
        ("aime", "did you mean aime24 or aime25|did you mean aime25 or aime24"),
        ("nothing-like-it", "unknown task 'nothing-like-it': known are gsm8k, .*gym:NAME.*JSONL"),
        ("gym:chainsum", "unknown task 'gym:chainsum': reasoning-gym .* nearest are gym:chain_sum"),
        ("none.jsonl", "cannot read problems none.jsonl: No such file"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest(name, message):
    with pytest.raises(SparksError, match=message):
        load_task(name)


# -- reasoning-gym -----------------------------------------------------------------------------


def test_a_gym_task_has_its_own_check():
    task = load_task("gym:chain_sum", limit=3, seed=1)
    assert task == load_task("gym:chain_sum", limit=3, seed=1)
    assert task.hash != load_task("gym:chain_sum", limit=3, seed=2).hash
    problem = task.problems[0]
    for text in (f"<answer>{problem.answer}</answer>", f"So:\n**${problem.answer}$**."):
        assert task.judge(problem, text).correct
    assert task.judge(problem, f"{problem.answer} apples") == Verdict(
        f"{problem.answer} apples", False
    )  # partial credit
    assert task.judge(problem, "<think>\n") == Verdict(None, False)


def test_a_gym_check_may_take_several_answers():
    """24 of four numbers: any expression that gives it is right."""
    task = load_task("gym:countdown", limit=1, seed=3)
    assert task.judge(task.problems[0], f"<answer>{task.problems[0].answer}</answer>").correct
    assert not task.judge(task.problems[0], "<answer>1 +</answer>").correct


def test_a_scorer_that_breaks_counts_as_wrong(monkeypatch):
    task = load_task("gym:chain_sum", limit=1)

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(task.scorer.data, "score_answer", fail)
    assert task.judge(task.problems[0], "5") == Verdict("5", False)


def test_without_reasoning_gym_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym.factory", None)
    with pytest.raises(SparksError, match=r"gym: tasks need reasoning_gym.*\[evaluate\]"):
        load_task("gym:chain_sum")


# -- files -------------------------------------------------------------------------------------


def test_a_file_of_problems(tmp_path):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    path = write(
        tmp_path / "own.jsonl",
        {"problem": "1 + 1?", "answer": 2},
        {"id": "x", "prompt": "1/4 + 1/4 =", "answer": ["1/2", "0.50"]},
        {"messages": messages, "answer": "4", "solution": "2 + 2 = 4"},
        {"messages": [*messages, {"role": "assistant", "content": "It is 4."}], "answer": "4"},
    )
    task = load_task(path)
    assert task.name == "own"
    assert task.problems == (
        TaskProblem("1", [{"role": "user", "content": "1 + 1?"}], "2"),
        TaskProblem("x", "1/4 + 1/4 =", "1/2", ("0.50",)),
        TaskProblem("3", messages, "4"),
        TaskProblem("4", messages, "4"),
    )
    assert task.judge(task.problems[1], r"\boxed{\frac{2}{4}}").correct
    assert task.problems[2].text == "2 + 2?"
    assert len(load_task(path, limit=1).problems) == 1
    assert load_task(path, check="contains").judge(task.problems[2], "That is 4, yes").correct
    assert task.hash != load_task(path, check="exact").hash


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"problem": "Q"}, r"own.jsonl:2: no answer: a problem to evaluate needs the key `answer`"),
        ({"problem": "Q", "answer": " "}, r"own.jsonl:2: no answer"),
        ({"problem": "Q", "answer": []}, r"own.jsonl:2: no answer"),
        ({"problem": "Q", "answer": {"a": 1}}, r"own.jsonl:2: the answer in answer must be text"),
        ({"text": "Q", "answer": "1"}, r"own.jsonl:2: no prompt: a problem needs one of"),
        (
            {"problem": "Q", "answer": "???"},
            r"own.jsonl:2: the answer '\?\?\?' cannot be parsed as mathematics: write it in LaTeX",
        ),
        ({"id": "1", "problem": "Q", "answer": "1"}, r"task own: two problems have the id '1'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, record, message):
    path = write(tmp_path / "own.jsonl", {"problem": "1 + 1?", "answer": "2"}, record)
    with pytest.raises(SparksError, match=message):
        load_task(path)


def test_an_answer_that_is_no_mathematics_may_be_compared_otherwise(tmp_path):
    path = write(tmp_path / "own.jsonl", {"problem": "Q", "answer": "???"})
    assert load_task(path, check="exact").problems[0].answer == "???"


def test_settings_of_a_task_are_checked(tmp_path):
    with pytest.raises(SparksError, match="limit must be at least 1, got 0"):
        load_task("gsm8k", limit=0)
    with pytest.raises(SparksError, match="task gsm8k has its own check: leave out check 'exact'"):
        load_task("gsm8k", check="exact")
    with pytest.raises(SparksError, match=r"check must be one of math, exact, .* got 'nearly'"):
        Task("t", (TaskProblem("1", "Q", "A"),), check="nearly")
    with pytest.raises(SparksError, match="task t: no problems"):
        Task("t", ())
