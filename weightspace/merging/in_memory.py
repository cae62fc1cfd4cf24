"""``merge``: merging of state dicts in memory by any registered method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.arguments import checked
from weightspace.arithmetic.dtypes import compute_dtype, output_dtype
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.parametrizations import Coordinates, combined
from weightspace.arithmetic.pruning import PrunedTensor
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.buffers import check_evidence, effective_name
from weightspace.devices import check_device
from weightspace.errors import WeightspaceError, warn_caller
from weightspace.lora.factor_files import check_is_model
from weightspace.merging.methods import Method
from weightspace.merging.methods._apply import merged_chunks, sound_chunks
from weightspace.merging.methods._loading import load_global_pass
from weightspace.merging.methods._tensor_stack import InMemory, TensorReader, TensorStack, real
from weightspace.merging.recipe.merge_roles import checked_evidence, find_method, split_base
from weightspace.merging.running_statistics import statistics_advice
from weightspace.merging.slices.layer_index import Layers

#: Advice on the statistics of a merged network in Python.
_REMEDY = "weightspace.connectivity.reset_statistics(task, merged) recomputes them."


@checked
def merge(
    states: Sequence[StateDict],
    method: str = "linear",
    *,
    base: StateDict | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    evidence: Sequence[StateDict] | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
) -> StateDict:
    """Merge networks of one architecture into one.

    Args:
        states: state dicts of the same names and shapes, one per model. One that is the base itself is left out.
        method: a name in ``METHODS``, or a user's ``file.py:function``.
        base: the pretrained model, for methods that work on the difference from it; the endpoint ``t = 0`` of slerp,
            nearswap and arcee_fusion, which default to the first of two states.
        weights: one finite number per model; equal by default.
        parameters: options of the method by name; those that may differ by model take one value or a list.
        evidence: statistics of data by tensor name, one mapping per model, for methods with ``Method.evidence``.
        allow_nonfinite: merge NaN and infinity too.
        device: where matrices are decomposed and multiplied; see ``OutputOptions``.

    Returns:
        New tensors in the order of the first state dict and the (promoted) dtype of the inputs, rounded once. Integer
        tensors are copied if all agree; counters take the largest value. Parametrized weights (weight norm, spectral
        norm, one pruning mask) are merged as the network uses them. Tied tensors stay tied; copies merge to the copy.

    Raises:
        CheckpointError: names or shapes differ, or a tensor is float in one model and integer in another.
        WeightspaceError: the method, a parameter, the weights, the evidence or the device is invalid; integer
            tensors or pruning masks differ; a tensor or the result holds NaN or infinity.

    Warns:
        WeightspaceWarning: the running statistics of BatchNorm are averaged; ``reset_statistics`` recomputes them.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> base = {"w": torch.tensor([1.0, 1.0])}
        >>> math, code = {"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}
        >>> ws.merge([math, code], "task_arithmetic", base=base)
        {'w': tensor([2., 3.])}
    """
    check_device(device, torch.float64)
    row, finite = find_method(method), not allow_nonfinite
    merged = merge_states(states, row, base, weights, parameters, evidence, finite=finite, device=device)
    advice = statistics_advice(merged, _REMEDY) if len(states) > 1 and method != "passthrough" else None
    if advice is not None:
        warn_caller(advice)
    return merged


@torch.no_grad()
def merge_states(
    states: Sequence[StateDict],
    row: Method,
    base: StateDict | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    evidence: Sequence[StateDict] | None = None,
    *,
    finite: bool = True,
    device: str = "cpu",
) -> StateDict:
    """Return the merge of networks by a row of the table of methods; see ``merge``."""
    _check_models(states, base)
    listed = [index for index, state in enumerate(states) if state is base]
    models, origin, factors = split_base(row, states, base, listed, weights)
    arguments = row.arguments(parameters or {}, len(models))
    merging = _Merging(states[0], row, factors, arguments, evidence, finite, device)
    everything = models if origin is None else [*models, origin]
    # A base that is an endpoint counts as one of the models; any other base is not part of the result.
    ends = len(everything) if row.base == "end" else len(models)

    def kept(name: str, tensors: list[Tensor]) -> Tensor | None:
        return unaveraged(name, tensors[:ends])

    merging.global_pass(everything, kept, has_base=origin is not None)

    def combine(name: str, tensors: list[Tensor]) -> Tensor:
        whole = kept(name, tensors)
        return merging.tensor(name, tensors, has_base=origin is not None) if whole is None else whole

    return combined(everything, combine, finite=finite)


def _check_models(states: Sequence[StateDict], base: StateDict | None) -> None:
    """Check that there are models and that they are compatible."""
    if isinstance(states, Mapping) or not states:
        found = "one state dict" if isinstance(states, Mapping) else "an empty list"
        raise WeightspaceError(f"merge takes a list of state dicts, [a, b, …]; found {found}.")
    for index, state in enumerate(states, start=1):
        check_is_model(state, f"model {index}")
    for index, state in enumerate(states[1:], start=2):
        check_compatible(states[0], state, names=("model 1", f"model {index}"))
    if base is not None:
        check_compatible(states[0], base, names=("model 1", "the base"))


class _Merging:
    """A method with its weights and parameters, applied name by name."""

    def __init__(
        self,
        names: Iterable[str],
        row: Method,
        weights: Sequence[float],
        arguments: Mapping[str, Any],
        evidence: Sequence[StateDict] | None,
        finite: bool,
        device: str,
    ) -> None:
        self.layers = Layers(names)
        self.row = row
        self.weights = weights
        self.arguments = arguments
        self.evidence = checked_evidence(row, evidence, len(weights))
        if not all(isinstance(statistics, Mapping) for statistics in self.evidence):
            raise WeightspaceError("Evidence is one state dict per model, name -> statistics; found something else.")
        self.finite = finite
        self.device = device
        self.global_arguments: Mapping[str, Mapping[str, Any]] = {}
        self.parametrized: Collection[str] = ()
        self.masks: Mapping[str, Tensor] = {}

    def global_pass(
        self, states: Sequence[StateDict], kept: Callable[[str, list[Tensor]], Tensor | None], *, has_base: bool
    ) -> None:
        """Run the method's global pass, if it has one; ``kept`` returns the tensors that are not merged."""
        coordinates = Coordinates(states, finite=self.finite)
        self.parametrized = {name for name, _ in coordinates.parametrizations}
        self.masks = {name: states[0][mask] for name, mask in coordinates.parametrizations.masks.items()}
        for number, evidence in enumerate(self.evidence, start=1):
            check_evidence(f"model {number}", evidence, coordinates.parametrizations)
        self._check_evidence({*coordinates.names, *map(effective_name, self.parametrized)})
        global_pass = load_global_pass(self.row)
        if global_pass is not None and self.row.needs_global_pass(self.arguments):
            tensors = {name: [coordinates.of(state, name) for state in states] for name in sorted(coordinates.names)}
            stacks = [self._stack(name, own, has_base) for name, own in tensors.items() if kept(name, own) is None]
            self.global_arguments = global_pass(stacks, [self.arguments] * len(stacks))

    def _check_evidence(self, names: Collection[str]) -> None:
        """Check that the evidence has some of the models' tensors."""
        known = {name: None for evidence in self.evidence for name in evidence}
        if known and known.keys().isdisjoint(names):
            raise WeightspaceError(
                f"The evidence has none of the models' tensors, but {next(iter(known))!r}; without evidence, "
                f"{self.row.name!r} is the plain mean. Was it collected for these networks?"
            )

    def tensor(self, name: str, tensors: Sequence[Tensor], *, has_base: bool) -> Tensor:
        """Merge the tensors of one name; the base's is last."""
        models = tensors[: len(self.weights)]
        dtype = output_dtype(tensor.dtype for tensor in models)
        merged = torch.empty(models[0].shape, dtype=dtype)
        elements = real(merged).view(-1)
        arguments = {**self.arguments, **self.global_arguments.get(name, {})}
        stack = self._stack(name, tensors, has_base)
        chunks = merged_chunks(self.row, stack, self.weights, arguments, elements.dtype)
        for start, values in sound_chunks(stack, chunks):
            elements[start : start + len(values)] = values
        return merged

    def _stack(self, name: str, tensors: Sequence[Tensor], has_base: bool) -> TensorStack:
        """Return the tensors of one name as the method reads them."""
        flats: list[TensorReader] = [InMemory(tensor) for tensor in tensors]
        if (mask := self.masks.get(name)) is not None and not mask.is_complex():
            flats = [PrunedTensor(flat, InMemory(mask), flat.dtype) for flat in flats]
        count = len(self.weights)
        inside = effective_name(name) if name in self.parametrized else name
        evidence = [state.get(name, state.get(inside)) for state in self.evidence]
        return TensorStack(
            name,
            flats[:count],
            flats[count] if has_base else None,
            [f"model {number}" for number in range(1, count + 1)],
            self.row.granularity_of(self.arguments),
            self.finite,
            compute_dtype(flat.dtype for flat in flats),
            evidence=[None if tensor is None else InMemory(tensor) for tensor in evidence],
            layer=self.layers.depth(name),
            device=self.device if self.row.on_device else "cpu",
        )
