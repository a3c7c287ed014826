"""Settings of the callback on a script's command line: no name twice, no default twice."""

from __future__ import annotations

import inspect
import os
from dataclasses import Field, fields
from typing import Any, get_type_hints

import pytest
from tiny_training import PROBES
from trl import DistillationConfig, GRPOConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

from sparks import SnapshotConfig, SparksArguments, SparksCallback, SparksError
from sparks.evaluation.records import Task
from sparks.evaluation.settings import EvaluationConfig
from sparks.training import callback as callback_module

pytestmark = pytest.mark.filterwarnings(
    # TRL's own default: it names the old setting itself.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
)


def parse(*arguments: str) -> SparksArguments:
    return TrlParser((SparksArguments,)).parse_args_and_config(list(arguments))[0]


def test_every_name_has_the_prefix():
    names = [item.name for item in fields(SparksArguments)]
    assert all(name.startswith("sparks_") for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("kind", "prefix"), [(SnapshotConfig, "sparks_"), (EvaluationConfig, "sparks_evaluation_")]
)
def test_what_is_measured_is_taken_over_field_by_field(kind, prefix):
    taken = {item.name: item for item in fields(SparksArguments)}
    types, ours = get_type_hints(kind), get_type_hints(SparksArguments)
    for item in fields(kind):
        field = taken[f"{prefix}{item.name}"]
        assert field.default == item.default
        assert field.metadata["help"].replace("%%", "%") == item.metadata["help"]
        assert ours[field.name] == types[item.name]
    assert SparksArguments().snapshot_config() == SnapshotConfig()
    assert SparksArguments().evaluation_config() is None
    assert SparksArguments(sparks_evaluate="gsm8k").evaluation_config() == EvaluationConfig()


IN_PYTHON_ALONE = {"config", "evaluation", "reward_funcs"}
KEYWORDS = {
    name: parameter
    for name, parameter in inspect.signature(SparksCallback, eval_str=False).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in IN_PYTHON_ALONE
}


def settings_of_the_callback() -> dict[str, Field[Any]]:
    """Those of the command line, which are the callback's keywords."""
    found = {item.name.removeprefix("sparks_"): item for item in fields(SparksArguments)}
    return {name: item for name, item in found.items() if not name.startswith("evaluation_")}


def test_keywords_of_the_callback_are_the_settings():
    settings = settings_of_the_callback()
    assert set(settings) == set(KEYWORDS) | {"probes"}
    types = get_type_hints(SparksArguments)
    own = {"output_dir": str | os.PathLike[str] | None, "evaluate": str | os.PathLike[str] | Task}
    names = vars(callback_module) | {"Task": Task}
    for name, keyword in KEYWORDS.items():
        assert keyword.default == settings[name].default, name
        kind = eval(str(keyword.annotation), names)
        wanted = own.get(name, types[f"sparks_{name}"])
        assert kind in (wanted, wanted | None), name


def test_help_says_of_every_keyword_what_the_command_line_says():
    told = " ".join(inspect.getdoc(SparksCallback).split())
    for name, item in settings_of_the_callback().items():
        if name not in ("probes", "evaluate"):  # more can be given in Python
            words = " ".join(item.metadata["help"].replace("%%", "%").split())
            assert f" {name}: {words}." in told, name
    assert len(KEYWORDS) > 20


def test_a_keyword_that_is_none_is_refused_by_python():
    with pytest.raises(TypeError, match="unexpected keyword argument 'pionts'"):
        SparksCallback(PROBES, pionts=3)
    with pytest.raises(SparksError, match=r"tolerance must be .*got 5: it is a share, so 0.05 "):
        SparksCallback(PROBES, tolerance=5)


@pytest.mark.parametrize("kind", [SFTConfig, DistillationConfig, GRPOConfig])
def test_it_shares_a_command_line_with_every_trainer(kind, tmp_path, capsys):
    parser = TrlParser((ScriptArguments, kind, ModelConfig, SparksArguments))
    config = tmp_path / "run.yaml"
    config.write_text("sparks_threshold: 0.2\nsparks_positions: all\nsparks_top_n: 7\n")
    *_, sparks = parser.parse_args_and_config(
        [
            "--config",
            str(config),
            "--use_cpu",
            "true",
            "--bf16",
            "false",
            "--sparks_top_n",
            "9",
            "--no_sparks_report",
        ]
    )
    expected = SnapshotConfig(threshold=0.2, positions="all", top_n=9)
    assert sparks.snapshot_config() == expected
    assert sparks.sparks_report is False
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "--sparks_every_n_steps" in capsys.readouterr().out


def test_the_callback_has_the_settings():
    arguments = parse(
        "--sparks_every_n_steps", "5", "--sparks_on_error", "raise", "--sparks_points", "3",
        "--sparks_output_dir", "here", "--sparks_progress", "false",
    )  # fmt: skip
    callback = arguments.callback(PROBES)
    assert callback.config == SnapshotConfig(points=3)
    assert (callback.every_n_steps, callback.on_error) == (5, "raise")
    assert (callback.output_dir, callback.progress, callback.report) == ("here", False, True)
    assert callback.probes is PROBES


def test_the_probes_are_read_from_the_file(tmp_path):
    path = PROBES.save(tmp_path / "probes.jsonl")
    assert parse("--sparks_probes", str(path)).callback().probes == PROBES
    built = parse("--sparks_num_probes", "9", "--sparks_reference", "gold").callback()
    assert built.probes is None
    assert (built.wishes.num_probes, built.wishes.reference) == (9, "gold")


def test_a_task_is_read_and_its_settings_reach_the_callback(tmp_path):
    problems = tmp_path / "sums.jsonl"
    problems.write_text('{"problem": "1 + 1?", "answer": 2}\n{"problem": "2 + 2?", "answer": 4}\n')
    evaluator = parse(
        "--sparks_evaluate", str(problems), "--sparks_evaluation_samples", "2",
        "--sparks_evaluation_limit", "1", "--sparks_evaluation_thinking", "false",
    ).callback(PROBES).evaluator  # fmt: skip
    assert evaluator.config == EvaluationConfig(samples=2, limit=1, thinking=False)
    assert [problem.answer for problem in evaluator.task.problems] == ["2"]
    assert parse().callback(PROBES).evaluator is None


def test_mistakes_are_told_in_one_line(tmp_path):
    match = "sparks_evaluation_samples says how to evaluate, but not on what: give --sparks_eval"
    with pytest.raises(SparksError, match=match):
        parse("--sparks_evaluation_samples", "2").callback(PROBES)
    with pytest.raises(SparksError, match="samples must be a whole number, at least 1, got 0"):
        parse("--sparks_evaluate", "gsm8k", "--sparks_evaluation_samples", "0").callback(PROBES)
    with pytest.raises(SparksError, match="points must be a whole number, at least 1, got 0"):
        parse("--sparks_points", "0").callback(PROBES)
    config = tmp_path / "run.yaml"
    config.write_text("sparks_stepps: 3\n")
    with pytest.raises(ValueError, match="sparks_stepps"):
        parse("--config", str(config))
