"""A score by lm-evaluation-harness itself: a tiny random model and a local task, beside transformers' likelihoods."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from weightspace.searching import LmEvalScore

ANIMALS, SOUNDS = ["cat", "dog", "cow", "sheep"], ["meow", "woof", "moo", "baa"]
WORDS = ["<s>", "</s>", "a", "says", *ANIMALS, *SOUNDS]
TASK = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "a {{animal}} says"
doc_to_choice: [meow, woof, moo, baa]
doc_to_target: answer
metric_list: [{metric: acc}]
"""


def network(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32}
    heads: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=1.0, bos_token_id=0, eos_token_id=1))


def save(model: LlamaForCausalLM, folder: Path) -> None:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accuracy(model: LlamaForCausalLM) -> float:
    """Return the share of animals whose own sound is the likeliest, a single token after the question."""
    hits = 0
    for animal, sound in zip(ANIMALS, SOUNDS, strict=True):
        question = torch.tensor([[WORDS.index(word) for word in ("a", animal, "says")]])
        with torch.no_grad():
            last = model(question).logits[0, -1]
        hits += max(SOUNDS, key=lambda one: float(last[WORDS.index(one)])) == sound
    return hits / len(ANIMALS)


def test_the_harness_scores_a_model_by_a_local_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"animal": animal, "answer": number} for number, animal in enumerate(ANIMALS)]
    Path("animals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("animals.yaml").write_text(TASK)
    model = network(seed=1)
    save(model, tmp_path / "model")
    expected = accuracy(model)
    assert 0 < expected < 1
    assert LmEvalScore("animals.yaml", "cpu")(tmp_path / "model") == expected
