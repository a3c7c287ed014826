"""Tests hear a Ctrl-C that they send, wherever they run; a failed one leaves nothing running."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import psutil
from places import HELPERS, ROOT, TESTS

INNER = '''
import json
import signal
import subprocess
from pathlib import Path

import pytest
from started import started

PIDS = Path(__file__).with_name("pids.json")


@pytest.fixture(scope="module")
def server():
    with started(["sleep", "600"]) as process:
        yield process


def test_ctrl_c_arrives():
    with started(["sleep", "600"]) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_that_fails(server):
    """Its processes: one it would have ended, and the orphan of a launcher, in its own session."""
    launcher = ["bash", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]
    orphan = int(subprocess.run(launcher, capture_output=True, check=True).stdout)
    with started(["sleep", "600"]) as process:
        PIDS.write_text(json.dumps([orphan, process.pid]))
        raise RuntimeError


def test_what_a_fixture_started_goes_on(server):
    assert server.poll() is None
'''


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_where_ctrl_c_is_ignored_and_a_test_fails(tmp_path):
    """As in a script's background job, which has SIGINT ignored."""
    (tmp_path / "test_inner.py").write_text(INNER)
    pytest = [sys.executable, "-m", "pytest", "-p", "conftest", "-q", "--tb=line", "test_inner.py"]
    done = subprocess.run(
        ["bash", "-c", 'trap "" INT; exec "$@"', "job", *pytest],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(HELPERS), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert re.search(r"^1 failed, 2 passed", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert "RuntimeError" in done.stdout
    orphan, process = json.loads((tmp_path / "pids.json").read_text())
    assert not runs(orphan)
    assert not runs(process)
