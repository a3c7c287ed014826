"""Models and tokenizers from a folder or the hub, in the type that their files have.

Whatever fails is told as one `SparksError` that names what was to be loaded; that weights are
missing is a failure too. An adapter folder is loaded on its base model, with its adapter openly
around it (PEFT). Python code that comes with a model runs only where the caller says so: without a
word transformers would ask for it on the terminal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sparks.ground.errors import SparksError, reason

Autocast = Literal["no", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def split_revision(given: str) -> tuple[str, str | None]:
    """`owner/name@revision` as name and revision; a folder that exists keeps its `@`."""
    if Path(given).exists() or "@" not in given:
        return given, None
    name, _, revision = given.rpartition("@")
    return name, revision


def device_of(device: str) -> str:
    """`auto` as `cuda` where there is one, else `cpu`; another name as it is."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def load_tokenizer(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> Any:
    """The model's own tokenizer.

    Raises:
        SparksError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _naming(name, revision):
        return AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )


def load_model(
    name: str,
    revision: str | None = None,
    *,
    device: str | None = "auto",
    autocast: Autocast = "no",
    dtype: str | torch.dtype | None = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal or vision-language model, in evaluation mode.

    Args:
        name: a folder, or a hub id.
        revision: of a hub id.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...; None leaves it where loading puts it.
        autocast: run it as a trainer with `bf16=True` or `fp16=True` does.
        dtype: of its weights; `auto` is that of its files.
        attention: the kernel, as `attn_implementation`; None takes the usual one.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        SparksError: it cannot be loaded, or weights are missing.
    """
    kind = {
        "dtype": dtype,
        "attn_implementation": attention,
        "trust_remote_code": trust_remote_code,
    }
    with _naming(name, revision):
        # transformers loads an adapter folder too, but hides the adapter; peft wraps it openly.
        is_adapter = (Path(name) / "adapter_config.json").exists()
        model = _adapted(name, kind) if is_adapter else _causal(name, revision, kind)
        if device is not None:
            model = model.to(device_of(device))
    if autocast != "no":
        where = next(model.parameters()).device
        _run_under_autocast(model, where, _AUTOCAST[autocast])
    return model


def _causal(name: str, revision: str | None, kind: Mapping[str, Any]) -> Any:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    trust = kind["trust_remote_code"]
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    sees = sees and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(name, revision=revision, output_loading_info=True, **kind)
    model, info = loaded
    if missing := set(info["missing_keys"]):  # transformers fills them with random numbers
        raise SparksError(
            f"checkpoint {name} lacks {len(missing)} weights, such as {min(missing)}: its files "
            f"are incomplete, save or download it again"
        )
    return model


def _adapted(name: str, kind: Mapping[str, Any]) -> Any:
    """The adapter of a folder around its base model, which has room for the folder's tokens."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(name)
    model = _causal(config.base_model_name_or_path, config.revision, kind)
    if (Path(name) / "tokenizer_config.json").exists():
        trust = kind["trust_remote_code"]
        tokens = len(load_tokenizer(name, trust_remote_code=trust))
        if tokens > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(tokens)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        return PeftModel.from_pretrained(model, name)


@contextmanager
def _naming(name: str, revision: str | None) -> Iterator[None]:
    """Whatever fails inside is told as one `SparksError` that names the checkpoint."""
    try:
        yield
    except SparksError:
        raise
    except Exception as error:  # files, the hub and devices fail in many classes
        whole = name + (f"@{revision}" if revision else "")
        if "trust_remote_code" in str(error):
            raise SparksError(
                f"cannot load checkpoint {whole}: it comes with Python code of its own; read it, "
                f"and where you trust it give --trust-remote-code (trust_remote_code=True)"
            ) from error
        text = reason(error)[:300]
        missing = "" if Path(name).exists() else "no such folder here; as a hub id, "
        raise SparksError(
            f"cannot load checkpoint {whole} ({missing}{type(error).__name__}: {text}): give a "
            f"folder with a model and its tokenizer, or a hub id that can be reached"
        ) from error


def _run_under_autocast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Wrap `forward` as accelerate does in mixed precision: float32 weights, narrow blocks."""
    from accelerate.utils import convert_outputs_to_fp32

    forward = torch.autocast(device_type=device.type, dtype=dtype)(model.forward)
    model.forward = convert_outputs_to_fp32(forward)
