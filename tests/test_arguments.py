"""Misuse from Python is a line in the style of the command line: paths for weights, swapped arguments, odd tasks."""

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.plots import draw_curves
from weightspace.runs import average_run, score_windows
from weightspace.tasks import ClassificationTask, Examples, scores_of


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def load() -> dict[str, Examples]:
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), Examples(inputs, inputs[:, :3].argmax(1)))


TASK = ClassificationTask("signs", build, load)  # type: ignore[arg-type]
STATE = build().state_dict()
TRAINING = {"model": STATE, "optimizer": {"state": {0: {"step": torch.ones(())}}}, "epoch": 3}
CURVE = ws.Curve((0.0, 0.5, 1.0), (0.1, 1.2, 0.1), (0.98, 0.60, 0.97))
SPEC = ws.derive_spec(build(), (torch.ones(2, 6),))
IDENTITY = ws.Permutation.identity(SPEC)

SEARCHED = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": {"search": [0, 1]}}}]}
MATCHING = ws.match(SPEC, STATE, STATE)
MISUSES: dict[str, tuple[Callable[[], Any], str]] = {
    "two states": (lambda: ws.merge(STATE, STATE), r"merge: states is a state dict; .* as a list, \[a, b\]"),
    "a dict of options": (
        lambda: ws.search({}, lambda _: 0.0, options={"trials": 3}),  # type: ignore[arg-type]
        r"search: options is a dict; expected SearchOptions\(trials=3\)",
    ),
    "a network as score": (
        lambda: ws.search(SEARCHED, build()),  # type: ignore[arg-type]
        r"score is the network Sequential; expected a task",
    ),
    "a class as score": (lambda: ws.search(SEARCHED, nn.Linear), r"score is the class Linear; expected a task"),
    "weights by name": (
        lambda: ws.merge_files(["a", "b"], "out", weights={"a": 1.0}),  # type: ignore[arg-type]
        r"The weights are \{'a': 1.0\}; expected a list of numbers, one per model",
    ),
    "a list of parameters": (
        lambda: ws.merge_files(["a", "b"], "out", parameters=[1]),  # type: ignore[arg-type]
        r"The parameters are \[1\]; expected a mapping",
    ),
    "a tree's edges as parents": (lambda: ws.LabelMetric.from_tree([("cat", "pet"), ("dog", "pet")]), r"edges=\[\(u"),
    "parents without labels": (lambda: ws.LabelMetric.from_tree(["pet", "pet"]), r"Give labels=\[…\], or a mapping"),
    "a matching": (
        lambda: ws.permute(SPEC, MATCHING, STATE),
        r"is a Matching; .* Give its permutation: matching\.perm",
    ),
    "two paths": (lambda: ws.merge("a", "b"), r"merge: states is a path; .*ws.load_checkpoint\(path\).*merge_files"),
    "paths in a list": (lambda: ws.merge(["a", "b"]), r"merge: states\[0\] is a path"),
    "a state for a method": (lambda: ws.merge([STATE], STATE), r"merge: method is a state dict; .*base="),
    "modules": (lambda: ws.merge([build(), build()]), r"states\[0\] is a module; .*a.state_dict\(\)"),
    "a path for a base": (lambda: ws.merge([STATE], base="a"), r"base is a path; .* ws.load_checkpoint\('a'\)"),
    "one state": (lambda: ws.barrier_matrix(TASK, STATE), r"barrier_matrix: states is a state dict"),
    "swapped task": (lambda: ws.loss_curve(STATE, STATE, TASK), r"is loss_curve\(task, a, b\)"),
    "swapped position": (lambda: ws.interpolate(0.5, STATE, STATE), r"is interpolate\(a, b, position\)"),
    "swapped permutation": (lambda: ws.permute(SPEC, STATE, IDENTITY), r"permute\(spec, permutation, state\)"),
    "swapped spec": (lambda: ws.weight_matching(STATE, STATE, SPEC), r"weight_matching\(spec, target, source\)"),
    "swapped path": (lambda: ws.save_checkpoint("a.pt", STATE), r"save_checkpoint\(state, path\)"),
    "a state to load": (lambda: ws.load_checkpoint(STATE), r"path is a state dict; expected a path"),
    "a name for a task": (lambda: ws.train("digits-mlp", 0), r"ws.load_task\('digits-mlp'\)"),
    "a path for a state": (lambda: ws.loss_curve(TASK, "a.pt", STATE), r"a is a path; .*load_checkpoint\('a.pt'\)"),
    "a Path for a state": (lambda: ws.spectrum(Path("a.pt")), r"state is a path"),
    "a path for a spec": (lambda: ws.permute("s.yaml", IDENTITY, STATE), r"PermutationSpec.load\('s.yaml'\)"),
    "a path for a permutation": (lambda: ws.permute(SPEC, "p", STATE), r"Permutation.load\('p', spec\)"),
    "a path for a curve": (lambda: ws.barrier("way.json"), r"Curve.load\('way.json'\)"),
    "a tuple for a curve": (lambda: ws.barrier((0.1, 0.2)), r"curve is a tuple; expected a curve"),
    "a state for a module": (lambda: ws.derive_spec(STATE, (torch.ones(2, 6),)), r"module.load_state_dict"),
    "no list for a soup": (lambda: ws.uniform_soup("a.pt"), r"Give a list, \['a.pt', …\]"),
    "a name for a score": (lambda: ws.greedy_soup([STATE], "digits-mlp"), r"ws.load_task\('digits-mlp'\)"),
    "no task for a line": (lambda: ws.wise_ft(TASK, STATE, STATE), r"wise_ft\(pretrained, finetuned, task\)"),
    "states for files": (lambda: ws.merge_files([STATE, STATE], "out"), r"checkpoint paths.* in memory: ws.merge"),
    "training checkpoints": (
        lambda: ws.merge([TRAINING, TRAINING]),
        r"states\[0\] is a training checkpoint; .* Tensors are in its entries 'model', 'optimizer'",
    ),
    "a training checkpoint on a line": (lambda: ws.interpolate(STATE, TRAINING, 0.5), r"b is a .* entries 'model'"),
    "a permuted training checkpoint": (lambda: ws.permute(SPEC, IDENTITY, TRAINING), r"state is a .* entries 'model'"),
    "a matched one": (lambda: ws.weight_matching(SPEC, STATE, TRAINING), r"source is a .* entries 'model'"),
    "one in a mean": (lambda: ws.uniform_soup([STATE, TRAINING]), r"\[1\] is a .* entries 'model'"),
    "one in a greedy soup": (lambda: ws.greedy_soup([TRAINING], TASK), r"\[0\] is a .* entries 'model'"),
    "one in a learned soup": (lambda: ws.learned_soup([TRAINING], TASK), r"\[0\] is a .* entries 'model'"),
    "one in WiSE-FT": (lambda: ws.wise_ft(STATE, TRAINING, TASK), r"finetuned is a .* entries 'model'"),
    "one on a curve": (lambda: ws.loss_curve(TASK, STATE, TRAINING), r"b is a .* entries 'model'"),
    "a number among tensors": (
        lambda: ws.merge([{**STATE, "epoch": 3}]),
        r"states\[0\] is .* Its entry 'epoch' is an int",
    ),
    "a curve to draw": (lambda: draw_curves(CURVE, "curve.png"), r"curves is a curve; .* label: {\"linear\": curve}"),
    "a state for a path": (lambda: ws.merge_files(["a", "b"], STATE), r"merge_files: out is a state dict"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_arguments_of_another_kind_are_a_line(misuse: str) -> None:
    call, message = MISUSES[misuse]
    with pytest.raises(WeightspaceError, match=message):
        call()


def test_checked_functions_keep_names_and_signatures_and_can_be_pickled() -> None:
    assert list(inspect.signature(ws.merge).parameters)[:3] == ["states", "method", "base"]
    assert ws.merge.__name__ == "merge"
    assert pickle.loads(pickle.dumps(ws.merge)) is ws.merge
    with pytest.raises(TypeError, match="states"):
        ws.merge()  # type: ignore[call-arg]


def task(**pieces: Any) -> ClassificationTask:
    return ClassificationTask(**{"name": "odd", "build": build, "load": load, **pieces})


def pairs(**changed: Any) -> Callable[[], Any]:
    return lambda: {**load(), **changed}


PIECES: dict[str, tuple[Callable[[], Any], str]] = {
    "a network for build": (lambda: task(build=build()), "piece 'build' .* is a Sequential; expected a function"),
    "examples for load": (lambda: task(load=load()), "piece 'load' .* is a dict; expected a function"),
    "build returns none": (lambda: task(build=lambda: None).network(), "'build' .* returned a NoneType"),
    "load returns a pair": (lambda: task(load=lambda: load()["test"]).example_args, "loads a Examples?; expected"),
    "no test split": (lambda: task(load=lambda: {"train": load()["train"]}).example_args, "no split 'validation'"),
    "a split of one": (lambda: task(load=pairs(test=torch.ones(3, 6))).example_args, "Split 'test' .* is a Tensor"),
    "labels in a list": (lambda: task(load=pairs(test=(torch.ones(1, 6), [0]))).example_args, "Tensor and list"),
    "load with a mistake": (lambda: task(load=lambda: None.x).example_args, "raised AttributeError"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("piece", PIECES)
def test_a_task_without_a_required_member_is_one_line_that_names_the_member(piece: str) -> None:
    call, message = PIECES[piece]
    with pytest.raises(WeightspaceError, match=message):
        call()


def test_the_cause_is_named_when_a_task_is_loaded_and_used(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from weightspace.tasks import ClassificationTask\n"
        "from torch import nn\n"
        "task = ClassificationTask('odd', lambda: nn.Linear(2, 2), lambda: {'train': 1, 'validation': 1, 'test': 1})\n"
    )
    loaded = ws.load_task(f"{tmp_path}/own.py:task")  # nothing is loaded yet
    with pytest.raises(WeightspaceError, match=r"Split 'train' of task 'odd' is a int; expected Examples"):
        ws.train(loaded, 0, epochs=1)


def test_arrays_and_plain_pairs_are_examples() -> None:
    plain = {split: (one.inputs.numpy(), one.labels.numpy()) for split, one in load().items()}
    own = task(load=lambda: plain)
    network = own.network()
    assert own.score(network) == TASK.score(network)


class Scored(ClassificationTask):
    """A task whose score returns what it is told to."""

    returned: Any = None

    def score(self, module: nn.Module, split: str = "test") -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (0.31, r"returned a float; expected numbers by name"),
        (None, r"returned a NoneType"),
        ({"loss": "low"}, r"score 'loss' of task 'signs' is a str; expected one number"),
        ({"loss": torch.ones(2)}, r"score 'loss' .* is a Tensor"),
    ],
)
def test_scores_that_are_no_numbers_by_name_are_a_line_everywhere(returned: Any, message: str) -> None:
    odd = Scored("signs", build, load)  # type: ignore[arg-type]
    object.__setattr__(odd, "returned", returned)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: scores_of(odd, build(), "test"),
        lambda: ws.loss_curve(odd, STATE, STATE, 3),
        lambda: ws.greedy_soup([STATE, STATE], odd, cache=False),
    )
    for call in calls:
        with pytest.raises(WeightspaceError, match=message):
            call()


def test_numbers_of_any_type_are_scores() -> None:
    odd = Scored("signs", build, load)  # type: ignore[arg-type]
    object.__setattr__(odd, "returned", {"loss": torch.tensor(0.5), "accuracy": np.float32(0.25)})
    assert scores_of(odd, build(), "test") == {"loss": 0.5, "accuracy": 0.25}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_run("run", "a.pt"), r"checkpoints is a path.*find_checkpoints\('run'\)"),  # type: ignore[arg-type]
        (lambda: average_run(["s1.pt"], "a.pt"), r"checkpoints\[0\] is a path"),  # type: ignore[list-item]
        (lambda: score_windows("run", len), "checkpoints is a path"),  # type: ignore[arg-type]
        (lambda: ws.derive_spec(torch.nn.Linear, (torch.ones(1),)), "module is a class; .* Make an object"),  # type: ignore[arg-type]
    ],
)
def test_folders_of_runs_and_classes_are_no_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        call()
