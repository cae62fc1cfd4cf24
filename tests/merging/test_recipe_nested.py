"""Models that are recipes themselves: inline, or the path of a recipe's file."""

from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files, reproduce
from weightspace.merging.recipe.parse import Recipe, parse_recipe

INLINE = "{merge_method: linear, models: [{model: b.pt}, {model: c.pt}], parameters: {weight: 1}}"
OUTER = "merge_method: linear\nmodels: [{model: a.pt}, {model: %s}]\nparameters: {weight: 1}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for value, name in ((1.0, "a"), (2.0, "b"), (4.0, "c")):
        ws.save_checkpoint({"w": torch.full((3,), value)}, f"{name}.pt")
    return tmp_path


def read(text: str) -> Recipe:
    return parse_recipe(text, "r.yml", ignored=lambda line: None)


def merged(text: str) -> float:
    Path("recipe.yml").write_text(text)
    merge_files("recipe.yml", "out.safetensors", execution=ExecutionOptions(fsync=False))
    return float(ws.load_checkpoint("out.safetensors")["w"][0])


def test_a_recipe_stands_in_the_place_of_a_model(folder: Path) -> None:
    assert merged(OUTER % INLINE) == 2.0
    assert reproduce("out.safetensors").equal


def test_a_recipes_file_is_a_model(folder: Path) -> None:
    Path("inner.yml").write_text(INLINE)
    assert merged(OUTER % "inner.yml") == 2.0
    Path("inner.yml").unlink()
    assert reproduce("out.safetensors").equal


def test_a_file_of_several_documents_is_its_output(folder: Path) -> None:
    Path("inner.yml").write_text(
        "name: first\nmerge_method: passthrough\nmodels: [{model: c.pt}]\n---\n"
        "name: last\nmerge_method: linear\nmodels: [{model: b.pt}, {model: first}]\nparameters: {weight: 1}\n"
    )
    assert merged(OUTER % "inner.yml") == 2.0


def test_recipes_are_nested_and_used_twice(folder: Path) -> None:
    Path("inner.yml").write_text(INLINE)
    text = "{merge_method: linear, models: [{model: a.pt}, {model: inner.yml}], parameters: {weight: 1}}"
    assert merged((OUTER % text).replace("a.pt}, {model: {", "inner.yml}, {model: {")) == 2.5


def test_a_recipe_in_a_recipe_has_the_name_that_it_says() -> None:
    recipe = read(
        "merge_method: passthrough\nmodels: [{model: {name: mine, merge_method: passthrough, models: [{model: a}]}}]"
    )
    assert [document.name for document in recipe.documents] == ["mine"]
    assert recipe.slices[0].sources[0].model == "mine"


def test_recipes_come_back_from_their_own_text() -> None:
    recipe = read(OUTER % INLINE)
    assert parse_recipe(recipe.to_yaml(), "r.yml") == recipe


def test_a_file_that_is_made_from_itself_is_refused(folder: Path) -> None:
    Path("inner.yml").write_text("merge_method: passthrough\nmodels: [{model: other.yml}]\n")
    Path("other.yml").write_text("merge_method: passthrough\nmodels: [{model: ./inner.yml}]\n")
    with pytest.raises(WeightspaceError, match="the recipe uses itself as a model"):
        read(OUTER % "inner.yml")


def test_a_mistake_inside_names_its_place(folder: Path) -> None:
    Path("inner.yml").write_text(INLINE.replace("models", "modells"))
    with pytest.raises(WeightspaceError, match=r"inner.yml: 'modells'.*Did you mean 'models'"):
        read(OUTER % "inner.yml")
    with pytest.raises(WeightspaceError, match=r"r.yml, models\[1\].model: 'modells'"):
        read(OUTER % INLINE.replace("models", "modells"))


@pytest.mark.parametrize("text", ["", "text", "- a\n- b"])
def test_a_file_without_a_recipe_is_refused(text: str, folder: Path) -> None:
    Path("inner.yml").write_text(text)
    with pytest.raises(WeightspaceError, match=r"inner.yml is not a recipe"):
        read(OUTER % "inner.yml")


def test_a_path_of_a_recipe_that_is_not_there_is_a_model_that_is_not_there(folder: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"nowhere.yml does not exist"):
        merged(OUTER % "nowhere.yml")
