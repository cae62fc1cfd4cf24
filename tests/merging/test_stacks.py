"""The stack of layers that ``layer_range`` counts: told by names, by the configuration, by the recipe, or refused."""

import pytest

from weightspace.errors import WeightspaceError
from weightspace.merging.config.towers import precedes, tower
from weightspace.merging.slices.layer_index import Layers
from weightspace.merging.slices.layer_stacks import choose_stack


def names(**counts: int) -> list[str]:
    """Return three tensors per layer of each stack; ``__`` stands for a point."""
    paths = {stack.replace("__", "."): count for stack, count in counts.items()}
    return [f"{stack}.{i}.{part}.weight" for stack, count in paths.items() for i in range(count) for part in "abc"]


def chosen(listed: list[str], **options) -> str:
    return choose_stack(Layers(listed), "model", **options)


@pytest.mark.parametrize(
    ("listed", "stack"),
    [
        (names(model__layers=4), "model.layers"),
        (names(vision_tower__vision_model__encoder__layers=6, language_model__layers=4), "language_model.layers"),
        (names(visual__blocks=6, model__layers=4), "model.layers"),
        (names(visual__transformer__resblocks=6, transformer__resblocks=4), "transformer.resblocks"),
        (names(vision_model__encoder__layers=4, text_model__encoder__layers=4), "text_model.encoder.layers"),
        (
            names(audio_tower__layers=6, connector__layers=2, language_model__model__layers=4),
            "language_model.model.layers",
        ),
        (names(thinker__visual__blocks=4, thinker__model__layers=5, talker__model__layers=5), "thinker.model.layers"),
        (names(model__vision_embed_tokens__img_processor__layers=9, model__layers=4), "model.layers"),
        (names(backbone__layers=5), "backbone.layers"),
        (names(language_model__layers=4, codec__encoder__down=4, codec__decoder__up=4), "language_model.layers"),
        (names(model__layers=6, model__mtp__layers=2), "model.layers"),
        (names(git__encoder__layer=4, git__image_encoder__vision_model__encoder__layers=4), "git.encoder.layer"),
        (names(vision_model__encoder__layers=4), "vision_model.encoder.layers"),
        (names(wav2vec2__feature_extractor__conv_layers=7, wav2vec2__encoder__layers=4), "wav2vec2.encoder.layers"),
        (names(model__layers=1), "model.layers"),
    ],
)
def test_layer_range_means_the_text_model(listed: list[str], stack: str) -> None:
    assert chosen(listed) == stack


def test_a_small_text_model_is_not_overlooked_beside_a_large_vision_tower() -> None:
    large = [f"vision_tower.blocks.{i}.{j}.weight" for i in range(30) for j in range(20)]
    assert chosen([*large, *names(text_model__layers=2)]) == "text_model.layers"


def test_a_numbered_head_is_no_stack() -> None:
    assert chosen([*names(encoder__layer=6), "classifier.0.weight", "classifier.3.weight"]) == "encoder.layer"


TWO = names(encoder__block=6, decoder__block=4)


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (TWO, "encoder.block (6 layers), decoder.block (4 layers)"),
        (names(model__encoder__layers=4, model__decoder__layers=4), "model.encoder.layers (4 layers)"),
        (names(text_encoder__layers=2, text_decoder__layers=3), "text_decoder.layers (3 layers)"),
        (names(vit__encoder__layer=4, decoder__decoder_layers=2), "decoder.decoder_layers (2 layers)"),
        (names(vision_encoder__layers=6, mask_decoder__transformer__layers=2), "vision_encoder.layers (6 layers)"),
        (names(audio_encoder__layers=4, decoder__layers=4), "audio_encoder.layers (4 layers)"),
        (names(double_blocks=3, single_blocks=5), "single_blocks (5 layers)"),
    ],
)
def test_a_model_with_two_stacks_is_refused_with_a_line_that_shows_how_to_choose(listed: list[str], found: str) -> None:
    with pytest.raises(WeightspaceError) as error:
        chosen(listed, layer_range=(1, 3))
    assert found in str(error.value)
    assert "`layer_range: [1, 3]` with `stack: " in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("asked", "stack"),
    [("encoder.block", "encoder.block"), ("decoder.block", "decoder.block"), ("decoder", "decoder.block")],
)
def test_the_recipe_chooses_by_the_path_or_a_part_of_it(asked: str, stack: str) -> None:
    assert chosen(TWO, asked=asked) == stack


def test_a_part_that_leads_the_path_is_meant() -> None:
    """An encoder and a decoder that are both built from encoders."""
    listed = names(encoder__encoder__layer=3, decoder__bert__encoder__layer=3)
    assert chosen(listed, asked="encoder") == "encoder.encoder.layer"
    assert chosen(listed, asked="decoder") == "decoder.bert.encoder.layer"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("decoder.blok", r"no stack of layers 'decoder.blok'.*Did you mean decoder.block"),
        ("block", r"could be encoder.block .*, decoder.block .*; expected the full path"),
        ("lm_head", "it has encoder.block"),
    ],
)
def test_a_stack_that_is_not_there_is_refused(asked: str, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        chosen(TWO, asked=asked)


def test_the_configuration_decides_where_names_do_not() -> None:
    listed = names(left__layers=5, right__layers=7)
    assert chosen(listed, text_layers=7) == "right.layers"
    with pytest.raises(WeightspaceError, match="2 stacks"):
        chosen(listed, text_layers=6)
    with pytest.raises(WeightspaceError, match="2 stacks"):
        chosen(TWO, text_layers=6)  # both sides count as the text model's


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(WeightspaceError, match=r"stack of numbered layers.*model has none"):
        chosen(["weight", "bias"])


def test_parts_of_layers_in_lists_of_their_own_are_no_stack() -> None:
    listed = names(transformer__attentions=6, transformer__ffns=6)
    with pytest.raises(WeightspaceError, match=r"splits its layers between transformer.attentions"):
        chosen(listed, asked="attentions")


def test_towers_are_recognised_by_the_outermost_word_and_ordered_by_the_flow_of_data() -> None:
    assert tower("model.vision_tower.encoder.layers") == "vision"
    assert tower("speech_encoder.blocks") == "audio"
    assert tower("vision_language_adapter.layers") == "connector"
    assert tower("transformer.h") == "text"
    assert tower("conditioner.imageEncoder.blocks") == "vision"
    assert precedes("vision", "connector")
    assert precedes("connector", "text")
    assert not precedes("output", "text")
