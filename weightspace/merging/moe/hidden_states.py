"""Hidden states of the base for prompts: the mean over prompts of what enters each layer, or of embedded tokens.

The network runs module by module with weights from the files, in float32; prompts run side by side, padded on the
right, where no earlier token sees the padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.methods._tensor_stack import TensorReader
from weightspace.pretrained import build_empty, load_tokenizer, streamed_weights

#: Tokens that run side by side, padding included, unless one prompt has more.
_TOKENS = 2048

_EMBEDDING = "model.embed_tokens.weight"


class PromptEncoder:
    """Turns lists of prompts into one vector per layer.

    Args:
        folder: of the base, for its tokenizer and configuration.
        read: returns a tensor of the base by its name in the files.
    """

    def __init__(self, folder: Any, read: Callable[[str], TensorReader]) -> None:
        self.folder = folder
        self.read = read
        self.tokenizer = load_tokenizer(folder)

    def embedded(self, lists: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return for each list of prompts the sum of the embeddings of all tokens, ``(width,)``."""
        return [sum((self._embed(prompt).sum(dim=0) for prompt in self._tokens(one)), torch.zeros(())) for one in lists]

    def hidden(self, lists: Sequence[Sequence[str]], *, average: bool) -> list[Tensor]:
        """Return for each list the mean over its prompts of what enters each layer, ``(layers, width)``.

        Args:
            lists: of prompts.
            average: over the tokens of a prompt; else its last token.
        """
        prompts = [tokens for one in lists for tokens in self._tokens(one)]
        network = build_empty(self.folder)
        states = [states for batch in _batches(prompts) for states in self._run(network, batch, average)]
        means, start = [], 0
        for one in lists:
            means.append(torch.stack(states[start : start + len(one)]).mean(dim=0))
            start += len(one)
        return means

    def _tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of prompts, each behind the token that begins texts.

        Raises:
            WeightspaceError: a prompt has none, or one that the base has no embedding for.
        """
        begin = self.tokenizer.bos_token or ""
        rows = self.read(_EMBEDDING).shape[0]
        encoded = [list(self.tokenizer(begin + prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        for prompt, tokens in zip(prompts, encoded, strict=True):
            if not tokens:
                raise WeightspaceError(f"The prompt {prompt!r} has no tokens; expected some text.")
            if max(tokens) >= rows:
                raise CheckpointError(
                    f"The tokenizer of {self.folder} has token {max(tokens):,}, but {_EMBEDDING} has {rows:,} rows."
                )
        return encoded

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the embeddings of tokens, ``(tokens, width)``, read row by row."""
        reader = self.read(_EMBEDDING)
        width = reader.shape[1]
        return torch.stack([reader.read(token * width, (token + 1) * width).float() for token in tokens])

    def _weight(self, name: str) -> Tensor:
        """Return a parameter of the network in float32."""
        reader = self.read(f"model.{name}")
        return reader.read(0, math.prod(reader.shape)).view(reader.shape).float()

    def _run(self, network: nn.Module, batch: Sequence[Sequence[int]], average: bool) -> list[Tensor]:
        """Return what enters each layer, ``(layers, width)`` per prompt."""
        longest = max(map(len, batch))
        inputs = torch.stack([nn.functional.pad(one, (0, 0, 0, longest - len(one))) for one in map(self._embed, batch)])
        entering: list[list[Tensor]] = [[] for _ in batch]

        def keep(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            states = arguments[0] if arguments else keywords["hidden_states"]
            for own, state, tokens in zip(entering, states, batch, strict=True):
                own.append(state[: len(tokens)].mean(dim=0) if average else state[len(tokens) - 1].clone())

        layers: Any = network.layers
        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
        try:
            with torch.no_grad(), streamed_weights(network, self._weight):
                network(inputs_embeds=inputs, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return [torch.stack(own) for own in entering]


def _batches(prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Yield prompts that run side by side, in order."""
    batch: list[list[int]] = []
    for prompt in prompts:
        if batch and (len(batch) + 1) * max(map(len, [*batch, prompt])) > _TOKENS:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch
