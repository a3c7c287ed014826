"""Tiny random decoders, one for each way in which architectures differ, and token pairs.

Every weight is random, norms and biases too: a forgotten gain or bias must show.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
)

from sparks.probes.pairs import TokenPair

VOCAB = 61

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

_KINDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama-gqa": (LlamaConfig, {}),
    "llama-mqa": (LlamaConfig, {"num_key_value_heads": 1}),
    "llama-mha": (LlamaConfig, {"num_attention_heads": 8, "num_key_value_heads": 8}),
    "llama-biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    # Heads that no power of two divides, and together wider than the model.
    "llama-odd": (
        LlamaConfig,
        {"hidden_size": 35, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10},
    ),
    "llama-narrow": (
        LlamaConfig,
        {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6},
    ),
    "qwen2": (Qwen2Config, {"num_attention_heads": 6, "hidden_size": 36}),
    "qwen3": (Qwen3Config, {"head_dim": 12}),
    "mistral-window": (MistralConfig, {"sliding_window": 4, "head_dim": 8}),
    "smollm3-nope": (SmolLM3Config, {"no_rope_layers": [1, 0, 1]}),
    "phi3-fused": (Phi3Config, {"num_attention_heads": 4}),
    "starcoder2": (Starcoder2Config, {"use_bias": True, "sliding_window": 5}),
}

PLAIN = tuple(_KINDS)
"""Kinds that are not wrapped."""

WRAPPED = ("lora-llama", "dora-qwen2", "lora-phi3")
"""Kinds inside PEFT, with adapters that are not zero."""

KINDS = PLAIN + WRAPPED
"""Everything that `tiny_model` makes."""


def tiny_model(
    kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> nn.Module:
    """A small random model in evaluation mode; `config` changes its configuration."""
    if kind in WRAPPED:
        adapter, _, inner = kind.partition("-")
        name = next(item for item in PLAIN if item.startswith(inner))
        return wrapped(tiny_model(name, seed=seed, dtype=dtype, **config), dora=adapter == "dora")
    config_class, differences = _KINDS[kind]
    model = AutoModelForCausalLM.from_config(config_class(**_SHAPE | differences | config))
    randomise(model, seed)
    return model.to(dtype).eval()


def wrapped(
    model: nn.Module, *, dora: bool = False, targets: str | list[str] = "all-linear"
) -> nn.Module:
    """The model with LoRA (or DoRA) adapters on linear modules, dropout on, B not zero."""
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        lora_dropout=0.3,
        use_dora=dora,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by the older name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        # GPT-2's Conv1D: peft sets it itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        found = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return found.eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights and biases N(0, 0.2), gains of norms 1 + N(0, 0.2)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if is_norm and name == "weight" else noise)


def token_pair(prefix: int, suffix: int, *, seed: int = 0, vocab: int = VOCAB) -> TokenPair:
    """Random token ids: `prefix` shared ones, then two continuations of `suffix` ids each."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * prefix + suffix)
    ids = torch.randint(vocab, (prefix + 2 * suffix,), generator=generator).tolist()
    clean, corrupted = ids[prefix : prefix + suffix], ids[prefix + suffix :]
    # The first tokens differ, so that nothing more than the prefix is shared.
    corrupted[0] = (clean[0] + 1 + corrupted[0] % (vocab - 1)) % vocab
    return TokenPair(ids[:prefix], clean, corrupted)


def unsplit(pair: TokenPair) -> TokenPair:
    """The same prompts with nothing declared as shared."""
    return TokenPair([], pair.prefix + pair.clean, pair.prefix + pair.corrupted)


# -- a model that is affine ------------------------------------------------------------------------


class AffineHead(nn.Module):
    """Logits of two tokens for which KL(clean || run) is how far x lies along `direction`.

    s = max(0, x . direction - offset) and logits (2 artanh r, 0) with r = sqrt(1 - e^(-2s)). Their
    softmax is (1 + r) / 2, (1 - r) / 2, so KL((1/2, 1/2) || .) = -log(1 - r^2) / 2 = s, exactly.
    The clean run has s = 0 where `offset` is a little above its own x . direction.
    """

    def __init__(self, direction: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.register_buffer("offset", offset)

    def forward(self, hidden: Tensor) -> Tensor:
        s = (hidden @ self.direction - self.offset).relu()
        r = (-torch.expm1(-2 * s)).clamp_min(1e-20).sqrt()
        logit = torch.where(s > 0, 2 * r.log1p() + 2 * s, 0)  # = 2 artanh r
        return torch.stack([logit, torch.zeros_like(logit)], dim=-1)


DEADBAND = 1e-3
"""What L of an `affine_model` falls short of how far x has moved along its direction, nats."""


@torch.no_grad()
def affine_model(pair: TokenPair, *, seed: int = 0) -> nn.Module:
    """A Llama in which all is affine that a patch of one edge passes on its way to L.

    Norms are the identity and MLPs linear; queries are 0, so that heads average their values. The
    direct edge from the embedding to the logits raises L by about 1 nat, more than any other
    edge takes away.
    """
    model = tiny_model("llama-gqa", seed=seed, attention_bias=True)
    generator = torch.Generator().manual_seed(seed)
    d_model = model.config.hidden_size
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.q_proj.bias.zero_()
        layer.mlp = nn.Linear(d_model, d_model)
        layer.mlp.weight.copy_(0.1 * torch.randn(d_model, d_model, generator=generator))
    model.model.norm = nn.Identity()
    ids = torch.tensor([pair.clean[-1], pair.corrupted[-1]])
    embed_clean, embed_corrupted = model.get_input_embeddings()(ids)
    step = embed_corrupted - embed_clean
    direction = step / step.square().sum()
    direction += 0.2 * torch.randn(d_model, generator=generator) / d_model**0.5
    clean = model.model(input_ids=torch.tensor([pair.prefix + pair.clean])).last_hidden_state
    model.lm_head = AffineHead(direction, clean[0, -1] @ direction + DEADBAND)
    return model.eval()
