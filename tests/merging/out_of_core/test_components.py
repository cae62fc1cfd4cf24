"""Folders of components: sentence-transformers models and diffusers pipelines, merged part by part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from component_models import pipeline, sentence_model

import weightspace as ws
from weightspace.checkpoints import load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import OutputOptions, ReadingOptions
from weightspace.runs import average_run, find_checkpoints

SENTENCES = ["a b c", "c c a", "b"]


@pytest.fixture(scope="module")
def sentence_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two models in today's layout, and the second one in the layout of earlier versions."""
    home = tmp_path_factory.mktemp("sentences")
    a, b = (sentence_model(home / name, seed) for seed, name in enumerate("ab"))
    return a, b, sentence_model(home / "old", 1, in_subfolder=True)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pipeline, and another one in shards of the variant fp16."""
    home = tmp_path_factory.mktemp("pipelines")
    pipeline(0).save_pretrained(home / "a")
    pipeline(1).save_pretrained(home / "b", variant="fp16", max_shard_size="40KB")
    return home / "a", home / "b"


def encoder(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def averaged(a: torch.nn.Module, b: torch.nn.Module) -> torch.nn.Module:
    """Return the first network with the mean of both networks' weights, made by hand."""
    others = dict(b.named_parameters())
    with torch.no_grad():
        for name, weight in a.named_parameters():
            weight.copy_(((weight.double() + others[name].double()) / 2).float())
    return a


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (2, 0)])
def test_a_soup_of_sentence_encoders_encodes_as_the_average_made_by_hand(
    sentence_models: tuple[Path, Path, Path], one: int, other: int, tmp_path: Path
) -> None:
    a, b = sentence_models[one], sentence_models[other]
    ws.merge_files([a, b], tmp_path / "soup")
    expected = averaged(encoder(a), encoder(b)).encode(SENTENCES)
    assert np.array_equal(encoder(tmp_path / "soup").encode(SENTENCES), expected)
    assert not np.allclose(encoder(a).encode(SENTENCES), expected)
    assert {str(path.relative_to(tmp_path / "soup")) for path in (tmp_path / "soup").rglob("*.safetensors")} == {
        str(path.relative_to(a)) for path in a.rglob("*.safetensors")
    }


