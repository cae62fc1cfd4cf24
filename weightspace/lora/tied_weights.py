"""Tied weights of language models: heads and embeddings that share a tensor, which files may store once.

Names are those of tensors in files. A model's configuration says whether its head is tied; a head without a tensor is
tied unless the configuration denies it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

from weightspace.lora.model_config import architecture

#: Tensor -> its shape.
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: Suffixes of the module names of language model heads, the most common one last.
_HEADS: Mapping[str, str] = {
    "lm_head.decoder": "camembert data2vec-text roberta-prelayernorm roberta xlm-roberta-xl xlm-roberta xmod ibert gte "
    "jina_embeddings_v3 longformer mpnet esm bert-generation",
    "cls.predictions.decoder": "bert big_bird ernie megatron-bert roc_bert roformer deberta deberta-v2 fnet layoutlm "
    "mobilebert mra nystromformer squeezebert tapas yoso lxmert visual_bert nomic_bert",
    "predictions.decoder": "albert",
    "vocab_projector": "distilbert",
    "generator_lm_head": "electra convbert",
    "decoder": "modernbert modernbert-decoder",
    "pred_layer.proj": "flaubert xlm",
    "lm_loss": "xlnet",
    "output_projection": "biogpt trocr",
    "proj_out": "whisper moonshine canary",
    "embed_out": "gpt_neox gpt_neox_japanese",
    "output": "git",
    "head": "rwkv",
    "lm_head.out_proj": "t5gemma t5gemma2",
    "text_decoder.cls.predictions.decoder": "blip",
    "text_model.lm_head": "kosmos-2",
    "lm_head": "",
}
_HEAD_OF_TYPE = {model_type: head for head, types in _HEADS.items() for model_type in types.split()}

#: The same as a pattern; short names, which other networks also use, must match as a whole.
_HEAD = re.compile(
    r"(.*\.)?(lm_head(\.decoder|\.out_proj)?|embed_out|proj_out|output_projection|output|output_layer|vocab_projector"
    r"|(cls\.)?predictions\.decoder|generator_lm_head|pred_layer\.proj|lm_loss)\.weight|(head|decoder)\.weight"
)

#: Biases of heads that have two names: the layer's, and its parent's.
_BIASES = (("predictions.decoder.bias", "predictions.bias"), ("lm_head.decoder.bias", "lm_head.bias"))

#: Name prefixes of models whose head has its bias next to the layer instead of in it.
_WITHOUT_BIAS = ("esm.",)

#: Suffixes of token embeddings, excluding those of positions and types, and norms.
_TOKENS = re.compile(
    r"(.*\.)?(embed_tokens|wte|(word|tok|token)_embeddings?|embed_in|tokens_embed|shared|embed"
    r"|(backbone|transformer|rwkv)\.(embeddings?|w))\.weight"
)

#: Classes with a head over tokens.
_LANGUAGE = re.compile(
    r".*(?P<plain>ForCausalLM|LMHeadModel|ForConditionalGeneration|MTModel)|.*(ForMaskedLM|ForPreTraining)"
)

#: Types whose ``tie_word_embeddings`` also scales the decoder's output by ``d_model ** -0.5``, and those for which this
#: depends on the version of transformers.
_SCALED = ("t5", "umt5", "longt5", "switch_transformers")
_UNSETTLED = ("mt5", "udop", "pop2piano")

#: Classes made of an encoder and a language model as decoder.
_COMPOSITE = ("EncoderDecoderModel", "VisionEncoderDecoderModel", "SpeechEncoderDecoderModel")

#: Sub-model keys of a configuration that are the language model.
_PARTS = ("text_config", "language_config", "llm_config", "decoder", "thinker_config")


def is_head(name: str) -> bool:
    """Return whether a tensor is named like the head of a language model."""
    return _HEAD.fullmatch(name) is not None and not _is_numbered(name)


def is_token_embedding(name: str) -> bool:
    """Return whether a tensor is named like a token embedding."""
    return _TOKENS.fullmatch(name) is not None and not _is_numbered(name)


def tied_embedding(shapes: Shapes, head: str, shape: tuple[int, ...] | None = None) -> str | None:
    """Return the embedding that a model uses as its head if the head has no tensor.

    Args:
        shapes: tensors of the model.
        head: name of the missing head.
        shape: shape of the head, if known; that of the embedding is the same.

    Returns:
        The embedding; None if ``head`` isn't a head, or no or several embeddings fit.
    """
    if not is_head(head):
        return None
    found = [name for name in shapes if is_token_embedding(name) and len(shapes[name]) == 2]
    found = [name for name in found if shape is None or shapes[name] == shape]
    nearest = max((_common(name, head) for name in found), default=0)
    found = [name for name in found if _common(name, head) == nearest]
    for part in ("shared", "decoder"):  # in encoder-decoder models: the shared one, or that of the decoder
        found = [name for name in found if part in name.split(".")] or found
    return found[0] if len(found) == 1 else None


def tied_counterpart(shapes: Shapes, name: str, shape: tuple[int, ...]) -> str | None:
    """Return the tensor that a model uses in place of a missing embedding, head or head bias.

    Args:
        shapes: tensors of the model.
        name: name of the missing tensor.
        shape: shape of the missing tensor in another model.
    """
    for owner, alias in _pairs(name):
        found = owner if alias == name else alias
        if shapes.get(found) == shape:
            return found
    if not is_token_embedding(name):
        return tied_embedding(shapes, name, shape)
    heads = [head for head in shapes if is_head(head) and shapes[head] == shape]
    others = any(is_token_embedding(other) for other in shapes)
    return heads[0] if len(heads) == 1 and not others else None


def missing_aliases(names: Collection[str]) -> dict[str, str]:
    """Return missing second names of tied tensors -> the first; the head's isn't included.

    Args:
        names: names of the model's tensors.
    """
    aliases: dict[str, str] = {}
    for name in names:
        for owner, alias in _pairs(name):
            if owner == name and alias not in names and _is_used(alias, names):
                aliases[alias] = owner
    return aliases


def hidden_ties(config: dict[str, Any], shapes: Shapes) -> dict[str, str]:
    """Return names of weights without a tensor -> the one that they share.

    Args:
        config: configuration of the model; an empty one gives none.
        shapes: tensors of the model.
    """
    if not config:
        return {}
    head, ties = _missing_head(config, shapes), {}
    if head is not None and is_declared_tied(config) is not False:
        embedding = tied_embedding(shapes, head)
        if embedding is not None:
            ties[head] = embedding
    return ties | missing_aliases({**shapes, **ties})


def has_unknown_head(config: dict[str, Any], shapes: Shapes) -> bool:
    """Return whether a model may have a tied head with an unknown name, because it comes with its own code."""
    tied = is_declared_tied(config) is not False and not any(map(is_head, shapes))
    return tied and "auto_map" in config and _LANGUAGE.fullmatch(architecture(config)) is not None


def is_declared_tied(config: dict[str, Any]) -> bool | None:
    """Return whether a configuration says that head and embedding are tied, or None if it doesn't say."""
    parts = [config, *(config[key] for key in _PARTS if isinstance(config.get(key), dict))]
    said = [part["tie_word_embeddings"] for part in parts if isinstance(part.get("tie_word_embeddings"), bool)]
    return any(said) if said else None


