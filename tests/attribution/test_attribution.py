"""Edge and node scores: against the official ones, their definition, and under every split."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import AssertClose
from families import tiny_family
from models import KINDS, tiny_model, token_pair, unsplit
from oracle import injected_scores
from places import DATA
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sparks.attribution import path_sums
from sparks.attribution.eap_ig import (
    edge_attribution,
    estimate_memory,
    iter_edge_attribution,
    node_attribution,
)
from sparks.attribution.head_gradients import AttentionReader
from sparks.attribution.model_runs import Passes
from sparks.attribution.quadrature import alphas_of
from sparks.attribution.scores import EdgeScores
from sparks.ground.errors import SparksError
from sparks.models.anatomy_proof import take_apart
from sparks.models.graph import Graph
from sparks.models.memory import GIB, SavedBytes
from sparks.probes.pairs import TokenPair

OFFICIAL = DATA / "eap_ig"

# Prefixes of many lengths, none among them, with continuations of three lengths: runs are padded.
PAIRS = [
    token_pair(9, 5),
    token_pair(0, 5),
    token_pair(4, 1),
    token_pair(2, 5),
    token_pair(12, 3),
    token_pair(0, 1),
    token_pair(7, 5),
]
SOME = [PAIRS[0], PAIRS[2], PAIRS[1]]
"""Two that run together, and one between them that does not."""


def scores_of(model: nn.Module, pairs: list[TokenPair] = PAIRS, **settings: Any) -> Tensor:
    return edge_attribution(model, pairs, **{"points": 5} | settings).scores


# -- official scores -------------------------------------------------------------------------------


class Official:
    """A model of the reference, its pairs, and its scores on our rows and columns."""

    def __init__(self, name: str) -> None:
        folder = OFFICIAL / name
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.pairs = [TokenPair(**item) for item in json.loads((folder / "pairs.json").read_text())]
        self.names = json.loads((folder / "nodes.json").read_text())
        self.tensors = load_file(folder / "scores.safetensors")

    def rows(self) -> list[str]:
        """Our name of each official source: `input`, `a1.h2`, `m1` are `embed`, `L1H2`, `L1MLP`."""
        return [self._ours(name) for name in self.names["source_nodes"]]

    def edges(self, steps: int, graph: Graph) -> Tensor:
        """Scores [pair, source, destination]: key and value columns summed over their group."""
        group = graph.num_heads // graph.num_kv_heads
        column = {name: index for index, name in enumerate(graph.destinations)}
        official = self.tensors[f"edge_scores_m{steps}"]
        folded = torch.zeros(len(self.pairs), graph.num_sources, graph.num_destinations)
        for index, name in enumerate(self.names["destination_nodes"]):
            ours, _, part = name.partition("<")
            ours = self._ours(ours)
            if part in ("k>", "v>"):
                layer, head = graph.head(ours)
                ours = f"L{layer}KV{head // group}.{part[0]}"
            elif part:
                ours += ".q"
            folded[:, :, column[ours]] += official[:, :, index]
        return folded

    def _ours(self, name: str) -> str:
        if name in ("input", "logits"):
            return {"input": "embed"}.get(name, name)
        if name.startswith("m"):
            return f"L{name[1:]}MLP"
        return name.replace("a", "L").replace(".h", "H")


@pytest.fixture(scope="module", params=["llama-gqa", "qwen2-bias", "qwen3-qknorm"])
def official(request: pytest.FixtureRequest) -> Official:
    return Official(request.param)


@pytest.mark.parametrize("split", [True, False], ids=["prefix split", "no prefix"])
@pytest.mark.parametrize("steps", [5, 20])
def test_edge_scores_are_the_official_ones(
    official: Official, steps: int, split: bool, assert_close: AssertClose
) -> None:
    pairs = official.pairs if split else [unsplit(pair) for pair in official.pairs]
    found = edge_attribution(official.model, pairs, points=steps, quadrature="left")
    assert list(found.sources) == official.rows()
    expected = official.edges(steps, found.graph)
    assert_close("parity", found.scores, expected)
    for ours, theirs in zip(found.scores, expected, strict=True):
        assert_close("parity", ours, theirs)


def test_edges_exist_where_the_official_ones_do(official: Official) -> None:
    found = edge_attribution(official.model, official.pairs[:1], points=2)
    columns = official.names["destination_nodes"]
    mask = official.tensors["real_edge_mask"].bool()
    exists = torch.from_numpy(found.graph.edge_mask)
    queries = [index for index, name in enumerate(columns) if "<q>" in name or "<" not in name]
    ours = [index for index, name in enumerate(found.destinations) if "KV" not in name]
    assert torch.equal(exists[:, ours], mask[:, queries])
    assert bool((found.scores[0][~exists] == 0).all())


@pytest.mark.parametrize("split", [True, False], ids=["prefix split", "no prefix"])
@pytest.mark.parametrize("steps", [5, 20])
def test_node_scores_are_the_official_ones(
    official: Official, steps: int, split: bool, assert_close: AssertClose
) -> None:
    pairs = official.pairs if split else [unsplit(pair) for pair in official.pairs]
    found = node_attribution(official.model, pairs, points=steps, quadrature="right")
    assert list(found.sources) == official.rows()
    # Official MLP rows use another gradient; see the README beside the scores.
    compared = [index for index, name in enumerate(found.sources) if "MLP" not in name]
    expected = official.tensors[f"node_scores_m{steps}"]
    assert_close("parity", found.scores[:, compared], expected[:, compared])


# -- definition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_their_definition_on_every_architecture(
    kind: str, assert_close: AssertClose
) -> None:
    """Batched, padded and cached against one full run a point with every edge differentiated."""
    model, pairs = tiny_model(kind), PAIRS[:2]
    found = scores_of(model, pairs, points=3, quadrature="midpoint")
    alphas = alphas_of("midpoint", 3)
    for ours, pair in zip(found, pairs, strict=True):
        assert_close("parity", ours, injected_scores(model, pair, alphas))


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window", "starcoder2"])
def test_scores_at_all_positions_are_their_definition(kind: str, assert_close: AssertClose) -> None:
    model, pair = tiny_model(kind), PAIRS[0]
    found = scores_of(model, [pair], points=3, quadrature="right", positions="all")[0]
    alphas = alphas_of("right", 3)
    expected = injected_scores(model, pair, alphas, positions="all")
    assert_close("parity", found, expected)
    assert float((found - scores_of(model, [pair], points=3, quadrature="right")[0]).norm()) > 0.1


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-biases", "starcoder2", "lora-phi3"])
def test_node_scores_are_the_sums_of_what_leaves_the_node(
    kind: str, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    nodes = node_attribution(model, PAIRS, points=5, positions="all")
    edges = edge_attribution(model, PAIRS, points=5, positions="all")
    assert nodes.sources == edges.sources
    assert_close("same", nodes.scores, edges.scores.sum(-1))
    assert_close("same", nodes.loss_corrupted, edges.loss_corrupted)


@pytest.mark.parametrize("positions", ["last", "all"])
def test_loss_is_the_divergence_of_the_two_runs(positions: str, assert_close: AssertClose) -> None:
    model, pair = tiny_model("qwen3"), PAIRS[0]
    found = edge_attribution(model, [pair], points=1, positions=positions).loss_corrupted[0]
    where = slice(-1, None) if positions == "last" else slice(-len(pair.clean), None)
    with torch.no_grad():
        clean, corrupted = (
            model(input_ids=torch.tensor([pair.prefix + ids])).logits[0, where].double()
            for ids in (pair.clean, pair.corrupted)
        )
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=clean),
        torch.distributions.Categorical(logits=corrupted),
    )
    assert_close("same", found, kl.mean().float())


def test_the_completeness_gap_is_the_error_of_the_quadrature() -> None:
    model = tiny_model("llama-gqa")
    gaps = {
        (rule, steps): edge_attribution(
            model, PAIRS, points=steps, quadrature=rule
        ).completeness_gap.median()
        for rule in ("left", "midpoint")
        for steps in (4, 16, 64)
    }
    print({name: f"{float(gap):.1e}" for name, gap in gaps.items()})
    for rule in ("left", "midpoint"):
        assert gaps[rule, 4] > gaps[rule, 16] > gaps[rule, 64]
    assert gaps["midpoint", 64] < 1e-3
    assert gaps["midpoint", 64] < gaps["left", 64] / 5


def test_nodes_have_the_same_gap_as_edges() -> None:
    model = tiny_model("llama-gqa")
    edges = edge_attribution(model, PAIRS, points=5).completeness_gap
    nodes = node_attribution(model, PAIRS, points=5).completeness_gap
    assert float(edges.median()) > 1e-3
    torch.testing.assert_close(nodes, edges, rtol=0, atol=1e-5)


def test_importance_of_a_head_is_the_sum_over_what_leaves_it() -> None:
    found = edge_attribution(tiny_model("llama-gqa"), PAIRS[:2], points=2)
    kept = torch.rand(found.scores.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    row = found.sources.index("L1H2")
    assert found.heads().shape == (2, 3, 4)
    expected = found.scores[:, row].abs()
    torch.testing.assert_close(found.heads()[:, 1, 2], expected.sum(-1))
    torch.testing.assert_close(found.heads(kept)[:, 1, 2], (expected * kept[:, row]).sum(-1))


# -- routes ----------------------------------------------------------------------------------------


FACTORED = (
    "llama-gqa",
    "llama-mqa",
    "llama-odd",
    "llama-biases",
    "qwen3",
    "phi3-fused",
    "starcoder2",
    "dora-qwen2",
    "lora-phi3",
    # A gain of 1 + w, no norm before, and LayerNorms: with a shift, without, with a gain of 1 + w.
    "gemma3_text",
    "olmo2",
    "gpt_neox",
    "cohere2",
    "nemotron",
)


@pytest.mark.parametrize("kind", FACTORED)
def test_the_generic_route_gives_what_the_factored_route_gives(
    kind: str, monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose
) -> None:
    model = tiny_model(kind) if kind in KINDS else tiny_family(kind)
    readers = [AttentionReader.of(layer) for layer in take_apart(model).layers]
    assert all(reader.maps for reader in readers)
    factored = scores_of(model)
    choose = AttentionReader.of
    made = []

    def generic(layer: Any) -> AttentionReader:
        made.append(choose(layer, generic=True))
        return made[-1]

    monkeypatch.setattr(AttentionReader, "of", generic)
    assert_close("same", scores_of(model), factored)
    assert [reader.maps for reader in made] == [{}] * len(readers)


def test_a_norm_that_is_no_known_formula_takes_the_generic_route() -> None:
    layers = take_apart(tiny_family("olmo")).layers  # a LayerNorm without weights
    assert not any(AttentionReader.of(layer).maps for layer in layers)


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window", "phi3-fused", "smollm3-nope"])
def test_attention_kernels_agree(kind: str, assert_close: AssertClose) -> None:
    model = tiny_model(kind)
    model.set_attn_implementation("sdpa")
    sdpa = scores_of(model)
    model.set_attn_implementation("eager")
    assert_close("same", scores_of(model), sdpa)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["lora-llama", "dora-qwen2", "lora-phi3"])
def test_an_adapter_scores_as_the_model_it_merges_into(
    kind: str, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    merged = copy.deepcopy(model).merge_and_unload()
    found = scores_of(model)
    assert_close("same", found, scores_of(merged))
    with model.disable_adapter():
        plain = scores_of(model)
    assert_close("same", plain, scores_of(model.unload()))
    assert float((plain - found).norm() / found.norm()) > 0.1


NARROW = ("llama-gqa", "qwen3", "phi3-fused", "starcoder2", "lora-llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", NARROW)
def test_narrow_types_are_close_to_float32(
    kind: str, dtype: torch.dtype, assert_close: AssertClose
) -> None:
    model = tiny_model(kind, dtype=dtype)
    wide = copy.deepcopy(model).float()
    found, expected = scores_of(model), scores_of(wide)
    assert found.dtype == torch.float32
    assert_close(str(dtype).removeprefix("torch."), found, expected)


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2"])
def test_small_gradients_are_not_lost_in_float16(kind: str, assert_close: AssertClose) -> None:
    model = tiny_model(kind)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    model.half()
    found = edge_attribution(model, PAIRS, points=5)
    assert float(found.loss_corrupted.max()) < 1e-3
    assert_close("float16", found.scores, scores_of(model.float()))


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2", "lora-llama"])
def test_a_model_under_a_trainers_autocast_is_close_to_float32(
    kind: str, assert_close: AssertClose
) -> None:
    """Float32 weights, forward wrapped as accelerate wraps it: generic and factored route."""
    model = tiny_model(kind)
    expected = scores_of(model)
    inner = model.get_base_model() if kind == "lora-llama" else model
    plain = inner.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = plain(*args, **kwargs)
        out.logits = out.logits.float()
        return out

    inner.forward = forward
    assert_close("bfloat16", scores_of(model), expected)
    assert float((scores_of(model) - expected).norm() / expected.norm()) > 1e-4


def test_the_callers_own_autocast_does_not_change_the_scores() -> None:
    model = tiny_model("lora-llama")
    expected = scores_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores_of(model)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, expected)


def test_the_callers_no_grad_does_not_matter() -> None:
    model = tiny_model("llama-gqa")
    expected = scores_of(model)
    with torch.no_grad():
        assert torch.equal(scores_of(model), expected)


# -- batches, splits and budgets -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "mistral-window", "smollm3-nope"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pairs_together_score_as_one_by_one(
    kind: str, attention: str, assert_close: AssertClose
) -> None:
    """Unequal prefixes, an empty one beside others, unequal continuations; order is kept."""
    model = tiny_model(kind)
    model.set_attn_implementation(attention)
    together = edge_attribution(model, PAIRS, points=5)
    alone = [edge_attribution(model, [pair], points=5) for pair in PAIRS]
    for name in ("scores", "loss_corrupted"):
        found = getattr(together, name)
        for index, one in enumerate(alone):
            assert_close("same", found[index], getattr(one, name)[0])


def test_every_token_keeps_its_own_position() -> None:
    """Whatever stands to its left in the batch: padding must not move a prompt."""
    model = tiny_model("llama-gqa")
    pairs = [PAIRS[0], PAIRS[1], PAIRS[3]]
    seen: set[tuple[int, ...]] = set()

    def see(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("inputs_embeds") is not None:
            seen.update(map(tuple, kwargs["position_ids"].tolist()))

    model.register_forward_pre_hook(see, with_kwargs=True)
    edge_attribution(model, pairs, points=1)
    starts = [len(pair.prefix) for pair in pairs]
    assert seen == {tuple(range(start, start + 5)) for start in starts}


def test_padding_that_holds_nan_does_no_harm(assert_close: AssertClose) -> None:
    """What an attention kernel leaves where a row has nothing to attend to is not defined."""
    model = tiny_model("llama-gqa")
    pairs = [PAIRS[0], PAIRS[3]]
    expected = scores_of(model, pairs)
    longest, shortest = (len(pair.prefix) for pair in pairs)

    def spoil(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        spoilt = output.clone()
        if output.shape[:2] == (2, longest):  # the run of the padded prefixes, the shortest first
            spoilt[0, : longest - shortest] = float("nan")
        return spoilt

    attention = model.model.layers[-1].self_attn
    for projection in (attention.k_proj, attention.v_proj):
        projection.register_forward_hook(spoil)
    assert_close("same", scores_of(model, pairs), expected)


def test_nodes_together_score_as_one_by_one(assert_close: AssertClose) -> None:
    model = tiny_model("llama-gqa")
    together = node_attribution(model, PAIRS, points=5).scores
    alone = torch.cat([node_attribution(model, [pair], points=5).scores for pair in PAIRS])
    assert_close("same", together, alone)


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window", "smollm3-nope"])
def test_the_prefix_split_changes_nothing(kind: str, assert_close: AssertClose) -> None:
    """The window of the Mistral is shorter than the prompts, and than some continuations."""
    model = tiny_model(kind)
    assert_close("same", scores_of(model), scores_of(model, [unsplit(pair) for pair in PAIRS]))


def test_the_sliding_window_is_felt() -> None:
    windowed, full = tiny_model("mistral-window"), tiny_model("mistral-window", sliding_window=None)
    assert not torch.allclose(scores_of(windowed), scores_of(full), atol=1e-2)


def test_batches_that_come_one_by_one_are_the_whole() -> None:
    model = tiny_model("llama-gqa")
    whole = scores_of(model)
    seen = []
    for indices, part in iter_edge_attribution(model, PAIRS, points=5):
        assert isinstance(part, EdgeScores)
        assert torch.equal(part.scores, whole[indices])
        # Between two batches the model is the caller's.
        assert all(parameter.requires_grad for parameter in model.parameters())
        seen += indices
    assert sorted(seen) == list(range(len(PAIRS)))


@pytest.mark.parametrize("score", [edge_attribution, node_attribution])
def test_progress_counts_every_row_and_a_tiny_budget_splits_them(score: Any) -> None:
    model = tiny_model("llama-gqa")
    whole: list[int] = []
    split: list[int] = []
    score(model, SOME, points=3, progress=whole.append)
    score(model, SOME, points=3, progress=split.append, memory_gib=1e-9)
    assert sum(whole) == sum(split) == 3 * len(SOME)
    assert max(whole) > 3
    assert split == [1] * 3 * len(SOME)


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2", "lora-llama"])
def test_a_tiny_budget_gives_equal_scores(kind: str, assert_close: AssertClose) -> None:
    """One row at a time, reads contracted as they come, writes rebuilt layer by layer."""
    model = tiny_model(kind)
    whole = edge_attribution(model, SOME, points=3)
    split = edge_attribution(model, SOME, points=3, memory_gib=1e-9)
    assert_close("same", split.scores, whole.scores)
    assert_close("same", split.loss_corrupted, whole.loss_corrupted)
    torch.testing.assert_close(split.completeness_gap, whole.completeness_gap, rtol=0, atol=1e-5)
    nodes = node_attribution(model, SOME, points=3, memory_gib=1e-9)
    assert_close("same", nodes.scores, node_attribution(model, SOME, points=3).scores)


def test_writes_are_the_same_kept_or_streamed() -> None:
    model = tiny_model("llama-biases")
    anatomy = take_apart(model)
    with torch.no_grad():
        ends = Passes(anatomy, [PAIRS[0], PAIRS[3]], "last").endpoints()
        kept = path_sums._Writes(anatomy, ends, keep=True)
        streamed = path_sums._Writes(anatomy, ends, keep=False)
    for limit in (1, 3, 5, 6, anatomy.graph.num_sources):
        whole = torch.cat([part for _, part in kept.blocks(limit)], 1)
        parts = list(streamed.blocks(limit))
        assert whole.shape[1] == limit
        assert len(parts) > 1 or limit == 1
        assert torch.equal(torch.cat([part for _, part in parts], 1), whole)
        rows = [index for place, _ in parts for index in range(limit)[place]]
        assert rows == list(range(limit))


def test_the_memory_estimate_follows_the_budget() -> None:
    model = tiny_model("llama-gqa")
    ample = estimate_memory(model, PAIRS, points=20)
    assert ample.fits
    assert ample.rows > 20
    tiny = estimate_memory(model, PAIRS, points=20, memory_gib=1e-9)
    assert not tiny.fits
    assert (tiny.rows, tiny.pairs) == (1, 1)
    assert tiny.peak_gib > 1e-9
    rows = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        budget = share * ample.peak_gib
        estimate = estimate_memory(model, PAIRS, points=20, memory_gib=budget)
        assert estimate.fits
        assert estimate.peak_gib <= budget
        rows.append(estimate.rows)
    assert rows == sorted(rows)
    assert rows[0] < rows[-1]


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2", "lora-llama"])
def test_what_is_saved_for_the_backward_pass_is_in_the_estimate(kind: str) -> None:
    model = tiny_model(kind)
    pair = PAIRS[0]
    estimate = estimate_memory(model, [pair], points=8)
    anatomy = take_apart(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    passes = Passes(anatomy, [pair], "last")
    ends = passes.endpoints()
    with SavedBytes(list(model.parameters())) as saved:
        passes.interpolate(ends, alphas_of("midpoint", 8), nodes=False)
    assert estimate.row_bytes < estimate.peak_gib * GIB
    assert 0.5 * 8 * estimate.row_bytes < saved.total <= 8 * estimate.row_bytes


# -- the model is left as it was -------------------------------------------------------------------


class State:
    """Everything about a model and the process that an attribution could disturb."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors = {name: value.clone() for name, value in model.state_dict().items()}
        self.grads = {n: None if p.grad is None else p.grad.clone() for n, p in self._parameters()}
        self.flags = self._flags()
        self.rng = torch.get_rng_state()
        self.other_rng = self._other_rng()

    def _other_rng(self) -> str:
        return repr((random.getstate(), np.random.get_state(legacy=False)))

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())

    def _flags(self) -> Any:
        modules = list(self.model.modules())
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return (
            [parameter.requires_grad for _, parameter in self._parameters()],
            [module.training for module in modules],
            [len(getattr(module, kind)) for module in modules for kind in kinds],
            ["forward" in vars(module) for module in modules],
            self.model.config.to_dict(),
            torch.is_grad_enabled(),
        )

    def check(self) -> None:
        found = self.model.state_dict()
        assert list(found) == list(self.tensors)
        assert all(torch.equal(found[name], value) for name, value in self.tensors.items())
        for name, parameter in self._parameters():
            before = self.grads[name]
            assert (parameter.grad is None) == (before is None)
            assert before is None or torch.equal(parameter.grad, before)
        assert self._flags() == self.flags
        assert torch.equal(torch.get_rng_state(), self.rng)
        assert self._other_rng() == self.other_rng


