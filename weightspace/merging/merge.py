"""``merge``: state dicts in, one state dict out, by any row of the table of methods."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.measure import is_inexact
from weightspace.errors import WeightspaceError
from weightspace.merging.affine import output_dtype, widened
from weightspace.merging.counting import agreed
from weightspace.merging.methods import METHODS, Method
from weightspace.merging.tying import by_name
from weightspace.suggestions import unknown


@torch.no_grad()
def merge(
    states: Sequence[StateDict],
    method: str = "linear",
    *,
    base: StateDict | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> StateDict:
    """Merge networks of one architecture into one.

    Args:
        states: state dicts with the same names and shapes, one a model.
        method: a name in ``METHODS``.
        base: the pretrained model, for methods that work on the difference from it.
        weights: one finite number a model; equal by default.
        parameters: options of the method by name, for example ``{"normalize": False}``.

    Returns:
        New tensors in the order of the first state dict and the dtype of the inputs (promoted where they
        differ), computed in float32 at least and rounded once. Integer tensors are copied where all agree; of
        BatchNorm's counters the largest is kept. Tensors tied in every model stay tied. Copies merge to the
        copy, bit for bit.

    Raises:
        CheckpointError: names or shapes differ, or a tensor is float in one model and integer in another.
        WeightspaceError: the method, a parameter or the weights don't fit, or integer tensors differ.
    """
    _check_models(states, base)
    row = METHODS.get(method)
    if row is None:
        raise unknown("merging method", method, METHODS)
    options = _checked_parameters(method, row, parameters or {})
    factors = _checked_weights(weights, len(states))

    def combine(name: str, tensors: list[Tensor]) -> Tensor:
        origin = [base[name]] if base is not None else []
        if not is_inexact(tensors[0]):
            return agreed(name, tensors)
        wide = widened([*tensors, *origin])
        merged = row(wide[: len(tensors)], factors, wide[-1] if origin else None, **options)
        return merged.to(output_dtype(tensors))

    return by_name(states, combine)


def _check_models(states: Sequence[StateDict], base: StateDict | None) -> None:
    """Check that there are models and that they fit together."""
    if isinstance(states, Mapping) or not states:
        found = "one state dict" if isinstance(states, Mapping) else "an empty list"
        raise WeightspaceError(f"merge takes a list of state dicts, [a, b, …]; found {found}.")
    for index, state in enumerate(states[1:], start=2):
        check_compatible(states[0], state, names=("model 1", f"model {index}"))
    if base is not None:
        check_compatible(states[0], base, names=("model 1", "the base"))


def _checked_weights(weights: Sequence[float] | None, models: int) -> list[float]:
    """Return one finite weight a model; equal ones where none are given."""
    factors = [1.0] * models if weights is None else [float(weight) for weight in weights]
    if len(factors) != models:
        raise WeightspaceError(f"Found {len(factors)} weights for {models} models; expected one a model.")
    if not all(math.isfinite(factor) for factor in factors):
        raise WeightspaceError(f"Weights are finite numbers, found {', '.join(map(str, factors))}.")
    return factors


def _checked_parameters(name: str, method: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters, each of which the method has."""
    signature = inspect.signature(method).parameters.values()
    known = [parameter.name for parameter in signature if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter not in known:
            raise unknown(f"parameter of method {name!r}", parameter, known)
    return dict(parameters)
