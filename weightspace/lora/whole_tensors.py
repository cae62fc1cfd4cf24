"""Moved tensors that an adapter keeps whole, because PEFT has no factors for them: norms and biases.

A norm is saved as a module (``modules_to_save``), the bias of a layer with factors under the name that PEFT gives it
(``base_layer.bias``, with ``bias`` set to ``all``). PEFT loads both exactly; other programs may refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.measure import is_inexact
from weightspace.lora.adapter import PREFIX

_BASE_BIAS = ".base_layer.bias"


@dataclass
class WholeTensors:
    """Tensors that are kept whole.

    Attributes:
        state: PEFT's name -> tensor.
        modules: modules of ``modules_to_save``.
        names: the moved tensors, by their names in the model.
    """

    state: StateDict = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def configuration(self) -> dict[str, Any]:
        """The fields of an adapter's configuration that make PEFT load and keep the tensors."""
        fields: dict[str, Any] = {"modules_to_save": self.modules} if self.modules else {}
        return fields | ({"bias": "all"} if any(name.endswith(_BASE_BIAS) for name in self.state) else {})


def whole_tensors(
    moved: Iterable[str], model: StateDict, adapted: Collection[str], module_of: Callable[[str], str]
) -> WholeTensors:
    """Return those of the moved tensors that an adapter can keep exactly.

    Args:
        moved: tensors that differ and have no factors.
        model: the fine-tune.
        adapted: weights with factors that PEFT reaches as modules.
        module_of: returns PEFT's name of a module's weight, without ``.weight``.
    """
    found = WholeTensors()
    beside = _beside(model)
    paths = {module_of(f"{module}.weight") for module in beside}
    for name in moved:
        module, _, parameter = name.rpartition(".")
        path = module_of(f"{module}.weight")
        if not module or not _is_vector(model, name):
            continue
        if f"{module}.weight" in adapted:
            if parameter == "bias":
                found.state[f"{PREFIX}{path}{_BASE_BIAS}"] = model[name]
                found.names.append(name)
        elif _is_norm(model, module, beside[module]) and not _is_ambiguous(path, paths):
            found.state |= {f"{PREFIX}{path}.{own.rpartition('.')[2]}": model[own] for own in beside[module]}
            found.modules += [path] * (path not in found.modules)
            found.names.append(name)
    return found


def _beside(model: StateDict) -> dict[str, list[str]]:
    """Return every module -> all tensors in it and in the modules that it contains."""
    beside: dict[str, list[str]] = {}
    for name in model:
        module = name.rpartition(".")[0]
        while module:
            beside.setdefault(module, []).append(name)
            module = module.rpartition(".")[0]
    return beside


def _is_norm(model: StateDict, module: str, names: Iterable[str]) -> bool:
    """Return whether a module contains no other and has only vectors, as norms do."""
    return all(name.rpartition(".")[0] == module and _is_vector(model, name) for name in names)


def _is_vector(model: StateDict, name: str) -> bool:
    """Return whether a tensor has one axis of real floats, as those of norms and biases."""
    tensor = model[name]
    return tensor.ndim == 1 and is_inexact(tensor) and not tensor.is_complex()


def _is_ambiguous(path: str, paths: Collection[str]) -> bool:
    """Return whether PEFT, which compares the ends of names, would take another module for one of this name."""
    return any(other != path and other.endswith(path) for other in paths)
