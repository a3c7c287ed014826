"""Every `model_type` that the README names, by one proof, in float32 and bfloat16."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOLERANCE, AssertClose
from families import VARIANTS, tiny_family
from models import token_pair, unsplit, wrapped
from oracle import injected_scores
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma4TextConfig, MambaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparks.attribution.circuit_runs import CircuitRuns
from sparks.attribution.eap_ig import edge_attribution, node_attribution
from sparks.attribution.model_runs import Passes
from sparks.attribution.patching import EdgePatcher
from sparks.attribution.quadrature import alphas_of
from sparks.attribution.snapshot import Snapshot
from sparks.attribution.take_snapshot import take_snapshot
from sparks.effects.interventions import intervene
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.anatomy import Anatomy
from sparks.models.anatomy_proof import take_apart
from sparks.models.families import CHECKED_ARCHITECTURES, REFUSED
from sparks.models.guard import undisturbed
from sparks.probes.pairs import TokenizedProbes

POINTS = 2
PAIR = token_pair(24, 3)
"""Long enough a prefix that the points are packed into one sequence where a model allows it."""
QUICK = (
    "cohere2", "falcon, 40B", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "granite, scaled",
    "hyperclovax, norms behind", "llama4_text", "mixtral", "olmo2", "qwen2_vl",
)  # fmt: skip
"""One of each way to differ; the others are in the slow tier."""
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in (*CHECKED_ARCHITECTURES, *VARIANTS)
]


def scores_of(model: nn.Module, pair=PAIR) -> Tensor:
    return edge_attribution(model, [pair], points=POINTS).scores[0]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_definition_and_of_the_whole_prompt(
    name: str, assert_close: AssertClose
) -> None:
    model = tiny_family(name)
    found = scores_of(model)
    assert_close("parity", found, injected_scores(model, PAIR, alphas_of("midpoint", POINTS)))
    assert_close("parity", found, scores_of(model, unsplit(PAIR)))
    nodes = node_attribution(model, [PAIR], points=POINTS).scores[0]
    assert_close("parity", nodes, found.sum(-1))


@pytest.mark.parametrize("name", NAMES)
def test_patches_circuits_and_interventions_agree(name: str) -> None:
    """Every edge patched is the corrupted run; circuits are patches; a head off is a hook's 0."""
    model = tiny_family(name)
    patcher = EdgePatcher(model, PAIR)
    everything = patcher.patch(patcher.graph.edge_mask)
    assert everything.loss == pytest.approx(everything.loss_corrupted, rel=TOLERANCE["patched"])
    kept = np.random.default_rng(0).random(patcher.graph.edge_mask.shape) < 0.8
    anatomy = take_apart(model)
    with undisturbed(model):
        runs = CircuitRuns(anatomy, Passes(anatomy, [PAIR], "last"))
        found = runs.logits(torch.from_numpy(kept)[None])[0]
    torch.testing.assert_close(found, patcher.patch(~kept).logits, rtol=1e-4, atol=1e-4)
    with intervene(model, [(1, 2)]):
        off = logits_of(anatomy)
    handle = anatomy.layers[1].output.register_forward_pre_hook(_without_head_2)
    torch.testing.assert_close(logits_of(anatomy), off, rtol=0, atol=0)
    handle.remove()
    assert not torch.equal(logits_of(anatomy), off)


