"""An adapter that kohya's sd-scripts made, against the weights that their ``merge_to`` computes (tests/data/kohya)."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.lora import read_adapter
from weightspace.merging import merge_adapters, merge_files

DATA = Path(__file__).parents[1] / "data" / "kohya"
FILES = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Return a pipeline with the tensors that the adapter changes."""
    folder, state = tmp_path / "pipeline", ws.load_checkpoint(DATA / "model.safetensors")
    for part, file in FILES.items():
        own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
        ws.save_checkpoint(own, folder / part / file)
    (folder / "model_index.json").write_text(json.dumps({part: ["diffusers", "Model"] for part in FILES}))
    return folder


def test_applied_it_gives_the_weights_of_sd_scripts(pipeline: Path, tmp_path: Path) -> None:
    merge_files([f"{pipeline}+{DATA / 'adapter.safetensors'}"], tmp_path / "out", method="passthrough")
    found, expected = ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(DATA / "expected.safetensors")
    assert found.keys() == expected.keys()
    assert len(expected) == 85
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_written_again_it_gives_the_same_weights(format: str, pipeline: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    merge_adapters([DATA / "adapter.safetensors"], again, method="linear", format=format)
    merge_files([f"{pipeline}+{again}"], tmp_path / "out", method="passthrough")
    found, expected = ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(DATA / "expected.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_ranks_and_alphas_are_those_of_sd_scripts() -> None:
    ranks = {factors.rank for factors in read_adapter(DATA / "adapter.safetensors").factors.values()}
    assert ranks == {2, 3}  # of convolutions, and of all others


def test_ranks_that_are_filled_up_with_zeros_are_said(tmp_path: Path) -> None:
    for written, said in (
        ("kohya", "ranks 2 to 3, all written as rank 3, filled up with zeros"),
        ("peft", "ranks 2 to 3"),
    ):
        state = ws.load_checkpoint(DATA / "adapter.safetensors")
        unet = {name: tensor for name, tensor in state.items() if name.startswith("lora_unet_")}
        ws.save_checkpoint(unet, tmp_path / "unet.safetensors")
        out = tmp_path / ("out" if written == "peft" else "out.safetensors")
        arguments = ["merge-adapters", tmp_path / "unet.safetensors", "-m", "linear", "--format", written, "-o", out]
        done = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert done.stdout.splitlines()[0] == f"79 tensors, {said}"
