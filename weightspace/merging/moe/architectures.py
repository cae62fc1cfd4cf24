"""Architectures of mixtures of experts, as data: the names of their tensors, and the dense models that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weightspace.errors import WeightspaceError
from weightspace.merging.moe.recipe import RANDOM_MODES, MixtureRecipe

#: Parts of a dense layer's MLP, as Llama, Mistral and Qwen call them.
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

#: Linear layers of attention whose bias a mixture may have.
_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Architecture:
    """A mixture of experts.

    Attributes:
        name: as ``architecture`` in recipes begins; mergekit's.
        model_type: of its configuration.
        class_name: of the network in transformers.
        dense: model types of the dense models that it takes.
        router: name of the router in a layer, without ``.weight``.
        expert: name of an expert's part, with ``{expert}`` and ``{part}``.
        parts: projection of the dense MLP -> part.
        shared: prefix of the shared expert's parts, or "".
        shared_router: name of what weighs the shared expert, or "".
        shared_experts: the least and the largest number of shared experts.
        biases: linear layers of attention that may have a bias.
        zero_biases: those that must have one, of zeros where the dense model has none.
        head_norms: queries and keys are normalised.
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
        """Return why the mixture cannot be built in this architecture; None where it can."""
        least, most = self.shared_experts
        shared = len(recipe.shared)
        if not least <= shared <= most:
            wanted = "no" if not most else "exactly one" if least else "at most one"
            return f"it takes {wanted} shared {'expert' if most else 'experts'}, found {shared}"
        wrong = [model_type for model_type in model_types if model_type not in self.dense]
        if wrong:
            return f"it takes models of type {', '.join(self.dense)}, found {wrong[0]}"
        prompted = any(expert.positive_prompts for expert in recipe.shared)
        if self.shared_router and shared and not prompted and recipe.gate_mode not in RANDOM_MODES:
            return "its shared expert needs positive_prompts"
        if shared and not self.shared_router and prompted:
            return "its shared expert is added to every token and takes no prompts"
        return None


#: In mergekit's order; the first that fits is taken where the recipe names none.
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
    """Return the architecture that a recipe names, or the first that fits.

    Args:
        recipe: of the mixture.
        model_types: of its models, by source.

    Raises:
        WeightspaceError: none fits; the message says why each does not.
    """
    asked = (recipe.architecture or "").lower()
    named = [one for one in ARCHITECTURES if one.name.lower().startswith(asked)]
    names = ", ".join(one.name for one in ARCHITECTURES)
    if not named:
        raise WeightspaceError(
            f"{recipe.where}: architecture is {recipe.architecture!r}, expected the beginning of one of {names}."
        )
    if len(types := dict.fromkeys(model_types.values())) > 1:
        first, other = [next(source for source, of in model_types.items() if of == one) for one in list(types)[:2]]
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
