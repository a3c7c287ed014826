"""`sparks ablate`: an ordinary checkpoint with heads turned off, down or up."""

from __future__ import annotations

import argparse
from typing import Any

from sparks.cli.options.common import (
    add_loading,
    command_parser,
    model_of,
    quiet_libraries,
    say,
    tokenizer_of,
)
from sparks.cli.options.heads import (
    HEADS_HELP,
    add_heads,
    chosen_heads,
    for_model,
    in_words,
    means_of,
)


def add_ablate(commands: Any) -> None:
    """`sparks ablate`."""
    command = command_parser(
        commands,
        "ablate",
        _run_ablate,
        help="write a checkpoint with attention heads turned off, scaled, or set to their mean",
        epilog=f"""examples:
  sparks ablate outputs/checkpoint-300 --heads L5H1,L7H2 --output ablated/
      the heads off, folded into the weights: vLLM, lm-eval or a trainer runs it unchanged
  sparks ablate outputs/checkpoint-300 --heads emergent --run outputs/ --most 10 --output ablated/
      the ten most important of those that the run brought to life
  sparks ablate outputs/checkpoint-300 --heads emergent --run outputs/ --matched-random 1 --output r
      its control: as many random heads in the same layers
  sparks ablate MODEL --heads L5H1 --mean probes.jsonl --output ablated/
      mean ablation, where the architecture can hold a bias behind its heads
{HEADS_HELP}
LoRA adapters are merged first. The checkpoint is loaded again and run before it is put in place:
its logits are those of the hooked model. To see what heads do to answers: sparks effects.""",
    )
    command.add_argument(
        "model", metavar="MODEL", help="checkpoint, a folder or hub id as owner/name@revision"
    )
    add_heads(command)
    command.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier export in DIR, and nothing else",
    )
    add_loading(command)


def _run_ablate(arguments: argparse.Namespace) -> int:
    from sparks.effects.export import check_output, export_model
    from sparks.models.loading import split_revision

    heads = chosen_heads(arguments)
    assert heads is not None  # --heads is needed
    source = split_revision(arguments.model)[0]
    check_output(arguments.output, overwrite=arguments.overwrite, sources=[source])
    quiet_libraries()
    tokenizer, model = tokenizer_of(arguments), model_of(arguments)
    heads = for_model(arguments, heads, model)
    found = export_model(
        model,
        heads.heads,
        arguments.output,
        scale=arguments.scale,
        means=means_of(arguments, model, tokenizer),
        tokenizer=tokenizer,
        overwrite=arguments.overwrite,
        origin=f"{heads.name}: {heads.origin}",
    )
    say(f"{len(heads)} heads {in_words(arguments)}: {heads}")
    say(f"{heads.name}: {heads.origin}")
    say(f"{found.path}: logits within {found.difference:.1e} of the hooked model's")
    return 0
