"""``config.json`` of a transformers model, read without transformers: the facts that adapters depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.checkpoints.json_file import read_optional_json_object

#: Model types whose linear layers are transformers' ``Conv1D`` -> the last names of these layers, whose weights are
#: stored as ``(in, out)``.
_IN_OUT: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"), ("c_attn", "c_proj", "c_fc", "q_attn")
)

#: Sub-model keys of a configuration -> prefixes of their modules' names, in addition to the key.
_FRONTS: Mapping[str, tuple[str, ...]] = {
    "text_config": ("language_model.", "model.language_model.", "text_model.", "model.text_model."),
}


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model.

    Args:
        path: folder of the model, or its file of weights; other files have no configuration.

    Returns:
        The JSON object; empty if there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    config = (path.parent if path.name in ENTRANCES else path) / "config.json"
    return read_optional_json_object(config)


def architecture(config: Mapping[str, Any]) -> str:
    """Return the class that a model was saved from, or an empty text if unknown."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def is_in_out(config: dict[str, Any], module: str, *, default: bool) -> bool:
    """Return whether a module's weight is stored as ``(in, out)``.

    Args:
        config: configuration of the model, or an empty one.
        module: name of the module.
        default: the answer if the configuration doesn't say.
    """
    layers = _IN_OUT.get(str(config.get("model_type")))
    if layers is not None:
        return module.rpartition(".")[2] in layers
    nested = {key: str(part.get("model_type")) for key, part in config.items() if isinstance(part, Mapping)}
    known = {key: _IN_OUT[model_type] for key, model_type in nested.items() if model_type in _IN_OUT}
    for key, own in known.items():  # a decoder of another family: ``{"encoder": …, "decoder": {"model_type": "gpt2"}}``
        if module.startswith((f"{key}.", *_FRONTS.get(key, ()))):
            return module.rpartition(".")[2] in own
    return default and not known
