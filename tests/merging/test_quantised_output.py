"""Merges into FP8: the merge in float32, quantised; transformers loads it; the other tensors stay as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict, load_dequantised
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files, reproduce
from weightspace.merging.out_of_core import quantising

SHAPES = {"embed_tokens": (40, 256), "layers.0.q_proj": (600, 256), "layers.0.down_proj": (128, 1280)}
SCHEMES = ("fp8-tensor", "fp8-channel", "fp8-block")


def plain(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    state = {f"{module}.weight": torch.randn(shape, generator=generator) for module, shape in SHAPES.items()}
    state["layers.0.q_proj.weight"][:3] = 0
    state["layers.0.norm.weight"] = torch.ones(256)
    return {name: tensor.bfloat16() for name, tensor in state.items()}


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Return two models."""
    for seed in (0, 1):
        ws.save_checkpoint(plain(seed), tmp_path / f"{seed}.safetensors")
    return [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]


def quantised(merged: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """Return FP8 numbers and scales, block by block: the largest number of a block becomes 448."""
    rows, columns = merged.shape
    sizes = {"fp8-tensor": (rows, columns), "fp8-channel": (1, columns), "fp8-block": (128, 128)}
    height, width = (min(own, size) for own, size in zip(sizes[scheme], merged.shape, strict=True))
    numbers = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(rows // height, columns // width)
    for i in range(rows // height):
        for j in range(columns // width):
            block = merged[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scales[i, j] = max(float(block.abs().max() / 448), torch.finfo(torch.float32).tiny)
            numbers[i * height : (i + 1) * height, j * width : (j + 1) * width] = (block / scales[i, j]).to(
                numbers.dtype
            )
    return numbers, scales


@pytest.mark.parametrize(
    ("scheme", "method", "executor"),
    [
        *((scheme, "linear", executor) for scheme in SCHEMES for executor in ("threads", "processes")),
        *((scheme, "karcher", "threads") for scheme in SCHEMES),
    ],
)
def test_a_quantised_merge_is_the_merge_quantised(
    scheme: str, method: str, executor: str, sources: list[Path], tmp_path: Path
) -> None:
    merge_files(sources, tmp_path / "wide.safetensors", method=method, dtype="float32")
    execution = ExecutionOptions(executor=executor, workers=2 if executor == "processes" else None)
    merge_files(sources, tmp_path / "out.safetensors", method=method, quantise=scheme, execution=execution)
    merge_files(sources, tmp_path / "plain.safetensors", method=method)
    wide, found, same = (ws.load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("wide", "out", "plain"))
    fitting = {"layers.0.down_proj"} if scheme == "fp8-block" else {"layers.0.q_proj", "layers.0.down_proj"}
    for name, tensor in wide.items():
        module = name.removesuffix(".weight")
        if module not in fitting:
            assert torch.equal(found[name], same[name])
            continue
        numbers, scales = quantised(tensor, scheme)
        own = found[f"{module}.weight_scale_inv" if scheme == "fp8-block" else f"{module}.weight_scale"]
        assert torch.equal(own.flatten(), scales.flatten())
        assert torch.equal(found[name].view(torch.uint8), numbers.view(torch.uint8))
    assert len(found) == len(wide) + len(fitting)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_written_is_read_again(scheme: str, sources: list[Path], tmp_path: Path) -> None:
    merge_files(sources, tmp_path / "out", quantise=scheme, output=OutputOptions(shard_size=200_000))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    found = load_dequantised(tmp_path / "out")
    wide = ws.merge([ws.load_checkpoint(path) for path in sources])
    assert found.keys() == wide.keys()
    for name, tensor in wide.items():
        assert (found[name] - tensor.float()).norm() <= 0.03 * tensor.float().norm()
    assert reproduce(tmp_path / "out").equal


def test_a_large_matrix_with_one_scale_is_merged_twice(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for held in (2**23, 0):
        monkeypatch.setattr(quantising, "HELD", held)
        merge_files(sources, tmp_path / f"{held}" / "out.safetensors", quantise="fp8-tensor")
    outs = [(tmp_path / f"{held}" / "out.safetensors").read_bytes() for held in (2**23, 0)]
    assert outs[0] == outs[1]


def test_matrices_that_are_quantised_in_a_model_are_quantised_in_the_output(
    sources: list[Path], tmp_path: Path
) -> None:
    ignoring: Any = {"scheme": "fp8-channel", "ignore": ["q_proj"]}
    merge_files(sources, tmp_path / "fp8.safetensors", quantise=ignoring)
    first = ws.load_checkpoint(tmp_path / "fp8.safetensors")
    assert "layers.0.down_proj.weight_scale" in first
    assert "layers.0.q_proj.weight_scale" not in first
    merge_files([tmp_path / "fp8.safetensors", sources[1]], tmp_path / "out.safetensors", quantise="fp8-tensor")
    scales = {name for name in ws.load_checkpoint(tmp_path / "out.safetensors") if name.endswith("scale")}
    assert scales == {"layers.0.down_proj.weight_scale"}


def test_an_interrupted_quantised_merge_resumes(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    whole = merge_files(sources, tmp_path / "whole" / "out.safetensors", quantise="fp8-channel")
    seen = []

    def stop(event: Any) -> None:
        seen.append(event)
        if event.index > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_files(sources, out, quantise="fp8-channel", on_progress=stop, execution=ExecutionOptions(threads=1))
    report = merge_files(sources, out, quantise="fp8-channel")
    assert report.resumed > 0
    assert whole.tensors == report.tensors == 6
    assert out.read_bytes() == (tmp_path / "whole" / "out.safetensors").read_bytes()


REFUSED = {
    "scheme": ({"quantise": "fp8-chanel"}, "Did you mean 'fp8-channel'"),
    "key": ({"quantise": {"scheme": "fp8-block", "ignored": []}}, "quantise.ignored"),
    "ignore": ({"quantise": {"scheme": "fp8-block", "ignore": "q"}}, "must be a list"),
    "nothing": ({"quantise": {"scheme": "fp8-block", "ignore": ["layers"]}}, "no matrix to quantise"),
    "infinity": ({"quantise": "fp8-block", "output": OutputOptions(allow_nonfinite=True)}, "no infinity"),
    "statistics": ({"quantise": "fp8-block", "finish": lambda state: state}, "cannot be recomputed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantised_is_refused(case: str, sources: list[Path], tmp_path: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(WeightspaceError, match=message):
        merge_files(sources, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_torch_files_are_not_quantised(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match="written as safetensors"):
        merge_files(sources, tmp_path / "out.pt", quantise="fp8-block")


def test_only_the_output_of_several_documents_is_quantised(sources: list[Path], tmp_path: Path) -> None:
    models = f"models: [{{model: '{sources[0]}'}}, {{model: '{sources[1]}'}}]"
    first = f"name: first\nmerge_method: linear\n{models}\n"
    last = f"merge_method: linear\nmodels: [{{model: first}}, {{model: '{sources[1]}'}}]\nquantise: fp8-channel\n"
    (tmp_path / "recipe.yml").write_text(f"{first}---\n{last}")
    merge_files(tmp_path / "recipe.yml", tmp_path / "out.safetensors")
    assert "layers.0.q_proj.weight_scale" in ws.load_checkpoint(tmp_path / "out.safetensors")
    (tmp_path / "recipe.yml").write_text(f"{first}quantise: fp8-channel\n---\n{last}")
    with pytest.raises(WeightspaceError, match="'first' is an intermediate result"):
        merge_files(tmp_path / "recipe.yml", tmp_path / "other.safetensors")


@pytest.fixture
def llamas(tmp_path: Path) -> list[Path]:
    """Return two folders of small Llamas in bfloat16, the second tuned from the first."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_loads_a_merge_of_an_fp8_and_a_bfloat16_model_into_fp8(
    scheme: str, llamas: list[Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    if scheme != "fp8-block":
        pytest.importorskip("compressed_tensors")
    merge_files([llamas[0]], tmp_path / "fp8", method="passthrough", quantise=scheme)
    merge_files([tmp_path / "fp8", llamas[1]], tmp_path / "out", quantise=scheme)
    merge_files([tmp_path / "fp8", llamas[1]], tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        network, reference = (
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
            for name in ("out", "plain")
        )
        found, expected = network(tokens).logits, reference(tokens).logits
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert (found - expected).norm() > 1e-3 * expected.norm()  # it is quantised
    ours = load_dequantised(tmp_path / "out")
    for name, tensor in network.state_dict().items():
        if name in ours:
            assert torch.equal(tensor.bfloat16(), ours[name].bfloat16()), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_heads_and_embeddings_of_quantised_models_are_not_quantised(scheme: str, tmp_path: Path) -> None:
    weight, scale = torch.randn(256, 256).to(torch.float8_e4m3fn), torch.tensor([0.5])
    names = ("model.embed_tokens", "model.layers.0.q_proj", "lm_head")
    parts = {"weight": weight, "weight_scale": scale}
    state = {f"{name}.{part}": one.clone() for name in names for part, one in parts.items()}
    ws.save_checkpoint(state, tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    merge_files([tmp_path / "a"], tmp_path / "out", quantise=scheme, dtype="bfloat16")
    found = {name: tensor.dtype for name, tensor in ws.load_checkpoint(tmp_path / "out").items()}
    assert [name for name, dtype in found.items() if dtype == torch.float8_e4m3fn] == ["model.layers.0.q_proj.weight"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {"lm_head", "model.embed_tokens"} <= set(config.get("ignore") or config["modules_to_not_convert"])


def fp8_folder(folder: Path, seed: int, scheme: str, **settings: Any) -> Path:
    """Write a quantised model with its configuration, which ``settings`` change."""
    wide = folder.parent / f"wide-{seed}"
    ws.save_checkpoint(plain(seed), wide)
    (wide / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    merge_files([wide], folder, method="passthrough", quantise=scheme)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_of_one_scheme_are_merged_into_it(scheme: str, tmp_path: Path) -> None:
    models = [fp8_folder(tmp_path / f"fp8-{seed}", seed, scheme) for seed in (0, 1)]
    report = merge_files(models, tmp_path / "out")
    merge_files(models, tmp_path / "asked", quantise=scheme)
    assert any("as in the models (for plain weights, name a dtype)" in line for line in report.warnings)
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "asked" / "config.json").read_bytes()
    found, asked = (ws.load_checkpoint(tmp_path / name) for name in ("out", "asked"))
    assert found.keys() == asked.keys()
    assert all(torch.equal(found[name].float(), asked[name].float()) for name in found)
    assert reproduce(tmp_path / "out").equal


PLAIN: dict[str, dict[str, Any]] = {
    "a dtype": {"dtype": "bfloat16"},
    "infinities": {"output": OutputOptions(allow_nonfinite=True)},
    "another scheme": {"second": "fp8-tensor"},
    "a plain model": {"second": None},
    "scales of activations that are stored": {"settings": {"activation_scheme": "static"}},
    "blocks of another size": {"settings": {"weight_block_size": [64, 128]}},
}


@pytest.mark.parametrize("case", PLAIN)
def test_other_models_are_merged_into_plain_weights(case: str, tmp_path: Path) -> None:
    options = dict(PLAIN[case])
    second, settings = options.pop("second", "fp8-block"), options.pop("settings", {})
    models = [fp8_folder(tmp_path / "first", 0, "fp8-block", **settings)]
    models.append(tmp_path / "wide-0" if second is None else fp8_folder(tmp_path / "second", 1, second, **settings))
    merge_files(models, tmp_path / "out", **options)
    assert {tensor.dtype for tensor in ws.load_checkpoint(tmp_path / "out").values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_torch_file_of_fp8_models_has_plain_weights(tmp_path: Path) -> None:
    models = [fp8_folder(tmp_path / f"fp8-{seed}", seed, "fp8-block") for seed in (0, 1)]
    merge_files(models, tmp_path / "out.pt")
    assert {tensor.dtype for tensor in ws.load_checkpoint(tmp_path / "out.pt").values()} == {torch.bfloat16}


def test_intermediate_results_of_fp8_models_are_not_rounded(tmp_path: Path) -> None:
    models = [fp8_folder(tmp_path / f"fp8-{seed}", seed, "fp8-channel") for seed in (0, 1)]
    listed = "\n".join(f"  - model: {model}" for model in models)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"name: half\nmerge_method: linear\nmodels:\n{listed}\n---\nmerge_method: linear\n"
        f"models:\n  - model: half\n  - model: {models[0]}\ndtype: float32\n"
    )
    merge_files(recipe, tmp_path / "graph.safetensors")
    stages = ExecutionOptions(intermediate_dir=tmp_path / "stages")
    merge_files(recipe, tmp_path / "stored.safetensors", execution=stages)
    first, second = ({name: tensor.float() for name, tensor in load_dequantised(model).items()} for model in models)
    expected = ws.merge([ws.merge([first, second]), first])
    for name in ("graph", "stored"):
        found = ws.load_checkpoint(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_has_no_effect_is_reported(sources: list[Path], tmp_path: Path) -> None:
    ignoring: Any = {"scheme": "fp8-channel", "ignore": ["dwn_proj", "q_proj"]}
    report = merge_files(sources, tmp_path / "fp8.safetensors", quantise=ignoring)
    assert any("no tensor has 'dwn_proj' in its name" in line for line in report.warnings)
    report = merge_files([tmp_path / "fp8.safetensors", sources[1]], tmp_path / "out.safetensors")
    assert any("The output is not quantised: its weights are plain BF16" in line for line in report.warnings)


def test_sides_that_blocks_do_not_divide_are_named(tmp_path: Path) -> None:
    ws.save_checkpoint({"layers.0.q_proj.weight": torch.ones(200, 256)}, tmp_path / "odd.safetensors")
    with pytest.raises(WeightspaceError, match="with sides that are multiples of 128"):
        merge_files([tmp_path / "odd.safetensors"] * 2, tmp_path / "out", quantise="fp8-block")


def test_weights_without_a_configuration_are_reported(sources: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    ws.save_checkpoint(plain(0), folder)
    for number, models in enumerate(([folder, sources[1]], sources)):
        report = merge_files(models, tmp_path / f"out{number}", quantise="fp8-block")
        assert any(line.startswith("No quantization_config is written") for line in report.warnings)
    (folder / "config.json").write_text("{}")
    report = merge_files([folder, sources[1]], tmp_path / "configured", quantise="fp8-block")
    assert not any(line.startswith("No quantization_config is written") for line in report.warnings)
    report = merge_files([folder, sources[1]], tmp_path / "file.safetensors", quantise="fp8-block")
    (line,) = [line for line in report.warnings if line.startswith("No quantization_config is written")]
    assert line.endswith("the output is a single file. Write a folder.")


def test_fp8_as_a_dtype_leads_to_schemes(tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightspaceError, match=r"expected one of float32, .* --quantise fp8-block"):
        ws.merge_files([tmp_path / "a.safetensors"], tmp_path / "out", method="passthrough", dtype="float8_e4m3fn")
