"""`sparks probes`: probes built from problems and models."""

from __future__ import annotations

import argparse
from typing import Any

from sparks.cli.options.common import (
    add_settings,
    command_parser,
    quiet_libraries,
    say,
    settings,
)


def add_probes(commands: Any) -> None:
    """`sparks probes`."""
    from sparks.probes.settings import ProbeBuildingConfig

    command = command_parser(
        commands,
        "probes",
        _run_probes,
        help="build probes from problems and a model, or from two models",
        epilog="""examples:
  sparks probes --data problems.jsonl --model Qwen/Qwen2.5-1.5B --output probes.jsonl
      clean: the reference answers; corrupted: what the model writes before training
  sparks probes --data problems.jsonl --model BASE --clean-model TRAINED --output probes.jsonl
      clean: what the trained model writes; corrupted: what the base writes
  sparks probes --data problems.jsonl --model BASE --control 8 --output probes.jsonl
      64 probes, and 8 control probes (group `control`: copying and plain recall) in one file
  sparks probes --control 8 --model BASE --output control.jsonl
      control probes alone: no data needed""",
    )
    add_settings(command, ProbeBuildingConfig)


def _run_probes(arguments: argparse.Namespace) -> int:
    from sparks.probes.building import write_probes
    from sparks.probes.settings import ProbeBuildingConfig
    from sparks.runs.run_folder import refuse_file_of_run
    from sparks.training.probe_count import few_probes

    quiet_libraries()
    config = settings(arguments, ProbeBuildingConfig)
    refuse_file_of_run(config.output)
    built = write_probes(config)
    for reason in built.skipped:
        say(f"sparks: passed over {reason}", aside=True)
    if built.control_right is not None and built.control_right < arguments.control:
        say(
            f"sparks: in {arguments.control - built.control_right} of {arguments.control} control "
            f"probes the model does not get the next word right: a weak control",
            aside=True,
        )
    groups = [probe.group for probe in built.probes]
    if config.data is not None and (few := few_probes(groups)) is not None:
        say(f"sparks: warning: {few}", aside=True)
    control = f", {arguments.control} of them control" if arguments.control else ""
    say(
        f"{len(built.probes)} probes in {arguments.output}{control} "
        f"({len(built.skipped)} problems passed over), hash {built.probes.hash[:12]}"
    )
    return 0
