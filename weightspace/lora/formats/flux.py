"""Modules of Flux: the original names, which kohya's files have, and those of diffusers, which splits fused matrices.

The original code computes queries, keys and values by one matrix, and in single blocks also the first layer of the MLP:
their outputs follow each other. ``x_embedder`` and the like are the same matrices under other names. The last norm's
``adaLN_modulation`` has shift and scale in another order in diffusers; it has no counterpart here.

Source: Flux, https://github.com/black-forest-labs/flux/blob/main/src/flux/model.py, and diffusers'
``FluxTransformer2DModel``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

#: Sizes of the outputs of a fused matrix, relative to the width of the model.
_THIRDS, _WITH_MLP = (1, 1, 1), (1, 1, 1, 4)


class FluxParts(NamedTuple):
    """The matrices of diffusers that one original matrix is: their names, and relative numbers of rows."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]


#: Original names inside a double block -> diffusers' names inside ``transformer_blocks``.
_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}

#: The same for single blocks and ``single_transformer_blocks``.
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}

#: The same outside of the blocks.
_OUTER: Mapping[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}

#: Blocks: original name, diffusers' name, and the modules inside.
_BLOCKS = (("double_blocks", "transformer_blocks", _DOUBLE), ("single_blocks", "single_transformer_blocks", _SINGLE))

_ORIGINAL = re.compile(r"(?P<blocks>double_blocks|single_blocks)_(?P<number>\d{1,3})_(?P<rest>.+)")
_DIFFUSERS = re.compile(r"(?P<blocks>single_transformer_blocks|transformer_blocks)_(?P<number>\d{1,3})_(?P<rest>.+)")


#: Original module -> rows of its matrix and columns, relative to the width of the model; those of other models differ.
_RATIOS: Mapping[str, tuple[int, int]] = {
    **{f"{side}_attn_qkv": (3, 1) for side in ("img", "txt")},
    **{f"{side}_attn_proj": (1, 1) for side in ("img", "txt")},
    **{f"{side}_mlp_0": (4, 1) for side in ("img", "txt")},
    **{f"{side}_mlp_2": (1, 4) for side in ("img", "txt")},
    **{f"{side}_mod_lin": (6, 1) for side in ("img", "txt")},
    **{"linear1": (7, 1), "linear2": (1, 5), "modulation_lin": (3, 1)},
}


def fits_flux(flat: str, shape: tuple[int, ...]) -> bool:
    """Return whether a matrix of an original module has the proportions that it has in Flux; biases always do.

    Args:
        flat: flattened name of the original module.
        shape: shape of its matrix or bias.
    """
    match = _ORIGINAL.fullmatch(flat)
    if match is None or len(shape) < 2:
        return True
    rows, columns = _RATIOS.get(match["rest"], (0, 0))
    return rows * shape[1] == columns * shape[0] and rows > 0


def is_flux_original(flat: str) -> bool:
    """Return whether a flattened name is one of a block of the original Flux."""
    return _ORIGINAL.fullmatch(flat) is not None


def diffusers_parts(flat: str) -> FluxParts | None:
    """Return the modules of diffusers that an original module is, or None if it has no counterpart.

    Args:
        flat: flattened name of the original module.

    Example:
        >>> diffusers_parts("double_blocks_3_txt_attn_proj").names
        ('transformer_blocks.3.attn.to_add_out',)
    """
    match = _ORIGINAL.fullmatch(flat)
    if match is None:
        outer = next((new for old, new in _OUTER.items() if old.replace(".", "_") == flat), None)
        return None if outer is None else FluxParts((outer,), (1,))
    blocks, inside = next((new, table) for old, new, table in _BLOCKS if old == match["blocks"])
    names = next((names for old, names in inside.items() if old.replace(".", "_") == match["rest"]), None)
    if names is None:
        return None
    return FluxParts(tuple(f"{blocks}.{match['number']}.{name}" for name in names), _sizes(len(names)))


class FluxPart(NamedTuple):
    """A matrix of diffusers as a part of an original one: its name, the place of the part, and all relative sizes."""

    name: str
    place: int
    sizes: tuple[int, ...]


def original_part(flat: str) -> FluxPart | None:
    """Return the part of an original module that a module of diffusers is, or None if it has no counterpart.

    Args:
        flat: flattened name of the module of diffusers.

    Example:
        >>> original_part("single_transformer_blocks_0_proj_mlp")
        FluxPart(name='single_blocks.0.linear1', place=3, sizes=(1, 1, 1, 4))
    """
    match = _DIFFUSERS.fullmatch(flat)
    if match is None:
        outer = next((old for old, new in _OUTER.items() if new.replace(".", "_") == flat), None)
        return None if outer is None else FluxPart(outer, 0, (1,))
    blocks, inside = next((old, table) for old, new, table in _BLOCKS if new == match["blocks"])
    for old, names in inside.items():
        flattened = [name.replace(".", "_") for name in names]
        if match["rest"] in flattened:
            place = flattened.index(match["rest"])
            return FluxPart(f"{blocks}.{match['number']}.{old}", place, _sizes(len(names)))
    return None


def _sizes(parts: int) -> tuple[int, ...]:
    """Return the relative sizes of so many parts."""
    return {1: (1,), 3: _THIRDS, 4: _WITH_MLP}[parts]
