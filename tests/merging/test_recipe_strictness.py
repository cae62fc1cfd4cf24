"""Strictness of recipes: settings that mergekit ignores are warnings, or errors if strict; unknown keys are errors."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files, reproduce
from weightspace.merging.recipe.parse import parse_recipe
from weightspace.merging.recipe.schedule import resolve

DATA = Path(__file__).parents[1] / "data" / "recipes"
PLAIN: dict[str, str] = yaml.safe_load((DATA / "plain.yml").read_text())
WARNED: dict[str, dict[str, str]] = {
    **yaml.safe_load((DATA / "warned.yml").read_text()),
    **yaml.safe_load((DATA / "unknown.yml").read_text()),
}


@pytest.fixture
def models(conformance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models ``base``, ``a``, ``b``, ``c`` of four layers, and an adapter ``lora`` of ``a``."""
    for name in ("base", "a", "b", "c"):
        shutil.copytree(conformance / "merging" / "inputs" / "fp32" / name, tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0, "y": 1}}}')
        (tmp_path / name / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    adapter(tmp_path / "lora")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapter(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(1, 32), f"{name}.lora_B.weight": torch.ones(32, 1)}
    ws.save_checkpoint(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}'
    )


def plan(text: str, **options: bool) -> tuple[str, ...]:
    Path("recipe.yml").write_text(text)
    return merge_files("recipe.yml", "out", dry_run=True, **options).warnings


@pytest.mark.parametrize("recipe", PLAIN)
def test_a_recipe_of_mergekit_is_planned_as_it_is(recipe: str, models: Path) -> None:
    for strict in (False, True):
        lines = plan(PLAIN[recipe], strict=strict)
        assert [line for line in lines if "chat_template uses" not in line] == []  # the tokenizers have two tokens
    assert not Path("out").exists()


@pytest.mark.parametrize("recipe", WARNED)
def test_keys_that_mergekit_ignores_are_one_warning_that_names_them_or_an_error(recipe: str, models: Path) -> None:
    text, name = WARNED[recipe]["recipe"], WARNED[recipe]["warning"]
    (warning,) = plan(text)
    assert name in warning
    assert "\n" not in warning
    assert plan(text, lenient=True) == (warning,)
    with pytest.raises(WeightspaceError) as error:
        plan(text, strict=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\nmodelss: [{model: a}]", "'modelss'.*Did you mean 'models'"),
        (PLAIN["ties"].replace("density", "densitiy"), "densitiy'.*density'"),
        (PLAIN["ties"].replace("parameters: {density: 0.5, weight: 0.5}", "weight: 0.5"), r"models\[1\].weight'"),
        (PLAIN["slerp in slices"].replace("layer_range", "layer_rang"), "layer_rang'.*layer_range'"),
        (PLAIN["a base of slices"].replace("base_model", "base_modl"), r"slices\[0\].base_modl'.*base_model'"),
        (PLAIN["one module in slices"].replace("slices", "slcies"), "modules.default.slcies'.*slices'"),
        (PLAIN["a tokenizer section"].replace("source", "sorce"), "tokenizer.sorce'.*source'"),
        (PLAIN["a model as a mapping"].replace("override_arch", "overide_arch"), "override_architecture'"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(text: str, message: str, models: Path) -> None:
    with pytest.raises(WeightspaceError, match=message):
        plan(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\ndype: float16", "'dtype'"),
        ("merge_method: linear\nmodels: [{model: a}, {model: b}]\noutput_dtype: float16", "'out_dtype'"),
        (
            "merge_method: wise_ft\nbase_model: a\nmodels: [{model: b}]\ncolour: red",
            "Unknown key in recipe.yml: 'colour'",
        ),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nt: 0.5", "Unknown key in recipe.yml: 't'"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: b, t: 0.5}]", r"Unknown key.*models\[0\].t"),
    ],
)
def test_keys_that_are_misspelled_needed_or_of_no_method_of_mergekit_stay_errors(
    text: str, message: str, models: Path
) -> None:
    with pytest.raises(WeightspaceError, match=message):
        plan(text)


