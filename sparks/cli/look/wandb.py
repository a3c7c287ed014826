"""`sparks wandb`: a finished run in Weights & Biases, and a workspace that shows it. No torch."""

from __future__ import annotations

import argparse
from typing import Any

from sparks.cli.options.common import add_reading, command_parser, report_damage, say


def add_wandb(commands: Any) -> None:
    """`sparks wandb`."""
    command = command_parser(
        commands,
        "wandb",
        _run_wandb,
        help="upload a finished run to Weights & Biases and save a workspace that shows it",
        epilog="""examples:
  sparks wandb outputs/ --project heads --entity my-team
      a new W&B run with the trainer's log, our numbers, pictures, table, report and snapshots; and
      the workspace "Attention heads": cohorts beside the reward, pictures with their step slider
  sparks wandb outputs/ --project heads --mode offline
      needs no login; prints the folder that `wandb sync` sends later
A training with report_to="wandb" has all this in its own run; then only the workspace is missing:
  sparks wandb outputs/ --project heads --entity my-team --only-workspace
Needs the extra wandb, and for the workspace wandb-workspaces.""",
    )
    command.add_argument(
        "run_folder", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    command.add_argument("--project", required=True, help="W&B project; made where there is none")
    command.add_argument("--entity", help="W&B user or team (default: of whoever is logged in)")
    command.add_argument("--name", help="of the W&B run (default: the name of the run)")
    command.add_argument(
        "--mode", choices=("online", "offline"), help="(default: $WANDB_MODE, or online)"
    )
    add_reading(command)
    only = command.add_mutually_exclusive_group()
    only.add_argument("--no-workspace", action="store_true", help="upload the run and no more")
    only.add_argument(
        "--only-workspace", action="store_true", help="save the workspace and no more"
    )


def _run_wandb(arguments: argparse.Namespace) -> int:
    from sparks.views.trackers.wandb_upload import is_offline, metric_of, save_workspace, upload

    project, entity = arguments.project, arguments.entity
    metric = metric_of(arguments.run_folder)
    if not arguments.only_workspace:
        said = upload(
            arguments.run_folder,
            project=project,
            entity=entity,
            mode=arguments.mode,
            name=arguments.name,
            group=arguments.group,
            rule=arguments.rule,
        )
        say(said)
    if arguments.only_workspace or not (arguments.no_workspace or is_offline(arguments.mode)):
        say(save_workspace(project=project, entity=entity, metric=metric))
    from sparks.timeline.timeline import Timeline

    return report_damage([Timeline.from_run(arguments.run_folder)])
