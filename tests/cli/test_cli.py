"""The command line: what it prints, and how it tells what is wrong: one line, exit code 2."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import assert_refused, call, error_line
from factories import STORY, make_metrics, make_run, make_snapshot, write_run
from safetensors.numpy import load_file, save_file

from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline

COMMANDS = (
    "check",
    "probes",
    "replay",
    "timeline",
    "watch",
    "compare",
    "regimes",
    "null",
    "faithfulness",
    "ablate",
    "evaluate",
    "effects",
    "think",
    "report",
    "figures",
    "wandb",
)


@pytest.fixture
def run_folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", make_run(STORY), make_metrics(STORY))


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert call(command, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: sparks {command}")
    assert "examples:" in shown
    assert f"sparks {command} " in shown.partition("examples:")[2]


def test_help_lists_the_commands_and_the_version(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", shown, re.MULTILINE) for command in COMMANDS)
    assert call("--version") == 0
    assert re.fullmatch(r"sparks \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["see"], "invalid choice: 'see'"),
        (
            ["timelin", "x"],
            "invalid choice: 'timelin', did you mean timeline? (choose from 'probes",
        ),
        (
            ["timeline", "x", "--rule", "papr"],
            "invalid choice: 'papr', did you mean paper? (choose",
        ),
        (["timeline"], "arguments are required: RUN"),
        (["timeline", "x", "--format", "xml"], "invalid choice: 'xml'"),
        (["compare"], "arguments are required: RUN"),
        (["compare", "x", "y", "--table", "counts"], "invalid choice: 'counts'"),
        (["timeline", "x", "--max-events", "many"], "invalid int value: 'many'"),
        (["replay", "x"], "arguments are required: --probes"),
        (["replay", "x", "--probes", "p", "--points", "2.5"], "--points: invalid int value: '2.5'"),
        (
            ["replay", "x", "--probes", "p", "--quadrature", "mid"],
            "--quadrature: invalid choice: 'mid'",
        ),
        (["probes", "--data", "d"], "arguments are required: --model, --output"),
    ],
)
def test_a_mistyped_command_is_told_in_one_line(arguments, match, capsys, tmp_path):
    assert_refused(capsys, tmp_path, *arguments, match=re.escape(match))


def test_sparks_alone_prints_its_help_and_the_runs_at_hand(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call() == 0
    shown = capsys.readouterr().out
    assert call("--help") == 0
    assert shown == capsys.readouterr().out + "\n"
    for folder in ("b/sparks", "a", "a/attempt-1", ".hidden", "checkpoint-2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "step-00000000.safetensors").write_text("")
    assert call() == 0
    assert capsys.readouterr().out == f"{shown}below this folder: 2 runs: a, b\n"


def test_a_folder_of_runs_is_told_with_the_runs_in_it(tmp_path, capsys):
    for number in range(9):
        folder = tmp_path / "all" / f"seed-{number}" / "sparks"
        folder.mkdir(parents=True)
        (folder / "step-00000000.safetensors").write_text("")
    match = r"all is no run, it holds 9 runs: \S+/seed-0, .*/seed-7 and 1 more; give one\Z"
    assert_refused(capsys, tmp_path, "timeline", tmp_path / "all", match=match)


@pytest.mark.parametrize(
    "arguments",
    [
        ("timeline", "RUN", "--table", "events"),
        ("timeline", "RUN", "--table", "counts", "--format", "text"),
        ("compare", "RUN", "RUN", "--table", "overlap"),
        ("regimes", "RUN", "--table", "survival"),
        ("think", "no-model", "--output", "no-folder", "--table", "counts"),
        ("faithfulness", "no-model", "--probes", "no-file", "--table", "areas"),
    ],
)
def test_a_table_without_a_format_of_tables_is_refused(arguments, run_folder, capsys, tmp_path):
    given = [run_folder if item == "RUN" else item for item in arguments]
    table = arguments[arguments.index("--table") + 1]
    match = f"--table {table} is of csv or json: add --format csv, or leave --table out"
    assert_refused(capsys, tmp_path, *given, match=match)


# -- timeline --------------------------------------------------------------------------------------


def test_the_timeline_as_text_says_what_was_planted(run_folder, capsys):
    assert call("timeline", run_folder) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    for head in ("L1H1", "L2H3", "L2H0"):
        assert head in captured.out


def test_a_trainers_output_folder_will_do(tmp_path, capsys):
    write_run(tmp_path / "outputs" / "sparks", make_run(STORY))
    assert call("timeline", tmp_path / "outputs") == 0
    assert "outputs" in capsys.readouterr().out


@pytest.mark.parametrize("table", ["counts", "events", "cohorts", "heads", "metrics"])
def test_csv_and_json_hold_the_frame(table, run_folder, capsys):
    frame = getattr(Timeline.from_run(run_folder), table)()
    frame = frame.reset_index() if frame.index.name else frame
    frame.columns = frame.columns.map(str)

    assert call("timeline", run_folder, "--table", table, "--format", "csv") == 0
    csv = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert call("timeline", run_folder, "--table", table, "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)

    for found in (csv, pd.DataFrame(rows)):
        assert list(found.columns) == list(frame.columns)
        assert len(found) == len(frame) > 0
        for name in frame.columns:
            expected = frame[name].tolist()
            for left, right in zip(found[name].tolist(), expected, strict=True):
                if pd.isna(right):
                    assert pd.isna(left), name
                elif isinstance(right, float):
                    assert left == pytest.approx(right, rel=1e-6), name
                else:
                    assert left == right, name


def test_json_keeps_small_numbers(tmp_path, capsys):
    write_run(tmp_path, make_run({0: []}), [{"step": 0, "learning_rate": 1.5e-12}])
    assert call("timeline", tmp_path, "--format", "json", "--table", "metrics") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["learning_rate"] == pytest.approx(1.5e-12, rel=1e-2)


def test_a_group_counts_its_probes_alone(tmp_path, capsys):
    groups = ["sums", "sums", "proofs", "proofs"]
    write_run(tmp_path, [make_snapshot(0, {"L0H0": 2, "L1H1": 4}, groups=groups)])

    def active(*options: str) -> int:
        assert call("timeline", tmp_path, "--rule", "paper", "--format", "json", *options) == 0
        return json.loads(capsys.readouterr().out)[0]["active"]

    assert active() == active("--group", "sums") == 2
    assert active("--group", "proofs") == 1


def test_the_rule_is_the_one_that_was_asked_for(tmp_path, capsys):
    """By the paper's rule the head of a single probe is active."""
    write_run(tmp_path, [make_snapshot(0), make_snapshot(10, {"L0H0": 1})])

    def born(*options: str) -> int:
        assert call("timeline", tmp_path, "--format", "json", *options) == 0
        return sum(row["born"] for row in json.loads(capsys.readouterr().out))

    assert born() == born("--rule", "growth") == 0
    assert born("--rule", "paper") == 1
    for rule, name in (("growth", "growth: active = more"), ("paper", "paper's: active = in")):
        assert call("timeline", tmp_path, "--rule", rule) == 0
        assert f"Rule         {name}" in capsys.readouterr().out
        assert call("watch", tmp_path, "--once", "--rule", rule) == 0
        name = "rule of growth" if rule == "growth" else "paper's rule"
        shown = " ".join(capsys.readouterr().out.split())
        assert f"2 snapshots, steps 0 to 10 ({name})" in shown
        assert call("report", tmp_path, "--rule", rule) == 0
        assert capsys.readouterr().out.endswith("report.html\n")


