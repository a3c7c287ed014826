"""Secant scores: against their definition on every architecture; exact sums; what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import AssertClose
from models import KINDS, tiny_model, token_pair, unsplit
from secant_oracle import defined_scores
from torch import Tensor, nn

from sparks.attribution import secant_proof, secant_rules
from sparks.attribution.eap_ig import edge_attribution, estimate_memory, node_attribution
from sparks.attribution.head_gradients import AttentionReader
from sparks.attribution.model_runs import Passes
from sparks.attribution.secant import SecantReader, run_ends
from sparks.attribution.secant_proof import cuts, refusal, settle
from sparks.attribution.secant_rules import SecantError, Secants, refuse_unknown
from sparks.attribution.take_snapshot import take_snapshot
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.anatomy_proof import take_apart
from sparks.models.guard import undisturbed
from sparks.models.hooks import tolerance
from sparks.models.memory import GIB, SavedBytes
from sparks.probes.pairs import TokenizedProbes

PAIRS = [token_pair(9, 5), token_pair(0, 5), token_pair(4, 1), token_pair(12, 3), token_pair(7, 5)]


def scores_of(model: nn.Module, pairs: Any = PAIRS, **settings: Any) -> Tensor:
    return edge_attribution(model, pairs, method="secant", **settings).scores


# -- definition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_their_definition_on_every_architecture(
    kind: str, assert_close: AssertClose
) -> None:
    """Batched, behind a cached prefix, in float32 and bfloat16: an operation at a time, float64."""
    narrow = tiny_model(kind, dtype=torch.bfloat16)
    wide, pair = copy.deepcopy(narrow).float(), token_pair(3, 3)
    expected = defined_scores(wide, pair).float()
    assert_close("parity", scores_of(wide, [pair])[0], expected)
    assert_close("bfloat16", scores_of(narrow, [pair])[0], expected)


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2"])
def test_scores_at_all_positions_are_their_definition(kind: str, assert_close: AssertClose) -> None:
    model, pair = tiny_model(kind), token_pair(2, 3)
    found = scores_of(model, [pair], positions="all")[0]
    assert_close("parity", found, defined_scores(model, pair, positions="all").float())
    assert float((found - scores_of(model, [pair])[0]).norm()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_across_every_cut_sum_to_the_loss(kind: str) -> None:
    found = edge_attribution(tiny_model(kind), PAIRS, method="secant", positions="all")
    for scores, loss in zip(found.scores, found.loss_corrupted, strict=True):
        for name, total in cuts(found.graph, scores):
            assert total == pytest.approx(float(loss), rel=1e-5), name
    assert float(found.completeness_gap.max()) < 1e-5


@pytest.mark.parametrize("kind", ["llama-gqa", "starcoder2", "lora-phi3"])
def test_node_scores_are_the_sums_of_what_leaves_the_node(
    kind: str, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    nodes = node_attribution(model, PAIRS, method="secant")
    edges = edge_attribution(model, PAIRS, method="secant")
    assert_close("same", nodes.scores, edges.scores.sum(-1))
    assert_close("same", nodes.loss_corrupted, edges.loss_corrupted)
    assert_close("same", nodes.loss_corrupted, edge_attribution(model, PAIRS).loss_corrupted)
    assert edges.points.tolist() == nodes.points.tolist() == [2] * len(PAIRS)


# -- routes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window", "smollm3-nope", "starcoder2"])
def test_a_prefix_that_is_shared_gives_what_whole_prompts_give(
    kind: str, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    whole = [unsplit(pair) for pair in PAIRS]
    assert_close("same", scores_of(model), scores_of(model, whole))
    one_by_one = torch.cat([scores_of(model, [pair]) for pair in PAIRS])
    assert_close("same", scores_of(model), one_by_one)


@pytest.mark.parametrize("kind", ["llama-biases", "qwen3", "phi3-fused", "dora-qwen2"])
def test_the_generic_route_gives_what_the_factored_route_gives(
    kind: str, monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose
) -> None:
    model = tiny_model(kind)
    assert all(SecantReader.of(layer).norm is not None for layer in take_apart(model).layers)
    factored, choose = scores_of(model), AttentionReader.of.__func__  # type: ignore[attr-defined]
    made = []

    def generic(cls: Any, layer: Any) -> AttentionReader:
        made.append(choose(cls, layer, generic=True))
        return made[-1]

    monkeypatch.setattr(AttentionReader, "of", classmethod(generic))
    assert_close("same", scores_of(model), factored)
    assert made
    assert all(reader.norm is None for reader in made)


def test_plain_attention_gives_what_the_kernel_gives(assert_close: AssertClose) -> None:
    model = tiny_model("llama-gqa")
    fused = scores_of(model)
    model.set_attn_implementation("eager")
    assert_close("same", scores_of(model), fused)


def test_grouped_heads_that_the_kernel_shares_out_give_the_same(
    monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose
) -> None:
    model = tiny_model("llama-mqa")
    repeated = scores_of(model)
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    seen = []
    rule = secant_rules._attention

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options.get("enable_gqa"))
        return rule(*args, **options)

    monkeypatch.setitem(secant_rules._RULES, "scaled_dot_product_attention", watched)
    assert_close("same", scores_of(model), repeated)
    assert all(seen)
    assert seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_trainers_autocast_and_narrow_weights_lose_only_digits(
    dtype: str, assert_close: AssertClose
) -> None:
    kind: torch.dtype = getattr(torch, dtype)
    model = tiny_model("llama-gqa", dtype=kind)
    exact = scores_of(copy.deepcopy(model).float())
    assert_close(dtype, scores_of(model), exact)
    model = model.float()
    forward = model.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", kind):
            return forward(*args, **kwargs)

    model.forward = under_autocast
    assert_close(dtype, scores_of(model), exact)


# -- rules -----------------------------------------------------------------------------------------

LINE = torch.linspace(-6, 6, 25, dtype=torch.float64)
ENDS = torch.stack(torch.broadcast_tensors(LINE[:, None], LINE)).reshape(2, -1)
NEAR = torch.stack([ENDS[0], ENDS[0] + 1e-3 * ENDS[1]])
FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "relu": F.relu,
    "square": torch.square,
    "cube": lambda x: x**3,
    "fourth power": lambda x: x.pow(4),
    "1 / sqrt": lambda x: torch.rsqrt(x + 7),
    "sqrt": lambda x: (x + 7).sqrt(),
    "reciprocal": lambda x: (x + 7).reciprocal(),
    "1 /": lambda x: 1 / (x + 7),
    "ratio": lambda x: x / (x.square() + 1),
    "product": lambda x: x * torch.tanh(x),
    "softmax": lambda x: x.unflatten(-1, (-1, 5)).softmax(-1).square(),
    "log sum exp": lambda x: x.unflatten(-1, (-1, 5)).logsumexp(dim=-1),
    "matmul": lambda x: x.unflatten(-1, (-1, 5)) @ x.unflatten(-1, (-1, 5)).mT,
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
}


@pytest.mark.parametrize("rows", [ENDS, NEAR], ids=["apart", "near"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_rule_gives_the_whole_difference(name: str, rows: Tensor) -> None:
    x = rows.clone().requires_grad_()
    with Secants():
        y = FUNCTIONS[name](x)
    refuse_unknown(y)
    weights = torch.linspace(-1, 2, y[0].numel(), dtype=torch.float64).reshape(y[:1].shape)
    (found,) = torch.autograd.grad(y, x, weights.expand_as(y))
    assert torch.equal(found[0], found[1])
    with torch.no_grad():
        expected = ((y[1:] - y[:1]) * weights).sum()
    total = ((rows[1] - rows[0]) * found[0]).sum()
    # Simpson's rule stands in for a quotient where ends are near.
    torch.testing.assert_close(total, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_rule_is_the_derivative_where_the_ends_are_equal(name: str) -> None:
    rows = ENDS[:1].repeat(2, 1) + 0.01  # not on the kink
    found = []
    for mode in (Secants(), undisturbed(nn.Linear(1, 1))):
        x = rows.clone().requires_grad_()
        with mode:
            y = FUNCTIONS[name](x)
        weights = torch.linspace(-1, 2, y[0].numel(), dtype=torch.float64).reshape(y[:1].shape)
        found.append(torch.autograd.grad(y, x, weights.expand_as(y))[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_large_and_far_numbers_lose_no_digits_in_float32() -> None:
    rows = torch.tensor([[3000.0, 1e-3, -80.0, 5.0], [3000.01, 1e-3, 90.0, 5.0 + 1e-6]])
    for name in ("square", "softmax", "silu"):
        x = rows[:, :, None].expand(2, 4, 5).flatten(1) if name == "softmax" else rows
        wide = []
        for dtype in (torch.float32, torch.float64):
            leaf = x.to(dtype).requires_grad_()
            with Secants():
                y = FUNCTIONS[name](leaf)
            wide.append(torch.autograd.grad(y.sum(), leaf)[0].double())
        torch.testing.assert_close(wide[0], wide[1], rtol=1e-5, atol=1e-7)


def test_operations_without_a_rule_are_named() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with Secants():
        unknown = {
            "Abs": x.abs(),
            "Mul": x.clone().mul_(x + 1),  # in place: not swapped
            "Exp": x + (x.exp() * 2),
            "Silu": F.silu(x + 0, inplace=True),
            "Div": x.clone().div_(x + 1),
        }
        known = {"a": 2 * x / 3 + x.mean(-1, keepdim=True), "b": F.relu(x) * x}
    for name, y in unknown.items():
        with pytest.raises(SecantError, match=f"there is no secant of {name}$"):
            refuse_unknown(y)
    for y in known.values():
        refuse_unknown(y)


# -- proof at load ---------------------------------------------------------------------------------


class _Mlp(nn.Module):
    """The block's own MLP, and something more."""

    def __init__(self, mlp: nn.Module, more: Any) -> None:
        super().__init__()
        self.mlp, self.more = mlp, more

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.mlp(x))


