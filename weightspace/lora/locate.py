"""The targets of an adapter among the tensors of a model's files, with their orientations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.component_targets import located_modules
from weightspace.lora.expert_factors import spread
from weightspace.lora.model_config import is_in_out
from weightspace.lora.module_names import Names, all_names, is_renamed, names_of
from weightspace.lora.tied_weights import Shapes, is_head


def located(adapter: Adapter, shapes: Shapes, config: dict[str, Any], source: str) -> Adapter:
    """Return an adapter whose targets have the names of the model's files.

    Args:
        adapter: as it was read.
        shapes: tensor of the model -> shape, including tied weights that have no tensor.
        config: configuration of the model, or an empty one.
        source: the source as given by the user, for errors.

    Returns:
        The adapter; a head that the files lack, and targets that aren't found at all, keep their names.

    Raises:
        CheckpointError: a target is ambiguous, or two targets are the same tensor.
    """
    if adapter.modules:
        return located_modules(adapter, shapes, source)
    targets = Targets(shapes, config)
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for target in adapter.targets:
        expected = adapter.shapes(target)
        found = targets.candidates(target, expected)
        if len(found) > 1:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r}, which could be {found[0]!r} or {found[1]!r}; "
                "expected one tensor. Rename the adapter's tensors to match the model's."
            )
        name = found[0] if found else target
        names[target] = name
        if owners.setdefault(name, target) != target:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r} and {owners[name]!r}, which are the same tensor, "
                f"{name!r}, of the model. Expected one of them; is this adapter for that model?"
            )
    factors = {names[target]: _oriented(own, names[target], target, config) for target, own in adapter.factors.items()}
    factors |= spread(adapter, lambda name, shape: targets.candidates(name, [shape]), source)
    saved = {names[target]: own for target, own in adapter.saved.items()}
    repeated = frozenset(names[target] for target in adapter.repeated if target in names)
    return replace(adapter, factors=factors, saved=saved, repeated=repeated)


def _oriented(factors: Factors, name: str, module: str, config: dict[str, Any]) -> Factors:
    """Return factors in the orientation in which the model stores the weight.

    PEFT decides by the kind of layer; the only flag it saves, ``fan_in_fan_out``, is that of the last layer.
    """
    if factors.embedding or len(factors.shape) != 2:
        return factors
    default = factors.transposed and not is_head(name)
    transposed = is_in_out(config, module.removesuffix(".weight"), default=default)
    if transposed == factors.transposed:
        return factors
    axis = None if factors.axis is None else 1 - factors.axis
    return replace(factors, transposed=transposed, shape=factors.shape[::-1], axis=axis)


#: Parts of names from wrappers, or that changed between versions of transformers.
_WRAPPERS = frozenset(
    (
        *("base_model", "model", "module", "_orig_mod", "transformer", "backbone"),
        *("language_model", "text_model", "vision_model"),
    )
)


class Targets:
    """The tensors of a model, searchable by the names used in adapters."""

    def __init__(self, shapes: Shapes, config: dict[str, Any]) -> None:
        """Index a model.

        Args:
            shapes: tensor -> shape.
            config: configuration of the model; if it is silent, the renames of every family are tried.
        """
        self._shapes = shapes
        known = "model_type" in config and not is_renamed(config)
        self._names: list[Names] = [names_of(config), *([] if known else all_names())]

    def candidates(self, target: str, shapes: Collection[tuple[int, ...]]) -> list[str]:
        """Return the tensors that a target may be: one, none, or several if it is ambiguous.

        Args:
            target: name in the adapter.
            shapes: shapes that the adapter expects.
        """
        if target in self._shapes:
            return [target]
        for found in self._found(target):
            fitting = [name for name in found if self._shapes[name] in shapes or self._shapes[name][::-1] in shapes]
            if found:
                return fitting or found
        return []

    def _found(self, target: str) -> Iterator[list[str]]:
        """Yield the matches of each naming convention."""
        tables = zip(self._names, self._by_module, strict=True)
        yield list(dict.fromkeys(name for names, table in tables for name in table.get(names.module(target), ())))
        yield [name for name in self._shapes if _is_behind_prefix(name, target) or _is_behind_prefix(target, name)]
        yield list(self._unwrapped.get(_unwrapped(target), ()))

    @cached_property
    def _by_module(self) -> list[Mapping[str, list[str]]]:
        """For each naming convention: a module's name -> its candidate tensors."""
        return [_grouped(self._shapes, names.module) for names in self._names]

    @cached_property
    def _unwrapped(self) -> Mapping[str, list[str]]:
        """Mapping from names without wrappers to their tensors."""
        return _grouped(self._shapes, _unwrapped)


def _grouped(names: Collection[str], key: Any) -> dict[str, list[str]]:
    """Group names by a key function."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _is_behind_prefix(long: str, short: str) -> bool:
    """Return whether a name is another one prefixed by module names without a number."""
    front = long.removesuffix(f".{short}")
    return front != long and "." in short and not any(part.isdigit() for part in front.split("."))


def _unwrapped(name: str) -> str:
    """Return a name without wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
