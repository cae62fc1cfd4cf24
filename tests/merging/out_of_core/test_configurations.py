"""The configuration of the output agrees with its tensors: dtypes by tower, layers by stack, files beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files
from weightspace.merging.config.sections import count_keys, section_of, side_of, text_layers


def stack(path: str, layers: int, width: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {f"{path}.{i}.{part}.weight": torch.ones(width, 2, dtype=dtype) for i in range(layers) for part in "ab"}


def save(folder: Path, state: dict[str, torch.Tensor], **files: Any) -> None:
    """Save a model with files beside it; ``config`` means ``config.json``."""
    ws.save_checkpoint(state, folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def sliced(folder: Path, *ranges: tuple[int, int], name: str = "config", **keys: str) -> dict[str, Any]:
    """Stack slices of one model and return a file of the output."""
    sources = [{"sources": [{"model": str(folder), "layer_range": list(bounds), **keys}]} for bounds in ranges]
    recipe = folder.parent / "recipe.yml"
    recipe.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": sources}))
    merge_files(recipe, folder.parent / "out", execution=ExecutionOptions(fsync=False))
    return json.loads((folder.parent / "out" / f"{name}.json").read_text())


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in after.items() if before.get(key) != value}


@pytest.mark.parametrize(
    ("path", "config", "expected"),
    [
        ("model.layers", {"num_hidden_layers": 4}, {"num_hidden_layers": 6}),
        ("h", {"n_layer": 4, "n_head": 4}, {"n_layer": 6}),
        ("blocks", {"n_layers": 4, "num_hidden_layers": 4}, {"n_layers": 6, "num_hidden_layers": 6}),
        ("blocks", {"depth": 4, "num_heads": 4}, {"depth": 6}),
        ("model.layers", {"model_type": "llama"}, {"num_hidden_layers": 6}),
        ("audio_tower.layers", {"encoder_layers": 4, "decoder_layers": 3}, {"encoder_layers": 6}),
        (
            "language_model.layers",
            {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}},
            {"text_config": {"num_hidden_layers": 6}},
        ),
        (
            "language_model.layers",
            {"text_config": {"model_type": "llama"}, "vision_config": {"num_hidden_layers": 4}},
            {"text_config": {"model_type": "llama", "num_hidden_layers": 6}},
        ),
        (
            "vision_tower.layers",
            {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 4}},
            {"vision_config": {"depth": 6}},
        ),
        ("model.layers", {"num_hidden_layers": 4, "vision_config": {"num_hidden_layers": 4}}, {"num_hidden_layers": 6}),
        (
            "model.layers",
            {"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 4}},
            {"num_hidden_layers": 6, "text_config": {"num_hidden_layers": 6}},
        ),
        (
            "thinker.model.layers",
            {"thinker_config": {"text_config": {"num_hidden_layers": 4}}, "talker_config": {"num_hidden_layers": 4}},
            {"thinker_config": {"text_config": {"num_hidden_layers": 6}}},
        ),
        ("transformer.layers", {"model_type": "openelm", "num_transformer_layers": 4}, {"num_transformer_layers": 6}),
        (
            "text_model.layers",
            {"text_config": {"num_hidden_layers": 4}, "text_config_dict": {"num_hidden_layers": 4, "hidden_size": 4}},
            {"text_config": {"num_hidden_layers": 6}, "text_config_dict": {"num_hidden_layers": 6, "hidden_size": 4}},
        ),
        (
            "vision_model.layers",
            {"vision_config": {"num_hidden_layers": 4}, "vision_config_dict": {"hidden_size": 4}},
            {"vision_config": {"num_hidden_layers": 6}},
        ),
        ("model.layers", {"num_hidden_layers": 9}, {"num_hidden_layers": 6}),
        ("model.layers", {"num_hidden_layers": 8, "num_layers": 4}, {"num_layers": 6}),
    ],
)
def test_the_number_of_layers_is_written_where_the_stack_is_described(
    path: str, config: dict, expected: dict, tmp_path: Path
) -> None:
    save(tmp_path / "a", stack(path, 4), config=config)
    assert changed(config, sliced(tmp_path / "a", (0, 3), (1, 4))) == expected


@pytest.mark.parametrize("key", ["num_body_layers", "blocks_total", "trunk_depth"])
def test_a_key_that_may_hold_the_number_of_layers_is_not_passed_over(key: str, tmp_path: Path) -> None:
    save(tmp_path / "a", stack("model.layers", 4), config={"model_type": "novel", key: 4})
    with pytest.raises(WeightspaceError, match="has no known key for the number of layers"):
        sliced(tmp_path / "a", (0, 3), (1, 4))


FLUX = {"_class_name": "FluxTransformer2DModel", "num_layers": 4, "num_attention_heads": 4}


@pytest.mark.parametrize("single", [4, 7])
@pytest.mark.parametrize(
    ("asked", "key"), [("single_transformer_blocks", "num_single_layers"), ("transformer_blocks", "num_layers")]
)
def test_stacks_side_by_side_are_counted_by_their_names(asked: str, key: str, single: int, tmp_path: Path) -> None:
    config = {**FLUX, "num_single_layers": single}
    state = {**stack("transformer_blocks", 4), **stack("single_transformer_blocks", single)}
    save(tmp_path / "a", state, config=config)
    ranges = (0, 2), (3, config[key])
    assert changed(config, sliced(tmp_path / "a", *ranges, stack=asked)) == {key: config[key] - 1}


def test_a_number_of_layers_that_is_another_stacks_is_not_written_over(tmp_path: Path) -> None:
    config = {"model_type": "lxmert", "num_hidden_layers": 12, "l_layers": 4, "r_layers": 3}
    state = {**stack("lxmert.encoder.layer", 4), **stack("lxmert.encoder.r_layers", 3)}
    save(tmp_path / "a", state, config=config)
    with pytest.raises(WeightspaceError, match="has no known key for the number of layers"):
        sliced(tmp_path / "a", (0, 2), (3, 4), stack="lxmert.encoder.layer")
    assert changed(config, sliced(tmp_path / "a", (0, 2), stack="r_layers")) == {"r_layers": 2}


@pytest.mark.parametrize(
    ("asked", "expected"), [("vit", {"num_hidden_layers": 6}), ("decoder", {"decoder_num_hidden_layers": 6})]
)
def test_a_vision_encoder_and_its_decoder_are_counted_apart(asked: str, expected: dict, tmp_path: Path) -> None:
    config = {"model_type": "vit_mae", "num_hidden_layers": 4, "decoder_num_hidden_layers": 4}
    save(tmp_path / "a", {**stack("vit.encoder.layer", 4), **stack("decoder.decoder_layers", 4)}, config=config)
    assert changed(config, sliced(tmp_path / "a", (0, 3), (1, 4), stack=asked)) == expected


@pytest.mark.parametrize(
    ("config", "encoder", "decoder"),
    [
        ({"encoder_layers": 4, "decoder_layers": 4}, {"encoder_layers": 6}, {"decoder_layers": 6}),
        (
            {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
            {"encoder_layers": 6, "num_hidden_layers": 6},
            {"decoder_layers": 6},
        ),
        ({"num_layers": 4, "num_decoder_layers": 4}, {"num_layers": 6}, {"num_decoder_layers": 6}),
        ({"num_layers": 4}, {"num_layers": 6, "num_decoder_layers": 4}, {"num_decoder_layers": 6}),
        (
            {"encoder_num_hidden_layers": 4, "decoder_num_hidden_layers": 4},
            {"encoder_num_hidden_layers": 6},
            {"decoder_num_hidden_layers": 6},
        ),
        (
            {
                "encoder": {"model_type": "bert", "num_hidden_layers": 4},
                "decoder": {"model_type": "gpt2", "n_layer": 4},
            },
            {"encoder": {"model_type": "bert", "num_hidden_layers": 6}},
            {"decoder": {"model_type": "gpt2", "n_layer": 6}},
        ),
    ],
)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_each_side_of_an_encoder_with_a_decoder_has_its_own_number(
    config: dict, encoder: dict, decoder: dict, side: str, tmp_path: Path
) -> None:
    save(tmp_path / "a", {**stack("encoder.block", 4), **stack("decoder.block", 4)}, config=config)
    found = sliced(tmp_path / "a", (0, 3), (1, 4), stack=side)
    assert changed(config, found) == (encoder if side == "encoder" else decoder)


def test_dtypes_are_written_for_each_tower(tmp_path: Path) -> None:
    state = {
        **stack("vision_tower.layers", 2, dtype=torch.float32),
        **stack("language_model.layers", 2, width=8, dtype=torch.float16),
    }
    config = {
        "torch_dtype": "float32",
        "text_config": {"torch_dtype": "float32", "num_hidden_layers": 2},
        "vision_config": {"dtype": "bfloat16", "num_hidden_layers": 2},
        "audio_config": {"dtype": None},
    }
    save(tmp_path / "a", state, config=config)
    merge_files([tmp_path / "a", tmp_path / "a"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["torch_dtype"] == "float16"
    assert found["text_config"]["torch_dtype"] == "float16"
    assert found["vision_config"]["dtype"] == "float32"
    assert found["audio_config"]["dtype"] is None
    merge_files(
        [tmp_path / "a", tmp_path / "a"],
        tmp_path / "other",
        out_dtype="bfloat16",
        execution=ExecutionOptions(fsync=False),
    )
    found = json.loads((tmp_path / "other" / "config.json").read_text())
    assert [found["torch_dtype"], found["text_config"]["torch_dtype"], found["vision_config"]["dtype"]] == [
        "bfloat16"
    ] * 3


def test_lists_are_cut_with_the_layers_of_the_model_that_gives_them(tmp_path: Path) -> None:
    for name, kinds in (("a", list("pqrs")), ("b", list("PQRS"))):
        save(tmp_path / name, stack("model.layers", 4), config={"num_hidden_layers": 4, "layer_types": kinds})
    slices = [
        {"sources": [{"model": str(tmp_path / name), "layer_range": bounds}]}
        for name, bounds in (("a", [0, 3]), ("b", [1, 4]))
    ]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    merge_files(tmp_path / "r.yml", tmp_path / "out", execution=ExecutionOptions(fsync=False))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == list("pqrQRS")


def test_merging_layers_that_configurations_distinguish_is_noticed(tmp_path: Path) -> None:
    for name, kinds in (("a", list("pppp")), ("b", list("ppqq"))):
        save(tmp_path / name, stack("model.layers", 4), config={"num_hidden_layers": 4, "layer_types": kinds})
    sources = [{"model": str(tmp_path / name), "layer_range": [0, 4], "parameters": {"weight": 1}} for name in "ab"]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "linear", "slices": [{"sources": sources}]}))
    report = merge_files(tmp_path / "r.yml", tmp_path / "out", execution=ExecutionOptions(fsync=False))
    assert any(
        "Layer 2 of a and layer 2 of b, which are merged, differ in layer_types" in line for line in report.warnings
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == list("pppp")


def test_a_number_of_layers_that_is_not_that_of_the_names_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "a", stack("model.layers", 3), config={"num_hidden_layers": 5})
    recipe = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": str(tmp_path / "a"), "layer_range": [0, 2]}]}],
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    report = merge_files(tmp_path / "r.yml", tmp_path / "out", execution=ExecutionOptions(fsync=False))
    assert any("config.json of a says num_hidden_layers: 5, but model.layers has 3" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 4, "layer_types": ["x"] * 3}, "3 entries in 'layer_types', but 'model.layers' has 4"),
        ({"hidden_size": 2}, "has no known key for the number of layers"),
        ({"architecture": "resnet50"}, "timm's 'resnet50'"),
        ({"num_hidden_layers": 4, "model_type": "diffllama"}, "by their numbers .*position 3 gets layer 1 of a"),
        ({"num_hidden_layers": 4, "model_type": "zamba2"}, "by their numbers"),
    ],
)
def test_a_configuration_that_cannot_follow_is_refused_unless_a_file_is_asked_for(
    config: dict, message: str, tmp_path: Path
) -> None:
    save(tmp_path / "a", stack("model.layers", 4), config=config)
    with pytest.raises(WeightspaceError, match=message) as error:
        sliced(tmp_path / "a", (0, 3), (1, 4))
    assert len(str(error.value)) < 500
    assert not (tmp_path / "out").exists()
    if "entries" not in message:
        merge_files(tmp_path / "recipe.yml", tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
        assert len(ws.load_checkpoint(tmp_path / "out.safetensors")) == 12


@pytest.mark.parametrize(("read", "refused"), [(-2, False), ([-1, -2], False), (3, True), ([1, -1], True)])
def test_layers_that_a_language_model_reads_by_number_keep_it(read: object, refused: bool, tmp_path: Path) -> None:
    config = {"vision_feature_layer": read, "vision_config": {"num_hidden_layers": 4}}
    save(tmp_path / "a", {**stack("vision_tower.layers", 4), **stack("language_model.layers", 4)}, config=config)
    if refused:
        with pytest.raises(WeightspaceError, match=r"vision_feature_layer: .* position 3 gets layer 1 of a"):
            sliced(tmp_path / "a", (0, 3), (1, 4), stack="vision_tower")
    else:
        assert sliced(tmp_path / "a", (0, 3), (1, 4), stack="vision_tower")["vision_config"] == {"num_hidden_layers": 6}


def test_layers_that_share_tensors_do_not_come_from_several_models(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / name, stack("model.layers", 4), config={"num_hidden_layers": 4, "model_type": "zamba"})
    slices = [
        {"sources": [{"model": str(tmp_path / name), "layer_range": bounds}]}
        for name, bounds in (("a", [0, 2]), ("b", [2, 4]))
    ]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    with pytest.raises(WeightspaceError, match="'zamba', whose layers share tensors"):
        merge_files(tmp_path / "r.yml", tmp_path / "out")


def test_open_clip_counts_the_layers_of_its_towers_in_a_file_of_its_own(tmp_path: Path) -> None:
    state = {**stack("visual.transformer.resblocks", 3), **stack("transformer.resblocks", 4)}
    settings = {"model_cfg": {"vision_cfg": {"layers": 3}, "text_cfg": {"layers": 4}}}
    save(tmp_path / "a", state, open_clip_config=settings)
    found = sliced(tmp_path / "a", (0, 3), (1, 4), name="open_clip_config")
    assert found == {"model_cfg": {"vision_cfg": {"layers": 3}, "text_cfg": {"layers": 6}}}


def test_mistrals_own_file_counts_its_layers(tmp_path: Path) -> None:
    save(tmp_path / "a", stack("layers", 4), params={"dim": 2, "n_layers": 4})
    assert sliced(tmp_path / "a", (0, 3), (1, 4), name="params") == {"dim": 2, "n_layers": 6}


def test_a_vision_transformer_of_timm_gets_its_depth(tmp_path: Path) -> None:
    save(tmp_path / "a", stack("blocks", 4), config={"architecture": "vit_tiny_patch16_224", "num_classes": 3})
    assert sliced(tmp_path / "a", (0, 3), (1, 4))["model_args"] == {"depth": 6}


def test_the_alignment_heads_follow_the_layers_of_the_decoder(tmp_path: Path) -> None:
    state = {**stack("model.encoder.layers", 4), **stack("model.decoder.layers", 4)}
    config = {"encoder_layers": 4, "decoder_layers": 4}
    save(tmp_path / "a", state, config=config, generation_config={"alignment_heads": [[1, 0], [3, 1]]})
    found = sliced(tmp_path / "a", (0, 3), (1, 4), name="generation_config", stack="decoder")
    assert found["alignment_heads"] == [[1, 0], [3, 0], [5, 1]]


def test_layers_that_stay_leave_the_configuration_as_it_is(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 7, "model_type": "diffllama", "odd_list": [1, 2, 3, 4]}
    save(tmp_path / "a", stack("model.layers", 4), config=config)
    assert sliced(tmp_path / "a", (0, 2), (2, 4)) == config


def test_parts_of_configurations_are_found_by_the_words_of_a_stack() -> None:
    clip = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 3}, "projection_dim": 4}
    assert section_of(clip, "text_model.encoder.layers") == ("text_config",)
    assert section_of(clip, "visual.blocks") == ("vision_config",)
    assert section_of({"num_hidden_layers": 2, "vision_config": {"depth": 3}}, "model.layers") == ()
    assert text_layers(clip) == 2
    assert text_layers({"num_hidden_layers": 2}) is None


def test_encoder_and_decoder_are_named_where_a_tower_has_both() -> None:
    assert side_of("encoder.layer", ["encoder.layer"]) is None
    assert side_of("model.decoder.layers", ["model.encoder.layers", "model.decoder.layers"]) == "decoder"
    assert side_of("language_model.layers", ["vision_encoder.layers", "language_model.layers"]) is None
    assert count_keys({"encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 2}, "encoder") == [
        "encoder_layers",
        "num_hidden_layers",
    ]
