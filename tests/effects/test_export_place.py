"""Where an export is put: it replaces what an export wrote, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import assert_refused, call, listing
from models import tiny_model
from tokenizers_made_here import byte_level_tokenizer

from sparks.effects import export
from sparks.effects.export import RECORD, export_model
from sparks.ground.errors import SparksError

HEADS = [(0, 1)]


@pytest.fixture
def run(tmp_path) -> Path:
    """A trainer's output folder with a checkpoint, snapshots, and a file of the user's."""
    folder, tokenizer = tmp_path / "outputs", byte_level_tokenizer()
    tiny_model("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(folder / "checkpoint-4")
    tokenizer.save_pretrained(folder / "checkpoint-4")
    (folder / "sparks").mkdir()
    (folder / "sparks" / "step-00000004.safetensors").write_bytes(b"a snapshot")
    (folder / "notes.txt").write_text("mine")
    return folder


def exported(folder: Path) -> Path:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}  # a subfolder
    model = tiny_model("llama-gqa", vocab_size=len(tokenizer))
    return export_model(model, HEADS, folder, tokenizer=tokenizer).path


@pytest.mark.parametrize(
    ("out", "match"),
    [
        ("outputs", "outputs holds the model that is read"),
        ("outputs/checkpoint-4", "checkpoint-4 is the model that is read"),
        ("outputs/checkpoint-4/ablated", "ablated lies in the model that is read"),
        ("outputs/sparks/../sparks", "sparks holds 'step-00000004.safetensors', which no export"),
    ],
)
def test_neither_the_source_nor_a_run_is_replaced(run, out, match, tmp_path, capsys):
    arguments = ("ablate", run / "checkpoint-4", "--heads", "L0H1", "--overwrite")
    assert_refused(capsys, tmp_path, *arguments, "--output", tmp_path / out, match=match)


def test_an_earlier_export_is_replaced_also_through_a_link(run, tmp_path):
    out = exported(tmp_path / "ablated")
    (tmp_path / "link").symlink_to(out)
    arguments = ("ablate", run / "checkpoint-4", "--heads", "L0H2", "--overwrite")
    assert call(*arguments, "--output", tmp_path / "link") == 0
    assert json.loads((out / RECORD).read_text())["heads"] == "L0H2"
    assert (tmp_path / "link").is_symlink()
    assert not (out / "additional_chat_templates").exists()
    assert not list(tmp_path.glob(".*"))


def add_file(out: Path) -> str:
    (out / "training_args.bin").write_bytes(b"")
    return "training_args.bin"


def add_below(out: Path) -> str:
    (out / "additional_chat_templates" / "mine.jinja").touch()
    return "additional_chat_templates/mine.jinja"


def add_folder(out: Path) -> str:
    (out / "checkpoint-8").mkdir()
    return "checkpoint-8"


def add_link(out: Path) -> str:
    (out / "tokenizer.json").unlink()
    (out / "tokenizer.json").symlink_to(out / "config.json")
    return "tokenizer.json"


def train_on(out: Path) -> str:
    model = tiny_model("llama-gqa", vocab_size=len(byte_level_tokenizer()), seed=1)
    model.save_pretrained(out)  # files of the same names and sizes
    return "model.safetensors"


def older_record(out: Path) -> str:
    (out / RECORD).write_text('{"heads": "L0H1"}')
    return ""


def hostile_record(out: Path) -> str:
    (out / RECORD).write_text("[" * 100_000)
    return ""


@pytest.mark.parametrize(
    "change",
    [add_file, add_below, add_folder, add_link, train_on, older_record, hostile_record],
)
def test_what_came_to_an_export_later_is_kept(change, tmp_path):
    out = exported(tmp_path / "ablated")
    found = change(out)
    before = listing(tmp_path)
    with pytest.raises(SparksError, match=f"holds '.*{found}', which no export wrote there as"):
        export_model(tiny_model("llama-gqa"), HEADS, out, overwrite=True)
    assert listing(tmp_path) == before


def test_an_export_that_is_the_source_is_not_replaced(tmp_path):
    out = exported(tmp_path / "ablated")
    model = tiny_model("llama-gqa")
    model.config._name_or_path = str(out)
    with pytest.raises(SparksError, match="ablated is the model that is read"):
        export_model(model, HEADS, out, overwrite=True)


def test_the_older_export_stands_where_the_new_one_fails(tmp_path, monkeypatch):
    out = exported(tmp_path / "ablated")
    before = listing(tmp_path)
    whole = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target == out.resolve() and not str(path).endswith(".old"):
            raise OSError(28, "No space left on device")
        return whole(path, target)

    monkeypatch.setattr(export.Path, "replace", full)
    with pytest.raises(SparksError, match=r"cannot write .*ablated .No space left on device."):
        export_model(tiny_model("llama-gqa"), HEADS, out, overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize("mask", [0o027, 0o077, 0o002])
def test_files_and_folder_have_the_modes_that_the_user_wants(mask, tmp_path):
    before = os.umask(mask)
    try:
        out = exported(tmp_path / "new" / "ablated")
    finally:
        os.umask(before)
    for path in [out, out.parent, *out.rglob("*")]:
        full = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == full & ~mask, path


def test_a_copied_export_is_still_one(tmp_path):
    out = shutil.copytree(exported(tmp_path / "ablated"), tmp_path / "copy")
    again = export_model(tiny_model("llama-gqa"), [(1, 0)], out, overwrite=True)
    assert torch.isfinite(torch.tensor(again.difference))
