"""``adapter_config.json`` of a LoRA adapter in PEFT's format: ranks, scales, and kinds that can't be merged.

A key of ``rank_pattern`` or ``alpha_pattern`` is a regular expression for the end of a module's name; the first match
counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from weightspace.checkpoints.json_file import read_json
from weightspace.errors import CheckpointError
from weightspace.lora.module_patterns import PatternError, Patterns

#: Name of the file.
CONFIG = "adapter_config.json"

#: Options that change an adapter's effect -> its kind. A merge only supports ``W + scale · B A``.
_VARIANTS = {
    "use_qalora": "QALoRA, whose factors are pooled",
    "use_bdlora": "a block-diagonal LoRA",
    "kasa_config": "KaSA, which has its own singular values",
    "monteclora_config": "MonteCLoRA, whose factors are sampled",
    "arrow_config": "Arrow, a router over several adapters",
    "alora_invocation_tokens": "an activated LoRA, which takes effect from some token on",
    "layer_replication": "for a model with repeated layers",
    "trainable_token_indices": "for single tokens of an embedding",
    "lora_bias": "a LoRA with its own biases",
}

#: Initialisations that move a part of the model into the factors: ``B A`` then belongs to a modified model.
_MOVED = ("pissa", "corda", "olora", "loftq", "lora_ga")

#: Values of ``peft_type`` of adapters that are given to the model beside its inputs.
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")

#: Types of fields -> their names in errors.
_KINDS: Mapping[type, str] = {list: "a list", dict: "an object", bool: "true or false", str: "a word"}

#: Maximum number of entries in a list.
_MAX_LISTED = 1_000

Value = TypeVar("Value")


@dataclass(frozen=True)
class Configuration:
    """The parsed configuration of an adapter.

    Attributes:
        folder: folder of the adapter.
        rank: default rank of the factors.
        alpha: the scale is ``alpha / rank``, or ``alpha / √rank``.
        rank_pattern: regular expression -> rank.
        alpha_pattern: regular expression -> alpha.
        rslora: divide by ``√rank``.
        fan_in_fan_out: weights are stored as ``(in, out)``, like GPT-2's.
        modules_to_save: modules that were trained in full.
        bias: the trained biases: ``none``, ``all`` or ``lora_only``.
        tying: tied weights were adapted together.
        dora: the changed weights are scaled to trained magnitudes.
        parameters: parameters with factors, in addition to modules.
        fields: the whole file.
    """

    folder: Path
    rank: int
    alpha: float
    rank_pattern: Patterns[int]
    alpha_pattern: Patterns[float]
    rslora: bool
    fan_in_fan_out: bool
    modules_to_save: tuple[str, ...]
    bias: str
    tying: bool
    dora: bool
    parameters: tuple[str, ...]
    fields: Mapping[str, Any]

    def rank_of(self, module: str) -> int:
        """Return the rank of the factors of a module."""
        return self._matched(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of ``B A`` for a module.

        Source:
            Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1; with ``use_rslora`` Kalajdzievski 2023,
            https://arxiv.org/abs/2312.03732.
        """
        rank = self.rank_of(module)
        alpha = self._matched(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _matched(self, patterns: Patterns[Value], module: str, default: Value) -> Value:
        """Return the value of the first pattern that matches a module's name, as in PEFT."""
        try:
            return patterns.find(self._key(module), default)
        except PatternError as error:
            raise CheckpointError(f"{self.folder}/{CONFIG}: {error}. Expected module names.") from error

    def _key(self, module: str) -> str:
        """Return the name that patterns are matched against: a parameter with factors, otherwise the module."""
        weight = f"{module}.weight"
        reached = any(weight == name or weight.endswith(f".{name}") for name in self.parameters)
        return weight if reached else module

    def saves(self, module: str) -> bool:
        """Return whether a module, or one that contains it, was trained in full."""
        return any(f".{name}." in f".{module}." for name in self.modules_to_save)


def read_configuration(folder: Path) -> Configuration:
    """Read the configuration in a folder.

    Args:
        folder: contains ``adapter_config.json``.

    Raises:
        CheckpointError: it is missing or damaged, or the adapter is of a kind that can't be merged.
    """
    return parsed_configuration(folder, _read(folder))


def plain_configuration(path: Path) -> Configuration:
    """Return the configuration of an adapter that needs none."""
    return parsed_configuration(path, {"peft_type": "LORA", "r": 1, "lora_alpha": 1})


def parsed_configuration(folder: Path, fields: Mapping[str, Any]) -> Configuration:
    """Return a configuration from its fields, checked.

    Args:
        folder: folder or file of the adapter.
        fields: as in ``adapter_config.json``.

    Raises:
        CheckpointError: a field is invalid, or the adapter is of a kind that can't be merged.
    """
    _check_kind(folder, fields)
    return Configuration(
        folder,
        _rank(folder, "r", fields.get("r")),
        _alpha(folder, "lora_alpha", fields.get("lora_alpha", 8)),
        _patterns(folder, fields, "rank_pattern", _rank),
        _patterns(folder, fields, "alpha_pattern", _alpha),
        _field(folder, fields, "use_rslora", False),
        _field(folder, fields, "fan_in_fan_out", False),
        tuple(str(name) for name in _field(folder, fields, "modules_to_save", [])),
        _field(folder, fields, "bias", "none"),
        _field(folder, fields, "ensure_weight_tying", False),
        _field(folder, fields, "use_dora", False),
        tuple(str(name) for name in _field(folder, fields, "target_parameters", [])),
        fields,
    )


def _read(folder: Path) -> dict[str, Any]:
    """Return the JSON object of the file."""
    path = folder / CONFIG
    if not path.is_file():
        found = f"{CONFIG} is missing" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(
            f"{folder} is not a LoRA adapter: {found}. Expected a folder of PEFT, or a file of kohya or "
            "diffusers; is the path right?"
        )
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} is a JSON {type(fields).__name__}; expected an object. Save the adapter again.")
    return fields


