"""`sparks help`: what the rooms of the package say of themselves."""

from __future__ import annotations

import argparse
import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from sparks.cli.options.common import command_parser
from sparks.ground.errors import SparksError

TOPICS = {
    "probes": "probes",
    "method": "attribution",
    "births": "timeline",
    "growth": "timeline.growth.rule",
    "null": "timeline.nulls",
    "regimes": "timeline.regimes.regime",
    "effects": "effects",
    "evaluation": "evaluation",
    "thinking": "thinking",
    "training": "training",
    "files": "runs",
    "models": "models",
    "views": "views",
}
"""Topic -> the module whose docstring tells it."""


def add_help(commands: Any) -> None:
    """`sparks help`."""
    command = command_parser(
        commands,
        "help",
        _run_help,
        help="explain a topic: what a probe is, when a head is born, how a run is kept",
        epilog=f"topics: {', '.join(TOPICS)}\nThe options of a command: sparks COMMAND --help.",
    )
    command.add_argument("topic", nargs="?", metavar="TOPIC", help="what to explain; see below")


def _run_help(arguments: argparse.Namespace) -> int:
    if arguments.topic is None:
        for topic in TOPICS:
            print(f"sparks help {topic:12}{_text(topic).splitlines()[0]}")
        return 0
    print(_text(arguments.topic))
    return 0


def _text(topic: str) -> str:
    """The docstring of a topic's module.

    Raises:
        SparksError: there is no such topic.
    """
    if topic not in TOPICS:
        near = get_close_matches(topic, TOPICS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise SparksError(
            f"unknown topic {topic!r}: {meant}topics are {', '.join(TOPICS)} (a command's options: "
            f"sparks COMMAND --help)"
        )
    return inspect.getdoc(import_module(f"sparks.{TOPICS[topic]}")) or ""
