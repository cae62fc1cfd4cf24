"""List the tensors of a mixture and what each is copied or computed from, checked against the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.errors import CheckpointError
from weightspace.merging.moe.architectures import PROJECTIONS, Architecture
from weightspace.merging.moe.recipe import Expert, MixtureRecipe
from weightspace.merging.plan.plan import Job, Kind, Member, Ref

#: Names of tensors in a layer, norms of a layer, tensors outside the layers, and the head.
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight")
_HEAD = "lm_head.weight"

#: Buffers in old checkpoints that networks compute themselves.
_COMPUTED = re.compile(r".*rotary_emb\.inv_freq")


@dataclass(frozen=True)
class MixtureTensors:
    """The tensors of a mixture.

    Attributes:
        jobs: the tensors of the output.
        computed: routers and zero biases, stored in a temporary file under their output names.
        tied: name -> name of the tensor that it shares memory with.
    """

    jobs: tuple[Job, ...]
    computed: Mapping[str, TensorInfo]
    tied: Mapping[str, str]


def mixture_tensors(
    architecture: Architecture,
    recipe: MixtureRecipe,
    members: Sequence[Member],
    config: Mapping[str, Any],
    dtype: str,
    seed: int,
) -> MixtureTensors:
    """Return the tensors of a mixture.

    Args:
        architecture: the mixture's architecture.
        recipe: the mixture's recipe.
        members: its models in the order of ``recipe.models``; the file of computed tensors is appended later.
        config: the mixture's configuration.
        dtype: safetensors name of the output's dtype.
        seed: seed for noise.

    Raises:
        CheckpointError: a model lacks a tensor or has it in another shape, or the base has a tensor that does not exist
            in the mixture.
    """
    return _TensorPlanner(architecture, recipe, members, config, dtype, seed).tensors()


class _TensorPlanner:
    """Builds the jobs of a mixture."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: MixtureRecipe,
        members: Sequence[Member],
        config: Mapping[str, Any],
        dtype: str,
        seed: int,
    ) -> None:
        self.architecture = architecture
        self.recipe = recipe
        self.members = members
        self.config = config
        self.dtype = dtype
        self.seed = seed
        self.layers = int(config["num_hidden_layers"])
        self.computed: dict[str, TensorInfo] = {}

    def tensors(self) -> MixtureTensors:
        """Return all tensors."""
        base = self.members[0]
        tied = {name: owner for name, owner in base.contents.tied.items() if name == _HEAD}
        jobs = [self._copy(name, (0, name)) for name in self._outside(tied)]
        for layer in range(self.layers):
            jobs += [self._copy(name, (0, name)) for name in self._base_tensors(layer)]
            jobs += self._zeros(layer)
            jobs += self._routers(layer)
            jobs += self._experts(layer)
        return MixtureTensors(tuple(jobs), self.computed, tied)

    def _outside(self, tied: Mapping[str, str]) -> Iterator[str]:
        """Yield the tensors of the base outside its layers.

        Raises:
            CheckpointError: one is missing, or belongs to nothing.
        """
        base, allowed = self.members[0], set(self._allowed())
        for name in base.contents.tensors:
            match = _LAYER.fullmatch(name)
            inside = match is not None and int(match[1]) < self.layers and match[2] in allowed
            if not inside and name not in (*_OUTSIDE, _HEAD) and not _COMPUTED.fullmatch(name):
                raise CheckpointError(
                    f"{base.label} has {name!r}, which does not exist in {self.architecture.name}; expected only "
                    f"tensors of a {' or '.join(self.architecture.dense)} model."
                )
        size = int(self.config["hidden_size"])
        shapes = {_OUTSIDE[0]: (None, size), _OUTSIDE[1]: (size,), _HEAD: (None, size)}
        for name, shape in shapes.items():
            if name == _HEAD and (name in tied or (self.config["tie_word_embeddings"] and not self._has(name))):
                continue
            self._info(0, name, shape)
            yield name

    def _allowed(self) -> Iterator[str]:
        """Yield the allowed names of tensors in a layer of the base."""
        yield from self._attention()
        yield from (f"self_attn.{projection}.bias" for projection in self.architecture.biases)
        yield from (f"mlp.{projection}.weight" for projection in PROJECTIONS)

    def _attention(self) -> Iterator[str]:
        """Yield the required names in a layer of the base, except its MLP."""
        yield from _NORMS
        yield from (f"self_attn.{projection}.weight" for projection in ("q_proj", "k_proj", "v_proj", "o_proj"))
        if self.architecture.head_norms:
            yield from ("self_attn.q_norm.weight", "self_attn.k_norm.weight")

    def _base_tensors(self, layer: int) -> Iterator[str]:
        """Yield the tensors of a layer that are copied from the base."""
        prefix = f"model.layers.{layer}."
        for name in self._attention():
            self._info(0, prefix + name)
            yield prefix + name
        optional = (f"{prefix}self_attn.{projection}.bias" for projection in self.architecture.biases)
        yield from (name for name in optional if self._has(name))

    def _zeros(self, layer: int) -> Iterator[Job]:
        """Yield zero biases that the mixture's class requires and the base lacks."""
        for projection in self.architecture.zero_biases:
            name = f"model.layers.{layer}.self_attn.{projection}"
            if not self._has(f"{name}.bias"):
                yield self._compute(f"{name}.bias", self._info(0, f"{name}.weight").shape[:1])

    def _routers(self, layer: int) -> Iterator[Job]:
        size, prefix = int(self.config["hidden_size"]), f"model.layers.{layer}."
        yield self._compute(f"{prefix}{self.architecture.router}.weight", (len(self.recipe.experts), size))
        if self.architecture.shared_router:
            yield self._compute(f"{prefix}{self.architecture.shared_router}.weight", (len(self.recipe.shared), size))

    def _experts(self, layer: int) -> Iterator[Job]:
        """Yield the weights of a layer's experts."""
        prefix = f"model.layers.{layer}."
        for projection in PROJECTIONS:
            source, part = f"{prefix}mlp.{projection}.weight", self.architecture.parts[projection]
            for number, expert in enumerate(self.recipe.experts):
                name = self.architecture.expert.format(expert=number, part=part)
                yield self._expert(f"{prefix}{name}.weight", expert, source, projection)
            for expert in self.recipe.shared:
                yield self._expert(f"{prefix}{self.architecture.shared}.{part}.weight", expert, source, projection)

    def _expert(self, name: str, expert: Expert, source: str, projection: str) -> Job:
        """Return the job of one weight of an expert."""
        inner, outer = int(self.config["intermediate_size"]), int(self.config["hidden_size"])
        member = self.recipe.models.index(expert.source)
        info = self._info(member, source, (outer, inner) if projection == "down_proj" else (inner, outer))
        scale = expert.residual_scale if projection == "down_proj" else None
        if not expert.noise_scale and scale in (None, 1.0):
            return self._copy(name, (member, source))
        arguments = {"noise_scale": expert.noise_scale or 0.0, "seed": self.seed}
        weight = 1.0 if scale is None else scale
        return self._job(name, "merge", (member, source), weight, arguments, info.shape)

    def _copy(self, name: str, ref: Ref) -> Job:
        return self._job(name, "copy", ref, 1.0, {}, self.members[ref[0]].contents.tensors[ref[1]].shape)

    def _compute(self, name: str, shape: tuple[int, ...]) -> Job:
        """Register a computed tensor and return the job that copies it."""
        self.computed[name] = TensorInfo("F32", shape)
        return self._job(name, "copy", (len(self.members), name), 1.0, {}, shape)

    def _job(
        self, name: str, kind: Kind, ref: Ref, weight: float, arguments: Mapping[str, Any], shape: tuple[int, ...]
    ) -> Job:
        return Job(name, kind, (ref,), None, (weight,), arguments, TensorInfo(self.dtype, shape))

    def _has(self, name: str) -> bool:
        return name in self.members[0].contents.tensors

    def _info(self, member: int, name: str, shape: tuple[int | None, ...] | None = None) -> TensorInfo:
        """Return the dtype and shape of a model's tensor.

        Raises:
            CheckpointError: the tensor is missing, has another shape, or is not floating point.
        """
        label, tensors = self.members[member].label, self.members[member].contents.tensors
        if name not in tensors:
            raise CheckpointError(
                f"{label} has no {name!r}; expected a {' or '.join(self.architecture.dense)} model with "
                f"{self.layers} layers and an output head, according to the config.json of {self.members[0].label}."
            )
        found = tensors[name]
        fits = shape is None or (
            len(shape) == len(found.shape)
            and all(size in (None, own) for size, own in zip(shape, found.shape, strict=True))
        )
        if not fits or not found.is_inexact:
            wanted = "floats" if shape is None else f"floats of shape {_shown(shape)}"
            raise CheckpointError(
                f"{name!r} of {label} is {found.dtype} {_shown(found.shape)}; expected {wanted}, according to the "
                f"config.json of {self.members[0].label}."
            )
        return found


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
