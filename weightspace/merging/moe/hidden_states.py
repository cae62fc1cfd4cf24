"""Hidden states of the base model for prompts: the mean input of each layer, or summed token embeddings.

The network runs module by module in float32 with weights streamed from the checkpoint. Prompts are batched with right
padding, which causal attention hides from earlier tokens.
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

#: Maximum tokens per batch including padding, unless a single prompt is longer.
_TOKENS = 2048

_EMBEDDING = "model.embed_tokens.weight"


class PromptEncoder:
    """Encodes lists of prompts as vectors.

    Args:
        folder: the base's folder, with its tokenizer and configuration.
        read: returns a tensor of the base by its name in the checkpoint.
    """

    def __init__(self, folder: Any, read: Callable[[str], TensorReader]) -> None:
        self.folder = folder
        self.read = read
        self.tokenizer = load_tokenizer(folder)

    def embedded(self, lists: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return, for each list of prompts, the sum of the embeddings of all tokens, ``(width,)``."""
        return [
            sum((self._embed(prompt).sum(dim=0) for prompt in self._tokens(prompts)), torch.zeros(()))
            for prompts in lists
        ]

    def hidden(self, lists: Sequence[Sequence[str]], *, average: bool) -> list[Tensor]:
        """Return, for each list, the mean over its prompts of the input of each layer, ``(layers, width)``.

        Args:
            lists: lists of prompts.
            average: average over the tokens of a prompt instead of taking its last token.
        """
        prompts = [tokens for texts in lists for tokens in self._tokens(texts)]
        network = build_empty(self.folder)
        states = [states for batch in _batches(prompts) for states in self._run(network, batch, average)]
        means, start = [], 0
        for texts in lists:
            means.append(torch.stack(states[start : start + len(texts)]).mean(dim=0))
            start += len(texts)
        return means

    def _tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each prompt, starting with the BOS token if the tokenizer has one.

        Raises:
            CheckpointError: a token has no row in the embedding.
            WeightspaceError: a prompt has no tokens.
        """
        begin = self.tokenizer.bos_token or ""
        rows = self.read(_EMBEDDING).shape[0]
        encoded = [list(self.tokenizer(begin + prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        for prompt, tokens in zip(prompts, encoded, strict=True):
            if not tokens:
                raise WeightspaceError(f"The prompt {prompt!r} has no tokens; expected some text.")
            if max(tokens) >= rows:
                raise CheckpointError(
                    f"The tokenizer of {self.folder} has token id {max(tokens):,}, but {_EMBEDDING} has only "
                    f"{rows:,} rows. Does the tokenizer belong to the model?"
                )
        return encoded

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        """Return the embeddings of tokens, ``(tokens, width)``; only their rows are read."""
        reader = self.read(_EMBEDDING)
        width = reader.shape[1]
        return torch.stack([reader.read(token * width, (token + 1) * width).float() for token in tokens])

    def _weight(self, name: str) -> Tensor:
        """Return a parameter of the network in float32."""
        reader = self.read(f"model.{name}")
        return reader.read(0, math.prod(reader.shape)).view(reader.shape).float()

    def _run(self, network: nn.Module, batch: Sequence[Sequence[int]], average: bool) -> list[Tensor]:
        """Return the input of each layer for each prompt, ``(layers, width)``."""
        longest = max(map(len, batch))
        inputs = torch.stack([nn.functional.pad(one, (0, 0, 0, longest - len(one))) for one in map(self._embed, batch)])
        layer_inputs: list[list[Tensor]] = [[] for _ in batch]

        def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            states = arguments[0] if arguments else keywords["hidden_states"]
            for inputs_of_prompt, state, tokens in zip(layer_inputs, states, batch, strict=True):
                inputs_of_prompt.append(state[: len(tokens)].mean(dim=0) if average else state[len(tokens) - 1].clone())

        layers: Any = network.layers
        handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
        try:
            with torch.no_grad(), streamed_weights(network, self._weight):
                network(inputs_embeds=inputs, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return [torch.stack(inputs_of_prompt) for inputs_of_prompt in layer_inputs]


def _batches(prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Yield batches of prompts, in order."""
    batch: list[list[int]] = []
    for prompt in prompts:
        if batch and (len(batch) + 1) * max(map(len, [*batch, prompt])) > _TOKENS:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch
