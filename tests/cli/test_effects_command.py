"""`sparks effects` on a model of which two heads alone do anything: planted, and found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import assert_refused, call, error_line, listing, write_lines
from factories import make_run, write_run
from models import tiny_model
from tokenizers_made_here import byte_level_tokenizer

from sparks.effects import run as effects_run
from sparks.effects.head_means import measure_head_means
from sparks.effects.interventions import intervene
from sparks.effects.plan import Plan
from sparks.effects.study import read_study
from sparks.evaluation.records import Task
from sparks.evaluation.results import Evaluation
from sparks.evaluation.run import evaluate
from sparks.evaluation.settings import EvaluationConfig
from sparks.evaluation.tasks import load_task
from sparks.models.generation import continuations
from sparks.models.heads import names

TOKENIZER = byte_level_tokenizer()
ALIVE = ((1, 1), (2, 3))
"""Heads whose output is not zero; a run that brings them to life."""
PROBLEMS = 32
CONFIG = EvaluationConfig(greedy=True, max_new_tokens=6, batch_size=PROBLEMS)
OPTIONS = (
    "--check", "contains", "--greedy", "--max-new-tokens", 6, "--batch-size", PROBLEMS,
    "--random-draws", 3, "--device", "cpu",
)  # fmt: skip


def planted_model() -> Any:
    model = tiny_model("llama-gqa", seed=0, vocab_size=len(TOKENIZER))
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            for head in range(4):
                part = block.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8]
                part.mul_(4.0 if (layer, head) in ALIVE else 0.0)
    return model


def write_task(path: Path, answers: list[str]) -> Task:
    rows = [
        json.dumps({"problem": f"What is {number} + {number}?", "answer": answer})
        for number, answer in enumerate(answers, start=1)
    ]
    return load_task(str(write_lines(path, *rows)), check="contains")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The model, a task whose right answers are its own, and a run that names its heads."""
    home, model = tmp_path_factory.mktemp("made"), planted_model()
    model.save_pretrained(home / "model")
    TOKENIZER.save_pretrained(home / "model")
    unknown = write_task(home / "task.jsonl", ["x"] * PROBLEMS)
    intact = evaluate(model, TOKENIZER, unknown, CONFIG, progress=False)
    write_task(home / "task.jsonl", [problem.texts[0] for problem in intact.problems])
    write_run(home / "run", make_run({0: ["L0H0"], 10: ["L0H0", *names(ALIVE).split(",")]}))
    write_run(home / "other", make_run({0: ["L2H0"], 10: ["L2H0"]}))
    return home


def study(made: Path, out: Path, *more: object) -> int:
    task = made / "task.jsonl"
    return call(
        "effects", made / "model", "--run", made / "run", "--task", task, "--output", out,
        *OPTIONS, *more,
    )  # fmt: skip


def wide(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def done(made, tmp_path_factory) -> Path:
    """A whole study of the default sets, with a control run."""
    out = tmp_path_factory.mktemp("done") / "study"
    assert study(made, out, "--control-run", made / "other") == 0
    return out


# -- what is found ---------------------------------------------------------------------------------


def test_the_planted_heads_are_found_and_dead_ones_are_not(done):
    table = read_study(done)
    found = {row.planned.name: row for row in table.rows}
    assert list(found) == ["emergent", "base", "control"]
    assert table.intact.value == 1
    alive = found["emergent"]
    assert (alive.planned.heads, alive.value, alive.control.values) == (ALIVE, 0.0, (1.0, 1.0, 1.0))
    assert alive.judgement.verdict == "beyond matched random heads"
    assert alive.p_holm == pytest.approx(3 * 2 / 2**PROBLEMS)
    dead = found["base"]
    assert (dead.planned.heads, dead.value, dead.control.values) == (
        ((0, 0),),
        1.0,
        (1.0, 1.0, 1.0),
    )
    assert dead.judgement.verdict == "no more than matched random heads"
    # The control head is dead too, but one of its three random others is alive.
    assert found["control"].value == 1
    assert (found["control"].control.values.count(1.0) < 3) == (
        ((2, 3),) in found["control"].control.heads
    )


def test_answers_are_those_of_the_model_under_each_intervention(made, done):
    plan, model = Plan.load(done), planted_model()
    intact = Evaluation.load(done / "answers" / "intact.jsonl")
    task = load_task(str(made / "task.jsonl"), check="contains")
    assert intact.problems == evaluate(model, TOKENIZER, task, CONFIG, progress=False).problems
    for condition in [*plan.conditions()][1:3]:
        with intervene(model, condition.heads):
            wanted = evaluate(model, TOKENIZER, task, CONFIG, progress=False)
        found = Evaluation.load(done / condition.file)
        assert found.problems == wanted.problems
        assert found.intervention == f"{names(condition.heads)} set to 0"


def test_a_finished_study_is_printed_at_once(made, done, capsys, monkeypatch):
    monkeypatch.setattr("sparks.models.loading.load_model", None)  # would fail if it was called
    files = listing(done)
    assert study(made, done, "--control-run", made / "other") == 0
    again = capsys.readouterr().out
    assert call("effects", done) == 0
    assert capsys.readouterr().out == again
    assert "emergent, 2 set to 0" in wide(again)
    assert listing(done) == files
    assert call("effects", done, "--format", "json") == 0
    assert capsys.readouterr().out == (done / "table.json").read_text()


def test_another_metric_and_margin_need_no_new_answers(made, done, tmp_path, monkeypatch):
    out = Path(shutil.copytree(done, tmp_path / "study"))
    monkeypatch.setattr("sparks.models.loading.load_model", None)
    more = ("--control-run", made / "other", "--metric", "success@1", "--margin", 0.5)
    assert study(made, out, *more) == 0
    assert (read_study(out).metric, read_study(out).margin) == ("success@1", 0.5)


def test_reading_a_study_needs_no_torch(done):
    code = """
import sys
from sparks.cli import main
assert main(["effects", sys.argv[1]]) == main(["effects", sys.argv[1], "--format", "latex"]) == 0
assert not {"torch", "transformers", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(done)], check=True, capture_output=True)


# -- killed ----------------------------------------------------------------------------------------


def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(
    made, done, tmp_path, monkeypatch, capsys
):
    real, batches = continuations, []

    def killed(*arguments: Any) -> Any:
        batches.append(1)
        if len(batches) == 7:  # within the second condition of `emergent`'s draws
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("sparks.evaluation.samplers.continuations", killed)
    out, small = tmp_path / "study", ("--batch-size", 16, "--sets", "emergent", "base")
    assert study(made, out, *small) == 130
    assert call("effects", out) == 2
    assert "no head set is finished together with its random heads yet" in capsys.readouterr().err
    assert study(made, out, *small) == 0
    assert len(batches) == 7 + 2 * len([*Plan.load(out).conditions()]) - 6
    whole = {row.planned.name: row for row in read_study(done).rows}
    for row in read_study(out).rows:
        assert row.value == whole[row.planned.name].value
        assert row.control == whole[row.planned.name].control
    capsys.readouterr()


def test_a_set_is_shown_when_its_draws_are_all_there(done, tmp_path, capsys):
    out = Path(shutil.copytree(done, tmp_path / "study"))
    base = Plan.load(out).sets[1].conditions()
    (out / base[2].file).unlink()
    assert call("effects", out) == 0
    page = wide(capsys.readouterr().out)
    assert "base, set to 0: 3 of 4 conditions are finished" in page
    assert "base, 1 set to 0" not in page
    assert [row.planned.name for row in read_study(out).rows] == ["emergent", "control"]


def test_answers_of_other_settings_are_never_mixed(made, done, tmp_path, capsys):
    out = Path(shutil.copytree(done, tmp_path / "study"))
    before = listing(out)
    assert study(made, out, "--max-new-tokens", 5) == 2
    assert re.search("samples of another run .setting max_new_tokens 6, now 5", error_line(capsys))
    assert listing(out) == before
    intact = out / "answers" / "intact.jsonl"
    head, *rest = intact.read_text().split("\n")
    intact.write_text("\n".join([json.dumps(json.loads(head) | {"fingerprint": "x"}), *rest]))
    assert call("effects", out) == 2
    assert "answers of different models, problems or settings" in error_line(capsys)


# -- other interventions ---------------------------------------------------------------------------


def test_scaling_curves_over_factors_and_sizes(made, tmp_path, capsys):
    out = tmp_path / "study"
    more = (
        "--sets", "emergent", "pruned", "--scale", 0, 1, 1.3, "--most", 1, 2, "--figures", "svg",
        "--format", "csv", "--limit", 16,
    )  # fmt: skip
    assert study(made, out, *more) == 0
    captured = capsys.readouterr()
    assert "left out: pruned: no head is pruned" in captured.err
    rows = [(row.planned.scale, len(row.planned.heads)) for row in read_study(out).rows]
    assert rows == [(0.0, 1), (1.3, 1), (0.0, 2), (1.3, 2)]
    for name in ("effects-scale", "effects-heads"):
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    before = (out / "effects-scale.svg").read_bytes()
    assert call("effects", out, "--figures", "svg") == 0
    assert (out / "effects-scale.svg").read_bytes() == before
    capsys.readouterr()


def test_a_table_without_a_curve_is_not_drawn(done, capsys):
    assert_refused(
        capsys, done, "effects", done, "--figures", "pdf", match="no curve to draw: measure with"
    )


def test_mean_ablation_takes_the_mean_over_a_file(made, tmp_path, monkeypatch, capsys):
    rows = [json.dumps({"problem": f"{n} + {n}", "answer": str(2 * n)}) for n in range(4)]
    file = write_lines(tmp_path / "texts.jsonl", *rows)
    seen: list[Any] = []

    def noted(*arguments: Any, **keywords: Any) -> Any:
        seen.append(keywords["means"])
        return intervene(*arguments, **keywords)

    monkeypatch.setattr(effects_run, "intervene", noted)
    out = tmp_path / "study"
    sets = ("--sets", "base", "--mean", file, "--limit", 8)
    assert study(made, out, *sets) == 0
    assert seen[0].overall.shape == measure_head_means(planted_model(), [[1, 2]]).overall.shape
    first = {condition.file for condition in Plan.load(out).conditions()}
    assert "set to their mean" in wide(capsys.readouterr().out)
    write_lines(file, *rows[:2])  # other texts are another intervention
    assert study(made, out, *sets) == 0
    assert {condition.file for condition in Plan.load(out).conditions()} & first == {
        "answers/intact.jsonl"
    }


def test_heads_by_hand_need_no_run(made, tmp_path, capsys):
    out, task = tmp_path / "study", made / "task.jsonl"
    given = ("--task", task, "--output", out, *OPTIONS, "--limit", 8, "--sets", "mine=L0H0,L1H0")
    assert call("effects", made / "model", *given) == 0
    assert "mine, 2 set to 0" in wide(capsys.readouterr().out)


def test_a_model_that_solves_nothing_is_told_early(made, tmp_path, capsys):
    task = tmp_path / "task.jsonl"
    write_task(task, ["never"] * 4)
    given = ("--task", task, "--output", tmp_path / "out", *OPTIONS, "--sets", "L0H0")
    with pytest.warns(UserWarning, match="none of 4 problems is solved, so nothing can be taken"):
        assert call("effects", made / "model", *given) == 0
    assert "undecided (the intact model reaches nothing" in wide(capsys.readouterr().out)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--sets", "emergnt"), "'emergnt' names no heads"),
        (("--sets", "L9H0"), "no head L9H0: the model has layers 0..2 and heads 0..3"),
        (("--sets", "pruned"), "no set has a head: pruned: no head is pruned in run"),
        (("--sets", "control"), "the set 'control' needs a control task: --control-run"),
        (("--random-draws", 1), "random_draws must be a whole number, at least 2, got 1"),
        (("--scale", 1), "scale 1 changes nothing"),
        (("--scale", "nan"), "scale must be a finite number"),
        (("--most", 0), "--most must be at least 1, got 0"),
        (("--metric", "pass@2"), r"k must be a whole number from 1 to .* \(1\), got 2"),
        (("--by-position",), "--by-position belongs to --mean"),
        (("--task", "nowhere"), "unknown task 'nowhere'"),
        (("--limit", 1), "effects need at least 2 problems, got 1"),
        (("--run", "nowhere"), "no snapshots in nowhere"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_measured(
    made, tmp_path, capsys, options, match
):
    assert study(made, tmp_path / "study", *options) == 2
    assert re.search(match, error_line(capsys))
    assert not (tmp_path / "study").exists()


def test_what_is_missing_is_named(made, done, tmp_path, capsys):
    model, task = made / "model", made / "task.jsonl"
    for options, match in (
        ((model,), "--task is missing: a study needs MODEL, --task and --output"),
        ((model, "--task", task), "--output is missing"),
        ((model, "--task", task, "--output", tmp_path / "x"), "no head sets: give --run FOLDER"),
        ((done, "--task", task), "is the folder of a study: print it without --task and --output"),
    ):
        assert_refused(capsys, tmp_path, "effects", *options, match=match)


def test_a_run_of_another_model_is_refused(made, tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_model("llama-mha", vocab_size=len(TOKENIZER)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    given = ("--run", made / "run", "--task", made / "task.jsonl", *OPTIONS)
    assert_refused(
        capsys, tmp_path, "effects", folder, *given, "--output", tmp_path / "out",
        match="the run is of a model with 3 layers of 4 heads, this one has 3 of 8",
    )  # fmt: skip