def test_a_misspelled_key_is_left_out_where_a_reading_is_lenient_and_any_unknown_one_an_error_where_it_is_strict(
    models: Path,
) -> None:
    assert plan(f"{PLAIN['linear']}\ndype: red\n", lenient=True) == (
        "recipe.yml: dype is not a known key and is ignored.",
    )
    with pytest.raises(WeightspaceError, match=r"Unknown key in recipe.yml: 'colour'"):
        plan(f"{PLAIN['linear']}\ncolour: red\n", strict=True)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "sce", "ram"])
def test_a_base_without_models_beside_it_is_the_output(method: str, models: Path) -> None:
    Path("recipe.yml").write_text(f"merge_method: {method}\nbase_model: a+lora\nmodels: [{{model: a+lora}}]\n")
    merge_files("recipe.yml", "out")
    Path("plain.yml").write_text("merge_method: passthrough\nmodels: [{model: a+lora}]\n")
    merge_files("plain.yml", "plain")
    merged, adapted = ws.load_checkpoint("out"), ws.load_checkpoint("plain")
    assert merged.keys() == adapted.keys()
    assert all(torch.equal(tensor, adapted[name]) for name, tensor in merged.items())
    assert not all(torch.equal(tensor, merged[name]) for name, tensor in ws.load_checkpoint("a").items())


@pytest.mark.parametrize("method", ["slerp", "model_stock", "arcee_fusion", "multislerp", "wise_ft"])
def test_a_base_without_models_beside_it_is_refused_where_mergekit_refuses_it(method: str, models: Path) -> None:
    text = f"merge_method: {method}\nbase_model: a\nmodels: [{{model: a}}]\nparameters: {{t: 0.5}}\n"
    with pytest.raises(WeightspaceError, match=r"in addition to the base; found 0|not a parameter|Unknown key"):
        plan(text)


def test_a_merge_is_lenient_or_strict(models: Path) -> None:
    with pytest.raises(WeightspaceError, match="lenient and strict exclude each other"):
        plan(PLAIN["linear"], lenient=True, strict=True)


def test_the_parameters_of_a_users_method_are_its_own(models: Path) -> None:
    Path("mine.py").write_text("def mine(tensors, weights, base, *, share=1.0):\n    return tensors[0]\n")
    with pytest.raises(WeightspaceError, match=r"parameters.density'.*share"):
        plan("merge_method: mine.py:mine\nmodels: [{model: a}]\nparameters: {density: 0.5}\n")


def test_places_of_an_ignored_key_are_gathered_in_one_line() -> None:
    models = ", ".join(f"{{model: m{index}, parameters: {{weight: 1}}}}" for index in range(6))
    lines: list[str] = []
    parse_recipe(f"merge_method: model_stock\nbase_model: b\nmodels: [{models}]", "r.yml", ignored=lines.append)
    assert lines == [
        "r.yml: models[0].parameters.weight, models[1].parameters.weight, models[2].parameters.weight and 3 more have "
        "no effect: it is not a parameter of method 'model_stock'."
    ]


def test_a_base_without_a_weight_for_all_models_is_no_model_of_linear() -> None:
    text = "merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    assert [source.model for source in parse_recipe(text, "r.yml").slices[0].sources] == ["a"]
    lines: list[str] = []
    recipe = parse_recipe(f"{text}parameters: {{weight: 2}}\n", "r.yml", ignored=lines.append)
    assert [source.model for source in recipe.slices[0].sources] == ["a", "c"]
    assert resolve(recipe, 0, "w", 0)[0] == [1, 2]
    assert len(lines) == 1


def test_a_base_given_beside_models_of_a_method_without_one_is_refused(models: Path) -> None:
    with pytest.raises(WeightspaceError, match="'karcher' takes no base"):
        merge_files(["a", "b"], "out", method="karcher", base="c", dry_run=True)


