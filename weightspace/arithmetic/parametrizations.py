"""State dicts combined name by name in suitable coordinates: effective weights for weight norm, no singular vectors.

A *coordinate* is a tensor that is combined by itself. Other tensors are derived: weight norm's magnitude and direction
from the combined weight, spectral norm's vectors from the combined matrix (see ``weight_norm`` and ``spectral_norm``).
The mask of a pruned tensor must be the same in all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy

import torch
from torch import Tensor

from weightspace.arithmetic.dtypes import output_dtype
from weightspace.arithmetic.pruning import check_masks
from weightspace.arithmetic.spectral_norm import SpectralModel, spectral_vectors
from weightspace.arithmetic.weight_norm import EffectiveWeight, Held, pieces_of, split
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import (
    Parametrizations,
    SpectralNorm,
    WeightNorm,
    check_ties,
    find_parametrizations,
)
from weightspace.checkpoints.state_dict import tied_names
from weightspace.errors import WeightspaceError

#: Makes one new tensor from those that the models have under a name.
Combine = Callable[[str, "list[Tensor]"], Tensor]


class Coordinates:
    """The coordinates of networks of one architecture, and the inverse map from combined coordinates.

    Args:
        models: the networks to combine, or the first of them: if a combination equals one of these, its parts are
            returned bit for bit.
        finite: refuse directions of length zero, which would give NaN.

    Attributes:
        names: names of the coordinates, in the order of the first network.
        parametrizations: parametrizations of the architecture.

    Raises:
        WeightspaceError: a parametrization is unsupported, or the models are pruned by different masks.
    """

    def __init__(self, models: Sequence[StateDict], *, finite: bool = True) -> None:
        self.models, self._finite = models, finite
        self._dtypes: Mapping[str, torch.dtype] = {}  # of the result by name; others are promoted from the models'
        self.parametrizations = find_parametrizations({name: tuple(tensor.shape) for name, tensor in models[0].items()})
        self.functions = self.parametrizations.functions
        self.names = [name for name in models[0] if name not in self.functions]
        for name, _ in self.parametrizations:
            if models[0][name].is_complex():
                raise WeightspaceError(
                    f"{name!r} is complex and under weight norm or spectral norm; only real weights can be merged "
                    "this way. Remove the parametrization from every model first."
                )
        check_masks(models, self.parametrizations)

    def without_weights(self, dtypes: Mapping[str, torch.dtype]) -> Coordinates:
        """Return the same for a result of other dtypes, without the models' plain tensors."""
        kept = {part for name, norm in self.parametrizations for part in (name, *norm.functions)}
        kept |= set(self.parametrizations.masks.values())
        other = copy(self)
        other.models = [{name: state[name] for name in state if name in kept} for state in self.models]
        other._dtypes = dtypes
        return other

    def of(self, state: StateDict, name: str) -> Tensor:
        """Return a coordinate of a network: a tensor of it, or the float64 effective weight of a pair."""
        norm = self.parametrizations.weight_norms.get(name)
        if norm is None:
            return state[name]
        weight, whole = self._weight(norm, state), torch.empty(state[name].shape, dtype=torch.float64)
        for start, piece in pieces_of(weight):
            whole.view(-1)[start : start + len(piece)] = piece
        return whole

    def dtype(self, name: str) -> torch.dtype:
        """Return the expected dtype of a combined coordinate: that of the result, or float64 for a pair."""
        return torch.float64 if name in self.parametrizations.weight_norms else self._dtype(name)

    def tensors(self, name: str, combined: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors given by a combined coordinate, by name: itself, and those derived from it.

        Args:
            name: name of the coordinate.
            combined: in the dtype of the result; effective weights of pairs in float64.
        """
        norm = self.parametrizations.weight_norms.get(name)
        if norm is None:
            yield name, combined
        else:
            yield from self._pair(norm, combined)
        for spectral in self.parametrizations.spectral_norms.get(name, ()):
            yield from self.vectors(spectral, combined)
        if (mask := self.parametrizations.masks.get(name)) is not None:
            yield mask, self.models[0][mask].detach().to(self._dtype(mask), copy=True)

    def following(self, state: StateDict) -> Iterator[tuple[str, Tensor]]:
        """Yield the singular vectors for the weights of a network, replacing those it has."""
        for matrix, norms in self.parametrizations.spectral_norms.items():
            for norm in norms:
                yield from self.vectors(norm, self.of(state, matrix))

    def vectors(self, norm: SpectralNorm, combined: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the singular vectors of a combined matrix by name."""
        result = spectral_vectors(combined, [self.spectral_model(norm, state) for state in self.models])
        parts = (norm.left, result.left), (norm.right, result.right), (norm.value, result.value)
        yield from ((name, part.to(self._dtype(name), copy=True)) for name, part in parts if name and part is not None)

    def _pair(self, norm: WeightNorm, combined: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield magnitude and direction of a combined weight."""
        held = Held(combined)
        divided = split([self._weight(norm, state) for state in self.models], lambda: pieces_of(held))
        direction, like = torch.empty(combined.shape, dtype=torch.float64), self.models[0][norm.magnitude]
        for start, piece in pieces_of(held):
            direction.view(-1)[start : start + len(piece)] = divided.direction(start, piece)
        magnitude = divided.magnitudes().view(like.shape)
        yield norm.magnitude, magnitude.to(like.device, self._dtype(norm.magnitude))
        yield norm.direction, direction.to(like.device, self._dtype(norm.direction))

    def _weight(self, norm: WeightNorm, state: StateDict) -> EffectiveWeight:
        parts = (Held(state[norm.magnitude].cpu()), Held(state[norm.direction].cpu()))
        return EffectiveWeight(*parts, name=norm.direction, finite=self._finite)

    def spectral_model(self, norm: SpectralNorm, state: StateDict) -> SpectralModel:
        """Return a network's tensors for a weight under spectral norm."""
        below = self.parametrizations.weight_norms.get(norm.matrix)
        weight = Held(state[norm.matrix]) if below is None else self._weight(below, state)
        right, value = (None if name is None else state[name] for name in (norm.right, norm.value))
        return SpectralModel(weight, state[norm.left], right, value)

    def _dtype(self, name: str) -> torch.dtype:
        return self._dtypes.get(name) or output_dtype(state[name].dtype for state in self.models)


def combined_tensors(
    states: Sequence[StateDict], combine: Combine, *, without: Collection[str] = (), finite: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a combination by name, one at a time.

    Args:
        states: state dicts with the same names.
        combine: makes one coordinate from those of the models, which are float64 for pairs.
        without: coordinates to skip, along with tensors derived from them.
        finite: see ``Coordinates``.
    """
    coordinates = Coordinates(states, finite=finite)
    for name in coordinates.names:
        if name not in without:
            yield from coordinates.tensors(name, combine(name, [coordinates.of(state, name) for state in states]))


def combined(states: Sequence[StateDict], combine: Combine, *, finite: bool = True) -> StateDict:
    """Return a combination of networks in the order of the first; names tied in all of them are made once.

    Args:
        states: state dicts with the same names.
        combine: as for ``combined_tensors``.
        finite: see ``Coordinates``.

    Raises:
        WeightspaceError: a parametrization is unsupported, only some of its tensors are tied, or the networks are
            pruned by different masks.
    """
    parametrizations = find_parametrizations({name: tuple(tensor.shape) for name, tensor in states[0].items()})
    tied = dict(set.intersection(*(set(tied_names(state).items()) for state in states)))
    check_ties(parametrizations, tied)
    without = made_elsewhere(parametrizations, tied)
    made = dict(combined_tensors(states, combine, without=without, finite=finite))
    return {name: made[tied.get(name, name)] for name in states[0]}


def made_elsewhere(parametrizations: Parametrizations, tied: Mapping[str, str]) -> set[str]:
    """Return the tied coordinates that need no computation, since everything derived from them is tied as well."""
    alone = {name for name, norm in parametrizations if any(part not in tied for part in norm.functions)}
    alone |= {name for name, mask in parametrizations.masks.items() if mask not in tied}
    return set(tied) - alone
