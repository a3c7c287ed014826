"""A finished run in Python: what happened to its heads, as pandas frames. Needs no torch.

    python examples/analyse_run.py runs/sft

RUN is a run folder, or the output folder of a trainer that had the callback.
"""

from __future__ import annotations

import argparse

from sparks import Timeline


def main() -> None:
    """Print checkpoints, births beyond luck, cohorts and the strongest heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder, or a trainer's output folder")
    parser.add_argument("--top", type=int, default=5, help="heads to list (default: 5)")
    arguments = parser.parse_args()

    timeline = Timeline.from_run(arguments.run)
    for problem in timeline.problems:  # damaged files, and what weakens the numbers
        print("note:", problem)

    print(f"{len(timeline)} checkpoints, {timeline.num_probes} probes, {timeline.rule} rule")
    counts = timeline.counts()
    shown = ["step", "active", "undecided", "emergent", "retained", "born", "pruned"]
    print(counts[shown].to_string(index=False))

    events = timeline.events()
    births = events[events.kind == "born"]
    print(f"\n{len(births)} births")
    print(
        births[["step", "onset", "head", "share", "share_low", "importance"]]
        .head(arguments.top)
        .to_string(index=False)
    )

    print("\nactive heads of each cohort (column: step of its first emergence)")
    print(timeline.cohorts().to_string())

    # Frames join on the step: here, the number of emergent heads beside the trainer's loss.
    metrics = timeline.metrics()
    if "loss" in metrics:
        joined = counts.set_index("step").join(metrics["loss"])
        print("\nemergent heads and loss")
        print(joined[["emergent", "loss"]].to_string())

    strongest = timeline.heads().nlargest(arguments.top, "importance_last")
    print(f"\n{len(strongest)} strongest heads at step {timeline.steps[-1]}")
    print(strongest[["head", "base", "importance_first", "importance_last"]].to_string(index=False))


if __name__ == "__main__":
    main()
