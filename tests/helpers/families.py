"""A tiny random model of every `model_type` that works: small numbers under all names of a size."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from models import VOCAB, randomise
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VISION = (
    "aria", "aya_vision", "cohere2_vision", "deepseek_vl", "exaone4_5", "gemma3", "glm4v_moe",
    "got_ocr2", "granite_docling", "idefics2", "idefics3", "internvl", "lighton_ocr", "llama4",
    "llava", "llava_next", "llava_onevision", "mistral3", "qianfan_ocr", "qwen2_5_vl",
    "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "shieldgemma2", "smolvlm", "video_llama_3",
    "video_llava", "vipllava",
)  # fmt: skip
"""Types with a language tower, which is run on text."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, older": ("falcon", {"multi_query": False}),
    "falcon, 40B": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, in sequence": ("falcon", {"multi_query": False, "parallel_attn": False}),
    "gpt_neox, in sequence": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_bigcode, all heads": ("gpt_bigcode", {"multi_query": False}),
    "stablelm, side by side": ("stablelm", {"use_parallel_residual": True}),
    "hyperclovax, norms behind": (
        "hyperclovax", {"use_post_norm": True, "residual_multiplier": 0.7},
    ),
    "granite, scaled": (
        "granite",
        {"residual_multiplier": 0.6, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    ),
    "cohere, norms of heads": ("cohere", {"use_qk_norm": True}),
}  # fmt: skip
"""Name -> type and settings: what one type may be in another way."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 40,
    "intermediate_size_mlp": 40,
    "n_inner": 40,
    "ffn_dim": 40,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": 5,
    "window_size": 5,
    "attention_chunk_size": 5,
    "attention_types": [[["global", "local"], 1]],
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "out_hidden_size": 32,
    "embed_dim": 16,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "pixel_shuffle_ratio": 0.5,
    "projection_dim": 16,
    "projector_input_dim": 16,
    "projector_output_dim": 32,
    "vision_output_dim": 32,
    # SAM, the tower of GOT-OCR2.
    "output_channels": 8,
    "global_attn_indexes": [0],
    "mlp_dim": 16,
}
_IDS = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "image_token_id": VOCAB - 1,
    "video_token_id": VOCAB - 2,
}


def tiny_family(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> nn.Module:
    """A random model of a `model_type` or a variant, in evaluation mode; `sizes` of its decoder."""
    kind, differences = VARIANTS.get(name, (name, {}))
    auto = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    model = auto.from_config(_config(kind, differences, sizes))
    randomise(model, seed)
    with warnings.catch_warnings():
        # Llama 4's eyes turn by complex numbers, which text does not meet.
        warnings.filterwarnings("ignore", "Casting complex values to real")
        return model.to(dtype).eval()


def _config(kind: str, differences: dict[str, Any], sizes: dict[str, Any]) -> PreTrainedConfig:
    usual = CONFIG_MAPPING[kind]()
    if kind not in VISION:
        settings = _small(usual, _SIZES) | _special(kind, usual) | differences | sizes
        return CONFIG_MAPPING[kind](**settings)
    tower, eyes = usual.get_text_config(decoder=True), usual.vision_config
    text = {"model_type": tower.model_type} | _small(tower, _SIZES) | sizes
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        text["rope_parameters"] = {"rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    if kind == "glm4v_moe":  # turns half a head
        text["rope_parameters"] = {"rope_theta": 1e4, "mrope_section": [1, 1, 0]}
    vision = {"model_type": eyes.model_type} | _small(eyes, _VISION_SIZES)
    ids = {key: value for key, value in _IDS.items() if hasattr(usual, key)}
    return CONFIG_MAPPING[kind](text_config=text, vision_config=vision, **ids)


def _special(kind: str, usual: Any) -> dict[str, Any]:
    """What a type needs beside small sizes."""
    if kind == "cohere_compass_text":
        turns = {"rope_type": "default", "rope_theta": 1e4}
        return {"rope_parameters": {"sliding_attention": turns, "full_attention": turns}}
    if kind == "phi4_multimodal":
        ears = _small(usual.audio_config, _VISION_SIZES)
        ears |= {"num_blocks": 1, "ext_pw_out_channel": 16, "nemo_conv_channels": 16}
        eyes = _small(usual.vision_config, _VISION_SIZES) | {"feature_layer": -1}
        return {"audio_config": ears, "vision_config": eyes}
    if kind == "fuyu":
        text = {"model_type": "persimmon"} | _small(usual.text_config, _SIZES)
        return {"text_config": text, "patch_size": 4, "image_token_id": VOCAB - 1}
    if kind == "emu3":
        text = {"model_type": "emu3_text_model"} | _small(usual.text_config, _SIZES)
        eyes = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
        eyes |= {"codebook_size": 8, "embed_dim": 4, "latent_channels": 4, "hidden_size": 32}
        words = {"<image>": VOCAB - 1}
        return {"text_config": text, "vq_config": eyes, "vocabulary_map": words}
    return {}


def _small(usual: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of `sizes` that a config has; of kinds of layers, one each."""
    known = {
        name: value
        for name, value in sizes.items()
        if hasattr(usual, name) and not isinstance(getattr(type(usual), name, None), property)
    }
    if kinds := getattr(usual, "layer_types", None):
        known["layer_types"] = sorted({*kinds}, reverse=True)[:2] * (2 if len({*kinds}) == 1 else 1)
    return known
