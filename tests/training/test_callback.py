"""The callback under a real SFTTrainer: when it measures, and that training never notices."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import listing
from lock_holder import HOLD, holder
from models import tiny_model, wrapped
from peft import LoraConfig
from tiny_training import PROBES, logged, optimizer_hash, tiny_trainer, weights_hash
from tokenizers_made_here import CHAT, byte_level_tokenizer
from transformers import TrainerCallback

from sparks.attribution import secant_rules
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline
from sparks.training.callback import SparksCallback
from sparks.training.recorder import Recorder
from sparks.views.live.page import View
from sparks.views.words import growth_in_words

SETTINGS = {"points": 3, "threshold": 0.0, "top_n": 60}

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)


def sparks(**settings) -> SparksCallback:
    return SparksCallback(PROBES, progress=False, **SETTINGS | settings)


def run(tmp_path, *callbacks, resume=None, **settings):
    trainer = tiny_trainer(tmp_path, callbacks=list(callbacks), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# -- when ------------------------------------------------------------------------------------------


def test_it_measures_the_base_every_save_and_the_end(tmp_path):
    run(tmp_path, sparks(), max_steps=5)
    contents = RunStore.find(tmp_path).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4, 5]
    assert contents.problems == ()
    assert (tmp_path / "sparks" / "report.html").stat().st_size > 10_000
    assert ProbeSet.load(tmp_path / "sparks" / "probes.jsonl").hash == PROBES.hash


def test_every_n_steps_without_saves(tmp_path):
    run(tmp_path, sparks(every_n_steps=3), max_steps=4, save_strategy="no")
    assert RunStore(tmp_path / "sparks").steps() == [0, 3, 4]


@pytest.mark.parametrize("logging_steps", [1, 2, 3])
def test_a_snapshot_between_saves_has_the_numbers_of_its_own_step(tmp_path, logging_steps):
    trainer = run(
        tmp_path, sparks(every_n_steps=2), max_steps=6, save_steps=4, logging_steps=logging_steps
    )
    contents = RunStore.find(tmp_path).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4, 6]
    losses = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    for snapshot in contents.snapshots[1:]:
        before = [step for step in losses if step <= snapshot.step]
        expected = losses[max(before)] if before else None
        assert snapshot.meta.metrics.get("loss") == expected


def test_a_step_is_measured_once(tmp_path, monkeypatch):
    times = []

    def counted(*arguments, step, **keywords):
        times.append(step)
        return take_snapshot(*arguments, step=step, **keywords)

    monkeypatch.setattr("sparks.training.recorder.take_snapshot", counted)
    run(tmp_path, sparks(every_n_steps=2))
    assert times == [0, 2, 4]


def test_too_few_probes_are_told_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise RuntimeError("measured")

    monkeypatch.setattr("sparks.training.recorder.take_snapshot", stopped)
    with pytest.raises(RuntimeError, match="measured"):
        run(tmp_path, sparks())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "sparks: " in line]
    assert line.startswith("sparks: warning: only 3 probes: no change of a head can be called")


def test_without_saves_it_says_what_to_set(tmp_path):
    with pytest.warns(UserWarning, match=r"save_strategy is 'no'.*every_n_steps"):
        run(tmp_path, sparks(), max_steps=2, save_strategy="no")
    assert RunStore(tmp_path / "sparks").steps() == [0, 2]


def test_what_a_snapshot_says_of_itself(tmp_path):
    trainer = run(tmp_path, sparks())
    base, _, last = RunStore.find(tmp_path).read().snapshots
    assert (base.meta.metrics, base.meta.source, base.meta.epoch) == ({}, "callback", 0)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert last.meta.metrics["loss"] == losses[-1]
    assert last.meta.config == SnapshotConfig(**SETTINGS).as_dict()
    assert last.meta.precision == "float32"
    assert last.meta.model_hash != base.meta.model_hash
    assert last.probe_groups == ("sums",) * 3
    assert {"sparks", "torch", "trl"} <= set(last.meta.versions)
    assert 0 < last.meta.seconds < 600
    assert np.isfinite(last.completeness_gap).all()
    assert np.isfinite(last.loss_corrupted).all()
    assert np.isfinite(last.faithfulness).all()


def test_what_snapshots_cost_is_told(tmp_path, capsys):
    callback = SparksCallback(PROBES, **SETTINGS)
    run(tmp_path, callback)
    told = [line for line in capsys.readouterr().err.splitlines() if "sparks: " in line]
    assert "sparks: warning: only 3 probes: no change of a head can be called" in told[0]
    snapshots = RunStore.find(tmp_path).read().snapshots
    timeline = Timeline.from_run(tmp_path)
    counts, view = timeline.counts(), View(timeline, None)
    assert snapshots[0].meta.overhead is None
    for snapshot, line in zip(snapshots[1:], told[2:4], strict=True):
        share = snapshot.meta.overhead
        assert 0 < share < 1
        assert f"step {snapshot.step}: " in line
        assert f"{share:.1%} of the time so far" in line
        told_by_watch = view.line(snapshot.step).split("Z ")[1].split(";")[0]
        assert f"sparks: {told_by_watch}, " in line
    assert counts["overhead"].tolist()[1:] == [s.meta.overhead for s in snapshots[1:]]
    # The base, which no step precedes, counts too.
    assert snapshots[1].meta.overhead > snapshots[1].meta.seconds / callback.recorder.seconds
    summary, verdict, again = told[-3:]
    assert f"sparks: 3 snapshots in {tmp_path}" in summary
    report = RunStore.find(tmp_path).path / "report.html"
    assert verdict == f"sparks: {growth_in_words(timeline)}; see {report}"
    assert again == f"sparks: look again with `sparks timeline {tmp_path}`"


def test_faithfulness_can_be_left_out(tmp_path):
    run(tmp_path, sparks(faithfulness=False), max_steps=1, save_steps=1)
    for snapshot in RunStore.find(tmp_path).read().snapshots:
        assert np.isnan(snapshot.faithfulness).all()


def test_the_timeline_carries_the_trainers_log(tmp_path):
    trainer = run(tmp_path, sparks())
    frame = Timeline.from_run(tmp_path).metrics()
    losses = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    assert frame["loss"].dropna().to_dict() == losses
    assert len(losses) == 4


# -- untouched -------------------------------------------------------------------------------------


class Careless(TrainerCallback):
    """The control: what a callback that draws one random number does to training with dropout."""

    def on_save(self, args, state, control, **kwargs):
        torch.rand(1)


SITUATIONS = {
    "full": {},
    "checkpointing": {"gradient_checkpointing": True},
    "no checkpointing": {"gradient_checkpointing": False},
    "autocast": {"bf16": True},
    "accumulation": {"gradient_accumulation_steps": 2},
    "qwen3": {"kind": "qwen3"},
    "lora": {
        "peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1),
    },
}


def trained(tmp_path, name, *callbacks, situation):
    settings = dict(SITUATIONS[situation])
    peft_config = settings.pop("peft_config", None)
    if peft_config is not None:
        size = len(byte_level_tokenizer(chat=CHAT))
        torch.manual_seed(11)
        model = tiny_model(
            "llama-gqa", vocab_size=size, max_position_embeddings=256, attention_dropout=0.1
        )
        settings["model"] = wrapped(model)
        for name_, parameter in settings["model"].named_parameters():
            parameter.requires_grad_("lora_" in name_)
    return run(tmp_path / name, *callbacks, **settings)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_training_is_untouched_to_the_bit(tmp_path, situation):
    alone = trained(tmp_path, "alone", situation=situation)
    watched = trained(tmp_path, "watched", sparks(), situation=situation)
    assert RunStore.find(tmp_path / "watched").steps() == [0, 2, 4]
    assert weights_hash(watched.model) == weights_hash(alone.model)
    assert optimizer_hash(watched) == optimizer_hash(alone)
    assert logged(watched) == logged(alone)
    for file in ("tokenizer.json", "tokenizer_config.json", "rng_state.pth", "scheduler.pt"):
        ours = tmp_path / "watched" / "checkpoint-4" / file
        assert ours.read_bytes() == (tmp_path / "alone" / "checkpoint-4" / file).read_bytes()


def test_a_careless_callback_would_be_noticed(tmp_path):
    alone = run(tmp_path / "alone")
    careless = run(tmp_path / "careless", Careless())
    assert weights_hash(careless.model) != weights_hash(alone.model)


def test_the_model_is_left_as_found(tmp_path):
    trainer = tiny_trainer(tmp_path)
    model = trainer.model
    model.model.layers[1].train(False)
    model.model.norm.weight.requires_grad_(False)
    callback = sparks()
    before = state_of(model)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    trainer.state.is_world_process_zero = True
    arguments = (trainer.args, trainer.state, trainer.control)
    callback.on_train_begin(*arguments, model=model, processing_class=trainer.processing_class)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert state_of(model) == before


def state_of(model):
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ] + [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]


# -- resuming --------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_snapshots_of_a_straight_one(tmp_path):
    straight = run(tmp_path / "straight", sparks(), max_steps=6)
    resumed_dir = tmp_path / "resumed"
    run(resumed_dir, sparks(), max_steps=6)
    # As if it had been killed after the checkpoint of step 4 and before its snapshot.
    shutil.rmtree(resumed_dir / "checkpoint-6")
    (resumed_dir / "sparks" / "step-00000004.safetensors").unlink()
    again = run(resumed_dir, sparks(), max_steps=6, resume=True)
    assert weights_hash(again.model) == weights_hash(straight.model)
    ours, theirs = (RunStore.find(path).read() for path in (resumed_dir, tmp_path / "straight"))
    assert [s.step for s in ours.snapshots] == [s.step for s in theirs.snapshots] == [0, 2, 4, 6]
    for one, other in zip(ours.snapshots, theirs.snapshots, strict=True):
        np.testing.assert_array_equal(one.edge_score, other.edge_score)
        assert one.meta.model_hash == other.meta.model_hash
    assert ours.metrics[-2]["loss"] == theirs.metrics[-2]["loss"]
    stale = [path.name for path in (resumed_dir / "sparks").glob("*.stale")]
    assert stale == ["step-00000006.safetensors.stale"]


def test_a_script_started_again_leaves_the_old_run_whole(tmp_path, capsys):
    folder, kept = tmp_path / "sparks", []
    for number, steps in enumerate((4, 2, 1)):
        run(tmp_path, sparks(), max_steps=steps)
        told = [line for line in capsys.readouterr().err.splitlines() if "earlier run" in line]
        place = f"{folder} held an earlier run, which is now in {folder / f'attempt-{number}'}"
        assert told == ([f"sparks: {place}"] if number else [])
        kept.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert RunStore.find(tmp_path).steps() == [0, 1]
    for number, steps in ((1, [0, 2, 4]), (2, [0, 2])):
        attempt = folder / f"attempt-{number}"
        assert {path.name: path.read_bytes() for path in attempt.iterdir()} == kept[number - 1]
        assert Timeline.from_run(attempt).steps.tolist() == steps
    ids = [RunStore(path).read().run_id for path in (folder, *folder.glob("attempt-*"))]
    assert len({*ids, ""}) == 4
    assert not list(folder.rglob("*.stale*"))


def test_a_resumed_run_keeps_its_id_and_what_it_does_again(tmp_path):
    run(tmp_path, sparks(), max_steps=4)
    store = RunStore.find(tmp_path)
    first, last = store.read().run_id, store.file(4).read_bytes()
    for _ in range(2):
        run(tmp_path, sparks(), max_steps=4, resume=tmp_path / "checkpoint-2")
    contents = store.read()
    assert {snapshot.meta.run_id for snapshot in contents.snapshots} == {contents.run_id} == {first}
    stale = sorted(store.path.glob("*.stale*"))
    assert [path.name.partition(".")[2] for path in stale] == [
        "safetensors.stale", "safetensors.stale-2",
    ]  # fmt: skip
    assert stale[0].read_bytes() == last != stale[1].read_bytes()
    assert not list(store.path.glob("attempt*"))


def test_a_file_of_another_run_is_set_aside_by_a_resume(tmp_path):
    run(tmp_path / "one", sparks(), max_steps=4)
    run(tmp_path / "other", sparks(), max_steps=2)
    store, other = (RunStore.find(tmp_path / name) for name in ("one", "other"))
    shutil.copy(other.file(2), store.file(2))
    with pytest.warns(UserWarning, match=r"left out 1 snapshots of another run .*steps 2"):
        run(tmp_path / "one", sparks(), max_steps=4, resume=tmp_path / "one" / "checkpoint-2")
    assert [snapshot.step for snapshot in store.read().snapshots] == [0, 2, 4]
    assert store.read().problems == ()
    stale = store.file(2).with_name("step-00000002.safetensors.stale")
    assert stale.read_bytes() == other.file(2).read_bytes()


def test_a_second_training_is_refused_while_the_first_lives(tmp_path):
    run(tmp_path, sparks(), max_steps=2)
    before = listing(tmp_path / "sparks")
    with holder(tmp_path / "sparks"):
        for resume in (None, True):
            match = r"sparks is being written by another training or replay \(process \d+ on "
            with pytest.raises(SparksError, match=match):
                run(tmp_path, sparks(), max_steps=4, resume=resume)
    after = listing(tmp_path / "sparks")
    assert after.pop(".lock")
    assert after == before
    run(tmp_path, sparks(), max_steps=4, resume=True)
    assert RunStore.find(tmp_path).steps() == [0, 2, 4]
    assert ".lock" not in listing(tmp_path / "sparks")


def test_one_training_at_a_time_holds_its_folder(tmp_path):
    class Second(TrainerCallback):
        def on_save(self, *_, **__):
            done = subprocess.run(
                [sys.executable, "-c", HOLD, tmp_path / "sparks", ""],
                capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
            )  # fmt: skip
            said.append(done.stderr)

    said = []
    run(tmp_path, sparks(), Second(), max_steps=2)
    assert len(said) == 1
    assert f"is being written by another training or replay (process {os.getpid()} on " in said[0]


def test_only_the_first_and_the_last_two_snapshots_are_held_in_memory(tmp_path):
    for resume, whole in ((None, [0, 4, 5]), (tmp_path / "checkpoint-4", [0, 4, 5])):
        callback = sparks()
        run(tmp_path, callback, max_steps=5, save_steps=1, resume=resume)
        held = callback.recorder.snapshots
        assert held.steps == [0, 1, 2, 3, 4, 5]
        assert [step for i, step in enumerate(held.steps) if held[i] is held[i]] == whole
        for snapshot in held:
            kept = RunStore.find(tmp_path).load(snapshot.step)
            np.testing.assert_array_equal(snapshot.importance, kept.importance)
            np.testing.assert_array_equal(snapshot.edge_score, kept.edge_score)
            assert len(kept.edge_score)


def test_resuming_with_other_probes_is_refused(tmp_path):
    run(tmp_path, sparks(), max_steps=4)
    before = listing(tmp_path / "sparks")
    other = SparksCallback(ProbeSet(PROBES.probes[:2]), progress=False, **SETTINGS)
    with pytest.raises(SparksError, match=r"holds snapshots of other probes .step 0"):
        run(tmp_path, other, max_steps=4, resume=tmp_path / "checkpoint-2")
    assert listing(tmp_path / "sparks") == before


def test_resuming_with_other_settings_is_refused(tmp_path):
    run(tmp_path, sparks(), max_steps=2)
    before = listing(tmp_path / "sparks")
    match = r"a snapshot of step 0 with points=3, now it is 4: resume with the same settings"
    with pytest.raises(SparksError, match=match):
        run(tmp_path, sparks(points=4), max_steps=4, resume=True)
    assert listing(tmp_path / "sparks") == before
    run(tmp_path, sparks(memory_gib=1.0), max_steps=4, resume=True)
    assert list(Timeline.from_run(tmp_path).steps) == [0, 2, 4]


def test_secants_are_measured_and_resumed_alone(tmp_path):
    run(tmp_path, sparks(method="secant"), max_steps=2)
    run(tmp_path, sparks(method="secant", points=9), max_steps=4, resume=True)
    assert {meta.settings.method for meta in Timeline.from_run(tmp_path).metas} == {"secant"}
    with pytest.raises(SparksError, match="with method='secant', now it is 'eap-ig'"):
        run(tmp_path, sparks(), max_steps=6, resume=True)


def test_a_model_without_secants_is_measured_by_eap_ig_and_resumed(tmp_path, monkeypatch):
    monkeypatch.delitem(secant_rules._RULES, "silu")
    for steps, resume in ((2, None), (4, True)):
        with pytest.warns(
            UserWarning, match="EAP-IG in place of secants: .* secant of Silu"
        ) as told:
            run(tmp_path, sparks(method="secant"), max_steps=steps, resume=resume)
        assert len([item for item in told if "secant" in str(item.message)]) == 1
    run(tmp_path, sparks(), max_steps=6, resume=True)
    assert [meta.settings.method for meta in Timeline.from_run(tmp_path).metas] == ["eap-ig"] * 4


# -- broken off ------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ctrl-C, or a crash, in the third step."""

    def __init__(self, error):
        self.error = error

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise self.error


