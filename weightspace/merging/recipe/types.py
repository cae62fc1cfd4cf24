"""Data classes of recipes: models, slices of layers, and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

#: Called with a one-line message about a questionable setting of a recipe.
Warn = Callable[[str], None]

#: Supported dtypes of the output.
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Source:
    """A model of a slice.

    Attributes:
        model: a path as written, or the name of another document; ``MODEL+ADAPTER`` adds a LoRA adapter.
        parameters: parameters of this model.
        layer_range: the layers ``[start, end)`` that it contributes, or None for the whole model.
        evidence: path of its data statistics, or None.
        stack: path of the stack of layers that ``layer_range`` refers to, if the model has several; None: that of the
            text model.
    """

    model: str
    parameters: Mapping[str, Any]
    layer_range: tuple[int, int] | None
    evidence: str | None
    stack: str | None = None


@dataclass(frozen=True)
class Slice:
    """Sources that are merged into a range of layers, or into a whole model or module.

    Attributes:
        sources: the models.
        parameters: parameters for all sources.
        base: path of the slice's base, or None for that of the recipe.
        module: the module that the slice belongs to, or None if the recipe has no modules.
        module_parameters: parameters of that module.
    """

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any]
    base: str | None = None
    module: str | None = None
    module_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenSource:
    """Where the row of a token comes from, for models that lack the token or for all models.

    Attributes:
        model: the model that the row is taken from, as written in the recipe; None: see ``zero``.
        token: token of that model whose row is taken; None: see ``id``.
        id: index of the row; if ``token`` is None, too, the row of the same token.
        zero: use a zero row. If False and ``model`` is None, use the default row for missing tokens.
        force: whether it also replaces the row in models that have the token.
    """

    model: str | None = None
    token: str | None = None
    id: int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class TokenizerKeys:
    """A recipe's settings for the tokenizer.

    Attributes:
        source: ``union``, ``base``, a model, or None if the recipe does not set it.
        tokens: token -> where its row comes from.
        multiple: the number of rows is rounded up to a multiple of it; None: no padding.
    """

    source: str | None = None
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    multiple: int | None = None


#: Schemes of quantised outputs -> the unit that has a scale.
SCHEMES = {
    "fp8-tensor": "matrix",
    "fp8-channel": "output channel",
    "fp8-block": "block of 128 × 128",
    "q8_0": "block of 32",
}

#: Those of GGUF files; the others are written in safetensors.
GGUF_SCHEMES = ("q8_0",)


@dataclass(frozen=True)
class Quantise:
    """A recipe's settings for a quantised output.

    Attributes:
        scheme: one of ``SCHEMES``.
        ignore: parts of the names of tensors that are not quantised.
        inherited: whether the recipe names no scheme, and this is that of all models.
    """

    scheme: str
    ignore: tuple[str, ...] = ()
    inherited: bool = False


@dataclass(frozen=True)
class Recipe:
    """The description of a merge.

    Attributes:
        method: name of the method.
        base: path of the base, or None.
        slices: slices in order of layers; a single slice without layer ranges merges whole models.
        parameters: parameters for all slices.
        dtype, out_dtype: dtype of the output; ``out_dtype`` takes precedence. None: that of the inputs.
        tokenizer: where the output's tokenizer and the rows of its tokens come from.
        content: the whole document as parsed YAML.
        name: name by which other documents refer to the result, or None.
        chat_template: ``auto``, the name of a template, a Jinja template, or None to keep that of the base.
        quantise: how matrices of the output are quantised, or None.
        components: components of folders that are merged; empty: all.
        names: name maps that bring the models to common names, as ``read_name_maps`` takes them.
        documents: the other documents of the file, each after those that it uses as models.
        is_document: whether the recipe was read from YAML instead of built from options.
    """

    method: str
    base: str | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerKeys
    content: Mapping[str, Any]
    name: str | None = None
    chat_template: str | None = None
    quantise: Quantise | None = None
    components: tuple[str, ...] = ()
    names: tuple[str | Mapping[str, Any], ...] = ()
    documents: tuple[Recipe, ...] = ()
    is_document: bool = field(default=False, compare=False)

    def to_yaml(self) -> str:
        """Return the recipe as YAML with one or more documents; equal recipes give equal text."""
        contents = [dict(recipe.content) for recipe in (*self.documents, self)]
        return yaml.safe_dump_all(contents, sort_keys=False, allow_unicode=True)

    @property
    def tokenizer_source(self) -> str | None:
        """Where the output's tokenizer comes from: ``union``, ``base``, a model, or None."""
        return self.tokenizer.source

    @property
    def bases(self) -> tuple[str | None, ...]:
        """The base of each slice."""
        return tuple(part.base or self.base for part in self.slices)

    @property
    def donor(self) -> str:
        """The model that the configuration and tokenizer come from: the base if there is one, else the first model."""
        return self.base or self.bases[0] or self.slices[0].sources[0].model

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, without duplicates."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.module is not None))

    @property
    def models(self) -> tuple[str, ...]:
        """All models that are read, without duplicates, bases last."""
        sources = [source.model for part in self.slices for source in part.sources]
        return tuple(dict.fromkeys([*sources, *(base for base in (*self.bases, self.base) if base)]))
