"""Two processes over gloo: DDP, FSDP2 and DeepSpeed, with real trainers.

Each way of spreading a training is launched once and trains several times. FSDP2 and DeepSpeed need
`cpu_sharding` to run on CPUs at all; what they do is their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluations_made_here import LENGTHS, SAMPLED
from models import tiny_model
from places import HELPERS
from safetensors.torch import load_file
from tiny_trainers import trainer_of
from tiny_training import PROBES

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.errors import SparksError
from sparks.models import processes, sharding
from sparks.runs.evaluations import EvaluationFolder
from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback
from sparks.training.evaluator import CheckpointEvaluator

pytestmark = [
    pytest.mark.filterwarnings(
        # transformers and trl among themselves, at the versions pinned.
        "ignore:.*gradient_checkpointing.*:FutureWarning",
        "ignore:.*is deprecated.*:FutureWarning",
        "ignore:.*pin_memory.*:UserWarning",
    ),
]
HERE = HELPERS
SETTINGS = {"points": 3, "threshold": 0.0, "top_n": 60}
KINDS = {
    "ddp": "DistributedType.MULTI_CPU",
    "fsdp2": "DistributedType.FSDP",
    "zero2": "DistributedType.DEEPSPEED",
    "zero3": "DistributedType.DEEPSPEED",
}
PAIRS = {
    "ddp": [
        "sft:full", "sft:lora", "sft:bf16", "sft:resumed", "grpo:full", "grpo:lora",
        "distillation:full", "sft:evaluated", "sft:own", "distillation:own",
    ],
    "fsdp2": [
        "sft:full", "sft:lora", "sft:bf16", "grpo:full", "distillation:full", "sft:evaluated",
        "distillation:own",
    ],
    "zero2": ["sft:full", "grpo:full"],
    "zero3": [
        "sft:full", "sft:lora", "grpo:full", "distillation:full", "sft:evaluated",
        "distillation:own",
    ],
}  # fmt: skip
"""What is trained alone and watched."""
SINGLE = {
    "ddp": [
        "sft:full:careless",
        "sft:one-probe:watched",
        "sft:secant:watched",
        "sft:full:breaks",
        "sft:full:raise",
    ],
    "fsdp2": [
        "sft:full:careless",
        "sft:one-probe:watched",
        "sft:secant:watched",
        "sft:full:breaks",
        "sft:full:raise",
    ],
    "zero2": [],
    "zero3": ["sft:one-probe:watched", "sft:secant:watched", "sft:full:breaks"],
}
EACH = [(spread, what) for spread, names in PAIRS.items() for what in names]

Launch = Callable[[str], Path]


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Launch:
    """The folder that holds the trainings of a spread, which are done once."""
    done: dict[str, Path] = {}

    def trainings(spread: str) -> Path:
        if spread.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("deepspeed is not installed")
        if spread not in done:
            done[spread] = tmp_path_factory.mktemp(spread)
            wanted = [f"{what}:{how}" for what in PAIRS[spread] for how in ("alone", "watched")]
            run(done[spread], spread, wanted + SINGLE[spread])
        return done[spread]

    return trainings


def run(folder: Path, spread: str, trainings: list[str]) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(HERE / "processes_script.py"), folder, spread, *trainings],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def found(folder: Path, training: str) -> list[dict[str, Any]]:
    """What each process tells of a training."""
    return json.loads((folder / training.replace(":", "-") / "found.json").read_text())


def store(folder: Path, training: str) -> RunStore:
    return RunStore.find(folder / training.replace(":", "-"))


# -- untouched -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "what"), EACH)
def test_training_is_untouched_to_the_bit(launch, spread, what):
    folder = launch(spread)
    alone, watched = found(folder, f"{what}:alone"), found(folder, f"{what}:watched")
    assert watched == alone
    for process in alone:
        assert process["kind"] == KINDS[spread]
        sharded = process["parameters"] if spread in ("fsdp2", "zero3") else 0
        assert process["sharded"] == sharded
        assert process["moments"] > 0
        sampling = not what.startswith("sft") and not what.endswith("own")
        assert len(process["sampled"]) == (4 if sampling else 0)
    contents = store(folder, f"{what}:watched").read()
    assert contents.problems == ()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4]
    assert len({snapshot.meta.model_hash for snapshot in contents.snapshots}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2"])
def test_a_careless_callback_in_one_process_would_be_noticed(launch, spread):
    folder = launch(spread)
    careless, alone = found(folder, "sft:full:careless"), found(folder, "sft:full:alone")
    assert careless[1]["random"] != alone[1]["random"]
    assert careless[0]["weights"] != alone[0]["weights"]


# -- the same snapshot -----------------------------------------------------------------------------


def same(one: Snapshot, other: Snapshot) -> None:
    assert one.probe_ids == other.probe_ids
    np.testing.assert_array_equal(one.edge_offsets, other.edge_offsets)
    np.testing.assert_allclose(one.loss_corrupted, other.loss_corrupted, rtol=1e-5)
    np.testing.assert_allclose(one.loss_circuit, other.loss_circuit, rtol=1e-4, atol=1e-7)
    # Edges of nearly equal strength may change places.
    np.testing.assert_allclose(one.edge_score, other.edge_score, rtol=1e-4)
    np.testing.assert_allclose(one.importance, other.importance, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(one.node_totals, other.node_totals, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("spread", PAIRS)
def test_the_snapshot_is_that_of_one_process(launch, spread):
    folder = launch(spread)
    weights = load_file(folder / "sft-full-watched" / "weights.safetensors")
    trainer = trainer_of("sft", folder / "plain")
    trainer.model.load_state_dict(weights)
    tokenized = PROBES.tokenize(trainer.processing_class, max_suffix_tokens=16)
    alone = take_snapshot(
        trainer.model, tokenized, SparksCallback(PROBES, **SETTINGS).config, step=4, progress=False
    )
    shared = store(folder, "sft:full:watched").load(4)
    assert shared.meta.model_hash == alone.meta.model_hash
    same(shared, alone)
    # It would not be that of another model.
    base = store(folder, "sft:full:watched").load(0)
    assert not np.allclose(base.loss_corrupted, alone.loss_corrupted, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2", "zero3"])
def test_secants_are_shared_out_as_points_are(launch, spread):
    folder = launch(spread)
    assert found(folder, "sft:secant:watched") == found(folder, "sft:full:alone")
    secant, points = (store(folder, f"sft:{kind}:watched").load(4) for kind in ("secant", "full"))
    assert secant.meta.settings.method == "secant"
    assert secant.meta.model_hash == points.meta.model_hash
    np.testing.assert_allclose(secant.loss_corrupted, points.loss_corrupted, rtol=1e-5)
    assert secant.completeness_gap.max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2", "zero3"])
def test_the_samples_are_those_of_one_process(launch, tmp_path, spread):
    shared = store(launch(spread), "sft:evaluated:watched").evaluations
    assert shared.steps() == [0, 2, 4]
    trainer, alone = trainer_of("sft", tmp_path), EvaluationFolder(tmp_path)
    CheckpointEvaluator(LENGTHS, SAMPLED).run(
        trainer.model, trainer.processing_class, alone, 0, progress=False
    )
    one, other = (
        [json.loads(line) | {"seconds": 0} for line in folder.file(0).read_text().splitlines()]
        for folder in (shared, alone)
    )
    assert one == other
    assert len(one) == 1 + 2 * len(LENGTHS.problems)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2", "zero3"])
def test_probes_are_those_that_one_process_builds(launch, tmp_path, spread):
    trainer = trainer_of("distillation", tmp_path, max_steps=1)
    ours = SparksCallback(progress=False, report=False, num_probes=8, num_controls=2, **SETTINGS)
    SparksCallback.attach(trainer, ours)
    trainer.train()
    alone = (tmp_path / "sparks" / "probes.jsonl").read_text()
    shared = store(launch(spread), "distillation:own:watched")
    assert (shared.path / "probes.jsonl").read_text() == alone
    assert {snapshot.num_probes for snapshot in shared.read().snapshots} == {10}


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2", "zero3"])
def test_a_process_without_a_probe_waits_for_no_one(launch, spread):
    contents = store(launch(spread), "sft:one-probe:watched").read()
    whole = store(launch(spread), "sft:full:watched").read()
    for one, all_ in zip(contents.snapshots, whole.snapshots, strict=True):
        assert one.num_probes == 1
        np.testing.assert_allclose(one.loss_corrupted, all_.loss_corrupted[:1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spread", "what", "precision"),
    [("ddp", "sft:bf16", "float32, blocks bfloat16"), ("fsdp2", "sft:bf16", "bfloat16")],
)
def test_the_precision_is_that_of_the_training(launch, spread, what, precision):
    snapshot = store(launch(spread), f"{what}:watched").load(4)
    assert snapshot.meta.precision == precision


# -- one outcome for all ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2", "zero3"])
def test_a_failure_in_one_process_leaves_a_hole_and_no_one_waiting(launch, spread):
    folder = launch(spread)
    broken, alone = found(folder, "sft:full:breaks"), found(folder, "sft:full:alone")
    message = "no snapshot of step 2 (process 1 of 2: no memory left); training goes on"
    assert [process.pop("warnings") for process in broken] == [[f"sparks: {message}"], []]
    assert broken == [{k: v for k, v in p.items() if k != "warnings"} for p in alone]
    contents = store(folder, "sft:full:breaks").read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 4]
    assert contents.problems == ("step 2: no snapshot (process 1 of 2: no memory left)",)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp2"])
def test_a_failure_in_one_process_can_stop_all(launch, spread):
    folder = launch(spread)
    errors = [process["error"] for process in found(folder, "sft:full:raise")]
    told = "no snapshot of step 2 ({}); with on_error='warn' training would go on"
    assert errors == [told.format("process 1 of 2: no memory left"), told.format("no memory left")]
    assert store(folder, "sft:full:raise").steps() == [0]


def test_one_process_alone_raises_its_own_error():
    assert (processes.count(), processes.index()) == (1, 0)
    assert processes.together(lambda: 5) == [5]
    with pytest.raises(ValueError, match="odd"):
        processes.first_does(lambda: int("odd"))


# -- refused ---------------------------------------------------------------------------------------


def test_a_sharded_model_needs_all_processes():
    trainer_tokens = trainer_of("plain", Path("unused")).processing_class
    model = tiny_model("llama-gqa", vocab_size=len(trainer_tokens))
    next(model.parameters()).ds_id = 0  # as DeepSpeed marks what it has sharded
    tokenized = PROBES.tokenize(trainer_tokens, max_suffix_tokens=4)
    with pytest.raises(SparksError, match=r"sharded over processes: call take_snapshot in every"):
        take_snapshot(model, tokenized)


def test_fsdp_version_1_is_refused():
    class Wrapped(sharding.FullyShardedDataParallel):
        def __init__(self) -> None:  # a real one needs a process group
            torch.nn.Module.__init__(self)

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.append(Wrapped())
    with pytest.raises(SparksError, match=r"FSDP version 1 .*: set fsdp_version: 2 .*sparks rep"):
        sharding.refuse_unknown_sharding(model)


def test_a_copy_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    # There is no GPU here: its answers are made up.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2**29)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    weight = torch.nn.Parameter(torch.empty(2**28, device="meta"))
    sharding._check_room({weight: torch.bfloat16})
    other = torch.nn.Parameter(torch.empty(2**28, device="meta"))
    with pytest.raises(SparksError, match=r"whole copy, 2\.0 GiB .* process 0 has 1\.5 GiB free: "):
        sharding._check_room({weight: torch.float32, other: torch.float32})


@pytest.mark.parametrize("name", ["tp", "cp", "sp"])
def test_split_sequences_and_tensors_are_refused(tmp_path, name):
    from types import SimpleNamespace

    trainer = trainer_of("plain", tmp_path, SparksCallback(PROBES, progress=False))
    # A real configuration of this kind wants as many devices.
    flags = {f"{kind}_enabled": kind == name for kind in ("tp", "cp", "sp")}
    trainer.args.parallelism_config = SimpleNamespace(**flags, **{f"{name}_size": 4})
    with pytest.raises(SparksError, match=rf"parallelism .{name}_size 4. is not supported: use DD"):
        trainer.train()
