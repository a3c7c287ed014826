"""Sampling, checking and saving with tiny models: right, untouched, resumable."""

from __future__ import annotations

import copy
import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_model
from tokenizers_made_here import CHAT, CHAT_THINKING, byte_level_tokenizer

from sparks.effects.interventions import intervene
from sparks.evaluation.checks import Verdict
from sparks.evaluation.records import Task, TaskProblem
from sparks.evaluation.results import Evaluation
from sparks.evaluation.run import evaluate
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.models.generation import text_after

TOKENIZER = byte_level_tokenizer()
SWITCHED = CHAT.replace(
    "{{ '<|assistant|>' }}",
    "{{ '<|assistant|>' }}{% if enable_thinking is defined and enable_thinking is true %}"
    "{{ '<think>\n' }}{% else %}{{ '<think></think>\n' }}{% endif %}",
)
"""A chat template with a thinking mode."""
PROMPTS = ("What is 2 + 2?", "So", "To determine the sum of two numbers, we add them. Okay?")


def even(problem: TaskProblem, text: str) -> Verdict:
    """A check that some texts pass."""
    return Verdict(text[:3] or None, len(text) % 2 == 0)


def ask(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


TASK = Task(
    "made here",
    tuple(TaskProblem(f"p{n}", ask(text), "4") for n, text in enumerate(PROMPTS)),
    "even length",
    even,
)


@pytest.fixture(scope="module")
def llama():
    return made("llama-gqa")


def made(kind: str, context: int = 256):
    return tiny_model(kind, vocab_size=len(TOKENIZER), max_position_embeddings=context)


def config(**values) -> EvaluationConfig:
    return EvaluationConfig(**{"samples": 3, "max_new_tokens": 8, "batch_size": 4} | values)


def run(model, settings=None, task=TASK, **more) -> Evaluation:
    tokenizer = more.pop("tokenizer", TOKENIZER)
    return evaluate(model, tokenizer, task, settings or config(), progress=False, **more)


def likeliest(model, text: str, tokens: int) -> list[int]:
    """Tokens by argmax, one whole pass each: no cache, no batch, no padding, no `generate`."""
    ids = torch.tensor([TOKENIZER(text, add_special_tokens=False)["input_ids"]])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return list(itertools.takewhile(lambda token: token != 2, ids[0, start:].tolist()))


def rendered(prompt: str) -> str:
    return f"<s><|user|>{prompt}\n<|assistant|>"


def lines_of(path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


# -- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "lora-llama"])
def test_greedy_answers_of_a_padded_batch_are_those_of_single_rows(kind):
    model = made(kind)
    found = run(model, config(greedy=True))
    assert found.samples == 1
    for problem, prompt in zip(found.problems, PROMPTS, strict=True):
        ids = likeliest(model, rendered(prompt), 8)
        before = TOKENIZER(rendered(prompt), add_special_tokens=False)["input_ids"]
        assert problem.texts == (text_after(TOKENIZER, before, ids),)
        assert (problem.tokens, problem.truncated) == ((len(ids),), (len(ids) == 8,))
    assert found == replace(run(model, config(greedy=True, batch_size=1)), config=found.config)


def test_a_stop_token_ends_an_answer(llama):
    before = TOKENIZER(rendered(PROMPTS[0]), add_special_tokens=False)["input_ids"]
    ids = likeliest(llama, rendered(PROMPTS[0]), 8)
    model = copy.deepcopy(llama)
    model.generation_config.eos_token_id = [2, ids[4]]
    first = run(model, config(greedy=True)).problems[0]
    kept = ids[: ids.index(ids[4])]
    assert first.texts == (text_after(TOKENIZER, before, kept),)
    assert (first.tokens, first.truncated) == ((len(kept),), (False,))


def test_samples_are_named_by_the_seed(llama):
    found = run(llama)
    assert found == run(llama)
    assert len({text for problem in found.problems for text in problem.texts}) == 9
    other = run(llama, config(seed=1))
    assert found.problems[0].texts != other.problems[0].texts
    assert found.config == config(temperature=0.6, top_p=0.95).as_dict()
    assert (found.task, found.task_hash) == ("made here", TASK.hash)
    assert 0 < found.pass_at(1).value < 1


def test_every_batch_is_a_draw_of_its_own(llama):
    twice = Task("twice", tuple(TaskProblem(name, ask("So"), "4") for name in "ab"), "even", even)
    one, other = run(llama, config(batch_size=3), twice).problems
    assert not set(one.texts) & set(other.texts)


def test_the_limit_and_the_system_prompt_count(llama):
    whole = run(llama, config(greedy=True))
    assert run(llama, config(greedy=True, limit=2)).problems == whole.problems[:2]
    told = run(llama, config(greedy=True, system_prompt="Okay."))
    text = f"<s><|system|>Okay.\n{rendered(PROMPTS[1]).removeprefix('<s>')}"
    before = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert told.problems[1].texts == (text_after(TOKENIZER, before, likeliest(llama, text, 8)),)


@pytest.mark.parametrize("kind", ["llama-gqa", "lora-llama"])
def test_model_and_random_states_are_left_as_found(kind):
    model = made(kind)
    model.train()
    model.config.use_cache = False
    own = model.generation_config
    own.top_k, own.do_sample, own.repetition_penalty = 1, True, 5.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first = run(model)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert model.generation_config is own
    assert (own.top_k, own.repetition_penalty, model.config.use_cache) == (1, 5.0, False)
    # The model's own settings (top-k of 1: always the same) do not count.
    plain = made(kind)
    assert [p.texts for p in run(plain).problems] == [p.texts for p in first.problems]


def test_keys_and_values_are_cached_whatever_the_config_says():
    model = made("llama-gqa")
    model.config.use_cache = False
    widths = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    run(model, config(samples=1))
    assert widths[0] > 1
    assert set(widths[1:]) == {1}


def test_heads_that_are_off_are_off_while_answers_are_sampled(llama):
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    plain = run(llama, config(greedy=True))
    with intervene(llama, heads):
        off = run(llama, config(greedy=True), intervention="all heads set to 0")
    zeroed = copy.deepcopy(llama)
    for layer in zeroed.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    assert [p.texts for p in off.problems] == [
        p.texts for p in run(zeroed, config(greedy=True)).problems
    ]
    assert [p.texts for p in off.problems] != [p.texts for p in plain.problems]
    assert off.intervention == "all heads set to 0"
    assert run(llama, config(greedy=True)) == plain


# -- memory and numbers ------------------------------------------------------------------------


def limited(model, rows: int) -> list[int]:
    """`generate` of the model has memory for so many rows; sizes of the batches that it got."""
    sizes: list[int] = []
    generate = model.generate

    def with_limit(input_ids, **more):
        sizes.append(len(input_ids))
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return generate(input_ids=input_ids, **more)

    model.generate = with_limit
    return sizes


def test_a_batch_that_does_not_fit_is_halved_once_for_all(llama):
    model = copy.deepcopy(llama)
    sizes = limited(model, 2)
    with pytest.warns(UserWarning, match="no memory for 8 answers at a time: going on with 4") as w:
        found = run(model, config(batch_size=8))
    assert len(w) == 1
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert found.samples == 3
    assert found.problems[2].texts[2] == run(llama, config(batch_size=8)).problems[2].texts[2]


def test_no_memory_for_one_answer_is_told(llama):
    model = copy.deepcopy(llama)
    limited(model, 0)
    with pytest.raises(
        SparksError, match=r"cannot sample from LlamaForCausalLM: OutOf.*; lower max_new_tokens"
    ):
        run(model, config(batch_size=1))


def test_weights_that_are_no_numbers_are_told(llama):
    model = copy.deepcopy(llama)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(SparksError, match=r"cannot sample from .*; check its weights"):
        run(model)


# -- prompts -----------------------------------------------------------------------------------


def test_prompts_that_leave_no_room_are_counted(llama):
    longest = len(TOKENIZER(rendered(PROMPTS[2]), add_special_tokens=False)["input_ids"])
    tight = made("llama-gqa", longest + 6)
    with pytest.raises(
        SparksError,
        match=rf"1 of 3 prompts leave no room for 7 new tokens in the model's context of "
        rf"{longest + 6} \(the longest, problem p2, has {longest}\): lower max_new_tokens to 6 or ",
    ):
        run(tight, config(max_new_tokens=7))
    run(tight, config(max_new_tokens=6, greedy=True))
    long = Task("long", (TaskProblem("x", "What" + " is" * 300, "4"),))
    with pytest.raises(SparksError, match="leave out the long ones, or give a model with a larger"):
        run(llama, task=long)


def test_a_think_that_the_template_opens_is_part_of_the_text(llama):
    found = run(llama, config(samples=1), tokenizer=byte_level_tokenizer(chat=CHAT_THINKING))
    assert all(problem.texts[0].startswith("<think>\n") for problem in found.problems)


def test_thinking_on_and_off(llama):
    tokenizer = byte_level_tokenizer(chat=SWITCHED)
    model = copy.deepcopy(llama)
    model.generation_config.temperature = 0.7
    model.generation_config.top_k = 20
    on, off, neither = (
        run(model, config(samples=1, thinking=mode), tokenizer=tokenizer)
        for mode in (True, False, None)
    )
    assert all(problem.texts[0].startswith("<think>\n") for problem in on.problems)
    assert not any("<think>" in problem.texts[0] for problem in off.problems)
    assert [p.texts for p in off.problems] == [p.texts for p in neither.problems]
    settings = ("temperature", "top_p", "top_k", "thinking")
    assert [on.config[name] for name in settings] == [0.7, 0.95, 20, True]
    assert [off.config[name] for name in settings] == [0.6, 0.95, None, False]
    hot = run(model, config(samples=1, thinking=True, temperature=1.0), tokenizer=tokenizer)
    assert [hot.config[name] for name in settings] == [1.0, 0.95, 20, True]


def test_prompts_that_do_not_fit_the_model_are_told(llama):
    with pytest.raises(
        SparksError, match="the chat template of LlamaForCausalLM has no thinking mode"
    ):
        run(llama, config(thinking=True))
    text = Task("text", (TaskProblem("7", "What is", "4"),))
    with pytest.raises(SparksError, match="problem 7: thinking on or off needs chat prompts"):
        run(llama, config(thinking=False), text, tokenizer=byte_level_tokenizer(chat=SWITCHED))
    with pytest.raises(SparksError, match="problem 7: a system prompt needs chat prompts"):
        run(llama, config(system_prompt="Okay."), text)
    with pytest.raises(SparksError, match=r"problem p0: chat messages, but the tokenizer of Llama"):
        run(llama, tokenizer=byte_level_tokenizer(chat=None))
    empty = Task("empty", (TaskProblem("7", "", "4"),))
    with pytest.raises(SparksError, match="problem 7: the prompt is empty in tokens"):
        run(llama, task=empty)
    with pytest.raises(SparksError, match="vllm loads a model by itself"):
        run(llama, config(backend="vllm"))


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 0}, "samples must be a whole number, at least 1, got 0"),
        ({"limit": 0}, "limit must be a whole number, at least 1, got 0"),
        ({"top_k": 0.5}, "top_k must be a whole number, at least 1, got 0.5"),
        ({"seed": -1}, "seed must be a whole number, at least 0, got -1"),
        ({"temperature": 0}, "temperature must be above 0, got 0: use greedy for 0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"thinking": "on"}, "thinking must be True, False or None, got 'on'"),
        ({"backend": "tgi"}, "backend must be one of auto, transformers, vllm, got 'tgi'"),
        ({"greedy": True, "top_p": 0.9}, "greedy takes no temperature, top_p or top_k"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(SparksError, match=message):
        EvaluationConfig(**values)


def test_settings_survive_json():
    one = config(thinking=True, temperature=0.3)
    assert EvaluationConfig.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    with pytest.raises(SparksError, match="unknown setting 'sample'; known: backend, batch_size"):
        EvaluationConfig.from_dict({"sample": 3})


# -- the file of samples -----------------------------------------------------------------------


@pytest.fixture
def saved(llama, tmp_path):
    """A finished file, and its evaluation."""
    path = tmp_path / "new" / "samples.jsonl"
    return path, run(llama, output=path)


def test_every_sample_is_saved(saved):
    path, found = saved
    assert Evaluation.load(path) == found
    header, *lines = lines_of(path)
    assert (header["kind"], header["schema"]) == ("sparks samples", 1)
    assert header["settings"]["temperature"] == 0.6
    assert len(header["fingerprint"]) == 64
    assert [(line["id"], line["sample"]) for line in lines] == [
        (f"p{problem}", sample) for problem in range(3) for sample in range(3)
    ]
    assert lines[4]["problem"] == PROMPTS[1]
    assert lines[4]["text"] == found.problems[1].texts[1]


def test_a_finished_file_is_not_sampled_again(saved, llama, monkeypatch):
    path, found = saved
    before = path.read_bytes()
    monkeypatch.setattr("sparks.evaluation.samplers.continuations", None)
    assert run(llama, output=path) == found
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 2, 4, 7, 9])
def test_a_run_that_is_killed_ends_as_one_that_is_not(saved, llama, tmp_path, kept):
    """After the header and `kept` samples, in the middle of the next line."""
    path, found = saved
    lines = path.read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    rest = (b"".join(lines[kept + 1 :]) or lines[-1])[:7]
    torn.write_bytes(b"".join(lines[: kept + 1]) + rest)
    if kept < 9:
        with pytest.raises(SparksError, match=rf"unfinished, {kept} of 9 samples: run the same"):
            Evaluation.load(torn)
    assert run(llama, output=torn) == found
    assert sorted(map(str, lines_of(torn))) == sorted(map(str, lines_of(path)))


