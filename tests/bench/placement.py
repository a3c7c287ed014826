"""Where points on the path are best placed: midpoints, or strata chosen by a forward-only pilot.

    python tests/bench/placement.py --model .cache/smollm2-135m-instruct --keep FOLDER

Edge scores, L and dL/dalpha of each probe are measured at `--points` midpoints (kept in FOLDER);
their mean is the reference, other points are interpolated. Every rule gets the cost of m points, a
forward alone being `FORWARD` of one. `pilot`: m/2 forwards, then strata of equal |dL|; `root`: six,
then equal sqrt |dL| with `EVEN` of evenness; `split`: the stratum in which w dL/dalpha is furthest
from the change of L is cut in three, again and again (L at borders is not paid for: a bound).
`grow`: m triples until the completeness gap is under a tolerance. Error: ||found - reference|| /
||reference|| over edges; rank: Spearman over heads. Means over probes. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.attribution.batches import Schedule
from sparks.attribution.head_gradients import AttentionReader
from sparks.attribution.model_runs import GRADIENT_SCALE
from sparks.attribution.path_sums import EdgeSums
from sparks.ground.config import SnapshotConfig
from sparks.models.guard import undisturbed
from sparks.probes.probes import ProbeSet

FORWARD = 0.45  # CPU time of a row's forward by that of its forward, backward and reading: measured
EVEN = 0.3


class Watched(EdgeSums):
    def _read(self, trace, grads):
        clean, found = self.ends.p_clean, trace.logits.detach().float().log_softmax(-1)
        self.loss = float((clean * (clean.log() - found)).nansum(-1).mean())
        super()._read(trace, grads)


def measure(work, readers, index, points):
    """Scores [points, edges], L and dL/dalpha (negated) at each point, and L at alpha = 0."""
    passes, ends = work.prepare([index])
    scores, losses, slopes = [], [], []
    for k in range(points):
        run = Watched(work.anatomy, readers, passes, ends, work.budget)
        run.add([(k + 0.5) / points])
        scores.append(run.result().scores[0].numpy()[work.anatomy.graph.edge_mask])
        losses.append(run.loss)
        slopes.append(float(run._embed_total()) / GRADIENT_SCALE)
    return {"E": np.stack(scores), "L": losses, "F": slopes, "loss": float(ends.loss_corrupted)}


class Probe:
    def __init__(self, kept, heads):
        self.scores, self.slopes, self.heads = kept["E"], np.asarray(kept["F"]), heads
        self.start = kept["loss"].item()
        self.losses = np.asarray(kept["L"])
        self.reference = self.scores.mean(0)

    def mean(self, values, borders):
        place = np.clip((borders[1:] + borders[:-1]) / 2 * len(values) - 0.5, 0, len(values) - 1)
        low = np.minimum(place.astype(int), len(values) - 2)
        share, width = place - low, np.diff(borders)
        return (width * (1 - share)) @ values[low] + (width * share) @ values[low + 1]

    def loss(self, alphas):
        grid = (np.arange(len(self.losses)) + 0.5) / len(self.losses)
        return np.interp(alphas, [0, *grid, 1], [self.start, *self.losses, 0])

    def gap(self, borders):
        return abs(self.mean(self.slopes, borders) - self.start) / self.start

    def error(self, borders):
        found = self.mean(self.scores, borders)
        return np.linalg.norm(found - self.reference) / np.linalg.norm(self.reference)

    def rank(self, borders):
        found = self.mean(self.scores, borders)
        both = [np.bincount(self.heads, np.abs(v))[1:] for v in (found, self.reference)]
        return np.corrcoef([v.argsort().argsort() for v in both])[0, 1]

    def midpoint(self, m):
        return np.linspace(0, 1, m + 1)

    def pilot(self, m):
        return self._equal(m, m // 2, 1.0, 0.0)

    def root(self, m):
        return self._equal(m, 6, 0.5, EVEN)

    def _equal(self, m, forwards, power, even):
        grid = np.linspace(0, 1, forwards + 2)
        moved = np.abs(np.diff(self.loss(grid))) ** power
        mass = (1 - even) * moved / moved.sum() + even / len(moved)
        steps = max(2, int(m - FORWARD * forwards))
        return np.interp(self.midpoint(steps) * mass.sum(), np.cumsum([0, *mass]), grid)

    def split(self, m):
        borders = self.midpoint(max(4, m // 3))
        while len(borders) + 1 <= m:
            pairs = [borders[k : k + 2] for k in range(len(borders) - 1)]
            off = [abs(self.mean(self.slopes, b) + np.diff(self.loss(b))[0]) for b in pairs]
            worst = int(np.argmax(off))
            borders = np.insert(borders, worst + 1, np.linspace(*pairs[worst], 4)[1:3])
        return borders

    def grow(self, m, tolerance, most):
        while self.gap(self.midpoint(m)) > tolerance and 3 * m <= most:
            m *= 3
        return m


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", default=".cache/reasoning/probes-64-12.jsonl")
    parser.add_argument("--indices", type=int, nargs="+", default=range(8))
    parser.add_argument("--points", type=int, default=972, help="of the reference")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 12, 20, 32, 48, 100])
    parser.add_argument("--keep", type=Path, required=True, help="folder, 0.3 GB a probe")
    arguments = parser.parse_args()
    print(json.dumps(table(read(arguments), arguments)))


def read(arguments):
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    probes = ProbeSet.load(arguments.probes)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = probes.tokenize(tokenizer, max_suffix_tokens=16).pairs
    with undisturbed(model):
        work = Schedule(model, pairs, SnapshotConfig(points=40))
        readers = [AttentionReader.of(layer) for layer in work.anatomy.layers]
        for index in arguments.indices:
            path = arguments.keep / f"fine-{arguments.points}-{index}.npz"
            if not path.exists():
                arguments.keep.mkdir(parents=True, exist_ok=True)
                np.savez(path, **measure(work, readers, index, arguments.points))
            heads = np.zeros(work.anatomy.graph.num_sources, int)
            order = work.anatomy.graph.head_sources.ravel()
            heads[order] = np.arange(1, len(order) + 1)
            yield Probe(np.load(path), heads[np.nonzero(work.anatomy.graph.edge_mask)[0]])


def table(probes, arguments):
    rules = ("midpoint", "pilot", "root", "split")
    found = {(m, rule): [] for m in arguments.steps for rule in rules}
    grown = {tolerance: [] for tolerance in (0.1, 0.05, 0.02, 0.01)}
    for probe in probes:
        for m, rule in found:
            borders = getattr(probe, rule)(m)
            found[m, rule].append([probe.error(borders), probe.rank(borders), probe.gap(borders)])
        for tolerance in grown:
            m = probe.grow(12, tolerance, 324)
            grown[tolerance].append(
                [m, probe.gap(probe.midpoint(m)), probe.error(probe.midpoint(m))]
            )
    means = {key: np.mean(rows, axis=0) for key, rows in found.items()}
    worst = {m: np.max(found[m, "midpoint"], axis=0)[[2, 0]] for m in arguments.steps}
    print("m   " + "".join(f"{rule:>18}" for rule in rules) + "   worst gap, error (midpoint)")
    for m in arguments.steps:
        cells = "".join(f"{means[m, r][0]:>11.4f} {means[m, r][1]:.4f}" for r in rules)
        print(f"{m:<4}{cells}   {worst[m][0]:.4f} {worst[m][1]:.4f}")
    rows = {t: [np.mean(g, 0)[0], *np.max(g, 0)[:3]] for t, g in grown.items()}
    for tolerance, (points, most, gap, error) in rows.items():
        print(
            f"tolerance {tolerance}: {points:.1f} points a probe, most {most:.0f}; "
            f"worst gap {gap:.4f}, error {error:.4f}"
        )
    errors = {f"{r} {m}": round(float(v[0]), 5) for (m, r), v in means.items()}
    return {
        "benchmark": "placement",
        "error": errors,
        "grown": {str(t): [round(float(v), 4) for v in row] for t, row in rows.items()},
    }


if __name__ == "__main__":
    main()
