"""Answers of a teacher to the training prompts, for off-policy distillation: written once, reused.

1. The teacher answers the prompts in batches; every batch is appended to `FILE.partial`, so that a
   stopped run goes on where it was.
2. The first line names teacher, data and sampling; traces of others are refused, never mixed.
3. When all prompts are answered the file takes its name. Wrong answers stay in it, marked, and are
   left out when it is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import GenerationConfig

from sparks.ground.errors import SparksError
from sparks.models.anatomy import own_settings

from .rewards import is_right


def read_traces(path: Path, header: dict[str, Any]) -> Dataset:
    """Prompts with the teacher's right answers.

    Raises:
        SparksError: the file is damaged, of another teacher or data, or holds no right answer.
    """
    traces = _lines(path, header)
    right = [trace for trace in traces if trace["right"]]
    if not right:
        raise SparksError(f"{path}: none of the teacher's {len(traces)} answers is right")
    return Dataset.from_list(
        [{key: trace[key] for key in ("prompt", "completion")} for trace in right]
    )


def write_traces(
    path: Path,
    header: dict[str, Any],
    rows: Dataset,
    teacher: Any,
    tokenizer: Any,
    *,
    batch_size: int,
) -> None:
    """Let the teacher answer `rows` (`prompt`, `solution`) as `header` says; goes on if stopped.

    Raises:
        SparksError: a partial file is damaged, or of another teacher or data.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    if partial.is_file() and partial.stat().st_size:
        _drop_half_line(partial)
        done = len(_lines(partial, header))
    else:
        partial.write_text(json.dumps(header) + "\n", "utf-8")
    sampling = GenerationConfig(
        max_new_tokens=header["max_new_tokens"],
        do_sample=True,
        temperature=header["temperature"],
        top_p=header["top_p"],
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    right = 0
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(rows), initial=done, desc="teacher's traces", unit="prompt") as bar,
    ):
        for start in range(done, len(rows), batch_size):
            part = rows.select(range(start, min(start + batch_size, len(rows))))
            # A seed a batch: what was written before a stop does not change what comes after.
            torch.manual_seed(header["seed"] + start)
            texts = answers(teacher, tokenizer, part["prompt"], sampling)
            for row, text in zip(part, texts, strict=True):
                trace = {
                    "prompt": row["prompt"],
                    "completion": [{"role": "assistant", "content": text}],
                    "right": is_right(text, row["solution"]),
                }
                right += trace["right"]
                file.write(json.dumps(trace, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(part))
            bar.set_postfix_str(f"{right / (start + len(part) - done):.0%} right")
    partial.replace(path)


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: Any, sampling: GenerationConfig) -> list[str]:
    """What the model writes after each chat prompt."""
    asked = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in prompts
    ]
    width = max(map(len, asked))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in asked], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in asked], device=model.device
    )
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=sampling, **own_settings(model)
    )
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)


def _lines(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        found, *traces = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SparksError(f"{path}: no file of traces ({error}); delete it") from error
    for key, value in header.items():
        if found.get(key) != value:
            raise SparksError(
                f"{path} holds traces with {key}={found.get(key)!r}, now it is {value!r}: delete "
                f"it, or name another file with --traces"
            )
    return traces


def _drop_half_line(path: Path) -> None:
    """What a killed process wrote last may have no end."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
