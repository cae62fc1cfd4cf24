"""Against mergekit 0.1.5: the same tensors under the names of the Hub, routers from hidden states to its bfloat16.

tests/data/conformance/moe/README.md says how the files were made.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.merging import build_moe

pytest.importorskip("transformers", minversion="5")

FOLDER = Path(__file__).parents[2] / "data" / "conformance" / "moe"
CASES = sorted(path.stem for path in FOLDER.glob("*.yml"))

#: Keys that say nothing of what is computed, in either configuration.
_HARMLESS = {"attention_bias", "mlp_bias", "pretraining_tp", "dtype", "torch_dtype", "transformers_version"}


def as_mergekit_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names that mergekit writes: transformers 5's own, with all experts in one."""
    named = {name.replace(".block_sparse_moe.", ".mlp."): value for name, value in state.items()}
    parts = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for part, projection in parts.items():
        named = {name.replace(f".{part}.", f".{projection}."): value for name, value in named.items()}
    return named


def fused(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the experts' tensors one by one."""
    for name, value in state.items():
        if name.endswith(".experts.gate_up_proj"):
            for number, both in enumerate(value):
                for projection, part in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    yield f"{name.removesuffix('gate_up_proj')}{number}.{projection}.weight", part
        elif name.endswith(".experts.down_proj"):
            for number, part in enumerate(value):
                yield f"{name.removesuffix('down_proj')}{number}.down_proj.weight", part
        else:
            yield name, value


@pytest.mark.parametrize("case", CASES)
def test_a_mixture_is_mergekits(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    recipe = Path(f"{case}.yml").read_text(encoding="utf-8")
    drawn, hidden = "random" in recipe, "gate_mode: hidden" in recipe
    build_moe(f"{case}.yml", tmp_path / "out", seed=3 if drawn else 0)
    found = as_mergekit_names(ws.load_checkpoint(tmp_path / "out"))
    expected = dict(fused(ws.load_checkpoint(FOLDER / f"{case}.safetensors")))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        if hidden and name.endswith("gate.weight"):  # mergekit runs the model in bfloat16
            torch.testing.assert_close(found[name], value, rtol=0, atol=0.02)
        elif name.endswith("gate.weight"):
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_is_mergekits(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    monkeypatch.chdir(FOLDER)
    expected = json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    build_moe(f"{case}.yml", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    if found["model_type"] == "deepseek":  # known to its own code alone, which reads the keys of that time
        both = (expected.keys() & found.keys()) - {*_HARMLESS, "rope_parameters"}
        assert {"n_routed_experts", "n_shared_experts", "moe_intermediate_size", "norm_topk_prob"} <= both
        assert {key: found[key] for key in both} == {key: expected[key] for key in both}
        assert (found["rope_theta"], found["rope_scaling"]) == (10000.0, None)
        return
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(expected), encoding="utf-8")
    ours, theirs = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("out", "theirs"))
    ignored = {*_HARMLESS, "_name_or_path", "layer_types", "max_window_layers"}  # the last two are of dense Qwen
    assert {k: v for k, v in ours.items() if k not in ignored} == {k: v for k, v in theirs.items() if k not in ignored}
