"""Roles of tensors in adapter files, by the end of their names."""

from __future__ import annotations

import re

#: End of a name -> role. Roles of LyCORIS's products have the names that LyCORIS gives them.
_ENDS = {
    **dict.fromkeys(("lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_A.weight"), "A"),
    **dict.fromkeys(("lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_B.weight"), "B"),
    **dict.fromkeys(("lora_A.default.weight", "lora_A.default_0.weight"), "A"),
    **dict.fromkeys(("lora_B.default.weight", "lora_B.default_0.weight"), "B"),
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight"), "magnitude"),
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **dict.fromkeys(("diff", "w_norm"), "difference"),
    **dict.fromkeys(("diff_b", "b_norm"), "bias"),
}

_ROLE = re.compile(rf"(?P<module>.+)\.(?P<end>{'|'.join(map(re.escape, _ENDS))})")

#: Product -> roles that it needs, and those that it may have.
PRODUCTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "low-rank": (("A", "B"), ("mid",)),
    "hadamard": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2")),
    "kronecker": ((), ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    "difference": (("difference",), ()),
}


def split_role(name: str) -> tuple[str, str] | None:
    """Split a tensor's name into that of its module and its role; None if it isn't understood."""
    match = _ROLE.fullmatch(name)
    return None if match is None else (match["module"], _ENDS[match["end"]])
