"""What a path, a name or another library says cannot steer a terminal or a spreadsheet."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from command_line import call
from factories import STORY, make_run, write_run

from sparks.ground.csv_text import csv_text
from sparks.ground.errors import SparksError, one_line, printable, reason

HOSTILE = "a\x1b[2J\x07\x9b31m\u202eb"
SHOWN = r"a\x1b[2J\x07\x9b31m\u202eb"


def test_the_text_of_an_error_is_one_line_that_prints():
    error = SparksError(f"cannot read {HOSTILE}\nsparks: all is well\udcff")
    assert str(error) == rf"cannot read {SHOWN} sparks: all is well\udcff"
    assert f"{error}" == str(error) == reason(error)
    assert reason(OSError(HOSTILE)) == SHOWN
    assert reason(OSError()) == "OSError"
    assert (printable("a  b\nc"), one_line("a  b\nc")) == (r"a  b\nc", "a b c")
    assert printable("L5H1 – é漢") == "L5H1 – é漢"


def test_cells_and_names_of_columns_are_text_and_numbers_stay_numbers():
    frame = pd.DataFrame(
        {
            "=1+1": ["=cmd|' /C calc'!A0", "+1+2", "-x", "@SUM(A1)"],
            HOSTILE: ["two\nlines", "\t=1", "＝1", None],
            "text": ["-5", "+1.5", "-inf", "1-2"],
            "number": [-5, -1, 0, 2],
            "share": [-0.5, float("nan"), 1e-9, float("-inf")],
            "whole": pd.array([-1, None, 3, 4], dtype="Int64"),
        }
    )
    assert csv_text(frame) == (
        rf"""'=1+1,{SHOWN},text,number,share,whole
'=cmd|' /C calc'!A0,two\nlines,-5,-5,-0.5,-1
'+1+2,\t=1,+1.5,-1,,
'-x,'＝1,-inf,0,1e-09,3
'@SUM(A1),,1-2,2,-inf,4
"""
    )
    assert next(iter(frame.columns)) == "=1+1"  # the frame is left as it is
    assert csv_text(frame.iloc[:0]).count("\n") == 1


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose folder, log and probes are hostile."""
    folder = write_run(tmp_path / f"={HOSTILE}", make_run(STORY))
    log = [{"step": step, "=1+1": 0.5, HOSTILE: 1.0} for step in STORY]
    (folder / "metrics.json").write_text(json.dumps(log))
    return folder


def shown(capfd) -> tuple[str, str]:
    """What went out, which holds nothing that steers a terminal."""
    found = capfd.readouterr()
    for text in found:
        assert re.sub(r"[\n]", "", text).isprintable(), repr(text)
    return found.out, found.err


@pytest.mark.parametrize("table", ["counts", "events", "cohorts", "heads", "metrics"])
def test_tables_of_a_run(run, table, capfd):
    assert call("timeline", run, "--format", "csv", "--table", table) == 0
    out, _ = shown(capfd)
    if table == "metrics":
        assert out.splitlines()[0] == rf"step,'=1+1,{SHOWN}"
    pd.read_csv(io.StringIO(out))
    assert call("timeline", run, "--format", "json", "--table", table) == 0
    shown(capfd)


def test_names_of_runs_in_tables(run, capfd):
    assert call("compare", run, f"+{HOSTILE}={run}", "--format", "csv") == 0
    names = pd.read_csv(io.StringIO(shown(capfd)[0]))["run"].tolist()
    assert names == [f"'={SHOWN}", f"'+{SHOWN}"]
    assert call("regimes", run, "--format", "csv") == 0
    assert shown(capfd)[0].splitlines()[1].startswith(f"'={SHOWN},")


def test_printed_paths_and_warnings(run, tmp_path, capfd):
    assert call("report", run) == 0
    assert shown(capfd)[0] == printable(run / "report.html") + "\n"
    (run / "step-00000050.safetensors").write_bytes(b"\x1b[2J")
    assert call("timeline", run, "--format", "csv") == 2
    assert f"{SHOWN}{os.sep}step-00000050.safetensors: " in shown(capfd)[1]
    assert call("null", run) == 2
    assert f"={SHOWN}{os.sep}null.json: the views show it." in shown(capfd)[0]
    assert call("timeline", tmp_path / f"no{HOSTILE}") == 2
    assert f"no{SHOWN}" in shown(capfd)[1]
    assert call("timeline", run, "--table", HOSTILE) == 2
    shown(capfd)
