"""Does the growth rule see what moved, and nothing else? Power and errors of it.

Parts, each prints its tables; the last line is JSON. Without a model, on what is stored in
`tests/data/growth-smollm2.npz` (SmolLM2-135M before and after the quickstart's 32 steps of SFT,
128 fresh probes, m = 4):

    python tests/bench/growth_power.py power      # heads found, by probes (2 minutes)
    python tests/bench/growth_power.py noise      # bf16 rounding, one step of noise
    python tests/bench/growth_power.py halves     # do calls hold on the other half of the probes?
    python tests/bench/growth_power.py compare    # statistics and corrections side by side
    python tests/bench/growth_power.py false --keep FILE.jsonl     # 60 checkpoints x 1000 heads;
                                                  # goes on where FILE stops (an hour)
    python tests/bench/growth_power.py skewed     # what skewness does, and what is done about it

With models:

    python tests/bench/growth_power.py random     # planted changes in random models (10 minutes)
    python tests/bench/growth_power.py collect --keep FOLDER  # what is stored (an hour); resumes
    python tests/bench/growth_power.py pack --keep FOLDER     # writes the stored file

`collect` needs the base (`recipes/prepare_smollm2.py`), the trained one, and a pool:

    python recipes/build_reasoning_data.py --seed 1 --problems 200 --output .cache/reasoning-1
    sparks probes --data .cache/reasoning-1/problems.jsonl --model .cache/smollm2-135m-instruct \\
        --count 128 --output runs/growth/pool.jsonl
    python recipes/quickstart.py --save-steps 32 --output runs/growth/sft
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from sparks.attribution.snapshot import Snapshot
from sparks.ground.config import SnapshotConfig
from sparks.stats.intervals import student_below, student_quantile
from sparks.timeline.growth.luck import log_shares
from sparks.timeline.growth.rule import growth
from sparks.timeline.growth.settings import GrowthConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

STORED = Path(__file__).parents[1] / "data" / "growth-smollm2.npz"
FACTORS = (1.1, 1.2, 1.3, 1.5, 2.0)
SIZES = (16, 32, 64, 128)
SMALLEST = (1.0, 1.02, 1.05, 1.1)
MODELS = ("trained", "rounded", "jittered", "planted")
CHUNK = 16

Row = dict[str, Any]


def main() -> None:
    arguments = parse()
    rows = list(PARTS[arguments.part](arguments))
    for name in dict.fromkeys(row["table"] for row in rows):
        print_table([row for row in rows if row["table"] == name])
    print(json.dumps(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--keep", type=Path, help="folder of `collect`, file of `false`")
    parser.add_argument("--model", default=".cache/smollm2-135m-instruct")
    parser.add_argument("--trained", default="runs/growth/sft/checkpoint-32")
    parser.add_argument("--probes", default="runs/growth/pool.jsonl")
    parser.add_argument("--draws", type=int, default=20, help="sets of probes, or simulated runs")
    parser.add_argument("--heads", type=int, default=1000, help="heads of a simulated run")
    parser.add_argument("--checkpoints", type=int, default=60, help="of a simulated run")
    parser.add_argument(
        "--uneven", dest="even", action="store_false", help="without the correction for skewness"
    )
    return parser.parse_args()


def print_table(rows: list[Row]) -> None:
    names = [name for name in rows[0] if name != "table"]
    print(f"\n{rows[0]['table']}\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = [row[name] for name in names]
        print(
            "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"
        )


# -- the stored measurement ------------------------------------------------------------------------


class Measured:
    """What is stored: the base and four models after it, the same probes."""

    def __init__(self) -> None:
        with np.load(STORED) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        self.base = self.arrays["base"].astype(np.float64)
        self.probes, self.heads = self.base.shape

    def moves(self, name: str) -> np.ndarray:
        """log share after - log share before; [probes, heads]."""
        return self.arrays[f"{name}_moves"].astype(np.float64)

    def run(self, name: str, probes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score masses and L of base and model, on these probes, as `growth` takes them."""
        after = self.base + self.moves(name)
        totals = np.exp(np.stack([self.base, after])[:, probes])
        loss = np.stack([self.arrays["base_loss"], self.arrays[f"{name}_loss"]])[:, probes]
        return totals, loss.astype(np.float64)

    def planted(self) -> np.ndarray:
        """Factor of every head; 1 where nothing was planted."""
        return self.arrays["planted_factors"]