def last_words(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparks: ")]


def test_a_notebook_is_told_of_a_broken_training_when_it_trains_again(tmp_path, capsys):
    callback = SparksCallback(PROBES, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback, Stop(KeyboardInterrupt()))
    assert not any("broke off" in line for line in last_words(capsys))
    run(tmp_path, callback, max_steps=1)
    broke, _, again, _, moved, *later = last_words(capsys)
    assert broke.startswith("sparks: the training broke off: 2 snapshots in ")
    assert again == (
        f"sparks: look again with `sparks timeline {tmp_path}`; `sparks report {tmp_path}` writes "
        f"the page"
    )
    assert "held an earlier run" in moved
    assert len(later) == 5
    del callback  # a training that came to its end has nothing more to say
    gc.collect()
    assert last_words(capsys) == []


INTERRUPTED = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_callback import PROBES, SETTINGS, Stop, SparksCallback, run
error = KeyboardInterrupt() if sys.argv[2] == "ctrl-c" else RuntimeError("no memory left")
run(Path(sys.argv[1]), SparksCallback(PROBES, **SETTINGS), Stop(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "crash"])
def test_a_script_that_is_broken_off_says_what_it_left(tmp_path, how):
    code = INTERRUPTED.format(path=[str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, how], capture_output=True, text=True, timeout=120
    )
    assert done.returncode not in (0, None)
    *_, broke, verdict, again = done.stderr.splitlines()
    assert "KeyboardInterrupt" in done.stderr or "no memory left" in done.stderr
    assert broke == (
        f"sparks: the training broke off: 2 snapshots in {tmp_path / 'sparks'}; resumed, it goes "
        f"on with them"
    )
    assert verdict == f"sparks: {growth_in_words(Timeline.from_run(tmp_path))}"
    assert again.startswith(f"sparks: look again with `sparks timeline {tmp_path}`; ")
    assert done.stderr.count("broke off") == 1


# -- faults ----------------------------------------------------------------------------------------


class Break(TrainerCallback):
    """Puts nan into the weights after a step, and takes it out again one step later."""

    def on_step_end(self, args, state, control, **kwargs):
        weight = kwargs["model"].model.layers[1].self_attn.o_proj.weight
        if state.global_step == 2:
            self.kept = weight.detach().clone()
            weight.data[0, 0] = float("nan")

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            kwargs["model"].model.layers[1].self_attn.o_proj.weight.data.copy_(self.kept)


def test_a_failed_snapshot_leaves_a_hole_that_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"no snapshot of step 2 .*not finite.*training goes on"):
        run(tmp_path, Break(), sparks())
    contents = RunStore.find(tmp_path).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 4]
    assert len(contents.problems) == 1
    assert "step 2: no snapshot" in contents.problems[0]
    assert any("step 2" in problem for problem in Timeline.from_run(tmp_path).problems)


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError()])
def test_no_failure_of_a_snapshot_ends_the_training(tmp_path, monkeypatch, error):
    def fail_late(*arguments, step, **keywords):
        if step:
            raise error
        return take_snapshot(*arguments, step=step, **keywords)

    monkeypatch.setattr("sparks.training.recorder.take_snapshot", fail_late)
    with pytest.warns(UserWarning, match=r"step 2 \((odd|MemoryError)\); training goes on"):
        trainer = run(tmp_path, sparks(), max_steps=2)
    assert trainer.state.global_step == 2


