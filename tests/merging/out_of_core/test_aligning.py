"""Networks that were trained apart, merged from files in one call: aligned first, statistics measured after."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import weightspace as ws
from weightspace.checkpoints import StateDict, load_metadata
from weightspace.connectivity import reset_statistics
from weightspace.errors import WeightspaceError
from weightspace.matching import match
from weightspace.merging import Alignment, OutputOptions, merge_files, reproduce
from weightspace.progress import Progress
from weightspace.tasks import ClassificationTask, Task
from weightspace.zoo.architectures import mlp


def saved(states: tuple[StateDict, StateDict], folder: Path) -> list[Path]:
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    for state, path in zip(states, paths, strict=True):
        ws.save_checkpoint(state, path)
    return paths


def accuracy(task: Task, path: Path) -> float:
    module = task.network()
    module.load_state_dict(ws.load_checkpoint(path))
    return task.score(module)["accuracy"]


def alignment(task: Task) -> Alignment:
    return Alignment(ws.derive_spec(task.network(), task.example_args))


def test_aligned_sources_merge_to_what_the_steps_one_by_one_give(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    a, b = mlp_states
    spec = ws.derive_spec(digits_mlp.network(), digits_mlp.example_args)
    merge_files(saved(mlp_states, tmp_path), tmp_path / "out.safetensors", align=Alignment(spec), weights=[0.6, 0.4])
    moved = ws.permute(spec, ws.weight_matching(spec, a, b, seed=0).permutation, b)
    expected, found = ws.merge([a, moved], weights=[0.6, 0.4]), ws.load_checkpoint(tmp_path / "out.safetensors")
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "out.safetensors"]


def test_an_alignment_tells_its_progress(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    events: list[Progress] = []
    align = replace(alignment(digits_mlp), on_progress=events.append)
    paths = saved(mlp_states, tmp_path)
    merge_files(paths, tmp_path / "out.safetensors", align=align)
    assert {(event.stage, event.name) for event in events} == {("sweep", str(paths[1]))}


@pytest.mark.parametrize("method", ["activation-matching", "activation-then-weights", "sinkhorn-l2"])
def test_sources_are_aligned_by_every_method_for_two_networks(digits_mlp: Task, tmp_path: Path, method: str) -> None:
    assert isinstance(digits_mlp, ClassificationTask)
    task = replace(digits_mlp, build=partial(mlp, 64, (16, 12), 10))
    a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
    spec = alignment(task).spec
    align = Alignment(spec, method, seed=2, task=task)
    merge_files(saved((a, b), tmp_path), tmp_path / "out.safetensors", align=align)
    found = match(spec, a, b, method, task=task, seed=2)
    expected = ws.merge([a, ws.permute(spec, found.permutation, b)])
    merged = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert all(merged[name].equal(tensor) for name, tensor in expected.items())


def test_the_task_of_an_alignment_is_kept_where_the_method_looks_at_it(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    spec = alignment(digits_mlp).spec
    assert "align_task" not in Alignment(spec, task=digits_mlp).described()
    by_data = Alignment(spec, "activation-matching", task=digits_mlp)
    out = tmp_path / "out.safetensors"
    merge_files(saved(mlp_states, tmp_path), out, align=by_data)
    assert json.loads(load_metadata(out)["parameters"])["align_task"] == "digits-mlp"
    assert reproduce(out, align=by_data).equal
    with pytest.raises(WeightspaceError, match="was made with align activation-matching, found weight-matching"):
        reproduce(out, align=alignment(digits_mlp))


def test_an_alignment_by_data_needs_a_task(digits_mlp: Task) -> None:
    with pytest.raises(WeightspaceError, match=r"'straight-through' uses data: give it the task"):
        Alignment(alignment(digits_mlp).spec, "straight-through")


def test_a_network_with_batchnorm_works_once_aligned_and_its_statistics_are_reset(
    digits_cnn: Task, cnn_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    paths = saved(cnn_states, tmp_path)
    merge_files(paths, tmp_path / "plain.safetensors")
    merge_files(
        paths,
        tmp_path / "out.safetensors",
        align=alignment(digits_cnn),
        finish=lambda state: reset_statistics(digits_cnn, state),
        output=OutputOptions(recorded={"statistics": "reset"}),
    )
    parents = min(accuracy(digits_cnn, path) for path in paths)
    assert accuracy(digits_cnn, tmp_path / "out.safetensors") > parents - 0.1
    assert accuracy(digits_cnn, tmp_path / "out.safetensors") > accuracy(digits_cnn, tmp_path / "plain.safetensors")


def test_methods_with_a_base_align_everything_to_it(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    base, b = saved(mlp_states, tmp_path)
    for method in ("ties", "slerp"):
        parameters = {"t": 0.5} if method == "slerp" else {}
        out = tmp_path / f"{method}.safetensors"
        merge_files([b], out, method=method, base=base, align=alignment(digits_mlp), parameters=parameters)
        assert accuracy(digits_mlp, out) > 0.9, method


def test_an_aligned_merge_is_reproduced_with_the_same_alignment_only(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    merge_files(saved(mlp_states, tmp_path), out, align=alignment(digits_mlp))
    assert reproduce(out, align=alignment(digits_mlp)).equal
    with pytest.raises(WeightspaceError, match="was made with the alignment"):
        reproduce(out)
    with pytest.raises(WeightspaceError, match="was made with seed 0, found 1"):
        reproduce(out, align=Alignment(alignment(digits_mlp).spec, seed=1))


def test_an_unknown_alignment_is_refused(digits_mlp: Task) -> None:
    with pytest.raises(WeightspaceError, match=r"Unknown alignment 'weights'.*weight-matching"):
        Alignment(alignment(digits_mlp).spec, "weights")


def test_evidence_of_networks_that_would_be_permuted_is_refused(
    digits_mlp: Task, mlp_states: tuple[StateDict, StateDict], tmp_path: Path
) -> None:
    paths = saved(mlp_states, tmp_path)
    with pytest.raises(WeightspaceError, match="evidence"):
        merge_files(paths, tmp_path / "out", method="fisher", evidence=paths, align=alignment(digits_mlp))
