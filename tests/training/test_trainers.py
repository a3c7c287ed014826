"""The callback under every kind of trainer: training never notices, and its numbers are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainers import Outcome, lora, train, trainer_of
from tiny_training import PROBES
from transformers import TrainerCallback

from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Timeline
from sparks.training.callback import SparksCallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        # transformers and trl among themselves, at the versions pinned.
        "ignore:.*gradient_checkpointing.*:FutureWarning",
        "ignore:.*is deprecated.*:FutureWarning",
        "ignore:.*pin_memory.*:UserWarning",
    ),
]

SITUATIONS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "sft": ("sft", dict),
    "sft lora": ("sft", lambda: {"peft_config": lora()}),
    "sft bf16": ("sft", lambda: {"bf16": True}),
    # TRL checkpoints activations unless told otherwise; see the test of it.
    "grpo": ("grpo", dict),
    "grpo lora": ("grpo", lambda: {"peft_config": lora()}),
    "grpo bf16": ("grpo", lambda: {"bf16": True}),
    "grpo, no checkpointing": ("grpo", lambda: {"activation_checkpointing": False}),
    # Completions are drawn every third step and used for three: saves fall between.
    "grpo buffered": ("grpo", lambda: {"steps_per_generation": 3}),
    "distillation": ("distillation", dict),
    "distillation lora": ("distillation", lambda: {"peft_config": lora()}),
    "distillation bf16": ("distillation", lambda: {"bf16": True}),
    "distillation, no checkpointing": ("distillation", lambda: {"activation_checkpointing": False}),
    "gkd": ("gkd", dict),
    "dpo": ("dpo", dict),
    "kto": ("kto", dict),
    "rloo": ("rloo", dict),
    "plain": ("plain", dict),
}
SAMPLING = ("grpo", "rloo", "distillation", "gkd")
"""Regimes that draw completions while they train."""
GENERATIONS = {"grpo buffered": 2, "gkd": 3}
"""Where it is not one a step: GKD throws a coin."""
REGIMES = tuple(dict.fromkeys(regime for regime, _ in SITUATIONS.values()))
Runs = Callable[..., tuple[Path, Outcome]]


def sparks() -> SparksCallback:
    return SparksCallback(PROBES, progress=False, points=3, threshold=0.0, top_n=60)


def run(folder: Path, situation: str, *callbacks: TrainerCallback, resume=None) -> Outcome:
    regime, settings = SITUATIONS[situation]
    return train(trainer_of(regime, folder, *callbacks, **settings()), resume=resume)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """`runs(situation, watched)`: folder and outcome of a run; each is trained once."""
    found: dict[tuple[str, bool], tuple[Path, Outcome]] = {}

    def of(situation: str, watched: bool = False) -> tuple[Path, Outcome]:
        if (situation, watched) not in found:
            folder = tmp_path_factory.mktemp("run")
            callbacks = [sparks()] if watched else []
            found[situation, watched] = folder, run(folder, situation, *callbacks)
        return found[situation, watched]

    return of


def steps_of(outcome: Outcome, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in outcome.log if key in row}


# -- untouched -------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", SITUATIONS)
def test_training_is_untouched_to_the_bit(runs, situation):
    _, expected = runs(situation)
    folder, watched = runs(situation, watched=True)
    assert watched.weights == expected.weights
    assert watched.optimizer == expected.optimizer
    assert watched.log == expected.log
    assert watched.sampled == expected.sampled
    assert watched.checkpoint == expected.checkpoint
    assert watched.random == expected.random
    assert watched.flags == expected.flags
    # It was a training, and it was measured.
    sampling = SITUATIONS[situation][0] in SAMPLING
    assert len(expected.sampled) == (GENERATIONS.get(situation, 4) if sampling else 0)
    assert all(norm > 0 for norm in steps_of(expected, "grad_norm").values())
    contents = RunStore.find(folder).read()
    assert contents.problems == ()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4]
    assert len({snapshot.meta.model_hash for snapshot in contents.snapshots}) == 3


def test_the_situations_are_different_trainings(runs):
    # Checkpointing of activations changes no bit: it has its own test.
    different = [situation for situation in SITUATIONS if "checkpointing" not in situation]
    assert len({runs(situation)[1].weights for situation in different}) == len(different)


@pytest.mark.parametrize("regime", ["grpo", "distillation"])
def test_checkpointing_of_activations_is_on_and_off(tmp_path, regime):
    for situation, expected in ((regime, True), (f"{regime}, no checkpointing", False)):
        trainer = trainer_of(regime, tmp_path, **SITUATIONS[situation][1]())
        assert trainer.args.activation_checkpointing is expected


class Careless(TrainerCallback):
    """The control: what a callback that draws one random number at each save does."""

    def on_save(self, args, state, control, **kwargs):
        torch.rand(1)


@pytest.mark.parametrize("situation", [*REGIMES, "grpo lora", "distillation lora"])
def test_a_careless_callback_would_be_noticed(tmp_path, runs, situation):
    careless, (_, expected) = run(tmp_path, situation, Careless()), runs(situation)
    assert careless.weights != expected.weights
    assert careless.optimizer != expected.optimizer
    assert careless.log != expected.log
    assert careless.random != expected.random
    assert careless.log[:2] == expected.log[:2]
    if situation != "gkd" and SITUATIONS[situation][0] in SAMPLING:
        # Completions are the same up to the first save, and other ones after it.
        assert careless.sampled[:2] == expected.sampled[:2]
        assert careless.sampled[2] != expected.sampled[2]


RESUMED = [
    f"{regime}{how}" for regime in ("sft", "grpo", "distillation") for how in ("", " lora", " bf16")
]


@pytest.mark.parametrize("situation", [*RESUMED, "plain"])
def test_a_resumed_training_is_untouched_too(tmp_path, runs, situation):
    outcomes = []
    for watched in (False, True):
        folder = tmp_path / str(watched)
        shutil.copytree(runs(situation, watched)[0], folder)
        callbacks = [sparks()] if watched else []
        outcomes.append(run(folder, situation, *callbacks, resume=folder / "checkpoint-2"))
    assert outcomes[1] == outcomes[0]
    # It had its first half from the checkpoint.
    assert len(outcomes[0].sampled) == (2 if SITUATIONS[situation][0] in SAMPLING else 0)
    assert {row["step"] for row in outcomes[0].log} == {1, 2, 3, 4}
    resumed, straight = (
        RunStore.find(path).read() for path in (tmp_path / "True", runs(situation, True)[0])
    )
    assert [snapshot.step for snapshot in resumed.snapshots] == [0, 2, 4]
    assert resumed.problems == ()
    assert (tmp_path / "True" / "sparks" / "step-00000004.safetensors.stale").exists()
    for one, other in zip(resumed.snapshots[:2], straight.snapshots[:2], strict=True):
        assert one.meta.created == other.meta.created  # kept, not measured again


# -- the trainer's own numbers ---------------------------------------------------------------------

KEYS = {
    "sft": ("loss", "mean_token_accuracy"),
    "grpo": ("reward", "reward_std", "rewards/even_ids/mean"),
    "rloo": ("reward", "reward_std", "rewards/even_ids/mean"),
    "distillation": ("loss",),
    "gkd": ("loss",),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins"),
    "kto": ("loss", "rewards/margins"),
    "plain": ("loss",),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_rewards_and_losses_stand_in_the_snapshot_and_in_the_timeline(runs, regime):
    folder, outcome = runs(regime, watched=True)
    base, *later = RunStore.find(folder).read().snapshots
    assert base.meta.metrics == {}
    frame = Timeline.from_run(folder).metrics()
    for key in KEYS[regime]:
        logged = steps_of(outcome, key)
        assert set(logged) == {1, 2, 3, 4}
        assert len(set(logged.values())) > 1
        assert {snapshot.step: snapshot.meta.metrics[key] for snapshot in later} == {
            step: logged[step] for step in (2, 4)
        }
        assert frame[key].dropna().to_dict() == logged
