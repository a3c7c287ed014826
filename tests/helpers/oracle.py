"""Edge scores by their definition: L differentiated along every edge by autograd, nothing factored.

Let every destination v read x + sum_u t[u, v] Delta z_u, through its own norm and projection, in a
run at alpha_k of the full sequence. Then dL/dt[u, v] at t = 0 is < Delta z_u, dL/d(input of v) >,
and its mean over k is the EAP-IG score. No prefix is shared, no step is batched, no gradient is
taken apart; of sparks, only the finder of the parts (`Anatomy`) is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from sparks.models.anatomy import Anatomy, Layer
from sparks.models.anatomy_proof import take_apart
from sparks.models.hooks import hooks, on_input, on_output
from sparks.probes.pairs import TokenPair


def injected_scores(
    model: nn.Module, pair: TokenPair, alphas: Sequence[float], *, positions: str = "last"
) -> Tensor:
    """EAP-IG scores [sources, destinations], Delta = corrupted - clean."""
    anatomy = take_apart(model)
    targets = 1 if positions == "last" else len(pair.clean)
    ends = [endpoint(anatomy, pair.prefix + ids) for ids in (pair.corrupted, pair.clean)]
    (corrupted, corrupted_writes, _), (clean, clean_writes, logits) = ends
    delta = corrupted_writes - clean_writes
    p_clean = logits[-targets:].softmax(-1)
    graph = anatomy.graph
    total = torch.zeros(graph.num_sources, graph.num_destinations)
    for alpha in alphas:
        strength = torch.zeros_like(total, requires_grad=True)
        with hooks() as handles:
            _inject(anatomy, delta, strength, handles)
            embeds = corrupted + alpha * (clean - corrupted)
            log_q = _logits(anatomy, inputs_embeds=embeds)[-targets:].log_softmax(-1)
        loss = (p_clean * (p_clean.log() - log_q)).sum(-1).mean()
        total += torch.autograd.grad(loss, strength)[0]
    return total / len(alphas)


def _logits(anatomy: Anatomy, **inputs: Tensor) -> Tensor:
    return anatomy.call(**inputs, use_cache=False).logits[0].float()


@torch.no_grad()
def endpoint(anatomy: Anatomy, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [1, pos, d], writes [sources, pos, d] and logits [pos, vocab] of a prompt."""
    writes: list[Tensor] = []
    embeds: list[Tensor] = []

    def heads(layer: Layer) -> Callable[[Tensor], None]:
        output, behind = layer.output, layer.attention_after

        def see(mixed: Tensor) -> None:
            bias = output.forward(torch.zeros_like(mixed))
            whole = output.forward(mixed)
            # A norm behind, with its r held, multiplies each feature by a number.
            factor = layer.scale * (1 if behind is None else behind.forward(whole) / whole)
            for head in range(anatomy.graph.num_heads):
                size = mixed.shape[-1] // anatomy.graph.num_heads
                alone = torch.zeros_like(mixed)
                features = slice(head * size, (head + 1) * size)
                alone[..., features] = mixed[..., features]
                writes.append(factor * (output.forward(alone) - bias))

        return see

    def keep(scale: float) -> Callable[[Tensor], None]:
        return lambda out: writes.append(scale * out)

    with hooks() as handles:
        handles.append(on_output(anatomy.embedding, embeds.append))
        handles.append(anatomy.on_embed_write(writes.append))
        for layer in anatomy.layers:
            handles.append(on_input(layer.output, heads(layer)))
            handles.append(on_output(layer.mlp_writer, keep(layer.scale)))
        logits = _logits(anatomy, input_ids=torch.tensor([ids]))
    return embeds[0], torch.cat(writes), logits


def _inject(anatomy: Anatomy, delta: Tensor, strength: Tensor, handles: list[Any]) -> None:
    columns = dict(zip(anatomy.graph.destinations, strength.unbind(1), strict=True))
    exists = torch.from_numpy(anatomy.graph.edge_mask)
    rows = dict(zip(anatomy.graph.destinations, exists.unbind(1), strict=True))

    def moved(x: Tensor, name: str) -> Tensor:
        weights = columns[name] * rows[name]
        return x + torch.einsum("u,usd->sd", weights, delta)

    def attention(index: int) -> None:
        layer = anatomy.layers[index]
        read: list[Tensor] = []
        parts = (
            (layer.query, "L{}H{}.q"),
            (layer.key, "L{}KV{}.k"),
            (layer.value, "L{}KV{}.v"),
        )

        def project(module: nn.Module) -> Callable[[Tensor], Tensor]:
            def see(output: Tensor) -> Tensor:
                slices = []
                for item, form in parts:
                    for head in range(item.heads) if item.module is module else ():
                        x = moved(read[0], form.format(index, head))
                        place = item.place(head)
                        again = module.forward(layer.normed(x))
                        slices.append((place.start, again[..., place]))
                assert sum(item.shape[-1] for _, item in slices) == output.shape[-1]
                return torch.cat([item for _, item in sorted(slices, key=itemgetter(0))], -1)

            return see

        handles.extend(layer.on_attention_read(read.append))
        handles.extend(on_output(module, project(module)) for module in layer.projection_modules)
        handles.extend(layer.on_mlp_read(lambda x: moved(x, f"L{index}MLP")))

    for index in range(len(anatomy.layers)):
        attention(index)
    handles.append(on_input(anatomy.final_norm, lambda x: moved(x, "logits")))
