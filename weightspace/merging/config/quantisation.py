"""Quantisation entries of configurations: those of the inputs are removed, that of the output is added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightspace.checkpoints.quantisation import quantised_parts
from weightspace.checkpoints.quantised.fp8 import BLOCK


def remove_quantisation(config: dict[str, Any]) -> None:
    """Remove the quantisation entries from a configuration and its parts, in place."""
    for part, key in list(quantised_parts(config)):
        del part[key]


def described(scheme: str, plain: Sequence[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` of a quantised output.

    Args:
        scheme: ``fp8-block`` is DeepSeek's, which transformers reads itself; for the others, transformers needs the
            package compressed-tensors. Activations are quantised at inference.
        plain: names of the modules that are not quantised.
    """
    if scheme == "fp8-block":
        settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
        return {**settings, "modules_to_not_convert": list(plain)}
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": scheme.removeprefix("fp8-"), "dynamic": False},
        "input_activations": {**number, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(plain),
    }
