"""Are born heads real? False births on an unchanged model, and births that were planted.

Two parts, each a table; the last line is JSON.

1. `null`: a pool of probes is measured once on one model. Two disjoint sets of it stand for a
   checkpoint before and one after a training that changed nothing, `--resamples` times, for sets
   of several sizes: heads that each rule calls born or pruned, and what each says is active.
   Also how often the interval of a head's inclusion holds that of the whole pool, against a
   percentile bootstrap (probes drawn with replacement).
2. `planted`: heads are silenced, revived, grown and shrunk by weight edits at known checkpoints
   (`tests/helpers/planted.py`); recall and precision of the events at the right checkpoint.

    python tests/bench/calibration.py null --model .cache/smollm2-135m-instruct \\
        --probes POOL.jsonl --keep .cache/calibration
    python tests/bench/calibration.py planted             # random models, three architectures
    python tests/bench/calibration.py planted --model FOLDER --probes POOL.jsonl

A pool: sparks probes --data .cache/reasoning/problems.jsonl --model ... --count 48 --output ...
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.probes.pairs import TokenizedProbes
from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.stats.intervals import inclusion_interval, percentiles, resampled_counts
from sparks.timeline.calibration import HALF, decide
from sparks.timeline.timeline import Timeline

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from models import tiny_model, token_pair
from planted import STORIES, Planted, clear_heads, judge

ARCHITECTURES = ("llama-gqa", "starcoder2", "qwen3")


def main() -> None:
    arguments = parse()
    rows = list(null(arguments) if arguments.part == "null" else planted(arguments))
    print_table(rows)
    print(json.dumps(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["null", "planted"])
    parser.add_argument("--model", help="folder of a checkpoint")
    parser.add_argument("--probes", help="JSONL file of the pool")
    parser.add_argument("--keep", help="folder that keeps the pool's snapshot for the next time")
    parser.add_argument("--points", type=int, default=32, help="points m on the path")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 6, 8, 12, 16, 24])
    parser.add_argument("--seeds", type=int, default=6, help="random models an architecture")
    parser.add_argument("--counted", type=int, default=16, help="probes of the run with edits")
    return parser.parse_args()


# -- nothing changed -------------------------------------------------------------------------------


def null(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    pool = measured_pool(arguments)
    levels, settings = pool.levels
    rng = np.random.default_rng(0)
    for size in arguments.sizes:
        pairs = [rng.permutation(pool.num_probes)[: 2 * size] for _ in range(arguments.resamples)]
        yield {
            "probes": size,
            **paper(pool, pairs),
            **calibrated(levels, settings, pairs),
            **coverage(levels, settings, size, rng),
        }


def measured_pool(arguments: argparse.Namespace) -> Snapshot:
    store = RunStore(Path(arguments.keep)) if arguments.keep else None
    if store is not None and store.steps():
        return store.load(0)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    config = SnapshotConfig(points=arguments.points, faithfulness=False)
    pool = take_snapshot(model, tokenized(arguments, config), config)
    if store is not None:
        store.save(pool)
    return pool


def tokenized(arguments: argparse.Namespace, config: SnapshotConfig) -> TokenizedProbes:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    return ProbeSet.load(arguments.probes).tokenize(
        tokenizer, max_suffix_tokens=config.max_suffix_tokens
    )


def paper(pool: Snapshot, pairs: list[Int[np.ndarray, " probes"]]) -> dict[str, float]:
    """The paper's rule: in any circuit."""
    halves = [np.split(pair, 2) for pair in pairs]
    sets = [(pool.active[a].any(axis=0), pool.active[b].any(axis=0)) for a, b in halves]
    born = [int((after & ~before).sum()) for before, after in sets]
    return {
        "paper_active": float(np.mean([before.sum() for before, _ in sets])),
        "paper_births": float(np.mean(born)),
        "paper_births_low": float(np.quantile(born, 0.025)),
        "paper_births_high": float(np.quantile(born, 0.975)),
    }


