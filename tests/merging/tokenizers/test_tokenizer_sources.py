"""Sources of the output's tokenizer: a model's, older files, other kinds; what the configuration says; refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizer_folders import (
    SIZES,
    TEXTS,
    ids,
    llama,
    permuted,
    recipe,
    rows_of,
    save,
    tokenizer,
    with_moved_rows,
    with_tokens,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import merge_files
from weightspace.merging.tokenizers.output_vocabulary import NewTokens
from weightspace.merging.tokenizers.token_table import added_entry
from weightspace.merging.tokenizers.tokenizer_files import extended_tokenizer

UNION = "tokenizer: {source: union}"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return tokenizer()


def test_the_tokenizer_of_another_model_comes_with_its_ids(content: dict[str, Any], tmp_path: Path) -> None:
    moved, _ = permuted(with_tokens(content, "<|end|>"))
    a = save(llama(len(ids(content)) + 5), content, tmp_path / "a")
    special = moved["model"]["vocab"]
    swapped = {"<s>": 2, "</s>": 1}
    moved["added_tokens"] = [
        {**entry, "id": swapped.get(entry["content"], entry["id"])} for entry in moved["added_tokens"]
    ]
    moved["model"]["vocab"] = {token: swapped.get(token, number) for token, number in special.items()}
    b = save(llama(len(ids(moved)), seed=1), moved, tmp_path / "b")
    generation = json.loads((a / "generation_config.json").read_text())
    further = {
        "max_new_tokens": 1,
        "suppress_tokens": [1, 2],
        "lang_to_id": {"<|en|>": 1},
        "bad_words_ids": [[1], [2, 2]],
    }
    (a / "generation_config.json").write_text(json.dumps({**generation, **further}))
    merge_files(recipe(tmp_path, "linear", [a, b], f"tokenizer: {{source: {b}}}", base=a), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (2, 1, 0)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (2, 1)
    assert (generation["max_new_tokens"], generation["suppress_tokens"]) == (1, [2, 1])
    assert (generation["lang_to_id"], generation["bad_words_ids"]) == ({"<|en|>": 2}, [[2], [1, 1]])
    made, source = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", b))
    assert all(made.encode(text) == source.encode(text) for text in TEXTS)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()
    rows, first, second = (rows_of(folder) for folder in (tmp_path / "out", a, b))
    assert torch.equal(rows["</s>"], (first["</s>"] + second["</s>"]) / 2)
    assert torch.equal(rows["<|end|>"], second["<|end|>"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_configuration_that_names_a_token_which_is_gone_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    a = save(llama(len(ids(content)) + 1), with_tokens(content, "<|image|>"), tmp_path / "a")
    config = json.loads((a / "config.json").read_text())
    (a / "config.json").write_text(json.dumps({**config, "image_token_id": len(ids(content))}))
    b = save(llama(len(ids(content)), seed=1), content, tmp_path / "b")
    path = recipe(tmp_path, "linear", [a, b], f"tokenizer: {{source: {b}}}", base=a)
    with pytest.raises(WeightspaceError, match="as image_token_id, and the output has no such token"):
        merge_files(path, tmp_path / "out", dry_run=True)


def old_files(content: dict[str, Any], folder: Path, kind: str) -> None:
    """Write a tokenizer as older releases of transformers do."""
    (folder / "tokenizer.json").unlink()
    vocab = content["model"]["vocab"]
    if kind == "vocab.json":
        (folder / "vocab.json").write_text(json.dumps(vocab))
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
        named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
        settings = {"tokenizer_class": "GPT2Tokenizer", **named}
    else:
        (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n")
        settings = {"tokenizer_class": "BertTokenizer", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<s>"}
        settings |= {"sep_token": "</s>", "cls_token": "<s>", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(("file", "kind"), [("vocab.json", "bytes"), ("vocab.txt", "wordpiece")])
@pytest.mark.parametrize("further", [(), ("<|b|>",)])
def test_files_of_older_tokenizers_are_read(file: str, kind: str, further: tuple[str, ...], tmp_path: Path) -> None:
    content = tokenizer(kind)
    moved, old = permuted(content)
    model = llama(len(ids(content)))
    a = save(model, content, tmp_path / "a")
    old_files(content, a, file)
    b = save(with_moved_rows(model, old), moved, tmp_path / "b")
    if further:
        b = save(llama(len(ids(moved)) + 1, seed=1), with_tokens(moved, *further), tmp_path / "c")
    merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    embedding = ws.load_checkpoint(tmp_path / "out")["model.embed_tokens.weight"]
    assert len(embedding) == len(ids(content)) + len(further)
    made, source = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", a))
    assert all(made.encode(text) == source.encode(text) for text in TEXTS)
    assert not further or made.convert_tokens_to_ids("<|b|>") == len(embedding) - 1
    assert further or torch.equal(embedding, model.state_dict()["model.embed_tokens.weight"])
    assert (tmp_path / "out" / file).exists() == (not further)


def test_bytes_and_metaspace_are_compared_by_the_text_that_tokens_stand_for(tmp_path: Path) -> None:
    one, other = tokenizer("bytes"), tokenizer("metaspace")
    a = save(llama(len(ids(one))), one, tmp_path / "a")
    b = save(llama(len(ids(other)), seed=1), other, tmp_path / "b")
    merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    rows, first, second = (rows_of(folder) for folder in (tmp_path / "out", a, b))
    assert "Ġthe" in first and "▁the" in second and "▁the" not in rows  # noqa: PT018
    assert torch.equal(rows["Ġthe"], (first["Ġthe"] + second["▁the"]) / 2)
    assert torch.equal(rows["Ã©"], (first["Ã©"] + second["é"]) / 2)
    assert torch.equal(rows["<s>"], (first["<s>"] + second["<s>"]) / 2)
    made, source = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", a))
    assert all(made.encode(text) == source.encode(text) for text in TEXTS)


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "unigram"])
def test_texts_are_split_as_before_by_a_union_with_other_ordinary_tokens(kind: str, tmp_path: Path) -> None:
    one, other = tokenizer(kind, texts=TEXTS[:3], size=300), tokenizer(kind, texts=TEXTS[2:], size=300)
    a = save(llama(len(ids(one)) + 2), with_tokens(one, "<|x|>", "<|y|>"), tmp_path / "a")
    b = save(llama(len(ids(other)), seed=1), other, tmp_path / "b")
    merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    made, source = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", a))
    assert all(made.tokenize(text) == source.tokenize(text) for text in (*TEXTS[:3], "the<|x|>fox<|y|>"))
    vocab = made.get_vocab()
    assert vocab.keys() >= ids(other).keys() | ids(one).keys()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert made.add_tokens("<|later|>") == 1
    assert made.convert_tokens_to_ids("<|later|>") == len(vocab)


def test_a_nested_configuration_counts_the_rows_of_the_text_model(content: dict[str, Any], tmp_path: Path) -> None:
    moved = permuted(content)[0]
    folders = []
    for number, (name, own) in enumerate((("a", content), ("b", with_tokens(moved, "<|b|>")))):
        torch.manual_seed(number)
        vision = {**SIZES, "image_size": 8, "patch_size": 4, "num_key_value_heads": 2}
        text = {**SIZES, "model_type": "llama", "vocab_size": len(ids(own)) + 3}
        config = transformers.LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **vision}, text_config=text, image_token_index=3
        )
        folders.append(save(transformers.LlavaForConditionalGeneration(config), own, tmp_path / name))
    merge_files(recipe(tmp_path, "linear", folders, UNION), tmp_path / "out")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.config.text_config.vocab_size == len(ids(content)) + 1
    assert model.get_input_embeddings().weight.shape[0] == len(ids(content)) + 1


HEADS = {
    "bert": ("BertForMaskedLM", "BertConfig", {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {
            **{"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "forced_eos_token_id": 2},
        },
    ),
    "phi": (
        "PhiForCausalLM",
        "PhiConfig",
        {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 1},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_biases_of_heads_move_with_their_rows(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    cls, config, options = HEADS[name]
    moved, old = permuted(content)
    torch.manual_seed(0)
    options = {**options, "vocab_size": len(old), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = getattr(transformers, cls)(getattr(transformers, config)(**options))
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.randn_like(tensor))
    a = save(model, content, tmp_path / "a")
    b = save(model, moved, tmp_path / "b")
    state = ws.load_checkpoint(b)
    for key, tensor in state.items():
        axis = tensor.shape.index(len(old)) if len(old) in tensor.shape else None
        state[key] = tensor if axis is None else tensor.index_select(axis, torch.tensor(old)).contiguous()
    assert sum(not torch.equal(tensor, ws.load_checkpoint(a)[key]) for key, tensor in state.items()) >= 2
    ws.save_checkpoint(state, b / "model.safetensors")
    merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    merged, expected = ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(a)
    assert all(torch.equal(merged[key], tensor) for key, tensor in expected.items())


def test_tokens_without_a_row_or_a_model_are_reported(content: dict[str, Any], tmp_path: Path) -> None:
    count = len(ids(content))
    a = save(llama(count), with_tokens(content, "<|a|>"), tmp_path / "a")
    b = save(llama(count, seed=1), content, tmp_path / "b")
    told = merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out").warnings
    assert any("'<|a|>' of a have no row in its embedding" in line for line in told)
    assert any("1 tokens of the output" in line and "their rows are zero" in line for line in told)
    assert not ws.load_checkpoint(tmp_path / "out")["model.embed_tokens.weight"][-1].any()


def test_a_model_without_a_tokenizer_has_that_of_the_source(content: dict[str, Any], tmp_path: Path) -> None:
    count = len(ids(content))
    a = save(llama(count + 7), content, tmp_path / "a")
    b = save(llama(count, seed=1), None, tmp_path / "b")
    told = merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out").warnings
    assert any("b has no tokenizer; assuming the vocabulary of a" in line for line in told)
    assert len(ws.load_checkpoint(tmp_path / "out")["lm_head.weight"]) == count


REFUSED = {
    "a model that has no part": ("tokens: {'<s>': {source: nowhere}}", "is not a model of the recipe"),
    "a token that the model lacks": ("tokens: {'<|b|>': {source: MODEL}}", "MODEL has no row for '<|b|>'"),
    "another token that it lacks": (
        "tokens: {'<s>': {source: {kind: model_token, model: MODEL, token: '<t>'}}}",
        "MODEL has no row for '<t>'",
    ),
    "a row that it lacks": (
        "tokens: {'<s>': {source: {kind: model_token, model: MODEL, token_id: 9999}}}",
        "MODEL has no row for 9999",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_is_not_there_is_refused(case: str, content: dict[str, Any], tmp_path: Path) -> None:
    keys, message = REFUSED[case]
    a = save(llama(len(ids(content))), content, tmp_path / "a")
    b = save(llama(len(ids(content)) + 1, seed=1), with_tokens(content, "<|b|>"), tmp_path / "b")
    path = recipe(tmp_path, "linear", [a, b], f"tokenizer: {{source: union, {keys.replace('MODEL', str(a))}}}")
    with pytest.raises(WeightspaceError) as caught:
        merge_files(path, tmp_path / "out", dry_run=True)
    assert message.replace("MODEL", str(a)) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tensor", ["classifier_head.weight", "model.embed_tokens_per_layer.weight"])
def test_a_tensor_that_may_have_a_row_per_token_is_refused(
    tensor: str, content: dict[str, Any], tmp_path: Path
) -> None:
    count = len(ids(content))
    a, b = (save(llama(count, seed=seed), content, tmp_path / name) for seed, name in enumerate("ab"))
    for folder in (a, b):
        rows = count if tensor.startswith("class") else count - 1
        state = ws.load_checkpoint(folder) | {tensor: torch.zeros(rows, 8)}
        ws.save_checkpoint(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"as many rows as its embedding|different numbers of rows"):
        merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out", dry_run=True)


def test_sentencepiece_is_converted_by_transformers(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    a = tmp_path / "a"
    (tmp_path / "texts").write_text("\n".join(TEXTS * 30))
    options = {"model_type": "bpe", "vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "m"), **options)
    count = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model")).get_piece_size()
    save(llama(count + 3), None, a)
    (tmp_path / "m.model").rename(a / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (a / "tokenizer_config.json").write_text(json.dumps(settings))
    source = AutoTokenizer.from_pretrained(a)
    source.add_tokens(["<|b|>"], special_tokens=True)
    b = save(llama(count + 1, seed=1), None, tmp_path / "b")
    source.save_pretrained(b)
    merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert all(made.encode(text) == source.encode(text) for text in (*TEXTS, "hello<|b|> there"))
    first, second, merged = (ws.load_checkpoint(one)["lm_head.weight"] for one in (a, b, tmp_path / "out"))
    assert torch.equal(merged[:count], (first[:count] + second[:count]) / 2)
    assert torch.equal(merged[count:], second[count:])
    assert not (tmp_path / "out" / "tokenizer.model").exists()


def test_numbers_of_tokens_are_no_difference_of_configurations(content: dict[str, Any], tmp_path: Path) -> None:
    count = len(ids(content))
    a = save(llama(count), content, tmp_path / "a")
    b = save(llama(count + 1, seed=1), with_tokens(content, "<|b|>"), tmp_path / "b")
    assert merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out", strict=True).warnings == ()


def test_models_whose_rows_move_are_not_aligned_in_one_go(content: dict[str, Any], tmp_path: Path) -> None:
    a, b = (save(llama(len(ids(content)), seed=seed), content, tmp_path / name) for seed, name in enumerate("ab"))
    alignment = ws.Alignment(ws.PermutationSpec({}, {}))
    with pytest.raises(WeightspaceError, match="cannot be aligned in one go"):
        merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out", align=alignment, dry_run=True)


def test_a_misspelt_union_is_suggested(tmp_path: Path) -> None:
    ws.save_checkpoint({"x.weight": torch.ones(2, 2)}, tmp_path / "a")
    text = f"merge_method: linear\nmodels: [{{model: {tmp_path / 'a'}}}]\ntokenizer_source: unoin\n"
    (tmp_path / "recipe.yml").write_text(text + "parameters: {weight: 1}\n")
    with pytest.raises(CheckpointError, match=r"'unoin': no such folder. Expected 'union'.*Did you mean 'union'"):
        merge_files(tmp_path / "recipe.yml", tmp_path / "out")


def test_a_union_changes_nothing_but_the_vocabulary_in_the_text_of_the_tokenizer(tmp_path: Path) -> None:
    """Numbers, escapes and spaces of the file stay as they are, in whatever order its keys come."""
    content = {
        "model": {"type": "BPE", "vocab": {"a": 0, "é": 1}, "dropout": 1.0, "merges": [["a", "é"]]},
        "added_tokens": [added_entry("<s>", 2, special=True)],
        "note": "tab\t",
    }
    text = json.dumps(content, indent=1).replace("1.0", "1.00")
    (tmp_path / "tokenizer.json").write_text(text)
    new = NewTokens({"b": 4}, (added_entry("<pad>", 3),))
    written = extended_tokenizer(tmp_path, new).text.decode()
    assert json.loads(written) == {
        **content,
        "model": {**content["model"], "vocab": {"a": 0, "é": 1, "<s>": 2, "<pad>": 3, "b": 4}},
        "added_tokens": [added_entry("<s>", 2, special=True), added_entry("<pad>", 3)],
    }
    lines = written.splitlines()
    for kept in ('  "dropout": 1.00,', '    "\\u00e9"', ' "note": "tab\\t"'):
        assert kept in lines


@pytest.mark.parametrize("model", [None, [], {"type": "BPE"}, {"type": "BPE", "vocab": None}])
def test_a_tokenizer_without_a_vocabulary_is_not_extended(model: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": None}))
    with pytest.raises(ws.CheckpointError, match=r"tokenizer\.json is not a tokenizer: expected a model with a vocab"):
        extended_tokenizer(tmp_path, NewTokens({"b": 0}))


def test_a_tokenizer_without_a_list_of_added_tokens_gets_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    extended = extended_tokenizer(tmp_path, NewTokens({}, (added_entry("<pad>", 0),)))
    assert json.loads(extended.text)["added_tokens"] == [added_entry("<pad>", 0)]
    assert list(extended.added) == ["0"]


@pytest.mark.parametrize("keys", ["tokenizer_source: union", "tokenizer_source: base", "tokenizer: {source: union}"])
def test_a_tokenizer_without_effect_is_warned_of(keys: str, tmp_path: Path) -> None:
    for name in "ab":
        ws.save_checkpoint({"w": torch.ones(2, 2)}, tmp_path / name)
    path, told = recipe(tmp_path, "linear", [tmp_path / "a", tmp_path / "b"], keys, base=tmp_path / "a"), []
    merge_files(path, tmp_path / "out", warn=told.append)
    assert any("has no effect: none of the models has a tokenizer" in line for line in told)
    with pytest.raises(WeightspaceError, match=r"has no effect: .* Leave it out"):
        merge_files(path, tmp_path / "out", strict=True)
