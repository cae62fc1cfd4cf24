"""Models that do not fit together for reasons beyond their shapes: prefixes, tokens, configurations, statistics."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ReadingOptions, merge_files


def network(value: float, prefix: str = "") -> StateDict:
    names = ("embed.weight", "layers.0.weight", "layers.1.weight", "head.weight")
    return {f"{prefix}{name}": torch.full((2, 2), value) for name in names}


def files(folder: Path, **states: StateDict) -> list[Path]:
    for name, state in states.items():
        ws.save_checkpoint(state, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in states]


def folders(folder: Path, beside: dict[str, dict[str, Any]]) -> list[Path]:
    """Write a small model per name, with JSON files beside its weights."""
    for number, (name, contents) in enumerate(beside.items()):
        ws.save_checkpoint(network(float(number)), folder / name)
        for file, content in contents.items():
            (folder / name / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return [folder / name for name in beside]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "a.b."]
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_prefix_that_one_model_alone_has_is_taken_off(prefix: str, first: bool, tmp_path: Path) -> None:
    states = [network(1.0, prefix if first else ""), network(3.0, "" if first else prefix)]
    report = merge_files(files(tmp_path, a=states[0], b=states[1]), tmp_path / "out.safetensors")
    assert ws.load_checkpoint(tmp_path / "out.safetensors").keys() == network(2.0).keys()
    assert ws.load_checkpoint(tmp_path / "out.safetensors")["embed.weight"][0, 0] == 2.0
    (line,) = report.warnings
    assert f"start with {prefix!r}" in line


def test_two_wrappers_are_both_taken_off(tmp_path: Path) -> None:
    report = merge_files(
        files(tmp_path, a=network(1.0, "module."), b=network(3.0, "_orig_mod.")), tmp_path / "out.safetensors"
    )
    assert ws.load_checkpoint(tmp_path / "out.safetensors").keys() == network(0.0).keys()
    assert len(report.warnings) == 2


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module._orig_mod."])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_inside_the_names_of_one_model_are_taken_off(wrapper: str, prefix: str, tmp_path: Path) -> None:
    inside = {name.replace("layers.0.", f"layers.0.{wrapper}"): tensor for name, tensor in network(1.0, prefix).items()}
    paths = files(tmp_path, a=inside, b=network(3.0))
    report = merge_files(paths, tmp_path / "out.safetensors")
    result = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert result.keys() == network(2.0).keys()
    assert result["layers.0.weight"][0, 0] == 2.0
    assert f"'layers.0.{wrapper}weight' is 'layers.0.weight' in other models" in report.warnings[-1]
    with pytest.raises(CheckpointError, match="no tensor"):
        merge_files(paths, tmp_path / "kept.safetensors", reading=ReadingOptions(strip_prefix=""))


def test_wrappers_inside_the_names_of_all_models_stay(tmp_path: Path) -> None:
    states = [{**network(value), "part._orig_mod.weight": torch.full((2,), value)} for value in (1.0, 3.0)]
    report = merge_files(files(tmp_path, a=states[0], b=states[1]), tmp_path / "out.safetensors")
    assert ws.load_checkpoint(tmp_path / "out.safetensors")["part._orig_mod.weight"][0] == 2.0
    assert report.warnings == ()


def test_evidence_follows_a_model_without_its_wrappers(tmp_path: Path) -> None:
    inside = {name.replace("layers.", "layers._orig_mod."): tensor for name, tensor in network(4.0, "module.").items()}
    weights = {name: torch.ones(2, 2) for name in inside}
    a, b, one, other = files(tmp_path, a=network(1.0), b=inside, one=network(2.0), other=weights)
    merge_files([a, b], tmp_path / "out.safetensors", method="fisher", evidence=[one, other])
    assert {float(tensor[0, 0]) for tensor in ws.load_checkpoint(tmp_path / "out.safetensors").values()} == {2.0}


def test_the_prefix_of_most_names_is_suggested(tmp_path: Path) -> None:
    scale = {"logit_scale": torch.ones(1)}
    paths = files(tmp_path, a={**network(1.0, "net."), **scale}, b={**network(3.0), **scale})
    with pytest.raises(CheckpointError, match=r"no tensor 'net\.embed\.weight'.* --strip-prefix net\. removes"):
        merge_files(paths, tmp_path / "out.safetensors")
    merge_files(paths, tmp_path / "out.safetensors", reading=ReadingOptions(strip_prefix="net."))


@pytest.mark.parametrize(
    "name", ["bn.num_batches_tracked", "blocks.1.attn_mask", "attn.relative_position_index", "rotary.cos_cached"]
)
def test_tables_that_networks_make_themselves_may_lack(name: str, tmp_path: Path) -> None:
    paths = files(tmp_path, a=network(1.0), b={**network(3.0), name: torch.ones(2, dtype=torch.int64)})
    report = merge_files(paths, tmp_path / "out.safetensors")
    assert ws.load_checkpoint(tmp_path / "out.safetensors")[name].tolist() == [1, 1]
    (line,) = report.warnings
    assert repr(name) in line


def test_a_prefix_of_a_torch_file_and_of_the_base_is_taken_off_too(tmp_path: Path) -> None:
    ws.save_checkpoint(network(3.0), tmp_path / "a.safetensors")
    torch.save({"state_dict": network(1.0, "module.")}, tmp_path / "base.ckpt")
    merge_files(
        [tmp_path / "a.safetensors"],
        tmp_path / "out.pt",
        method="task_arithmetic",
        base=tmp_path / "base.ckpt",
        weights=[0.5],
    )
    assert ws.load_checkpoint(tmp_path / "out.pt")["head.weight"][0, 0] == 2.0


def test_a_prefix_that_all_models_have_stays(tmp_path: Path) -> None:
    report = merge_files(
        files(tmp_path, a=network(1.0, "module."), b=network(3.0, "module.")), tmp_path / "out.safetensors"
    )
    assert "module.embed.weight" in ws.load_checkpoint(tmp_path / "out.safetensors")
    assert report.warnings == ()


def test_a_tied_model_beside_one_with_a_head_keeps_its_prefix(tmp_path: Path) -> None:
    tied = {"model.embed_tokens.weight": torch.ones(2, 2), "model.layers.0.w": torch.ones(2, 2)}
    merge_files(files(tmp_path, a=tied, b={**tied, "lm_head.weight": torch.ones(2, 2)}), tmp_path / "out.safetensors")
    assert set(ws.load_checkpoint(tmp_path / "out.safetensors")) == {*tied, "lm_head.weight"}


def test_a_prefix_of_some_names_is_taken_off_when_it_is_asked_for(tmp_path: Path) -> None:
    masked = {**network(3.0, "bert."), "cls.bias": torch.ones(2)}
    paths = files(tmp_path, a={**network(1.0), "cls.bias": torch.ones(2)}, b=masked)
    with pytest.raises(CheckpointError, match=r"Did you mean 'bert\.embed\.weight'"):
        merge_files(paths, tmp_path / "out.safetensors")
    merge_files(paths, tmp_path / "out.safetensors", reading=ReadingOptions(strip_prefix="bert."))
    assert ws.load_checkpoint(tmp_path / "out.safetensors")["embed.weight"][0, 0] == 2.0


@pytest.mark.parametrize(("option", "value"), [("strip_prefix", "modul."), ("key", "ema")])
def test_options_that_apply_to_no_model_are_warned_about(option: str, value: str, tmp_path: Path) -> None:
    paths = files(tmp_path, a=network(1.0), b=network(3.0))
    (line,) = merge_files(paths, tmp_path / "out.safetensors", reading=ReadingOptions(**{option: value})).warnings
    assert value in line


def test_no_prefix_is_taken_off_when_that_is_asked_for(tmp_path: Path) -> None:
    paths = files(tmp_path, a=network(1.0), b=network(3.0, "module."))
    with pytest.raises(CheckpointError, match=r"no tensor in common: .* --strip-prefix module\. removes the prefix"):
        merge_files(paths, tmp_path / "out.safetensors", reading=ReadingOptions(strip_prefix=""))


def test_names_that_become_one_without_a_prefix_are_refused(tmp_path: Path) -> None:
    paths = files(tmp_path, a={"w": torch.ones(1), "m.w": torch.ones(1)}, b=network(1.0))
    with pytest.raises(CheckpointError, match=r"without the prefix 'm\.'"):
        merge_files(paths, tmp_path / "out.safetensors", reading=ReadingOptions(strip_prefix="m."))


@pytest.mark.parametrize("lenient", [True, False])
def test_models_without_a_common_tensor_are_refused(lenient: bool, tmp_path: Path) -> None:
    foreign = {"conv.weight": torch.ones(2, 2)}
    for states in ((network(1.0), foreign), (network(1.0), network(3.0), foreign)):
        paths = files(tmp_path, **dict(zip("abc", states, strict=False)))
        with pytest.raises(CheckpointError, match="have no tensor in common"):
            merge_files(paths, tmp_path / "out.safetensors", lenient=lenient)
    assert not (tmp_path / "out.safetensors").exists()


TRAINING = {
    "timm": ({"state_dict": 1.0, "state_dict_ema": 9.0}, "state_dict", "state_dict_ema"),
    "yolo": ({"ema": 9.0, "model": 1.0}, "model", "ema"),
    "distillation": ({"model": 1.0, "teacher": 9.0}, "model", "teacher"),
    "nested": ({"model_state_dict": 1.0, "ema_state": 9.0}, "model_state_dict", "ema_state"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_the_network_chosen_from_a_training_file_is_named(case: str, tmp_path: Path) -> None:
    values, taken, other = TRAINING[case]
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2, 2)}}}
    torch.save({**{key: network(value) for key, value in values.items()}, "optimizer": optimizer}, tmp_path / "a.pt")
    report = merge_files([tmp_path / "a.pt", tmp_path / "a.pt"], tmp_path / "out.safetensors")
    assert ws.load_checkpoint(tmp_path / "out.safetensors")["embed.weight"][0, 0] == 1.0
    (line,) = report.warnings
    assert f"{taken!r} is taken" in line
    assert f"--key {other}" in line
    report = merge_files([tmp_path / "a.pt"], tmp_path / "out.safetensors", reading=ReadingOptions(key=other))
    assert ws.load_checkpoint(tmp_path / "out.safetensors")["embed.weight"][0, 0] == 9.0
    assert report.warnings == ()
    with pytest.warns(ws.WeightspaceWarning, match=f"{taken!r} is taken"):
        ws.load_checkpoint(tmp_path / "a.pt")


LLAMA = {"architectures": ["LlamaForCausalLM"], "rope_theta": 1e4, "rms_norm_eps": 1e-5, "transformers_version": "4.40"}

DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "rope_theta": ({**LLAMA, "rope_theta": 1e6}, r"rope_theta 1000000\.0 \(not 10000\.0\)"),
    "rope_scaling": (
        {**LLAMA, "rope_scaling": {"rope_type": "llama3"}},
        r"rope_scaling\.rope_type .*llama3.*",
    ),
    "architectures": ({**LLAMA, "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
    "labels": ({**LLAMA, "id2label": {"0": "no", "1": "yes"}}, "id2label"),
    "a nested field": ({**LLAMA, "vision_config": {"hidden_act": "gelu"}}, r"vision_config\.hidden_act"),
    "rope_parameters": (
        {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 5e5}},
        r"rope_theta 500000\.0",
    ),
}

ALIKE: dict[str, dict[str, Any]] = {
    "another version of transformers": {
        **LLAMA,
        "transformers_version": "5.0",
        "dtype": "bfloat16",
        "use_cache": False,
    },
    "the new spelling of rope": {
        "architectures": ["LlamaForCausalLM"],
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    },
    "a field that is null": {**LLAMA, "rope_scaling": None, "attention_bias": False},
    "dropout": {**LLAMA, "attention_dropout": 0.1, "resid_pdrop": 0.2},
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_differing_configurations_are_warned_about_with_field_and_values(case: str, tmp_path: Path) -> None:
    config, message = DIFFERENT[case]
    paths = folders(tmp_path, {"a": {"config.json": LLAMA}, "b": {"config.json": config}})
    report = merge_files(paths, tmp_path / "out")
    (line,) = report.warnings
    assert re.search(f"The configuration of b differs from that of a.*{message}", line), line
    assert line in (tmp_path / "out" / "README.md").read_text().replace("\\", "")  # Markdown's own characters escaped
    assert merge_files(paths, tmp_path / "out", dry_run=True).warnings == (line,)


@pytest.mark.parametrize("case", ALIKE)
def test_configurations_of_the_same_function_are_not_warned_about(case: str, tmp_path: Path) -> None:
    paths = folders(tmp_path, {"a": {"config.json": LLAMA}, "b": {"config.json": ALIKE[case]}})
    assert merge_files(paths, tmp_path / "out").warnings == ()


def test_files_that_are_not_copied_are_named(tmp_path: Path) -> None:
    paths = folders(tmp_path, {"a": {"optimizer.pt": "", "notes.txt": "kept"}, "b": {}})
    report = merge_files(paths, tmp_path / "out")
    assert report.warnings == (
        "Not copied from a: optimizer.pt (weights in other formats, training states, or links).",
    )
    assert (tmp_path / "out" / "notes.txt").read_text() == "kept"


def test_weights_of_modules_that_follow_the_network_are_copied_and_differences_are_warned_about(tmp_path: Path) -> None:
    paths = folders(tmp_path, {"a": {}, "b": {}})
    for path, value in zip(paths, (1.0, 2.0), strict=True):
        (path / "2_Dense").mkdir()
        ws.save_checkpoint({"linear.weight": torch.full((2, 2), value)}, path / "2_Dense" / "model.safetensors")
    report = merge_files(paths, tmp_path / "out")
    assert ws.load_checkpoint(tmp_path / "out" / "2_Dense" / "model.safetensors")["linear.weight"][0, 0] == 1.0
    assert report.warnings == (
        "2_Dense/model.safetensors of b differs from that of a, which is copied; it is not merged.",
    )


DECIDING: dict[str, tuple[str, str, str]] = {
    "code": ("modeling_x.py", "SCALE = 1", "SCALE = 2"),
    "an image processor": ("preprocessor_config.json", '{"size": 224}', '{"size": 384}'),
    "the length of sentences": ("sentence_bert_config.json", '{"max_seq_length": 128}', '{"max_seq_length": 512}'),
    "a head": ("sparse_linear.pt", "1", "2"),
}


@pytest.mark.parametrize("case", DECIDING)
def test_differences_between_files_that_affect_a_model_are_warned_about(case: str, tmp_path: Path) -> None:
    name, own, other = DECIDING[case]
    report = merge_files(folders(tmp_path, {"a": {name: own}, "b": {name: other}, "c": {name: own}}), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == own
    assert report.warnings == (f"{name} of b differs from that of a, which is copied; it is not merged.",)


def test_equivalent_files_of_another_order_or_release_are_not_warned_about(tmp_path: Path) -> None:
    own = {"preprocessor_config.json": {"size": 224, "mean": [0.5], "transformers_version": "4.40"}}
    other = {
        "preprocessor_config.json": {"mean": [0.5], "size": 224},
        "LICENSE": "MIT",
        "generation_config.json": {"x": 1},
    }
    assert merge_files(folders(tmp_path, {"a": own, "b": other}), tmp_path / "out").warnings == ()


def test_a_base_of_one_file_leaves_a_folder_without_configuration_with_a_warning(tmp_path: Path) -> None:
    (a,) = files(tmp_path, a=network(1.0))
    (b,) = folders(tmp_path, {"b": {"config.json": {"model_type": "x"}}})
    (line,) = merge_files([a, b], tmp_path / "out").warnings
    assert "b has a config.json, which is not copied" in line
    assert merge_files([a, b], tmp_path / "out.safetensors").warnings == ()
    assert merge_files([b, a], tmp_path / "other").warnings == ()


def test_of_many_files_that_are_left_the_unexpected_come_first(tmp_path: Path) -> None:
    left = dict.fromkeys([f"model.fp{bits}.safetensors" for bits in range(10)], "")
    (a, b) = folders(tmp_path, {"a": {**left, "zeta.safetensors": ""}, "b": {}})
    (line,) = merge_files([a, b], tmp_path / "out").warnings
    assert line.startswith("Not copied from a: zeta.safetensors, model.fp0.safetensors")
    assert ", and 3 more (" in line


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_methods_that_need_evidence_are_refused_without(method: str, tmp_path: Path) -> None:
    a, b = files(tmp_path, a=network(1.0), b=network(3.0))
    with pytest.raises(
        WeightspaceError, match=rf"{method!r} needs .* evidence for every model; found none for a\.safetensors, b"
    ):
        merge_files([a, b], tmp_path / "out.safetensors", method=method, dry_run=True)
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: {method}\nmodels: [{{model: {a}, evidence: {b}}}, {{model: {b}}}]\n")
    with pytest.raises(WeightspaceError, match=r"found none for b\.safetensors"):
        merge_files(recipe, tmp_path / "out.safetensors")
    with pytest.raises(WeightspaceError, match=r"needs .* evidence"):
        ws.merge([network(1.0), network(3.0)], method)


def test_evidence_of_another_network_is_refused(tmp_path: Path) -> None:
    a, b, other = files(tmp_path, a=network(1.0), b=network(3.0), other={"conv.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not evidence for a\.safetensors"):
        merge_files([a, b], tmp_path / "out.safetensors", method="fisher", evidence=[other, other])


def test_a_model_is_no_evidence(tmp_path: Path) -> None:
    a, b = files(tmp_path, a=network(1.0), b=network(3.0))
    with pytest.raises(CheckpointError, match="a model of this merge"):
        merge_files([a, b], tmp_path / "out.safetensors", method="fisher", evidence=[a, b])


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@pytest.mark.parametrize("change", ["lacking", "transposed", "longer"])
def test_evidence_that_does_not_fit_a_tensor_is_refused_while_planning(
    method: str, change: str, tmp_path: Path
) -> None:
    model, shape = {"w": torch.ones(3, 2), "b": torch.ones(3)}, (3, 2) if method == "fisher" else (2, 2)
    right = {"w": torch.ones(shape), "b": torch.ones(3)} if method == "fisher" else {"w": torch.ones(shape)}
    changed = {
        "lacking": {"b": torch.ones(3)},
        "transposed": right | {"w": torch.ones(2, 3)},
        "longer": right | {"w": torch.ones(shape[0] + 1, shape[1])},
    }[change]
    if method == "regmean":
        changed |= {"b": torch.ones(1, 1)}
        right |= {"b": torch.ones(1, 1)}
    a, b, one, other = files(tmp_path, a=model, b=model, one=right, other=changed)
    expected = rf"evidence of b\.safetensors for 'w': found .*, expected one of shape \({shape[0]}, {shape[1]}\)"
    with pytest.raises(CheckpointError, match=expected):
        merge_files([a, b], tmp_path / "out.safetensors", method=method, evidence=[one, other], dry_run=True)


def test_evidence_for_a_method_that_reads_none_is_refused(tmp_path: Path) -> None:
    a, b = files(tmp_path, a=network(1.0), b=network(3.0))
    with pytest.raises(WeightspaceError, match="'linear' does not use evidence"):
        merge_files([a, b], tmp_path / "out.safetensors", evidence=[a, b])


def test_evidence_follows_the_names_of_its_model(tmp_path: Path) -> None:
    a, b = files(tmp_path, a=network(1.0), b=network(4.0, "module."))
    one, other = files(tmp_path, one=network(2.0), other=network(1.0, "module."))
    merge_files([a, b], tmp_path / "out.safetensors", method="fisher", evidence=[one, other])
    assert ws.load_checkpoint(tmp_path / "out.safetensors")["embed.weight"][0, 0] == 2.0
