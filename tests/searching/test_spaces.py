"""Searched values in recipes: ranges, lists, shared names, places in a file of their own, and mistakes."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml

from weightspace.errors import WeightspaceError
from weightspace.searching.candidates import Candidate
from weightspace.searching.engines import make_engine
from weightspace.searching.search import space_of as space_of_recipe
from weightspace.searching.space import Dimension, read_space

RECIPE: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a", "parameters": {"weight": 1.0}}, {"model": "b", "parameters": {"weight": 0.5}}],
}


def space_of(value: Any) -> tuple[Dimension, ...]:
    return read_space([{**RECIPE, "parameters": {"lambda": value}}], "r.yml").dimensions


def test_ranges_and_lists_are_found_at_any_depth_and_replaced() -> None:
    content = {
        **RECIPE,
        "merge_method": {"choices": ["ties", "della"]},
        "parameters": {
            "density": [{"filter": "mlp", "value": {"search": [0.1, 0.5]}}, {"value": [{"search": [0, 1]}, 0.5]}],
            "k": {"search": [1, 64], "log": True, "integer": True},
        },
    }
    space = read_space([content], "r.yml")
    names = ["merge_method", "parameters.density[0].value", "parameters.density[1].value[0]", "parameters.k"]
    assert [dimension.name for dimension in space.dimensions] == names
    chosen = space.chosen(dict(zip(names, ["della", 0.2, 0.9, 8], strict=True)))[0]
    assert chosen["merge_method"] == "della"
    assert chosen["parameters"] == {"density": [{"filter": "mlp", "value": 0.2}, {"value": [0.9, 0.5]}], "k": 8}
    assert content["merge_method"] == {"choices": ["ties", "della"]}


def test_places_of_one_name_share_a_value() -> None:
    node = {"search": [0, 1], "name": "share"}
    models = [{"model": model, "parameters": {"weight": node}} for model in "ab"]
    space = read_space([{"merge_method": "linear", "models": models}], "r.yml")
    assert [dimension.name for dimension in space.dimensions] == ["share"]
    assert [model["parameters"]["weight"] for model in space.chosen({"share": 0.3})[0]["models"]] == [0.3, 0.3]
    models[0] = {"model": "a", "parameters": {"weight": {"search": [0, 2], "name": "share"}}}
    with pytest.raises(WeightspaceError, match="share the name 'share', but not the range"):
        read_space([{"merge_method": "linear", "models": models}], "r.yml")


def test_a_file_of_places_adds_to_the_recipe() -> None:
    further = {"models[1].parameters.weight": {"search": [0, 2]}, "parameters.lambda": {"choices": [0.5, 1]}}
    space = read_space([RECIPE], "r.yml", further, "space.yml")
    chosen = space.chosen({"models[1].parameters.weight": 1.5, "parameters.lambda": 0.5})[0]
    assert chosen["models"][1]["parameters"]["weight"] == 1.5
    assert chosen["parameters"] == {"lambda": 0.5}


def test_values_along_a_dimension() -> None:
    assert space_of({"search": [0, 1]})[0].grid(3) == [0, 0.5, 1]
    assert space_of({"search": [0.01, 1], "log": True})[0].grid(3) == pytest.approx([0.01, 0.1, 1])
    assert space_of({"search": [1, 3], "integer": True})[0].grid(9) == [1, 2, 3]
    integers = space_of({"search": [1, 3], "integer": True})[0]
    assert [integers.at(share) for share in (0, 0.34, 0.5, 0.99, 1)] == [1, 2, 2, 3, 3]
    listed = space_of({"choices": ["x", "y", "x"]})[0]
    assert [listed.at(share) for share in (0, 0.49, 0.5, 1)] == ["x", "x", "y", "y"]


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    dimension = space_of(yaml.safe_load("{search: [1e-3, 2E1], log: true}"))[0]
    assert (dimension.low, dimension.high) == (0.001, 20)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"search": [1, 0]}, "expected two finite numbers"),
        ({"search": [0, 0.5, 1]}, "A list of values is written {choices"),
        ({"search": ["1", 2]}, "expected two finite numbers"),
        ({"search": ["1e999", "2e999"]}, "expected two finite numbers"),
        ({"search": 3}, "found|range 3"),
        ({"search": [0, float("inf")]}, "expected two finite numbers"),
        ({"search": [0, 10**400]}, "expected two finite numbers"),
        ({"search": [False, True]}, "expected two finite numbers"),
        ({"search": [0, 1], "log": True}, "expected low > 0, found 0"),
        ({"search": [0.5, 3], "integer": True}, "expected integer bounds"),
        ({"search": [0, 1], "log": "yes"}, "log of parameters.lambda is 'yes'"),
        ({"search": [0, 1], "step": 0.1}, "unknown key 'step'"),
        ({"search": [0, 1], "choices": [1]}, "both search and choices"),
        ({"search": [0, 1], "name": 3}, "the name of parameters.lambda is 3"),
        ({"choices": []}, "expected a list of values"),
        ({"choices": "ties"}, "expected a list of values"),
        ({"choices": [{"search": [0, 1]}, 2]}, "a choice of parameters.lambda is itself a range"),
        ({"choices": [[{"filter": "w", "value": {"choices": [1]}}], 2]}, "is itself a range or a list of choices"),
        ({"choices": [1, 2], "log": True}, "log and integer are for ranges"),
        (0.5, "has nothing to search"),
        ({"serach": [0, 1]}, "has nothing to search.*Did you mean 'search' by 'serach'"),
        ([{"filter": "mlp", "value": {"choice": [0, 1]}}], "Did you mean 'choices' by 'choice'"),
    ],
)
def test_mistakes_are_one_line(value: Any, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message) as caught:
        space_of(value)
    assert "r.yml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"models[2].parameters.weight": {"search": [0, 1]}}, r"has no models\[2\]; found 2 entries of models"),
        ({"models.a": {"search": [0, 1]}}, "models has no keys"),
        ({"base_model.x": {"search": [0, 1]}}, "base_model has no keys"),
        ({"models[x]": {"search": [0, 1]}}, "is no place in a recipe"),
        ({"parameters.t": 0.5}, "parameters.t is 0.5; expected a range"),
        ([1], "must map places"),
        ({}, "must map places"),
    ],
)
def test_mistakes_of_places_are_one_line(further: Any, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message) as caught:
        read_space([RECIPE], "r.yml", further, "space.yml")
    assert "space.yml" in str(caught.value)


def test_aliases_are_places_of_their_own() -> None:
    parameters = {"weight": {"search": [0, 1]}}
    models = [{"model": model, "parameters": parameters} for model in "ab"]
    space = read_space([{"merge_method": "linear", "models": models}], "r.yml")
    values = {"models[0].parameters.weight": 0.1, "models[1].parameters.weight": 0.9}
    assert [model["parameters"]["weight"] for model in space.chosen(values)[0]["models"]] == [0.1, 0.9]


def test_parameters_of_other_choices_are_left_out() -> None:
    step = {"merge_method": "ties", "parameters": {"density": 0.3}}
    content = {
        **RECIPE,
        "merge_method": {"choices": ["ties", "wudi"]},
        "models": [{"model": "a", "parameters": {"weight": 1.0, "density": 0.5}}],
        "parameters": {"density": {"search": [0.1, 1]}, "lambda": 0.7},
        "then": [step],
    }
    space = read_space([content], "r.yml")
    chosen = space.chosen({"merge_method": "wudi", "parameters.density": 0.2})[0]
    assert chosen["models"] == [{"model": "a", "parameters": {}}]
    assert (chosen["parameters"], chosen["then"]) == ({"lambda": 0.7}, [step])
    assert space.chosen({"merge_method": "ties", "parameters.density": 0.2})[0]["parameters"]["density"] == 0.2


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_the_logs_of_other_studies_are_left_alone(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.INFO)
    dimensions = [Dimension("a"), Dimension("b", choices=("x",)), Dimension("c", 1, 8, log=True, integer=True)]
    engine = make_engine(name, dimensions, trials=30, objectives=1, seed=0)
    for number in range(30):
        proposals = engine.ask(1)
        engine.tell(proposals, [[float(number)] if number % 3 else None])
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr().err == ""


def test_a_method_that_is_no_name_is_told_when_the_candidate_is_made() -> None:
    for node in ({"search": [0, 1]}, {"choices": [["ties"], "della"]}):
        space = read_space([{**RECIPE, "merge_method": node}], "r.yml")
        values = {one.name: one.at(0.2) for one in space.dimensions}
        with pytest.raises(WeightspaceError, match="merge_method must be a non-empty string"):
            _ = Candidate(space.written(values), "r.yml").recipe


def test_a_grid_of_many_trials_is_made_at_once() -> None:
    dimensions = [Dimension("a", 0, 3, integer=True), Dimension("b", choices=("x", "y"))]
    engine = make_engine("grid", dimensions, trials=100_000, objectives=1, seed=0)
    assert len(engine.ask(100_000)) == 8


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("ties", {"density": {"search": [0.1, 2]}}, "parameters.density is searched outside .* from 0 to 1; found 2"),
        ("ties", {"density": {"choices": [0.5, 1.5]}}, "must be a finite number from 0 to 1; found 1.5"),
        ("ties", {"density": [{"filter": "mlp", "value": {"search": [-1, 1]}}]}, "found -1"),
        ("ties", {"density": {"choices": [[0, 0.5], [0.5, 3]]}}, "found 3"),
        ("dare_linear", {"rescale": {"choices": ["true", "tru"]}}, "Did you mean 'true'"),
        ("fisher", {"weight": {"search": [-1, 1]}}, "takes non-negative weights; found -1"),
        ("karcher", {"max_iter": {"search": [0.5, 3]}}, "must be an integer from 1 to 10000; found 0.5"),
        ({"choices": ["ties", "dare_ties"]}, {"density": {"search": [0, 2]}}, "from 0 to 1; found 2"),
    ],
)
def test_values_outside_the_bounds_of_a_parameter_are_refused_before_the_first_trial(
    method: Any, parameters: Any, message: str
) -> None:
    with pytest.raises(WeightspaceError, match=rf"r\.yml: .*{message}"):
        read_space([{**RECIPE, "merge_method": method, "parameters": parameters}], "r.yml")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": {"search": [0, 1]}, "lambda": {"search": [-2, 2]}}),
        ("ties", {"density": {"choices": ["1e-1", 0.5]}, "normalize": {"choices": [True, "no"]}}),
        ("ties", {"density": [{"filter": {"choices": ["a", "b"]}, "value": 0.5}]}),
        ("linear", {"weight": {"search": [-1, 1]}}),
        ({"choices": ["ties", "linear"]}, {"weight": {"search": [-1, 1]}}),
        ({"choices": ["unknown"]}, {"density": {"search": [0, 2]}}),
    ],
)
def test_values_that_a_method_permits_are_searched(method: Any, parameters: Any) -> None:
    assert read_space([{**RECIPE, "merge_method": method, "parameters": parameters}], "r.yml").dimensions


def test_contents_in_python_are_read_as_files_are() -> None:
    searched = {"search": (0, numpy.float64(1))}
    space = space_of_recipe({**RECIPE, "base_model": Path("base")}, {"parameters.density": searched})
    assert "base_model: base" in space.written({"parameters.density": 0.5})
    with pytest.raises(WeightspaceError, match=r"the recipe holds .*; expected numbers, text"):
        space_of_recipe({**RECIPE, "parameters": {"density": object()}}, None)