def test_settings_of_a_module_rank_between_those_of_its_slices_and_of_the_recipe() -> None:
    recipe = parse_recipe(
        """
merge_method: ties
base_model: base
modules:
  default:
    slices:
      - sources: [{model: a, layer_range: [0, 1]}]
        parameters: {weight: [{filter: mlp, value: 3}]}
    parameters: {weight: [{filter: attn, value: 2}], lambda: 5}
parameters: {weight: 1, lambda: 6}
""",
        "r.yml",
    )
    weights = [resolve(recipe, 0, name, 0)[0] for name in ("mlp.up", "attn.q", "norm")]
    assert weights == [[3], [2], [1]]
    assert resolve(recipe, 0, "norm", 0)[1] == {"lambda": 5}


def test_words_and_truths_of_a_gradient_are_taken_not_mixed() -> None:
    recipe = parse_recipe(
        "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {nuslerp_flatten: [true, false, true]}",
        "r.yml",
    )
    taken = [resolve(recipe, 0, "w", position)[1]["nuslerp_flatten"] for position in (0, 0.49, 0.5, 0.99, 1)]
    assert taken == [True, True, False, False, True]


def test_a_merge_with_warnings_is_reproduced(models: Path) -> None:
    Path("recipe.yml").write_text(WARNED["density in task arithmetic"]["recipe"])
    assert len(merge_files("recipe.yml", "out").warnings) == 1
    assert reproduce("out").equal


def test_a_lenient_recipe_is_reproduced(models: Path) -> None:
    Path("recipe.yml").write_text("allow_crimes: true\n" + PLAIN["linear"])
    assert len(merge_files("recipe.yml", "out", lenient=True).warnings) == 1
    assert reproduce("out").equal


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("org/model", r"`hf download org/model` downloads it; or is the path right"),
        ("org/model@v1.0", r"`hf download org/model --revision v1.0`"),
        ("org/model+lora", r"`hf download org/model`"),
        ("a/nowhere", "is the path right"),
        ("nowhere", "is the path right"),
        ("/org/model", "is the path right"),
    ],
)
def test_a_name_of_the_hub_comes_with_the_command_that_fetches_it(path: str, advice: str, models: Path) -> None:
    with pytest.raises(WeightspaceError, match=advice):
        plan(f"merge_method: linear\nmodels: [{{model: {path}}}, {{model: b}}]\nparameters: {{weight: 1}}\n")


TABLES = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
    "transformer.h.0.attn.bias": (1, 1, 3, 3),
    "transformer.h.0.attn.masked_bias": (),
    "bert.embeddings.position_ids": (1, 5),
}


@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize("name", TABLES)
def test_tables_that_networks_compute_may_be_in_some_files_alone(name: str, lacking: int, tmp_path: Path) -> None:
    states = [{"w": torch.ones(2)}, {"w": torch.ones(2)}]
    states[1 - lacking][name] = torch.full(TABLES[name], 3.0)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, state in zip(paths, states, strict=True):
        ws.save_checkpoint(state, path)
    report = merge_files(paths, tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    assert torch.equal(ws.load_checkpoint(tmp_path / "out.safetensors")[name], torch.full(TABLES[name], 3.0))
    assert len([line for line in report.warnings if "networks compute them" in line]) == 1
    with pytest.raises(WeightspaceError, match="Expected the same tensors in all"):
        merge_files(paths, tmp_path / "out.safetensors", strict=True)


@pytest.mark.parametrize("name", ["layers.0.attn.bias", "layers.0.q_proj.bias", "inv_freq.weight", "positions"])
def test_any_other_tensor_that_a_model_lacks_is_an_error(name: str, tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.ones(2), name: torch.ones(3)}, tmp_path / "a.safetensors")
    ws.save_checkpoint({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(WeightspaceError, match=f"b.safetensors has no tensor '{name}'"):
        merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ["a+b", "a@b", "a+b@c"])
def test_paths_with_the_signs_of_references_are_paths(name: str, models: Path) -> None:
    shutil.copytree("a", name)
    shutil.copytree("lora", f"{name}-lora")
    for model in (name, f"{name}+lora", f"{name}+{name}-lora"):
        assert (
            plan(f"merge_method: linear\nmodels: [{{model: {model}}}, {{model: b}}]\nparameters: {{weight: 1}}\n") == ()
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 2}}, {model: b}]", "b has no weight for "),
        (
            "merge_method: ties\nbase_model: base\n"
            "models: [{model: base}, {model: a, parameters: {weight: 2}}, {model: b}]",
            "b has no weight for ",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"
            "parameters: {weight: [{filter: mlp, value: 2}, {filter: self_attn, value: 1}]}",
            "a has no weight for 'lm_head.weight' and ",
        ),
        (
            "merge_method: linear\nslices: [{sources: ["
            "{model: a, layer_range: [0, 4], parameters: {weight: 2}}, {model: b, layer_range: [0, 4]}]}]",
            "b has no weight for ",
        ),
    ],
)
def test_a_model_without_a_weight_beside_weights_is_a_warning_or_an_error(text: str, found: str, models: Path) -> None:
    lines = [line for line in plan(text) if "has no weight" in line]
    assert found in lines[0]
    assert "it counts as 1" in lines[0]
    assert len(lines) == (2 if "filter" in text else 1)
    with pytest.raises(WeightspaceError, match=r"Expected a weight for every model, as in mergekit"):
        plan(text, strict=True)


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear\nmodels: [{model: a}, {model: b}]",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 2}}, {model: b}]\nparameters: {weight: 1}",
        "merge_method: ties\nbase_model: base\nmodels: [{model: base}, {model: a, parameters: {weight: 2}}]",
    ],
)
def test_models_that_need_no_weight_of_their_own_are_not_reported(text: str, models: Path) -> None:
    assert plan(text, strict=True) == ()


