"""Curves of faithfulness: circuits by hand, every run against slow patching, areas by hand."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import assert_refused, call, write_lines
from models import tiny_model, token_pair
from tokenizers_made_here import byte_level_tokenizer

from sparks.attribution.circuit_runs import CircuitRuns
from sparks.attribution.faithfulness import measuring
from sparks.attribution.faithfulness.curve import (
    areas,
    circuits_of_probes,
    shuffled,
    sized_circuits,
    strengths,
)
from sparks.attribution.faithfulness.measuring import faithfulness_curves, score_probes
from sparks.attribution.faithfulness.mib import read_mib
from sparks.attribution.faithfulness.results import FaithfulnessCurves
from sparks.attribution.faithfulness.settings import METRICS, SHARES, CurveConfig
from sparks.attribution.patching import EdgePatcher
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.probes.pairs import TokenizedProbes
from sparks.stats.intervals import resampled_counts
from sparks.views.figures.faithfulness import curves
from sparks.views.text.faithfulness import render

FEW = CurveConfig(draws=2, shares=(0.001, 0.1, 0.4, 0.8, 1.0))
QUICK = SnapshotConfig(points=2)


def tokenized(count: int, *, suffix: int = 3) -> TokenizedProbes:
    pairs = tuple(token_pair(4 + n, suffix, seed=n + 1) for n in range(count))
    return TokenizedProbes(pairs, tuple(f"p{n}" for n in range(count)), ("",) * count)


def made(**changes) -> FaithfulnessCurves:
    """Two probes, two sizes, numbers by hand: KL of 1 and 3 nats; one logit difference."""
    kept = np.zeros((2, 3, 2, 2))
    kept[0] = [[[-0.5, 0], [-3, 0]], [[-0.5, 0], [-1.5, 0]], [[-1, 0], [-3, 0]]]
    kept[1] = [[[1, 4], [0, 0]]] * 3
    removed = np.zeros((2, 3, 2, 2))
    removed[0] = [[[-1, -1], [0, -3]]] * 3
    given = {
        "model": "made",
        "probe_ids": ("a", "b"),
        "probe_groups": ("", ""),
        "settings": {"scores": {}, "circuits": CurveConfig(shares=(0.5, 1)).as_dict()},
        "num_edges": 8,
        "num_heads": 2,
        "shares": (0.5, 1.0),
        "sets": ("shared", "own", "random"),
        "clean": np.array([[0.0, 0.0], [4.0, 0.0]]),
        "empty": np.array([[-1.0, -3.0], [-2.0, 0.0]]),
        "kept": kept,
        "removed": removed,
        "edges": np.array([[[3, 8], [5, 8]]] * 3),
        "heads": np.array([[[0, 2], [1, 2]]] * 3),
    }
    return FaithfulnessCurves(**given | changes)


# -- areas -----------------------------------------------------------------------------------------


def test_areas_by_hand():
    cpr, cmd = areas((0.1, 0.5, 1.0), np.array([[0, 0.5, 1.2], [1, 1, 1]]))
    # 0.4 x (0 + 0.5) / 2 + 0.5 x (0.5 + 1.2) / 2, and 0.4 x (1 + 0.5) / 2 + 0.5 x (0.5 + 0.2) / 2
    np.testing.assert_allclose(cpr, [0.1 + 0.425, 0.9])
    np.testing.assert_allclose(cmd, [0.3 + 0.175, 0])


def test_a_perfect_circuit_at_mibs_sizes():
    assert SHARES == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    cpr, cmd = areas(SHARES, np.ones((1, 10)))
    np.testing.assert_allclose(cpr, [0.999])
    assert cmd == [0]


# -- circuits --------------------------------------------------------------------------------------

ONE = Graph(num_layers=1, num_heads=1, num_kv_heads=1)
"""embed, L0H0, L0MLP x q, k, v, MLP, logits: 8 edges."""


def named(edges: dict[tuple[str, str], float], graph: Graph) -> np.ndarray:
    found = np.zeros(graph.edge_mask.shape)
    for (source, destination), value in edges.items():
        found[graph.sources.index(source), graph.destinations.index(destination)] = value
    return found


def test_a_share_is_cut_off_then_pruned():
    strength = named(
        {
            ("embed", "L0H0.q"): 9,
            ("embed", "L0MLP"): 8,  # the MLP has no way out until six edges are kept
            ("L0H0", "logits"): 7,
            ("embed", "logits"): -6,  # the lowest: of 0 edges, L0KV0.k and L0KV0.v come first
            ("L0MLP", "logits"): 1,
            ("L0H0", "L0MLP"): 2,
        },
        ONE,
    )
    shares = (0.1, 0.2, 0.374, 0.49, 0.625, 1.0)  # of 8 edges: 0, 1, 2, 3, 5, 8
    found = sized_circuits(strength, ONE, shares)
    assert [len(circuit.edges) for circuit in found] == [0, 0, 0, 2, 5, 8]
    assert [circuit.heads for circuit in found] == [0, 0, 0, 1, 1, 1]
    assert not found[4].mask(ONE)[0, -1]
    np.testing.assert_array_equal(found[5].mask(ONE), ONE.edge_mask)


def test_rankings():
    scores = np.array([[[1.0, -3.0]], [[1.0, 3.0]], [[1.0, -3.0]]])
    np.testing.assert_array_equal(strengths(scores, "mean-absolute"), [[1, 3]])
    np.testing.assert_array_equal(strengths(scores, "absolute-mean"), [[1, 1]])
    np.testing.assert_array_equal(strengths(scores, "signed"), [[1, -1]])


def layer_of(name: str) -> str:
    return name[:2] if name[0] == "L" else name


@pytest.mark.parametrize("control", ["layers", "uniform"])
def test_the_control_deals_the_strengths_out_anew(control):
    graph = Graph(num_layers=3, num_heads=4, num_kv_heads=2)
    strength = np.random.default_rng(0).random(graph.edge_mask.shape)
    found = shuffled(strength, graph, control, np.random.default_rng(1))
    assert not found[~graph.edge_mask].any()

    def between(values: np.ndarray) -> dict[tuple[str, str], Counter]:
        pairs: dict[tuple[str, str], Counter] = {}
        for row, column in np.argwhere(graph.edge_mask):
            key = layer_of(graph.sources[row]), layer_of(graph.destinations[column])
            pairs.setdefault(key, Counter())[values[row, column]] += 1
        return pairs

    assert (between(found) == between(strength)) is (control == "layers")
    inside = graph.edge_mask
    np.testing.assert_array_equal(np.sort(found[inside]), np.sort(strength[inside]))
    assert (found[inside] != strength[inside]).mean() > 0.8


def test_circuits_of_probes():
    graph = Graph(num_layers=2, num_heads=2, num_kv_heads=1)
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((3, *graph.edge_mask.shape)) * graph.edge_mask
    found = circuits_of_probes(scores, graph, FEW)
    shared, own, draws = found["shared"], found["own"], found["random"]
    assert (len(shared), len(own), len(draws)) == (1, 1, 2)

    def edges(circuits: list) -> list[bytes]:
        return [circuit.edges.tobytes() for circuit in circuits]

    assert edges(shared[0][0]) == edges(shared[0][2]) != edges(own[0][0])
    assert edges(own[0][1]) == edges(sized_circuits(np.abs(scores[1]), graph, FEW.shares))
    assert edges(draws[0][0]) != edges(draws[1][0])
    assert edges(circuits_of_probes(scores, graph, FEW)["random"][1][0]) == edges(draws[1][0])
    other = dataclasses.replace(FEW, seed=1)
    assert edges(circuits_of_probes(scores, graph, other)["random"][1][0]) != edges(draws[1][0])

    held_out = circuits_of_probes(scores, graph, dataclasses.replace(FEW, held_out=True))
    others = sized_circuits(np.abs(scores[[0, 2]]).mean(0), graph, FEW.shares)
    assert edges(held_out["shared"][0][1]) == edges(others)


def test_circuits_refuse_what_does_not_fit():
    shape = ONE.edge_mask.shape
    with pytest.raises(SparksError, match=r"strengths must have shape \(3, 5\)"):
        sized_circuits(np.zeros((2, 2)), ONE, (1.0,))
    with pytest.raises(SparksError, match="strengths of edges must be finite"):
        sized_circuits(np.full(shape, np.nan), ONE, (1.0,))
    with pytest.raises(SparksError, match=r"scores must have shape \(probes, 3, 5\)"):
        circuits_of_probes(np.zeros((1, 2, 2)), ONE, FEW)
    with pytest.raises(SparksError, match="held_out ranks each probe by the others"):
        circuits_of_probes(np.zeros((1, *shape)), ONE, CurveConfig(held_out=True))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"ranking": "best"}, "ranking must be one of mean-absolute, absolute-mean, signed, got"),
        ({"control": "none"}, "control must be one of layers, uniform, got 'none'"),
        ({"held_out": 1}, "held_out must be True or False, got 1"),
        ({"draws": 0}, "draws must be a whole number, at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number, at least 0, got -1"),
        ({"shares": (0.5, 0.1)}, "shares must be two or more rising numbers above 0 .* 0.5, 0.1"),
        ({"shares": (0.0, 1.0)}, "shares must be"),
        ({"shares": (0.5, 1.5)}, "shares must be"),
        ({"shares": (1.0,)}, "shares must be"),
        ({"shares": ("a", "b")}, "shares must be numbers"),
    ],
)
def test_settings_have_ranges(wrong, match):
    with pytest.raises(SparksError, match=match):
        CurveConfig(**wrong)


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "positions"),
    [("llama-gqa", "last"), ("qwen2", "all"), ("phi3-fused", "all"), ("lora-llama", "last")],
)
def test_every_number_is_that_of_slow_patching(kind, positions):
    model, probes = tiny_model(kind), tokenized(2)
    curve = CurveConfig(draws=1, shares=(0.1, 0.4, 0.8))
    config = dataclasses.replace(QUICK, positions=positions)
    scores = score_probes(model, probes, config, progress=False)
    found = faithfulness_curves(
        model, probes, config=config, curve=curve, scores=scores, progress=False
    )
    circuits = circuits_of_probes(scores.scores.numpy(), scores.graph, curve)
    sets = [draw for draws in circuits.values() for draw in draws]
    assert found.sets == ("shared", "own", "random")
    for probe, pair in enumerate(probes.pairs):
        patcher = EdgePatcher(model, pair, positions=positions)
        clean, corrupted = (
            patcher.patch(np.full(scores.graph.edge_mask.shape, patched)).logits
            for patched in (False, True)
        )
        says = torch.stack([clean.argmax(-1), corrupted.argmax(-1)], dim=-1)
        ends = [found.clean[:, probe], found.empty[:, probe]]
        np.testing.assert_allclose(
            ends,
            [[0, apart(clean, says)], [-patcher.patch([]).loss_corrupted, apart(corrupted, says)]],
            rtol=1e-4,
            atol=1e-5,
        )
        for index, draw in enumerate(sets):
            for size, circuit in enumerate(draw[probe]):
                mask = circuit.mask(scores.graph)
                for values, patched in ((found.kept, ~mask), (found.removed, mask)):
                    result = patcher.patch(patched)
                    expected = [-result.loss, apart(result.logits, says)]
                    given = values[:, index, probe, size]
                    np.testing.assert_allclose(given, expected, rtol=5e-4, atol=2e-5)
                assert found.edges[index, probe, size] == mask.sum()
                assert found.heads[index, probe, size] == circuit.heads
    assert 1 < found.edges[0, 0, 0] < found.edges[0, 0, 1] < found.num_edges


def apart(logits: torch.Tensor, says: torch.Tensor) -> float:
    first, second = logits.gather(-1, says).unbind(-1)
    return float((first - second).mean())


def test_the_ends_of_all_curves_are_exact():
    probes = tokenized(3)
    found = faithfulness_curves(
        tiny_model("llama-gqa"), probes, config=QUICK, curve=FEW, progress=False
    )
    # 0.001 of the tiny model's edges is none; three draws' mean is not the rounding of a third.
    assert (found.edges[:, :, 0] == 0).all()
    assert (found.edges[:, :, -1] == found.num_edges).all()
    for metric in found.measurable:
        for kind in ("shared", "own", "random"):
            curve = found.curve(kind, metric)
            for estimates in (curve.faithfulness, curve.necessity):
                first, last = estimates[0], estimates[-1]
                assert (first.value, first.low, first.high) == (0, 0, 0)
                assert (last.value, last.low, last.high) == (1, 1, 1)
    assert found.measurable[0] == "kl"
    assert 0 < found.curve("shared").faithfulness[3].value != 1


def test_rows_of_a_batch_do_not_touch_each_other(monkeypatch):
    model, probes = tiny_model("qwen3"), tokenized(1)

    def measured() -> FaithfulnessCurves:
        return faithfulness_curves(model, probes, config=QUICK, curve=FEW, progress=False)

    runs = []
    logits = CircuitRuns.logits
    monkeypatch.setattr(
        CircuitRuns, "logits", lambda self, kept: runs.append(len(kept)) or logits(self, kept)
    )
    together = measured()
    assert max(runs) == 8
    different = {c.tobytes() for c in _masks(model, probes)}
    assert sum(runs) == 2 * len(different)  # each once a direction, the ends not at all
    monkeypatch.setattr(measuring, "_MOST_ROWS", {"cpu": 1})
    alone = measured()
    assert max(runs[-6:]) == 1
    np.testing.assert_allclose(together.kept, alone.kept, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.removed, alone.removed, rtol=1e-5, atol=1e-6)


def _masks(model, probes) -> list[np.ndarray]:
    scores = score_probes(model, probes, QUICK, progress=False)
    circuits = circuits_of_probes(scores.scores.numpy(), scores.graph, FEW)
    sized = [c for draws in circuits.values() for draw in draws for c in draw[0]]
    return [c.mask(scores.graph) for c in sized if 0 < c.edges.size < scores.graph.num_edges]


def test_the_model_is_left_as_found():
    model = tiny_model("llama-gqa").train()
    state = torch.get_rng_state()
    faithfulness_curves(model, tokenized(1), config=QUICK, curve=FEW, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_measuring_refuses():
    model, probes = tiny_model("llama-gqa"), tokenized(2)
    scores = score_probes(model, probes, QUICK, progress=False)
    with pytest.raises(SparksError, match="scores must be those of the 1 probes, got 2"):
        faithfulness_curves(model, tokenized(1), config=QUICK, scores=scores, progress=False)
    held_out = CurveConfig(held_out=True)
    with pytest.raises(SparksError, match="held_out ranks each probe by the others"):
        faithfulness_curves(model, tokenized(1), curve=held_out, progress=False)
    for parameter in model.lm_head.parameters():
        parameter.data.zero_()
    with pytest.raises(SparksError, match="give one and the same output"):
        faithfulness_curves(model, probes, config=QUICK, scores=scores, progress=False)


# -- numbers ---------------------------------------------------------------------------------------


def test_the_ratio_is_one_of_means():
    found = made()
    curve = found.curve("shared")
    # (-0.5 - 3) against (-1 - 3): an eighth is kept; a mean of ratios would give a quarter.
    assert curve.faithfulness[0].value == pytest.approx(1 / 8)
    assert curve.necessity[0].value == pytest.approx(1 / 4)
    assert (curve.faithfulness[1].value, curve.necessity[1].value) == (1, 1)
    assert curve.cpr.value == pytest.approx(0.5 * (1 / 8 + 1) / 2)
    assert curve.cmd.value == pytest.approx(0.5 * (7 / 8) / 2)
    np.testing.assert_array_equal(curve.edges, [4, 8])
    np.testing.assert_array_equal(curve.heads, [0.5, 2])
    assert found.curve("own").faithfulness[0].value == pytest.approx(1 / 2)
    cpr, cmd = found.minus("own", "shared")
    assert cpr.value == pytest.approx(0.5 * (1 / 2 - 1 / 8) / 2) == pytest.approx(-cmd.value)


def test_intervals_are_of_the_resampled_ratio():
    found = made()
    drawn = []
    for first, second in resampled_counts(2):
        drawn.append(1 - (0.5 * first + 3 * second) / (first + 3 * second))
    low, high = np.quantile(drawn, [0.025, 0.975])
    estimate = found.curve("shared").faithfulness[0]
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
    assert low == 0
    assert high == 0.5
    _, cmd = found.minus("random", "shared")
    assert cmd.low <= cmd.value <= cmd.high


def test_probes_without_a_next_token_of_their_own_have_no_logit_difference():
    found = made()
    assert found.usable("logit-diff").tolist() == [True, False]
    curve = found.curve("shared", "logit-diff")
    assert curve.faithfulness[0].value == pytest.approx((1 - -2) / (4 - -2))
    assert np.isnan(curve.faithfulness[0].low)
    none = made(empty=np.array([[-1.0, -3.0], [4.0, 0.0]]))
    assert none.measurable == ("kl",)
    assert set(none.areas()["metric"]) == {"kl"}
    with pytest.raises(SparksError, match="no probe has a logit-diff to measure by"):
        none.curve("shared", "logit-diff")
    with pytest.raises(SparksError, match="metric must be one of kl, logit-diff, got 'accuracy'"):
        found.curve("shared", "accuracy")
    with pytest.raises(SparksError, match="circuits must be one of shared, own, random"):
        found.curve("best")


def test_tables_hold_every_kind_beside_its_control():
    points, table = made().points(), made().areas()
    assert len(points) == 2 * 3 * 2
    first = points.iloc[0]
    assert (first["metric"], first["circuits"], first["share"]) == ("kl", "shared", 0.5)
    assert first["faithfulness"] == pytest.approx(1 / 8)
    kl = table[table["metric"] == "kl"]
    kinds = ["shared", "own", "random", "shared - random", "own - random"]
    assert kl["circuits"].tolist() == kinds
    difference = kl["cpr"].iloc[0] - kl["cpr"].iloc[2]
    assert kl["cpr"].iloc[3] == pytest.approx(difference)


def test_the_file_holds_everything(tmp_path):
    found = made()
    read = FaithfulnessCurves.load(found.save(tmp_path / "f.json"))
    pd.testing.assert_frame_equal(read.points(), found.points())
    assert read.settings == found.settings
    assert (read.sets, read.probe_ids, read.shares) == (found.sets, found.probe_ids, found.shares)


def test_other_files_are_refused(tmp_path):
    path = made().save(tmp_path / "f.json")
    record = json.loads(path.read_text())
    for text, match in (
        ("{", "damaged .not JSON"),
        ("{}", "no curves of faithfulness"),
        (json.dumps(record | {"version": 9}), "version 9, this program reads 1"),
        (json.dumps({k: v for k, v in record.items() if k != "kept"}), "damaged .lacks 'kept'"),
    ):
        path.write_text(text)
        with pytest.raises(SparksError, match=match):
            FaithfulnessCurves.load(path)
    with pytest.raises(SparksError, match="cannot read"):
        FaithfulnessCurves.load(tmp_path / "none.json")


# -- text and command ------------------------------------------------------------------------------


def test_the_page_shows_the_control_beside_every_kind():
    text = render(made(), width=100)
    tables = [part for part in text.split("\n\n") if "its random" in part]
    assert len(tables) == 2
    assert "50% (4)" in tables[0]
    assert "0.12 [0.00,0.50]" in tables[0]
    assert "0.00 [0.00,0.00]" in tables[0]  # random
    assert "shared - random" in text
    assert "circuits are chosen by the probes that they are measured on; --held-out" in " ".join(
        text.split()
    )
    assert all(len(line) <= 100 for line in text.splitlines())
    one = render(made(), metric="logit-diff", width=100)
    assert "1 of 2 probes (in the others both runs say the same next token)" in " ".join(
        one.split()
    )
    with pytest.raises(SparksError, match="metric must be one of"):
        render(made(), metric="accuracy")


def test_the_figure_draws_the_points():
    found = made()
    figure = curves(found)
    for axes, name in zip(figure.axes, ("faithfulness", "necessity"), strict=True):
        for line, kind in zip(axes.get_lines()[2:], ("shared", "own", "random"), strict=True):
            points = found.points().query(f"metric == 'kl' and circuits == '{kind}'")
            np.testing.assert_array_equal(line.get_xdata(), points["share"])
            np.testing.assert_array_equal(line.get_ydata(), points[name])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "shared", "own", "random"
    ]  # fmt: skip


PROBES = [
    {"id": f"p{n}", "prompt": f"What is {n} + 2?", "clean": " Okay, so", "corrupted": " The sum is"}
    for n in (2, 3)
]
CONTROL = {"prompt": "Say it", "clean": " yes it", "corrupted": " no that", "group": "control"}
FAST = ("--points", "2", "--device", "cpu", "--draws", "1", "--shares", "0.2", "0.6", "1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tokenizer = byte_level_tokenizer()
    tiny_model("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def probes(tmp_path) -> Path:
    return write_lines(tmp_path / "probes.jsonl", *map(json.dumps, [*PROBES, CONTROL]))


def test_the_command(checkpoint, probes, tmp_path, capsys):
    out, mib = tmp_path / "out", tmp_path / "mib.json"
    given = ("faithfulness", checkpoint, "--probes", probes, *FAST)
    assert (
        call(*given, "--output", out, "--mib", mib, "--held-out", "--figure", tmp_path / "f.png")
        == 0
    )
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    text = " ".join(capsys.readouterr().out.split())
    assert "2 probes; metric kl" in text  # not the control probe
    assert "by mean |score| of the other probes" in " ".join(text.split())
    found = FaithfulnessCurves.load(out / "faithfulness.json")
    assert found.settings["scores"]["points"] == 2
    assert found.settings["circuits"]["held_out"] is True
    curve = pd.read_csv(out / "faithfulness-curve.csv")
    pd.testing.assert_frame_equal(curve, found.points())
    assert len(pd.read_csv(out / "faithfulness-areas.csv")) == len(found.areas())
    graph, values = read_mib(mib, num_kv_heads=2)
    assert graph.num_edges == found.num_edges
    assert values[graph.edge_mask].min() >= 0  # what the edges are ranked by
    assert values.max() > 0

    again = (*given, "--mib", mib, "--group", "control")  # what it wrote is replaced
    assert call(*again, "--format", "csv", "--table", "areas") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("metric,circuits,probes,cpr,")
    assert rows[1].startswith("kl,shared,1,")


def test_the_command_refuses(checkpoint, probes, tmp_path, capsys):
    config = write_lines(tmp_path / "config.json", '{"model_type": "llama"}')
    given = ("faithfulness", checkpoint, "--probes", probes, *FAST)
    refused = [
        ((*given, "--group", "none"), r"group must be one of the probes' groups \('', 'control'\)"),
        ((*given, "--mib", tmp_path / "m.pt"), "MIB reads scores from a .json file"),
        ((*given, "--mib", config), "config.json is there and holds no scores for MIB: give anot"),
        ((*given, "--figure", tmp_path / "f.gif"), "a figure's file must end in .pdf, .svg, .png"),
        ((*given, "--output", probes), "cannot write"),
        ((*given, "--shares", "1", "0.5"), "shares must be two or more rising numbers"),
        ((*given, "--draws", "0"), "draws must be a whole number, at least 1"),
        ((*given, "--points", "0"), "points must be a whole number, at least 1"),
        ((*given, "--group", "control", "--held-out"), "--held-out ranks each probe by the others"),
        (("faithfulness", tmp_path / "no", "--probes", probes), "cannot load checkpoint"),
    ]
    for arguments, match in refused:
        assert_refused(capsys, tmp_path, *arguments, match=match)


def test_the_settings_on_the_command_line_are_those_of_the_classes():
    from sparks.cli import build_parser

    arguments = build_parser().parse_args(["faithfulness", "M", "--probes", "P"])
    plain = CurveConfig().as_dict()
    assert {name: getattr(arguments, name) for name in plain} == plain
    scores = SnapshotConfig()
    assert (arguments.positions, arguments.max_points) == (scores.positions, scores.max_points)
    assert arguments.metric == METRICS[0] == "kl"
    assert not hasattr(arguments, "top_n")
