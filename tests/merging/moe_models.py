"""Tiny dense models of transformers with a tokenizer of words, and recipes of mixtures of them."""

from pathlib import Path
from typing import Any

import torch
import yaml

SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
WORDS = (
    *("<s>", "</s>", "<unk>", "the", "of", "maths", "prove", "theorem", "number", "write", "code", "python"),
    *("function", "poem", "love", "rhyme", "a", "to", "and"),
)
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def save_model(kind: str, seed: int, path: str, dtype: torch.dtype = torch.float32, **config: Any) -> None:
    """Write a random model of a kind with its tokenizer."""
    import transformers

    torch.manual_seed(seed)
    settings = getattr(transformers, f"{CLASSES[kind]}Config")(**{**SIZES, "head_dim": 4, **config})
    model = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.normal_(1.0, 0.2)
    model.to(dtype).save_pretrained(path)
    save_tokenizer(path)


def save_tokenizer(path: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)


def write_recipe(path: str = "recipe.yml", *, experts: Any = ("a", "b"), **keys: Any) -> Path:
    """Write a recipe; an expert is a name, which gets a prompt, or an entry as it is."""
    prompts = ("prove the theorem", "write python code", "love and rhyme", "number of maths")
    entries = [
        one if isinstance(one, dict) else {"source_model": one, "positive_prompts": [text]}
        for one, text in zip(experts, prompts, strict=False)
    ]
    content = {"base_model": "a", "gate_mode": "random", "experts": entries, **keys}
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Path(path)


def logits(path: str) -> torch.Tensor:
    """Return a model's logits for one text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(SIZES["vocab_size"])[None]).logits
