"""Plan a mixture of experts from its recipe and the headers of its models; the plan is run like a merge's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import json_document
from weightspace.checkpoints.provenance import described
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.safetensors_header import encode_header, place_entries
from weightspace.errors import CheckpointError
from weightspace.merging.config.differences import read_config
from weightspace.merging.methods import Method
from weightspace.merging.moe.architectures import Architecture, choose_architecture
from weightspace.merging.moe.configuration import mixture_configuration
from weightspace.merging.moe.recipe import MixtureRecipe
from weightspace.merging.moe.tensors import MixtureTensors, mixture_tensors
from weightspace.merging.out_of_core.input_checks import check_plain, compare_folders
from weightspace.merging.out_of_core.vocabularies import UseOfTokens, check_tokens
from weightspace.merging.plan.inputs import companion_paths, stamps_of
from weightspace.merging.plan.layout import lay_out
from weightspace.merging.plan.members import open_members
from weightspace.merging.plan.options import OutputOptions, ReadingOptions
from weightspace.merging.plan.plan import Member, Plan
from weightspace.merging.plan.promotion import FLOATS
from weightspace.merging.recipe.types import Warn

#: Method for experts with noise or a scale; all other tensors are copied.
_METHOD = Method("moe", "_expert:expert", "", "", base="none", models=(1, 1))

#: The output has the base's tokenizer and embeddings; a model with other ids was fine-tuned from another base.
_TOKENS = UseOfTokens(
    "The mixture has the base's tokenizer and embeddings, and its experts must be fine-tunes of that base: expected "
    "one id for each token. Use the model that the experts were fine-tuned from as base_model.",
    "the mixture has the base's tokenizer and embeddings",
)

#: Name of the temporary file with the computed tensors: routers and zero biases.
ROUTERS = "routers.safetensors"


@dataclass(frozen=True)
class MixtureParts:
    """The components of a mixture, before its routers are computed.

    Attributes:
        recipe: the mixture's recipe.
        seed: seed for random routers and noise.
        architecture: the mixture's architecture.
        members: its models, base first.
        config: its configuration.
        tensors: its tensors.
        notices: one-line messages about decisions.
        companions: names of the non-weight files copied from the base.
    """

    recipe: MixtureRecipe
    seed: int
    architecture: Architecture
    members: tuple[Member, ...]
    config: Mapping[str, Any]
    tensors: MixtureTensors
    notices: tuple[str, ...]
    companions: tuple[str, ...]

    @property
    def base(self) -> Member:
        """The model that supplies all tensors except the experts."""
        return self.members[0]


def mixture_parts(recipe: MixtureRecipe, seed: int, notice: Warn, *, lenient: bool = False) -> MixtureParts:
    """Open the models of a mixture and check that they are compatible.

    Args:
        recipe: the mixture's recipe.
        seed: seed for random routers and noise.
        notice: called with a one-line message about each decision and each difference between the models.
        lenient: warn about tokens whose ids differ between models instead of refusing them.

    Raises:
        CheckpointError: a model is missing or damaged, has no configuration, or is incompatible with the others.
        WeightspaceError: no supported architecture matches, or a token has different ids.
    """
    notices: list[str] = []

    def note(line: str) -> None:
        notices.append(line)
        notice(line)

    members = open_members(recipe.models, {}, ReadingOptions(), note)
    check_plain(members)
    configs = [_config(member) for member in members]
    types = {member.source: str(config["model_type"]) for member, config in zip(members, configs, strict=True)}
    architecture = choose_architecture(recipe, types)
    base = members[0]
    dtype = _dtype(recipe, configs[0], base)
    name = next(name for name, code in FLOATS.items() if code == dtype)
    config = mixture_configuration(architecture, configs[0], recipe, name, note)
    if base.untied:
        config["tie_word_embeddings"] = False
    tensors = mixture_tensors(architecture, recipe, members, config, dtype, seed)
    check_tokens(members, base.contents.path, note, use=_TOKENS, lenient=lenient)
    companions = compare_folders(members, base.contents.path, note, sliced=False, moved=False, copied=True)
    for line in _advice(recipe, architecture):
        note(line)
    return MixtureParts(recipe, seed, architecture, members, config, tensors, tuple(notices), companions.copied)


def mixture_plan(
    parts: MixtureParts, routers: Path, digest: str, out: Path, output: OutputOptions, advice: Sequence[str] = ()
) -> Plan:
    """Return the plan of a mixture.

    Args:
        parts: the mixture's components.
        routers: path of the file with its computed tensors.
        digest: SHA-256 of that file.
        out: the output folder.
        output: options of the output.
        advice: further notices for the model card.
    """
    members = (*parts.members, Member(ROUTERS, ROUTERS, read_contents(routers)))
    base = parts.base.contents.path
    metadata = _metadata(parts, members, output)
    placed, shards = lay_out(parts.tensors.jobs, parts.tensors.tied, metadata, None, output.shard_size)
    stamps = stamps_of(members, companion_paths(base, parts.companions, None))
    known = [(os.path.realpath(file), *stamp) for file, stamp in stamps.items() if file != routers]
    return Plan(
        _METHOD,
        members,
        placed,
        parts.tensors.tied,
        shards,
        metadata,
        not output.allow_nonfinite,
        json.dumps([dict(metadata), known, digest, output.hashes, out.name]),
        Path(os.path.realpath(out)).name,
        donor=base,
        configurations={"config.json": json_document(dict(parts.config))},
        companions=parts.companions,
        notices=(*parts.notices, *advice),
        stamps=stamps,
        hashes=output.hashes,
    )


def write_router_skeleton(parts: MixtureParts, path: Path) -> None:
    """Write a file with the header of the computed tensors and zeros as their content.

    Raises:
        OSError: writing fails.
    """
    entries = place_entries({name: (info.dtype, info.shape) for name, info in parts.tensors.computed.items()})
    header = encode_header(entries, {})
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + max(entry.end for entry in entries.values()))


def _config(member: Member) -> dict[str, Any]:
    """Return the configuration of a dense model.

    Raises:
        CheckpointError: the model has no configuration, or one without a model type.
    """
    path = member.contents.path
    config = read_config(path) if path.is_dir() else None
    if config is None or not isinstance(config.get("model_type"), str):
        lacks = "no config.json" if config is None else "a config.json without a model_type"
        raise CheckpointError(f"{member.label} has {lacks}; expected the Hugging Face folder of a dense model.")
    return config


def _dtype(recipe: MixtureRecipe, config: Mapping[str, Any], base: Member) -> str:
    """Return the safetensors name of the output's dtype: the recipe's, the base configuration's or its tensors'."""
    said = recipe.dtype or config.get("torch_dtype") or config.get("dtype")
    name = str(said).removeprefix("torch.")
    if name in FLOATS:
        return FLOATS[name]
    stored = {info.dtype for info in base.contents.tensors.values() if info.is_inexact} & set(FLOATS.values())
    return stored.pop() if len(stored) == 1 else "F32"


def _advice(recipe: MixtureRecipe, architecture: Architecture) -> list[str]:
    """Return warnings about mixtures that are unlikely to be intended."""
    lines = []
    experts = recipe.experts
    same = {(expert.source, expert.residual_scale) for expert in experts}
    if len(experts) > 1 and len(same) == 1 and not any(expert.noise_scale for expert in experts):
        lines.append(
            f"All experts are {experts[0].source}: until it is trained, the mixture is equivalent to a single expert."
        )
    if architecture.name == "DeepSeek MoE" and recipe.experts_per_token == 1:
        lines.append(
            "With one expert per token, DeepSeek MoE scales its output by the router's probability, which is below 1; "
            "with experts_per_token of 2 or more, the weights sum to 1."
        )
    if any(expert.residual_scale is None for expert in recipe.shared):
        lines.append(
            "The shared expert's output is added to that of the routed experts, about twice the output of a dense MLP; "
            "set residual_scale below 1 under shared_experts to compensate."
        )
    return lines


def _metadata(parts: MixtureParts, members: Sequence[Member], output: OutputOptions) -> dict[str, str]:
    """Return the metadata of the output, with zeros in place of the digests of the inputs."""
    blank = "0" * 64 if output.hashes else ""
    paths = [entry for member in members for entry in member.inputs]
    digests = {file: blank for member in members for file in member.files}
    recorded: dict[str, Any] = {"shard_size": output.shard_size, "architecture": parts.architecture.name}
    if parts.recipe.draws:
        recorded["seed"] = parts.seed
    return {**described(paths, digests, "moe", recorded), "recipe": parts.recipe.to_yaml()}
