r"""Names of a model's modules in transformers 5, from the names in its files, as data.

Since 4.52, and for more families since 5.0, transformers renames the modules of some models: the tensor
``encoder.layer.0.attention.attention.query`` in a ViT's file belongs to the module ``layers.0.attention.q_proj``.
Adapters use module names. A rule is a regular expression and the replacement of its first match, applied in order;
module names are fixed points of the rules, so two names refer to the same tensor if the rules make them equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from weightspace.lora.model_config import architecture

#: Projections of attention, old name -> new one.
_PROJECTIONS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))

#: BERT's blocks as used in vision models.
_BLOCKS = ((r"attention\.output\.dense\.", "attention.o_proj."), (r"intermediate\.dense\.", "mlp.fc1."))
_OUTPUT = ((r"output\.dense\.", "mlp.fc2."),)


def _attention(inner: str) -> tuple[tuple[str, str], ...]:
    """Return the rules of projections below ``attention.attention`` or ``attention.self``."""
    return tuple((rf"attention\.{inner}\.{old}\.", f"attention.{new}.") for old, new in _PROJECTIONS)


def _towers(*names: str) -> tuple[tuple[str, str], ...]:
    """Return the rules that put towers below ``model``, and the head of the language model at the top."""
    return (
        (r"^(model\.)?language_model\.lm_head\.", "lm_head."),
        (r"(^|\.)language_model\.model\.", r"\1language_model."),
        (r"(vision_tower|image_tower|video_tower)\.vision_model\.", r"\1."),
        (rf"^(?=({'|'.join(names)})(\.|$))", "model."),
    )


_LLAVA = _towers("language_model", "vision_tower", "multi_modal_projector", "image_newline")
_AUDIO = _towers("language_model", "audio_tower", "multi_modal_projector")
_QWEN_VL = (
    (r"^(?=visual\.|audio_tower\.)", "model."),
    (r"^model\.(?!language_model\.|visual\.|audio_tower\.)", "model.language_model."),
)
_DETR = (
    (r"backbone\.conv_encoder\.", "backbone."),
    (r"(self_attn|encoder_attn)\.out_proj\.", r"\1.o_proj."),
    (r"layers\.(\d+)\.(fc[12])\.", r"layers.\1.mlp.\2."),
)

#: Family -> its rules.
_RULES: Mapping[str, Sequence[tuple[str, str]]] = {
    "vit": ((r"encoder\.layer\.", "layers."), *_attention("attention"), *_BLOCKS, *_OUTPUT),
    "swin": (*_attention("self"), *_BLOCKS, *_OUTPUT),
    "dinov2": (
        *_attention("attention"),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"mlp\.weights_out\.", "mlp.down_proj."),
    ),
    "dinov3": ((r"(?<!model\.)layer\.", "model.layer."),),
    "dinov3_convnext": ((r"(?<!model\.)stages\.", "model.stages."),),
    "segformer": (
        (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
        (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
        *_attention("self"),
        (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"mlp\.dense([12])\.", r"mlp.fc\1."),
        (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
    ),
    "detr": _DETR,
    "rt_detr": (*_DETR, (r"encoder\.encoder\.(\d+)\.layers\.", r"encoder.aifi.\1.layers.")),
    "llava": _LLAVA,
    "video_llava": _towers("language_model", "image_tower", "video_tower", "multi_modal_projector"),
    "fuyu": _towers("language_model", "vision_embed_tokens"),
    "mllama": _towers("language_model", "vision_model", "multi_modal_projector"),
    "qwen2_audio": _AUDIO,
    "qwen2_vl": _QWEN_VL,
    "omni_thinker": ((r"^thinker\.", ""), *_QWEN_VL),
    "gpt_neox": ((r"^embed_out\.", "lm_head."),),
    "mixtral": ((r"\.block_sparse_moe\.", ".mlp."),),
    "phimoe": ((r"\.block_sparse_moe\.", ".mlp."), (r"\.mlp\.gate\.", ".mlp.router.")),
    "granitemoe": ((r"\.router\.layer\.", ".router."),),
    "nemotron_h": ((r"^backbone\.", "model."),),
}

#: Model type -> family. A type listed neither here nor in ``UNKNOWN`` uses the names of its files.
_FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("vit", "deit", "beit", "ijepa", "vit_mae", "vivit", "audio-spectrogram-transformer"), "vit"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "dinov2"),
    **dict.fromkeys(("rt_detr", "rt_detr_v2"), "rt_detr"),
    **dict.fromkeys(("detr", "deformable_detr"), "detr"),
    **dict.fromkeys(
        (
            *("llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava", "paligemma", "gemma3", "aria"),
            *("aya_vision", "got_ocr2", "internvl", "mistral3"),
        ),
        "llava",
    ),
    **dict.fromkeys(
        ("qwen2_audio", "voxtral", "voxtral_realtime", "audioflamingo3", "glmasr", "musicflamingo"), "qwen2_audio"
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "qwen2_vl"),
    **dict.fromkeys(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), "omni_thinker"),
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), "mixtral"),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), "granitemoe"),
    **{
        name: name
        for name in ("swin", "segformer", "video_llava", "fuyu", "mllama", "gpt_neox", "phimoe", "nemotron_h")
    },
    "dinov3_vit": "dinov3",
    "dinov3_convnext": "dinov3_convnext",
}

#: Families whose class without a head lacks the ``model.`` that the other names begin with.
_BELOW_MODEL = ("llava", "video_llava", "fuyu", "mllama", "qwen2_audio", "qwen2_vl", "omni_thinker")

#: Types whose modules are renamed too, by unknown rules.
UNKNOWN = frozenset(
    (
        *("altclip", "aria_text", "axk2", "bailing_hybrid", "cohere_asr", "colpali", "conditional_detr"),
        *("cosmos3_edge", "cosmos3_omni", "csm", "d_fine", "deepseek_ocr2", "deepseek_v4", "depth_pro"),
        *("dory", "dots3_note", "emu3", "ernie4_5_vl_moe", "exaone", "glm5_next", "glm5_next_text"),
        *("gradium_phonon_tts", "granite_speech", "granite_speech_plus", "grounding-dino", "gte", "hrm_text"),
        *("hunyuan_vl", "hy_v3", "hy_v4", "hy_v4_vl", "hy_v4_vl_text", "hyperclovax_vision_v2", "inkling2"),
        *("inkling2_loop", "inkling2_loop_text", "inkling2_text", "inkling_mm_model", "jina_embeddings_v3"),
        *("kimi_k25", "kimi_linear", "kyutai_speech_to_text", "laguna", "lara_mini", "lfm3", "lfm3_vl"),
        *("lfm3_vl_vision", "lw_detr", "mask2former", "maskformer", "mimi", "mimi_decoder", "mimi_encoder"),
        *("minimax_m3_vl", "mistral_large4", "mistral_large4_text", "mm-grounding-dino", "molmo2"),
        *("molmo2_text", "nemo_speechlm", "nemotron_h_omni", "nomic_bert", "olmo_hybrid", "oneformer"),
        *("paddleocr_vl", "pi0", "pixio", "pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4"),
        *("qianfan_ocr", "qwen2_5_omni", "qwen4_exp_text", "radio", "rf_detr", "sam3_tracker"),
        *("sam3_tracker_video", "sam3_video", "sapiens2", "sarvam_moe", "shieldgemma2", "step3p7"),
        *("t5gemma2", "t5gemma2_encoder", "timesfm2_5", "tipsv2", "tipsv2_dpt", "tipsv2_text_model"),
        *("tipsv2_vision_model", "ultrabert", "ultravbert", "unlimited_ocr", "vibevoice_asr", "vit_msn"),
        *("zoedepth",),
    )
)

#: Sub-model keys of a configuration -> names of their modules in the whole model.
_PARTS: Mapping[str, str] = {
    "text_config": r"(?:.*?\.)??(?:language_model|text_model)\.",
    "vision_config": r"(?:.*?\.)??(?:vision_tower|vision_model|image_tower|video_tower)\.",
    "audio_config": r"(?:.*?\.)??audio_tower\.",
    "backbone_config": r"(?:.*?\.)??backbone\.",
    "encoder": r"encoder\.",
    "decoder": r"decoder\.",
}

#: Standalone towers of CLIP-like models, which files store under the name they have in the whole model.
_TOWER = re.compile(r".*(CLIP|Clip|Siglip\d?|MetaClip2|X?CLIPSeg)(Vision|Text)Model")


@dataclass(frozen=True)
class Names:
    """Names of a model's tensors in files and in transformers.

    Attributes:
        rules: scope (a regular expression for the prefix of a name, or ""), pattern and replacement, in order.
        bare: the class is the model without a head, whose names don't begin with ``model.``.
    """

    rules: tuple[tuple[re.Pattern[str] | None, re.Pattern[str], str], ...] = ()
    bare: bool = False

    def module(self, name: str) -> str:
        """Return the name of a tensor in transformers, from its name in a file or in transformers."""
        for scope, pattern, replacement in self.rules:
            front = scope.match(name) if scope is not None else None
            if scope is not None and front is None:
                continue
            start = front.end() if front is not None else 0
            name = name[:start] + pattern.sub(replacement, name[start:], count=1)
        return name.removeprefix("model.") if self.bare else name


def names_of(config: Mapping[str, Any]) -> Names:
    """Return the naming rules of a model.

    Args:
        config: configuration of a transformers model (``config.json``); an empty one changes no name.
    """
    rules = list(_family_rules(config, ""))
    for key, scope in _PARTS.items():
        part = config.get(key)
        if isinstance(part, Mapping):
            rules += _family_rules(part, scope)
    if _TOWER.fullmatch(architecture(config)):
        rules.append((None, re.compile(r"^(vision|text)_model\."), ""))
    family = _FAMILIES.get(str(config.get("model_type")), "")
    return Names(tuple(rules), bare=family in _BELOW_MODEL and architecture(config).endswith("Model"))


def is_renamed(config: Mapping[str, Any]) -> bool:
    """Return whether transformers 5 renames the modules of a model by unknown rules."""
    parts = [config, *(config.get(key) for key in _PARTS)]
    return any(isinstance(part, Mapping) and str(part.get("model_type")) in UNKNOWN for part in parts)


def all_names() -> Iterator[Names]:
    """Yield the naming rules of every family, for a model without a configuration."""
    for family in _RULES:
        yield Names(_compiled(family, ""))


def _family_rules(
    config: Mapping[str, Any], scope: str
) -> tuple[tuple[re.Pattern[str] | None, re.Pattern[str], str], ...]:
    """Return the rules of a model's family, below a scope."""
    family = _FAMILIES.get(str(config.get("model_type")))
    return () if family is None else _compiled(family, scope)


@cache
def _compiled(family: str, scope: str) -> tuple[tuple[re.Pattern[str] | None, re.Pattern[str], str], ...]:
    """Return the rules of a family, compiled."""
    front = re.compile(scope) if scope else None
    return tuple((front, re.compile(pattern), replacement) for pattern, replacement in _RULES[family])
