"""Slices from files to files: which stack is cut, what lies outside it, and which layers do not fit together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from slices_workshop import Workshop, first, full, llama, order, stack

from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_other_towers_stay_whole_and_belong_to_the_first_slice(workshop: Workshop) -> None:
    for name, value in (("a", 0.0), ("b", 100.0)):
        towers = {**stack("vision_tower.blocks", 4, value + 10), **full(value, "projector.weight", "image_newline")}
        workshop.model(
            name, {**towers, **stack("language_model.layers", 3, value), **full(value, "language_model.norm.weight")}
        )
    merged = workshop.merge(("a", 0, 2), ("b", 1, 3))
    assert order(merged, "language_model.layers") == [0, 1, 101, 102]
    assert order(merged, "vision_tower.blocks") == [10, 11, 12, 13]
    assert [first(merged, name) for name in ("projector.weight", "image_newline")] == [0, 0]
    assert first(merged, "language_model.norm.weight") == 100
    assert any(
        "layers of language_model.layers; vision_tower.blocks stay whole" in line for line in workshop.report.warnings
    )


@pytest.mark.parametrize(
    ("stacks", "encoder", "decoder"),
    [("encoder", [0, 1, 1, 2], [10, 11, 12]), ("decoder.block", [0, 1, 2], [10, 11, 11, 12])],
)
def test_the_recipe_says_which_stack_is_cut(
    stacks: str, encoder: list[float], decoder: list[float], workshop: Workshop
) -> None:
    workshop.model("a", {**stack("encoder.block", 3, 0.0), **stack("decoder.block", 3, 10.0)})
    merged = workshop.merge(("a", 0, 2, {"stack": stacks}), ("a", 1, 3))
    assert order(merged, "encoder.block") == encoder
    assert order(merged, "decoder.block") == decoder
    with pytest.raises(
        WeightspaceError, match=r"2 stacks.*encoder.block \(3 layers\).*`layer_range: \[0, 2\]` with `stack:"
    ):
        workshop.merge(("a", 0, 2), ("a", 1, 3))
    with pytest.raises(WeightspaceError, match="name the stacks 'encoder', 'decoder'"):
        workshop.merge(("a", 0, 2, {"stack": "encoder"}), ("a", 1, 3, {"stack": "decoder"}))


def test_tensors_around_a_decoder_are_placed_by_the_flow_of_data(workshop: Workshop) -> None:
    for name, value in (("a", 0.0), ("b", 100.0)):
        outside = full(
            value,
            "shared.weight",
            "encoder.final_layer_norm.weight",
            "decoder.final_layer_norm.weight",
            "lm_head.weight",
        )
        workshop.model(name, {**stack("encoder.block", 2, value), **stack("decoder.block", 2, value), **outside})
    merged = workshop.merge(("a", 0, 1, {"stack": "decoder"}), ("b", 1, 2))
    assert order(merged, "encoder.block") == [0, 1]
    assert [first(merged, f"{name}.weight") for name in ("shared", "encoder.final_layer_norm")] == [0, 0]
    assert [first(merged, f"{name}.weight") for name in ("lm_head", "decoder.final_layer_norm")] == [100, 100]
    merged = workshop.merge(("a", 0, 1, {"stack": "encoder"}), ("b", 1, 2))
    assert order(merged, "decoder.block") == [100, 101]


@pytest.mark.parametrize(
    "stem", ["patch_embed.proj.weight", "conv1.weight", "cls_token", "stem.0.weight", "pre_norm.weight"]
)
@pytest.mark.parametrize("head", ["norm.weight", "classifier.weight", "fc.bias"])
def test_stems_come_from_the_first_slice_and_heads_from_the_last(stem: str, head: str, workshop: Workshop) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        workshop.model(name, {**stack("blocks", 2, value), **full(value, stem, head)})
    merged = workshop.merge(("a", 0, 1), ("b", 1, 2))
    assert (first(merged, stem), first(merged, head)) == (1, 2)


def test_a_gradient_in_a_slice_of_one_layer_takes_its_last_value(workshop: Workshop) -> None:
    for name, value in (("a", 0.0), ("b", 100.0)):
        workshop.model(name, llama(value, 4))
    gradient = [{}, {"parameters": {"weight": [0, 0.25, 1]}}]
    merged = workshop.merge(*(("ab", i, j, *gradient) for i, j in ((0, 1), (1, 2), (2, 4))), merge_method="linear")
    shares = [value - layer for layer, value in enumerate(order(merged, "model.layers"))]
    assert shares == pytest.approx([50, 50, 0, 50])
    assert first(merged, "model.embed_tokens.weight") == 0
    assert first(merged, "lm_head.weight") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: llama(5.0, width=4),
            r"'model.layers.1.attn.weight' is \(4, 4\) in b.safetensors, but .* \(2, 2\) in a",
        ),
        (
            lambda: {**llama(5.0), **{f"model.layers.{i}.mlp.weight": torch.ones(6, 2) for i in range(3)}},
            r"'model.layers.1.mlp.weight' is \(6, 2\) in b.safetensors",
        ),
        (
            lambda: {**llama(5.0), **{f"model.layers.{i}.attn.bias": torch.ones(2) for i in range(3)}},
            r"Layer 1 of b.safetensors is unlike any layer of a.safetensors: 'model.layers.0.attn.bias' is in b",
        ),
        (
            lambda: {name: tensor for name, tensor in llama(5.0).items() if "mlp" not in name},
            r"'model.layers.0.mlp.weight' is in a.safetensors, not in b.safetensors",
        ),
        (
            lambda: {**llama(5.0), "lm_head.weight": torch.ones(4, 2)},
            r"'lm_head.weight' is \(4, 2\) in b.safetensors and \(3, 2\) in a.*vocabularies",
        ),
        (
            lambda: {name: tensor for name, tensor in llama(5.0).items() if "norm" not in name},
            r"b.safetensors has no tensor 'model.norm.weight', which a.safetensors has after the layers",
        ),
        (
            lambda: {name.replace("model.layers", "transformer.h"): tensor for name, tensor in llama(5.0).items()},
            r"layer_range refers to 'model.layers' in a.safetensors and 'transformer.h' in b.safetensors",
        ),
        (lambda: llama(5.0, layers=2), r"b.safetensors has no layer 2; expected a layer_range within 0 to 2"),
    ],
    ids=[
        "width",
        "inner width",
        "more tensors",
        "fewer tensors",
        "vocabulary",
        "no norm",
        "other names",
        "too few layers",
    ],
)
def test_slices_that_do_not_fit_are_refused_from_the_headers(change: Any, message: str, workshop: Workshop) -> None:
    workshop.model("a", llama(0.0))
    workshop.model("b", change())
    for options in ({"dry_run": True}, {}):
        with pytest.raises(WeightspaceError, match=message) as error:
            workshop.merge(("a", 0, 2), ("b", 1, 3), options=options)
        assert len(str(error.value)) < 500
    assert sorted(path.name for path in workshop.folder.iterdir()) == ["a.safetensors", "b.safetensors", "recipe.yml"]


def test_the_middle_may_have_another_vocabulary(workshop: Workshop) -> None:
    workshop.model("a", llama(0.0))
    workshop.model(
        "b", {**llama(100.0), "lm_head.weight": torch.ones(9, 2), "model.embed_tokens.weight": torch.ones(9, 2)}
    )
    merged = workshop.merge(("a", 0, 1), ("b", 1, 2), ("a", 2, 3))
    assert order(merged, "model.layers") == [0, 101, 2]
    assert merged["lm_head.weight"].shape == (3, 2)


def test_lenient_takes_layers_with_other_tensors_and_what_the_last_model_lacks(workshop: Workshop) -> None:
    workshop.model("a", llama(0.0))
    bias = {f"model.layers.{i}.attn.bias": torch.ones(2) for i in range(3)}
    workshop.model("b", {**{name: tensor for name, tensor in llama(100.0).items() if "norm" not in name}, **bias})
    merged = workshop.merge(("a", 0, 2), ("b", 1, 3), options={"lenient": True})
    assert "model.layers.2.attn.bias" in merged
    assert "model.layers.1.attn.bias" not in merged
    assert first(merged, "model.norm.weight") == 0
    assert len(workshop.report.warnings) == 3


def test_a_tensor_that_only_the_second_source_of_a_slice_has_is_not_lost(workshop: Workshop) -> None:
    workshop.model("a", llama(0.0))
    workshop.model("b", {**llama(5.0), **{f"model.layers.{i}.attn.bias": torch.ones(2) for i in range(3)}})
    with pytest.raises(CheckpointError, match=r"attn.bias"):
        workshop.merge(("ab", 0, 3), merge_method="linear", parameters={"weight": 1})


def mixture(value: float, kinds: str, config: Mapping[str, Any]) -> tuple[StateDict, dict[str, Any]]:
    """Return a model whose layers are dense (d) or sparse (s), and its configuration."""
    state: StateDict = {}
    for layer, kind in enumerate(kinds):
        parts = ("attn.weight", "mlp.up.weight") if kind == "d" else ("attn.weight", "experts.0.weight", "gate.weight")
        state |= {f"model.layers.{layer}.{part}": torch.full((2, 2), value + layer) for part in parts}
    return {**state, "model.norm.weight": torch.ones(2)}, {"num_hidden_layers": len(kinds), "model_type": "x", **config}


@pytest.mark.parametrize(
    ("kinds", "config", "ranges", "expected"),
    [
        ("dsss", {"first_k_dense_replace": 1}, [(0, 3), (1, 4)], {"first_k_dense_replace": 1}),
        ("dsds", {"decoder_sparse_step": 2, "num_experts": 1}, [(0, 2), (0, 4)], {"decoder_sparse_step": 2}),
        ("dssd", {"mlp_only_layers": [0, 3]}, [(0, 4), (2, 4)], {"mlp_only_layers": [0, 3, 5]}),
        ("ddss", {"mlp_layer_types": list("ddss")}, [(0, 3), (1, 4)], {"mlp_layer_types": list("ddsdss")}),
    ],
)
def test_layers_of_differing_kinds_move_where_the_configuration_distinguishes_them(
    kinds: str, config: dict, ranges: list, expected: dict, workshop: Workshop
) -> None:
    for name, value in (("a", 0.0), ("b", 100.0)):
        workshop.model(name, *mixture(value, kinds, config))
    (start, end), (again, stop) = ranges
    merged = workshop.merge(("a", start, end), ("b", again, stop), out="out")
    assert order(merged, "model.layers", "attn.weight") == [*range(start, end), *range(100 + again, 100 + stop)]
    written = workshop.config()
    assert {key: written[key] for key in expected} == expected
    assert written["num_hidden_layers"] == end - start + stop - again


def test_layers_of_differing_kinds_that_nothing_distinguishes_keep_their_places(workshop: Workshop) -> None:
    for name, value in (("a", 0.0), ("b", 100.0)):
        workshop.model(name, *mixture(value, "dsds", {}))
    merged = workshop.merge(("a", 0, 2), ("b", 2, 4), out="out")
    assert order(merged, "model.layers", "attn.weight") == [0, 1, 102, 103]
    with pytest.raises(CheckpointError, match=r"config.json does not say by which rule"):
        workshop.merge(("a", 0, 3), ("b", 1, 4), out="other")


def test_tensors_of_the_first_layer_alone_lie_before_the_layers(workshop: Workshop) -> None:
    """T5 keeps the table of relative positions of all its layers in the first one."""
    for name, value in (("a", 0.0), ("b", 100.0)):
        table = torch.full((2, 2), value)
        workshop.model(name, {**stack("encoder.block", 3, value), "encoder.block.0.attn.relative_bias.weight": table})
    for ranges, layers in ([(0, 2), (0, 2)], [0, 1, 100, 101]), ([(1, 3), (0, 2)], [1, 2, 100, 101]):
        merged = workshop.merge(*(("ab"[index], *bounds) for index, bounds in enumerate(ranges)))
        assert order(merged, "encoder.block") == layers
        assert [name for name in merged if "relative_bias" in name] == ["encoder.block.0.attn.relative_bias.weight"]
        assert first(merged, "encoder.block.0.attn.relative_bias.weight") == 0


def test_a_first_layer_that_lacks_something_stays_the_first(workshop: Workshop) -> None:
    """ModernBERT's first layer has no norm before its attention."""
    state = stack("model.layers", 4, 0.0, "attn.weight", "attn_norm.weight")
    del state["model.layers.0.attn_norm.weight"]
    workshop.model("a", state)
    assert order(workshop.merge(("a", 0, 3), ("a", 1, 4)), "model.layers", "attn.weight") == [0, 1, 2, 1, 2, 3]
    for ranges in [(1, 4)], [(0, 2), (0, 2)]:
        with pytest.raises(CheckpointError, match="can only be the first one"):
            workshop.merge(*(("a", *bounds) for bounds in ranges))


