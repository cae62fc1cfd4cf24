"""The JSON Schema of recipes, for editors: generated from the declarations of the merge methods.

It accepts what a reading that isn't strict accepts: keys that mergekit ignores are in it, and say that they have no
effect. Each document of a file is checked on its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from weightspace.merging.methods import METHODS, Method, Parameter
from weightspace.merging.recipe.parameters import FALSE, PARAMETERS, TRUE
from weightspace.merging.recipe.reader import MISPLACED
from weightspace.merging.recipe.types import DTYPES

Schema = dict[str, Any]

#: Parameters of recipes that are no parameters of a method's function.
_BESIDE = {
    "weight": "Weight of a model.",
    "int8_mask": "How mergekit stores its masks; changes no result.",
    "eps": "Of mergekit; has no effect.",
}

#: Names of chat templates, beside Jinja.
_TEMPLATES = "auto, alpaca, chatml, exaone, llama3, mistral, or a Jinja template"


def recipe_schema() -> Schema:
    """Return the JSON Schema (draft 7) of one document of a recipe."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "weightspace merge recipe",
        "description": "A merge of checkpoints, as mergekit writes it: https://github.com/arcee-ai/mergekit",
        **_mapping(_top(), required=("merge_method",)),
        "allOf": [_known_parameters()],
        "definitions": {
            "reference": _reference(),
            "path": _path(),
            "parameters": _parameters(METHODS.values()),
            "number": _setting(_number()),
            "truth": _setting(_truth()),
            "models": _listed(_model()),
            "slices": _listed(_slice()),
            "token": _token(),
        },
    }


def schema_text() -> str:
    """Return the schema as it is published."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def _top() -> Schema:
    """Return the keys of a document."""
    dtype = {"enum": [*DTYPES, *(f"torch.{name}" for name in DTYPES), None]}
    forms = {"models": _ref("models"), "slices": _ref("slices")}
    module = _mapping({**forms, "parameters": _ref("parameters"), **_misplaced()})
    return {
        **_misplaced(),
        "name": _described(
            _type("string", "number", "null"), "By this name later documents use the result as a model."
        ),
        "merge_method": _method(),
        "base_model": _described(_nullable(_ref("reference")), "The model that the others are fine-tunes of."),
        **{name: _described(_nullable(form), f"The models, by {name}.") for name, form in forms.items()},
        "modules": _described(_nullable({"type": "object", "additionalProperties": module}), "The models, by tower."),
        "parameters": _ref("parameters"),
        "dtype": _described(dtype, "Dtype of the output."),
        "out_dtype": _described(dtype, "Dtype of the output; comes before dtype."),
        "tokenizer_source": _described(_nullable(_ref("reference")), "base, union, or a model."),
        "tokenizer": _nullable(_tokenizer()),
        "chat_template": _described(_type("string", "null"), f"{_TEMPLATES}."),
    }


def _known_parameters() -> Schema:
    """Return the schema that refuses unknown parameters, except those of a method in a file of the user's."""
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
    """Return the schema of the method's name."""
    named = [{"const": name, "description": row.formula} for name, row in METHODS.items()]
    return {"anyOf": [*named, {"type": "string", "pattern": r"\.py:\w+$", "description": "A method of your own."}]}


def _parameters(rows: Iterable[Method]) -> Schema:
    """Return the schema of all parameters, with the methods that have each."""
    by_name: dict[str, list[tuple[Method, Parameter]]] = {}
    for row in rows:
        for parameter in row.parameters:
            by_name.setdefault(parameter.name, []).append((row, parameter))
    keys = {name: _described(_ref("number"), text) for name, text in _BESIDE.items()}
    keys["int8_mask"] = _described(_ref("truth"), _BESIDE["int8_mask"])
    for name in sorted(PARAMETERS & by_name.keys()):
        keys[name] = _parameter(by_name[name])
    own = {name: _parameter(owners) for name, owners in sorted(by_name.items()) if name not in keys}
    return _nullable(_mapping({**keys, **own}, further={"type": ["number", "boolean", "string", "array", "object"]}))


