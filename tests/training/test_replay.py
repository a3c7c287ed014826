"""Replay: checkpoints in order of step, equal to snapshots of the same weights in memory."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import listing
from factories import make_snapshot
from lock_holder import holder
from models import tiny_model, wrapped
from tiny_training import tiny_trainer
from tokenizers_made_here import byte_level_tokenizer
from transformers import AutoModelForCausalLM

from sparks.attribution import secant_rules
from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline
from sparks.training.callback import SparksCallback
from sparks.training.replay import replay_checkpoints, resolve_checkpoints

ARRAYS = tuple(make_snapshot(0).to_arrays()[0])
CONFIG = SnapshotConfig(points=3, threshold=1e-6, top_n=60)
TOKENIZER = byte_level_tokenizer()
PROBES = ProbeSet.from_records(
    [
        {
            "prompt": "What is 2 + 2?",
            "clean": " Okay, so I",
            "corrupted": " The sum is",
            "group": "a",
        },
        {
            "prompt": [{"role": "user", "content": "What is 3 + 5?"}],
            "clean": "<think>\nOkay",
            "corrupted": "The answer is 8.",
        },
    ]
)
LOG = [
    {"step": 1, "loss": 2.5, "epoch": 0.25},
    {"step": 2, "loss": 2.0, "learning_rate": 1e-4, "epoch": 0.5},
    {"step": 3, "loss": float("inf"), "epoch": 0.75},
    {"step": 4, "loss": 1.5, "epoch": 1.0},
]


def model_at(step: int) -> torch.nn.Module:
    return tiny_model("llama-gqa", seed=step, vocab_size=len(TOKENIZER))


def save_checkpoint(folder: Path, model: torch.nn.Module, step: int | None = None) -> Path:
    """What a trainer leaves: the model, its tokenizer, and its state if there is a step."""
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    if step is not None:
        rows = [row for row in LOG if row["step"] <= step]
        state = {"global_step": step, "epoch": step / 4, "log_history": rows}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A trainer's output folder with two checkpoints, and a base model."""
    run = tmp_path_factory.mktemp("saved")
    for step in (2, 4):
        save_checkpoint(run / f"checkpoint-{step}", model_at(step), step)
    save_checkpoint(run / "base", model_at(0))
    (run / "runs").mkdir()
    return run


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Names of the checkpoints whose model is loaded, in order."""
    names: list[str] = []
    real = AutoModelForCausalLM.from_pretrained

    def noted(name: Any, *args: Any, **keywords: Any) -> Any:
        names.append(Path(name).name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    return names


def replay(checkpoints: Any, output: Path, probes: Any = PROBES, **keywords: Any) -> RunStore:
    several = checkpoints if isinstance(checkpoints, list) else [checkpoints]
    defaults = {"config": CONFIG, "device": "cpu", "progress": False}
    return replay_checkpoints(several, probes, output_dir=output, **(defaults | keywords))


def in_memory(model: torch.nn.Module, step: int, config: SnapshotConfig = CONFIG) -> Snapshot:
    probes = PROBES.tokenize(TOKENIZER, max_suffix_tokens=config.max_suffix_tokens)
    return take_snapshot(model, probes, config, step=step, progress=False)


def assert_same_arrays(found: Snapshot, expected: Snapshot) -> None:
    """Equal circuits, and scores up to their last bits.

    A file is mapped to addresses of its own, and CPU kernels sum in another order there.
    """
    for name in ARRAYS:
        one, other = getattr(found, name), getattr(expected, name)
        if one.dtype == np.float32:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7, err_msg=name)
        else:
            assert np.array_equal(one, other), name
    assert found.graph == expected.graph
    assert found.probe_ids == expected.probe_ids
    assert found.probe_groups == expected.probe_groups
    for name in ("step", "model_hash", "probes_hash", "config", "precision", "roles_swapped"):
        assert getattr(found.meta, name) == getattr(expected.meta, name), name


# -- what is written -------------------------------------------------------------------------------


def test_replayed_snapshots_equal_those_of_the_model_in_memory(saved, tmp_path, loads):
    store = replay(saved, tmp_path / "out", base=str(saved / "base"))
    assert loads == ["base", "checkpoint-2", "checkpoint-4"]
    assert store.steps() == [0, 2, 4]
    for step in (0, 2, 4):
        snapshot = store.load(step)
        assert_same_arrays(snapshot, in_memory(model_at(step), step))
        assert snapshot.meta.source == "replay"
        assert len(snapshot.edge_score) > 20  # equal, and not for want of edges
    assert not np.array_equal(store.load(2).importance, store.load(4).importance)
    assert Timeline.from_run(store.path).steps.tolist() == [0, 2, 4]


def test_the_run_folder_holds_log_and_probes(saved, tmp_path):
    store = replay(saved, tmp_path)
    assert sorted(listing(tmp_path)) == [
        "metrics.json", "probes.jsonl", "run.json",
        "step-00000002.safetensors", "step-00000004.safetensors",
    ]  # fmt: skip
    assert store.load(2).meta.metrics == {"loss": 2.0, "learning_rate": 1e-4}
    assert store.load(4).meta.metrics == {"loss": 1.5, "learning_rate": 1e-4}
    assert [store.load(step).meta.epoch for step in (2, 4)] == [0.5, 1.0]
    finite = [{k: v for k, v in row.items() if v != float("inf")} for row in LOG]
    assert list(store.read().metrics) == finite
    assert ProbeSet.load(tmp_path / "probes.jsonl") == PROBES


def test_probes_may_come_from_a_file(saved, tmp_path):
    file = PROBES.save(tmp_path / "probes.jsonl")
    store = replay(saved / "checkpoint-2", tmp_path / "out", file)
    assert_same_arrays(store.load(2), in_memory(model_at(2), 2))


def test_base_roles_are_swapped_at_step_0_alone(saved, tmp_path):
    config = SnapshotConfig(**(asdict(CONFIG) | {"swap_base_roles": True}))
    store = replay(saved / "checkpoint-2", tmp_path, base=str(saved / "base"), config=config)
    assert [store.load(step).meta.roles_swapped for step in (0, 2)] == [True, False]
    assert_same_arrays(store.load(0), in_memory(model_at(0), 0, config))
    plain = in_memory(model_at(0), 0)
    assert not np.array_equal(store.load(0).loss_corrupted, plain.loss_corrupted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft 0.21
def test_an_adapter_folder_is_measured_with_its_adapter(saved, tmp_path):
    base = model_at(0)
    base.name_or_path = str(saved / "base")  # as a model from there; peft writes it down
    model = wrapped(base)
    folder = save_checkpoint(tmp_path / "checkpoint-6", model, 6)
    assert (folder / "adapter_config.json").exists()
    assert not (folder / "model.safetensors").exists()
    store = replay(folder, tmp_path / "out")
    found = store.load(6)
    assert_same_arrays(found, in_memory(model, 6))
    assert not np.array_equal(found.importance, in_memory(model_at(0), 6).importance)


def test_autocast_computes_in_a_narrow_type(saved, tmp_path):
    store = replay(saved / "checkpoint-2", tmp_path, autocast="bf16")
    assert store.load(2).meta.precision == "float32, blocks bfloat16"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)
def test_a_replay_equals_what_the_callback_measured(tmp_path):
    callback = SparksCallback(PROBES, config=CONFIG, progress=False, report=False)
    tiny_trainer(tmp_path / "out", callbacks=[callback]).train()
    live = RunStore(tmp_path / "out" / "sparks")
    store = replay(tmp_path / "out", tmp_path / "replayed")
    assert (live.steps(), store.steps()) == ([0, 2, 4], [2, 4])
    for step in (2, 4):
        found, expected = store.load(step), live.load(step)
        assert_same_arrays(found, expected)
        assert found.meta.epoch == expected.meta.epoch
        assert found.meta.metrics == expected.meta.metrics


# -- going on --------------------------------------------------------------------------------------


def test_what_is_done_is_not_taken_again(saved, tmp_path, loads):
    store = replay(saved / "checkpoint-2", tmp_path)
    before = store.file(2).read_bytes()
    replay(saved, tmp_path)
    assert loads == ["checkpoint-2", "checkpoint-4"]
    assert store.file(2).read_bytes() == before
    replay(saved, tmp_path)
    assert len(loads) == 2


def test_overwrite_takes_it_again(saved, tmp_path, loads):
    replay(saved, tmp_path)
    store = replay(saved, tmp_path, overwrite=True)
    assert loads == ["checkpoint-2", "checkpoint-4"] * 2
    assert_same_arrays(store.load(4), in_memory(model_at(4), 4))


def test_a_damaged_snapshot_is_taken_again(saved, tmp_path, loads):
    store = replay(saved, tmp_path)
    store.file(4).write_bytes(b"cut short")
    replay(saved, tmp_path)
    assert loads == ["checkpoint-2", "checkpoint-4", "checkpoint-4"]
    assert_same_arrays(store.load(4), in_memory(model_at(4), 4))


def test_an_interrupted_replay_keeps_what_is_finished(saved, tmp_path, monkeypatch):
    def fail_late(model, probes, config, *, step, **keywords):
        if step == 4:
            raise KeyboardInterrupt
        return take_snapshot(model, probes, config, step=step, **keywords)

    monkeypatch.setattr("sparks.training.replay.take_snapshot", fail_late)
    with pytest.raises(KeyboardInterrupt):
        replay(saved, tmp_path)
    assert RunStore(tmp_path).steps() == [2]
    monkeypatch.undo()
    assert replay(saved, tmp_path).steps() == [2, 4]


def test_what_is_taken_belongs_to_the_run_of_the_folder(saved, tmp_path):
    store = replay(saved / "checkpoint-2", tmp_path)
    run_id = store.run_id
    replay(saved, tmp_path)
    assert run_id
    assert [store.load(step).meta.run_id for step in (2, 4)] == [run_id] * 2
    assert (store.read().run_id, store.read().problems) == (run_id, ())
    # What another run has put in its place is set aside, and the step is taken.
    other = replay(saved / "checkpoint-4", tmp_path / "other")
    shutil.copy(other.file(4), store.file(4))
    assert store.read().strangers == (4,)
    replay(saved, tmp_path)
    assert store.load(4).meta.run_id == run_id
    stale = store.file(4).with_name("step-00000004.safetensors.stale")
    assert stale.read_bytes() == other.file(4).read_bytes()


def test_a_replay_of_an_older_run_gives_it_an_id(saved, tmp_path):
    store = RunStore(tmp_path)
    store.save(in_memory(model_at(2), 2))
    replay(saved, tmp_path)
    assert [bool(snapshot.meta.run_id) for snapshot in store.read().snapshots] == [False, True]
    assert store.read().problems == ()


def test_a_replay_brings_back_a_run_that_was_being_moved(saved, tmp_path, loads):
    replay(saved / "checkpoint-2", tmp_path)
    (tmp_path / "attempt.part").mkdir()
    RunStore(tmp_path).file(2).rename(tmp_path / "attempt.part" / RunStore(tmp_path).file(2).name)
    assert replay(saved, tmp_path).steps() == [2, 4]
    assert loads == ["checkpoint-2", "checkpoint-4"]
    assert not (tmp_path / "attempt.part").exists()


def test_a_folder_that_another_process_writes_is_refused(saved, tmp_path, loads, monkeypatch):
    (tmp_path / "run").mkdir()
    with holder(tmp_path / "run"), pytest.raises(SparksError, match="is being written by another"):
        replay(saved, tmp_path / "run")
    assert loads == []
    # One that came while the first checkpoint was measured, too.
    with ExitStack() as stack:

        def measured_late(*arguments, **keywords):
            (tmp_path / "new").mkdir()
            stack.enter_context(holder(tmp_path / "new"))
            return take_snapshot(*arguments, **keywords)

        monkeypatch.setattr("sparks.training.replay.take_snapshot", measured_late)
        with pytest.raises(SparksError, match="is being written by another"):
            replay(saved, tmp_path / "new")
    assert list(listing(tmp_path / "new")) == [".lock"]


def test_other_settings_are_taken_again_but_never_mixed(saved, tmp_path, loads):
    store = replay(saved, tmp_path)
    other = SnapshotConfig(**(asdict(CONFIG) | {"points": 4}))
    before = listing(tmp_path)
    match = r"holds a snapshot of step 2 with points=3, now it is 4: replay that step too"
    with pytest.raises(SparksError, match=match):
        replay(saved / "checkpoint-4", tmp_path, config=other)
    assert listing(tmp_path) == before
    assert len(loads) == 2
    replay(saved, tmp_path, config=other)
    assert [store.load(step).meta.config["points"] for step in (2, 4)] == [4, 4]


SECANT = replace(CONFIG, method="secant")


def test_secants_are_another_measurement_and_equal_those_in_memory(saved, tmp_path):
    replay(saved / "checkpoint-2", tmp_path)
    match = r"holds a snapshot of step 2 with method='eap-ig', now it is 'secant'"
    with pytest.raises(SparksError, match=match):
        replay(saved / "checkpoint-4", tmp_path, config=SECANT)
    store = replay(saved, tmp_path, config=SECANT)
    for step in (2, 4):
        found, expected = store.load(step), in_memory(model_at(step), step, SECANT)
        assert found.meta.settings == SECANT
        assert found.completeness_gap.max() < 1e-5  # nothing but rounding
        assert_same_arrays(replace(found, completeness_gap=expected.completeness_gap), expected)


def test_a_model_without_secants_is_replayed_by_eap_ig_and_not_again(
    saved, tmp_path, loads, monkeypatch
):
    monkeypatch.delitem(secant_rules._RULES, "silu")
    for name in ("checkpoint-2", "checkpoint-4"):
        with pytest.warns(UserWarning, match="EAP-IG in place of secants: .* no secant of Silu"):
            store = replay(saved / name, tmp_path, config=SECANT)
    loads.clear()
    with pytest.warns(UserWarning, match="EAP-IG in place of secants"):
        replay(saved, tmp_path, config=SECANT)
    assert loads == ["checkpoint-2"]  # to see whether it has secants
    for step in (2, 4):
        assert store.load(step).meta.settings == CONFIG


def test_another_memory_budget_is_the_same_measurement(saved, tmp_path, loads):
    replay(saved / "checkpoint-2", tmp_path)
    other = SnapshotConfig(**(asdict(CONFIG) | {"memory_gib": 1.0}))
    replay(saved, tmp_path, config=other)
    assert loads == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("checkpoint", ["checkpoint-2", "checkpoint-4"])
def test_other_probes_are_refused_whether_the_step_is_done_or_not(
    checkpoint, saved, tmp_path, loads
):
    replay(saved / "checkpoint-2", tmp_path)
    before = listing(tmp_path)
    other = ProbeSet(PROBES.probes[:1])
    match = r"holds snapshots of other probes \(step 2\): give another output folder"
    with pytest.raises(SparksError, match=match):
        replay(saved / checkpoint, tmp_path, other)
    assert listing(tmp_path) == before
    assert loads == ["checkpoint-2"]


def test_a_log_that_reaches_further_stays(saved, tmp_path):
    live = [*LOG, {"step": 5, "loss": 1.25}]
    RunStore(tmp_path).write_metrics(live)
    store = replay(saved, tmp_path)
    assert [row["step"] for row in store.read().metrics] == [1, 2, 3, 4, 5]


# -- which step ------------------------------------------------------------------------------------


def steps_of(*checkpoints: Any, **keywords: Any) -> list[tuple[int, str]]:
    found = resolve_checkpoints(list(checkpoints), **keywords)
    return [(checkpoint.step, Path(checkpoint.name).name) for checkpoint in found]


def folder(path: Path, step: object = None) -> Path:
    path.mkdir(parents=True)
    if step is not None:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_an_output_folder_stands_for_its_checkpoints_in_order_of_number(tmp_path):
    for step in (100, 20, 3):
        folder(tmp_path / f"checkpoint-{step}", step)
    for other in ("checkpoint-x", "runs", "my-checkpoint-7", "sparks"):
        folder(tmp_path / other)
    (tmp_path / "checkpoint-9").write_text("no folder")
    expected = [(3, "checkpoint-3"), (20, "checkpoint-20"), (100, "checkpoint-100")]
    assert steps_of(tmp_path) == steps_of(str(tmp_path)) == expected
    assert steps_of(tmp_path / "checkpoint-20", tmp_path / "checkpoint-3") == expected[:2]


def test_an_output_folder_with_a_final_model_still_stands_for_its_checkpoints(tmp_path):
    (folder(tmp_path / "out", 9) / "config.json").write_text("{}")
    folder(tmp_path / "out" / "checkpoint-4", 4)
    assert steps_of(tmp_path / "out") == [(4, "checkpoint-4")]


def test_the_trainers_state_counts_more_than_the_name_and_a_given_step_most(tmp_path):
    found = folder(tmp_path / "checkpoint-4", 40)
    assert steps_of(found) == [(40, "checkpoint-4")]
    assert steps_of(f"7={found}") == [(7, "checkpoint-4")]
    assert steps_of(f"7={found}", base=str(found)) == [(0, "checkpoint-4"), (7, "checkpoint-4")]


@pytest.mark.parametrize(
    "name", ["checkpoint-12", "step-12", "step_12", "global_step_12", "a-step-12"]
)
def test_a_name_tells_the_step(name, tmp_path):
    assert steps_of(folder(tmp_path / name)) == [(12, name)]


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"global_step": null}', '{"global_step": "x"}', "\xff"]
)
def test_a_state_that_cannot_be_read_leaves_the_name(state, tmp_path):
    path = folder(tmp_path / "checkpoint-12")
    (path / "trainer_state.json").write_bytes(state.encode("latin-1"))
    (found,) = resolve_checkpoints([path])
    assert (found.step, found.log) == (12, None)


def test_a_log_with_strange_rows_keeps_the_others(tmp_path):
    path = folder(tmp_path / "checkpoint-12")
    state = {"global_step": 12, "epoch": "one", "log_history": [3, {"step": 1, "loss": 2.0}]}
    (path / "trainer_state.json").write_text(json.dumps(state))
    (found,) = resolve_checkpoints([path])
    assert found.log is not None
    assert (found.log.epoch, found.log.rows) == (None, ({"step": 1, "loss": 2.0},))


def test_hub_ids_carry_their_revision():
    given = ["owner/model@step-20", "10=owner/model@main", "owner/model-step-30"]
    found = resolve_checkpoints(given, base="owner/base")
    assert [(c.step, c.name, c.revision) for c in found] == [
        (0, "owner/base", None),
        (10, "owner/model", "main"),
        (20, "owner/model", "step-20"),
        (30, "owner/model-step-30", None),
    ]


@pytest.mark.parametrize("name", ["final", "owner/model@main", "owner/model"])
def test_a_checkpoint_without_a_step_is_refused(name, tmp_path):
    given = str(folder(tmp_path / name)) if name == "final" else name
    match = f"cannot tell the step of {re.escape(given)}: .* as in 40={re.escape(given)}"
    with pytest.raises(SparksError, match=match):
        resolve_checkpoints([given])


def test_two_checkpoints_of_one_step_are_refused(tmp_path):
    first, second = folder(tmp_path / "a" / "checkpoint-4"), folder(tmp_path / "b" / "checkpoint-4")
    match = f"{first} and {second} are both step 4: give one of them, .* as in 40={second}"
    with pytest.raises(SparksError, match=re.escape(match).replace(r"\.\*", ".*")):
        resolve_checkpoints([first, second])
    assert [c.step for c in resolve_checkpoints([first, f"5={second}"])] == [4, 5]
    with pytest.raises(SparksError, match="are both step 0"):
        resolve_checkpoints([f"0={first}"], base="owner/base")


def test_one_checkpoint_without_a_list_is_refused():
    with pytest.raises(SparksError, match=r"must be a list, got 'run/checkpoint-2' alone: give \["):
        resolve_checkpoints("run/checkpoint-2")


def test_nothing_to_replay_is_refused():
    with pytest.raises(SparksError, match="no checkpoints: give folders"):
        resolve_checkpoints([])


# -- what cannot be loaded -------------------------------------------------------------------------


def test_a_checkpoint_without_a_tokenizer_is_refused_and_nothing_written(saved, tmp_path):
    path = tmp_path / "checkpoint-2"
    shutil.copytree(saved / "checkpoint-2", path)
    for file in path.glob("token*"):
        file.unlink()
    with pytest.raises(SparksError, match=r"cannot load checkpoint .*checkpoint-2 \(\w+: "):
        replay(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_later_checkpoint_that_fails_leaves_the_earlier_snapshots(saved, tmp_path):
    folder(tmp_path / "checkpoint-9")
    with pytest.raises(SparksError, match=r"cannot load checkpoint .*checkpoint-9"):
        replay([saved / "checkpoint-2", tmp_path / "checkpoint-9"], tmp_path / "out")
    assert RunStore(tmp_path / "out").steps() == [2]
