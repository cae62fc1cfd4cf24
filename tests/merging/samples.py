"""Samples for the tests of merge methods: random models with odd tensors, and a call for any row of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.merging import METHODS, merge
from weightspace.merging.methods import Method, Parameter

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

#: Of float tensors in a state: scalar, empty, vectors, matrices (tall, wide, of one column or row), 3-D, convolution.
SHAPES = {
    "scale": (),
    "nothing": (0, 3),
    "one": (1,),
    "bias": (7,),
    "tall.weight": (7, 5),
    "wide.weight": (3, 8),
    "column.weight": (4, 1),
    "row.weight": (1, 4),
    "stack": (2, 3, 4),
    "conv.weight": (3, 2, 3, 3),
}


@dataclass(frozen=True)
class Variant:
    """A row of the table, with parameters, with or without a base."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    with_base: bool = False

    @property
    def row(self) -> Method:
        return METHODS[self.method]

    @property
    def count(self) -> int:
        """How many models the tests give it: three where it takes them."""
        low, high = self.row.models
        return max(low, min(3, high or 3))

    @property
    def random(self) -> bool:
        """Whether masks are drawn, chunk by chunk."""
        return "seed" in {p.name for p in self.row.parameters} and self.parameters.get("density", 1) != 1

    @property
    def singular(self) -> bool:
        """Whether singular vectors decide the result, which LAPACK finds up to rounding only."""
        return self.row.granularity == "whole"

    @property
    def whole(self) -> bool:
        """Whether thresholds are of the whole model."""
        default = next((p.default for p in self.row.parameters if p.name == "scope"), "tensor")
        return self.parameters.get("scope", default) == "model"

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.parameters.items()]
        return "-".join([self.method, *words, *(["base"] if self.with_base and self.row.base == "optional" else [])])

    def __call__(
        self,
        models: Sequence[StateDict],
        base: StateDict | None = None,
        *,
        weights: Sequence[float] | None = None,
        parameters: Mapping[str, Any] | None = None,
        evidence: Sequence[StateDict] | None = None,
        allow_nonfinite: bool = False,
    ) -> StateDict:
        """Merge, with evidence where the row needs it; the base counts only where the variant has one."""
        return merge(
            models,
            self.method,
            base=base if self.with_base else None,
            weights=weights,
            parameters={**self.parameters, **(parameters or {})},
            evidence=evidence_of(self.row, models) if evidence is None else evidence,
            allow_nonfinite=allow_nonfinite,
        )


_SPARSE = ({"density": 0.4}, {"density": [0.2, 0.9, 0.0]}, {"density": 0.4, "rescale": True, "lambda": 0.7})
_INNER = ({"inner": "ties", "density": 0.4}, {"inner": "task_arithmetic", "density": [0.2, 0.9, 0.0]})
_STITCHED = ({"density": 0.4}, {"density": [0.2, 0.9, 0.0], "lambda": 0.7})
_RANDOM = (*_SPARSE, {"density": 0.4, "rescale": "density", "seed": 3}, {"density": 0.4, "rescale": "none"})

#: Parameters beside the defaults; the first entry holds what a row cannot do without. For other rows see ``_settings``.
_PARAMETERS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "linear": ({}, {"normalize": False}),
    "slerp": ({"t": 0.3}, {"t": 1.4}),
    "nuslerp": ({}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "multislerp": ({}, {"normalize_weights": False}),
    "karcher": ({}, {"max_iter": 1}),
    "task_arithmetic": ({}, {"lambda": -0.3, "normalize": True}),
    "wise_ft": ({}, {"alpha": 0.3}, {"alpha": -1.0}),
    "ties": ({}, *_SPARSE, {"density": 0.4, "scope": "model"}, {"normalize": False}),
    "dare_linear": ({}, *_RANDOM),
    "dare_ties": ({}, *_RANDOM),
    "della": ({}, *({**options, "epsilon": 0.1} for options in _RANDOM if options["density"] == 0.4)),
    "della_linear": ({}, *({**options, "epsilon": 0.1} for options in _RANDOM if options["density"] == 0.4)),
    "breadcrumbs": ({}, *_SPARSE, {"density": 0.9, "gamma": 0.3}),
    "breadcrumbs_ties": ({}, *_SPARSE, {"density": 0.9, "gamma": 0.3}),
    "consensus": ({}, {"min_tasks": 1, "tall_mask_lambda": [0.2, 0.9, 0.5], "lambda": 0.7}, *_INNER),
    "tall_mask": ({}, {"rebuild": 2, "tall_mask_lambda": 0.9, "lambda": 0.7}, *_INNER),
    "localize_and_stitch": ({}, *({"scope": "tensor", **options} for options in _STITCHED)),
    "model_stock": ({}, {"filter_wise": True}),
    "sce": ({}, {"select_topk": 0.4}),
    "nearswap": ({"t": 0.3},),
    "ram": ({}, {"epsilon": 0.5}),
    "ramplus_tl": ({}, {"epsilon": 0.5, "r": 0.4, "alpha": 0.8}),
    "passthrough": ({}, {"scale": -0.5}),
    "iso_cts": ({}, {"common": 0.3}),
    "optmerge": ({}, {"tuning": "lora"}, {"steps": 0, "lambda": 0.5}, {"tuning": "lora", "steps": 0}),
    "knots": ({}, {"density": 0.4}, {"inner": "task_arithmetic"}),
    "core_space": ({}, {"density": 0.4}, {"inner": "task_arithmetic"}),
    "regmean": ({}, {"reduce": 0.5}),
}


