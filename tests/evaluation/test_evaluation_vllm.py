"""The vLLM backend against a stand-in: vLLM itself needs a GPU and is not installed here.

`StandIn` follows vLLM's documented interface (https://docs.vllm.ai/en/latest/api/vllm/): it has the
same names and types, and refuses what vLLM refuses. It answers with a tiny model by transformers.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from models import tiny_model
from tokenizers_made_here import CHAT, byte_level_tokenizer

from sparks.evaluation import vllm_sampler as vllm_backend
from sparks.evaluation.records import Task, TaskProblem
from sparks.evaluation.results import Evaluation
from sparks.evaluation.run import evaluate
from sparks.evaluation.settings import EvaluationConfig
from sparks.evaluation.vllm_sampler import evaluate_with_vllm, files_fingerprint
from sparks.ground.errors import SparksError
from sparks.models.loading import load_model

TOKENIZER = byte_level_tokenizer(chat=CHAT)
TASK = Task(
    "made here",
    tuple(
        TaskProblem(f"p{n}", [{"role": "user", "content": text}], "4")
        for n, text in enumerate(("What is 2 + 2?", "So", "To determine the sum, add."))
    ),
)


@dataclass
class SamplingParams:
    """The fields that we set, with vLLM's defaults; unknown ones are refused as by vLLM."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


@dataclass
class CompletionOutput:
    token_ids: tuple[int, ...]
    finish_reason: str
    text: str = ""


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


@dataclass
class StandIn:
    """`vllm.LLM`."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = True
    max_model_len: int | None = None
    generation_config: str = "auto"
    seed: int = 0
    batches: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.generation_config == "vllm"  # else it fills in the model's own settings
        from transformers import AutoModelForCausalLM

        self._network = AutoModelForCausalLM.from_pretrained(self.model)
        STARTED.append(self)

    def generate(self, prompts, sampling_params, *, use_tqdm=True) -> list[RequestOutput]:
        self.batches.append((prompts, sampling_params))
        assert len(prompts) == len(sampling_params)
        return [self._one(*pair) for pair in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt, params: SamplingParams) -> RequestOutput:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        assert ids.shape[1] + params.max_tokens <= self.max_model_len
        generator = torch.Generator().manual_seed(params.seed)
        new: list[int] = []
        while len(new) < params.max_tokens and not set(new) & set(params.stop_token_ids):
            with torch.no_grad():
                logits = self._network(ids).logits[0, -1]
            token = (
                int(logits.argmax())
                if params.temperature == 0
                else int(torch.multinomial((logits / params.temperature).softmax(-1), 1,
                                           generator=generator))
            )  # fmt: skip
            new.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        stopped = bool(set(new) & set(params.stop_token_ids))
        return RequestOutput([CompletionOutput(tuple(new), "stop" if stopped else "length")])


STARTED: list[StandIn] = []


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in is installed; the engines that were started."""
    module: Any = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_backend, "is_installed", lambda: True)
    STARTED.clear()
    return STARTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = tiny_model("llama-gqa", vocab_size=len(TOKENIZER), max_position_embeddings=64)
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def run(folder, *, output=None, **values) -> Evaluation:
    settings = EvaluationConfig(**{"samples": 2, "max_new_tokens": 6} | values)
    return evaluate_with_vllm(
        folder, None, TOKENIZER, TASK, settings, output=output, progress=False
    )


def test_greedy_answers_are_those_of_transformers(vllm, folder):
    found = run(folder, greedy=True)
    other = evaluate(
        load_model(folder, device="cpu"), TOKENIZER, TASK,
        EvaluationConfig(greedy=True, max_new_tokens=6), progress=False,
    )  # fmt: skip
    assert found.problems == other.problems
    assert (found.backend, found.model) == ("vllm", folder)


def test_what_vllm_is_asked(vllm, folder):
    found = run(folder, top_k=20)
    (engine,) = vllm
    ((prompts, params),) = engine.batches
    assert [set(prompt) for prompt in prompts] == [{"prompt_token_ids"}] * 6
    longest = max(len(prompt["prompt_token_ids"]) for prompt in prompts)
    assert engine.max_model_len == longest + 6
    assert {(p.temperature, p.top_p, p.top_k, p.max_tokens, p.n) for p in params} == {
        (0.6, 0.95, 20, 6, 1)
    }
    assert params[0].stop_token_ids == [2]
    assert len({p.seed for p in params}) == 6  # every sample has its own
    assert run(folder, top_k=20) == found
    again = run(folder, top_k=20, seed=1)
    assert [p.texts for p in again.problems] != [p.texts for p in found.problems]


def test_samples_are_saved_and_gone_on_with(vllm, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_backend, "_ROWS", 1)
    path = tmp_path / "samples.jsonl"
    found = run(folder, output=path, batch_size=4)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    assert run(folder, output=path, batch_size=4) == found == Evaluation.load(path)
    assert [len(engine.batches) for engine in vllm] == [2, 2]
    run(folder, output=path, batch_size=4)
    assert len(vllm) == 2  # nothing to do: no engine was started
    settings = EvaluationConfig(samples=2, max_new_tokens=6, batch_size=4)
    model = load_model(folder, device="cpu")
    with pytest.raises(SparksError, match=r"samples of another run \(backend 'vllm', now 'transf"):
        evaluate(model, TOKENIZER, TASK, settings, output=path)


def test_what_fails_in_vllm_is_one_line(vllm, folder, monkeypatch):
    def fail(*_, **__):
        raise ValueError("No available memory\nfor the cache blocks")

    monkeypatch.setattr(StandIn, "generate", fail)
    with pytest.raises(SparksError, match=r"with vllm: ValueError: No available memory for the"):
        run(folder)
    monkeypatch.setattr(sys.modules["vllm"], "LLM", fail)
    with pytest.raises(SparksError, match=r"vllm cannot run .*; sample with --backend transf"):
        run(folder)
    with pytest.raises(SparksError, match=r"cannot load the config of no-folder: "):
        run("no-folder")


def test_without_vllm_one_line_tells(folder):
    assert not vllm_backend.is_installed()
    with pytest.raises(SparksError, match=r"vllm is not installed: `pip install vllm`"):
        run(folder)


def test_weights_of_a_folder_are_told_apart(folder, tmp_path):
    one = files_fingerprint(folder, None)
    assert one == files_fingerprint(folder, "any")
    tiny_model("llama-gqa", seed=1, vocab_size=len(TOKENIZER)).save_pretrained(tmp_path)
    assert files_fingerprint(str(tmp_path), None) != one
    assert files_fingerprint("owner/model", "abc") == "owner/model@abc"
