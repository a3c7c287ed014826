"""`sparks help TOPIC` prints what the rooms say of themselves: one source."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
from command_line import call, error_line

from sparks.cli.help import TOPICS

ASKED = ["probes", "method", "births", "null", "regimes", "effects", "training", "files"]


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_is_the_docstring_of_its_room(topic, capsys):
    assert call("help", topic) == 0
    text = capsys.readouterr().out
    assert text == inspect.getdoc(import_module(f"sparks.{TOPICS[topic]}")) + "\n"
    assert len(text.splitlines()) > 5


def test_the_topics_are_listed(capsys):
    assert set(ASKED) <= set(TOPICS)
    assert call("help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == list(TOPICS)


def test_a_mistyped_topic_is_told_with_the_nearest(capsys):
    assert call("help", "birth") == 2
    assert "unknown topic 'birth': did you mean births? topics are probes, " in error_line(capsys)


def test_no_topic_needs_torch():
    code = (
        "import sys; from sparks.cli import main; from sparks.cli.help import TOPICS; "
        "[main(['help', topic]) for topic in TOPICS]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
