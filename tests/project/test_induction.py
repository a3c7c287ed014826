"""A known behaviour from end to end: copying by induction, at the small size of the recipes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparks.attribution.patching import EdgePatcher
from sparks.evaluation.tasks import load_task
from sparks.models.heads import parse_heads
from sparks.probes.probes import ProbeSet
from sparks.timeline.timeline import Timeline

RECIPES = ROOT / "recipes"
sys.path.insert(0, str(RECIPES))

import induction_effects as induction  # noqa: E402
from induction_train import SIZES, Sequences  # noqa: E402

SMALL = SIZES["small"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained and measured run; what was told stands in told.txt."""
    folder = tmp_path_factory.mktemp("induction") / "run"
    script = str(RECIPES / "induction_train.py")
    done = subprocess.run(
        [sys.executable, script, "--size", "small", "--output", str(folder)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    told = io.StringIO()
    few = ["--heads", "top:5", "--points", "40", "--draws", "8", "--rows", "128"]
    with contextlib.redirect_stdout(told):  # here, which spares a process its imports
        induction.main(["--size", "small", "--run", str(folder), *few])
    (folder / "told.txt").write_text(told.getvalue(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(run) -> dict[str, Any]:
    return json.loads((run / "induction.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table(results) -> pd.DataFrame:
    return pd.DataFrame(results["heads"])


def test_a_sequence_repeats_a_block_that_no_word_gives_away():
    drawn = Sequences.draw(SMALL, 200, seed=5)
    for ids, labels, block in zip(
        drawn.ids.tolist(), drawn.labels.tolist(), drawn.block.tolist(), strict=True
    ):
        assert ids[-block:] == ids[-2 * block : -block]
        assert len(set(ids[:-block])) == len(ids) - block
        assert labels == [-100] * (len(ids) - block + 1) + ids[1 - block :]
    row, query, copied = drawn.queries()
    assert torch.equal(drawn.ids[row, copied], drawn.ids[row, query + 1])
    assert torch.equal(drawn.ids[row, copied - 1], drawn.ids[row, query])
    assert len(set(drawn.block.tolist())) > 3  # copying by place does not work


@pytest.mark.slow
def test_the_behaviour_is_learnt_and_its_run_can_be_read(run, results):
    assert results["accuracy"]["intact"][0] > 0.95
    accuracy = Timeline.from_run(run).metrics()["accuracy"].dropna()
    assert accuracy.iloc[0] < 0.5 < 0.9 < accuracy.iloc[-1]
    assert Timeline.from_run(run).steps.tolist() == [0, 150, 300, 450]
    task = load_task(str(run / "task.jsonl"))
    words = task.problems[0].prompt[0]["content"].split()
    assert len(words) == SMALL.length - 1
    assert words[words.index(words[-1]) + 1] == task.problems[0].answer


@pytest.mark.slow
def test_found_heads_are_those_whose_attention_copies(results, table):
    found = table[table.found]
    assert names_of(found) == set(results["found"].split(","))
    assert set(found.kind) == {"previous", "induction"}
    carriers = table[table.kind != "other"]
    strongest = table.nlargest(len(carriers), "importance")
    assert len(names_of(carriers) & names_of(strongest)) >= len(carriers) - 1
    assert set(carriers["head"][carriers.kind == "previous"].str[:2]) == {"L0"}
    assert set(carriers["head"][carriers.kind == "induction"].str[:2]) == {"L1"}


def names_of(table: pd.DataFrame) -> set[str]:
    return set(table["head"])


@pytest.mark.slow
def test_turning_them_off_breaks_it_and_matched_random_heads_do_not(results):
    accuracy, found = results["accuracy"], parse_heads(results["found"])
    assert accuracy["found off"][2] < 0.5
    assert accuracy["random off"][1] > 0.8
    for draw in results["random draws"]:
        heads = parse_heads(draw["heads"])
        assert set(heads).isdisjoint(found)
        assert draw["moved"] == 0
        assert Counter(layer for layer, _ in heads) == Counter(layer for layer, _ in found)
        assert draw["accuracy"] > 2 * accuracy["found off"][0]


@pytest.mark.slow
def test_predicted_effects_rank_heads_as_exact_ones_do(results):
    assert results["largest gap"] < 0.05
    for name in ("node score", "edge scores"):
        middle, low, high = results["agreement"][f"{name}, corrupted, living heads"]
        assert middle > 0.8
        assert 0.5 < low <= middle <= high


@pytest.mark.slow
def test_exact_effects_are_those_of_patching_all_edges_of_a_head(run):
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    probes = ProbeSet.load(run / "probes.jsonl")
    pairs = probes.tokenize(tokenizer, max_suffix_tokens=SMALL.length).pairs[:2]
    effects = induction.exact_effects(model, pairs)["corrupted"]
    assert effects.shape == (2, SMALL.layers, SMALL.heads)
    for pair, effect in zip(pairs, effects, strict=True):
        patcher = EdgePatcher(model, pair)
        for head in [(0, 7), (0, 2), (1, 1)]:
            edges = np.zeros_like(patcher.graph.edge_mask)
            edges[patcher.graph.head_sources[head]] = True
            assert effect[head] == pytest.approx(patcher.patch(edges).loss, rel=1e-3, abs=1e-5)


def test_rank_correlation_by_hand():
    line = np.arange(5.0)
    assert induction.spearman(line, np.exp(line)) == pytest.approx(1)
    assert induction.spearman(line, -line) == pytest.approx(-1)
    # 1 - 6 sum d^2 / n (n^2 - 1), d = 1 twice
    assert induction.spearman(line, np.array([1, 0, 2, 3, 4.0])) == pytest.approx(0.9)


@pytest.mark.slow
def test_what_it_tells_and_draws(run, results):
    told = (run / "told.txt").read_text(encoding="utf-8")
    assert f"found (5): {', '.join(sorted_by_effect(results))}" in told
    assert "completeness gap: " in told
    assert (run / "induction.png").read_bytes().startswith(b"\x89PNG")


def sorted_by_effect(results: dict[str, Any]) -> list[str]:
    rows = sorted(results["heads"], key=lambda row: -row["corrupted"])
    return [row["head"] for row in rows if row["found"]]
