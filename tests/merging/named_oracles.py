"""Any of the oracles by the name of its method, with parameters as recipes and the command line name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matrix_oracles
import numpy as np
import oracles
from numpy.typing import NDArray
from oracles import Array, Arrays


def merged(
    method: str,
    models: Arrays,
    base: Array | None,
    weights: Sequence[float],
    parameters: Mapping[str, Any],
    *,
    masks: Sequence[NDArray[np.bool_]] = (),
    evidence: Arrays | None = None,
) -> Array:
    """The result of a method, with its parameters as recipes and the command line name them."""
    options = {_ARGUMENTS.get(name, name): value for name, value in parameters.items()}
    for name, default in _PER_MODEL.get(method, {}).items():
        value = options.get(name, default)
        options[name] = (
            [default if one is None else one for one in value] if isinstance(value, list) else [value] * len(models)
        )
    if method in ("slerp", "nearswap"):
        first, second = (base, models[0]) if method == "slerp" else (models[0], base)
        return _find(method)(first, second, options["t"])
    if method in ("wise_ft", "arcee_fusion"):
        return _find(method)(models[0], base, *([options.get("alpha", 0.5)] if method == "wise_ft" else []))
    if method == "passthrough":
        return models[0] * options.get("scale", 1.0)
    if method in ("nuslerp", "multislerp"):
        return _find(method)(models, weights, base, **options)
    if method == "linear":
        return oracles.linear(models, weights, **options)
    if method == "karcher":
        return oracles.karcher(models, **options)
    if method == "regmean":
        return matrix_oracles.regmean(models, evidence, **options)
    if method == "fisher":
        assert evidence is not None
        return matrix_oracles.fisher(models, weights, evidence)
    assert base is not None
    if method.startswith(("dare", "della")):
        return _masked(method, models, base, weights, masks, options)
    if method.startswith("breadcrumbs"):
        return oracles.breadcrumbs(models, base, weights, **options, elect=method == "breadcrumbs_ties")
    weighted = [weights] if method in ("task_arithmetic", "ties", "knots", "core_space") else []
    return _find(method)(models, base, *weighted, **options)


def _find(method: str) -> Callable[..., Array]:
    return getattr(oracles if hasattr(oracles, method) else matrix_oracles, method)


def _masked(
    method: str,
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    masks: Sequence[NDArray[np.bool_]],
    options: Mapping[str, Any],
) -> Array:
    words = {True: "l1", "true": "l1", False: "none", "false": "none"}
    rescale = options.get("rescale", "l1")
    function = oracles.masked_linear if method.endswith("linear") else oracles.masked_consensus
    normalize = options.get("normalize", method == "della")
    factor = options.get("factor", 1.0)
    return function(models, base, weights, options["density"], masks, factor, normalize, words.get(rescale, rescale))


#: Names in recipes that the functions above call otherwise.
_ARGUMENTS = {"lambda": "factor", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}

#: Parameters that are one number a model, and what they are where nobody says anything.
_PER_MODEL = {
    **{name: {"density": 1.0} for name in ("ties", "dare_linear", "dare_ties", "della", "della_linear")},
    **{name: {"density": 1.0} for name in ("knots", "core_space")},
    **{name: {"density": 1.0, "gamma": 0.01} for name in ("breadcrumbs", "breadcrumbs_ties")},
}
