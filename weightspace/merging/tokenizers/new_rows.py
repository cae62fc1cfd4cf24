"""Rows of all tensors by tokens for tokens that a model lacks: embedding, head and biases by the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.checkpoints.state_dict import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora.tied_weights import is_head
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.plan import Member
from weightspace.merging.tokenizers.approximation import (
    combined,
    mean_coefficients,
    nearest_coefficients,
    pursuit_coefficients,
)
from weightspace.merging.tokenizers.splitting import split
from weightspace.merging.tokenizers.token_keys import text_of
from weightspace.merging.tokenizers.token_table import TokenTable
from weightspace.merging.tokenizers.vocabulary_tensors import (
    embedding_rows,
    is_one_row,
    row_length,
    vocabulary_tensors,
)


class NewRows:
    """Makes the rows.

    Args:
        vocabulary: the new one; the model is its first checkpoint.
        member: the model.
        table: its tokens.
        other: the tokens of the model that the vocabulary comes from.
        lacking: ids of the tokens that the model lacks.
    """

    def __init__(
        self,
        vocabulary: MovedVocabulary,
        member: Member,
        table: TokenTable,
        other: TokenTable,
        lacking: Sequence[int],
    ) -> None:
        if member.adapter is not None:
            raise WeightspaceError(f"{member.source}: merge the adapter into its model first.")
        self.shapes = vocabulary.tensors[0]
        self.own, self.tokens = list(vocabulary.own[0]), vocabulary.tokens
        self.reader = CheckpointReader(member.stored or member.contents)
        self.table, self.other, self.lacking = table, other, list(lacking)

    def by_subwords(self) -> StateDict:
        """Return the means of the rows of the subwords that the model splits each token's text into.

        Raises:
            WeightspaceError: tokenizers is missing, or cannot read the model's tokenizer.
        """
        names = {number: token for token, number in self.other.ids.items()}
        texts = []
        for number in self.lacking:
            token = names[number]
            plain = token if token in self.other.added else text_of(token, self.other.writing).decode(errors="replace")
            texts.append(plain)
        coefficients = mean_coefficients(split(self.table, texts), embedding_rows(self.shapes))
        return {name: self._rows(name, *coefficients) for name in self.shapes}

    def by_shared_tokens(self, donor: CheckpointMetadata, *, method: str, neighbours: int) -> StateDict:
        """Return combinations of the rows of tokens that both models know, as they approximate each token in the other.

        Args:
            donor: the other model.
            method: ``"nearest"`` or ``"omp"``.
            neighbours: tokens that a row is made from, at most.

        Raises:
            CheckpointError: the other model has no embedding of tokens, or lacks rows.
            WeightspaceError: the two have no token in common.
        """
        shapes = vocabulary_tensors(donor.path.name, donor)
        matrices = [name for name, shape in shapes.items() if row_length(shape) > 1]
        if not matrices:
            raise CheckpointError(f"{donor.path} has no embedding of tokens; --method subword needs none.")
        head = next(filter(is_head, matrices), None)
        embedding = next((name for name in matrices if name != head), matrices[0])
        rows = embedding_rows(shapes)
        shared = [number for number, row in enumerate(self.own) if row >= 0 and number < rows]
        if not shared or max(self.lacking) >= rows:
            problem = "no token in common with" if not shared else f"only {rows:,} rows for the tokens of"
            raise WeightspaceError(f"{donor.path.name} has {problem} {self.table.folder.name}.")
        found = {}
        reader = CheckpointReader(donor)
        for name in dict.fromkeys((embedding, head or embedding)):
            matrix = reader[name].to(torch.float32)
            find = pursuit_coefficients if method == "omp" else nearest_coefficients
            indices, weights = find(matrix[self.lacking], matrix[shared], neighbours)
            found[name] = torch.tensor([self.own[number] for number in shared])[indices], weights
        of_head = found[head or embedding]
        is_of_head = {name: is_head(name) or row_length(shape) == 1 for name, shape in self.shapes.items()}
        return {name: self._rows(name, *(of_head if is_of_head[name] else found[embedding])) for name in self.shapes}

    def _rows(self, name: str, indices: Tensor, weights: Tensor) -> Tensor:
        """Return the new rows of one tensor, in its shape and dtype."""
        tensor, shape = self.reader[name], self.shapes[name]
        rows = combined(tensor.reshape(-1, row_length(shape)), indices, weights).to(tensor.dtype)
        return rows.view(1, -1) if is_one_row(shape) else rows.view(-1, *shape[1:])
