"""The study: what it runs, skips and takes up again, and what its table says."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import make_run, make_snapshot, write_run
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes"))

import study_table
from study_table import CLAIMED, SHOWN, Study, markdown, plain, read_study

from sparks import SparksError, Timeline
from sparks.timeline.regimes.tables import regime_row

# -- the command -----------------------------------------------------------------------------------

STAND_IN = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
name, given = Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *given]) + "\\n")
if name == "accelerate":
    run = Path(given[given.index("--output_dir") + 1])
    run.mkdir(parents=True, exist_ok=True)
    if run.name == os.environ.get("STOPS_AT"):
        sys.exit(9)
"""


class Commands:
    """`study.sh` with stand-ins for python, accelerate and sparks, which write down their calls."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "study"
        self._calls = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in ("python", "accelerate", "sparks"):
            path = self._bin / name
            path.write_text(STAND_IN.replace("/usr/bin/env python3", sys.executable))
            path.chmod(0o755)

    def study(self, *arguments: str, stops_at: str = "") -> subprocess.CompletedProcess[str]:
        """Run it in its own folder."""
        self._calls.write_text("")
        own = {"SPARKS_VENV": "none", "CALLS": str(self._calls), "STOPS_AT": stops_at}
        return subprocess.run(
            ["bash", str(ROOT / "recipes/study.sh"), "--output", str(self.output), *arguments],
            env=os.environ | own | {"PATH": f"{self._bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, name: str) -> list[list[str]]:
        """What was given to a command, call by call."""
        rows = [json.loads(line) for line in self._calls.read_text().splitlines()]
        return [rest for first, *rest in rows if first == name]

    def trained(self) -> list[str]:
        """Names of the runs that were started."""
        return [Path(option(call, "output_dir")).name for call in self.calls("accelerate")]


def option(call: list[str], name: str) -> str:
    """What counts: the last value given."""
    return call[len(call) - call[::-1].index(f"--{name}")]


ALL = [f"{regime}-seed{seed}" for seed in (0, 1) for regime in ("sft", "distill", "grpo")]


def test_every_seed_and_regime_from_one_base_with_one_file_of_probes(tmp_path):
    commands = Commands(tmp_path)
    done = commands.study("--seeds", "0 1", "--probe_count", "32")
    assert done.returncode == 0, done.stderr
    assert commands.trained() == ["teacher", *ALL]
    teacher, *runs = commands.calls("accelerate")
    shared = {
        tuple(option(call, name) for name in ("model_name_or_path", "sparks_probes", "probe_count"))
        for call in runs
    }
    assert shared == {(".cache/tiny/base", f"{commands.output}/probes.jsonl", "32")}
    assert option(teacher, "model_name_or_path") == ".cache/tiny/large"
    for name, call in zip(ALL, runs, strict=True):
        regime, seed = name.split("-seed")
        assert f"recipes/{regime}.py" in call
        assert option(call, "config") == f"recipes/configs/{regime}-tiny.yaml"
        assert option(call, "seed") == seed
        assert option(call, "resume_from_checkpoint") == "true"
        snapshots = int(option(call, "max_steps")) / int(option(call, "sparks_every_n_steps"))
        assert 10 <= snapshots <= 20
        teachers = [f"{commands.output}/teacher"] if regime == "distill" else []
        assert teachers == [
            given for before, given in itertools.pairwise(call) if "teacher_m" in before
        ]
    assert commands.calls("python")[-1] == ["recipes/study_table.py", str(commands.output)]
    (report,) = commands.calls("sparks")
    assert {Path(item).name for item in report} >= set(ALL)
    assert re.findall(r"\d of 6 runs done", done.stdout) == [
        f"{n} of 6 runs done" for n in range(7)
    ]


def test_what_is_done_is_skipped_and_what_was_stopped_is_started_again(tmp_path):
    commands = Commands(tmp_path)
    stopped = commands.study("--seeds", "0 1", stops_at="grpo-seed0")
    assert stopped.returncode == 9
    assert commands.trained() == ["teacher", "sft-seed0", "distill-seed0", "grpo-seed0"]
    assert commands.calls("sparks") == []
    again = commands.study("--seeds", "0 1")
    assert commands.trained() == ALL[2:]
    assert f"{commands.output}/sft-seed0: already trained" in again.stdout
    commands.study("--seeds", "0 1 2")  # more seeds, later
    assert commands.trained() == [f"{regime}-seed2" for regime in ("sft", "distill", "grpo")]
    commands.study("--seeds", "0", "--fresh")
    assert commands.trained() == ["teacher", *ALL[:3]]


def test_the_time_that_is_left_is_told_from_the_runs_that_are_done(tmp_path):
    commands = Commands(tmp_path)
    commands.study("--seeds", "0 1", stops_at="grpo-seed0")
    for name, seconds in (("sft-seed0", 400), ("distill-seed0", 500)):
        (commands.output / name / ".done").write_text(f"{seconds}\n")
    told = commands.study("--seeds", "0 1", stops_at="grpo-seed0").stdout
    # 100 s a unit of weight (4 + 5); left are 10 + 4 + 5 + 10.
    assert "== grpo, seed 0: 2 of 6 runs done, about 49 min left" in told


def test_the_larger_model_learns_from_its_own_first_fine_tuning(tmp_path):
    commands = Commands(tmp_path)
    commands.study("--seeds", "3 4", "--size", "smollm2-135m", "--short")
    assert commands.trained()[0] == "sft-seed3"
    teachers = {
        option(call, "teacher_model_name_or_path")
        for call in commands.calls("accelerate")
        if "recipes/distill.py" in call
    }
    assert teachers == {f"{commands.output}/sft-seed3"}
    assert {option(call, "max_steps") for call in commands.calls("accelerate")} == {"4"}


def test_the_study_says_what_it_does_and_what_it_does_not_know(tmp_path):
    commands = Commands(tmp_path)
    told = commands.study("--help")
    assert told.returncode == 0
    assert told.stdout.startswith("usage: bash recipes/study.sh [--size tiny|smollm2-135m]")
    for arguments, line in (
        (("--size", "huge"), "study.sh: --size must be tiny or smollm2-135m, got 'huge'\n"),
        (("--seeds", "0 one"), "study.sh: --seeds must be whole numbers, got 'one'\n"),
    ):
        wrong = commands.study(*arguments)
        assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", line)
    assert not commands.output.exists()


# -- the table -------------------------------------------------------------------------------------


def verdicts(sft: str, distill: str, grpo: str) -> Study:
    """A study of these verdicts, a letter a seed: a accumulates, s searches, u undecided."""
    names = {"a": "accumulates", "s": "searches", "u": "undecided"}
    rows = [
        {"regime": regime, "seed": seed, "verdict": names[letter]}
        | {name: float(seed) for name in SHOWN}
        | {"beyond_null": float(seed > 0)}
        | {"reason": "", "finished": True, "rule": "growth"}
        for regime, letters in zip(CLAIMED, (sft, distill, grpo), strict=True)
        for seed, letter in enumerate(letters)
    ]
    return Study(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("letters", "sentence"),
    [
        (("aaa", "aau", "sss"), "holds here."),
        (("aaa", "aaa", "aas"), "does not hold here: not for GRPO."),
        (("sss", "aaa", "aaa"), "does not hold here: not for SFT, GRPO."),
        (("aaa", "aaa", "suu"), "is undecided here: most seeds of GRPO show neither."),
        (("uuu", "asu", "sss"), "is undecided here: most seeds of SFT, distillation show neither."),
        (("aaa", "", "sss"), "cannot be judged yet: no run of distillation."),
        (("aa", "as", "ss"), "is undecided here: most seeds of distillation show neither."),
    ],
)
def test_the_claim_follows_the_verdicts(letters, sentence):
    counted, claim, *_ = verdicts(*letters).sentences("growth")
    assert claim.endswith(sentence)
    assert claim.startswith("The paper's claim (SFT and distillation accumulate, GRPO turns over")
    seen = [int(n) for n in re.findall(r"in (\d) of", counted)]
    wanted = [item.count(one) for item, one in zip(letters, "aas", strict=True) if item]
    assert seen == wanted


def test_sentences_tell_all_verdicts_and_whether_seeds_lie_apart():
    study = verdicts("aau", "aaa", "sss")
    rows = study.rows
    rows.loc[rows["regime"] == "grpo", "turnover"] += 10
    rows.loc[rows["regime"] == "distill", "kept"] += 10
    first, _, *rest = study.sentences("growth")
    assert first == (
        "By the rule of growth: SFT accumulates in 2 of 3 seeds (undecided in 1); distillation "
        "accumulates in 3 of 3 seeds; GRPO searches in 3 of 3 seeds."
    )
    assert (
        "More born heads at the end than an unchanged model measured with other probes shows, in "
        "seeds: SFT 2 of 3, distillation 2 of 3, GRPO 2 of 3."
    ) in rest
    assert "GRPO turns over more than SFT: its lowest seed lies above the highest of SFT." in rest
    assert "Neither of SFT and GRPO keeps more born heads: their seeds overlap." in rest
    assert (
        "distillation keeps more born heads than GRPO: its lowest seed lies above the highest of "
        "GRPO."
    ) in rest


HEADS = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]


def stays(births: int) -> dict[int, list[str]]:
    """Two base heads, and a birth a checkpoint."""
    return {10 * time: HEADS[: 2 + min(time, births)] for time in range(7)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two seeds of SFT with 4 and 6 births, one run of GRPO with none, which goes on."""
    steps = [10 * time + 5 for time in range(6)]
    rewards = [{"step": step, "loss": 1.0, "reward": step / 10} for step in steps]
    losses = [{"step": step, "loss": 100.0 - step} for step in steps]
    groups = ["sum"] * 12 + ["control"] * 12
    for name, births, log in (
        ("sft-seed0", 4, losses),
        ("sft-seed1", 6, losses),
        ("grpo-seed0", 0, rewards),
    ):
        run = make_run(stays(births), probes=24, groups=groups)
        write_run(tmp_path / name / "sparks", run, log)
        if name != "grpo-seed0":
            (tmp_path / name / ".done").write_text("10\n")
    (tmp_path / "distill-seed0").mkdir()  # begun, nothing measured yet
    (tmp_path / "teacher" / "sparks").mkdir(parents=True)
    return tmp_path


