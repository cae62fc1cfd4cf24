"""A LoRA adapter as known from its headers: the tensors of a model that it changes, and their factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.lora.config import Configuration
from weightspace.lora.formats.module import Module
from weightspace.lora.fused_experts import Part

#: The file of weights written by PEFT, and that of old versions.
WEIGHTS = "adapter_model.safetensors"
TORCH_WEIGHTS = "adapter_model.bin"

#: Metadata key: a JSON list of tensors that repeat the factors of the embedding they are tied to.
REPEATED = "weightspace.repeated"

#: Prefix that PEFT adds to a module's name.
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Factors:
    """The change of one tensor, such as ``scale · B A``, transposed if the tensor is ``(in, out)``.

    Attributes:
        names: role -> tensor in the adapter's file: ``A``, ``(rank, in)`` or ``(rank, in, *kernel)``, and ``B``,
            ``(out, rank)`` or ``(out, rank, 1…)``; ``mid`` of Tucker's form; ``hada_…`` and ``lokr_…`` of LyCORIS;
            ``difference``; and the magnitudes of DoRA.
        rank: rank of both; 0 for products that have none.
        scale: factor of their product.
        transposed: add ``(B A)ᵀ``: for embeddings, and linear layers stored as ``(in, out)``.
        embedding: they are called ``lora_embedding_A`` and ``lora_embedding_B``.
        shape: shape of the tensor.
        part: the tensor's part of ``A`` and ``B``, if these belong to all experts of a layer.
        product: ``low-rank``, ``hadamard``, ``kronecker``, ``difference``, ``stacked``, or ``rows``.
        axis: axis of the tensor along which it has one DoRA magnitude per index; None without DoRA.
        magnitudes: number of DoRA magnitudes, if the shape doesn't determine it.
        stack: first row -> changes of parts of the rows, such as queries, keys and values in one tensor; their roles in
            ``names`` begin with that row and a colon. Of ``rows``: first row -> the change that these are rows of.
    """

    names: Mapping[str, str]
    rank: int
    scale: float
    transposed: bool
    embedding: bool
    shape: tuple[int, ...]
    part: Part | None = None
    product: str = "low-rank"
    axis: int | None = None
    magnitudes: int | None = None
    stack: Mapping[int, Factors] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        path: folder or file of the adapter.
        files: its configuration, if any, which determines the scales, and its weights.
        factors: tensor of the model -> its factors.
        saved: tensor of the model -> tensor of the adapter that replaces it.
        contents: the tensors in the adapter's file.
        configuration: the parsed configuration.
        fused: parameter of all experts of a layer -> its factors, whose shape is that of one expert's part.
        repeated: tensors that repeat the factors of the embedding they are tied to.
        format: ``peft``, ``kohya`` or ``diffusers``.
        modules: tensor of the model -> its module, in files that name modules of components.
        notes: notes on choices made while matching it with a model, one line each.
    """

    path: Path
    files: tuple[Path, ...]
    factors: Mapping[str, Factors]
    saved: Mapping[str, str]
    contents: CheckpointMetadata
    configuration: Configuration
    fused: Mapping[str, Factors] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()
    format: str = "peft"
    modules: Mapping[str, Module] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The tensors of a model that the adapter changes, each once."""
        return tuple(dict.fromkeys([*self.factors, *self.saved]))

    def shapes(self, target: str) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that factors and a saved tensor require of a target."""
        factors = [self.factors[target].shape] if target in self.factors else []
        saved = [self.contents.tensors[self.saved[target]].shape] if target in self.saved else []
        return (*factors, *saved)
