"""Recipes as data: the models of a merge, slices of their layers, and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

#: Takes a line about something in a recipe that is questionable.
Warn = Callable[[str], None]

#: What the output's dtype can be.
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Source:
    """A model of a slice.

    Attributes:
        model: ``MODEL``, a path as written or the name of another document; ``MODEL+ADAPTER`` adds a LoRA adapter.
        parameters: its own settings.
        layer_range: the layers that it gives, from the first up to the second; None: the whole model.
        evidence: path of its statistics of data, or None.
        stack: path of the stack of layers that ``layer_range`` counts, where the model has several; None: the text
            model's.
    """

    model: str
    parameters: Mapping[str, Any]
    layer_range: tuple[int, int] | None
    evidence: str | None
    stack: str | None = None


@dataclass(frozen=True)
class Slice:
    """Sources that are merged into some layers, or into a whole model or module.

    Attributes:
        sources: the models.
        parameters: settings for all of them.
        base: path of the base of these layers, where it is not that of the recipe.
        module: the part of the model that the slice belongs to; None: the recipe has no modules.
        module_parameters: settings of that module.
    """

    sources: tuple[Source, ...]
    parameters: Mapping[str, Any]
    base: str | None = None
    module: str | None = None
    module_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenSource:
    """The row that models get which lack a token, or all of them.

    Attributes:
        model: the model that it is a row of, as the recipe writes it; None: see ``zero``.
        token: the token of that model whose row it is; None: see ``id``.
        id: the row itself; None, and no token: the row of the same token.
        zero: it is zero; without that and without a model, it is what models get that lack any token.
        force: models that have the token get it, too.
    """

    model: str | None = None
    token: str | None = None
    id: int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class TokenizerKeys:
    """The keys of a recipe about the tokenizer.

    Attributes:
        source: ``union``, ``base``, a model, or None where the recipe says nothing.
        tokens: rows of single tokens.
        multiple: the number of rows is a multiple of it; None: it is that of the tokens.
    """

    source: str | None = None
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    multiple: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge as it is written down.

    Attributes:
        method: name of the method.
        base: path of the base, or None.
        slices: from the first layers to the last; one without layer ranges merges models whole.
        parameters: settings of all slices.
        dtype, out_dtype: of the output; the latter has the last word. None: that of the inputs.
        tokenizer: where the output's tokenizer and the rows of its tokens come from.
        content: everything, as YAML has it.
        name: what other documents of the file call the result, or None.
        chat_template: ``auto``, the name of a template, a Jinja template, or None: that of the base is kept.
        documents: the other documents of the file, each after those that it uses as models.
        is_document: it was written as YAML, not given by options.
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
    documents: tuple[Recipe, ...] = ()
    is_document: bool = field(default=False, compare=False)

    def to_yaml(self) -> str:
        """Return the recipe as YAML, one document or several; equal recipes give equal text."""
        contents = [dict(recipe.content) for recipe in (*self.documents, self)]
        return yaml.safe_dump_all(contents, sort_keys=False, allow_unicode=True)

    @property
    def tokenizer_source(self) -> str | None:
        """Where the output's tokenizer comes from: ``union``, ``base``, a model, or None."""
        return self.tokenizer.source

    @property
    def bases(self) -> tuple[str | None, ...]:
        """The base of every slice."""
        return tuple(part.base or self.base for part in self.slices)

    @property
    def donor(self) -> str:
        """The model that configuration and tokenizer come from: the base, else the first one."""
        return self.base or self.bases[0] or self.slices[0].sources[0].model

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it names, each once."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.module is not None))

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is read, the bases last, each once."""
        sources = [source.model for part in self.slices for source in part.sources]
        return tuple(dict.fromkeys([*sources, *(base for base in (*self.bases, self.base) if base)]))
