"""Language models with tied embeddings, whose output head has no tensor of its own in the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.errors import CheckpointError
from weightspace.lora.model_config import read_config
from weightspace.lora.tied_weights import (
    head_scale,
    is_declared_tied,
    is_head,
    is_scaled,
    is_token_embedding,
    tied_counterpart,
)
from weightspace.merging.plan.plan import Member


def shapes_of(contents: CheckpointMetadata) -> dict[str, tuple[int, ...]]:
    """Return name -> shape for a checkpoint's tensors."""
    return {name: info.shape for name, info in contents.tensors.items()}


def counterpart(member: Member, name: str, shape: tuple[int, ...]) -> str | None:
    """Return the tensor that a model uses in place of a tied tensor that it lacks, or None.

    Args:
        member: the model.
        name: name of the missing tensor.
        shape: shape of the tensor in another model.

    Raises:
        CheckpointError: the tensor is a head that is scaled differently if it is tied.
    """
    contents = member.contents
    found = tied_counterpart(shapes_of(contents), name, shape)
    if found is None:
        return None
    config = read_config(contents.path)
    if is_head(name) and is_declared_tied(config) is False:
        return None
    if (is_head(name) or is_head(found)) and head_scale(config, contents.tensors) != 1:
        raise CheckpointError(
            f"{member.label} has no tensor {name!r}: its head is tied to {found!r}, and this architecture scales tied "
            "and untied heads differently. Expected separate heads in all models, or in none."
        )
    return found


def has_own_head(names: Collection[str], tied: Mapping[str, str], members: Sequence[Member]) -> bool:
    """Return whether the output has a separate head, which its configuration must state.

    Args:
        names: names of all tensors of the output.
        tied: name -> name of the tensor that it shares memory with.
        members: the models.
    """
    shared = {*tied, *tied.values()}
    if not any(is_head(name) and name not in shared for name in names) or not any(map(is_token_embedding, names)):
        return False
    return not any(is_scaled(read_config(member.contents.path)) for member in members)
