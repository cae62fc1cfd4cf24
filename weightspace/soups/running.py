r"""The running mean of networks in float64: one set of tensors, however many networks go in.

:math:`m_k = m_{k-1} - (m_{k-1} - x_k) / k`, of which copies are a fixed point bit for bit, in every dtype (a running
sum has that for float32 only: :math:`3x` is not a float64 for every float64 :math:`x`). Pairs of weight norm are
averaged as the weights that they stand for, and of spectral norm's vectors, which follow from the mean, those of the
first network are kept (see ``elementwise.parametrized``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.adapters.factor_files import check_is_model
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.buffers import check_ties
from weightspace.checkpoints.state import tied_names
from weightspace.elementwise.counting import unaveraged
from weightspace.elementwise.parametrized import Coordinates, made_elsewhere
from weightspace.elementwise.precision import output_dtype

#: Elements taken at a time, so that what is made on the way stays small: 1 MiB.
_PIECE = 2**17


class RunningMean:
    """The mean of the networks added so far.

    Attributes:
        names: of the networks, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._means: StateDict = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._tied: dict[str, str] = {}
        self._coordinates: Coordinates | None = None

    @torch.no_grad()
    def add(self, state: StateDict, name: str) -> None:
        """Take in a network.

        Args:
            state: its tensors, of the names and shapes of those before. Of the first network those under weight norm
                and spectral norm are kept as long as the mean is, of any other nothing.
            name: of the network, for errors.

        Raises:
            CheckpointError: names or shapes differ from those before.
            WeightspaceError: an integer tensor differs, other than a counter.
        """
        self._check(state, name)
        coordinates = self._coordinates or Coordinates([state]).without_weights(self._dtypes)
        tied = tied_names(state)
        check_ties(coordinates.parametrizations, tied)
        if not self.names:
            self._coordinates = coordinates
            self._dtypes.update((key, tensor.dtype) for key, tensor in state.items())
            self._tied = tied
        for key in [key for key, owner in self._tied.items() if tied.get(key) != owner]:
            owner = self._tied.pop(key)  # tied in all before, but not in this one
            if owner in self._means:
                self._means[key] = self._means[owner].clone()
        for key in coordinates.names:
            if key not in self._tied:
                self._means[key] = self._joined(key, coordinates.of(state, key), name)
        for key, tensor in state.items():
            self._dtypes[key] = output_dtype((self._dtypes[key], tensor.dtype))
        self.names.append(name)

    @torch.no_grad()
    def joined(self, state: StateDict, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the mean with one network more, which is not taken in.

        Args:
            state: as for ``add``.
            name: as for ``add``.

        Yields:
            Name and a new tensor, in the dtype of the networks (the promoted one where they differ).

        Raises:
            CheckpointError: names or shapes differ.
            WeightspaceError: an integer tensor differs.
        """
        self._check(state, name)
        dtypes = {
            key: output_dtype((self._dtypes.get(key, tensor.dtype), tensor.dtype)) for key, tensor in state.items()
        }
        coordinates = (self._coordinates or Coordinates([state])).without_weights(dtypes)
        for key in coordinates.names:
            mean = self._joined(key, coordinates.of(state, key), name, coordinates.dtype(key))
            yield from coordinates.tensors(key, mean)

    def state(self) -> StateDict:
        """Return the mean in the dtype of the networks; names that are tied in all of them stay tied.

        It is the end of the running mean, which is given up a tensor at a time.
        """
        if self._coordinates is None:
            return {}
        coordinates, made = self._coordinates, StateDict()
        elsewhere = made_elsewhere(coordinates.parametrizations, self._tied)
        for key in coordinates.names:
            if key not in elsewhere:
                mean = self._means.pop(key) if key not in self._tied else made[self._tied[key]]
                made.update(coordinates.tensors(key, mean.to(coordinates.dtype(key))))
        return {key: made[self._tied.get(key, key)] for key in self._dtypes}

    def _check(self, state: StateDict, name: str) -> None:
        check_is_model(state, name)
        if self._coordinates is not None:
            first, functions = self._coordinates.models[0], self._coordinates.functions
            following = {key: first[key] for key in first if key in functions}
            known = {**self._ties(), **following, **self._means}
            check_compatible(known, state, names=(self.names[0], name))

    def _ties(self) -> StateDict:
        return {key: self._means[owner] for key, owner in self._tied.items() if owner in self._means}

    def _joined(self, key: str, tensor: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return one tensor of the mean with a network more: in a dtype, or in the place of the mean itself."""
        mean = self._means.get(self._tied.get(key, key))
        whole = unaveraged(key, [tensor] if mean is None else [mean, tensor], models=[*self.names[:1], name])
        if whole is not None:
            return whole if dtype is None else whole.to(dtype)
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        if mean is None:
            return tensor.detach().to(dtype or wide, copy=True, memory_format=torch.contiguous_format)
        joined = mean if dtype is None else torch.empty_like(mean, dtype=dtype)
        count = len(self.names) + 1
        pieces = (one.reshape(-1).split(_PIECE) for one in (mean, tensor.detach(), joined))
        for old, new, into in zip(*pieces, strict=True):
            new = new.to(wide)
            # Equal elements differ by +0.0, and x − (+0.0) is x for both zeros; ∞ − ∞ is nothing to go by.
            step = (old - new).masked_fill_(old == new, 0.0).div_(count)
            into.copy_(torch.sub(old, step, out=step))
        return joined
