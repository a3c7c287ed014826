"""Recipes through the real launcher on a base made here: started, killed, resumed to the end.

The runs are chains of commands that go side by side; a test looks at what a chain left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from places import ROOT
from transformers import AutoTokenizer

from sparks.ground.errors import SparksError
from sparks.probes.probes import CONTROL_GROUP, ProbeSet
from sparks.runs.run_folder import RunStore

LAST = 6
"""Optimizer steps of a run, with a checkpoint every second."""

pytestmark = pytest.mark.slow

SHORT = {
    "max_steps": LAST,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "probe_count": 2,
    "control_count": 1,
    "sparks_points": 2,
    "sparks_max_points": 2,
    "sparks_faithfulness": "false",
}


@dataclass(frozen=True)
class Made:
    """A folder with what `recipes/tiny_base.py` writes."""

    path: Path

    def command(self, recipe: str, output: Path, accelerate: str, **more: object) -> list[str]:
        """A recipe, shortened, through the real launcher."""
        settings = SHORT | {
            "model_name_or_path": self.path / "base",
            "dataset_name": self.path / "train.jsonl",
            "probe_data": self.path / "problems.jsonl",
            "control_probes": self.path / "control.jsonl",
            "sparks_probes": output.with_name(f"{output.name}-probes.jsonl"),
            "output_dir": output,
        }
        options = [f"--{key}={value}" for key, value in (settings | more).items()]
        return [
            *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"),
            *("--config_file", str(ROOT / "recipes" / "accelerate" / f"{accelerate}.yaml")),
            str(ROOT / "recipes" / f"{recipe}.py"),
            *("--config", str(ROOT / "recipes" / "configs" / f"{recipe}-tiny.yaml")),
            *options,
        ]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def call(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def call_until(command: list[str], sign: Path) -> None:
    """Start a command, and kill it with all its processes once a file is there."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # Workers of several processes are sessions of their own: a group's signal would not reach them.
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for item in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            item.kill()
    process.wait()
    assert sign.exists(), f"ended with {process.returncode} before {sign.name}"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A base that has hardly learnt anything: a recipe does not mind."""
    folder = tmp_path_factory.mktemp("recipes") / "made"
    recipe = str(ROOT / "recipes" / "tiny_base.py")
    arguments = ["--output", str(folder), "--steps", "12", "--train", "60"]
    assert "12 steps in" in call([sys.executable, recipe, *arguments])
    assert "already there" in call([sys.executable, recipe, *arguments])
    return Made(folder)


@dataclass(frozen=True)
class Chain:
    """A run that was killed behind its first checkpoint, then resumed."""

    output: Path
    said: str
    """Standard output of the resumed command."""


@pytest.fixture(scope="module")
def chains(made, tmp_path_factory) -> dict[str, Future[Chain]]:
    """All runs; two at a time, since much of a run is importing on one core."""
    folder = tmp_path_factory.mktemp("runs")

    def start_and_resume(name: str, recipe: str, accelerate: str, **more: object) -> Chain:
        output = folder / name
        command = made.command(recipe, output, accelerate, **more)
        call_until(command, output / "checkpoint-2" / "trainer_state.json")
        return Chain(output, call([*command, "--resume_from_checkpoint", "true"]))

    teacher = {"teacher_model_name_or_path": made.path / "base", "max_completion_length": 12}
    with ThreadPoolExecutor(2) as pool:
        return {
            "sft": pool.submit(start_and_resume, "sft", "sft", "cpu-2"),
            "distill": pool.submit(start_and_resume, "distill", "distill", "cpu", **teacher),
            "grpo": pool.submit(
                start_and_resume, "grpo", "grpo", "cpu", num_generations=4, max_completion_length=12
            ),
        }


@pytest.mark.parametrize("regime", ["sft", "distill", "grpo"])
def test_a_killed_run_is_resumed_to_its_end(chains, regime):
    chain = chains[regime].result()
    assert f"resuming from {chain.output / 'checkpoint-'}" in chain.said
    assert f"trained: {chain.output}; look: sparks timeline {chain.output};" in chain.said
    assert (chain.output / "model.safetensors").is_file()
    contents = RunStore.find(chain.output).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4, 6]
    assert contents.problems == ()
    state = json.loads((chain.output / f"checkpoint-{LAST}" / "trainer_state.json").read_text())
    logged = [row["step"] for row in state["log_history"] if "loss" in row]
    assert logged == list(range(1, LAST + 1))
    if regime == "grpo":
        rewards = {key for key in state["log_history"][0] if key.startswith("rewards/")}
        assert {"rewards/accuracy_reward/mean", "rewards/format_reward/mean"} <= rewards


def test_control_probes_of_the_tiny_model_copy_numbers(made, chains):
    """Where the copied number comes next: equally many tokens, another number."""
    controls = ProbeSet.load(made.path / "control.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(made.path / "base")
    tokens = controls.tokenize(tokenizer, max_suffix_tokens=16)
    assert len(controls) == 24
    for probe, pair in zip(controls, tokens.pairs, strict=True):
        clean, corrupted = (
            tokenizer(probe.prompt + text)["input_ids"] for text in (probe.clean, probe.corrupted)
        )
        assert (pair.prefix + pair.clean, pair.prefix + pair.corrupted) == (clean, corrupted)
        assert probe.clean.split()[0] != probe.corrupted.split()[0]
        assert probe.clean.endswith("<|assistant|>The result of")
    built = ProbeSet.load(chains["sft"].result().output.with_name("sft-probes.jsonl"))
    assert [probe.group for probe in built] == ["chain_sum", "chain_sum", CONTROL_GROUP]
    assert built.probes[-1].clean == controls.probes[0].clean


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_finished_run_is_left_as_it_is(made, chains, monkeypatch, capsys):
    """Resumed, the trainer alone would take a step more. A model not saved yet is saved."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import grpo

    output = chains["grpo"].result().output
    weights = output / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    more = {"num_generations": 4, "max_completion_length": 12, "resume_from_checkpoint": "true"}
    command = made.command("grpo", output, "cpu", **more)
    grpo.main(command[command.index("--config") :])
    assert f"trained: {output}; look" in capsys.readouterr().out
    assert weights.read_bytes() == before
    assert not (output / f"checkpoint-{LAST + 1}").exists()
    assert RunStore.find(output).steps() == [0, 2, 4, 6]


