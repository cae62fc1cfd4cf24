"""Mixture-of-experts architectures as data: tensor names, and the dense models that they accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weightspace.errors import WeightspaceError
from weightspace.merging.moe.recipe import RANDOM_MODES, MixtureRecipe

#: Projections of a dense layer's MLP in Llama, Mistral and Qwen.
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

#: Attention projections that may have a bias.
_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Architecture:
    """A mixture-of-experts architecture.

    Attributes:
        name: mergekit's name, matched by the recipe's ``architecture``.
        model_type: model type in its configuration.
        class_name: name of its class in transformers.
        dense: model types of the dense models that it accepts.
        router: name of a layer's router, without ``.weight``.
        expert: name of an expert's part, with ``{expert}`` and ``{part}``.
        parts: projection of the dense MLP -> part.
        shared: prefix of the shared expert's parts, or "".
        shared_router: name of the shared expert's gate, or "".
        shared_experts: minimum and maximum number of shared experts.
        biases: attention projections that may have a bias.
        zero_biases: attention projections that always have a bias; zero if the dense model has none.
        head_norms: whether queries and keys are normalised.
    """

    name: str
    model_type: str
    class_name: str
    dense: tuple[str, ...]
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{expert}.{part}"
    parts: Mapping[str, str] = field(default_factory=lambda: {part: part for part in PROJECTIONS})
    shared: str = ""
    shared_router: str = ""
    shared_experts: tuple[int, int] = (0, 0)
    biases: tuple[str, ...] = ()
    zero_biases: tuple[str, ...] = ()
    head_norms: bool = False

    def refusal(self, recipe: MixtureRecipe, model_types: Sequence[str]) -> str | None:
        """Return the reason why this architecture cannot represent the mixture, or None if it can."""
        least, most = self.shared_experts
        shared = len(recipe.shared)
        if not least <= shared <= most:
            wanted = "no" if not most else "exactly one" if least else "at most one"
            return f"it takes {wanted} shared {'expert' if most else 'experts'}, found {shared}"
        wrong = [model_type for model_type in model_types if model_type not in self.dense]
        if wrong:
            return f"it takes models of type {' or '.join(self.dense)}, found {wrong[0]}"
        prompted = any(expert.positive_prompts for expert in recipe.shared)
        if self.shared_router and shared and not prompted and recipe.gate_mode not in RANDOM_MODES:
            return "its shared expert needs positive_prompts"
        if shared and not self.shared_router and prompted:
            return "its shared expert processes every token and takes no prompts"
        return None


#: In mergekit's order; unless the recipe names one, the first that matches is used.
ARCHITECTURES = (
    Architecture(
        "Mixtral",
        "mixtral",
        "MixtralForCausalLM",
        ("llama", "mistral"),
        router="block_sparse_moe.gate",
        expert="block_sparse_moe.experts.{expert}.{part}",
        parts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ),
    Architecture(
        "DeepSeek MoE",
        "deepseek",
        "DeepseekForCausalLM",
        ("llama", "mistral"),
        shared="mlp.shared_experts",
        shared_experts=(0, 1),
        biases=(*_QKV, "o_proj"),
    ),
    Architecture(
        "Qwen MoE",
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        ("llama", "mistral", "qwen2"),
        shared="mlp.shared_expert",
        shared_router="mlp.shared_expert_gate",
        shared_experts=(1, 1),
        biases=_QKV,
        zero_biases=_QKV,
    ),
    Architecture(
        "Qwen3 MoE",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("qwen3",),
        biases=(*_QKV, "o_proj"),
        head_norms=True,
    ),
)


def choose_architecture(recipe: MixtureRecipe, model_types: Mapping[str, str]) -> Architecture:
    """Return the architecture that the recipe names, or the first that matches.

    Args:
        recipe: the mixture's recipe.
        model_types: source -> model type.

    Raises:
        WeightspaceError: no architecture matches; the message gives the reason for each.
    """
    asked = (recipe.architecture or "").lower()
    named = [one for one in ARCHITECTURES if one.name.lower().startswith(asked)]
    names = ", ".join(one.name for one in ARCHITECTURES)
    if not named:
        raise WeightspaceError(
            f"{recipe.where}: architecture is {recipe.architecture!r}, expected the beginning of one of {names}."
        )
    if len(types := dict.fromkeys(model_types.values())) > 1:
        first, other = [
            next(source for source, own_type in model_types.items() if own_type == model_type)
            for model_type in list(types)[:2]
        ]
        raise WeightspaceError(
            f"{recipe.where}: {first} is of type {model_types[first]} and {other} of type {model_types[other]}; "
            "expected models of one type."
        )
    refusals = [(one, one.refusal(recipe, list(types))) for one in named]
    for architecture, refusal in refusals:
        if refusal is None:
            return architecture
    reasons = "; ".join(f"{one.name}: {refusal}" for one, refusal in refusals)
    raise WeightspaceError(f"{recipe.where}: the mixture fits no architecture. {reasons}.")
