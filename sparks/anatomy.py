"""Where the parts of a Hugging Face decoder are: the only module that knows their names.

A part is found by its name, then proved by numbers: `Anatomy.of` runs a few tokens through the model and
checks that the pieces add up to what the model computes. What must hold, layer by layer:

1. the embedding's output is what the first layer reads;
2. the heads' writes `z_h W_O,h` sum (with the bias) to the output of the attention block;
3. the MLP reads the layer's input plus that output;
4. the next layer (or the final norm) reads what the MLP read plus the MLP's output.

A hook on the wrong tensor, a residual multiplier, a norm after a block or a parallel MLP breaks one of
these, and the model is refused with the number that broke it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparks.errors import SparksError
from sparks.graph import Graph

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

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Find the parts of `model` and check that they add up.

        Raises:
            SparksError: the architecture is not known (names what is missing), its parts do not add up
                to what the model computes, or its activations are not finite.
        """
        anatomy = _find(model)
        _check(anatomy)
        return anatomy

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.embedding.parameters()).device


# -- finding ---------------------------------------------------------------------------------------


def base_model(model: nn.Module) -> nn.Module:
    """The causal language model inside a PEFT or data-parallel wrapper, or `model` itself."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def _find(model: nn.Module) -> Anatomy:
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
    embedding = base.get_input_embeddings()
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
        attention_norm=need.part(layer, "input_layernorm"),
        query=found[0],
        key=found[1],
        value=found[2],
        output=output,
        mlp_norm=need.part(layer, "post_attention_layernorm"),
        mlp=need.part(layer, "mlp"),
    )


# -- hooks -----------------------------------------------------------------------------------------


@contextmanager
def hooks() -> Iterator[list[RemovableHandle]]:
    """A list of hook handles, all removed at the end whatever happens."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def on_input(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `see` with the module's first argument; what it returns, if anything, replaces it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            seen = see(args[0])
            return None if seen is None else ((seen, *args[1:]), kwargs)
        name = "hidden_states"
        seen = see(kwargs[name])
        return None if seen is None else (args, kwargs | {name: seen})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `see` with the module's output tensor; what it returns, if anything, replaces it."""

    def hook(owner: nn.Module, _: tuple[Any, ...], out: Any) -> Any:
        if not isinstance(out, Tensor):
            raise SparksError(
                f"{type(owner).__name__} returns {type(out).__name__}, not one tensor: mixtures of "
                f"experts and blocks with several outputs are not supported"
            )
        return see(out)

    return module.register_forward_hook(hook)


# -- linear pieces ---------------------------------------------------------------------------------