def test_stages_of_differing_widths_keep_their_places(workshop: Workshop) -> None:
    def stages(value: float) -> StateDict:
        return {f"layers.{i}.blocks.0.norm1.weight": torch.full((2 * 2**i,), value) for i in range(3)} | {
            f"layers.{i}.blocks.0.qkv.weight": torch.full((2 * 2**i, 2), value) for i in range(3)
        }

    workshop.model("a", stages(0.0))
    workshop.model("b", stages(1.0))
    merged = workshop.merge(("a", 0, 1), ("b", 1, 3))
    assert [first(merged, f"layers.{i}.blocks.0.norm1.weight") for i in range(3)] == [0, 1, 1]
    with pytest.raises(CheckpointError, match="stages of different widths"):
        workshop.merge(("a", 0, 2), ("b", 1, 3))


def test_layers_for_further_tokens_follow_the_last_layer(workshop: Workshop) -> None:
    """DeepSeek keeps its multi-token prediction as one more layer, which num_hidden_layers does not count."""
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    for name, value in (("a", 0.0), ("b", 100.0)):
        further = {"model.layers.3.eh_proj.weight": torch.full((2, 2), value + 3)}
        workshop.model(name, {**llama(value), **further}, config)
    merged = workshop.merge(("a", 0, 2), ("b", 1, 3), out="out")
    assert order(merged, "model.layers") == [0, 1, 101, 102]
    assert first(merged, "model.layers.4.eh_proj.weight") == 103
    assert workshop.config()["num_hidden_layers"] == 4
    with pytest.raises(CheckpointError, match="no layer 3"):
        workshop.merge(("a", 2, 4), out="other")


