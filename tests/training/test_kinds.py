"""What is trained: each kind of adapter, weight, batch and compilation is measured or refused.

Each works if the snapshot of step 0 is that of the bare model, and training did not notice.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from conftest import AssertClose
from datasets import Dataset
from families import tiny_family
from models import tiny_model, wrapped
from peft import LoraConfig
from tiny_trainers import MESSAGES, SETTINGS, train
from tiny_training import PROBES
from tokenizers_made_here import CHAT, byte_level_tokenizer
from torch import Tensor, nn
from transformers import CLIPImageProcessor, LlavaProcessor
from transformers.models.llama import modeling_llama
from trl import SFTConfig, SFTTrainer

from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.runs.run_folder import RunStore
from sparks.training.callback import SparksCallback

MEASURED = SnapshotConfig(points=3, threshold=0.0, top_n=60)

pytestmark = pytest.mark.filterwarnings(
    # transformers, trl and torch among themselves, at the versions pinned.
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*is deprecated.*:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
    # torch.compile of what trl and transformers do.
    "ignore:.*Function.* should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


def adapter(**settings: Any) -> LoraConfig:
    """Adapters whose B is not zero: they change the model from the first step on."""
    return LoraConfig(
        r=4,
        lora_dropout=0.1,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **{"target_modules": "all-linear"} | settings,
    )


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"peft_config": {}},
    "rslora": {"peft_config": {"use_rslora": True}},
    "dora": {"peft_config": {"use_dora": True}},
    "tied embeddings": {"model": {"tie_word_embeddings": True}},
    "bfloat16 weights": {"model": {"dtype": torch.bfloat16}},
    "float16 weights": {"model": {"dtype": torch.float16}, "learning_rate": 1e-4},
    "bf16 autocast": {"bf16": True},
    "packing": {"packing": True, "max_length": 64},
    "wrapped packing": {"packing": True, "packing_strategy": "wrapped", "max_length": 64},
    "padding-free": {"padding_free": True, "max_length": None},
    "noise on embeddings": {"neftune_noise_alpha": 5.0},
    # The trainer sets the loss of the routers, which our own calls leave out.
    "mixture": {"family": "qwen3_moe", "model": {"router_aux_loss_coef": 0.1}},
    "mixture, lora": {"family": "mixtral", "peft_config": {"target_modules": ["q_proj", "o_proj"]}},
    "norms behind": {"family": "gemma3_text"},
    "side by side": {"family": "gpt_neox"},
    "vision and language, on text": {"family": "qwen2_5_vl"},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}


plain_rope = modeling_llama.apply_rotary_pos_emb
MODEL: dict[str, Any] = {
    "vocab_size": len(byte_level_tokenizer(chat=CHAT)),
    "max_position_embeddings": 256,
    "attention_dropout": 0.1,
    "num_hidden_layers": 2,
}
TOKENIZED = PROBES.tokenize(byte_level_tokenizer(chat=CHAT), max_suffix_tokens=16)


def made(kind: dict[str, Any]) -> nn.Module:
    """The model that a kind trains."""
    sizes = MODEL | kind.get("model", {})
    if "family" not in kind:
        return tiny_model("llama-gqa", **sizes)
    model = tiny_family(kind["family"], **sizes)
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = True
    return model


def trainer_of(kind: dict[str, Any], folder: Path, *callbacks: SparksCallback) -> SFTTrainer:
    settings = dict(kind)
    tokenizer = byte_level_tokenizer(chat=CHAT)
    torch.manual_seed(3)
    model = made(settings)
    for name in ("family", "model"):
        settings.pop(name, None)
    peft = settings.pop("peft_config", None)
    defaults = SETTINGS | {"max_steps": 2, "save_steps": 2, "max_length": 128}
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(folder), **defaults | settings),
        train_dataset=MESSAGES,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=None if peft is None else adapter(**peft),
    )


PRECISION = {
    "bfloat16 weights": "bfloat16",
    "float16 weights": "float16",
    "bf16 autocast": "float32, blocks bfloat16",
}
"""What a snapshot says of it, where that is not float32."""


def bare(trained: nn.Module, kind: dict[str, Any]) -> nn.Module:
    """A model as it comes from its class, with the weights of `trained`, adapters merged in."""
    if hasattr(trained, "merge_and_unload"):
        trained = copy.deepcopy(trained).merge_and_unload()
    model = made(kind)
    model.load_state_dict(trained.state_dict())
    return model


def check_same(assert_close: AssertClose, how: str, found: Snapshot, model: nn.Module) -> None:
    """The snapshot is that of `model`."""
    other = take_snapshot(model, TOKENIZED, MEASURED, progress=False)
    for name in ("node_totals", "importance", "loss_corrupted"):
        pair = (torch.from_numpy(getattr(item, name)) for item in (found, other))
        assert_close(how, *pair)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_measured_and_training_does_not_notice(tmp_path, assert_close, kind):
    outcomes, models = {}, []
    for name in ("alone", "watched"):
        torch.compiler.reset()
        callbacks = [SparksCallback(PROBES, progress=False, config=MEASURED)]
        trainer = trainer_of(KINDS[kind], tmp_path / name, *callbacks * (name == "watched"))
        models = [bare(trainer.model, KINDS[kind])]
        outcomes[name] = train(trainer)
        models.append(bare(trainer.model, KINDS[kind]))
    assert outcomes["watched"] == outcomes["alone"]
    norms = [row["grad_norm"] for row in outcomes["alone"].log if "grad_norm" in row]
    assert len(norms) == 2
    assert min(norms) > 0
    assert any("aux_loss" in row for row in outcomes["alone"].log) == kind.startswith("mixture")
    snapshots = RunStore.find(tmp_path / "watched").read().snapshots
    assert [snapshot.step for snapshot in snapshots] == [0, 2]
    how = "bfloat16" if "autocast" in kind else "same"
    for snapshot, model in zip(snapshots, models, strict=True):
        assert snapshot.meta.precision == PRECISION.get(kind, "float32")
        check_same(assert_close, how, snapshot, model)
    # The control: the two are told apart.
    with pytest.raises(AssertionError, match="<="):
        check_same(assert_close, how, snapshots[0], models[1])


def test_fp16_autocast(tmp_path, assert_close):
    # On a CPU, accelerate lets `fp16=True` pass and trains in float32 ...
    assert trainer_of({"fp16": True}, tmp_path).accelerator.native_amp is False
    # ... so this is a model as accelerate wraps it on a GPU.
    model = tiny_model("llama-gqa", **MODEL)
    mixed = copy.deepcopy(model)
    forward = torch.autocast("cpu", dtype=torch.float16)(type(mixed).forward)
    mixed.forward = MethodType(convert_outputs_to_fp32(forward), mixed)
    found = take_snapshot(mixed, TOKENIZED, MEASURED, progress=False)
    assert found.meta.precision == "float32, blocks float16"
    check_same(assert_close, "float16", found, model)
    with pytest.raises(AssertionError, match="<="):
        check_same(assert_close, "same", found, model)


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
def test_a_model_that_is_compiled_by_hand(assert_close, how):
    torch.compiler.reset()
    model = tiny_model("llama-gqa", **MODEL)
    compiled = copy.deepcopy(model)
    if how == "model.compile()":
        compiled.compile(backend="aot_eager")
    else:
        compiled = torch.compile(compiled, backend="aot_eager")
    found = take_snapshot(compiled, TOKENIZED, MEASURED, progress=False)
    check_same(assert_close, "same", found, model)


# -- fakes of what needs a GPU ---------------------------------------------------------------------


class FakeLinear4bit(nn.Linear):
    """A FAKE of bitsandbytes' Linear4bit: whole-number weights, multiplied in `compute`."""

    def __init__(self, linear: nn.Linear, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = (
            linear.in_features,
            linear.out_features,
            None,
        )
        self.compute, self.scale = compute, linear.weight.detach().abs().max() / 7
        codes = (linear.weight.detach() / self.scale).round() + 8
        self.weight = nn.Parameter(codes.to(torch.uint8), requires_grad=False)

    def effective(self) -> Tensor:
        return ((self.weight.float() - 8) * self.scale).to(self.compute)

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.compute) @ self.effective().T).to(x.dtype)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_quantised_weights(assert_close, compute, lora):
    model = tiny_model("llama-gqa", **MODEL)
    plain = copy.deepcopy(model)
    for name, linear in list(model.model.layers.named_modules()):
        if isinstance(linear, nn.Linear):
            fake = FakeLinear4bit(linear, compute)
            model.model.layers.set_submodule(name, fake)
            plain.model.layers.get_submodule(name).weight.data.copy_(fake.effective())
    if lora:
        model, plain = wrapped(model), wrapped(plain)
    found = take_snapshot(model, TOKENIZED, MEASURED, progress=False)
    check_same(assert_close, "same" if compute is torch.float32 else "bfloat16", found, plain)
    secant = replace(MEASURED, method="secant")  # what is warned of is an error here
    assert take_snapshot(model, TOKENIZED, secant, progress=False).completeness_gap.max() < 0.01


