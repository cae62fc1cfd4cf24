"""Generate the JSON Schema of recipes, for editors, from the declarations of the merge methods.

The schema accepts what non-strict reading accepts: keys that mergekit ignores are included and described as having no
effect. Each document of a file is validated separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weightspace.checkpoints.json_file import json_document
from weightspace.merging.methods import METHODS, Method, Parameter
from weightspace.merging.recipe.parameters import FALSE, PARAMETERS, TRUE
from weightspace.merging.recipe.reader import MISPLACED
from weightspace.merging.recipe.types import DTYPES, SCHEMES

Schema = dict[str, Any]

#: Recipe parameters that are not parameters of a method's function.
_RECIPE_ONLY = {
    "weight": "Weight of a model.",
    "int8_mask": "How mergekit stores masks; does not change the result.",
    "eps": "A parameter of mergekit; has no effect.",
}

#: Names of chat templates.
_TEMPLATES = "auto, alpaca, chatml, exaone, llama3, mistral, or a Jinja template"


def recipe_schema() -> Schema:
    """Return the JSON Schema (draft 7) of one document of a recipe."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "weightspace merge recipe",
        "description": "A merge of checkpoints, in the format of mergekit: https://github.com/arcee-ai/mergekit",
        **_mapping(_top(), required=("merge_method",)),
        "allOf": [_known_parameters()],
        "definitions": {
            "reference": _reference(),
            "path": _path(),
            "parameters": _parameters(METHODS.values()),
            "number": _setting(_number()),
            "truth": _setting(_boolean()),
            "models": _listed(_model()),
            "slices": _listed(_slice()),
            "token": _token(),
        },
    }


def schema_text() -> str:
    """Return the schema as JSON text."""
    return json_document(recipe_schema())


def _top() -> Schema:
    """Return the schemas of a document's keys."""
    dtype = {"enum": [*DTYPES, *(f"torch.{name}" for name in DTYPES), None]}
    forms = {"models": _ref("models"), "slices": _ref("slices")}
    module = _mapping({**forms, "parameters": _ref("parameters"), **_misplaced()})
    return {
        **_misplaced(),
        "name": _described(
            _type("string", "number", "null"), "Name by which later documents use the result as a model."
        ),
        "merge_method": _method(),
        "base_model": _described(_nullable(_ref("reference")), "The pretrained model that the others are tuned from."),
        "models": _described(_nullable(forms["models"]), "The models, each merged as a whole."),
        "slices": _described(_nullable(forms["slices"]), "Slices of layers; the output stacks them in order."),
        "modules": _described(
            _nullable({"type": "object", "additionalProperties": module}), "Models or slices for each module."
        ),
        "parameters": _ref("parameters"),
        "dtype": _described(dtype, "Dtype of the output."),
        "out_dtype": _described(dtype, "Dtype of the output; overrides dtype."),
        "quantise": _described(_nullable(_quantise()), "Write matrices as FP8 numbers with scales."),
        "components": _described(_nullable(_names()), "Components of folders to merge, such as unet. [all]"),
        "names": _described(_nullable(_maps()), "Name maps that bring the models to the names of the base."),
        "then": _described({"type": "array", "minItems": 1, "items": _step()}, "Steps after the merge, in order."),
        "tokenizer_source": _described(_nullable(_ref("reference")), "base, union, or a model."),
        "tokenizer": _nullable(_tokenizer()),
        "chat_template": _described(_type("string", "null"), f"{_TEMPLATES}."),
    }


def _step() -> Schema:
    """Return the schema of a step after a merge."""
    return {**_mapping({"merge_method": _method(), "parameters": _ref("parameters")}), "required": ["merge_method"]}


def _quantise() -> Schema:
    """Return the schema of a quantised output."""
    scheme = {"enum": list(SCHEMES), "description": "The scheme, by the unit that has a scale."}
    ignore = {"type": "array", "items": {"type": "string"}, "description": "Parts of names that are not quantised."}
    return {"anyOf": [scheme, {**_mapping({"scheme": scheme, "ignore": ignore}), "required": ["scheme"]}]}


def _names() -> Schema:
    """Return the schema of a name or a list of names."""
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _maps() -> Schema:
    """Return the schema of name maps: names, files, or contents."""
    one = {"type": ["string", "object"]}
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _known_parameters() -> Schema:
    """Return the schema that rejects unknown parameters, unless the method is defined in a user's file."""
    known = {
        "propertyNames": {"enum": sorted({one.name for row in METHODS.values() for one in row.parameters} | PARAMETERS)}
    }
    one = {"properties": {"parameters": known}}
    models = {"items": one}
    slices = {"items": {"properties": {"parameters": known, "sources": models}}}
    module = {"properties": {"parameters": known, "models": models, "slices": slices}}
    everywhere = {**module["properties"], "modules": {"additionalProperties": module}}
    own = {"properties": {"merge_method": {"enum": list(METHODS)}}}
    return {"if": own, "then": {"properties": everywhere}}


def _method() -> Schema:
    """Return the schema of the merge method."""
    named = [{"const": name, "description": row.formula} for name, row in METHODS.items()]
    return {"anyOf": [*named, {"type": "string", "pattern": r"\.py:\w+$", "description": "A method of your own."}]}


def _parameters(rows: Iterable[Method]) -> Schema:
    """Return the schema of all parameters; descriptions list the methods that have them."""
    by_name: dict[str, list[tuple[Method, Parameter]]] = {}
    for row in rows:
        for parameter in row.parameters:
            by_name.setdefault(parameter.name, []).append((row, parameter))
    keys = {name: _described(_ref("number"), text) for name, text in _RECIPE_ONLY.items()}
    keys["int8_mask"] = _described(_ref("truth"), _RECIPE_ONLY["int8_mask"])
    for name in sorted(PARAMETERS & by_name.keys()):
        keys[name] = _parameter(by_name[name])
    own = {name: _parameter(owners) for name, owners in sorted(by_name.items()) if name not in keys}
    return _nullable(_mapping({**keys, **own}, further={"type": ["number", "boolean", "string", "array", "object"]}))