@pytest.mark.parametrize(
    ("text", "key", "place"),
    [
        (
            "merge_method: ties\nbase_model: base\nmodels: [{model: a}]\ndensity: .5",
            "density",
            "parameters: {density: 0.5}",
        ),
        ("merge_method: linear\nmodels: [{model: a}]\nnormalize: false", "normalize", "parameters: {normalize: false}"),
        ("merge_method: linear\nmodels: [{model: a}]\nweight: [0, 1]", "weight", "parameters: {weight: …}"),
        ("merge_method: linear\nmodels: [{model: a, weight: 1}]", "models[0].weight", "models[0].parameters.weight"),
        (
            "merge_method: linear\nmodels: [{model: a, weight: 0.7}, {model: b}]\nparameters: {weight: 0.5}",
            "models[0].weight",
            "models[0].parameters.weight",
        ),
        (
            "merge_method: ties\nbase_model: base\nmodels: [{model: a, normalize: true}]",
            "models[0].normalize",
            "parameters: {normalize: true}",
        ),
        (
            "merge_method: slerp\nbase_model: a\n"
            "slices: [{sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}], t: 0.5}]",
            "slices[0].t",
            "slices[0].parameters.t",
        ),
        (
            "merge_method: wise_ft\nbase_model: a\nmodels: [{model: b}]\nalpha: 0.5",
            "alpha",
            "parameters: {alpha: 0.5}",
        ),
    ],
)
def test_a_parameter_of_the_method_outside_parameters_is_an_error_that_says_where_it_belongs(
    text: str, key: str, place: str, models: Path
) -> None:
    for strict in (False, True):
        with pytest.raises(WeightspaceError) as error:
            plan(text, strict=strict)
        assert f"Unknown key in recipe.yml: {key!r}; it is a parameter of method" in str(error.value)
        assert str(error.value).endswith(f"Expected `{place}`.")
    lines: list[str] = []
    parse_recipe(text, "r.yml", warn=lines.append)
    assert [line for line in lines if f"r.yml: {key} is ignored" in line and f"Expected `{place}`." in line]


def test_a_misspelt_key_of_a_searched_value_is_told_the_right_one() -> None:
    recipe = "{merge_method: ties, base_model: o, models: [{model: a}], parameters: {density: {serach: [0, 1]}}}"
    with pytest.raises(WeightspaceError, match=r"parameters\.density has the key 'serach' \(did you mean 'search'\?\)"):
        parse_recipe(recipe, "r.yml", warn=print, ignored=print)
