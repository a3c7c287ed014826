"""Which `model_type`s of transformers are proved by the tests, and which are refused and why.

A type in neither list is tried: `anatomy_proof` takes it where its parts add up.
`tests/models/test_families.py` holds both lists to what transformers ships.
"""

from __future__ import annotations

from typing import Any

CHECKED_ARCHITECTURES: tuple[str, ...] = (
    "apertus", "arcee", "aria", "aria_text", "aya_vision", "cohere", "cohere2", "cohere2_moe",
    "cohere2_vision", "cohere_compass_text", "cwm", "deepseek_vl", "dots1", "emu3", "ernie4_5",
    "ernie4_5_moe", "exaone4", "exaone4_5", "exaone_moe", "falcon", "flex_olmo", "flint",
    "fuyu", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4v_moe",
    "got_ocr2", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite",
    "granite_docling", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared",
    "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "idefics2",
    "idefics3", "internlm3", "internvl", "iquestcoder", "jais2", "kolibri1", "lighton_ocr",
    "llama", "llama4", "llama4_text", "llava", "llava_next", "llava_onevision", "mellum",
    "minimax_m2", "ministral", "ministral3", "mistral", "mistral3", "mixtral", "nemotron",
    "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phi4_multimodal", "phimoe",
    "qianfan_ocr", "qwen2", "qwen2_5_vl", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe",
    "qwen3_vl", "qwen3_vl_moe", "seed_oss", "shieldgemma2", "smollm3", "smolvlm", "solar_open",
    "stablelm", "starcoder2", "vaultgemma", "video_llama_3", "video_llava", "vipllava",
)  # fmt: skip
"""`model_type`s whose scores the test suite compares with exact references."""

REFUSED: dict[str, tuple[str, ...]] = {
    "it is an encoder, or a decoder beside one": (
        "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot",
        "blenderbot-small", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "git",
        "marian", "mbart", "megatron-bert", "mllama", "moshi", "musicgen", "musicgen_melody",
        "mvp", "pegasus", "plbart", "prophetnet", "reformer", "rembert", "roberta",
        "roberta-prelayernorm", "roc_bert", "roformer", "trocr", "whisper", "xlm",
        "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
    ),
    "its layers are not alike, or some have no attention heads": (
        "bailing_hybrid", "bamba", "blt", "falcon_h1", "falcon_mamba", "gemma4",
        "gemma4_assistant", "gemma4_text", "gemma4_unified", "gemma4_unified_assistant",
        "gemma4_unified_text", "granitemoehybrid", "inkling2_text", "inkling_text", "jamba",
        "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "mimo_v2_flash", "minimax", "nemotron_h",
        "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text",
        "qwen3_next", "qwen4_exp", "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm",
        "zamba", "zamba2", "zaya",
    ),
    "its queries, keys or values come through a latent (MLA)": (
        "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4",
        "dots3_note", "dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "hy_v4", "kimi_linear",
        "longcat_flash", "minicpm3", "youtu",
    ),
    "its heads are gated, chosen, or mixed before they write": (
        "afmoe", "bitnet", "diffllama", "doge", "jetmoe", "laguna", "minimax_m3_vl_text",
    ),
    "its residual stream is more than a sum of what heads and MLPs write": (
        "beam", "bloom", "gemma3n", "gemma3n_text", "hrm_text", "nanochat",
    ),
    "nobody has named its parts yet": (
        "biogpt", "codegen", "ctrl", "dbrx", "gpt_neox_japanese", "modernbert-decoder",
        "moss_transcribe_diarize", "mpt", "openai-gpt", "opt", "xglm",
    ),
}  # fmt: skip
"""Reason -> `model_type`s that are refused for it."""

WORKING = "README.md lists the architectures that work, `sparks check MODEL` tries one"
"""The way out of a refusal."""


def why_refused(model_type: str) -> str | None:
    """Why an architecture is refused on purpose; None where it is not."""
    return next((reason for reason, types in REFUSED.items() if model_type in types), None)


def text_config(config: Any) -> Any:
    """The config of a model's decoder: its own, or that of a language tower."""
    get = getattr(config, "get_text_config", None)
    return get(decoder=True) if callable(get) else config


def context_of(config: Any) -> int | None:
    """Tokens that fit into a model, by its config; None where it does not say."""
    return getattr(text_config(config), "max_position_embeddings", None)
