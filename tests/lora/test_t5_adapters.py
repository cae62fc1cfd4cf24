"""Adapters of T5: the second text encoder of a pipeline, or the third, as the model has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.merging import merge_files

CLIP = "text_model.encoder.layers.0.mlp.fc1"
T5 = ("encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wi_0")

#: Component of Flux -> its modules, in diffusers.
FLUX = {"transformer": ("transformer_blocks.0.attn.to_q",), "text_encoder": (CLIP,), "text_encoder_2": T5}
SD3 = {**FLUX, "text_encoder_2": (CLIP,), "text_encoder_3": T5}

#: Prefixes in a single file -> modules.
SINGLE = {
    "model.diffusion_model.": ("double_blocks.0.img_attn.proj",),
    "text_encoders.clip_l.transformer.": (CLIP,),
    "text_encoders.t5xxl.transformer.": T5,
}


def pipeline(folder: Path, components: dict[str, tuple[str, ...]]) -> Path:
    for component, modules in components.items():
        (folder / component).mkdir(parents=True)
        file = "diffusion_pytorch_model" if component == "transformer" else "model"
        state = {f"{name}.weight": torch.zeros(4, 4) for name in modules}
        ws.save_checkpoint(state, folder / component / f"{file}.safetensors")
        (folder / component / "config.json").write_text("{}")
    kinds = {component: ["transformers", "Encoder"] for component in components}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **kinds}))
    return folder


def pair(name: str, number: int, *, dotted: bool) -> dict[str, Tensor]:
    a, b = torch.full((1, 4), 1.0), torch.full((4, 1), float(number))
    ends = ("lora_A.weight", "lora_B.weight") if dotted else ("lora_down.weight", "lora_up.weight")
    return {f"{name}.{ends[0]}": a, f"{name}.{ends[1]}": b}


def adapter(path: Path, modules: dict[str, tuple[str, ...]]) -> Path:
    """Write an adapter of prefix -> modules, which are numbered from 1."""
    state: dict[str, Tensor] = {}
    for number, (prefix, name) in enumerate([(front, each) for front in modules for each in modules[front]], 1):
        dotted = not prefix.startswith("lora_")
        state |= pair(prefix + (name if dotted else name.replace(".", "_")), number, dotted=dotted)
    ws.save_checkpoint(state, path)
    return path


def applied(model: Path, lora: Path, out: Path) -> dict[str, Tensor]:
    merge_files([f"{model}+{lora}"], out, method="passthrough")
    if out.is_file():
        return ws.load_checkpoint(out)
    folders = [folder for folder in out.iterdir() if folder.is_dir()]
    return {f"{one.name}.{key}": value for one in folders for key, value in ws.load_checkpoint(one).items()}


PREFIXES = [("lora_te1_", "lora_te2_"), ("lora_te1_", "lora_te3_"), ("text_encoder.", "text_encoder_2.")]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("model", ["flux", "single file"])
@pytest.mark.parametrize(("clip", "t5"), PREFIXES)
def test_t5_of_flux_is_found_under_either_number(clip: str, t5: str, model: str, suffix: str, tmp_path: Path) -> None:
    lora = adapter(tmp_path / f"lora.{suffix}", {clip: (CLIP,), t5: T5})
    if model == "flux":
        found = applied(pipeline(tmp_path / "flux", FLUX), lora, tmp_path / "out")
        names = [f"text_encoder.{CLIP}", *(f"text_encoder_2.{name}" for name in T5)]
    else:
        state = {f"{prefix}{name}.weight": torch.zeros(4, 4) for prefix in SINGLE for name in SINGLE[prefix]}
        ws.save_checkpoint(state, tmp_path / f"model.{suffix}")
        found = applied(tmp_path / f"model.{suffix}", lora, tmp_path / f"out.{suffix}")
        names = [
            f"text_encoders.clip_l.transformer.{CLIP}",
            *(f"text_encoders.t5xxl.transformer.{name}" for name in T5),
        ]
    expected = {f"{name}.weight": number for number, name in enumerate(names, 1)}
    assert {name: int(tensor.max()) for name, tensor in found.items() if tensor.any()} == expected


def test_t5_of_stable_diffusion_3_stays_the_third(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora.safetensors", {"lora_te1_": (CLIP,), "lora_te2_": (CLIP,), "lora_te3_": T5})
    found = applied(pipeline(tmp_path / "sd3", SD3), lora, tmp_path / "out")
    names = [f"text_encoder.{CLIP}", f"text_encoder_2.{CLIP}", *(f"text_encoder_3.{name}" for name in T5)]
    assert {name: int(tensor.max()) for name, tensor in found.items() if tensor.any()} == {
        f"{name}.weight": number for number, name in enumerate(names, 1)
    }


REFUSED = {
    "another encoder of that number": {"lora_te2_": (CLIP,), "lora_te3_": T5},
    "two of them": {"lora_te2_": T5, "lora_te3_": T5},
    "CLIP and T5 in one": {"lora_te3_": (CLIP, *T5)},
    "CLIP under another number": {"lora_te3_": (CLIP,)},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_isnt_certain_is_refused(case: str, tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora.safetensors", REFUSED[case])
    with pytest.raises(CheckpointError, match=r"changes .lora_te.* lacks\."):
        applied(pipeline(tmp_path / "flux", FLUX), lora, tmp_path / "out")
