"""Adapters of models as transformers builds them: merged with their files, and extracted from them, as PEFT has it."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build, fine_tuned, output

import weightspace as ws
from weightspace.lora import extract_lora_files
from weightspace.merging import ExecutionOptions, merge_files

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers", minversion="5")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def adapted(model: Any, folder: Path, **fields: Any) -> Any:
    """Return a model with a random adapter, which lies in a folder; the model is in the one beside it."""
    model.save_pretrained(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **fields)
        wrapped = peft.get_peft_model(model, config).eval()
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.data.normal_()
    wrapped.save_pretrained(folder / "adapter")
    return wrapped


def merged(model: Any, folder: Path) -> Any:
    """Return the model that comes out of a merge of MODEL+ADAPTER."""
    merge_files(
        [f"{folder / 'model'}+{folder / 'adapter'}"],
        folder / "out",
        method="passthrough",
        execution=ExecutionOptions(fsync=False),
    )
    return type(model).from_pretrained(folder / "out").eval()


def linear_layers(model: Any) -> list[str]:
    layers = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, layers) and module is not head]


@pytest.mark.parametrize("family", [name for name in FAMILIES if "moe" not in name])
def test_an_adapter_on_every_layer_is_found_in_the_files(family: str, tmp_path: Path) -> None:
    wrapped = adapted(build(family, transformers), tmp_path, target_modules=linear_layers(build(family, transformers)))
    found = merged(build(family, transformers), tmp_path).state_dict()
    expected = wrapped.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "glm4_moe"])
def test_an_adapter_on_fused_experts_is_put_on_each_of_them(family: str, targets: Any, tmp_path: Path) -> None:
    model = build(family, transformers)
    parameters = {} if targets == "all-linear" else {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    wrapped = adapted(model, tmp_path, target_modules=targets, **parameters)
    found = merged(build(family, transformers), tmp_path).state_dict()
    before, expected = build(family, transformers).state_dict(), wrapped.merge_and_unload().state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
    changed = [name for name, tensor in expected.items() if not torch.equal(tensor, before[name])]
    assert not parameters or any("experts" in name for name in changed)


@pytest.mark.parametrize("target", ["head", "embedding", "both", "modules_to_save"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gpt_neox", "bert_masked", "roberta"])
def test_a_tied_weight_that_is_adapted_is_what_the_network_computes_with(
    family: str, target: str, tmp_path: Path
) -> None:
    model = build(family, transformers)
    names = {id(module): name for name, module in model.named_modules()}
    head, embedding = names[id(model.get_output_embeddings())], names[id(model.get_input_embeddings())]
    modules = {"head": [head], "embedding": [embedding], "both": [head, embedding]}.get(
        target, linear_layers(model)[:1]
    )
    saved = {"modules_to_save": [head]} if target == "modules_to_save" else {}
    wrapped = adapted(model, tmp_path, target_modules=modules, **saved)
    found = merged(build(family, transformers), tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    # PEFT's own merge adds a change of one tied weight to both; what it computes unmerged is what was trained.
    torch.testing.assert_close(output(found, family), output(wrapped, family), rtol=1e-3, atol=1e-3)


def test_the_tied_head_of_t5_that_is_adapted_is_what_the_network_computes_with(tmp_path: Path) -> None:
    wrapped = adapted(build("t5", transformers), tmp_path, target_modules=["lm_head"])
    found = merged(build("t5", transformers), tmp_path)
    torch.testing.assert_close(output(found, "t5"), output(wrapped, "t5"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_and_the_adapter_that_was_extracted_are_the_fine_tune(family: str, tmp_path: Path) -> None:
    base = build(family, transformers)
    tuned = fine_tuned(base)
    base.save_pretrained(tmp_path / "model")
    tuned.save_pretrained(tmp_path / "tuned")
    report = extract_lora_files(tmp_path / "model", tmp_path / "tuned", tmp_path / "adapter", rank=32, lenient=True)
    assert report.error < 1e-4
    expected, before = output(tuned, family), output(base, family)
    change = float((before - expected).norm())
    found = merged(base, tmp_path)
    assert float((output(found, family) - expected).norm()) < 0.01 * change
    wrapped = peft.PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "model"), tmp_path / "adapter")
    assert float((output(wrapped.eval(), family) - expected).norm()) < 0.01 * change


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert_masked"])
def test_norms_and_biases_that_moved_are_kept_exactly(family: str, tmp_path: Path) -> None:
    base = build(family, transformers)
    tuned = fine_tuned(base)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            in_head = family == "bert_masked" and name.startswith("cls.predictions") and "transform" not in name
            if parameter.dim() == 1 and not in_head:  # that bias stands beside a tied matrix, in two names
                parameter.add_(torch.linspace(0.1, 0.2, len(parameter)))
    base.save_pretrained(tmp_path / "model")
    tuned.save_pretrained(tmp_path / "tuned")
    report = extract_lora_files(tmp_path / "model", tmp_path / "tuned", tmp_path / "adapter", rank=32)
    assert report.saved
    assert not report.left_out
    expected = tuned.state_dict()
    plain = type(base).from_pretrained(tmp_path / "model")
    wrapped = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    by_merge = merged(base, tmp_path)
    for found in (wrapped, by_merge):
        torch.testing.assert_close(output(found, family), output(tuned, family), rtol=1e-3, atol=1e-3)
    for state in (wrapped.merge_and_unload().state_dict(), by_merge.state_dict()):
        for name, tensor in expected.items():
            assert tensor.dim() > 1 or torch.equal(state[name], tensor), name


@pytest.mark.parametrize("family", ["qwen2", "t5", "bert_masked"])
def test_a_tie_survives_where_the_adapter_repeats_its_factors(family: str, tmp_path: Path) -> None:
    base = build(family, transformers)
    base.save_pretrained(tmp_path / "model")
    fine_tuned(base).save_pretrained(tmp_path / "tuned")
    extract_lora_files(tmp_path / "model", tmp_path / "tuned", tmp_path / "adapter", rank=32, lenient=True)
    merged(base, tmp_path)
    assert ws.load_checkpoint(tmp_path / "out").keys() == ws.load_checkpoint(tmp_path / "model").keys()
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "out")]
    assert configs[0]["tie_word_embeddings"] is configs[1]["tie_word_embeddings"] is True


def test_a_router_of_fewer_experts_than_the_rank_is_filled_up(tmp_path: Path) -> None:
    base = build("mixtral", transformers)
    base.save_pretrained(tmp_path / "model")
    fine_tuned(base).save_pretrained(tmp_path / "tuned")
    report = extract_lora_files(tmp_path / "model", tmp_path / "tuned", tmp_path / "adapter", rank=8, lenient=True)
    fused = {rank for name, rank in report.ranks.items() if "block_sparse_moe" in name}
    assert fused == {8}
    peft.PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "model"), tmp_path / "adapter")