def test_runs_are_read_by_both_rules_with_the_ends_of_their_curves(folder):
    study = read_study(folder)
    rows = study.rows.set_index(["rule", "regime", "seed"])
    assert len(rows) == 2 * 3
    assert study.regimes() == ["sft", "grpo"]
    paper = rows.loc["paper"]
    assert paper["births"].to_dict() == {("sft", 0): 4, ("sft", 1): 6, ("grpo", 0): 0}
    # A head born on all probes is born on the control too.
    assert paper["births_shared"].to_dict() == {("sft", 0): 4, ("sft", 1): 6, ("grpo", 0): 0}
    assert paper["births_specific"].tolist() == [0, 0, 0]
    assert paper.loc[("grpo", 0), ["reward_first", "reward_last"]].tolist() == [0.5, 5.5]
    assert paper.loc[("sft", 0), ["loss_first", "loss_last"]].tolist() == [95, 45]
    assert np.isnan(paper.loc[("sft", 0), "reward_last"])
    assert paper["finished"].to_dict() == {("sft", 0): True, ("sft", 1): True, ("grpo", 0): False}
    # Every probe holds the same heads: other probes would show no birth.
    assert paper["null_high"].tolist() == [0, 0, 0]
    assert paper["beyond_null"].to_dict() == {("sft", 0): 1, ("sft", 1): 1, ("grpo", 0): 0}
    for rule in ("growth", "paper"):
        own = regime_row(Timeline.from_run(folder / "sft-seed1", rule=rule))
        again = rows.loc[(rule, "sft", 1)]
        for name, value in own.items():
            if name != "rule" and value == value:
                assert again[name] == value, name


