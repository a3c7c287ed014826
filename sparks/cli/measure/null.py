"""`sparks null`: how many births an unchanged model gives. No torch unless a model is measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import (
    add_loading,
    command_parser,
    loading,
    quiet_libraries,
    report_damage,
    say,
    wants_color,
)
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.runs.null_band import NullBand
    from sparks.timeline.timeline import Timeline
    from sparks.training.null import NullMeasurements


def add_null(commands: Any) -> None:
    """`sparks null`."""
    command = command_parser(
        commands,
        "null",
        _run_null,
        help="measure how many births an unchanged model gives, to hold a run's births against",
        epilog="""examples:
  sparks null outputs/
      at once: the probes of the first snapshot, drawn again 200 times; no model is loaded
  sparks null outputs/ --probes fresh.jsonl
      surer: other probes, built as the run's were (sparks probes), measured on the base model;
      as many as the run has, or more
  sparks null outputs/ --noise 0.001 --draws 5
      the run's probes on the base model with tiny random numbers on its weights
  sparks null outputs/seed-0 --seeds outputs/seed-1 outputs/seed-2
      heads of other seeds' runs that this one does not have
What is found goes into the run folder (null.json), and the views show it. Two measurements of one
model differ because probes do: births within the band say nothing about the training.""",
    )
    command.add_argument(
        "run_folder", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    command.add_argument("--probes", metavar="FILE", help="JSONL file of fresh probes to measure")
    command.add_argument(
        "--noise",
        type=float,
        metavar="X",
        help="measure with noise on the weights: this share of each matrix's spread",
    )
    command.add_argument(
        "--draws", type=int, default=5, metavar="N", help="draws of the noise (default: 5)"
    )
    command.add_argument(
        "--seeds", nargs="+", default=[], metavar="RUN", help="runs that differ in their seed"
    )
    command.add_argument(
        "--model", help="model before training (default: the one that the first snapshot names)"
    )
    add_loading(command)
    command.add_argument(
        "--resamples",
        type=int,
        default=200,
        metavar="N",
        help="random draws of probes (default: 200)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all draws (default: 0)"
    )
    command.add_argument(
        "--format", choices=("text", "json"), default="text", help="text or json (default: text)"
    )


def _run_null(arguments: argparse.Namespace) -> int:
    from sparks.runs.null_band import to_json
    from sparks.runs.run_folder import RunStore
    from sparks.timeline.nulls import merged, refuse_too_little
    from sparks.timeline.timeline import Timeline

    _check(arguments)
    store = RunStore.find(arguments.run_folder)
    timeline = Timeline.from_run(arguments.run_folder)
    refuse_too_little(timeline)
    others = [Timeline.from_run(run) for run in arguments.seeds]
    measured = _measured(arguments)
    found = [
        band
        for by_rule in (timeline.by("growth"), timeline.by("paper"))
        for band in _bands(arguments, by_rule, others, measured)
    ]
    if not found:
        raise SparksError(
            f"{timeline.num_probes} probes are too few for a null, 4 are needed: measure more "
            f"probes, 16 are good"
        )
    path = store.write_nulls(merged(timeline.nulls, found))
    if arguments.format == "json":
        print(to_json(found), end="")
    else:
        print("\n".join(_page(timeline, found)))
        say(f"Kept in {path}: the views show it.")
    return report_damage([Timeline.from_run(arguments.run_folder)])  # with what was written now


def _check(arguments: argparse.Namespace) -> None:
    for name in ("resamples", "draws"):
        if (value := getattr(arguments, name)) < 1:
            raise SparksError(f"--{name} must be at least 1, got {value}")
    if arguments.seed < 0:
        raise SparksError(f"--seed must be at least 0, got {arguments.seed}")
    if arguments.model and not _needs_model(arguments):
        raise SparksError(
            "--model is for what is measured: add --probes FILE or --noise X, or leave it out"
        )


def _needs_model(arguments: argparse.Namespace) -> bool:
    return arguments.probes is not None or arguments.noise is not None


def _measured(arguments: argparse.Namespace) -> NullMeasurements | None:
    """What needs the model; None where nothing does."""
    if not _needs_model(arguments):
        return None
    from sparks.training.null import measure

    quiet_libraries()
    measured = measure(
        arguments.run_folder,
        probes=arguments.probes,
        model=arguments.model,
        noise=arguments.noise,
        draws=arguments.draws,
        seed=arguments.seed,
        **loading(arguments),
    )
    for warning in measured.warnings:
        say(f"sparks: warning: {warning}", aside=True)
    return measured


def _bands(
    arguments: argparse.Namespace,
    timeline: Timeline,
    others: Sequence[Timeline],
    measured: NullMeasurements | None,
) -> Iterator[NullBand]:
    """All nulls of the timeline's rule that were asked for."""
    from sparks.timeline import nulls

    drawn = {"draws": arguments.resamples, "seed": arguments.seed}
    if (band := nulls.resampled(timeline, **drawn)) is not None:
        yield band
    if measured is not None and measured.pool is not None:
        yield nulls.fresh(timeline, measured.pool, base=measured.base, **drawn)
    if measured is not None and measured.noisy:
        yield nulls.weight_noise(timeline, measured.noisy, arguments.noise, base=measured.base)
    if others:
        yield nulls.seeds(timeline, others)


def _page(timeline: Timeline, found: Sequence[NullBand]) -> list[str]:
    from sparks.ground.plain_text import count, inert
    from sparks.timeline.nulls import sentence
    from sparks.views.text.page import Page

    page = Page(None, wants_color())
    page.labelled(
        "Null",
        f"{inert(timeline.name, 120) or '(no name)'}: births and prunings between two "
        f"measurements of one model, {count(timeline.num_probes, 'probe')} each; median (middle "
        f"95 %)",
    )
    page.heading("Heads")
    page.table(_columns(found), ("draws", "prunings", "active"), named=False)
    page.heading("What it says")
    for band in found:
        said = sentence(timeline.by("paper" if band.rule == "paper" else "growth"), band)
        page.labelled(f"{band.method:<12}", f"{said}.", indent=2)
    page.heading("How it was found")
    for source in dict.fromkeys((band.method, band.source) for band in found):
        page.labelled(f"{source[0]:<12}", f"{inert(source[1])}.", indent=2)
    return [*page.lines, ""]


def _columns(found: Sequence[NullBand]) -> dict[str, list[str]]:
    def cells(name: str) -> list[str]:
        ends = [[getattr(b, f"{name}_{end}") for end in ("median", "low", "high")] for b in found]
        return [f"{middle:.0f} ({low:.0f} to {high:.0f})" for middle, low, high in ends]

    columns: dict[str, list[str]] = {"rule": [b.rule for b in found]}
    columns["differs"] = [b.method for b in found]
    columns |= {name: cells(name) for name in ("births", "prunings", "active")}
    return columns | {"draws": [str(band.draws) for band in found]}
