"""Adapters of several formats brought to common names, and their factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from weightspace.arithmetic.nonfinite import is_finite
from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.checkpoints.safetensors_header import read_header
from weightspace.errors import CheckpointError, WeightspaceError, warn_caller
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.base_names import VERSION_KEY, base_version, model_name, trained_on
from weightspace.lora.config import CONFIG
from weightspace.lora.factored import Pair, factored
from weightspace.lora.formats.module import Module, canonical

#: A module's component and flattened name.
_Key = tuple[str, str]


def warn_of_other_bases(adapters: Sequence[Adapter]) -> None:
    """Warn of an adapter that was trained on another model than the first."""
    bases = [(adapter.path, name) for adapter in adapters if (name := trained_on(adapter.configuration)) is not None]
    for path, base in bases[1:]:
        first, other = bases[0]
        if model_name(base) != model_name(other):
            warn_caller(
                f"The adapter {path} was trained on {base}, but {first} on {other} (base_model_name_or_path in "
                f"{CONFIG}). Are they adapters of one model?"
            )
    versions = [(adapter.path, metadata[VERSION_KEY]) for adapter in adapters if (metadata := _kohya_metadata(adapter))]
    for path, version in versions[1:]:
        first, other = versions[0]
        if base_version({VERSION_KEY: version}) != base_version({VERSION_KEY: other}):
            warn_caller(
                f"The adapter {path} was trained on {version}, but {first} on {other} ({VERSION_KEY} in the metadata). "
                "Are they adapters of one model?"
            )


def warn_of_disjoint(adapters: Sequence[Adapter]) -> None:
    """Warn of an adapter whose tensors no other adapter changes: it may have other names for the same ones.

    Args:
        adapters: as ``unified`` returns them.
    """
    for adapter in adapters:
        others = [name for other in adapters if other is not adapter for name in other.factors]
        if others and adapter.factors and adapter.factors.keys().isdisjoint(others):
            own, other = next(iter(adapter.factors)), others[0]
            warn_caller(
                f"{adapter.path} changes no tensor that another adapter changes (it has {own!r}, others {other!r}). If "
                "two of these are names of one tensor, the result changes it twice, or under a name that the model "
                "lacks: convert the adapters to the same names first."
            )
            return


def _kohya_metadata(adapter: Adapter) -> Mapping[str, str]:
    """Return the metadata of a file that names the architecture it was trained on; empty for other adapters."""
    path = adapter.path
    if not path.is_file() or file_format(path) != "safetensors":
        return {}
    metadata = read_header(path).metadata
    return metadata if base_version(metadata) is not None else {}


def unified(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters with the names that the first one that has a module gives it.

    PEFT's folders, and LyCORIS's files of any network, don't name the component that they belong to: it is the one
    component of the other adapters that has one of their modules.

    Raises:
        CheckpointError: there is no such component, or there are several; or an adapter has a module twice.
    """
    if not any(adapter.modules for adapter in adapters):
        return list(adapters)
    named = [adapter.modules or _peft_modules(adapter) for adapter in adapters]
    components: dict[str, set[str]] = {}
    for modules in named:
        for module in modules.values():
            components.setdefault(module.component, set()).add(module.key[1])
    names: dict[tuple[_Key, str], tuple[str, Module]] = {}
    return [_renamed(*both, components, names) for both in zip(adapters, named, strict=True)]


def _renamed(
    adapter: Adapter,
    modules: Mapping[str, Module],
    components: Mapping[str, set[str]],
    names: dict[tuple[_Key, str], tuple[str, Module]],
) -> Adapter:
    """Return an adapter under common names, adding those of its modules that are new."""
    component = _component(adapter, modules, components)
    factors: dict[str, Factors] = {}
    known: dict[str, Module] = {}
    for target, own in adapter.factors.items():
        module = modules[target] if modules[target].component else replace(modules[target], component=component)
        name, first = names.setdefault((module.key, target.rpartition(".")[2]), (target, module))
        if name in factors:
            raise CheckpointError(
                f"{adapter.path} changes {name!r} and {target!r}, which are the same module; expected one of them."
            )
        factors[name], known[name] = own, first
    return replace(adapter, factors=factors, modules=known)


def _peft_modules(adapter: Adapter) -> dict[str, Module]:
    """Return the modules of PEFT's folder, whose component is unknown."""
    return {name: Module("", name.rpartition(".")[0], "") for name in adapter.factors}


def _component(adapter: Adapter, modules: Mapping[str, Module], components: Mapping[str, set[str]]) -> str:
    """Return the component of modules for which an adapter names none."""
    flat = {canonical(module.path) for module in modules.values() if not module.component}
    others = [component for component, own in components.items() if component and own & flat]
    if not flat or not any(components):
        return ""
    if len(others) != 1:
        found = " and ".join(others) or "no component"
        raise CheckpointError(
            f"{adapter.path} doesn't say which component its modules belong to, and {found} of the other adapters has "
            "them; expected exactly one. Merge it with adapters of its own format."
        )
    return others[0]


