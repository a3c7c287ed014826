"""The benchmarks run, end in one JSON line, and the memory budget holds in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from models import tiny_model
from places import TESTS
from tiny_training import PROBES
from tokenizers_made_here import CHAT, byte_level_tokenizer

BENCH = TESTS / "bench"


def last_line(*arguments: str, bench: str = "attribution.py") -> Any:
    done = subprocess.run(
        [sys.executable, str(BENCH / bench), *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_benchmark_ends_in_one_json_line():
    found = last_line("--shape", "tiny", "--prompt", "40", "--steps", "5", "--repeats", "2")
    assert found["steps"] == 5
    for key in ("bare_seconds", "edges_seconds", "ratio", "ratio_cpu_time", "peak_gib"):
        assert found[key] > 0, key


def test_the_growth_rule_calls_nothing_in_weights_that_did_not_learn():
    found = last_line("noise", "--draws", "1", bench="growth_power.py")
    at = {(row["model"], row["smallest"], row["probes"]): row["grew or shrank"] for row in found}
    for model in ("rounded", "jittered"):
        assert at[model, 1.05, 64] == 0
        assert at[model, 1.0, 64] > 10  # and would, without a smallest change


def test_secants_are_judged_beside_points_and_what_is_done_is_kept(tmp_path):
    options = ["measure", "--tiny", "--keep", str(tmp_path / "rows.jsonl")]
    found = {row["judge"]: row for row in last_line(*options, bench="secant.py")}
    kept = (tmp_path / "rows.jsonl").read_text()
    assert found["worst cut"]["worst"] < 1e-5 < found["worst cut"]["4 points"]
    assert found["kept 5%"]["probes"] == found["repaired"]["probes"] == len(kept.splitlines())
    assert found["kept 5%"]["from"] <= found["kept 5%"]["difference"] <= found["kept 5%"]["to"]
    assert last_line(*options, bench="secant.py") == list(found.values())
    assert (tmp_path / "rows.jsonl").read_text() == kept


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [64, 512])
def test_the_memory_budget_holds(prompt):
    budget = 0.5
    found = last_line(
        *("--shape", "smollm2-135m", "--memory-only", "--steps", "20"),
        *("--prompt", str(prompt), "--memory-gib", str(budget)),
    )
    assert found["estimated_gib"] <= budget
    # What the interpreter and the allocator add is not ours to count: a tenth.
    assert 0.1 * budget < found["measured_gib"] <= 1.1 * budget


@pytest.mark.slow
def test_the_share_of_the_training_that_snapshots_take():
    size = "--shape tiny --batch 4 --generations 4 --length 64 --completion 8 --probes 2 --points 3"
    found = last_line(*size.split(), "--train-steps", "4", "--interval", "2", bench="overhead.py")
    assert [one["regime"] for one in found] == ["sft", "grpo"]
    for one in found:
        assert 0 < one["share_at_100"] < one["share_at_10"] < 1
        assert one["snapshot_seconds"] > 0
        assert one["step_seconds"] > 0
        expected = one["snapshot_seconds"] / (one["snapshot_seconds"] + 10 * one["step_seconds"])
        assert one["share_at_10"] == pytest.approx(expected, rel=0.1)
    assert [one["tokens_a_step"] for one in found] == [256, 32]


def test_the_growth_of_a_run_is_measured_a_view_at_a_time(tmp_path):
    sizes = ["--snapshots", "3", "--probes", "20", "--shapes", "28x12", "--folder"]
    found = last_line(*sizes, str(tmp_path), bench="timeline_growth.py")
    assert [(row["snapshots"], row["probes"]) for row in found] == [(3, 16)] * 4 + [(10, 20)] * 4
    assert [row["what"] for row in found] == ["timeline", "report", "watch", "landing"] * 2
    assert all(row["cpu_seconds"] > 0 and row["peak_gib"] > 0 for row in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_price_of_each_step_of_a_snapshot(tmp_path):
    tokenizer = byte_level_tokenizer(chat=CHAT)
    model, probes = tmp_path / "model", tmp_path / "probes.jsonl"
    tiny_model("llama-gqa", vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(
        model
    )
    tokenizer.save_pretrained(model)
    PROBES.save(probes)
    size = ("--model", str(model), "--probes", str(probes), "--counts", "2", "3")
    before, now = last_line(*size, bench="snapshot.py")
    assert (before["m"], before["probes"]) == (12, 2)
    assert (now["m"], now["probes"]) == (4, 3)
    for row in (before, now):
        steps = row["cpu_seconds"]
        assert {"prefix", "endpoints", "points", "contraction", "faithfulness"} <= set(steps)
        assert sum(steps.values()) == pytest.approx(row["all"], abs=0.1)
        assert steps["points"] > 0
