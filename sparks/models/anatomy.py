"""Where the parts of a Hugging Face decoder are: the only module that knows their names.

A part is found by its name here and proved by numbers in `anatomy_proof`: use `take_apart` from
there, so that a wrong hook can never pass silently.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.models.memory import RowBytes

CHECKED_ARCHITECTURES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2")
"""`model_type`s whose scores the test suite compares with exact references."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Some output features of a linear module: the query, key or value heads of a layer."""

    module: nn.Module
    start: int
    """First output feature."""
    heads: int
    head_dim: int

    @property
    def features(self) -> slice:
        """Output features of `module` that are these heads."""
        return slice(self.start, self.start + self.heads * self.head_dim)


@dataclass(frozen=True, eq=False)
class Layer:
    """The parts of one decoder layer."""

    attention: nn.Module
    """The block: it is told the positions of what it reads."""
    attention_norm: nn.Module
    query: Projection
    key: Projection
    value: Projection
    output: nn.Module
    """`o_proj`: its INPUT holds what the heads computed, side by side."""
    mlp_norm: nn.Module
    mlp: nn.Module

    @property
    def projections(self) -> tuple[Projection, Projection, Projection]:
        """Query, key, value: the order of destinations in a score matrix."""
        return self.query, self.key, self.value

    @cached_property
    def projection_modules(self) -> tuple[nn.Module, ...]:
        """The modules behind the projections: three, or one where they are fused."""
        return tuple(dict.fromkeys(item.module for item in self.projections))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A model, taken apart. `root` is what must be called; it may wrap the base model (PEFT)."""

    root: nn.Module
    graph: Graph
    d_model: int
    embedding: nn.Module
    layers: tuple[Layer, ...]
    final_norm: nn.Module
    vocab_size: int
    max_positions: int | None
    """Longest sequence that the config allows, tokens; None where it does not say."""
    model_type: str
    row_bytes: dict[tuple[int, int, str, str], RowBytes] = field(default_factory=dict)
    """Memory measured on this model, by prefix, suffix, positions and method (`models.memory`)."""

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.embedding.parameters()).device

    def call(self, **inputs: Any) -> Any:
        """Run the model, under `own_settings`."""
        return self.root(**inputs, **self._own_settings)

    @cached_property
    def _own_settings(self) -> dict[str, bool]:
        return own_settings(self.root)


# -- finding ---------------------------------------------------------------------------------------


def base_model(model: nn.Module) -> nn.Module:
    """The causal language model inside a PEFT or data-parallel wrapper, or `model` itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def forward_names(model: nn.Module) -> frozenset[str]:
    """Names of what the forward of the model inside a wrapper takes."""
    return frozenset(inspect.signature(type(base_model(model)).forward).parameters)


def own_settings(model: nn.Module) -> dict[str, bool]:
    """What every call of ours gives the model beside its inputs.

    The loss of a mixture's routers is off: it is that of a training's batch, and fails on tokens
    that stand behind a cached prefix.
    """
    name = "output_router_logits"
    return {name: False} if name in forward_names(model) else {}


def find(model: nn.Module) -> Anatomy:
    """The parts of `model` by their names, not yet proved.

    Raises:
        SparksError: not a causal language model, or a part is missing (names it).
    """
    base = base_model(model)
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "get_input_embeddings"):
        raise SparksError(
            f"model must be a Hugging Face causal language model, got {type(model).__name__}: "
            f"load it with AutoModelForCausalLM.from_pretrained"
        )
    if hasattr(model, "peft_config") and getattr(model, "active_peft_config", None) is not None:
        _refuse_prompt_learning(model)
    need = _Need(base, config)
    layers = need.part(base, "model.layers")
    num_heads = need.number("num_attention_heads")
    graph = Graph(
        num_layers=len(layers),
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
    )
    embedding = base.get_input_embeddings()  # type: ignore[operator]
    return Anatomy(
        root=model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model,
        graph=graph,
        d_model=need.number("hidden_size"),
        embedding=embedding,
        layers=tuple(_find_layer(need, layer, graph) for layer in layers),
        final_norm=need.part(base, "model.norm"),
        vocab_size=embedding.weight.shape[0],
        max_positions=getattr(config, "max_position_embeddings", None),
        model_type=str(getattr(config, "model_type", type(base).__name__)),
    )


def _refuse_prompt_learning(model: Any) -> None:
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        kind = type(model.active_peft_config).__name__
        raise SparksError(
            f"adapters that add virtual tokens ({kind}) are not supported: use LoRA or DoRA"
        )


@dataclass(frozen=True)
class _Need:
    """Looks parts up; a missing one becomes an error that names the architecture and the part."""

    base: nn.Module
    config: Any

    def part(self, owner: nn.Module, path: str) -> Any:
        found: Any = owner
        for name in path.split("."):
            found = getattr(found, name, None)
            if found is None:
                self.fail(f"{type(owner).__name__} has no `{path}`")
        return found

    def number(self, name: str) -> int:
        found = getattr(self.config, name, None)
        if not isinstance(found, int):
            self.fail(f"its config has no whole number `{name}` (found {found!r})")
        return found  # type: ignore[return-value]

    def fail(self, what: str) -> None:
        raise SparksError(
            f"sparks does not know the architecture {type(self.base).__name__} "
            f"(model_type {getattr(self.config, 'model_type', '?')!r}): {what}; checked "
            f"architectures are {', '.join(CHECKED_ARCHITECTURES)}"
        )


def _find_layer(need: _Need, layer: nn.Module, graph: Graph) -> Layer:
    attention = need.part(layer, "self_attn")
    output = need.part(attention, "o_proj")
    heads, kv_heads = graph.num_heads, graph.num_kv_heads
    head_dim = getattr(need.config, "head_dim", None) or need.number("hidden_size") // heads
    sizes = (heads, kv_heads, kv_heads)
    if hasattr(attention, "qkv_proj"):
        starts = (0, heads * head_dim, (heads + kv_heads) * head_dim)
        found = [
            Projection(attention.qkv_proj, start, size, head_dim)
            for start, size in zip(starts, sizes, strict=True)
        ]
    else:
        names = ("q_proj", "k_proj", "v_proj")
        found = [
            Projection(need.part(attention, name), 0, size, head_dim)
            for name, size in zip(names, sizes, strict=True)
        ]
    return Layer(
        attention=attention,
        attention_norm=need.part(layer, "input_layernorm"),
        query=found[0],
        key=found[1],
        value=found[2],
        output=output,
        mlp_norm=need.part(layer, "post_attention_layernorm"),
        mlp=need.part(layer, "mlp"),
    )
