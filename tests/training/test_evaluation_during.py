"""Evaluation of checkpoints in a real training: untouched, kept, resumed, refused in time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, call
from evaluations_made_here import LENGTHS, SAMPLED
from tiny_training import PROBES, logged, optimizer_hash, tiny_trainer, weights_hash
from tokenizers_made_here import CHAT, byte_level_tokenizer

from sparks.evaluation.results import Evaluation
from sparks.evaluation.run import in_order
from sparks.evaluation.samplers import TransformersSampler
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.runs.evaluations import EvaluationFolder
from sparks.runs.run_folder import RunStore
from sparks.timeline.answers import EvaluationHistory
from sparks.training.callback import SparksCallback
from sparks.training.evaluator import CheckpointEvaluator
from sparks.training.recorder import evaluation_line
from sparks.training.replay import replay_checkpoints

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)
SETTINGS = {"points": 3, "threshold": 0.0, "top_n": 60}


def sparks(**settings) -> SparksCallback:
    given = {"evaluate": LENGTHS, "evaluation": SAMPLED, "progress": False} | SETTINGS | settings
    return SparksCallback(PROBES, **given)


def run(folder: Path, *callbacks, resume=None, **settings):
    trainer = tiny_trainer(folder, callbacks=list(callbacks), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def lines(folder: Path, step: int) -> list[dict]:
    """Header and samples of a step, without what a clock decides."""
    text = EvaluationFolder(folder / "sparks").file(step).read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "model")}
        for line in text.splitlines()
    ]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A trainer that was evaluated at 0, 2 and 4, each once, and its callback."""
    callback = sparks()
    asked, evaluate = [], CheckpointEvaluator.run

    def noted(self, model, tokenizer, folder, step, **keywords):
        asked.append(step)
        return evaluate(self, model, tokenizer, folder, step, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointEvaluator, "run", noted)
        trainer = run(tmp_path_factory.mktemp("evaluated") / "run", callback)
    assert asked == [0, 2, 4]
    return trainer, callback


@pytest.fixture
def trained(watched) -> Path:
    """Its output folder."""
    return Path(watched[0].args.output_dir)


# -- what is there ---------------------------------------------------------------------------------


def test_every_checkpoint_is_evaluated_and_read_back(trained):
    store = RunStore.find(trained)
    contents = store.read()
    assert contents.problems == ()
    assert store.evaluations.steps() == store.steps() == [0, 2, 4]
    assert [item.step for item in contents.evaluations] == [0, 2, 4]
    for item in contents.evaluations:
        whole = Evaluation.load(store.evaluations.file(item.step))
        assert (whole.samples, len(whole.problems)) == (2, 5)
        assert item.pass_at_1() == whole.pass_at(1)
        assert item.correct.tolist() == [list(problem.correct) for problem in whole.problems]
        assert whole.fingerprint == store.load(item.step).meta.model_hash
    assert EvaluationHistory.from_run(trained).progress()["step"].tolist() == [0, 2, 4]


def test_training_is_untouched_to_the_bit(tmp_path, watched, trained):
    alone = run(tmp_path)
    assert weights_hash(watched[0].model) == weights_hash(alone.model)
    assert optimizer_hash(watched[0]) == optimizer_hash(alone)
    assert logged(watched[0]) == logged(alone)
    for file in ("tokenizer.json", "tokenizer_config.json", "rng_state.pth", "scheduler.pt"):
        ours = trained / "checkpoint-4" / file
        assert ours.read_bytes() == (tmp_path / "checkpoint-4" / file).read_bytes()


def test_the_time_is_told(watched):
    recorder = watched[1].recorder
    taken = sum(snapshot.meta.seconds for snapshot in recorder.snapshots)
    assert recorder._spent >= taken + recorder._spent_evaluating
    assert 0 < recorder._spent_evaluating < recorder._spent < recorder.seconds
    assert recorder.summary().endswith("s of it on 3 evaluations")
    item = recorder.evaluations[2]
    told = evaluation_line(item, 1.5, 0.25)
    assert told.startswith(f"step 2: pass@1 {item.correct.mean():.1%} (")
    assert told.endswith(" on 5 problems of length, 1.5 s, 25.0% of the time so far")


# -- resuming --------------------------------------------------------------------------------------


def test_a_resumed_training_keeps_its_evaluations(tmp_path, trained):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    folder = EvaluationFolder(tmp_path / "sparks")
    before = {step: folder.file(step).read_bytes() for step in (0, 2, 4)}
    folder.file(2).write_bytes(before[2][: before[2].index(b"\n") + 50])  # torn
    folder.part(6).write_text("half")
    with pytest.warns(UserWarning, match=r"step-00000002.jsonl: unfinished, 0 of 10 samples"):
        run(tmp_path, sparks(), resume=tmp_path / "checkpoint-2")
    assert folder.file(0).read_bytes() == before[0]
    assert len(lines(tmp_path, 2)) == len(lines(tmp_path, 4)) == 11
    assert [path.name for path in folder.path.glob("*.stale")] == ["step-00000004.jsonl.stale"]
    assert not folder.part(6).exists()
    with pytest.raises(SparksError, match=r"holds an evaluation of step 0 of samples 2, not 3: "):
        run(tmp_path, sparks(evaluation=EvaluationConfig(samples=3, max_new_tokens=6)), resume=True)


# -- faults ----------------------------------------------------------------------------------------


