"""Adapters in single files of kohya and diffusers: matched with models by component and flattened name, or refused."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora import read_adapter
from weightspace.merging import ExecutionOptions, merge_adapters, merge_files

FAST = ExecutionOptions(fsync=False)
A, B = torch.arange(10.0).view(2, 5), torch.arange(6.0).view(3, 2)


def saved(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    ws.save_checkpoint(state, path, metadata=metadata)
    return path


def pair(name: str, a: Tensor = A, b: Tensor = B, alpha: Any = None) -> dict[str, Tensor]:
    state = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
    return state if alpha is None else state | {f"{name}.alpha": alpha}


def applied(model: Path, adapter: Path, tmp_path: Path) -> dict[str, Tensor]:
    out = tmp_path / "applied.safetensors"
    merge_files([f"{model}+{adapter}"], out, method="passthrough", execution=FAST)
    return ws.load_checkpoint(out)


def test_a_file_is_read_without_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", pair("lora_unet_x", alpha=torch.tensor(3.0)))
    code = (
        "import sys; from weightspace.lora import read_adapter; from pathlib import Path;"
        f"scale = read_adapter(Path({str(path)!r})).factors['lora_unet_x.weight'].scale;"
        "sys.exit('torch' in sys.modules or scale != 1.5)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(3.0, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)]
    + [torch.tensor([3.0]), torch.tensor(3)],
    ids=str,
)
def test_alpha_over_rank_is_the_scale_in_any_dtype(alpha: Tensor, tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        adapter = read_adapter(saved(tmp_path / name, pair("lora_unet_x", alpha=alpha)))
        assert adapter.factors["lora_unet_x.weight"].scale == 1.5
    adapter = read_adapter(saved(tmp_path / "b.safetensors", pair("unet.x.y", alpha=alpha)))
    assert adapter.factors["unet.x.y.weight"].scale == 1.5


def test_a_change_is_added_to_the_tensor_of_its_flattened_name(tmp_path: Path) -> None:
    model = {"down_blocks.0.proj_in.weight": torch.ones(3, 5), "down.blocks_1.proj.weight": torch.ones(3, 5)}
    saved(tmp_path / "m.safetensors", model)
    saved(tmp_path / "a.safetensors", pair("lora_unet_down_blocks_0_proj_in", alpha=torch.tensor(1.0)))
    found = applied(tmp_path / "m.safetensors", tmp_path / "a.safetensors", tmp_path)
    torch.testing.assert_close(found["down_blocks.0.proj_in.weight"], 1 + 0.5 * B @ A)
    assert torch.equal(found["down.blocks_1.proj.weight"], model["down.blocks_1.proj.weight"])


def test_a_kernel_of_size_one_may_be_missing_on_either_side(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors", {"c.weight": torch.zeros(3, 5, 1, 1), "l.weight": torch.zeros(3, 5)})
    wide = pair("lora_unet_l", A[..., None, None], B[..., None, None])
    saved(tmp_path / "a.safetensors", pair("lora_unet_c") | wide)
    found = applied(tmp_path / "m.safetensors", tmp_path / "a.safetensors", tmp_path)
    assert torch.equal(found["c.weight"].view(3, 5), B @ A)
    assert torch.equal(found["l.weight"], B @ A)


def test_the_component_of_a_model_is_the_one_that_it_has(tmp_path: Path) -> None:
    clip = "text_model.encoder.layers.0.mlp.fc1"
    saved(tmp_path / "m.safetensors", {f"{clip}.weight": torch.zeros(3, 5)})
    large = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", torch.ones(2, 7), torch.ones(8, 2))
    state = pair("lora_unet_x") | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1") | large
    saved(tmp_path / "a.safetensors", state)
    source, out = f"{tmp_path}/m.safetensors+{tmp_path}/a.safetensors", tmp_path / "out.safetensors"
    report = merge_files([source], out, method="passthrough", execution=FAST)
    assert torch.equal(ws.load_checkpoint(out)[f"{clip}.weight"], B @ A)
    (note,) = (line for line in report.warnings if "left out" in line)
    assert "denoiser (1 tensors), text encoder 2 (1 tensors)" in note


def pipeline(folder: Path) -> Path:
    """Save a pipeline of a U-Net, a text encoder and a VAE, with a tokenizer."""
    parts = {"unet": "diffusers", "text_encoder": "transformers", "vae": "diffusers", "tokenizer": "transformers"}
    for name, library in parts.items():
        file = "diffusion_pytorch_model" if library == "diffusers" else "model"
        if name != "tokenizer":
            saved(folder / name / f"{file}.safetensors", {"a.weight": torch.ones(3, 5), "b.weight": torch.ones(2)})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text('{"a": 0}')
    (folder / "model_index.json").write_text(json.dumps({name: [library, "Class"] for name, library in parts.items()}))
    return folder


@pytest.mark.parametrize(
    "prefixes", [("lora_unet_", "lora_te1_"), ("unet.", "text_encoder.")], ids=["kohya", "diffusers"]
)
def test_all_components_of_a_pipeline_are_changed(prefixes: tuple[str, str], tmp_path: Path) -> None:
    unet, text = prefixes
    saved(
        tmp_path / "a.safetensors",
        pair(f"{unet}a", alpha=torch.tensor(2.0)) | pair(f"{text}a", -A, alpha=torch.tensor(2.0)),
    )
    out = tmp_path / "out"
    source = f"{pipeline(tmp_path / 'pipe')}+{tmp_path}/a.safetensors"
    report = merge_files([source], out, method="passthrough", execution=FAST)
    found = ws.load_checkpoint(out)
    assert torch.equal(found["unet.a.weight"], 1 + B @ A)
    assert torch.equal(found["text_encoder.a.weight"], 1 - B @ A)
    assert torch.equal(found["vae.a.weight"], torch.ones(3, 5))
    assert not any("left out" in line for line in report.warnings)


def test_an_adapter_of_a_component_that_a_pipeline_lacks_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", pair("lora_unet_a") | pair("lora_te2_a"))
    source = f"{pipeline(tmp_path / 'pipe')}+{tmp_path}/a.safetensors"
    with pytest.raises(CheckpointError, match=r"changes 'lora_te2_a.weight', which"):
        merge_files([source], tmp_path / "out", method="passthrough", execution=FAST)


def test_queries_keys_and_values_are_thirds_of_open_clips_parameter(tmp_path: Path) -> None:
    front = "conditioner.embedders.1.model.transformer.resblocks.0.attn"
    saved(tmp_path / "m.safetensors", {f"{front}.in_proj_weight": torch.ones(9, 5), "x.bias": torch.ones(9)})
    module = "lora_te2_text_model_encoder_layers_0_self_attn"
    loha = {f"{module}_v_proj.hada_w{side}_{part}": (A if part == "b" else B) for side in "12" for part in "ab"}
    saved(tmp_path / "a.safetensors", pair(f"{module}_q_proj", alpha=torch.tensor(1.0)) | loha)
    found = applied(tmp_path / "m.safetensors", tmp_path / "a.safetensors", tmp_path)[f"{front}.in_proj_weight"]
    assert torch.equal(found, 1 + torch.cat([0.5 * B @ A, torch.zeros(3, 5), (B @ A).square()]))
    wide = pair(f"{module}_k_proj", b=torch.ones(4, 2))
    dora = pair(f"{module}_k_proj") | {f"{module}_k_proj.dora_scale": torch.ones(3, 1)}
    for state in (wide, dora):
        saved(tmp_path / "a.safetensors", state)
        with pytest.raises(CheckpointError, match=r"expected the same shape, and no DoRA"):
            applied(tmp_path / "m.safetensors", tmp_path / "a.safetensors", tmp_path)


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Tensor], str]] = {
    "two tensors of one flattened name": (
        {"a_b.c.weight": (3, 5), "a.b_c.weight": (3, 5)},
        pair("lora_unet_a_b_c"),
        r"could be 'a_b.c.weight' or 'a.b_c.weight'",
    ),
    "two modules of one tensor": (
        {"a.b.weight": (3, 5)},
        pair("lora_unet_a_b") | pair("lora_transformer_a_b"),
        "which are the same tensor",
    ),
    "a missing module": ({"a.b.weight": (3, 5)}, pair("lora_unet_a_c"), "changes 'lora_unet_a_c.weight', which"),
    "another shape": ({"a.b.weight": (4, 5)}, pair("lora_unet_a_b"), r"of shape \(3, 5\), but"),
    "magnitudes of a convolution's inputs for a linear layer": (
        {"x.weight": (3, 18)},
        {f"lora_unet_x.hada_w{side}_a": torch.ones(3, 2) for side in "12"}
        | {f"lora_unet_x.hada_w{side}_b": torch.ones(2, 18) for side in "12"}
        | {"lora_unet_x.dora_scale": torch.ones(1, 2, 1, 1)},
        "2 magnitudes of DoRA",
    ),
    "two components that a model may be": (
        {"a.b.weight": (3, 5)},
        pair("lora_te1_a_b") | pair("lora_te2_a_b"),
        "may be the text encoder or the text encoder 2",
    ),
    "a component that a file of several lacks": (
        {"model.diffusion_model.a.weight": (3, 5), "cond_stage_model.transformer.a.weight": (3, 5)},
        pair("lora_te2_a"),
        "changes 'lora_te2_a.weight', which",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_model_is_refused(case: str, tmp_path: Path) -> None:
    shapes, state, expected = REFUSED[case]
    saved(tmp_path / "m.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()})
    saved(tmp_path / "a.safetensors", state)
    with pytest.raises(CheckpointError, match=expected):
        applied(tmp_path / "m.safetensors", tmp_path / "a.safetensors", tmp_path)
    assert not (tmp_path / "applied.safetensors").exists()


ONES = torch.ones
BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "a bias of a factor": (
        {**pair("unet.x.y"), "unet.x.y.lora_B.bias": ONES(3)},
        "'unet.x.y.lora_B.bias', which isn't",
    ),
    "an unknown prefix": (pair("lora_prior_unet_x"), "'lora_prior_unet_x.lora_down.weight', which isn't understood"),
    "OFT": ({**pair("lora_unet_x"), "lora_unet_y.oft_blocks": ONES(2, 2, 2)}, "an adapter of OFT .'lora_unet_y.oft_"),
    "GLoRA": (
        {"lora_unet_x.alpha": torch.tensor(1.0), "lora_unet_x.a1.weight": ONES(2, 2)},
        "GLoRA .* Apply it to its model",
    ),
    "(IA)³": (
        {"lora_unet_x.weight": ONES(2), "lora_unet_x.on_input": torch.tensor(False)},
        r"\(IA\)³ .* Apply it to its model",
    ),
    "a tensor of a model": ({**pair("lora_unet_x"), "x.weight": ONES(3)}, "'x.weight', which isn't understood"),
    "PEFT's weights alone": ({"base_model.model.q.lora_A.weight": A}, "without its adapter_config.json"),
    "half a pair": ({"lora_unet_x.lora_down.weight": A}, "expected lora_down and lora_up"),
    "an alpha alone": ({"lora_unet_x.alpha": torch.tensor(1.0)}, "expected lora_down and lora_up"),
    "two products": ({**pair("lora_unet_x"), "lora_unet_x.diff": ONES(3, 5)}, "expected lora_down and lora_up"),
    "two spellings of a factor": (
        {**pair("unet.x.y"), "unet.x.y.lora_A.weight": A},
        "has both 'unet.x.y.lora_down.weight' and 'unet.x.y.lora_A.weight'",
    ),
    "two formats": (pair("lora_unet_x") | pair("unet.x.y"), "names of kohya .* and of diffusers"),
    "ranks that differ": (pair("lora_unet_x", b=ONES(3, 3)), "don't fit each other"),
    "a core of another rank": ({**pair("lora_unet_x"), "lora_unet_x.lora_mid.weight": ONES(3, 3, 3, 3)}, "don't fit"),
    "half a Kronecker product": ({"lora_unet_x.lokr_w1": ONES(2, 2), "lora_unet_x.lokr_w2_a": ONES(2, 2)}, "don't fit"),
    "one Hadamard core": (
        {f"lora_unet_x.hada_w{side}_{part}": ONES(2, 2) for side in "12" for part in "ab"}
        | {"lora_unet_x.hada_t1": ONES(2, 2, 3, 3)},
        "don't fit",
    ),
    "empty factors": (pair("lora_unet_x", ONES(0, 5), ONES(3, 0)), "don't fit|scale"),
    "integers": (pair("lora_unet_x", A.to(torch.int8)), "is I8; expected floats"),
    "an alpha of NaN": (pair("lora_unet_x", alpha=torch.tensor(torch.nan)), "is nan; expected a finite number"),
    "several alphas": (pair("lora_unet_x", alpha=ONES(2)), "expected one number"),
    "magnitudes of another number": (
        {**pair("lora_unet_x"), "lora_unet_x.dora_scale": ONES(4, 1)},
        "DoRA's magnitudes",
    ),
    "magnitudes of a difference": (
        {"lora_unet_x.diff": ONES(3, 5), "lora_unet_x.dora_scale": ONES(3, 1)},
        "DoRA's magnitudes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_understood_is_refused_by_the_name_of_a_tensor(case: str, tmp_path: Path) -> None:
    state, expected = BAD[case]
    with pytest.raises(CheckpointError, match=expected) as error:
        read_adapter(saved(tmp_path / "a.safetensors", state))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a.safetensors") in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"unet.r": "x"}', '{"unet.r": 2, "unet.use_qalora": true}'])
def test_a_damaged_or_foreign_configuration_is_refused(text: str, tmp_path: Path) -> None:
    state = {"unet.x.y.lora_A.weight": A, "unet.x.y.lora_B.weight": B}
    with pytest.raises(CheckpointError, match=r"JSON object|a rank of at least 1|QALoRA"):
        read_adapter(saved(tmp_path / "a.safetensors", state, {"lora_adapter_metadata": text}))


def test_magnitudes_and_the_configuration_agree(tmp_path: Path) -> None:
    state = {"unet.x.y.lora_A.weight": A, "unet.x.y.lora_B.weight": B}
    for dora, more in ((True, {}), (False, {"unet.x.y.lora_magnitude_vector": torch.ones(3)})):
        text = json.dumps({"unet.r": 2, "unet.use_dora": dora})
        with pytest.raises(CheckpointError, match=f"use_dora is {str(dora).lower()}"):
            read_adapter(saved(tmp_path / "a.safetensors", {**state, **more}, {"lora_adapter_metadata": text}))


def test_the_configuration_of_a_single_model_has_no_prefix(tmp_path: Path) -> None:
    """As ``save_lora_adapter`` of diffusers' models writes it."""
    state = {"conv_in.lora_A.weight": A, "conv_in.lora_B.weight": B}
    path = saved(tmp_path / "a.safetensors", state, {"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 5})})
    assert read_adapter(path).factors["unet.conv_in.weight"].scale == 2.5


def test_a_file_behind_a_url_is_read_with_its_alphas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    path = saved(tmp_path / "a.safetensors", pair("lora_unet_x", alpha=torch.tensor(3.0)))
    system = fsspec.filesystem("memory")
    system.put_file(str(path), "/kohya/a.safetensors")
    system.put_file(str(saved(tmp_path / "d.safetensors", pair("unet.x"))), "/d/pytorch_lora_weights.safetensors")
    saved(tmp_path / "m.safetensors", {"x.weight": torch.zeros(3, 5)})
    for url, scale in (("memory://kohya/a.safetensors", 1.5), ("memory://d", 1.0)):
        sources = [f"{tmp_path}/m.safetensors+{url}"]
        merge_files(sources, tmp_path / "out.safetensors", method="passthrough", execution=FAST)
        assert torch.equal(ws.load_checkpoint(tmp_path / "out.safetensors")["x.weight"], scale * B @ A)
    system.rm("/kohya", recursive=True)
    system.rm("/d", recursive=True)


def test_formats_are_mixed_by_component_and_name(tmp_path: Path, write: Any) -> None:
    """PEFT's folders don't name their component: it is the one of the others with their modules."""
    one = saved(tmp_path / "k.safetensors", pair("lora_unet_input_blocks_1_1_proj_in", alpha=torch.tensor(4.0)))
    two = saved(tmp_path / "d.safetensors", pair("unet.down_blocks.0.attentions.0.proj_in"))
    peft = {
        "down_blocks.0.attentions.0.proj_in.lora_A.weight": A,
        "down_blocks.0.attentions.0.proj_in.lora_B.weight": B,
    }
    three = write("p", peft, r=2, lora_alpha=2)
    with pytest.raises(WeightspaceError, match="in the formats kohya and diffusers and peft"):
        merge_adapters([one, two, three], tmp_path / "x.safetensors", method="linear")
    expected = 2 * (B @ A) - (B @ A) + 3 * (B @ A)
    for written, out in (("kohya", "x.safetensors"), ("diffusers", "y.safetensors"), ("peft", "z")):
        options = {"method": "linear", "weights": [1, -1, 3], "format": written}
        report = merge_adapters([one, two, three], tmp_path / out, **options)
        assert list(report.ranks.values()) == [6]
        saved(tmp_path / "m.safetensors", {"down_blocks.0.attentions.0.proj_in.weight": torch.zeros(3, 5)})
        (found,) = applied(tmp_path / "m.safetensors", tmp_path / out, tmp_path).values()
        torch.testing.assert_close(found, expected)
    other = write("q", {"conv_in.lora_A.weight": A, "conv_in.lora_B.weight": B})
    with pytest.raises(CheckpointError, match="no component of the other adapters has them"):
        merge_adapters([one, other], tmp_path / "v.safetensors", format="kohya")


def test_a_rank_is_reached_by_the_singular_values_of_the_sum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    factors = [(torch.randn(rank, 20), torch.randn(12, rank)) for rank in (3, 4)]
    inputs = [
        saved(tmp_path / f"{len(a)}.safetensors", pair("lora_unet_x", a, b, torch.tensor(float(len(a)))))
        for a, b in factors
    ]
    whole = sum(b.double() @ a.double() for a, b in factors)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    report = merge_adapters(inputs, tmp_path / "m.safetensors", method="linear", weights=[1, 1], rank=2)
    saved(tmp_path / "zero.safetensors", {"x.weight": torch.zeros(12, 20)})
    (found,) = applied(tmp_path / "zero.safetensors", tmp_path / "m.safetensors", tmp_path).values()
    best = left[:, :2] * values[:2] @ right[:2]
    torch.testing.assert_close(found, best.float(), rtol=1e-5, atol=1e-5)
    assert report.errors["lora_unet_x.weight"] == pytest.approx(float(values[2:].norm() / values.norm()))
    report = merge_adapters(inputs, tmp_path / "m.safetensors", method="linear", weights=[1, 1], rank=7)
    (found,) = applied(tmp_path / "zero.safetensors", tmp_path / "m.safetensors", tmp_path).values()
    torch.testing.assert_close(found, whole.float(), rtol=1e-6, atol=1e-5)
    assert report.errors == {"lora_unet_x.weight": 0.0}
    for rank in (0, -1, 1.5, True):
        with pytest.raises(WeightspaceError, match="The rank is"):
            merge_adapters(inputs, tmp_path / "m.safetensors", rank=rank)  # type: ignore[arg-type]


def test_an_output_of_the_wrong_kind_or_name_is_refused(tmp_path: Path, write: Any) -> None:
    flux = saved(tmp_path / "f.safetensors", pair("lora_unet_double_blocks_0_img_attn_qkv"))
    language = write("p", {"layers.0.q.lora_A.weight": A, "layers.0.q.lora_B.weight": B})
    (tmp_path / "mine.safetensors").write_text("my thesis")
    cases: list[tuple[Path, str, dict[str, Any], str]] = [
        (flux, "folder", {}, "expected one that ends in .safetensors"),
        (flux, "mine.safetensors", {}, "mine.safetensors"),
        (flux, "x.safetensors", {"format": "peft"}, "would be a folder"),
        (flux, "x.safetensors", {"format": "diffuser"}, "Did you mean 'diffusers'"),
        (flux, "x.safetensors", {"format": "diffusers"}, "can't be converted to diffusers' names"),
        (language, "x.safetensors", {"format": "kohya"}, "doesn't say which component"),
        (language, "x.safetensors", {"format": "diffusers"}, "doesn't say which component"),
    ]
    for adapter, out, options, expected in cases:
        with pytest.raises(WeightspaceError, match=expected):
            merge_adapters([adapter], tmp_path / out, method="linear", **options)
    assert (tmp_path / "mine.safetensors").read_text() == "my thesis"
    assert not (tmp_path / "x.safetensors").exists()


def test_any_network_is_adapted_by_lycoris_files(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors", {"encoder.layer_1.proj.weight": torch.zeros(3, 5)})
    saved(tmp_path / "a.safetensors", pair("lycoris_encoder_layer_1_proj"))
    merge_adapters([tmp_path / "a.safetensors"], tmp_path / "b.safetensors", method="linear")
    for adapter in ("a", "b"):
        found = applied(tmp_path / "m.safetensors", tmp_path / f"{adapter}.safetensors", tmp_path)
        assert torch.equal(found["encoder.layer_1.proj.weight"], B @ A)


def test_the_header_of_a_merged_file_says_where_it_comes_from(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", pair("lora_unet_x"))
    merge_adapters([path, path], tmp_path / "out.safetensors", rank=1)
    metadata = ws.checkpoints.load_metadata(tmp_path / "out.safetensors")
    assert json.loads(metadata["parameters"])["rank"] == 1
    assert [entry["name"] for entry in json.loads(metadata["inputs"])] == ["a.safetensors"] * 2


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("sd_v1", "sdxl_base_v1-0", True),
        ("sd_v1", "sd_v2_v", True),
        ("flux1", "sd3m", True),
        ("sd_v1", "sd1.5", False),
        ("sdxl_v10", "sdxl_", False),
        ("flux1", "flux1", False),
    ],
)
def test_files_of_kohya_for_other_architectures_are_warned_of(
    one: str, other: str, differ: bool, tmp_path: Path
) -> None:
    """Their modules may have equal names and shapes, as the queries of two U-Nets of width 640 have."""
    paths = [
        saved(tmp_path / f"{number}.safetensors", pair("lora_unet_x"), {"ss_base_model_version": version})
        for number, version in enumerate((one, other))
    ]
    unnamed = saved(tmp_path / "unnamed.safetensors", pair("lora_unet_x"))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        merge_adapters([paths[0], unnamed, paths[1]], tmp_path / "out.safetensors", method="linear")
    lines = [str(one.message) for one in found]
    assert len(lines) == differ
    assert all(f"1.safetensors was trained on {other}, but" in line for line in lines)
