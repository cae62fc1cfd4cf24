"""Names of diffusers' adapter files: ``unet.….to_q.lora_A.weight``, formerly ``….to_q_lora.down.weight``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weightspace.lora.formats.module import DENOISER, Module
from weightspace.lora.formats.tensor_names import split_role

#: The file that diffusers' ``save_lora_weights`` writes, and its metadata with the configurations of all components.
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"

#: Prefix of a denoiser in ComfyUI's files, with names of the original code if those of diffusers differ; and the same
#: as in single files of models.
ORIGINAL, _ORIGINAL_IN_MODELS = "diffusion_model.", "model.diffusion_model."

_PREFIX = re.compile(r"(?P<part>unet|transformer|(model\.)?diffusion_model|text_encoder(_[23])?)\.(?P<path>.+)")

#: Names of a U-Net's modules, which old files have without a prefix.
_UNET = re.compile(r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|(time|add)_embedding(?![._]\d))([._].+|$)")

#: Names of blocks of diffusers' and Flux's transformers, which some files have without a prefix.
_TRANSFORMER = re.compile(r"((single_)?transformer_blocks|(double|single)_blocks)\.\d+\..+")

#: Names of Wan's modules in the original code, which some files have without a prefix; its text encoder's differ.
_WAN = re.compile(
    r"(vace_)?blocks\.\d+\.((self|cross)_attn\.([qkvo]|[kv]_img|norm_[qk]|norm_k_img)|ffn\.[02]|norm3|(before|after)_proj)"
    r"|(vace_)?patch_embedding|(text|time)_embedding\.[02]|time_projection\.1|img_emb\.proj\.[0134]|head\.head"
)

#: Names of attention projections in old files: the role is part of the module's name.
_OLD = re.compile(r"(?P<front>.+?)(\.processor)?\.to_(?P<which>q|k|v|out)_lora\.(?P<role>(down|up)\.weight)")

#: Components of a module's name that contain underscores, in the models of diffusers and CLIP's text encoders.
_WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks", "temp_attentions"),
    *("proj_in", "proj_out", "proj_mlp", "conv_in", "conv_out", "conv_shortcut", "conv_norm_out", "time_emb_proj"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "to_q", "to_k", "to_v", "to_out", "to_add_out"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "ff_context", "text_model", "self_attn", "q_proj", "k_proj", "v_proj"),
    *("out_proj", "text_projection", "context_embedder", "x_embedder", "time_text_embed", "timestep_embedder"),
    *("text_embedder", "guidance_embedder", "norm1_context", "norm_out", "final_layer_norm"),
)

#: Components without an underscore.
_PLAIN = (
    *("resnets", "attentions", "downsamplers", "upsamplers", "conv", "conv1", "conv2", "norm1", "norm2", "norm3"),
    *("attn", "attn1", "attn2", "ff", "net", "proj", "norm", "linear", "encoder", "layers", "mlp", "fc1", "fc2"),
)

_COMPONENT = re.compile(rf"({'|'.join(sorted((*_WORDS, *_PLAIN), key=len, reverse=True))}|\d+)(?:_|$)")


def diffusers_module(name: str) -> tuple[Module, str] | None:
    """Return the module and the role of a tensor, or None if its name isn't understood.

    Example:
        >>> module, role = diffusers_module("unet.mid_block.attentions.0.attn1.processor.to_out_lora.up.weight")
        >>> module.path, role
        ('mid_block.attentions.0.attn1.to_out.0', 'B')
    """
    old = _OLD.fullmatch(name)
    if old is not None:
        name = f"{old['front']}.{_projection(old['front'], old['which'])}.lora.{old['role']}"
    name = name.replace(".attn.processor.", ".attn.")
    split = split_role(name)
    if split is None:
        return None
    full, role = split
    match = _PREFIX.fullmatch(full)
    if match is None:
        prefixes = ((_UNET, "unet."), (_TRANSFORMER, "transformer."), (_WAN, ""))
        prefix = next((prefix for pattern, prefix in prefixes if pattern.fullmatch(full)), None)
        return None if prefix is None else (Module(DENOISER, full, prefix), role)
    part, path = match["part"], match["path"]
    denoiser = not part.startswith("text_encoder")
    return Module(DENOISER if denoiser else part, path, f"{part}."), role


def _projection(front: str, which: str) -> str:
    """Return the name of an attention projection: those of text encoders have other names."""
    if front.endswith("self_attn"):
        return f"{which}_proj"
    return "to_out.0" if which == "out" else f"to_{which}"


def dotted(flat: str) -> str | None:
    """Return the dotted name of a flattened one in diffusers' spelling, or None if a part of it is unknown.

    Example:
        >>> dotted("down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0")
        'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0'
    """
    parts, start = [], 0
    while start < len(flat):
        match = _COMPONENT.match(flat, start)
        if match is None:
            return None
        parts.append(match[1])
        start = match.end()
    return ".".join(parts)


def diffusers_prefix(component: str, flat: str) -> str:
    """Return the prefix of a component's names: that of a denoiser depends on whether it is a U-Net.

    Args:
        component: as in ``Module``.
        flat: the flattened name of one of its modules.
    """
    if component != DENOISER:
        return f"{component}."
    return "unet." if _UNET.fullmatch(flat) else "transformer."


def original_prefix(modules: Iterable[Module]) -> str | None:
    """Return the prefix of a denoiser whose modules all have names of the original code; None if some don't.

    Args:
        modules: the denoiser's, not a U-Net's. If their prefixes differ, it is that of ComfyUI's files.
    """
    prefixes = {module.prefix if module.prefix or _WAN.fullmatch(module.path) else None for module in modules}
    if not prefixes <= {ORIGINAL, _ORIGINAL_IN_MODELS, ""}:
        return None
    return prefixes.pop() if len(prefixes) == 1 else ORIGINAL
