"""`sparks check`: before a training, whether a model can be measured, and what a snapshot takes."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import (
    add_loading,
    add_settings,
    command_parser,
    model_of,
    quiet_libraries,
    say,
    settings,
    tokenizer_of,
)
from sparks.ground.config import SnapshotConfig

if TYPE_CHECKING:
    from sparks.models.anatomy import Anatomy
    from sparks.probes.pairs import TokenizedProbes

POWER = {16: (0.03, 0.09, 0.09), 32: (0.24, 0.43, 0.53), 64: (0.50, 0.72, 0.88),
         128: (0.74, 0.96, 1.00)}  # fmt: skip
"""Probes -> share that the rule found of the heads moved by x 1.1, 1.2 and 1.3, on a trained
SmolLM2-135M (the table `power` of `tests/bench/RECORD.md`)."""
_MADE_UP = 64, 16
"""Tokens of the prefix and the continuation of a probe that stands for others."""


def add_check(commands: Any) -> None:
    """`sparks check`."""
    command = command_parser(
        commands,
        "check",
        _run_check,
        help="say before a training whether a model can be measured, and what a snapshot takes",
        epilog="""examples:
  sparks check MODEL --probes probes.jsonl
      works or why not, heads, seconds and memory of a snapshot here, what so many probes settle
  sparks check MODEL
      the same with one made-up probe
  sparks check
      the architectures that work, and those that are refused and why; no model is loaded""",
    )
    command.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder with a model and its tokenizer, or hub id"
    )
    command.add_argument("--probes", metavar="FILE", help="JSONL file of probes")
    add_loading(command)
    add_settings(command, SnapshotConfig)


def _run_check(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        return _list()
    from sparks.attribution.eap_ig import estimate_memory
    from sparks.attribution.head_gradients import AttentionReader
    from sparks.attribution.take_snapshot import take_snapshot
    from sparks.models.anatomy_proof import take_apart
    from sparks.models.guard import undisturbed
    from sparks.probes.probes import ProbeSet

    config = settings(arguments, SnapshotConfig)
    probes = None if arguments.probes is None else ProbeSet.load(arguments.probes)
    quiet_libraries()
    model = model_of(arguments)
    with undisturbed(model):
        anatomy = take_apart(model)
        factored = sum(bool(AttentionReader.of(layer).maps) for layer in anatomy.layers)
    if probes is None:
        tokenized = _made_up(anatomy)
    else:
        tokenized = probes.tokenize_for(model.config, tokenizer_of(arguments), config)
    graph, number = anatomy.graph, len(tokenized)
    say(f"model     {type(model).__name__} ({anatomy.model_type}) works: its parts add up")
    slow = f", a slower one in {graph.num_layers - factored}" if factored < graph.num_layers else ""
    say(f"route     the fast one in {factored} of {graph.num_layers} layers{slow}")
    say(
        f"heads     {graph.num_layers * graph.num_heads}: {graph.num_layers} layers x "
        f"{graph.num_heads}, {graph.num_kv_heads} key/value heads a layer"
    )
    say(f"probes    {'' if probes else 'made up, '}{_tokens(tokenized)}")
    how = {name: value for name, value in config.attribution().items() if name != "quadrature"}
    memory = estimate_memory(model, tokenized.pairs, **how)
    longest = max(range(number), key=lambda index: len(tokenized.pairs[index]))
    start = time.perf_counter()
    found = take_snapshot(model, _one(tokenized, longest), config, progress=False)
    seconds = time.perf_counter() - start
    say(
        f"snapshot  at most about {number * seconds:.1f} s and {memory.peak_gib:.2g} GiB beside "
        f"the model, on {anatomy.device} (the longest probe took {seconds:.1f} s)"
    )
    if (share := found.meta.router_share) is not None:
        say(f"routers   {share:.0%} of L goes to switches of experts, which no score has")
    say(f"settles   {_settles(number if probes else None)}")
    return 0


def _list() -> int:
    from sparks.models.families import CHECKED_ARCHITECTURES, REFUSED

    say(f"{len(CHECKED_ARCHITECTURES)} work: {', '.join(CHECKED_ARCHITECTURES)}")
    for reason, types in REFUSED.items():
        say(f"refused, {reason}: {', '.join(types)}")
    say("others are tried: what does not add up is refused with the number")
    return 0


def _made_up(anatomy: Anatomy) -> TokenizedProbes:
    import numpy as np

    from sparks.probes.pairs import TokenizedProbes, TokenPair

    prefix, suffix = _MADE_UP
    prefix = min(prefix, (anatomy.max_positions or 10**6) - suffix)
    shape = prefix + 2 * suffix
    ids = np.random.default_rng(0).permutation(max(anatomy.vocab_size, shape))[:shape]
    parts = np.split(ids % anatomy.vocab_size, [prefix, prefix + suffix])
    pair = TokenPair(*(part.tolist() for part in parts))
    return TokenizedProbes((pair,), ("made up",), ("",))


def _one(probes: TokenizedProbes, index: int) -> TokenizedProbes:
    from sparks.probes.pairs import TokenizedProbes

    return TokenizedProbes((probes.pairs[index],), (probes.ids[index],), (probes.groups[index],))


def _tokens(probes: TokenizedProbes) -> str:
    def span(lengths: list[int]) -> str:
        return " to ".join(dict.fromkeys(map(str, (min(lengths), max(lengths)))))

    prefixes = span([len(pair.prefix) for pair in probes.pairs])
    endings = span([len(pair.clean) for pair in probes.pairs])
    return f"{len(probes)}: {prefixes} tokens that both prompts share, then {endings}"


def _settles(number: int | None) -> str:
    """What the rule of growth can find with so many probes."""
    from sparks.timeline.growth.settings import GrowthConfig

    fewest = GrowthConfig().fewest_probes
    rows = [f"{size}: {' '.join(f'{share:.0%}' for share in POWER[size])}" for size in POWER]
    found = f"found of heads moved by x1.1, 1.2, 1.3, by probes, on SmolLM2-135M: {'; '.join(rows)}"
    if number is None:
        return f"at least {fewest} probes are needed; {found}"
    if number < fewest:
        return f"nothing, {number} probes are too few: at least {fewest} are needed; {found}"
    return f"changes of heads since the base, {number} probes are enough to call any; {found}"
