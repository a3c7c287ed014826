"""Every example runs as a user runs it: as a process, on a tiny model, without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from factories import STORY, make_metrics, make_run, write_run
from models import tiny_model
from places import ROOT
from tokenizers_made_here import byte_level_tokenizer

from sparks.probes.probes import ProbeSet
from sparks.runs.run_folder import RunStore

EXAMPLES = ROOT / "examples"
TESTED = {"probes_by_hand", "sft_with_sparks", "analyse_run", "edge_scores"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model and its tokenizer in a folder."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level_tokenizer()
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    tiny_model("llama-gqa", **size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(name: str, folder: Path, *arguments: object) -> str:
    """Standard output of an example that succeeds, run in `folder`."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def by_hand(model, tmp_path_factory) -> tuple[Path, str]:
    """The probes that `probes_by_hand` saves, and what it tells."""
    folder = tmp_path_factory.mktemp("by_hand")
    shown = run("probes_by_hand", folder, "--model", model)
    return folder / "probes.jsonl", shown


def test_every_example_is_tested_and_says_how_to_run_it():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED
    for name in TESTED:
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert f"\n    python examples/{name}.py" in text.split('"""')[1]


@pytest.mark.slow
def test_probes_by_hand_shows_the_pairs_and_saves_them(by_hand):
    path, shown = by_hand
    probes = ProbeSet.load(path)
    assert [probe.id for probe in probes] == ["sum", "apples", "cats"]
    tokens = probes.tokenize(byte_level_tokenizer(), max_suffix_tokens=16)
    for name, pair in zip(tokens.ids, tokens.pairs, strict=True):
        line = f"{name}: {len(pair.prefix)} shared tokens, then {len(pair.clean)} of each"
        assert line in shown
    assert shown.endswith(f"3 probes in probes.jsonl, hash {tokens.hash[:12]}\n")


@pytest.mark.slow
def test_the_callback_in_an_sft_script_leaves_snapshots_and_a_report(model, by_hand, tmp_path):
    shutil.copy(by_hand[0], tmp_path)
    sizes = ("--max-steps", "3", "--save-steps", "2", "--points", "2")
    shown = run("sft_with_sparks", tmp_path, "--model", model, *sizes)
    contents = RunStore.find(tmp_path / "runs" / "sft").read()
    assert [snapshot.step for snapshot in contents.snapshots] == [0, 2, 3]
    assert contents.snapshots[0].probe_ids == ("sum", "apples", "cats")
    assert contents.problems == ()
    assert "open runs/sft/sparks/report.html" in shown
    assert (tmp_path / "runs" / "sft" / "sparks" / "report.html").exists()
    # What the script leaves is what the next example reads.
    assert "3 checkpoints, 3 probes" in run("analyse_run", tmp_path, "runs/sft")


def test_analyse_run_tells_what_was_planted(tmp_path):
    write_run(tmp_path / "run", make_run(STORY), make_metrics(STORY))
    shown = run("analyse_run", tmp_path, "run", "--top", "3")
    assert "5 checkpoints, 16 probes" in shown
    assert "\n3 births\n" in shown
    assert re.search(r"^ +10 +10 L1H1 ", shown, re.MULTILINE)
    assert re.search(r"^ +20 +20 L2H3 ", shown, re.MULTILINE)
    assert "emergent heads and loss" in shown
    assert "3 strongest heads at step 40" in shown
    assert "note:" not in shown


def test_analyse_run_tells_what_is_damaged(tmp_path):
    write_run(tmp_path / "run", make_run(STORY))
    RunStore(tmp_path / "run").file(20).write_bytes(b"cut short")
    shown = run("analyse_run", tmp_path, "run")
    assert re.search(r"^note: .*step-00000020\.safetensors: damaged", shown, re.MULTILINE)
    assert "4 checkpoints" in shown
    assert "emergent heads and loss" not in shown


@pytest.mark.slow
def test_edge_scores_lists_the_strongest_edges(model, tmp_path):
    shown = run("edge_scores", tmp_path, "--model", model, "--points", "4", "--top", "6")
    assert re.search(r"needs about 0\.\d{3} GiB beside the model", shown)
    assert re.search(r"KL\(clean \|\| corrupted\): \d+\.\d{3} nats", shown)
    assert re.search(r"completeness gap: \d+\.\d\d% ", shown)
    edges = re.findall(r"^ +(\S+) -> (\S+) +([+-]\d\.\d{4})$", shown, re.MULTILINE)
    strengths = [abs(float(score)) for _, _, score in edges]
    assert len(edges) == 6
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[-1] > 0
    assert re.search(r"strongest head: L[012]H[0123], ", shown)