def _parameter(owners: list[tuple[Method, Parameter]]) -> Schema:
    """Return the schema of a parameter that some methods have."""
    kinds = [_kind(parameter) for _, parameter in owners]
    unique = [kind for index, kind in enumerate(kinds) if kind not in kinds[:index]]
    text = owners[0][1].help
    defaults = ", ".join(f"{row.name} ({_default(parameter)})" for row, parameter in owners)
    return _described(unique[0] if len(unique) == 1 else {"anyOf": unique}, f"{text} Of {defaults}.")


def _kind(parameter: Parameter) -> Schema:
    """Return the schema of a parameter's values, by the same rules that read them."""
    if parameter.choices or isinstance(parameter.default, str):
        return _setting({"enum": [*parameter.choices, True, False]} if parameter.choices else {"type": "string"})
    return _ref("truth") if isinstance(parameter.default, bool) else _ref("number")


def _default(parameter: Parameter) -> str:
    if parameter.computed:
        return parameter.computed
    return "required" if parameter.default is None else str(parameter.default)


def _setting(scalar: Schema) -> Schema:
    """Return the schema of a scalar, a gradient, or filters with values."""
    plain = {"anyOf": [scalar, {"type": "array", "items": scalar}]}
    inner = {"anyOf": [plain, {"type": "array", "items": {"type": "object"}}]}
    choice = _mapping({"filter": _type("string", "null"), "value": inner}, required=("value",))
    return {"anyOf": [plain, choice, {"type": "array", "items": choice}]}


def _number() -> Schema:
    text = {"type": "string", "pattern": r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"}
    return {"anyOf": [_type("number", "boolean"), text]}


def _truth() -> Schema:
    return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "enum": [*TRUE, *FALSE]}]}


def _model() -> Schema:
    return _mapping({**_of_source(), **_misplaced()}, required=("model",))


def _slice() -> Schema:
    bounds = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}
    layers = _described(bounds, "The first layer, and the one behind the last.")
    stack = _described(_type("string", "null"), "The stack of layers that is counted, where a model has several.")
    misplaced = {name: text for name, text in _misplaced().items() if name != "layer_range"}
    source = _mapping(
        {**_of_source(), **misplaced, "layer_range": layers, "stack": stack}, required=("model", "layer_range")
    )
    keys = {"sources": _listed(source), "base_model": _nullable(_ref("reference")), "parameters": _ref("parameters")}
    return _mapping({**keys, **_misplaced()}, required=("sources",))


def _of_source() -> Schema:
    """Return the keys that every model has."""
    evidence = _described(_type("string", "null"), "Statistics of data, of `weightspace evidence`.")
    return {"model": _ref("reference"), "parameters": _ref("parameters"), "evidence": evidence}


def _reference() -> Schema:
    """Return the schema of a model: text, a mapping, or a recipe."""
    beside = {"lora": _nullable(_ref("path")), "override_architecture": _type("string", "null")}
    text = "A path, ORG/MODEL@REVISION of the Hub, MODEL+ADAPTER, another document's name, or a recipe's file."
    by_model = _mapping({"model": _ref("path"), **beside}, required=("model",))
    by_path = _mapping({"path": _type("string"), "revision": _type("string", "null"), **beside}, required=("path",))
    return {"anyOf": [_described({"type": "string"}, text), by_model, by_path, {"$ref": "#"}]}


def _path() -> Schema:
    keys = {"path": _type("string"), "revision": _type("string", "null")}
    return {"anyOf": [{"type": "string"}, _mapping(keys, required=("path",))]}


def _tokenizer() -> Schema:
    """Return the schema of the tokenizer's section."""
    tokens = _nullable({"type": "object", "additionalProperties": _ref("token")})
    multiple = {"type": ["integer", "null"], "minimum": 0}
    source = _described(_nullable(_ref("reference")), "union, base, or a model.")
    return _mapping({"source": source, "tokens": tokens, "pad_to_multiple_of": multiple})


def _token() -> Schema:
    """Return the schema of one token."""
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
