"""Properties of every row of the table of matching methods."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import tiny_tasks
import torch
from torch import Tensor, nn

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.matching import (
    MANY_MATCHINGS,
    MATCHINGS,
    Matching,
    MatchingMethod,
    SymmetryMatching,
    l2_reduction,
    match,
    match_many,
)
from weightspace.symmetry import Permutation, PermutationSpec, SymmetrySpec, derive_spec, permute
from weightspace.tasks import ClassificationTask, train

KINDS = tuple(tiny_tasks.BUILDERS)


def run(method: str, kind: str, *, seed: int = 0, **options: Any) -> Matching | SymmetryMatching:
    """Match two trained networks, in few steps where the method takes steps."""
    if "steps" in MATCHINGS[method].options:
        options = {"steps": 12, **options}
    a, b = tiny_tasks.trained(kind, 0), tiny_tasks.trained(kind, 1)
    return match(spec_for(method, kind), a, b, method, task=tiny_tasks.task(kind), seed=seed, **options)


def spec_for(method: str, kind: str) -> PermutationSpec | SymmetrySpec:
    return tiny_tasks.spec(kind, symmetry={**MATCHINGS, **MANY_MATCHINGS}[method].symmetry)


def moves(matching: Matching | SymmetryMatching) -> dict[str, Tensor]:
    """Return the maps of a matching of either kind."""
    return dict(matching.permutation.indices if isinstance(matching, Matching) else matching.element.moves)


def are_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def function_of(row: MatchingMethod) -> Callable[..., Any]:
    file, _, function = row.function.partition(":")
    return getattr(importlib.import_module(f"weightspace.matching.{file}"), function)


@pytest.mark.parametrize("row", [*MATCHINGS.values(), *MANY_MATCHINGS.values()], ids=lambda row: row.name)
def test_all_methods_have_one_signature(row: MatchingMethod) -> None:
    parameters = inspect.signature(function_of(row)).parameters
    networks = ["states"] if row.name in MANY_MATCHINGS else ["target", "source"]
    start = ["spec", *networks, "task", "seed"]
    assert list(parameters)[: len(start)] == start
    assert all(one.kind is one.KEYWORD_ONLY for name, one in parameters.items() if name not in start[:-2])
    assert (parameters["task"].default, parameters["seed"].default) == (None, 0)
    assert list(parameters)[-1] == "on_progress"
    assert {*row.options, *row.preset} <= parameters.keys()


@pytest.mark.parametrize("row", [*MATCHINGS.values(), *MANY_MATCHINGS.values()], ids=lambda row: row.name)
def test_a_method_that_learns_says_that_it_needs_a_task(row: MatchingMethod) -> None:
    if not row.needs_task:
        return
    state = tiny_tasks.trained("mlp", 0)
    networks = [[state, state]] if row.name in MANY_MATCHINGS else [state, state]
    with pytest.raises(WeightspaceError, match=r"pass the task of the networks|needs a task|give it the task"):
        function_of(row)(spec_for(row.name, "mlp"), *networks, **row.preset)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", MATCHINGS)
def test_the_source_keeps_its_function_and_the_numbers_are_those_of_the_permutation(method: str, kind: str) -> None:
    target, source = tiny_tasks.trained(kind, 0), tiny_tasks.trained(kind, 1)
    matching = run(method, kind)
    ends = matching.apply(target, source)
    inputs = tiny_tasks.clouds()["test"].inputs
    for state, moved in zip((target, source), ends, strict=True):
        with torch.no_grad():
            before, after = (tiny_tasks.network(kind, one)(inputs) for one in (state, moved))
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    if isinstance(matching, Matching):
        assert matching.l2_reduction == l2_reduction(tiny_tasks.spec(kind), target, source, ends[1])
    assert len(matching.objective) >= 2


@pytest.mark.parametrize("method", MATCHINGS)
def test_the_objective_only_gets_better(method: str) -> None:
    history = run(method, "mlp").objective
    falls = MATCHINGS[method].objective.split()[0] in ("validation", "squared", "divergence")
    assert list(history) == sorted(history, reverse=falls)
    assert history[0] != history[-1]


@pytest.mark.parametrize("method", MATCHINGS)
def test_the_same_seed_gives_the_same_matching_and_nothing_is_drawn_from_global_state(method: str) -> None:
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    one = run(method, "cnn", seed=5)
    torch.manual_seed(99)
    two = run(method, "cnn", seed=5)
    assert are_close(moves(one), moves(two))
    assert one.objective == two.objective
    torch.manual_seed(99)
    assert torch.get_num_threads() == threads
    torch.set_rng_state(drawn)
    run(method, "cnn", seed=5)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("method", MATCHINGS)
def test_inputs_are_not_changed(method: str) -> None:
    states = [tiny_tasks.trained("resnet", seed) for seed in (0, 1)]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    run(method, "resnet")
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in state.items())


@pytest.mark.parametrize("method", MATCHINGS)
def test_a_planted_permutation_is_recovered_or_as_good(method: str) -> None:
    spec, target = tiny_tasks.spec("mlp"), tiny_tasks.trained("mlp", 0)
    planted = Permutation.random(spec, seed=3)
    options: dict[str, Any] = {"steps": 300} if "steps" in MATCHINGS[method].options else {}
    task = tiny_tasks.task("mlp")
    source = permute(spec, planted, target)
    matching = match(spec_for(method, "mlp"), target, source, method, task=task, **options)
    if MATCHINGS[method].objective.startswith("validation"):  # the loss at the midpoint does not ask for more
        assert matching.objective[-1] < 0.25 * matching.objective[0]
    else:
        assert are_close(moves(matching), dict(planted.inverse().indices))
        assert matching.l2_reduction == 1.0


@pytest.mark.parametrize("method", MATCHINGS)
def test_checkpoints_of_another_network_are_an_error(method: str) -> None:
    other = tiny_tasks.trained("cnn", 0)
    with pytest.raises(CheckpointError):
        match(spec_for(method, "mlp"), other, other, method, task=tiny_tasks.task("mlp"))


def test_a_module_or_a_task_in_the_place_of_weights_is_an_error_that_says_so() -> None:
    task, state = tiny_tasks.task("mlp"), tiny_tasks.trained("mlp", 0)
    network = tiny_tasks.network("mlp", state)
    for ends, message in (((network, state), "target is a module"), ((state, task), "source is a task")):
        with pytest.raises(CheckpointError, match=message):
            match(tiny_tasks.spec("mlp"), *ends, "weight-matching")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"states\[1\] is a module"):
        match_many(tiny_tasks.spec("mlp"), [state, network], "merge-many")  # type: ignore[list-item]


def without_hidden_units() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


@pytest.mark.parametrize("method", MATCHINGS)
def test_a_network_without_hidden_units_stays_as_it_is(method: str) -> None:
    task = ClassificationTask("flat", without_hidden_units, tiny_tasks.clouds)
    a, b = (train(task, seed, epochs=0) for seed in (0, 1))
    spec = derive_spec(task.network(), task.example_args, symmetry=MATCHINGS[method].symmetry)
    found = match(spec, a, b, method, task=task)
    assert not moves(found)
    assert found.l2_reduction == 0


@pytest.mark.parametrize("method", [*MATCHINGS.values(), *MANY_MATCHINGS.values()], ids=lambda row: row.name)
def test_a_method_says_where_it_is_from_and_what_it_needs(method: MatchingMethod) -> None:
    assert "https://" in method.source
    assert {**MATCHINGS, **MANY_MATCHINGS}[method.name] is method
    if method.needs_task:
        spec, state = spec_for(method.name, "mlp"), tiny_tasks.trained("mlp", 0)
        run_any: Any = match if method.name in MATCHINGS else match_many
        networks = (state, state) if method.name in MATCHINGS else ([state, state],)
        with pytest.raises(WeightspaceError, match=f"'{method.name}' uses data: give it the task"):
            run_any(spec, *networks, method.name)


@pytest.mark.parametrize("method", [row for row in MATCHINGS.values() if not row.needs_task], ids=lambda row: row.name)
def test_equal_networks_are_left_as_they_are(method: MatchingMethod) -> None:
    spec, state = tiny_tasks.spec("mlp"), tiny_tasks.trained("mlp", 0)
    options: dict[str, Any] = {"steps": 1} if "steps" in method.options else {}
    matching = match(spec_for(method.name, "mlp"), state, state, method.name, **options)
    assert are_close(moves(matching), dict(Permutation.identity(spec).indices))


def test_unknown_methods_and_options_are_errors_that_list_those_there_are() -> None:
    spec, state = tiny_tasks.spec("mlp"), tiny_tasks.trained("mlp", 0)
    with pytest.raises(WeightspaceError, match="Did you mean 'weight-matching'"):
        match(spec, state, state, "weigth-matching")
    with pytest.raises(WeightspaceError, match="has no option 'steps'; its options are restarts, max_sweeps"):
        match(spec, state, state, "weight-matching", steps=3)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, weightspace.matching.registry as m; assert m.MATCHINGS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
