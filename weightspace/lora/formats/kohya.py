"""Names of kohya's and LyCORIS's files: ``lora_unet_`` and a module's name with underscores for its dots."""

from __future__ import annotations

import re

from weightspace.lora.formats.module import DENOISER, Module

#: Prefix of a flattened name; ``lycoris_`` is LyCORIS's default for any network.
_NAME = re.compile(r"(?P<prefix>lora_(?P<part>unet|transformer|te[1-3]?)_|lycoris_)(?P<path>[^.]+)")

_COMPONENTS = {
    None: "",
    "unet": DENOISER,
    "transformer": DENOISER,
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "te3": "text_encoder_3",
}


def kohya_module(name: str) -> Module | None:
    """Return the module of a flattened name, or None if it isn't one.

    Example:
        >>> kohya_module("lora_te2_text_model_encoder_layers_0_mlp_fc1").component
        'text_encoder_2'
    """
    match = _NAME.fullmatch(name)
    return None if match is None else Module(_COMPONENTS[match["part"]], match["path"], match["prefix"])


def kohya_prefix(component: str, *, only_encoder: bool) -> str:
    """Return the prefix of a component's names.

    Args:
        component: as in ``Module``.
        only_encoder: the pipeline has one text encoder, whose prefix has no number then.
    """
    if component == "text_encoder":
        return "lora_te_" if only_encoder else "lora_te1_"
    number = component.removeprefix("text_encoder_")
    return {"": "lycoris_", DENOISER: "lora_unet_"}.get(component, f"lora_te{number}_")
