"""The published JSON Schema of recipes: current, and every listed recipe agrees with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from weightspace import cli
from weightspace.merging.recipe.json_schema import recipe_schema, schema_text

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
PUBLISHED = ROOT / "docs" / "pages" / "formats" / "recipe.schema.json"


UNKNOWN: dict[str, dict[str, str]] = yaml.safe_load((DATA / "recipes" / "unknown.yml").read_text())


def listed() -> dict[str, str]:
    """Return all recipes of the lists, without those with unknown keys, and of the conformance cases."""
    texts: dict[str, str] = {}
    for file in sorted({*(DATA / "recipes").glob("*.yml")} - {DATA / "recipes" / "unknown.yml"}):
        content: dict[str, Any] = yaml.safe_load(file.read_text())
        texts |= {n: value if isinstance(value, str) else value["recipe"] for n, value in content.items()}
    cases = yaml.safe_load((DATA / "conformance" / "recipes" / "cases.yml").read_text())
    return texts | {f"case: {name}": case["recipe"] for name, case in cases.items()}


def test_the_published_schema_is_current() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), (
        "Run: python -m weightspace.merging.recipe > docs/pages/formats/recipe.schema.json"
    )


def test_the_command_prints_the_schema() -> None:
    result = CliRunner().invoke(cli.main, ["merge", "--schema"])
    assert (result.exit_code, result.output) == (0, schema_text())


def test_every_listed_recipe_agrees_with_the_schema() -> None:
    validator = jsonschema.Draft7Validator(recipe_schema())
    validator.check_schema(recipe_schema())
    wrong = {
        name: error.message
        for name, text in listed().items()
        for document in yaml.safe_load_all(text)
        if document is not None
        for error in validator.iter_errors(json.loads(json.dumps(document)))
    }
    assert not wrong


@pytest.mark.parametrize("recipe", UNKNOWN)
def test_an_unknown_key_that_is_only_a_warning_is_seen_by_an_editor(recipe: str) -> None:
    assert not jsonschema.Draft7Validator(recipe_schema()).is_valid(yaml.safe_load(UNKNOWN[recipe]["recipe"]))


def test_parameters_of_a_users_method_are_not_known_to_the_schema() -> None:
    recipe = "merge_method: mine.py:mine\nmodels: [{model: a}]\nparameters: {share: 1}"
    assert jsonschema.Draft7Validator(recipe_schema()).is_valid(yaml.safe_load(recipe))


@pytest.mark.parametrize(
    "wrong",
    [
        "merge_method: linaer\nmodels: [{model: a}]",
        "merge_method: linear\nmodells: [{model: a}]",
        "merge_method: linear\nmodels: [{modle: a}]",
        "merge_method: linear\nslices: [{sources: [{model: a, layer_rang: [0, 1]}]}]",
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0]}]}]",
        "merge_method: linear\nmodels: [{model: {pth: a}}]",
        "merge_method: ties\nmodels: [{model: a, parameters: {density: high}}]",
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: [{filter: x, vlaue: 1}]}}]",
        "merge_method: linear\nmodels: [{model: a}]\ndtype: bfloat61",
        "models: [{model: a}]",
        "merge_method: ties\nmodels: [{model: a}]\nparameters: {densitiy: 1}",
        "merge_method: ties\nmodels: [{model: a, parameters: {densitiy: 1}}]",
        "merge_method: ties\nmodules: {default: {models: [{model: a, parameters: {wt: 1}}]}}",
        "merge_method: linear\nmodels: [{model: {merge_method: liner, models: [{model: a}]}}]",
    ],
)
def test_mistakes_are_seen_by_an_editor(wrong: str) -> None:
    assert list(jsonschema.Draft7Validator(recipe_schema()).iter_errors(yaml.safe_load(wrong)))
