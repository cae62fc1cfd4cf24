"""An adapter put on the names of a model's files: every target found, every orientation settled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weightspace.adapters.adapter import Adapter, Factors
from weightspace.adapters.expert_factors import spread
from weightspace.adapters.model_config import is_in_out
from weightspace.adapters.targets import Targets
from weightspace.adapters.tied_weights import Shapes, is_head
from weightspace.errors import CheckpointError


def located(adapter: Adapter, shapes: Shapes, config: dict[str, Any], source: str) -> Adapter:
    """Return an adapter with the names that a model's files have for its targets.

    Args:
        adapter: as it was read.
        shapes: tensor of the model -> shape; weights that are tied and have no tensor included.
        config: of the model, or an empty one.
        source: what the user wrote, for errors.

    Returns:
        The adapter; a head that the files lack, and a target that isn't found at all, keep their names.

    Raises:
        CheckpointError: a target may be any of several tensors, or two targets are one tensor.
    """
    targets = Targets(shapes, config)
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for target in adapter.targets:
        expected = adapter.shapes(target)
        found = targets.candidates(target, expected)
        if len(found) > 1:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r}, which may be {found[0]!r} or {found[1]!r} of the model; "
                "expected one tensor. Rename the adapter's tensors as the model's are."
            )
        name = found[0] if found else target
        names[target] = name
        if owners.setdefault(name, target) != target:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r} and {owners[name]!r}, which are one tensor of the model, "
                f"{name!r}. Expected one of them; is this adapter for that model?"
            )
    factors = {names[target]: _oriented(own, names[target], target, config) for target, own in adapter.factors.items()}
    factors |= spread(adapter, lambda name, shape: targets.candidates(name, [shape]), source)
    saved = {names[target]: own for target, own in adapter.saved.items()}
    repeated = frozenset(names[target] for target in adapter.repeated if target in names)
    return replace(adapter, factors=factors, saved=saved, repeated=repeated)


def _oriented(factors: Factors, name: str, module: str, config: dict[str, Any]) -> Factors:
    """Return factors in the way that the model keeps the weight.

    PEFT goes by the kind of layer, and the one flag that it saves, ``fan_in_fan_out``, is that of the last layer.
    """
    if factors.embedding or len(factors.shape) != 2:
        return factors
    default = factors.transposed and not is_head(name)
    transposed = is_in_out(config, module.removesuffix(".weight"), default=default)
    if transposed == factors.transposed:
        return factors
    return replace(factors, transposed=transposed, shape=factors.shape[::-1])