@pytest.mark.parametrize("command", ["timeline", "report"])
def test_an_unknown_group_names_those_there_are(command, run_folder, capsys):
    match = r"group must be one of the probes' groups \(''\), got 'nope'"
    assert_refused(capsys, run_folder, command, run_folder, "--group", "nope", match=match)


@pytest.mark.parametrize("command", ["timeline", "report"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_folder_without_snapshots_is_refused(command, kind, tmp_path, capsys):
    run = tmp_path / "run"
    if kind == "empty":
        run.mkdir()
    elif kind == "file":
        run.write_text("no run")
    assert_refused(capsys, tmp_path, command, run, match="no snapshots in .*run or .*run/sparks")


@pytest.mark.parametrize("command", ["timeline", "report"])
def test_a_truncated_snapshot_alone_is_refused(command, tmp_path, capsys):
    run = write_run(tmp_path / "run", [make_snapshot(0, ["L0H0"])])
    file = RunStore(run).file(0)
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(capsys, tmp_path, command, run, match="no snapshot can be read: .*damaged")


@pytest.mark.parametrize("command", ["timeline", "report"])
def test_a_snapshot_of_a_newer_schema_asks_for_an_upgrade(command, tmp_path, capsys):
    run = write_run(tmp_path / "run", [make_snapshot(0, ["L0H0"])])
    raise_schema(RunStore(run).file(0))
    match = r"schema 99 is newer than this sparks reads \(3\): upgrade with"
    assert_refused(capsys, tmp_path, command, run, match=match)


def raise_schema(file: Path) -> None:
    header = json.loads(make_snapshot(0, ["L0H0"]).to_arrays()[1]["sparks"]) | {"schema": 99}
    save_file(load_file(file), file, {"sparks": json.dumps(header)})


def test_negative_max_events_are_refused(run_folder, capsys):
    match = "max_events must be at least 0, got -1"
    assert_refused(capsys, run_folder, "timeline", run_folder, "--max-events", "-1", match=match)


# -- damage among good files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("timeline",), ("timeline", "--format", "csv"), ("report",)], ids=" ".join
)
def test_damage_is_named_and_the_rest_is_shown(command, run_folder, capsys):
    RunStore(run_folder).file(20).write_bytes(b"cut short")
    RunStore(run_folder).note_failure(50, "no memory\nleft")
    assert call(command[0], run_folder, *command[1:]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert re.match(r"sparks: warning: .*step-00000020\.safetensors: damaged", lines[0])
    assert lines[1] == "sparks: warning: step 50: no snapshot (no memory left)"
    if command[0] == "report":
        assert captured.out == f"{run_folder / 'report.html'}\n"
        assert "step 20" not in captured.out
        assert (run_folder / "report.html").stat().st_size > 10_000
    elif "csv" in command:
        assert pd.read_csv(io.StringIO(captured.out)).step.tolist() == [0, 10, 30, 40]
    else:
        assert "L1H1" in captured.out


def test_hostile_names_cannot_steer_the_terminal(tmp_path, capsys):
    evil = "\x1b[2J\x07\u202e\nsparks: done"
    run = write_run(tmp_path / "run\x1b[31m", make_run(STORY, model_name=evil))
    write_run(run, [], [{"step": 0, f"loss{evil}": 1.0}])
    RunStore(run).file(99).write_bytes(b"x")
    for options in ((), ("--group", evil)):
        assert call("timeline", run, *options) == 2
        captured = capsys.readouterr()
        for text in (captured.out, captured.err):
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
            assert not any(line.startswith("sparks: done") for line in text.splitlines())
    assert len(captured.err.splitlines()) == 1


# -- report ----------------------------------------------------------------------------------------


def test_one_run_gets_its_report_beside_it(run_folder, capsys):
    assert call("report", run_folder, "--title", "my <run>") == 0
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"
    assert "<title>my &lt;run&gt;</title>" in (run_folder / "report.html").read_text()


def test_several_runs_share_one_file(tmp_path, capsys):
    runs = [write_run(tmp_path / name, make_run(STORY)) for name in ("sft", "grpo")]
    match = "2 runs in one report: say where with --output FILE"
    assert_refused(capsys, tmp_path, "report", *runs, match=match)
    assert call("report", *runs, "-o", tmp_path / "new" / "both.html") == 0
    page = (tmp_path / "new" / "both.html").read_text()
    assert '"sft"' in page
    assert '"grpo"' in page
    assert not (runs[0] / "report.html").exists()


def test_a_report_that_cannot_be_written_is_refused(run_folder, capsys):
    blocked = run_folder / "metrics.json" / "report.html"
    match = "cannot write the report to .*report.html"
    assert_refused(capsys, run_folder, "report", run_folder, "-o", blocked, match=match)
    match = "cannot write the report to .*it is a folder"
    assert_refused(capsys, run_folder, "report", run_folder, "-o", run_folder, match=match)


# -- as a process ----------------------------------------------------------------------------------


def spawn(*arguments: object, **keywords) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sparks", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300, **keywords)


def test_a_reader_that_leaves_is_no_error(run_folder):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = spawn("timeline", run_folder, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_full_disk_behind_the_output_is_told_in_one_line(run_folder):
    with open("/dev/full", "w") as full:
        done = spawn("timeline", run_folder, stdout=full)
    assert (done.returncode, done.stderr) == (
        2, "sparks: error: [Errno 28] No space left on device\n",
    )  # fmt: skip


def test_a_terminal_of_ascii_shows_the_table(run_folder):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = spawn("timeline", run_folder, stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "L1H1" in done.stdout


def test_an_interrupt_is_told_in_one_line(run_folder, monkeypatch, capsys):
    def interrupt(*_args, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(Timeline, "from_run", interrupt)
    assert call("timeline", run_folder) == 130
    assert error_line(capsys) == "sparks: interrupted; what is finished is kept"


def test_importance_in_csv_is_what_the_snapshot_holds(run_folder, capsys):
    assert call("timeline", run_folder, "--format", "csv", "--table", "heads") == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out)).importance_first.to_numpy()
    total = RunStore(run_folder).load(0).importance.sum(axis=0).ravel()
    np.testing.assert_allclose(found, total / total.sum(), rtol=1e-6)


# -- watch, and the served report ------------------------------------------------------------------


def test_watch_once_prints_the_page(run_folder, capsys):
    assert call("watch", run_folder, "--once", "--interval", "0.5") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Verdict  2 heads grew, 10 shrank (of 12, ")
    assert "\nRun      run: 5 snapshots, steps 0 to 40 (rule of growth)\n" in shown
    assert "\x1b" not in shown
    RunStore(run_folder).file(20).write_bytes(b"x")
    assert call("watch", run_folder, "--once") == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["watch", "RUN", "--interval", "0"], "interval must be at least"),
        (["watch", "RUN", "--interval", "soon"], "invalid float value: 'soon'"),
        (["watch", "nowhere", "--once"], "no snapshots in nowhere"),
        (["report", "RUN", "--port", "1"], "--port belongs to --serve"),
        (["report", "RUN", "--host", "::"], "--host belongs to --serve"),
        (["report", "RUN", "--serve", "--output", "x.html"], "--serve writes no file"),
        (["report", "RUN", "--serve", "--port", "x"], "invalid int value: 'x'"),
        (["report", "RUN", "--serve", "--port", "-1"], "port must be 0 to 65535, got -1"),
        (["report", "nowhere", "--serve"], "no snapshots in nowhere"),
    ],
)
def test_what_cannot_be_followed_is_refused(capsys, run_folder, arguments, match):
    given = [run_folder if text == "RUN" else text for text in arguments]
    assert_refused(capsys, run_folder, *given, match=match)


def test_a_served_report_is_told_where_it_is(capsys, run_folder, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparks.views.live.server.ReportServer.serve_forever", stop)
    assert call("report", run_folder, "--serve", "--port", "0") == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ shows .*\n", capsys.readouterr().out)
