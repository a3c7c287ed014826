"""The numbers of a study: each regime over its seeds, and whether the paper's claim holds there.

    python recipes/study_table.py runs/study-tiny

Reads FOLDER/REGIME-seedN, whatever is there so far, by the rule of growth and by the paper's, and
writes into FOLDER:

    study.csv     a row a run and rule: every number of `regime_tables.regime_row`, the ends of
                  the curves, births that the control probes share, those of an unchanged model
    study.json    the same, with the spread over seeds and the sentences
    study.md      the table that is printed

A claim is taken as holding for a regime where more than half of its seeds show it; it fails where
more than half show the opposite; all else is undecided. `recipes/study.sh` makes the runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sparks import SparksError, Timeline
from sparks.ground.csv_text import csv_text
from sparks.ground.files import write_atomically
from sparks.timeline.nulls import exceeds, null_of
from sparks.timeline.regimes.tables import regime_row, spread
from sparks.timeline.timeline import RULE_NAMES, RULES, Rule

NAMES = {"sft": "SFT", "distill": "distillation", "grpo": "GRPO"}
CLAIMED = {"sft": "accumulates", "distill": "accumulates", "grpo": "searches"}
"""What the paper says of each regime."""
OPPOSITE = {"accumulates": "searches", "searches": "accumulates"}

SHOWN = {
    "births": "births",
    "kept": "born heads active at the end",
    "null_high": "the same of an unchanged model, at most",
    "survival": "survival of births",
    "half_life": "half-life, steps",
    "turnover": "turnover of emergent heads",
    "growth_rho": "rise of emergent heads (rho)",
    "lost": "base heads lost",
    "retained": "base heads retained, share",
    "reward_rho": "active heads with reward (rho)",
    "loss_rho": "active heads with loss (rho)",
    "depth": "depth of births",
    "circuit_growth": "heads that a circuit gained",
    "edges_turnover": "turnover of edges",
    "edges_stability": "agreement of probes, edges",
    "open_share": "heads left undecided, share",
    "births_specific": "births not shared by the control",
    "births_shared": "births shared by the control",
    "reward_first": "reward, first tenth",
    "reward_last": "reward, last tenth",
    "loss_last": "loss, last tenth",
}
"""Numbers of the printed table; the files hold all."""

_RUN = re.compile(r"(sft|distill|grpo)-seed(\d+)")


@dataclass(frozen=True)
class Study:
    """Rows of the runs, and where they come from."""

    rows: pd.DataFrame
    """A row a run and rule; columns rule, regime, seed, and the numbers."""

    def of(self, rule: Rule, regime: str) -> pd.DataFrame:
        """The runs of a regime by a rule, in order of seed."""
        rows = self.rows
        return rows[(rows["rule"] == rule) & (rows["regime"] == regime)].sort_values("seed")

    def regimes(self) -> list[str]:
        """Those that have a run, in the paper's order."""
        return [regime for regime in NAMES if regime in set(self.rows["regime"])]

    def sentences(self, rule: Rule) -> list[str]:
        """What the verdicts say about the paper's claim, and what the numbers say beside them."""
        regimes = self.regimes()
        counted = "; ".join(self._counted(rule, regime) for regime in regimes)
        lines = [f"By the {RULE_NAMES[rule]}: {counted}.", self._claim(rule)]
        return [*lines, *self._beyond(rule), *self._compared(rule), *self._learnt(rule)]

    def _counted(self, rule: Rule, regime: str) -> str:
        verdicts = Counter(self.of(rule, regime)["verdict"])
        claimed = CLAIMED[regime]
        others = [f"{name} in {n}" for name, n in verdicts.most_common() if name != claimed]
        seen = f"{NAMES[regime]} {claimed} in {verdicts[claimed]} of {verdicts.total()} seeds"
        return f"{seen} ({', '.join(others)})" if others else seen

    def holds(self, rule: Rule, regime: str) -> bool | None:
        """Whether most seeds show what the paper says, or the opposite; None where neither."""
        verdicts = Counter(self.of(rule, regime)["verdict"])
        claimed = CLAIMED[regime]
        if 2 * verdicts[claimed] > verdicts.total():
            return True
        return False if 2 * verdicts[OPPOSITE[claimed]] > verdicts.total() else None

    def _claim(self, rule: Rule) -> str:
        claim = (
            "The paper's claim (SFT and distillation accumulate, GRPO turns over with the reward)"
        )
        if missing := [NAMES[regime] for regime in NAMES if regime not in self.regimes()]:
            return f"{claim} cannot be judged yet: no run of {', '.join(missing)}."
        found = {regime: self.holds(rule, regime) for regime in NAMES}
        if failing := [NAMES[regime] for regime, held in found.items() if held is False]:
            return f"{claim} does not hold here: not for {', '.join(failing)}."
        if all(found.values()):
            return f"{claim} holds here."
        open_ones = [NAMES[regime] for regime, held in found.items() if held is None]
        return f"{claim} is undecided here: most seeds of {', '.join(open_ones)} show neither."

    def _beyond(self, rule: Rule) -> Iterator[str]:
        """Whether there are more births than where nothing was trained."""
        found = {regime: self.of(rule, regime)["beyond_null"].dropna() for regime in self.regimes()}
        counts = [f"{NAMES[name]} {int(sum(rows))} of {len(rows)}" for name, rows in found.items()]
        yield (
            "More born heads at the end than an unchanged model measured with other probes shows, "
            f"in seeds: {', '.join(counts)}."
        )

    def _compared(self, rule: Rule) -> Iterator[str]:
        """Whether the seeds of GRPO and of the others lie apart, in the numbers of the claim."""
        for number, more in (("turnover", "turns over more"), ("kept", "keeps more born heads")):
            searched = self.of(rule, "grpo")[number].dropna()
            for regime in ("sft", "distill"):
                others = self.of(rule, regime)[number].dropna()
                if len(searched) and len(others):
                    yield _apart(NAMES[regime], others, searched, more)

    def _learnt(self, rule: Rule) -> Iterator[str]:
        """GRPO that has learnt nothing tells nothing."""
        rows = self.of(rule, "grpo").dropna(subset=["reward_first", "reward_last"])
        if not len(rows):
            return
        risen = int((rows["reward_last"] > rows["reward_first"]).sum())
        yield (
            f"GRPO's reward went from {rows['reward_first'].mean():.2f} to "
            f"{rows['reward_last'].mean():.2f} (means over seeds; higher at the end in {risen} of "
            f"{len(rows)})."
        )


