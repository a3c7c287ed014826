"""Heads of a known behaviour: found, turned off, predicted. Copying by induction, on a CPU.

    python recipes/induction_train.py
    python recipes/induction_effects.py --run runs/induction

How transformers copy is known (Olsson et al. 2022, https://arxiv.org/abs/2209.11895): a
previous-token head tells each word what stands before it, and an induction head, a layer later,
looks for the word whose previous one is the present one. So what `sparks` finds can be judged from
outside. In steps:

1. which heads attend as these two do, weighted by what they move (no `sparks` in it): carriers;
2. which heads the timeline calls emergent, and how it ranks all heads: against 1;
3. accuracy on sequences that no training saw, with the emergent heads off, and with as many random
   ones of the same layers;
4. what attribution predicts for each head, against running the model with that head changed: set
   to its output in the corrupted run, which is what a score stands for, and set to zero;
5. RUN/induction.png and RUN/induction.json.

At the full size (40 s of one CPU core, 1 GB) all 6 emergent heads are carriers, of 9; a seventh was
active as soon as there was something to attribute. Accuracy falls from 100.0 % to 14.4 %, with the
seventh off to 4.0 %; with random heads it is 99.6 % (95 % over draws: 99.4 to 99.8). Rank
correlation of predicted and exact effects over all 24 heads: 0.99 (95 % over probes: 0.99 to 1.00);
over the 20 heads that write anything the same. With --seed 1 (both scripts): 4 of 4 (a fifth was
active at once), 60.2 %, 97.8 % and 0.99. Where prediction and ablation part:

- Zero ablation: 0.84 (0.80 to 0.87), and 0.72 over those that write. Zero also takes away what a
  head writes in both runs alike; a score compares the two and cannot see it.
- Of seven random heads three of 20 draws fall below 99 %, to 71, 71 and 91 %: those with L0H3 and
  L0H7. Alone neither is missed (99.7 and 99.9 % right), together they are (94 %, with L0H11 76 %;
  mean ablation gives the same). They are needed, and no score names them: their corrupted output
  does as well.
- Scores are not amounts. L1H1 is predicted to move L by 2.8 nats and moves it by 0.05 alone: other
  induction heads make up for it. Only the order agrees.
- Half of the heads write little (their part of `o_proj` has less than a tenth of the largest norm):
  many random sets are easy to do without.

The same from the command line:

    sparks timeline runs/induction
    sparks evaluate runs/induction/model --task runs/induction/task.jsonl --greedy --samples 1 \\
        --max-new-tokens 1 --heads emergent --run runs/induction --output runs/induction/off.jsonl
    sparks effects runs/induction/model --task runs/induction/task.jsonl --greedy --samples 1 \\
        --max-new-tokens 1 --run runs/induction --sets emergent --output runs/induction/effects
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from induction_train import SIZES, Sequences, Size, head_norms, right_share
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks import ProbeSet, Timeline, TokenPair, edge_attribution, node_attribution
from sparks.effects.choose_heads import matched_random, select_heads
from sparks.effects.interventions import intervene
from sparks.ground.files import write_atomically
from sparks.models.heads import Head, head_name, names
from sparks.stats.intervals import mean_interval, percentiles, resampled_counts
from sparks.views.figures.style import axes_at, module, new_figure, render, styled

KINDS = {"previous": "previous-token head", "induction": "induction head", "other": "other head"}
CARRIES = 0.05
"""A head is of a kind if it moves at least this share of what all heads move for it."""
WRITES = 0.01
"""A head lives if its part of `o_proj` has at least this share of the largest norm."""


# -- 1: truth from outside -------------------------------------------------------------------------


@torch.no_grad()
def accuracy(model: Any, data: Sequences) -> np.ndarray:
    """[rows]"""
    return right_share(model(input_ids=data.ids).logits, data.labels).numpy()


@torch.no_grad()
def attention_kinds(model: Any, data: Sequences) -> tuple[dict[str, np.ndarray], ...]:
    """Attention to the word to copy and to the previous word, each [layers, heads].

    First as it is, then weighted by the length of what it moves, ||a_ij W_O v_j|| (Kobayashi et
    al. 2020, https://arxiv.org/abs/2004.10102), as a share of all heads: a head that looks but
    writes nothing carries nothing.
    """
    values: list[Tensor] = []
    with reading([layer.self_attn.v_proj for layer in model.model.layers], values.append):
        model.set_attn_implementation("eager")
        attention = model(input_ids=data.ids, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    row, query, copied = data.queries()
    every, place = torch.where(data.ids > data.ids[0, 0])  # words: each has something before it
    looked = {"induction": (row, query, copied), "previous": (every, place, place - 1)}
    looks: dict[str, list[Tensor]] = {kind: [] for kind in looked}
    moves: dict[str, list[Tensor]] = {kind: [] for kind in looked}
    heads = model.config.num_attention_heads
    for layer, weights, value in zip(model.model.layers, attention, values, strict=True):
        columns = layer.self_attn.o_proj.weight.unflatten(1, (heads, -1))
        written = torch.einsum("bphf,dhf->bphd", value.unflatten(-1, (heads, -1)), columns)
        for kind, (rows, queries, keys) in looked.items():
            found = weights[rows, :, queries, keys]
            looks[kind].append(found.mean(0))
            moves[kind].append((found * written[rows, keys].norm(dim=-1)).mean(0))
    plain = {kind: torch.stack(found).numpy() for kind, found in looks.items()}
    moved = {kind: torch.stack(found).numpy() for kind, found in moves.items()}
    return plain, {kind: found / found.sum() for kind, found in moved.items()}


@contextmanager
def reading(modules: Sequence[Any], see: Callable[[Tensor], Any]) -> Iterator[None]:
    """Inside, `see` is given what each module puts out."""
    handles = [m.register_forward_hook(lambda _, __, output: see(output)) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- 4: exact effects ------------------------------------------------------------------------------


@torch.no_grad()
def exact_effects(model: Any, pairs: Sequence[TokenPair]) -> dict[str, np.ndarray]:
    """KL(clean || changed) at the last position, nats, [pairs, layers, heads], by plain hooks.

    `corrupted`: the head's output at all positions is that of the corrupted run; `zero`: it is 0.
    """
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    found = {kind: np.zeros((len(pairs), layers, heads)) for kind in ("corrupted", "zero")}
    outputs = [layer.self_attn.o_proj for layer in model.model.layers]
    for index, pair in enumerate(pairs):
        clean = torch.tensor([pair.prefix + pair.clean])
        inputs: list[Tensor] = []
        handles = [m.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for m in outputs]  # noqa: B023
        model(input_ids=torch.tensor([pair.prefix + pair.corrupted]))
        for handle in handles:
            handle.remove()
        wanted = log_last(model(input_ids=clean).logits)
        for layer, output in enumerate(outputs):
            for kind, value in (("corrupted", inputs[layer]), ("zero", 0 * inputs[layer])):
                handle = output.register_forward_pre_hook(one_head_a_row(value, heads))
                changed = log_last(model(input_ids=clean.expand(heads, -1)).logits)
                handle.remove()
                found[kind][index, layer] = (wanted.exp() * (wanted - changed)).sum(-1).numpy()
    return found


def one_head_a_row(value: Tensor, heads: int) -> Callable[[Any, Any], tuple[Tensor]]:
    """A hook for `o_proj`: in row h of the batch, head h gives what it has in `value`."""
    own = torch.arange(heads)
    other = value[0].unflatten(-1, (heads, -1)).transpose(0, 1)  # [heads, pos, head_dim]

    def hook(_: Any, inputs: Any) -> tuple[Tensor]:
        mixed = inputs[0].unflatten(-1, (heads, -1)).clone()  # [rows, pos, heads, head_dim]
        mixed[own, :, own] = other
        return (mixed.flatten(-2),)

    return hook


def log_last(logits: Tensor) -> Tensor:
    """[rows, vocab]: log-probabilities at the last position."""
    return logits[:, -1].double().log_softmax(-1)


# -- numbers ---------------------------------------------------------------------------------------


def with_interval(values: np.ndarray) -> list[float]:
    """Mean over rows with its 95 % interval."""
    return [float(values.mean()), *map(float, mean_interval(values))]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(np.corrcoef(pd.Series(one).rank(), pd.Series(other).rank())[0, 1])


def agreement(predicted: np.ndarray, exact: np.ndarray) -> list[float]:
    """Rank correlation over heads of means over probes, [probes, heads]; 95 % over probes."""
    weights = resampled_counts(len(exact)) / len(exact)
    spread = [spearman(some @ predicted, some @ exact) for some in weights]
    middle = spearman(predicted.mean(0), exact.mean(0))
    return [middle, *map(float, percentiles(np.array(spread)))]


def measure(
    run: Path, size: Size, seed: int, *, rule: str, points: int, draws: int, rows: int
) -> dict:
    """Steps 1 to 4, as plain numbers."""
    tokenizer = AutoTokenizer.from_pretrained(run / "model", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        run / "model", dtype="float32", trust_remote_code=False
    ).eval()
    held_out = Sequences.draw(size, rows, seed + 3)
    probes = ProbeSet.load(run / "probes.jsonl")
    pairs = probes.tokenize(tokenizer, max_suffix_tokens=size.length).pairs
    timeline = Timeline.from_run(run)

    looks, shares = attention_kinds(model, held_out)
    found = select_heads(timeline, rule).heads
    random = matched_random(
        found, num_layers=size.layers, num_heads=size.heads, draws=draws, seed=seed
    )

    def with_off(heads: Sequence[Head]) -> np.ndarray:
        with intervene(model, heads):
            return accuracy(model, held_out)

    off = np.stack([with_off(chosen.heads) for chosen in random])  # [draws, rows]
    nodes = node_attribution(model, pairs, points=points)
    edges = edge_attribution(model, pairs, points=points)
    heads = torch.from_numpy(nodes.graph.head_sources.ravel())
    predicted = {
        "node score": nodes.scores[:, heads].abs().numpy(),
        "edge scores": edges.heads().flatten(1).numpy(),
    }
    exact = {
        kind: effect.reshape(len(pairs), -1) for kind, effect in exact_effects(model, pairs).items()
    }
    norms = head_norms(model).detach().numpy()
    lives = (norms >= WRITES * norms.max()).ravel()

    table = []
    for row, head in enumerate(np.ndindex(size.layers, size.heads)):
        share = {kind: float(shares[kind][head]) for kind in shares}
        kind = max(share, key=share.__getitem__)
        table.append(
            {
                "head": head_name(head),
                "kind": kind if share[kind] >= CARRIES else "other",
                "attention": float(looks[kind][head]),
                "share": share[kind],
                "norm": float(norms[head]),
                "importance": float(timeline.importance[-1][head]),
                "found": head in found,
                "active": bool(timeline.active[-1][head]),
                **{name: float(scores[:, row].mean()) for name, scores in predicted.items()},
                **{name: float(effect[:, row].mean()) for name, effect in exact.items()},
                "accuracy off": float(with_off([head]).mean()),
            }
        )
    return {
        "heads": table,
        "found": names(found),
        "accuracy": {
            "intact": with_interval(accuracy(model, held_out)),
            "found off": with_interval(with_off(found)),
            "random off": with_interval(off.mean(1)),  # over draws; the others over sequences
        },
        "random draws": [
            {"heads": str(chosen), "moved": chosen.moved, "accuracy": float(share.mean())}
            for chosen, share in zip(random, off, strict=True)
        ],
        "living": int(lives.sum()),
        "agreement": {
            f"{name}, {kind}, {which} heads": agreement(scores[:, mask], effects[:, mask])
            for name, scores in predicted.items()
            for kind, effects in exact.items()
            for which, mask in (("all", slice(None)), ("living", lives))
        },
        "nats": float(nodes.loss_corrupted.mean()),
        "largest gap": float(nodes.completeness_gap.max()),
    }  # fmt: skip


def tell(results: dict[str, Any]) -> None:
    """Print what was found."""
    table = pd.DataFrame(results["heads"]).sort_values("corrupted", ascending=False)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    carry = table[table.kind != "other"]
    for name in ("found", "active"):
        heads = table[table[name]]
        both = int((heads.kind != "other").sum())
        print(f"{name} ({len(heads)}): {', '.join(heads['head'])}")
        print(f"  {both} of {len(heads)} are carriers; {both} of {len(carry)} carriers are in it")
    strongest = table.nlargest(len(carry), "importance")
    hits = int((strongest.kind != "other").sum())
    print(f"of the {len(carry)} heads of largest importance, {hits} are carriers")
    for name, (middle, low, high) in results["accuracy"].items():
        print(f"accuracy, {name}: {middle:.3f} ({low:.3f} to {high:.3f})")
    draws = [draw["accuracy"] for draw in results["random draws"]]
    print(f"{len(draws)} random draws: {min(draws):.3f} to {max(draws):.3f}")
    for name, (middle, low, high) in results["agreement"].items():
        print(f"rank correlation, {name}: {middle:.2f} ({low:.2f} to {high:.2f})")
    print(f"KL(clean || corrupted): {results['nats']:.2f} nats, mean over probes")
    print(f"completeness gap: {results['largest gap']:.2%} at worst")


# -- figure ----------------------------------------------------------------------------------------


@styled
def draw(results: dict[str, Any]) -> Any:
    """Left: predicted against exact, a dot a head. Right: accuracy with heads off."""
    figure = new_figure("page", 2.9)
    _scatter(axes_at(figure, 0.62, 0.48, 3.2, 2.1), results)
    _bars(axes_at(figure, 4.55, 0.48, 2.1, 2.1), results)
    return figure


def _scatter(axes: Any, results: dict[str, Any]) -> None:
    floor_x, floor_y = 1e-3, 1e-6  # nats; what is below stands on the axis
    table = pd.DataFrame(results["heads"])
    x, y = table["node score"].clip(floor_x), table["corrupted"].clip(floor_y)
    colours = dict(zip(KINDS, ("#d55e00", "#0072b2", "#b0b0b0"), strict=True))
    for kind, label in KINDS.items():
        own = table.kind == kind
        axes.scatter(
            x[own], y[own], s=16, color=colours[kind], label=label, clip_on=False, zorder=3
        )
    strongest = table.nlargest(7, "corrupted").index
    for place, row in enumerate(strongest):  # right and left in turn: neighbours are near
        side = -1 if place % 2 else 1
        axes.annotate(
            table["head"][row], (x[row], y[row]), xytext=(5 * side, -2), fontsize=6,
            textcoords="offset points", ha="right" if place % 2 else "left",
        )  # fmt: skip
    axes.axline((1, 1), (10, 10), color="#b0b0b0", linewidth=0.6, linestyle=(0, (4, 3)), zorder=0)
    axes.set(xscale="log", yscale="log", xlim=(floor_x, 20), ylim=(floor_y, 20))
    ticker = module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(numticks=9))
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("predicted by its node score, nats")
    axes.set_ylabel("exact, head at its corrupted output, nats")
    middle, low, high = results["agreement"]["node score, corrupted, all heads"]
    axes.set_title(f"Effect of each head: rank correlation {middle:.2f} ({low:.2f} to {high:.2f})")
    axes.legend(loc="upper left", handletextpad=0.2)


def _bars(axes: Any, results: dict[str, Any]) -> None:
    count = sum(row["found"] for row in results["heads"])
    labels = ["intact", f"the {count} found\nheads off", f"{count} random\nheads off"]
    for place, (middle, low, high) in enumerate(results["accuracy"].values()):
        axes.bar(place, middle, 0.62, color=("#5a5a5a", "#0072b2", "#b0b0b0")[place])
        axes.errorbar(
            place, middle, [[middle - low], [high - middle]], color="#000000", capsize=2, lw=0.8
        )
        axes.annotate(f"{middle:.1%}", (place, 1.06), ha="center", fontsize=6.5)
    draws = [row["accuracy"] for row in results["random draws"]]
    axes.scatter(2 + np.linspace(-0.24, 0.24, len(draws)), draws, s=4, color="#000000", zorder=3)
    axes.set_xticks(range(3), labels)
    axes.set(ylim=(0, 1.13), ylabel="share of words copied right")
    axes.set_title("Accuracy; dots: random draws")


def main(given: Sequence[str] | None = None) -> None:
    """Measure a run of induction_train.py; print, and write figure and numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/induction"))
    parser.add_argument("--size", choices=SIZES, default="full", help="that of the training")
    parser.add_argument("--seed", type=int, default=0, help="that of the training (default: 0)")
    parser.add_argument("--heads", default="emergent", help="rule: emergent, top:5 ...")
    parser.add_argument("--points", type=int, default=100, help="points m on the path")
    parser.add_argument("--draws", type=int, default=20, help="random sets (default: 20)")
    parser.add_argument("--rows", type=int, default=512, help="held-out sequences (default: 512)")
    arguments = parser.parse_args(given)
    results = measure(
        arguments.run, SIZES[arguments.size], 10 * arguments.seed,
        rule=arguments.heads, points=arguments.points, draws=arguments.draws, rows=arguments.rows,
    )  # fmt: skip
    tell(results)
    write_atomically(arguments.run / "induction.json", json.dumps(results, indent=1))
    (arguments.run / "induction.png").write_bytes(render(draw(results), "png"))
    print(f"open {arguments.run / 'induction.png'}")


if __name__ == "__main__":
    main()
