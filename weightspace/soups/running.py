r"""The running mean of networks: one set of sums, however many networks go in.

:math:`m_k = (x_1 + \dots + x_k) / k` from sums in float64, and from what these lose where they lose anything, so that
neither order nor number shows: the mean is the exact one, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state import tied_names
from weightspace.elementwise.counting import agreed
from weightspace.elementwise.double_word import quotient, rounded_once, two_sum
from weightspace.elementwise.precision import output_dtype

#: Elements taken at a time, so that what is made on the way stays small: 1 MiB.
_PIECE = 2**17

#: Numbers whose sums overflow are added times this.
_SMALLER = 2.0**-128


class RunningMean:
    """The mean of the networks added so far.

    Attributes:
        names: of the networks, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._sums: dict[str, _Sum] = {}
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
            self._sums[key] = self._sums[self._tied.pop(key)].copy()  # tied in all before, but not in this one
        for key, tensor in state.items():
            if key not in self._tied:
                self._add(key, tensor, name)
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
            known = self._sums.get(self._tied.get(key, key))
            if known is None:
                yield key, tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            elif is_inexact(tensor):
                yield key, known.mean_with(tensor, len(self.names) + 1, dtype)
            else:
                yield key, agreed(key, [known.high, tensor], models=(self.names[0], name)).to(dtype)

    def state(self) -> StateDict:
        """Return the mean in the dtype of the networks; names that are tied in all of them stay tied.

        It is the end of the running mean, which is given up a tensor at a time.
        """
        state: StateDict = {}
        for key, dtype in self._dtypes.items():
            owner = self._tied.get(key)
            state[key] = state[owner] if owner else self._sums.pop(key).mean(len(self.names), dtype)
        return state

    def _add(self, key: str, tensor: Tensor, name: str) -> None:
        """Add one tensor to its sum; of counters the largest stays."""
        known = self._sums.get(key)
        if known is None:
            self._sums[key] = _Sum.of(tensor)
        elif is_inexact(tensor):
            known.add(tensor)
        else:
            known.high = agreed(key, [known.high, tensor], models=(self.names[0], name))

    def _check(self, state: StateDict, name: str) -> None:
        if self.names:
            known = {key: self._sums[self._tied.get(key, key)].high for key in self._dtypes}
            check_compatible(known, state, names=(self.names[0], name))


@dataclass
class _Sum:
    """The sum of tensors; of integers, what they agree on.

    Attributes:
        high: float64, or complex128.
        low: what its roundings lost, None where that is nothing.
        scale: what the tensors were multiplied by.
    """

    high: Tensor
    low: Tensor | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, tensor: Tensor) -> _Sum:
        """Begin with a tensor."""
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        dtype = wide if is_inexact(tensor) else tensor.dtype
        return cls(tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format))

    def copy(self) -> _Sum:
        """Return a sum in memory of its own."""
        return _Sum(self.high.clone(), None if self.low is None else self.low.clone(), self.scale)

    def add(self, tensor: Tensor) -> None:
        """Add a tensor."""
        self._make_room(tensor)
        for start, high, low, total, lost in self._with(tensor):
            high.copy_(total)
            if low is None and bool(lost.count_nonzero()):
                self.low = torch.zeros_like(self.high)
            if self.low is not None:
                _flat(self.low)[start : start + len(lost)] += lost

    def mean(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return the sum over ``count``, rounded once."""
        if not is_inexact(self.high):
            return self.high.to(dtype)
        out = torch.empty_like(self.high, dtype=dtype)
        for start, high, low in self._pieces():
            into = _flat(out)[start : start + len(high)]
            _divide(high, torch.zeros_like(high) if low is None else low, count, self.scale, into)
        return out

    def mean_with(self, tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Return the same of this sum and a tensor, which is not added to it."""
        self._make_room(tensor)
        out = torch.empty_like(self.high, dtype=dtype)
        for start, _, low, total, lost in self._with(tensor):
            _divide(
                total, lost if low is None else lost + low, count, self.scale, _flat(out)[start : start + len(total)]
            )
        return out

    def _make_room(self, tensor: Tensor) -> None:
        """Scale the sum where it would overflow with a tensor."""
        if self.scale == 1 and tensor.dtype in (torch.float64, torch.complex128) and tensor.numel():
            sizes = (_flat(one).abs().nan_to_num_(posinf=0.0).max() for one in (self.high, tensor.detach()))
            if float(sum(sizes)) == math.inf:
                self.scale = _SMALLER
                self.high *= self.scale
                if self.low is not None:
                    self.low *= self.scale

    def _pieces(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield the index of a first element, and views of the real numbers from there on."""
        high = _flat(self.high)
        for start in range(0, len(high), _PIECE):
            stop = start + _PIECE
            yield start, high[start:stop], None if self.low is None else _flat(self.low)[start:stop]

    def _with(self, tensor: Tensor) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor, Tensor]]:
        """Yield the same, and the sum with the elements of a tensor, and what its rounding lost."""
        new = _flat(tensor.detach())
        for start, high, low in self._pieces():
            total, lost = two_sum(high, new[start : start + len(high)].to(torch.float64) * self.scale)
            yield start, high, low, total, lost.masked_fill_(~total.isfinite(), 0.0)


def _divide(high: Tensor, low: Tensor, count: int, scale: float, out: Tensor) -> None:
    """Put a sum over ``count · scale`` into ``out``, rounded once."""
    plain = high / count
    if out.dtype not in (torch.float32, torch.float64) or bool(low.count_nonzero()):
        first, rest = quotient((high.clone(), low.clone()), Fraction(count))
        exact = rounded_once((first / scale, rest / scale), out.dtype)
        finite = plain.isfinite() & (plain != 0)
        out.copy_(torch.where(finite, exact, (plain / scale).to(out.dtype)))
    else:
        out.copy_(plain.div_(scale))


def _flat(tensor: Tensor) -> Tensor:
    """Return the real numbers of a tensor, 1-D."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)