def _settings(row: Method) -> Sequence[Mapping[str, Any]]:
    """Return parameters to test a row with: those it cannot do without, and a value for each but its default."""
    if row.name in _PARAMETERS:
        return _PARAMETERS[row.name]
    values = {parameter.name: _another_value(parameter) for parameter in row.parameters if parameter.name != "seed"}
    required = {parameter.name: values[parameter.name] for parameter in row.parameters if parameter.required}
    return [required, values] if values != required else [required]


def _another_value(parameter: Parameter) -> Any:
    """Return a value that is not the default."""
    if parameter.choices:
        return next(word for word in parameter.choices if word != parameter.default)
    if isinstance(parameter.default, bool):
        return not parameter.default
    if isinstance(parameter.default, int):
        return parameter.default + (1 if parameter.default < parameter.high else -1)
    numbers = (0.3, 0.6, parameter.low, parameter.low + 1)
    return next(n for n in numbers if parameter.low <= n <= parameter.high and n != parameter.default)


def _variants() -> list[Variant]:
    found = []
    for name, row in METHODS.items():
        for parameters in _settings(row):
            bases = {"none": (False,), "optional": (False, True)}.get(row.base, (True,))
            found.extend(Variant(name, parameters, base) for base in bases)
    return found


#: Every row of the table with its defaults, and with what parameters can make of it.
VARIANTS = _variants()

#: Every row of the table once.
ROWS = [Variant(name, _settings(row)[0], row.base in ("required", "end")) for name, row in METHODS.items()]


def normals(seed: int, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal random numbers that depend on nothing but the seed."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    """Return float tensors with a zero of either sign, and integers and bools that don't depend on the seed."""
    return copied(_random_state(seed, dtype))


@cache
def _random_state(seed: int, dtype: torch.dtype) -> StateDict:
    state = {name: normals(1000 * seed + index, shape, dtype) for index, (name, shape) in enumerate(SHAPES.items())}
    for tensor in state.values():
        if tensor.numel() > 3:
            tensor.view(-1)[1], tensor.view(-1)[2] = 0.0, -0.0
    return {**state, "index": torch.arange(4), "mask": torch.tensor([True, False])}


def sample(variant: Variant, dtype: torch.dtype = torch.float32) -> tuple[list[StateDict], StateDict]:
    """Return models for a variant, and a base."""
    return [random_state(seed, dtype) for seed in range(1, variant.count + 1)], random_state(0, dtype)


def evidence_of(row: Method, models: Sequence[StateDict]) -> list[StateDict] | None:
    """Return statistics of data as a row needs them, the same for the same number of models and shapes."""
    if not row.evidence:
        return None
    make = _gram if row.evidence == "gram" else _information
    return [
        {name: found for name, tensor in model.items() if (found := make(seed, tensor)) is not None}
        for seed, model in enumerate(models, start=1)
    ]


def _gram(seed: int, tensor: Tensor) -> Tensor | None:
    """Return XᵀX for the weight of a linear layer; None for anything else."""
    if tensor.dim() != 2 or not tensor.is_floating_point() or not tensor.numel():
        return None
    inputs = normals(seed, (3 * tensor.shape[1], tensor.shape[1]))
    return inputs.T @ inputs


def _information(seed: int, tensor: Tensor) -> Tensor | None:
    return normals(seed, tensor.shape).square() if tensor.is_floating_point() else None


def copied(state: StateDict) -> StateDict:
    """Return a state dict in memory of its own."""
    return {name: tensor.clone() for name, tensor in state.items()}


def floats(state: StateDict) -> StateDict:
    """Return the float tensors only."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def scaled(state: StateDict, factor: float) -> StateDict:
    """Return the state with its float tensors times a factor."""
    return {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are the same in dtype, shape and every bit, the sign of zeros included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    left, right = (tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (found, expected))
    return torch.equal(left, right)


def assert_same_bits(found: StateDict, expected: StateDict) -> None:
    """Check that two state dicts have the same names in the same order, and the same bits."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), f"{name}: {found[name]} against {tensor}"


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error of a tensor in the Euclidean norm; the absolute one where nothing is expected."""
    difference = (found.double() - expected.double()).norm().item()
    size = expected.double().norm().item()
    return difference / size if size > 0 else difference


def half_way(narrow: Tensor, wide: Tensor) -> Tensor:
    """Return where bfloat16 results are one of two numbers that those in float64 lie half-way between.

    But for the last digits of weights such as 0.3, which float64 doesn't know; test_rounding.py does.
    """
    below, above = ((wide * (1 + way * 2.0**-22)).to(torch.bfloat16) for way in (-1, 1))
    return (below != above) & ((narrow == below) | (narrow == above))
