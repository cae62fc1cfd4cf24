"""Recipes of mixtures as mergekit-moe takes them: what is built, reported, and refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import moe_models as tiny
import pytest
import torch
import yaml
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions, build_moe
from weightspace.merging.moe.planner import mixture_parts, mixture_plan, write_router_skeleton
from weightspace.merging.moe.recipe import read_mixture_recipe

pytest.importorskip("transformers", minversion="5")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 0), ("b", 1)):
        tiny.save_model("llama", seed, str(folder / name))
    return folder


@pytest.fixture(autouse=True)
def _folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(models / name)


def run(line: str) -> Any:
    return CliRunner().invoke(cli.main, line.split(), catch_exceptions=False)


def test_experts_are_the_models_mlps_and_the_rest_is_the_base() -> None:
    build_moe(tiny.write_recipe(experts=("b", "a")), "out")
    out, a, b = map(ws.load_checkpoint, ("out", "a", "b"))
    for layer in ("model.layers.0.", "model.layers.1."):
        for part, projection in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            for expert, model in enumerate((b, a)):
                found = out[f"{layer}block_sparse_moe.experts.{expert}.{part}.weight"]
                assert torch.equal(found, model[f"{layer}mlp.{projection}.weight"])
    rest = {name: value for name, value in out.items() if "block_sparse_moe" not in name}
    assert rest.keys() == {name for name in a if ".mlp." not in name}
    assert all(torch.equal(value, a[name]) for name, value in rest.items())


def test_scale_and_noise_are_those_of_the_recipe() -> None:
    plain = {"source_model": "a", "positive_prompts": ["love"], "residual_scale": 0.5}
    noisy = {"source_model": "a", "positive_prompts": ["maths"], "noise_scale": 0.1}
    build_moe(tiny.write_recipe(experts=(plain, noisy)), "out")
    out, a = ws.load_checkpoint("out"), ws.load_checkpoint("a")
    prefix = "model.layers.0.block_sparse_moe.experts."
    down, up = a["model.layers.0.mlp.down_proj.weight"], a["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(out[f"{prefix}0.w2.weight"], down * 0.5)
    assert torch.equal(out[f"{prefix}0.w3.weight"], up)
    noise = torch.cat([(out[f"{prefix}1.w2.weight"] - down).flatten(), (out[f"{prefix}1.w3.weight"] - up).flatten()])
    assert noise.std().item() == pytest.approx(0.1, rel=0.1)
    assert abs(noise.mean().item()) < 0.02


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads_and_shards() -> None:
    noisy = [{"source_model": name, "noise_scale": 0.1} for name in ("a", "b")]
    recipe = tiny.write_recipe(experts=noisy)
    build_moe(recipe, "one", execution=ExecutionOptions(threads=1))
    build_moe(recipe, "four", execution=ExecutionOptions(threads=4))
    build_moe(recipe, "sharded", output=OutputOptions(shard_size=4000))
    build_moe(recipe, "other", seed=1)
    one, sharded, other = map(ws.load_checkpoint, ("one", "sharded", "other"))
    assert Path("one/model.safetensors").read_bytes() == Path("four/model.safetensors").read_bytes()
    assert all(torch.equal(value, sharded[name]) for name, value in one.items())
    router = "model.layers.0.block_sparse_moe.gate.weight"
    assert not torch.equal(one[router], other[router])


def test_routers_follow_the_prompts() -> None:
    a = ws.load_checkpoint("a")
    rows = a["model.embed_tokens.weight"]
    positive = {"source_model": "a", "positive_prompts": ["prove the theorem", "love"]}
    negative = {"source_model": "b", "positive_prompts": ["code"], "negative_prompts": ["poem"]}
    build_moe(tiny.write_recipe(experts=(positive, negative), gate_mode="cheap_embed"), "out")
    ids = [
        [tiny.WORDS.index(word) for word in text.split()]
        for text in ("<s> prove the theorem <s> love", "<s> code", "<s> poem")
    ]
    first, second, third = (torch.nn.functional.normalize(rows[one].sum(dim=0), dim=0) for one in ids)
    expected = torch.stack([first, torch.nn.functional.normalize(second - third, dim=0)])
    out = ws.load_checkpoint("out")
    for layer in (0, 1):
        found = out[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg"])
def test_hidden_routers_are_the_bases_hidden_states(mode: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["prove the theorem", "write python", "a poem of love and rhyme"]
    experts = (
        {"source_model": "a", "positive_prompts": texts[:2]},
        {"source_model": "b", "positive_prompts": texts[2:]},
    )
    build_moe(tiny.write_recipe(experts=experts, gate_mode=mode), "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("a"), AutoTokenizer.from_pretrained("a")
    states = []
    for text in texts:
        tokens = tokenizer("<s>" + text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            hidden = torch.stack(model(**tokens, output_hidden_states=True).hidden_states[:-1])[:, 0]
        states.append(hidden.mean(dim=1) if mode == "hidden_avg" else hidden[:, -1])
    expected = torch.nn.functional.normalize(torch.stack([(states[0] + states[1]) / 2, states[2]], dim=1), dim=-1)
    out = ws.load_checkpoint("out")
    for layer in (0, 1):
        found = out[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        torch.testing.assert_close(found, expected[layer], rtol=1e-4, atol=1e-5)


def test_a_lora_adapter_may_be_an_expert() -> None:
    ws_adapter = run("extract-lora a b --rank 16 --lenient -o difference")
    assert ws_adapter.exit_code == 0, ws_adapter.output
    build_moe(tiny.write_recipe(experts=("a", "a+difference")), "out")
    name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    expected = ws.load_checkpoint("b")["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(ws.load_checkpoint("out")[name], expected, rtol=1e-4, atol=1e-4)


#: What is changed in a recipe -> a part of the line that refuses it.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"experts_per_token": 3}, "there are 2 experts; expected at most 2"),
    ({"experts_per_token": 0}, "integer of at least 1"),
    ({"gate_mode": "hiden"}, "Did you mean 'hidden'?"),
    ({"dtype": "bfloat"}, "Did you mean 'bfloat16'?"),
    ({"architecture": "mixtrall"}, "expected the beginning of one of Mixtral"),
    ({"architecture": "qwen"}, "exactly one shared expert, found 0"),
    ({"expert": []}, "Did you mean 'experts'?"),
    ({"base_model": None}, "base_model is missing"),
    ({"experts": []}, "a non-empty list"),
    ({"experts": [{"source_model": "a"}, {"source_model": "b"}], "gate_mode": "hidden"}, "positive_prompts is missing"),
    ({"experts": [{"source_model": "a", "positive_prompts": ["x"]}] * 2, "gate_mode": "hidden"}, "the same prompts"),
    ({"experts": [{"source_model": "a", "positive_prompts": [3]}, {"source_model": "b"}]}, "Quote it"),
    ({"experts": [{"source_model": "nowhere"}, {"source_model": "b"}]}, "nowhere"),
    ({"experts": [{"source_model": "a", "noise_scale": -1}, {"source_model": "b"}]}, "0 or more"),
    ({"shared_experts": [{"source_model": "a"}] * 2}, "fits no architecture"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES)
def test_a_mistake_is_one_line(change: dict[str, Any], said: str) -> None:
    tiny.write_recipe(**change)
    result = run("moe recipe.yml -o out")
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.splitlines()) == 1
    assert not Path("out").exists()


def test_models_that_do_not_fit_are_told_apart() -> None:
    tiny.save_model("llama", 2, "wide", intermediate_size=28)
    tiny.save_model("qwen2", 2, "other")
    tiny.save_model("llama", 2, "biased", attention_bias=True)
    ws.save_checkpoint(ws.load_checkpoint("a"), "a.safetensors")
    for base, expert, said in (
        ("a", "wide", "expected floats of shape (20, 16)"),
        ("a", "other", "expected models of one type"),
        ("biased", "a", "does not exist in Mixtral"),
        ("a", "a.safetensors", "no config.json"),
    ):
        with pytest.raises(WeightspaceError, match=said.replace("(", r"\(").replace(")", r"\)")):
            build_moe(tiny.write_recipe(experts=("a", expert), base_model=base), "out")


def test_what_mergekit_ignores_is_a_warning_and_an_error_under_strict() -> None:
    tiny.write_recipe(tokenizer_source="union")
    result = run("moe recipe.yml -o out")
    assert result.exit_code == 0
    assert "tokenizer_source has no effect" in result.output
    assert run("moe recipe.yml -o out --strict").exit_code == 2


def test_plans_with_the_same_routers_have_one_digest_so_that_a_build_resumes(tmp_path: Path) -> None:
    parts = mixture_parts(read_mixture_recipe(tiny.write_recipe()), 0, lambda line: None)
    digests = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_router_skeleton(parts, routers := tmp_path / name / "routers.safetensors")
        digests.add(mixture_plan(parts, routers, "digest", Path("out"), OutputOptions()).digest)
    digests.add(mixture_plan(parts, routers, "another", Path("out"), OutputOptions()).digest)
    assert len(digests) == 2


def test_a_mixture_is_not_reproduced() -> None:
    build_moe(tiny.write_recipe(), "out")
    result = run("merge --reproduce out")
    assert (result.exit_code, "run `weightspace moe`" in result.output) == (2, True)


def test_a_dry_run_writes_nothing_and_json_says_what_was_built() -> None:
    tiny.write_recipe()
    assert run("moe recipe.yml -o out --dry-run").exit_code == 0
    assert not Path("out").exists()
    result = CliRunner().invoke(cli.main, ["moe", "recipe.yml", "-o", "out", "--json", "-q"])
    report = json.loads(result.stdout)
    assert report["command"] == "moe"
    assert "out/config.json" in report["files"]
    assert not list(Path().glob(".out*"))


def test_verify_loads_and_runs_the_mixture() -> None:
    tiny.write_recipe()
    result = run("moe recipe.yml -o out --verify")
    assert result.exit_code == 0
    assert "MixtralForCausalLM" in result.output
    assert "one forward pass, finite outputs" in result.output
    assert run("moe recipe.yml -o out --verify --dry-run").exit_code == 2


def test_a_seed_that_nothing_is_drawn_with_is_refused() -> None:
    tiny.write_recipe(gate_mode="cheap_embed")
    result = run("moe recipe.yml -o out --seed 1")
    assert (result.exit_code, "--seed" in result.output) == (2, True)


def test_all_keys_of_mergekits_documentation_are_read(tmp_path: Path) -> None:
    text = yaml.safe_dump(
        {
            "base_model": {"model": {"path": "org/model", "revision": "main"}},
            "gate_mode": "hidden",
            "dtype": "torch.bfloat16",
            "experts_per_token": 1,
            "architecture": "qwen",
            "experts": [
                {"source_model": "org/one", "positive_prompts": ["x"], "negative_prompts": ["y"], "noise_scale": 0.1}
            ],
            "shared_experts": [{"source_model": "org/two", "positive_prompts": ["blah"], "residual_scale": 0.1}],
        }
    )
    (tmp_path / "recipe.yml").write_text(text)
    recipe = read_mixture_recipe(tmp_path / "recipe.yml")
    assert recipe.base == "org/model@main"
    assert recipe.dtype == "bfloat16"
    assert recipe.models == ("org/model@main", "org/one", "org/two")


def _expert_with_swapped_ids(models: Path) -> None:
    """Write a model ``c`` that is ``b`` with the ids of two tokens exchanged."""
    shutil.copytree(models / "b", "c")
    tokenizer = json.loads(Path("c/tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["maths"], vocab["poem"] = vocab["poem"], vocab["maths"]
    Path("c/tokenizer.json").write_text(json.dumps(tokenizer))


def test_an_expert_with_other_token_ids_is_refused(models: Path) -> None:
    _expert_with_swapped_ids(models)
    recipe = tiny.write_recipe(experts=("b", "c"))
    with pytest.raises(WeightspaceError, match=r"'maths' has id 5 in a and 13 in c .*2 tokens.*fine-tunes of"):
        build_moe(recipe, "out", dry_run=True)
    assert not Path("out").exists()
    warnings = build_moe(recipe, "out", lenient=True).warnings
    assert sum("'maths' has id 5 in a and 13 in c" in line for line in warnings) == 1
    assert Path("out/model.safetensors").exists()


def test_an_expert_with_another_vocabulary_size_is_reported() -> None:
    tiny.save_model("llama", 2, "c", vocab_size=30)
    warnings = build_moe(tiny.write_recipe(experts=("b", "c")), "out", dry_run=True).warnings
    assert "The configuration of c differs from that of a, which the output uses: vocab_size 30 (not 24)." in warnings
