"""Options that name heads and say what is done to them; shared by commands that intervene."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import add_reading
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.effects.choose_heads import HeadSet
    from sparks.effects.head_means import HeadMeans
    from sparks.timeline.timeline import Timeline

HEADS_HELP = """heads: a list such as L5H1,L7H2 (layer and head, from 0), or with --run a rule:
  active, active@40       active at the end (at step 40)
  emergent, emergent@40   active at the end (at step 40) and not before the training
  born, kept, pruned      born at any time; born and active, or silent, at the end
  base, retained, base-only  active before; active before and at the end; before and not at the end
  top:10, top:10@40       the ten of largest importance at the end (at step 40)
  exclusive               active at the end of RUN and of none of --others"""
"""For the end of a command's help."""


def add_heads(command: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """`--heads` and what belongs to them, and what is done: `--scale`, `--mean`, `--by-position`.

    `needed`: the command makes no sense without heads.
    """
    command.add_argument(
        "--heads", metavar="HEADS", required=needed, help="a list or a rule, see below"
    )
    command.add_argument(
        "--run", metavar="RUN", help="run folder that a rule reads, or a trainer's output folder"
    )
    command.add_argument(
        "--others", nargs="+", default=[], metavar="RUN", help="runs that `exclusive` looks at"
    )
    command.add_argument(
        "--most", type=int, metavar="K", help="keep the K of largest importance in --run"
    )
    command.add_argument(
        "--matched-random",
        type=int,
        metavar="N",
        help="instead of these heads the Nth random draw that matches them: as many in each layer, "
        "none of them",
    )
    add_doing(command)
    add_reading(command)


def add_doing(command: argparse.ArgumentParser) -> None:
    """What is done to heads."""
    command.add_argument(
        "--scale",
        type=float,
        default=0.0,
        metavar="X",
        help="what the heads give is multiplied by this (default: 0.0, off)",
    )
    command.add_argument(
        "--mean",
        metavar="FILE",
        help="mean ablation: towards the heads' mean over these texts, a JSONL file of probes or "
        "problems",
    )
    command.add_argument(
        "--by-position",
        action="store_true",
        help="with --mean: the mean of each position, counted from the first token",
    )


def check_doing(arguments: argparse.Namespace) -> None:
    """Check that the options of what is done to heads fit together.

    Raises:
        SparksError: they do not.
    """
    if arguments.by_position and arguments.mean is None:
        raise SparksError("--by-position belongs to --mean: give the texts to take the mean over")


def chosen_heads(arguments: argparse.Namespace) -> HeadSet | None:
    """The heads that the options name; None without `--heads`. Needs no model.

    Raises:
        SparksError: options that do not fit, or as `choose_heads`.
    """
    from sparks.effects.choose_heads import HeadSet, choose_heads, strongest

    if arguments.heads is None:
        _refuse_without_heads(arguments)
        return None
    check_doing(arguments)
    timeline = _timeline(arguments, arguments.run) if arguments.run else None
    others = [_timeline(arguments, run) for run in arguments.others]
    found = choose_heads(arguments.heads, timeline, others=others)
    if arguments.most is None:
        return found
    if timeline is None:
        raise SparksError("--most needs --run, whose importance ranks the heads")
    kept = strongest(timeline, found.heads, arguments.most)
    return HeadSet(
        name=found.name,
        heads=kept,
        origin=f"{found.origin}, the {len(kept)} most important of {len(found)}",
    )


def for_model(arguments: argparse.Namespace, heads: HeadSet, model: Any) -> HeadSet:
    """The heads, or the random draw that matches them in this model.

    Raises:
        SparksError: the model does not have them, or has too few others.
    """
    from sparks.effects.choose_heads import HeadSet, matched_random
    from sparks.models.anatomy import find
    from sparks.models.heads import check_heads

    graph = find(model).graph
    check_heads(heads.heads, num_layers=graph.num_layers, num_heads=graph.num_heads)
    number = arguments.matched_random
    if number is None:
        return heads
    if number < 1:
        raise SparksError(f"--matched-random counts draws from 1, got {number}")
    drawn = matched_random(
        heads.heads, num_layers=graph.num_layers, num_heads=graph.num_heads, draws=number
    )[-1]
    return HeadSet(
        name=drawn.name,
        heads=drawn.heads,
        origin=f"{drawn.origin}, matching {heads.name} ({heads})",
        moved=drawn.moved,
    )


def means_of(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> HeadMeans | None:
    """The means that `--mean` asks for; None without it.

    Raises:
        SparksError: the texts cannot be read or run.
    """
    if arguments.mean is None:
        return None
    from sparks.effects.head_means import measure_head_means
    from sparks.effects.references import reference_rows
    from sparks.models.families import context_of

    rows = reference_rows(arguments.mean, tokenizer, max_tokens=context_of(model.config))
    return measure_head_means(model, rows, by_position=arguments.by_position, progress=True)


def intervention(
    arguments: argparse.Namespace, heads: HeadSet, model: Any, tokenizer: Any
) -> AbstractContextManager[None]:
    """`intervene`, as the options ask for."""
    from sparks.effects.interventions import intervene

    means = means_of(arguments, model, tokenizer)
    return intervene(model, heads.heads, scale=arguments.scale, means=means)


def in_words(arguments: argparse.Namespace) -> str:
    """What is done to the heads: `set to 0`, `scaled by 1.3`, `set to their mean`."""
    scale = arguments.scale
    if arguments.mean is not None:
        kind = "mean by position" if arguments.by_position else "mean"
        done = "set to" if scale == 0 else f"brought to {scale:g} of their distance from"
        return f"{done} their {kind} over {arguments.mean}"
    return "set to 0" if scale == 0 else f"scaled by {scale:g}"


def _timeline(arguments: argparse.Namespace, run: str) -> Timeline:
    from sparks.timeline.timeline import Timeline

    return Timeline.from_run(run, group=arguments.group, rule=arguments.rule)


def _refuse_without_heads(arguments: argparse.Namespace) -> None:
    for name in ("run", "others", "most", "matched_random", "mean", "by_position"):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise SparksError(f"--{option} belongs to --heads: say which heads, or leave it out")
    if arguments.scale:
        raise SparksError("--scale belongs to --heads: say which heads, or leave it out")
