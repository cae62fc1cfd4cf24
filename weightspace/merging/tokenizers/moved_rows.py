"""Tensors by tokens, read as if their rows had the ids of the output.

A checkpoint that lacks a token gets a row for it, as in mergekit: that of the only one that has it; else that of the
base; else the mean of all that have it; zeros where none has. Rows behind the tokens, and of ids without a token, are
the mean of all others. Means are summed in float64 and rounded once to the dtype of the tensor.
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

#: In the place of the number of a checkpoint: the row is the mean of those that have the token, zero, or padding.
_MEAN, _ZERO, _PADDING = -1, -2, -3

#: Elements of a block of rows whose mean is taken.
_BLOCK = 2**18


class RowSources:
    """The rows of the output, by checkpoint and row, for tensors that some checkpoints have.

    Args:
        vocabulary: of the merge.
        members: numbers of the checkpoints.
    """

    def __init__(self, vocabulary: MovedVocabulary, members: tuple[int, ...]) -> None:
        self.vocabulary = vocabulary
        self.own = {member: torch.from_numpy(np.frombuffer(vocabulary.own[member], np.int64)) for member in members}
        known = torch.stack(list(self.own.values())) >= 0
        numbers = torch.tensor(members)
        count, first = known.sum(0), known.to(torch.uint8).argmax(0)
        self.donors = torch.where(count == 1, numbers[first], torch.where(count == 0, _ZERO, _MEAN))
        base = vocabulary.base
        if base in self.own:
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

    def of(self, member: int) -> tuple[Tensor, Tensor]:
        """Return the checkpoint and the row there of every row of a checkpoint's tensor, padding included."""
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
    """Return a checkpoint's tensor with the rows of the output: as it is, where no row moves; see ``MovedRows``."""
    donors, rows = sources.of(member)
    count = shape[-1] if is_one_row(shape) else shape[0]
    if len(rows) == count and bool((donors == member).all()) and torch.equal(rows, torch.arange(count)):
        return readers[member]
    return MovedRows(sources, readers, member, shape)


class MovedRows:
    """A ``TensorReader`` of a checkpoint's tensor whose rows have the ids of the output.

    Args:
        sources: the rows of the output.
        readers: of the tensor of each checkpoint that has it.
        member: the number of the checkpoint.
        shape: of the tensor in the files.
    """

    def __init__(
        self,
        sources: RowSources,
        readers: Mapping[int, TensorReader],
        member: int,
        shape: tuple[int, ...],
    ) -> None:
        self._sources, self._readers = sources, readers
        self._donors, self._rows = sources.of(member)
        self._length = row_length(shape)
        self._mean: Tensor | None = None
        self._lock = threading.Lock()
        self.dtype = readers[member].dtype
        moved = (self._donors.diff() != 0) | (self._rows.diff() != 1)
        #: Rows that do not follow the one before in the file of the same checkpoint.
        self._breaks = moved.nonzero().flatten() + 1
        self._present: list[int] = self._donors.unique().tolist()
        for donor in self._present:
            donors = readers.values() if donor == _MEAN else [readers[donor]] if donor >= 0 else []
            for reader in donors:
                self.dtype = torch.promote_types(self.dtype, reader.dtype)
        self.shape = with_rows(shape, len(self._rows))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D."""
        first, end = start // self._length, -(-stop // self._length)
        rows = self._read_rows(first, end)
        return rows.view(-1)[start - first * self._length : stop - first * self._length]

    def _read_rows(self, first: int, end: int) -> Tensor:
        """Return whole rows."""
        lower, upper = torch.searchsorted(self._breaks, torch.tensor([first + 1, end])).tolist()
        breaks = self._breaks[lower:upper]
        starts = torch.cat([torch.tensor([first]), breaks])
        ends = torch.cat([breaks, torch.tensor([end])])
        donors, rows = self._donors[starts], self._rows[starts]
        out = torch.empty(end - first, self._length, dtype=self.dtype)
        for donor in self._present:
            of = (donors == donor).nonzero().flatten()
            if not len(of):
                continue
            places = starts[of] - first, ends[of] - first
            if donor >= 0:
                _read_runs(self._readers[donor], out, *places, rows[of])
                continue
            for start, stop in zip(*(place.tolist() for place in places), strict=True):
                out[start:stop] = self._made(donor, first + start)
        return out

    def _made(self, donor: int, token: int) -> Tensor | int:
        """Return the row of a token that is in no file."""
        if donor == _ZERO:
            return 0
        return self._mean_of(token) if donor == _MEAN else self._padding()

    def _mean_of(self, token: int) -> Tensor:
        """Return the mean of the rows of a token in all checkpoints that have it."""
        total, count = torch.zeros(self._length, dtype=torch.float64), 0
        for member, own in self._sources.own.items():
            row = int(own[token])
            if row >= 0:
                total += self._readers[member].read(row * self._length, (row + 1) * self._length)
                count += 1
        return (total / count).to(self.dtype)

    def _padding(self) -> Tensor:
        """Return the mean of the rows that are no padding."""
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
        """Return those of some rows that are no padding."""
        ends = [first, *(first + 1 + (~kept).nonzero().flatten()).tolist(), end + 1]
        parts = [self._read_rows(a, b - 1) for a, b in itertools.pairwise(ends) if a < b - 1]
        return torch.cat(parts) if parts else torch.empty(0, self._length, dtype=self.dtype)


def _read_runs(reader: TensorReader, out: Tensor, starts: Tensor, ends: Tensor, rows: Tensor) -> None:
    """Fill stretches of rows of ``out``."""
    length = out.shape[1]
    if isinstance(reader, StoredTensor) and reader.dtype == out.dtype:
        reader.read_runs_into(out, starts * length, ends * length, rows * length)
        return
    for start, end, row in zip(starts.tolist(), ends.tolist(), rows.tolist(), strict=True):
        out[start:end] = reader.read(row * length, (row + end - start) * length).view(-1, length)