def targets_of(adapters: Sequence[Adapter]) -> dict[str, Factors]:
    """Return the tensors that the adapters change, each with the factors of the first adapter that has it.

    Raises:
        CheckpointError: an adapter isn't the sum of products, or the shapes of a tensor differ.
    """
    targets: dict[str, tuple[Adapter, Factors]] = {}
    for adapter in adapters:
        _check_mergeable(adapter)
        for name, factors in adapter.factors.items():
            first, other = targets.setdefault(name, (adapter, factors))
            if not _same_matrix(factors, other):
                raise CheckpointError(
                    f"{name!r} has shape {other.shape} in {first.path} and {factors.shape} in {adapter.path}; expected "
                    "one shape and one fan_in_fan_out. Are these adapters of the same model?"
                )
            if len(factors.shape) > len(other.shape):
                targets[name] = adapter, factors
    for name, (adapter, factors) in targets.items():
        if factors.product in ("hadamard", "kronecker") and len(factors.shape) == 2 and _is_convolution(name):
            raise CheckpointError(
                f"{adapter.path} has flattened factors of the convolution {name!r}, whose kernel is unknown; expected "
                "factors in Tucker's form. Apply it to its model instead: `weightspace merge MODEL+ADAPTER …`."
            )
    return {name: factors for name, (_, factors) in targets.items()}


def _same_matrix(factors: Factors, other: Factors) -> bool:
    """Return whether two changes have the same matrix, ``(out, in · kernel)``, and orientation."""
    if factors.transposed != other.transposed:
        return False
    plain = all(each.product == "low-rank" and len(each.shape) > 2 for each in (factors, other))
    if plain and factors.shape != other.shape:
        return False
    return factors.shape[:1] == other.shape[:1] and math.prod(factors.shape) == math.prod(other.shape)


def _is_convolution(name: str) -> bool:
    """Return whether a name is that of a convolution in a U-Net, whose kernel isn't 1."""
    flat = canonical(name.removesuffix(".weight"))
    return flat.endswith(("_conv", "conv1", "conv2", "conv_in", "conv_out"))


def _check_mergeable(adapter: Adapter) -> None:
    """Refuse an adapter that isn't a sum of products of factors."""
    instead = "Merge the models instead: `weightspace merge MODEL+ADAPTER …`."
    if adapter.saved:
        raise CheckpointError(
            f"{adapter.path} replaces all of {next(iter(adapter.saved))!r} (modules_to_save or bias in {CONFIG}); "
            f"expected only factors. "
            f"{instead}"
        )
    if adapter.configuration.parameters:
        raise CheckpointError(
            f"{adapter.path} targets parameters such as those of fused experts "
            f"({adapter.configuration.parameters[0]!r}); expected factors of modules. {instead}"
        )
    for name, factors in adapter.factors.items():
        if factors.axis is not None:
            raise CheckpointError(
                f"{adapter.path} scales {name!r} to DoRA's magnitudes, which depends on the model; expected a plain "
                f"LoRA. {instead}"
            )
        if "difference" in (factors.product, *(own.product for own in factors.stack.values())):
            raise CheckpointError(
                f"{adapter.path} has the full difference of {name!r} (diff, w_norm or b_norm); expected "
                f"factors. {instead}"
            )


def pair_of(adapter: Adapter, state: CheckpointReader, name: str, like: Factors) -> Pair:
    """Return the factors of one adapter as float64 matrices; those of a tensor that it lacks have rank 0.

    Args:
        adapter: the adapter.
        state: its tensors.
        name: name of the changed tensor.
        like: factors of the tensor in any adapter.
    """
    factors = adapter.factors.get(name)
    if factors is None:
        shape = like.shape[::-1] if like.transposed else like.shape
        empty = torch.zeros(0, dtype=torch.float64)
        return Pair(empty.reshape(shape[0], 0), empty.reshape(0, math.prod(shape[1:])), 1.0)
    tensors = {role: state[tensor] for role, tensor in factors.names.items()}
    for role, tensor in tensors.items():
        if not is_finite(tensor):
            called = factors.names[role]
            raise WeightspaceError(f"{called!r} of {adapter.path} holds NaN or infinity; expected finite factors.")
    pair = factored(factors, tensors, f"{name!r} of {adapter.path}")
    if not math.isfinite(pair.scale * float(pair.b.norm()) * float(pair.a.norm())):
        called = list(factors.names.values())[-1]
        raise WeightspaceError(
            f"{called!r} of {adapter.path} times its other factors, scaled by {factors.scale:.3g}, overflows float64. "
            "Is its alpha right?"
        )
    return pair
