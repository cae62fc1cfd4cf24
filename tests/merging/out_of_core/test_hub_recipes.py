"""Recipes with models of the Hub: with revisions and adapters, from the cache or by range, in every command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from local_hub import LocalHub, local_hub
from moe_models import save_model, write_recipe

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict, load_metadata
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, MergeReport, merge_files, reproduce

huggingface_hub = pytest.importorskip("huggingface_hub")

RECIPE = """
merge_method: task_arithmetic
base_model: org/base
models:
  - model: org/math@v2+org/lora
    parameters: {weight: 0.5}
  - model: {model: {path: org/code, revision: main}}
    parameters: {weight: 0.25}
tokenizer_source: org/code
chat_template: chatml
dtype: float32
"""


def model(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {f"model.layers.{layer}.mlp.weight": torch.randn(60, 60, generator=generator) for layer in range(3)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Serve ``base``, ``math@v2``, ``code`` and the adapter ``lora`` of ``org``; work in an empty folder."""
    org = tmp_path / "served" / "org"
    for seed, name in enumerate(("base", "math", "math@v2", "code")):
        ws.save_checkpoint(model(seed), org / name)
        (org / name / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 3}')
        (org / name / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
        (org / name / "tokenizer_config.json").write_text("{}")
    prefix = "base_model.model.model.layers.0.mlp"
    factors = {f"{prefix}.lora_A.weight": torch.ones(1, 60), f"{prefix}.lora_B.weight": torch.ones(60, 1)}
    ws.save_checkpoint(factors, org / "lora" / "adapter_model.safetensors")
    (org / "lora" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["mlp"]}'
    )
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with local_hub(tmp_path / "served", tmp_path / "hub", monkeypatch) as found:
        yield found


def merge(text: str = RECIPE, out: str = "out", **options: bool) -> MergeReport:
    Path("recipe.yml").write_text(text)
    return merge_files("recipe.yml", out, execution=ExecutionOptions(fsync=False), **options)


def expected() -> StateDict:
    base, fine, code = model(0), model(2), model(3)
    fine["model.layers.0.mlp.weight"] = fine["model.layers.0.mlp.weight"] + 1
    return {n: (b.double() + 0.5 * (fine[n] - b) + 0.25 * (code[n] - b)).float() for n, b in base.items()}


def assert_merged(out: str) -> None:
    merged = ws.load_checkpoint(out)
    for name, tensor in expected().items():
        assert torch.allclose(merged[name], tensor, atol=1e-5)


def test_a_recipe_of_the_hub_is_planned_from_headers_and_merged(hub: LocalHub) -> None:
    (warning,) = merge(dry_run=True).warnings  # the tokenizers have none of the template's tokens
    assert "chat_template uses '<|im_start|>', '<|im_end|>'" in warning
    assert hub.sent < 10_000
    merge()
    assert_merged("out")
    assert reproduce("out").equal
    card = Path("out/README.md").read_text()
    assert "base_model:\n- org/math\n- org/lora\n- org/code\n- org/base\n" in card
    assert "im_start" in Path("out/chat_template.jinja").read_text()


