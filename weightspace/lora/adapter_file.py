"""Adapters in single files: kohya's and LyCORIS's, and diffusers', read from headers alone.

A tensor that isn't understood is refused by its name; none is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.metadata import CheckpointMetadata, TensorInfo
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.safetensors_header import read_header
from weightspace.errors import CheckpointError
from weightspace.lora.adapter import PREFIX, Adapter, Factors
from weightspace.lora.config import CONFIG, Configuration, parsed_configuration, plain_configuration
from weightspace.lora.formats.diffusers import METADATA_KEY, diffusers_module
from weightspace.lora.formats.kohya import kohya_module
from weightspace.lora.formats.module import Module
from weightspace.lora.formats.tensor_names import PRODUCTS, split_role
from weightspace.lora.product_shapes import product_shape
from weightspace.lora.scalars import read_scalar

#: Roles of numbers that belong to a product and aren't factors.
_BESIDE = ("alpha", "dora_scale", "magnitude", "bias")

#: End of a tensor's name -> kind of adapter whose change isn't a product of factors that is added to a weight.
_OTHER_KINDS = {
    **dict.fromkeys((".oft_blocks", ".oft_diag", ".oft_R.weight"), "OFT"),
    **dict.fromkeys((".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"), "GLoRA"),
    **dict.fromkeys((".on_input", ".ia3_l"), "(IA)³"),
}


@dataclass
class _Group:
    """The tensors of one module: role -> name in the file."""

    module: Module
    roles: dict[str, str] = field(default_factory=dict)


def read_adapter_file(path: Path) -> Adapter:
    """Read an adapter from the header of a file.

    Args:
        path: a file of kohya, LyCORIS or diffusers; alphas are read from it, too.

    Raises:
        CheckpointError: the file is damaged, a tensor isn't understood, or tensors of a module are missing.
    """
    contents = read_contents(path)
    if not contents.tensors:
        raise CheckpointError(f"{path} has no tensors; expected those of an adapter. Save it again.")
    written, groups = _groups(path, contents)
    configurations = _configurations(path) if written == "diffusers" else {}
    factors: dict[str, Factors] = {}
    modules: dict[str, Module] = {}
    for group in groups.values():
        for target, own in _changes(contents, group, configurations).items():
            factors[target] = own
            modules[target] = group.module
    configuration = plain_configuration(path)
    return Adapter(path, contents.files, factors, {}, contents, configuration, format=written, modules=modules)


def _groups(path: Path, contents: CheckpointMetadata) -> tuple[str, dict[str, _Group]]:
    """Return the format of a file, and module -> its tensors."""
    groups: dict[str, _Group] = {}
    formats: dict[str, str] = {}
    for name in contents.tensors:
        split = split_role(name)
        flat = None if split is None else kohya_module(split[0])
        if split is not None and flat is not None:
            module, role, written = flat, split[1], "kohya"
        elif (found := diffusers_module(name)) is not None:
            (module, role), written = found, "diffusers"
        else:
            raise _unknown(path, name, contents)
        formats.setdefault(written, name)
        group = groups.setdefault(module.name, _Group(module))
        if role in group.roles:
            raise CheckpointError(
                f"{path} has both {group.roles[role]!r} and {name!r}; expected one adapter. Save each to its own file."
            )
        group.roles[role] = name
    if len(formats) > 1:
        raise CheckpointError(
            f"{path} has names of kohya ({formats['kohya']!r}) and of diffusers ({formats['diffusers']!r}); expected "
            "one format. Save each to its own file."
        )
    return next(iter(formats)), groups


def _unknown(path: Path, name: str, contents: CheckpointMetadata) -> CheckpointError:
    """Return the error for a tensor that isn't understood."""
    if name.startswith(PREFIX):
        return CheckpointError(
            f"{path} is the file of weights of PEFT's folder ({name!r}), without its {CONFIG}. Expected the folder."
        )
    for end, kind in _OTHER_KINDS.items():
        if other := next((one for one in contents.tensors if one.endswith(end)), None):
            return CheckpointError(
                f"{path} is an adapter of {kind} ({other[:200]!r}), whose change isn't a product of factors; "
                "expected LoRA, LoHa, LoKr or full differences. Apply it to its model with the tool that trained it, "
                "and merge the models."
            )
    return CheckpointError(
        f"{path} has the tensor {name[:200]!r}, which isn't understood; expected factors of kohya (lora_unet_…"
        ".lora_down.weight), LyCORIS (LoCon, LoHa, LoKr, full) or diffusers (unet.….lora_A.weight). No tensor is left "
        "out silently."
    )


def _configurations(path: Path) -> dict[str, Configuration]:
    """Return component -> the configuration that diffusers saved for it, if any; that of a single model has no name."""
    text = read_header(path).metadata.get(METADATA_KEY) if file_format(path) == "safetensors" else None
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: the metadata {METADATA_KEY!r} isn't a JSON object. Save the adapter again.")
    if not any("." in key for key in fields):
        return {"": parsed_configuration(path, {"peft_type": "LORA", **fields})}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        component, _, name = key.partition(".")
        parts.setdefault(component, {})[name] = value
    return {
        component: parsed_configuration(path, {"peft_type": "LORA", **own})
        for component, own in parts.items()
        if component
    }


