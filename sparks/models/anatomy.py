"""Where the parts of a Hugging Face decoder are: the only module that knows their names.

A part is found by its name here and proved by numbers in `anatomy_proof`: use `take_apart` from
there, so that a wrong hook can never pass silently.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparks.ground.errors import SparksError
from sparks.models.families import WORKING, context_of, text_config, why_refused
from sparks.models.graph import Graph
from sparks.models.hooks import Norm, linear_map, norm_of, on_input
from sparks.models.memory import RowBytes

Seen = Callable[[Tensor], Tensor | None]
"""Looks at a tensor; what it returns, if anything, takes its place."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Some output features of a linear module: the query, key or value heads of a layer."""

    module: nn.Module
    start: int
    """First output feature."""
    heads: int
    head_dim: int
    together: int = 1
    """Heads that lie side by side before a step of `stride`."""
    stride: int = 0
    """Features from one such group to the next, in fused projections; 0: all lie side by side."""

    def place(self, head: int) -> slice:
        """Output features of `module` that are one head."""
        start = self.start + head * self.head_dim
        if self.stride:
            group, within = divmod(head, self.together)
            start = self.start + group * self.stride + within * self.head_dim
        return slice(start, start + self.head_dim)

    @cached_property
    def features(self) -> slice | list[int]:
        """Output features of `module` that are these heads, in their order."""
        if not self.stride:
            return slice(self.start, self.start + self.heads * self.head_dim)
        places = map(self.place, range(self.heads))
        return [feature for place in places for feature in range(place.start, place.stop)]


