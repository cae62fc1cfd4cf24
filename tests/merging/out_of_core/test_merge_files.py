"""Merges from files to files: what comes out, where it lies, and what is left behind when something goes wrong."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict, load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files


def language_model(seed: int, dtype: torch.dtype = torch.float32, layers: int = 3) -> StateDict:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    state = {"model.embed_tokens.weight": tensor(50, 16)}
    for layer in range(layers):
        state[f"model.layers.{layer}.self_attn.q_proj.weight"] = tensor(16, 16)
        state[f"model.layers.{layer}.mlp.up_proj.weight"] = tensor(40, 16)
        state[f"model.layers.{layer}.norm.weight"] = tensor(16)
    state["model.norm.weight"] = tensor(16)
    state["lm_head.weight"] = tensor(50, 16)
    state["position_ids"] = torch.arange(7)
    return state


def assert_equal(found: StateDict, expected: StateDict) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def models(tmp_path: Path) -> list[StateDict]:
    states = [language_model(seed) for seed in range(2)]
    for name, state in zip("ab", states, strict=True):
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    return states


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out"])
def test_files_merge_to_what_memory_merges_to(out: str, models: list[StateDict], tmp_path: Path) -> None:
    report = merge_files(
        [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
        tmp_path / out,
        weights=[0.6, 0.4],
        execution=ExecutionOptions(threads=2),
    )
    assert_equal(ws.load_checkpoint(tmp_path / out), ws.merge(models, weights=[0.6, 0.4]))
    assert report.tensors == len(models[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.safetensors", "b.safetensors", out])


def test_torch_files_and_folders_are_sources_too(models: list[StateDict], tmp_path: Path) -> None:
    ws.save_checkpoint(models[0], tmp_path / "a.pt")
    ws.save_checkpoint(models[1], tmp_path / "b")
    merge_files([tmp_path / "a.pt", tmp_path / "b"], tmp_path / "out")
    assert_equal(ws.load_checkpoint(tmp_path / "out"), ws.merge(models))


def test_a_folder_is_cut_into_shards_that_other_libraries_read(models: list[StateDict], tmp_path: Path) -> None:
    merge_files(
        [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
        tmp_path / "out",
        output=OutputOptions(shard_size=4_000),
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert set(index["weight_map"]) == set(models[0])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in models[0].values())
    assert_equal(ws.load_checkpoint(tmp_path / "out"), ws.merge(models))


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32), ("float64", torch.float64)],
)
def test_the_output_is_rounded_once_to_the_dtype_asked_for(
    asked: str, dtype: torch.dtype, models: list[StateDict], tmp_path: Path
) -> None:
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    merge_files(sources, tmp_path / "out.safetensors", dtype="float32", out_dtype=asked)
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    wide = [{name: t.double() if t.is_floating_point() else t for name, t in state.items()} for state in models]
    for name, tensor in ws.merge(wide).items():
        if tensor.is_floating_point():
            assert found[name].dtype == dtype
            rounding = {"rtol": 2e-7, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 0, "atol": 0}
            exact = torch.isclose(found[name].double(), tensor.to(dtype).double(), **rounding)
            assert exact.double().mean() > 0.99
        else:
            assert torch.equal(found[name], tensor)


def test_the_configuration_and_the_tokenizer_come_along_and_agree_with_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        ws.save_checkpoint(language_model(seed), tmp_path / name)
        config = {"torch_dtype": "float32", "num_hidden_layers": 3, "tie_word_embeddings": False}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}}}))
        (tmp_path / name / "notes.txt").write_text("kept")
        (tmp_path / name / "optimizer.pt").write_text("of the training")
    merge_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", out_dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "a" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "notes.txt").read_text() == "kept"
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merge_method: linear" in card
    assert "a/model.safetensors" in card


def test_nothing_of_an_older_output_survives(models: list[StateDict], tmp_path: Path) -> None:
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    merge_files(sources, tmp_path / "out", output=OutputOptions(shard_size=4_000))
    merge_files(sources, tmp_path / "out", weights=[1, 0])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.safetensors"]
    assert_equal(ws.load_checkpoint(tmp_path / "out"), models[0])


def test_a_folder_of_other_things_is_not_replaced(models: list[StateDict], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 1)):
        state = language_model(seed)
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
        states.append(state)
    merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "out.safetensors")
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()
    assert_equal(found, ws.merge(states))


@pytest.mark.parametrize("has_name", [False, True])
def test_a_head_that_one_model_ties_to_its_embedding_is_merged_with_the_others(has_name: bool, tmp_path: Path) -> None:
    a, b = language_model(0), language_model(1)
    b["lm_head.weight"] = b["model.embed_tokens.weight"]
    ws.save_checkpoint(a, tmp_path / "a")
    ws.save_checkpoint({name: t for name, t in b.items() if has_name or name != "lm_head.weight"}, tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    merge_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert_equal(ws.load_checkpoint(tmp_path / "out"), ws.merge([a, b]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_tensor_that_a_model_lacks_is_an_error_or_copied_with_a_warning(tmp_path: Path) -> None:
    a, b = language_model(0), language_model(1)
    bias = b.pop("model.layers.1.norm.weight")
    b["model.layers.1.norm.wieght"] = bias
    ws.save_checkpoint(a, tmp_path / "a.safetensors")
    ws.save_checkpoint(b, tmp_path / "b.safetensors")
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(CheckpointError, match=r"Did you mean 'model.layers.1.norm.wieght'"):
        merge_files(sources, tmp_path / "out.safetensors")
    report = merge_files(sources, tmp_path / "out.safetensors", lenient=True)
    assert len(report.warnings) == 2
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert torch.equal(found["model.layers.1.norm.weight"], a["model.layers.1.norm.weight"])
    assert torch.equal(found["model.layers.1.norm.wieght"], bias)


def test_shapes_that_differ_are_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    a, b = language_model(0), language_model(1)
    b["model.embed_tokens.weight"] = torch.zeros(51, 16)
    for name, state in (("a", a), ("b", b)):
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight'.*\(50, 16\).*\(51, 16\).*vocabular"):
        merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"dtype": "float32"}, r"'dtype' \(--dtype\) cannot be combined with a recipe.*set `dtype: float32`"),
        ({"out_dtype": "bfloat16"}, "--out-dtype.*set `out_dtype: bfloat16`"),
        ({"base": "b"}, "set `base_model: b`"),
        ({"weights": [1, 2]}, r"give each model its `parameters: \{weight: …\}`"),
        ({"parameters": {"density": 0.5}}, "the method's parameters.*set them under `parameters`"),
    ],
)
def test_options_beside_a_recipe_are_refused_with_the_key_to_write(
    option: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yml").write_text("merge_method: linear\nmodels: [{model: a}, {model: b}]\n")
    with pytest.raises(WeightspaceError, match=advice):
        merge_files(tmp_path / "recipe.yml", tmp_path / "out", **option)


def test_integers_that_differ_are_refused_and_nothing_stays(models: list[StateDict], tmp_path: Path) -> None:
    models[1]["position_ids"] = torch.arange(7) + 1
    ws.save_checkpoint(models[1], tmp_path / "b.safetensors")
    with pytest.raises(WeightspaceError, match="'position_ids'"):
        merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_inputs_are_refused_by_tensor_and_model(
    value: float, models: list[StateDict], tmp_path: Path
) -> None:
    models[1]["model.norm.weight"][3] = value
    ws.save_checkpoint(models[1], tmp_path / "b.safetensors")
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(WeightspaceError, match=r"'model.norm.weight' of b.safetensors"):
        merge_files(sources, tmp_path / "out.safetensors")
    merge_files(sources, tmp_path / "out.safetensors", output=OutputOptions(allow_nonfinite=True))
    assert not ws.load_checkpoint(tmp_path / "out.safetensors")["model.norm.weight"][3].isfinite()


def test_a_result_that_overflows_the_dtype_asked_for_is_refused(tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.full((3,), 1e5)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightspaceError, match=r"'w' of the result"):
        merge_files([tmp_path / "a.safetensors"], tmp_path / "out.safetensors", dtype="float16")


def test_the_bytes_do_not_depend_on_threads_memory_or_executor(models: list[StateDict], tmp_path: Path) -> None:
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    made = []
    options: list[dict[str, Any]] = [{"threads": 1}, {"threads": 2}, {"memory": 2**24}, {"executor": "processes"}]
    for number, how in enumerate(options):
        (tmp_path / str(number)).mkdir()
        out = tmp_path / str(number) / "out"
        merge_files(sources, out, output=OutputOptions(shard_size=6_000), execution=ExecutionOptions(**how))
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert all(other == made[0] for other in made)


def test_too_little_memory_is_reported_before_anything_is_written(models: list[StateDict], tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match="--memory"):
        merge_files([tmp_path / "a.safetensors"], tmp_path / "out", execution=ExecutionOptions(memory=100))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_reported_before_anything_is_written(
    models: list[StateDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(CheckpointError, match="free"):
        merge_files([tmp_path / "a.safetensors"], tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_where_a_merge_comes_from_is_kept_and_its_digests_are_those_of_the_files(
    models: list[StateDict], tmp_path: Path
) -> None:
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    merge_files(sources, tmp_path / "out.safetensors", weights=[1, 3])
    metadata = load_metadata(tmp_path / "out.safetensors")
    assert metadata["method"] == "linear"
    assert "weight: 3" in metadata["recipe"]
    assert json.loads(metadata["inputs"]) == [
        {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in sources
    ]
    merge_files(sources, tmp_path / "out", output=OutputOptions(shard_size=4_000))
    assert load_metadata(tmp_path / "out")["inputs"] == metadata["inputs"]


def test_integers_that_differ_between_the_ends_of_a_line_are_refused(models: list[StateDict], tmp_path: Path) -> None:
    ws.save_checkpoint({**models[0], "position_ids": torch.arange(7) + 1}, tmp_path / "base.safetensors")
    with pytest.raises(WeightspaceError, match="position_ids"):
        merge_files(
            [tmp_path / "b.safetensors"],
            tmp_path / "out",
            method="slerp",
            base=tmp_path / "base.safetensors",
            parameters={"t": 0.5},
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["a.safetensors", "."])
def test_an_output_takes_the_place_of_none_of_its_inputs(
    out: str, models: list[StateDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        merge_files(["a.safetensors", "b.safetensors"], out)
    assert_equal(ws.load_checkpoint("a.safetensors"), models[0])


def test_an_exception_of_a_users_method_is_one_line_that_says_where(models: list[StateDict], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def merge(tensors, weights, base):\n    return tensors[2]\n")
    with pytest.raises(
        WeightspaceError, match=r"cannot be merged by .*own.py:merge: .*own.py:2: IndexError: list index"
    ):
        merge_files([tmp_path / "a.safetensors"], tmp_path / "out", method=f"{tmp_path}/own.py:merge")
    assert not list(tmp_path.glob(".out*"))


def test_the_content_of_a_recipe_merges_as_its_file_does(models: list[StateDict], tmp_path: Path) -> None:
    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": a,
        "models": ({"model": b, "parameters": {"weight": numpy.float64(0.5)}},),
    }
    merge_files(recipe, tmp_path / "out.safetensors")
    merge_files([b], tmp_path / "same.safetensors", method="task_arithmetic", base=a, weights=[0.5])
    out, same = (ws.load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("out", "same"))
    assert_equal(out, same)
    assert ws.reproduce(tmp_path / "out.safetensors").equal
    with pytest.raises(WeightspaceError, match=r"dtype in the recipe 'float31'"):
        merge_files({**recipe, "dtype": "float31"}, tmp_path / "out.safetensors")
    with pytest.raises(WeightspaceError, match=r"the recipe holds tensor\(1\.\); expected numbers"):
        merge_files({**recipe, "parameters": {"lambda": torch.ones(())}}, tmp_path / "out.safetensors")


@pytest.mark.parametrize("mapping", [{}, {"w": torch.ones(2)}, {"method": "linear"}])
def test_another_mapping_is_no_recipe(mapping: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"the mapping has no merge_method, .* ws\.merge\."):
        merge_files(mapping, tmp_path / "out.safetensors")
