"""Modules of a pipeline's components as adapter files name them, in a form in which all spellings are equal.

kohya flattens names (``down_blocks_0_attentions_0_proj_in``), and follows either diffusers or the original Stable
Diffusion code (LDM, ``input_blocks_1_1_proj_in``). Names are compared flattened, with those of LDM's U-Nets replaced by
diffusers', and those of OpenCLIP with transformers'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

#: Formats of adapters, in which they are read and written.
ADAPTER_FORMATS = ("peft", "kohya", "diffusers")

#: The network that removes the noise: a U-Net or a transformer.
DENOISER = "denoiser"


@dataclass(frozen=True)
class Module:
    """A module of a model or of a component of a pipeline.

    Attributes:
        component: ``denoiser``, ``text_encoder``, ``text_encoder_2``, …; empty if the file doesn't say.
        path: its name inside the component, as written.
        prefix: the part of the written name that stands for the component, with its separator: ``lora_te1_``,
            ``unet.``.
    """

    component: str
    path: str
    prefix: str

    @property
    def name(self) -> str:
        """Its whole name in the file."""
        return f"{self.prefix}{self.path}"

    @property
    def key(self) -> tuple[str, str]:
        """The component and the name to compare."""
        return self.component, canonical(self.path)


#: Parts of LDM's U-Nets -> diffusers' names, flattened; those inside residual blocks and of the two ends.
_BLOCKS = (
    (r"^input_blocks_0_0$", "conv_in"),
    (r"^out_0$", "conv_norm_out"),
    (r"^out_2$", "conv_out"),
    (r"^time_embed_0$", "time_embedding_linear_1"),
    (r"^time_embed_2$", "time_embedding_linear_2"),
    (r"^label_emb_0_0$", "add_embedding_linear_1"),
    (r"^label_emb_0_2$", "add_embedding_linear_2"),
    (r"^middle_block_0_", "mid_block_resnets_0_"),
    (r"^middle_block_1_", "mid_block_attentions_0_"),
    (r"^middle_block_2_", "mid_block_resnets_1_"),
)
#: OpenCLIP's text encoders -> CLIP's in transformers; queries, keys and values are one parameter, ``in_proj_weight``.
_OPEN_CLIP = (
    (r"^transformer_resblocks_(\d+)_attn(?=_|$)", r"encoder_layers_\1_self_attn"),
    (r"^transformer_resblocks_(\d+)_mlp_c_fc$", r"encoder_layers_\1_mlp_fc1"),
    (r"^transformer_resblocks_(\d+)_mlp_c_proj$", r"encoder_layers_\1_mlp_fc2"),
)
_RESNET = (
    ("in_layers_0", "norm1"),
    ("in_layers_2", "conv1"),
    ("emb_layers_1", "time_emb_proj"),
    ("out_layers_0", "norm2"),
    ("out_layers_3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_NUMBERED = re.compile(r"(input|output)_blocks_(\d{1,3})_([01]|2(?=_conv$))_(.+)")
_RESNETS = re.compile(r"(.+_resnets_\d+_)(.+)")


@cache
def canonical(path: str) -> str:
    """Return a module's name in the form to compare: flattened, as diffusers has it.

    Example:
        >>> canonical("input_blocks.4.1.transformer_blocks.0.attn1.to_q")
        'down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q'
        >>> canonical("text_model.encoder.layers.0.mlp.fc1")
        'encoder_layers_0_mlp_fc1'
    """
    flat = path.replace(".", "_").removeprefix("text_model_")
    for pattern, replacement in (*_BLOCKS, *_OPEN_CLIP):
        flat = re.sub(pattern, replacement, flat)
    match = _NUMBERED.fullmatch(flat)
    if match is not None and int(match[2]) + (match[1] == "output"):
        flat = _numbered(match[1] == "input", int(match[2]), int(match[3]), match[4])
    inside = _RESNETS.fullmatch(flat)
    return flat if inside is None else f"{inside[1]}{dict(_RESNET).get(inside[2], inside[2])}"


def _numbered(down: bool, number: int, index: int, rest: str) -> str:
    """Return diffusers' name of a module in a numbered block of a U-Net with two residual blocks per resolution."""
    block, place = divmod(number - 1 if down else number, 3)
    name = "down_blocks" if down else "up_blocks"
    if down and (index, rest) == (0, "op"):
        return f"down_blocks_{block}_downsamplers_0_conv"
    if not down and index in (1, 2) and rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    kind = ("resnets", "attentions")[min(index, 1)]
    return f"{name}_{block}_{kind}_{place}_{rest}"
