"""A callback without probes: they come from what is trained, under every kind of trainer."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_trainers import MESSAGES, REGIMES, SETTINGS, even_ids, llama, lora, train, trainer_of
from tiny_training import PROBES, tiny_trainer
from tokenizers_made_here import CHAT, byte_level_tokenizer
from trl import GRPOConfig, GRPOTrainer

from sparks.ground.errors import SparksError
from sparks.probes.pairs import TokenPair
from sparks.probes.probes import Probe, ProbeSet
from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)

SETTINGS_OF_OURS: dict[str, Any] = {
    "points": 2, "threshold": 0.0, "top_n": 60, "num_probes": 8, "num_controls": 2,
    "faithfulness": False, "report": False, "progress": False,
}  # fmt: skip


def sparks(**settings: Any) -> SparksCallback:
    return SparksCallback(**SETTINGS_OF_OURS | settings)


def told(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparks: ")]


WORDS = {
    "sft": "the supervised part against what the model writes",
    "dpo": "chosen against rejected",
    "kto": "desirable against undesirable, or what the model writes",
    "grpo": "an answer with more against one with less reward",
    "rloo": "an answer with more against one with less reward",
    "distillation": "what the teacher writes against what the model writes",
    "gkd": "what the teacher writes against what the model writes",
    "plain": "the supervised part against what the model writes",
}
ALONE = {"grpo", "rloo", "distillation", "gkd"}
"""Trainers whose callback has to be attached for this."""
CLEAN = {"sft": "<think>\nI add.", "dpo": "<think>\nI add.", "kto": "<think>\nI add."}


@pytest.mark.slow
@pytest.mark.parametrize("regime", [*REGIMES, "plain", "sft lora", "grpo lora"])
def test_probes_from_what_is_trained_leave_the_training_untouched(tmp_path, regime, capsys):
    own = {"peft_config": lora()} if regime.endswith(" lora") else {}
    kind = regime.removesuffix(" lora")
    settings = own | {"max_steps": 2}
    expected = train(trainer_of(kind, tmp_path / "alone", **settings))
    capsys.readouterr()
    few = {"num_probes": 6} if kind == "plain" else {}
    callback = sparks(**few)
    attached = kind in ALONE
    trainer = trainer_of(kind, tmp_path / "watched", *[callback] * (not attached), **settings)
    if attached:
        assert SparksCallback.attach(trainer, callback) is callback
    watched = train(trainer)
    for name in ("weights", "optimizer", "log", "checkpoint", "random", "flags"):
        assert getattr(watched, name) == getattr(expected, name), name
    # What was sampled for the probes came before all that the training sampled.
    count = len(expected.sampled)
    assert watched.sampled[len(watched.sampled) - count :] == expected.sampled
    assert (len(watched.sampled) > count) is (kind != "dpo")
    building, built, *few = told(capsys)
    assert all(line.startswith("sparks: warning: only ") for line in few)
    assert building.startswith(
        f"sparks: building {callback.wishes.num_probes} probes from the training data "
        f"({WORDS[kind]}): "
    )
    assert building.endswith("x 2 passes forward and back")
    store = RunStore.find(tmp_path / "watched")
    assert f" probes from the training data ({WORDS[kind]}" in built
    assert f"2 control probes, in {store.path / 'probes.jsonl'}, " in built
    probes = ProbeSet.load(store.path / "probes.jsonl")
    groups = [probe.group for probe in probes]
    assert groups == [""] * callback.wishes.num_probes + ["control"] * 2
    for probe in probes.probes[:-2]:
        assert probe.clean.startswith(CLEAN.get(kind, ""))
        assert probe.clean != probe.corrupted
    if kind == "dpo":
        assert all(probe.corrupted.startswith("<think>\nI add.") for probe in probes.probes[:-2])
    contents = store.read()
    assert contents.problems == ()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2]
    assert contents.snapshots[0].probe_ids == tuple(probe.id for probe in probes)


@pytest.mark.slow
def test_a_streamed_data_set_is_trained_as_without_the_callback(tmp_path, monkeypatch):
    streamed = replace(REGIMES["sft"], data=MESSAGES.to_iterable_dataset())
    monkeypatch.setitem(REGIMES, "sft", streamed)
    alone, watched = (
        train(trainer_of("sft", tmp_path / name, *[sparks()] * (name == "watched"), max_steps=2))
        for name in ("alone", "watched")
    )
    assert replace(watched, sampled=[]) == alone
    assert len(ProbeSet.load(tmp_path / "watched" / "sparks" / "probes.jsonl")) == 10


def test_a_resumed_run_takes_its_probes_from_the_folder(tmp_path, capsys):
    whole = tmp_path / "whole"
    for folder in (whole, tmp_path / "again"):
        tiny_trainer(folder, callbacks=[sparks()]).train()
    first = (whole / "sparks" / "probes.jsonl").read_text()
    # The same data give the same probes; a changed file shows that none are built anew.
    assert (tmp_path / "again" / "sparks" / "probes.jsonl").read_text() == first
    told(capsys)
    shutil.rmtree(whole / "checkpoint-4")
    tiny_trainer(whole, callbacks=[sparks(num_probes=9)]).train(resume_from_checkpoint=True)
    (line,) = told(capsys)
    assert line.startswith("sparks: 10 probes of the run that is resumed, from ")
    assert (whole / "sparks" / "probes.jsonl").read_text() == first
    assert RunStore.find(whole).steps() == [0, 2, 4]
    # A run that was begun without the callback has none yet.
    bare = tmp_path / "bare"
    tiny_trainer(bare).train()
    tiny_trainer(bare, callbacks=[sparks()]).train(resume_from_checkpoint=bare / "checkpoint-2")
    assert len(told(capsys)) == 2
    assert RunStore.find(bare).steps() == [2, 4]


def test_fewer_rows_than_wanted_are_told_and_too_few_are_refused(tmp_path, capsys):
    tiny_trainer(tmp_path / "all", max_steps=1, callbacks=[sparks(num_probes=30)]).train()
    assert "sparks: 24 of 30 probes from the training data (" in told(capsys)[1]
    trainer = tiny_trainer(tmp_path / "few", callbacks=[sparks()])
    trainer.train_dataset = trainer.train_dataset.select(range(5))
    match = (
        r"only 5 of 8 probes from the training data: 0 problems were passed over.*; or give probes,"
        r" as in SparksCallback\('probes.jsonl'\): `sparks probes` builds them\Z"
    )
    with pytest.raises(SparksError, match=match):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not RunStore(tmp_path / "few" / "sparks").steps()


def test_a_model_without_room_for_control_probes_goes_without(tmp_path, capsys):
    # Continuations of one token hold no list to copy and no fact.
    callback = sparks(max_suffix_tokens=1)
    tiny_trainer(tmp_path, max_steps=1, callbacks=[callback]).train()
    assert ", no control probes (only 0 of 2 control probes of kind both fit" in told(capsys)[1]


# -- prompts alone ---------------------------------------------------------------------------------


def prompts_trainer(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> GRPOTrainer:
    tokenizer = byte_level_tokenizer(chat=CHAT)
    options = SETTINGS | {"max_completion_length": 8, "num_generations": 4, "max_steps": 1}
    return GRPOTrainer(
        model=llama(len(tokenizer), seed=0),
        args=GRPOConfig(output_dir=str(folder), **options | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        reward_funcs=even_ids,
    )


def asked(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": f"What is {number} + 1?"}]} | more


def test_a_reference_answer_is_clean_where_the_data_have_one(tmp_path, capsys):
    rows = [asked(n, gold=f"It is {n + 1}, I know.", solution=f"So {n + 1}.") for n in range(12)]
    for folder, reference, start in (("named", "gold", "It is"), ("usual", None, "So ")):
        trainer = prompts_trainer(tmp_path / folder, rows)
        trainer.add_callback(sparks(reference=reference))
        trainer.train()
        probes = ProbeSet.load(tmp_path / folder / "sparks" / "probes.jsonl")
        assert all(probe.clean.startswith(start) for probe in probes.probes[:8])
        assert f"({reference or 'solution'} against what the model writes)" in told(capsys)[0]
    trainer = prompts_trainer(tmp_path / "typo", rows)
    trainer.add_callback(sparks(reference="golden"))
    match = r"reference must be a column of the training data \(prompt, gold, solution\), got 'gol"
    with pytest.raises(SparksError, match=match):
        trainer.train()


def test_prompts_alone_need_rewards_or_a_teacher(tmp_path):
    trainer = prompts_trainer(tmp_path, [asked(n) for n in range(12)])
    trainer.add_callback(sparks())
    match = (
        r"no probes from the training data: its rows hold prompts alone \(prompt\). Give the "
        r"trainer its callback with SparksCallback.attach\(trainer\), which knows its rewards"
    )
    with pytest.raises(SparksError, match=match):
        trainer.train()
    attached = SparksCallback.attach(trainer)
    assert attached in trainer.callback_handler.callbacks
    assert attached.wishes.reward_funcs == (even_ids,)
    assert attached.wishes.reward_weights == [1.0]
    assert attached.wishes.teacher is None


def test_reward_functions_can_be_handed_in(tmp_path):
    asked_with: list[dict[str, Any]] = []

    async def lengths(prompts, completions, completion_ids, kind, **more):
        asked_with.append(more)
        assert prompts[0] == [{"role": "user", "content": prompts[0][0]["content"]}]
        assert completions[0][0]["role"] == "assistant"
        assert set(kind) == {"sum"}
        more["log_metric"]("ours", 1.0)
        return [float(len(ids)) - sum(ids) / 1e4 for ids in completion_ids]

    trainer = prompts_trainer(tmp_path, [asked(n, kind="sum") for n in range(12)])
    trainer.add_callback(sparks(reward_funcs=lengths))
    trainer.train()
    assert set(asked_with[0]) == {"trainer_state", "log_extra", "log_metric"}
    assert not any("ours" in name for row in trainer.state.log_history for name in row)


def test_rewards_that_say_nothing_or_fail_are_told(tmp_path):
    def same(completions, **_):
        return [0.5] * len(completions)

    def broken(completions, **_):
        raise KeyError("answer")

    def short(completions, **_):
        return [1.0]

    for number, (reward, match) in enumerate(
        (
            (same, r"only 0 of 8 .* all 4 sampled answers have the reward 0.5; give more or other"),
            (broken, "the reward function broken fails on sampled answers .'answer'.: mend it, or"),
            (short, "the reward function short gave 1 rewards for 32"),
            (torch.nn.Linear(1, 1), "reward functions can be asked .* Linear cannot: hand in func"),
        )
    ):
        trainer = prompts_trainer(tmp_path / str(number), [asked(n) for n in range(12)])
        trainer.add_callback(sparks(reward_funcs=[reward]))
        with pytest.raises(SparksError, match=match):
            trainer.train()


def test_data_that_cannot_be_read_are_told_before_the_first_step(tmp_path):
    callback, trainer = sparks(), tiny_trainer(tmp_path)
    trainer.state.is_world_process_zero = True
    common = {"model": trainer.model, "processing_class": trainer.processing_class}

    class Loader:
        dataset: Any = None

    for rows, match in (
        (None, "no probes, and no training data to build them from: give probes"),
        ([], "no probes from the training data: the training data are empty; give probes, as in"),
        ([[1, 2]], "the rows of the training data are list, no dictionaries; give probes"),
        ([{"pixels": [1]}], "the rows of the training data have pixels, of which none is a prompt"),
        (
            [{"prompt": 5}] * 9,
            r"no probes from the training data: row \d of the training data: prompt must be text",
        ),
    ):
        Loader.dataset = rows
        with pytest.raises(SparksError, match=match):
            callback.on_train_begin(
                trainer.args, trainer.state, trainer.control, train_dataloader=Loader, **common
            )


# -- in memory -------------------------------------------------------------------------------------


def test_probes_can_be_given_in_any_form(tmp_path):
    records = [probe.to_record() for probe in PROBES]
    path = PROBES.save(tmp_path / "probes.jsonl")
    given = (
        path, str(path), PROBES, records, list(PROBES), tuple(PROBES), Dataset.from_list(records),
        Dataset.from_list([{**records[0], "id": None}, *records[1:]]),
    )  # fmt: skip
    for form in given:
        assert SparksCallback(form).probes == PROBES


def test_token_pairs_are_measured_as_they_are(tmp_path):
    tokenized = PROBES.tokenize(byte_level_tokenizer(chat=CHAT), max_suffix_tokens=16)
    tiny_trainer(tmp_path, max_steps=1, callbacks=[sparks(probes=list(tokenized.pairs))]).train()
    kept = ProbeSet.load(tmp_path / "sparks" / "probes.jsonl")
    again = kept.tokenize(byte_level_tokenizer(chat=CHAT), max_suffix_tokens=16)
    assert again.pairs == tokenized.pairs
    assert all(isinstance(probe, Probe) and isinstance(probe.prompt, str) for probe in kept)
    # Bytes that are half a character are no text.
    half = byte_level_tokenizer()("\U0001f642")["input_ids"][:1]
    pair = TokenPair([1], half, [20])
    trainer = tiny_trainer(tmp_path / "half", callbacks=[sparks(probes=[pair])])
    with pytest.raises(SparksError, match="pair 1: no text has its tokens: give the probe as text"):
        trainer.train()
