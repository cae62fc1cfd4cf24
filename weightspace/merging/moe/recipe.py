"""Mixture-of-experts recipes in mergekit-moe's YAML format.

Paths are relative to the working directory. Misspelled keys are errors, or warnings if the caller accepts warnings.
Other unknown keys, and keys of ordinary merges (such as ``tokenizer_source``), have no effect, as in mergekit-moe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.document import Document, join, kind
from weightspace.merging.recipe.model_reference import model_reference
from weightspace.merging.recipe.types import DTYPES, Warn
from weightspace.suggestions import unknown

#: Methods to initialise the routers; the last two are random and need no prompts.
GATE_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
RANDOM_MODES = ("random", "uniform_random")

_TOP = ("base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture")
_EXPERT = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")

#: Keys of ordinary merge recipes, which mergekit-moe ignores.
_ELSEWHERE = (
    *("name", "merge_method", "models", "slices", "modules", "parameters", "out_dtype", "tokenizer_source"),
    *("tokenizer", "chat_template"),
)


@dataclass(frozen=True)
class Expert:
    """A dense model whose MLPs become an expert in every layer.

    Attributes:
        source: the model as written in the recipe; ``MODEL+ADAPTER`` adds a LoRA adapter.
        positive_prompts: examples of text to route to the expert.
        negative_prompts: examples of text not to route to it.
        noise_scale: standard deviation of noise added to its weights, or None.
        residual_scale: factor applied to its output, or None.
    """

    source: str
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    noise_scale: float | None = None
    residual_scale: float | None = None


@dataclass(frozen=True)
class MixtureRecipe:
    """The description of a mixture of experts.

    Attributes:
        base: the model that supplies all tensors except the experts.
        experts: the routed experts, in order.
        shared: shared experts, which process every token.
        gate_mode: one of ``GATE_MODES``.
        experts_per_token: number of routed experts per token.
        dtype: dtype of the output, or None for that of the base.
        architecture: prefix of an architecture's name, or None.
        content: the whole document as parsed YAML.
        where: name of the recipe in errors.
    """

    base: str
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...]
    gate_mode: str
    experts_per_token: int
    dtype: str | None
    architecture: str | None
    content: Mapping[str, Any]
    where: str

    @property
    def models(self) -> tuple[str, ...]:
        """All models that are read, without duplicates, base first."""
        return tuple(dict.fromkeys([self.base, *(expert.source for expert in (*self.experts, *self.shared))]))

    @property
    def draws(self) -> bool:
        """Whether the result depends on the seed."""
        noisy = any(expert.noise_scale for expert in (*self.experts, *self.shared))
        return noisy or self.gate_mode in RANDOM_MODES

    def to_yaml(self) -> str:
        """Return the recipe as YAML; equal recipes give equal text."""
        return yaml.safe_dump(dict(self.content), sort_keys=False, allow_unicode=True)


def read_mixture_recipe(path: Path, *, warn: Warn | None = None, ignored: Warn | None = None) -> MixtureRecipe:
    """Read a mixture's recipe from a file.

    Args:
        path: a YAML file with one document.
        warn: called with a one-line message about each unknown key; None makes them errors.
        ignored: called with a one-line message about each key without effect; None makes them errors.

    Raises:
        WeightspaceError: the file cannot be read or is not a valid recipe; the message names the key.
    """
    document = Document(str(path), warn, ignored)
    filled = [content for content in read_yaml(path) if content is not None]
    if len(filled) != 1:
        raise WeightspaceError(f"{document.where} has {len(filled)} documents; expected one mixture recipe.")
    return _recipe(document, document.mapping(filled[0], "the recipe"))


def _recipe(document: Document, top: Mapping[str, Any]) -> MixtureRecipe:
    if "experts" not in top and "merge_method" in top:
        raise WeightspaceError(
            f"{document.where} is a merge recipe; expected a mixture recipe. Run: weightspace merge {document.where}"
        )
    document.is_mergekits = True
    for key in top:
        if key in _ELSEWHERE:
            document.ignore(key, "", "it belongs to ordinary merge recipes")
        elif key not in _TOP:
            document.unknown(key, _TOP, "")
    base = model_reference(document, top.get("base_model"), "base_model")
    if base is None:
        raise document.error("base_model", "is missing: expected the path of a model")
    recipe = MixtureRecipe(
        base,
        _experts(document, top, "experts"),
        _experts(document, top, "shared_experts") if top.get("shared_experts") else (),
        _gate_mode(document, top),
        _experts_per_token(document, top),
        _dtype(document, top),
        document.text(top, "architecture", ""),
        top,
        document.where,
    )
    document.tell()
    _check(document, recipe)
    return recipe


def _experts(document: Document, top: Mapping[str, Any], key: str) -> tuple[Expert, ...]:
    entries = document.entries(top.get(key), key)
    return tuple(_expert(document, entry, f"{key}[{index}]") for index, entry in enumerate(entries))


def _expert(document: Document, content: Any, path: str) -> Expert:
    entry = document.mapping(content, path)
    document.known(entry, _EXPERT, path)
    source = model_reference(document, entry.get("source_model"), join(path, "source_model"))
    if source is None:
        raise document.error(join(path, "source_model"), "is missing: expected the path of a model")
    noise = _number(document, entry, "noise_scale", path)
    if noise is not None and noise < 0:
        raise document.error(join(path, "noise_scale"), f"must be a standard deviation, 0 or more, found {noise:g}")
    return Expert(
        source,
        _prompts(document, entry, "positive_prompts", path),
        _prompts(document, entry, "negative_prompts", path),
        noise,
        _number(document, entry, "residual_scale", path),
    )


def _prompts(document: Document, entry: Mapping[str, Any], key: str, path: str) -> tuple[str, ...]:
    """Return a list of prompts; empty if the key is missing."""
    prompts = entry.get(key)
    if prompts is None:
        return ()
    if not isinstance(prompts, list):
        raise document.error(join(path, key), f"must be a list of prompts, found {kind(prompts)}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise document.error(f"{join(path, key)}[{index}]", f"must be a string, found {kind(prompt)}. Quote it")
    return tuple(prompts)


def _number(document: Document, entry: Mapping[str, Any], key: str, path: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise document.error(join(path, key), f"must be a finite number, found {kind(value)}")
    return float(value)


def _experts_per_token(document: Document, top: Mapping[str, Any]) -> int:
    value = top.get("experts_per_token")
    if value is None:
        return 2
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise document.error("experts_per_token", f"must be an integer of at least 1, found {kind(value)}")
    return value


def _gate_mode(document: Document, top: Mapping[str, Any]) -> str:
    mode = document.text(top, "gate_mode", "") or "hidden"
    if mode not in GATE_MODES:
        raise unknown(f"gate_mode in {document.where}", mode, GATE_MODES)
    return mode


def _dtype(document: Document, top: Mapping[str, Any]) -> str | None:
    """Return a dtype without an optional ``torch.`` prefix."""
    dtype = document.text(top, "dtype", "")
    if dtype is None or dtype.removeprefix("torch.") in DTYPES:
        return dtype and dtype.removeprefix("torch.")
    raise unknown(f"dtype in {document.where}", dtype, DTYPES)


def _check(document: Document, recipe: MixtureRecipe) -> None:
    """Check that the prompts determine a router.

    Raises:
        WeightspaceError: there are fewer experts than ``experts_per_token``, or prompts are missing or identical.
    """
    experts = recipe.experts
    if len(experts) < recipe.experts_per_token:
        raise document.error(
            "experts_per_token",
            f"is {recipe.experts_per_token}, but there are {len(experts)} experts; expected at most {len(experts)}",
        )
    with_prompts = [bool(expert.positive_prompts) for expert in recipe.shared]
    if len(set(with_prompts)) > 1:
        raise document.error("shared_experts", "must all have prompts or all have none; found some with prompts")
    if recipe.gate_mode in RANDOM_MODES:
        return
    for key, entries in (("experts", experts), ("shared_experts", recipe.shared)):
        for index, expert in enumerate(entries):
            if not expert.positive_prompts and (key == "experts" or expert.negative_prompts):
                path = join(f"{key}[{index}]", "positive_prompts")
                raise document.error(path, f"is missing: gate_mode {recipe.gate_mode} computes the router from prompts")
    prompts = {(expert.positive_prompts, expert.negative_prompts) for expert in experts}
    if len(experts) > 1 and len(prompts) == 1:
        raise document.error(
            "experts", "all have the same prompts, so the router cannot distinguish them; expected distinct prompts"
        )
