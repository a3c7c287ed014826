"""`sparks check`: before a training, whether a model can be measured and what that takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, call
from models import tiny_model
from tiny_training import PROBES
from tokenizers_made_here import CHAT, byte_level_tokenizer
from transformers import AutoModelForCausalLM, MambaConfig

from sparks.cli.measure.check import POWER
from sparks.models.families import CHECKED_ARCHITECTURES


@pytest.fixture
def folder(tmp_path) -> Path:
    tokenizer = byte_level_tokenizer(chat=CHAT)
    model = tiny_model("llama-gqa", vocab_size=len(tokenizer), max_position_embeddings=256)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    PROBES.save(tmp_path / "probes.jsonl")
    return tmp_path


def test_a_model_that_works(folder, capsys):
    arguments = ("check", folder / "model", "--device", "cpu", "--points", 2)
    assert call(*arguments, "--probes", folder / "probes.jsonl") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["model"] == "LlamaForCausalLM (llama) works: its parts add up"
    assert lines["route"] == "the fast one in 3 of 3 layers"
    assert lines["heads"] == "12: 3 layers x 4, 2 key/value heads a layer"
    assert re.match(
        r"3: \d+ to \d+ tokens that both prompts share, then \d+ to \d+$", lines["probes"]
    )
    assert re.match(
        r"at most about \d+\.\d s and \S+ GiB beside the model, on cpu", lines["snapshot"]
    )
    assert lines["settles"].startswith(
        "nothing, 3 probes are too few: at least 7 are needed; found"
    )
    assert call(*arguments) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["probes"] == "made up, 1: 64 tokens that both prompts share, then 16"
    assert lines["settles"].startswith("at least 7 probes are needed; found of heads moved by")


def test_a_model_that_does_not(folder, tmp_path, capsys):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    match = "sparks cannot take 'mamba' apart: its layers are not alike, or some have no attention"
    assert_refused(capsys, tmp_path, "check", tmp_path / "mamba", "--device", "cpu", match=match)


def test_without_a_model_it_lists_what_works_and_what_does_not(capsys):
    assert call("check") == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"{len(CHECKED_ARCHITECTURES)} work: {', '.join(CHECKED_ARCHITECTURES)}"
    assert any(re.match(r"refused, its queries, .*: .*deepseek_v3", line) for line in others)


def test_the_power_is_that_of_the_record():
    record = (Path(__file__).parents[1] / "bench" / "RECORD.md").read_text()
    rows = re.findall(r"^\| (\d+) \|((?: [^|]+ \|){11})$", record, re.MULTILINE)
    found = {
        int(size): tuple(float(cell.strip(" *")) for cell in cells.split("|")[5:8])
        for size, cells in rows[:4]
    }
    assert found == POWER
