"""Which heads that one run names grown or shrunk moved the same way on other probes.

    python recipes/held_out.py runs/quickstart runs/quickstart/held-out

Both runs measured the same checkpoints; the second on probes that played no part in the calls.
"""

from __future__ import annotations

import argparse

import numpy as np

from sparks import Timeline


def main() -> None:
    """Hold the calls of the last checkpoint that both have against the second run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="whose calls are held against the other one")
    parser.add_argument("held_out", help="the same checkpoints, other probes")
    arguments = parser.parse_args()
    run, other = (Timeline.from_run(path) for path in (arguments.run, arguments.held_out))
    step = max(set(run.steps.tolist()) & set(other.steps.tolist()))
    called, found = (one.growth(one.steps.tolist().index(step)) for one in (run, other))
    for verdict, sign in (("grew", 1), ("shrank", -1)):
        chosen = (called["verdict"] == verdict).to_numpy()
        factor, low, high = (
            np.log(found[name].to_numpy()[chosen])
            for name in ("factor", "factor_low", "factor_high")
        )
        same = int((sign * factor > 0).sum())
        beyond = int((np.where(sign > 0, low, -high) > 0).sum())
        print(
            f"{verdict}: {chosen.sum()} heads by step {step}; on {other.num_probes} held-out "
            f"probes {same} moved the same way, {beyond} of them beyond noise (95 % each)"
        )


if __name__ == "__main__":
    main()
