"""Language models whose head is their embedding: the head has no tensor of its own in their files."""

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

#: Names of embeddings, of tokens and of positions.
_EMBEDDINGS = ("wte", "word_embeddings", "tok_embeddings", "shared", "wpe")


def shapes_of(contents: CheckpointMetadata) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors by name."""
    return {name: info.shape for name, info in contents.tensors.items()}


def counterpart(member: Member, name: str, shape: tuple[int, ...]) -> str | None:
    """Return the tensor that a model uses where others have one of that name, which it lacks.

    Args:
        member: the model.
        name: of the tensor.
        shape: of the tensor in another model.

    Raises:
        CheckpointError: it is a head that works on another scale when it is tied.
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
            f"{member.label} has no tensor {name!r}: its head is {found!r} on the scale of a tied head, which is not "
            "that of a head of its own. Expected heads in all models, or in none."
        )
    return found


def has_own_head(names: Collection[str], tied: Mapping[str, str], members: Sequence[Member]) -> bool:
    """Return whether the head of a merge has a tensor of its own, which a configuration must say.

    Args:
        names: of all tensors of the output.
        tied: those of them that share memory with another one.
        members: the models.
    """
    shared = {*tied, *tied.values()}
    if not any(is_head(name) and name not in shared for name in names) or not any(map(is_token_embedding, names)):
        return False
    return not any(is_scaled(read_config(member.contents.path)) for member in members)


def is_embedding(name: str) -> bool:
    """Return whether a tensor outside the layers stands before them, by its name: ``model.embed_tokens.weight``."""
    return any(part in _EMBEDDINGS or "embed" in part for part in name.split("."))