def head_scale(config: dict[str, Any], names: Collection[str]) -> float | None:
    """Return the factor of a tied head when it gets its own tensor: T5's uses another scale.

    Args:
        config: configuration of the model, or an empty one.
        names: names of the model's tensors.

    Returns:
        The factor; None if it is unknown.
    """
    model_type = config.get("model_type", "t5" if any(".SelfAttention." in name for name in names) else "")
    if model_type in _UNSETTLED:
        return None
    if model_type not in _SCALED or config.get("scale_decoder_outputs") is False:
        return 1.0
    width = config.get("d_model")
    return width**-0.5 if isinstance(width, int) and 0 < width < 2**31 else None


def is_scaled(config: dict[str, Any]) -> bool:
    """Return whether ``tie_word_embeddings`` also implies a scale for a model's head."""
    return config.get("model_type") in (*_SCALED, *_UNSETTLED)


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with an untied head, for the whole model and the language model."""
    changed = dict(config) | {"tie_word_embeddings": False}
    if "scale_decoder_outputs" in config:
        changed["scale_decoder_outputs"] = False
    return changed | {key: untied(config[key]) for key in _PARTS if isinstance(config.get(key), dict)}


def _missing_head(config: dict[str, Any], shapes: Shapes) -> str | None:
    """Return the name of the head that a model's class has but its files lack."""
    found, front = architecture(config), ""
    if found in _COMPOSITE and isinstance(config.get("decoder"), dict):
        config, found, front = config["decoder"], "ForCausalLM", "decoder."
    kind = _LANGUAGE.fullmatch(found)
    if "auto_map" in config or kind is None or any(map(is_head, shapes)):
        return None
    head = _HEAD_OF_TYPE.get(str(config.get("model_type")), "lm_head" if kind["plain"] else None)
    if head is None:
        return None
    if any(name.startswith("language_model.model.") for name in shapes):
        front = "language_model."
    return f"{front}{head}.weight"


def _pairs(name: str) -> Iterator[tuple[str, str]]:
    """Yield the ties that a tensor may belong to, judging by its name: the owner, and its other name."""
    for stack in ("encoder.", "decoder."):
        alias = f"{stack}embed_tokens.weight"
        if name == "shared.weight" or name.endswith(".shared.weight"):
            yield name, name.removesuffix("shared.weight") + alias
        if name == alias or name.endswith(f".{alias}"):
            yield name.removesuffix(alias) + "shared.weight", name
    for alias, owner in _BIASES:
        if name == owner or name.endswith(f".{owner}"):
            yield name, name.removesuffix(owner) + alias
        if name == alias or name.endswith(f".{alias}"):
            yield name.removesuffix(alias) + owner, name


def _is_used(alias: str, names: Collection[str]) -> bool:
    """Return whether a model has the layer of a bias, or the stack of an embedding."""
    if alias.endswith(".bias"):
        return f"{alias.removesuffix('bias')}weight" in names and not any(map(_is_without_bias, names))
    stack = alias.removesuffix("embed_tokens.weight")
    return any(name.startswith(stack) for name in names)


def _is_without_bias(name: str) -> bool:
    return name.startswith(_WITHOUT_BIAS)


def _is_numbered(name: str) -> bool:
    """Return whether a tensor belongs to a numbered layer."""
    return any(part.isdigit() for part in name.split("."))


def _common(name: str, other: str) -> int:
    """Return the number of leading components that two names share."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(name.count("."), other.count(".")) + 1)