def in_the_middle_of_training(kind: str) -> nn.Module:
    """Some weights frozen, some modules in evaluation mode, gradients, a hook that draws."""
    model = tiny_model(kind, attention_dropout=0.4).train()
    torch.manual_seed(11)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(parameter.requires_grad and number % 3 != 0)
        if parameter.requires_grad and number % 2:
            parameter.grad = torch.randn_like(parameter)
    for number, module in enumerate(model.modules()):
        module.training = number % 5 != 0
    model.get_input_embeddings().register_forward_hook(draw)
    return model


def draw(*_: Any) -> None:
    """A hook that uses up random numbers."""
    torch.rand(1), random.random(), np.random.rand()


@pytest.mark.parametrize("score", [edge_attribution, node_attribution, estimate_memory])
@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2", "lora-llama"])
def test_the_model_is_left_as_it_was(kind: str, score: Any) -> None:
    model = in_the_middle_of_training(kind)
    state = State(model)
    score(model, PAIRS[:3], points=2)
    state.check()


def test_training_mode_does_not_change_the_scores() -> None:
    model = in_the_middle_of_training("lora-llama")
    found = scores_of(model)
    assert torch.equal(found, scores_of(copy.deepcopy(model).eval()))


def test_activation_checkpointing_changes_neither_scores_nor_model() -> None:
    model = in_the_middle_of_training("lora-llama")
    expected = scores_of(model)
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    state = State(model)
    assert torch.equal(scores_of(model), expected)
    state.check()


