"""What is found in a model is what it is taken for, and what is not is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import KINDS, VOCAB, tiny_model, token_pair, wrapped
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    OlmoeConfig,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import sparks.models.anatomy_proof
from sparks.attribution.eap_ig import edge_attribution
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy, base_model
from sparks.models.anatomy_proof import check, take_apart
from sparks.models.families import CHECKED_ARCHITECTURES
from sparks.models.hooks import hooks, linear_map, norm_of, on_input, on_output

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def random_model(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_found_and_proved(kind: str) -> None:
    model = tiny_model(kind)
    anatomy = take_apart(model)
    config = model.config
    assert anatomy.model_type in CHECKED_ARCHITECTURES
    assert anatomy.root is model
    assert anatomy.d_model == config.hidden_size
    assert anatomy.vocab_size == config.vocab_size == VOCAB
    assert anatomy.max_positions == 64
    assert (anatomy.graph.num_layers, anatomy.graph.num_heads, anatomy.graph.num_kv_heads) == (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    layer = anatomy.layers[1]
    assert len(layer.projection_modules) == (1 if "phi3" in kind else 3)
    sizes = [item.features.stop - item.features.start for item in layer.projections]
    assert sizes[0] // anatomy.graph.num_heads == sizes[1] // anatomy.graph.num_kv_heads


def test_a_model_is_proved_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[Anatomy] = []
    monkeypatch.setattr(sparks.models.anatomy_proof, "check", proved.append)
    model = tiny_model("llama-gqa")

    def times() -> int:
        take_apart(model)
        return len(proved)

    assert times() == times() == 1
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # a step of training
    assert times() == 1
    model.half()
    assert times() == 2
    model.set_attn_implementation("eager")
    assert times() == times() == 3
    model.model.layers[1].mlp = nn.Sequential(model.model.layers[1].mlp)
    assert times() == 4


def test_wrappers_are_looked_through() -> None:
    model = tiny_model("llama-gqa")
    assert base_model(model) is model
    assert base_model(wrapped(model)) is model


# -- what is refused -------------------------------------------------------------------------------


def refused(model: Any, message: str) -> None:
    with pytest.raises(SparksError, match=message) as caught:
        take_apart(model)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_told_what_is_missing() -> None:
    model = random_model(LlamaConfig(**SMALL))
    del model.model.layers[1].self_attn.o_proj
    message = (
        r"does not know the architecture LlamaForCausalLM \(model_type 'llama'\): LlamaAttention "
        r"has no `o_proj`; README\.md lists the architectures that work, `sparks check MODEL` tries"
    )
    refused(model, message)
    with pytest.raises(SparksError, match=message):
        edge_attribution(model, [token_pair(2, 2)])


def test_architectures_that_do_not_add_up_are_refused_with_the_number() -> None:
    model = random_model(LlamaConfig(**SMALL, is_causal=False))
    refused(model, r"no token changes what stands before it \(relative difference 0\.\d+, allowed")


def test_a_norm_over_all_queries_together_is_no_reason_to_refuse() -> None:
    config = OlmoeConfig(**SMALL, num_experts=2, num_experts_per_tok=1)
    assert take_apart(random_model(config)).model_type == "olmoe"


@pytest.mark.parametrize(
    "model",
    [nn.Linear(2, 2), SimpleNamespace(config=1)],
    ids=["a module", "no module"],
)
def test_what_is_no_language_model_is_refused(model: Any) -> None:
    refused(model, r"model must be a Hugging Face causal language model, got \w+: load it with")


def test_virtual_tokens_are_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        model = get_peft_model(tiny_model("llama-gqa"), config)
    refused(model, r"virtual tokens \(PromptTuningConfig\) are not supported: use LoRA or DoRA")


# -- planted mistakes: each check finds its own ----------------------------------------------------


def found_in(anatomy: Anatomy, message: str) -> None:
    with pytest.raises(SparksError, match=message) as caught:
        check(anatomy)
    assert "\n" not in str(caught.value)


def with_layer(anatomy: Anatomy, change: Callable[[Any], Any]) -> Anatomy:
    """The anatomy with its layer 1 taken for something else."""
    layers = list(anatomy.layers)
    layers[1] = change(layers[1])
    return replace(anatomy, layers=tuple(layers))


MISTAKES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "part of the MLP for the MLP": (
        "llama-gqa",
        lambda layer: replace(layer, mlp=layer.mlp.up_proj),
        r"layer 1: its output is .* \(shapes \[2, 6, 32\] and \[2, 6, 40\]\)",
    ),
    "an o_proj of another place": (
        "llama-gqa",
        lambda layer: replace(layer, output=layer.query.module),
        "layer 1: the MLP reads input",
    ),
    "too many key heads": (
        "llama-gqa",
        lambda layer: replace(layer, key=replace(layer.key, heads=4)),
        "layer 1: heads of the sizes in its config make 32 projected features, it has 16",
    ),
    "keys for values": (
        "phi3-fused",
        lambda layer: replace(
            layer,
            key=replace(layer.key, start=layer.value.start),
            value=replace(layer.value, start=layer.key.start),
        ),
        "layer 1: a query, key or value slice feeds its own heads alone",
    ),
    "keys for queries": (
        "phi3-mha",
        lambda layer: replace(
            layer,
            query=replace(layer.query, start=layer.key.start),
            key=replace(layer.key, start=layer.query.start),
        ),
        "layer 1: a query, key or value slice feeds its own heads alone",
    ),
    "heads exchanged": (
        "phi3-fused",
        lambda layer: replace(layer, query=replace(layer.query, start=8)),
        "layer 1: a query, key or value slice feeds its own heads alone",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_part_taken_for_another_is_found(name: str) -> None:
    kind, change, message = MISTAKES[name]
    config = {"num_key_value_heads": 4} if kind == "phi3-mha" else {}
    anatomy = take_apart(tiny_model("phi3-fused" if config else kind, **config))
    found_in(with_layer(anatomy, change), message)


def test_a_final_norm_of_another_place_is_found() -> None:
    anatomy = take_apart(tiny_model("llama-gqa"))
    other = anatomy.layers[-1].mlp_norm
    found_in(replace(anatomy, final_norm=other), "layer 2: its output is input")


def test_something_between_norm_and_projection_is_found() -> None:
    model = tiny_model("llama-gqa")
    projection = model.model.layers[1].self_attn.k_proj
    projection.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    refused(model, "layer 1: attention reads its norm's output")


def test_a_gate_on_the_attention_is_found() -> None:
    """The heads are scaled by something that reads the layer's input beside q, k and v."""
    model = tiny_model("llama-gqa")
    gates: list[Tensor] = []
    attention = model.model.layers[1].self_attn

    def see(_: nn.Module, __: Any, kwargs: dict[str, Tensor]) -> None:
        gates.append(kwargs["hidden_states"].mean(-1, keepdim=True).sigmoid())

    attention.register_forward_pre_hook(see, with_kwargs=True)
    attention.o_proj.register_forward_pre_hook(lambda _, args: (args[0] * gates[-1],))
    refused(model, "layer 1: attention reads nothing but queries, keys and values")


