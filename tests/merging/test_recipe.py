"""Recipes: what is read, what it means for a tensor, and what is refused in one line that names the key."""

from pathlib import Path

import pytest

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.parse import parse_recipe, read_recipe, recipe_of
from weightspace.merging.recipe.schedule import resolve, unmatched_filters

TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {weight: 0.6, density: [1, 0.5, 0]}
  - model: b
    parameters:
      weight:
        - {filter: self_attn, value: [0, 1]}
        - {filter: mlp, value: 0.25}
        - {value: 0.5}
      density: 0.3
parameters: {normalize: true, int8_mask: true, lambda: 1e-1}
dtype: bfloat16
tokenizer_source: base
"""

SLICES = """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
    parameters: {t: 0.9}
  - sources:
      - {model: a, layer_range: [2, 4]}
      - {model: b, layer_range: [2, 4]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: "*", value: 0.5}
"""


def read(text: str):
    return parse_recipe(text, "recipe.yml")


def test_a_recipe_of_whole_models_is_read() -> None:
    recipe = read(TIES)
    assert recipe.method == "ties"
    assert recipe.base == "base"
    assert [source.model for source in recipe.slices[0].sources] == ["base", "a", "b"]
    assert recipe.parameters == {"normalize": True, "lambda": 0.1}
    assert (recipe.dtype, recipe.out_dtype, recipe.tokenizer_source) == ("bfloat16", None, "base")


@pytest.mark.parametrize(
    ("name", "position", "weights", "densities"),
    [
        ("model.layers.0.mlp.up_proj.weight", 0.0, [1, 0.6, 0.25], [None, 1, 0.3]),
        ("model.layers.3.self_attn.q_proj.weight", 1.0, [1, 0.6, 1], [None, 0, 0.3]),
        ("model.layers.1.self_attn.q_proj.weight", 0.25, [1, 0.6, 0.25], [None, 0.75, 0.3]),
        ("model.norm.weight", 0.0, [1, 0.6, 0.5], [None, 1, 0.3]),
    ],
)
def test_gradients_and_filters_give_each_tensor_its_own_values(
    name: str, position: float, weights: list[float], densities: list[float | None]
) -> None:
    found, values = resolve(read(TIES), 0, name, position)
    assert found == pytest.approx(weights)
    assert values.pop("density") == densities
    assert values == {"normalize": True, "lambda": 0.1}


def test_the_slice_beats_the_recipe_and_the_source_beats_both() -> None:
    recipe = read(SLICES)
    assert recipe.slices[1].sources[0].layer_range == (2, 4)
    assert resolve(recipe, 0, "layers.0.self_attn", 1.0) == (None, {"t": 0.9})
    assert resolve(recipe, 1, "layers.3.self_attn", 1.0) == (None, {"t": 1})
    assert resolve(recipe, 1, "layers.2.self_attn", 0.125) == (None, {"t": 0.25})
    assert resolve(recipe, 1, "lm_head.weight", 0.0) == (None, {"t": 0.5})


def test_a_recipe_comes_back_from_its_own_text() -> None:
    for text in (TIES, SLICES):
        again = read(read(text).to_yaml())
        assert again == read(text)


def test_options_make_the_recipe_that_one_would_write() -> None:
    recipe = recipe_of(["a", "b"], "ties", base="c", weights=[1, 2], parameters={"density": [0.5, 0.6], "lambda": 2})
    assert recipe == read(
        "{merge_method: ties, models: [{model: a, parameters: {weight: 1, density: 0.5}}, "
        "{model: b, parameters: {weight: 2, density: 0.6}}], base_model: c, parameters: {lambda: 2}}"
    )


def test_filters_that_match_nothing_are_found() -> None:
    assert unmatched_filters(read(TIES), ["model.layers.0.mlp.up_proj.weight"]) == [("weight", "self_attn")]


MISTAKES = {
    "key": ("merge_methd: ties", r"Unknown key in recipe.yml: 'merge_methd'.*Did you mean 'merge_method'"),
    "parameter": (TIES.replace("density: 0.3", "densty: 0.3"), r"models\[2\].parameters.densty'.*density'\?"),
    "method": (TIES.replace("merge_method: ties", "merge_method: tie"), "Unknown merging method 'tie'"),
    "both": (
        TIES + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        "the recipe must have exactly one of models, slices, modules",
    ),
    "an empty one beside": (TIES + "slices: []", "slices has no effect: it is empty"),
    "neither": ("merge_method: linear", "the recipe must have exactly one of models, slices, modules"),
    "twice": ("merge_method: linear\nmerge_method: ties\nmodels: [{model: a}]", "'merge_method' comes twice"),
    "yaml": ("models: [", "not valid YAML"),
    "scalar": ("just text", "must be a mapping"),
    "empty": ("", "must be a mapping.*nothing"),
    "no models": ("{merge_method: linear, models: []}", "models must be a non-empty list, found an empty list"),
    "no model": ("{merge_method: linear, models: [{parameters: {weight: 1}}]}", r"models\[0\].model is missing"),
    "layer range": (SLICES.replace("[2, 4]", "[4, 2]"), r"slices\[1\].sources\[0\].layer_range must satisfy"),
    "empty range": (SLICES.replace("[2, 4]", "[2, 2]"), r"layer_range has no effect: it is empty"),
    "layer type": (SLICES.replace("[2, 4]", "4"), "layer_range must be two integers"),
    "dtype": (TIES.replace("bfloat16", "bf16"), r"'bf16'.*bfloat16"),
    "two tokenizers": (TIES + "tokenizer: {source: base}", "tokenizer and tokenizer_source both set"),
    "modules beside models": (
        TIES + "modules: {default: {models: [{model: a}]}}",
        "must have exactly one of models, slices, modules",
    ),
    "a module of nothing": (
        "{merge_method: ties, modules: {default: {}}}",
        "modules.default must have exactly one of models, slices",
    ),
    "a name of nothing": (TIES + "name: []", "name must be a non-empty string"),
    "reference": (
        TIES.replace("model: b\n", "model: {modl: b}\n"),
        r"models\[2\].model.modl'.*Did you mean .*models\[2\].model.model'",
    ),
    "reference to nothing": (TIES.replace("model: b\n", "model: {lora: b}\n"), r"models\[2\].model.model is missing"),
    "path of a reference": (TIES.replace("model: b\n", "model: {model: {path: }}\n"), r"model.path is missing"),
    "number as a path": (
        TIES.replace("model: b\n", "model: 3\n"),
        "must be a path or a mapping of path and revision, found 3",
    ),
    "model without its key": (
        "merge_method: linear\nmodels: [../m1, {model: b}]\n",
        r"models\[0\] is '../m1'; write {model: ../m1}\.",
    ),
    "tokenizer without its key": (
        TIES + "tokenizer: union\n",
        r"tokenizer is 'union'; write {source: union}\.",
    ),
    "word for a number": (
        TIES.replace("weight: 0.6", "weight: high"),
        r"models\[1\].parameters.weight must be a number",
    ),
    "word for a truth": (
        TIES.replace("normalize: true", "normalize: 2"),
        "parameters.normalize must be true or false, found 2",
    ),
    "gradient": (TIES.replace("[1, 0.5, 0]", "[1, high]"), "gradient of numbers"),
    "empty gradient": (TIES.replace("[1, 0.5, 0]", "[]"), "empty list"),
    "filter value": (TIES.replace("{value: 0.5}", "{filter: norm}"), r"weight\[2\].value is missing"),
    "a comma for a point": (
        TIES.replace("weight: 0.6", "weight: 0,6"),
        r"parameters has the key 6; expected only names as keys, with a point in decimal numbers",
    ),
    "a range as weight": (
        TIES.replace("weight: 0.6", "weight: {search: [0, 1]}"),
        r"parameters.weight must be a number, found values to search: .* `weightspace search`",
    ),
    "a choice of methods": (
        "{merge_method: {choices: [linear, slerp]}, models: [{model: a}]}",
        r"merge_method must be a non-empty string, found values to search",
    ),
    "a word as weight": (
        TIES.replace("weight: 0.6", "weight: foo"),
        r"\[1\].parameters.weight must be a number, found 'foo'",
    ),
    "a date as weight": (
        TIES.replace("weight: 0.6", "weight: 2024-01-01"),
        "weight must be a number, found '2024-01-01'",
    ),
    "no finite weight": (TIES.replace("weight: 0.6", "weight: .inf"), "weight must be a number, found inf"),
    "NaN in a gradient": (TIES.replace("[0, 1]}", "[0, .nan]}"), "must be a gradient of numbers, found nan"),
    "a word in a filter": (
        TIES.replace("value: 0.25", "value: foo"),
        r"weight\[1\].value must be a number, found 'foo'",
    ),
    "a null byte": (TIES.replace("model: a", 'model: "a\\0b"'), "a string holds a null byte"),
    "a tag": (TIES.replace("model: a", "model: !!python/name:os.system"), "could not determine a constructor"),
    "many digits": (TIES.replace("weight: 0.6", f"weight: {'9' * 400}"), "a number of 400 digits"),
    "weight of a method without": (SLICES.replace("t: 0.9", "weight: 0.9"), "parameters of method 'slerp'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(mistake: str) -> None:
    text, message = MISTAKES[mistake]
    with pytest.raises(WeightspaceError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_a_lenient_reading_warns_of_unknown_keys_and_leaves_them_out() -> None:
    warnings: list[str] = []
    text = TIES.replace("density: 0.3", "densty: 0.3") + "allow_crimes: true"
    recipe = parse_recipe(text, "recipe.yml", warn=warnings.append)
    assert len(warnings) == 2
    assert "density" not in recipe.slices[0].sources[2].parameters


def test_one_value_is_expected_of_a_parameter_that_the_method_has_once() -> None:
    models = "[{model: a, parameters: {t: 1}}, {model: b, parameters: {t: 2}}]"
    text = f"{{merge_method: nearswap, base_model: a, models: {models}}}"
    with pytest.raises(WeightspaceError, match="one 't' for all models"):
        resolve(read(text), 0, "w", 0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"nowhere\.yml cannot be read"):
        read_recipe(tmp_path / "nowhere.yml")


def test_weights_of_a_method_that_takes_none_are_refused_with_what_it_takes() -> None:
    with pytest.raises(WeightspaceError, match=r"Method 'slerp' takes no weights, found \[0.3, 0.7\]; expected t"):
        recipe_of(["a", "b"], "slerp", weights=[0.3, 0.7])
