"""Convert a YAML document in mergekit's format to a recipe with whole models, slices or modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.methods import METHODS, Method
from weightspace.merging.recipe.document import Document, join, kind
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.model_reference import model_reference
from weightspace.merging.recipe.names import components_key, names_key, with_written_maps
from weightspace.merging.recipe.parameters import (
    PARAMETERS,
    gives_base,
    is_mergekits,
    is_shared,
    parameter_names,
    read_parameters,
    takes_base_as_model,
)
from weightspace.merging.recipe.quantise import quantise_key
from weightspace.merging.recipe.tokens import tokenizer_keys
from weightspace.merging.recipe.types import DTYPES, Recipe, Slice, Source
from weightspace.suggestions import unknown

#: Top-level keys of a document.
_TOP = (
    *("name", "merge_method", "base_model", "models", "slices", "modules", "parameters"),
    *("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "quantise", "components", "names"),
)

#: The keys under which a recipe lists its models; modules have only the first two.
_FORMS = ("models", "slices", "modules")

#: Keys that mergekit ignores outside their place -> where they belong.
MISPLACED = {
    **{name: "parameters belong under `parameters`" for name in sorted(PARAMETERS - {"weight", "t"})},
    "layer_range": "`models` merges whole models; select layers under `slices`",
    "residual_weight": "mergekit reads it but does not use it",
    "revision": "revisions are written as MODEL@REVISION",
    "lora": "adapters are written as MODEL+ADAPTER",
    "pad_to_multiple_of": "it belongs under `tokenizer`",
    "random_seed": "it is an option of the command, here --seed",
}


#: Parameters without a default, which mergekit requires.
_REQUIRED = ("weight", "t")


class RecipeReader:
    """Reads one document of a recipe."""

    def __init__(self, document: Document, content: Any) -> None:
        """Prepare to read a document.

        Args:
            document: reports errors and warnings.
            content: the parsed YAML.

        Raises:
            WeightspaceError: the content is not a mapping, or does not name a known method.
        """
        self.document = document
        self.top = document.mapping(content, "the recipe")
        document.is_mergekits = is_mergekits(self.top.get("merge_method"))
        self._row = METHODS.get(str(self.top.get("merge_method")))
        self._known(self.top, _TOP, "")
        name = document.text(self.top, "merge_method", "")
        if name is None:
            raise document.error("merge_method", "is missing: expected the name of a method")
        self.row = self._row = find_method(name)
        self.base = model_reference(document, self.top.get("base_model"), "base_model")
        self.parameters = read_parameters(document, self.top, self.row, "")

    def recipe(self) -> Recipe:
        """Return the recipe.

        Raises:
            WeightspaceError: the document is not a valid recipe; the message names the key.
        """
        recipe = Recipe(
            method=self.row.name,
            base=self.base,
            slices=self._slices(),
            parameters=self.parameters,
            dtype=self._dtype("dtype"),
            out_dtype=self._dtype("out_dtype"),
            tokenizer=tokenizer_keys(self.document, self.top),
            content=with_written_maps(self.top),
            name=self._name(),
            chat_template=self.document.text(self.top, "chat_template", ""),
            quantise=quantise_key(self.document, self.top),
            components=components_key(self.document, self.top),
            names=names_key(self.document, self.top),
        )
        self._report_bases_alone(recipe)
        self.document.tell()
        return recipe

    def _report_bases_alone(self, recipe: Recipe) -> None:
        """Report slices without models other than the base; the output is then the base itself."""
        alone = [
            base
            for part, base in zip(recipe.slices, recipe.bases, strict=True)
            if base is not None and "+" not in base and all(source.model == base for source in part.sources)
        ]
        if not alone or not gives_base(self.row):
            return
        line = f"{self.document.where}: nothing is merged into {alone[0]}: there are no models other than the base"
        if self.document.ignored is None:
            raise WeightspaceError(f"{line}. Expected one that differs from it.")
        self.document.ignored(f"{line}, which is the output.")

    def _name(self) -> str | None:
        """Return the document's name as a string, even if YAML reads it as a number."""
        name = self.top.get("name")
        if name is not None and (not isinstance(name, str | int | float) or not str(name)):
            raise self.document.error("name", f"must be a non-empty string, found {kind(name)}")
        return None if name is None else str(name)

    def _slices(self) -> tuple[Slice, ...]:
        """Return the slices of the recipe; those of its modules are concatenated."""
        form = self._form(self.top, "", _FORMS)
        if form != "modules":
            return self._parts(self.top, form, "", {})
        modules = self.document.mapping(self.top["modules"], "modules")
        return tuple(part for name, content in modules.items() for part in self._module(name, content))

    def _module(self, name: str, content: Any) -> tuple[Slice, ...]:
        """Return the slices of a module."""
        path = join("modules", name)
        module = self.document.mapping(content, path)
        self._known(module, (*_FORMS[:2], "parameters"), path)
        parameters = read_parameters(self.document, module, self.row, path)
        parts = self._parts(module, self._form(module, path, _FORMS[:2]), path, parameters)
        return tuple(Slice(part.sources, part.parameters, part.base, name, parameters) for part in parts)

    def _form(self, holder: Mapping[str, Any], path: str, forms: Sequence[str]) -> str:
        """Return the key that lists the models; report further keys that are empty as having no effect."""
        present = [form for form in forms if holder.get(form) is not None]
        filled = [form for form in present if holder[form]] or present
        if len(filled) != 1:
            raise self.document.error(path or "the recipe", f"must have exactly one of {', '.join(forms)}")
        for form in present:
            if form != filled[0]:
                self.document.ignore(form, path, f"it is empty, and {filled[0]} is given")
        return filled[0]

    def _parts(
        self, holder: Mapping[str, Any], form: str, path: str, module_parameters: Mapping[str, Any]
    ) -> tuple[Slice, ...]:
        """Return the slices of the recipe or of a module, given its ``models`` or ``slices``."""
        path = join(path, form)
        entries = self.document.entries(holder[form], path)
        if form == "slices":
            return tuple(self._slice(entry, f"{path}[{index}]") for index, entry in enumerate(entries))
        sources = [self._source(entry, f"{path}[{index}]", sliced=False) for index, entry in enumerate(entries)]
        if self._takes_base(sources, module_parameters):
            sources.append(Source(str(self.base), {}, None, None))
        return (Slice(tuple(sources), {}),)

    def _takes_base(self, sources: Sequence[Source], module_parameters: Mapping[str, Any]) -> bool:
        """Return whether the base is merged as an additional model, and report it."""
        if self.base is None or any(source.model == self.base for source in sources):
            return False
        if not takes_base_as_model(self.row, {**self.parameters, **module_parameters}):
            return False
        line = f"base_model is merged as an additional model, as in mergekit: method {self.row.name!r} takes no base"
        if self.document.ignored is None:
            raise self.document.error(f"{line}. List it under models, or remove", "base_model")
        self.document.ignored(f"{self.document.where}: {line}. Remove base_model if this is not intended.")
        return True

    def _slice(self, content: Any, path: str) -> Slice:
        part = self.document.mapping(content, path)
        self._known(part, ("sources", "base_model", "parameters"), path)
        entries = self.document.entries(part.get("sources"), f"{path}.sources")
        sources = [self._source(entry, f"{path}.sources[{index}]", sliced=True) for index, entry in enumerate(entries)]
        base = model_reference(self.document, part.get("base_model"), f"{path}.base_model")
        return Slice(tuple(sources), read_parameters(self.document, part, self.row, path), base)

    def _source(self, content: Any, path: str, *, sliced: bool) -> Source:
        if isinstance(content, str):
            raise self.document.error(path, f"is {kind(content)}; write {{model: {content[:60]}}}")
        source = self.document.mapping(content, path)
        self._known(source, ("model", "parameters", "evidence", *(("layer_range", "stack") if sliced else ())), path)
        model = model_reference(self.document, source.get("model"), f"{path}.model")
        if model is None:
            raise self.document.error(f"{path}.model", "is missing: expected the path of a checkpoint")
        layers = self._layer_range(source, path) if sliced else None
        parameters = read_parameters(self.document, source, self.row, path, single=True)
        stack = self.document.text(source, "stack", path) if sliced else None
        return Source(model, parameters, layers, self.document.text(source, "evidence", path), stack)

    def _layer_range(self, source: Mapping[str, Any], path: str) -> tuple[int, int]:
        """Return the start and end of the layer range; they are equal if the range is empty."""
        bounds = source.get("layer_range")
        if not isinstance(bounds, list) or len(bounds) != 2 or not all(type(bound) is int for bound in bounds):
            raise self.document.error(f"{path}.layer_range", f"must be two integers [start, end), found {bounds!r}")
        if not 0 <= bounds[0] <= bounds[1]:
            raise self.document.error(
                f"{path}.layer_range", f"must satisfy 0 <= start <= end in [start, end), found {bounds}"
            )
        if bounds[0] == bounds[1] and not (path.startswith("modules.") and bounds == [0, 0]):  # a module without layers
            self.document.ignore("layer_range", path, "it is empty and selects no layers")
        return bounds[0], bounds[1]

    def _dtype(self, key: str) -> str | None:
        """Return a dtype without an optional ``torch.`` prefix."""
        dtype = self.document.text(self.top, key, "")
        if dtype is None or dtype.removeprefix("torch.") in DTYPES:
            return dtype and dtype.removeprefix("torch.")
        if "float8" in dtype:
            raise WeightspaceError(
                f"{key} in {self.document.where} is {dtype!r}; expected one of {', '.join(DTYPES)}. FP8 is written "
                "with scales: quantise, such as --quantise fp8-block."
            )
        raise unknown(f"{key} in {self.document.where}", dtype, DTYPES)

    def _known(self, content: Mapping[str, Any], keys: Sequence[str], path: str) -> None:
        """Refuse unknown keys and parameters of the method; report other misplaced keys that mergekit ignores."""
        for key in content:
            if key in keys:
                continue
            if self._row is not None and key in parameter_names(self._row):
                self.document.misplaced(key, path, self._row.name, self._place(self._row, content, key, path))
            elif key in MISPLACED and self.document.ignored is not None:
                self.document.ignore(key, path, MISPLACED[key])
            else:
                self.document.unknown(key, keys, path, needed=key in _REQUIRED and not self._can_miss(key, path))

    def _place(self, row: Method, content: Mapping[str, Any], key: str, path: str) -> str:
        """Return where a parameter of the method belongs that stands beside the other keys of a mapping."""
        if path and not ("model" in content and is_shared(row, key)):
            return join(join(path, "parameters"), key)
        value = content[key]
        if isinstance(value, bool | int | float | str):
            return f"parameters: {{{key}: {str(value).lower() if isinstance(value, bool) else value}}}"
        return f"parameters: {{{key}: …}}"

    def _can_miss(self, key: str, path: str) -> bool:
        """Return whether a part of the recipe needs no value of its own of a parameter without a default."""
        if not path:
            return False
        has = self.row.weighted if key == "weight" else any(one.name == key for one in self.row.parameters)
        return not has or key in self.parameters
