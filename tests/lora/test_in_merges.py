"""MODEL+ADAPTER as a source of merges from files: rounded once, the same on any threads, tied weights set apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict, load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora import Adapted
from weightspace.merging import ExecutionOptions, merge, merge_files, reproduce

Write = Callable[..., Path]
Normal = Callable[..., Tensor]

MODULES = {"embed_tokens": (40, 16), "layers.0.q": (300, 500), "layers.1.q": (24, 16), "lm_head": (40, 16)}


@pytest.fixture
def model(normal: Normal, tmp_path: Path) -> StateDict:
    """Return a model in bfloat16, which lies in ``model.safetensors``."""
    state = {f"{module}.weight": normal(*shape, dtype=torch.bfloat16) for module, shape in MODULES.items()}
    state["norm.weight"] = normal(16, dtype=torch.bfloat16)
    ws.save_checkpoint(state, tmp_path / "model.safetensors")
    return state


def factors(normal: Normal, *modules: str, rank: int = 2) -> dict[str, Tensor]:
    found = {}
    for module in modules:
        out, inside = MODULES[module]
        found[f"{module}.lora_A.weight"] = normal(rank, inside)
        found[f"{module}.lora_B.weight"] = normal(out, rank)
    return found


def adapted(model: StateDict, tensors: dict[str, Tensor], scale: float) -> StateDict:
    """Return the model with an adapter on top, in float64."""
    state = {name: tensor.double() for name, tensor in model.items()}
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            a, b = (tensors[f"{module}.lora_{side}.weight"].double() for side in "AB")
            state[f"{module}.weight"] = state[f"{module}.weight"] + scale * b @ a
    return state


@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_one_source_bakes_the_adapter_in_and_rounds_once(
    method: str, model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    tensors = factors(normal, "layers.0.q", "layers.1.q")
    folder = write("adapter", tensors, lora_alpha=3)
    merge_files(
        [f"{tmp_path}/model.safetensors+{folder}"],
        tmp_path / "out.safetensors",
        method=method,
        execution=ExecutionOptions(fsync=False),
    )
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    for name, tensor in adapted(model, tensors, 1.5).items():
        assert found[name].dtype == torch.bfloat16
        assert float((found[name] == tensor.to(torch.bfloat16)).float().mean()) > 0.9999, name
        torch.testing.assert_close(found[name].double(), tensor, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "sce", "knots"])
def test_a_merge_is_that_of_models_with_their_adapters_baked_in(
    method: str, model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    several = [factors(normal, "layers.1.q"), factors(normal, "layers.1.q", "lm_head", rank=2)]
    sources = [f"{tmp_path}/model.safetensors+{write(str(n), tensors)}" for n, tensors in enumerate(several)]
    options: dict[str, Any] = {} if method in ("linear", "slerp") else {"base": tmp_path / "model.safetensors"}
    parameters = {"slerp": {"t": 0.3}, "ties": {"density": 0.5}}.get(method, {})
    out = tmp_path / "out.safetensors"
    merge_files(
        sources,
        out,
        method=method,
        parameters=parameters,
        execution=ExecutionOptions(fsync=False),
        dtype="float32",
        **options,
    )
    baked = [{name: t.float() for name, t in adapted(model, tensors, 2.0).items()} for tensors in several]
    base = {name: tensor.float() for name, tensor in model.items()} if options else None
    expected = merge(baked, method, base=base, parameters=parameters)
    found = ws.load_checkpoint(out)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("method", "parameters"), [("linear", {}), ("ties", {"density": 0.3, "scope": "model"})])
def test_the_bytes_depend_neither_on_threads_nor_on_torch_s(
    method: str, parameters: dict[str, Any], model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    sources = [
        f"{tmp_path}/model.safetensors+{write(name, factors(normal, 'layers.0.q', 'layers.1.q', 'lm_head'))}"
        for name in "ab"
    ]
    base: dict[str, Any] = {} if method == "linear" else {"base": tmp_path / "model.safetensors"}
    contents = []
    for threads, torch_threads in ((1, 1), (2, 1), (2, 2)):
        torch.set_num_threads(torch_threads)
        try:
            out = tmp_path / "out.safetensors"
            merge_files(
                sources,
                out,
                method=method,
                parameters=parameters,
                execution=ExecutionOptions(threads=threads, fsync=False),
                **base,
            )
        finally:
            torch.set_num_threads(1)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_every_pass_over_an_adapter_is_made_with_one_torch_thread(
    model: StateDict, write: Write, normal: Normal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, read = [], Adapted.read

    def spy(self: Adapted, start: int, stop: int) -> Tensor:
        seen.append(torch.get_num_threads())
        return read(self, start, stop)

    monkeypatch.setattr(Adapted, "read", spy)
    source, base = tmp_path / "model.safetensors", tmp_path / "base.safetensors"
    ws.save_checkpoint({name: normal(*tensor.shape) for name, tensor in model.items()}, base)
    torch.set_num_threads(2)
    try:
        merge_files(
            [f"{source}+{write('adapter', factors(normal, 'layers.1.q'))}"],
            tmp_path / "out.safetensors",
            method="ties",
            base=base,
            parameters={"scope": "model", "density": 0.3},
            execution=ExecutionOptions(fsync=False),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(seen) > 1
    assert set(seen) == {1}


def test_saved_modules_take_the_place_of_tensors_in_a_dtype_that_holds_both(
    model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    tensors = {**factors(normal, "layers.1.q"), "lm_head.weight": normal(40, 16)}
    folder = write("adapter", tensors, modules_to_save=["lm_head"])
    merge_files(
        [f"{tmp_path}/model.safetensors+{folder}"],
        tmp_path / "out.safetensors",
        execution=ExecutionOptions(fsync=False),
    )
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert torch.equal(found["lm_head.weight"], tensors["lm_head.weight"])
    assert found["layers.1.q.weight"].dtype == torch.bfloat16


def test_the_output_says_which_adapter_it_has_and_can_be_made_again(
    model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    folder = write("adapter", factors(normal, "layers.1.q"))
    out = tmp_path / "out.safetensors"
    report = merge_files([f"{tmp_path}/model.safetensors+{folder}"], out, execution=ExecutionOptions(fsync=False))
    inputs = json.loads(load_metadata(out)["inputs"])
    names = ["model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    assert [entry["name"] for entry in inputs] == names
    assert all(len(entry["sha256"]) == 64 for entry in inputs)
    weights = sum(tensor.nbytes for tensor in model.values())
    assert report.read_bytes == weights + 4 * 2 * (24 + 16)
    assert reproduce(out).equal
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 6'))
    again = reproduce(out)
    assert not again.equal
    assert again.changed == ("adapter/adapter_config.json",)


def test_shapes_that_differ_name_the_model_with_its_adapter(
    model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    source = f"{tmp_path}/model.safetensors+{write('adapter', factors(normal, 'layers.1.q'))}"
    ws.save_checkpoint({**model, "embed_tokens.weight": normal(41, 16)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError) as error:
        merge_files([source, str(tmp_path / "other.safetensors")], tmp_path / "out.safetensors")
    said = f"'embed_tokens.weight' is (40, 16) in {source} and (41, 16) in other.safetensors; expected one shape."
    assert str(error.value).startswith(said)


def test_a_dry_run_reads_no_factor(model: StateDict, write: Write, normal: Normal, tmp_path: Path) -> None:
    folder = write("adapter", factors(normal, "layers.1.q"))
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: -4 * 2 * 40] + b"\xff" * 4 * 2 * 40)  # NaN, if they were read
    source = f"{tmp_path}/model.safetensors+{folder}"
    assert merge_files([source], tmp_path / "out.safetensors", dry_run=True).tensors == len(model)
    with pytest.raises(WeightspaceError, match="NaN"):
        merge_files([source], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))


@pytest.fixture
def folder_of(normal: Normal, tmp_path: Path) -> Callable[..., Path]:
    """Return ``folder_of(tied=…, head=…)``: a language model whose head is its embedding."""

    def build(*, head: bool) -> Path:
        embedding = normal(40, 16)
        state = {"embed_tokens.weight": embedding, "layers.1.q.weight": normal(24, 16)}
        if head:
            state["lm_head.weight"] = embedding
        folder = tmp_path / "tied"
        ws.save_checkpoint(state, folder)
        config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return build


@pytest.mark.parametrize("head", [True, False])
def test_a_tied_head_that_is_adapted_alone_gets_a_tensor_of_its_own(
    head: bool, folder_of: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    folder, tensors = folder_of(head=head), factors(normal, "lm_head")
    merge_files(
        [f"{folder}+{write('adapter', tensors)}"],
        tmp_path / "out",
        method="passthrough",
        execution=ExecutionOptions(fsync=False),
    )
    before, found = ws.load_checkpoint(folder), ws.load_checkpoint(tmp_path / "out")
    delta = 2 * tensors["lm_head.lora_B.weight"] @ tensors["lm_head.lora_A.weight"]
    assert torch.equal(found["embed_tokens.weight"], before["embed_tokens.weight"])
    torch.testing.assert_close(found["lm_head.weight"], before["embed_tokens.weight"] + delta)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_an_embedding_that_is_adapted_alone_leaves_its_head_as_it_was(
    folder_of: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    folder = folder_of(head=True)
    tensors = {"embed_tokens.lora_embedding_A": normal(2, 40), "embed_tokens.lora_embedding_B": normal(16, 2)}
    merge_files([f"{folder}+{write('adapter', tensors)}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    before, found = ws.load_checkpoint(folder), ws.load_checkpoint(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], before["lm_head.weight"])
    delta = 2 * (tensors["embed_tokens.lora_embedding_B"] @ tensors["embed_tokens.lora_embedding_A"]).T
    torch.testing.assert_close(found["embed_tokens.weight"], before["embed_tokens.weight"] + delta)


@pytest.mark.parametrize("head", [True, False])
def test_tied_weights_that_were_both_trained_whole_come_apart(
    head: bool, folder_of: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    tensors = {"embed_tokens.weight": normal(40, 16), "lm_head.weight": normal(40, 16)}
    adapter = write("adapter", tensors, modules_to_save=["embed_tokens", "lm_head"])
    merge_files([f"{folder_of(head=head)}+{adapter}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    found = ws.load_checkpoint(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_tensors_outside_the_adapter_stay_tied(
    folder_of: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    source = f"{folder_of(head=True)}+{write('adapter', factors(normal, 'layers.1.q', rank=2))}"
    merge_files([source], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    found = ws.load_checkpoint(tmp_path / "out")
    assert found["lm_head.weight"].data_ptr() == found["embed_tokens.weight"].data_ptr()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("head", [True, False])
def test_weights_that_were_trained_tied_are_not_set_apart(
    head: bool, folder_of: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    adapter = write("adapter", factors(normal, "lm_head"), ensure_weight_tying=True)
    with pytest.raises(CheckpointError, match="ensure_weight_tying"):
        merge_files([f"{folder_of(head=head)}+{adapter}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))


def test_an_adapter_that_does_not_fit_its_model_is_refused(
    model: StateDict, write: Write, normal: Normal, tmp_path: Path
) -> None:
    def pair(module: str, out: int, inside: int) -> dict[str, Tensor]:
        return {f"{module}.lora_A.weight": normal(2, inside), f"{module}.lora_B.weight": normal(out, 2)}

    ws.save_checkpoint({"q.weight": torch.zeros(4, 4, dtype=torch.uint8)}, tmp_path / "quantised.safetensors")
    mistakes = {
        "Did you mean 'layers.1.q.weight'": ("model", pair("layers.1.qq", 24, 16)),
        "Does this adapter belong to that model": ("model", pair("layers.1.q", 24, 17)),
        "fan_in_fan_out": ("model", pair("layers.1.q", 16, 24)),
        "quantised": ("quantised", pair("q", 4, 4)),
    }
    for number, (expected, (name, tensors)) in enumerate(mistakes.items()):
        source = f"{tmp_path}/{name}.safetensors+{write(str(number), tensors)}"
        with pytest.raises(CheckpointError, match=expected) as error:
            merge_files([source], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out.safetensors").exists()


def test_the_factors_count_as_memory(model: StateDict, write: Write, normal: Normal, tmp_path: Path) -> None:
    tensors = factors(normal, "layers.0.q", rank=2)
    source = f"{tmp_path}/model.safetensors"
    plain = merge_files([source], tmp_path / "x.safetensors", dry_run=True, execution=ExecutionOptions(threads=1))
    more = merge_files(
        [f"{source}+{write('a', tensors)}"],
        tmp_path / "x.safetensors",
        dry_run=True,
        execution=ExecutionOptions(threads=1),
    )
    assert more.memory >= plain.memory + 4 * 2 * (300 + 500)


@pytest.mark.parametrize(
    ("model_folder", "base", "reported"),
    [
        ("base", "tiny/math", True),
        ("base", "/models/other-base/", True),
        ("base", "org/Base", False),
        ("Llama_3-8B", "/root/.cache/huggingface/hub/models--org--llama-3-8b/snapshots/0123abc", False),
        ("llama-3-8b", "unsloth/llama-3-8b-unsloth-bnb-4bit", False),
        ("base", None, False),
        ("base", "", False),
        ("moved", "tiny/named", False),
    ],
)
def test_an_adapter_of_another_model_is_reported(
    model_folder: str, base: str | None, reported: bool, write: Write, normal: Normal, tmp_path: Path
) -> None:
    state = {"layers.1.q.weight": normal(24, 16)}
    ws.save_checkpoint(state, tmp_path / model_folder)
    (tmp_path / model_folder / "config.json").write_text('{"_name_or_path": "tiny/named"}')
    adapter = write("lora", factors(normal, "layers.1.q"), base_model_name_or_path=base)
    source = f"{tmp_path / model_folder}+{adapter}"
    lines = merge_files([source], tmp_path / "out", method="passthrough", dry_run=True).warnings
    found = [line for line in lines if "was trained on" in line]
    assert len(found) == reported
    assert all(f"{adapter} was trained on {base} (base_model_name_or_path" in line for line in found)
