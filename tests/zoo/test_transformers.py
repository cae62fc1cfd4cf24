"""The built-in transformers: their networks, their symmetries, and the task of predicting characters."""

import os
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.labels.wordnet import DEBIAN_FOLDER as WORDNET
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.derive import trace_symmetries
from weightspace.symmetry.kinds.verified import verify_symmetries
from weightspace.tasks import Task, train
from weightspace.tasks.protocol import TrainConfig
from weightspace.zoo import load_task
from weightspace.zoo.glosses import CHARACTERS, gloss_sequences, llama_glosses, sequences_of
from weightspace.zoo.language_task import LanguageTask
from weightspace.zoo.llama import Llama
from weightspace.zoo.vision_transformer import VisionTransformer, patches_of

WITH_WORDNET = pytest.mark.skipif(
    not WORDNET.exists() and os.environ.get("WEIGHTSPACE_CI") != "1", reason="apt-get install wordnet-base"
)

small_vit = partial(
    VisionTransformer, size=8, patch=4, channels=2, classes=5, width=12, depth=2, heads=3, hidden=10
)  # fmt: skip
small_llama = partial(Llama, vocabulary=11, length=9, width=24, depth=2, heads=4, groups=2, hidden=10)


def small_sequences() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        split: torch.randint(11, (count, 9), generator=generator)
        for split, count in (("train", 12), ("validation", 5), ("test", 7))
    }


@pytest.fixture(scope="module")
def small_task() -> LanguageTask:
    return LanguageTask("small", small_llama, small_sequences, batch_size=3, epoch=4, recipe=TrainConfig(epochs=2))


def test_patches_are_those_of_a_convolution() -> None:
    images, layer = torch.randn(3, 2, 8, 12), nn.Conv2d(2, 6, 4, stride=4, bias=False)
    by_convolution = layer(images).flatten(2).transpose(1, 2)
    assert torch.allclose(patches_of(images, 4) @ layer.weight.flatten(1).T, by_convolution, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "inputs", "inside"),
    [
        (small_vit, torch.randn(2, 2, 8, 8), "orthogonal"),
        (small_llama, torch.arange(18).view(2, 9) % 11, "phases"),
    ],
    ids=["vit", "llama"],
)
def test_stream_and_heads_may_be_mixed(network: partial, inputs: Tensor, inside: str) -> None:
    torch.manual_seed(0)
    module = network().eval()
    for norm in module.modules():
        if "norm" in type(norm).__name__.lower():
            for parameter in norm.parameters():
                nn.init.normal_(parameter, 1.0)
    spec = trace_symmetries(module, Inputs.of((inputs,)))
    kinds = [spec.kinds[group] for group, size in spec.groups.items()]
    assert kinds.count("orthogonal") == 1 + (4 if inside == "orthogonal" else 2)  # the stream, queries, values
    assert kinds.count("phases") == (2 if inside == "phases" else 0)
    assert max(verify_symmetries(spec, module, (inputs,))) < 1e-10


def test_llama_is_the_hub_s() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=24, intermediate_size=10, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    hub, ours = transformers.LlamaForCausalLM(config).eval(), small_llama().eval()
    ours.load_state_dict(hub.state_dict())
    tokens = torch.arange(18).view(2, 9) % 11
    with torch.no_grad():
        assert torch.allclose(ours(tokens), hub(tokens).logits, atol=1e-6)


def test_characters_are_read_back_and_rare_ones_share_a_token() -> None:
    text = 'A dog; "bark" (n. 1)' * 10
    found = sequences_of([text + "é{", "b" * 64])
    read = "".join(CHARACTERS[token] for row in found for token in row[:-1])
    rare = "\N{REPLACEMENT CHARACTER}"
    assert (text.lower() + 2 * rare + "\n" + "b" * 64 + "\n").startswith(read)
    assert found.shape[1] == 65
    assert torch.equal(found[1:, 0], found[:-1, -1])


def test_test_batches_are_the_split_and_the_score_is_their_mean_loss(small_task: LanguageTask) -> None:
    network = small_task.network()
    batches = list(small_task.batches("test", 0))
    tokens, following = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    loss = small_task.loss(network, (tokens, following))
    scores = small_task.score(network)
    assert scores["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    hits = network(tokens).argmax(-1) == following
    assert scores["accuracy"] == pytest.approx(float(hits.float().mean()))
    assert network.training


def test_training_is_reproducible_and_an_epoch_has_its_number_of_batches(small_task: LanguageTask) -> None:
    assert len(list(small_task.batches("train", 0))) == 4
    first, again, other = (train(small_task, seed) for seed in (3, 3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_an_unknown_split_is_refused(small_task: LanguageTask) -> None:
    with pytest.raises(WeightspaceError, match="no split 'dev'; expected train, validation, test"):
        small_task.score(small_task.network(), "dev")  # type: ignore[arg-type]


@WITH_WORDNET
def test_glosses_build_pickle_and_score() -> None:
    task = load_task("llama-glosses")
    assert isinstance(task, Task)
    assert len(pickle.dumps(task)) < 2_000
    network = task.network()
    network.load_state_dict(train(task, 0, epochs=0))
    scores = pickle.loads(pickle.dumps(task)).score(network, "validation")
    assert scores["loss"] == pytest.approx(torch.tensor(len(CHARACTERS)).log().item(), rel=0.1)
    assert task.example_args[0].shape == (4, 64)


@WITH_WORDNET
def test_the_splits_share_no_gloss() -> None:
    ends = CHARACTERS.index("\n")
    glosses = {}
    for split, sequences in gloss_sequences(WORDNET).items():
        text = "".join(CHARACTERS[token] for token in sequences[:4_000, :-1].flatten())
        glosses[split] = set(text.split(CHARACTERS[ends])[1:-1])
    shared = glosses["train"] & glosses["test"]
    assert len(shared) < 0.01 * len(glosses["test"])  # some synsets have the same gloss


@WITH_WORDNET
def test_the_width_is_a_parameter_of_the_llama() -> None:
    shapes = [llama_glosses(WORDNET, width=width).network().lm_head.weight.shape[1] for width in (96, 192)]
    assert shapes == [96, 192]