def test_births_on_the_trained_probes_alone_are_not_shared(folder):
    groups = ["control"] * 12 + ["sum"] * 12
    held = {0: dict.fromkeys(HEADS[:2], 24), 10: dict.fromkeys(HEADS[:2], 24)}
    control = [make_snapshot(step, heads, probes=24, groups=groups) for step, heads in held.items()]
    # The first twelve probes are the control: hold the new head by the last twelve alone.
    born = control[1]
    born.active[12:, 2, 3] = born.grid_active[:, 12:, 2, 3] = True
    write_run(folder / "distill-seed0" / "sparks", control)
    row = read_study(folder).of("paper", "distill").iloc[0]
    assert (row["births"], row["births_specific"], row["births_shared"]) == (1, 1, 0)


def test_the_files_and_the_page_say_the_same(folder, capsys):
    study_table.main([str(folder)])
    told = capsys.readouterr().out
    study = read_study(folder)
    assert told == plain(study) + "\n"
    assert (folder / "study.md").read_text() == markdown(study)
    page = markdown(study)
    assert "Not finished, counted as they are: grpo-seed0." in page
    assert "|  | SFT (2) | GRPO (1) |" in page
    assert "| births | 5 (4 to 6) | 0 |" in page.split("## Paper's rule")[1]
    assert "| reward, last tenth | - | 5.5 |" in page
    for rule in ("growth", "paper"):
        assert all(line in page for line in study.sentences(rule))
    assert (
        "GRPO's reward went from 0.50 to 5.50 (means over seeds; higher at the end in 1 of 1)."
        in told
    )
    found = json.loads((folder / "study.json").read_text())
    rows = pd.read_csv(folder / "study.csv")
    assert len(found["runs"]) == len(rows) == 6
    (births,) = [
        row
        for row in found["paper"]["spread"]
        if (row["regime"], row["number"]) == ("sft", "births")
    ]
    assert (births["runs"], births["mean"], births["lowest"], births["highest"]) == (2, 5, 4, 6)
    assert found["paper"]["claim_holds"].keys() == {"sft", "grpo"}
    assert found["growth"]["sentences"] == study.sentences("growth")


def test_undecided_runs_of_one_reason_stand_together(folder):
    lines = markdown(read_study(folder)).splitlines()
    reasons = [line for line in lines if re.match(r"- \w+-seed\d.*: ", line)]
    assert reasons
    assert all(
        read_study(folder).rows["reason"].isin([r.split(": ", 1)[1] for r in reasons])
        | (read_study(folder).rows["reason"] == "")
    )


def test_a_folder_without_runs_is_told(tmp_path, capsys):
    with pytest.raises(SparksError, match="no runs such as sft-seed0: recipes/study"):
        read_study(tmp_path)
    with pytest.raises(SystemExit) as stop:
        study_table.main([str(tmp_path)])
    assert str(stop.value).startswith("study_table.py: error: ")
    assert list(tmp_path.iterdir()) == []
