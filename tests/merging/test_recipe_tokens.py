"""The keys of a recipe about its tokenizer, as mergekit has them."""

import pytest

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.parse import parse_recipe
from weightspace.merging.recipe.types import TokenizerKeys, TokenSource

LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"

UNDERSTOOD = {
    "tokenizer_source: union": TokenizerKeys("union"),
    "tokenizer_source: b": TokenizerKeys("b"),
    "tokenizer: {}": TokenizerKeys("union"),
    "tokenizer: {source: base, pad_to_multiple_of: 64}": TokenizerKeys("base", multiple=64),
    "tokenizer: {source: {model: {path: b}}}": TokenizerKeys("b"),
    "tokenizer: {tokens: {x: {source: a, force: true}}}": TokenizerKeys("union", {"x": TokenSource("a", force=True)}),
    "tokenizer: {tokens: {x: {source: zero}}}": TokenizerKeys("union", {"x": TokenSource(zero=True)}),
    "tokenizer: {tokens: {x: {source: {kind: zero}}}}": TokenizerKeys("union", {"x": TokenSource(zero=True)}),
    "tokenizer: {tokens: {x: {source: {kind: model_token, model: b, token: y}}}}": TokenizerKeys(
        "union", {"x": TokenSource("b", "y")}
    ),
    "tokenizer: {tokens: {x: {source: {kind: model_token, model: b, token_id: 7}}}}": TokenizerKeys(
        "union", {"x": TokenSource("b", id=7)}
    ),
}

MISTAKEN = {
    "tokenizer: {pad_to_multiple_of: some}": "pad_to_multiple_of must be an integer from 0 to 1048576, found 'some'",
    "tokenizer: {tokens: {x: {sauce: a}}}": r"tokenizer.tokens\['x'\].sauce.*Did you mean",
    "tokenizer: {tokens: {x: {force: perhaps}}}": "force must be true or false",
    "tokenizer: {tokens: {x: {source: {kind: model_token, token: y}}}}": "source.model is missing",
    "tokenizer: {tokens: {x: {source: {kind: model_token, model: b}}}}": "must have either token or token_id",
    "tokenizer: {tokens: {x: {source: {kind: model_token, model: b, token_id: -1}}}}": "must be the index of a row",
    "tokenizer: {tokens: {x: {source: {kind: mean}}}}": "kind must be zero or model_token, found 'mean'",
}


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_what_mergekit_understands_is_understood(text: str) -> None:
    assert parse_recipe(f"{LINEAR}{text}\n", "recipe.yml").tokenizer == UNDERSTOOD[text]


@pytest.mark.parametrize("text", MISTAKEN)
def test_a_mistake_is_one_line_that_names_the_key(text: str) -> None:
    with pytest.raises(WeightspaceError, match=MISTAKEN[text]) as caught:
        parse_recipe(f"{LINEAR}{text}\n", "recipe.yml")
    assert "\n" not in str(caught.value)
