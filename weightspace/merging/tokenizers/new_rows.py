"""Rows for tokens that a model lacks, in its embedding, head and output biases."""

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
    combine_rows,
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
    """Approximates rows for new tokens.

    Args:
        vocabulary: the new vocabulary; the model is its first checkpoint.
        member: the model.
        table: the model's tokens.
        donor_table: the tokens of the donor, the model that the vocabulary comes from.
        lacking: ids of the tokens that the model lacks.
    """

    def __init__(
        self,
        vocabulary: MovedVocabulary,
        member: Member,
        table: TokenTable,
        donor_table: TokenTable,
        lacking: Sequence[int],
    ) -> None:
        if member.adapter is not None:
            raise WeightspaceError(
                f"{member.source} has a LoRA adapter; expected a full model. Merge the adapter into its model first."
            )
        self.shapes = vocabulary.tensors[0]
        self.own, self.tokens = list(vocabulary.own[0]), vocabulary.tokens
        self.reader = CheckpointReader(member.stored or member.contents)
        self.table, self.donor_table, self.lacking = table, donor_table, list(lacking)

    def by_subwords(self) -> StateDict:
        """Return, for each token, the mean of the rows of its subwords in the model's own tokenizer.

        Raises:
            WeightspaceError: the tokenizers package is missing or cannot read the model's tokenizer.
        """
        names = {number: token for token, number in self.donor_table.ids.items()}
        texts = []
        for number in self.lacking:
            token = names[number]
            is_added = token in self.donor_table.added
            texts.append(token if is_added else text_of(token, self.donor_table.writing).decode(errors="replace"))
        coefficients = mean_coefficients(split(self.table, texts), embedding_rows(self.shapes))
        return {name: self._rows(name, *coefficients) for name in self.shapes}

    def by_shared_tokens(self, donor: CheckpointMetadata, *, method: str, neighbours: int) -> StateDict:
        """Return, for each token, the combination of shared tokens' rows that approximates it in the donor's embedding.

        Args:
            donor: the donor model.
            method: ``"nearest"`` or ``"omp"``.
            neighbours: maximum number of shared tokens per row.

        Raises:
            CheckpointError: the donor has no token embedding.
            WeightspaceError: the models share no token, or the donor's embedding lacks rows.
        """
        shapes = vocabulary_tensors(donor.path.name, donor)
        matrices = [name for name, shape in shapes.items() if row_length(shape) > 1]
        if not matrices:
            raise CheckpointError(f"{donor.path} has no token embedding. Use --method subword, which needs none.")
        head = next(filter(is_head, matrices), None)
        embedding = next((name for name in matrices if name != head), matrices[0])
        rows = embedding_rows(shapes)
        shared = [number for number, row in enumerate(self.own) if row >= 0 and number < rows]
        if not shared or max(self.lacking) >= rows:
            problem = (
                f"shares no token with {self.table.folder.name}"
                if not shared
                else f"has only {rows:,} rows, fewer than its tokenizer has tokens"
            )
            raise WeightspaceError(f"{donor.path.name} {problem}. Use --method subword, which needs no weights of it.")
        coefficients = {}
        reader = CheckpointReader(donor)
        for name in dict.fromkeys((embedding, head or embedding)):
            matrix = reader[name].to(torch.float32)
            solve = pursuit_coefficients if method == "omp" else nearest_coefficients
            indices, weights = solve(matrix[self.lacking], matrix[shared], neighbours)
            coefficients[name] = torch.tensor([self.own[number] for number in shared])[indices], weights
        state: StateDict = {}
        for name, shape in self.shapes.items():
            matrix_name = (head or embedding) if is_head(name) or row_length(shape) == 1 else embedding
            state[name] = self._rows(name, *coefficients[matrix_name])
        return state

    def _rows(self, name: str, indices: Tensor, weights: Tensor) -> Tensor:
        """Return the new rows of one tensor, in its layout and dtype."""
        tensor, shape = self.reader[name], self.shapes[name]
        rows = combine_rows(tensor.reshape(-1, row_length(shape)), indices, weights).to(tensor.dtype)
        return rows.view(1, -1) if is_one_row(shape) else rows.view(-1, *shape[1:])
