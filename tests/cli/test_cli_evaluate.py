"""`sparks evaluate` at the command line: a real run, a real kill, bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from command_line import assert_refused, call, error_line
from models import tiny_model
from tokenizers_made_here import byte_level_tokenizer

from sparks.evaluation import vllm_sampler as vllm_backend
from sparks.evaluation.results import Evaluation

PROBLEMS = [{"problem": f"What is {n} + 2?", "answer": str(n + 2)} for n in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = byte_level_tokenizer()
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def problems(tmp_path):
    return write(tmp_path / "sums.jsonl", PROBLEMS)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def options(model, problems, out, **more) -> list[object]:
    given = {"samples": 2, "max_new_tokens": 6, "batch_size": 4, "device": "cpu"} | more
    named = [
        text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)
    ]
    return ["evaluate", model, "--task", problems, "--output", out, *named]


def test_a_page_and_a_file(model, problems, tmp_path, capsys):
    assert call(*options(model, problems, tmp_path / "found")) == 0
    page = capsys.readouterr()
    assert page.out.startswith("sums: 6 problems, 2 samples each\n")
    assert "sampling  temperature 0.6, top-p 0.95, max tokens 6, seed 0, transformers" in page.out
    assert f"6 problems in {tmp_path}/found/sums.jsonl" in page.err
    found = Evaluation.load(tmp_path / "found" / "sums.jsonl")
    assert (len(found.problems), found.samples) == (6, 2)
    assert found.model == str(model)


def test_tables_for_programs(model, problems, tmp_path, capsys):
    out = tmp_path / "sums-2.jsonl"
    assert call(*options(model, problems, out), "--format", "json", "--k", 2) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["metric"], row["k"]) for row in rows] == [("pass", 2), ("success", 2)]
    assert call(*options(model, problems, out), "--format", "csv") == 0
    assert capsys.readouterr().out.splitlines()[0] == "metric,k,value,low,high"
    pd.testing.assert_frame_equal(
        Evaluation.load(out).metrics([2]).reset_index(drop=True), pd.DataFrame(rows), atol=1e-12
    )


def test_heads_may_be_off(model, problems, tmp_path, capsys):
    heads = ["--heads", "L0H0,L1H1,L2H0", "--scale", "0"]
    assert call(*options(model, problems, tmp_path / "off.jsonl"), *heads) == 0
    assert "intervention  L0H0,L1H1,L2H0 set to 0\n" in capsys.readouterr().out
    assert call(*options(model, problems, tmp_path / "on.jsonl")) == 0
    off, on = (Evaluation.load(tmp_path / f"{name}.jsonl") for name in ("off", "on"))
    assert off.fingerprint == on.fingerprint
    assert [p.texts for p in off.problems] != [p.texts for p in on.problems]
    capsys.readouterr()
    assert call(*options(model, problems, tmp_path / "on.jsonl"), *heads) == 2
    assert "samples of another run (intervention ''" in error_line(capsys)


DYING = """
import os, signal, sys
from sparks.cli import main
from sparks.evaluation.samples_file import SamplesFile

write, calls = SamplesFile._write, []

def dying(self, records):
    calls.append(records)
    if len(calls) == 4:  # the header, two batches, and the third within its first line
        self._file.write(b'{"id": "3", "sam')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, records)

SamplesFile._write = dying
main(sys.argv[1:])
"""
"""The command line, killed while it writes."""


@pytest.mark.slow
def test_a_killed_run_goes_on(model, problems, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", DYING, *map(str, options(model, problems, out))]
    work = subprocess.run(command, stderr=subprocess.DEVNULL, check=False, timeout=300)
    assert work.returncode == -signal.SIGKILL
    assert out.read_bytes().count(b"\n") == 9
    for path in (out, whole):
        assert call(*options(model, problems, path)) == 0
    assert Evaluation.load(out) == Evaluation.load(whole)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--k", "3"], r"k must be a whole number from 1 to the samples a problem \(2\), got 3"),
        (["--thinking", "on"], "has no thinking mode"),
        (["--heads", "L9H0"], "no head L9H0: the model has layers 0..2"),
        (["--scale", "2"], "--scale belongs to --heads"),
        (["--backend", "vllm"], "vllm is not installed"),
        (["--backend", "vllm", "--heads", "L0H0"], "vllm cannot intervene on heads: .*sparks abl"),
        (["--limit", "0"], "limit must be a whole number, at least 1, got 0"),
        (["--greedy", "--top-p", "0.5"], "greedy takes no temperature"),
        (["--check", "nearly"], "invalid choice: 'nearly'"),
        (["--device", "no-such-device"], "cannot load checkpoint"),
    ],
)  # fmt: skip
def test_bad_options(model, problems, tmp_path, capsys, more, match):
    out = tmp_path / "x.jsonl"
    assert_refused(capsys, tmp_path, *options(model, problems, out), *more, match=match)


def test_bad_tasks_and_models(model, problems, tmp_path, capsys):
    bad = write(tmp_path / "bad.jsonl", [*PROBLEMS, {"problem": "Q", "answer": "???"}])
    out = tmp_path / "x.jsonl"
    for task, match in (
        ("gsm-8k", "unknown task 'gsm-8k': did you mean gsm8k"),
        (bad, r"bad.jsonl:7: the answer '\?\?\?' cannot be parsed as mathematics"),
        ("gym:chain-sum", "nearest are gym:chain_sum"),
    ):
        assert_refused(capsys, tmp_path, *options(model, task, out), match=match)
    assert_refused(
        capsys, tmp_path, *options("no-model", problems, out), match="cannot load checkpoint no-mod"
    )


def test_vllm_is_taken_where_it_can_be(model, monkeypatch, tmp_path):
    """On a GPU, without heads and adapters."""
    from sparks.cli import build_parser
    from sparks.cli.heads.evaluate import _backend
    from sparks.cli.options.common import settings
    from sparks.evaluation.settings import EvaluationConfig

    def chosen(*more: str, heads=None, given=str(model)) -> str:
        arguments = build_parser().parse_args(
            ["evaluate", given, "--task", "t", "--output", "o", *more]
        )
        arguments.thinking = None
        return _backend(arguments, settings(arguments, EvaluationConfig), heads)

    monkeypatch.setattr(vllm_backend, "is_installed", lambda: True)
    assert not torch.cuda.is_available()
    assert chosen() == "transformers"
    assert chosen("--device", "cuda") == "vllm"
    assert chosen("--device", "cuda", heads=object()) == "transformers"
    assert chosen("--device", "cuda", "--backend", "transformers") == "transformers"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert chosen("--device", "cuda", given=str(tmp_path)) == "transformers"
