"""`sparks faithfulness`: how much of the behaviour circuits of each size carry."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import (
    add_loading,
    add_settings,
    add_tables,
    command_parser,
    model_of,
    print_frame,
    quiet_libraries,
    settings,
    table_of,
    tokenizer_of,
    wants_color,
)
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.attribution.faithfulness.results import FaithfulnessCurves
    from sparks.attribution.scores import EdgeScores
    from sparks.probes.probes import ProbeSet

_MEASURED_BY = (
    "method",
    "points",
    "tolerance",
    "max_points",
    "quadrature",
    "positions",
    "max_suffix_tokens",
    "memory_gib",
)
"""Settings of a snapshot that scores of edges depend on; the others make its circuits."""
_FILES = ("faithfulness.json", "faithfulness-curve.csv", "faithfulness-areas.csv")


def add_faithfulness(commands: Any) -> None:
    """`sparks faithfulness`."""
    from sparks.attribution.faithfulness.settings import METRICS, CurveConfig

    command = command_parser(
        commands,
        "faithfulness",
        _run_faithfulness,
        help="measure how much of a behaviour circuits of each size carry, beside random ones",
        epilog="""examples:
  sparks faithfulness MODEL --probes probes.jsonl
      curves over circuit sizes: all outside a circuit patched, all inside patched; CPR and CMD
      as the MIB benchmark defines them, and random circuits of the same sizes
  sparks faithfulness MODEL --probes probes.jsonl --held-out --output outputs/faithfulness
      the shared circuit is chosen by other probes than it is measured on; JSON and CSV files
  sparks faithfulness MODEL --probes probes.jsonl --ranking signed --mib importances.json
      also what edges are ranked by, in the form that MIB's own evaluator reads
Control probes (group `control`) are left out; --group control takes them alone.""",
    )
    command.add_argument(
        "model", metavar="MODEL", help="folder with a model and its tokenizer, or hub id"
    )
    command.add_argument("--probes", required=True, help="JSONL file of probes")
    command.add_argument("--group", help="use only the probes of this group")
    command.add_argument(
        "--metric",
        choices=METRICS,
        default=METRICS[0],
        help=f"of the curves in the text; the areas are told for both (default: {METRICS[0]})",
    )
    add_settings(command, CurveConfig, leave_out=("shares",))
    shares = CurveConfig.__dataclass_fields__["shares"].metadata["help"]
    command.add_argument(
        "--shares",
        type=float,
        nargs="+",
        metavar="X",
        default=list(CurveConfig.shares),
        help=f"{shares} (default: {' '.join(map(str, CurveConfig.shares))}, MIB's)",
    )
    command.add_argument("--output", metavar="DIR", help=f"folder to write {', '.join(_FILES)} to")
    command.add_argument(
        "--mib", metavar="FILE", help="write the edges' scores for MIB's evaluator (.json)"
    )
    command.add_argument(
        "--figure", metavar="FILE", help="draw the curves; .pdf, .svg or .png (extra `figures`)"
    )
    add_loading(command)
    add_tables(command, ("curve", "areas"))
    others = {item.name for item in fields(SnapshotConfig)} - {*_MEASURED_BY}
    add_settings(command, SnapshotConfig, leave_out=others)


def _run_faithfulness(arguments: argparse.Namespace) -> int:
    from sparks.attribution.faithfulness.settings import CurveConfig
    from sparks.ground.files import check_writable
    from sparks.probes.probes import ProbeSet, members

    table = table_of(arguments)
    config = SnapshotConfig(**{name: getattr(arguments, name) for name in _MEASURED_BY})
    arguments.shares = tuple(arguments.shares)
    curve = settings(arguments, CurveConfig)
    if arguments.mib:
        _check_mib(arguments.mib)
    files = [Path(arguments.output) / name for name in _FILES] if arguments.output else []
    if arguments.figure:
        _check_figure(arguments.figure)
    for path in [*files, *filter(None, [arguments.mib, arguments.figure])]:
        check_writable(path)
    whole = ProbeSet.load(arguments.probes).probes
    chosen = members([probe.group for probe in whole], arguments.group)
    probes = ProbeSet(tuple(whole[index] for index in chosen))
    found = _measure(arguments, probes, config, curve)
    if files:
        _write(found, files)
    if arguments.figure:
        _draw(found, arguments)
    if table is None:
        from sparks.views.text.faithfulness import render

        print(render(found, metric=arguments.metric, color=wants_color()), end="")
    else:
        print_frame(found.points() if table == "curve" else found.areas(), arguments.format)
    return 0


def _measure(
    arguments: argparse.Namespace, probes: ProbeSet, config: SnapshotConfig, curve: Any
) -> FaithfulnessCurves:
    from sparks.attribution.faithfulness.measuring import faithfulness_curves, score_probes
    from sparks.models.families import text_config

    if curve.held_out and len(probes) < 2:
        raise SparksError("--held-out ranks each probe by the others: give two probes or more")
    quiet_libraries()
    tokenizer, model = tokenizer_of(arguments), model_of(arguments)
    tokenized = probes.tokenize_for(model.config, tokenizer, config)
    scores = score_probes(model, tokenized, config)
    if arguments.mib:
        _write_mib(arguments.mib, scores, curve, text_config(model.config).hidden_size)
    return faithfulness_curves(model, tokenized, config=config, curve=curve, scores=scores)


def _check_mib(path: str) -> None:
    """Told before the model is measured: another name, or a file that holds something else."""
    from sparks.attribution.faithfulness.mib import read_mib

    if Path(path).suffix != ".json":
        raise SparksError(f"MIB reads scores from a .json file, got {path}: name it so")
    if Path(path).exists():
        try:
            read_mib(path)
        except SparksError as error:
            raise SparksError(
                f"{path} is there and holds no scores for MIB: give another file"
            ) from error


def _write_mib(path: str, scores: EdgeScores, curve: Any, d_model: int) -> None:
    from sparks.attribution.faithfulness.curve import strengths
    from sparks.attribution.faithfulness.mib import write_mib

    ranked = strengths(scores.scores.numpy(), curve.ranking)
    write_mib(path, ranked, scores.graph, d_model=d_model)


def _write(found: FaithfulnessCurves, files: list[Path]) -> None:
    from sparks.ground.csv_text import csv_text
    from sparks.ground.files import write_atomically

    found.save(files[0])
    for path, table in zip(files[1:], (found.points(), found.areas()), strict=True):
        write_atomically(path, csv_text(table))


def _check_figure(path: str) -> None:
    """Told before the model is measured: a file name that says no format, or no matplotlib."""
    from sparks.views.figures.kinds import FORMATS
    from sparks.views.figures.style import module

    if Path(path).suffix.removeprefix(".") not in FORMATS:
        raise SparksError(f"a figure's file must end in .{', .'.join(FORMATS)}, got {path}")
    module("matplotlib")


def _draw(found: FaithfulnessCurves, arguments: argparse.Namespace) -> None:
    from sparks.ground.files import write_atomically
    from sparks.views.figures.faithfulness import curves
    from sparks.views.figures.style import render

    form: Any = Path(arguments.figure).suffix.removeprefix(".")
    figure = curves(found, metric=arguments.metric)
    write_atomically(arguments.figure, render(figure, form, title=f"Faithfulness, {found.model}"))
