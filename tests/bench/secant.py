"""Secants beside EAP-IG: completeness, cost, circuits of single probes, single heads.

    python tests/bench/secant.py measure --model MODEL --probes TASK.jsonl ... --keep ROWS.jsonl
    python tests/bench/secant.py table --keep ROWS.jsonl ...
    python tests/bench/secant.py measure --tiny --keep ROWS.jsonl        # to see that it runs

Each file of probes is a task, named by the file. A probe is measured whole, by every method in one
turn (whose order moves on from probe to probe), and written as one line at once: what is cut off
goes on. `--heads N` adds exact effects of all heads for the first N probes of a file.

- gap: completeness at the embeddings, as snapshots have it; worst cut: the same at the worst of all
  cuts of the network, where EAP-IG promises nothing;
- seconds: CPU time of the whole of `edge_attribution` of that one probe, its prefix and ends too;
- kept: 1 - L(C) / L of the probe's own circuit of 1, 2, 5 % of the edges, the strongest by |score|
  or by score (signed), pruned, all outside patched (`circuit_runs`);
- damaged, repaired: Spearman between |node score| of the heads and |exact effect on L| of giving a
  head its corrupted value in the clean run, or its clean value in the corrupted run.

`table` prints medians over probes (a circuit that does harm keeps -4 of L and would rule a mean),
that of secant less 36 points with its interval (95 %, bootstrap over probes), and the largest of
secants. Probes with L under `LEAST_LOSS` are left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sparks.attribution.circuit_runs import CircuitRuns
from sparks.attribution.eap_ig import edge_attribution, estimate_memory
from sparks.attribution.faithfulness.curve import sized_circuits
from sparks.attribution.model_runs import Passes
from sparks.attribution.secant_proof import cuts
from sparks.ground.config import LEAST_LOSS
from sparks.models.anatomy import Anatomy
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.models.hooks import hooks, on_input
from sparks.models.loading import load_model, load_tokenizer
from sparks.probes.pairs import TokenPair
from sparks.probes.probes import ProbeSet

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from models import tiny_model, token_pair

METHODS: dict[str, dict[str, Any]] = {
    "secant": {"method": "secant"},
    "4 points": {"points": 4},
    "36 points": {"points": 36},
}
SHARES = (0.01, 0.02, 0.05)
Row = dict[str, Any]


def main() -> None:
    arguments = parse()
    if arguments.part == "measure":
        measure(arguments)
    rows = list(table([read(path) for path in arguments.keep]))
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(shown(value) for value in row.values()) + " |")
    print(json.dumps(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["measure", "table"])
    parser.add_argument("--keep", type=Path, nargs="+", required=True, help="JSONL of the rows")
    parser.add_argument("--model", default=".cache/smollm2-135m-instruct")
    parser.add_argument("--probes", type=Path, nargs="+", default=[])
    parser.add_argument("--count", type=int, default=12, help="probes of each file (default: 12)")
    parser.add_argument("--heads", type=int, default=0, help="of these, with effects of all heads")
    parser.add_argument("--suffix", type=int, default=16, help="tokens of a continuation")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model in place of all")
    return parser.parse_args()


# -- measuring -------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> None:
    (keep,) = arguments.keep
    done = {(row["task"], row["probe"]) for row in read(keep)}
    if arguments.tiny:
        model = tiny_model("llama-gqa", initializer_range=1.0)
        work = [("tiny", str(n), token_pair(4, 3, seed=n), True) for n in range(2)]
    else:
        model = load_model(arguments.model, device="cpu")
        work = list(of_files(arguments))
    left = [item for item in work if item[:2] not in done]
    edge_attribution(model, [work[0][2]], method="secant")  # proofs and memory fall in here
    edge_attribution(model, [work[0][2]], points=4)
    for turn, (task, probe, pair, heads) in enumerate(tqdm(left)):
        row = {"model": "tiny" if arguments.tiny else arguments.model, "task": task, "probe": probe}
        row |= measured(model, pair, turn, heads=heads)
        with keep.open("a") as file:
            file.write(json.dumps(row) + "\n")


def of_files(arguments: argparse.Namespace) -> Iterator[tuple[str, str, TokenPair, bool]]:
    tokenizer = load_tokenizer(arguments.model)
    for path in arguments.probes:
        found = ProbeSet.load(path).tokenize(tokenizer, max_suffix_tokens=arguments.suffix)
        some = list(zip(found.ids, found.pairs, strict=True))[: arguments.count]
        for number, (probe, pair) in enumerate(some):
            yield path.stem, probe, pair, number < arguments.heads


def measured(model: Any, pair: TokenPair, turn: int, *, heads: bool) -> Row:
    names = list(METHODS)[turn % 3 :] + list(METHODS)[: turn % 3]
    row: Row = {}
    for name in names:
        estimate_memory(model, [pair], **METHODS[name])  # measures what it needs, once a shape
        start = time.process_time()
        found = edge_attribution(model, [pair], **METHODS[name])
        seconds = time.process_time() - start
        scores, loss = found.scores[0], float(found.loss_corrupted[0])
        row["loss"] = loss
        cut = max(abs(total / loss - 1) for _, total in cuts(found.graph, scores))
        gap = float(found.completeness_gap[0])
        row[name] = {"seconds": seconds, "gap": gap, "worst cut": cut, "scores": scores}
    with undisturbed(model):
        anatomy = take_apart(model)
        passes = Passes(anatomy, [pair], "last")
        runs = CircuitRuns(anatomy, passes)
        clean = runs.clean.log_softmax(-1)
        effects = head_effects(anatomy, passes, clean) if heads else {}
        for name in METHODS:
            scores = row[name].pop("scores")
            row[name] |= {
                "kept": kept(anatomy, runs, clean, scores.abs(), row["loss"]),
                "kept signed": kept(anatomy, runs, clean, scores, row["loss"]),
            }
            node = scores.sum(-1)[torch.from_numpy(anatomy.graph.head_sources)].flatten()
            for sense, effect in effects.items():
                row[name][sense] = spearman(node.abs(), effect.abs())
    return row


def loss_of(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(clean || run) of each row."""
    return (clean.exp() * (clean - logits.float().log_softmax(-1))).sum(-1).mean(-1)