def test_an_exception_keeps_what_was_sampled(llama, tmp_path, saved):
    seen = []

    def breaks(problem: TaskProblem, text: str) -> Verdict:
        seen.append(text)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return even(problem, text)

    path = tmp_path / "broken.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(llama, task=replace(TASK, scorer=breaks), output=path)
    assert len(lines_of(path)) == 1 + 4  # the first batch
    assert run(llama, output=path) == saved[1]
    assert lines_of(path) == lines_of(saved[0])


@pytest.mark.parametrize("torn", [b"", b'{"kind": "spa'])
def test_a_torn_header_is_written_anew(llama, tmp_path, saved, torn):
    path = tmp_path / "torn.jsonl"
    path.write_bytes(torn)
    assert run(llama, output=path) == saved[1]
    assert lines_of(path) == lines_of(saved[0])


def test_a_file_of_another_run_is_refused(saved, llama):
    path, _ = saved
    before = path.read_bytes()

    def refused(message, model=llama, settings=None, task=TASK, **more):
        match = f"samples of another run .{message}.* another --output"
        with pytest.raises(SparksError, match=match):
            run(model, settings, task, output=path, **more)

    refused("setting seed 0, now 1", settings=config(seed=1))
    refused("setting samples 3, now 4", settings=config(samples=4))
    refused("setting temperature 0.6, now 0.7", settings=config(temperature=0.7))
    refused("num_problems 3, now 2|task_hash", settings=config(limit=2))
    refused("task_hash", task=replace(TASK, check="odd length"))
    refused("fingerprint", model=tiny_model("llama-gqa", seed=1, vocab_size=len(TOKENIZER)))
    refused("intervention '', now 'L0H1 off'", intervention="L0H1 off")
    assert path.read_bytes() == before


