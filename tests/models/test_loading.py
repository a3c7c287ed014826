"""The one loader: what is incomplete is refused, and a model's own code runs only when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, call, write_lines
from families import tiny_family
from models import tiny_model, wrapped
from safetensors.torch import load_file, save_file
from tokenizers_made_here import byte_level_tokenizer
from transformers import dynamic_module_utils

from sparks.ground.errors import SparksError
from sparks.models.families import context_of
from sparks.models.loading import load_model

WEIGHT = "model.layers.1.mlp.up_proj.weight"
PROBLEMS = [json.dumps({"question": f"{n} + 2?", "answer": f"It is {n + 2}."}) for n in range(4)]


def saved(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer()
    tiny_model("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without(file: Path, name: str) -> None:
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, {"format": "pt"})


@pytest.fixture
def whole(tmp_path) -> Path:
    return saved(tmp_path / "whole")


@pytest.fixture
def broken(tmp_path) -> Path:
    folder = saved(tmp_path / "broken")
    without(folder / "model.safetensors", WEIGHT)
    return folder


@pytest.mark.parametrize("option", ["--model", "--clean-model"])
def test_probes_are_not_built_from_random_weights(option, whole, broken, tmp_path, capsys):
    data = write_lines(tmp_path / "data.jsonl", *PROBLEMS)
    models = {"--model": whole, "--clean-model": whole} | {option: broken}
    arguments = [item for pair in models.items() for item in pair]
    rest = ("--count", 1, "--device", "cpu", "--output", tmp_path / "probes.jsonl")
    match = f"checkpoint .*broken lacks 1 weights, such as {WEIGHT}: its files are incomplete"
    assert_refused(capsys, tmp_path, "probes", "--data", data, *arguments, *rest, match=match)


# peft 0.21 asks transformers 5.23 by the older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_adapter_is_refused_where_it_or_its_base_is_incomplete(whole, tmp_path):
    adapter = tmp_path / "adapter"
    model = load_model(str(whole), device="cpu")
    found = wrapped(model)
    found.save_pretrained(adapter)
    ids = torch.tensor([[5, 9, 30]])
    loaded = load_model(str(adapter), device="cpu")
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, found(input_ids=ids).logits, atol=1e-5)
    name = next(
        name for name in load_file(adapter / "adapter_model.safetensors") if "lora_B" in name
    )
    kept = (adapter / "adapter_model.safetensors").read_bytes()
    without(adapter / "adapter_model.safetensors", name)
    with pytest.raises(SparksError, match=r"cannot load checkpoint .*adapter \(.*missing adapter"):
        load_model(str(adapter), device="cpu")
    (adapter / "adapter_model.safetensors").write_bytes(kept)
    without(whole / "model.safetensors", WEIGHT)
    with pytest.raises(SparksError, match=f"checkpoint .*whole lacks 1 weights, such as {WEIGHT}"):
        load_model(str(adapter), device="cpu")


def test_code_that_comes_with_a_model_runs_only_when_asked(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (whole / "own_llama.py").write_text(
        f"open({str(tmp_path / 'it ran')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n"
        "    model_type = 'own-llama'\n"
        "class OwnModel(LlamaForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    config = json.loads((whole / "config.json").read_text())
    homes = {"AutoConfig": "own_llama.OwnConfig", "AutoModelForCausalLM": "own_llama.OwnModel"}
    config |= {"model_type": "own-llama", "auto_map": homes, "architectures": ["OwnModel"]}
    (whole / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    arguments = ("ablate", whole, "--heads", "L0H1", "--device", "cpu", "--output", out)
    match = "cannot load checkpoint .*whole: it comes with Python code .* give --trust-remote-code"
    assert_refused(capsys, tmp_path, *arguments, match=match)
    assert not (tmp_path / "it ran").exists()
    assert call(*arguments, "--trust-remote-code") == 0
    assert (tmp_path / "it ran").exists()


def test_a_vision_language_model_is_loaded_whole_and_tells_its_towers_context(tmp_path):
    model = tiny_family("qwen2_vl")
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert type(loaded) is type(model)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    assert context_of(loaded.config) == 64
    assert not hasattr(loaded.config, "max_position_embeddings")
