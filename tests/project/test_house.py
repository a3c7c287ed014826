"""The house: rooms in one order, reading needs no torch, one list of public names, one default."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from factories import STORY, make_run, write_run
from house import circles_of, floors_of, imports_of, is_type_checking, modules_of, rooms_of

import sparks
from sparks import cli
from sparks.effects.settings import EffectConfig
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.config import SnapshotConfig
from sparks.probes.settings import ProbeBuildingConfig
from sparks.thinking.settings import ThinkConfig
from sparks.timeline.timeline import RULES

PACKAGE = Path(sparks.__file__).parent
MODULES = modules_of(PACKAGE)

ORDER = (
    "ground", "stats", "models", "probes", "attribution", "evaluation", "runs",
    "timeline", "thinking", "effects", "views", "training", "cli",
)  # fmt: skip
"""A module imports from its own room and from rooms before it."""
TORCH_FREE = ("stats", "runs", "timeline", "views")
"""But for the writer of TensorBoard, which is torch's."""
TRAINING = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
HEAVY = (*TRAINING, "wandb", "trackio", "tensorboard", "matplotlib")


# -- imports ---------------------------------------------------------------------------------------


def test_rooms_import_only_from_rooms_before_them():
    rooms = rooms_of(MODULES)
    assert set(rooms) == {*ORDER, "__main__"}
    for room in ORDER:
        assert rooms[room] <= set(ORDER[: ORDER.index(room)]), room


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] in TORCH_FREE])
def test_rooms_that_read_name_no_torch(name):
    found = {item.split(".")[0] for item in imports_of(MODULES[name], MODULES)}
    if name == "views.trackers.tensorboard":
        found -= {"torch", "transformers"}
    assert found.isdisjoint(TRAINING)