def test_an_evaluation_that_fails_leaves_the_snapshot_and_the_training(tmp_path, monkeypatch):
    evaluate = CheckpointEvaluator.run

    def fail_at_one(self, model, tokenizer, folder, step, **keywords):
        if step == 1:
            raise torch.OutOfMemoryError("no memory left")
        return evaluate(self, model, tokenizer, folder, step, **keywords)

    monkeypatch.setattr(CheckpointEvaluator, "run", fail_at_one)
    with pytest.warns(UserWarning, match=r"no evaluation of step 1 .*no memory left.*goes on"):
        trainer = run(tmp_path / "warn", sparks(), max_steps=2, save_steps=1)
    assert trainer.state.global_step == 2
    contents = RunStore.find(tmp_path / "warn").read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 1, 2]
    assert [item.step for item in contents.evaluations] == [0, 2]
    assert contents.problems == ("step 1: no evaluation (no memory left)",)
    with pytest.raises(SparksError, match=r"no evaluation of step 1 .*with on_error='warn'"):
        run(tmp_path / "raise", sparks(on_error="raise"), max_steps=1)


def test_mistakes_are_told_before_the_first_step(tmp_path):
    long = sparks(evaluation=EvaluationConfig())
    trainer = tiny_trainer(tmp_path, callbacks=[long])
    with pytest.raises(SparksError, match="no chat template"):
        sparks().evaluator.check(trainer.model, byte_level_tokenizer(chat=None))
    with pytest.raises(SparksError, match=r"lower max_new_tokens to \d+"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not (tmp_path / "sparks").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate": "gsm9k", "evaluation": None}, "unknown task 'gsm9k'"),
        ({"evaluate": "absent.jsonl", "evaluation": None}, r"cannot read .*absent\.jsonl"),
        ({"evaluate": None}, "evaluation says how to evaluate, but not on what: give evaluate="),
        ({"evaluation": {"samples": 2}}, "evaluation must be an EvaluationConfig, got dict"),
        ({"evaluation": EvaluationConfig(backend="vllm")}, "vllm .* cannot take the one in train"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(SparksError, match=message):
        sparks(**settings)


# -- replay ----------------------------------------------------------------------------------------


def test_a_replay_samples_what_the_callback_sampled(trained, tmp_path):
    once = {"evaluate": LENGTHS, "evaluation": SAMPLED, "output_dir": tmp_path / "sparks"}
    device = {"device": "cpu", "progress": False}
    config = sparks().config
    replay_checkpoints([trained], PROBES, config=config, **once, **device)
    for step in (2, 4):
        assert lines(tmp_path, step) == lines(trained, step)
    # Done ones are not repeated; a torn one goes on behind its last whole line.
    folder = EvaluationFolder(tmp_path / "sparks")
    done, torn = folder.file(2), folder.file(4).read_bytes()
    before = done.stat().st_mtime_ns
    folder.file(4).unlink()
    folder.part(4).write_bytes(torn[:-200])
    replay_checkpoints([trained], PROBES, config=config, **once, **device)
    assert done.stat().st_mtime_ns == before
    assert lines(tmp_path, 4) == lines(trained, 4)
    kept = torn[:-200].rpartition(b"\n")[0]
    assert folder.file(4).read_bytes().startswith(kept)
    assert not folder.part(4).exists()


def test_the_command_replays_and_refuses(trained, tmp_path, capsys):
    probes = PROBES.save(tmp_path / "probes.jsonl")
    problems = tmp_path / "sums.jsonl"
    problems.write_text('{"problem": "1 + 1?", "answer": 2}\n{"problem": "2 + 2?", "answer": 4}\n')
    out = tmp_path / "out"
    common = (
        "replay", trained / "checkpoint-2", "--probes", probes, "--output", out, "--device", "cpu",
        "--points", 3, "--threshold", 0, "--top-n", 60,
    )  # fmt: skip
    inside = tmp_path / "out"
    assert_refused(
        capsys, inside, *common, "--samples", 2, match="--samples says how to evaluate, but not on"
    )
    assert_refused(capsys, inside, *common, "--evaluate", "gsm9k", match="unknown task 'gsm9k'")
    more = ("--evaluate", problems, "--samples", 2, "--max-new-tokens", 4, "--limit", 1)
    assert call(*common, *more) == 0
    assert "1 snapshots and 1 evaluations in" in capsys.readouterr().out
    (item,) = RunStore(out).read().evaluations
    assert (item.task, item.step, item.correct.shape) == ("sums", 2, (1, 2))
    assert item.problems == ("1 + 1?",)


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_processes_are_together_what_one_samples(tmp_path, count, monkeypatch):
    """Each process samples its own batches; one after the other here."""
    model, tokenizer = tiny_trainer(tmp_path).model, byte_level_tokenizer(chat=CHAT)
    evaluator = CheckpointEvaluator(
        LENGTHS, EvaluationConfig(samples=3, max_new_tokens=6, batch_size=4)
    )
    sampled, sample = [], TransformersSampler.sample

    def counted(*arguments):
        sampled[-1] += 1
        return sample(*arguments)

    monkeypatch.setattr(TransformersSampler, "sample", counted)

    def share(index, of):
        sampled.append(0)
        return evaluator._samples(model, tokenizer, None, share=(index, of), progress=False)

    alone, *parts = [share(0, 1), *(share(index, count) for index in range(count))]
    sizes = [len(lines) for _, lines in parts]
    assert max(sizes) - min(sizes) <= 4
    assert all(header == alone[0] for header, _ in parts)
    found = in_order(LENGTHS, [line for _, lines in parts for line in lines])
    assert [replace(line, seconds=0) for line in found] == [
        replace(line, seconds=0) for line in alone[1]
    ]
    assert any(line.tokens for line in found)
    assert sampled == [4, *(len(range(index, 4, count)) for index in range(count))]
