"""Recipes as graphs: results in between that are computed chunk by chunk have the bits of those on the disk."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.stored_metadata import load_metadata
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, MergeReport, merge_files, reproduce
from weightspace.merging.methods._registry import CHUNK
from weightspace.merging.out_of_core import graph, stages
from weightspace.progress import Progress

#: More than two blocks of elements, and no multiple of any chunk.
LARGE = (37, 9 * CHUNK // 37 + 5)
PAIR = "[{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.7}}]"
SPARSE = "[{model: a, parameters: {weight: 0.3, density: 0.4}}, {model: b, parameters: {weight: 0.7, density: 0.6}}]"
INNER = {
    "linear": f"merge_method: linear\nmodels: {PAIR}",
    "ties": f"merge_method: ties\nbase_model: base\nmodels: {SPARSE}",
    "dare_ties": f"merge_method: dare_ties\nbase_model: base\nmodels: {SPARSE}",
    "della": f"merge_method: della\nbase_model: base\nmodels: {SPARSE}\nparameters: {{epsilon: 0.1}}",
    "slerp": "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0.2, 0.9]}",
    "karcher": "merge_method: karcher\nmodels: [{model: a}, {model: b}]",
    "model_stock": "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]",
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: a\nmodels: [{model: b}]",
    "iso_c": "merge_method: iso_c\nbase_model: base\nmodels: [{model: a}, {model: b}]",
    "passthrough": "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: 0.5}}]",
}
OUTER = {
    "linear": "merge_method: linear\nmodels: [{model: x}, {model: c}]\nparameters: {weight: [0.2, 0.8]}",
    "ties": "merge_method: ties\nbase_model: base\nmodels: [{model: x}, {model: c}]\n"
    "parameters: {weight: 0.5, density: 0.5}",
    "slerp": "merge_method: slerp\nbase_model: x\nmodels: [{model: c}]\nparameters: {t: 0.3}",
    "sce": "merge_method: sce\nbase_model: x\nmodels: [{model: a}, {model: c}]\nparameters: {select_topk: 0.5}",
    "slices": "merge_method: passthrough\nslices:\n- sources: [{model: x, layer_range: [0, 2]}]\n"
    "- sources: [{model: x, layer_range: [1, 3]}]\n- sources: [{model: c, layer_range: [2, 3]}]",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models ``base``, ``a``, ``b``, ``c`` in bfloat16, and an empty folder of temporary files."""
    generator = torch.Generator().manual_seed(0)
    for part in ("temporary", "work"):
        (tmp_path / part).mkdir()
    for name in ("base", "a", "b", "c"):
        state: StateDict = {
            "model.embed_tokens.weight": torch.randn(8, 6, generator=generator).bfloat16(),
            **{f"model.layers.{i}.mlp.weight": torch.randn(6, 6, generator=generator).bfloat16() for i in range(3)},
            "steps": torch.tensor([7]),
        }
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        ws.save_checkpoint(state, tmp_path / "work" / name)
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "torch_dtype": "bfloat16"}
        (tmp_path / "work" / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "work"


def merge(text: str, out: str = "out", **execution: object) -> MergeReport:
    Path("recipe.yml").write_text(text)
    return merge_files("recipe.yml", out, execution=ExecutionOptions(fsync=False, **execution))  # pyright: ignore[reportArgumentType]


def both(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[StateDict, StateDict]:
    """Return what comes of a recipe as a graph, and with results on the disk."""
    plans = Counter(stage.method.name for stage in planned(text))
    assert plans
    merge(text, "computed")
    with monkeypatch.context() as patch:
        patch.setattr(graph, "_MAX_STAGES", 0)
        merge(text, "stored")
    return ws.load_checkpoint("computed"), ws.load_checkpoint("stored")


def planned(text: str) -> list[stages.Plan]:
    """Return the results in between that are computed; none where they go to the disk."""
    found: list[stages.Plan] = []
    real = stages.can_be_computed

    def look(plan: stages.Plan) -> bool:
        can = real(plan)
        found.extend(graph._stages(plan) if can else [])
        return can

    stages.can_be_computed = look
    try:
        Path("recipe.yml").write_text(text)
        merge_files("recipe.yml", "unwritten", dry_run=True)
    finally:
        stages.can_be_computed = real
    return found


def assert_equal(one: StateDict, other: StateDict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_computed_results_have_the_bits_of_stored_ones(
    inner: str, outer: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_equal(*both(f"name: x\n{INNER[inner]}\n---\n{OUTER[outer]}\n", monkeypatch))
    assert not list(Path("../temporary").iterdir())
    assert sorted(path.name for path in Path("computed").iterdir()) == sorted(p.name for p in Path("stored").iterdir())
    assert Path("computed/config.json").read_bytes() == Path("stored/config.json").read_bytes()


@pytest.mark.parametrize("inner", ["linear", "ties", "dare_ties", "della", "slerp", "arcee_fusion"])
@pytest.mark.parametrize("outer", ["linear", "ties"])
def test_large_tensors_are_computed_in_the_chunks_of_a_merge_to_files(
    inner: str, outer: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("base", "a", "b", "c")):
        generator = torch.Generator().manual_seed(seed)
        ws.save_checkpoint({"model.layers.0.mlp.weight": torch.randn(LARGE, generator=generator).bfloat16()}, name)
    assert_equal(*both(f"name: x\n{INNER[inner]}\n---\n{OUTER[outer]}\n", monkeypatch))


def test_nothing_of_a_graph_is_written_but_the_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"name: x\n{INNER['linear']}\n---\nname: y\n{OUTER['ties']}\n---\n{OUTER['linear'].replace('x', 'y')}\n"
    report = merge(text)
    names = {path.name for path in Path().iterdir()} - {"base", "a", "b", "c", "recipe.yml"}
    assert names == {"out"}
    assert report.written_bytes == Path("out/model.safetensors").stat().st_size
    inputs = [entry["name"] for entry in json.loads(load_metadata("out")["inputs"])]
    assert sorted(inputs) == [f"{name}/model.safetensors" for name in ("a", "b", "base", "c")]
    assert "stages" not in json.loads(load_metadata("out")["parameters"])
    assert reproduce("out").equal


def test_an_interrupted_graph_goes_on_where_it_stopped(folder: Path) -> None:
    def stop(event: Progress) -> None:
        if event.index > event.total / 3:
            raise KeyboardInterrupt

    text = f"name: x\n{INNER['linear']}\n---\n{OUTER['linear']}\n"
    Path("recipe.yml").write_text(text)
    execution = ExecutionOptions(fsync=False, threads=1)
    with pytest.raises(KeyboardInterrupt):
        merge_files("recipe.yml", "out", execution=execution, on_progress=stop)
    assert not Path("out").exists()
    assert not list(Path("../temporary").iterdir())
    merge_files("recipe.yml", "out", execution=execution)
    merge(text, "again")
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_processes_compute_the_same(folder: Path) -> None:
    text = f"name: x\n{INNER['ties']}\n---\n{OUTER['slerp']}\n"
    merge(text)
    merge(text, "elsewhere", executor="processes", workers=2)
    assert Path("out/model.safetensors").read_bytes() == Path("elsewhere/model.safetensors").read_bytes()


def test_a_mistake_in_the_values_names_the_model(folder: Path) -> None:
    state = ws.load_checkpoint("b")
    ws.save_checkpoint({**state, "model.layers.1.mlp.weight": torch.full((6, 6), torch.nan)}, "b")
    with pytest.raises(WeightspaceError, match=r"'model.layers.1.mlp.weight' of b holds NaN"):
        merge(f"name: x\n{INNER['linear']}\n---\n{OUTER['linear']}\n")
    assert not Path("out").exists()
    assert not list(Path("../temporary").iterdir())


@pytest.mark.parametrize(
    "text",
    [
        f"name: x\nmerge_method: ties\nbase_model: base\nmodels: {SPARSE}\nparameters: {{scope: model}}\n"
        f"---\n{OUTER['linear']}\n",
        "".join(
            f"name: d{i}\nmerge_method: linear\nmodels: [{{model: {f'd{i - 1}' if i else 'a'}}}, {{model: b}}]\n"
            "parameters: {weight: 1}\n---\n"
            for i in range(20)
        )
        + "merge_method: passthrough\nmodels: [{model: d19}]\n",
        "".join(
            f"name: d{i}\nmerge_method: linear\nmodels: [{{model: {f'd{i - 1}' if i else 'a'}}}, "
            f"{{model: {f'd{i - 2}' if i > 1 else 'b'}}}]\nparameters: {{weight: 1}}\n---\n"
            for i in range(10)
        )
        + "merge_method: passthrough\nmodels: [{model: d9}]\n",
    ],
    ids=["a pass over the whole model", "many results", "results that are used often"],
)
def test_what_cannot_be_computed_goes_over_the_disk(text: str, folder: Path) -> None:
    assert not planned(text)
    merge(text)
    assert reproduce("out").equal
    assert {path.name for path in Path().iterdir()} == {"base", "a", "b", "c", "recipe.yml", "out"}


def test_a_document_with_the_name_of_a_folder_is_reported(folder: Path) -> None:
    def noted(name: str, out: str, **execution: object) -> list[str]:
        text = f"name: {name}\n{INNER['linear']}\n---\nmerge_method: linear\nparameters: {{weight: 1}}\n"
        warnings = merge(text + f"models: [{{model: {name}}}, {{model: ./c}}]\n", out, **execution).warnings
        return [line for line in warnings if "not the folder" in line]

    assert noted("c", "out") == [
        "The model 'c' is the result of the document of that name, not the folder c. Write ./c for the folder, or give "
        "the document another name."
    ]
    assert not noted("first", "other")
    for _ in range(2):  # the folder is the result
        assert not noted("first", "kept", intermediate_dir=".")