def linear_map(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """`(weight [out, in], bias [out] or None)` of a module that is affine in its input, else None.

    A plain `nn.Linear` is read. Anything else (LoRA, DoRA, weight-only quantisation) is applied to the
    identity, which gives its effective weight exactly, and checked on a random input.
    """
    weight = getattr(module, "weight", None)
    if type(module) is nn.Linear and weight is not None:
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    return _probe_linear_map(module)


@torch.no_grad()
def _probe_linear_map(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    size = getattr(module, "in_features", None)
    reference = next(iter(module.parameters()), None)
    if not isinstance(size, int) or reference is None:
        return None
    dtype = reference.dtype if reference.dtype.is_floating_point else torch.float32
    eye = torch.eye(size, dtype=dtype, device=reference.device)
    bias = module(torch.zeros_like(eye[:1]))[0].float()
    weight = module(eye).float().T - bias[:, None]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, size, generator=generator).to(reference.device)
    expected = module(probe.to(dtype)).float()
    found = probe @ weight.T + bias
    return (weight, bias) if relative_difference(found, expected) < tolerance(dtype) else None


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """`y = gain * x / r`, `r = sqrt(mean(x^2) + eps)`."""

    gain: Float[Tensor, " d_model"]
    eps: float

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """r of each row, float32."""
        return (x.float().square().mean(dim=-1, keepdim=True) + self.eps).sqrt()


@torch.no_grad()
def rms_norm(module: nn.Module) -> RMSNorm | None:
    """The module as an `RMSNorm`, or None if it computes anything else (tried on a random input)."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    norm = RMSNorm(gain=weight.detach().float(), eps=eps)
    generator = torch.Generator().manual_seed(0)
    # Off-centre, so that a norm that subtracts the mean cannot pass.
    x = (torch.randn(4, weight.shape[0], generator=generator) + 0.5).to(weight.device, weight.dtype)
    found = norm.gain * x.float() / norm.scale(x)
    matches = relative_difference(found, module(x).float()) < tolerance(weight.dtype)
    return norm if matches else None


# -- checking --------------------------------------------------------------------------------------


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that rounding alone can make in a sum of a few such numbers."""
    return 1e-4 if torch.finfo(dtype).eps < 1e-5 else 3e-2


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """`||found - expected|| / ||expected||`, Frobenius, float32."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@dataclass(eq=False)
class _LayerSeen:
    """What one layer read and wrote in the check."""

    attention_in: Tensor
    mixed: Tensor
    attention_out: Tensor
    mlp_in: Tensor
    mlp_out: Tensor


@torch.no_grad()
def _check(anatomy: Anatomy) -> None:
    embedded, layers, final_in = _observe(anatomy)
    # Sums under autocast are float32, but their parts were rounded to the narrow type.
    dtype = min((layers[0].mixed.dtype, final_in.dtype), key=lambda d: torch.finfo(d).bits)
    limit = tolerance(dtype)
    following = [*(seen.attention_in for seen in layers[1:]), final_in]
    _compare(anatomy, "layer 0 reads something else than the embedding", layers[0].attention_in, embedded, limit)
    for index, (layer, seen, after) in enumerate(zip(anatomy.layers, layers, following, strict=True)):
        if not bool(torch.isfinite(after).all()):
            raise SparksError(
                f"the model's activations are not finite after layer {index}: its weights hold "
                f"nan or inf; restore a checkpoint from before the loss broke"
            )
        _check_layer(anatomy, index, layer, seen, after, limit)


def _check_layer(
    anatomy: Anatomy, index: int, layer: Layer, seen: _LayerSeen, after: Tensor, limit: float
) -> None:
    output = linear_map(layer.output)
    if output is None:
        raise SparksError(
            f"o_proj of layer {index} ({type(layer.output).__name__}) is not affine in its input, so "
            f"a head's write is not defined: load the model without activation quantisation"
        )
    weight, bias = output
    heads = seen.mixed.unflatten(-1, (anatomy.graph.num_heads, -1)).float()
    columns = weight.float().unflatten(1, (anatomy.graph.num_heads, -1))
    written = torch.einsum("...hf,dhf->...d", heads, columns)
    if bias is not None:
        written = written + bias.float()
    says = f"layer {index}: "
    _compare(anatomy, says + "the heads' writes do not sum to o_proj's output", written, seen.attention_out, limit)
    read = seen.attention_in.float() + seen.attention_out.float()
    _compare(anatomy, says + "the MLP does not read input + attention", seen.mlp_in, read, limit)
    passed = seen.mlp_in.float() + seen.mlp_out.float()
    _compare(anatomy, says + "its output is not input + attention + MLP", after, passed, limit)


def _compare(anatomy: Anatomy, what: str, found: Tensor, expected: Tensor, limit: float) -> None:
    if found.shape != expected.shape:
        amount = f"shapes {tuple(found.shape)} and {tuple(expected.shape)}"
    elif (difference := relative_difference(found, expected)) > limit:
        amount = f"relative difference {difference:.2g}, allowed {limit:g}"
    elif difference != difference:
        raise SparksError(
            f"the model's activations are not finite ({what.split(':')[0]}): its weights hold nan or "
            f"inf; restore a checkpoint from before the loss broke"
        )
    else:
        return
    raise SparksError(
        f"sparks cannot take {anatomy.model_type!r} apart: {what} ({amount}); it needs pre-norm layers "
        f"with sequential, unscaled residual sums, as {', '.join(CHECKED_ARCHITECTURES)} have"
    )


def _observe(anatomy: Anatomy) -> tuple[Tensor, list[_LayerSeen], Tensor]:
    seen: dict[Any, Tensor] = {}

    def keep(key: Any) -> Callable[[Tensor], None]:
        return lambda tensor: seen.__setitem__(key, tensor.detach())

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(anatomy.vocab_size, (1, 6), generator=generator).to(anatomy.device)
    with hooks() as handles:
        handles.append(on_output(anatomy.embedding, keep("embed")))
        handles.append(on_input(anatomy.final_norm, keep("final")))
        for i, layer in enumerate(anatomy.layers):
            handles += [
                on_input(layer.attention_norm, keep((i, "attention_in"))),
                on_input(layer.output, keep((i, "mixed"))),
                on_output(layer.output, keep((i, "attention_out"))),
                on_input(layer.mlp_norm, keep((i, "mlp_in"))),
                on_output(layer.mlp, keep((i, "mlp_out"))),
            ]
        anatomy.root(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    names = ("attention_in", "mixed", "attention_out", "mlp_in", "mlp_out")
    if missing := [(i, n) for i in range(len(anatomy.layers)) for n in names if (i, n) not in seen]:
        layer, name = missing[0]
        raise SparksError(
            f"sparks cannot take {anatomy.model_type!r} apart: `{name}` of layer {layer} never ran"
        )
    layers = [
        _LayerSeen(*(seen[i, name] for name in names)) for i in range(len(anatomy.layers))
    ]
    return seen["embed"], layers, seen["final"]
