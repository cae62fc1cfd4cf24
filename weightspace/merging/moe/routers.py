"""Initialise the routers of a mixture: one row per expert and layer, computed from prompts or random.

An expert's router logit is the inner product of a token's hidden state with the expert's row. Rows computed from
prompts are unit vectors: the normalised difference between the hidden states (or embeddings) of positive and negative
prompts.
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

#: Condition number above which the router distinguishes experts poorly, as in mergekit.
_CONDITION = 5.0


def router_state(parts: MixtureParts, read: Callable[[str], TensorReader]) -> tuple[StateDict, list[str]]:
    """Return a mixture's computed tensors (routers and zero biases) in float32, and warnings about the routers.

    Args:
        parts: the mixture's components.
        read: returns a tensor of the base by its name in the checkpoint.

    Raises:
        WeightspaceError: transformers isn't installed or cannot run the base, or a prompt has no tokens.
    """
    recipe, architecture = parts.recipe, parts.architecture
    rows = _rows(parts, read)
    state = {name: torch.zeros(info.shape) for name, info in parts.tensors.computed.items()}
    for layer, of_layer in enumerate(rows):
        routed, shared = of_layer[: len(recipe.experts)], of_layer[len(recipe.experts) :]
        state[f"model.layers.{layer}.{architecture.router}.weight"] = routed.contiguous()
        if architecture.shared_router:
            state[f"model.layers.{layer}.{architecture.shared_router}.weight"] = shared.contiguous()
    return state, _router_warnings(rows)


def _rows(parts: MixtureParts, read: Callable[[str], TensorReader]) -> Tensor:
    """Return the rows of all routers, ``(layers, experts + shared experts, width)``."""
    recipe = parts.recipe
    layers, width = int(parts.config["num_hidden_layers"]), int(parts.config["hidden_size"])
    prompted = any(expert.positive_prompts for expert in recipe.shared)
    experts = [*recipe.experts, *(recipe.shared if prompted or recipe.gate_mode in RANDOM_MODES else ())]
    generator = torch.Generator().manual_seed(parts.seed)
    if recipe.gate_mode == "random":
        return torch.randn(layers, len(experts), width, generator=generator)
    if recipe.gate_mode == "uniform_random":  # the initialisation of torch.nn.Linear
        bound = width**-0.5
        return torch.rand(layers, len(experts), width, generator=generator) * 2 * bound - bound
    encoder = PromptEncoder(parts.base.contents.path, read)
    if recipe.gate_mode == "cheap_embed":
        return _cheap_rows(encoder, experts).expand(layers, -1, -1)
    return _hidden_rows(encoder, experts, average=recipe.gate_mode == "hidden_avg")


def _cheap_rows(encoder: PromptEncoder, experts: Sequence[Expert]) -> Tensor:
    """Return rows computed from embeddings, ``(experts, width)``, shared by all layers."""
    positive = encoder.embedded([expert.positive_prompts for expert in experts])
    negative = encoder.embedded([expert.negative_prompts for expert in experts])
    rows = [
        _normalised(plus) - _normalised(minus) if expert.negative_prompts else _normalised(plus)
        for expert, plus, minus in zip(experts, positive, negative, strict=True)
    ]
    return _normalised(torch.stack(rows))


def _hidden_rows(encoder: PromptEncoder, experts: Sequence[Expert], *, average: bool) -> Tensor:
    """Return rows computed from hidden states, ``(layers, experts, width)``."""
    lists = [prompts for expert in experts for prompts in (expert.positive_prompts, expert.negative_prompts) if prompts]
    states = iter(encoder.hidden(lists, average=average))
    rows = []
    for expert in experts:
        row = next(states)
        rows.append(row - next(states) if expert.negative_prompts else row)
    return _normalised(torch.stack(rows, dim=1))


def _normalised(vectors: Tensor) -> Tensor:
    """Return vectors scaled to unit length; zero vectors stay zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-8)


def _router_warnings(rows: Tensor) -> list[str]:
    """Return a warning if some layers' routers distinguish the experts poorly."""
    bad = [layer for layer, of_layer in enumerate(rows) if not torch.linalg.cond(of_layer) <= _CONDITION]
    if not bad:
        return []
    shown = "all layers" if len(bad) == len(rows) else f"{len(bad):,} of {len(rows):,} layers"
    return [
        f"The routers of {shown} have nearly parallel rows (condition number above {_CONDITION:g}): some experts "
        "will rarely be used. Are the prompts of different experts similar?"
    ]