def _apart(name: str, others: pd.Series, searched: pd.Series, more: str) -> str:
    if searched.min() > others.max():
        return f"GRPO {more} than {name}: its lowest seed lies above the highest of {name}."
    if searched.max() < others.min():
        return f"{name} {more} than GRPO: its lowest seed lies above the highest of GRPO."
    return f"Neither of {name} and GRPO {more}: their seeds overlap."


# -- reading ---------------------------------------------------------------------------------------


def read_study(folder: Path) -> Study:
    """The runs of a study.

    Raises:
        SparksError: there is none, or one cannot be read.
    """
    found = [
        (match[1], int(match[2]), path)
        for path in sorted(folder.glob("*-seed*"))
        if (match := _RUN.fullmatch(path.name)) and (path / "sparks").is_dir()
    ]
    if not found:
        raise SparksError(f"{folder}: no runs such as sft-seed0: recipes/study.sh makes them")
    rows = [row for regime, seed, path in found for row in _rows(regime, seed, path)]
    return Study(pd.DataFrame(rows))


def _rows(regime: str, seed: int, path: Path) -> Iterator[dict[str, Any]]:
    timeline = Timeline.from_run(path)
    for rule in RULES:
        read = timeline.by(rule)
        row = regime_row(read) | _curves(read) | _controls(read) | _null(read)
        row |= {"rule": rule, "regime": regime, "seed": seed}
        row |= {"finished": (path / ".done").is_file(), "open_share": float(read.undecided.mean())}
        yield row


def _curves(timeline: Timeline) -> dict[str, float]:
    """Means of the first and last tenth of what was logged of reward and loss."""
    curves = timeline.metrics()
    ends = {}
    for name in ("reward", "loss"):
        values = curves[name].dropna() if name in curves.columns else curves.index.to_series()[:0]
        tenth = math.ceil(len(values) / 10)
        ends[f"{name}_first"] = float(values.iloc[:tenth].mean())
        ends[f"{name}_last"] = float(values.iloc[len(values) - tenth :].mean())
    return ends


def _controls(timeline: Timeline) -> dict[str, float]:
    """Births by what the control probes say of them; NaN where there are none."""
    found = Counter(timeline.specificity().ravel())
    kinds = ("specific", "shared")
    if timeline.control is None:
        return {f"births_{kind}": math.nan for kind in kinds}
    return {f"births_{kind}": float(found[kind]) for kind in kinds}


