"""Tiny chat models with a thinking mode, saved as folders. None was trained to think."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from think_templates import QWEN3
from tokenizers_made_here import byte_level_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def save_thinking_model(
    folder: Path, *, chat: str | None = QWEN3, bos: bool = False, says: str = ""
) -> str:
    """A random Llama, or one that writes the first token of `says` whatever it is asked."""
    tokenizer = byte_level_tokenizer(chat=chat, bos=bos)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=1.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if says:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
            model.lm_head.weight[tokenizer(says)["input_ids"][0]] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_problems(path: Path, count: int = 12) -> str:
    """Questions in a JSONL file."""
    lines = (json.dumps({"problem": f"What is {n} + 2?"}) + "\n" for n in range(count))
    path.write_text("".join(lines))
    return str(path)
