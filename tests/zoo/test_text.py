"""Texts through an encoder of BERT's architecture: a minute one here, beside the one of transformers."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import TrainConfig
from weightspace.zoo.text import Texts, text_task
from weightspace.zoo.text_encoder import frozen_features, text_classifier, tokens_of

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "book", "very", "the", "is"]
LAYERS = 3


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(config)
    with torch.no_grad():  # nothing at its default, so that nothing is mistaken for another
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder)
    pieces = tokenizers.models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(pieces)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


TEXTS = ["the film is good", "bad", "the book is very very bad", "very good"]


def sentences(count: int, seed: int) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    begins = ["the", "the film", "the film is", "very"]
    texts = [f"{begins[at % 4]} {'good' if label else 'bad'}" for at, label in enumerate(labels.tolist())]
    return Texts(texts, labels)


def load() -> dict[str, Texts]:
    return {
        "train": sentences(64, 0),
        "validation": sentences(16, 1),
        "test": sentences(32, 2),
        "books": sentences(8, 3),
    }


@pytest.mark.parametrize("trained", [1, LAYERS])
def test_frozen_and_trained_layers_together_are_the_encoder_of_transformers(encoder: Path, trained: int) -> None:
    hidden = frozen_features(encoder, TEXTS, trained=trained, length=12)
    network = text_classifier(encoder, 2, trained=trained).eval()
    tokens = tokens_of(encoder, TEXTS, 12)
    seen = tokens.ne(0)
    assert torch.equal(hidden.ne(0).any(-1), seen)
    theirs = transformers.BertModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        states = theirs(tokens, attention_mask=seen, output_hidden_states=True).hidden_states
        assert torch.allclose(hidden[seen], states[LAYERS - trained][seen], atol=1e-5)
        for layer in network.layers:
            hidden = layer(hidden, src_key_padding_mask=~seen)
        assert torch.allclose(hidden[seen], states[-1][seen], atol=1e-5)
        network.head.weight.copy_(torch.eye(16)[:2])
        means = torch.stack([row[there].mean(0) for row, there in zip(states[-1], seen, strict=True)])
        found = network(frozen_features(encoder, TEXTS, trained=trained, length=12))
        assert torch.allclose(found, means[:, :2], atol=1e-5)


def test_the_features_of_a_text_do_not_depend_on_its_batch(encoder: Path) -> None:
    network = text_classifier(encoder, 2, trained=2).eval()
    torch.nn.init.normal_(network.head.weight)
    hidden = frozen_features(encoder, TEXTS, trained=2, length=12)
    alone = frozen_features(encoder, TEXTS[1:2], trained=2, length=12)
    assert torch.allclose(network(hidden)[1:2], network(alone), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_short_texts_reads_long_ones_to_their_end(encoder: Path) -> None:
    network = text_classifier(encoder, 2, trained=2).eval()
    torch.nn.init.normal_(network.head.weight)
    hidden = frozen_features(encoder, TEXTS, trained=2, length=12)
    shortest = hidden[hidden.ne(0).any(-1).sum(1).argmin()][None]
    with torch.no_grad():
        traced = torch.jit.trace(network, shortest, check_trace=False)
        assert torch.allclose(traced(hidden), network(hidden), atol=1e-5)


def test_fine_tunes_share_their_start_and_learn(encoder: Path) -> None:
    task = text_task("toy", encoder, load, 2, trained=2, length=10, recipe=TrainConfig(epochs=12, learning_rate=3e-3))
    start = ws.train(task, 0, epochs=0)
    assert all(torch.equal(tensor, start[name]) for name, tensor in task.network().state_dict().items())
    assert {name.split(".")[0] for name in start} == {"layers", "head"}
    first, again, other = (ws.train(task, seed) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])
    network = task.network()
    network.load_state_dict(ws.uniform_soup([first, other]))
    assert task.score(network)["accuracy"] > 0.9
    assert task.shifts == ("books",)


def test_a_spec_can_be_derived_and_holds(encoder: Path) -> None:
    task = text_task("toy", encoder, load, 2, trained=1, length=10)
    network = task.network().eval()
    torch.nn.init.normal_(network.head.weight)
    assert ws.derive_spec(network, task.example_args).groups


def test_missing_files_are_named(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"has no config\.json"):
        text_classifier(tmp_path, 2, trained=1)
    with pytest.raises(WeightspaceError, match=f"Found 4 layers to train; expected 1 to {LAYERS}"):
        text_classifier(encoder, 2, trained=4)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(WeightspaceError, match=r"type 'gpt2'.*expected BERT"):
        text_classifier(tmp_path, 2, trained=1)
