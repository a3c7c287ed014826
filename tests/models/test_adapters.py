"""Base heads of an adapter run, without a second model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import tiny_model
from peft import LoraConfig, get_peft_model
from tiny_trainers import lora, train, trainer_of
from tiny_training import PROBES

from sparks.models.adapters import can_be_disabled, without_adapter
from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback

pytestmark = pytest.mark.filterwarnings(
    # transformers and trl among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)


def sparks() -> SparksCallback:
    return SparksCallback(PROBES, progress=False, points=3, threshold=0.0, top_n=60)


def dora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", use_dora=True)


@pytest.mark.parametrize("adapter", [lora, dora])
def test_a_resumed_adapter_run_without_a_base_gets_it(tmp_path, adapter):
    train(trainer_of("sft", tmp_path / "watched", sparks(), peft_config=adapter()))
    straight = RunStore.find(tmp_path / "watched").read().snapshots
    # Two runs without us up to step 2; one of them is resumed with us.
    outcomes = []
    for name, callbacks in (("late", [sparks()]), ("alone", [])):
        train(trainer_of("sft", tmp_path / name, peft_config=adapter()))
        again = trainer_of("sft", tmp_path / name, *callbacks, peft_config=adapter())
        outcomes.append(train(again, resume=tmp_path / name / "checkpoint-2"))
    assert outcomes[0] == outcomes[1]
    late = RunStore.find(tmp_path / "late").read().snapshots
    assert [snapshot.step for snapshot in late] == [0, 2, 4]
    assert (late[0].meta.epoch, late[0].meta.metrics) == (0, {})
    for one, other in zip(late, straight, strict=True):
        np.testing.assert_allclose(one.edge_score, other.edge_score, rtol=1e-4)
        np.testing.assert_array_equal(one.active, other.active)
    assert not np.allclose(late[0].loss_corrupted, late[1].loss_corrupted, rtol=1e-3)


def test_a_resumed_run_of_all_weights_has_no_base_and_says_so(tmp_path):
    train(trainer_of("sft", tmp_path))
    again = trainer_of("sft", tmp_path, sparks())
    train(again, resume=tmp_path / "checkpoint-2")
    assert RunStore.find(tmp_path).steps() == [2, 4]


@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers")  # as `expected` says
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"use_dora": True}, True),
        ({"init_lora_weights": False}, True),
        ({"init_lora_weights": "pissa"}, False),
        ({"init_lora_weights": "olora"}, False),
        ({"bias": "all"}, False),
    ],
)
def test_which_adapters_leave_the_base_as_it_was(settings, expected):
    torch.manual_seed(0)
    model = tiny_model("qwen2")  # it has biases
    ids = torch.arange(6)[None]
    before = model(input_ids=ids).logits.detach()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", **settings))
    assert can_be_disabled(wrapped) is expected
    flags = [parameter.requires_grad for parameter in wrapped.parameters()]
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.add_(0.5)  # training
        with without_adapter(wrapped):
            after = wrapped(input_ids=ids).logits
    assert torch.equal(after, before) is expected
    assert [parameter.requires_grad for parameter in wrapped.parameters()] == flags


def test_a_model_without_an_adapter():
    assert not can_be_disabled(tiny_model("llama-gqa"))