class StopHereError(Exception):
    """Raised by a test in the middle of a run."""


def stop(*_: Any) -> None:
    raise StopHereError


@pytest.mark.parametrize("score", [edge_attribution, node_attribution])
def test_the_model_is_left_as_it_was_when_a_caller_breaks_off(score: Any) -> None:
    model = in_the_middle_of_training("llama-gqa")
    state = State(model)
    with pytest.raises(StopHereError):
        score(model, PAIRS, points=2, progress=stop)
    state.check()


@pytest.mark.parametrize("layer", [0, 2])
def test_the_model_is_left_as_it_was_when_the_model_itself_fails(layer: int) -> None:
    model = in_the_middle_of_training("llama-gqa")
    model.model.layers[layer].mlp.act_fn.register_forward_hook(stop)
    state = State(model)
    with pytest.raises(StopHereError):
        edge_attribution(model, PAIRS, points=2)
    state.check()


def test_a_batch_that_is_not_asked_for_leaves_the_model_alone() -> None:
    model = in_the_middle_of_training("llama-gqa")
    state = State(model)
    batches = iter_edge_attribution(model, PAIRS, points=2)
    next(batches)
    state.check()
    batches.close()
    state.check()


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs is empty: give at least one TokenPair"),
        ({"pairs": PAIRS[0]}, r"pairs must be a sequence of TokenPair, got one: give \[pair\]"),
        ({"pairs": iter(PAIRS)}, "pairs must be a list of TokenPair, got list_iterator"),
        ({"pairs": [PAIRS[0], {}]}, "pair 1: must be a TokenPair, got dict"),
        (
            {"pairs": [PAIRS[0], TokenPair([], [61], [1])]},
            r"pair 1: token ids must be 0\.\.60, found 61: were the probes tokenised for another",
        ),
        (
            {"pairs": [token_pair(62, 3)]},
            "pair 0: 65 tokens, more than the model's context of 64: shorten its prompt",
        ),
        ({"points": 0}, "points must be a whole number, at least 1, got 0"),
        (
            {"quadrature": "simpson"},
            "quadrature must be one of midpoint, left, right, pilot, got 'simpson'",
        ),
        ({"positions": "first"}, "positions must be one of last, all, got 'first'"),
        ({"memory_gib": 0}, "memory_gib must be a finite number above 0, got 0"),
        ({"memory_gib": "4"}, "memory_gib must be a finite number above 0, got '4'"),
        ({"model": nn.Linear(2, 2)}, "a Hugging Face causal language model, got Linear: load it"),
        ({"model": "gpt2"}, "a Hugging Face causal language model, got str: load it"),
    ],
)
@pytest.mark.parametrize("score", [edge_attribution, node_attribution])
def test_bad_arguments_are_refused_in_one_line(
    score: Any, arguments: dict[str, Any], message: str
) -> None:
    given = {"model": tiny_model("llama-gqa"), "pairs": PAIRS[:1], "points": 2} | arguments
    with pytest.raises(SparksError, match=message) as caught:
        score(given.pop("model"), given.pop("pairs"), **given)
    assert "\n" not in str(caught.value)


