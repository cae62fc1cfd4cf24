"""Merges of MODEL+ADAPTER against PEFT's own merges of its adapters."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.lora import extract_lora, read_adapter, write_adapter
from weightspace.merging import ExecutionOptions, merge_adapters, merge_files

peft = pytest.importorskip("peft")


class Net(nn.Module):
    """One of each kind of layer that a LoRA can be put on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(3, 5, (3, 2))
        self.signal = nn.Conv1d(4, 6, 3)
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(8, 6), "v": nn.Linear(8, 6)}) for _ in range(3))
        self.head = nn.Linear(6, 4)


def trained(model: nn.Module, **fields: Any) -> Any:
    """Return a PEFT model whose trainable parameters are random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**fields))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
    return wrapped


def merged_by_both(model: nn.Module, folder: Path, **fields: Any) -> tuple[StateDict, StateDict]:
    """Return what comes out of a merge of MODEL+ADAPTER, and of PEFT."""
    ws.save_checkpoint(model.state_dict(), folder / "model.safetensors")
    wrapped = trained(model, **fields)
    wrapped.save_pretrained(folder / "adapter")
    merge_files(
        [f"{folder / 'model.safetensors'}+{folder / 'adapter'}"],
        folder / "out.safetensors",
        execution=ExecutionOptions(fsync=False),
    )
    return ws.load_checkpoint(folder / "out.safetensors"), wrapped.merge_and_unload().state_dict()


def assert_close(found: StateDict, expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


CASES: dict[str, dict[str, Any]] = {
    "linear": {"r": 3, "lora_alpha": 7, "target_modules": ["q", "v"]},
    "rslora": {"r": 4, "lora_alpha": 7, "target_modules": ["q"], "use_rslora": True},
    "embedding": {"r": 3, "lora_alpha": 5, "target_modules": ["embed"]},
    "convolutions": {"r": 2, "lora_alpha": 5, "target_modules": ["conv", "signal"]},
    "modules to save": {"r": 2, "lora_alpha": 5, "target_modules": ["q"], "modules_to_save": ["head"]},
    "all biases": {"r": 2, "lora_alpha": 5, "target_modules": ["q", "conv"], "bias": "all"},
    "biases of its modules": {"r": 2, "lora_alpha": 5, "target_modules": ["q", "conv"], "bias": "lora_only"},
    "all biases, DoRA": {"r": 2, "target_modules": ["q"], "bias": "all", "use_dora": True},
    "all biases, modules to save": {"r": 2, "target_modules": ["q"], "bias": "all", "modules_to_save": ["head"]},
    "rank pattern": {
        "r": 3,
        "lora_alpha": 7,
        "target_modules": ["q", "v"],
        "rank_pattern": {r"^layers\.2\.v": 4, "layers.1.q": 1, "q": 2},  # sorted, as PEFT saves them
    },
    "alpha pattern": {
        "r": 3,
        "lora_alpha": 7,
        "target_modules": ["q", "v"],
        "rank_pattern": {r"layers\.[01]\.q": 2},
        "alpha_pattern": {"0.q": 11, "v": 2},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_merge_of_model_and_adapter_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    found, expected = merged_by_both(Net(), tmp_path, **CASES[case])
    assert any(not torch.equal(found[name], tensor) for name, tensor in Net().state_dict().items())
    assert_close(found, expected)


def test_biases_of_a_head_with_several_layers_are_those_that_peft_applies(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.RobertaConfig(**sizes, num_attention_heads=2, max_position_embeddings=16)
    model = transformers.RobertaForSequenceClassification(config)
    fields = {"r": 2, "target_modules": ["query"], "bias": "all"}
    assert_close(*merged_by_both(model, tmp_path, task_type="SEQ_CLS", **fields))
    with pytest.raises(WeightspaceError, match="modules_to_save or bias"):
        merge_adapters([tmp_path / "adapter"], tmp_path / "merged")


def test_weights_kept_as_in_out_are_turned(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = nn.ModuleDict({"c": transformers.pytorch_utils.Conv1D(6, 6), "d": transformers.pytorch_utils.Conv1D(5, 6)})
    found, expected = merged_by_both(model, tmp_path, r=2, target_modules=["c", "d"], fan_in_fan_out=True)
    assert_close(found, expected)


def test_a_language_model_with_an_adapter_on_every_matrix(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    fields = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "modules_to_save": ["lm_head"]}
    assert_close(*merged_by_both(model, tmp_path, task_type="CAUSAL_LM", **fields))


@pytest.mark.parametrize("tensors", ["old names", "torch file"])
def test_old_folders_read_alike(tensors: str, tmp_path: Path) -> None:
    wrapped = trained(Net(), r=2, target_modules=["q", "embed"])
    wrapped.save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    state, before = ws.load_checkpoint(weights), read_adapter(tmp_path / "adapter")
    if tensors == "torch file":
        torch.save(dict(state), weights.with_suffix(".bin"))
    else:
        renamed = {f"lora_{side}.weight": f"lora_{side}.default.weight" for side in "AB"}
        renamed |= {f"lora_embedding_{side}": f"lora_embedding_{side}.default" for side in "AB"}
        copies = {name: tensor.clone() for name, tensor in state.items()}
        new = {name: next(name.replace(a, b) for a, b in renamed.items() if name.endswith(a)) for name in copies}
        ws.save_checkpoint({new[name]: tensor for name, tensor in copies.items()}, weights.with_name("new.safetensors"))
    weights.unlink()
    if tensors == "old names":
        weights.with_name("new.safetensors").rename(weights)
    after = read_adapter(tmp_path / "adapter")
    assert after.factors.keys() == before.factors.keys()
    for name, factors in after.factors.items():
        assert (factors.scale, factors.shape, factors.rank) == (
            before.factors[name].scale,
            before.factors[name].shape,
            before.factors[name].rank,
        )


def test_peft_reads_what_is_extracted(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = nn.Embedding(11, 8)
            self.conv = nn.Conv2d(3, 5, 3)
            self.wide = nn.Linear(8, 9)
            self.narrow = nn.Linear(8, 2)

    model, tuned = Small(), Small()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(model.get_parameter(name))
    extraction = extract_lora(model.state_dict(), tuned.state_dict(), rank=30)
    assert extraction.report.error < 1e-5
    write_adapter(extraction.state, extraction.config, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert_close(loaded.merge_and_unload().state_dict(), tuned.state_dict())


def test_peft_reads_merged_adapters(tmp_path: Path) -> None:
    model = Net()
    folders = []
    for number, fields in enumerate((CASES["alpha pattern"], CASES["convolutions"], CASES["embedding"])):
        folders.append(tmp_path / str(number))
        trained(model, **fields).save_pretrained(folders[-1])
    expected = dict(model.state_dict())
    for fields in (CASES["alpha pattern"], CASES["convolutions"], CASES["embedding"]):
        one = trained(model, **fields).merge_and_unload().state_dict()
        expected = {name: tensor + one[name] - model.state_dict()[name] for name, tensor in expected.items()}
    merge_adapters(folders, tmp_path / "merged", method="linear", weights=[1, 1, 1])
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "merged")
    assert_close(loaded.merge_and_unload().state_dict(), expected)