def draws(pool: int, size: int, count: int) -> Iterator[np.ndarray]:
    """Sets of `size` probes, in random order."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.permutation(pool)[:size]


# -- power -----------------------------------------------------------------------------------------


def power(arguments: argparse.Namespace) -> Iterator[Row]:
    """Found of the heads that moved in training, and of the planted ones."""
    measured = Measured()
    truth = measured.moves("trained").mean(axis=0)
    for smallest in SMALLEST:
        for size in SIZES:
            rows = []
            for chosen in draws(measured.probes, size, arguments.draws):
                found = growth(*measured.run("trained", chosen), GrowthConfig(smallest=smallest))
                moved = found.moved[1]
                rows.append(
                    {
                        "grew": int((moved > 0).sum()),
                        "shrank": int((moved < 0).sum()),
                        "born": int((found.change > 0).sum()),
                        "pruned": int((found.change < 0).sum()),
                        "sides in doubt": float(np.nansum(found.side_doubt)),
                        **shares_found(moved * truth, np.abs(truth), FACTORS[:4]),
                        "inside the smallest": int(
                            ((moved != 0) & (moved * truth < math.log(smallest))).sum()
                        ),
                        "in, birth unknown": int(((found.now > 0) & ~found.inside)[1].sum()),
                    }
                )
            yield averaged(
                "trained: heads whose mean move is at least the factor", rows, smallest, size
            )
    yield from planted_power(measured, arguments.draws)


def shares_found(towards: np.ndarray, size: np.ndarray, factors: tuple[float, ...]) -> Row:
    """Share of the heads moved by each factor or more that are named, in the right direction."""
    return {
        f"x {factor:g}": float((towards >= math.log(factor)).sum())
        / max(1, int((size >= math.log(factor)).sum()))
        for factor in factors
    }


def planted_power(measured: Measured, count: int) -> Iterator[Row]:
    factors = measured.planted()
    truth = np.exp(measured.moves("planted").mean(axis=0))
    for factor in FACTORS:
        # All were planted at once, so that each share grows by less: the whole has grown.
        yield {
            "table": "planted in SmolLM2: what the share of each head was moved by",
            "o_proj columns times": factor,
            "mean": float(truth[factors == factor].mean()),
            "least": float(truth[factors == factor].min()),
            "most": float(truth[factors == factor].max()),
        }
    for smallest in SMALLEST:
        for size in SIZES:
            rows = []
            for chosen in draws(measured.probes, size, count):
                found = growth(
                    *measured.run("planted", chosen), GrowthConfig(smallest=smallest)
                ).moved[1]
                rows.append(
                    {f"x {f:g}": float((found[factors == f] > 0).mean()) for f in FACTORS}
                    | {"called shrunk": int((found[factors > 1] < 0).sum())}
                )
            yield averaged(
                "planted in SmolLM2: heads of each factor that grew", rows, smallest, size
            )


def averaged(table: str, rows: list[Row], smallest: float, size: int) -> Row:
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"table": table, "smallest": smallest, "probes": size, **means}


def noise(arguments: argparse.Namespace) -> Iterator[Row]:
    """Models that did not change but for rounding and jitter."""
    measured = Measured()
    for name in ("rounded", "jittered"):
        for smallest in SMALLEST:
            for size in SIZES:
                found = [
                    growth(*measured.run(name, chosen), GrowthConfig(smallest=smallest))
                    for chosen in draws(measured.probes, size, arguments.draws)
                ]
                yield {
                    "table": "weights that did not learn",
                    "model": name,
                    "smallest": smallest,
                    "probes": size,
                    "grew or shrank": float(np.mean([(f.moved != 0).sum() for f in found])),
                    "born or pruned": float(np.mean([(f.change != 0).sum() for f in found])),
                }


def halves(arguments: argparse.Namespace) -> Iterator[Row]:
    """Calls on one half, held against the other half: sign, and p < 5 % there, one-sided."""
    measured = Measured()
    moves = measured.moves("trained")
    for smallest in SMALLEST:
        for size in (16, 32, 48, 64):
            named, sign, significant, runs = 0, 0, 0, 0
            for chosen in draws(measured.probes, 2 * size, arguments.draws):
                pairs = (chosen[:size], chosen[size:]), (chosen[size:], chosen[:size])
                for one, other in pairs:
                    found = growth(*measured.run("trained", one), GrowthConfig(smallest=smallest))
                    moved = found.moved[1]
                    there = moves[other] * moved
                    t = there.mean(axis=0) / np.maximum(there.std(axis=0, ddof=1), 1e-9)
                    named += int((moved != 0).sum())
                    sign += int((t > 0).sum())
                    significant += int((t * size**0.5 > student_quantile(0.95, size - 1)).sum())
                    runs += 1
            yield {
                "table": "calls on one half of the probes, held against the other half",
                "smallest": smallest,
                "probes a half": size,
                "calls": named / runs,
                "sign holds": sign / max(1, named),
                "significant": significant / max(1, named),
            }


# -- what else could have been ---------------------------------------------------------------------

Weights = Callable[[np.ndarray], np.ndarray]


def compare(arguments: argparse.Namespace) -> Iterator[Row]:
    """Statistics and corrections side by side: one checkpoint, the whole error rate spent there."""
    measured = Measured()
    moves = measured.moves("trained")
    rng = np.random.default_rng(0)
    for size in (32, 64):
        rows: dict[tuple[str, str], list[Row]] = {}
        for chosen in draws(measured.probes, size, arguments.draws):
            flips = rng.choice(np.array([-1.0, 1.0], np.float32), (2000, size))
            for statistic, weights in STATISTICS.items():
                values = (
                    moves - np.median(moves, axis=1, keepdims=True)
                    if statistic == "median-centred"
                    else moves
                )
                truth = values.mean(axis=0)
                up, down = (
                    signed(sign * values[chosen] - math.log(1.05), flips, weights)
                    for sign in (1, -1)
                )
                found = np.stack([up[0], down[0]])
                luck = np.stack([up[1], down[1]], axis=1)
                for name, correct in CORRECTIONS.items():
                    called = correct(found, luck, size)
                    towards = np.where(called[0], truth, 0) - np.where(called[1], truth, 0)
                    rows.setdefault((statistic, name), []).append(
                        {
                            "called": int(called.any(axis=0).sum()),
                            **shares_found(towards, np.abs(truth), FACTORS[:4]),
                        }
                    )
        for (statistic, name), of in rows.items():
            yield {
                "table": f"{size} probes, smallest 1.05",
                "statistic": statistic,
                "correction": name,
                **{key: float(np.mean([row[key] for row in of])) for key in of[0]},
            }


def signed(x: np.ndarray, flips: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """sum w x / sqrt(sum (w x)^2), as measured [heads] and under flips of x [flips, heads]."""
    x = x * weights(x)
    size = np.sqrt(np.square(x).sum(axis=0))
    x = (x / np.where(size > 0, size, 1)).astype(np.float32)
    return x.sum(axis=0), flips @ x


def by_precision(x: np.ndarray) -> np.ndarray:
    """Probes in which the median head moves little weigh more."""
    scale = np.median(np.abs(x), axis=1, keepdims=True)
    return np.median(scale) / np.maximum(scale, 1e-12)


def huber(x: np.ndarray) -> np.ndarray:
    scale = 1.4826 * np.median(np.abs(x), axis=0)
    return np.minimum(1, scale / np.maximum(np.abs(x), 1e-12))


def ranks(x: np.ndarray) -> np.ndarray:
    """Wilcoxon's signed ranks."""
    order = np.abs(x).argsort(axis=0).argsort(axis=0) + 1.0
    return order / np.maximum(np.abs(x), 1e-12)


