"""Weight norm, spectral norm, counters and variances in merges from files: the bytes of memory, by any executor."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parametrized_networks import (
    BOTH,
    SPECTRAL_NORMS,
    WEIGHT_NORMS,
    bits,
    equal,
    fine_tunes,
    largest_singular_value,
    weight_of,
)
from torch import nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.worker_parts import parts
from weightspace.merging.plan.estimates import job_memory
from weightspace.merging.recipe.parse import recipe_of
from weightspace.progress import Progress

KINDS = {
    "weight_norm": WEIGHT_NORMS["convolution"],
    "positional": WEIGHT_NORMS["positional convolution"],
    "recurrent": WEIGHT_NORMS["recurrent"],
    "spectral_norm": SPECTRAL_NORMS["transposed and square"],
    "old": SPECTRAL_NORMS["convolution, old"],
    "both": BOTH,
}


def models(count: int, *, large: bool = False) -> list[StateDict]:
    """Return networks of layers of every make beside plain ones; large: above a piece, so that pieces matter."""
    states: list[StateDict] = [{} for _ in range(count)]
    for name, kind in KINDS.items():
        for state, layer in zip(states, fine_tunes(kind, count), strict=True):
            state |= {f"layers.0.{name}.{part}": tensor for part, tensor in layer.items()}
    for seed, state in enumerate(states):
        generator = torch.Generator().manual_seed(seed)
        state |= {"head.weight": torch.randn(5, 7, generator=generator), "norm.num_batches_tracked": torch.tensor(seed)}
        state |= {"norm.running_var": torch.rand(4, generator=generator), "step": torch.tensor(1000.0 + seed)}
        if large:
            state["large.weight_g"] = torch.rand(600, 1, generator=generator)
            state["large.weight_v"] = torch.randn(600, 500, generator=generator)
            state["wide.parametrizations.weight.original"] = torch.randn(300, 700, generator=generator)
            state["wide.parametrizations.weight.0._u"] = torch.randn(300, generator=generator)
            state["wide.parametrizations.weight.0._v"] = torch.randn(700, generator=generator)
    return states


def saved(states: Sequence[StateDict], folder: Path) -> list[Path]:
    paths = [folder / f"{name}.safetensors" for name, _ in zip("abcde", states, strict=False)]
    for path, state in zip(paths, states, strict=True):
        ws.save_checkpoint(state, path)
    return paths


METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weights": [0.6, 0.4]},
    "slerp": {"parameters": {"t": 0.3}},
    "task_arithmetic": {"weights": [0.6, -1.7]},
    "ties": {"parameters": {"density": 0.4, "scope": "model"}},
    "dare_ties": {"parameters": {"density": 0.4, "seed": 3}},
    "model_stock": {"parameters": {"filter_wise": True}},
    "iso_c": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_files_merge_to_what_memory_merges_to(method: str, tmp_path: Path) -> None:
    *states, base = models(3)
    based = ws.METHODS[method].base
    states = states[:1] if based == "end" else states
    *paths, base_path = saved([*states, base], tmp_path)
    merge_files(
        paths,
        tmp_path / "out.safetensors",
        method=method,
        base=None if based == "none" else base_path,
        **METHODS[method],
    )
    # Random masks come from the models' names, which memory has none of but numbers.
    if method != "dare_ties":
        expected = ws.merge(states, method, base=None if based == "none" else base, **METHODS[method])
        assert equal(ws.load_checkpoint(tmp_path / "out.safetensors"), expected)
    result = ws.load_checkpoint(tmp_path / "out.safetensors")
    for name, kind in KINDS.items():
        if kind is BOTH or "spectral" in name or name == "old":
            layer = {part.removeprefix(f"layers.0.{name}."): t for part, t in result.items() if f".{name}." in part}
            assert largest_singular_value(kind, weight_of(kind, layer)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out"])
def test_copies_merge_to_the_copy_bit_for_bit(out: str, tmp_path: Path) -> None:
    (state,) = models(1)
    merge_files(saved([state, state, state], tmp_path), tmp_path / out, output=OutputOptions(shard_size=1000))
    assert equal(ws.load_checkpoint(tmp_path / out), state)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return saved(models(3, large=True), tmp_path_factory.mktemp("large"))


OPTIONS: dict[str, Any] = {"method": "dare_ties", "parameters": {"density": 0.6, "seed": 3}, "dtype": "bfloat16"}


def merged(
    paths: Sequence[Path], out: Path, *, on_progress: Callable[[Progress], None] | None = None, **execution: Any
) -> dict[str, bytes]:
    output, how = OutputOptions(shard_size=400_000), ExecutionOptions(**execution)
    merge_files(paths[:2], out, base=paths[2], output=output, execution=how, on_progress=on_progress, **OPTIONS)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_any_executor_and_number_of_workers_makes_the_same_bytes(large: list[Path], tmp_path: Path) -> None:
    expected = merged(large, tmp_path / "one" / "out", threads=1)
    assert len(expected) > 3
    for number, options in enumerate(({"threads": 3}, {"executor": "processes", "workers": 2}, {"executor": "serial"})):
        assert merged(large, tmp_path / str(number) / "out", **options) == expected


def test_a_merge_that_is_interrupted_anywhere_resumes_to_the_same_bytes(large: list[Path], tmp_path: Path) -> None:
    expected = merged(large, tmp_path / "whole" / "out")

    class Stop(KeyboardInterrupt):
        pass

    def stop_at(share: float) -> Callable[[Progress], None]:
        def stop(event: Progress) -> None:
            if event.index > event.total * share:
                raise Stop

        return stop

    for share in (0.0, 0.2, 0.4, 0.6):
        with pytest.raises(Stop):
            merged(large, tmp_path / "out", on_progress=stop_at(share), threads=1)
    assert merged(large, tmp_path / "out") == expected


def test_the_output_dtype_is_that_of_weights_and_not_of_counters(tmp_path: Path) -> None:
    states = models(2)
    for state in states:
        state["position_ids"] = torch.arange(300.0)
        state["step"] += 470_000
    merge_files(saved(states, tmp_path), tmp_path / "out.safetensors", out_dtype="bfloat16")
    result = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert (result["step"].dtype, float(result["step"])) == (torch.float32, 471_001.0)
    assert bits(result["position_ids"]) == bits(states[0]["position_ids"])
    kept = {"step", "position_ids", "norm.num_batches_tracked"}
    assert {tensor.dtype for name, tensor in result.items() if name not in kept} == {torch.bfloat16}
    layer = {name.removeprefix("layers.0.old."): tensor.float() for name, tensor in result.items() if ".old." in name}
    norm = largest_singular_value(KINDS["old"], weight_of(KINDS["old"], layer))
    assert norm == pytest.approx(1, abs=0.01)


def test_counters_and_indices_of_other_dtypes_merge(tmp_path: Path) -> None:
    def state(steps: int, dtype: torch.dtype) -> StateDict:
        counters = {"model_ema.num_updates": torch.tensor(steps).to(dtype), "model_ema.decay": torch.tensor(0.999)}
        return {"w": torch.ones(2), **counters, "embeddings.position_ids": torch.arange(7).to(dtype)}

    for number, dtypes in enumerate(
        ((torch.int32, torch.int64), (torch.float32, torch.int32), (torch.uint32, torch.int16))
    ):
        states = [state(steps, dtype) for steps, dtype in zip((470, 840), dtypes, strict=True)]
        merge_files(saved(states, tmp_path), out := tmp_path / f"{number}.out.safetensors")
        assert equal(ws.load_checkpoint(out), ws.merge(states))
        assert int(ws.load_checkpoint(out)["model_ema.num_updates"]) == 840


def test_a_step_that_is_no_whole_number_is_a_weight(tmp_path: Path) -> None:
    states = [{"w": torch.ones(2), "step": torch.tensor(value)} for value in (0.5, 2.0)]
    for method, options in {"linear": {}, "ties": {"parameters": {"scope": "model", "density": 0.5}}}.items():
        base = {} if method == "linear" else {"base": {"w": torch.zeros(2), "step": torch.tensor(1.0)}}
        paths = saved([*states, *base.values()], tmp_path)
        merge_files(
            paths[:2], tmp_path / f"{method}.safetensors", method=method, base=paths[2] if base else None, **options
        )
        assert equal(
            ws.load_checkpoint(tmp_path / f"{method}.safetensors"), ws.merge(states, method, **base, **options)
        )


def test_a_float_beside_an_integer_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    paths = saved([{"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.int64)}], tmp_path)
    for dry in (True, False):
        with pytest.raises(CheckpointError, match="'w' is F32"):
            merge_files(paths, tmp_path / "out.safetensors", dry_run=dry)
    assert not (tmp_path / ".out.safetensors.merge").exists()


def test_no_variance_is_negative(tmp_path: Path) -> None:
    states = [{"norm.running_var": torch.tensor(values)} for values in ([0.3, 1.5], [0.1, 2.0], [1.0, 1.0])]
    paths = saved(states, tmp_path)
    merge_files(paths[:2], tmp_path / "out.safetensors", method="task_arithmetic", base=paths[2])
    result = ws.load_checkpoint(tmp_path / "out.safetensors")["norm.running_var"]
    torch.testing.assert_close(result, torch.tensor([0.2, 2.5]))


def test_unmergeable_parametrizations_are_refused_while_planning(tmp_path: Path) -> None:
    (pair,) = fine_tunes(WEIGHT_NORMS["linear, old"], 1)
    shared = {f"{layer}.{name}": tensor for layer in "ab" for name, tensor in pair.items()}
    shared["b.weight_v"] = shared["a.weight_v"]
    shared["b.weight_g"] = shared["b.weight_g"] * 2

    layer = nn.Linear(4, 4)
    nn.utils.parametrizations.orthogonal(layer)
    nn.utils.parametrizations.spectral_norm(layer)
    complex_pair = {"weight_g": torch.ones(2, 1), "weight_v": torch.ones(2, 3, dtype=torch.complex64)}
    refused = {
        r"'b.weight_v' shares its memory with 'a.weight_v'": shared,
        r"on top of another parametrization": {name: tensor.detach() for name, tensor in layer.state_dict().items()},
        r"'weight_v' is a part of the weight 'weight' .* as real numbers": complex_pair,
    }
    for message, state in refused.items():
        ws.save_checkpoint(state, tmp_path / "a.pt")
        ws.save_checkpoint(state, tmp_path / "b.pt")
        for dry in (True, False):
            with pytest.raises(WeightspaceError, match=message) as error:
                merge_files([tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "out", dry_run=dry)
            assert len(str(error.value)) < 500
        assert not (tmp_path / "out").exists()


def test_evidence_of_half_a_weight_is_refused_while_planning(tmp_path: Path) -> None:
    states = fine_tunes(WEIGHT_NORMS["linear"], 2)
    paths = saved([*states, *states], tmp_path)
    with pytest.raises(
        WeightspaceError, match=r"refers to 'parametrizations.weight.original\d', a part of the weight 'weight'"
    ):
        merge_files(paths[:2], tmp_path / "out", method="fisher", evidence=paths[2:], dry_run=True)


@pytest.mark.parametrize("kind", [WEIGHT_NORMS["linear"], WEIGHT_NORMS["linear, old"], SPECTRAL_NORMS["square"]])
def test_evidence_of_a_weight_is_found_under_the_name_of_its_module(kind: Any, tmp_path: Path) -> None:
    states = fine_tunes(kind, 2)
    inputs = torch.randn(2, 30, kind[1][1], generator=torch.Generator().manual_seed(0))
    evidence = [{"weight": rows.T @ rows} for rows in inputs]
    paths = saved([*states, *evidence], tmp_path)
    merge_files(paths[:2], tmp_path / "out.safetensors", method="regmean", evidence=paths[2:])
    result = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert equal(result, ws.merge(states, "regmean", evidence=evidence))
    assert not equal(result, ws.merge(states))


def test_tied_pairs_and_shared_matrices_are_made_once(tmp_path: Path) -> None:
    states = []
    for pair, vectors in zip(
        fine_tunes(WEIGHT_NORMS["linear"], 2), fine_tunes(SPECTRAL_NORMS["linear"], 2), strict=True
    ):
        layers = {f"{layer}.{name}": tensor for layer in ("a", "b") for name, tensor in pair.items()}
        layers |= {f"{layer}.{name}": tensor for layer in ("c", "d") for name, tensor in vectors.items()}
        states.append(
            {name: t.clone() if name == "d.parametrizations.weight.0._u" else t for name, t in layers.items()}
        )
    for state in states:
        state["d.parametrizations.weight.0._v"] = state["c.parametrizations.weight.0._v"].clone()
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path, state in zip(paths, states, strict=True):
        ws.save_checkpoint(state, path)
    merge_files(paths, tmp_path / "out.pt")
    result, expected = ws.load_checkpoint(tmp_path / "out.pt"), ws.merge(states)
    assert equal(result, expected)
    for state in (result, expected):
        for name in ("a.parametrizations.weight.original1", "c.parametrizations.weight.original"):
            assert state[name].data_ptr() == state[f"{chr(ord(name[0]) + 1)}{name[1:]}"].data_ptr()
        for end in "uv":
            name = f"parametrizations.weight.0._{end}"
            assert torch.equal(state[f"c.{name}"], state[f"d.{name}"])


def test_leniently_a_layer_that_one_model_lacks_is_copied_with_all_its_parts(tmp_path: Path) -> None:
    a, b = models(2)
    lacking = {name: tensor for name, tensor in b.items() if ".both." not in name}
    merge_files(saved([a, lacking], tmp_path), tmp_path / "out.safetensors", lenient=True)
    result = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert all(bits(result[name]) == bits(a[name]) for name in a if ".both." in name)
    half = {name: tensor for name, tensor in b.items() if not name.endswith("both.parametrizations.weight.original0")}
    with pytest.raises(CheckpointError, match=r"original[01]' is a part of the weight 'layers\.0\.both\.weight'"):
        merge_files(saved([a, half], tmp_path), tmp_path / "out.safetensors", lenient=True, dry_run=True)


def test_layers_of_slices_take_their_parts_along(tmp_path: Path) -> None:
    states = [
        {f"model.layers.{layer}.{name}": tensor for layer, state in enumerate(layers) for name, tensor in state.items()}
        for layers in (fine_tunes(SPECTRAL_NORMS["linear"], 3), fine_tunes(SPECTRAL_NORMS["linear"], 6)[3:])
    ]
    paths = saved(states, tmp_path)
    recipe = f"""
