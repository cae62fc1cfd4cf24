"""Any of the oracles by the name of its method, with parameters as recipes and the command line name them.

An oracle is a function of its method's name in oracles.py, arc_oracles.py or matrix_oracles.py. It is given those of
``models``, ``base``, ``weights``, ``layer`` and ``evidence`` that it has an argument for, and the parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import arc_oracles
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
    layer: tuple[int, int] | None = None,
) -> Array:
    """The result of a method, with its parameters as recipes and the command line name them.

    Args:
        layer: the tensor's layer, counted from 0, and the number of layers; None outside the layers.
    """
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
    if method.startswith(("dare", "della", "breadcrumbs")):
        assert base is not None
        if method.startswith("breadcrumbs"):
            return oracles.breadcrumbs(models, base, weights, **options, elect=method == "breadcrumbs_ties")
        return _masked(method, models, base, weights, masks, options)
    inputs = {"models": models, "base": base, "weights": weights, "evidence": evidence, "layer": layer}
    wanted = inspect.signature(_find(method)).parameters
    return _find(method)(**{name: value for name, value in inputs.items() if name in wanted}, **options)


def _find(method: str) -> Callable[..., Array]:
    home = next(one for one in (oracles, arc_oracles, matrix_oracles) if hasattr(one, method))
    return getattr(home, method)


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

#: Parameters that are one number per model, with their defaults.
_PER_MODEL = {
    **{name: {"density": 1.0} for name in ("ties", "dare_linear", "dare_ties", "della", "della_linear")},
    **{name: {"density": 1.0} for name in ("knots", "core_space")},
    "localize_and_stitch": {"density": 0.05},
    **{name: {"density": 1.0, "tall_mask_lambda": 0.4} for name in ("consensus", "tall_mask")},
    **{name: {"density": 1.0, "gamma": 0.01} for name in ("breadcrumbs", "breadcrumbs_ties")},
}