def changed(more: Any, kind: str = "llama-gqa") -> nn.Module:
    model = tiny_model(kind)
    model.model.layers[1].mlp = _Mlp(model.model.layers[1].mlp, more)
    return model


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (torch.abs, "there is no secant of Abs"),
        (
            lambda y: y.flatten(0, 1).square().view_as(y),
            "it does not hold that the secants before L0H0.q sum",
        ),
        (lambda y: y * y.detach().square(), "it does not hold that the secants before L0H0.q sum"),
    ],
    ids=["an unknown operation", "tokens that lie where rows did", "a factor that hides"],
)
def test_a_model_that_has_no_secants_is_measured_by_eap_ig(
    more: Any, why: str, assert_close: AssertClose
) -> None:
    model = changed(more)
    with pytest.warns(UserWarning, match=f"^sparks: EAP-IG in place of secants: {why}") as told:
        found = edge_attribution(model, PAIRS, method="secant", points=3)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert_close("same", found.scores, edge_attribution(model, PAIRS, points=3).scores)
    assert found.points.tolist() == [3] * len(PAIRS)


@pytest.mark.parametrize(
    ("slope", "why"),
    [
        (lambda a, b: 2 * a, "the secants before L0H0.q sum to the whole"),
        (lambda a, b: a + b + (a == b), "between equal ends they are the gradient"),
    ],
    ids=["a derivative in place of a secant", "no gradient between equal ends"],
)
def test_a_wrong_rule_is_found_by_the_proof(
    slope: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(secant_rules._SLOPES, 2, slope)
    model = tiny_model("llama-gqa")
    with undisturbed(model):
        assert why in refusal(take_apart(model))


def test_a_wrong_rule_is_found_in_a_narrow_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(secant_rules._SLOPES, 2, lambda a, b: 2 * a)
    model = tiny_model("llama-gqa", dtype=torch.bfloat16)
    with undisturbed(model):
        assert "allowed 0.1 beside 1" in refusal(take_apart(model))


def test_a_wrong_reader_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    read = SecantReader.read
    monkeypatch.setattr(SecantReader, "read", lambda *args: read(*args) * 1.001)
    model = tiny_model("llama-gqa")
    with undisturbed(model):
        assert "it does not hold that the secants before" in refusal(take_apart(model))


def test_the_proof_runs_once_until_the_model_is_made_of_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proved = []
    prove = secant_proof.prove
    monkeypatch.setattr(secant_proof, "prove", lambda a: (proved.append(a), prove(a)))
    model = tiny_model("llama-gqa")
    for _ in range(2):
        settle(model, SnapshotConfig(method="secant"))
    settle(tiny_model("qwen2"), SnapshotConfig())
    assert len(proved) == 1
    model.set_attn_implementation("eager")
    settle(model, SnapshotConfig(method="secant"))
    assert len(proved) == 2


def test_numbers_that_are_not_finite_are_an_error_and_no_reason_for_eap_ig() -> None:
    model = tiny_model("llama-gqa")
    scores_of(model, PAIRS[:1])
    with torch.no_grad():
        model.lm_head.weight[3] = torch.inf
    with pytest.raises(SparksError, match="output is not finite"):
        scores_of(model, PAIRS[:1])


# -- memory ----------------------------------------------------------------------------------------


def test_pairs_are_split_under_the_budget_and_the_scores_stay(assert_close: AssertClose) -> None:
    model = tiny_model("llama-gqa")
    pairs = [token_pair(9, 5, seed=seed) for seed in range(6)]
    whole = estimate_memory(model, pairs, method="secant")
    assert whole.pairs >= 6
    alone = (whole.pair_bytes + 2 * whole.row_bytes) * 1.01 / GIB
    small = estimate_memory(model, pairs, method="secant", memory_gib=alone)
    assert small.pairs == 1
    assert small.fits
    rows: list[int] = []
    found = scores_of(model, pairs, memory_gib=alone, progress=rows.append)
    assert_close("same", found, scores_of(model, pairs))
    assert rows == [2] * 6


def test_a_row_of_secants_is_measured_not_taken_from_eap_ig() -> None:
    model, pair = tiny_model("llama-gqa"), token_pair(9, 5)
    estimate_memory(model, [pair])
    estimate_memory(model, [pair], method="secant")
    with undisturbed(model):
        anatomy = take_apart(model)
        with SavedBytes(list(model.parameters())) as saved:
            run_ends(Passes(anatomy, [pair], "last"), nodes=False)
    held = {shape[-1]: row.saved for shape, row in anatomy.row_bytes.items()}
    assert held["secant"] == pytest.approx(saved.total / 2, rel=0.1)


# -- settings --------------------------------------------------------------------------------------


def test_the_method_is_part_of_a_measurement_and_points_are_none_of_secants() -> None:
    config = SnapshotConfig(method="secant", points=7)
    assert config.difference(SnapshotConfig(method="secant", tolerance=0.1)) is None
    assert config.difference(SnapshotConfig(points=7)) == ("method", "secant", "eap-ig")
    assert SnapshotConfig.from_dict({"points": 7}).method == "eap-ig"  # as it was stored before
    assert (config.first_points, config.most_points) == (2, 2)
    with pytest.raises(SparksError, match="method must be one of eap-ig, secant, got 'ig'"):
        SnapshotConfig(method="ig")  # type: ignore[arg-type]


def probes() -> TokenizedProbes:
    return TokenizedProbes(tuple(PAIRS[:2]), ("a", "b"), ("", ""))


def test_a_snapshot_says_by_which_method_it_was_taken() -> None:
    config = SnapshotConfig(method="secant", points=3)
    taken = take_snapshot(tiny_model("llama-gqa"), probes(), config, progress=False)
    assert taken.meta.settings.method == "secant"
    assert taken.points is not None
    assert taken.points.tolist() == [2, 2]
    assert float(taken.completeness_gap.max()) < 1e-5
    with pytest.warns(UserWarning, match="EAP-IG in place of secants"):
        other = take_snapshot(changed(torch.abs), probes(), config, progress=False)
    assert other.meta.settings == SnapshotConfig(points=3)
    assert taken.meta.settings.difference(other.meta.settings) == ("method", "secant", "eap-ig")


def test_the_limit_of_the_proof_is_the_one_of_the_issue() -> None:
    assert tolerance(torch.float32) == 1e-4