def test_a_circle_a_floor_and_a_hidden_import_would_be_seen():
    tree = ast.parse("def f():\n    from sparks import cli\n    import torch.nn\n")
    assert imports_of(tree, {"cli": None}) == {"sparks.cli", "torch.nn"}
    assert circles_of({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [{"a", "b"}]
    assert floors_of({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == {
        "a": 0, "b": 0, "c": 1, "d": 0,
    }  # fmt: skip


def test_types_alone_are_not_imported():
    tree = ast.parse("if TYPE_CHECKING:\n    import wandb\nif x:\n    import json\n")
    assert imports_of(tree, {}) == {"json"}


@pytest.mark.parametrize("room", [room for room in ORDER if room != "cli"])
def test_a_room_says_what_it_is_and_imports_nothing(room):
    assert ast.get_docstring(MODULES[room])
    assert imports_of(MODULES[room], MODULES) <= {"__future__"}


@pytest.mark.parametrize(("package", "home"), [("wandb", {"views.trackers.wandb"}), ("trl", set())])
def test_optional_packages_stay_at_the_edge(package, home):
    users = {
        name
        for name in MODULES
        if package in {i.split(".")[0] for i in imports_of(MODULES[name], MODULES)}
    }
    assert users <= home


# -- reading needs no torch ------------------------------------------------------------------------

_LOADED = f"import sys, json; print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))))"


def loaded_after(code: str, *arguments: str) -> list[str]:
    """Heavy packages that a fresh Python has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{_LOADED}", *arguments],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_sparks_imports_nothing_heavy():
    assert loaded_after("import sparks; sparks.__version__; dir(sparks)") == []
    assert loaded_after("import numpy, sparks; sparks.SparksError; sparks.SnapshotConfig") == []


def test_reading_a_run_imports_nothing_heavy(tmp_path):
    run = write_run(tmp_path / "run", make_run(STORY))
    code = f"""
import sys
from sparks import Comparison, ProbeSet, RunStore, Timeline, write_report
from sparks.cli import main
run = sys.argv[1]
assert len(RunStore(run).read().snapshots) == {len(STORY)}
write_report([Timeline.from_run(run)], run + "/page.html")
assert main(["timeline", run]) == main(["timeline", run, "--format", "csv"]) == 0
assert main(["compare", "a=" + run, run]) == main(["regimes", run]) == 0
assert main(["report", run]) == main(["watch", run, "--once"]) == 0
"""
    assert loaded_after(code, str(run)) == []
    assert (run / "report.html").read_bytes() == (run / "page.html").read_bytes()


# -- public names ----------------------------------------------------------------------------------


def test_every_public_name_can_be_got():
    for name in sparks.__all__:
        assert getattr(sparks, name) is not None
    assert dir(sparks) == sorted(sparks.__all__)


def test_the_three_lists_of_public_names_agree():
    block = next(node for node in MODULES[""].body if is_type_checking(node))
    typed = {
        alias.name: node.module.removeprefix("sparks.")
        for node in block.body
        for alias in node.names
    }
    assert typed == sparks._HOMES
    assert sorted([*sparks._HOMES, "__version__"]) == sorted(sparks.__all__)
    for name, home in sparks._HOMES.items():
        assert getattr(sparks, name).__module__ == f"sparks.{home}", name


def test_an_unknown_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'sparks' has no attribute 'snapshots'"):
        _ = sparks.snapshots


def undocumented(name: str) -> list[str]:
    tree = MODULES[name]
    nodes = [("module", tree)] + [(n.name, n) for n in tree.body if hasattr(n, "name")]
    for _, node in list(nodes):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            nodes += [(f"{node.name}.{n.name}", n) for n in node.body if hasattr(n, "name")]
    public = [(n, node) for n, node in nodes if not any(p[0] == "_" for p in n.split("."))]
    return [n for n, node in public if ast.get_docstring(node) is None and not is_setter(node)]


def is_setter(node: ast.AST) -> bool:
    return any(ast.unparse(d).endswith(".setter") for d in getattr(node, "decorator_list", []))


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"version"}))
def test_public_things_are_documented(name):
    assert undocumented(name) == []


# -- one default -----------------------------------------------------------------------------------


def options_of(command: str) -> dict[str, argparse.Action]:
    parser = cli.build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {action.dest: action for action in commands.choices[command]._actions}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("check", SnapshotConfig),
        ("replay", SnapshotConfig),
        ("probes", ProbeBuildingConfig),
        ("evaluate", EvaluationConfig),
        ("think", ThinkConfig),
        ("think", SnapshotConfig),
        ("effects", EffectConfig),
    ],
)
def test_options_have_the_defaults_of_the_settings(command, kind):
    options = options_of(command)
    for item in fields(kind):
        option = options[item.name]
        assert option.required is (item.default is MISSING)
        assert option.default == (None if option.required else item.default), item.name
        help_text = option.help % vars(option) if "%(" in option.help else option.help
        assert item.metadata["help"] in help_text.replace("%%", "%")
        if item.default not in (MISSING, None, "", False):
            assert f"(default: {item.default})" in option.help


def test_no_model_runs_code_of_its_own_unless_it_is_asked_for():
    """Without a word transformers would ask on the terminal."""
    calls = [
        (path.name, node.lineno, {keyword.arg for keyword in node.keywords})
        for folder in (PACKAGE, PACKAGE.parent / "recipes", PACKAGE.parent / "examples")
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and re.fullmatch(r"Auto\w+\.from_pretrained", ast.unparse(node.func))
    ]
    assert len(calls) > 8
    # `_causal` is given it by both of its callers, in a dictionary.
    assert [call for call in calls if not call[2] & {"trust_remote_code", None}] == []
    commands = (
        "ablate",
        "check",
        "effects",
        "evaluate",
        "faithfulness",
        "null",
        "probes",
        "replay",
        "think",
    )
    for command in commands:
        assert options_of(command)["trust_remote_code"].default is False, command


def test_defaults_that_the_command_line_repeats_are_those_of_the_functions():
    def default_of(function, name: str) -> object:
        return inspect.signature(function).parameters[name].default

    replay = options_of("replay")
    for name in ("device", "autocast", "overwrite", "base"):
        assert replay[name].default == default_of(sparks.replay_checkpoints, name), name
    from sparks.views.text.timeline import render

    for name in ("max_events", "max_heads"):
        assert options_of("timeline")[name].default == default_of(render, name), name
    from sparks.views.live.server import serve
    from sparks.views.live.terminal import watch

    for name in ("interval", "once", "group", "rule"):
        assert options_of("watch")[name].default == default_of(watch, name), name
    for command in ("timeline", "watch", "compare", "regimes", "report", "figures", "wandb"):
        option = options_of(command)["rule"]
        assert (option.default, tuple(option.choices)) == ("growth", RULES), command
    for name in ("host", "port"):
        assert f"(default: {default_of(serve, name)})" in options_of("report")[name].help
