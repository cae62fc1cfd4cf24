"""Adapter folders read from headers alone, and every reason to refuse one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from weightspace.errors import CheckpointError
from weightspace.lora import read_adapter

Write = Callable[..., Path]

A, B = torch.zeros(2, 5), torch.zeros(3, 2)
PAIR = {"q.lora_A.weight": A, "q.lora_B.weight": B}


def test_an_adapter_is_read_without_torch(write: Write) -> None:
    folder = write("a", PAIR)
    code = (
        "import sys; from weightspace.lora import read_adapter; from pathlib import Path;"
        f"read_adapter(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_factors_say_how_a_tensor_changes(write: Write) -> None:
    adapter = read_adapter(write("a", PAIR, r=2, lora_alpha=6))
    (name,) = adapter.factors
    factors = adapter.factors[name]
    assert name == "q.weight"
    assert (factors.rank, factors.scale, factors.transposed, factors.shape) == (2, 3.0, False, (3, 5))
    assert [file.name for file in adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 8}, 4.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"q": 2}}, 1.0),
        ({"lora_alpha": 8, "alpha_pattern": {"xq": 2}}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"^q": 2}}, 1.0),
        ({"r": 7, "lora_alpha": 8, "rank_pattern": {"q": 2}}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"[pq]": 6, "q": 2}}, 3.0),
    ],
)
def test_the_scale_is_alpha_over_the_rank_of_the_first_pattern(
    write: Write, fields: dict[str, Any], scale: float
) -> None:
    assert read_adapter(write("a", PAIR, **fields)).factors["q.weight"].scale == pytest.approx(scale, rel=1e-15)


def test_a_pattern_names_the_end_of_a_module(write: Write) -> None:
    pair = {f"model.layers.1.{name}": tensor for name, tensor in PAIR.items()}
    fields = {"lora_alpha": 8, "alpha_pattern": {"layers": 3, "ayers.1.q": 5, "^layers.1.q": 7, "layers.1.q": 2}}
    assert read_adapter(write("a", pair, **fields)).factors["model.layers.1.q.weight"].scale == 1


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "head.dense.weight", "head.modules_to_save.default.bias"])
def test_saved_modules_take_the_place_of_tensors(write: Write, name: str) -> None:
    adapter = read_adapter(write("a", {**PAIR, name: torch.zeros(4)}, modules_to_save=["head"]))
    target = name.replace("modules_to_save.default.", "")
    assert adapter.saved == {target: f"base_model.model.{name}"}


MISTAKES: dict[str, tuple[dict[str, Tensor] | None, dict[str, Any], str]] = {
    "a prompt": (PAIR, {"peft_type": "PREFIX_TUNING"}, "learns prompts and changes no weight"),
    "another kind": (PAIR, {"peft_type": "IA3"}, "peft_type 'IA3'; expected 'LORA'"),
    "no kind": (PAIR, {"peft_type": None}, "expected 'LORA'"),
    "DoRA without magnitudes": (PAIR, {"use_dora": True}, "no magnitudes"),
    "fused experts": (PAIR, {"target_parameters": ["experts.w"]}, "target_parameters"),
    "a changed model": (PAIR, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
    "no weights": (None, {}, "no weights"),
    "no tensors": ({}, {}, "no tensor"),
    "a bias": ({**PAIR, "q.bias": torch.zeros(3)}, {"bias": "lora_only"}, "expected 'all' there"),
    "a bias of a module that isn't saved": ({**PAIR, "k.original_module.bias": B}, {"bias": "none"}, "expected 'all'"),
    "half a pair": ({"q.lora_A.weight": A}, {}, "no lora_B"),
    "the other half": ({"q.lora_B.weight": B}, {}, "no lora_A"),
    "half an embedding": ({"e.lora_embedding_A": A}, {}, "no lora_embedding_B"),
    "a magnitude": ({**PAIR, "q.lora_magnitude_vector": torch.zeros(3)}, {}, "use_dora is false"),
    "magnitudes of another number": (
        {**PAIR, "q.lora_magnitude_vector": torch.zeros(5)},
        {"use_dora": True},
        "3 floats, one per output",
    ),
    "a bias of a factor": ({**PAIR, "q.lora_B.bias": torch.zeros(3)}, {}, "isn't part of a plain LoRA"),
    "two adapters": ({**PAIR, "q.lora_A.other.weight": A}, {}, "has both"),
    "another rank": (PAIR, {"r": 3}, "have rank 2; expected 3"),
    "ranks that differ": (
        {"q.lora_A.weight": A, "q.lora_B.weight": torch.zeros(3, 4)},
        {},
        "expected floats of shapes",
    ),
    "integers": ({"q.lora_A.weight": A.to(torch.int32), "q.lora_B.weight": B}, {}, "expected floats"),
    "no rank": (PAIR, {"r": None}, "'r' is null; expected a rank"),
    "rank zero": (PAIR, {"r": 0}, "'r' is 0; expected a rank"),
    "an alpha that is a word": (PAIR, {"lora_alpha": "16"}, "'lora_alpha' is \"16\"; expected a finite number"),
    "a pattern that is a list": (PAIR, {"rank_pattern": ["q"]}, "expected an object"),
    "a pattern that is none": (PAIR, {"rank_pattern": {"q(": 2}}, "isn't a regular expression"),
    "modules that are a word": (PAIR, {"modules_to_save": "head"}, "expected a list"),
    "a flag that is a number": (PAIR, {"use_rslora": 1}, "expected true or false"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_unmergeable_adapters_are_refused_in_one_line_that_names_the_folder(mistake: str, write: Write) -> None:
    tensors, fields, expected = MISTAKES[mistake]
    folder = write("a", tensors, **fields)
    with pytest.raises(CheckpointError) as error:
        read_adapter(folder)
    line = str(error.value)
    assert expected in line
    assert str(folder) in line
    assert "\n" not in line


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_or_missing_configuration_is_refused(content: str | None, write: Write) -> None:
    folder = write("a", PAIR)
    path = folder / "adapter_config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_adapter(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        read_adapter(tmp_path / "nowhere")


def test_names_without_the_prefix_are_refused(write: Write) -> None:
    folder = write("a", PAIR)
    header = folder / "adapter_model.safetensors"
    header.write_bytes(header.read_bytes().replace(b"base_model.model.", b"base_model.xodel."))
    with pytest.raises(CheckpointError, match=r"expected names that begin with 'base_model\.model\.'"):
        read_adapter(folder)


def test_the_configuration_is_kept_whole(write: Write) -> None:
    folder = write("a", PAIR, task_type="CAUSAL_LM")
    assert read_adapter(folder).configuration.fields == json.loads((folder / "adapter_config.json").read_text())
