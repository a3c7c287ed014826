"""Options that say how answers are sampled; shared by commands that evaluate."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, get_args

from sparks.cli.options.common import add_settings
from sparks.evaluation.checks import CheckName
from sparks.evaluation.settings import EvaluationConfig

_THINKING = {"on": True, "off": False, None: None}


def add_sampling(parser: Any, *, backend: bool = False) -> None:
    """An option for each setting of `EvaluationConfig`.

    `backend`: the model may be loaded by another program; else it is in memory.
    """
    by_hand = ("thinking",) if backend else ("thinking", "backend")
    add_settings(parser, EvaluationConfig, leave_out=by_hand)
    help_of = {item.name: item.metadata["help"] for item in fields(EvaluationConfig)}
    parser.add_argument("--thinking", choices=("on", "off"), help=help_of["thinking"])


def add_check(parser: Any) -> None:
    """`--check`."""
    parser.add_argument(
        "--check",
        choices=get_args(CheckName),
        help="how answers of a JSONL file are compared (default: math)",
    )


def sampling(arguments: argparse.Namespace) -> EvaluationConfig:
    """The settings of the options of `add_sampling`.

    Raises:
        SparksError: a value is outside its range.
    """
    given: dict[str, Any] = {
        item.name: getattr(arguments, item.name)
        for item in fields(EvaluationConfig)
        if item.name not in ("thinking", "backend")
    }
    given["backend"] = getattr(arguments, "backend", "transformers")
    return EvaluationConfig(**given, thinking=_THINKING[arguments.thinking])
