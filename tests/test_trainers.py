"""The callback under GRPO, distillation and the plain Trainer: training never notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_trainers import Outcome, lora, train, trainer_of
from tiny_training import PROBES
from transformers import TrainerCallback

from sparks.callback import SparksCallback
from sparks.store import RunStore
from sparks.timeline import Timeline

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)

SITUATIONS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "grpo": ("grpo", dict),
    "grpo lora": ("grpo", lambda: {"peft_config": lora()}),
    "grpo bf16": ("grpo", lambda: {"bf16": True}),
    # Completions are drawn every third step and used for three: saves fall between.
    "grpo buffered": ("grpo", lambda: {"steps_per_generation": 3}),
    "distillation": ("distillation", dict),
    "distillation lora": ("distillation", lambda: {"peft_config": lora()}),
    "distillation bf16": ("distillation", lambda: {"bf16": True}),
    "plain": ("plain", dict),
}
GENERATIONS = {"grpo buffered": 2, "plain": 0}
"""Where it is not one a step."""


def sparks() -> SparksCallback:
    return SparksCallback(PROBES, progress=False, steps=3, threshold=0.0, top_n=60)


def run(folder, situation: str, *callbacks: TrainerCallback) -> Outcome:
    regime, settings = SITUATIONS[situation]
    return train(trainer_of(regime, folder, *callbacks, **settings()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], Outcome]:
    """What a run without the callback leaves; each situation is trained once."""
    found: dict[str, Outcome] = {}

    def of(situation: str) -> Outcome:
        if situation not in found:
            found[situation] = run(tmp_path_factory.mktemp("alone"), situation)
        return found[situation]

    return of


def steps_of(outcome: Outcome, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in outcome.log if key in row}


# -- untouched -------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", SITUATIONS)
def test_training_is_untouched_to_the_bit(tmp_path, alone, situation):
    watched = run(tmp_path, situation, sparks())
    expected = alone(situation)
    assert watched.weights == expected.weights
    assert watched.optimizer == expected.optimizer
    assert watched.log == expected.log
    assert watched.sampled == expected.sampled
    assert watched.checkpoint == expected.checkpoint
    assert watched.random == expected.random
    assert watched.flags == expected.flags
    # It was a training, and it was measured.
    assert len(expected.sampled) == GENERATIONS.get(situation, 4)
    assert all(norm > 0 for norm in steps_of(expected, "grad_norm").values())
    contents = RunStore.find(tmp_path).read()
    assert contents.problems == ()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 4]
    assert len({snapshot.meta.model_hash for snapshot in contents.snapshots}) == 3


def test_the_situations_are_different_trainings(alone):
    assert len({alone(situation).weights for situation in SITUATIONS}) == len(SITUATIONS)


class Careless(TrainerCallback):
    """The control: what a callback that draws one random number at each save does."""

    def on_save(self, args, state, control, **kwargs):
        torch.rand(1)


@pytest.mark.parametrize(
    "situation", ["grpo", "grpo lora", "distillation", "distillation lora", "plain"]
)
def test_a_careless_callback_would_be_noticed(tmp_path, alone, situation):
    careless, expected = run(tmp_path, situation, Careless()), alone(situation)
    assert careless.weights != expected.weights
    assert careless.optimizer != expected.optimizer
    assert careless.log != expected.log
    assert careless.random != expected.random
    assert careless.log[:2] == expected.log[:2]
    # Completions are the same up to the first save, and other ones after it.
    assert careless.sampled[:2] == expected.sampled[:2]
    if situation != "plain":
        assert careless.sampled[2] != expected.sampled[2]


@pytest.mark.parametrize("regime", ["grpo", "distillation", "plain"])
def test_a_resumed_training_is_untouched_too(tmp_path, regime):
    outcomes = []
    for name, callbacks in (("alone", []), ("watched", [sparks(), sparks()])):
        train(trainer_of(regime, tmp_path / name, *callbacks[:1]))
        again = trainer_of(regime, tmp_path / name, *callbacks[1:])
        outcomes.append(train(again, resume=tmp_path / name / "checkpoint-2"))
    assert outcomes[1] == outcomes[0]
    assert len(outcomes[0].sampled) == (0 if regime == "plain" else 2)
    assert RunStore.find(tmp_path / "watched").steps() == [0, 2, 4]


# -- the trainer's own numbers ---------------------------------------------------------------------


def test_rewards_stand_in_the_snapshot_and_in_the_timeline(tmp_path):
    outcome = run(tmp_path, "grpo", sparks())
    base, *later = RunStore.find(tmp_path).read().snapshots
    assert base.meta.metrics == {}
    frame = Timeline.from_run(tmp_path).metrics()
    for key in ("reward", "reward_std", "rewards/even_ids/mean"):
        logged = steps_of(outcome, key)
        assert set(logged) == {1, 2, 3, 4}
        assert len(set(logged.values())) > 1
        assert {snapshot.step: snapshot.meta.metrics[key] for snapshot in later} == {
            step: logged[step] for step in (2, 4)
        }
        assert frame[key].dropna().to_dict() == logged


@pytest.mark.parametrize("regime", ["distillation", "plain"])
def test_losses_of_the_others(tmp_path, regime):
    losses = steps_of(run(tmp_path, regime, sparks()), "loss")
    _, *later = RunStore.find(tmp_path).read().snapshots
    assert {snapshot.step: snapshot.meta.metrics["loss"] for snapshot in later} == {
        step: losses[step] for step in (2, 4)
    }
    assert Timeline.from_run(tmp_path).metrics()["loss"].dropna().to_dict() == losses
