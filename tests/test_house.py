"""The house: imports run one way, reading needs no torch, one list of public names, one default."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from factories import STORY, make_run, write_run

import sparks
from sparks import cli
from sparks.config import SnapshotConfig
from sparks.effects.settings import EffectConfig
from sparks.evaluation.settings import EvaluationConfig
from sparks.probe_building import ProbeBuildingConfig
from sparks.think.config import ThinkConfig
from sparks.timeline import RULES

PACKAGE = Path(sparks.__file__).parent
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "wandb",
    "trackio",
    "tensorboard",
    "matplotlib",
    "datasets",
)

MAY_IMPORT = {
    # The ground floor.
    "errors": "",
    "version": "",
    "csv_text": "errors",
    "schema": "errors",
    "trainer_log": "errors files schema",
    "config": "errors",
    "graph": "errors schema",
    "files": "errors",
    "guard": "errors kernels",
    "kernels": "",
    "jsonl": "errors files",
    "modules": "errors",
    "memory": "graph",
    "quadrature": "config errors",
    # Probes.
    "token_pairs": "errors",
    "probes": "errors files jsonl token_pairs",
    "problems": "errors jsonl probes token_pairs",
    "control_probes": "config errors probes token_pairs",
    "probe_building": (
        "anatomy config control_probes errors files loading probes problems sampling store "
        "token_pairs"
    ),
    "sampling": "anatomy",
    # Attribution, and its oracle, which never meet.
    "anatomy": "errors graph memory token_pairs",
    "anatomy_check": "anatomy errors memory modules",
    "destinations": "anatomy modules",
    "passes": "anatomy config errors modules token_pairs",
    "schedule": "anatomy anatomy_check config errors memory passes token_pairs",
    "scores": "graph",
    "attribution": (
        "anatomy config destinations errors graph guard memory modules passes quadrature schedule "
        "scores token_pairs"
    ),
    "faithfulness": "",
    "faithfulness.runs": "anatomy modules passes",
    "faithfulness.settings": "config errors",
    "faithfulness.curve": "circuit errors faithfulness.settings graph",
    "faithfulness.results": (
        "config errors faithfulness.curve faithfulness.settings files intervals schema"
    ),
    "faithfulness.text": "errors faithfulness.results faithfulness.settings intervals text_page",
    "faithfulness.measuring": (
        "anatomy anatomy_check attribution config errors faithfulness.curve faithfulness.results "
        "faithfulness.runs faithfulness.settings graph guard memory passes scores token_pairs"
    ),
    "faithfulness.mib": "errors files graph schema",
    "patching": "anatomy anatomy_check config errors graph guard modules token_pairs",
    # From scores to what is kept.
    "circuit": "config errors graph",
    "circuit_grid": "circuit graph",
    "snapshot": "errors graph schema",
    # Several processes.
    "processes": "errors",
    "sharding": "errors processes",
    "track": (
        "anatomy anatomy_check attribution circuit circuit_grid config errors faithfulness.runs "
        "graph guard memory passes processes scores sharding snapshot token_pairs version"
    ),
    "run_lock": "errors",
    "run_identity": "errors files schema",
    "store": "errors evaluation.folder files null_bands run_identity schema snapshot",
    # Reading.
    "growing": "",
    "intervals": "",
    "sign_flips": "",
    "calibration": "config errors intervals sign_flips",
    "timeline_input": "calibration config errors graph probes snapshot",
    "growth": "config errors intervals",
    "timeline_states": "calibration growing",
    "timeline_numbers": "calibration intervals snapshot",
    "run_history": (
        "calibration growing probes snapshot store timeline_input timeline_numbers timeline_states"
    ),
    "timeline": (
        "calibration errors evaluation.folder graph null_bands probes run_history snapshot store "
        "timeline_input timeline_numbers timeline_states"
    ),
    "null_bands": "errors schema",
    "nulls": "calibration config errors null_bands snapshot timeline timeline_input",
    "text_page": "errors",
    "beside": "nulls snapshot text_page timeline turnover",
    "timeline_text": "beside config errors evaluation.history_text regimes text_page timeline",
    "live": "errors evaluation.folder run_history snapshot store timeline trainer_log",
    "watch_text": (
        "beside evaluation.history intervals live nulls text_page timeline timeline_text turnover"
    ),
    "watch": "beside errors live store text_page timeline timeline_input turnover watch_text",
    "serve": "errors live report store timeline",
    "comparison": "beside config errors nulls regimes timeline",
    "comparison_text": "beside comparison text_page timeline_text",
    "small_samples": "intervals",
    "survival": "errors intervals",
    "coupling": "errors small_samples",
    "turnover": "errors intervals small_samples snapshot",
    "regime_words": "coupling intervals text_page",
    "regimes": (
        "config coupling errors intervals regime_words run_history small_samples snapshot survival "
        "timeline turnover"
    ),
    "regime_tables": "errors regimes timeline turnover",
    "regimes_text": "coupling intervals regime_tables regimes text_page turnover",
    "report.words": "beside null_bands timeline",
    "report.packing": "",
    "report.evaluation": (
        "evaluation.folder evaluation.history report.packing report.words timeline"
    ),
    "report.cells": ("intervals report.packing run_history snapshot timeline timeline_numbers"),
    "report.edges": "calibration graph report.packing run_history snapshot timeline",
    "report.circuits": ("regimes report.cells report.packing timeline turnover"),
    "report.looks": (
        "cohort_groups null_bands nulls regimes report.cells report.packing report.words timeline"
    ),
    "report.data": (
        "report.cells report.circuits report.edges report.evaluation report.looks report.packing "
        "report.words timeline"
    ),
    "report.compared": "comparison errors report.words timeline",
    "report": (
        "calibration errors files regimes report.cells report.compared report.data report.edges "
        "report.packing report.words run_history store timeline"
    ),
    # Figures for papers.
    "figure_kinds": "errors",
    "figures.style": "beside errors figure_kinds optional timeline",
    "figures.frames": "beside comparison errors nulls timeline",
    "figures.faithfulness": (
        "faithfulness.results faithfulness.settings figure_kinds figures.style intervals"
    ),
    "figures.grid": "figure_kinds figures.style graph",
    "figures.one_run": (
        "errors figure_kinds figures.frames figures.grid figures.style cohort_groups nulls timeline"
    ),
    "figures.several_runs": (
        "comparison errors figure_kinds figures.frames figures.grid figures.style"
    ),
    "figures": (
        "comparison csv_text errors figure_kinds figures.frames figures.one_run "
        "figures.several_runs figures.style files timeline"
    ),
    "figures.head_effects": "effects.records errors figure_kinds figures.style",
    "optional": "errors",
    "cohort_groups": "timeline",
    # Trackers.
    "trackers_data": "beside evaluation.folder evaluation.history nulls optional timeline",
    "pictures": "beside timeline trackers_data",
    "wandb_view": "errors pictures timeline trackers_data",
    "trackio_view": "errors pictures timeline trackers_data",
    "tensorboard_view": "errors pictures timeline trackers_data",
    "trackers": "errors tensorboard_view timeline trackio_view wandb_view",
    "wandb_upload": "errors pictures report store timeline trackers_data wandb_view",
    # Shells, which do not know each other but for the command line.
    "adapters": "",
    "recorder": (
        "adapters anatomy beside config errors evaluation.during evaluation.folder probes "
        "processes report run_history run_lock snapshot store timeline timeline_input "
        "token_pairs track trackers trainer_log"
    ),
    "callback": "adapters config errors evaluation.during probes recorder sharding store",
    "arguments": "callback config errors evaluation.settings",
    "loading": "errors",
    # Evaluation.
    "evaluation": "",
    "evaluation.settings": "config errors",
    "evaluation.checks": "optional",
    "evaluation.records": "errors evaluation.checks token_pairs",
    "evaluation.hub_tasks": "evaluation.checks evaluation.records",
    "evaluation.gym_tasks": "errors evaluation.checks evaluation.records optional",
    "evaluation.tasks": (
        "errors evaluation.checks evaluation.gym_tasks evaluation.hub_tasks evaluation.records "
        "jsonl problems"
    ),
    "evaluation.metrics": "errors intervals",
    "evaluation.samples_file": "errors files schema",
    "evaluation.results": "errors evaluation.metrics evaluation.samples_file intervals",
    "evaluation.page": "evaluation.results intervals text_page",
    "evaluation.prompts": (
        "errors evaluation.records evaluation.settings problems think.modes token_pairs"
    ),
    "evaluation.sampling": "errors evaluation.settings problems sampling track",
    "evaluation.run": (
        "errors evaluation.prompts evaluation.records evaluation.results evaluation.samples_file "
        "evaluation.sampling evaluation.settings guard sampling"
    ),
    # Evaluations over training.
    "evaluation.exact": "",
    "evaluation.folder": (
        "errors evaluation.metrics evaluation.samples_file evaluation.settings files intervals"
    ),
    "evaluation.history": "errors evaluation.exact evaluation.folder paired timeline",
    "evaluation.history_text": "evaluation.history text_page timeline",
    "evaluation.during": (
        "errors evaluation.folder evaluation.prompts evaluation.records evaluation.run "
        "evaluation.samples_file evaluation.sampling evaluation.settings evaluation.tasks guard "
        "processes sharding"
    ),
    "evaluation.vllm_backend": (
        "errors evaluation.prompts evaluation.records evaluation.results evaluation.run "
        "evaluation.sampling evaluation.settings problems sampling"
    ),
    # What heads do.
    "heads": "errors",
    "references": "errors jsonl probes problems token_pairs",
    "head_rules": "errors heads timeline",
    "head_means": "anatomy anatomy_check errors guard modules",
    "export": "anatomy errors files guard head_means heads interventions modules version",
    "interventions": "anatomy anatomy_check errors guard head_means heads modules",
    # Effects of head sets.
    "effects": "",
    "effects.settings": "config effects.metrics errors",
    "effects.metrics": "errors evaluation.metrics evaluation.results",
    "paired": "intervals sign_flips",
    "effects.verdicts": "effects.settings intervals",
    "effects.records": (
        "effects.metrics effects.plan effects.settings effects.verdicts errors "
        "evaluation.metrics heads intervals paired"
    ),
    "effects.tables": "csv_text effects.records heads intervals text_page",
    "effects.text": "effects.records effects.tables heads text_page",
    "effects.sets": "errors head_rules heads timeline",
    "effects.plan": "effects.sets effects.settings errors files head_rules heads schema",
    "effects.study": "effects.plan effects.records errors evaluation.results",
    "effects.run": (
        "anatomy effects.plan effects.records effects.study effects.tables errors "
        "evaluation.records evaluation.run evaluation.sampling evaluation.settings files guard "
        "head_means interventions sampling"
    ),
    "null_measuring": "config errors loading probes snapshot store token_pairs track",
    "replay": (
        "config errors evaluation.during files loading probes run_lock snapshot store track "
        "trainer_log"
    ),
    "cli.shared": "comparison config csv_text errors loading store timeline",
    "cli.measure": (
        "cli.evaluation_options cli.shared config errors evaluation.settings evaluation.tasks "
        "probe_building replay store"
    ),
    "cli.faithfulness": (
        "cli.shared config csv_text errors faithfulness.curve faithfulness.measuring "
        "faithfulness.mib faithfulness.settings faithfulness.text figure_kinds "
        "figures.faithfulness figures.style files probes"
    ),
    "cli.look": (
        "cli.shared comparison comparison_text errors evaluation.history regime_tables regimes "
        "regimes_text report "
        "serve store timeline timeline_text watch"
    ),
    "cli.head_options": (
        "anatomy cli.shared errors head_means head_rules heads interventions references timeline"
    ),
    "cli.ablate": "cli.head_options cli.shared export loading",
    "cli.evaluation_options": "cli.shared evaluation.checks evaluation.settings",
    "cli.effects_study": (
        "cli.evaluation_options cli.head_options cli.shared effects.metrics effects.plan "
        "effects.run effects.sets effects.settings effects.study errors evaluation.settings "
        "evaluation.tasks files timeline"
    ),
    "cli.effects": (
        "cli.effects_study cli.evaluation_options cli.head_options cli.shared effects.plan "
        "effects.settings effects.study effects.tables effects.text errors figure_kinds "
        "figures.head_effects figures.style files"
    ),
    "cli.evaluate": (
        "cli.evaluation_options cli.head_options cli.shared errors evaluation.metrics "
        "evaluation.page evaluation.run evaluation.settings evaluation.tasks "
        "evaluation.vllm_backend loading"
    ),
    # Thinking on and off.
    "think": "",
    "think.modes": "errors token_pairs",
    "think.config": "config errors probe_building",
    "think.probes": (
        "errors loading probe_building probes problems think.config think.modes token_pairs"
    ),
    "think.record": "errors files schema think.modes",
    "think.measuring": (
        "config errors files loading probes store think.config think.modes think.probes "
        "think.record token_pairs track"
    ),
    "think.states": "calibration intervals sign_flips",
    "think.overlap": "intervals snapshot",
    "think.comparison": (
        "calibration config errors heads snapshot think.modes think.overlap think.record "
        "think.states timeline"
    ),
    "think.text": "head_rules heads text_page think.comparison think.modes timeline_text",
    "figures.think_heads": (
        "figure_kinds figures.grid figures.style think.comparison think.states timeline"
    ),
    "cli.think": (
        "cli.shared config errors figure_kinds figures figures.think_heads files "
        "think.comparison think.config think.measuring think.text timeline"
    ),
    "cli.paper": "cli.shared errors figure_kinds figures store",
    "cli.null": "cli.shared errors null_bands null_measuring nulls store text_page timeline",
    "cli.publish": "cli.shared timeline wandb_upload",
    "cli": (
        "cli.ablate cli.effects cli.evaluate cli.faithfulness cli.look cli.measure cli.null "
        "cli.paper cli.publish cli.shared cli.think errors version"
    ),
    "cli.__main__": "cli",
    "__main__": "cli",
}
"""Module of sparks -> the modules of sparks that it may import. `sparks` itself is held below."""

READERS = (
    "schema csv_text cohort_groups comparison comparison_text config circuit errors files graph "
    "jsonl probes problems snapshot store text_page timeline timeline_input timeline_text "
    "token_pairs "
    "small_samples survival coupling turnover regime_words regimes regime_tables regimes_text "
    "intervals sign_flips calibration timeline_states timeline_numbers circuit_grid control_probes "
    "null_bands nulls beside "
    "trainer_log version report live serve watch watch_text report.compared report.data "
    "report.edges report.packing report.words report.cells report.circuits report.looks "
    "figure_kinds figures.frames heads head_rules references faithfulness.settings "
    "faithfulness.curve faithfulness.results faithfulness.text faithfulness.mib "
    "evaluation evaluation.settings evaluation.checks evaluation.records evaluation.hub_tasks "
    "evaluation.gym_tasks evaluation.tasks evaluation.metrics evaluation.samples_file "
    "evaluation.results evaluation.page evaluation.prompts evaluation.exact evaluation.folder "
    "evaluation.history evaluation.history_text report.evaluation "
    "think.modes think.record think.states think.overlap think.comparison think.text "
    "effects effects.settings effects.metrics paired effects.verdicts effects.records "
    "effects.tables effects.text effects.sets effects.plan effects.study"
)
"""Modules that never import anything of HEAVY, not even inside a function."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
"""Every module of the package by its name below `sparks`; the package itself is `""`."""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(tree: ast.AST) -> set[str]:
    """Full names of what a module imports when it runs, inside functions too."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("sparks.") in MODULES
                found.add(whole if is_module else str(node.module))
        elif not is_type_checking(node):
            found |= imports_of(node)
    return found


def inner_imports(name: str) -> set[str]:
    ours = {item for item in imports_of(MODULES[name]) if item.split(".")[0] == "sparks"}
    return {item.removeprefix("sparks").removeprefix(".") for item in ours}


# -- imports ---------------------------------------------------------------------------------------


def test_the_table_names_every_module():
    assert set(MAY_IMPORT) == set(MODULES) - {""}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_a_module_imports_only_what_the_table_allows(name):
    extra = inner_imports(name) - set(MAY_IMPORT[name].split())
    assert not extra, f"{name} must not import {sorted(extra)}"


def test_the_package_itself_imports_only_its_version():
    assert inner_imports("") == {"version"}


def test_the_imports_hold_no_circle():
    order = list(TopologicalSorter({name: inner_imports(name) for name in MODULES}).static_order())
    assert order.index("errors") < order.index("timeline") < order.index("report")
    assert len(order) == len(MODULES)


def test_a_circle_and_a_forbidden_import_would_be_seen():
    tree = ast.parse("def f():\n    from sparks import cli\n    import torch.nn\n")
    assert imports_of(tree) == {"sparks.cli", "torch.nn"}
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_types_alone_are_not_imported():
    tree = ast.parse("if TYPE_CHECKING:\n    import wandb\nif x:\n    import json\n")
    assert imports_of(tree) == {"json"}


@pytest.mark.parametrize("name", READERS.split())
def test_what_reads_names_no_heavy_package(name):
    found = {item.split(".")[0] for item in imports_of(MODULES[name])}
    if name == "problems":  # reads hub data sets, when asked to
        found.discard("datasets")
    assert found.isdisjoint(HEAVY)


@pytest.mark.parametrize(("package", "home"), [("wandb", {"wandb_view"}), ("trl", set())])
def test_optional_packages_stay_at_the_edge(package, home):
    users = {
        name for name in MODULES if package in {i.split(".")[0] for i in imports_of(MODULES[name])}
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
    from sparks.timeline_text import render

    for name in ("max_events", "max_heads"):
        assert options_of("timeline")[name].default == default_of(render, name), name
    from sparks.serve import serve
    from sparks.watch import watch

    for name in ("interval", "once", "group", "rule"):
        assert options_of("watch")[name].default == default_of(watch, name), name
    for command in ("timeline", "watch", "compare", "regimes", "report", "figures", "wandb"):
        option = options_of(command)["rule"]
        assert (option.default, tuple(option.choices)) == ("calibrated", RULES), command
    for name in ("host", "port"):
        assert f"(default: {default_of(serve, name)})" in options_of("report")[name].help
