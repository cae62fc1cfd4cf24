r"""The running mean of networks in float64: one set of tensors, however many networks go in.

:math:`m_k = m_{k-1} - (m_{k-1} - x_k) / k`, of which copies are a fixed point bit for bit, in every dtype (a running
sum has that for float32 only: :math:`3x` is not a float64 for every float64 :math:`x`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.adapters.factor_files import check_is_model
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state import tied_names
from weightspace.elementwise.counting import agreed
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

    @torch.no_grad()
    def add(self, state: StateDict, name: str) -> None:
        """Take in a network.

        Args:
            state: its tensors, of the names and shapes of those before; not kept.
            name: of the network, for errors.

        Raises:
            CheckpointError: names or shapes differ from those before.
            WeightspaceError: an integer tensor differs, other than BatchNorm's counter of batches.
        """
        self._check(state, name)
        tied = tied_names(state)
        if not self.names:
            self._dtypes = {key: tensor.dtype for key, tensor in state.items()}
            self._tied = tied
        for key in [key for key, owner in self._tied.items() if tied.get(key) != owner]:
            self._means[key] = self._means[self._tied.pop(key)].clone()  # tied in all before, but not in this one
        for key, tensor in state.items():
            if key not in self._tied:
                self._means[key] = self._joined(key, tensor, name)
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
        for key, tensor in state.items():
            dtype = output_dtype((self._dtypes.get(key, tensor.dtype), tensor.dtype))
            yield key, self._joined(key, tensor, name, dtype)

    def state(self) -> StateDict:
        """Return the mean in the dtype of the networks; names that are tied in all of them stay tied.

        It is the end of the running mean, which is given up a tensor at a time.
        """
        state: StateDict = {}
        for key, dtype in self._dtypes.items():
            owner = self._tied.get(key)
            state[key] = state[owner] if owner else self._means.pop(key).to(dtype)
        return state

    def _check(self, state: StateDict, name: str) -> None:
        check_is_model(state, name)
        if self.names:
            check_compatible({**self._ties(), **self._means}, state, names=(self.names[0], name))

    def _ties(self) -> StateDict:
        return {key: self._means[owner] for key, owner in self._tied.items()}

    def _joined(self, key: str, tensor: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return one tensor of the mean with a network more: in a dtype, or in the place of the mean itself."""
        mean = self._means.get(self._tied.get(key, key))
        if not is_inexact(tensor):
            whole = tensor.clone() if mean is None else agreed(key, [mean, tensor], models=(self.names[0], name))
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