def calibrated(
    levels: np.ndarray, settings: int, pairs: list[Int[np.ndarray, " probes"]]
) -> dict[str, float]:
    """The calibrated rule, and a majority without any test."""
    truth = levels.mean(axis=0) / settings >= HALF
    false, majority, likely, low, high, inside = [], [], [], [], [], []
    for pair in pairs:
        found = decide(np.stack([levels[half] for half in np.split(pair, 2)]), settings)
        false.append(int((found.change != 0).sum()))
        above = found.inclusion >= HALF
        majority.append(int((above[1] & ~above[0]).sum()))
        likely.append(int(above[0].sum()))
        low.append(int((found.state[0] == 1).sum()))
        high.append(low[-1] + int((found.state[0] == 0).sum()))
        inside.append(low[-1] <= truth.sum() <= high[-1])
    return {
        "majority_births": float(np.mean(majority)),
        "calibrated_changes": float(np.mean(false)),
        "calibrated_any": float(np.mean(np.array(false) > 0)),
        "likely": float(np.mean(likely)),
        "active_low": float(np.mean(low)),
        "active_high": float(np.mean(high)),
        "pool_active": float(truth.sum()),
        "active_held": float(np.mean(inside)),
    }


def coverage(
    levels: np.ndarray, settings: int, size: int, rng: np.random.Generator
) -> dict[str, float]:
    """Share of heads, neither always nor never in the circuit, whose interval holds the truth."""
    flat = levels.reshape(len(levels), -1)
    truth = flat.mean(axis=0) / settings
    judged = (truth > 0.05) & (truth < 0.95)
    ours, bootstrap = [], []
    for _ in range(100):
        drawn = flat[rng.integers(0, len(flat), size)]
        low, high = inclusion_interval(drawn, settings)
        ours.append(((low <= truth) & (truth <= high))[judged].mean())
        low, high = percentiles(resampled_counts(size) @ drawn / (size * settings))
        bootstrap.append(((low <= truth) & (truth <= high))[judged].mean())
    return {"held": float(np.mean(ours)), "held_bootstrap": float(np.mean(bootstrap))}


# -- planted ---------------------------------------------------------------------------------------


def planted(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if arguments.model:
        yield planted_in_pretrained(arguments)
        return
    config = SnapshotConfig(points=12, faithfulness=False)
    shape = {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 64}
    for kind in ARCHITECTURES:
        scores = []
        for seed in tqdm(range(arguments.seeds), desc=kind):
            model = tiny_model(kind, seed=seed, num_key_value_heads=4, **shape)
            few, many = random_probes(arguments.counted, 0), random_probes(96, 1000)
            scores.append(one_run(model, few, many, config))
        yield summed(kind, scores)


def random_probes(count: int, start: int) -> TokenizedProbes:
    pairs = tuple(token_pair(4, 5, seed=start + index) for index in range(count))
    ids = tuple(f"p{index}" for index in range(count))
    return TokenizedProbes(pairs=pairs, ids=ids, groups=("",) * count, hash=f"from {start}")


def planted_in_pretrained(arguments: argparse.Namespace) -> dict[str, Any]:
    config = SnapshotConfig(points=arguments.points, faithfulness=False)
    pool = tokenized(arguments, config)
    few, many = (part(pool, slice(arguments.counted)), part(pool, slice(arguments.counted, None)))
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    return summed(Path(arguments.model).name, [one_run(model, few, many, config)])


def part(probes: TokenizedProbes, chosen: slice) -> TokenizedProbes:
    return TokenizedProbes(
        pairs=probes.pairs[chosen],
        ids=probes.ids[chosen],
        groups=probes.groups[chosen],
        hash=f"{probes.hash} {chosen}",
    )


def one_run(
    model: Any, few: TokenizedProbes, many: TokenizedProbes, config: SnapshotConfig
) -> dict[str, Any]:
    heads = clear_heads(take_snapshot(model, many, config, progress=False), len(STORIES))
    plan = Planted(dict(zip(heads, STORIES, strict=True)))
    run, truth = plan.run(model, few, config), Timeline(plan.run(model, many, config))
    return {
        "calibrated": judge(Timeline(run), plan, truth),
        "paper": judge(Timeline(run, rule="paper"), plan, truth),
    }


def summed(name: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "runs": len(scores)}
    for rule in ("calibrated", "paper"):
        of_rule = [score[rule] for score in scores]
        found = sum(score.found for score in of_rule)
        row["events"] = sum(score.planted for score in of_rule)
        row[f"{rule}_recall"] = found / row["events"]
        row[f"{rule}_precision"] = found / max(1, sum(score.called for score in of_rule))
        row[f"{rule}_consequences"] = sum(score.consequences for score in of_rule)
        if rule == "calibrated":
            for line in (line for score in of_rule for line in score.wrong):
                print(f"{name}: {line}", file=sys.stderr)
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
