"""An adapter that kohya's sd-scripts made, against the weights that their ``merge_to`` computes (tests/data/kohya)."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.errors import CheckpointError
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


@pytest.mark.parametrize("kernel", [(), (1, 1)])
@pytest.mark.parametrize("ends", ["lora_down lora_up", "lora_A lora_B"])
@pytest.mark.parametrize(("a_ones", "b_ones"), [(2, 0), (0, 2), (1, 2)])
def test_kernels_of_one_may_be_left_out_in_either_factor(
    a_ones: int, b_ones: int, ends: str, kernel: tuple[int, ...], tmp_path: Path
) -> None:
    a, b = torch.randn(2, 5), torch.randn(3, 2)
    weight = torch.randn(3, 5, *kernel)
    down, up = ends.split()
    prefix = "lora_unet_" if down == "lora_down" else "unet."
    state = {f"{prefix}conv_in.{down}.weight": a.view(2, 5, *[1] * a_ones)}
    ws.save_checkpoint(
        state | {f"{prefix}conv_in.{up}.weight": b.view(3, 2, *[1] * b_ones)}, tmp_path / "l.safetensors"
    )
    ws.save_checkpoint({"conv_in.weight": weight}, tmp_path / "m.safetensors")
    out = tmp_path / "out.safetensors"
    merge_files([f"{tmp_path / 'm.safetensors'}+{tmp_path / 'l.safetensors'}"], out, method="passthrough")
    torch.testing.assert_close(ws.load_checkpoint(out)["conv_in.weight"], weight + (b @ a).view(weight.shape))
    merge_adapters([tmp_path / "l.safetensors"], tmp_path / "again.safetensors", method="linear")
    again = f"{tmp_path / 'm.safetensors'}+{tmp_path / 'again.safetensors'}"
    merge_files([again], tmp_path / "out2.safetensors", method="passthrough")
    found = ws.load_checkpoint(tmp_path / "out2.safetensors")["conv_in.weight"]
    torch.testing.assert_close(found, weight + (b @ a).view(weight.shape))


@pytest.mark.parametrize(("a", "b"), [((2, 5, 3, 3), (3, 2)), ((2, 5), (3, 2, 3, 3)), ((2,), (3, 2)), ((2, 5), (3,))])
def test_other_shapes_of_factors_are_refused(a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    state = {"lora_unet_x.lora_down.weight": torch.ones(a), "lora_unet_x.lora_up.weight": torch.ones(b)}
    ws.save_checkpoint(state, tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError, match="don't fit each other"):
        read_adapter(tmp_path / "l.safetensors")
