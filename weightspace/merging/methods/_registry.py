"""Rows of the table of merge methods: enough to check a recipe and plan a merge without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: Granularity that a method needs: any range of elements, whole slices along dim 0, or the whole tensor.
Granularity: TypeAlias = Literal["elements", "slices", "whole"]

#: The largest weight or parameter, far below the limit of float32: anything beyond it would overflow.
LARGEST = 1e30

#: Weights whose sum is below this fraction of their size cancel; the remainder is rounding.
_CANCELLED = 1e-12

#: Elements in a chunk: few enough to keep some float32 copies in the cache, enough to outweigh the call overhead.
CHUNK = 2**17

#: Chunks whose rounding is judged together (see ``_rounding``), and the maximum number of numbers that a search for a
#: quantile gathers (see ``_topk``): 4 MB of float32.
JUDGED_CHUNKS, GATHERED = 16, 2**20

#: Role of the base. ``end``: it is the endpoint ``t = 0`` of a line, or the first of two models if not given.
Base: TypeAlias = Literal["none", "optional", "required", "end"]


@dataclass(frozen=True)
class Parameter:
    """One option of a method.

    Attributes:
        name: name in recipes and on the command line; ``lambda`` is the keyword ``lambda_`` of the function.
        default: the default value, which also determines the type. None means a required number, unless the function
            computes it.
        help: one-line description.
        low, high: the bounds of a number, both inclusive.
        choices: the permitted words.
        per_model: whether it may differ by model; the function gets a list, one value per model.
        computed: description of a default that the function computes when it gets None.
    """

    name: str = ""
    default: bool | int | float | str | None = None
    help: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    per_model: bool = False
    computed: str = ""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is None and not self.computed

    @property
    def argument(self) -> str:
        """The keyword of the function."""
        return f"{self.name}_" if self.name == "lambda" else self.name

    def checked(self, value: Any) -> Any:
        """Return a value converted to the parameter's type.

        Raises:
            WeightspaceError: it has another type, or is out of bounds.
        """
        if self.choices:
            # DARE's rescale is a word here and a bool in mergekit's recipes.
            word = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
            if word not in self.choices:
                raise unknown(f"value of parameter {self.name!r}", str(value), self.choices)
            return word
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise WeightspaceError(f"Parameter {self.name!r} must be true or false; found {value!r}.")
            return value
        if isinstance(self.default, str):
            if not isinstance(value, str):
                raise WeightspaceError(f"Parameter {self.name!r} must be a string; found {value!r}.")
            return value
        return self._number(value)

    def _number(self, value: Any) -> int | float:
        whole = isinstance(self.default, int)
        kind = "an integer" if whole else "a finite number"
        bounds = f" from {self.low:g} to {self.high:g}" if (self.low, self.high) != (-math.inf, math.inf) else ""
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if LARGEST < abs(number) < math.inf:
            raise WeightspaceError(
                f"Parameter {self.name!r} must be a number of magnitude at most {LARGEST:g}; found {shown(number)}."
            )
        if not math.isfinite(number) or not self.low <= number <= self.high or (whole and number != int(number)):
            raise WeightspaceError(f"Parameter {self.name!r} must be {kind}{bounds}; found {value!r}.")
        return int(number) if whole else float(number)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: name in recipes and on the command line.
        function: ``file:function`` in this package, or a user's ``path/file.py:function`` (see ``_user.py``):
            ``function(stack, weights, **parameters) -> formula``, with one weight per model and parameters by keyword.
            It makes its passes over the stack; then ``formula(chunk)`` returns the merged elements of a chunk.
        formula: one-line description of the computation.
        source: the paper.
        parameters: its options, apart from weights.
        base: whether it works on differences from a base.
        models: minimum and maximum number of models, excluding the base; None means no limit.
        granularity: the unit that must be read at once.
        elementwise_if: a parameter and the value for which granularity ``elements`` suffices.
        weighted: whether the models have weights.
        normalised: equal models without a base give that model, whatever the weights.
        divides_if: the parameter with which it divides by the sum of the weights, ``always``, or "" for never.
        nonnegative: whether negative weights are refused.
        scale_free: multiplying all models and the base by a number multiplies the result by it.
        doubles: float32 results are computed in float64; otherwise they are unchanged elements of a model.
        global_pass: ``file:function`` of a pass over the whole model before the first tensor, or "".
        global_pass_if: a parameter and the value for which that pass is made; None means always.
        evidence: the data statistics required of every model (``gram``, ``fisher``), or "".
        after_merge: the first model is the result of a merge, and the others are the models that were merged.
        cost: nanoseconds of one core per element and source, including reading, for estimates.
        copies: float32 copies of a slice held at a time, in addition to two per model, for estimates.
        whole_copies: float32 copies of a whole tensor held per model, base included, for estimates.
        whole_fixed: further float32 copies of a whole tensor, whatever the number of models, for estimates.
        squares: square float64 matrices that are held at a time, for estimates.
        squares_of: their side: the smaller one of a whole tensor, or of all models' side by side (``rows``), or of
            those and of all models' one below the other (``both``).
        on_device: whether it decomposes or multiplies matrices, which can run on a device other than the CPU.
        stored_chunks: chunks of every model that are held at a time as they are stored, for estimates.
        searches: quantiles of the whole tensor that are found together, for estimates.
    """

    name: str
    function: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...] = ()
    base: Base = "none"
    models: tuple[int, int | None] = (1, None)
    granularity: Granularity = "elements"
    elementwise_if: tuple[str, bool] | None = None
    weighted: bool = True
    normalised: bool = False
    divides_if: str = ""
    nonnegative: bool = False
    scale_free: bool = True
    doubles: bool = True
    global_pass: str = ""
    global_pass_if: tuple[str, str] | None = None
    evidence: str = ""
    after_merge: bool = False
    cost: float = 0.7
    copies: int = 6
    whole_copies: int = 5
    whole_fixed: int = 0
    squares: int = 0
    squares_of: Literal["smaller", "rows", "both"] = "smaller"
    on_device: bool = False
    stored_chunks: int = 0
    searches: int = 0

    def granularity_of(self, arguments: Mapping[str, Any]) -> Granularity:
        """Return the granularity required with these arguments."""
        if self.elementwise_if is not None and arguments.get(self.elementwise_if[0]) == self.elementwise_if[1]:
            return "elements"
        return self.granularity

    def needs_global_pass(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether it first makes a pass over the whole model with these arguments."""
        if self.global_pass_if is None:
            return bool(self.global_pass)
        return arguments.get(self.global_pass_if[0]) == self.global_pass_if[1]

    def check_weights(self, weights: Sequence[float], arguments: Mapping[str, Any]) -> None:
        """Check that the method can use the weights with these arguments.

        Raises:
            WeightspaceError: they sum to 0 and the method divides by their sum, or one is negative and it refuses that.
        """
        if self.nonnegative:
            check_nonnegative(weights, self.name)
        inner = arguments.get("inner", "task_arithmetic")  # TIES divides by the weights of models that agree in sign
        if self.divides_if == "always" or (arguments.get(self.divides_if) is True and inner == "task_arithmetic"):
            check_sum(weights, self.divides_if)

    def arguments(self, values: Mapping[str, Any], models: int) -> dict[str, Any]:
        """Return the keyword arguments of the function, checked and with all defaults.

        Args:
            values: parameters by name; a list, one value per model, if the parameter may differ by model.
            models: number of models, excluding the base.

        Raises:
            WeightspaceError: a parameter is unknown, missing, or has an invalid value.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in values:
            if name not in known:
                raise unknown(f"parameter of method {self.name!r}", name, known)
        return {parameter.argument: self._argument(parameter, values, models) for parameter in self.parameters}

    def _argument(self, parameter: Parameter, values: Mapping[str, Any], models: int) -> Any:
        value = values.get(parameter.name, parameter.default)
        if value is None and not parameter.required:
            return None
        if value is None:
            raise WeightspaceError(f"Method {self.name!r} needs the parameter {parameter.name!r}: {parameter.help}")
        if not parameter.per_model:
            return parameter.checked(value)
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * models
        if len(several) != models:
            raise WeightspaceError(
                f"Parameter {parameter.name!r} has {len(several)} values for {models} models; expected one per model."
            )
        return [parameter.checked(parameter.default if one is None else one) for one in several]


def check_nonnegative(weights: Sequence[float], method: str) -> None:
    """Check that no weight is negative.

    Raises:
        WeightspaceError: one is.
    """
    if min(weights) < 0:
        raise WeightspaceError(f"Method {method!r} takes non-negative weights; found {min(weights):g}.")


def check_sum(weights: Sequence[float], parameter: str = "normalize") -> None:
    """Check that weights can be divided by their sum.

    Args:
        weights: the weights.
        parameter: the parameter that asks for it, or ``always``, for the message.

    Raises:
        WeightspaceError: they cancel.
    """
    if abs(math.fsum(weights)) <= _CANCELLED * math.fsum(abs(weight) for weight in weights):
        hint = "" if parameter == "always" else f", or {parameter}=False (--{parameter.replace('_', '-')} false)"
        raise WeightspaceError(
            f"Weights {', '.join(f'{weight:g}' for weight in weights)} sum to 0, so a mean is undefined. "
            f"Expected weights with another sum{hint}."
        )


def shown(number: float) -> str:
    """Format a number for errors, including integers of thousands of digits."""
    return f"one of {number.bit_length():,} bits" if isinstance(number, int) else f"{number:g}"
