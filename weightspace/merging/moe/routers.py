"""Routers of a mixture: a row per expert and layer, from prompts or drawn.

A router's logit is the inner product of a token's hidden state with the expert's row. Rows from prompts have length 1:
the hidden states, or the embeddings, of the positive prompts less those of the negative ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.merging.methods._tensor_stack import TensorReader
from weightspace.merging.moe.hidden_states import PromptEncoder
from weightspace.merging.moe.planner import MixtureParts
from weightspace.merging.moe.recipe import RANDOM_MODES, Expert

#: A condition number from which experts are told apart badly; mergekit's.
_CONDITION = 5.0


def router_state(parts: MixtureParts, read: Callable[[str], TensorReader]) -> tuple[StateDict, list[str]]:
    """Return the computed tensors of a mixture in float32, routers and zeros, and lines about what is doubtful.

    Args:
        parts: of the mixture.
        read: returns a tensor of the base by its name in the files.

    Raises:
        WeightspaceError: transformers isn't installed, or cannot run the base; a prompt has no tokens.
    """
    recipe, architecture = parts.recipe, parts.architecture
    rows = _rows(parts, read)
    state = {name: torch.zeros(info.shape) for name, info in parts.tensors.computed.items()}
    for layer, of_layer in enumerate(rows):
        routed, shared = of_layer[: len(recipe.experts)], of_layer[len(recipe.experts) :]
        state[f"model.layers.{layer}.{architecture.router}.weight"] = routed.contiguous()
        if architecture.shared_router:
            state[f"model.layers.{layer}.{architecture.shared_router}.weight"] = shared.contiguous()
    return state, _doubts(rows)


def _rows(parts: MixtureParts, read: Callable[[str], TensorReader]) -> Tensor:
    """Return the rows of all routers, ``(layers, experts and shared experts, width)``."""
    recipe = parts.recipe
    layers, width = int(parts.config["num_hidden_layers"]), int(parts.config["hidden_size"])
    prompted = any(expert.positive_prompts for expert in recipe.shared)
    experts = [*recipe.experts, *(recipe.shared if prompted or recipe.gate_mode in RANDOM_MODES else ())]
    generator = torch.Generator().manual_seed(parts.seed)
    if recipe.gate_mode == "random":
        return torch.randn(layers, len(experts), width, generator=generator)
    if recipe.gate_mode == "uniform_random":  # as torch.nn.Linear begins
        bound = width**-0.5
        return torch.rand(layers, len(experts), width, generator=generator) * 2 * bound - bound
    encoder = PromptEncoder(parts.base.contents.path, read)
    if recipe.gate_mode == "cheap_embed":
        return _cheap_rows(encoder, experts).expand(layers, -1, -1)
    return _hidden_rows(encoder, experts, average=recipe.gate_mode == "hidden_avg")


def _cheap_rows(encoder: PromptEncoder, experts: Sequence[Expert]) -> Tensor:
    """Return rows from embeddings, ``(experts, width)``, the same for all layers."""
    positive = encoder.embedded([expert.positive_prompts for expert in experts])
    negative = encoder.embedded([expert.negative_prompts for expert in experts])
    rows = [
        _normalised(with_) - _normalised(without) if expert.negative_prompts else _normalised(with_)
        for expert, with_, without in zip(experts, positive, negative, strict=True)
    ]
    return _normalised(torch.stack(rows))


def _hidden_rows(encoder: PromptEncoder, experts: Sequence[Expert], *, average: bool) -> Tensor:
    """Return rows from hidden states, ``(layers, experts, width)``."""
    lists = [prompts for expert in experts for prompts in (expert.positive_prompts, expert.negative_prompts) if prompts]
    states = iter(encoder.hidden(lists, average=average))
    rows = []
    for expert in experts:
        row = next(states)
        rows.append(row - next(states) if expert.negative_prompts else row)
    return _normalised(torch.stack(rows, dim=1))


def _normalised(vectors: Tensor) -> Tensor:
    """Return vectors of length 1, those of length 0 as they are."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-8)


def _doubts(rows: Tensor) -> list[str]:
    """Return a line where the routers of some layers tell experts apart badly."""
    bad = [layer for layer, of_layer in enumerate(rows) if not torch.linalg.cond(of_layer) <= _CONDITION]
    if not bad:
        return []
    shown = "all layers" if len(bad) == len(rows) else f"{len(bad):,} of {len(rows):,} layers"
    return [
        f"The routers of {shown} have rows that are much alike (condition number above {_CONDITION:g}): some experts "
        "will be used little. Are the prompts similar, or the same in part?"
    ]