def _null(timeline: Timeline) -> dict[str, float]:
    """Emergent heads where nothing was trained: upper end, and 1 where there are more of them."""
    if (band := null_of(timeline)) is None:
        return {"null_high": math.nan, "beyond_null": math.nan}
    return {"null_high": band.births_high, "beyond_null": float(exceeds(timeline, band))}


# -- writing ---------------------------------------------------------------------------------------


def table(study: Study, rule: Rule) -> list[list[str]]:
    """Rows of text: a name and a cell a regime, mean and range over seeds; the head first."""
    regimes = study.regimes()
    head = [""] + [f"{NAMES[regime]} ({len(study.of(rule, regime))})" for regime in regimes]
    rows = [
        [SHOWN[name], *(_cell(study.of(rule, regime)[name]) for regime in regimes)]
        for name in SHOWN
    ]
    counts = (Counter(study.of(rule, regime)["verdict"]) for regime in regimes)
    verdicts = [", ".join(f"{name} {n}" for name, n in count.most_common()) for count in counts]
    return [head, ["verdict, seeds", *verdicts], *rows]


def _cell(values: pd.Series) -> str:
    known = values.dropna()
    if not len(known):
        return "-"
    mean, low, high = (_number(float(value)) for value in (known.mean(), known.min(), known.max()))
    missing = f" in {len(known)}" if len(known) < len(values) else ""
    return f"{mean} ({low} to {high}){missing}" if low != high else f"{mean}{missing}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"


def markdown(study: Study) -> str:
    """The page: sentences, table and reasons by the rule of growth, then by the paper's."""
    unfinished = study.rows.loc[~study.rows["finished"], ["regime", "seed"]].drop_duplicates()
    parts = ["# SFT, distillation and GRPO from one base\n"]
    if len(unfinished):
        names = ", ".join(f"{regime}-seed{seed}" for regime, seed in unfinished.values.tolist())
        parts.append(f"Not finished, counted as they are: {names}.\n")
    for rule in RULES:
        parts.append(f"## {RULE_NAMES[rule].capitalize()}\n")
        parts += [f"- {line}" for line in study.sentences(rule)]
        parts.append("\nMean over seeds (lowest to highest):\n")
        head, *rows = table(study, rule)
        lines = [head, ["---"] * len(head), *rows]
        parts += [f"| {' | '.join(line)} |" for line in lines]
        parts.append("")
        parts += _reasons(study, rule)
    return "\n".join(parts)


def _reasons(study: Study, rule: Rule) -> list[str]:
    """Why runs are undecided, runs of one reason together."""
    rows = study.rows[(study.rows["rule"] == rule) & (study.rows["reason"] != "")]
    reasons = [
        (str(reason), f"{regime}-seed{seed}")
        for reason, regime, seed in rows[["reason", "regime", "seed"]].values.tolist()
    ]
    lines = [
        f"- {', '.join(name for _, name in same)}: {reason}"
        for reason, same in itertools.groupby(sorted(reasons), key=lambda item: item[0])
    ]
    return ["Undecided, because:\n", *lines, ""] if lines else []


def as_json(study: Study) -> str:
    """Rows, spread over seeds and sentences; numbers that are none are null."""
    rows = json.loads(study.rows.to_json(orient="records", double_precision=15))
    found: dict[str, Any] = {"runs": rows}
    for rule in RULES:
        of_rule = study.rows[study.rows["rule"] == rule].drop(columns=["seed"])
        summary = spread(of_rule, "regime")
        found[rule] = {
            "sentences": study.sentences(rule),
            "claim_holds": {regime: study.holds(rule, regime) for regime in study.regimes()},
            "spread": json.loads(summary.to_json(orient="records", double_precision=15)),
        }
    return json.dumps(found, indent=1) + "\n"


def plain(study: Study) -> str:
    """Sentences and table by the rule of growth, and the paper's verdicts, for the terminal."""
    lines = table(study, "growth")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *study.sentences("growth"), "", *study.sentences("paper")[:2]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of recipes/study.sh")
    folder = parser.parse_args(arguments).folder
    try:
        study = read_study(folder)
        write_atomically(folder / "study.csv", csv_text(study.rows))
        write_atomically(folder / "study.json", as_json(study))
        write_atomically(folder / "study.md", markdown(study))
    except SparksError as error:
        sys.exit(f"study_table.py: error: {error}")
    print(plain(study))


if __name__ == "__main__":
    main()
