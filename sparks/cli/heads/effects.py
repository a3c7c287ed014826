"""`sparks effects`: what sets of heads do, beside random heads of the same layers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.cli.heads.effects_study import studied
from sparks.cli.options.common import (
    add_loading,
    add_reading,
    add_settings,
    command_parser,
    say,
    wants_color,
)
from sparks.cli.options.evaluation import add_check, add_sampling
from sparks.cli.options.heads import HEADS_HELP
from sparks.effects.settings import FORMATS, EffectConfig
from sparks.ground.errors import SparksError
from sparks.views.figures.kinds import FORMATS as FIGURE_FORMATS

if TYPE_CHECKING:
    from sparks.effects.records import EffectTable


def add_effects(commands: Any) -> None:
    """`sparks effects`."""
    command = command_parser(
        commands,
        "effects",
        _run_effects,
        help="switch head sets off, or scale them, and compare with matched random heads",
        epilog=f"""examples:
  sparks effects outputs/checkpoint-300 --run outputs/ --task gsm8k --limit 200 --output effects/
      no ablation, emergent heads, base heads, and of each set random heads of the same layers
  sparks effects MODEL --run RUN --task gym:chain_sum --most 10 --control-run TRIVIA --output out/
      the ten most important of each, and of those of another task: the paper's Table 1
  sparks effects MODEL --run RUN --task aime24 --sets kept top:10 mine=L5H1,L7H2 --output effects/
      other sets, by rule and by hand
  sparks effects MODEL --run RUN --task gsm8k --scale 0 0.5 1.3 2 --figures pdf --output effects/
      scaling curves; --most 1 2 5 10 draws them over the number of heads
  sparks effects effects/ --format latex
      a finished study, or what is finished of one, printed again: no model, nothing else needed
--sets takes rules, heads, `control` (heads that are active in the control task), `control:RULE`,
and any of these under a name, NAME=SET.
{HEADS_HELP}
A set in which a rule finds no head is named and left out. No set is shown without its random heads.
The same command goes on after a kill; sets, --metric and --margin may be changed: what is measured
stays.""",
    )
    command.add_argument(
        "model", metavar="MODEL", help="checkpoint, folder or hub id; or the folder of a study"
    )
    command.add_argument("--task", help="name of a task, gym:NAME, or a JSONL file")
    command.add_argument(
        "--output", metavar="DIR", help="folder of the study: answers and table.json"
    )
    _add_sets(command)
    add_check(command)
    command.add_argument(
        "--format", choices=FORMATS, default="text", help="of what is printed (default: text)"
    )
    command.add_argument(
        "--figures",
        nargs="+",
        choices=FIGURE_FORMATS,
        default=[],
        help="draw the scaling curves into the study's folder",
    )
    add_loading(command)
    add_settings(command, EffectConfig)
    add_sampling(command)  # no backend: vLLM cannot intervene


def _add_sets(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run", metavar="RUN", help="run folder that rules read, or a trainer's output folder"
    )
    command.add_argument(
        "--sets", nargs="+", metavar="SET", help="head sets, see below (default: emergent base, "
        "and control where there is a control task)",
    )  # fmt: skip
    command.add_argument(
        "--control-run",
        metavar="RUN",
        help="run folder of a control task (default: the control probes of --run, if it has some)",
    )
    command.add_argument(
        "--others", nargs="+", default=[], metavar="RUN", help="runs that `exclusive` looks at"
    )
    command.add_argument(
        "--most",
        nargs="+",
        type=int,
        default=[],
        metavar="K",
        help="keep the K most important heads of each set, so that sets are alike in size; several "
        "K give a curve",
    )
    command.add_argument(
        "--scale",
        nargs="+",
        type=float,
        default=[0.0],
        metavar="X",
        help="what the heads give is multiplied by this; several X give a curve (default: 0.0)",
    )
    command.add_argument(
        "--mean",
        metavar="FILE",
        help="towards the heads' mean over these texts, a JSONL file of probes or problems",
    )
    command.add_argument(
        "--by-position", action="store_true", help="with --mean: the mean of each position"
    )
    add_reading(command)


def _run_effects(arguments: argparse.Namespace) -> int:
    table, folder = _again(arguments) if _is_study(arguments) else studied(arguments)
    figures = _figures(table, arguments.figures)
    if arguments.format == "text":
        from sparks.views.text.effects import render

        print(render(table, color=wants_color()), end="")
    else:
        from sparks.effects.tables import WRITERS

        print(WRITERS[arguments.format](table), end="")
        for line in table.left_out:
            say(f"sparks: warning: left out: {line}", aside=True)
    _write_figures(figures, folder)
    return 0


# -- a study that is there -------------------------------------------------------------------------


def _is_study(arguments: argparse.Namespace) -> bool:
    """Whether MODEL is the folder of a study, to be printed.

    Raises:
        SparksError: it is a model, and something is missing.
    """
    from sparks.effects.plan import FILE

    if (Path(arguments.model) / FILE).is_file():
        if arguments.task or arguments.output:
            raise SparksError(
                f"{arguments.model} is the folder of a study: print it without --task and "
                f"--output, or give the model to measure"
            )
        return True
    for name in ("task", "output"):
        if not getattr(arguments, name):
            raise SparksError(
                f"--{name} is missing: a study needs MODEL, --task and --output (no study is kept "
                f"in {arguments.model})"
            )
    return False


def _again(arguments: argparse.Namespace) -> tuple[EffectTable, Path]:
    from sparks.effects.study import read_study

    folder = Path(arguments.model)
    return read_study(folder), folder


# -- figures ---------------------------------------------------------------------------------------


def _figures(table: EffectTable, formats: list[Any]) -> dict[str, bytes]:
    """Files of the scaling curves; drawn before anything is printed."""
    if not formats:
        return {}
    from sparks.views.figures.head_effects import curves_of, effect_curves
    from sparks.views.figures.style import render

    over = curves_of(table)
    if not over:
        raise SparksError(
            "no curve to draw: measure with several factors (--scale 0 0.5 1.3) or several sizes "
            "(--most 1 2 5)"
        )
    drawn = {f"effects-{axis}": effect_curves(table, over=axis) for axis in over}
    return {
        f"{name}.{form}": render(figure, form) for name, figure in drawn.items() for form in formats
    }


def _write_figures(figures: dict[str, bytes], folder: Path) -> None:
    from sparks.ground.files import write_atomically

    for name, content in figures.items():
        say(write_atomically(folder / name, content), aside=True)