def test_the_provenance_names_the_files_of_all_modules(
    sentence_models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Files of two modules have the same name, so their folders tell them apart."""
    ws.merge_files(sentence_models[:2], tmp_path / "out")
    inputs = json.loads(load_metadata(tmp_path / "out")["inputs"])
    names = [entry["name"] for entry in inputs]
    assert names == [f"{model}/{file}" for model in "ab" for file in ("model.safetensors", "2_Dense/model.safetensors")]
    assert "`a/2_Dense/model.safetensors`" in (tmp_path / "out/README.md").read_text()


def test_one_module_is_merged_and_the_others_are_copied(
    sentence_models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    a, b, _ = sentence_models
    ws.merge_files([a, b], tmp_path / "m", reading=ReadingOptions(components=["2_Dense"]))
    assert (tmp_path / "m/model.safetensors").read_bytes() == (a / "model.safetensors").read_bytes()
    merged, one = (ws.load_checkpoint(path / "2_Dense/model.safetensors") for path in (tmp_path / "m", a))
    assert not torch.equal(merged["linear.weight"], one["linear.weight"])
    assert ws.reproduce(tmp_path / "m").equal


def test_a_pipeline_is_merged_component_by_component(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    a, b = pipelines
    ws.merge_files([a, b], tmp_path / "m", output=OutputOptions(shard_size=40_000))
    assert (tmp_path / "m/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    merged, one = StableDiffusionPipeline.from_pretrained(tmp_path / "m"), StableDiffusionPipeline.from_pretrained(a)
    other = StableDiffusionPipeline.from_pretrained(b, variant="fp16")
    for name in ("unet", "vae", "text_encoder"):
        expected = averaged(getattr(one, name), getattr(other, name)).state_dict()
        found = getattr(merged, name).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (a / name).read_bytes()
    assert ws.reproduce(tmp_path / "m").equal
    assert "library_name: diffusers" in (tmp_path / "m/README.md").read_text()
    ws.merge_files([a, b], tmp_path / "m")  # replaces it


def test_one_component_of_a_pipeline_is_merged(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pipelines
    unet = ReadingOptions(components=["unet"])
    ws.merge_files([a, b], tmp_path / "m", reading=unet)
    ws.merge_files([a, b], tmp_path / "unet.safetensors", reading=unet)
    recipe = tmp_path / "recipe.yml"
    models = "\n".join(f"  - model: {path}" for path in (a, b))
    recipe.write_text(f"merge_method: linear\nparameters: {{weight: 1}}\ncomponents: [unet]\nmodels:\n{models}\n")
    ws.merge_files(recipe, tmp_path / "r")
    merged = ws.load_checkpoint(tmp_path / "m/unet")
    for other in (tmp_path / "unet.safetensors", tmp_path / "r/unet"):
        state = ws.load_checkpoint(other)
        assert state.keys() == merged.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in merged.items())
    same = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "m" / same).read_bytes() == (a / same).read_bytes()
    assert json.loads(load_metadata(tmp_path / "m")["parameters"])["components"] == ["unet"]
    assert ws.reproduce(tmp_path / "m").equal
    assert ws.reproduce(tmp_path / "r").equal


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_component_merges_with_the_network_of_another_model(
    form: str, pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    a, _ = pipelines
    ws.save_checkpoint(ws.load_checkpoint(a / "unet"), tmp_path / "b.safetensors")
    other = a / "unet" if form == "folder" else tmp_path / "b.safetensors"
    ws.merge_files([a, other], tmp_path / "m", reading=ReadingOptions(components=["unet"]))
    merged, original = (ws.load_checkpoint(path) for path in (tmp_path / "m", a))
    assert all(torch.equal(merged[name], tensor) for name, tensor in original.items())


def test_pipelines_of_a_run_are_averaged(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    for step, path in enumerate(pipelines):
        shutil.copytree(path, tmp_path / f"run/step_{step}")
    average_run(find_checkpoints(tmp_path / "run"), tmp_path / "average")
    ws.merge_files(list(pipelines), tmp_path / "merged")
    average, merged = (ws.load_checkpoint(tmp_path / name) for name in ("average", "merged"))
    assert all(torch.equal(average[name], tensor) for name, tensor in merged.items())


def test_components_that_cannot_be_merged_are_refused(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pipelines
    with pytest.raises(WeightspaceError, match=r"Unknown component of .* 'unett'.*Did you mean 'unet'"):
        ws.merge_files([a, b], tmp_path / "m", reading=ReadingOptions(components=["unett"]))
    with pytest.raises(CheckpointError, match=r"--component unet .* no model is one"):
        ws.merge_files([a / "vae", b / "vae"], tmp_path / "m", reading=ReadingOptions(components=["unet"]))
    lacking = shutil.copytree(b, tmp_path / "lacking")
    index = json.loads((lacking / "model_index.json").read_text())
    (lacking / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    with pytest.raises(CheckpointError, match=r"lacking has no component 'vae', which .*a has.*--component unet"):
        ws.merge_files([a, lacking], tmp_path / "m")
    for path in (lacking / "unet").glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no weights of 'unet'"):
        ws.merge_files([a, lacking], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_dense_module_without_weights_is_refused_even_if_all_models_lack_them(
    sentence_models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Its configuration would be copied, and sentence-transformers would start it at random or fail."""
    models = [shutil.copytree(model, tmp_path / f"lacking-{model.name}") for model in sentence_models[:2]]
    for path in models:
        (path / "2_Dense/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense holds no weights of '2_Dense'"):
        ws.merge_files(models, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("path", ["../evil", "/etc", "..", 3, None])
def test_modules_outside_of_the_folder_are_refused(
    sentence_models: tuple[Path, Path, Path], path: object, tmp_path: Path
) -> None:
    evil = shutil.copytree(sentence_models[0], tmp_path / "evil")
    listed = json.loads((evil / "modules.json").read_text())
    (evil / "modules.json").write_text(json.dumps([*listed, {"idx": 4, "path": path, "type": "x.Dense"}]))
    with pytest.raises(CheckpointError, match="expected the name of a folder beside it"):
        ws.merge_files([evil, sentence_models[1]], tmp_path / "m")


def test_quantised_outputs_of_pipelines_are_refused(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match="quantise does not apply"):
        ws.merge_files(list(pipelines), tmp_path / "m", quantise="fp8-channel")