STATISTICS: dict[str, Weights] = {
    "mean": np.ones_like,
    "median-centred": np.ones_like,
    "by precision": by_precision,
    "Huber": huber,
    "ranks": ranks,
}


def single_step(found: np.ndarray, luck: np.ndarray, size: int) -> np.ndarray:
    return found > cut_of(luck.reshape(len(luck), -1).max(axis=1))


def step_down(found: np.ndarray, luck: np.ndarray, size: int) -> np.ndarray:
    """Romano and Wolf 2005."""
    named = np.zeros(found.shape, dtype=bool)
    while True:
        left = np.where(named, -np.inf, luck).reshape(len(luck), -1).max(axis=1)
        more = named | (found > cut_of(left))
        if (more == named).all():
            return named
        named = more


def cut_of(largest: np.ndarray) -> float:
    return float(np.sort(largest)[::-1][int(0.05 * (len(largest) + 1)) - 1])


def false_proportion(found: np.ndarray, luck: np.ndarray, size: int) -> np.ndarray:
    """Romano and Wolf 2007: at most a tenth of those named is false, in 95 % of cases."""
    top = -np.sort(-luck.reshape(len(luck), -1), axis=1)[:, :60]
    for k in range(1, 61):
        named = found > cut_of(top[:, k - 1])
        if named.sum() < k / 0.1 - 1:
            return named
    return named


