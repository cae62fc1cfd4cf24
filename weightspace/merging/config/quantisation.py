"""The description of quantised weights in a configuration: that of inputs is removed, that of the output added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightspace.checkpoints.quantisation import quantised_parts


def remove_quantisation(config: dict[str, Any]) -> None:
    """Remove the descriptions of quantised weights from a configuration and its parts, in place."""
    for part, key in list(quantised_parts(config)):
        del part[key]


def described(scheme: str, plain: Sequence[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` of a quantised output.

    Args:
        scheme: ``fp8-block`` is DeepSeek's, which transformers reads itself; the others are compressed-tensors', whose
            package transformers needs. Activations are quantised by the program that runs the network.
        plain: modules that are not quantised.
    """
    if scheme == "fp8-block":
        settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
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