def test_a_run_with_a_hole_can_be_resumed_at_it(tmp_path, monkeypatch):
    def fail_at_two(*arguments, step, **keywords):
        if step == 2:
            raise SparksError("odd")
        return take_snapshot(*arguments, step=step, **keywords)

    hole = r"no snapshot of step 2 \(odd\); training goes on"
    with monkeypatch.context() as broken:
        broken.setattr("sparks.training.recorder.take_snapshot", fail_at_two)
        with pytest.warns(UserWarning, match=hole):
            run(tmp_path, sparks(), max_steps=2)
        with pytest.warns(UserWarning, match=hole):
            run(tmp_path, sparks(), resume=True)
        assert RunStore.find(tmp_path).steps() == [0, 4]
        # What never worked stops a training before it is resumed, too.
        with pytest.raises(SparksError, match=r"\Aodd\Z"):
            run(tmp_path, sparks(output_dir=tmp_path / "other"), resume=tmp_path / "checkpoint-2")
    run(tmp_path, sparks(), resume=tmp_path / "checkpoint-2")
    assert RunStore.find(tmp_path).steps() == [0, 2, 4]
    assert RunStore.find(tmp_path).read().problems == ()


class InTheWay(TrainerCallback):
    """Folders under the names of step 2's files: neither the snapshot nor a note can be written."""

    def __init__(self, folder, *, until):
        self.names = [folder / f"step-00000002.{end}" for end in ("safetensors", "failed")]
        self.until = until

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for name in self.names:
                name.mkdir()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.until:
            for name in self.names:
                name.rmdir()


