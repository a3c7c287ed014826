"""`run.sh` tells which tests it runs, and the quick ones are those that no marker takes out."""

from __future__ import annotations

import re
import subprocess
import tomllib

from places import ROOT, TESTS

OPTIONS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]
MARKERS = [line.partition(":")[0] for line in OPTIONS["ini_options"]["markers"]]


def test_help_tells_the_tiers_and_sets_nothing_up():
    command = ["bash", TESTS / "run.sh", "-m", "slow", "--help"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: bash tests/run.sh [--quick]")
    assert re.search(r"^  --quick .*slow or browser", done.stdout, re.MULTILINE)


def test_quick_leaves_out_every_marker_that_there_is():
    left_out = " and ".join(f"not {name}" for name in MARKERS)
    assert f"-m '{left_out}'" in (TESTS / "run.sh").read_text("utf-8")
    table = (TESTS / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in table for name in MARKERS)
