"""Read embedding-like tensors with their rows reordered to the output's token ids.

A checkpoint that lacks a token gets a row for it, following mergekit: the row of the only checkpoint that has the
token; otherwise the base's row; otherwise the mean over all checkpoints that have it; zeros if none has it. Padding
rows and rows of unused ids are the mean of all other rows. Means are accumulated in float64 and rounded once to the
tensor's dtype.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from weightspace.checkpoints.reader import StoredTensor
from weightspace.merging.methods._tensor_stack import TensorReader
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.tokenizers.vocabulary_tensors import is_one_row, row_length, with_rows

#: Special donor values: the mean of the checkpoints that have the token, a zero row, or a padding row.
_MEAN, _ZERO, _PADDING = -1, -2, -3

#: Number of elements read at a time when computing the mean of all rows.
_BLOCK = 2**18


class RowSources:
    """For each output row, the checkpoint and row that it is read from.

    Args:
        vocabulary: the output's vocabulary.
        members: indices of the checkpoints that have the tensor.
        base: index of the one that supplies rows for missing tokens; None: the mean of those that have them.
    """

    def __init__(self, vocabulary: MovedVocabulary, members: tuple[int, ...], base: int | None) -> None:
        self.vocabulary = vocabulary
        self.own = {member: torch.from_numpy(np.frombuffer(vocabulary.own[member], np.int64)) for member in members}
        known = torch.stack(list(self.own.values())) >= 0
        indices = torch.tensor(members)
        count, first = known.sum(0), known.to(torch.uint8).argmax(0)
        self.donors = torch.where(count == 1, indices[first], torch.where(count == 0, _ZERO, _MEAN))
        if base is not None:
            self.donors = torch.where((count > 1) & (self.own[base] >= 0), base, self.donors)
        self.rows = torch.zeros_like(self.donors)
        for member, own in self.own.items():
            self.rows = torch.where(self.donors == member, own, self.rows)
        self.forced = torch.zeros(len(self.donors), dtype=torch.bool)
        for token, chosen in vocabulary.chosen.items():
            self.forced[token] = chosen.force
            if not chosen.default:
                self.donors[token] = _ZERO if chosen.member is None else chosen.member
                self.rows[token] = chosen.row
        self.donors[list(vocabulary.gaps)] = _PADDING

    def rows_for(self, member: int) -> tuple[Tensor, Tensor]:
        """Return the donor checkpoint and the donor's row for each row of a checkpoint's tensor, including padding."""
        own = self.own[member]
        is_own = (own >= 0) & ~self.forced
        donors, rows = torch.where(is_own, member, self.donors), torch.where(is_own, own, self.rows)
        padding = (0, self.vocabulary.rows - len(own))
        return (
            torch.nn.functional.pad(donors, padding, value=_PADDING),
            torch.nn.functional.pad(rows, padding),
        )


def moved_rows(
    sources: RowSources, readers: Mapping[int, TensorReader], member: int, shape: tuple[int, ...]
) -> TensorReader:
    """Return a checkpoint's tensor with the output's rows; its own reader if all rows stay in place."""
    donors, rows = sources.rows_for(member)
    count = shape[-1] if is_one_row(shape) else shape[0]
    if len(rows) == count and bool((donors == member).all()) and torch.equal(rows, torch.arange(count)):
        return readers[member]
    return MovedRows(sources, readers, member, shape)


class MovedRows:
    """A ``TensorReader`` for a checkpoint's tensor with its rows reordered to the output's token ids.

    Args:
        sources: where each output row is read from.
        readers: readers of the tensor, for each checkpoint that has it.
        member: index of the checkpoint.
        shape: the tensor's shape in the file.
    """

    def __init__(
        self,
        sources: RowSources,
        readers: Mapping[int, TensorReader],
        member: int,
        shape: tuple[int, ...],
    ) -> None:
        self._sources, self._readers = sources, readers
        self._donors, self._rows = sources.rows_for(member)
        self._length = row_length(shape)
        self._mean: Tensor | None = None
        self._lock = threading.Lock()
        self.dtype = readers[member].dtype
        is_break = (self._donors.diff() != 0) | (self._rows.diff() != 1)
        #: Rows that do not directly follow the preceding row in the same checkpoint's file.
        self._breaks = is_break.nonzero().flatten() + 1
        self._present: list[int] = self._donors.unique().tolist()
        for donor in self._present:
            donors = readers.values() if donor == _MEAN else [readers[donor]] if donor >= 0 else []
            for reader in donors:
                self.dtype = torch.promote_types(self.dtype, reader.dtype)
        self.shape = with_rows(shape, len(self._rows))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements ``start:stop`` as a 1-D tensor."""
        first, end = start // self._length, -(-stop // self._length)
        rows = self._read_rows(first, end)
        return rows.view(-1)[start - first * self._length : stop - first * self._length]

    def _read_rows(self, first: int, end: int) -> Tensor:
        """Return the rows ``first:end``."""
        lower, upper = torch.searchsorted(self._breaks, torch.tensor([first + 1, end])).tolist()
        breaks = self._breaks[lower:upper]
        starts = torch.cat([torch.tensor([first]), breaks])
        ends = torch.cat([breaks, torch.tensor([end])])
        donors, rows = self._donors[starts], self._rows[starts]
        out = torch.empty(end - first, self._length, dtype=self.dtype)
        for donor in self._present:
            runs = (donors == donor).nonzero().flatten()
            if not len(runs):
                continue
            bounds = starts[runs] - first, ends[runs] - first
            if donor >= 0:
                _read_runs(self._readers[donor], out, *bounds, rows[runs])
                continue
            for start, stop in zip(*(bound.tolist() for bound in bounds), strict=True):
                out[start:stop] = self._computed_row(donor, first + start)
        return out

    def _computed_row(self, donor: int, token: int) -> Tensor | int:
        """Return a row that no checkpoint holds: zero, a mean over checkpoints, or padding."""
        if donor == _ZERO:
            return 0
        return self._mean_of(token) if donor == _MEAN else self._padding_row()

    def _mean_of(self, token: int) -> Tensor:
        """Return the mean of a token's rows over all checkpoints that have it."""
        total, count = torch.zeros(self._length, dtype=torch.float64), 0
        for member, own in self._sources.own.items():
            row = int(own[token])
            if row >= 0:
                total += self._readers[member].read(row * self._length, (row + 1) * self._length)
                count += 1
        return (total / count).to(self.dtype)

    def _padding_row(self) -> Tensor:
        """Return the mean of all rows that are not padding."""
        with self._lock:
            if self._mean is None:
                step = max(1, _BLOCK // self._length)
                total, count = torch.zeros(self._length, dtype=torch.float64), 0
                tokens = (self._donors != _PADDING).nonzero().flatten()
                last = int(tokens[-1]) + 1 if len(tokens) else 0
                for first in range(0, last, step):
                    end = min(first + step, last)
                    kept = self._donors[first:end] != _PADDING
                    block = self._token_rows(first, end, kept)
                    total += block.to(torch.float64).sum(0)
                    count += int(kept.sum())
                self._mean = (total / max(1, count)).to(self.dtype)
            return self._mean

    def _token_rows(self, first: int, end: int, kept: Tensor) -> Tensor:
        """Return the rows ``first:end`` that are not padding."""
        ends = [first, *(first + 1 + (~kept).nonzero().flatten()).tolist(), end + 1]
        parts = [self._read_rows(a, b - 1) for a, b in itertools.pairwise(ends) if a < b - 1]
        return torch.cat(parts) if parts else torch.empty(0, self._length, dtype=self.dtype)


def _read_runs(reader: TensorReader, out: Tensor, starts: Tensor, ends: Tensor, rows: Tensor) -> None:
    """Read runs of consecutive rows into ``out``."""
    length = out.shape[1]
    if isinstance(reader, StoredTensor) and reader.dtype == out.dtype:
        reader.read_runs_into(out, starts * length, ends * length, rows * length)
        return
    for start, end, row in zip(starts.tolist(), ends.tolist(), rows.tolist(), strict=True):
        out[start:end] = reader.read(row * length, (row + end - start) * length).view(-1, length)