def _check_kind(folder: Path, fields: Mapping[str, Any]) -> None:
    """Check that the adapter is a plain LoRA."""
    kind = fields.get("peft_type")
    if kind in _PROMPTS:
        raise CheckpointError(
            f"{folder} is an adapter of peft_type {kind!r}, which learns prompts and changes no weight; expected "
            "'LORA'. It can't be merged: use it with the model that it was trained for."
        )
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of peft_type {kind!r}; expected 'LORA'. Merge it into its model with PEFT first."
        )
    for key, what in _VARIANTS.items():
        if fields.get(key):
            raise CheckpointError(
                f"{folder} is {what} ({key} is set); expected a plain LoRA. Merge it into its model with PEFT first."
            )
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED):
        raise CheckpointError(
            f"{folder} was initialised with init_lora_weights {start!r}, which also changes the model; expected "
            "factors for the unchanged model. Convert it with PEFT: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…)."
        )


def _field(folder: Path, fields: Mapping[str, Any], key: str, default: Value) -> Value:
    """Return a field with the type of its default, which replaces a missing or null value."""
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, type(default)):
        raise _unexpected(folder, key, value, _KINDS[type(default)])
    if isinstance(value, list) and len(value) > _MAX_LISTED:
        raise _unexpected(folder, key, value, f"a list of at most {_MAX_LISTED:,} names")
    return value


def _patterns(
    folder: Path, fields: Mapping[str, Any], key: str, checked: Callable[[Path, str, Any], Value]
) -> Patterns[Value]:
    """Return an object whose keys are regular expressions, with checked values."""
    empty: dict[str, Any] = {}
    values = _field(folder, fields, key, empty)
    try:
        return Patterns({pattern: checked(folder, pattern, value) for pattern, value in values.items()})
    except PatternError as error:
        raise CheckpointError(f"{folder}/{CONFIG}: {key!r}: {error}. Expected module names.") from error


def _rank(folder: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unexpected(folder, key, value, "a rank of at least 1")
    return value


def _alpha(folder: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _unexpected(folder, key, value, "a finite number")
    return float(value)


def _unexpected(folder: Path, key: str, value: Any, expected: str) -> CheckpointError:
    found = json.dumps(value)[:80]
    return CheckpointError(f"{folder}/{CONFIG}: {key!r} is {found}; expected {expected}. Save the adapter again.")