def test_layers_that_share_memory_do_not_share_it_at_other_places(workshop: Workshop) -> None:
    state = llama(0.0, 4)
    state["model.layers.2.mlp.weight"] = state["model.layers.1.mlp.weight"]
    workshop.model("a", state)
    merged = workshop.merge(("a", 0, 2), ("a", 3, 4))
    assert order(merged, "model.layers") == [0, 1, 3]
    merged = workshop.merge(("a", 0, 3))
    assert merged["model.layers.2.mlp.weight"].data_ptr() == merged["model.layers.1.mlp.weight"].data_ptr()


def test_a_tied_head_of_the_last_model_is_its_embedding(workshop: Workshop) -> None:
    workshop.model("a", llama(0.0), {"num_hidden_layers": 3, "tie_word_embeddings": False})
    tied = {name: tensor for name, tensor in llama(100.0).items() if name != "lm_head.weight"}
    workshop.model("b", tied, {"num_hidden_layers": 3, "tie_word_embeddings": True})
    merged = workshop.merge(("a", 0, 2), ("b", 1, 3), out="out")
    assert (first(merged, "model.embed_tokens.weight"), first(merged, "lm_head.weight")) == (0, 100)
    assert workshop.config()["tie_word_embeddings"] is False
    merged = workshop.merge(("b", 0, 2), ("a", 1, 3), out="other")
    assert (first(merged, "model.embed_tokens.weight"), first(merged, "lm_head.weight")) == (100, 0)
    assert json.loads((workshop.folder / "other" / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_configurations_donor_must_have_what_the_slices_have(workshop: Workshop) -> None:
    config = {"num_hidden_layers": 3}
    workshop.model("a", llama(0.0), config)
    workshop.model("b", {**llama(0.0), "model.extra.weight": torch.ones(2)}, config)
    with pytest.raises(CheckpointError, match=r"b, which config.json comes from, has 'model.extra.weight'"):
        workshop.merge(("a", 0, 2), ("a", 1, 3), base="b", out="out")
    workshop.model("c", {**llama(0.0), "model.norm.weight": torch.ones(4)}, config)
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' is \(2,\) in a and \(4,\) in c"):
        workshop.merge(("a", 0, 2), ("a", 1, 3), base="c", out="out")


@pytest.mark.parametrize(
    "name",
    ["esm.contact_head.regression.weight", "layer_weights", "resid_lambdas", "model.embed_tokens_per_layer.weight"],
)
def test_a_tensor_with_an_entry_for_each_layer_keeps_the_layers_where_they_are(name: str, workshop: Workshop) -> None:
    workshop.model("a", {**llama(0.0), name: torch.ones(3, 4)})
    assert order(workshop.merge(("a", 0, 1), ("a", 1, 3)), "model.layers") == [0, 1, 2]
    with pytest.raises(CheckpointError, match="has an entry for each layer"):
        workshop.merge(("a", 0, 2), ("a", 1, 3))


def test_gaps_in_the_numbers_of_layers_are_refused(workshop: Workshop) -> None:
    workshop.model("a", {name: tensor for name, tensor in llama(0.0, 4).items() if "layers.1." not in name})
    with pytest.raises(
        WeightspaceError, match=r"numbered from 0 by one number; found 'model.layers.2.attn.weight' in layer 1"
    ):
        workshop.merge(("a", 0, 2))


def test_a_model_of_one_layer_is_stacked(workshop: Workshop) -> None:
    workshop.model("a", llama(0.0, 1))
    assert order(workshop.merge(("a", 0, 1), ("a", 0, 1)), "model.layers") == [0, 0]


@pytest.mark.parametrize("method", ["task_arithmetic", "passthrough", "linear"])
def test_a_head_that_only_the_base_has_is_written(workshop: Workshop, method: str) -> None:
    """The models tie it to their embedding, and the configuration is the base's."""
    generator = torch.Generator().manual_seed(0)
    names = ("model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.norm.weight")
    model = {name: torch.randn(4, 4, generator=generator) for name in names}
    base = {name: torch.randn(4, 4, generator=generator) for name in (*names, "lm_head.weight")}
    for name, state in (("m", model), ("b", base)):
        workshop.model(name, state, {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": name == "m"})
    parameters = {} if method == "passthrough" else {"weight": 0.5}
    keys = {"merge_method": method, "base_model": workshop.path("b"), "parameters": parameters}
    merged = workshop.merge(("m", 0, 1), ("m", 1, 2), out="out", **keys)
    tied = model["model.embed_tokens.weight"]
    expected = torch.lerp(base["lm_head.weight"], tied, 0.5) if method == "task_arithmetic" else tied
    torch.testing.assert_close(merged["lm_head.weight"], expected)
    assert workshop.config()["tie_word_embeddings"] is False