def step_up(found: np.ndarray, size: int, penalty: float) -> np.ndarray:
    t = found * np.sqrt((size - 1) / np.maximum(size - found * found, 1e-9))
    p = np.array([1 - student_below(v, size - 1) if v > 0 else 1 for v in t.ravel().tolist()])
    order = np.argsort(p)
    good = np.flatnonzero(p[order] <= 0.05 * np.arange(1, len(p) + 1) / len(p) / penalty)
    named = np.zeros(len(p), dtype=bool)
    named[order[: good[-1] + 1 if len(good) else 0]] = True
    return named.reshape(found.shape)


def benjamini_hochberg(found: np.ndarray, luck: np.ndarray, size: int) -> np.ndarray:
    return step_up(found, size, 1)


def benjamini_yekutieli(found: np.ndarray, luck: np.ndarray, size: int) -> np.ndarray:
    return step_up(found, size, float((1 / np.arange(1, found.size + 1)).sum()))


def by_flips(found: np.ndarray, luck: np.ndarray, size: int) -> np.ndarray:
    """False discovery rate over heads, luck counted over flips."""
    cells, best = np.sort(luck.max(axis=1).ravel()), np.inf
    for number, cut in enumerate(np.sort(found.max(axis=0))[::-1], start=1):
        if (len(cells) - np.searchsorted(cells, cut)) / len(luck) <= 0.05 * number:
            best = cut
    return found >= best


CORRECTIONS = {
    "max-T": single_step,
    "max-T, step-down": step_down,
    "a tenth false, 95 %": false_proportion,
    "BY": benjamini_yekutieli,
    "BH": benjamini_hochberg,
    "FDR by flips": by_flips,
}


# -- false calls -----------------------------------------------------------------------------------