def test_a_file_that_is_none_of_ours_is_refused(llama, tmp_path):
    path = tmp_path / "other.jsonl"
    for content in ("important\nnotes\n", "important", '{"problem": "Q"}\n'):
        path.write_text(content)
        with pytest.raises(SparksError, match=r"other.jsonl: no file of samples"):
            run(llama, output=path)
        assert path.read_text() == content
    with pytest.raises(SparksError, match=r"cannot read samples .*none.jsonl: No such file"):
        Evaluation.load(tmp_path / "none.jsonl")
    with pytest.raises(SparksError, match="it is a folder, give a file name"):
        run(llama, output=tmp_path)


def test_damage_is_named_by_its_line(saved, llama):
    path, _ = saved
    lines = path.read_text().splitlines(keepends=True)
    for line, message in (
        ("{\n", r"samples.jsonl:3: damaged, not JSON"),
        ('{"id": "p0"}\n', r"samples.jsonl:3: damaged, lacks 'sample'"),
        ("3\n", r"samples.jsonl:3: damaged, it must be an object, got 3"),
    ):
        path.write_text("".join([*lines[:2], line, *lines[3:]]))
        with pytest.raises(SparksError, match=message):
            Evaluation.load(path)
        with pytest.raises(SparksError, match=message):
            run(llama, output=path)
    path.write_text(lines[0].replace('"schema": 1', '"schema": 9') + "".join(lines[1:]))
    with pytest.raises(SparksError, match=r"schema 9, this version of sparks reads 1"):
        Evaluation.load(path)