@dataclass(frozen=True, eq=False)
class Layer:
    """The parts of one decoder layer, and what flows between them and the residual stream.

    A block reads the stream through a norm, or as it is; it writes into it what it computes, times
    `scale`, or that behind one more norm. Behind a norm y = gamma x / r a head h writes
    gamma W_O,h z_h / r: with the run's own r, writes still sum to what the block writes.
    """

    attention: nn.Module
    """The block: it is told the positions of what it reads."""
    attention_norm: nn.Module | None
    """None: the block reads the residual stream as it is."""
    query: Projection
    key: Projection
    value: Projection
    output: nn.Module
    """`o_proj`: its INPUT holds what the heads computed, side by side."""
    attention_after: nn.Module | None
    """A norm behind `o_proj`."""
    mlp_norm: nn.Module | None
    """None: as for the attention. In parallel blocks it may be the attention's own norm."""
    mlp: nn.Module
    experts: nn.Module | None
    """Those of a mixture; they are told which of them each token takes."""
    mlp_after: nn.Module | None
    """A norm behind the MLP."""
    scale: float
    """What both blocks write is multiplied by it (Granite's `residual_multiplier`)."""

    @property
    def projections(self) -> tuple[Projection, Projection, Projection]:
        """Query, key, value: the order of destinations in a score matrix."""
        return self.query, self.key, self.value

    @cached_property
    def projection_modules(self) -> tuple[nn.Module, ...]:
        """The modules behind the projections: three, or one where they are fused."""
        return tuple(dict.fromkeys(item.module for item in self.projections))

    # -- reading -----------------------------------------------------------------------------

    def on_attention_read(self, see: Seen) -> list[RemovableHandle]:
        """Call `see` with the residual stream that the attention reads."""
        return [on_input(self.attention_norm or self.attention, see)]

    def on_mlp_read(self, see: Seen) -> list[RemovableHandle]:
        """Call `see` with the residual stream that the MLP reads; it alone reads what `see` gives.

        Through a norm that the attention shares it reads by a call of its own.
        """
        norm = self.mlp_norm
        if norm is None or norm is not self.attention_norm:
            return [on_input(norm or self.mlp, see)]
        stream: list[Tensor] = []

        def again(_: Tensor) -> Tensor | None:
            given = see(stream.pop())
            return None if given is None else norm.forward(given)

        return [on_input(norm, stream.append), on_input(self.mlp, again)]

    def normed(self, x: Tensor) -> Tensor:
        """What the projections read where the attention reads x; no hook sees it."""
        return x if self.attention_norm is None else self.attention_norm.forward(x)

    # -- writing -----------------------------------------------------------------------------

    @cached_property
    def norm_after(self) -> Norm | None:
        """`attention_after`, read as a formula."""
        return None if self.attention_after is None else norm_of(self.attention_after)

    def on_heads_write(self, see: Seen) -> list[RemovableHandle]:
        """Call `see` with what the heads computed, z, or z / r: `head_columns` of it are writes."""
        norm, after = self.norm_after, self.attention_after
        if norm is None or after is None:
            return [on_input(self.output, see)]
        computed: list[Tensor] = []

        def divided(written: Tensor) -> None:
            see(computed.pop() / norm.scale(written))

        return [on_input(self.output, computed.append), on_input(after, divided)]

    def head_columns(self) -> Float[Tensor, "d_model features"]:
        """What turns the heads' z (or z / r) into their writes, float32.

        Applies adapters by running them: read it before hooks hang on `output`.
        """
        found = linear_map(self.output)
        assert found is not None  # take_apart has checked it
        columns = found[0].float()
        if self.norm_after is not None:
            columns = self.norm_after.gain[:, None] * columns
        return columns if self.scale == 1 else self.scale * columns

    @property
    def attention_writer(self) -> nn.Module:
        """Its output, times `scale`, is what the attention writes."""
        return self.attention_after or self.output

    @property
    def mlp_writer(self) -> nn.Module:
        """Its output, times `scale`, is what the MLP writes."""
        return self.mlp_after or self.mlp


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

    @property
    def has_experts(self) -> bool:
        """Whether some layer is a mixture of experts."""
        return any(layer.experts is not None for layer in self.layers)

    @property
    def config(self) -> Any:
        """The config of the decoder; of a vision-language model, that of its language tower."""
        return text_config(base_model(self.root).config)

    def on_embed_write(self, see: Seen) -> RemovableHandle:
        """Call `see` with what the embedding writes: its output, scaled, with positions added."""
        return self.layers[0].on_attention_read(see)[0]

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
    model_type = str(getattr(config, "model_type", type(base).__name__))
    need = _Need(base, text_config(config))
    if (reason := why_refused(model_type)) is not None:
        raise SparksError(f"sparks cannot take {model_type!r} apart: {reason}; {WORKING}")
    decoder = _decoder(base)
    parts = need.part(decoder, "layers", "h")
    layers = tuple(_find_layer(need, layer) for layer in parts)
    if not layers:
        need.fail("it has no layers")
    first = layers[0]
    graph = Graph(
        num_layers=len(layers),
        num_heads=first.query.heads,
        num_kv_heads=first.key.heads,
        # Attention and MLP read the same stream, not one what the other wrote.
        parallel=bool(need.setting("use_parallel_residual"))
        or hasattr(parts[0], "ln_mlp")
        or (first.mlp_norm is not None and first.mlp_norm is first.attention_norm),
    )
    embedding = base.get_input_embeddings()  # type: ignore[operator]
    return Anatomy(
        root=model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model,
        graph=graph,
        d_model=need.number("hidden_size"),
        embedding=embedding,
        layers=layers,
        final_norm=need.part(decoder, "norm", "ln_f", "final_layernorm", "final_layer_norm"),
        vocab_size=embedding.weight.shape[0],
        max_positions=context_of(config),
        model_type=model_type,
    )