def false(arguments: argparse.Namespace) -> Iterator[Row]:
    """Whole runs in which no head moved: how many have a call? `smallest` 1, the hardest null.

    Moves are the real ones around their means: `flipped` (each probe's row times a sign, probes
    without replacement) or `skewed` (rows with replacement, as skewed as they are). A run is a
    random walk (checkpoints alike) or wanders (correlation 0.8 from one to the next).
    """
    kept = arguments.keep
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    same = {"heads": arguments.heads, "checkpoints": arguments.checkpoints, "even": arguments.even}
    courses = itertools.product(("flipped", "skewed"), ("walk", "wander"), (16, 64))
    for draw, (shape, course, size) in itertools.product(range(arguments.draws), list(courses)):
        key = {"rows": shape, "course": course, "probes": size, "draw": draw, **same}
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append(key | {"called": unmoved(**key)})
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    names = ("heads", "checkpoints", "even", "rows", "course", "probes")
    for key in sorted({tuple(row[name] for name in names) for row in rows}):
        called = [row["called"] for row in rows if tuple(row[name] for name in names) == key]
        yield {
            "table": "runs in which no head moved",
            **dict(zip(names, key, strict=True)),
            "runs": len(called),
            "runs with a call": float(np.mean(np.array(called) > 0)),
            "heads called a run": float(np.mean(called)),
        }


def unmoved(
    *, rows: str, course: str, probes: int, draw: int, heads: int, checkpoints: int, even: bool
) -> int:
    """Heads that are ever called in one such run."""
    moves = Measured().moves("trained")
    moves = moves[:, np.median(np.abs(moves), axis=0) > 0]  # those at the floor do not move
    moves = (moves - moves.mean(axis=0)) / moves.std(axis=0)
    rng = np.random.default_rng([draw, probes, rows == "skewed", course == "walk"])
    path = np.stack([innovation(rng, moves, heads, probes, rows) for _ in range(checkpoints)])
    if course == "walk":
        path = np.cumsum(path, axis=0)
    else:
        for time in range(1, checkpoints):
            path[time] = 0.8 * path[time - 1] + 0.6 * path[time]
    path = np.concatenate([np.zeros_like(path[:1]), path])
    return ever_called(path, even)


def ever_called(path: np.ndarray, even: bool) -> int:
    """Heads ever called, of log shares as drawn, which need not sum to 1."""
    with ExitStack() as stack:
        stack.enter_context(patch("sparks.timeline.growth.rule.log_shares", np.asarray))
        if not even:
            stack.enter_context(patch("sparks.timeline.growth._z", students))
        found = growth(path, np.ones(path.shape[:2]), GrowthConfig(smallest=1.0))
    return int((found.moved != 0).any(axis=0).sum())


def skewed(arguments: argparse.Namespace) -> Iterator[Row]:
    """270 unchanged heads, lognormal differences; with the correction of point 4 and without."""
    for sigma in (0.3, 0.5, 0.8):
        for size in (16, 32, 64):
            row: Row = {
                "table": "lognormal differences, nothing moved",
                "sigma": sigma,
                "probes": size,
            }
            for even in (True, False):
                rng = np.random.default_rng(7)
                called = []
                for _ in range(4 * arguments.draws):
                    noise = np.exp(sigma * rng.normal(size=(size, 270))) - math.exp(sigma**2 / 2)
                    moves = noise * rng.choice([-1, 1], 270)
                    called.append(ever_called(np.stack([np.zeros_like(moves), moves]), even))
                name = "corrected" if even else "plain t"
                row[f"runs with a call, {name}"] = float(np.mean(np.array(called) > 0))
            yield row


