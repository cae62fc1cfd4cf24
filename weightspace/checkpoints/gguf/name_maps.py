"""Families of models: GGUF names and layouts of their tensors against those of Hugging Face.

The converters of llama.cpp rename tensors, and store some of them differently: the rows of Llama's Q and K in the order
of interleaved rotary embeddings, and Gemma's norms plus one.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from weightspace.checkpoints.gguf.header import Header
from weightspace.errors import CheckpointError

#: GGUF module -> Hugging Face module, outside the layers.
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

#: The same in a layer, in all families.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

#: Tensors that the converters compute from the configuration; Hugging Face has none of them.
COMPUTED = frozenset({"rope_freqs.weight"})


class Layout(NamedTuple):
    """The difference between a tensor as it is stored in GGUF and in Hugging Face's layout.

    Attributes:
        heads: number of heads whose rows alternate between the halves of the rotary embedding, or 0.
        shift: number that is added in GGUF.
    """

    heads: int = 0
    shift: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether there is no difference."""
        return not self.heads and not self.shift


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: its name, for messages.
        permuted: whether the rows of Q and K are reordered.
        shift: number that is added to the weights of norms.
        layer: GGUF module -> Hugging Face module in a layer, where it differs from the others.
        has_head: whether a head of its own can be stored beside the embedding.
    """

    title: str
    permuted: bool = False
    shift: float = 0.0
    layer: Mapping[str, str] = field(default_factory=dict)
    has_head: bool = True

    @cached_property
    def _outside(self) -> Mapping[str, str]:
        """GGUF module -> Hugging Face module outside the layers."""
        return {name: theirs for name, theirs in _OUTSIDE.items() if name != "output" or self.has_head}

    @cached_property
    def _inside(self) -> Mapping[str, str]:
        """GGUF module -> Hugging Face module in a layer."""
        return {**_LAYER, **self.layer}

    def hf_name(self, name: str) -> str | None:
        """Return the Hugging Face name of a GGUF tensor, or None if it has none."""
        return _renamed(name, r"blk\.", "model.layers.", self._outside, self._inside)

    def gguf_name(self, name: str) -> str | None:
        """Return the GGUF name of a Hugging Face tensor, or None if it has none."""
        outside, inside = ({theirs: own for own, theirs in names.items()} for names in (self._outside, self._inside))
        return _renamed(name, r"model\.layers\.", "blk.", outside, inside)


def _renamed(
    name: str, prefix: str, new_prefix: str, outside: Mapping[str, str], inside: Mapping[str, str]
) -> str | None:
    """Return the name of a weight or bias with its module renamed, or None if the module is not known.

    Args:
        name: the name.
        prefix: pattern of the prefix of layers.
        new_prefix: the prefix that they get.
        outside: module -> new module, outside the layers.
        inside: module -> new module, in a layer.
    """
    module, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    if module in outside:
        return f"{outside[module]}.{suffix}"
    match = re.fullmatch(rf"{prefix}(0|[1-9]\d*)\.([\w.]+)", module)
    if match is None or match[2] not in inside:
        return None
    return f"{new_prefix}{match[1]}.{inside[match[2]]}.{suffix}"


#: general.architecture -> family.
FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama and Mistral", permuted=True),
    "qwen2": Family("Qwen 2"),
    "qwen3": Family("Qwen 3", layer=_HEAD_NORMS),
    "gemma": Family("Gemma", shift=1.0, has_head=False),
    "gemma2": Family("Gemma 2", shift=1.0, layer=_FOUR_NORMS, has_head=False),
    "gemma3": Family("Gemma 3", shift=1.0, layer={**_FOUR_NORMS, **_HEAD_NORMS}),
}


@dataclass(frozen=True)
class Names:
    """The tensors of a file under Hugging Face names, or under their own.

    Attributes:
        family: the family, or None if the tensors keep their names and layouts.
        names: GGUF name -> name.
        reason: why they keep their names, or "".
    """

    family: Family | None
    names: Mapping[str, str]
    reason: str = ""


def names_of(header: Header) -> Names:
    """Return the names of a file's tensors; they keep theirs unless all of them are known in its family."""
    kind = header.value("general.architecture")
    own = {name: name for name in header.entries}
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        return Names(None, own, f"the family {str(kind)[:80]!r} is not known")
    found = {name: family.hf_name(name) for name in header.entries if name not in COMPUTED}
    unknown = next((name for name, theirs in found.items() if theirs is None), None)
    if unknown is not None:
        return Names(None, own, f"{unknown!r} is not known in the family {kind!r}")
    return Names(family, {name: theirs for name, theirs in found.items() if theirs is not None})


def layout_of(path: Path, header: Header, family: Family | None, name: str) -> Layout:
    """Return the layout of a tensor by its GGUF name.

    Raises:
        CheckpointError: the file does not say how many heads there are, or the number does not fit the tensor.
    """
    *_, module, _ = ("", *name.split("."))
    if family is None:
        return Layout()
    if family.shift and name.endswith("norm.weight"):
        return Layout(shift=family.shift)
    if not family.permuted or module not in ("attn_q", "attn_k"):
        return Layout()
    key = f"{header.value('general.architecture')}.attention.head_count"
    if module == "attn_k" and f"{key}_kv" in header.fields:
        key = f"{key}_kv"
    heads = header.value(key)
    rows = header.entries[name].shape[:1]
    if type(heads) is not int or heads < 1 or not rows or rows[0] % (2 * heads):
        raise CheckpointError(
            f"{path}: the rows of {name!r}, {header.entries[name].shape}, are stored by head, but {key} says "
            f"{repr(heads)[:80]}; expected a number that divides half of them. The header is damaged."
        )
    return Layout(heads=heads)