@pytest.mark.parametrize("until", [3, None])
def test_a_hole_that_cannot_be_noted_is_noted_later_and_said_at_the_end(tmp_path, capsys, until):
    folder = tmp_path / "sparks"
    with pytest.warns(
        UserWarning, match=r"no snapshot of step 2 \(cannot write .*training goes on"
    ):
        run(tmp_path, InTheWay(folder, until=until), sparks(report=False))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "no snapshot" in line]
    assert said.startswith("sparks: no snapshot of step 2 (cannot write ")
    assert said.endswith("; `sparks replay` takes it from a checkpoint")
    contents = RunStore(folder).read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 4]
    if until:
        (problem,) = contents.problems
        assert problem.startswith("step 2: no snapshot (cannot write ")


def test_holes_that_were_filled_are_not_told(tmp_path, capsys):
    recorder = Recorder(PROBES, SnapshotConfig(), RunStore(tmp_path), progress=False)
    for step in (2, 4, 6):
        recorder.note_failure("snapshot", step, f"odd {step}")
    recorder.note_failure("evaluation", 4, "even")
    recorder._fill_hole("snapshot", 2)
    recorder.tell_holes()
    assert capsys.readouterr().err.splitlines() == [
        "sparks: no snapshot of steps 4, 6 (the last: odd 6); `sparks replay` takes it from a "
        "checkpoint",
        "sparks: no evaluation of step 4 (even); `sparks replay` takes it from a checkpoint",
    ]