def test_the_longest_pair_that_the_context_holds_is_scored() -> None:
    found = scores_of(tiny_model("llama-gqa"), [token_pair(61, 3)], points=1)
    assert float(found.norm()) > 0


@pytest.mark.parametrize("place", ["layer", "lm_head", "embedding"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@torch.no_grad()
def test_weights_that_are_not_finite_are_refused_in_one_line(place: str, bad: float) -> None:
    model = tiny_model("llama-gqa")
    weight = {
        "layer": model.model.layers[1].mlp.down_proj.weight,
        "lm_head": model.lm_head.weight,
        "embedding": model.get_input_embeddings().weight,
    }[place]
    weight[PAIRS[0].clean[0] if place == "embedding" else 5, 3] = bad
    with pytest.raises(SparksError, match=r"not finite.*restore an? .*checkpoint") as caught:
        edge_attribution(model, PAIRS[:1], points=2)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_weights_that_break_between_two_runs_are_refused_too() -> None:
    model = tiny_model("llama-gqa")
    scores_of(model, PAIRS[:1])
    model.model.layers[1].mlp.down_proj.weight[5, 3] = float("nan")
    with pytest.raises(SparksError, match="not finite"):
        scores_of(model, PAIRS[:1])


@pytest.mark.parametrize("score", [edge_attribution, node_attribution])
def test_gradients_that_are_not_finite_are_refused_in_one_line(score: Any) -> None:
    model = tiny_model("llama-gqa")
    root_of_nothing = lambda _, __, out: out + (out - out).abs().sqrt()  # noqa: E731
    model.model.layers[0].mlp.register_forward_hook(root_of_nothing)
    with pytest.raises(SparksError, match="attribution scores are not finite") as caught:
        score(model, PAIRS[:1], points=2)
    assert "\n" not in str(caught.value)
