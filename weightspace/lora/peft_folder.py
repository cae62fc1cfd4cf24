"""Adapters in PEFT's folders, read from headers alone.

PEFT's names begin with ``base_model.model.``, followed by the module's name in the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.safetensors_header import read_header
from weightspace.errors import CheckpointError
from weightspace.lora.adapter import PREFIX, REPEATED, TORCH_WEIGHTS, WEIGHTS, Adapter, Factors
from weightspace.lora.config import CONFIG, Configuration, read_configuration
from weightspace.lora.fused_experts import FUSED, fused_parameter

#: ``<module>.lora_A.weight``, ``<module>.lora_A.default.weight``, ``<module>.lora_embedding_A``.
_FACTOR = re.compile(
    r"(?P<module>.+)\.(lora_(?P<side>[AB])(\.[^.]+)?\.weight|lora_embedding_(?P<embedding>[AB])(\.[^.]+)?)"
)

#: ``<module>.lora_magnitude_vector``, ``<module>.lora_magnitude_vector.default.weight``.
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.[^.]+){0,2}")

#: ``<module>.modules_to_save.default.<parameter>``.
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.[^.]+\.(?P<rest>.+)")

#: The bias of a module to save as it was before training, and once more as it is trained.
_COPY = re.compile(r"(?P<module>.+)\.(original_module|modules_to_save)\.(?P<rest>(.+\.)?bias)")


def read_peft(folder: Path) -> Adapter:
    """Read an adapter from the headers of its folder.

    Args:
        folder: as written by PEFT's ``save_pretrained``.

    Raises:
        CheckpointError: configuration or weights are missing, damaged or inconsistent, or the adapter is of a kind that
            can't be merged.
    """
    configuration = read_configuration(folder)
    weights = next((folder / name for name in (WEIGHTS, TORCH_WEIGHTS) if (folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(
            f"{folder} has {CONFIG} but no weights; expected {WEIGHTS} or {TORCH_WEIGHTS}. Save the adapter again."
        )
    contents = read_contents(weights)
    if not contents.tensors:
        raise CheckpointError(f"{weights} has no tensors; expected lora_A and lora_B. Save the adapter again.")
    pairs: dict[tuple[str, bool], dict[str, str]] = {}
    saved: dict[str, str] = {}
    magnitudes: dict[str, str] = {}
    for name in contents.tensors:
        factor = _FACTOR.fullmatch(_inner(folder, name))
        magnitude = _MAGNITUDE.fullmatch(_inner(folder, name))
        if magnitude is not None:
            _put(folder, magnitudes, magnitude["module"], name)
        elif factor is None:
            if not _is_copy(configuration, contents.tensors, name):
                _put(folder, saved, _saved_target(configuration, name), name)
        else:
            embedding = factor["embedding"]
            pair = pairs.setdefault((factor["module"], embedding is not None), {})
            _put(folder, pair, embedding or factor["side"], name)
    _check_parameters(configuration, [module for module, _ in pairs])
    factors: dict[str, Factors] = {}
    fused: dict[str, Factors] = {}
    for (module, embedding), pair in pairs.items():
        parameter = fused_parameter(configuration, module)
        if parameter is None:
            factors[f"{module}.weight"] = _factors(configuration, contents.tensors, module, embedding, pair)
        else:
            fused[parameter] = _stacked_factors(configuration, contents.tensors, parameter, pair)
    factors = _decomposed(configuration, contents.tensors, factors, magnitudes)
    if configuration.dora and fused:
        raise CheckpointError(
            f"{folder} is DoRA of the parameter {next(iter(fused))!r} of all experts; expected modules. Merge it into "
            "its model with PEFT first."
        )
    files = (folder / CONFIG, *contents.files)
    return Adapter(folder, files, factors, saved, contents, configuration, fused, _repeated(weights))


def _check_parameters(configuration: Configuration, modules: Sequence[str]) -> None:
    """Refuse factors of parameters that are neither module weights nor those of all experts of a layer."""
    for parameter in configuration.parameters:
        if parameter.rpartition(".")[2] not in ("weight", *FUSED):
            raise CheckpointError(
                f"{configuration.folder} targets the parameter {parameter!r} (target_parameters in {CONFIG}); "
                f"expected factors of modules. Merge it into its model with PEFT first."
            )
    stray = next((module for module in modules if module.rpartition(".")[2] == "base_layer"), None)
    if stray is not None and fused_parameter(configuration, stray) is None:
        raise CheckpointError(
            f"{configuration.folder} has nested factors ({stray!r}), for which {CONFIG} has no target_parameters; "
            "expected factors of modules. Merge it into its model with PEFT first."
        )


def _repeated(weights: Path) -> frozenset[str]:
    """Return the tensors that repeat factors in an extracted adapter, according to its metadata."""
    text = read_header(weights).metadata.get(REPEATED) if weights.name == WEIGHTS else None
    try:
        names = json.loads(text or "[]")
    except (ValueError, RecursionError):
        names = []
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def _inner(folder: Path, name: str) -> str:
    """Return a tensor's name without PEFT's prefix."""
    if not name.startswith(PREFIX):
        raise CheckpointError(
            f"{folder} has the tensor {name!r}; expected names that begin with {PREFIX!r}. Save it with PEFT."
        )
    return name.removeprefix(PREFIX)


def _put(folder: Path, found: dict[str, str], key: str, name: str) -> None:
    """Record a tensor of the adapter; duplicates are errors."""
    if key in found:
        raise CheckpointError(
            f"{folder} has both {found[key]!r} and {name!r}; expected one adapter. Save each to its own folder."
        )
    found[key] = name


def _is_copy(configuration: Configuration, tensors: Collection[str], name: str) -> bool:
    """Return whether a bias isn't applied: PEFT saves those of a module to save three times if ``bias`` is ``all``."""
    copy = _COPY.fullmatch(name)
    if copy is None or configuration.bias != "all" or not configuration.saves(copy["module"].removeprefix(PREFIX)):
        return False
    rests = (copy["rest"], copy["rest"].partition(".")[2])  # the name of the adapter may come first
    return any(rest and f"{copy['module']}.{rest}" in tensors for rest in rests)