def test_a_log_that_cannot_be_written_does_not_take_the_trained_model_along(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "_keep", lambda *_: None)

    def full(*_):
        raise SparksError("cannot write metrics.json: No space left on device")

    monkeypatch.setattr(RunStore, "write_metrics", full)
    with pytest.warns(
        UserWarning, match="the log is not kept .cannot write metrics.json: No space"
    ):
        run(tmp_path / "warn", sparks(), max_steps=1)
    with pytest.raises(SparksError, match="No space left"):
        run(tmp_path / "raise", sparks(on_error="raise"), max_steps=1)


def test_a_failed_snapshot_can_stop_the_training(tmp_path):
    with pytest.raises(SparksError, match="not finite"):
        run(tmp_path, Break(), sparks(on_error="raise"))
    assert RunStore.find(tmp_path).steps() == [0]


def test_a_folder_that_cannot_be_written_stops_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SparksError, match=r"cannot write to .*give a folder you own"):
        run(tmp_path / "run", sparks(output_dir=tmp_path / "file" / "inside"))


def test_an_unknown_model_stops_before_the_first_step(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    size = len(byte_level_tokenizer(chat=CHAT))
    config = MambaConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(SparksError, match="sparks cannot take 'mamba' apart: its layers are not"):
        run(tmp_path, sparks(), model=MambaForCausalLM(config))


def test_a_trainer_without_a_tokenizer_is_told_what_lacks(tmp_path):
    trainer = tiny_trainer(tmp_path)
    arguments = (trainer.args, trainer.state, trainer.control)
    trainer.state.is_world_process_zero = True
    with pytest.raises(SparksError, match="no processing_class: give it the model's tokenizer"):
        sparks().on_train_begin(*arguments, model=trainer.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 0}, "points must be a whole number, at least 1, got 0"),
        ({"num_probes": 0}, "num_probes must be a whole number, at least 1, got 0"),
        ({"num_controls": True}, "num_controls must be a whole number, at least 0, got True"),
        ({"on_error": "ignore"}, "on_error must be warn or raise, got 'ignore'"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number, at least 1, got 0"),
        ({"threshold": None}, "threshold must be a finite number, at least 0, got None"),
        ({"swap_base_roles": "no"}, "swap_base_roles must be True or False, got 'no'"),
        ({"config": SnapshotConfig()}, "config or settings by name, not both"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(SparksError, match=message):
        sparks(**settings)


def test_probes_are_read_when_the_callback_is_made(tmp_path):
    with pytest.raises(SparksError, match=r"absent\.jsonl"):
        SparksCallback(tmp_path / "absent.jsonl")
    with pytest.raises(SparksError, match="probes must be a JSONL file, a ProbeSet, or a list or "):
        SparksCallback(5)
    with pytest.raises(SparksError, match="record 2: corrupted missing: a probe needs prompt, "):
        SparksCallback([PROBES.probes[0], {"prompt": "1 + 1", "clean": "2"}])


@pytest.mark.parametrize("step", [-1, True, 1.5, None])
def test_a_snapshot_needs_a_step_and_tokenised_probes(step):
    model, tokenizer = tiny_model("llama-gqa"), byte_level_tokenizer(chat=CHAT)
    with pytest.raises(SparksError, match=rf"step must be a whole number, at least 0, got {step}"):
        take_snapshot(model, PROBES.tokenize(tokenizer, max_suffix_tokens=4), step=step)
    with pytest.raises(SparksError, match="probes must be TokenizedProbes, got ProbeSet: "):
        take_snapshot(model, PROBES)


def test_settings_in_a_dict_are_refused():
    with pytest.raises(SparksError, match="config must be a SnapshotConfig, got dict: give sett"):
        SparksCallback(PROBES, config={"points": 3})


def test_the_written_log_is_json_without_nan(tmp_path):
    run(tmp_path, sparks(), max_steps=2)
    rows = json.loads((tmp_path / "sparks" / "metrics.json").read_text())
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
