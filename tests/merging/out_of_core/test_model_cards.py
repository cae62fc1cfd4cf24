"""Model cards: the Hub's names of what went in, and the library, only where they are known."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import weightspace as ws


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(name: str, files: dict[str, Any]) -> None:
    ws.save_checkpoint({"w": torch.ones(3)}, name)
    for file, content in files.items():
        (Path(name) / file).write_text(json.dumps(content))


def header() -> dict[str, Any]:
    ws.merge_files(["a", "b"], "out")
    _, text, _ = Path("out/README.md").read_text().split("---\n", 2)
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    ("files", "library"),
    [
        ({}, None),
        ({"config.json": {"width": 3}}, None),
        ({"config.json": {"model_type": "bert"}}, "transformers"),
        ({"config.json": {"_diffusers_version": "0.30", "_class_name": "UNet2DModel"}}, "diffusers"),
        ({"config.json": {"architecture": "resnet18", "pretrained_cfg": {}}}, "timm"),
        ({"config.json": {"model_type": "bert"}, "modules.json": []}, "sentence-transformers"),
        ({"open_clip_config.json": {"model_cfg": {}}}, "open_clip"),
    ],
)
def test_the_library_is_named_where_a_file_names_it(files: dict[str, Any], library: str | None) -> None:
    for name in "ab":
        model(name, files)
    assert header().get("library_name") == library


def test_the_models_that_went_in_are_named_as_the_hub_knows_them() -> None:
    model("a", {"config.json": {"model_type": "bert", "_name_or_path": "org/base-model"}})
    model("b", {"config.json": {"model_type": "bert", "_name_or_path": "/home/somebody/model"}})
    found = header()
    assert found["base_model"] == ["org/base-model"]
    assert found["base_model_relation"] == "merge"
    assert found["tags"] == ["merge", "weightspace"]


@pytest.mark.parametrize("named", ["", "x", "/tmp/x", "../x/y", "there/model", "a/b\n- evil", 3, None])
def test_a_name_that_is_not_the_hubs_is_left_out(named: Any) -> None:
    Path("there/model").mkdir(parents=True)  # a folder here, not a name of the Hub
    for name in "ab":
        model(name, {"config.json": {"model_type": "bert", "_name_or_path": named}})
    assert "base_model" not in header()


def test_the_name_in_a_url_is_the_hubs() -> None:
    from weightspace.merging.out_of_core.model_card import _hub_name

    nowhere = Path("nowhere")
    for url in ("hf://org/model", "hf://org/model@main", "hf://org/model+adapter", "hf://org/model/sub/folder"):
        assert _hub_name(url, nowhere) == "org/model"
    assert _hub_name("s3://bucket/model", nowhere) is None