def _changes(
    contents: CheckpointMetadata, group: _Group, configurations: Mapping[str, Configuration]
) -> dict[str, Factors]:
    """Return the changes of a module's weight and bias, by their names in the file."""
    path, module, roles = contents.path, group.module, group.roles
    changes: dict[str, Factors] = {}
    if "bias" in roles:
        name = roles["bias"]
        _check_float(contents, name)
        names = {"difference": name}
        shape = contents.tensors[name].shape
        changes[f"{module.name}.bias"] = Factors(names, 0, 1.0, False, False, shape, product="difference")
    present = roles.keys() - set(_BESIDE)
    if not present and roles.keys() == {"bias"}:
        return changes
    product = next((own for own, (needed, other) in PRODUCTS.items() if present & {*needed, *other}), None)
    needed, optional = PRODUCTS[product or "low-rank"]
    if product is None or not set(needed) <= present or not present <= {*needed, *optional}:
        found = ", ".join(sorted(name.removeprefix(f"{module.name}.") for name in roles.values()))
        raise CheckpointError(
            f"{path}: the tensors of the module {module.name!r} are {found}; expected {_expected()}. Is the file "
            "complete?"
        )
    for role in present:
        _check_float(contents, roles[role])
    shape, rank = product_shape(path, module.name, product, {role: contents.tensors[roles[role]] for role in present})
    names = {role: roles[role] for role in sorted(present)}
    factors = Factors(names, rank, _scale(contents, group, rank, configurations), False, False, shape, product=product)
    return {f"{module.name}.weight": _with_magnitudes(contents, factors, group), **changes}


def _expected() -> str:
    """Return the tensors that the products need, for an error."""
    return (
        "lora_down and lora_up (and lora_mid), hada_w1_a, hada_w1_b, hada_w2_a and hada_w2_b (and hada_t1 and "
        "hada_t2), lokr_w1 and lokr_w2 or their factors, or diff"
    )


def _check_float(contents: CheckpointMetadata, name: str) -> None:
    info = contents.tensors[name]
    if not info.is_inexact or info.dtype == "C64":
        raise CheckpointError(f"{contents.path}: {name!r} is {info.dtype}; expected floats. Save the adapter again.")


def _scale(
    contents: CheckpointMetadata, group: _Group, rank: int, configurations: Mapping[str, Configuration]
) -> float:
    """Return the scale of a product: ``alpha / rank``, or 1 without alpha or rank; diffusers' metadata come first."""
    alpha = None if "alpha" not in group.roles else read_scalar(contents, group.roles["alpha"])
    configuration = configurations.get(group.module.prefix.removesuffix("."), configurations.get(""))
    if configuration is None:
        scale = 1.0 if alpha is None or not rank else alpha / rank
    elif configuration.rank_of(group.module.path) != rank:
        raise CheckpointError(
            f"{contents.path}: the factors of {group.module.name!r} have rank {rank}; expected "
            f"{configuration.rank_of(group.module.path)} from its metadata {METADATA_KEY!r}. Save the adapter again."
        )
    elif configuration.dora != bool(group.roles.keys() & {"magnitude", "dora_scale"}):
        raise CheckpointError(
            f"{contents.path}: use_dora is {str(configuration.dora).lower()} in its metadata {METADATA_KEY!r}, but "
            f"{group.module.name!r} has {'no ' if configuration.dora else ''}magnitudes. Save the adapter again."
        )
    else:
        scale = configuration.scale_of(group.module.path)
    if not math.isfinite(scale):
        raise CheckpointError(f"{contents.path}: the scale of {group.module.name!r} is {scale}; expected a finite one.")
    return scale


def _with_magnitudes(contents: CheckpointMetadata, factors: Factors, group: _Group) -> Factors:
    """Return factors with the magnitudes of DoRA, if there are any.

    PEFT and diffusers have one per output; LyCORIS's have the shape of the weight with one axis that isn't 1.
    """
    if not group.roles.keys() & {"dora_scale", "magnitude"}:
        return factors
    role = "dora_scale" if "dora_scale" in group.roles else "magnitude"
    name = group.roles[role]
    _check_float(contents, name)
    info, shape = contents.tensors[name], factors.shape
    axis = 0 if role == "magnitude" and info.numel == shape[0] else None
    if role == "dora_scale" and len(shape) > 1 and factors.product != "difference":
        axis = _magnitude_axis(info, factors)
    if axis is None or {"dora_scale", "magnitude"} <= group.roles.keys():
        raise CheckpointError(
            f"{contents.path}: {name!r} has shape {info.shape}; expected DoRA's magnitudes of a weight of shape "
            f"{shape}, one per output or one per input. Save the adapter again."
        )
    return replace(factors, names={**factors.names, "magnitude": name}, axis=axis, magnitudes=info.numel)


def _magnitude_axis(info: TensorInfo, factors: Factors) -> int | None:
    """Return the axis of a weight along which LyCORIS's magnitudes lie, or None if they fit none."""
    (rows, columns), sizes = factors.shape[:2], info.shape
    if len(sizes) < 2 or set(sizes[2:]) - {1} or 1 not in sizes[:2]:
        return None
    if sizes[1] == 1:
        return 0 if sizes[0] == rows else None
    flattened = factors.product != "low-rank" and columns % sizes[1] == 0  # LoHa and LoKr may flatten the kernel
    return 1 if sizes[1] == columns or flattened else None