def test_two_processes_are_two_processes(chains):
    """Twice the sequences in a step, and random states of two ranks."""
    chain = chains["sft"].result()
    names = {path.name for path in (chain.output / f"checkpoint-{LAST}").glob("rng_state*")}
    assert names == {"rng_state_0.pth", "rng_state_1.pth"}
    state = json.loads((chain.output / f"checkpoint-{LAST}" / "trainer_state.json").read_text())
    rows = 60
    assert state["log_history"][0]["epoch"] == pytest.approx(1 / -(-rows // (2 * 4)))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_off_policy_distillation_learns_from_what_is_kept(made, tmp_path, monkeypatch, capsys):
    """The traces are there: the teacher is not asked, and not even loaded."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import distill

    output = tmp_path / "run"
    probes = made.path.parent / "probes.jsonl"
    probes.write_text(
        '{"prompt": [{"role": "user", "content": "Calculate 1 + 2 - 3."}], '
        '"clean": "<think>\\nOkay.", "corrupted": "The result of 1 + 2"}\n'
    )
    traces = tmp_path / "traces.jsonl"
    header = {
        "teacher": "gone",
        "data": [str(made.path / "train.jsonl"), None, "train"],
        "system_prompt": None,
        "rows": 60,
        "max_new_tokens": 72,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
    }
    rows = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    lines = [header, *({**row, "right": number % 2 == 0} for number, row in enumerate(rows))]
    traces.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = made.command(
        "distill",
        output,
        "cpu",
        mode="off_policy",
        traces=traces,
        teacher_model_name_or_path="gone",
        sparks_probes=probes,
        max_steps=2,
    )
    distill.main(command[command.index("--config") :])
    said = capsys.readouterr().out
    assert f"30 of the teacher's 60 answers are right: {traces}" in said
    assert [snapshot.step for snapshot in RunStore.find(output).read().snapshots] == [0, 2]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_teacher_that_gets_nothing_right_is_told(made, tmp_path, monkeypatch):
    """This base has learnt nothing; what it wrote stays, and is not asked for again."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import distill

    traces = tmp_path / "traces.jsonl"
    more = {"mode": "off_policy", "traces": traces, "max_train_rows": 6, "trace_batch_size": 4}
    more |= {"teacher_model_name_or_path": made.path / "base", "max_completion_length": 12}
    command = made.command("distill", tmp_path / "run", "cpu", **more)
    arguments = command[command.index("--config") :]
    for _ in range(2):
        with pytest.raises(SparksError, match="none of the teacher's 6 answers is right"):
            distill.main(arguments)
        monkeypatch.setattr(distill, "write_traces", lambda *_, **__: pytest.fail("asked again"))
    header, *answers = [json.loads(line) for line in traces.read_text().splitlines()]
    assert (header["teacher"], header["max_new_tokens"]) == (str(made.path / "base"), 12)
    assert [row["right"] for row in answers] == [False] * 6
    assert not (tmp_path / "run").exists()