def test_an_mlp_that_reads_around_its_norm_is_found() -> None:
    model = tiny_model("llama-gqa")
    layer = model.model.layers[1]
    read: list[Tensor] = []
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    layer.mlp.register_forward_hook(lambda _, __, output: output + 0.1 * read[-1][: len(output)])
    refused(model, "layer 1: the MLP reads through its norm")


def test_logits_that_read_around_the_final_norm_are_found() -> None:
    model = tiny_model("llama-gqa")
    read: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] + read[-1][: len(args[0])],))
    refused(model, "logits are read through the final norm")


def test_writes_that_do_not_sum_are_found() -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _, __, out: 2 * out)
    refused(model, r"layer 1: the heads' writes sum to o_proj's output \(relative difference 0\.5,")


def test_an_o_proj_that_is_not_affine_is_refused() -> None:
    model = tiny_model("llama-gqa")
    attention = model.model.layers[1].self_attn
    attention.o_proj = nn.Sequential(attention.o_proj, nn.Tanh())
    refused(model, r"o_proj of layer 1 \(Sequential\) is not affine in its input")


def test_of_several_outputs_the_first_is_a_blocks_write_and_what_is_no_tensor_is_refused() -> None:
    linear, x = nn.Linear(4, 4), torch.ones(2, 3, 4)
    several = nn.Module()
    several.forward = lambda x: (linear(x).flatten(0, 1), "choices")  # as Llama 4's mixture
    seen: list[Tensor] = []
    with hooks() as handles:
        handles.append(on_output(several, seen.append))
        first, other = several(x)
    assert torch.equal(seen[0], linear(x))
    assert torch.equal(first, linear(x))
    assert other == "choices"
    model = tiny_model("llama-gqa")
    plain = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: [plain(x)]
    refused(model, "LlamaMLP returns list where a tensor is wanted")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("residual", r"layer 1: the MLP reads input \+ attention \(relative difference"),
        ("behind", "layer 1: behind its attention stands LayerNorm, which must be an RMSNorm"),
        ("shared", r"layer 1: the MLP reads its norm's output \(relative difference"),
        ("positions", r"layer 0 reads the embedding's output, scaled \(relative difference"),
    ],
)
def test_what_is_not_as_its_names_say_is_refused(kind: str, message: str) -> None:
    """A number between block and stream, another norm behind, an MLP with a norm of its own."""
    if kind == "behind":
        model = random_model(Olmo2Config(**SMALL))
        model.model.layers[1].post_attention_layernorm = nn.LayerNorm(32)
    elif kind == "shared":
        model = random_model(CohereConfig(**SMALL))
        model.model.layers[1].mlp.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    elif kind == "positions":
        model = tiny_model("llama-gqa")
        model.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0].tanh(),))
    else:
        model = random_model(GraniteConfig(**SMALL, residual_multiplier=0.5))
        model.model.layers[1].residual_multiplier = 0.4
    refused(model, message)


