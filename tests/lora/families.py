"""Tiny random models of transformers' families, as transformers builds and saves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 32, **VOCABULARY}
IMAGES = {**SIZES, "image_size": 8, "patch_size": 4}
BERT = {**SIZES, "vocab_size": 32, "max_position_embeddings": 32}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_heads": 4, "vocab_size": 32}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}

#: Name -> class, configuration, its fields.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**TEXT, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**TEXT, "head_dim": 4}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, **VOCABULARY},
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**SIZES, "max_position_embeddings": 32, "tie_word_embeddings": True, **VOCABULARY},
    ),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert_masked": ("BertForMaskedLM", "BertConfig", BERT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", BERT),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGES),
    "dinov2": ("Dinov2Model", "Dinov2Config", IMAGES),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**BERT, "max_position_embeddings": 8}, "vision_config": IMAGES, "projection_dim": 8},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **IMAGES, "num_hidden_layers": 3},
            "image_token_index": 3,
        },
    ),
    "esm": ("EsmForMaskedLM", "EsmConfig", {**BERT, "pad_token_id": 0, "mask_token_id": 3}),
    "git": ("GitForCausalLM", "GitConfig", {**TEXT, "vision_config": IMAGES}),
    "image_caption": (
        "VisionEncoderDecoderModel",
        "VisionEncoderDecoderConfig",
        {
            "encoder": {"model_type": "vit", **IMAGES},
            "decoder": {
                **{"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, **VOCABULARY},
                **{"add_cross_attention": True, "is_decoder": True},
            },
        },
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**TEXT, "num_local_experts": 3}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**TEXT, **EXPERTS, "head_dim": 4, "num_experts": 3}),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        {
            **TEXT,
            **EXPERTS,
            "head_dim": 4,
            "n_routed_experts": 3,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}


def build(name: str, transformers: Any, seed: int = 0) -> Any:
    """Return a model of a family, in evaluation mode."""
    model, config, fields = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, model)(getattr(transformers, config)(**fields)).eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Return what a model of a family is called with."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(8, 32, (2, 6), generator=generator)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    if name in ("vit", "dinov2", "swin"):
        return {"pixel_values": images}
    if name == "image_caption":
        return {"decoder_input_ids": tokens, "pixel_values": images}
    if name in ("clip", "git"):
        return {"input_ids": tokens, "pixel_values": images}
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if name == "t5" else {})


def output(model: Any, name: str) -> torch.Tensor:
    """Return what a model makes of its inputs."""
    with torch.no_grad():
        made = model(**inputs(name))
    found = (getattr(made, key, None) for key in ("logits", "logits_per_image", "last_hidden_state"))
    return next(tensor for tensor in found if tensor is not None)


def fine_tuned(model: Any, chosen: Callable[[str], bool] = lambda name: True) -> Any:
    """Return a copy of a model whose matrices are changed, those that are tied together."""
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    copy.tie_weights()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if parameter.dim() >= 2 and (name.endswith("weight") or "experts" in name) and chosen(name):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return copy