def _decoder(base: Any) -> Any:
    """The part of a model that holds the layers."""
    found = base.get_decoder() if hasattr(base, "get_decoder") else base
    return found if _any_of(found, "layers", "h") is not None else getattr(found, "model", found)


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

    def part(self, owner: nn.Module, *names: str) -> Any:
        """The first of `names` that `owner` has."""
        found = _any_of(owner, *names)
        if found is None:
            self.fail(f"{type(owner).__name__} has no `{names[0]}`")
        return found

    def setting(self, name: str) -> Any:
        """What the config says of it; None where it says nothing."""
        try:
            return getattr(self.config, name, None)
        except Exception as error:  # a config whose layers differ has no one answer
            self.fail(f"its config has no one {name} ({type(error).__name__})")

    def number(self, name: str) -> int:
        found = self.setting(name)
        if not isinstance(found, int):
            self.fail(f"its config has no whole number `{name}` (found {found!r})")
        return found

    def fail(self, what: str) -> NoReturn:
        raise SparksError(
            f"sparks does not know the architecture {type(self.base).__name__} "
            f"(model_type {getattr(self.base.config, 'model_type', '?')!r}): {what}; {WORKING}"
        )


def _any_of(owner: nn.Module, *names: str) -> Any:
    return next((part for name in names if (part := getattr(owner, name, None)) is not None), None)


def _find_layer(need: _Need, layer: nn.Module) -> Layer:
    attention = need.part(layer, "self_attn", "self_attention", "attention", "attn")
    attention = getattr(attention, "attention", attention)  # GPT-Neo
    attention_norm = _any_of(layer, "input_layernorm", "attention_layernorm", "ln_attn", "ln_1")
    attention_after = _any_of(layer, "post_self_attn_layernorm")
    mlp_after = _any_of(layer, "post_feedforward_layernorm", "post_mlp_layernorm")
    if hasattr(layer, "post_feedforward_layernorm"):  # the name below is then a norm behind
        attention_after = need.part(layer, "post_attention_layernorm")
        mlp_norm = _any_of(layer, "pre_feedforward_layernorm")
    else:
        mlp_norm = _any_of(
            layer, "post_attention_layernorm", "pre_feedforward_layernorm",
            "feedforward_layernorm", "ln_mlp", "ln_2",
        )  # fmt: skip
        mlp_norm = mlp_norm or attention_norm
    if need.setting("use_post_norm"):  # HyperCLOVA X
        attention_after, mlp_after = layer.post_norm1, layer.post_norm2
    query, key, value = _find_projections(need, attention)
    mlp = need.part(layer, "mlp", "feed_forward", "block_sparse_moe")
    return Layer(
        attention=attention,
        attention_norm=attention_norm,
        query=query,
        key=key,
        value=value,
        output=need.part(attention, "o_proj", "dense", "c_proj", "out_proj"),
        attention_after=attention_after,
        mlp_norm=mlp_norm,
        mlp=mlp,
        experts=_any_of(mlp, "experts"),
        mlp_after=mlp_after,
        scale=float(need.setting("residual_multiplier") or 1),
    )


def _find_projections(need: _Need, attention: nn.Module) -> list[Projection]:
    """Query, key and value heads."""
    heads = need.number("num_attention_heads")
    size = need.setting("head_dim") or need.number("hidden_size") // heads
    kv_heads = need.setting("num_key_value_heads") or heads
    fused = _any_of(attention, "qkv_proj", "query_key_value", "c_attn")
    if fused is None:
        return [
            Projection(need.part(attention, name), 0, count, size)
            for name, count in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads))
        ]
    multi_query = need.setting("multi_query")  # Falcon, GPT-BigCode
    if need.setting("new_decoder_architecture"):
        kv_heads = need.number("num_kv_heads")
    elif multi_query is not None:
        kv_heads = 1 if multi_query else heads
    if hasattr(attention, "query_key_value") or multi_query is False:
        # Query, key and value heads of one group side by side, then those of the next.
        each = heads // kv_heads
        step = (each + 2) * size
        return [
            Projection(fused, 0, heads, size, each, step),
            Projection(fused, each * size, kv_heads, size, 1, step),
            Projection(fused, (each + 1) * size, kv_heads, size, 1, step),
        ]
    return [
        Projection(fused, start * size, count, size)
        for start, count in ((0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads))
    ]
