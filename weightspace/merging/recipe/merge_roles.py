"""Roles in a merge: the models, the base, and the weight of each model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from weightspace.errors import WeightspaceError
from weightspace.merging.methods import METHODS, Method
from weightspace.merging.methods._registry import LARGEST, shown
from weightspace.merging.methods._unrun import unrun_method
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code, may_run_code

Model = TypeVar("Model")


def find_method(name: str) -> Method:
    """Return the declaration of a built-in method or of a user's ``file.py:function``.

    If code may not run (``running_no_code``), the parameters of a user's method are read from its source code.

    Raises:
        WeightspaceError: the method does not exist.
    """
    if name in METHODS:
        return METHODS[name]
    if is_user_code(name) and not may_run_code():
        return unrun_method(name)
    if is_user_code(name):
        from weightspace.merging.methods._user import user_method

        return user_method(name)
    raise unknown("merging method", name, METHODS)


def split_base(
    row: Method,
    models: Sequence[Model],
    base: Model | None,
    listed: Collection[int],
    weights: Sequence[float] | None,
) -> tuple[list[Model], Model | None, list[float]]:
    """Return the models, the base and the weights to pass to a method.

    Args:
        row: the method.
        models: all models of the merge.
        base: the base, if any.
        listed: indices of the models that are the base itself; methods with a base do not merge them as models.
        weights: one number per entry of ``models``; equal by default.

    Raises:
        WeightspaceError: the method takes no base or needs one, does not take this number of models, takes no
            weights, or the weights aren't finite numbers, one per model.
    """
    factors = _weights(row, weights, len(models))
    if row.base == "none":
        if base is not None:
            raise WeightspaceError(
                f"Method {row.name!r} takes no base, but one was given. Did you mean a task-vector method?"
            )
        listed = ()
    if row.base == "end" and base is None and len(models) == 2:
        base, listed = models[0], (0,)
    if row.base in ("required", "end") and base is None:
        if row.base == "end":
            raise WeightspaceError(
                f"Method {row.name!r} takes two models, or one and a base; found {len(models)} without a base."
            )
        raise WeightspaceError(
            f"Method {row.name!r} needs a base: the pretrained model that the others are fine-tuned from."
        )
    kept = [index for index in range(len(models)) if base is None or index not in listed]
    _check_count(row, len(kept), len(models) - len(kept))
    return [models[index] for index in kept], base, [factors[index] for index in kept]


def checked_evidence(row: Method, evidence: Sequence[Model] | None, models: int) -> Sequence[Model]:
    """Return the evidence, one per model, if the method needs it.

    Raises:
        WeightspaceError: the evidence is missing, not used by the method, or not one per model.
    """
    found = list(evidence or ())
    expected = models if row.evidence else 0
    if len(found) != expected:
        need = f"needs {row.evidence} evidence, one per model" if row.evidence else "does not use evidence"
        raise WeightspaceError(f"Method {row.name!r} {need}; found {len(found)} for {models} models.")
    return found


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__")


def _weights(row: Method, weights: Sequence[float] | None, models: int) -> list[float]:
    """Return one finite weight per model; equal weights by default."""
    if weights is None:
        return [1.0] * models
    if not row.weighted:
        names = ", ".join(parameter.name for parameter in row.parameters)
        raise WeightspaceError(f"Method {row.name!r} takes no weights. Its parameters: {names or 'none'}.")
    if isinstance(weights, str) or not isinstance(weights, Iterable) or not all(map(_is_number, weights)):
        raise WeightspaceError(f"The weights are {weights!r}; expected a list of numbers, one per model.")
    if len(weights) != models:
        raise WeightspaceError(f"Found {len(weights)} weights for {models} models; expected one per model.")
    for weight in weights:
        if not abs(weight) <= LARGEST:
            raise WeightspaceError(
                f"Weights must be finite numbers of magnitude at most {LARGEST:g}, found {shown(weight)}."
            )
    return [float(weight) for weight in weights]


def _check_count(row: Method, models: int, bases: int) -> None:
    """Check that the method takes this number of models."""
    low, high = row.models
    if models < low or (high is not None and models > high):
        wanted = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        noun = "model" if (low, high) == (1, 1) else "models"
        besides = " in addition to the base" if bases or row.base in ("required", "end") else ""
        hint = " Leave the base out to merge two models." if row.base == "end" and (models, bases) == (2, 0) else ""
        raise WeightspaceError(f"Method {row.name!r} takes {wanted} {noun}{besides}; found {models}.{hint}")
