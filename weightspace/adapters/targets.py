"""Which tensor of a model's files an adapter means: PEFT names modules as transformers builds them, files may not.

A name is looked for as it is, then by transformers' renames, then behind a prefix that one of the two lacks, then
without the names of wrappers. The first of these ways that finds anything decides, and it must find one tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

from weightspace.adapters.module_names import Names, all_names, is_renamed, names_of
from weightspace.adapters.tied_weights import Shapes

#: Parts of names that models are wrapped in, or that came and went between versions of transformers.
_WRAPPERS = frozenset(
    (
        *("base_model", "model", "module", "_orig_mod", "transformer", "backbone"),
        *("language_model", "text_model", "vision_model"),
    )
)


class Targets:
    """The tensors of a model, found by the names that adapters have for them."""

    def __init__(self, shapes: Shapes, config: dict[str, Any]) -> None:
        """Take in a model.

        Args:
            shapes: tensor -> shape.
            config: of the model; where it says nothing, the renames of every family are tried.
        """
        self._shapes = shapes
        known = "model_type" in config and not is_renamed(config)
        self._names: list[Names] = [names_of(config), *([] if known else all_names())]

    def candidates(self, target: str, shapes: Collection[tuple[int, ...]]) -> list[str]:
        """Return the tensors that a target may be: one, none, or those between which nothing decides.

        Args:
            target: as the adapter has it.
            shapes: those that the adapter expects.
        """
        if target in self._shapes:
            return [target]
        for found in self._found(target):
            fitting = [name for name in found if self._shapes[name] in shapes or self._shapes[name][::-1] in shapes]
            if found:
                return fitting or found
        return []

    def _found(self, target: str) -> Iterator[list[str]]:
        """Yield what each way finds."""
        tables = zip(self._names, self._by_module, strict=True)
        yield list(dict.fromkeys(name for names, table in tables for name in table.get(names.module(target), ())))
        yield [name for name in self._shapes if _is_behind_prefix(name, target) or _is_behind_prefix(target, name)]
        yield list(self._unwrapped.get(_unwrapped(target), ()))

    @cached_property
    def _by_module(self) -> list[Mapping[str, list[str]]]:
        """For each way to name modules: a module's name -> the tensors that may be its."""
        return [_grouped(self._shapes, names.module) for names in self._names]

    @cached_property
    def _unwrapped(self) -> Mapping[str, list[str]]:
        """A name without wrappers -> the tensors that have it."""
        return _grouped(self._shapes, _unwrapped)


def _grouped(names: Collection[str], key: Any) -> dict[str, list[str]]:
    """Return the names by what a function makes of them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _is_behind_prefix(long: str, short: str) -> bool:
    """Return whether a name is another one behind the names of modules without a number."""
    front = long.removesuffix(f".{short}")
    return front != long and "." in short and not any(part.isdigit() for part in front.split("."))


def _unwrapped(name: str) -> str:
    """Return a name without wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
