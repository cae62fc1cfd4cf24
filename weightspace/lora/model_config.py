"""``config.json`` of a transformers model, read without transformers: the facts that adapters depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.checkpoints.json_file import read_json_object

#: Types of models whose Linear layers are ``Conv1D`` of transformers -> the last names of these layers, whose weights
#: are kept as ``(in, out)``.
_IN_OUT: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"), ("c_attn", "c_proj", "c_fc", "q_attn")
)

#: Parts of a configuration that are models themselves -> how their modules' names begin, beside the part's key.
_FRONTS: Mapping[str, tuple[str, ...]] = {
    "text_config": ("language_model.", "model.language_model.", "text_model.", "model.text_model."),
}


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a model.

    Args:
        path: its folder, or the file of weights in it; other files stand for themselves.

    Returns:
        The JSON object; an empty one where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    config = (path.parent if path.name in ENTRANCES else path) / "config.json"
    return read_json_object(config) if config.is_file() else {}


def architecture(config: dict[str, Any]) -> str:
    """Return the class that a model was saved from, an empty text if it isn't said."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def is_in_out(config: dict[str, Any], module: str, *, default: bool) -> bool:
    """Return whether a module's weight is kept as ``(in, out)``.

    Args:
        config: of the model, or an empty one.
        module: its name.
        default: what holds for a model that the configuration does not tell of.
    """
    layers = _IN_OUT.get(str(config.get("model_type")))
    if layers is not None:
        return module.rpartition(".")[2] in layers
    nested = {key: str(part.get("model_type")) for key, part in config.items() if isinstance(part, Mapping)}
    known = {key: _IN_OUT[model_type] for key, model_type in nested.items() if model_type in _IN_OUT}
    for key, own in known.items():  # a decoder of its own family: ``{"encoder": …, "decoder": {"model_type": "gpt2"}}``
        if module.startswith((f"{key}.", *_FRONTS.get(key, ()))):
            return module.rpartition(".")[2] in own
    return default and not known
