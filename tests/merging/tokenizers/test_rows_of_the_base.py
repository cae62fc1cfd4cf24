"""Tokens that a model lacks get the base's row, whether or not the method merges the base."""

import json
from pathlib import Path

import pytest
import torch
from tokenizer_folders import ids, llama, permuted, rows_of, save, tokenizer, with_moved_rows, with_tokens
from transformers import LlamaForCausalLM

import weightspace as ws
from weightspace.merging import merge_files

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNION = "tokenizer_source: union"
LISTED = "[{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]"
LAYERS = (
    "[{sources: [{model: a, layer_range: [0, 1]}]}, {sources: [{model: b, layer_range: [1, 2]}]}]\n"
    "tokenizer: {source: SOURCE}"
)


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write two models and their base; only the base has <|c|>, and only the base and ``b`` have <|d|>."""
    monkeypatch.chdir(tmp_path)
    content = tokenizer()
    moved, old = permuted(content)
    count = len(ids(content))
    save(llama(count), content, Path("a"))
    save(llama(count + 1, seed=1), with_tokens(content, "<|d|>"), Path("b"))
    grown = with_tokens(moved, "<|c|>", "<|d|>")
    save(with_moved_rows(llama(count + 2, seed=2), [*old, count, count + 1]), grown, Path("base"))


def merge(text: str) -> tuple[str, ...]:
    Path("recipe.yml").write_text(text)
    return merge_files("recipe.yml", "out").warnings


@pytest.mark.parametrize("source", ["base", "union"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_every_method_fills_in_rows_of_the_base(method: str, tied: bool, source: str) -> None:
    if tied:  # its head is its embedding
        state = ws.load_checkpoint("base")
        ws.save_checkpoint({name: tensor for name, tensor in state.items() if name != HEAD}, "base/model.safetensors")
        config = json.loads(Path("base/config.json").read_text())
        Path("base/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    told = merge(f"merge_method: {method}\nbase_model: base\nmodels: {LISTED}\ntokenizer_source: {source}")
    assert not any("rows are zero" in line for line in told)
    for name in (EMBEDDING, HEAD):
        merged, base = rows_of(Path("out"), name), rows_of(Path("base"), EMBEDDING if tied else name)
        b = rows_of(Path("b"), name)
        torch.testing.assert_close(merged["<|c|>"], base["<|c|>"])
        torch.testing.assert_close(merged["<|d|>"], (base["<|d|>"] + b["<|d|>"]) / 2)
        torch.testing.assert_close(merged["hello"], (rows_of(Path("a"), name)["hello"] + b["hello"]) / 2)


@pytest.mark.parametrize("inner", [False, True])
def test_stacked_layers_and_a_base_of_their_own_take_rows_of_the_base(inner: bool) -> None:
    slices = LAYERS.replace("SOURCE", "union")
    own = "base_model: base, " if inner else ""
    slices = slices.replace("{sources", f"{{{own}sources")
    told = merge(f"merge_method: passthrough\n{'' if inner else 'base_model: base'}\nslices: {slices}")
    assert not any("rows are zero" in line for line in told)
    base = rows_of(Path("base"))
    assert torch.equal(rows_of(Path("out"))["<|c|>"], base["<|c|>"])
    assert torch.equal(rows_of(Path("out"))["<|d|>"], base["<|d|>"])
    assert torch.equal(rows_of(Path("out"), HEAD)["<|d|>"], rows_of(Path("b"), HEAD)["<|d|>"])


def test_a_row_of_the_base_may_be_chosen_for_a_token() -> None:
    keys = "tokenizer: {source: union, tokens: {hello: {source: base, force: true}}}"
    merge(f"merge_method: linear\nbase_model: base\nmodels: {LISTED}\n{keys}")
    assert torch.equal(rows_of(Path("out"))["hello"], rows_of(Path("base"))["hello"])


def test_a_base_of_another_width_is_refused() -> None:
    config = LlamaForCausalLM.from_pretrained("base").config
    config.hidden_size, config.intermediate_size = 16, 24
    LlamaForCausalLM(config).save_pretrained("base")
    with pytest.raises(ws.CheckpointError, match=r"whose rows are used.*choose another base_model"):
        merge(f"merge_method: linear\nbase_model: base\nmodels: {LISTED}\ntokenizer_source: union")


def test_biases_of_heads_take_the_value_of_the_base() -> None:
    for name in ("a", "b", "base"):
        state = ws.load_checkpoint(name)
        ws.save_checkpoint({**state, "lm_head.bias": state[HEAD][:, 0].clone()}, f"{name}/model.safetensors")
    merge(f"merge_method: linear\nbase_model: base\nmodels: {LISTED}\n{UNION}")
    assert torch.equal(rows_of(Path("out"), "lm_head.bias")["<|c|>"], rows_of(Path("base"), "lm_head.bias")["<|c|>"])


def test_without_a_base_all_tensors_with_rows_of_zeros_are_named() -> None:
    models = "[{model: a, parameters: {weight: 0.5}}, {model: a2, parameters: {weight: 0.5}}]"
    Path("a2").symlink_to("a")
    told = merge(f"merge_method: linear\nmodels: {models}\ntokenizer_source: b")
    line = next(line for line in told if "rows are zero" in line)
    assert all(repr(name) in line for name in (EMBEDDING, HEAD))


def test_a_base_that_the_method_does_not_merge_is_reported() -> None:
    line = "base_model base is not merged: method 'linear' takes no base. It only supplies the configuration, the"
    assert any(line in told for told in merge(f"merge_method: linear\nbase_model: base\nmodels: {LISTED}\n{UNION}"))
    listed = LISTED.replace("]", ", {model: base, parameters: {weight: 0}}]")
    assert not any(line in told for told in merge(f"merge_method: linear\nbase_model: base\nmodels: {listed}\n{UNION}"))