class _LigerNorm(torch.autograd.Function):
    """As Liger's: the gradient of the output is overwritten by that of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        inner = grad * weight
        mean = (inner * x).mean(-1, keepdim=True)
        return grad.copy_(scale * inner - scale**3 * x * mean), None, None


class LigerRopeFunction(torch.autograd.Function):
    """As Liger's: queries and keys are rotated in place, under the eyes of whoever holds them."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        turned = plain_rope(q, k, cos, sin)
        return q.detach().copy_(turned[0]), k.detach().copy_(turned[1])

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return *plain_rope(dq, dk, cos, -sin), None, None


def liger(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, package: str) -> nn.Module:
    """A FAKE of `use_liger_kernel`: a copy whose norms and RoPE are as `package` patches them."""

    def norm(self: nn.Module, x: Tensor) -> Tensor:
        return _LigerNorm.apply(x, self.weight, self.variance_epsilon)

    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        return LigerRopeFunction.apply(q, k, cos, sin)

    norm.__module__ = rope.__module__ = f"{package}.transformers"
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rope)
    patched = copy.deepcopy(model)
    for module in patched.modules():
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            module.forward = MethodType(norm, module)
    return patched


def test_liger_kernels(assert_close, monkeypatch):
    model = tiny_model("llama-gqa", **MODEL)
    expected = take_snapshot(model, TOKENIZED, MEASURED, progress=False)
    patched = liger(model, monkeypatch, package="liger_kernel")
    forward, rope = patched.model.norm.forward, modeling_llama.apply_rotary_pos_emb
    check_same(assert_close, "same", expected, patched)
    secant = replace(MEASURED, method="secant")
    taken = [take_snapshot(m, TOKENIZED, secant, progress=False) for m in (model, patched)]
    np.testing.assert_allclose(taken[1].node_totals, taken[0].node_totals, rtol=1e-4, atol=1e-7)
    assert patched.model.norm.forward is forward
    assert modeling_llama.apply_rotary_pos_emb is rope
    # The control: the same kernels from anywhere else are found out, and refused.
    unknown = liger(model, monkeypatch, package="somewhere")
    with pytest.raises(SparksError, match="sparks cannot take 'llama' apart"):
        take_snapshot(unknown, TOKENIZED, MEASURED, progress=False)


@pytest.mark.slow
def test_a_processor_gives_its_tokenizer(tmp_path, assert_close):
    """A vision-language model whose trainer has a processor, trained on text."""
    tokenizer = byte_level_tokenizer(chat=CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessor(size=28, crop_size=28), tokenizer, patch_size=14, image_token="<image>"
    )
    model = tiny_family("llava", vocab_size=len(tokenizer), max_position_embeddings=256)
    expected = take_snapshot(model, TOKENIZED, MEASURED, progress=False)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path), **SETTINGS | {"max_steps": 1, "max_length": 64}),
        train_dataset=Dataset.from_list([{"text": f"{n} + 1 = {n + 1}"} for n in range(8)]),
        processing_class=processor,
        callbacks=[SparksCallback(PROBES, progress=False, config=MEASURED)],
    )
    trainer.train()
    first, last = RunStore.find(tmp_path).read().snapshots
    assert (first.step, last.step) == (0, 1)
    found = torch.from_numpy(first.node_totals)
    assert_close("same", found, torch.from_numpy(expected.node_totals))