def students(sums: np.ndarray, cubes: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The statistic without what makes it even for skewed differences."""
    mean = sums / count.astype(sums.dtype)
    return mean * np.sqrt(count.astype(sums.dtype) / np.maximum(1 - mean * mean, 1e-4))


def innovation(
    rng: np.random.Generator, moves: np.ndarray, heads: int, probes: int, rows: str
) -> np.ndarray:
    """Moves of `heads` heads, each of one or two real ones, the same probes for all."""
    first, second = rng.integers(0, moves.shape[1], (2, heads))
    weight = rng.choice([0.0, 0.6], heads)
    mixed = (1 - weight**2) ** 0.5 * moves[:, first] + weight * moves[:, second]
    if rows == "skewed":
        return mixed[rng.integers(0, len(mixed), probes)]
    return mixed[rng.permutation(len(mixed))[:probes]] * rng.choice([-1, 1], (probes, 1))


# -- random models ---------------------------------------------------------------------------------


def random(arguments: argparse.Namespace) -> Iterator[Row]:
    """Graded changes planted at checkpoints 2 and 4 of 6; found there, before, or not."""
    from calibration import ARCHITECTURES, random_probes
    from models import tiny_model
    from planted import scaled

    from sparks.attribution.take_snapshot import take_snapshot

    config = SnapshotConfig(points=4, faithfulness=False)
    shape = {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 64}
    pool = random_probes(max(SIZES), 0)
    scores: dict[tuple[float, int], list[Row]] = {}
    losses = []
    for kind in ARCHITECTURES:
        for seed in range(4):
            model = tiny_model(kind, seed=seed, num_key_value_heads=4, **shape)
            heads = np.random.default_rng(seed).permutation(32)[: 2 * len(FACTORS)]
            at = dict(zip(heads.tolist(), (2, 4) * len(FACTORS), strict=True))
            factor = dict(zip(heads.tolist(), sorted(2 * FACTORS), strict=True))
            stages = []
            for stage in (0, 2, 4):
                scales = {divmod(h, 8): factor[h] for h in at if at[h] <= stage}
                with scaled(model, scales):
                    stages.append(take_snapshot(model, pool, config, progress=False))
            losses += [float(np.median(stages[0].loss_corrupted))]
            run = [stages[place] for place in (0, 0, 1, 1, 2, 2)]
            for smallest in SMALLEST:
                for size in SIZES:
                    scores.setdefault((smallest, size), []).append(
                        planted_in_random(run, at, factor, smallest, size)
                    )
    for (smallest, size), of in scores.items():
        yield averaged("planted in 12 random models", of, smallest, size)
    print(f"median L of the random models: {min(losses):.3g} to {max(losses):.3g} nats")


def planted_in_random(
    run: list[Snapshot],
    at: Mapping[int, int],
    factor: Mapping[int, float],
    smallest: float,
    size: int,
) -> Row:
    parts = [numbers(snapshot) for snapshot in run]
    totals, loss = (np.stack([of[name][:size] for of in parts]) for name in ("totals", "loss"))
    totals = totals.reshape(*loss.shape, -1)
    found = growth(totals, loss, GrowthConfig(smallest=smallest)).moved
    row: Row = {}
    for wanted in FACTORS:
        heads = [head for head in at if factor[head] == wanted]
        row[f"x {wanted:g}"] = float(np.mean([found[at[h], h] > 0 for h in heads]))
    row["before anything was planted"] = int((found[:2] != 0).sum())
    return row


# -- measuring -------------------------------------------------------------------------------------


def collect(arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure base, trained, rounded, jittered and planted models; goes on where it stopped."""
    from planted import scaled
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sparks.attribution.take_snapshot import take_snapshot
    from sparks.probes.probes import ProbeSet

    def load(folder: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    arguments.keep.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    probes = ProbeSet.load(arguments.probes).tokenize(tokenizer, max_suffix_tokens=16)
    models = {
        "base": load(arguments.model),
        "trained": load(arguments.trained),
        "rounded": rounded(load(arguments.model)),
        "jittered": jittered(load(arguments.model)),
        "planted": load(arguments.model),
    }
    config = SnapshotConfig(points=4, faithfulness=False)
    scales: Mapping[tuple[int, int], float] = {}
    for start in range(0, len(probes.pairs), CHUNK):
        chosen = part(probes, slice(start, start + CHUNK))
        for name, model in models.items():
            file = arguments.keep / f"{name}-{start:03d}.npz"
            if not file.exists():
                with scaled(model, scales if name == "planted" else {}):
                    measured = take_snapshot(model, chosen, config, progress=False)
                np.savez_compressed(file, **numbers(measured))
                yield {"table": "measured", "file": file.name, "seconds": measured.meta.seconds}
            if name == "base" and start == 0:
                scales = planted_heads(np.load(file)["totals"])


def rounded(model: Any) -> Any:
    """Weights rounded to bfloat16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def jittered(model: Any, rate: float = 4e-5) -> Any:
    """What one step of an optimiser like Adam does at this learning rate, in random directions."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.data = parameter.data + rate * signs
    return model


def planted_heads(totals: np.ndarray, each: int = 6) -> dict[tuple[int, int], float]:
    """`each` heads a factor, drawn from those that carry at least half of an even share.

    Args:
        totals: [probes, layers, heads].
    """
    share = totals / totals.sum(axis=(1, 2), keepdims=True)
    carrying = np.argwhere(share.mean(axis=0) * share[0].size > 0.5)
    drawn = np.random.default_rng(0).permutation(carrying)[: each * len(FACTORS)]
    return {
        (int(layer), int(head)): FACTORS[place % len(FACTORS)]
        for place, (layer, head) in enumerate(drawn)
    }


def numbers(measured: Snapshot) -> dict[str, np.ndarray]:
    """What the rules read; [probes, layers, heads] and [probes]."""
    return {
        "totals": measured.node_totals[:, measured.graph.head_sources],
        "levels": measured.levels[0],
        "loss": measured.loss_corrupted,
    }


def part(probes: Any, chosen: slice) -> Any:
    from sparks.probes.pairs import TokenizedProbes

    return TokenizedProbes(
        pairs=probes.pairs[chosen],
        ids=probes.ids[chosen],
        groups=probes.groups[chosen],
        hash=f"{probes.hash} {chosen}",
    )


def pack(arguments: argparse.Namespace) -> Iterator[Row]:
    """Write the stored file; values keep 5 to 7 bits of their fraction."""
    found = {
        name: {
            key: np.concatenate([np.load(f)[key] for f in sorted(arguments.keep.glob(f"{name}-*"))])
            for key in ("totals", "levels", "loss")
        }
        for name in ("base", *MODELS)
    }
    shares = {
        name: log_shares(of["totals"].reshape(len(of["loss"]), -1)) for name, of in found.items()
    }
    layers = found["base"]["totals"].shape[1:]
    arrays = {"base": short(shares["base"])}
    for name, of in found.items():
        arrays[f"{name}_loss"] = of["loss"].astype(np.float16)
        if name != "base":
            lost = 5 if name in ("rounded", "jittered") else 3
            arrays[f"{name}_moves"] = short(shares[name] - shares["base"], lost)
        if name in ("base", "trained", "planted"):
            arrays[f"{name}_levels"] = of["levels"].reshape(len(of["loss"]), -1)
    factors = np.ones(layers)
    for head, factor in planted_heads(np.load(arguments.keep / "base-000.npz")["totals"]).items():
        factors[head] = factor
    arrays["planted_factors"] = factors.ravel()
    np.savez_compressed(STORED, **arrays)
    yield {"table": "stored", "file": STORED.name, "bytes": STORED.stat().st_size}


def short(values: np.ndarray, lost: int = 3) -> np.ndarray:
    """float16 without the last `lost` of 10 bits of the fraction, which compresses."""
    bits = values.astype(np.float16).view(np.uint16).astype(np.int64)
    bits = (bits + (1 << lost >> 1)) >> lost << lost
    return bits.astype(np.uint16).view(np.float16)


PARTS = {
    "power": power,
    "noise": noise,
    "halves": halves,
    "compare": compare,
    "false": false,
    "skewed": skewed,
    "random": random,
    "collect": collect,
    "pack": pack,
}

if __name__ == "__main__":
    main()
