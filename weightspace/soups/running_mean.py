r"""The running mean of networks: one set of sums for any number of networks.

:math:`m_k = (x_1 + \dots + x_k) / k` from exact sums, so that the result doesn't depend on order or number. Weight-norm
pairs are averaged as the weights that they represent; of spectral norm's vectors, which are derived from the mean,
those of the first network are kept (see ``arithmetic.parametrizations``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.arithmetic.dtypes import output_dtype
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.parametrizations import Coordinates, made_elsewhere
from weightspace.arithmetic.pruning import check_masks
from weightspace.arithmetic.running_mean import ExactSum
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.buffers import check_ties
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state_dict import tied_names
from weightspace.lora.factor_files import check_is_model


class RunningMean:
    """The mean of the networks added so far.

    Attributes:
        names: names of the networks, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._sums: dict[str, ExactSum] = {}
        self._unaveraged: StateDict = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._tied: dict[str, str] = {}
        self._coordinates: Coordinates | None = None

    @torch.no_grad()
    def add(self, state: StateDict, name: str) -> None:
        """Add a network to the mean.

        Args:
            state: its tensors, with the same names and shapes as before. Only the first network's tensors under weight
                norm and spectral norm are kept alive by the mean.
            name: name of the network for errors.

        Raises:
            CheckpointError: names or shapes differ from those before.
            WeightspaceError: an integer tensor other than a counter, or a pruning mask, differs.
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
            owner = self._tied.pop(key)  # tied in all previous networks, but not in this one
            if owner in self._sums:
                self._sums[key] = self._sums[owner].copy()
            if owner in self._unaveraged:
                self._unaveraged[key] = self._unaveraged[owner]
        for key in coordinates.names:
            if key not in self._tied:
                self._add(key, coordinates.of(state, key), name)
        for key, tensor in state.items():
            self._dtypes[key] = output_dtype((self._dtypes[key], tensor.dtype))
        self.names.append(name)

    @torch.no_grad()
    def joined(self, state: StateDict, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the mean with one more network, which isn't added to it.

        Args:
            state: as for ``add``.
            name: as for ``add``.

        Yields:
            Name and a new tensor, in the dtype of the networks (promoted if they differ).

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
        """Return the mean in the dtype of the networks; tensors tied in all of them stay tied.

        This consumes the running mean, which is released one tensor at a time.
        """
        if self._coordinates is None:
            return {}
        coordinates, made = self._coordinates, StateDict()
        elsewhere = made_elsewhere(coordinates.parametrizations, self._tied)
        for key in coordinates.names:
            if key not in elsewhere:
                owner, dtype = self._tied.get(key), coordinates.dtype(key)
                mean = self._mean(key, dtype) if owner is None else made[owner].to(dtype)
                made.update(coordinates.tensors(key, mean))
        return {key: made[self._tied.get(key, key)] for key in self._dtypes}

    def _check(self, state: StateDict, name: str) -> None:
        check_is_model(state, name)
        if self._coordinates is not None:
            first, functions = self._coordinates.models[0], self._coordinates.functions
            following = {key: first[key] for key in first if key in functions}
            own = {key: total.high for key, total in self._sums.items()} | self._unaveraged
            ties = {key: own[owner] for key, owner in self._tied.items() if owner in own}
            check_compatible({**ties, **following, **own}, state, names=(self.names[0], name))
            check_masks([first, state], self._coordinates.parametrizations, models=(self.names[0], name))

    def _add(self, key: str, tensor: Tensor, name: str) -> None:
        """Add one tensor to its sum, or keep its value if it isn't averaged."""
        kept = self._without_average(key, tensor, name)
        if is_inexact(tensor):
            if key in self._sums:
                self._sums[key].add(tensor)
            else:
                self._sums[key] = ExactSum.of(tensor)
        if kept is not None:
            self._unaveraged[key] = kept
        else:
            self._unaveraged.pop(key, None)

    def _mean(self, key: str, dtype: torch.dtype) -> Tensor:
        """Return one tensor of the mean and release its sum."""
        kept = self._unaveraged.pop(key, None)
        return self._sums.pop(key).mean(len(self.names), dtype) if kept is None else kept.to(dtype)

    def _joined(self, key: str, tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        """Return one tensor of the mean with one more network."""
        owner = self._tied.get(key, key)
        kept = self._without_average(owner, tensor, name)
        if kept is not None:
            return kept.to(dtype)
        total = self._sums.get(owner)
        if total is None:
            return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        return total.mean_with(tensor, len(self.names) + 1, dtype)

    def _without_average(self, key: str, tensor: Tensor, name: str) -> Tensor | None:
        """Return the value of one tensor with one more network if it isn't averaged, else None."""
        known = self._unaveraged.get(key)
        if known is None and key in self._sums:
            return None
        return unaveraged(key, [tensor] if known is None else [known, tensor], models=[*self.names[:1], name])