def _saved_target(configuration: Configuration, name: str) -> str:
    """Return the tensor of the model that a tensor without factors replaces."""
    inner = name.removeprefix(PREFIX)
    marked = _SAVED.fullmatch(inner)
    if marked is not None:
        return f"{marked['module']}.{marked['rest']}"
    target = inner.replace(".base_layer.", ".")  # PEFT saves embeddings and heads next to their factors
    module, _, parameter = target.rpartition(".")
    if configuration.saves(module) or ".base_layer." in inner:
        return target
    if parameter == "bias" and "lora_" not in inner:
        if configuration.bias == "all":
            return target
        raise CheckpointError(
            f"{configuration.folder} has the bias {name!r}, but bias is {configuration.bias!r} in {CONFIG}; expected "
            "'all' there, or only biases of modules with factors. Merge it into its model with PEFT first."
        )
    if parameter == "weight" and "lora_" not in inner:  # embeddings of an extended vocabulary
        return target
    raise CheckpointError(
        f"{configuration.folder} has the tensor {name!r}, which isn't part of a plain LoRA; expected lora_A and "
        "lora_B of modules, or modules_to_save. Merge it into its model with PEFT first."
    )


def _stacked_factors(
    configuration: Configuration, tensors: Mapping[str, TensorInfo], parameter: str, pair: Mapping[str, str]
) -> Factors:
    """Return the factors of a parameter of all experts, with the shape of one expert's part."""
    rank = configuration.rank_of(parameter)
    a, b = (tensors.get(pair.get(side, "")) for side in "AB")
    fits = a is not None and b is not None and len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
    if a is None or b is None or not fits or a.shape[0] % rank or not a.is_inexact or not b.is_inexact:
        raise CheckpointError(
            f"{configuration.folder}: the factors of {parameter!r} don't fit together; expected floats of shapes "
            f"({rank} · experts, in) and (out, {rank} · experts). Save the adapter again."
        )
    scale = configuration.scale_of(parameter)
    return Factors(pair, rank, scale, False, False, (b.shape[0], a.shape[1]))


def _factors(
    configuration: Configuration,
    tensors: Mapping[str, TensorInfo],
    module: str,
    embedding: bool,
    pair: Mapping[str, str],
) -> Factors:
    """Return the factors of a module, their shapes checked against each other and against the configuration."""
    folder, rank = configuration.folder, configuration.rank_of(module)
    if len(pair) < 2:
        (side,) = pair
        other = f"lora_{'embedding_' if embedding else ''}{'B' if side == 'A' else 'A'}"
        raise CheckpointError(f"{folder} has {pair[side]!r} but no {other}. Expected both; save it again.")
    a, b = tensors[pair["A"]], tensors[pair["B"]]
    fits = len(a.shape) == len(b.shape) >= 2 and a.shape[0] == b.shape[1] and set(b.shape[2:]) <= {1}
    if not fits or not a.is_inexact or not b.is_inexact or "C64" in (a.dtype, b.dtype):
        raise CheckpointError(
            f"{folder}: the factors of {module!r} are {a.dtype} {a.shape} and {b.dtype} {b.shape}; expected floats of "
            f"shapes ({rank}, in) and (out, {rank}). Save the adapter again."
        )
    if a.shape[0] != rank:
        raise CheckpointError(
            f"{folder}: the factors of {module!r} have rank {a.shape[0]}; expected {rank} from {CONFIG} (r, "
            "rank_pattern). Do both files belong to the same adapter?"
        )
    shape = (b.shape[0], *a.shape[1:])
    transposed = embedding or (configuration.fan_in_fan_out and len(shape) == 2)
    scale = configuration.scale_of(module)
    return Factors(pair, rank, scale, transposed, embedding, shape[::-1] if transposed else shape)


def _decomposed(
    configuration: Configuration,
    tensors: Mapping[str, TensorInfo],
    factors: Mapping[str, Factors],
    magnitudes: Mapping[str, str],
) -> dict[str, Factors]:
    """Return the factors with DoRA's magnitudes, one per output of the layer, which all or no modules have."""
    folder, found = configuration.folder, dict(factors)
    names = {f"{module}.weight": name for module, name in magnitudes.items()}
    odd = names.keys() ^ (factors.keys() if configuration.dora else set())
    if odd:
        name = min(odd)
        raise CheckpointError(
            f"{folder} has {'magnitudes' if name in names else 'no magnitudes'} (lora_magnitude_vector) of {name!r}, "
            f"but use_dora is {str(configuration.dora).lower()} in {CONFIG}. Save the adapter again."
        )
    for name, magnitude in names.items():
        own, info = factors[name], tensors[magnitude]
        axis = len(own.shape) - 1 if own.transposed else 0
        if info.numel != own.shape[axis] or not info.is_inexact or info.dtype == "C64":
            raise CheckpointError(
                f"{folder}: {magnitude!r} is {info.dtype} {info.shape}; expected {own.shape[axis]} floats, one per "
                "output. Save the adapter again."
            )
        found[name] = replace(own, names={**own.names, "magnitude": magnitude}, axis=axis)
    return found