def kept(
    anatomy: Anatomy, runs: CircuitRuns, clean: Tensor, strength: Tensor, loss: float
) -> list[float]:
    graph = anatomy.graph
    circuits = sized_circuits(strength.numpy(), graph, SHARES)
    masks = torch.from_numpy(np.stack([circuit.mask(graph) for circuit in circuits]))
    return (1 - loss_of(clean, runs.logits(masks)) / loss).tolist()


@torch.no_grad()
def head_effects(anatomy: Anatomy, passes: Passes, clean: Tensor) -> dict[str, Tensor]:
    """What L is moved by, all heads: a layer's heads are rows of one run."""
    count = anatomy.graph.num_heads
    ends: dict[bool, list[Tensor]] = {True: [], False: []}
    for is_clean, mixed in ends.items():
        with hooks() as handles:
            handles += [on_input(layer.output, mixed.append) for layer in anatomy.layers]
            passes.run(clean=is_clean)
    found = {}
    for sense, is_clean in (("damaged", True), ("repaired", False)):
        before = loss_of(clean, passes.run(clean=is_clean))
        moved = []
        for index, layer in enumerate(anatomy.layers):
            given = ends[not is_clean][index]

            def patch(mixed: Tensor, given: Tensor = given) -> Tensor:
                rows, heads = (
                    mixed.unflatten(-1, (count, -1)).clone(),
                    given.unflatten(-1, (count, -1)),
                )
                for head in range(count):
                    rows[head, :, head] = heads[0, :, head]
                return rows.flatten(-2)

            with hooks() as handles:
                handles.append(on_input(layer.output, patch))
                moved.append(loss_of(clean, passes.run(clean=is_clean, copies=count)) - before)
        found[sense] = torch.cat(moved)
    return found


def spearman(one: Tensor, other: Tensor) -> float:
    ranks = [values.argsort().argsort().double() for values in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


# -- reading ---------------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(files: list[list[Row]]) -> Iterator[Row]:
    """A row a model, task and judge: medians of the methods, and secant less 36 points."""
    rows = [row for file in files for row in file if row["loss"] >= LEAST_LOSS]
    for model, task in dict.fromkeys((row["model"], row["task"]) for row in rows):
        here = [row for row in rows if (row["model"], row["task"]) == (model, task)]
        judges = [("gap", None), ("worst cut", None), ("seconds", None)]
        judges += [(f"kept{how}", place) for how in ("", " signed") for place in range(len(SHARES))]
        judges += [("damaged", None), ("repaired", None)]
        for judge, place in judges:
            values = {
                name: np.array([at(row[name][judge], place) for row in here if judge in row[name]])
                for name in METHODS
            }
            if not len(values["secant"]):
                continue
            label = judge if place is None else f"{judge} {SHARES[place]:.0%}"
            found: Row = {"model": Path(model).name, "task": task, "judge": label}
            found["probes"] = len(values["secant"])
            found |= {name: float(np.median(value)) for name, value in values.items()}
            found |= interval(values["secant"] - values["36 points"])
            yield found | {"worst": float(values["secant"].max())}


def at(value: Any, place: int | None) -> float:
    return value if place is None else value[place]


def interval(differences: np.ndarray) -> Row:
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(differences, (2000, len(differences))), axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"difference": float(np.median(differences)), "from": float(low), "to": float(high)}


def shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
