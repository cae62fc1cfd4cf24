"""Heads that are embeddings: found by name and shape, declared by configurations, set apart where one changes alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.lora.tied_weights import (
    hidden_ties,
    is_declared_tied,
    is_head,
    missing_aliases,
    tied_counterpart,
    tied_embedding,
    untied,
)
from weightspace.merging import ExecutionOptions, merge_files

Write = Callable[..., Path]
Normal = Callable[..., Tensor]

#: Family -> its head, and tensors, the embedding that the head is tied to first.
FAMILIES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "llama": ("lm_head.weight", {"model.embed_tokens.weight": (6, 4)}),
    "gpt2": ("lm_head.weight", {"transformer.wte.weight": (6, 4), "transformer.wpe.weight": (6, 4)}),
    "opt": (
        "lm_head.weight",
        {"model.decoder.embed_tokens.weight": (6, 4), "model.decoder.embed_positions.weight": (6, 4)},
    ),
    "bloom": (
        "lm_head.weight",
        {"transformer.word_embeddings.weight": (6, 4), "transformer.word_embeddings_layernorm.weight": (4,)},
    ),
    "falcon": ("lm_head.weight", {"transformer.word_embeddings.weight": (6, 4)}),
    "gpt neox": ("embed_out.weight", {"gpt_neox.embed_in.weight": (6, 4)}),
    "mamba": ("lm_head.weight", {"backbone.embeddings.weight": (6, 4)}),
    "mamba, the original": ("lm_head.weight", {"backbone.embedding.weight": (6, 4)}),
    "openai gpt": (
        "lm_head.weight",
        {"transformer.tokens_embed.weight": (6, 4), "transformer.positions_embed.weight": (6, 4)},
    ),
    "ctrl": ("lm_head.weight", {"transformer.w.weight": (6, 4)}),
    "xlm": (
        "pred_layer.proj.weight",
        {"transformer.embeddings.weight": (6, 4), "transformer.position_embeddings.weight": (6, 4)},
    ),
    "xlnet": ("lm_loss.weight", {"transformer.word_embedding.weight": (6, 4)}),
    "bert": (
        "cls.predictions.decoder.weight",
        {
            "bert.embeddings.word_embeddings.weight": (6, 4),
            "bert.embeddings.position_embeddings.weight": (6, 4),
            "bert.embeddings.token_type_embeddings.weight": (2, 4),
        },
    ),
    "roberta": ("lm_head.decoder.weight", {"roberta.embeddings.word_embeddings.weight": (6, 4)}),
    "esm": ("lm_head.decoder.weight", {"esm.embeddings.word_embeddings.weight": (6, 4)}),
    "albert": ("predictions.decoder.weight", {"albert.embeddings.word_embeddings.weight": (6, 4)}),
    "modernbert": ("decoder.weight", {"model.embeddings.tok_embeddings.weight": (6, 4)}),
    "distilbert": ("vocab_projector.weight", {"distilbert.embeddings.word_embeddings.weight": (6, 4)}),
    "whisper": (
        "proj_out.weight",
        {"model.decoder.embed_tokens.weight": (6, 4), "model.encoder.embed_positions.weight": (6, 4)},
    ),
    "t5": (
        "lm_head.weight",
        {"shared.weight": (6, 4), "encoder.embed_tokens.weight": (6, 4), "decoder.embed_tokens.weight": (6, 4)},
    ),
    "bart": ("lm_head.weight", {"model.shared.weight": (6, 4), "model.decoder.embed_tokens.weight": (6, 4)}),
    "two stacks": ("lm_head.weight", {"decoder.embed_tokens.weight": (6, 4), "encoder.embed_tokens.weight": (6, 4)}),
    "llava": ("language_model.lm_head.weight", {"language_model.model.embed_tokens.weight": (6, 4)}),
    "rwkv": ("head.weight", {"rwkv.embeddings.weight": (6, 4)}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_beside_one_that_is_tied_is_averaged_with_the_embedding(
    family: str, normal: Normal, tmp_path: Path
) -> None:
    head, shapes = FAMILIES[family]
    embedding = next(iter(shapes))
    a, b = ({name: normal(*shape) for name, shape in shapes.items()} for _ in range(2))
    b[head] = normal(6, 4)
    for name, state in (("a", a), ("b", b)):
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    for order in ("ab", "ba"):
        merge_files(
            [tmp_path / f"{name}.safetensors" for name in order],
            tmp_path / "out.safetensors",
            execution=ExecutionOptions(fsync=False),
        )
        found = ws.load_checkpoint(tmp_path / "out.safetensors")
        torch.testing.assert_close(found[head], (a[embedding] + b[head]) / 2)
        torch.testing.assert_close(found[embedding], (a[embedding] + b[embedding]) / 2)


def test_an_embedding_of_another_shape_is_no_head() -> None:
    shapes = {"model.embed_tokens.weight": (6, 4)}
    assert tied_embedding(shapes, "lm_head.weight", (6, 4)) == "model.embed_tokens.weight"
    assert tied_embedding(shapes, "lm_head.weight", (7, 4)) is None
    assert tied_embedding(shapes, "score.weight", (6, 4)) is None
    assert tied_embedding({"a.wte.weight": (6, 4), "b.wte.weight": (6, 4)}, "lm_head.weight") is None


def test_heads_are_outside_numbered_layers() -> None:
    assert is_head("lm_head.weight")
    assert not any(
        map(is_head, ("layers.0.output.weight", "blocks.3.proj_out.weight", "x.decoder.weight", "lm_head.bias"))
    )


def test_embedding_head_and_bias_are_interchangeable() -> None:
    assert tied_counterpart({"lm_head.weight": (6, 4)}, "model.embed_tokens.weight", (6, 4)) == "lm_head.weight"
    assert (
        tied_counterpart({"cls.predictions.bias": (6,)}, "cls.predictions.decoder.bias", (6,)) == "cls.predictions.bias"
    )
    assert tied_counterpart({"lm_head.decoder.bias": (6,)}, "lm_head.bias", (6,)) == "lm_head.decoder.bias"
    assert tied_counterpart({"model.shared.weight": (6, 4)}, "model.encoder.embed_tokens.weight", (6, 4)) is not None
    assert tied_counterpart({"x.bias": (6,)}, "lm_head.decoder.bias", (6,)) is None


def test_names_that_are_tied_without_a_head_are_those_of_stacks_and_biases() -> None:
    assert missing_aliases(["model.shared.weight", "model.encoder.x", "model.decoder.x"]) == {
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    }
    assert missing_aliases(["shared.weight", "encoder.x"]) == {"encoder.embed_tokens.weight": "shared.weight"}
    bert = ["cls.predictions.bias", "cls.predictions.decoder.weight"]
    assert missing_aliases(bert) == {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    assert missing_aliases(["lm_head.bias", "lm_head.weight", "shared.weight"]) == {}


#: What a class is -> the head that it has, if any.
CLASSES = [
    ("LlamaForCausalLM", {}, "lm_head.weight"),
    ("GPT2LMHeadModel", {"model_type": "gpt2"}, "lm_head.weight"),
    ("GPTNeoXForCausalLM", {"model_type": "gpt_neox"}, "embed_out.weight"),
    ("BertForMaskedLM", {"model_type": "bert"}, "cls.predictions.decoder.weight"),
    ("EsmForMaskedLM", {"model_type": "esm"}, "lm_head.decoder.weight"),
    ("WhisperForConditionalGeneration", {"model_type": "whisper"}, "proj_out.weight"),
    ("MarianMTModel", {"model_type": "marian"}, "lm_head.weight"),
    ("BertModel", {"model_type": "bert"}, None),
    ("BertForSequenceClassification", {"model_type": "bert", "tie_word_embeddings": True}, None),
    ("LlamaForSequenceClassification", {"model_type": "llama", "tie_word_embeddings": True}, None),
    ("LlamaForCausalLM", {"model_type": "llama", "tie_word_embeddings": False}, None),
    ("LlavaForConditionalGeneration", {"text_config": {"tie_word_embeddings": False}}, None),
    (
        "LlavaForConditionalGeneration",
        {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
        "lm_head.weight",
    ),
    ("VisionEncoderDecoderModel", {"decoder": {"model_type": "bert"}}, "decoder.cls.predictions.decoder.weight"),
    ("MyForCausalLM", {"auto_map": {"AutoModel": "modeling.MyModel"}}, None),
]


@pytest.mark.parametrize(("architecture", "fields", "head"), CLASSES)
def test_the_class_of_a_model_determines_whether_it_has_a_head(
    architecture: str, fields: dict[str, Any], head: str | None
) -> None:
    config = {"architectures": [architecture], **fields}
    expected = {} if head is None else {head: "model.embed_tokens.weight"}
    assert hidden_ties(config, {"model.embed_tokens.weight": (6, 4)}) == expected
    assert hidden_ties(config, {"model.embed_tokens.weight": (6, 4), "lm_head.weight": (6, 4)}) == {}


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": [3]}, {"architectures": "x"}])
def test_a_configuration_that_says_nothing_ties_nothing(config: dict[str, Any]) -> None:
    assert hidden_ties(config, {"model.embed_tokens.weight": (6, 4)}) == {}
    assert is_declared_tied(config) is None


def test_a_configuration_is_untied_at_every_level() -> None:
    config = {"tie_word_embeddings": True, "text_config": {"x": 1}, "vision_config": {"y": 2}, "decoder": {"z": 3}}
    assert untied(config) == {
        "tie_word_embeddings": False,
        "text_config": {"x": 1, "tie_word_embeddings": False},
        "vision_config": {"y": 2},
        "decoder": {"z": 3, "tie_word_embeddings": False},
    }
    assert untied({"scale_decoder_outputs": True})["scale_decoder_outputs"] is False


@pytest.fixture
def folder(tmp_path: Path, normal: Normal) -> Callable[..., Path]:
    """Return ``folder(name, shapes, **fields)``: a model of random numbers with a configuration."""

    def build(name: str, shapes: dict[str, tuple[int, ...]], **fields: Any) -> Path:
        ws.save_checkpoint({key: normal(*shape) for key, shape in shapes.items()}, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(fields))
        return tmp_path / name

    return build


def merged_config(sources: list[Any], out: Path) -> dict[str, Any]:
    merge_files(sources, out, execution=ExecutionOptions(fsync=False))
    return json.loads((out / "config.json").read_text())


TIED = {"model.embed_tokens.weight": (6, 4)}
OWN = {**TIED, "lm_head.weight": (6, 4)}


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
@pytest.mark.parametrize("shapes", [(TIED, OWN), (OWN, TIED), (OWN, OWN)])
def test_a_head_of_its_own_is_always_declared(
    shapes: tuple[Any, Any], fields: dict[str, Any], folder: Callable[..., Path], tmp_path: Path
) -> None:
    sources = [folder(name, own, **fields) for name, own in zip("ab", shapes, strict=True)]
    config = merged_config(sources, tmp_path / "out")
    assert config["tie_word_embeddings"] is False
    assert all(part["tie_word_embeddings"] is False for part in config.values() if isinstance(part, dict))


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}])
def test_a_tied_head_is_declared_as_it_was(fields: dict[str, Any], folder: Callable[..., Path], tmp_path: Path) -> None:
    assert merged_config([folder("a", TIED, **fields), folder("b", TIED)], tmp_path / "out") == fields


def test_networks_without_words_are_not_declared_untied(folder: Callable[..., Path], tmp_path: Path) -> None:
    shapes = {"patch_embed.proj.weight": (6, 4), "head.weight": (6, 4), "output.weight": (6, 4)}
    assert merged_config([folder("a", shapes), folder("b", shapes)], tmp_path / "out") == {}


def test_a_head_that_a_configuration_denies_is_missing(folder: Callable[..., Path], tmp_path: Path) -> None:
    sources = [folder("a", OWN), folder("b", TIED, tie_word_embeddings=False)]
    with pytest.raises(CheckpointError, match=r"b has no tensor 'lm_head.weight'"):
        merge_files(sources, tmp_path / "out")


@pytest.mark.parametrize("fields", [{"model_type": "t5", "d_model": 4}, {"model_type": "mt5"}, {}])
def test_a_head_on_the_scale_of_a_tied_one_is_not_averaged_with_another(
    fields: dict[str, Any], folder: Callable[..., Path], tmp_path: Path
) -> None:
    shapes = {"shared.weight": (6, 4), "encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}
    sources = [folder("a", shapes, **fields), folder("b", {**shapes, "lm_head.weight": (6, 4)}, **fields)]
    with pytest.raises(CheckpointError, match="scales tied and untied heads differently"):
        merge_files(sources, tmp_path / "out")


def test_tensors_tied_to_the_head_are_written_as_well(folder: Callable[..., Path], tmp_path: Path) -> None:
    bert = {"bert.embeddings.word_embeddings.weight": (6, 4), "cls.predictions.bias": (6,)}
    sources = [folder("a", bert), folder("b", {**bert, "cls.predictions.decoder.weight": (6, 4)})]
    merge_files(sources, tmp_path / "out", execution=ExecutionOptions(fsync=False))
    found = ws.load_checkpoint(tmp_path / "out")
    assert torch.equal(found["cls.predictions.decoder.bias"], found["cls.predictions.bias"])
    bart = {"model.shared.weight": (6, 4), "model.encoder.x.weight": (2,), "model.decoder.x.weight": (2,)}
    sources = [folder("c", bart), folder("d", {**bart, "lm_head.weight": (6, 4)})]
    merge_files(sources, tmp_path / "out", execution=ExecutionOptions(fsync=False))
    found = ws.load_checkpoint(tmp_path / "out")
    for stack in ("encoder", "decoder"):
        assert torch.equal(found[f"model.{stack}.embed_tokens.weight"], found["model.shared.weight"])


def pair(normal: Normal, module: str, *, embedding: bool = False) -> dict[str, Tensor]:
    """Return factors of rank 2 for a tensor ``(6, 4)``."""
    if embedding:
        return {f"{module}.lora_embedding_A": normal(2, 6), f"{module}.lora_embedding_B": normal(4, 2)}
    return {f"{module}.lora_A.weight": normal(2, 4), f"{module}.lora_B.weight": normal(6, 2)}


def delta(tensors: dict[str, Tensor], module: str, *, embedding: bool = False) -> Tensor:
    """Return what they add, with a scale of 2."""
    if embedding:
        return 2 * (tensors[f"{module}.lora_embedding_B"] @ tensors[f"{module}.lora_embedding_A"]).T
    return 2 * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
T5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 4}
STACKS = {"shared.weight": (6, 4), "encoder.x.weight": (2, 2), "decoder.x.weight": (2, 2)}


def test_an_embedding_that_is_adapted_alone_leaves_a_head_without_a_tensor_as_it_was(
    folder: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    model, tensors = folder("m", TIED, **LLAMA), pair(normal, "model.embed_tokens", embedding=True)
    merge_files([f"{model}+{write('a', tensors)}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    before, found = ws.load_checkpoint(model), ws.load_checkpoint(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], before["model.embed_tokens.weight"])
    change = delta(tensors, "model.embed_tokens", embedding=True)
    torch.testing.assert_close(found["model.embed_tokens.weight"], before["model.embed_tokens.weight"] + change)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("architecture", ["BertModel", "BertForSequenceClassification", "LlamaModel"])
def test_the_embedding_of_a_network_without_a_head_is_adapted(
    architecture: str, folder: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    model = folder("m", TIED, architectures=[architecture], tie_word_embeddings=True)
    tensors = pair(normal, "model.embed_tokens", embedding=True)
    merge_files([f"{model}+{write('a', tensors)}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    found = ws.load_checkpoint(tmp_path / "out")
    assert list(found) == ["model.embed_tokens.weight"]
    change = delta(tensors, "model.embed_tokens", embedding=True)
    torch.testing.assert_close(
        found["model.embed_tokens.weight"] - change, ws.load_checkpoint(model)["model.embed_tokens.weight"]
    )


def test_positions_are_no_vocabulary(folder: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path) -> None:
    shapes = {"transformer.wte.weight": (6, 4), "transformer.wpe.weight": (6, 4)}
    model = folder("m", shapes, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    tensors = pair(normal, "transformer.wpe", embedding=True)
    merge_files([f"{model}+{write('a', tensors)}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    assert list(ws.load_checkpoint(tmp_path / "out")) == list(shapes)


def test_the_head_of_t5_is_put_on_the_scale_of_a_head_of_its_own(
    folder: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    model, tensors = folder("m", STACKS, **T5), pair(normal, "lm_head")
    merge_files([f"{model}+{write('a', tensors)}"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    shared, found = ws.load_checkpoint(model)["shared.weight"], ws.load_checkpoint(tmp_path / "out")
    torch.testing.assert_close(found["lm_head.weight"], (shared + delta(tensors, "lm_head")) / 2)
    for name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        assert torch.equal(found[name], shared)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


REFUSED: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str, bool, str]] = {
    "a scale that is not known": (
        {**T5, "model_type": "mt5"},
        STACKS,
        "lm_head",
        False,
        "scales tied heads by an unknown factor",
    ),
    "one of the stacks": (T5, STACKS, "encoder.embed_tokens", True, "and not 'decoder.embed_tokens.weight'"),
    "code of its own": (
        {"architectures": ["MyForCausalLM"], "auto_map": {}, "tie_word_embeddings": True},
        TIED,
        "model.embed_tokens",
        True,
        "tied to it and has no tensor",
    ),
    "a head that is denied": ({**LLAMA, "tie_word_embeddings": False}, TIED, "lm_head", False, "lacks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ties_that_cannot_be_separated_are_refused(
    case: str, folder: Callable[..., Path], write: Write, normal: Normal, tmp_path: Path
) -> None:
    config, shapes, module, embedding, expected = REFUSED[case]
    source = f"{folder('m', shapes, **config)}+{write('a', pair(normal, module, embedding=embedding))}"
    with pytest.raises(CheckpointError, match=expected) as error:
        merge_files([source], tmp_path / "out", dry_run=True)
    assert "\n" not in str(error.value)