merge_method: linear
slices:
- sources: [{{model: {paths[0]}, layer_range: [0, 2]}}, {{model: {paths[1]}, layer_range: [1, 3]}}]
- sources: [{{model: {paths[1]}, layer_range: [0, 1]}}]
"""
    (tmp_path / "recipe.yml").write_text(recipe)
    merge_files(tmp_path / "recipe.yml", tmp_path / "out.safetensors")
    result = ws.load_checkpoint(tmp_path / "out.safetensors")
    for layer in range(3):
        own = {name.split(".", 3)[3]: t for name, t in result.items() if name.startswith(f"model.layers.{layer}.")}
        weight = weight_of(SPECTRAL_NORMS["linear"], own)
        assert largest_singular_value(SPECTRAL_NORMS["linear"], weight) == pytest.approx(1, abs=1e-5)
    name = "model.layers.{}.parametrizations.weight.0._u"
    assert bits(result[name.format(2)]) == bits(states[1][name.format(0)])


def test_the_memory_of_a_job_is_estimated_from_the_weight_that_it_merges(large: list[Path], tmp_path: Path) -> None:
    recipe = recipe_of([str(path) for path in large[:2]], "linear")
    plan = make_plan(recipe, tmp_path / "out", PlanOptions())
    by_name = {job.name: job_memory(plan, job) for job in plan.jobs}
    assert by_name["large.weight_g"] == by_name["large.weight_v"] > 8 * 2**17 * 4
    assert by_name["wide.parametrizations.weight.0._u"] > 300 * 700 * 8 * 2
    assert {job.name for job in plan.jobs} == {
        plan.jobs[n].name for part in parts(plan, plan.jobs, 2) for n in part.jobs
    }


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    paths = saved(models(2), tmp_path)
    code = f"""
import sys, weightspace as ws
ws.merge_files({[str(path) for path in paths]!r}, {str(tmp_path / "out")!r}, dry_run=True)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