def test_a_model_card_lists_every_file_once(hub: LocalHub) -> None:
    merge("merge_method: linear\nmodels: [{model: org/base}, {model: org/base+org/lora}]\nparameters: {weight: 1}\n")
    rows = [line for line in Path("out/README.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(set(rows))
    assert sum("base/model.safetensors" in row for row in rows) == 1


def test_models_in_the_cache_give_the_same_bytes(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(out="ranges")
    for name, revision in (("base", None), ("math", "v2"), ("code", None), ("lora", None)):
        huggingface_hub.snapshot_download(f"org/{name}", revision=revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sent = hub.sent
    merge(out="cached")
    assert hub.sent == sent
    assert Path("cached/model.safetensors").read_bytes() == Path("ranges/model.safetensors").read_bytes()
    names = [entry["name"] for entry in json.loads(load_metadata("cached")["inputs"])]
    models = ["math/model.safetensors", "code/model.safetensors", "base/model.safetensors"]
    assert [name for name in names if not name.startswith("lora/")] == models


def test_a_folder_of_the_name_comes_first(hub: LocalHub) -> None:
    shutil.copytree(hub.root / "org" / "math@v2", "org/base")
    merge("merge_method: passthrough\nmodels: [{model: org/base}]\n")
    assert torch.equal(ws.load_checkpoint("out")["model.layers.1.mlp.weight"], model(2)["model.layers.1.mlp.weight"])


def test_what_is_absent_offline_is_refused_before_anything_is_written(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"`hf download org/math --revision v2` downloads it") as error:
        merge()
    assert "\n" not in str(error.value)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "org/base", "org/code"],
        ["merge", "org/base", "org/math@v2+org/lora", "-o", "out"],
        ["merge", "org/base", "org/code", "-m", "ties", "--base", "org/math", "-o", "out.safetensors", "--dry-run"],
        ["extract-lora", "org/base", "org/code", "--rank", "2", "-o", "lora"],
        ["merge-adapters", "org/lora", "org/lora", "-o", "lora"],
        ["spectrum", "org/base", "org/code"],
    ],
)
def test_every_command_that_takes_a_checkpoint_takes_one_of_the_hub(
    arguments: list[str], hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(hub.root))
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "downloads it" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture
def language_models(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have ``tiny/a``, ``tiny/b`` with one more token, and the adapter ``tiny/lora`` in the Hub's cache only."""
    pytest.importorskip("transformers")
    for seed, name in enumerate("ab"):
        save_model("llama", seed, str(hub.root / "tiny" / name))
    tokenizer = hub.root / "tiny" / "b" / "tokenizer.json"
    tokens = json.loads(tokenizer.read_text())
    tokens["model"]["vocab"]["lemma"] = max(tokens["model"]["vocab"].values()) + 1
    tokenizer.write_text(json.dumps(tokens))
    lora = hub.root / "tiny" / "lora"
    name = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(1, 16), f"{name}.lora_B.weight": torch.ones(20, 1)}
    ws.save_checkpoint(factors, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up_proj"]}'
    )
    for model in ("a", "b", "lora"):
        huggingface_hub.snapshot_download(f"tiny/{model}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_recipe("moe.yml", experts=("tiny/a", "tiny/b"), base_model="tiny/a")
    Path("union.yml").write_text(
        "merge_method: linear\nmodels: [{model: tiny/a}, {model: tiny/b+tiny/lora}]\nparameters: {weight: 0.5}\n"
        "tokenizer_source: tiny/b\n"
    )
    return hub.root.parent / "hub"


@pytest.mark.parametrize(
    "command",
    [
        "transplant tiny/a --tokenizer tiny/b -k 4",
        "transplant tiny/a --tokenizer tiny/b --method subword",
        "merge union.yml",
        "merge tiny/a tiny/b+tiny/lora",
        "moe moe.yml",
        "extract-lora tiny/a tiny/b --rank 2 --lenient",
        "merge-adapters tiny/lora tiny/lora",
    ],
)
def test_outputs_name_models_of_the_hub_and_no_path_of_its_cache(command: str, language_models: Path) -> None:
    result = CliRunner().invoke(cli.main, [*command.split(), "-o", "out"])
    assert result.exit_code == 0, result.output
    assert str(language_models) not in result.output
    written = [path for path in Path("out").rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert b"snapshots" not in path.read_bytes(), path
        assert str(language_models).encode() not in path.read_bytes(), path
    if command.startswith("transplant"):
        assert "tokenizer_source: tiny/b" in Path("out/README.md").read_text()
        assert "tokenizer_source: tiny/b" in load_metadata("out")["recipe"]
    if command.startswith(("transplant", "merge union")):
        assert "lemma" in Path("out/tokenizer.json").read_text()


def test_a_recipe_of_a_model_card_gives_a_model_that_generates(hub: LocalHub) -> None:
    transformers = pytest.importorskip("transformers")
    llamas = Path(__file__).parents[2] / "data" / "conformance" / "recipes" / "inputs" / "fp32" / "llama"
    for name in ("base", "a", "b@v1", "lora"):
        shutil.copytree(llamas / name.partition("@")[0], hub.root / "cards" / name)
    merge(
        "models:\n  - model: cards/base\n  - model: cards/a+cards/lora\n    parameters: {density: 0.6, weight: 0.5}\n"
        "  - model: cards/b@v1\n    parameters: {density: 0.6, weight: [0.2, 0.5]}\n"
        "merge_method: dare_ties\nbase_model: cards/base\nparameters: {int8_mask: true}\ndtype: bfloat16\n"
    )
    network = transformers.AutoModelForCausalLM.from_pretrained("out", local_files_only=True)
    assert network.dtype == torch.bfloat16
    tokens = network.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens.shape[0] == 1
    assert tokens.shape[1] > 3