def _parameter(owners: list[tuple[Method, Parameter]]) -> Schema:
    """Return the schema of a parameter, given the methods that have it."""
    kinds = [_kind(parameter) for _, parameter in owners]
    unique = [kind for index, kind in enumerate(kinds) if kind not in kinds[:index]]
    text = owners[0][1].help
    defaults = ", ".join(f"{row.name} ({_default(parameter)})" for row, parameter in owners)
    return _described(
        unique[0] if len(unique) == 1 else {"anyOf": unique}, f"{text} Methods and their defaults: {defaults}."
    )


def _kind(parameter: Parameter) -> Schema:
    """Return the schema of a parameter's values, following the rules by which recipes are read."""
    if parameter.choices or isinstance(parameter.default, str):
        return _setting({"enum": [*parameter.choices, True, False]} if parameter.choices else {"type": "string"})
    return _ref("truth") if isinstance(parameter.default, bool) else _ref("number")


def _default(parameter: Parameter) -> str:
    if parameter.computed:
        return parameter.computed
    return "required" if parameter.default is None else str(parameter.default)


def _setting(scalar: Schema) -> Schema:
    """Return the schema of a setting: a scalar, a gradient, or filters with values."""
    plain = {"anyOf": [scalar, {"type": "array", "items": scalar}]}
    inner = {"anyOf": [plain, {"type": "array", "items": {"type": "object"}}]}
    choice = _mapping({"filter": _type("string", "null"), "value": inner}, required=("value",))
    return {"anyOf": [plain, choice, {"type": "array", "items": choice}]}


def _number() -> Schema:
    text = {"type": "string", "pattern": r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"}
    return {"anyOf": [_type("number", "boolean"), text]}


def _boolean() -> Schema:
    return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "enum": [*TRUE, *FALSE]}]}


def _model() -> Schema:
    return _mapping({**_source_keys(), **_misplaced()}, required=("model",))


def _slice() -> Schema:
    bounds = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}
    layers = _described(bounds, "The layers [start, end), counted from 0.")
    stack = _described(_type("string", "null"), "Path of the stack of layers, if the model has several.")
    misplaced = {name: text for name, text in _misplaced().items() if name != "layer_range"}
    source = _mapping(
        {**_source_keys(), **misplaced, "layer_range": layers, "stack": stack}, required=("model", "layer_range")
    )
    keys = {"sources": _listed(source), "base_model": _nullable(_ref("reference")), "parameters": _ref("parameters")}
    return _mapping({**keys, **_misplaced()}, required=("sources",))


def _source_keys() -> Schema:
    """Return the schemas of the keys that every model has."""
    evidence = _described(_type("string", "null"), "Path of data statistics computed by `weightspace evidence`.")
    return {"model": _ref("reference"), "parameters": _ref("parameters"), "evidence": evidence}


def _reference() -> Schema:
    """Return the schema of a model reference: a string, a mapping, or a nested recipe."""
    extra = {"lora": _nullable(_ref("path")), "override_architecture": _type("string", "null")}
    text = "A path, ORG/MODEL[@REVISION] on the Hub, MODEL+ADAPTER, another document's name, or a recipe file."
    by_model = _mapping({"model": _ref("path"), **extra}, required=("model",))
    by_path = _mapping({"path": _type("string"), "revision": _type("string", "null"), **extra}, required=("path",))
    return {"anyOf": [_described({"type": "string"}, text), by_model, by_path, {"$ref": "#"}]}


def _path() -> Schema:
    keys = {"path": _type("string"), "revision": _type("string", "null")}
    return {"anyOf": [{"type": "string"}, _mapping(keys, required=("path",))]}


def _tokenizer() -> Schema:
    """Return the schema of the tokenizer section."""
    tokens = _nullable({"type": "object", "additionalProperties": _ref("token")})
    multiple = {"type": ["integer", "null"], "minimum": 0}
    source = _described(_nullable(_ref("reference")), "union, base, or a model.")
    return _mapping({"source": source, "tokens": tokens, "pad_to_multiple_of": multiple})


def _token() -> Schema:
    """Return the schema of a token's row."""
    row = {"model": _ref("reference"), "token": _type("string"), "token_id": {"type": "integer", "minimum": 0}}
    kinds = [
        _mapping({"kind": {"const": "model_token"}, **row}, required=("kind", "model")),
        _mapping({"kind": {"const": "zero"}}, required=("kind",)),
        _ref("reference"),
    ]
    return _nullable(_mapping({"source": _nullable({"anyOf": kinds}), "force": {"type": "boolean"}}))


def _misplaced() -> Schema:
    """Return keys that mergekit ignores in a place, and that are a warning."""
    return {key: {"description": f"Has no effect: {reason}.", "deprecated": True} for key, reason in MISPLACED.items()}


def _mapping(keys: Mapping[str, Any], *, required: Iterable[str] = (), further: Schema | bool = False) -> Schema:
    return {
        "type": "object",
        "properties": dict(keys),
        "additionalProperties": further,
        **({"required": list(required)} if required else {}),
    }


def _listed(entry: Schema) -> Schema:
    return {"type": "array", "items": entry}


def _type(*names: str) -> Schema:
    return {"type": list(names) if len(names) > 1 else next(iter(names))}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _described(schema: Schema, text: str) -> Schema:
    """Return a schema with a description; a reference of draft 7 can have none beside it."""
    return {"description": text, **({"allOf": [schema]} if "$ref" in schema else schema)}