# -- single modules --------------------------------------------------------------------------------


def test_linear_modules_are_read_as_weight_and_bias() -> None:
    linear = nn.Linear(5, 3)
    found = linear_map(linear)
    assert found is not None
    assert torch.equal(found[0], linear.weight)
    assert torch.equal(found[1], linear.bias)
    assert linear_map(nn.Linear(5, 3, bias=False))[1] is None


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_adapters_are_read_as_their_effective_weight(dora: bool) -> None:
    model = wrapped(tiny_model("qwen2"), dora=dora)
    module = model.get_base_model().model.layers[0].self_attn.q_proj
    weight, bias = linear_map(module)
    x = torch.randn(7, module.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ weight.T + bias, module(x), rtol=1e-5, atol=1e-5)
    assert float((weight - module.base_layer.weight).norm()) > 0.1


def test_what_is_not_affine_has_no_linear_map() -> None:
    class Bent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    assert linear_map(Bent(4, 4)) is None
    assert linear_map(nn.Identity()) is None


def random_norm(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(0))
    return norm


def test_a_norm_is_known_by_what_it_computes() -> None:
    norm = random_norm(LlamaRMSNorm(8, eps=1e-3))
    found = norm_of(norm)
    assert found is not None
    assert torch.equal(found.gain, norm.weight)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found(x), norm(x))
    assert not found.centred
    norm = random_norm(nn.LayerNorm(8))
    with torch.no_grad():
        norm.bias.normal_(generator=torch.Generator().manual_seed(2))
    found = norm_of(norm)
    assert found.centred
    torch.testing.assert_close(found(x), norm(x))
    gemma = random_norm(GemmaRMSNorm(8))
    assert torch.equal(norm_of(gemma).gain, 1 + gemma.weight)
    with torch.no_grad():
        gemma.bfloat16().weight.add_(100)  # 100 and 101 are near in bfloat16: the nearer is taken
    assert torch.equal(norm_of(gemma).gain, 1 + gemma.weight.float())
    assert norm_of(nn.Identity()) is None


def test_hooks_see_and_replace_and_are_gone_afterwards() -> None:
    linear = nn.Linear(3, 3)
    x = torch.ones(1, 3)
    seen: list[Tensor] = []
    with hooks() as handles:
        handles.append(on_input(linear, seen.append))
        handles.append(on_output(linear, lambda out: 2 * out))
        doubled = linear(x)
    torch.testing.assert_close(doubled, 2 * linear(x))
    assert torch.equal(seen[0], x)
    assert len(seen) == 1
    with hooks() as handles:
        handles.append(on_input(linear, lambda tensor: 0 * tensor))
        assert torch.equal(linear(x)[0], linear.bias)
    assert not linear._forward_hooks
    assert not linear._forward_pre_hooks
