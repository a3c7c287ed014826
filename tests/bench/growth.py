"""What growing m costs beside the same m for every probe: points, CPU time, gap, error.

    python tests/bench/growth.py --model .cache/smollm2-135m-instruct

Errors are against `--reference` points, ||found - reference|| / ||reference|| over all edges, the
worst probe's. The last line is JSON, an entry a setting.
"""

import argparse
import json
import time

from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.attribution.eap_ig import edge_attribution
from sparks.probes.probes import ProbeSet

SETTINGS = [
    {"points": 32},
    {"tolerance": 0.05},
    {"tolerance": 0.05, "rule": "pilot"},
    {"tolerance": 0.02},
    {"tolerance": 0.02, "rule": "pilot"},
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", default=".cache/reasoning/probes-64-12.jsonl")
    parser.add_argument("--reference", type=int, default=100)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = ProbeSet.load(arguments.probes).tokenize(tokenizer, max_suffix_tokens=16).pairs
    edge_attribution(model, pairs[:1], points=2)  # checks the model, once
    exact, row = measure(model, pairs, {"points": arguments.reference})
    rows = [row]
    print(row)
    for settings in SETTINGS:
        found, row = measure(model, pairs, settings)
        error = (found.scores - exact.scores).flatten(1).norm(dim=1)
        row["worst_error"] = round(float((error / exact.scores.flatten(1).norm(dim=1)).max()), 4)
        rows.append(row)
        print(row)
    print(json.dumps(rows))


def measure(model, pairs, settings):
    start = time.process_time()
    found = edge_attribution(model, pairs, **settings)
    return found, {
        "benchmark": "growth",
        **settings,
        "cpu_seconds": round(time.process_time() - start, 1),
        "points": int(found.points.sum()),
        "most_points": int(found.points.max()),
        "median_gap": round(float(found.completeness_gap.median()), 4),
        "worst_gap": round(float(found.completeness_gap.max()), 4),
    }


if __name__ == "__main__":
    main()