def _without_head_2(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    parts = list(args[0].chunk(4, -1))
    parts[2] = torch.zeros_like(parts[2])
    return (torch.cat(parts, -1),)


@torch.no_grad()
def logits_of(anatomy: Anatomy) -> Tensor:
    return anatomy.call(input_ids=torch.tensor([PAIR.prefix + PAIR.clean])).logits


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_and_under_adapters_too(name: str, assert_close: AssertClose) -> None:
    """LoRA is as its merged weights. Narrow scores are near those of the same weights, but where
    rounding makes a router take other experts."""
    model = tiny_family(name, dtype=torch.bfloat16)
    has_experts = any(part.endswith("experts") for part, _ in model.named_modules())
    pair = token_pair(6, 4)
    narrow, wide = scores_of(model, pair), scores_of(model.float(), pair)
    difference = float((narrow - wide).norm() / wide.norm())
    print(f"{name}: {difference:.2g}")
    assert difference < (0.8 if has_experts else 0.1)
    model = tiny_family(name)
    names = {module: name for name, module in model.named_modules()}
    parts = [(*layer.projection_modules, layer.output) for layer in take_apart(model).layers]
    adapted = wrapped(model, targets=[names[module] for layer in parts for module in layer])
    found = scores_of(adapted, pair)
    assert_close("parity", found, scores_of(adapted.merge_and_unload().eval(), pair))


@pytest.mark.parametrize(
    ("name", "most"), [("llama", 3), ("cohere", 3), ("falcon, alibi", 1), ("gpt_neo", 1)]
)
def test_points_share_a_sequence_only_where_this_proof_has_seen_it(name: str, most: int) -> None:
    model = tiny_family(name)
    assert Passes(take_apart(model), [PAIR], "last").most_packed == most
    model.config.model_type = "a type that no test knows"
    assert Passes(take_apart(model), [PAIR], "last").most_packed == 1


def test_a_snapshot_of_blocks_side_by_side_keeps_its_graph() -> None:
    probes = TokenizedProbes((PAIR,), ("a",), ("",))
    config = SnapshotConfig(points=POINTS, threshold=0.0, top_n=500)
    found = take_snapshot(tiny_family("gpt_neox"), probes, config, progress=False)
    again = Snapshot.from_arrays(*found.to_arrays())
    assert again.graph == found.graph
    assert again.graph.parallel
    columns = again.graph.mlp_column(1)
    beside = again.edge_source[again.edge_destination == columns]
    assert beside.max() < again.graph.sources_before_attention(1)


# -- the lists -------------------------------------------------------------------------------------


def test_what_transformers_ships_works_or_is_refused_on_purpose() -> None:
    """A new version of transformers shows up here: try its new types, then put them in a list."""
    shipped = {CONFIG_MAPPING[name].model_type for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    refused = {name for types in REFUSED.values() for name in types}
    assert not refused & {*CHECKED_ARCHITECTURES}
    assert sum(map(len, REFUSED.values())) == len(refused)
    assert shipped - refused - {*CHECKED_ARCHITECTURES} == set()
    assert refused <= shipped
    assert {*CHECKED_ARCHITECTURES} <= {*CONFIG_MAPPING_NAMES}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma4TextConfig(num_hidden_layers=6), "its layers are not alike, or some have no"),
        (MambaConfig(num_hidden_layers=1), "its layers are not alike, or some have no"),
        (DeepseekV3Config(num_hidden_layers=1), r"its queries, keys or values come .* \(MLA\)"),
    ],
    ids=["gemma4", "mamba", "deepseek"],
)
def test_a_refusal_says_in_a_line_why_and_what_works(config, reason: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    says = (
        f"^sparks cannot take '{config.model_type}' apart: {reason}.*; README.md lists the .* one$"
    )
    with pytest.raises(SparksError, match=says):
        take_apart(model)


def test_the_readme_names_what_works() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    listed = re.search(r"<!-- models -->(.*?)<!-- /models -->", text, re.DOTALL)
    assert listed is not None
    number, names = listed[1].split(" types work: ")
    assert names.replace("\n", " ").strip(" .").split(", ") == list(CHECKED_ARCHITECTURES)
    assert int(number.split()[-1]) == len(CHECKED_ARCHITECTURES)


def test_a_config_whose_layers_differ_is_told_in_a_line_too(monkeypatch) -> None:
    """Where a type is in no list: transformers raises an error of its own on `head_dim`."""
    monkeypatch.setattr("sparks.models.anatomy.why_refused", lambda _: None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Gemma4TextConfig(num_hidden_layers=6))
    with pytest.raises(SparksError, match=r"Gemma4ForCausalLM .*: its config has no one head_dim"):
        take_apart(model)
