"""Whatever is wrong with probes, models or folders: one line, exit code 2, nothing half written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, call, listing, write_lines
from factories import make_run, write_run
from huggingface_hub.utils import logging as hub_logging
from models import tiny_model
from safetensors.numpy import load_file, save_file
from tokenizers_made_here import byte_level_tokenizer

from sparks.runs.run_folder import RunStore

PROBES = [
    {"id": f"p{n}", "prompt": f"What is {n} + 2?", "clean": " Okay, so", "corrupted": " The sum is"}
    for n in (2, 3)
]
FAST = ("--points", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "checkpoint-4"
    tokenizer = byte_level_tokenizer()
    tiny_model("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def probes(tmp_path) -> Path:
    return write_lines(tmp_path / "probes.jsonl", *map(json.dumps, PROBES))


# -- outputs that are files of a run ---------------------------------------------------------------


def test_probes_and_reports_replace_no_file_of_a_run(tmp_path, capsys, checkpoint):
    store = RunStore(write_run(tmp_path / "run", make_run({0: ["L0H0"], 10: ["L0H0"]})))
    store.go_on("", "the probes\n")
    match = r"cannot write .*run/{}: it belongs to the run in .*run; give another file"
    probes, snapshot = store.path / "probes.jsonl", store.file(10)
    assert_refused(
        capsys, tmp_path, "probes", "--control", 8, "--model", checkpoint, "--output", probes,
        match=match.format("probes.jsonl"),
    )  # fmt: skip
    assert_refused(
        capsys, tmp_path, "report", store.path, "-o", snapshot, match=match.format(snapshot.name)
    )
    assert call("report", store.path, "-o", store.path / "report.html") == 0


# -- probes: bad files -----------------------------------------------------------------------------

GOOD = json.dumps(PROBES[0])


def probe(**changes: object) -> str:
    return json.dumps(PROBES[0] | changes)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty, no probes: give one JSON object a line"),
        ("\n \n", "empty, no probes"),
        ("{", ":1: not JSON"),
        (f"{GOOD}\nnot json", ":2: not JSON"),
        ("[1]", ":1: a probe must be a JSON object .* got list"),
        ('{"prompt": "x"}', ":1: clean, corrupted missing"),
        (probe(extra=1), ":1: unknown key 'extra'"),
        (probe(clean=3), ":1: clean must be text, got 3"),
        (probe(prompt=None), ":1: prompt must be text or a list of messages, got NoneType"),
        (probe(prompt=[]), "prompt must hold at least one message"),
        (probe(prompt=[{"role": "robot", "content": "x"}]), "role must be one of .* got 'robot'"),
        (f"{GOOD}\n{GOOD}", ":2: id 'p2' is already that of"),
        (probe(id="a\nb"), "id must be one line of printable text"),
        (probe(clean=""), "'p2' .clean is empty"),
        (probe(corrupted=PROBES[0]["clean"]), "'p2' .clean and corrupted are equal"),
        (probe(prompt="a b " * 200), r"'p2' .\d+ tokens long, the model's context holds 64"),
    ],
)
def test_bad_probes_are_refused_before_anything_is_written(
    text, match, tmp_path, checkpoint, capsys
):
    file = tmp_path / "probes.jsonl"
    file.write_text(text)
    arguments = ("replay", checkpoint, "--probes", file, "--output", tmp_path / "out", *FAST)
    assert_refused(capsys, tmp_path, *arguments, match=match)


def test_probes_that_are_no_text_or_not_there_are_refused(tmp_path, checkpoint, capsys):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, match in (("binary", "not UTF-8 text"), ("nothing", "cannot read probes .*nothing")):
        arguments = ("replay", checkpoint, "--probes", tmp_path / name, "--output", tmp_path / "o")
        assert_refused(capsys, tmp_path, *arguments, *FAST, match=match)


# -- models, folders, settings ------------------------------------------------------------------


def replay(checkpoint: object, probes: Path, *more: object) -> tuple[object, ...]:
    """A fast replay into `out` beside the probes."""
    output = probes.parent / "out"
    return ("replay", checkpoint, "--probes", probes, "--output", output, *FAST, *more)


def test_a_replay_says_what_it_wrote(checkpoint, probes, tmp_path, capsys):
    assert call(*replay(checkpoint, probes)) == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out == f"1 snapshots in {out}; next: sparks report {out}\n"
    assert sorted(listing(out)) == ["probes.jsonl", "run.json", "step-00000004.safetensors"]
    assert call("timeline", out) == 0
    assert "step 4" in capsys.readouterr().out


def test_probes_are_built_and_what_was_passed_over_is_told(checkpoint, tmp_path, capsys):
    answers = (" 4, I think", "", " 7, of course")
    rows = [{"prompt": f"What is {n} + 2?", "answer": text} for n, text in enumerate(answers)]
    data = write_lines(tmp_path / "data.jsonl", *map(json.dumps, rows))
    out = tmp_path / "probes.jsonl"
    arguments = ("probes", "--data", data, "--model", checkpoint, "--output", out)
    assert call(*arguments, "--count", "2") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"2 probes in {out} (1 problems passed over), hash ")
    assert re.search(r"(^|[\n\r])sparks: passed over .*data\.jsonl:2.*\n", captured.err)
    assert re.search(
        r"\nsparks: warning: only 2 probes: no change of a head can be c", captured.err
    )
    assert len(out.read_text().splitlines()) == 2
    # Where no number is asked for, they are as many as there are.
    assert call(*arguments) == 0
    assert capsys.readouterr().out.startswith(f"2 probes in {out} (1 problems passed over), hash ")
    # Nothing is built from too few problems, and the older file stands.
    before = listing(tmp_path)
    assert call(*arguments, "--count", "3") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sparks: error: only 2 of 3 probes from")
    assert listing(tmp_path) == before


def test_an_unknown_model_is_refused(probes, tmp_path, capsys):
    match = (
        r"cannot load checkpoint no/such-model@step-3 \(no such folder here; as a hub id, \w+: .*"
        r"hub id that can be reached"
    )
    assert_refused(capsys, tmp_path, *replay("no/such-model@step-3", probes), match=match)
    (tmp_path / "step-5").mkdir()
    match = r"cannot load checkpoint .*step-5 \(\w+: "
    assert_refused(capsys, tmp_path, *replay(tmp_path / "step-5", probes), match=match)


def test_an_unknown_model_cannot_build_probes(tmp_path, capsys):
    data = write_lines(tmp_path / "data.jsonl", json.dumps({"question": "2 + 2?", "answer": "4"}))
    arguments = ("--data", data, "--model", "no/such-model", "--output", tmp_path / "probes.jsonl")
    match = r"cannot load checkpoint no/such-model \("
    hub_logging.set_verbosity_warning()
    assert_refused(capsys, tmp_path, "probes", *arguments, match=match)
    # Without a network the hub's client would tell five retries, two lines each.
    assert hub_logging.get_verbosity() == hub_logging.ERROR


@pytest.mark.parametrize("where", ["norm", "weight"])
def test_nan_in_the_model_is_refused(where, checkpoint, probes, tmp_path, capsys):
    model = tiny_model("llama-gqa", vocab_size=len(byte_level_tokenizer()))
    broken = model.model.norm if where == "norm" else model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        broken.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "checkpoint-9")
    byte_level_tokenizer().save_pretrained(tmp_path / "checkpoint-9")
    arguments = replay(tmp_path / "checkpoint-9", probes)
    assert_refused(capsys, tmp_path, *arguments, match="not finite")


def test_a_truncated_model_is_refused(checkpoint, probes, tmp_path, capsys):
    copy = copied(checkpoint, tmp_path / "checkpoint-9")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_refused(capsys, tmp_path, *replay(copy, probes), match="cannot load checkpoint")


def test_a_model_without_all_its_weights_is_refused(checkpoint, probes, tmp_path, capsys):
    copy = copied(checkpoint, tmp_path / "checkpoint-9")
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    match = r"lacks 1 weights, such as model\.layers\.1\.mlp\.up_proj\.weight"
    assert_refused(capsys, tmp_path, *replay(copy, probes), match=match)


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_folder_that_cannot_be_written_is_refused(checkpoint, probes, tmp_path, capsys):
    blocked = probes / "out"  # below a file: not even root can write there
    arguments = ("replay", checkpoint, "--probes", probes, "--output", blocked, *FAST)
    assert_refused(capsys, tmp_path, *arguments, match="cannot write .*probes.jsonl/out")
    data = write_lines(tmp_path / "data.jsonl", json.dumps({"question": "2 + 2?", "answer": "4"}))
    arguments = ("probes", "--data", data, "--model", checkpoint, "--output", blocked)
    assert_refused(capsys, tmp_path, *arguments, match="cannot write .*probes.jsonl/out")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--points", "0"), "points must be a whole number, at least 1, got 0"),
        (("--top-share", "2"), r"top_share must be .* got 2\.0: it is a share, so 0\.02 for 2 %"),
        (("--tolerance", "5"), r"tolerance must be .* got 5\.0: it is a share, so 0\.05 for 5 %"),
        (
            ("--threshold-mode", "relative", "--threshold", "10"),
            r"a relative threshold must be .* got 10\.0: it is a share, so 0\.1 for 10 %",
        ),
        (("--threshold", "nan"), "threshold must be a finite number, at least 0, got nan"),
        (("--threshold", "inf"), "threshold must be a finite number, at least 0, got inf"),
        (("--memory-gib", "0"), "memory_gib must be a finite number above 0, got 0.0"),
        (("--memory-gib", "inf"), "memory_gib must be a finite number above 0, got inf"),
        (("--device", "abacus"), "cannot load checkpoint .*abacus"),
    ],
)
def test_settings_out_of_range_are_refused(options, match, checkpoint, probes, tmp_path, capsys):
    assert_refused(capsys, tmp_path, *replay(checkpoint, probes, *options), match=match)


def test_a_hub_id_needs_an_output_folder(probes, tmp_path, capsys):
    arguments = ("replay", "7=owner/model", "--probes", probes)
    match = "where to write. owner/model is not a folder: give --output FOLDER"
    assert_refused(capsys, tmp_path, *arguments, match=match)


@pytest.mark.slow
def test_a_broken_checkpoint_is_one_line_in_a_process_too(tmp_path, probes):
    (tmp_path / "checkpoint-1").mkdir()
    before = listing(tmp_path)
    command = [sys.executable, "-m", "sparks", *replay(tmp_path / "checkpoint-1", probes)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"sparks: error: cannot load checkpoint .*\n", done.stderr), done.stderr
    assert listing(tmp_path) == before
